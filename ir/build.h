/* One function for each op, on top of qn_node_new. Each gives the (first) result, or NULL after reporting a mistake;
 * a NULL operand gives NULL without a further report, so a chain needs one check at its end. */
#ifndef QN_IR_BUILD_H
#define QN_IR_BUILD_H

#include "ir/graph.h"

typedef struct qn_builder {
    qn_graph *graph;
    qn_node *before; /* insertion point; NULL: at the end */
    qn_loc loc;      /* given to what is built */
    qn_diags *diags;
} qn_builder;

static inline qn_dims *qn_b_dims(const qn_builder *b)
{
    return b->graph->module->dims;
}

/* leaves */
qn_value *qn_b_constant(qn_builder *b, const qn_tensor *tensor);
qn_value *qn_b_scalar(qn_builder *b, qn_dtype dtype,
                      double value); /* rank 0; value exact in dtype or rounded */
qn_value *qn_b_scalar_int(qn_builder *b, qn_dtype dtype, int64_t value);
qn_value *qn_b_ints(qn_builder *b, int n, const int64_t *values);      /* i64[n] constant */
qn_value *qn_b_full(qn_builder *b, const qn_type *type, double value); /* broadcast of a scalar */
qn_value *qn_b_iota(qn_builder *b, const qn_type *type, int axis);
qn_value *qn_b_dim_value(qn_builder *b, qn_dtype dtype, qn_dim dim); /* rank 0 */

/* collectives (passes keep their order) */
qn_value *qn_b_all_reduce(qn_builder *b, qn_kind kind, qn_value *x);
qn_value *qn_b_all_gather(qn_builder *b, qn_value *x, int64_t ranks);
qn_value *qn_b_reduce_scatter(qn_builder *b, qn_kind kind, qn_value *x, int64_t ranks);
qn_value *qn_b_broadcast_rank(qn_builder *b, qn_value *x, int64_t root);
qn_value *qn_b_rank(qn_builder *b); /* i64 scalar */

/* text (passes keep their order); separator: the number of a string, -1: white space; most: -1: any number */
qn_value *qn_b_text_concat(qn_builder *b, qn_value *x, qn_value *y);
qn_value *qn_b_text_case(qn_builder *b, qn_value *x, bool upper);
qn_value *qn_b_text_count(qn_builder *b, qn_value *x, int64_t separator, int64_t most);
qn_value *qn_b_text_split(qn_builder *b, qn_value *x, int64_t separator, int64_t most, qn_dim k);
qn_value *qn_b_text_match(qn_builder *b, qn_value *x, qn_value *table);
qn_value *qn_b_text_parse(qn_builder *b, qn_dtype dtype, qn_value *x);
qn_value *qn_b_text_print(qn_builder *b, qn_value *x);

/* element-wise: operands of equal dims; *_bcast first broadcast their operands as NumPy does */
qn_value *qn_b_unary(qn_builder *b, qn_op op, qn_value *x);
qn_value *qn_b_binary(qn_builder *b, qn_op op, qn_value *x, qn_value *y);
qn_value *qn_b_binary_bcast(qn_builder *b, qn_op op, qn_value *x, qn_value *y);
qn_value *qn_b_compare(qn_builder *b, qn_direction direction, qn_value *x, qn_value *y);
qn_value *qn_b_compare_bcast(qn_builder *b, qn_direction direction, qn_value *x, qn_value *y);
qn_value *qn_b_select(qn_builder *b, qn_value *condition, qn_value *x, qn_value *y);
qn_value *qn_b_select_bcast(qn_builder *b, qn_value *condition, qn_value *x, qn_value *y);
qn_value *qn_b_convert(qn_builder *b, qn_dtype dtype, qn_value *x); /* x itself when it has that dtype */
qn_value *qn_b_bitcast(qn_builder *b, qn_dtype dtype, qn_value *x);
/* x op scalar constant of x's dtype */
qn_value *qn_b_binary_scalar(qn_builder *b, qn_op op, qn_value *x, double y);

