/* Elements of reductions, products, convolutions and windows, in loops over what they sum: for those that no template or kernel of rows
 * takes. */
#include "passes/lower.h"

static qn_kvalue *reduce(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_value *x = node->operands[0];
    const qn_kind kind = qn_attr_reduce_kind(node);
    const qn_dtype dtype = qn_dtype_wide(x->type.dtype);
    int n_axes;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n_axes);
    qn_dim at[QN_MAX_RANK], vars[QN_MAX_RANK];
    for (int i = 0, k = 0, r = 0; i < x->type.rank; i++)
        if (r < n_axes && axes[r] == i) {
            vars[r] = qn_ispace_var(&w->space, qn_ispace_import(&w->space, x->type.dims[i]), false);
            at[i] = vars[r++];
        } else {
            at[i] = index[k++];
        }
    qn_kvalue *acc = qn_writer_constant(w, dtype, qn_neutral(kind, dtype));
    qn_writer_loop loops[QN_MAX_RANK];
    qn_writer_open_nest(w, n_axes, vars, QN_TAG_SERIAL, 1, &acc, NULL, loops);
    acc = loops[n_axes > 0 ? n_axes - 1 : 0].carried[0];
    acc = qn_writer_combine(w, kind, acc, qn_kb_convert(&w->b, dtype, qn_writer_value(w, x, at)));
    qn_writer_close_nest(w, n_axes, loops, &acc);
    return qn_kb_convert(&w->b, x->type.dtype, loops[0].carried[0]);
}

/* What products are summed in: the accumulator of the result; operands are converted to it first. */
static qn_kvalue *product(qn_writer *w, qn_dtype dtype, qn_kvalue *x, qn_kvalue *y)
{
    return qn_kb_binary(&w->b, QN_OP_MUL, qn_kb_convert(&w->b, dtype, x), qn_kb_convert(&w->b, dtype, y));
}

