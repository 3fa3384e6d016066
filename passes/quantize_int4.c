/* Weights of four bits under precision int4: what pack makes of a product of few rows, which waits for the panels of a constant.
 *
 * GROUP of k share a scale: of the number with the largest magnitude an eighth, so that this number is -8 or 8 (and becomes 7).
 * A weight is stored as a whole number from 0 to 15, 8 more than the multiple of the scale that it is nearest to; eight of k in
 * four bytes, as matmul_packed wants them. What they are multiplied by is rounded to bytes as under int8, one scale a row: next to
 * the error of the weights that of bytes does not count.
 *
 *   %r = matmul_packed %x: f32[1, 768], %p: f32[96, 768, 32]
 *   ->
 *   %w: u8[96, 96, 32, 4],  %s: bf16[96, 24, 32];  %x': i8[1, 768],  %m: f32[1]
 *   %r = mul (matmul_packed %x', %w, %s : f32[1, 3072]), %m
 *
 * A group of zeros has the scale 0. A group with NaN or infinity makes what it takes part in NaN or infinite. */
#include "passes/quantize.h"

enum { GROUP = 32, NUMBERS = 8, LEAST = -8, MOST = 7 };

bool qn_int4_takes(const qn_value *panels)
{
    enum { LEAST_WEIGHTS = 1 << 16 };
    const qn_type *type = &panels->type;
    const qn_dim k = type->dims[type->rank - 2];
    return qn_dim_is_const(k) && k->value % GROUP == 0 && qn_type_is_static(type) &&
           qn_type_elements(type) >= LEAST_WEIGHTS;
}

/* [batch…, panels, K, width] -> [batch…, panels, K / n, n, width] */
static qn_value *cut(qn_builder *b, qn_value *v, int64_t n)
{
    qn_dim dims[QN_MAX_RANK];
    if (!v)
        return NULL;
    const int rank = v->type.rank;
    for (int i = 0; i < rank; i++)
        dims[i] = v->type.dims[i];
    dims[rank] = dims[rank - 1];
    dims[rank - 1] = qn_dim_const(qn_b_dims(b), n);
    dims[rank - 2] = qn_dim_const(qn_b_dims(b), dims[rank - 2]->value / n);
    return qn_b_reshape(b, v, rank + 1, dims);
}

static qn_value *f32(qn_builder *b, double value)
{
    return qn_b_scalar(b, QUERN_F32, value);
}

/* Eight of k in four bytes: [batch…, panels, K, width] -> [batch…, panels, K / 8, width, 4] */
static qn_value *together(qn_builder *b, qn_value *numbers)
{
    qn_value *half[2];
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK];
    qn_value *eight = cut(b, numbers, NUMBERS);
    if (!eight)
        return NULL;
    const int rank = eight->type.rank, axis = rank - 2;
    for (int i = 0; i < rank; i++) {
        start[i] = qn_dim_const(qn_b_dims(b), 0);
        limit[i] = eight->type.dims[i];
        perm[i] = i == axis ? rank - 1 : i == rank - 1 ? axis : i;
    }
    for (int upper = 0; upper < 2; upper++) {
        start[axis] = qn_dim_const(qn_b_dims(b), upper * NUMBERS / 2);
        limit[axis] = qn_dim_const(qn_b_dims(b), (upper + 1) * NUMBERS / 2);
        half[upper] = qn_b_slice(b, eight, start, limit, NULL);
    }
    half[1] = qn_b_binary_bcast(b, QN_OP_SHIFT_LEFT, half[1], qn_b_scalar(b, QUERN_U8, 4));
    return qn_b_transpose(b, qn_b_binary(b, QN_OP_OR, half[0], half[1]), perm);
}

/* [batch…, panels, K, width] as matmul_packed wants it, with its scale. */
static qn_value *four_bits(qn_builder *b, qn_value *panels, qn_value **out_scale)
{
    const int64_t axis[] = { panels->type.rank - 1 }; /* of a group's members */
    const qn_type *type = &panels->type;
    qn_value *groups = cut(b, panels, GROUP);
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, groups, 1, axis, true);
    qn_value *least = qn_b_reduce(b, QN_KIND_MIN, groups, 1, axis, true);
    qn_value *positive = qn_b_compare_bcast(b, QN_GT, most, qn_b_unary(b, QN_OP_NEG, least));
    qn_value *extreme = qn_b_select_bcast(b, positive, most, least);
    qn_value *scale = qn_b_convert(b, QUERN_BF16, qn_b_binary_bcast(b, QN_OP_DIV, extreme, f32(b, LEAST)));
    qn_value *q = qn_b_binary_bcast(b, QN_OP_DIV, groups, qn_b_convert(b, QUERN_F32, scale));
    q = qn_b_binary_bcast(b, QN_OP_MIN, qn_b_unary(b, QN_OP_ROUND, q), f32(b, MOST));
    q = qn_b_convert(b, QUERN_U8, qn_b_binary_bcast(b, QN_OP_SUB, q, f32(b, LEAST)));
    *out_scale = qn_b_squeeze(b, scale, (int)axis[0]);
    return together(b, qn_b_reshape(b, q, type->rank, type->dims));
}

qn_value *qn_int4_product(qn_builder *b, qn_value *x, qn_value *panels, int n_batch, qn_dim n)
{
    qn_dot_side rows = { .n_free = x->type.rank - 1, .n_contract = 1, .contract = { x->type.rank - 1 } };
    for (int i = 0; i < rows.n_free; i++)
        rows.free[i] = i;
    const qn_quantized q = qn_quantize_bytes(b, x, &rows);
    qn_value *scale, *y = four_bits(b, panels, &scale);
    qn_value *r = qn_b_matmul_packed_scaled(b, q.bytes, y, scale, n_batch, n);
    return r ? qn_b_binary(b, QN_OP_MUL, r, qn_b_broadcast(b, q.scale, r->type.rank, r->type.dims, rows.free))
             : NULL;
}
