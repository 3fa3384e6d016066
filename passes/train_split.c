/* The training step in three functions: forward, backward, update.
 *
 * Forward and backward are made as one graph, which is then cut behind the forward's nodes:
 *
 *   %h = tanh %a                          forward:   %h = tanh %a                 -> y, residual.0 = %h
 *   marker: what follows is backward  ->
 *   %g = … %h, %grad_y                    backward:  %g = … %residual.0, %grad_y  -> grad_w
 *
 * Backward reads the forward's inputs and parameters where they are; what else it needs are residuals. It computes again what
 * costs little more than reading it would: element by element, from what it has anyway. */
#include "passes/autodiff.h"
#include "passes/train_parts.h"

typedef qn_vec(qn_value *) values;

typedef struct joint {
    qn_graph *graph;
    int n_inputs;  /* of the forward; behind them come the seeds: the gradients of outputs */
    int n_forward; /* outputs of the forward; behind them come the gradients */
    int n_primal;  /* values of ids below it come before the marker */
    bool *at_hand; /* by id of these: backward has it, as an input or computed again */
    bool *saved;   /* by id: a residual */
} joint;

/* ---- the graph of both ---- */

static qn_value *add_seed(qn_train_copy *c, const qn_value *output, const char *name)
{
    const char *seed = qn_arena_printf(c->b.graph->module->arena, "grad_%s", name);
    return qn_graph_add_input(c->b.graph, qn_train_fresh_name(c->b.graph, seed), output->type, QN_ROLE_INPUT);
}

/* Appends the gradients as outputs. Each seed goes through a stop_gradient: the first of these is where the backward begins. */
static qn_status differentiate(qn_train_copy *c, const qn_train_options *options, joint *j)
{
    qn_graph *graph = j->graph;
    qn_arena *arena = graph->module->arena;
    values outputs = { 0 }, seeds = { 0 }, wrt = { 0 };
    j->n_forward = graph->n_outputs;
    j->n_inputs = graph->n_inputs;
    const int n_outputs = options->own_loss ? graph->n_outputs : 1;
    for (int i = 0; i < n_outputs; i++)
        if (qn_dtype_is_float(graph->outputs[i]->type.dtype) && !(graph->aliases && graph->aliases[i] >= 0)) {
            qn_value *seed = add_seed(c, graph->outputs[i], graph->output_names[i]);
            qn_vec_push(arena, &outputs, graph->outputs[i]);
            qn_vec_push(arena, &seeds, qn_b_unary(&c->b, QN_OP_STOP_GRADIENT, seed));
        }
    if (outputs.n == 0)
        return qn_error(c->b.diags, QUERN_ERROR_ARGUMENT, NULL, "the model has no output of floats to train");
    for (int i = 0; i < c->n_params; i++)
        qn_vec_push(arena, &wrt, c->params[i]);
    for (int i = 0; i < j->n_inputs && options->input_gradients; i++)
        if (graph->input_roles[i] == QN_ROLE_INPUT && graph->inputs[i] != c->target &&
            qn_dtype_is_float(graph->inputs[i]->type.dtype))
            qn_vec_push(arena, &wrt, graph->inputs[i]);
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, wrt.n);
    QN_TRY(qn_pull_back(graph, (int)outputs.n, outputs.items, seeds.items, (int)wrt.n, wrt.items, gradients,
                        c->b.diags));
    for (size_t i = 0; i < wrt.n; i++)
        qn_graph_add_output(graph, gradients[i], qn_arena_printf(arena, "grad_%s", wrt.items[i]->name), -1);
    qn_graph_remove_dead(graph);
    return QUERN_OK;
}

/* ---- what is kept ---- */

static bool is_cheap(const qn_node *node)
{
    const qn_op_class class = qn_ops[node->op].class;
    return class == QN_LEAF || class == QN_ELEMENTWISE || class == QN_BROADCAST || class == QN_INJECTIVE;
}

/* The first node that depends on a seed; NULL where no gradient does. */
static const qn_node *find_marker(const joint *j)
{
    QN_FOR_NODES (j->graph, node)
        if (node->op == QN_OP_STOP_GRADIENT && !node->operands[0]->node &&
            node->operands[0]->index >= j->n_inputs)
            return node;
    return NULL;
}

