/* Imported models, run by the interpreter: control flow, recurrent layers, symbolic dimensions against known ones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/onnx/onnx.h"
#include "passes/autodiff.h"
#include "tests/support/onnx_writer.h"

typedef struct model {
    onnx_bytes bytes;
    qn_arena *arena;
    qn_diags diags;
    qn_module *module;
    const char *text; /* the printed function */
} model;

/* What went wrong is in m.diags; then there is no module. */
static model try_load(onnx_bytes *graph, int64_t opset)
{
    const qn_onnx_options options = { .gradient = qn_gradient_at, .fold = qn_interp_fold };
    onnx_bytes training = { 0 };
    model m = { .bytes = onnx_model(graph, opset), .arena = qn_arena_new() };
    onnx_put_string(&training, 1, "ai.onnx.preview.training");
    onnx_put_int(&training, 2, 1);
    onnx_put_message(&m.bytes, 8, &training);
    qn_diags_init(&m.diags, m.arena);
    if (!qn_onnx_load_bytes(m.bytes.data, m.bytes.n, "m.onnx", &options, &m.module, &m.diags) &&
        qn_verify(m.module, &m.diags))
        fail_msg("%s", qn_diags_text(&m.diags, m.arena));
    return m;
}

static model load(onnx_bytes *graph, int64_t opset)
{
    model m = try_load(graph, opset);
    if (!m.module)
        fail_msg("%s", qn_diags_text(&m.diags, m.arena));
    m.text = qn_graph_print(m.module->functions[0], m.arena);
    return m;
}

static void drop(model *m)
{
    if (m->module)
        qn_module_free(m->module);
    qn_arena_free(m->arena);
    free(m->bytes.data);
}

static qn_array array_of(qn_dtype dtype, int rank, const int64_t *dims, void *data)
{
    qn_array a = { .dtype = dtype, .rank = rank, .data = data };
    for (int i = 0; i < rank; i++)
        a.dims[i] = dims[i];
    return a;
}

static void run(model *m, const qn_array *inputs, qn_array *outputs)
{
    if (qn_interp_run(m->module->functions[0], inputs, outputs, m->arena, &m->diags))
        fail_msg("%s", qn_diags_text(&m->diags, m->arena));
}

static void expect_floats(const qn_array *a, int n, const float *want)
{
    int64_t count = 1;
    for (int i = 0; i < a->rank; i++)
        count *= a->dims[i];
    assert_int_equal(a->dtype, QUERN_F32);
    assert_int_equal(count, n);
    for (int i = 0; i < n; i++)
        if (!(fabsf(((const float *)a->data)[i] - want[i]) <= 1e-5f * (1 + fabsf(want[i]))))
            fail_msg("element %d is %g instead of %g", i, (double)((const float *)a->data)[i],
                     (double)want[i]);
}

static void fill(float *x, int n, int seed)
{
    for (int i = 0; i < n; i++)
        x[i] = (float)((i * 37 + seed * 11) % 23 - 11) / 7;
}

/* ---- If ---- */

/* y = c ? x + w : x * w, with w from outside */
static onnx_bytes branches(int known)
{
    onnx_bytes g = { 0 }, then_graph = { 0 }, else_graph = { 0 }, node = onnx_node("If", "c", "y");
    float w[2] = { 10, 20 };
    unsigned char truth = known > 0;
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    if (known < 0)
        onnx_input(&g, "c", ONNX_BOOL, "");
    else
        onnx_initializer(&g, "c", ONNX_BOOL, 0, NULL, &truth);
    onnx_initializer(&g, "w", ONNX_FLOAT, 1, (int64_t[]){ 2 }, w);
    onnx_simple(&g, "Neg", "x", "outer"); /* captured by one branch only */
    onnx_simple(&then_graph, "Add", "x w", "a");
    onnx_output(&then_graph, "a", ONNX_FLOAT);
    onnx_simple(&else_graph, "Mul", "outer w", "b");
    onnx_output(&else_graph, "b", ONNX_FLOAT);
    onnx_attr_graph(&node, "then_branch", &then_graph);
    onnx_attr_graph(&node, "else_branch", &else_graph);
    onnx_put_node(&g, &node);
    onnx_output(&g, "y", ONNX_FLOAT);
    return g;
}

