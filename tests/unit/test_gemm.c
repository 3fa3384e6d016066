/* Matrix products through the pack pass and the gemm template, against the interpreter: shapes that leave remainders everywhere,
 * few rows, batches, transposed sides, symbolic rows, epilogues; on machines with 32 and with 16 registers. */
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
#include "tests/support/lowered.h"
#include "tests/support/net.h"

#define PLAIN "{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}"

static const struct {
    const char *name, *text;
    int64_t symbol; /* value of the only symbol, if there is one */
    bool rows;      /* the right side is read where it lies by vectors of 64 bytes */
} cases[] = {
    { "remainders on every side",
      "graph @f(%x: f32[29, 37], %y: f32[37, 65]) -> f32[29, 65] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[29, 65]\nreturn %r\n}\n",
      0, false },
    { "whole tiles",
      "graph @f(%x: f32[24, 64], %y: f32[64, 64]) -> f32[24, 64] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[24, 64]\nreturn %r\n}\n",
      0, true },
    { "rows of whole panels, several passes over k, an epilogue",
      "graph @f(%x: f32[29, 601], %y: f32[601, 96], %b: f32[96]) -> f32[29, 96] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[29, 96]\n"
      "%c = broadcast %b {axes = [1], dims = [29, 96]} : f32[29, 96]\n%d = add %r, %c : f32[29, 96]\nreturn "
      "%d\n}\n",
      0, true },
    { "rows of whole panels, copied rows of the left side",
      "graph @f(%x: f32[200, 1024], %y: f32[1024, 160]) -> f32[200, 160] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[200, 160]\nreturn %r\n}\n",
      0, true },
    { "rows of whole panels, batches",
      "graph @f(%x: f32[2, 3, 20, 64], %y: f32[2, 3, 64, 96]) -> f32[2, 3, 20, 96] {\n"
      "%r = dot_general %x, %y {x_batch = [0, 1], x_contract = [3], y_batch = [0, 1], y_contract = [2]} : "
      "f32[2, 3, 20, 96]\n"
      "return %r\n}\n",
      0, true },
    { "rows of whole panels, a right side that is computed",
      "graph @f(%x: f32[40, 300], %z: f32[300, 64]) -> f32[40, 64] {\n"
      "%y = mul %z, %z : f32[300, 64]\n"
      "%r = dot_general %x, %y " PLAIN " : f32[40, 64]\nreturn %r\n}\n",
      0, true },
    { "rows of whole panels, symbolic rows and depth",
      "dims n: 0..100\n"
      "graph @f(%x: f32[n, n], %y: f32[n, 64]) -> f32[n, 64] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[n, 64]\nreturn %r\n}\n",
      71, true },
    { "rows so long that they share few cache sets",
      "graph @f(%x: f32[9, 24], %y: f32[24, 2048]) -> f32[9, 2048] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[9, 2048]\nreturn %r\n}\n",
      0, false },
    { "narrow",
      "graph @f(%x: f32[50, 300], %y: f32[300, 7]) -> f32[50, 7] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[50, 7]\nreturn %r\n}\n",
      0, false },
    { "rows that fight for cache sets",
      "graph @f(%x: f32[13, 1024], %y: f32[1024, 33]) -> f32[13, 33] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[13, 33]\nreturn %r\n}\n",
      0, false },
    { "both sides transposed",
      "graph @f(%x: f32[40, 30], %y: f32[70, 40]) -> f32[30, 70] {\n"
      "%r = dot_general %x, %y {x_batch = [], x_contract = [0], y_batch = [], y_contract = [1]} : f32[30, "
      "70]\nreturn %r\n}\n",
      0, false },
    { "batches",
      "graph @f(%x: f32[2, 3, 20, 64], %y: f32[2, 3, 40, 64]) -> f32[2, 3, 20, 40] {\n"
      "%r = dot_general %x, %y {x_batch = [0, 1], x_contract = [3], y_batch = [0, 1], y_contract = [3]} : "
      "f32[2, 3, 20, 40]\n"
      "return %r\n}\n",
      0, false },
    { "batches, rows of the right side in order",
      "graph @f(%x: f32[2, 3, 20, 64], %y: f32[2, 3, 64, 40]) -> f32[2, 3, 20, 40] {\n"
      "%r = dot_general %x, %y {x_batch = [0, 1], x_contract = [3], y_batch = [0, 1], y_contract = [2]} : "
      "f32[2, 3, 20, 40]\n"
      "return %r\n}\n",
      0, false },
    { "a right side that is computed, and read by what follows",
      "graph @f(%x: f32[50, 300], %z: f32[300, 50]) -> (f32[50, 50], f32[50, 50]) {\n"
      "%y = mul %z, %z : f32[300, 50]\n"
      "%r = dot_general %x, %y " PLAIN " : f32[50, 50]\n"
      "%s = slice %y {start = [10, 0], limit = [60, 50], stride = [1, 1]} : f32[50, 50]\n"
      "%t = add %r, %s : f32[50, 50]\nreturn %t, %r\n}\n",
      0, false },
    { "two contracted and two free axes",
      "graph @f(%x: f32[9, 4, 10], %y: f32[10, 4, 5, 11]) -> f32[9, 5, 11] {\n"
      "%r = dot_general %x, %y {x_batch = [], x_contract = [1, 2], y_batch = [], y_contract = [1, 0]} : "
      "f32[9, 5, 11]\n"
      "return %r\n}\n",
      0, false },
    { "bias, activation and residual",
      "graph @f(%x: f32[2, 13, 48], %y: f32[48, 50], %b: f32[50], %s: f32[2, 13, 50]) -> (f32[2, 13, 50], "
      "f32[2, 13, 50]) {\n"
      "%r = dot_general %x, %y {x_batch = [], x_contract = [2], y_batch = [], y_contract = [0]} : f32[2, 13, "
      "50]\n"
      "%c = broadcast %b {axes = [2], dims = [2, 13, 50]} : f32[2, 13, 50]\n"
      "%d = add %r, %c : f32[2, 13, 50]\n%e = logistic %d : f32[2, 13, 50]\n%g = add %e, %s : f32[2, 13, "
      "50]\n"
      "return %g, %d\n}\n",
      0, false },
#define SYMBOLIC                                                                                         \
    "dims n: 0..100\ngraph @f(%x: f32[n, 60], %y: f32[60, 40], %b: f32[40]) -> f32[n, 40] {\n"           \
    "%r = dot_general %x, %y " PLAIN " : f32[n, 40]\n"                                                   \
    "%c = broadcast %b {axes = [1], dims = [n, 40]} : f32[n, 40]\n%d = add %r, %c : f32[n, 40]\nreturn " \
    "%d\n}\n"
    { "symbolic rows: none", SYMBOLIC, 0, false },
    { "symbolic rows: one", SYMBOLIC, 1, false },
    { "symbolic rows: a tile", SYMBOLIC, 12, false },
    { "symbolic rows: fewer", SYMBOLIC, 11, false },
    { "symbolic rows: more", SYMBOLIC, 37, false },
    { "symbolic rows: many", SYMBOLIC, 95, false },
    { "several passes over k, the last shorter and odd",
      "graph @f(%x: f32[61, 1601], %y: f32[1601, 97]) -> f32[61, 97] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[61, 97]\nreturn %r\n}\n",
      0, false },
    { "several passes over k, copied rows, an epilogue",
      "graph @f(%x: f32[26, 2048], %y: f32[2048, 70], %b: f32[70]) -> f32[26, 70] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[26, 70]\n"
      "%c = broadcast %b {axes = [1], dims = [26, 70]} : f32[26, 70]\n%d = add %r, %c : f32[26, 70]\nreturn "
      "%d\n}\n",
      0, false },
#define DEEP                                                                                             \
    "dims n: 0..100\ngraph @f(%x: f32[n, 1000], %y: f32[1000, 40], %b: f32[40]) -> f32[n, 40] {\n"       \
    "%r = dot_general %x, %y " PLAIN " : f32[n, 40]\n"                                                   \
    "%c = broadcast %b {axes = [1], dims = [n, 40]} : f32[n, 40]\n%d = add %r, %c : f32[n, 40]\nreturn " \
    "%d\n}\n"
    { "rows and columns cut into tasks, first those of one half of the columns",
      "graph @f(%x: f32[200, 100], %y: f32[100, 130]) -> f32[200, 130] {\n"
      "%r = dot_general %x, %y " PLAIN " : f32[200, 130]\nreturn %r\n}\n",
      0, false },
    { "several passes, symbolic rows: fewer", DEEP, 11, false },
    { "several passes, symbolic rows: more", DEEP, 71, false },
};

