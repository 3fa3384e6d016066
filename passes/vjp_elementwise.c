/* Derivatives of the element-wise ops. y is the result, g its adjoint; x, z are the operands. */
#include <math.h>

#include "passes/vjp.h"

#define UNARY(op, x) qn_b_unary(&v->b, QN_OP_##op, x)
#define MUL(x, y) qn_vjp_mul(v, x, y)
#define DIV(x, y) qn_vjp_div(v, x, y)
#define ADD(x, y) qn_b_binary(&v->b, QN_OP_ADD, x, y)
#define SUB(x, y) qn_vjp_sub(v, x, y)
#define NEG(x) qn_vjp_neg(v, x)
#define SCALED(x, c) qn_b_binary_scalar(&v->b, QN_OP_MUL, x, c)
#define PLUS(x, c) qn_b_binary_scalar(&v->b, QN_OP_ADD, x, c)

/* ---- one operand: dy/dx as an expression of x and y ---- */

static qn_value *one_minus(qn_vjp *v, qn_value *x)
{
    return PLUS(NEG(x), 1);
}

static qn_value *slope(qn_vjp *v, qn_op op, qn_value *x, qn_value *y)
{
    switch (op) {
    case QN_OP_ABS: return UNARY(SIGN, x);
    case QN_OP_SQRT: return UNARY(RSQRT, SCALED(x, 4));
    case QN_OP_RSQRT: return SCALED(MUL(y, MUL(y, y)), -0.5);
    case QN_OP_EXP: return y;
    case QN_OP_EXPM1: return PLUS(y, 1);
    case QN_OP_SIN: return UNARY(COS, x);
    case QN_OP_COS: return NEG(UNARY(SIN, x));
    case QN_OP_TAN: return PLUS(MUL(y, y), 1);
    case QN_OP_ASIN: return UNARY(RSQRT, one_minus(v, MUL(x, x)));
    case QN_OP_ACOS: return NEG(UNARY(RSQRT, one_minus(v, MUL(x, x))));
    case QN_OP_SINH: return UNARY(COSH, x);
    case QN_OP_COSH: return UNARY(SINH, x);
    case QN_OP_TANH: return one_minus(v, MUL(y, y));
    case QN_OP_ASINH: return UNARY(RSQRT, PLUS(MUL(x, x), 1));
    case QN_OP_ACOSH: return MUL(UNARY(RSQRT, PLUS(x, -1)), UNARY(RSQRT, PLUS(x, 1)));
    case QN_OP_ERF: return SCALED(UNARY(EXP, NEG(MUL(x, x))), 2 / sqrt(M_PI));
    case QN_OP_LOGISTIC: return MUL(y, one_minus(v, y));
    default: return NULL;
    }
}

static qn_status by_slope(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, MUL(g[0], slope(v, node->op, node->operands[0], &node->results[0])));
    return QUERN_OK;
}

/* dy/dx = 1 / (an expression of x): one division is nearer than a reciprocal and a product */
static qn_status by_divisor(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *divisor = x;
    if (node->op == QN_OP_LOG1P)
        divisor = PLUS(x, 1);
    else if (node->op == QN_OP_ATAN)
        divisor = PLUS(MUL(x, x), 1);
    else if (node->op == QN_OP_ATANH)
        divisor = one_minus(v, MUL(x, x));
    qn_vjp_add(v, node, 0, DIV(g[0], divisor));
    return QUERN_OK;
}

static qn_status zero(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    (void)v, (void)node, (void)g;
    return QUERN_OK;
}

static qn_status neg(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, NEG(g[0]));
    return QUERN_OK;
}

static qn_status convert(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    if (qn_vjp_wants(v, node, 0))
        qn_vjp_add(v, node, 0, qn_b_convert(&v->b, node->operands[0]->type.dtype, g[0]));
    return QUERN_OK;
}

/* ---- more operands ---- */

static qn_status add(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, g[0]);
    qn_vjp_add(v, node, 1, g[0]);
    return QUERN_OK;
}

static qn_status sub(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, g[0]);
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, NEG(g[0]));
    return QUERN_OK;
}

static qn_status mul(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    for (int i = 0; i < 2; i++) {
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i, MUL(g[0], node->operands[1 - i]));
    }
    return QUERN_OK;
}

static qn_status div_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *by_x = DIV(g[0], node->operands[1]);
    qn_vjp_add(v, node, 0, by_x);
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, NEG(MUL(by_x, &node->results[0])));
    return QUERN_OK;
}

