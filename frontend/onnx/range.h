/* Between what numbers the values lie that a model computes, as extents want to know of them. */
#ifndef QN_FRONTEND_ONNX_RANGE_H
#define QN_FRONTEND_ONNX_RANGE_H

#include "frontend/onnx/import.h"

enum { QN_ONNX_MOST_STEPS = 256 }; /* that are followed for one number */

/* Bounds of all elements; also of floats. */
typedef struct qn_onnx_range {
    int64_t least; /* INT64_MIN: not known */
    qn_dim most;   /* NULL: not known, or more than memory could be planned by */
} qn_onnx_range;

/* Of a value of the scope. */
qn_onnx_range qn_onnx_range_of(const qn_onnx_scope *scope, qn_value *v);

/* The number that all elements of the value are, where it is a constant one. */
bool qn_onnx_constant_number(qn_value *v, double *out);
/* Element number `at` of a tensor. */
double qn_onnx_number_at(const qn_tensor *tensor, int64_t at);
/* What an input of the scope's region stands for, and that value's scope; NULL: it is no such input. */
qn_value *qn_onnx_captured_by(const qn_onnx_scope *scope, const qn_value *input, const qn_onnx_scope **out);

#endif
