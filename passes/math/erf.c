/* erf and gelu. Small arguments by an odd polynomial; elsewhere through erfc: in f32 as e^g(a) with a polynomial g, where a
 * relative error is wanted or in f64 as e^(-t^2) h(t), with h(t) = e^(t^2) erfc(t) a polynomial in (t - c) / (t + c). */
#include <math.h>

#include "passes/math/coefficients.h"
#include "passes/math/math.h"

/* e^(t^2) erfc(t) for t >= 0 within the range of the table */
static qn_mv scaled_erfc(const qn_mb *m, qn_mv t)
{
    double c = m->f64 ? 4 : 2;
    qn_mv one = m_c(m, 1), sum = m_add(m, t, m_c(m, c)), twice = m_madd(m, t, m_c(m, 2), one);
    qn_mv inverse = m_div(m, one, m_mul(m, sum, twice)); /* one division for both quotients */
    qn_mv q = m_mul(m, m_sub(m, t, m_c(m, c)), m_mul(m, twice, inverse));
    return m_mul(m, M_POLY(m, q, erfcx), m_mul(m, sum, inverse));
}

/* 1 - erfc(a) for a >= 1 */
static qn_mv erf_large(const qn_mb *m, qn_mv a)
{
    qn_mv one = m_c(m, 1);
    if (!m->f64) {
        qn_mv g = m_horner(m, m_min(m, a, 4), erf_tail_f32, (int)(sizeof erf_tail_f32 / sizeof(double)));
        qn_math_exp_parts p = qn_math_exp_reduce(m, g, NULL);
        qn_mv scale = m_pow2(m, p.sum);
        return m_sub(m, m_sub(m, one, scale), m_mul(m, p.less_one, scale));
    }
    qn_mv t = m_min(m, a, 6), s = m_mul(m, t, t), lost = m_fma(m, t, t, m_neg(m, s));
    qn_math_exp_parts p = qn_math_exp_reduce(m, m_neg(m, s), m_neg(m, lost));
    qn_mv erfc = m_mul(m, m_mul(m, m_add(m, p.less_one, one), m_pow2(m, p.sum)), scaled_erfc(m, t));
    return m_sub(m, one, erfc);
}

/* erf(x) / x in pieces; it is 1 from 3.93 on. */
static qn_mv erf_by_pieces(const qn_mb *m, qn_mv x)
{
    qn_mv a = m_min(m, m_abs(m, x), 3.93);
    return m_with_sign(m, m_min(m, m_mul(m, a, M_PIECES(m, a, 0.125, erf_pieces)), 1), m_sign(m, x));
}

qn_mv qn_math_erf(const qn_mb *m, qn_mv x)
{
    if (m_has_pieces(m))
        return erf_by_pieces(m, x);
    qn_mv a = m_abs(m, x), z = m_mul(m, x, x);
    qn_mv small = m_madd(m, x, M_POLY(m, z, erf), x);
    qn_mv large = m_with_sign(m, erf_large(m, a), m_sign(m, x));
    return m_sel(m, m_lt(m, a, 1), m_sel(m, m_eq(m, x, 0), x, small), large);
}

/* x P(x), where P(-|x|) = 1 - P(|x|) is in pieces, the last one 0: exact to 3e-8 of |x|. */
static qn_mv gate_by_pieces(const qn_mb *m, qn_mv x, const float (*pieces)[QN_LOOKUP], int degree)
{
    const double width = 0.1875;
    qn_mv a = m_min(m, m_abs(m, x), (QN_LOOKUP - 1) * width), below = m_pieces(m, a, width, pieces, degree);
    return m_madd(m, m_neg(m, a), below, m_max(m, x, 0));
}

/* x Phi(x) with Phi(-a) = erfc(a / sqrt(2)) / 2: g = x Phi(-|x|) is the result for x < 0, x - g for x >= 0. */
qn_mv qn_math_gelu(const qn_mb *m, qn_mv x)
{
    if (m_has_pieces(m) && m->math != QN_MATH_STRICT)
        return gate_by_pieces(m, x, gelu_pieces, 5);
    double least = m->f64 ? -39 : -15; /* gelu is -0 from here on */
    qn_mv a = m_min(m, m_abs(m, x), -least);
    qn_mv t = m_mul(m, a, m_c(m, M_SQRT1_2));
    qn_mv s = m_mul(m, a, a), lost = m_fma(m, a, a, m_neg(m, s)), half = m_c(m, -0.5);
    qn_math_exp_parts p = qn_math_exp_reduce(m, m_mul(m, s, half), m_mul(m, lost, half));
    qn_mv part = m_mul(m, m_add(m, p.less_one, m_c(m, 1)), scaled_erfc(m, t));
    qn_mv signed_a = m_max(m, m_min(m, x, -least), least);
    qn_mv g = m_scale2(m, m_mul(m, m_mul(m, signed_a, m_c(m, 0.5)), part), p.n);
    return m_sel(m, m_negative(m, x), g, m_sub(m, x, g));
}

/* x logistic(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3) */
qn_mv qn_math_gelu_tanh(const qn_mb *m, qn_mv x)
{
    if (m_has_pieces(m) && m->math != QN_MATH_STRICT)
        return gate_by_pieces(m, x, gelu_tanh_pieces, 5);
    const double two = 2 * sqrt(M_2_PI);
    qn_mv bounded = m_max(m, x, m->f64 ? -24 : -12); /* it is -0 from here on */
    qn_mv factor = m_madd(m, m_mul(m, bounded, bounded), m_c(m, two * 0.044715), m_c(m, two));
    return m_mul(m, bounded, qn_math_logistic(m, m_mul(m, bounded, factor)));
}
