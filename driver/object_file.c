/* Tables of a shared object, from its file: see object_file.h.
 *
 * They are constants with pointers in them, so they lie in a segment that the loader writes to, and their pointers are
 * relocations, whose addends say where to: the addresses are those of the file's own numbering. Tables are found by what they
 * look like and by their names, for which there is a query function: symbols of their own may have been stripped. */
#include "driver/object_file.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ir/graph.h"

enum { MAX_SEGMENTS = 256, LEAST_WORK = 1 << 26, WORK_PER_BYTE = 16 };

typedef struct file {
    qn_arena *arena;
    const char *data;
    uint64_t size;
    const Elf64_Phdr *segments;
    int n_segments;
    const Elf64_Rela *relocations; /* that add the base, by their places */
    uint64_t n_relocations;
    const char *names; /* of exported symbols */
    uint64_t names_size;
    uint64_t left; /* bytes that may yet be looked at: tables of a hostile file lie over each other */
} file;

typedef struct mapping {
    void *data;
    size_t size;
} mapping;

static void unmap(void *user)
{
    const mapping *m = user;
    munmap(m->data, m->size);
}

static qn_status map_file(const char *path, file *f, qn_diags *diags)
{
    struct stat st = { 0 };
    void *data = MAP_FAILED;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && !fstat(fd, &st) && st.st_size > 0)
        data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = data == MAP_FAILED && fd >= 0 && !st.st_size ? ENODATA : errno;
    if (fd >= 0)
        close(fd);
    if (data == MAP_FAILED)
        return qn_error(diags, QUERN_ERROR_IO, NULL, "%s cannot be read: %s", path, strerror(error));
    mapping *m = QN_NEW(f->arena, mapping);
    *m = (mapping){ data, (size_t)st.st_size };
    qn_arena_defer(f->arena, unmap, m);
    f->data = data;
    f->size = m->size;
    f->left = LEAST_WORK + WORK_PER_BYTE * f->size;
    return QUERN_OK;
}

static const void *range(file *f, uint64_t offset, uint64_t bytes)
{
    return offset <= f->size && bytes <= f->size - offset ? f->data + offset : NULL;
}

/* What lies at an address of the loaded object, and how much follows it; NULL: nothing of the file. */
static const char *at_address(file *f, uint64_t address, uint64_t *out_left)
{
    for (int i = 0; i < f->n_segments; i++) {
        const Elf64_Phdr *s = &f->segments[i];
        if (s->p_type == PT_LOAD && address >= s->p_vaddr && address - s->p_vaddr < s->p_filesz) {
            const char *start = range(f, s->p_offset, s->p_filesz);
            *out_left = s->p_filesz - (address - s->p_vaddr);
            return start ? start + (address - s->p_vaddr) : NULL;
        }
    }
    return NULL;
}

static bool spend(file *f, uint64_t bytes)
{
    const bool enough = bytes <= f->left;
    f->left = enough ? f->left - bytes : 0;
    return enough;
}

static const void *bytes_at(file *f, uint64_t address, uint64_t bytes)
{
    uint64_t left;
    const char *at = at_address(f, address, &left);
    return at && bytes <= left && spend(f, bytes) ? at : NULL;
}

static const char *text_at(file *f, uint64_t address)
{
    uint64_t left;
    const char *at = at_address(f, address, &left);
    const size_t n = at ? strnlen(at, left < f->left ? left : f->left) : 0;
    return at && n < left && spend(f, n + 1) ? at : NULL;
}

static int by_place(const void *a, const void *b)
{
    const uint64_t x = ((const Elf64_Rela *)a)->r_offset, y = ((const Elf64_Rela *)b)->r_offset;
    return x < y ? -1 : x > y;
}

/* The pointer that is there when the object is loaded, less its base. */
static uint64_t pointer_at(file *f, uint64_t place)
{
    const Elf64_Rela key = { .r_offset = place };
    const Elf64_Rela *found =
        f->n_relocations ? bsearch(&key, f->relocations, f->n_relocations, sizeof key, by_place) : NULL;
    uint64_t value = 0;
    const void *at = found ? NULL : bytes_at(f, place, sizeof value);
    if (at)
        memcpy(&value, at, sizeof value);
    return found ? (uint64_t)found->r_addend : value;
}

/* ---- the file ---- */

static bool read_dynamic(file *f, const Elf64_Phdr *segment, uint32_t relative)
{
    uint64_t relocations = 0, bytes = 0, names = 0, n = 0;
    const char *table = range(f, segment->p_offset, segment->p_filesz);
    for (uint64_t i = 0; table && i < segment->p_filesz / sizeof(Elf64_Dyn); i++) {
        Elf64_Dyn d;
        memcpy(&d, table + i * sizeof d, sizeof d);
        switch (d.d_tag) {
        case DT_RELA: relocations = d.d_un.d_ptr; break;
        case DT_RELASZ: bytes = d.d_un.d_val; break;
        case DT_STRTAB: names = d.d_un.d_ptr; break;
        case DT_STRSZ: f->names_size = d.d_un.d_val; break;
        }
    }
    f->names = bytes_at(f, names, f->names_size);
    const char *from = bytes_at(f, relocations, bytes);
    if (!f->names || (bytes && !from))
        return false;
    Elf64_Rela *to = QN_NEW_ARRAY(f->arena, Elf64_Rela, bytes / sizeof *to);
    for (uint64_t i = 0; i < bytes / sizeof *to; i++) {
        memcpy(&to[n], from + i * sizeof *to, sizeof *to);
        n += ELF64_R_TYPE(to[n].r_info) == relative;
    }
    if (n)
        qsort(to, n, sizeof *to, by_place);
    f->relocations = to;
    f->n_relocations = n;
    return true;
}

