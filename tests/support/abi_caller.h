/* A caller of compiled models that knows nothing but their tables: what any host does with quern_abi.h alone. */
#ifndef QN_TESTS_ABI_CALLER_H
#define QN_TESTS_ABI_CALLER_H

#include "quern_abi.h"

/* Memory for one call of one entry: the io structure, its buffers, the workspace. */
typedef struct abi_call {
    const quern_entry_info *entry;
    void **io; /* n_buffers pointers, then n_symbols int64_t */
    void *workspace;
    int64_t workspace_bytes;
} abi_call;

const quern_entry_info *abi_entry(const quern_model_info *model,
                                  const char *name); /* fails the test if absent */

/* Allocates zeroed buffers for these values of the given symbols (decided ones at their limits); states start at
 * their initial contents. The sizes are exact, so that a sanitizer sees every step outside. Buffers of an alias
 * group share memory. */
abi_call abi_call_new(const quern_model_info *model, const char *entry, const int64_t *symbols);
void abi_call_free(abi_call *call);

void *abi_buffer(const abi_call *call, const char *name); /* fails the test if absent */
int64_t *abi_symbols(const abi_call *call);
int64_t abi_elements(const abi_call *call, const char *name); /* for the symbol values now in io */
int abi_run(const abi_call *call, quern_ctx *ctx);

/* A parallel_for that runs the tasks in reverse order: results must not depend on the order. */
void abi_reverse_for(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n);

/* Every invariant a host relies on: sizes, names, ranks, text, ranges. Fails the test where one is broken. */
void abi_check_tables(const quern_model_info *model);

#endif
