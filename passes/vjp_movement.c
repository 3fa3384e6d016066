/* Derivatives of data movement: each gradient is the movement backwards, and where elements were repeated, a sum. */
#include "passes/vjp.h"

static qn_dim constant(qn_vjp *v, int64_t value)
{
    return qn_dim_const(qn_b_dims(&v->b), value);
}

/* Of an axis that is as long as g's or 1, which a run decides: the elements behind the first `extent`, of which there are none or all
 * but one, are added to these. */
static qn_value *folded(qn_vjp *v, qn_value *g, int axis, qn_dim extent)
{
    qn_value *first = g ? qn_b_slice_axis(&v->b, g, axis, constant(v, 0), extent) : NULL;
    qn_value *behind = first ? qn_b_slice_axis(&v->b, g, axis, extent, g->type.dims[axis]) : NULL;
    const int64_t axes[] = { axis };
    behind = behind ? qn_b_reduce(&v->b, QN_SUM, behind, 1, axes, true) : NULL;
    return behind ? qn_b_binary_bcast(&v->b, QN_OP_ADD, first, behind) : NULL;
}

static qn_status broadcast(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const qn_type *from = &node->operands[0]->type, *to = &node->results[0].type;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    bool kept[QN_MAX_RANK] = { false };
    qn_value *sum = g[0];
    for (int i = 0; i < from->rank; i++) {
        const qn_dim small = from->dims[i], large = to->dims[axes[i]];
        kept[axes[i]] = small == large || !qn_dim_is(small, 1);
        if (small != large && kept[axes[i]])
            sum = folded(v, sum, (int)axes[i], small);
    }
    int64_t summed[QN_MAX_RANK];
    int n = 0;
    for (int axis = 0; axis < to->rank; axis++) {
        if (!kept[axis])
            summed[n++] = axis;
    }
    sum = n && sum ? qn_b_reduce(&v->b, QN_SUM, sum, n, summed, false) : sum;
    if (!sum)
        return QUERN_ERROR_INTERNAL;
    /* What is left is in the order of the result; the operand's axes may come in another. */
    int64_t perm[QN_MAX_RANK], rank = 0;
    qn_dim dims[QN_MAX_RANK];
    for (int axis = 0; axis < to->rank; axis++) {
        for (int i = 0; i < from->rank; i++) {
            if (axes[i] == axis && kept[axis])
                dims[rank++] = from->dims[i];
        }
    }
    int64_t position = 0;
    for (int i = 0; i < from->rank; i++) {
        if (!kept[axes[i]])
            continue;
        int64_t before = 0;
        for (int axis = 0; axis < axes[i]; axis++)
            before += kept[axis];
        perm[position++] = before;
    }
    sum = qn_b_reshape(&v->b, sum, (int)rank, dims);
    sum = qn_b_transpose(&v->b, sum, perm);
    qn_vjp_add(v, node, 0, qn_b_reshape(&v->b, sum, from->rank, from->dims));
    return QUERN_OK;
}

static qn_status reshape(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const qn_type *from = &node->operands[0]->type;
    qn_vjp_add(v, node, 0, qn_b_reshape(&v->b, g[0], from->rank, from->dims));
    return QUERN_OK;
}

static qn_status transpose(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const int64_t *perm = qn_attr_ints(node, QN_ATTR_PERM, NULL);
    int64_t inverse[QN_MAX_RANK];
    for (int i = 0; i < g[0]->type.rank; i++)
        inverse[perm[i]] = i;
    qn_vjp_add(v, node, 0, qn_b_transpose(&v->b, g[0], inverse));
    return QUERN_OK;
}

static qn_status slice(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_dims *dims = qn_b_dims(&v->b);
    const qn_type *from = &node->operands[0]->type, *to = &node->results[0].type;
    const qn_dim *start = qn_attr_dims(node, QN_ATTR_START, NULL);
    const qn_attr *strides = qn_attr_find(node, QN_ATTR_STRIDE);
    qn_dim high[QN_MAX_RANK];
    int64_t interior[QN_MAX_RANK];
    for (int i = 0; i < to->rank; i++) {
        int64_t stride = strides ? strides->ints[i] : 1;
        if (qn_dim_is(to->dims[i], 0)) {
            qn_vjp_add(v, node, 0, qn_vjp_zeros_like(v, node->operands[0]));
            return QUERN_OK;
        }
        const qn_dim covered = qn_dim_spread(dims, to->dims[i], stride);
        high[i] = qn_dim_sub(dims, qn_dim_sub(dims, from->dims[i], start[i]), covered);
        interior[i] = stride - 1;
    }
    qn_value *zero = qn_b_scalar(&v->b, from->dtype, 0);
    qn_vjp_add(v, node, 0, qn_b_pad(&v->b, g[0], zero, start, high, interior));
    return QUERN_OK;
}

