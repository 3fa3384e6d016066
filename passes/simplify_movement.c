/* The simplify pass: rules for data movement, reductions and contractions. All are exact in every math mode but for the
 * order of a sum, which merge_reductions respects. Dims are hash-consed: equal dims are the same pointer. */
#include <string.h>

#include "passes/simplify.h"

static bool all_zero(const qn_dim *dims, int n)
{
    for (int i = 0; i < n; i++)
        if (!qn_dim_is(dims[i], 0))
            return false;
    return true;
}

/* The scalar that is broadcast everywhere, or NULL. */
static qn_value *broadcast_scalar(const qn_value *value)
{
    const qn_node *broadcast = qn_value_made_by(value, QN_OP_BROADCAST);
    return broadcast && broadcast->operands[0]->type.rank == 0 ? broadcast->operands[0] : NULL;
}

static qn_value *splat(qn_rewriter *r, qn_value *scalar, const qn_type *type)
{
    return type->rank == 0 ? scalar
                           : qn_b_broadcast(&r->b, scalar, type->rank, type->dims, (const int64_t[]){ 0 });
}

/* ---- reshape ---- */

/* reshape(transpose(reshape(x))) where the outer one only adds or removes axes of extent 1: the transposition comes last, and
 * the other two are one. */
static qn_value *reshape_of_transpose(qn_rewriter *r, const qn_node *node)
{
    const qn_node *inner = qn_value_made_by(node->operands[0], QN_OP_TRANSPOSE);
    if (!inner || !qn_value_made_by(inner->operands[0], QN_OP_RESHAPE))
        return NULL;
    const qn_type *x = &inner->operands[0]->type, *between = &inner->results[0].type,
                  *type = &node->results[0].type;
    const int64_t *perm = qn_attr_ints(inner, QN_ATTR_PERM, NULL);
    int64_t slot[QN_MAX_RANK], moved[QN_MAX_RANK]; /* of an axis of x: where it is in the new operand */
    qn_dim dims[QN_MAX_RANK];
    int n = 0, slots = 0;
    for (int j = 0; j < type->rank; j++) {
        dims[j] = type->dims[j];
        moved[j] = j;
        if (qn_dim_is(type->dims[j], 1))
            continue;
        while (n < x->rank && qn_dim_is(x->dims[n], 1))
            n++;
        if (n == x->rank)
            return NULL;
        dims[j] = x->dims[n];
        slot[n++] = j;
    }
    for (; n < x->rank; n++)
        if (!qn_dim_is(x->dims[n], 1))
            return NULL;
    for (int i = 0; i < between->rank; i++) {
        if (qn_dim_is(between->dims[i], 1))
            continue;
        while (qn_dim_is(type->dims[slots], 1)) /* there are as many others as in x */
            slots++;
        if (type->dims[slots] != between->dims[i])
            return NULL;
        moved[slots++] = slot[perm[i]];
    }
    return qn_b_transpose(&r->b, qn_b_reshape(&r->b, inner->operands[0], type->rank, dims), moved);
}

static qn_value *reshape(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    if (qn_same_dims(&x->type, type))
        return x;
    const qn_node *inner = qn_value_made_by(x, QN_OP_RESHAPE);
    if (inner)
        return qn_b_reshape(&r->b, inner->operands[0], type->rank, type->dims);
    qn_value *scalar = broadcast_scalar(x);
    return scalar ? splat(r, scalar, type) : reshape_of_transpose(r, node);
}

/* ---- transpose ---- */