/* movement */
qn_value *qn_b_broadcast(qn_builder *b, qn_value *x, int rank, const qn_dim *dims, const int64_t *axes);
qn_value *qn_b_broadcast_to(qn_builder *b, qn_value *x, int rank,
                            const qn_dim *dims); /* NumPy: aligned at the last axis; x itself when equal */
/* NumPy's common dims of n shapes; false (with a report) when they do not fit. out has room for QN_MAX_RANK. */
bool qn_b_broadcast_dims(qn_builder *b, int n, qn_value *const *values, int *out_rank, qn_dim *out_dims);
qn_value *qn_b_reshape(qn_builder *b, qn_value *x, int rank, const qn_dim *dims); /* x itself when equal */
qn_value *qn_b_transpose(qn_builder *b, qn_value *x, const int64_t *perm); /* x itself for the identity */
qn_value *qn_b_expand_dims(qn_builder *b, qn_value *x, int axis);          /* a reshape */
qn_value *qn_b_squeeze(qn_builder *b, qn_value *x, int axis);
qn_value *qn_b_slice(qn_builder *b, qn_value *x, const qn_dim *start, const qn_dim *limit,
                     const int64_t *stride); /* stride NULL: 1 */
qn_value *qn_b_slice_axis(qn_builder *b, qn_value *x, int axis, qn_dim start, qn_dim limit);
qn_value *qn_b_pad(qn_builder *b, qn_value *x, qn_value *value, const qn_dim *low, const qn_dim *high,
                   const int64_t *interior); /* interior NULL: 0 */
qn_value *qn_b_concatenate(qn_builder *b, int n, qn_value *const *xs, int axis);
/* Channel lanes[i] of all operands' blocks, one behind the other, at lane i % c of block i / c; -1: 0 */
qn_value *qn_b_gather_packed(qn_builder *b, int n, qn_value *const *xs, int n_lanes, const int64_t *lanes);
qn_value *qn_b_reverse(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes);
qn_value *qn_b_dynamic_slice(qn_builder *b, qn_value *x, qn_value *const *starts, const qn_dim *sizes);
qn_value *qn_b_dynamic_update_slice(qn_builder *b, qn_value *x, qn_value *update, qn_value *const *starts);
qn_value *qn_b_gather(qn_builder *b, qn_value *x, qn_value *indices, int axis);
qn_value *qn_b_gather_nd(qn_builder *b, qn_value *x, qn_value *indices, int batch_dims);
qn_value *qn_b_gather_elements(qn_builder *b, qn_value *x, qn_value *indices, int axis);
qn_value *qn_b_scatter_nd(qn_builder *b, qn_kind kind, qn_value *x, qn_value *indices, qn_value *updates);
qn_value *qn_b_scatter_elements(qn_builder *b, qn_kind kind, qn_value *x, qn_value *indices,
                                qn_value *updates, int axis);

/* reductions */
qn_value *qn_b_reduce(qn_builder *b, qn_kind kind, qn_value *x, int n_axes, const int64_t *axes,
                      bool keep_dims);
qn_value *qn_b_mean(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes, bool keep_dims);
qn_value *qn_b_arg_reduce(qn_builder *b, qn_kind kind, qn_value *x, int axis, bool last);
typedef struct qn_window { /* rank values each; NULL stride, dilation: 1; NULL low, high: 0 */
    const int64_t *window, *stride, *dilation, *low, *high;
} qn_window;
qn_value *qn_b_reduce_window(qn_builder *b, qn_kind kind, qn_value *x, const qn_window *window);
qn_value *qn_b_select_and_scatter(qn_builder *b, qn_value *x, qn_value *gradient, const qn_window *window);
qn_value *qn_b_cumulative(qn_builder *b, qn_kind kind, qn_value *x, int axis, bool exclusive, bool reverse);

