/* Gathers and scatters: movement at indices that are data. Every index is checked before anything is moved. */
#include "backends/interp/interp.h"

#include <string.h>

static qn_status index_error(qn_eval *e, int64_t index, int64_t extent, int axis, int64_t at)
{
    return qn_eval_error(
        e, QUERN_ERROR_INDEX,
        "%s: index %lld (element %lld of the indices) is outside axis %d: it has to be in [%lld, %lld)",
        qn_ops[e->node->op].name, (long long)index, (long long)at, axis, (long long)-extent,
        (long long)extent);
}

/* Indices as numbers from 0; column c of each row of n_columns is an index into axis first_axis + c of dims.
 * n_columns = 1 takes any array of indices into one axis. */
static qn_status load_indices(qn_eval *e, const qn_array *indices, int64_t n_columns, const int64_t *dims,
                              int first_axis, qn_scalar **out)
{
    const int64_t n = qn_array_elements(indices);
    qn_scalar *to;
    QN_TRY(qn_eval_scalars(e, n, &to));
    qn_lanes_load(indices->dtype, indices->data, 1, n, to);
    for (int64_t i = 0; i < n; i++) {
        const int axis = first_axis + (int)(i % n_columns); /* n is 0 when there are no columns */
        const int64_t extent = dims[axis], index = to[i].i;
        if (index < -extent || index >= extent)
            return index_error(e, index, extent, axis, i);
        if (index < 0)
            to[i].i += extent;
    }
    *out = to;
    return QUERN_OK;
}

qn_status qn_eval_gather(qn_eval *e)
{
    const qn_array *x = &e->x[0], *indices = &e->x[1];
    qn_array *r = &e->y[0];
    const int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    const int64_t n = qn_array_elements(indices), extent = x->dims[axis];
    const int64_t outer = qn_product(x->dims, 0, axis), inner = qn_product(x->dims, axis + 1, x->rank);
    const size_t bytes = (size_t)inner * qn_dtype_bytes(x->dtype);
    qn_scalar *index;
    QN_TRY(load_indices(e, indices, 1, x->dims, axis, &index));
    if (bytes == 0)
        return QUERN_OK;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < n; i++)
            memcpy(qn_element(r, (o * n + i) * inner), qn_element(x, (o * extent + index[i].i) * inner),
                   bytes);
    return QUERN_OK;
}

/* Element offset, from where the batch begins, of a row of k indices into the axes of x from `first`. */
static int64_t row_offset(const qn_array *x, int first, const qn_scalar *row, int64_t k)
{
    int64_t at = 0;
    for (int64_t c = 0; c < k; c++)
        at = at * x->dims[first + c] + row[c].i;
    return at * qn_product(x->dims, first + (int)k, x->rank);
}

qn_status qn_eval_gather_nd(qn_eval *e)
{
    const qn_array *x = &e->x[0], *indices = &e->x[1];
    qn_array *r = &e->y[0];
    const int batch_dims = (int)qn_attr_int_or(e->node, QN_ATTR_BATCH_DIMS, 0);
    const int64_t k = indices->dims[indices->rank - 1];
    const int64_t batches = qn_product(x->dims, 0, batch_dims);
    const int64_t rows = qn_product(indices->dims, batch_dims, indices->rank - 1);
    const int64_t block = qn_product(x->dims, batch_dims, x->rank);
    const int64_t inner = qn_product(x->dims, batch_dims + (int)k, x->rank);
    const size_t bytes = (size_t)inner * qn_dtype_bytes(x->dtype);
    qn_scalar *index;
    QN_TRY(load_indices(e, indices, k, x->dims, batch_dims, &index));
    if (bytes == 0)
        return QUERN_OK;
    for (int64_t b = 0; b < batches; b++)
        for (int64_t i = 0; i < rows; i++) {
            const int64_t row = b * rows + i;
            const int64_t at = b * block + row_offset(x, batch_dims, index + row * k, k);
            memcpy(qn_element(r, row * inner), qn_element(x, at), bytes);
        }
    return QUERN_OK;
}

/* Off the axis the indices' dims have to lie within x's; the types say so only of numbers. */
static qn_status check_within(qn_eval *e, const qn_array *indices, const qn_array *x, int axis)
{
    for (int i = 0; i < x->rank; i++)
        if (i != axis && indices->dims[i] > x->dims[i])
            return qn_eval_error(
                e, QUERN_ERROR_ARGUMENT, "%s: axis %d of the indices has %lld elements, of x %lld",
                qn_ops[e->node->op].name, i, (long long)indices->dims[i], (long long)x->dims[i]);
    return QUERN_OK;
}

