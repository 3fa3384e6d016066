/* quern.h: layers for images, and the trainer. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"

static const quern_compile_options interp = { .size = sizeof interp, .target = "interp" };

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })

/* A convolution and a pooling, by hand and by the model. */
static void convolves_and_pools(void **state)
{
    enum { C = 2, O = 3, H = 5, W = 4, K = 3, POOLED = (H / 2) * (W / 2) };
    (void)state;
    quern_builder *b = quern_builder_new(NULL);
    quern_builder_seed(b, 3);
    quern_value *x = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(C * H * W)));
    quern_value *image = quern_reshape(b, quern_convert(b, x, QUERN_F32),
                                       QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(C), QUERN_N(H), QUERN_N(W)));
    quern_value *convolved = quern_conv2d(b, image, O, K, 1, 1, "conv");
    quern_output(b, convolved, "convolved");
    quern_output(b, quern_max_pool2d(b, convolved, 2), "pooled");
    quern_output(b, quern_tanh(b, convolved), "tanh");
    quern_module *module;
    quern_model *model;
    quern_session *s;
    ok(quern_builder_finish(b, &module));
    ok(quern_compile(module, &interp, &model));
    quern_module_free(module);
    ok(quern_session_new(model, NULL, &s));
    uint8_t in[C * H * W];
    for (int i = 0; i < C * H * W; i++)
        in[i] = (uint8_t)(i * 37 % 11);
    ok(quern_session_bind(s, 0, &(quern_array){ QUERN_U8, 2, DIMS(1, C * H * W), in }));
    ok(quern_session_run(s));
    quern_array a[5];
    for (int i = 0; i < 5; i++)
        ok(quern_session_get(s, 1 + i, &a[i]));
    const float *weight = a[0].data, *bias = a[1].data, *y = a[2].data, *pooled = a[3].data, *t = a[4].data;
    assert_int_equal(a[0].rank, 4);
    assert_int_equal(a[3].dims[2], H / 2);
    const double bound = 1 / sqrt((double)C * K * K);
    for (int o = 0; o < O; o++)
        for (int i = 0; i < H; i++)
            for (int j = 0; j < W; j++) {
                double sum = bias[o];
                for (int c = 0; c < C; c++)
                    for (int k = 0; k < K * K; k++) {
                        const int row = i + k / K - 1, column = j + k % K - 1;
                        const float w = weight[(o * C + c) * K * K + k];
                        assert_true(fabs(w) <= bound);
                        if (row >= 0 && row < H && column >= 0 && column < W)
                            sum += (double)w * in[(c * H + row) * W + column];
                    }
                assert_float_equal(y[(o * H + i) * W + j], sum, 1e-4);
                assert_float_equal(t[(o * H + i) * W + j], tanh(sum), 1e-4);
            }
    for (int i = 0; i < O * POOLED; i++) {
        const float *corner = y + i / POOLED * H * W + i % POOLED / (W / 2) * 2 * W + i % (W / 2) * 2;
        assert_true(pooled[i] == fmaxf(fmaxf(corner[0], corner[1]), fmaxf(corner[W], corner[W + 1])));
    }
    quern_session_free(s);
    quern_model_free(model);
}

/* One step on filters [3, 2, KERNEL, KERNEL] by images [4, 2, 7, 6], for which the batch is a symbol or not. */
static void learn_filters(quern_dim batch, const char *attributes, const char *target, float *out)
{
    enum { N = 4, IMAGE = 2 * 7 * 6, KERNEL = 3, FILTERS = 3 * 2 * KERNEL * KERNEL };
    const quern_train_options options = {
        .size = sizeof options, .loss = "output", .optimizer = "sgd", .learning_rate = 1
    };
    const quern_compile_options compile = { .size = sizeof compile, .target = target, .cache = "" };
    float x[N * IMAGE], w[FILTERS];
    char all[256];
    snprintf(all, sizeof all, "%s, groups = 1", attributes);
    for (int i = 0; i < N * IMAGE; i++)
        x[i] = (float)(i * 37 % 23) / 16 - 0.75f;
    for (int i = 0; i < FILTERS; i++)
        w[i] = (float)(i * 11 % 17) / 16 - 0.5f;
    quern_trainer *trainer;
    quern_array array;
    quern_builder *b = quern_builder_new("filters");
    quern_value *image =
        quern_input(b, "x", QUERN_F32, QUERN_SHAPE(batch, QUERN_N(2), QUERN_N(7), QUERN_N(6)));
    quern_value *filters = quern_param(b, "w", QUERN_F32, 4, DIMS(3, 2, KERNEL, KERNEL), w);
    quern_output(b, quern_tanh(b, QUERN_OP(b, "convolution", all, image, filters)), "y");
    ok(quern_train(b, &options, &compile, &trainer));
    ok(quern_trainer_step(trainer, &(quern_array){ QUERN_F32, 4, DIMS(N, 2, 7, 6), x }, NULL, NULL));
    quern_session *session = quern_trainer_session(trainer);
    ok(quern_session_get(session, quern_session_find(session, "w"), &array));
    memcpy(out, array.data, sizeof w);
    quern_trainer_free(trainer);
}

