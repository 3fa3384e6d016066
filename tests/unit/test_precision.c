/* Products under --precision bf16: the matrix unit's instructions as text, in the interpreter and, where this machine has one,
 * as code; the passes and templates against float32, for a matrix unit and for instructions that multiply pairs. Numbers are
 * small multiples of 1/8, which bfloat16 holds and whose sums float32 holds, so that results are the same whatever the order of
 * additions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "passes/schedule.h"
#include "quern.h"
#include "tests/support/jit_kernel.h"
#include "tests/support/linear.h"
#include "tests/support/lowered.h"
#include "tests/support/net.h"

static const qn_machine tiles = { LOWERED_AVX512, .tiles = true };
static const qn_machine pairs = { LOWERED_AVX512, .dot2 = true };
static const qn_machine blocks = { LOWERED_AARCH64, .dot2 = true, .mmla = true };
static const qn_machine plain = { LOWERED_AVX2 };

enum { MACHINES = 4, MULTIPLIES = 3 }; /* the first of them multiply bfloat16 */
static const qn_machine *const machines[MACHINES] = { &tiles, &pairs, &blocks, &plain };

/* ---- instructions ---- */

/* 16 + 5 rows of bytes times two tiles of columns; what the guarded buffers' ends make sure of is that no more is touched. */
static const char bytes_kernel[] = "kernel @bytes(%x: i8 in, %y: u8 in, %r: i32 out) {\n"
                                   "  tile_shape 16, 16, 5, 5, 16, 5, 16, 16\n"
                                   "  tile_zero [2]\n"
                                   "  for %0 = 0 to 128 step 64 {\n"
                                   "    tile_load [4] %x[%0], 128\n"
                                   "    %1 = iadd %0, 2048\n"
                                   "    tile_load [5] %x[%1], 128\n"
                                   "    %2 = imul %0, 32\n"
                                   "    tile_load [6] %y[%2], 128\n"
                                   "    %3 = iadd %2, 64\n"
                                   "    tile_load [7] %y[%3], 128\n"
                                   "    tile_mma [0, 4, 6] i8 u8\n"
                                   "    tile_mma [1, 4, 7] i8 u8\n"
                                   "    tile_mma [2, 5, 6] i8 u8\n"
                                   "    tile_mma [3, 5, 7] i8 u8\n"
                                   "  }\n"
                                   "  tile_store [0] %r[0], 32\n"
                                   "  tile_store [1] %r[16], 32\n"
                                   "  tile_store [2] %r[512], 32\n"
                                   "  tile_store [3] %r[528], 32\n"
                                   "}\n";

static bool host_has_tiles(void)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine = { 0 };
    const qn_target target = { .cpu = "native", .jit = true };
    qn_diags_init(&diags, arena);
    const bool found = !qn_backend_cpu.describe(&target, arena, &machine, &diags) && machine.tiles;
    qn_arena_free(arena);
    return found;
}

static int run_text(const char *text, int n_inputs, const quern_array *inputs, const char *precision,
                    float *out);

static void instructions_as_text_and_code(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_kernel *k = kernel_parsed(bytes_kernel, arena);
    assert_string_equal(qn_kernel_print(k, arena), bytes_kernel);
    assert_string_equal(qn_kernel_print(qn_kernel_clone(k, arena), arena), bytes_kernel);
    if (host_has_tiles()) {
        /* an entry asks Linux for the permission, which is the process's from then on */
        static const char text[] =
            "graph @f(%x: f32[64, 64], %y: f32[64, 64]) -> f32[64, 64] {\n"
            "%r = dot_general %x, %y {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : "
            "f32[64, 64]\nreturn %r\n}\n";
        static float x[64 * 64], r[64 * 64];
        const int64_t dims[] = { 64, 64 };
        const quern_array array = { QUERN_F32, 2, dims, x };
        assert_int_equal(run_text(text, 2, (quern_array[]){ array, array }, "bf16", r), QUERN_OK);
        kernel_compare(k, (int64_t[]){ 21 * 128, 32 * 128, 21 * 32 }, NULL, 1, NULL);
    }
    qn_arena_free(arena);
}

