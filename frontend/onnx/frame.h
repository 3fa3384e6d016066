/* A call of a model's function that is being inlined. */
#ifndef QN_FRONTEND_ONNX_FRAME_H
#define QN_FRONTEND_ONNX_FRAME_H

#include "frontend/onnx/import.h"

struct qn_onnx_frame {
    const qn_onnx_frame *outer; /* of the function that the call is in */
    const Onnx__Node *call;
    const Onnx__Function *function;
};

#endif
