/* Reading an object: see elf.h. */
#include "backends/llvm/elf.h"

#include <string.h>

static const void *range(const qn_code *object, uint64_t offset, uint64_t bytes)
{
    if (offset > object->size || bytes > object->size - offset)
        return NULL;
    return (const char *)object->data + offset;
}

bool qn_elf_section(const qn_elf *elf, uint64_t index, Elf64_Shdr *out)
{
    const void *at = index < elf->header.e_shnum && elf->header.e_shoff <= elf->object->size
                         ? range(elf->object, elf->header.e_shoff + index * sizeof *out, sizeof *out)
                         : NULL;
    if (!at)
        return false;
    memcpy(out, at, sizeof *out);
    return true;
}

const void *qn_elf_contents(const qn_elf *elf, const Elf64_Shdr *section)
{
    return range(elf->object, section->sh_offset, section->sh_size);
}

bool qn_elf_open(const qn_code *object, qn_elf *out)
{
    Elf64_Shdr table, names;
    *out = (qn_elf){ .object = object };
    if (object->size < sizeof out->header)
        return false;
    memcpy(&out->header, object->data, sizeof out->header);
    if (memcmp(out->header.e_ident, ELFMAG, SELFMAG) != 0 || out->header.e_ident[EI_CLASS] != ELFCLASS64 ||
        out->header.e_ident[EI_DATA] != ELFDATA2LSB || out->header.e_shentsize != sizeof table)
        return false;
    uint64_t i = 0;
    do {
        if (!qn_elf_section(out, i++, &table))
            return false;
    } while (table.sh_type != SHT_SYMTAB);
    if (!qn_elf_section(out, table.sh_link, &names))
        return false;
    out->symbols = qn_elf_contents(out, &table);
    out->names = qn_elf_contents(out, &names);
    out->n_symbols = table.sh_size / sizeof(Elf64_Sym);
    out->names_size = names.sh_size;
    return out->symbols && out->names && names.sh_size > 0 && out->names[names.sh_size - 1] == 0;
}

Elf64_Sym qn_elf_symbol_at(const qn_elf *elf, uint64_t index)
{
    Elf64_Sym s;
    memcpy(&s, elf->symbols + index * sizeof s, sizeof s);
    return s;
}

const char *qn_elf_name(const qn_elf *elf, const Elf64_Sym *symbol)
{
    return symbol->st_name > 0 && symbol->st_name < elf->names_size ? elf->names + symbol->st_name : NULL;
}

int qn_elf_symbols(const qn_code *object, qn_arena *arena, qn_elf_symbol **out_symbols)
{
    qn_elf elf;
    int n = 0;
    if (!qn_elf_open(object, &elf))
        return -1;
    qn_elf_symbol *out = QN_NEW_ARRAY(arena, qn_elf_symbol, elf.n_symbols);
    for (uint64_t i = 1; i < elf.n_symbols; i++) {
        const Elf64_Sym s = qn_elf_symbol_at(&elf, i);
        const char *name = qn_elf_name(&elf, &s);
        if (!name || ELF64_ST_TYPE(s.st_info) == STT_FILE || ELF64_ST_TYPE(s.st_info) == STT_SECTION)
            continue;
        out[n++] = (qn_elf_symbol){ .name = name,
                                    .defined = s.st_shndx != SHN_UNDEF,
                                    .global = ELF64_ST_BIND(s.st_info) != STB_LOCAL,
                                    .function = ELF64_ST_TYPE(s.st_info) == STT_FUNC,
                                    .size = s.st_size };
    }
    *out_symbols = out;
    return n;
}