static void branches_capture_and_choose(void **state)
{
    (void)state;
    onnx_bytes g = branches(-1);
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, "= if "));
    float x[2] = { 1, 2 };
    for (unsigned char c = 0; c < 2; c++) {
        qn_array in[2] = { array_of(QUERN_F32, 1, (int64_t[]){ 2 }, x), array_of(QUERN_BOOL, 0, NULL, &c) },
                 out;
        run(&m, in, &out);
        expect_floats(&out, 2, c ? (float[]){ 11, 22 } : (float[]){ -10, -40 });
    }
    drop(&m);
}

static void known_branches_dissolve(void **state)
{
    (void)state;
    for (int c = 0; c < 2; c++) {
        onnx_bytes g = branches(c);
        model m = load(&g, 18);
        assert_null(strstr(m.text, "= if "));
        assert_non_null(strstr(m.text, c ? "add" : "mul"));
        drop(&m);
    }
}

/* ---- Loop ---- */

/* Body: v' = v + x (x from outside), stacked: v'; go on: what `condition` computes from v' */
static onnx_bytes loop(const char *trips, const char *condition)
{
    onnx_bytes g = { 0 }, body = { 0 }, node = onnx_node("Loop", trips, "last all");
    int64_t five = 5;
    float start = 0, ten = 10;
    onnx_input(&g, "x", ONNX_FLOAT, "1");
    onnx_initializer(&g, "five", ONNX_INT64, 0, NULL, &five);
    onnx_initializer(&g, "start", ONNX_FLOAT, 1, (int64_t[]){ 1 }, &start);
    onnx_initializer(&g, "ten", ONNX_FLOAT, 0, NULL, &ten);
    onnx_input(&body, "i", ONNX_INT64, "");
    onnx_input(&body, "c", ONNX_BOOL, "");
    onnx_input(&body, "v", ONNX_FLOAT, "1");
    onnx_simple(&body, "Add", "v x", "v1");
    if (condition) {
        onnx_simple(&body, condition, "v1 ten", "less");
        int64_t none = 0;
        onnx_initializer(&body, "shape", ONNX_INT64, 1, &none, NULL);
        onnx_simple(&body, "Reshape", "less shape", "c1");
    } else {
        onnx_simple(&body, "Identity", "c", "c1");
    }
    onnx_simple(&body, "Identity", "v1", "row");
    onnx_output(&body, "c1", ONNX_BOOL);
    onnx_output(&body, "v1", ONNX_FLOAT);
    onnx_output(&body, "row", ONNX_FLOAT);
    onnx_attr_graph(&node, "body", &body);
    onnx_put_node(&g, &node);
    onnx_output(&g, "last", ONNX_FLOAT);
    onnx_output(&g, "all", ONNX_FLOAT);
    return g;
}

static void counted_loops_are_scans(void **state)
{
    (void)state;
    onnx_bytes g = loop("five - start", NULL);
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, "scan"));
    float x = 3;
    qn_array in = array_of(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out[2];
    run(&m, &in, out);
    expect_floats(&out[0], 1, (float[]){ 15 });
    expect_floats(&out[1], 5, (float[]){ 3, 6, 9, 12, 15 });
    drop(&m);
}

static void conditional_loops_stop_and_keep_their_rows(void **state)
{
    (void)state;
    onnx_bytes g = loop("five - start", "Less");
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, "while"));
    static const struct {
        float x, last;
        int n;
    } cases[] = { { 3, 12, 4 }, { 20, 20, 1 }, { 1, 5, 5 } };
    for (int i = 0; i < 3; i++) {
        float x = cases[i].x, rows[5];
        for (int k = 0; k < 5; k++)
            rows[k] = x * (float)(k + 1);
        qn_array in = array_of(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out[2];
        run(&m, &in, out);
        expect_floats(&out[0], 1, &cases[i].last);
        expect_floats(&out[1], cases[i].n, rows);
    }
    drop(&m);
}

