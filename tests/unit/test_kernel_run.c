/* The kernel interpreter on kernels whose results are written down here, and qn_kernel_simplify by what it leaves. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/support/jit_kernel.h"

static qn_status run(const qn_kernel *k, int64_t *args, int64_t tasks, const char *message)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    args[0] = -1;
    qn_status status = qn_interp_kernel(k, args, tasks, &diags);
    const char *text = qn_diags_text(&diags, arena);
    if (message ? !strstr(text, message) : *text)
        fail_msg("interpreter says \"%s\"", text);
    qn_arena_free(arena);
    return status;
}

#define POINTER(p) ((int64_t)(uintptr_t)(p))

static void test_loop(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed("kernel @bias_relu(%x: f32 in, %b: f32 in, %y: f32 out; %rows) {\n"
                                 "  %lo = imul task, 2\n"
                                 "  %top = iadd %lo, 2\n"
                                 "  %hi = min %top, %rows\n"
                                 "  for %i = %lo to %hi step 1 {\n"
                                 "    %base = imul %i, 4\n"
                                 "    for %j = 0 to 4 step 1 vector {\n"
                                 "      %at = iadd %base, %j\n"
                                 "      %v = load %x[%at] : f32\n"
                                 "      %w = load %b[%j] : f32\n"
                                 "      %s = add %v, %w\n"
                                 "      %r = max %s, f32 0\n"
                                 "      store %y[%at], %r\n"
                                 "    }\n"
                                 "  }\n"
                                 "}\n",
                                 arena);
    float x[12] = { 1, -2, 3, -4, 5, 6, -7, -8, NAN, INFINITY, -INFINITY, 0 }, b[4] = { 0.5f, 1, -1, 2 };
    float y[12] = { 0 };
    const float expected[12] = { 1.5f, 0, 2, 0, 5.5f, 7, 0, 0, NAN, INFINITY, 0, 2 };
    int64_t args[] = { -1, POINTER(x), POINTER(b), POINTER(y), 3 };
    for (int round = 0; round < 2; round++) {
        assert_int_equal(run(k, args, 2, NULL), QUERN_OK);
        for (int i = 0; i < 12; i++)
            assert_true(y[i] == expected[i] || (isnan(y[i]) && isnan(expected[i])));
        memset(y, 0, sizeof y);
        qn_kernel_simplify(k);
    }
    qn_arena_free(arena);
}

static void test_vectors(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed("kernel @v(%x: i32 in, %y: i32 out) {\n"
                                 "  local %t: i32[8]\n"
                                 "  store %t[0], i32x8 -1\n"
                                 "  %v = load %x[0] : i32x8\n"
                                 "  %r = ramp 0 : i64x8\n"
                                 "  %odd = and %r, i64x8 1\n"
                                 "  %is = compare eq %odd, i64x8 1\n"
                                 "  %w = load %x[%r] : i32x8, mask %is, other i32x8 100\n"
                                 "  %back = sub i64x8 7, %r\n"
                                 "  store %t[%back], %w, mask %is\n"
                                 "  %u = load %t[0] : i32x8\n"
                                 "  store %y[0], %u\n"
                                 "  %s = shuffle %v, %w [0, 8, 7, 15]\n"
                                 "  store %y[8], %s\n"
                                 "  %sum = reduce sum %v\n"
                                 "  %max = reduce max %v\n"
                                 "  %e = extract %v, 3\n"
                                 "  store %y[12], %sum\n"
                                 "  store %y[13], %max\n"
                                 "  store %y[14], %e\n"
                                 "}\n",
                                 arena);
    int32_t x[8] = { 1, 2, 3, 4, 5, 6, 7, 80 }, y[15] = { 0 };
    const int32_t expected[15] = { 80, -1, 6, -1, 4, -1, 2, -1, 1, 100, 80, 80, 108, 80, 4 };
    int64_t args[] = { -1, POINTER(x), POINTER(y) };
    for (int round = 0; round < 2; round++) {
        assert_int_equal(run(k, args, 1, NULL), QUERN_OK);
        assert_memory_equal(y, expected, sizeof y);
        memset(y, 0, sizeof y);
        qn_kernel_simplify(k);
    }
    qn_arena_free(arena);
}

static void test_check(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed("kernel @c(%i: i64 in, %y: i64 out) {\n"
                                 "  %v = load %i[task] : i64\n"
                                 "  %ok = compare lt %v, 10\n"
                                 "  check %ok, 42\n"
                                 "  store %y[task], %v\n"
                                 "}\n",
                                 arena);
    int64_t i[3] = { 3, 10, 5 }, y[3] = { 0 };
    int64_t args[] = { -1, POINTER(i), POINTER(y) };
    assert_int_equal(run(k, args, 3, NULL), QUERN_OK);
    assert_int_equal(args[0], 42);
    assert_true(y[0] == 3 && y[1] == 0 && y[2] == 5);

    k = kernel_parsed(
        "kernel @local(%i: i64 in) { local %t: i64[4] %v = load %i[task] : i64 store %t[%v], 1 }", arena);
    assert_int_equal(run(k, args, 3, "task 1: element 10 of t, which has 4"), QUERN_ERROR_INTERNAL);
    k = kernel_parsed(
        "kernel @step(%i: i64 in) { %v = load %i[0] : i64 %s = isub %v, 3 for %k = 0 to 4 step %s { } }",
        arena);
    assert_int_equal(run(k, args, 1, "step is not positive"), QUERN_ERROR_INTERNAL);
    qn_arena_free(arena);
}

/* Carried values are all read before any is written. */
static void test_carried(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed("kernel @fibonacci(%y: i64 out; %n) {\n"
                                 "  %a, %b = for %i = 0 to %n step 1 carry %p = 0, %q = 1 {\n"
                                 "    %s = add %p, %q\n"
                                 "    yield %q, %s\n"
                                 "  }\n"
                                 "  store %y[0], %a\n"
                                 "  %big = compare gt %a, 50\n"
                                 "  %c = if %big { yield %b } else { yield -1 }\n"
                                 "  store %y[1], %c\n"
                                 "}\n",
                                 arena);
    int64_t y[2], args[] = { -1, POINTER(y), 10 };
    for (int round = 0; round < 2; round++) {
        args[2] = 10;
        run(k, args, 1, NULL);
        assert_true(y[0] == 55 && y[1] == 89);
        args[2] = 0;
        run(k, args, 1, NULL);
        assert_true(y[0] == 0 && y[1] == -1);
        qn_kernel_simplify(k);
    }
    qn_arena_free(arena);
}

