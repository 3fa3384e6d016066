/* Products of bytes, and precision int8, which makes them: the instruction as text and as code; passes and templates against the
 * interpreter; models as machine code. Under int8 rows and columns hold multiples of 1/8 up to 127/8, which bytes say exactly,
 * so that results are those of float32. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "quern.h"
#include "tests/support/jit_kernel.h"
#include "tests/support/linear.h"
#include "tests/support/lowered.h"

/* ---- the instruction ---- */

static const char wide_kernel[] =
    "kernel @dots(%x: u8 in, %y: i8 in, %z: i32 inout) {\n"
    "  %0 = load %x[0] : u8x64\n"
    "  %1 = load %y[0] : i8x64\n"
    "  %2 = load %z[0] : i32x16\n"
    "  %3 = dot4 %0, %1, %2\n"
    "  store %z[0], %3\n"
    "  %4 = load %y[64] : i8x4\n"
    "  %5 = shuffle %4, %4 [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, "
    "2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]\n"
    "  %6 = load %x[64] : u8x32\n"
    "  %7 = load %z[16] : i32x8\n"
    "  %8 = dot4 %6, %5, %7\n"
    "  store %z[16], %8\n"
    "  %9 = load %x[96] : u8x4\n"
    "  %10 = load %z[24] : i32\n"
    "  %11 = dot4 %9, %4, %10\n"
    "  store %z[24], %11\n"
    "  %12 = dot4 %0, %0, %3\n"
    "  store %z[32], %12\n"
    "  %13 = dot4 %1, %1, %2\n"
    "  store %z[48], %13\n"
    "}\n";
/* 4 * 255 * -128, 4 * -128 * -128, 4 * 255 * 255: what saturates or wraps in 16 bits */
static const char extreme_kernel[] = "kernel @extreme(%z: i32 out) {\n"
                                     "  %0 = splat u8 255 : u8x32\n"
                                     "  %1 = splat i8 -128 : i8x32\n"
                                     "  %2 = dot4 %0, %1, i32x8 -2147483648\n"
                                     "  store %z[0], %2\n"
                                     "  %3 = dot4 %1, %1, i32x8 2147483647\n"
                                     "  store %z[8], %3\n"
                                     "  %4 = dot4 %0, %0, i32x8 -1\n"
                                     "  store %z[16], %4\n"
                                     "}\n";

static void instruction_as_text_and_code(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed(wide_kernel, arena), *extreme = kernel_parsed(extreme_kernel, arena);
    assert_string_equal(qn_kernel_print(k, arena), wide_kernel);
    assert_string_equal(qn_kernel_print(qn_kernel_clone(k, arena), arena), wide_kernel);
    const char *cpus[3];
    for (int i = host_cpus(cpus) - 1; i >= 0; i--) {
        kernel_compare(k, (int64_t[]){ 100, 68, 64 }, NULL, 1, cpus[i]);
        kernel_compare(extreme, (int64_t[]){ 24 }, NULL, 1, cpus[i]);
    }
    qn_arena_free(arena);
}

