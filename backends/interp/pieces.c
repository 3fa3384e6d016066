/* Large constants that are computed from others, read in pieces: see qn_tensor in ir/graph.h.
 *
 * A box of the result asks for a box of each operand, down to tensors that are in memory. Movement ops only change how
 * that memory is walked (a view: an address and a stride for each axis), so a weight that is transposed, split into panels
 * and padded is copied once, from where it lies in the model's file to where the kernels read it. What a view cannot say
 * (a border that is padded, an element-wise op, a reduction, a product with a small matrix, a reshape across strides) is made in
 * memory of its own, a piece at a time.
 *
 *   %p = transpose (reshape %w [768, 96, 32]) [1, 0, 2]        a piece of %p: some panels of 32 columns of %w */
#include "backends/interp/interp.h"

#include <string.h>

typedef struct view {
    qn_array array; /* dims of the box; the data is its first element */
    int64_t strides[QN_MAX_RANK];
} view;

typedef struct reader {
    qn_interp in;            /* its arena holds what is made on the way */
    bool only_views, failed; /* nothing may be made; something would have to be */
    const void *done;
    size_t done_bytes; /* part of a mapped file that no other piece of the tensor reads */
} reader;

static view view_of(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent);

static size_t element_size(const view *v)
{
    return qn_dtype_bytes(v->array.dtype);
}

static void move(view *v, int64_t elements)
{
    if (v->array.data) /* else it is one that failed */
        v->array.data = (char *)v->array.data + elements * (int64_t)element_size(v);
}

/* ---- memory for a box ---- */

static view make_box(reader *r, qn_dtype dtype, int rank, const int64_t *extent)
{
    view v = { .array = { .dtype = dtype, .rank = rank } };
    memcpy(v.array.dims, extent, (size_t)rank * sizeof *extent);
    qn_strides(&v.array, v.strides);
    if (r->only_views) { /* whoever asked for it does no more than pass it on */
        r->failed = true;
        return v;
    }
    v.array.data = qn_arena_alloc(r->in.arena, (size_t)qn_array_elements(&v.array) * qn_dtype_bytes(dtype));
    return v;
}

static void copy_view(const view *from, const view *to)
{
    qn_copy_strided(element_size(from), from->array.rank, from->array.dims, to->array.data, to->strides,
                    from->array.data, from->strides);
}

/* The same elements, row-major and aligned. */
static view contiguous(reader *r, const view *v)
{
    int64_t strides[QN_MAX_RANK];
    bool same = (uintptr_t)v->array.data % element_size(v) == 0;
    qn_strides(&v->array, strides);
    for (int i = 0; i < v->array.rank; i++)
        same &= v->array.dims[i] == 1 || v->strides[i] == strides[i];
    if (same)
        return *v;
    view made = make_box(r, v->array.dtype, v->array.rank, v->array.dims);
    if (!r->failed)
        copy_view(v, &made);
    return made;
}

/* ---- movement ---- */

static view view_data(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    view v = { .array = { .dtype = tensor->type.dtype,
                          .rank = tensor->type.rank,
                          .data = (void *)(uintptr_t)tensor->data } };
    int64_t at = 0, stride = 1, run = 1;
    for (int i = tensor->type.rank - 1; i >= 0; i--) {
        v.array.dims[i] = extent[i];
        v.strides[i] = stride;
        at += low[i] * stride;
        run = run == stride ? run * extent[i] : run;
        stride *= tensor->type.dims[i]->value;
    }
    move(&v, at);
    if (tensor->mapped && run == qn_array_elements(&v.array) &&
        (size_t)run * element_size(&v) > r->done_bytes) {
        r->done = v.array.data;
        r->done_bytes = (size_t)run * element_size(&v);
    }
    return v;
}

/* Axes [x_from, x_to) of the operand of a reshape hold the same elements as axes [y_from, y_to) of the result. */
typedef struct axis_group {
    int x_from, x_to, y_from, y_to;
    int64_t skipped; /* elements of the group between the operand's box and the result's */
} axis_group;

