/* Operators whose results' number depends on values: NonMaxSuppression, Unique. The number is a new symbol. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* i64 [n]: positions where x [n] holds; `stem` names their number. */
static qn_value *positions_of(qn_onnx_node *n, qn_value *x, const char *stem)
{
    if (!x)
        return NULL;
    int64_t most = x->type.dims[0]->max < QN_DIM_MAX_VALUE ? x->type.dims[0]->max : QN_DIM_MAX_VALUE;
    qn_dim count = qn_dim_fresh(n->im->dims, stem, 0, most);
    return qn_b_reshape(&n->b, qn_b_non_zero(&n->b, x, count), 1, &count);
}

/* ---- Unique ---- */

/* Column of rows [n, m]: [n] */
static qn_value *column(qn_onnx_node *n, qn_value *rows, int64_t k)
{
    qn_dims *t = n->im->dims;
    return qn_b_squeeze(&n->b, qn_b_slice_axis(&n->b, rows, 1, qn_dim_const(t, k), qn_dim_const(t, k + 1)),
                        1);
}

/* Order of rows [n, m] by their first column, then the second, …: stable sorts from the last to the first. */
static qn_value *order_of(qn_onnx_node *n, qn_value *rows, qn_value *order)
{
    qn_builder *b = &n->b;
    for (int64_t k = rows->type.dims[1]->value - 1; k >= 0 && order; k--) {
        qn_value *keys[2] = { qn_b_gather(b, column(n, rows, k), order, 0), order };
        qn_node *sorted = keys[0] ? qn_b_sort(b, 2, keys, 0, false) : NULL;
        order = sorted ? &sorted->results[1] : NULL;
    }
    return order;
}

/* Sorts rows, marks the first of equals, and gathers the marked. Without an axis every element is a row. */
static void import_unique(qn_onnx_node *n)
{
    enum { MAX_COLUMNS = 256 };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    qn_dim one = qn_dim_const(t, 1), dims[QN_MAX_RANK], matrix[2] = { NULL, one };
    int64_t perm[QN_MAX_RANK], back[QN_MAX_RANK];
    int axis = 0, rank = 1;
    if (!x)
        return;
    if (qn_onnx_attr(n, "axis", ONNX__ATTRIBUTE__KIND__INT)) {
        if (!qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->type.rank, &axis))
            return;
        rank = x->type.rank;
        for (int i = 0; i < rank; i++) { /* the axis to the front, and back again */
            perm[i] = i == 0 ? axis : i - (i <= axis);
            back[i] = i == axis ? 0 : i + (i < axis);
            matrix[1] = i == axis ? matrix[1] : qn_dim_mul(t, matrix[1], x->type.dims[i]);
        }
        x = qn_b_transpose(b, x, perm);
        if (!x)
            return;
        matrix[0] = x->type.dims[0];
    } else {
        matrix[0] = qn_type_elements_dim(t, &x->type);
    }
    if (!qn_dim_is_const(matrix[1]) || matrix[1]->value > MAX_COLUMNS) {
        qn_onnx_needs_dim(n, matrix[1]);
        qn_onnx_unsupported(n, "slices of more than %d elements, or of a symbolic number", MAX_COLUMNS);
        return;
    }
    for (int i = 0; i < rank; i++)
        dims[i] = x->type.dims[i];
    qn_value *rows = qn_b_reshape(b, x, 2, matrix);
    qn_type index_type = qn_type_make(n->im->module, QUERN_I64, 1, matrix);
    qn_value *position = qn_b_iota(b, &index_type, 0), *order = rows ? order_of(n, rows, position) : NULL;
    if (!order)
        return;
    qn_value *sorted = qn_b_gather(b, rows, order, 0);
    /* differs from the one before; the first always does */
    qn_value *before = qn_b_gather(b, sorted, max_number(b, add_number(b, position, -1), 0), 0);
    qn_value *first = compare(b, QN_NE, sorted, before);
    first = first ? qn_b_reduce(b, QN_KIND_MAX, first, 1, (int64_t[]){ 1 }, false) : NULL;
    first = or_else(b, first, compare_number(b, QN_EQ, position, 0));
    qn_value *starts = positions_of(n, first, "unique");
    if (!starts)
        return;
    qn_value *group =
        add_number(b, qn_b_cumulative(b, QN_SUM, qn_b_convert(b, QUERN_I64, first), 0, false, false), -1);
    qn_value *where =
        qn_b_gather(b, order, starts, 0); /* first occurrence of each, as the sorts are stable */
    qn_dim count = starts->type.dims[0];
    /* from a start to the next */
    qn_value *end = qn_b_reshape(b, qn_b_dim_value(b, QUERN_I64, matrix[0]), 1, &one);
    qn_value *bounds = qn_b_concatenate(b, 2, (qn_value *[]){ starts, end }, 0);
    qn_value *counts = sub(b, qn_b_slice_axis(b, bounds, 0, one, qn_dim_add(t, count, one)), starts);
    if (!qn_onnx_attr_int(n, "sorted", 1)) { /* in the order of first occurrence */
        qn_type rank_type = qn_type_make(n->im->module, QUERN_I64, 1, &count);
        qn_value *by_place[2] = { where, qn_b_iota(b, &rank_type, 0) };
        qn_node *reordered = where ? qn_b_sort(b, 2, by_place, 0, false) : NULL;
        if (!reordered)
            return;
        qn_value *old = &reordered->results[1];
        counts = qn_b_gather(b, counts, old, 0);
        where = &reordered->results[0];
        /* the new number of each group */
        qn_value *renumbered = qn_b_scatter_elements(b, QN_SET, by_place[1], old, by_place[1], 0);
        group = qn_b_gather(b, renumbered, group, 0);
    }
    qn_value *unique = qn_b_gather(b, rows, where, 0);
    dims[0] = count;
    unique = qn_b_reshape(b, unique, rank, dims);
    qn_onnx_out(n, 0, rank > 1 ? qn_b_transpose(b, unique, back) : unique);
    qn_onnx_out(n, 1, where);
    qn_onnx_out(n, 2, qn_b_scatter_elements(b, QN_SET, position, order, group, 0));
    qn_onnx_out(n, 3, counts);
}

