/* What the bodies of the composites compute, against plain loops in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

/* A graph @f of this text; the result of its first output. */
static const qn_array *run(const char *inputs, const char *result, const char *body, const qn_array *arrays)
{
    char text[2048];
    snprintf(text, sizeof text, "graph @f(%s) -> %s {\n%s\nreturn %%r\n}", inputs, result, body);
    const qn_array *found = eval_text(text, arrays);
    if (!found)
        fail_msg("%s: %s", body, eval_error());
    return found;
}

static void softmax_subtracts_the_maximum(void **state)
{
    (void)state;
    qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1000, 1001, 999, -INFINITY, 0, -INFINITY));
    const double e = exp(1), sum = 1 + e + 1 / e;
    qn_array expected = floats(QUERN_F32, SHAPE(2, 3), V(1 / sum, e / sum, 1 / e / sum, 0, 1, 0));
    expect_near("softmax", run("%x: f32[2, 3]", "f32[2, 3]", "%r = softmax %x {axis = 1} : f32[2, 3]", &x),
                &expected, 1e-6);
    qn_array logs = floats(QUERN_F32, SHAPE(2), V(-1000, 1000));
    qn_array log_expected = floats(QUERN_F32, SHAPE(2), V(-2000, 0));
    expect_near("log_softmax", run("%x: f32[2]", "f32[2]", "%r = log_softmax %x {axis = 0} : f32[2]", &logs),
                &log_expected, 1e-6);
}

static void softmax_of_f16_sums_in_f32(void **state)
{
    (void)state;
    enum { N = 4096 };
    static double values[N];
    qn_array x = floats(QUERN_F16, SHAPE(N), values); /* in f16 a sum of ones stops at 2048 */
    const qn_array *y = run("%x: f16[4096]", "f16[4096]", "%r = softmax %x {axis = 0} : f16[4096]", &x);
    assert_float_equal(at(y, 17), 1.0 / N, 1e-7);
}

static void cross_entropy_is_the_negative_log_of_the_label(void **state)
{
    (void)state;
    qn_array in[] = { floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 1e4, -1e4, 0)),
                      ints(QUERN_I64, SHAPE(2), I(0, 1)) };
    qn_array expected = floats(QUERN_F32, SHAPE(2), V(log(exp(1) + exp(2) + exp(3)) - 1, 2e4));
    expect_near("cross_entropy",
                run("%x: f32[2, 3], %y: i64[2]", "f32[2]", "%r = cross_entropy %x, %y : f32[2]", in),
                &expected, 1e-6);
}

/* rows of n; scale and bias per column */
static qn_array norm_by_hand(const qn_array *x, int rows, int n, const qn_array *scale, const qn_array *bias,
                             bool center, double epsilon)
{
    double values[64];
    for (int r = 0; r < rows; r++) {
        double mean = 0, square = 0;
        for (int i = 0; i < n && center; i++)
            mean += at(x, r * n + i) / n;
        for (int i = 0; i < n; i++)
            square += pow(at(x, r * n + i) - mean, 2) / n;
        for (int i = 0; i < n; i++)
            values[r * n + i] =
                (at(x, r * n + i) - mean) / sqrt(square + epsilon) * at(scale, i) + (bias ? at(bias, i) : 0);
    }
    return floats(x->dtype, x->rank, x->dims, values);
}