static void fill(qn_array *array, const qn_type *type, const int64_t *symbols, int seed, qn_arena *arena)
{
    const int64_t n = array_of_type(array, type, symbols, arena);
    for (int64_t i = 0; i < n; i++)
        ((float *)array->data)[i] = (float)((i * 7919 + seed * 104729) % 201 - 100) / 100;
}

static bool has_op(const qn_graph *graph, qn_op op)
{
    QN_FOR_NODES (graph, node) {
        if (node->op == op)
            return true;
    }
    return false;
}

static void products_equal_the_interpreters(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int m = 0; m < LOWERED_MACHINES; m++) {
            qn_arena *arena = qn_arena_new();
            qn_diags diags;
            qn_diags_init(&diags, arena);
            qn_module *module;
            if (qn_text_parse(cases[i].text, strlen(cases[i].text), cases[i].name, &module, &diags))
                fail_msg("%s", qn_diags_text(&diags, arena));
            qn_graph *graph = module->functions[0];
            qn_array inputs[4];
            for (int k = 0; k < graph->n_inputs; k++)
                fill(&inputs[k], &graph->inputs[k]->type, &cases[i].symbol, k, arena);
            qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                        .machine = &lowered_machines[m],
                                        .fold = qn_interp_fold };
            lowered_compare(cases[i].name, graph, &options, inputs, &cases[i].symbol);
            const bool rows = cases[i].rows && lowered_machines[m].vector_bytes == 64;
            if (qn_run_passes(graph, "fold,pack", &options, NULL, &diags) ||
                has_op(graph, QN_OP_MATMUL_PACKED) == rows || has_op(graph, QN_OP_DOT_GENERAL) != rows)
                fail_msg("%s was%s packed", cases[i].name, rows ? "" : " not");
            qn_module_free(module);
            qn_arena_free(arena);
        }
    }
}

