/* quern.h from C: models built by calls, loaded from memory, run; and the mistakes they report. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver/api.h"
#include "quern.h"

static const quern_compile_options interp = { .size = sizeof interp, .target = "interp" };

static quern_model *compile(quern_module *module)
{
    quern_model *model;
    if (quern_compile(module, &interp, &model))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    return model;
}

static quern_module *finish(quern_builder *b)
{
    quern_module *module;
    if (quern_builder_finish(b, &module))
        fail_msg("%s", quern_last_error());
    return module;
}

static void bind(quern_session *s, int index, int dtype, int rank, const int64_t *dims, void *data)
{
    quern_array array = { .dtype = dtype, .rank = rank, .dims = dims, .data = data };
    if (quern_session_bind(s, index, &array))
        fail_msg("%s", quern_last_error());
}

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })

/* Cross-entropy of a linear layer, by hand and by the model. */
static void builds_by_calls(void **state)
{
    (void)state;
    quern_builder *b = quern_builder_new("loss");
    quern_builder_seed(b, 7);
    quern_dim batch = QUERN_DIM("batch");
    quern_value *x = quern_input(b, "x", QUERN_F32, 2, (quern_dim[]){ batch, QUERN_N(3) });
    quern_value *y = quern_input(b, "y", QUERN_I64, 1, &batch);
    quern_value *logits = quern_linear(b, x, 2, "fc");
    quern_output(b, quern_cross_entropy(b, logits, y), "loss");
    quern_output(b, logits, "logits");
    quern_model *model = compile(finish(b));

    const quern_entry_info *entry = quern_model_entry(model, NULL);
    assert_string_equal(entry->name, "loss");
    assert_int_equal(entry->n_buffers, 6);
    assert_string_equal(entry->buffers[2].name, "fc.weight");
    assert_int_equal(entry->buffers[2].role, QUERN_STATE);
    assert_int_equal(entry->buffers[2].trainable, 1);
    assert_null(quern_model_entry(model, "infer"));

    quern_session *s;
    assert_int_equal(quern_session_new(model, "loss", &s), QUERN_OK);
    float in[2][3] = { { 1, 2, 3 }, { -1, 0, 1 } };
    int64_t labels[2] = { 1, 0 };
    bind(s, 0, QUERN_F32, 2, DIMS(2, 3), in);
    bind(s, 1, QUERN_I64, 1, DIMS(2), labels);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    quern_array weight, bias, loss;
    assert_int_equal(quern_session_get(s, 2, &weight), QUERN_OK);
    assert_int_equal(quern_session_get(s, 3, &bias), QUERN_OK);
    assert_int_equal(quern_session_get(s, 4, &loss), QUERN_OK);
    double expected = 0;
    for (int i = 0; i < 2; i++) {
        double z[2];
        for (int j = 0; j < 2; j++) {
            z[j] = ((float *)bias.data)[j];
            for (int k = 0; k < 3; k++)
                z[j] += in[i][k] * ((float *)weight.data)[2 * k + j];
        }
        expected += (log(exp(z[0]) + exp(z[1])) - z[labels[i]]) / 2;
    }
    assert_int_equal(loss.rank, 0);
    assert_float_equal(*(float *)loss.data, expected, 1e-5);
    for (int i = 0; i < 6; i++)
        assert_true(fabsf(((float *)weight.data)[i]) <= 1 / sqrtf(3));
    assert_true(((float *)weight.data)[0] != ((float *)weight.data)[1]);
    quern_session_free(s);
    quern_model_free(model);
}

