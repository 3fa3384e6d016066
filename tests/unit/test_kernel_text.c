/* Kernels as text: what is parsed prints the same to the letter, mistakes are reported where they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/kernel_edit.h"
#include "ir/strbuf.h"

static const char everything[] =
    "kernel @all.of_it(%x: f32 in, %y: f32 out align 64 inplace %x, %h: f16 inout, %q: i8 in, %idx: i64 in, "
    "%u: u64 "
    "unused; %rows, %n [0, 1024] multiple 16) gpu_threads 128 flops 2000000 bytes 1234.5 {\n"
    "  local %tile: f32[1024]\n"
    "  local %odd: bool[3] align 1\n"
    "  shared %stage: f64[16]\n"
    "  %0 = imul task, 64\n"
    "  %1 = iadd %0, 64\n"
    "  %2 = min %1, %rows\n"
    "  %3 = isub %2, -5\n"
    "  %4 = idiv %n, 3\n"
    "  %5 = imod %n, 3\n"
    "  %6, %7 = for %8 = %0 to %2 step 1 vector 16 carry %9 = f32 0 sum, %10 = f32 -inf max {\n"
    "    %11 = load %x[%8] : f32\n"
    "    %12 = mul.fast %11, f32 0.1\n"
    "    %13 = exp.nonpositive %12\n"
    "    %14 = fma %12, %13, f32 -0\n"
    "    %15 = compare lt %14, %11\n"
    "    %16 = select %15, %14, f32 nan\n"
    "    %17 = is_nan %16\n"
    "    %18 = not %17\n"
    "    %19 = convert %16 : i32\n"
    "    %20 = bitcast %16 : u32\n"
    "    %21 = shift_right %20, u32 4294967295\n"
    "    %22 = scale2 %16, f32 3\n"
    "    store %y[%8], %22\n"
    "    check %18, 12\n"
    "    %23 = add %9, %22\n"
    "    %24 = max %10, %22\n"
    "    yield %23, %24\n"
    "  }\n"
    "  %25 = ramp %0 : i64x16\n"
    "  %26 = splat %6 : f32x16\n"
    "  %27 = compare ge %25, i64x16 7\n"
    "  %28 = load %x[%25] : f32x16, mask %27, other %26\n"
    "  %29 = load %x[%0] : f32x16, mask %27\n"
    "  %30 = load %h[0] : f16x4\n"
    "  %31 = add %30, f16x4 0.333\n"
    "  store %h[4], %31 nontemporal\n"
    "  store %tile[%0], %29, mask %27 nontemporal\n"
    "  store %tile[%25], %28\n"
    "  %32 = extract %29, 15\n"
    "  %33 = shuffle %29, %28 [0, 16, 1, 17]\n"
    "  %34 = reduce prod %33\n"
    "  %35 = reduce min %27\n"
    "  prefetch %x[%0], 2\n"
    "  atomic_add %stage[5], f64 1e-300\n"
    "  barrier\n"
    "  %36, %37 = if %35 {\n"
    "    yield %34, i8 -3\n"
    "  } else {\n"
    "    for %38 = 0 to 4 step 1 unroll {\n"
    "      store %tile[%38], %32\n"
    "    }\n"
    "    for %39 = 0 to %n step 16 gpu_thread {\n"
    "      if bool true {\n"
    "        store %odd[2], bool false\n"
    "      }\n"
    "    }\n"
    "    yield %7, i8 127\n"
    "  }\n"
    "}\n";

static void test_round_trip(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_kernel *k = qn_kernel_parse(everything, "all.qn", arena, &diags);
    assert_string_equal(qn_diags_text(&diags, arena), "");
    assert_non_null(k);
    assert_string_equal(qn_kernel_print(k, arena), everything);
    /* A clone is the same and stands alone. */
    qn_arena *other = qn_arena_new();
    qn_kernel *copy = qn_kernel_clone(k, other);
    const char *canonical = qn_kernel_canonical(k, other);
    qn_arena_free(arena);
    qn_diags_init(&diags, other);
    assert_int_equal(qn_kernel_verify(copy, &diags), QUERN_OK);
    assert_string_equal(qn_kernel_print(copy, other), everything);
    assert_string_equal(qn_kernel_canonical(copy, other), canonical);
    assert_null(strstr(canonical, "rows"));
    qn_arena_free(other);
}

