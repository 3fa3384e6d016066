/* Values that are known while importing: constants, and small integer tensors whose elements are dimension expressions.
 * Exported models compute shapes with Shape, Gather, Add, Concat, Reshape; followed here, these chains vanish and
 * dimensions come out as expressions. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/import.h"

qn_onnx_value *qn_onnx_value_new(qn_onnx_import *im, qn_onnx_kind kind)
{
    qn_onnx_value *v = QN_NEW(im->arena, qn_onnx_value);
    v->kind = kind;
    return v;
}

qn_onnx_value *qn_onnx_value_from(qn_onnx_import *im, qn_value *value)
{
    qn_onnx_value *v = qn_onnx_value_new(im, QN_ONNX_TENSOR);
    v->type = value->type;
    v->value = value;
    return v;
}

qn_onnx_value *qn_onnx_value_constant(qn_onnx_import *im, const qn_tensor *tensor)
{
    qn_onnx_value *v = qn_onnx_value_new(im, QN_ONNX_TENSOR);
    v->type = tensor->type;
    v->tensor = tensor;
    return v;
}

int64_t qn_onnx_count(int rank, const int64_t *shape)
{
    int64_t n = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 0)
            return 0;
        if (n >= 0)
            n = shape[i] > QN_ONNX_CONTENTS_MAX / n ? -1 : n * shape[i];
    }
    return n;
}

int64_t qn_onnx_position(int rank, const int64_t *shape, const int64_t *index)
{
    int64_t at = 0;
    for (int i = 0; i < rank; i++)
        at = at * shape[i] + index[i];
    return at;
}

void qn_onnx_next_index(int rank, const int64_t *shape, int64_t *index)
{
    for (int i = rank - 1; i >= 0; i--) {
        if (++index[i] < shape[i])
            return;
        index[i] = 0;
    }
}

/* The constant of these elements; NULL when one is no constant, or outside of an int32. */
static const qn_tensor *constant_of(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *shape,
                                    int64_t n, const qn_dim *dims)
{
    size_t size = qn_dtype_bytes(dtype);
    uint8_t *data = qn_arena_alloc(im->arena, (size_t)n * size);
    for (int64_t i = 0; i < n; i++) {
        if (!qn_dim_is_const(dims[i]))
            return NULL;
        qn_scalar_store(dtype, (qn_scalar){ .i = dims[i]->value }, data + (size_t)i * size);
    }
    return qn_onnx_tensor_of(im, dtype, rank, shape, data);
}

static uint64_t symbols_of(qn_dim d)
{
    uint64_t set = d->kind == QN_DIM_SYMBOL && d->symbol < 64 ? (uint64_t)1 << d->symbol : 0;
    for (int i = 0; i < d->n; i++)
        set |= symbols_of(d->operands[i]);
    return set;
}

qn_onnx_value *qn_onnx_value_dims(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *shape,
                                  const qn_dim *dims)
{
    int64_t n = qn_onnx_count(rank, shape);
    qn_onnx_value *v = qn_onnx_value_new(im, QN_ONNX_TENSOR);
    v->type = qn_type_static(im->module, dtype, rank, shape);
    v->dims = qn_arena_copy(im->arena, dims, (size_t)n * sizeof *dims);
    v->tensor = constant_of(im, dtype, rank, shape, n, dims);
    for (int64_t i = 0; i < n; i++)
        v->extents |= symbols_of(dims[i]);
    return v;
}

/* The tensor of these elements, from runs of constants and single expressions. */
static qn_value *build_dims(qn_builder *b, qn_arena *arena, const qn_type *type, const qn_dim *dims)
{
    int64_t n = qn_type_elements(type);
    qn_dims *table = qn_b_dims(b);
    qn_dim one = qn_dim_const(table, 1);
    qn_value **parts = QN_NEW_ARRAY(arena, qn_value *, n);
    int n_parts = 0;
    for (int64_t i = 0; i < n;) {
        int64_t end = i;
        while (end < n && qn_dim_is_const(dims[end]))
            end++;
        if (end > i) {
            int64_t length = end - i;
            size_t size = qn_dtype_bytes(type->dtype);
            uint8_t *data = qn_arena_alloc(arena, (size_t)length * size);
            for (int64_t k = 0; k < length; k++)
                qn_scalar_store(type->dtype, (qn_scalar){ .i = dims[i + k]->value }, data + (size_t)k * size);
            const qn_tensor *t = qn_tensor_new(b->graph->module, type->dtype, 1, &length, data);
            parts[n_parts++] = qn_b_constant(b, t);
            i = end;
        } else {
            parts[n_parts++] = qn_b_reshape(b, qn_b_dim_value(b, type->dtype, dims[i]), 1, &one);
            i++;
        }
    }
    qn_value *all = n_parts == 1 ? parts[0] : qn_b_concatenate(b, n_parts, parts, 0);
    return qn_b_reshape(b, all, type->rank, type->dims);
}

