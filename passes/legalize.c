/* qn_kernel_legalize: what remains is what ir/kernel.h lists as "what a backend must implement".
 *
 *   - f16 and bf16 are only loaded, stored, moved and converted: arithmetic on them happens in f32, each result rounded
 *     once. %1 = add %0, %0 : f16   ->   %a = convert %0 : f32   %b = add %a, %a   %1 = convert %b : f16
 *     (one operation in f32, rounded to the narrow type, is correctly rounded: 24 bits are more than twice 11).
 *   - fma where the machine has none: sums and products whose error is known, rounded to odd before the last rounding
 *     (S. Boldo, G. Melquiond: Emulation of a FMA and correctly rounded sums, 2008). In f64 results beyond
 *     2^990 and products that lose bits below 2^-1074 are rounded twice. */
#include "passes/math/math.h"

/* ---- fma without the instruction ---- */

typedef struct pair {
    qn_mv high, low; /* the rounded result and its error */
} pair;

static pair exact_sum(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_mv sum = m_add(m, a, b), part = m_sub(m, sum, a);
    return (pair){ sum, m_add(m, m_sub(m, a, m_sub(m, sum, part)), m_sub(m, b, part)) };
}

/* By halves of 26 bits (Veltkamp, Dekker). */
static pair exact_product(const qn_mb *m, qn_mv a, qn_mv b)
{
    qn_mv x[2] = { a, b }, high[2], low[2], p = m_mul(m, a, b);
    for (int i = 0; i < 2; i++) {
        qn_mv spread = m_mul(m, x[i], m_c(m, 0x1p27 + 1));
        high[i] = m_sub(m, spread, m_sub(m, spread, x[i]));
        low[i] = m_sub(m, x[i], high[i]);
    }
    qn_mv e = m_sub(m, m_mul(m, high[0], high[1]), p);
    e = m_add(m, m_add(m, e, m_mul(m, high[0], low[1])), m_mul(m, low[0], high[1]));
    return (pair){ p, m_add(m, e, m_mul(m, low[0], low[1])) };
}

/* a + b rounded to odd: an inexact sum ends in a 1 bit, so the next rounding sees on which side of a tie it is. */
static qn_mv odd_sum(const qn_mb *m, qn_mv a, qn_mv b)
{
    pair s = exact_sum(m, a, b);
    qn_mv bits = m_bits(m, s.high), zero = m_c(m, 0), one = m_i(m, 1);
    qn_mv above = qn_kb_compare(m->b, QN_GT, s.low, zero), below = qn_kb_compare(m->b, QN_LT, s.low, zero);
    qn_mv even = qn_kb_compare(m->b, QN_EQ, m_and(m, bits, one), m_i(m, 0));
    /* away from zero where the error has the sign of the sum */
    qn_mv outwards = qn_kb_binary(m->b, QN_OP_XOR, above, m_negative(m, s.high));
    qn_mv other = m_sel(m, outwards, qn_kb_binary(m->b, QN_OP_ADD, bits, one),
                        qn_kb_binary(m->b, QN_OP_SUB, bits, one));
    qn_mv change = m_and(m, even, m_or(m, above, below));
    return m_float(m, m_sel(m, change, other, bits));
}

static qn_mv fma_f32(qn_kbuilder *b, const qn_machine *machine, qn_mv *o)
{
    qn_mb m = qn_mb_make(b, machine, qn_ktype_make(QUERN_F64, o[0]->type.lanes));
    qn_mv x[3];
    for (int i = 0; i < 3; i++)
        x[i] = qn_kb_convert(b, QUERN_F64, o[i]);
    return qn_kb_convert(b, QUERN_F32, odd_sum(&m, m_mul(&m, x[0], x[1]), x[2])); /* the product is exact */
}

static qn_mv fma_f64(qn_kbuilder *b, const qn_machine *machine, qn_mv *o)
{
    qn_mb m = qn_mb_make(b, machine, o[0]->type);
    qn_mv small = m_c(&m, 0x1p-200), x[2], c = o[2], large[2];
    for (int i = 0; i < 2; i++) { /* a large operand is scaled down, or its halves would overflow */
        large[i] = qn_kb_compare(b, QN_GE, m_abs(&m, o[i]), m_c(&m, 0x1p900));
        x[i] = m_sel(&m, large[i], m_mul(&m, o[i], small), o[i]);
    }
    qn_mv scaled = m_or(&m, large[0], large[1]);
    c = m_sel(&m, scaled, m_mul(&m, c, small), c);
    pair u = exact_product(&m, x[0], x[1]);
    pair t = exact_sum(&m, c, u.low);
    pair v = exact_sum(&m, u.high, t.high);
    qn_mv r = m_add(&m, v.high, odd_sum(&m, t.low, v.low));
    r = m_sel(&m, scaled, m_mul(&m, r, m_c(&m, 0x1p200)), r);
    /* zeros with their signs, infinities and NaN come from the plain sum */
    qn_mv plain = m_add(&m, m_mul(&m, o[0], o[1]), o[2]);
    qn_mv limit = m_sel(&m, scaled, m_c(&m, 0x1p820), m_c(&m, 0x1p990));
    qn_mv within = qn_kb_compare(b, QN_LT, m_abs(&m, m_add(&m, u.high, c)), limit);
    qn_mv ordinary = m_and(&m, within, qn_kb_compare(b, QN_NE, r, m_c(&m, 0)));
    return m_sel(&m, ordinary, r, plain);
}