/* gather_elements and scatter_elements: element `at` of the indices, in order, and where it points to in x. */
typedef struct cursor {
    int rank, axis;
    const int64_t *dims; /* of the indices */
    int64_t strides[QN_MAX_RANK], index[QN_MAX_RANK];
} cursor;

static int64_t cursor_offset(const cursor *c, int64_t along_axis)
{
    int64_t offset = along_axis * c->strides[c->axis];
    for (int i = 0; i < c->rank; i++)
        if (i != c->axis)
            offset += c->index[i] * c->strides[i];
    return offset;
}

qn_status qn_eval_gather_elements(qn_eval *e)
{
    const qn_array *x = &e->x[0], *indices = &e->x[1];
    qn_array *r = &e->y[0];
    const size_t size = qn_dtype_bytes(x->dtype);
    cursor c = { .rank = x->rank, .axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS), .dims = indices->dims };
    QN_TRY(check_within(e, indices, x, c.axis));
    qn_scalar *index;
    QN_TRY(load_indices(e, indices, 1, x->dims, c.axis, &index));
    qn_strides(x, c.strides);
    const int64_t n = qn_array_elements(indices);
    for (int64_t at = 0; at < n; at++, qn_next_index(c.rank, c.dims, c.index))
        memcpy(qn_element(r, at), qn_element(x, cursor_offset(&c, index[at].i)), size);
    return QUERN_OK;
}

/* n elements at `to` combined with those at `from`; rounded to the dtype each time, as the updates come in order. */
static void combine_run(qn_kind kind, qn_dtype dtype, void *to, const void *from, int64_t n)
{
    const size_t size = qn_dtype_bytes(dtype);
    if (kind == QN_SET) {
        memcpy(to, from, (size_t)n * size);
        return;
    }
    qn_scalar a[QN_LANES], b[QN_LANES];
    for (int64_t at = 0; at < n; at += QN_LANES) {
        const int64_t m = n - at < QN_LANES ? n - at : QN_LANES;
        char *t = (char *)to + (size_t)at * size;
        qn_lanes_load(dtype, t, 1, m, a);
        qn_lanes_load(dtype, (const char *)from + (size_t)at * size, 1, m, b);
        qn_lanes_combine(kind, dtype, a, 1, b, m);
        qn_lanes_store(dtype, a, m, t, 1);
    }
}

static void copy_operand(qn_eval *e)
{
    const size_t bytes = (size_t)qn_array_elements(&e->x[0]) * qn_dtype_bytes(e->x[0].dtype);
    if (bytes > 0)
        memcpy(e->y[0].data, e->x[0].data, bytes);
}

qn_status qn_eval_scatter_nd(qn_eval *e)
{
    const qn_array *x = &e->x[0], *indices = &e->x[1], *updates = &e->x[2];
    qn_array *r = &e->y[0];
    const qn_kind kind = qn_attr_reduce_kind(e->node);
    const int64_t k = indices->dims[indices->rank - 1];
    const int64_t rows = qn_product(indices->dims, 0, indices->rank - 1);
    const int64_t inner = qn_product(x->dims, (int)k, x->rank);
    qn_scalar *index;
    QN_TRY(load_indices(e, indices, k, x->dims, 0, &index));
    copy_operand(e);
    if (inner == 0)
        return QUERN_OK;
    for (int64_t row = 0; row < rows; row++)
        combine_run(kind, x->dtype, qn_element(r, row_offset(x, 0, index + row * k, k)),
                    qn_element(updates, row * inner), inner);
    return QUERN_OK;
}

qn_status qn_eval_scatter_elements(qn_eval *e)
{
    const qn_array *x = &e->x[0], *indices = &e->x[1], *updates = &e->x[2];
    qn_array *r = &e->y[0];
    const qn_kind kind = qn_attr_reduce_kind(e->node);
    cursor c = { .rank = x->rank, .axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS), .dims = indices->dims };
    const int64_t n = qn_array_elements(indices);
    QN_TRY(check_within(e, indices, x, c.axis));
    qn_scalar *index;
    QN_TRY(load_indices(e, indices, 1, x->dims, c.axis, &index));
    copy_operand(e);
    qn_strides(x, c.strides);
    for (int64_t at = 0; at < n; at++, qn_next_index(c.rank, c.dims, c.index))
        combine_run(kind, x->dtype, qn_element(r, cursor_offset(&c, index[at].i)), qn_element(updates, at),
                    1);
    return QUERN_OK;
}