qn_value *qn_onnx_value_make(qn_builder *b, qn_onnx_value *v)
{
    if (!v->value && v->tensor)
        v->value = qn_b_constant(b, v->tensor);
    else if (!v->value && v->dims)
        v->value = build_dims(b, b->graph->module->arena, &v->type, v->dims);
    return v->value;
}

/* ---- looking at contents ---- */

/* Looks for contents that were not followed, once. */
static void evaluate(qn_onnx_import *im, qn_onnx_value *v)
{
    if (v->kind != QN_ONNX_TENSOR || v->tensor || v->dims || v->unknown || v->learnable || v->strings)
        return;
    v->tensor = qn_onnx_evaluate(im, v->value);
    v->unknown = !v->tensor;
}

bool qn_onnx_contents_needed(qn_onnx_import *im, qn_onnx_value *v, qn_onnx_contents *out)
{
    evaluate(im, v);
    if (v->kind != QN_ONNX_TENSOR || (!v->tensor && !v->dims))
        return false;
    *out = (qn_onnx_contents){ .dtype = v->type.dtype, .rank = v->type.rank };
    for (int i = 0; i < v->type.rank; i++)
        out->shape[i] = v->type.dims[i]->value;
    out->n = qn_onnx_count(out->rank, out->shape);
    if (out->n < 0)
        return false;
    if (v->tensor)
        out->data = v->tensor->data;
    bool integer =
        (qn_dtype_is_int(v->type.dtype) && v->type.dtype != QUERN_U64) || v->type.dtype == QUERN_BOOL;
    if (!v->dims && integer) {
        qn_dim *dims = QN_NEW_ARRAY(im->arena, qn_dim, out->n);
        size_t size = qn_dtype_bytes(v->type.dtype);
        for (int64_t i = 0; i < out->n; i++)
            dims[i] = qn_dim_const(im->dims, qn_scalar_load(v->type.dtype, out->data + (size_t)i * size).i);
        v->dims = dims;
    }
    out->dims = v->dims;
    return true;
}

bool qn_onnx_contents_of(qn_onnx_import *im, qn_onnx_value *v, qn_onnx_contents *out)
{
    if (v->kind == QN_ONNX_TENSOR && qn_dtype_is_float(v->type.dtype) && (im->keep_floats || !v->tensor))
        return false; /* computed floats stay nodes until an operator has to know them */
    return qn_onnx_contents_needed(im, v, out);
}

/* Sets output i to contents, with what the node depends on. */
static void set_dims(qn_onnx_node *n, int i, qn_dtype dtype, int rank, const int64_t *shape,
                     const qn_dim *dims)
{
    qn_onnx_out_any(n, i, qn_onnx_value_dims(n->im, dtype, rank, shape, dims));
}

void qn_onnx_contents_move(qn_onnx_node *n, int i, const qn_onnx_contents *from, int rank,
                           const int64_t *shape, const int64_t *index)
{
    int64_t count = qn_onnx_count(rank, shape);
    if (from->data) {
        size_t size = qn_dtype_bytes(from->dtype);
        uint8_t *data = qn_arena_alloc(n->im->arena, (size_t)count * size);
        for (int64_t k = 0; k < count; k++)
            memcpy(data + (size_t)k * size, from->data + (size_t)index[k] * size, size);
        qn_onnx_out_tensor(n, i, qn_onnx_tensor_of(n->im, from->dtype, rank, shape, data));
    } else {
        qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, count);
        for (int64_t k = 0; k < count; k++)
            dims[k] = from->dims[index[k]];
        set_dims(n, i, from->dtype, rank, shape, dims);
    }
}

/* ---- arithmetic on contents ---- */

/* NumPy's common shape of n contents; false when it is too large or there is none. */
static bool common_shape(int n, const qn_onnx_contents *c, int *out_rank, int64_t *shape)
{
    *out_rank = 0;
    for (int k = 0; k < n; k++)
        *out_rank = c[k].rank > *out_rank ? c[k].rank : *out_rank;
    for (int i = 0; i < *out_rank; i++) {
        shape[i] = 1;
        for (int k = 0; k < n; k++) {
            int axis = i - (*out_rank - c[k].rank);
            int64_t extent = axis < 0 ? 1 : c[k].shape[axis];
            if (extent != 1 && shape[i] != 1 && extent != shape[i])
                return false;
            shape[i] = extent == 1 ? shape[i] : extent;
        }
    }
    return qn_onnx_count(*out_rank, shape) >= 0;
}

