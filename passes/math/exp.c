/* exp and what is made of it: x = n ln 2 + r, e^x = 2^n e^r, e^r - 1 = r + r^2 P(r). */
#include "passes/math/coefficients.h"
#include "passes/math/math.h"

qn_math_exp_parts qn_math_exp_reduce(const qn_mb *m, qn_mv x, qn_mv tail)
{
    qn_math_exp_parts p;
    p.sum = m_madd(m, x, m_c(m, 0x1.71547652b82fep0), m_c(m, m_magic(m)));
    p.n = m_sub(m, p.sum, m_c(m, m_magic(m)));
    p.r = m_madd(m, p.n, m_c(m, -M_CONSTANT(m, ln2, 0)), x);
    p.r = m_madd(m, p.n, m_c(m, -M_CONSTANT(m, ln2, 1)), p.r);
    if (tail)
        p.r = m_add(m, p.r, tail);
    p.less_one = m_madd(m, m_mul(m, p.r, p.r), M_POLY(m, p.r, exp), p.r);
    return p;
}

/* x = n ln 2 + r with n a multiple of 1 / QN_LOOKUP, so that the polynomial is short: e^x is 2^n's part in the table times e^r
 * times a whole power of two, all of which scale2 takes from n. */
static qn_mv exp_by_steps(const qn_mb *m, qn_mv x, qn_mv *n)
{
    qn_mv magic = m_c(m, m_magic(m) / QN_LOOKUP), sum = m_madd(m, x, m_c(m, 0x1.71547652b82fep0), magic);
    *n = m_sub(m, sum, magic);
    qn_mv r = m_madd(m, *n, m_c(m, -ln2_f32[0]), x);
    r = m_madd(m, *n, m_c(m, -ln2_f32[1]), r);
    qn_mv less_one = m_madd(m, m_mul(m, r, r), m_horner(m, r, exp_step_f32, 2), r);
    qn_mv step = qn_kb_lookup(m->b, exp_steps, m_bits(m, sum));
    return m_madd(m, step, less_one, step);
}

/* As exp_by_steps, where nothing has to be taken from x twice: n is exact, and so is r. */
qn_mv qn_math_exp2_nonpositive(const qn_mb *m, qn_mv x)
{
    const double least = -150;
    qn_mv magic = m_c(m, m_magic(m) / QN_LOOKUP), sum = m_add(m, x, magic), n = m_sub(m, sum, magic);
    qn_mv r = m_sub(m, x, n), less_one = m_mul(m, r, m_horner(m, r, exp2_step_f32, 2));
    qn_mv step = qn_kb_lookup(m->b, exp_steps, m_bits(m, sum));
    qn_mv part = m_madd(m, step, less_one, step);
    return m_scale2(m, m_sel(m, m_lt(m, x, least), m_c(m, 0), part), n);
}

/* e^x is infinite above the upper bound and 0 below the lower one. What is 0, masked scores of attention above all, is made so
 * before it is scaled: arithmetic that underflows takes a processor some hundred cycles. */
qn_mv qn_math_exp(const qn_mb *m, qn_mv x)
{
    const double least = m->f64 ? -746 : -104;
    qn_mv bounded = m->nonpositive ? x : m_min(m, x, m->f64 ? 710 : 89), n, part;
    if (m_has_pieces(m)) {
        part = exp_by_steps(m, bounded, &n);
    } else {
        qn_math_exp_parts p = qn_math_exp_reduce(m, m_max(m, bounded, least), NULL);
        qn_mv one = m_c(m, 1);
        part = m_madd(m, m_madd(m, M_POLY(m, p.r, exp), p.r, one), p.r, one);
        n = p.n;
    }
    return m_scale2(m, m_sel(m, m_lt(m, x, least), m_c(m, 0), part), n);
}

/* 2^n (e^r - 1) + (2^n - 1), in halves: 2^n alone may be infinite where the sum is not. */
qn_mv qn_math_expm1(const qn_mb *m, qn_mv x)
{
    qn_math_exp_parts p =
        qn_math_exp_reduce(m, m_max(m, m_min(m, x, m->f64 ? 710 : 89), m->f64 ? -40 : -20), NULL);
    qn_mv scale = m_pow2(m, m_sub(m, p.sum, m_c(m, 1)));
    qn_mv half = m_madd(m, p.less_one, scale, m_sub(m, scale, m_c(m, 0.5)));
    return m_sel(m, m_eq(m, x, 0), x, m_add(m, half, half));
}

