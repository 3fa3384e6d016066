/* Operators whose results' number depends on values: NonMaxSuppression, Unique. The number is a new symbol. */
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

/* Corners and area of boxes, [M, N] each. */
typedef struct boxes {
    qn_value *corner[4], *area; /* least y, least x, largest y, largest x */
} boxes;

/* Column of [B, N, 4]: [B, N] */
static qn_value *box_column(qn_onnx_node *n, qn_value *x, int column)
{
    qn_dims *t = n->im->dims;
    return qn_b_squeeze(
        &n->b, qn_b_slice_axis(&n->b, x, 2, qn_dim_const(t, column), qn_dim_const(t, column + 1)), 2);
}

/* Given as (y1, x1, y2, x2) of any two opposite corners, or as (x, y, width, height) of the centre. */
static void read_boxes(qn_onnx_node *n, qn_value *x, boxes *out)
{
    qn_builder *b = &n->b;
    qn_value *c[4];
    for (int i = 0; i < 4; i++)
        c[i] = box_column(n, x, i);
    bool centre = qn_onnx_attr_int(n, "center_point_box", 0) != 0;
    for (int i = 0; i < 2; i++) {
        qn_value *middle = c[1 - i], *half = mul_number(b, c[3 - i], 0.5);
        out->corner[i] = centre ? sub(b, middle, half) : minimum(b, c[i], c[i + 2]);
        out->corner[i + 2] = centre ? add(b, middle, half) : maximum(b, c[i], c[i + 2]);
    }
    out->area = mul(b, sub(b, out->corner[2], out->corner[0]), sub(b, out->corner[3], out->corner[1]));
}

/* One box per problem [M] against all boxes [M, N]: where they overlap by more than the threshold. */
static qn_value *overlapping(qn_builder *b, qn_value *const *one, qn_value *const *all, qn_value *threshold)
{
    qn_value *side[2];
    for (int i = 0; i < 2; i++) {
        qn_value *low = maximum(b, qn_b_expand_dims(b, one[i], 1), all[i]);
        qn_value *high = minimum(b, qn_b_expand_dims(b, one[i + 2], 1), all[i + 2]);
        side[i] = max_number(b, sub(b, high, low), 0);
    }
    qn_value *common = mul(b, side[0], side[1]);
    qn_value *joint = sub(b, add(b, qn_b_expand_dims(b, one[4], 1), all[4]), common);
    return compare(b, QN_GT, common, mul(b, joint, threshold)); /* as common / joint, without dividing by 0 */
}

/* A scalar input, or its default. */
static qn_value *scalar_in(qn_onnx_node *n, int i, qn_dtype dtype, double fallback)
{
    qn_builder *b = &n->b;
    if (!qn_onnx_has(n, i))
        return qn_b_scalar(b, dtype, fallback);
    qn_value *v = qn_onnx_in(n, i);
    return v ? qn_b_convert(b, dtype, qn_b_reshape(b, v, 0, NULL)) : NULL;
}

/* How many steps of [M, N] there are until nothing behind them holds in any row. */
static qn_value *behind_last(qn_builder *b, qn_value *valid)
{
    if (!valid)
        return NULL;
    qn_type type = qn_type_make(b->graph->module, QUERN_I64, 2, valid->type.dims);
    qn_value *steps = choose(b, valid, add_number(b, qn_b_iota(b, &type, 1), 1), qn_b_full(b, &type, 0));
    return steps ? qn_b_reduce(b, QN_KIND_MAX, steps, 2, (int64_t[]){ 0, 1 }, false) : NULL;
}

/* Boxes in the order of their scores, each kept unless one kept before overlaps it: a loop over the boxes of all M
 * problems (batch times class) at once, until none is left whose score counts, or each has as many as it may keep. */
