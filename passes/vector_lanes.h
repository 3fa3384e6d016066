/* How many lanes a loop tagged vector gets, and how indices go from lane to lane. */
#ifndef QN_PASSES_VECTOR_LANES_H
#define QN_PASSES_VECTOR_LANES_H

#include "ir/kernel.h"
#include "passes/pass.h"

enum { QN_UNKNOWN_STRIDE = INT32_MIN };

/* Stride of an index computed from others, of which the strides are known; aligned: lane 0 of a dividend and the divisor are
 * multiples of the lanes. */
int64_t qn_lane_stride(const qn_kinst *inst, int64_t sx, int64_t sy, const qn_kvalue *factor, bool aligned);

/* Lanes for the loop, whose values have serial numbers below n_values; 1: it stays scalar. */
int qn_choose_lanes(const qn_kinst *loop, int n_values, const qn_machine *machine, qn_arena *arena);

#endif