/* e^|x| / 2 and e^-|x| / 2 */
static void two_halves(const qn_mb *m, qn_mv magnitude, qn_mv *grows, qn_mv *shrinks)
{
    qn_math_exp_parts p = qn_math_exp_reduce(m, m_min(m, magnitude, m->f64 ? 711 : 90), NULL);
    qn_mv one = m_c(m, 1);
    *grows = m_scale2(m, m_add(m, p.less_one, one), m_sub(m, p.n, one));
    *shrinks = m_div(m, m_c(m, 0.25), *grows);
}

qn_mv qn_math_sinh(const qn_mb *m, qn_mv x)
{
    qn_mv magnitude = m_abs(m, x), grows, shrinks, z = m_mul(m, x, x);
    two_halves(m, magnitude, &grows, &shrinks);
    qn_mv large = m_with_sign(m, m_sub(m, grows, shrinks), m_sign(m, x));
    qn_mv small = m_madd(m, m_mul(m, x, z), M_POLY(m, z, sinh), x);
    return m_sel(m, m_lt(m, magnitude, 1), m_sel(m, m_eq(m, x, 0), x, small), large);
}

qn_mv qn_math_cosh(const qn_mb *m, qn_mv x)
{
    qn_mv grows, shrinks;
    two_halves(m, m_abs(m, x), &grows, &shrinks);
    return m_add(m, grows, shrinks);
}

/* tanh(x) / x in pieces; it is 1 from 9.05 on. */
static qn_mv tanh_by_pieces(const qn_mb *m, qn_mv x)
{
    qn_mv a = m_min(m, m_abs(m, x), 9.05);
    return m_with_sign(m, m_min(m, m_mul(m, a, M_PIECES(m, a, 37. / 128, tanh_pieces)), 1), m_sign(m, x));
}

/* An odd polynomial below, 1 - 2e / (1 + e) with e = e^(-2|x|) above. */
qn_mv qn_math_tanh(const qn_mb *m, qn_mv x)
{
    if (m_has_pieces(m))
        return tanh_by_pieces(m, x);
    qn_mv magnitude = m_abs(m, x), one = m_c(m, 1), z = m_mul(m, x, x);
    qn_mv twice = m_max(m, m_mul(m, magnitude, m_c(m, -2)), m->f64 ? -40 : -20);
    qn_math_exp_parts p = qn_math_exp_reduce(m, twice, NULL);
    qn_mv scale = m_pow2(m, p.sum), e = m_madd(m, p.less_one, scale, scale);
    qn_mv large = m_sub(m, one, m_div(m, m_add(m, e, e), m_add(m, e, one)));
    qn_mv small = m_madd(m, m_mul(m, magnitude, z), M_POLY(m, z, tanh), magnitude);
    return m_with_sign(m, m_sel(m, m_lt(m, magnitude, 0.6), small, large), m_sign(m, x));
}

/* With e = e^-|x|: 1 / (1 + e) for x >= 0, e / (1 + e) below; nothing overflows and the small end stays exact. */
qn_mv qn_math_logistic(const qn_mb *m, qn_mv x)
{
    qn_mv below = m_max(m, m_neg(m, m_abs(m, x)), m->f64 ? -746 : -104), one = m_c(m, 1);
    qn_math_exp_parts p = qn_math_exp_reduce(m, below, NULL);
    qn_mv e = m_scale2(m, m_add(m, p.less_one, one), p.n);
    return m_div(m, m_sel(m, m_lt(m, x, 0), e, one), m_add(m, e, one));
}

/* x logistic(x); 2^n comes last, so that the far negative end is rounded once. */
qn_mv qn_math_silu(const qn_mb *m, qn_mv x)
{
    double least = m->f64 ? -760 : -112;
    qn_mv bounded = m_max(m, x, least), one = m_c(m, 1);
    qn_math_exp_parts p = qn_math_exp_reduce(m, m_max(m, m_neg(m, m_abs(m, x)), least), NULL);
    qn_mv part = m_add(m, p.less_one, one), negative = m_lt(m, x, 0);
    qn_mv over = m_add(m, m_scale2(m, part, p.n), one);
    qn_mv r = m_div(m, m_mul(m, bounded, m_sel(m, negative, part, one)), over);
    return m_scale2(m, r, m_sel(m, negative, p.n, m_c(m, 0)));
}
