/* Normalizations. Statistics of 16-bit floats are computed in f32, as attribute stash_type's default says. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"

/* (x - mean) / sqrt(variance + epsilon) over the axes; out_mean and out_scale (1 / sqrt…) may be NULL. */
static qn_value *normalize(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes, double epsilon,
                           qn_value **out_mean, qn_value **out_scale)
{
    qn_value *mean = qn_b_mean(b, x, n_axes, axes, true), *centred = sub(b, x, mean);
    qn_value *variance = qn_b_mean(b, square(b, centred), n_axes, axes, true);
    qn_value *scale = qn_b_unary(b, QN_OP_RSQRT, add_number(b, variance, epsilon));
    if (out_mean)
        *out_mean = mean;
    if (out_scale)
        *out_scale = scale;
    return mul(b, centred, scale);
}

/* Before opset 14 training is told by the number of outputs; before 7 by attribute is_test. */
static void import_batch_norm(qn_onnx_node *n)
{
    qn_value *in[5];
    double epsilon = qn_onnx_attr_float(n, "epsilon", 1e-5),
           momentum = qn_onnx_attr_float(n, "momentum", 0.9);
    bool training = n->opset >= 14 && qn_onnx_attr_int(n, "training_mode", 0);
    for (int i = 0; i < 5; i++)
        if (!(in[i] = qn_onnx_in(n, i)))
            return;
    if (n->opset < 9 && !qn_onnx_attr_int(n, "spatial", 1) && in[0]->type.rank > 2) {
        qn_onnx_unsupported(n, "attribute spatial = 0");
        return;
    }
    if (in[0]->type.rank < 2 || in[1]->type.rank != 1) {
        qn_onnx_malformed(n, "the first input must have channels, and the others one number for each");
        return;
    }
    in[0] = qn_onnx_with_dim(n, in[0], 1, in[1]->type.dims[0]);
    for (int i = 2; i < 5; i++)
        in[i] = qn_onnx_with_dim(n, in[i], 0, in[1]->type.dims[0]);
    const qn_node *norm =
        qn_b_batch_norm(&n->b, in[0], in[1], in[2], in[3], in[4], epsilon, momentum, training);
    for (int i = 0; norm && i < (training ? 3 : 1); i++)
        qn_onnx_out(n, i, (qn_value *)&norm->results[i]);
}

static void import_instance_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t axes[QN_MAX_RANK];
    if (!x)
        return;
    if (x->type.rank < 3) {
        qn_onnx_malformed(n, "the input must have rank 3 or more");
        return;
    }
    qn_value *scale = qn_onnx_per_channel(n, 1, x->type.rank),
             *bias = qn_onnx_per_channel(n, 2, x->type.rank);
    for (int i = 2; i < x->type.rank; i++)
        axes[i - 2] = i;
    qn_value *wider = qn_b_convert(b, qn_dtype_wide(x->type.dtype), x);
    qn_value *y =
        normalize(b, wider, x->type.rank - 2, axes, qn_onnx_attr_float(n, "epsilon", 1e-5), NULL, NULL);
    qn_onnx_out(n, 0, add(b, mul(b, qn_b_convert(b, x->type.dtype, y), scale), bias));
}

/* Numbers for each group, for each channel. */
static qn_value *repeat_in_groups(qn_builder *b, qn_value *v, qn_dim share, qn_dim channels)
{
    const qn_dim pair[2] = { v->type.dims[0], share };
    return qn_b_reshape(b, qn_b_broadcast(b, v, 2, pair, (const int64_t[]){ 0 }), 1, &channels);
}

/* Before opset 21 scale and bias are one for each group. */
static void import_group_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *scale = qn_onnx_in(n, 1), *bias = qn_onnx_in(n, 2);
    const int64_t groups = qn_onnx_attr_int(n, "num_groups", 0);
    if (!x || !scale || !bias)
        return;
    if (x->type.rank < 2 || groups < 1 || scale->type.rank != 1 || bias->type.rank != 1 ||
        (qn_dim_is_const(x->type.dims[1]) && x->type.dims[1]->value % groups)) {
        qn_onnx_malformed(n, "the channels must divide into num_groups, and scale and bias have rank 1");
        return;
    }
    const qn_dim channels = x->type.dims[1];
    if (n->opset < 21 && qn_dim_is(scale->type.dims[0], groups) && scale->type.dims[0] != channels) {
        const qn_dim share = qn_dim_floordiv(t, channels, qn_dim_const(t, groups));
        scale = repeat_in_groups(b, scale, share, channels);
        bias = repeat_in_groups(b, bias, share, channels);
    } else {
        x = qn_onnx_with_dim(n, x, 1, scale->type.dims[0]);
        bias = qn_onnx_with_dim(n, bias, 0, scale->type.dims[0]);
    }
    if (scale && bias)
        qn_onnx_out(n, 0, qn_b_group_norm(b, x, scale, bias, groups, qn_onnx_attr_float(n, "epsilon", 1e-5)));
}

/* A scale or bias as the composite takes it: of the normalized dims. NULL when it has another shape. */
static qn_value *of_dims(qn_builder *b, qn_value *v, int rank, const qn_dim *dims)
{
    if (!v || v->type.rank > rank)
        return NULL;
    return qn_b_broadcast_to(b, v, rank, dims);
}

