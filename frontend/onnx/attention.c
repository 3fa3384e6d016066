/* Attention in its forms, and what goes with it: rotary embedding, linear attention, causal convolution. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/heads.h"

/* ---- Attention ---- */

static qn_value *heads_input(qn_onnx_node *n, int i, const char *attr, bool *packed)
{
    qn_value *x = qn_onnx_in(n, i);
    *packed = x && x->type.rank == 3;
    int64_t heads = qn_onnx_attr_int(n, attr, 0);
    if (x && x->type.rank != 4 && !(*packed && heads > 0)) {
        qn_onnx_malformed(n, "input %d must have rank 4, or rank 3 and attribute %s be given", i, attr);
        return NULL;
    }
    return *packed ? qn_onnx_unpack_heads(n, x, heads) : x;
}

/* The mask input: as wide as the keys (missing ones are masked), additive, of rank 4. */
static bool read_mask(qn_onnx_attention *a)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_value *mask = qn_onnx_in_opt(n, 3);
    if (!mask)
        return qn_onnx_ok(n);
    if (mask->type.rank < 1 || mask->type.rank > 4) {
        qn_onnx_malformed(n, "the mask must have rank 4 or less");
        return false;
    }
    bool is_bool = mask->type.dtype == QUERN_BOOL;
    if (!is_bool && !qn_dtype_is_float(mask->type.dtype)) {
        qn_onnx_malformed(n, "the mask must be of bools or floats");
        return false;
    }
    qn_dim keys = a->k->type.dims[2], width = mask->type.dims[mask->type.rank - 1];
    qn_dim missing = qn_dim_max(n->im->dims, qn_dim_sub(n->im->dims, keys, width), qn_onnx_dim(n, 0));
    const bool known = qn_dim_is_const(width) && qn_dim_is_const(keys);
    if (known ? missing->value > 0 && width->value > 0 /* from opset 24 on there may be fewer */
              : n->opset >= 24 && !qn_dim_is(missing, 0) && !qn_dim_is(width, 1)) {
        qn_dim low[4], high[4];
        for (int i = 0; i < mask->type.rank; i++)
            low[i] = high[i] = qn_onnx_dim(n, 0);
        high[mask->type.rank - 1] = missing;
        qn_value *fill = is_bool ? qn_b_scalar_int(b, QUERN_BOOL, 0) : number_like(b, mask, -INFINITY);
        mask = qn_b_pad(b, mask, fill, low, high, NULL);
    }
    return qn_onnx_attention_bias(a, mask);
}

/* How many keys are no padding, of which the last query is the last. */
static void read_lengths(qn_onnx_attention *a)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    const qn_dim one = qn_onnx_dim(n, 1), dims[4] = { a->q->type.dims[0], one, one, one };
    qn_value *lengths = qn_onnx_in_opt(n, 6);
    lengths = lengths ? qn_b_reshape(b, qn_b_convert(b, QUERN_I64, lengths), 4, dims) : NULL;
    if (!lengths)
        return;
    a->first = sub(b, lengths, qn_b_dim_value(b, QUERN_I64, a->q->type.dims[2]));
    qn_onnx_attention_allow(a, compare(b, QN_LT, qn_onnx_attention_keys(a), lengths), -INFINITY);
}

/* Attributes softmax_precision and qk_matmul_output_mode. */
static bool read_output_mode(qn_onnx_attention *a, int64_t *out_mode)
{
    qn_onnx_node *n = a->n;
    const int64_t elem = qn_onnx_attr_int(n, "softmax_precision", 0);
    if (elem) {
        a->precision =
            elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
        if (a->precision == QUERN_INVALID_DTYPE || !qn_dtype_is_float(a->precision)) {
            qn_onnx_malformed(n, "attribute softmax_precision must be a float type");
            return false;
        }
    }
    *out_mode = qn_onnx_attr_int(n, "qk_matmul_output_mode", 0);
    if (*out_mode < 0 || *out_mode > 3) {
        qn_onnx_malformed(n, "attribute qk_matmul_output_mode must be 0, 1, 2 or 3");
        return false;
    }
    a->keep_stages = qn_onnx_wants(n, 3);
    return true;
}

