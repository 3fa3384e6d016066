/* quern.h: layers for sequences. */
#include <math.h>

#include "driver/api_builder.h"

/* ---- recurrences: a scan over time
 *
 *   carried   h [batch, hidden], of an LSTM c [batch, hidden]
 *   scanned   what x adds to the gates [batch, gates * hidden], computed for all steps before
 *   captured  the recurrent weight [gates * hidden, hidden] and its bias */

static qn_value *add(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_ADD, x, y);
}

static qn_value *mul(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary(b, QN_OP_MUL, x, y);
}

/* x [..., in] times the transpose of weight [out, in], plus a bias */
static qn_value *affine(qn_builder *b, qn_value *x, qn_value *weight, qn_value *bias)
{
    if (!x)
        return NULL;
    const qn_dot dot = { .n_contract = 1, .x_contract = { x->type.rank - 1 }, .y_contract = { 1 } };
    return add(b, qn_b_dot_general(b, x, weight, &dot, QUERN_INVALID_DTYPE), bias);
}

static qn_value *gate(qn_builder *b, qn_value *gates, int k, qn_dim hidden)
{
    qn_dims *t = qn_b_dims(b);
    const qn_dim start = qn_dim_mul(t, qn_dim_const(t, k), hidden);
    return qn_b_slice_axis(b, gates, 1, start, qn_dim_add(t, start, hidden));
}

/* One step: from_x and from_h are what they add to the gates; the states become the next ones. */
typedef void (*step_fn)(qn_builder *b, qn_value *from_x, qn_value *from_h, qn_dim hidden, qn_value **states);

static void lstm_step(qn_builder *b, qn_value *from_x, qn_value *from_h, qn_dim hidden, qn_value **states)
{
    qn_value *gates = add(b, from_x, from_h);
    qn_value *in = qn_b_unary(b, QN_OP_LOGISTIC, gate(b, gates, 0, hidden));
    qn_value *forget = qn_b_unary(b, QN_OP_LOGISTIC, gate(b, gates, 1, hidden));
    qn_value *cell = qn_b_unary(b, QN_OP_TANH, gate(b, gates, 2, hidden));
    qn_value *out = qn_b_unary(b, QN_OP_LOGISTIC, gate(b, gates, 3, hidden));
    states[1] = add(b, mul(b, forget, states[1]), mul(b, in, cell));
    states[0] = mul(b, out, qn_b_unary(b, QN_OP_TANH, states[1]));
}

static void gru_step(qn_builder *b, qn_value *from_x, qn_value *from_h, qn_dim hidden, qn_value **states)
{
    qn_value *open[2]; /* reset, update */
    for (int k = 0; k < 2; k++)
        open[k] =
            qn_b_unary(b, QN_OP_LOGISTIC, add(b, gate(b, from_x, k, hidden), gate(b, from_h, k, hidden)));
    qn_value *past = mul(b, open[0], gate(b, from_h, 2, hidden));
    qn_value *candidate = qn_b_unary(b, QN_OP_TANH, add(b, gate(b, from_x, 2, hidden), past));
    states[0] = add(b, candidate, mul(b, open[1], qn_b_binary(b, QN_OP_SUB, states[0], candidate)));
}

static quern_value *recurrent(quern_builder *b, const char *call, quern_value *x, int64_t hidden,
                              const char *name, int n_gates, int n_states, step_fn step)
{
    const int64_t depth = qn_build_begin(b, call, 1, &x) ? qn_build_width(b, call, x, name) : -1;
    if (depth < 0)
        return NULL;
    const qn_type *type = &qn_in(x)->type;
    if (type->rank != 3)
        return qn_build_fail(b, call, "x is %s; it must be [batch, time, features]",
                             qn_type_print(type, b->module->arena));
    if (hidden < 1 || hidden > INT32_MAX)
        return qn_build_fail(b, call, "the hidden size must be 1 to %d", INT32_MAX);
    static const char *const parts[] = { "weight_ih", "weight_hh", "bias_ih", "bias_hh" };
    qn_value *params[4];
    for (int i = 0; i < 4; i++) {
        const int64_t dims[2] = { n_gates * hidden, i == 0 ? depth : hidden };
        params[i] = qn_in(qn_build_param(b, call, name, parts[i], type->dtype, i < 2 ? 2 : 1, dims,
                                         QN_UNIFORM, 1 / sqrt((double)hidden)));
        if (!params[i])
            return NULL;
    }
    static const int64_t swap[3] = { 1, 0, 2 };
    qn_builder *outer = &b->build;
    qn_value *from_x = affine(outer, qn_b_transpose(outer, qn_in(x), swap), params[0], params[2]);
    if (!from_x)
        return NULL;
    const qn_dim state_dims[2] = { type->dims[0], qn_dim_const(b->module->dims, hidden) };
    const qn_type state = qn_type_make(b->module, type->dtype, 2, state_dims);
    qn_value *zeros = qn_b_full(outer, &state, 0), *operands[5] = { zeros, zeros };
    operands[n_states] = from_x;
    operands[n_states + 1] = params[1];
    operands[n_states + 2] = params[3];

    qn_builder inner = *outer;
    inner.graph = qn_region_new(b->module);
    qn_value *in[5];
    for (int i = 0; i < n_states + 3; i++) {
        qn_type t = operands[i]->type;
        if (i == n_states)
            t = qn_type_make(b->module, t.dtype, 2, t.dims + 1);
        in[i] = qn_graph_add_input(inner.graph, NULL, t, QN_ROLE_INPUT);
    }
    step(&inner, in[n_states], affine(&inner, in[0], in[n_states + 1], in[n_states + 2]), state_dims[1], in);
    for (int i = 0; i <= n_states; i++)
        qn_graph_add_output(inner.graph, in[i % n_states], NULL, -1);
    const qn_node *scan =
        qn_b_scan(outer, n_states, 1, 2, operands, from_x->type.dims[0], false, inner.graph);
    return scan ? qn_out(qn_b_transpose(outer, (qn_value *)&scan->results[n_states], swap)) : NULL;
}

