/* Storages, tensors and views: see tensor.h. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/tensor.h"

/* ---- storages ---- */

/* Memory of this size comes from the system page by page, which takes longer than most operations on it. A few blocks
 * that were given back are kept for the next. */
#define LARGE_BYTES ((size_t)4 << 20)
#define KEPT_BLOCKS 8
#define KEPT_BYTES ((size_t)512 << 20)

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static qn_memory kept[KEPT_BLOCKS];
static size_t kept_bytes;

/* The smallest kept block that is large enough, but not twice as large. */
static bool take_kept(size_t bytes, qn_memory *out)
{
    pthread_mutex_lock(&kept_lock);
    qn_memory *best = NULL;
    for (qn_memory *m = kept; m < kept + KEPT_BLOCKS; m++)
        if (m->bytes >= bytes && m->bytes / 2 <= bytes && (!best || m->bytes < best->bytes))
            best = m;
    if (best) {
        *out = *best;
        *best = (qn_memory){ 0 };
        kept_bytes -= out->bytes;
    }
    pthread_mutex_unlock(&kept_lock);
    return best != NULL;
}

static void keep(qn_memory *memory)
{
    pthread_mutex_lock(&kept_lock);
    for (qn_memory *m = kept; m < kept + KEPT_BLOCKS && memory->data; m++)
        if (!m->data && kept_bytes + memory->bytes <= KEPT_BYTES) {
            kept_bytes += memory->bytes;
            *m = *memory;
            *memory = (qn_memory){ 0 };
        }
    pthread_mutex_unlock(&kept_lock);
    qn_memory_free(memory);
}

static qn_storage *storage_new(size_t bytes, bool zeroed)
{
    qn_storage *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    atomic_init(&s->users, 1);
    s->bytes = bytes;
    if (bytes >= LARGE_BYTES) {
        bool used = take_kept(bytes, &s->memory);
        if (used || qn_memory_reserve(&s->memory, bytes))
            s->data = s->memory.data;
        if (used && zeroed)
            memset(s->data, 0, bytes);
    } else {
        size_t rounded = bytes ? (bytes + 63) / 64 * 64 : 64;
        s->data = aligned_alloc(64, rounded);
        if (s->data && zeroed)
            memset(s->data, 0, rounded);
    }
    if (!s->data) {
        free(s);
        return NULL;
    }
    return s;
}