static void import_attention(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_onnx_attention a;
    bool packed, other;
    qn_value *q = heads_input(n, 0, "q_num_heads", &packed), *k = heads_input(n, 1, "kv_num_heads", &other),
             *v = heads_input(n, 2, "kv_num_heads", &other);
    int64_t mode;
    if (!q || !k || !v)
        return;
    k = qn_onnx_after_past(n, qn_onnx_in_opt(n, 4), k);
    v = qn_onnx_after_past(n, qn_onnx_in_opt(n, 5), v);
    if (!qn_onnx_attention_init(&a, n, q, k, v) || !read_output_mode(&a, &mode))
        return;
    if (qn_onnx_has(n, 4) && n->in[4]->type.rank == 4)
        a.past = n->in[4]->type.dims[2];
    qn_onnx_out(n, 1, a.k);
    qn_onnx_out(n, 2, a.v);
    if (!read_mask(&a))
        return;
    read_lengths(&a);
    a.causal = qn_onnx_attr_int(n, "is_causal", 0) != 0;
    a.left = qn_onnx_attr_int(n, "left_window_size", -1);
    a.right = qn_onnx_attr_int(n, "right_window_size", -1);
    a.cap = qn_onnx_attr_float(n, "softcap", 0);
    a.scale = qn_onnx_attr_float(n, "scale", 0);
    if (!qn_onnx_attr(n, "scale", ONNX__ATTRIBUTE__KIND__FLOAT)) {
        a.scale = 1;
        if (qn_dim_is_const(a.q->type.dims[3])) {
            a.scale = 1 / sqrt((double)a.q->type.dims[3]->value);
        } else { /* the queries are scaled, as the composite's scale is a number */
            qn_value *size =
                qn_b_convert(b, a.q->type.dtype, qn_b_dim_value(b, QUERN_I64, a.q->type.dims[3]));
            a.q = mul(b, a.q, qn_b_unary(b, QN_OP_RSQRT, size));
        }
    }
    qn_value *y = qn_onnx_attend(&a);
    if (a.keep_stages)
        qn_onnx_out(n, 3, a.stages[mode]);
    qn_onnx_out(n, 0, packed ? qn_onnx_pack_heads(n, y) : y);
}

/* Scores and probabilities go through graphs of the model's. */
static qn_value *modified(qn_onnx_node *n, const char *attr, qn_value *x)
{
    if (!x || !qn_onnx_attr(n, attr, ONNX__ATTRIBUTE__KIND__GRAPH))
        return x;
    const Onnx__Graph *graph = qn_onnx_attr_graph(n, attr);
    qn_onnx_scope *scope = graph ? qn_onnx_scope_new(n, NULL) : NULL;
    if (!scope)
        return NULL;
    if (graph->n_input != 1 || graph->n_output != 1) {
        qn_onnx_malformed(n, "attribute %s must have one input and one output", attr);
        return NULL;
    }
    if (!qn_onnx_scope_define(scope, graph->input[0]->name, qn_onnx_value_from(n->im, x), &n->b.loc) ||
        !qn_onnx_scope_import(scope, graph))
        return NULL;
    qn_onnx_value *v = qn_onnx_scope_output(scope, graph, 0, &n->b.loc);
    return v && v->kind == QN_ONNX_TENSOR ? qn_onnx_value_make(&n->b, v) : NULL;
}

static void import_flex_attention(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *q = qn_onnx_in(n, 0), *k = qn_onnx_in(n, 1), *v = qn_onnx_in(n, 2);
    if (!q || !k || !v)
        return;
    if (q->type.rank != 4 || k->type.rank != 4 || v->type.rank != 4 ||
        (!qn_onnx_attr(n, "scale", ONNX__ATTRIBUTE__KIND__FLOAT) && !qn_dim_is_const(q->type.dims[3]))) {
        qn_onnx_needs_dim(n, q->type.rank == 4 ? q->type.dims[3] : qn_onnx_dim(n, 0));
        qn_onnx_malformed(n, "the inputs must have rank 4 and a known head size");
        return;
    }
    qn_dtype dtype = q->type.dtype, precision = dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    int64_t elem = qn_onnx_attr_int(n, "softmax_precision", (int64_t)qn_onnx_dtype_elem(precision));
    precision = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
    if (precision == QUERN_INVALID_DTYPE || !qn_dtype_is_float(precision)) {
        qn_onnx_malformed(n, "attribute softmax_precision must be a float type");
        return;
    }
    double scale = qn_onnx_attr_float(n, "scale", 1 / sqrt((double)q->type.dims[3]->value));
    for (int i = 0; i < 4; i++) /* batch, groups, length, head size */
        k = i == 0 || i == 3 ? qn_onnx_with_dim(n, k, i, q->type.dims[i]) : k;
    for (int i = 0; i < 3; i++)
        v = k ? qn_onnx_with_dim(n, v, i, k->type.dims[i]) : v;
    if (!k || !v || !qn_onnx_heads_known(n, q, k))
        return;
    k = qn_onnx_repeat_heads(n, k, q->type.dims[1]);
    v = qn_onnx_repeat_heads(n, v, q->type.dims[1]);
    qn_value *scores = qn_onnx_matmul_heads(b, q, k, true);
    scores = scores ? mul_number(b, qn_b_convert(b, precision, scores), scale) : NULL;
    qn_value *p = modified(n, "score_mod", scores);
    p = p ? modified(n, "prob_mod", qn_b_softmax(b, QN_OP_SOFTMAX, p, 3)) : NULL;
    qn_onnx_out(n, 0, p ? qn_onnx_matmul_heads(b, qn_b_convert(b, dtype, p), v, false) : NULL);
}

