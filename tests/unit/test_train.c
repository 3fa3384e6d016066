/* Training steps: training mode of batch norms and dropouts, what is a parameter, what the entries do. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver/api.h"
#include "quern.h"
#include "tests/support/onnx_writer.h"

static quern_module *load(const void *data, size_t size)
{
    quern_module *module;
    if (quern_load_bytes(data, size, NULL, &module))
        fail_msg("%s", quern_last_error());
    return module;
}

static quern_model *train_model(quern_module *module, const quern_train_options *options, const char *target,
                                int threads)
{
    quern_model *model = NULL;
    const quern_compile_options compile = {
        .size = sizeof compile, .target = target, .threads = threads, .cache = ""
    };
    if (quern_make_training(module, options) || quern_compile(module, &compile, &model))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    return model;
}

static quern_model *compile_only(quern_module *module)
{
    quern_model *model;
    const quern_compile_options compile = { .size = sizeof compile, .target = "interp" };
    if (quern_compile(module, &compile, &model))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    return model;
}

static quern_module *load_path(const char *path)
{
    quern_module *module;
    if (quern_load(path, NULL, &module))
        fail_msg("%s", quern_last_error());
    return module;
}

static size_t size_of(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return (size_t)status.st_size;
}

static quern_session *session_of(quern_model *model, const char *entry, quern_session *owner)
{
    quern_session *session;
    if (quern_session_new(model, entry, &session) || (owner && quern_session_share_states(session, owner)))
        fail_msg("%s", quern_last_error());
    return session;
}

static int buffer_of(quern_model *model, const char *entry, const char *name)
{
    const quern_entry_info *info = quern_model_entry(model, entry);
    for (int i = 0; i < info->n_buffers; i++)
        if (strcmp(info->buffers[i].name, name) == 0)
            return i;
    return -1;
}

static const float *floats_of(quern_session *session, quern_model *model, const char *entry, const char *name)
{
    quern_array array;
    const int buffer = buffer_of(model, entry, name);
    if (buffer < 0)
        fail_msg("%s has no %s", entry, name);
    assert_int_equal(quern_session_get(session, buffer, &array), QUERN_OK);
    return array.data;
}

static void bind(quern_session *session, quern_model *model, const char *entry, const char *name, int rank,
                 const int64_t *dims, void *data, int dtype)
{
    const quern_array array = { .dtype = dtype, .rank = rank, .dims = dims, .data = data };
    if (quern_session_bind(session, buffer_of(model, entry, name), &array))
        fail_msg("%s", quern_last_error());
}

static void run(quern_session *session)
{
    if (quern_session_run(session))
        fail_msg("%s", quern_last_error());
}

static const quern_train_options sgd = {
    .size = sizeof sgd, .loss = "mse", .optimizer = "sgd", .learning_rate = 0.1, .seed = 5
};

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
        quern_model *model = train_model(load(norm_model, sizeof norm_model - 1), &sgd, targets[t], 1);
        quern_session *step = session_of(model, "train_step", NULL),
                      *infer = session_of(model, "infer", step);
        float x[8] = { 1, 2, 3, -2, 5, 0, 2, 6 }, target[8] = { 0 };
        const int64_t dims[2] = { 4, 2 };
        bind(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
        bind(step, model, "train_step", "target", 2, dims, target, QUERN_F32);
        bind(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
        float mean[2] = { 0.5f, -0.5f }, variance[2] = { 1, 4 };
        for (int i = 0; i < 3; i++) {
            run(step);
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
        run(infer);
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
    quern_module *module = load(text, sizeof text - 1);
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
        train_model(load(dropout_model, sizeof dropout_model - 1), &options, target, threads);
    quern_session *step = session_of(model, "train_step", NULL), *infer = session_of(model, "infer", step);
    for (int i = 0; i < N; i++)
        x[i] = 1;
    bind(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
    bind(step, model, "train_step", "target", 2, dims, zeros, QUERN_F32);
    bind(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
    run(infer);
    assert_float_equal(floats_of(infer, model, "infer", "y")[17], 1, 0);
    for (int i = 0; i < steps; i++) {
        run(step);
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

/* ---- parameters of imported models ---- */

/* y = softmax(factor norm(x) [W[2:4]; W[0:2]] + b + table[1] + mask - 1000 causal) / d, with the pieces of W and b put together
 * by Slice and Concat */
