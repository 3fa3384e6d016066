/* What a product of fewer bits is made of, for each precision: the parts of the pass quantize. */
#ifndef QN_PASSES_QUANTIZE_H
#define QN_PASSES_QUANTIZE_H

#include "ir/build.h"
#include "passes/passes.h"

/* A constant, or made of constants. */
bool qn_is_constant(const qn_value *value);
/* The axes of a dot_general, to build another with. */
qn_dot qn_dot_of(const qn_node *node);
/* What a convolution is told, likewise; its padding is put into `room`. */
typedef struct qn_conv_room {
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
} qn_conv_room;
qn_conv qn_conv_of(const qn_node *node, qn_conv_room *room);

/* pack.c: bytes with the other kind of sign, u8 or i8: 128 more or less. */
qn_value *qn_flip_bytes(qn_builder *b, qn_value *y);

/* Of the K of products of bf16 that the machine multiplies: those of one instruction. 0: it multiplies none. */
int qn_bf16_step(const qn_pass_options *options);

/* ---- quantize_int8.c ---- */

/* Is the dot_general or convolution faster with bytes? */
bool qn_int8_is_worth_it(const qn_node *node, const qn_machine *machine);
/* What replaces its result; NULL after a report. */
qn_value *qn_int8_product(qn_builder *b, const qn_node *node);
qn_value *qn_int8_convolution(qn_builder *b, const qn_node *node, const qn_machine *machine);

typedef struct qn_quantized {
    qn_value *bytes; /* i8 */
    qn_value *scale; /* by the free axes: bytes times it are about what was there */
} qn_quantized;
/* Rows (or columns) along the contracted axes. */
qn_quantized qn_quantize_bytes(qn_builder *b, qn_value *v, const qn_dot_side *side);

/* ---- quantize_int4.c ---- */

/* Columns [batch…, K, N] of float32 that may be kept in four bits. */
bool qn_int4_takes(const qn_value *y);
/* x [batch…, m…, K] times the columns, in panels of that width; NULL after a report. */
qn_value *qn_int4_product(qn_builder *b, qn_value *x, qn_value *w, int n_batch, int64_t width);
/* Replaces the products of few rows with weights that a dequantize node makes of constants of four bits. True: nobody else read
 * them, and the node is removed. */
bool qn_int4_take_products(qn_node *weights, const qn_pass_options *options, qn_diags *diags);

/* ---- pack.c ---- */

enum { QN_FEW_ROWS = 4 };
/* A product of few float32 rows with a constant: it only waits for its right side. */
bool qn_waits_for_memory(const qn_node *node, const qn_dot_side *x);

#endif
