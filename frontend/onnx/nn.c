/* Softmax and its kin, dropout. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* Before opset 13 the axes from `axis` on are taken as one. */
static qn_value *softmax_input(qn_onnx_node *n, int *out_axis)
{
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return NULL;
    if (!qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", n->opset < 13 ? 1 : -1), x->type.rank, out_axis))
        return NULL;
    if (n->opset >= 13 || *out_axis == x->type.rank - 1)
        return x;
    qn_dim dims[2] = { qn_dim_const(t, 1), qn_dim_const(t, 1) };
    for (int i = 0; i < x->type.rank; i++)
        dims[i >= *out_axis] = qn_dim_mul(t, dims[i >= *out_axis], x->type.dims[i]);
    *out_axis = 1;
    return qn_b_reshape(&n->b, x, 2, dims);
}

static void import_softmax(qn_onnx_node *n)
{
    qn_op op = !strcmp(n->proto->op_type, "Softmax") ? QN_OP_SOFTMAX : QN_OP_LOG_SOFTMAX;
    int axis;
    qn_value *x = softmax_input(n, &axis);
    if (x)
        x = qn_b_softmax(&n->b, op, x, axis);
    if (x)
        qn_onnx_out(n, 0, qn_b_reshape(&n->b, x, n->in[0]->type.rank, n->in[0]->type.dims));
}

/* 1 at the first largest element, else 0. */
static void import_hardmax(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    int axis;
    qn_value *x = softmax_input(n, &axis);
    if (!x)
        return;
    qn_type type = qn_type_make(n->im->module, QUERN_I64, x->type.rank, x->type.dims);
    qn_value *most = qn_b_expand_dims(b, qn_b_arg_reduce(b, QN_KIND_MAX, x, axis, false), axis);
    qn_value *hot = qn_b_convert(b, x->type.dtype, compare(b, QN_EQ, qn_b_iota(b, &type, axis), most));
    qn_onnx_out(n, 0, qn_b_reshape(b, hot, n->in[0]->type.rank, n->in[0]->type.dims));
}

const qn_onnx_op qn_onnx_nn_ops[] = {
    { "Softmax", NULL, 1, 0, import_softmax },
    { "LogSoftmax", NULL, 1, 0, import_softmax },
    { "Hardmax", NULL, 1, 0, import_hardmax },
    { 0 },
};
