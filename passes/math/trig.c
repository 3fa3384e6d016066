/* sin, cos and tan: x = k pi/2 + r. For moderate x, r by subtracting multiples of pi/2 kept in parts, the first of which
 * multiply exactly; beyond, where any lane needs it, by multiplying with as many bits of 2/pi as matter (Payne and Hanek),
 * in integers. */
#include <math.h>
#include <string.h>

#include "passes/math/coefficients.h"
#include "passes/math/math.h"

/* ---- large arguments ---- */

enum { N_WORDS = sizeof two_over_pi / sizeof *two_over_pi + 1 };

static qn_mv word(qn_kbuilder *b, int lanes, uint64_t value)
{
    return qn_kb_const(b, qn_ktype_make(QUERN_U64, lanes), (qn_scalar){ .i = (int64_t)value });
}

static qn_mv op(qn_kbuilder *b, qn_op fn, qn_mv x, qn_mv y)
{
    return qn_kb_binary(b, fn, x, y);
}

/* The table in local memory, with a word of zeros in front: 2/pi = sum table[i] 2^(-64 i). Filled where it is read. */
static qn_kbuffer *make_table(qn_kbuilder *b)
{
    qn_kernel *k = b->kernel;
    qn_kbuffer *table = NULL;
    for (int i = k->n_buffers; i < k->n_all_buffers && !table; i++)
        if (!strcmp(k->buffers[i]->name, "two_over_pi") && k->buffers[i]->elements == N_WORDS)
            table = k->buffers[i];
    if (!table)
        table = qn_kernel_add_local(k, "two_over_pi", QUERN_U64, N_WORDS);
    for (int i = 0; i < N_WORDS; i++)
        qn_kb_store(b, table, qn_kb_index(b, i), word(b, 1, i ? two_over_pi[i - 1] : 0), NULL);
    return table;
}

/* High 64 bits of x * y, from products of halves. */
static qn_mv multiply_high(qn_kbuilder *b, qn_mv x, qn_mv y)
{
    int lanes = x->type.lanes;
    qn_mv half = word(b, lanes, 32), mask = word(b, lanes, UINT32_MAX);
    qn_mv x1 = op(b, QN_OP_SHIFT_RIGHT, x, half), x0 = op(b, QN_OP_AND, x, mask);
    qn_mv y1 = op(b, QN_OP_SHIFT_RIGHT, y, half), y0 = op(b, QN_OP_AND, y, mask);
    qn_mv low = op(b, QN_OP_SHIFT_RIGHT, op(b, QN_OP_MUL, x0, y0), half);
    qn_mv middle = op(b, QN_OP_ADD, op(b, QN_OP_MUL, x1, y0), low);
    qn_mv other = op(b, QN_OP_ADD, op(b, QN_OP_MUL, x0, y1), op(b, QN_OP_AND, middle, mask));
    qn_mv high = op(b, QN_OP_ADD, op(b, QN_OP_MUL, x1, y1), op(b, QN_OP_SHIFT_RIGHT, middle, half));
    return op(b, QN_OP_ADD, high, op(b, QN_OP_SHIFT_RIGHT, other, half));
}

/* x = k pi/2 + r, |r| <= pi/4; for infinities and NaN, r is NaN. */
typedef struct quadrant {
    qn_mv r, k; /* k: integer of m->bits, its last two bits count */
} quadrant;

/* For finite x of f64, |x| >= 2^16: with |x| = M 2^e, M an integer of 53 bits, M 2^e 2/pi mod 4 takes the bits of 2/pi from
 * 2^(1 - e) on: three words of them. */
