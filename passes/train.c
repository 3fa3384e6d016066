/* Training steps: see train.h. */
#include "passes/train.h"

#include "ir/build.h"
#include "passes/autodiff.h"
#include "passes/inline.h"

/* Named float constants become PARAM inputs. */
static void promote_parameters(qn_graph *graph)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        if (node->op != QN_OP_CONSTANT || !qn_dtype_is_float(node->results[0].type.dtype))
            continue;
        const qn_tensor *tensor = qn_attr_tensor(node, QN_ATTR_VALUE);
        if (!tensor->name)
            continue;
        qn_value *param = qn_graph_add_input(graph, tensor->name, node->results[0].type, QN_ROLE_PARAM);
        graph->input_initial[param->index] = tensor;
        qn_value_replace(&node->results[0], param);
        qn_node_remove(node);
    }
    qn_graph_resolve(graph);
}

/* ---- losses: a scalar from prediction and target ---- */

static qn_value *mean_of_all(qn_builder *b, qn_value *x)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; x && i < x->type.rank; i++)
        axes[i] = i;
    return x ? qn_b_mean(b, x, x->type.rank, axes, false) : NULL;
}

static qn_type target_type(qn_module *module, qn_loss loss, const qn_type *prediction)
{
    if (loss == QN_LOSS_CROSS_ENTROPY)
        return qn_type_make(module, QUERN_I64, prediction->rank - 1, prediction->dims);
    return *prediction;
}

static qn_value *loss_value(qn_builder *b, qn_loss loss, qn_value *prediction, qn_value *target)
{
    if (loss == QN_LOSS_MSE) {
        qn_value *d = qn_b_binary(b, QN_OP_SUB, prediction, target);
        return mean_of_all(b, qn_b_binary(b, QN_OP_MUL, d, d));
    }
    qn_dims *dims = qn_b_dims(b);
    qn_dim rows = qn_type_elements_dim(dims, &target->type);
    qn_dim flat[2] = { rows, prediction->type.dims[prediction->type.rank - 1] };
    qn_value *losses =
        qn_b_cross_entropy(b, qn_b_reshape(b, prediction, 2, flat), qn_b_reshape(b, target, 1, &rows));
    return mean_of_all(b, losses);
}

/* ---- optimizers ---- */

typedef struct {
    qn_builder b;
    const qn_train_options *options;
    qn_value *rate, *root; /* Adam: rate / (1 - beta1^t) and sqrt(1 - beta2^t), f32 scalars */
} optimizer;

#define MUL(x, y) qn_b_binary(&o->b, QN_OP_MUL, x, y)
#define ADD(x, y) qn_b_binary(&o->b, QN_OP_ADD, x, y)
#define SUB(x, y) qn_b_binary(&o->b, QN_OP_SUB, x, y)
#define SCALED(x, c) qn_b_binary_scalar(&o->b, QN_OP_MUL, x, c)

static qn_value *add_state(optimizer *o, const char *name, qn_type type)
{
    return qn_graph_add_input(o->b.graph, name, type, QN_ROLE_STATE);
}

/* 1 - beta^t in double: 1 - 0.999 has lost half of a float's digits */
static qn_value *bias_correction(optimizer *o, double beta, qn_value *t)
{
    qn_value *power = qn_b_binary(&o->b, QN_OP_POW, qn_b_scalar(&o->b, QUERN_F64, beta), t);
    return SUB(qn_b_scalar(&o->b, QUERN_F64, 1), power);
}

static void begin_step(optimizer *o)
{
    const qn_train_options *options = o->options;
    if (options->optimizer != QN_ADAM)
        return;
    qn_value *step = add_state(o, "step", qn_type_static(o->b.graph->module, QUERN_I64, 0, NULL));
    qn_value *next = ADD(step, qn_b_scalar_int(&o->b, QUERN_I64, 1));
    qn_value *t = qn_b_convert(&o->b, QUERN_F64, next);
    qn_value *rate = qn_b_scalar(&o->b, QUERN_F64, options->learning_rate);
    o->rate = qn_b_binary(&o->b, QN_OP_DIV, rate, bias_correction(o, options->beta1, t));
    o->root = qn_b_unary(&o->b, QN_OP_SQRT, bias_correction(o, options->beta2, t));
    qn_graph_add_output(o->b.graph, next, "step", step->index);
}

static qn_value *spread(optimizer *o, qn_value *scalar, const qn_value *like)
{
    return qn_b_broadcast_to(&o->b, qn_b_convert(&o->b, like->type.dtype, scalar), like->type.rank,
                             like->type.dims);
}

