/* A graph that a test builds, over extents that may be symbols, and arrays for a run of it. */
#ifndef QN_TESTS_NET_H
#define QN_TESTS_NET_H

#include "backends/backend.h"
#include "ir/build.h"

enum { NET_SYMBOLS = 4 };

typedef struct net {
    qn_module *module;
    qn_builder b; /* of its function f */
    qn_diags diags;
    qn_arena *arena;              /* of the module */
    int64_t symbols[NET_SYMBOLS]; /* what they are in this run */
    int n_symbols;
    unsigned seed; /* of random weights */
} net;

void net_begin(net *n);
void net_end(net *n);
/* A symbol of least to 1000, which is `value` in this run. */
qn_dim net_symbol(net *n, const char *name, int64_t least, int64_t value);
qn_value *net_input(net *n, const char *name, qn_dtype dtype, int rank, const qn_dim *dims);

/* Of that type, with zeros: gives the number of elements. Symbols may be NULL where there are none. */
int64_t array_of_type(qn_array *array, const qn_type *type, const int64_t *symbols, qn_arena *arena);

#endif
