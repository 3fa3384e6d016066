/* Convolution as other families use it. */
#ifndef QN_FRONTEND_ONNX_CONV_H
#define QN_FRONTEND_ONNX_CONV_H

#include "frontend/onnx/import.h"

/* x by weights w [O, I/groups, k…], with the node's attributes; NULL after a report. */
qn_value *qn_onnx_convolve(qn_onnx_node *n, qn_value *x, qn_value *w);
/* Input i, one number per channel, as [C, 1, …] to combine with [N, C, …] of that rank; NULL after a report. */
qn_value *qn_onnx_per_channel(qn_onnx_node *n, int i, int rank);

#endif