static void mistakes_are_found(void **state)
{
    (void)state;
    static const char *const bodies[][2] = {
        { "tile_zero [8]", "there is no tile 8" },
        { "tile_zero [1, 2]", "names 2 tiles" },
        { "tile_mma [0, 0, 6] bf16 bf16", "three different tiles" },
        { "tile_mma [0, 4, 6] bf16 i8", "multiplies bf16 with bf16" },
        { "tile_store [0] %x[0], 16", "declared otherwise" },
        { "tile_shape 16, 16", "has 2 operands" },
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *text = qn_arena_printf(arena, "kernel @k(%%x: f32 in) {\n  %s\n}\n", bodies[i][0]);
        assert_null(qn_kernel_parse(text, "test", arena, &diags));
        if (!strstr(qn_diags_text(&diags, arena), bodies[i][1]))
            fail_msg("'%s' is not in: %s", bodies[i][1], qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

/* ---- products ---- */

#define PLAIN "{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}"
#define SYMBOLIC                                                                                         \
    "dims n: 0..100\ngraph @f(%x: f32[n, 64], %y: f32[64, 64], %b: f32[64]) -> f32[n, 64] {\n"           \
    "%r = dot_general %x, %y " PLAIN " : f32[n, 64]\n"                                                   \
    "%c = broadcast %b {axes = [1], dims = [n, 64]} : f32[n, 64]\n%d = add %r, %c : f32[n, 64]\nreturn " \
    "%d\n}\n"

static const struct {
    const char *name, *text;
    int64_t symbol;  /* value of the only symbol, if there is one */
    bool pairs_only; /* too few rows for a matrix unit, or no two steps of it */
} cases[] = {
    { "whole blocks",
      "graph @f(%x: f32[64, 96], %y: f32[96, 64]) -> f32[64, 64] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[64, 64]\nreturn %r\n}\n",
      0, false },
    { "blocks of two heights, a panel that is not full",
      "graph @f(%x: f32[71, 96], %y: f32[96, 77]) -> f32[71, 77] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[71, 77]\nreturn %r\n}\n",
      0, false },
    { "one row of tiles, one column of them",
      "graph @f(%x: f32[13, 2048], %y: f32[2048, 16]) -> f32[13, 16] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[13, 16]\nreturn %r\n}\n",
      0, false },
    { "17 rows, then 16",
      "graph @f(%x: f32[33, 256], %y: f32[256, 40]) -> f32[33, 40] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[33, 40]\nreturn %r\n}\n",
      0, false },
    { "an odd number of pairs",
      "graph @f(%x: f32[25, 98], %y: f32[98, 135]) -> f32[25, 135] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[25, 135]\nreturn %r\n}\n",
      0, false },
    { "an odd number of products",
      "graph @f(%x: f32[25, 97], %y: f32[135, 97]) -> f32[25, 135] {\n"
      "%r = dot_general %x, %y {x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]} : f32[25, "
      "135]\n"
      "return %r\n}\n",
      0, false },
    { "less than two steps of a matrix unit",
      "graph @f(%x: f32[75, 62], %y: f32[62, 135]) -> f32[75, 135] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[75, 135]\nreturn %r\n}\n",
      0, true },
    { "batches of sums of no whole steps",
      "graph @f(%x: f32[3, 70, 44], %y: f32[3, 90, 70]) -> f32[3, 44, 90] {\n"
      "%r = dot_general %x, %y {x_batch = [0], x_contract = [1], y_batch = [0], y_contract = [2]} : "
      "f32[3, 44, 90]\nreturn %r\n}\n",
      0, false },
    { "one row",
      "graph @f(%x: f32[1, 1030], %y: f32[1030, 270]) -> f32[1, 270] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[1, 270]\nreturn %r\n}\n",
      0, true },
    { "three rows",
      "graph @f(%x: f32[3, 512], %y: f32[512, 200]) -> f32[3, 200] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[3, 200]\nreturn %r\n}\n",
      0, true },
    { "batches, both sides transposed",
      "graph @f(%x: f32[2, 3, 64, 50], %y: f32[2, 3, 90, 64]) -> f32[2, 3, 50, 90] {\n"
      "%r = dot_general %x, %y {x_batch = [0, 1], x_contract = [2], y_batch = [0, 1], y_contract = [3]} : "
      "f32[2, 3, 50, 90]\nreturn %r\n}\n",
      0, false },
    { "bias and residual, stored as float32 and for the next product",
      "graph @f(%x: f32[2, 35, 64], %y: f32[64, 96], %b: f32[96], %s: f32[2, 35, 96], %z: f32[96, 64]) -> "
      "(f32[2, 35, 96], f32[2, 35, 64]) {\n"
      "%r = dot_general %x, %y {x_batch = [], x_contract = [2], y_batch = [], y_contract = [0]} : f32[2, 35, "
      "96]\n"
      "%c = broadcast %b {axes = [2], dims = [2, 35, 96]} : f32[2, 35, 96]\n"
      "%d = add %r, %c : f32[2, 35, 96]\n%g = sign %d : f32[2, 35, 96]\n%e = add %g, %s : f32[2, 35, 96]\n"
      "%q = dot_general %e, %z {x_batch = [], x_contract = [2], y_batch = [], y_contract = [0]} : f32[2, 35, "
      "64]\nreturn %e, %q\n}\n",
      0, false },
    { "symbolic rows: none", SYMBOLIC, 0, false },
    { "symbolic rows: one", SYMBOLIC, 1, false },
    { "symbolic rows: a tile", SYMBOLIC, 16, false },
    { "symbolic rows: a block", SYMBOLIC, 32, false },
    { "symbolic rows: a block and one", SYMBOLIC, 33, false },
    { "symbolic rows: many", SYMBOLIC, 95, false },
};

static float number(int64_t i, int seed)
{
    return (float)((i * 7919 + seed * 104729) % 17 - 8) / 8;
}

static void fill(qn_array *array, const qn_type *type, const int64_t *symbols, int seed, qn_arena *arena)
{
    const int64_t n = array_of_type(array, type, symbols, arena);
    for (int64_t i = 0; i < n; i++)
        ((float *)array->data)[i] = number(i, seed);
}

/* All inputs but the first become constants. */
static void make_constant(qn_graph *graph, const qn_array *inputs)
{
    qn_diags diags;
    qn_diags_init(&diags, graph->module->arena);
    qn_builder b = { .graph = graph, .before = graph->first, .diags = &diags };
    for (int i = 1; i < graph->n_inputs; i++) {
        const qn_array *a = &inputs[i];
        qn_tensor *tensor = qn_tensor_new(graph->module, a->dtype, a->rank, a->dims, a->data);
        qn_value_replace(graph->inputs[i], qn_b_constant(&b, tensor));
    }
    qn_graph_resolve(graph);
}

static int count(const qn_graph *graph, qn_op op, qn_dtype of_operand, int operand)
{
    int n = 0;
    QN_FOR_NODES (graph, node)
        n += node->op == op && node->operands[operand]->type.dtype == of_operand;
    return n;
}

static void products_equal_those_of_float32(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int m = 0; m < MACHINES; m++) {
            qn_arena *arena = qn_arena_new();
            qn_diags diags;
            qn_diags_init(&diags, arena);
            qn_module *module;
            if (qn_text_parse(cases[i].text, strlen(cases[i].text), cases[i].name, &module, &diags))
                fail_msg("%s", qn_diags_text(&diags, arena));
            qn_graph *graph = module->functions[0];
            qn_array inputs[5];
            for (int k = 0; k < graph->n_inputs; k++)
                fill(&inputs[k], &graph->inputs[k]->type, &cases[i].symbol, k, arena);
            const bool by_pairs = machines[m] == &pairs || machines[m] == &blocks;
            if (by_pairs) /* which need it */
                make_constant(graph, inputs);
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .precision = QN_PRECISION_BF16,
                                              .machine = machines[m],
                                              .fold = qn_interp_fold };
            lowered_compare(cases[i].name, graph, &options, inputs, &cases[i].symbol);
            const bool wanted = by_pairs || (machines[m] == &tiles && !cases[i].pairs_only);
            if ((count(graph, QN_OP_MATMUL_PACKED, QUERN_BF16, 0) > 0) != wanted)
                fail_msg("%s: bfloat16 is used on the wrong machine", cases[i].name);
            qn_module_free(module);
            qn_arena_free(arena);
        }
}

/* ---- convolutions ---- */

/* Maps whose tiles are parts of a row, whole rows, several rows, or rows in one; borders; what is left over everywhere. */
static const struct {
    int64_t in, out, height, width, kernel, stride, pad;
} convolutions[] = {
    { 64, 64, 6, 33, 3, 1, 1 },  { 40, 70, 14, 14, 3, 1, 1 }, { 64, 32, 7, 7, 3, 1, 1 },
    { 32, 64, 14, 14, 3, 2, 1 }, { 64, 64, 7, 7, 1, 1, 0 },   { 33, 64, 9, 20, 1, 1, 0 },
    { 64, 32, 14, 14, 1, 2, 0 }, { 32, 32, 9, 9, 3, 1, 0 },   { 32, 32, 11, 40, 3, 2, 0 },
    { 32, 32, 5, 18, 5, 1, 2 },  { 32, 32, 3, 3, 1, 1, 0 },   { 3, 32, 12, 13, 7, 2, 3 },
    { 34, 41, 5, 6, 3, 1, 1 },
};

static qn_value *constant(qn_builder *b, qn_module *module, int rank, const int64_t *dims, int seed)
{
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    float *data = QN_NEW_ARRAY(module->arena, float, n);
    for (int64_t i = 0; i < n; i++)
        data[i] = number(i, seed);
    return qn_b_constant(b, qn_tensor_new(module, QUERN_F32, rank, dims, data));
}

/* A line's kernel that is wider than those whose columns meet borders: its input is padded. */
static void wide_kernels_equal_those_of_float32(void **state)
{
    (void)state;
    for (int m = 1; m < MULTIPLIES; m++) {
        qn_module *module = qn_module_new("wide");
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        qn_graph *graph = qn_function_new(module, "f");
        qn_builder b = { .graph = graph, .diags = &diags };
        const qn_type type = qn_type_static(module, QUERN_F32, 3, (int64_t[]){ 2, 34, 50 });
        qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
        const qn_conv conv = {
            .stride = (int64_t[]){ 2 }, .low = (int64_t[]){ 11 }, .high = (int64_t[]){ 12 }, .groups = 1
        };
        qn_value *w = constant(&b, module, 3, (int64_t[]){ 20, 34, 19 }, 1);
        qn_graph_add_output(graph, qn_b_convolution(&b, x, w, &conv), "r", -1);
        qn_array input = { .dims = { 0 } };
        fill(&input, &type, NULL, 4, module->arena);
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .precision = QN_PRECISION_BF16,
                                          .machine = machines[m],
                                          .fold = qn_interp_fold };
        lowered_compare("wide", graph, &options, &input, NULL);
        assert_int_equal(count(graph, QN_OP_CONV_PACKED, QUERN_BF16, 0), 1);
        qn_module_free(module);
    }
}