static void each_cpu_uses_what_it_has(void **state)
{
    (void)state;
    static const cpu_code cases[] = {
        { "x86_64-unknown-linux-gnu", "znver4", "vpdpbusd", "vpmaddwd" },
        { "x86_64-unknown-linux-gnu", "cascadelake", "vpdpbusd", "vpmaddwd" },
        { "x86_64-unknown-linux-gnu", "sapphirerapids", "vpdpbusd", "vpmaddwd" },
        { "x86_64-unknown-linux-gnu", "alderlake", "vpdpbusd", "vpmaddwd" },
        { "x86_64-unknown-linux-gnu", "x86-64-v4", "vpmaddwd", "vpdp" },
        { "x86_64-unknown-linux-gnu", "haswell", "vpmaddwd", "vpdp" },
        { "aarch64-unknown-linux-gnu", "generic", "smull", "dot" },
        { "aarch64-unknown-linux-gnu", "neoverse-n1", "smull", "dot" },
        { "aarch64-unknown-linux-gnu", "neoverse-v1", "usdot", "smull" },
    };
    static const cpu_code of_one_kind[] = {
        { "x86_64-unknown-linux-gnu", "znver4", "vpmaddwd", "vpdpbusd" },
        { "aarch64-unknown-linux-gnu", "generic", "saddlp", "sdot" },
        { "aarch64-unknown-linux-gnu", "cortex-a72", "saddlp", "sdot" },
        { "aarch64-unknown-linux-gnu", "cortex-a76", "sdot", "smull" },
        { "aarch64-unknown-linux-gnu", "neoverse-v2", "sdot", "smull" },
    };
    kernel_uses("kernel @dots(%x: i8 in, %y: i8 in, %z: i32 inout) {\n  %0 = load %x[0] : i8x32\n"
                "  %1 = load %y[0] : i8x32\n  %2 = load %z[0] : i32x8\n"
                "  %3 = dot4 %0, %1, %2\n  store %z[0], %3\n}\n",
                sizeof of_one_kind / sizeof *of_one_kind, of_one_kind);
    kernel_uses("kernel @dots(%x: u8 in, %y: i8 in, %z: i32 inout) {\n  %0 = load %x[0] : u8x32\n"
                "  %1 = load %y[0] : i8x32\n  %2 = load %z[0] : i32x8\n"
                "  %3 = dot4 %0, %1, %2\n  store %z[0], %3\n}\n",
                sizeof cases / sizeof *cases, cases);
}

static void mistakes_are_found(void **state)
{
    (void)state;
    static const char *const lines[] = { "dot4 i8x16 1, u8x16 1, i32x4 1", "dot4 u8x16 1, i16x16 1, i32x4 1",
                                         "dot4 u8x8 1, i8x8 1, i32x4 1", "dot4 u8x16 1, i8x16 1, u32x4 1" };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *text = qn_arena_printf(arena, "kernel @k(%%x: f32 in) {\n  %%0 = %s\n}\n", lines[i]);
        assert_null(qn_kernel_parse(text, "test", arena, &diags));
        assert_non_null(
            strstr(qn_diags_text(&diags, arena), "adds products of bytes (u8 and i8, two u8, two i8)"));
        qn_arena_free(arena);
    }
}

/* Pairs of rows, of bytes of all kinds and of bf16. Interpreted it is what dot4 and dot2 make of the rows. */
static void pairs_of_rows(void **state)
{
    (void)state;
    static const char text[] =
        "kernel @pairs(%x: u8 in, %y: i8 in, %p: bf16 in, %q: i32 inout, %r: f32 out) {\n"
        "  %0 = load %x[0] : u8x16\n"
        "  %1 = load %y[0] : i8x16\n"
        "  %2 = load %q[0] : i32x4\n"
        "  %3 = mmla %0, %1, %2\n"
        "  %4 = mmla %1, %1, %3\n"
        "  %5 = mmla %0, %0, %4\n"
        "  store %q[0], %5\n"
        "  %6 = load %p[0] : bf16x16\n"
        "  %7 = mmla %6, %6, f32x8 1\n"
        "  store %r[0], %7\n"
        "}\n";
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_kernel *k = kernel_parsed(text, arena);
    assert_string_equal(qn_kernel_print(k, arena), text);
    assert_string_equal(qn_kernel_print(qn_kernel_clone(k, arena), arena), text);
    uint8_t x[16];
    int8_t y[16];
    uint16_t p[16];
    int32_t q[4] = { 1, 2, 3, INT32_MAX };
    float r[8];
    for (int i = 0; i < 16; i++) {
        x[i] = (uint8_t)(255 - 3 * i);
        y[i] = (int8_t)(7 * i - 128);
        p[i] = (uint16_t)(i % 3 ? 0x3f80 : 0xc040); /* 1, -3 */
    }
    int64_t args[] = { -1, (intptr_t)x, (intptr_t)y, (intptr_t)p, (intptr_t)q, (intptr_t)r };
    assert_int_equal(qn_interp_kernel(k, args, 1, &diags), QUERN_OK);
    for (int i = 0; i < 8; i++) {
        const int row = i / 2 % 2, column = i % 2, group = i / 4;
        uint32_t whole = i < 3 ? (uint32_t)i + 1 : INT32_MAX;
        float sum = 1;
        for (int n = 0; n < 8; n++)
            whole += (uint32_t)(x[8 * row + n] * y[8 * column + n] + y[8 * row + n] * y[8 * column + n] +
                                x[8 * row + n] * x[8 * column + n]);
        for (int n = 0; n < 4; n++) {
            const int a = 8 * group + 4 * row + n, b = 8 * group + 4 * column + n;
            sum += (a % 3 ? 1.f : -3.f) * (b % 3 ? 1.f : -3.f);
        }
        if (i < 4)
            assert_int_equal(q[i], (int32_t)whole);
        assert_true(r[i] == sum);
    }
    static const cpu_code cases[] = { { "aarch64-unknown-linux-gnu", "neoverse-v1", "usmmla", "dot" },
                                      { "aarch64-unknown-linux-gnu", "neoverse-n2", "bfmmla", "dot" } };
    kernel_uses(text, sizeof cases / sizeof *cases, cases);
    const char *code =
        qn_arena_printf(arena, "kernel @k(%%x: f32 in) {\n  %%0 = mmla i8x16 1, u8x16 1, i32x4 1\n}\n");
    assert_null(qn_kernel_parse(code, "test", arena, &diags));
    assert_non_null(strstr(qn_diags_text(&diags, arena), "multiplies pairs of rows"));
    qn_arena_free(arena);
}