static void test_names(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const char *text = "kernel @\"a \\\"b\\\" \\x41\\n\"(%x: f32 inout;\n"
                       "  %n) { # a comment\n"
                       "  for %i = 0 to %n step 1 { %v = load %x[%i] : f32\n"
                       "    %w = add %v, f32 1 store %x[%i], %w } }";
    qn_kernel *k = qn_kernel_parse(text, "names.qn", arena, &diags);
    assert_string_equal(qn_diags_text(&diags, arena), "");
    assert_string_equal(k->name, "a \"b\" A\n");
    assert_string_equal(qn_kernel_print(k, arena), "kernel @\"a \\\"b\\\" A\\n\"(%x: f32 inout; %n) {\n"
                                                   "  for %0 = 0 to %n step 1 {\n"
                                                   "    %1 = load %x[%0] : f32\n"
                                                   "    %2 = add %1, f32 1\n"
                                                   "    store %x[%0], %2\n"
                                                   "  }\n"
                                                   "}\n");
    /* Names that can't be written are made so, and made different. */
    qn_kernel *named = qn_kernel_new(arena, "k");
    qn_kernel_add_buffer(named, "/layer/1", QUERN_F32, true, false, 0);
    qn_kernel_add_buffer(named, "/layer/1", QUERN_F32, true, false, 0);
    qn_kernel_add_param(named, "1st", 0, 5, 1);
    assert_string_equal(qn_kernel_print(named, arena),
                        "kernel @k(%__layer_1: f32 in, %__layer_1.1: f32 in; %_1st [0, 5]) {\n}\n");
    qn_arena_free(arena);
}

static void test_mistakes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        { "kernal @k() {}", "m.qn:1:1: expected 'kernel'" },
        { "kernel @k(%x: f31 in) {}", "'f31' is no dtype of kernels" },
        { "kernel @k(%x: f32 in, %x: f32 in) {}", "%x has two definitions" },
        { "kernel @k() { local %t: f32[100000000] }", "is not between 0 and" },
        { "kernel @k() { local %t: f64[40000] }", "kernel's local memory is" },
        { "kernel @k() { %0 = add 1 }", "add has 1 operands" },
        { "kernel @k() { %0 = add 1, f32 2 }", "operands are" },
        { "kernel @k() { %0 = floor 1 }", "floor does not take i64" },
        { "kernel @k() {\n  %0 = frob 1 }", "m.qn:2:12: 'frob' is no kernel instruction" },
        { "kernel @k() {\n  %0 = exp f32 1 %1 = log.nonpositive %0 }",
          "m.qn:2:38: 'log.nonpositive' is no kernel instruction" },
        { "kernel @k() { %0 = add %1, 2 }", "%1 is not defined here" },
        { "kernel @k() { %0, %1 = add 3, 2 }", "2 names for 1 results" },
        { "kernel @k() { for %i = 0 to 4 step 0 { } }", "step is not positive" },
        { "kernel @k(;%n) { for %i = 0 to %n step 1 unroll { } }", "bounds are not constant" },
        { "kernel @k() { %a = for %i = 0 to 4 step 1 carry %c = f32 0 { } }",
          "yields 0 values, 1 are wanted" },
        { "kernel @k() { %a = for %i = 0 to 4 step 1 carry %c = f32 0 { yield %i } }",
          "is a i64, not a f32" },
        { "kernel @k() { for %i = 0 to 4 step 1 { } %0 = add %i, 1 }", "%i is not defined here" },
        { "kernel @k() { %r = if bool true { yield 1 } else { } }", "yield 1 and 0 values" },
        { "kernel @k(%x: f32 in) { store %x[0], f32 1 }", "declared otherwise" },
        { "kernel @k(%x: f32 in) { %0 = load %x[0] : f64 }", "which holds f32" },
        { "kernel @k(%x: f32 in) { %0 = load %x[0] : f32x3 }", "no type" },
        { "kernel @k() { local %t: f32[4] %0 = load %t[1] : f32x4 }", "element 1 of %t, which has 4" },
        { "kernel @k() { barrier }", "no gpu_threads" },
        { "kernel @k() gpu_threads 32 { %0 = iadd thread, 1 }", "expected" },
        { "kernel @k() gpu_threads 32 each { check bool true, 3 }", "leave the other threads waiting" },
        { "kernel @k() gpu_threads 32 each { %0 = warp_shuffle f32 1, 32 }", "differ by 1 to 31" },
        { "kernel @k() gpu_threads 32 { %0 = warp_shuffle f32 1, 1 }", "whole warps" },
        { "kernel @k() gpu_threads 32 each { %0 = warp_mma f16x8 1, f16x8 1, f32x4 0 }",
          "multiplies 8 by 4" },
        { "kernel @k() gpu_threads 32 each { shared %t: f32[64] %0 = warp_load %t[0], 0 }", "bf16 and f16" },
        { "kernel @k() gpu_threads 32 each { local %t: f32[4] }", "has no local memory" },
        { "kernel @k() gpu_threads 32 each { for %i = 0 to 4 step 1 gpu_thread { } }", "one of each thread" },
        { "kernel @k() { %0 = extract i32x4 1, 4 }", "lane 4 of i32x4" },
        { "kernel @k() { %0 = shuffle i32x2 1, i32x2 1 [0, 4] }", "takes lane 4 of 4" },
        { "kernel @k() { %0 = add i8 200, i8 1 }", "expected a constant of i8" },
        { "kernel @k() { yield 1 }", "yields nothing" },
        { "kernel @k() { } x", "expected the end" },
        { "kernel @k() { ", "expected '}'" },
        { "kernel @k(; %n [5, 2]) { }", "is not between" },
        { "", "expected 'kernel'" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        assert_null(qn_kernel_parse(cases[i].text, "m.qn", arena, &diags));
        const char *text = qn_diags_text(&diags, arena);
        if (!strstr(text, cases[i].message))
            fail_msg("%s\ngives \"%s\", not \"%s\"", cases[i].text, text, cases[i].message);
        qn_arena_free(arena);
    }
}

