/* Decides which nodes run together.
 *
 * Before: a graph without composites that lowering doesn't claim. After: groups in an order in which they can run.
 *
 * Nodes are visited from the last to the first. A cluster starts with a value that has to be in memory and grows backwards:
 * it keeps, for each value that it reads, at which indices it does (its demands, index.h). A producer whose demands are
 * complete either joins the clusters that read it, which passes its demands on to its operands, or is put into memory by
 * a cluster that it starts, or by one of its readers as a further output.
 *
 *   %0 = reduce %x {axes = [1], kind = max}     demanded at (#0): one value a row, so the cluster becomes ROWS
 *   %1 = broadcast %0 {axes = [0], …}           demanded at (#0, #1): joins
 *   %2 = sub %x, %1                             joins
 *   %3 = exp %2                                 stored: starts a cluster over (#0, #1)
 *
 * What joins and what doesn't is decided by how often an element would be computed, and how dear that is. */
#include <string.h>

#include "passes/claim.h"
#include "passes/passes.h"
#include "passes/rows.h"

enum {
    MAX_NODES = 256,   /* of a cluster */
    MAX_INPUTS = 48,   /* likewise: pointers that a kernel keeps */
    REPEAT_BUDGET = 4, /* cost of what is computed more often than it has elements */
    COPY_BUDGET = 3,   /* cost of what is computed in several kernels instead of being stored */
    MAX_COPIES = 3,    /* kernels that compute it */
    SMALL = 64,        /* elements: computing them again costs nothing */
    LONG_ROWS =
        1
        << 17, /* a reduction over so much with few rows gets a kernel of its own, to be spread over tasks */
    FEW_ROWS = 8
};

typedef struct cluster cluster;
typedef struct demand demand;

/* That a cluster reads a value, and where. */
struct demand {
    cluster *by;
    bool whole; /* from memory: by an opaque node */
    int repeated; /* cost of the consumers in the cluster that are computed more often than they have elements */
    int copied;                     /* cost of the consumers that are in several clusters */
    qn_vec(const qn_dim *) indices; /* distinct; each has the value's rank */
    demand *next;                   /* of the same value */
};

struct cluster {
    qn_group group;
    bool closed; /* takes in nobody */
    bool sums;   /* has a contraction or windows: one of them, and no reductions */
    int number, order;
    qn_ispace space;
    qn_dim vars[QN_MAX_RANK], dims[QN_MAX_RANK]; /* the iteration space: group.n_dims of them */
    bool is_row[QN_MAX_RANK];
    qn_dim linear, n_elements;
    qn_rows rows; /* ROWS */
    qn_vec(qn_node *) nodes;
    qn_vec(qn_value *) inputs, outputs;
    int visited;
};

typedef struct fuser {
    qn_graph *graph;
    qn_arena *arena;   /* results */
    qn_arena *scratch; /* clusters and their spaces */
    const qn_pass_options *options;
    demand **demands; /* by value id */
    bool *stored;     /* by value id: has to be in memory */
    cluster **maker;  /* by value id: the cluster that stores it */
    qn_vec(cluster *) clusters;
    int visit;
} fuser;

/* ---- costs: roughly vector instructions for an element ---- */

int qn_node_cost(const qn_node *node)
{
    switch (node->op) {
    case QN_OP_SQRT:
    case QN_OP_RSQRT:
    case QN_OP_DIV: return 4;
    case QN_OP_REM: return qn_dtype_is_float(node->results[0].type.dtype) ? 20 : 4;
    case QN_OP_EXP:
    case QN_OP_EXPM1:
    case QN_OP_LOG:
    case QN_OP_LOG1P:
    case QN_OP_SIN:
    case QN_OP_COS:
    case QN_OP_TAN:
    case QN_OP_ASIN:
    case QN_OP_ACOS:
    case QN_OP_ATAN:
    case QN_OP_SINH:
    case QN_OP_COSH:
    case QN_OP_TANH:
    case QN_OP_ASINH:
    case QN_OP_ACOSH:
    case QN_OP_ATANH:
    case QN_OP_ERF:
    case QN_OP_LOGISTIC:
    case QN_OP_POW:
    case QN_OP_ATAN2:
    case QN_OP_RANDOM_BITS: return 16;
    case QN_OP_GATHER:
    case QN_OP_GATHER_ND:
    case QN_OP_GATHER_ELEMENTS: return 2;
    case QN_OP_IOTA:
    case QN_OP_DIM_VALUE:
    case QN_OP_CONSTANT:
    case QN_OP_STOP_GRADIENT: return 0;
    default: return qn_ops[node->op].class == QN_ELEMENTWISE ? 1 : 0;
    }
}

