/* The builder's movement ops: broadcast, reshape, slices, pads, gathers, scatters. */
#include <string.h>

#include "ir/build_internal.h"

static bool same_dims(const qn_type *type, int rank, const qn_dim *dims)
{
    return type->rank == rank && (rank == 0 || memcmp(type->dims, dims, (size_t)rank * sizeof *dims) == 0);
}

/* True, with a report, when an axis is outside [0, end). */
static bool bad_axis(qn_builder *b, int axis, int end)
{
    if (axis >= 0 && axis < end)
        return false;
    (void)qn_build_error(b, "axis %d is outside [0, %d)", axis, end);
    return true;
}

/* ---- broadcast ---- */

qn_value *qn_b_broadcast(qn_builder *b, qn_value *x, int rank, const qn_dim *dims, const int64_t *axes)
{
    qn_attr_list list = { 0 };
    if (!x)
        return NULL;
    qn_attrs_ints(&list, QN_ATTR_AXES, x->type.rank, axes);
    qn_attrs_dims(&list, QN_ATTR_DIMS, rank, dims);
    return qn_build(b, QN_OP_BROADCAST, 1, &x, &list);
}

/* x with that extent along the axis, where its own is never 1, so that both have to be equal: found out at run time. */
static qn_value *as_equal(qn_builder *b, qn_value *x, int axis, qn_dim dim)
{
    qn_dim dims[QN_MAX_RANK];
    const qn_dim own = x ? x->type.dims[axis] : dim;
    if (own == dim || (own->min <= 1 && own->max >= 1) || (qn_dim_is_const(own) && qn_dim_is_const(dim)) ||
        !qn_dim_can_be_equal(qn_b_dims(b), own, dim))
        return x;
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = i == axis ? dim : x->type.dims[i];
    return qn_b_reshape(b, x, x->type.rank, dims);
}

qn_value *qn_b_broadcast_to(qn_builder *b, qn_value *x, int rank, const qn_dim *dims)
{
    int64_t axes[QN_MAX_RANK];
    if (!x || same_dims(&x->type, rank, dims))
        return x;
    if (x->type.rank > rank)
        return qn_build_error(b, "%s has more than the %d dimensions it would be broadcast to",
                              qn_type_print(&x->type, b->diags->arena), rank);
    for (int i = 0; i < x->type.rank; i++) {
        axes[i] = rank - x->type.rank + i;
        x = as_equal(b, x, i, dims[axes[i]]);
    }
    return x && same_dims(&x->type, rank, dims) ? x : qn_b_broadcast(b, x, rank, dims, axes);
}

/* Can neither be 1, nor both the same? */
static bool never_fit(qn_dims *dims, qn_dim a, qn_dim b)
{
    bool a_one = a->min <= 1 && a->max >= 1, b_one = b->min <= 1 && b->max >= 1;
    return !a_one && !b_one && !qn_dim_can_be_equal(dims, a, b);
}

bool qn_b_broadcast_dims(qn_builder *b, int n, qn_value *const *values, int *out_rank, qn_dim *out_dims)
{
    qn_dims *dims = qn_b_dims(b);
    *out_rank = 0;
    for (int i = 0; i < n; i++)
        *out_rank = values[i]->type.rank > *out_rank ? values[i]->type.rank : *out_rank;
    for (int axis = 0; axis < *out_rank; axis++)
        out_dims[axis] = qn_dim_const(dims, 1);
    for (int i = 0; i < n; i++) {
        const qn_type *type = &values[i]->type;
        for (int axis = 0; axis < type->rank; axis++) {
            qn_dim *out = &out_dims[*out_rank - type->rank + axis];
            if (never_fit(dims, *out, type->dims[axis])) {
                qn_arena *arena = b->diags->arena;
                (void)qn_build_error(
                    b,
                    "the dimensions of %s and %s don't fit: %s is neither equal to %s, nor is one of them 1",
                    qn_type_print(&values[0]->type, arena), qn_type_print(type, arena),
                    qn_dim_print(*out, arena), qn_dim_print(type->dims[axis], arena));
                return false;
            }
            *out = qn_dim_select_one(dims, *out, type->dims[axis]);
        }
    }
    return true;
}

/* ---- reshape and transpose ---- */

qn_value *qn_b_reshape(qn_builder *b, qn_value *x, int rank, const qn_dim *dims)
{
    qn_attr_list list = { 0 };
    if (!x || same_dims(&x->type, rank, dims))
        return x;
    qn_attrs_dims(&list, QN_ATTR_DIMS, rank, dims);
    return qn_build(b, QN_OP_RESHAPE, 1, &x, &list);
}

