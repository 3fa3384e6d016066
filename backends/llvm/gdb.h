/* Tells a debugger of code in memory, through what gdb and lldb look at: the "JIT compilation interface" of gdb's manual. */
#ifndef QN_BACKENDS_LLVM_GDB_H
#define QN_BACKENDS_LLVM_GDB_H

#include <stdint.h>

/* `object`: an ELF object whose sections say where they are; it and *entry stay until the code is removed. */
typedef struct qn_gdb_entry {
    struct qn_gdb_entry *next, *previous;
    const void *object;
    uint64_t size;
} qn_gdb_entry;

void qn_gdb_add(qn_gdb_entry *entry);
void qn_gdb_remove(qn_gdb_entry *entry);

#endif
