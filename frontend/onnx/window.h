/* Windows over spatial axes: what convolutions and pools share. */
#ifndef QN_FRONTEND_ONNX_WINDOW_H
#define QN_FRONTEND_ONNX_WINDOW_H

#include "frontend/onnx/import.h"

typedef struct qn_onnx_window {
    int n; /* spatial axes: those after the first two */
    int64_t kernel[QN_MAX_RANK], stride[QN_MAX_RANK], dilation[QN_MAX_RANK];
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK]; /* padding, as declared or by auto_pad */
    qn_dim extra[QN_MAX_RANK];                  /* more at the end, for ceil_mode */
    qn_dim out[QN_MAX_RANK];
} qn_onnx_window;

/* Reads kernel_shape (or takes `kernel`, when not NULL), strides, dilations, pads, auto_pad, ceil_mode for an input of
 * that type. False after a report. */
bool qn_onnx_window_read(qn_onnx_node *n, const qn_type *x, const int64_t *kernel, qn_onnx_window *out);
/* All padding is constant: it can go into the op. Else the input has to be padded by an op of its own. */
bool qn_onnx_window_is_static(const qn_onnx_window *w);
/* The input with the window's padding in it; the padding becomes 0. */
qn_value *qn_onnx_window_pad(qn_onnx_node *n, qn_onnx_window *w, qn_value *x, qn_value *value);

#endif