/* Gradients of filters are computed in another way where the batch is a symbol. */
static void convolutions_learn_alike_with_any_batch(void **state)
{
    enum { FILTERS = 3 * 2 * 3 * 3 };
    static const char *const cases[] = {
        "stride = [1, 1], low = [1, 1], high = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]",
        "stride = [2, 1], low = [0, 2], high = [1, 0], w_dilation = [1, 1], x_dilation = [1, 1]",
        "stride = [1, 2], low = [-1, 1], high = [2, -1], w_dilation = [2, 1], x_dilation = [1, 1]",
        "stride = [1, 1], low = [1, 1], high = [1, 1], w_dilation = [1, 1], x_dilation = [2, 1]",
    };
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        float wanted[FILTERS], found[FILTERS];
        learn_filters(QUERN_N(4), cases[k], "interp", wanted);
        for (int i = 0; i < 2; i++) {
            learn_filters(QUERN_DIM("n"), cases[k], i ? "cpu" : "interp", found);
            for (int j = 0; j < FILTERS; j++)
                assert_float_equal(found[j], wanted[j], 1e-5);
        }
    }
}

static void expect_mistake(quern_builder *b, const char *message)
{
    quern_trainer *trainer;
    const quern_train_options options = {
        .size = sizeof options, .loss = "mse", .optimizer = "sgd", .learning_rate = 1
    };
    assert_int_not_equal(quern_train(b, &options, &interp, &trainer), QUERN_OK);
    assert_null(trainer);
    if (!strstr(quern_last_error(), message))
        fail_msg("\"%s\" is not in \"%s\"", message, quern_last_error());
}

static quern_builder *begin(quern_value **out_x)
{
    quern_builder *b = quern_builder_new("f");
    *out_x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(2), QUERN_N(3), QUERN_N(8), QUERN_N(8)));
    return b;
}

/* With a loss of the host's there is no step: a trainer has nothing to do. */
static void needs_a_loss(void **state)
{
    (void)state;
    quern_trainer *trainer;
    quern_value *x;
    quern_builder *b = begin(&x);
    quern_output(b, quern_linear(b, x, 1, "fc"), "y");
    const quern_train_options own = {
        .size = sizeof own, .optimizer = "sgd", .learning_rate = 1, .parts = 1
    };
    assert_int_equal(quern_train(b, &own, &interp, &trainer), QUERN_ERROR_ARGUMENT);
    assert_null(trainer);
    assert_non_null(strstr(quern_last_error(), "no loss is named, so there is no step"));
}