static void import_layer_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *scale = qn_onnx_in(n, 1), *bias = qn_onnx_in_opt(n, 2);
    int axis;
    int64_t axes[QN_MAX_RANK];
    if (!x || !scale || !qn_onnx_ok(n) ||
        !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -1), x->type.rank, &axis))
        return;
    double epsilon = qn_onnx_attr_float(n, "epsilon", 1e-5);
    int rank = x->type.rank - axis;
    const qn_dim *dims = x->type.dims + axis;
    if (scale->type.rank <= rank && (!bias || bias->type.rank <= rank)) {
        scale = of_dims(b, scale, rank, dims);
        bias = of_dims(b, bias, rank, dims);
        qn_onnx_out(n, 0, qn_b_layer_norm(b, x, scale, bias, axis, epsilon));
    }
    if (n->n_out == 1 && n->out[0])
        return;
    /* statistics are outputs too, or the scale reaches over axes that are not normalized */
    for (int i = 0; i < rank; i++)
        axes[i] = axis + i;
    qn_value *mean, *factor;
    qn_value *y =
        normalize(b, qn_b_convert(b, qn_dtype_wide(x->type.dtype), x), rank, axes, epsilon, &mean, &factor);
    if (n->n_out && !n->out[0]) {
        y = y ? mul(b, qn_b_convert(b, x->type.dtype, y), scale) : NULL;
        qn_onnx_out(n, 0, bias ? add(b, y, bias) : y);
    }
    qn_onnx_out(n, 1, mean);
    qn_onnx_out(n, 2, factor);
}

static void import_rms_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *scale = qn_onnx_in(n, 1);
    int axis;
    if (!x || !scale || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -1), x->type.rank, &axis))
        return;
    int rank = x->type.rank - axis;
    double epsilon = qn_onnx_attr_float(n, "epsilon", 1e-5);
    qn_value *inner = of_dims(b, scale, rank, x->type.dims + axis);
    if (inner) {
        qn_onnx_out(n, 0, qn_b_rms_norm(b, x, inner, axis, epsilon));
        return;
    }
    qn_type type = qn_type_make(n->im->module, x->type.dtype, rank, x->type.dims + axis);
    x = qn_b_rms_norm(b, x, qn_b_full(b, &type, 1), axis, epsilon);
    qn_onnx_out(n, 0, mul(b, x, scale));
}

/* x / (bias + alpha / size * sum of squares of `size` channels around)^beta */
static void import_lrn(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t size = qn_onnx_attr_int(n, "size", 0);
    double alpha = qn_onnx_attr_float(n, "alpha", 1e-4), beta = qn_onnx_attr_float(n, "beta", 0.75);
    if (!x)
        return;
    if (x->type.rank < 2 || size < 1 || size > (1 << 20)) {
        qn_onnx_malformed(n, "the input must have channels, and attribute size be positive");
        return;
    }
    int64_t window[QN_MAX_RANK], low[QN_MAX_RANK] = { 0 }, high[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < x->type.rank; i++)
        window[i] = i == 1 ? size : 1;
    low[1] = (size - 1) / 2;
    high[1] = size - 1 - low[1];
    qn_window w = { .window = window, .low = low, .high = high };
    qn_value *sum = qn_b_reduce_window(b, QN_SUM, square(b, x), &w);
    qn_value *base =
        add_number(b, mul_number(b, sum, alpha / (double)size), qn_onnx_attr_float(n, "bias", 1));
    qn_onnx_out(n, 0, divide(b, x, qn_b_binary_bcast(b, QN_OP_POW, base, number_like(b, x, beta))));
}

/* A norm of 0 leaves zeros. */
static void import_lp_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t p = qn_onnx_attr_int(n, "p", 2), axes[1];
    int axis;
    if (!x || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -1), x->type.rank, &axis))
        return;
    if (p != 1 && p != 2) {
        qn_onnx_malformed(n, "attribute p must be 1 or 2");
        return;
    }
    axes[0] = axis;
    qn_value *norm =
        qn_b_reduce(b, QN_SUM, p == 1 ? qn_b_unary(b, QN_OP_ABS, x) : square(b, x), 1, axes, true);
    if (p == 2)
        norm = qn_b_unary(b, QN_OP_SQRT, norm);
    norm = choose(b, compare_number(b, QN_EQ, norm, 0), number_like(b, x, 1), norm);
    qn_onnx_out(n, 0, divide(b, x, norm));
}

static void import_mean_variance(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t axes[QN_MAX_RANK] = { 0, 2, 3 };
    int n_axes;
    bool given;
    if (!x)
        return;
    if (!qn_onnx_axes(n, -1, x->type.rank, axes, &n_axes, &given))
        return;
    if (!given) {
        axes[0] = 0, axes[1] = 2, axes[2] = 3;
        n_axes = 3;
        if (x->type.rank != 4) {
            qn_onnx_malformed(n, "the input must have rank 4, or axes be given");
            return;
        }
    }
    qn_value *centred = sub(b, x, qn_b_mean(b, x, n_axes, axes, true));
    qn_value *deviation = qn_b_unary(b, QN_OP_SQRT, qn_b_mean(b, square(b, centred), n_axes, axes, true));
    qn_onnx_out(n, 0, divide(b, centred, add_number(b, deviation, 1e-9)));
}

const qn_onnx_op qn_onnx_norm_ops[] = {
    { "BatchNormalization", NULL, 1, 0, import_batch_norm },
    { "InstanceNormalization", NULL, 1, 0, import_instance_norm },
    { "GroupNormalization", NULL, 18, 0, import_group_norm },
    { "LayerNormalization", NULL, 1, 0, import_layer_norm }, /* ONNX Runtime has it before opset 17 */
    { "RMSNormalization", NULL, 23, 0, import_rms_norm },
    { "SimplifiedLayerNormalization", NULL, 1, 0, import_rms_norm }, /* ONNX Runtime's name of it */
    { "SimplifiedLayerNormalization", "com.microsoft", 1, 0, import_rms_norm },
    { "LRN", NULL, 1, 0, import_lrn },
    { "LpNormalization", NULL, 1, 0, import_lp_norm },
    { "MeanVarianceNormalization", NULL, 9, 0, import_mean_variance },
    { 0 },
};
