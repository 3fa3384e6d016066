/* Reads the symbol table of an object. Objects may come from a file: nothing in them is trusted. */
#include <elf.h>
#include <string.h>

#include "backends/llvm/elf.h"

static const void *range(const qn_code *object, uint64_t offset, uint64_t bytes)
{
    if (offset > object->size || bytes > object->size - offset)
        return NULL;
    return (const char *)object->data + offset;
}

static bool section_header(const qn_code *object, const Elf64_Ehdr *header, uint64_t index, Elf64_Shdr *out)
{
    const void *at =
        index < header->e_shnum ? range(object, header->e_shoff + index * sizeof *out, sizeof *out) : NULL;
    if (!at)
        return false;
    memcpy(out, at, sizeof *out);
    return true;
}

int qn_elf_symbols(const qn_code *object, qn_arena *arena, qn_elf_symbol **out_symbols)
{
    Elf64_Ehdr header;
    Elf64_Shdr table, names;
    if (object->size < sizeof header)
        return -1;
    memcpy(&header, object->data, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_shentsize != sizeof table)
        return -1;
    uint64_t i = 0;
    do {
        if (!section_header(object, &header, i++, &table))
            return -1;
    } while (table.sh_type != SHT_SYMTAB);
    if (!section_header(object, &header, table.sh_link, &names))
        return -1;
    const char *symbols = range(object, table.sh_offset, table.sh_size);
    const char *text = range(object, names.sh_offset, names.sh_size);
    if (!symbols || !text || names.sh_size == 0 || text[names.sh_size - 1] != 0)
        return -1;
    uint64_t n = table.sh_size / sizeof(Elf64_Sym);
    qn_elf_symbol *out = QN_NEW_ARRAY(arena, qn_elf_symbol, n);
    int n_out = 0;
    for (i = 1; i < n; i++) {
        Elf64_Sym s;
        memcpy(&s, symbols + i * sizeof s, sizeof s);
        if (s.st_name == 0 || s.st_name >= names.sh_size || ELF64_ST_TYPE(s.st_info) == STT_FILE ||
            ELF64_ST_TYPE(s.st_info) == STT_SECTION)
            continue;
        out[n_out++] = (qn_elf_symbol){ .name = text + s.st_name,
                                        .defined = s.st_shndx != SHN_UNDEF,
                                        .global = ELF64_ST_BIND(s.st_info) != STB_LOCAL,
                                        .function = ELF64_ST_TYPE(s.st_info) == STT_FUNC,
                                        .size = s.st_size };
    }
    *out_symbols = out;
    return n_out;
}
