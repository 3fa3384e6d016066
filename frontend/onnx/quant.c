/* Quantized operators. Products of 8-bit integers stay products of 8-bit integers with 32-bit sums; zero points are
 * taken out of the sums afterwards:
 *   sum (a - za)(b - zb) = sum a b - za sum b - zb sum a + K za zb */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/quant.h"
#include "ir/narrow.h"

static bool is_scalar(const qn_value *v)
{
    return v->type.rank == 0 || (v->type.rank == 1 && qn_dim_is(v->type.dims[0], 1));
}

/* Scale and zero point (zeros of `dtype` when it is left out) as the composites take them, and the axis: -1 for scalars. */
typedef struct parameters {
    qn_value *scale, *zero_point;
    int axis;
    int64_t block;
} parameters;

/* The scale's extents are those of x, but along the axis of blocks. False after a report. */
static bool fit_scale(qn_onnx_node *n, const qn_value *x, parameters *p)
{
    const qn_type *type = &p->scale->type;
    if (p->axis >= 0 && type->rank == 1 && !p->block)
        p->scale = qn_onnx_with_dim(n, p->scale, 0, x->type.dims[p->axis]);
    for (int i = 0; p->block && type->rank == x->type.rank && i < type->rank; i++) {
        const qn_dim blocks = qn_dim_ceildiv(n->im->dims, x->type.dims[i], qn_onnx_dim(n, p->block));
        if (i != p->axis) {
            p->scale = qn_onnx_with_dim(n, p->scale, i, x->type.dims[i]);
        } else if (type->dims[i] != blocks && (!qn_dim_is_const(type->dims[i]) || !qn_dim_is_const(blocks))) {
            qn_onnx_needs_dim(n, type->dims[i]);
            qn_onnx_needs_dim(n, blocks);
            qn_onnx_unsupported(n, "the numbers of elements and of blocks along axis %d must be known", i);
            return false;
        }
        if (!p->scale)
            return false;
        type = &p->scale->type;
    }
    return p->scale != NULL;
}

static bool read_parameters(qn_onnx_node *n, const qn_value *x, int scale_at, qn_dtype dtype, parameters *out)
{
    qn_builder *b = &n->b;
    out->scale = qn_onnx_in(n, scale_at);
    out->block = qn_onnx_attr_int(n, "block_size", 0);
    out->axis = -1;
    if (!out->scale)
        return false;
    if (qn_onnx_has(n, scale_at + 1))
        out->zero_point = qn_onnx_in(n, scale_at + 1);
    if (is_scalar(out->scale)) {
        out->scale = qn_b_reshape(b, out->scale, 0, NULL);
        out->zero_point = out->zero_point ? qn_b_reshape(b, out->zero_point, 0, NULL) : NULL;
        out->block = 0;
    } else {
        if (!qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 1), x->type.rank, &out->axis))
            return false;
        if (out->block < 0 || (out->block == 0 && out->scale->type.rank != 1)) {
            qn_onnx_malformed(
                n, "the scale must be a scalar, have rank 1, or the input's rank with attribute block_size");
            return false;
        }
    }
    if (!out->scale || !qn_onnx_ok(n) || !fit_scale(n, x, out))
        return false;
    for (int i = 0; out->zero_point && i < out->scale->type.rank; i++)
        out->zero_point = qn_onnx_with_dim(n, out->zero_point, i, out->scale->type.dims[i]);
    if (!out->zero_point) {
        qn_type type = qn_type_make(n->im->module, dtype, out->scale->type.rank, out->scale->type.dims);
        out->zero_point = qn_b_full(b, &type, 0);
    }
    return out->zero_point != NULL;
}