static onnx_bytes onnx_classifier(void)
{
    onnx_bytes g = { 0 }, node, node2, node3;
    float w[12], b[3] = { 0.1f, 0.2f, 0.3f }, mask[3] = { 0, 0, -1e9f }, d[3] = { 2, 2, 2 },
                 ones[4] = { 1, 1, 1, 1 }, zeros[4] = { 0 }, scale = 3, table[6] = { 1, 2, 3, 4, 5, 6 };
    for (int i = 0; i < 12; i++)
        w[i] = (float)(i % 5) / 5 - 0.4f;
    onnx_input(&g, "x", ONNX_FLOAT, "4,4");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, (int64_t[]){ 4, 3 }, w);
    onnx_initializer(&g, "b", ONNX_FLOAT, 1, (int64_t[]){ 3 }, b);
    onnx_initializer(&g, "mask", ONNX_FLOAT, 1, (int64_t[]){ 3 }, mask);
    onnx_initializer(&g, "d", ONNX_FLOAT, 1, (int64_t[]){ 3 }, d);
    onnx_initializer(&g, "bn.scale", ONNX_FLOAT, 1, (int64_t[]){ 4 }, ones);
    onnx_initializer(&g, "bn.bias", ONNX_FLOAT, 1, (int64_t[]){ 4 }, zeros);
    onnx_initializer(&g, "bn.mean", ONNX_FLOAT, 1, (int64_t[]){ 4 }, zeros);
    onnx_initializer(&g, "bn.var", ONNX_FLOAT, 1, (int64_t[]){ 4 }, ones);
    onnx_initializer(&g, "causal", ONNX_FLOAT, 2, (int64_t[]){ 4, 3 }, (float[12]){ 0, 1, 1, 0, 0, 1 });
    onnx_initializer(&g, "minus", ONNX_FLOAT, 1, (int64_t[]){ 1 }, (float[]){ -1000 });
    onnx_initializer(&g, "factor", ONNX_FLOAT, 0, NULL, &scale);
    onnx_initializer(&g, "table", ONNX_FLOAT, 2, (int64_t[]){ 2, 3 }, table);
    onnx_ints(&g, "zero", 1, (int64_t[]){ 0 });
    onnx_ints(&g, "one", 1, (int64_t[]){ 1 });
    onnx_ints(&g, "two", 1, (int64_t[]){ 2 });
    onnx_ints(&g, "four", 1, (int64_t[]){ 4 });
    onnx_simple(&g, "BatchNormalization", "x bn.scale bn.bias bn.mean bn.var", "n");
    onnx_simple(&g, "Dropout", "n", "dropped");
    onnx_simple(&g, "Slice", "w zero two zero", "upper");
    onnx_simple(&g, "Slice", "w two four zero", "lower");
    node = onnx_node("Concat", "lower upper", "turned");
    onnx_attr_int(&node, "axis", 0);
    onnx_put_node(&g, &node);
    onnx_simple(&g, "MatMul", "dropped turned", "p");
    onnx_simple(&g, "Mul", "p factor", "q");
    onnx_simple(&g, "Add", "q b", "r");
    node2 = onnx_node("Gather", "table one", "row");
    onnx_put_node(&g, &node2);
    onnx_simple(&g, "Add", "r row", "biased");
    onnx_simple(&g, "Add", "biased mask", "masked");
    onnx_simple(&g, "Mul", "causal minus", "hidden");
    onnx_simple(&g, "Add", "masked hidden", "scores");
    node3 = onnx_node("Softmax", "scores", "soft");
    onnx_attr_int(&node3, "axis", 1);
    onnx_put_node(&g, &node3);
    onnx_simple(&g, "Div", "soft d", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    return onnx_model(&g, 18);
}

/* Names of the model's states, "(mean)[w]" with trainable ones in square brackets, in order */
static void expect_states_of(const void *model_bytes, size_t n, const quern_train_options *options,
                             const char *expected)
{
    char text[512] = "";
    quern_model *model = train_model(load(model_bytes, n), options, "interp", 1);
    const quern_entry_info *info = quern_model_entry(model, "train_step");
    for (int i = 0; i < info->n_buffers; i++) {
        const quern_buffer_info *buffer = &info->buffers[i];
        if (buffer->role == QUERN_STATE)
            snprintf(text + strlen(text), sizeof text - strlen(text), buffer->trainable ? "[%s]" : "(%s)",
                     buffer->name);
    }
    assert_string_equal(text, expected);
    quern_model_free(model);
}

