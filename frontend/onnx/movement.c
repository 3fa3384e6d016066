/* Operators that move elements without looking at them: shapes, slices, concatenation. Each also moves known
 * contents, see contents.c. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* The constant extents; false when one is symbolic. */
static bool static_shape(int rank, const qn_dim *dims, int64_t *shape)
{
    for (int i = 0; i < rank; i++) {
        if (!qn_dim_is_const(dims[i]))
            return false;
        shape[i] = dims[i]->value;
    }
    return true;
}

/* Output 0 is input 0 with other dims: the same constant, contents, or a reshape. */
static void reshape_input(qn_onnx_node *n, int rank, const qn_dim *dims)
{
    qn_onnx_value *v = n->in[0];
    int64_t shape[QN_MAX_RANK];
    bool is_static = static_shape(rank, dims, shape);
    qn_dim from = qn_type_elements_dim(n->im->dims, &v->type), to = qn_onnx_dim(n, 1);
    for (int i = 0; i < rank; i++)
        to = qn_dim_mul(n->im->dims, to, dims[i]);
    if (qn_dim_is_const(from) && qn_dim_is_const(to) && from != to) {
        qn_onnx_malformed(n, "%lld elements cannot take a shape of %lld", (long long)from->value,
                          (long long)to->value);
        return;
    }
    if (v->tensor && is_static && !(n->im->keep_floats && qn_dtype_is_float(v->type.dtype))) {
        qn_tensor *t = QN_NEW(n->im->arena, qn_tensor);
        *t = *v->tensor;
        t->type = qn_type_static(n->im->module, t->type.dtype, rank, shape);
        t->hash = 0;
        qn_onnx_out_tensor(n, 0, t);
    } else if (v->dims && is_static) {
        qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, v->type.dtype, rank, shape, v->dims));
    } else {
        qn_onnx_out(n, 0, qn_b_reshape(&n->b, qn_onnx_in(n, 0), rank, dims));
    }
}

static void import_reshape(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_dim dims[QN_MAX_RANK];
    int rank, inferred = -1;
    if (!x)
        return;
    if (n->opset < 5) {
        const int64_t *shape = qn_onnx_attr_ints(n, "shape", &rank);
        if (!shape || rank > QN_MAX_RANK) {
            qn_onnx_malformed(n, "attribute shape is missing or too long");
            return;
        }
        for (int i = 0; i < rank; i++)
            dims[i] = qn_onnx_dim(n, shape[i]);
    } else if (!qn_onnx_in_extents(n, 1, QN_MAX_RANK, qn_type_elements_dim(n->im->dims, x), dims, &rank)) {
        return;
    }
    bool allow_zero = qn_onnx_attr_int(n, "allowzero", 0) != 0;
    /* What the -1 is found from leaves out dimensions that are copied, which may be 0. */
    qn_dim known = qn_onnx_dim(n, 1), total = known;
    bool copied[QN_MAX_RANK] = { false };
    for (int i = 0; i < rank; i++) {
        if (qn_dim_is(dims[i], 0) && !allow_zero) {
            if (i >= x->rank) {
                qn_onnx_malformed(n, "element %d of the shape copies a dimension that the input lacks", i);
                return;
            }
            dims[i] = x->dims[i];
            copied[i] = true;
            continue;
        } else if (qn_dim_is(dims[i], -1)) {
            if (inferred >= 0) {
                qn_onnx_malformed(n, "more than one element of the shape is -1");
                return;
            }
            inferred = i;
            continue;
        } else if (dims[i]->max < 0) {
            qn_onnx_malformed(n, "element %d of the shape is negative", i);
            return;
        }
        known = qn_dim_mul(n->im->dims, known, dims[i]);
    }
    if (inferred >= 0) {
        for (int i = 0; i < x->rank; i++)
            total = copied[i] ? total : qn_dim_mul(n->im->dims, total, x->dims[i]);
        if (qn_dim_is(known, 0)) {
            qn_onnx_malformed(n, "the -1 in the shape is undetermined, as another element is 0");
            return;
        }
        dims[inferred] = qn_dim_floordiv(n->im->dims, total, known);
    }
    reshape_input(n, rank, dims);
}

