/* Trained models as files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ir/dtype.h"
#include "quern.h"
#include "tests/support/folder.h"
#include "tests/support/ok.h"
#include "tests/support/onnx_writer.h"
#include "tests/support/train_model.h"

static quern_model *compile_only(quern_module *module)
{
    quern_model *model;
    const quern_compile_options compile = { .size = sizeof compile, .target = "interp" };
    ok(quern_compile(module, &compile, &model));
    quern_module_free(module);
    return model;
}

static quern_module *load_path(const char *path)
{
    quern_module *module;
    ok(quern_load(path, NULL, &module));
    return module;
}

static size_t size_of(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return (size_t)status.st_size;
}

static void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_true(f && fwrite(data, 1, n, f) == n && !fclose(f));
}

static void external_initializer(onnx_bytes *graph, const char *name, int n, const char *location, int offset)
{
    char number[16];
    onnx_bytes tensor = { 0 };
    onnx_put_int(&tensor, 1, n);
    onnx_put_int(&tensor, 2, ONNX_FLOAT);
    onnx_put_string(&tensor, 8, name);
    const char *entries[3][2] = { { "location", location }, { "offset", number }, { "length", number } };
    for (int i = 0; i < 3; i++) {
        onnx_bytes entry = { 0 };
        snprintf(number, sizeof number, "%d", i == 1 ? offset : 4 * n);
        onnx_put_string(&entry, 1, entries[i][0]);
        onnx_put_string(&entry, 2, entries[i][1]);
        onnx_put_message(&tensor, 13, &entry);
    }
    onnx_put_int(&tensor, 14, 1);
    onnx_put_message(graph, 5, &tensor);
}

/* y = (x w + b + v) d; w raw, b in float_data, v and d external, d is not trained */
static void trained_models_are_written_back(void **state)
{
    fixture *folder = *state;
    onnx_bytes g = { 0 }, typed = { 0 };
    float w[4] = { 1, 2, 3, 4 }, b[2] = { 0.5f, 0.25f }, files[6] = { 9, 9, -1, 1, 2, 4 };
    onnx_input(&g, "x", ONNX_FLOAT, "n,2");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, (int64_t[]){ 2, 2 }, w);
    onnx_put_int(&typed, 1, 2);
    onnx_put_int(&typed, 2, ONNX_FLOAT);
    onnx_put_bytes(&typed, 4, b, sizeof b);
    onnx_put_string(&typed, 8, "b");
    onnx_put_message(&g, 5, &typed);
    external_initializer(&g, "v", 2, "weights.bin", 8);
    external_initializer(&g, "d", 2, "weights.bin", 16);
    onnx_simple(&g, "MatMul", "x w", "p");
    onnx_simple(&g, "Add", "p b", "q");
    onnx_simple(&g, "Add", "q v", "r");
    onnx_simple(&g, "Mul", "r d", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    onnx_bytes model_bytes = onnx_model(&g, 18);
    write_file(in_folder(folder, "model.onnx"), model_bytes.data, model_bytes.n);
    write_file(in_folder(folder, "weights.bin"), files, sizeof files);
    free(model_bytes.data);

    quern_train_options options = sgd;
    options.params = (const char *const[]){ "w", "b", "v" };
    options.n_params = 3;
    options.learning_rate = 0.01;
    options.schedule = "host"; /* learning_rate is a state that the file has not */
    options.ema = 0.5;         /* as are w.ema, … */
    quern_model *model = train_model(load_path(in_folder(folder, "model.onnx")), &options, "interp", 1);
    quern_session *step = session_of(model, "train_step", NULL), *infer = session_of(model, "infer", step);
    float x[4] = { 1, 2, -1, 3 }, target[4] = { 0 }, expected[4], found[4];
    const int64_t dims[2] = { 2, 2 };
    bind_buffer(step, model, "train_step", "x", 2, dims, x, QUERN_F32);
    bind_buffer(step, model, "train_step", "target", 2, dims, target, QUERN_F32);
    bind_buffer(infer, model, "infer", "x", 2, dims, x, QUERN_F32);
    ok(quern_session_run(step));
    ok(quern_session_run(infer));
    memcpy(expected, floats_of(infer, model, "infer", "y"), sizeof expected);
    ok(quern_session_write_onnx(step, in_folder(folder, "model.onnx"), in_folder(folder, "trained.onnx"), 0));
    quern_session_free(infer);
    quern_session_free(step);
    quern_model_free(model);

    /* the new model stands alone */
    unlink(in_folder(folder, "weights.bin"));
    model = compile_only(load_path(in_folder(folder, "trained.onnx")));
    quern_session *again = session_of(model, "infer", NULL);
    bind_buffer(again, model, "infer", "x", 2, dims, x, QUERN_F32);
    ok(quern_session_run(again));
    memcpy(found, floats_of(again, model, "infer", "y"), sizeof found);
    assert_memory_equal(found, expected, sizeof found);
    quern_session_free(again);
    quern_model_free(model);

    /* written over itself, it is the same to the byte; what cannot be written leaves nothing */
    model = train_model(load_path(in_folder(folder, "trained.onnx")), &options, "interp", 1);
    step = session_of(model, "train_step", NULL);
    const size_t size = size_of(in_folder(folder, "trained.onnx"));
    assert_int_equal(quern_session_write_onnx(step, in_folder(folder, "trained.onnx"),
                                              in_folder(folder, "trained.onnx"), 0),
                     QUERN_OK);
    assert_int_equal(size_of(in_folder(folder, "trained.onnx")), size);
    assert_int_equal(quern_session_write_onnx(step, in_folder(folder, "trained.onnx"),
                                              in_folder(folder, "absent/t.onnx"), 0),
                     QUERN_ERROR_IO);
    quern_session_free(step);
    quern_model_free(model);
}