static qn_status rem_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_vjp_add(v, node, 0, g[0]);
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, NEG(MUL(g[0], UNARY(TRUNC, DIV(node->operands[0], node->operands[1])))));
    return QUERN_OK;
}

/* d x^z: z x^(z-1), 0 where z is 0; and y log x, 0 where x is 0 and z >= 0 (the limit) */
static qn_status pow_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *z = node->operands[1], *y = &node->results[0];
    qn_value *zeros = qn_vjp_zeros_like(v, x);
    if (qn_vjp_wants(v, node, 0)) {
        qn_value *s = MUL(z, qn_b_binary(&v->b, QN_OP_POW, x, PLUS(z, -1)));
        s = qn_b_select(&v->b, qn_b_compare(&v->b, QN_EQ, z, zeros), zeros, s);
        qn_vjp_add(v, node, 0, MUL(g[0], s));
    }
    if (qn_vjp_wants(v, node, 1)) {
        qn_value *flat = qn_b_binary(&v->b, QN_OP_AND, qn_b_compare(&v->b, QN_EQ, x, zeros),
                                     qn_b_compare(&v->b, QN_GE, z, zeros));
        qn_vjp_add(v, node, 1, qn_b_select(&v->b, flat, zeros, MUL(g[0], MUL(y, UNARY(LOG, x)))));
    }
    return QUERN_OK;
}

/* Equal operands share the gradient, as in PyTorch and JAX. */
static qn_status extreme(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *z = node->operands[1], *zeros = qn_vjp_zeros_like(v, g[0]);
    qn_value *half = qn_b_select(&v->b, qn_b_compare(&v->b, QN_EQ, x, z), SCALED(g[0], 0.5), zeros);
    qn_direction wins = node->op == QN_OP_MAX ? QN_GT : QN_LT;
    for (int i = 0; i < 2; i++) {
        if (!qn_vjp_wants(v, node, i))
            continue;
        qn_value *won = qn_b_compare(&v->b, wins, node->operands[i], node->operands[1 - i]);
        qn_vjp_add(v, node, i, qn_b_select(&v->b, won, g[0], half));
    }
    return QUERN_OK;
}

static qn_status atan2_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *y = node->operands[0], *x = node->operands[1];
    qn_value *scaled = DIV(g[0], ADD(MUL(x, x), MUL(y, y)));
    qn_vjp_add(v, node, 0, MUL(scaled, x));
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, NEG(MUL(scaled, y)));
    return QUERN_OK;
}

static qn_status select_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *zeros = qn_vjp_zeros_like(v, g[0]);
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, qn_b_select(&v->b, node->operands[0], g[0], zeros));
    if (qn_vjp_wants(v, node, 2))
        qn_vjp_add(v, node, 2, qn_b_select(&v->b, node->operands[0], zeros, g[0]));
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_elementwise(qn_op op)
{
    switch (op) {
    case QN_OP_ABS:
    case QN_OP_SQRT:
    case QN_OP_RSQRT:
    case QN_OP_EXP:
    case QN_OP_EXPM1:
    case QN_OP_SIN:
    case QN_OP_COS:
    case QN_OP_TAN:
    case QN_OP_ASIN:
    case QN_OP_ACOS:
    case QN_OP_SINH:
    case QN_OP_COSH:
    case QN_OP_TANH:
    case QN_OP_ASINH:
    case QN_OP_ACOSH:
    case QN_OP_ERF:
    case QN_OP_LOGISTIC: return by_slope;
    case QN_OP_LOG:
    case QN_OP_LOG1P:
    case QN_OP_ATAN:
    case QN_OP_ATANH: return by_divisor;
    case QN_OP_SIGN:
    case QN_OP_FLOOR:
    case QN_OP_CEIL:
    case QN_OP_ROUND:
    case QN_OP_TRUNC:
    case QN_OP_STOP_GRADIENT: return zero;
    case QN_OP_NEG: return neg;
    case QN_OP_CONVERT: return convert;
    case QN_OP_ADD: return add;
    case QN_OP_SUB: return sub;
    case QN_OP_MUL: return mul;
    case QN_OP_DIV: return div_;
    case QN_OP_REM: return rem_;
    case QN_OP_POW: return pow_;
    case QN_OP_MAX:
    case QN_OP_MIN: return extreme;
    case QN_OP_ATAN2: return atan2_;
    case QN_OP_SELECT: return select_;
    default: return NULL;
    }
}
