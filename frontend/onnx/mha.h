/* What the attention operators of com.microsoft share. */
#ifndef QN_FRONTEND_ONNX_MHA_H
#define QN_FRONTEND_ONNX_MHA_H

#include "frontend/onnx/heads.h"

typedef struct qn_onnx_named {
    int index;
    const char *name;
} qn_onnx_named;

/* Refuses inputs that are given, and outputs that are wanted, by name. */
bool qn_onnx_refuse(qn_onnx_node *n, const qn_onnx_named *inputs, const qn_onnx_named *outputs);
bool qn_onnx_refuse_attribute(qn_onnx_node *n, const char *name);
/* Attribute num_heads or its like; 0 after a report. */
int64_t qn_onnx_head_count(qn_onnx_node *n, const char *attr);
/* x [B, S, W] cut along its last axis into q, k and v of these widths, in heads. */
bool qn_onnx_cut_heads(qn_onnx_node *n, qn_value *x, const qn_dim *widths, const int64_t *heads,
                       qn_value **out);
/* i64 [B, 1, 1, 1] of numbers [B] */
qn_value *qn_onnx_of_sequences(qn_onnx_node *n, qn_value *x, qn_dim batch);
/* The input, which may be left out, as a bias of the scores, [B or 1, H or 1, S, T]; false after a report. */
bool qn_onnx_attention_read_bias(qn_onnx_attention *a, int input);
/* Attribute scale, or what follows from the heads' size; false after a report. */
bool qn_onnx_attention_read_scale(qn_onnx_attention *a);

#endif
