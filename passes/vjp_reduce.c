/* Derivatives of reductions, windows and cumulative ops. */
#include <math.h>

#include "passes/vjp.h"

/* prod: each element's factor is the product of the others, taken without dividing (elements may be 0) */
static qn_value *product_of_others(qn_vjp *v, qn_value *x, int n_axes, const int64_t *axes)
{
    qn_dims *dims = qn_b_dims(&v->b);
    int rank = x->type.rank, n = 0;
    int64_t perm[QN_MAX_RANK], inverse[QN_MAX_RANK];
    bool reduced[QN_MAX_RANK] = { false };
    for (int i = 0; i < n_axes; i++)
        reduced[axes[i]] = true;
    qn_dim flat[QN_MAX_RANK], all = qn_dim_const(dims, 1);
    for (int i = 0; i < rank; i++) {
        if (!reduced[i]) {
            flat[n] = x->type.dims[i];
            perm[n++] = i;
        }
    }
    for (int i = 0, at = n; i < rank; i++) {
        if (reduced[i]) {
            perm[at++] = i;
            all = qn_dim_mul(dims, all, x->type.dims[i]);
        }
    }
    for (int i = 0; i < rank; i++)
        inverse[perm[i]] = i;
    flat[n] = all;
    qn_value *moved = qn_b_transpose(&v->b, x, perm);
    qn_value *line = qn_b_reshape(&v->b, moved, n + 1, flat);
    qn_value *others = qn_vjp_mul(v, qn_b_cumulative(&v->b, QN_PROD, line, n, true, false),
                                  qn_b_cumulative(&v->b, QN_PROD, line, n, true, true));
    if (!moved)
        return NULL;
    return qn_b_transpose(&v->b, qn_b_reshape(&v->b, others, rank, moved->type.dims), inverse);
}

static qn_status reduce(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    qn_value *x = node->operands[0];
    switch (qn_attr_reduce_kind(node)) {
    case QN_SUM: qn_vjp_add(v, node, 0, qn_vjp_unreduce(v, g[0], x, n, axes)); break;
    case QN_PROD:
        qn_vjp_add(v, node, 0,
                   qn_vjp_mul(v, qn_vjp_unreduce(v, g[0], x, n, axes), product_of_others(v, x, n, axes)));
        break;
    case QN_KIND_MAX:
    case QN_KIND_MIN: {
        /* equal extremes share the gradient */
        qn_value *is_extreme =
            qn_b_compare(&v->b, QN_EQ, x, qn_vjp_unreduce(v, &node->results[0], x, n, axes));
        qn_value *mask = qn_b_convert(&v->b, x->type.dtype, is_extreme);
        qn_value *count = qn_b_reduce(&v->b, QN_SUM, mask, n, axes, false);
        qn_vjp_add(v, node, 0,
                   qn_vjp_mul(v, mask, qn_vjp_unreduce(v, qn_vjp_div(v, g[0], count), x, n, axes)));
        break;
    }
    case QN_SET:
    case QN_MEAN:
    case QN_N_KINDS: return qn_vjp_refuse(v, node, "this kind does not reduce");
    }
    return QUERN_OK;
}

/* low and high of a window are dimension expressions by type, but constants by rule */
static const int64_t *constants(qn_vjp *v, const qn_node *node, qn_attr_key key, int rank)
{
    int64_t *out = QN_NEW_ARRAY(v->b.graph->module->arena, int64_t, rank);
    const qn_attr *attr = qn_attr_find(node, key);
    for (int i = 0; i < rank; i++)
        out[i] = attr ? attr->dims[i]->value : 0;
    return out;
}

static const int64_t *ints_or_ones(qn_vjp *v, const qn_node *node, qn_attr_key key, int rank)
{
    const qn_attr *attr = qn_attr_find(node, key);
    if (attr)
        return attr->ints;
    int64_t *out = QN_NEW_ARRAY(v->b.graph->module->arena, int64_t, rank);
    for (int i = 0; i < rank; i++)
        out[i] = 1;
    return out;
}

/* Each input element gets the gradients of the windows that hold it: a window sum over the gradient, spread apart by
 * the stride. */