static void import_quantize(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    parameters p = { 0 };
    int64_t elem = qn_onnx_attr_int(n, "output_dtype", 0), precision = qn_onnx_attr_int(n, "precision", 0);
    if (!x)
        return;
    if (qn_onnx_has(n, 2))
        elem = qn_onnx_dtype_elem(n->in[2]->type.dtype);
    elem = elem ? elem : QN_ONNX_UINT8;
    qn_dtype dtype = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
    const bool narrow = dtype != QUERN_INVALID_DTYPE && qn_dtype_is_stored(dtype);
    if (dtype == QUERN_INVALID_DTYPE || !(qn_dtype_is_int(dtype) || narrow)) {
        qn_onnx_unsupported(n, "quantizing to %s", qn_onnx_elem_name((int)elem));
        return;
    }
    if (narrow && qn_is_real(dtype) && !qn_onnx_attr_int(n, "saturate", 1)) {
        qn_onnx_unsupported(n, "quantizing to %s without saturation; divide and cast instead",
                            qn_onnx_elem_name((int)elem));
        return;
    }
    if (!read_parameters(n, x, 1, dtype, &p))
        return;
    qn_dtype common =
        p.scale->type.dtype == x->type.dtype && qn_dtype_is_float(x->type.dtype) ? x->type.dtype : QUERN_F32;
    if (precision > 0 && precision < QN_ONNX_N_ELEMS && qn_dtype_is_float(qn_onnx_elem_dtype((int)precision)))
        common = qn_onnx_elem_dtype((int)precision);
    x = qn_b_convert(b, common, x);
    p.scale = qn_b_convert(b, common, p.scale);
    qn_onnx_out(n, 0, qn_b_quantize(b, x, p.scale, p.zero_point, p.axis, p.block));
}

static void import_dequantize(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    parameters p = { 0 };
    int64_t elem = qn_onnx_attr_int(n, "output_dtype", 0);
    if (!x || !read_parameters(n, x, 1, x->type.dtype, &p))
        return;
    if (qn_dtype_is_stored(p.scale->type.dtype)) /* f8e8m0 */
        p.scale = qn_b_convert(b, QUERN_F32, p.scale);
    qn_dtype dtype = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : p.scale->type.dtype;
    if (dtype == QUERN_INVALID_DTYPE || !qn_dtype_is_float(dtype)) {
        qn_onnx_unsupported(n, "dequantizing to %s", qn_onnx_elem_name((int)elem));
        return;
    }
    qn_value *y = qn_b_dequantize(b, x, p.scale, p.zero_point, p.axis, p.block);
    qn_onnx_out(n, 0, y ? qn_b_convert(b, dtype, y) : NULL);
}

qn_onnx_quantized qn_onnx_quantize_dynamic(qn_builder *b, qn_value *x)
{
    qn_onnx_quantized q = { .bytes = NULL };
    int64_t axes[QN_MAX_RANK];
    if (!x)
        return q;
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = i;
    qn_value *most = max_number(b, qn_b_reduce(b, QN_KIND_MAX, x, x->type.rank, axes, false), 0);
    qn_value *least = min_number(b, qn_b_reduce(b, QN_KIND_MIN, x, x->type.rank, axes, false), 0);
    q.scale = div_number(b, sub(b, most, least), 255);
    qn_value *zero = qn_b_unary(b, QN_OP_ROUND, negate(b, divide(b, least, q.scale)));
    q.zero = zero ? qn_b_convert(b, QUERN_U8, zero) : NULL;
    q.bytes = qn_b_quantize(b, x, q.scale, q.zero, -1, 0);
    return q;
}

static void import_dynamic_quantize(qn_onnx_node *n)
{
    const qn_onnx_quantized q = qn_onnx_quantize_dynamic(&n->b, qn_onnx_in(n, 0));
    qn_onnx_out(n, 0, q.bytes);
    qn_onnx_out(n, 1, q.scale);
    qn_onnx_out(n, 2, q.zero);
}

/* ---- bytes by scalars ---- */

/* A scalar scale and zero point; false after a report. */
static bool read_scalars(qn_onnx_node *n, int scale_at, qn_dtype dtype, parameters *out)
{
    qn_builder *b = &n->b;
    qn_value *scale = qn_onnx_in(n, scale_at), *zero = qn_onnx_in_opt(n, scale_at + 1);
    if (!scale || !qn_onnx_ok(n))
        return false;
    if (!is_scalar(scale) || (zero && !is_scalar(zero))) {
        qn_onnx_unsupported(n, "inputs %d and %d must be scalars", scale_at, scale_at + 1);
        return false;
    }
    qn_type type = qn_type_make(n->im->module, dtype, 0, NULL);
    out->scale = qn_b_convert(b, QUERN_F32, qn_b_reshape(b, scale, 0, NULL));
    out->zero_point = zero ? qn_b_reshape(b, zero, 0, NULL) : qn_b_full(b, &type, 0);
    return out->scale && out->zero_point;
}