/* y = x w in f16: w is kept in f32, and rounded where it is written */
static void narrow_parameters_are_written_rounded(void **state)
{
    enum { ONNX_FLOAT16 = 10 };
    fixture *folder = *state;
    onnx_bytes g = { 0 };
    const uint16_t ones[2] = { 0x3c00, 0x3c00 }, x[2] = { 0x3c00, 0x4000 }; /* 1, 1; 1, 2 */
    onnx_bytes w = onnx_tensor("w", ONNX_FLOAT16, 2, (int64_t[]){ 2, 1 }, ones, sizeof ones);
    onnx_input(&g, "x", ONNX_FLOAT16, "1,2");
    onnx_put_message(&g, 5, &w);
    onnx_simple(&g, "MatMul", "x w", "y");
    onnx_output(&g, "y", ONNX_FLOAT16);
    onnx_bytes bytes = onnx_model(&g, 18);
    write_file(in_folder(folder, "model.onnx"), bytes.data, bytes.n);
    free(bytes.data);

    quern_train_options options = sgd;
    options.learning_rate = 0.01;
    quern_model *model = train_model(load_path(in_folder(folder, "model.onnx")), &options, "interp", 1);
    quern_session *step = session_of(model, "train_step", NULL);
    float target[1] = { 0 };
    bind_buffer(step, model, "train_step", "x", 2, (int64_t[]){ 1, 2 }, (void *)(uintptr_t)x, QUERN_F16);
    bind_buffer(step, model, "train_step", "target", 2, (int64_t[]){ 1, 1 }, target, QUERN_F32);
    ok(quern_session_run(step)); /* y = 3, the gradient of w is 2 y x */
    const float *learnt = floats_of(step, model, "train_step", "w");
    assert_float_equal(learnt[0], 1 - 0.06, 1e-6);
    assert_float_equal(learnt[1], 1 - 0.12, 1e-6);
    ok(quern_session_write_onnx(step, in_folder(folder, "model.onnx"), in_folder(folder, "trained.onnx"), 0));
    quern_session_free(step);
    quern_model_free(model);

    model = compile_only(load_path(in_folder(folder, "trained.onnx")));
    quern_session *again = session_of(model, "infer", NULL);
    bind_buffer(again, model, "infer", "x", 2, (int64_t[]){ 1, 2 }, (void *)(uintptr_t)x, QUERN_F16);
    ok(quern_session_run(again));
    quern_array y;
    assert_int_equal(quern_session_get(again, buffer_of(model, "infer", "y"), &y), QUERN_OK);
    assert_int_equal(*(uint16_t *)y.data, qn_f32_to_f16(qn_f16_to_f32(qn_f32_to_f16(0.94f)) +
                                                        2 * qn_f16_to_f32(qn_f32_to_f16(0.88f))));
    quern_session_free(again);
    quern_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(trained_models_are_written_back, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(narrow_parameters_are_written_rounded, setup_folder, teardown_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
