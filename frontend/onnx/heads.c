/* Attention over heads: masks, windows, and which of them the composite attention says. */
#include <math.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/heads.h"

qn_value *qn_onnx_unpack_heads(qn_onnx_node *n, qn_value *x, int64_t heads)
{
    if (!x || heads < 1)
        return NULL;
    qn_dim h = qn_onnx_dim(n, heads);
    qn_dim dims[4] = { x->type.dims[0], x->type.dims[1], h,
                       qn_dim_floordiv(n->im->dims, x->type.dims[2], h) };
    return qn_b_transpose(&n->b, qn_b_reshape(&n->b, x, 4, dims), (int64_t[]){ 0, 2, 1, 3 });
}

qn_value *qn_onnx_pack_heads(qn_onnx_node *n, qn_value *x)
{
    if (!x)
        return NULL;
    const qn_dim *d = x->type.dims;
    qn_dim dims[3] = { d[0], d[2], qn_dim_mul(n->im->dims, d[1], d[3]) };
    return qn_b_reshape(&n->b, qn_b_transpose(&n->b, x, (int64_t[]){ 0, 2, 1, 3 }), 3, dims);
}

qn_value *qn_onnx_after_past(qn_onnx_node *n, qn_value *past, qn_value *x)
{
    if (!x || !past)
        return x;
    for (int i = 0; past->type.rank == 4 && i < 4; i++)
        x = i == 2 ? x : qn_onnx_with_dim(n, x, i, past->type.dims[i]);
    return qn_b_concatenate(&n->b, 2, (qn_value *[]){ past, x }, 2);
}

double qn_onnx_heads_scale(qn_onnx_node *n, const qn_value *q)
{
    const qn_dim size = q->type.dims[3];
    if (qn_dim_is_const(size) && size->value > 0)
        return 1 / sqrt((double)size->value);
    qn_onnx_needs_dim(n, size);
    qn_onnx_unsupported(n, "the head size must be known, or attribute scale given");
    return 0;
}

bool qn_onnx_heads_known(qn_onnx_node *n, const qn_value *q, const qn_value *k)
{
    const qn_dim heads = q->type.dims[1], groups = k->type.dims[1];
    if (heads == groups || (qn_dim_is_const(heads) && qn_dim_is_const(groups)))
        return true;
    qn_onnx_needs_dim(n, heads);
    qn_onnx_needs_dim(n, groups);
    qn_onnx_unsupported(n, "the numbers of query heads and of key heads must be known");
    return false;
}

bool qn_onnx_attention_init(qn_onnx_attention *a, qn_onnx_node *n, qn_value *q, qn_value *k, qn_value *v)
{
    *a = (qn_onnx_attention){
        .n = n, .q = q, .k = k, .v = v, .past = qn_onnx_dim(n, 0), .left = -1, .right = -1
    };
    if (!q || !k || !v)
        return false;
    if (!qn_dtype_is_float(q->type.dtype)) {
        qn_onnx_malformed(n, "the queries must be of a float type");
        return false;
    }
    a->k = qn_onnx_with_dim(n, qn_onnx_with_dim(n, k, 0, q->type.dims[0]), 3, q->type.dims[3]);
    if (a->k && !qn_onnx_heads_known(n, q, a->k))
        return false;
    for (int i = 0; i < 3 && a->k; i++) /* batch, heads, length */
        a->v = qn_onnx_with_dim(n, a->v, i, a->k->type.dims[i]);
    return a->k && a->v;
}

static void add_bias(qn_onnx_attention *a, qn_value *bias)
{
    a->bias = a->bias && bias ? add(&a->n->b, a->bias, bias) : bias ? bias : a->bias;
}

void qn_onnx_attention_allow(qn_onnx_attention *a, qn_value *allowed, double otherwise)
{
    qn_builder *b = &a->n->b;
    const qn_dtype dtype = a->q->type.dtype;
    if (allowed)
        add_bias(a, choose(b, allowed, qn_b_scalar(b, dtype, 0), qn_b_scalar(b, dtype, otherwise)));
}

qn_value *qn_onnx_attention_spread(const qn_onnx_attention *a, qn_value *x)
{
    qn_builder *b = &a->n->b;
    while (x && x->type.rank < 4)
        x = qn_b_expand_dims(b, x, 0);
    if (!x)
        return NULL;
    const qn_dim *q = a->q->type.dims;
    qn_dim full[4] = { q[0], q[1], q[2], a->k->type.dims[2] };
    for (int i = 0; i < 4; i++)
        full[i] = qn_dim_is(x->type.dims[i], 1) ? x->type.dims[i] : full[i];
    return qn_b_broadcast_to(b, x, 4, full);
}

