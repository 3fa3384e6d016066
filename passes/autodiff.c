/* Reverse-mode differentiation: walks a graph backwards and lets each op's rule (vjp_*.c) push adjoints to its operands.
 *
 * Before:  %2 = mul %x, %x          After:  the same, and
 *          %3 = reduce %2 {sum}             %4 = broadcast 1 : adjoint of %2
 *          loss %3                          %5 = mul %4, %x, twice, added: gradient of %x
 */
#include <stdlib.h>
#include <string.h>

#include "passes/autodiff.h"

#include "passes/inline.h"
#include "passes/pass.h"
#include "passes/vjp.h"

void qn_vjp_add(qn_vjp *v, const qn_node *node, int i, qn_value *gradient)
{
    if (!gradient || !qn_vjp_wants(v, node, i))
        return;
    qn_value *operand = node->operands[i];
    QN_ASSERT(qn_type_equal(&gradient->type, &operand->type),
              "vjp of %s: the gradient of operand %d is %s, not %s", qn_ops[node->op].name, i,
              qn_type_print(&gradient->type, node->graph->module->arena),
              qn_type_print(&operand->type, node->graph->module->arena));
    qn_value **adjoint = &v->adjoints[operand->id];
    *adjoint = *adjoint ? qn_b_binary(&v->b, QN_OP_ADD, *adjoint, gradient) : gradient;
}

qn_status qn_vjp_refuse(qn_vjp *v, const qn_node *node, const char *reason)
{
    return qn_error(v->b.diags, QUERN_ERROR_UNSUPPORTED, &node->loc, "%s can't be differentiated: %s",
                    qn_ops[node->op].name, reason);
}

qn_value *qn_vjp_unreduce(qn_vjp *v, qn_value *reduced, const qn_value *like, int n_axes, const int64_t *axes)
{
    int64_t kept[QN_MAX_RANK];
    int n_kept = 0;
    for (int axis = 0; axis < like->type.rank; axis++) {
        bool gone = false;
        for (int i = 0; i < n_axes; i++)
            gone |= axes[i] == axis;
        if (!gone)
            kept[n_kept++] = axis;
    }
    return qn_b_broadcast(&v->b, reduced, like->type.rank, like->type.dims, kept);
}

static qn_vjp_rule find_rule(qn_op op)
{
    qn_vjp_rule (*const families[])(qn_op) = { qn_vjp_elementwise, qn_vjp_movement, qn_vjp_reduction,
                                               qn_vjp_contraction, qn_vjp_control,  qn_vjp_composite,
                                               qn_vjp_collective };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        qn_vjp_rule rule = families[i](op);
        if (rule)
            return rule;
    }
    return NULL;
}

/* ---- preparation ---- */

/* Does the derivative pass through each value? By id; grows as nodes are replaced. */
static bool *find_active(qn_graph *graph, int n_wrt, qn_value *const *wrt, qn_arena *arena)
{
    bool *active = QN_NEW_ARRAY(arena, bool, qn_graph_number(graph) + 1);
    for (int i = 0; i < n_wrt; i++)
        active[wrt[i]->id] = true;
    QN_FOR_NODES (graph, node) {
        if (node->op == QN_OP_STOP_GRADIENT)
            continue;
        bool any = false;
        for (int i = 0; i < node->n_operands; i++)
            any |= active[node->operands[i]->id];
        for (int i = 0; i < node->n_results; i++)
            active[node->results[i].id] |= any && qn_dtype_is_float(node->results[i].type.dtype);
    }
    return active;
}

/* The mask of an attention gets a gradient only from its body. */
static bool learns_mask(const qn_node *node, const bool *active)
{
    return node->op == QN_OP_ATTENTION && node->n_operands > 3 && active[node->operands[3]->id];
}

static qn_status prepare(qn_graph *graph, int n_values, qn_value **values, int n_wrt, qn_value **wrt,
                         qn_diags *diags)
{
    for (bool again = true; again;) {
        again = false;
        bool *active = find_active(graph, n_wrt, wrt, graph->module->arena);
        for (qn_node *node = graph->first, *next; node; node = next) {
            next = node->next;
            bool on_path = false;
            for (int i = 0; i < node->n_results; i++)
                on_path |= active[node->results[i].id];
            if (!on_path)
                continue;
            qn_value **results = QN_NEW_ARRAY(graph->module->arena, qn_value *, node->n_results);
            if (!qn_vjp_expand(node, find_rule(node->op) && !learns_mask(node, active), results, diags))
                continue;
            QN_TRY(qn_diags_status(diags));
            for (int i = 0; i < node->n_results; i++)
                qn_value_replace(&node->results[i], results[i]);
            qn_node_remove(node);
            again = true;
        }
        qn_graph_resolve(graph);
        for (int i = 0; i < n_values; i++)
            values[i] = qn_value_resolve(values[i]);
        for (int i = 0; i < n_wrt; i++)
            wrt[i] = qn_value_resolve(wrt[i]);
    }
    return qn_diags_status(diags);
}

