/* Training steps: see train.h. */
#include "passes/train.h"

#include <string.h>

#include "passes/autodiff.h"
#include "passes/inline.h"
#include "passes/pass.h"
#include "passes/train_parts.h"

static qn_status copy_forward(const qn_graph *forward, const char *name, const qn_train_options *options,
                              qn_diags *diags, qn_train_copy *c)
{
    qn_module *module = forward->module;
    qn_graph *graph = qn_function_new(module, name);
    *c = (qn_train_copy){ .b = { .graph = graph, .diags = diags } };
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
        if (role == QN_ROLE_INPUT && !options->own_loss && qn_loss_has_target(options))
            c->target = qn_graph_add_input(graph, qn_train_fresh_name(forward, "target"),
                                           qn_loss_target(options, forward->outputs[0]), QN_ROLE_INPUT);
    }
    return qn_inline_graph(forward, graph, NULL, c->inputs, c->outputs, diags);
}

/* Nodes that come from nowhere in the model say what they are. */
static qn_loc loc_of(const qn_train_copy *c, const char *what, const char *name)
{
    return (qn_loc){ .op = qn_arena_printf(c->b.graph->module->arena, "%s %s", what, name) };
}

static void add_loss(qn_train_copy *c, const qn_train_options *options)
{
    c->b.loc = loc_of(c, "loss", qn_losses[options->loss].name);
    qn_graph_add_output(c->b.graph, qn_loss_value(&c->b, options, c->outputs[0], c->target), "loss", -1);
    c->b.loc = (qn_loc){ 0 };
}

/* ---- the step ---- */

qn_value *qn_train_add_state(qn_graph *graph, const qn_train_options *options, const char *name,
                             qn_dtype dtype, int rank, const int64_t *dims, const void *initial)
{
    if (options->name)
        name = qn_arena_printf(graph->module->arena, "%s.%s", options->name, name);
    qn_value *state = qn_graph_add_input(graph, qn_train_fresh_name(graph, name),
                                         qn_type_static(graph->module, dtype, rank, dims), QN_ROLE_STATE);
    if (initial)
        graph->input_initial[state->index] = qn_tensor_new(graph->module, dtype, rank, dims, initial);
    return state;
}

/* The function's outputs stand beside "loss". */
static const char *output_name(const char *name, const qn_train_options *options)
{
    return !options->own_loss && strcmp(name, "loss") == 0 ? "loss_1" : name;
}

static void count(qn_builder *b, qn_value *state)
{
    qn_graph_add_output(b->graph, qn_b_binary_scalar(b, QN_OP_ADD, state, 1), state->name, state->index);
}

qn_status qn_train_forward(const qn_graph *forward, const char *name, const qn_train_options *options,
                           bool updates, qn_diags *diags, qn_train_copy *c)
{
    const bool random = qn_train_is_random(forward);
    QN_TRY(copy_forward(forward, name, options, diags, c));
    qn_builder *b = &c->b;
    qn_graph *graph = b->graph;
    qn_value *draws = NULL, *key = NULL, *number = NULL;
    if (updates && ((random && !options->parts) || qn_optimizer_counts(options)))
        c->step = qn_train_add_state(graph, options, "step", QUERN_I64, 0, NULL, NULL);
    if (random) {
        /* In parts there may be several forwards for one update: they draw numbers of their own. */
        if (options->parts)
            draws = qn_train_add_state(graph, options, "draws", QUERN_I64, 0, NULL, NULL);
        key = qn_train_add_state(graph, options, "random_key", QUERN_U64, 1, (int64_t[]){ 2 },
                                 (uint64_t[]){ options->seed, 0 });
        b->before = graph->first;
        number = qn_b_convert(b, QUERN_U64, draws ? draws : c->step);
        if (options->data_parallel)
            key = qn_parallel_key(b, key);
        b->before = NULL;
    }
    if (!options->own_loss)
        add_loss(c, options);
    QN_TRY(qn_diags_status(diags));
    /* Other state of the function is updated as the function does. */
    for (int i = 0; i < forward->n_outputs; i++)
        if (forward->aliases && forward->aliases[i] >= 0)
            qn_graph_add_output(graph, c->outputs[i], forward->output_names[i],
                                c->inputs[forward->aliases[i]]->index);
        else if (options->own_loss || !updates)
            qn_graph_add_output(graph, c->outputs[i], output_name(forward->output_names[i], options), -1);
    const int n_outputs = graph->n_outputs;
    QN_TRY(qn_training_mode(graph, key, number, diags));
    c->n_statistics = graph->n_outputs - n_outputs;
    c->statistics = n_outputs;
    if (options->data_parallel && options->sync_batch_norm)
        QN_TRY(qn_parallel_batch_norms(graph, diags));
    /* Whole composites have better derivatives than what they are made of, and products without transposes around them. */
    QN_TRY(qn_run_passes(graph, "simplify,cse,dce,raise,simplify,dce",
                         &(qn_pass_options){ .math = options->math }, NULL, diags));
    if (draws)
        count(b, draws);
    c->params = QN_NEW_ARRAY(graph->module->arena, qn_value *, graph->n_inputs);
    for (int i = 0; i < graph->n_inputs; i++)
        if (graph->input_roles[i] == QN_ROLE_PARAM)
            c->params[c->n_params++] = graph->inputs[i];
    return qn_diags_status(diags);
}

