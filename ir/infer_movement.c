/* Type rules of data movement. */
#include "ir/infer_rules.h"

#define DIMS (c->module->dims)

static qn_status broadcast(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int rank, n;
    const qn_dim *dims = qn_attr_dims(c->node, QN_ATTR_DIMS, &rank);
    const int64_t *axes;
    QN_TRY(qn_infer_axes(c, QN_ATTR_AXES, rank, false, &n, &axes));
    if (n != x->rank)
        return qn_infer_fail(c, "axes has %d entries; expected one per axis of %s", n, qn_infer_print(c, x));
    for (int i = 0; i < n; i++) {
        qn_dim from = x->dims[i], to = dims[axes[i]];
        /* equal, repeated, or decided at run time */
        if (from == to || qn_dim_is(from, 1) || (!qn_dim_is_const(from) && from->min <= 1 && from->max >= 1))
            continue;
        return qn_infer_fail(c, "operand 0 is %s; its dim %s can't be repeated to %s", qn_infer_print(c, x),
                             qn_dim_print(from, c->module->arena), qn_dim_print(to, c->module->arena));
    }
    return qn_infer_give(c, x->dtype, rank, dims);
}

/* Symbolic element counts that can't be shown to differ are accepted: exporters say things like [batch*2, n] -> [m, n].
 * A count that saturated says nothing. */
static qn_status reshape(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int rank;
    const qn_dim *dims = qn_attr_dims(c->node, QN_ATTR_DIMS, &rank);
    const qn_type to = { .dtype = x->dtype, .rank = rank, .dims = dims };
    qn_dim before = qn_type_elements_dim(DIMS, x), after = qn_type_elements_dim(DIMS, &to);
    const bool known = !qn_dim_is(before, INT64_MAX) && !qn_dim_is(after, INT64_MAX);
    if (known && !qn_dim_can_be_equal(DIMS, before, after))
        return qn_infer_fail(c, "operand 0 is %s; its elements don't fill %s", qn_infer_print(c, x),
                             qn_infer_print(c, &to));
    return qn_infer_give(c, x->dtype, rank, dims);
}

static qn_status transpose(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int n;
    const int64_t *perm;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_axes(c, QN_ATTR_PERM, x->rank, false, &n, &perm));
    if (n != x->rank)
        return qn_infer_fail(c, "perm has %d entries; expected %d", n, x->rank);
    for (int i = 0; i < n; i++)
        dims[i] = x->dims[perm[i]];
    return qn_infer_give(c, x->dtype, n, dims);
}

static qn_status slice(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dim *start, *limit;
    const int64_t *stride;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_dims(c, QN_ATTR_START, x->rank, &start));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LIMIT, x->rank, &limit));
    QN_TRY(qn_infer_ints(c, QN_ATTR_STRIDE, x->rank, &stride));
    for (int i = 0; i < x->rank; i++) {
        if (stride[i] < 1)
            return qn_infer_fail(c, "stride %lld; expected at least 1", (long long)stride[i]);
        if (start[i]->max < 0 || qn_infer_exceeds(c, start[i], limit[i]) ||
            qn_infer_exceeds(c, limit[i], x->dims[i]))
            return qn_infer_fail(c, "axis %d of %s can't be cut from %s to %s", i, qn_infer_print(c, x),
                                 qn_dim_print(start[i], c->module->arena),
                                 qn_dim_print(limit[i], c->module->arena));
        qn_dim length = qn_dim_sub(DIMS, limit[i], start[i]);
        dims[i] = stride[i] == 1 ? length : qn_dim_ceildiv(DIMS, length, qn_infer_const(c, stride[i]));
    }
    return qn_infer_give(c, x->dtype, x->rank, dims);
}

static qn_status pad(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dim *low, *high;
    const int64_t *interior;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_expect_dtype(c, 1, x->dtype));
    QN_TRY(qn_infer_expect_rank(c, 1, 0));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LOW, x->rank, &low));
    QN_TRY(qn_infer_dims(c, QN_ATTR_HIGH, x->rank, &high));
    QN_TRY(qn_infer_ints(c, QN_ATTR_INTERIOR, x->rank, &interior));
    for (int i = 0; i < x->rank; i++) {
        if (interior[i] < 0 || interior[i] > INT32_MAX)
            return qn_infer_fail(c, "interior %lld; expected 0 to %d", (long long)interior[i], INT32_MAX);
        const qn_dim spread = qn_dim_spread(DIMS, x->dims[i], interior[i] + 1);
        dims[i] = qn_dim_add(DIMS, qn_dim_add(DIMS, spread, low[i]), high[i]);
    }
    return qn_infer_give(c, x->dtype, x->rank, dims);
}

