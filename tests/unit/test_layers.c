/* quern.h: layers, against what they say by hand; in the interpreter and compiled, and learning the same in both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })
enum { MOST = 4096, N = 3, T = 5, F = 4, H = 6, ROWS = 7 };

static const char *const targets[] = { "interp", "cpu" };

static quern_trainer *train(quern_builder *b, const char *target, double learning_rate)
{
    const quern_train_options options = {
        .size = sizeof options, .loss = "mse", .optimizer = "sgd", .learning_rate = learning_rate, .seed = 5
    };
    const quern_compile_options compile = { .size = sizeof compile, .target = target, .cache = "" };
    quern_trainer *trainer;
    ok(quern_train(b, &options, &compile, &trainer));
    return trainer;
}

static const float *state_of(quern_trainer *t, const char *name)
{
    const quern_entry_info *entry = quern_trainer_entry(t);
    quern_array array;
    for (int i = 0; i < entry->n_buffers; i++)
        if (strcmp(entry->buffers[i].name, name) == 0) {
            ok(quern_session_get(quern_trainer_session(t), i, &array));
            return array.data;
        }
    fail_msg("there is no %s", name);
    return NULL;
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* y[out] = weight [out, in] x + bias; `transposed`: of weight [in, out] */
static void affine(const float *weight, const float *bias, int transposed, int in, int out, const double *x,
                   double *y)
{
    for (int o = 0; o < out; o++) {
        y[o] = (double)bias[o];
        for (int i = 0; i < in; i++)
            y[o] += (double)weight[transposed ? i * out + o : o * in + i] * x[i];
    }
}

/* ---- what each layer gives, in double precision ---- */

static void by_hand_embedding(quern_trainer *t, const void *x, double *y)
{
    const float *table = state_of(t, "l.weight");
    for (int i = 0; i < N * T * F; i++)
        y[i] = (double)table[((const uint8_t *)x)[i / F] * F + i % F];
}

static void by_hand_layer_norm(quern_trainer *t, const void *x, double *y)
{
    (void)t;
    for (int row = 0; row < N * T; row++) {
        const float *in = (const float *)x + row * F;
        double mean = 0, variance = 0;
        for (int i = 0; i < F; i++)
            mean += (double)in[i] / F;
        for (int i = 0; i < F; i++)
            variance += ((double)in[i] - mean) * ((double)in[i] - mean) / F;
        for (int i = 0; i < F; i++)
            y[row * F + i] = ((double)in[i] - mean) / sqrt(variance + 1e-5);
    }
}

/* Features are channels, in two groups. */
static void by_hand_group_norm(quern_trainer *t, const void *x, double *y)
{
    (void)t;
    enum { EACH = F / 2 };
    for (int group = 0; group < 2 * N; group++) {
        const int at = group / 2 * T * F + group % 2 * EACH;
        const float *in = (const float *)x + at;
        double mean = 0, variance = 0;
        for (int i = 0; i < T * EACH; i++)
            mean += (double)in[i / EACH * F + i % EACH] / (T * EACH);
        for (int i = 0; i < T * EACH; i++)
            variance += pow((double)in[i / EACH * F + i % EACH] - mean, 2) / (T * EACH);
        for (int i = 0; i < T * EACH; i++) {
            const int place = i / EACH * F + i % EACH;
            y[at + place] = ((double)in[place] - mean) / sqrt(variance + 1e-5);
        }
    }
}

static void by_hand_batch_norm(quern_trainer *t, const void *x, double *y)
{
    (void)t;
    for (int i = 0; i < N * T * F; i++) /* as the running statistics are at first */
        y[i] = (double)((const float *)x)[i] / sqrt(1 + 1e-5);
}

static void by_hand_lstm(quern_trainer *t, const void *x, double *y)
{
    for (int n = 0; n < N; n++) {
        double h[H] = { 0 }, c[H] = { 0 };
        for (int step = 0; step < T; step++) {
            double in[F], a[4 * H], r[4 * H];
            for (int i = 0; i < F; i++)
                in[i] = (double)((const float *)x)[(n * T + step) * F + i];
            affine(state_of(t, "l.weight_ih"), state_of(t, "l.bias_ih"), 0, F, 4 * H, in, a);
            affine(state_of(t, "l.weight_hh"), state_of(t, "l.bias_hh"), 0, H, 4 * H, h, r);
            for (int i = 0; i < H; i++) {
                c[i] = sigmoid(a[H + i] + r[H + i]) * c[i] +
                       sigmoid(a[i] + r[i]) * tanh(a[2 * H + i] + r[2 * H + i]);
                h[i] = sigmoid(a[3 * H + i] + r[3 * H + i]) * tanh(c[i]);
                y[(n * T + step) * H + i] = h[i];
            }
        }
    }
}

