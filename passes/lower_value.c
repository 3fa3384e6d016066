/* Code for "element of a value at an index".
 *
 * A value that is bound comes from memory. Any other is computed by its node from elements of its operands: an element-wise
 * op at the same index, data movement at an index that is calculated (passes/index.h), reductions and contractions in
 * loops over what they sum. So a whole group is written by asking for the elements of its outputs, and everything between
 * is never stored.
 *
 * What is computed once at an index is remembered as long as the block that it is in stays open. Where an element only
 * exists under a condition (pad, concatenate, windows), the loads that it needs are masked with it. */
#include <string.h>

#include "passes/lower.h"
#include "passes/math/narrow.h"
#include "passes/passes.h"

/* ---- numbers ---- */

qn_kvalue *qn_writer_constant(qn_writer *w, qn_dtype dtype, qn_scalar value)
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

qn_kvalue *qn_writer_and_multiple(qn_writer *w, qn_kvalue *condition, qn_dim d, qn_dim step)
{
    const qn_dim rest = qn_ix_mod(&w->space, d, step);
    qn_writer_note_index(w, rest);
    return both(w, condition, qn_kb_compare(&w->b, QN_EQ, qn_writer_index(w, rest), qn_kb_index(&w->b, 0)));
}

qn_kvalue *qn_writer_value_where(qn_writer *w, qn_kvalue *condition, qn_value *value, const qn_dim *index,
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
        if (interior[i] > 0)
            inside = qn_writer_and_multiple(w, inside, from_low, step);
    }
    qn_ix_operand(&w->space, node, 0, index, NULL, at);
    return qn_writer_value_where(w, inside, x, at,
                                 inside ? qn_writer_value(w, node->operands[1], NULL) : NULL);
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
        result = qn_writer_value_where(
            w, inside, x, at,
            inside && !result ? qn_writer_constant(w, x->type.dtype, (qn_scalar){ .i = 0 }) : result);
    }
    return result ? result : qn_writer_constant(w, node->results[0].type.dtype, (qn_scalar){ .i = 0 });
}

/* ---- random bits: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) ---- */

static qn_kvalue *word(qn_writer *w, qn_kvalue *v, int shift) /* 32 bits of a u64 */
{
    qn_kbuilder *b = &w->b;
    if (shift > 0)
        v = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, v,
                         qn_writer_constant(w, QUERN_U64, (qn_scalar){ .i = shift }));
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
    qn_kvalue *multiplier[2] = { qn_writer_constant(w, QUERN_U64, (qn_scalar){ .i = 0xd2511f53 }),
                                 qn_writer_constant(w, QUERN_U64, (qn_scalar){ .i = 0xcd9e8d57 }) };
    qn_kvalue *bump[2] = { qn_writer_constant(w, QUERN_U32, (qn_scalar){ .i = 0x9e3779b9 }),
                           qn_writer_constant(w, QUERN_U32, (qn_scalar){ .i = 0xbb67ae85 }) };
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
    case QN_CONTRACTION: return qn_writer_sum(w, node, index);
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
    case QN_OP_REDUCE:
    case QN_OP_REDUCE_WINDOW: return qn_writer_sum(w, node, index);
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
        result = qn_writer_constant(w, value->type.dtype, splat);
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
