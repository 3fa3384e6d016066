/* Memory of workspaces and tensors: aligned to 64 bytes, zeroed, on huge pages where it is large. */
#ifndef QN_RUNTIME_MEMORY_H
#define QN_RUNTIME_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

typedef struct qn_memory {
    void *data; /* NULL: nothing */
    size_t bytes;
} qn_memory;

/* At least `bytes` (and at least one) in *memory, whose former contents are lost when it has to grow: then it is zeroed.
 * False when there is no memory; *memory is empty then. */
bool qn_memory_reserve(qn_memory *memory, size_t bytes);
void qn_memory_free(qn_memory *memory);

#endif