static void by_hand_gru(quern_trainer *t, const void *x, double *y)
{
    for (int n = 0; n < N; n++) {
        double h[H] = { 0 };
        for (int step = 0; step < T; step++) {
            double in[F], a[3 * H], r[3 * H];
            for (int i = 0; i < F; i++)
                in[i] = (double)((const float *)x)[(n * T + step) * F + i];
            affine(state_of(t, "l.weight_ih"), state_of(t, "l.bias_ih"), 0, F, 3 * H, in, a);
            affine(state_of(t, "l.weight_hh"), state_of(t, "l.bias_hh"), 0, H, 3 * H, h, r);
            for (int i = 0; i < H; i++) {
                const double z = sigmoid(a[H + i] + r[H + i]);
                h[i] = (1 - z) * tanh(a[2 * H + i] + sigmoid(a[i] + r[i]) * r[2 * H + i]) + z * h[i];
                y[(n * T + step) * H + i] = h[i];
            }
        }
    }
}

/* Two heads; queries of x [T, F], keys and values of m [length, width]. */
static void attend(quern_trainer *t, int causal, const float *x, const float *m, int length, int width,
                   double *y)
{
    enum { HEADS = 2, D = F / HEADS, LONGEST = 8 };
    double q[T][F], k[LONGEST][F], v[LONGEST][F], in[F], joined[F];
    for (int i = 0; i < T; i++) {
        for (int j = 0; j < F; j++)
            in[j] = (double)x[i * F + j];
        affine(state_of(t, "l.q.weight"), state_of(t, "l.q.bias"), 1, F, F, in, q[i]);
    }
    for (int i = 0; i < length; i++) {
        for (int j = 0; j < width; j++)
            in[j] = (double)m[i * width + j];
        affine(state_of(t, "l.k.weight"), state_of(t, "l.k.bias"), 1, width, F, in, k[i]);
        affine(state_of(t, "l.v.weight"), state_of(t, "l.v.bias"), 1, width, F, in, v[i]);
    }
    for (int i = 0; i < T; i++) {
        memset(joined, 0, sizeof joined);
        for (int head = 0; head < HEADS; head++) {
            double sum = 0, share[LONGEST];
            for (int j = 0; j < length; j++) {
                double score = 0;
                for (int d = head * D; d < (head + 1) * D; d++)
                    score += q[i][d] * k[j][d] / sqrt(D);
                sum += share[j] = causal && j > i + length - T ? 0 : exp(score);
            }
            for (int j = 0; j < length; j++)
                for (int d = head * D; d < (head + 1) * D; d++)
                    joined[d] += share[j] / sum * v[j][d];
        }
        affine(state_of(t, "l.o.weight"), state_of(t, "l.o.bias"), 1, F, F, joined, y + i * F);
    }
}

static void by_hand_attention(quern_trainer *t, const void *x, double *y)
{
    for (int n = 0; n < N; n++)
        attend(t, 1, (const float *)x + n * T * F, (const float *)x + n * T * F, T, F, y + n * T * F);
}

static void by_hand_activations(quern_trainer *t, const void *x, double *y)
{
    (void)t;
    for (int i = 0; i < N * T * F; i++) {
        const double v = (double)((const float *)x)[i];
        y[i] = v / 2 * (1 + erf(v / sqrt(2))) + sigmoid(v);
    }
}

static quern_value *embedding(quern_builder *b, quern_value *x)
{
    return quern_embedding(b, x, ROWS, F, "l");
}

static quern_value *layer_norm(quern_builder *b, quern_value *x)
{
    return quern_layer_norm(b, x, "l");
}

static quern_value *group_norm(quern_builder *b, quern_value *x)
{
    static const char swapped[] = "perm = [0, 2, 1]";
    return QUERN_OP(b, "transpose", swapped,
                    quern_group_norm(b, QUERN_OP(b, "transpose", swapped, x), 2, "l"));
}

static quern_value *batch_norm(quern_builder *b, quern_value *x)
{
    return quern_batch_norm(b, x, "l");
}

static quern_value *lstm(quern_builder *b, quern_value *x)
{
    return quern_lstm(b, x, H, "l");
}

static quern_value *gru(quern_builder *b, quern_value *x)
{
    return quern_gru(b, x, H, "l");
}

/* The recurrences once more, each a loop of the caller's over its cell; one step doubled and halved by a value from outside. */
static void lstm_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                      quern_value **step)
{
    quern_value *x = quern_div(b, quern_mul(b, slices[0], user), user);
    step[0] = carried[0] = quern_lstm_cell(b, x, carried[0], &carried[1], "l");
}

