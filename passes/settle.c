/* Spells out what differs between training and inference, before anything folds.
 *
 * Before: any graph. After: no batch_norm and no dropout. Their factors fold into constants then, and into the weights of
 * convolutions; until here they are whole, so that training finds them (passes/train_mode.c).
 *
 *   %y, %m, %v = batch_norm %x, %scale, %bias, %mean, %variance {epsilon = 1e-05, momentum = 0.9}
 *   ->
 *   %0 = add %variance, 1e-05
 *   …
 */
#include "ir/build.h"
#include "passes/passes.h"

static bool settle(qn_graph *graph, qn_diags *diags)
{
    bool changed = false;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            changed |= settle(node->regions[i], diags);
        if (node->op != QN_OP_BATCH_NORM && node->op != QN_OP_DROPOUT)
            continue;
        qn_value *results[3];
        qn_node_resolve(node);
        qn_composite_expand(node, results, diags);
        for (int i = 0; i < node->n_results; i++)
            if (results[i])
                qn_value_replace(&node->results[i], results[i]);
        qn_node_remove(node);
        changed = true;
    }
    return changed;
}

qn_status qn_pass_settle(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    (void)options;
    const int errors = diags->n_errors;
    *out_changed = settle(graph, diags);
    if (*out_changed)
        qn_graph_resolve(graph);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
