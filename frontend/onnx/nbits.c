/* Weights of few bits, packed into bytes, with a scale for each block: com.microsoft's MatMulNBits and GatherBlockQuantized, as
 * ONNX Runtime's weight-only quantizer writes them. They become a product with dequantized weights, and rows that are
 * dequantized. */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

typedef struct layout {
    int64_t n, k, block, blocks, bits;
    int64_t row_bytes; /* of a column's numbers */
    qn_dtype dtype;
} layout;

static bool read_layout(qn_onnx_node *n, layout *out)
{
    out->n = qn_onnx_attr_int(n, "N", 0);
    out->k = qn_onnx_attr_int(n, "K", 0);
    out->block = qn_onnx_attr_int(n, "block_size", 0);
    out->bits = qn_onnx_attr_int(n, "bits", 4);
    out->dtype = out->bits == 2   ? QUERN_U2
                 : out->bits == 4 ? QUERN_U4
                 : out->bits == 8 ? QUERN_U8
                                  : QUERN_INVALID_DTYPE;
    if (out->dtype == QUERN_INVALID_DTYPE) {
        qn_onnx_unsupported(n, "weights of %lld bits; 2, 4 and 8 are", (long long)out->bits);
        return false;
    }
    if (out->n < 1 || out->k < 1 || out->block < 16 || (out->block & (out->block - 1)) ||
        out->n > QN_DIM_MAX_VALUE || out->k > QN_DIM_MAX_VALUE || out->block > QN_DIM_MAX_VALUE) {
        qn_onnx_malformed(
            n, "attributes N, K and block_size must be positive, and the last a power of two of 16 or more");
        return false;
    }
    out->blocks = (out->k + out->block - 1) / out->block;
    out->row_bytes = out->blocks * (out->block * out->bits / 8);
    return true;
}

/* Constant input i of bytes, of which there must be `bytes`; NULL after a report. */
static const qn_tensor *constant_bytes(qn_onnx_node *n, int i, int64_t bytes)
{
    const qn_type *type = qn_onnx_in_type(n, i);
    if (!type)
        return NULL;
    const qn_tensor *tensor = n->in[i]->tensor;
    if (!tensor || type->dtype != QUERN_U8) {
        qn_onnx_unsupported(n, "input %d must be a constant of uint8", i);
        return NULL;
    }
    if (tensor->bytes != (size_t)bytes) {
        qn_onnx_malformed(n, "input %d has %zu bytes where N, K, bits and block_size ask for %lld", i,
                          tensor->bytes, (long long)bytes);
        return NULL;
    }
    return tensor;
}

/* Packed numbers as [N, columns], of which each row is `row_bytes` long. */
static qn_value *unpacked(qn_onnx_node *n, const layout *l, int i, int64_t row_bytes, int64_t columns)
{
    const int64_t dims[2] = { l->n, row_bytes * 8 / l->bits };
    int64_t all;
    if (__builtin_mul_overflow(l->n, dims[1], &all) || all >= QN_DIM_MAX_VALUE) {
        qn_onnx_malformed(n, "the weights are too large");
        return NULL;
    }
    const qn_tensor *bytes = constant_bytes(n, i, l->n * row_bytes);
    if (!bytes)
        return NULL;
    qn_value *v = qn_b_constant(&n->b, qn_onnx_tensor_of_bits(n->im, l->dtype, 2, dims, bytes));
    return columns == dims[1] ? v : qn_b_slice_axis(&n->b, v, 1, qn_onnx_dim(n, 0), qn_onnx_dim(n, columns));
}

/* One number for each block: [N, blocks], which may come as a list. */
static qn_value *of_blocks(qn_onnx_node *n, const layout *l, qn_value *v)
{
    const qn_dim dims[2] = { qn_onnx_dim(n, l->n), qn_onnx_dim(n, l->blocks) };
    return qn_b_reshape(&n->b, v, 2, dims);
}

/* Zero points that are no whole numbers: what they stand for is taken off, block by block. */
static qn_value *less_zeros(qn_onnx_node *n, const layout *l, qn_value *w, qn_value *zero, qn_value *scale)
{
    qn_builder *b = &n->b;
    const qn_dim dims[2] = { qn_onnx_dim(n, l->n), qn_onnx_dim(n, l->blocks * l->block) };
    const qn_dim cut[3] = { dims[0], qn_onnx_dim(n, l->blocks), qn_onnx_dim(n, l->block) };
    qn_value *off = mul(b, qn_b_convert(b, scale->type.dtype, of_blocks(n, l, zero)), scale);
    off = off ? qn_b_broadcast(b, off, 3, cut, (const int64_t[]){ 0, 1 }) : NULL;
    return sub(b, w, qn_b_reshape(b, off, 2, dims));
}

