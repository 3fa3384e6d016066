/* Graphs in nodes. */
#include "frontend/onnx/body.h"

#include <string.h>

const Onnx__Node *qn_onnx_maker_of(const Onnx__Graph *graph, const char *name)
{
    for (size_t i = 0; i < graph->n_node; i++)
        for (size_t k = 0; k < graph->node[i]->n_output; k++)
            if (!strcmp(graph->node[i]->output[k], name))
                return graph->node[i];
    return NULL;
}

bool qn_onnx_can_be_equal(qn_dims *dims, const qn_type *a, const qn_type *b)
{
    if (a->dtype != b->dtype || a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (!qn_dim_can_be_equal(dims, a->dims[i], b->dims[i]))
            return false;
    return true;
}

qn_value *qn_onnx_of_type(qn_builder *b, qn_value *v, const qn_type *type)
{
    if (!v || qn_type_equal(&v->type, type))
        return v;
    if (!qn_onnx_can_be_equal(qn_b_dims(b), &v->type, type))
        return NULL;
    for (int i = 0; i < type->rank; i++)
        if (v->type.dims[i] != type->dims[i] && qn_dim_is(type->dims[i], 0))
            return NULL;
    return qn_b_reshape(b, v, type->rank, type->dims);
}

qn_value *qn_onnx_as_scalar(qn_builder *b, qn_value *v)
{
    return v && v->type.rank ? qn_b_reshape(b, v, 0, NULL) : v;
}

bool qn_onnx_known_scalar(qn_onnx_import *im, qn_onnx_value *v, qn_dim *out)
{
    qn_onnx_contents c;
    if (!qn_onnx_contents_of(im, v, &c) || c.n != 1 || !c.dims)
        return false;
    *out = c.dims[0];
    return true;
}

qn_builder qn_onnx_region_builder(const qn_onnx_node *n, qn_graph *graph)
{
    return (qn_builder){ .graph = graph, .loc = n->b.loc, .diags = n->im->diags };
}

/* Has the type an extent that the region finds out? Outside of it that means nothing. */
static bool has_own_extent(const qn_graph *region, const qn_type *type)
{
    bool *has = QN_NEW_ARRAY(region->module->arena, bool, qn_dims_symbol_count(region->module->dims)),
         any = false;
    qn_type_mark_symbols(type, has);
    QN_FOR_NODES (region, node)
        any |= qn_node_binds(node) && has[qn_node_binds(node)->symbol];
    return any;
}

qn_value *qn_onnx_body_output(qn_onnx_node *n, qn_onnx_scope *scope, const Onnx__Graph *body, int i)
{
    qn_onnx_value *v = qn_onnx_scope_output(scope, body, i, &n->b.loc);
    qn_builder b = qn_onnx_region_builder(n, scope->graph);
    if (v && (v->kind != QN_ONNX_TENSOR || v->strings)) {
        qn_onnx_unsupported(n, "output %d of its body is %s", i,
                            v->strings ? "a tensor of strings" : "no tensor");
        return NULL;
    }
    qn_value *made = v ? qn_onnx_value_make(&b, v) : NULL;
    if (!made || scope->graph == n->b.graph || !has_own_extent(scope->graph, &made->type))
        return made;
    qn_onnx_unsupported(n, "output %d of its body has an extent that only the body knows: %s", i,
                        qn_type_print(&made->type, n->im->arena));
    return NULL;
}
