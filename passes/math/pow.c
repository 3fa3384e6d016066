/* pow: |x|^y = 2^(y log2 |x|) with the logarithm to more than the precision of the result, then C's special cases. */
#include <math.h>

#include "passes/math/coefficients.h"
#include "passes/math/math.h"

/* ---- f32, through f64 ---- */

static qn_mv power_f32(const qn_mb *m, qn_mv magnitude, qn_mv y)
{
    qn_mb wide = qn_mb_make(m->b, m->machine, qn_ktype_make(QUERN_F64, m->type.lanes)), *w = &wide;
    qn_mv x = qn_kb_convert(m->b, QUERN_F64, magnitude), one = m_c(w, 1);
    qn_math_log_parts p = qn_math_log_reduce(w, x);
    qn_mv f = m_sub(w, p.fraction, one), s = m_div(w, f, m_add(w, f, m_c(w, 2))), z = m_mul(w, s, s);
    qn_mv series = m_horner(w, z, log_f32_wide, (int)(sizeof log_f32_wide / sizeof(double)));
    qn_mv log = m_mul(w, s, m_madd(w, series, z, m_c(w, 2)));
    qn_mv log2 = m_madd(w, log, m_c(w, 1 / M_LN2), p.e);
    log2 = m_sel(w, m_gt(w, x, 0), m_sel(w, m_lt(w, x, INFINITY), log2, x), m_c(w, -INFINITY));
    qn_mv t = m_max(w, m_min(w, m_mul(w, qn_kb_convert(m->b, QUERN_F64, y), log2), 300), -300);
    qn_mv sum = m_add(w, t, m_c(w, m_magic(w))), r = m_sub(w, t, m_sub(w, sum, m_c(w, m_magic(w))));
    qn_mv power = m_horner(w, r, exp2_f32_wide, (int)(sizeof exp2_f32_wide / sizeof(double)));
    return qn_kb_convert(m->b, QUERN_F32, m_mul(w, power, m_pow2(w, sum)));
}

/* ---- f64, with sums of two floats ---- */

typedef struct pair {
    qn_mv high, low;
} pair;

/* a + b, |a| >= |b| or a = 0 */
static pair quick_sum(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_mv sum = m_add(m, a, b);
    return (pair){ sum, m_add(m, m_sub(m, a, sum), b) };
}

static pair product(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_mv p = m_mul(m, a, b);
    return (pair){ p, m_fma(m, a, b, m_neg(m, p)) };
}

static pair multiply(const qn_mb *m, pair a, pair b)
{
    pair p = product(m, a.high, b.high);
    p.low = m_add(m, p.low, m_madd(m, a.high, b.low, m_mul(m, a.low, b.high)));
    return p;
}

static pair constant(const qn_mb *m, double high, double low)
{
    return (pair){ m_c(m, high), m_c(m, low) };
}

/* s = f / (2 + f); log(m) = 2 s + s (2/3 z + z^2 Q(z)), z = s^2; all but the last in pairs. */
static pair log2_pair(const qn_mb *m, qn_mv x)
{
    qn_math_log_parts p = qn_math_log_reduce(m, x);
    qn_mv one = m_c(m, 1), two = m_c(m, 2), f = m_sub(m, p.fraction, one);
    pair divisor = quick_sum(m, two, f), s, z, u;
    qn_mv inverse = m_div(m, one, divisor.high);
    s.high = m_mul(m, f, inverse);
    qn_mv rest = m_fma(m, m_neg(m, s.high), divisor.high, f);
    s.low = m_mul(m, m_sub(m, rest, m_mul(m, s.high, divisor.low)), inverse);
    z = product(m, s.high, s.high);
    z.low = m_madd(m, m_add(m, s.high, s.high), s.low, z.low);
    u = multiply(m, z, constant(m, 0x1.5555555555555p-1, 0x1.5555555555555p-55));
    qn_mv tail = m_mul(m, m_mul(m, z.high, z.high),
                       m_horner(m, z.high, log_tail_f64, (int)(sizeof log_tail_f64 / sizeof(double))));
    u = quick_sum(m, u.high, m_add(m, u.low, tail));
    pair su = multiply(m, s, u);
    pair log = quick_sum(m, m_add(m, s.high, s.high), su.high);
    log.low = m_add(m, log.low, m_madd(m, two, s.low, su.low));
    pair log2 = multiply(m, log, constant(m, 0x1.71547652b82fep0, 0x1.777d0ffda0d24p-56));
    pair sum = quick_sum(m, p.e, log2.high);
    sum.low = m_add(m, sum.low, log2.low);
    return sum;
}

