/* If: of a known condition its branch, in place; else an if of two regions, which also give their results' extents where those differ. */
#include "frontend/onnx/body.h"
#include "frontend/onnx/families.h"

static void inline_branch(qn_onnx_node *n, const Onnx__Graph *branch)
{
    qn_onnx_scope *scope = qn_onnx_scope_new(n, NULL);
    if (!scope || !qn_onnx_scope_import(scope, branch))
        return;
    for (int i = 0; i < n->n_out; i++)
        qn_onnx_out_any(n, i, qn_onnx_scope_output(scope, branch, i, &n->b.loc));
    qn_onnx_touched(n, scope);
}

/* An extent that the branches give differently. The run finds it: it is bound behind the if. */
typedef struct differing {
    qn_dim dims[2]; /* in each branch */
    qn_dim most;    /* in what is known outside of them */
    qn_dim symbol;
} differing;

typedef qn_vec(differing) differings;

/* What d is at most, without what the region's nodes bind. */
static qn_dim most_outside(qn_onnx_import *im, const qn_graph *region, qn_dim d)
{
    qn_dims *dims = im->dims;
    const int n = qn_dims_symbol_count(dims);
    qn_dim *most = QN_NEW_ARRAY(im->arena, qn_dim, n);
    QN_FOR_NODES (region, node) {
        const qn_dim symbol = qn_node_binds(node);
        if (!symbol)
            continue;
        most[symbol->symbol] = qn_dim_min(dims, qn_dim_most(dims, qn_node_limit(node), most, n),
                                          qn_dim_const(dims, symbol->max));
    }
    return qn_dim_most(dims, d, most, n);
}

/* NULL after a report. */
static const differing *add_differing(qn_onnx_node *n, qn_graph *const *regions, differings *all, qn_dim x,
                                      qn_dim y)
{
    qn_dims *dims = n->im->dims;
    for (size_t i = 0; i < all->n; i++)
        if (all->items[i].dims[0] == x && all->items[i].dims[1] == y)
            return &all->items[i];
    differing d = { .dims = { x, y } };
    d.most = qn_dim_max(dims, qn_dim_max(dims, most_outside(n->im, regions[0], x), qn_dim_const(dims, 0)),
                        most_outside(n->im, regions[1], y));
    if (!qn_dim_is_valid_extent(d.most)) {
        qn_onnx_unsupported(n, "an extent is %s in one branch and %s in the other, and nothing bounds it",
                            qn_dim_print(x, n->im->arena), qn_dim_print(y, n->im->arena));
        return NULL;
    }
    const int64_t least = x->min < y->min ? x->min : y->min;
    d.symbol = qn_dim_fresh(dims, "branch", least > 0 ? least : 0, d.most->max);
    qn_vec_push(n->im->arena, all, d);
    return &all->items[all->n - 1];
}

/* x at the front of zeros, which `type` has room for. */
static qn_value *with_room(qn_builder *b, qn_value *x, const qn_type *type)
{
    qn_value *starts[QN_MAX_RANK];
    if (qn_type_equal(&x->type, type))
        return x;
    for (int i = 0; i < type->rank; i++)
        starts[i] = qn_b_scalar_int(b, QUERN_I64, 0);
    return qn_b_dynamic_update_slice(b, qn_b_full(b, type, 0), x, starts);
}

/* An output of the if, x or y. *out_type: with the extents that are bound behind it. False after a report. */
static bool add_if_output(qn_onnx_node *n, qn_graph *const *regions, qn_value *x, qn_value *y,
                          differings *io_differing, qn_type *out_type)
{
    qn_dim room[QN_MAX_RANK], dims[QN_MAX_RANK];
    const int rank = x->type.rank;
    for (int i = 0; i < rank; i++) {
        room[i] = dims[i] = x->type.dims[i];
        if (dims[i] == y->type.dims[i])
            continue;
        const differing *d = add_differing(n, regions, io_differing, dims[i], y->type.dims[i]);
        if (!d)
            return false;
        room[i] = d->most;
        dims[i] = d->symbol;
    }
    const qn_type type = qn_type_make(n->im->module, x->type.dtype, rank, room);
    *out_type = qn_type_make(n->im->module, x->type.dtype, rank, dims);
    for (int k = 0; k < 2; k++) {
        qn_builder inner = qn_onnx_region_builder(n, regions[k]);
        qn_value *v = with_room(&inner, k ? y : x, &type);
        if (!v)
            return false;
        qn_graph_add_output(regions[k], v, NULL, -1);
    }
    return true;
}

