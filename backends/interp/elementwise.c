/* Element-wise ops: a loop per op over chunks of lanes, whatever the dtype. */
#include "backends/interp/interp.h"

#include <math.h>

#include "ir/narrow.h"

/* One operand: x[i] is `x` in `value`. */
#define FLOAT1(op, value)                       \
    case QN_OP_##op:                            \
        for (int64_t i = 0; i < n; i++) {       \
            const double x = a[i].f;            \
            r[i] = (qn_scalar){ .f = (value) }; \
        }                                       \
        return

static double logistic(double x)
{
    if (x >= 0)
        return 1 / (1 + exp(-x));
    const double e = exp(x); /* not 1 / (1 + exp(-x)): that overflows too early below */
    return e / (1 + e);
}

static void unary_float(qn_op op, const qn_scalar *a, int64_t n, qn_scalar *r)
{
    switch (op) {
        FLOAT1(NEG, -x);
        FLOAT1(ABS, fabs(x));
        FLOAT1(SIGN, x > 0 ? 1 : x < 0 ? -1 : x);
        FLOAT1(FLOOR, floor(x));
        FLOAT1(CEIL, ceil(x));
        FLOAT1(ROUND, nearbyint(x));
        FLOAT1(TRUNC, trunc(x));
        FLOAT1(SQRT, sqrt(x));
        FLOAT1(RSQRT, 1 / sqrt(x));
        FLOAT1(EXP, exp(x));
        FLOAT1(EXPM1, expm1(x));
        FLOAT1(LOG, log(x));
        FLOAT1(LOG1P, log1p(x));
        FLOAT1(SIN, sin(x));
        FLOAT1(COS, cos(x));
        FLOAT1(TAN, tan(x));
        FLOAT1(ASIN, asin(x));
        FLOAT1(ACOS, acos(x));
        FLOAT1(ATAN, atan(x));
        FLOAT1(SINH, sinh(x));
        FLOAT1(COSH, cosh(x));
        FLOAT1(TANH, tanh(x));
        FLOAT1(ASINH, asinh(x));
        FLOAT1(ACOSH, acosh(x));
        FLOAT1(ATANH, atanh(x));
        FLOAT1(ERF, erf(x));
        FLOAT1(LOGISTIC, logistic(x));
    case QN_OP_IS_NAN:
        for (int64_t i = 0; i < n; i++)
            r[i] = (qn_scalar){ .i = isnan(a[i].f) != 0 };
        return;
    case QN_OP_IS_INF:
        for (int64_t i = 0; i < n; i++)
            r[i] = (qn_scalar){ .i = isinf(a[i].f) != 0 };
        return;
    default: QN_UNREACHABLE("no value of %s for floats", qn_ops[op].name);
    }
}

/* Integers of any width: unsigned arithmetic wraps, and what wraps at 64 bits wraps at fewer when stored. */
#define INT1(op, value)                                  \
    case QN_OP_##op:                                     \
        for (int64_t i = 0; i < n; i++) {                \
            const int64_t x = a[i].i;                    \
            r[i] = (qn_scalar){ .i = (int64_t)(value) }; \
        }                                                \
        return

static void unary_int(qn_op op, qn_dtype dtype, const qn_scalar *a, int64_t n, qn_scalar *r)
{
    const bool is_signed = qn_dtype_class_of(dtype) == QN_CLASS_SIGNED;
    const int64_t flip = dtype == QUERN_BOOL ? 1 : -1;
    switch (op) {
        INT1(NEG, 0 - (uint64_t)x);
        INT1(ABS, is_signed && x < 0 ? 0 - (uint64_t)x : (uint64_t)x);
        INT1(SIGN, is_signed && x < 0 ? -1 : x != 0);
        INT1(NOT, x ^ flip);
    default: QN_UNREACHABLE("no value of %s for integers", qn_ops[op].name);
    }
}

#define FLOAT2(op, value)                        \
    case QN_OP_##op:                             \
        for (int64_t i = 0; i < n; i++) {        \
            const double x = a[i].f, y = b[i].f; \
            r[i] = (qn_scalar){ .f = (value) };  \
        }                                        \
        return

