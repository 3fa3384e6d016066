/* ai.onnx.preview.training. Optimizers: inputs (rate, step, parameters…, gradients…, states…), outputs (parameters…,
 * states…). Gradient: of the tensor named y of this graph as a function of those named xs and zs, at the inputs' values. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

typedef struct update {
    qn_onnx_node *n;
    qn_value *rate, *step; /* scalars; the step as a float */
    qn_value *x, *gradient, *state[2];
} update;

static qn_value *blend(qn_builder *b, qn_value *x, double keep, qn_value *y, double take)
{
    return add(b, mul_number(b, x, keep), mul_number(b, y, take));
}

/* 1 - base^step */
static qn_value *bias(update *u, double base)
{
    qn_builder *b = &u->n->b;
    qn_value *power = qn_b_binary_bcast(b, QN_OP_POW, number_like(b, u->step, base), u->step);
    return add_number(b, negate(b, power), 1);
}

static void momentum(update *u)
{
    qn_onnx_node *n = u->n;
    qn_builder *b = &n->b;
    double alpha = qn_onnx_attr_float(n, "alpha", 0), beta = qn_onnx_attr_float(n, "beta", 0);
    /* the first step takes the whole gradient */
    qn_value *take = choose(b, compare_number(b, QN_GT, u->step, 0), number_like(b, u->step, beta),
                            number_like(b, u->step, 1));
    qn_value *v = add(b, mul_number(b, u->state[0], alpha), mul(b, take, u->gradient));
    qn_value *down =
        qn_onnx_attr_is(n, "mode", "standard", "nesterov") ? blend(b, v, alpha, u->gradient, 1) : v;
    u->x = sub(b, u->x, mul(b, u->rate, down));
    u->state[0] = v;
}

static void adagrad(update *u)
{
    qn_onnx_node *n = u->n;
    qn_builder *b = &n->b;
    double decay = qn_onnx_attr_float(n, "decay_factor", 0), epsilon = qn_onnx_attr_float(n, "epsilon", 0);
    qn_value *rate = divide(b, u->rate, add_number(b, mul_number(b, u->step, decay), 1));
    qn_value *h = add(b, u->state[0], square(b, u->gradient));
    qn_value *size = add_number(b, qn_b_unary(b, QN_OP_SQRT, h), epsilon);
    u->x = sub(b, u->x, divide(b, mul(b, rate, u->gradient), size));
    u->state[0] = h;
}

static void adam(update *u)
{
    qn_onnx_node *n = u->n;
    qn_builder *b = &n->b;
    double alpha = qn_onnx_attr_float(n, "alpha", 0.9), beta = qn_onnx_attr_float(n, "beta", 0.999);
    double epsilon = qn_onnx_attr_float(n, "epsilon", 0),
           post = qn_onnx_attr_float(n, "norm_coefficient_post", 0);
    qn_value *v = blend(b, u->state[0], alpha, u->gradient, 1 - alpha);
    qn_value *h = blend(b, u->state[1], beta, square(b, u->gradient), 1 - beta);
    qn_value *corrected =
        divide(b, mul(b, u->rate, qn_b_unary(b, QN_OP_SQRT, bias(u, beta))), bias(u, alpha));
    qn_value *rate = choose(b, compare_number(b, QN_GT, u->step, 0), corrected, u->rate);
    qn_value *size = add_number(b, qn_b_unary(b, QN_OP_SQRT, h), epsilon);
    u->x = mul_number(b, sub(b, u->x, mul(b, rate, divide(b, v, size))), 1 - post);
    u->state[0] = v;
    u->state[1] = h;
}

static void import_optimizer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const char *name = n->proto->op_type;
    int n_states = !strcmp(name, "Adam") ? 2 : 1, per = 2 + n_states, count = (n->n_in - 2) / per;
    if (n->n_in < 2 + per || (n->n_in - 2) % per) {
        qn_onnx_malformed(n, "the inputs must be rate, step, then %d per parameter", per);
        return;
    }
    for (int i = 0; i < count; i++) {
        update u = { .n = n, .x = qn_onnx_in(n, 2 + i), .gradient = qn_onnx_in(n, 2 + count + i) };
        qn_value *rate = qn_onnx_in(n, 0), *step = qn_onnx_in(n, 1);
        for (int k = 0; k < n_states; k++)
            u.state[k] = qn_onnx_in(n, 2 + (2 + k) * count + i);
        if (!u.x || !rate || !step)
            return;
        u.rate = qn_b_convert(b, u.x->type.dtype, qn_b_reshape(b, rate, 0, NULL));
        u.step = qn_b_convert(b, u.x->type.dtype, qn_b_reshape(b, step, 0, NULL));
        u.gradient = blend(b, u.x, qn_onnx_attr_float(n, "norm_coefficient", 0), u.gradient, 1);
        (!strcmp(name, "Adam") ? adam : !strcmp(name, "Adagrad") ? adagrad : momentum)(&u);
        qn_onnx_out(n, i, u.x);
        for (int k = 0; k < n_states; k++)
            qn_onnx_out(n, (1 + k) * count + i, u.state[k]);
    }
}