qn_value *qn_onnx_dequantized(qn_onnx_node *n, int i, int scale)
{
    qn_value *x = qn_onnx_in(n, i);
    parameters p;
    if (!x || !read_scalars(n, scale, x->type.dtype, &p))
        return NULL;
    return qn_b_dequantize(&n->b, x, p.scale, p.zero_point, -1, 0);
}

qn_value *qn_onnx_requantized(qn_onnx_node *n, qn_value *x, int scale, qn_dtype dtype)
{
    parameters p;
    if (!x || !read_scalars(n, scale, dtype, &p))
        return NULL;
    return qn_b_quantize(&n->b, x, p.scale, p.zero_point, -1, 0);
}

/* ---- integer products ---- */

/* A zero point or scale of rows (or columns) of a matrix, to combine with it: a scalar, [M, 1] or [N]. */
static qn_value *of_rows(qn_builder *b, qn_value *v, bool rows)
{
    if (!v)
        return NULL;
    if (is_scalar(v))
        return qn_b_reshape(b, v, 0, NULL);
    return rows && v->type.rank == 1 ? qn_b_expand_dims(b, v, 1) : v;
}

static qn_value *wide_in(qn_onnx_node *n, int i, bool rows)
{
    qn_value *v = of_rows(&n->b, qn_onnx_in_opt(n, i), rows);
    return v ? qn_b_convert(&n->b, QUERN_I32, v) : NULL;
}

/* Sums along an axis, kept. */
static qn_value *sum_axis(qn_builder *b, qn_value *x, int axis)
{
    return x ? qn_b_reduce(b, QN_SUM, qn_b_convert(b, QUERN_I32, x), 1, (int64_t[]){ axis }, true) : NULL;
}

/* i32 product of x and y less their zero points (which may be NULL). */
static qn_value *integer_matmul(qn_onnx_node *n, qn_value *x, qn_value *x_zero, qn_value *y, qn_value *y_zero)
{
    qn_builder *b = &n->b;
    if (!x || !y)
        return NULL;
    if (x->type.rank < 2 || y->type.rank < 2) {
        qn_onnx_unsupported(n, "integer products of vectors");
        return NULL;
    }
    y = qn_onnx_with_dim(n, y, y->type.rank - 2, x->type.dims[x->type.rank - 1]);
    if (!y)
        return NULL;
    bool narrow = qn_dtype_bytes(x->type.dtype) == 1 && qn_dtype_bytes(y->type.dtype) == 1;
    if (!narrow) {
        x = qn_b_convert(b, QUERN_I32, x);
        y = qn_b_convert(b, QUERN_I32, y);
    }
    qn_value *z = qn_b_matmul_to(b, x, y, narrow ? QUERN_I32 : QUERN_INVALID_DTYPE);
    if (x_zero)
        z = sub(b, z, mul(b, x_zero, sum_axis(b, y, y->type.rank - 2)));
    if (y_zero)
        z = sub(b, z, mul(b, y_zero, sum_axis(b, x, x->type.rank - 1)));
    if (x_zero && y_zero) {
        qn_value *depth = qn_b_dim_value(b, QUERN_I32, x->type.dims[x->type.rank - 1]);
        z = add(b, z, mul(b, depth, mul(b, x_zero, y_zero)));
    }
    return z;
}

static void import_matmul_integer(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    qn_onnx_out(n, 0, integer_matmul(n, x, wide_in(n, 2, true), y, wide_in(n, 3, false)));
}

/* A 32-bit sum times its scale, to the result's scale and zero point. */
static qn_value *requantize(qn_onnx_node *n, qn_value *sum, qn_value *scale, int y_scale, int y_zero)
{
    qn_builder *b = &n->b;
    qn_value *to = qn_onnx_in(n, y_scale), *zero = qn_onnx_in(n, y_zero);
    if (!sum || !scale || !to || !zero)
        return NULL;
    if (!is_scalar(to) || !is_scalar(zero)) {
        qn_onnx_needs_shape(n, y_scale);
        qn_onnx_needs_shape(n, y_zero);
        qn_onnx_unsupported(n, "a result whose scale is no scalar");
        return NULL;
    }
    qn_value *x = mul(b, qn_b_convert(b, QUERN_F32, sum), qn_b_convert(b, QUERN_F32, scale));
    to = qn_b_convert(b, QUERN_F32, qn_b_reshape(b, to, 0, NULL));
    return qn_b_quantize(b, x, to, qn_b_reshape(b, zero, 0, NULL), -1, 0);
}

