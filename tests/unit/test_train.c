/* Training steps: training mode of batch norms and dropouts, what the entries do, mistakes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"
#include "tests/support/onnx_writer.h"
#include "tests/support/train_model.h"

/* ---- batch norm ---- */

static const char norm_model[] =
    "graph @main(%x: f32[4, 2], %s: f32[2] param = [1, 2], %b: f32[2] param = [0, 1]) -> (y: f32[4, 2]) {\n"
    "  %m = constant [0.5, -0.5] : f32[2]\n  %v = constant [1, 4] : f32[2]\n"
    "  %y, %m1, %v1 = batch_norm %x, %s, %b, %m, %v {epsilon = 0.125, momentum = 0.75} : f32[4, 2], f32[2], "
    "f32[2]\n  return %y\n}\n";

static void running_statistics_are_state(void **state)
{
    (void)state;
    static const char *const targets[] = { "interp", "cpu" };
    for (int t = 0; t < 2; t++) {
        quern_model *model = train_model(load_module(norm_model, sizeof norm_model - 1), &sgd, targets[t], 1);
        quern_session *step = session_of(model, "train_step", NULL),
                      *infer = session_of(model, "infer", step);
        float x[8] = { 1, 2, 3, -2, 5, 0, 2, 6 }, target[8] = { 0 };
        const int64_t dims[2] = { 4, 2 };
        bind_buffer(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
        bind_buffer(step, model, "train_step", "target", 2, dims, target, QUERN_F32);
        bind_buffer(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
        float mean[2] = { 0.5f, -0.5f }, variance[2] = { 1, 4 };
        for (int i = 0; i < 3; i++) {
            ok(quern_session_run(step));
            for (int c = 0; c < 2; c++) {
                float m = 0, v = 0;
                for (int k = 0; k < 4; k++)
                    m += x[2 * k + c] / 4;
                for (int k = 0; k < 4; k++)
                    v += (x[2 * k + c] - m) * (x[2 * k + c] - m) / 4;
                mean[c] = 0.75f * mean[c] + 0.25f * m;
                variance[c] = 0.75f * variance[c] + 0.25f * v;
            }
        }
        const float *scale = floats_of(step, model, "train_step", "s");
        const float *bias = floats_of(step, model, "train_step", "b");
        assert_true(scale[0] != 1 && bias[1] != 1);
        ok(quern_session_run(infer));
        const float *y = floats_of(infer, model, "infer", "y");
        for (int k = 0; k < 8; k++) {
            const int c = k % 2;
            const float expected = (x[k] - mean[c]) / sqrtf(variance[c] + 0.125f) * scale[c] + bias[c];
            assert_float_equal(y[k], expected, 1e-5);
        }
        const quern_entry_info *info = quern_model_entry(model, "train_step");
        const int statistic = buffer_of(model, "train_step", "batch_norm_0.mean");
        assert_true(statistic >= 0 && info->buffers[statistic].role == QUERN_STATE &&
                    !info->buffers[statistic].trainable);
        quern_session_free(infer);
        quern_session_free(step);
        quern_model_free(model);
    }
}

static void a_norm_in_a_loop_is_named(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[4, 2], %s: f32[2] param = [1, 2]) -> (y: f32[4, 2]) {\n"
                               "  %y = scan %x, %s {length = [2], n_carried = 1, n_scanned = 0} : f32[4, 2]\n"
                               "    body (%a: f32[4, 2], %c: f32[2]) {\n"
                               "      %r, %m, %v = batch_norm %a, %c, %c, %c, %c {epsilon = 0.1, momentum = "
                               "0.75} : f32[4, 2], f32[2], "
                               "f32[2]\n      return %r\n    }\n  return %y\n}\n";
    quern_module *module = load_module(text, sizeof text - 1);
    assert_int_equal(quern_make_training(module, &sgd), QUERN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(quern_last_error(), "batch_norm in a loop or a branch"));
    quern_module_free(module);
}

/* ---- dropout ---- */

static const char dropout_model[] =
    "graph @main(%x: f32[64, 300], %b: f32[300] param = splat 0) -> (y: f32[64, 300]) {\n"
    "  %0 = broadcast %b {axes = [1], dims = [64, 300]} : f32[64, 300]\n"
    "  %1 = add %x, %0 : f32[64, 300]\n  %k = constant [1, 2] : u64[2]\n  %z = constant 0 : u64[]\n"
    "  %2, %m = dropout %1, %k, %z {ratio = 0.5} : f32[64, 300], bool[64, 300]\n"
    "  %y, %n = dropout %2, %k, %z {ratio = 0.5} : f32[64, 300], bool[64, 300]\n  return %y\n}\n";

enum { N = 64 * 300 };

/* The parameters after `steps` steps on ones with the target 0: b -= rate * mean over rows of 2 y mask * 4 / 300 */
static void train_dropout(const char *target, int threads, uint64_t seed, int steps, float *out,
                          float *out_loss)
{
    static float x[N], zeros[N];
    const int64_t dims[2] = { 64, 300 };
    quern_train_options options = sgd;
    options.seed = seed;
    options.learning_rate = 0.01;
    quern_model *model =
        train_model(load_module(dropout_model, sizeof dropout_model - 1), &options, target, threads);
    quern_session *step = session_of(model, "train_step", NULL), *infer = session_of(model, "infer", step);
    for (int i = 0; i < N; i++)
        x[i] = 1;
    bind_buffer(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
    bind_buffer(step, model, "train_step", "target", 2, dims, zeros, QUERN_F32);
    bind_buffer(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
    ok(quern_session_run(infer));
    assert_float_equal(floats_of(infer, model, "infer", "y")[17], 1, 0);
    for (int i = 0; i < steps; i++) {
        ok(quern_session_run(step));
        out_loss[i] = *floats_of(step, model, "train_step", "loss");
    }
    memcpy(out, floats_of(step, model, "train_step", "b"), 300 * sizeof *out);
    quern_session_free(infer);
    quern_session_free(step);
    quern_model_free(model);
}

static void masks_depend_on_seed_and_step_alone(void **state)
{
    (void)state;
    static float one[300], two[300], interp[300], other[300];
    float loss[3], loss2[3], loss3[3], loss4[3];
    train_dropout("cpu", 1, 5, 3, one, loss);
    train_dropout("cpu", 2, 5, 3, two, loss2);
    train_dropout("interp", 1, 5, 3, interp, loss3);
    train_dropout("cpu", 1, 6, 3, other, loss4);
    assert_memory_equal(one, two, sizeof one);
    assert_memory_equal(loss, loss2, sizeof loss);
    for (int i = 0; i < 300; i++)
        assert_float_equal(one[i], interp[i], 1e-5);
    assert_memory_not_equal(one, other, sizeof one);
    /* a quarter is kept and comes out as 4: the loss is about 4, and another mask in each step */
    assert_float_equal(loss[0], 4, 0.2);
    assert_true(loss[0] != loss[1] && fabsf(loss[0] - loss[1]) < 0.5f);
}

/* ---- entries and mistakes ---- */

static void eval_measures_without_learning(void **state)
{
    (void)state;
    static const char text[] =
        "graph @main(%x: f32[4, 2], %w: f32[2, 2] param = [[1, 0], [0, 1]]) -> (y: f32[4, 2]) {\n"
        "  %y = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[4, "
        "2]\n"
        "  return %y\n}\n";
    static const char *const targets[] = { "interp", "cpu" };
    for (int t = 0; t < 2; t++) {
        quern_train_options options = sgd;
        options.loss = "cross_entropy";
        options.optimizer = "adam";
        quern_model *model = train_model(load_module(text, sizeof text - 1), &options, targets[t], 1);
        quern_session *step = session_of(model, "train_step", NULL), *eval = session_of(model, "eval", step);
        float x[8] = { 2, 1, 1, 2, 3, 1, 0, 1 };
        int64_t labels[4] = { 0, 1, 1, 1 };
        quern_array correct;
        bind_buffer(step, model, "train_step", "x", 2, (int64_t[]){ 4, 2 }, x, QUERN_F32);
        bind_buffer(step, model, "train_step", "target", 1, (int64_t[]){ 4 }, labels, QUERN_I64);
        bind_buffer(eval, model, "eval", "x", 2, (int64_t[]){ 4, 2 }, x, QUERN_F32);
        bind_buffer(eval, model, "eval", "target", 1, (int64_t[]){ 4 }, labels, QUERN_I64);
        ok(quern_session_run(eval));
        assert_int_equal(quern_session_get(eval, buffer_of(model, "eval", "correct"), &correct), QUERN_OK);
        assert_int_equal(*(int64_t *)correct.data, 3);
        ok(quern_session_run(step));
        const float first = *floats_of(step, model, "train_step", "loss");
        assert_float_equal(first, *floats_of(eval, model, "eval", "loss"), 1e-6);
        ok(quern_session_run(step));
        assert_true(*floats_of(step, model, "train_step", "loss") < first);
        quern_session_free(eval);
        quern_session_free(step);
        quern_model_free(model);
    }
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    quern_train_options cases[7];
    static const char *const messages[7] = {
        "there is no loss 'hinge': expected cross_entropy, mse, huber, bce, bce_with_logits",
        "there is no optimizer 'sdg': expected sgd, adam",
        "there is no schedule 'sine': expected constant, cosine",
        "schedule 'cosine' needs a number of steps",
        "momentum is 1: it must be at least 0 and below 1",
        "learning_rate is 0: it must be above 0",
        "Nesterov's momentum needs a momentum",
    };
    for (int i = 0; i < 7; i++)
        cases[i] = sgd;
    cases[0].loss = "hinge";
    cases[1].optimizer = "sdg";
    cases[2].schedule = "sine";
    cases[3].schedule = "cosine";
    cases[4].momentum = 1;
    cases[5].learning_rate = 0;
    cases[6].nesterov = 1;
    for (int i = 0; i < 7; i++) {
        quern_module *module = load_module(norm_model, sizeof norm_model - 1);
        assert_int_equal(quern_make_training(module, &cases[i]), QUERN_ERROR_ARGUMENT);
        if (!strstr(quern_last_error(), messages[i]))
            fail_msg("expected \"%s\", found: %s", messages[i], quern_last_error());
        quern_module_free(module);
    }
}

/* Equal tensors that an exporter made one of: a new network's scale and variance, both ones. */
static void statistics_that_are_parameters_are_refused(void **state)
{
    (void)state;
    static const char *const norms[2] = { "x w zeros mean ones", "x ones bias mean ones" };
    static const float ones[3] = { 1, 1, 1 }, zeros[3] = { 0 };
    for (int i = 0; i < 2; i++) {
        onnx_bytes g = { 0 };
        onnx_input(&g, "x", ONNX_FLOAT, "n,3");
        onnx_initializer(&g, "w", ONNX_FLOAT, 1, (int64_t[]){ 3 }, ones);
        onnx_initializer(&g, "ones", ONNX_FLOAT, 1, (int64_t[]){ 3 }, ones);
        onnx_initializer(&g, "mean", ONNX_FLOAT, 1, (int64_t[]){ 3 }, zeros);
        onnx_initializer(&g, "bias", ONNX_FLOAT, 1, (int64_t[]){ 3 }, zeros);
        onnx_simple(&g, "Identity", "bias", "zeros");
        onnx_simple(&g, "BatchNormalization", norms[i], "y");
        onnx_output(&g, "y", ONNX_FLOAT);
        onnx_bytes bytes = onnx_model(&g, 18);
        quern_module *module = load_module(bytes.data, bytes.n);
        assert_int_equal(quern_make_training(module, &sgd), i ? QUERN_ERROR_ARGUMENT : QUERN_OK);
        if (i && !strstr(quern_last_error(),
                         "'ones' is a running statistic of a batch normalization and a parameter "
                         "at once: the exporter made one tensor of equal ones"))
            fail_msg("%s", quern_last_error());
        quern_module_free(module);
        free(bytes.data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(running_statistics_are_state),
        cmocka_unit_test(statistics_that_are_parameters_are_refused),
        cmocka_unit_test(a_norm_in_a_loop_is_named),
        cmocka_unit_test(masks_depend_on_seed_and_step_alone),
        cmocka_unit_test(eval_measures_without_learning),
        cmocka_unit_test(mistakes_are_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
