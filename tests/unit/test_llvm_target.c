/* Targets by name, what is learnt about them, what is said about names that are wrong; objects for another machine;
 * compilation on several threads at once. */
#include <elf.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/llvm/host.h"
#include "backends/llvm/open.h"
#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"
#include "tests/support/jit_kernel.h"

/* What LLVM allocated before a fatal error is abandoned on purpose. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/lsan_interface.h>
#define IGNORE_LEAKS(on) ((on) ? __lsan_disable() : __lsan_enable())
#endif
#endif
#ifndef IGNORE_LEAKS
#define IGNORE_LEAKS(on) ((void)(on))
#endif

static qn_machine describe(qn_target target)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    qn_diags_init(&diags, arena);
    if (qn_backend_cpu.describe(&target, arena, &machine, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
    qn_arena_free(arena);
    return machine;
}

static void assert_refused(qn_target target, qn_status status, const char *word)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_backend_cpu.describe(&target, arena, &machine, &diags), status);
    if (!strstr(qn_diags_text(&diags, arena), word))
        fail_msg("'%s' has no '%s'", qn_diags_text(&diags, arena), word);
    qn_arena_free(arena);
}

static void knows_cpus(void **state)
{
    (void)state;
    static const char x86[] = "x86_64-unknown-linux-gnu";
    static const struct {
        const char *triple, *cpu, *features;
        int vector_bytes, registers;
        bool masked, dot2, dot4;
        qn_dot4_signs signs;
    } cpus[] = {
        { x86, "x86-64-v3", NULL, 32, 16, false, false, false, QN_SIGNS_MIXED },
        { x86, "haswell", NULL, 32, 16, false, false, false, QN_SIGNS_MIXED },
        { x86, "x86-64-v4", NULL, 64, 32, true, false, false, QN_SIGNS_MIXED },
        { x86, "znver4", NULL, 64, 32, true, true, true, QN_SIGNS_MIXED },
        { x86, "cooperlake", NULL, 64, 32, true, true, true, QN_SIGNS_MIXED },
        { x86, "x86-64-v4", "+avx512bf16", 64, 32, true, true, false, QN_SIGNS_MIXED },
        { x86, "icelake-server", NULL, 64, 32, true, false, true, QN_SIGNS_MIXED },
        { x86, "sapphirerapids", "", 64, 32, true, true, true, QN_SIGNS_MIXED },
        { x86, "graniterapids", NULL, 64, 32, true, true, true, QN_SIGNS_MIXED },
        { x86, "alderlake", NULL, 32, 16, false, false, true, QN_SIGNS_MIXED },
        { x86, "x86-64-v4", "-avx512f", 32, 16, false, false, false, QN_SIGNS_MIXED },
        { x86, "knl", NULL, 32, 16, false, false, false,
          QN_SIGNS_MIXED }, /* AVX-512 without bytes and short vectors */
        { "aarch64-unknown-linux-gnu", "neoverse-n1", NULL, 16, 32, false, false, true, QN_SIGNS_SAME },
        { "aarch64-unknown-linux-gnu", "neoverse-v1", NULL, 16, 32, false, true, true, QN_SIGNS_ANY },
        { "aarch64-unknown-linux-gnu", "cortex-a53", "+dotprod", 16, 32, false, false, true, QN_SIGNS_SAME },
        { "aarch64-linux-gnu", "generic", NULL, 16, 32, false, false, false, QN_SIGNS_SAME },
    };
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        qn_machine m = describe(
            (qn_target){ .triple = cpus[i].triple, .cpu = cpus[i].cpu, .features = cpus[i].features });
        assert_int_equal(m.vector_bytes, cpus[i].vector_bytes);
        assert_int_equal(m.vector_registers, cpus[i].registers);
        assert_int_equal(m.masked, cpus[i].masked);
        assert_int_equal(m.dot2, cpus[i].dot2);
        assert_int_equal(m.dot4, cpus[i].dot4);
        assert_int_equal(m.dot4_signs, cpus[i].signs);
        assert_true(m.fma && !m.gpu && m.l1_bytes >= 16384 && m.l2_bytes >= 131072);
        assert_non_null(strstr(m.features, cpus[i].cpu));
    }
    qn_machine native = describe((qn_target){ .cpu = "native" }), unsaid = describe((qn_target){ 0 });
    assert_string_equal(native.features, unsaid.features);
    assert_true(native.vector_bytes >= 16);
}