static int group_axes(const qn_type *x, const qn_type *y, axis_group *groups)
{
    int n = 0, i = 0, j = 0;
    while (i < x->rank || j < y->rank) {
        axis_group *g = &groups[n++];
        *g = (axis_group){ .x_from = i, .y_from = j };
        int64_t of_x = i < x->rank ? x->dims[i++]->value : 1, of_y = j < y->rank ? y->dims[j++]->value : 1;
        while (of_x != of_y)
            if (of_x < of_y)
                of_x *= x->dims[i++]->value;
            else
                of_y *= y->dims[j++]->value;
        g->x_to = i;
        g->y_to = j;
    }
    return n;
}

/* The smallest box of the operand that is one run of elements and has those of the result's box. */
static void enclose(const qn_type *x, const qn_type *y, axis_group *g, const int64_t *low,
                    const int64_t *extent, int64_t *x_low, int64_t *x_extent)
{
    int64_t first = 0, last = 0, inner = 1;
    for (int i = g->y_from; i < g->y_to; i++) {
        first = first * y->dims[i]->value + low[i];
        last = last * y->dims[i]->value + low[i] + extent[i] - 1;
    }
    for (int i = g->x_from; i < g->x_to; i++)
        inner *= x->dims[i]->value;
    g->skipped = first;
    bool whole = false;
    for (int i = g->x_from; i < g->x_to; i++) {
        inner /= x->dims[i]->value;
        const int64_t from = whole ? 0 : first / inner % x->dims[i]->value,
                      to = whole ? x->dims[i]->value - 1 : last / inner % x->dims[i]->value;
        x_low[i] = from;
        x_extent[i] = to - from + 1;
        whole = whole || from != to;
        g->skipped -= from * inner;
    }
}

/* The stride that walks all elements of the group's box in the operand, in order; false when there is none. */
static bool one_stride(const view *x, const axis_group *g, int64_t *out)
{
    int64_t expected = 0;
    bool any = false;
    *out = 1;
    for (int i = g->x_to - 1; i >= g->x_from; i--) {
        if (x->array.dims[i] == 1)
            continue;
        if (!any)
            *out = x->strides[i];
        else if (x->strides[i] != expected)
            return false;
        any = true;
        expected = x->strides[i] * x->array.dims[i];
    }
    return true;
}

static view view_reshape(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const qn_tensor *operand = tensor->source->operands[0];
    const qn_type *type = &tensor->type;
    axis_group groups[2 * QN_MAX_RANK];
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK], stride;
    const int n = group_axes(&operand->type, type, groups);
    for (int i = 0; i < n; i++)
        enclose(&operand->type, type, &groups[i], low, extent, x_low, x_extent);
    view x = view_of(r, operand, x_low, x_extent);
    bool fits = true;
    for (int i = 0; i < n; i++)
        fits &= one_stride(&x, &groups[i], &stride);
    if (!fits)
        x = contiguous(r, &x);
    view v = { .array = { .dtype = type->dtype, .rank = type->rank, .data = x.array.data } };
    for (int i = 0; i < n; i++) {
        one_stride(&x, &groups[i], &stride);
        move(&v, groups[i].skipped * stride);
        for (int j = groups[i].y_to - 1; j >= groups[i].y_from; j--) {
            v.array.dims[j] = extent[j];
            v.strides[j] = stride;
            stride *= type->dims[j]->value;
        }
    }
    return v;
}

static view view_transpose(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const int64_t *perm = qn_attr_ints(tensor->source->node, QN_ATTR_PERM, NULL);
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK];
    for (int i = 0; i < tensor->type.rank; i++) {
        x_low[perm[i]] = low[i];
        x_extent[perm[i]] = extent[i];
    }
    const view x = view_of(r, tensor->source->operands[0], x_low, x_extent);
    view v = x;
    for (int i = 0; i < tensor->type.rank; i++) {
        v.array.dims[i] = extent[i];
        v.strides[i] = x.strides[perm[i]];
    }
    return v;
}

static view view_broadcast(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const qn_tensor *operand = tensor->source->operands[0];
    const int64_t *axes = qn_attr_ints(tensor->source->node, QN_ATTR_AXES, NULL);
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK];
    for (int i = 0; i < operand->type.rank; i++) {
        const bool repeats = operand->type.dims[i]->value == 1;
        x_low[i] = repeats ? 0 : low[axes[i]];
        x_extent[i] = repeats ? 1 : extent[axes[i]];
    }
    const view x = view_of(r, operand, x_low, x_extent);
    view v = { .array = { .dtype = tensor->type.dtype, .rank = tensor->type.rank, .data = x.array.data } };
    memcpy(v.array.dims, extent, (size_t)tensor->type.rank * sizeof *extent);
    for (int i = 0; i < operand->type.rank; i++)
        v.strides[axes[i]] = x.array.dims[i] == 1 ? 0 : x.strides[i];
    return v;
}

