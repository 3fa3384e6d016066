/* Objects put into memory: written here byte by byte, linked, called; what is missing or damaged is said. And the relocations of
 * AArch64, which this machine may not run. */
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "backends/llvm/elf.h"

/* ---- objects ---- */

#ifdef __aarch64__
enum { MACHINE = EM_AARCH64, POINTER = R_AARCH64_ABS64 };
#define WORD(w) (w) & 0xff, (w) >> 8 & 0xff, (w) >> 16 & 0xff, (w) >> 24 & 0xff
/* adrp x0, slot; ldr x0, [x0, slot]; ldr w0, [x0]; ret */
static const unsigned char reads_it[] = { WORD(0x90000000u), WORD(0xf9400000u), WORD(0xb9400000u),
                                          WORD(0xd65f03c0u) };
/* mov w0, N; ret */
#define GIVES(n) { WORD(0x52800000u | (n) << 5), WORD(0xd65f03c0u) }
static const Elf64_Rela reads_relocations[] = {
    { 0, ELF64_R_INFO(2, R_AARCH64_ADR_GOT_PAGE), 0 },
    { 4, ELF64_R_INFO(2, R_AARCH64_LD64_GOT_LO12_NC), 0 },
};
#else
enum { MACHINE = EM_X86_64, POINTER = R_X86_64_64 };
/* mov slot(%rip), %rax; mov (%rax), %eax; ret */
static const unsigned char reads_it[] = { 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x8b, 0x00, 0xc3 };
/* mov $N, %eax; ret */
#define GIVES(n) { 0xb8, (n), 0, 0, 0, 0xc3 }
static const Elf64_Rela reads_relocations[] = { { 3, ELF64_R_INFO(2, 42 /* REX_GOTPCRELX */), -4 } };
#endif

enum { NAME_F = 1, NAME_IT = 3, NAME_P = 6 };
static const char names[] = "\0f\0it\0p";

typedef struct piece {
    const void *data;
    size_t size;
} piece;

enum { NONE, TEXT, DATA, TEXT_RELOCATIONS, DATA_RELOCATIONS, SYMBOLS, NAMES, N_SECTIONS };

/* An object of these sections; symbols 1, 2, … are given. */
static qn_code object_of(qn_arena *arena, const piece *pieces)
{
    Elf64_Ehdr header = { .e_type = ET_REL,
                          .e_machine = MACHINE,
                          .e_version = EV_CURRENT,
                          .e_ehsize = sizeof header,
                          .e_shentsize = sizeof(Elf64_Shdr),
                          .e_shnum = N_SECTIONS };
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    Elf64_Shdr sections[N_SECTIONS] = {
        [TEXT] = { .sh_type = SHT_PROGBITS, .sh_flags = SHF_ALLOC | SHF_EXECINSTR, .sh_addralign = 16 },
        [DATA] = { .sh_type = SHT_PROGBITS, .sh_flags = SHF_ALLOC | SHF_WRITE, .sh_addralign = 8 },
        [TEXT_RELOCATIONS] = { .sh_type = SHT_RELA,
                               .sh_info = TEXT,
                               .sh_link = SYMBOLS,
                               .sh_entsize = sizeof(Elf64_Rela) },
        [DATA_RELOCATIONS] = { .sh_type = SHT_RELA,
                               .sh_info = DATA,
                               .sh_link = SYMBOLS,
                               .sh_entsize = sizeof(Elf64_Rela) },
        [SYMBOLS] = { .sh_type = SHT_SYMTAB, .sh_link = NAMES, .sh_entsize = sizeof(Elf64_Sym) },
        [NAMES] = { .sh_type = SHT_STRTAB },
    };
    size_t size = sizeof header;
    for (int i = TEXT; i < N_SECTIONS; i++) {
        sections[i].sh_offset = size;
        sections[i].sh_size = pieces[i].size;
        size += (pieces[i].size + 7) / 8 * 8;
    }
    header.e_shoff = size;
    qn_code code = { qn_arena_alloc(arena, size + sizeof sections), size + sizeof sections };
    memcpy(code.data, &header, sizeof header);
    for (int i = TEXT; i < N_SECTIONS; i++)
        if (pieces[i].size)
            memcpy((char *)code.data + sections[i].sh_offset, pieces[i].data, pieces[i].size);
    memcpy((char *)code.data + size, sections, sizeof sections);
    return code;
}

static Elf64_Sym named(unsigned name, int binding, int section)
{
    return (Elf64_Sym){ .st_name = name, .st_info = ELF64_ST_INFO(binding, STT_NOTYPE), .st_shndx = section };
}

/* int f(void) { return it; } */
static qn_code reader(qn_arena *arena)
{
    const Elf64_Sym symbols[] = { { 0 },
                                  named(NAME_F, STB_GLOBAL, TEXT),
                                  named(NAME_IT, STB_GLOBAL, SHN_UNDEF) };
    return object_of(
        arena, (piece[N_SECTIONS]){ [TEXT] = { reads_it, sizeof reads_it },
                                    [TEXT_RELOCATIONS] = { reads_relocations, sizeof reads_relocations },
                                    [SYMBOLS] = { symbols, sizeof symbols },
                                    [NAMES] = { names, sizeof names } });
}