/* Two samples, with a bias, a division that makes NaN of what lies behind the channels, and the next convolution, which reads what it
 * stored; and the sum of both as float32. */
static void convolutions_equal_those_of_float32(void **state)
{
    (void)state;
    for (size_t at = 0; at < MULTIPLIES * (sizeof convolutions / sizeof *convolutions); at++) {
        const size_t i = at / MULTIPLIES;
        const int64_t in = convolutions[i].in, out = convolutions[i].out, kernel = convolutions[i].kernel;
        const int64_t stride[2] = { convolutions[i].stride, convolutions[i].stride },
                      pad[2] = { convolutions[i].pad, convolutions[i].pad };
        qn_module *module = qn_module_new("convolution");
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        qn_graph *graph = qn_function_new(module, "f");
        qn_builder b = { .graph = graph, .diags = &diags };
        const int64_t x_dims[] = { 2, in, convolutions[i].height, convolutions[i].width };
        qn_type type = qn_type_static(module, QUERN_F32, 4, x_dims);
        qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
        const qn_conv conv = { .stride = stride, .low = pad, .high = pad, .groups = 1 };
        qn_value *w = constant(&b, module, 4, (int64_t[]){ out, in, kernel, kernel }, 1);
        qn_value *y = qn_b_convolution(&b, x, w, &conv);
        const qn_type y_type = y->type;
        qn_value *bias = constant(&b, module, 1, (int64_t[]){ out }, 2);
        bias = qn_b_broadcast(&b, bias, 4, y_type.dims, (int64_t[]){ 1 });
        const qn_type s_type = qn_type_static(module, QUERN_F32, 1, (int64_t[]){ out });
        qn_value *s = qn_graph_add_input(graph, "s", s_type, QN_ROLE_INPUT);
        s = qn_b_binary_bcast(&b, QN_OP_ADD, qn_b_unary(&b, QN_OP_ABS, s), qn_b_scalar(&b, QUERN_F32, 1));
        s = qn_b_broadcast(&b, s, 4, y_type.dims, (int64_t[]){ 1 });
        y = qn_b_unary(&b, QN_OP_SIGN, qn_b_binary(&b, QN_OP_DIV, qn_b_binary(&b, QN_OP_ADD, y, bias), s));
        const qn_conv next = { .groups = 1 };
        qn_value *v = constant(&b, module, 4, (int64_t[]){ out, out, 1, 1 }, 3);
        qn_value *z = qn_b_convolution(&b, y, v, &next);
        qn_graph_add_output(graph, qn_b_binary(&b, QN_OP_ADD, z, y), "r", -1);
        qn_array inputs[2];
        fill(&inputs[0], &type, NULL, 4, module->arena);
        fill(&inputs[1], &s_type, NULL, 5, module->arena);
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .precision = QN_PRECISION_BF16,
                                          .machine = machines[at % MULTIPLIES],
                                          .fold = qn_interp_fold };
        lowered_compare(qn_arena_printf(module->arena, "convolution %d", (int)i), graph, &options, inputs,
                        NULL);
        /* three channels are a block of pairs, but no tile */
        const bool first = !options.machine->tiles || in >= 32;
        assert_int_equal(count(graph, QN_OP_CONV_PACKED, QUERN_BF16, 0), first + 1);
        qn_module_free(module);
    }
}

