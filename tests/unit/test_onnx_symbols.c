/* Imported models over symbols, run by the interpreter: against known extents, and what is known of shapes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/onnx_run.h"
#include "tests/support/onnx_writer.h"

/* ---- symbolic dimensions give what known ones give ---- */

typedef void (*add_nodes)(onnx_bytes *g);

static void compare_symbolic(add_nodes nodes, int64_t height, int64_t width)
{
    int64_t dims[4] = { 1, 2, height, width };
    int count = (int)(2 * height * width);
    float *x = malloc(sizeof *x * (size_t)count);
    onnx_fill(x, count, 5);
    qn_array in = onnx_array(QUERN_F32, 4, dims, x), out[2];
    onnx_loaded m[2];
    char known[64];
    snprintf(known, sizeof known, "1,2,%d,%d", (int)height, (int)width);
    for (int i = 0; i < 2; i++) {
        onnx_bytes g = { 0 };
        onnx_input(&g, "x", ONNX_FLOAT, i ? "n,2,h,w" : known);
        nodes(&g);
        onnx_output(&g, "y", ONNX_FLOAT);
        m[i] = onnx_load(&g, 18);
        onnx_run(&m[i], &in, &out[i]);
    }
    assert_int_equal(out[0].rank, out[1].rank);
    int n = 1;
    for (int i = 0; i < out[0].rank; i++) {
        assert_int_equal(out[0].dims[i], out[1].dims[i]);
        n *= (int)out[0].dims[i];
    }
    onnx_expect_floats(&out[1], n, out[0].data);
    onnx_drop(&m[0]);
    onnx_drop(&m[1]);
    free(x);
}

static void same_conv(onnx_bytes *g)
{
    float w[2 * 2 * 9];
    onnx_fill(w, 36, 6);
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
    onnx_loaded m = onnx_load(&g, 18);
    qn_value **in = m.module->functions[0]->inputs;
    assert_ptr_equal(in[0]->type.dims[1], in[1]->type.dims[0]);
    assert_true(qn_dim_is(in[1]->type.dims[1], 5));
    onnx_drop(&m);
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
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, "f32[n, m]"));
    onnx_drop(&m);
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
    onnx_loaded m = onnx_load(&g, 17);
    assert_non_null(strstr(m.text, "f32[n, 3, 3]"));
    onnx_drop(&m);
}

/* Rows [8 - n, 7 + n) of a table, as encodings of relative positions are cut: there are rows for n up to 8, and such n are what the
 * model takes. A grid of 2 n n elements says that n is not as large as any int. */
static void slices_bound_their_symbols(void **state)
{
    (void)state;
    float table[15];
    onnx_bytes g = { 0 };
    onnx_fill(table, 15, 1);
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
    onnx_loaded m = onnx_load(&g, 17);
    const qn_dim n = qn_dim_find_symbol(m.module->dims, "n");
    assert_int_equal(n->max, 8);
    float x[9] = { 0 };
    qn_array in = onnx_array(QUERN_F32, 2, (int64_t[]){ 3, 3 }, x), out[2];
    onnx_run(&m, &in, out);
    onnx_expect_floats(&out[0], 5, table + 5);
    onnx_drop(&m);
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
    onnx_loaded m = onnx_try_load(&g, 17);
    const char *text = qn_diags_text(&m.diags, m.arena);
    assert_null(m.module);
    assert_non_null(strstr(text, "must be constant"));
    assert_null(strstr(text, "it would do to fix"));
    onnx_drop(&m);
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
    onnx_loaded m = onnx_try_load(&g, 18);
    assert_non_null(m.module);
    const qn_type *y = &m.module->functions[0]->outputs[0]->type;
    assert_string_equal(qn_type_print(y, m.arena), "f32[length, 2]");
    assert_int_equal(y->dims[0]->max, 3);
    onnx_drop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(symbolic_and_known_dims_agree),
        cmocka_unit_test(operators_settle_symbols),
        cmocka_unit_test(dims_are_scattered),
        cmocka_unit_test(what_constants_make_is_known),
        cmocka_unit_test(slices_bound_their_symbols),
        cmocka_unit_test(only_dims_of_inputs_are_asked_for),
        cmocka_unit_test(what_parameters_make_is_not_known),
    };
    return cmocka_run_group_tests_name("onnx_symbols", tests, NULL, NULL);
}