static view view_slice(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const qn_dim *start = qn_attr_dims(tensor->source->node, QN_ATTR_START, NULL);
    const int64_t *step = qn_attr_ints(tensor->source->node, QN_ATTR_STRIDE, NULL);
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK];
    for (int i = 0; i < tensor->type.rank; i++) {
        x_low[i] = start[i]->value + low[i] * step[i];
        x_extent[i] = (extent[i] - 1) * step[i] + 1;
    }
    view v = view_of(r, tensor->source->operands[0], x_low, x_extent);
    for (int i = 0; i < tensor->type.rank; i++) {
        v.array.dims[i] = extent[i];
        if (extent[i] > 1) /* else any stride will do, and its product may not fit */
            v.strides[i] *= step[i];
    }
    return v;
}

/* Without interior padding: see can_read. */
static view view_pad(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const qn_tensor *operand = tensor->source->operands[0];
    const qn_dim *before = qn_attr_dims(tensor->source->node, QN_ATTR_LOW, NULL);
    const int rank = tensor->type.rank;
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK], at = 0;
    bool inside = true, any = true;
    for (int i = 0; i < rank; i++) {
        const int64_t from = low[i] - before[i]->value, to = from + extent[i],
                      limit = operand->type.dims[i]->value;
        x_low[i] = from > 0 ? from : 0;
        x_extent[i] = (to < limit ? to : limit) - x_low[i];
        any &= x_extent[i] > 0;
        inside &= from >= 0 && to <= limit;
    }
    if (inside)
        return view_of(r, operand, x_low, x_extent);
    view v = make_box(r, tensor->type.dtype, rank, extent), part = v;
    if (r->failed)
        return v;
    qn_fill(element_size(&v), v.array.data, qn_array_elements(&v.array),
            qn_tensor_data(tensor->source->operands[1]));
    if (!any)
        return v;
    const view x = view_of(r, operand, x_low, x_extent);
    for (int i = 0; i < rank; i++) {
        at += (x_low[i] + before[i]->value - low[i]) * v.strides[i];
        part.array.dims[i] = x_extent[i];
    }
    move(&part, at);
    copy_view(&x, &part);
    return v;
}

static view view_concatenate(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const int axis = (int)qn_attr_int(tensor->source->node, QN_ATTR_AXIS), rank = tensor->type.rank;
    view v = { .array.data = NULL };
    int64_t start = 0;
    for (int k = 0; k < tensor->source->node->n_operands; k++) {
        const qn_tensor *operand = tensor->source->operands[k];
        const int64_t n = operand->type.dims[axis]->value, end = low[axis] + extent[axis];
        const int64_t from = low[axis] > start ? low[axis] : start, to = end < start + n ? end : start + n;
        if (from < to) {
            int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK];
            memcpy(x_low, low, (size_t)rank * sizeof *low);
            memcpy(x_extent, extent, (size_t)rank * sizeof *extent);
            x_low[axis] = from - start;
            x_extent[axis] = to - from;
            if (x_extent[axis] == extent[axis])
                return view_of(r, operand, x_low, x_extent);
            if (!v.array.data)
                v = make_box(r, tensor->type.dtype, rank, extent);
            if (r->failed)
                return v;
            const view x = view_of(r, operand, x_low, x_extent);
            view part = v;
            part.array.dims[axis] = to - from;
            move(&part, (from - low[axis]) * v.strides[axis]);
            copy_view(&x, &part);
        }
        start += n;
    }
    return v;
}

/* ---- arithmetic ---- */

static view view_elementwise(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    enum { MOST = 3 };
    const qn_node *node = tensor->source->node;
    qn_array operands[MOST];
    view v = make_box(r, tensor->type.dtype, tensor->type.rank, extent);
    if (r->failed)
        return v;
    for (int i = 0; i < node->n_operands; i++) {
        const view x = view_of(r, tensor->source->operands[i], low, extent);
        operands[i] = contiguous(r, &x).array;
    }
    const qn_status status = qn_interp_eval_lanes(&r->in, node, operands, &v.array);
    QN_ASSERT(!status, "element-wise ops do not fail");
    return v;
}