quern_value *quern_lstm(quern_builder *b, quern_value *x, int64_t hidden, const char *name)
{
    return recurrent(b, "quern_lstm", x, hidden, name, 4, 2, lstm_step);
}

quern_value *quern_gru(quern_builder *b, quern_value *x, int64_t hidden, const char *name)
{
    return recurrent(b, "quern_gru", x, hidden, name, 3, 1, gru_step);
}

/* ---- attention ---- */

static quern_value *attend(quern_builder *b, qn_value *q, qn_value *k, qn_value *v, qn_value *mask,
                           bool causal)
{
    const qn_dim depth = q && k && v ? q->type.dims[3] : NULL;
    return depth ? qn_out(qn_b_attention(&b->build, q, k, v, mask, 1 / sqrt((double)depth->value), causal))
                 : NULL;
}

quern_value *quern_dot_product_attention(quern_builder *b, quern_value *q, quern_value *k, quern_value *v,
                                         quern_value *mask, int causal)
{
    static const char call[] = "quern_dot_product_attention";
    if (!qn_build_begin(b, call, 3, (quern_value *[]){ q, k, v }))
        return NULL;
    const qn_type *type = &qn_in(q)->type;
    if (type->rank != 4 || !qn_dim_is_const(type->dims[3]) || type->dims[3]->value < 1)
        return qn_build_fail(b, call,
                             "q is %s; it must be [batch, heads, length, depth], and the depth a number",
                             qn_type_print(type, b->module->arena));
    return attend(b, qn_in(q), qn_in(k), qn_in(v), qn_in(mask), causal != 0);
}

/* [batch, length, heads * depth] -> [batch, heads, length, depth] */
static qn_value *split_heads(quern_builder *b, quern_value *x, int64_t heads)
{
    if (!x)
        return NULL;
    const qn_type *type = &qn_in(x)->type;
    qn_dims *t = b->module->dims;
    const qn_dim dims[] = { type->dims[0], type->dims[1], qn_dim_const(t, heads),
                            qn_dim_const(t, type->dims[2]->value / heads) };
    return qn_b_transpose(&b->build, qn_b_reshape(&b->build, qn_in(x), 4, dims),
                          (const int64_t[]){ 0, 2, 1, 3 });
}

quern_value *quern_attention(quern_builder *b, quern_value *x, quern_value *memory, int64_t heads, int causal,
                             const char *name)
{
    static const char call[] = "quern_attention";
    static const char *const parts[] = { "q", "k", "v", "o" };
    const int64_t width = qn_build_begin(b, call, 1, &x) ? qn_build_width(b, call, x, name) : -1;
    if (width < 0 || b->diags.n_errors)
        return NULL;
    const qn_type *type = &qn_in(x)->type;
    for (int i = 0; i < 2; i++) {
        quern_value *sequence = i && memory ? memory : x;
        if (qn_in(sequence)->type.rank != 3)
            return qn_build_fail(b, call, "%s is %s; it must be [batch, length, features]",
                                 i ? "memory" : "x", qn_type_print(&qn_in(sequence)->type, b->module->arena));
    }
    if (heads < 1 || width < 1 || width % heads)
        return qn_build_fail(b, call, "%lld features cannot be shared by %lld heads", (long long)width,
                             (long long)heads);
    const char *names[4];
    for (int i = 0; i < 4; i++)
        names[i] = qn_arena_printf(b->module->arena, "%s.%s", name, parts[i]);
    qn_value *split[3];
    for (int i = 0; i < 3; i++)
        split[i] = split_heads(b, quern_linear(b, i > 0 && memory ? memory : x, width, names[i]), heads);
    quern_value *y = attend(b, split[0], split[1], split[2], NULL, causal != 0);
    if (!y)
        return NULL;
    qn_value *joined = qn_b_transpose(&b->build, qn_in(y), (const int64_t[]){ 0, 2, 1, 3 });
    return quern_linear(b, qn_out(qn_b_reshape(&b->build, joined, 3, type->dims)), width, names[3]);
}
