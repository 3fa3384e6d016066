/* See linear.h. */
#include "tests/support/linear.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"

/* Those that this machine runs; NULL is itself. */
int host_cpus(const char *out[3])
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine = { 0 };
    const qn_target target = { .cpu = "native", .jit = true };
    qn_diags_init(&diags, arena);
    const bool wide =
        !qn_backend_cpu.describe(&target, arena, &machine, &diags) && machine.vector_bytes == 64;
    qn_arena_free(arena);
    out[0] = NULL;
    out[1] = "x86-64-v3";
    out[2] = "x86-64-v4";
    return wide ? 3 : 2;
}

int module_run(quern_module *module, const quern_compile_options *options, int n_inputs,
               const quern_array *inputs, float *out)
{
    quern_model *model = NULL;
    quern_session *session = NULL;
    quern_array result;
    int status = quern_compile(module, options, &model);
    quern_module_free(module);
    if (!status)
        status = quern_session_new(model, NULL, &session);
    for (int i = 0; i < n_inputs && !status; i++)
        status = quern_session_bind(session, i, &inputs[i]);
    if (!status)
        status = quern_session_run(session);
    if (!status)
        status = quern_session_get(session, n_inputs, &result);
    if (!status) {
        int64_t n = 1;
        for (int i = 0; i < result.rank; i++)
            n *= result.dims[i];
        memcpy(out, result.data, (size_t)n * sizeof *out);
    }
    quern_session_free(session);
    quern_model_free(model);
    return status;
}

int linear_run(const char *precision, const char *cpu, const int64_t *shape, const float *x, const float *w,
               const float *bias, float *out)
{
    const int64_t m = shape[0], k = shape[1], n = shape[2];
    quern_builder *b = quern_builder_new("f");
    const quern_dim dims[] = { { .value = m }, { .value = k } };
    quern_value *r = quern_matmul(b, quern_input(b, "x", QUERN_F32, 2, dims),
                                  quern_constant(b, QUERN_F32, 2, (int64_t[]){ k, n }, w));
    quern_output(b, quern_add(b, r, quern_constant(b, QUERN_F32, 1, (int64_t[]){ n }, bias)), "r");
    quern_module *module;
    const quern_compile_options options = {
        .size = sizeof options, .cpu = cpu, .precision = precision, .cache = ""
    };
    const quern_array in = { QUERN_F32, 2, (int64_t[]){ m, k }, (void *)(uintptr_t)x };
    const int status = quern_builder_finish(b, &module);
    return status ? status : module_run(module, &options, 1, &in, out);
}

void linear_is_exact(const char *precision, const char *cpu, const int64_t *shape, const float *x,
                     const float *w, const float *bias)
{
    const size_t n = (size_t)(shape[0] * shape[2]);
    float *found = calloc(n, sizeof *found), *expected = calloc(n, sizeof *expected);
    assert_true(found && expected);
    assert_int_equal(linear_run(precision, cpu, shape, x, w, bias, found), QUERN_OK);
    assert_int_equal(linear_run("f32", cpu, shape, x, w, bias, expected), QUERN_OK);
    assert_memory_equal(found, expected, n * sizeof *found);
    free(found);
    free(expected);
}