static void reports_mistakes(void **state)
{
    (void)state;
    quern_value *x;
    quern_builder *b = begin(&x);
    quern_output(b, quern_conv2d(b, x, 4, 0, 1, 0, "conv"), "y");
    expect_mistake(b, "quern_conv2d: channels, kernel and stride must be at least 1");
    b = begin(&x);
    quern_output(b, quern_conv2d(b, x, 4, 3, 1, 0, ""), "y");
    expect_mistake(b, "quern_conv2d: it needs a name");
    b = begin(&x);
    quern_output(b, quern_conv2d(b, quern_mean(b, x), 4, 3, 1, 0, "conv"), "y");
    expect_mistake(b, "quern_conv2d: x is f32[]; it must be of floats [N, C, H, W]");
    b = begin(&x);
    quern_output(b, quern_conv2d(b, x, 4, 9, 1, 0, "conv"), "y"); /* larger than the image */
    expect_mistake(b, "quern_conv2d");
    b = begin(&x);
    quern_output(b, quern_linear(b, x, 0, "fc"), "y");
    expect_mistake(b, "quern_linear: 0 features: there must be at least 1");
    b = begin(&x);
    quern_output(b, quern_embedding(b, quern_convert(b, x, QUERN_I64), 0, 4, "e"), "y");
    expect_mistake(b, "quern_embedding: 0 rows of 4: both must be at least 1");
    b = begin(&x);
    quern_output(b, quern_max_pool2d(b, x, 0), "y");
    expect_mistake(b, "quern_max_pool2d: the window must be at least 1");
    b = begin(&x);
    quern_output(b, quern_reshape(b, x, QUERN_SHAPE(QUERN_N(7))), "y");
    expect_mistake(b, "quern_reshape");
    b = begin(&x);
    quern_output(b, quern_convert(b, x, 99), "y");
    expect_mistake(b, "quern_convert: 99 is no data type");
    b = begin(&x);
    quern_output(b, quern_tanh(b, x), "y");
    expect_mistake(b, "'f' has no parameters to train");
    b = begin(&x);
    quern_set_state(b, x, x);
    quern_output(b, x, "y");
    expect_mistake(b, "quern_set_state: what is set is not a state");
    b = begin(&x);
    quern_set_state(b, quern_state(b, "s", QUERN_F32, 1, DIMS(3), NULL), x);
    quern_output(b, x, "y");
    expect_mistake(b, "quern_set_state: 's' is f32[3], what it is set to f32[2, 3, 8, 8]");
    b = begin(&x);
    quern_value *s = quern_state(b, "s", QUERN_F32, 4, DIMS(2, 3, 8, 8), NULL);
    quern_set_state(b, s, x);
    quern_set_state(b, s, s);
    quern_output(b, x, "y");
    expect_mistake(b, "quern_set_state: 's' is set already");
    b = begin(&x);
    quern_output(b, quern_state(b, "s", QUERN_F32, 1, DIMS(-3), NULL), "y");
    expect_mistake(b, "quern_state: a dimension is negative or too large");
}

/* ---- a line through points ---- */

enum { N = 10 };

static quern_trainer *line(void)
{
    const quern_train_options options = {
        .size = sizeof options, .loss = "mse", .optimizer = "sgd", .learning_rate = 0.1
    };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("line");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(1)));
    const float zero = 0;
    quern_value *w = quern_param(b, "w", QUERN_F32, 2, DIMS(1, 1), &zero);
    quern_output(b, quern_matmul(b, x, w), "y");
    ok(quern_train(b, &options, &interp, &trainer));
    return trainer;
}

static float *state_of(quern_trainer *trainer, const char *name)
{
    const quern_entry_info *entry = quern_trainer_entry(trainer);
    quern_array array;
    for (int i = 0; i < entry->n_buffers; i++)
        if (strcmp(entry->buffers[i].name, name) == 0) {
            ok(quern_session_get(quern_trainer_session(trainer), i, &array));
            return array.data;
        }
    fail_msg("there is no %s", name);
    return NULL;
}

static float weight_of(quern_trainer *trainer)
{
    return *state_of(trainer, "w");
}

/* w after the rows of each batch in turn, in double precision */
static double expected(const float *x, const float *y, const int *order, int batch, double *losses)
{
    double w = 0;
    for (int first = 0; first < N; first += batch) {
        const int n = N - first < batch ? N - first : batch;
        double gradient = 0, loss = 0;
        for (int i = first; i < first + n; i++) {
            const double r = w * x[order[i]] - y[order[i]];
            loss += r * r / n;
            gradient += 2 * r * x[order[i]] / n;
        }
        losses[first / batch] = loss;
        w -= 0.1 * gradient;
    }
    return w;
}