/* Rows by a small matrix, such as filters through Winograd's: see can_read. */
static view view_dot(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    const qn_tensor *operand = tensor->source->operands[0], *matrix = tensor->source->operands[1];
    const int last = tensor->type.rank - 1, n_k = (int)operand->type.dims[last]->value, n = (int)extent[last];
    qn_scalar m[QN_QUICK_K * QN_QUICK_N] = { 0 };
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK];
    view v = make_box(r, tensor->type.dtype, tensor->type.rank, extent);
    if (r->failed)
        return v;
    memcpy(x_low, low, (size_t)last * sizeof *low);
    memcpy(x_extent, extent, (size_t)last * sizeof *extent);
    x_low[last] = 0;
    x_extent[last] = n_k;
    for (int k = 0; k < n_k; k++)
        qn_lanes_load(QUERN_F32, (const float *)matrix->data + k * matrix->type.dims[1]->value + low[last], 1,
                      n, m + (size_t)k * QN_QUICK_N);
    const view read = view_of(r, operand, x_low, x_extent), rows = contiguous(r, &read);
    qn_quick_dot(rows.array.data, qn_array_elements(&v.array) / n, n_k, m, n, v.array.data);
    return v;
}

static bool is_reduced(const qn_node *node, int axis)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    for (int i = 0; i < n; i++)
        if (axes[i] == axis)
            return true;
    return false;
}

/* The operand's axis along which to cut a reduction: the outermost in memory, so that what is read at a time lies together, or the
 * longest that is kept where parts of sums can't be added. -1: none. */
static int axis_to_cut(const qn_node *node, const qn_tensor *x, const int64_t *low, const int64_t *extent)
{
    const bool any_order = qn_quick_reduces(qn_attr_reduce_kind(node), x->type.dtype);
    reader r = { .only_views = true };
    const view v = view_of(&r, x, low, extent);
    int best = -1;
    for (int i = 0; i < x->type.rank; i++) {
        if (extent[i] == 1 || (!any_order && is_reduced(node, i)))
            continue;
        const int64_t *by = !any_order ? extent : r.failed ? NULL : v.strides; /* NULL: as they come */
        if (best < 0 || (by && by[i] > by[best]))
            best = i;
    }
    return best;
}

/* Cut, so that what is made of the operand on the way is small and soon forgotten. */
static view view_reduce(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    enum { MOST = 1 << 15 }; /* elements of the operand */
    const qn_node *node = tensor->source->node;
    const qn_tensor *operand = tensor->source->operands[0];
    view v = make_box(r, tensor->type.dtype, tensor->type.rank, extent);
    int64_t x_low[QN_MAX_RANK], x_extent[QN_MAX_RANK], each = 1;
    int result_axis[QN_MAX_RANK];
    if (r->failed)
        return v;
    for (int i = 0, kept = 0; i < operand->type.rank; i++) {
        const bool gone = is_reduced(node, i);
        x_low[i] = gone ? 0 : low[kept];
        x_extent[i] = gone ? operand->type.dims[i]->value : extent[kept];
        each *= x_extent[i];
        result_axis[i] = gone ? -1 : kept;
        kept += !gone;
    }
    const int cut = axis_to_cut(node, operand, x_low, x_extent), cut_result = cut < 0 ? -1 : result_axis[cut];
    const int64_t first = cut < 0 ? 0 : x_low[cut], all = cut < 0 ? 1 : x_extent[cut],
                  step = each > MOST ? all / (each / MOST + 1) + 1 : all;
    for (int64_t at = 0; at < all; at += step) {
        const int64_t n = at + step < all ? step : all - at;
        view part = v;
        reader inside = { .in = { .arena = qn_arena_new(), .diags = r->in.diags } };
        if (cut >= 0) {
            x_extent[cut] = n;
            x_low[cut] = first + at;
        }
        if (cut_result >= 0) {
            part.array.dims[cut_result] = n;
            move(&part, at * v.strides[cut_result]);
        }
        const view read = view_of(&inside, operand, x_low, x_extent), x = contiguous(&inside, &read);
        const view sums = make_box(&inside, tensor->type.dtype, tensor->type.rank, part.array.dims);
        qn_array result = sums.array;
        const qn_status status = qn_interp_eval_lanes(&inside.in, node, &x.array, &result);
        QN_ASSERT(!status, "reductions do not fail");
        if (cut_result >= 0 || at == 0)
            copy_view(&sums, &part);
        else
            qn_quick_combine(qn_attr_reduce_kind(node), v.array.data, true, sums.array.data,
                             qn_array_elements(&v.array));
        qn_arena_free(inside.in.arena);
    }
    return v;
}

