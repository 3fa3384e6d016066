/* Composites: their expansion into primitives defines them, so that is what runs. */
#include "backends/interp/interp.h"

#include "ir/build.h"

/* A module of the composite's own, where its operands are inputs of known dims: the expansion defines the op, and
 * neither the graph at hand nor its symbols have a part in that. */
qn_status qn_eval_composite(qn_eval *e)
{
    const qn_node *node = e->node;
    qn_module *module = qn_module_new("");
    qn_graph *graph = qn_function_new(module, qn_ops[node->op].name);
    qn_value **operands = QN_NEW_ARRAY(module->arena, qn_value *, node->n_operands);
    qn_value **values = QN_NEW_ARRAY(module->arena, qn_value *, node->n_results);
    for (int i = 0; i < node->n_operands; i++)
        operands[i] = qn_graph_add_input(
            graph, NULL, qn_type_static(module, e->x[i].dtype, e->x[i].rank, e->x[i].dims), QN_ROLE_INPUT);
    const int errors = e->in->diags->n_errors;
    qn_node *composite = qn_node_new(graph, NULL, node->op, node->n_operands, operands, node->n_attrs,
                                     node->attrs, 0, NULL, &node->loc, e->in->diags);
    if (composite)
        qn_composite_expand(composite, values, e->in->diags);
    qn_status status = QUERN_OK;
    if (e->in->diags->n_errors > errors) {
        status = e->in->diags->last->status;
    } else {
        qn_node_remove(composite);
        for (int i = 0; i < node->n_results; i++)
            qn_graph_add_output(graph, values[i], NULL, -1);
        qn_interp in = { .module = module, .diags = e->in->diags, .depth = e->in->depth };
        qn_array *results = QN_NEW_ARRAY(module->arena, qn_array, node->n_results);
        status = qn_plan_run(qn_plan_new(graph, module->arena), &in, e->x, results, e->in->arena);
        for (int i = 0; i < node->n_results && !status; i++) {
            QN_ASSERT(results[i].rank == e->y[i].rank &&
                          qn_array_elements(&results[i]) == qn_array_elements(&e->y[i]),
                      "the expansion of %s has another shape than the node", qn_ops[node->op].name);
            e->y[i] = results[i];
        }
    }
    qn_module_free(module);
    return status;
}