/* ---- the walk ---- */

qn_status qn_pull_back(qn_graph *graph, int n_values, qn_value **values, qn_value **adjoints, int n_wrt,
                       qn_value **wrt, qn_value **out_gradients, qn_diags *diags)
{
    qn_arena *arena = graph->module->arena;
    QN_TRY(prepare(graph, n_values, values, n_wrt, wrt, diags));
    qn_vjp v = { .b = { .graph = graph, .diags = diags } };
    v.active = find_active(graph, n_wrt, wrt, arena);
    v.n_values = qn_graph_number(graph);
    v.adjoints = QN_NEW_ARRAY(arena, qn_value *, v.n_values + 1);
    qn_node *last = graph->last; /* what rules build comes behind it */
    for (int i = 0; i < n_values; i++) {
        qn_value **at = &v.adjoints[values[i]->id];
        if (adjoints[i] && v.active[values[i]->id])
            *at = *at ? qn_b_binary(&v.b, QN_OP_ADD, *at, adjoints[i]) : adjoints[i];
    }
    for (qn_node *node = last, *previous; node; node = previous) {
        previous = node->prev; /* a rule may put another node before this one */
        qn_value **g = QN_NEW_ARRAY(arena, qn_value *, node->n_results);
        bool any = false, wanted = false;
        for (int i = 0; i < node->n_results; i++) {
            if (!v.active[node->results[i].id])
                continue;
            g[i] = v.adjoints[node->results[i].id];
            any |= g[i] != NULL;
        }
        for (int i = 0; i < node->n_operands; i++)
            wanted |= v.active[node->operands[i]->id];
        if (!any || !wanted)
            continue;
        v.b.loc = node->loc;
        qn_vjp_rule rule = find_rule(node->op);
        if (!rule)
            return qn_vjp_refuse(&v, node, "it has no derivative rule");
        QN_TRY(rule(&v, node, g));
        QN_TRY(qn_diags_status(diags));
    }
    v.b.loc = (qn_loc){ 0 };
    for (int i = 0; i < n_wrt; i++) {
        qn_value *g = v.adjoints[wrt[i]->id];
        out_gradients[i] = g ? g : qn_vjp_zeros_like(&v, wrt[i]);
    }
    qn_graph_resolve(graph); /* scans were replaced by ones that keep residuals */
    for (int i = 0; i < n_values; i++)
        values[i] = qn_value_resolve(values[i]);
    for (int i = 0; i < n_wrt; i++) {
        wrt[i] = qn_value_resolve(wrt[i]);
        out_gradients[i] = qn_value_resolve(out_gradients[i]);
    }
    return qn_diags_status(diags);
}

qn_status qn_differentiate(qn_graph *graph, qn_value **loss, qn_value *scale, int n_wrt, qn_value **wrt,
                           qn_value **out_gradients, qn_diags *diags)
{
    if ((*loss)->type.rank != 0 || !qn_dtype_is_float((*loss)->type.dtype))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, (*loss)->node ? &(*loss)->node->loc : NULL,
                        "the loss to differentiate is %s; expected a floating-point scalar",
                        qn_type_print(&(*loss)->type, graph->module->arena));
    for (int i = 0; i < n_wrt; i++) {
        if (!qn_dtype_is_float(wrt[i]->type.dtype))
            return qn_error(
                diags, QUERN_ERROR_ARGUMENT, NULL, "can't differentiate with respect to '%s': it is %s",
                wrt[i]->name ? wrt[i]->name : "a value", qn_type_print(&wrt[i]->type, graph->module->arena));
    }
    qn_builder b = { .graph = graph, .diags = diags };
    const qn_dtype dtype = (*loss)->type.dtype;
    qn_value *adjoint = scale ? qn_b_convert(&b, dtype, scale) : qn_b_scalar(&b, dtype, 1);
    return qn_pull_back(graph, 1, loss, &adjoint, n_wrt, wrt, out_gradients, diags);
}

/* What a gradient's name begins with: grad_; of a loss that is a gradient already, grad_x, it is grad2_, then grad3_. */
static const char *prefix_of(const qn_graph *graph, const char *loss)
{
    if (!loss || strncmp(loss, "grad", 4) != 0)
        return "grad_";
    char *end;
    const long order = strtol(loss + 4, &end, 10);
    for (int i = 0; *end == '_' && i < graph->n_inputs; i++)
        if (graph->inputs[i]->name && strcmp(graph->inputs[i]->name, end + 1) == 0)
            return qn_arena_printf(graph->module->arena, "grad%ld_", order > 1 ? order + 1 : 2);
    return "grad_";
}

