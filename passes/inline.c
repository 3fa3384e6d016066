/* Copies of graphs inside other graphs: see inline.h. */
#include "passes/inline.h"

#include "passes/passes.h"

qn_status qn_inline_graph(const qn_graph *from, qn_graph *to, qn_node *before, qn_value *const *inputs,
                          qn_value **out_outputs, qn_diags *diags)
{
    qn_arena *arena = to->module->arena;
    int n_values = from->n_inputs;
    QN_FOR_NODES (from, node)
        n_values += node->n_results;
    /* `id` numbers the values of `from`; map[id] is the copy */
    qn_value **map = QN_NEW_ARRAY(arena, qn_value *, n_values);
    int id = 0;
    for (int i = 0; i < from->n_inputs; i++) {
        from->inputs[i]->id = id;
        map[id++] = inputs[i];
    }
    for (const qn_node *node = from->first, *last = from->last; node;
         node = node == last ? NULL : node->next) {
        qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands);
        for (int i = 0; i < node->n_operands; i++)
            operands[i] = map[node->operands[i]->id];
        qn_node *copy = qn_node_new(to, before, node->op, node->n_operands, operands, node->n_attrs,
                                    node->attrs, node->n_regions, node->regions, &node->loc, diags);
        if (!copy)
            return qn_diags_status(diags);
        for (int i = 0; i < node->n_results; i++) {
            node->results[i].id = id;
            copy->results[i].name = node->results[i].name;
            map[id++] = &copy->results[i];
        }
    }
    for (int i = 0; i < from->n_outputs; i++)
        out_outputs[i] = map[from->outputs[i]->id];
    return QUERN_OK;
}

qn_status qn_inline_calls(qn_graph *graph, qn_diags *diags)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        if (node->op != QN_OP_CALL)
            continue;
        qn_node *const before = node->prev;
        qn_value **results = QN_NEW_ARRAY(graph->module->arena, qn_value *, node->n_results);
        qn_node_resolve(node);
        if (!qn_expand_node(node, results, diags))
            return qn_diags_status(diags);
        for (int i = 0; i < node->n_results; i++)
            qn_value_replace(&node->results[i], results[i]);
        qn_node_remove(node);
        next = before ? before->next : graph->first; /* it may call others */
    }
    qn_graph_resolve(graph);
    return QUERN_OK;
}
