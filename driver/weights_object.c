/* Weights as a relocatable ELF object: one read-only section and one hidden symbol at its beginning. Written directly,
 * because a code generator takes seconds and several copies in memory for hundreds of megabytes. */
#include <elf.h>
#include <string.h>

#include "driver/weights.h"

static const struct {
    const char *prefix; /* of the triple */
    Elf64_Half machine;
} machines[] = { { "x86_64", EM_X86_64 }, { "aarch64", EM_AARCH64 } };

enum { NONE, RODATA, SYMTAB, STRTAB, SHSTRTAB, NOTE_STACK, N_SECTIONS };

static const char section_names[] = "\0.rodata\0.symtab\0.strtab\0.shstrtab\0.note.GNU-stack";
static const Elf64_Word name_at[] = { 0, 1, 9, 17, 25, 35 };

static uint64_t aligned(uint64_t offset, uint64_t to)
{
    return (offset + to - 1) / to * to;
}

static void pad(FILE *file, uint64_t n)
{
    while (n--)
        putc(0, file);
}

bool qn_weights_write_object(const qn_weights *weights, const char *triple, const char *symbol, FILE *file)
{
    Elf64_Half machine = EM_NONE;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        if (strncmp(triple, machines[i].prefix, strlen(machines[i].prefix)) == 0)
            machine = machines[i].machine;
    if (machine == EM_NONE)
        return false;

    uint64_t size = (uint64_t)weights->bytes, strings = strlen(symbol) + 2;
    uint64_t data_at = aligned(sizeof(Elf64_Ehdr), QN_WEIGHT_ALIGN);
    uint64_t symbols_at = aligned(data_at + size, 8), strings_at = symbols_at + 2 * sizeof(Elf64_Sym);
    uint64_t names_at = strings_at + strings, headers_at = aligned(names_at + sizeof section_names, 8);

    Elf64_Ehdr header = { .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
                                       EV_CURRENT },
                          .e_type = ET_REL,
                          .e_machine = machine,
                          .e_version = EV_CURRENT,
                          .e_shoff = headers_at,
                          .e_ehsize = sizeof(Elf64_Ehdr),
                          .e_shentsize = sizeof(Elf64_Shdr),
                          .e_shnum = N_SECTIONS,
                          .e_shstrndx = SHSTRTAB };
    fwrite(&header, sizeof header, 1, file);
    pad(file, data_at - sizeof header);
    qn_weights_write(weights, file);
    pad(file, symbols_at - data_at - size);

    Elf64_Sym symbols[2] = { { 0 },
                             { .st_name = 1,
                               .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT),
                               .st_other = STV_HIDDEN,
                               .st_shndx = RODATA,
                               .st_size = size } };
    fwrite(symbols, sizeof symbols, 1, file);
    putc(0, file);
    fwrite(symbol, 1, strlen(symbol) + 1, file);
    fwrite(section_names, sizeof section_names, 1, file);
    pad(file, headers_at - names_at - sizeof section_names);

    Elf64_Shdr sections[N_SECTIONS] = {
        [RODATA] = { .sh_type = SHT_PROGBITS,
                     .sh_flags = SHF_ALLOC,
                     .sh_offset = data_at,
                     .sh_size = size,
                     .sh_addralign = QN_WEIGHT_ALIGN },
        [SYMTAB] = { .sh_type = SHT_SYMTAB,
                     .sh_offset = symbols_at,
                     .sh_size = sizeof symbols,
                     .sh_link = STRTAB,
                     .sh_info = 1, /* the first global symbol */
                     .sh_addralign = 8,
                     .sh_entsize = sizeof(Elf64_Sym) },
        [STRTAB] = { .sh_type = SHT_STRTAB, .sh_offset = strings_at, .sh_size = strings, .sh_addralign = 1 },
        [SHSTRTAB] = { .sh_type = SHT_STRTAB,
                       .sh_offset = names_at,
                       .sh_size = sizeof section_names,
                       .sh_addralign = 1 },
        [NOTE_STACK] = { .sh_type = SHT_PROGBITS, .sh_offset = headers_at, .sh_addralign = 1 },
    };
    for (int i = 1; i < N_SECTIONS; i++)
        sections[i].sh_name = name_at[i];
    fwrite(sections, sizeof sections, 1, file);
    return true;
}