/* NULL with a message. */
static qn_storage *storage_on(qn_device *device, size_t bytes)
{
    qn_storage *s = calloc(1, sizeof *s);
    if (!s) {
        qn_fail(QUERN_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    if (qn_device_take(device, bytes, &s->block)) {
        free(s);
        return NULL;
    }
    atomic_init(&s->users, 1);
    s->bytes = bytes;
    s->device = device;
    s->data = (char *)(uintptr_t)s->block.at;
    return s;
}

void qn_storage_retain(qn_storage *s)
{
    atomic_fetch_add_explicit(&s->users, 1, memory_order_relaxed);
}

void qn_storage_release(qn_storage *s)
{
    if (atomic_fetch_sub_explicit(&s->users, 1, memory_order_acq_rel) != 1)
        return;
    if (s->foreign) {
        if (s->device) /* its owner may know nothing of the order in which we use it */
            (void)qn_cuda_wait(s->device->cuda);
        if (s->release)
            s->release(s->user);
    } else if (s->device) {
        qn_device_give(s->device, s->block);
    } else if (s->memory.data) {
        keep(&s->memory);
    } else {
        free(s->data);
    }
    free(s);
}

/* ---- scopes ---- */

struct quern_scope {
    quern_scope *outer;
    quern_tensor **tensors;
    size_t n, capacity;
};

static _Thread_local quern_scope *current_scope;

quern_scope *quern_scope_begin(void)
{
    quern_scope *scope = calloc(1, sizeof *scope);
    if (!scope) {
        qn_fail(QUERN_ERROR_MEMORY, "quern_scope_begin: out of memory");
        return NULL;
    }
    scope->outer = current_scope;
    current_scope = scope;
    return scope;
}

void quern_scope_end(quern_scope *scope)
{
    if (!scope)
        return;
    current_scope = scope->outer;
    for (size_t i = 0; i < scope->n; i++)
        quern_tensor_free(scope->tensors[i]);
    free(scope->tensors);
    free(scope);
}

quern_tensor *qn_tensor_give(quern_tensor *x)
{
    quern_scope *s = current_scope;
    if (!s || !x)
        return x;
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 32;
        quern_tensor **more = realloc(s->tensors, capacity * sizeof *more);
        if (!more) {
            quern_tensor_free(x);
            qn_fail(QUERN_ERROR_MEMORY, "out of memory");
            return NULL;
        }
        s->tensors = more;
        s->capacity = capacity;
    }
    return s->tensors[s->n++] = x;
}

/* ---- tensors ---- */

/* Without a storage; strides unset. */
static quern_tensor *tensor_new(int dtype, int rank, const int64_t *dims)
{
    quern_tensor *x = malloc(sizeof *x + 2 * (size_t)rank * sizeof *x->dims);
    if (!x) {
        qn_fail(QUERN_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    atomic_init(&x->users, 1);
    x->dtype = dtype;
    x->rank = rank;
    x->number = false;
    x->elements = 1;
    x->strides = x->dims + rank;
    for (int i = 0; i < rank; i++) {
        x->dims[i] = dims[i];
        x->elements *= dims[i];
    }
    return x;
}

static void row_major(quern_tensor *x)
{
    int64_t step = 1;
    for (int i = x->rank - 1; i >= 0; i--) {
        x->strides[i] = step;
        step *= x->dims[i] > 0 ? x->dims[i] : 1;
    }
}

/* Bytes of such a tensor; false with a message for what is no shape. */
static bool check_shape(const char *call, int dtype, int rank, const int64_t *dims, size_t *out_bytes)
{
    char text[256];
    if (!quern_dtype_size(dtype)) {
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: %d is no data type", call, dtype);
        return false;
    }
    if (rank < 0 || rank > QN_TENSOR_MAX_RANK) {
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: the rank must be 0 to %d, not %d", call, QN_TENSOR_MAX_RANK, rank);
        return false;
    }
    size_t bytes = quern_dtype_size(dtype), nonzero = bytes;
    for (int i = 0; i < rank; i++) {
        bool bad =
            dims[i] < 0 || (dims[i] > 0 && (__builtin_mul_overflow(nonzero, (size_t)dims[i], &nonzero) ||
                                            nonzero > PTRDIFF_MAX / 2));
        if (bad) {
            qn_fail(QUERN_ERROR_ARGUMENT, "%s: a dimension of %s is negative or too large", call,
                    qn_dims_text(rank, dims, text));
            return false;
        }
        bytes *= (size_t)dims[i];
    }
    *out_bytes = bytes;
    return true;
}

static quern_tensor *make(qn_device *device, int dtype, int rank, const int64_t *dims, bool zeroed)
{
    size_t bytes;
    if (!check_shape("new tensor", dtype, rank, dims, &bytes))
        return NULL;
    quern_tensor *x = tensor_new(dtype, rank, dims);
    if (!x)
        return NULL;
    row_major(x);
    x->storage = device ? storage_on(device, bytes) : storage_new(bytes, zeroed);
    if (!x->storage) {
        free(x);
        if (!device)
            qn_fail(QUERN_ERROR_MEMORY, "no memory for a tensor of %zu bytes", bytes);
        return NULL;
    }
    x->data = x->storage->data;
    return x;
}

quern_tensor *qn_tensor_make(int dtype, int rank, const int64_t *dims, bool zeroed)
{
    return make(NULL, dtype, rank, dims, zeroed);
}

quern_tensor *qn_tensor_make_on(qn_device *device, int dtype, int rank, const int64_t *dims)
{
    return make(device, dtype, rank, dims, false);
}

quern_tensor *quern_tensor_from(const quern_array *array)
{
    quern_tensor *x = array ? qn_tensor_make(array->dtype, array->rank, array->dims, false) : NULL;
    if (!array)
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_from: the array is NULL");
    if (x && x->elements)
        memcpy(x->data, array->data, x->storage->bytes);
    return qn_tensor_give(x);
}

static quern_tensor *wrapped(const char *on, const quern_array *array, const int64_t *strides,
                             void (*release)(void *user), void *user)
{
    size_t bytes;
    qn_device *device;
    if (!array) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_wrap: the array is NULL");
        return NULL;
    }
    if (qn_device_find("quern_tensor_wrap_on", on, &device))
        return NULL;
    if (!check_shape("quern_tensor_wrap", array->dtype, array->rank, array->dims, &bytes))
        return NULL;
    if ((!array->data && bytes) || (uintptr_t)array->data % quern_dtype_size(array->dtype)) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_wrap: the data is NULL or not aligned to its elements");
        return NULL;
    }
    quern_tensor *x = tensor_new(array->dtype, array->rank, array->dims);
    qn_storage *s = x ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        free(x);
        qn_fail(QUERN_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    row_major(x);
    if (strides && x->rank)
        memcpy(x->strides, strides, (size_t)x->rank * sizeof *strides);
    x->data = array->data;
    const char *low, *high;
    qn_tensor_span(x, &low, &high);
    atomic_init(&s->users, 1);
    s->data = (char *)low;
    s->bytes = (size_t)(high - low);
    s->release = release;
    s->user = user;
    s->device = device;
    s->foreign = true;
    x->storage = s;
    return x;
}

quern_tensor *qn_tensor_wrapped(const quern_array *array)
{
    return wrapped("cpu", array, NULL, NULL, NULL);
}

quern_tensor *quern_tensor_wrap_on(const char *on, const quern_array *array, const int64_t *strides,
                                   void (*release)(void *user), void *user)
{
    return qn_tensor_give(wrapped(on, array, strides, release, user));
}

quern_tensor *quern_tensor_wrap(const quern_array *array, const int64_t *strides, void (*release)(void *user),
                                void *user)
{
    return qn_tensor_give(wrapped("cpu", array, strides, release, user));
}

quern_tensor *qn_tensor_number(int dtype, double real, int64_t whole)
{
    quern_tensor *x = qn_tensor_make(dtype, 0, NULL, false);
    if (!x)
        return NULL;
    x->number = true;
    if (dtype == QUERN_F64)
        memcpy(x->data, &real, sizeof real);
    else if (dtype == QUERN_I64)
        memcpy(x->data, &whole, sizeof whole);
    else
        x->data[0] = whole != 0;
    return x;
}

quern_tensor *quern_tensor_number(int dtype, double real, int64_t whole)
{
    if (dtype == QUERN_F64 || dtype == QUERN_I64 || dtype == QUERN_BOOL)
        return qn_tensor_give(qn_tensor_number(dtype, real, whole));
    qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_number: a number is bool, i64 or f64, not %s",
            quern_dtype_text(dtype));
    return NULL;
}

quern_tensor *quern_tensor_retain(quern_tensor *x)
{
    if (x)
        atomic_fetch_add_explicit(&x->users, 1, memory_order_relaxed);
    return x;
}

void quern_tensor_free(quern_tensor *x)
{
    if (!x || atomic_fetch_sub_explicit(&x->users, 1, memory_order_acq_rel) != 1)
        return;
    qn_storage_release(x->storage);
    free(x);
}

/* ---- what a tensor is ---- */

int quern_tensor_dtype(const quern_tensor *x)
{
    return x->dtype;
}

int quern_tensor_rank(const quern_tensor *x)
{
    return x->rank;
}

const int64_t *quern_tensor_dims(const quern_tensor *x)
{
    return x->dims;
}

const int64_t *quern_tensor_strides(const quern_tensor *x)
{
    return x->strides;
}

int64_t quern_tensor_elements(const quern_tensor *x)
{
    return x->elements;
}

void *quern_tensor_data(const quern_tensor *x)
{
    return x->data;
}

const char *quern_tensor_device(const quern_tensor *x)
{
    return qn_device_name(x->storage->device);
}

void *quern_tensor_storage(const quern_tensor *x, size_t *out_bytes, int *out_users)
{
    if (out_bytes)
        *out_bytes = x->storage->bytes;
    if (out_users)
        *out_users = atomic_load(&x->storage->users);
    return x->storage->data;
}

int quern_tensor_is_contiguous(const quern_tensor *x)
{
    int64_t step = 1;
    for (int i = x->rank - 1; i >= 0; i--) {
        if (x->dims[i] != 1 && x->strides[i] != step)
            return x->elements == 0;
        step *= x->dims[i];
    }
    return 1;
}

bool qn_tensor_same_dims(const quern_tensor *x, int rank, const int64_t *dims)
{
    return x->rank == rank && (rank == 0 || memcmp(x->dims, dims, (size_t)rank * sizeof *dims) == 0);
}

void qn_tensor_span(const quern_tensor *x, const char **out_low, const char **out_high)
{
    int64_t low = 0, high = 1;
    for (int i = 0; i < x->rank; i++) {
        int64_t reach = (x->dims[i] - 1) * x->strides[i];
        *(reach < 0 ? &low : &high) += reach;
    }
    const int64_t size = (int64_t)quern_dtype_size(x->dtype);
    *out_low = x->data + (x->elements ? low * size : 0);
    *out_high = x->data + (x->elements ? high * size : 0);
}

bool qn_tensor_repeats(const quern_tensor *x)
{
    for (int i = 0; i < x->rank; i++)
        if (x->dims[i] > 1 && x->strides[i] == 0)
            return true;
    return false;
}

int qn_tensor_axis(const quern_tensor *x, int axis, const char *call)
{
    if (axis >= -x->rank && axis < x->rank)
        return axis < 0 ? axis + x->rank : axis;
    char text[256];
    qn_fail(QUERN_ERROR_ARGUMENT, "%s: there is no axis %d of %s", call, axis, qn_tensor_text(x, text));
    return -1;
}

const char *qn_dims_text(int rank, const int64_t *dims, char *out)
{
    size_t n = (size_t)snprintf(out, 256, "[");
    for (int i = 0; i < rank && n < 250; i++)
        n += (size_t)snprintf(out + n, 256 - n, "%s%lld", i ? ", " : "", (long long)dims[i]);
    if (n < 255)
        snprintf(out + n, 256 - n, "]");
    return out;
}

const char *qn_tensor_text(const quern_tensor *x, char *out)
{
    char dims[256];
    snprintf(out, 256, "%s%.200s", quern_dtype_text(x->dtype), qn_dims_text(x->rank, x->dims, dims));
    return out;
}

/* ---- views ---- */

quern_tensor *qn_tensor_view(const quern_tensor *x, char *data, int rank, const int64_t *dims,
                             const int64_t *strides)
{
    quern_tensor *view = tensor_new(x->dtype, rank, dims);
    if (!view)
        return NULL;
    if (rank)
        memcpy(view->strides, strides, (size_t)rank * sizeof *strides);
    view->data = data;
    view->storage = x->storage;
    qn_storage_retain(view->storage);
    return view;
}

bool qn_tensor_fill_dims(const quern_tensor *x, int rank, const int64_t *dims, int64_t *out_dims)
{
    char from[256], to[256];
    int64_t known = 1;
    int open = -1;
    bool bad = rank < 0 || rank > QN_TENSOR_MAX_RANK;
    for (int i = 0; i < rank && !bad; i++) {
        out_dims[i] = dims[i];
        if (dims[i] == -1 && open < 0)
            open = i;
        else
            bad = dims[i] < 0 || __builtin_mul_overflow(known, dims[i], &known);
    }
    if (!bad && open >= 0) {
        bad = known == 0 || x->elements % known != 0;
        out_dims[open] = bad ? 0 : x->elements / known;
    } else if (!bad) {
        bad = known != x->elements;
    }
    if (bad)
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_reshape: %s has %lld elements and cannot become %s",
                qn_tensor_text(x, from), (long long)x->elements,
                rank >= 0 && rank <= QN_TENSOR_MAX_RANK ? qn_dims_text(rank, dims, to)
                                                        : "a tensor of such a rank");
    return !bad;
}