qn_value *qn_b_transpose(qn_builder *b, qn_value *x, const int64_t *perm)
{
    qn_attr_list list = { 0 };
    bool identity = true;
    if (!x)
        return NULL;
    for (int i = 0; i < x->type.rank; i++)
        identity = identity && perm[i] == i;
    if (identity)
        return x;
    qn_attrs_ints(&list, QN_ATTR_PERM, x->type.rank, perm);
    return qn_build(b, QN_OP_TRANSPOSE, 1, &x, &list);
}

qn_value *qn_b_expand_dims(qn_builder *b, qn_value *x, int axis)
{
    qn_dim dims[QN_MAX_RANK + 1];
    if (!x || bad_axis(b, axis, x->type.rank + 1))
        return NULL;
    if (x->type.rank == QN_MAX_RANK)
        return qn_build_error(b, "a tensor has at most %d dimensions", QN_MAX_RANK);
    for (int i = 0; i <= x->type.rank; i++)
        dims[i] = i == axis ? qn_dim_const(qn_b_dims(b), 1) : x->type.dims[i - (i > axis)];
    return qn_b_reshape(b, x, x->type.rank + 1, dims);
}

qn_value *qn_b_squeeze(qn_builder *b, qn_value *x, int axis)
{
    qn_dim dims[QN_MAX_RANK];
    if (!x || bad_axis(b, axis, x->type.rank))
        return NULL;
    if (!qn_dim_is(x->type.dims[axis], 1))
        return qn_build_error(b, "axis %d of %s can't be dropped: it isn't 1", axis,
                              qn_type_print(&x->type, b->diags->arena));
    for (int i = 0; i < x->type.rank - 1; i++)
        dims[i] = x->type.dims[i + (i >= axis)];
    return qn_b_reshape(b, x, x->type.rank - 1, dims);
}

/* ---- slices and pads ---- */

static const int64_t *or_all(const int64_t *given, int n, int64_t value, int64_t *room)
{
    if (given)
        return given;
    for (int i = 0; i < n; i++)
        room[i] = value;
    return room;
}

qn_value *qn_b_slice(qn_builder *b, qn_value *x, const qn_dim *start, const qn_dim *limit,
                     const int64_t *stride)
{
    qn_attr_list list = { 0 };
    int64_t ones[QN_MAX_RANK];
    if (!x)
        return NULL;
    qn_attrs_dims(&list, QN_ATTR_START, x->type.rank, start);
    qn_attrs_dims(&list, QN_ATTR_LIMIT, x->type.rank, limit);
    qn_attrs_ints(&list, QN_ATTR_STRIDE, x->type.rank, or_all(stride, x->type.rank, 1, ones));
    return qn_build(b, QN_OP_SLICE, 1, &x, &list);
}

qn_value *qn_b_slice_axis(qn_builder *b, qn_value *x, int axis, qn_dim start, qn_dim limit)
{
    qn_dim starts[QN_MAX_RANK], limits[QN_MAX_RANK];
    if (!x || bad_axis(b, axis, x->type.rank))
        return NULL;
    if (qn_dim_is(start, 0) && limit == x->type.dims[axis])
        return x;
    for (int i = 0; i < x->type.rank; i++) {
        starts[i] = i == axis ? start : qn_dim_const(qn_b_dims(b), 0);
        limits[i] = i == axis ? limit : x->type.dims[i];
    }
    return qn_b_slice(b, x, starts, limits, NULL);
}

qn_value *qn_b_pad(qn_builder *b, qn_value *x, qn_value *value, const qn_dim *low, const qn_dim *high,
                   const int64_t *interior)
{
    qn_attr_list list = { 0 };
    int64_t zeros[QN_MAX_RANK];
    if (!x)
        return NULL;
    qn_attrs_dims(&list, QN_ATTR_LOW, x->type.rank, low);
    qn_attrs_dims(&list, QN_ATTR_HIGH, x->type.rank, high);
    qn_attrs_ints(&list, QN_ATTR_INTERIOR, x->type.rank, or_all(interior, x->type.rank, 0, zeros));
    return qn_build(b, QN_OP_PAD, 2, (qn_value *[]){ x, value }, &list);
}

