/* How a node joins a cluster: by the work that it would repeat, or as the one that gives the cluster its rows or its sum.
 * What it reads becomes demands of the cluster. */
#include "passes/fuse.h"

#include <string.h>

#include "passes/claim.h"

enum {
    MAX_NODES = 1024,  /* of a cluster */
    REPEAT_BUDGET = 4, /* cost of what is computed more often than it has elements */
    SMALL = 64,        /* elements: computing them again costs nothing */
    MANY = 8,          /* times that each element is looked up */
    SELDOM = 4,        /* elements for each that is looked up */
    FEW_ROWS = 8,
    LONG_ROWS =
        1 << 17 /* elements: a reduction of few rows over so much is spread over tasks by its own kernel */
};

/* Expressions of one module over several spaces can't be compared; their largest values can. */
static double size_of(qn_dim elements)
{
    return (double)elements->max;
}

/* ---- what may join ---- */

/* Is it read at places that only the run tells? */
static bool at_data(const qn_cluster *c, const qn_value *value, const qn_dim *index)
{
    for (int i = 0; i < value->type.rank; i++)
        if (qn_ix_uses_data(&c->space, index[i]))
            return true;
    return false;
}

/* How often the cluster computes an element of `value`, on average, for one index. What only depends on outer variables
 * is computed outside of the inner loops. */
static double evaluations(qn_cluster *c, const qn_value *value, const qn_dim *index)
{
    int innermost = -1;
    const bool data = at_data(c, value, index);
    for (int i = 0; i < value->type.rank; i++)
        for (int k = 0; k < c->group.n_dims; k++)
            if (k > innermost && c->vars[k]->kind == QN_DIM_SYMBOL && qn_ix_uses(index[i], c->vars[k]))
                innermost = k;
    if (c->group.kind == QN_GROUP_ROWS && !data) {
        bool per_row = true;
        for (int i = 0; i < value->type.rank && per_row; i++)
            for (int k = 0; k < c->rows.n_col_vars && per_row; k++)
                per_row =
                    c->rows.col_vars[k]->kind != QN_DIM_SYMBOL || !qn_ix_uses(index[i], c->rows.col_vars[k]);
        if (per_row)
            return size_of(c->rows.n_rows) / qn_type_most_elements(&value->type);
    }
    double n = 1;
    for (int k = 0; k < c->group.n_dims; k++)
        if (data || k <= innermost)
            n *= (double)c->dims[k]->max;
    return n / qn_type_most_elements(&value->type);
}

/* Is it, or what it moves, computed? */
static bool is_computed(const qn_value *value, int depth)
{
    const qn_node *node = value->node;
    if (!node || depth == 0 || node->n_operands == 0)
        return false;
    if (qn_node_cost(node) > 0)
        return true;
    for (int i = 0; i < node->n_operands && qn_ix_moves(node); i++)
        if (is_computed(node->operands[i], depth - 1))
            return true;
    return false;
}

/* One read of several pieces picks among them each time: a bias of many pieces is put together once, not for each row, and so are
 * pieces that are computed, all of them for each element. */
static int cost_of(const qn_node *node)
{
    enum { DEPTH = 3 };
    if (node->op != QN_OP_CONCATENATE)
        return qn_node_cost(node);
    for (int i = 0; i < node->n_operands; i++)
        if (is_computed(node->operands[i], DEPTH))
            return REPEAT_BUDGET + 1;
    return node->n_operands > 2 ? node->n_operands : 0;
}

/* Is what `value` moves read along its rows, one lane behind the other? */
static bool goes_along_rows(qn_cluster *c, const qn_value *value, const qn_dim *at, qn_dim lane)
{
    qn_dim index[QN_MAX_RANK], operand[QN_MAX_RANK], along, rest;
    memcpy(index, at, (size_t)value->type.rank * sizeof *index);
    while (value->node && qn_ix_moves(value->node) && value->node->n_operands > 0 &&
           qn_ix_data_count(value->node) == 0) {
        qn_ix_operand(&c->space, value->node, 0, index, NULL, operand);
        memcpy(index, operand, sizeof index);
        value = value->node->operands[0];
    }
    return qn_ix_affine(&c->space, qn_cluster_linear(c, &value->type, index), lane, &along, &rest) &&
           qn_dim_is(along, 1);
}