static void import_qlinear_matmul(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 3);
    qn_value *x_scale = of_rows(b, qn_onnx_in(n, 1), true), *y_scale = of_rows(b, qn_onnx_in(n, 4), false);
    if (!x || !y || !x_scale || !y_scale)
        return;
    qn_value *sum = integer_matmul(n, x, wide_in(n, 2, true), y, wide_in(n, 5, false));
    x_scale = qn_b_convert(b, QUERN_F32, x_scale);
    y_scale = qn_b_convert(b, QUERN_F32, y_scale);
    qn_onnx_out(n, 0, requantize(n, sum, mul(b, x_scale, y_scale), 6, 7));
}

qn_value *qn_onnx_scaled_matmul(qn_onnx_node *n, const qn_onnx_quantized *x, const qn_onnx_quantized *y)
{
    qn_builder *b = &n->b;
    qn_value *zeros[2] = { x->zero ? qn_b_convert(b, QUERN_I32, x->zero) : NULL,
                           y->zero ? qn_b_convert(b, QUERN_I32, y->zero) : NULL };
    qn_value *sum = integer_matmul(n, x->bytes, zeros[0], y->bytes, zeros[1]);
    return sum ? mul(b, qn_b_convert(b, QUERN_F32, sum), mul(b, x->scale, y->scale)) : NULL;
}

/* Weights at input i, with the scale and the zero point (or none) at those inputs: of columns, or one for all. */
static bool read_columns(qn_onnx_node *n, int i, int scale, int zero, qn_onnx_quantized *out)
{
    qn_builder *b = &n->b;
    out->bytes = qn_onnx_in(n, i);
    out->scale = of_rows(b, qn_onnx_in(n, scale), false);
    out->zero = of_rows(b, qn_onnx_in_opt(n, zero), false);
    return out->bytes && out->scale && qn_onnx_ok(n);
}

/* With the bias at input i, if there is one. */
static qn_value *with_bias(qn_onnx_node *n, qn_value *x, int i)
{
    return qn_onnx_has(n, i) ? add(&n->b, x, qn_onnx_in(n, i)) : x;
}

static void import_dynamic_matmul(qn_onnx_node *n)
{
    qn_onnx_quantized x = qn_onnx_quantize_dynamic(&n->b, qn_onnx_in(n, 0)), y;
    if (x.bytes && read_columns(n, 1, 2, 3, &y))
        qn_onnx_out(n, 0, with_bias(n, qn_onnx_scaled_matmul(n, &x, &y), 4));
}

static void import_matmul_integer_to_float(qn_onnx_node *n)
{
    qn_onnx_quantized x, y;
    if (!read_columns(n, 0, 2, 4, &x) || !read_columns(n, 1, 3, 5, &y))
        return;
    if (x.scale->type.rank || (x.zero && x.zero->type.rank)) {
        qn_onnx_unsupported(n, "scale and zero point of A must be scalars");
        return;
    }
    qn_onnx_out(n, 0, with_bias(n, qn_onnx_scaled_matmul(n, &x, &y), 6));
}

static qn_value *transposed_if(qn_onnx_node *n, qn_value *x, const char *attribute)
{
    static const int64_t swap[2] = { 1, 0 };
    return x && qn_onnx_attr_int(n, attribute, 0) ? qn_b_transpose(&n->b, x, swap) : x;
}

