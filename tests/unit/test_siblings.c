/* Products of one value with several constants: whatever reads them, they compute the same as one product or apart. */
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

enum { SEEDS = 60, MOST = 4 };

static bool united;

static void after(void *user, const qn_pass *pass, const qn_graph *graph, bool changed, double seconds)
{
    (void)user, (void)graph, (void)seconds;
    united |= changed && strcmp(pass->name, "siblings") == 0;
}

static uint64_t draw(uint64_t *state, uint64_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % n;
}

/* Rows of `depth` times up to MOST constants of any width, by rows or by columns; each result is transposed, perhaps after a sum
 * or cut into heads, or is an output as it is. */
static qn_graph *generate(const char *name, uint64_t seed, qn_array *out_x)
{
    uint64_t state = seed;
    qn_graph *graph = qn_function_new(eval_module(), name);
    qn_builder b = { .graph = graph, .diags = eval_diags() };
    const int64_t rows = 1 + (int64_t)draw(&state, 20), depth = 32 + (int64_t)draw(&state, 40);
    *out_x = noise(QUERN_F32, SHAPE(rows, depth), seed);
    qn_value *x = qn_graph_add_input(graph, "x", qn_type_static(eval_module(), QUERN_F32, 2, out_x->dims),
                                     QN_ROLE_INPUT);
    const int n = 2 + (int)draw(&state, MOST - 1);
    for (int i = 0; i < n; i++) {
        const bool by_rows = draw(&state, 4) == 0;
        const int64_t width = 16 + 2 * (int64_t)draw(&state, 20);
        const qn_array w = by_rows ? noise(QUERN_F32, SHAPE(width, depth), seed * 8 + (uint64_t)i)
                                   : noise(QUERN_F32, SHAPE(depth, width), seed * 8 + (uint64_t)i);
        qn_value *weights = qn_b_constant(&b, qn_tensor_new(eval_module(), QUERN_F32, 2, w.dims, w.data));
        const qn_dot dot = { .n_contract = 1, .x_contract = { 1 }, .y_contract = { by_rows } };
        qn_value *y = qn_b_dot_general(&b, x, weights, &dot, QUERN_INVALID_DTYPE);
        if (draw(&state, 2))
            y = qn_b_binary_scalar(&b, QN_OP_ADD, y, 0.5);
        const uint64_t reader = draw(&state, 5);
        if (reader == 0) {
            const qn_dim dims[] = { y->type.dims[0], qn_dim_const(eval_module()->dims, 2),
                                    qn_dim_const(eval_module()->dims, width / 2) };
            y = qn_b_transpose(&b, qn_b_reshape(&b, y, 3, dims), I(1, 0, 2));
        } else if (reader < 4) {
            y = qn_b_transpose(&b, y, I(1, 0));
        }
        qn_graph_add_output(graph, y, qn_arena_printf(eval_module()->arena, "y%d", i), -1);
    }
    return graph;
}

static void same_as_apart(void **state)
{
    (void)state;
    int n_united = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .machine = &lowered_machine,
                                          .fold = qn_interp_fold,
                                          .no_fusion = seed % 5 == 0 };
        const qn_pass_hooks hooks = { .after = after, .verify_each = true };
        qn_array x;
        united = false;
        assert_int_equal(
            qn_run_passes(generate("alone", seed, &x), "siblings", &options, &hooks, eval_diags()), QUERN_OK);
        assert_false(united && options.no_fusion);
        n_united += united;
        lowered_compare(qn_arena_printf(eval_module()->arena, "seed %d", (int)seed),
                        generate("lowered", seed, &x), &options, &x, NULL);
        eval_reset();
    }
    assert_true(n_united > SEEDS / 4 && n_united < SEEDS);
}

/* The same but for the order of sums where weights are rounded, which is done for each column or part of it. Under bf16 the size of
 * a product decides whether it is rounded. */
static void precisions_round_alike(void **state)
{
    (void)state;
    qn_machine machine = lowered_machine;
    machine.dot4 = true;
    static const qn_precision precisions[] = { QN_PRECISION_F32, QN_PRECISION_INT8, QN_PRECISION_INT4 };
    for (int p = 0; p < 3; p++)
        for (uint64_t seed = 1; seed <= 12; seed++) {
            qn_arena *arena = qn_arena_new();
            qn_array x, apart[MOST], together[MOST];
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .precision = precisions[p],
                                              .machine = &machine,
                                              .fold = qn_interp_fold };
            qn_graph *graphs[2];
            for (int i = 0; i < 2; i++) {
                graphs[i] = generate(i ? "together" : "apart", seed, &x);
                const char *names = i ? "siblings,quantize,simplify,fold,pack,simplify,fold,simplify,cse,dce"
                                      : "quantize,simplify,fold,pack,simplify,fold,simplify,cse,dce";
                if (qn_run_passes(graphs[i], names, &options, NULL, eval_diags()) ||
                    lowered_run(graphs[i], false, &options, &x, NULL, i ? together : apart, NULL, arena,
                                eval_diags()))
                    fail_msg("seed %d: %s", (int)seed, qn_diags_text(eval_diags(), arena));
            }
            for (int i = 0; i < graphs[0]->n_outputs; i++)
                expect_near(qn_precision_names[precisions[p]], &together[i], &apart[i], 1e-5);
            qn_arena_free(arena);
            eval_reset();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(same_as_apart),
                                        cmocka_unit_test(precisions_round_alike) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
