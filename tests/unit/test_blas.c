/* Calls of OpenBLAS against the definition, over shapes, transpositions and blocks; models that use it, by threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "driver/blas.h"
#include "quern.h"

static void fill(void *data, bool is_double, int64_t n, unsigned *seed)
{
    for (int64_t i = 0; i < n; i++) {
        double value = (double)(rand_r(seed) % 2001 - 1000) / 1000;
        if (is_double)
            ((double *)data)[i] = value;
        else
            ((float *)data)[i] = (float)value;
    }
}

static void agrees_with_the_definition(void **state)
{
    (void)state;
    if (!qn_blas_open(false, NULL))
        skip();
    static const int64_t shapes[][4] = { /* batch, m, n, k */
                                         { 1, 1, 1, 1 },     { 3, 5, 7, 11 },    { 2, 128, 64, 32 },
                                         { 1, 129, 65, 33 }, { 2, 300, 40, 16 }, { 1, 4, 1200, 9 },
                                         { 1, 6, 6, 0 },     { 2, 0, 8, 8 },     { 1, 8, 0, 8 }
    };
    unsigned seed = 1;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int variant = 0; variant < 8; variant++) {
            const qn_library library = variant & 4 ? QN_LIBRARY_DGEMM : QN_LIBRARY_SGEMM;
            const bool is_double = library == QN_LIBRARY_DGEMM;
            const int64_t batch = shapes[s][0], m = shapes[s][1], n = shapes[s][2], k = shapes[s][3];
            const int64_t sizes[3] = { batch * m * k, batch * k * n, batch * m * n };
            void *data[4];
            for (int i = 0; i < 4; i++)
                data[i] = calloc((size_t)sizes[i < 2 ? i : 2] + 1, 8);
            fill(data[0], is_double, sizes[0], &seed);
            fill(data[1], is_double, sizes[1], &seed);
            fill(data[2], is_double, sizes[2], &seed); /* to be overwritten */
            int64_t args[4 + QN_GEMM_PARAMS] = { -1,
                                                 (intptr_t)data[0],
                                                 (intptr_t)data[1],
                                                 (intptr_t)data[2],
                                                 batch,
                                                 m,
                                                 n,
                                                 k,
                                                 variant & 1,
                                                 variant >> 1 & 1,
                                                 128,
                                                 m <= 128 ? 512 : INT32_MAX };
            const int64_t *p = args + 4;
            const int64_t columns = p[QN_GEMM_COLUMNS],
                          tasks = batch * ((m + 127) / 128) * ((n + columns - 1) / columns);
            for (int64_t task = tasks; task-- > 0;)
                qn_blas_functions[library](args, task);
            args[3] = (intptr_t)data[3];
            for (int64_t task = 0; task < tasks; task++)
                qn_interp_library(library, args, task);
            for (int64_t i = 0; i < sizes[2]; i++) {
                double is = is_double ? ((double *)data[2])[i] : (double)((float *)data[2])[i];
                double wanted = is_double ? ((double *)data[3])[i] : (double)((float *)data[3])[i];
                if (!(fabs(is - wanted) <= (is_double ? 1e-12 : 2e-5)))
                    fail_msg("shape %zu, variant %d, element %lld: %g instead of %g", s, variant,
                             (long long)i, is, wanted);
            }
            for (int i = 0; i < 4; i++)
                free(data[i]);
        }
}

/* ---- models ---- */

static const char model_text[] =
    "graph @main(%x: f32[n, 300], %w: f32[300, 200], %v: f32[200, 70]) -> (y: f32[n, 70], z: f64[n, n]) {\n"
    "  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, "
    "200]\n"
    "  %1 = tanh %0 : f32[n, 200]\n"
    "  %2 = dot_general %1, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, "
    "70]\n"
    "  %3 = convert %2 {dtype = f64} : f64[n, 70]\n"
    "  %4 = dot_general %3, %3 {x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]} : f64[n, n]\n"
    "  return %2, %4\n"
    "}\n";

enum { ROWS = 401 };

typedef struct results {
    float y[ROWS * 70];
    double z[ROWS * ROWS];
    int n_library_calls;
} results;

static void trace(void *user, const char *kernel, int begin)
{
    results *r = user;
    r->n_library_calls += begin && (!strcmp(kernel, "sgemm") || !strcmp(kernel, "dgemm"));
}