/* What is looked up by constant indices: these are transposed by fold, so that they are read in order. */
static qn_value *transpose_of_lookup(qn_rewriter *r, const qn_node *node)
{
    const qn_node *lookup = qn_value_made_by(node->operands[0], QN_OP_GATHER_ELEMENTS);
    int rank, axis = 0;
    const int64_t *perm = qn_attr_ints(node, QN_ATTR_PERM, &rank);
    if (!lookup)
        return NULL;
    qn_value *at = lookup->operands[1];
    const qn_node *repeat = qn_value_made_by(at, QN_OP_BROADCAST);
    if (repeat) {
        const int64_t *axes = qn_attr_ints(repeat, QN_ATTR_AXES, NULL);
        at = repeat->operands[0];
        for (int i = 0; i < at->type.rank; i++)
            if (at->type.rank != rank || axes[i] != i)
                return NULL;
    }
    if (!qn_value_constant(at))
        return NULL;
    at = qn_b_transpose(&r->b, at, perm);
    if (repeat)
        at = qn_b_broadcast_to(&r->b, at, rank, node->results[0].type.dims);
    while (perm[axis] != qn_attr_int(lookup, QN_ATTR_AXIS))
        axis++;
    return qn_b_gather_elements(&r->b, qn_b_transpose(&r->b, lookup->operands[0], perm), at, axis);
}

static qn_value *transpose(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    int rank;
    const int64_t *perm = qn_attr_ints(node, QN_ATTR_PERM, &rank);
    bool identity = true, ordered = true;
    int64_t last = -1;
    for (int i = 0; i < rank; i++) {
        identity &= perm[i] == i;
        if (qn_dim_is(type->dims[i], 1))
            continue;
        ordered &= perm[i] > last;
        last = perm[i];
    }
    if (identity)
        return x;
    if (ordered) /* only axes of extent 1 move */
        return qn_b_reshape(&r->b, x, rank, type->dims);
    int64_t combined[QN_MAX_RANK];
    const qn_node *inner = qn_value_made_by(x, QN_OP_TRANSPOSE);
    if (inner) {
        const int64_t *first = qn_attr_ints(inner, QN_ATTR_PERM, NULL);
        for (int i = 0; i < rank; i++)
            combined[i] = first[perm[i]];
        return qn_b_transpose(&r->b, inner->operands[0], combined);
    }
    inner = qn_value_made_by(x, QN_OP_BROADCAST);
    if (inner) {
        int n;
        const int64_t *axes = qn_attr_ints(inner, QN_ATTR_AXES, &n);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < rank; j++)
                if (perm[j] == axes[i])
                    combined[i] = j;
        return qn_b_broadcast(&r->b, inner->operands[0], rank, type->dims, combined);
    }
    return transpose_of_lookup(r, node);
}

/* ---- broadcast ---- */

/* Is every dim of `from` along `axes` either kept or 1, beyond doubt? */
static bool decided(const qn_type *from, const qn_type *to, const int64_t *axes)
{
    for (int i = 0; i < from->rank; i++)
        if (from->dims[i] != to->dims[axes[i]] && !qn_dim_is(from->dims[i], 1))
            return false;
    return true;
}

/* Of a reshape that adds or removes axes of extent 1 only, from dims without any: the result axis of each operand axis. */
static bool axes_of_unit_reshape(const qn_node *node, int64_t *out_axes)
{
    const qn_type *from = &node->operands[0]->type, *to = &node->results[0].type;
    int j = 0;
    for (int i = 0; i < from->rank; i++, j++) {
        while (j < to->rank && qn_dim_is(to->dims[j], 1))
            j++;
        if (j == to->rank || qn_dim_is(from->dims[i], 1) || from->dims[i] != to->dims[j])
            return false;
        out_axes[i] = j;
    }
    for (; j < to->rank; j++)
        if (!qn_dim_is(to->dims[j], 1))
            return false;
    return true;
}

static qn_value *broadcast(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    if (!decided(&x->type, type, axes))
        return NULL;
    /* nothing is repeated: x itself, or a reshape that adds axes of extent 1 */
    bool same = true, mapped[QN_MAX_RANK] = { false };
    for (int i = 0; i < x->type.rank; i++) {
        same &= x->type.dims[i] == type->dims[axes[i]] && (i == 0 || axes[i] > axes[i - 1]);
        mapped[axes[i]] = true;
    }
    for (int j = 0; j < type->rank; j++)
        same &= mapped[j] || qn_dim_is(type->dims[j], 1);
    if (same)
        return qn_b_reshape(&r->b, x, type->rank, type->dims);
    int64_t combined[QN_MAX_RANK];
    const qn_node *inner = qn_value_made_by(x, QN_OP_BROADCAST);
    if (inner) {
        const int64_t *first = qn_attr_ints(inner, QN_ATTR_AXES, NULL);
        qn_value *source = inner->operands[0];
        for (int i = 0; i < source->type.rank; i++)
            combined[i] = axes[first[i]];
        if (decided(&source->type, type, combined))
            return qn_b_broadcast(&r->b, source, type->rank, type->dims, combined);
    }
    inner = qn_value_made_by(x, QN_OP_RESHAPE);
    if (inner && axes_of_unit_reshape(inner, combined)) {
        for (int i = 0; i < inner->operands[0]->type.rank; i++)
            combined[i] = axes[combined[i]];
        return qn_b_broadcast(&r->b, inner->operands[0], type->rank, type->dims, combined);
    }
    return NULL;
}