/* Position in c of the element that broadcasts to position `at` of the shape. */
static int64_t broadcast_position(const qn_onnx_contents *c, int rank, const int64_t *shape, int64_t at)
{
    int64_t position = 0, stride = 1;
    for (int i = rank - 1; i >= 0; i--) {
        int axis = i - (rank - c->rank);
        int64_t index = at % shape[i];
        at /= shape[i];
        if (axis < 0)
            continue;
        position += c->shape[axis] == 1 ? 0 : index * stride;
        stride *= c->shape[axis];
    }
    return position;
}

static qn_scalar scalar_at(const qn_onnx_contents *c, int64_t at)
{
    return qn_scalar_load(c->dtype, c->data + (size_t)at * qn_dtype_bytes(c->dtype));
}

/* Small enough that sums and products of two don't overflow an int64. */
#define TAME (((int64_t)1 << 62) - 1)

static bool is_tame(qn_dim d)
{
    return d->min >= -TAME && d->max <= TAME;
}

static bool fits(qn_dtype dtype, qn_dim d)
{
    if (qn_dim_is_const(d) && dtype == QUERN_I32)
        return d->value >= INT32_MIN && d->value <= INT32_MAX;
    return is_tame(d);
}

static bool is_word(const char *op, const char *word)
{
    return !strcmp(op, word);
}

static bool is_compare(const char *op)
{
    return is_word(op, "Equal") || is_word(op, "Less") || is_word(op, "Greater") ||
           is_word(op, "LessOrEqual") || is_word(op, "GreaterOrEqual");
}

qn_dim qn_onnx_fold_dim(qn_dims *t, const char *op, qn_dim x, qn_dim y)
{
    bool both = qn_dim_is_const(x) && qn_dim_is_const(y);
    if (!is_compare(op) && !(is_tame(x) && is_tame(y)))
        return NULL;
    if (is_word(op, "Add"))
        return qn_dim_add(t, x, y);
    if (is_word(op, "Sub"))
        return qn_dim_sub(t, x, y);
    if (is_word(op, "Mul")) {
        int64_t product;
        return both && __builtin_mul_overflow(x->value, y->value, &product) ? NULL : qn_dim_mul(t, x, y);
    }
    if (is_word(op, "Div")) { /* rounds to zero: like floor where nothing is negative */
        if (both)
            return y->value ? qn_dim_const(t, x->value / y->value) : NULL;
        return x->min >= 0 && y->min > 0 ? qn_dim_floordiv(t, x, y) : NULL;
    }
    if (is_word(op, "Mod")) {
        if (both && y->value) {
            int64_t r = x->value % y->value;
            return qn_dim_const(t, r && (r < 0) != (y->value < 0) ? r + y->value : r);
        }
        return x->min >= 0 && y->min > 0 ? qn_dim_mod(t, x, y) : NULL;
    }
    if (is_word(op, "Max"))
        return qn_dim_max(t, x, y);
    if (is_word(op, "Min"))
        return qn_dim_min(t, x, y);
    if (is_word(op, "Equal")) {
        if (x == y)
            return qn_dim_const(t, 1);
        return x->max < y->min || y->max < x->min || both ? qn_dim_const(t, 0) : NULL;
    }
    if (is_word(op, "Less") || is_word(op, "GreaterOrEqual")) {
        bool less = is_word(op, "Less");
        if (x->max < y->min)
            return qn_dim_const(t, less);
        return x->min >= y->max || x == y ? qn_dim_const(t, !less) : NULL;
    }
    if (is_word(op, "Greater") || is_word(op, "LessOrEqual"))
        return qn_onnx_fold_dim(t, is_word(op, "Greater") ? "Less" : "GreaterOrEqual", y, x);
    if (is_word(op, "And") && both)
        return qn_dim_const(t, x->value & y->value);
    if (is_word(op, "Or") && both)
        return qn_dim_const(t, x->value | y->value);
    if (is_word(op, "Xor") && both)
        return qn_dim_const(t, x->value ^ y->value);
    return NULL;
}

