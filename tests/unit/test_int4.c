/* Weights of four bits, made so under precision int4 or as they come, where numbers are such that nothing is lost: each eight of a
 * row of x hold one of -127 times a power of two and else multiples of it, every 32 weights of a column one of -8 times one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "quern.h"
#include "tests/support/linear.h"
#include "tests/support/lowered.h"

enum { K = 288, N = 269, MOST_ROWS = 5, MANY_ROWS = 97, GROUP = 32 };

static float x[MANY_ROWS * K], w[K * N], bias[N];

/* Rows of so many numbers; those of a group that shares a scale, of whatever size, have the same power of two. */
static void fill_rows(int64_t depth)
{
    enum { WHOLE_GROUPS = 192 };
    for (int64_t i = 0; i < MANY_ROWS * depth; i++) {
        const float number = i % 8 == 3 ? -127 : (float)(i * 7919 % 255 - 127);
        x[i] = number / (float)(i % depth < WHOLE_GROUPS ? 8 : 4) * (float)(1 << i / depth % 2);
    }
}

static void fill_operands(void)
{
    fill_rows(K);
    for (int k = 0; k < K; k++)
        for (int n = 0; n < N; n++) {
            const float scale = (float)(1 << (k / GROUP + n) % 3) / 16;
            w[k * N + n] = scale * (float)(k % GROUP == n % GROUP ? -8 : (k * 31 + n * 17) % 15 - 7);
        }
    for (int n = 0; n < N; n++)
        bias[n] = (float)n;
}

static void products_equal_those_of_float32(void **state)
{
    (void)state;
    fill_operands();
    for (int rows = 1; rows <= MOST_ROWS; rows++)
        for (int m = 0; m < LOWERED_BYTE_MACHINES; m++) {
            qn_module *module = qn_module_new("int4");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            qn_array input = { QUERN_F32, 2, { rows, K }, x };
            qn_value *in = qn_graph_add_input(graph, "x", qn_type_static(module, QUERN_F32, 2, input.dims),
                                              QN_ROLE_INPUT);
            qn_value *y = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ K, N }, w));
            qn_value *v = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 1, (int64_t[]){ N }, bias));
            qn_graph_add_output(graph, qn_b_binary_bcast(&b, QN_OP_ADD, qn_b_matmul(&b, in, y), v), "r", -1);
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .precision = QN_PRECISION_INT4,
                                              .machine = &lowered_byte_machines[m],
                                              .fold = qn_interp_fold };
            lowered_compare(qn_arena_printf(module->arena, "%d rows", rows), graph, &options, &input, NULL);
            int scaled = 0;
            QN_FOR_NODES (graph, node)
                scaled += node->op == QN_OP_MATMUL_PACKED && node->n_operands >= 3;
            assert_int_equal(scaled, rows <= 4);
            qn_module_free(module);
        }
}

static void machine_code_gives_the_same(void **state)
{
    (void)state;
    const char *cpus[3];
    fill_operands();
    for (int i = host_cpus(cpus) - 1; i >= 0; i--)
        for (int rows = 1; rows <= 4; rows++) {
            const int64_t shape[] = { rows, K, N };
            linear_is_exact("int4", cpus[i], shape, x, w, bias);
        }
}

/* Any numbers: a weight is off by half a scale (a whole one next to the largest), x by a 254th. Zeros are zeros; a weight that is
 * NaN or infinite makes its column so and no other. */
static void errors_are_small(void **state)
{
    (void)state;
    static float found[N];
    fill_operands();
    for (int k = 0; k < K; k++) {
        x[k] = sinf((float)k);
        for (int n = 0; n < N; n++)
            w[k * N + n] = n == 1 ? 0 : cosf((float)(k * N + n)) * powf(10, (float)(n % 5 - 2));
    }
    w[5 * N + 6] = NAN;
    w[6 * N + 7] = -INFINITY;
    assert_int_equal(linear_run("int4", NULL, (int64_t[]){ 1, K, N }, x, w, bias, found), QUERN_OK);
    for (int n = 0; n < N; n++) {
        double want = bias[n], bound = 0, largest = n == 1 ? 0 : pow(10, n % 5 - 2);
        for (int k = 0; k < K; k++) {
            want += (double)x[k] * w[k * N + n];
            bound += largest * (fabs((double)x[k]) / 7.9 + 1.0 / 254);
        }
        if (n == 6 || n == 7)
            assert_false(isfinite(found[n]));
        else if (!(fabs(found[n] - want) <= bound))
            fail_msg("column %d: %g is %g", n, found[n], want);
    }
}