static void norms_go_over_the_axes_from_axis_on(void **state)
{
    (void)state;
    qn_array in[] = { noise(QUERN_F32, SHAPE(2, 3, 4), 1), noise(QUERN_F32, SHAPE(3, 4), 2),
                      noise(QUERN_F32, SHAPE(3, 4), 3) };
    qn_array both = norm_by_hand(&in[0], 2, 12, &in[1], &in[2], true, 0.1);
    expect_near("layer_norm",
                run("%x: f32[2, 3, 4], %s: f32[3, 4], %b: f32[3, 4]", "f32[2, 3, 4]",
                    "%r = layer_norm %x, %s, %b {axis = 1, epsilon = 0.1} : f32[2, 3, 4]", in),
                &both, 1e-5);
    in[1] = noise(QUERN_F32, SHAPE(4), 4);
    qn_array scaled = norm_by_hand(&in[0], 6, 4, &in[1], NULL, true, 1e-5);
    expect_near("layer_norm without bias",
                run("%x: f32[2, 3, 4], %s: f32[4]", "f32[2, 3, 4]",
                    "%r = layer_norm %x, %s {axis = 2, epsilon = 1e-05} : f32[2, 3, 4]", in),
                &scaled, 1e-4);
    qn_array rms = norm_by_hand(&in[0], 6, 4, &in[1], NULL, false, 0);
    expect_near("rms_norm",
                run("%x: f32[2, 3, 4], %s: f32[4]", "f32[2, 3, 4]",
                    "%r = rms_norm %x, %s {axis = 2, epsilon = 0} : f32[2, 3, 4]", in),
                &rms, 1e-5);
}

static void norms_of_f16_compute_in_f32(void **state)
{
    (void)state;
    qn_array in[] = { floats(QUERN_F16, SHAPE(2), V(1000, -1000)), full(QUERN_F16, SHAPE(2), 1) };
    qn_array expected = floats(QUERN_F16, SHAPE(2), V(1, -1)); /* a square of 1000 is no f16 */
    expect_same(
        "rms_norm of f16",
        run("%x: f16[2], %s: f16[2]", "f16[2]", "%r = rms_norm %x, %s {axis = 0, epsilon = 0} : f16[2]", in),
        &expected);
}

/* x [2, 3, 2]: for each channel c the elements (n, c, i) */
static void batch_norm_by_hand(const qn_array *in, bool training, double *y, double *mean, double *variance)
{
    for (int c = 0; c < 3; c++) {
        double m = 0, v = 0;
        for (int k = 0; k < 4; k++)
            m += at(&in[0], k / 2 * 6 + c * 2 + k % 2) / 4;
        for (int k = 0; k < 4; k++)
            v += pow(at(&in[0], k / 2 * 6 + c * 2 + k % 2) - m, 2) / 4;
        mean[c] = training ? 0.75 * at(&in[3], c) + 0.25 * m : at(&in[3], c);
        variance[c] = training ? 0.75 * at(&in[4], c) + 0.25 * v : at(&in[4], c);
        if (!training)
            m = mean[c], v = variance[c];
        for (int k = 0; k < 4; k++) {
            const int i = k / 2 * 6 + c * 2 + k % 2;
            y[i] = (at(&in[0], i) - m) / sqrt(v + 0.1) * at(&in[1], c) + at(&in[2], c);
        }
    }
}

static void batch_norm_takes_running_or_batch_statistics(void **state)
{
    (void)state;
    qn_array in[] = { noise(QUERN_F32, SHAPE(2, 3, 2), 1), noise(QUERN_F32, SHAPE(3), 2),
                      noise(QUERN_F32, SHAPE(3), 3), noise(QUERN_F32, SHAPE(3), 4),
                      floats(QUERN_F32, SHAPE(3), V(1, 2, 0.5)) };
    for (int training = 0; training < 2; training++)
        for (int result = 0; result < 3; result++) {
            double values[3][12];
            char body[256];
            batch_norm_by_hand(in, training, values[0], values[1], values[2]);
            snprintf(
                body, sizeof body,
                "%%%s, %%%s, %%%s = batch_norm %%x, %%s, %%b, %%m, %%v {epsilon = 0.1, momentum = 0.75%s} "
                ": f32[2, 3, 2], f32[3], f32[3]",
                result == 0 ? "r" : "a", result == 1 ? "r" : "c", result == 2 ? "r" : "d",
                training ? ", training = true" : "");
            qn_array expected = result == 0 ? floats(QUERN_F32, SHAPE(2, 3, 2), values[0])
                                            : floats(QUERN_F32, SHAPE(3), values[result]);
            expect_near(body,
                        run("%x: f32[2, 3, 2], %s: f32[3], %b: f32[3], %m: f32[3], %v: f32[3]",
                            result == 0 ? "f32[2, 3, 2]" : "f32[3]", body, in),
                        &expected, 1e-5);
        }
}

