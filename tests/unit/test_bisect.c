/* Bisection over passes: a pass that this file makes wrong on purpose is named, with its occurrence. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "driver/bisect.h"
#include "frontend/text/text.h"
#include "tests/support/random_graph.h"

static const char text[] = "graph @first(%x: f32[4]) -> (y: f32[4]) {\n"
                           "  %0 = exp %x : f32[4]\n"
                           "  %1 = exp %x : f32[4]\n"
                           "  %2 = add %0, %1 : f32[4]\n"
                           "  return %2\n"
                           "}\n"
                           "graph @second(%x: f32[n], %k: i64[n]) -> (kept: i64[n], z: f32[n]) {\n"
                           "  %0 = neg %x : f32[n]\n"
                           "  %1 = tanh %0 : f32[n]\n"
                           "  return %k, %1\n"
                           "}\n";

/* What goes wrong, in the wrong pass's run number `occurrence` over the function of that name. */
typedef enum mistake { NONE, WRONG_OP, WRONG_TYPE, FAILS } mistake;
typedef struct injected {
    mistake mistake;
    int occurrence;
    const char *function;
    int n_asked; /* pass runs that were asked for */
} injected;

static const qn_pass spoil = { "spoil", NULL, "a wrong pass" };

/* A real pass, then spoil three times with a real pass between. */
static qn_status run_passes(void *user, qn_graph *function, const qn_pass_hooks *hooks, qn_diags *diags)
{
    injected *in = user;
    for (int occurrence = 0; occurrence < 3; occurrence++) {
        QN_TRY(qn_run_passes(function, "cse,dce", NULL, hooks, diags));
        in->n_asked++;
        if (!hooks->enabled(hooks->user, &spoil, occurrence))
            continue;
        if (occurrence != in->occurrence || strcmp(function->name, in->function) != 0)
            continue;
        qn_node *last = function->last;
        if (in->mistake == FAILS)
            return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "spoil gives up");
        if (in->mistake == WRONG_OP)
            last->op = last->op == QN_OP_ADD ? QN_OP_SUB : QN_OP_SIN;
        if (in->mistake == WRONG_TYPE)
            last->results[0].type.dtype = QUERN_F64;
    }
    return QUERN_OK;
}

typedef struct fixture {
    qn_arena *arena;
    qn_module *module;
    qn_diags diags;
    qn_culprit culprit;
} fixture;

static fixture search(injected *in)
{
    fixture f = { .arena = qn_arena_new() };
    qn_diags_init(&f.diags, f.arena);
    if (qn_text_parse(text, strlen(text), "test.qn", &f.module, &f.diags))
        fail_msg("%s", qn_diags_text(&f.diags, f.arena));
    qn_bisection b = { .module = f.module, .run_passes = run_passes, .user = in, .tolerance = -1 };
    if (qn_bisect_inputs(f.module, 0, NULL, f.arena, &b.inputs, &f.diags) ||
        qn_bisect(&b, f.arena, &f.culprit, &f.diags))
        fail_msg("%s", qn_diags_text(&f.diags, f.arena));
    return f;
}

static void end(fixture *f)
{
    qn_module_free(f->module);
    qn_arena_free(f->arena);
}

static void a_wrong_pass_is_named_with_its_occurrence(void **state)
{
    (void)state;
    for (int function = 0; function < 2; function++)
        for (int occurrence = 0; occurrence < 3; occurrence++) {
            injected in = { WRONG_OP, occurrence, function ? "second" : "first", 0 };
            fixture f = search(&in);
            assert_ptr_equal(f.culprit.pass, &spoil);
            assert_int_equal(f.culprit.occurrence, occurrence);
            assert_string_equal(f.culprit.function, in.function);
            assert_string_equal(f.culprit.output_function, in.function);
            assert_string_equal(f.culprit.output, function ? "z" : "y");
            assert_int_equal(f.culprit.n_runs, 18);
            assert_int_equal(f.culprit.run, 9 * function + 3 * occurrence + 3);
            assert_null(f.culprit.problem);
            assert_true(f.culprit.largest > 1e-3 && isfinite(f.culprit.largest));
            assert_true(in.n_asked <= 6 * 6); /* binary: all 18 runs, then 9, 4 or 5, … */
            end(&f);
        }
}

static void an_invalid_graph_is_named_with_the_reason(void **state)
{
    (void)state;
    injected in = { WRONG_TYPE, 1, "first", 0 };
    fixture f = search(&in);
    assert_ptr_equal(f.culprit.pass, &spoil);
    assert_int_equal(f.culprit.occurrence, 1);
    assert_non_null(f.culprit.problem);
    end(&f);
}

static void a_pass_that_fails_is_named_with_its_message(void **state)
{
    (void)state;
    injected in = { FAILS, 2, "second", 0 };
    fixture f = search(&in);
    assert_ptr_equal(f.culprit.pass, &spoil);
    assert_int_equal(f.culprit.occurrence, 2);
    assert_string_equal(f.culprit.function, "second");
    assert_non_null(strstr(f.culprit.problem, "spoil gives up"));
    end(&f);
}

static void right_passes_are_not_blamed(void **state)
{
    (void)state;
    injected in = { NONE, 0, "first", 0 };
    fixture f = search(&in);
    assert_null(f.culprit.pass);
    assert_null(f.culprit.output);
    assert_int_equal(f.culprit.n_runs, 18);
    end(&f);
}

static qn_status standard(void *user, qn_graph *function, const qn_pass_hooks *hooks, qn_diags *diags)
{
    return qn_run_passes(function, NULL, user, hooks, diags);
}

static void the_standard_pipeline_is_within_the_bound(void **state)
{
    (void)state;
    qn_pass_options options = { .math = QN_MATH_DEFAULT, .fold = qn_interp_fold };
    for (uint64_t seed = 0; seed < 40; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module =
            qn_graph_random(seed, QN_RANDOM_REDUCE | QN_RANDOM_CONTRACT | QN_RANDOM_COMPOSITE, 20);
        qn_array **inputs = QN_NEW_ARRAY(arena, qn_array *, module->n_functions);
        inputs[0] =
            qn_random_inputs(module->functions[0], seed, qn_random_symbols(module, seed, arena), arena);
        qn_bisection b = {
            .module = module, .run_passes = standard, .user = &options, .inputs = inputs, .tolerance = 2e-4
        };
        qn_culprit culprit;
        if (qn_bisect(&b, arena, &culprit, &diags))
            fail_msg("seed %d: %s", (int)seed, qn_diags_text(&diags, arena));
        if (culprit.pass)
            fail_msg("seed %d: %s:%d, output %s: %g", (int)seed, culprit.pass->name, culprit.occurrence,
                     culprit.output ? culprit.output : culprit.problem, culprit.relative);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_pass_is_named_with_its_occurrence),
        cmocka_unit_test(an_invalid_graph_is_named_with_the_reason),
        cmocka_unit_test(a_pass_that_fails_is_named_with_its_message),
        cmocka_unit_test(right_passes_are_not_blamed),
        cmocka_unit_test(the_standard_pipeline_is_within_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