static qn_kvalue *dot_general(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    static const qn_attr_key batch_keys[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    static const qn_attr_key contract_keys[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    const qn_dtype result = node->results[0].type.dtype, dtype = qn_dtype_wide(result);
    qn_dim at[2][QN_MAX_RANK], vars[QN_MAX_RANK];
    int n_contract = 0, n_batch = 0, next = 0;
    for (int side = 0; side < 2; side++) {
        const qn_type *type = &node->operands[side]->type;
        const int64_t *batch = qn_attr_ints(node, batch_keys[side], &n_batch);
        const int64_t *contract = qn_attr_ints(node, contract_keys[side], &n_contract);
        bool taken[QN_MAX_RANK] = { false };
        for (int i = 0; i < n_batch; i++) {
            at[side][batch[i]] = index[i];
            taken[batch[i]] = true;
        }
        for (int i = 0; i < n_contract; i++) {
            if (side == 0)
                vars[i] =
                    qn_ispace_var(&w->space, qn_ispace_import(&w->space, type->dims[contract[i]]), false);
            at[side][contract[i]] = vars[i];
            taken[contract[i]] = true;
        }
        next = side == 0 ? n_batch : next;
        for (int i = 0; i < type->rank; i++)
            if (!taken[i])
                at[side][i] = index[next++];
    }
    qn_kvalue *acc = qn_writer_constant(w, dtype, qn_neutral(QN_SUM, dtype));
    qn_writer_loop loops[QN_MAX_RANK];
    qn_writer_open_nest(w, n_contract, vars, QN_TAG_SERIAL, 1, &acc, NULL, loops);
    acc = loops[n_contract > 0 ? n_contract - 1 : 0].carried[0];
    qn_kvalue *x = qn_writer_value(w, node->operands[0], at[0]),
              *y = qn_writer_value(w, node->operands[1], at[1]);
    acc = qn_writer_combine(w, QN_SUM, acc, product(w, dtype, x, y));
    qn_writer_close_nest(w, n_contract, loops, &acc);
    return qn_kb_convert(&w->b, result, loops[0].carried[0]);
}

/* Where a convolution reads for output channel `index`: at_x[1] of plane, at_w[0 … 1]; in blocks also the last of each.
 * `channel` counts the input channels of a group. */
static void conv_channels(qn_writer *w, const qn_node *node, const qn_dim *index, qn_dim channel,
                          qn_dim *at_x, qn_dim *at_w)
{
    qn_dims *dims = w->space.dims;
    const int spatial = node->results[0].type.rank - (node->op == QN_OP_CONVOLUTION ? 2 : 3);
    qn_dim w_dims[QN_MAX_RANK], x_dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &node->operands[1]->type, w_dims);
    qn_ispace_dims(&w->space, &node->operands[0]->type, x_dims);
    const qn_dim groups = qn_dim_const(dims, qn_attr_int(node, QN_ATTR_GROUPS));
    const qn_dim lanes = x_dims[node->operands[0]->type.rank - 1]; /* in blocks */
    at_x[0] = index[0];
    at_w[0] = index[1];
    const bool across =
        node->op == QN_OP_CONV_PACKED && groups->value > 1 && qn_attr_find(node, QN_ATTR_OUT_CHANNELS);
    if (across ||
        (node->op == QN_OP_CONV_PACKED && qn_dim_is_const(x_dims[1]) && groups->value > x_dims[1]->value)) {
        /* groups inside of blocks, or across them */
        const qn_dim o = w_dims[spatial + 3],
                     of_group = across ? qn_dim_const(dims, qn_attr_int(node, QN_ATTR_OUT_CHANNELS))
                                       : qn_ix_div(&w->space, qn_dim_mul(dims, w_dims[0], o), groups),
                     out = qn_dim_add(dims, qn_dim_mul(dims, index[1], o), index[spatial + 2]),
                     group = qn_dim_min(dims, qn_ix_div(&w->space, out, of_group),
                                        qn_dim_const(dims, groups->value - 1)),
                     from = qn_dim_add(dims, qn_dim_mul(dims, group, w_dims[spatial + 2]), channel);
        at_x[1] = qn_ix_div(&w->space, from, lanes);
        at_x[spatial + 2] = qn_ix_mod(&w->space, from, lanes);
        at_w[1] = qn_dim_const(dims, 0);
        at_w[spatial + 2] = channel;
        at_w[spatial + 3] = index[spatial + 2];
        return;
    }
    const qn_dim group = qn_ix_div(&w->space, index[1], qn_ix_div(&w->space, w_dims[0], groups));
    if (node->op == QN_OP_CONVOLUTION) {
        at_x[1] = qn_dim_add(dims, qn_dim_mul(dims, group, w_dims[1]), channel);
        at_w[1] = channel;
        return;
    }
    const qn_dim block = qn_ix_div(&w->space, channel, lanes);
    at_w[spatial + 3] = index[spatial + 2];
    at_x[1] = qn_dim_add(dims, qn_dim_mul(dims, group, qn_ix_div(&w->space, x_dims[1], groups)), block);
    at_x[spatial + 2] = qn_ix_mod(&w->space, channel, lanes);
    const bool alike = w_dims[spatial + 2] == lanes; /* else w has blocks of one channel */
    at_w[1] = alike ? block : channel;
    at_w[spatial + 2] = alike ? at_x[spatial + 2] : qn_dim_const(dims, 0);
}

/* x[n, g*C + c, (o*stride - low + k*w_dilation) / x_dilation] * w[o, c, k], summed over c and k where x has that element. */
static qn_kvalue *convolution(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_dims *dims = w->space.dims;
    qn_value *x = node->operands[0], *filter = node->operands[1];
    const bool packed = node->op == QN_OP_CONV_PACKED;
    const int spatial = x->type.rank - 2 - packed;
    const qn_dtype result = node->results[0].type.dtype, dtype = qn_dtype_wide(result);
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
    const int64_t *x_dilation = packed ? NULL : qn_attr_ints(node, QN_ATTR_X_DILATION, NULL);
    const int64_t *w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL);
    qn_dim vars[QN_MAX_RANK], at_x[QN_MAX_RANK], at_w[QN_MAX_RANK];
    for (int i = 0; i <= spatial; i++)
        vars[i] = qn_ispace_var(&w->space,
                                packed && i == 0 ? qn_dim_const(dims, qn_attr_int(node, QN_ATTR_CHANNELS))
                                                 : qn_ispace_import(&w->space, filter->type.dims[1 + i]),
                                false);
    conv_channels(w, node, index, vars[0], at_x, at_w);
    qn_kvalue *acc = qn_writer_constant(w, dtype, qn_neutral(QN_SUM, dtype));
    qn_writer_loop loops[QN_MAX_RANK];
    qn_writer_open_nest(w, 1 + spatial, vars, QN_TAG_SERIAL, 1, &acc, NULL, loops);
    acc = loops[spatial].carried[0];
    qn_kvalue *inside = NULL;
    for (int i = 0; i < spatial; i++) {
        qn_dim at = qn_dim_add(dims, qn_dim_mul(dims, index[2 + i], qn_dim_const(dims, stride[i])),
                               qn_dim_mul(dims, vars[1 + i], qn_dim_const(dims, w_dilation[i])));
        at = qn_dim_sub(dims, at, qn_ispace_import(&w->space, low[i]));
        const qn_dim step = qn_dim_const(dims, x_dilation ? x_dilation[i] : 1);
        inside = qn_writer_and_inside(
            w, inside, at, qn_dim_mul(dims, qn_ispace_import(&w->space, x->type.dims[2 + i]), step));
        if (!qn_dim_is(step, 1))
            inside = qn_writer_and_multiple(w, inside, at, step);
        at_x[2 + i] = qn_ix_div(&w->space, at, step);
        at_w[2 + i] = vars[1 + i];
    }
    qn_kvalue *zero = qn_writer_constant(w, x->type.dtype, (qn_scalar){ .i = 0 });
    qn_kvalue *element = qn_writer_value_where(w, inside, x, at_x, zero);
    acc = qn_writer_combine(w, QN_SUM, acc, product(w, dtype, element, qn_writer_value(w, filter, at_w)));
    qn_writer_close_nest(w, 1 + spatial, loops, &acc);
    return qn_kb_convert(&w->b, result, loops[0].carried[0]);
}

