/* Keeps the values around convolutions in channel blocks.
 *
 * Before: convolutions of [N, C, spatial…]. After: conv_packed of [N, blocks, spatial…, lanes], channel i in block i / lanes at
 * i % lanes, and what lies between them (element-wise ops, windows, padding, reductions, …) in the same layout, so that
 * nothing is rearranged from one convolution to the next. Where blocks begin and end, values are converted by pad, reshape
 * and transpose. Lanes beyond C hold anything: nobody reads them.
 *
 *   %1 = convolution %0: f32[1, 64, 56, 56], %w
 *   %2 = broadcast %bias {axes = [1], …}; %3 = add %1, %2; %4 = reduce_window %3 …
 *   ->
 *   %w' = reshape and transpose of %w to [4, 4, 3, 3, 16, 16], which fold computes
 *   %1 = conv_packed %0': f32[1, 4, 56, 56, 16], %w'
 *   %2 = broadcast (reshape %bias to [4, 16]) {axes = [1, 4], …}; %3 = add %1, %2; %4 = reduce_window %3 …
 *
 * So does the gradient of max pooling.
 *
 * Norms of groups of channels, whose values are of other dims, stay in blocks, too (layout_groups.c); channels that are cut, joined or
 * shuffled other than by whole blocks are noted, and gathered from blocks to blocks where they are read (layout_channels.c).
 *
 * Values are visited in order. Each has a plain form, a blocked form, or both, made when first asked for. */
#include "passes/layout.h"

#include <string.h>

#include "passes/passes.h"

/* ---- ops that stay in blocks ---- */

qn_value *qn_layout_rebuild(qn_layout *l, const qn_node *node, qn_value *const *operands)
{
    qn_attr attrs[QN_N_ATTRS];
    int64_t ints[QN_N_ATTRS][QN_MAX_RANK];
    qn_dim dims[QN_N_ATTRS][QN_MAX_RANK];
    const int rank = node->operands[0]->type.rank;
    for (int i = 0; i < node->n_attrs; i++) {
        qn_attr *a = &attrs[i];
        *a = node->attrs[i];
        if (a->n != rank || a->key == QN_ATTR_AXES)
            continue;
        if (qn_attrs[a->key].kind == QN_ATTR_KIND_INTS) {
            memcpy(ints[i], a->ints, (size_t)rank * sizeof **ints);
            ints[i][rank] = a->key != QN_ATTR_INTERIOR;
            a->ints = ints[i];
            a->n++;
        } else if (qn_attrs[a->key].kind == QN_ATTR_KIND_DIMS) {
            memcpy(dims[i], a->dims, (size_t)rank * sizeof **dims);
            dims[i][rank] = qn_layout_dim(l, 0);
            a->dims = dims[i];
            a->n++;
        }
    }
    qn_node *made = qn_node_new(l->graph, l->b.before, node->op, node->n_operands, operands, node->n_attrs,
                                attrs, 0, NULL, &node->loc, l->b.diags);
    return made ? &made->results[0] : NULL;
}

static bool elementwise(qn_layout *l, const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    const int64_t c = qn_layout_common_lanes(l, node);
    qn_value *operands[4];
    if (!c || node->n_results != 1 || node->n_operands > 4 || qn_attr_find(node, QN_ATTR_AXIS))
        return false;
    for (int i = 0; i < node->n_operands; i++)
        if (node->operands[i]->type.rank != type->rank)
            return false;
    for (int i = 0; i < node->n_operands; i++)
        operands[i] = qn_layout_blocked(l, node->operands[i], c);
    qn_layout_set_blocked(l, &node->results[0], qn_layout_rebuild(l, node, operands));
    return true;
}

/* Are windows of one sample and one channel? */
static bool windows_are_spatial(const qn_node *node)
{
    for (int i = 0; i < 2; i++)
        if (qn_attr_ints(node, QN_ATTR_WINDOW, NULL)[i] != 1 ||
            qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[i] != 1 ||
            !qn_dim_is(qn_attr_dims(node, QN_ATTR_LOW, NULL)[i], 0) ||
            !qn_dim_is(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i], 0))
            return false;
    return true;
}

static bool reduce_window(qn_layout *l, const qn_node *node)
{
    if (!qn_layout_lanes(l, node->operands[0]) || !windows_are_spatial(node))
        return false;
    qn_layout_set_blocked(
        l, &node->results[0],
        qn_layout_rebuild(l, node, (qn_value *[]){ qn_layout_in_blocks(l, node->operands[0]) }));
    return true;
}

/* The gradient of max pooling: the channels of a block side by side. */
static bool select_and_scatter(qn_layout *l, const qn_node *node)
{
    const int64_t c = qn_layout_lanes(l, node->operands[0]);
    if (!c || !windows_are_spatial(node))
        return false;
    qn_value *operands[2] = { qn_layout_blocked(l, node->operands[0], c),
                              qn_layout_blocked(l, node->operands[1], c) };
    qn_layout_set_blocked(l, &node->results[0], qn_layout_rebuild(l, node, operands));
    return true;
}

static bool pad(qn_layout *l, const qn_node *node)
{
    if (!qn_layout_lanes(l, node->operands[0]) || !qn_dim_is(qn_attr_dims(node, QN_ATTR_LOW, NULL)[1], 0) ||
        !qn_dim_is(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[1], 0) ||
        qn_attr_ints(node, QN_ATTR_INTERIOR, NULL)[1] != 0)
        return false;
    qn_value *operands[2] = { qn_layout_in_blocks(l, node->operands[0]),
                              qn_layout_plain(l, node->operands[1]) };
    qn_layout_set_blocked(l, &node->results[0], qn_layout_rebuild(l, node, operands));
    return true;
}