/* [N, K] of `dtype`. */
static qn_value *weights(qn_onnx_node *n, const layout *l, qn_dtype dtype)
{
    qn_builder *b = &n->b;
    qn_value *w = unpacked(n, l, 1, l->row_bytes, l->blocks * l->block);
    qn_value *scale = of_blocks(n, l, qn_b_convert(b, dtype, qn_onnx_in(n, 2))), *zero = qn_onnx_in_opt(n, 3);
    if (!w || !scale || !qn_onnx_ok(n))
        return NULL;
    const bool floats = zero && qn_dtype_is_float(zero->type.dtype);
    qn_value *whole = zero && !floats ? unpacked(n, l, 3, (l->blocks * l->bits + 7) / 8, l->blocks) : NULL;
    if (zero && !floats && !whole)
        return NULL;
    if (!whole)
        whole = qn_b_broadcast(b, qn_b_scalar_int(b, l->dtype, floats ? 0 : (int64_t)1 << (l->bits - 1)), 2,
                               scale->type.dims, NULL);
    w = qn_b_dequantize_weights(b, w, scale, whole, 1, l->block,
                                qn_onnx_attr_int(n, "accuracy_level", 0) == 4);
    if (floats)
        w = less_zeros(n, l, w, zero, scale);
    return l->blocks * l->block == l->k ? w
                                        : qn_b_slice_axis(b, w, 1, qn_onnx_dim(n, 0), qn_onnx_dim(n, l->k));
}

/* Of 16-bit floats, too, the product is one of float32, which is rounded once: weights are not rounded before. */
static void import_matmul_nbits(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *bias = qn_onnx_in_opt(n, 5);
    layout l;
    if (!x || !read_layout(n, &l))
        return;
    if (x->type.rank < 1 || !qn_dtype_is_float(x->type.dtype)) {
        qn_onnx_malformed(n, "A must be of floats and have rank 1 or more");
        return;
    }
    if (qn_onnx_has(n, 4)) {
        qn_onnx_unsupported(n, "input 4 (g_idx)");
        return;
    }
    if (qn_onnx_attr_int(n, "weight_prepacked", 0)) {
        qn_onnx_unsupported(n, "attribute weight_prepacked");
        return;
    }
    const qn_dtype dtype = x->type.dtype, wide = dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    qn_value *w = weights(n, &l, wide);
    x = qn_onnx_with_dim(n, qn_b_convert(b, wide, x), x->type.rank - 1, qn_onnx_dim(n, l.k));
    qn_value *y = times_transposed(b, x, w);
    y = bias ? add(b, y, qn_b_convert(b, wide, bias)) : y;
    qn_onnx_out(n, 0, y ? qn_b_convert(b, dtype, y) : NULL);
}

/* Input i of GatherBlockQuantized: numbers as they are, or packed along the last axis of a constant of bytes. */
static qn_value *numbers(qn_onnx_node *n, int i, int64_t bits)
{
    const qn_type *type = qn_onnx_in_type(n, i);
    int64_t dims[QN_MAX_RANK];
    if (!type)
        return NULL;
    if (type->dtype != QUERN_U8 || bits == 8)
        return qn_onnx_in(n, i);
    const qn_tensor *bytes = n->in[i]->tensor;
    if (!bytes || type->rank < 1) {
        qn_onnx_unsupported(n, "input %d must be a constant of rank 1 or more", i);
        return NULL;
    }
    for (int k = 0; k < type->rank; k++)
        dims[k] = type->dims[k]->value * (k == type->rank - 1 ? 8 / bits : 1);
    return qn_b_constant(
        &n->b, qn_onnx_tensor_of_bits(n->im, bits == 4 ? QUERN_U4 : QUERN_U2, type->rank, dims, bytes));
}