static void binary_float(qn_op op, const qn_scalar *a, const qn_scalar *b, int64_t n, qn_scalar *r)
{
    switch (op) {
        FLOAT2(ADD, x + y);
        FLOAT2(SUB, x - y);
        FLOAT2(MUL, x * y);
        FLOAT2(DIV, x / y);
        FLOAT2(REM, fmod(x, y));
        FLOAT2(POW, pow(x, y));
        FLOAT2(ATAN2, atan2(x, y));
        FLOAT2(MAX, isnan(x) || x > y ? x : y);
        FLOAT2(MIN, isnan(x) || x < y ? x : y);
    default: QN_UNREACHABLE("no value of %s for floats", qn_ops[op].name);
    }
}

/* x^y modulo 2^64. */
static int64_t power(int64_t x, int64_t y, bool is_signed)
{
    if (is_signed && y < 0)
        return x == 1 ? 1 : x == -1 ? (y & 1 ? -1 : 1) : 0;
    uint64_t result = 1, base = (uint64_t)x;
    for (uint64_t n = (uint64_t)y; n; n >>= 1, base *= base)
        if (n & 1)
            result *= base;
    return (int64_t)result;
}

/* No quotient traps: x / 0 = 0, x / -1 = -x also for the lowest x. */
static int64_t quotient(int64_t x, int64_t y, bool is_signed)
{
    if (y == 0)
        return 0;
    if (!is_signed)
        return (int64_t)((uint64_t)x / (uint64_t)y);
    return y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}

static int64_t remainder_of(int64_t x, int64_t y, bool is_signed)
{
    if (y == 0)
        return 0;
    if (!is_signed)
        return (int64_t)((uint64_t)x % (uint64_t)y);
    return y == -1 ? 0 : x % y;
}

#define INT2(op, value)                                  \
    case QN_OP_##op:                                     \
        for (int64_t i = 0; i < n; i++) {                \
            const int64_t x = a[i].i, y = b[i].i;        \
            r[i] = (qn_scalar){ .i = (int64_t)(value) }; \
        }                                                \
        return

static void binary_int(qn_op op, qn_dtype dtype, const qn_scalar *a, const qn_scalar *b, int64_t n,
                       qn_scalar *r)
{
    const bool is_signed = qn_dtype_class_of(dtype) == QN_CLASS_SIGNED;
    const uint64_t bits = 8 * qn_dtype_bytes(dtype);
    switch (op) {
        INT2(ADD, (uint64_t)x + (uint64_t)y);
        INT2(SUB, (uint64_t)x - (uint64_t)y);
        INT2(MUL, (uint64_t)x * (uint64_t)y);
        INT2(DIV, quotient(x, y, is_signed));
        INT2(REM, remainder_of(x, y, is_signed));
        INT2(POW, power(x, y, is_signed));
        INT2(MAX, (is_signed ? x > y : (uint64_t)x > (uint64_t)y) ? x : y);
        INT2(MIN, (is_signed ? x < y : (uint64_t)x < (uint64_t)y) ? x : y);
        INT2(AND, x & y);
        INT2(OR, x | y);
        INT2(XOR, x ^ y);
        /* A negative count is a large unsigned one. */
        INT2(SHIFT_LEFT, (uint64_t)y < bits ? (uint64_t)x << y : 0);
        INT2(SHIFT_RIGHT, (uint64_t)y < bits ? (is_signed ? x >> y : (int64_t)((uint64_t)x >> y))
                                             : (is_signed ? x >> 63 : 0));
    default: QN_UNREACHABLE("no value of %s for integers", qn_ops[op].name);
    }
}

#define COMPARE(type, field)                                       \
    do {                                                           \
        for (int64_t i = 0; i < n; i++) {                          \
            const type x = (type)a[i].field, y = (type)b[i].field; \
            const bool holds = direction == QN_EQ   ? x == y       \
                               : direction == QN_NE ? x != y       \
                               : direction == QN_LT ? x < y        \
                               : direction == QN_LE ? x <= y       \
                               : direction == QN_GT ? x > y        \
                                                    : x >= y;      \
            r[i] = (qn_scalar){ .i = holds };                      \
        }                                                          \
    } while (0)

