/* Products of one row with a constant through the pack pass and the template gemv, against the interpreter: columns and depths
 * that leave remainders, odd numbers of panels, several tasks, batches, what follows the product; on machines with 32 and with
 * 16 registers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/build.h"
#include "passes/claim.h"
#include "tests/support/lowered.h"

static const qn_machine machines[] = {
    { .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true, .l2_bytes = 1 << 20 },
    { .vector_bytes = 32, .vector_registers = 16, .fma = true, .masked = false, .l2_bytes = 1 << 18 },
    { .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true, .follows_streams = true },
    { .vector_bytes = 16, .vector_registers = 32, .fma = true, .by_lane = true, .l2_bytes = 1 << 18 },
};

static const struct {
    int batch, depth, columns;
    bool epilogue;
} cases[] = {
    { 1, 41, 65, false },   { 1, 64, 128, false },  { 1, 41, 65, true },   { 1, 1000, 224, false },
    { 1, 1025, 227, true }, { 1, 3000, 160, true }, { 3, 50, 70, false },  { 3, 51, 96, true },
    { 1, 2100, 7, false },  { 1, 4, 2100, true },   { 1, 600, 900, true },
};

static float *numbers(qn_arena *arena, int64_t n, int seed)
{
    float *data = QN_NEW_ARRAY(arena, float, n);
    for (int64_t i = 0; i < n; i++)
        data[i] = (float)((i * 7919 + seed * 104729) % 201 - 100) / 100;
    return data;
}

/* The product, and with an epilogue logistic(product + bias[columns]) beside it. */
static void add_outputs(qn_builder *b, qn_value *product, int columns, bool epilogue)
{
    qn_module *module = b->graph->module;
    qn_graph_add_output(b->graph, product, "product", -1);
    if (!epilogue)
        return;
    const int64_t dims[] = { columns };
    qn_value *bias =
        qn_b_constant(b, qn_tensor_new(module, QUERN_F32, 1, dims, numbers(module->arena, columns, 2)));
    qn_value *sum = qn_b_binary_bcast(b, QN_OP_ADD, product, bias);
    qn_graph_add_output(b->graph, qn_b_unary(b, QN_OP_LOGISTIC, sum), "y", -1);
}

static void products_equal_the_interpreters(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t m = 0; m < sizeof machines / sizeof *machines; m++) {
            const int64_t batch = cases[i].batch, depth = cases[i].depth, columns = cases[i].columns;
            qn_module *module = qn_module_new("row");
            qn_diags diags;
            qn_diags_init(&diags, module->arena);
            qn_graph *graph = qn_function_new(module, "f");
            qn_builder b = { .graph = graph, .diags = &diags };
            const int64_t y_dims[] = { batch, depth, columns };
            const int skip = batch == 1; /* no batch axis where there is only one */
            const qn_type type =
                qn_type_static(module, QUERN_F32, 3 - skip, (int64_t[]){ batch, 1, depth } + skip);
            qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
            qn_value *y =
                qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 3 - skip, y_dims + skip,
                                                numbers(module->arena, batch * depth * columns, 0)));
            add_outputs(&b, qn_b_matmul(&b, x, y), (int)columns, cases[i].epilogue);
            qn_array input = { .dtype = QUERN_F32,
                               .rank = type.rank,
                               .data = numbers(module->arena, batch * depth, 1) };
            for (int d = 0; d < type.rank; d++)
                input.dims[d] = type.dims[d]->value;
            qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                        .machine = &machines[m],
                                        .fold = qn_interp_fold };
            lowered_compare("row", graph, &options, &input, NULL);

            qn_groups groups;
            if (qn_run_passes(graph, "pack,simplify,fold,dce", &options, NULL, &diags) ||
                qn_fuse(graph, &options, module->arena, &groups, &diags))
                fail_msg("%s", qn_diags_text(&diags, module->arena));
            int claimed = 0;
            for (size_t g = 0; g < groups.n; g++) {
                const qn_template *template = qn_template_for(&groups.items[g], &options);
                claimed += template && strcmp(template->name, "gemv") == 0;
            }
            assert_int_equal(claimed, 1);
            qn_module_free(module);
        }
}

/* Is any line of a matrix of so many rows of 2048 asked for before it is read? In strict math it is float32. */
static bool asks_for_lines(const qn_machine *machine, int64_t depth)
{
    qn_module *module = qn_module_new("row");
    qn_diags diags;
    qn_diags_init(&diags, module->arena);
    qn_graph *graph = qn_function_new(module, "f");
    qn_builder b = { .graph = graph, .diags = &diags };
    const qn_type type = qn_type_static(module, QUERN_F32, 2, (int64_t[]){ 1, depth });
    qn_value *x = qn_graph_add_input(graph, "x", type, QN_ROLE_INPUT);
    qn_value *y = qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ depth, 2048 },
                                                  numbers(module->arena, depth * 2048, 0)));
    qn_graph_add_output(graph, qn_b_matmul(&b, x, y), "product", -1);
    qn_pass_options options = { .math = QN_MATH_STRICT, .machine = machine, .fold = qn_interp_fold };
    qn_program *program;
    qn_diags_init(&diags, module->arena);
    assert_int_equal(qn_run_passes(graph, NULL, &options, NULL, &diags), QUERN_OK);
    assert_int_equal(qn_lower(graph, &options, module->arena, &program, &diags), QUERN_OK);
    bool asks = false;
    for (int i = 0; i < program->n_kernels; i++)
        asks |= strstr(qn_kernel_print(program->kernels[i], module->arena), "prefetch") != NULL;
    qn_module_free(module);
    return asks;
}

static void cores_follow_large_matrices_alone(void **state)
{
    (void)state;
    assert_true(asks_for_lines(&machines[0], 64) && asks_for_lines(&machines[0], 4096));
    assert_true(asks_for_lines(&machines[2], 64) && !asks_for_lines(&machines[2], 4096));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(products_equal_the_interpreters),
                                        cmocka_unit_test(cores_follow_large_matrices_alone) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