/* What computing it in one more kernel costs: its own work, and more than the budget where that reads more from memory
 * than its result would be. */
static int copy_cost(const qn_node *node)
{
    int streams = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *operand = node->operands[i];
        while (operand->node && operand->node->op == QN_OP_RESHAPE)
            operand = operand->node->operands[0];
        const bool repeated = operand->node && qn_ops[operand->node->op].class == QN_BROADCAST;
        streams += qn_ops[node->op].class == QN_ELEMENTWISE && !repeated && operand->type.rank > 0;
    }
    return qn_node_cost(node) + (streams > 1 ? COPY_BUDGET : 0);
}

/* Expressions of one module over several spaces can't be compared; their largest values can. */
static double size_of(qn_dim elements)
{
    return (double)elements->max;
}

static double elements_of(const qn_type *type)
{
    double n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= (double)type->dims[i]->max;
    return n;
}

/* ---- demands ---- */

static demand *find_demand(const fuser *f, const qn_value *value, const cluster *by)
{
    demand *d = f->demands[value->id];
    while (d && d->by != by)
        d = d->next;
    return d;
}

static demand *add_reader(fuser *f, qn_value *value, cluster *by)
{
    demand *d = find_demand(f, value, by);
    if (d)
        return d;
    d = QN_NEW(f->scratch, demand);
    d->by = by;
    d->next = f->demands[value->id];
    f->demands[value->id] = d;
    return d;
}

/* A constant or an input needs nobody to put it into memory. */
static bool in_memory_already(const qn_value *value)
{
    return !value->node || value->node->op == QN_OP_CONSTANT;
}

static void demand_whole(fuser *f, qn_value *value, cluster *by)
{
    if (by)
        add_reader(f, value, by)->whole = true;
    f->stored[value->id] = true;
}

static demand *demand_index(fuser *f, qn_value *value, cluster *by, const qn_dim *index)
{
    demand *d = add_reader(f, value, by);
    const size_t bytes = (size_t)value->type.rank * sizeof *index;
    for (size_t i = 0; i < d->indices.n; i++)
        if (bytes == 0 || memcmp(d->indices.items[i], index, bytes) == 0)
            return d;
    const qn_dim *copy = qn_arena_copy(f->scratch, index, bytes);
    qn_vec_push(f->scratch, &d->indices, copy);
    return d;
}

/* ---- clusters ---- */

static cluster *new_cluster(fuser *f, qn_group_kind kind, qn_node *root)
{
    cluster *c = QN_NEW(f->scratch, cluster);
    c->group.kind = kind;
    c->group.root = root;
    c->number = (int)f->clusters.n;
    c->closed = kind == QN_GROUP_SINGLE || kind == QN_GROUP_CONTROL;
    qn_ispace_init(&c->space, f->scratch);
    qn_vec_push(f->scratch, &f->clusters, c);
    return c;
}

/* The iteration space: the elements of a type, in row-major order. */
static void set_space(cluster *c, const qn_type *type)
{
    qn_ispace_dims(&c->space, type, c->dims);
    c->group.n_dims = type->rank;
    for (int i = 0; i < type->rank; i++)
        c->vars[i] = qn_ispace_var(&c->space, c->dims[i], false);
    c->linear = qn_ix_linear(&c->space, type->rank, c->dims, c->vars);
    c->n_elements = qn_dim_const(c->space.dims, 1);
    for (int i = 0; i < type->rank; i++)
        c->n_elements = qn_dim_mul(c->space.dims, c->n_elements, c->dims[i]);
}

