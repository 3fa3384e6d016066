/* Evaluates what is known: nodes whose operands are all constants become constants.
 *
 * Before: any graph. After: no node with a single result has only constant operands (or also broadcasts of constants, as
 * in weights times a scale for each channel), except where its result would be large without need: broadcasts, iota and
 * random bits stay as they are, since a kernel makes them for free, and a result may not be larger than LARGE bytes and
 * four times its operands (padding of weights and filters for Winograd stay below that). A column of a wide table stays too
 * where everything that reads it computes with what isn't known: kernels read many columns from one place rather than each
 * from its own. A result of no elements (a batch of 0) becomes a constant whatever its operands are.
 *
 * Values of dimension expressions that turned out constant become constants too. What is evaluated with is
 * options->fold (the reference interpreter); without it nothing is folded.
 *
 *   %0 = constant 2.0 : f32[]
 *   %1 = sqrt %0            -> constant 1.41421354 : f32[]
 */
#include "passes/passes.h"

enum {
    LARGE = 1 << 16,
    WIDE = 8 /* columns */
};

/* The constant that a broadcast repeats, or a reshape of one (scales for blocks), or NULL. */
static const qn_tensor *repeated(const qn_value *value)
{
    if (value->node && value->node->op == QN_OP_RESHAPE && qn_type_is_static(&value->type))
        value = qn_value_resolve(value->node->operands[0]);
    const qn_node *node = value->node;
    return node && node->op == QN_OP_BROADCAST && qn_type_is_static(&value->type)
               ? qn_value_constant(qn_value_resolve(node->operands[0]))
               : NULL;
}

static bool is_column(const qn_node *node)
{
    if (node->op != QN_OP_SLICE || !qn_value_constant(node->operands[0]))
        return false;
    const qn_type *from = &node->operands[0]->type, *to = &node->results[0].type;
    const int last = from->rank - 1;
    bool column = last >= 1 && qn_dim_is(to->dims[last], 1) && from->dims[last]->value >= WIDE;
    for (int i = 0; i < last && column; i++)
        column = to->dims[i] == from->dims[i];
    return column;
}

/* The node that a value is moved from, by what keeps a constant one. */
static qn_node *moved_from(const qn_value *value)
{
    qn_node *node = value->node;
    while (node && (node->op == QN_OP_BROADCAST || node->op == QN_OP_RESHAPE))
        node = node->operands[0]->node;
    return node;
}

/* Notes which columns are to be folded (in their node's `user`): those that something reads which may become known, or which
 * wants whole values. */
static void want_columns(qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        node->user = NULL;
    QN_FOR_NODES (graph, node) {
        const qn_op_class class = qn_ops[node->op].class;
        bool known = true;
        if (node->op == QN_OP_BROADCAST || node->op == QN_OP_RESHAPE)
            continue;
        for (int i = 0; i < node->n_operands && known; i++) {
            const qn_node *from = moved_from(node->operands[i]);
            known = from && (from->op == QN_OP_CONSTANT || is_column(from));
        }
        if (!known && (class == QN_ELEMENTWISE || class == QN_INJECTIVE))
            continue;
        for (int i = 0; i < node->n_operands; i++) {
            qn_node *from = moved_from(node->operands[i]);
            if (from)
                from->user = from;
        }
    }
    for (int i = 0; i < graph->n_outputs; i++) {
        qn_node *from = moved_from(graph->outputs[i]);
        if (from)
            from->user = from;
    }
}

static bool foldable(const qn_node *node)
{
    if (node->n_results != 1 || node->n_regions > 0 || !qn_type_is_static(&node->results[0].type))
        return false;
    switch (node->op) {
    case QN_OP_CONSTANT:
    case QN_OP_IOTA:
    case QN_OP_BROADCAST:
    case QN_OP_RANDOM_BITS: return false;
    case QN_OP_DIM_VALUE: return qn_dim_is_const(qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0]);
    default: break;
    }
    if (!node->user && is_column(node))
        return false;
    if (qn_ops[node->op].class == QN_CONTROL || (qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)))
        return false;
    int64_t operand_bytes = 0;
    bool any_constant = node->n_operands == 0;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_tensor *constant = qn_value_constant(node->operands[i]);
        any_constant = any_constant || constant;
        constant = constant ? constant : repeated(node->operands[i]);
        if (!constant)
            return false;
        operand_bytes += (int64_t)constant->bytes;
    }
    if (!any_constant)
        return false;
    const qn_type *type = &node->results[0].type;
    const int64_t bytes = qn_type_elements(type) * (int64_t)qn_dtype_bytes(type->dtype);
    const int64_t growth = node->op == QN_OP_PAD ? QN_FOLD_PAD_GROWTH : 4;
    return bytes <= LARGE || bytes / growth <= operand_bytes;
}

/* Whatever its operands are, there is nothing to compute: templates need not think of it. But that a reshape's operand has no
 * elements either is checked when it runs. */
static bool is_empty(const qn_node *node)
{
    if (node->op == QN_OP_RESHAPE &&
        !qn_dim_is(qn_type_elements_dim(node->graph->module->dims, &node->operands[0]->type), 0))
        return false;
    return node->op != QN_OP_CONSTANT && node->n_results == 1 && node->n_regions == 0 &&
           qn_ops[node->op].class != QN_CONTROL &&
           !(qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)) &&
           qn_type_is_static(&node->results[0].type) && qn_type_elements(&node->results[0].type) == 0;
}

static const qn_tensor *empty(const qn_graph *graph, const qn_type *type)
{
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < type->rank; i++)
        dims[i] = type->dims[i]->value;
    return qn_tensor_new(graph->module, type->dtype, type->rank, dims, NULL);
}

bool qn_is_known(const qn_value *value)
{
    const qn_node *node = value->node;
    if (!node || (node->op != QN_OP_CONSTANT && node->op != QN_OP_MUL && node->op != QN_OP_ADD &&
                  node->op != QN_OP_RESHAPE && node->op != QN_OP_BROADCAST && node->op != QN_OP_SLICE &&
                  node->op != QN_OP_PAD))
        return false;
    for (int i = 0; i < node->n_operands; i++)
        if (!qn_is_known(node->operands[i]))
            return false;
    return true;
}

static bool fold_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    bool changed = false;
    QN_FOR_NODES (graph, node)
        qn_node_resolve(node);
    want_columns(graph);
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        for (int i = 0; i < node->n_regions; i++)
            changed |= fold_graph(node->regions[i], options, diags);
        const qn_tensor *tensor = is_empty(node)   ? empty(graph, &node->results[0].type)
                                  : foldable(node) ? options->fold(node, options->folder)
                                                   : NULL;
        if (!tensor)
            continue;
        const qn_attr value = { .key = QN_ATTR_VALUE, .tensor = tensor };
        qn_node *constant =
            qn_node_new(graph, node, QN_OP_CONSTANT, 0, NULL, 1, &value, 0, NULL, &node->loc, diags);
        if (!constant)
            return changed;
        qn_value_replace(&node->results[0], &constant->results[0]);
        qn_node_remove(node);
        changed = true;
    }
    return changed;
}

qn_status qn_pass_fold(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    *out_changed = false;
    if (!options->fold)
        return QUERN_OK;
    const int errors = diags->n_errors;
    *out_changed = fold_graph(graph, options, diags);
    if (*out_changed)
        qn_graph_resolve(graph);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