/* v grows by a row each trip. */
static void loops_that_change_shape_are_spelled_out(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, body = { 0 }, node = onnx_node("Loop", "three - x", "y"),
               concat = onnx_node("Concat", "v f", "v1");
    int64_t three = 3, shape = 1;
    onnx_input(&g, "x", ONNX_FLOAT, "1");
    onnx_initializer(&g, "three", ONNX_INT64, 0, NULL, &three);
    onnx_input(&body, "i", ONNX_INT64, "");
    onnx_input(&body, "c", ONNX_BOOL, "");
    onnx_input(&body, "v", ONNX_FLOAT, "?");
    onnx_initializer(&body, "shape", ONNX_INT64, 1, (int64_t[]){ 1 }, &shape);
    onnx_simple(&body, "Reshape", "i shape", "i1");
    onnx_bytes cast = onnx_node("Cast", "i1", "f");
    onnx_attr_int(&cast, "to", ONNX_FLOAT);
    onnx_put_node(&body, &cast);
    onnx_attr_int(&concat, "axis", 0);
    onnx_put_node(&body, &concat);
    onnx_output(&body, "c", ONNX_BOOL);
    onnx_output(&body, "v1", ONNX_FLOAT);
    onnx_attr_graph(&node, "body", &body);
    onnx_put_node(&g, &node);
    onnx_output(&g, "y", ONNX_FLOAT);
    model m = load(&g, 18);
    assert_null(strstr(m.text, "while"));
    float x = 7;
    qn_array in = array_of(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out;
    run(&m, &in, &out);
    expect_floats(&out, 4, (float[]){ 7, 0, 1, 2 });
    drop(&m);
}

/* ---- Scan: running sums of columns, from the last one ---- */

static void scans_turn_their_axes(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, body = { 0 }, node = onnx_node("Scan", "zero x", "total sums");
    float zero[2] = { 0, 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2,3");
    onnx_initializer(&g, "zero", ONNX_FLOAT, 1, (int64_t[]){ 2 }, zero);
    onnx_input(&body, "s", ONNX_FLOAT, "2");
    onnx_input(&body, "column", ONNX_FLOAT, "2");
    onnx_simple(&body, "Add", "s column", "s1");
    onnx_simple(&body, "Identity", "s1", "y");
    onnx_output(&body, "s1", ONNX_FLOAT);
    onnx_output(&body, "y", ONNX_FLOAT);
    onnx_attr_graph(&node, "body", &body);
    onnx_attr_int(&node, "num_scan_inputs", 1);
    onnx_attr_ints(&node, "scan_input_axes", 1, (int64_t[]){ 1 });
    onnx_attr_ints(&node, "scan_input_directions", 1, (int64_t[]){ 1 });
    onnx_attr_ints(&node, "scan_output_axes", 1, (int64_t[]){ 1 });
    onnx_attr_ints(&node, "scan_output_directions", 1, (int64_t[]){ 1 });
    onnx_put_node(&g, &node);
    onnx_output(&g, "total", ONNX_FLOAT);
    onnx_output(&g, "sums", ONNX_FLOAT);
    model m = load(&g, 18);
    float x[6] = { 1, 2, 3, 10, 20, 30 };
    qn_array in = array_of(QUERN_F32, 2, (int64_t[]){ 2, 3 }, x), out[2];
    run(&m, &in, out);
    expect_floats(&out[0], 2, (float[]){ 6, 60 });
    expect_floats(&out[1], 6, (float[]){ 6, 5, 3, 60, 50, 30 });
    drop(&m);
}

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
    fill(x, STEPS * BATCH * IN, 1);
    fill(w, 4 * HIDDEN * IN, 2);
    fill(r, 4 * HIDDEN * HIDDEN, 3);
    fill(bias, 8 * HIDDEN, 4);
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
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, lengths ? "scan" : "= lstm"));
    for (int b = 0; lengths && b < BATCH; b++)
        narrow[b] = (int32_t)lengths[b];
    qn_array in[2] = { array_of(QUERN_F32, 3, (int64_t[]){ STEPS, BATCH, IN }, x),
                       array_of(QUERN_I32, 1, (int64_t[]){ BATCH }, narrow) },
             out;
    run(&m, in, &out);
    expect_floats(&out, STEPS * BATCH * HIDDEN, want);
    drop(&m);
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

/* ---- symbolic dimensions give what known ones give ---- */

typedef void (*add_nodes)(onnx_bytes *g);

static void compare_symbolic(add_nodes nodes, int64_t height, int64_t width)
{
    int64_t dims[4] = { 1, 2, height, width };
    int count = (int)(2 * height * width);
    float *x = malloc(sizeof *x * (size_t)count);
    fill(x, count, 5);
    qn_array in = array_of(QUERN_F32, 4, dims, x), out[2];
    model m[2];
    char known[64];
    snprintf(known, sizeof known, "1,2,%d,%d", (int)height, (int)width);
    for (int i = 0; i < 2; i++) {
        onnx_bytes g = { 0 };
        onnx_input(&g, "x", ONNX_FLOAT, i ? "n,2,h,w" : known);
        nodes(&g);
        onnx_output(&g, "y", ONNX_FLOAT);
        m[i] = load(&g, 18);
        run(&m[i], &in, &out[i]);
    }
    assert_int_equal(out[0].rank, out[1].rank);
    int n = 1;
    for (int i = 0; i < out[0].rank; i++) {
        assert_int_equal(out[0].dims[i], out[1].dims[i]);
        n *= (int)out[0].dims[i];
    }
    expect_floats(&out[1], n, out[0].data);
    drop(&m[0]);
    drop(&m[1]);
    free(x);
}

