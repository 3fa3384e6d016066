/* Folding of the builder: constants, and identities that hold for every value (NaN, -0 and infinities included), unless
 * the instruction is `fast`. Anything that needs bounds is index arithmetic: see kernel_index.c. */
#include <math.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"

static bool is_value(const qn_kvalue *v, double value)
{
    if (!qn_k_is_const(v))
        return false;
    if (qn_dtype_is_float(v->type.dtype))
        return v->inst->imm.f == value && signbit(v->inst->imm.f) == signbit(value);
    return v->inst->imm.i == (int64_t)value;
}

static bool is_all_ones(const qn_kvalue *v)
{
    if (!qn_k_is_const(v))
        return false;
    qn_scalar ones = qn_keval_normal(v->type.dtype, (qn_scalar){ .i = -1 });
    return v->inst->imm.i == ones.i;
}

static qn_kvalue *constant(qn_kbuilder *b, qn_ktype type, int64_t value)
{
    if (qn_dtype_is_float(type.dtype))
        return qn_kb_float(b, type, (double)value);
    return qn_kb_const(b, type, (qn_scalar){ .i = value });
}

qn_kvalue *qn_kfold_unary(qn_kbuilder *b, qn_op fn, qn_kvalue *a)
{
    qn_dtype dtype = a->type.dtype;
    if (qn_k_is_const(a) && qn_keval_is_exact(fn)) {
        qn_ktype type = { qn_keval_result(fn, dtype), a->type.lanes };
        return qn_kb_const(b, type, qn_keval_unary(fn, dtype, a->inst->imm));
    }
    bool twice = a->inst && a->inst->op == QN_K_UNARY && a->inst->fn == fn;
    if (twice && (fn == QN_OP_NEG || fn == QN_OP_NOT))
        return a->inst->operands[0];
    if (twice && (fn == QN_OP_ABS || fn == QN_OP_FLOOR || fn == QN_OP_CEIL || fn == QN_OP_ROUND ||
                  fn == QN_OP_TRUNC || fn == QN_OP_RELU || fn == QN_OP_SIGN))
        return a;
    return NULL;
}

static qn_kvalue *fold_float(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y)
{
    switch (fn) {
    case QN_OP_ADD:
        if (is_value(y, -0.0) || (b->fast && is_value(y, 0)))
            return x;
        return is_value(x, -0.0) || (b->fast && is_value(x, 0)) ? y : NULL;
    case QN_OP_SUB: return is_value(y, 0) || (b->fast && is_value(y, -0.0)) ? x : NULL;
    case QN_OP_MUL:
        if (is_value(y, 1))
            return x;
        if (is_value(x, 1))
            return y;
        return is_value(y, -1)   ? qn_kb_unary(b, QN_OP_NEG, x)
               : is_value(x, -1) ? qn_kb_unary(b, QN_OP_NEG, y)
                                 : NULL;
    case QN_OP_DIV: {
        if (is_value(y, 1))
            return x;
        /* by a power of two: exact as a multiplication where the reciprocal is a normal number */
        int exponent;
        if (qn_k_is_const(y) && fabs(frexp(y->inst->imm.f, &exponent)) == 0.5 && exponent > -12 &&
            exponent < 13)
            return qn_kb_binary(b, QN_OP_MUL, x, qn_kb_float(b, y->type, 1 / y->inst->imm.f));
        return NULL;
    }
    case QN_OP_MAX:
    case QN_OP_MIN: return x == y ? x : NULL;
    default: return NULL;
    }
}

static qn_kvalue *fold_int(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y)
{
    switch (fn) {
    case QN_OP_ADD:
    case QN_OP_OR:
    case QN_OP_XOR:
        if (is_value(y, 0))
            return x;
        if (is_value(x, 0))
            return y;
        if (x == y && fn != QN_OP_ADD)
            return fn == QN_OP_OR ? x : constant(b, x->type, 0);
        if (fn == QN_OP_OR && (is_all_ones(x) || is_all_ones(y)))
            return is_all_ones(x) ? x : y;
        return NULL;
    case QN_OP_SUB: return is_value(y, 0) ? x : x == y ? constant(b, x->type, 0) : NULL;
    case QN_OP_MUL:
        if (is_value(y, 1) || is_value(x, 0))
            return x;
        return is_value(x, 1) || is_value(y, 0) ? y : NULL;
    case QN_OP_DIV: return is_value(y, 1) || is_value(x, 0) ? x : NULL;
    case QN_OP_REM: return is_value(y, 1) || is_value(x, 0) ? constant(b, x->type, 0) : NULL;
    case QN_OP_AND:
        if (x == y || is_value(x, 0) || is_all_ones(y))
            return x;
        return is_value(y, 0) || is_all_ones(x) ? y : NULL;
    case QN_OP_MAX:
    case QN_OP_MIN: return x == y ? x : NULL;
    case QN_OP_SHIFT_LEFT:
    case QN_OP_SHIFT_RIGHT: return is_value(y, 0) || is_value(x, 0) ? x : NULL;
    default: return NULL;
    }
}

qn_kvalue *qn_kfold_binary(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y)
{
    if (qn_k_is_const(x) && qn_k_is_const(y) && qn_keval_is_exact(fn))
        return qn_kb_const(b, x->type, qn_keval_binary(fn, x->type.dtype, x->inst->imm, y->inst->imm));
    return qn_dtype_is_float(x->type.dtype) ? fold_float(b, fn, x, y) : fold_int(b, fn, x, y);
}

qn_kvalue *qn_kfold_compare(qn_kbuilder *b, qn_direction d, qn_kvalue *x, qn_kvalue *y)
{
    qn_ktype type = { QUERN_BOOL, x->type.lanes };
    if (qn_k_is_const(x) && qn_k_is_const(y))
        return constant(b, type, qn_keval_compare(d, x->type.dtype, x->inst->imm, y->inst->imm));
    if (!qn_k_is_index(x))
        return NULL;
    switch (d) {
    case QN_EQ:
    case QN_NE:
        if (qn_k_proven_lt(x, y) || qn_k_proven_lt(y, x))
            return constant(b, type, d == QN_NE);
        return qn_k_proven_le(x, y) && qn_k_proven_le(y, x) ? constant(b, type, d == QN_EQ) : NULL;
    case QN_LT:
    case QN_GE:
        if (qn_k_proven_lt(x, y))
            return constant(b, type, d == QN_LT);
        return qn_k_proven_le(y, x) ? constant(b, type, d == QN_GE) : NULL;
    case QN_LE:
    case QN_GT:
        if (qn_k_proven_le(x, y))
            return constant(b, type, d == QN_LE);
        return qn_k_proven_lt(y, x) ? constant(b, type, d == QN_GT) : NULL;
    }
    return NULL;
}

qn_kvalue *qn_kfold_select(qn_kbuilder *b, qn_kvalue *c, qn_kvalue *x, qn_kvalue *y)
{
    (void)b;
    if (x == y)
        return x;
    if (qn_k_is_const(c))
        return c->inst->imm.i ? x : y;
    bool same =
        qn_k_is_const(x) && qn_k_is_const(y) && qn_keval_same(x->type.dtype, x->inst->imm, y->inst->imm);
    if (same)
        return x;
    if (x->type.dtype == QUERN_BOOL && is_all_ones(x) && is_value(y, 0) && c->type.lanes == x->type.lanes)
        return c;
    return NULL;
}