/* A number a million times as large as others of its row takes nothing from those of other groups. */
static void large_numbers_spoil_their_group_alone(void **state)
{
    (void)state;
    static float found[N];
    fill_operands();
    for (int i = 0; i < K; i++) {
        x[i] = i == 2 * GROUP + 7 ? 1e6f : x[i];
        for (int n = 0; n < N; n++)
            w[i * N + n] = i / GROUP == 2 ? 0 : w[i * N + n];
    }
    assert_int_equal(linear_run("int4", NULL, (int64_t[]){ 1, K, N }, x, w, bias, found), QUERN_OK);
    for (int n = 0; n < N; n++) {
        double want = bias[n];
        for (int k = 0; k < K; k++)
            want += (double)x[k] * w[k * N + n];
        if (!(fabs(found[n] - want) <= 1e-5 * fabs(want) + 1e-3))
            fail_msg("column %d: %g is %g", n, found[n], want);
    }
}

/* Products with a right side of four bits, and all products with one that is laid out. */
static void count_products(const qn_graph *graph, int *scaled, int *all)
{
    QN_FOR_NODES (graph, node) {
        *all += node->op == QN_OP_MATMUL_PACKED;
        *scaled += node->op == QN_OP_MATMUL_PACKED && node->n_operands >= 3;
    }
}

static size_t bytes_of_constants(const qn_graph *graph)
{
    size_t bytes = 0;
    QN_FOR_NODES (graph, node) {
        if (node->op == QN_OP_CONSTANT)
            bytes += qn_attr_tensor(node, QN_ATTR_VALUE)->bytes;
        for (int r = 0; r < node->n_regions; r++)
            bytes += bytes_of_constants(node->regions[r]);
    }
    return bytes;
}

/* Weights that come in four bits, or in bytes with scales for blocks, keep their numbers: products are exact here, and constants
 * take about as much as the numbers, whatever the number of rows; but under bf16, and under int8 without the means, which round
 * them for many rows. Under int4, and where the weights allow it, few rows are bytes, and many, too, where the machine
 * multiplies those; else, where the rows are not known, a run takes one or the other. Bytes are not kept under int4. */