/* Numbers of few bits from bytes that hold several along the last axis. */
static qn_value *taken_apart(qn_onnx_node *n, qn_value *x, int64_t bits)
{
    qn_builder *b = &n->b;
    const int64_t each = 8 / bits;
    const uint8_t by[] = { 0, (uint8_t)bits, (uint8_t)(2 * bits), (uint8_t)(3 * bits) };
    qn_dim apart[QN_MAX_RANK], joined[QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK];
    if (!x)
        return NULL;
    const int rank = x->type.rank;
    for (int i = 0; i < rank; i++) {
        axes[i] = i;
        apart[i] = joined[i] = x->type.dims[i];
    }
    if (rank == QN_MAX_RANK) {
        qn_onnx_unsupported(n, "a result of rank %d", rank);
        return NULL;
    }
    apart[rank] = qn_onnx_dim(n, each);
    joined[rank - 1] = qn_onnx_dim(n, joined[rank - 1]->value * each);
    const int64_t last = rank;
    qn_value *shifts = qn_b_constant(b, qn_onnx_tensor_of(n->im, QUERN_U8, 1, &each, by));
    shifts = qn_b_broadcast(b, shifts, rank + 1, apart, &last);
    x = qn_b_binary(b, QN_OP_SHIFT_RIGHT, qn_b_broadcast(b, x, rank + 1, apart, axes), shifts);
    x = qn_b_binary_bcast(b, QN_OP_AND, x, qn_b_scalar_int(b, QUERN_U8, (1 << bits) - 1));
    return qn_b_convert(b, bits == 4 ? QUERN_U4 : QUERN_U2, qn_b_reshape(b, x, rank, joined));
}

/* x along the axis; one zero point may be wider than the scales, where bytes have room for more. */
static qn_value *as_wide(qn_onnx_node *n, qn_value *x, const qn_value *scales, int axis)
{
    if (!x || x->type.rank != scales->type.rank || x->type.dims[axis] == scales->type.dims[axis])
        return x;
    return qn_b_slice_axis(&n->b, x, axis, qn_onnx_dim(n, 0), scales->type.dims[axis]);
}

/* What is read is taken apart and dequantized, not the table; where blocks lie along the axis that is read, the table is. */
static void import_gather_quantized(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const int64_t bits = qn_onnx_attr_int(n, "bits", 4), block = qn_onnx_attr_int(n, "block_size", 128);
    const qn_type *type = qn_onnx_in_type(n, 0);
    qn_value *indices = qn_onnx_in(n, 1), *scale = qn_onnx_in(n, 2), *zero = NULL;
    int axis, along;
    if (!type || !indices || !scale ||
        !qn_onnx_axis(n, qn_onnx_attr_int(n, "gather_axis", 0), type->rank, &axis) ||
        !qn_onnx_axis(n, qn_onnx_attr_int(n, "quantize_axis", 1), type->rank, &along))
        return;
    const bool bytes = type->dtype == QUERN_U8;
    if (!bytes && type->dtype != QUERN_I4 && type->dtype != QUERN_U4) {
        qn_onnx_unsupported(n, "data that is not of uint8, int4 or uint4");
        return;
    }
    if (bytes && bits != 2 && bits != 4 && bits != 8) {
        qn_onnx_unsupported(n, "data of %lld bits; 2, 4 and 8 are", (long long)bits);
        return;
    }
    if (block < 16 || (block & (block - 1)) || block > QN_DIM_MAX_VALUE || scale->type.rank != type->rank) {
        qn_onnx_malformed(
            n,
            "attribute block_size must be a power of two of 16 or more, and the scales have the data's rank");
        return;
    }
    qn_value *x = numbers(n, 0, bits);
    if (qn_onnx_has(n, 3))
        zero = as_wide(n, numbers(n, 3, bits), scale, along);
    else if (x)
        zero = qn_b_broadcast(b, qn_b_scalar_int(b, x->type.dtype, bytes ? (int64_t)1 << (bits - 1) : 0),
                              scale->type.rank, scale->type.dims, NULL);
    if (axis == along) {
        qn_onnx_out(n, 0, qn_b_gather(b, qn_b_dequantize(b, x, scale, zero, along, block), indices, axis));
        return;
    }
    const bool packed = bytes && bits < 8 && axis != type->rank - 1;
    x = packed ? taken_apart(n, qn_b_gather(b, qn_onnx_in(n, 0), indices, axis), bits)
               : qn_b_gather(b, x, indices, axis);
    scale = qn_b_gather(b, scale, indices, axis);
    zero = qn_b_gather(b, zero, indices, axis);
    const int moved = along < axis ? along : along + indices->type.rank - 1;
    qn_onnx_out(n, 0, qn_b_dequantize(b, x, scale, zero, moved, block));
}

const qn_onnx_op qn_onnx_nbits_ops[] = {
    { "MatMulNBits", "com.microsoft", 1, 0, import_matmul_nbits },
    { "GatherBlockQuantized", "com.microsoft", 1, 0, import_gather_quantized },
    { 0 },
};
