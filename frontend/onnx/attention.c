/* Attention in its forms, and what goes with it: rotary embedding, linear attention, causal convolution. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"

/* ---- Attention ---- */

typedef struct attention {
    qn_onnx_node *n;
    qn_value *q, *k, *v; /* [B, H, S, D], [B, G, T, D], [B, G, T, E] */
    qn_value *bias;      /* added to the scores, broadcastable to [B, H, S, T]; NULL: none */
    qn_value *lengths;   /* of the keys without padding, i64 [B, 1, 1, 1], or NULL */
    qn_dim past;         /* keys before those of the node's inputs */
    bool causal, packed; /* packed: inputs and output of rank 3 */
} attention;

/* [B, S, heads * D] -> [B, heads, S, D] */
static qn_value *unpack_heads(qn_onnx_node *n, qn_value *x, int64_t heads)
{
    if (!x || heads < 1)
        return NULL;
    qn_dim h = qn_onnx_dim(n, heads);
    qn_dim dims[4] = { x->type.dims[0], x->type.dims[1], h,
                       qn_dim_floordiv(n->im->dims, x->type.dims[2], h) };
    return qn_b_transpose(&n->b, qn_b_reshape(&n->b, x, 4, dims), (int64_t[]){ 0, 2, 1, 3 });
}

/* [B, heads, S, D] -> [B, S, heads * D] */
static qn_value *pack_heads(qn_onnx_node *n, qn_value *x)
{
    if (!x)
        return NULL;
    const qn_dim *d = x->type.dims;
    qn_dim dims[3] = { d[0], d[2], qn_dim_mul(n->im->dims, d[1], d[3]) };
    return qn_b_reshape(&n->b, qn_b_transpose(&n->b, x, (int64_t[]){ 0, 2, 1, 3 }), 3, dims);
}

static qn_value *heads_input(qn_onnx_node *n, int i, const char *attr, bool *packed)
{
    qn_value *x = qn_onnx_in(n, i);
    *packed = x && x->type.rank == 3;
    int64_t heads = qn_onnx_attr_int(n, attr, 0);
    if (x && x->type.rank != 4 && !(*packed && heads > 0)) {
        qn_onnx_malformed(n, "input %d must have rank 4, or rank 3 and attribute %s be given", i, attr);
        return NULL;
    }
    return *packed ? unpack_heads(n, x, heads) : x;
}

/* After the keys or values of before. */
static qn_value *with_past(qn_onnx_node *n, qn_value *x, int input)
{
    if (!x || !qn_onnx_has(n, input))
        return x;
    const qn_type *past = qn_onnx_in_type(n, input);
    for (int i = 0; past && past->rank == 4 && i < 4; i++)
        x = i == 2 ? x : qn_onnx_with_dim(n, x, i, past->dims[i]);
    return qn_b_concatenate(&n->b, 2, (qn_value *[]){ qn_onnx_in(n, input), x }, 2);
}

static qn_value *minus_infinity(qn_builder *b, const qn_value *like)
{
    return qn_b_scalar(b, like->type.dtype, -INFINITY);
}

/* 0 where allowed, else -inf, added to the bias so far. */
static void allow(attention *a, qn_value *allowed)
{
    qn_builder *b = &a->n->b;
    qn_value *bias =
        allowed ? choose(b, allowed, qn_b_scalar(b, a->q->type.dtype, 0), minus_infinity(b, a->q)) : NULL;
    a->bias = a->bias && bias ? add(b, a->bias, bias) : bias ? bias : a->bias;
}

/* The mask input: as wide as the keys (missing ones are masked), additive, of rank 4. */
static bool read_mask(attention *a)
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
    if (qn_dim_is_const(width) && qn_dim_is_const(keys) && width->value < keys->value && width->value > 0) {
        qn_dim low[4], high[4];
        for (int i = 0; i < mask->type.rank; i++)
            low[i] = high[i] = qn_onnx_dim(n, 0);
        high[mask->type.rank - 1] = qn_dim_sub(n->im->dims, keys, width);
        qn_value *fill = is_bool ? qn_b_scalar_int(b, QUERN_BOOL, 0) : minus_infinity(b, mask);
        mask = qn_b_pad(b, mask, fill, low, high, NULL);
    }
    while (mask && mask->type.rank < 4)
        mask = qn_b_expand_dims(b, mask, 0);
    if (!mask)
        return false;
    /* an extent that may be 1 is spread to what it stands for */
    qn_dim full[4] = { a->q->type.dims[0], a->q->type.dims[1], a->q->type.dims[2], keys };
    for (int i = 0; i < 4; i++)
        full[i] = qn_dim_is(mask->type.dims[i], 1) ? mask->type.dims[i] : full[i];
    mask = qn_b_broadcast_to(b, mask, 4, full);
    if (is_bool)
        allow(a, mask);
    else if (mask)
        a->bias = qn_b_convert(b, a->q->type.dtype, mask);
    return mask != NULL;
}

