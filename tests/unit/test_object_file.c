/* Tables read from the files of shared objects: of a small one that is made here, and of what accident and malice make of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver/inspect.h"
#include "driver/object_file.h"

enum { BASE = 0x1000, N_BUFFERS = 2 };

/* Bytes of a file, which are in memory from BASE on. */
typedef struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    Elf64_Dyn dynamic[5];
    Elf64_Rela relocations[2];
    quern_model_info model;
    quern_entry_info entry;
    quern_buffer_info buffers[N_BUFFERS];
    quern_symbol_info symbol;
    int64_t dims[2];
    int32_t symbols[2];
    char names[16], name[8], target[32], batch[8], text[16];
} image;

#define AT(field) ((void *)(uintptr_t)(BASE + offsetof(image, field)))

static void make_image(image *i)
{
    memset(i, 0, sizeof *i);
    i->header = (Elf64_Ehdr){ .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB },
                              .e_type = ET_DYN,
                              .e_machine = EM_AARCH64,
                              .e_phoff = offsetof(image, segments),
                              .e_phentsize = sizeof(Elf64_Phdr),
                              .e_phnum = 2 };
    i->segments[0] = (Elf64_Phdr){ .p_type = PT_LOAD,
                                   .p_flags = PF_R | PF_W,
                                   .p_vaddr = BASE,
                                   .p_filesz = sizeof *i,
                                   .p_memsz = sizeof *i };
    i->segments[1] = (Elf64_Phdr){ .p_type = PT_DYNAMIC,
                                   .p_offset = offsetof(image, dynamic),
                                   .p_filesz = sizeof i->dynamic };
    i->dynamic[0] = (Elf64_Dyn){ DT_STRTAB, { (uintptr_t)AT(names) } };
    i->dynamic[1] = (Elf64_Dyn){ DT_STRSZ, { sizeof i->names } };
    i->dynamic[2] = (Elf64_Dyn){ DT_RELA, { (uintptr_t)AT(relocations) } };
    i->dynamic[3] = (Elf64_Dyn){ DT_RELASZ, { sizeof i->relocations } };
    i->relocations[0] = (Elf64_Rela){ (uintptr_t)AT(model.name), R_AARCH64_RELATIVE, (intptr_t)AT(name) };
    i->relocations[1] = (Elf64_Rela){ (uintptr_t)AT(model.entries), R_AARCH64_RELATIVE, (intptr_t)AT(entry) };
    i->model = (quern_model_info){ .size = sizeof i->model,
                                   .abi_version = QUERN_ABI_VERSION,
                                   .target = AT(target),
                                   .n_entries = 1,
                                   .weights_bytes = 12,
                                   .weights_hash = AT(names) };
    i->entry = (quern_entry_info){ .size = sizeof i->entry,
                                   .name = AT(name),
                                   .n_buffers = N_BUFFERS,
                                   .n_symbols = 1,
                                   .buffers = AT(buffers),
                                   .symbols = AT(symbol) };
    for (int k = 0; k < N_BUFFERS; k++)
        i->buffers[k] = (quern_buffer_info){ .size = sizeof i->buffers[k],
                                             .name = k ? AT(name) : AT(batch),
                                             .role = k ? QUERN_OUTPUT : QUERN_INPUT,
                                             .dtype = QUERN_F32,
                                             .rank = 2,
                                             .dims = AT(dims),
                                             .symbols = AT(symbols),
                                             .text = AT(text) };
    i->symbol = (quern_symbol_info){ .size = sizeof i->symbol, .name = AT(batch), .min = 1, .max = 64 };
    i->dims[0] = -1;
    i->dims[1] = 3;
    i->symbols[1] = -1;
    memcpy(i->names, "\0m_query", 9);
    strcpy(i->name, "m");
    strcpy(i->target, "aarch64-linux-gnu generic");
    strcpy(i->batch, "batch");
    strcpy(i->text, "f32[batch, 3]");
}

/* What qn_object_read says of these bytes; text and JSON of what it has read go to `to`. */
static qn_status read_bytes(const void *bytes, size_t n, qn_arena *arena, qn_object_view *view, FILE *to)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const int fd = memfd_create("object", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), n);
    *view = (qn_object_view){ .path = qn_arena_printf(arena, "/proc/self/fd/%d", fd),
                              .refused = "not here",
                              .arena = arena };
    const qn_status status = qn_object_read(view->path, arena, &view->file, &diags);
    close(fd);
    assert_int_equal(diags.n_errors, status ? 1 : 0);
    if (!status) {
        view->info = view->file.models[0];
        qn_object_text(view, to);
        qn_object_json(view, to);
    }
    return status;
}