static void expect_states(const char *const *params, const char *expected)
{
    onnx_bytes bytes = onnx_classifier();
    quern_train_options options = sgd;
    options.params = params;
    for (int i = 0; params && params[i]; i++)
        options.n_params++;
    expect_states_of(bytes.data, bytes.n, &options, expected);
    free(bytes.data);
}

static void parameters_are_what_is_learnt(void **state)
{
    (void)state;
    /* not the mask, the divisor, the scalar factor; the statistics are other state */
    expect_states(NULL, "[bn.scale][bn.bias][w][b][table](bn.mean)(bn.var)(step)(random_key)");
    expect_states((const char *const[]){ "w", "bn.*", NULL },
                  "[bn.scale][bn.bias][w](bn.mean)(bn.var)(step)(random_key)");
    expect_states((const char *const[]){ "mask", NULL }, "[mask](bn.mean)(bn.var)(step)(random_key)");
}

/* Constants are settings where a bound, a divisor, an initial state or an index is expected; but what is computed there, or goes
 * through there, has parameters behind it. */
static void parameters_are_found_behind_settings(void **state)
{
    (void)state;
    static const struct {
        const char *body, *expected;
    } cases[] = {
        /* clipped between constants, as by ReLU6 */
        { "  %b = constant [0, 0] \"low\" : f32[2]\n  %c = broadcast %b {axes = [1], dims = [2, 2]} : f32[2, "
          "2]\n"
          "  %d = max %p, %c : f32[2, 2]\n  %e = constant [6, 6] \"high\" : f32[2]\n"
          "  %f = broadcast %e {axes = [1], dims = [2, 2]} : f32[2, 2]\n  %r = min %f, %d : f32[2, 2]\n",
          "[w]" },
        { "  %b = exp %p : f32[2, 2]\n  %c = div %x, %b : f32[2, 2]\n"
          "  %d = constant [[1, 2], [3, 4]] \"d\" : f32[2, 2]\n  %r = div %c, %d : f32[2, 2]\n",
          "[w]" },
        { "  %r, %s = scan %p, %x {length = [2], n_carried = 1, n_scanned = 1} : f32[2, 2], f32[2, 2]\n"
          "    body (%h: f32[2, 2], %i: f32[2]) {\n      %t = tanh %h : f32[2, 2]\n      return %t, %i\n    "
          "}\n",
          "[w]" },
        { "  %h = constant [[1, 2], [3, 4]] \"start\" : f32[2, 2]\n"
          "  %r, %s = scan %h, %p {length = [2], n_carried = 1, n_scanned = 1} : f32[2, 2], f32[2, 2]\n"
          "    body (%h: f32[2, 2], %i: f32[2]) {\n"
          "      %b = broadcast %i {axes = [1], dims = [2, 2]} : f32[2, 2]\n"
          "      %t = mul %h, %b : f32[2, 2]\n      return %t, %i\n    }\n",
          "[w]" },
        { "  %u = constant [[1, 2], [3, 4]] \"u\" : f32[2, 2]\n"
          "  %r = while %p, %u {limit = [3], n_carried = 1} : f32[2, 2]\n"
          "    condition (%h: f32[2, 2], %v: f32[2, 2]) {\n      %c = constant false : bool[]\n      return "
          "%c\n    }\n"
          "    body (%h: f32[2, 2], %v: f32[2, 2]) {\n      %t = mul %h, %v : f32[2, 2]\n      return %t\n   "
          " }\n",
          "[w][u]" },
        /* a learnt table of what is added to scores */
        { "  %t = constant [[1], [2], [3]] \"table\" : f32[3, 1]\n  %i = constant [0, 1, 2, 0] : i64[4]\n"
          "  %g = gather %t, %i {axis = 0} : f32[4, 1]\n  %m = reshape %g {dims = [1, 1, 2, 2]} : f32[1, 1, "
          "2, 2]\n"
          "  %q = reshape %p {dims = [1, 1, 2, 2]} : f32[1, 1, 2, 2]\n"
          "  %a = attention %q, %q, %q, %m {scale = 1} : f32[1, 1, 2, 2]\n  %r = reshape %a {dims = [2, 2]} "
          ": f32[2, 2]\n",
          "[w][table]" },
        { "  %j = constant [0, 1] \"index\" : f32[2]\n  %i = convert %j {dtype = i64} : i64[2]\n"
          "  %r = gather %p, %i {axis = 0} : f32[2, 2]\n",
          "[w]" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2048];
        snprintf(text, sizeof text,
                 "graph @main(%%x: f32[2, 2]) -> (y: f32[2, 2]) {\n  %%w = constant [[1, 2], [3, 4]] \"w\" : "
                 "f32[2, 2]\n"
                 "  %%p = mul %%x, %%w : f32[2, 2]\n%s  return %%r\n}\n",
                 cases[i].body);
        expect_states_of(text, strlen(text), &sgd, cases[i].expected);
    }
}

