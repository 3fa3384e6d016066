/* flops.h: the work that a graph states. */
#ifndef QN_DRIVER_FLOPS_H
#define QN_DRIVER_FLOPS_H

#include "ir/graph.h"

/* Adds `times` the floating-point operations of the contractions, as the model states them: what a run's speed is counted in.
 * False when they cannot be told: an extent is symbolic, or a loop's length depends on data. */
bool qn_count_flops(const qn_graph *graph, double times, double *total);

#endif
