/* LSTM, GRU, RNN. An LSTM in its plain form is our composite; everything else is a scan over time:
 *
 *   carried  h [B, H], for an LSTM c [B, H]
 *   scanned  x W^T + bias of the step [B, gates * H], computed for all steps before; the step's number
 *   captured R [gates * H, H], and where there are: bias of R, peepholes, lengths of the sequences
 *
 * com.microsoft's DynamicQuantizeLSTM has W and R in bytes, transposed, with scales and zero points; x, and h of each step, are
 * quantized by their range and multiplied as bytes.
 *
 * Beyond a sequence's length the state stays and the output is 0; so a reverse scan starts at its last element. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/functions.h"
#include "frontend/onnx/quant.h"

typedef enum cell_kind { CELL_RNN, CELL_GRU, CELL_LSTM } cell_kind;

typedef struct activation {
    const qn_onnx_function *function;
    double alpha, beta;
} activation;

typedef struct cell {
    qn_onnx_node *n;
    cell_kind kind;
    int n_gates, n_activations;
    activation activations[2][3]; /* by direction */
    int64_t hidden;
    double clip; /* 0: none */
    bool batch_first, couple_gates, linear_before_reset;
    bool in_bytes;         /* W and R are [I, gates * H] and [H, gates * H] of bytes */
    qn_value *x, *lengths; /* [S, B, I]; i64 [B] or NULL */
} cell;

/* Alphas and betas are given in order to the functions that take one. */
static bool read_activations(cell *c, int n_directions)
{
    static const char *const defaults[3][3] = { { "Tanh" },
                                                { "Sigmoid", "Tanh" },
                                                { "Sigmoid", "Tanh", "Tanh" } };
    qn_onnx_node *n = c->n;
    const Onnx__Attribute *names = qn_onnx_attr(n, "activations", ONNX__ATTRIBUTE__KIND__STRINGS);
    int n_alpha, n_beta, alpha = 0, beta = 0;
    const float *alphas = qn_onnx_attr_floats(n, "activation_alpha", &n_alpha);
    const float *betas = qn_onnx_attr_floats(n, "activation_beta", &n_beta);
    if (names && names->n_strings != (size_t)(c->n_activations * n_directions)) {
        qn_onnx_malformed(n, "attribute activations must have %d elements", c->n_activations * n_directions);
        return false;
    }
    for (int i = 0; i < c->n_activations * n_directions; i++) {
        activation *a = &c->activations[i / c->n_activations][i % c->n_activations];
        const char *fallback = defaults[c->kind][i % c->n_activations];
        const char *name = names ? (const char *)names->strings[i].data : fallback;
        size_t length = names ? names->strings[i].len : strlen(fallback);
        const qn_onnx_function *f = qn_onnx_function_find(name, length);
        if (!f) {
            qn_onnx_unsupported(n, "activation %.*s", (int)(length & 0xff), name);
            return false;
        }
        *a = (activation){ f, f->alpha, f->beta };
        if (f->takes_alpha && alphas && alpha < n_alpha)
            a->alpha = (double)alphas[alpha++];
        if (f->takes_beta && betas && beta < n_beta)
            a->beta = (double)betas[beta++];
    }
    return true;
}

static qn_value *apply(qn_builder *b, const cell *c, const activation *a, qn_value *x)
{
    if (c->clip > 0)
        x = max_number(b, min_number(b, x, c->clip), -c->clip);
    return qn_onnx_function_apply(b, a->function, a->alpha, a->beta, x);
}

/* Row `index` of an input [directions, …]; of a constant, a view, unless that would hide from training what it is made of. NULL
 * when it is left out. */
static qn_value *direction_of(qn_onnx_node *n, int input, int index)
{
    if (!qn_onnx_has(n, input) || !qn_onnx_in_type(n, input))
        return NULL;
    qn_onnx_value *v = n->in[input];
    const bool made = v->learnable && v->value && (!v->value->node || v->value->node->op != QN_OP_CONSTANT);
    const size_t rows = v->tensor && v->type.rank > 0 ? (size_t)v->type.dims[0]->value : 0;
    if ((size_t)index < rows && !made && !(v->learnable && rows > 1)) {
        qn_tensor *t = QN_NEW(n->im->arena, qn_tensor);
        *t = (qn_tensor){ .bytes = v->tensor->bytes / rows,
                          .name = v->tensor->name,
                          .mapped = v->tensor->mapped };
        t->data = (const uint8_t *)v->tensor->data + (size_t)index * t->bytes;
        t->type = qn_type_make(n->im->module, v->type.dtype, v->type.rank - 1, v->type.dims + 1);
        if (rows > 1)
            t->name = NULL;
        return qn_b_constant(&n->b, t);
    }
    qn_dim start = qn_dim_const(n->im->dims, index), limit = qn_dim_const(n->im->dims, index + 1);
    return qn_b_squeeze(&n->b, qn_b_slice_axis(&n->b, qn_onnx_in(n, input), 0, start, limit), 0);
}