/* Each thread has values of its own; a barrier that some don't come to is a mistake. */
static void test_threads(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed("kernel @turn(%y: i64 out; %n) gpu_threads 4 each {\n"
                                 "  shared %s: i64[4]\n"
                                 "  %a = for %i = 0 to thread step 1 carry %c = 0 {\n"
                                 "    %d = iadd %c, %n\n"
                                 "    yield %d\n"
                                 "  }\n"
                                 "  store %s[thread], %a\n"
                                 "  barrier\n"
                                 "  %other = isub 3, thread\n"
                                 "  %b = load %s[%other] : i64\n"
                                 "  %few = compare lt thread, 2\n"
                                 "  %e = if %few { yield %b } else { yield -1 }\n"
                                 "  store %y[thread], %e\n"
                                 "}\n",
                                 arena);
    int64_t y[4], args[] = { -1, POINTER(y), 10 };
    for (int round = 0; round < 2; round++) {
        assert_int_equal(run(k, args, 1, NULL), QUERN_OK);
        assert_true(y[0] == 30 && y[1] == 20 && y[2] == -1 && y[3] == -1);
        qn_kernel_simplify(k);
    }
    k = kernel_parsed("kernel @warp(%y: f32 out) gpu_threads 32 each {\n"
                      "  shared %s: f16[256]\n"
                      "  %at = imul thread, 8\n"
                      "  %x = convert thread : f32\n"
                      "  %h = convert %x : f16\n"
                      "  %all = splat %h : f16x8\n"
                      "  store %s[%at], %all\n"
                      "  barrier\n"
                      "  %t = warp_load %s[%at], 1\n"
                      "  %b = shuffle %t, %t [0, 1, 2, 3]\n"
                      "  %p = warp_mma %t, %b, f32x4 0\n"
                      "  %r = reduce sum %p\n"
                      "  %o = warp_shuffle %r, 5\n"
                      "  store %y[thread], %o\n"
                      "}\n",
                      arena);
    float product[32];
    int64_t of_warp[] = { -1, POINTER(product) };
    assert_int_equal(run(k, of_warp, 1, NULL), QUERN_OK);
    /* a: columns 0 … 7 are 0 … 7 and of rows 8 … 15 are 8 … 15, the others 16 more; b's columns are all 0 … 15 by k */
    double expected[2] = { 0, 0 };
    for (int k_of_a = 0; k_of_a < 16; k_of_a++)
        for (int half = 0; half < 2; half++)
            expected[half] += (k_of_a % 8 + 8 * half + 16 * (k_of_a / 8)) * (k_of_a % 8 + 8 * (k_of_a / 8));
    for (int t = 0; t < 32; t++)
        assert_true(product[t] == (float)(2 * (expected[0] + expected[1])));
    k = kernel_parsed("kernel @alone(%y: i64 out) gpu_threads 4 each {\n"
                      "  %few = compare lt thread, 2\n"
                      "  if %few { barrier } else { }\n"
                      "}\n",
                      arena);
    int64_t none[] = { -1, POINTER(y) };
    assert_int_equal(run(k, none, 1, "a barrier that not all threads come to"), QUERN_ERROR_INTERNAL);
    qn_arena_free(arena);
}

