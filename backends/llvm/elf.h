/* ELF objects: reading the symbols of one. */
#ifndef QN_BACKENDS_LLVM_ELF_H
#define QN_BACKENDS_LLVM_ELF_H

#include "backends/backend.h"

typedef struct qn_elf_symbol {
    const char *name; /* in the object */
    bool defined, global, function;
    uint64_t size;
} qn_elf_symbol;

/* Named symbols of a 64-bit little-endian object, in the arena; their number, or -1 when it isn't such an object. */
int qn_elf_symbols(const qn_code *object, qn_arena *arena, qn_elf_symbol **out_symbols);

#endif