/* Columns [k * H, (k + count) * H) of [B, gates * H], or elements of a vector. */
static qn_value *gates(qn_builder *b, const cell *c, qn_value *x, int k, int count)
{
    if (!x)
        return NULL;
    qn_dims *t = qn_b_dims(b);
    return qn_b_slice_axis(b, x, x->type.rank - 1, qn_dim_const(t, k * c->hidden),
                           qn_dim_const(t, (k + count) * c->hidden));
}

/* W or R; scale NULL: of floats. */
typedef qn_onnx_quantized matrix;

/* x [.., I] times W or R: [.., gates * H] */
static qn_value *times(qn_builder *b, const cell *c, qn_value *x, const matrix *w)
{
    if (!w->scale)
        return times_transposed(b, x, w->bytes);
    qn_onnx_node here = *c->n; /* in the graph of b */
    here.b = *b;
    const qn_onnx_quantized q = qn_onnx_quantize_dynamic(b, x);
    return q.bytes ? qn_onnx_scaled_matmul(&here, &q, w) : NULL;
}

/* Values that a step reads besides its states. NULL where there are none. */
typedef struct step {
    matrix r;
    qn_value *bias_r, *peepholes;
} step;

static qn_value *step_rnn(qn_builder *b, const cell *c, const activation *f, const step *s, qn_value *xw,
                          qn_value *h)
{
    return apply(b, c, &f[0], add(b, xw, times(b, c, h, &s->r)));
}

/* Rows [k * H, (k + count) * H) of R. */
static qn_value *rows(qn_builder *b, const cell *c, qn_value *r, int k, int count)
{
    qn_dims *t = qn_b_dims(b);
    return qn_b_slice_axis(b, r, 0, qn_dim_const(t, k * c->hidden), qn_dim_const(t, (k + count) * c->hidden));
}

static qn_value *step_gru(qn_builder *b, const cell *c, const activation *f, const step *s, qn_value *xw,
                          qn_value *h)
{
    qn_value *zr = add(b, gates(b, c, xw, 0, 2), times_transposed(b, h, rows(b, c, s->r.bytes, 0, 2)));
    if (s->bias_r)
        zr = add(b, zr, gates(b, c, s->bias_r, 0, 2));
    zr = apply(b, c, &f[0], zr);
    qn_value *z = gates(b, c, zr, 0, 1), *r = gates(b, c, zr, 1, 1), *r_hidden = rows(b, c, s->r.bytes, 2, 1);
    qn_value *bias = gates(b, c, s->bias_r, 2, 1), *from_h;
    if (c->linear_before_reset) {
        from_h = times_transposed(b, h, r_hidden);
        from_h = mul(b, r, bias ? add(b, from_h, bias) : from_h);
    } else {
        from_h = times_transposed(b, mul(b, r, h), r_hidden);
        from_h = bias ? add(b, from_h, bias) : from_h;
    }
    qn_value *candidate = apply(b, c, &f[1], add(b, gates(b, c, xw, 2, 1), from_h));
    return add(b, mul(b, sub(b, number_like(b, z, 1), z), candidate), mul(b, z, h));
}

/* Gates in the order i, o, f, c; peepholes i, o, f. */
static qn_value *step_lstm(qn_builder *b, const cell *c, const activation *f, const step *s, qn_value *xw,
                           qn_value *h, qn_value *state, qn_value **out_state)
{
    qn_value *all = add(b, xw, times(b, c, h, &s->r)), *p = s->peepholes;
    qn_value *i = gates(b, c, all, 0, 1), *o = gates(b, c, all, 1, 1), *forget = gates(b, c, all, 2, 1);
    if (p) {
        i = add(b, i, mul(b, gates(b, c, p, 0, 1), state));
        forget = add(b, forget, mul(b, gates(b, c, p, 2, 1), state));
    }
    i = apply(b, c, &f[0], i);
    forget = c->couple_gates ? sub(b, number_like(b, i, 1), i) : apply(b, c, &f[0], forget);
    qn_value *candidate = apply(b, c, &f[1], gates(b, c, all, 3, 1));
    *out_state = add(b, mul(b, forget, state), mul(b, i, candidate));
    if (p)
        o = add(b, o, mul(b, gates(b, c, p, 1, 1), *out_state));
    o = apply(b, c, &f[0], o);
    cell plain = *c;
    plain.clip = 0; /* the clip is for gates and candidates */
    return mul(b, o, apply(b, &plain, &f[2], *out_state));
}