/* int64_t it = 42; void *p = f; */
static qn_code variables(qn_arena *arena)
{
    const int64_t data[] = { 42, 0 };
    Elf64_Sym symbols[] = { { 0 },
                            named(NAME_F, STB_GLOBAL, SHN_UNDEF),
                            named(NAME_IT, STB_GLOBAL, DATA),
                            named(NAME_P, STB_GLOBAL, DATA) };
    symbols[3].st_value = 8;
    const Elf64_Rela relocations[] = { { 8, ELF64_R_INFO(1, POINTER), 0 } };
    return object_of(arena, (piece[N_SECTIONS]){ [DATA] = { data, sizeof data },
                                                 [DATA_RELOCATIONS] = { relocations, sizeof relocations },
                                                 [SYMBOLS] = { symbols, sizeof symbols },
                                                 [NAMES] = { names, sizeof names } });
}

/* A weak f that gives a number. */
static qn_code giver(qn_arena *arena, int number)
{
    static const unsigned char one[] = GIVES(1), two[] = GIVES(2);
    const Elf64_Sym symbols[] = { { 0 }, named(NAME_F, STB_WEAK, TEXT) };
    return object_of(arena, (piece[N_SECTIONS]){ [TEXT] = { number == 1 ? one : two, sizeof one },
                                                 [SYMBOLS] = { symbols, sizeof symbols },
                                                 [NAMES] = { names, sizeof names } });
}

/* ---- tests ---- */

typedef int (*function)(void);

static qn_status load(qn_arena *arena, int n, const qn_code *objects, void **image, const char **message)
{
    static const char *const called[] = { "first.o", "second.o" };
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_status status = qn_backend_cpu.load(n, objects, called, image, &diags);
    *message = qn_diags_text(&diags, arena);
    return status;
}

static function get(void *image, const char *name)
{
    void *address = qn_backend_cpu.symbol(image, name);
    function f;
    assert_non_null(address);
    memcpy(&f, &address, sizeof f);
    return f;
}

/* "r-xp" of the mapping that an address lies in. */
static void rights_at(const void *address, char rights[5])
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned long low, high;
    assert_non_null(maps);
    rights[0] = 0;
    while (!rights[0] && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &low, &high, rights) != 3 ||
            (unsigned long)(uintptr_t)address < low || (unsigned long)(uintptr_t)address >= high)
            rights[0] = 0;
    fclose(maps);
}

static void objects_see_each_other(void **state)
{
    (void)state;
    for (int order = 0; order < 2; order++) {
        qn_arena *arena = qn_arena_new();
        qn_code objects[2];
        void *image;
        const char *message;
        char rights[5];
        objects[order] = reader(arena);
        objects[1 - order] = variables(arena);
        if (load(arena, 2, objects, &image, &message))
            fail_msg("%s", message);
        qn_arena_free(arena); /* an image needs nothing of its objects */
        function f = get(image, "f");
        int64_t *it = qn_backend_cpu.symbol(image, "it");
        assert_int_equal(f(), 42);
        *it = 7;
        assert_int_equal(f(), 7);
        assert_memory_equal(qn_backend_cpu.symbol(image, "p"), &f, sizeof f);
        assert_null(qn_backend_cpu.symbol(image, "printf"));
        rights_at(*(void **)&f, rights);
        assert_string_equal(rights, "r-xp");
        rights_at(it, rights);
        assert_string_equal(rights, "rw-p");
        qn_backend_cpu.unload(image);
    }
}

static void the_first_of_a_name_is_taken(void **state)
{
    (void)state;
    for (int first = 1; first <= 2; first++) {
        qn_arena *arena = qn_arena_new();
        const qn_code objects[] = { giver(arena, first), giver(arena, 3 - first) };
        void *image;
        const char *message;
        assert_int_equal(load(arena, 2, objects, &image, &message), QUERN_OK);
        assert_int_equal(get(image, "f")(), first);
        qn_backend_cpu.unload(image);
        qn_arena_free(arena);
    }
}

static void says_what_is_missing(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    const qn_code object = reader(arena);
    void *image;
    const char *message;
    assert_int_equal(load(arena, 1, &object, &image, &message), QUERN_ERROR_INTERNAL);
    assert_null(image);
    assert_non_null(strstr(message, "first.o: nothing defines it"));
    qn_arena_free(arena);
}