static void dropout_keeps_or_drops(void **state)
{
    (void)state;
    enum { N = 4096 };
    static double ones[N];
    for (int i = 0; i < N; i++)
        ones[i] = 1;
    static const char *const bodies[] = {
        "%r, %m = dropout %x, %k, %s {ratio = 0.25} : f32[4096], bool[4096]",
        "%r, %m = dropout %x, %k, %s {ratio = 0.25, training = true} : f32[4096], bool[4096]",
        "%m, %r = dropout %x, %k, %s {ratio = 0.25, training = true} : f32[4096], bool[4096]",
        "%r, %m = dropout %x, %k, %s {ratio = 1, training = true} : f32[4096], bool[4096]",
    };
    static const char *const inputs = "%x: f32[4096], %k: u64[2], %s: u64[]";
    qn_array in[] = { floats(QUERN_F32, SHAPE(N), ones),
                      ints(QUERN_U64, SHAPE(2), I(7, 1)),
                      { .dtype = QUERN_U64, .data = &(uint64_t){ 3 } } };
    const qn_array *same = run(inputs, "f32[4096]", bodies[0], in);
    const qn_array *some = run(inputs, "f32[4096]", bodies[1], in);
    const qn_array *mask = run(inputs, "bool[4096]", bodies[2], in);
    const qn_array *none = run(inputs, "f32[4096]", bodies[3], in);
    in[2].data = &(uint64_t){ 4 };
    const qn_array *next = run(inputs, "f32[4096]", bodies[1], in);
    int kept = 0, changed = 0;
    for (int i = 0; i < N; i++) {
        assert_float_equal(at(same, i), 1, 0);
        assert_float_equal(at(some, i), ((const bool *)mask->data)[i] ? (double)(1 / 0.75f) : 0, 1e-7);
        assert_float_equal(at(none, i), 0, 0);
        kept += at(some, i) != 0;
        changed += at(some, i) != at(next, i);
    }
    assert_in_range(kept, N * 72 / 100, N * 78 / 100);    /* 3/4, within 4 standard deviations */
    assert_in_range(changed, N * 34 / 100, N * 41 / 100); /* another mask: 2 * 3/4 * 1/4 */
}

static void activations(void **state)
{
    (void)state;
    const double values[] = { -6, -1, -0.0, 0.5, 3 };
    double gelu[5], tanh_form[5], silu[5];
    for (int i = 0; i < 5; i++) {
        const double x = values[i];
        gelu[i] = x / 2 * (1 + erf(x / sqrt(2)));
        tanh_form[i] = x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
        silu[i] = x / (1 + exp(-x));
    }
    qn_array x = floats(QUERN_F64, SHAPE(5), values), expected = floats(QUERN_F64, SHAPE(5), gelu);
    expect_near("gelu", run("%x: f64[5]", "f64[5]", "%r = gelu %x : f64[5]", &x), &expected, 1e-14);
    expected = floats(QUERN_F64, SHAPE(5), tanh_form);
    expect_near("gelu, tanh", run("%x: f64[5]", "f64[5]", "%r = gelu_tanh %x : f64[5]", &x), &expected,
                1e-14);
    expected = floats(QUERN_F64, SHAPE(5), silu);
    expect_near("silu", run("%x: f64[5]", "f64[5]", "%r = silu %x : f64[5]", &x), &expected, 1e-14);
    qn_array y = floats(QUERN_F32, SHAPE(3), V(-1, NAN, 2)), relu = floats(QUERN_F32, SHAPE(3), V(0, NAN, 2));
    expect_same("relu", run("%x: f32[3]", "f32[3]", "%r = relu %x : f32[3]", &y), &relu);
    y = ints(QUERN_I8, SHAPE(3), I(-128, 0, 7)), relu = ints(QUERN_I8, SHAPE(3), I(0, 0, 7));
    expect_same("relu of integers", run("%x: i8[3]", "i8[3]", "%r = relu %x : i8[3]", &y), &relu);
}