/* Winograd's method, in float32, takes less than half of the direct kernel's multiplications of 28 x 28 maps of 128 channels; in
 * 7 x 7 maps of 512 it waits for its filters. Pairs are multiplied where it is not faster. */
static void winograd_stays_where_it_is_faster(void **state)
{
    (void)state;
    static const struct {
        int64_t channels, size, kernel;
        bool winograd;
    } maps[] = { { 128, 28, 3, true }, { 512, 7, 3, false }, { 128, 28, 1, false } };
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        const int64_t c = maps[i].channels, k = maps[i].kernel, pad[2] = { k / 2, k / 2 };
        qn_module *module = qn_module_new("maps");
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        qn_graph *graph = qn_function_new(module, "f");
        qn_builder b = { .graph = graph, .diags = &diags };
        qn_type type = qn_type_static(module, QUERN_F32, 4, (int64_t[]){ 1, c, maps[i].size, maps[i].size });
        qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
        const qn_conv conv = { .low = pad, .high = pad, .groups = 1 };
        qn_value *w = constant(&b, module, 4, (int64_t[]){ c, c, k, k }, 1);
        qn_graph_add_output(graph, qn_b_convolution(&b, x, w, &conv), "r", -1);
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .precision = QN_PRECISION_BF16,
                                          .machine = &pairs };
        assert_int_equal(qn_run_passes(graph, "quantize,layout", &options, NULL, &diags), QUERN_OK);
        assert_int_equal(count(graph, QN_OP_CONV_WINOGRAD, QUERN_F32, 0), maps[i].winograd);
        assert_int_equal(count(graph, QN_OP_CONV_PACKED, QUERN_BF16, 0), !maps[i].winograd);
        qn_module_free(module);
    }
}

