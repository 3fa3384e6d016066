/* Composites as the reference interpreter runs them, against their formulas as loops in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

static void set(const qn_array *a, int64_t i, double v)
{
    qn_scalar_store(a->dtype, (qn_scalar){ .f = v }, (char *)a->data + (size_t)i * qn_dtype_bytes(a->dtype));
}

/* What a result may differ by: the body rounds at each step (f16 and bf16: once). */
static double tolerance(qn_dtype dtype)
{
    return dtype == QUERN_F64 ? 1e-13 : dtype == QUERN_F32 ? 2e-6 : dtype == QUERN_F16 ? 1e-3 : 8e-3;
}

static const qn_dtype float_dtypes[] = { QUERN_F64, QUERN_F32, QUERN_F16, QUERN_BF16 };
enum { N_FLOATS = 4 };

static void softmaxes(void **state)
{
    (void)state;
    enum { A = 3, B = 5, C = 4 };
    for (int d = 0; d < N_FLOATS; d++) {
        const qn_array x = noise(float_dtypes[d], SHAPE(A, B, C), 1);
        const qn_array soft = full(float_dtypes[d], SHAPE(A, B, C), 0),
                       logs = full(float_dtypes[d], SHAPE(A, B, C), 0);
        for (int a = 0; a < A; a++)
            for (int c = 0; c < C; c++) {
                double sum = 0;
                for (int b = 0; b < B; b++)
                    sum += exp(at(&x, (a * B + b) * C + c));
                for (int b = 0; b < B; b++) {
                    set(&soft, (a * B + b) * C + c, exp(at(&x, (a * B + b) * C + c)) / sum);
                    set(&logs, (a * B + b) * C + c, at(&x, (a * B + b) * C + c) - log(sum));
                }
            }
        const call s = { QN_OP_SOFTMAX, 1, { x }, 1, { INT(AXIS, 1) } },
                   l = { QN_OP_LOG_SOFTMAX, 1, { x }, 1, { INT(AXIS, 1) } };
        expect_near("softmax", eval(&s), &soft, tolerance(float_dtypes[d]));
        expect_near("log_softmax", eval(&l), &logs, tolerance(float_dtypes[d]));
    }
    const double inf = (double)INFINITY;
    const call big = {
        QN_OP_SOFTMAX, 1, { floats(QUERN_F32, SHAPE(3), V(1000, 1000, -inf)) }, 1, { INT(AXIS, 0) }
    };
    const qn_array half = floats(QUERN_F32, SHAPE(3), V(0.5, 0.5, 0));
    expect_same("large values", eval(&big), &half);
}

static void norms(void **state)
{
    (void)state;
    enum { R = 4, C = 6 };
    for (int d = 0; d < N_FLOATS; d++) {
        const qn_dtype dtype = float_dtypes[d];
        const qn_array x = noise(dtype, SHAPE(R, 2, 3), 2), scale = noise(dtype, SHAPE(2, 3), 3),
                       bias = noise(dtype, SHAPE(2, 3), 4);
        const qn_array layer = full(dtype, SHAPE(R, 2, 3), 0), rms = full(dtype, SHAPE(R, 2, 3), 0);
        for (int r = 0; r < R; r++) {
            double sum = 0, squares = 0, variance = 0;
            for (int c = 0; c < C; c++) {
                sum += at(&x, r * C + c);
                squares += at(&x, r * C + c) * at(&x, r * C + c);
            }
            for (int c = 0; c < C; c++)
                variance += pow(at(&x, r * C + c) - sum / C, 2) / C;
            for (int c = 0; c < C; c++) {
                set(&layer, r * C + c,
                    (at(&x, r * C + c) - sum / C) / sqrt(variance + 1e-5) * at(&scale, c) + at(&bias, c));
                set(&rms, r * C + c, at(&x, r * C + c) / sqrt(squares / C + 1e-6) * at(&scale, c));
            }
        }
        const call l = { QN_OP_LAYER_NORM, 3, { x, scale, bias }, 2, { INT(AXIS, 1), REAL(EPSILON, 1e-5) } };
        const call m = { QN_OP_RMS_NORM, 2, { x, scale }, 2, { INT(AXIS, 1), REAL(EPSILON, 1e-6) } };
        expect_near("layer_norm", eval(&l), &layer, 8 * tolerance(dtype));
        expect_near("rms_norm", eval(&m), &rms, 8 * tolerance(dtype));
    }
}

