/* Single operators of imported models, run by the interpreter. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/onnx_run.h"
#include "tests/support/onnx_writer.h"

/* ---- LSTM ---- */

enum { STEPS = 4, BATCH = 2, IN = 3, HIDDEN = 2 };

static float logistic(float x)
{
    return 1 / (1 + expf(-x));
}

/* One direction of the textbook's cell; sequences end at lengths[b]. Gates in ONNX's order i, o, f, c. */
static void lstm_reference(const float *x, const float *w, const float *r, const float *bias,
                           const int64_t *lengths, bool reverse, float *y)
{
    for (int b = 0; b < BATCH; b++) {
        float h[HIDDEN] = { 0 }, c[HIDDEN] = { 0 };
        for (int step = 0; step < lengths[b]; step++) {
            int t = reverse ? (int)lengths[b] - 1 - step : step;
            float gate[4 * HIDDEN];
            for (int g = 0; g < 4 * HIDDEN; g++) {
                gate[g] = bias[g] + bias[4 * HIDDEN + g];
                for (int i = 0; i < IN; i++)
                    gate[g] += w[g * IN + i] * x[(t * BATCH + b) * IN + i];
                for (int i = 0; i < HIDDEN; i++)
                    gate[g] += r[g * HIDDEN + i] * h[i];
            }
            for (int i = 0; i < HIDDEN; i++) {
                c[i] =
                    logistic(gate[2 * HIDDEN + i]) * c[i] + logistic(gate[i]) * tanhf(gate[3 * HIDDEN + i]);
                h[i] = logistic(gate[HIDDEN + i]) * tanhf(c[i]);
                y[(t * BATCH + b) * HIDDEN + i] = h[i];
            }
        }
    }
}

static void check_lstm(const int64_t *lengths, bool reverse)
{
    float x[STEPS * BATCH * IN], w[4 * HIDDEN * IN], r[4 * HIDDEN * HIDDEN], bias[8 * HIDDEN];
    float want[STEPS * BATCH * HIDDEN] = { 0 };
    int32_t narrow[BATCH] = { STEPS, STEPS };
    int64_t full[BATCH] = { STEPS, STEPS };
    onnx_fill(x, STEPS * BATCH * IN, 1);
    onnx_fill(w, 4 * HIDDEN * IN, 2);
    onnx_fill(r, 4 * HIDDEN * HIDDEN, 3);
    onnx_fill(bias, 8 * HIDDEN, 4);
    lstm_reference(x, w, r, bias, lengths ? lengths : full, reverse, want);
    onnx_bytes g = { 0 }, node = onnx_node("LSTM", lengths ? "x w r b n" : "x w r b", "y");
    onnx_input(&g, "x", ONNX_FLOAT, "steps,batch,3");
    if (lengths)
        onnx_input(&g, "n", 6, "batch");
    onnx_initializer(&g, "w", ONNX_FLOAT, 3, (int64_t[]){ 1, 4 * HIDDEN, IN }, w);
    onnx_initializer(&g, "r", ONNX_FLOAT, 3, (int64_t[]){ 1, 4 * HIDDEN, HIDDEN }, r);
    onnx_initializer(&g, "b", ONNX_FLOAT, 2, (int64_t[]){ 1, 8 * HIDDEN }, bias);
    onnx_attr_string(&node, "direction", reverse ? "reverse" : "forward");
    onnx_put_node(&g, &node);
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, lengths ? "scan" : "= lstm"));
    for (int b = 0; lengths && b < BATCH; b++)
        narrow[b] = (int32_t)lengths[b];
    qn_array in[2] = { onnx_array(QUERN_F32, 3, (int64_t[]){ STEPS, BATCH, IN }, x),
                       onnx_array(QUERN_I32, 1, (int64_t[]){ BATCH }, narrow) },
             out;
    onnx_run(&m, in, &out);
    onnx_expect_floats(&out, STEPS * BATCH * HIDDEN, want);
    onnx_drop(&m);
}

static void lstm_is_the_textbook_cell(void **state)
{
    (void)state;
    for (int reverse = 0; reverse < 2; reverse++) {
        check_lstm(NULL, reverse);
        check_lstm((int64_t[]){ 4, 2 }, reverse);
        check_lstm((int64_t[]){ 1, 3 }, reverse);
    }
}

