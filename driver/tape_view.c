/* Views as ops of the graph: see tape.h.
 *
 * A view made by reshaping, slicing and transposing is these ops again: the storage as axes of the view's strides, a slice
 * of each axis, turned into the view's order. Where strides do not divide each other (every second column of an odd number
 * of them) it is a gather with constant indices. */
#include <string.h>

#include "driver/tape.h"

typedef struct axis {
    int64_t n, stride;
    int of; /* the tensor */
} axis;

/* The axes along which x really moves, large strides first, and where its lowest element is. */
static int axes_of(const quern_tensor *x, axis *out, int64_t *out_low)
{
    int n = 0;
    *out_low = (x->data - x->storage->data) / (int64_t)qn_dtype_bytes((qn_dtype)x->dtype);
    for (int i = 0; i < x->rank; i++) {
        if (x->dims[i] == 1 || x->strides[i] == 0)
            continue;
        axis a = { x->dims[i], x->strides[i], i };
        if (a.stride < 0) {
            *out_low += (a.n - 1) * a.stride;
            a.stride = -a.stride;
        }
        int at = n++;
        for (; at > 0 && out[at - 1].stride < a.stride; at--)
            out[at] = out[at - 1];
        out[at] = a;
    }
    return n;
}

static qn_value *shaped(qn_builder *b, qn_value *x, int rank, const int64_t *dims)
{
    qn_dim to[QN_TENSOR_MAX_RANK + 1];
    for (int i = 0; i < rank; i++)
        to[i] = qn_dim_const(qn_b_dims(b), dims[i]);
    return qn_b_reshape(b, x, rank, to);
}

/* The storage as axes of these strides and one of what is between the last of them, cut to the view; NULL where it can't be,
 * without a report. */
static qn_value *cut(qn_builder *b, qn_value *contents, int n, const axis *axes, int64_t low)
{
    int64_t dims[QN_TENSOR_MAX_RANK + 1];
    qn_dim start[QN_TENSOR_MAX_RANK + 1], limit[QN_TENSOR_MAX_RANK + 1];
    int64_t above = qn_type_elements(&contents->type);
    for (int i = 0; i <= n; i++) {
        int64_t stride = i < n ? axes[i].stride : 1, extent = i < n ? axes[i].n : 1;
        if (above % stride)
            return NULL;
        dims[i] = above / stride;
        above = stride;
        if (low / stride + extent > dims[i])
            return NULL;
        start[i] = qn_dim_const(qn_b_dims(b), low / stride);
        limit[i] = qn_dim_const(qn_b_dims(b), low / stride + extent);
        low %= stride;
    }
    return qn_b_slice(b, shaped(b, contents, n + 1, dims), start, limit, NULL);
}

/* Positions in the storage of the elements of x, row-major, as i64 of these dims. */
static qn_value *positions(qn_builder *b, const quern_tensor *x, int rank, const int64_t *dims)
{
    const int64_t size = (int64_t)qn_dtype_bytes((qn_dtype)x->dtype);
    qn_tensor *indices = qn_tensor_new(b->graph->module, QUERN_I64, rank, dims, NULL);
    int64_t *at = (int64_t *)indices->data, index[QN_TENSOR_MAX_RANK] = { 0 };
    int64_t place = (x->data - x->storage->data) / size;
    for (int64_t i = 0; i < x->elements; i++) {
        at[i] = place;
        for (int k = x->rank - 1; k >= 0; k--) {
            place += x->strides[k];
            if (++index[k] < x->dims[k])
                break;
            place -= x->strides[k] * x->dims[k];
            index[k] = 0;
        }
    }
    return qn_b_constant(b, indices);
}

qn_value *qn_tape_view(qn_builder *b, qn_value *contents, const quern_tensor *x)
{
    axis axes[QN_TENSOR_MAX_RANK];
    int64_t low, dims[QN_TENSOR_MAX_RANK] = { 0 }, perm[QN_TENSOR_MAX_RANK], backwards[QN_TENSOR_MAX_RANK];
    qn_dim to[QN_TENSOR_MAX_RANK];
    const int n = axes_of(x, axes, &low);
    for (int i = 0; i < x->rank; i++)
        to[i] = qn_dim_const(qn_b_dims(b), x->dims[i]);
    qn_value *part = x->elements ? cut(b, contents, n, axes, low) : NULL;
    if (!part) {
        const int64_t all = qn_type_elements(&contents->type);
        return qn_b_gather(b, shaped(b, contents, 1, &all), positions(b, x, x->rank, x->dims), 0);
    }
    int n_backwards = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        dims[i] = axes[i].n;
        if (x->strides[axes[i].of] < 0)
            backwards[n_backwards++] = i;
    }
    part = shaped(b, part, n, dims);
    if (n_backwards)
        part = qn_b_reverse(b, part, n_backwards, backwards);
    for (int i = 0; i < x->rank; i++)
        for (int k = 0; k < n; k++)
            if (axes[k].of == i)
                perm[kept++] = k;
    part = qn_b_transpose(b, part, perm);
    for (int i = 0; i < x->rank; i++)
        dims[i] = x->strides[i] == 0 ? 1 : x->dims[i];
    return qn_b_broadcast_to(b, shaped(b, part, x->rank, dims), x->rank, to);
}

qn_value *qn_tape_replace(qn_builder *b, qn_value *contents, const quern_tensor *x, qn_value *value)
{
    const int64_t all = qn_type_elements(&contents->type);
    if (x->elements == 0)
        return contents;
    return qn_b_scatter_elements(b, QN_SET, shaped(b, contents, 1, &all), positions(b, x, 1, &x->elements),
                                 shaped(b, value, 1, &x->elements), 0);
}
