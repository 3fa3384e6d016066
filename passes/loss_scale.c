/* Loss scaling (Micikevicius et al., 2018): gradients that would be too small for float16 are computed times a scale, and
 * divided by it before they are used. A step with a gradient that is not finite updates nothing.
 *
 * With loss_scale_steps the scale is a state: halved by such a step, doubled after so many good ones. */
#include "passes/train_parts.h"

static const double LEAST = 1, MOST = 0x1p32;

static qn_value *number(qn_builder *b, double value)
{
    return qn_b_scalar(b, QUERN_F32, value);
}

void qn_loss_scale_begin(qn_train_copy *c, const qn_train_options *options)
{
    const float scale = (float)options->loss_scale;
    if (options->loss_scale_steps == 0) {
        c->scale = number(&c->b, scale);
        return;
    }
    c->scale = qn_train_add_state(c->b.graph, options, "loss_scale", QUERN_F32, 0, NULL, &scale);
    c->good_steps = qn_train_add_state(c->b.graph, options, "good_steps", QUERN_I64, 0, NULL, NULL);
}

/* How many elements are not finite, or just that some are: an i32 scalar. */
static qn_value *count_bad(qn_builder *b, qn_value *x)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = i;
    qn_value *bad = qn_b_binary(b, QN_OP_OR, qn_b_unary(b, QN_OP_IS_NAN, x), qn_b_unary(b, QN_OP_IS_INF, x));
    bad = qn_b_convert(b, QUERN_I32, bad);
    return x->type.rank ? qn_b_reduce(b, QN_KIND_MAX, bad, x->type.rank, axes, false) : bad;
}

void qn_loss_scale_undo(qn_train_copy *c, qn_value **gradients)
{
    qn_builder *b = &c->b;
    qn_value *bad = qn_b_scalar_int(b, QUERN_I32, 0);
    qn_value *inverse = qn_b_binary(b, QN_OP_DIV, number(b, 1), c->scale);
    for (int i = 0; i < c->n_params; i++) {
        const qn_type *type = &gradients[i]->type;
        bad = qn_b_binary(b, QN_OP_ADD, bad, count_bad(b, gradients[i]));
        gradients[i] =
            qn_b_binary(b, QN_OP_MUL, gradients[i],
                        qn_b_broadcast_to(b, qn_b_convert(b, type->dtype, inverse), type->rank, type->dims));
    }
    c->finite = qn_b_compare(b, QN_EQ, bad, qn_b_scalar_int(b, QUERN_I32, 0));
}

/* States that the update has set stay as they were where a gradient was not finite. */
static void hold(qn_train_copy *c, int first_output)
{
    qn_graph *graph = c->b.graph;
    for (int i = first_output; i < graph->n_outputs; i++) {
        const qn_type *type = &graph->outputs[i]->type;
        graph->outputs[i] = qn_b_select(&c->b, qn_b_broadcast_to(&c->b, c->finite, type->rank, type->dims),
                                        graph->outputs[i], graph->inputs[graph->aliases[i]]);
    }
}

void qn_loss_scale_end(qn_train_copy *c, const qn_train_options *options, int first_output)
{
    qn_builder *b = &c->b;
    if (!qn_diags_status(b->diags))
        hold(c, first_output);
    if (!c->good_steps)
        return;
    qn_value *none = qn_b_scalar_int(b, QUERN_I64, 0), *scale = c->scale;
    qn_value *good = qn_b_binary_scalar(b, QN_OP_ADD, c->good_steps, 1);
    qn_value *grows = qn_b_compare(b, QN_GE, good, qn_b_scalar_int(b, QUERN_I64, options->loss_scale_steps));
    qn_value *more = qn_b_binary(b, QN_OP_MIN, qn_b_binary_scalar(b, QN_OP_MUL, scale, 2), number(b, MOST));
    qn_value *less =
        qn_b_binary(b, QN_OP_MAX, qn_b_binary_scalar(b, QN_OP_MUL, scale, 0.5), number(b, LEAST));
    qn_value *next = qn_b_select(b, c->finite, qn_b_select(b, grows, more, scale), less);
    good = qn_b_select(b, c->finite, qn_b_select(b, grows, none, good), none);
    if (!next || !good)
        return;
    qn_graph_add_output(b->graph, next, scale->name, scale->index);
    qn_graph_add_output(b->graph, good, c->good_steps->name, c->good_steps->index);
}