/* ---- products of bytes ---- */

static int64_t elements_of(const qn_type *type, const int64_t *symbols, int64_t *out_dims)
{
    int64_t n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= out_dims[i] = qn_dim_eval(type->dims[i], symbols);
    return n;
}

static void fill_bytes(qn_array *array, const qn_type *type, int seed, qn_arena *arena)
{
    *array = (qn_array){ .dtype = type->dtype, .rank = type->rank };
    const int64_t n = elements_of(type, NULL, array->dims);
    unsigned char *data = array->data = QN_NEW_ARRAY(arena, unsigned char, n + 1);
    for (int64_t i = 0; i < n; i++) /* 0, 255, 127 and 128 are among them */
        data[i] = (unsigned char)((i * 7919 + seed * 104729) % 256);
}

static const struct {
    int64_t batch, m, k, n; /* batch 0: y has none */
} shapes[] = { { 0, 37, 64, 70 }, { 0, 1, 256, 65 },  { 0, 3, 100, 40 }, { 0, 13, 67, 33 },
               { 3, 9, 48, 50 },  { 0, 26, 1024, 8 }, { 2, 1, 65, 32 },  { 2, 45, 128, 33 } };

static void products_of_bytes(void **state)
{
    (void)state;
    static const qn_dtype dtypes[] = { QUERN_I8, QUERN_U8 };
    for (size_t i = 0; i < 4 * sizeof shapes / sizeof *shapes; i++)
        for (int m = 0; m < LOWERED_BYTE_MACHINES; m++) {
            qn_module *module = qn_module_new("bytes");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            const int64_t batch = shapes[i / 4].batch, rows = shapes[i / 4].m, k = shapes[i / 4].k,
                          n = shapes[i / 4].n, x_dims[] = { batch ? batch : 1, rows, k },
                          y_dims[] = { batch, k, n };
            const qn_type types[] = {
                qn_type_static(module, dtypes[i & 1], 3, x_dims),
                qn_type_static(module, dtypes[i >> 1 & 1], batch ? 3 : 2, batch ? y_dims : y_dims + 1),
            };
            qn_array inputs[2];
            fill_bytes(&inputs[0], &types[0], 1, module->arena);
            fill_bytes(&inputs[1], &types[1], 2, module->arena);
            qn_value *x = qn_graph_add_input(graph, "x", types[0], QN_ROLE_INPUT), *y;
            if (batch) /* y is packed at run time, where there are enough rows */
                y = qn_graph_add_input(graph, "y", types[1], QN_ROLE_INPUT);
            else
                y = qn_b_constant(&b, qn_tensor_new(module, types[1].dtype, 2, y_dims + 1, inputs[1].data));
            qn_graph_add_output(graph, qn_b_matmul_to(&b, x, y, QUERN_I32), "r", -1);
            const qn_pass_options options = { .machine = &lowered_byte_machines[m], .fold = qn_interp_fold };
            lowered_compare(qn_arena_printf(module->arena, "bytes %d", (int)i), graph, &options, inputs,
                            NULL);
            int packed = 0;
            QN_FOR_NODES (graph, node)
                packed += node->op == QN_OP_MATMUL_PACKED;
            assert_int_equal(packed, !batch || rows >= 8);
            qn_module_free(module);
        }
}

