/* Reductions, running reductions and products. */
#include <string.h>

#include "driver/eager.h"
#include "runtime/error.h"

/* ---- reductions ---- */

typedef enum kind { SUM, PROD, MEAN, MAX, MIN, ANY, ALL, N_KINDS } kind;
static const char *const kind_names[] = { "sum", "prod", "mean", "max", "min", "any", "all" };
static const qn_kind combines[] = { QN_SUM,      QN_PROD,     QN_SUM,     QN_KIND_MAX,
                                    QN_KIND_MIN, QN_KIND_MAX, QN_KIND_MIN };

static kind kind_of(const char *name, kind n, const char *call)
{
    for (kind k = SUM; k < N_KINDS; k++)
        if (name && strcmp(kind_names[k], name) == 0 && k < n)
            return k;
    qn_fail(QUERN_ERROR_ARGUMENT, "%s: there is no kind '%s'", call, name ? name : "");
    return N_KINDS;
}

/* What sums of it are: NumPy's rule, which widens small integers. */
static int sum_dtype(int dtype)
{
    switch (qn_dtype_class_of((qn_dtype)dtype)) {
    case QN_CLASS_FLOAT: return dtype;
    case QN_CLASS_UNSIGNED: return QUERN_U64;
    default: return QUERN_I64;
    }
}

enum { REDUCE_KIND, REDUCE_DTYPE, REDUCE_AXES /* as a set */ };

static qn_value *build_reduce(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    (void)dims;
    int64_t axes[QN_TENSOR_MAX_RANK];
    int n = 0;
    for (int i = 0; i < call->n_symbols; i++)
        if (call->attrs[REDUCE_AXES] & INT64_C(1) << i)
            axes[n++] = i;
    qn_value *from = qn_b_convert(b, (qn_dtype)call->attrs[REDUCE_DTYPE], x[0]);
    if (!from || n == 0)
        return from;
    if (call->attrs[REDUCE_KIND] == MEAN)
        return qn_b_mean(b, from, n, axes, false);
    return qn_b_reduce(b, combines[call->attrs[REDUCE_KIND]], from, n, axes, false);
}

/* Axes as a set; false with a message. */
static bool axes_of(const quern_tensor *x, const char *name, int n, const int *axes, unsigned *out)
{
    *out = n < 0 ? (1u << x->rank) - 1 : 0;
    for (int i = 0; i < n; i++) {
        int axis = qn_tensor_axis(x, axes[i], name);
        if (axis < 0)
            return false;
        if (*out & 1u << axis) {
            qn_fail(QUERN_ERROR_ARGUMENT, "%s: axis %d is named twice", name, axis);
            return false;
        }
        *out |= 1u << axis;
    }
    return true;
}

static quern_tensor *reduce(kind k, const quern_tensor *x, int n, const int *axes, int keep)
{
    unsigned set;
    if (!x || k == N_KINDS || !axes_of(x, kind_names[k], n, axes, &set))
        return NULL;
    int compute = k == SUM || k == PROD                                 ? sum_dtype(x->dtype)
                  : k == ANY || k == ALL                                ? QUERN_BOOL
                  : k == MEAN && !qn_dtype_is_float((qn_dtype)x->dtype) ? QUERN_F64
                                                                        : x->dtype;
    qn_eager_call call = { .name = kind_names[k], .build = build_reduce, .n_attrs = 3, .dtype = compute };
    int64_t dims[QN_TENSOR_MAX_RANK], left = 1, gone = 1;
    uint8_t own[QN_TENSOR_MAX_RANK];
    int rank = 0, before = -1;
    for (int i = 0; i < x->rank; i++) {
        const bool out = set >> i & 1;
        if (!out || keep)
            dims[rank++] = out ? 1 : x->dims[i];
        *(out ? &gone : &left) *= x->dims[i];
        if (x->dims[i] == 1)
            continue;
        if (before == out) {
            call.symbols[call.n_symbols - 1] *= x->dims[i];
        } else {
            call.attrs[REDUCE_AXES] |= (int64_t)out << call.n_symbols;
            own[call.n_symbols] = (uint8_t)call.n_symbols;
            qn_eager_symbol(&call, x->dims[i]);
        }
        before = out;
    }
    if (gone == 0 && left > 0 && (k == MAX || k == MIN)) {
        char text[256];
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: there is none of no elements: %s", kind_names[k],
                qn_tensor_text(x, text));
        return NULL;
    }
    call.attrs[REDUCE_KIND] = k;
    call.attrs[REDUCE_DTYPE] = compute;
    qn_eager_add(&call, x, call.n_symbols, own);
    return qn_tensor_give(qn_eager_run(&call, rank, dims, NULL));
}

quern_tensor *quern_tensor_reduce(const char *name, const quern_tensor *x, int n, const int *axes, int keep)
{
    return x ? reduce(kind_of(name, N_KINDS, "quern_tensor_reduce"), x, n, axes, keep) : NULL;
}

