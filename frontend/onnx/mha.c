/* Attention as the domain com.microsoft has it: with the projections of queries, keys and values in it (Attention, QAttention), and
 * without (MultiHeadAttention). gqa.c has GroupQueryAttention. */
#include <math.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/mha.h"
#include "frontend/onnx/quant.h"

/* ---- what they share ---- */

bool qn_onnx_refuse(qn_onnx_node *n, const qn_onnx_named *inputs, const qn_onnx_named *outputs)
{
    for (; inputs && inputs->name; inputs++)
        if (qn_onnx_has(n, inputs->index)) {
            qn_onnx_unsupported(n, "input %d (%s)", inputs->index, inputs->name);
            return false;
        }
    for (; outputs && outputs->name; outputs++)
        if (qn_onnx_wants(n, outputs->index)) {
            qn_onnx_unsupported(n, "output %d (%s)", outputs->index, outputs->name);
            return false;
        }
    return true;
}

bool qn_onnx_refuse_attribute(qn_onnx_node *n, const char *name)
{
    const int64_t value = qn_onnx_attr_int(n, name, 0);
    if (value)
        qn_onnx_unsupported(n, "attribute %s = %lld", name, (long long)value);
    return value == 0;
}

int64_t qn_onnx_head_count(qn_onnx_node *n, const char *attr)
{
    const int64_t count = qn_onnx_attr_int(n, attr, 0);
    if (count > 0 && count < QN_DIM_MAX_VALUE)
        return count;
    qn_onnx_malformed(n, "attribute %s must be given, and positive", attr);
    return 0;
}

bool qn_onnx_cut_heads(qn_onnx_node *n, qn_value *x, const qn_dim *widths, const int64_t *heads,
                       qn_value **out)
{
    qn_dims *t = n->im->dims;
    qn_dim start = qn_onnx_dim(n, 0);
    for (int i = 0; i < 3; i++) {
        const qn_dim end = qn_dim_add(t, start, widths[i]);
        out[i] = qn_onnx_unpack_heads(n, qn_b_slice_axis(&n->b, x, 2, start, end), heads[i]);
        start = end;
    }
    return out[0] && out[1] && out[2];
}

qn_value *qn_onnx_of_sequences(qn_onnx_node *n, qn_value *x, qn_dim batch)
{
    const qn_dim one = qn_onnx_dim(n, 1), dims[4] = { batch, one, one, one };
    x = x ? qn_onnx_with_dim(n, x, 0, batch) : NULL;
    return x ? qn_b_reshape(&n->b, qn_b_convert(&n->b, QUERN_I64, x), 4, dims) : NULL;
}

/* Which keys a list of numbers leaves: those before the ends [B]; of [2 B], ends and starts, from the starts on; of [3 B + 2],
 * those before the first B. */
static qn_value *listed_keys(qn_onnx_attention *a, qn_value *list)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    const qn_dim batch = a->q->type.dims[0], zero = qn_onnx_dim(n, 0), length = list->type.dims[0];
    const qn_dim twice = qn_dim_mul(t, qn_onnx_dim(n, 2), batch),
                 thrice = qn_dim_add(t, qn_dim_mul(t, qn_onnx_dim(n, 3), batch), qn_onnx_dim(n, 2));
    const bool starts = length == twice, more = starts || length == thrice;
    qn_value *key = qn_onnx_attention_keys(a);
    qn_value *end = qn_onnx_of_sequences(n, more ? qn_b_slice_axis(b, list, 0, zero, batch) : list, batch);
    qn_value *allowed = compare(b, QN_LT, key, end);
    if (starts)
        allowed =
            and_also(b, allowed,
                     compare(b, QN_GE, key,
                             qn_onnx_of_sequences(n, qn_b_slice_axis(b, list, 0, batch, twice), batch)));
    return allowed;
}

/* A mask of numbers, positive where a key is seen: [B, T] or [B, S, T], or a list as above. Other keys' scores have
 * mask_filter_value added. */
