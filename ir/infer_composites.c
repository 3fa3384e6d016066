/* Type rules of composites. */
#include "ir/infer_rules.h"

#define DIMS (c->module->dims)

static qn_status softmax(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int axis = 0;
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status norm(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int axis = 0;
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    for (int i = 1; i < c->node->n_operands; i++) {
        QN_TRY(qn_infer_expect_dims(c, i, x->rank - axis, x->dims + axis));
        if (!qn_dtype_is_float(qn_infer_operand(c, i)->dtype))
            return qn_infer_fail(c, "operand %d is %s; expected floats", i,
                                 qn_infer_print(c, qn_infer_operand(c, i)));
    }
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

/* Query heads over key heads, and the mask of [batch, heads, queries, keys], which is operand `at`. */
static qn_status heads_and_mask(qn_infer_context *c, int at, qn_dim groups, qn_dim keys)
{
    const qn_type *q = qn_infer_operand(c, 0);
    qn_dim heads = q->dims[1];
    if (heads != groups && (qn_dim_is(groups, 0) || !qn_dim_is(qn_dim_mod(DIMS, heads, groups), 0)))
        return qn_infer_fail(c, "%s query heads don't divide over %s key heads",
                             qn_dim_print(heads, c->module->arena), qn_dim_print(groups, c->module->arena));
    if (c->node->n_operands <= at)
        return QUERN_OK;
    const qn_type *mask = qn_infer_operand(c, at);
    qn_dim full[4] = { q->dims[0], heads, q->dims[2], keys };
    QN_TRY(qn_infer_expect_rank(c, at, 4));
    if (mask->dtype != QUERN_BOOL)
        QN_TRY(qn_infer_expect_dtype(c, at, q->dtype));
    for (int i = 0; i < 4; i++) {
        if (!qn_dim_is(mask->dims[i], 1) && mask->dims[i] != full[i])
            return qn_infer_fail(
                c, "the mask is %s; expected 1 or the dim of [batch, heads, queries, keys] on each axis",
                qn_infer_print(c, mask));
    }
    return QUERN_OK;
}

/* Operand 0 is [N, C, …], and the others floats [C]. */
static qn_status for_channels(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    if (x->rank < 2)
        return qn_infer_fail(c, "operand 0 is %s; expected [batch, channels, …]", qn_infer_print(c, x));
    for (int i = 1; i < c->node->n_operands; i++) {
        QN_TRY(qn_infer_expect_dims(c, i, 1, x->dims + 1));
        if (!qn_dtype_is_float(qn_infer_operand(c, i)->dtype))
            return qn_infer_fail(c, "operand %d is %s; expected floats", i,
                                 qn_infer_print(c, qn_infer_operand(c, i)));
    }
    return QUERN_OK;
}

static qn_status group_norm(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const int64_t groups = qn_attr_int(c->node, QN_ATTR_GROUPS);
    QN_TRY(for_channels(c));
    /* a symbol that doesn't divide is found when it runs, by the body's reshape */
    const qn_dim channels = x->dims[1];
    if (groups < 1 || (qn_dim_is_const(channels) && channels->value % groups))
        return qn_infer_fail(c, "%s channels don't divide into %lld groups",
                             qn_dim_print(channels, c->module->arena), (long long)groups);
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status batch_norm(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    QN_TRY(for_channels(c));
    QN_TRY(qn_infer_give(c, x->dtype, x->rank, x->dims));
    QN_TRY(qn_infer_give(c, qn_infer_operand(c, 3)->dtype, 1, x->dims + 1));
    return qn_infer_give(c, qn_infer_operand(c, 4)->dtype, 1, x->dims + 1);
}

static qn_status dropout(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dim two = qn_infer_const(c, 2);
    const double ratio = qn_attr_float(c->node, QN_ATTR_RATIO);
    if (!(ratio >= 0 && ratio <= 1))
        return qn_infer_fail(c, "ratio is %g; expected 0 to 1", ratio);
    QN_TRY(qn_infer_expect_dims(c, 1, 1, &two));
    QN_TRY(qn_infer_expect_dtype(c, 1, QUERN_U64));
    QN_TRY(qn_infer_expect_dtype(c, 2, QUERN_U64));
    QN_TRY(qn_infer_expect_rank(c, 2, 0));
    QN_TRY(qn_infer_give(c, x->dtype, x->rank, x->dims));
    return qn_infer_give(c, QUERN_BOOL, x->rank, x->dims);
}

static qn_status attention(qn_infer_context *c)
{
    const bool grad = c->node->op == QN_OP_ATTENTION_GRAD;
    const qn_type *q = qn_infer_operand(c, 0), *k = qn_infer_operand(c, 1), *v = qn_infer_operand(c, 2);
    for (int i = 0; i < 3 + grad; i++) {
        QN_TRY(qn_infer_expect_rank(c, i, 4));
        QN_TRY(qn_infer_expect_dtype(c, i, q->dtype));
    }
    qn_dim k_dims[4] = { q->dims[0], k->dims[1], k->dims[2], q->dims[3] };
    qn_dim v_dims[4] = { q->dims[0], k->dims[1], k->dims[2], v->dims[3] };
    QN_TRY(qn_infer_expect_dims(c, 1, 4, k_dims));
    QN_TRY(qn_infer_expect_dims(c, 2, 4, v_dims));
    QN_TRY(heads_and_mask(c, 3 + grad, k->dims[1], k->dims[2]));
    qn_dim dims[4] = { q->dims[0], q->dims[1], q->dims[2], v->dims[3] };
    if (!grad)
        return qn_infer_give(c, q->dtype, 4, dims);
    QN_TRY(qn_infer_expect_dims(c, 3, 4, dims));
    QN_TRY(qn_infer_give(c, q->dtype, 4, q->dims));
    QN_TRY(qn_infer_give(c, q->dtype, 4, k_dims));
    return qn_infer_give(c, q->dtype, 4, v_dims);
}

static qn_status attention_packed(qn_infer_context *c)
{
    const qn_type *q = qn_infer_operand(c, 0), *k = qn_infer_operand(c, 1), *v = qn_infer_operand(c, 2);
    for (int i = 0; i < 3; i++) {
        QN_TRY(qn_infer_expect_rank(c, i, i == 1 ? 5 : 4));
        QN_TRY(qn_infer_expect_dtype(c, i, q->dtype));
    }
    int n_columns;
    const qn_dim *columns = qn_attr_dims(c->node, QN_ATTR_DIMS, &n_columns), width = k->dims[4];
    if (n_columns != 1 || columns[0]->max > v->dims[3]->min)
        return qn_infer_fail(c, "dims is not how many of the %s columns of v there are",
                             qn_dim_print(v->dims[3], c->module->arena));
    qn_dim k_dims[5] = { q->dims[0], k->dims[1], k->dims[2], q->dims[3], width };
    qn_dim v_dims[4] = { q->dims[0], k->dims[1], v->dims[2], v->dims[3] };
    QN_TRY(qn_infer_expect_dims(c, 1, 5, k_dims));
    QN_TRY(qn_infer_expect_dims(c, 2, 4, v_dims));
    if (width->min < 1 || k->dims[2] != qn_dim_ceildiv(DIMS, v->dims[2], width))
        return qn_infer_fail(c, "the panels of k, %s, don't hold the %s keys of v", qn_infer_print(c, k),
                             qn_dim_print(v->dims[2], c->module->arena));
    QN_TRY(heads_and_mask(c, 3, k->dims[1], v->dims[2]));
    const bool heads_last = qn_attr_bool(c->node, QN_ATTR_HEADS_LAST);
    qn_dim dims[4] = { q->dims[0], q->dims[heads_last ? 2 : 1], q->dims[heads_last ? 1 : 2], columns[0] };
    return qn_infer_give(c, q->dtype, 4, dims);
}

static qn_status cross_entropy(qn_infer_context *c)
{
    const qn_type *logits = qn_infer_operand(c, 0);
    QN_TRY(qn_infer_expect_rank(c, 0, 2));
    QN_TRY(qn_infer_expect_dtype(c, 1, QUERN_I64));
    QN_TRY(qn_infer_expect_dims(c, 1, 1, logits->dims));
    return qn_infer_give(c, QUERN_F32, 1, logits->dims);
}

static qn_status lstm(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *h0 = qn_infer_operand(c, 4);
    QN_TRY(qn_infer_expect_rank(c, 0, 3));
    QN_TRY(qn_infer_expect_rank(c, 4, 2));
    for (int i = 1; i < 6; i++)
        QN_TRY(qn_infer_expect_dtype(c, i, x->dtype));
    qn_dim batch = x->dims[1], hidden = h0->dims[1], gates = qn_dim_mul(DIMS, hidden, qn_infer_const(c, 4));
    qn_dim w[2] = { gates, x->dims[2] }, r[2] = { gates, hidden }, state[2] = { batch, hidden };
    QN_TRY(qn_infer_expect_dims(c, 1, 2, w));
    QN_TRY(qn_infer_expect_dims(c, 2, 2, r));
    QN_TRY(qn_infer_expect_dims(c, 3, 1, &gates));
    QN_TRY(qn_infer_expect_dims(c, 4, 2, state));
    QN_TRY(qn_infer_expect_dims(c, 5, 2, state));
    qn_dim y[3] = { x->dims[0], batch, hidden };
    QN_TRY(qn_infer_give(c, x->dtype, 3, y));
    QN_TRY(qn_infer_give(c, x->dtype, 2, state));
    return qn_infer_give(c, x->dtype, 2, state);
}

qn_infer_rule qn_infer_composite(qn_op op)
{
    switch (op) {
    case QN_OP_SOFTMAX:
    case QN_OP_LOG_SOFTMAX: return softmax;
    case QN_OP_LAYER_NORM:
    case QN_OP_RMS_NORM: return norm;
    case QN_OP_GROUP_NORM: return group_norm;
    case QN_OP_BATCH_NORM: return batch_norm;
    case QN_OP_DROPOUT: return dropout;
    case QN_OP_ATTENTION:
    case QN_OP_ATTENTION_GRAD: return attention;
    case QN_OP_ATTENTION_PACKED: return attention_packed;
    case QN_OP_CROSS_ENTROPY: return cross_entropy;
    case QN_OP_LSTM: return lstm;
    default: return NULL;
    }
}
