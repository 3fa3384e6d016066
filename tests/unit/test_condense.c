/* Panels of float32 in 28 bits a number, and of bf16 in 12: written and read back to the bit, whatever the numbers are; products of one row with them,
 * through the pass condense and the template gemv, against the interpreter and against plain panels; machine code against the
 * kernel interpreter, also of bytes that no panel has; constants that only seemed to have room. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "driver/compile.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "ir/condensed.h"
#include "passes/claim.h"
#include "passes/passes.h"
#include "tests/support/eval.h"
#include "tests/support/folder.h"
#include "tests/support/jit_kernel.h"
#include "tests/support/lowered.h"

static uint64_t state_of_random;

static double uniform(void)
{
    state_of_random = state_of_random * 6364136223846793005u + 1442695040888963407u;
    return ((double)(state_of_random >> 33) + 0.5) / (double)(1u << 31);
}

/* Normally distributed, as weights are. */
static float *weights(qn_arena *arena, int64_t n)
{
    float *data = QN_NEW_ARRAY(arena, float, n);
    state_of_random = 1;
    for (int64_t i = 0; i < n; i++)
        data[i] = (float)(0.02 * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
    return data;
}

/* ---- panels ---- */

static qn_condensed wide(int64_t k, int64_t width)
{
    return (qn_condensed){ QUERN_F32, k, width };
}

/* The upper halves. */
static uint16_t *as_bf16(qn_arena *arena, const float *numbers, int64_t n)
{
    uint16_t *halves = QN_NEW_ARRAY(arena, uint16_t, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &numbers[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
    }
    return halves;
}

static void expect_round_trip_of(const char *what, qn_condensed c, const void *numbers, bool fits)
{
    qn_arena *arena = qn_arena_new();
    const qn_runs rows = { numbers, c.k, c.width, c.width };
    const int64_t n = c.k * c.width;
    const char *dtype = qn_dtype_name(c.dtype);
    uint8_t *panel = malloc((size_t)qn_condensed_bytes(c));
    float *read = malloc((size_t)n * sizeof *read);
    assert_non_null(panel);
    assert_non_null(read);
    if (qn_condensed_takes(c, &rows) != fits || qn_condense(c, 1, &rows, panel) != fits)
        fail_msg("%s: %lld x %lld of %s %s", what, (long long)c.k, (long long)c.width, dtype,
                 fits ? "does not fit" : "fits");
    qn_condensed_read(c, panel, read);
    const void *back = c.dtype == QUERN_F32 ? (void *)read : as_bf16(arena, read, n);
    if (fits && memcmp(back, numbers, (size_t)n * qn_dtype_bytes(c.dtype)) != 0)
        fail_msg("%s: %lld x %lld of %s is not the same", what, (long long)c.k, (long long)c.width, dtype);
    free(read);
    free(panel);
    qn_arena_free(arena);
}

static void expect_round_trip(const char *what, const float *numbers, int64_t k, int64_t width, bool fits)
{
    qn_arena *arena = qn_arena_new();
    expect_round_trip_of(what, wide(k, width), numbers, fits);
    expect_round_trip_of(what, (qn_condensed){ QUERN_BF16, k, width }, as_bf16(arena, numbers, k * width),
                         fits);
    qn_arena_free(arena);
}

static void panels_are_read_as_they_were(void **state)
{
    (void)state;
    static const int64_t ks[] = { 8, 13, 64, 771 }, widths[] = { 4, 8, 16, 32 };
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 4; j++) {
            const int64_t k = ks[i], width = widths[j], n = k * width;
            qn_arena *arena = qn_arena_new();
            float *x = weights(arena, n);
            assert_int_equal(qn_condensed_bytes(wide(k, width)) % width, 0);
            expect_round_trip("normal", x, k, width, true);
            for (int64_t l = 0; l < n; l += 3) /* pruned, with both zeros */
                x[l] = l % 2 ? -0.0f : 0.0f;
            expect_round_trip("pruned", x, k, width, true);
            const float odd[] = { INFINITY, -INFINITY, NAN, 1e-30f, -1e30f, 1e-42f };
            for (int64_t l = 0; l < 6 && l + 2 < qn_condensed_room(wide(k, width)); l++)
                x[n - 1 - l * 5] = odd[l];
            expect_round_trip("infinite", x, k, width, true);
            for (int64_t l = 0; l < n; l++)
                x[l] = -0.125f;
            expect_round_trip("equal", x, k, width, true);
            for (int64_t l = 0; l < n; l++)
                x[l] = (float)(l + 1) * 1e-45f;
            expect_round_trip("denormal", x, k, width, true);
            memset(x, 0, (size_t)n * sizeof *x);
            expect_round_trip("zero", x, k, width, true);
            qn_arena_free(arena);
        }
}

static void lists_have_so_much_room(void **state)
{
    (void)state;
    const int64_t k = 600, width = 32, room = qn_condensed_room(wide(k, width));
    qn_arena *arena = qn_arena_new();
    float *x = QN_NEW_ARRAY(arena, float, k *width);
    for (int64_t i = 0; i < k * width; i++)
        x[i] = 0.5f;
    for (int64_t i = 0; i < room; i++)
        x[i * 37 + 5] = i % 2 ? 1e-20f : -1e20f;
    expect_round_trip("as many as there is room for", x, k, width, true);
    x[k * width - 1] = 1e20f;
    expect_round_trip("one more", x, k, width, false);
    qn_arena_free(arena);
}

/* Far apart they give the same panel; by columns and by rows the same numbers choose its table, so that what is found alike enough
 * by columns has room when it is written by rows. */
static void panels_may_lie_apart(void **state)
{
    (void)state;
    static const int64_t ks[] = { 20, 1037, 4099 }, widths[] = { 4, 16, 32 };
    enum { APART = 50 };
    for (int i = 0; i < 9; i++) {
        const int64_t k = ks[i / 3], width = widths[i % 3], room = qn_condensed_room(wide(k, width));
        qn_arena *arena = qn_arena_new();
        float *all = weights(arena, k * APART), *together = QN_NEW_ARRAY(arena, float, k *width),
              *turned = QN_NEW_ARRAY(arena, float, k *width), *read = QN_NEW_ARRAY(arena, float, k *width);
        for (int64_t other = 0; other < room / 2; other++)
            all[(other * 8 + 1) % k * APART] = 1e20f;
        for (int64_t at = 0; at < k * width; at++) {
            together[at] = all[at / width * APART + at % width];
            turned[at % width * k + at / width] = together[at];
        }
        const qn_runs apart = { (const uint8_t *)all, k, width, APART },
                      rows = { (const uint8_t *)together, k, width, width },
                      columns = { (const uint8_t *)turned, width, k, k };
        uint8_t *panels[2];
        for (int p = 0; p < 2; p++) {
            panels[p] = QN_NEW_ARRAY(arena, uint8_t, qn_condensed_bytes(wide(k, width)));
            assert_int_equal(qn_condense(wide(k, width), 1, p ? &apart : &rows, panels[p]),
                             qn_condensed_takes(wide(k, width), &columns));
        }
        assert_memory_equal(panels[0], panels[1], (size_t)qn_condensed_bytes(wide(k, width)));
        assert_true(qn_condensed_takes(wide(k, width), &apart));
        qn_condensed_read(wide(k, width), panels[0], read);
        assert_memory_equal(read, together, (size_t)(k * width) * sizeof *read);
        qn_arena_free(arena);
    }
}

/* ---- products ---- */

static const qn_machine machines[] = {
    { LOWERED_AVX512 },
    { LOWERED_AVX2 },
    { LOWERED_AARCH64 },
    { LOWERED_AVX512, .follows_streams = true },
};
enum { MACHINES = sizeof machines / sizeof *machines };

typedef struct example {
    int64_t batch, k, n;
    bool epilogue;
} example;

/* x [batch, 1, K] times panels of that width, of f32 or bf16, condensed or plain; logistic(product + bias) beside it. */
static qn_graph *product(const example *c, qn_dtype dtype, int64_t width, bool condensed, bool odd)
{
    qn_module *module = qn_module_new("row");
    qn_diags *diags = QN_NEW(module->arena, qn_diags);
    qn_diags_init(diags, module->arena);
    qn_graph *graph = qn_function_new(module, "f");
    qn_builder b = { .graph = graph, .diags = diags };
    const int64_t n_panels = (c->n + width - 1) / width, n = c->batch * n_panels * c->k * width;
    float *numbers = weights(module->arena, n);
    for (int64_t i = 0; i < n; i += 1409)
        numbers[i] = odd ? 3e4f : i % 2 ? 0 : 1e-9f;
    const void *stored = dtype == QUERN_F32 ? (void *)numbers : as_bf16(module->arena, numbers, n);
    const qn_tensor *y =
        qn_tensor_new(module, dtype, 4, (int64_t[]){ c->batch, n_panels, c->k, width }, stored);
    qn_value *x = qn_graph_add_input(
        graph, "x", qn_type_static(module, QUERN_F32, 3, (int64_t[]){ c->batch, 1, c->k }), QN_ROLE_INPUT);
    qn_value *r =
        qn_b_matmul_packed(&b, x, qn_b_constant(&b, condensed ? qn_tensor_condensed(module, y, false) : y), 1,
                           qn_dim_const(module->dims, c->n), QUERN_F32);
    if (!r)
        fail_msg("%s", qn_diags_text(diags, module->arena));
    qn_graph_add_output(graph, r, "product", -1);
    if (c->epilogue) {
        qn_value *bias =
            qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 1, &c->n, weights(module->arena, c->n)));
        r = qn_b_unary(&b, QN_OP_LOGISTIC, qn_b_binary_bcast(&b, QN_OP_ADD, r, bias));
        qn_graph_add_output(graph, r, "y", -1);
    }
    return graph;
}