/* Position of each query among the keys, and of each key: [1 or B, 1, S, 1], [1, 1, 1, T]. */
static void positions(const attention *a, qn_value **out_query, qn_value **out_key)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_dim one = qn_onnx_dim(n, 1);
    qn_dim queries[4] = { one, one, a->q->type.dims[2], one },
           keys[4] = { one, one, one, a->k->type.dims[2] };
    qn_type query_type = qn_type_make(n->im->module, QUERN_I64, 4, queries);
    qn_type key_type = qn_type_make(n->im->module, QUERN_I64, 4, keys);
    *out_query = qn_b_iota(b, &query_type, 2);
    *out_key = qn_b_iota(b, &key_type, 3);
    if (a->lengths) /* the last query is the last of the keys that are no padding */
        *out_query = add(b, *out_query, sub(b, a->lengths, qn_b_dim_value(b, QUERN_I64, queries[2])));
    else if (!qn_dim_is(a->past, 0))
        *out_query = add(b, *out_query, qn_b_dim_value(b, QUERN_I64, a->past));
}

/* Causality, windows and padding as bias; the composite's own causality is used where it means the same. */
static void restrict_keys(attention *a)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    int64_t left = qn_onnx_attr_int(n, "left_window_size", -1),
            right = qn_onnx_attr_int(n, "right_window_size", -1);
    bool causal = qn_onnx_attr_int(n, "is_causal", 0) != 0;
    qn_dim offset = qn_dim_sub(n->im->dims, a->k->type.dims[2], a->q->type.dims[2]);
    a->causal = causal && !a->lengths && offset == a->past;
    causal = causal && !a->causal;
    if (causal || left >= 0 || right >= 0) {
        qn_value *query, *key;
        positions(a, &query, &key);
        if (causal)
            allow(a, compare(b, QN_LE, key, query));
        if (left >= 0)
            allow(a, compare(b, QN_LE, query, add(b, key, qn_b_scalar_int(b, QUERN_I64, left))));
        if (right >= 0)
            allow(a, compare(b, QN_LE, key, add(b, query, qn_b_scalar_int(b, QUERN_I64, right))));
    }
    if (a->lengths) {
        qn_dim keys[4] = { qn_onnx_dim(n, 1), qn_onnx_dim(n, 1), qn_onnx_dim(n, 1), a->k->type.dims[2] };
        qn_type type = qn_type_make(n->im->module, QUERN_I64, 4, keys);
        allow(a, compare(b, QN_LT, qn_b_iota(b, &type, 3), a->lengths));
    }
}

/* Each key head for its group of query heads: [B, G, T, D] -> [B, H, T, D]. */
static qn_value *repeat_heads(qn_onnx_node *n, qn_value *x, qn_dim heads)
{
    if (!x || x->type.dims[1] == heads)
        return x;
    const qn_dim *d = x->type.dims;
    qn_dim split[5] = { d[0], d[1], qn_dim_floordiv(n->im->dims, heads, d[1]), d[2], d[3] };
    qn_dim merged[4] = { d[0], heads, d[2], d[3] };
    x = qn_b_broadcast(&n->b, x, 5, split, (int64_t[]){ 0, 1, 3, 4 });
    return qn_b_reshape(&n->b, x, 4, merged);
}

static qn_value *matmul_heads(qn_builder *b, qn_value *x, qn_value *y, bool transposed)
{
    qn_dot dot = {
        .n_batch = 2, .n_contract = 1, .x_batch = { 0, 1 }, .y_batch = { 0, 1 }, .x_contract = { 3 }
    };
    dot.y_contract[0] = transposed ? 3 : 2;
    return qn_b_dot_general(b, x, y, &dot, QUERN_INVALID_DTYPE);
}