static void trains_by_epochs(void **state)
{
    (void)state;
    float xs[N], ys[N];
    int order[N];
    double losses[4], wanted[4], loss;
    int64_t correct = 7;
    for (int i = 0; i < N; i++) {
        xs[i] = 0.25f * (float)i - 1;
        ys[i] = 3 * xs[i] + (float)(i % 3) - 1;
        order[i] = i;
    }
    const quern_array x = { QUERN_F32, 2, DIMS(N, 1), xs }, y = { QUERN_F32, 2, DIMS(N, 1), ys };
    quern_trainer *trainer = line();
    ok(quern_trainer_epoch(trainer, &x, &y, 3, 0, losses)); /* 3, 3, 3 and 1 rows */
    assert_float_equal(weight_of(trainer), expected(xs, ys, order, 3, wanted), 1e-5);
    for (int i = 0; i < 4; i++)
        assert_float_equal(losses[i], wanted[i], 1e-5);

    /* evaluation sees the same weight, and changes nothing */
    const float w = weight_of(trainer);
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += (w * xs[i] - ys[i]) * (w * xs[i] - ys[i]) / N;
    ok(quern_trainer_eval(trainer, &x, &y, &loss, &correct));
    assert_float_equal(loss, sum, 1e-5);
    assert_int_equal(correct, -1); /* mse counts nothing */
    ok(quern_trainer_step(trainer, &x, &y, &loss));
    assert_float_equal(loss, sum, 1e-5);
    assert_true(weight_of(trainer) != w);
    quern_trainer_free(trainer);

    /* an order is a matter of its number: the same sum of losses in one batch, other weights in many */
    float shuffled[3];
    for (int k = 0; k < 3; k++) {
        trainer = line();
        ok(quern_trainer_epoch(trainer, &x, &y, 1, k == 2 ? 6 : 5, NULL));
        shuffled[k] = weight_of(trainer);
        quern_trainer_free(trainer);
    }
    assert_true(shuffled[0] == shuffled[1] && shuffled[0] != shuffled[2]);
    trainer = line();
    ok(quern_trainer_epoch(trainer, &x, &y, 100, 5, losses)); /* every row once */
    assert_float_equal(weight_of(trainer), expected(xs, ys, order, N, wanted), 1e-5);
    assert_float_equal(losses[0], wanted[0], 1e-5);

    const quern_array fewer = { QUERN_F32, 2, DIMS(N - 1, 1), ys };
    assert_int_equal(quern_trainer_epoch(trainer, &x, &fewer, 3, 0, NULL), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "x has 10 samples, and target 9"));
    assert_int_equal(quern_trainer_epoch(trainer, &x, &y, 0, 0, NULL), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_trainer_epoch(trainer, &x, NULL, 3, 0, NULL), QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "quern_trainer_epoch: target is NULL");
    const quern_array none = { QUERN_F32, 2, DIMS(0, 1), xs };
    assert_int_equal(quern_trainer_epoch(trainer, &none, &none, 3, 0, NULL), QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "quern_trainer_epoch: there are no samples");
    assert_int_equal(quern_trainer_step(trainer, &none, &none, NULL), QUERN_ERROR_RANGE);
    const quern_array wide = { QUERN_F32, 2, DIMS(N / 2, 2), xs };
    assert_int_not_equal(quern_trainer_step(trainer, &wide, &y, NULL), QUERN_OK);
    quern_trainer_free(trainer);
    quern_trainer_free(NULL);
}

/* y = x w, of x [batch, 2], or of the transpose of x [2, batch], and its target likewise */
static quern_trainer *plane(bool rows_first)
{
    const quern_train_options options = {
        .size = sizeof options, .loss = "mse", .optimizer = "sgd", .learning_rate = 0.1
    };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("plane");
    quern_value *x;
    if (rows_first)
        x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(2)));
    else
        x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(2), QUERN_DIM("batch")));
    quern_value *w = quern_param(b, "w", QUERN_F32, 2, DIMS(2, 1), (const float[]){ 1, -1 });
    const char *const swap = "perm = [1, 0]";
    quern_value *y = quern_matmul(b, rows_first ? x : quern_op(b, "transpose", 1, &x, swap), w);
    quern_output(b, rows_first ? y : quern_op(b, "transpose", 1, &y, swap), "y");
    ok(quern_train(b, &options, &interp, &trainer));
    return trainer;
}

