/* Code for "element of a value at an index".
 *
 * A value that is bound comes from memory. Any other is computed by its node from elements of its operands: an element-wise
 * op at the same index, data movement at an index that is calculated (passes/index.h), reductions and contractions in
 * loops over what they sum. So a whole group is written by asking for the elements of its outputs, and everything between
 * is never stored.
 *
 * What is computed once at an index is remembered as long as the block that it is in stays open. Where an element only
 * exists under a condition (pad, concatenate, windows), the loads that it needs are masked with it. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "passes/lower.h"
#include "passes/math/narrow.h"
#include "passes/passes.h"

/* ---- numbers ---- */

static qn_kvalue *constant(qn_writer *w, qn_dtype dtype, qn_scalar value)
{
    return qn_kb_const(&w->b, (qn_ktype){ qn_dtype_carrier(dtype), 1 }, value);
}

static bool may_fuse(const qn_writer *w, qn_dtype dtype)
{
    return qn_may_fuse(w->lowering->options) && (dtype == QUERN_F32 || dtype == QUERN_F64);
}

static const qn_kinst *product_of(const qn_kvalue *v)
{
    return v->inst && v->inst->op == QN_K_BINARY && v->inst->fn == QN_OP_MUL ? v->inst : NULL;
}

/* x + y or x - y, with one rounding where either is a product and the math mode allows it. */
static qn_kvalue *add_or_sub(qn_writer *w, qn_op op, qn_kvalue *x, qn_kvalue *y)
{
    qn_kbuilder *b = &w->b;
    if (may_fuse(w, x->type.dtype)) {
        const qn_kinst *p = product_of(y);
        if (p)
            return qn_kb_fma(b, op == QN_OP_SUB ? qn_kb_unary(b, QN_OP_NEG, p->operands[0]) : p->operands[0],
                             p->operands[1], x);
        p = product_of(x);
        if (p)
            return qn_kb_fma(b, p->operands[0], p->operands[1],
                             op == QN_OP_SUB ? qn_kb_unary(b, QN_OP_NEG, y) : y);
    }
    return qn_kb_binary(b, op, x, y);
}

qn_kvalue *qn_writer_combine(qn_writer *w, qn_kind kind, qn_kvalue *x, qn_kvalue *y)
{
    switch (kind) {
    case QN_SUM: return add_or_sub(w, QN_OP_ADD, x, y);
    case QN_PROD: return qn_kb_binary(&w->b, QN_OP_MUL, x, y);
    case QN_KIND_MAX: return qn_kb_binary(&w->b, QN_OP_MAX, x, y);
    case QN_KIND_MIN: return qn_kb_binary(&w->b, QN_OP_MIN, x, y);
    case QN_SET: return y;
    case QN_MEAN:
    case QN_N_KINDS: break;
    }
    QN_UNREACHABLE("kind %d", (int)kind);
}

/* ---- conditions ---- */

static qn_kvalue *both(qn_writer *w, qn_kvalue *a, qn_kvalue *b)
{
    return !a ? b : !b ? a : qn_kb_binary(&w->b, QN_OP_AND, a, b);
}

qn_kvalue *qn_writer_and_inside(qn_writer *w, qn_kvalue *condition, qn_dim d, qn_dim extent)
{
    const bool low = !qn_ix_not_negative(&w->space, d), high = !qn_ix_below(&w->space, d, extent);
    if (!low && !high)
        return condition;
    qn_writer_note_index(w, d);
    qn_vec_push(w->arena, &w->bounds, ((qn_bound){ d, extent }));
    qn_kvalue *at = qn_writer_index(w, d);
    if (low)
        condition = both(w, condition, qn_kb_compare(&w->b, QN_GE, at, qn_kb_index(&w->b, 0)));
    if (high)
        condition = both(w, condition, qn_kb_compare(&w->b, QN_LT, at, qn_writer_index(w, extent)));
    return condition;
}

/* The element at an index that holds where `condition` does; elsewhere `other`. */
static qn_kvalue *value_where(qn_writer *w, qn_kvalue *condition, qn_value *value, const qn_dim *index,
                              qn_kvalue *other)
{
    if (!condition)
        return qn_writer_value(w, value, index);
    qn_kvalue *const outer = w->mask;
    w->mask = both(w, outer, condition);
    qn_kvalue *inside = qn_writer_value(w, value, index);
    w->mask = outer;
    return qn_kb_select(&w->b, condition, inside, other);
}