/* x op y on floats; false when this is not folded. Exact in double, so that storing rounds once. */
static bool fold_float(const char *op, double x, double y, double *out)
{
    if (is_word(op, "Add"))
        *out = x + y;
    else if (is_word(op, "Sub"))
        *out = x - y;
    else if (is_word(op, "Mul"))
        *out = x * y;
    else if (is_word(op, "Div"))
        *out = x / y;
    else if (is_word(op, "Max") && !isnan(x) && !isnan(y))
        *out = x > y ? x : y;
    else if (is_word(op, "Min") && !isnan(x) && !isnan(y))
        *out = x < y ? x : y;
    else
        return false;
    return true;
}

static bool fold_float_compare(const char *op, double x, double y, bool *out)
{
    if (is_word(op, "Equal"))
        *out = x == y;
    else if (is_word(op, "Less"))
        *out = x < y;
    else if (is_word(op, "Greater"))
        *out = x > y;
    else if (is_word(op, "LessOrEqual"))
        *out = x <= y;
    else if (is_word(op, "GreaterOrEqual"))
        *out = x >= y;
    else
        return false;
    return true;
}

static bool follows(qn_dtype dtype)
{
    return dtype == QUERN_I64 || dtype == QUERN_I32 || dtype == QUERN_BOOL;
}

bool qn_onnx_fold_binary(qn_onnx_node *n, const char *op)
{
    qn_onnx_contents c[2];
    int rank;
    int64_t shape[QN_MAX_RANK];
    if (n->n_in != 2 || !qn_onnx_contents_of(n->im, n->in[0], &c[0]) ||
        !qn_onnx_contents_of(n->im, n->in[1], &c[1]) || c[0].dtype != c[1].dtype ||
        !common_shape(2, c, &rank, shape))
        return false;
    qn_dtype dtype = c[0].dtype, result = is_compare(op) ? QUERN_BOOL : dtype;
    int64_t count = qn_onnx_count(rank, shape);
    if (follows(dtype)) {
        qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, count);
        for (int64_t i = 0; i < count; i++) {
            qn_dim x = c[0].dims[broadcast_position(&c[0], rank, shape, i)];
            qn_dim y = c[1].dims[broadcast_position(&c[1], rank, shape, i)];
            dims[i] = qn_onnx_fold_dim(n->im->dims, op, x, y);
            if (dims[i] && dims[i]->min >= 0 && !is_tame(dims[i]))
                qn_onnx_assume_at_most(n, dims[i], TAME); /* 2 n n of an n without a bound */
            if (!dims[i] || !fits(result, dims[i]))
                return false;
        }
        set_dims(n, 0, result, rank, shape, dims);
        return true;
    }
    if (!qn_dtype_is_float(dtype) || !c[0].data || !c[1].data)
        return false;
    size_t size = qn_dtype_bytes(result);
    uint8_t *data = qn_arena_alloc(n->im->arena, (size_t)count * size);
    for (int64_t i = 0; i < count; i++) {
        double x = scalar_at(&c[0], broadcast_position(&c[0], rank, shape, i)).f;
        double y = scalar_at(&c[1], broadcast_position(&c[1], rank, shape, i)).f;
        qn_scalar s;
        bool holds;
        if (is_compare(op) && fold_float_compare(op, x, y, &holds))
            s.i = holds;
        else if (is_compare(op) || !fold_float(op, x, y, &s.f))
            return false;
        qn_scalar_store(result, s, data + (size_t)i * size);
    }
    qn_onnx_out_tensor(n, 0, qn_onnx_tensor_of(n->im, result, rank, shape, data));
    return true;
}

