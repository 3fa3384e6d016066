/* quern.h: two models that learn by turns and share their parameters; their checkpoint; what builders say briefly. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })
static const char *const targets[] = { "interp", "cpu" };

static void fails(int status, const char *message)
{
    assert_int_not_equal(status, QUERN_OK);
    if (!strstr(quern_last_error(), message))
        fail_msg("\"%s\" is not in \"%s\"", message, quern_last_error());
}

static quern_compile_options compile(const char *target)
{
    return (quern_compile_options){ .size = sizeof(quern_compile_options), .target = target, .cache = "" };
}

static quern_array state_of(quern_session *session, const char *name)
{
    quern_array array;
    const int index = quern_session_find(session, name);
    if (index < 0)
        fail_msg("there is no %s", name);
    ok(quern_session_get(session, index, &array));
    return array;
}

static double number_of(quern_session *session, const char *name)
{
    return (double)*(float *)state_of(session, name).data;
}

/* ---- two players ---- */

/* Two numbers a and b; a player moves one of them so that a b is near to what it wants. */
typedef struct player {
    quern_trainer *trainer;
    double wanted, m, v; /* m, v: Adam's, by hand */
} player;

static const double rate = 0.1, beta1 = 0.9, beta2 = 0.999;

static quern_trainer *learns(const char *target, const char *param, double wanted, const char *name)
{
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = rate,
                                          .n_params = 1,
                                          .params = &param,
                                          .name = name };
    const quern_compile_options how = compile(target);
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("product");
    quern_value *one = quern_input(b, "one", QUERN_F32, QUERN_SHAPE(QUERN_N(1)));
    quern_value *first = quern_param(b, "a", QUERN_F32, 1, DIMS(1), (const float[]){ 1 });
    quern_value *second = quern_param(b, "b", QUERN_F32, 1, DIMS(1), (const float[]){ 2 });
    quern_value *product = quern_mul(b, quern_mul(b, first, second), one);
    quern_output(b, quern_mse(b, product, quern_scalar(b, QUERN_F32, wanted)), "loss");
    ok(quern_train(b, &options, &how, &trainer));
    return trainer;
}

static void start(player players[2], const char *target)
{
    players[0] = (player){ .trainer = learns(target, "a", 3, "first"), .wanted = 3 };
    players[1] = (player){ .trainer = learns(target, "b", 5, "second"), .wanted = 5 };
    ok(quern_trainer_share(players[1].trainer, players[0].trainer));
}

static void end(player players[2])
{
    quern_trainer_free(players[1].trainer);
    quern_trainer_free(players[0].trainer);
}

static double turn(player *p)
{
    double loss;
    float one = 1;
    ok(quern_trainer_step(p->trainer, &(quern_array){ QUERN_F32, 1, DIMS(1), &one }, NULL, &loss));
    return loss;
}

static void learns_by_turns(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        player players[2];
        double numbers[2] = { 1, 2 }, loss;
        float one = 1;
        const quern_array in = { QUERN_F32, 1, DIMS(1), &one };
        start(players, targets[k]);
        for (int round = 1; round <= 8; round++)
            for (int i = 0; i < 2; i++) {
                player *p = &players[i];
                const double off = numbers[0] * numbers[1] - p->wanted;
                assert_float_equal(turn(p), off * off, 1e-4);
                const double g = 2 * off * numbers[1 - i];
                p->m = beta1 * p->m + (1 - beta1) * g;
                p->v = beta2 * p->v + (1 - beta2) * g * g;
                numbers[i] -=
                    rate * (p->m / (1 - pow(beta1, round))) / (sqrt(p->v / (1 - pow(beta2, round))) + 1e-8);
                /* both see it, in a step and without */
                for (int other = 0; other < 2; other++) {
                    quern_session *s = quern_trainer_session(players[other].trainer);
                    assert_float_equal(number_of(s, "a"), numbers[0], 1e-4);
                    assert_float_equal(number_of(s, "b"), numbers[1], 1e-4);
                    const double far = numbers[0] * numbers[1] - players[other].wanted;
                    ok(quern_trainer_eval(players[other].trainer, &in, NULL, &loss, NULL));
                    assert_float_equal(loss, far * far, 1e-3);
                }
            }
        quern_session *s = quern_trainer_session(players[1].trainer);
        assert_int_equal(*(int64_t *)state_of(s, "second.step").data, 8);
        assert_int_equal(quern_session_find(s, "step"), -1);
        assert_int_equal(quern_session_find(s, "first.step"), -1);
        end(players);
    }
}