static qn_dim linear_index(cluster *c, const qn_type *type, const qn_dim *index)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&c->space, type, dims);
    return qn_ix_linear(&c->space, type->rank, dims, index);
}

static qn_dim element_count(cluster *c, const qn_type *type)
{
    qn_dim n = qn_dim_const(c->space.dims, 1);
    for (int i = 0; i < type->rank; i++)
        n = qn_dim_mul(c->space.dims, n, qn_ispace_import(&c->space, type->dims[i]));
    return n;
}

/* Does the cluster read the value at exactly one index, which is the element that it computes itself? Then it can store
 * the value as it goes. In a ROWS cluster also one element a row. */
static bool reads_own_element(cluster *c, const demand *d, const qn_type *type)
{
    if (d->whole || d->indices.n != 1)
        return false;
    const qn_dim linear = linear_index(c, type, d->indices.items[0]), n = element_count(c, type);
    if (linear == c->linear && n == c->n_elements)
        return true;
    return c->group.kind == QN_GROUP_ROWS && linear == c->rows.row && n == c->rows.n_rows;
}

static void join(fuser *f, cluster *c, qn_node *node);

static void add_output(fuser *f, cluster *c, qn_value *value)
{
    qn_vec_push(f->scratch, &c->outputs, value);
    f->maker[value->id] = c;
}

/* ---- does v reach c through other clusters? Readers of a value in memory follow its maker. ---- */

static bool reaches(fuser *f, cluster *from, const cluster *target)
{
    if (from == target)
        return true;
    if (from->visited == f->visit)
        return false;
    from->visited = f->visit;
    for (size_t i = 0; i < from->outputs.n; i++)
        for (const demand *d = f->demands[from->outputs.items[i]->id]; d; d = d->next)
            if (d->by != from && reaches(f, d->by, target))
                return true;
    return false;
}

/* May `c` put `value` into memory: does no other reader of it come before c? */
static bool may_store(fuser *f, cluster *c, const qn_value *value)
{
    for (const demand *d = f->demands[value->id]; d; d = d->next) {
        if (d->by == c)
            continue;
        f->visit++;
        if (reaches(f, d->by, c))
            return false;
    }
    return true;
}

/* ---- what may join ---- */

/* Is every element the same number, or its own index? Nothing is read to make it, so even opaque nodes compute it. */
static bool is_trivial(const qn_value *value)
{
    qn_scalar s;
    return qn_value_splat(value, &s) || (value->node && value->node->op == QN_OP_IOTA);
}

/* How often the cluster computes an element of `value`, on average, for one index. What only depends on outer variables
 * is computed outside of the inner loops. */
static double evaluations(cluster *c, const qn_value *value, const qn_dim *index)
{
    int innermost = -1;
    bool data = false;
    for (int i = 0; i < value->type.rank; i++) {
        for (int k = 0; k < c->group.n_dims; k++)
            if (k > innermost && c->vars[k]->kind == QN_DIM_SYMBOL && qn_ix_uses(index[i], c->vars[k]))
                innermost = k;
        for (size_t k = 0; k < c->space.vars.n && !data; k++)
            data = c->space.vars.items[k].data && qn_ix_uses(index[i], c->space.vars.items[k].symbol);
    }
    if (c->group.kind == QN_GROUP_ROWS && !data) {
        bool per_row = true;
        for (int i = 0; i < value->type.rank && per_row; i++)
            for (int k = 0; k < c->rows.n_col_vars && per_row; k++)
                per_row =
                    c->rows.col_vars[k]->kind != QN_DIM_SYMBOL || !qn_ix_uses(index[i], c->rows.col_vars[k]);
        if (per_row)
            return size_of(c->rows.n_rows) / elements_of(&value->type);
    }
    double n = 1;
    for (int k = 0; k < c->group.n_dims; k++)
        if (data || k <= innermost)
            n *= (double)c->dims[k]->max;
    return n / elements_of(&value->type);
}

