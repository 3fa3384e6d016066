/* Files mapped for as long as an arena lives. */
#ifndef QN_FRONTEND_ONNX_MAP_H
#define QN_FRONTEND_ONNX_MAP_H

#include "ir/diag.h"
#include <stdint.h>

typedef struct qn_onnx_mapping {
    const uint8_t *data; /* never NULL */
    size_t size;
} qn_onnx_mapping;

/* Read-only; unmapped when the arena is freed. Regular files only. */
QN_MUST_USE qn_status qn_onnx_map(const char *path, qn_arena *arena, const qn_loc *loc, qn_diags *diags,
                                  qn_onnx_mapping *out);

#endif
