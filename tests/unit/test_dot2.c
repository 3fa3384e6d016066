/* Pairs of bfloat16: the instruction as text, in the interpreter and as code, and what it does with any numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/dtype.h"
#include "tests/support/jit_kernel.h"
#include "tests/support/linear.h"

/* Of as many lanes as a register has, of more, of some and of one. */
static const char dots[] = "kernel @dots(%x: bf16 in, %y: bf16 in, %z: f32 inout) {\n"
                           "  %0 = load %x[0] : bf16x32\n"
                           "  %1 = load %y[0] : bf16x32\n"
                           "  %2 = load %z[0] : f32x16\n"
                           "  %3 = dot2 %0, %1, %2\n"
                           "  store %z[0], %3\n"
                           "  %4 = load %x[32] : bf16x64\n"
                           "  %5 = load %y[32] : bf16x2\n"
                           "  %6 = shuffle %5, %5 [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, "
                           "0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, "
                           "1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]\n"
                           "  %7 = load %z[16] : f32x32\n"
                           "  %8 = dot2 %4, %6, %7\n"
                           "  store %z[16], %8\n"
                           "  %9 = load %x[96] : bf16x8\n"
                           "  %10 = load %y[34] : bf16x8\n"
                           "  %11 = load %z[48] : f32x4\n"
                           "  %12 = dot2 %9, %10, %11\n"
                           "  store %z[48], %12\n"
                           "  %13 = load %x[104] : bf16x2\n"
                           "  %14 = load %z[52] : f32\n"
                           "  %15 = dot2 %13, %5, %14\n"
                           "  store %z[52], %15\n"
                           "}\n";
enum { X = 106, Y = 42, Z = 53 };

typedef struct operands {
    uint16_t x[X], y[Y];
    float z[Z];
} operands;

static void run_both(const qn_kernel *k, const operands *o, const char *cpu, float *expected, float *found)
{
    operands copy[2] = { *o, *o };
    int64_t args[2][4];
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    for (int i = 0; i < 2; i++) {
        const int64_t a[] = { -1, (int64_t)copy[i].x, (int64_t)copy[i].y, (int64_t)copy[i].z };
        memcpy(args[i], a, sizeof a);
    }
    assert_int_equal(qn_interp_kernel(k, args[0], 1, &diags), QUERN_OK);
    jit_kernel code = jit_kernel_new(k, cpu);
    code.run(args[1], 0);
    jit_kernel_free(&code);
    memcpy(expected, copy[0].z, sizeof copy[0].z);
    memcpy(found, copy[1].z, sizeof copy[1].z);
    qn_arena_free(arena);
}

static uint16_t bf16(double value)
{
    return (uint16_t)qn_f64_to_bf16(value);
}

static double value_of(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &wide, sizeof f);
    return f;
}

/* The operands of lane i, as the kernel pairs them. */
static void pair_of(const operands *o, int i, double *a, double *b)
{
    const int at = i < 16 ? 2 * i : i < 48 ? 32 : i < 52 ? 34 + 2 * (i - 48) : 32;
    for (int j = 0; j < 2; j++) {
        a[j] = value_of(o->x[2 * i + j]);
        b[j] = value_of(o->y[at + j]);
    }
}

static void exact_sums_are_exact(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed(dots, arena);
    assert_string_equal(qn_kernel_print(k, arena), dots);
    assert_string_equal(qn_kernel_print(qn_kernel_clone(k, arena), arena), dots);
    operands o;
    float expected[Z], found[Z];
    for (int i = 0; i < X; i++)
        o.x[i] = bf16((i * 37 % 255 - 127) / 8.0);
    for (int i = 0; i < Y; i++)
        o.y[i] = bf16((i * 91 % 255 - 127) * 4);
    for (int i = 0; i < Z; i++)
        o.z[i] = (float)(i * 1001 % 4096) / 2;
    const char *cpus[3];
    for (int c = host_cpus(cpus) - 1; c >= 0; c--) {
        run_both(k, &o, cpus[c], expected, found);
        assert_memory_equal(found, expected, sizeof found);
        for (int i = 0; i < Z; i++) {
            double a[2], b[2];
            pair_of(&o, i, a, b);
            assert_true(found[i] == o.z[i] + a[0] * b[0] + a[1] * b[1]);
        }
    }
    qn_arena_free(arena);
}

/* Two additions, each off by half of the last place of what it gives or is made of. */
static void rounding_is_small(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed(dots, arena);
    operands o;
    float results[2][Z];
    for (int i = 0; i < X; i++)
        o.x[i] = bf16(sin(i) * pow(10, i % 7));
    for (int i = 0; i < Y; i++)
        o.y[i] = bf16(cos(3 * i));
    for (int i = 0; i < Z; i++)
        o.z[i] = (float)(sin(5 * i) * pow(10, i % 5));
    const char *cpus[3];
    for (int c = host_cpus(cpus) - 1; c >= 0; c--) {
        run_both(k, &o, cpus[c], results[0], results[1]);
        for (int i = 0; i < 2 * Z; i++) {
            double a[2], b[2];
            pair_of(&o, i % Z, a, b);
            const double want = o.z[i % Z] + a[0] * b[0] + a[1] * b[1],
                         size = fabs(o.z[i % Z]) + fabs(a[0] * b[0]) + fabs(a[1] * b[1]);
            if (!(fabs(results[i / Z][i % Z] - want) <= ldexp(size, -23)))
                fail_msg("lane %d: %g is %g", i % Z, results[i / Z][i % Z], want);
        }
    }
    qn_arena_free(arena);
}