/* A kernel of rows has no parts (lower_parts.c) and transposes nothing in registers: what is put together from many pieces, or
 * from one that lies across the rows, is put together before. */
static bool is_put_together_before(qn_cluster *c, const qn_node *node, const qn_dim *index)
{
    enum { MANY_PIECES = 4, LARGE = 4096 };
    if (c->group.kind != QN_GROUP_ROWS || node->op != QN_OP_CONCATENATE ||
        qn_type_most_elements(&node->results[0].type) < LARGE)
        return false;
    const qn_dim lane = c->rows.col_vars[c->rows.n_col_vars - 1];
    bool across = false;
    for (int k = 0; k < node->n_operands && lane->kind == QN_DIM_SYMBOL; k++) {
        qn_dim operand[QN_MAX_RANK];
        qn_ix_operand(&c->space, node, k, index, NULL, operand);
        for (int i = 0; i < node->results[0].type.rank && !across; i++)
            across = qn_ix_uses(index[i], lane) && !goes_along_rows(c, node->operands[k], operand, lane);
    }
    return across || node->n_operands >= MANY_PIECES;
}

/* Is it computed from several values, not counting those that are one number everywhere? */
static bool reads_several(const qn_node *node)
{
    int n = 0;
    qn_scalar splat;
    for (int i = 0; i < node->n_operands && qn_node_cost(node) > 0; i++) {
        const qn_node *made = node->operands[i]->node;
        const bool repeated = made && made->op == QN_OP_BROADCAST && made->operands[0]->type.rank == 0;
        n += !repeated && !qn_value_splat(node->operands[i], &splat);
    }
    return n > 1;
}

/* Padding that many windows of one kernel read, each at a place of its own: every one of them would look whether it meets the border, of
 * each element, and find in what is padded what may lie in another order. It is put into memory once. */
static bool is_read_all_over(const qn_demand *d, const qn_node *node)
{
    enum { PLACES = 4, LARGE = 4096 };
    return node->op == QN_OP_PAD && d->indices.n >= PLACES &&
           qn_type_most_elements(&node->results[0].type) >= LARGE;
}

/* Is what it moves read across its rows, where the result would be read along them? */
static bool is_turned_along(qn_cluster *c, const qn_node *node, const qn_dim *index, qn_dim lane)
{
    const qn_value *value = &node->results[0];
    qn_dim along, rest;
    return lane && lane->kind == QN_DIM_SYMBOL && qn_ix_moves(node) &&
           qn_ix_affine(&c->space, qn_cluster_linear(c, &value->type, index), lane, &along, &rest) &&
           qn_dim_is(along, 1) && !goes_along_rows(c, value, index, lane);
}

/* Lanes lie along the last axis; a kernel of rows may have several rows side by side, too. */
static bool is_turned(qn_cluster *c, const qn_node *node, const qn_dim *index)
{
    qn_dim last = NULL, last_row = NULL;
    for (int i = 0; i < c->group.n_dims; i++) {
        last = c->vars[i];
        if (c->group.kind == QN_GROUP_ROWS && c->is_row[i])
            last_row = c->vars[i];
    }
    return is_turned_along(c, node, index, last) || is_turned_along(c, node, index, last_row);
}

/* Is it computed from rows that are looked up, where each lane would have a row of its own? An element of a row costs as much by
 * itself as a vector of them. */