static void import_flatten(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int64_t axis = qn_onnx_attr_int(n, "axis", 1);
    if (axis < -x->rank || axis > x->rank) {
        qn_onnx_malformed(n, "axis %lld is outside of rank %d", (long long)axis, x->rank);
        return;
    }
    axis += axis < 0 ? x->rank : 0;
    qn_dim dims[2] = { qn_onnx_dim(n, 1), qn_onnx_dim(n, 1) };
    for (int i = 0; i < x->rank; i++)
        dims[i >= axis] = qn_dim_mul(n->im->dims, dims[i >= axis], x->dims[i]);
    reshape_input(n, 2, dims);
}

static void import_squeeze(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes, rank = 0;
    bool given;
    if (!x || !qn_onnx_axes(n, n->opset >= 13 ? 1 : -1, x->rank, axes, &n_axes, &given))
        return;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0, k = 0; i < x->rank; i++) {
        bool listed = k < n_axes && axes[k] == i;
        k += listed;
        if (listed && x->dims[i]->min > 1) {
            qn_onnx_malformed(n, "axis %d cannot be squeezed: its dimension is not 1", i);
            return;
        }
        if (!given && !qn_dim_is_const(x->dims[i])) {
            qn_onnx_needs_dim(n, x->dims[i]);
            qn_onnx_unsupported(n, "the axes must be given, as dimension %d is symbolic", i);
            return;
        }
        if (!listed && (given || !qn_dim_is(x->dims[i], 1)))
            dims[rank++] = x->dims[i];
    }
    reshape_input(n, rank, dims);
}

static void import_unsqueeze(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes = 0;
    bool given;
    if (!x)
        return;
    const int64_t *attr =
        qn_onnx_attr_ints(n, "axes", &n_axes); /* their number gives the rank they are read with */
    if (!attr && !qn_onnx_in_ints(n, 1, QN_MAX_RANK, axes, &n_axes))
        return;
    if (n_axes > QN_MAX_RANK - x->rank) {
        qn_onnx_unsupported(n, "the result's rank is too high; at most %d is supported", QN_MAX_RANK);
        return;
    }
    int rank = x->rank + n_axes;
    if (!qn_onnx_axes(n, 1, rank, axes, &n_axes, &given))
        return;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0, k = 0, from = 0; i < rank; i++)
        dims[i] = k < n_axes && axes[k] == i ? (k++, qn_onnx_dim(n, 1)) : x->dims[from++];
    reshape_input(n, rank, dims);
}

static void import_identity(qn_onnx_node *n)
{
    qn_onnx_out_any(n, 0, qn_onnx_in_any(n, 0));
}

/* Position in a row-major tensor. */
static int64_t position(int rank, const int64_t *shape, const int64_t *index)
{
    int64_t at = 0;
    for (int i = 0; i < rank; i++)
        at = at * shape[i] + index[i];
    return at;
}

/* Steps to the next index in row-major order. */
static void next_index(int rank, const int64_t *shape, int64_t *index)
{
    for (int i = rank - 1; i >= 0; i--) {
        if (++index[i] < shape[i])
            return;
        index[i] = 0;
    }
}

static void import_transpose(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int n_perm;
    const int64_t *given = qn_onnx_attr_ints(n, "perm", &n_perm);
    int64_t perm[QN_MAX_RANK];
    bool seen[QN_MAX_RANK] = { false }, good = !given || n_perm == x->rank;
    for (int i = 0; i < x->rank && good; i++) {
        perm[i] = given ? given[i] : x->rank - 1 - i;
        if (perm[i] < 0 && given)
            perm[i] += x->rank;
        good = perm[i] >= 0 && perm[i] < x->rank && !seen[perm[i]];
        if (good)
            seen[perm[i]] = true;
    }
    if (!good) {
        qn_onnx_malformed(n, "attribute perm is not a permutation of the axes");
        return;
    }
    qn_onnx_contents c;
    if (!qn_onnx_contents_of(n->im, n->in[0], &c)) {
        qn_onnx_out(n, 0, qn_b_transpose(&n->b, qn_onnx_in(n, 0), perm));
        return;
    }
    int64_t shape[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 }, source[QN_MAX_RANK];
    int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, c.n);
    for (int i = 0; i < c.rank; i++)
        shape[i] = c.shape[perm[i]];
    for (int64_t k = 0; k < c.n; k++, next_index(c.rank, shape, index)) {
        for (int i = 0; i < c.rank; i++)
            source[perm[i]] = index[i];
        map[k] = position(c.rank, c.shape, source);
    }
    qn_onnx_contents_move(n, 0, &c, c.rank, shape, map);
}

