/* Slice and Split, also of known contents (see contents.c), and with bounds that the run computes. */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

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
    for (int64_t k = 0; k < count; k++, qn_onnx_next_index(c.rank, shape, index)) {
        for (int i = 0; i < c.rank; i++)
            source[i] = slices[i].start->value + index[i] * slices[i].step;
        map[k] = qn_onnx_position(c.rank, c.shape, source);
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

const qn_onnx_op qn_onnx_slice_ops[] = {
    { "Slice", NULL, 1, 0, import_slice },
    { "Split", NULL, 2, 0, import_split },
    { 0 },
};