quern_tensor *qn_tensor_reshaped(const quern_tensor *x, int rank, const int64_t *dims)
{
    int64_t strides[QN_TENSOR_MAX_RANK], old_dims[QN_TENSOR_MAX_RANK], old_strides[QN_TENSOR_MAX_RANK];
    int n_old = 0, i = 0;
    for (int k = 0; k < x->rank; k++)
        if (x->dims[k] != 1) {
            old_dims[n_old] = x->dims[k];
            old_strides[n_old++] = x->strides[k];
        }
    for (int j = 0; j < rank;) {
        if (x->elements == 0) {
            strides[j++] = 1;
            continue;
        }
        /* A run of new axes, and one of old axes with as many elements, which must lie as one axis would. */
        const int first_new = j, first_old = i;
        int64_t in_new = dims[j++], in_old = 1;
        while (in_new != in_old)
            if (in_old < in_new)
                in_old *= old_dims[i++];
            else
                in_new *= dims[j++];
        for (int k = first_old + 1; k < i; k++)
            if (old_strides[k - 1] != old_dims[k] * old_strides[k])
                return NULL;
        int64_t step = i > first_old ? old_strides[i - 1] : 1;
        for (int k = j - 1; k >= first_new; k--) {
            strides[k] = step;
            step *= dims[k];
        }
    }
    return qn_tensor_view(x, x->data, rank, dims, strides);
}

