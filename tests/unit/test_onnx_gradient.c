/* The operator Gradient in imported models, run by the interpreter. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/onnx_run.h"
#include "tests/support/onnx_writer.h"

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
    onnx_loaded m = onnx_load(&g, 18);
    const int64_t three = 3;
    const qn_array inputs[3] = { onnx_array(QUERN_F32, 1, &three, a), onnx_array(QUERN_F32, 1, &three, b),
                                 onnx_array(QUERN_F32, 1, &three, p) };
    qn_array outputs[4];
    for (int i = 0; i < 3; i++) {
        const float t = tanhf(a[i] * b[i]), d = 1 - t * t, u = tanhf(p[i] * b[i]);
        da[i] = t + a[i] * b[i] * d;
        db[i] = a[i] * a[i] * d;
        dp[i] = u + p[i] * b[i] * (1 - u * u);
        second[i] = 2 * b[i] * d - 2 * a[i] * b[i] * b[i] * t * d;
    }
    onnx_run(&m, inputs, outputs);
    onnx_expect_floats(&outputs[0], 3, da);
    onnx_expect_floats(&outputs[1], 3, db);
    onnx_expect_floats(&outputs[2], 3, dp);
    onnx_expect_floats(&outputs[3], 3, second);
    assert_int_equal(m.module->n_functions, 1);
    onnx_drop(&m);
}

static void expect_no_gradient(const char *inputs, const char *xs, const char *y, const char *message)
{
    onnx_bytes g = product();
    onnx_initializer(&g, "two", ONNX_FLOAT, 0, NULL, &(float){ 2 });
    put_gradient(&g, inputs, "d", (const char *[]){ xs, NULL }, y);
    onnx_output(&g, "d", ONNX_FLOAT);
    onnx_loaded m = onnx_try_load(&g, 18);
    const char *text = qn_diags_text(&m.diags, m.arena);
    if (m.module || !strstr(text, message) ||
        !strstr(text, "Gradient#3 (ai.onnx.preview.training.Gradient, opset 1)"))
        fail_msg("not \"%s\" but \"%s\"", message, text);
    onnx_drop(&m);
}

static void impossible_gradients_are_explained(void **state)
{
    (void)state;
    expect_no_gradient("a", "a", "z", "\"z\" is no tensor that is defined before this node");
    expect_no_gradient("a b", "a", "y", "an input for each of xs and zs");
    expect_no_gradient("two", "two", "y", "\"two\" is a constant");
    expect_no_gradient("two", "a", "y", "input 0 has not the type of what it stands for");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_taken_where_the_inputs_say),
        cmocka_unit_test(impossible_gradients_are_explained),
    };
    return cmocka_run_group_tests_name("onnx_gradient", tests, NULL, NULL);
}