static bool read_elf(file *f)
{
    Elf64_Ehdr header;
    if (f->size < sizeof header)
        return false;
    memcpy(&header, f->data, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_DYN ||
        (header.e_machine != EM_X86_64 && header.e_machine != EM_AARCH64) ||
        header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > MAX_SEGMENTS)
        return false;
    const uint64_t bytes = header.e_phnum * sizeof(Elf64_Phdr);
    const void *segments = range(f, header.e_phoff, bytes);
    if (!segments)
        return false;
    f->segments = qn_arena_copy(f->arena, segments, bytes);
    f->n_segments = header.e_phnum;
    for (int i = 0; i < f->n_segments; i++)
        if (f->segments[i].p_type == PT_DYNAMIC)
            return read_dynamic(f, &f->segments[i],
                                header.e_machine == EM_X86_64 ? R_X86_64_RELATIVE : R_AARCH64_RELATIVE);
    return false;
}

/* ---- tables ---- */

/* Is there an exported NAME_query? */
static bool is_queried(file *f, const char *name)
{
    const char *symbol = qn_arena_printf(f->arena, "%s_query", name);
    return spend(f, f->names_size) && memmem(f->names, f->names_size, symbol, strlen(symbol) + 1) != NULL;
}

/* Copies a structure that states its size first: fields that it hasn't are 0. */
static bool copy_struct(file *f, uint64_t address, uint64_t least, void *out, size_t bytes)
{
    uint64_t size;
    const void *at = bytes_at(f, address, sizeof size);
    if (!at)
        return false;
    memcpy(&size, at, sizeof size);
    if (size < least || size > 4096 || !(at = bytes_at(f, address, size)))
        return false;
    memset(out, 0, bytes);
    memcpy(out, at, size < bytes ? size : bytes);
    memcpy(out, &bytes, sizeof bytes); /* as long as ours now */
    return true;
}

/* The size that elements of a table state, `least` or more, which they follow each other by; 0: there is no such table. */
static uint64_t stride_at(file *f, uint64_t address, int64_t n, uint64_t least)
{
    uint64_t size;
    const void *at = n > 0 ? bytes_at(f, address, sizeof size) : NULL;
    if (!at)
        return 0;
    memcpy(&size, at, sizeof size);
    return size >= least && size <= 4096 && bytes_at(f, address, size * (uint64_t)n) ? size : 0;
}

#define AT(type, field) (at + offsetof(type, field))
#define THROUGH(type, field) (offsetof(type, field) + sizeof((type *)0)->field)
#define LEAST_SYMBOL THROUGH(quern_symbol_info, decided)
#define LEAST_BUFFER THROUGH(quern_buffer_info, trainable)
#define LEAST_ENTRY THROUGH(quern_entry_info, symbols)

static bool read_symbol(file *f, uint64_t at, quern_symbol_info *s)
{
    return copy_struct(f, at, LEAST_SYMBOL, s, sizeof *s) &&
           (s->name = text_at(f, pointer_at(f, AT(quern_symbol_info, name)))) && s->min <= s->max;
}

static bool read_buffer(file *f, uint64_t at, quern_buffer_info *b)
{
    if (!copy_struct(f, at, LEAST_BUFFER, b, sizeof *b))
        return false;
    const size_t rank = b->rank >= 0 && b->rank <= QN_MAX_RANK ? (size_t)b->rank : 0;
    const void *dims = bytes_at(f, pointer_at(f, AT(quern_buffer_info, dims)), rank * sizeof *b->dims),
               *symbols =
                   bytes_at(f, pointer_at(f, AT(quern_buffer_info, symbols)), rank * sizeof *b->symbols);
    b->name = text_at(f, pointer_at(f, AT(quern_buffer_info, name)));
    b->text = text_at(f, pointer_at(f, AT(quern_buffer_info, text)));
    if (!b->name || !b->text || (size_t)b->rank != rank || (rank && (!dims || !symbols)) ||
        b->role < QUERN_INPUT || b->role > QUERN_STATE || b->dtype <= QUERN_INVALID_DTYPE ||
        b->dtype > QUERN_F8E8M0)
        return false;
    b->dims = rank ? qn_arena_copy(f->arena, dims, rank * sizeof *b->dims) : NULL;
    b->symbols = rank ? qn_arena_copy(f->arena, symbols, rank * sizeof *b->symbols) : NULL;
    return true;
}

