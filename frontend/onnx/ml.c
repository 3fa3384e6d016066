/* The operators of ai.onnx.ml that are arithmetic on tensors. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/ml.h"

/* ---- shared ---- */

const double *qn_ml_numbers(qn_onnx_node *n, const char *name, const char *tensor_name, int *out_n,
                            bool *out_double)
{
    const Onnx__Attribute *a =
        tensor_name ? qn_onnx_attr(n, tensor_name, ONNX__ATTRIBUTE__KIND__TENSOR) : NULL;
    *out_double = false;
    *out_n = 0;
    if (!a || !a->t) {
        const float *floats = qn_onnx_attr_floats(n, name, out_n);
        double *made = QN_NEW_ARRAY(n->im->arena, double, *out_n);
        for (int i = 0; i < *out_n; i++)
            made[i] = (double)floats[i];
        return floats ? made : NULL;
    }
    const qn_tensor *t = qn_onnx_tensor(n->im, a->t, &n->b.loc);
    if (!t)
        return NULL;
    const int64_t count = qn_type_elements(&t->type);
    if (!qn_dtype_is_float(t->type.dtype) || count > INT32_MAX) {
        qn_onnx_malformed(n, "attribute %s must be a tensor of floats", tensor_name);
        return NULL;
    }
    const uint8_t *data = qn_tensor_data(t);
    double *made = QN_NEW_ARRAY(n->im->arena, double, count);
    for (int64_t i = 0; i < count; i++)
        made[i] = qn_scalar_load(t->type.dtype, data + (size_t)i * qn_dtype_bytes(t->type.dtype)).f;
    *out_n = (int)count;
    *out_double = t->type.dtype == QUERN_F64;
    return made;
}

qn_value *qn_ml_vector(qn_onnx_node *n, const char *name)
{
    int count;
    const float *values = qn_onnx_attr_floats(n, name, &count);
    int64_t extent = count;
    return values ? qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_F32, 1, &extent, values)) : NULL;
}

int qn_ml_word(qn_onnx_node *n, const char *name, const char *fallback, const char *const *words)
{
    const char *word = qn_onnx_attr_string(n, name, fallback);
    for (int i = 0; words[i]; i++)
        if (!strcmp(words[i], word))
            return i;
    qn_onnx_malformed(n, "attribute %s is \"%s\", which is not known", name, word);
    return -1;
}

int qn_ml_post_of(qn_onnx_node *n)
{
    static const char *const words[] = { "NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT", NULL };
    return qn_ml_word(n, "post_transform", "NONE", words);
}

/* Softmax that takes no part in zeros: they stay 0, others are divided by the sum over all but them. */
static qn_value *softmax_zero(qn_builder *b, qn_value *x)
{
    enum { CLASSES = 1 };
    const int64_t axis = CLASSES;
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, x, 1, &axis, true);
    qn_value *other = compare_number(b, QN_GT, qn_b_unary(b, QN_OP_ABS, x), 1e-7);
    qn_value *e = choose(b, other, qn_b_unary(b, QN_OP_EXP, sub(b, x, most)), number_like(b, x, 0));
    qn_value *zero = mul(b, x, qn_b_unary(b, QN_OP_EXP, negate(b, most)));
    return divide(b, choose(b, other, e, zero), qn_b_reduce(b, QN_SUM, e, 1, &axis, true));
}

/* sqrt(2) erfinv(2 x - 1), by the approximation that ONNX Runtime has too */
static qn_value *probit(qn_builder *b, qn_value *x)
{
    x = add_number(b, mul_number(b, x, 2), -1);
    qn_value *log = qn_b_unary(b, QN_OP_LOG, mul(b, add_number(b, negate(b, x), 1), add_number(b, x, 1)));
    qn_value *v = add_number(b, mul_number(b, log, 0.5), 2 / (3.14159265358979323846 * 0.147));
    qn_value *w = sub(b, square(b, v), mul_number(b, log, 1 / 0.147));
    qn_value *root = qn_b_unary(b, QN_OP_SQRT, sub(b, qn_b_unary(b, QN_OP_SQRT, w), v));
    root = choose(b, compare_number(b, QN_LT, x, 0), negate(b, root), root);
    return mul_number(b, root, 1.41421356237309504880);
}

qn_value *qn_ml_post_transform(qn_onnx_node *n, qn_ml_post post, qn_value *scores)
{
    qn_builder *b = &n->b;
    switch (scores ? post : QN_POST_NONE) {
    case QN_POST_SOFTMAX: return qn_b_softmax(b, QN_OP_SOFTMAX, scores, 1);
    case QN_POST_LOGISTIC: return qn_b_unary(b, QN_OP_LOGISTIC, scores);
    case QN_POST_SOFTMAX_ZERO: return softmax_zero(b, scores);
    case QN_POST_PROBIT: return probit(b, scores);
    default: return scores;
    }
}

int qn_ml_n_classes(qn_onnx_node *n, const char *ints)
{
    int count;
    const int64_t *labels = qn_onnx_attr_ints(n, ints, &count);
    if (labels && count > 0)
        return count;
    if (qn_onnx_attr(n, "classlabels_strings", ONNX__ATTRIBUTE__KIND__STRINGS))
        qn_onnx_unsupported(n, "labels that are strings; export the model with numbers for its classes");
    else if (qn_onnx_ok(n))
        qn_onnx_malformed(n, "attribute %s, the labels of the classes, is missing", ints);
    return -1;
}

qn_value *qn_ml_labels(qn_onnx_node *n, const char *ints, qn_value *classes)
{
    int count;
    const int64_t *labels = qn_onnx_attr_ints(n, ints, &count);
    bool counted = true; /* 0, 1, 2, … */
    for (int i = 0; i < count; i++)
        counted &= labels[i] == i;
    return counted ? classes : qn_b_gather(&n->b, qn_b_ints(&n->b, count, labels), classes, 0);
}

/* ---- preprocessing ---- */

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

/* (x - offset) * scale */
static void import_scaler(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *offset = qn_ml_vector(n, "offset"), *scale = qn_ml_vector(n, "scale");
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
    qn_value *x = qn_onnx_in(n, 0), *w = qn_ml_vector(n, "coefficients"),
             *bias = qn_ml_vector(n, "intercepts");
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
