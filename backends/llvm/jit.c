/* Images: objects put into memory of this process and linked there.
 *
 * LLVM has a linker for that too; but then a process whose kernels all come from the cache would need LLVM for nothing else,
 * and it takes pages and a symbol space for each object. Here all objects of an image share one mapping: code, then what is
 * only read, then what is written; each part begins a page. So everything is within reach of 32-bit distances. */
#include "backends/llvm/jit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/llvm/elf.h"
#include "backends/llvm/gdb.h"

enum part { CODE, CONSTANTS, VARIABLES, N_PARTS, NOWHERE = -1 };

typedef struct symbol {
    const char *name;
    void *address;
    int order; /* of appearance */
} symbol;

typedef struct image {
    qn_arena *arena;
    char *memory;
    size_t bytes;
    int n_symbols;
    symbol *symbols; /* the global ones, by name */
    int n_objects;
    qn_gdb_entry *told; /* to gdb, one for each object; or NULL */
} image;

typedef struct object {
    const char *name;
    qn_elf elf;
    struct placed {
        enum part part;
        uint64_t offset; /* in the part */
        uint64_t size;
    } *sections;
    int *slots; /* by symbol: 1 + number of its slot; 0: none */
} object;

typedef struct linker {
    image *im;
    qn_arena *arena; /* until it is linked */
    int n;
    object *objects;
    int n_slots;
    uint64_t sizes[N_PARTS], page;
    char *parts[N_PARTS];
    uint64_t *slots;
    qn_diags *diags;
} linker;

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value && strcmp(value, "0") != 0;
}

static uint64_t round_up(uint64_t n, uint64_t multiple) /* a power of two */
{
    return (n + multiple - 1) & ~(multiple - 1);
}

static qn_status report(const linker *l, const object *o, const char *what, const char *of)
{
    return qn_error(l->diags, QUERN_ERROR_INTERNAL, NULL, "loading code: %s: %s%s%s", o->name, what,
                    of ? " " : "", of ? of : "");
}

static qn_status malformed(const linker *l, const object *o)
{
    return report(l, o, "not a complete object for this machine", NULL);
}

static uint16_t host_machine(void)
{
#ifdef __aarch64__
    return EM_AARCH64;
#else
    return EM_X86_64;
#endif
}

/* ---- where everything goes ---- */

static qn_status place_section(linker *l, object *o, uint64_t index, const Elf64_Shdr *header)
{
    struct placed *to = &o->sections[index];
    if (!(header->sh_flags & SHF_ALLOC))
        return QUERN_OK;
    const uint64_t alignment = header->sh_addralign ? header->sh_addralign : 1;
    if (alignment & (alignment - 1) || alignment > l->page || header->sh_size > UINT32_MAX ||
        header->sh_flags & SHF_TLS)
        return malformed(l, o);
    to->part = header->sh_flags & SHF_EXECINSTR ? CODE : header->sh_flags & SHF_WRITE ? VARIABLES : CONSTANTS;
    to->offset = round_up(l->sizes[to->part], alignment);
    to->size = header->sh_size;
    l->sizes[to->part] = to->offset + to->size;
    return QUERN_OK;
}

typedef struct relocations {
    const char *items; /* Elf64_Rela */
    uint64_t n;
} relocations;

static Elf64_Rela relocation(relocations r, uint64_t i)
{
    Elf64_Rela item;
    memcpy(&item, r.items + i * sizeof item, sizeof item);
    return item;
}

/* Those of a section that is placed; none where it is something else. */
static bool relocations_of(const object *o, const Elf64_Shdr *header, relocations *out)
{
    *out = (relocations){ 0 };
    if (header->sh_type == SHT_REL)
        return false;
    if (header->sh_type != SHT_RELA)
        return true;
    if (header->sh_info >= o->elf.header.e_shnum || header->sh_entsize != sizeof(Elf64_Rela))
        return false;
    if (o->sections[header->sh_info].part == NOWHERE)
        return true;
    *out = (relocations){ qn_elf_contents(&o->elf, header), header->sh_size / sizeof(Elf64_Rela) };
    for (uint64_t i = 0; out->items && i < out->n; i++)
        if (ELF64_R_SYM(relocation(*out, i).r_info) >= o->elf.n_symbols)
            return false;
    return out->items != NULL;
}