/* y = ((x scale + shift) / divisor + buffer) lifted factor, where each tensor's note says what it was in the module */
static void noted_parameters_and_buffers(void **state)
{
    (void)state;
    static const struct {
        const char *name, *kind;
    } notes[] = { { "scale", "PARAMETER" },
                  { "divisor", "PARAMETER" },
                  { "buffer", "BUFFER" },
                  { "lifted", "CONSTANT_TENSOR" },
                  { "x", "USER_INPUT" } };
    onnx_bytes g = { 0 };
    const float ones[2] = { 1, 1 };
    onnx_input(&g, "x", ONNX_FLOAT, "2,2");
    onnx_initializer(&g, "scale", ONNX_FLOAT, 0, NULL, ones);
    onnx_initializer(&g, "shift", ONNX_FLOAT, 1, (int64_t[]){ 2 }, ones);
    onnx_initializer(&g, "factor", ONNX_FLOAT, 0, NULL, ones);
    onnx_initializer(&g, "divisor", ONNX_FLOAT, 1, (int64_t[]){ 2 }, ones);
    onnx_initializer(&g, "buffer", ONNX_FLOAT, 1, (int64_t[]){ 2 }, ones);
    onnx_initializer(&g, "lifted", ONNX_FLOAT, 1, (int64_t[]){ 2 }, ones);
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++) {
        onnx_bytes value = { 0 }, entry = { 0 };
        onnx_put_string(&entry, 1, "pkg.torch.export.graph_signature.InputSpec.kind");
        onnx_put_string(&entry, 2, notes[i].kind);
        onnx_put_string(&value, 1, notes[i].name);
        onnx_put_message(&value, 4, &entry);
        onnx_put_message(&g, 13, &value);
    }
    onnx_simple(&g, "Mul", "x scale", "a");
    onnx_simple(&g, "Add", "a shift", "b");
    onnx_simple(&g, "Div", "b divisor", "c");
    onnx_simple(&g, "Add", "c buffer", "d");
    onnx_simple(&g, "Mul", "d lifted", "e");
    onnx_simple(&g, "Mul", "e factor", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_bytes bytes = onnx_model(&g, 18);
    expect_states_of(bytes.data, bytes.n, &sgd, "[scale][shift][divisor]");
    quern_module *module = load(bytes.data, bytes.n);
    char *text;
    assert_int_equal(quern_module_text(module, &text), QUERN_OK);
    expect_states_of(text, strlen(text), &sgd, "[scale][shift][divisor]");
    quern_free(text);
    quern_module_free(module);
    free(bytes.data);
}