static qn_status concatenate(qn_infer_context *c)
{
    const qn_type *first = qn_infer_operand(c, 0);
    int axis = 0;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, first->rank, &axis));
    for (int i = 0; i < first->rank; i++)
        dims[i] = first->dims[i];
    qn_dim length = first->dims[axis];
    for (int i = 1; i < c->node->n_operands; i++) {
        const qn_type *x = qn_infer_operand(c, i);
        QN_TRY(qn_infer_expect_dtype(c, i, first->dtype));
        QN_TRY(qn_infer_expect_rank(c, i, first->rank));
        dims[axis] = x->dims[axis];
        QN_TRY(qn_infer_expect_dims(c, i, first->rank, dims));
        length = qn_dim_add(DIMS, length, x->dims[axis]);
    }
    dims[axis] = length;
    return qn_infer_give(c, first->dtype, first->rank, dims);
}

static qn_status gather_packed(qn_infer_context *c)
{
    const qn_type *first = qn_infer_operand(c, 0);
    const int last = first->rank - 1;
    int n;
    const int64_t *lanes = qn_attr_ints(c->node, QN_ATTR_LANES, &n);
    qn_dim dims[QN_MAX_RANK];
    if (last < 2 || !qn_dim_is_const(first->dims[last]) || first->dims[last]->value < 1)
        return qn_infer_fail(c, "operand 0 is %s; expected [N, B, spatial…, c]", qn_infer_print(c, first));
    for (int i = 0; i <= last; i++)
        dims[i] = first->dims[i];
    int64_t channels = 0;
    const int64_t in_block = dims[last]->value;
    for (int i = 0; i < c->node->n_operands; i++) {
        const qn_type *x = qn_infer_operand(c, i);
        QN_TRY(qn_infer_expect_dtype(c, i, first->dtype));
        QN_TRY(qn_infer_expect_rank(c, i, first->rank));
        dims[1] = x->dims[1];
        QN_TRY(qn_infer_expect_dims(c, i, first->rank, dims));
        if (!qn_dim_is_const(dims[1]) || dims[1]->value > (INT32_MAX - channels) / in_block)
            return qn_infer_fail(c, "operand %d is %s; expected a number of blocks", i, qn_infer_print(c, x));
        channels += dims[1]->value * in_block;
    }
    if (n % in_block != 0)
        return qn_infer_fail(c, "%d lanes don't fill blocks of %lld", n, (long long)in_block);
    for (int i = 0; i < n; i++)
        if (lanes[i] < -1 || lanes[i] >= channels)
            return qn_infer_fail(c, "lanes has %lld; the operands have %lld", (long long)lanes[i],
                                 (long long)channels);
    dims[1] = qn_infer_const(c, n / in_block);
    return qn_infer_give(c, first->dtype, first->rank, dims);
}