static void test_simplify(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after;
    } cases[] = {
        /* one trip, no trip, a constant condition, dead values, equal values */
        { "kernel @k(%x: f32 inout; %n) {\n"
          "  for %i = 0 to 1 step 1 {\n"
          "    for %j = 4 to 4 step 1 { store %x[%j], f32 1 }\n"
          "    for %j = 0 to %n step 1 {\n"
          "      %a = imul %i, %n %b = iadd %a, %j %dead = exp f32 2\n"
          "      if bool true { %p = iadd %j, 1 store %x[%b], f32 2 } else { store %x[%b], f32 3 }\n"
          "      %v = load %x[%b] : f32 %u = mul %v, f32 3 %w = mul f32 3, %v\n"
          "      %s = add %u, %w store %x[%j], %s\n"
          "    }\n"
          "  }\n"
          "}\n",
          "kernel @k(%x: f32 inout; %n) {\n"
          "  for %0 = 0 to %n step 1 {\n"
          "    store %x[%0], f32 2\n"
          "    %1 = load %x[%0] : f32\n"
          "    %2 = mul %1, f32 3\n"
          "    %3 = add %2, %2\n"
          "    store %x[%0], %3\n"
          "  }\n"
          "}\n" },
        /* invariants go in front, a load only where the loop surely runs and nothing guards it; carried values that
         * only feed themselves go */
        { "kernel @k(%x: f32 in, %y: f32 out; %n [1, 100], %m) {\n"
          "  for %i = 0 to %n step 1 {\n"
          "    %t = for %j = 0 to %m step 1 carry %dead = f32 0 {\n"
          "      %row = imul %i, %m %at = iadd %row, %j\n"
          "      %first = load %x[0] : f32 %s = load %x[%n] : f32 %e = exp %s\n"
          "      %sum = add %first, %e store %y[%at], %sum\n"
          "      %d = add %dead, %first yield %d\n"
          "    }\n"
          "    %l = load %x[5] : f32 store %y[%i], %l\n"
          "  }\n"
          "}\n",
          "kernel @k(%x: f32 in, %y: f32 out; %n [1, 100], %m) {\n"
          "  %0 = load %x[5] : f32\n"
          "  for %1 = 0 to %n step 1 {\n"
          "    %2 = imul %m, %1\n"
          "    for %3 = 0 to %m step 1 {\n"
          "      %4 = iadd %2, %3\n"
          "      %5 = load %x[0] : f32\n"
          "      %6 = load %x[%n] : f32\n"
          "      %7 = exp %6\n"
          "      %8 = add %5, %7\n"
          "      store %y[%4], %8\n"
          "    }\n"
          "    store %y[%1], %0\n"
          "  }\n"
          "}\n" },
        /* a load behind a check stays behind it, and one that may see a store stays in its place */
        { "kernel @k(%x: f32 in, %y: f32 inout; %n) {\n"
          "  for %i = 0 to 8 step 1 {\n"
          "    %v = load %y[%i] : f32 store %y[%i], f32 0 %w = load %y[%i] : f32 %s = add %v, %w\n"
          "    store %y[%i], %s\n"
          "    %ok = compare lt %i, %n check %ok, 1 %z = load %x[%n] : f32 store %y[9], %z\n"
          "  }\n"
          "}\n",
          "kernel @k(%x: f32 in, %y: f32 inout; %n) {\n"
          "  for %0 = 0 to 8 step 1 {\n"
          "    %1 = load %y[%0] : f32\n"
          "    store %y[%0], f32 0\n"
          "    %2 = load %y[%0] : f32\n"
          "    %3 = add %1, %2\n"
          "    store %y[%0], %3\n"
          "    %4 = compare lt %0, %n\n"
          "    check %4, 1\n"
          "    %5 = load %x[%n] : f32\n"
          "    store %y[9], %5\n"
          "  }\n"
          "}\n" },
        /* results of a loop and of an if that nobody reads */
        { "kernel @k(%y: i64 out; %n) {\n"
          "  %a, %b, %c = for %i = 0 to %n step 1 carry %p = 0 sum, %q = 1 max, %r = 2 min {\n"
          "    %p1 = add %p, %i %q1 = max %q, %r %r1 = add %r, 5 yield %p1, %q1, %r1\n"
          "  }\n"
          "  %big = compare gt %b, 7 %d, %e = if %big { yield %a, 5 } else { yield 3, %n }\n"
          "  store %y[0], %e\n"
          "}\n",
          "kernel @k(%y: i64 out; %n) {\n"
          "  %0, %1 = for %2 = 0 to %n step 1 carry %3 = 1 max, %4 = 2 min {\n"
          "    %5 = max %3, %4\n"
          "    %6 = add %4, 5\n"
          "    yield %5, %6\n"
          "  }\n"
          "  %7 = compare gt %0, 7\n"
          "  %8 = if %7 {\n"
          "    yield 5\n"
          "  } else {\n"
          "    yield %n\n"
          "  }\n"
          "  store %y[0], %8\n"
          "}\n" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena *arena = qn_arena_new();
        qn_kernel *k = kernel_parsed(cases[i].before, arena);
        qn_diags diags;
        qn_diags_init(&diags, arena);
        for (int round = 0; round < 2; round++) {
            qn_kernel_simplify(k);
            assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
            assert_string_equal(qn_kernel_print(k, arena), cases[i].after);
        }
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loop),    cmocka_unit_test(test_vectors), cmocka_unit_test(test_check),
        cmocka_unit_test(test_carried), cmocka_unit_test(test_threads), cmocka_unit_test(test_simplify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