/* ---- precision int8 ---- */

static float number(int64_t i, int seed)
{
    return (float)((i * 7919 + seed * 104729) % 255 - 127) / 8;
}

/* [rows, k] or, transposed, [k, columns], with ±127/8 in each row (column). */
static void fill_floats(float *to, int64_t rows, int64_t k, bool transposed, int seed)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < k; i++)
            to[transposed ? i * rows + r : r * k + i] = i == r % k ? 127.f / 8 : number(r * k + i, seed);
}

enum { K = 96, N = 77, MOST_ROWS = 41 };

static float x[MOST_ROWS * K], w[K * N], bias[N], residual[MOST_ROWS * N];

static void fill_operands(void)
{
    fill_floats(x, MOST_ROWS, K, false, 1);
    fill_floats(w, N, K, true, 2);
    for (int i = 0; i < N; i++)
        bias[i] = number(i, 3);
    for (int i = 0; i < MOST_ROWS * N; i++)
        residual[i] = number(i, 4);
}

static void products_equal_those_of_float32(void **state)
{
    (void)state;
    fill_operands();
    for (int rows = 1; rows <= MOST_ROWS; rows += rows < 4 ? 1 : 36)
        for (int m = 0; m < LOWERED_BYTE_MACHINES; m++)
            for (int transposed = 0; transposed < 2; transposed++) {
                qn_module *module = qn_module_new("int8");
                qn_diags diags;
                qn_diags_init(&diags, module->arena);
                qn_graph *graph = qn_function_new(module, "f");
                qn_builder b = { .graph = graph, .diags = &diags };
                const int64_t w_dims[] = { K, N };
                qn_array inputs[] = { { QUERN_F32, 2, { rows, K }, x },
                                      { QUERN_F32, 2, { rows, N }, residual } };
                qn_value *in[2];
                for (int i = 0; i < 2; i++)
                    in[i] = qn_graph_add_input(graph, i ? "s" : "x",
                                               qn_type_static(module, QUERN_F32, 2, inputs[i].dims),
                                               QN_ROLE_INPUT);
                qn_value *y = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, w_dims, w));
                qn_value *v = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 1, w_dims + 1, bias));
                qn_value *r = qn_b_binary_bcast(&b, QN_OP_ADD, qn_b_matmul(&b, in[0], y), v);
                r = qn_b_binary(&b, QN_OP_ADD, r, in[1]);
                if (transposed)
                    r = qn_b_transpose(&b, r, (int64_t[]){ 1, 0 });
                qn_graph_add_output(graph, r, "r", -1);
                const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                                  .precision = QN_PRECISION_INT8,
                                                  .machine = &lowered_byte_machines[m],
                                                  .fold = qn_interp_fold };
                lowered_compare(qn_arena_printf(module->arena, "%d rows", rows), graph, &options, inputs,
                                NULL);
                int bytes = 0;
                QN_FOR_NODES (graph, node)
                    bytes += node->op == QN_OP_MATMUL_PACKED && node->results[0].type.dtype == QUERN_I32;
                assert_int_equal(bytes, lowered_byte_machines[m].dot4 || rows <= 4);
                qn_module_free(module);
            }
}