/* ---- RotaryEmbedding ---- */

/* Cosines or sines as [B, 1, S, half], by position or as they are. */
static qn_value *rotation(qn_onnx_node *n, int input)
{
    qn_value *cache = qn_onnx_in(n, input);
    if (cache && qn_onnx_has(n, 3))
        cache = qn_b_gather(&n->b, cache, qn_onnx_in(n, 3), 0);
    if (cache && cache->type.rank != 3) {
        qn_onnx_malformed(n, "input %d must have rank 2 with positions, rank 3 without", input);
        return NULL;
    }
    return qn_b_expand_dims(&n->b, cache, 1);
}

static void import_rotary(qn_onnx_node *n)
{
    bool packed, interleaved = qn_onnx_attr_int(n, "interleaved", 0) != 0;
    qn_value *x = heads_input(n, 0, "num_heads", &packed), *cosine = rotation(n, 1), *sine = rotation(n, 2);
    if (!x || !cosine || !sine)
        return;
    if (!qn_dim_is_const(x->type.dims[3])) {
        qn_onnx_needs_dim(n, x->type.dims[3]);
        qn_onnx_unsupported(n, "the head size must be known");
        return;
    }
    int64_t size = x->type.dims[3]->value, turned = qn_onnx_attr_int(n, "rotary_embedding_dim", 0);
    turned = turned ? turned : size;
    if (turned < 0 || turned > size || turned % 2) {
        qn_onnx_malformed(n, "attribute rotary_embedding_dim must be even and at most the head size");
        return;
    }
    cosine = qn_onnx_with_dim(n, cosine, 3, qn_onnx_dim(n, turned / 2));
    sine = qn_onnx_with_dim(n, sine, 3, qn_onnx_dim(n, turned / 2));
    qn_value *y = qn_onnx_rotate(n, x, cosine, sine, interleaved);
    qn_onnx_out(n, 0, packed ? qn_onnx_pack_heads(n, y) : y);
}

/* ---- LinearAttention ---- */

/* [B, T, heads * D] -> f32 [T, B, heads, D], to be scanned along T */
static qn_value *by_time(qn_onnx_node *n, int input, int64_t heads)
{
    qn_value *x = qn_onnx_in(n, input);
    if (x && x->type.rank != 3) {
        qn_onnx_malformed(n, "input %d must have rank 3", input);
        return NULL;
    }
    if (!x)
        return NULL;
    qn_dim h = qn_onnx_dim(n, heads);
    qn_dim dims[4] = { x->type.dims[0], x->type.dims[1], h,
                       qn_dim_floordiv(n->im->dims, x->type.dims[2], h) };
    x = qn_b_reshape(&n->b, qn_b_convert(&n->b, QUERN_F32, x), 4, dims);
    return qn_b_transpose(&n->b, x, (int64_t[]){ 1, 0, 2, 3 });
}