static void compare(qn_direction direction, qn_dtype dtype, const qn_scalar *a, const qn_scalar *b, int64_t n,
                    qn_scalar *r)
{
    switch (qn_dtype_class_of(dtype)) {
    case QN_CLASS_FLOAT: COMPARE(double, f); return;
    case QN_CLASS_SIGNED: COMPARE(int64_t, i); return;
    default: COMPARE(uint64_t, i); return;
    }
}

qn_status qn_eval_elementwise(qn_eval *e)
{
    const qn_op op = e->node->op;
    const qn_array *x = &e->x[0], *y = e->node->n_operands > 1 ? &e->x[1] : NULL;
    qn_array *r = &e->y[0];
    const bool is_float = qn_dtype_is_float(x->dtype);
    const qn_direction direction = op == QN_OP_COMPARE ? qn_attr_compare_direction(e->node) : QN_EQ;
    const int64_t total = qn_array_elements(r);
    qn_scalar a[QN_LANES], b[QN_LANES], c[QN_LANES];
    if (qn_quick_elementwise(e->node, e->x, r))
        return QUERN_OK;
    for (int64_t at = 0; at < total; at += QN_LANES) {
        const int64_t n = total - at < QN_LANES ? total - at : QN_LANES;
        qn_lanes_load(x->dtype, qn_element(x, at), 1, n, a);
        if (y)
            qn_lanes_load(y->dtype, qn_element(y, at), 1, n, b);
        if (op == QN_OP_COMPARE)
            compare(direction, x->dtype, a, b, n, c);
        else if (y && is_float)
            binary_float(op, a, b, n, c);
        else if (y)
            binary_int(op, x->dtype, a, b, n, c);
        else if (is_float)
            unary_float(op, a, n, c);
        else
            unary_int(op, x->dtype, a, n, c);
        qn_lanes_store(r->dtype, c, n, qn_element(r, at), 1);
    }
    return QUERN_OK;
}

/* Truncated and saturated; NaN gives 0. `limit` is 2^bits (signed: 2^(bits - 1)), exact in double. */
static int64_t int_of_float(double v, bool is_signed, int bits, double limit)
{
    if (isnan(v))
        return 0;
    if (is_signed && v >= limit)
        return INT64_MAX >> (64 - bits);
    if (is_signed)
        return v <= -limit ? INT64_MIN >> (64 - bits) : (int64_t)v;
    if (v >= limit)
        return (int64_t)(UINT64_MAX >> (64 - bits));
    return v <= 0 ? 0 : (int64_t)(uint64_t)v;
}

/* An integer as a double that rounds to any narrower format as the integer itself does: what does not fit into 53
 * bits goes into the lowest of them, so that no tie appears or vanishes ("round to odd"). */
static double odd_double(uint64_t magnitude)
{
    if (magnitude >> 53 == 0)
        return (double)magnitude;
    const int excess = 11 - __builtin_clzll(magnitude);
    const uint64_t lost = magnitude & (((uint64_t)1 << excess) - 1);
    return ldexp((double)(magnitude >> excess | (lost != 0)), excess);
}

static double float_of_int(int64_t v, qn_dtype from, qn_dtype to)
{
    const bool negative = v < 0 && from != QUERN_U64;
    const uint64_t magnitude = negative ? 0 - (uint64_t)v : (uint64_t)v;
    const double d = to == QUERN_F64 ? (double)magnitude : odd_double(magnitude);
    return negative ? -d : d;
}

static void convert(qn_dtype from, qn_dtype to, qn_scalar *v, int64_t n);

/* Narrow types hold what f64 or i64 holds too. */
static void convert_narrow(qn_dtype from, qn_dtype to, qn_scalar *v, int64_t n)
{
    const qn_narrow *source = qn_narrow_of(from), *target = qn_narrow_of(to);
    for (int64_t i = 0; source && i < n; i++) {
        const double value = qn_narrow_value(from, (uint8_t)v[i].i);
        v[i] = source->is_float ? (qn_scalar){ .f = value } : (qn_scalar){ .i = (int64_t)value };
    }
    if (source)
        from = source->is_float ? QUERN_F64 : QUERN_I64;
    if (!target || (target->is_float && !qn_dtype_is_float(from)))
        convert(from, target ? QUERN_F64 : to, v, n);
    for (int64_t i = 0; target && i < n; i++)
        v[i].i = target->is_float || qn_dtype_is_float(from) ? qn_narrow_from_float(to, v[i].f)
                                                             : qn_narrow_from_int(to, v[i].i);
}