/* Few rows wait for the right side to be read: it is kept in bfloat16 on any machine and multiplied in float32. */
static int cut; /* kernels whose k is done in passes */

/* Any numbers, the same for the same site. */
static bool find_anything(void *user, const char *site, qn_schedule *out)
{
    static const int64_t numbers[] = { 0, 1, 2, 3, 4, 8, 33, 64, 100, 128, 1000, 1 << 30 };
    uint64_t state = *(const uint64_t *)user;
    for (const char *c = site; *c; c++)
        state = (state ^ (unsigned char)*c) * 0x100000001b3u;
    for (int i = 0; i < QN_N_KNOBS; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out->knobs[i] = numbers[(state >> 33) % (sizeof numbers / sizeof *numbers)];
    }
    return true;
}

/* Notes whether k is cut. */
static void note_depth(void *user, const char *site, const char *node, const qn_schedule *given)
{
    long long k;
    (void)user, (void)node;
    assert_int_equal(sscanf(site, "%*s %*s %*[^x]x%*[^x]x%lld", &k), 1);
    cut += given->knobs[QN_KNOB_DEPTH] < k;
}

/* Numbers whose sums depend on their order. */
static void fill_uneven(qn_array *array, const qn_type *type, const int64_t *symbols, int seed,
                        qn_arena *arena)
{
    int64_t n = 1;
    fill(array, type, symbols, seed, arena);
    for (int i = 0; i < array->rank; i++)
        n *= array->dims[i];
    for (int64_t i = 0; i < n; i++)
        ((float *)array->data)[i] /= (float)(3 + i % 7);
}