/* One direction as a scan; results y [S, B, H], h, c. */
static bool scan_direction(const cell *c, int direction, bool reverse, const matrix *w, const matrix *r,
                           qn_value *bias, qn_value *peepholes, qn_value *h0, qn_value *c0,
                           qn_value **results)
{
    qn_onnx_node *n = c->n;
    qn_builder *b = &n->b, inner = *b;
    bool is_lstm = c->kind == CELL_LSTM;
    int n_states = is_lstm ? 2 : 1, n_captured = 0, n_operands = 0;
    qn_value *operands[10], *xw = times(b, c, c->x, w), *bias_r = NULL;
    if (bias) {
        xw = add(b, xw, gates(b, c, bias, 0, c->n_gates));
        bias_r = gates(b, c, bias, c->n_gates, c->n_gates);
        if (c->kind != CELL_GRU) { /* adds up with that of the input */
            xw = add(b, xw, bias_r);
            bias_r = NULL;
        }
    }
    if (!xw || !h0 || (is_lstm && !c0))
        return false;
    qn_dim steps = xw->type.dims[0];
    qn_type index = qn_type_make(n->im->module, QUERN_I64, 1, &steps);
    inner.graph = qn_region_new(n->im->module);
    operands[n_operands++] = h0;
    if (is_lstm)
        operands[n_operands++] = c0;
    operands[n_operands++] = xw;
    operands[n_operands++] = qn_b_iota(b, &index, 0);
    enum { BIAS, PEEPHOLES, LENGTHS, R, R_SCALE, R_ZERO, N_CAPTURED };
    qn_value *captured[N_CAPTURED] = { bias_r, peepholes, c->lengths, r->bytes, r->scale, r->zero }, *in[4],
             *inside[N_CAPTURED] = { NULL };
    for (int i = 0; i < n_operands; i++) {
        qn_type type = operands[i]->type;
        if (i >= n_states)
            type = qn_type_make(n->im->module, type.dtype, type.rank - 1, type.dims + 1);
        in[i] = qn_graph_add_input(inner.graph, NULL, type, QN_ROLE_INPUT);
    }
    int n_own = n_operands;
    for (int i = 0; i < N_CAPTURED; i++)
        if (captured[i]) {
            inside[i] = qn_graph_add_input(inner.graph, NULL, captured[i]->type, QN_ROLE_INPUT);
            operands[n_operands++] = captured[i];
            n_captured++;
        }
    step s = { { inside[R], inside[R_SCALE], inside[R_ZERO] }, inside[BIAS], inside[PEEPHOLES] };
    const activation *f = c->activations[direction];
    qn_value *h = in[0], *state = is_lstm ? in[1] : NULL, *x = in[n_states], *new_state = NULL, *new_h;
    if (is_lstm)
        new_h = step_lstm(&inner, c, f, &s, x, h, state, &new_state);
    else
        new_h = c->kind == CELL_GRU ? step_gru(&inner, c, f, &s, x, h) : step_rnn(&inner, c, f, &s, x, h);
    qn_value *y = new_h;
    if (inside[LENGTHS] && new_h) { /* is the step within the sequence? [B, 1] */
        qn_value *active = compare(&inner, QN_LT, in[n_own - 1], inside[LENGTHS]);
        active = qn_b_expand_dims(&inner, active, 1);
        y = choose(&inner, active, new_h, number_like(&inner, new_h, 0));
        new_h = choose(&inner, active, new_h, h);
        new_state = is_lstm ? choose(&inner, active, new_state, state) : NULL;
    }
    if (!y || !new_h || (is_lstm && !new_state))
        return false;
    qn_graph_add_output(inner.graph, new_h, NULL, -1);
    if (is_lstm)
        qn_graph_add_output(inner.graph, new_state, NULL, -1);
    qn_graph_add_output(inner.graph, y, NULL, -1);
    qn_node *node = qn_b_scan(b, n_states, 2, n_captured, operands, steps, reverse, inner.graph);
    if (!node)
        return false;
    results[0] = &node->results[n_states];
    results[1] = &node->results[0];
    results[2] = is_lstm ? &node->results[1] : NULL;
    return true;
}

