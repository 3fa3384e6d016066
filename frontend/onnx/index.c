/* Operators that choose elements by index: gather, scatter, one-hot, and those made of them. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* Both known: the contents that are chosen. */
static bool gather_contents(qn_onnx_node *n, int axis)
{
    qn_onnx_contents c, index;
    int64_t shape[QN_MAX_RANK];
    int rank = 0;
    if (!qn_onnx_contents_of(n->im, n->in[0], &c) || !qn_onnx_contents_of(n->im, n->in[1], &index) ||
        !index.dims || c.rank + index.rank - 1 > QN_MAX_RANK)
        return false;
    int64_t outer = 1, inner = 1, extent = c.shape[axis];
    for (int i = 0; i < axis; i++)
        outer *= shape[rank++] = c.shape[i];
    for (int i = 0; i < index.rank; i++)
        shape[rank++] = index.shape[i];
    for (int i = axis + 1; i < c.rank; i++)
        inner *= shape[rank++] = c.shape[i];
    int64_t count = qn_onnx_count(rank, shape);
    if (count < 0)
        return false;
    int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, count), at = 0;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < index.n; k++) {
            qn_dim d = index.dims[k];
            if (!qn_dim_is_const(d) || d->value < -extent || d->value >= extent)
                return false;
            int64_t row = d->value + (d->value < 0 ? extent : 0);
            for (int64_t i = 0; i < inner; i++)
                map[at++] = (o * extent + row) * inner + i;
        }
    qn_onnx_contents_move(n, 0, &c, rank, shape, map);
    return true;
}

/* i32 and i64 are index types; others widen. */
static qn_value *indices(qn_onnx_node *n, int i)
{
    qn_value *x = qn_onnx_in(n, i);
    return x && x->type.dtype != QUERN_I32 && qn_dtype_is_int(x->type.dtype)
               ? qn_b_convert(&n->b, QUERN_I64, x)
               : x;
}

static void import_gather(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const qn_type *x = qn_onnx_in_type(n, 0);
    int axis;
    qn_onnx_contents c;
    if (!x || !qn_onnx_in_type(n, 1) || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->rank, &axis) ||
        gather_contents(n, axis))
        return;
    /* one element known by number is a slice */
    if (qn_onnx_contents_of(n->im, n->in[1], &c) && c.rank == 0 && c.dims && qn_dim_is_const(c.dims[0]) &&
        qn_dim_is_const(x->dims[axis])) {
        int64_t at = c.dims[0]->value, extent = x->dims[axis]->value;
        if (at < -extent || at >= extent) {
            qn_onnx_malformed(n, "index %lld is outside of the %lld elements of axis %d", (long long)at,
                              (long long)extent, axis);
            return;
        }
        at += at < 0 ? extent : 0;
        qn_dim start = qn_dim_const(n->im->dims, at), limit = qn_dim_const(n->im->dims, at + 1);
        qn_onnx_out(n, 0, qn_b_squeeze(b, qn_b_slice_axis(b, qn_onnx_in(n, 0), axis, start, limit), axis));
        return;
    }
    qn_onnx_out(n, 0, qn_b_gather(b, qn_onnx_in(n, 0), indices(n, 1), axis));
}

static void import_gather_elements(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int axis;
    if (x && qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->rank, &axis))
        qn_onnx_out(n, 0, qn_b_gather_elements(&n->b, qn_onnx_in(n, 0), indices(n, 1), axis));
}

/* Of coordinates along the last axis, their number; false after a report when it is not known. */
static bool coordinates_known(qn_onnx_node *n, const qn_value *index)
{
    const int rank = index->type.rank;
    if (rank == 0 || qn_dim_is_const(index->type.dims[rank - 1]))
        return true;
    qn_onnx_needs_dim(n, index->type.dims[rank - 1]);
    qn_onnx_unsupported(n, "the number of coordinates of an index must be known");
    return false;
}

