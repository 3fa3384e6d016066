#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "passes/autodiff.h"
#include "tests/support/onnx_run.h"

onnx_loaded onnx_try_load(onnx_bytes *graph, int64_t opset)
{
    const qn_onnx_options options = { .gradient = qn_gradient_at, .fold = qn_interp_fold };
    onnx_bytes training = { 0 };
    onnx_loaded m = { .bytes = onnx_model(graph, opset), .arena = qn_arena_new() };
    onnx_put_string(&training, 1, "ai.onnx.preview.training");
    onnx_put_int(&training, 2, 1);
    onnx_put_message(&m.bytes, 8, &training);
    qn_diags_init(&m.diags, m.arena);
    if (!qn_onnx_load_bytes(m.bytes.data, m.bytes.n, "m.onnx", &options, &m.module, &m.diags) &&
        qn_verify(m.module, &m.diags))
        fail_msg("%s", qn_diags_text(&m.diags, m.arena));
    return m;
}

onnx_loaded onnx_load(onnx_bytes *graph, int64_t opset)
{
    onnx_loaded m = onnx_try_load(graph, opset);
    if (!m.module)
        fail_msg("%s", qn_diags_text(&m.diags, m.arena));
    m.text = qn_graph_print(m.module->functions[0], m.arena);
    return m;
}

void onnx_drop(onnx_loaded *m)
{
    if (m->module)
        qn_module_free(m->module);
    qn_arena_free(m->arena);
    free(m->bytes.data);
}

qn_array onnx_array(qn_dtype dtype, int rank, const int64_t *dims, void *data)
{
    qn_array a = { .dtype = dtype, .rank = rank, .data = data };
    for (int i = 0; i < rank; i++)
        a.dims[i] = dims[i];
    return a;
}

void onnx_run(onnx_loaded *m, const qn_array *inputs, qn_array *outputs)
{
    if (qn_interp_run(m->module->functions[0], inputs, outputs, m->arena, &m->diags))
        fail_msg("%s", qn_diags_text(&m->diags, m->arena));
}

void onnx_expect_floats(const qn_array *a, int n, const float *want)
{
    int64_t count = 1;
    for (int i = 0; i < a->rank; i++)
        count *= a->dims[i];
    assert_int_equal(a->dtype, QUERN_F32);
    assert_int_equal(count, n);
    for (int i = 0; i < n; i++)
        if (!(fabsf(((const float *)a->data)[i] - want[i]) <= 1e-5f * (1 + fabsf(want[i]))))
            fail_msg("element %d is %g instead of %g", i, (double)((const float *)a->data)[i],
                     (double)want[i]);
}

void onnx_fill(float *x, int n, int seed)
{
    for (int i = 0; i < n; i++)
        x[i] = (float)((i * 37 + seed * 11) % 23 - 11) / 7;
}
