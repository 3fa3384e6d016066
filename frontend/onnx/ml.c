/* The operators of ai.onnx.ml that are arithmetic on tensors. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static void import_array_feature_extractor(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *index = qn_onnx_in(n, 1);
    if (!x || !index)
        return;
    if (x->type.rank < 1) {
        qn_onnx_malformed(n, "the input must have an axis");
        return;
    }
    qn_dim count = qn_type_elements_dim(n->im->dims, &index->type);
    x = qn_b_gather(b, x, qn_b_reshape(b, index, 1, &count), x->type.rank - 1);
    qn_onnx_out(n, 0, x && x->type.rank == 1 ? qn_b_expand_dims(b, x, 0) : x);
}

static void import_binarizer(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_value *over = compare_number(&n->b, QN_GT, x, qn_onnx_attr_float(n, "threshold", 0));
    qn_onnx_out(n, 0, over ? qn_b_convert(&n->b, x->type.dtype, over) : NULL);
}

/* Floats of an attribute as a constant vector; NULL when it is absent. */
static qn_value *vector(qn_onnx_node *n, const char *name)
{
    int count;
    const float *values = qn_onnx_attr_floats(n, name, &count);
    int64_t extent = count;
    return values ? qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_F32, 1, &extent, values)) : NULL;
}

/* (x - offset) * scale */
static void import_scaler(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *offset = vector(n, "offset"), *scale = vector(n, "scale");
    x = x ? qn_b_convert(b, QUERN_F32, x) : NULL;
    x = offset ? sub(b, x, offset) : x;
    qn_onnx_out(n, 0, scale ? mul(b, x, scale) : x);
}

static void import_normalizer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *size;
    const char *norm = qn_onnx_attr_string(n, "norm", "MAX");
    if (!x)
        return;
    x = qn_b_convert(b, QUERN_F32, x);
    if (!x || x->type.rank < 1) {
        qn_onnx_malformed(n, "the input must have an axis");
        return;
    }
    int64_t axis = x->type.rank - 1;
    if (!strcmp(norm, "MAX"))
        size = qn_b_reduce(b, QN_KIND_MAX, x, 1, &axis, true);
    else if (!strcmp(norm, "L1"))
        size = qn_b_reduce(b, QN_SUM, qn_b_unary(b, QN_OP_ABS, x), 1, &axis, true);
    else
        size = qn_b_unary(b, QN_OP_SQRT, qn_b_reduce(b, QN_SUM, square(b, x), 1, &axis, true));
    size = choose(b, compare_number(b, QN_EQ, size, 0), number_like(b, x, 1), size);
    qn_onnx_out(n, 0, divide(b, x, size));
}

/* x [N, C] times coefficients [targets, C] plus intercepts. */
static void import_linear_regressor(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *w = vector(n, "coefficients"), *bias = vector(n, "intercepts");
    int64_t targets = qn_onnx_attr_int(n, "targets", 1);
    if (!x || !w)
        return;
    if (x->type.rank != 2 || targets < 1 || w->type.dims[0]->value % targets ||
        !qn_onnx_attr_is(n, "post_transform", "NONE", "NONE")) {
        qn_onnx_unsupported(
            n, "only inputs of rank 2, coefficients that divide into targets, and no post_transform");
        return;
    }
    qn_dim dims[2] = { qn_dim_const(n->im->dims, targets),
                       qn_dim_const(n->im->dims, w->type.dims[0]->value / targets) };
    qn_dot dot = { .n_contract = 1, .x_contract = { 1 }, .y_contract = { 1 } };
    x = qn_b_dot_general(b, qn_b_convert(b, QUERN_F32, x), qn_b_reshape(b, w, 2, dims), &dot,
                         QUERN_INVALID_DTYPE);
    qn_onnx_out(n, 0, bias ? add(b, x, bias) : x);
}

const qn_onnx_op qn_onnx_ml_ops[] = {
    { "ArrayFeatureExtractor", "ai.onnx.ml", 1, 0, import_array_feature_extractor },
    { "Binarizer", "ai.onnx.ml", 1, 0, import_binarizer },
    { "Scaler", "ai.onnx.ml", 1, 0, import_scaler },
    { "Normalizer", "ai.onnx.ml", 1, 0, import_normalizer },
    { "LinearRegressor", "ai.onnx.ml", 1, 0, import_linear_regressor },
    { 0 },
};