static void goes_on_from_one_file(void **state)
{
    (void)state;
    char path[] = "/tmp/quern-turns-XXXXXX", *note;
    const int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    player players[2];
    double losses[2][6];
    for (int run = 0; run < 2; run++) {
        start(players, "interp");
        quern_session *both[] = { quern_trainer_session(players[0].trainer),
                                  quern_trainer_session(players[1].trainer) };
        for (int i = 0; i < 6 && run == 0; i++)
            turn(&players[i % 2]);
        if (run == 0)
            ok(quern_sessions_save(2, both, path, "after 6"));
        else
            ok(quern_sessions_restore(2, both, path, &note));
        for (int i = 0; i < 6; i++)
            losses[run][i] = turn(&players[i % 2]);
        if (run == 1) {
            assert_string_equal(note, "after 6");
            quern_free(note);
            /* one of them alone has not all that is in it */
            fails(quern_sessions_restore(1, both, path, NULL), "it has states that the model has not");
            fails(quern_sessions_save(2, (quern_session *[]){ both[0], NULL }, path, NULL),
                  "quern_sessions_save: a session is NULL");
        }
        end(players);
    }
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    unlink(path);
}

static void refuses_what_is_alike_in_name_alone(void **state)
{
    (void)state;
    quern_trainer *a = learns("interp", "a", 3, NULL), *b = learns("interp", "b", 5, NULL),
                  *c = learns("interp", "a", 4, "third"), *d = learns("interp", "a", 4, "fourth");
    fails(quern_trainer_share(b, a), "each training has a state 'step' of its own: give them names");
    fails(quern_trainer_share(d, c), "each training has a state 'a.m' of its own");
    quern_session *both[] = { quern_trainer_session(b), quern_trainer_session(c) };
    fails(quern_sessions_save(2, both, "/tmp/quern-turns", NULL),
          "two sessions have a state 'a', and do not share it");
    quern_trainer_free(a);
    quern_trainer_free(b);
    quern_trainer_free(c);
    quern_trainer_free(d);
}

/* ---- builders ---- */

/* The model of a builder, run once on what `in` holds. */
static void compute(quern_builder *b, const char *target, const void *in, size_t bytes, quern_model **model,
                    quern_session **session)
{
    const quern_compile_options how = compile(target);
    quern_array array;
    ok(quern_build(b, &how, model));
    ok(quern_session_new(*model, NULL, session));
    ok(quern_session_get(*session, quern_session_find(*session, "x"), &array));
    memcpy(array.data, in, bytes);
    ok(quern_session_run(*session));
}

static void convolves_backwards(void **state)
{
    enum { N = 2, C = 3, O = 2, H = 3, W = 2 };
    static const int cases[][3] = { { 4, 2, 1 }, { 3, 1, 0 }, { 3, 2, 0 },
                                    { 2, 3, 1 }, { 1, 2, 0 }, { 3, 1, 2 } };
    (void)state;
    float x[N * C * H * W];
    for (int i = 0; i < N * C * H * W; i++)
        x[i] = (float)(i * 37 % 11) / 8 - 0.5f;
    for (size_t k = 0; k < 2 * sizeof cases / sizeof *cases; k++) {
        const int *c = cases[k / 2], kernel = c[0], stride = c[1], padding = c[2];
        const int h = (H - 1) * stride + kernel - 2 * padding, w = (W - 1) * stride + kernel - 2 * padding;
        quern_model *model;
        quern_session *s;
        double wanted[1000];
        if (h < 1 || w < 1)
            continue;
        quern_builder *b = quern_builder_new(NULL);
        quern_builder_seed(b, 7);
        quern_value *v =
            quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(N), QUERN_N(C), QUERN_N(H), QUERN_N(W)));
        quern_output(b, quern_conv_transpose2d(b, v, O, kernel, stride, padding, "up"), "y");
        compute(b, targets[k % 2], x, sizeof x, &model, &s);
        const quern_array y = state_of(s, "y"), weight = state_of(s, "up.weight");
        const float *bias = state_of(s, "up.bias").data, *filters = weight.data;
        assert_memory_equal(y.dims, DIMS(N, O, h, w), sizeof(int64_t[4]));
        assert_memory_equal(weight.dims, DIMS(C, O, kernel, kernel), sizeof(int64_t[4]));
        for (int i = 0; i < N * O * h * w; i++)
            wanted[i] = (double)bias[i / (h * w) % O];
        for (int i = 0; i < N * C * H * W; i++) /* each element adds its filter where it goes */
            for (int o = 0; o < O; o++)
                for (int j = 0; j < kernel * kernel; j++) {
                    const int row = i / W % H * stride + j / kernel - padding;
                    const int column = i % W * stride + j % kernel - padding;
                    if (row >= 0 && row < h && column >= 0 && column < w)
                        wanted[((i / (C * H * W) * O + o) * h + row) * w + column] +=
                            (double)x[i] * filters[(i / (H * W) % C * O + o) * kernel * kernel + j];
                }
        for (int i = 0; i < N * O * h * w; i++)
            assert_float_equal(((float *)y.data)[i], wanted[i], 1e-5);
        quern_session_free(s);
        quern_model_free(model);
    }
}