static void run_with(const char *name, const char *text, const int64_t *symbol, uint64_t seed, qn_array *out,
                     int *n_outputs, qn_arena *arena)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module;
    qn_array inputs[5];
    assert_int_equal(qn_text_parse(text, strlen(text), name, &module, &diags), 0);
    qn_graph *graph = module->functions[0];
    for (int k = 0; k < graph->n_inputs; k++)
        fill_uneven(&inputs[k], &graph->inputs[k]->type, symbol, k, arena);
    const qn_schedule_book book = { .find = find_anything, .note = note_depth, .user = &seed };
    const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                      .precision = QN_PRECISION_BF16,
                                      .machine = &tiles,
                                      .schedules = seed ? &book : NULL,
                                      .fold = qn_interp_fold };
    *n_outputs = graph->n_outputs;
    if (lowered_run(graph, true, &options, inputs, symbol, out, NULL, arena, &diags))
        fail_msg("%s, seed %d: %s", name, (int)seed, qn_diags_text(&diags, arena));
    qn_module_free(module);
}

/* How k is cut into passes, how large tasks are, and what is fetched. */
static void schedules_change_no_bit(void **state)
{
    (void)state;
    enum { SEEDS = 16 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (uint64_t seed = 1; seed <= (cases[i].pairs_only ? 0 : SEEDS); seed++) {
            qn_arena *arena = qn_arena_new();
            qn_array expected[2], found[2];
            int n;
            run_with(cases[i].name, cases[i].text, &cases[i].symbol, 0, expected, &n, arena);
            run_with(cases[i].name, cases[i].text, &cases[i].symbol, seed, found, &n, arena);
            for (int k = 0; k < n; k++) {
                size_t bytes = sizeof(float);
                for (int d = 0; d < expected[k].rank; d++)
                    bytes *= (size_t)expected[k].dims[d];
                if (memcmp(expected[k].data, found[k].data, bytes) != 0)
                    fail_msg("%s: seed %d changes output %d", cases[i].name, (int)seed, k);
            }
            qn_arena_free(arena);
        }
    assert_true(cut > SEEDS);
}

static void few_rows_of_a_constant(void **state)
{
    (void)state;
    enum { K = 41, N = 165 };
    static float y[K * N];
    for (int i = 0; i < K * N; i++)
        y[i] = number(i, 3);
    for (int rows = 1; rows <= 5; rows++)
        for (int m = 0; m < MACHINES; m++) {
            qn_machine machine = *machines[m];
            machine.l2_bytes =
                sizeof y / 2; /* which otherwise keeps the constant: float32, with short vectors */
            qn_module *module = qn_module_new("constant");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            qn_type type = qn_type_static(module, QUERN_F32, 2, (int64_t[]){ rows, K });
            qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
            qn_value *w = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ K, N }, y));
            qn_graph_add_output(graph, qn_b_matmul(&b, x, w), "r", -1);
            qn_array input = { .dims = { 0 } };
            fill(&input, &type, NULL, 1, module->arena);
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .precision = QN_PRECISION_BF16,
                                              .machine = &machine,
                                              .fold = qn_interp_fold };
            lowered_compare("few rows", graph, &options, &input, NULL);
            assert_int_equal(count(graph, QN_OP_MATMUL_PACKED, QUERN_BF16, 1), rows <= 4);
            assert_int_equal(count(graph, QN_OP_MATMUL_PACKED, QUERN_F32, 0), 1);
            qn_module_free(module);
        }
}