static qn_status place_object(linker *l, object *o, const qn_code *code)
{
    Elf64_Shdr header;
    relocations r;
    if (!qn_elf_open(code, &o->elf) || o->elf.header.e_type != ET_REL ||
        o->elf.header.e_machine != host_machine())
        return malformed(l, o);
    const int n = o->elf.header.e_shnum;
    o->sections = QN_NEW_ARRAY(l->arena, struct placed, n);
    o->slots = QN_NEW_ARRAY(l->arena, int, o->elf.n_symbols);
    for (int i = 0; i < n; i++) {
        o->sections[i].part = NOWHERE;
        if (!qn_elf_section(&o->elf, (uint64_t)i, &header))
            return malformed(l, o);
        QN_TRY(place_section(l, o, (uint64_t)i, &header));
    }
    for (int i = 0; i < n; i++) {
        qn_elf_section(&o->elf, (uint64_t)i, &header);
        if (!relocations_of(o, &header, &r))
            return malformed(l, o);
        for (uint64_t j = 0; j < r.n; j++) {
            const uint64_t info = relocation(r, j).r_info;
            int *slot = &o->slots[ELF64_R_SYM(info)];
            if (!*slot && qn_elf_needs_slot(host_machine(), (uint32_t)ELF64_R_TYPE(info)))
                *slot = ++l->n_slots;
        }
    }
    return QUERN_OK;
}

/* One mapping, writable until all is written. Slots lie behind the constants. */
static qn_status allocate(linker *l)
{
    const uint64_t slots = round_up(l->sizes[CONSTANTS], sizeof *l->slots);
    l->sizes[CONSTANTS] = slots + (uint64_t)l->n_slots * sizeof *l->slots;
    uint64_t at[N_PARTS], total = 0;
    for (int p = 0; p < N_PARTS; p++) {
        at[p] = total;
        total += round_up(l->sizes[p], l->page);
    }
    total += total == 0 ? l->page : 0;
    void *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return qn_error(l->diags, QUERN_ERROR_MEMORY, NULL, "no memory for %llu bytes of code",
                        (unsigned long long)total);
    l->im->memory = memory;
    l->im->bytes = total;
    for (int p = 0; p < N_PARTS; p++)
        l->parts[p] = l->im->memory + at[p];
    l->slots = (uint64_t *)(void *)(l->parts[CONSTANTS] + slots);
    return QUERN_OK;
}

static char *address_of(const linker *l, const object *o, uint64_t section)
{
    const struct placed *at = &o->sections[section];
    return l->parts[at->part] + at->offset;
}

static qn_status copy_sections(linker *l, const object *o)
{
    Elf64_Shdr header;
    for (int i = 0; i < o->elf.header.e_shnum; i++) {
        if (o->sections[i].part == NOWHERE)
            continue;
        qn_elf_section(&o->elf, (uint64_t)i, &header);
        if (header.sh_type == SHT_NOBITS || header.sh_size == 0)
            continue;
        const void *contents = qn_elf_contents(&o->elf, &header);
        if (!contents)
            return malformed(l, o);
        memcpy(address_of(l, o, (uint64_t)i), contents, header.sh_size);
    }
    return QUERN_OK;
}

/* ---- symbols ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const symbol *)a)->name, ((const symbol *)b)->name);
}

static int by_name_and_order(const void *a, const void *b)
{
    const int order = by_name(a, b);
    return order ? order : ((const symbol *)a)->order - ((const symbol *)b)->order;
}

static const symbol *find(const image *im, const char *name)
{
    const symbol key = { .name = name };
    return im->n_symbols ? bsearch(&key, im->symbols, (size_t)im->n_symbols, sizeof key, by_name) : NULL;
}

/* Where a symbol that the object defines is; NULL: nowhere in memory. */
static char *defined_at(const linker *l, const object *o, const Elf64_Sym *s)
{
    if (s->st_shndx == SHN_UNDEF || s->st_shndx >= o->elf.header.e_shnum ||
        o->sections[s->st_shndx].part == NOWHERE || s->st_value > o->sections[s->st_shndx].size)
        return NULL;
    return address_of(l, o, s->st_shndx) + s->st_value;
}

static bool is_global(const Elf64_Sym *s)
{
    return ELF64_ST_BIND(s->st_info) != STB_LOCAL;
}