static bool looks_up_across(qn_cluster *c, const qn_value *value, const qn_dim *index, qn_dim lane, int depth)
{
    enum { ROW = 8 }; /* elements, that a row has at least */
    const qn_node *node = value->node;
    qn_dim data[QN_MAX_RANK], operand[QN_MAX_RANK];
    if (!node || depth == 0 || (qn_ops[node->op].class != QN_ELEMENTWISE && !qn_ix_moves(node)))
        return false;
    const int n_data = qn_ix_data_count(node);
    if (n_data > 0) {
        const qn_type *from = &node->operands[0]->type, *places = &node->operands[1]->type;
        const int last = from->rank - 1;
        if ((node->op != QN_OP_GATHER && node->op != QN_OP_GATHER_ND) || from->dims[last]->max < ROW)
            return false;
        for (int i = 0; i < n_data; i++)
            data[i] = qn_ispace_var(&c->space, qn_dim_const(c->space.dims, INT32_MAX), true);
        qn_ix_operand(&c->space, node, 0, index, data, operand);
        if (qn_ix_uses(operand[last], lane) || qn_ix_uses_data(&c->space, operand[last]))
            return false;
        qn_ix_operand(&c->space, node, 1, index, data, operand);
        for (int i = 0; i < places->rank; i++)
            if (qn_ix_uses(operand[i], lane))
                return true;
        return false;
    }
    for (int k = 0; k < node->n_operands; k++) {
        qn_ix_operand(&c->space, node, k, index, NULL, operand);
        if (looks_up_across(c, node->operands[k], operand, lane, depth - 1))
            return true;
    }
    return false;
}

/* Is it computed so, and large? Then it is computed along its rows, and turned once. */
static bool is_looked_up_across(qn_cluster *c, const qn_node *node, const qn_dim *index)
{
    enum { LARGE = 4096, DEPTH = 4 };
    const qn_dim lane = c->group.n_dims > 0 ? c->vars[c->group.n_dims - 1] : NULL;
    return c->group.kind == QN_GROUP_LOOP && lane && lane->kind == QN_DIM_SYMBOL &&
           qn_type_most_elements(&node->results[0].type) >= LARGE &&
           looks_up_across(c, &node->results[0], index, lane, DEPTH);
}

bool qn_cluster_wants(const qn_demand *d, const qn_node *node)
{
    qn_cluster *c = d->by;
    const qn_value *value = &node->results[0];
    const int cost = cost_of(node);
    if ((int)c->nodes.n >= MAX_NODES)
        return false;
    for (size_t i = 0; i < d->indices.n; i++)
        if (is_put_together_before(c, node, d->indices.items[i]))
            return false;
    if (qn_type_most_elements(&value->type) <= SMALL || node->op == QN_OP_RESHAPE ||
        node->op == QN_OP_BROADCAST)
        return true;
    double times = 0;
    bool looked_up = false, turned = false;
    for (size_t i = 0; i < d->indices.n; i++) {
        times += evaluations(c, value, d->indices.items[i]);
        looked_up |= at_data(c, value, d->indices.items[i]);
        turned |= is_turned(c, node, d->indices.items[i]);
    }
    /* what is looked up again and again is put in order once; so is what would be looked up in several places each time, or
     * element by element in place of row by row */
    if (looked_up && (times > MANY || (SELDOM * times > 1 && (turned || reads_several(node)))))
        return false;
    if (cost == 0)
        return !is_read_all_over(d, node);
    for (size_t i = 0; i < d->indices.n; i++)
        if (is_looked_up_across(c, node, d->indices.items[i]))
            return false;
    /* what is computed again would read more from memory than it is itself */
    if (times > 1.01 && node->op == QN_OP_CONVERT &&
        qn_dtype_bytes(value->type.dtype) < qn_dtype_bytes(node->operands[0]->type.dtype))
        return false;
    return times <= 1.01 || d->repeated + cost <= REPEAT_BUDGET;
}

bool qn_fuse_is_loop(const qn_node *node)
{
    return qn_ix_moves(node) || node->op == QN_OP_IOTA || node->op == QN_OP_DIM_VALUE ||
           node->op == QN_OP_RANDOM_BITS;
}

/* A small piece of what is put together: each element of the whole picks among its pieces, which are computed whether it is theirs
 * or not. */
static bool is_small_piece(const qn_node *node, int operand)
{
    enum { PIECES = 8 };
    if (node->op != QN_OP_CONCATENATE)
        return false;
    const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    return node->operands[operand]->type.dims[axis]->max <= node->results[0].type.dims[axis]->max / PIECES;
}

/* A piece computed from three values or more that lie across the lanes: each of them would be read so. It is computed along its own rows,
 * and what comes of it is turned once, where it is put together. */