/* Attributes of the domain com.microsoft: states of several positions, and what it has on GPUs only. */
static bool refuse_states(qn_onnx_node *n)
{
    static const char *const names[] = { "state_window", "state_update_capacity", "state_length",
                                         "input_channels", "input_channel_offset" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (qn_onnx_attr_int(n, names[i], 0)) {
            qn_onnx_unsupported(n, "attribute %s = %lld", names[i],
                                (long long)qn_onnx_attr_int(n, names[i], 0));
            return false;
        }
    return true;
}

/* Queries [T, B, H, D] whose heads each serve `times` states: [T, B, times * H, D]. */
static qn_value *repeat_queries(qn_onnx_node *n, qn_value *q, int64_t times)
{
    if (!q)
        return NULL;
    const qn_dim *d = q->type.dims;
    const qn_dim split[5] = { d[0], d[1], d[2], qn_onnx_dim(n, times), d[3] },
                 merged[4] = { d[0], d[1], qn_dim_mul(n->im->dims, d[2], split[3]), d[3] };
    return qn_b_reshape(&n->b, qn_b_broadcast(&n->b, q, 5, split, (int64_t[]){ 0, 1, 2, 4 }), 4, merged);
}

/* An axis of extent 1 or `dim`, known or not, as one of `dim`; 1 stays. */
static qn_value *repeat_to(qn_builder *b, qn_value *x, int axis, qn_dim dim)
{
    qn_dim dims[4];
    if (!x || qn_dim_is(x->type.dims[axis], 1))
        return x;
    for (int i = 0; i < 4; i++)
        dims[i] = i == axis ? dim : x->type.dims[i];
    return qn_b_broadcast_to(b, x, 4, dims);
}

/* state [B, G, K, V], a step's q [B, H, K], k [B, G, K], v [B, G, V] -> new state; *out_y: [B, H, V] */
static qn_value *linear_step(qn_builder *b, qn_value *state, qn_value *q, qn_value *k, qn_value *v,
                             qn_value *decay, qn_value *beta, double scale, qn_value **out_y)
{
    qn_dims *t = qn_b_dims(b);
    qn_dot read = { .n_batch = 2,
                    .n_contract = 1,
                    .x_batch = { 0, 1 },
                    .y_batch = { 0, 1 },
                    .x_contract = { 2 },
                    .y_contract = { 2 } };
    if (decay)
        state = mul(b, state, qn_b_expand_dims(b, qn_b_unary(b, QN_OP_EXP, decay), 3));
    if (beta)
        v = mul(b, beta, sub(b, v, qn_b_dot_general(b, k, state, &read, QUERN_INVALID_DTYPE)));
    state = add(b, state, mul(b, qn_b_expand_dims(b, k, 3), qn_b_expand_dims(b, v, 2)));
    if (!state)
        return NULL;
    /* the query heads of a key head together */
    qn_dim groups = state->type.dims[1], shared = qn_dim_floordiv(t, q->type.dims[1], groups);
    qn_dim split[4] = { q->type.dims[0], groups, shared, q->type.dims[2] };
    qn_dim merged[3] = { q->type.dims[0], q->type.dims[1], state->type.dims[3] };
    qn_dot by_group = read;
    by_group.x_contract[0] = 3;
    qn_value *y = qn_b_dot_general(b, qn_b_reshape(b, q, 4, split), state, &by_group, QUERN_INVALID_DTYPE);
    *out_y = mul_number(b, qn_b_reshape(b, y, 3, merged), scale);
    return state;
}

static void import_linear_attention(qn_onnx_node *n)
{
    qn_builder *b = &n->b, inner = *b;
    int64_t heads = qn_onnx_attr_int(n, "q_num_heads", 0), groups = qn_onnx_attr_int(n, "kv_num_heads", 0);
    const char *rule = qn_onnx_attr_string(n, "update_rule", "gated_delta");
    bool gated = !strcmp(rule, "gated") || !strcmp(rule, "gated_delta");
    bool delta = !strcmp(rule, "delta") || !strcmp(rule, "gated_delta");
    const bool shared_queries = heads > 0 && groups > heads && groups % heads == 0;
    if (heads < 1 || groups < 1 || (heads % groups && !shared_queries) ||
        (!gated && !delta && strcmp(rule, "linear"))) {
        qn_onnx_malformed(n,
                          "attribute update_rule is unknown, or neither of q_num_heads and kv_num_heads is "
                          "a multiple of the other");
        return;
    }
    if (!refuse_states(n))
        return;
    qn_value *in[6] = { NULL, by_time(n, 0, heads), by_time(n, 1, groups), by_time(n, 2, groups) };
    if (shared_queries) {
        in[1] = repeat_queries(n, in[1], groups / heads);
        heads = groups;
    }
    for (int i = 2; i < 4; i++) /* time and batch of keys and values, size of key heads */
        for (int k = 0; k < 4 && in[1]; k++)
            in[i] = k == 2 || (k == 3 && i == 3) ? in[i] : qn_onnx_with_dim(n, in[i], k, in[1]->type.dims[k]);
    if (!in[1] || !in[2] || !in[3])
        return;
    int n_in = 4, decay_at = 0, beta_at = 0;
    if (gated) {
        decay_at = n_in;
        in[n_in++] = by_time(n, 4, groups);
    }
    if (delta) {
        beta_at = n_in; /* one for each state or one for all: [T, B, groups or 1, 1] */
        in[n_in++] = qn_b_transpose(b, by_time(n, 5, 1), (int64_t[]){ 0, 1, 3, 2 });
    }
    for (int i = 4; i < n_in; i++)
        for (int k = 0; k < 2; k++)
            in[i] = qn_onnx_with_dim(n, in[i], k, in[1]->type.dims[k]);
    qn_dtype dtype = n->in[0]->type.dtype, state_dtype = dtype;
    qn_dim dims[4] = { in[1]->type.dims[1], qn_onnx_dim(n, groups), in[2]->type.dims[3],
                       in[3]->type.dims[3] };
    if (gated)
        in[decay_at] = repeat_to(b, in[decay_at], 3, dims[2]);
    if (delta)
        in[beta_at] = repeat_to(b, in[beta_at], 2, dims[1]);
    qn_type type = qn_type_make(n->im->module, QUERN_F32, 4, dims);
    if (qn_onnx_has(n, 3) && qn_onnx_in_type(n, 3)) {
        state_dtype = n->in[3]->type.dtype;
        in[0] = qn_b_reshape(b, qn_b_convert(b, QUERN_F32, qn_onnx_in(n, 3)), 4, dims);
    } else {
        in[0] = qn_b_full(b, &type, 0);
    }
    double scale = qn_onnx_attr_float(n, "scale", 0);
    if (scale == 0 && !qn_dim_is_const(dims[2])) {
        qn_onnx_needs_dim(n, dims[2]);
        qn_onnx_unsupported(n, "the head size must be known, or attribute scale given");
        return;
    }
    scale = scale == 0 ? 1 / sqrt((double)dims[2]->value) : scale;
    inner.graph = qn_region_new(n->im->module);
    qn_value *inside[6];
    for (int i = 0; i < n_in; i++) {
        if (!in[i])
            return;
        qn_type t = in[i]->type;
        if (i > 0)
            t = qn_type_make(n->im->module, t.dtype, t.rank - 1, t.dims + 1);
        inside[i] = qn_graph_add_input(inner.graph, NULL, t, QN_ROLE_INPUT);
    }
    qn_value *y = NULL;
    qn_value *state = linear_step(&inner, inside[0], inside[1], inside[2], inside[3],
                                  gated ? inside[decay_at] : NULL, delta ? inside[beta_at] : NULL, scale, &y);
    if (!state || !y)
        return;
    qn_graph_add_output(inner.graph, state, NULL, -1);
    qn_graph_add_output(inner.graph, y, NULL, -1);
    qn_node *node = qn_b_scan(b, 1, n_in - 1, 0, in, in[1]->type.dims[0], false, inner.graph);
    if (!node)
        return;
    /* [T, B, H, V] -> [B, T, H * V] */
    qn_value *all = qn_b_transpose(b, &node->results[1], (int64_t[]){ 1, 0, 2, 3 });
    qn_dim packed[3] = { dims[0], in[1]->type.dims[0],
                         qn_dim_mul(n->im->dims, qn_onnx_dim(n, heads), dims[3]) };
    qn_onnx_out(n, 0, qn_b_convert(b, dtype, qn_b_reshape(b, all, 3, packed)));
    qn_onnx_out(n, 1, qn_b_convert(b, state_dtype, &node->results[0]));
}

/* ---- CausalConvWithState ---- */

/* [B, L, …] -> [B, C, L] where channels come last */
static qn_value *channels_first(qn_onnx_node *n, qn_value *x, qn_dim channels, bool last)
{
    if (!x || !last)
        return x;
    const qn_dim dims[3] = { x->type.dims[0], x->type.dims[1], channels };
    return qn_b_transpose(&n->b, qn_b_reshape(&n->b, x, 3, dims), (int64_t[]){ 0, 2, 1 });
}

/* [B, C, L] as `like` has its axes, but for the length */
static qn_value *channels_back(qn_onnx_node *n, qn_value *x, const qn_type *like, bool last)
{
    if (!x || !last)
        return x;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < like->rank; i++)
        dims[i] = i == 1 ? x->type.dims[2] : like->dims[i];
    return qn_b_reshape(&n->b, qn_b_transpose(&n->b, x, (int64_t[]){ 0, 2, 1 }), like->rank, dims);
}