static void same_conv(onnx_bytes *g)
{
    float w[2 * 2 * 9];
    fill(w, 36, 6);
    onnx_initializer(g, "w", ONNX_FLOAT, 4, (int64_t[]){ 2, 2, 3, 3 }, w);
    onnx_bytes node = onnx_node("Conv", "x w", "y");
    onnx_attr_string(&node, "auto_pad", "SAME_UPPER");
    onnx_attr_ints(&node, "strides", 2, (int64_t[]){ 2, 1 });
    onnx_put_node(g, &node);
}

static void ceil_pool(onnx_bytes *g)
{
    onnx_bytes node = onnx_node("AveragePool", "x", "y");
    onnx_attr_ints(&node, "kernel_shape", 2, (int64_t[]){ 3, 2 });
    onnx_attr_ints(&node, "strides", 2, (int64_t[]){ 2, 2 });
    onnx_attr_ints(&node, "pads", 4, (int64_t[]){ 1, 0, 1, 0 });
    onnx_attr_int(&node, "ceil_mode", 1);
    onnx_put_node(g, &node);
}

static void resize(onnx_bytes *g, const char *mode, const char *transform)
{
    float scales[4] = { 1, 1, 1.5f, 2 };
    onnx_initializer(g, "scales", ONNX_FLOAT, 1, (int64_t[]){ 4 }, scales);
    onnx_bytes node = onnx_node("Resize", "x - scales", "y");
    onnx_attr_string(&node, "mode", mode);
    onnx_attr_string(&node, "coordinate_transformation_mode", transform);
    onnx_put_node(g, &node);
}

static void resize_nearest(onnx_bytes *g)
{
    resize(g, "nearest", "half_pixel");
}
static void resize_linear(onnx_bytes *g)
{
    resize(g, "linear", "pytorch_half_pixel");
}
static void resize_cubic(onnx_bytes *g)
{
    resize(g, "cubic", "half_pixel");
}
static void resize_corners(onnx_bytes *g)
{
    resize(g, "linear", "align_corners");
}

static void pad(onnx_bytes *g, const char *mode)
{
    onnx_ints(g, "pads", 8, (int64_t[]){ 0, 0, 2, 1, 0, 0, 1, -1 });
    onnx_bytes node = onnx_node("Pad", "x pads", "y");
    onnx_attr_string(&node, "mode", mode);
    onnx_put_node(g, &node);
}

static void pad_reflect(onnx_bytes *g)
{
    pad(g, "reflect");
}
static void pad_edge(onnx_bytes *g)
{
    pad(g, "edge");
}
static void pad_wrap(onnx_bytes *g)
{
    pad(g, "wrap");
}

static void backward_slice(onnx_bytes *g)
{
    onnx_ints(g, "starts", 2, (int64_t[]){ -1, 3 });
    onnx_ints(g, "ends", 2, (int64_t[]){ INT64_MIN, 0 });
    onnx_ints(g, "axes", 2, (int64_t[]){ 3, 2 });
    onnx_ints(g, "steps", 2, (int64_t[]){ -2, -1 });
    onnx_simple(g, "Slice", "x starts ends axes steps", "y");
}

static void symbolic_and_known_dims_agree(void **state)
{
    (void)state;
    static const add_nodes cases[] = {
        same_conv,   ceil_pool, resize_nearest, resize_linear,  resize_cubic,
        pad_reflect, pad_edge,  pad_wrap,       backward_slice, resize_corners
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        compare_symbolic(cases[i], 6, 5);
        compare_symbolic(cases[i], 7, 8);
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
    model m = load(&g, 18);
    qn_array x = array_of(QUERN_F32, 2, (int64_t[]){ 2, 0 }, NULL), y;
    run(&m, &x, &y);
    assert_int_equal(y.dims[0], 2);
    assert_int_equal(y.dims[1], 0);
    drop(&m);
}

/* Extents that an operator needs to be equal become one symbol, or a number. */
static void operators_settle_symbols(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    float w[10] = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "a,b");
    onnx_input(&g, "y", ONNX_FLOAT, "c,d");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, (int64_t[]){ 5, 2 }, w);
    onnx_simple(&g, "MatMul", "x y", "p");
    onnx_simple(&g, "MatMul", "p w", "z");
    onnx_output(&g, "z", ONNX_FLOAT);
    model m = load(&g, 18);
    qn_value **in = m.module->functions[0]->inputs;
    assert_ptr_equal(in[0]->type.dims[1], in[1]->type.dims[0]);
    assert_true(qn_dim_is(in[1]->type.dims[1], 5));
    drop(&m);
}