static bool is_turned_piece(qn_cluster *c, const qn_node *node, int operand, const qn_dim *index)
{
    enum { LARGE = 4096 };
    qn_value *piece = node->operands[operand];
    const qn_dim lane = c->group.n_dims > 0 ? c->vars[c->group.n_dims - 1] : NULL;
    if (node->op != QN_OP_CONCATENATE || c->group.kind != QN_GROUP_LOOP || !lane ||
        lane->kind != QN_DIM_SYMBOL || qn_type_most_elements(&piece->type) < LARGE ||
        goes_along_rows(c, piece, index, lane))
        return false;
    while (piece->node && qn_ix_moves(piece->node) && piece->node->n_operands == 1)
        piece = piece->node->operands[0];
    bool many = false;
    for (int i = 0; piece->node && i < piece->node->n_operands && !many; i++)
        many = piece->node->operands[i]->node && reads_several(piece->node->operands[i]->node);
    return many && reads_several(piece->node);
}

static void demand_operands_at(qn_fuser *f, qn_cluster *c, const qn_demand *d, qn_node *node,
                               const qn_dim *index)
{
    qn_dim data[QN_MAX_RANK], operand[QN_MAX_RANK];
    const int n_data = qn_ix_data_count(node);
    for (int i = 0; i < n_data; i++) { /* a number in the extent of the axis it selects from */
        const int axis = node->op == QN_OP_DYNAMIC_SLICE ? i
                         : node->op == QN_OP_GATHER_ND   ? i + (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS)
                                                         : (int)qn_attr_int(node, QN_ATTR_AXIS);
        data[i] =
            qn_ispace_var(&c->space, qn_ispace_import(&c->space, node->operands[0]->type.dims[axis]), true);
    }
    const int cost = qn_node_cost(node);
    double times = 0;
    for (size_t i = 0; i < d->indices.n; i++)
        times += evaluations(c, &node->results[0], d->indices.items[i]);
    for (int k = 0; k < node->n_operands; k++) {
        if (node->op == QN_OP_RANDOM_BITS)
            for (int i = 0; i < node->operands[k]->type.rank; i++)
                operand[i] = qn_dim_const(c->space.dims, 0);
        else
            qn_ix_operand(&c->space, node, k, index, data, operand);
        qn_demand *o = qn_demand_at(f, node->operands[k], c, operand);
        const bool apart = is_small_piece(node, k) || is_turned_piece(c, node, k, operand);
        const int repeated = apart ? REPEAT_BUDGET : d->repeated + (times > 1.01 ? cost : 0);
        o->repeated = repeated > o->repeated ? repeated : o->repeated;
        o->copied = d->copied > o->copied ? d->copied : o->copied;
    }
}

void qn_cluster_join(qn_fuser *f, qn_cluster *c, qn_node *node)
{
    qn_cluster_take(f, c, node);
    if (c->closed) { /* trivial: its operands are too */
        for (int k = 0; k < node->n_operands; k++)
            qn_demand_add(f, node->operands[k], c);
        return;
    }
    const qn_demand *d = qn_demand_find(f, &node->results[0], c);
    for (size_t i = 0; i < d->indices.n; i++)
        demand_operands_at(f, c, d, node, d->indices.items[i]);
}

/* ---- reductions ---- */

/* Of a LOOP cluster that reads the reduction at `index`: the kept axes are those of its variables that the index is made of.
 * Without others, the cluster has one element for each row, and gets new variables for the columns. */
static bool rows_of_loop(qn_cluster *c, const qn_node *node, const qn_dim *index, qn_rows *out_rows,
                         int *out_n_dims, qn_dim *out_dims, qn_dim *out_vars, bool *out_is_row)
{
    const int rank = node->results[0].type.rank;
    int n = c->group.n_dims;
    bool any_column = false;
    for (int k = 0; k < n; k++) {
        out_dims[k] = c->dims[k];
        out_vars[k] = c->vars[k];
        out_is_row[k] = false;
        for (int i = 0; i < rank && !out_is_row[k]; i++)
            out_is_row[k] = c->vars[k]->kind == QN_DIM_SYMBOL && qn_ix_uses(index[i], c->vars[k]);
        any_column |= !out_is_row[k] && !qn_dim_is(c->dims[k], 1);
    }
    if (!any_column) { /* rows in the order of the cluster, columns in that of the operand */
        int n_axes;
        const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n_axes);
        if (n + n_axes > QN_MAX_RANK)
            return false;
        for (int k = 0; k < n; k++)
            out_is_row[k] = true;
        for (int i = 0; i < n_axes; i++, n++) {
            out_dims[n] = qn_ispace_import(&c->space, node->operands[0]->type.dims[axes[i]]);
            out_vars[n] = qn_ispace_var(&c->space, out_dims[n], false);
            out_is_row[n] = false;
        }
    }
    *out_n_dims = n;
    qn_rows_set(&c->space, out_rows, n, out_dims, out_vars, out_is_row);
    return true;
}