/* Contents side by side, as one list of expressions or of bytes. */
static bool concat_contents(qn_onnx_node *n, int axis)
{
    int64_t shape[QN_MAX_RANK] = { 0 };
    qn_onnx_contents *parts = QN_NEW_ARRAY(n->im->arena, qn_onnx_contents, n->n_in);
    bool data = true, dims = true;
    for (int k = 0; k < n->n_in; k++) {
        if (!qn_onnx_contents_of(n->im, n->in[k], &parts[k]) || parts[k].dtype != parts[0].dtype ||
            parts[k].rank != parts[0].rank)
            return false;
        data &= parts[k].data != NULL;
        dims &= parts[k].dims != NULL;
        for (int i = 0; i < parts[k].rank; i++)
            if (i == axis)
                shape[i] += parts[k].shape[i];
            else if (parts[k].shape[i] != parts[0].shape[i])
                return false;
            else
                shape[i] = parts[k].shape[i];
    }
    int rank = parts[0].rank;
    int64_t count = qn_onnx_count(rank, shape);
    if (count < 0 || (!data && !dims))
        return false;
    size_t size = data ? qn_dtype_bytes(parts[0].dtype) : sizeof(qn_dim);
    uint8_t *all = qn_arena_alloc(n->im->arena, (size_t)count * size), *to = all;
    int64_t outer = 1;
    for (int i = 0; i < axis; i++)
        outer *= shape[i];
    for (int64_t row = 0; row < outer; row++)
        for (int k = 0; k < n->n_in; k++) {
            size_t bytes = (size_t)(parts[k].n / outer) * size;
            const uint8_t *from = data ? parts[k].data : (const uint8_t *)parts[k].dims;
            memcpy(to, from + (size_t)row * bytes, bytes);
            to += bytes;
        }
    if (data)
        qn_onnx_out_tensor(n, 0, qn_onnx_tensor_of(n->im, parts[0].dtype, rank, shape, all));
    else
        qn_onnx_out_any(n, 0,
                        qn_onnx_value_dims(n->im, parts[0].dtype, rank, shape, (const qn_dim *)(void *)all));
    return true;
}

static void import_concat(qn_onnx_node *n)
{
    const qn_type *first = qn_onnx_in_type(n, 0);
    int axis;
    if (!first || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 1), first->rank, &axis) ||
        concat_contents(n, axis))
        return;
    qn_value **parts = QN_NEW_ARRAY(n->im->arena, qn_value *, n->n_in);
    for (int k = 0; k < n->n_in; k++)
        parts[k] = qn_onnx_in(n, k);
    for (int k = 1; k < n->n_in && qn_onnx_ok(n); k++)
        for (int i = 0; i < first->rank && parts[k] && parts[k]->type.rank == first->rank; i++)
            if (i != axis)
                parts[k] = qn_onnx_with_dim(n, parts[k], i, first->dims[i]);
    if (qn_onnx_ok(n))
        qn_onnx_out(n, 0, n->n_in == 1 ? parts[0] : qn_b_concatenate(&n->b, n->n_in, parts, axis));
}

/* ---- slices ---- */

/* Slice of input 0: from start, `count` elements a (possibly negative) step apart, per axis. */
typedef struct slice {
    qn_dim start, count;
    int64_t step;
    qn_value *from; /* where the run computes the start; of step 1 */
} slice;

/* A bound as the model gives it. */
typedef struct bound {
    qn_dim dim;      /* NULL: */
    qn_value *value; /* an i64 scalar that the run computes */
} bound;

