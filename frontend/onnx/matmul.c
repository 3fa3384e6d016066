/* Matrix products. */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static void import_matmul(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    if (x && y && x->type.rank && y->type.rank)
        y = qn_onnx_with_dim(n, y, y->type.rank > 1 ? y->type.rank - 2 : 0, x->type.dims[x->type.rank - 1]);
    qn_onnx_out(n, 0, qn_b_matmul(&n->b, x, y));
}

/* alpha * A' B' + beta * C; a transposed operand is contracted over its other axis. */
static void import_gemm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    if (!x || !y)
        return;
    if (x->type.rank != 2 || y->type.rank != 2) {
        qn_onnx_malformed(n, "A and B must have rank 2");
        return;
    }
    qn_dot dot = { .n_contract = 1 };
    dot.x_contract[0] = qn_onnx_attr_int(n, "transA", 0) ? 0 : 1;
    dot.y_contract[0] = qn_onnx_attr_int(n, "transB", 0) ? 1 : 0;
    y = qn_onnx_with_dim(n, y, (int)dot.y_contract[0], x->type.dims[dot.x_contract[0]]);
    double alpha = qn_onnx_attr_float(n, "alpha", 1), beta = qn_onnx_attr_float(n, "beta", 1);
    qn_value *z = qn_b_dot_general(b, x, y, &dot, QUERN_INVALID_DTYPE);
    if (alpha != 1)
        z = mul_number(b, z, alpha);
    if (qn_onnx_has(n, 2)) {
        qn_value *c = qn_onnx_in(n, 2);
        z = add(b, z, beta != 1 ? mul_number(b, c, beta) : c);
    }
    qn_onnx_out(n, 0, z);
}

/* Row k of matrices [.., m, m]: [.., m] */
static qn_value *row_of(qn_onnx_node *n, qn_value *x, int64_t k)
{
    qn_dims *t = n->im->dims;
    int axis = x->type.rank - 2;
    return qn_b_squeeze(&n->b, qn_b_slice_axis(&n->b, x, axis, qn_dim_const(t, k), qn_dim_const(t, k + 1)),
                        axis);
}

/* Elimination with the largest pivot of each column, spelled out for the matrix's size. */
static void import_det(qn_onnx_node *n)
{
    enum { MAX_SIZE = 64 };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    int rank = x->type.rank;
    if (rank < 2 || !qn_dim_is_const(x->type.dims[rank - 1]) ||
        x->type.dims[rank - 1] != x->type.dims[rank - 2] || x->type.dims[rank - 1]->value > MAX_SIZE) {
        for (int i = 1; i <= 2 && i <= rank; i++)
            qn_onnx_needs_dim(n, x->type.dims[rank - i]);
        qn_onnx_unsupported(n, "only square matrices of a known size up to %d", MAX_SIZE);
        return;
    }
    int64_t size = x->type.dims[rank - 1]->value;
    qn_dim last = qn_dim_const(t, size);
    qn_type index = qn_type_make(n->im->module, QUERN_I64, 1, &last);
    qn_value *position = qn_b_iota(b, &index, 0), *det = number_like(b, x, 1);
    for (int64_t k = 0; k < size && x; k++) {
        qn_value *column = qn_b_squeeze(
            b, qn_b_slice_axis(b, x, rank - 1, qn_dim_const(t, k), qn_dim_const(t, k + 1)), rank - 1);
        /* rows above are done with: they cannot be the pivot */
        qn_value *size_of = choose(b, compare(b, QN_GE, position, qn_b_scalar_int(b, QUERN_I64, k)),
                                   qn_b_unary(b, QN_OP_ABS, column), number_like(b, x, -1));
        qn_value *pivot = qn_b_arg_reduce(b, QN_KIND_MAX, size_of, rank - 2, false); /* [..] */
        if (!pivot)
            return;
        qn_value *here = qn_b_scalar_int(b, QUERN_I64, k), *swapped = compare(b, QN_NE, pivot, here);
        /* row k reads the pivot's row, and the other way round */
        qn_value *spread = qn_b_expand_dims(b, pivot, rank - 2);
        qn_value *from = choose(b, compare(b, QN_EQ, position, here), spread,
                                choose(b, compare(b, QN_EQ, position, spread), here, position));
        from = from ? qn_b_broadcast_to(b, qn_b_expand_dims(b, from, rank - 1), rank, x->type.dims) : NULL;
        x = qn_b_gather_elements(b, x, from, rank - 2);
        qn_value *row = x ? row_of(n, x, k) : NULL; /* [.., m] */
        qn_value *head = qn_b_slice_axis(b, row, rank - 2, qn_dim_const(t, k), qn_dim_const(t, k + 1));
        qn_value *factor = qn_b_squeeze(b, head, rank - 2);
        det = mul(b, det, choose(b, swapped, negate(b, factor), factor));
        /* a column of zeros gives 0 whatever the rest is */
        head = choose(b, compare_number(b, QN_EQ, head, 0), number_like(b, head, 1), head);
        if (!x || !row || !head)
            return;
        column = qn_b_slice_axis(b, x, rank - 1, qn_dim_const(t, k), qn_dim_const(t, k + 1));
        qn_value *below = compare(b, QN_GT, qn_b_expand_dims(b, position, 1), here);
        qn_value *times =
            choose(b, below, divide(b, column, qn_b_expand_dims(b, head, rank - 2)), number_like(b, x, 0));
        x = sub(b, x, mul(b, times, qn_b_expand_dims(b, row, rank - 2)));
    }
    qn_onnx_out(n, 0, x ? qn_b_broadcast_to(b, det, rank - 2, x->type.dims) : NULL); /* of 0 x 0, too */
}

const qn_onnx_op qn_onnx_matmul_ops[] = {
    { "MatMul", NULL, 1, 0, import_matmul },
    { "Gemm", NULL, 1, 0, import_gemm },
    { "Det", NULL, 11, 0, import_det },
    { 0 },
};
