/* Activation functions, element by element. */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static void import_relu(qn_onnx_node *n)
{
    if (!qn_onnx_fold_unary(n, "Relu"))
        qn_onnx_out(n, 0, qn_b_unary(&n->b, QN_OP_RELU, qn_onnx_in(n, 0)));
}

static void import_sigmoid(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, qn_b_unary(&n->b, QN_OP_LOGISTIC, qn_onnx_in(n, 0)));
}

/* log(1 + exp(x)) without overflow */
static qn_value *softplus(qn_builder *b, qn_value *x)
{
    qn_value *tail = qn_b_unary(b, QN_OP_EXP, negate(b, qn_b_unary(b, QN_OP_ABS, x)));
    return add(b, max_number(b, x, 0), qn_b_unary(b, QN_OP_LOG1P, tail));
}

static void import_softplus(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, softplus(&n->b, qn_onnx_in(n, 0)));
}

static void import_softsign(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(n, 0, divide(&n->b, x, add_number(&n->b, qn_b_unary(&n->b, QN_OP_ABS, x), 1)));
}

static void import_mish(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(n, 0, mul(&n->b, x, qn_b_unary(&n->b, QN_OP_TANH, softplus(&n->b, x))));
}

static void import_elu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_value *low = mul_number(b, qn_b_unary(b, QN_OP_EXPM1, x), qn_onnx_attr_float(n, "alpha", 1));
    qn_onnx_out(n, 0, choose(b, compare_number(b, QN_LT, x, 0), low, x));
}

static void import_selu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    double alpha = qn_onnx_attr_float(n, "alpha", 1.6732632423543772),
           gamma = qn_onnx_attr_float(n, "gamma", 1.0507009873554805);
    qn_value *low = mul_number(b, qn_b_unary(b, QN_OP_EXPM1, x), alpha);
    qn_onnx_out(n, 0, mul_number(b, choose(b, compare_number(b, QN_LE, x, 0), low, x), gamma));
}

static void import_celu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    double alpha = qn_onnx_attr_float(n, "alpha", 1);
    qn_value *low = mul_number(b, qn_b_unary(b, QN_OP_EXPM1, div_number(b, x, alpha)), alpha);
    qn_onnx_out(n, 0, add(b, max_number(b, x, 0), min_number(b, low, 0)));
}

static qn_value *hard_sigmoid(qn_builder *b, qn_value *x, double alpha, double beta)
{
    return max_number(b, min_number(b, add_number(b, mul_number(b, x, alpha), beta), 1), 0);
}

static void import_hard_sigmoid(qn_onnx_node *n)
{
    double alpha = qn_onnx_attr_float(n, "alpha", 0.2), beta = qn_onnx_attr_float(n, "beta", 0.5);
    qn_onnx_out(n, 0, hard_sigmoid(&n->b, qn_onnx_in(n, 0), alpha, beta));
}

static void import_hard_swish(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(n, 0, mul(&n->b, x, hard_sigmoid(&n->b, x, 1.0 / 6, 0.5)));
}

static void import_leaky_relu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(
        n, 0,
        choose(b, compare_number(b, QN_LT, x, 0), mul_number(b, x, qn_onnx_attr_float(n, "alpha", 0.01)), x));
}

static void import_thresholded_relu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_value *over = compare_number(b, QN_GT, x, qn_onnx_attr_float(n, "alpha", 1));
    qn_onnx_out(n, 0, choose(b, over, x, number_like(b, x, 0)));
}

/* Before opset 7 a slope of one dimension is one per channel. */
static void import_prelu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *slope = qn_onnx_in(n, 1);
    if (!x || !slope)
        return;
    if (n->opset < 7 && slope->type.rank == 1 && x->type.rank > 2 && !qn_dim_is(slope->type.dims[0], 1)) {
        qn_dim dims[QN_MAX_RANK];
        for (int i = 0; i < x->type.rank - 1; i++)
            dims[i] = i ? qn_dim_const(n->im->dims, 1) : slope->type.dims[0];
        slope = qn_b_reshape(b, slope, x->type.rank - 1, dims);
    }
    qn_onnx_out(n, 0, choose(b, compare_number(b, QN_LT, x, 0), mul(b, x, slope), x));
}

/* Integers are compared with a threshold that is none. */
static void import_shrink(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    double bias = qn_onnx_attr_float(n, "bias", 0), lambda = qn_onnx_attr_float(n, "lambd", 0.5);
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    qn_dtype dtype = x->type.dtype;
    x = qn_dtype_is_float(dtype) ? x : qn_b_convert(b, QUERN_F64, x);
    qn_value *zero = number_like(b, x, 0);
    qn_value *high = choose(b, compare_number(b, QN_GT, x, lambda), add_number(b, x, -bias), zero);
    qn_value *y = choose(b, compare_number(b, QN_LT, x, -lambda), add_number(b, x, bias), high);
    qn_onnx_out(n, 0, y ? qn_b_convert(b, dtype, y) : NULL);
}

static void import_gelu(qn_onnx_node *n)
{
    bool tanh = qn_onnx_attr_is(n, "approximate", "none", "tanh");
    if (!tanh && !qn_onnx_attr_is(n, "approximate", "none", "none"))
        qn_onnx_malformed(n, "attribute approximate must be none or tanh");
    else
        qn_onnx_out(n, 0, qn_b_unary(&n->b, tanh ? QN_OP_GELU_TANH : QN_OP_GELU, qn_onnx_in(n, 0)));
}

static void import_swish(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    double alpha = qn_onnx_attr_float(n, "alpha", 1);
    qn_value *x = qn_onnx_in(n, 0);
    if (alpha == 1)
        qn_onnx_out(n, 0, qn_b_unary(b, QN_OP_SILU, x));
    else
        qn_onnx_out(n, 0, mul(b, x, qn_b_unary(b, QN_OP_LOGISTIC, mul_number(b, x, alpha))));
}

const qn_onnx_op qn_onnx_activation_ops[] = {
    { "Relu", NULL, 1, 0, import_relu },
    { "Sigmoid", NULL, 1, 0, import_sigmoid },
    { "Softplus", NULL, 1, 0, import_softplus },
    { "Softsign", NULL, 1, 0, import_softsign },
    { "Mish", NULL, 18, 0, import_mish },
    { "Elu", NULL, 1, 0, import_elu },
    { "Selu", NULL, 1, 0, import_selu },
    { "Celu", NULL, 12, 0, import_celu },
    { "HardSigmoid", NULL, 1, 0, import_hard_sigmoid },
    { "HardSwish", NULL, 14, 0, import_hard_swish },
    { "LeakyRelu", NULL, 1, 0, import_leaky_relu },
    { "ThresholdedRelu", NULL, 10, 0, import_thresholded_relu },
    { "PRelu", NULL, 1, 0, import_prelu },
    { "Shrink", NULL, 9, 0, import_shrink },
    { "Gelu", NULL, 20, 0, import_gelu },
    { "Swish", NULL, 24, 0, import_swish },
    { 0 },
};
