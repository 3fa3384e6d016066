/* What is a parameter of an imported model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"
#include "tests/support/onnx_writer.h"
#include "tests/support/train_model.h"

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
    quern_model *model = train_model(load_module(model_bytes, n), options, "interp", 1);
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
    quern_module *module = load_module(bytes.data, bytes.n);
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
    quern_module *module = load_module(text, strlen(text));
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
    quern_module *module = load_module(bytes.data, bytes.n);
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
    quern_model *model = train_model(load_module(bytes.data, bytes.n), &sgd, "cpu", 1);
    quern_session *step = session_of(model, "train_step", NULL);
    float x[16], target[12] = { 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0 }, before[12];
    for (int i = 0; i < 16; i++)
        x[i] = sinf((float)(3 * i));
    bind_buffer(step, model, "train_step", "x", 2, (int64_t[]){ 4, 4 }, x, QUERN_F32);
    bind_buffer(step, model, "train_step", "target", 2, (int64_t[]){ 4, 3 }, target, QUERN_F32);
    memcpy(before, floats_of(step, model, "train_step", "w"), sizeof before);
    ok(quern_session_run(step));
    const float *after = floats_of(step, model, "train_step", "w");
    for (int row = 0; row < 4; row++)
        assert_true(after[3 * row] != before[3 * row]);
    quern_session_free(step);
    quern_model_free(model);
    free(bytes.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_are_what_is_learnt),
        cmocka_unit_test(parameters_are_found_behind_settings),
        cmocka_unit_test(noted_parameters_and_buffers),
        cmocka_unit_test(tables_of_sines_are_not_learnt),
        cmocka_unit_test(parameters_in_front_of_what_has_no_gradient),
        cmocka_unit_test(recurrent_weights_are_learnt),
        cmocka_unit_test(unknown_parameters_are_named),
        cmocka_unit_test(what_is_cut_and_joined_is_learnt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