/* ---- sequences, functions, integers ---- */

static void sequences_dissolve(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    int64_t two = 2, zero = 0;
    onnx_input(&g, "x", ONNX_FLOAT, "5");
    onnx_initializer(&g, "two", ONNX_INT64, 0, NULL, &two);
    onnx_initializer(&g, "zero", ONNX_INT64, 0, NULL, &zero);
    onnx_simple(&g, "SplitToSequence", "x two", "s"); /* 2, 2, 1 */
    onnx_simple(&g, "SequenceAt", "s two", "last");
    onnx_simple(&g, "SequenceInsert", "s last zero", "t");
    onnx_simple(&g, "SequenceErase", "t two", "u"); /* without the second pair */
    onnx_bytes node = onnx_node("ConcatFromSequence", "u", "y");
    onnx_attr_int(&node, "axis", 0);
    onnx_put_node(&g, &node);
    onnx_output(&g, "y", ONNX_FLOAT);
    model m = load(&g, 18);
    float x[5] = { 1, 2, 3, 4, 5 };
    qn_array in = array_of(QUERN_F32, 1, (int64_t[]){ 5 }, x), out;
    run(&m, &in, &out);
    expect_floats(&out, 4, (float[]){ 5, 1, 2, 5 });
    drop(&m);
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
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, "dtype = i32"));
    qn_array in[4] = { array_of(QUERN_U8, 2, (int64_t[]){ ROWS, DEPTH }, x),
                       array_of(QUERN_I8, 2, (int64_t[]){ DEPTH, COLUMNS }, y),
                       array_of(QUERN_U8, 1, (int64_t[]){ ROWS }, x_zero),
                       array_of(QUERN_I8, 1, (int64_t[]){ COLUMNS }, y_zero) },
             out;
    run(&m, in, &out);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            int sum = 0;
            for (int k = 0; k < DEPTH; k++)
                sum += (x[i * DEPTH + k] - x_zero[i]) * (y[k * COLUMNS + j] - y_zero[j]);
            assert_int_equal(((int32_t *)out.data)[i * COLUMNS + j], sum);
        }
    drop(&m);
}

/* ---- Gradient ---- */

/* The values named xs (and zs, with commas between, or NULL) as functions of which y is differentiated, at the inputs. */
static void put_gradient(onnx_bytes *g, const char *inputs, const char *outputs, const char *const *lists,
                         const char *y)
{
    static const char *const names[2] = { "xs", "zs" };
    onnx_bytes node = onnx_node("Gradient", inputs, outputs);
    onnx_put_string(&node, 7, "ai.onnx.preview.training");
    for (int i = 0; i < 2; i++) {
        onnx_bytes attribute = { 0 };
        if (!lists[i])
            continue;
        onnx_put_string(&attribute, 1, names[i]);
        for (const char *at = lists[i]; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ','))
            onnx_put_bytes(&attribute, 9, at, strcspn(at, ","));
        onnx_put_int(&attribute, 20, 8);
        onnx_put_message(&node, 5, &attribute);
    }
    onnx_attr_string(&node, "y", y);
    onnx_put_node(g, &node);
}

/* y = tanh(a b) a */
static onnx_bytes product(void)
{
    onnx_bytes g = { 0 };
    onnx_input(&g, "a", ONNX_FLOAT, "3");
    onnx_input(&g, "b", ONNX_FLOAT, "3");
    onnx_input(&g, "p", ONNX_FLOAT, "3");
    onnx_simple(&g, "Mul", "a b", "ab");
    onnx_simple(&g, "Tanh", "ab", "t");
    onnx_simple(&g, "Mul", "t a", "y");
    return g;
}

