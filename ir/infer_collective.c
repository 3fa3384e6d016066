/* Type rules of collectives. */
#include "ir/infer_rules.h"

static qn_status check_kind(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_kind kind = qn_attr_reduce_kind(c->node);
    const bool extreme = kind == QN_KIND_MAX || kind == QN_KIND_MIN;
    if (kind != QN_SUM && kind != QN_MEAN && !extreme)
        return qn_infer_fail(c, "kind is %s; expected sum, mean, max or min", qn_kind_names[kind]);
    if ((x->dtype == QUERN_BOOL && !extreme) || (kind == QN_MEAN && !qn_dtype_is_float(x->dtype)))
        return qn_infer_fail(c, "kind %s does not combine %s", qn_kind_names[kind], qn_infer_print(c, x));
    return QUERN_OK;
}

static qn_status check_ranks(qn_infer_context *c, int64_t *out)
{
    *out = qn_attr_int(c->node, QN_ATTR_RANKS);
    if (*out < 1 || *out > INT32_MAX)
        return qn_infer_fail(c, "ranks is %lld; expected at least 1", (long long)*out);
    if (qn_infer_operand(c, 0)->rank == 0)
        return qn_infer_fail(c, "a scalar has no axis 0");
    return QUERN_OK;
}

/* The operand's type with another extent of axis 0. */
static qn_status give_with(qn_infer_context *c, qn_dim first)
{
    const qn_type *x = qn_infer_operand(c, 0);
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < x->rank; i++)
        dims[i] = i ? x->dims[i] : first;
    return qn_infer_give(c, x->dtype, x->rank, dims);
}

static qn_status all_reduce(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    QN_TRY(check_kind(c));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status all_gather(qn_infer_context *c)
{
    int64_t ranks;
    QN_TRY(check_ranks(c, &ranks));
    return give_with(c,
                     qn_dim_mul(c->module->dims, qn_infer_operand(c, 0)->dims[0], qn_infer_const(c, ranks)));
}

static qn_status reduce_scatter(qn_infer_context *c)
{
    int64_t ranks;
    QN_TRY(check_kind(c));
    QN_TRY(check_ranks(c, &ranks));
    const qn_dim all = qn_infer_operand(c, 0)->dims[0];
    if (!qn_dim_divisible(all, ranks))
        return qn_infer_fail(c, "axis 0 of %s is no multiple of %lld ranks",
                             qn_infer_print(c, qn_infer_operand(c, 0)), (long long)ranks);
    return give_with(c, qn_dim_floordiv(c->module->dims, all, qn_infer_const(c, ranks)));
}

static qn_status broadcast_rank(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const int64_t root = qn_attr_int(c->node, QN_ATTR_ROOT);
    if (root < 0 || root >= INT32_MAX)
        return qn_infer_fail(c, "root is %lld; expected the number of a rank, from 0 up", (long long)root);
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status rank(qn_infer_context *c)
{
    return qn_infer_give(c, QUERN_I64, 0, NULL);
}

qn_infer_rule qn_infer_collective(qn_op op)
{
    switch (op) {
    case QN_OP_ALL_REDUCE: return all_reduce;
    case QN_OP_ALL_GATHER: return all_gather;
    case QN_OP_REDUCE_SCATTER: return reduce_scatter;
    case QN_OP_BROADCAST_RANK: return broadcast_rank;
    case QN_OP_RANK: return rank;
    default: return NULL;
    }
}
