/* Elements by index and by mask, and tensors one behind the other. */
#include <string.h>

#include "driver/eager.h"
#include "runtime/error.h"

static bool are_indices(const quern_tensor *indices, const char *call)
{
    if (indices->dtype == QUERN_I64 || indices->dtype == QUERN_I32)
        return true;
    char text[256];
    qn_fail(QUERN_ERROR_ARGUMENT, "%s: indices are of i64 or i32, not %s", call,
            qn_tensor_text(indices, text));
    return false;
}

/* ---- by index ---- */

static qn_value *build_gather(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    (void)call, (void)dims;
    return qn_b_gather(b, x[0], x[1], 1);
}

quern_tensor *quern_tensor_index_select(const quern_tensor *x, int axis, const quern_tensor *indices)
{
    static const char name[] = "quern_tensor_index_select";
    if (!x || !indices || !are_indices(indices, name) || (axis = qn_tensor_axis(x, axis, name)) < 0)
        return NULL;
    int64_t dims[2 * QN_TENSOR_MAX_RANK];
    int rank = 0;
    for (int i = 0; i < x->rank; i++) {
        for (int k = 0; i == axis && k < indices->rank; k++)
            dims[rank++] = indices->dims[k];
        if (i != axis)
            dims[rank++] = x->dims[i];
    }
    qn_eager_call call = { .name = "index_select", .build = build_gather, .dtype = x->dtype };
    qn_eager_add_around(&call, x, axis);
    const uint8_t list[] = { (uint8_t)qn_eager_symbol(&call, indices->elements) };
    qn_eager_add(&call, indices, 1, list);
    return qn_tensor_give(qn_eager_run(&call, rank, dims, NULL));
}

static qn_value *build_gather_elements(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                                       const qn_dim *dims)
{
    (void)call, (void)dims;
    return qn_b_gather_elements(b, x[0], x[1], 1);
}

quern_tensor *quern_tensor_gather(const quern_tensor *x, int axis, const quern_tensor *indices)
{
    static const char name[] = "quern_tensor_gather";
    if (!x || !indices || !are_indices(indices, name) || (axis = qn_tensor_axis(x, axis, name)) < 0)
        return NULL;
    bool fits = x->rank == indices->rank;
    for (int i = 0; fits && i < x->rank; i++)
        fits = i == axis || x->dims[i] == indices->dims[i];
    if (!fits) {
        char a[256], b[256];
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: the indices are %s; of %s they have the same dims but for axis %d",
                name, qn_tensor_text(indices, a), qn_tensor_text(x, b), axis);
        return NULL;
    }
    qn_eager_call call = { .name = "gather", .build = build_gather_elements, .dtype = x->dtype };
    qn_eager_add_around(&call, x, axis);
    const uint8_t axes[] = { 0, (uint8_t)qn_eager_symbol(&call, indices->dims[axis]), 2 };
    qn_eager_add(&call, indices, 3, axes);
    return qn_tensor_give(qn_eager_run(&call, x->rank, indices->dims, NULL));
}

static qn_value *build_put(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    const qn_dim column[] = { dims[2], qn_dim_const(qn_b_dims(b), 1) };
    qn_value *updates = qn_b_convert(b, (qn_dtype)call->dtype, x[2]);
    return qn_b_scatter_nd(b, QN_SET, x[0], qn_b_reshape(b, x[1], 2, column), updates);
}

/* With axis `from` where `to` was. */
static quern_tensor *axis_moved(const quern_tensor *x, int from, int to)
{
    int64_t dims[QN_TENSOR_MAX_RANK], strides[QN_TENSOR_MAX_RANK];
    for (int i = 0, next = 0; i < x->rank; i++) {
        next += next == from;
        int old = i == to ? from : next++;
        dims[i] = x->dims[old];
        strides[i] = x->strides[old];
    }
    return qn_tensor_view(x, x->data, x->rank, dims, strides);
}

