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

enum { WEIGHT_X, WEIGHT_H, BIAS_X, BIAS_H, N_PARAMS };

typedef struct kind {
    const char *call, *cell_call;
    int n_gates, n_states;
    step_fn step;
} kind;

static const kind lstm = { "quern_lstm", "quern_lstm_cell", 4, 2, lstm_step };
static const kind gru = { "quern_gru", "quern_gru_cell", 3, 1, gru_step };

static bool cell_params(quern_builder *b, const char *call, const kind *k, qn_dtype dtype, int64_t depth,
                        int64_t hidden, const char *name, qn_value *params[N_PARAMS])
{
    static const char *const parts[N_PARAMS] = { "weight_ih", "weight_hh", "bias_ih", "bias_hh" };
    if (hidden < 1 || hidden > INT32_MAX) {
        qn_build_fail(b, call, "the hidden size must be 1 to %d", INT32_MAX);
        return false;
    }
    for (int i = 0; i < N_PARAMS; i++) {
        const int64_t dims[2] = { k->n_gates * hidden, i == WEIGHT_X ? depth : hidden };
        params[i] = qn_in(qn_build_param(b, call, name, parts[i], dtype, i < BIAS_X ? 2 : 1, dims, QN_UNIFORM,
                                         1 / sqrt((double)hidden)));
        if (!params[i])
            return false;
    }
    return true;
}

static quern_value *recurrent(quern_builder *b, const kind *k, quern_value *x, int64_t hidden,
                              const char *name)
{
    const int64_t depth = qn_build_begin(b, k->call, 1, &x) ? qn_build_width(b, k->call, x, name) : -1;
    if (depth < 0)
        return NULL;
    const qn_type *type = &qn_in(x)->type;
    if (type->rank != 3)
        return qn_build_fail(b, k->call, "x is %s; it must be [batch, time, features]",
                             qn_type_print(type, b->module->arena));
    const int n_states = k->n_states;
    qn_value *params[N_PARAMS];
    if (!cell_params(b, k->call, k, type->dtype, depth, hidden, name, params))
        return NULL;
    static const int64_t swap[3] = { 1, 0, 2 };
    qn_builder *outer = &b->build;
    qn_value *from_x = affine(outer, qn_b_transpose(outer, qn_in(x), swap), params[WEIGHT_X], params[BIAS_X]);
    if (!from_x)
        return NULL;
    const qn_dim state_dims[2] = { type->dims[0], qn_dim_const(b->module->dims, hidden) };
    const qn_type state = qn_type_make(b->module, type->dtype, 2, state_dims);
    qn_value *zeros = qn_b_full(outer, &state, 0), *operands[5] = { zeros, zeros };
    operands[n_states] = from_x;
    operands[n_states + 1] = params[WEIGHT_H];
    operands[n_states + 2] = params[BIAS_H];

    qn_builder inner = *outer;
    inner.graph = qn_region_new(b->module);
    qn_value *in[5];
    for (int i = 0; i < n_states + 3; i++) {
        qn_type t = operands[i]->type;
        if (i == n_states)
            t = qn_type_make(b->module, t.dtype, 2, t.dims + 1);
        in[i] = qn_graph_add_input(inner.graph, NULL, t, QN_ROLE_INPUT);
    }
    k->step(&inner, in[n_states], affine(&inner, in[0], in[n_states + 1], in[n_states + 2]), state_dims[1],
            in);
    for (int i = 0; i <= n_states; i++)
        qn_graph_add_output(inner.graph, in[i % n_states], NULL, -1);
    const qn_node *scan =
        qn_b_scan(outer, n_states, 1, 2, operands, from_x->type.dims[0], false, inner.graph);
    return scan ? qn_out(qn_b_transpose(outer, (qn_value *)&scan->results[n_states], swap)) : NULL;
}

quern_value *quern_lstm(quern_builder *b, quern_value *x, int64_t hidden, const char *name)
{
    return recurrent(b, &lstm, x, hidden, name);
}

quern_value *quern_gru(quern_builder *b, quern_value *x, int64_t hidden, const char *name)
{
    return recurrent(b, &gru, x, hidden, name);
}