/* Rotary tables, halves and turns of sinusoidal ones, and frequencies times positions; but no ones beside zeros. */
static void tables_of_sines_are_not_learnt(void **state)
{
    (void)state;
    enum { T = 4, D = 6 };
    float tables[6][T * D], frequencies[D];
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) {
            const double angle = (t + 1) * (d + 1) / 5.0, half = (t + 1) * (d % (D / 2) + 1) / 5.0,
                         turn = (t + 1) * (d / 2 + 1) / 5.0;
            const int at = t * D + d;
            frequencies[d] = 1 / (float)(d + 1);
            tables[0][at] = (float)cos(angle);
            tables[1][at] = (float)sin(angle);
            tables[2][at] = (float)(d < D / 2 ? sin(half) : cos(half));
            tables[3][at] = (float)(d % 2 ? cos(turn) : sin(turn));
            tables[4][at] = 1;
            tables[5][at] = 0;
        }
    static const char *const names[] = { "cos", "sin", "halves", "turns", "ones", "zeros" };
    onnx_bytes g = { 0 }, node;
    onnx_input(&g, "x", ONNX_FLOAT, "4,6");
    onnx_input(&g, "at", ONNX_INT64, "4,1");
    for (int i = 0; i < 6; i++)
        onnx_initializer(&g, names[i], ONNX_FLOAT, 2, (int64_t[]){ T, D }, tables[i]);
    onnx_initializer(&g, "frequencies", ONNX_FLOAT, 1, (int64_t[]){ D }, frequencies);
    onnx_initializer(&g, "w", ONNX_FLOAT, 1, (int64_t[]){ D }, frequencies);
    onnx_simple(&g, "Mul", "x cos", "a");
    onnx_simple(&g, "Mul", "x sin", "b");
    onnx_simple(&g, "Add", "a b", "c");
    onnx_simple(&g, "Add", "c halves", "d");
    onnx_simple(&g, "Add", "d turns", "e");
    onnx_simple(&g, "Mul", "e ones", "f");
    onnx_simple(&g, "Add", "f zeros", "h");
    node = onnx_node("Cast", "at", "position");
    onnx_attr_int(&node, "to", ONNX_FLOAT);
    onnx_put_node(&g, &node);
    onnx_simple(&g, "Mul", "position frequencies", "angles");
    onnx_simple(&g, "Sin", "angles", "sines");
    onnx_simple(&g, "Add", "h sines", "i");
    onnx_simple(&g, "Mul", "x w", "phase");
    onnx_simple(&g, "Sin", "phase", "wave");
    onnx_simple(&g, "Add", "i wave", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_bytes bytes = onnx_model(&g, 18);
    expect_states_of(bytes.data, bytes.n, &sgd, "[ones][zeros][w]");
    free(bytes.data);
}

/* A loop without a limit has no gradient: better said than left out in silence. */
static void parameters_in_front_of_what_has_no_gradient(void **state)
{
    (void)state;
    static const char text[] =
        "graph @main(%x: f32[2]) -> (y: f32[2]) {\n  %w = constant [1, 2] \"w\" : f32[2]\n"
        "  %u = constant [1, 2] \"u\" : f32[2]\n  %p = mul %x, %w : f32[2]\n"
        "  %q = while %p {n_carried = 1} : f32[2]\n"
        "    condition (%h: f32[2]) {\n      %c = constant false : bool[]\n      return %c\n    }\n"
        "    body (%h: f32[2]) {\n      %t = mul %h, %h : f32[2]\n      return %t\n    }\n"
        "  %r = mul %q, %u : f32[2]\n  return %r\n}\n";
    quern_module *module = load(text, strlen(text));
    assert_int_equal(quern_make_training(module, &sgd), QUERN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(quern_last_error(), "while can't be differentiated"));
    quern_module_free(module);
    quern_train_options options = sgd;
    options.params = (const char *const[]){ "u" };
    options.n_params = 1;
    expect_states_of(text, strlen(text), &options, "[u]");
}

/* Both directions, from initializers and from halves that are joined; short enough to be folded while importing. */
static void recurrent_weights_are_learnt(void **state)
{
    (void)state;
    static const struct {
        const char *op;
        int gates;
    } cells[] = { { "LSTM", 4 }, { "GRU", 3 }, { "RNN", 1 } };
    for (int c = 0; c < 3; c++)
        for (int joined = 0; joined < 2; joined++) {
            enum { H = 2, I = 3 };
            const int gates = cells[c].gates;
            float w[2 * 4 * H * I] = { 0 };
            onnx_bytes g = { 0 }, node;
            onnx_input(&g, "x", ONNX_FLOAT, "5,1,3");
            if (joined) {
                onnx_initializer(&g, "wa", ONNX_FLOAT, 3, (int64_t[]){ 1, gates * H, I }, w);
                onnx_initializer(&g, "wb", ONNX_FLOAT, 3, (int64_t[]){ 1, gates * H, I }, w);
                node = onnx_node("Concat", "wa wb", "w");
                onnx_attr_int(&node, "axis", 0);
                onnx_put_node(&g, &node);
            } else {
                onnx_initializer(&g, "w", ONNX_FLOAT, 3, (int64_t[]){ 2, gates * H, I }, w);
            }
            onnx_initializer(&g, "r", ONNX_FLOAT, 3, (int64_t[]){ 2, gates * H, H }, w);
            onnx_initializer(&g, "b", ONNX_FLOAT, 2, (int64_t[]){ 2, 2 * gates * H }, w);
            node = onnx_node(cells[c].op, "x w r b", "y");
            onnx_attr_int(&node, "hidden_size", H);
            onnx_attr_string(&node, "direction", "bidirectional");
            onnx_put_node(&g, &node);
            onnx_output(&g, "y", ONNX_FLOAT);
            onnx_bytes bytes = onnx_model(&g, 14);
            expect_states_of(bytes.data, bytes.n, &sgd, joined ? "[wa][wb][r][b]" : "[w][r][b]");
            free(bytes.data);
        }
}