/* A bound as the model gives it (negative: from the end), within [low, high]. NULL when its sign is not known. */
static qn_dim clamp_bound(qn_onnx_node *n, qn_dim bound, qn_dim extent, qn_dim low, qn_dim high)
{
    qn_dims *t = n->im->dims;
    const bool whole =
        qn_dim_is(qn_dim_add(t, bound, extent), 0); /* as many as there are, which may be none */
    if (bound->max < 0 || (bound->max == 0 && whole))
        bound = qn_dim_is_const(bound) && bound->value <= -QN_DIM_MAX_VALUE
                    ? qn_onnx_dim(n, -QN_DIM_MAX_VALUE)
                    : qn_dim_add(t, bound, extent);
    else if (bound->min < 0)
        return NULL;
    else if (qn_dim_is_const(bound) && bound->value >= QN_DIM_MAX_VALUE)
        return high;
    return qn_dim_max(t, low, qn_dim_min(t, bound, high));
}

/* A bound that the run computes, within [0, extent]. */
static qn_value *clamp_value(qn_onnx_node *n, const bound *x, qn_dim extent)
{
    qn_builder *b = &n->b;
    qn_value *zero = qn_b_scalar_int(b, QUERN_I64, 0), *high = qn_b_dim_value(b, QUERN_I64, extent);
    qn_value *v = x->dim ? qn_b_dim_value(b, QUERN_I64, x->dim) : x->value;
    v = choose(b, compare(b, QN_LT, v, zero), add(b, v, high), v);
    return minimum(b, maximum(b, v, zero), high);
}

static bool slice_by_value(qn_onnx_node *n, qn_dim extent, const bound *start, const bound *end, slice *out)
{
    qn_builder *b = &n->b;
    out->step = 1;
    out->start = NULL;
    out->from = clamp_value(n, start, extent);
    qn_value *stop = clamp_value(n, end, extent);
    out->count = qn_onnx_extent(n, max_number(b, sub(b, stop, out->from), 0), extent);
    return out->from && out->count;
}

static bool make_slice(qn_onnx_node *n, qn_dim extent, const bound *from, const bound *to, int64_t step,
                       slice *out)
{
    qn_dims *t = n->im->dims;
    qn_dim zero = qn_onnx_dim(n, 0), last = qn_dim_sub(t, extent, qn_onnx_dim(n, 1));
    if (step == 0) {
        qn_onnx_malformed(n, "a step of a slice is 0");
        return false;
    }
    if (!from->dim || !to->dim) {
        if (step == 1)
            return slice_by_value(n, extent, from, to, out);
        qn_onnx_misses(n, n->in[1]); /* backwards, or several elements on */
        qn_onnx_needs_contents(n, 2);
        return false;
    }
    /* a step beyond every extent takes one element, however large it is */
    step = step > QN_DIM_MAX_VALUE ? QN_DIM_MAX_VALUE : step < -QN_DIM_MAX_VALUE ? -QN_DIM_MAX_VALUE : step;
    out->step = step;
    out->start = clamp_bound(n, from->dim, extent, zero, step > 0 ? extent : last);
    qn_dim stop =
        clamp_bound(n, to->dim, extent, step > 0 ? zero : qn_onnx_dim(n, -1), step > 0 ? extent : last);
    if (!out->start || !stop) {
        const qn_dim unsure = out->start ? to->dim : from->dim;
        const bool from_end = unsure->max <= 0; /* -n: where that is 0 it would be the other end */
        const bool again =
            qn_onnx_assume_not_negative(n, from_end ? qn_dim_sub(t, qn_onnx_dim(n, -1), unsure) : unsure);
        if (!again && step == 1)
            return slice_by_value(n, extent, from, to, out);
        if (!again)
            qn_onnx_needs_dim(n, unsure);
        qn_onnx_unsupported(n, "a slice bound may be negative or not, depending on the symbols of %s",
                            qn_dim_print(unsure, n->im->arena));
        return false;
    }
    qn_dim length = step > 0 ? qn_dim_sub(t, stop, out->start) : qn_dim_sub(t, out->start, stop);
    out->count = qn_dim_ceildiv(t, qn_dim_max(t, length, zero), qn_onnx_dim(n, step > 0 ? step : -step));
    if (step < 0 && extent->min < 1) /* there may be no element 0 to begin with */
        out->count = qn_dim_min(t, out->count, extent);
    return true;
}

