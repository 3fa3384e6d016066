/* The graph passes' entry points, as passes/pipeline.def lists them, and what they share. */
#ifndef QN_PASSES_PASSES_H
#define QN_PASSES_PASSES_H

#include "passes/pass.h"

#define QN_PASS(name, help)                                                                      \
    qn_status qn_pass_##name(qn_graph *graph, const qn_pass_options *options, bool *out_changed, \
                             qn_diags *diags);
#include "passes/pipeline.def"

/* `value` in every element: a constant whose elements are all the same, or a broadcast or reshape of one. */
bool qn_value_splat(const qn_value *value, qn_scalar *out_scalar);

/* Follows forwards in the operands of one node: for passes that look at nodes while they replace values. */
static inline void qn_node_resolve(qn_node *node)
{
    for (int i = 0; i < node->n_operands; i++)
        while (node->operands[i]->forward)
            node->operands[i] = node->operands[i]->forward;
}

/* Where a value is in memory: reshapes are the same memory. */
static inline qn_value *qn_value_memory(qn_value *value)
{
    while (value->node && value->node->op == QN_OP_RESHAPE)
        value = value->node->operands[0];
    return value;
}

/* passes/cost.c: roughly how many vector instructions an element of its result costs; 0: data movement. */
int qn_node_cost(const qn_node *node);
int qn_op_cost(qn_op op, qn_dtype dtype); /* of a result of that dtype */

/* passes/order.c: groups of a graph that is numbered, in an order in which they can run, which is changed. */
void qn_order_groups(const qn_graph *graph, qn_groups *groups);

/* passes/fold.c: is it made of constants by products, sums and data movement, so that fold will make one constant of it? */
bool qn_is_known(const qn_value *value);

/* passes/condense.c: the sampled constants of products for which `which` is true are panels of float32 again. How many. */
int qn_expand_sampled(qn_graph *graph, bool (*which)(const qn_tensor *tensor, void *user), void *user);

/* passes/prune.c: removes what is dead, and what nobody reads of loops and branches: results, carried values, operands. True when
 * something went. */
bool qn_prune(qn_graph *graph, qn_diags *diags);

/* passes/sink.c: number of the first operand that the regions capture, which is the same in every step of a loop. */
int qn_first_captured(const qn_node *node);

/* passes/expand.c: says `node` in other ops before it; results in out_results. False: nothing to expand. */
bool qn_expand_node(qn_node *node, qn_value **out_results, qn_diags *diags);

#endif