static const example examples[] = {
    { 1, 8, 32, false },  { 1, 41, 65, false }, { 1, 63, 128, true },  { 1, 300, 70, true },
    { 3, 50, 70, false }, { 2, 15, 97, true },  { 1, 1025, 7, false },
};

static qn_array input_of(const example *c, qn_arena *arena)
{
    qn_array x = { .dtype = QUERN_F32, .rank = 3, .dims = { c->batch, 1, c->k } };
    float *data = QN_NEW_ARRAY(arena, float, c->batch * c->k);
    for (int64_t i = 0; i < c->batch * c->k; i++)
        data[i] = (float)(i * 7919 % 201 - 100) / 100;
    x.data = data;
    return x;
}

static void products_equal_the_interpreters(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        for (size_t m = 0; m < 4 * MACHINES; m++) {
            const qn_machine *machine = &machines[m / 4];
            const qn_dtype dtype = m / 2 % 2 ? QUERN_BF16 : QUERN_F32;
            const int64_t lanes = machine->vector_bytes / 4,
                          width = examples[i].n > lanes ? 2 * lanes : lanes;
            qn_graph *graph = product(&examples[i], dtype, width, true, m % 2),
                     *plain = product(&examples[i], dtype, width, false, m % 2);
            qn_arena *arena = graph->module->arena;
            qn_diags diags;
            qn_diags_init(&diags, arena);
            qn_array x = input_of(&examples[i], arena), expected[2], found[2];
            assert_int_equal(qn_interp_run(plain, &x, expected, arena, &diags), QUERN_OK);
            assert_int_equal(qn_interp_run(graph, &x, found, arena, &diags), QUERN_OK);
            for (int o = 0; o < graph->n_outputs; o++) /* the same numbers in the same order */
                assert_memory_equal(found[o].data, expected[o].data,
                                    (size_t)(examples[i].batch * examples[i].n) * sizeof(float));
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .machine = machine,
                                              .fold = qn_interp_fold };
            lowered_compare("row", graph, &options, &x, NULL);
            qn_module_free(graph->module);
            qn_module_free(plain->module);
        }
}