static bool slice_contents(qn_onnx_node *n, const slice *slices)
{
    qn_onnx_contents c;
    int64_t shape[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 }, source[QN_MAX_RANK];
    if (!qn_onnx_contents_of(n->im, n->in[0], &c))
        return false;
    for (int i = 0; i < c.rank; i++) {
        if (slices[i].from || !qn_dim_is_const(slices[i].start) || !qn_dim_is_const(slices[i].count))
            return false;
        shape[i] = slices[i].count->value;
    }
    int64_t count = qn_onnx_count(c.rank, shape);
    int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, count);
    for (int64_t k = 0; k < count; k++, next_index(c.rank, shape, index)) {
        for (int i = 0; i < c.rank; i++)
            source[i] = slices[i].start->value + index[i] * slices[i].step;
        map[k] = position(c.rank, c.shape, source);
    }
    qn_onnx_contents_move(n, 0, &c, c.rank, shape, map);
    return true;
}

/* Along the axes where the run computes the start. */
static qn_value *dynamic_part(qn_onnx_node *n, qn_value *x, const slice *slices)
{
    qn_value *starts[QN_MAX_RANK];
    qn_dim sizes[QN_MAX_RANK];
    bool any = false;
    for (int i = 0; i < x->type.rank; i++) {
        any |= slices[i].from != NULL;
        starts[i] = slices[i].from ? slices[i].from : qn_b_scalar_int(&n->b, QUERN_I64, 0);
        sizes[i] = slices[i].from ? slices[i].count : x->type.dims[i];
    }
    return any ? qn_b_dynamic_slice(&n->b, x, starts, sizes) : x;
}

/* Backward steps are a forward slice, reversed. */
static void build_slice(qn_onnx_node *n, const slice *slices)
{
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    x = x ? dynamic_part(n, x, slices) : NULL;
    if (!x)
        return;
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK], reversed[QN_MAX_RANK];
    int n_reversed = 0;
    for (int i = 0; i < x->type.rank; i++) {
        const slice along = { qn_onnx_dim(n, 0), x->type.dims[i], 1, NULL };
        const slice *s = slices[i].from ? &along : &slices[i];
        stride[i] = s->step > 0 ? s->step : -s->step;
        /* from the first element to one past the last; nothing where count is 0 */
        qn_dim span = qn_dim_mul(t, qn_dim_sub(t, s->count, qn_onnx_dim(n, 1)), qn_onnx_dim(n, stride[i]));
        bool empty = qn_dim_is(s->count, 0);
        start[i] = empty         ? qn_onnx_dim(n, 0)
                   : s->step > 0 ? s->start
                                 : qn_dim_max(t, qn_onnx_dim(n, 0), qn_dim_sub(t, s->start, span));
        limit[i] =
            empty ? qn_onnx_dim(n, 0)
            : stride[i] == 1
                ? qn_dim_add(t, start[i], s->count)
                : qn_dim_max(t, start[i], qn_dim_add(t, start[i], qn_dim_add(t, span, qn_onnx_dim(n, 1))));
        if (s->step < 0)
            reversed[n_reversed++] = i;
    }
    x = qn_b_slice(&n->b, x, start, limit, stride);
    qn_onnx_out(n, 0, n_reversed ? qn_b_reverse(&n->b, x, n_reversed, reversed) : x);
}

/* Element `at` of an input whose contents are not known: an extent where it surely is none that counts from the end. */
static bool computed_bound(qn_onnx_node *n, int input, int64_t at, bound *out)
{
    qn_builder *b = &n->b;
    qn_value *v = qn_onnx_in(n, input);
    v = v ? qn_b_slice_axis(b, v, 0, qn_onnx_dim(n, at), qn_onnx_dim(n, at + 1)) : NULL;
    out->value = v ? qn_b_convert(b, QUERN_I64, qn_b_reshape(b, v, 0, NULL)) : NULL;
    if (out->value)
        out->dim = qn_onnx_known_extent(n, out->value);
    return out->value;
}

