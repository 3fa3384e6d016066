/* qn_kernel_expand_math: transcendental functions become polynomials of basic instructions.
 *
 * Before: UNARY and BINARY may name any element-wise op. After: none of exp, expm1, log, log1p, sin, cos, tan, asin, acos,
 * atan, sinh, cosh, tanh, asinh, acosh, atanh, erf, logistic, gelu, gelu_tanh, silu, relu, rsqrt, pow of floats, rem of
 * floats, atan2.
 * f16 and bf16 are computed in f32 and rounded once.
 *
 *   %1 = exp %0          ->   %1 = max … %2 = mul %1, f32 1.442695 … %9 = scale2 %7, %3
 *
 * Results are within the bounds of tests/unit/test_kernel_math.c: 1 to 2 ULP, NaN, infinities, -0 and denormals right. They
 * are the same on every backend that rounds basic instructions correctly and has fma, and either reads tables by one
 * instruction or doesn't. With tables, only strict math has the far negative end of gelu and gelu_tanh right: otherwise they
 * are 0 from -5.72 on. */
#include "passes/math/math.h"

typedef struct unary_rule {
    qn_op fn;
    qn_mv (*expand)(const qn_mb *m, qn_mv x);
} unary_rule;

static qn_mv relu(const qn_mb *m, qn_mv x)
{
    return m_max(m, x, 0);
}

static qn_mv rsqrt(const qn_mb *m, qn_mv x)
{
    return m_div(m, m_c(m, 1), m_sqrt(m, x));
}

static const unary_rule unary_rules[] = {
    { QN_OP_EXP, qn_math_exp },     { QN_OP_EXPM1, qn_math_expm1 },
    { QN_OP_LOG, qn_math_log },     { QN_OP_LOG1P, qn_math_log1p },
    { QN_OP_SIN, qn_math_sin },     { QN_OP_COS, qn_math_cos },
    { QN_OP_TAN, qn_math_tan },     { QN_OP_ASIN, qn_math_asin },
    { QN_OP_ACOS, qn_math_acos },   { QN_OP_ATAN, qn_math_atan },
    { QN_OP_SINH, qn_math_sinh },   { QN_OP_COSH, qn_math_cosh },
    { QN_OP_TANH, qn_math_tanh },   { QN_OP_ASINH, qn_math_asinh },
    { QN_OP_ACOSH, qn_math_acosh }, { QN_OP_ATANH, qn_math_atanh },
    { QN_OP_ERF, qn_math_erf },     { QN_OP_LOGISTIC, qn_math_logistic },
    { QN_OP_GELU, qn_math_gelu },   { QN_OP_GELU_TANH, qn_math_gelu_tanh },
    { QN_OP_SILU, qn_math_silu },   { QN_OP_RELU, relu },
    { QN_OP_RSQRT, rsqrt },
};

static const struct {
    qn_op fn;
    qn_mv (*expand)(const qn_mb *m, qn_mv x, qn_mv y);
} binary_rules[] = {
    { QN_OP_POW, qn_math_pow },
    { QN_OP_REM, qn_math_rem },
    { QN_OP_ATAN2, qn_math_atan2 },
};

static qn_mv apply(const qn_mb *m, const qn_kinst *inst, qn_mv *o)
{
    if (inst->op == QN_K_UNARY) {
        for (size_t i = 0; i < sizeof unary_rules / sizeof *unary_rules; i++)
            if (unary_rules[i].fn == inst->fn)
                return unary_rules[i].expand(m, o[0]);
        return NULL;
    }
    for (size_t i = 0; i < sizeof binary_rules / sizeof *binary_rules; i++)
        if (binary_rules[i].fn == inst->fn)
            return binary_rules[i].expand(m, o[0], o[1]);
    return NULL;
}

static bool has_rule(const qn_kinst *inst)
{
    bool found = false;
    for (size_t i = 0; inst->op == QN_K_UNARY && i < sizeof unary_rules / sizeof *unary_rules; i++)
        found = found || unary_rules[i].fn == inst->fn;
    for (size_t i = 0; inst->op == QN_K_BINARY && i < sizeof binary_rules / sizeof *binary_rules; i++)
        found = found || binary_rules[i].fn == inst->fn;
    return found;
}

typedef struct expansion {
    const qn_machine *machine;
    qn_math math;
} expansion;

static bool is_expanded(const qn_kinst *inst, const void *user)
{
    (void)user;
    return (inst->op == QN_K_UNARY || inst->op == QN_K_BINARY) && has_rule(inst) &&
           qn_dtype_is_float(inst->operands[0]->type.dtype);
}

static bool expand(qn_krewriter *r, qn_kinst *inst)
{
    if (!is_expanded(inst, NULL))
        return false;
    qn_ktype type = inst->results[0].type, wide = type;
    if (type.dtype != QUERN_F64)
        wide.dtype = QUERN_F32;
    qn_mv o[2] = { 0 };
    for (int i = 0; i < inst->n_operands; i++)
        o[i] = qn_kb_convert(&r->b, wide.dtype, qn_kr_get(inst->operands[i]));
    r->b.fast = false; /* the sums of the expansions must not be taken apart */
    const expansion *x = r->user;
    qn_mb m = qn_mb_make(&r->b, x->machine, wide);
    m.math = x->math;
    m.nonpositive = inst->nonpositive;
    qn_kr_set(&inst->results[0], qn_kb_convert(&r->b, type.dtype, apply(&m, inst, o)));
    return true;
}

void qn_kernel_expand_math(qn_kernel *kernel, const qn_machine *machine, qn_math math)
{
    expansion x = { machine, math };
    if (qn_kblock_any(kernel->body, is_expanded, NULL))
        qn_krewrite(kernel, expand, &x);
}
