/* ELF objects: reading one, and the relocations that its code is placed with. */
#ifndef QN_BACKENDS_LLVM_ELF_H
#define QN_BACKENDS_LLVM_ELF_H

#include <elf.h>

#include "backends/backend.h"

/* A 64-bit little-endian object with a table of symbols. Objects may come from a file: nothing in them is trusted. */
typedef struct qn_elf {
    const qn_code *object;
    Elf64_Ehdr header;
    const char *symbols, *names;
    uint64_t n_symbols, names_size;
} qn_elf;

bool qn_elf_open(const qn_code *object, qn_elf *out); /* false: it isn't one */
bool qn_elf_section(const qn_elf *elf, uint64_t index, Elf64_Shdr *out);
const void *qn_elf_contents(const qn_elf *elf,
                            const Elf64_Shdr *section);              /* NULL: not all inside the object */
Elf64_Sym qn_elf_symbol_at(const qn_elf *elf, uint64_t index);       /* index < n_symbols */
const char *qn_elf_name(const qn_elf *elf, const Elf64_Sym *symbol); /* NULL: none */

typedef struct qn_elf_symbol {
    const char *name; /* in the object */
    bool defined, global, function;
    uint64_t size;
} qn_elf_symbol;

/* Named symbols of an object, in the arena; their number, or -1 when it isn't such an object. */
int qn_elf_symbols(const qn_code *object, qn_arena *arena, qn_elf_symbol **out_symbols);

/* Does it go through a place in memory that holds the address? */
bool qn_elf_needs_slot(uint16_t machine, uint32_t type);

typedef struct qn_elf_fixup {
    uint16_t machine;
    uint32_t type;
    uint64_t place;  /* address of what is changed */
    uint64_t symbol; /* address */
    int64_t addend;
    uint64_t slot; /* address of a place that holds `symbol`, where it is needed */
} qn_elf_fixup;

typedef enum qn_elf_outcome { QN_ELF_FINE, QN_ELF_TOO_FAR, QN_ELF_UNKNOWN } qn_elf_outcome;
/* Changes the bytes of `place`, which are at `at` now. */
qn_elf_outcome qn_elf_relocate(const qn_elf_fixup *fixup, unsigned char *at);
size_t qn_elf_relocated_bytes(uint16_t machine, uint32_t type); /* that it changes */

#endif