/* ---- slices ---- */

static qn_value *slice(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const int rank = type->rank;
    const qn_dim *start = qn_attr_dims(node, QN_ATTR_START, NULL),
                 *limit = qn_attr_dims(node, QN_ATTR_LIMIT, NULL);
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    qn_dims *dims = qn_b_dims(&r->b);
    bool whole = true, dense = true;
    for (int i = 0; i < rank; i++) {
        whole &= qn_dim_is(start[i], 0) && limit[i] == x->type.dims[i] && stride[i] == 1;
        dense &= stride[i] == 1;
    }
    if (whole)
        return x;
    qn_value *scalar = broadcast_scalar(x);
    if (scalar)
        return splat(r, scalar, type);
    const qn_node *inner = qn_value_made_by(x, QN_OP_SLICE);
    if (inner && dense) { /* the outer one counts in the inner one's steps */
        const qn_dim *first = qn_attr_dims(inner, QN_ATTR_START, NULL);
        const int64_t *step = qn_attr_ints(inner, QN_ATTR_STRIDE, NULL);
        qn_dim starts[QN_MAX_RANK], limits[QN_MAX_RANK];
        for (int i = 0; i < rank; i++) {
            const qn_dim by = qn_dim_const(dims, step[i]);
            starts[i] = qn_dim_add(dims, first[i], qn_dim_mul(dims, start[i], by));
            if (step[i] == 1) {
                limits[i] = qn_dim_add(dims, first[i], limit[i]);
                continue;
            }
            if (!qn_dim_is_const(type->dims[i]) || qn_dim_is(type->dims[i], 0))
                return NULL;
            /* one past the last element that is read */
            limits[i] =
                qn_dim_add(dims, starts[i], qn_dim_const(dims, (type->dims[i]->value - 1) * step[i] + 1));
        }
        return qn_b_slice(&r->b, inner->operands[0], starts, limits, step);
    }
    inner = qn_value_made_by(x, QN_OP_CONCATENATE);
    if (inner) { /* within one of the operands */
        const int64_t axis = qn_attr_int(inner, QN_ATTR_AXIS);
        if (!qn_dim_is_const(start[axis]) || !qn_dim_is_const(limit[axis]) || start[axis] == limit[axis])
            return NULL;
        int64_t offset = 0;
        for (int k = 0; k < inner->n_operands; k++) {
            qn_value *part = inner->operands[k];
            if (!qn_dim_is_const(part->type.dims[axis]))
                return NULL;
            const int64_t extent = part->type.dims[axis]->value;
            if (start[axis]->value >= offset && limit[axis]->value <= offset + extent) {
                qn_dim starts[QN_MAX_RANK], limits[QN_MAX_RANK];
                memcpy(starts, start, (size_t)rank * sizeof *start);
                memcpy(limits, limit, (size_t)rank * sizeof *limit);
                starts[axis] = qn_dim_const(dims, start[axis]->value - offset);
                limits[axis] = qn_dim_const(dims, limit[axis]->value - offset);
                return qn_b_slice(&r->b, part, starts, limits, stride);
            }
            offset += extent;
        }
    }
    return NULL;
}