static view view_of(reader *r, const qn_tensor *tensor, const int64_t *low, const int64_t *extent)
{
    if (tensor->data)
        return view_data(r, tensor, low, extent);
    if (!tensor->source->node) {
        const view v = make_box(r, tensor->type.dtype, tensor->type.rank, extent);
        if (!r->failed)
            tensor->source->read(tensor, low, extent, v.array.data);
        return v;
    }
    switch (tensor->source->node->op) {
    case QN_OP_RESHAPE: return view_reshape(r, tensor, low, extent);
    case QN_OP_TRANSPOSE: return view_transpose(r, tensor, low, extent);
    case QN_OP_BROADCAST: return view_broadcast(r, tensor, low, extent);
    case QN_OP_SLICE: return view_slice(r, tensor, low, extent);
    case QN_OP_PAD: return view_pad(r, tensor, low, extent);
    case QN_OP_CONCATENATE: return view_concatenate(r, tensor, low, extent);
    case QN_OP_REDUCE: return view_reduce(r, tensor, low, extent);
    case QN_OP_DOT_GENERAL: return view_dot(r, tensor, low, extent);
    default: return view_elementwise(r, tensor, low, extent);
    }
}

static bool find_view(const qn_tensor *tensor, const int64_t *low, const int64_t *extent,
                      const void **out_data, int64_t *out_strides)
{
    reader r = { .only_views = true };
    const view v = view_of(&r, tensor, low, extent);
    *out_data = v.array.data;
    memcpy(out_strides, v.strides, (size_t)v.array.rank * sizeof *out_strides);
    return !r.failed;
}

static void read_part(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    reader r = { .in = { .arena = arena, .diags = &diags } };
    const view from = view_of(&r, tensor, low, extent);
    view box = from;
    box.array.data = to;
    qn_strides(&box.array, box.strides);
    copy_view(&from, &box);
    if (r.done)
        qn_release_mapped(r.done, r.done_bytes);
    qn_arena_free(arena);
}

/* Are its elements moved ones of a product's? A row of that gives many of them, which lie far apart. */
static bool is_moved_dot(const qn_tensor *tensor)
{
    while (!tensor->data && tensor->source->node &&
           (tensor->source->node->op == QN_OP_RESHAPE || tensor->source->node->op == QN_OP_TRANSPOSE))
        tensor = tensor->source->operands[0];
    return !tensor->data && tensor->source->node && tensor->source->node->op == QN_OP_DOT_GENERAL;
}

/* What is made on the way is made for a part of the box at a time, so that it stays in the caches. */
static void read_box(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to)
{
    enum { PART = 1 << 15 }; /* elements */
    const int rank = tensor->type.rank;
    int64_t from[QN_MAX_RANK], count[QN_MAX_RANK], inner = 1, strides[QN_MAX_RANK];
    const void *data;
    int axis = 0;
    for (int i = 0; i < rank; i++)
        inner *= extent[i];
    while (axis < rank && extent[axis] == 1)
        axis++;
    if (inner <= PART || axis == rank || is_moved_dot(tensor) ||
        find_view(tensor, low, extent, &data, strides)) {
        read_part(tensor, low, extent, to);
        return;
    }
    inner /= extent[axis];
    const int64_t step = inner < PART ? PART / inner : 1;
    memcpy(from, low, (size_t)rank * sizeof *from);
    memcpy(count, extent, (size_t)rank * sizeof *count);
    for (int64_t at = 0; at < extent[axis]; at += step) {
        from[axis] = low[axis] + at;
        count[axis] = at + step < extent[axis] ? step : extent[axis] - at;
        read_box(tensor, from, count, (char *)to + at * inner * (int64_t)qn_dtype_bytes(tensor->type.dtype));
    }
}