static bool read_mask(qn_onnx_attention *a, int input)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_value *mask = qn_onnx_in_opt(n, input), *allowed;
    const qn_dim *q = a->q->type.dims, keys = a->k->type.dims[2];
    if (!mask)
        return qn_onnx_ok(n);
    const int rank = mask->type.rank;
    if (!qn_dtype_is_int(mask->type.dtype) || rank < 1 || rank > 3) {
        qn_onnx_unsupported(n, "a mask that is not of integers, or not of rank 1, 2 or 3, in input %d",
                            input);
        return false;
    }
    if (rank == 1) {
        allowed = listed_keys(a, mask);
    } else {
        qn_onnx_equal_dims(n, mask->type.dims[0], q[0]);
        qn_onnx_equal_dims(n, mask->type.dims[rank - 1], keys);
        mask = rank == 3 ? mask : qn_b_expand_dims(b, mask, 1);
        allowed = qn_onnx_attention_spread(a, compare_number(b, QN_GT, qn_b_expand_dims(b, mask, 1), 0));
    }
    qn_onnx_attention_allow(a, allowed, qn_onnx_attr_float(n, "mask_filter_value", -10000));
    return allowed != NULL;
}

bool qn_onnx_attention_read_bias(qn_onnx_attention *a, int input)
{
    qn_onnx_node *n = a->n;
    qn_value *bias = qn_onnx_in_opt(n, input);
    if (!bias)
        return qn_onnx_ok(n);
    if (bias->type.rank != 4) {
        qn_onnx_malformed(n, "input %d must have rank 4", input);
        return false;
    }
    qn_onnx_equal_dims(n, bias->type.dims[2], a->q->type.dims[2]);
    qn_onnx_equal_dims(n, bias->type.dims[3], a->k->type.dims[2]);
    return qn_onnx_attention_bias(a, bias);
}

bool qn_onnx_attention_read_scale(qn_onnx_attention *a)
{
    qn_onnx_node *n = a->n;
    const double scale = qn_onnx_attr_float(n, "scale", 0);
    a->scale = scale != 0 ? scale : qn_onnx_heads_scale(n, a->q);
    return a->scale != 0;
}

/* Queries see keys up to their own position behind those of before: each query has a key of its own. */
static bool read_direction(qn_onnx_attention *a, qn_dim past)
{
    qn_onnx_node *n = a->n;
    a->past = past;
    a->causal = qn_onnx_attr_int(n, "unidirectional", 0) != 0;
    if (a->causal && qn_dim_add(n->im->dims, past, a->q->type.dims[2]) != a->k->type.dims[2]) {
        qn_onnx_unsupported(n, "attribute unidirectional = 1 where queries and keys differ in number");
        return false;
    }
    return true;
}

/* ---- Attention, QAttention ---- */

/* The projection's widths: attribute qkv_hidden_sizes, or thirds. */
static bool read_widths(qn_onnx_node *n, qn_dim whole, int64_t heads, qn_dim *out)
{
    int count;
    const int64_t *sizes = qn_onnx_attr_ints(n, "qkv_hidden_sizes", &count);
    if (!sizes || count == 0) {
        out[0] = out[1] = out[2] = qn_dim_floordiv(n->im->dims, whole, qn_onnx_dim(n, 3));
        if (qn_dim_is_const(whole) && (whole->value % 3 || out[0]->value % heads)) {
            qn_onnx_malformed(n, "the weights' %lld columns are not three times those of %lld heads",
                              (long long)whole->value, (long long)heads);
            return false;
        }
        return true;
    }
    if (count != 3 || sizes[0] != sizes[1] || sizes[0] < 1 || sizes[2] < 1 || sizes[0] % heads ||
        sizes[2] % heads || sizes[0] > QN_DIM_MAX_VALUE || sizes[2] > QN_DIM_MAX_VALUE ||
        !qn_dim_is(whole, 2 * sizes[0] + sizes[2])) {
        qn_onnx_malformed(
            n, "attribute qkv_hidden_sizes must be three multiples of num_heads that add up to the "
               "weights' columns, and the first two be equal");
        return false;
    }
    for (int i = 0; i < 3; i++)
        out[i] = qn_onnx_dim(n, sizes[i]);
    return true;
}

/* Keys (0) or values (1) of before, of [2, B, H, P, D]. */
static qn_value *half_of_past(qn_onnx_node *n, qn_value *past, int which)
{
    qn_value *half = qn_b_slice_axis(&n->b, past, 0, qn_onnx_dim(n, which), qn_onnx_dim(n, which + 1));
    return qn_b_squeeze(&n->b, half, 0);
}