static void gru_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                     quern_value **step)
{
    quern_value *x = quern_div(b, quern_mul(b, slices[0], user), user);
    step[0] = carried[0] = quern_gru_cell(b, x, carried[0], "l");
}

static quern_value *by_steps(quern_builder *b, quern_value *x, int n_carried, quern_scan_fn body)
{
    quern_value *two = quern_scalar(b, QUERN_F32, 2), *zero = quern_min(b, two, quern_sub(b, two, two));
    zero = quern_broadcast(b, zero, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(H)));
    x = quern_max(b, x, quern_scalar(b, QUERN_F32, -100));
    quern_value *carried[] = { zero, zero }, *h;
    x = QUERN_OP(b, "transpose", "perm = [1, 0, 2]", x);
    quern_scan(b, n_carried, carried, 1, &x, 1, &h, body, two);
    /* the last state, which is also the last slice of all, in its place */
    quern_value *last = quern_reshape(b, carried[0], QUERN_SHAPE(QUERN_N(1), QUERN_DIM("n"), QUERN_N(H)));
    h = QUERN_OP(b, "concatenate", "axis = 0", quern_slice(b, h, 0, 0, -1), last);
    return QUERN_OP(b, "transpose", "perm = [1, 0, 2]", h);
}

static quern_value *lstm_by_steps(quern_builder *b, quern_value *x)
{
    return by_steps(b, x, 2, lstm_body);
}

static quern_value *gru_by_steps(quern_builder *b, quern_value *x)
{
    return by_steps(b, x, 1, gru_body);
}

static quern_value *attention(quern_builder *b, quern_value *x)
{
    return quern_attention(b, x, NULL, 2, 1, "l");
}

static quern_value *activations(quern_builder *b, quern_value *x)
{
    const float one = 1; /* something to learn */
    quern_value *y = quern_add(b, quern_gelu(b, x), quern_sigmoid(b, x));
    return quern_mul(b, y, quern_param(b, "w", QUERN_F32, 1, DIMS(1), &one));
}

static const struct {
    const char *name;
    quern_value *(*build)(quern_builder *b, quern_value *x);
    void (*by_hand)(quern_trainer *t, const void *x, double *y);
    int dtype, rank, symbols, width; /* of x: f32[N, T, F], or u8[N, T]; how many dims are symbols; of y */
} cases[] = {
    { "embedding", embedding, by_hand_embedding, QUERN_U8, 2, 2, F },
    { "layer_norm", layer_norm, by_hand_layer_norm, QUERN_F32, 3, 2, F },
    { "group_norm", group_norm, by_hand_group_norm, QUERN_F32, 3, 2, F },
    { "batch_norm", batch_norm, by_hand_batch_norm, QUERN_F32, 3, 1, F },
    { "lstm", lstm, by_hand_lstm, QUERN_F32, 3, 2, H },
    { "gru", gru, by_hand_gru, QUERN_F32, 3, 2, H },
    { "lstm by steps", lstm_by_steps, by_hand_lstm, QUERN_F32, 3, 2, H },
    { "gru by steps", gru_by_steps, by_hand_gru, QUERN_F32, 3, 2, H },
    { "attention", attention, by_hand_attention, QUERN_F32, 3, 2, F },
    { "activations", activations, by_hand_activations, QUERN_F32, 3, 2, F },
};

static void gives_what_it_says(void **state)
{
    (void)state;
    static float floats[MOST], zeros[MOST];
    static uint8_t bytes[MOST];
    static double wanted[MOST];
    enum { STEPS = 4 };
    for (int i = 0; i < MOST; i++) {
        floats[i] = (float)sin(i * 0.7) * 1.5f;
        bytes[i] = (uint8_t)(i * 5 % ROWS);
    }
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double losses[2][STEPS];
        const int count = N * T * cases[c].width;
        void *data = cases[c].dtype == QUERN_U8 ? (void *)bytes : floats;
        const quern_array x = { cases[c].dtype, cases[c].rank, DIMS(N, T, F), data };
        const quern_array zero = { QUERN_F32, 3, DIMS(N, T, cases[c].width), zeros };
        for (int k = 0; k < 2; k++) {
            quern_builder *b = quern_builder_new("f");
            quern_builder_seed(b, 11);
            const quern_dim dims[] = { QUERN_DIM("n"), cases[c].symbols == 2 ? QUERN_DIM("t") : QUERN_N(T),
                                       QUERN_N(F) };
            quern_output(b, cases[c].build(b, quern_input(b, "x", cases[c].dtype, cases[c].rank, dims)), "y");
            quern_trainer *t = train(b, targets[k], 0.1);
            quern_array y;
            ok(quern_trainer_predict(t, &x, &y));
            cases[c].by_hand(t, data, wanted);
            assert_int_equal(y.dims[0] * y.dims[1] * y.dims[2], count);
            for (int i = 0; i < count; i++)
                if (!(fabs((double)((float *)y.data)[i] - wanted[i]) < 1e-5))
                    fail_msg("%s on %s: element %d is %g, not %g", cases[c].name, targets[k], i,
                             (double)((float *)y.data)[i], wanted[i]);
            for (int i = 0; i < STEPS; i++)
                ok(quern_trainer_step(t, &x, &zero, &losses[k][i]));
            quern_trainer_free(t);
        }
        for (int i = 0; i < STEPS; i++) {
            if (!(fabs(losses[0][i] / losses[1][i] - 1) < 1e-5) ||
                (i > 0 && losses[0][i] >= losses[0][i - 1]))
                fail_msg("%s: loss %d is %g, compiled %g", cases[c].name, i, losses[0][i], losses[1][i]);
        }
    }
}