static void import_gather_nd(qn_onnx_node *n)
{
    int64_t batch_dims = qn_onnx_attr_int(n, "batch_dims", 0);
    qn_value *x = qn_onnx_in(n, 0), *index = indices(n, 1);
    if (batch_dims < 0 || batch_dims > QN_MAX_RANK) {
        qn_onnx_malformed(n, "attribute batch_dims is out of range");
        return;
    }
    for (int i = 0; i < batch_dims && x && index && i < x->type.rank; i++)
        index = qn_onnx_with_dim(n, index, i, x->type.dims[i]);
    if (!x || !index || !coordinates_known(n, index))
        return;
    qn_onnx_out(n, 0, qn_b_gather_nd(&n->b, x, index, (int)batch_dims));
}

static bool scatter_kind(qn_onnx_node *n, qn_kind *out)
{
    static const struct {
        const char *name;
        qn_kind kind;
    } kinds[] = { { "none", QN_SET },
                  { "add", QN_SUM },
                  { "mul", QN_PROD },
                  { "max", QN_KIND_MAX },
                  { "min", QN_KIND_MIN } };
    const char *name = qn_onnx_attr_string(n, "reduction", "none");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(kinds[i].name, name)) {
            *out = kinds[i].kind;
            return true;
        }
    qn_onnx_malformed(n, "attribute reduction must be none, add, mul, max or min");
    return false;
}

static void import_scatter_nd(qn_onnx_node *n)
{
    qn_kind kind;
    if (!scatter_kind(n, &kind))
        return;
    qn_value *x = qn_onnx_in(n, 0), *index = indices(n, 1), *updates = qn_onnx_in(n, 2);
    if (!x || !index || !updates || !coordinates_known(n, index))
        return;
    int outer = index->type.rank - 1;
    for (int i = 0; updates && i < outer; i++)
        updates = qn_onnx_with_dim(n, updates, i, index->type.dims[i]);
    qn_onnx_out(n, 0, qn_b_scatter_nd(&n->b, kind, x, index, updates));
}

/* All known, along one axis: the contents with some of them replaced. */
static bool scatter_contents(qn_onnx_node *n)
{
    qn_onnx_contents c, index, updates;
    if (!qn_onnx_contents_of(n->im, n->in[0], &c) || !qn_onnx_contents_of(n->im, n->in[1], &index) ||
        !qn_onnx_contents_of(n->im, n->in[2], &updates) || c.rank != 1 || !c.dims || !index.dims ||
        !updates.dims || index.n != updates.n)
        return false;
    qn_dim *dims = qn_arena_copy(n->im->arena, c.dims, (size_t)c.n * sizeof *dims);
    for (int64_t i = 0; i < index.n; i++) {
        qn_dim d = index.dims[i];
        if (!qn_dim_is_const(d) || d->value < -c.n || d->value >= c.n)
            return false;
        dims[d->value + (d->value < 0 ? c.n : 0)] = updates.dims[i];
    }
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, c.dtype, 1, c.shape, dims));
    return true;
}

static void import_scatter_elements(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_kind kind;
    int axis;
    if (!x || !scatter_kind(n, &kind) || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->rank, &axis))
        return;
    if (kind == QN_SET && scatter_contents(n))
        return;
    qn_value *index = indices(n, 1), *updates = qn_onnx_in(n, 2);
    for (int i = 0; index && updates && i < index->type.rank; i++)
        updates = qn_onnx_with_dim(n, updates, i, index->type.dims[i]);
    qn_onnx_out(n, 0, qn_b_scatter_elements(&n->b, kind, qn_onnx_in(n, 0), index, updates, axis));
}

static qn_value *iota(qn_builder *b, qn_dtype dtype, int rank, const qn_dim *dims, int axis)
{
    qn_type type = qn_type_make(b->graph->module, dtype, rank, dims);
    return qn_b_iota(b, &type, axis);
}