/* rows[indices[i]] = values[i] */
static bool put_rows(quern_tensor *rows, const quern_tensor *indices, const quern_tensor *values)
{
    const uint8_t row[] = { 0, 1 }, list[] = { 2 }, many[] = { 2, 1 };
    qn_eager_call call = { .name = "put", .build = build_put, .dtype = rows->dtype, .updates = true };
    qn_eager_symbol(&call, rows->dims[0]);
    qn_eager_symbol(&call, rows->dims[0] ? rows->elements / rows->dims[0] : 0);
    qn_eager_symbol(&call, indices->elements);
    qn_eager_add(&call, rows, 2, row);
    qn_eager_add(&call, indices, 1, list);
    qn_eager_add(&call, values, 2, many);
    quern_tensor *result = qn_eager_run(&call, rows->rank, rows->dims, rows);
    quern_tensor_free(result);
    return result != NULL;
}

int quern_tensor_put(quern_tensor *x, int axis, const quern_tensor *indices, const quern_tensor *values)
{
    static const char name[] = "quern_tensor_put";
    char a[256], b[256];
    if (!x || !indices || !values || !are_indices(indices, name) ||
        (axis = qn_tensor_axis(x, axis, name)) < 0)
        return QUERN_ERROR_ARGUMENT;
    if (indices->rank > 1)
        return qn_fail(QUERN_ERROR_ARGUMENT, "%s: the indices are %s; they are a vector", name,
                       qn_tensor_text(indices, a));
    if (qn_tensor_repeats(x))
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: %s repeats elements (a stride is 0): copy it to write to it", name,
                       qn_tensor_text(x, b));
    int64_t dims[QN_TENSOR_MAX_RANK] = { indices->elements };
    for (int i = 1; i < x->rank; i++)
        dims[i] = x->dims[i <= axis ? i - 1 : i];
    quern_tensor *rows = axis_moved(x, axis, 0),
                 *each = qn_tensor_make_on(x->storage->device, x->dtype, x->rank, dims);
    quern_tensor *fitting = each ? axis_moved(each, 0, axis) : NULL; /* what values are repeated to */
    bool done =
        rows && fitting && qn_eager_assign(fitting, values) == QUERN_OK && put_rows(rows, indices, each);
    quern_tensor_free(fitting);
    quern_tensor_free(each);
    quern_tensor_free(rows);
    return done ? QUERN_OK : QUERN_ERROR_ARGUMENT;
}

/* ---- by mask ---- */

static qn_value *build_masked(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    (void)call, (void)dims;
    qn_dim count = qn_dim_symbol(qn_b_dims(b), "d_count", 0, QN_DIM_MAX_VALUE);
    qn_value *places = qn_b_non_zero(b, x[1], count);
    return qn_b_gather(b, x[0], qn_b_reshape(b, places, 1, &count), 0);
}

quern_tensor *quern_tensor_masked_select(const quern_tensor *x, const quern_tensor *mask)
{
    if (!x || !mask)
        return NULL;
    char a[256], b[256];
    if (mask->dtype != QUERN_BOOL || mask->rank > x->rank || mask->rank == 0 ||
        !qn_tensor_same_dims(mask, mask->rank, x->dims)) {
        qn_fail(QUERN_ERROR_ARGUMENT,
                "quern_tensor_masked_select: the mask is %s; of %s it is bool, with dims that the tensor "
                "begins with",
                qn_tensor_text(mask, a), qn_tensor_text(x, b));
        return NULL;
    }
    qn_eager_call call = { .name = "masked_select", .build = build_masked };
    int64_t inner = 1, dims[QN_TENSOR_MAX_RANK];
    for (int i = mask->rank; i < x->rank; i++)
        inner *= dims[i - mask->rank + 1] = x->dims[i];
    const uint8_t axes[] = { 0, 1 };
    qn_eager_symbol(&call, mask->elements);
    qn_eager_symbol(&call, inner);
    qn_eager_add(&call, x, x->rank > mask->rank ? 2 : 1, axes);
    qn_eager_add(&call, mask, 1, axes);
    quern_tensor *flat = qn_eager_run_as_found(&call);
    if (!flat)
        return NULL;
    dims[0] = flat->dims[0];
    quern_tensor *shaped = qn_tensor_reshaped(flat, x->rank - mask->rank + 1, dims);
    quern_tensor_free(flat);
    return qn_tensor_give(shaped);
}