/* Is it what the composite does? */
static bool is_plain_lstm(const cell *c, int direction, const qn_value *peepholes)
{
    const activation *f = c->activations[direction];
    return c->kind == CELL_LSTM && !c->in_bytes && !c->lengths && !peepholes && !c->clip &&
           !c->couple_gates && !strcmp(f[0].function->name, "Sigmoid") &&
           !strcmp(f[1].function->name, "Tanh") && !strcmp(f[2].function->name, "Tanh");
}

/* W (input 1) or R (2), of bytes with the scale at `scale` and the zero point behind it; false after a report. */
static bool read_matrix(const cell *c, int input, int scale, int direction, matrix *out)
{
    qn_onnx_node *n = c->n;
    const qn_dim columns = qn_dim_const(n->im->dims, c->hidden * c->n_gates);
    *out = (matrix){ .bytes = direction_of(n, input, direction) };
    if (out->bytes && c->in_bytes) {
        if (!qn_onnx_in(n, scale) || !qn_onnx_in(n, scale + 1))
            return false;
        out->scale = direction_of(n, scale, direction);
        out->zero = direction_of(n, scale + 1, direction);
    }
    if (!out->bytes || !qn_onnx_ok(n))
        return false;
    bool fits = out->bytes->type.rank == 2 && out->bytes->type.dims[c->in_bytes] == columns;
    for (int i = 0; fits && c->in_bytes && i < 2; i++) {
        const qn_type *type = i ? &out->zero->type : &out->scale->type;
        fits = type->rank == 0 || (type->rank == 1 && type->dims[0] == columns);
    }
    if (!fits)
        qn_onnx_malformed(n, "the weights do not fit %d gates of hidden size %lld", c->n_gates,
                          (long long)c->hidden);
    return fits;
}

/* Initial state: row of an input [directions, B, H] or [B, directions, H], or zeros. */
static qn_value *initial_state(const cell *c, int input, int direction)
{
    qn_onnx_node *n = c->n;
    qn_builder *b = &n->b;
    qn_dim dims[2] = { c->x->type.dims[1], qn_dim_const(n->im->dims, c->hidden) };
    if (!qn_onnx_has(n, input)) {
        qn_type type = qn_type_make(n->im->module, c->x->type.dtype, 2, dims);
        return qn_b_full(b, &type, 0);
    }
    qn_value *v = qn_onnx_in(n, input);
    if (v && v->type.rank != 3) {
        qn_onnx_malformed(n, "input %d must have rank 3", input);
        return NULL;
    }
    qn_dim start = qn_dim_const(n->im->dims, direction), limit = qn_dim_const(n->im->dims, direction + 1);
    int axis = c->batch_first ? 1 : 0;
    return qn_onnx_with_dim(n, qn_b_squeeze(b, qn_b_slice_axis(b, v, axis, start, limit), axis), 0, dims[0]);
}

static bool import_direction(cell *c, int direction, bool reverse, qn_value **results)
{
    qn_onnx_node *n = c->n;
    qn_builder *b = &n->b;
    bool is_lstm = c->kind == CELL_LSTM;
    matrix w, r;
    if (!read_matrix(c, 1, 8, direction, &w) || !read_matrix(c, 2, 10, direction, &r))
        return false;
    qn_value *bias = direction_of(n, 3, direction);
    qn_value *peepholes = is_lstm ? direction_of(n, 7, direction) : NULL;
    qn_value *h0 = initial_state(c, 5, direction), *c0 = is_lstm ? initial_state(c, 6, direction) : NULL;
    if (!qn_onnx_ok(n))
        return false;
    if (bias && bias->type.rank != 1) {
        qn_onnx_malformed(n, "the bias must have rank 2");
        return false;
    }
    if (!is_plain_lstm(c, direction, peepholes))
        return scan_direction(c, direction, reverse, &w, &r, bias, peepholes, h0, c0, results);
    if (bias) {
        bias = add(b, gates(b, c, bias, 0, 4), gates(b, c, bias, 4, 4));
    } else {
        const qn_type *of_w = &w.bytes->type;
        qn_type type = qn_type_make(n->im->module, of_w->dtype, 1, of_w->dims);
        bias = qn_b_full(b, &type, 0);
    }
    qn_node *node = qn_b_lstm(b, c->x, w.bytes, r.bytes, bias, h0, c0, reverse);
    for (int i = 0; node && i < 3; i++)
        results[i] = &node->results[i];
    return node != NULL;
}