static qn_status pad(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_dims *dims = qn_b_dims(&v->b);
    const qn_type *from = &node->operands[0]->type;
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    const qn_attr *interiors = qn_attr_find(node, QN_ATTR_INTERIOR);
    qn_dim minus_low[QN_MAX_RANK], minus_high[QN_MAX_RANK], start[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK];
    for (int i = 0; i < from->rank; i++) {
        start[i] = constant(v, 0);
        stride[i] = interiors ? interiors->ints[i] + 1 : 1;
        /* n times the stride is left, of which n are taken, of none too */
        const qn_dim all = qn_dim_mul(dims, from->dims[i], constant(v, stride[i])),
                     more = qn_dim_sub(dims, all, qn_dim_spread(dims, from->dims[i], stride[i]));
        minus_low[i] = qn_dim_sub(dims, constant(v, 0), low[i]);
        minus_high[i] = qn_dim_sub(dims, more, high[i]);
    }
    qn_value *zero = qn_b_scalar(&v->b, from->dtype, 0);
    qn_value *inner = qn_b_pad(&v->b, g[0], zero, minus_low, minus_high, NULL);
    if (!inner)
        return QUERN_ERROR_INTERNAL;
    inner = qn_b_slice(&v->b, inner, start, inner->type.dims, stride);
    qn_vjp_add(v, node, 0, inner);
    if (qn_vjp_wants(v, node, 1)) {
        int64_t all[QN_MAX_RANK];
        for (int i = 0; i < from->rank; i++)
            all[i] = i;
        qn_vjp_add(v, node, 1,
                   qn_vjp_sub(v, qn_b_reduce(&v->b, QN_SUM, g[0], from->rank, all, false),
                              qn_b_reduce(&v->b, QN_SUM, inner, from->rank, all, false)));
    }
    return QUERN_OK;
}

static qn_status concatenate(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_dims *dims = qn_b_dims(&v->b);
    int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    qn_dim at = constant(v, 0);
    for (int i = 0; i < node->n_operands; i++) {
        qn_dim end = qn_dim_add(dims, at, node->operands[i]->type.dims[axis]);
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i, qn_b_slice_axis(&v->b, g[0], axis, at, end));
        at = end;
    }
    return QUERN_OK;
}

static qn_status reverse(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    qn_vjp_add(v, node, 0, qn_b_reverse(&v->b, g[0], n, axes));
    return QUERN_OK;
}

static qn_status dynamic_slice(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *zeros = qn_vjp_zeros_like(v, node->operands[0]);
    qn_vjp_add(v, node, 0, qn_b_dynamic_update_slice(&v->b, zeros, g[0], node->operands + 1));
    return QUERN_OK;
}

static qn_status dynamic_update_slice(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *update = node->operands[1];
    if (qn_vjp_wants(v, node, 0))
        qn_vjp_add(v, node, 0,
                   qn_b_dynamic_update_slice(&v->b, g[0], qn_vjp_zeros_like(v, update), node->operands + 2));
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, qn_b_dynamic_slice(&v->b, g[0], node->operands + 2, update->type.dims));
    return QUERN_OK;
}

/* ---- gathers: the gradient is a scatter that adds ---- */

/* perm that moves `count` axes from `from` to the front, and its inverse */
static void to_front(int rank, int from, int count, int64_t *perm, int64_t *inverse)
{
    int n = 0;
    for (int i = 0; i < count; i++)
        perm[n++] = from + i;
    for (int i = 0; i < rank; i++) {
        if (i < from || i >= from + count)
            perm[n++] = i;
    }
    for (int i = 0; i < rank; i++)
        inverse[perm[i]] = i;
}

static qn_status gather(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *indices = node->operands[1];
    int axis = (int)qn_attr_int(node, QN_ATTR_AXIS), rank = x->type.rank;
    int64_t perm[QN_MAX_RANK], inverse[QN_MAX_RANK], ignored[QN_MAX_RANK];
    to_front(g[0]->type.rank, axis, indices->type.rank, perm, ignored);
    qn_value *updates = qn_b_transpose(&v->b, g[0], perm);
    to_front(rank, axis, 1, perm, inverse);
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < rank; i++)
        dims[i] = x->type.dims[perm[i]];
    qn_type type = qn_type_make(node->graph->module, x->type.dtype, rank, dims);
    qn_value *rows = qn_b_expand_dims(&v->b, indices, indices->type.rank);
    qn_value *sum = qn_b_scatter_nd(&v->b, QN_SUM, qn_b_full(&v->b, &type, 0), rows, updates);
    qn_vjp_add(v, node, 0, qn_b_transpose(&v->b, sum, inverse));
    return QUERN_OK;
}

