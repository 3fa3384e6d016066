/* Copies of graphs inside other graphs. */
#ifndef QN_PASSES_INLINE_H
#define QN_PASSES_INLINE_H

#include "ir/graph.h"

/* Copies the nodes of `from` into `to` (before `before`; NULL: at its end), with `inputs` for its inputs; out_outputs gets what its
 * outputs became. Regions are shared with the original. Both graphs belong to one module; they may be the same one. */
qn_status qn_inline_graph(const qn_graph *from, qn_graph *to, qn_node *before, qn_value *const *inputs,
                          qn_value **out_outputs, qn_diags *diags);

/* Calls in the graph become the bodies of what they call. */
qn_status qn_inline_calls(qn_graph *graph, qn_diags *diags);

#endif
