/* What the files of the pass integer share. */
#ifndef QN_PASSES_INTEGER_H
#define QN_PASSES_INTEGER_H

#include "passes/quantize.h"

/* What a value is made of: (bytes - zero) * scale. */
typedef struct qn_integer {
    qn_value *bytes, *zero; /* u8 or i8; i32 */
    qn_value *scale;        /* f32; NULL: whole numbers */
    int axis;               /* of zero and scale, [extent of the axis]; -1: they are scalars */
} qn_integer;

/* What takes part in a result of whole numbers: the products of bytes, the sums of what is summed of each side (NULL where the
 * other has no zero point), and how many it is. */
typedef struct qn_integer_sums {
    qn_value *product, *of_x, *of_w;
    int64_t x_axes[QN_MAX_RANK], w_axes[QN_MAX_RANK]; /* of the result, that the sums have */
    qn_value *depth;
} qn_integer_sums;

/* What x is made, where w is made i8: what the machine multiplies. */
qn_dtype qn_integer_x_dtype(const qn_machine *machine);
/* The same numbers, of u8 or of i8. */
void qn_integer_make(qn_builder *b, qn_integer *q, qn_dtype dtype);
/* A whole number in every element, known before fold runs. */
bool qn_integer_is_whole(const qn_value *v, int64_t *out);
bool qn_integer_is_zero(const qn_value *zero);
/* i32 sums of bytes along some axes. */
qn_value *qn_integer_sum(qn_builder *b, qn_value *x, int n, const int64_t *axes, bool keep);
/* The result with zero points and scales; those of w lie along axis `w_axis` of it. */
qn_value *qn_integer_result(qn_builder *b, const qn_integer_sums *s, const qn_integer *x, const qn_integer *w,
                            int64_t w_axis);

/* ---- integer_conv.c ---- */

/* May a convolution be one of bytes? Its channels, filters and borders are known, and it has one group. */
bool qn_integer_convolves(const qn_node *node);
/* What stands for a convolution of two such values; NULL: there is no kernel, or after a report. */
qn_value *qn_integer_convolution(qn_builder *b, const qn_node *node, qn_integer *x, qn_integer *w,
                                 const qn_machine *machine);

#endif