/* Which places of a window, whose first one is at `first`, lie in [0, extent). */
static void places_inside(qn_writer *w, qn_dim first, qn_dim extent, int64_t window, int64_t dilation,
                          qn_dim *out_low, qn_dim *out_high)
{
    qn_dims *dims = w->space.dims;
    const qn_dim zero = qn_dim_const(dims, 0), step = qn_dim_const(dims, dilation),
                 before = qn_dim_sub(dims, zero, first), left = qn_dim_sub(dims, extent, first);
    *out_low = qn_ix_not_negative(&w->space, first)
                   ? zero
                   : qn_dim_ceildiv(dims, qn_dim_max(dims, before, zero), step);
    *out_high = qn_dim_min(dims, qn_dim_const(dims, window),
                           qn_dim_ceildiv(dims, qn_dim_max(dims, left, zero), step));
}

/* Is the axis of unknown extent, and its index another for other lanes? Lanes are along the last axis, where that has any. */
static bool is_apart(qn_writer *w, const qn_value *x, const qn_dim *index, int axis)
{
    const int last = x->type.rank - 1;
    bool apart =
        axis < last && !qn_dim_is_const(x->type.dims[axis]) && qn_ix_uses_vars(&w->space, index[last]);
    for (size_t i = 0; i < w->space.vars.n && apart; i++) {
        const qn_dim var = w->space.vars.items[i].symbol;
        apart = !qn_ix_uses(index[last], var) || !qn_ix_uses(index[axis], var);
    }
    return apart;
}

static qn_kvalue *reduce_window(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_dims *dims = w->space.dims;
    qn_value *x = node->operands[0];
    const int rank = x->type.rank;
    const qn_kind kind = qn_attr_reduce_kind(node);
    const qn_dtype dtype = qn_dtype_wide(x->type.dtype);
    const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL);
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    const int64_t *dilation = qn_attr_ints(node, QN_ATTR_DILATION, NULL);
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    qn_dim at[QN_MAX_RANK];
    qn_writer_loop loops[QN_MAX_RANK];
    qn_kvalue *acc = qn_writer_constant(w, dtype, qn_neutral(kind, dtype)), *inside = NULL;
    for (int i = 0; i < rank; i++) {
        const qn_dim var = qn_ispace_var(&w->space, qn_dim_const(dims, window[i]), false);
        const qn_dim first = qn_dim_sub(dims, qn_dim_mul(dims, index[i], qn_dim_const(dims, stride[i])),
                                        qn_ispace_import(&w->space, low[i])),
                     extent = qn_ispace_import(&w->space, x->type.dims[i]);
        at[i] = qn_dim_add(dims, first, qn_dim_mul(dims, var, qn_dim_const(dims, dilation[i])));
        const bool as_it_was =
            window[i] == 1 && stride[i] == 1 && qn_dim_is(low[i], 0) && qn_dim_is(high[i], 0);
        if (!as_it_was && window[i] > 1 && is_apart(w, x, index, i) &&
            (!qn_ix_not_negative(&w->space, at[i]) || !qn_ix_below(&w->space, at[i], extent))) {
            qn_dim from, to;
            places_inside(w, first, extent, window[i], dilation[i], &from, &to);
            loops[i] = qn_writer_for(w, var, qn_writer_index(w, from), qn_writer_index(w, to), QN_TAG_SERIAL,
                                     1, &acc, NULL);
        } else {
            loops[i] = qn_writer_for_all(w, var, QN_TAG_SERIAL, 1, &acc, NULL);
            if (!as_it_was)
                inside = qn_writer_and_inside(w, inside, at[i], extent);
        }
        acc = loops[i].carried[0];
    }
    qn_kvalue *neutral = qn_writer_constant(w, x->type.dtype, qn_neutral(kind, x->type.dtype));
    qn_kvalue *element = qn_writer_value_where(w, inside, x, at, neutral);
    acc = qn_writer_combine(w, kind, acc, qn_kb_convert(&w->b, dtype, element));
    for (int i = rank - 1; i >= 0; i--) {
        qn_writer_end_for(w, &loops[i], &acc);
        acc = loops[i].carried[0];
    }
    return qn_kb_convert(&w->b, x->type.dtype, acc);
}

qn_kvalue *qn_writer_sum(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    switch (node->op) {
    case QN_OP_REDUCE: return reduce(w, node, index);
    case QN_OP_REDUCE_WINDOW: return reduce_window(w, node, index);
    case QN_OP_DOT_GENERAL: return dot_general(w, node, index);
    default: return convolution(w, node, index);
    }
}