/* Deviation of what an embedding starts with. */
static void draws_normal_numbers(void **state)
{
    (void)state;
    enum { COUNT = 10000 };
    quern_builder *b = quern_builder_new("f");
    quern_value *x = quern_input(b, "x", QUERN_I64, QUERN_SHAPE(QUERN_DIM("n")));
    quern_output(b, quern_embedding(b, x, COUNT / 10, 10, "l"), "y");
    quern_trainer *t = train(b, "interp", 0.1);
    const float *table = state_of(t, "l.weight");
    double mean = 0, square = 0, fourth = 0;
    for (int i = 0; i < COUNT; i++) {
        const double v = (double)table[i];
        mean += v / COUNT;
        square += v * v / COUNT;
        fourth += v * v * v * v / COUNT;
    }
    assert_float_equal(mean, 0, 4 / sqrt(COUNT));
    assert_float_equal(square, 1, 4 * sqrt(2.0 / COUNT));
    assert_float_equal(fourth, 3, 4 * sqrt(96.0 / COUNT));
    quern_array y; /* a row that is not there */
    assert_int_not_equal(
        quern_trainer_predict(t, &(quern_array){ QUERN_I64, 1, DIMS(1), &(int64_t){ COUNT } }, &y), QUERN_OK);
    quern_trainer_free(t);
}

static void batch_norm_keeps_statistics(void **state)
{
    (void)state;
    const float x[4][2] = { { 1, 5 }, { 2, 5 }, { 3, 9 }, { 6, 9 } }, zeros[4][2] = { { 0 } };
    const quern_array in = { QUERN_F32, 2, DIMS(4, 2), (void *)x },
                      zero = { QUERN_F32, 2, DIMS(4, 2), (void *)zeros };
    for (int k = 0; k < 2; k++) {
        quern_builder *b = quern_builder_new("f");
        quern_value *value = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(2)));
        quern_output(b, quern_batch_norm(b, value, "l"), "y");
        quern_trainer *t = train(b, targets[k], 0.1);
        double loss;
        ok(quern_trainer_step(t, &in, &zero, &loss));
        assert_float_equal(loss, 1, 1e-4); /* the batch's own mean and variance */
        const float *mean = state_of(t, "l.running_mean"), *variance = state_of(t, "l.running_var");
        assert_float_equal(mean[0], 0.1 * 3, 1e-6);
        assert_float_equal(mean[1], 0.1 * 7, 1e-6);
        assert_float_equal(variance[0], 0.9 + 0.1 * 3.5, 1e-6);
        assert_float_equal(variance[1], 0.9 + 0.1 * 4, 1e-6);
        quern_array y;
        ok(quern_trainer_predict(t, &in, &y)); /* the running ones; weights are 0.8 by now */
        assert_float_equal(
            ((float *)y.data)[0],
            (1 - mean[0]) / sqrt((double)variance[0] + 1e-5) * (double)state_of(t, "l.weight")[0], 1e-5);
        quern_trainer_free(t);
    }
}

static void dropout_keeps_the_mean(void **state)
{
    (void)state;
    enum { COUNT = 4000 };
    static float ones[COUNT], zeros[COUNT];
    static const double ratio = 0.3;
    double first[2];
    for (int i = 0; i < COUNT; i++)
        ones[i] = 1;
    const quern_array x = { QUERN_F32, 1, DIMS(COUNT), ones }, zero = { QUERN_F32, 1, DIMS(COUNT), zeros };
    for (int k = 0; k < 2; k++) {
        quern_builder *b = quern_builder_new("f");
        const float one = 1;
        quern_value *in = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n")));
        quern_value *w = quern_param(b, "w", QUERN_F32, 1, DIMS(1), &one);
        quern_output(b, quern_dropout(b, quern_mul(b, in, w), ratio), "y");
        quern_trainer *t = train(b, targets[k], 1e-9);
        double loss, again;
        ok(quern_trainer_eval(t, &x, &zero, &loss, NULL));
        assert_float_equal(loss, 1, 1e-6); /* nothing is left out */
        ok(quern_trainer_step(t, &x, &zero, &loss));
        const double kept =
            loss * (1 - ratio) * (1 - ratio); /* the share of elements that are 1 / (1 - ratio) */
        assert_float_equal(kept, 1 - ratio, 4 * sqrt(ratio * (1 - ratio) / COUNT));
        ok(quern_trainer_step(t, &x, &zero, &again));
        assert_true(loss != again); /* another mask */
        first[k] = loss;
        quern_trainer_free(t);
    }
    assert_float_equal(first[0], first[1], 1e-6); /* the same on each backend */
}