static void gradients_are_taken_where_the_inputs_say(void **state)
{
    (void)state;
    float a[3] = { 0.5f, -1, 2 }, b[3] = { 1, 0.25f, -0.5f }, p[3] = { -0.3f, 0.7f, 1.5f }, da[3], db[3],
          dp[3], second[3];
    onnx_bytes g = product();
    put_gradient(&g, "a b", "da db", (const char *[]){ "a,b", NULL }, "y");
    put_gradient(&g, "p b", "dp", (const char *[]){ "a", "b" }, "y");
    put_gradient(&g, "a", "second", (const char *[]){ "a", NULL }, "da");
    const char *const names[] = { "da", "db", "dp", "second" };
    for (int i = 0; i < 4; i++)
        onnx_output(&g, names[i], ONNX_FLOAT);
    model m = load(&g, 18);
    const int64_t three = 3;
    const qn_array inputs[3] = { array_of(QUERN_F32, 1, &three, a), array_of(QUERN_F32, 1, &three, b),
                                 array_of(QUERN_F32, 1, &three, p) };
    qn_array outputs[4];
    for (int i = 0; i < 3; i++) {
        const float t = tanhf(a[i] * b[i]), d = 1 - t * t, u = tanhf(p[i] * b[i]);
        da[i] = t + a[i] * b[i] * d;
        db[i] = a[i] * a[i] * d;
        dp[i] = u + p[i] * b[i] * (1 - u * u);
        second[i] = 2 * b[i] * d - 2 * a[i] * b[i] * b[i] * t * d;
    }
    run(&m, inputs, outputs);
    expect_floats(&outputs[0], 3, da);
    expect_floats(&outputs[1], 3, db);
    expect_floats(&outputs[2], 3, dp);
    expect_floats(&outputs[3], 3, second);
    assert_int_equal(m.module->n_functions, 1);
    drop(&m);
}

static void expect_no_gradient(const char *inputs, const char *xs, const char *y, const char *message)
{
    onnx_bytes g = product();
    onnx_initializer(&g, "two", ONNX_FLOAT, 0, NULL, &(float){ 2 });
    put_gradient(&g, inputs, "d", (const char *[]){ xs, NULL }, y);
    onnx_output(&g, "d", ONNX_FLOAT);
    model m = try_load(&g, 18);
    const char *text = qn_diags_text(&m.diags, m.arena);
    if (m.module || !strstr(text, message) ||
        !strstr(text, "Gradient#3 (ai.onnx.preview.training.Gradient, opset 1)"))
        fail_msg("not \"%s\" but \"%s\"", message, text);
    drop(&m);
}

static void impossible_gradients_are_explained(void **state)
{
    (void)state;
    expect_no_gradient("a", "a", "z", "\"z\" is no tensor that is defined before this node");
    expect_no_gradient("a b", "a", "y", "an input for each of xs and zs");
    expect_no_gradient("two", "two", "y", "\"two\" is a constant");
    expect_no_gradient("two", "a", "y", "input 0 has not the type of what it stands for");
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
        model m = load(&g, 21);
        qn_array y;
        assert_non_null(strstr(m.text, is_unsigned ? ": u4[5]" : ": i4[5]"));
        run(&m, NULL, &y);
        expect_floats(&y, 5, expected[is_unsigned]);
        drop(&m);
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
    model m = load(&g, 18);
    unsigned char mask[] = { 0, 1, 1, 0 };
    float x[] = { 1, 2, 3, 4 }, updates[] = { 10, 20, 30, 40 };
    const int64_t square[] = { 2, 2 }, four[] = { 4 };
    qn_array in[] = { array_of(QUERN_F32, 2, square, x), array_of(QUERN_BOOL, 2, square, mask),
                      array_of(QUERN_F32, 1, four, updates) },
             y;
    run(&m, in, &y);
    expect_floats(&y, 4, (float[]){ 1, 10, 20, 4 });
    drop(&m);
}

/* Shapes that are put together element by element. */
static void dims_are_scattered(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "n,1");
    onnx_input(&g, "like", ONNX_FLOAT, "m");
    onnx_initializer(&g, "last", ONNX_INT64, 1, (int64_t[]){ 1 }, (int64_t[]){ -1 });
    onnx_simple(&g, "Shape", "x", "from");
    onnx_simple(&g, "Shape", "like", "width");
    onnx_simple(&g, "ScatterElements", "from last width", "shape");
    onnx_simple(&g, "Expand", "x shape", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    model m = load(&g, 18);
    assert_non_null(strstr(m.text, "f32[n, m]"));
    drop(&m);
}

/* How often to repeat, as PyTorch's exporter writes repeat_interleave: OneHot(axis, rank, [1, times]). How large a grid is: sqrt by
 * Pow, of a number that is a node's. */