static void collect_symbols(linker *l)
{
    image *im = l->im;
    uint64_t most = 0;
    for (int i = 0; i < l->n; i++)
        most += l->objects[i].elf.n_symbols;
    symbol *all = QN_NEW_ARRAY(l->arena, symbol, most);
    int n = 0;
    for (int i = 0; i < l->n; i++)
        for (uint64_t j = 1; j < l->objects[i].elf.n_symbols; j++) {
            const object *o = &l->objects[i];
            const Elf64_Sym s = qn_elf_symbol_at(&o->elf, j);
            const char *name = qn_elf_name(&o->elf, &s);
            void *address = is_global(&s) && name ? defined_at(l, o, &s) : NULL;
            if (address)
                all[n] = (symbol){ name, address, n }, n++;
        }
    if (n)
        qsort(all, (size_t)n, sizeof *all, by_name_and_order);
    im->symbols = QN_NEW_ARRAY(im->arena, symbol, n);
    for (int i = 0; i < n; i++) /* equal code in two objects is one symbol */
        if (i == 0 || strcmp(all[i - 1].name, all[i].name) != 0) {
            im->symbols[im->n_symbols] = all[i];
            im->symbols[im->n_symbols++].name = qn_arena_strdup(im->arena, all[i].name);
        }
}

/* ---- relocation ---- */

static qn_status resolve(const linker *l, const object *o, uint64_t index, uint64_t *out)
{
    const Elf64_Sym s = qn_elf_symbol_at(&o->elf, index);
    const char *name = qn_elf_name(&o->elf, &s);
    const void *at = NULL;
    if (!is_global(&s)) {
        at = defined_at(l, o, &s);
    } else if (name) {
        const symbol *found = find(l->im, name);
        at = found ? found->address : NULL;
    }
    *out = (uint64_t)(uintptr_t)at;
    return at ? QUERN_OK : report(l, o, "nothing defines", name ? name : "a symbol without a name");
}

static qn_status relocate_section(linker *l, const object *o, const Elf64_Shdr *of)
{
    relocations r;
    relocations_of(o, of, &r);
    if (r.n == 0)
        return QUERN_OK;
    const uint64_t size = o->sections[of->sh_info].size;
    char *section = address_of(l, o, of->sh_info);
    for (uint64_t i = 0; i < r.n; i++) {
        const Elf64_Rela item = relocation(r, i);
        const uint64_t index = ELF64_R_SYM(item.r_info);
        const int slot = o->slots[index];
        qn_elf_fixup f = { .machine = host_machine(),
                           .type = (uint32_t)ELF64_R_TYPE(item.r_info),
                           .place = (uint64_t)(uintptr_t)section + item.r_offset,
                           .addend = item.r_addend };
        const size_t bytes = qn_elf_relocated_bytes(f.machine, f.type);
        if (item.r_offset > size || bytes > size - item.r_offset)
            return malformed(l, o);
        if (bytes == 0)
            continue;
        QN_TRY(resolve(l, o, index, &f.symbol));
        if (slot) {
            l->slots[slot - 1] = f.symbol;
            f.slot = (uint64_t)(uintptr_t)&l->slots[slot - 1];
        }
        const qn_elf_outcome outcome = qn_elf_relocate(&f, (unsigned char *)section + item.r_offset);
        if (outcome == QN_ELF_TOO_FAR)
            return report(l, o, "a symbol is out of reach", NULL);
        if (outcome == QN_ELF_UNKNOWN)
            return report(l, o, "unknown relocation", qn_arena_printf(l->arena, "%u", f.type));
    }
    return QUERN_OK;
}

static qn_status relocate(linker *l, const object *o)
{
    Elf64_Shdr header;
    for (int i = 0; i < o->elf.header.e_shnum; i++) {
        qn_elf_section(&o->elf, (uint64_t)i, &header);
        QN_TRY(relocate_section(l, o, &header));
    }
    return QUERN_OK;
}

static qn_status protect(const linker *l)
{
    const size_t code = (size_t)(l->parts[CONSTANTS] - l->parts[CODE]),
                 constants = (size_t)(l->parts[VARIABLES] - l->parts[CONSTANTS]);
    __builtin___clear_cache(l->parts[CODE], l->parts[CONSTANTS]);
    if ((code && mprotect(l->parts[CODE], code, PROT_READ | PROT_EXEC)) ||
        (constants && mprotect(l->parts[CONSTANTS], constants, PROT_READ)))
        return qn_error(l->diags, QUERN_ERROR_INTERNAL, NULL,
                        "loading code: the system refuses to make it executable");
    return QUERN_OK;
}

/* ---- for people ---- */