/* ---- numbers as indices ---- */

static qn_dim datum(qn_writer *w, const qn_kvalue *source, qn_kvalue *number, qn_dim extent)
{
    const qn_dim symbol = qn_ispace_var(&w->space, extent, true);
    qn_ispace_set(&w->space, symbol, number);
    const qn_datum d = {
        .source = source, .mask = w->mask, .extent = extent, .symbol = symbol, .known = qn_writer_mark(w)
    };
    qn_vec_push(w->arena, &w->data, d);
    return symbol;
}

static qn_dim find_datum(const qn_writer *w, const qn_kvalue *source, qn_dim extent)
{
    for (size_t i = 0; i < w->data.n; i++) {
        const qn_datum *d = &w->data.items[i];
        if (d->source == source && d->extent == extent && (!d->mask || d->mask == w->mask))
            return d->symbol;
    }
    return NULL;
}

qn_dim qn_writer_datum(qn_writer *w, qn_kvalue *number, qn_dim extent)
{
    const qn_dim found = find_datum(w, number, extent);
    return found ? found : datum(w, number, number, extent);
}

qn_dim qn_writer_checked_index(qn_writer *w, qn_kvalue *number, qn_dim extent, const qn_node *node)
{
    qn_kbuilder *b = &w->b;
    const qn_dim found = find_datum(w, number, extent);
    if (found)
        return found;
    qn_kvalue *at = qn_kb_convert(b, QUERN_I64, number);
    const qn_bounds bounds = qn_bounds_of(w->lowering->scope->bounds, node->operands[1]);
    if (bounds.low >= 0 && bounds.high < extent->min)
        return datum(w, number, at, extent);
    qn_kvalue *n = qn_writer_index(w, extent), *zero = qn_kb_index(b, 0);
    at = qn_kb_select(b, qn_kb_compare(b, QN_LT, at, zero), qn_kb_binary(b, QN_OP_ADD, at, n), at);
    qn_kvalue *fine = both(w, qn_kb_compare(b, QN_GE, at, zero), qn_kb_compare(b, QN_LT, at, n));
    if (w->mask)
        fine = qn_kb_binary(b, QN_OP_OR, fine, qn_kb_unary(b, QN_OP_NOT, w->mask));
    qn_kb_check(b, fine, qn_lower_node_number(w->lowering, node));
    return datum(w, number, at, extent);
}

qn_dim qn_writer_clamped_index(qn_writer *w, qn_kvalue *number, qn_dim extent)
{
    qn_kbuilder *b = &w->b;
    const qn_dim found = find_datum(w, number, extent);
    if (found)
        return found;
    qn_kvalue *at = qn_kb_convert(b, QUERN_I64, number);
    const qn_dim last = qn_dim_sub(w->space.dims, extent, qn_dim_const(w->space.dims, 1));
    at = qn_kb_binary(b, QN_OP_MIN, at, qn_writer_index(w, last));
    at = qn_kb_binary(b, QN_OP_MAX, at, qn_kb_index(b, 0));
    return datum(w, number, at, extent);
}

/* The numbers that a movement op reads its index from. */
static void read_data(qn_writer *w, const qn_node *node, const qn_dim *index, qn_dim *out_data)
{
    const qn_type *type = &node->operands[0]->type;
    qn_dims *dims = w->space.dims;
    const int n = qn_ix_data_count(node);
    qn_dim at[QN_MAX_RANK];
    for (int i = 0; i < n; i++) {
        if (node->op == QN_OP_DYNAMIC_SLICE) {
            const qn_dim room = qn_dim_sub(dims, qn_ispace_import(&w->space, type->dims[i]),
                                           qn_ispace_import(&w->space, node->results[0].type.dims[i]));
            if (qn_dim_is(room, 0)) {
                out_data[i] = room;
                continue;
            }
            qn_kvalue *start = qn_writer_value(w, node->operands[1 + i], NULL);
            out_data[i] = qn_writer_clamped_index(w, start, qn_dim_add(dims, room, qn_dim_const(dims, 1)));
            continue;
        }
        qn_ix_operand(&w->space, node, 1, index, NULL, at);
        int axis = 0;
        if (node->op == QN_OP_GATHER_ND) {
            at[node->operands[1]->type.rank - 1] = qn_dim_const(dims, i);
            axis = (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS) + i;
        } else {
            axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
        }
        out_data[i] = qn_writer_checked_index(w, qn_writer_value(w, node->operands[1], at),
                                              qn_ispace_import(&w->space, type->dims[axis]), node);
    }
}