/* contractions */
typedef struct qn_dot {
    int n_batch, n_contract;
    int64_t x_batch[QN_MAX_RANK], y_batch[QN_MAX_RANK], x_contract[QN_MAX_RANK], y_contract[QN_MAX_RANK];
} qn_dot;
qn_value *qn_b_dot_general(qn_builder *b, qn_value *x, qn_value *y, const qn_dot *dot,
                           qn_dtype result);                    /* QUERN_INVALID_DTYPE: as x */
qn_value *qn_b_matmul(qn_builder *b, qn_value *x, qn_value *y); /* NumPy matmul, batch dims broadcast */
/* The same with a result dtype, as dot_general takes it. */
qn_value *qn_b_matmul_to(qn_builder *b, qn_value *x, qn_value *y, qn_dtype result);
qn_value *qn_b_matmul_packed(qn_builder *b, qn_value *x, qn_value *y, int batch_dims, qn_dim n,
                             qn_dtype result); /* QUERN_INVALID_DTYPE: as x */
/* y of four bits or bytes with a scale; zeros may be NULL, and so may the factors of x's groups. */
qn_value *qn_b_matmul_packed_scaled(qn_builder *b, qn_value *x, qn_value *y, qn_value *scale, qn_value *zeros,
                                    qn_value *factors, int batch_dims, qn_dim n);
typedef struct qn_conv { /* per spatial axis */
    const int64_t *stride, *low, *high, *x_dilation, *w_dilation;
    int64_t groups;
} qn_conv;
qn_value *qn_b_convolution(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv);
/* The same, phase by phase of x_dilation where these are few and, if extents are symbols, never empty: elements of the result of
 * one remainder by it meet every s-th element of the kernel alone, so they are a convolution of x, without zeros in between,
 * with these. A kernel as large as the spread gives each element a tile of its own, and is one product. */
qn_value *qn_b_convolution_in_phases(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv);
/* The same with a result dtype, as dot_general takes it. */
qn_value *qn_b_convolution_to(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, qn_dtype result);
/* In blocks; x_dilation is not read. */
/* Groups across blocks: of `out_channels` each. Of one group, so many: weights of those behind are 0. */
qn_value *qn_b_conv_packed_across(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv,
                                  int64_t channels, int64_t out_channels);
qn_value *qn_b_conv_packed(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, int64_t channels);
qn_value *qn_b_conv_packed_to(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, int64_t channels,
                              qn_dtype result);
/* By Winograd's F(t - 2, 3): u as qn_winograd_weights (ir/winograd.h) makes it; low and high have two each. */
qn_value *qn_b_conv_winograd(qn_builder *b, qn_value *x, qn_value *u, const int64_t *low,
                             const int64_t *high);

/* order */
qn_node *qn_b_sort(qn_builder *b, int n, qn_value *const *operands, int axis, bool descending);
qn_node *qn_b_top_k(qn_builder *b, qn_value *x, int axis, qn_dim k, bool largest);
qn_value *qn_b_extent(qn_builder *b, qn_value *x, qn_dim limit, qn_dim symbol);
qn_value *qn_b_require(qn_builder *b, qn_value *condition); /* of any dtype: not 0 */
qn_value *qn_b_non_zero(qn_builder *b, qn_value *x, qn_dim count);
/* least may be NULL */
qn_value *qn_b_suppress(qn_builder *b, qn_value *scores, qn_value *boxes, qn_value *limit, qn_value *overlap,
                        qn_value *least, qn_dim k, bool centre);

/* random: bits use one block of offset per four elements; uniform draws a word an element (f64: two), normal twice that */
qn_value *qn_b_random_bits(qn_builder *b, qn_value *key, qn_value *offset, int rank, const qn_dim *dims);
qn_value *qn_b_random_uniform(qn_builder *b, qn_value *key, qn_value *offset,
                              const qn_type *type); /* [0, 1) */
qn_value *qn_b_random_normal(qn_builder *b, qn_value *key, qn_value *offset, const qn_type *type);

