/* One element of each element-wise instruction, as ir/ops.def defines the ops.
 *
 * Integers are kept in the canonical form of qn_scalar: sign- or zero-extended to 64 bits, u64 as its bit pattern.
 * Floats narrower than f64 are computed in double and rounded once more: for + - * / and sqrt that gives the
 * correctly rounded result, because double has more than twice their precision. */
#include "ir/kernel_eval.h"

#include <math.h>
#include <string.h>

static bool is_signed(qn_dtype d)
{
    return qn_dtype_class_of(d) == QN_CLASS_SIGNED;
}

static int bits_of(qn_dtype d)
{
    return 8 * (int)qn_dtype_bytes(d);
}

static int64_t wrap(qn_dtype d, uint64_t v)
{
    switch (d) {
    case QUERN_BOOL: return v != 0;
    case QUERN_I8: return (int8_t)v;
    case QUERN_I16: return (int16_t)v;
    case QUERN_I32: return (int32_t)v;
    case QUERN_U8: return (uint8_t)v;
    case QUERN_U16: return (uint16_t)v;
    case QUERN_U32: return (uint32_t)v;
    default: return (int64_t)v;
    }
}

static double round_to(qn_dtype d, double v)
{
    switch (d) {
    case QUERN_F32: return (float)v;
    case QUERN_F16: return qn_f16_to_f32(qn_f64_to_f16(v));
    case QUERN_BF16: return qn_bf16_to_f32(qn_f64_to_bf16(v));
    default: return v;
    }
}

qn_scalar qn_keval_normal(qn_dtype dtype, qn_scalar value)
{
    if (qn_dtype_is_float(dtype))
        return (qn_scalar){ .f = round_to(dtype, value.f) };
    return (qn_scalar){ .i = wrap(dtype, (uint64_t)value.i) };
}

bool qn_keval_same(qn_dtype dtype, qn_scalar a, qn_scalar b)
{
    return a.i == b.i || (qn_dtype_is_float(dtype) && isnan(a.f) && isnan(b.f));
}

/* ---- which ops there are ---- */

bool qn_keval_is_unary(qn_op fn)
{
    return fn < QN_N_OPS && qn_ops[fn].class == QN_ELEMENTWISE && qn_ops[fn].min_operands == 1 &&
           qn_ops[fn].max_operands == 1 && fn != QN_OP_CONVERT && fn != QN_OP_BITCAST &&
           fn != QN_OP_STOP_GRADIENT;
}

bool qn_keval_is_binary(qn_op fn)
{
    return fn < QN_N_OPS && qn_ops[fn].class == QN_ELEMENTWISE && qn_ops[fn].min_operands == 2 &&
           qn_ops[fn].max_operands == 2 && fn != QN_OP_COMPARE;
}

bool qn_keval_accepts(qn_op fn, qn_dtype dtype)
{
    return (qn_ops[fn].dtypes & (int)qn_dtype_class_of(dtype)) != 0;
}

qn_dtype qn_keval_result(qn_op fn, qn_dtype dtype)
{
    return fn == QN_OP_IS_NAN || fn == QN_OP_IS_INF ? QUERN_BOOL : dtype;
}

bool qn_keval_is_exact(qn_op fn)
{
    switch (fn) {
    case QN_OP_NEG:
    case QN_OP_ABS:
    case QN_OP_SIGN:
    case QN_OP_FLOOR:
    case QN_OP_CEIL:
    case QN_OP_ROUND:
    case QN_OP_TRUNC:
    case QN_OP_SQRT:
    case QN_OP_NOT:
    case QN_OP_IS_NAN:
    case QN_OP_IS_INF:
    case QN_OP_RELU:
    case QN_OP_ADD:
    case QN_OP_SUB:
    case QN_OP_MUL:
    case QN_OP_DIV:
    case QN_OP_REM:
    case QN_OP_MAX:
    case QN_OP_MIN:
    case QN_OP_AND:
    case QN_OP_OR:
    case QN_OP_XOR:
    case QN_OP_SHIFT_LEFT:
    case QN_OP_SHIFT_RIGHT: return true;
    default: return false;
    }
}

/* ---- one operand ---- */

static double gelu_tanh(double a)
{
    double inside = sqrt(M_2_PI) * (a + 0.044715 * a * a * a);
    return a == -INFINITY ? -0.0 : a / (1 + exp(-2 * inside)); /* 1 / (1 + e^-2u) = (1 + tanh u) / 2 */
}