static void nothing_reversed_is_nothing(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2,0");
    onnx_ints(&g, "starts", 1, (int64_t[]){ -1 });
    onnx_ints(&g, "ends", 1, (int64_t[]){ INT64_MIN });
    onnx_ints(&g, "axes", 1, (int64_t[]){ 1 });
    onnx_ints(&g, "steps", 1, (int64_t[]){ -1 });
    onnx_simple(&g, "Slice", "x starts ends axes steps", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_loaded m = onnx_load(&g, 18);
    qn_array x = onnx_array(QUERN_F32, 2, (int64_t[]){ 2, 0 }, NULL), y;
    onnx_run(&m, &x, &y);
    assert_int_equal(y.dims[0], 2);
    assert_int_equal(y.dims[1], 0);
    onnx_drop(&m);
}

/* Zero points per row and per column leave the 8-bit product as it is. */
static void zero_points_come_out_of_the_sums(void **state)
{
    (void)state;
    enum { ROWS = 2, DEPTH = 3, COLUMNS = 4 };
    uint8_t x[ROWS * DEPTH] = { 0, 255, 7, 100, 3, 200 }, x_zero[ROWS] = { 128, 3 };
    int8_t y[DEPTH * COLUMNS] = { -128, 127, 5, 0, 1, -1, 64, 33, 9, -9, 100, -77 },
                     y_zero[COLUMNS] = { 0, -5, 127, 1 };
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", 2, "2,3");
    onnx_input(&g, "y", 3, "3,4");
    onnx_input(&g, "xz", 2, "2");
    onnx_input(&g, "yz", 3, "4");
    onnx_simple(&g, "MatMulInteger", "x y xz yz", "z");
    onnx_output(&g, "z", 6);
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, "dtype = i32"));
    qn_array in[4] = { onnx_array(QUERN_U8, 2, (int64_t[]){ ROWS, DEPTH }, x),
                       onnx_array(QUERN_I8, 2, (int64_t[]){ DEPTH, COLUMNS }, y),
                       onnx_array(QUERN_U8, 1, (int64_t[]){ ROWS }, x_zero),
                       onnx_array(QUERN_I8, 1, (int64_t[]){ COLUMNS }, y_zero) },
             out;
    onnx_run(&m, in, &out);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            int sum = 0;
            for (int k = 0; k < DEPTH; k++)
                sum += (x[i * DEPTH + k] - x_zero[i]) * (y[k * COLUMNS + j] - y_zero[j]);
            assert_int_equal(((int32_t *)out.data)[i * COLUMNS + j], sum);
        }
    onnx_drop(&m);
}

/* Two in a byte, the first in its lower half; an odd number of them; and blocks of them with a scale each. */
static void weights_of_four_bits(void **state)
{
    (void)state;
    enum { INT4 = 22, UINT4 = 21 };
    static const unsigned char packed[] = { 0x18, 0x7f, 0x02 };
    static const float scale[] = { 0.5f, 4 };
    static const float expected[][5] = { { -4, 0.5f, -0.5f, 28, 8 }, { 3.5f, 0, 7, 24, 4 } };
    for (int is_unsigned = 0; is_unsigned < 2; is_unsigned++) {
        static const unsigned char zero[] = { 0x11 };
        onnx_bytes g = { 0 }, node = onnx_node("DequantizeLinear", is_unsigned ? "w s z" : "w s", "y");
        const int64_t dims[] = { 5 }, blocks[] = { 2 };
        const int elem = is_unsigned ? UINT4 : INT4;
        onnx_bytes w = onnx_tensor("w", elem, 1, dims, packed, sizeof packed);
        onnx_bytes z = onnx_tensor("z", elem, 1, blocks, zero, sizeof zero);
        onnx_put_message(&g, 5, &w);
        onnx_put_message(&g, 5, &z);
        onnx_initializer(&g, "s", ONNX_FLOAT, 1, blocks, scale);
        onnx_attr_int(&node, "axis", 0);
        onnx_attr_int(&node, "block_size", 3);
        onnx_put_node(&g, &node);
        onnx_output(&g, "y", ONNX_FLOAT);
        onnx_loaded m = onnx_load(&g, 21);
        qn_array y;
        assert_non_null(strstr(m.text, is_unsigned ? ": u4[5]" : ": i4[5]"));
        onnx_run(&m, NULL, &y);
        onnx_expect_floats(&y, 5, expected[is_unsigned]);
        onnx_drop(&m);
    }
}