/* Few long rows are better reduced by a kernel of their own, which other tasks can share. */
static bool too_long(const qn_rows *rows)
{
    return size_of(rows->n_rows) < FEW_ROWS && size_of(rows->n_rows) * size_of(rows->n_cols) >= LONG_ROWS;
}

/* Makes the cluster one over the rows that the reduction keeps, when it fits, and says where its operand is read. Long
 * rows only where the cluster is the reduction's own. */
static bool make_rows(qn_cluster *c, const qn_node *node, const qn_dim *index, bool own, qn_dim *out_operand)
{
    if (c->group.kind == QN_GROUP_ROWS)
        return qn_rows_operand(&c->space, &c->rows, node, index, out_operand);
    if (c->closed || c->sums || c->group.kind != QN_GROUP_LOOP)
        return false;
    qn_rows rows;
    int n;
    qn_dim dims[QN_MAX_RANK], vars[QN_MAX_RANK];
    bool is_row[QN_MAX_RANK];
    if (!rows_of_loop(c, node, index, &rows, &n, dims, vars, is_row) ||
        !qn_rows_operand(&c->space, &rows, node, index, out_operand) || (!own && too_long(&rows)))
        return false;
    c->group.kind = QN_GROUP_ROWS;
    c->group.n_dims = n;
    c->rows = rows;
    memcpy(c->dims, dims, sizeof dims);
    memcpy(c->vars, vars, sizeof vars);
    memcpy(c->is_row, is_row, sizeof is_row);
    c->linear = qn_ix_linear(&c->space, n, dims, vars);
    c->n_elements = qn_dim_mul(c->space.dims, rows.n_rows, rows.n_cols);
    return true;
}

bool qn_cluster_join_reduction(qn_fuser *f, const qn_demand *d, qn_node *node, bool own)
{
    qn_cluster *c = d->by;
    qn_dim operand[QN_MAX_RANK];
    if (d->whole || d->indices.n != 1 || (int)c->nodes.n >= MAX_NODES ||
        c->n_reductions + 1 == QN_ROW_PASSES || !make_rows(c, node, d->indices.items[0], own, operand))
        return false;
    c->n_reductions++;
    qn_cluster_take(f, c, node);
    qn_demand_at(f, node->operands[0], c, operand);
    return true;
}

/* The reduction that an element-wise chain begins with: what the value is a value of a row by. */
static const qn_node *find_reduction(qn_cluster *c, const qn_value *value, const qn_dim *index, int depth,
                                     qn_dim *out_index)
{
    const qn_node *node = value->node;
    if (!node || depth == 0)
        return NULL;
    if (node->op == QN_OP_REDUCE) {
        memcpy(out_index, index, (size_t)value->type.rank * sizeof *index);
        return node;
    }
    if (qn_ops[node->op].class != QN_ELEMENTWISE && node->op != QN_OP_RESHAPE)
        return NULL;
    for (int i = 0; i < node->n_operands; i++) {
        qn_dim operand[QN_MAX_RANK];
        qn_ix_operand(&c->space, node, i, index, NULL, operand);
        const qn_node *found = find_reduction(c, node->operands[i], operand, depth - 1, out_index);
        if (found)
            return found;
    }
    return NULL;
}

bool qn_cluster_becomes_own_row(qn_cluster *c, const qn_demand *d, const qn_value *value)
{
    enum { DEPTH = 8 };
    qn_dim index[QN_MAX_RANK], operand[QN_MAX_RANK];
    if (c->group.kind != QN_GROUP_LOOP || d->whole || d->indices.n != 1)
        return false;
    const qn_node *reduction = find_reduction(c, value, d->indices.items[0], DEPTH, index);
    return reduction && make_rows(c, reduction, index, false, operand) &&
           qn_cluster_reads_own(c, d, &value->type);
}

