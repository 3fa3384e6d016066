/* See linear.h. */
#include "tests/support/linear.h"

#include "backends/backend.h"
#include "quern.h"

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
    quern_model *model = NULL;
    quern_session *session = NULL;
    const quern_compile_options options = {
        .size = sizeof options, .cpu = cpu, .precision = precision, .cache = ""
    };
    const quern_array in = { QUERN_F32, 2, (int64_t[]){ m, k }, (void *)(uintptr_t)x },
                      result = { QUERN_F32, 2, (int64_t[]){ m, n }, out };
    int status = quern_builder_finish(b, &module);
    if (status)
        return status;
    status = quern_compile(module, &options, &model);
    quern_module_free(module);
    if (!status)
        status = quern_session_new(model, NULL, &session);
    if (!status)
        status = quern_session_bind(session, 0, &in);
    if (!status)
        status = quern_session_bind(session, 1, &result);
    if (!status)
        status = quern_session_run(session);
    quern_session_free(session);
    quern_model_free(model);
    return status;
}