static double unary_float(qn_op fn, double a)
{
    switch (fn) {
    case QN_OP_NEG: return -a;
    case QN_OP_ABS: return fabs(a);
    case QN_OP_SIGN: return a > 0 ? 1 : a < 0 ? -1 : a;
    case QN_OP_FLOOR: return floor(a);
    case QN_OP_CEIL: return ceil(a);
    case QN_OP_ROUND: return nearbyint(a);
    case QN_OP_TRUNC: return trunc(a);
    case QN_OP_SQRT: return sqrt(a);
    case QN_OP_RSQRT: return 1 / sqrt(a);
    case QN_OP_EXP: return exp(a);
    case QN_OP_EXPM1: return expm1(a);
    case QN_OP_LOG: return log(a);
    case QN_OP_LOG1P: return log1p(a);
    case QN_OP_SIN: return sin(a);
    case QN_OP_COS: return cos(a);
    case QN_OP_TAN: return tan(a);
    case QN_OP_ASIN: return asin(a);
    case QN_OP_ACOS: return acos(a);
    case QN_OP_ATAN: return atan(a);
    case QN_OP_SINH: return sinh(a);
    case QN_OP_COSH: return cosh(a);
    case QN_OP_TANH: return tanh(a);
    case QN_OP_ASINH: return asinh(a);
    case QN_OP_ACOSH: return acosh(a);
    case QN_OP_ATANH: return atanh(a);
    case QN_OP_ERF: return erf(a);
    case QN_OP_LOGISTIC: return a >= 0 ? 1 / (1 + exp(-a)) : exp(a) / (1 + exp(a));
    case QN_OP_GELU: return a == -INFINITY ? -0.0 : a * (0.5 * erfc(-a * M_SQRT1_2));
    case QN_OP_GELU_TANH: return gelu_tanh(a);
    case QN_OP_SILU: return a == -INFINITY ? -0.0 : a / (1 + exp(-a));
    case QN_OP_RELU: return a > 0 || isnan(a) ? a : 0;
    default: QN_UNREACHABLE("no value for %s of a float", qn_ops[fn].name);
    }
}

static uint64_t unary_int(qn_op fn, qn_dtype d, int64_t a)
{
    switch (fn) {
    case QN_OP_NEG: return 0 - (uint64_t)a;
    case QN_OP_ABS: return is_signed(d) && a < 0 ? 0 - (uint64_t)a : (uint64_t)a;
    case QN_OP_SIGN: return is_signed(d) && a < 0 ? (uint64_t)-1 : a != 0;
    case QN_OP_NOT: return d == QUERN_BOOL ? !a : ~(uint64_t)a;
    case QN_OP_RELU: return is_signed(d) && a < 0 ? 0 : (uint64_t)a;
    default: QN_UNREACHABLE("no value for %s of an integer", qn_ops[fn].name);
    }
}

qn_scalar qn_keval_unary(qn_op fn, qn_dtype dtype, qn_scalar a)
{
    if (!qn_dtype_is_float(dtype))
        return (qn_scalar){ .i = wrap(dtype, unary_int(fn, dtype, a.i)) };
    if (fn == QN_OP_IS_NAN)
        return (qn_scalar){ .i = isnan(a.f) != 0 };
    if (fn == QN_OP_IS_INF)
        return (qn_scalar){ .i = isinf(a.f) != 0 };
    return (qn_scalar){ .f = round_to(dtype, unary_float(fn, a.f)) };
}

/* ---- two operands ---- */

static double binary_float(qn_op fn, double a, double b)
{
    switch (fn) {
    case QN_OP_ADD: return a + b;
    case QN_OP_SUB: return a - b;
    case QN_OP_MUL: return a * b;
    case QN_OP_DIV: return a / b;
    case QN_OP_REM: return fmod(a, b);
    case QN_OP_POW: return pow(a, b);
    case QN_OP_ATAN2: return atan2(a, b);
    case QN_OP_MAX: return isnan(a) ? a : a > b ? a : b;
    case QN_OP_MIN: return isnan(a) ? a : a < b ? a : b;
    default: QN_UNREACHABLE("no value for %s of floats", qn_ops[fn].name);
    }
}

static uint64_t int_pow(qn_dtype d, int64_t a, int64_t b)
{
    if (is_signed(d) && b < 0)
        return a == 1 ? 1 : a == -1 ? (b & 1 ? (uint64_t)-1 : 1) : 0;
    uint64_t result = 1, base = (uint64_t)a;
    for (uint64_t n = (uint64_t)b; n; n >>= 1, base *= base)
        if (n & 1)
            result *= base;
    return result;
}

