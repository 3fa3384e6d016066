/* Imported control flow, run by the interpreter: If, Loop, Scan, and sequences that dissolve. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/onnx_run.h"
#include "tests/support/onnx_writer.h"

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
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, "= if "));
    float x[2] = { 1, 2 };
    for (unsigned char c = 0; c < 2; c++) {
        qn_array in[2] = { onnx_array(QUERN_F32, 1, (int64_t[]){ 2 }, x),
                           onnx_array(QUERN_BOOL, 0, NULL, &c) },
                 out;
        onnx_run(&m, in, &out);
        onnx_expect_floats(&out, 2, c ? (float[]){ 11, 22 } : (float[]){ -10, -40 });
    }
    onnx_drop(&m);
}

static void known_branches_dissolve(void **state)
{
    (void)state;
    for (int c = 0; c < 2; c++) {
        onnx_bytes g = branches(c);
        onnx_loaded m = onnx_load(&g, 18);
        assert_null(strstr(m.text, "= if "));
        assert_non_null(strstr(m.text, c ? "add" : "mul"));
        onnx_drop(&m);
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
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, "scan"));
    float x = 3;
    qn_array in = onnx_array(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out[2];
    onnx_run(&m, &in, out);
    onnx_expect_floats(&out[0], 1, (float[]){ 15 });
    onnx_expect_floats(&out[1], 5, (float[]){ 3, 6, 9, 12, 15 });
    onnx_drop(&m);
}

static void conditional_loops_stop_and_keep_their_rows(void **state)
{
    (void)state;
    onnx_bytes g = loop("five - start", "Less");
    onnx_loaded m = onnx_load(&g, 18);
    assert_non_null(strstr(m.text, "while"));
    static const struct {
        float x, last;
        int n;
    } cases[] = { { 3, 12, 4 }, { 20, 20, 1 }, { 1, 5, 5 } };
    for (int i = 0; i < 3; i++) {
        float x = cases[i].x, rows[5];
        for (int k = 0; k < 5; k++)
            rows[k] = x * (float)(k + 1);
        qn_array in = onnx_array(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out[2];
        onnx_run(&m, &in, out);
        onnx_expect_floats(&out[0], 1, &cases[i].last);
        onnx_expect_floats(&out[1], cases[i].n, rows);
    }
    onnx_drop(&m);
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
    onnx_loaded m = onnx_load(&g, 18);
    assert_null(strstr(m.text, "while"));
    float x = 7;
    qn_array in = onnx_array(QUERN_F32, 1, (int64_t[]){ 1 }, &x), out;
    onnx_run(&m, &in, &out);
    onnx_expect_floats(&out, 4, (float[]){ 7, 0, 1, 2 });
    onnx_drop(&m);
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
    onnx_loaded m = onnx_load(&g, 18);
    float x[6] = { 1, 2, 3, 10, 20, 30 };
    qn_array in = onnx_array(QUERN_F32, 2, (int64_t[]){ 2, 3 }, x), out[2];
    onnx_run(&m, &in, out);
    onnx_expect_floats(&out[0], 2, (float[]){ 6, 60 });
    onnx_expect_floats(&out[1], 6, (float[]){ 6, 5, 3, 60, 50, 30 });
    onnx_drop(&m);
}

/* ---- sequences ---- */

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
    onnx_loaded m = onnx_load(&g, 18);
    float x[5] = { 1, 2, 3, 4, 5 };
    qn_array in = onnx_array(QUERN_F32, 1, (int64_t[]){ 5 }, x), out;
    onnx_run(&m, &in, &out);
    onnx_expect_floats(&out, 4, (float[]){ 5, 1, 2, 5 });
    onnx_drop(&m);
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
        cmocka_unit_test(sequences_dissolve),
    };
    return cmocka_run_group_tests_name("onnx_control", tests, NULL, NULL);
}