/* Without numbers in lists the sums have the same order, and so the same bits, as with plain panels. */
static void sums_are_those_of_plain_panels(void **state)
{
    (void)state;
    const example c = { 1, 61, 70, false };
    for (size_t m = 0; m < MACHINES; m++) {
        qn_array found[2];
        qn_graph *graphs[2];
        for (int condensed = 0; condensed < 2; condensed++) {
            qn_module *module = qn_module_new("row");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = graphs[condensed] = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            const int64_t width = machines[m].vector_bytes / 2, n_panels = (c.n + width - 1) / width;
            float *numbers = QN_NEW_ARRAY(module->arena, float, n_panels *c.k *width);
            for (int64_t i = 0; i < n_panels * c.k * width; i++)
                numbers[i] = (float)(1 + i % 97) / 97;
            const qn_tensor *y =
                qn_tensor_new(module, QUERN_F32, 3, (int64_t[]){ n_panels, c.k, width }, numbers);
            qn_value *x = qn_graph_add_input(
                graph, "x", qn_type_static(module, QUERN_F32, 2, (int64_t[]){ 1, c.k }), QN_ROLE_INPUT);
            qn_value *r = qn_b_matmul_packed(
                &b, x, qn_b_constant(&b, condensed ? qn_tensor_condensed(module, y, false) : y), 0,
                qn_dim_const(module->dims, c.n), QUERN_F32);
            qn_graph_add_output(graph, r, "product", -1);
            qn_array in = input_of(&c, module->arena);
            in.rank = 2;
            in.dims[1] = c.k;
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .machine = &machines[m],
                                              .fold = qn_interp_fold };
            if (lowered_run(graph, false, &options, &in, NULL, &found[condensed], NULL, module->arena,
                            &diags))
                fail_msg("%s", qn_diags_text(&diags, module->arena));
        }
        assert_memory_equal(found[0].data, found[1].data, (size_t)c.n * sizeof(float));
        qn_module_free(graphs[0]->module);
        qn_module_free(graphs[1]->module);
    }
}

