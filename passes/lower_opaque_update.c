/* Ops that change a part of a tensor: dynamic_update_slice, scatter_nd, scatter_elements.
 *
 * The result starts as a copy of the operand, which the memory plan makes void where the operand is not needed any more;
 * then a kernel writes the part. */
#include "passes/lower_opaque.h"

/* ---- dynamic_update_slice ---- */

/* The update that starts from this value, which nothing else uses; or NULL. */
static qn_node *next_update(const qn_graph *graph, const qn_value *value)
{
    qn_node *next = NULL;
    for (int i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] == value)
            return NULL;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_operands; i++)
            if (node->operands[i] == value) {
                if (next || i > 0 || node->op != QN_OP_DYNAMIC_UPDATE_SLICE)
                    return NULL;
                next = node;
            }
    return next;
}

/* The buffer of the last of updates that follow each other, in which all of them are made: so it is also where that one is to be
 * in an input's place, which the memory plan leaves alone. */
static int updated_buffer(qn_lowering *l, qn_value *made)
{
    qn_value *last = made;
    for (qn_node *next; (next = next_update(l->scope->graph, last)) != NULL;)
        last = &next->results[0];
    return l->scope->buffers[made->id] = qn_lower_buffer(l, last);
}

/* out[start + i] = update[i], in loops over the update. */
qn_status qn_lower_dynamic_update_slice(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    qn_value *x = node->operands[0], *update = node->operands[1];
    const int out = updated_buffer(l, &node->results[0]), rank = x->type.rank;
    QN_TRY(qn_lower_into(l, group, x, out));
    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    qn_dims *dims = o.w.space.dims;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    qn_dim start[QN_MAX_RANK], at[QN_MAX_RANK], to[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        const qn_dim room = qn_dim_sub(dims, qn_ispace_import(&o.w.space, x->type.dims[i]),
                                       qn_ispace_import(&o.w.space, update->type.dims[i]));
        start[i] = room;
        if (!qn_dim_is(room, 0))
            start[i] = qn_writer_clamped_index(&o.w, qn_writer_value(&o.w, node->operands[2 + i], NULL),
                                               qn_dim_add(dims, room, qn_dim_const(dims, 1)));
        at[i] = qn_dim_const(dims, 0);
    }
    qn_opaque_nest(&o, &update->type, 0, &nest, axes);
    qn_opaque_open(&o, &nest, QN_GRAIN, &loops, open);
    for (int i = 0; i < nest.n; i++)
        at[axes[i]] = loops.index[i];
    for (int i = 0; i < rank; i++)
        to[i] = qn_dim_add(dims, start[i], at[i]);
    qn_writer_store(&o.w, qn_writer_argument(&o.w, out, false, true), qn_opaque_linear(&o, &x->type, to),
                    qn_writer_value(&o.w, update, at));
    qn_opaque_close(&o, &loops, open);
    return qn_opaque_end(&o, loops.tasks);
}

/* ---- scatter ---- */

/* out[linear] = element, or combined with what is there; sums in f16 and bf16 round each time, as updates come in order. */
static void update_element(qn_opaque *o, int out, qn_dim linear, qn_kvalue *element)
{
    const qn_kind kind = qn_attr_reduce_kind(o->node);
    qn_kbuffer *to = qn_writer_argument(&o->w, out, kind != QN_SET, true);
    if (kind != QN_SET)
        element = qn_writer_combine(&o->w, kind, qn_writer_load(&o->w, to, linear), element);
    qn_writer_store(&o->w, to, linear, element);
}

/* Tasks share the elements of a slice; each goes over all updates in order, so that equal indices need no care:
 *   for j in my part of the slice (lanes) { for m { out[indices[m], j] = updates[m, j] } }
 * with the loop over m outermost unless that leaves no loop to vectorize. */