static qn_mv power_f64(const qn_mb *m, qn_mv x, qn_mv y)
{
    pair log2 = log2_pair(m, x);
    qn_mv ordinary = m_and(m, m_gt(m, x, 0), m_lt(m, x, INFINITY));
    log2.high = m_sel(m, ordinary, log2.high, m_sel(m, m_eq(m, x, 0), m_c(m, -INFINITY), x)); /* NaN stays */
    pair t = product(m, y, log2.high);
    t.low = m_madd(m, y, log2.low, t.low);
    /* far out, and where something is infinite, the low part says nothing */
    t.low = m_sel(m, m_lt(m, m_abs(m, t.high), 2000), t.low, m_c(m, 0));
    qn_mv high = m_max(m, m_min(m, t.high, 2100), -2100);
    qn_mv n = m_round(m, high), r = m_add(m, m_sub(m, high, n), t.low);
    r = m_mul(m, r, m_c(m, M_LN2));
    qn_mv less_one = m_madd(m, m_mul(m, r, r), M_POLY(m, r, exp), r);
    return m_scale2(m, m_add(m, less_one, m_c(m, 1)), n);
}

/* ---- both ---- */

/* Powers that are cheaper and as exact otherwise; NULL: none of them. */
static qn_mv known_power(const qn_mb *m, qn_mv x, qn_mv y)
{
    if (!qn_k_is_const(y))
        return NULL;
    double value = y->inst->imm.f;
    if (value == 0)
        return m_c(m, 1);
    if (value == 1)
        return x;
    if (value == 2)
        return m_mul(m, x, x);
    if (value == -1)
        return m_div(m, m_c(m, 1), x);
    if (value == 0.5) { /* pow(-inf, 0.5) = inf, pow(-0, 0.5) = +0: sqrt(x + 0) but for -inf */
        qn_mv root = m_sqrt(m, m_add(m, x, m_c(m, 0)));
        return m_sel(m, m_eq(m, x, -INFINITY), m_c(m, INFINITY), root);
    }
    return NULL;
}

qn_mv qn_math_pow(const qn_mb *m, qn_mv x, qn_mv y)
{
    qn_mv known = known_power(m, x, y), one = m_c(m, 1);
    if (known)
        return known;
    qn_mv magnitude = m_abs(m, x);
    qn_mv r = m->f64 ? power_f64(m, magnitude, y) : power_f32(m, magnitude, y);
    qn_mv half = m_mul(m, y, m_c(m, 0.5)); /* an odd y has half of an integer here */
    qn_mv whole = qn_kb_compare(m->b, QN_EQ, m_round(m, y), y);
    qn_mv odd = m_and(m, whole, qn_kb_compare(m->b, QN_NE, m_round(m, half), half));
    r = m_sel(m, m_and(m, odd, m_negative(m, x)), m_neg(m, r), r);
    /* a negative finite base with a fractional exponent */
    qn_mv finite_negative = m_and(m, m_lt(m, x, 0), m_gt(m, x, -INFINITY));
    r = m_sel(m, m_and(m, finite_negative, m_not(m, whole)), m_c(m, NAN), r);
    /* (-1)^(+-inf), 1^y and x^0 are 1, NaN included */
    qn_mv endless = m_and(m, m_eq(m, magnitude, 1), m_eq(m, m_abs(m, y), INFINITY));
    qn_mv is_one = m_or(m, m_or(m, m_eq(m, x, 1), m_eq(m, y, 0)), endless);
    qn_mv any_nan = m_or(m, m_is_nan(m, x), m_is_nan(m, y));
    return m_sel(m, is_one, one, m_sel(m, any_nan, m_add(m, x, y), r));
}
