/* Attention over heads, and the rotation of heads, as operators of ONNX and of com.microsoft use them. */
#ifndef QN_FRONTEND_ONNX_HEADS_H
#define QN_FRONTEND_ONNX_HEADS_H

#include "frontend/onnx/import.h"

typedef struct qn_onnx_attention {
    qn_onnx_node *n;
    qn_value *q, *k, *v; /* [B, H, S, D], [B, G, T, D], [B, G, T, E] */
    qn_value *bias;      /* added to the scores, broadcastable to [B, H, S, T]; NULL: none */
    qn_value *
        first; /* position of the first query among the keys, i64 [B, 1, 1, 1], at most T - S; NULL: `past` */
    qn_dim past;
    bool causal;
    int64_t left, right; /* keys before a query's own position, and behind it, that it sees; -1: all */
    double scale, cap;   /* cap > 0: scores become cap * tanh(scores / cap) */
    qn_value *
        sink; /* [H]: a score of each head's that takes part in its softmax and stands for no key; NULL: none */
    qn_dtype precision; /* of the softmax; QUERN_INVALID_DTYPE: as the queries */
    bool keep_stages;
    qn_value *stages[4]; /* where they are kept: the scores, after the cap, after the bias, their softmax */
} qn_onnx_attention;

/* Without bias, window, cap and so on; reports and gives false where the inputs have no place in attention. Extents that have to
 * be equal become equal. */
bool qn_onnx_attention_init(qn_onnx_attention *a, qn_onnx_node *n, qn_value *q, qn_value *k, qn_value *v);
/* x of four axes or fewer as the scores are: an extent that may be 1 becomes what it stands for. */
qn_value *qn_onnx_attention_spread(const qn_onnx_attention *a, qn_value *x);
/* Added to the bias so far: a value broadcastable to [B, H, S, T], bool or of the queries' type. */
bool qn_onnx_attention_bias(qn_onnx_attention *a, qn_value *x);
/* 0 where allowed, else `otherwise`, is added to the bias so far. */
void qn_onnx_attention_allow(qn_onnx_attention *a, qn_value *allowed, double otherwise);
/* i64 [1, 1, 1, T]: the keys' numbers. */
qn_value *qn_onnx_attention_keys(const qn_onnx_attention *a);
/* [B, H, S, E]: the composite attention where it says the same. */
qn_value *qn_onnx_attend(qn_onnx_attention *a);

/* [B, S, heads * D] -> [B, heads, S, D], and back */
qn_value *qn_onnx_unpack_heads(qn_onnx_node *n, qn_value *x, int64_t heads);
qn_value *qn_onnx_pack_heads(qn_onnx_node *n, qn_value *x);
/* Keys or values behind those of before, [B, G, P, D]; past NULL: x itself. */
qn_value *qn_onnx_after_past(qn_onnx_node *n, qn_value *past, qn_value *x);
/* Each key head for its group of query heads: [B, G, T, D] -> [B, H, T, D]. */
qn_value *qn_onnx_repeat_heads(qn_onnx_node *n, qn_value *x, qn_dim heads);
/* [B, H, S, D] times [B, H, T, D] (transposed) or [B, H, D, E] */
qn_value *qn_onnx_matmul_heads(qn_builder *b, qn_value *x, qn_value *y, bool transposed);
/* Of [B, heads, ...] and [B, groups, ...]: does one say how many heads share a group? False after a report. */
bool qn_onnx_heads_known(qn_onnx_node *n, const qn_value *q, const qn_value *k);
/* 1 / sqrt of the heads' size, which must be known: 0 after a report. */
double qn_onnx_heads_scale(qn_onnx_node *n, const qn_value *q);

/* The first 2 * half elements of each head of x [B, H, S, D] turned by angles whose cosines and sines are [B or 1, 1, S, half]. An
 * element's partner is the next one (interleaved), or `half` behind. */
qn_value *qn_onnx_rotate(qn_onnx_node *n, qn_value *x, qn_value *cosine, qn_value *sine, bool interleaved);

#endif
