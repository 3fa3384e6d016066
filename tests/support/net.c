#include "tests/support/net.h"

void net_begin(net *n)
{
    *n = (net){ .module = qn_module_new("f"), .seed = 5 };
    n->arena = n->module->arena;
    qn_diags_init(&n->diags, n->arena);
    n->b = (qn_builder){ .graph = qn_function_new(n->module, "f"), .diags = &n->diags };
}

void net_end(net *n)
{
    qn_module_free(n->module);
}

qn_dim net_symbol(net *n, const char *name, int64_t least, int64_t value)
{
    n->symbols[n->n_symbols++] = value;
    return qn_dim_symbol(n->module->dims, name, least, 1000);
}

qn_value *net_input(net *n, const char *name, qn_dtype dtype, int rank, const qn_dim *dims)
{
    return qn_graph_add_input(n->b.graph, name, qn_type_make(n->module, dtype, rank, dims), QN_ROLE_INPUT);
}

int64_t array_of_type(qn_array *array, const qn_type *type, const int64_t *symbols, qn_arena *arena)
{
    int64_t n = 1;
    *array = (qn_array){ .dtype = type->dtype, .rank = type->rank };
    for (int i = 0; i < type->rank; i++)
        n *= array->dims[i] = qn_dim_eval(type->dims[i], symbols);
    array->data = qn_arena_calloc(arena, (size_t)n + 1, qn_dtype_bytes(type->dtype));
    return n;
}