/* ---- attention ---- */

enum { B = 2, H = 4, G = 2, D = 3, E = 5, MAX_S = 4, MAX_T = 6 };

static void attention_by_hand(const qn_array *in, bool mask, int s, int t, bool causal, double scale,
                              double *out)
{
    for (int row = 0; row < B * H * s; row++) {
        const int i = row % s, h = row / s % H, b = row / s / H, g = b * G + h / (H / G);
        double score[MAX_T], max = -INFINITY, sum = 0;
        for (int k = 0; k < t; k++) {
            score[k] = 0;
            for (int d = 0; d < D; d++)
                score[k] += at(&in[0], row * D + d) * at(&in[1], (g * t + k) * D + d) * scale;
            score[k] += mask ? at(&in[3], (b * s + i) * t + k) : 0;
            if (causal && k > i + t - s)
                score[k] = -INFINITY;
            max = fmax(max, score[k]);
        }
        for (int k = 0; k < t; k++)
            sum += max == -INFINITY ? 0 : exp(score[k] - max);
        for (int e = 0; e < E; e++) {
            out[row * E + e] = 0;
            for (int k = 0; k < t && sum > 0; k++)
                out[row * E + e] += exp(score[k] - max) / sum * at(&in[2], (g * t + k) * E + e);
        }
    }
}

static void expect_attention(int s, int t, bool causal, bool mask)
{
    double out[B * H * MAX_S * E];
    char inputs[256], result[64], body[256];
    qn_array in[] = { noise(QUERN_F32, SHAPE(B, H, s, D), 1), noise(QUERN_F32, SHAPE(B, G, t, D), 2),
                      noise(QUERN_F32, SHAPE(B, G, t, E), 3), noise(QUERN_F32, SHAPE(B, 1, s, t), 4) };
    for (int k = 0; k < t; k++) /* the mask hides all of row 1 from batch 0 */
        ((float *)in[3].data)[k + (s > 1 ? t : 0)] = -INFINITY;
    snprintf(inputs, sizeof inputs,
             "%%q: f32[2, 4, %d, 3], %%k: f32[2, 2, %d, 3], %%v: f32[2, 2, %d, 5], %%m: f32[2, 1, %d, %d]", s,
             t, t, s, t);
    snprintf(result, sizeof result, "f32[2, 4, %d, 5]", s);
    snprintf(body, sizeof body, "%%r = attention %%q, %%k, %%v%s {causal = %s, scale = 0.5} : %s",
             mask ? ", %m" : "", causal ? "true" : "false", result);
    attention_by_hand(in, mask, s, t, causal, 0.5, out);
    qn_array expected = floats(QUERN_F32, SHAPE(B, H, s, E), out);
    expect_near(body, run(inputs, result, body, in), &expected, 1e-5);
}

static void attention_groups_masks_and_hides(void **state)
{
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int mask = 0; mask < 2; mask++) {
            expect_attention(4, 4, causal, mask);
            expect_attention(2, 6, causal, mask); /* as with a cache: the last query sees every key */
            expect_attention(4, 2, causal, mask); /* the first queries see none: their rows are 0 */
            expect_attention(1, 1, causal, mask);
        }
}

static void attention_that_sees_nan_gives_nan(void **state)
{
    (void)state;
    qn_array in[] = { full(QUERN_F32, SHAPE(1, 1, 1, 1), NAN), full(QUERN_F32, SHAPE(1, 1, 2, 1), 1),
                      full(QUERN_F32, SHAPE(1, 1, 2, 1), 1) };
    const qn_array *y = run("%q: f32[1, 1, 1, 1], %k: f32[1, 1, 2, 1], %v: f32[1, 1, 2, 1]",
                            "f32[1, 1, 1, 1]", "%r = attention %q, %k, %v {scale = 1} : f32[1, 1, 1, 1]", in);
    assert_true(isnan(at(y, 0)));
}

/* ---- quantization ---- */