static qn_value *dynamic_slice(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    if (qn_same_dims(&x->type, type)) /* every start is clamped to 0 */
        return x;
    qn_dim starts[QN_MAX_RANK], limits[QN_MAX_RANK];
    qn_dims *dims = qn_b_dims(&r->b);
    for (int i = 0; i < type->rank; i++) {
        const qn_tensor *at = qn_value_constant(node->operands[1 + i]);
        if (x->type.dims[i] == type->dims[i]) {
            starts[i] = qn_dim_const(dims, 0);
        } else {
            if (!at || !qn_dim_is_const(x->type.dims[i]) || !qn_dim_is_const(type->dims[i]))
                return NULL;
            const int64_t room = x->type.dims[i]->value - type->dims[i]->value;
            const int64_t wish = qn_scalar_load(at->type.dtype, qn_tensor_data(at)).i;
            starts[i] = qn_dim_const(dims, wish < 0 ? 0 : wish > room ? room : wish);
        }
        limits[i] = qn_dim_add(dims, starts[i], type->dims[i]);
    }
    return qn_b_slice(&r->b, x, starts, limits, NULL);
}

/* gather of one known element of the axis is a slice. */
static qn_value *gather(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const int64_t axis = qn_attr_int(node, QN_ATTR_AXIS);
    const qn_tensor *indices = qn_value_constant(node->operands[1]);
    if (!indices || qn_type_elements(&indices->type) != 1 || !qn_dim_is_const(x->type.dims[axis]))
        return NULL;
    const int64_t extent = x->type.dims[axis]->value;
    int64_t at = qn_scalar_load(indices->type.dtype, qn_tensor_data(indices)).i;
    at += at < 0 ? extent : 0;
    if (at < 0 || at >= extent) /* stays, and fails when it is run */
        return NULL;
    qn_dims *dims = qn_b_dims(&r->b);
    qn_value *slice =
        qn_b_slice_axis(&r->b, x, (int)axis, qn_dim_const(dims, at), qn_dim_const(dims, at + 1));
    return slice ? qn_b_reshape(&r->b, slice, node->results[0].type.rank, node->results[0].type.dims) : NULL;
}

/* By constant indices of several axes: of one axis that is all of them, so that one number is read and not one for each. */
static qn_value *gather_nd(qn_rewriter *r, const qn_node *node)
{
    enum { MOST = 1 << 20 }; /* bytes of indices that are read */
    qn_value *x = node->operands[0];
    const qn_tensor *indices = qn_value_constant(node->operands[1]);
    if (!indices || indices->bytes > MOST || qn_attr_int(node, QN_ATTR_BATCH_DIMS) != 0)
        return NULL;
    const int rank = indices->type.rank - 1, n_axes = (int)indices->type.dims[rank]->value;
    int64_t all = 1, index_dims[QN_MAX_RANK];
    qn_dim dims[QN_MAX_RANK];
    if (n_axes < 2 || indices->bytes == 0)
        return NULL;
    for (int i = 0; i < n_axes; i++)
        if (!qn_dim_is_const(x->type.dims[i]) || __builtin_mul_overflow(all, x->type.dims[i]->value, &all) ||
            all > INT32_MAX)
            return NULL;
    for (int i = 0; i < rank; i++)
        index_dims[i] = indices->type.dims[i]->value;
    const int64_t n = qn_type_elements(&indices->type) / n_axes;
    const uint8_t *data = qn_tensor_data(indices);
    int32_t *at = QN_NEW_ARRAY(r->b.graph->module->arena, int32_t, n);
    for (int64_t i = 0; i < n * n_axes; i++) {
        const int64_t extent = x->type.dims[i % n_axes]->value;
        int64_t index =
            qn_scalar_load(indices->type.dtype, data + (size_t)i * qn_dtype_bytes(indices->type.dtype)).i;
        index += index < 0 ? extent : 0;
        if (index < 0 || index >= extent) /* stays, and fails when it is run */
            return NULL;
        at[i / n_axes] = (int32_t)((i % n_axes > 0 ? at[i / n_axes] * extent : 0) + index);
    }
    dims[0] = qn_dim_const(qn_b_dims(&r->b), all);
    for (int i = n_axes; i < x->type.rank; i++)
        dims[1 + i - n_axes] = x->type.dims[i];
    return qn_b_gather(
        &r->b, qn_b_reshape(&r->b, x, x->type.rank - n_axes + 1, dims),
        qn_b_constant(&r->b, qn_tensor_new(r->b.graph->module, QUERN_I32, rank, index_dims, at)), 0);
}

