#include "driver/flops.h"

static double extent(const qn_type *type, int axis)
{
    return (double)type->dims[axis]->value;
}

static double elements(const qn_type *type)
{
    return (double)qn_type_elements(type);
}

/* Multiply-adds of a node that is counted, 0 of others. */
static double multiply_adds(const qn_node *node)
{
    if (node->n_operands < 2)
        return 0;
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    switch (node->op) {
    case QN_OP_DOT_GENERAL: {
        int n;
        const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n);
        double depth = 1;
        for (int i = 0; i < n; i++)
            depth *= extent(x, (int)axes[i]);
        return depth * elements(&node->results[0].type);
    }
    case QN_OP_CONVOLUTION:
        return elements(w) == 0 ? 0 : elements(w) / extent(w, 0) * elements(&node->results[0].type);
    case QN_OP_ATTENTION_GRAD: /* the scores, the gradients of q and k; those of v and of the weights */
        return (3 * elements(x) + 2 * elements(&node->operands[3]->type)) * extent(w, 2);
    case QN_OP_ATTENTION: /* q k^T, and the weights times v */
        return (elements(x) + elements(&node->results[0].type)) * extent(w, 2);
    case QN_OP_LSTM: /* each step: inputs and states times the weights of four gates */
        return extent(x, 0) * extent(x, 1) * (elements(w) + elements(&node->operands[2]->type));
    default: return 0;
    }
}

static bool is_static(const qn_node *node)
{
    bool all = true;
    for (int i = 0; i < node->n_operands; i++)
        all &= qn_type_is_static(&node->operands[i]->type);
    for (int i = 0; i < node->n_results; i++)
        all &= qn_type_is_static(&node->results[i].type);
    return all;
}

bool qn_count_flops(const qn_graph *graph, double times, double *total)
{
    QN_FOR_NODES (graph, node) {
        double inside = times;
        if (node->op == QN_OP_SCAN && qn_dim_is_const(qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0]))
            inside *= (double)qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0]->value;
        else if (node->op == QN_OP_SCAN || node->op == QN_OP_WHILE)
            return false;
        for (int i = 0; i < node->n_regions; i++)
            if (!qn_count_flops(node->regions[i], inside, total))
                return false;
        bool counted = qn_ops[node->op].class == QN_CONTRACTION || node->op == QN_OP_ATTENTION ||
                       node->op == QN_OP_ATTENTION_GRAD || node->op == QN_OP_LSTM;
        if (counted && !is_static(node))
            return false;
        if (counted)
            *total += 2 * times * multiply_adds(node);
    }
    return true;
}