quern_tensor *quern_tensor_transpose(const quern_tensor *x, const int *perm)
{
    if (!x)
        return NULL;
    int64_t dims[QN_TENSOR_MAX_RANK], strides[QN_TENSOR_MAX_RANK];
    unsigned seen = 0;
    for (int i = 0; i < x->rank; i++) {
        int from = perm ? qn_tensor_axis(x, perm[i], "quern_tensor_transpose") : x->rank - 1 - i;
        if (from < 0)
            return NULL;
        if (seen & 1u << from) {
            qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_transpose: axis %d is named twice", from);
            return NULL;
        }
        seen |= 1u << from;
        dims[i] = x->dims[from];
        strides[i] = x->strides[from];
    }
    return qn_tensor_give(qn_tensor_view(x, x->data, x->rank, dims, strides));
}

/* Python's rule for a slice: what is left out, counted from the end, or past the ends. */
static int64_t slice_bound(int64_t at, int64_t n, bool backwards, bool is_stop)
{
    if (at == QUERN_ALL)
        return backwards ? (is_stop ? -1 : n - 1) : (is_stop ? n : 0);
    if (at < 0)
        at = at + n < 0 ? -1 : at + n;
    if (backwards)
        return at >= n ? n - 1 : at;
    return at < 0 ? 0 : at > n ? n : at;
}