static void what_constants_make_is_known(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, one_hot = onnx_node("OneHot", "at rank values", "times"),
               cast = onnx_node("Cast", "side", "sides");
    onnx_input(&g, "x", ONNX_FLOAT, "n,1");
    onnx_ints(&g, "at", 1, (int64_t[]){ 1 });
    onnx_ints(&g, "rank", 1, (int64_t[]){ 2 });
    onnx_ints(&g, "values", 2, (int64_t[]){ 1, 9 });
    onnx_ints(&g, "flat", 1, (int64_t[]){ -1 });
    onnx_initializer(&g, "nine", ONNX_FLOAT, 0, NULL, (float[]){ 9 });
    onnx_initializer(&g, "half", ONNX_FLOAT, 0, NULL, (float[]){ .5F });
    onnx_put_node(&g, &one_hot);
    onnx_simple(&g, "Reshape", "times flat", "repeats");
    onnx_simple(&g, "Tile", "x repeats", "wide");
    onnx_simple(&g, "Pow", "nine half", "side");
    onnx_attr_int(&cast, "to", ONNX_INT64);
    onnx_put_node(&g, &cast);
    onnx_ints(&g, "axis", 1, (int64_t[]){ 0 });
    onnx_simple(&g, "Unsqueeze", "sides axis", "row");
    onnx_simple(&g, "Shape", "x", "shape");
    onnx_simple(&g, "Gather", "shape axis", "batch");
    onnx_simple(&g, "Identity", "row", "column");
    onnx_bytes join = onnx_node("Concat", "batch row column", "grid");
    onnx_attr_int(&join, "axis", 0);
    onnx_put_node(&g, &join);
    onnx_simple(&g, "Reshape", "wide grid", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    model m = load(&g, 17);
    assert_non_null(strstr(m.text, "f32[n, 3, 3]"));
    drop(&m);
}

/* Rows [8 - n, 7 + n) of a table, as encodings of relative positions are cut: there are rows for n up to 8, and such n are what the
 * model takes. A grid of 2 n n elements says that n is not as large as any int. */
static void slices_bound_their_symbols(void **state)
{
    (void)state;
    float table[15];
    onnx_bytes g = { 0 };
    fill(table, 15, 1);
    onnx_input(&g, "x", ONNX_FLOAT, "n,n");
    onnx_initializer(&g, "table", ONNX_FLOAT, 1, (int64_t[]){ 15 }, table);
    onnx_ints(&g, "zero", 1, (int64_t[]){ 0 });
    onnx_ints(&g, "two", 1, (int64_t[]){ 2 });
    onnx_ints(&g, "eight", 1, (int64_t[]){ 8 });
    onnx_ints(&g, "seven", 1, (int64_t[]){ 7 });
    onnx_simple(&g, "Shape", "x", "shape");
    onnx_simple(&g, "Gather", "shape zero", "n");
    onnx_simple(&g, "Sub", "eight n", "from");
    onnx_simple(&g, "Add", "seven n", "to");
    onnx_simple(&g, "Slice", "table from to", "y");
    onnx_simple(&g, "Mul", "n two", "twice");
    onnx_simple(&g, "Mul", "twice n", "count");
    onnx_bytes join = onnx_node("Concat", "x x", "both");
    onnx_attr_int(&join, "axis", 0);
    onnx_put_node(&g, &join);
    onnx_simple(&g, "Reshape", "both count", "z");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_output(&g, "z", ONNX_FLOAT);
    model m = load(&g, 17);
    const qn_dim n = qn_dim_find_symbol(m.module->dims, "n");
    assert_int_equal(n->max, 8);
    float x[9] = { 0 };
    qn_array in = array_of(QUERN_F32, 2, (int64_t[]){ 3, 3 }, x), out[2];
    run(&m, &in, out);
    expect_floats(&out[0], 5, table + 5);
    drop(&m);
}

/* How many elements are found is nobody's to say: messages don't ask for it. */
static void only_dims_of_inputs_are_asked_for(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "4");
    onnx_ints(&g, "last", 1, (int64_t[]){ 1 });
    onnx_simple(&g, "NonZero", "x", "at");
    onnx_simple(&g, "Shape", "at", "shape");
    onnx_simple(&g, "Gather", "shape last", "count");
    onnx_simple(&g, "Unsqueeze", "at count", "y");
    onnx_output(&g, "y", ONNX_INT64);
    model m = try_load(&g, 17);
    const char *text = qn_diags_text(&m.diags, m.arena);
    assert_null(m.module);
    assert_non_null(strstr(text, "must be constant"));
    assert_null(strstr(text, "it would do to fix"));
    drop(&m);
}