static void unknown_parameters_are_named(void **state)
{
    (void)state;
    onnx_bytes bytes = onnx_classifier();
    quern_train_options options = sgd;
    options.params = (const char *const[]){ "w", "v*" };
    options.n_params = 2;
    quern_module *module = load(bytes.data, bytes.n);
    assert_int_equal(quern_make_training(module, &options), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "no parameter is called 'v*'"));
    quern_module_free(module);
    free(bytes.data);
}

/* Pieces of W reach the product by Slice and Concat: the gradient must find its way back. */
static void what_is_cut_and_joined_is_learnt(void **state)
{
    (void)state;
    onnx_bytes bytes = onnx_classifier();
    quern_model *model = train_model(load(bytes.data, bytes.n), &sgd, "cpu", 1);
    quern_session *step = session_of(model, "train_step", NULL);
    float x[16], target[12] = { 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0 }, before[12];
    for (int i = 0; i < 16; i++)
        x[i] = sinf((float)(3 * i));
    bind(step, model, "train_step", "x", 2, (int64_t[]){ 4, 4 }, x, QUERN_F32);
    bind(step, model, "train_step", "target", 2, (int64_t[]){ 4, 3 }, target, QUERN_F32);
    memcpy(before, floats_of(step, model, "train_step", "w"), sizeof before);
    run(step);
    const float *after = floats_of(step, model, "train_step", "w");
    for (int row = 0; row < 4; row++)
        assert_true(after[3 * row] != before[3 * row]);
    quern_session_free(step);
    quern_model_free(model);
    free(bytes.data);
}

/* ---- trained models as files ---- */

static char *folder_of_test(void)
{
    static char folder[] = "/tmp/quern_train_XXXXXX";
    strcpy(folder, "/tmp/quern_train_XXXXXX");
    assert_non_null(mkdtemp(folder));
    return folder;
}

