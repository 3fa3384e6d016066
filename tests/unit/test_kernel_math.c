/* qn_kernel_expand_math against libm: error in units in the last place, over edge values and random sweeps, f32 judged in
 * double and f64 in long double. QUERN_MATH_SAMPLES sets how many random values each function gets. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/kernel_edit.h"
#include "passes/math/math.h"

typedef long double real;

static real ref_logistic(real x)
{
    return x >= 0 ? 1 / (1 + expl(-x)) : expl(x) / (1 + expl(x));
}
static real ref_gelu(real x)
{
    return x == -INFINITY ? -0.0L : x * 0.5L * erfcl(-x * 0.70710678118654752440084436210485L);
}
static real ref_gelu_tanh(real x)
{
    real inside = sqrtl(2 / acosl(-1)) * (x + 0.044715L * x * x * x);
    return x == -INFINITY ? -0.0L
           : x < 0        ? x * expl(2 * inside) / (1 + expl(2 * inside))
                          : x / (1 + expl(-2 * inside));
}
static real ref_silu(real x)
{
    return x == -INFINITY ? -0.0L : x < 0 ? x * expl(x) / (1 + expl(x)) : x / (1 + expl(-x));
}
static real ref_relu(real x)
{
    return x > 0 || x != x ? x : 0;
}
static real ref_rsqrt(real x)
{
    return 1 / sqrtl(x);
}

typedef struct function {
    qn_op fn;
    real (*one)(real);
    real (*two)(real, real);
    double f32, f64;  /* largest error in ULP */
    double low, high; /* where half of the random values lie */
} function;

static const function functions[] = {
    { QN_OP_EXP, expl, NULL, 1.1, 1, -110, 95 },
    { QN_OP_EXPM1, expm1l, NULL, 2, 2, -25, 95 },
    { QN_OP_LOG, logl, NULL, 1, 1, 0, 10 },
    { QN_OP_LOG1P, log1pl, NULL, 1.5, 1.5, -1, 10 },
    { QN_OP_SIN, sinl, NULL, 1.5, 1.5, -1e5, 1e5 },
    { QN_OP_COS, cosl, NULL, 1.5, 1.5, -100, 100 },
    { QN_OP_TAN, tanl, NULL, 2, 2, -20, 20 },
    { QN_OP_ASIN, asinl, NULL, 2, 2, -1, 1 },
    { QN_OP_ACOS, acosl, NULL, 2, 2, -1, 1 },
    { QN_OP_ATAN, atanl, NULL, 2, 2, -5, 5 },
    { QN_OP_SINH, sinhl, NULL, 2, 2, -12, 12 },
    { QN_OP_COSH, coshl, NULL, 2, 2, -90, 90 },
    { QN_OP_TANH, tanhl, NULL, 2.25, 2, -10, 10 },
    { QN_OP_ASINH, asinhl, NULL, 2, 2, -10, 10 },
    { QN_OP_ACOSH, acoshl, NULL, 2.5, 2.5, 1, 20 },
    { QN_OP_ATANH, atanhl, NULL, 2, 2, -1, 1 },
    { QN_OP_ERF, erfl, NULL, 2, 2, -5, 5 },
    { QN_OP_LOGISTIC, ref_logistic, NULL, 2.25, 2.25, -105, 20 },
    { QN_OP_GELU, ref_gelu, NULL, 6, 6, -14, 8 },
    { QN_OP_GELU_TANH, ref_gelu_tanh, NULL, 300, 2000, -10, 8 }, /* e^2u takes the error of 2u times |2u| */
    { QN_OP_SILU, ref_silu, NULL, 3, 3, -100, 20 },
    { QN_OP_RELU, ref_relu, NULL, 0, 0, -3, 3 },
    { QN_OP_RSQRT, ref_rsqrt, NULL, 1.5, 1.5, 0, 10 },
    { QN_OP_POW, NULL, powl, 1, 1.5, 0, 20 },
    { QN_OP_REM, NULL, fmodl, 0, 0, -100, 100 },
    { QN_OP_ATAN2, NULL, atan2l, 2, 2, -5, 5 },
};
enum { N_FUNCTIONS = sizeof functions / sizeof *functions, LANES = 16 };

static uint64_t random_state = 1;
static uint64_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = random_state ^ (random_state >> 29);
    return x * 0xbf58476d1ce4e5b9u ^ (x >> 32);
}

