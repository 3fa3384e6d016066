/* Ops that go along an axis or over windows in order: cumulative, select_and_scatter. */
#include <string.h>

#include "passes/lower_opaque.h"

/* Lanes of the loop over neighbours in memory, each of which goes along another axis: a few vectors, which cover a few lines of
 * memory at each step. One vector alone takes a line of every page. 0: those of a vector. */
static int neighbour_lanes(const qn_lowering *l, const qn_type *type, int axis)
{
    enum { VECTORS = 4, MOST = 64 };
    const qn_machine *machine = l->options->machine;
    const qn_dim last = type->dims[type->rank - 1];
    const int lanes = machine && !machine->gpu ? machine->vector_bytes / 4 * VECTORS : 0;
    return axis < type->rank - 1 && lanes <= MOST && qn_dim_is_const(last) && last->value >= lanes ? lanes
                                                                                                   : 0;
}

/* Lanes are the other axes; each goes along the axis with what it has so far. */
qn_status qn_lower_cumulative(qn_lowering *l, const qn_group *group)
{
    enum { LEAST_GRAIN = 64 };
    qn_node *node = group->root;
    qn_value *x = node->operands[0], *result = &node->results[0];
    const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    const qn_kind kind = qn_attr_reduce_kind(node);
    const qn_dtype dtype = qn_dtype_wide(x->type.dtype);
    const bool exclusive = qn_attr_bool(node, QN_ATTR_EXCLUSIVE);
    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    qn_dims *dims = o.w.space.dims;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    qn_dim at[QN_MAX_RANK];
    const qn_dim extent = qn_ispace_import(&o.w.space, x->type.dims[axis]);
    const double grain = QN_GRAIN / (1 + qn_likely_extent(x->type.dims[axis]));
    for (int i = 0; i < x->type.rank; i++)
        at[i] = qn_dim_const(dims, 0);
    qn_opaque_nest(&o, &x->type, 1u << axis, &nest, axes);
    qn_opaque_open(&o, &nest, grain < LEAST_GRAIN ? LEAST_GRAIN : (int64_t)grain, &loops, open);
    if (loops.n > 0 && open[loops.n - 1].inst)
        open[loops.n - 1].inst->lanes = neighbour_lanes(l, &x->type, axis);
    for (int i = 0; i < nest.n; i++)
        at[axes[i]] = loops.index[i];
    const qn_dim step = qn_ispace_var(&o.w.space, extent, false);
    at[axis] = step;
    if (qn_attr_bool(node, QN_ATTR_REVERSE))
        at[axis] = qn_dim_sub(dims, qn_dim_sub(dims, extent, qn_dim_const(dims, 1)), step);
    qn_kvalue *acc = qn_kb_const(&o.w.b, (qn_ktype){ dtype, 1 }, qn_neutral(kind, dtype));
    qn_writer_loop along = qn_writer_for_all(&o.w, step, QN_TAG_SERIAL, 1, &acc, NULL);
    qn_kvalue *before = along.carried[0];
    qn_kvalue *element = qn_kb_convert(&o.w.b, dtype, qn_writer_value(&o.w, x, at));
    qn_kvalue *after = qn_writer_combine(&o.w, kind, before, element);
    qn_writer_store(&o.w, qn_writer_argument(&o.w, qn_lower_buffer(l, result), false, true),
                    qn_opaque_linear(&o, &x->type, at),
                    qn_kb_convert(&o.w.b, x->type.dtype, exclusive ? before : after));
    qn_writer_end_for(&o.w, &along, &after);
    qn_opaque_close(&o, &loops, open);
    return qn_opaque_end(&o, loops.tasks);
}

/* The gradient of max pooling. Axes that windows don't extend over are lanes and tasks; over the others, windows go in
 * order, each finds its first maximal element and adds its gradient there:
 *   out = 0
 *   for o { (best, where) = max over k of x[o*stride + k*dilation - low];  out[where] += gradient[o] } */