static void norms_of_groups(void **state)
{
    (void)state;
    enum { N = 2, C = 4, S = 3, GROUPS = 2, EACH = C / GROUPS * S };
    for (int d = 0; d < N_FLOATS; d++) {
        const qn_dtype dtype = float_dtypes[d];
        const qn_array x = noise(dtype, SHAPE(N, C, S), 2), scale = noise(dtype, SHAPE(C), 3),
                       bias = noise(dtype, SHAPE(C), 4), y = full(dtype, SHAPE(N, C, S), 0);
        for (int row = 0; row < N * GROUPS; row++) {
            double mean = 0, variance = 0;
            for (int i = 0; i < EACH; i++)
                mean += at(&x, row * EACH + i) / EACH;
            for (int i = 0; i < EACH; i++)
                variance += pow(at(&x, row * EACH + i) - mean, 2) / EACH;
            for (int i = 0; i < EACH; i++) {
                const int k = row * EACH + i, c = k / S % C;
                set(&y, k, (at(&x, k) - mean) / sqrt(variance + 1e-5) * at(&scale, c) + at(&bias, c));
            }
        }
        const call g = {
            QN_OP_GROUP_NORM, 3, { x, scale, bias }, 2, { REAL(EPSILON, 1e-5), INT(GROUPS, GROUPS) }
        };
        expect_near("group_norm", eval(&g), &y, 8 * tolerance(dtype));
    }
    const qn_array one = full(QUERN_F32, SHAPE(1), 7), bias = full(QUERN_F32, SHAPE(1), 3);
    const call alone = { QN_OP_GROUP_NORM,
                         3,
                         { full(QUERN_F32, SHAPE(1, 1), 5), one, bias },
                         2,
                         { REAL(EPSILON, 1e-5), INT(GROUPS, 1) } };
    const qn_array offset = full(QUERN_F32, SHAPE(1, 1), 3), none = full(QUERN_F32, SHAPE(2, 1, 0), 0);
    expect_same("of one element", eval(&alone), &offset);
    const call empty = {
        QN_OP_GROUP_NORM, 3, { none, one, bias }, 2, { REAL(EPSILON, 1e-5), INT(GROUPS, 1) }
    };
    expect_same("of no elements", eval(&empty), &none);
}

static void activations(void **state)
{
    (void)state;
    enum { COUNT = 100 };
    for (int d = 0; d < N_FLOATS; d++) {
        const qn_dtype dtype = float_dtypes[d];
        const qn_array x = noise(dtype, SHAPE(COUNT), 5);
        const qn_array exact = full(dtype, SHAPE(COUNT), 0), approximate = full(dtype, SHAPE(COUNT), 0);
        const qn_array silu = full(dtype, SHAPE(COUNT), 0), relu = full(dtype, SHAPE(COUNT), 0);
        for (int i = 0; i < COUNT; i++) {
            const double v = at(&x, i);
            set(&exact, i, v / 2 * (1 + erf(v * M_SQRT1_2)));
            set(&approximate, i, v / 2 * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))));
            set(&silu, i, v / (1 + exp(-v)));
            set(&relu, i, v > 0 ? v : 0);
        }
        const call calls[] = { { QN_OP_GELU, 1, { x }, 0, { INT(AXIS, 0) } },
                               { QN_OP_GELU_TANH, 1, { x }, 0, { INT(AXIS, 0) } },
                               { QN_OP_SILU, 1, { x }, 0, { INT(AXIS, 0) } },
                               { QN_OP_RELU, 1, { x }, 0, { INT(AXIS, 0) } } };
        expect_near("gelu", eval(&calls[0]), &exact, tolerance(dtype));
        expect_near("gelu, tanh", eval(&calls[1]), &approximate, tolerance(dtype));
        expect_near("silu", eval(&calls[2]), &silu, tolerance(dtype));
        expect_near("relu", eval(&calls[3]), &relu, 0);
    }
    const call ints_too = {
        QN_OP_RELU, 1, { ints(QUERN_I8, SHAPE(3), I(-128, 0, 127)) }, 0, { INT(AXIS, 0) }
    };
    const qn_array r = ints(QUERN_I8, SHAPE(3), I(0, 0, 127));
    expect_same("relu of integers", eval(&ints_too), &r);
}

/* ---- attention ---- */

typedef struct attention_case {
    int64_t b, h, g, s, t, d, e;
    bool causal;
    int64_t mask[4]; /* dims; 0: none */
    bool visible;    /* the mask says which keys are */
} attention_case;