static bool slice_bounds(qn_onnx_node *n, int input, const char *attr, bound *out, int *out_n)
{
    if (n->opset >= 10) {
        qn_onnx_contents c;
        const qn_type *type = qn_onnx_in_type(n, input);
        qn_dim dims[QN_MAX_RANK];
        if (!type)
            return false;
        if (!qn_onnx_contents_needed(n->im, n->in[input], &c) && type->rank == 1 && qn_type_is_static(type) &&
            type->dims[0]->value <= QN_MAX_RANK && qn_dtype_is_int(type->dtype)) {
            *out_n = (int)type->dims[0]->value;
            for (int i = 0; i < *out_n; i++)
                if (!computed_bound(n, input, i, &out[i]))
                    return false;
            return true;
        }
        if (!qn_onnx_in_dims(n, input, QN_MAX_RANK, dims, out_n))
            return false;
        for (int i = 0; i < *out_n; i++)
            out[i] = (bound){ dims[i], NULL };
        return true;
    }
    const int64_t *values = qn_onnx_attr_ints(n, attr, out_n);
    if (!values || *out_n > QN_MAX_RANK) {
        qn_onnx_malformed(n, "attribute %s is missing or too long", attr);
        return false;
    }
    for (int i = 0; i < *out_n; i++)
        out[i] = (bound){ qn_onnx_dim(n, values[i]), NULL };
    return true;
}

static void import_slice(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    bound starts[QN_MAX_RANK], ends[QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK], steps[QN_MAX_RANK];
    int n_starts, n_ends, n_axes = -1, n_steps = -1;
    if (!x || !slice_bounds(n, 1, "starts", starts, &n_starts) || !slice_bounds(n, 2, "ends", ends, &n_ends))
        return;
    if (n->opset < 10) {
        const int64_t *given = qn_onnx_attr_ints(n, "axes", &n_axes);
        for (int i = 0; given && i < n_axes && i < QN_MAX_RANK; i++)
            axes[i] = given[i];
        n_axes = given ? n_axes : -1;
    } else {
        if (qn_onnx_has(n, 3) && !qn_onnx_in_ints(n, 3, QN_MAX_RANK, axes, &n_axes))
            return;
        if (qn_onnx_has(n, 4) && !qn_onnx_in_ints(n, 4, QN_MAX_RANK, steps, &n_steps))
            return;
    }
    if (n_starts != n_ends || (n_axes >= 0 && n_axes != n_starts) || (n_steps >= 0 && n_steps != n_starts) ||
        (n_axes < 0 && n_starts > x->rank)) {
        qn_onnx_malformed(n, "starts, ends, axes and steps differ in length");
        return;
    }
    slice slices[QN_MAX_RANK];
    bool seen[QN_MAX_RANK] = { false };
    for (int i = 0; i < x->rank; i++)
        slices[i] = (slice){ qn_onnx_dim(n, 0), x->dims[i], 1, NULL };
    for (int k = 0; k < n_starts; k++) {
        int axis = k;
        if (n_axes >= 0 && !qn_onnx_axis(n, axes[k], x->rank, &axis))
            return;
        if (seen[axis]) {
            qn_onnx_malformed(n, "axis %d is given twice", axis);
            return;
        }
        seen[axis] = true;
        if (!make_slice(n, x->dims[axis], &starts[k], &ends[k], n_steps >= 0 ? steps[k] : 1, &slices[axis]))
            return;
    }
    if (!slice_contents(n, slices))
        build_slice(n, slices);
}