static void few_bits(qn_precision precision, bool byte_rows, int64_t rows, bool known, bool dot4)
{
    static unsigned char numbers[K * N];
    static float scales[K / 8 * N];
    static unsigned char zeros[K / 8 * N];
    static const struct {
        qn_dtype dtype;
        int64_t block; /* 0: a scale for each column */
        bool zero_point, transposed;
    } cases[] = {
        { QUERN_I4, 32, false, false }, { QUERN_U4, 32, false, true }, { QUERN_I4, 16, true, true },
        { QUERN_U4, 128, true, false }, { QUERN_U4, 0, true, true },   { QUERN_I4, 0, false, false },
        { QUERN_U4, 24, true, false },  { QUERN_I4, 48, false, true }, { QUERN_U8, 32, false, true },
        { QUERN_U8, 128, true, true },  { QUERN_I8, 16, true, false }, { QUERN_I8, 64, false, false },
    };
    qn_machine machine = { .vector_bytes = dot4 ? 64 : 32,
                           .vector_registers = dot4 ? 32 : 16,
                           .fma = true,
                           .dot4 = dot4,
                           .l1_bytes = 32768,
                           .l2_bytes = 1 << 18 };
    fill_operands();
    for (size_t i = 0; i < 2 * (sizeof cases / sizeof *cases); i++) {
        const size_t c = i / 2;
        machine.dot4_signs = i % 2 ? QN_SIGNS_SAME : QN_SIGNS_MIXED;
        const bool bytes_of_weights = cases[c].dtype == QUERN_U8 || cases[c].dtype == QUERN_I8;
        if (bytes_of_weights && precision == QN_PRECISION_INT4)
            continue;
        for (int i = 0; i < K * N; i++)
            numbers[i] = (unsigned char)(bytes_of_weights ? i * 7 % 269 % 256 : i * 7 % 23 % 16);
        for (int i = 0; i < K / 8 * N; i++) {
            scales[i] = (float)(1 << i % 5) / 16;
            zeros[i] = (unsigned char)(bytes_of_weights ? i * 5 % 256 : i * 5 % 16);
        }
        qn_module *module = qn_module_new("four");
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        qn_graph *graph = qn_function_new(module, "f");
        qn_builder b = { .graph = graph, .diags = &diags };
        const int64_t block = cases[c].block, depth = block ? K - K % block : K;
        const int64_t shape[] = { rows, depth }, blocks = block ? depth / block : 1;
        const bool swap = cases[c].transposed;
        const int rank = block ? 2 : 1;
        const int64_t dims[] = { swap ? N : depth, swap ? depth : N };
        const int64_t of_scale[] = { rank == 1 ? N : swap ? N : blocks, swap ? blocks : N };
        const qn_dim symbolic[] = { qn_dim_symbol(module->dims, "rows", 1, 100),
                                    qn_dim_const(module->dims, depth) };
        const qn_type type = known ? qn_type_static(module, QUERN_F32, 2, shape)
                                   : qn_type_make(module, QUERN_F32, 2, symbolic);
        qn_value *in = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
        qn_value *q = qn_b_constant(&b, qn_tensor_new(module, cases[c].dtype, 2, dims, numbers));
        qn_value *s = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, rank, of_scale, scales));
        const qn_type of_zero = qn_type_static(module, cases[c].dtype, rank, of_scale);
        qn_value *z = cases[c].zero_point
                          ? qn_b_constant(&b, qn_tensor_new(module, cases[c].dtype, rank, of_scale, zeros))
                          : qn_b_full(&b, &of_zero, 0);
        const int axis = (block != 0) == swap ? 1 : 0;
        qn_value *y = qn_b_dequantize_weights(&b, q, s, z, axis, block, byte_rows);
        y = swap ? qn_b_transpose(&b, y, (int64_t[]){ 1, 0 }) : y;
        qn_graph_add_output(graph, qn_b_matmul(&b, in, y), "r", -1);
        const qn_pass_options options = {
            .math = QN_MATH_DEFAULT, .precision = precision, .machine = &machine, .fold = qn_interp_fold
        };
        const qn_array input = { .dtype = QUERN_F32, .rank = 2, .dims = { rows, depth }, .data = x };
        fill_rows(depth);
        lowered_compare(qn_arena_printf(module->arena, "case %d", (int)c), graph, &options, &input, &rows);
        const bool rounded =
            byte_rows || precision == QN_PRECISION_INT4 || (precision == QN_PRECISION_INT8 && dot4);
        int scaled = 0, all = 0, wider = 0;
        size_t bytes = bytes_of_constants(graph);
        const qn_node *either = NULL;
        QN_FOR_NODES (graph, node)
            either = node->op == QN_OP_IF ? node : either;
        assert_int_equal(either != NULL, !known && (rounded ? !dot4 : precision != QN_PRECISION_F32));
        if (either) {
            count_products(either->regions[0], &scaled, &all);
            assert_int_equal(scaled, 1);
            count_products(either->regions[1], &scaled, &all);
            wider = !rounded; /* made of the weights for many rows */
            assert_int_equal(scaled, 2 - wider);
        } else {
            count_products(graph, &scaled, &all);
            assert_int_equal(scaled, 1);
        }
        if (!wider && bytes >= (size_t)(depth * N) * (bytes_of_weights ? 16 : 9) / 8)
            fail_msg("case %d: constants of %zu bytes", (int)c, bytes);
        qn_module_free(module);
    }
}

static void weights_of_few_bits_stay_so(void **state)
{
    (void)state;
    few_bits(QN_PRECISION_INT4, false, 3, true, false);
    few_bits(QN_PRECISION_F32, false, 1, true, false);
    few_bits(QN_PRECISION_F32, false, 4, true, false);
    few_bits(QN_PRECISION_F32, false, MOST_ROWS, true, false);
    few_bits(QN_PRECISION_F32, false, MANY_ROWS, true, false);
    few_bits(QN_PRECISION_INT4, false, MANY_ROWS, true, false);
    few_bits(QN_PRECISION_INT4, false, 2, false, false);
    few_bits(QN_PRECISION_INT4, false, MANY_ROWS, false, false);
    few_bits(QN_PRECISION_BF16, false, 2, false, false);
    few_bits(QN_PRECISION_BF16, false, MOST_ROWS, false, false);
    few_bits(QN_PRECISION_F32, false, 1, false, false);
    few_bits(QN_PRECISION_F32, false, 4, false, false);
    few_bits(QN_PRECISION_F32, false, MOST_ROWS, false, false);
    few_bits(QN_PRECISION_F32, false, MANY_ROWS, false, false);
    few_bits(QN_PRECISION_F32, false, MANY_ROWS, false, true);
    few_bits(QN_PRECISION_INT4, false, 1, false, true);
    few_bits(QN_PRECISION_INT4, false, MOST_ROWS, false, true);
    few_bits(QN_PRECISION_INT4, false, MANY_ROWS, false, true);
    few_bits(QN_PRECISION_INT4, false, MANY_ROWS, true, true);
    few_bits(QN_PRECISION_INT8, false, MOST_ROWS, false, false);
    few_bits(QN_PRECISION_INT8, false, MOST_ROWS, false, true);
    few_bits(QN_PRECISION_F32, true, 4, false, false);
    few_bits(QN_PRECISION_F32, true, 1, true, true);
    few_bits(QN_PRECISION_F32, true, MANY_ROWS, false, true);
    few_bits(QN_PRECISION_BF16, true, MOST_ROWS, false, true);
}

