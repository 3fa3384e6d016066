/* Any bytes as an ONNX model: they are refused with a message, or they are a valid module. What a host would learn of the
 * inputs, it answers: shapes of sequences, of optionals and of tensors. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "frontend/onnx/onnx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The needs are in the arena. */
static void load(const uint8_t *data, size_t size, int n_shapes, const quern_shape *shapes, qn_arena *arena,
                 qn_onnx_needs *out_needs)
{
    const qn_onnx_options options = {
        .n_shapes = n_shapes, .shapes = shapes, .needs = out_needs, .every_dim = true
    };
    qn_diags diags;
    qn_module *module;
    qn_diags_init(&diags, arena);
    if (qn_onnx_load_bytes(data, size, "fuzz.onnx", &options, &module, &diags)) {
        if (diags.n_errors == 0 || module)
            abort();
        return;
    }
    if (qn_verify(module, &diags)) {
        fprintf(stderr, "%s\n", qn_diags_text(&diags, arena));
        abort();
    }
    qn_module_free(module);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = { "([2], [n, 3])", "[n, n]" };
    qn_arena *arena = qn_arena_new();
    qn_onnx_needs needs = { 0 }, more = { 0 };
    load(data, size, 0, NULL, arena, &needs);
    for (size_t k = 0; needs.n_shapes && k < sizeof texts / sizeof *texts; k++) {
        quern_shape shapes[64]; /* no more inputs are told */
        for (int i = 0; i < needs.n_shapes; i++)
            shapes[i] = (quern_shape){ needs.shape_names[i], texts[k] };
        load(data, size, needs.n_shapes, shapes, arena, &more);
    }
    qn_arena_free(arena);
    return 0;
}