static bool has_fma(const qn_machine *machine)
{
    return machine->fma || machine->gpu;
}

static qn_mv any_fma(qn_kbuilder *b, const qn_machine *machine, qn_mv *o)
{
    if (has_fma(machine))
        return qn_kb_fma(b, o[0], o[1], o[2]);
    b->fast = false; /* none of the sums may be taken apart */
    return o[0]->type.dtype == QUERN_F64 ? fma_f64(b, machine, o) : fma_f32(b, machine, o);
}

/* ---- f16, bf16 ---- */

static qn_mv narrow_result(qn_kbuilder *b, const qn_machine *machine, const qn_kinst *inst, qn_mv *o)
{
    switch (inst->op) {
    case QN_K_UNARY: return qn_kb_unary(b, inst->fn, o[0]);
    case QN_K_BINARY: return qn_kb_binary(b, inst->fn, o[0], o[1]);
    case QN_K_FMA: return any_fma(b, machine, o);
    case QN_K_SCALE2: return qn_kb_scale2(b, o[0], o[1]);
    case QN_K_COMPARE: return qn_kb_compare(b, inst->direction, o[0], o[1]);
    case QN_K_REDUCE: return qn_kb_reduce(b, inst->kind, o[0]);
    default: return NULL;
    }
}

/* Lanes combine pairwise, each sum rounded: a reduction in f32 would round once at the end. */
static qn_mv reduce_narrow(qn_kbuilder *b, qn_kind kind, qn_mv x)
{
    static const qn_op ops[] = {
        [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
    };
    int mask[64];
    for (int n = x->type.lanes / 2; n > 0; n /= 2) {
        qn_mv halves[2];
        for (int side = 0; side < 2; side++) {
            for (int i = 0; i < n; i++)
                mask[i] = side * n + i;
            halves[side] = n > 1 ? qn_kb_shuffle(b, x, x, n, mask) : qn_kb_extract(b, x, side);
            halves[side] = qn_kb_convert(b, QUERN_F32, halves[side]);
        }
        x = qn_kb_convert(b, x->type.dtype, qn_kb_binary(b, ops[kind], halves[0], halves[1]));
    }
    return x;
}

static bool is_narrow(const qn_kinst *inst)
{
    bool arithmetic = inst->op == QN_K_UNARY || inst->op == QN_K_BINARY || inst->op == QN_K_FMA ||
                      inst->op == QN_K_SCALE2 || inst->op == QN_K_COMPARE || inst->op == QN_K_REDUCE;
    return arithmetic && qn_dtype_is_narrow(inst->operands[0]->type.dtype);
}

static bool legalize_narrow(qn_krewriter *r, qn_kinst *inst)
{
    qn_kbuilder *b = &r->b;
    if (!is_narrow(inst))
        return false;
    qn_dtype dtype = inst->results[0].type.dtype;
    qn_mv o[3], made;
    if (inst->op == QN_K_REDUCE) {
        made = reduce_narrow(b, inst->kind, qn_kr_get(inst->operands[0]));
    } else {
        for (int i = 0; i < inst->n_operands; i++)
            o[i] = qn_kb_convert(b, QUERN_F32, qn_kr_get(inst->operands[i]));
        made = narrow_result(b, r->user, inst, o);
        if (dtype != QUERN_BOOL)
            made = qn_kb_convert(b, dtype, made);
    }
    qn_kr_set(&inst->results[0], made);
    return true;
}

static bool legalize(qn_krewriter *r, qn_kinst *inst)
{
    if (legalize_narrow(r, inst))
        return true;
    if (inst->op != QN_K_FMA)
        return false;
    qn_mv o[3];
    for (int i = 0; i < 3; i++)
        o[i] = qn_kr_get(inst->operands[i]);
    qn_kr_set(&inst->results[0], any_fma(&r->b, r->user, o));
    return true;
}

static bool is_illegal(const qn_kinst *inst, const void *machine)
{
    return is_narrow(inst) || (inst->op == QN_K_FMA && !has_fma(machine));
}

void qn_kernel_legalize(qn_kernel *kernel, const qn_machine *machine)
{
    if (qn_kblock_any(kernel->body, is_illegal, machine))
        qn_krewrite(kernel, legalize, (void *)machine);
}