/* Of random bytes in the place of panels, whose lists and places in them are anything: nothing else is touched. */
static void machine_code_gives_the_same(void **state)
{
    (void)state;
    static const char *const cpus[] = { NULL, "x86-64-v3" };
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        for (int of = 0; of < 4; of++) {
            const example *c = &examples[i];
            const int m = of % 2;
            const int64_t lanes = machines[m].vector_bytes / 4, width = c->n > lanes ? 2 * lanes : lanes;
            const qn_condensed panel = { of / 2 ? QUERN_BF16 : QUERN_F32, c->k, width };
            qn_graph *graph =
                product(&(example){ c->batch, c->k, c->n, false }, panel.dtype, width, true, false);
            qn_diags diags;
            qn_diags_init(&diags, graph->module->arena);
            const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = &machines[m] };
            qn_program *program;
            assert_int_equal(qn_lower(graph, &options, graph->module->arena, &program, &diags), QUERN_OK);
            assert_int_equal(program->n_kernels, 1);
            const int64_t bytes = (c->n + width - 1) / width * qn_condensed_bytes(panel);
            kernel_compare(program->kernels[0],
                           (int64_t[]){ c->batch * c->k, c->batch * bytes, c->batch * c->n }, NULL, 1,
                           cpus[m]);
            qn_module_free(graph->module);
        }
}

/* ---- the pass ---- */

enum { DEPTH = 512 };

static bool is_condensed(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_MATMUL_PACKED && node->operands[1]->type.dtype == QUERN_U8)
            return true;
    return false;
}

/* A product of rows with a constant of DEPTH x n, of which some numbers, from that column on each 32nd, are `other`. */
static qn_graph *model_of(int64_t rows, int64_t n, int64_t others, int64_t column, float other)
{
    qn_module *module = qn_module_new("model");
    qn_diags *diags = QN_NEW(module->arena, qn_diags);
    qn_diags_init(diags, module->arena);
    qn_graph *graph = qn_function_new(module, "f");
    qn_builder b = { .graph = graph, .diags = diags };
    float *numbers = weights(module->arena, DEPTH * n);
    for (int64_t i = 0; i < DEPTH * n; i++)
        numbers[i] = 0.25f + fabsf(numbers[i]);
    for (int64_t i = 0; i < others; i++)
        numbers[i % DEPTH * n + column + i / DEPTH * 32] = other;
    qn_value *x = qn_graph_add_input(
        graph, "x", qn_type_static(module, QUERN_F32, 2, (int64_t[]){ rows, DEPTH }), QN_ROLE_INPUT);
    qn_value *y = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ DEPTH, n }, numbers));
    qn_graph_add_output(graph, qn_b_matmul(&b, x, y), "y", -1);
    return graph;
}

