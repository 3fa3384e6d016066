/* ELF objects: reading the symbols of one that LLVM made, writing one that holds weights. */
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

/* A stretch of the weights. */
typedef struct qn_elf_part {
    int64_t offset; /* from their start */
    const void *data;
    size_t bytes;
} qn_elf_part;

/* Writes an object file with one read-only section of `bytes` bytes that starts with the hidden symbol `symbol`, aligned
 * to 64; zero where no part lies. Streams: nothing is copied in memory. Parts are sorted by offset and don't overlap.
 * triple NULL: the host's. */
qn_status qn_elf_write_weights(const char *path, const char *triple, const char *symbol, int64_t bytes,
                               int n_parts, const qn_elf_part *parts, qn_diags *diags);

#endif
