/* Activation functions that an attribute names. */
#ifndef QN_FRONTEND_ONNX_FUNCTIONS_H
#define QN_FRONTEND_ONNX_FUNCTIONS_H

#include "ir/build.h"

typedef struct qn_onnx_function {
    const char *name;
    bool takes_alpha, takes_beta;
    double alpha, beta; /* defaults */
} qn_onnx_function;

/* Letter case does not count; NULL when there is none of that name. */
const qn_onnx_function *qn_onnx_function_find(const char *name, size_t n);
qn_value *qn_onnx_function_apply(qn_builder *b, const qn_onnx_function *f, double alpha, double beta,
                                 qn_value *x);

#endif