static void finds_rows_along_other_axes(void **state)
{
    (void)state;
    float rows[N * 2], columns[2 * N], ys[N], found[2][2];
    for (int i = 0; i < N; i++) {
        rows[2 * i] = columns[i] = 0.25f * (float)i - 1;
        rows[2 * i + 1] = columns[N + i] = (float)(i % 3) - 1;
        ys[i] = (float)(i * i % 5) - 2;
    }
    for (uint64_t shuffle = 0; shuffle < 2; shuffle++) {
        for (int k = 0; k < 2; k++) {
            quern_trainer *trainer = plane(k == 0);
            const quern_array x = { QUERN_F32, 2, k ? DIMS(2, N) : DIMS(N, 2), k ? columns : rows };
            const quern_array y = { QUERN_F32, 2, k ? DIMS(1, N) : DIMS(N, 1), ys };
            if (k) {
                assert_int_equal(quern_trainer_epoch(trainer, &x, &y, 3, shuffle, NULL),
                                 QUERN_ERROR_ARGUMENT);
                ok(quern_trainer_batch_axis(trainer, 0, 1));
                ok(quern_trainer_batch_axis(trainer, 1, 1));
            }
            ok(quern_trainer_epoch(trainer, &x, &y, 3, shuffle, NULL));
            memcpy(found[k], state_of(trainer, "w"), sizeof found[k]);
            if (k) {
                const quern_array flat = { QUERN_F32, 1, DIMS(N), ys };
                assert_int_equal(quern_trainer_epoch(trainer, &x, &flat, 3, 0, NULL), QUERN_ERROR_ARGUMENT);
                assert_string_equal(quern_last_error(),
                                    "quern_trainer_epoch: target has no axis 1 of samples");
                assert_int_equal(quern_trainer_batch_axis(trainer, 2, 0), QUERN_ERROR_ARGUMENT);
                assert_string_equal(
                    quern_last_error(),
                    "quern_trainer_batch_axis: 2: x has 1 arrays, and the target is the next");
                assert_int_equal(quern_trainer_batch_axis(trainer, 0, -1), QUERN_ERROR_ARGUMENT);
            }
            quern_trainer_free(trainer);
        }
        assert_memory_equal(found[0], found[1], sizeof found[0]);
        assert_true(found[0][0] != 1 && found[0][1] != -1);
    }
}

/* The loss is the output, mean (w x)^2 + s; the state s counts the steps, the state t is the host's. */
static void says_its_loss_itself(void **state)
{
    (void)state;
    static const char *const targets[] = { "interp", "cpu" };
    for (int k = 0; k < 2; k++) {
        const quern_compile_options compile = { .size = sizeof compile, .target = targets[k], .cache = "" };
        const quern_train_options options = {
            .size = sizeof options, .loss = "output", .optimizer = "sgd", .learning_rate = 0.1
        };
        quern_trainer *trainer;
        quern_builder *b = quern_builder_new("loss");
        quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(1)));
        quern_value *w = quern_param(b, "w", QUERN_F32, 2, DIMS(1, 1), &(float){ 2 });
        quern_value *s = quern_state(b, "s", QUERN_F32, 2, DIMS(1, 1), NULL);
        quern_value *t = quern_state(b, "t", QUERN_F32, 2, DIMS(1, 1), &(float){ 1 });
        quern_set_state(b, s, quern_add(b, s, t));
        quern_value *y = quern_mul(b, x, w);
        quern_output(b, quern_add(b, quern_mul(b, y, y), s), "loss");
        ok(quern_train(b, &options, &compile, &trainer));
        float xs[2] = { 1, 3 };
        double loss, losses[2];
        const quern_array batch = { QUERN_F32, 2, DIMS(2, 1), xs };
        ok(quern_trainer_step(trainer, &batch, NULL, &loss));
        assert_float_equal(loss, 4 * 5, 1e-5);
        assert_float_equal(weight_of(trainer), 2 - 0.1 * 2 * 2 * 5, 1e-5); /* 0 */
        assert_float_equal(*state_of(trainer, "s"), 1, 0);
        *state_of(trainer, "t") = 0.5f;
        ok(quern_trainer_epoch(trainer, &batch, NULL, 1, 0, losses));
        assert_float_equal(losses[0], 1, 1e-5);
        assert_float_equal(losses[1], 1.5, 1e-5);
        assert_float_equal(*state_of(trainer, "s"), 2, 0);
        ok(quern_trainer_eval(trainer, &batch, NULL, &loss, NULL));
        assert_float_equal(loss, 2, 1e-5);
        assert_float_equal(*state_of(trainer, "s"), 2, 0);
        assert_int_equal(quern_trainer_step(trainer, &batch, &batch, NULL), QUERN_ERROR_ARGUMENT);
        assert_string_equal(quern_last_error(), "the loss takes no target: it must be NULL");
        quern_trainer_free(trainer);
    }
}