static void update(optimizer *o, qn_value *param, qn_value *g)
{
    const qn_train_options *options = o->options;
    qn_graph *graph = o->b.graph;
    qn_arena *arena = graph->module->arena;
    qn_value *change;
    if (options->weight_decay != 0)
        g = ADD(g, SCALED(param, options->weight_decay));
    if (options->optimizer == QN_SGD) {
        if (options->momentum != 0) {
            const char *name = qn_arena_printf(arena, "%s.velocity", param->name);
            qn_value *velocity = add_state(o, name, param->type);
            g = ADD(SCALED(velocity, options->momentum), g);
            qn_graph_add_output(graph, g, name, velocity->index);
        }
        change = SCALED(g, options->learning_rate);
    } else {
        const char *m_name = qn_arena_printf(arena, "%s.m", param->name);
        const char *v_name = qn_arena_printf(arena, "%s.v", param->name);
        qn_value *m = add_state(o, m_name, param->type), *v = add_state(o, v_name, param->type);
        qn_value *m_next = ADD(SCALED(m, options->beta1), SCALED(g, 1 - options->beta1));
        qn_value *v_next = ADD(SCALED(v, options->beta2), SCALED(MUL(g, g), 1 - options->beta2));
        qn_value *root =
            qn_b_binary(&o->b, QN_OP_DIV, qn_b_unary(&o->b, QN_OP_SQRT, v_next), spread(o, o->root, v));
        root = qn_b_binary_scalar(&o->b, QN_OP_ADD, root, options->epsilon);
        change = MUL(spread(o, o->rate, m), qn_b_binary(&o->b, QN_OP_DIV, m_next, root));
        qn_graph_add_output(graph, m_next, m_name, m->index);
        qn_graph_add_output(graph, v_next, v_name, v->index);
    }
    qn_graph_add_output(graph, SUB(param, change), param->name, param->index);
}

/* ---- the step ---- */

static qn_status check(const qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    if (function->n_outputs < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "'%s' has no output to train", function->name);
    const qn_type *type = &function->outputs[0]->type;
    if (!qn_dtype_is_float(type->dtype) || (options->loss == QN_LOSS_CROSS_ENTROPY && type->rank < 2))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "output '%s' is %s; %s", function->output_names[0],
                        qn_type_print(type, function->module->arena),
                        options->loss == QN_LOSS_MSE
                            ? "the loss takes a floating-point prediction"
                            : "cross-entropy takes floating-point logits [rows…, classes]");
    return QUERN_OK;
}

qn_status qn_make_training(qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    qn_module *module = function->module;
    QN_TRY(check(function, options, diags));
    promote_parameters(function);
    function->name = "infer";
    qn_graph *step = qn_function_new(module, "train_step");
    optimizer o = { .b = { .graph = step, .diags = diags }, .options = options };
    qn_value **inputs = QN_NEW_ARRAY(module->arena, qn_value *, function->n_inputs);
    qn_value **outputs = QN_NEW_ARRAY(module->arena, qn_value *, function->n_outputs);
    qn_value *target = NULL;
    int n_params = 0;
    for (int role = QN_ROLE_INPUT; role <= QN_ROLE_STATE; role++) {
        for (int i = 0; i < function->n_inputs; i++) {
            const qn_value *input = function->inputs[i];
            if ((int)function->input_roles[i] != role)
                continue;
            inputs[i] = qn_graph_add_input(step, input->name, input->type, function->input_roles[i]);
            step->input_initial[inputs[i]->index] = function->input_initial[i];
            n_params += role == QN_ROLE_PARAM;
        }
        if (role == QN_ROLE_INPUT) {
            qn_type type = target_type(module, options->loss, &function->outputs[0]->type);
            target = qn_graph_add_input(step, "target", type, QN_ROLE_INPUT);
        }
    }
    if (n_params == 0)
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "'%s' has no parameters to train: no input is one, and no floating-point initializer is named",
            module->name);
    QN_TRY(qn_inline_graph(function, step, NULL, inputs, outputs, diags));
    qn_value *loss = loss_value(&o.b, options->loss, outputs[0], target);
    qn_value **params = QN_NEW_ARRAY(module->arena, qn_value *, n_params);
    qn_value **gradients = QN_NEW_ARRAY(module->arena, qn_value *, n_params);
    n_params = 0;
    for (int i = 0; i < step->n_inputs; i++) {
        if (step->input_roles[i] == QN_ROLE_PARAM)
            params[n_params++] = step->inputs[i];
    }
    QN_TRY(qn_diags_status(diags));
    QN_TRY(qn_differentiate(step, &loss, n_params, params, gradients, diags));
    qn_graph_add_output(step, loss, "loss", -1);
    begin_step(&o);
    for (int i = 0; i < n_params; i++)
        update(&o, params[i], gradients[i]);
    /* Other state of the function is updated as the function does. */
    for (int i = 0; i < function->n_outputs; i++) {
        if (function->aliases && function->aliases[i] >= 0)
            qn_graph_add_output(step, outputs[i], function->output_names[i],
                                inputs[function->aliases[i]]->index);
    }
    QN_TRY(qn_diags_status(diags));
    qn_graph_remove_dead(step);
    return QUERN_OK;
}