static void quantize_rounds_half_to_even_and_saturates(void **state)
{
    (void)state;
    qn_array in[] = { floats(QUERN_F32, SHAPE(7), V(0.5, 1.5, -0.5, 1000, -1000, INFINITY, 3)),
                      floats(QUERN_F32, SCALAR, V(1)), ints(QUERN_U8, SCALAR, I(10)) };
    qn_array expected = ints(QUERN_U8, SHAPE(7), I(10, 12, 10, 255, 0, 255, 13));
    expect_same(
        "quantize",
        run("%x: f32[7], %s: f32[], %z: u8[]", "u8[7]", "%r = quantize %x, %s, %z {dtype = u8} : u8[7]", in),
        &expected);
}

static void quantize_by_axis_and_block(void **state)
{
    (void)state;
    qn_array in[] = { floats(QUERN_F32, SHAPE(2, 5), V(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
                      floats(QUERN_F32, SHAPE(5), V(1, 2, 1, 0.5, 1)),
                      ints(QUERN_I8, SHAPE(5), I(0, 1, 0, 0, -5)) };
    qn_array by_axis = ints(QUERN_I8, SHAPE(2, 5), I(1, 2, 3, 8, 0, 6, 5, 8, 18, 5));
    expect_same("per axis",
                run("%x: f32[2, 5], %s: f32[5], %z: i8[5]", "i8[2, 5]",
                    "%r = quantize %x, %s, %z {axis = 1, dtype = i8} : i8[2, 5]", in),
                &by_axis);
    in[1] = floats(QUERN_F32, SHAPE(2, 3), V(1, 0.5, 1, 2, 1, 0.25));
    in[2] = ints(QUERN_I8, SHAPE(2, 3), I(0, 0, 1, 0, 0, 0));
    qn_array by_block = ints(QUERN_I8, SHAPE(2, 5), I(1, 2, 6, 8, 6, 3, 4, 8, 9, 40));
    expect_same("in blocks of 2",
                run("%x: f32[2, 5], %s: f32[2, 3], %z: i8[2, 3]", "i8[2, 5]",
                    "%r = quantize %x, %s, %z {axis = 1, block = 2, dtype = i8} : i8[2, 5]", in),
                &by_block);
}

static void dequantize_needs_more_bits_than_its_operands(void **state)
{
    (void)state;
    qn_array in[] = { ints(QUERN_I8, SHAPE(2), I(-128, 127)), floats(QUERN_F32, SCALAR, V(0.5)),
                      ints(QUERN_I8, SCALAR, I(127)) };
    qn_array expected = floats(QUERN_F32, SHAPE(2), V(-127.5, 0));
    expect_same("dequantize",
                run("%x: i8[2], %s: f32[], %z: i8[]", "f32[2]", "%r = dequantize %x, %s, %z : f32[2]", in),
                &expected);
    qn_array wide[] = { ints(QUERN_I32, SHAPE(1), I(INT32_MIN)), floats(QUERN_F32, SCALAR, V(1)),
                        ints(QUERN_I32, SCALAR, I(INT32_MAX)) };
    qn_array far = floats(QUERN_F32, SHAPE(1), V(-4294967295.0));
    expect_same(
        "dequantize i32",
        run("%x: i32[1], %s: f32[], %z: i32[]", "f32[1]", "%r = dequantize %x, %s, %z : f32[1]", wide), &far);
}

/* ---- lstm ---- */

enum { S = 3, BATCH = 2, IN = 2, HIDDEN = 3 };

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void lstm_by_hand(const qn_array *in, bool reverse, double *y, double *h, double *c)
{
    for (int i = 0; i < BATCH * HIDDEN; i++) {
        h[i] = at(&in[4], i);
        c[i] = at(&in[5], i);
    }
    for (int step = 0; step < S; step++) {
        const int t = reverse ? S - 1 - step : step;
        double next_h[BATCH * HIDDEN];
        for (int i = 0; i < BATCH * HIDDEN; i++) {
            const int b = i / HIDDEN, unit = i % HIDDEN;
            double gate[4]; /* i, o, f, c */
            for (int k = 0; k < 4; k++) {
                const int row = k * HIDDEN + unit;
                gate[k] = at(&in[3], row);
                for (int j = 0; j < IN; j++)
                    gate[k] += at(&in[1], row * IN + j) * at(&in[0], (t * BATCH + b) * IN + j);
                for (int j = 0; j < HIDDEN; j++)
                    gate[k] += at(&in[2], row * HIDDEN + j) * h[b * HIDDEN + j];
            }
            c[i] = sigmoid(gate[2]) * c[i] + sigmoid(gate[0]) * tanh(gate[3]);
            next_h[i] = sigmoid(gate[1]) * tanh(c[i]);
        }
        memcpy(h, next_h, sizeof next_h);
        memcpy(y + t * BATCH * HIDDEN, h, sizeof next_h);
    }
}

static void lstm_runs_both_ways(void **state)
{
    (void)state;
    double y[S * BATCH * HIDDEN], h[BATCH * HIDDEN], c[BATCH * HIDDEN];
    qn_array in[] = {
        noise(QUERN_F32, SHAPE(S, BATCH, IN), 1),       noise(QUERN_F32, SHAPE(4 * HIDDEN, IN), 2),
        noise(QUERN_F32, SHAPE(4 * HIDDEN, HIDDEN), 3), noise(QUERN_F32, SHAPE(4 * HIDDEN), 4),
        noise(QUERN_F32, SHAPE(BATCH, HIDDEN), 5),      noise(QUERN_F32, SHAPE(BATCH, HIDDEN), 6)
    };
    for (int reverse = 0; reverse < 2; reverse++)
        for (int output = 0; output < 3; output++) {
            char body[256];
            const char *names[] = { "%r, %b1, %c1", "%a1, %r, %c1", "%a1, %b1, %r" };
            snprintf(
                body, sizeof body,
                "%s = lstm %%x, %%w, %%u, %%b, %%h, %%c {reverse = %s} : f32[3, 2, 3], f32[2, 3], f32[2, 3]",
                names[output], reverse ? "true" : "false");
            lstm_by_hand(in, reverse, y, h, c);
            qn_array expected = output == 0 ? floats(QUERN_F32, SHAPE(S, BATCH, HIDDEN), y)
                                            : floats(QUERN_F32, SHAPE(BATCH, HIDDEN), output == 1 ? h : c);
            expect_near(body,
                        run("%x: f32[3, 2, 2], %w: f32[12, 2], %u: f32[12, 3], %b: f32[12], %h: f32[2, 3], "
                            "%c: f32[2, 3]",
                            output == 0 ? "f32[3, 2, 3]" : "f32[2, 3]", body, in),
                        &expected, 1e-5);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(softmax_subtracts_the_maximum, eval_teardown),
        cmocka_unit_test_teardown(softmax_of_f16_sums_in_f32, eval_teardown),
        cmocka_unit_test_teardown(cross_entropy_is_the_negative_log_of_the_label, eval_teardown),
        cmocka_unit_test_teardown(norms_go_over_the_axes_from_axis_on, eval_teardown),
        cmocka_unit_test_teardown(norms_of_f16_compute_in_f32, eval_teardown),
        cmocka_unit_test_teardown(batch_norm_takes_running_or_batch_statistics, eval_teardown),
        cmocka_unit_test_teardown(dropout_keeps_or_drops, eval_teardown),
        cmocka_unit_test_teardown(activations, eval_teardown),
        cmocka_unit_test_teardown(attention_groups_masks_and_hides, eval_teardown),
        cmocka_unit_test_teardown(attention_that_sees_nan_gives_nan, eval_teardown),
        cmocka_unit_test_teardown(quantize_rounds_half_to_even_and_saturates, eval_teardown),
        cmocka_unit_test_teardown(quantize_by_axis_and_block, eval_teardown),
        cmocka_unit_test_teardown(dequantize_needs_more_bits_than_its_operands, eval_teardown),
        cmocka_unit_test_teardown(lstm_runs_both_ways, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
