/* Two regions as an if, whose results may have other extents in one than in the other. */
#include "frontend/onnx/body.h"

/* An extent that the branches give differently. The run finds it: it is bound behind the if. */
typedef struct differing {
    qn_dim dims[2]; /* in each branch */
    qn_dim most;    /* in what is known outside of them */
    qn_dim symbol;
} differing;

typedef qn_vec(differing) differings;

/* What d is at most, without what the region's nodes bind. */
static qn_dim most_outside(qn_onnx_import *im, const qn_graph *region, qn_dim d)
{
    qn_dims *dims = im->dims;
    const int n = qn_dims_symbol_count(dims);
    qn_dim *most = QN_NEW_ARRAY(im->arena, qn_dim, n);
    QN_FOR_NODES (region, node) {
        const qn_dim symbol = qn_node_binds(node);
        if (!symbol)
            continue;
        most[symbol->symbol] = qn_dim_min(dims, qn_dim_most(dims, qn_node_limit(node), most, n),
                                          qn_dim_const(dims, symbol->max));
    }
    return qn_dim_most(dims, d, most, n);
}

static const differing *add_differing(qn_onnx_node *n, qn_graph *const *regions, differings *all, qn_dim x,
                                      qn_dim y)
{
    qn_dims *dims = n->im->dims;
    for (size_t i = 0; i < all->n; i++)
        if (all->items[i].dims[0] == x && all->items[i].dims[1] == y)
            return &all->items[i];
    differing d = { .dims = { x, y } };
    d.most = qn_dim_max(dims, qn_dim_max(dims, most_outside(n->im, regions[0], x), qn_dim_const(dims, 0)),
                        most_outside(n->im, regions[1], y));
    const int64_t least = x->min < y->min ? x->min : y->min;
    const int64_t most = d.most->max < QN_DIM_MAX_VALUE ? d.most->max : QN_DIM_MAX_VALUE;
    d.symbol = qn_dim_fresh(dims, "branch", least > 0 ? least : 0, most);
    qn_vec_push(n->im->arena, all, d);
    return &all->items[all->n - 1];
}

/* x at the front of zeros, which `type` has room for. */
static qn_value *with_room(qn_builder *b, qn_value *x, const qn_type *type)
{
    qn_value *starts[QN_MAX_RANK];
    if (qn_type_equal(&x->type, type))
        return x;
    for (int i = 0; i < type->rank; i++)
        starts[i] = qn_b_scalar_int(b, QUERN_I64, 0);
    return qn_b_dynamic_update_slice(b, qn_b_full(b, type, 0), x, starts);
}

/* An output of the if, x or y. *out_type: with the extents that are bound behind it. False after a report. */
static bool add_if_output(qn_onnx_node *n, qn_graph *const *regions, qn_value *x, qn_value *y,
                          differings *io_differing, qn_type *out_type)
{
    qn_dim room[QN_MAX_RANK], dims[QN_MAX_RANK];
    const int rank = x->type.rank;
    for (int i = 0; i < rank; i++) {
        room[i] = dims[i] = x->type.dims[i];
        if (dims[i] == y->type.dims[i])
            continue;
        const differing *d = add_differing(n, regions, io_differing, dims[i], y->type.dims[i]);
        room[i] = d->most;
        dims[i] = d->symbol;
    }
    const qn_type type = qn_type_make(n->im->module, x->type.dtype, rank, room);
    *out_type = qn_type_make(n->im->module, x->type.dtype, rank, dims);
    for (int k = 0; k < 2; k++) {
        qn_builder inner = qn_onnx_region_builder(n, regions[k]);
        qn_value *v = with_room(&inner, k ? y : x, &type);
        if (!v)
            return false;
        qn_graph_add_output(regions[k], v, NULL, -1);
    }
    return true;
}

/* y with the extents of the type, which the run finds. */
static qn_value *sized(qn_builder *b, qn_value *y, const qn_type *type)
{
    for (int k = 0; y && k < type->rank; k++)
        if (y->type.dims[k] != type->dims[k])
            y = qn_b_slice_axis(b, y, k, qn_dim_const(qn_b_dims(b), 0), type->dims[k]);
    return y;
}

bool qn_onnx_join(qn_onnx_node *n, const qn_onnx_scope *then, const qn_onnx_scope *other, int n_values,
                  qn_value **const *values, qn_value **out)
{
    qn_graph *const regions[2] = { then->graph, other->graph };
    qn_builder *b = &n->b;
    differings differing = { 0 };
    qn_type *types = QN_NEW_ARRAY(n->im->arena, qn_type, n_values);
    if (!n_values)
        return true;
    for (int i = 0; i < n_values; i++)
        if (!add_if_output(n, regions, values[0][i], values[1][i], &differing, &types[i]))
            return false;
    for (size_t i = 0; i < differing.n; i++)
        for (int k = 0; k < 2; k++) {
            qn_builder inner = qn_onnx_region_builder(n, regions[k]);
            qn_graph_add_output(regions[k], qn_b_dim_value(&inner, QUERN_I64, differing.items[i].dims[k]),
                                NULL, -1);
        }
    qn_value *condition = qn_onnx_as_scalar(b, qn_onnx_in(n, 0));
    qn_node *node =
        condition ? qn_b_if(b, condition, (int)then->captured.n, then->captured.items, regions[0], regions[1])
                  : NULL;
    for (size_t i = 0; node && i < differing.n; i++)
        if (!qn_b_extent(b, &node->results[n_values + (int)i], differing.items[i].most,
                         differing.items[i].symbol))
            return false;
    for (int i = 0; node && i < n_values; i++)
        if (!(out[i] = sized(b, &node->results[i], &types[i])))
            return false;
    return node != NULL;
}