void qn_train_update(qn_train_copy *c, const qn_train_options *options, qn_value **gradients)
{
    if (c->step)
        count(&c->b, c->step);
    c->b.loc = loc_of(c, "optimizer", qn_optimizers[options->optimizer].name);
    qn_optimizer_apply(&c->b, options, c->step, c->n_params, c->params, gradients);
}

void qn_train_average(qn_train_copy *c, const qn_train_options *options, qn_value **gradients, bool loss)
{
    qn_graph *graph = c->b.graph;
    qn_value **all = QN_NEW_ARRAY(graph->module->arena, qn_value *, c->n_params + c->n_statistics + 1);
    int n = 0;
    c->b.loc = loc_of(c, "average", "of ranks");
    for (int i = 0; gradients && i < c->n_params; i++)
        all[n++] = gradients[i];
    for (int i = 0; i < c->n_statistics && !options->sync_batch_norm; i++)
        all[n++] = graph->outputs[c->statistics + i];
    if (loss)
        all[n++] = graph->outputs[0];
    qn_parallel_average(&c->b, n, all, options->bucket_bytes);
    n = 0;
    for (int i = 0; gradients && i < c->n_params; i++)
        gradients[i] = all[n++];
    for (int i = 0; i < c->n_statistics && !options->sync_batch_norm; i++)
        graph->outputs[c->statistics + i] = all[n++];
    if (loss)
        graph->outputs[0] = all[n++];
    c->b.loc = (qn_loc){ 0 };
}

static qn_status make_step(const qn_graph *forward, const qn_train_options *options, qn_diags *diags)
{
    qn_train_copy c;
    QN_TRY(qn_train_forward(forward, "train_step", options, true, diags, &c));
    qn_graph *graph = c.b.graph;
    qn_value **gradients = QN_NEW_ARRAY(graph->module->arena, qn_value *, c.n_params);
    qn_value *loss = graph->outputs[0];
    if (options->loss_scale > 0)
        qn_loss_scale_begin(&c, options);
    QN_TRY(qn_differentiate(graph, &loss, c.scale, c.n_params, c.params, gradients, diags));
    const int n_outputs = graph->n_outputs;
    if (options->data_parallel)
        qn_train_average(&c, options, gradients, true);
    if (c.scale)
        qn_loss_scale_undo(&c, gradients);
    qn_train_update(&c, options, gradients);
    if (c.scale)
        qn_loss_scale_end(&c, options, n_outputs);
    QN_TRY(qn_diags_status(diags));
    qn_graph_remove_dead(graph);
    return QUERN_OK;
}

/* ---- measuring ---- */

static qn_status make_eval(const qn_graph *forward, const qn_train_options *options, qn_diags *diags)
{
    qn_train_copy c;
    QN_TRY(copy_forward(forward, "eval", options, diags, &c));
    qn_builder *b = &c.b;
    add_loss(&c, options);
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

/* A loss is a mean, which there is none of no elements: a batch has rows. Else an empty one would leave NaN in the parameters. */
static qn_status expect_elements(const qn_graph *function, qn_diags *diags)
{
    const qn_type *type = &function->outputs[0]->type;
    for (int i = 0; i < type->rank; i++) {
        if (type->dims[i]->max < 1)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "output '%s' is %s: of no elements there is no loss", function->output_names[0],
                            qn_type_print(type, diags->arena));
        if (type->dims[i]->kind == QN_DIM_SYMBOL && type->dims[i]->min < 1)
            qn_dim_set_range(function->module->dims, type->dims[i], 1, type->dims[i]->max);
    }
    return QUERN_OK;
}

qn_status qn_make_training(qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    static const char *const added[] = { "train_step", "eval", "forward", "backward", "update" };
    qn_module *module = function->module;
    if (function->n_outputs < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "'%s' has no output to train", function->name);
    for (size_t i = 0; i < sizeof added / sizeof *added; i++)
        if (qn_module_find(module, added[i]))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "the module has a function '%s' already",
                            added[i]);
    if (!options->own_loss)
        QN_TRY(qn_loss_check(options, function->outputs[0], function->output_names[0], diags));
    if (!options->own_loss)
        QN_TRY(expect_elements(function, diags));
    QN_TRY(qn_inline_calls(function, diags));
    qn_graph_remove_dead(function);
    QN_TRY(qn_train_parameters(function, options, diags));
    function->name = "infer";
    if (!options->only_eval && !options->own_loss)
        QN_TRY(make_step(function, options, diags));
    if (!options->only_eval && options->parts)
        QN_TRY(qn_train_split(function, options, diags));
    qn_inference_mode(function, diags);
    return options->own_loss ? qn_diags_status(diags) : make_eval(function, options, diags);
}