static qn_value *reverse(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    bool nothing = true;
    for (int i = 0; i < n; i++)
        nothing &= qn_dim_is(x->type.dims[axes[i]], 1);
    if (nothing)
        return x;
    const qn_node *inner = qn_value_made_by(x, QN_OP_REVERSE);
    if (inner) {
        int m;
        const int64_t *others = qn_attr_ints(inner, QN_ATTR_AXES, &m);
        if (n == m && memcmp(axes, others, (size_t)n * sizeof *axes) == 0)
            return inner->operands[0];
    }
    qn_value *scalar = broadcast_scalar(x);
    return scalar ? splat(r, scalar, &x->type) : NULL;
}

/* ---- pad, concatenate ---- */

static qn_value *pad(qn_rewriter *r, const qn_node *node)
{
    (void)r;
    int rank;
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, &rank),
                 *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    const int64_t *interior = qn_attr_ints(node, QN_ATTR_INTERIOR, NULL);
    bool none = all_zero(low, rank) && all_zero(high, rank);
    for (int i = 0; i < rank; i++)
        none &= interior[i] == 0;
    return none ? node->operands[0] : NULL;
}

/* Operands without elements go; a concatenation along the same axis is spliced in; one operand is itself. */
static qn_value *concatenate(qn_rewriter *r, const qn_node *node)
{
    enum { MAX_SPLICED = 256 };
    const int64_t axis = qn_attr_int(node, QN_ATTR_AXIS);
    if (node->n_operands == 1)
        return node->operands[0];
    qn_value *parts[MAX_SPLICED];
    int n = 0;
    bool changed = false;
    for (int i = 0; i < node->n_operands; i++) {
        qn_value *x = node->operands[i];
        const qn_node *inner = qn_value_made_by(x, QN_OP_CONCATENATE);
        const bool splice = inner && qn_attr_int(inner, QN_ATTR_AXIS) == axis;
        const int count = splice ? inner->n_operands : 1;
        changed |= splice;
        if (n + count > MAX_SPLICED)
            return NULL;
        if (!splice && qn_dim_is(x->type.dims[axis], 0)) {
            changed = true;
            continue;
        }
        memcpy(parts + n, splice ? inner->operands : &x, (size_t)count * sizeof *parts);
        n += count;
    }
    if (!changed)
        return NULL;
    return n == 0 ? node->operands[0] : n == 1 ? parts[0] : qn_b_concatenate(&r->b, n, parts, (int)axis);
}

/* ---- reductions ---- */

/* The largest or least of all elements, in whichever order they lie. */
static qn_value *reduce_all_moved(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const qn_kind kind = qn_attr_reduce_kind(node);
    int64_t all[QN_MAX_RANK];
    if (kind != QN_KIND_MAX && kind != QN_KIND_MIN)
        return NULL;
    for (int i = 0; i < type->rank; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return NULL;
    while (qn_value_made_by(x, QN_OP_TRANSPOSE) || qn_value_made_by(x, QN_OP_RESHAPE))
        x = x->node->operands[0];
    if (x == node->operands[0] || x->type.rank == 0)
        return NULL;
    for (int i = 0; i < x->type.rank; i++)
        all[i] = i;
    return qn_b_reshape(&r->b, qn_b_reduce(&r->b, kind, x, x->type.rank, all, false), type->rank, type->dims);
}

static qn_value *reduce(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const qn_kind kind = qn_attr_reduce_kind(node);
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    bool nothing = true;
    for (int i = 0; i < n; i++)
        nothing &= qn_dim_is(x->type.dims[axes[i]], 1);
    if (nothing)
        return qn_b_reshape(&r->b, x, type->rank, type->dims);
    qn_value *moved = reduce_all_moved(r, node);
    if (moved)
        return moved;
    /* Two reductions of one kind are one, unless that changes the order of a strict sum. */
    const qn_node *inner = qn_value_made_by(x, QN_OP_REDUCE);
    if (!inner || qn_attr_reduce_kind(inner) != kind ||
        (r->math == QN_MATH_STRICT && (kind == QN_SUM || kind == QN_PROD) &&
         qn_dtype_is_float(x->type.dtype)))
        return NULL;
    if (kind != QN_KIND_MAX && kind != QN_KIND_MIN && qn_dtype_bytes(x->type.dtype) < 4 &&
        qn_dtype_is_float(x->type.dtype))
        return NULL; /* f16 and bf16 round between the two */
    int m, total = 0;
    const int64_t *first = qn_attr_ints(inner, QN_ATTR_AXES, &m);
    bool gone[QN_MAX_RANK] = { false };
    for (int i = 0; i < m; i++)
        gone[first[i]] = true;
    int64_t kept[QN_MAX_RANK], all[QN_MAX_RANK];
    for (int i = 0, k = 0; i < inner->operands[0]->type.rank; i++)
        if (!gone[i])
            kept[k++] = i;
    for (int i = 0; i < n; i++)
        gone[kept[axes[i]]] = true;
    for (int i = 0; i < inner->operands[0]->type.rank; i++)
        if (gone[i])
            all[total++] = i;
    return qn_b_reduce(&r->b, kind, inner->operands[0], total, all, false);
}

/* ---- contractions ---- */

static int copy_axes(const qn_node *node, qn_attr_key key, int64_t *out_axes)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, key, &n);
    for (int i = 0; i < n; i++)
        out_axes[i] = axes[i];
    return n;
}