qn_graph *qn_grad(qn_graph *function, const char *name, int loss, int n_wrt, const int *wrt,
                  bool keep_outputs, qn_diags *diags)
{
    qn_graph *graph = qn_graph_clone(function, name);
    qn_arena *arena = graph->module->arena;
    qn_value **inputs = QN_NEW_ARRAY(arena, qn_value *, n_wrt),
             **gradients = QN_NEW_ARRAY(arena, qn_value *, n_wrt);
    for (int i = 0; i < n_wrt; i++)
        inputs[i] = graph->inputs[wrt[i]];
    qn_value *loss_value = graph->outputs[loss];
    if (qn_differentiate(graph, &loss_value, NULL, n_wrt, inputs, gradients, diags))
        return NULL;
    int n_outputs = graph->n_outputs;
    qn_value **outputs = graph->outputs;
    const char **names = graph->output_names;
    int *aliases = graph->aliases;
    graph->n_outputs = 0;
    graph->outputs = NULL;
    graph->output_names = NULL;
    graph->aliases = NULL;
    qn_graph_add_output(graph, loss_value, names[loss], -1);
    const char *prefix = prefix_of(graph, names[loss]);
    for (int i = 0; i < n_wrt; i++) {
        const char *input = graph->inputs[wrt[i]]->name;
        const char *called = qn_arena_printf(arena, "%s%s", prefix, input ? input : "input");
        qn_graph_add_output(graph, gradients[i], called, -1);
    }
    for (int i = 0; i < n_outputs && keep_outputs; i++) {
        if (i != loss)
            qn_graph_add_output(graph, outputs[i], names[i], aliases ? aliases[i] : -1);
    }
    qn_graph_remove_dead(graph);
    return graph;
}

/* ---- at other values ---- */

typedef qn_vec(qn_value *) values;

/* Copies into `to` what `value` is made of. map: by value id of `from`, what is there already; inputs that are not become inputs
 * of `to`, and are appended to `captured`. */
static qn_status copy_cone(qn_graph *from, qn_value *value, qn_graph *to, qn_value **map, values *captured,
                           qn_diags *diags)
{
    qn_arena *arena = from->module->arena;
    bool *needed = QN_NEW_ARRAY(arena, bool, from->n_values);
    needed[value->id] = true;
    for (const qn_node *node = from->last; node; node = node->prev) {
        bool any = false;
        for (int i = 0; i < node->n_results; i++)
            any |= needed[node->results[i].id] && !map[node->results[i].id];
        for (int i = 0; i < node->n_operands && any; i++)
            needed[node->operands[i]->id] = true;
    }
    for (int i = 0; i < from->n_inputs; i++)
        if (needed[i] && !map[i]) {
            map[i] = qn_graph_add_input(to, NULL, from->inputs[i]->type, QN_ROLE_INPUT);
            qn_vec_push(arena, captured, from->inputs[i]);
        }
    QN_FOR_NODES (from, node) {
        bool any = false;
        for (int i = 0; i < node->n_results; i++)
            any |= needed[node->results[i].id] && !map[node->results[i].id];
        if (!any)
            continue;
        qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands);
        for (int i = 0; i < node->n_operands; i++)
            operands[i] = map[node->operands[i]->id];
        const qn_node *copy = qn_node_new(to, NULL, node->op, node->n_operands, operands, node->n_attrs,
                                          node->attrs, node->n_regions, node->regions, &node->loc, diags);
        if (!copy)
            return qn_diags_status(diags);
        for (int i = 0; i < node->n_results; i++)
            if (!map[node->results[i].id])
                map[node->results[i].id] = &copy->results[i];
    }
    return QUERN_OK;
}

qn_status qn_gradient_at(qn_graph *graph, qn_value *y, int n, qn_value *const *from, qn_value *const *at,
                         int n_wrt, qn_value **out_gradients, qn_diags *diags)
{
    qn_module *module = graph->module;
    qn_graph *function = qn_function_new(module, "gradient"); /* for a moment */
    qn_value **map = QN_NEW_ARRAY(module->arena, qn_value *, qn_graph_number(graph));
    qn_value **wrt = QN_NEW_ARRAY(module->arena, qn_value *, n);
    qn_value **gradients = QN_NEW_ARRAY(module->arena, qn_value *, n_wrt);
    values arguments = { 0 };
    for (int i = 0; i < n; i++) {
        wrt[i] = map[from[i]->id] = qn_graph_add_input(function, NULL, from[i]->type, QN_ROLE_INPUT);
        qn_vec_push(module->arena, &arguments, at[i]);
    }
    qn_status status = copy_cone(graph, y, function, map, &arguments, diags);
    qn_value *value = map[y->id];
    qn_builder b = { .graph = function, .diags = diags };
    qn_value *one = status ? NULL : qn_b_full(&b, &y->type, 1);
    if (!status)
        status = qn_pull_back(function, 1, &value, &one, n_wrt, wrt, gradients, diags);
    for (int i = 0; i < n_wrt && !status; i++)
        qn_graph_add_output(function, gradients[i], NULL, -1);
    if (!status) {
        qn_graph_remove_dead(function);
        status = qn_inline_graph(function, graph, NULL, arguments.items, out_gradients, diags);
    }
    module->n_functions--; /* it was the last */
    return status;
}
