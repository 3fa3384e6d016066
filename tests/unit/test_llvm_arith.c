/* Machine code of every element-wise instruction, for every element type and 1, 4, 8 and 16 lanes, against the
 * definition in ir/kernel_eval.h, on values chosen to hurt. All vector widths run on this machine; the two CPUs are the
 * host's own and the oldest baseline. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/kernel_eval.h"
#include "tests/support/jit_kernel.h"

static const qn_dtype dtypes[] = { QUERN_BOOL, QUERN_I8,  QUERN_I16, QUERN_I32, QUERN_I64,
                                   QUERN_U8,   QUERN_U16, QUERN_U32, QUERN_U64, QUERN_F16,
                                   QUERN_BF16, QUERN_F32, QUERN_F64 };
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };
static const int lane_counts[] = { 1, 4, 8, 16 };
static const char *const cpus[] = { NULL, "x86-64-v3" };

/* ---- values ---- */

enum { N_SPECIAL = 32, N_PAIRS = N_SPECIAL * N_SPECIAL };

static uint64_t random_bits(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state ^ state >> 29;
}

static qn_scalar from_bits(qn_dtype dtype, uint64_t bits)
{
    unsigned char bytes[8];
    memcpy(bytes, &bits, 8);
    if (dtype == QUERN_BOOL)
        bytes[0] &= 1;
    return qn_scalar_load(dtype, bytes);
}

/* Zeros, ones, NaN, infinities, extremes, denormals, halves (for rounding), powers of two near integer limits, and
 * random bits. */
static void special_values(qn_dtype dtype, qn_scalar *out)
{
    static const double floats[] = { 0.0,          -0.0,       1,    -1,   NAN,    INFINITY,  -INFINITY,
                                     0.5,          1.5,        2.5,  -0.5, 1e-40,  -1e-310,   3e38,
                                     65504,        65520,      6e-8, 127,  -128.7, 255.5,     2147483648,
                                     -2147483649., 4294967296, 1e19, 7,    -3.3,   8388609.5, 9.2e18 };
    static const int64_t ints[] = {
        0,   1,    -1,  2,      -2,    3,     7,         8,         15, 16, 31,        32,        63,   64,
        127, -128, 255, -32768, 32767, 65535, INT32_MAX, INT32_MIN, -3, 10, INT64_MAX, INT64_MIN, -1000
    };
    int n = 0;
    if (qn_dtype_is_float(dtype))
        for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
            out[n++] = qn_keval_normal(dtype, (qn_scalar){ .f = floats[i] });
    else
        for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
            out[n++] = qn_keval_normal(dtype, (qn_scalar){ .i = ints[i] });
    while (n < N_SPECIAL)
        out[n++] = from_bits(dtype, random_bits());
}

/* Two arrays that hold every pair. */
static void fill_pairs(qn_dtype dtype, void *x, void *y, qn_scalar *xs, qn_scalar *ys)
{
    qn_scalar special[N_SPECIAL];
    size_t size = qn_dtype_bytes(dtype);
    special_values(dtype, special);
    for (int i = 0; i < N_PAIRS; i++) {
        xs[i] = special[i / N_SPECIAL];
        ys[i] = special[i % N_SPECIAL];
        qn_scalar_store(dtype, xs[i], (char *)x + (size_t)i * size);
        qn_scalar_store(dtype, ys[i], (char *)y + (size_t)i * size);
    }
}

static const char *show(qn_dtype dtype, qn_scalar v, qn_arena *arena)
{
    return qn_dtype_is_float(dtype) ? qn_arena_printf(arena, "%.17g (%a)", v.f, v.f)
                                    : qn_arena_printf(arena, "%lld", (long long)v.i);
}

/* ---- one kernel that does many things to every pair ---- */

typedef struct test_case {
    enum { UNARY, BINARY, COMPARE, CONVERT, BITCAST, SELECT, FMA, SCALE2 } kind;
    qn_op fn;
    qn_direction direction;
    qn_dtype from, to;
} test_case;