static const char *in_folder(const char *folder, const char *name)
{
    static char path[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

static void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_true(f && fwrite(data, 1, n, f) == n && !fclose(f));
}

static void external_initializer(onnx_bytes *graph, const char *name, int n, const char *location, int offset)
{
    char number[16];
    onnx_bytes tensor = { 0 };
    onnx_put_int(&tensor, 1, n);
    onnx_put_int(&tensor, 2, ONNX_FLOAT);
    onnx_put_string(&tensor, 8, name);
    const char *entries[3][2] = { { "location", location }, { "offset", number }, { "length", number } };
    for (int i = 0; i < 3; i++) {
        onnx_bytes entry = { 0 };
        snprintf(number, sizeof number, "%d", i == 1 ? offset : 4 * n);
        onnx_put_string(&entry, 1, entries[i][0]);
        onnx_put_string(&entry, 2, entries[i][1]);
        onnx_put_message(&tensor, 13, &entry);
    }
    onnx_put_int(&tensor, 14, 1);
    onnx_put_message(graph, 5, &tensor);
}

/* y = (x w + b + v) d; w raw, b in float_data, v and d external, d is not trained */
static void trained_models_are_written_back(void **state)
{
    (void)state;
    char *folder = folder_of_test();
    onnx_bytes g = { 0 }, typed = { 0 };
    float w[4] = { 1, 2, 3, 4 }, b[2] = { 0.5f, 0.25f }, files[6] = { 9, 9, -1, 1, 2, 4 };
    onnx_input(&g, "x", ONNX_FLOAT, "n,2");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, (int64_t[]){ 2, 2 }, w);
    onnx_put_int(&typed, 1, 2);
    onnx_put_int(&typed, 2, ONNX_FLOAT);
    onnx_put_bytes(&typed, 4, b, sizeof b);
    onnx_put_string(&typed, 8, "b");
    onnx_put_message(&g, 5, &typed);
    external_initializer(&g, "v", 2, "weights.bin", 8);
    external_initializer(&g, "d", 2, "weights.bin", 16);
    onnx_simple(&g, "MatMul", "x w", "p");
    onnx_simple(&g, "Add", "p b", "q");
    onnx_simple(&g, "Add", "q v", "r");
    onnx_simple(&g, "Mul", "r d", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_bytes model_bytes = onnx_model(&g, 18);
    write_file(in_folder(folder, "model.onnx"), model_bytes.data, model_bytes.n);
    write_file(in_folder(folder, "weights.bin"), files, sizeof files);
    free(model_bytes.data);

    quern_train_options options = sgd;
    options.params = (const char *const[]){ "w", "b", "v" };
    options.n_params = 3;
    options.learning_rate = 0.01;
    options.schedule = "host"; /* learning_rate is a state that the file has not */
    options.ema = 0.5;         /* as are w.ema, … */
    quern_model *model = train_model(load_path(in_folder(folder, "model.onnx")), &options, "interp", 1);
    quern_session *step = session_of(model, "train_step", NULL), *infer = session_of(model, "infer", step);
    float x[4] = { 1, 2, -1, 3 }, target[4] = { 0 }, expected[4], found[4];
    const int64_t dims[2] = { 2, 2 };
    bind(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
    bind(step, model, "train_step", "target", 2, dims, target, QUERN_F32);
    bind(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
    run(step);
    run(infer);
    memcpy(expected, floats_of(infer, model, "infer", "y"), sizeof expected);
    if (quern_session_write_onnx(step, in_folder(folder, "model.onnx"), in_folder(folder, "trained.onnx"), 0))
        fail_msg("%s", quern_last_error());
    quern_session_free(infer);
    quern_session_free(step);
    quern_model_free(model);

    /* the new model stands alone */
    unlink(in_folder(folder, "weights.bin"));
    model = compile_only(load_path(in_folder(folder, "trained.onnx")));
    quern_session *again = session_of(model, "infer", NULL);
    bind(again, model, "infer", "x", 2, dims, x, QUERN_F32);
    run(again);
    memcpy(found, floats_of(again, model, "infer", "y"), sizeof found);
    assert_memory_equal(found, expected, sizeof found);
    quern_session_free(again);
    quern_model_free(model);

    /* written over itself, it is the same to the byte; what cannot be written leaves nothing */
    model = train_model(load_path(in_folder(folder, "trained.onnx")), &options, "interp", 1);
    step = session_of(model, "train_step", NULL);
    const size_t size = size_of(in_folder(folder, "trained.onnx"));
    assert_int_equal(quern_session_write_onnx(step, in_folder(folder, "trained.onnx"),
                                              in_folder(folder, "trained.onnx"), 0),
                     QUERN_OK);
    assert_int_equal(size_of(in_folder(folder, "trained.onnx")), size);
    assert_int_equal(quern_session_write_onnx(step, in_folder(folder, "trained.onnx"),
                                              in_folder(folder, "absent/t.onnx"), 0),
                     QUERN_ERROR_IO);
    quern_session_free(step);
    quern_model_free(model);
    unlink(in_folder(folder, "trained.onnx"));
    unlink(in_folder(folder, "trained.onnx.data"));
    unlink(in_folder(folder, "model.onnx"));
    assert_int_equal(rmdir(folder), 0);
}

/* y = x w in f16: w is kept in f32, and rounded where it is written */
static void narrow_parameters_are_written_rounded(void **state)
{
    (void)state;
    enum { ONNX_FLOAT16 = 10 };
    char *folder = folder_of_test();
    onnx_bytes g = { 0 };
    const uint16_t ones[2] = { 0x3c00, 0x3c00 }, x[2] = { 0x3c00, 0x4000 }; /* 1, 1; 1, 2 */
    onnx_bytes w = onnx_tensor("w", ONNX_FLOAT16, 2, (int64_t[]){ 2, 1 }, ones, sizeof ones);
    onnx_input(&g, "x", ONNX_FLOAT16, "1,2");
    onnx_put_message(&g, 5, &w);
    onnx_simple(&g, "MatMul", "x w", "y");
    onnx_output(&g, "y", ONNX_FLOAT16);
    onnx_bytes bytes = onnx_model(&g, 18);
    write_file(in_folder(folder, "model.onnx"), bytes.data, bytes.n);
    free(bytes.data);

    quern_train_options options = sgd;
    options.learning_rate = 0.01;
    quern_model *model = train_model(load_path(in_folder(folder, "model.onnx")), &options, "interp", 1);
    quern_session *step = session_of(model, "train_step", NULL);
    float target[1] = { 0 };
    bind(step, model, "train_step", "x", 2, (int64_t[]){ 1, 2 }, (void *)(uintptr_t)x, QUERN_F16);
    bind(step, model, "train_step", "target", 2, (int64_t[]){ 1, 1 }, target, QUERN_F32);
    run(step); /* y = 3, the gradient of w is 2 y x */
    const float *learnt = floats_of(step, model, "train_step", "w");
    assert_float_equal(learnt[0], 1 - 0.06, 1e-6);
    assert_float_equal(learnt[1], 1 - 0.12, 1e-6);
    if (quern_session_write_onnx(step, in_folder(folder, "model.onnx"), in_folder(folder, "trained.onnx"), 0))
        fail_msg("%s", quern_last_error());
    quern_session_free(step);
    quern_model_free(model);

    model = compile_only(load_path(in_folder(folder, "trained.onnx")));
    quern_session *again = session_of(model, "infer", NULL);
    bind(again, model, "infer", "x", 2, (int64_t[]){ 1, 2 }, (void *)(uintptr_t)x, QUERN_F16);
    run(again);
    quern_array y;
    assert_int_equal(quern_session_get(again, buffer_of(model, "infer", "y"), &y), QUERN_OK);
    assert_int_equal(*(uint16_t *)y.data, qn_f32_to_f16(qn_f16_to_f32(qn_f32_to_f16(0.94f)) +
                                                        2 * qn_f16_to_f32(qn_f32_to_f16(0.88f))));
    quern_session_free(again);
    quern_model_free(model);
    unlink(in_folder(folder, "trained.onnx"));
    unlink(in_folder(folder, "model.onnx"));
    assert_int_equal(rmdir(folder), 0);
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
        quern_model *model = train_model(load(text, sizeof text - 1), &options, targets[t], 1);
        quern_session *step = session_of(model, "train_step", NULL), *eval = session_of(model, "eval", step);
        float x[8] = { 2, 1, 1, 2, 3, 1, 0, 1 };
        int64_t labels[4] = { 0, 1, 1, 1 };
        quern_array correct;
        bind(step, model, "train_step", "x", 2, (int64_t[]){ 4, 2 }, x, QUERN_F32);
        bind(step, model, "train_step", "target", 1, (int64_t[]){ 4 }, labels, QUERN_I64);
        bind(eval, model, "eval", "x", 2, (int64_t[]){ 4, 2 }, x, QUERN_F32);
        bind(eval, model, "eval", "target", 1, (int64_t[]){ 4 }, labels, QUERN_I64);
        run(eval);
        assert_int_equal(quern_session_get(eval, buffer_of(model, "eval", "correct"), &correct), QUERN_OK);
        assert_int_equal(*(int64_t *)correct.data, 3);
        run(step);
        const float first = *floats_of(step, model, "train_step", "loss");
        assert_float_equal(first, *floats_of(eval, model, "eval", "loss"), 1e-6);
        run(step);
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
        quern_module *module = load(norm_model, sizeof norm_model - 1);
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
        quern_module *module = load(bytes.data, bytes.n);
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
        cmocka_unit_test(parameters_are_what_is_learnt),
        cmocka_unit_test(parameters_are_found_behind_settings),
        cmocka_unit_test(noted_parameters_and_buffers),
        cmocka_unit_test(tables_of_sines_are_not_learnt),
        cmocka_unit_test(parameters_in_front_of_what_has_no_gradient),
        cmocka_unit_test(recurrent_weights_are_learnt),
        cmocka_unit_test(unknown_parameters_are_named),
        cmocka_unit_test(what_is_cut_and_joined_is_learnt),
        cmocka_unit_test(trained_models_are_written_back),
        cmocka_unit_test(narrow_parameters_are_written_rounded),
        cmocka_unit_test(eval_measures_without_learning),
        cmocka_unit_test(mistakes_are_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
