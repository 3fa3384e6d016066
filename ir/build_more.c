/* The builder's random numbers, control flow and composites. */
#include <math.h>

#include "ir/build_internal.h"
#include "ir/narrow.h"

/* ---- random ---- */

qn_value *qn_b_random_bits(qn_builder *b, qn_value *key, qn_value *offset, int rank, const qn_dim *dims)
{
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_DIMS, rank, dims);
    return qn_build(b, QN_OP_RANDOM_BITS, 2, (qn_value *[]){ key, offset }, &list);
}

/* Words of random bits that one number takes. */
static int words_of(qn_dtype dtype)
{
    return dtype == QUERN_F64 ? 2 : 1;
}

static qn_value *shift_right(qn_builder *b, qn_value *bits, int by)
{
    return qn_b_binary_scalar(b, QN_OP_SHIFT_RIGHT, bits, by);
}

/* Word `i` of the last axis of `bits`, which disappears. */
static qn_value *take_word(qn_builder *b, qn_value *bits, int i)
{
    int axis = bits ? bits->type.rank - 1 : 0;
    qn_dims *dims = qn_b_dims(b);
    return qn_b_squeeze(b, qn_b_slice_axis(b, bits, axis, qn_dim_const(dims, i), qn_dim_const(dims, i + 1)),
                        axis);
}

/* Uniform in [0, 1), each multiple of 2^-p equally likely, p the precision of dtype: from one word, or from two for f64. */
static qn_value *uniform_of(qn_builder *b, qn_dtype dtype, qn_value *word, qn_value *second)
{
    if (dtype == QUERN_F64) { /* 27 and 26 bits */
        qn_value *high = qn_b_convert(b, dtype, shift_right(b, word, 5));
        qn_value *low = qn_b_convert(b, dtype, shift_right(b, second, 6));
        qn_value *sum = qn_b_binary(b, QN_OP_ADD, qn_b_binary_scalar(b, QN_OP_MUL, high, 0x1p26), low);
        return qn_b_binary_scalar(b, QN_OP_MUL, sum, 0x1p-53);
    }
    int precision = dtype == QUERN_F32 ? 24 : dtype == QUERN_F16 ? 11 : 8;
    qn_value *value = qn_b_convert(b, dtype, shift_right(b, word, 32 - precision));
    return qn_b_binary_scalar(b, QN_OP_MUL, value, ldexp(1, -precision));
}

/* Bits of type's dims with a last axis of n words, unless n is 1. */
static qn_value *words(qn_builder *b, qn_value *key, qn_value *offset, const qn_type *type, int n)
{
    qn_dim dims[QN_MAX_RANK];
    if (!qn_dtype_is_float(type->dtype))
        return qn_build_error(b, "random numbers of %s: only bits and floats are drawn",
                              qn_dtype_name(type->dtype));
    if (n > 1 && type->rank == QN_MAX_RANK)
        return qn_build_error(b, "random numbers of %d dimensions: one less is the limit", QN_MAX_RANK);
    for (int i = 0; i < type->rank; i++)
        dims[i] = type->dims[i];
    if (n > 1)
        dims[type->rank] = qn_dim_const(qn_b_dims(b), n);
    return qn_b_random_bits(b, key, offset, type->rank + (n > 1), dims);
}

qn_value *qn_b_random_uniform(qn_builder *b, qn_value *key, qn_value *offset, const qn_type *type)
{
    int n = words_of(type->dtype);
    qn_value *bits = words(b, key, offset, type, n);
    if (!bits || n == 1)
        return bits ? uniform_of(b, type->dtype, bits, NULL) : NULL;
    return uniform_of(b, type->dtype, take_word(b, bits, 0), take_word(b, bits, 1));
}

qn_value *qn_b_random_normal(qn_builder *b, qn_value *key, qn_value *offset, const qn_type *type)
{
    /* Box and Muller (1958): sqrt(-2 ln u) cos(2 pi v), u in (0, 1]; narrow floats are rounded from f32. */
    qn_dtype dtype = type->dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    int n = words_of(dtype);
    qn_value *bits = words(b, key, offset, type, 2 * n);
    if (!bits)
        return NULL;
    qn_value *word[4] = { NULL };
    for (int i = 0; i < 2 * n; i++)
        word[i] = take_word(b, bits, i);
    qn_value *u = uniform_of(b, dtype, word[0], n == 2 ? word[1] : NULL);
    qn_value *v = uniform_of(b, dtype, word[n], n == 2 ? word[3] : NULL);
    u = qn_b_binary_scalar(b, QN_OP_ADD, qn_b_unary(b, QN_OP_NEG, u), 1);
    qn_value *radius =
        qn_b_unary(b, QN_OP_SQRT, qn_b_binary_scalar(b, QN_OP_MUL, qn_b_unary(b, QN_OP_LOG, u), -2));
    qn_value *angle = qn_b_binary_scalar(b, QN_OP_MUL, v, 6.283185307179586476925);
    return qn_b_convert(b, type->dtype, qn_b_binary(b, QN_OP_MUL, radius, qn_b_unary(b, QN_OP_COS, angle)));
}