qn_status qn_lower_select_and_scatter(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    qn_value *x = node->operands[0], *gradient = node->operands[1], *result = &node->results[0];
    const int rank = x->type.rank;
    const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL);
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    const int64_t *dilation = qn_attr_ints(node, QN_ATTR_DILATION, NULL);
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    unsigned moving = 0;
    for (int i = 0; i < rank; i++)
        if (window[i] != 1 || stride[i] != 1 || !qn_dim_is(low[i], 0) || !qn_dim_is(high[i], 0))
            moving |= 1u << i;
    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    qn_kbuilder *b = &o.w.b;
    qn_dims *dims = o.w.space.dims;
    qn_kbuffer *to = qn_writer_argument(&o.w, qn_lower_buffer(l, result), true, true);
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK], n_moving = 0;
    qn_writer_loop open[QN_MAX_RANK], outer[QN_MAX_RANK], inner[QN_MAX_RANK];
    qn_dim at[QN_MAX_RANK], from[QN_MAX_RANK], out_vars[QN_MAX_RANK], window_vars[QN_MAX_RANK],
        all[QN_MAX_RANK];
    double work = 1;
    for (int i = 0; i < rank; i++) {
        at[i] = qn_dim_const(dims, 0);
        work *= moving >> i & 1 ? qn_likely_extent(x->type.dims[i]) : 1;
    }
    qn_opaque_nest(&o, &x->type, moving, &nest, axes);
    const double grain = QN_GRAIN / (work < 1 ? 1 : work);
    qn_opaque_open(&o, &nest, grain < 16 ? 16 : (int64_t)grain, &loops, open);
    for (int i = 0; i < nest.n; i++)
        at[axes[i]] = loops.index[i];

    memcpy(from, at, sizeof at);
    for (int i = 0; i < rank; i++) {
        if (!(moving >> i & 1))
            continue;
        all[n_moving] = from[i] =
            qn_ispace_var(&o.w.space, qn_ispace_import(&o.w.space, x->type.dims[i]), false);
        out_vars[n_moving] =
            qn_ispace_var(&o.w.space, qn_ispace_import(&o.w.space, gradient->type.dims[i]), false);
        window_vars[n_moving++] = qn_ispace_var(&o.w.space, qn_dim_const(dims, window[i]), false);
    }
    qn_writer_open_nest(&o.w, n_moving, all, QN_TAG_SERIAL, 0, NULL, NULL, outer);
    qn_writer_store(&o.w, to, qn_opaque_linear(&o, &x->type, from),
                    qn_kb_const(b, (qn_ktype){ x->type.dtype, 1 }, (qn_scalar){ .f = 0 }));
    qn_writer_close_nest(&o.w, n_moving, outer, NULL);

    qn_writer_open_nest(&o.w, n_moving, out_vars, QN_TAG_SERIAL, 0, NULL, NULL, outer);
    /* best value, and its row-major number; -1: the window lies in the padding */
    qn_kvalue *best[2] = { qn_kb_const(b, (qn_ktype){ x->type.dtype, 1 }, (qn_scalar){ .f = 0 }),
                           qn_kb_index(b, -1) };
    qn_writer_open_nest(&o.w, n_moving, window_vars, QN_TAG_SERIAL, 2, best, NULL, inner);
    qn_kvalue **carried = inner[n_moving > 0 ? n_moving - 1 : 0].carried;
    qn_kvalue *inside = qn_kb_const(b, (qn_ktype){ QUERN_BOOL, 1 }, (qn_scalar){ .i = 1 });
    for (int i = 0, m = 0; i < rank; i++) {
        if (!(moving >> i & 1))
            continue;
        const qn_dim first = qn_dim_sub(dims, qn_dim_mul(dims, out_vars[m], qn_dim_const(dims, stride[i])),
                                        qn_ispace_import(&o.w.space, low[i]));
        from[i] =
            qn_dim_add(dims, first, qn_dim_mul(dims, window_vars[m++], qn_dim_const(dims, dilation[i])));
        inside = qn_writer_and_inside(&o.w, inside, from[i], qn_ispace_import(&o.w.space, x->type.dims[i]));
    }
    const qn_dim number = qn_opaque_linear(&o, &x->type, from);
    o.w.mask = inside;
    qn_kvalue *element = qn_writer_value(&o.w, x, from);
    o.w.mask = NULL;
    qn_kvalue *none = qn_kb_compare(b, QN_LT, carried[1], qn_kb_index(b, 0));
    qn_kvalue *better = qn_kb_binary(
        b, QN_OP_AND, inside, qn_kb_binary(b, QN_OP_OR, none, qn_opaque_above(&o, element, carried[0])));
    best[0] = qn_kb_select(b, better, element, carried[0]);
    best[1] = qn_kb_select(b, better, qn_writer_index(&o.w, number), carried[1]);
    qn_writer_close_nest(&o.w, n_moving, inner, best);
    best[1] = inner[0].carried[1];

    memcpy(from, at, sizeof at);
    for (int i = 0, m = 0; i < rank; i++)
        if (moving >> i & 1)
            from[i] = out_vars[m++];
    qn_kvalue *found = qn_kb_compare(b, QN_GE, best[1], qn_kb_index(b, 0));
    qn_kvalue *sum = qn_kb_binary(b, QN_OP_ADD, qn_kb_load_masked(b, to, best[1], 1, found, NULL),
                                  qn_writer_value(&o.w, gradient, from));
    qn_kb_store(b, to, best[1], sum, found);
    qn_writer_close_nest(&o.w, n_moving, outer, NULL);
    qn_opaque_close(&o, &loops, open);
    return qn_opaque_end(&o, loops.tasks);
}
