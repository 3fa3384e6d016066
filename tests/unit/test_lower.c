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

/* Odd seeds run vectorized. */
static const qn_machine machine = { .vector_bytes = 32,
                                    .vector_registers = 16,
                                    .fma = true,
                                    .masked = true,
                                    .l1_bytes = 32 << 10,
                                    .l2_bytes = 1 << 20 };

static void random_graphs(int flags, int first, int count, int nodes)
{
    const char *only = getenv("QUERN_SEED"), *times = getenv("QUERN_TIMES"); /* to look at one, or at more */
    for (int seed = first; seed < first + count * (times ? atoi(times) : 1); seed++) {
        if (only && atoi(only) != seed)
            continue;
        const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = seed % 2 ? &machine : NULL };
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),  cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_symbols),      cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_contractions), cmocka_unit_test(test_composites),
        cmocka_unit_test(test_control),      cmocka_unit_test(test_index),
        cmocka_unit_test(test_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
