/* Training steps: see train.h. */
#include "passes/train.h"

#include "passes/autodiff.h"
#include "passes/inline.h"
#include "passes/train_parts.h"

/* A function of the forward function's kind: its inputs, a target behind them, then parameters and states; its body. */
typedef struct copy {
    qn_builder b;
    qn_value **inputs;  /* by input of the forward function */
    qn_value **outputs; /* of the forward function */
    qn_value *target;
} copy;

static qn_status copy_forward(const qn_graph *forward, const char *name, const qn_train_options *options,
                              qn_diags *diags, copy *c)
{
    qn_module *module = forward->module;
    qn_graph *graph = qn_function_new(module, name);
    *c = (copy){ .b = { .graph = graph, .diags = diags } };
    c->inputs = QN_NEW_ARRAY(module->arena, qn_value *, forward->n_inputs);
    c->outputs = QN_NEW_ARRAY(module->arena, qn_value *, forward->n_outputs);
    for (int role = QN_ROLE_INPUT; role <= QN_ROLE_STATE; role++) {
        for (int i = 0; i < forward->n_inputs; i++) {
            const qn_value *input = forward->inputs[i];
            if ((int)forward->input_roles[i] != role)
                continue;
            c->inputs[i] = qn_graph_add_input(graph, input->name, input->type, forward->input_roles[i]);
            graph->input_initial[c->inputs[i]->index] = forward->input_initial[i];
        }
        if (role == QN_ROLE_INPUT)
            c->target = qn_graph_add_input(graph, qn_train_fresh_name(forward, "target"),
                                           qn_loss_target(options, forward->outputs[0]), QN_ROLE_INPUT);
    }
    return qn_inline_graph(forward, graph, NULL, c->inputs, c->outputs, diags);
}

/* ---- the step ---- */

static qn_value *add_state(copy *c, const char *name, qn_dtype dtype, int rank, const int64_t *dims,
                           const void *initial)
{
    qn_graph *graph = c->b.graph;
    qn_value *state = qn_graph_add_input(graph, qn_train_fresh_name(graph, name),
                                         qn_type_static(graph->module, dtype, rank, dims), QN_ROLE_STATE);
    if (initial)
        graph->input_initial[state->index] = qn_tensor_new(graph->module, dtype, rank, dims, initial);
    return state;
}

static qn_status make_step(const qn_graph *forward, const qn_train_options *options, qn_diags *diags)
{
    qn_arena *arena = forward->module->arena;
    const bool dropout = qn_train_has_dropout(forward);
    copy c;
    QN_TRY(copy_forward(forward, "train_step", options, diags, &c));
    qn_builder *b = &c.b;
    qn_value *step = NULL, *key = NULL, *count = NULL;
    if (dropout || qn_optimizer_counts(options))
        step = add_state(&c, "step", QUERN_I64, 0, NULL, NULL);
    if (dropout) {
        key = add_state(&c, "random_key", QUERN_U64, 1, (int64_t[]){ 2 }, (uint64_t[]){ options->seed, 0 });
        b->before = b->graph->first;
        count = qn_b_convert(b, QUERN_U64, step);
        b->before = NULL;
    }
    qn_value *loss = qn_loss_value(b, options, c.outputs[0], c.target);
    QN_TRY(qn_diags_status(diags));
    qn_graph_add_output(b->graph, loss, "loss", -1);
    /* Other state of the function is updated as the function does. */
    for (int i = 0; i < forward->n_outputs; i++)
        if (forward->aliases && forward->aliases[i] >= 0)
            qn_graph_add_output(b->graph, c.outputs[i], forward->output_names[i],
                                c.inputs[forward->aliases[i]]->index);
    QN_TRY(qn_training_mode(b->graph, key, count, diags));
    int n = 0;
    qn_value **params = QN_NEW_ARRAY(arena, qn_value *, b->graph->n_inputs);
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, b->graph->n_inputs);
    for (int i = 0; i < b->graph->n_inputs; i++)
        if (b->graph->input_roles[i] == QN_ROLE_PARAM)
            params[n++] = b->graph->inputs[i];
    loss = b->graph->outputs[0];
    QN_TRY(qn_differentiate(b->graph, &loss, n, params, gradients, diags));
    if (step)
        qn_graph_add_output(b->graph, qn_b_binary_scalar(b, QN_OP_ADD, step, 1), step->name, step->index);
    qn_optimizer_apply(b, options, step, n, params, gradients);
    QN_TRY(qn_diags_status(diags));
    qn_graph_remove_dead(b->graph);
    return QUERN_OK;
}

/* ---- measuring ---- */

static qn_status make_eval(const qn_graph *forward, const qn_train_options *options, qn_diags *diags)
{
    copy c;
    QN_TRY(copy_forward(forward, "eval", options, diags, &c));
    qn_builder *b = &c.b;
    qn_graph_add_output(b->graph, qn_loss_value(b, options, c.outputs[0], c.target), "loss", -1);
    if (options->loss == QN_LOSS_CROSS_ENTROPY) {
        int64_t axes[QN_MAX_RANK];
        const int rank = c.target->type.rank;
        for (int i = 0; i < rank; i++)
            axes[i] = i;
        qn_value *best = qn_b_arg_reduce(b, QN_KIND_MAX, c.outputs[0], rank, false);
        qn_value *hit = qn_b_convert(b, QUERN_I64, qn_b_compare(b, QN_EQ, best, c.target));
        qn_graph_add_output(b->graph, qn_b_reduce(b, QN_SUM, hit, rank, axes, false), "correct", -1);
    }
    QN_TRY(qn_diags_status(diags));
    qn_graph_remove_dead(b->graph);
    return QUERN_OK;
}

qn_status qn_make_training(qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    static const char *const added[] = { "train_step", "eval" };
    qn_module *module = function->module;
    if (function->n_outputs < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "'%s' has no output to train", function->name);
    for (size_t i = 0; i < sizeof added / sizeof *added; i++)
        if (qn_module_find(module, added[i]))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "the module has a function '%s' already",
                            added[i]);
    QN_TRY(qn_loss_check(options, function->outputs[0], function->output_names[0], diags));
    QN_TRY(qn_train_inline_calls(function, diags));
    qn_graph_remove_dead(function);
    QN_TRY(qn_train_parameters(function, options, diags));
    function->name = "infer";
    if (!options->only_eval)
        QN_TRY(make_step(function, options, diags));
    qn_inference_mode(function, diags);
    return make_eval(function, options, diags);
}