/* A model of several inputs: from x to another sequence, of another length and width; in order and shuffled. */
static void attends_to_a_memory(void **state)
{
    (void)state;
    enum { KEYS = 7, WIDTH = 3 };
    float x[N * T * F], memory[N * KEYS * WIDTH], zeros[N * T * F] = { 0 };
    double y[T * F], losses[2][N];
    for (int i = 0; i < N * T * F; i++)
        x[i] = (float)cos(i * 0.9);
    for (int i = 0; i < N * KEYS * WIDTH; i++)
        memory[i] = (float)sin(i * 1.3);
    const quern_array in[2] = { { QUERN_F32, 3, DIMS(N, T, F), x },
                                { QUERN_F32, 3, DIMS(N, KEYS, WIDTH), memory } };
    const quern_array zero = { QUERN_F32, 3, DIMS(N, T, F), zeros };
    for (int k = 0; k < 2; k++) {
        quern_builder *b = quern_builder_new("f");
        quern_dim batch = QUERN_DIM("batch");
        quern_value *query =
            quern_input(b, "x", QUERN_F32, QUERN_SHAPE(batch, QUERN_DIM("length"), QUERN_N(F)));
        quern_value *to =
            quern_input(b, "m", QUERN_F32, QUERN_SHAPE(batch, QUERN_DIM("keys"), QUERN_N(WIDTH)));
        quern_output(b, quern_attention(b, query, to, 2, k, "l"), "y");
        quern_trainer *t = train(b, targets[k], 1e-3);
        quern_array found;
        ok(quern_trainer_predict(t, in, &found));
        for (int n = 0; n < N; n++) {
            attend(t, k, x + n * T * F, memory + n * KEYS * WIDTH, KEYS, WIDTH, y);
            for (int i = 0; i < T * F; i++)
                assert_float_equal(((float *)found.data)[n * T * F + i], y[i], 1e-5);
        }
        ok(quern_trainer_epoch(t, in, &zero, 1, 0, losses[0]));
        ok(quern_trainer_epoch(t, in, &zero, 1, 9, losses[1]));
        double sum[2] = { 0 };
        for (int i = 0; i < N; i++) {
            sum[0] += losses[0][i];
            sum[1] += losses[1][i];
        }
        assert_true(sum[1] < sum[0]);
        const quern_array bad[2] = { in[0], { QUERN_F32, 3, DIMS(N - 1, KEYS, WIDTH), memory } };
        assert_int_equal(quern_trainer_epoch(t, bad, &zero, 1, 0, NULL), QUERN_ERROR_ARGUMENT);
        assert_string_equal(quern_last_error(), "quern_trainer_epoch: x[1] has 2 samples, and target 3");
        quern_trainer_free(t);
    }
}

/* The bare form: a mask of bools, fewer groups than heads. */
static void attends_as_the_mask_says(void **state)
{
    (void)state;
    quern_builder *b = quern_builder_new("f");
    quern_value *q =
        quern_input(b, "q", QUERN_F32, QUERN_SHAPE(QUERN_N(1), QUERN_N(2), QUERN_N(1), QUERN_N(1)));
    quern_value *k =
        quern_input(b, "k", QUERN_F32, QUERN_SHAPE(QUERN_N(1), QUERN_N(1), QUERN_N(3), QUERN_N(1)));
    const uint8_t seen[3] = { 1, 0, 1 };
    quern_value *mask = quern_constant(b, QUERN_BOOL, 4, DIMS(1, 1, 1, 3), seen);
    quern_output(b, quern_dot_product_attention(b, q, k, k, mask, 0), "y");
    quern_module *module;
    quern_model *model;
    quern_session *s;
    quern_array y;
    ok(quern_builder_finish(b, &module));
    ok(quern_compile(module, NULL, &model));
    quern_module_free(module);
    ok(quern_session_new(model, NULL, &s));
    float queries[2] = { 0, 1 }, keys[3] = { 2, 50, 4 };
    ok(quern_session_bind(s, 0, &(quern_array){ QUERN_F32, 4, DIMS(1, 2, 1, 1), queries }));
    ok(quern_session_bind(s, 1, &(quern_array){ QUERN_F32, 4, DIMS(1, 1, 3, 1), keys }));
    ok(quern_session_run(s));
    ok(quern_session_get(s, 2, &y));
    assert_float_equal(((float *)y.data)[0], 3, 1e-5);
    assert_float_equal(((float *)y.data)[1], (2 + 4 * exp(2)) / (1 + exp(2)), 1e-5);
    quern_session_free(s);
    quern_model_free(model);
}