static void reads_arrays(void **state)
{
    (void)state;
    quern_arrays *arrays;
    ok(quern_arrays_read(QN_SOURCE_DIR "/examples/digits/digits.npz", &arrays));
    const quern_array *x = quern_arrays_find(arrays, "x"), *y = quern_arrays_find(arrays, "y");
    assert_non_null(x);
    assert_non_null(y);
    assert_null(quern_arrays_find(arrays, "z"));
    assert_int_equal(x->dtype, QUERN_U8);
    assert_int_equal(x->dims[1], 64);
    assert_int_equal(y->dims[0], x->dims[0]);
    quern_arrays_free(arrays);
    quern_arrays_free(NULL);
    assert_int_equal(quern_arrays_read("/does/not/exist.npz", &arrays), QUERN_ERROR_IO);
    assert_null(arrays);
    assert_non_null(strstr(quern_last_error(), "/does/not/exist.npz"));
    assert_int_equal(quern_arrays_read(NULL, &arrays), QUERN_ERROR_ARGUMENT);
}

/* ---- losses by calls ---- */

enum { ROWS = 6, CLASSES = 4 };

static const char *const loss_names[] = { "cross_entropy", "mse", "huber", "bce", "bce_with_logits" };

/* Logits, or probabilities of them, of a linear layer; with `by_call` the loss of them, whose target is an input. */
static quern_trainer *learner(const char *loss, bool by_call, double smoothing)
{
    const bool classes = strcmp(loss, "cross_entropy") == 0;
    const quern_dim batch = QUERN_DIM("batch");
    quern_builder *b = quern_builder_new("net");
    quern_builder_seed(b, 11);
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(batch, QUERN_N(3)));
    quern_value *y = NULL;
    if (by_call)
        y = classes ? quern_input(b, "y", QUERN_I64, 1, &batch)
                    : quern_input(b, "y", QUERN_F32, QUERN_SHAPE(batch, QUERN_N(CLASSES)));
    quern_value *out = quern_linear(b, x, CLASSES, "fc");
    out = strcmp(loss, "bce") == 0 ? quern_sigmoid(b, out) : out;
    const quern_loss_options options = { .size = sizeof options,
                                         .label_smoothing = smoothing,
                                         .huber_delta = 0.5 };
    quern_output(b, by_call ? quern_loss(b, loss, out, y, &options) : out, "y");
    const quern_train_options how = { .size = sizeof how,
                                      .loss = by_call ? "output" : loss,
                                      .optimizer = "adam",
                                      .learning_rate = 0.1,
                                      .huber_delta = !by_call && strcmp(loss, "huber") == 0 ? 0.5 : 0,
                                      .label_smoothing = by_call ? 0 : smoothing };
    quern_trainer *trainer;
    ok(quern_train(b, &how, NULL, &trainer));
    return trainer;
}

/* A loss that the host's function says is the named one, to the bit. */
static void losses_by_calls_are_the_named_ones(void **state)
{
    (void)state;
    float xs[ROWS * 3], ys[ROWS * CLASSES];
    int64_t labels[ROWS];
    for (int i = 0; i < ROWS * 3; i++)
        xs[i] = (float)sin(i * 1.7);
    for (int i = 0; i < ROWS * CLASSES; i++)
        ys[i] = (float)(0.5 + 0.5 * sin(i * 2.3));
    for (int i = 0; i < ROWS; i++)
        labels[i] = i * 7 % CLASSES;
    for (int k = 0; k < 6; k++) {
        const char *name = loss_names[k % 5];
        const double smoothing = k == 5 ? 0.1 : 0;
        const quern_array y = k % 5 ? (quern_array){ QUERN_F32, 2, DIMS(ROWS, CLASSES), ys }
                                    : (quern_array){ QUERN_I64, 1, DIMS(ROWS), labels };
        const quern_array both[] = { { QUERN_F32, 2, DIMS(ROWS, 3), xs }, y };
        quern_trainer *named = learner(name, false, smoothing), *called = learner(name, true, smoothing);
        for (int step = 0; step < 20; step++) {
            double a, b;
            ok(quern_trainer_step(named, both, &both[1], &a));
            ok(quern_trainer_step(called, both, NULL, &b));
            if (a != b)
                fail_msg("%s, step %d: %.17g and %.17g", name, step, a, b);
        }
        assert_memory_equal(state_of(named, "fc.weight"), state_of(called, "fc.weight"),
                            3 * CLASSES * sizeof(float));
        quern_trainer_free(named);
        quern_trainer_free(called);
    }
}

