/* Winograd's F(m, 3): m neighbouring results of a filter of 3 from t = m + 2 products, by polynomials that are multiplied at
 * t - 1 points and infinity (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). In two dimensions,
 * for a tile d of t x t elements and a filter g of 3 x 3,
 *
 *   result (m x m) = A^T [ (G g G^T) * (B^T d B) ] A          * element by element
 *
 * The points are 0, 1, -1 for m = 2 and 0, a, -a, b, -b for m = 4, with a = 5/8 and b = 3/2: all numbers of A and B are exact
 * in float32, and results are four times nearer than with the usual 1 and 2 (measured: 1.5e-6 of the largest at 128 channels;
 * m = 2: 4e-7, as a convolution without it). */
#ifndef QN_IR_WINOGRAD_H
#define QN_IR_WINOGRAD_H

#include "ir/build.h"

#define QN_WINOGRAD_A 0.625
#define QN_WINOGRAD_B 1.5

enum { QN_WINOGRAD_TILE = 6 }; /* the largest t */

/* Does it exist: is t 4 or 6? */
bool qn_winograd_has(int64_t t);

/* Filters w [O, C, 3, 3], whose O is divisible by `width`, as conv_winograd reads them: [O / width, t, t, C, width]. */
qn_value *qn_winograd_weights(qn_builder *b, qn_value *w, int t, int64_t width);

/* The body of conv_winograd (x, u) {low, high}, in the dtype of x. */
qn_value *qn_winograd_expand(qn_builder *b, const qn_node *node, qn_value *x, qn_value *u);

#endif