static void import_causal_conv(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *w = qn_onnx_in(n, 1);
    const char *function = qn_onnx_attr_string(n, "activation", "none");
    /* the domain com.microsoft's */
    const bool last = qn_onnx_attr_int(n, "channels_last", 0) != 0;
    const int64_t dilation = qn_onnx_attr_int(n, "dilation", 1), axes = qn_onnx_attr_int(n, "ndim", 1);
    if (!x || !w || !refuse_states(n))
        return;
    if (axes != 1 || qn_onnx_attr_int(n, "state_channels_last", -1) > -1) {
        qn_onnx_unsupported(n, axes != 1 ? "attribute ndim other than 1" : "attribute state_channels_last");
        return;
    }
    if ((last ? x->type.rank < 3 : x->type.rank != 3) || w->type.rank != 3 ||
        !qn_dim_is_const(w->type.dims[0]) || !qn_dim_is_const(w->type.dims[2]) ||
        w->type.dims[2]->value < 1) {
        qn_onnx_needs_shape(n, 1);
        qn_onnx_malformed(n, "input and weight must have rank 3, channels and kernel be known");
        return;
    }
    bool silu = !strcmp(function, "silu") || !strcmp(function, "swish");
    if ((!silu && strcmp(function, "none")) || dilation < 1 || dilation > QN_DIM_MAX_VALUE) {
        qn_onnx_malformed(n, "attribute activation must be silu, swish or none, and dilation positive");
        return;
    }
    const qn_type like = x->type;
    x = channels_first(n, x, w->type.dims[0], last);
    if (!x)
        return;
    qn_dim before =
        qn_dim_mul(t, qn_dim_sub(t, w->type.dims[2], qn_onnx_dim(n, 1)), qn_onnx_dim(n, dilation));
    qn_dim dims[3] = { x->type.dims[0], x->type.dims[1], before };
    qn_type type = qn_type_make(n->im->module, x->type.dtype, 3, dims);
    qn_value *past = qn_onnx_has(n, 3) ? qn_onnx_in(n, 3) : qn_b_full(b, &type, 0);
    if (past && qn_onnx_has(n, 3) && past->type.rank != like.rank) {
        qn_onnx_malformed(n, "past_state must have the rank of the input");
        return;
    }
    if (past && qn_onnx_has(n, 3))
        past = channels_first(n, qn_onnx_with_dim(n, past, 0, dims[0]), w->type.dims[0], last);
    qn_value *all = qn_b_concatenate(b, 2, (qn_value *[]){ past, x }, 2);
    static const int64_t one = 1, zero = 0;
    qn_conv conv = { &one, &zero, &zero, &one, &dilation, w->type.dims[0]->value };
    qn_value *y = qn_b_convolution(b, all, w, &conv);
    if (qn_onnx_has(n, 2))
        y = add(b, y, qn_onnx_per_channel(n, 2, 3));
    if (y && silu)
        y = qn_b_convert(b, x->type.dtype,
                         qn_b_unary(b, QN_OP_SILU,
                                    qn_b_convert(b, x->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32, y)));
    qn_onnx_out(n, 0, channels_back(n, y, &like, last));
    if (all)
        qn_onnx_out(n, 1,
                    channels_back(n,
                                  qn_b_slice_axis(b, all, 2, qn_dim_sub(t, all->type.dims[2], before),
                                                  all->type.dims[2]),
                                  &like, last));
}

static void import_swiglu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    double alpha = qn_onnx_attr_float(n, "alpha", 1);
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    qn_value *gate = alpha == 1 ? qn_b_unary(b, QN_OP_SILU, x)
                                : mul(b, x, qn_b_unary(b, QN_OP_LOGISTIC, mul_number(b, x, alpha)));
    qn_onnx_out(n, 0, mul(b, gate, y));
}

const qn_onnx_op qn_onnx_attention_ops[] = {
    { "Attention", NULL, 23, 0, import_attention },
    { "FlexAttention", "ai.onnx.preview", 1, 0, import_flex_attention },
    { "RotaryEmbedding", NULL, 23, 0, import_rotary },
    { "LinearAttention", NULL, 27, 0, import_linear_attention },
    { "CausalConvWithState", NULL, 27, 0, import_causal_conv },
    { "LinearAttention", "com.microsoft", 1, 0, import_linear_attention },
    { "CausalConvWithState", "com.microsoft", 1, 0, import_causal_conv },
    { "SwiGLU", NULL, 28, 0, import_swiglu },
    { 0 },
};
