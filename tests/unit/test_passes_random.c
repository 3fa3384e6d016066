/* The standard pipeline on random graphs: valid after every pass, and in strict mode the same bits (but for the sign of
 * zero, which a sum or a maximum of zeros leaves open). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "ir/print.h"
#include "tests/support/eval.h"
#include "tests/support/random_graph.h"

enum { N_SEEDS = 400 };

static qn_array *run(const qn_module *module, uint64_t seed, qn_arena *arena)
{
    const qn_graph *graph = qn_module_find(module, "main");
    const int64_t *symbols = qn_random_symbols(module, seed, arena);
    qn_array *inputs = qn_random_inputs(graph, seed, symbols, arena);
    qn_array *outputs = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_interp_run(graph, inputs, outputs, arena, &diags))
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
    return outputs;
}

static void optimize(qn_module *module, uint64_t seed, qn_math math, qn_arena *arena)
{
    qn_diags diags;
    qn_pass_options options = { .math = math, .fold = qn_interp_fold };
    qn_pass_hooks hooks = { .verify_each = true };
    qn_diags_init(&diags, arena);
    for (int i = 0; i < module->n_functions; i++)
        if (qn_run_passes(module->functions[i], NULL, &options, &hooks, &diags))
            fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
    if (qn_verify(module, &diags))
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
}

static void strict_passes_keep_every_bit(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        int flags = seed % 4 == 0 ? QN_RANDOM_ALL : (int)(seed * 73 % 512);
        qn_arena *arena = qn_arena_new();
        qn_module *module = qn_graph_random(seed, flags, 8 + (int)(seed % 40));
        const int n = qn_module_find(module, "main")->n_outputs;
        const char *before = qn_module_print(module, arena);
        qn_array *expected = run(module, seed, arena);
        optimize(module, seed, QN_MATH_STRICT, arena);
        qn_array *found = run(module, seed, arena);
        for (int i = 0; i < n; i++) {
            const size_t bytes = qn_dtype_bytes(found[i].dtype);
            int64_t elements = 1;
            for (int axis = 0; axis < found[i].rank; axis++)
                elements *= found[i].dims[axis];
            for (int64_t k = 0; k < elements; k++) {
                const char *a = (const char *)found[i].data + (size_t)k * bytes;
                const char *b = (const char *)expected[i].data + (size_t)k * bytes;
                if (memcmp(a, b, bytes) != 0 && !(at(&found[i], k) == 0 && at(&expected[i], k) == 0))
                    fail_msg(
                        "seed %llu, flags %d, output %d, element %lld: %.9g, expected %.9g\n%s\nbecame\n%s",
                        (unsigned long long)seed, flags, i, (long long)k, at(&found[i], k),
                        at(&expected[i], k), before, qn_module_print(module, arena));
            }
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(strict_passes_keep_every_bit) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