/* ---- element-wise ---- */

/* Under precision bf16 what rounds to it may take numbers below the smallest normal one for 0: matrix units do so anyway. */
static qn_kvalue *convert(qn_writer *w, qn_dtype from, qn_dtype dtype, qn_kvalue *x)
{
    if (qn_dtype_is_stored(from) || qn_dtype_is_stored(dtype))
        return qn_narrow_convert(&w->b, from, dtype, x);
    const bool fast = w->b.fast;
    w->b.fast |= w->lowering->options->precision == QN_PRECISION_BF16 && dtype == QUERN_BF16;
    qn_kvalue *made = qn_kb_convert(&w->b, dtype, x);
    w->b.fast = fast;
    return made;
}

const qn_node *qn_maximum_taken(const qn_value *value)
{
    const qn_node *sub = value->node;
    if (!sub || sub->op != QN_OP_SUB)
        return NULL;
    const qn_node *broadcast = sub->operands[1]->node, *max = broadcast ? broadcast->operands[0]->node : NULL;
    if (!max || broadcast->op != QN_OP_BROADCAST || max->op != QN_OP_REDUCE ||
        qn_attr_reduce_kind(max) != QN_KIND_MAX || max->operands[0] != sub->operands[0])
        return NULL;
    int n_reduced, n_kept;
    const int64_t *reduced = qn_attr_ints(max, QN_ATTR_AXES, &n_reduced);
    const int64_t *kept = qn_attr_ints(broadcast, QN_ATTR_AXES, &n_kept);
    for (int i = 0, r = 0, k = 0; i < value->type.rank; i++)
        if (r < n_reduced && reduced[r] == i)
            r++;
        else if (k >= n_kept || kept[k++] != i)
            return NULL;
    return max;
}

static qn_kvalue *elementwise(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_kbuilder *b = &w->b;
    qn_kvalue *x[3] = { NULL };
    const qn_dtype result = node->results[0].type.dtype;
    QN_ASSERT(node->n_operands <= 3, "%s has %d operands", qn_ops[node->op].name, node->n_operands);
    for (int i = 0; i < node->n_operands; i++)
        x[i] = qn_writer_value(w, node->operands[i], index);
    switch (node->op) {
    case QN_OP_CONVERT: return convert(w, node->operands[0]->type.dtype, result, x[0]);
    case QN_OP_BITCAST: /* a bool is a byte of 0 or 1; in a register it may be a bit */
        return x[0]->type.dtype == QUERN_BOOL || result == QUERN_BOOL
                   ? qn_kb_convert(b, result, x[0])
                   : qn_kb_bitcast(b, qn_dtype_carrier(result), x[0]);
    case QN_OP_STOP_GRADIENT: return x[0];
    case QN_OP_COMPARE: return qn_kb_compare(b, qn_attr_compare_direction(node), x[0], x[1]);
    case QN_OP_SELECT: return qn_kb_select(b, x[0], x[1], x[2]);
    case QN_OP_ADD:
    case QN_OP_SUB: return add_or_sub(w, node->op, x[0], x[1]);
    case QN_OP_EXP:
        return qn_maximum_taken(node->operands[0]) ? qn_kb_exp_nonpositive(b, x[0])
                                                   : qn_kb_unary(b, QN_OP_EXP, x[0]);
    default:
        return node->n_operands == 1 ? qn_kb_unary(b, node->op, x[0]) : qn_kb_binary(b, node->op, x[0], x[1]);
    }
}

/* ---- movement ---- */