/* Rows without any key become zeros. */
static qn_value *softmax_rows(qn_builder *b, qn_value *x)
{
    int64_t last = 3;
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, x, 1, &last, true);
    most = choose(b, qn_b_unary(b, QN_OP_IS_INF, most), number_like(b, x, 0), most);
    qn_value *power = qn_b_unary(b, QN_OP_EXP, sub(b, x, most)),
             *sum = qn_b_reduce(b, QN_SUM, power, 1, &last, true);
    sum = choose(b, compare_number(b, QN_EQ, sum, 0), number_like(b, x, 1), sum);
    return divide(b, power, sum);
}

/* Spelled out: with a soft cap, another precision, or its scores as an output. */
static qn_value *attention_in_steps(attention *a, double scale)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_dtype dtype = a->q->type.dtype, precision = dtype;
    int64_t mode = qn_onnx_attr_int(n, "qk_matmul_output_mode", 0),
            elem = qn_onnx_attr_int(n, "softmax_precision", 0);
    double cap = qn_onnx_attr_float(n, "softcap", 0);
    if (a->causal) {
        qn_value *query, *key;
        positions(a, &query, &key);
        allow(a, compare(b, QN_LE, key, query));
    }
    if (elem) {
        precision = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
        if (precision == QUERN_INVALID_DTYPE || !qn_dtype_is_float(precision)) {
            qn_onnx_malformed(n, "attribute softmax_precision must be a float type");
            return NULL;
        }
    }
    qn_dim heads = a->q->type.dims[1];
    qn_value *k = repeat_heads(n, a->k, heads), *v = repeat_heads(n, a->v, heads);
    double root = sqrt(scale);
    qn_value *scores = matmul_heads(b, mul_number(b, a->q, root), mul_number(b, k, root), true), *stages[4];
    stages[0] = scores;
    if (cap > 0)
        scores = mul_number(b, qn_b_unary(b, QN_OP_TANH, div_number(b, scores, cap)), cap);
    stages[1] = scores;
    if (a->bias)
        scores = add(b, scores, a->bias);
    stages[2] = scores;
    qn_value *p = scores ? softmax_rows(b, qn_b_convert(b, precision, scores)) : NULL;
    p = p ? qn_b_convert(b, dtype, p) : NULL;
    stages[3] = p;
    if (mode < 0 || mode > 3)
        qn_onnx_malformed(n, "attribute qk_matmul_output_mode must be 0, 1, 2 or 3");
    else
        qn_onnx_out(n, 3, stages[mode]);
    return matmul_heads(b, p, v, false);
}