/* What the machine is asked itself is what LLVM says of it, and what the code generator does with the same CPU by name. */
static void knows_this_machine(void **state)
{
    (void)state;
    static const char *const names[] = { "avx2",     "fma",        "f16c",       "avxvnni",  "avx512f",
                                         "avx512bw", "avx512vnni", "avx512bf16", "amx-bf16", "amx-int8" };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    const char *text;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_llvm_host_text(&text, &diags), QUERN_OK);
    char *cpu = strchr(qn_arena_strdup(arena, text), ' ') + 1, *features = strchr(cpu, ' ') + 1;
    features[-1] = '\0';
    const char *all = qn_arena_printf(arena, "%s,", features);
    for (size_t i = 0; QN_HOST_ISA == QN_ISA_X86 && i < sizeof names / sizeof *names; i++) {
        const bool listed = strstr(all, qn_arena_printf(arena, "+%s,", names[i])) != NULL;
        if (qn_host_has(names[i]) != listed)
            fail_msg("%s: %d, but LLVM says %s", names[i], !listed, features);
    }
    qn_machine native = describe((qn_target){ .cpu = "native" }),
               named = describe((qn_target){ .cpu = cpu, .features = features });
    assert_int_equal(named.vector_bytes, native.vector_bytes);
    assert_int_equal(named.vector_registers, native.vector_registers);
    assert_int_equal(named.fma, native.fma);
    assert_int_equal(named.masked, native.masked);
    assert_int_equal(named.dot2, native.dot2);
    assert_int_equal(named.dot4, native.dot4);
    assert_int_equal(named.tiles, native.tiles);
    assert_int_equal(named.follows_streams, native.follows_streams);
    if (native.vector_bytes == 64) {
        qn_machine less = describe((qn_target){ .features = "-avx512f" });
        assert_int_equal(less.vector_bytes, 32);
        assert_string_not_equal(less.features, native.features);
    }
    qn_arena_free(arena);
}

/* In this process named CPUs get nothing that the machine lacks: it is left out, or the CPU refused. */
static void named_cpus_run_here(void **state)
{
    (void)state;
    static const char *const cpus[] = { "haswell", "x86-64-v4", "znver4", "sapphirerapids", "graniterapids" };
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus && QN_HOST_ISA == QN_ISA_X86; i++) {
        const qn_machine named = describe((qn_target){ .cpu = cpus[i] }), native = describe((qn_target){ 0 });
        const qn_target here = { .cpu = cpus[i], .jit = true };
        if ((named.masked && !native.masked) || (named.dot4 && !native.dot4) ||
            (named.dot2 && !native.dot2)) {
            assert_refused(here, QUERN_ERROR_UNSUPPORTED, "this machine has no ");
            continue;
        }
        const qn_machine m = describe(here);
        assert_int_equal(m.vector_bytes, named.vector_bytes);
        assert_int_equal(m.dot4, named.dot4);
        assert_int_equal(m.tiles, named.tiles);              /* Linux is asked for them when they are used */
        assert_string_not_equal(m.features, named.features); /* the cache may be another machine's, too */
    }
}

static void knows_matrix_units(void **state)
{
    (void)state;
    static const struct {
        const char *cpu, *features;
        bool tiles;
    } cpus[] = { { "sapphirerapids", NULL, true },
                 { "sapphirerapids", "-amx-bf16", false },
                 { "x86-64-v4", NULL, false },
                 { "znver4", NULL, false },
                 { "x86-64-v4", "+amx-tile,+amx-bf16,+amx-int8", true } };
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        const qn_target target = { .triple = "x86_64-unknown-linux-gnu",
                                   .cpu = cpus[i].cpu,
                                   .features = cpus[i].features };
        assert_int_equal(describe(target).tiles, cpus[i].tiles);
    }
}

static void knows_cores_that_follow_streams(void **state)
{
    (void)state;
    static const char *const cpus[] = { "znver5", "znver4", "sapphirerapids", "x86-64-v4" };
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++)
        assert_int_equal(
            describe((qn_target){ .triple = "x86_64-unknown-linux-gnu", .cpu = cpus[i] }).follows_streams,
            i == 0);
}