static void says_it_briefly(void **state)
{
    (void)state;
    const float x[6] = { -2, -1, -0.0f, 0.5f, 3, NAN };
    for (int k = 0; k < 2; k++) {
        quern_model *model;
        quern_session *s;
        quern_builder *b = quern_builder_new(NULL);
        quern_value *v = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(6)));
        quern_output(b, quern_leaky_relu(b, v, 0.25), "leaky");
        quern_output(b, quern_reshape(b, v, QUERN_SHAPE(QUERN_N(2), QUERN_N(-1))), "rest");
        quern_output(b, quern_scalar(b, QUERN_I64, -7), "number");
        compute(b, targets[k], x, sizeof x, &model, &s);
        const float *leaky = state_of(s, "leaky").data;
        for (int i = 0; i < 5; i++)
            assert_true(leaky[i] == (x[i] < 0 ? x[i] / 4 : x[i]));
        assert_true(isnan(leaky[5]));
        assert_memory_equal(state_of(s, "rest").dims, DIMS(2, 3), sizeof(int64_t[2]));
        assert_int_equal(*(int64_t *)state_of(s, "number").data, -7);
        assert_int_equal(quern_session_find(s, "elsewhere"), -1);
        quern_session_free(s);
        quern_model_free(model);
    }
}

static void reports(quern_value *(*mistake)(quern_builder *b, quern_value *x), const char *message)
{
    quern_model *model;
    quern_builder *b = quern_builder_new(NULL);
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(5), QUERN_N(6)));
    quern_output(b, mistake(b, x), "y");
    fails(quern_build(b, NULL, &model), message);
    assert_null(model);
}

static quern_value *two_rests(quern_builder *b, quern_value *x)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(-1)));
}

static quern_value *no_rest(quern_builder *b, quern_value *x)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(0), QUERN_N(-1)));
}

static quern_value *uneven_rest(quern_builder *b, quern_value *x)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(7)));
}

static quern_value *no_integer(quern_builder *b, quern_value *x)
{
    return quern_add(b, quern_convert(b, x, QUERN_I32), quern_scalar(b, QUERN_I32, 0.5));
}

static quern_value *too_large(quern_builder *b, quern_value *x)
{
    quern_scalar(b, QUERN_U8, 255);
    quern_scalar(b, QUERN_I8, -128);
    quern_scalar(b, QUERN_U64, 0x1p53);
    quern_scalar(b, QUERN_BOOL, 1);
    return quern_add(b, quern_convert(b, x, QUERN_I8), quern_scalar(b, QUERN_I8, 128));
}

static quern_value *below_zero(quern_builder *b, quern_value *x)
{
    return quern_add(b, quern_convert(b, x, QUERN_U64), quern_scalar(b, QUERN_U64, -1));
}

static quern_value *only_stored(quern_builder *b, quern_value *x)
{
    (void)x;
    return quern_scalar(b, QUERN_F8E5M2, 1);
}

static quern_value *no_dtype(quern_builder *b, quern_value *x)
{
    return quern_add(b, x, quern_scalar(b, 99, 0));
}

static quern_value *huge_stride(quern_builder *b, quern_value *x)
{
    x = quern_reshape(b, x, QUERN_SHAPE(QUERN_N(1), QUERN_N(1), QUERN_N(5), QUERN_N(6)));
    return quern_conv_transpose2d(b, x, 1, 2, INT64_MAX, 0, "up");
}

static quern_value *no_image(quern_builder *b, quern_value *x)
{
    return quern_conv_transpose2d(b, x, 1, 2, 2, 0, "up");
}

static void reports_mistakes(void **state)
{
    (void)state;
    reports(two_rests, "quern_reshape: two dimensions are -1");
    reports(no_rest, "quern_reshape: what remains for -1 is not known");
    reports(uneven_rest, "quern_reshape");
    reports(no_integer, "quern_scalar: 0.5 is no i32");
    reports(too_large, "quern_scalar: 128 is no i8");
    reports(below_zero, "quern_scalar: -1 is no u64");
    reports(only_stored, "quern_scalar: nothing is computed in f8e5m2");
    reports(no_dtype, "quern_scalar: 99 is no data type");
    reports(huge_stride, "x_dilation has 9223372036854775807; expected at most 2147483647");
    reports(no_image, "quern_conv_transpose2d: x is f32[5, 6]; it must be of floats [N, C, H, W]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learns_by_turns),     cmocka_unit_test(goes_on_from_one_file),
        cmocka_unit_test(convolves_backwards), cmocka_unit_test(refuses_what_is_alike_in_name_alone),
        cmocka_unit_test(says_it_briefly),     cmocka_unit_test(reports_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