static void special_numbers(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed(dots, arena);
    operands o;
    float results[2][Z];
    for (int i = 0; i < X; i++)
        o.x[i] = bf16(1);
    for (int i = 0; i < Y; i++)
        o.y[i] = bf16(1);
    memset(o.z, 0, sizeof o.z);
    o.x[1] = bf16(INFINITY);
    o.x[3] = bf16(NAN);
    o.x[5] = bf16(-INFINITY);
    o.z[2] = INFINITY;
    o.z[3] = -INFINITY;
    o.x[8] = bf16(3e38); /* times 1, twice: more than there is */
    o.x[9] = bf16(3e38);
    o.x[10] = o.x[11] = 1; /* denormal: counts or not */
    const char *cpus[3];
    for (int c = host_cpus(cpus) - 1; c >= 0; c--) {
        run_both(k, &o, cpus[c], results[0], results[1]);
        for (int r = 0; r < 2; r++) {
            const float *z = results[r];
            assert_true(z[0] == INFINITY && isnan(z[1]) && isnan(z[2]) && z[3] == -INFINITY);
            assert_true(z[4] == INFINITY && z[5] >= 0 && z[5] <= 0x1p-132f && z[6] == 2);
        }
    }
    qn_arena_free(arena);
}

static void each_cpu_uses_what_it_has(void **state)
{
    (void)state;
    static const cpu_code cases[] = {
        { "x86_64-unknown-linux-gnu", "znver4", "vdpbf16ps", "vfmadd" },
        { "x86_64-unknown-linux-gnu", "cooperlake", "vdpbf16ps", "vfmadd" },
        { "x86_64-unknown-linux-gnu", "x86-64-v4", "vfmadd", "vdpbf16ps" },
        { "x86_64-unknown-linux-gnu", "haswell", "vfmadd", "vdpbf16ps" },
        { "aarch64-unknown-linux-gnu", "generic", "fmla", "dot" },
        { "aarch64-unknown-linux-gnu", "neoverse-n1", "fmla", "dot" },
        { "aarch64-unknown-linux-gnu", "neoverse-v1", "bfdot", "fmla" },
    };
    kernel_uses("kernel @dots(%x: bf16 in, %y: bf16 in, %z: f32 inout) {\n"
                "  %0 = load %x[0] : bf16x64\n  %1 = load %y[0] : bf16x64\n"
                "  %2 = load %z[0] : f32x32\n  %3 = dot2 %0, %1, %2\n"
                "  store %z[0], %3\n}\n",
                sizeof cases / sizeof *cases, cases);
}

static void mistakes_are_found(void **state)
{
    (void)state;
    static const char *const lines[] = { "dot2 f32x8 1, f32x8 1, f32x4 1", "dot2 bf16x8 1, f16x8 1, f32x4 1",
                                         "dot2 bf16x4 1, bf16x4 1, f32x4 1",
                                         "dot2 bf16x8 1, bf16x8 1, bf16x4 1" };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *text = qn_arena_printf(arena, "kernel @k(%%x: f32 in) {\n  %%0 = %s\n}\n", lines[i]);
        assert_null(qn_kernel_parse(text, "test", arena, &diags));
        assert_non_null(strstr(qn_diags_text(&diags, arena), "adds products of bf16"));
        qn_arena_free(arena);
    }
}

/* What is stored of sums, in vectors of any length. */
static void sums_are_rounded(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    float x[64];
    for (int i = 0; i < 64; i++)
        x[i] = (float)(sin(i) * pow(10, i % 9));
    x[3] = INFINITY;
    x[5] = 1 + ldexpf(1, -8); /* halfway, to even */
    x[6] = 1 + ldexpf(3, -8);
    const char *cpus[3];
    const int n_cpus = host_cpus(cpus);
    for (int lanes = 1; lanes <= 64; lanes *= 2) {
        const char *many = lanes > 1 ? qn_arena_printf(arena, "x%d", lanes) : "";
        const qn_kernel *k = kernel_parsed(qn_arena_printf(arena,
                                                           "kernel @round(%%x: f32 in, %%y: bf16 out) {\n"
                                                           "  %%0 = load %%x[0] : f32%s\n"
                                                           "  %%1 = convert.fast %%0 : bf16%s\n"
                                                           "  store %%y[0], %%1\n"
                                                           "}\n",
                                                           many, many),
                                           arena);
        for (int c = 0; c < n_cpus; c++) {
            uint16_t y[64] = { 0 };
            int64_t args[] = { -1, (int64_t)x, (int64_t)y };
            jit_kernel code = jit_kernel_new(k, cpus[c]);
            code.run(args, 0);
            jit_kernel_free(&code);
            for (int i = 0; i < 64; i++)
                assert_int_equal(y[i], i < lanes ? bf16(x[i]) : 0);
        }
    }
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_sums_are_exact),      cmocka_unit_test(rounding_is_small),
        cmocka_unit_test(sums_are_rounded),          cmocka_unit_test(special_numbers),
        cmocka_unit_test(each_cpu_uses_what_it_has), cmocka_unit_test(mistakes_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