/* Comparison of the index with the position along the new axis; negative indices count from the end. */
static void import_one_hot(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *index = qn_onnx_in(n, 0), *values = qn_onnx_in(n, 2);
    qn_dim dims[QN_MAX_RANK], depth;
    int count, axis;
    double number;
    if (!index || !values || !qn_onnx_in_type(n, 1))
        return;
    if (qn_dtype_is_float(n->in[1]->type.dtype)) {
        if (!qn_onnx_in_floats(n, 1, 1, &number, &count))
            return;
        depth = qn_dim_const(n->im->dims, number > 0 && number < 1e9 ? (int64_t)number : 0);
    } else if (!qn_onnx_in_extents(n, 1, 1, NULL, &depth, &count)) {
        return;
    }
    if (count != 1 || depth->max < 1 || index->type.rank + 1 > QN_MAX_RANK ||
        !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -1), index->type.rank + 1, &axis)) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "depth must be one positive number");
        return;
    }
    int rank = index->type.rank + 1;
    for (int i = 0, from = 0; i < rank; i++)
        dims[i] = i == axis ? depth : index->type.dims[from++];
    index = qn_b_convert(b, QUERN_I64, index);
    index = choose(b, compare_number(b, QN_LT, index, 0), add(b, index, qn_b_dim_value(b, QUERN_I64, depth)),
                   index);
    index = qn_b_expand_dims(b, index, axis);
    qn_value *hot = compare(b, QN_EQ, index, iota(b, QUERN_I64, rank, dims, axis));
    qn_dim zero = qn_dim_const(n->im->dims, 0), one = qn_dim_const(n->im->dims, 1),
           two = qn_dim_const(n->im->dims, 2);
    qn_value *off = qn_b_reshape(b, qn_b_slice_axis(b, values, 0, zero, one), 0, NULL);
    qn_value *on = qn_b_reshape(b, qn_b_slice_axis(b, values, 0, one, two), 0, NULL);
    qn_onnx_out(n, 0, choose(b, hot, on, off));
}

/* Keeps elements on one side of diagonal k of the last two axes. */
static void import_trilu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    int rank = x->type.rank;
    if (rank < 2) {
        qn_onnx_malformed(n, "the input must have two axes or more");
        return;
    }
    const qn_dim *matrix = x->type.dims + rank - 2;
    qn_value *row = iota(b, QUERN_I64, 2, matrix, 0), *column = iota(b, QUERN_I64, 2, matrix, 1);
    if (qn_onnx_has(n, 1))
        row = add(b, row, qn_b_reshape(b, qn_onnx_in(n, 1), 0, NULL));
    bool upper = qn_onnx_attr_int(n, "upper", 1) != 0;
    qn_value *keep = compare(b, upper ? QN_GE : QN_LE, column, row);
    qn_onnx_out(
        n, 0,
        choose(b, keep, x,
               x->type.dtype == QUERN_BOOL ? qn_b_scalar_int(b, QUERN_BOOL, 0) : number_like(b, x, 0)));
}

/* Reverses the first sequence_lens[i] steps of sequence i: a gather along time. */
static void import_reverse_sequence(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *lengths = qn_onnx_in(n, 1);
    int batch, time;
    if (!x || !lengths || !qn_onnx_axis(n, qn_onnx_attr_int(n, "batch_axis", 1), x->type.rank, &batch) ||
        !qn_onnx_axis(n, qn_onnx_attr_int(n, "time_axis", 0), x->type.rank, &time))
        return;
    if (batch == time || lengths->type.rank != 1) {
        qn_onnx_malformed(n, "batch_axis and time_axis must differ, and sequence_lens have rank 1");
        return;
    }
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = i == batch ? lengths->type.dims[0] : qn_dim_const(n->im->dims, 1);
    lengths = qn_b_reshape(b, qn_b_convert(b, QUERN_I64, lengths), x->type.rank, dims);
    qn_value *step = iota(b, QUERN_I64, x->type.rank, x->type.dims, time);
    qn_value *mirrored = sub(b, add_number(b, lengths, -1), step);
    qn_onnx_out(
        n, 0, qn_b_gather_elements(b, x, choose(b, compare(b, QN_LT, step, lengths), mirrored, step), time));
}