/* As exporters write x[mask] = updates: as many of the updates as the mask has ones. */
static void updates_are_as_many_as_indices(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, node = onnx_node("Transpose", "found", "at");
    onnx_input(&g, "x", ONNX_FLOAT, "2,2");
    onnx_input(&g, "mask", ONNX_BOOL, "2,2");
    onnx_input(&g, "updates", ONNX_FLOAT, "4");
    onnx_initializer(&g, "zero", ONNX_INT64, 1, (int64_t[]){ 1 }, (int64_t[]){ 0 });
    onnx_initializer(&g, "one", ONNX_INT64, 1, (int64_t[]){ 1 }, (int64_t[]){ 1 });
    onnx_simple(&g, "NonZero", "mask", "found");
    onnx_put_node(&g, &node);
    onnx_simple(&g, "Shape", "found", "shape");
    onnx_simple(&g, "Gather", "shape one", "count");
    onnx_simple(&g, "Slice", "updates zero count", "some");
    onnx_simple(&g, "ScatterND", "x at some", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_loaded m = onnx_load(&g, 18);
    unsigned char mask[] = { 0, 1, 1, 0 };
    float x[] = { 1, 2, 3, 4 }, updates[] = { 10, 20, 30, 40 };
    const int64_t square[] = { 2, 2 }, four[] = { 4 };
    qn_array in[] = { onnx_array(QUERN_F32, 2, square, x), onnx_array(QUERN_BOOL, 2, square, mask),
                      onnx_array(QUERN_F32, 1, four, updates) },
             y;
    onnx_run(&m, in, &y);
    onnx_expect_floats(&y, 4, (float[]){ 1, 10, 20, 4 });
    onnx_drop(&m);
}

/* torch.stft is exported with a signal of two axes. */
static void real_signals_need_no_last_axis(void **state)
{
    (void)state;
    float x[8], all[2][20];
    onnx_fill(x, 8, 3);
    for (int flat = 0; flat < 2; flat++) {
        onnx_bytes g = { 0 };
        onnx_input(&g, "x", ONNX_FLOAT, flat ? "1,8" : "1,8,1");
        onnx_initializer(&g, "step", ONNX_INT64, 0, NULL, (int64_t[]){ 4 });
        onnx_initializer(&g, "length", ONNX_INT64, 0, NULL, (int64_t[]){ 4 });
        onnx_initializer(&g, "window", ONNX_FLOAT, 1, (int64_t[]){ 4 }, (float[]){ .5F, 1, 1, .5F });
        onnx_simple(&g, "STFT", "x step window length", "y");
        onnx_output(&g, "y", ONNX_FLOAT);
        onnx_loaded m = onnx_load(&g, 17);
        qn_array in = onnx_array(QUERN_F32, flat ? 2 : 3, (int64_t[]){ 1, 8, 1 }, x), y;
        onnx_run(&m, &in, &y);
        assert_int_equal(y.rank, 4);
        assert_int_equal(y.dims[1] * y.dims[2] * y.dims[3], 2 * 3 * 2);
        memcpy(all[flat], y.data, 12 * sizeof(float));
        onnx_drop(&m);
    }
    assert_memory_equal(all[0], all[1], 12 * sizeof(float));
    const float sum = .5F * x[0] + x[1] + x[2] + .5F * x[3];
    assert_true(fabsf(all[1][0] - sum) < 1e-5F);
}

/* Of no rows and columns it is 1, for each matrix. */
static void determinants_of_empty_matrices(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "3,0,0");
    onnx_simple(&g, "Det", "x", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_loaded m = onnx_load(&g, 18);
    qn_array x = onnx_array(QUERN_F32, 3, (int64_t[]){ 3, 0, 0 }, NULL), y;
    onnx_run(&m, &x, &y);
    onnx_expect_floats(&y, 3, (float[]){ 1, 1, 1 });
    onnx_drop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lstm_is_the_textbook_cell),        cmocka_unit_test(nothing_reversed_is_nothing),
        cmocka_unit_test(zero_points_come_out_of_the_sums), cmocka_unit_test(weights_of_four_bits),
        cmocka_unit_test(updates_are_as_many_as_indices),   cmocka_unit_test(real_signals_need_no_last_axis),
        cmocka_unit_test(determinants_of_empty_matrices),
    };
    return cmocka_run_group_tests_name("onnx_run", tests, NULL, NULL);
}
