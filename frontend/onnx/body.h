/* What If, Loop and Scan share: the graphs in their nodes. A region reads outer values through captures, see graph.c. */
#ifndef QN_FRONTEND_ONNX_BODY_H
#define QN_FRONTEND_ONNX_BODY_H

#include "frontend/onnx/import.h"

/* The most bodies a node is spelled out as. */
#define QN_ONNX_MAX_UNROLLED 1024

/* The node of the graph that makes the name, or NULL: an input, or what lies outside. */
const Onnx__Node *qn_onnx_maker_of(const Onnx__Graph *graph, const char *name);
/* May a and b be the types of one value? */
bool qn_onnx_can_be_equal(qn_dims *dims, const qn_type *a, const qn_type *b);
/* v with the dims of the type, where they may be the same; NULL where they cannot. What starts with no elements and may continue
 * with some is meant to grow. */
qn_value *qn_onnx_of_type(qn_builder *b, qn_value *v, const qn_type *type);
/* A tensor of one element as a scalar. */
qn_value *qn_onnx_as_scalar(qn_builder *b, qn_value *v);
/* Is it a tensor of one known element? */
bool qn_onnx_known_scalar(qn_onnx_import *im, qn_onnx_value *v, qn_dim *out);

/* Builds in the node's region. */
qn_builder qn_onnx_region_builder(const qn_onnx_node *n, qn_graph *region);
/* The tensor of output i of the body, made in the scope's graph, whose extents mean something outside of it. NULL after a report. */
qn_value *qn_onnx_body_output(qn_onnx_node *n, qn_onnx_scope *scope, const Onnx__Graph *body, int i);

/* An if on input 0 of the node, whose results are values[0] or values[1], made in the graphs of the scopes, which capture the same.
 * False after a report. */
bool qn_onnx_join(qn_onnx_node *n, const qn_onnx_scope *then, const qn_onnx_scope *other, int n_values,
                  qn_value **const *values, qn_value **out);

#endif