quern_tensor *quern_tensor_slice(const quern_tensor *x, int axis, int64_t start, int64_t stop, int64_t step)
{
    if (!x || (axis = qn_tensor_axis(x, axis, "quern_tensor_slice")) < 0)
        return NULL;
    if (step == 0 || step == INT64_MIN) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_slice: the step must not be %lld", (long long)step);
        return NULL;
    }
    const int64_t n = x->dims[axis], size = (int64_t)quern_dtype_size(x->dtype);
    int64_t first = slice_bound(start, n, step < 0, false), end = slice_bound(stop, n, step < 0, true);
    int64_t distance = step > 0 ? end - first : first - end, stride = step > 0 ? step : -step;
    int64_t count = distance > 0 ? (distance - 1) / stride + 1 : 0;
    quern_tensor *view = qn_tensor_view(x, x->data, x->rank, x->dims, x->strides);
    if (!view)
        return NULL;
    view->dims[axis] = count;
    view->elements = n ? x->elements / n * count : 0;
    if (count > 1)
        view->strides[axis] = x->strides[axis] * step;
    if (view->elements)
        view->data = x->data + first * x->strides[axis] * size;
    return qn_tensor_give(view);
}

quern_tensor *quern_tensor_select(const quern_tensor *x, int axis, int64_t index)
{
    if (!x || (axis = qn_tensor_axis(x, axis, "quern_tensor_select")) < 0)
        return NULL;
    const int64_t n = x->dims[axis], size = (int64_t)quern_dtype_size(x->dtype);
    if (index < -n || index >= n) {
        char text[256];
        qn_fail(QUERN_ERROR_INDEX, "index %lld is out of range for axis %d of %s", (long long)index, axis,
                qn_tensor_text(x, text));
        return NULL;
    }
    int64_t dims[QN_TENSOR_MAX_RANK], strides[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < x->rank - 1; i++) {
        dims[i] = x->dims[i + (i >= axis)];
        strides[i] = x->strides[i + (i >= axis)];
    }
    char *data = x->data + (index < 0 ? index + n : index) * x->strides[axis] * size;
    return qn_tensor_give(qn_tensor_view(x, data, x->rank - 1, dims, strides));
}

quern_tensor *quern_tensor_broadcast(const quern_tensor *x, int rank, const int64_t *dims)
{
    if (!x)
        return NULL;
    char from[256], to[256];
    size_t bytes;
    int64_t strides[QN_TENSOR_MAX_RANK];
    if (!check_shape("quern_tensor_broadcast", x->dtype, rank, dims, &bytes))
        return NULL;
    bool fits = rank >= x->rank;
    for (int i = 0; fits && i < rank; i++) {
        int axis = i - (rank - x->rank);
        strides[i] = axis >= 0 && x->dims[axis] == dims[i] ? x->strides[axis] : 0;
        fits = axis < 0 || x->dims[axis] == dims[i] || x->dims[axis] == 1;
    }
    if (fits)
        return qn_tensor_give(qn_tensor_view(x, x->data, rank, dims, strides));
    qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_broadcast: %s cannot be repeated to %s",
            qn_tensor_text(x, from), qn_dims_text(rank, dims, to));
    return NULL;
}