static void convert(qn_dtype from, qn_dtype to, qn_scalar *v, int64_t n)
{
    if (qn_dtype_is_stored(from) || qn_dtype_is_stored(to)) {
        convert_narrow(from, to, v, n);
        return;
    }
    const bool from_float = qn_dtype_is_float(from), to_float = qn_dtype_is_float(to);
    if (from_float == to_float)
        return; /* the store rounds, wraps or compares with 0 */
    const bool is_signed = qn_dtype_class_of(to) == QN_CLASS_SIGNED;
    const int bits = 8 * (int)qn_dtype_bytes(to);
    const double limit = ldexp(1, is_signed ? bits - 1 : bits);
    for (int64_t i = 0; i < n; i++)
        if (to_float)
            v[i].f = float_of_int(v[i].i, from, to);
        else
            v[i].i = to == QUERN_BOOL ? v[i].f != 0 : int_of_float(v[i].f, is_signed, bits, limit);
}

qn_status qn_eval_convert(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    qn_array *r = &e->y[0];
    const int64_t total = qn_array_elements(r);
    qn_scalar v[QN_LANES];
    if (qn_quick_convert(x->dtype, r->dtype, x->data, total, r->data))
        return QUERN_OK;
    for (int64_t at = 0; at < total; at += QN_LANES) {
        const int64_t n = total - at < QN_LANES ? total - at : QN_LANES;
        qn_lanes_load(x->dtype, qn_element(x, at), 1, n, v);
        convert(x->dtype, r->dtype, v, n);
        qn_lanes_store(r->dtype, v, n, qn_element(r, at), 1);
    }
    return QUERN_OK;
}

#define SELECT(type)                                     \
    do {                                                 \
        const type *a = e->x[1].data, *b = e->x[2].data; \
        type *to = r->data;                              \
        for (int64_t i = 0; i < n; i++)                  \
            to[i] = p[i] ? a[i] : b[i];                  \
    } while (0)

qn_status qn_eval_select(qn_eval *e)
{
    qn_array *r = &e->y[0];
    const uint8_t *p = e->x[0].data;
    const int64_t n = qn_array_elements(r);
    switch (qn_dtype_bytes(r->dtype)) {
    case 1: SELECT(qn_word1); break;
    case 2: SELECT(qn_word2); break;
    case 4: SELECT(qn_word4); break;
    default: SELECT(qn_word8); break;
    }
    return QUERN_OK;
}

/* ---- leaves ---- */

qn_status qn_eval_iota(qn_eval *e)
{
    qn_array *r = &e->y[0], line = { .dtype = r->dtype, .rank = 1 };
    const int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    const qn_lines lines = qn_lines_of(r, axis);
    if (qn_array_elements(r) == 0)
        return QUERN_OK;
    qn_scalar *v;
    line.dims[0] = lines.length;
    QN_TRY(qn_eval_scalars(e, lines.length, &v));
    QN_TRY(qn_array_alloc(&line, e->scratch, &e->node->loc, e->in->diags));
    for (int64_t i = 0; i < lines.length; i++)
        v[i].i = i;
    convert(QUERN_I64, r->dtype, v, lines.length);
    qn_lanes_store(r->dtype, v, lines.length, line.data, 1);
    const int64_t inner = lines.stride, outer = lines.n / inner;
    qn_copy_strided(qn_dtype_bytes(r->dtype), 3, (int64_t[]){ outer, lines.length, inner }, r->data,
                    (int64_t[]){ lines.length * inner, inner, 1 }, line.data, (int64_t[]){ 0, 1, 0 });
    return QUERN_OK;
}

qn_status qn_eval_dim_value(qn_eval *e)
{
    int64_t value;
    QN_TRY(qn_eval_dims(e, QN_ATTR_DIMS, &value));
    qn_scalar_store(e->y[0].dtype, (qn_scalar){ .i = value }, e->y[0].data);
    return QUERN_OK;
}