/* Inside is where the index, low taken off, is a multiple of interior + 1 and falls into the operand. */
static qn_kvalue *pad(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_dims *dims = w->space.dims;
    qn_value *x = node->operands[0];
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
    const int64_t *interior = qn_attr_ints(node, QN_ATTR_INTERIOR, NULL);
    qn_dim at[QN_MAX_RANK];
    qn_kvalue *inside = NULL;
    for (int i = 0; i < x->type.rank; i++) {
        const qn_dim step = qn_dim_const(dims, interior[i] + 1),
                     extent = qn_ispace_import(&w->space, x->type.dims[i]);
        const qn_dim from_low = qn_dim_sub(dims, index[i], qn_ispace_import(&w->space, low[i]));
        if (qn_dim_is(low[i], 0) && x->type.dims[i] == node->results[0].type.dims[i])
            continue; /* as it was */
        inside = qn_writer_and_inside(w, inside, from_low, qn_dim_mul(dims, extent, step));
        if (interior[i] > 0) {
            const qn_dim rest = qn_ix_mod(&w->space, from_low, step);
            qn_writer_note_index(w, rest);
            inside =
                both(w, inside, qn_kb_compare(&w->b, QN_EQ, qn_writer_index(w, rest), qn_kb_index(&w->b, 0)));
        }
    }
    qn_ix_operand(&w->space, node, 0, index, NULL, at);
    return value_where(w, inside, x, at, inside ? qn_writer_value(w, node->operands[1], NULL) : NULL);
}

/* Operands from the last to the first: the element is the first operand's where the index is below its end. */
static qn_kvalue *concatenate(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    const int64_t axis = qn_attr_int(node, QN_ATTR_AXIS);
    qn_kvalue *result = NULL;
    qn_dim at[QN_MAX_RANK];
    for (int k = node->n_operands - 1; k >= 0; k--) {
        qn_value *x = node->operands[k];
        qn_ix_operand(&w->space, node, k, index, NULL, at);
        const qn_dim extent = qn_ispace_import(&w->space, x->type.dims[axis]);
        if (qn_ix_below(&w->space, at[axis], qn_dim_const(w->space.dims, 0)) ||
            qn_ix_not_negative(&w->space, qn_dim_sub(w->space.dims, at[axis], extent)))
            continue; /* never this one */
        qn_kvalue *inside = qn_writer_and_inside(w, NULL, at[axis], extent);
        result = value_where(w, inside, x, at,
                             inside && !result ? constant(w, x->type.dtype, (qn_scalar){ .i = 0 }) : result);
    }
    return result ? result : constant(w, node->results[0].type.dtype, (qn_scalar){ .i = 0 });
}

/* ---- sums ---- */

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
    qn_kvalue *acc = constant(w, dtype, qn_neutral(kind, dtype));
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
    qn_kvalue *acc = constant(w, dtype, qn_neutral(QN_SUM, dtype));
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
    qn_kvalue *acc = constant(w, dtype, qn_neutral(QN_SUM, dtype));
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
        if (!qn_dim_is(step, 1)) {
            const qn_dim rest = qn_ix_mod(&w->space, at, step);
            qn_writer_note_index(w, rest);
            inside =
                both(w, inside, qn_kb_compare(&w->b, QN_EQ, qn_writer_index(w, rest), qn_kb_index(&w->b, 0)));
        }
        at_x[2 + i] = qn_ix_div(&w->space, at, step);
        at_w[2 + i] = vars[1 + i];
    }
    qn_kvalue *zero = constant(w, x->type.dtype, (qn_scalar){ .i = 0 });
    qn_kvalue *element = value_where(w, inside, x, at_x, zero);
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
    qn_kvalue *acc = constant(w, dtype, qn_neutral(kind, dtype)), *inside = NULL;
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
    qn_kvalue *neutral = constant(w, x->type.dtype, qn_neutral(kind, x->type.dtype));
    qn_kvalue *element = value_where(w, inside, x, at, neutral);
    acc = qn_writer_combine(w, kind, acc, qn_kb_convert(&w->b, dtype, element));
    for (int i = rank - 1; i >= 0; i--) {
        qn_writer_end_for(w, &loops[i], &acc);
        acc = loops[i].carried[0];
    }
    return qn_kb_convert(&w->b, x->type.dtype, acc);
}

/* ---- random bits: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) ---- */