bool qn_onnx_attention_bias(qn_onnx_attention *a, qn_value *x)
{
    x = qn_onnx_attention_spread(a, x);
    if (x && x->type.dtype == QUERN_BOOL)
        qn_onnx_attention_allow(a, x, -INFINITY);
    else if (x)
        add_bias(a, qn_b_convert(&a->n->b, a->q->type.dtype, x));
    return x != NULL;
}

/* i64 0, 1, … along one axis of four. */
static qn_value *numbers(qn_onnx_node *n, int axis, qn_dim extent)
{
    qn_dim dims[4];
    for (int i = 0; i < 4; i++)
        dims[i] = i == axis ? extent : qn_onnx_dim(n, 1);
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 4, dims);
    return qn_b_iota(&n->b, &type, axis);
}

qn_value *qn_onnx_attention_keys(const qn_onnx_attention *a)
{
    return numbers(a->n, 3, a->k->type.dims[2]);
}

/* Position of each query among the keys: [1 or B, 1, S, 1]. */
static qn_value *positions(const qn_onnx_attention *a)
{
    qn_builder *b = &a->n->b;
    qn_value *query = numbers(a->n, 2, a->q->type.dims[2]);
    if (a->first)
        return add(b, query, a->first);
    return qn_dim_is(a->past, 0) ? query : add(b, query, qn_b_dim_value(b, QUERN_I64, a->past));
}

static void allow_until(qn_onnx_attention *a)
{
    qn_onnx_attention_allow(a, compare(&a->n->b, QN_LE, qn_onnx_attention_keys(a), positions(a)), -INFINITY);
}

/* Causality and windows as bias; the composite's own causality is used where it means the same. */
static void restrict_keys(qn_onnx_attention *a)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    const qn_dim offset = qn_dim_sub(n->im->dims, a->k->type.dims[2], a->q->type.dims[2]);
    if (a->causal && (a->first || offset != a->past)) {
        allow_until(a);
        a->causal = a->first != NULL; /* which hides too few keys, of some sequences, and saves work */
    }
    if (a->left >= 0)
        qn_onnx_attention_allow(
            a,
            compare(b, QN_LE, positions(a),
                    add(b, qn_onnx_attention_keys(a), qn_b_scalar_int(b, QUERN_I64, a->left))),
            -INFINITY);
    if (a->right >= 0)
        qn_onnx_attention_allow(a,
                                compare(b, QN_LE, qn_onnx_attention_keys(a),
                                        add(b, positions(a), qn_b_scalar_int(b, QUERN_I64, a->right))),
                                -INFINITY);
}

qn_value *qn_onnx_repeat_heads(qn_onnx_node *n, qn_value *x, qn_dim heads)
{
    if (!x || x->type.dims[1] == heads)
        return x;
    const qn_dim *d = x->type.dims;
    qn_dim split[5] = { d[0], d[1], qn_dim_floordiv(n->im->dims, heads, d[1]), d[2], d[3] };
    qn_dim merged[4] = { d[0], heads, d[2], d[3] };
    x = qn_b_broadcast(&n->b, x, 5, split, (int64_t[]){ 0, 1, 3, 4 });
    return qn_b_reshape(&n->b, x, 4, merged);
}

qn_value *qn_onnx_matmul_heads(qn_builder *b, qn_value *x, qn_value *y, bool transposed)
{
    qn_dot dot = {
        .n_batch = 2, .n_contract = 1, .x_batch = { 0, 1 }, .y_batch = { 0, 1 }, .x_contract = { 3 }
    };
    dot.y_contract[0] = transposed ? 3 : 2;
    return qn_b_dot_general(b, x, y, &dot, QUERN_INVALID_DTYPE);
}

/* Rows without any key become zeros. */
static qn_value *softmax_rows(qn_builder *b, qn_value *x, qn_value *sink)
{
    const int64_t last = 3;
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, x, 1, &last, true);
    most = sink ? maximum(b, most, sink) : most;
    most = choose(b, qn_b_unary(b, QN_OP_IS_INF, most), number_like(b, x, 0), most);
    qn_value *power = qn_b_unary(b, QN_OP_EXP, sub(b, x, most)),
             *sum = qn_b_reduce(b, QN_SUM, power, 1, &last, true);
    sum = sink ? add(b, sum, qn_b_unary(b, QN_OP_EXP, sub(b, sink, most))) : sum;
    sum = choose(b, compare_number(b, QN_EQ, sum, 0), number_like(b, x, 1), sum);
    return divide(b, power, sum);
}

/* The sink as scores are: [1, H, 1, 1]. */
static qn_value *sink_of_heads(qn_onnx_attention *a, qn_dtype dtype)
{
    const qn_dim one = qn_onnx_dim(a->n, 1), dims[4] = { one, a->q->type.dims[1], one, one };
    return a->sink ? qn_b_convert(&a->n->b, dtype, qn_b_reshape(&a->n->b, a->sink, 4, dims)) : NULL;
}

