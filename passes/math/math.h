/* What the expansions of passes/expand_math.c are written with: short names for building float arithmetic on f32 or f64 with
 * any number of lanes. All of it is branch-free and goes through the folding builder. */
#ifndef QN_PASSES_MATH_MATH_H
#define QN_PASSES_MATH_MATH_H

#include "ir/kernel_edit.h"
#include "passes/pass.h"

typedef struct qn_mb {
    qn_kbuilder *b;
    const qn_machine *machine;
    qn_math math;  /* strict unless said otherwise */
    qn_ktype type; /* of operand and result: f32 or f64 */
    qn_ktype bits; /* i32 or i64 */
    bool f64;
    bool nonpositive; /* the operand of exp is */
    int mantissa;     /* stored bits: 23 or 52 */
    int64_t bias;     /* 127 or 1023 */
} qn_mb;

static inline qn_mb qn_mb_make(qn_kbuilder *b, const qn_machine *machine, qn_ktype type)
{
    bool f64 = type.dtype == QUERN_F64;
    return (qn_mb){ .b = b,
                    .machine = machine,
                    .type = type,
                    .bits = { f64 ? QUERN_I64 : QUERN_I32, type.lanes },
                    .f64 = f64,
                    .mantissa = f64 ? 52 : 23,
                    .bias = f64 ? 1023 : 127 };
}

/* ---- floats ---- */

typedef qn_kvalue *qn_mv;

static inline qn_mv m_c(const qn_mb *m, double value)
{
    return qn_kb_float(m->b, m->type, value);
}
static inline qn_mv m_add(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_ADD, x, y);
}
static inline qn_mv m_sub(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_SUB, x, y);
}
static inline qn_mv m_mul(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_MUL, x, y);
}
static inline qn_mv m_div(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_DIV, x, y);
}
/* NaN where x is: y must be a constant that is none. */
static inline qn_mv m_min(const qn_mb *m, qn_mv x, double y)
{
    return qn_kb_binary(m->b, QN_OP_MIN, x, m_c(m, y));
}
static inline qn_mv m_max(const qn_mb *m, qn_mv x, double y)
{
    return qn_kb_binary(m->b, QN_OP_MAX, x, m_c(m, y));
}
static inline qn_mv m_neg(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_NEG, x);
}
static inline qn_mv m_abs(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_ABS, x);
}
static inline qn_mv m_sqrt(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_SQRT, x);
}
static inline qn_mv m_round(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_ROUND, x);
}
static inline qn_mv m_trunc(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_TRUNC, x);
}
/* x*y + z with one rounding, whatever it costs */
static inline qn_mv m_fma(const qn_mb *m, qn_mv x, qn_mv y, qn_mv z)
{
    return qn_kb_fma(m->b, x, y, z);
}
/* x*y + z the quickest way */
static inline qn_mv m_madd(const qn_mb *m, qn_mv x, qn_mv y, qn_mv z)
{
    return m->machine->fma ? qn_kb_fma(m->b, x, y, z) : m_add(m, m_mul(m, x, y), z);
}
static inline qn_mv m_scale2(const qn_mb *m, qn_mv x, qn_mv n)
{
    return qn_kb_scale2(m->b, x, n);
}

/* ---- conditions ---- */

static inline qn_mv m_sel(const qn_mb *m, qn_mv p, qn_mv x, qn_mv y)
{
    return qn_kb_select(m->b, p, x, y);
}
static inline qn_mv m_lt(const qn_mb *m, qn_mv x, double y)
{
    return qn_kb_compare(m->b, QN_LT, x, m_c(m, y));
}
static inline qn_mv m_gt(const qn_mb *m, qn_mv x, double y)
{
    return qn_kb_compare(m->b, QN_GT, x, m_c(m, y));
}
static inline qn_mv m_eq(const qn_mb *m, qn_mv x, double y)
{
    return qn_kb_compare(m->b, QN_EQ, x, m_c(m, y));
}
static inline qn_mv m_is_nan(const qn_mb *m, qn_mv x)
{
    return qn_kb_compare(m->b, QN_NE, x, x);
}
static inline qn_mv m_and(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_AND, x, y);
}
static inline qn_mv m_or(const qn_mb *m, qn_mv x, qn_mv y)
{
    return qn_kb_binary(m->b, QN_OP_OR, x, y);
}
static inline qn_mv m_not(const qn_mb *m, qn_mv x)
{
    return qn_kb_unary(m->b, QN_OP_NOT, x);
}

