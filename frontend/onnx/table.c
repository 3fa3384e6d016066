/* The list of operator families. */
#include <string.h>

#include "frontend/onnx/families.h"
#include "frontend/onnx/import.h"

static const qn_onnx_op *const families[] = {
#define FAMILY(name) qn_onnx_##name##_ops,
#include "frontend/onnx/families.def"
#undef FAMILY
};

const qn_onnx_op *qn_onnx_op_find(const char *domain, const char *name, int64_t opset, bool *out_other)
{
    *out_other = false;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (const qn_onnx_op *op = families[i]; op->name; op++) {
            if (op->name[0] != name[0] || strcmp(op->name, name) ||
                strcmp(op->domain ? op->domain : "", domain))
                continue;
            if (opset >= op->min && (!op->max || opset <= op->max))
                return op;
            *out_other = true;
        }
    return NULL;
}
