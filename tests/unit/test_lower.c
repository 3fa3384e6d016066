/* Lowered programs give what the graph interpreter gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/lowered.h"
#include "tests/support/random_graph.h"

typedef enum how { AS_USUAL, NO_FUSION, BY_LIBRARY } how;

/* Odd seeds run vectorized. */
static void random_graphs_as(int flags, int first, int count, int nodes, how how)
{
    const char *only = getenv("QUERN_SEED"), *times = getenv("QUERN_TIMES"); /* to look at one, or at more */
    for (int seed = first; seed < first + count * (times ? atoi(times) : 1); seed++) {
        if (only && atoi(only) != seed)
            continue;
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .machine = seed % 2 ? &lowered_machine : NULL,
                                          .no_fusion = how == NO_FUSION,
                                          .blas = how == BY_LIBRARY ? QN_BLAS_ALWAYS : QN_BLAS_NEVER };
        qn_module *module = qn_graph_random((uint64_t)seed, flags, nodes);
        qn_graph *graph = qn_module_find(module, "main");
        const int64_t *symbols = qn_random_symbols(module, (uint64_t)seed, module->arena);
        const qn_array *inputs = qn_random_inputs(graph, (uint64_t)seed, symbols, module->arena);
        char name[64];
        snprintf(name, sizeof name, "random graph %d of flags %d", seed, flags);
        lowered_compare(name, graph, &options, inputs, symbols);
        qn_module_free(module);
    }
}

static void random_graphs(int flags, int first, int count, int nodes)
{
    random_graphs_as(flags, first, count, nodes, AS_USUAL);
}

static void test_elementwise(void **state)
{
    (void)state;
    random_graphs(0, 1, 100, 12);
}

static void test_dtypes(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_INTS | QN_RANDOM_NARROW, 1000, 100, 12);
}

static void test_symbols(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_SYMBOLS, 2000, 100, 12);
}

static void test_reductions(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_REDUCE, 3000, 100, 12);
}

static void test_contractions(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_CONTRACT, 4000, 60, 10);
}

static void test_composites(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_COMPOSITE | QN_RANDOM_SYMBOLS, 5000, 60, 10);
}

static void test_control(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_CONTROL, 6000, 100, 10);
    random_graphs(QN_RANDOM_CONTROL | QN_RANDOM_SYMBOLS, 6500, 60, 10);
}

static void test_index(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_INDEX | QN_RANDOM_SYMBOLS, 7000, 100, 10);
}

static void test_all(void **state)
{
    (void)state;
    random_graphs(QN_RANDOM_ALL, 8000, 100, 20);
}

/* Nodes that become a kernel: all but constants and reshapes of what is in memory. */
static int count_nodes(const qn_graph *graph)
{
    int n = 0;
    QN_FOR_NODES (graph, node)
        n += node->op != QN_OP_CONSTANT && node->op != QN_OP_RESHAPE;
    return n;
}

static void test_no_fusion(void **state)
{
    (void)state;
    random_graphs_as(QN_RANDOM_ALL, 9000, 100, 15, NO_FUSION);
    random_graphs_as(QN_RANDOM_REDUCE | QN_RANDOM_CONTRACT | QN_RANDOM_COMPOSITE, 9500, 60, 15, NO_FUSION);
    int fewer = 0;
    for (int seed = 1; seed <= 60; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = qn_graph_random((uint64_t)seed, QN_RANDOM_REDUCE | QN_RANDOM_CONTRACT, 15);
        qn_graph *graph = qn_module_find(module, "main");
        qn_pass_options options = { .math = QN_MATH_DEFAULT, .no_fusion = true };
        qn_program *apart, *fused;
        assert_int_equal(qn_run_passes(graph, NULL, &options, NULL, &diags), QUERN_OK);
        assert_int_equal(qn_lower(graph, &options, arena, &apart, &diags), QUERN_OK);
        int calls = 0;
        for (size_t i = 0; i < apart->steps.n; i++)
            calls += apart->steps.items[i].kind == QN_STEP_KERNEL;
        if (calls != count_nodes(graph))
            fail_msg("%d calls of kernels for %d nodes:\n%s%s", calls, count_nodes(graph),
                     qn_graph_print(graph, arena), qn_program_print(apart, arena));
        options.no_fusion = false;
        assert_int_equal(qn_lower(graph, &options, arena, &fused, &diags), QUERN_OK);
        fewer += fused->steps.n < apart->steps.n;
        qn_module_free(module);
        qn_arena_free(arena);
    }
    assert_true(fewer > 30);
}

static void test_library(void **state)
{
    (void)state;
    random_graphs_as(QN_RANDOM_CONTRACT, 9700, 100, 12, BY_LIBRARY);
    random_graphs_as(QN_RANDOM_ALL, 9800, 60, 15, BY_LIBRARY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),  cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_symbols),      cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_contractions), cmocka_unit_test(test_composites),
        cmocka_unit_test(test_control),      cmocka_unit_test(test_index),
        cmocka_unit_test(test_all),          cmocka_unit_test(test_no_fusion),
        cmocka_unit_test(test_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
