/* Any bytes as an ONNX model: they are refused with a message, or they are a valid module. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "frontend/onnx/onnx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *module;
    qn_diags_init(&diags, arena);
    if (qn_onnx_load_bytes(data, size, "fuzz.onnx", NULL, &module, &diags)) {
        if (diags.n_errors == 0 || module)
            abort();
    } else {
        if (qn_verify(module, &diags)) {
            fprintf(stderr, "%s\n", qn_diags_text(&diags, arena));
            abort();
        }
        qn_module_free(module);
    }
    qn_arena_free(arena);
    return 0;
}
