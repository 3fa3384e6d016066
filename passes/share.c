/* A large table that rows are looked up in, and that is the right side of a product too, is kept once: in the panels that
 * the product reads. Language models tie their embedding to their last layer like this; a row of it is then a column of
 * panels, a stride apart, which looking up can afford and the product could not.
 *
 * Before: folded constants. After: a constant f32[V, K] of LARGE bytes or more that only gathers along axis 0 read is read
 * through the panels [P, K, W] of a matmul_packed of the same graph, where these are made of it. Movement ops on the panels
 * become index arithmetic of the kernel that looks up (without fusion they would be kernels, and the pass does nothing);
 * it comes last, so that nobody evaluates them.
 *
 *   %e = constant f32[50257, 768]               %p = constant f32[1571, 768, 32]
 *   %r = gather %e, %ids {axis = 0}        ->   %t = transpose %p; %u = reshape %t; %v = slice %u : f32[50257, 768]
 *                                               %r = gather %v, %ids {axis = 0} */
#include "ir/build.h"
#include "passes/passes.h"

enum { LARGE = 1 << 22 };

/* Does element [p, k, w] of the panels lie in the table at [p * W + w, k], for all rows of the table? */
static bool holds(const qn_tensor *panels, const qn_tensor *table)
{
    const qn_type *type = &panels->type;
    if (panels->data || !panels->source || type->rank != 3 || type->dtype != table->type.dtype)
        return false;
    const int64_t rows = table->type.dims[0]->value, depth = table->type.dims[1]->value,
                  width = type->dims[2]->value, full = rows / width, rest = rows % width;
    if (type->dims[1]->value != depth || type->dims[0]->value != full + (rest > 0))
        return false;
    for (int part = 0; part < 2; part++) { /* whole panels, and what the last one has */
        const int64_t low[] = { part ? full : 0, 0, 0 },
                      extent[] = { part ? 1 : full, depth, part ? rest : width };
        if (extent[0] == 0 || extent[2] == 0)
            continue;
        const void *at;
        int64_t strides[QN_MAX_RANK];
        const char *expected = (const char *)table->data + low[0] * width * depth * (int64_t)sizeof(float);
        if (!panels->source->view || !panels->source->view(panels, low, extent, &at, strides) ||
            at != expected || strides[1] != 1 || (extent[0] > 1 && strides[0] != width * depth) ||
            (extent[2] > 1 && strides[2] != depth))
            return false;
    }
    return true;
}

static const qn_tensor *panels_of(const qn_graph *graph, const qn_tensor *table)
{
    QN_FOR_NODES (graph, node) {
        const qn_tensor *panels =
            node->op == QN_OP_MATMUL_PACKED ? qn_value_constant(node->operands[1]) : NULL;
        if (panels && holds(panels, table))
            return panels;
    }
    return NULL;
}

static bool looks_up(const qn_node *node, const qn_value *table)
{
    return node->op == QN_OP_GATHER && node->operands[0] == table && node->operands[1] != table &&
           qn_attr_int(node, QN_ATTR_AXIS) == 0;
}

/* Do only gathers of rows read it? */
static bool only_looked_up(const qn_graph *graph, const qn_value *table)
{
    bool any = false;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_operands; i++) {
            if (node->operands[i] == table && !looks_up(node, table))
                return false;
            any |= node->operands[i] == table;
        }
    for (int i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] == table)
            return false;
    return any;
}

/* The panels as the table they hold. */
static qn_value *unpacked(qn_builder *b, const qn_tensor *panels, const qn_type *table)
{
    qn_dims *dims = qn_b_dims(b);
    const qn_dim *p = panels->type.dims;
    qn_value *v = qn_b_transpose(b, qn_b_constant(b, panels), (const int64_t[]){ 0, 2, 1 });
    const qn_dim rows[] = { qn_dim_mul(dims, p[0], p[2]), p[1] };
    v = v ? qn_b_reshape(b, v, 2, rows) : NULL;
    return v ? qn_b_slice_axis(b, v, 0, qn_dim_const(dims, 0), table->dims[0]) : NULL;
}

/* Each gather gets movement of its own, so that its kernel and no other has reason to compute it. */
static qn_status read_panels(qn_graph *graph, const qn_value *table, const qn_tensor *panels, qn_diags *diags)
{
    QN_FOR_NODES (graph, node) {
        if (!looks_up(node, table))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *rows = unpacked(&b, panels, &table->type);
        if (!rows)
            return qn_diags_status(diags);
        node->operands[0] = rows;
    }
    return QUERN_OK;
}

qn_status qn_pass_share(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    *out_changed = false;
    if (!options->machine || options->machine->gpu || options->no_fusion)
        return QUERN_OK;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        const qn_tensor *table = node->op == QN_OP_CONSTANT ? qn_value_constant(node->results) : NULL;
        if (!table || !table->data || table->bytes < LARGE || table->type.rank != 2 ||
            table->type.dtype != QUERN_F32 || !only_looked_up(graph, node->results))
            continue;
        const qn_tensor *panels = panels_of(graph, table);
        if (!panels)
            continue;
        QN_TRY(read_panels(graph, node->results, panels, diags));
        qn_node_remove(node);
        *out_changed = true;
    }
    return QUERN_OK;
}