/* Binds the extents, which are the results behind the outputs, and gives the outputs those. */
static void finish_if(qn_onnx_node *n, qn_node *node, const differings *differing, const qn_type *types)
{
    qn_builder *b = &n->b;
    for (size_t i = 0; i < differing->n; i++)
        if (!qn_b_extent(b, &node->results[n->n_out + (int)i], differing->items[i].most,
                         differing->items[i].symbol))
            return;
    for (int i = 0; i < n->n_out; i++) {
        qn_value *y = &node->results[i];
        for (int k = 0; y && k < types[i].rank; k++)
            if (y->type.dims[k] != types[i].dims[k])
                y = qn_b_slice_axis(b, y, k, qn_dim_const(n->im->dims, 0), types[i].dims[k]);
        qn_onnx_out(n, i, y);
    }
}

static void import_if(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const Onnx__Graph *branches[2] = { qn_onnx_attr_graph(n, "then_branch"),
                                       qn_onnx_attr_graph(n, "else_branch") };
    qn_dim known;
    if (!branches[0] || !branches[1] || !qn_onnx_in_type(n, 0))
        return;
    for (int k = 0; k < 2; k++)
        if (branches[k]->n_output < (size_t)n->n_out) {
            qn_onnx_malformed(n, "a branch has fewer outputs than the node");
            return;
        }
    if (qn_onnx_known_scalar(n->im, n->in[0], &known) && qn_dim_is_const(known)) {
        inline_branch(n, branches[known->value ? 0 : 1]);
        return;
    }
    qn_graph *regions[2];
    qn_onnx_scope *scopes[2] = { NULL };
    for (int k = 0; k < 2; k++) {
        regions[k] = qn_region_new(n->im->module);
        scopes[k] = qn_onnx_scope_new(n, regions[k]);
        if (!scopes[k])
            return;
        for (size_t i = 0; k == 1 && i < scopes[0]->captured.n; i++)
            qn_onnx_scope_capture(scopes[1], scopes[0]->captured.items[i]);
        if (!qn_onnx_scope_import(scopes[k], branches[k])) {
            qn_onnx_misses(n, n->in[0]); /* it may be for other shapes, and not the one that is taken */
            return;
        }
        qn_onnx_touched(n, scopes[k]);
    }
    for (size_t i = scopes[0]->captured.n; i < scopes[1]->captured.n; i++)
        qn_onnx_scope_capture(scopes[0], scopes[1]->captured.items[i]);
    differings differing = { 0 };
    qn_type *types = QN_NEW_ARRAY(n->im->arena, qn_type, n->n_out);
    for (int i = 0; i < n->n_out; i++) {
        qn_value *x = qn_onnx_made_output(n, scopes[0], branches[0], i),
                 *y = qn_onnx_made_output(n, scopes[1], branches[1], i);
        if (!x || !y) {
            qn_onnx_misses(n, n->in[0]); /* of one branch, the output may be anything */
            return;
        }
        if (!qn_onnx_can_be_equal(n->im->dims, &x->type, &y->type)) {
            qn_onnx_misses(n, n->in[0]);
            qn_onnx_unsupported(
                n, "output %d is %s in one branch and %s in the other, and the condition is not known", i,
                qn_type_print(&x->type, n->im->arena), qn_type_print(&y->type, n->im->arena));
            return;
        }
        if (!add_if_output(n, regions, x, y, &differing, &types[i]))
            return;
    }
    for (size_t i = 0; i < differing.n; i++)
        for (int k = 0; k < 2; k++) {
            qn_builder inner = qn_onnx_region_builder(n, regions[k]);
            qn_graph_add_output(regions[k], qn_b_dim_value(&inner, QUERN_I64, differing.items[i].dims[k]),
                                NULL, -1);
        }
    qn_value *condition = qn_onnx_as_scalar(b, qn_onnx_in(n, 0));
    qn_node *node = condition ? qn_b_if(b, condition, (int)scopes[0]->captured.n, scopes[0]->captured.items,
                                        regions[0], regions[1])
                              : NULL;
    if (node)
        finish_if(n, node, &differing, types);
}

const qn_onnx_op qn_onnx_if_ops[] = {
    { "If", NULL, 1, 0, import_if },
    { 0 },
};