static void refuses_wrong_names(void **state)
{
    (void)state;
    IGNORE_LEAKS(true); /* of LLVM, to which some are fatal errors */
    assert_refused((qn_target){ .cpu = "x86-64" }, QUERN_ERROR_UNSUPPORTED, "x86-64-v3");
    assert_refused((qn_target){ .cpu = "no-such-cpu" }, QUERN_ERROR_UNSUPPORTED, "'no-such-cpu'");
    assert_refused((qn_target){ .triple = "riscv64-unknown-linux-gnu", .cpu = "generic" },
                   QUERN_ERROR_UNSUPPORTED, "aarch64-unknown-linux-gnu");
    assert_refused((qn_target){ .triple = "nonsense", .cpu = "generic" }, QUERN_ERROR_UNSUPPORTED,
                   "nonsense");
    assert_refused((qn_target){ .cpu = "x86-64-v3", .features = "-sse2" }, QUERN_ERROR_UNSUPPORTED, "v3");
    assert_refused((qn_target){ .triple = "aarch64-unknown-linux-gnu" }, QUERN_ERROR_ARGUMENT, "neoverse-n1");
    assert_refused((qn_target){ .triple = "aarch64-unknown-linux-gnu", .cpu = "generic", .jit = true },
                   QUERN_ERROR_UNSUPPORTED, "object");
    IGNORE_LEAKS(false);
}

/* A kernel with every element-wise instruction that has code of its own. */
static qn_kernel *everything(qn_arena *arena, qn_dtype dtype, int lanes)
{
    qn_kernel *k = qn_kernel_new(arena, "everything");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtype, true, false, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *a = qn_kb_load(&b, x, qn_kb_index(&b, 0), lanes),
              *c = qn_kb_load(&b, x, qn_kb_task(&b), lanes);
    for (qn_op fn = 0; fn < QN_N_OPS; fn++) {
        bool unary = qn_keval_is_unary(fn), is_float = qn_dtype_is_float(dtype);
        if ((!unary && !qn_keval_is_binary(fn)) || !qn_keval_accepts(fn, dtype) || !qn_keval_is_exact(fn) ||
            (is_float && fn == QN_OP_REM))
            continue;
        qn_kvalue *v = unary ? qn_kb_unary(&b, fn, a) : qn_kb_binary(&b, fn, a, c);
        qn_kb_store(&b, qn_kernel_add_buffer(k, "y", v->type.dtype, false, true, 0), qn_kb_index(&b, 0), v,
                    NULL);
    }
    for (qn_dtype to = QUERN_BOOL; to <= QUERN_F64; to++)
        qn_kb_store(&b, qn_kernel_add_buffer(k, "y", to, false, true, 0), qn_kb_index(&b, 0),
                    qn_kb_convert(&b, to, a), NULL);
    if (qn_dtype_is_float(dtype)) {
        qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtype, false, true, 0);
        qn_kb_store(&b, y, qn_kb_index(&b, 0), qn_kb_fma(&b, a, c, a), NULL);
        qn_kb_store(&b, y, qn_kb_index(&b, 99), qn_kb_scale2(&b, a, c), NULL);
    }
    return k;
}

static void makes_objects_for_another_machine(void **state)
{
    (void)state;
    static const struct {
        const char *triple, *cpu;
        int machine;
    } targets[] = { { "aarch64-unknown-linux-gnu", "generic", EM_AARCH64 },
                    { "x86_64-unknown-linux-gnu", "x86-64-v3", EM_X86_64 },
                    { "x86_64-unknown-linux-gnu", "sapphirerapids", EM_X86_64 } };
    for (size_t t = 0; t < sizeof targets / sizeof *targets; t++)
        for (qn_dtype dtype = QUERN_BOOL; dtype <= QUERN_F64; dtype++)
            for (int lanes = 1; lanes <= 16; lanes *= 16) {
                qn_arena *arena = qn_arena_new();
                qn_target target = { .triple = targets[t].triple, .cpu = targets[t].cpu };
                Elf64_Ehdr header; /* emission fails on undefined symbols */
                memcpy(&header, kernel_text(everything(arena, dtype, lanes), &target, QN_EMIT_OBJECT, arena),
                       sizeof header);
                assert_int_equal(header.e_machine, targets[t].machine);
                qn_arena_free(arena);
            }
    qn_arena *arena = qn_arena_new();
    qn_target host = { 0 };
    assert_non_null(strstr(kernel_text(everything(arena, QUERN_F32, 4), &host, QN_EMIT_LLVM, arena),
                           "define weak_odr hidden void @kernel(ptr noalias"));
    assert_non_null(
        strstr(kernel_text(everything(arena, QUERN_F32, 4), &host, QN_EMIT_ASSEMBLY, arena), "kernel:"));
    qn_arena_free(arena);
}