/* ---- Gradient ---- */

/* The value of a name that an attribute mentions. */
static qn_value *named_value(qn_onnx_node *n, ProtobufCBinaryData text)
{
    const char *name = qn_arena_printf(n->im->arena, "%.*s", (int)text.len, (const char *)text.data);
    qn_onnx_value *v = qn_onnx_scope_find(n->scope, name);
    if (!v || v->kind != QN_ONNX_TENSOR) {
        qn_onnx_malformed(n, "\"%s\" is no tensor that is defined before this node", name);
        return NULL;
    }
    if (!qn_dtype_is_float(v->type.dtype)) {
        qn_onnx_malformed(n, "\"%s\" is no tensor of floats", name);
        return NULL;
    }
    if ((v->tensor || v->dims) && !v->learnable) {
        qn_onnx_unsupported(
            n, "\"%s\" is a constant, which what is made of it has taken in: let it be an input", name);
        return NULL;
    }
    return qn_onnx_value_make(&n->b, v);
}

static void import_gradient(qn_onnx_node *n)
{
    const Onnx__Attribute *lists[2] = { qn_onnx_attr(n, "xs", ONNX__ATTRIBUTE__KIND__STRINGS),
                                        qn_onnx_attr(n, "zs", ONNX__ATTRIBUTE__KIND__STRINGS) };
    const Onnx__Attribute *y_name = qn_onnx_attr(n, "y", ONNX__ATTRIBUTE__KIND__STRING);
    const size_t n_xs = lists[0] ? lists[0]->n_strings : 0, n_zs = lists[1] ? lists[1]->n_strings : 0;
    if (!n->im->options->gradient || n->scope->graph != n->im->module->functions[0]) {
        qn_onnx_unsupported(
            n, "gradients are computed in the model's own graph only, not in branches and loops");
        return;
    }
    if (!y_name || !n_xs || n_xs + n_zs != (size_t)n->n_in || (size_t)n->n_out > n_xs) {
        qn_onnx_malformed(
            n,
            "attributes xs and y are needed, an input for each of xs and zs, and an output for each of xs");
        return;
    }
    qn_value **from = QN_NEW_ARRAY(n->im->arena, qn_value *, n->n_in);
    qn_value **at = QN_NEW_ARRAY(n->im->arena, qn_value *, n->n_in);
    qn_value **gradients = QN_NEW_ARRAY(n->im->arena, qn_value *, n_xs);
    qn_value *y = named_value(n, y_name->s);
    for (int i = 0; i < n->n_in; i++) {
        const int list = (size_t)i >= n_xs;
        from[i] = named_value(n, lists[list]->strings[list ? (size_t)i - n_xs : (size_t)i]);
        at[i] = qn_onnx_in(n, i);
        if (from[i] && at[i] && !qn_type_equal(&from[i]->type, &at[i]->type))
            qn_onnx_malformed(n, "input %d has not the type of what it stands for", i);
    }
    if (!qn_onnx_ok(n) ||
        n->im->options->gradient(n->b.graph, y, n->n_in, from, at, (int)n_xs, gradients, n->im->diags))
        return;
    for (int i = 0; i < n->n_out; i++)
        qn_onnx_out(n, i, gradients[i]);
}

const qn_onnx_op qn_onnx_training_ops[] = {
    { "Gradient", "ai.onnx.preview.training", 1, 0, import_gradient },
    { "Momentum", "ai.onnx.preview.training", 1, 0, import_optimizer },
    { "Adagrad", "ai.onnx.preview.training", 1, 0, import_optimizer },
    { "Adam", "ai.onnx.preview.training", 1, 0, import_optimizer },
    { 0 },
};