/* Is it cheaper to compute `node` in cluster d->by than to read its result from memory? */
static bool worth_joining(const demand *d, const qn_node *node)
{
    cluster *c = d->by;
    const qn_value *value = &node->results[0];
    /* one read of many pieces picks among them each time: a bias of several pieces is put together once, not for each row */
    const int cost =
        node->op == QN_OP_CONCATENATE && node->n_operands > 2 ? node->n_operands : qn_node_cost(node);
    if ((int)c->nodes.n >= MAX_NODES || (int)c->inputs.n >= MAX_INPUTS)
        return false;
    if (cost == 0 || elements_of(&value->type) <= SMALL)
        return true;
    double times = 0;
    for (size_t i = 0; i < d->indices.n; i++)
        times += evaluations(c, value, d->indices.items[i]);
    return times <= 1.01 || d->repeated + cost <= REPEAT_BUDGET;
}

static bool is_loop_node(const qn_node *node)
{
    return qn_ix_moves(node) || node->op == QN_OP_IOTA || node->op == QN_OP_DIM_VALUE ||
           node->op == QN_OP_RANDOM_BITS;
}

static void demand_operands_at(fuser *f, cluster *c, const demand *d, qn_node *node, const qn_dim *index)
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
        demand *o = demand_index(f, node->operands[k], c, operand);
        const int repeated = d->repeated + (times > 1.01 ? cost : 0);
        o->repeated = repeated > o->repeated ? repeated : o->repeated;
        o->copied = d->copied > o->copied ? d->copied : o->copied;
    }
}

static void join(fuser *f, cluster *c, qn_node *node)
{
    qn_vec_push(f->scratch, &c->nodes, node);
    if (c->closed) { /* trivial: its operands are too */
        for (int k = 0; k < node->n_operands; k++)
            add_reader(f, node->operands[k], c);
        return;
    }
    const demand *d = find_demand(f, &node->results[0], c);
    for (size_t i = 0; i < d->indices.n; i++)
        demand_operands_at(f, c, d, node, d->indices.items[i]);
}

/* ---- reductions ---- */

/* Of a LOOP cluster that reads the reduction at `index`: the kept axes are those of its variables that the index is made of.
 * Without others, the cluster has one element for each row, and gets new variables for the columns. */
