/* Schedules: their text; whatever numbers one has, templates make right code of it, with the same bits on any number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/tensors.h"
#include "passes/schedule.h"

static void prints_what_it_parses(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_schedule s, again;
    assert_true(qn_schedule_parse("transform=4 rows=12 depth=768", &s));
    assert_int_equal(s.knobs[QN_KNOB_ROWS], 12);
    assert_int_equal(s.knobs[QN_KNOB_AHEAD], 0);
    assert_string_equal(qn_schedule_print(&s, arena), "transform=4 rows=12 depth=768");
    assert_true(qn_schedule_parse(qn_schedule_print(&s, arena), &again));
    assert_memory_equal(&s, &again, sizeof s);
    static const char *const wrong[] = { "rows",    "rows=",        "rows=x",    "rows=0",
                                         "rows=-3", "rows=1,b=",    "columns=3", "rows=4294967296000",
                                         "row=2",   "rows=3depth=4" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(qn_schedule_parse(wrong[i], &again));
    qn_arena_free(arena);
}

/* Any numbers, the same for the same site. */
static bool find_anything(void *user, const char *site, qn_schedule *out)
{
    static const int64_t numbers[] = { 0, 1, 2, 3, 4, 6, 7, 13, 64, 1000, 1 << 30 };
    uint64_t state = *(const uint64_t *)user;
    for (const char *c = site; *c; c++)
        state = (state ^ (unsigned char)*c) * 0x100000001b3u;
    for (int i = 0; i < QN_N_KNOBS; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out->knobs[i] = numbers[(state >> 33) % (sizeof numbers / sizeof *numbers)];
    }
    return true;
}

static const char text[] =
    "dims n: 1..\n"
    "graph @main(%x: f32[2, 32, 13, 14], %l: f32[70, 900], %s: f32[n, 40], %row: f32[1, 300]) -> "
    "(a: f32[2, 48, 13, 14], b: f32[70, 90], c: f32[n, 33], d: f32[1, 77]) {\n"
    "  %0 = iota {axis = 1, dims = [48, 32, 3, 3], dtype = f32} : f32[48, 32, 3, 3]\n"
    "  %w = sin %0 : f32[48, 32, 3, 3]\n"
    "  %1 = convolution %x, %w {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, "
    "1], "
    "x_dilation = [1, 1]} : f32[2, 48, 13, 14] loc(\"conv\")\n"
    "  %2 = relu %1 : f32[2, 48, 13, 14]\n"
    "  %3 = iota {axis = 0, dims = [900, 90], dtype = f32} : f32[900, 90]\n"
    "  %u = cos %3 : f32[900, 90]\n"
    "  %4 = dot_general %l, %u {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[70, "
    "90] "
    "loc(\"rows\")\n"
    "  %5 = tanh %4 : f32[70, 90]\n"
    "  %6 = iota {axis = 0, dims = [40, 33], dtype = f32} : f32[40, 33]\n"
    "  %v = cos %6 : f32[40, 33]\n"
    "  %7 = dot_general %s, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, 33] "
    "loc(\"symbols\")\n"
    "  %8 = iota {axis = 0, dims = [300, 77], dtype = f32} : f32[300, 77]\n"
    "  %t = cos %8 : f32[300, 77]\n"
    "  %9 = dot_general %row, %t {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[1, "
    "77] "
    "loc(\"row\")\n"
    "  return %2, %5, %7, %9\n"
    "}\n";

static quern_session *run(quern_model *model, qn_arena *arena)
{
    quern_session *session;
    assert_int_equal(quern_session_new(model, NULL, &session), 0);
    assert_int_equal(qn_bind_random(session, 1, arena), 0);
    assert_int_equal(quern_session_run(session), 0);
    return session;
}

static quern_model *compile_with(const qn_module *module, uint64_t seed, int threads, const char *cpu)
{
    qn_call call;
    qn_settings settings;
    quern_model *model = NULL;
    qn_call_begin(&call);
    const quern_compile_options options = {
        .size = sizeof options, .threads = threads, .cache = "", .cpu = cpu
    };
    assert_int_equal(qn_settings_from(&options, &settings, &call.diags), 0);
    const qn_schedule_book book = { .find = find_anything, .user = &seed };
    settings.schedules = &book;
    settings.target.jit = true;
    qn_module *copy = qn_module_clone(module, 0, NULL);
    if (qn_model_jit(copy, &settings, &model, &call.diags))
        fail_msg("seed %d: %s", (int)seed, qn_diags_text(&call.diags, call.arena));
    qn_module_free(copy);
    qn_call_end(&call, QUERN_OK);
    return model;
}

static void any_numbers_give_right_code(void **state)
{
    (void)state;
    enum { N_SEEDS = 24, FIRST_OUTPUT = 4, N_OUTPUTS = 4 };
    quern_module *module;
    quern_model *reference;
    const quern_compile_options interp = { .size = sizeof interp, .target = "interp" };
    qn_arena *arena = qn_arena_new();
    assert_int_equal(quern_load_bytes(text, sizeof text - 1, NULL, &module), 0);
    assert_int_equal(quern_compile(module, &interp, &reference), 0);
    quern_session *expected = run(reference, arena);
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        quern_model *models[2];
        quern_session *sessions[2];
        for (int i = 0; i < 2; i++) {
            models[i] = compile_with(module->ir, seed, 1 + i, seed % 3 ? NULL : "x86-64-v3");
            sessions[i] = run(models[i], arena);
        }
        for (int i = 0; i < N_OUTPUTS; i++) {
            quern_array is, other, should;
            qn_difference d;
            assert_int_equal(quern_session_get(sessions[0], FIRST_OUTPUT + i, &is), 0);
            assert_int_equal(quern_session_get(sessions[1], FIRST_OUTPUT + i, &other), 0);
            assert_int_equal(quern_session_get(expected, FIRST_OUTPUT + i, &should), 0);
            assert_true(qn_array_compare(&is, &should, 1e-3, -1, &d));
            if (d.n_wrong)
                fail_msg("seed %d, output %d: %g instead of %g", (int)seed, i, d.is, d.expected);
            assert_true(qn_array_compare(&is, &other, 0, 0, &d));
            assert_int_equal(d.n_wrong, 0);
        }
        for (int i = 0; i < 2; i++) {
            quern_session_free(sessions[i]);
            quern_model_free(models[i]);
        }
    }
    quern_session_free(expected);
    quern_model_free(reference);
    quern_module_free(module);
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prints_what_it_parses),
        cmocka_unit_test(any_numbers_give_right_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