/* Of the projected x [B, S, widths]; `past` and so on are inputs, -1 where the operator has none. */
static void attend_projected(qn_onnx_node *n, qn_value *x, int mask, int past, int bias)
{
    qn_builder *b = &n->b;
    qn_onnx_attention a;
    const int64_t heads = qn_onnx_head_count(n, "num_heads"), all[3] = { heads, heads, heads };
    qn_dim widths[3], before = qn_onnx_dim(n, 0);
    qn_value *qkv[3], *old = qn_onnx_in_opt(n, past);
    if (!x || !heads || !qn_onnx_ok(n) || !read_widths(n, x->type.dims[2], heads, widths) ||
        !qn_onnx_cut_heads(n, x, widths, all, qkv))
        return;
    if (old) {
        if (old->type.rank != 5 || !qn_onnx_wants(n, 1)) {
            qn_onnx_malformed(n, "past must have rank 5, and goes with an output present");
            return;
        }
        before = old->type.dims[3];
        for (int i = 1; i < 3; i++)
            qkv[i] = qn_onnx_after_past(n, half_of_past(n, old, i - 1), qkv[i]);
    }
    if (!qn_onnx_attention_init(&a, n, qkv[0], qkv[1], qkv[2]) || !qn_onnx_attention_read_scale(&a) ||
        !read_direction(&a, before) || !read_mask(&a, mask) ||
        (bias >= 0 && !qn_onnx_attention_read_bias(&a, bias)))
        return;
    if (qn_onnx_wants(n, 1)) {
        qn_value *present[2] = { qn_b_expand_dims(b, a.k, 0), qn_b_expand_dims(b, a.v, 0) };
        qn_onnx_out(n, 1, qn_b_concatenate(b, 2, present, 0));
    }
    qn_onnx_out(n, 0, qn_onnx_pack_heads(n, qn_onnx_attend(&a)));
}

static bool has_projection(qn_onnx_node *n, const qn_value *x, const qn_value *w)
{
    if (!x || !w || !qn_onnx_refuse_attribute(n, "do_rotary") ||
        !qn_onnx_refuse_attribute(n, "past_present_share_buffer"))
        return false;
    if (x->type.rank == 3 && w->type.rank == 2)
        return true;
    qn_onnx_malformed(n, "the input must have rank 3, and the weights rank 2");
    return false;
}

static void import_attention(qn_onnx_node *n)
{
    static const qn_onnx_named inputs[] = { { 6, "past_sequence_length" }, { 0 } };
    qn_value *in[2] = { qn_onnx_in(n, 0), qn_onnx_in(n, 1) };
    if (!has_projection(n, in[0], in[1]) || !qn_onnx_refuse(n, inputs, NULL))
        return;
    qn_value *x = qn_onnx_apply(n, "MatMul", 13, 2, in);
    x = qn_onnx_has(n, 2) ? add(&n->b, x, qn_onnx_in(n, 2)) : x;
    attend_projected(n, x, 3, 4, 5);
}

/* The projection multiplies bytes. */
static void import_qattention(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_onnx_quantized x = { qn_onnx_in(n, 0), qn_onnx_in(n, 3), qn_onnx_in_opt(n, 6) },
                      w = { qn_onnx_in(n, 1), qn_onnx_in(n, 4), qn_onnx_in_opt(n, 7) };
    qn_value **scalars[] = { &x.scale, &x.zero, &w.scale, &w.zero };
    if (!has_projection(n, x.bytes, w.bytes) || !x.scale || !w.scale || !qn_onnx_ok(n))
        return;
    for (int i = 0; i < 4; i++) {
        const qn_type *type = *scalars[i] ? &(*scalars[i])->type : NULL;
        if (type && type->rank == 1 && qn_dim_is(type->dims[0], 1))
            *scalars[i] = qn_b_reshape(b, *scalars[i], 0, NULL);
        if (type && (type->rank > 1 || (i < 2 && (*scalars[i])->type.rank))) {
            qn_onnx_malformed(
                n, "scale and zero point must be scalars, those of the weights may be one for a column");
            return;
        }
    }
    qn_value *y = qn_onnx_scaled_matmul(n, &x, &w), *bias = qn_onnx_in(n, 2);
    attend_projected(n, add(b, y, bias), 5, 8, -1);
}

/* ---- MultiHeadAttention ---- */

