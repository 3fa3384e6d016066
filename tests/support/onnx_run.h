/* Models that tests write (tests/support/onnx_writer.h), imported and run by the interpreter. */
#ifndef QN_TESTS_ONNX_RUN_H
#define QN_TESTS_ONNX_RUN_H

#include "backends/backend.h"
#include "frontend/onnx/onnx.h"
#include "tests/support/onnx_writer.h"

typedef struct onnx_loaded {
    onnx_bytes bytes;
    qn_arena *arena;
    qn_diags diags;
    qn_module *module;
    const char *text; /* the printed function */
} onnx_loaded;

/* What goes wrong fails the test; with `try` it is in diags, and there is no module. */
onnx_loaded onnx_load(onnx_bytes *graph, int64_t opset);
onnx_loaded onnx_try_load(onnx_bytes *graph, int64_t opset);
void onnx_drop(onnx_loaded *m);
/* Outputs are in its arena. */
void onnx_run(onnx_loaded *m, const qn_array *inputs, qn_array *outputs);

qn_array onnx_array(qn_dtype dtype, int rank, const int64_t *dims, void *data);
void onnx_fill(float *x, int n, int seed); /* with numbers of -11 / 7 to 11 / 7 */
void onnx_expect_floats(const qn_array *a, int n, const float *want);

#endif