/* states: the first is h; the next ones take their place */
static bool one_step(quern_builder *b, const kind *k, quern_value *x, qn_value *states[2], const char *name)
{
    static const char *const names[2] = { "h", "c" };
    const char *call = k->cell_call;
    const int64_t depth = qn_build_width(b, call, x, name);
    if (depth < 0)
        return false;
    const qn_type *type = &qn_in(x)->type;
    qn_value *params[N_PARAMS];
    for (int i = 0; i < k->n_states; i++) {
        const qn_type *t = &states[i]->type;
        if (type->rank != 2 || t->rank != 2 || t->dtype != type->dtype || t->dims[0] != type->dims[0] ||
            t->dims[1] != states[0]->type.dims[1] || !qn_dim_is_const(t->dims[1])) {
            qn_build_fail(b, call, "x is %s and %s %s; they must be [batch, features] and [batch, hidden]",
                          qn_type_print(type, b->module->arena), names[i],
                          qn_type_print(t, b->module->arena));
            return false;
        }
    }
    const qn_dim hidden = states[0]->type.dims[1];
    if (!cell_params(b, call, k, type->dtype, depth, hidden->value, name, params))
        return false;
    k->step(&b->build, affine(&b->build, qn_in(x), params[WEIGHT_X], params[BIAS_X]),
            affine(&b->build, states[0], params[WEIGHT_H], params[BIAS_H]), hidden, states);
    return states[0] != NULL;
}

quern_value *quern_lstm_cell(quern_builder *b, quern_value *x, quern_value *h, quern_value **c,
                             const char *name)
{
    quern_value *const operands[] = { x, h, *c };
    qn_value *states[2] = { qn_in(h), qn_in(*c) };
    const bool good = qn_build_begin(b, lstm.cell_call, 3, operands) && one_step(b, &lstm, x, states, name);
    *c = good ? qn_out(states[1]) : NULL;
    return good ? qn_out(states[0]) : NULL;
}

quern_value *quern_gru_cell(quern_builder *b, quern_value *x, quern_value *h, const char *name)
{
    qn_value *states[2] = { qn_in(h) };
    return qn_build_begin(b, gru.cell_call, 2, (quern_value *[]){ x, h }) &&
                   one_step(b, &gru, x, states, name)
               ? qn_out(states[0])
               : NULL;
}

/* ---- a loop of the caller's ---- */

static bool is_of(const qn_graph *graph, const qn_value *value)
{
    return value->node ? value->node->graph == graph
                       : value->index < graph->n_inputs && graph->inputs[value->index] == value;
}

/* What is captured so far, and the inputs of the body that stand for it. */
typedef qn_vec(qn_value *) values;

/* An input of the body for a value of the graph around it. */
static qn_value *captured(qn_graph *body, qn_value *value, values *outside, values *inside)
{
    qn_arena *arena = body->module->arena;
    if (is_of(body, value))
        return value;
    for (size_t i = 0; i < outside->n; i++)
        if (outside->items[i] == value)
            return inside->items[i];
    qn_value *input = qn_graph_add_input(body, NULL, value->type, QN_ROLE_INPUT);
    qn_vec_push(arena, outside, value);
    qn_vec_push(arena, inside, input);
    return input;
}

/* Are they there, and [length, ...] all? */
static bool can_scan(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                     quern_value *const *scanned)
{
    static const char call[] = "quern_scan";
    if (!qn_build_begin(b, call, n_carried, carried) || !qn_build_begin(b, call, n_scanned, scanned))
        return false;
    for (int i = 0; i < n_scanned; i++) {
        const qn_type *type = &qn_in(scanned[i])->type;
        if (type->rank == 0 || type->dims[0] != qn_in(scanned[0])->type.dims[0]) {
            qn_build_fail(b, call, "scanned value %d is %s, the first %s: axis 0 must be as long", i,
                          qn_type_print(type, b->module->arena),
                          qn_type_print(&qn_in(scanned[0])->type, b->module->arena));
            return false;
        }
    }
    if (n_scanned < 1)
        qn_build_fail(b, call, "it needs a value to scan");
    return n_scanned > 0;
}

