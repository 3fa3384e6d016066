/* log and what is made of it: x = m 2^e, log x = e ln 2 + log(1 + f) with f = m - 1 in [sqrt(1/2) - 1, sqrt(2) - 1]. */
#include <math.h>

#include "passes/math/coefficients.h"
#include "passes/math/math.h"

/* The exponent comes from the bits less those of sqrt(1/2), so that m lies around 1. */
static void split(const qn_mb *m, qn_mv bits, qn_mv *fraction, qn_mv *e)
{
    qn_mv above = qn_kb_binary(m->b, QN_OP_SUB, bits, m_i(m, m->f64 ? 0x3fe6a09e667f3bcd : 0x3f3504f3));
    *e = m_shr(m, above, m->mantissa);
    *fraction = m_float(m, qn_kb_binary(m->b, QN_OP_SUB, bits, m_shl(m, *e, m->mantissa)));
}

qn_math_log_parts qn_math_log_reduce(const qn_mb *m, qn_mv x)
{
    qn_mv tiny = m_lt(m, x, m->f64 ? 0x1p-1022 : 0x1p-126), e;
    qn_mv scaled = m_sel(m, tiny, m_mul(m, x, m_c(m, ldexp(1, m->mantissa))), x);
    qn_math_log_parts p;
    split(m, m_bits(m, scaled), &p.fraction, &e);
    p.e = m_sub(m, m_int_to_float(m, e), m_sel(m, tiny, m_c(m, m->mantissa), m_c(m, 0)));
    return p;
}

/* e ln 2 + log(1 + f) */
static qn_mv combine(const qn_mb *m, qn_mv f, qn_mv e)
{
    qn_mv high = m_c(m, M_CONSTANT(m, ln2, 0)), low = m_c(m, M_CONSTANT(m, ln2, 1)), y;
    if (m->f64) { /* with s = f / (2 + f): log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))) */
        qn_mv s = m_div(m, f, m_add(m, f, m_c(m, 2))), z = m_mul(m, s, s);
        qn_mv half = m_mul(m, m_mul(m, f, f), m_c(m, 0.5));
        qn_mv series = m_madd(m, M_POLY(m, z, log), z, half);
        y = m_sub(m, m_madd(m, s, series, m_mul(m, e, low)), half);
    } else {
        qn_mv z = m_mul(m, f, f);
        y = m_madd(m, e, low, m_mul(m, m_mul(m, z, f), M_POLY(m, f, log)));
        y = m_madd(m, z, m_c(m, -0.5), y);
    }
    return m_madd(m, e, high, m_add(m, f, y));
}

/* `r` where x is positive and finite; -inf at `pole`, NaN below it, +inf and NaN as they are. */
static qn_mv outside(const qn_mb *m, qn_mv x, qn_mv r, double pole)
{
    qn_mv rest = m_sel(m, m_lt(m, x, pole), m_c(m, NAN), x);
    rest = m_sel(m, m_eq(m, x, pole), m_c(m, -INFINITY), rest);
    return m_sel(m, m_and(m, m_gt(m, x, pole), m_lt(m, x, INFINITY)), r, rest);
}

qn_mv qn_math_log(const qn_mb *m, qn_mv x)
{
    qn_math_log_parts p = qn_math_log_reduce(m, x);
    return outside(m, x, combine(m, m_sub(m, p.fraction, m_c(m, 1)), p.e), 0);
}

/* log(u + c), c much smaller than u; u is normal. 2^-e c joins the fraction. */
static qn_mv log_sum(const qn_mb *m, qn_mv u, qn_mv c, qn_mv extra)
{
    qn_mv fraction, e;
    split(m, m_bits(m, u), &fraction, &e);
    qn_mv less = qn_kb_binary(m->b, QN_OP_MAX, qn_kb_binary(m->b, QN_OP_SUB, m_i(m, m->bias), e), m_i(m, 0));
    qn_mv back = m_shl(m, less, m->mantissa);
    qn_mv f = m_madd(m, c, m_float(m, back), m_sub(m, fraction, m_c(m, 1)));
    qn_mv exponent = m_int_to_float(m, e);
    return combine(m, f, extra ? m_add(m, exponent, extra) : exponent);
}

/* 1 + x as u + c without error */
static void one_plus(const qn_mb *m, qn_mv x, qn_mv *u, qn_mv *c)
{
    qn_mv one = m_c(m, 1), sum = m_add(m, x, one), back = m_sub(m, sum, one);
    *u = sum;
    *c = m_add(m, m_sub(m, one, m_sub(m, sum, back)), m_sub(m, x, back));
}

qn_mv qn_math_log1p(const qn_mb *m, qn_mv x)
{
    qn_mv u, c;
    one_plus(m, x, &u, &c);
    return m_sel(m, m_eq(m, x, 0), x, outside(m, x, log_sum(m, u, c, NULL), -1));
}

/* log(1 + t) where `big` is false, else log(a) + ln 2: for large a, where 1 + t is 2a. */
static qn_mv log1p_or_twice(const qn_mb *m, qn_mv t, qn_mv big, qn_mv a)
{
    qn_mv u, c;
    one_plus(m, t, &u, &c);
    return log_sum(m, m_sel(m, big, a, u), m_sel(m, big, m_c(m, 0), c), m_sel(m, big, m_c(m, 1), m_c(m, 0)));
}

/* sign(x) log(a + sqrt(a^2 + 1)), a = |x|: log1p(a + a^2 / (1 + sqrt(a^2 + 1))) */
qn_mv qn_math_asinh(const qn_mb *m, qn_mv x)
{
    qn_mv a = m_abs(m, x), one = m_c(m, 1), z = m_mul(m, a, a);
    qn_mv root = m_sqrt(m, m_add(m, z, one));
    qn_mv t = m_add(m, a, m_div(m, z, m_add(m, root, one)));
    qn_mv r = log1p_or_twice(m, t, m_gt(m, a, m->f64 ? 0x1p28 : 0x1p14), a);
    r = m_sel(m, m_lt(m, a, INFINITY), r, a); /* infinity, NaN */
    return m_sel(m, m_eq(m, x, 0), x, m_with_sign(m, m_abs(m, r), m_sign(m, x)));
}

/* log1p(t + sqrt(t^2 + 2t)), t = x - 1 */
qn_mv qn_math_acosh(const qn_mb *m, qn_mv x)
{
    qn_mv t = m_sub(m, x, m_c(m, 1));
    qn_mv sum = m_add(m, t, m_sqrt(m, m_mul(m, t, m_add(m, t, m_c(m, 2)))));
    qn_mv r = log1p_or_twice(m, sum, m_gt(m, x, m->f64 ? 0x1p28 : 0x1p14), x);
    r = m_sel(m, m_lt(m, x, INFINITY), r, x);
    return m_sel(m, m_lt(m, x, 1), m_c(m, NAN), r);
}

/* sign(x) log1p(2a / (1 - a)) / 2, a = |x| */
qn_mv qn_math_atanh(const qn_mb *m, qn_mv x)
{
    qn_mv a = m_abs(m, x), u, c;
    qn_mv t = m_div(m, m_add(m, a, a), m_sub(m, m_c(m, 1), a));
    one_plus(m, t, &u, &c);
    qn_mv r = m_mul(m, log_sum(m, u, c, NULL), m_c(m, 0.5));
    qn_mv rest = m_sel(m, m_eq(m, a, 1), m_c(m, INFINITY), m_c(m, NAN));
    r = m_sel(m, m_lt(m, a, 1), r, rest);
    return m_sel(m, m_eq(m, x, 0), x, m_with_sign(m, r, m_sign(m, x)));
}
