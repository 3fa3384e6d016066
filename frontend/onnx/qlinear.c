/* Operators of com.microsoft on quantized tensors, as ONNX Runtime's quantizer writes them. Each is an operator of ONNX on the
 * numbers that the bytes stand for, whose result is quantized again; the pass integer keeps bytes where it can. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/quant.h"

/* What is between, and how many inputs are bytes: each has a scale and a zero point behind it, and the result's follow them all. */
static const struct {
    const char *name, *op;
    int n_in;
} between[] = {
    { "QLinearAdd", "Add", 2 },
    { "QLinearMul", "Mul", 2 },
    { "QLinearSigmoid", "Sigmoid", 1 },
    { "QLinearLeakyRelu", "LeakyRelu", 1 },
    { "QLinearReduceMean", "ReduceMean", 1 },
    { "QLinearAveragePool", "AveragePool", 1 },
    { "QLinearGlobalAveragePool", "GlobalAveragePool", 1 },
    { "QLinearSoftmax", "Softmax", 1 },
};

/* The last axis becomes the second, or the other way round. */
static qn_value *move_channels(qn_onnx_node *n, qn_value *x, bool to_last)
{
    int64_t perm[QN_MAX_RANK];
    if (!x)
        return NULL;
    const int rank = x->type.rank;
    if (rank < 3) {
        qn_onnx_malformed(n, "the input must have rank 3 or more");
        return NULL;
    }
    for (int i = 1; i < rank; i++)
        perm[i] = to_last ? (i == rank - 1 ? 1 : i + 1) : (i == 1 ? rank - 1 : i - 1);
    perm[0] = 0;
    return qn_b_transpose(&n->b, x, perm);
}

static void import_between(qn_onnx_node *n)
{
    enum { OPSET = 13 }; /* where axes are attributes, and the axis of a softmax is one axis */
    qn_value *in[2] = { NULL };
    int which = 0;
    while (strcmp(between[which].name, n->proto->op_type))
        which++;
    const int n_in = between[which].n_in;
    const bool channels_last = qn_onnx_attr_int(n, "channels_last", 0) != 0;
    for (int i = 0; i < n_in; i++) {
        in[i] = qn_onnx_dequantized(n, 3 * i, 3 * i + 1);
        if (channels_last)
            in[i] = move_channels(n, in[i], false);
        if (!in[i])
            return;
    }
    const int64_t opset = !strcmp(between[which].op, "Softmax") ? qn_onnx_attr_int(n, "opset", OPSET) : OPSET;
    qn_value *y = qn_onnx_apply(n, between[which].op, opset > 0 ? opset : 1, n_in, in);
    if (channels_last)
        y = move_channels(n, y, true);
    qn_onnx_out(n, 0, qn_onnx_requantized(n, y, 3 * n_in, n->in[0]->type.dtype));
}

/* Each part gets the result's scale, and then bytes are put side by side. */
static void import_concat(qn_onnx_node *n)
{
    const qn_type *zero = qn_onnx_in_type(n, 1);
    int axis;
    if (!zero)
        return;
    if (n->n_in < 5 || n->n_in % 3 != 2) {
        qn_onnx_malformed(
            n, "there must be a scale and a zero point, and behind them three inputs for each part");
        return;
    }
    const int n_parts = (n->n_in - 2) / 3;
    qn_value **parts = QN_NEW_ARRAY(n->im->arena, qn_value *, n_parts);
    for (int i = 0; i < n_parts; i++) {
        parts[i] = qn_onnx_requantized(n, qn_onnx_dequantized(n, 2 + 3 * i, 3 + 3 * i), 0, zero->dtype);
        if (!parts[i])
            return;
    }
    if (qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), parts[0]->type.rank, &axis))
        qn_onnx_out(n, 0, qn_b_concatenate(&n->b, n_parts, parts, axis));
}

static void import_where(qn_onnx_node *n)
{
    qn_value *condition = qn_onnx_in(n, 0), *x = qn_onnx_dequantized(n, 1, 2),
             *y = qn_onnx_dequantized(n, 4, 5);
    if (condition && x && y)
        qn_onnx_out(n, 0, qn_onnx_requantized(n, choose(&n->b, condition, x, y), 7, n->in[1]->type.dtype));
}

const qn_onnx_op qn_onnx_qlinear_ops[] = {
    { "QLinearAdd", "com.microsoft", 1, 0, import_between },
    { "QLinearMul", "com.microsoft", 1, 0, import_between },
    { "QLinearSigmoid", "com.microsoft", 1, 0, import_between },
    { "QLinearLeakyRelu", "com.microsoft", 1, 0, import_between },
    { "QLinearReduceMean", "com.microsoft", 1, 0, import_between },
    { "QLinearAveragePool", "com.microsoft", 1, 0, import_between },
    { "QLinearGlobalAveragePool", "com.microsoft", 1, 0, import_between },
    { "QLinearSoftmax", "com.microsoft", 1, 0, import_between },
    { "QLinearConcat", "com.microsoft", 1, 0, import_concat },
    { "QLinearWhere", "com.microsoft", 1, 0, import_where },
    { 0 },
};