/* All in the first panel. */
static qn_graph *model(int64_t rows, int64_t n, int64_t others)
{
    return model_of(rows, n, others, 0, 1e-20f);
}

static bool becomes_condensed(int64_t rows, int64_t n, int64_t others, qn_math math,
                              const qn_machine *machine)
{
    qn_graph *graph = model(rows, n, others);
    qn_diags diags;
    qn_diags_init(&diags, graph->module->arena);
    const qn_pass_options options = { .math = math, .machine = machine, .fold = qn_interp_fold };
    const qn_pass_hooks hooks = { .verify_each = true };
    if (qn_run_passes(graph, NULL, &options, &hooks, &diags))
        fail_msg("%s", qn_diags_text(&diags, graph->module->arena));
    const bool is = is_condensed(graph);
    qn_module_free(graph->module);
    return is;
}

static void large_constants_become_so(void **state)
{
    (void)state;
    const int64_t room = qn_condensed_room(wide(DEPTH, 32));
    const qn_machine gpu = { .gpu = true };
    assert_true(becomes_condensed(1, 600, 0, QN_MATH_DEFAULT, &machines[0]));
    assert_true(becomes_condensed(1, 600, room, QN_MATH_DEFAULT, &machines[0]));
    assert_false(becomes_condensed(1, 600, room + 1, QN_MATH_DEFAULT, &machines[0]));
    assert_true(becomes_condensed(1, 600, 0, QN_MATH_DEFAULT, &machines[1]));
    assert_true(becomes_condensed(1, 600, 0, QN_MATH_DEFAULT, &machines[2]));
    assert_false(becomes_condensed(2, 600, 0, QN_MATH_DEFAULT, &machines[0]));
    assert_false(becomes_condensed(1, 300, 0, QN_MATH_DEFAULT, &machines[0]));
    assert_false(becomes_condensed(1, 600, 0, QN_MATH_STRICT, &machines[0]));
    assert_false(becomes_condensed(1, 600, 0, QN_MATH_DEFAULT, &gpu));
}

static void run_passes(qn_graph *graph, qn_precision precision, bool samples)
{
    qn_diags diags;
    qn_diags_init(&diags, graph->module->arena);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                      .precision = precision,
                                      .machine = &machines[0],
                                      .fold = qn_interp_fold,
                                      .samples = samples };
    const qn_pass_hooks hooks = { .verify_each = true };
    if (qn_run_passes(graph, NULL, &options, &hooks, &diags))
        fail_msg("%s", qn_diags_text(&diags, graph->module->arena));
}

static const qn_tensor *right_side(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_MATMUL_PACKED)
            return qn_value_constant(node->operands[1]);
    return NULL;
}

/* Those that are multiplied as float32, on machines that do not multiply bf16. */
static void so_do_constants_of_bf16(void **state)
{
    (void)state;
    for (int samples = 0; samples < 2; samples++) {
        qn_graph *graph = model(1, 1200, 0);
        run_passes(graph, QN_PRECISION_BF16, samples);
        const qn_condensed of = { QUERN_BF16, DEPTH, 32 };
        const qn_tensor *tensor = right_side(graph);
        assert_int_equal(tensor->type.dtype, QUERN_U8);
        assert_int_equal(tensor->bytes, (1200 + 31) / 32 * qn_condensed_bytes(of));
        float *numbers = QN_NEW_ARRAY(graph->module->arena, float, DEPTH * 32);
        const float *plain = weights(graph->module->arena, DEPTH * 1200);
        qn_condensed_read(of, (const char *)qn_tensor_data(tensor) + qn_condensed_bytes(of), numbers);
        for (int64_t i = 0; i < DEPTH * 32; i++) {
            const float expected = 0.25f + fabsf(plain[i / 32 * 1200 + 32 + i % 32]);
            assert_true(fabsf(numbers[i] - expected) <= expected / 256);
        }
        qn_module_free(graph->module);
    }
}

