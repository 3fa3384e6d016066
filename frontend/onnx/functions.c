/* Activation functions that an attribute names. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/functions.h"

enum {
    RELU,
    TANH,
    SIGMOID,
    SOFTSIGN,
    SOFTPLUS,
    AFFINE,
    LEAKY_RELU,
    THRESHOLDED_RELU,
    SCALED_TANH,
    HARD_SIGMOID,
    ELU
};

static const qn_onnx_function functions[] = {
    [RELU] = { "Relu", false, false, 0, 0 },
    [TANH] = { "Tanh", false, false, 0, 0 },
    [SIGMOID] = { "Sigmoid", false, false, 0, 0 },
    [SOFTSIGN] = { "Softsign", false, false, 0, 0 },
    [SOFTPLUS] = { "Softplus", false, false, 0, 0 },
    [AFFINE] = { "Affine", true, true, 1, 0 },
    [LEAKY_RELU] = { "LeakyRelu", true, false, 0.01, 0 },
    [THRESHOLDED_RELU] = { "ThresholdedRelu", true, false, 1, 0 },
    [SCALED_TANH] = { "ScaledTanh", true, true, 1, 1 },
    [HARD_SIGMOID] = { "HardSigmoid", true, true, 0.2, 0.5 },
    [ELU] = { "Elu", true, false, 1, 0 },
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool same_name(const char *name, const char *other, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!name[i] || lower(name[i]) != lower(other[i]))
            return false;
    return !name[n];
}

const qn_onnx_function *qn_onnx_function_find(const char *name, size_t n)
{
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++)
        if (same_name(functions[k].name, name, n))
            return &functions[k];
    return NULL;
}

qn_value *qn_onnx_function_apply(qn_builder *b, const qn_onnx_function *f, double alpha, double beta,
                                 qn_value *x)
{
    switch (f - functions) {
    case RELU: return qn_b_unary(b, QN_OP_RELU, x);
    case TANH: return qn_b_unary(b, QN_OP_TANH, x);
    case SIGMOID: return qn_b_unary(b, QN_OP_LOGISTIC, x);
    case SOFTSIGN: return divide(b, x, add_number(b, qn_b_unary(b, QN_OP_ABS, x), 1));
    case SOFTPLUS: {
        qn_value *tail = qn_b_unary(b, QN_OP_EXP, negate(b, qn_b_unary(b, QN_OP_ABS, x)));
        return add(b, max_number(b, x, 0), qn_b_unary(b, QN_OP_LOG1P, tail));
    }
    case AFFINE: return add_number(b, mul_number(b, x, alpha), beta);
    case LEAKY_RELU: return choose(b, compare_number(b, QN_LT, x, 0), mul_number(b, x, alpha), x);
    case THRESHOLDED_RELU: return choose(b, compare_number(b, QN_GT, x, alpha), x, number_like(b, x, 0));
    case SCALED_TANH: return mul_number(b, qn_b_unary(b, QN_OP_TANH, mul_number(b, x, beta)), alpha);
    case HARD_SIGMOID:
        return max_number(b, min_number(b, add_number(b, mul_number(b, x, alpha), beta), 1), 0);
    case ELU:
        return choose(b, compare_number(b, QN_LT, x, 0), mul_number(b, qn_b_unary(b, QN_OP_EXPM1, x), alpha),
                      x);
    default: QN_UNREACHABLE("no function");
    }
}
