/* Moves constants that regions capture into the regions, so that what is done to them there (packing weights) is done at
 * compile time.
 *
 * Before: %w = constant …                    After: %h = scan %0 {…}
 *         %h = scan %0, %w {…}                        body (%a: …) {
 *           body (%a: …, %b: …) {                       %b = constant …
 */
#include "ir/build.h"
#include "passes/passes.h"

int qn_first_captured(const qn_node *node)
{
    switch (node->op) {
    case QN_OP_IF: return 1;
    case QN_OP_WHILE: return (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    case QN_OP_SCAN:
        return (int)(qn_attr_int(node, QN_ATTR_N_CARRIED) + qn_attr_int(node, QN_ATTR_N_SCANNED));
    default: return node->n_operands;
    }
}

static bool sink_into(qn_node *node, qn_diags *diags)
{
    bool changed = false;
    /* Operand i is input i of the regions, but of `if`, whose condition is no input. */
    const int offset = node->op == QN_OP_IF ? 1 : 0;
    for (int i = node->n_operands - 1; i >= qn_first_captured(node); i--) {
        const qn_tensor *tensor = qn_value_constant(qn_value_resolve(node->operands[i]));
        if (!tensor)
            continue;
        for (int r = 0; r < node->n_regions; r++) {
            qn_graph *region = node->regions[r];
            qn_builder b = { .graph = region, .before = region->first, .loc = node->loc, .diags = diags };
            qn_value_replace(region->inputs[i - offset], qn_b_constant(&b, tensor));
            qn_graph_resolve(region);
            qn_graph_remove_input(region, i - offset);
        }
        for (int k = i; k + 1 < node->n_operands; k++)
            node->operands[k] = node->operands[k + 1];
        node->n_operands--;
        changed = true;
    }
    return changed;
}

static bool sink_graph(qn_graph *graph, qn_diags *diags)
{
    bool changed = false;
    QN_FOR_NODES (graph, node) {
        if (node->n_regions == 0)
            continue;
        changed |= sink_into(node, diags);
        for (int r = 0; r < node->n_regions; r++)
            changed |= sink_graph(node->regions[r], diags);
    }
    return changed;
}

qn_status qn_pass_sink(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    (void)options;
    *out_changed = sink_graph(graph, diags);
    return qn_diags_status(diags);
}
