/* Matrix products. */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static void import_matmul(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    if (x && y && x->type.rank && y->type.rank)
        qn_onnx_equal_dims(n, x->type.dims[x->type.rank - 1],
                           y->type.dims[y->type.rank > 1 ? y->type.rank - 2 : 0]);
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
    qn_onnx_equal_dims(n, x->type.dims[dot.x_contract[0]], y->type.dims[dot.y_contract[0]]);
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

const qn_onnx_op qn_onnx_matmul_ops[] = {
    { "MatMul", NULL, 1, 0, import_matmul },
    { "Gemm", NULL, 1, 0, import_gemm },
    { 0 },
};
