/* Conversions from and to narrow types (ir/narrow.h) as arithmetic on the bits of f32 or f64, and on bytes. */
#include "passes/math/narrow.h"
#include "passes/math/math.h"

#include <math.h>

#include "ir/narrow.h"

/* Exact: a denormal float times a power of two is what the narrow denormal means. */
static qn_mv float_of(qn_kbuilder *b, const qn_narrow *n, qn_mv x)
{
    static const qn_machine none = { 0 };
    const qn_mb of_f32 = qn_mb_make(b, &none, (qn_ktype){ QUERN_F32, x->type.lanes }), *m = &of_f32;
    const int top = 1 << (n->bits - 1), all = n->sign ? top - 1 : 2 * top - 1;
    const qn_mv bits = qn_kb_convert(b, QUERN_I32, x), magnitude = m_and(m, bits, m_i(m, all));
    qn_mv value = m_float(m, m_shl(m, magnitude, m->mantissa - n->mantissa));
    if (n->mantissa > 0)
        value = m_mul(m, value, m_c(m, ldexp(1, (int)m->bias - n->bias)));
    else
        value = m_sel(m, qn_kb_compare(b, QN_EQ, magnitude, m_i(m, 0)), m_c(m, ldexp(1, -n->bias)), value);
    if (n->largest < all) {
        qn_mv special = m_c(m, NAN);
        if (n->beyond != n->nan)
            special =
                m_sel(m, qn_kb_compare(b, QN_EQ, magnitude, m_i(m, n->beyond)), m_c(m, INFINITY), special);
        value = m_sel(m, qn_kb_compare(b, QN_GT, magnitude, m_i(m, n->largest)), special, value);
    }
    if (n->sign)
        value = m_with_sign(m, value, m_shl(m, m_and(m, bits, m_i(m, top)), 32 - n->bits));
    if (qn_narrow_is_uz(n))
        value = m_sel(m, qn_kb_compare(b, QN_EQ, bits, m_i(m, n->nan)), m_c(m, NAN), value);
    return value;
}

/* Rounds by a sum of integers, whose carry moves into the exponent; denormals by a sum of floats, which rounds where they end. */
static qn_mv of_float(qn_kbuilder *b, const qn_narrow *n, qn_mv x)
{
    static const qn_machine none = { 0 };
    const qn_mb of_x = qn_mb_make(b, &none, x->type), *m = &of_x;
    const int top = 1 << (n->bits - 1), spare = m->mantissa - n->mantissa;
    const int lowest = n->mantissa > 0 ? 1 - n->bias : -n->bias;
    const int64_t half = (int64_t)1 << (spare - 1), infinity = (2 * m->bias + 1) << m->mantissa;
    const qn_mv bits = m_bits(m, x), magnitude = m_and(m, bits, m_i(m, m->f64 ? INT64_MAX : INT32_MAX));
    const qn_mv first = m_i(m, (m->bias + lowest) << m->mantissa);
    qn_mv by = m_i(m, half);
    if (n->mantissa > 0) /* a tie to even; powers of two have no even ones */
        by = qn_kb_binary(b, QN_OP_ADD, m_i(m, half - 1), m_and(m, m_shr(m, magnitude, spare), m_i(m, 1)));
    qn_mv code = m_shr(m, qn_kb_binary(b, QN_OP_ADD, magnitude, by), spare);
    code = qn_kb_binary(b, QN_OP_SUB, code, m_i(m, (m->bias - n->bias) << n->mantissa));
    qn_mv none_of_it = qn_kb_compare(b, QN_GT, magnitude, m_i(m, infinity)); /* NaN */
    if (n->mantissa > 0) {
        const qn_mv end = m_c(m, ldexp(1, lowest + spare));
        const qn_mv denormal =
            qn_kb_binary(b, QN_OP_SUB, m_bits(m, m_add(m, m_float(m, magnitude), end)), m_bits(m, end));
        code = m_sel(m, qn_kb_compare(b, QN_LT, magnitude, first), denormal, code);
    } else {
        none_of_it = m_or(m, none_of_it, qn_kb_compare(b, QN_LT, bits, first)); /* the negative ones too */
    }
    code = m_sel(m, qn_kb_compare(b, QN_GT, code, m_i(m, n->largest)), m_i(m, n->beyond), code);
    code = m_sel(m, none_of_it, m_i(m, n->nan), code);
    if (n->sign) {
        const qn_mv sign = m_and(m, m_shr(m, bits, (m->f64 ? 64 : 32) - n->bits), m_i(m, top));
        const qn_mv whole = m_or(m, code, sign);
        code = qn_narrow_is_uz(n) ? m_sel(m, qn_kb_compare(b, QN_EQ, code, m_i(m, 0)), code, whole) : whole;
    }
    return qn_kb_convert(b, QUERN_U8, code);
}

static qn_mv byte(qn_kbuilder *b, qn_dtype dtype, const qn_kvalue *like, int64_t value)
{
    return qn_kb_const(b, (qn_ktype){ dtype, like->type.lanes }, (qn_scalar){ .i = value });
}

static qn_mv int_of(qn_kbuilder *b, const qn_narrow *n, qn_mv x)
{
    if (!n->sign)
        return qn_kb_binary(b, QN_OP_AND, x, byte(b, QUERN_U8, x, (1 << n->bits) - 1));
    x = qn_kb_binary(b, QN_OP_SHIFT_LEFT, x, byte(b, QUERN_U8, x, 8 - n->bits));
    return qn_kb_binary(b, QN_OP_SHIFT_RIGHT, qn_kb_bitcast(b, QUERN_I8, x),
                        byte(b, QUERN_I8, x, 8 - n->bits));
}

static qn_mv of_int(qn_kbuilder *b, const qn_narrow *n, qn_mv x)
{
    const int all = (1 << n->bits) - 1;
    if (qn_dtype_is_float(x->type.dtype)) {
        const qn_dtype wide = n->sign ? QUERN_I8 : QUERN_U8;
        x = qn_kb_convert(b, wide, x);
        x = qn_kb_binary(b, QN_OP_MIN, x, byte(b, wide, x, n->sign ? all / 2 : all));
        if (n->sign)
            x = qn_kb_binary(b, QN_OP_MAX, x, byte(b, wide, x, -(all / 2) - 1));
    }
    x = qn_kb_convert(b, QUERN_U8, x);
    return qn_kb_binary(b, QN_OP_AND, x, byte(b, QUERN_U8, x, all));
}

qn_kvalue *qn_narrow_convert(qn_kbuilder *b, qn_dtype from, qn_dtype to, qn_kvalue *x)
{
    const bool fast = b->fast;
    const qn_narrow *n = qn_narrow_of(from);
    b->fast = false;
    if (n)
        x = n->is_float ? float_of(b, n, x) : int_of(b, n, x);
    n = qn_narrow_of(to);
    if (!n) {
        x = qn_kb_convert(b, to, x);
    } else if (n->is_float) {
        /* All that a narrow float but f8e8m0 holds is exact in f32. Integers that are not are too large for it. */
        const bool wide = x->type.dtype == QUERN_F64 || n->mantissa == 0;
        x = of_float(b, n, qn_kb_convert(b, wide ? QUERN_F64 : QUERN_F32, x));
    } else {
        x = of_int(b, n, x);
    }
    b->fast = fast;
    return x;
}
