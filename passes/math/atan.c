/* asin, acos, atan, atan2: odd polynomials on a small range, and identities that lead there. */
#include "passes/math/coefficients.h"
#include "passes/math/math.h"

/* asin(s) - s for |x| <= 1/2, where s = |x|; beyond, s = sqrt((1 - |x|) / 2) and asin |x| = pi/2 - 2 asin(s). */
static qn_mv asin_part(const qn_mb *m, qn_mv magnitude, qn_mv large, qn_mv *out_s)
{
    qn_mv half = m_mul(m, m_sub(m, m_c(m, 1), magnitude), m_c(m, 0.5));
    qn_mv z = m_sel(m, large, half, m_mul(m, magnitude, magnitude));
    *out_s = m_sel(m, large, m_sqrt(m, half), magnitude);
    return m_mul(m, m_mul(m, *out_s, z), M_POLY(m, z, asin));
}

qn_mv qn_math_asin(const qn_mb *m, qn_mv x)
{
    qn_mv magnitude = m_abs(m, x), large = m_gt(m, magnitude, 0.5);
    qn_mv s, p = asin_part(m, magnitude, large, &s);
    qn_mv rest = m_sub(m, m_add(m, p, p), m_c(m, M_CONSTANT(m, pi, 1) / 2));
    qn_mv top = m_sub(m, m_c(m, M_CONSTANT(m, pi, 0) / 2), m_add(m, s, s));
    qn_mv r = m_sel(m, large, m_sub(m, top, rest), m_add(m, s, p));
    return m_with_sign(m, r, m_sign(m, x));
}

qn_mv qn_math_acos(const qn_mb *m, qn_mv x)
{
    qn_mv magnitude = m_abs(m, x), large = m_gt(m, magnitude, 0.5), negative = m_lt(m, x, 0);
    qn_mv s, less_s = asin_part(m, magnitude, large, &s), p = m_add(m, s, less_s), twice = m_add(m, p, p);
    qn_mv far = m_sub(m, m_c(m, M_CONSTANT(m, pi, 0)), m_sub(m, twice, m_c(m, M_CONSTANT(m, pi, 1))));
    qn_mv near = m_sub(m, m_c(m, M_CONSTANT(m, pi, 0) / 2),
                       m_sub(m, m_turn_sign(m, p, m_sign(m, x)), m_c(m, M_CONSTANT(m, pi, 1) / 2)));
    return m_sel(m, large, m_sel(m, negative, far, twice), near);
}

/* base + atan(over / under), the quotient within sqrt(2) - 1; low is what base lacks */
static qn_mv atan_quotient(const qn_mb *m, qn_mv over, qn_mv under, qn_mv base, qn_mv low)
{
    qn_mv t = m_div(m, over, under), z = m_mul(m, t, t);
    return m_add(m, base, m_add(m, m_madd(m, m_mul(m, t, z), M_POLY(m, z, atan), low), t));
}

/* With a = |x|:  a | pi/4 + atan((a - 1) / (a + 1)) | pi/2 - atan(1 / a) */
qn_mv qn_math_atan(const qn_mb *m, qn_mv x)
{
    qn_mv a = m_abs(m, x), one = m_c(m, 1), zero = m_c(m, 0);
    double pi = M_CONSTANT(m, pi, 0), tail = M_CONSTANT(m, pi, 1);
    qn_mv middle = m_gt(m, a, 0.41421356237309503), large = m_gt(m, a, 2.414213562373095);
    qn_mv over = m_sel(m, large, m_c(m, -1), m_sel(m, middle, m_sub(m, a, one), a));
    qn_mv under = m_sel(m, large, a, m_sel(m, middle, m_add(m, a, one), one));
    qn_mv base = m_sel(m, large, m_c(m, pi / 2), m_sel(m, middle, m_c(m, pi / 4), zero));
    qn_mv low = m_sel(m, large, m_c(m, tail / 2), m_sel(m, middle, m_c(m, tail / 4), zero));
    return m_with_sign(m, m_abs(m, atan_quotient(m, over, under, base, low)), m_sign(m, x));
}

/* By octants: with the smaller magnitude s and the larger l, atan(s / l) = pi/4 + atan((s - l) / (s + l)); then pi/2 minus
 * that where |y| > |x|, then pi minus that for negative x. */
qn_mv qn_math_atan2(const qn_mb *m, qn_mv y, qn_mv x)
{
    qn_mv ax = m_abs(m, x), ay = m_abs(m, y), zero = m_c(m, 0), one = m_c(m, 1);
    double pi = M_CONSTANT(m, pi, 0), tail = M_CONSTANT(m, pi, 1);
    qn_mv steep = qn_kb_compare(m->b, QN_GT, ay, ax), equal = qn_kb_compare(m->b, QN_EQ, ax, ay);
    qn_mv small = m_sel(m, steep, ax, ay), large = m_sel(m, steep, ay, ax);
    qn_mv middle = qn_kb_compare(m->b, QN_GT, small, m_mul(m, large, m_c(m, 0.41421356237309503)));
    qn_mv scale = m_sel(m, m_gt(m, large, 1), m_c(m, 0.25), one); /* the sum does not overflow */
    qn_mv s = m_mul(m, small, scale), l = m_mul(m, large, scale);
    /* equal ones, zeros and infinities too, have the quotient 0 from their base */
    qn_mv over = m_sel(m, equal, zero, m_sel(m, middle, m_sub(m, s, l), small));
    qn_mv under = m_sel(m, equal, one, m_sel(m, middle, m_add(m, s, l), large));
    middle = m_or(m, middle, m_and(m, equal, m_gt(m, ax, 0)));
    qn_mv base = m_sel(m, middle, m_c(m, pi / 4), zero), low = m_sel(m, middle, m_c(m, tail / 4), zero);
    /* k pi/2 +- everything so far */
    qn_mv negative = m_negative(m, x), turned = qn_kb_binary(m->b, QN_OP_XOR, steep, negative);
    qn_mv far = m_sel(m, steep, m_c(m, pi / 2), m_sel(m, negative, m_c(m, pi), zero));
    qn_mv far_low = m_sel(m, steep, m_c(m, tail / 2), m_sel(m, negative, m_c(m, tail), zero));
    base = m_add(m, far, m_sel(m, turned, m_neg(m, base), base));
    low = m_add(m, far_low, m_sel(m, turned, m_neg(m, low), low));
    qn_mv r = atan_quotient(m, m_sel(m, turned, m_neg(m, over), over), under, base, low);
    r = m_with_sign(m, m_abs(m, r), m_sign(m, y));
    return m_sel(m, m_or(m, m_is_nan(m, x), m_is_nan(m, y)), m_add(m, x, y), r);
}