/* With one scale for a sample and one for a channel; of numbers that are not negative, and of any. */
static void convolutions_equal_those_of_float32(void **state)
{
    (void)state;
    enum { CHANNELS = 6, SIZE = 7, OUT = 64, TAPS = CHANNELS * 9, INPUT = 2 * CHANNELS * SIZE * SIZE };
    static float x[INPUT], w[OUT * TAPS];
    for (int positive = 0; positive < 2; positive++)
        for (int m = 0; m < LOWERED_BYTE_MACHINES; m++) {
            for (int i = 0; i < INPUT; i++)
                x[i] = i % (INPUT / 2) == 5 ? (positive ? 255.f : 127.f) / 8 : number(i, 1);
            fill_floats(w, OUT, TAPS, false, 2);
            qn_module *module = qn_module_new("int8");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            const int64_t w_dims[] = { OUT, CHANNELS, 3, 3 }, stride[] = { 1, 1 }, pads[] = { 1, 1 };
            qn_array inputs[] = { { QUERN_F32, 4, { 2, CHANNELS, SIZE, SIZE }, x } };
            qn_value *v = qn_graph_add_input(graph, "x", qn_type_static(module, QUERN_F32, 4, inputs[0].dims),
                                             QN_ROLE_INPUT);
            if (positive)
                v = qn_b_binary_bcast(&b, QN_OP_MAX, v, qn_b_scalar(&b, QUERN_F32, 0));
            v = qn_b_convolution(&b, v, qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 4, w_dims, w)),
                                 &(qn_conv){ .stride = stride, .low = pads, .high = pads });
            qn_graph_add_output(graph, v, "y", -1);
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .precision = QN_PRECISION_INT8,
                                              .machine = &lowered_byte_machines[m],
                                              .fold = qn_interp_fold };
            lowered_compare(qn_arena_printf(module->arena, "convolution %d", positive), graph, &options,
                            inputs, NULL);
            int bytes = 0;
            QN_FOR_NODES (graph, node)
                bytes += node->op == QN_OP_CONV_PACKED && node->results[0].type.dtype == QUERN_I32;
            assert_int_equal(bytes, lowered_byte_machines[m].dot4);
            qn_module_free(module);
        }
}

/* Of bytes by a matrix unit, where their channels fill blocks of 64: parts of a row, whole rows, several, rows in one; borders; x and
 * weights of either sign; two samples, a bias, and another convolution of what the first one has made. */
static void convolutions_by_a_matrix_unit(void **state)
{
    (void)state;
    static const struct {
        int64_t in, out, height, width, kernel, stride, pad;
        bool by_unit;
    } maps[] = {
        { 64, 64, 6, 33, 3, 1, 1, true },  { 70, 130, 14, 14, 3, 1, 1, true },
        { 64, 64, 7, 7, 3, 1, 1, true },   { 64, 96, 14, 14, 3, 2, 1, true },
        { 128, 64, 7, 7, 1, 1, 0, true },  { 65, 64, 9, 20, 1, 1, 0, true },
        { 64, 64, 14, 14, 1, 2, 0, true }, { 64, 64, 5, 18, 5, 1, 2, true },
        { 64, 64, 11, 40, 3, 2, 0, true }, { 3, 64, 12, 13, 7, 2, 3, true },
        { 63, 64, 6, 7, 3, 1, 1, false },  { 64, 63, 6, 7, 3, 1, 1, false },
    };
    static const qn_dtype dtypes[] = { QUERN_U8, QUERN_I8 };
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        qn_module *module = qn_module_new("maps");
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        qn_graph *graph = qn_function_new(module, "f");
        qn_builder b = { .graph = graph, .diags = &diags };
        const bool is_block = maps[i].by_unit && maps[i].in >= 64; /* others want bytes of certain signs */
        const qn_dtype x_dtype = dtypes[is_block ? i % 2 : 0], w_dtype = dtypes[is_block ? i / 2 % 2 : 1];
        const int64_t out = maps[i].out, x_dims[] = { 2, maps[i].in, maps[i].height, maps[i].width },
                      w_dims[] = { out, maps[i].in, maps[i].kernel, maps[i].kernel },
                      v_dims[] = { 64, out, 1, 1 }, stride[] = { maps[i].stride, maps[i].stride },
                      pads[] = { maps[i].pad, maps[i].pad };
        const qn_type types[] = { qn_type_static(module, x_dtype, 4, x_dims),
                                  qn_type_static(module, w_dtype, 4, w_dims),
                                  qn_type_static(module, QUERN_I8, 4, v_dims) };
        qn_array bytes[3];
        for (int k = 0; k < 3; k++)
            fill_bytes(&bytes[k], &types[k], k, module->arena);
        qn_value *x = qn_graph_add_input(graph, "x", types[0], QN_ROLE_INPUT),
                 *w = qn_b_constant(&b, qn_tensor_new(module, w_dtype, 4, w_dims, bytes[1].data)),
                 *v = qn_b_constant(&b, qn_tensor_new(module, QUERN_I8, 4, v_dims, bytes[2].data));
        qn_value *y = qn_b_convolution_to(
            &b, x, w, &(qn_conv){ .stride = stride, .low = pads, .high = pads, .groups = 1 }, QUERN_I32);
        y = qn_b_binary_bcast(&b, QN_OP_ADD, y, qn_b_scalar_int(&b, QUERN_I32, 77));
        qn_value *z =
            qn_b_convolution_to(&b, qn_b_convert(&b, QUERN_U8, y), v, &(qn_conv){ .groups = 1 }, QUERN_I32);
        qn_graph_add_output(graph, y, "y", -1);
        qn_graph_add_output(graph, z, "z", -1);
        const qn_pass_options options = { .machine = &lowered_byte_machines[1], .fold = qn_interp_fold };
        lowered_compare(qn_arena_printf(module->arena, "map %d", (int)i), graph, &options, bytes, NULL);
        int blocks = 0;
        QN_FOR_NODES (graph, node)
            blocks += node->op == QN_OP_CONV_PACKED && qn_dim_is(node->results[0].type.dims[4], 64);
        assert_int_equal(blocks, maps[i].by_unit ? is_block + 1 : 0);
        qn_module_free(module);
    }
}