static qn_status reverse(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int n;
    const int64_t *axes;
    QN_TRY(qn_infer_axes(c, QN_ATTR_AXES, x->rank, false, &n, &axes));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status starts(qn_infer_context *c, int first, int rank)
{
    if (c->node->n_operands != first + rank)
        return qn_infer_fail(c, "%d start indices; expected one per axis, %d", c->node->n_operands - first,
                             rank);
    for (int i = first; i < c->node->n_operands; i++) {
        QN_TRY(qn_infer_expect_dtype(c, i, QUERN_I64));
        QN_TRY(qn_infer_expect_rank(c, i, 0));
    }
    return QUERN_OK;
}

static qn_status fits(qn_infer_context *c, const qn_dim *sizes, const qn_type *x)
{
    for (int i = 0; i < x->rank; i++) {
        if (qn_infer_exceeds(c, sizes[i], x->dims[i]))
            return qn_infer_fail(c, "a slice of %s along axis %d doesn't fit into %s",
                                 qn_dim_print(sizes[i], c->module->arena), i, qn_infer_print(c, x));
    }
    return QUERN_OK;
}

static qn_status dynamic_slice(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dim *sizes;
    QN_TRY(starts(c, 1, x->rank));
    QN_TRY(qn_infer_dims(c, QN_ATTR_DIMS, x->rank, &sizes));
    QN_TRY(fits(c, sizes, x));
    return qn_infer_give(c, x->dtype, x->rank, sizes);
}

static qn_status dynamic_update_slice(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *update = qn_infer_operand(c, 1);
    QN_TRY(qn_infer_expect_dtype(c, 1, x->dtype));
    QN_TRY(qn_infer_expect_rank(c, 1, x->rank));
    QN_TRY(starts(c, 2, x->rank));
    QN_TRY(fits(c, update->dims, x));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

/* ---- gather and scatter ---- */

static qn_status gather(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *indices = qn_infer_operand(c, 1);
    int axis = 0, rank = 0;
    qn_dim dims[2 * QN_MAX_RANK];
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    QN_TRY(qn_infer_expect_index(c, 1));
    for (int i = 0; i < axis; i++)
        dims[rank++] = x->dims[i];
    for (int i = 0; i < indices->rank; i++)
        dims[rank++] = indices->dims[i];
    for (int i = axis + 1; i < x->rank; i++)
        dims[rank++] = x->dims[i];
    return qn_infer_give(c, x->dtype, rank, dims);
}

/* indices [batch…, m…, k] into x [batch…, k axes, rest…]: k from the last dim, [batch…, m…, rest…] out */
static qn_status nd_dims(qn_infer_context *c, int batch, int *out_k, int *out_rank, qn_dim *out)
{
    const qn_type *x = qn_infer_operand(c, 0), *indices = qn_infer_operand(c, 1);
    QN_TRY(qn_infer_expect_index(c, 1));
    if (indices->rank <= batch || !qn_dim_is_const(indices->dims[indices->rank - 1]))
        return qn_infer_fail(c, "the indices are %s; expected a constant last dim behind %d batch dims",
                             qn_infer_print(c, indices), batch);
    int64_t k = indices->dims[indices->rank - 1]->value;
    if (k < 0 || k > x->rank - batch)
        return qn_infer_fail(c, "the indices are %s: %lld coordinates for %s", qn_infer_print(c, indices),
                             (long long)k, qn_infer_print(c, x));
    int rank = 0;
    for (int i = 0; i < indices->rank - 1; i++)
        out[rank++] = indices->dims[i];
    for (int i = batch + (int)k; i < x->rank; i++)
        out[rank++] = x->dims[i];
    *out_k = (int)k;
    *out_rank = rank;
    return QUERN_OK;
}

static qn_status gather_nd(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *indices = qn_infer_operand(c, 1);
    int64_t batch = qn_attr_int(c->node, QN_ATTR_BATCH_DIMS);
    int k, rank;
    qn_dim dims[2 * QN_MAX_RANK];
    if (batch < 0 || batch > x->rank || batch >= indices->rank)
        return qn_infer_fail(c, "batch_dims is %lld for %s and %s", (long long)batch, qn_infer_print(c, x),
                             qn_infer_print(c, indices));
    for (int i = 0; i < batch; i++) {
        if (x->dims[i] != indices->dims[i])
            return qn_infer_fail(c, "batch dim %d differs: %s and %s", i, qn_infer_print(c, x),
                                 qn_infer_print(c, indices));
    }
    QN_TRY(nd_dims(c, (int)batch, &k, &rank, dims));
    return qn_infer_give(c, x->dtype, rank, dims);
}

static qn_status scatter_kind(qn_infer_context *c)
{
    const qn_kind kind = qn_attr_reduce_kind(c->node);
    if (kind == QN_MEAN)
        return qn_infer_fail(c, "kind mean does not combine");
    if (qn_infer_operand(c, 0)->dtype == QUERN_BOOL && (kind == QN_SUM || kind == QN_PROD))
        return qn_infer_fail(c, "kind %s does not combine bool elements", qn_kind_names[kind]);
    return QUERN_OK;
}

static qn_status scatter_nd(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int k, rank;
    qn_dim dims[2 * QN_MAX_RANK];
    QN_TRY(scatter_kind(c));
    QN_TRY(nd_dims(c, 0, &k, &rank, dims));
    QN_TRY(qn_infer_expect_dtype(c, 2, x->dtype));
    QN_TRY(qn_infer_expect_dims(c, 2, rank, dims));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

/* indices (and updates) have x's rank; off the axis their dims don't exceed x's */
static qn_status elements(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *indices = qn_infer_operand(c, 1);
    int axis = 0;
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    QN_TRY(qn_infer_expect_index(c, 1));
    QN_TRY(qn_infer_expect_rank(c, 1, x->rank));
    for (int i = 0; i < x->rank; i++) {
        if (i != axis && qn_infer_exceeds(c, indices->dims[i], x->dims[i]))
            return qn_infer_fail(c, "the indices %s are larger than %s along axis %d",
                                 qn_infer_print(c, indices), qn_infer_print(c, x), i);
    }
    if (c->node->op == QN_OP_GATHER_ELEMENTS)
        return qn_infer_give(c, x->dtype, x->rank, indices->dims);
    QN_TRY(scatter_kind(c));
    QN_TRY(qn_infer_expect_dtype(c, 2, x->dtype));
    QN_TRY(qn_infer_expect_dims(c, 2, x->rank, indices->dims));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

qn_infer_rule qn_infer_movement(qn_op op)
{
    switch (op) {
    case QN_OP_BROADCAST: return broadcast;
    case QN_OP_RESHAPE: return reshape;
    case QN_OP_TRANSPOSE: return transpose;
    case QN_OP_SLICE: return slice;
    case QN_OP_PAD: return pad;
    case QN_OP_CONCATENATE: return concatenate;
    case QN_OP_GATHER_PACKED: return gather_packed;
    case QN_OP_REVERSE: return reverse;
    case QN_OP_DYNAMIC_SLICE: return dynamic_slice;
    case QN_OP_DYNAMIC_UPDATE_SLICE: return dynamic_update_slice;
    case QN_OP_GATHER: return gather;
    case QN_OP_GATHER_ND: return gather_nd;
    case QN_OP_SCATTER_ND: return scatter_nd;
    case QN_OP_GATHER_ELEMENTS:
    case QN_OP_SCATTER_ELEMENTS: return elements;
    default: return NULL;
    }
}