static qn_kvalue *word(qn_writer *w, qn_kvalue *v, int shift) /* 32 bits of a u64 */
{
    qn_kbuilder *b = &w->b;
    if (shift > 0)
        v = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, v, constant(w, QUERN_U64, (qn_scalar){ .i = shift }));
    return qn_kb_convert(b, QUERN_U32, v);
}

/* Element i is word i % 4 of the block with counter (offset + i / 4, key[1]) under key[0]. */
static qn_kvalue *random_bits(qn_writer *w, const qn_node *node, const qn_dim *index)
{
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_dim type_dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &node->results[0].type, type_dims);
    const qn_dim i = qn_ix_linear(&w->space, node->results[0].type.rank, type_dims, index),
                 four = qn_dim_const(dims, 4);
    const qn_dim block = qn_ix_div(&w->space, i, four), lane = qn_ix_mod(&w->space, i, four);
    qn_writer_note_index(w, i);
    qn_kvalue *key = qn_writer_value(w, node->operands[0], (qn_dim[]){ qn_dim_const(dims, 0) });
    qn_kvalue *upper = qn_writer_value(w, node->operands[0], (qn_dim[]){ qn_dim_const(dims, 1) });
    qn_kvalue *at = qn_kb_binary(b, QN_OP_ADD, qn_writer_value(w, node->operands[1], NULL),
                                 qn_kb_convert(b, QUERN_U64, qn_writer_index(w, block)));
    qn_kvalue *c[4] = { word(w, at, 0), word(w, at, 32), word(w, upper, 0), word(w, upper, 32) };
    qn_kvalue *k[2] = { word(w, key, 0), word(w, key, 32) };
    qn_kvalue *multiplier[2] = { constant(w, QUERN_U64, (qn_scalar){ .i = 0xd2511f53 }),
                                 constant(w, QUERN_U64, (qn_scalar){ .i = 0xcd9e8d57 }) };
    qn_kvalue *bump[2] = { constant(w, QUERN_U32, (qn_scalar){ .i = 0x9e3779b9 }),
                           constant(w, QUERN_U32, (qn_scalar){ .i = 0xbb67ae85 }) };
    for (int round = 0; round < 10; round++) {
        qn_kvalue *p = qn_kb_binary(b, QN_OP_MUL, multiplier[0], qn_kb_convert(b, QUERN_U64, c[0]));
        qn_kvalue *q = qn_kb_binary(b, QN_OP_MUL, multiplier[1], qn_kb_convert(b, QUERN_U64, c[2]));
        qn_kvalue *const next[4] = {
            qn_kb_binary(b, QN_OP_XOR, qn_kb_binary(b, QN_OP_XOR, word(w, q, 32), c[1]), k[0]), word(w, q, 0),
            qn_kb_binary(b, QN_OP_XOR, qn_kb_binary(b, QN_OP_XOR, word(w, p, 32), c[3]), k[1]), word(w, p, 0)
        };
        memcpy(c, next, sizeof next);
        for (int j = 0; j < 2; j++)
            k[j] = qn_kb_binary(b, QN_OP_ADD, k[j], bump[j]);
    }
    qn_kvalue *l = qn_writer_index(w, lane), *result = c[3];
    for (int j = 2; j >= 0; j--)
        result = qn_kb_select(b, qn_kb_compare(b, QN_EQ, l, qn_kb_index(b, j)), c[j], result);
    return result;
}

/* ---- any value ---- */

static qn_kvalue *load(qn_writer *w, const qn_binding *binding, const qn_value *value, const qn_dim *index)
{
    if (binding->fetch)
        return binding->fetch(w, binding->user, value, index);
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &value->type, dims);
    return qn_writer_load(w, binding->buffer, qn_ix_linear(&w->space, value->type.rank, dims, index));
}