/* softmax(q k^T scale + mask) v, keys t <= s + T - S visible when causal; 0 where nothing is visible. */
static qn_array attention_by_loops(const attention_case *c, const qn_array *x, double scale)
{
    const qn_array r = full(x[0].dtype, SHAPE(c->b, c->h, c->s, c->e), 0);
    for (int64_t b = 0; b < c->b; b++)
        for (int64_t h = 0; h < c->h; h++)
            for (int64_t s = 0; s < c->s; s++) {
                const int64_t kv = b * c->g + h / (c->h / c->g);
                double p[16], sum = 0;
                bool hidden[16] = { false };
                for (int64_t t = 0; t < c->t; t++) {
                    double score = 0;
                    for (int64_t d = 0; d < c->d; d++)
                        score += at(&x[0], ((b * c->h + h) * c->s + s) * c->d + d) *
                                 at(&x[1], (kv * c->t + t) * c->d + d);
                    score *= scale;
                    if (c->mask[0]) {
                        const int64_t i[4] = { b, h, s, t };
                        int64_t offset = 0;
                        for (int a = 0; a < 4; a++)
                            offset = offset * c->mask[a] + (c->mask[a] == 1 ? 0 : i[a]);
                        if (c->visible)
                            hidden[t] = at(&x[3], offset) == 0;
                        else
                            score += at(&x[3], offset);
                    }
                    hidden[t] |= c->causal && t > s + c->t - c->s;
                    p[t] = hidden[t] ? 0 : exp(score);
                    sum += p[t];
                }
                for (int64_t e = 0; e < c->e; e++) {
                    double y = 0;
                    for (int64_t t = 0; t < c->t; t++)
                        y += sum > 0 ? p[t] / sum * at(&x[2], (kv * c->t + t) * c->e + e) : 0;
                    set(&r, ((b * c->h + h) * c->s + s) * c->e + e, y);
                }
            }
    return r;
}

/* A mask that hides every third key, but not the first. */
static qn_array mostly_true(const int64_t *dims)
{
    const qn_array mask = full(QUERN_BOOL, 4, dims, 1);
    for (int64_t i = 2; i < dims[0] * dims[1] * dims[2] * dims[3]; i += 3)
        ((unsigned char *)mask.data)[i] = 0;
    return mask;
}

static void attentions(void **state)
{
    (void)state;
    static const attention_case cases[] = {
        { 2, 3, 3, 4, 5, 6, 7, false, { 0 }, false },
        { 2, 4, 2, 3, 3, 4, 4, true, { 0 }, false },
        { 1, 4, 1, 2, 5, 4, 3, true, { 0 }, false }, /* queries at the end of the keys */
        { 1, 2, 2, 5, 2, 4, 3, true, { 0 }, false }, /* the first three see nothing */
        { 2, 2, 2, 3, 4, 4, 4, false, { 2, 1, 1, 4 }, false },
        { 2, 4, 2, 3, 4, 4, 4, true, { 1, 4, 3, 1 }, false },
        { 2, 2, 2, 3, 4, 4, 4, false, { 2, 1, 1, 4 }, true },
        { 2, 4, 2, 3, 4, 4, 4, true, { 1, 4, 3, 4 }, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int d = 0; d < N_FLOATS; d++) {
            const attention_case *c = &cases[i];
            const qn_dtype dtype = float_dtypes[d];
            call k = { QN_OP_ATTENTION,
                       3,
                       { noise(dtype, SHAPE(c->b, c->h, c->s, c->d), 11),
                         noise(dtype, SHAPE(c->b, c->g, c->t, c->d), 12),
                         noise(dtype, SHAPE(c->b, c->g, c->t, c->e), 13) },
                       2,
                       { REAL(SCALE, 0.25), INT(CAUSAL, c->causal) } };
            if (c->visible)
                k.operands[k.n_operands++] = mostly_true(c->mask);
            else if (c->mask[0])
                k.operands[k.n_operands++] = noise(dtype, 4, c->mask, 14);
            const qn_array expected = attention_by_loops(c, k.operands, 0.25);
            expect_near("attention", eval(&k), &expected, 4 * tolerance(dtype));
        }
    /* A mask that hides everything from one query. */
    const double inf = (double)INFINITY;
    const call hidden = { QN_OP_ATTENTION,
                          4,
                          { full(QUERN_F32, SHAPE(1, 1, 2, 1), 1), full(QUERN_F32, SHAPE(1, 1, 2, 1), 1),
                            floats(QUERN_F32, SHAPE(1, 1, 2, 1), V(3, 5)),
                            floats(QUERN_F32, SHAPE(1, 1, 2, 2), V(-inf, -inf, -inf, 0)) },
                          1,
                          { REAL(SCALE, 1) } };
    const qn_array zero_five = floats(QUERN_F32, SHAPE(1, 1, 2, 1), V(0, 5));
    expect_same("nothing visible", eval(&hidden), &zero_five);
}

static void cross_entropies(void **state)
{
    (void)state;
    enum { N = 3, C = 4 };
    const qn_array labels = ints(QUERN_I64, SHAPE(N), I(2, 0, 3));
    for (int d = 0; d < N_FLOATS; d++) {
        const qn_array x = noise(float_dtypes[d], SHAPE(N, C), 15), r = full(QUERN_F32, SHAPE(N), 0);
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int c = 0; c < C; c++)
                sum += exp(at(&x, n * C + c));
            set(&r, n, log(sum) - at(&x, n * C + (int64_t)at(&labels, n)));
        }
        const call k = { QN_OP_CROSS_ENTROPY, 2, { x, labels }, 0, { INT(AXIS, 0) } };
        expect_near("cross_entropy", eval(&k), &r, 2e-6);
    }
    const call bad = { QN_OP_CROSS_ENTROPY,
                       2,
                       { full(QUERN_F32, SHAPE(1, 4), 0), ints(QUERN_I64, SHAPE(1), I(4)) },
                       0,
                       { INT(AXIS, 0) } };
    assert_null(eval(&bad));
    assert_int_equal(eval_status(), QUERN_ERROR_INDEX);
    assert_non_null(strstr(eval_error(), "test node"));
}

