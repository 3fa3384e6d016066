/* Forward mode by reverse mode twice: the pull-back J^T u is linear in u, and the pull-back of that along v is J v.
 *
 *   y = sin x    ->    u cos x    ->    v cos x
 *
 * Nothing that stays depends on u. */
#include <string.h>

#include "ir/build.h"
#include "passes/autodiff.h"
#include "passes/pass.h"
#include "passes/passes.h"

typedef qn_vec(qn_value *) values;

/* The inputs that stood for u: what still mentions them takes zeros. */
static void remove_seeds(qn_graph *graph, int n, qn_diags *diags)
{
    for (int i = graph->n_inputs - n; i < graph->n_inputs; i++) {
        qn_builder b = { .graph = graph, .before = graph->first, .diags = diags };
        qn_value_replace(graph->inputs[i], qn_b_full(&b, &graph->inputs[i]->type, 0));
    }
    qn_prune(graph, diags);
    for (int i = 0; i < n; i++)
        qn_graph_remove_input(graph, graph->n_inputs - 1);
}

/* What a tangent's name begins with: tangent_, or where one is there already, tangent2_, and so on. */
static const char *prefix_of(const qn_graph *graph)
{
    for (int order = 1;; order++) {
        const char *prefix =
            order == 1 ? "tangent_" : qn_arena_printf(graph->module->arena, "tangent%d_", order);
        bool taken = false;
        for (int i = 0; i < graph->n_inputs; i++)
            taken |= graph->inputs[i]->name && strncmp(graph->inputs[i]->name, prefix, strlen(prefix)) == 0;
        if (!taken)
            return prefix;
    }
}

qn_graph *qn_jvp(qn_graph *function, const char *name, int n_wrt, const int *wrt, qn_diags *diags)
{
    qn_graph *graph = qn_graph_clone(function, name);
    qn_arena *arena = graph->module->arena;
    values inputs = { 0 }, tangents = { 0 }, outputs = { 0 }, seeds = { 0 };
    qn_vec(const char *) names = { 0 };
    const char *prefix = prefix_of(graph);
    for (int i = 0; i < n_wrt; i++) {
        qn_value *input = graph->inputs[wrt[i]];
        const char *called = input->name ? input->name : "input";
        if (!qn_dtype_is_float(input->type.dtype)) {
            qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "can't differentiate with respect to '%s': it is %s",
                     called, qn_type_print(&input->type, arena));
            return NULL;
        }
        qn_vec_push(arena, &inputs, input);
        qn_value *tangent = qn_graph_add_input(graph, qn_arena_printf(arena, "%s%s", prefix, called),
                                               input->type, QN_ROLE_INPUT);
        qn_vec_push(arena, &tangents, tangent);
    }
    for (int i = 0; i < graph->n_outputs; i++)
        if (qn_dtype_is_float(graph->outputs[i]->type.dtype)) {
            qn_vec_push(arena, &outputs, graph->outputs[i]);
            const char *called = qn_graph_output_name(graph, i);
            called = called ? called : qn_arena_printf(arena, "output_%d", i);
            qn_vec_push(arena, &names, qn_arena_printf(arena, "%s%s", prefix, called));
        }
    for (size_t i = 0; i < outputs.n; i++)
        qn_vec_push(arena, &seeds, qn_graph_add_input(graph, NULL, outputs.items[i]->type, QN_ROLE_INPUT));
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, n_wrt);
    qn_value **pushed = QN_NEW_ARRAY(arena, qn_value *, outputs.n);
    if (qn_pull_back(graph, (int)outputs.n, outputs.items, seeds.items, n_wrt, inputs.items, gradients,
                     diags) ||
        qn_pull_back(graph, n_wrt, gradients, tangents.items, (int)outputs.n, seeds.items, pushed, diags))
        return NULL;
    for (size_t i = 0; i < outputs.n; i++)
        qn_graph_add_output(graph, pushed[i], names.items[i], -1);
    remove_seeds(graph, (int)outputs.n, diags);
    return qn_diags_status(diags) ? NULL : graph;
}
