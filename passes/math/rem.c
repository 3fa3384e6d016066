/* rem (C's fmod): exact. x - trunc(x/y) y by one fma where the quotient is small enough to be a float; where any lane has
 * more, multiples y 2^d are taken away first, top bits of the quotient at a time. */
#include <math.h>

#include "passes/math/math.h"

/* One step: a - trunc(a/b) b for 0 <= a, 0 < b, a/b below 2^mantissa. The quotient may come out one too large. */
static qn_mv step(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_mv quotient = m_trunc(m, m_div(m, a, b));
    qn_mv r = m_fma(m, m_neg(m, quotient), b, a);
    return m_sel(m, m_lt(m, r, 0), m_add(m, r, b), r);
}

/* Exponent of x >= 0, of denormals too, as bits: floor(log2 x) */
static qn_mv exponent(const qn_mb *m, qn_mv x)
{
    qn_mv tiny = m_lt(m, x, m->f64 ? 0x1p-1022 : 0x1p-126);
    qn_mv scaled = m_sel(m, tiny, m_mul(m, x, m_c(m, m->f64 ? 0x1p52 : 0x1p23)), x);
    qn_mv e = m_shr(m, m_bits(m, scaled), m->mantissa);
    qn_mv less = qn_kb_select(m->b, tiny, m_i(m, m->bias + m->mantissa), m_i(m, m->bias));
    return qn_kb_binary(m->b, QN_OP_SUB, e, less);
}

static qn_mv power_of_two(const qn_mb *m, qn_mv n)
{
    return m_float(m, m_shl(m, qn_kb_binary(m->b, QN_OP_ADD, n, m_i(m, m->bias)), m->mantissa));
}

/* a mod b for any quotient: d bits at most are left after each round, so a fixed count of rounds is enough. */
static qn_mv reduce_far(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_kbuilder *kb = m->b;
    int bits = m->mantissa - 2, span = m->f64 ? 2100 : 280;
    qn_mv zero = m_i(m, 0), e = exponent(m, b);
    qn_kinst *loop = qn_kb_for(kb, qn_kb_index(kb, 0), qn_kb_index(kb, span / bits + 1), qn_kb_index(kb, 1),
                               QN_TAG_SERIAL, 1, &a, NULL);
    qn_mv r = &loop->blocks[0]->arguments[1];
    qn_mv above = qn_kb_binary(kb, QN_OP_SUB, exponent(m, r), e);
    qn_mv d = qn_kb_binary(kb, QN_OP_MAX, qn_kb_binary(kb, QN_OP_SUB, above, m_i(m, bits)), zero);
    /* 2^d in four factors: d may be twice the exponent range */
    qn_mv quarter = m_shr(m, d, 2), by = power_of_two(m, quarter);
    qn_mv three = qn_kb_binary(kb, QN_OP_MUL, quarter, m_i(m, 3));
    qn_mv multiple = m_mul(m, m_mul(m, m_mul(m, b, by), by), by);
    multiple = m_mul(m, multiple, power_of_two(m, qn_kb_binary(kb, QN_OP_SUB, d, three)));
    qn_mv next = step(m, r, multiple);
    qn_kb_end_for(kb, loop, &next);
    return &loop->results[0];
}

qn_mv qn_math_rem(const qn_mb *m, qn_mv x, qn_mv y)
{
    qn_kbuilder *b = m->b;
    qn_mv ax = m_abs(m, x), ay = m_abs(m, y), zero = m_c(m, 0);
    qn_mv defined = m_and(m, m_lt(m, ax, INFINITY), m_gt(m, ay, 0));
    /* lanes that have no answer, or x as the answer, stay out of the way */
    qn_mv plain = m_or(m, m_not(m, defined), qn_kb_compare(b, QN_LT, ax, ay));
    qn_mv top = m_sel(m, plain, zero, ax), bottom = m_sel(m, plain, m_c(m, 1), ay);
    qn_mv far = qn_kb_compare(b, QN_GT, m_div(m, top, bottom), m_c(m, m->f64 ? 0x1p50 : 0x1p21));
    qn_kinst *branch = qn_kb_if(b, qn_kb_reduce(b, QN_KIND_MAX, far));
    qn_mv r = reduce_far(m, top, bottom);
    qn_kb_else(b, branch, 1, &r);
    r = step(m, top, bottom);
    qn_kb_end_if(b, branch, 1, &r);
    r = m_with_sign(m, &branch->results[0], m_sign(m, x));
    /* |x| < |y|, y infinite included, gives x; NaN in either, x infinite or y zero give NaN */
    qn_mv below = qn_kb_compare(b, QN_LT, ax, ay);
    r = m_sel(m, below, x, m_sel(m, defined, r, m_c(m, NAN)));
    return m_sel(m, m_or(m, m_is_nan(m, x), m_is_nan(m, y)), m_add(m, x, y), r);
}