static qn_kvalue *build_case(qn_kbuilder *b, const test_case *c, qn_kvalue *x, qn_kvalue *y)
{
    switch (c->kind) {
    case UNARY: return qn_kb_unary(b, c->fn, x);
    case BINARY: return qn_kb_binary(b, c->fn, x, y);
    case COMPARE: return qn_kb_compare(b, c->direction, x, y);
    case CONVERT: return qn_kb_convert(b, c->to, x);
    case BITCAST: return qn_kb_bitcast(b, c->to, x);
    case SELECT: return qn_kb_select(b, qn_kb_compare(b, QN_LT, x, y), x, y);
    case FMA: return qn_kb_fma(b, x, y, x);
    case SCALE2: return qn_kb_scale2(b, x, qn_kb_unary(b, QN_OP_ROUND, y));
    }
    return NULL;
}

static qn_scalar expected(const test_case *c, qn_scalar x, qn_scalar y)
{
    switch (c->kind) {
    case UNARY: return qn_keval_unary(c->fn, c->from, x);
    case BINARY: return qn_keval_binary(c->fn, c->from, x, y);
    case COMPARE: return (qn_scalar){ .i = qn_keval_compare(c->direction, c->from, x, y) };
    case CONVERT: return qn_keval_convert(c->from, c->to, x);
    case BITCAST: return qn_keval_bitcast(c->from, c->to, x);
    case SELECT: return qn_keval_compare(QN_LT, c->from, x, y) ? x : y;
    case FMA: return qn_keval_fma(c->from, x, y, x);
    case SCALE2: return qn_keval_scale2(c->from, x, qn_keval_unary(QN_OP_ROUND, c->from, y));
    }
    return x;
}

static bool close_enough(const test_case *c, qn_scalar x, qn_scalar y, qn_scalar want, qn_scalar got)
{
    if (qn_keval_same(c->to, want, got))
        return true;
    if (!qn_dtype_is_float(c->to))
        return false;
    bool extreme = c->fn == QN_OP_MAX || c->fn == QN_OP_MIN || c->fn == QN_OP_RELU;
    if (c->kind <= BINARY && extreme && want.f == 0 && got.f == 0)
        return true; /* of two zeros either */
    if (c->kind == UNARY && c->fn == QN_OP_RSQRT)
        return fabs(got.f - want.f) <= fabs(want.f) * 1e-3; /* two roundings; f16 has 11 bits */
    double a = fabs(x.f);
    /* scale2 promises less where |x| is far from 1 or the exponent is no number */
    return c->kind == SCALE2 && (isnan(y.f) || isinf(y.f) || a < 0x1p-60 || a > 0x1p60);
}

static const char *case_name(const test_case *c)
{
    static const char *const kinds[] = { "", "", "compare", "convert", "bitcast", "select", "fma", "scale2" };
    return c->kind <= BINARY ? qn_ops[c->fn].name : kinds[c->kind];
}