/* What no pass expanded is a diagnostic that names it. */
static void refuses_what_has_no_code(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = qn_kernel_new(arena, "tangent");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, true, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *zero = qn_kb_index(&b, 0);
    qn_kb_store(&b, x, zero, qn_kb_unary(&b, QN_OP_TAN, qn_kb_load(&b, x, zero, 8)), NULL);
    qn_diags diags;
    qn_code code;
    qn_diags_init(&diags, arena);
    qn_status status = qn_backend_cpu.emit_kernel(k, "k", &(qn_target){ 0 }, QN_MATH_DEFAULT, QN_EMIT_OBJECT,
                                                  arena, &code, &diags);
    assert_int_equal(status, QUERN_ERROR_INTERNAL);
    assert_non_null(strstr(qn_diags_text(&diags, arena), "kernel tangent: no CPU code for tan"));
    qn_arena_free(arena);
}

/* A CPU that no one makes: wide byte vectors without the short forms. LLVM ends the process on what it cannot select;
 * here it is a status, and the next compilation works. */
static void survives_fatal_errors(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        qn_arena *arena = qn_arena_new();
        qn_kernel *k = qn_kernel_new(arena, "scale");
        qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, true, 0);
        qn_kbuilder b = qn_kb_new(k);
        qn_kvalue *zero = qn_kb_index(&b, 0), *v = qn_kb_load(&b, x, zero, 8);
        qn_kb_store(&b, x, zero, qn_kb_scale2(&b, v, v), NULL);
        qn_diags diags;
        qn_code code;
        qn_diags_init(&diags, arena);
        qn_target odd = { .cpu = "x86-64-v4", .features = "-avx512vl" }, good = { .cpu = "x86-64-v4" };
        IGNORE_LEAKS(true);
        qn_status status =
            qn_backend_cpu.emit_kernel(k, "k", &odd, QN_MATH_DEFAULT, QN_EMIT_OBJECT, arena, &code, &diags);
        IGNORE_LEAKS(false);
        assert_int_equal(status, QUERN_ERROR_INTERNAL);
        assert_non_null(strstr(qn_diags_text(&diags, arena), "kernel scale: LLVM gave up: Cannot select"));
        assert_null(code.data);
        kernel_text(k, &good, QN_EMIT_OBJECT, arena);
        qn_arena_free(arena);
    }
}

static void *compile_some(void *user)
{
    (void)user;
    for (int i = 0; i < 6; i++) {
        qn_arena *arena = qn_arena_new();
        float memory[256] = { 0 };
        int64_t args[64];
        qn_kernel *k = everything(arena, QUERN_F32, 4);
        jit_kernel code = jit_kernel_new(k, i % 2 ? "x86-64-v3" : NULL);
        args[0] = -1;
        for (int j = 0; j <= k->n_buffers; j++)
            args[1 + j] = (int64_t)memory;
        code.run(args, 0);
        jit_kernel_free(&code);
        qn_arena_free(arena);
    }
    return NULL;
}

static void threads_compile_at_once(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, compile_some, NULL), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knows_cpus),
        cmocka_unit_test(knows_this_machine),
        cmocka_unit_test(named_cpus_run_here),
        cmocka_unit_test(knows_matrix_units),
        cmocka_unit_test(knows_cores_that_follow_streams),
        cmocka_unit_test(refuses_wrong_names),
        cmocka_unit_test(makes_objects_for_another_machine),
        cmocka_unit_test(refuses_what_has_no_code),
        cmocka_unit_test(survives_fatal_errors),
        cmocka_unit_test(threads_compile_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