/* ---- quantization ---- */

static void quantization(void **state)
{
    (void)state;
    const double nan = (double)NAN, inf = (double)INFINITY;
    const qn_array x = floats(QUERN_F32, SHAPE(7), V(0.25, 0.75, -0.25, 1000, -1000, inf, nan));
    const qn_array half = floats(QUERN_F32, SCALAR, V(0.5)), five = ints(QUERN_U8, SCALAR, I(5)),
                   zero = ints(QUERN_I8, SCALAR, I(0));
    const call u8 = { QN_OP_QUANTIZE, 3, { x, half, five }, 1, { INT(DTYPE, QUERN_U8) } };
    const qn_array u8_result = ints(QUERN_U8, SHAPE(7), I(5, 7, 5, 255, 0, 255, 0));
    expect_same("half to even, saturated", eval(&u8), &u8_result);
    const call i8 = { QN_OP_QUANTIZE, 3, { x, half, zero }, 1, { INT(DTYPE, QUERN_I8) } };
    const qn_array i8_result = ints(QUERN_I8, SHAPE(7), I(0, 2, 0, 127, -128, 127, 0));
    expect_same("i8", eval(&i8), &i8_result);
    const call back = {
        QN_OP_DEQUANTIZE, 3, { ints(QUERN_U8, SHAPE(3), I(0, 5, 255)), half, five }, 0, { INT(AXIS, 0) }
    };
    const qn_array back_result = floats(QUERN_F32, SHAPE(3), V(-2.5, 0, 125));
    expect_same("back", eval(&back), &back_result);
    /* A scale for each column, and for each block of two rows of three. */
    const qn_array m = floats(QUERN_F32, SHAPE(3, 2), V(1, 2, 3, 4, 5, 6));
    const call columns = { QN_OP_QUANTIZE,
                           3,
                           { m, floats(QUERN_F32, SHAPE(2), V(1, 2)), ints(QUERN_I8, SHAPE(2), I(0, 10)) },
                           2,
                           { INT(AXIS, 1), INT(DTYPE, QUERN_I8) } };
    const qn_array columns_result = ints(QUERN_I8, SHAPE(3, 2), I(1, 11, 3, 12, 5, 13));
    expect_same("per axis", eval(&columns), &columns_result);
    const qn_array scales = floats(QUERN_F32, SHAPE(2, 2), V(1, 2, 5, 0.5)),
                   points = ints(QUERN_I8, SHAPE(2, 2), I(0, 0, 1, 0));
    const call blocks = {
        QN_OP_QUANTIZE, 3, { m, scales, points }, 3, { INT(AXIS, 0), INT(BLOCK, 2), INT(DTYPE, QUERN_I8) }
    };
    const qn_array blocks_result = ints(QUERN_I8, SHAPE(3, 2), I(1, 1, 3, 2, 2, 12));
    expect_same("per block", eval(&blocks), &blocks_result);
    const call undo = {
        QN_OP_DEQUANTIZE, 3, { blocks_result, scales, points }, 2, { INT(AXIS, 0), INT(BLOCK, 2) }
    };
    const qn_array undo_result = floats(QUERN_F32, SHAPE(3, 2), V(1, 2, 3, 4, 5, 6));
    expect_same("and back", eval(&undo), &undo_result);
}