/* Rows of the heads [B, H, S, …] that share a key head side by side, [B, G, H / G * S, …], or apart again. */
static qn_value *by_groups(qn_onnx_attention *a, qn_value *x)
{
    qn_dims *t = a->n->im->dims;
    const qn_dim *q = a->q->type.dims, groups = a->k->type.dims[1];
    if (!x || q[1] == groups)
        return x;
    const qn_dim dims[4] = { q[0], groups, qn_dim_mul(t, qn_dim_floordiv(t, q[1], groups), q[2]),
                             x->type.dims[3] };
    return qn_b_reshape(&a->n->b, x, 4, dims);
}

static qn_value *by_heads(qn_onnx_attention *a, qn_value *x)
{
    const qn_dim *q = a->q->type.dims;
    if (!x || q[1] == a->k->type.dims[1])
        return x;
    const qn_dim dims[4] = { q[0], q[1], q[2], x->type.dims[3] };
    return qn_b_reshape(&a->n->b, x, 4, dims);
}

/* Spelled out: with a soft cap, a sink, another precision, or its scores as an output. Keys are read as they are. */
static qn_value *attend_in_steps(qn_onnx_attention *a)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    const qn_dtype dtype = a->q->type.dtype;
    if (a->causal && !a->first)
        allow_until(a);
    qn_value *q = mul_number(b, a->q, a->scale);
    qn_value *scores = by_heads(a, qn_onnx_matmul_heads(b, by_groups(a, q), a->k, true));
    a->stages[0] = scores;
    if (a->cap > 0)
        scores = mul_number(b, qn_b_unary(b, QN_OP_TANH, div_number(b, scores, a->cap)), a->cap);
    a->stages[1] = scores;
    if (a->bias)
        scores = add(b, scores, a->bias);
    a->stages[2] = scores;
    const qn_dtype precision = a->precision == QUERN_INVALID_DTYPE ? dtype : a->precision;
    qn_value *p =
        scores ? softmax_rows(b, qn_b_convert(b, precision, scores), sink_of_heads(a, precision)) : NULL;
    p = p ? qn_b_convert(b, dtype, p) : NULL;
    a->stages[3] = p;
    return by_heads(a, qn_onnx_matmul_heads(b, by_groups(a, p), a->v, false));
}

qn_value *qn_onnx_attend(qn_onnx_attention *a)
{
    const bool in_steps =
        a->cap > 0 || a->sink || a->keep_stages || a->scale < 0 ||
        (a->precision != QUERN_INVALID_DTYPE && a->precision != QUERN_F32 && a->q->type.dtype != QUERN_F32);
    restrict_keys(a);
    if (in_steps)
        return attend_in_steps(a);
    return qn_b_attention(&a->n->b, a->q, a->k, a->v, a->bias, a->scale, a->causal);
}

/* Elements [start, limit) of the last axis of four, `step` apart. */
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

qn_value *qn_onnx_rotate(qn_onnx_node *n, qn_value *x, qn_value *cosine, qn_value *sine, bool interleaved)
{
    qn_builder *b = &n->b;
    if (!x || !cosine || !sine)
        return NULL;
    if (!qn_dim_is_const(x->type.dims[3]) || !qn_dim_is_const(cosine->type.dims[3])) {
        qn_onnx_needs_dim(n, x->type.dims[3]);
        qn_onnx_needs_dim(n, cosine->type.dims[3]);
        qn_onnx_unsupported(n, "the head size, and the length of a row of cosines, must be known");
        return NULL;
    }
    const int64_t size = x->type.dims[3]->value, half = cosine->type.dims[3]->value, turned = 2 * half;
    if (turned < 2 || turned > size) {
        qn_onnx_malformed(n, "%lld cosines turn %lld elements, and a head has %lld", (long long)half,
                          (long long)turned, (long long)size);
        return NULL;
    }
    qn_value *re = interleaved ? part(n, x, 0, turned - 1, 2) : part(n, x, 0, half, 1);
    qn_value *im = interleaved ? part(n, x, 1, turned, 2) : part(n, x, half, turned, 1);
    qn_value *pair[2] = { sub(b, mul(b, cosine, re), mul(b, sine, im)),
                          add(b, mul(b, sine, re), mul(b, cosine, im)) };
    qn_value *y;
    if (!pair[0] || !pair[1])
        return NULL;
    if (interleaved) {
        qn_dim dims[4] = { x->type.dims[0], x->type.dims[1], x->type.dims[2], qn_onnx_dim(n, turned) };
        pair[0] = qn_b_expand_dims(b, pair[0], 4);
        pair[1] = qn_b_expand_dims(b, pair[1], 4);
        y = qn_b_reshape(b, qn_b_concatenate(b, 2, pair, 4), 4, dims);
    } else {
        y = qn_b_concatenate(b, 2, pair, 3);
    }
    return turned < size ? qn_b_concatenate(b, 2, (qn_value *[]){ y, part(n, x, turned, size, 1) }, 3) : y;
}