/* `item` so many times, with commas between; %d in it is the number. */
static const char *repeated(const char *item, int n, qn_arena *arena)
{
    qn_strbuf text = { .arena = arena };
    for (int i = 0; i < n; i++) {
        qn_strbuf_puts(&text, i ? ", " : "");
        qn_strbuf_printf(&text, item, i);
    }
    return qn_strbuf_text(&text);
}

static void test_long_lists(void **state)
{
    (void)state;
    static const struct {
        const char *kernel, *item, *message;
        int n;
    } cases[] = {
        { "kernel @k() { %s = add 1, 2 }", "%%r%d", "an instruction has at most 64 results", 65 },
        { "kernel @k() { %s = add 1, 2 }", "%%r%d", "64 names for 1 results", 64 },
        { "kernel @k() { if bool true { yield %s } }", "%d", "too many operands", 65 },
        { "kernel @k() { %%0 = shuffle i32x2 1, i32x2 1 [%s] }", "%d", "at most 64 lanes", 65 },
        { "kernel @k() { for %%i = 0 to 4 step 1 carry %s { } }", "%%c%d = f32 0", "carries at most 60", 61 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *list = repeated(cases[i].item, cases[i].n, arena);
        assert_null(qn_kernel_parse(qn_arena_printf(arena, cases[i].kernel, list), "m.qn", arena, &diags));
        if (!strstr(qn_diags_text(&diags, arena), cases[i].message))
            fail_msg("%s gives %s", cases[i].message, qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

/* Every prefix of a kernel is refused without harm. */
static void test_prefixes(void **state)
{
    (void)state;
    char cut[sizeof everything];
    for (size_t n = 0; n + 2 < sizeof everything; n += 3) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        memcpy(cut, everything, n);
        cut[n] = 0;
        assert_null(qn_kernel_parse(cut, "cut.qn", arena, &diags));
        assert_int_equal(diags.n_errors, 1);
        qn_arena_free(arena);
    }
}

/* What the builder would not make is found by the verifier. */
static void test_verify(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_kernel *k = qn_kernel_new(arena, "k");
    qn_kbuilder b = qn_kb_new(k);
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_I64, true, true, 0);
    qn_kvalue *a = qn_kb_load(&b, x, qn_kb_index(&b, 0), 1);
    qn_kvalue *sum = qn_kb_binary(&b, QN_OP_ADD, a, a);
    qn_kb_store(&b, x, qn_kb_index(&b, 1), sum, NULL);
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
    qn_kinst_unlink(a->inst);
    qn_kblock_insert(k->body, a->inst, NULL); /* after its use */
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_ERROR_INTERNAL);
    assert_non_null(strstr(qn_diags_text(&diags, arena), "reads operand 0 before its definition"));
    qn_kinst_unlink(a->inst);
    qn_kblock_insert(k->body, a->inst, sum->inst);
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
    sum->type.lanes = 3;
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_ERROR_INTERNAL);
    sum->type.lanes = 1;
    x->written = false;
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_ERROR_INTERNAL);
    x->written = true;
    qn_kvalue *wide = qn_kb_splat(&b, sum, 4);
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
    wide->type.lanes = 1;
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_ERROR_INTERNAL);
    wide->type.lanes = 4;
    const qn_kind kind = QN_SUM, none = QN_SET + 1;
    qn_kinst *loop = qn_kb_carry(&b, qn_kb_index(&b, 0), qn_kb_index(&b, 4), qn_kb_index(&b, 1),
                                 QN_TAG_VECTOR, 1, &sum, &kind);
    qn_kb_end_carry(&b, loop, &sum);
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_OK);
    loop->carried_kinds = &none;
    assert_int_equal(qn_kernel_verify(k, &diags), QUERN_ERROR_INTERNAL);
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_names),    cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_long_lists), cmocka_unit_test(test_prefixes), cmocka_unit_test(test_verify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