/* indices [batch…, m…, k] of gather_nd with batch_dims as plain ones [batch…, m…, batch_dims + k] */
static qn_value *explicit_batches(qn_vjp *v, qn_value *indices, int batch_dims)
{
    if (!batch_dims)
        return indices;
    qn_value *parts[QN_MAX_RANK + 1];
    qn_dim dims[QN_MAX_RANK];
    int rank = indices->type.rank;
    for (int i = 0; i < rank; i++)
        dims[i] = i == rank - 1 ? constant(v, 1) : indices->type.dims[i];
    qn_type type = qn_type_make(v->b.graph->module, indices->type.dtype, rank, dims);
    for (int i = 0; i < batch_dims; i++)
        parts[i] = qn_b_iota(&v->b, &type, i);
    parts[batch_dims] = indices;
    return qn_b_concatenate(&v->b, batch_dims + 1, parts, rank - 1);
}

static qn_status gather_nd(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *indices =
        explicit_batches(v, node->operands[1], (int)qn_attr_int_or(node, QN_ATTR_BATCH_DIMS, 0));
    qn_value *zeros = qn_vjp_zeros_like(v, node->operands[0]);
    qn_vjp_add(v, node, 0, qn_b_scatter_nd(&v->b, QN_SUM, zeros, indices, g[0]));
    return QUERN_OK;
}

static qn_status gather_elements(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *zeros = qn_vjp_zeros_like(v, node->operands[0]);
    qn_vjp_add(v, node, 0,
               qn_b_scatter_elements(&v->b, QN_SUM, zeros, node->operands[1], g[0],
                                     (int)qn_attr_int(node, QN_ATTR_AXIS)));
    return QUERN_OK;
}

typedef struct scatter_node {
    qn_vjp *v;
    bool nd;
    int axis;
    qn_value *indices;
} scatter_node;

static qn_value *scattered(const scatter_node *s, qn_kind kind, qn_value *x, qn_value *updates)
{
    return s->nd ? qn_b_scatter_nd(&s->v->b, kind, x, s->indices, updates)
                 : qn_b_scatter_elements(&s->v->b, kind, x, s->indices, updates, s->axis);
}

/* What each update finds at its place. */
static qn_value *gathered(const scatter_node *s, qn_value *x)
{
    return s->nd ? qn_b_gather_nd(&s->v->b, x, s->indices, 0)
                 : qn_b_gather_elements(&s->v->b, x, s->indices, s->axis);
}

/* 1 where x is equal to y, else 0 */
static qn_value *where_equal(qn_vjp *v, qn_value *x, qn_value *y)
{
    return x && y ? qn_b_convert(&v->b, x->type.dtype, qn_b_compare(&v->b, QN_EQ, x, y)) : NULL;
}

/* max, min: equal extremes share the gradient. */
static qn_status scatter_extreme(const scatter_node *s, qn_node *node, qn_value *g)
{
    qn_vjp *v = s->v;
    qn_value *mine = where_equal(v, node->operands[0], &node->results[0]);
    qn_value *theirs = where_equal(v, node->operands[2], gathered(s, &node->results[0]));
    qn_value *share = qn_vjp_div(v, g, scattered(s, QN_SUM, mine, theirs));
    qn_vjp_add(v, node, 0, qn_vjp_mul(v, mine, share));
    if (qn_vjp_wants(v, node, 2))
        qn_vjp_add(v, node, 2, qn_vjp_mul(v, theirs, gathered(s, share)));
    return QUERN_OK;
}

/* The product of all factors but x, of which `product` is the product of those that are not 0 and `zeros` the number of others. */
static qn_value *product_without(qn_vjp *v, qn_value *x, qn_value *product, qn_value *zeros)
{
    if (!x || !product || !zeros)
        return NULL;
    qn_value *none = qn_vjp_zeros_like(v, x), *one = qn_b_full(&v->b, &x->type, 1);
    qn_value *is_zero = qn_b_compare(&v->b, QN_EQ, x, none);
    qn_value *safe = qn_b_select(&v->b, is_zero, one, x);
    qn_value *of_zero = qn_b_select(&v->b, qn_b_compare(&v->b, QN_EQ, zeros, one), product, none);
    qn_value *of_other =
        qn_b_select(&v->b, qn_b_compare(&v->b, QN_EQ, zeros, none), qn_vjp_div(v, product, safe), none);
    return qn_b_select(&v->b, is_zero, of_zero, of_other);
}