/* Cut off anywhere it is refused; with other bytes in it, nothing outside is read or written. */
static void survives_damage(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    const qn_code second = variables(arena);
    const qn_code whole = reader(arena);
    void *image;
    const char *message;
    for (size_t size = 0; size < whole.size; size++) {
        char *data = malloc(size + 1); /* by itself, so that a sanitizer sees what is read behind it */
        memcpy(data, whole.data, size);
        const qn_code objects[] = { { data, size }, second };
        assert_int_equal(load(arena, 2, objects, &image, &message), QUERN_ERROR_INTERNAL);
        assert_non_null(strstr(message, "first.o"));
        free(data);
    }
    uint32_t random = 1;
    int n_fine = 0;
    for (int i = 0; i < 20000; i++) {
        unsigned char *data = malloc(whole.size);
        memcpy(data, whole.data, whole.size);
        for (int k = 0; k <= i % 3; k++) {
            random = random * 1664525 + 1013904223;
            data[(random >> 8) % whole.size] ^= (unsigned char)(1u << (random >> 4) % 8);
        }
        const qn_code objects[] = { { data, whole.size }, second };
        if (!load(arena, 2, objects, &image, &message)) {
            n_fine++;
            qn_backend_cpu.unload(image);
        }
        free(data);
    }
    assert_in_range(n_fine, 1, 19999);
    qn_arena_free(arena);
}

static void relocates_aarch64(void **state)
{
    (void)state;
    static const struct {
        uint32_t type, before, after;
        uint64_t symbol, place;
        int64_t addend;
        qn_elf_outcome outcome;
    } cases[] = {
        /* bl: forwards, backwards, too far */
        { R_AARCH64_CALL26, 0x94000000, 0x94000400, 0x11000, 0x10000, 0, QN_ELF_FINE },
        { R_AARCH64_CALL26, 0x94000000, 0x97fffc01, 0x10000, 0x11000, 4, QN_ELF_FINE },
        { R_AARCH64_JUMP26, 0x14000000, 0x14000000, 0x18000000, 0x10000000, 0, QN_ELF_TOO_FAR },
        /* adrp x1: 0x12345 pages on, 1 page back; add x1, x1, #0x678 */
        { R_AARCH64_ADR_PREL_PG_HI21, 0x90000001, 0xb0091a21, 0x12345678, 0x00000abc, 0, QN_ELF_FINE },
        { R_AARCH64_ADR_PREL_PG_HI21, 0x90000001, 0xf0ffffe1, 0x0ffc, 0x1000, 0, QN_ELF_FINE },
        { R_AARCH64_ADR_PREL_PG_HI21, 0x90000001, 0x90000001, UINT64_C(1) << 33, 0, 0, QN_ELF_TOO_FAR },
        { R_AARCH64_ADD_ABS_LO12_NC, 0x91000021, 0x9119e021, 0x12345670, 0, 8, QN_ELF_FINE },
        /* ldr b0, h0, s0, d0, q0, [x1, #0x670] */
        { R_AARCH64_LDST8_ABS_LO12_NC, 0x3d400020, 0x3d59c020, 0x12345670, 0, 0, QN_ELF_FINE },
        { R_AARCH64_LDST16_ABS_LO12_NC, 0x7d400020, 0x7d4ce020, 0x12345670, 0, 0, QN_ELF_FINE },
        { R_AARCH64_LDST32_ABS_LO12_NC, 0xbd400020, 0xbd467020, 0x12345670, 0, 0, QN_ELF_FINE },
        { R_AARCH64_LDST64_ABS_LO12_NC, 0xfd400020, 0xfd433820, 0x12345670, 0, 0, QN_ELF_FINE },
        { R_AARCH64_LDST128_ABS_LO12_NC, 0x3dc00020, 0x3dc19c20, 0x12345670, 0, 0, QN_ELF_FINE },
        { R_AARCH64_PREL32, 0, 0xfffff004, 0x10000, 0x11000, 4, QN_ELF_FINE },
        { R_AARCH64_TLSDESC, 7, 7, 0, 0, 0, QN_ELF_UNKNOWN },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const qn_elf_fixup f = { .machine = EM_AARCH64,
                                 .type = cases[i].type,
                                 .symbol = cases[i].symbol,
                                 .place = cases[i].place,
                                 .addend = cases[i].addend };
        uint32_t word = cases[i].before;
        assert_int_equal(qn_elf_relocate(&f, (unsigned char *)&word), cases[i].outcome);
        if (word != cases[i].after)
            fail_msg("case %zu: %08x, wanted %08x", i, word, cases[i].after);
    }
    /* through a slot: the symbol's own address is not looked at */
    qn_elf_fixup f = {
        .machine = EM_AARCH64, .type = R_AARCH64_ADR_GOT_PAGE, .place = 0x1000, .slot = 0x3ff8
    };
    uint32_t word = 0x90000000;
    assert_int_equal(qn_elf_relocate(&f, (unsigned char *)&word), QN_ELF_FINE);
    assert_int_equal(word, 0xd0000000);
    f.type = R_AARCH64_LD64_GOT_LO12_NC;
    word = 0xf9400000;
    assert_int_equal(qn_elf_relocate(&f, (unsigned char *)&word), QN_ELF_FINE);
    assert_int_equal(word, 0xf947fc00);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_see_each_other), cmocka_unit_test(the_first_of_a_name_is_taken),
        cmocka_unit_test(says_what_is_missing),   cmocka_unit_test(survives_damage),
        cmocka_unit_test(relocates_aarch64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
