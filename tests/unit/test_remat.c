/* Values that are computed again instead of being kept: the same numbers in less memory, and what a limit does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"

enum { ROWS = 128, WIDTH = 32, LAYERS = 12, STEPS = 3 };

/* Layers of linear, tanh and dropout. */
static int train(const quern_compile_options *how, quern_trainer **out)
{
    const uint64_t key[2] = { 3, 4 }, zero = 0;
    quern_builder *b = quern_builder_new(NULL);
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(ROWS), QUERN_N(WIDTH)));
    for (int i = 0; i < LAYERS; i++) {
        const char name[] = { 'l', (char)('a' + i), 0 };
        quern_value *layer[3] = { quern_tanh(b, quern_linear(b, x, WIDTH, name)),
                                  quern_constant(b, QUERN_U64, 1, (const int64_t[]){ 2 }, key),
                                  quern_constant(b, QUERN_U64, 0, NULL, &zero) };
        x = quern_op(b, "dropout", 3, layer, "ratio = 0.25");
    }
    quern_output(b, x, "y");
    const quern_train_options options = {
        .size = sizeof options, .loss = "mse", .optimizer = "adam", .learning_rate = 0.01, .seed = 5
    };
    return quern_train(b, &options, how, out);
}

typedef struct result {
    double losses[STEPS];
    int64_t workspace;
    int n_parameters;
    float parameters[LAYERS * (WIDTH + 1) * WIDTH];
} result;

static result run(const quern_compile_options *how)
{
    result r;
    quern_trainer *t;
    static float x[ROWS * WIDTH], y[ROWS * WIDTH];
    const int64_t dims[2] = { ROWS, WIDTH };
    for (int i = 0; i < ROWS * WIDTH; i++) {
        x[i] = (float)(i * 7 % 31) / 31 - 0.5f;
        y[i] = (float)(i * 11 % 13) / 13 - 0.5f;
    }
    memset(&r, 0, sizeof r);
    ok(train(how, &t));
    for (int i = 0; i < STEPS; i++)
        ok(quern_trainer_step(t, &(quern_array){ QUERN_F32, 2, dims, x },
                              &(quern_array){ QUERN_F32, 2, dims, y }, &r.losses[i]));
    const quern_entry_info *entry = quern_trainer_entry(t);
    r.workspace = entry->workspace_bytes ? entry->workspace_bytes(NULL) : 0;
    for (int i = 0; i < entry->n_buffers; i++) {
        quern_array a;
        if (!entry->buffers[i].trainable)
            continue;
        ok(quern_session_get(quern_trainer_session(t), i, &a));
        const int n = WIDTH * (a.rank == 2 ? WIDTH : 1);
        memcpy(r.parameters + r.n_parameters, a.data, (size_t)n * sizeof(float));
        r.n_parameters += n;
    }
    quern_trainer_free(t);
    return r;
}

static void assert_same(const result *a, const result *b)
{
    assert_int_equal(a->n_parameters, LAYERS * (WIDTH + 1) * WIDTH);
    assert_memory_equal(a->losses, b->losses, sizeof a->losses);
    assert_memory_equal(a->parameters, b->parameters, sizeof a->parameters);
}

/* Dropout's masks among them, which are drawn again. */
static void the_same_bits_in_less_memory(void **state)
{
    (void)state;
    quern_compile_options how = { .size = sizeof how, .math = "strict", .cache = "", .threads = 1 };
    const result plain = run(&how);
    how.remat = "none";
    const result none = run(&how);
    how.remat = "sqrt";
    const result cut = run(&how);
    how.remat = "all";
    const result all = run(&how);
    how.threads = 3;
    const result threads = run(&how);
    assert_same(&plain, &none);
    assert_same(&plain, &cut);
    assert_same(&plain, &all);
    assert_same(&plain, &threads);
    assert_int_equal(none.workspace, plain.workspace);
    assert_true(cut.workspace < 0.8 * (double)plain.workspace);
    assert_true(all.workspace <= cut.workspace);
}

static void stays_below_the_limit(void **state)
{
    (void)state;
    quern_compile_options how = { .size = sizeof how, .math = "strict", .cache = "" };
    const result plain = run(&how);
    for (int percent = 110; percent >= 70; percent -= 10) {
        how.memory_limit = plain.workspace * percent / 100;
        const result r = run(&how);
        assert_true(r.workspace <= how.memory_limit);
        assert_int_equal(r.workspace == plain.workspace, percent >= 100);
        assert_same(&plain, &r);
    }
}

static void says_the_least_it_found(void **state)
{
    (void)state;
    quern_trainer *t;
    quern_compile_options how = { .size = sizeof how, .memory_limit = 100000 };
    assert_int_equal(train(&how, &t), QUERN_ERROR_MEMORY);
    assert_non_null(strstr(quern_last_error(), "'train_step' needs"));
    assert_non_null(strstr(quern_last_error(), "kB is the least that was found"));
    how.remat = "none";
    assert_int_equal(train(&how, &t), QUERN_ERROR_MEMORY);
    how.remat = "some";
    assert_int_equal(train(&how, &t), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "there is no remat 'some': none, sqrt or all"));
    how.remat = NULL;
    how.memory_limit = -1;
    assert_int_equal(train(&how, &t), QUERN_ERROR_ARGUMENT);
}

static void needs_a_bound_of_the_workspace(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[n, 4]) -> (y: f32[n, 4]) {\n"
                               "  %0 = cumulative %x {axis = 0, kind = sum} : f32[n, 4]\n"
                               "  %1 = cumulative %0 {axis = 0, kind = sum} : f32[n, 4]\n  return %1\n}\n";
    quern_module *module;
    quern_model *model;
    const quern_compile_options how = { .size = sizeof how, .memory_limit = 4096, .cache = "" };
    ok(quern_load_bytes(text, sizeof text - 1, NULL, &module));
    assert_int_equal(quern_compile(module, &how, &model), QUERN_ERROR_MEMORY);
    assert_non_null(strstr(quern_last_error(), "ranges for its dims would bound it"));
    quern_module_free(module);
    const quern_dim_range n = { "n", 1, 256 };
    ok(quern_load_bytes(text, sizeof text - 1,
                        &(quern_load_options){ .size = sizeof(quern_load_options), .n_dims = 1, .dims = &n },
                        &module));
    ok(quern_compile(module, &how, &model));
    quern_model_free(model);
    quern_module_free(module);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_in_less_memory),
        cmocka_unit_test(stays_below_the_limit),
        cmocka_unit_test(says_the_least_it_found),
        cmocka_unit_test(needs_a_bound_of_the_workspace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