static void import_attention(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    attention a = { .n = n, .past = qn_onnx_dim(n, 0) };
    bool packed;
    a.q = heads_input(n, 0, "q_num_heads", &a.packed);
    a.k = heads_input(n, 1, "kv_num_heads", &packed);
    a.v = heads_input(n, 2, "kv_num_heads", &packed);
    if (!a.q || !a.k || !a.v)
        return;
    if (!qn_dtype_is_float(a.q->type.dtype)) {
        qn_onnx_malformed(n, "the queries must be of a float type");
        return;
    }
    if (qn_onnx_has(n, 4) && qn_onnx_in_type(n, 4) && n->in[4]->type.rank == 4)
        a.past = n->in[4]->type.dims[2];
    a.k = with_past(n, a.k, 4);
    a.v = with_past(n, a.v, 5);
    if (!a.k || !a.v)
        return;
    a.k = qn_onnx_with_dim(n, qn_onnx_with_dim(n, a.k, 0, a.q->type.dims[0]), 3, a.q->type.dims[3]);
    /* of heads whose numbers are not known, groups are not either: each key head serves one query head */
    if (a.k && !qn_dim_is_const(a.q->type.dims[1]) && !qn_dim_is_const(a.k->type.dims[1]))
        a.k = qn_onnx_with_dim(n, a.k, 1, a.q->type.dims[1]);
    for (int i = 0; i < 3 && a.k; i++) /* batch, heads, length */
        a.v = qn_onnx_with_dim(n, a.v, i, a.k->type.dims[i]);
    if (!a.k || !a.v)
        return;
    qn_onnx_out(n, 1, a.k);
    qn_onnx_out(n, 2, a.v);
    if (qn_onnx_has(n, 6)) {
        qn_dim dims[4] = { a.q->type.dims[0], qn_onnx_dim(n, 1), qn_onnx_dim(n, 1), qn_onnx_dim(n, 1) };
        a.lengths = qn_onnx_in(n, 6);
        a.lengths = a.lengths ? qn_b_reshape(b, qn_b_convert(b, QUERN_I64, a.lengths), 4, dims) : NULL;
    }
    if (!read_mask(&a))
        return;
    restrict_keys(&a);
    double scale = qn_onnx_attr_float(n, "scale", 0);
    if (!qn_onnx_attr(n, "scale", ONNX__ATTRIBUTE__KIND__FLOAT)) {
        scale = 1;
        if (qn_dim_is_const(a.q->type.dims[3])) {
            scale = 1 / sqrt((double)a.q->type.dims[3]->value);
        } else { /* the queries are scaled, as the composite's scale is a number */
            qn_value *size =
                qn_b_convert(b, a.q->type.dtype, qn_b_dim_value(b, QUERN_I64, a.q->type.dims[3]));
            a.q = mul(b, a.q, qn_b_unary(b, QN_OP_RSQRT, size));
        }
    }
    bool in_steps = qn_onnx_attr_float(n, "softcap", 0) > 0 || qn_onnx_wants(n, 3) || scale < 0;
    in_steps |= qn_onnx_attr_int(n, "softmax_precision", 1) != 1 && a.q->type.dtype != QUERN_F32;
    qn_value *y =
        in_steps ? attention_in_steps(&a, scale) : qn_b_attention(b, a.q, a.k, a.v, a.bias, scale, a.causal);
    qn_onnx_out(n, 0, a.packed ? pack_heads(n, y) : y);
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
    k = repeat_heads(n, k, q->type.dims[1]);
    v = repeat_heads(n, v, q->type.dims[1]);
    qn_value *scores = matmul_heads(b, q, k, true);
    scores = scores ? mul_number(b, qn_b_convert(b, precision, scores), scale) : NULL;
    qn_value *p = modified(n, "score_mod", scores);
    p = p ? modified(n, "prob_mod", qn_b_softmax(b, QN_OP_SOFTMAX, p, 3)) : NULL;
    qn_onnx_out(n, 0, p ? matmul_heads(b, qn_b_convert(b, dtype, p), v, false) : NULL);
}

/* ---- RotaryEmbedding ---- */