static quadrant reduce_large(const qn_mb *m, qn_mv x)
{
    qn_kbuilder *b = m->b;
    int lanes = m->type.lanes;
    qn_kbuffer *table = make_table(b);
    qn_mv bits = qn_kb_bitcast(b, QUERN_U64, m_abs(m, x));
    qn_mv mantissa = op(b, QN_OP_OR, op(b, QN_OP_AND, bits, word(b, lanes, ((uint64_t)1 << 52) - 1)),
                        word(b, lanes, (uint64_t)1 << 52));
    /* first bit wanted, counted in the table: 64 + e - 2, e = exponent - 1075 */
    qn_mv place =
        op(b, QN_OP_SUB, op(b, QN_OP_SHIFT_RIGHT, bits, word(b, lanes, 52)), word(b, lanes, 1075 - 62));
    place =
        op(b, QN_OP_MIN, place, word(b, lanes, 64 * (N_WORDS - 4) + 63)); /* infinities, NaN, small ones */
    qn_mv index = qn_kb_convert(b, QUERN_I64, op(b, QN_OP_SHIFT_RIGHT, place, word(b, lanes, 6)));
    qn_mv shift = op(b, QN_OP_AND, place, word(b, lanes, 63));
    qn_mv back = op(b, QN_OP_SUB, word(b, lanes, 64), shift), words[4], w[3];
    for (int i = 0; i < 4; i++) {
        qn_mv at = op(b, QN_OP_ADD, index, qn_kb_const(b, index->type, (qn_scalar){ .i = i }));
        words[i] = qn_kb_load(b, table, at, lanes);
    }
    for (int i = 0; i < 3; i++)
        w[i] = op(b, QN_OP_OR, op(b, QN_OP_SHIFT_LEFT, words[i], shift),
                  op(b, QN_OP_SHIFT_RIGHT, words[i + 1], back));
    /* the product's fraction of 4: 128 bits, high and low */
    qn_mv low = op(b, QN_OP_MUL, mantissa, w[1]);
    qn_mv sum = op(b, QN_OP_ADD, low, multiply_high(b, mantissa, w[2]));
    qn_mv carry = qn_kb_convert(b, QUERN_U64, qn_kb_compare(b, QN_LT, sum, low));
    qn_mv high = op(b, QN_OP_ADD, op(b, QN_OP_MUL, mantissa, w[0]),
                    op(b, QN_OP_ADD, multiply_high(b, mantissa, w[1]), carry));
    /* nearest quadrant, and the signed rest: 53 bits of it and 63 more */
    qn_mv k = op(b, QN_OP_SHIFT_RIGHT, op(b, QN_OP_ADD, high, word(b, lanes, (uint64_t)1 << 61)),
                 word(b, lanes, 62));
    qn_mv rest = op(b, QN_OP_SUB, high, op(b, QN_OP_SHIFT_LEFT, k, word(b, lanes, 62)));
    qn_mv upper = op(b, QN_OP_AND, rest, word(b, lanes, ~(uint64_t)0x7ff));
    qn_mv lower =
        op(b, QN_OP_OR,
           op(b, QN_OP_SHIFT_LEFT, op(b, QN_OP_AND, rest, word(b, lanes, 0x7ff)), word(b, lanes, 52)),
           op(b, QN_OP_SHIFT_RIGHT, sum, word(b, lanes, 12)));
    qn_mv a = qn_kb_convert(b, QUERN_F64, qn_kb_bitcast(b, QUERN_I64, upper));
    qn_mv c = qn_kb_convert(b, QUERN_F64, qn_kb_bitcast(b, QUERN_I64, lower));
    a = m_mul(m, a, m_c(m, 0x1p-62));
    c = m_mul(m, c, m_c(m, 0x1p-114));
    qn_mv pio2 = m_c(m, M_PI_2);
    qn_mv r = m_fma(m, a, pio2, m_fma(m, c, pio2, m_mul(m, a, m_c(m, 6.123233995736766e-17))));
    k = qn_kb_bitcast(b, QUERN_I64, k);
    qn_mv negative = m_negative(m, x);
    quadrant q = {
        .r = m_turn_sign(m, r, m_sign(m, x)),
        .k = qn_kb_select(b, negative, qn_kb_unary(b, QN_OP_NEG, k), k),
    };
    return q;
}

/* ---- all arguments ---- */

static quadrant reduce_moderate(const qn_mb *m, qn_mv x)
{
    qn_mv magic = m_c(m, m_magic(m)), sum = m_madd(m, x, m_c(m, M_2_PI), magic), n = m_sub(m, sum, magic),
          r = x;
    for (int i = 0; i < 4; i++) {
        qn_mv part = m_c(m, -M_CONSTANT(m, pio2, i));
        r = i < 2 ? m_madd(m, n, part, r) : m_fma(m, n, part, r); /* the first two multiply exactly */
    }
    return (quadrant){ r, m_bits(m, sum) };
}