bool qn_onnx_fold_unary(qn_onnx_node *n, const char *op)
{
    qn_onnx_contents c;
    if (n->n_in != 1 || !qn_onnx_contents_of(n->im, n->in[0], &c))
        return false;
    if (follows(c.dtype)) {
        qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, c.n);
        qn_dim zero = qn_dim_const(n->im->dims, 0);
        for (int64_t i = 0; i < c.n; i++) {
            qn_dim x = c.dims[i];
            if (is_word(op, "Relu"))
                dims[i] = qn_dim_max(n->im->dims, x, zero);
            else if (is_word(op, "Neg") && is_tame(x))
                dims[i] = qn_dim_sub(n->im->dims, zero, x);
            else if (is_word(op, "Abs") && x->min >= 0)
                dims[i] = x;
            else if (is_word(op, "Abs") && qn_dim_is_const(x) && is_tame(x))
                dims[i] = qn_dim_const(n->im->dims, -x->value);
            else if (is_word(op, "Not") && qn_dim_is_const(x))
                dims[i] = qn_dim_const(n->im->dims, !x->value);
            else
                return false;
        }
        set_dims(n, 0, c.dtype, c.rank, c.shape, dims);
        return true;
    }
    if (!qn_dtype_is_float(c.dtype) || !c.data)
        return false;
    size_t size = qn_dtype_bytes(c.dtype);
    uint8_t *data = qn_arena_alloc(n->im->arena, (size_t)c.n * size);
    for (int64_t i = 0; i < c.n; i++) {
        double x = scalar_at(&c, i).f, y;
        if (is_word(op, "Neg"))
            y = -x;
        else if (is_word(op, "Abs"))
            y = fabs(x);
        else if (is_word(op, "Relu"))
            y = x < 0 ? 0 : x;
        else if (is_word(op, "Sqrt"))
            y = sqrt(x);
        else if (is_word(op, "Floor"))
            y = floor(x);
        else if (is_word(op, "Ceil"))
            y = ceil(x);
        else if (is_word(op, "Reciprocal"))
            y = 1 / x;
        else
            return false;
        qn_scalar_store(c.dtype, (qn_scalar){ .f = y }, data + (size_t)i * size);
    }
    qn_onnx_out_tensor(n, 0, qn_onnx_tensor_of(n->im, c.dtype, c.rank, c.shape, data));
    return true;
}

/* From floats only what is an integer in range, after rounding to zero. */
bool qn_onnx_fold_cast(qn_onnx_node *n, qn_onnx_elem to)
{
    qn_onnx_contents c;
    qn_dtype dtype = qn_onnx_elem_dtype((int)to);
    if (!qn_onnx_contents_of(n->im, n->in[0], &c) || dtype == QUERN_INVALID_DTYPE)
        return false;
    if (follows(c.dtype) && (dtype == QUERN_I64 || dtype == QUERN_I32)) {
        for (int64_t i = 0; i < c.n; i++)
            if (!fits(dtype, c.dims[i]) && dtype != QUERN_I64)
                return false;
        set_dims(n, 0, dtype, c.rank, c.shape, c.dims);
        return true;
    }
    if (!c.data || c.dtype == QUERN_U64 || dtype == QUERN_U64 || qn_dtype_is_stored(c.dtype) ||
        qn_dtype_is_stored(dtype))
        return false;
    size_t size = qn_dtype_bytes(dtype);
    uint8_t *data = qn_arena_alloc(n->im->arena, (size_t)c.n * size);
    for (int64_t i = 0; i < c.n; i++) {
        qn_scalar s = scalar_at(&c, i);
        bool from_float = qn_dtype_is_float(c.dtype);
        if (dtype == QUERN_BOOL)
            s.i = from_float ? s.f != 0 : s.i != 0;
        else if (qn_dtype_is_float(dtype) && !from_float)
            s.f = (double)s.i;
        else if (!qn_dtype_is_float(dtype) && from_float) {
            if (!(fabs(s.f) < 128) && (dtype != QUERN_I64 && dtype != QUERN_I32))
                return false;
            if (!(fabs(s.f) < (dtype == QUERN_I64 ? 9e18 : 2147483647.0)) || (s.f < 0 && dtype == QUERN_U8))
                return false;
            s.i = (int64_t)s.f;
        }
        qn_scalar_store(dtype, s, data + (size_t)i * size);
    }
    qn_onnx_out_tensor(n, 0, qn_onnx_tensor_of(n->im, dtype, c.rank, c.shape, data));
    return true;
}

/* Where(condition, x, y) with a decided condition, or equal choices. */
bool qn_onnx_fold_where(qn_onnx_node *n)
{
    qn_onnx_contents c[3];
    int rank;
    int64_t shape[QN_MAX_RANK];
    for (int i = 0; i < 3; i++)
        if (!qn_onnx_contents_of(n->im, n->in[i], &c[i]))
            return false;
    if (c[0].dtype != QUERN_BOOL || c[1].dtype != c[2].dtype || !follows(c[1].dtype) ||
        !common_shape(3, c, &rank, shape))
        return false;
    int64_t count = qn_onnx_count(rank, shape);
    qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, count);
    for (int64_t i = 0; i < count; i++) {
        qn_dim p = c[0].dims[broadcast_position(&c[0], rank, shape, i)];
        qn_dim x = c[1].dims[broadcast_position(&c[1], rank, shape, i)];
        qn_dim y = c[2].dims[broadcast_position(&c[2], rank, shape, i)];
        if (!qn_dim_is_const(p) && x != y)
            return false;
        dims[i] = p->value || x == y ? x : y;
    }
    set_dims(n, 0, c[1].dtype, rank, shape, dims);
    return true;
}
