/* See gdb.h. The names and the layout are the debugger's. */
#include "backends/llvm/gdb.h"

#include <pthread.h>
#include <stddef.h>

enum { NOTHING, ADD, REMOVE };

struct descriptor {
    uint32_t version, action;
    qn_gdb_entry *relevant, *first;
};

extern struct descriptor __jit_debug_descriptor;
void __jit_debug_register_code(void);

__attribute__((used)) struct descriptor __jit_debug_descriptor = { .version = 1 };

/* The debugger stops here and looks at the descriptor. */
__attribute__((used, noinline)) void __jit_debug_register_code(void)
{
    __asm__ volatile("" ::: "memory");
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void tell(qn_gdb_entry *entry, uint32_t action)
{
    __jit_debug_descriptor.relevant = entry;
    __jit_debug_descriptor.action = action;
    __jit_debug_register_code();
    __jit_debug_descriptor.action = NOTHING;
}

void qn_gdb_add(qn_gdb_entry *entry)
{
    pthread_mutex_lock(&lock);
    entry->previous = NULL;
    entry->next = __jit_debug_descriptor.first;
    if (entry->next)
        entry->next->previous = entry;
    __jit_debug_descriptor.first = entry;
    tell(entry, ADD);
    pthread_mutex_unlock(&lock);
}

void qn_gdb_remove(qn_gdb_entry *entry)
{
    pthread_mutex_lock(&lock);
    if (entry->previous)
        entry->previous->next = entry->next;
    else
        __jit_debug_descriptor.first = entry->next;
    if (entry->next)
        entry->next->previous = entry->previous;
    tell(entry, REMOVE);
    pthread_mutex_unlock(&lock);
}
