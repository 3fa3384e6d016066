/* Random graphs: they are valid (the generator asserts that), the same for the same seed, reach every op, print and
 * parse back to the letter, and keep their types when composites are replaced by their bodies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "ir/build.h"
#include "tests/support/random_graph.h"

enum { N_SEEDS = 300 };

static void count_ops(const qn_graph *graph, int *counts)
{
    QN_FOR_NODES (graph, node) {
        counts[node->op]++;
        for (int r = 0; r < node->n_regions; r++)
            count_ops(node->regions[r], counts);
    }
}

static void every_op_appears(void **state)
{
    (void)state;
    int counts[QN_N_OPS] = { 0 };
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_module *module = qn_graph_random(seed, QN_RANDOM_ALL, 40);
        for (int i = 0; i < module->n_functions; i++)
            count_ops(module->functions[i], counts);
        qn_module_free(module);
    }
    for (int op = 0; op < QN_N_OPS; op++)
        /* non_zero, extent: what they bind is no number that an input decides. suppress: a rounding decides what boxes overlap
         * (test_suppress.py). text_*: of strings' numbers (test_strings.c). *_packed: made by passes. Collectives are for several graphs that run together: test_collective_threads */
        if (counts[op] == 0 && !(qn_ops[op].flags & QN_FLAG_BINDS) && op != QN_OP_SUPPRESS &&
            !(op >= QN_OP_TEXT_CONCAT && op <= QN_OP_TEXT_PRINT) && op != QN_OP_MATMUL_PACKED &&
            op != QN_OP_ATTENTION_PACKED && !(op >= QN_OP_ALL_REDUCE && op <= QN_OP_RANK))
            fail_msg("no %s in %d graphs", qn_ops[op].name, N_SEEDS);
}

static void flags_are_kept(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        int flags = (int)(seed * 37 % 512) & ~QN_RANDOM_NARROW & ~QN_RANDOM_INTS, counts[QN_N_OPS] = { 0 };
        qn_module *module = qn_graph_random(seed, flags, 30);
        const qn_graph *graph = qn_module_find(module, "main");
        count_ops(graph, counts);
        assert_true((flags & QN_RANDOM_CONTRACT) ||
                    counts[QN_OP_CONVOLUTION] + counts[QN_OP_DOT_GENERAL] == 0);
        assert_true((flags & QN_RANDOM_CONTROL) ||
                    counts[QN_OP_IF] + counts[QN_OP_SCAN] + counts[QN_OP_WHILE] == 0);
        assert_true((flags & QN_RANDOM_COMPOSITE) || counts[QN_OP_SOFTMAX] + counts[QN_OP_GELU] == 0);
        assert_true((flags & QN_RANDOM_SYMBOLS) || qn_dims_symbol_count(module->dims) == 0);
        QN_FOR_NODES (graph, node)
            for (int i = 0; i < node->n_results; i++)
                assert_false(node->results[i].type.dtype == QUERN_F16 ||
                             node->results[i].type.dtype == QUERN_F64);
        qn_module_free(module);
    }
}

static void smooth_graphs_have_one_scalar_loss(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_module *module = qn_graph_random(seed, QN_RANDOM_ALL | QN_RANDOM_SMOOTH, 25);
        const qn_graph *graph = qn_module_find(module, "main");
        assert_int_equal(graph->n_outputs, 1);
        assert_int_equal(graph->outputs[0]->type.dtype, QUERN_F32);
        assert_int_equal(graph->outputs[0]->type.rank, 0);
        qn_module_free(module);
    }
}

static void assert_prints_what_it_parses(const qn_module *module, qn_arena *arena)
{
    qn_diags diags;
    qn_module *again;
    qn_diags_init(&diags, arena);
    const char *text = qn_module_print(module, arena);
    if (qn_text_parse(text, strlen(text), "random.qn", &again, &diags))
        fail_msg("%s\n%s", qn_diags_text(&diags, arena), text);
    assert_string_equal(qn_module_print(again, arena), text);
    qn_module_free(again);
}

static void what_is_printed_parses_back_to_the_letter(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_module *module = qn_graph_random(seed, QN_RANDOM_ALL, 40),
                  *same = qn_graph_random(seed, QN_RANDOM_ALL, 40);
        assert_string_equal(qn_module_print(module, arena), qn_module_print(same, arena));
        assert_prints_what_it_parses(module, arena);
        qn_module_free(module);
        qn_module_free(same);
        qn_arena_free(arena);
    }
}

static void expand_all(qn_graph *graph, qn_diags *diags)
{
    qn_node *next;
    for (qn_node *node = graph->first; node; node = next) {
        qn_value *results[3] = { NULL };
        next = node->next;
        if (!qn_op_is_composite(node->op))
            continue;
        qn_composite_expand(node, results, diags);
        for (int i = 0; i < node->n_results; i++) {
            if (!results[i])
                fail_msg("%s has no body: %s", qn_ops[node->op].name, qn_diags_text(diags, diags->arena));
            assert_true(qn_type_equal(&results[i]->type, &node->results[i].type));
            qn_value_replace(&node->results[i], results[i]);
        }
        qn_node_remove(node);
    }
    qn_graph_resolve(graph);
}

static void composites_have_bodies_of_their_type(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_module *module = qn_graph_random(seed, QN_RANDOM_ALL & ~QN_RANDOM_CONTROL, 40);
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        expand_all(qn_module_find(module, "main"), &diags);
        if (qn_verify(module, &diags))
            fail_msg("%s", qn_diags_text(&diags, module->arena));
        qn_module_free(module);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_appears),
        cmocka_unit_test(flags_are_kept),
        cmocka_unit_test(smooth_graphs_have_one_scalar_loss),
        cmocka_unit_test(what_is_printed_parses_back_to_the_letter),
        cmocka_unit_test(composites_have_bodies_of_their_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
