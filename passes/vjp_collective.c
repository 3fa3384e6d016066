/* Derivatives of collectives. What is differentiated is the sum of all ranks' losses: the adjoint on a rank is the derivative
 * of that sum by what this rank has. Each rank runs the same graph, so that collectives of adjoints meet.
 *
 *   y = sum of x over ranks     the adjoint of x is that of y, summed over ranks
 *   y = x of all ranks          … the sum of all ranks' adjoints for this rank's part: reduce_scatter
 */
#include "passes/vjp.h"

/* Where this rank's x is the extreme `most`: the gradient g, shared by the ranks that have it. */
static qn_value *extreme(qn_vjp *v, qn_value *x, qn_value *most, qn_value *g)
{
    qn_value *mask = qn_b_convert(&v->b, x->type.dtype, qn_b_compare(&v->b, QN_EQ, x, most));
    qn_value *count = qn_b_all_reduce(&v->b, QN_SUM, mask);
    return qn_vjp_mul(v, mask, qn_vjp_div(v, g, count));
}

static qn_status all_reduce(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const qn_kind kind = qn_attr_reduce_kind(node);
    if (kind == QN_SUM || kind == QN_MEAN) {
        qn_vjp_add(v, node, 0, qn_b_all_reduce(&v->b, kind, g[0]));
        return QUERN_OK;
    }
    qn_vjp_add(v, node, 0,
               extreme(v, node->operands[0], &node->results[0], qn_b_all_reduce(&v->b, QN_SUM, g[0])));
    return QUERN_OK;
}

static qn_status all_gather(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, qn_b_reduce_scatter(&v->b, QN_SUM, g[0], qn_attr_int(node, QN_ATTR_RANKS)));
    return QUERN_OK;
}

static qn_status reduce_scatter(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const qn_kind kind = qn_attr_reduce_kind(node);
    const int64_t ranks = qn_attr_int(node, QN_ATTR_RANKS);
    qn_value *all = qn_b_all_gather(&v->b, g[0], ranks);
    if (kind == QN_MEAN)
        all = qn_b_binary_scalar(&v->b, QN_OP_DIV, all, (double)ranks);
    else if (kind != QN_SUM)
        all = extreme(v, node->operands[0], qn_b_all_gather(&v->b, &node->results[0], ranks), all);
    qn_vjp_add(v, node, 0, all);
    return QUERN_OK;
}

/* All of it goes to the root. */
static qn_status broadcast_rank(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *sum = qn_b_all_reduce(&v->b, QN_SUM, g[0]);
    qn_value *here = qn_b_compare(&v->b, QN_EQ, qn_b_rank(&v->b),
                                  qn_b_scalar_int(&v->b, QUERN_I64, qn_attr_int(node, QN_ATTR_ROOT)));
    const qn_type *type = &node->operands[0]->type;
    here = qn_b_broadcast_to(&v->b, here, type->rank, type->dims);
    qn_vjp_add(v, node, 0, qn_b_select(&v->b, here, sum, qn_vjp_zeros_like(v, node->operands[0])));
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_collective(qn_op op)
{
    switch (op) {
    case QN_OP_ALL_REDUCE: return all_reduce;
    case QN_OP_ALL_GATHER: return all_gather;
    case QN_OP_REDUCE_SCATTER: return reduce_scatter;
    case QN_OP_BROADCAST_RANK: return broadcast_rank;
    default: return NULL;
    }
}