static void mistakes_are_found(void **state)
{
    (void)state;
    static const char *const types[][3] = {
        { "f16[1, 64]", "u8[2, 8, 16, 4]", "bf16[2, 2, 16]" },
        { "i8[1, 64]", "i8[2, 8, 16, 4]", "bf16[2, 2, 16]" },
        { "i8[1, 64]", "u8[2, 32, 16, 4]", "bf16[2, 2, 16]" },
        { "f32[1, 64]", "u8[2, 32, 16, 4]", "bf16[2, 2, 16]" },
        { "i8[1, 64]", "u8[2, 8, 16, 4]", "i8[2, 2, 16]" },
        { "i8[1, 64]", "u8[2, 8, 16, 4]", "bf16[2, 3, 16]" },
        { "i8[1, 64]", "u8[2, 8, 16, 2]", "bf16[2, 2, 16]" },
        { "i8[1, 64]", "u8[2, 8, 16, 4]", "bf16[2, 2, 8]" },
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        const char *text = qn_arena_printf(arena,
                                           "graph @f(%%x: %s, %%y: %s, %%s: %s) -> f32[1, 32] {\n%%r = "
                                           "matmul_packed %%x, %%y, %%s {batch_dims = 0, "
                                           "dims = [32], dtype = f32} : f32[1, 32]\nreturn %%r\n}\n",
                                           types[i][0], types[i][1], types[i][2]);
        assert_int_not_equal(qn_text_parse(text, strlen(text), "test", &module, &diags), QUERN_OK);
        if (!strstr(qn_diags_text(&diags, arena), "expected"))
            fail_msg("%s", qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

static void mistakes_of_zeros_are_found(void **state)
{
    (void)state;
    static const char *const types[] = { "i8[2, 2, 16]", "u8[2, 1, 16]", "u8[2, 32]" };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        const char *text = qn_arena_printf(
            arena,
            "graph @f(%%x: i8[1, 64], %%y: u8[2, 8, 16, 4], %%s: bf16[2, 2, 16], %%z: %s) -> f32[1, 32] "
            "{\n%%r = "
            "matmul_packed %%x, %%y, %%s, %%z {batch_dims = 0, dims = [32], dtype = f32} : f32[1, 32]\n"
            "return %%r\n}\n",
            types[i]);
        assert_int_not_equal(qn_text_parse(text, strlen(text), "test", &module, &diags), QUERN_OK);
        if (!strstr(qn_diags_text(&diags, arena), "expected u8 with the dims of the scale"))
            fail_msg("%s", qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

static void mistakes_of_factors_are_found(void **state)
{
    (void)state;
    static const char *const types[][2] = { { "i8[1, 64]", "f32[1, 4]" },
                                            { "i8[1, 64]", "f32[2]" },
                                            { "i8[1, 64]", "f32[2, 2]" },
                                            { "f32[1, 64]", "f32[1, 2]" } };
    for (size_t i = 0; i < 2 * (sizeof types / sizeof *types); i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        const bool zeros = i % 2;
        const char *text = qn_arena_printf(
            arena,
            "graph @f(%%x: %s, %%y: u8[2, 8, 16, 4], %%s: bf16[2, 2, 16], %%z: u8[2, 2, 16], %%f: %s) -> "
            "f32[1, 32] {\n%%r = matmul_packed %%x, %%y, %%s, %s%%f {batch_dims = 0, dims = [32], "
            "dtype = f32} : f32[1, 32]\nreturn %%r\n}\n",
            types[i / 2][0], types[i / 2][1], zeros ? "%z, " : "");
        assert_int_not_equal(qn_text_parse(text, strlen(text), "test", &module, &diags), QUERN_OK);
        if (!strstr(qn_diags_text(&diags, arena), "expected"))
            fail_msg("%s", qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_equal_those_of_float32),
        cmocka_unit_test(machine_code_gives_the_same),
        cmocka_unit_test(errors_are_small),
        cmocka_unit_test(large_numbers_spoil_their_group_alone),
        cmocka_unit_test(weights_of_few_bits_stay_so),
        cmocka_unit_test(mistakes_are_found),
        cmocka_unit_test(mistakes_of_zeros_are_found),
        cmocka_unit_test(mistakes_of_factors_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