static void run_cases(qn_dtype dtype, int lanes, const char *cpu, int n, const test_case *cases)
{
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = qn_kernel_new(arena, "cases");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtype, true, false, 0);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtype, true, false, 0);
    qn_kbuffer **outs = QN_NEW_ARRAY(arena, qn_kbuffer *, n);
    int64_t *args = QN_NEW_ARRAY(arena, int64_t, n + 3);
    for (int i = 0; i < n; i++)
        outs[i] = qn_kernel_add_buffer(k, qn_arena_printf(arena, "out%d", i), cases[i].to, false, true, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kinst *loop = qn_kb_for(&b, qn_kb_index(&b, 0), qn_kb_index(&b, N_PAIRS), qn_kb_index(&b, lanes),
                               QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *at = qn_loop_counter(loop);
    qn_kvalue *xv = qn_kb_load(&b, x, at, lanes), *yv = qn_kb_load(&b, y, at, lanes);
    for (int i = 0; i < n; i++)
        qn_kb_store(&b, outs[i], at, build_case(&b, &cases[i], xv, yv), NULL);
    qn_kb_end_for(&b, loop, NULL);

    qn_scalar *xs = QN_NEW_ARRAY(arena, qn_scalar, N_PAIRS), *ys = QN_NEW_ARRAY(arena, qn_scalar, N_PAIRS);
    size_t bytes = qn_dtype_bytes(dtype) * N_PAIRS;
    void *x_data = malloc(bytes), *y_data = malloc(bytes);
    fill_pairs(dtype, x_data, y_data, xs, ys);
    args[0] = -1;
    args[1] = (int64_t)x_data;
    args[2] = (int64_t)y_data;
    for (int i = 0; i < n; i++)
        args[3 + i] = (int64_t)malloc(qn_dtype_bytes(cases[i].to) * N_PAIRS);
    jit_kernel code = jit_kernel_new(k, cpu);
    code.run(args, 0);
    for (int i = 0; i < n; i++) {
        const test_case *c = &cases[i];
        for (int p = 0; p < N_PAIRS; p++) {
            qn_scalar want = expected(c, xs[p], ys[p]);
            qn_scalar got = qn_scalar_load(c->to, (char *)args[3 + i] + (size_t)p * qn_dtype_bytes(c->to));
            if (!close_enough(c, xs[p], ys[p], want, got))
                fail_msg("%s %s -> %s, %d lanes, %s: of %s, %s: %s instead of %s", case_name(c),
                         qn_dtype_name(c->from), qn_dtype_name(c->to), lanes, cpu ? cpu : "native",
                         show(dtype, xs[p], arena), show(dtype, ys[p], arena), show(c->to, got, arena),
                         show(c->to, want, arena));
        }
        free((void *)args[3 + i]);
    }
    jit_kernel_free(&code);
    free(x_data);
    free(y_data);
    qn_arena_free(arena);
}

static void run_everywhere(int n_of(qn_dtype dtype, test_case *out))
{
    test_case cases[128];
    for (size_t c = 0; c < sizeof cpus / sizeof *cpus; c++)
        for (size_t l = 0; l < sizeof lane_counts / sizeof *lane_counts; l++)
            for (int d = 0; d < N_DTYPES; d++) {
                int n = n_of(dtypes[d], cases);
                if (n > 0)
                    run_cases(dtypes[d], lane_counts[l], cpus[c], n, cases);
            }
}

/* ---- the cases ---- */

static int unary_and_binary_cases(qn_dtype dtype, test_case *out)
{
    int n = 0;
    for (qn_op fn = 0; fn < QN_N_OPS; fn++) {
        bool unary = qn_keval_is_unary(fn);
        bool coded =
            qn_keval_is_exact(fn) || fn == QN_OP_RSQRT || (fn == QN_OP_POW && !qn_dtype_is_float(dtype));
        if ((!unary && !qn_keval_is_binary(fn)) || !coded || !qn_keval_accepts(fn, dtype))
            continue;
        if (fn == QN_OP_REM && qn_dtype_is_float(dtype))
            continue; /* passes expand it */
        out[n++] = (test_case){
            .kind = unary ? UNARY : BINARY, .fn = fn, .from = dtype, .to = qn_keval_result(fn, dtype)
        };
    }
    return n;
}

static void unary_and_binary(void **state)
{
    (void)state;
    run_everywhere(unary_and_binary_cases);
}

static int other_cases(qn_dtype dtype, test_case *out)
{
    int n = 0;
    for (qn_direction d = QN_EQ; d <= QN_GE; d++)
        out[n++] = (test_case){ .kind = COMPARE, .direction = d, .from = dtype, .to = QUERN_BOOL };
    out[n++] = (test_case){ .kind = SELECT, .from = dtype, .to = dtype };
    for (int d = 0; d < N_DTYPES; d++) {
        if (dtypes[d] != dtype)
            out[n++] = (test_case){ .kind = CONVERT, .from = dtype, .to = dtypes[d] };
        bool to_bool = dtypes[d] == QUERN_BOOL || dtype == QUERN_BOOL;
        if (dtypes[d] != dtype && !to_bool && qn_dtype_bytes(dtypes[d]) == qn_dtype_bytes(dtype))
            out[n++] = (test_case){ .kind = BITCAST, .from = dtype, .to = dtypes[d] };
    }
    if (qn_dtype_is_float(dtype)) {
        out[n++] = (test_case){ .kind = FMA, .from = dtype, .to = dtype };
        out[n++] = (test_case){ .kind = SCALE2, .from = dtype, .to = dtype };
    }
    return n;
}

static void comparisons_conversions_and_the_rest(void **state)
{
    (void)state;
    run_everywhere(other_cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_and_binary),
        cmocka_unit_test(comparisons_conversions_and_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