/* Half of them uniform in [low, high], half of them any bits. */
static double random_value(qn_dtype dtype, double low, double high, bool any)
{
    uint64_t bits = random_bits();
    if (!any) {
        double v = low + (high - low) * ((double)(bits >> 11) * 0x1p-53);
        return dtype == QUERN_F32 ? (float)v : v;
    }
    if (dtype == QUERN_F64) {
        double v;
        memcpy(&v, &bits, sizeof v);
        return v;
    }
    uint32_t half = (uint32_t)(bits >> 13);
    float v;
    memcpy(&v, &half, sizeof v);
    return v;
}

static const double edges[] = {
    0,
    1,
    2,
    3,
    0.5,
    0.25,
    0.75,
    1.5,
    10,
    100,
    1000,
    65504,
    1e5,
    100001,
    1e6,
    1e9,
    1e10,
    1e15,
    1e20,
    1e30,
    1e-3,
    1e-5,
    1e-10,
    1e-20,
    1e-30,
    1e-38,
    1e-40,
    1e-45,
    0.6931471805599453,
    1.5707963267948966,
    3.141592653589793,
    4.71238898038469,
    0.7853981633974483,
    0.41421356,
    2.41421356,
    0.70710678,
    1.41421356,
    88,
    88.5,
    88.722839,
    88.73,
    89,
    87.3,
    103.97,
    103.98,
    104,
    89.41,
    110,
    709.7,
    709.79,
    710.4,
    745.1,
    745.2,
    746,
    0.99999994,
    1.0000001,
    0.9999999,
    8388608,
    16777216,
    16777217,
    2147483648.0,
    4503599627370496.0,
    9007199254740992.0,
    18014398509481984.0,
    3.4028234e38,
    1.17549435e-38,
    1.1754942e-38,
    1.4e-45,
    1.7976931348623157e308,
    2.2250738585072014e-308,
    2.225073858507201e-308,
    4.9e-324,
    1e300,
    1e-300,
    6381956970095103.0,
    INFINITY,
    NAN,
    13.2,
    13.4,
    14.2,
    5.9,
    6,
    4,
    3.9,
    0.9999,
    1.0001,
    37,
    38.5,
    39,
    7,
    33,
    63,
};
enum { N_EDGES = sizeof edges / sizeof *edges };