/* A kernel's symbol is a hash of its contents: people are shown what the kernel is called, which is the object's name. */
static bool is_hash(const char *name)
{
    return strncmp(name, "qn_k_", 5) == 0;
}

static void write_perf_map(const linker *l)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    FILE *file = fopen(path, "a");
    if (!file)
        return;
    for (int i = 0; i < l->n; i++)
        for (uint64_t j = 1; j < l->objects[i].elf.n_symbols; j++) {
            const object *o = &l->objects[i];
            const Elf64_Sym s = qn_elf_symbol_at(&o->elf, j);
            const char *name = qn_elf_name(&o->elf, &s), *at = defined_at(l, o, &s);
            if (name && at && ELF64_ST_TYPE(s.st_info) == STT_FUNC)
                fprintf(file, "%llx %llx %s\n", (unsigned long long)(uintptr_t)at,
                        (unsigned long long)s.st_size, is_hash(name) ? o->name : name);
        }
    fclose(file);
}

/* Kernels' symbols get their names, or as much of them as fits. */
static void name_kernels(const object *o, char *copy)
{
    for (uint64_t j = 1; j < o->elf.n_symbols; j++) {
        const Elf64_Sym s = qn_elf_symbol_at(&o->elf, j);
        const char *name = qn_elf_name(&o->elf, &s);
        if (name && is_hash(name))
            strncpy(copy + (name - (const char *)o->elf.object->data), o->name, strlen(name));
    }
}

/* The debugger reads copies of the objects whose sections say where they are. */
static void tell_gdb(const linker *l)
{
    image *im = l->im;
    im->told = QN_NEW_ARRAY(im->arena, qn_gdb_entry, l->n);
    im->n_objects = l->n;
    for (int i = 0; i < l->n; i++) {
        const object *o = &l->objects[i];
        char *copy = qn_arena_copy(im->arena, o->elf.object->data, o->elf.object->size);
        for (int s = 0; s < o->elf.header.e_shnum; s++) {
            Elf64_Shdr header;
            char *at = copy + o->elf.header.e_shoff + (size_t)s * sizeof header;
            memcpy(&header, at, sizeof header);
            if (o->sections[s].part != NOWHERE)
                header.sh_addr = (uint64_t)(uintptr_t)address_of(l, o, (uint64_t)s);
            memcpy(at, &header, sizeof header);
        }
        name_kernels(o, copy);
        im->told[i] = (qn_gdb_entry){ .object = copy, .size = o->elf.object->size };
        qn_gdb_add(&im->told[i]);
    }
}

/* ---- the backend's slots ---- */

static qn_status link_image(linker *l, const qn_code *codes, const char *const *names)
{
    l->objects = QN_NEW_ARRAY(l->arena, object, l->n);
    for (int i = 0; i < l->n; i++) {
        l->objects[i].name = names[i];
        QN_TRY(place_object(l, &l->objects[i], &codes[i]));
    }
    QN_TRY(allocate(l));
    for (int i = 0; i < l->n; i++)
        QN_TRY(copy_sections(l, &l->objects[i]));
    collect_symbols(l);
    for (int i = 0; i < l->n; i++)
        QN_TRY(relocate(l, &l->objects[i]));
    QN_TRY(protect(l));
    if (is_set("QUERN_JIT_PERF"))
        write_perf_map(l);
    if (is_set("QUERN_JIT_GDB"))
        tell_gdb(l);
    return QUERN_OK;
}

qn_status qn_llvm_jit_load(int n_objects, const qn_code *objects, const char *const *names, void **out_image,
                           qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    image *im = QN_NEW(arena, image);
    im->arena = arena;
    linker l = { .im = im,
                 .arena = qn_arena_new(),
                 .n = n_objects,
                 .page = (uint64_t)sysconf(_SC_PAGESIZE),
                 .diags = diags };
    qn_status status = link_image(&l, objects, names);
    qn_arena_free(l.arena);
    if (status) {
        qn_llvm_jit_unload(im);
        im = NULL;
    }
    *out_image = im;
    return status;
}

void *qn_llvm_jit_symbol(void *image_, const char *name)
{
    const symbol *s = find(image_, name);
    return s ? s->address : NULL;
}

void qn_llvm_jit_unload(void *image_)
{
    image *im = image_;
    if (!im)
        return;
    for (int i = 0; i < im->n_objects; i++)
        qn_gdb_remove(&im->told[i]);
    if (im->memory)
        munmap(im->memory, im->bytes);
    qn_arena_free(im->arena);
}