/* Training may change parameters, so that a shape made of one is found by the run. */
static void what_parameters_make_is_not_known(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, most = onnx_node("ArgMax", "w", "at");
    onnx_input(&g, "x", ONNX_FLOAT, "1,1");
    onnx_initializer(&g, "w", ONNX_FLOAT, 1, (int64_t[]){ 3 }, (float[]){ 1, 2, 3 });
    onnx_ints(&g, "two", 1, (int64_t[]){ 2 });
    onnx_put_node(&g, &most);
    onnx_bytes join = onnx_node("Concat", "at two", "shape");
    onnx_attr_int(&join, "axis", 0);
    onnx_put_node(&g, &join);
    onnx_simple(&g, "Expand", "x shape", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    model m = try_load(&g, 18);
    assert_non_null(m.module);
    const qn_type *y = &m.module->functions[0]->outputs[0]->type;
    assert_string_equal(qn_type_print(y, m.arena), "f32[length, 2]");
    assert_int_equal(y->dims[0]->max, 3);
    drop(&m);
}

/* torch.stft is exported with a signal of two axes. */
static void real_signals_need_no_last_axis(void **state)
{
    (void)state;
    float x[8], all[2][20];
    fill(x, 8, 3);
    for (int flat = 0; flat < 2; flat++) {
        onnx_bytes g = { 0 };
        onnx_input(&g, "x", ONNX_FLOAT, flat ? "1,8" : "1,8,1");
        onnx_initializer(&g, "step", ONNX_INT64, 0, NULL, (int64_t[]){ 4 });
        onnx_initializer(&g, "length", ONNX_INT64, 0, NULL, (int64_t[]){ 4 });
        onnx_initializer(&g, "window", ONNX_FLOAT, 1, (int64_t[]){ 4 }, (float[]){ .5F, 1, 1, .5F });
        onnx_simple(&g, "STFT", "x step window length", "y");
        onnx_output(&g, "y", ONNX_FLOAT);
        model m = load(&g, 17);
        qn_array in = array_of(QUERN_F32, flat ? 2 : 3, (int64_t[]){ 1, 8, 1 }, x), y;
        run(&m, &in, &y);
        assert_int_equal(y.rank, 4);
        assert_int_equal(y.dims[1] * y.dims[2] * y.dims[3], 2 * 3 * 2);
        memcpy(all[flat], y.data, 12 * sizeof(float));
        drop(&m);
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
    model m = load(&g, 18);
    qn_array x = array_of(QUERN_F32, 3, (int64_t[]){ 3, 0, 0 }, NULL), y;
    run(&m, &x, &y);
    expect_floats(&y, 3, (float[]){ 1, 1, 1 });
    drop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(branches_capture_and_choose),
        cmocka_unit_test(known_branches_dissolve),
        cmocka_unit_test(counted_loops_are_scans),
        cmocka_unit_test(conditional_loops_stop_and_keep_their_rows),
        cmocka_unit_test(loops_that_change_shape_are_spelled_out),
        cmocka_unit_test(scans_turn_their_axes),
        cmocka_unit_test(lstm_is_the_textbook_cell),
        cmocka_unit_test(symbolic_and_known_dims_agree),
        cmocka_unit_test(nothing_reversed_is_nothing),
        cmocka_unit_test(operators_settle_symbols),
        cmocka_unit_test(sequences_dissolve),
        cmocka_unit_test(gradients_are_taken_where_the_inputs_say),
        cmocka_unit_test(impossible_gradients_are_explained),
        cmocka_unit_test(zero_points_come_out_of_the_sums),
        cmocka_unit_test(weights_of_four_bits),
        cmocka_unit_test(updates_are_as_many_as_indices),
        cmocka_unit_test(dims_are_scattered),
        cmocka_unit_test(what_constants_make_is_known),
        cmocka_unit_test(slices_bound_their_symbols),
        cmocka_unit_test(only_dims_of_inputs_are_asked_for),
        cmocka_unit_test(what_parameters_make_is_not_known),
        cmocka_unit_test(real_signals_need_no_last_axis),
        cmocka_unit_test(determinants_of_empty_matrices),
    };
    return cmocka_run_group_tests_name("onnx_run", tests, NULL, NULL);
}