static qn_kvalue *compute(qn_writer *w, qn_value *value, const qn_dim *index)
{
    const qn_node *node = value->node;
    QN_ASSERT(node, "lower: graph input %s is not bound", value->name ? value->name : "");
    switch (qn_ops[node->op].class) {
    case QN_ELEMENTWISE: return elementwise(w, node, index);
    case QN_CONTRACTION:
        return node->op == QN_OP_DOT_GENERAL ? dot_general(w, node, index) : convolution(w, node, index);
    default: break;
    }
    switch (node->op) {
    case QN_OP_IOTA: {
        const qn_dim i = index[qn_attr_int(node, QN_ATTR_AXIS)];
        qn_writer_note_index(w, i);
        return qn_kb_convert(&w->b, value->type.dtype, qn_writer_index(w, i));
    }
    case QN_OP_DIM_VALUE: {
        const qn_dim d = qn_ispace_import(&w->space, qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0]);
        return qn_kb_convert(&w->b, value->type.dtype, qn_writer_index(w, d));
    }
    case QN_OP_RANDOM_BITS: return random_bits(w, node, index);
    case QN_OP_PAD: return pad(w, node, index);
    case QN_OP_CONCATENATE: return concatenate(w, node, index);
    case QN_OP_REDUCE: return reduce(w, node, index);
    case QN_OP_REDUCE_WINDOW: return reduce_window(w, node, index);
    default: break;
    }
    QN_ASSERT(qn_ix_moves(node), "lower: %s is not bound and can't be computed at an index",
              qn_ops[node->op].name);
    qn_dim data[QN_MAX_RANK], at[QN_MAX_RANK];
    read_data(w, node, index, data);
    qn_ix_operand(&w->space, node, 0, index, data, at);
    return qn_writer_value(w, node->operands[0], at);
}

static qn_kvalue *compute_traced(qn_writer *w, qn_value *value, const qn_dim *index)
{
    qn_kvalue *result = compute(w, value, index);
    if (w->computed)
        w->computed(w, w->computed_user, value, index, result);
    return result;
}

qn_kvalue *qn_writer_value(qn_writer *w, qn_value *value, const qn_dim *index)
{
    qn_known *known = qn_writer_find_known(w, value, index);
    if (known && known->result)
        return known->result;
    qn_kvalue *result;
    qn_scalar splat;
    const qn_binding *binding = qn_writer_binding(w, value);
    if (binding)
        result = load(w, binding, value, index);
    else if (qn_value_splat(value, &splat))
        result = constant(w, value->type.dtype, splat);
    else
        result = compute_traced(w, value, index);
    qn_writer_add_known(w, value, index, result);
    return result;
}

/* ---- before a loop ---- */

static bool uses_unset(const qn_writer *w, qn_dim d)
{
    if (d->kind == QN_DIM_SYMBOL) {
        const qn_var *var = qn_ispace_var_of(&w->space, d);
        return var && !var->value;
    }
    for (int i = 0; i < d->n; i++)
        if (uses_unset(w, d->operands[i]))
            return true;
    return false;
}

void qn_writer_prepare(qn_writer *w, qn_value *value, const qn_dim *index)
{
    qn_scalar splat;
    if (w->mask || qn_writer_find_known(w, value, index) || qn_value_splat(value, &splat))
        return;
    bool fixed = true;
    for (int i = 0; i < value->type.rank && fixed; i++)
        fixed = !uses_unset(w, index[i]);
    if (fixed) {
        qn_writer_value(w, value, index);
        return;
    }
    if (qn_writer_binding(w, value))
        return;
    qn_writer_add_known(w, value, index, NULL);
    const qn_node *node = value->node;
    qn_dim at[QN_MAX_RANK];
    if (node->op == QN_OP_RANDOM_BITS || node->op == QN_OP_DYNAMIC_SLICE || node->op == QN_OP_PAD) {
        for (int k = node->op == QN_OP_RANDOM_BITS ? 0 : 1; k < node->n_operands; k++)
            if (node->operands[k]->type.rank == 0)
                qn_writer_prepare(w, node->operands[k], NULL);
        return;
    }
    if (qn_ix_data_count(node) > 0) {
        qn_ix_operand(&w->space, node, 1, index, NULL, at);
        if (node->op != QN_OP_GATHER_ND)
            qn_writer_prepare(w, node->operands[1], at);
        return;
    }
    if (!qn_ix_moves(node) || node->op == QN_OP_CONCATENATE)
        return;
    for (int k = 0; k < node->n_operands; k++) {
        qn_ix_operand(&w->space, node, k, index, NULL, at);
        qn_writer_prepare(w, node->operands[k], at);
    }
}