/* A loop in a loop: rows of x added up, each times the place of its matrix; and slices, found by name. */
static void inner_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                       quern_value **step)
{
    (void)step;
    carried[0] = quern_add(b, carried[0], quern_mul(b, slices[0], user));
}

static void outer_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                       quern_value **step)
{
    step[0] = user; /* the first value, of nothing in here */
    quern_scan(b, 1, &step[0], 1, slices, 0, NULL, inner_body, carried[0]);
    carried[0] = quern_add(b, carried[0], quern_constant(b, QUERN_F32, 0, NULL, &(float){ 1 }));
}

/* What is behind a row, added up: as a scan from the last row to the first; and an output with an input's name. */
static void running_sum(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                        quern_value **step)
{
    (void)user;
    step[0] = carried[0];
    carried[0] = quern_add(b, carried[0], slices[0]);
}

static void loops_go_backwards(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        quern_module *module;
        quern_model *model;
        quern_session *s;
        quern_array y;
        quern_builder *b = quern_builder_new("f");
        quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(2))), *behind;
        quern_value *sum = quern_constant(b, QUERN_F32, 1, DIMS(2), (float[]){ 0, 0 });
        quern_scan_reverse(b, 1, &sum, 1, &x, 1, &behind, running_sum, NULL);
        quern_output(b, behind, "x");
        quern_output(b, sum, "sum");
        ok(quern_builder_finish(b, &module));
        const quern_compile_options compile = { .size = sizeof compile, .target = targets[k], .cache = "" };
        ok(quern_compile(module, &compile, &model));
        quern_module_free(module);
        ok(quern_session_new(model, NULL, &s));
        assert_int_equal(quern_session_find(s, "x"), quern_session_find_role(s, QUERN_INPUT, "x"));
        assert_int_equal(quern_session_find_role(s, QUERN_STATE, "x"), -1);
        assert_int_equal(quern_session_find_role(s, QUERN_INPUT, "sum"), -1);
        float data[3][2] = { { 1, 2 }, { 3, 4 }, { 5, 6 } };
        ok(quern_session_bind(s, quern_session_find(s, "x"),
                              &(quern_array){ QUERN_F32, 2, DIMS(3, 2), data }));
        ok(quern_session_run(s));
        ok(quern_session_get(s, quern_session_find_role(s, QUERN_OUTPUT, "x"), &y));
        assert_memory_equal(y.data, ((float[]){ 8, 10, 5, 6, 0, 0 }), 6 * sizeof(float));
        ok(quern_session_get(s, quern_session_find(s, "sum"), &y));
        assert_memory_equal(y.data, ((float[]){ 9, 12 }), 2 * sizeof(float));
        quern_session_free(s);
        quern_model_free(model);
    }
}

static void loops_nest(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        quern_module *module;
        quern_model *model;
        quern_session *s;
        quern_array y, part;
        quern_builder *b = quern_builder_new("f");
        quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(2), QUERN_DIM("n"), QUERN_N(2)));
        quern_value *one = quern_constant(b, QUERN_F32, 0, NULL, &(float){ 1 });
        quern_value *zero = quern_constant(b, QUERN_F32, 1, DIMS(2), (float[]){ 0, 0 }), *sums;
        quern_scan(b, 1, &one, 1, &x, 1, &sums, outer_body, zero);
        quern_output(b, sums, "sums");
        quern_output(b, one, "count");
        quern_output(b, quern_slice(b, quern_slice(b, x, 1, -2, INT64_MAX), -1, 1, 2), "part");
        ok(quern_builder_finish(b, &module));
        const quern_compile_options compile = { .size = sizeof compile, .target = targets[k], .cache = "" };
        ok(quern_compile(module, &compile, &model));
        quern_module_free(module);
        ok(quern_session_new(model, NULL, &s));
        float data[2][3][2] = { { { 1, 2 }, { 3, 4 }, { 5, 6 } }, { { 1, 0 }, { 0, 1 }, { 1, 1 } } };
        ok(quern_session_bind(s, quern_session_find(s, "x"),
                              &(quern_array){ QUERN_F32, 3, DIMS(2, 3, 2), data }));
        ok(quern_session_run(s));
        ok(quern_session_get(s, quern_session_find(s, "sums"), &y));
        assert_memory_equal(y.data, ((float[]){ 9, 12, 4, 4 }), 4 * sizeof(float));
        ok(quern_session_get(s, quern_session_find(s, "count"), &y));
        assert_float_equal(*(float *)y.data, 3, 0);
        ok(quern_session_get(s, quern_session_find(s, "part"), &part));
        assert_memory_equal(part.data, ((float[]){ 4, 6, 1, 1 }), 4 * sizeof(float));
        assert_int_equal(quern_session_find(s, "none"), -1);
        assert_int_equal(quern_session_get(s, quern_session_find(s, "none"), &y), QUERN_ERROR_ARGUMENT);
        quern_session_free(s);
        quern_model_free(model);
    }
}