static qn_status scatter_product(const scatter_node *s, qn_node *node, qn_value *g)
{
    qn_vjp *v = s->v;
    qn_value *factors[2] = { node->operands[0], node->operands[2] }, *safe[2], *is_zero[2];
    for (int i = 0; i < 2; i++) {
        is_zero[i] = where_equal(v, factors[i], qn_vjp_zeros_like(v, factors[i]));
        safe[i] = qn_b_binary(&v->b, QN_OP_ADD, factors[i], is_zero[i]); /* 0 becomes 1 */
    }
    qn_value *product = scattered(s, QN_PROD, safe[0], safe[1]);
    qn_value *zeros = scattered(s, QN_SUM, is_zero[0], is_zero[1]);
    qn_vjp_add(v, node, 0, qn_vjp_mul(v, g, product_without(v, factors[0], product, zeros)));
    if (qn_vjp_wants(v, node, 2))
        qn_vjp_add(v, node, 2,
                   qn_vjp_mul(v, gathered(s, g),
                              product_without(v, factors[1], gathered(s, product), gathered(s, zeros))));
    return QUERN_OK;
}

/* set: which updates no later one overwrites: their numbers are what is found at their places */
static qn_value *is_last(const scatter_node *s, const qn_node *node)
{
    qn_builder *b = &s->v->b;
    qn_module *module = node->graph->module;
    const qn_type *x = &node->operands[0]->type, *updates = &node->operands[2]->type;
    const qn_dim all = qn_type_elements_dim(qn_b_dims(b), updates);
    const qn_type line = qn_type_make(module, QUERN_I64, 1, &all);
    const qn_type places = qn_type_make(module, QUERN_I64, x->rank, x->dims);
    qn_value *numbers = qn_b_reshape(b, qn_b_iota(b, &line, 0), updates->rank, updates->dims);
    qn_value *none = qn_b_broadcast_to(b, qn_b_scalar_int(b, QUERN_I64, -1), places.rank, places.dims);
    return qn_b_compare(b, QN_EQ, gathered(s, scattered(s, QN_SET, none, numbers)), numbers);
}

static qn_status scatter(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const qn_kind kind = qn_attr_reduce_kind(node);
    const bool nd = node->op == QN_OP_SCATTER_ND;
    const scatter_node s = {
        .v = v, .nd = nd, .axis = nd ? 0 : (int)qn_attr_int(node, QN_ATTR_AXIS), .indices = node->operands[1]
    };
    if (kind == QN_PROD)
        return scatter_product(&s, node, g[0]);
    if (kind == QN_KIND_MAX || kind == QN_KIND_MIN)
        return scatter_extreme(&s, node, g[0]);
    if (qn_vjp_wants(v, node, 0))
        qn_vjp_add(v, node, 0,
                   kind == QN_SET ? scattered(&s, QN_SET, g[0], qn_vjp_zeros_like(v, node->operands[2]))
                                  : g[0]);
    if (qn_vjp_wants(v, node, 2)) {
        qn_value *back = gathered(&s, g[0]);
        if (kind == QN_SET && back)
            back = qn_b_select(&v->b, is_last(&s, node), back, qn_vjp_zeros_like(v, back));
        qn_vjp_add(v, node, 2, back);
    }
    return QUERN_OK;
}

/* The permutation comes from sorting the positions along with the keys; it sends gradients back. */
static qn_status sort(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    qn_type type = node->operands[0]->type;
    type.dtype = QUERN_I64;
    qn_value *with[2] = { node->operands[0], qn_b_iota(&v->b, &type, axis) };
    qn_node *sorted = qn_b_sort(&v->b, 2, with, axis, qn_attr_bool(node, QN_ATTR_DESCENDING));
    if (!sorted)
        return QUERN_ERROR_INTERNAL;
    for (int i = 0; i < node->n_operands; i++) {
        if (g[i] && qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i,
                       qn_b_scatter_elements(&v->b, QN_SET, qn_vjp_zeros_like(v, node->operands[i]),
                                             &sorted->results[1], g[i], axis));
    }
    return QUERN_OK;
}

static qn_status top_k(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0,
               qn_b_scatter_elements(&v->b, QN_SET, qn_vjp_zeros_like(v, node->operands[0]),
                                     &node->results[1], g[0], (int)qn_attr_int(node, QN_ATTR_AXIS)));
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_movement(qn_op op)
{
    switch (op) {
    case QN_OP_BROADCAST: return broadcast;
    case QN_OP_RESHAPE: return reshape;
    case QN_OP_TRANSPOSE: return transpose;
    case QN_OP_SLICE: return slice;
    case QN_OP_PAD: return pad;
    case QN_OP_CONCATENATE: return concatenate;
    case QN_OP_REVERSE: return reverse;
    case QN_OP_DYNAMIC_SLICE: return dynamic_slice;
    case QN_OP_DYNAMIC_UPDATE_SLICE: return dynamic_update_slice;
    case QN_OP_GATHER: return gather;
    case QN_OP_GATHER_ND: return gather_nd;
    case QN_OP_GATHER_ELEMENTS: return gather_elements;
    case QN_OP_SCATTER_ND:
    case QN_OP_SCATTER_ELEMENTS: return scatter;
    case QN_OP_SORT: return sort;
    case QN_OP_TOP_K: return top_k;
    default: return NULL;
    }
}