/* Slices where the condition holds: a gather of its non-zero positions, whose number is a new symbol. */
static void import_compress(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *keep = qn_onnx_in(n, 1);
    int axis = 0;
    if (!x || !keep)
        return;
    if (!qn_onnx_attr(n, "axis", ONNX__ATTRIBUTE__KIND__INT)) {
        qn_dim all = qn_type_elements_dim(t, &x->type);
        x = qn_b_reshape(b, x, 1, &all);
    } else if (!qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->type.rank, &axis)) {
        return;
    }
    if (!x || keep->type.rank != 1) {
        qn_onnx_malformed(n, "the condition must have rank 1");
        return;
    }
    int64_t most = keep->type.dims[0]->max < QN_DIM_MAX_VALUE ? keep->type.dims[0]->max : QN_DIM_MAX_VALUE;
    qn_dim count = qn_dim_fresh(t, "selected", 0, most);
    qn_onnx_out(n, 0, qn_b_gather(b, x, qn_b_reshape(b, qn_b_non_zero(b, keep, count), 1, &count), axis));
}

static void import_non_zero(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    qn_dim elements = qn_type_elements_dim(n->im->dims, &x->type);
    int64_t most = elements->max < QN_DIM_MAX_VALUE ? elements->max : QN_DIM_MAX_VALUE;
    qn_onnx_out(n, 0, qn_b_non_zero(&n->b, x, qn_dim_fresh(n->im->dims, "nonzero", 0, most)));
}

/* Writes update along `axis` from write_indices[batch] on: a scatter along that axis. */
static void import_tensor_scatter(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *update = qn_onnx_in(n, 1);
    int axis;
    if (!x || !update || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -2), x->type.rank, &axis))
        return;
    if (axis == 0 || update->type.rank != x->type.rank) {
        qn_onnx_malformed(n, "the first axis is the batch's, and cache and update must have the same rank");
        return;
    }
    for (int i = 0; i < x->type.rank && update; i++)
        if (i != axis)
            update = qn_onnx_with_dim(n, update, i, x->type.dims[i]);
    if (!update)
        return;
    qn_value *at = iota(b, QUERN_I64, update->type.rank, update->type.dims, axis);
    if (qn_onnx_has(n, 2)) {
        qn_dim dims[QN_MAX_RANK];
        for (int i = 0; i < x->type.rank; i++)
            dims[i] = i ? qn_dim_const(n->im->dims, 1) : x->type.dims[0];
        at = add(b, at, qn_b_reshape(b, qn_b_convert(b, QUERN_I64, qn_onnx_in(n, 2)), x->type.rank, dims));
    }
    if (qn_onnx_attr_is(n, "mode", "linear", "circular"))
        at = qn_b_binary_bcast(b, QN_OP_REM, at, qn_b_dim_value(b, QUERN_I64, x->type.dims[axis]));
    qn_onnx_out(n, 0, qn_b_scatter_elements(b, QN_SET, x, at, update, axis));
}

const qn_onnx_op qn_onnx_index_ops[] = {
    { "Gather", NULL, 1, 0, import_gather },
    { "GatherElements", NULL, 11, 0, import_gather_elements },
    { "GatherND", NULL, 11, 0, import_gather_nd },
    { "ScatterND", NULL, 11, 0, import_scatter_nd },
    { "ScatterElements", NULL, 11, 0, import_scatter_elements },
    { "Scatter", NULL, 9, 10, import_scatter_elements },
    { "OneHot", NULL, 9, 0, import_one_hot },
    { "Trilu", NULL, 14, 0, import_trilu },
    { "ReverseSequence", NULL, 10, 0, import_reverse_sequence },
    { "Compress", NULL, 9, 0, import_compress },
    { "NonZero", NULL, 9, 0, import_non_zero },
    { "TensorScatter", NULL, 24, 0, import_tensor_scatter },
    { 0 },
};