static void draws_parameters(void **state)
{
    (void)state;
    enum { MANY = 4000 };
    quern_builder *b = quern_builder_new("f");
    quern_builder_seed(b, 3);
    quern_value *normal = quern_param_normal(b, "normal", QUERN_F32, 1, DIMS(MANY), 0.1);
    quern_value *uniform = quern_param_uniform(b, "uniform", QUERN_F32, 1, DIMS(MANY), 0.5);
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(1)));
    quern_output(b, quern_mul(b, x, quern_add(b, normal, uniform)), "y");
    quern_trainer *t = train(b, "interp", 0.1);
    const float *v = state_of(t, "normal"), *u = state_of(t, "uniform");
    double squares[2] = { 0 }, most = 0;
    for (int i = 0; i < MANY; i++) {
        squares[0] += (double)(v[i] * v[i]) / MANY;
        squares[1] += (double)(u[i] * u[i]) / MANY;
        most = fmax(most, fabs((double)u[i]));
    }
    assert_float_equal(sqrt(squares[0]), 0.1, 0.004);
    assert_float_equal(sqrt(squares[1]), 0.5 / sqrt(3), 0.01);
    assert_true(most <= 0.5 && most > 0.49);
    quern_trainer_free(t);
}

static void expect_mistake(quern_builder *b, quern_value *y, const char *message)
{
    quern_module *module;
    quern_output(b, y, "y");
    assert_int_not_equal(quern_builder_finish(b, &module), QUERN_OK);
    if (!strstr(quern_last_error(), message))
        fail_msg("\"%s\" is not in \"%s\"", message, quern_last_error());
}

static quern_builder *begin(quern_value **out_x, quern_value **out_flat)
{
    quern_builder *b = quern_builder_new("f");
    *out_x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_DIM("t"), QUERN_N(6)));
    *out_flat = quern_input(b, "flat", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_DIM("width")));
    return b;
}

static void no_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                    quern_value **step)
{
    (void)b, (void)carried, (void)slices;
    if (user)
        step[0] = user;
}

static void narrow_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                        quern_value **step)
{
    (void)user, (void)slices;
    step[0] = carried[0];
    carried[0] = quern_mean(b, carried[0]);
}

static void stateful_body(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                          quern_value **step)
{
    quern_set_state(b, user, carried[0]);
    step[0] = slices[0];
}

static quern_value *loop(quern_builder *b, quern_value *first, quern_value *over, quern_scan_fn body,
                         void *user)
{
    quern_value *stacked;
    quern_scan(b, 1, &first, 1, &over, 1, &stacked, body, user);
    return stacked;
}

