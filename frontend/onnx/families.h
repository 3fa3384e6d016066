/* The tables of operators; each ends with an entry without a name. */
#ifndef QN_FRONTEND_ONNX_FAMILIES_H
#define QN_FRONTEND_ONNX_FAMILIES_H

#include "frontend/onnx/import.h"

#define FAMILY(name) extern const qn_onnx_op qn_onnx_##name##_ops[];
#include "frontend/onnx/families.def"
#undef FAMILY

#endif