/* Of the same channels at more positions: a gate for each channel, say. */
static bool broadcast(qn_layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const int64_t c = qn_layout_lanes(l, x), *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    qn_dim dims[QN_MAX_RANK];
    int64_t blocked_axes[QN_MAX_RANK];
    if (!c || type->rank != x->type.rank || type->dims[1] != x->type.dims[1])
        return false;
    for (int i = 0; i < type->rank; i++)
        if (axes[i] != i)
            return false;
    for (int i = 0; i <= type->rank; i++)
        blocked_axes[i] = i;
    qn_layout_blocked_dims(l, type, c, dims);
    qn_layout_set_blocked(
        l, &node->results[0],
        qn_b_broadcast(&l->b, qn_layout_in_blocks(l, x), type->rank + 1, dims, blocked_axes));
    return true;
}

/* Over spatial axes the result is in blocks, too. Over the channels, when these fill their blocks, it is plain, and the samples may be
 * among its axes. */
static bool reduce(qn_layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const int64_t c = qn_layout_lanes(l, x);
    const int rank = x->type.rank;
    int n;
    int64_t axes[QN_MAX_RANK];
    if (!c)
        return false;
    const int64_t *given = qn_attr_ints(node, QN_ATTR_AXES, &n);
    bool channels = false, samples = false;
    int64_t last = 0;
    for (int i = 0; i < n; i++) {
        axes[i] = given[i];
        channels |= axes[i] == 1;
        samples |= axes[i] == 0;
        last = axes[i] > last ? axes[i] : last;
    }
    if (channels ? x->type.dims[1]->value % c != 0 : samples)
        return false;
    if (channels && last > 1 && l->options->math == QN_MATH_STRICT && qn_dtype_is_float(x->type.dtype))
        return false; /* positions would come before the channels of a block */
    if (channels)
        axes[n++] = rank;
    qn_value *made = qn_b_reduce(&l->b, qn_attr_reduce_kind(node), qn_layout_in_blocks(l, x), n, axes, false);
    if (channels)
        qn_layout_set_plain(l, &node->results[0], made);
    else
        qn_layout_set_blocked(l, &node->results[0], made);
    return true;
}

/* ---- the pass ---- */

static bool stays_in_blocks(qn_layout *l, qn_node *node)
{
    const qn_type *as = qn_layout_grouped(l, node);
    if (qn_layout_shuffle(l, node))
        return true;
    if (node->op == QN_OP_RESHAPE)
        return qn_layout_reshape(l, node);
    if (qn_ops[node->op].class == QN_ELEMENTWISE)
        return qn_layout_convert_channels(l, node) ||
               (as ? qn_layout_grouped_elementwise(l, node, as) : elementwise(l, node));
    if (as)
        return node->op == QN_OP_REDUCE && qn_layout_grouped_reduce(l, node, as);
    switch (node->op) {
    case QN_OP_CONVOLUTION: return qn_layout_convolution(l, node);
    case QN_OP_REDUCE_WINDOW: return reduce_window(l, node);
    case QN_OP_SELECT_AND_SCATTER: return select_and_scatter(l, node);
    case QN_OP_BROADCAST: return broadcast(l, node);
    case QN_OP_PAD: return pad(l, node);
    case QN_OP_SLICE: return qn_layout_slice(l, node);
    case QN_OP_CONCATENATE: return qn_layout_concatenate(l, node);
    case QN_OP_REDUCE: return reduce(l, node);
    default: return false;
    }
}

static bool layout_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    qn_arena *scratch = qn_arena_new();
    qn_layout l = { .graph = graph, .options = options };
    const int errors = diags->n_errors;
    bool inside = false;
    const int n_values = qn_graph_number(graph);
    l.scratch = scratch;
    l.places = QN_NEW_ARRAY(scratch, qn_layout_place, n_values);
    l.wanted = QN_NEW_ARRAY(scratch, bool, n_values);
    l.shuffled = QN_NEW_ARRAY(scratch, qn_value *, n_values);
    qn_layout_find_wanted(&l);
    qn_layout_find_norms(&l);
    l.bytes_by_unit = qn_layout_all_fill_blocks(graph, options);
    for (qn_node *node = graph->first, *next; node && diags->n_errors == errors; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            inside |= layout_graph(node->regions[i], options, diags);
        l.b = (qn_builder){ .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        if (stays_in_blocks(&l, node))
            continue;
        for (int i = 0; i < node->n_operands; i++)
            node->operands[i] = qn_layout_plain(&l, node->operands[i]);
    }
    l.b.before = NULL;
    for (int i = 0; i < graph->n_outputs && diags->n_errors == errors; i++)
        graph->outputs[i] = qn_layout_plain(&l, graph->outputs[i]);
    qn_arena_free(scratch);
    if (l.changed)
        qn_graph_remove_dead(graph);
    return l.changed || inside;
}

qn_status qn_pass_layout(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    const qn_machine *machine = options->machine;
    *out_changed = false;
    if (!machine || machine->gpu)
        return QUERN_OK;
    const int errors = diags->n_errors;
    *out_changed = layout_graph(graph, options, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