/* Elements [start, limit) of the last axis, `step` apart. */
static qn_value *part(qn_onnx_node *n, qn_value *x, int64_t start, int64_t limit, int64_t step)
{
    qn_dim starts[4], limits[4];
    int64_t strides[4];
    for (int i = 0; x && i < 4; i++) {
        starts[i] = qn_onnx_dim(n, i == 3 ? start : 0);
        limits[i] = i == 3 ? qn_onnx_dim(n, limit) : x->type.dims[i];
        strides[i] = i == 3 ? step : 1;
    }
    return x ? qn_b_slice(&n->b, x, starts, limits, strides) : NULL;
}

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
    qn_builder *b = &n->b;
    bool packed, interleaved = qn_onnx_attr_int(n, "interleaved", 0) != 0;
    qn_value *x = heads_input(n, 0, "num_heads", &packed), *cosine = rotation(n, 1), *sine = rotation(n, 2);
    if (!x || !cosine || !sine)
        return;
    if (!qn_dim_is_const(x->type.dims[3])) {
        qn_onnx_unsupported(n, "the head size must be known");
        return;
    }
    int64_t size = x->type.dims[3]->value, turned = qn_onnx_attr_int(n, "rotary_embedding_dim", 0);
    turned = turned ? turned : size;
    if (turned < 0 || turned > size || turned % 2) {
        qn_onnx_malformed(n, "attribute rotary_embedding_dim must be even and at most the head size");
        return;
    }
    int64_t half = turned / 2;
    qn_value *re = interleaved ? part(n, x, 0, turned - 1, 2) : part(n, x, 0, half, 1);
    qn_value *im = interleaved ? part(n, x, 1, turned, 2) : part(n, x, half, turned, 1);
    qn_value *pair[2] = { sub(b, mul(b, cosine, re), mul(b, sine, im)),
                          add(b, mul(b, sine, re), mul(b, cosine, im)) };
    qn_value *y;
    if (!pair[0] || !pair[1])
        return;
    if (interleaved) {
        qn_dim dims[4] = { x->type.dims[0], x->type.dims[1], x->type.dims[2], qn_onnx_dim(n, turned) };
        pair[0] = qn_b_expand_dims(b, pair[0], 4);
        pair[1] = qn_b_expand_dims(b, pair[1], 4);
        y = qn_b_reshape(b, qn_b_concatenate(b, 2, pair, 4), 4, dims);
    } else {
        y = qn_b_concatenate(b, 2, pair, 3);
    }
    if (turned < size)
        y = qn_b_concatenate(b, 2, (qn_value *[]){ y, part(n, x, turned, size, 1) }, 3);
    qn_onnx_out(n, 0, packed ? pack_heads(n, y) : y);
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
    if (heads < 1 || groups < 1 || heads % groups || (!gated && !delta && strcmp(rule, "linear"))) {
        qn_onnx_malformed(n, "attribute update_rule is unknown, or q_num_heads no multiple of kv_num_heads");
        return;
    }
    qn_value *in[6] = { NULL, by_time(n, 0, heads), by_time(n, 1, groups), by_time(n, 2, groups) };
    if (!in[1] || !in[2] || !in[3])
        return;
    int n_in = 4, decay_at = 0, beta_at = 0;
    if (gated) {
        decay_at = n_in;
        in[n_in++] = by_time(n, 4, groups);
    }
    if (delta) {
        const qn_type *type = qn_onnx_in_type(n, 5);
        beta_at = n_in;
        in[n_in++] = by_time(n, 5, type && type->rank == 3 && qn_dim_is(type->dims[2], 1) ? 1 : groups);
    }
    qn_dtype dtype = n->in[0]->type.dtype, state_dtype = dtype;
    qn_dim dims[4] = { in[1]->type.dims[1], qn_onnx_dim(n, groups), in[2]->type.dims[3],
                       in[3]->type.dims[3] };
    qn_type type = qn_type_make(n->im->module, QUERN_F32, 4, dims);
    if (qn_onnx_has(n, 3) && qn_onnx_in_type(n, 3)) {
        state_dtype = n->in[3]->type.dtype;
        in[0] = qn_b_reshape(b, qn_b_convert(b, QUERN_F32, qn_onnx_in(n, 3)), 4, dims);
    } else {
        in[0] = qn_b_full(b, &type, 0);
    }
    double scale = qn_onnx_attr_float(n, "scale", 0);
    if (scale == 0 && !qn_dim_is_const(dims[2])) {
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

static void import_causal_conv(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *w = qn_onnx_in(n, 1);
    const char *function = qn_onnx_attr_string(n, "activation", "none");
    if (!x || !w)
        return;
    if (x->type.rank != 3 || w->type.rank != 3 || !qn_dim_is_const(w->type.dims[0]) ||
        !qn_dim_is_const(w->type.dims[2]) || w->type.dims[2]->value < 1) {
        qn_onnx_malformed(n, "input and weight must have rank 3, channels and kernel be known");
        return;
    }
    bool silu = !strcmp(function, "silu") || !strcmp(function, "swish");
    if (!silu && strcmp(function, "none")) {
        qn_onnx_malformed(n, "attribute activation must be silu, swish or none");
        return;
    }
    qn_dim before = qn_dim_sub(t, w->type.dims[2], qn_onnx_dim(n, 1));
    qn_dim dims[3] = { x->type.dims[0], x->type.dims[1], before };
    qn_type type = qn_type_make(n->im->module, x->type.dtype, 3, dims);
    qn_value *past = qn_onnx_has(n, 3) ? qn_onnx_in(n, 3) : qn_b_full(b, &type, 0);
    qn_value *all = qn_b_concatenate(b, 2, (qn_value *[]){ past, x }, 2);
    static const int64_t one = 1, zero = 0;
    qn_conv conv = { &one, &zero, &zero, &one, &one, w->type.dims[0]->value };
    qn_value *y = qn_b_convolution(b, all, w, &conv);
    if (qn_onnx_has(n, 2))
        y = add(b, y, qn_onnx_per_channel(n, 2, 3));
    if (y && silu)
        y = qn_b_convert(b, x->type.dtype,
                         qn_b_unary(b, QN_OP_SILU,
                                    qn_b_convert(b, x->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32, y)));
    qn_onnx_out(n, 0, y);
    if (all)
        qn_onnx_out(n, 1,
                    qn_b_slice_axis(b, all, 2, qn_dim_sub(t, all->type.dims[2], before), all->type.dims[2]));
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
    { "SwiGLU", NULL, 28, 0, import_swiglu },
    { 0 },
};