/* ---- bits ---- */

static inline qn_mv m_i(const qn_mb *m, int64_t value)
{
    return qn_kb_const(m->b, m->bits, (qn_scalar){ .i = value });
}
static inline qn_mv m_bits(const qn_mb *m, qn_mv x)
{
    return qn_kb_bitcast(m->b, m->bits.dtype, x);
}
static inline qn_mv m_float(const qn_mb *m, qn_mv bits)
{
    return qn_kb_bitcast(m->b, m->type.dtype, bits);
}
static inline qn_mv m_shl(const qn_mb *m, qn_mv x, int by)
{
    return qn_kb_binary(m->b, QN_OP_SHIFT_LEFT, x, m_i(m, by));
}
static inline qn_mv m_shr(const qn_mb *m, qn_mv x, int by)
{
    return qn_kb_binary(m->b, QN_OP_SHIFT_RIGHT, x, m_i(m, by));
}
/* Sign bit alone. */
static inline qn_mv m_sign(const qn_mb *m, qn_mv x)
{
    return m_and(m, m_bits(m, x), m_i(m, INT64_MIN >> (m->f64 ? 0 : 32)));
}
/* magnitude (>= 0) with the sign bit(s) of `sign` */
static inline qn_mv m_with_sign(const qn_mb *m, qn_mv magnitude, qn_mv sign)
{
    return m_float(m, m_or(m, m_bits(m, magnitude), sign));
}
/* x with its sign turned where the sign bit of `sign` is set */
static inline qn_mv m_turn_sign(const qn_mb *m, qn_mv x, qn_mv sign)
{
    return m_float(m, qn_kb_binary(m->b, QN_OP_XOR, m_bits(m, x), sign));
}
static inline qn_mv m_negative(const qn_mb *m, qn_mv x) /* by its sign bit: -0 is */
{
    return qn_kb_compare(m->b, QN_LT, m_bits(m, x), m_i(m, 0));
}

/* ---- rounding by a magic sum ----
 * x + 1.5 * 2^mantissa has the integer nearest to x in its last bits, for |x| < 2^(mantissa - 2). */

static inline double m_magic(const qn_mb *m)
{
    return m->f64 ? 0x1.8p52 : 0x1.8p23;
}
/* 2^n from a magic sum that holds n, where that is a normal number */
static inline qn_mv m_pow2(const qn_mb *m, qn_mv magic_sum)
{
    return m_float(m, qn_kb_binary(m->b, QN_OP_ADD, m_shl(m, m_bits(m, magic_sum), m->mantissa),
                                   m_i(m, m->bias << m->mantissa)));
}
/* A small integer as a float; f64 without the 64-bit conversion that many machines lack. */
static inline qn_mv m_int_to_float(const qn_mb *m, qn_mv i)
{
    if (!m->f64)
        return qn_kb_convert(m->b, m->type.dtype, i);
    qn_mv sum = qn_kb_binary(m->b, QN_OP_ADD, i, m_i(m, 0x4338000000000000));
    return m_sub(m, m_float(m, sum), m_c(m, 0x1.8p52));
}