/* Few rows against a constant, which is packed when it is folded: several sums an element. */
static void few_rows_of_a_constant(void **state)
{
    (void)state;
    enum { K = 41, N = 65 };
    for (int rows = 1; rows <= 5; rows++) {
        for (int m = 0; m < LOWERED_MACHINES; m++) {
            qn_module *module = qn_module_new("constant");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            float y[K * N];
            for (int i = 0; i < K * N; i++)
                y[i] = (float)(i * 7919 % 201 - 100) / 100;
            qn_type type = qn_type_static(module, QUERN_F32, 2, (int64_t[]){ rows, K });
            qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
            qn_value *w = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ K, N }, y));
            qn_graph_add_output(graph, qn_b_matmul(&b, x, w), "r", -1);
            qn_array input = { .dims = { 0 } };
            fill(&input, &type, NULL, 1, module->arena);
            qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                        .machine = &lowered_machines[m],
                                        .fold = qn_interp_fold };
            lowered_compare("few rows", graph, &options, &input, NULL);
            if (qn_run_passes(graph, "pack", &options, NULL, &diags) || !has_op(graph, QN_OP_MATMUL_PACKED))
                fail_msg("%d rows were not packed", rows);
            qn_module_free(module);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(products_equal_the_interpreters),
                                        cmocka_unit_test(few_rows_of_a_constant) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