static qn_value *spread_sum(qn_vjp *v, qn_value *x, qn_value *g, const qn_window *w)
{
    qn_dims *dims = qn_b_dims(&v->b);
    int rank = x->type.rank;
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t interior[QN_MAX_RANK], ones[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        int64_t reach = (w->window[i] - 1) * w->dilation[i];
        interior[i] = w->stride[i] - 1;
        ones[i] = 1;
        low[i] = qn_dim_const(dims, reach - w->low[i]);
        /* the result must be x long */
        const qn_dim spread = qn_dim_spread(dims, g->type.dims[i], w->stride[i]);
        high[i] = qn_dim_sub(dims, qn_dim_add(dims, x->type.dims[i], qn_dim_const(dims, reach)),
                             qn_dim_add(dims, spread, low[i]));
    }
    qn_value *padded = qn_b_pad(&v->b, g, qn_b_scalar(&v->b, g->type.dtype, 0), low, high, interior);
    qn_window back = { .window = w->window, .stride = ones, .dilation = w->dilation };
    return qn_b_reduce_window(&v->b, QN_SUM, padded, &back);
}

static qn_status reduce_window(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0];
    int rank = x->type.rank;
    qn_window w = { .window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL),
                    .stride = ints_or_ones(v, node, QN_ATTR_STRIDE, rank),
                    .dilation = ints_or_ones(v, node, QN_ATTR_DILATION, rank),
                    .low = constants(v, node, QN_ATTR_LOW, rank),
                    .high = constants(v, node, QN_ATTR_HIGH, rank) };
    switch (qn_attr_reduce_kind(node)) {
    case QN_SUM: qn_vjp_add(v, node, 0, spread_sum(v, x, g[0], &w)); return QUERN_OK;
    case QN_KIND_MAX: qn_vjp_add(v, node, 0, qn_b_select_and_scatter(&v->b, x, g[0], &w)); return QUERN_OK;
    case QN_KIND_MIN:
        qn_vjp_add(v, node, 0, qn_b_select_and_scatter(&v->b, qn_vjp_neg(v, x), g[0], &w));
        return QUERN_OK;
    default: return qn_vjp_refuse(v, node, "the window of a product is too large to be taken apart");
    }
}

/* It is linear in the windows' gradients: each gets back what lies where its first maximal element is. Of x the derivative is 0. */
static qn_status select_and_scatter(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const int64_t n = qn_vjp_window_size(node);
    qn_value *x = node->operands[0], *out = NULL, *found = NULL;
    const qn_type *windows = &node->operands[1]->type;
    if (!qn_vjp_wants(v, node, 1))
        return QUERN_OK;
    if (n < 1)
        return qn_vjp_refuse(v, node, "the window is too large to be taken apart");
    const int rank = x->type.rank;
    qn_window w = { .window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL),
                    .stride = ints_or_ones(v, node, QN_ATTR_STRIDE, rank),
                    .dilation = ints_or_ones(v, node, QN_ATTR_DILATION, rank),
                    .low = constants(v, node, QN_ATTR_LOW, rank),
                    .high = constants(v, node, QN_ATTR_HIGH, rank) };
    qn_value *most = qn_b_reduce_window(&v->b, QN_KIND_MAX, x, &w);
    qn_value *elements = qn_vjp_window_padded(&v->b, node, x, -INFINITY);
    qn_value *adjoints = qn_vjp_window_padded(&v->b, node, g[0], 0);
    for (int64_t k = 0; k < n; k++) {
        qn_value *hit =
            qn_b_compare(&v->b, QN_EQ, qn_vjp_window_slice(&v->b, node, elements, windows, k), most);
        qn_value *first =
            found ? qn_b_binary(&v->b, QN_OP_AND, hit, qn_b_unary(&v->b, QN_OP_NOT, found)) : hit;
        qn_value *here = qn_vjp_window_slice(&v->b, node, adjoints, windows, k);
        out = qn_b_select(&v->b, first, here, out ? out : qn_vjp_zeros_like(v, node->operands[1]));
        found = found ? qn_b_binary(&v->b, QN_OP_OR, found, hit) : hit;
    }
    qn_vjp_add(v, node, 1, out);
    return QUERN_OK;
}

/* Of sums; other kinds have become scans. */
static qn_status cumulative(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0,
               qn_b_cumulative(&v->b, QN_SUM, g[0], (int)qn_attr_int(node, QN_ATTR_AXIS),
                               qn_attr_bool(node, QN_ATTR_EXCLUSIVE), !qn_attr_bool(node, QN_ATTR_REVERSE)));
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_reduction(qn_op op)
{
    switch (op) {
    case QN_OP_REDUCE: return reduce;
    case QN_OP_REDUCE_WINDOW: return reduce_window;
    case QN_OP_SELECT_AND_SCATTER: return select_and_scatter;
    case QN_OP_CUMULATIVE: return cumulative;
    default: return NULL;
    }
}
