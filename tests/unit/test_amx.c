/* The code for AMX, run: on a machine without it by tests/fake_amx. First the emulator by itself, then kernels, against the
 * interpreter; models are in tests/python/test_amx.py. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/fake_amx/fake_amx.h"
#include "tests/support/jit_kernel.h"

#if defined(__x86_64__)

#include <sys/syscall.h>

enum { ROW = 64 };

typedef struct shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} shapes;

static const shapes full = { .palette = 1,
                             .row_bytes = { ROW, ROW, ROW, ROW, ROW, ROW, ROW, ROW },
                             .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };

static void ask_for_permission(void)
{
    fake_amx_take_signals();
    assert_int_equal(syscall(SYS_arch_prctl, 0x1023, 18), 0);
}

static void configure(const shapes *s)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*s));
}

#define LOAD(tile, memory, stride) \
    __asm__ volatile("tileloadd (%0,%1), %%" tile : : "r"(memory), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, memory, stride) \
    __asm__ volatile("tilestored %%" tile ", (%0,%1)" : : "r"(memory), "r"((int64_t)(stride)) : "memory")

/* ---- the emulator ---- */

static unsigned char table[4096];

/* Is the tile rows of 64 bytes of the table, `stride` apart, from byte `first` on? */
static void assert_rows(int64_t first, int64_t stride)
{
    unsigned char rows[16 * ROW];
    STORE("tmm1", rows, ROW);
    for (int r = 0; r < 16; r++)
        assert_memory_equal(rows + (size_t)r * ROW, table + first + r * stride, ROW);
}