static bool rows_of_loop(cluster *c, const qn_node *node, const qn_dim *index, qn_rows *out_rows,
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
static bool make_rows(cluster *c, const qn_node *node, const qn_dim *index, bool own, qn_dim *out_operand)
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

static bool join_reduction(fuser *f, const demand *d, qn_node *node, bool own)
{
    cluster *c = d->by;
    qn_dim operand[QN_MAX_RANK];
    if (d->whole || d->indices.n != 1 || (int)c->nodes.n >= MAX_NODES ||
        !make_rows(c, node, d->indices.items[0], own, operand))
        return false;
    qn_vec_push(f->scratch, &c->nodes, node);
    demand_index(f, node->operands[0], c, operand);
    return true;
}

/* The reduction that an element-wise chain begins with: what the value is a value of a row by. */
static const qn_node *find_reduction(cluster *c, const qn_value *value, const qn_dim *index, int depth,
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

/* A value of the row that has to be in memory: can the cluster become one over rows to store it? */
static bool becomes_own_row(cluster *c, const demand *d, const qn_value *value)
{
    enum { DEPTH = 8 };
    qn_dim index[QN_MAX_RANK], operand[QN_MAX_RANK];
    if (c->group.kind != QN_GROUP_LOOP || d->whole || d->indices.n != 1)
        return false;
    const qn_node *reduction = find_reduction(c, value, d->indices.items[0], DEPTH, index);
    return reduction && make_rows(c, reduction, index, false, operand) &&
           reads_own_element(c, d, &value->type);
}

/* ---- contractions and windows ---- */

static bool is_sum(const qn_node *node)
{
    return qn_ops[node->op].class == QN_CONTRACTION || node->op == QN_OP_REDUCE_WINDOW;
}

/* The queries of attention are read once, so the kernel computes them from what they are made of; `index` is the result's. */
static void demand_queries(fuser *f, cluster *c, const qn_node *node, const qn_dim *index)
{
    qn_value *q = node->operands[0];
    const bool heads_last = qn_attr_bool(node, QN_ATTR_HEADS_LAST);
    const qn_dim depth = qn_ispace_var(&c->space, qn_ispace_import(&c->space, q->type.dims[3]), false);
    const qn_dim at[4] = { index[0], index[heads_last ? 2 : 1], index[heads_last ? 1 : 2], depth };
    (void)demand_index(f, q, c, at);
}

/* Is what `value` moves read along its rows, one lane behind the other? */
static bool goes_along_rows(cluster *c, const qn_value *value, const qn_dim *at, qn_dim lane)
{
    qn_dim index[QN_MAX_RANK], operand[QN_MAX_RANK], along, rest;
    memcpy(index, at, sizeof index);
    while (value->node && qn_ix_moves(value->node) && value->node->n_operands > 0 &&
           qn_ix_data_count(value->node) == 0) {
        qn_ix_operand(&c->space, value->node, 0, index, NULL, operand);
        memcpy(index, operand, sizeof index);
        value = value->node->operands[0];
    }
    return qn_ix_affine(&c->space, linear_index(c, &value->type, index), lane, &along, &rest) &&
           qn_dim_is(along, 1);
}

/* The panels of a product that packs them itself are computed from what they are made of. */
static void demand_panels(fuser *f, cluster *c, const qn_node *node, const qn_dim *index)
{
    qn_value *y = node->operands[1];
    const int n_batch = y->type.rank - 3;
    qn_dim at[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < y->type.rank; i++)
        at[i] = i < n_batch ? index[i]
                            : qn_ispace_var(&c->space, qn_ispace_import(&c->space, y->type.dims[i]), false);
    if (goes_along_rows(c, y, at, at[n_batch + 2]))
        (void)demand_index(f, y, c, at);
    else
        demand_whole(f, y, c);
}

/* What follows a contraction element by element runs on its result: the cluster that holds it becomes the contraction's. */
static bool join_sum(fuser *f, const demand *d, qn_node *node)
{
    cluster *c = d->by;
    if (c->closed || c->sums || c->group.kind != QN_GROUP_LOOP ||
        !reads_own_element(c, d, &node->results[0].type))
        return false;
    if (qn_ops[node->op].class == QN_CONTRACTION)
        c->group.kind = QN_GROUP_CONTRACTION;
    c->sums = true;
    c->group.root = node;
    qn_vec_push(f->scratch, &c->nodes, node);
    const bool queries = node->op == QN_OP_ATTENTION_PACKED, panels = qn_gemm_packs(node, f->options);
    if (queries)
        demand_queries(f, c, node, d->indices.items[0]);
    if (panels)
        demand_panels(f, c, node, d->indices.items[0]);
    for (int k = queries; k < node->n_operands; k++)
        if (!panels || k != 1)
            demand_whole(f, node->operands[k], c);
    return true;
}

/* ---- one node ---- */

static void start_cluster(fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    const qn_op_class class = qn_ops[node->op].class;
    /* what joins turns a LOOP cluster into what it needs */
    const qn_group_kind kind = is_loop_node(node) || is_sum(node) || node->op == QN_OP_REDUCE ? QN_GROUP_LOOP
                               : class == QN_CONTROL ? QN_GROUP_CONTROL
                                                     : QN_GROUP_SINGLE;
    cluster *c = new_cluster(f, kind, node);
    if (c->closed) {
        qn_vec_push(f->scratch, &c->nodes, node);
        for (int i = 0; i < node->n_results; i++)
            add_output(f, c, &node->results[i]);
        for (int k = 0; k < node->n_operands; k++)
            if (kind == QN_GROUP_SINGLE && !f->options->no_fusion && is_trivial(node->operands[k]) &&
                !qn_template_keeps(node, f->options)) /* a template reads memory */
                add_reader(f, node->operands[k], c);
            else
                demand_whole(f, node->operands[k], c);
        return;
    }
    /* As if the cluster had been there before, reading the value where it computes it. */
    set_space(c, &value->type);
    demand *d = demand_index(f, value, c, c->vars);
    if (is_loop_node(node)) {
        join(f, c, node);
    } else {
        const bool fits = is_sum(node) ? join_sum(f, d, node) : join_reduction(f, d, node, true);
        QN_ASSERT(fits, "fuse: %s does not fit its own cluster", qn_ops[node->op].name);
    }
    add_output(f, c, value);
}

/* Takes `node` into the cluster of `d` in the way of its class. */
static bool join_by_class(fuser *f, const demand *d, qn_node *node)
{
    if (node->op == QN_OP_REDUCE)
        return join_reduction(f, d, node, false);
    if (is_sum(node))
        return join_sum(f, d, node);
    if (!is_loop_node(node) || d->by->closed || !worth_joining(d, node))
        return false;
    join(f, d->by, node);
    return true;
}

/* The result goes to memory: by a reader that computes it anyway, or by a cluster of its own. */
static void store(fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    if (node->n_results == 1)
        for (const demand *d = f->demands[value->id]; d; d = d->next) {
            if (d->by->closed || !may_store(f, d->by, value))
                continue;
            if (node->op != QN_OP_REDUCE && !reads_own_element(d->by, d, &value->type) &&
                !becomes_own_row(d->by, d, value))
                continue;
            if (join_by_class(f, d, node)) {
                add_output(f, d->by, value);
                return;
            }
        }
    start_cluster(f, node);
}

/* Reads of a reshape that is in memory are reads of what it was made from: it is the same memory. */
static void visit_reshape(fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0], *source = node->operands[0];
    const bool stored = f->stored[value->id];
    for (demand *d = f->demands[value->id]; d; d = d->next)
        if (d->whole)
            demand_whole(f, source, d->by);
        else
            join(f, d->by, node);
    if (stored) {
        f->stored[source->id] = true;
        f->stored[value->id] = false;
    }
}

static void visit(fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    if (node->op == QN_OP_CONSTANT)
        return;
    if (node->op == QN_OP_RESHAPE) {
        visit_reshape(f, node);
        return;
    }
    if (node->n_results != 1 || node->n_regions > 0 || (qn_ops[node->op].flags & QN_FLAG_EFFECT)) {
        start_cluster(f, node);
        return;
    }
    int n_readers = 0;
    bool open = true;
    for (const demand *d = f->demands[value->id]; d; d = d->next) {
        n_readers++;
        open &= !d->whole;
    }
    if (n_readers == 0 && !f->stored[value->id])
        return; /* dead */
    if (f->options->no_fusion || qn_blas_takes(node, f->options)) {
        start_cluster(f, node);
        return;
    }
    /* Closed readers compute what is trivial themselves. */
    if (open && !f->stored[value->id]) {
        bool all = true;
        const bool shared = n_readers > 1;
        const int cost = copy_cost(node);
        if (shared)
            all = is_loop_node(node) && (cost == 0 || n_readers <= MAX_COPIES);
        for (const demand *d = f->demands[value->id]; d && all; d = d->next) {
            if (d->by->closed) {
                all = is_trivial(value);
                continue;
            }
            if (shared)
                all = worth_joining(d, node) && (cost == 0 || d->copied + cost <= COPY_BUDGET);
        }
        if (all && shared) {
            for (demand *d = f->demands[value->id]; d; d = d->next) {
                d->copied += cost;
                join(f, d->by, node);
            }
            return;
        }
        if (all && f->demands[value->id]->by->closed) {
            join(f, f->demands[value->id]->by, node);
            return;
        }
        if (all && join_by_class(f, f->demands[value->id], node))
            return;
    }
    store(f, node);
}

/* ---- the result ---- */

/* What a cluster reads that it doesn't compute. */
static void find_inputs(fuser *f)
{
    const int n = f->graph->n_values;
    int *inside = QN_NEW_ARRAY(f->scratch, int, n);
    for (size_t i = 0; i < f->clusters.n; i++) {
        cluster *c = f->clusters.items[i];
        for (size_t k = 0; k < c->nodes.n; k++)
            for (int r = 0; r < c->nodes.items[k]->n_results; r++)
                inside[c->nodes.items[k]->results[r].id] = c->number + 1;
        for (size_t k = c->nodes.n; k-- > 0;)
            for (int o = 0; o < c->nodes.items[k]->n_operands; o++) {
                qn_value *value = c->nodes.items[k]->operands[o];
                qn_scalar s;
                if (inside[value->id] == c->number + 1 ||
                    (c->group.kind != QN_GROUP_CONTROL && in_memory_already(value) && value->node &&
                     qn_value_splat(value, &s)))
                    continue;
                inside[value->id] = c->number + 1; /* once */
                qn_vec_push(f->scratch, &c->inputs, value);
            }
    }
}

static void emit_group(fuser *f, cluster *c, qn_groups *out_groups)
{
    qn_group *g = &c->group;
    /* in the order of the graph: clusters grew backwards */
    g->n_nodes = (int)c->nodes.n;
    g->nodes = QN_NEW_ARRAY(f->arena, qn_node *, c->nodes.n);
    for (size_t i = 0; i < c->nodes.n; i++)
        g->nodes[i] = c->nodes.items[c->nodes.n - 1 - i];
    g->n_inputs = (int)c->inputs.n;
    g->inputs = qn_arena_copy(f->arena, c->inputs.items, c->inputs.n * sizeof(qn_value *));
    g->n_outputs = (int)c->outputs.n;
    g->outputs = qn_arena_copy(f->arena, c->outputs.items, c->outputs.n * sizeof(qn_value *));
    if (!c->closed) {
        qn_dim *dims = QN_NEW_ARRAY(f->arena, qn_dim, g->n_dims);
        for (int i = 0; i < g->n_dims; i++)
            dims[i] = qn_dim_import(f->graph->module->dims, qn_ispace_meaning(&c->space, c->dims[i]));
        g->dims = dims;
        if (g->kind == QN_GROUP_ROWS)
            g->is_row = qn_arena_copy(f->arena, c->is_row, sizeof c->is_row);
    }
    qn_vec_push(f->arena, out_groups, *g);
}

/* Depth first: what a cluster reads comes before it. */
static void order(fuser *f, cluster *c, qn_groups *out_groups)
{
    if (c->order)
        return;
    c->order = 1;
    for (size_t i = 0; i < c->inputs.n; i++) {
        cluster *maker = f->maker[qn_value_memory(c->inputs.items[i])->id];
        if (maker && maker != c)
            order(f, maker, out_groups);
    }
    emit_group(f, c, out_groups);
}

qn_status qn_fuse(qn_graph *graph, const qn_pass_options *options, qn_arena *arena, qn_groups *out_groups,
                  qn_diags *diags)
{
    (void)diags;
    qn_arena *scratch = qn_arena_new();
    const int n = qn_graph_number(graph);
    fuser f = { .graph = graph, .arena = arena, .scratch = scratch, .options = options };
    f.demands = QN_NEW_ARRAY(scratch, demand *, n);
    f.stored = QN_NEW_ARRAY(scratch, bool, n);
    f.maker = QN_NEW_ARRAY(scratch, cluster *, n);
    for (int i = 0; i < graph->n_outputs; i++)
        f.stored[graph->outputs[i]->id] = true;
    for (qn_node *node = graph->last; node; node = node->prev)
        visit(&f, node);
    find_inputs(&f);
    *out_groups = (qn_groups){ 0 };
    for (size_t i = f.clusters.n; i-- > 0;) /* the last cluster has the first nodes */
        order(&f, f.clusters.items[i], out_groups);
    qn_order_groups(graph, out_groups);
    qn_arena_free(scratch);
    return QUERN_OK;
}
