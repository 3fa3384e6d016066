/* A graph over extents that are symbols, and what these are in a run. */
#ifndef QN_TESTS_NET_H
#define QN_TESTS_NET_H

#include "ir/build.h"

enum { NET_SYMBOLS = 4 };

typedef struct net {
    qn_builder b;
    int64_t symbols[NET_SYMBOLS];
    int n_symbols;
} net;

/* A symbol of least to 1000, which is `value` in this run. */
qn_dim net_symbol(net *n, const char *name, int64_t least, int64_t value);
qn_value *net_input(net *n, const char *name, qn_dtype dtype, int rank, const qn_dim *dims);

#endif