/* A load whose address has these registers and numbers; its rows begin at byte 1000. */
#define LOADS_FROM(base, index, scale, offset, stride)                                                       \
    do {                                                                                                     \
        register const unsigned char *b_ __asm__(base) = table + 1000 - (offset);                            \
        register int64_t i_ __asm__(index) = (stride) / (scale);                                             \
        __asm__ volatile("tileloadd " #offset "(%0,%1," #scale "), %%tmm1" : : "r"(b_), "r"(i_) : "memory"); \
        assert_rows(1000, stride);                                                                           \
    } while (0)

static void operands_are_found(void **state)
{
    (void)state;
    static shapes stored;
    for (size_t i = 0; i < sizeof table; i++)
        table[i] = (unsigned char)(i * i >> 3 ^ i);
    ask_for_permission();
    configure(&full);
    LOADS_FROM("rax", "rcx", 1, 0, 64);
    LOADS_FROM("rdx", "rbx", 8, 8, 136);
    LOADS_FROM("rsi", "rdi", 1, -1000, 64);
    LOADS_FROM("rdi", "rsi", 4, 127, -24);
    LOADS_FROM("r8", "r15", 2, 128, 6);
    LOADS_FROM("r9", "r14", 1, -128, 1);
    LOADS_FROM("r10", "r13", 1, 0, 100);
    LOADS_FROM("r11", "r12", 2, -129, 128);
    LOADS_FROM("r12", "r11", 1, 0, 64);
    LOADS_FROM("r13", "r10", 8, 0, 64);
    LOADS_FROM("r14", "r9", 1, 1, -48);
    LOADS_FROM("r15", "r8", 4, 2, 64);
    __asm__ volatile("tileloaddt1 (%0), %%tmm1"
                     :
                     : "r"(table + 1000)
                     : "memory"); /* no index: one row, 16 times */
    assert_rows(1000, 0);
    __asm__ volatile("sttilecfg %0" : "=m"(stored)); /* from the next instruction on */
    assert_memory_equal(&stored, &full, sizeof full);
    __asm__ volatile("tilezero %%tmm1\n\ttilestored %%tmm1, (%0,%1)"
                     :
                     : "r"(table), "r"((int64_t)ROW)
                     : "memory");
    for (int i = 0; i < 16 * ROW; i++)
        assert_int_equal(table[i], 0);
    __asm__ volatile("tilerelease\n\tsttilecfg %0" : "=m"(stored));
    assert_memory_equal(&stored, (&(shapes){ 0 }), sizeof stored);
}

static uint16_t half(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* One number: sum plus three pairs of products. */
static float pairs(float sum, const float x[6], const float y[6])
{
    const shapes s = { .palette = 1, .row_bytes = { 4, 12, 4 }, .rows = { 1, 1, 3 } };
    uint16_t left[6], right[6];
    for (int i = 0; i < 6; i++) {
        left[i] = half(x[i]);
        right[i] = half(y[i]);
    }
    configure(&s);
    LOAD("tmm0", &sum, 4);
    LOAD("tmm1", left, 12);
    LOAD("tmm2", right, 4);
    __asm__ volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : : : "memory");
    STORE("tmm0", &sum, 4);
    __asm__ volatile("tilerelease");
    return sum;
}

#define SIX(...) ((const float[6]){ __VA_ARGS__ })

static void sums_are_rounded_in_order(void **state)
{
    (void)state;
    ask_for_permission();
    assert_float_equal(pairs(100, SIX(1, 2, 3, 4, 5, 6), SIX(1, 1, 1, 1, 1, 0.5)), 118, 0);
    /* even and odd products apart: (2^24 + 1 - 2^24) + (1 + 1 + 1) */
    assert_float_equal(pairs(0, SIX(0x1p24, 1, 1, 1, -0x1p24, 1), SIX(1, 1, 1, 1, 1, 1)), 3, 0);
    /* what was there comes last */
    assert_float_equal(pairs(0x1p24, SIX(1, 1, 0), SIX(1, 1, 0)), 0x1p24 + 2, 0);
    /* numbers too small for a float count as 0: of an operand, a product, a sum */
    assert_float_equal(pairs(0, SIX(0x1p-127, 0), SIX(0x1p100, 0)), 0, 0);
    assert_float_equal(pairs(0, SIX(0x1p-100, 0), SIX(0x1p-30, 0)), 0, 0);
    assert_float_equal(pairs(0x1p-130, SIX(0), SIX(0)), 0, 0);
    assert_true(isnan(pairs(0, SIX(INFINITY, 0), SIX(0, 0))));
    assert_true(pairs(0, SIX(INFINITY, 0), SIX(-1, 0)) == -INFINITY);
}

static void sums_of_bytes_wrap(void **state)
{
    (void)state;
    const shapes s = { .palette = 1, .row_bytes = { 4, 4, 4 }, .rows = { 1, 1, 1 } };
    const unsigned char x[4] = { 255, 1, 128, 2 }, y[4] = { 255, 255, 128, 3 };
    ask_for_permission();
    configure(&s);
#define PRODUCT(instruction, start, wanted)                                     \
    do {                                                                        \
        int32_t sum = (start);                                                  \
        LOAD("tmm0", &sum, 4);                                                  \
        LOAD("tmm1", x, 4);                                                     \
        LOAD("tmm2", y, 4);                                                     \
        __asm__ volatile(instruction " %%tmm2, %%tmm1, %%tmm0" : : : "memory"); \
        STORE("tmm0", &sum, 4);                                                 \
        assert_int_equal(sum, wanted);                                          \
    } while (0)
    PRODUCT("tdpbssd", 0, 1 - 1 + 128 * 128 + 6);
    PRODUCT("tdpbsud", 0, -255 + 255 - 128 * 128 + 6);
    PRODUCT("tdpbusd", 0, -255 - 1 - 128 * 128 + 6);
    PRODUCT("tdpbuud", 0, 255 * 255 + 255 + 128 * 128 + 6);
    PRODUCT("tdpbssd", INT32_MAX, (int32_t)(INT32_MIN + 128 * 128 + 5));
    __asm__ volatile("tilerelease");
}

/* ---- mistakes: what the machine would refuse ends the process ---- */

static void without_configuration(void)
{
    __asm__ volatile("tilezero %tmm0");
}

static void without_rows(void)
{
    configure(&(shapes){ .palette = 1, .row_bytes = { ROW }, .rows = { 16 } });
    __asm__ volatile("tilezero %tmm1");
}

static void too_many_rows(void)
{
    configure(&(shapes){ .palette = 1, .row_bytes = { ROW }, .rows = { 17 } });
}

static void rows_without_bytes(void)
{
    configure(&(shapes){ .palette = 1, .rows = { 3 } });
}

static void other_shapes(void)
{
    configure(&(shapes){ .palette = 1, .row_bytes = { ROW, ROW, ROW }, .rows = { 16, 15, 16 } });
    __asm__ volatile("tdpbssd %tmm2, %tmm1, %tmm0");
}

/* The signal that ends a child that does this; 0: none. */
static int end_of(void (*mistake)(void), bool permitted)
{
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(2);
        static const int signals[] = { SIGABRT, SIGILL, SIGSEGV }; /* cmocka's would report them */
        for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
            signal(signals[i], SIG_DFL);
        fake_amx_take_signals();
        if (permitted)
            ask_for_permission();
        mistake();
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void configures(void)
{
    configure(&full);
}

static void mistakes_end_the_process(void **state)
{
    (void)state;
    assert_true(end_of(configures, false) != 0); /* this test is the first: no one has asked yet */
    assert_int_equal(end_of(configures, true), 0);
    assert_true(end_of(without_configuration, true) != 0);
    assert_true(end_of(without_rows, true) != 0);
    assert_true(end_of(too_many_rows, true) != 0);
    assert_true(end_of(rows_without_bytes, true) != 0);
    assert_true(end_of(other_shapes, true) != 0);
}

/* ---- kernels ---- */

/* 16 + 5 rows times two tiles of columns, what is there included. */
static const char kernel[] = "kernel @tiles(%%x: %s in, %%y: %s in, %%r: %s inout) {\n"
                             "  tile_shape 16, 16, 5, 5, 16, 5, 16, 16\n"
                             "  tile_load [0] %%r[0], 32\n"
                             "  tile_load [1] %%r[16], 32\n"
                             "  tile_zero [2]\n"
                             "  tile_load [3] %%r[528], 32\n"
                             "  for %%0 = 0 to %d step %d {\n"
                             "    tile_load [4] %%x[%%0], %d\n"
                             "    %%1 = iadd %%0, %d\n"
                             "    tile_load [5] %%x[%%1], %d\n"
                             "    %%2 = imul %%0, 32\n"
                             "    tile_load [6] %%y[%%2], %d\n"
                             "    %%3 = iadd %%2, %d\n"
                             "    tile_load [7] %%y[%%3], %d\n"
                             "    tile_mma [0, 4, 6] %s %s\n"
                             "    tile_mma [1, 4, 7] %s %s\n"
                             "    tile_mma [2, 5, 6] %s %s\n"
                             "    tile_mma [3, 5, 7] %s %s\n"
                             "  }\n"
                             "  tile_store [0] %%r[0], 32\n"
                             "  tile_store [1] %%r[16], 32\n"
                             "  tile_store [2] %%r[512], 32\n"
                             "  tile_store [3] %%r[528], 32\n"
                             "}\n";

/* Of bytes, whose sums are exact; those of bfloat16 are in another order than the interpreter's. */
static void kernels_are_the_interpreters(void **state)
{
    (void)state;
    static const char *const types[][2] = { { "i8", "i8" }, { "i8", "u8" }, { "u8", "i8" }, { "u8", "u8" } };
    ask_for_permission();
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        qn_arena *arena = qn_arena_new();
        const char *x = types[i][0], *y = types[i][1];
        enum { K = 192, STEP = 64, SIDE = 64, PITCH = 128 };
        const qn_kernel *k = kernel_parsed(qn_arena_printf(arena, kernel, x, y, "i32", K, STEP, K, 16 * K, K,
                                                           PITCH, SIDE, PITCH, x, y, x, y, x, y, x, y),
                                           arena);
        kernel_compare(k, (int64_t[]){ 21 * K, 32 * K, 21 * 32 }, NULL, 1,
                       "x86-64-v4 +amx-tile,+amx-int8,+amx-bf16");
        qn_arena_free(arena);
    }
    assert_true(fake_amx() == FAKE_AMX_REAL || fake_amx_instructions() > 100);
}

/* A machine with AVX-512, on which this can run. */
static bool can_run(void)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    const qn_target target = { .cpu = "x86-64-v4", .jit = true };
    qn_diags_init(&diags, arena);
    const bool wide = !qn_backend_cpu.describe(&target, arena, &machine, &diags);
    qn_arena_free(arena);
    return wide && fake_amx() != FAKE_AMX_NONE;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_end_the_process),     cmocka_unit_test(operands_are_found),
        cmocka_unit_test(sums_are_rounded_in_order),    cmocka_unit_test(sums_of_bytes_wrap),
        cmocka_unit_test(kernels_are_the_interpreters),
    };
    if (!can_run()) {
        puts("skipped: AMX cannot be emulated here, or there is no AVX-512");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    puts("skipped: for x86-64");
    return 77;
}

#endif