static void reports_mistakes(void **state)
{
    (void)state;
    quern_value *x, *flat;
    quern_builder *b = begin(&x, &flat);
    expect_mistake(b, quern_embedding(b, x, 3, 4, "e"),
                   "quern_embedding: the indices are f32[n, t, 6]; they must be");
    b = begin(&x, &flat);
    expect_mistake(b, quern_embedding(b, quern_convert(b, x, QUERN_I64), -3, 4, "e"),
                   "quern_embedding: -3 rows of 4: both must be at least 1");
    b = begin(&x, &flat);
    expect_mistake(b, quern_layer_norm(b, flat, "l"),
                   "quern_layer_norm: x is f32[n, width]; it must be of floats");
    b = begin(&x, &flat);
    expect_mistake(b, quern_layer_norm(b, quern_layer_norm(b, x, "l"), "l"),
                   "quern_layer_norm: there is an input 'l.weight'");
    b = begin(&x, &flat);
    expect_mistake(b, quern_group_norm(b, x, 2, "l"),
                   "quern_group_norm: x is f32[n, t, 6]; it must be of floats [N, C, ...]");
    b = begin(&x, &flat);
    expect_mistake(b, quern_group_norm(b, QUERN_OP(b, "transpose", "perm = [0, 2, 1]", x), 4, "l"),
                   "quern_group_norm: 6 channels do not divide into 4 groups");
    b = begin(&x, &flat);
    expect_mistake(b, quern_batch_norm(b, x, "l"),
                   "quern_batch_norm: x is f32[n, t, 6]; it must be of floats [N, C, ...]");
    b = begin(&x, &flat);
    expect_mistake(b, quern_batch_norm(b, x, ""), "quern_batch_norm: it needs a name");
    b = begin(&x, &flat);
    expect_mistake(b, quern_dropout(b, x, 1),
                   "quern_dropout: the ratio is 1; it must be at least 0 and below 1");
    b = begin(&x, &flat);
    expect_mistake(b, quern_lstm(b, quern_mean(b, x), 4, "l"), "quern_lstm: x is f32[]");
    b = begin(&x, &flat);
    expect_mistake(b, quern_lstm(b, x, 0, "l"), "quern_lstm: the hidden size must be 1 to 2147483647");
    b = begin(&x, &flat);
    expect_mistake(b, quern_gru(b, x, 4, NULL), "quern_gru: it needs a name");
    b = begin(&x, &flat);
    expect_mistake(b, quern_attention(b, x, NULL, 4, 0, "a"),
                   "quern_attention: 6 features cannot be shared by 4 heads");
    b = begin(&x, &flat);
    expect_mistake(b, quern_attention(b, x, flat, 2, 0, "a"),
                   "quern_attention: memory is f32[n, width]; it must be");
    b = begin(&x, &flat);
    expect_mistake(b, quern_dot_product_attention(b, x, x, x, NULL, 0),
                   "quern_dot_product_attention: q is f32[n, t, 6]");
    b = begin(&x, &flat);
    expect_mistake(b, quern_gelu(b, quern_lstm(b, NULL, 4, "l")), "quern_lstm: operand 0 is NULL");
    b = begin(&x, &flat);
    expect_mistake(b, quern_lstm_cell(b, x, x, &x, "l"),
                   "quern_lstm_cell: x is f32[n, t, 6] and h f32[n, t, 6]");
    b = begin(&x, &flat);
    expect_mistake(b, quern_gru_cell(b, quern_slice(b, x, 3, 0, 1), flat, "l"),
                   "quern_slice: there is no axis 3");
    b = begin(&x, &flat);
    expect_mistake(b, quern_slice(b, x, -1, 4, 8), "slice");
    b = begin(&x, &flat);
    expect_mistake(b, quern_slice(b, x, 0, 0, INT64_MIN), "quern_slice: -9223372036854775808 is no place");
    b = begin(&x, &flat);
    expect_mistake(b, quern_param_normal(b, "w", QUERN_I64, 1, DIMS(2), 1),
                   "quern_param_normal: 'w' must be of floats");
    b = begin(&x, &flat);
    expect_mistake(b, quern_param_uniform(b, "w", QUERN_F32, 1, DIMS(2), -1),
                   "quern_param_uniform: 'w' cannot be drawn with -1");
    b = begin(&x, &flat);
    expect_mistake(b, loop(b, flat, quern_mean(b, x), no_body, x), "quern_scan: scanned value 0 is f32[]");
    b = begin(&x, &flat);
    expect_mistake(b, loop(b, flat, x, no_body, NULL), "quern_scan: operand 1 is NULL");
    b = begin(&x, &flat);
    expect_mistake(b, loop(b, flat, x, narrow_body, NULL),
                   "quern_scan: carried value 0 is f32[n, width] at first, and f32[] after a step");
    b = begin(&x, &flat);
    quern_value *kept = quern_state(b, "kept", QUERN_F32, 0, NULL, NULL);
    expect_mistake(b, loop(b, kept, x, stateful_body, kept),
                   "quern_set_state: states are set outside of loops");
    b = begin(&x, &flat);
    expect_mistake(b, QUERN_OP(b, "scan", "", x), "quern_scan makes it");
    b = begin(&x, &flat);
    expect_mistake(b, quern_scalar(b, 99, 1), "quern_scalar: 99 is no data type");
    b = begin(&x, &flat);
    expect_mistake(b, quern_broadcast(b, x, QUERN_SHAPE(QUERN_N(6))), "quern_broadcast");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_it_says),
        cmocka_unit_test(draws_normal_numbers),
        cmocka_unit_test(batch_norm_keeps_statistics),
        cmocka_unit_test(dropout_keeps_the_mean),
        cmocka_unit_test(attends_to_a_memory),
        cmocka_unit_test(attends_as_the_mask_says),
        cmocka_unit_test(loops_nest),
        cmocka_unit_test(loops_go_backwards),
        cmocka_unit_test(draws_parameters),
        cmocka_unit_test(reports_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
