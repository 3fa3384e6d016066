/* Bounds of integers that a graph computes, as far as constants and the sizes of dimensions say: so that an index which can't be
 * out of range isn't checked. */
#ifndef QN_PASSES_BOUNDS_H
#define QN_PASSES_BOUNDS_H

#include "ir/graph.h"

typedef struct qn_bounds {
    bool known;        /* computed already */
    int64_t low, high; /* every element is in [low, high] */
} qn_bounds;

/* Are the contents of this constant looked at? */
bool qn_bounds_reads(const qn_tensor *constant);
/* memo: by value id, zero at first. Where nothing better is known, what the dtype holds. */
qn_bounds qn_bounds_of(qn_bounds *memo, const qn_value *value);

#endif
