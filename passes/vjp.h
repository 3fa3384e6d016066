/* What the rules of automatic differentiation see. A rule gets a node and the adjoints of its results and adds to the
 * adjoints of its operands. One rule per op, in vjp_*.c by family; a NULL adjoint is a symbolic zero.
 *
 * Rules build after everything there is, so they may use the node's operands and results. They only run for nodes that
 * lie between a differentiated value and the loss, and need not care which operands are wanted: what nobody
 * reads is removed. An operand that cannot be differentiated (integers, indices) simply gets nothing. */
#ifndef QN_PASSES_VJP_H
#define QN_PASSES_VJP_H

#include "ir/build.h"

typedef struct qn_vjp {
    qn_builder b;
    qn_value **adjoints; /* by value id */
    bool *active;        /* by value id: depends on a differentiated value */
    int n_values;        /* ids below it have an entry in adjoints and active */
} qn_vjp;

/* Adds `gradient` (NULL: nothing) to the adjoint of operand `i` of the node, when that is active and a float. */
void qn_vjp_add(qn_vjp *v, const qn_node *node, int i, qn_value *gradient);
static inline bool qn_vjp_wants(const qn_vjp *v, const qn_node *node, int i)
{
    return v->active[node->operands[i]->id] && qn_dtype_is_float(node->operands[i]->type.dtype);
}

/* `g` holds the adjoints of the node's results. Gives a status after reporting when this node has no derivative. */
typedef qn_status (*qn_vjp_rule)(qn_vjp *v, qn_node *node, qn_value *const *g);

/* By family; NULL for an op that is not of the family or has no rule. */
qn_vjp_rule qn_vjp_elementwise(qn_op op);
qn_vjp_rule qn_vjp_movement(qn_op op);
qn_vjp_rule qn_vjp_reduction(qn_op op);
qn_vjp_rule qn_vjp_contraction(qn_op op);
qn_vjp_rule qn_vjp_control(qn_op op);
qn_vjp_rule qn_vjp_composite(qn_op op);
qn_vjp_rule qn_vjp_collective(qn_op op);

/* A report that node cannot be differentiated, because … */
qn_status qn_vjp_refuse(qn_vjp *v, const qn_node *node, const char *reason);

/* vjp_expand.c: before the walk, says a node without a rule by other nodes before it; false: it stays. */
bool qn_vjp_expand(qn_node *node, bool has_rule, qn_value **out_results, qn_diags *diags);

/* vjp_conv_symbolic.c: of a convolution over spatial extents that are symbols. */
qn_status qn_vjp_convolution_symbolic(qn_vjp *v, qn_node *node, qn_value *g);
/* vjp_contract.c: g, spread by the stride, against the flipped kernel with channels exchanged: the gradient of x, with this padding.
 * In phases where these are few, if x is not spread. */
qn_value *qn_vjp_convolution_back(qn_vjp *v, const qn_node *node, const int64_t *low, const int64_t *high,
                                  qn_value *g);

/* ---- windows taken apart: of reduce_window and select_and_scatter (vjp_expand.c) ---- */

#define QN_VJP_MAX_WINDOW 1024                   /* positions; larger windows are not taken apart */
int64_t qn_vjp_window_size(const qn_node *node); /* positions in a window, -1: too many */
/* x with `outside` where the window reaches beyond it. */
qn_value *qn_vjp_window_padded(qn_builder *b, const qn_node *node, qn_value *x, double outside);
/* Of what is padded, the element at the position (row-major) of each window; windows: the type with one element for each. */
qn_value *qn_vjp_window_slice(qn_builder *b, const qn_node *node, qn_value *padded, const qn_type *windows,
                              int64_t position);

/* ---- shorthands ---- */

static inline qn_value *qn_vjp_zeros_like(qn_vjp *v, const qn_value *x)
{
    return qn_b_full(&v->b, &x->type, 0);
}
static inline qn_value *qn_vjp_neg(qn_vjp *v, qn_value *x)
{
    return qn_b_unary(&v->b, QN_OP_NEG, x);
}
static inline qn_value *qn_vjp_mul(qn_vjp *v, qn_value *x, qn_value *y)
{
    return qn_b_binary(&v->b, QN_OP_MUL, x, y);
}
static inline qn_value *qn_vjp_sub(qn_vjp *v, qn_value *x, qn_value *y)
{
    return qn_b_binary(&v->b, QN_OP_SUB, x, y);
}
static inline qn_value *qn_vjp_div(qn_vjp *v, qn_value *x, qn_value *y)
{
    return qn_b_binary(&v->b, QN_OP_DIV, x, y);
}

/* A reduced value (axes gone) back to the dims of `like`: reshape with ones, then broadcast. */
qn_value *qn_vjp_unreduce(qn_vjp *v, qn_value *reduced, const qn_value *like, int n_axes,
                          const int64_t *axes);

#endif