/* ---- NonMaxSuppression ---- */

/* A scalar input, or its default. */
static qn_value *scalar_in(qn_onnx_node *n, int i, qn_dtype dtype, double fallback)
{
    qn_builder *b = &n->b;
    if (!qn_onnx_has(n, i))
        return qn_b_scalar(b, dtype, fallback);
    qn_value *v = qn_onnx_in(n, i);
    return v ? qn_b_convert(b, dtype, qn_b_reshape(b, v, 0, NULL)) : NULL;
}

/* How many a class may keep at most: a limit that is known and not far above the boxes, or their number. */
static qn_dim most_kept(qn_onnx_node *n, qn_dim boxes)
{
    enum { FEW = 4096 }; /* so many places of a class may stay free, where there are fewer boxes */
    qn_onnx_contents c;
    int64_t limit = 0;
    if (qn_onnx_has(n, 2)) {
        if (!qn_onnx_contents_of(n->im, n->in[2], &c) || c.n != 1 || !c.data || c.dtype != QUERN_I64)
            return boxes;
        memcpy(&limit, c.data, sizeof limit);
    }
    limit = limit < 0 ? 0 : limit;
    return limit < boxes->max && (limit <= FEW || limit <= boxes->min) ? qn_dim_const(n->im->dims, limit)
                                                                       : boxes;
}

/* The boxes that each class keeps, in rows of as many as one may keep: those that there are become rows of the result. */
static void import_non_max_suppression(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *scores = qn_onnx_in(n, 1);
    if (!x || !scores)
        return;
    if (x->type.rank != 3 || scores->type.rank != 3) {
        qn_onnx_malformed(n, "boxes and scores must have rank 3");
        return;
    }
    const qn_dim of_boxes[3] = { scores->type.dims[0], scores->type.dims[2], qn_onnx_dim(n, 4) };
    for (int i = 0; i < 3; i++)
        x = qn_onnx_with_dim(n, x, i, of_boxes[i]);
    if (!x)
        return;
    qn_value *limit = scalar_in(n, 2, QUERN_I64, 0), *threshold = scalar_in(n, 3, x->type.dtype, 0);
    qn_value *least = qn_onnx_has(n, 4) ? scalar_in(n, 4, scores->type.dtype, 0) : NULL;
    if (qn_onnx_has(n, 4) && !least)
        return;
    const qn_dim classes = scores->type.dims[1], k = most_kept(n, scores->type.dims[2]);
    qn_value *kept = qn_b_suppress(b, scores, x, limit, threshold, least, k,
                                   qn_onnx_attr_int(n, "center_point_box", 0) != 0);
    if (!kept)
        return;
    const qn_dim every = qn_type_elements_dim(t, &kept->type);
    kept = qn_b_reshape(b, kept, 1, &every);
    qn_value *chosen = positions_of(n, compare_number(b, QN_GE, kept, 0), "selected");
    if (!chosen)
        return;
    qn_value *problem = divide(b, chosen, qn_b_dim_value(b, QUERN_I64, k)), *columns[3];
    columns[0] = divide(b, problem, qn_b_dim_value(b, QUERN_I64, classes));
    columns[1] = qn_b_binary_bcast(b, QN_OP_REM, problem, qn_b_dim_value(b, QUERN_I64, classes));
    columns[2] = qn_b_gather(b, kept, chosen, 0);
    for (int i = 0; i < 3; i++)
        columns[i] = qn_b_expand_dims(b, columns[i], 1);
    qn_onnx_out(n, 0, qn_b_concatenate(b, 3, columns, 1));
}

const qn_onnx_op qn_onnx_select_ops[] = {
    { "NonMaxSuppression", NULL, 10, 0, import_non_max_suppression },
    { "Unique", NULL, 11, 0, import_unique },
    { 0 },
};