/* ---- control ---- */

qn_node *qn_b_if(qn_builder *b, qn_value *condition, int n_captured, qn_value *const *captured,
                 qn_graph *then_body, qn_graph *else_body)
{
    qn_value **operands = QN_NEW_ARRAY(b->graph->module->arena, qn_value *, n_captured + 1);
    operands[0] = condition;
    for (int i = 0; i < n_captured; i++)
        operands[i + 1] = captured[i];
    return qn_build_node(b, QN_OP_IF, n_captured + 1, operands, NULL, 2,
                         (qn_graph *[]){ then_body, else_body });
}

qn_node *qn_b_while(qn_builder *b, int n_carried, int n_captured, qn_value *const *operands, qn_dim limit,
                    qn_graph *condition, qn_graph *body)
{
    qn_attr_list list = { 0 };
    if (limit)
        qn_attrs_dims(&list, QN_ATTR_LIMIT, 1, &limit);
    qn_attrs_int(&list, QN_ATTR_N_CARRIED, n_carried);
    return qn_build_node(b, QN_OP_WHILE, n_carried + n_captured, operands, &list, 2,
                         (qn_graph *[]){ condition, body });
}

qn_node *qn_b_scan(qn_builder *b, int n_carried, int n_scanned, int n_captured, qn_value *const *operands,
                   qn_dim length, bool reverse, qn_graph *body)
{
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_LENGTH, 1, &length);
    qn_attrs_int(&list, QN_ATTR_N_CARRIED, n_carried);
    qn_attrs_int(&list, QN_ATTR_N_SCANNED, n_scanned);
    qn_attrs_flag(&list, QN_ATTR_REVERSE, reverse);
    return qn_build_node(b, QN_OP_SCAN, n_carried + n_scanned + n_captured, operands, &list, 1, &body);
}

qn_node *qn_b_call(qn_builder *b, const char *function, int n, qn_value *const *arguments)
{
    qn_attr_list list = { 0 };
    qn_attrs_string(&list, QN_ATTR_FUNCTION, function);
    return qn_build_node(b, QN_OP_CALL, n, arguments, &list, 0, NULL);
}

/* ---- composites ---- */

qn_value *qn_b_softmax(qn_builder *b, qn_op op, qn_value *x, int axis)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    return qn_build(b, op, 1, &x, &list);
}

qn_value *qn_b_layer_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, int axis,
                          double epsilon)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_float(&list, QN_ATTR_EPSILON, epsilon);
    return qn_build(b, QN_OP_LAYER_NORM, bias ? 3 : 2, (qn_value *[]){ x, scale, bias }, &list);
}

qn_value *qn_b_rms_norm(qn_builder *b, qn_value *x, qn_value *scale, int axis, double epsilon)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_float(&list, QN_ATTR_EPSILON, epsilon);
    return qn_build(b, QN_OP_RMS_NORM, 2, (qn_value *[]){ x, scale }, &list);
}

qn_value *qn_b_group_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, int64_t groups,
                          double epsilon)
{
    qn_attr_list list = { 0 };
    qn_attrs_float(&list, QN_ATTR_EPSILON, epsilon);
    qn_attrs_int(&list, QN_ATTR_GROUPS, groups);
    return qn_build(b, QN_OP_GROUP_NORM, 3, (qn_value *[]){ x, scale, bias }, &list);
}

qn_value *qn_b_groups(qn_builder *b, qn_value *x, int64_t groups)
{
    qn_dims *t = qn_b_dims(b);
    const qn_dim n = qn_dim_const(t, groups);
    if (!x)
        return NULL;
    qn_dim dims[3] = { x->type.dims[0], n, qn_dim_floordiv(t, x->type.dims[1], n) };
    for (int i = 2; i < x->type.rank; i++)
        dims[2] = qn_dim_mul(t, dims[2], x->type.dims[i]);
    return qn_b_reshape(b, x, 3, dims);
}

qn_node *qn_b_batch_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, qn_value *mean,
                         qn_value *variance, double epsilon, double momentum, bool training)
{
    qn_attr_list list = { 0 };
    qn_attrs_float(&list, QN_ATTR_EPSILON, epsilon);
    qn_attrs_float(&list, QN_ATTR_MOMENTUM, momentum);
    qn_attrs_flag(&list, QN_ATTR_TRAINING, training);
    return qn_build_node(b, QN_OP_BATCH_NORM, 5, (qn_value *[]){ x, scale, bias, mean, variance }, &list, 0,
                         NULL);
}

