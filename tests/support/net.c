#include "tests/support/net.h"

qn_dim net_symbol(net *n, const char *name, int64_t least, int64_t value)
{
    n->symbols[n->n_symbols++] = value;
    return qn_dim_symbol(qn_b_dims(&n->b), name, least, 1000);
}

qn_value *net_input(net *n, const char *name, qn_dtype dtype, int rank, const qn_dim *dims)
{
    return qn_graph_add_input(n->b.graph, name, qn_type_make(n->b.graph->module, dtype, rank, dims),
                              QN_ROLE_INPUT);
}