/* control */
qn_node *qn_b_if(qn_builder *b, qn_value *condition, int n_captured, qn_value *const *captured,
                 qn_graph *then_body, qn_graph *else_body);
qn_node *qn_b_while(qn_builder *b, int n_carried, int n_captured, qn_value *const *operands, qn_dim limit,
                    qn_graph *condition, qn_graph *body);
qn_node *qn_b_scan(qn_builder *b, int n_carried, int n_scanned, int n_captured, qn_value *const *operands,
                   qn_dim length, bool reverse, qn_graph *body);
qn_node *qn_b_call(qn_builder *b, const char *function, int n, qn_value *const *arguments);

/* composites */
qn_value *qn_b_softmax(qn_builder *b, qn_op op, qn_value *x, int axis); /* QN_OP_SOFTMAX, QN_OP_LOG_SOFTMAX */
qn_value *qn_b_layer_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, int axis,
                          double epsilon); /* bias may be NULL */
qn_value *qn_b_rms_norm(qn_builder *b, qn_value *x, qn_value *scale, int axis, double epsilon);
qn_value *qn_b_group_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, int64_t groups,
                          double epsilon);
/* [N, C, …] -> [N, groups, all of a group] */
qn_value *qn_b_groups(qn_builder *b, qn_value *x, int64_t groups);
qn_node *qn_b_batch_norm(qn_builder *b, qn_value *x, qn_value *scale, qn_value *bias, qn_value *mean,
                         qn_value *variance, double epsilon, double momentum, bool training);
qn_node *qn_b_dropout(qn_builder *b, qn_value *x, qn_value *key, qn_value *step, double ratio, bool training);
qn_value *qn_b_attention(qn_builder *b, qn_value *q, qn_value *k, qn_value *v, qn_value *mask, double scale,
                         bool causal); /* mask may be NULL */
qn_node *qn_b_attention_grad(qn_builder *b, qn_value *const *qkv, qn_value *gradient, qn_value *mask,
                             double scale, bool causal); /* likewise */
/* k as panels of [B, G, D, T]; the first `columns` of v. */
qn_value *qn_b_attention_packed(qn_builder *b, qn_value *q, qn_value *k, qn_value *v, qn_value *mask,
                                double scale, bool causal, qn_dim columns, bool heads_last);
/* [batch…, K, N] -> [batch…, panels, K, width]: column n in panel n / width at n % width, zeros past N */
qn_value *qn_b_panels(qn_builder *b, qn_value *x, int64_t width);
qn_value *qn_b_cross_entropy(qn_builder *b, qn_value *logits, qn_value *labels);
/* Labels for it that come from a user: negative ones, which would count from the end, become out of range. */
qn_value *qn_b_class_labels(qn_builder *b, qn_value *labels);
/* axis -1: scale and zero point are scalars; block 0: one per index of the axis */
/* x in the range of a narrow float, so that converting it gives the largest number for what is larger, infinity too. x itself
 * where dtype is none. */
qn_value *qn_b_saturate(qn_builder *b, qn_dtype dtype, qn_value *x);
qn_value *qn_b_quantize(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                        int64_t block);
qn_value *qn_b_dequantize(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                          int64_t block);
/* Weights: may what they are multiplied by be rounded to bytes? */
qn_value *qn_b_dequantize_weights(qn_builder *b, qn_value *x, qn_value *scale, qn_value *zero_point, int axis,
                                  int64_t block, bool byte_rows);
qn_node *qn_b_lstm(qn_builder *b, qn_value *x, qn_value *w, qn_value *r, qn_value *bias, qn_value *h0,
                   qn_value *c0, bool reverse);

/* ir/composites.c: builds the composite's expansion before `node` and gives its results (n_results of them).
 * This is the definition of the composite: the interpreter runs it. */
void qn_composite_expand(qn_node *node, qn_value **out_results, qn_diags *diags);

#endif