/* c[0] + z c[1] + z^2 c[2] + … */
static inline qn_mv m_horner(const qn_mb *m, qn_mv z, const double *c, int n)
{
    qn_mv r = m_c(m, c[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        r = m_madd(m, r, z, m_c(m, c[i]));
    return r;
}
/* The polynomial `name` of coefficients.h for m's type. */
#define M_POLY(m, z, name)                                                                \
    ((m)->f64 ? m_horner((m), (z), name##_f64, (int)(sizeof name##_f64 / sizeof(double))) \
              : m_horner((m), (z), name##_f32, (int)(sizeof name##_f32 / sizeof(double))))
#define M_CONSTANT(m, name, part) ((m)->f64 ? name##_f64[part] : name##_f32[part])

/* ---- pieces ----
 * Where a table is read by one instruction, a function of f32 near 0 is a polynomial for each of QN_LOOKUP pieces. */

static inline bool m_has_pieces(const qn_mb *m)
{
    return !m->f64 && m->machine->lookup;
}
/* The function whose piece k is `degree + 1` rows of `table` in x - k * width, |x - k * width| <= width / 2; for 0 <= x <
 * (QN_LOOKUP - 1/2) * width. */
static inline qn_mv m_pieces(const qn_mb *m, qn_mv x, double width, const float (*table)[QN_LOOKUP],
                             int degree)
{
    qn_mv sum = m_madd(m, x, m_c(m, 1 / width), m_c(m, m_magic(m))), piece = m_bits(m, sum);
    qn_mv from_middle = m_madd(m, m_sub(m, sum, m_c(m, m_magic(m))), m_c(m, -width), x);
    qn_mv r = qn_kb_lookup(m->b, table[degree], piece);
    for (int i = degree - 1; i >= 0; i--)
        r = m_madd(m, r, from_middle, qn_kb_lookup(m->b, table[i], piece));
    return r;
}
#define M_PIECES(m, x, width, table) \
    m_pieces((m), (x), (width), (table), (int)(sizeof(table) / sizeof *(table)) - 1)

/* ---- the functions: what stands for fn(x), x of type m->type ---- */

qn_mv qn_math_exp(const qn_mb *m, qn_mv x);
qn_mv qn_math_exp2_nonpositive(const qn_mb *m, qn_mv x); /* 2^x, for x <= 0 and NaN, and m_has_pieces */
qn_mv qn_math_expm1(const qn_mb *m, qn_mv x);
qn_mv qn_math_sinh(const qn_mb *m, qn_mv x);
qn_mv qn_math_cosh(const qn_mb *m, qn_mv x);
qn_mv qn_math_tanh(const qn_mb *m, qn_mv x);
qn_mv qn_math_logistic(const qn_mb *m, qn_mv x);
qn_mv qn_math_silu(const qn_mb *m, qn_mv x);
qn_mv qn_math_log(const qn_mb *m, qn_mv x);
qn_mv qn_math_log1p(const qn_mb *m, qn_mv x);
qn_mv qn_math_asinh(const qn_mb *m, qn_mv x);
qn_mv qn_math_acosh(const qn_mb *m, qn_mv x);
qn_mv qn_math_atanh(const qn_mb *m, qn_mv x);
qn_mv qn_math_sin(const qn_mb *m, qn_mv x);
qn_mv qn_math_cos(const qn_mb *m, qn_mv x);
qn_mv qn_math_tan(const qn_mb *m, qn_mv x);
qn_mv qn_math_asin(const qn_mb *m, qn_mv x);
qn_mv qn_math_acos(const qn_mb *m, qn_mv x);
qn_mv qn_math_atan(const qn_mb *m, qn_mv x);
qn_mv qn_math_atan2(const qn_mb *m, qn_mv y, qn_mv x);
qn_mv qn_math_erf(const qn_mb *m, qn_mv x);
qn_mv qn_math_gelu(const qn_mb *m, qn_mv x);
qn_mv qn_math_gelu_tanh(const qn_mb *m, qn_mv x);
qn_mv qn_math_pow(const qn_mb *m, qn_mv x, qn_mv y);
qn_mv qn_math_rem(const qn_mb *m, qn_mv x, qn_mv y);

/* ---- what they share ---- */

/* x = n ln 2 + r with |r| <= ln 2 / 2, for |x| within the clamps of the caller. e^r - 1 to full precision. */
typedef struct qn_math_exp_parts {
    qn_mv sum; /* magic sum that holds n */
    qn_mv n;   /* as a float */
    qn_mv r;
    qn_mv less_one; /* e^r - 1 */
} qn_math_exp_parts;
/* `tail` is added to x, much smaller than it, after the reduction; may be NULL. */
qn_math_exp_parts qn_math_exp_reduce(const qn_mb *m, qn_mv x, qn_mv tail);

/* x = m * 2^e with m in [sqrt(1/2), sqrt(2)), for x > 0 and finite. */
typedef struct qn_math_log_parts {
    qn_mv fraction; /* m */
    qn_mv e;        /* as a float */
} qn_math_log_parts;
qn_math_log_parts qn_math_log_reduce(const qn_mb *m, qn_mv x);

#endif
