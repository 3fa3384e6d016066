/* Quantized numbers as other families use them. */
#ifndef QN_FRONTEND_ONNX_QUANT_H
#define QN_FRONTEND_ONNX_QUANT_H

#include "frontend/onnx/import.h"

/* Numbers as whole ones: (bytes - zero) * scale. */
typedef struct qn_onnx_quantized {
    qn_value *bytes, *scale,
        *zero; /* scale and zero are scalars, or one for each column of a matrix; zero NULL: 0 */
} qn_onnx_quantized;

/* What the bytes of input i stand for, by the scale at `scale` and the zero point behind it (0 when left out), which are scalars.
 * NULL after a report. */
qn_value *qn_onnx_dequantized(qn_onnx_node *n, int i, int scale);
/* x in bytes by the scale and zero point there; `dtype` is for a zero point that is left out. */
qn_value *qn_onnx_requantized(qn_onnx_node *n, qn_value *x, int scale, qn_dtype dtype);
/* u8, with a scale and zero point from the least and the largest number, widened to hold 0. */
qn_onnx_quantized qn_onnx_quantize_dynamic(qn_builder *b, qn_value *x);
/* f32 product of u8 or i8 [.., K] and [K, N]; NULL after a report. */
qn_value *qn_onnx_scaled_matmul(qn_onnx_node *n, const qn_onnx_quantized *x, const qn_onnx_quantized *y);

#endif