static bool is_lost(const qn_tensor *tensor, void *user)
{
    (void)user;
    return qn_tensor_is_lost(tensor);
}

/* What a sample sees too many others in stays as it is; what it does not see shows when the constant is written. */
static void samples_are_guesses(void **state)
{
    (void)state;
    const int64_t room = qn_condensed_room(wide(DEPTH, 32));
    static const struct {
        int64_t column, others;
        bool is, loses;
    } cases[] = { { 0, 0, true, false },
                  { 0, 2 * DEPTH, false, false },
                  { 40, 1, true, false },
                  { 40, 2 * DEPTH, true, true } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int exact = 0; exact < 2; exact++) {
            qn_graph *graph = model_of(1, 1200, cases[i].others, cases[i].column, 1e-20f);
            run_passes(graph, QN_PRECISION_F32, !exact);
            const bool fits = cases[i].others <= room;
            assert_int_equal(is_condensed(graph), exact ? fits : cases[i].is);
            const qn_tensor *tensor = right_side(graph);
            assert_int_equal(qn_tensor_sampled(tensor) != NULL, !exact && cases[i].is);
            assert_false(qn_tensor_is_lost(tensor));
            qn_tensor_data(tensor);
            assert_int_equal(qn_tensor_is_lost(tensor), !exact && cases[i].loses);
            assert_int_equal(qn_expand_sampled(graph, is_lost, NULL), !exact && cases[i].loses);
            assert_int_equal(is_condensed(graph), fits && (exact || cases[i].is));
            qn_module_free(graph->module);
        }
}

static void run_compiled(qn_graph *graph, const qn_settings *settings, int64_t n, float *y, qn_diags *diags)
{
    float x[DEPTH];
    quern_model *compiled;
    quern_session *session;
    quern_array out;
    for (int i = 0; i < DEPTH; i++)
        x[i] = 1 - (float)(i % 7) / 4;
    if (qn_model_jit(graph->module, settings, &compiled, diags))
        fail_msg("%s", qn_diags_text(diags, graph->module->arena));
    const quern_array in = { .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ 1, DEPTH }, .data = x };
    assert_int_equal(quern_session_new(compiled, NULL, &session), QUERN_OK);
    assert_int_equal(quern_session_bind(session, 0, &in), QUERN_OK);
    assert_int_equal(quern_session_run(session), QUERN_OK);
    assert_int_equal(quern_session_get(session, 1, &out), QUERN_OK);
    memcpy(y, out.data, (size_t)n * sizeof *y);
    quern_session_free(session);
    quern_model_free(compiled);
}

/* Bytes of weights of what is compiled at first; *kept: out of the cache. */
static int64_t bytes_at_first(qn_graph *graph, const qn_settings *settings, bool *kept, qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    qn_compiled compiled;
    if (qn_compile_module(graph->module, settings, QN_EMIT_OBJECT, arena, &compiled, diags))
        fail_msg("%s", qn_diags_text(diags, arena));
    const int64_t bytes = compiled.weights.bytes;
    *kept = compiled.kept[0];
    qn_arena_free(arena);
    qn_module_free(graph->module);
    return bytes;
}

/* Models whose constants lose numbers are made again with whole ones, of which the cache keeps a note: of the others they are the
 * same bits then as where all are seen to have no room. */