/* dot_general(transpose(x), y): the axes are renamed instead. Possible when the free axes of x keep their order, which is
 * that of the result. */
static qn_value *dot_of_transpose(qn_rewriter *r, const qn_node *node)
{
    qn_dot dot;
    qn_value *operands[2] = { node->operands[0], node->operands[1] };
    int64_t *const batch[2] = { dot.x_batch, dot.y_batch }, *const contract[2] = { dot.x_contract,
                                                                                   dot.y_contract };
    static const qn_attr_key batch_keys[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    static const qn_attr_key contract_keys[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    bool changed = false;
    for (int side = 0; side < 2; side++) {
        dot.n_batch = copy_axes(node, batch_keys[side], batch[side]);
        dot.n_contract = copy_axes(node, contract_keys[side], contract[side]);
        const qn_node *inner = qn_value_made_by(operands[side], QN_OP_TRANSPOSE);
        if (!inner)
            continue;
        int rank;
        const int64_t *perm = qn_attr_ints(inner, QN_ATTR_PERM, &rank);
        bool used[QN_MAX_RANK] = { false }, ordered = true;
        for (int i = 0; i < dot.n_batch; i++)
            used[batch[side][i]] = true;
        for (int i = 0; i < dot.n_contract; i++)
            used[contract[side][i]] = true;
        int64_t last = -1;
        for (int i = 0; i < rank; i++)
            if (!used[i]) {
                ordered &= perm[i] > last;
                last = perm[i];
            }
        if (!ordered)
            continue;
        for (int i = 0; i < dot.n_batch; i++)
            batch[side][i] = perm[batch[side][i]];
        for (int i = 0; i < dot.n_contract; i++)
            contract[side][i] = perm[contract[side][i]];
        operands[side] = inner->operands[0];
        changed = true;
    }
    return changed ? qn_b_dot_general(&r->b, operands[0], operands[1], &dot, node->results[0].type.dtype)
                   : NULL;
}

const qn_rewrite_rule qn_movement_rules[] = {
    { QN_OP_RESHAPE, reshape },
    { QN_OP_TRANSPOSE, transpose },
    { QN_OP_BROADCAST, broadcast },
    { QN_OP_SLICE, slice },
    { QN_OP_DYNAMIC_SLICE, dynamic_slice },
    { QN_OP_GATHER, gather },
    { QN_OP_GATHER_ND, gather_nd },
    { QN_OP_REVERSE, reverse },
    { QN_OP_PAD, pad },
    { QN_OP_CONCATENATE, concatenate },
    { QN_OP_REDUCE, reduce },
    { QN_OP_DOT_GENERAL, dot_of_transpose },
    { QN_N_OPS, NULL },
};