qn_status qn_lower_scatter_nd(qn_lowering *l, const qn_group *group)
{
    enum { LEAST_GRAIN = 64 };
    qn_node *node = group->root;
    qn_value *x = node->operands[0], *indices = node->operands[1], *updates = node->operands[2];
    const int out = qn_lower_buffer(l, &node->results[0]), n_lead = indices->type.rank - 1;
    QN_TRY(qn_lower_into(l, group, x, out));
    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    const int k = (int)indices->type.dims[n_lead]->value;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK], rows[QN_MAX_RANK];
    qn_dim vars[QN_MAX_RANK], at[QN_MAX_RANK], to[QN_MAX_RANK], from[QN_MAX_RANK];
    double n_updates = 1;
    for (int i = 0; i < n_lead; i++) {
        vars[i] = qn_ispace_var(&o.w.space, qn_ispace_import(&o.w.space, indices->type.dims[i]), false);
        n_updates *= qn_likely_extent(indices->type.dims[i]);
    }
    qn_opaque_nest(&o, &x->type, (1u << k) - 1, &nest, axes);
    const double grain = QN_GRAIN / (n_updates < 1 ? 1 : n_updates);
    qn_loops_plan(&o.w, &nest, grain < LEAST_GRAIN ? LEAST_GRAIN : (int64_t)grain, &loops);
    qn_writer_open_nest(&o.w, n_lead, vars, QN_TAG_SERIAL, 0, NULL, NULL, rows);
    for (int i = 0; i < n_lead; i++)
        at[i] = from[i] = vars[i];
    for (int i = 0; i < k; i++) {
        at[n_lead] = qn_dim_const(o.w.space.dims, i);
        to[i] = qn_writer_checked_index(&o.w, qn_writer_value(&o.w, indices, at),
                                        qn_ispace_import(&o.w.space, x->type.dims[i]), node);
    }
    for (int i = 0; i < loops.n; i++)
        open[i] =
            qn_planned_loop_open(&o.w, &loops.loops[i], i == loops.n - 1 ? QN_TAG_VECTOR : QN_TAG_SERIAL);
    for (int i = k; i < x->type.rank; i++)
        to[i] = from[n_lead + i - k] = qn_dim_const(o.w.space.dims, 0);
    for (int i = 0; i < nest.n; i++)
        to[axes[i]] = from[n_lead + axes[i] - k] = loops.index[i];
    update_element(&o, out, qn_opaque_linear(&o, &x->type, to), qn_writer_value(&o.w, updates, from));
    qn_opaque_close(&o, &loops, open);
    qn_writer_close_nest(&o.w, n_lead, rows, NULL);
    return qn_opaque_end(&o, loops.tasks);
}

/* Updates only meet along the axis: the other axes are independent, the axis goes in order. Lanes of a
 * CPU share the last of the others only where it lies within the axis: else each would be on a line of the cache of its own. */
qn_status qn_lower_scatter_elements(qn_lowering *l, const qn_group *group)
{
    enum { LEAST_GRAIN = 64 };
    qn_node *node = group->root;
    qn_value *x = node->operands[0], *indices = node->operands[1], *updates = node->operands[2];
    const int out = qn_lower_buffer(l, &node->results[0]), axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    QN_TRY(qn_lower_into(l, group, x, out));
    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    qn_dim at[QN_MAX_RANK], to[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        at[i] = qn_dim_const(o.w.space.dims, 0);
    qn_opaque_nest(&o, &indices->type, 1u << axis, &nest, axes);
    const bool gpu = l->options->machine && l->options->machine->gpu;
    const bool lanes = gpu || (nest.n > 0 && axes[nest.n - 1] > axis);
    const int64_t least = lanes ? LEAST_GRAIN : 1;
    const int64_t grain = (int64_t)(QN_GRAIN / (1 + qn_likely_extent(indices->type.dims[axis])));
    qn_loops_plan(&o.w, &nest, grain < least ? least : grain, &loops);
    for (int i = 0; i < loops.n; i++)
        open[i] = qn_planned_loop_open(&o.w, &loops.loops[i],
                                       lanes && i == loops.n - 1 ? QN_TAG_VECTOR : QN_TAG_SERIAL);
    for (int i = 0; i < nest.n; i++)
        at[axes[i]] = loops.index[i];
    at[axis] = qn_ispace_var(&o.w.space, qn_ispace_import(&o.w.space, indices->type.dims[axis]), false);
    qn_writer_loop along = qn_writer_for_all(&o.w, at[axis], QN_TAG_SERIAL, 0, NULL, NULL);
    for (int i = 0; i < x->type.rank; i++)
        to[i] = at[i];
    to[axis] = qn_writer_checked_index(&o.w, qn_writer_value(&o.w, indices, at),
                                       qn_ispace_import(&o.w.space, x->type.dims[axis]), node);
    update_element(&o, out, qn_opaque_linear(&o, &x->type, to), qn_writer_value(&o.w, updates, at));
    qn_writer_end_for(&o.w, &along, NULL);
    qn_opaque_close(&o, &loops, open);
    return qn_opaque_end(&o, loops.tasks);
}