/* ---- lstm ---- */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void lstms(void **state)
{
    (void)state;
    enum { S = 4, B = 2, IN = 3, H = 5 };
    for (int reverse = 0; reverse < 2; reverse++)
        for (int d = 0; d < 2; d++) {
            const qn_dtype t = float_dtypes[d];
            const qn_array in[] = { noise(t, SHAPE(S, B, IN), 1), noise(t, SHAPE(4 * H, IN), 2),
                                    noise(t, SHAPE(4 * H, H), 3), noise(t, SHAPE(4 * H), 4),
                                    noise(t, SHAPE(B, H), 5),     noise(t, SHAPE(B, H), 6) };
            const qn_array y = full(t, SHAPE(S, B, H), 0), h = full(t, SHAPE(B, H), 0),
                           c = full(t, SHAPE(B, H), 0);
            for (int64_t i = 0; i < B * H; i++) {
                set(&h, i, at(&in[4], i));
                set(&c, i, at(&in[5], i));
            }
            for (int k = 0; k < S; k++) {
                const int s = reverse ? S - 1 - k : k;
                double next[B * H];
                for (int b = 0; b < B; b++)
                    for (int j = 0; j < H; j++) {
                        double g[4];
                        for (int q = 0; q < 4; q++) {
                            g[q] = at(&in[3], q * H + j);
                            for (int i = 0; i < IN; i++)
                                g[q] += at(&in[0], (s * B + b) * IN + i) * at(&in[1], (q * H + j) * IN + i);
                            for (int i = 0; i < H; i++)
                                g[q] += at(&h, b * H + i) * at(&in[2], (q * H + j) * H + i);
                        }
                        const double cell = sigmoid(g[2]) * at(&c, b * H + j) + sigmoid(g[0]) * tanh(g[3]);
                        set(&c, b * H + j, cell);
                        next[b * H + j] = sigmoid(g[1]) * tanh(cell);
                    }
                for (int i = 0; i < B * H; i++) {
                    set(&h, i, next[i]);
                    set(&y, s * B * H + i, next[i]);
                }
            }
            call k = {
                QN_OP_LSTM, 6, { in[0], in[1], in[2], in[3], in[4], in[5] }, 1, { INT(REVERSE, reverse) }
            };
            const qn_array *r = eval(&k);
            expect_near("lstm", r, &y, 50 * tolerance(t));
            expect_near("last h", r + 1, &h, 50 * tolerance(t));
            expect_near("last c", r + 2, &c, 50 * tolerance(t));
        }
}

/* The expansion is made for the sizes at hand; a composite in a loop finds others each time. */
static void composites_in_graphs(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[n, m]) -> f32[n, m] {\n"
                       "  %0 = scan %x {length = [n], n_carried = 0, n_scanned = 1} : f32[n, m]\n"
                       "    body (%r: f32[m]) { %0 = softmax %r {axis = 0} : f32[m] return %0 }\n"
                       "  return %0\n}\n";
    const qn_array x = floats(QUERN_F32, SHAPE(2, 2), V(7, 7, 9, 9)),
                   y = floats(QUERN_F32, SHAPE(2, 2), V(0.5, 0.5, 0.5, 0.5));
    expect_same("rows", eval_text(text, &x), &y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(softmaxes, eval_teardown),
        cmocka_unit_test_teardown(norms, eval_teardown),
        cmocka_unit_test_teardown(norms_of_groups, eval_teardown),
        cmocka_unit_test_teardown(activations, eval_teardown),
        cmocka_unit_test_teardown(attentions, eval_teardown),
        cmocka_unit_test_teardown(cross_entropies, eval_teardown),
        cmocka_unit_test_teardown(quantization, eval_teardown),
        cmocka_unit_test_teardown(lstms, eval_teardown),
        cmocka_unit_test_teardown(composites_in_graphs, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