static void run_model(quern_module *module, const char *blas, const char *cpu, int threads, results *out)
{
    static float x[ROWS * 300], w[300 * 200], v[200 * 70];
    unsigned seed = 7;
    fill(x, false, ROWS * 300, &seed);
    fill(w, false, 300 * 200, &seed);
    fill(v, false, 200 * 70, &seed);
    quern_compile_options options = {
        .size = sizeof options, .blas = blas, .cpu = cpu, .threads = threads, .cache = ""
    };
    quern_model *model;
    quern_session *session;
    if (quern_compile(module, &options, &model))
        fail_msg("%s", quern_last_error());
    assert_int_equal(quern_session_new(model, NULL, &session), QUERN_OK);
    const quern_array arrays[] = {
        { .data = x, .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ ROWS, 300 } },
        { .data = w, .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ 300, 200 } },
        { .data = v, .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ 200, 70 } },
        { .data = out->y, .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ ROWS, 70 } },
        { .data = out->z, .dtype = QUERN_F64, .rank = 2, .dims = (int64_t[]){ ROWS, ROWS } },
    };
    for (int i = 0; i < 5; i++)
        assert_int_equal(quern_session_bind(session, i, &arrays[i]), QUERN_OK);
    out->n_library_calls = 0;
    quern_session_ctx(session)->trace = trace;
    quern_session_ctx(session)->trace_user = out;
    assert_int_equal(quern_session_run(session), QUERN_OK);
    quern_session_free(session);
    quern_model_free(model);
}

static void expect_close(const results *a, const results *b)
{
    for (int i = 0; i < ROWS * 70; i++)
        if (!(fabsf(a->y[i] - b->y[i]) <= 1e-4F))
            fail_msg("y[%d]: %g and %g", i, (double)a->y[i], (double)b->y[i]);
    for (int i = 0; i < ROWS * ROWS; i++)
        if (!(fabs(a->z[i] - b->z[i]) <= 1e-2))
            fail_msg("z[%d]: %g and %g", i, a->z[i], b->z[i]);
}

static void models_call_it(void **state)
{
    (void)state;
    quern_module *module;
    static results own, one, two, fallback;
    assert_int_equal(quern_load_bytes(model_text, strlen(model_text), NULL, &module), QUERN_OK);
    run_model(module, "none", NULL, 1, &own);
    assert_int_equal(own.n_library_calls, 0);
    if (!qn_blas_open(false, NULL)) {
        quern_module_free(module);
        skip();
    }
    run_model(module, "openblas", NULL, 1, &one);
    run_model(module, "openblas", NULL, 2, &two);
    assert_int_equal(one.n_library_calls, 3);
    assert_int_equal(two.n_library_calls, 3);
    expect_close(&one, &own);
    assert_memory_equal(one.y, two.y, sizeof one.y); /* the same bits for any number of threads */
    assert_memory_equal(one.z, two.z, sizeof one.z);
    /* by itself only what there is no tuned kernel for: f64 */
    run_model(module, NULL, "x86-64-v3", 1, &fallback);
    assert_int_equal(fallback.n_library_calls, 1);
    expect_close(&fallback, &own);
    run_model(module, "auto", NULL, 2, &fallback);
    assert_int_equal(fallback.n_library_calls, 1);
    expect_close(&fallback, &own);
    quern_module_free(module);
}

static void refuses(void **state)
{
    (void)state;
    static const struct {
        const char *blas, *target, *math, *message;
    } cases[] = {
        { "mkl", NULL, NULL, "there is no blas 'mkl': auto, none or openblas" },
        { "openblas", "interp", NULL,
          "this target cannot call OpenBLAS: blas 'openblas' is for models that are compiled into this "
          "process for "
          "its CPU" },
        { "openblas", NULL, "strict",
          "OpenBLAS rounds in an order of its own: blas 'openblas' is not for math 'strict'" },
    };
    quern_module *module;
    quern_model *model;
    assert_int_equal(quern_load_bytes(model_text, strlen(model_text), NULL, &module), QUERN_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        quern_compile_options options = {
            .size = sizeof options, .blas = cases[i].blas, .target = cases[i].target, .math = cases[i].math
        };
        assert_int_equal(quern_compile(module, &options, &model), QUERN_ERROR_ARGUMENT);
        assert_string_equal(quern_last_error(), cases[i].message);
    }
    quern_compile_options options = { .size = sizeof options, .blas = "openblas" };
    quern_emit_options emit = { .size = sizeof emit };
    assert_int_equal(quern_compile_file(module, &options, &emit, "/nonexistent/x.so"), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "a file cannot call OpenBLAS"));
    quern_module_free(module);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_definition),
        cmocka_unit_test(models_call_it),
        cmocka_unit_test(refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