static void import_split(qn_onnx_node *n)
{
    qn_dims *t = n->im->dims;
    const qn_type *x = qn_onnx_in_type(n, 0);
    int axis, n_sizes = 0, n_out = (int)n->proto->n_output;
    if (!x || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->rank, &axis))
        return;
    qn_dim *sizes = QN_NEW_ARRAY(n->im->arena, qn_dim, n_out);
    const int64_t *given = n->opset < 13 ? qn_onnx_attr_ints(n, "split", &n_sizes) : NULL;
    if (given && n_sizes == n_out) {
        for (int i = 0; i < n_out; i++)
            sizes[i] = qn_onnx_dim(n, given[i]);
    } else if (qn_onnx_has(n, 1)) {
        if (!qn_onnx_in_extents(n, 1, n_out, x->dims[axis], sizes, &n_sizes))
            return;
    } else if (!given) { /* equal parts; the last takes what is left */
        n_sizes = (int)qn_onnx_attr_int(n, "num_outputs", n_out);
        qn_dim part = qn_dim_ceildiv(t, x->dims[axis], qn_onnx_dim(n, n_out ? n_out : 1)),
               left = x->dims[axis];
        for (int i = 0; i < n_out; i++) {
            sizes[i] = qn_dim_max(t, qn_onnx_dim(n, 0), qn_dim_min(t, part, left));
            left = qn_dim_sub(t, left, part);
        }
    }
    if (n_sizes != n_out || n_out == 0) {
        qn_onnx_malformed(n, "it splits into %d parts and has %d outputs", n_sizes, n_out);
        return;
    }
    qn_dim start = qn_onnx_dim(n, 0);
    for (int i = 0; i < n_out; i++) {
        if (sizes[i]->max < 0) {
            qn_onnx_malformed(n, "part %d has a negative size", i);
            return;
        }
        qn_dim limit = qn_dim_add(t, start, sizes[i]);
        qn_onnx_contents c;
        if (qn_onnx_contents_of(n->im, n->in[0], &c) && c.rank == 1 && qn_dim_is_const(limit) &&
            qn_dim_is_const(start) && limit->value <= c.n) {
            int64_t count = limit->value - start->value;
            int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, count);
            for (int64_t k = 0; k < count; k++)
                map[k] = start->value + k;
            if (i < n->n_out)
                qn_onnx_contents_move(n, i, &c, 1, &count, map);
        } else if (qn_onnx_wants(n, i)) {
            qn_onnx_out(n, i, qn_b_slice_axis(&n->b, qn_onnx_in(n, 0), axis, start, limit));
        }
        start = limit;
    }
    if (qn_dim_is_const(start) && qn_dim_is_const(x->dims[axis]) && start != x->dims[axis])
        qn_onnx_malformed(n, "the parts have %lld elements, and axis %d has %lld", (long long)start->value,
                          axis, (long long)x->dims[axis]->value);
}

/* ---- repetition ---- */

/* The extent two dims broadcast to; NULL when they differ. */
static qn_dim common_dim(qn_dims *t, qn_dim x, qn_dim y)
{
    if (x == y || qn_dim_is(y, 1))
        return x;
    if (qn_dim_is(x, 1))
        return y;
    if (qn_dim_is_const(x) && qn_dim_is_const(y))
        return NULL;
    return qn_dim_select_one(t, x, y);
}

static void import_expand(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_dim shape[QN_MAX_RANK], dims[QN_MAX_RANK];
    int n_shape;
    if (!x || !qn_onnx_in_extents(n, 1, QN_MAX_RANK, NULL, shape, &n_shape))
        return;
    int rank = n_shape > x->rank ? n_shape : x->rank;
    for (int i = 0; i < rank; i++) {
        int from_x = i - (rank - x->rank), from_shape = i - (rank - n_shape);
        qn_dim a = from_x < 0 ? qn_onnx_dim(n, 1) : x->dims[from_x];
        qn_dim b = from_shape < 0 ? qn_onnx_dim(n, 1) : shape[from_shape];
        dims[i] =
            qn_dim_is(b, -1) ? a : common_dim(n->im->dims, a, b); /* -1, as in torch, is seen in exports */
        if (!dims[i]) {
            qn_onnx_malformed(n, "dimension %lld cannot be expanded to %lld", (long long)a->value,
                              (long long)b->value);
            return;
        }
    }
    qn_onnx_contents c;
    int64_t extents[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 };
    if (qn_onnx_contents_of(n->im, n->in[0], &c) && static_shape(rank, dims, extents) &&
        qn_onnx_count(rank, extents) >= 0) {
        int64_t count = qn_onnx_count(rank, extents);
        int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, count);
        for (int64_t k = 0; k < count; k++, next_index(rank, extents, index)) {
            map[k] = 0;
            for (int i = 0; i < c.rank; i++)
                map[k] = map[k] * c.shape[i] + (c.shape[i] == 1 ? 0 : index[i + rank - c.rank]);
        }
        qn_onnx_contents_move(n, 0, &c, rank, extents, map);
        return;
    }
    qn_onnx_out(n, 0, qn_b_broadcast_to(&n->b, qn_onnx_in(n, 0), rank, dims));
}