static bool read_entry(file *f, uint64_t at, quern_entry_info *e)
{
    if (!copy_struct(f, at, LEAST_ENTRY, e, sizeof *e) ||
        !(e->name = text_at(f, pointer_at(f, AT(quern_entry_info, name)))))
        return false;
    const uint64_t from_buffers = pointer_at(f, AT(quern_entry_info, buffers)),
                   from_symbols = pointer_at(f, AT(quern_entry_info, symbols)),
                   buffer_bytes = stride_at(f, from_buffers, e->n_buffers, LEAST_BUFFER),
                   symbol_bytes = stride_at(f, from_symbols, e->n_symbols, LEAST_SYMBOL);
    if ((e->n_buffers && !buffer_bytes) || (e->n_symbols && !symbol_bytes))
        return false;
    quern_buffer_info *buffers = QN_NEW_ARRAY(f->arena, quern_buffer_info, e->n_buffers);
    quern_symbol_info *symbols = QN_NEW_ARRAY(f->arena, quern_symbol_info, e->n_symbols);
    for (int i = 0; i < e->n_buffers; i++)
        if (!read_buffer(f, from_buffers + (uint64_t)i * buffer_bytes, &buffers[i]))
            return false;
    for (int i = 0; i < e->n_symbols; i++)
        if (!read_symbol(f, from_symbols + (uint64_t)i * symbol_bytes, &symbols[i]))
            return false;
    e->run = NULL;
    e->workspace_bytes = NULL;
    e->shape = NULL;
    e->limits = NULL;
    e->buffers = buffers;
    e->symbols = symbols;
    e->n_nodes = 0;
    e->node_names = NULL;
    return true;
}

static const quern_model_info *read_model(file *f, uint64_t at)
{
    quern_model_info model;
    if (!copy_struct(f, at, THROUGH(quern_model_info, weights_hash), &model, sizeof model) ||
        model.abi_version != QUERN_ABI_VERSION ||
        !(model.name = text_at(f, pointer_at(f, AT(quern_model_info, name)))) || !is_queried(f, model.name))
        return NULL;
    const uint64_t from = pointer_at(f, AT(quern_model_info, entries)),
                   entry_bytes = stride_at(f, from, model.n_entries, LEAST_ENTRY);
    const bool refuses = model.lacks || pointer_at(f, AT(quern_model_info, lacks));
    model.target = text_at(f, pointer_at(f, AT(quern_model_info, target)));
    model.weights_hash = text_at(f, pointer_at(f, AT(quern_model_info, weights_hash)));
    if (!entry_bytes || refuses || !model.target || !model.weights_hash)
        return NULL;
    quern_entry_info *entries = QN_NEW_ARRAY(f->arena, quern_entry_info, model.n_entries);
    for (int i = 0; i < model.n_entries; i++)
        if (!read_entry(f, from + (uint64_t)i * entry_bytes, &entries[i]))
            return NULL;
    model.entries = entries;
    model.weights = NULL;
    return qn_arena_copy(f->arena, &model, sizeof model);
}

/* Has a table the target of another? Those that only refuse, for a machine that has too little for the first CPU, name it
 * without what follows a CPU's name, a space and features; "native" is the first CPU itself. */
static bool same_target(const char *earlier, const char *target)
{
    const char *triple = strchr(target, ' '), *cpu = triple ? strchr(triple + 1, ' ') : NULL;
    const size_t n = triple && strcmp(triple, " native") == 0 ? (size_t)(triple - target) : strlen(target);
    return cpu ? strcmp(earlier, target) == 0
               : strncmp(earlier, target, n) == 0 && (!earlier[n] || earlier[n] == ' ');
}

qn_status qn_object_read(const char *path, qn_arena *arena, qn_object_file *out, qn_diags *diags)
{
    file f = { .arena = arena };
    qn_vec(const quern_model_info *) found = { 0 };
    QN_TRY(map_file(path, &f, diags));
    if (!read_elf(&f))
        return qn_error(diags, QUERN_ERROR_MODEL, NULL, "%s is no shared object for x86-64 or AArch64", path);
    for (int i = 0; i < f.n_segments; i++) {
        const Elf64_Phdr *s = &f.segments[i];
        if (s->p_type != PT_LOAD || !(s->p_flags & PF_W) || s->p_filesz > f.size)
            continue;
        for (uint64_t k = -s->p_vaddr % 8; k + sizeof(uint64_t) <= s->p_filesz && f.left; k += 8) {
            const quern_model_info *model = read_model(&f, s->p_vaddr + k);
            bool known = !model;
            for (size_t k = 0; k < found.n && !known; k++)
                known = same_target(found.items[k]->target, model->target);
            if (!known)
                qn_vec_push(arena, &found, model);
        }
    }
    if (!found.n)
        return qn_error(diags, QUERN_ERROR_MODEL, NULL, "%s has no tables of a model of Quern", path);
    *out = (qn_object_file){ found.items, (int)found.n };
    return QUERN_OK;
}