static void choose_residuals(joint *j)
{
    qn_graph *graph = j->graph;
    qn_arena *arena = graph->module->arena;
    const int n = qn_graph_number(graph);
    const qn_node *marker = find_marker(j);
    bool *needed = QN_NEW_ARRAY(arena, bool, n);
    j->n_primal = marker ? marker->results[0].id : n;
    j->at_hand = QN_NEW_ARRAY(arena, bool, n);
    j->saved = QN_NEW_ARRAY(arena, bool, n);
    for (const qn_node *node = marker; node; node = node->next)
        for (int i = 0; i < node->n_operands; i++)
            needed[node->operands[i]->id] = true;
    for (int i = j->n_forward; i < graph->n_outputs; i++)
        needed[graph->outputs[i]->id] = true;
    for (int i = 0; i < graph->n_inputs; i++)
        j->at_hand[i] = true;
    for (int i = 0; graph->aliases && i < j->n_forward; i++)
        if (graph->aliases[i] >= 0)
            j->at_hand[graph->aliases[i]] = false; /* it has changed by then */
    for (int i = 0; i < graph->n_inputs; i++)
        if (needed[i] && !j->at_hand[i])
            j->at_hand[i] = j->saved[i] = true;
    for (const qn_node *node = graph->first; node != marker; node = node->next) {
        bool again = is_cheap(node);
        for (int i = 0; i < node->n_operands; i++)
            again &= j->at_hand[node->operands[i]->id];
        for (int i = 0; i < node->n_results; i++) {
            const int id = node->results[i].id;
            j->saved[id] = needed[id] && !again;
            j->at_hand[id] = again || j->saved[id];
        }
    }
}

/* ---- the cut ---- */

/* All values of a graph by id. */
static qn_value **values_of(qn_graph *graph)
{
    qn_value **all = QN_NEW_ARRAY(graph->module->arena, qn_value *, qn_graph_number(graph));
    for (int i = 0; i < graph->n_inputs; i++)
        all[i] = graph->inputs[i];
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            all[node->results[i].id] = &node->results[i];
    return all;
}

/* Outputs from `first` up to `end` only. */
static void keep_outputs(qn_graph *graph, int first, int end)
{
    qn_graph old = *graph;
    graph->n_outputs = 0;
    graph->outputs = NULL;
    graph->output_names = NULL;
    graph->aliases = NULL;
    for (int i = first; i < end; i++)
        qn_graph_add_output(graph, old.outputs[i], old.output_names[i], old.aliases ? old.aliases[i] : -1);
}

static void remove_unused_inputs(qn_graph *graph, int first, int end)
{
    qn_graph_remove_dead(graph);
    const int *uses = qn_graph_count_uses(graph, graph->module->arena);
    for (int i = end - 1; i >= first; i--)
        if (!uses[i])
            qn_graph_remove_input(graph, i);
}

static void cut(joint *j)
{
    qn_graph *forward = j->graph, *backward = qn_graph_clone(forward, "backward");
    const int n_inputs = forward->n_inputs;
    qn_value **of_forward = values_of(forward), **of_backward = values_of(backward);
    keep_outputs(backward, j->n_forward, backward->n_outputs);
    keep_outputs(forward, 0, j->n_forward);
    for (int id = 0, number = 0; id < j->n_primal; id++)
        if (j->saved[id]) {
            const char *name = qn_arena_printf(forward->module->arena, "residual.%d", number++);
            qn_graph_add_output(forward, of_forward[id], name, -1);
            qn_value_replace(of_backward[id],
                             qn_graph_add_input(backward, name, of_backward[id]->type, QN_ROLE_INPUT));
        }
    remove_unused_inputs(backward, 0, n_inputs);
    remove_unused_inputs(forward, j->n_inputs, n_inputs);
}

/* ---- the update ---- */

static qn_status make_update(const qn_graph *forward, const qn_train_options *options, qn_diags *diags)
{
    qn_graph *graph = qn_function_new(forward->module, "update");
    qn_arena *arena = graph->module->arena;
    qn_train_copy c = { .b = { .graph = graph, .diags = diags } };
    c.params = QN_NEW_ARRAY(arena, qn_value *, forward->n_inputs);
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, forward->n_inputs);
    for (int i = 0; i < forward->n_inputs; i++)
        if (forward->input_roles[i] == QN_ROLE_PARAM)
            gradients[c.n_params++] =
                qn_graph_add_input(graph, qn_arena_printf(arena, "grad_%s", forward->inputs[i]->name),
                                   forward->inputs[i]->type, QN_ROLE_INPUT);
    /* all states, so that one session can own them */
    for (int i = 0, n = 0; i < forward->n_inputs; i++) {
        if (forward->input_roles[i] == QN_ROLE_INPUT)
            continue;
        qn_value *state = qn_graph_add_input(graph, forward->inputs[i]->name, forward->inputs[i]->type,
                                             forward->input_roles[i]);
        graph->input_initial[state->index] = forward->input_initial[i];
        if (forward->input_roles[i] == QN_ROLE_PARAM)
            c.params[n++] = state;
    }
    if (qn_optimizer_counts(options))
        c.step = qn_train_add_state(graph, options, "step", QUERN_I64, 0, NULL, NULL);
    if (options->data_parallel)
        qn_train_average(&c, options, gradients, false);
    qn_train_update(&c, options, gradients);
    return qn_diags_status(diags);
}

qn_status qn_train_split(const qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    qn_train_copy c;
    QN_TRY(qn_train_forward(function, "forward", options, false, diags, &c));
    if (options->data_parallel)
        qn_train_average(&c, options, NULL, false);
    joint j = { .graph = c.b.graph };
    QN_TRY(differentiate(&c, options, &j));
    choose_residuals(&j);
    cut(&j);
    return make_update(j.graph, options, diags);
}