qn_value *qn_b_concatenate(qn_builder *b, int n, qn_value *const *xs, int axis)
{
    qn_attr_list list = { 0 };
    if (n == 1)
        return xs[0];
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    return qn_build(b, QN_OP_CONCATENATE, n, xs, &list);
}

qn_value *qn_b_gather_packed(qn_builder *b, int n, qn_value *const *xs, int n_lanes, const int64_t *lanes)
{
    qn_attr_list list = { 0 };
    qn_attrs_ints(&list, QN_ATTR_LANES, n_lanes, lanes);
    return qn_build(b, QN_OP_GATHER_PACKED, n, xs, &list);
}

qn_value *qn_b_reverse(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes)
{
    qn_attr_list list = { 0 };
    qn_attrs_ints(&list, QN_ATTR_AXES, n_axes, axes);
    return qn_build(b, QN_OP_REVERSE, 1, &x, &list);
}

qn_value *qn_b_dynamic_slice(qn_builder *b, qn_value *x, qn_value *const *starts, const qn_dim *sizes)
{
    qn_attr_list list = { 0 };
    qn_value *operands[QN_MAX_RANK + 1] = { x };
    if (!x)
        return NULL;
    for (int i = 0; i < x->type.rank; i++)
        operands[1 + i] = starts[i];
    qn_attrs_dims(&list, QN_ATTR_DIMS, x->type.rank, sizes);
    return qn_build(b, QN_OP_DYNAMIC_SLICE, 1 + x->type.rank, operands, &list);
}

qn_value *qn_b_dynamic_update_slice(qn_builder *b, qn_value *x, qn_value *update, qn_value *const *starts)
{
    qn_value *operands[QN_MAX_RANK + 2] = { x, update };
    if (!x)
        return NULL;
    for (int i = 0; i < x->type.rank; i++)
        operands[2 + i] = starts[i];
    return qn_build(b, QN_OP_DYNAMIC_UPDATE_SLICE, 2 + x->type.rank, operands, NULL);
}

qn_value *qn_b_panels(qn_builder *b, qn_value *x, int64_t width)
{
    if (!x)
        return NULL;
    qn_dims *table = qn_b_dims(b);
    const int rank = x->type.rank, last = rank - 1;
    const qn_dim zero = qn_dim_const(table, 0), columns = qn_dim_const(table, width), n = x->type.dims[last];
    const qn_dim panels = qn_dim_ceildiv(table, n, columns);
    const qn_dim past = qn_dim_sub(table, qn_dim_mul(table, panels, columns), n);
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK], split[QN_MAX_RANK + 1];
    int64_t perm[QN_MAX_RANK + 1];
    for (int i = 0; i < rank; i++) {
        low[i] = high[i] = zero;
        split[i] = x->type.dims[i];
        perm[i] = i;
    }
    high[last] = past;
    if (past != zero)
        x = qn_b_pad(b, x, qn_b_scalar(b, x->type.dtype, 0), low, high, NULL);
    split[last] = panels;
    split[last + 1] = columns;
    perm[last - 1] = last;
    perm[last] = last - 1;
    perm[last + 1] = last + 1;
    return qn_b_transpose(b, qn_b_reshape(b, x, rank + 1, split), perm);
}

/* ---- by index ---- */

qn_value *qn_b_gather(qn_builder *b, qn_value *x, qn_value *indices, int axis)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    return qn_build(b, QN_OP_GATHER, 2, (qn_value *[]){ x, indices }, &list);
}

qn_value *qn_b_gather_nd(qn_builder *b, qn_value *x, qn_value *indices, int batch_dims)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_BATCH_DIMS, batch_dims);
    return qn_build(b, QN_OP_GATHER_ND, 2, (qn_value *[]){ x, indices }, &list);
}

qn_value *qn_b_gather_elements(qn_builder *b, qn_value *x, qn_value *indices, int axis)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    return qn_build(b, QN_OP_GATHER_ELEMENTS, 2, (qn_value *[]){ x, indices }, &list);
}

qn_value *qn_b_scatter_nd(qn_builder *b, qn_kind kind, qn_value *x, qn_value *indices, qn_value *updates)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    return qn_build(b, QN_OP_SCATTER_ND, 3, (qn_value *[]){ x, indices, updates }, &list);
}

qn_value *qn_b_scatter_elements(qn_builder *b, qn_kind kind, qn_value *x, qn_value *indices,
                                qn_value *updates, int axis)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    return qn_build(b, QN_OP_SCATTER_ELEMENTS, 3, (qn_value *[]){ x, indices, updates }, &list);
}