/* Did the body leave values, the carried ones of the types that they had? */
static bool is_step(quern_builder *b, int n_carried, quern_value *const *first, int n_outputs,
                    quern_value *const *outputs)
{
    static const char call[] = "quern_scan";
    if (!qn_build_begin(b, call, n_outputs, outputs))
        return false;
    for (int i = 0; i < n_carried; i++)
        if (!qn_type_equal(&qn_in(first[i])->type, &qn_in(outputs[i])->type)) {
            qn_build_fail(b, call, "carried value %d is %s at first, and %s after a step", i,
                          qn_type_print(&qn_in(first[i])->type, b->module->arena),
                          qn_type_print(&qn_in(outputs[i])->type, b->module->arena));
            return false;
        }
    return true;
}

/* The loop around a body that made these outputs of the inputs that it was given; NULL after a report. What it read of the
 * graph around is captured. */
static const qn_node *close_loop(quern_builder *b, qn_graph *body, int n_carried, quern_value *const *carried,
                                 int n_scanned, quern_value *const *scanned, int n_outputs,
                                 quern_value *const *outputs, bool reverse)
{
    qn_arena *arena = b->module->arena;
    const int n_given = n_carried + n_scanned;
    values outside = { 0 }, inside = { 0 };
    QN_FOR_NODES (body, node)
        for (int i = 0; i < node->n_operands; i++)
            node->operands[i] = captured(body, node->operands[i], &outside, &inside);
    for (int i = 0; i < n_outputs; i++)
        qn_graph_add_output(body, captured(body, qn_in(outputs[i]), &outside, &inside), NULL, -1);
    const int n = n_given + (int)outside.n;
    qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, n);
    for (int i = 0; i < n; i++)
        operands[i] = i < n_carried ? qn_in(carried[i])
                      : i < n_given ? qn_in(scanned[i - n_carried])
                                    : outside.items[i - n_given];
    b->build.loc = (qn_loc){ .op = "quern_scan" };
    return qn_b_scan(&b->build, n_carried, n_scanned, (int)outside.n, operands,
                     operands[n_carried]->type.dims[0], reverse, body);
}

static void scan_over(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                      quern_value *const *scanned, int n_stacked, quern_value **stacked, quern_scan_fn body,
                      void *user, bool reverse)
{
    const qn_node *scan = NULL;
    if (can_scan(b, n_carried, carried, n_scanned, scanned)) {
        qn_graph *around = b->build.graph, *loop = b->build.graph = qn_region_new(b->module);
        quern_value **outputs = QN_NEW_ARRAY(b->module->arena, quern_value *, n_carried + n_stacked);
        quern_value **slices = QN_NEW_ARRAY(b->module->arena, quern_value *, n_scanned);
        for (int i = 0; i < n_carried; i++)
            outputs[i] = qn_out(qn_graph_add_input(loop, NULL, qn_in(carried[i])->type, QN_ROLE_INPUT));
        for (int i = 0; i < n_scanned; i++) {
            const qn_type *type = &qn_in(scanned[i])->type;
            const qn_type slice = qn_type_make(b->module, type->dtype, type->rank - 1, type->dims + 1);
            slices[i] = qn_out(qn_graph_add_input(loop, NULL, slice, QN_ROLE_INPUT));
        }
        body(user, b, outputs, slices, outputs + n_carried);
        b->build.graph = around;
        if (is_step(b, n_carried, carried, n_carried + n_stacked, outputs))
            scan = close_loop(b, loop, n_carried, carried, n_scanned, scanned, n_carried + n_stacked, outputs,
                              reverse);
    }
    for (int i = 0; i < n_carried; i++)
        carried[i] = scan ? qn_out((qn_value *)&scan->results[i]) : NULL;
    for (int i = 0; i < n_stacked; i++)
        stacked[i] = scan ? qn_out((qn_value *)&scan->results[n_carried + i]) : NULL;
}

void quern_scan(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                quern_value *const *scanned, int n_stacked, quern_value **stacked, quern_scan_fn body,
                void *user)
{
    scan_over(b, n_carried, carried, n_scanned, scanned, n_stacked, stacked, body, user, false);
}

void quern_scan_reverse(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                        quern_value *const *scanned, int n_stacked, quern_value **stacked, quern_scan_fn body,
                        void *user)
{
    scan_over(b, n_carried, carried, n_scanned, scanned, n_stacked, stacked, body, user, true);
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