quern_tensor *quern_tensor_sum(const quern_tensor *x, int n, const int *axes, int keep)
{
    return reduce(SUM, x, n, axes, keep);
}

quern_tensor *quern_tensor_mean(const quern_tensor *x, int n, const int *axes, int keep)
{
    return reduce(MEAN, x, n, axes, keep);
}

quern_tensor *quern_tensor_max(const quern_tensor *x, int n, const int *axes, int keep)
{
    return reduce(MAX, x, n, axes, keep);
}

quern_tensor *quern_tensor_min(const quern_tensor *x, int n, const int *axes, int keep)
{
    return reduce(MIN, x, n, axes, keep);
}

/* ---- along one axis ---- */

static qn_value *build_arg(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    (void)dims;
    return qn_b_arg_reduce(b, combines[call->attrs[REDUCE_KIND]], x[0], 1, false);
}

static qn_value *build_cumulative(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                                  const qn_dim *dims)
{
    (void)dims;
    return qn_b_cumulative(b, combines[call->attrs[REDUCE_KIND]],
                           qn_b_convert(b, (qn_dtype)call->dtype, x[0]), 1, false, false);
}

quern_tensor *quern_tensor_arg(const char *name, const quern_tensor *x, int axis)
{
    if (!x)
        return NULL;
    kind k = kind_of(name, N_KINDS, "quern_tensor_arg");
    if (k != MAX && k != MIN) {
        if (k != N_KINDS)
            qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_arg: the kind is max or min, not %s", name);
        return NULL;
    }
    if ((axis = qn_tensor_axis(x, axis, "quern_tensor_arg")) < 0)
        return NULL;
    int64_t dims[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < x->rank - 1; i++)
        dims[i] = x->dims[i + (i >= axis)];
    if (x->dims[axis] == 0) {
        char text[256];
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_arg: axis %d of %s has no elements", axis,
                qn_tensor_text(x, text));
        return NULL;
    }
    qn_eager_call call = {
        .name = name, .build = build_arg, .n_attrs = 1, .attrs = { k }, .dtype = QUERN_I64
    };
    qn_eager_add_around(&call, x, axis);
    return qn_tensor_give(qn_eager_run(&call, x->rank - 1, dims, NULL));
}

quern_tensor *quern_tensor_cumulative(const char *name, const quern_tensor *x, int axis)
{
    if (!x)
        return NULL;
    kind k = kind_of(name, N_KINDS, "quern_tensor_cumulative");
    if (k == MEAN || k == ANY || k == ALL)
        k = kind_of("", N_KINDS, "quern_tensor_cumulative");
    if (k == N_KINDS || (axis = qn_tensor_axis(x, axis, "quern_tensor_cumulative")) < 0)
        return NULL;
    qn_eager_call call = { .name = name, .build = build_cumulative, .n_attrs = 1, .attrs = { k } };
    call.dtype = k == SUM || k == PROD ? sum_dtype(x->dtype) : x->dtype;
    qn_eager_add_around(&call, x, axis);
    return qn_tensor_give(qn_eager_run(&call, x->rank, x->dims, NULL));
}

/* ---- products ---- */

enum { X_TRANSPOSED, Y_TRANSPOSED, MATMUL_DTYPE };

/* The last two axes swapped. */
static qn_value *swapped(qn_builder *b, qn_value *x)
{
    const int rank = x ? x->type.rank : 0;
    const int64_t of_two[] = { 1, 0 }, of_three[] = { 0, 2, 1 };
    return x ? qn_b_transpose(b, x, rank == 2 ? of_two : of_three) : NULL;
}

static qn_value *build_matmul(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    (void)dims;
    qn_value *sides[2];
    for (int i = 0; i < 2; i++) {
        sides[i] = qn_b_convert(b, (qn_dtype)call->attrs[MATMUL_DTYPE], x[i]);
        if (call->attrs[i])
            sides[i] = swapped(b, sides[i]);
    }
    return qn_b_matmul(b, sides[0], sides[1]);
}

/* One side as it is multiplied: [batch…, rows, columns], or a vector. */
typedef struct side {
    quern_tensor *x; /* a view of what was given, or a copy */
    bool transposed; /* x lies as [batch…, columns, rows] */
} side;

/* A view that becomes row-major when its last two axes are swapped is read as it lies; any other than row-major is copied,
 * and one with fewer batches is repeated. */