/* alpha * A' B' + C, where C is i32 with the scale of the product; f32 where the result has no scale. */
static void import_qgemm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *x_scale = of_rows(b, qn_onnx_in(n, 1), false), *c = qn_onnx_in_opt(n, 6);
    qn_onnx_quantized y;
    if (!x || !x_scale || !read_columns(n, 3, 4, 5, &y))
        return;
    if (x->type.rank != 2 || y.bytes->type.rank != 2) {
        qn_onnx_malformed(n, "A and B must have rank 2");
        return;
    }
    if (c && c->type.dtype != QUERN_I32) {
        qn_onnx_malformed(n, "C must be int32");
        return;
    }
    x = transposed_if(n, x, "transA");
    y.bytes = transposed_if(n, y.bytes, "transB");
    qn_value *sum = integer_matmul(n, x, wide_in(n, 2, false), y.bytes,
                                   y.zero ? qn_b_convert(b, QUERN_I32, y.zero) : NULL);
    qn_value *scale = mul(b, x_scale, y.scale);
    const double alpha = qn_onnx_attr_float(n, "alpha", 1);
    if (alpha != 1)
        scale = mul_number(b, scale, alpha);
    sum = c ? add(b, sum, c) : sum;
    if (qn_onnx_has(n, 7))
        qn_onnx_out(n, 0, requantize(n, sum, scale, 7, 8));
    else if (sum)
        qn_onnx_out(n, 0, mul(b, qn_b_convert(b, QUERN_F32, sum), scale));
}

/* One number per output channel, [M, 1, …] with `after` ones; a scalar stays one. */
static qn_value *per_kernel(qn_onnx_node *n, int i, int after)
{
    qn_builder *b = &n->b;
    qn_value *v = qn_onnx_in_opt(n, i);
    if (!v)
        return NULL;
    if (is_scalar(v))
        return qn_b_reshape(b, v, 0, NULL);
    if (v->type.rank != 1) {
        qn_onnx_malformed(n, "input %d must be a scalar or have rank 1", i);
        return NULL;
    }
    for (int k = 1; k <= after && v; k++)
        v = qn_b_expand_dims(b, v, k);
    return v;
}

/* i32 convolution of x and w less their zero points; padding is zero. */
static qn_value *integer_conv(qn_onnx_node *n, int x_at, int x_zero_at, int w_at, int w_zero_at)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, x_at), *w = qn_onnx_in(n, w_at);
    if (!x || !w)
        return NULL;
    qn_value *x_zero = wide_in(n, x_zero_at, false), *w_zero = per_kernel(n, w_zero_at, w->type.rank - 1);
    x = qn_b_convert(b, QUERN_I32, x);
    w = qn_b_convert(b, QUERN_I32, w);
    if (x_zero)
        x = sub(b, x, x_zero);
    if (w_zero)
        w = sub(b, w, qn_b_convert(b, QUERN_I32, w_zero));
    return qn_onnx_ok(n) ? qn_onnx_convolve(n, x, w) : NULL;
}

static void import_conv_integer(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, integer_conv(n, 0, 2, 1, 3));
}

static void import_qlinear_conv(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *sum = integer_conv(n, 0, 2, 3, 5), *x_scale = of_rows(b, qn_onnx_in(n, 1), false);
    if (sum && qn_onnx_has(n, 8))
        sum = add(b, sum, qn_onnx_per_channel(n, 8, sum->type.rank));
    qn_value *w_scale = sum ? per_kernel(n, 4, sum->type.rank - 2) : NULL;
    if (x_scale && w_scale)
        qn_onnx_out(n, 0, requantize(n, sum, mul(b, x_scale, w_scale), 6, 7));
}

const qn_onnx_op qn_onnx_quant_ops[] = {
    { "QuantizeLinear", NULL, 10, 0, import_quantize },
    { "DequantizeLinear", NULL, 10, 0, import_dequantize },
    { "DynamicQuantizeLinear", NULL, 11, 0, import_dynamic_quantize },
    { "MatMulInteger", NULL, 10, 0, import_matmul_integer },
    { "QLinearMatMul", NULL, 10, 0, import_qlinear_matmul },
    { "ConvInteger", NULL, 10, 0, import_conv_integer },
    { "QLinearConv", NULL, 10, 0, import_qlinear_conv },
    { "QuantizeLinear", "com.microsoft", 1, 0, import_quantize },
    { "DequantizeLinear", "com.microsoft", 1, 0, import_dequantize },
    { "DynamicQuantizeMatMul", "com.microsoft", 1, 0, import_dynamic_matmul },
    { "MatMulIntegerToFloat", "com.microsoft", 1, 0, import_matmul_integer_to_float },
    { "QGemm", "com.microsoft", 1, 0, import_qgemm },
    { 0 },
};