static void models_lose_nothing(void **state)
{
    fixture *f = *state;
    enum { N = 1200 };
    const float far = 3e8f;
    float expected[N], y[N];
    bool kept;
    for (int with_cache = 0; with_cache < 2; with_cache++) {
        const quern_compile_options options = { .size = sizeof options,
                                                .threads = 1,
                                                .cache = with_cache ? f->folder : "" };
        qn_settings settings;
        assert_int_equal(qn_settings_from(&options, &settings, &f->diags), QUERN_OK);
        settings.target.jit = true;
        qn_graph *seen = model_of(1, N, 2 * DEPTH, 0, far); /* columns 0 and 32 */
        run_compiled(seen, &settings, N, expected, &f->diags);
        qn_module_free(seen->module);
        int64_t bytes = bytes_at_first(model_of(1, N, 2 * DEPTH, 40, far), &settings, &kept, &f->diags);
        assert_true(bytes < 4 * DEPTH * N);
        for (int start = 0; start < 3; start++) {
            qn_graph *graph = model_of(1, N, 2 * DEPTH, 40, far);
            run_compiled(graph, &settings, N, y, &f->diags);
            qn_module_free(graph->module);
            for (int i = 0; i < N; i++)
                if (i == 40 || i == 72)
                    assert_true(y[i] == expected[i - 40]);
                else if (i != 0 && i != 32)
                    assert_true(y[i] == expected[i]);
            bytes = bytes_at_first(model_of(1, N, 2 * DEPTH, 40, far), &settings, &kept, &f->diags);
            assert_int_equal(bytes >= 4 * DEPTH * N, with_cache);
            assert_int_equal(kept, with_cache);
        }
    }
}

static void models_give_the_same(void **state)
{
    (void)state;
    for (size_t m = 0; m < 3; m++) {
        qn_graph *graph = model(1, 523, 5);
        qn_array x = input_of(&(example){ 1, DEPTH, 0, false }, graph->module->arena);
        x.rank = 2;
        x.dims[1] = DEPTH;
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .machine = &machines[m],
                                          .fold = qn_interp_fold };
        lowered_compare("model", graph, &options, &x, NULL);
        assert_true(is_condensed(graph));
        qn_module_free(graph->module);
    }
}

static void mistakes_are_found(void **state)
{
    (void)state;
    static const char *const types[][2] = {
        { "f32[1, 64]", "u8[1, 225, 32]" }, /* rows */
        { "f32[1, 64]", "u8[1, 228, 64]" }, /* columns */
        { "f32[1, 0]", "u8[1, 2, 32]" },    { "f32[1, 134217728]", "u8[1, 471859202, 32]" },
        { "f32[1, 65]", "u8[1, 228, 32]" }, { "f16[1, 64]", "u8[1, 228, 32]" },
        { "f32[1, 64]", "i8[1, 228, 32]" },
    };
    for (size_t i = 0; i <= sizeof types / sizeof *types; i++) {
        const bool good = i == sizeof types / sizeof *types;
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        const char *y = qn_arena_printf(arena, "u8[1, %d, 32]", (int)qn_condensed_bytes(wide(64, 32)) / 32);
        const char *text = qn_arena_printf(arena,
                                           "graph @f(%%x: %s, %%y: %s) -> f32[1, 32] {\n%%r = matmul_packed "
                                           "%%x, %%y {batch_dims = 0, dims = [32]} : f32[1, 32]\nreturn "
                                           "%%r\n}\n",
                                           good ? "f32[1, 64]" : types[i][0], good ? y : types[i][1]);
        const qn_status status = qn_text_parse(text, strlen(text), "test", &module, &diags);
        if (good != (status == QUERN_OK))
            fail_msg("%s: %s", text, qn_diags_text(&diags, arena));
        if (good)
            qn_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_are_read_as_they_were),
        cmocka_unit_test(lists_have_so_much_room),
        cmocka_unit_test(panels_may_lie_apart),
        cmocka_unit_test(products_equal_the_interpreters),
        cmocka_unit_test(sums_are_those_of_plain_panels),
        cmocka_unit_test(machine_code_gives_the_same),
        cmocka_unit_test(large_constants_become_so),
        cmocka_unit_test(so_do_constants_of_bf16),
        cmocka_unit_test(models_give_the_same),
        cmocka_unit_test(samples_are_guesses),
        cmocka_unit_test_setup_teardown(models_lose_nothing, setup_cache, teardown_cache),
        cmocka_unit_test(mistakes_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