/* ---- as code ---- */

/* Compiles the text for this machine and runs it on the inputs. A status. */
static int run_text(const char *text, int n_inputs, const quern_array *inputs, const char *precision,
                    float *out)
{
    quern_module *module;
    const quern_compile_options options = { .size = sizeof options, .precision = precision, .cache = "" };
    const int status = quern_load_bytes(text, strlen(text), NULL, &module);
    return status ? status : module_run(module, &options, n_inputs, inputs, out);
}

static void machine_code_gives_the_same(void **state)
{
    (void)state;
    enum { M = 71, K = 96, N = 77 };
    static float x[M * K], y[K * N], bias[N], found[M * N], expected[M * N];
    static const char text[] = "graph @f(%x: f32[71, 96], %y: f32[96, 77], %b: f32[77]) -> f32[71, 77] {\n"
                               "%r = dot_general %x, %y " PLAIN " : f32[71, 77]\n"
                               "%c = broadcast %b {axes = [1], dims = [71, 77]} : f32[71, 77]\n"
                               "%d = add %r, %c : f32[71, 77]\nreturn %d\n}\n";
    for (int i = 0; i < M * K; i++)
        x[i] = number(i, 1);
    for (int i = 0; i < K * N; i++)
        y[i] = number(i, 2);
    for (int i = 0; i < N; i++)
        bias[i] = number(i, 3);
    const int64_t dims[3][2] = { { M, K }, { K, N }, { N } };
    const quern_array inputs[] = { { QUERN_F32, 2, dims[0], x },
                                   { QUERN_F32, 2, dims[1], y },
                                   { QUERN_F32, 1, dims[2], bias } };
    assert_int_equal(run_text(text, 3, inputs, "bf16", found), QUERN_OK);
    assert_int_equal(run_text(text, 3, inputs, "f32", expected), QUERN_OK);
    assert_memory_equal(found, expected, sizeof found);
    const char *cpus[3];
    for (int i = host_cpus(cpus) - 1; i >= 0; i--)
        linear_is_exact("bf16", cpus[i], (int64_t[]){ M, K, N }, x, y, bias);
    assert_int_equal(run_text(text, 3, inputs, "f8", found), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "f32, bf16"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(instructions_as_text_and_code),
        cmocka_unit_test(mistakes_are_found),
        cmocka_unit_test(products_equal_those_of_float32),
        cmocka_unit_test(schedules_change_no_bit),
        cmocka_unit_test(few_rows_of_a_constant),
        cmocka_unit_test(convolutions_equal_those_of_float32),
        cmocka_unit_test(wide_kernels_equal_those_of_float32),
        cmocka_unit_test(machine_code_gives_the_same),
        cmocka_unit_test(winograd_stays_where_it_is_faster),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