/* -log softmax of the row's element c */
static double surprise(const float *row, int c)
{
    double sum = 0;
    for (int i = 0; i < CLASSES; i++)
        sum += exp(row[i]);
    return log(sum) - row[c];
}

static double loss_of(int kind, double p, double t)
{
    const double d = p - t;
    switch (kind) {
    case 1: return d * d;
    case 2: return fabs(d) <= 0.5 ? d * d / 2 : 0.5 * (fabs(d) - 0.25);
    case 3: return -(t * log(p) + (1 - t) * log(1 - p));
    default: return log1p(exp(-p)) + p * (1 - t);
    }
}

/* All reductions, class numbers and shares, as their formulas say. */
static void losses_are_their_formulas(void **state)
{
    (void)state;
    enum { N_OUTPUTS = 3 * 4 + 3 + 3 + 1 };
    static const char *const reductions[] = { "none", "sum", NULL };
    float ps[ROWS * CLASSES], ts[ROWS * CLASSES], *results[N_OUTPUTS];
    int32_t labels[ROWS];
    for (int i = 0; i < ROWS * CLASSES; i++) {
        ps[i] = (float)(0.5 + 0.45 * sin(i * 1.1));
        ts[i] = (float)(0.5 + 0.5 * sin(i * 2.3));
    }
    for (int i = 0; i < ROWS; i++)
        labels[i] = i * 7 % CLASSES;
    quern_builder *b = quern_builder_new("losses");
    quern_value *p =
        quern_input(b, "p", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(2), QUERN_N(CLASSES)));
    quern_value *t =
        quern_input(b, "t", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(2), QUERN_N(CLASSES)));
    quern_value *c = quern_input(b, "c", QUERN_I32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(2)));
    for (int k = 1; k < 5; k++)
        for (int r = 0; r < 3; r++)
            quern_output(b,
                         quern_loss(b, loss_names[k], p, t,
                                    &(quern_loss_options){ .size = sizeof(quern_loss_options),
                                                           .reduction = reductions[r],
                                                           .huber_delta = 0.5 }),
                         NULL);
    for (int r = 0; r < 3; r++)
        quern_output(b,
                     quern_loss(b, "cross_entropy", p, c,
                                &(quern_loss_options){ .size = sizeof(quern_loss_options),
                                                       .reduction = reductions[r],
                                                       .label_smoothing = 0.2 }),
                     NULL);
    for (int r = 0; r < 3; r++)
        quern_output(b,
                     quern_loss(b, "cross_entropy", p, t,
                                &(quern_loss_options){ .size = sizeof(quern_loss_options),
                                                       .reduction = reductions[r],
                                                       .label_smoothing = 0.2 }),
                     NULL);
    /* as a host composes them */
    quern_value *half = quern_constant(b, QUERN_F32, 0, NULL, &(float){ 0.5f });
    quern_output(b,
                 quern_add(b,
                           quern_add(b, quern_mse(b, p, t), quern_mul(b, half, quern_cross_entropy(b, p, c))),
                           quern_add(b, quern_huber(b, p, t, 0.5),
                                     quern_add(b, quern_bce(b, p, t), quern_bce_with_logits(b, p, t)))),
                 NULL);
    quern_module *module;
    quern_model *model;
    quern_session *s;
    ok(quern_builder_finish(b, &module));
    ok(quern_compile(module, NULL, &model));
    quern_module_free(module);
    ok(quern_session_new(model, NULL, &s));
    ok(quern_session_bind(s, 0, &(quern_array){ QUERN_F32, 3, DIMS(ROWS / 2, 2, CLASSES), ps }));
    ok(quern_session_bind(s, 1, &(quern_array){ QUERN_F32, 3, DIMS(ROWS / 2, 2, CLASSES), ts }));
    ok(quern_session_bind(s, 2, &(quern_array){ QUERN_I32, 2, DIMS(ROWS / 2, 2), labels }));
    ok(quern_session_run(s));
    for (int i = 0; i < N_OUTPUTS; i++) {
        quern_array array;
        ok(quern_session_get(s, 3 + i, &array));
        assert_int_equal(array.rank, i % 3 || i == N_OUTPUTS - 1 ? 0 : i < 12 ? 3 : 2);
        results[i] = array.data;
    }
    double all = 0, sums[7] = { 0 }; /* the seventh: cross_entropy of classes, without smoothing */
    for (int k = 1; k < 5; k++)
        for (int i = 0; i < ROWS * CLASSES; i++) {
            const double loss = loss_of(k, ps[i], ts[i]);
            assert_float_equal(results[3 * (k - 1)][i], loss, 1e-6);
            sums[k - 1] += loss;
        }
    for (int i = 0; i < ROWS; i++) {
        const float *row = ps + i * CLASSES;
        double even = 0, shares = 0;
        for (int k = 0; k < CLASSES; k++) {
            even += surprise(row, k) / CLASSES;
            shares += ts[i * CLASSES + k] * surprise(row, k);
        }
        sums[6] += surprise(row, labels[i]);
        sums[4] += 0.8 * surprise(row, labels[i]) + 0.2 * even;
        sums[5] += 0.8 * shares + 0.2 * even;
        assert_float_equal(results[12][i], 0.8 * surprise(row, labels[i]) + 0.2 * even, 1e-5);
        assert_float_equal(results[15][i], 0.8 * shares + 0.2 * even, 1e-5);
    }
    for (int k = 0; k < 6; k++) {
        const int n = k < 4 ? ROWS * CLASSES : ROWS;
        assert_float_equal(*results[3 * k + 1], sums[k], 1e-4);
        assert_float_equal(*results[3 * k + 2], sums[k] / n, 1e-5);
        all += k < 4 ? sums[k] / n : 0;
    }
    assert_float_equal(*results[N_OUTPUTS - 1], all + 0.5 * sums[6] / ROWS, 1e-5);
    quern_session_free(s);
    quern_model_free(model);
}