static uint64_t binary_int(qn_op fn, qn_dtype d, int64_t a, int64_t b)
{
    uint64_t x = (uint64_t)a, y = (uint64_t)b;
    bool sign = is_signed(d);
    switch (fn) {
    case QN_OP_ADD: return x + y;
    case QN_OP_SUB: return x - y;
    case QN_OP_MUL: return x * y;
    case QN_OP_DIV: return b == 0 ? 0 : !sign ? x / y : b == -1 ? 0 - x : (uint64_t)(a / b);
    case QN_OP_REM: return b == 0 ? 0 : !sign ? x % y : b == -1 ? 0 : (uint64_t)(a % b);
    case QN_OP_POW: return int_pow(d, a, b);
    case QN_OP_MAX: return (sign ? a > b : x > y) ? x : y;
    case QN_OP_MIN: return (sign ? a < b : x < y) ? x : y;
    case QN_OP_AND: return x & y;
    case QN_OP_OR: return x | y;
    case QN_OP_XOR: return x ^ y;
    case QN_OP_SHIFT_LEFT: return y >= (uint64_t)bits_of(d) ? 0 : x << y;
    case QN_OP_SHIFT_RIGHT:
        if (sign)
            return (uint64_t)(a >> (y >= (uint64_t)bits_of(d) ? 63 : y));
        return y >= (uint64_t)bits_of(d) ? 0 : x >> y;
    default: QN_UNREACHABLE("no value for %s of integers", qn_ops[fn].name);
    }
}

qn_scalar qn_keval_binary(qn_op fn, qn_dtype dtype, qn_scalar a, qn_scalar b)
{
    if (qn_dtype_is_float(dtype))
        return (qn_scalar){ .f = round_to(dtype, binary_float(fn, a.f, b.f)) };
    return (qn_scalar){ .i = wrap(dtype, binary_int(fn, dtype, a.i, b.i)) };
}

bool qn_keval_compare(qn_direction d, qn_dtype dtype, qn_scalar a, qn_scalar b)
{
    int order; /* -1, 0, 1; 2: unordered */
    if (qn_dtype_is_float(dtype))
        order = a.f < b.f ? -1 : a.f > b.f ? 1 : a.f == b.f ? 0 : 2;
    else if (is_signed(dtype))
        order = (a.i > b.i) - (a.i < b.i);
    else
        order = ((uint64_t)a.i > (uint64_t)b.i) - ((uint64_t)a.i < (uint64_t)b.i);
    switch (d) {
    case QN_EQ: return order == 0;
    case QN_NE: return order != 0;
    case QN_LT: return order == -1;
    case QN_LE: return order == -1 || order == 0;
    case QN_GT: return order == 1;
    case QN_GE: return order == 1 || order == 0;
    }
    QN_UNREACHABLE("no such comparison");
}

/* ---- others ---- */

qn_scalar qn_keval_fma(qn_dtype dtype, qn_scalar a, qn_scalar b, qn_scalar c)
{
    if (dtype == QUERN_F64)
        return (qn_scalar){ .f = fma(a.f, b.f, c.f) };
    return (qn_scalar){ .f = round_to(dtype, fmaf((float)a.f, (float)b.f, (float)c.f)) };
}

/* Truncated and saturated; NaN gives 0. The limits are powers of two, so they are exact in double. */
static int64_t float_to_int(qn_dtype to, double v)
{
    int bits = bits_of(to);
    if (isnan(v))
        return 0;
    if (is_signed(to)) {
        double limit = ldexp(1, bits - 1);
        if (v >= limit)
            return INT64_MAX >> (64 - bits);
        return v <= -limit ? INT64_MIN >> (64 - bits) : (int64_t)v;
    }
    if (v >= ldexp(1, bits))
        return wrap(to, UINT64_MAX);
    return v <= 0 ? 0 : (int64_t)(uint64_t)v;
}

/* To f32 from the integer itself: int64 -> double -> f32 would round twice. f16 and bf16 come from the f32. */
static double int_to_float(qn_dtype from, qn_dtype to, int64_t v)
{
    if (to == QUERN_F64)
        return from == QUERN_U64 ? (double)(uint64_t)v : (double)v;
    return round_to(to, from == QUERN_U64 ? (float)(uint64_t)v : (float)v);
}

qn_scalar qn_keval_convert(qn_dtype from, qn_dtype to, qn_scalar a)
{
    if (qn_dtype_is_float(from)) {
        if (qn_dtype_is_float(to))
            return (qn_scalar){ .f = round_to(to, a.f) };
        return (qn_scalar){ .i = to == QUERN_BOOL ? a.f != 0 : float_to_int(to, a.f) };
    }
    if (qn_dtype_is_float(to))
        return (qn_scalar){ .f = int_to_float(from, to, a.i) };
    return (qn_scalar){ .i = wrap(to, (uint64_t)a.i) };
}

qn_scalar qn_keval_bitcast(qn_dtype from, qn_dtype to, qn_scalar a)
{
    unsigned char bytes[8];
    qn_scalar_store(from, a, bytes);
    return qn_scalar_load(to, bytes);
}

qn_scalar qn_keval_scale2(qn_dtype dtype, qn_scalar a, qn_scalar n)
{
    if (isnan(n.f))
        return n;
    double by = floor(n.f);
    int clamped = by > 4200 ? 4200 : by < -4200 ? -4200 : (int)by;
    return (qn_scalar){ .f = round_to(dtype, ldexp(a.f, clamped)) };
}
