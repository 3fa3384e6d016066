/* Tables that are looked up in and multiplied with: kept once where that can be, with the same bits as when kept twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/build.h"
#include "passes/pass.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"

typedef enum product { OF_ROWS, OF_COLUMNS, OF_ANOTHER, OF_FACTORS } product;

static const struct {
    const char *name;
    int64_t rows, depth;
    product product;
    bool shared;
} cases[] = {
    { "the last panel is whole", 32768, 32, OF_ROWS, true },
    { "the last panel has one row", 65537, 17, OF_ROWS, true },
    { "the last panel lacks a row", 9983, 113, OF_ROWS, true },
    { "panels of the columns", 1024, 1024, OF_COLUMNS, false },
    { "panels of another table", 32768, 32, OF_ANOTHER, false },
    { "panels of products", 32768, 32, OF_FACTORS, false },
    { "a table that is not large", 8192, 32, OF_ROWS, false },
};

typedef struct run {
    bool skips, shared;
} run;

static bool enabled(void *user, const qn_pass *pass, int occurrence)
{
    (void)occurrence;
    const run *r = user;
    return !r->skips || strcmp(pass->name, "share") != 0;
}

static void after(void *user, const qn_pass *pass, const qn_graph *graph, bool changed, double seconds)
{
    (void)graph;
    (void)seconds;
    run *r = user;
    r->shared |= changed && strcmp(pass->name, "share") == 0;
}

static const qn_tensor *table_of(int64_t rows, int64_t depth, uint64_t seed)
{
    const qn_array a = noise(QUERN_F32, SHAPE(rows, depth), seed);
    return qn_tensor_new(eval_module(), QUERN_F32, 2, a.dims, a.data);
}

static qn_value *right_side(qn_builder *b, product product, qn_value *table)
{
    const int64_t rows = table->type.dims[0]->value, depth = table->type.dims[1]->value;
    switch (product) {
    case OF_ANOTHER: return qn_b_constant(b, table_of(rows, depth, 2));
    case OF_FACTORS: return qn_b_binary(b, QN_OP_MUL, table, qn_b_constant(b, table_of(rows, depth, 2)));
    default: return table;
    }
}

/* Two lookups and a product, through the standard passes with or without this one. */
static void tie(size_t which, run *r, qn_array *outputs, qn_arena *arena)
{
    qn_graph *graph = qn_function_new(eval_module(), r->skips ? "apart" : "shared");
    qn_builder b = { .graph = graph, .diags = eval_diags() };
    const int64_t rows = cases[which].rows, depth = cases[which].depth;
    const product product = cases[which].product;
    const int64_t numbers[] = { rows - 1, 0, rows / 2, rows - 33, 31, 32 };
    const qn_array inputs[] = { ints(QUERN_I64, SHAPE(2, 3), numbers), ints(QUERN_I32, SHAPE(1), numbers + 3),
                                noise(QUERN_F32, SHAPE(2, depth), 3) };
    const char *const names[] = { "x", "y", "z" };
    qn_value *x[3];
    for (int i = 0; i < 3; i++)
        x[i] = qn_graph_add_input(
            graph, names[i], qn_type_static(eval_module(), inputs[i].dtype, inputs[i].rank, inputs[i].dims),
            QN_ROLE_INPUT);
    qn_value *table = qn_b_constant(&b, table_of(rows, depth, 1));
    const qn_dot dot = { .n_contract = 1, .x_contract = { 1 }, .y_contract = { product != OF_COLUMNS } };
    qn_graph_add_output(graph, qn_b_gather(&b, table, x[0], 0), "a", -1);
    qn_graph_add_output(graph, qn_b_unary(&b, QN_OP_EXP, qn_b_gather(&b, table, x[1], 0)), "b", -1);
    qn_graph_add_output(graph,
                        qn_b_dot_general(&b, x[2], right_side(&b, product, table), &dot, QUERN_INVALID_DTYPE),
                        "c", -1);

    const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                      .machine = &lowered_machine,
                                      .fold = qn_interp_fold };
    const qn_pass_hooks hooks = { .enabled = enabled, .after = after, .user = r, .verify_each = true };
    qn_program *program;
    if (qn_run_passes(graph, NULL, &options, &hooks, eval_diags()) ||
        lowered_run(graph, false, &options, inputs, NULL, outputs, &program, arena, eval_diags()))
        fail_msg("%s: %s", cases[which].name, qn_diags_text(eval_diags(), arena));
    if (r->shared) { /* and looked up in: nothing of the table's size is computed */
        assert_true(program->weights_bytes < 3 * rows * depth * (int64_t)sizeof(float) / 2);
        assert_true(program->arena_bytes->value < 1 << 16);
    }
}

static void kept_once_with_the_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena *arena = qn_arena_new();
        qn_array shared[3], apart[3];
        run with = { 0 }, without = { .skips = true };
        tie(i, &with, shared, arena);
        tie(i, &without, apart, arena);
        if (with.shared != cases[i].shared)
            fail_msg("%s: %s", cases[i].name, with.shared ? "is kept once" : "is kept twice");
        for (int k = 0; k < 3; k++)
            expect_same(cases[i].name, &shared[k], &apart[k]);
        qn_arena_free(arena);
        eval_reset();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(kept_once_with_the_same_bits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