/* ---- one behind the other ---- */

static qn_value *build_concatenate(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                                   const qn_dim *dims)
{
    (void)dims;
    qn_value *parts[QN_EAGER_OPERANDS];
    for (int i = 0; i < call->n; i++) {
        parts[i] = qn_b_convert(b, (qn_dtype)call->dtype, x[i]);
        if (!parts[i])
            return NULL;
    }
    return qn_b_concatenate(b, call->n, parts, 1);
}

/* Up to QN_EAGER_OPERANDS of them. */
static quern_tensor *join_few(int n, const quern_tensor *const *xs, int axis, int dtype)
{
    qn_eager_call call = { .name = "concatenate", .build = build_concatenate, .dtype = dtype };
    int64_t dims[QN_TENSOR_MAX_RANK], outer = 1;
    memcpy(dims, xs[0]->dims, (size_t)xs[0]->rank * sizeof *dims);
    for (int i = 0; i < axis; i++)
        outer *= dims[i];
    dims[axis] = 0;
    qn_eager_symbol(&call, outer);
    for (int i = 0; i < n; i++) {
        int64_t inner = 1;
        for (int k = axis; k < xs[i]->rank; k++)
            inner *= xs[i]->dims[k];
        const uint8_t axes[] = { 0, (uint8_t)qn_eager_symbol(&call, inner) };
        dims[axis] += xs[i]->dims[axis];
        qn_eager_add(&call, xs[i], 2, axes);
    }
    return qn_eager_run(&call, xs[0]->rank, dims, NULL);
}

/* More, by halves. */
static quern_tensor *join(int n, const quern_tensor *const *xs, int axis, int dtype)
{
    if (n <= QN_EAGER_OPERANDS)
        return join_few(n, xs, axis, dtype);
    quern_tensor *left = join(n / 2, xs, axis, dtype), *right = join(n - n / 2, xs + n / 2, axis, dtype);
    quern_tensor *both =
        left && right ? join_few(2, (const quern_tensor *[]){ left, right }, axis, dtype) : NULL;
    quern_tensor_free(left);
    quern_tensor_free(right);
    return both;
}

static bool may_join(int n, const quern_tensor *const *xs, int axis)
{
    char a[256], b[256];
    for (int i = 1; i < n; i++) {
        bool fits = xs[i]->rank == xs[0]->rank;
        for (int k = 0; fits && k < xs[0]->rank; k++)
            fits = k == axis || xs[i]->dims[k] == xs[0]->dims[k];
        if (fits)
            continue;
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_concatenate: %s and %s differ in more than axis %d",
                qn_tensor_text(xs[0], a), qn_tensor_text(xs[i], b), axis);
        return false;
    }
    return true;
}

quern_tensor *quern_tensor_concatenate(int n, const quern_tensor *const *xs, int axis)
{
    static const char name[] = "quern_tensor_concatenate";
    if (n < 1) {
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: of nothing", name);
        return NULL;
    }
    for (int i = 0; i < n; i++)
        if (!xs[i])
            return NULL;
    axis = qn_tensor_axis(xs[0], axis, name);
    if (axis < 0 || !may_join(n, xs, axis))
        return NULL;
    int dtype = xs[0]->dtype;
    for (int i = 1; i < n; i++)
        dtype = qn_promote_types(dtype, xs[i]->dtype);
    return qn_tensor_give(join(n, xs, axis, dtype));
}
