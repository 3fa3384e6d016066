/* Finding where NaN and infinity come from. */
#ifndef QN_PASSES_NUMERICS_H
#define QN_PASSES_NUMERICS_H

#include "ir/graph.h"

/* The function gives other outputs: for each float result of a node (not of those in regions, and not constants), in their order,
 * an i32: 2 where an element is NaN, else 1 where one is infinite, else 0 or less. States are not updated. */
qn_status qn_flag_numerics(qn_graph *graph, qn_diags *diags);

#endif
