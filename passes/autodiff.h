/* Reverse-mode differentiation, graph to graph. */
#ifndef QN_PASSES_AUTODIFF_H
#define QN_PASSES_AUTODIFF_H

#include "ir/graph.h"

/* Appends to `graph` what computes the gradients of `loss` (a float scalar of the graph) with respect to `wrt` (float values of
 * the graph: inputs or anything before the loss). out_gradients[i] has wrt[i]'s type; zeros where the loss does not depend on
 * it. `scale` (a scalar, or NULL: 1) is what they are multiplied with. Calls are inlined and composites without a rule of their
 * own expanded on the way. `loss` and `wrt` are updated when that replaces them. */
qn_status qn_differentiate(qn_graph *graph, qn_value **loss, qn_value *scale, int n_wrt, qn_value **wrt,
                           qn_value **out_gradients, qn_diags *diags);

/* The same with a given adjoint for each of several values of any dims (NULL adjoint: zero). */
qn_status qn_pull_back(qn_graph *graph, int n_values, qn_value **values, qn_value **adjoints, int n_wrt,
                       qn_value **wrt, qn_value **out_gradients, qn_diags *diags);

/* Appends the gradients of the sum of `y` as a function of the values `from` of the same function graph, taken at the values `at`
 * (of the same types): n_wrt gradients, of the first of them. What y is made of beside them stays as it is. */
qn_status qn_gradient_at(qn_graph *graph, qn_value *y, int n, qn_value *const *from, qn_value *const *at,
                         int n_wrt, qn_value **out_gradients, qn_diags *diags);

#endif