static void builds_any_op(void **state)
{
    (void)state;
    quern_builder *b = quern_builder_new(NULL);
    quern_value *x = quern_input(b, "x", QUERN_F32, 2, (quern_dim[]){ QUERN_N(2), QUERN_N(3) });
    quern_value *top = quern_op(b, "top_k", 1, &x, "axis = 1, k = [2], largest = true");
    quern_value *indices = quern_result(b, top, 1);
    quern_value *one = quern_constant(b, QUERN_F32, 0, NULL, &(float){ 1 });
    quern_output(b, quern_relu(b, quern_sub(b, top, one)), "values");
    quern_output(b, indices, "indices");
    quern_output(b, quern_softmax(b, x, -1), NULL);
    quern_output(b, quern_mean(b, quern_div(b, quern_mul(b, x, x), quern_add(b, one, one))), NULL);
    quern_model *model = compile(finish(b));
    assert_string_equal(quern_model_entry(model, NULL)->name, "infer");
    quern_session *s;
    assert_int_equal(quern_session_new(model, NULL, &s), QUERN_OK);
    float in[6] = { 3, 1, 2, -5, 4, -6 };
    bind(s, 0, QUERN_F32, 2, DIMS(2, 3), in);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    quern_array values, found, softmax, mean;
    assert_int_equal(quern_session_get(s, 1, &values), QUERN_OK);
    assert_int_equal(quern_session_get(s, 2, &found), QUERN_OK);
    assert_int_equal(quern_session_get(s, 3, &softmax), QUERN_OK);
    assert_int_equal(quern_session_get(s, 4, &mean), QUERN_OK);
    assert_memory_equal(values.data, ((float[]){ 2, 1, 3, 0 }), 16);
    assert_memory_equal(found.data, ((int64_t[]){ 0, 2, 1, 0 }), 32);
    assert_float_equal(((float *)softmax.data)[0], 0.66524095, 1e-6);
    assert_float_equal(*(float *)mean.data, (9 + 1 + 4 + 25 + 16 + 36) / 12.0, 1e-5);
    quern_session_free(s);
    quern_model_free(model);
}

static void expect_mistake(quern_builder *b, const char *message)
{
    quern_module *module;
    assert_int_not_equal(quern_builder_finish(b, &module), QUERN_OK);
    assert_null(module);
    if (!strstr(quern_last_error(), message))
        fail_msg("\"%s\" is not in \"%s\"", message, quern_last_error());
}

static quern_builder *begin(quern_value **out_x)
{
    quern_builder *b = quern_builder_new("f");
    *out_x = quern_input(b, "x", QUERN_F32, 2, (quern_dim[]){ QUERN_N(2), QUERN_N(3) });
    return b;
}

static void reports_the_first_mistake(void **state)
{
    (void)state;
    quern_value *x;
    quern_builder *b = begin(&x);
    quern_value *bad = quern_matmul(b, x, x);
    assert_null(bad);
    assert_null(quern_relu(b, bad)); /* silently */
    quern_output(b, bad, "y");
    expect_mistake(b, "quern_matmul: ");

    b = begin(&x);
    quern_output(b, quern_op(b, "no_such_op", 1, &x, NULL), "y");
    expect_mistake(b, "quern_op \"no_such_op\": there is no such op");
    b = begin(&x);
    quern_output(b, quern_op(b, "softmax", 1, &x, "axis = "), "y");
    expect_mistake(b, "quern_op \"softmax\":1:8: ");
    b = begin(&x);
    quern_output(b, quern_op(b, "softmax", 1, &x, "axis = 1} : f32[2]"), "y");
    expect_mistake(b, "quern_op \"softmax\":1:");
    b = begin(&x);
    quern_output(b, quern_op(b, "softmax", 1, &x, "axis = 5"), "y");
    expect_mistake(b, "quern_op \"softmax\": ");
    b = begin(&x);
    quern_output(b, quern_op(b, "add", 1, &x, ""), "y");
    expect_mistake(b, "takes 2 to 2 operands, not 1");
    b = begin(&x);
    quern_output(b, quern_softmax(b, x, 2), "y");
    expect_mistake(b, "there is no axis 2");
    b = begin(&x);
    quern_output(b, quern_add(b, x, NULL), "y");
    expect_mistake(b, "quern_add: operand 1 is NULL");
    b = begin(&x);
    quern_input(b, "x", QUERN_F32, 0, NULL);
    expect_mistake(b, "quern_input: there is an input 'x' already");
    b = begin(&x);
    quern_input(b, "z", 77, 0, NULL);
    expect_mistake(b, "77 is no data type");
    b = begin(&x);
    quern_input(b, "z", QUERN_F32, 1, (quern_dim[]){ QUERN_DIM("") });
    expect_mistake(b, "the name of dimension 0 is empty");
    b = begin(&x);
    quern_param(b, "w", QUERN_F64, 3, DIMS(1 << 30, 1 << 30, 1 << 30), NULL);
    expect_mistake(b, "too large");
    b = begin(&x);
    quern_output(b, quern_linear(b, x, (int64_t)1 << 40, "l"), "y");
    expect_mistake(b, "quern_linear: no memory for a tensor of ");
    b = begin(&x);
    expect_mistake(b, "no output");
    quern_builder_free(begin(&x));
    quern_builder_free(NULL);
}