static void machine_code_gives_the_same(void **state)
{
    (void)state;
    static float found[N];
    const char *cpus[3];
    fill_operands();
    for (int i = host_cpus(cpus) - 1; i >= 0; i--)
        for (int rows = 1; rows <= MOST_ROWS; rows += 40) {
            linear_is_exact("int8", cpus[i], (int64_t[]){ rows, K, N }, x, w, bias);
        }
    assert_int_equal(linear_run("int9", NULL, (int64_t[]){ 1, K, N }, x, w, bias, found),
                     QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "int8 or int4"));
}

/* Any numbers: rounded to a 254th of the largest of their row. A row of zeros is one; NaN and infinity make their rows NaN and
 * no others. */
static void errors_are_small(void **state)
{
    (void)state;
    enum { ROWS = 8 };
    static float in[ROWS * K], found[ROWS * N];
    fill_operands();
    for (int i = 0; i < ROWS * K; i++)
        in[i] = sinf((float)i) * powf(10, (float)(i / K));
    memset(in, 0, K * sizeof *in);
    in[6 * K + 5] = NAN;
    in[7 * K + 6] = INFINITY;
    for (int i = 0; i < K * N; i++)
        w[i] = cosf(3 * (float)i);
    assert_int_equal(linear_run("int8", NULL, (int64_t[]){ ROWS, K, N }, in, w, bias, found), QUERN_OK);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < N; c++) {
            double want = bias[c], bound = 1e-6;
            for (int k = 0; k < K; k++) {
                want += (double)in[r * K + k] * w[k * N + c];
                bound +=
                    powf(10, (float)r) / 254 + fabs((double)in[r * K + k]) / 254 + 1e-6 * powf(10, (float)r);
            }
            if (r >= 6)
                assert_true(isnan(found[r * N + c]));
            else if (!(fabs(found[r * N + c] - want) <= (r == 0 ? 0 : bound)))
                fail_msg("row %d column %d: %g is %g", r, c, found[r * N + c], want);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(instruction_as_text_and_code),
        cmocka_unit_test(each_cpu_uses_what_it_has),
        cmocka_unit_test(mistakes_are_found),
        cmocka_unit_test(pairs_of_rows),
        cmocka_unit_test(products_of_bytes),
        cmocka_unit_test(products_equal_those_of_float32),
        cmocka_unit_test(convolutions_equal_those_of_float32),
        cmocka_unit_test(convolutions_by_a_matrix_unit),
        cmocka_unit_test(machine_code_gives_the_same),
        cmocka_unit_test(errors_are_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