static side side_of(const quern_tensor *x, int n_batch, const int64_t *batch)
{
    int64_t dims[QN_TENSOR_MAX_RANK], strides[QN_TENSOR_MAX_RANK];
    const int own = x->rank > 2 ? x->rank - 2 : 0, rank = n_batch + x->rank - own;
    for (int i = 0; i < rank; i++) {
        int from = i - (rank - x->rank);
        bool repeated = i < n_batch && (from < 0 || x->dims[from] != batch[i]);
        dims[i] = i < n_batch ? batch[i] : x->dims[from];
        strides[i] = repeated ? 0 : x->strides[from];
    }
    side s = { .x = qn_tensor_view(x, x->data, rank, dims, strides) };
    if (!s.x || quern_tensor_is_contiguous(s.x))
        return s;
    quern_tensor *view = s.x;
    if (rank >= 2) {
        dims[rank - 1] = view->dims[rank - 2], dims[rank - 2] = view->dims[rank - 1];
        strides[rank - 1] = view->strides[rank - 2], strides[rank - 2] = view->strides[rank - 1];
        s.x = qn_tensor_view(x, x->data, rank, dims, strides);
        s.transposed = s.x && quern_tensor_is_contiguous(s.x);
        if (s.transposed || !s.x) {
            quern_tensor_free(view);
            return s;
        }
        quern_tensor_free(s.x);
    }
    s.x = qn_eager_compact(view);
    quern_tensor_free(view);
    return s;
}

static void add_side(qn_eager_call *call, side s, int batch, int rows, int columns)
{
    uint8_t axes[3];
    int rank = 0;
    if (batch >= 0)
        axes[rank++] = (uint8_t)batch;
    if (rows >= 0)
        axes[rank++] = (uint8_t)(s.transposed ? columns : rows);
    if (columns >= 0)
        axes[rank++] = (uint8_t)(s.transposed ? rows : columns);
    call->attrs[call->n] = s.transposed;
    qn_eager_add(call, s.x, rank, axes);
    call->x[call->n - 1].temporary = s.x;
}

/* Dims of the batches of a product, and how many axes; -1 where the two do not fit. */
static int batch_dims(const quern_tensor *x, const quern_tensor *y, int64_t *out)
{
    const int own[] = { x->rank > 2 ? x->rank - 2 : 0, y->rank > 2 ? y->rank - 2 : 0 };
    const int n = own[0] > own[1] ? own[0] : own[1];
    for (int i = 0; i < n; i++) {
        int64_t left = i < n - own[0] ? 1 : x->dims[i - (n - own[0])];
        int64_t right = i < n - own[1] ? 1 : y->dims[i - (n - own[1])];
        if (left != right && left != 1 && right != 1)
            return -1;
        out[i] = left == 1 ? right : left;
    }
    return n;
}

quern_tensor *quern_tensor_matmul(const quern_tensor *x, const quern_tensor *y)
{
    if (!x || !y)
        return NULL;
    char a[256], b[256];
    int64_t dims[QN_TENSOR_MAX_RANK];
    int n_batch = batch_dims(x, y, dims), common = qn_promote(x, y);
    if (n_batch < 0 || x->rank == 0 || y->rank == 0 ||
        x->dims[x->rank - 1] != y->dims[y->rank > 1 ? y->rank - 2 : 0]) {
        qn_fail(QUERN_ERROR_ARGUMENT,
                "quern_tensor_matmul: %s and %s do not fit: the last axis of the first is as long as the "
                "last but one of "
                "the second, and batches are equal or 1",
                qn_tensor_text(x, a), qn_tensor_text(y, b));
        return NULL;
    }
    if (common == QUERN_BOOL) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_matmul: bool has no products: convert it to numbers");
        return NULL;
    }
    qn_eager_call call = { .name = "matmul", .build = build_matmul, .n_attrs = 3, .dtype = common };
    call.attrs[MATMUL_DTYPE] = common;
    /* A matrix on the right is multiplied by all rows of all batches at once. */
    const bool is_matrix = y->rank <= 2;
    int64_t n_rows = x->rank > 1 ? x->dims[x->rank - 2] : 1, n_batches = 1;
    for (int i = 0; i < n_batch; i++)
        n_batches *= dims[i];
    side left = side_of(x, n_batch, dims), right = side_of(y, is_matrix ? 0 : n_batch, dims);
    if (is_matrix && n_batch && left.transposed) {
        quern_tensor_free(left.x);
        left = (side){ .x = qn_eager_compact(x) };
    }
    int batch = is_matrix ? -1 : qn_eager_symbol(&call, n_batches),
        depth = qn_eager_symbol(&call, x->dims[x->rank - 1]);
    int rows = -1, columns = -1, rank = n_batch;
    if (x->rank > 1) {
        rows = qn_eager_symbol(&call, is_matrix ? n_rows * n_batches : n_rows);
        dims[rank++] = n_rows;
    }
    if (y->rank > 1)
        columns = qn_eager_symbol(&call, dims[rank++] = y->dims[y->rank - 1]);
    if (batch >= 0 && rows < 0)
        rows = qn_eager_symbol(&call, 1);
    add_side(&call, left, batch, rows, depth);
    add_side(&call, right, batch, depth, columns);
    return qn_tensor_give(qn_eager_run(&call, rank, dims, NULL));
}