static const char text[] = "graph @main(%x: f32[n, 4]) -> f32[n, 4] {\n"
                           "  %0 = relu %x : f32[n, 4]\n"
                           "  return %0\n"
                           "}\n";

static void loads_and_fixes_dims(void **state)
{
    (void)state;
    quern_module *module;
    quern_dim_range n = { "n", 3, 3 };
    quern_load_options options = { .size = sizeof options, .n_dims = 1, .dims = &n };
    assert_int_equal(quern_load_bytes(text, strlen(text), &options, &module), QUERN_OK);
    char *printed;
    assert_int_equal(quern_module_text(module, &printed), QUERN_OK);
    assert_non_null(strstr(printed, "relu %x : f32[3, 4]"));
    quern_free(printed);
    quern_model *model = compile(module); /* the module is freed: the model keeps what it needs */
    assert_int_equal(quern_model_entry(model, "infer")->n_symbols, 0);
    quern_session *s;
    assert_int_equal(quern_session_new(model, NULL, &s), QUERN_OK);
    quern_array x, y;
    assert_int_equal(quern_session_get(s, 0, &x), QUERN_OK); /* the session's own memory, to be filled in */
    for (int i = 0; i < 12; i++)
        ((float *)x.data)[i] = (float)i - 6;
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_int_equal(quern_session_get(s, 1, &y), QUERN_OK);
    assert_float_equal(((float *)y.data)[11], 5, 0);
    assert_float_equal(((float *)y.data)[0], 0, 0);
    quern_session_free(s);
    quern_model_free(model);
}

static void refuses_bad_arguments(void **state)
{
    (void)state;
    quern_module *module;
    quern_model *model;
    assert_int_equal(quern_load(NULL, NULL, &module), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_load_bytes(NULL, 0, NULL, &module), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_load_bytes("", 0, NULL, &module), QUERN_ERROR_MODEL);
    assert_int_equal(quern_load("/does/not/exist", NULL, &module), QUERN_ERROR_IO);
    assert_non_null(strstr(quern_last_error(), "/does/not/exist"));
    assert_int_equal(quern_compile(NULL, NULL, &model), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_load_bytes(text, strlen(text), NULL, &module), QUERN_OK);
    quern_compile_options options = { .size = sizeof options, .target = "abacus" };
    assert_int_not_equal(quern_compile(module, &options, &model), QUERN_OK);
    assert_null(model);
    for (int optimize = -1; optimize <= 3; optimize++) {
        quern_compile_options o = { .size = sizeof o, .target = "interp", .optimize = optimize };
        const bool known = optimize >= 0 && optimize <= 2;
        assert_int_equal(quern_compile(module, &o, &model), known ? QUERN_OK : QUERN_ERROR_ARGUMENT);
        quern_model_free(model);
    }
    assert_string_equal(quern_last_error(),
                        "optimize cannot be 3: 0 (the default, which is 2), 1 (no fusion) or 2");
    quern_module_free(module);
    assert_int_equal(quern_load("", NULL, &module), QUERN_ERROR_IO);
    assert_string_equal(quern_last_error(), "'': cannot be read: No such file or directory");
    quern_module_free(NULL);
    quern_model_free(NULL);
    quern_session_free(NULL);
    assert_string_equal(quern_version(), "0.1.0");
}

static void is_told(int status, const char *message)
{
    assert_int_equal(status, QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), message);
}