static void losses_report_mistakes(void **state)
{
    (void)state;
    quern_value *x;
    quern_builder *b = begin(&x);
    quern_output(b, quern_loss(b, "hinge", x, x, NULL), "y");
    expect_mistake(
        b,
        "quern_loss: there is no loss 'hinge': expected cross_entropy, mse, huber, bce or bce_with_logits");
    b = begin(&x);
    quern_output(b, quern_loss(b, "output", x, x, NULL), "y");
    expect_mistake(b, "quern_loss: there is no loss 'output'");
    b = begin(&x);
    quern_output(b,
                 quern_loss(b, "mse", x, x,
                            &(quern_loss_options){ .size = sizeof(quern_loss_options), .reduction = "max" }),
                 "y");
    expect_mistake(b, "quern_loss: there is no reduction 'max': expected mean, sum or none");
    b = begin(&x);
    quern_output(
        b,
        quern_loss(b, "cross_entropy", x, x,
                   &(quern_loss_options){ .size = sizeof(quern_loss_options), .label_smoothing = 1 }),
        "y");
    expect_mistake(b, "quern_loss: label_smoothing is 1: it must be at least 0 and below 1");
    b = begin(&x);
    quern_output(b, quern_huber(b, x, x, 0), "y");
    expect_mistake(b, "quern_huber: delta is 0: it must be above 0");
    b = begin(&x);
    quern_output(b, quern_mse(b, x, quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1)))), "y");
    expect_mistake(
        b, "quern_mse: the target is f32[384]; of a prediction f32[2, 3, 8, 8] it is f32[2, 3, 8, 8]");
    b = begin(&x);
    quern_output(b, quern_cross_entropy(b, x, quern_convert(b, x, QUERN_I64)), "y");
    expect_mistake(b, "of a prediction f32[2, 3, 8, 8] it is i64[2, 3, 8], or a share of each class");
    b = begin(&x);
    quern_output(b, quern_cross_entropy(b, quern_mean(b, x), x), "y");
    expect_mistake(b, "quern_cross_entropy: the prediction is f32[]; it must be of floats [rows.., classes]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_by_calls_are_the_named_ones),
        cmocka_unit_test(losses_are_their_formulas),
        cmocka_unit_test(losses_report_mistakes),
        cmocka_unit_test(convolves_and_pools),
        cmocka_unit_test(convolutions_learn_alike_with_any_batch),
        cmocka_unit_test(reports_mistakes),
        cmocka_unit_test(needs_a_loss),
        cmocka_unit_test(trains_by_epochs),
        cmocka_unit_test(says_its_loss_itself),
        cmocka_unit_test(finds_rows_along_other_axes),
        cmocka_unit_test(reads_arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