/* Each repeated axis becomes two, the first of them a broadcast, and one again. */
static void import_tile(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_dim repeats[QN_MAX_RANK];
    int n_repeats;
    if (!x || !qn_onnx_in_extents(n, 1, QN_MAX_RANK, NULL, repeats, &n_repeats))
        return;
    int rank = x->type.rank;
    if (n_repeats != rank) {
        qn_onnx_malformed(n, "there must be one repeat per axis");
        return;
    }
    for (int i = 0; i < rank; i++) {
        qn_dim dims[QN_MAX_RANK + 1], merged[QN_MAX_RANK];
        int64_t axes[QN_MAX_RANK];
        if (!x || qn_dim_is(repeats[i], 1))
            continue;
        if (repeats[i]->max < 0 || rank == QN_MAX_RANK) {
            qn_onnx_unsupported(n, "a negative repeat, or too high a rank");
            return;
        }
        for (int k = 0; k < rank; k++) {
            merged[k] = k == i ? qn_dim_mul(n->im->dims, repeats[i], x->type.dims[k]) : x->type.dims[k];
            dims[k < i ? k : k + 1] = x->type.dims[k];
            axes[k] = k < i ? k : k + 1;
        }
        dims[i] = repeats[i];
        x = qn_b_reshape(b, qn_b_broadcast(b, x, rank + 1, dims, axes), rank, merged);
    }
    qn_onnx_out(n, 0, x);
}

/* ---- blocks ---- */

static void import_depth_to_space(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t block = qn_onnx_attr_int(n, "blocksize", 0);
    bool to_space = !strcmp(n->proto->op_type, "DepthToSpace");
    bool crd = qn_onnx_attr_is(n, "mode", "DCR", "CRD");
    if (!x)
        return;
    if (x->type.rank != 4 || block < 1 || block > 65536) {
        qn_onnx_malformed(n, "the input must have rank 4, and blocksize be positive");
        return;
    }
    qn_dim k = qn_onnx_dim(n, block);
    const qn_dim *d = x->type.dims;
    if (to_space) {
        qn_dim c = qn_dim_floordiv(t, d[1], qn_onnx_dim(n, block * block));
        qn_dim split_dcr[6] = { d[0], k, k, c, d[2], d[3] }, split_crd[6] = { d[0], c, k, k, d[2], d[3] };
        qn_dim merged[4] = { d[0], c, qn_dim_mul(t, d[2], k), qn_dim_mul(t, d[3], k) };
        x = qn_b_reshape(b, x, 6, crd ? split_crd : split_dcr);
        x = qn_b_transpose(b, x, crd ? (int64_t[]){ 0, 1, 4, 2, 5, 3 } : (int64_t[]){ 0, 3, 4, 1, 5, 2 });
        qn_onnx_out(n, 0, qn_b_reshape(b, x, 4, merged));
    } else {
        qn_dim h = qn_dim_floordiv(t, d[2], k), w = qn_dim_floordiv(t, d[3], k);
        qn_dim split[6] = { d[0], d[1], h, k, w, k };
        qn_dim merged[4] = { d[0], qn_dim_mul(t, d[1], qn_onnx_dim(n, block * block)), h, w };
        x = qn_b_reshape(b, x, 6, split);
        x = qn_b_transpose(b, x, crd ? (int64_t[]){ 0, 1, 3, 5, 2, 4 } : (int64_t[]){ 0, 3, 5, 1, 2, 4 });
        qn_onnx_out(n, 0, qn_b_reshape(b, x, 4, merged));
    }
}

const qn_onnx_op qn_onnx_movement_ops[] = {
    { "Reshape", NULL, 1, 0, import_reshape },
    { "Flatten", NULL, 1, 0, import_flatten },
    { "Squeeze", NULL, 1, 0, import_squeeze },
    { "Unsqueeze", NULL, 1, 0, import_unsqueeze },
    { "Identity", NULL, 1, 0, import_identity },
    { "Transpose", NULL, 1, 0, import_transpose },
    { "Concat", NULL, 1, 0, import_concat },
    { "Slice", NULL, 1, 0, import_slice },
    { "Split", NULL, 2, 0, import_split },
    { "Expand", NULL, 8, 0, import_expand },
    { "Tile", NULL, 6, 0, import_tile },
    { "DepthToSpace", NULL, 1, 0, import_depth_to_space },
    { "SpaceToDepth", NULL, 1, 0, import_depth_to_space },
    { 0 },
};
