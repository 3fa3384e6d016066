/* Builders of collectives. */
#include "ir/build_internal.h"

static qn_value *build(qn_builder *b, qn_op op, qn_value *x, const qn_kind *kind, qn_attr_key key,
                       int64_t number)
{
    qn_attr_list list = { 0 };
    if (kind)
        qn_attrs_int(&list, QN_ATTR_KIND, *kind);
    if (key != QN_N_ATTRS)
        qn_attrs_int(&list, key, number);
    return qn_build(b, op, 1, &x, &list);
}

qn_value *qn_b_all_reduce(qn_builder *b, qn_kind kind, qn_value *x)
{
    return build(b, QN_OP_ALL_REDUCE, x, &kind, QN_N_ATTRS, 0);
}

qn_value *qn_b_all_gather(qn_builder *b, qn_value *x, int64_t ranks)
{
    return build(b, QN_OP_ALL_GATHER, x, NULL, QN_ATTR_RANKS, ranks);
}

qn_value *qn_b_reduce_scatter(qn_builder *b, qn_kind kind, qn_value *x, int64_t ranks)
{
    return build(b, QN_OP_REDUCE_SCATTER, x, &kind, QN_ATTR_RANKS, ranks);
}

qn_value *qn_b_broadcast_rank(qn_builder *b, qn_value *x, int64_t root)
{
    return build(b, QN_OP_BROADCAST_RANK, x, NULL, QN_ATTR_ROOT, root);
}

qn_value *qn_b_rank(qn_builder *b)
{
    return qn_build(b, QN_OP_RANK, 0, NULL, NULL);
}