static void reads_tables(void **state)
{
    (void)state;
    image i;
    qn_object_view view;
    char *text = NULL;
    size_t size;
    qn_arena *arena = qn_arena_new();
    FILE *to = open_memstream(&text, &size);
    make_image(&i);
    assert_int_equal(read_bytes(&i, sizeof i, arena, &view, to), QUERN_OK);
    fclose(to);
    assert_int_equal(view.file.n, 1);
    assert_string_equal(view.info->name, "m");
    assert_int_equal(view.info->entries[0].buffers[1].dims[1], 3);
    assert_non_null(strstr(text, "output m f32[batch, 3]"));
    assert_non_null(strstr(text, "\"dims\": [\"batch\", 3]"));
    free(text);
    qn_arena_free(arena);
}

static void refuses_no_bytes(void **state)
{
    (void)state;
    qn_object_view view;
    qn_arena *arena = qn_arena_new();
    assert_int_equal(read_bytes("", 0, arena, &view, stdout), QUERN_ERROR_IO);
    assert_int_equal(read_bytes("\177ELF", 4, arena, &view, stdout), QUERN_ERROR_MODEL);
    qn_arena_free(arena);
}

/* The last address that there is lies in the segment. */
static void reads_to_the_end_of_addresses(void **state)
{
    (void)state;
    image i;
    qn_object_view view;
    qn_arena *arena = qn_arena_new();
    make_image(&i);
    for (uint64_t last = 0; last < 9; last++) {
        i.segments[0].p_vaddr = UINT64_MAX - sizeof i + last;
        i.dynamic[0].d_un.d_ptr = i.segments[0].p_vaddr + offsetof(image, names);
        i.dynamic[3].d_un.d_val = 0;
        assert_int_equal(read_bytes(&i, sizeof i, arena, &view, stdout), QUERN_ERROR_MODEL);
    }
    qn_arena_free(arena);
}

/* All entries have the same large table of buffers, which would be copied for each. */
static void many_entries_of_a_table(void **state)
{
    (void)state;
    enum { TIMES = 1 << 11 };
    typedef struct large {
        image i;
        quern_entry_info entries[TIMES];
        quern_buffer_info buffers[TIMES];
    } large;
    large *l = calloc(1, sizeof *l);
    qn_object_view view;
    qn_arena *arena = qn_arena_new();
    make_image(&l->i);
    l->i.segments[0].p_filesz = sizeof *l;
    l->i.relocations[1].r_addend = BASE + offsetof(large, entries);
    l->i.model.n_entries = TIMES;
    for (int k = 0; k < TIMES; k++) {
        l->entries[k] = l->i.entry;
        l->entries[k].n_buffers = TIMES;
        l->entries[k].buffers = (void *)(uintptr_t)(BASE + offsetof(large, buffers));
        l->buffers[k] = l->i.buffers[0];
    }
    assert_int_equal(read_bytes(l, sizeof *l, arena, &view, stdout), QUERN_ERROR_MODEL);
    free(l);
    qn_arena_free(arena);
}

static uint64_t next(uint64_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

/* Some fields say something else, and the end may be missing. Nothing outside the file is looked at. */
static void spoilt_files(void **state)
{
    (void)state;
    enum { FILES = 20000 };
    static const uint64_t odd[] = { 0, 1, 2, 8, 0x7f, 0xff, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX };
    uint64_t random = 88172645463325252;
    int n_read = 0;
    FILE *to = fopen("/dev/null", "w");
    for (int round = 0; round < FILES; round++) {
        image i;
        qn_object_view view;
        qn_arena *arena = qn_arena_new();
        make_image(&i);
        for (uint64_t k = 1 + next(&random) % 3; k > 0; k--) {
            const size_t width = (size_t)1 << next(&random) % 4;
            const uint64_t at = next(&random) % (sizeof i / width) * width;
            const uint64_t choice = next(&random) % 3;
            const uint64_t value = choice == 0   ? odd[next(&random) % (sizeof odd / sizeof *odd)]
                                   : choice == 1 ? BASE + next(&random) % sizeof i
                                                 : next(&random);
            memcpy((char *)&i + at, &value, width);
        }
        const size_t n = next(&random) % 8 ? sizeof i : next(&random) % sizeof i;
        n_read += read_bytes(&i, n, arena, &view, to) == QUERN_OK;
        qn_arena_free(arena);
    }
    fclose(to);
    assert_in_range(n_read, FILES / 10, FILES - FILES / 10); /* of both kinds */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tables),
        cmocka_unit_test(refuses_no_bytes),
        cmocka_unit_test(reads_to_the_end_of_addresses),
        cmocka_unit_test(many_entries_of_a_table),
        cmocka_unit_test(spoilt_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