/* ---- contractions and windows ---- */

bool qn_fuse_is_sum(const qn_node *node)
{
    return qn_ops[node->op].class == QN_CONTRACTION || node->op == QN_OP_REDUCE_WINDOW;
}

/* The queries of attention are read once, so the kernel computes them from what they are made of; `index` is the result's. */
static void demand_queries(qn_fuser *f, qn_cluster *c, const qn_node *node, const qn_dim *index)
{
    qn_value *q = node->operands[0];
    const bool heads_last = qn_attr_bool(node, QN_ATTR_HEADS_LAST);
    const qn_dim depth = qn_ispace_var(&c->space, qn_ispace_import(&c->space, q->type.dims[3]), false);
    const qn_dim at[4] = { index[0], index[heads_last ? 2 : 1], index[heads_last ? 1 : 2], depth };
    (void)qn_demand_at(f, q, c, at);
}

/* The panels of a product that packs them itself are computed from what they are made of. */
static void demand_panels(qn_fuser *f, qn_cluster *c, const qn_node *node, const qn_dim *index)
{
    qn_value *y = node->operands[1];
    const int n_batch = y->type.rank - 3;
    qn_dim at[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < y->type.rank; i++)
        at[i] = i < n_batch ? index[i]
                            : qn_ispace_var(&c->space, qn_ispace_import(&c->space, y->type.dims[i]), false);
    if (goes_along_rows(c, y, at, at[n_batch + 2]))
        (void)qn_demand_at(f, y, c, at);
    else
        qn_demand_whole(f, y, c);
}

/* Does the cluster have a convolution's channels as planes, [N, C, …] or [N, blocks, channels of a block, …], in place of blocks? */
static bool reads_turned(const qn_fuser *f, qn_cluster *c, const qn_demand *d, const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    const int rank = type->rank, n = c->group.n_dims, first = n - (rank - 3);
    qn_dim dims[QN_MAX_RANK], at[QN_MAX_RANK];
    if (node->op != QN_OP_CONV_PACKED || d->whole || d->indices.n != 1 || (n != rank && n != rank - 1) ||
        !qn_conv_turns(node, f->options))
        return false;
    qn_ispace_dims(&c->space, type, dims);
    const qn_dim lanes = dims[rank - 1], channels = qn_dim_mul(c->space.dims, dims[1], lanes);
    bool same = c->dims[0] == dims[0] &&
                (n == rank ? c->dims[1] == dims[1] && c->dims[2] == lanes : c->dims[1]->max <= channels->max);
    at[0] = c->vars[0];
    at[1] = n == rank ? c->vars[1] : qn_ix_div(&c->space, c->vars[1], lanes);
    at[rank - 1] = n == rank ? c->vars[2] : qn_ix_mod(&c->space, c->vars[1], lanes);
    for (int i = 0; i < rank - 3; i++) {
        same &= c->dims[first + i] == dims[2 + i];
        at[2 + i] = c->vars[first + i];
    }
    return same && memcmp(at, d->indices.items[0], (size_t)rank * sizeof *at) == 0;
}

bool qn_cluster_join_sum(qn_fuser *f, const qn_demand *d, qn_node *node)
{
    qn_cluster *c = d->by;
    if (c->closed || c->sums || c->group.kind != QN_GROUP_LOOP)
        return false;
    const bool turned = !qn_cluster_reads_own(c, d, &node->results[0].type);
    if (turned && !reads_turned(f, c, d, node))
        return false;
    c->group.turned = turned;
    if (qn_ops[node->op].class == QN_CONTRACTION)
        c->group.kind = QN_GROUP_CONTRACTION;
    c->sums = true;
    c->group.root = node;
    qn_cluster_take(f, c, node);
    const bool queries = node->op == QN_OP_ATTENTION_PACKED, panels = qn_gemm_packs(node, f->options);
    if (queries)
        demand_queries(f, c, node, d->indices.items[0]);
    if (panels)
        demand_panels(f, c, node, d->indices.items[0]);
    for (int k = queries; k < node->n_operands; k++)
        if (!panels || k != 1)
            qn_demand_whole(f, node->operands[k], c);
    return true;
}
