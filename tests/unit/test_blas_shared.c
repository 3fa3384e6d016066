/* OpenBLAS is opened only for models that need it, and one that the process uses already is left alone unless it is asked for.
 * In a process of its own: what is loaded stays. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quern.h"

static const char library[] = "libopenblas.so.0";

static bool is_loaded(void)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (handle)
        dlclose(handle);
    return handle != NULL;
}

static void count(void *user, const char *kernel, int begin)
{
    *(int *)user += begin && !strcmp(kernel, "dgemm");
}

/* How many products of a model the library does. */
static int library_calls(const char *text, int64_t size, const char *blas)
{
    quern_module *module;
    quern_model *model;
    quern_session *session;
    int n = 0;
    quern_compile_options options = { .size = sizeof options, .blas = blas, .cache = "" };
    assert_int_equal(quern_load_bytes(text, strlen(text), NULL, &module), QUERN_OK);
    if (quern_compile(module, &options, &model))
        fail_msg("%s", quern_last_error());
    assert_int_equal(quern_session_new(model, NULL, &session), QUERN_OK);
    quern_session_ctx(session)->trace = count;
    quern_session_ctx(session)->trace_user = &n;
    static double x[64 * 64]; /* for either type */
    const quern_array *like = &(quern_array){ .data = x,
                                              .dtype = strstr(text, "f64") ? QUERN_F64 : QUERN_F32,
                                              .rank = 2,
                                              .dims = (int64_t[]){ size, size } };
    assert_int_equal(quern_session_bind(session, 0, like), QUERN_OK);
    assert_int_equal(quern_session_run(session), QUERN_OK);
    quern_session_free(session);
    quern_model_free(model);
    quern_module_free(module);
    return n;
}

#define PRODUCT(dtype, n)                                                                                 \
    "graph @main(%x: " dtype "[" n ", " n "]) -> " dtype "[" n ", " n "] {\n"                             \
    "  %0 = dot_general %x, %x {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : " dtype \
    "[" n ", " n "]\n"                                                                                    \
    "  return %0\n}\n"

static void is_used_with_care(void **state)
{
    (void)state;
    if (is_loaded())
        skip(); /* something that this program is linked to uses it */
    assert_int_equal(library_calls(PRODUCT("f32", "64"), 64, NULL), 0);
    assert_int_equal(library_calls(PRODUCT("f64", "8"), 8, NULL), 0);
    assert_int_equal(library_calls(PRODUCT("f64", "64"), 64, "none"), 0);
    assert_false(is_loaded());
    if (!dlopen(library, RTLD_NOW))
        skip(); /* it isn't installed */
    assert_int_equal(library_calls(PRODUCT("f64", "64"), 64, NULL), 0);
    assert_int_equal(library_calls(PRODUCT("f64", "64"), 64, "openblas"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(is_used_with_care) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