/* Options whose size was forgotten would all be ignored. */
static void refuses_options_without_a_size(void **state)
{
    (void)state;
    quern_module *module, *none;
    quern_model *model;
    quern_trainer *trainer;
    const quern_load_options load = { .seed = 1 };
    const quern_compile_options compile = { .threads = 1 };
    const quern_train_options train = { .loss = "mse", .optimizer = "sgd", .learning_rate = 1 };
    is_told(quern_load_bytes(text, strlen(text), &load, &none),
            "quern_load_options.size is 0: set it to sizeof(quern_load_options)");
    assert_null(none);
    assert_int_equal(quern_load_bytes(text, strlen(text), NULL, &module), QUERN_OK);
    is_told(quern_compile(module, &compile, &model),
            "quern_compile_options.size is 0: set it to sizeof(quern_compile_options)");
    assert_null(model);
    is_told(quern_compile_file(module, NULL, &(quern_emit_options){ .emit = "qn" }, "none.qn"),
            "quern_emit_options.size is 0: set it to sizeof(quern_emit_options)");
    is_told(quern_tune(module, NULL, &(quern_tune_options){ .seconds = 1 }),
            "quern_tune_options.size is 0: set it to sizeof(quern_tune_options)");
    is_told(quern_make_training(module, &train),
            "quern_train_options.size is 0: set it to sizeof(quern_train_options)");
    is_told(quern_trainer_new(module, &train, NULL, &trainer),
            "quern_train_options.size is 0: set it to sizeof(quern_train_options)");
    assert_null(trainer);
    quern_module_free(module);
    quern_builder *b = quern_builder_new("main");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(2)));
    quern_output(b, quern_loss(b, "mse", x, x, &(quern_loss_options){ .reduction = "sum" }), "y");
    is_told(quern_builder_finish(b, &module),
            "quern_loss: quern_loss_options.size is 0: set it to sizeof(quern_loss_options)");
}

/* quern_session_find and _find_role give -1, and the call that is given that says what there is none of. */
static void says_which_buffer_is_missing(void **state)
{
    (void)state;
    const quern_array none = { .dtype = QUERN_F32 };
    quern_module *module;
    quern_model *model;
    quern_session *s;
    assert_int_equal(quern_load_bytes(text, strlen(text), NULL, &module), QUERN_OK);
    assert_int_equal(
        quern_compile(module,
                      &(quern_compile_options){ .size = sizeof(quern_compile_options), .target = "interp" },
                      &model),
        QUERN_OK);
    quern_module_free(module);
    assert_int_equal(quern_session_new(model, NULL, &s), QUERN_OK);
    is_told(quern_session_bind(s, quern_session_find(s, "X"), &none),
            "there is no buffer 'X': entry 'infer' has 2: x, output_0");
    is_told(quern_session_bind(s, quern_session_find_role(s, QUERN_INPUT, "y"), &none),
            "there is no input 'y': entry 'infer' has 2: x, output_0");
    is_told(quern_session_bind(s, 7, &none), "there is no buffer 7: entry 'infer' has 2: x, output_0");
    quern_session_free(s);
    quern_model_free(model);
}

typedef struct watch {
    pthread_t host;
    int calls, elsewhere;
    volatile int cancel;
    bool cancels; /* when kernels are compiled */
} watch;

static void watch_progress(void *user, const char *what, int done, int total)
{
    watch *w = user;
    assert_true(done >= 0 && done <= total);
    w->calls++;
    w->elsewhere += !pthread_equal(w->host, pthread_self());
    if (w->cancels && strcmp(what, "compiling kernels") == 0)
        w->cancel = 1;
}

/* A host that compiles while others run says how many threads that may take, and ends it. */
static void compiles_on_one_thread_and_is_cancelled(void **state)
{
    (void)state;
    static const char text[] = "graph @f(%x: f32[n], %i: i64[2]) -> (y: f32[n], z: f32[2], s: f32[]) {\n"
                               "  %0 = exp %x : f32[n]\n"
                               "  %1 = gather %0, %i {axis = 0} : f32[2]\n"
                               "  %2 = reduce %0 {kind = sum, axes = [0]} : f32[]\n"
                               "  return %0, %1, %2\n}\n";
    for (int cancels = 0; cancels <= 2; cancels++) {
        quern_module *module;
        quern_model *model;
        watch w = { .host = pthread_self(), .cancels = cancels == 1, .cancel = cancels == 2 };
        quern_compile_options o = { .size = sizeof o,
                                    .cache = "",
                                    .compile_threads = 1,
                                    .progress = watch_progress,
                                    .progress_user = &w,
                                    .cancel = &w.cancel };
        assert_int_equal(quern_load_bytes(text, strlen(text), NULL, &module), QUERN_OK);
        const int status = quern_compile(module, &o, &model);
        assert_int_equal(status, cancels ? QUERN_ERROR_CANCELLED : QUERN_OK);
        assert_int_equal(w.elsewhere, 0);
        assert_true(cancels == 2 ? w.calls == 1 : w.calls >= 2);
        if (cancels)
            assert_string_equal(quern_last_error(), "the compilation was cancelled");
        else
            quern_model_free(model);
        quern_module_free(module);
    }
}