/* Number i of those that lie side by side along axis 3 of [B, S, H, count, D], as [B, H, S, D]. */
static qn_value *interlaced(qn_onnx_node *n, qn_value *x, int i, int64_t count)
{
    if (x->type.rank != 5 || !qn_dim_is(x->type.dims[3], count)) {
        qn_onnx_malformed(n, "packed inputs must be [batch, length, heads, %lld, size]", (long long)count);
        return NULL;
    }
    x = qn_b_slice_axis(&n->b, x, 3, qn_onnx_dim(n, i), qn_onnx_dim(n, i + 1));
    return qn_b_transpose(&n->b, qn_b_squeeze(&n->b, x, 3), (int64_t[]){ 0, 2, 1, 3 });
}

/* Queries, keys and values [B, H, …], of three inputs, of two or of one. Part of the bias is added where it is given. */
static bool read_three(qn_onnx_node *n, int64_t heads, qn_value **out)
{
    qn_builder *b = &n->b;
    qn_value *in[3] = { qn_onnx_in(n, 0), qn_onnx_in_opt(n, 1), qn_onnx_in_opt(n, 2) };
    qn_value *bias = qn_onnx_in_opt(n, 3);
    qn_dim start = qn_onnx_dim(n, 0);
    if (!in[0] || !qn_onnx_ok(n))
        return false;
    const int64_t packed = !in[1] ? 3 : in[1]->type.rank == 5 ? 2 : 0;
    if (packed ? in[2] || bias : !in[2]) {
        qn_onnx_malformed(n, packed ? "packed keys and values go without inputs 2 (value) and 3 (bias)"
                                    : "input 2 (value) is missing");
        return false;
    }
    for (int i = 0; i < 3; i++) {
        qn_value *x = in[i];
        if (packed && i >= 3 - packed) {
            out[i] = interlaced(n, in[3 - packed], i - (3 - (int)packed), packed);
        } else if (x->type.rank == 4 && i > 0 && !bias) {
            out[i] = x;
        } else if (x->type.rank != 3) {
            qn_onnx_malformed(n, "input %d must have rank 3", i);
            return false;
        } else {
            if (bias) {
                const qn_dim end = qn_dim_add(n->im->dims, start, x->type.dims[2]);
                x = add(b, x, qn_b_slice_axis(b, bias, 0, start, end));
                start = end;
            }
            out[i] = qn_onnx_unpack_heads(n, x, heads);
        }
        if (!out[i])
            return false;
    }
    return true;
}

static void import_multi_head(qn_onnx_node *n)
{
    static const qn_onnx_named inputs[] = { { 8, "past_sequence_length" },
                                            { 9, "cache_indirection" },
                                            { 0 } };
    static const qn_onnx_named outputs[] = { { 3, "qk" }, { 0 } };
    const int64_t heads = qn_onnx_head_count(n, "num_heads");
    qn_onnx_attention a;
    qn_value *qkv[3], *past[2] = { qn_onnx_in_opt(n, 6), qn_onnx_in_opt(n, 7) };
    if (!heads || !qn_onnx_refuse(n, inputs, outputs) || !read_three(n, heads, qkv))
        return;
    if (!past[0] != !past[1] || (past[0] && (past[0]->type.rank != 4 || past[1]->type.rank != 4))) {
        qn_onnx_malformed(n, "past_key and past_value must both be given, and have rank 4, or be left out");
        return;
    }
    for (int i = 0; i < 2; i++)
        qkv[i + 1] = qn_onnx_after_past(n, past[i], qkv[i + 1]);
    if (!qn_onnx_attention_init(&a, n, qkv[0], qkv[1], qkv[2]) || !qn_onnx_attention_read_scale(&a) ||
        !read_direction(&a, past[0] ? past[0]->type.dims[2] : qn_onnx_dim(n, 0)) || !read_mask(&a, 4) ||
        !qn_onnx_attention_read_bias(&a, 5))
        return;
    qn_onnx_out(n, 1, a.k);
    qn_onnx_out(n, 2, a.v);
    qn_onnx_out(n, 0, qn_onnx_pack_heads(n, qn_onnx_attend(&a)));
}

const qn_onnx_op qn_onnx_mha_ops[] = {
    { "Attention", "com.microsoft", 1, 0, import_attention },
    { "QAttention", "com.microsoft", 1, 0, import_qattention },
    { "MultiHeadAttention", "com.microsoft", 1, 0, import_multi_head },
    { 0 },
};