static quadrant reduce_quadrant(const qn_mb *m, qn_mv x)
{
    qn_kbuilder *b = m->b;
    quadrant q = reduce_moderate(m, x);
    qn_mv magnitude = m_abs(m, x);
    /* the bounds up to which n times the first parts of pi/2 is exact */
    qn_mv large = m_and(m, m_gt(m, magnitude, m->f64 ? 0x1.8p20 : 100000), m_lt(m, magnitude, INFINITY));
    qn_kinst *branch = qn_kb_if(b, qn_kb_reduce(b, QN_KIND_MAX, large));
    qn_mb wide = qn_mb_make(b, m->machine, qn_ktype_make(QUERN_F64, m->type.lanes));
    quadrant far = reduce_large(&wide, qn_kb_convert(b, QUERN_F64, x));
    qn_mv yields[2] = { qn_kb_convert(b, m->type.dtype, far.r), qn_kb_convert(b, m->bits.dtype, far.k) };
    yields[0] = m_sel(m, large, yields[0], q.r);
    yields[1] = m_sel(m, large, yields[1], q.k);
    qn_kb_else(b, branch, 2, yields);
    qn_kb_end_if(b, branch, 2, (qn_mv[]){ q.r, q.k });
    return (quadrant){ &branch->results[0], &branch->results[1] };
}

/* sin r and cos r for |r| <= pi/4 */
static qn_mv sine(const qn_mb *m, qn_mv r, qn_mv z)
{
    return m_madd(m, m_mul(m, r, z), M_POLY(m, z, sin), r);
}

static qn_mv cosine(const qn_mb *m, qn_mv z)
{
    qn_mv half = m_mul(m, z, m_c(m, 0.5)), one = m_c(m, 1), top = m_sub(m, one, half);
    /* what 1 - z/2 lost comes back */
    qn_mv lost = m_sub(m, m_sub(m, one, top), half);
    return m_add(m, top, m_madd(m, m_mul(m, z, z), M_POLY(m, z, cos), lost));
}

/* Odd quadrants swap sine and cosine, the second bit of k turns the sign. */
static qn_mv sine_of_quadrant(const qn_mb *m, quadrant q)
{
    qn_mv z = m_mul(m, q.r, q.r);
    qn_mv odd = qn_kb_compare(m->b, QN_NE, m_and(m, q.k, m_i(m, 1)), m_i(m, 0));
    qn_mv turn = m_shl(m, m_and(m, q.k, m_i(m, 2)), m->f64 ? 62 : 30);
    return m_turn_sign(m, m_sel(m, odd, cosine(m, z), sine(m, q.r, z)), turn);
}

qn_mv qn_math_sin(const qn_mb *m, qn_mv x)
{
    qn_mv r = sine_of_quadrant(m, reduce_quadrant(m, x));
    return m_sel(m, m_eq(m, x, 0), x, r);
}

qn_mv qn_math_cos(const qn_mb *m, qn_mv x)
{
    quadrant q = reduce_quadrant(m, m_abs(m, x));
    q.k = qn_kb_binary(m->b, QN_OP_ADD, q.k, m_i(m, 1));
    return sine_of_quadrant(m, q);
}

/* tan r, or -1 / tan r in odd quadrants */
qn_mv qn_math_tan(const qn_mb *m, qn_mv x)
{
    quadrant q = reduce_quadrant(m, x);
    qn_mv z = m_mul(m, q.r, q.r);
    qn_mv odd = qn_kb_compare(m->b, QN_NE, m_and(m, q.k, m_i(m, 1)), m_i(m, 0));
    qn_mv part = m_mul(m, m_mul(m, q.r, z), M_POLY(m, z, tan)), t = m_add(m, q.r, part);
    /* -1 / t, put right by what t lost and by the remainder of the division */
    qn_mv lost = m_add(m, m_sub(m, q.r, t), part), inverse = m_div(m, m_c(m, -1), t);
    qn_mv wrong = m_madd(m, inverse, lost, m_fma(m, inverse, t, m_c(m, 1)));
    wrong = m_sel(m, m_lt(m, m_abs(m, inverse), INFINITY), wrong, m_c(m, 0));
    qn_mv r = m_sel(m, odd, m_madd(m, inverse, wrong, inverse), t);
    return m_sel(m, m_eq(m, x, 0), x, r);
}