static void clones_to_the_letter(void **state)
{
    (void)state;
    static const char all[] = "graph @f(%x: f32[n, 4], %w: f32[4] param = splat 2, %p: bool[]) -> (y: f32[n, "
                              "4], w: f32[4] alias %w) {\n"
                              "  %0 = broadcast %w {axes = [1], dims = [n, 4]} : f32[n, 4]\n"
                              "  %1 = if %p, %x, %0 : f32[n, 4]\n"
                              "  then(%a: f32[n, 4], %b: f32[n, 4]) {\n"
                              "    %2 = mul %a, %b : f32[n, 4]\n"
                              "    return %2\n"
                              "  }\n"
                              "  else(%a: f32[n, 4], %b: f32[n, 4]) {\n"
                              "    return %b\n"
                              "  }\n"
                              "  return %1, %w\n"
                              "}\n";
    quern_module *module;
    if (quern_load_bytes(all, strlen(all), NULL, &module))
        fail_msg("%s", quern_last_error());
    qn_arena *arena = qn_arena_new();
    qn_module *copy = qn_module_clone(module->ir, 0, NULL);
    const char *before = qn_module_print(module->ir, arena), *after = qn_module_print(copy, arena);
    assert_string_equal(before, after);
    qn_diags diags;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_verify(copy, &diags), QUERN_OK);
    quern_dim_range n = { "n", 7, 7 };
    qn_module *fixed = qn_module_clone(copy, 1, &n);
    assert_int_equal(qn_verify(fixed, &diags), QUERN_OK);
    assert_non_null(strstr(qn_module_print(fixed, arena), "mul %a, %b : f32[7, 4]"));
    qn_module_free(fixed);
    qn_module_free(copy);
    qn_arena_free(arena);
    quern_module_free(module);
}

/* Empty buffers need no address; others do, and say so before anything is touched. */
static void entries_want_what_is_not_empty(void **state)
{
    (void)state;
    static const char rows[] = "dims n: 0..\n"
                               "graph @main(%x: f32[n, 4], %b: f32[4]) -> f32[n, 4] {\n"
                               "  %0 = broadcast %b {axes = [1], dims = [n, 4]} : f32[n, 4]\n"
                               "  %1 = add %x, %0 : f32[n, 4]\n"
                               "  return %1\n"
                               "}\n";
    quern_module *module;
    quern_model *model = NULL;
    if (quern_load_bytes(rows, strlen(rows), NULL, &module) || quern_compile(module, NULL, &model))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    const quern_entry_info *entry = quern_model_entry(model, NULL);
    float x[2][4] = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } }, b[4] = { 1, 1, 1, 1 }, y[2][4] = { { 0 } };
    struct {
        void *x, *b, *y;
        int64_t n;
    } io = { NULL, b, NULL, 0 };
    void *workspace = aligned_alloc(64, 4096);
    assert_true(entry->workspace_bytes(&(int64_t){ 2 }) <= 4096);
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_OK);
    io.b = NULL;
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_ERROR_ARGUMENT);
    io.b = b;
    io.n = 2;
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_ERROR_ARGUMENT);
    io.x = x;
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_ERROR_ARGUMENT);
    io.y = y;
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_OK);
    assert_float_equal(y[1][3], 9, 0);
    free(workspace);
    quern_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builds_by_calls),
        cmocka_unit_test(builds_any_op),
        cmocka_unit_test(reports_the_first_mistake),
        cmocka_unit_test(loads_and_fixes_dims),
        cmocka_unit_test(refuses_bad_arguments),
        cmocka_unit_test(refuses_options_without_a_size),
        cmocka_unit_test(says_which_buffer_is_missing),
        cmocka_unit_test(clones_to_the_letter),
        cmocka_unit_test(entries_want_what_is_not_empty),
        cmocka_unit_test(compiles_on_one_thread_and_is_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