/* Puts the directions' results side by side along a new axis. */
static qn_value *join(qn_builder *b, int n_directions, qn_value *first, qn_value *second, int axis)
{
    qn_value *parts[2] = { qn_b_expand_dims(b, first, axis), NULL };
    if (n_directions == 1)
        return parts[0];
    parts[1] = qn_b_expand_dims(b, second, axis);
    return qn_b_concatenate(b, 2, parts, axis);
}

static void import_rnn(qn_onnx_node *n)
{
    static const char *const names[3] = { "RNN", "GRU", "LSTM" };
    const char *name = n->proto->op_type;
    static const int n_gates[3] = { 1, 3, 4 }, n_activations[3] = { 1, 2, 3 };
    qn_builder *b = &n->b;
    cell c = { .n = n, .clip = qn_onnx_attr_float(n, "clip", 0) };
    c.in_bytes = !strcmp(name, "DynamicQuantizeLSTM");
    while (strcmp(names[c.kind], c.in_bytes ? "LSTM" : name))
        c.kind++;
    c.n_gates = n_gates[c.kind];
    c.n_activations = n_activations[c.kind];
    c.batch_first = qn_onnx_attr_int(n, "layout", 0) != 0;
    c.couple_gates = qn_onnx_attr_int(n, "input_forget", 0) != 0;
    c.linear_before_reset = qn_onnx_attr_int(n, "linear_before_reset", 0) != 0;
    const char *direction = qn_onnx_attr_string(n, "direction", "forward");
    bool reverse = !strcmp(direction, "reverse"), both = !strcmp(direction, "bidirectional");
    const qn_type *r = qn_onnx_in_type(n, 2);
    c.x = qn_onnx_in(n, 0);
    if (!r || !c.x || !qn_onnx_in_type(n, 1))
        return;
    if (!reverse && !both && strcmp(direction, "forward")) {
        qn_onnx_malformed(n, "attribute direction must be forward, reverse or bidirectional");
        return;
    }
    const qn_dim hidden = r->rank == 3 ? r->dims[c.in_bytes ? 1 : 2] : NULL;
    if (c.x->type.rank != 3 || !hidden || !qn_dim_is_const(hidden) || hidden->value < 1) {
        if (hidden)
            qn_onnx_needs_dim(n, hidden);
        qn_onnx_malformed(n, "input and weights must have rank 3, and the hidden size be known");
        return;
    }
    c.hidden = hidden->value;
    if (qn_onnx_attr_int(n, "hidden_size", c.hidden) != c.hidden || !read_activations(&c, both ? 2 : 1)) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute hidden_size differs from the weights");
        return;
    }
    static const int64_t swap[3] = { 1, 0, 2 };
    if (c.batch_first)
        c.x = qn_b_transpose(b, c.x, swap);
    if (qn_onnx_has(n, 4))
        c.lengths = qn_b_convert(b, QUERN_I64, qn_onnx_in(n, 4));
    int n_directions = both ? 2 : 1;
    qn_value *results[2][3] = { { NULL } };
    for (int d = 0; d < n_directions; d++)
        if (!import_direction(&c, d, reverse || d == 1, results[d]))
            return;
    qn_value *y = join(b, n_directions, results[0][0], results[1][0], 1); /* [S, directions, B, H] */
    if (c.batch_first)
        y = qn_b_transpose(b, y, (int64_t[]){ 2, 0, 1, 3 });
    qn_onnx_out(n, 0, y);
    for (int i = 1; i < (c.kind == CELL_LSTM ? 3 : 2); i++)
        qn_onnx_out(n, i, join(b, n_directions, results[0][i], results[1][i], c.batch_first ? 1 : 0));
}

const qn_onnx_op qn_onnx_rnn_ops[] = {
    { "RNN", NULL, 1, 0, import_rnn },
    { "GRU", NULL, 1, 0, import_rnn },
    { "LSTM", NULL, 1, 0, import_rnn },
    { "DynamicQuantizeLSTM", "com.microsoft", 1, 0, import_rnn },
    { 0 },
};