qn_node *qn_b_dropout(qn_builder *b, qn_value *x, qn_value *key, qn_value *step, double ratio, bool training)
{
    qn_attr_list list = { 0 };
    qn_attrs_float(&list, QN_ATTR_RATIO, ratio);
    qn_attrs_flag(&list, QN_ATTR_TRAINING, training);
    return qn_build_node(b, QN_OP_DROPOUT, 3, (qn_value *[]){ x, key, step }, &list, 0, NULL);
}

qn_value *qn_b_attention(qn_builder *b, qn_value *q, qn_value *k, qn_value *v, qn_value *mask, double scale,
                         bool causal)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_CAUSAL, causal);
    qn_attrs_float(&list, QN_ATTR_SCALE, scale);
    return qn_build(b, QN_OP_ATTENTION, mask ? 4 : 3, (qn_value *[]){ q, k, v, mask }, &list);
}

qn_node *qn_b_attention_grad(qn_builder *b, qn_value *const *qkv, qn_value *gradient, qn_value *mask,
                             double scale, bool causal)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_CAUSAL, causal);
    qn_attrs_float(&list, QN_ATTR_SCALE, scale);
    return qn_build_node(b, QN_OP_ATTENTION_GRAD, mask ? 5 : 4,
                         (qn_value *[]){ qkv[0], qkv[1], qkv[2], gradient, mask }, &list, 0, NULL);
}

qn_value *qn_b_attention_packed(qn_builder *b, qn_value *q, qn_value *k, qn_value *v, qn_value *mask,
                                double scale, bool causal, qn_dim columns, bool heads_last)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_CAUSAL, causal);
    qn_attrs_dims(&list, QN_ATTR_DIMS, 1, &columns);
    qn_attrs_flag(&list, QN_ATTR_HEADS_LAST, heads_last);
    qn_attrs_float(&list, QN_ATTR_SCALE, scale);
    return qn_build(b, QN_OP_ATTENTION_PACKED, mask ? 4 : 3, (qn_value *[]){ q, k, v, mask }, &list);
}

qn_value *qn_b_cross_entropy(qn_builder *b, qn_value *logits, qn_value *labels)
{
    return qn_build(b, QN_OP_CROSS_ENTROPY, 2, (qn_value *[]){ logits, labels }, NULL);
}

qn_value *qn_b_class_labels(qn_builder *b, qn_value *labels)
{
    if (!labels || labels->type.dtype != QUERN_I64) /* a mistake, which is another's to report */
        return labels;
    qn_value *positive = qn_b_scalar_int(b, QUERN_I64, INT64_MAX);
    return qn_b_binary(b, QN_OP_AND, labels,
                       qn_b_broadcast_to(b, positive, labels->type.rank, labels->type.dims));
}

static void add_blocks(qn_attr_list *list, int axis, int64_t block)
{
    if (axis >= 0)
        qn_attrs_int(list, QN_ATTR_AXIS, axis);
    if (block > 0)
        qn_attrs_int(list, QN_ATTR_BLOCK, block);
}

qn_value *qn_b_saturate(qn_builder *b, qn_dtype dtype, qn_value *x)
{
    const qn_narrow *n = qn_narrow_of(dtype);
    if (!x || !n || !n->is_float)
        return x;
    const double most = qn_narrow_value(dtype, n->largest),
                 least = n->sign ? -most : qn_narrow_value(dtype, 0);
    x = qn_b_convert(b, x->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32,
                     x); /* f8e8m0 has more range than f16 */
    return qn_b_binary_scalar(b, QN_OP_MIN, qn_b_binary_scalar(b, QN_OP_MAX, x, least), most);
}

qn_value *qn_b_quantize(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                        int64_t block)
{
    qn_attr_list list = { 0 };
    if (!zero_point)
        return NULL;
    add_blocks(&list, axis, block);
    qn_attrs_int(&list, QN_ATTR_DTYPE, zero_point->type.dtype);
    return qn_build(b, QN_OP_QUANTIZE, 3, (qn_value *[]){ x, scale, zero_point }, &list);
}

qn_value *qn_b_dequantize(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                          int64_t block)
{
    return qn_b_dequantize_weights(b, x, scale, zero_point, axis, block, false);
}

qn_value *qn_b_dequantize_weights(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                                  int64_t block, bool byte_rows)
{
    qn_attr_list list = { 0 };
    add_blocks(&list, axis, block);
    qn_attrs_flag(&list, QN_ATTR_BYTE_ROWS, byte_rows);
    return qn_build(b, QN_OP_DEQUANTIZE, 3, (qn_value *[]){ x, scale, zero_point }, &list);
}

qn_node *qn_b_lstm(qn_builder *b, qn_value *x, qn_value *w, qn_value *r, qn_value *bias, qn_value *h0,
                   qn_value *c0, bool reverse)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_REVERSE, reverse);
    return qn_build_node(b, QN_OP_LSTM, 6, (qn_value *[]){ x, w, r, bias, h0, c0 }, &list, 0, NULL);
}