static void import_non_max_suppression(qn_onnx_node *n)
{
    qn_builder *b = &n->b, inner = *b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *scores = qn_onnx_in(n, 1);
    if (!x || !scores)
        return;
    if (x->type.rank != 3 || scores->type.rank != 3) {
        qn_onnx_malformed(n, "boxes and scores must have rank 3");
        return;
    }
    qn_value *limit = scalar_in(n, 2, QUERN_I64, 0), *threshold = scalar_in(n, 3, x->type.dtype, 0);
    qn_dim n_batch = scores->type.dims[0], n_class = scores->type.dims[1], n_box = scores->type.dims[2];
    qn_dim problems = qn_dim_mul(t, n_batch, n_class), flat[2] = { problems, n_box };
    qn_node *order = qn_b_top_k(b, scores, 2, n_box, true);
    if (!order || !limit || !threshold)
        return;
    qn_value *valid = NULL, *sorted = &order->results[0];
    if (qn_onnx_has(n, 4))
        valid = compare(b, QN_GT, sorted, scalar_in(n, 4, scores->type.dtype, 0));
    else
        valid = compare(b, QN_EQ, sorted, sorted); /* all but NaN */
    valid = qn_b_reshape(b, valid, 2, flat);
    qn_value *index = qn_b_reshape(b, &order->results[1], 2, flat);
    /* corners in each problem's order */
    boxes all;
    read_boxes(n, x, &all);
    qn_value *parts[5];
    for (int i = 0; i < 5; i++) {
        qn_value *v = i < 4 ? all.corner[i] : all.area;
        qn_dim spread[3] = { n_batch, n_class, n_box };
        v = v ? qn_b_broadcast(b, v, 3, spread, (int64_t[]){ 0, 2 }) : NULL;
        parts[i] = qn_b_gather_elements(b, qn_b_reshape(b, v, 2, flat), index, 1);
        if (!parts[i])
            return;
    }
    /* carried: kept [M, N], their number [M], the step; captured: validity and boxes by step, all boxes, when to end */
    qn_type kept_type = qn_type_make(n->im->module, QUERN_BOOL, 2, flat);
    qn_type count_type = qn_type_make(n->im->module, QUERN_I64, 1, &problems);
    qn_type step_type = qn_type_make(n->im->module, QUERN_I64, 1, &n_box);
    qn_value *operands[17] = { qn_b_full(b, &kept_type, 0), qn_b_full(b, &count_type, 0),
                               qn_b_scalar_int(b, QUERN_I64, 0),
                               qn_b_transpose(b, valid, (int64_t[]){ 1, 0 }) };
    for (int i = 0; i < 5; i++) {
        operands[4 + i] = qn_b_transpose(b, parts[i], (int64_t[]){ 1, 0 });
        operands[9 + i] = parts[i];
    }
    operands[14] = threshold;
    operands[15] = limit;
    operands[16] = behind_last(b, valid);
    qn_graph *const condition = qn_region_new(n->im->module), *const body = qn_region_new(n->im->module);
    inner.graph = body;
    qn_value *in[17];
    for (int i = 0; i < 17; i++) {
        if (!operands[i])
            return;
        in[i] = qn_graph_add_input(body, NULL, operands[i]->type, QN_ROLE_INPUT);
        qn_graph_add_input(condition, NULL, operands[i]->type, QN_ROLE_INPUT);
    }
    qn_value *step[2] = { in[2], qn_b_scalar_int(&inner, QUERN_I64, 0) };
    for (int i = 3; i < 9; i++)
        in[i] = qn_b_squeeze(
            &inner, qn_b_dynamic_slice(&inner, in[i], step, (qn_dim[]){ qn_dim_const(t, 1), problems }), 0);
    qn_value *hit = and_also(&inner, in[0], overlapping(&inner, in + 4, in + 9, in[14]));
    qn_value *suppressed = hit ? qn_b_reduce(&inner, QN_KIND_MAX, hit, 1, (int64_t[]){ 1 }, false) : NULL;
    qn_value *keep = and_also(&inner, and_also(&inner, in[3], compare(&inner, QN_LT, in[1], in[15])),
                              suppressed ? logical_not(&inner, suppressed) : NULL);
    qn_value *here = compare(&inner, QN_EQ, qn_b_iota(&inner, &step_type, 0), in[2]);
    qn_value *kept = or_else(&inner, in[0], and_also(&inner, qn_b_expand_dims(&inner, keep, 1), here));
    if (!kept || !keep)
        return;
    qn_graph_add_output(body, kept, NULL, -1);
    qn_graph_add_output(body, add(&inner, in[1], qn_b_convert(&inner, QUERN_I64, keep)), NULL, -1);
    qn_graph_add_output(body, add_number(&inner, in[2], 1), NULL, -1);
    qn_value *const *now = condition->inputs;
    inner.graph = condition;
    qn_value *open = compare(&inner, QN_LT, now[1], now[15]); /* problems that may keep more */
    open = open ? qn_b_reduce(&inner, QN_KIND_MAX, open, 1, (int64_t[]){ 0 }, false) : NULL;
    open = and_also(&inner, open, compare(&inner, QN_LT, now[2], now[16]));
    if (!open)
        return;
    qn_graph_add_output(condition, open, NULL, -1);
    qn_node *loop = qn_b_while(b, 3, 14, operands, n_box, condition, body);
    if (!loop)
        return;
    /* positions of the kept, row by row, as (batch, class, box) */
    qn_dim every = qn_dim_mul(t, problems, n_box);
    qn_value *chosen = positions_of(n, qn_b_reshape(b, &loop->results[0], 1, &every), "selected");
    if (!chosen)
        return;
    qn_value *per_class = qn_b_dim_value(b, QUERN_I64, n_box),
             *classes = qn_b_dim_value(b, QUERN_I64, n_class);
    qn_value *problem = divide(b, chosen, per_class), *columns[3];
    columns[0] = divide(b, problem, classes);
    columns[1] = qn_b_binary_bcast(b, QN_OP_REM, problem, classes);
    columns[2] = qn_b_gather(b, qn_b_reshape(b, index, 1, &every), chosen, 0);
    for (int i = 0; i < 3; i++)
        columns[i] = qn_b_expand_dims(b, columns[i], 1);
    qn_onnx_out(n, 0, qn_b_concatenate(b, 3, columns, 1));
}

const qn_onnx_op qn_onnx_select_ops[] = {
    { "NonMaxSuppression", NULL, 10, 0, import_non_max_suppression },
    { "Unique", NULL, 11, 0, import_unique },
    { 0 },
};