/* ---- making one ---- */

static bool all_numbers(const qn_node *node, qn_attr_key key)
{
    int n;
    const qn_dim *dims = qn_attr_dims(node, key, &n);
    for (int i = 0; i < n; i++)
        if (!qn_dim_is_const(dims[i]))
            return false;
    return true;
}

static bool slices_inside(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type;
    const qn_dim *start = qn_attr_dims(node, QN_ATTR_START, NULL),
                 *limit = qn_attr_dims(node, QN_ATTR_LIMIT, NULL);
    if (!all_numbers(node, QN_ATTR_START) || !all_numbers(node, QN_ATTR_LIMIT))
        return false;
    for (int i = 0; i < x->rank; i++)
        if (start[i]->value < 0 || start[i]->value > limit[i]->value || limit[i]->value > x->dims[i]->value)
            return false;
    return true;
}

/* x [.., few] times a matrix [few, few], in float32. */
static bool is_small_dot(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *y = &node->operands[1]->type, *r = &node->results[0].type;
    int n_batch, n_x, n_y;
    qn_attr_ints(node, QN_ATTR_X_BATCH, &n_batch);
    const int64_t *of_x = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n_x),
                  *of_y = qn_attr_ints(node, QN_ATTR_Y_CONTRACT, &n_y);
    return x->dtype == QUERN_F32 && y->dtype == QUERN_F32 && r->dtype == QUERN_F32 && n_batch == 0 &&
           n_x == 1 && of_x[0] == x->rank - 1 && y->rank == 2 && of_y[0] == 0 && y->dims[0]->value > 0 &&
           y->dims[0]->value <= QN_QUICK_K && y->dims[1]->value <= QN_QUICK_N;
}

/* What the interpreter would refuse is left to it. */
static bool can_read(const qn_node *node)
{
    int n = 0;
    switch (node->op) {
    case QN_OP_RESHAPE:
    case QN_OP_TRANSPOSE:
    case QN_OP_CONCATENATE: return true;
    case QN_OP_REDUCE: return qn_type_elements(&node->operands[0]->type) > 0;
    case QN_OP_DOT_GENERAL: return is_small_dot(node);
    case QN_OP_SLICE: return slices_inside(node);
    case QN_OP_BROADCAST:
        for (int i = 0; i < node->operands[0]->type.rank; i++) {
            const qn_dim from = node->operands[0]->type.dims[i],
                         to = node->results[0].type.dims[qn_attr_ints(node, QN_ATTR_AXES, NULL)[i]];
            if (from->value != 1 && from != to)
                return false;
        }
        return true;
    case QN_OP_PAD: {
        const int64_t *interior = qn_attr_ints(node, QN_ATTR_INTERIOR, &n);
        for (int i = 0; i < n; i++)
            if (interior[i] != 0)
                return false;
        return all_numbers(node, QN_ATTR_LOW);
    }
    default: return qn_ops[node->op].class == QN_ELEMENTWISE && !qn_op_is_composite(node->op);
    }
}

const qn_tensor *qn_tensor_defer(const qn_node *node, const qn_tensor *const *operands)
{
    enum { MOST_COST = 48 };
    qn_arena *arena = node->graph->module->arena;
    const qn_type *type = &node->results[0].type;
    int cost = 1;
    if (!can_read(node))
        return NULL;
    if (node->op == QN_OP_DOT_GENERAL && !operands[1]->data)
        return NULL;
    for (int i = 0; i < node->n_operands; i++) /* one without elements has neither data nor source */
        cost += operands[i]->source && !operands[i]->data ? operands[i]->source->cost : 0;
    if (cost > MOST_COST)
        return NULL;
    qn_tensor_source *source = QN_NEW(arena, qn_tensor_source);
    *source = (qn_tensor_source){
        .node = node,
        .operands = qn_arena_copy(arena, operands, (size_t)node->n_operands * sizeof(*operands)),
        .cost = cost,
        .arena = arena,
        .read = read_box,
        .view = find_view,
    };
    qn_tensor *tensor = QN_NEW(arena, qn_tensor);
    *tensor = (qn_tensor){ .type = *type,
                           .bytes = (size_t)qn_type_elements(type) * qn_dtype_bytes(type->dtype),
                           .source = source };
    return tensor;
}