static qn_kernel *build(qn_arena *arena, const function *f, qn_dtype dtype, const qn_machine *machine,
                        qn_math math)
{
    qn_kernel *k = qn_kernel_new(arena, "math");
    qn_kbuffer *in[2] = { qn_kernel_add_buffer(k, "x", dtype, true, false, 0),
                          qn_kernel_add_buffer(k, "y", dtype, true, false, 0) };
    qn_kbuffer *out = qn_kernel_add_buffer(k, "r", dtype, false, true, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *index = qn_kb_imul(&b, qn_kb_task(&b), qn_kb_index(&b, LANES));
    qn_kvalue *x = qn_kb_load(&b, in[0], index, LANES), *y = qn_kb_load(&b, in[1], index, LANES);
    qn_kvalue *r = f->two ? qn_kb_binary(&b, f->fn, x, y) : qn_kb_unary(&b, f->fn, x);
    qn_kb_store(&b, out, index, r, NULL);
    qn_kernel_expand_math(k, machine, math);
    qn_kernel_legalize(k, machine);
    qn_kernel_simplify(k);
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_kernel_verify(k, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
    for (qn_kinst *inst = k->body->first; inst; inst = inst->next)
        assert_false((inst->op == QN_K_UNARY || inst->op == QN_K_BINARY) && inst->fn == f->fn);
    return k;
}

/* Spacing of the floats around v. */
static real ulp(qn_dtype dtype, real v)
{
    int exponent, digits = dtype == QUERN_F32 ? FLT_MANT_DIG : DBL_MANT_DIG;
    int least = dtype == QUERN_F32 ? FLT_MIN_EXP : DBL_MIN_EXP;
    frexpl(v, &exponent);
    return ldexpl(1, (exponent < least ? least : exponent) - digits);
}

static bool narrow_is_inf(qn_dtype dtype, real v)
{
    return isinf(dtype == QUERN_F32 ? (real)(float)v : (real)(double)v);
}

/* Error in ULP; a huge number where NaN, infinity or the sign of zero is wrong. */
static double error_of(qn_dtype dtype, real wanted, double got)
{
    if (isnan(wanted) || isnan(got))
        return isnan(wanted) && isnan(got) ? 0 : 1e30;
    if (wanted == 0 || got == 0)
        if (wanted == got && !signbit(wanted) != !signbit(got))
            return 1e30;
    if (isinf(wanted) || isinf(got)) {
        if (wanted == got)
            return 0;
        real top = dtype == QUERN_F32 ? FLT_MAX : DBL_MAX;
        /* just below or above the largest float either may be right */
        if (!isinf(wanted) && (narrow_is_inf(dtype, wanted) || fabsl(wanted) > top - 2 * ulp(dtype, top)))
            return !signbit(wanted) == !signbit(got) ? 0 : 1e30;
        return 1e30;
    }
    return (double)(fabsl(wanted - got) / ulp(dtype, wanted));
}

static void load_value(qn_dtype dtype, void *at, size_t i, double v)
{
    if (dtype == QUERN_F32)
        ((float *)at)[i] = (float)v;
    else
        ((double *)at)[i] = v;
}

static double get_value(qn_dtype dtype, const void *at, size_t i)
{
    return dtype == QUERN_F32 ? ((const float *)at)[i] : ((const double *)at)[i];
}

static size_t n_samples(void)
{
    const char *text = getenv("QUERN_MATH_SAMPLES");
    return text ? (size_t)atoll(text) : 3000;
}

static void measure(const function *f, qn_dtype dtype, const qn_machine *machine, double bound)
{
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = build(arena, f, dtype, machine, QN_MATH_STRICT);
    size_t n_edges = f->two ? (size_t)4 * N_EDGES * N_EDGES : 2 * N_EDGES;
    size_t n = (n_edges + n_samples() + LANES - 1) / LANES * LANES;
    void *x = calloc(n, 8), *y = calloc(n, 8), *r = calloc(n, 8);
    for (size_t i = 0; i < n; i++) {
        double a, c = 0;
        if (i < n_edges) {
            size_t e = i % (2 * N_EDGES), g = i / (2 * N_EDGES);
            a = e < N_EDGES ? edges[e] : -edges[e - N_EDGES];
            c = g < N_EDGES ? edges[g] : -edges[g - N_EDGES];
        } else {
            a = random_value(dtype, f->low, f->high, i % 2);
            c = f->fn == QN_OP_POW && i % 3 ? random_value(dtype, -30, 30, false)
                                            : random_value(dtype, f->low, f->high, i % 4 == 1);
        }
        load_value(dtype, x, i, a);
        load_value(dtype, y, i, c);
    }
    int64_t args[] = { -1, (int64_t)(uintptr_t)x, (int64_t)(uintptr_t)y, (int64_t)(uintptr_t)r };
    qn_diags diags;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_interp_kernel(k, args, (int64_t)(n / LANES), &diags), QUERN_OK);
    double worst = 0, worst_x = 0, worst_y = 0, worst_got = 0;
    for (size_t i = 0; i < n; i++) {
        double a = get_value(dtype, x, i), c = get_value(dtype, y, i), got = get_value(dtype, r, i);
        double error = error_of(dtype, f->two ? f->two(a, c) : f->one(a), got);
        if (error > worst) {
            worst = error;
            worst_x = a;
            worst_y = c;
            worst_got = got;
        }
    }
    if (worst > bound || getenv("QUERN_MATH_SAMPLES"))
        print_message("%-9s %s: %.3g ULP at %.17g, %.17g: %.17g, not %.17Lg\n", qn_ops[f->fn].name,
                      qn_dtype_name(dtype), worst, worst_x, worst_y, worst_got,
                      f->two ? f->two(worst_x, worst_y) : f->one(worst_x));
    free(x);
    free(y);
    free(r);
    qn_arena_free(arena);
    assert_true(worst <= bound);
}

static const qn_machine with_fma = {
    .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true
};

static const qn_machine with_tables = {
    .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true, .lookup = true
};

static void test_tables(void **state)
{
    (void)state;
    for (int i = 0; i < N_FUNCTIONS; i++)
        measure(&functions[i], QUERN_F32, &with_tables, functions[i].f32);
}

/* Where math isn't strict, gelu is exact to parts of |x| only, and 0 far below. */
static void test_gelu_of_tables(void **state)
{
    (void)state;
    for (int i = 0; i < N_FUNCTIONS; i++) {
        const function *f = &functions[i];
        if (f->fn != QN_OP_GELU && f->fn != QN_OP_GELU_TANH)
            continue;
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        float x[LANES], y[LANES], special[LANES] = { INFINITY, -INFINITY, NAN, 0, -1e30f, 1e30f, -6, 1e-40f };
        int64_t args[] = { -1, (int64_t)(uintptr_t)x, (int64_t)(uintptr_t)x, (int64_t)(uintptr_t)y };
        qn_kernel *k = build(arena, f, QUERN_F32, &with_tables, QN_MATH_DEFAULT);
        for (int at = -4096; at < 4096; at += LANES) {
            for (int lane = 0; lane < LANES; lane++)
                x[lane] = (float)(at + lane) * 0x1.8p-9f;
            assert_int_equal(qn_interp_kernel(k, args, 1, &diags), QUERN_OK);
            for (int lane = 0; lane < LANES; lane++) {
                const real wanted = f->one(x[lane]), error = fabsl(y[lane] - wanted);
                if (error > fabsl((real)x[lane]) * 0x1p-24L ||
                    (x[lane] > 0 && error > 1.5L * ulp(QUERN_F32, wanted)) ||
                    (x[lane] < 0 && x[lane] > -5.7f && error > -0x1p-16L * wanted))
                    fail_msg("%s of %.9g: %.9g, not %.9Lg", qn_ops[f->fn].name, x[lane], y[lane], wanted);
            }
        }
        memcpy(x, special, sizeof x);
        assert_int_equal(qn_interp_kernel(k, args, 1, &diags), QUERN_OK);
        assert_true(y[0] == INFINITY && y[1] == 0 && isnan(y[2]) && y[3] == 0 && y[4] == 0 && y[5] == 1e30f &&
                    y[6] == 0);
        assert_true(y[7] == 0.5f * 1e-40f);
        qn_arena_free(arena);
    }
}

static void test_f32(void **state)
{
    (void)state;
    for (int i = 0; i < N_FUNCTIONS; i++)
        measure(&functions[i], QUERN_F32, &with_fma, functions[i].f32);
}

static void test_f64(void **state)
{
    (void)state;
    for (int i = 0; i < N_FUNCTIONS; i++)
        measure(&functions[i], QUERN_F64, &with_fma, functions[i].f64);
}

/* Without fma the sums round once more. */
static void test_without_fma(void **state)
{
    (void)state;
    static const qn_machine plain = { .vector_bytes = 16, .vector_registers = 16 };
    for (int i = 0; i < N_FUNCTIONS; i++) {
        measure(&functions[i], QUERN_F32, &plain, functions[i].f32 * 1.5);
        measure(&functions[i], QUERN_F64, &plain, functions[i].f64 * 1.5);
    }
}

/* What attention takes of scores: every binade down to 0, and what has no place among numbers. */
static void test_powers_of_two(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float x[N], r[N];
    static const float special[] = { 0,       -0.f,    -INFINITY, NAN,     -150,
                                     -150.5f, -149.5f, -1e30f,    -1e-30f, -126.25f };
    for (int i = 0; i < N; i++)
        x[i] = i < (int)(sizeof special / sizeof *special) ? special[i]
                                                           : (float)random_value(QUERN_F32, -155, 0, false);
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = qn_kernel_new(arena, "powers");
    qn_kbuffer *in = qn_kernel_add_buffer(k, "x", QUERN_F32, true, false, 0);
    qn_kbuffer *out = qn_kernel_add_buffer(k, "r", QUERN_F32, false, true, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *index = qn_kb_imul(&b, qn_kb_task(&b), qn_kb_index(&b, LANES));
    const qn_mb m = qn_mb_make(&b, &with_tables, (qn_ktype){ QUERN_F32, LANES });
    qn_kb_store(&b, out, index, qn_math_exp2_nonpositive(&m, qn_kb_load(&b, in, index, LANES)), NULL);
    int64_t args[] = { -1, (int64_t)(uintptr_t)x, (int64_t)(uintptr_t)r };
    qn_diags diags;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
    assert_int_equal(qn_interp_kernel(k, args, N / LANES, &diags), QUERN_OK);
    for (int i = 0; i < N; i++) {
        const double error = error_of(QUERN_F32, exp2l(x[i]), r[i]);
        if (!(error <= 1.8) && !(r[i] == 0 && x[i] < -150))
            fail_msg("2^%.9g is %.9g, %.3g ULP off", (double)x[i], (double)r[i], error);
    }
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),         cmocka_unit_test(test_f64),
        cmocka_unit_test(test_tables),      cmocka_unit_test(test_gelu_of_tables),
        cmocka_unit_test(test_without_fma), cmocka_unit_test(test_powers_of_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
