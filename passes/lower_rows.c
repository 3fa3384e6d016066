/* ROWS groups: reductions over the same axes, what they are made from and what is made from them, in one kernel.
 *
 * A task does some rows; a row takes as many passes over its columns as reductions depend on each other. Softmax:
 *
 *   for %r = … {
 *     %m = for %c vector carried max { load x[r, c] }                         pass 0
 *     %s = for %c vector carried sum { %e = exp(x[r, c] - %m)  row[c] = %e }  pass 1, staging what pass 2 needs again
 *     %d = 1 / …                                                              values of the row: before the next loop
 *     for %c vector { y[r, c] = row[c] / %s }                                 pass 2
 *   }
 *
 * Dear values that several passes need are staged in a local buffer when a row fits into it, others are computed again.
 * Where memory runs along the rows instead of the columns (a reduction over the leading axis, or over the positions of channels that
 * lie in blocks), or rows are very short, the loop over rows is the vector one, and each lane goes over its columns one after the other.
 *
 * As in lower_loop.c the kernel is rehearsed first, with one variable an axis: to merge axes, to see what is computed in
 * several passes, and to choose the direction. */
#include <string.h>

#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/rows.h"

enum {
    DEAR = 8,                   /* cost of what is rather staged than computed twice */
    STAGE_BYTES = 64 << 10,     /* of one staged row */
    STAGE_TOTAL = 160 << 10,    /* of all together: below QN_LOCAL_LIMIT */
    TERMS_BYTES = 64 << 10,     /* of the terms of a row's ordered sums */
    GPU_STAGE_TOTAL = 32 << 10, /* in shared memory, beside what reductions need there */
    SHORT_ROW = 8,              /* columns; shorter ones don't fill a vector */
    LEAST_ROWS = 64,            /* of a task when rows are lanes */
    OVERLAP_ROWS = 8,           /* of a task from which the passes of neighbours are overlapped */
    PAGE_BYTES = 4096,
    NEAR_BYTES = 2048,   /* how far streamed loads run ahead at least */
    FAR_BYTES = 16 << 10 /* and at most: rows that are longer are asked for piece by piece */
};

/* What the rehearsal finds out about a value, by value id. */
typedef struct trace {
    unsigned passes; /* bit p: computed for each column in pass p */
    bool scattered;  /* at several indices or under a condition: can't be staged */
    const qn_dim *index;
    qn_kbuffer *staged;
} trace;

typedef struct row_kernel {
    qn_lowering *lowering;
    const qn_group *group;
    qn_writer *w;
    qn_nest row_nest, col_nest;
    bool rows_are_lanes;
    bool in_blocks; /* neighbouring rows are neighbours in memory only within a vector: channels in blocks */
    int64_t rows_a_task;
    int *levels; /* by value id: how many passes have to be over before it can be computed */
    int n_passes;
    trace *traces;
    qn_loops row_loops;
    qn_dim col_vars[QN_MAX_RANK];
    qn_rows rows;
    qn_dim dims[QN_MAX_RANK], index[QN_MAX_RANK];         /* of all axes of the group */
    qn_dim row_dims[QN_MAX_RANK], row_index[QN_MAX_RANK]; /* of the rows */
    int n_row_dims;
    qn_kvalue **results; /* by value id: of reductions, for this row */
    int64_t terms_bytes; /* of buffers for terms of ordered sums */
    bool rehearsing;
} row_kernel;

/* ---- levels ---- */

static int level_of(const row_kernel *k, const qn_value *value)
{
    return value->node ? k->levels[value->id] : 0;
}

static void find_levels(row_kernel *k)
{
    k->n_passes = 1;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_node *node = k->group->nodes[i];
        int level = 0;
        for (int o = 0; o < node->n_operands; o++)
            level = level_of(k, node->operands[o]) > level ? level_of(k, node->operands[o]) : level;
        k->levels[node->results[0].id] = level + (node->op == QN_OP_REDUCE);
        if (level + 1 > k->n_passes)
            k->n_passes = level + 1;
    }
}

/* ---- geometry ---- */

/* Has it an element for each column? Rows of one column have values of the row only. */
static bool is_full(row_kernel *k, const qn_value *value)
{
    qn_dims *dims = k->w->space.dims;
    if (qn_dim_is(k->rows.n_cols, 1))
        return false;
    qn_dim n = qn_dim_const(dims, 1);
    for (int i = 0; i < value->type.rank; i++)
        n = qn_dim_mul(dims, n, qn_ispace_import(&k->w->space, value->type.dims[i]));
    return n == qn_dim_mul(dims, k->rows.n_rows, k->rows.n_cols);
}

/* Where the kernel makes an output: at the current element or, one a row, at the current row. */
static void output_index(row_kernel *k, const qn_value *value, qn_dim *out_index)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&k->w->space, &value->type, dims);
    if (is_full(k, value))
        qn_ix_reshape(&k->w->space, k->group->n_dims, k->dims, k->index, value->type.rank, dims, out_index);
    else
        qn_ix_reshape(&k->w->space, k->n_row_dims, k->row_dims, k->row_index, value->type.rank, dims,
                      out_index);
}

/* Axes of the group from the variables of the nests. */
static void set_geometry(row_kernel *k, const qn_dim *row_vars)
{
    qn_ispace *space = &k->w->space;
    const qn_group *g = k->group;
    qn_dim nest_dims[QN_MAX_RANK], part_dims[QN_MAX_RANK], part_index[QN_MAX_RANK];
    for (int i = 0; i < g->n_dims; i++)
        k->dims[i] = qn_ispace_import(space, g->dims[i]);
    for (int is_row = 0; is_row < 2; is_row++) {
        const qn_nest *nest = is_row ? &k->row_nest : &k->col_nest;
        int n = 0;
        for (int i = 0; i < nest->n; i++)
            nest_dims[i] = qn_ispace_import(space, nest->dims[i]);
        for (int i = 0; i < g->n_dims; i++)
            if (g->is_row[i] == is_row)
                part_dims[n++] = k->dims[i];
        qn_ix_reshape(space, nest->n, nest_dims, is_row ? row_vars : k->col_vars, n, part_dims, part_index);
        for (int i = 0, at = 0; i < g->n_dims; i++)
            if (g->is_row[i] == is_row)
                k->index[i] = part_index[at++];
        if (is_row) {
            k->n_row_dims = n;
            memcpy(k->row_dims, part_dims, sizeof part_dims);
            memcpy(k->row_index, part_index, sizeof part_index);
        }
    }
    qn_rows_set(space, &k->rows, g->n_dims, k->dims, k->index, g->is_row);
}

/* ---- values across passes ---- */

static qn_kvalue *fetch_result(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    (void)w, (void)index;
    const row_kernel *k = user;
    QN_ASSERT(k->results[value->id], "lower: a reduction is read before its pass");
    return k->results[value->id];
}

static qn_kvalue *fetch_staged(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    (void)index;
    const row_kernel *k = user;
    return qn_writer_load(w, k->traces[value->id].staged, k->rows.col);
}

static bool uses_columns(const row_kernel *k, int rank, const qn_dim *index)
{
    for (int i = 0; i < rank; i++)
        for (int c = 0; c < k->col_nest.n; c++)
            if (k->col_vars[c]->kind == QN_DIM_SYMBOL && qn_ix_uses(index[i], k->col_vars[c]))
                return true;
    return false;
}

/* The writer has computed a value. */
static void computed(qn_writer *w, void *user, const qn_value *value, const qn_dim *index, qn_kvalue *result)
{
    row_kernel *k = user;
    const int rank = value->type.rank;
    trace *t = &k->traces[value->id];
    if (k->rehearsing) {
        if (!uses_columns(k, rank, index)) {
            t->scattered |= is_full(k, value); /* one column of it: a gather's */
            return;
        }
        t->passes |= 1u << w->pass;
        if (w->mask || (t->index && memcmp(t->index, index, (size_t)rank * sizeof *index) != 0))
            t->scattered = true;
        t->index = qn_arena_copy(w->arena, index, (size_t)rank * sizeof *index);
    } else if (t->staged && w->pass == __builtin_ctz(t->passes)) {
        qn_writer_store(w, t->staged, k->rows.col, result);
    }
}

static bool is_candidate(const row_kernel *k, const qn_value *value)
{
    const trace *t = &k->traces[value->id];
    return value->node && !t->scattered && __builtin_popcount(t->passes) > 1 &&
           qn_node_cost(value->node) >= DEAR;
}

/* Is it still needed in a pass after its first, when all candidates are staged? */
static bool needed_again(const row_kernel *k, const qn_value *value)
{
    const unsigned later = k->traces[value->id].passes & (k->traces[value->id].passes - 1);
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_node *node = k->group->nodes[i];
        const trace *t = &k->traces[node->results[0].id];
        bool reads = false;
        for (int o = 0; o < node->n_operands; o++)
            reads |= node->operands[o] == value;
        if (!reads)
            continue;
        /* passes in which the reader computes: a reduction in one, a staged value in its first */
        unsigned passes = t->passes;
        if (node->op == QN_OP_REDUCE)
            passes = 1u << level_of(k, node->operands[0]);
        else if (is_candidate(k, &node->results[0]))
            passes &= ~(passes - 1);
        if (passes & later)
            return true;
    }
    for (int i = 0; i < k->group->n_outputs; i++)
        if (k->group->outputs[i] == value && (later >> level_of(k, value) & 1))
            return true;
    return false;
}

static void stage(row_kernel *k)
{
    const int64_t columns = k->rows.n_cols->max;
    int64_t total = 0;
    const qn_machine *machine = k->lowering->options->machine;
    const bool gpu = machine && machine->gpu;
    const int64_t most = gpu ? GPU_STAGE_TOTAL : STAGE_BYTES;
    const int64_t most_of_all = gpu ? GPU_STAGE_TOTAL : STAGE_TOTAL;
    if (k->rows_are_lanes)
        return;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_value *value = &k->group->nodes[i]->results[0];
        if (!is_candidate(k, value) || !needed_again(k, value))
            continue;
        const int64_t size = (int64_t)qn_dtype_bytes(value->type.dtype);
        if (columns > most / size || total + columns * size > most_of_all)
            continue;
        total += columns * size;
        k->traces[value->id].staged =
            qn_kernel_add_local(k->w->kernel, "row", qn_dtype_carrier(value->type.dtype), columns);
    }
}

/* ---- one pass ---- */

typedef struct reduction {
    qn_node *node;
    qn_kind kind;
    qn_dtype dtype; /* of the accumulator */
    qn_dim index[QN_MAX_RANK];
} reduction;

static bool spreads_nan(qn_op op)
{
    switch (op) {
    case QN_OP_ADD:
    case QN_OP_SUB:
    case QN_OP_MUL:
    case QN_OP_DIV:
    case QN_OP_NEG:
    case QN_OP_LOG:
    case QN_OP_BROADCAST:
    case QN_OP_RESHAPE: return true;
    default: return false;
    }
}

/* May this maximum leave NaN out? Where it only shifts the operands of exp, a sum of which is in all that the kernel makes, NaN
 * comes by that way: softmax and its logarithm. Then it is one instruction instead of three. */
static bool leaves_nan_out(const row_kernel *k, const qn_node *max)
{
    const qn_group *g = k->group;
    if (qn_attr_reduce_kind(max) != QN_KIND_MAX || !qn_dtype_is_float(max->results[0].type.dtype))
        return false;
    bool *has_sum = QN_NEW_ARRAY(k->w->arena, bool, k->lowering->scope->graph->n_values); /* by value id */
    for (int i = 0; i < g->n_nodes; i++) {
        const qn_node *node = g->nodes[i];
        bool *has = &has_sum[node->results[0].id];
        if (node->op == QN_OP_REDUCE && qn_attr_reduce_kind(node) == QN_SUM) {
            const qn_node *exp = node->operands[0]->node;
            *has = exp && exp->op == QN_OP_EXP && qn_maximum_taken(exp->operands[0]) == max;
        }
        for (int o = 0; o < node->n_operands && spreads_nan(node->op); o++)
            *has |= has_sum[node->operands[o]->id];
    }
    for (int i = 0; i < g->n_outputs; i++)
        if (!has_sum[g->outputs[i]->id])
            return false;
    return true;
}

/* Reassociating a sum is not strict; its columns then go one after the other. */
static bool is_ordered(const row_kernel *k, const reduction *r)
{
    return (r->kind == QN_SUM || r->kind == QN_PROD) && qn_dtype_is_float(r->dtype) &&
           k->lowering->options->math == QN_MATH_STRICT;
}

static qn_ktag column_tag(const row_kernel *k, int n, const reduction *reductions)
{
    if (k->rows_are_lanes)
        return QN_TAG_SERIAL;
    for (int i = 0; i < n; i++)
        if (is_ordered(k, &reductions[i]))
            return QN_TAG_SERIAL;
    return QN_TAG_VECTOR;
}

/* A lane adds up all columns of its row, an image's positions after another's: a sum for each image keeps errors small, as sums over
 * lanes do elsewhere. */
static bool sums_by_parts(const row_kernel *k, int n, const reduction *reductions)
{
    for (int i = 0; i < n; i++)
        if (is_ordered(k, &reductions[i]))
            return false;
    return k->in_blocks && n > 0 && k->col_nest.n > 1;
}

/* Puts ordered reductions last and gives the number of the others, where the terms of the former are better computed by vectors,
 * into buffers, and added up behind that; otherwise n. */
static int split_ordered(row_kernel *k, int n, reduction *reductions, qn_kbuffer **out_terms)
{
    const qn_machine *machine = k->lowering->options->machine;
    const int64_t columns = k->rows.n_cols->max;
    int64_t bytes = k->terms_bytes;
    int n_free = 0;
    if (k->rehearsing || k->rows_are_lanes || !machine || machine->gpu || columns > STAGE_BYTES)
        return n;
    for (int i = 0; i < n; i++) {
        const qn_value *x = reductions[i].node->operands[0];
        if (!is_ordered(k, &reductions[i])) {
            const reduction first = reductions[i];
            memmove(&reductions[n_free + 1], &reductions[n_free], (size_t)(i - n_free) * sizeof first);
            reductions[n_free++] = first;
        } else if (k->traces[x->id].index) { /* it is computed, not only loaded */
            bytes += columns * (int64_t)qn_dtype_bytes(reductions[i].dtype);
        } else {
            return n;
        }
    }
    if (bytes > TERMS_BYTES)
        return n;
    k->terms_bytes = bytes;
    for (int i = n_free; i < n; i++) {
        const qn_value *x = reductions[i].node->operands[0];
        const trace *t = &k->traces[x->id];
        out_terms[i] =
            t->staged && t->staged->dtype == reductions[i].dtype && __builtin_ctz(t->passes) == k->w->pass
                ? t->staged
                : qn_kernel_add_local(k->w->kernel, "terms", reductions[i].dtype, columns);
    }
    return n_free;
}

/* The sums of terms that are there, in the order of the columns. */
static void add_up(row_kernel *k, int n, const reduction *reductions, qn_kbuffer *const *terms,
                   qn_kvalue **values)
{
    qn_writer *w = k->w;
    qn_writer_loop loops[QN_MAX_RANK];
    const int n_cols = k->col_nest.n;
    qn_writer_open_nest(w, n_cols, k->col_vars, QN_TAG_SERIAL, n, values, NULL, loops);
    const qn_writer_loop *innermost = &loops[n_cols > 0 ? n_cols - 1 : 0];
    for (int i = 0; i < n; i++)
        values[i] = qn_writer_combine(w, reductions[i].kind, innermost->carried[i],
                                      qn_writer_load(w, terms[i], k->rows.col));
    qn_writer_close_nest(w, n_cols, loops, values);
    for (int i = 0; i < n; i++)
        values[i] = loops[0].carried[i];
}

static void store_output(row_kernel *k, qn_value *value, const qn_dim *index, qn_kvalue *element)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&k->w->space, &value->type, dims);
    qn_kbuffer *to = qn_writer_argument(k->w, qn_lower_buffer(k->lowering, value), false, true);
    qn_writer_store(k->w, to, qn_ix_linear(&k->w->space, value->type.rank, dims, index), element);
}

/* For the loop over columns that was opened last. A row stays in the first cache for its passes; the next row is asked for
 * in one of them, the second where there are three: the first does little else than wait for memory, the last stores. */
static void stream_columns(row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    const int64_t columns = k->rows.n_cols->max;
    const int64_t size = (int64_t)qn_dtype_bytes(k->group->outputs[0]->type.dtype);
    if (k->rows_are_lanes || k->col_nest.n == 0)
        return;
    w->stream = k->col_vars[k->col_nest.n - 1];
    if (columns > FAR_BYTES / size)
        w->ahead = NEAR_BYTES / size;
    else if (pass == (k->n_passes > 2 ? 1 : 0))
        w->ahead = columns > NEAR_BYTES / size ? columns : NEAR_BYTES / size;
    else
        w->ahead = 0;
}

/* A pass that makes outputs of what was staged has nothing to do but store: the pass that stages, busy computing, has the
 * lines fetched. */
static void fetch_outputs(row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    bool stages = false;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const trace *t = &k->traces[k->group->nodes[i]->results[0].id];
        stages |= t->staged && __builtin_ctz(t->passes) == pass;
    }
    for (int i = 0; i < k->group->n_outputs && stages; i++) {
        qn_value *value = k->group->outputs[i];
        qn_dim dims[QN_MAX_RANK], at[QN_MAX_RANK];
        if (!is_full(k, value) || level_of(k, value) <= pass)
            continue;
        output_index(k, value, at);
        qn_ispace_dims(&w->space, &value->type, dims);
        qn_kbuffer *to = qn_writer_argument(w, qn_lower_buffer(k->lowering, value), false, true);
        qn_writer_prefetch(w, to, qn_ix_linear(&w->space, value->type.rank, dims, at));
    }
}

/* The reductions that a pass computes: gives their number. */
static int reductions_of(row_kernel *k, int pass, reduction *out)
{
    qn_writer *w = k->w;
    int n = 0;
    for (int i = 0; i < k->group->n_nodes; i++) {
        qn_node *node = k->group->nodes[i];
        if (node->op != QN_OP_REDUCE || level_of(k, node->operands[0]) != pass)
            continue;
        reduction *r = &out[n++];
        *r = (reduction){ .node = node,
                          .kind = qn_attr_reduce_kind(node),
                          .dtype = qn_accumulator(node->operands[0]->type.dtype) };
        qn_dim kept_dims[QN_MAX_RANK], kept[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &node->results[0].type, kept_dims);
        qn_ix_reshape(&w->space, k->n_row_dims, k->row_dims, k->row_index, node->results[0].type.rank,
                      kept_dims, kept);
        const bool fits = qn_rows_operand(&w->space, &k->rows, node, kept, r->index);
        QN_ASSERT(fits, "lower: a reduction does not fit the rows of its group");
    }
    return n;
}

static void write_pass(row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    const qn_group *g = k->group;
    reduction *reductions = QN_NEW_ARRAY(w->arena, reduction, g->n_nodes);
    qn_value **outputs = QN_NEW_ARRAY(w->arena, qn_value *, g->n_outputs);
    w->pass = pass;
    const int n = reductions_of(k, pass, reductions);
    int n_outputs = 0;
    for (int i = 0; i < g->n_outputs; i++)
        if (level_of(k, g->outputs[i]) == pass && is_full(k, g->outputs[i]))
            outputs[n_outputs++] = g->outputs[i];
    if (n == 0 && n_outputs == 0)
        return;

    qn_kbuffer **terms = QN_NEW_ARRAY(w->arena, qn_kbuffer *, n + 1);
    const int n_carried = split_ordered(k, n, reductions, terms);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, n + 1);
    qn_kind *kinds = QN_NEW_ARRAY(w->arena, qn_kind, n + 1);
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)n_outputs + 1, sizeof *at);
    for (int i = 0; i < n; i++) {
        kinds[i] = reductions[i].kind;
        values[i] = qn_kb_const(&w->b, (qn_ktype){ reductions[i].dtype, 1 },
                                qn_neutral(reductions[i].kind, reductions[i].dtype));
        qn_writer_prepare(w, reductions[i].node->operands[0], reductions[i].index);
    }
    for (int i = 0; i < n_outputs; i++) {
        output_index(k, outputs[i], at[i]);
        qn_writer_prepare(w, outputs[i], at[i]);
    }
    qn_writer_loop loops[QN_MAX_RANK];
    const int n_cols = k->col_nest.n;
    const bool split = sums_by_parts(k, n_carried, reductions);
    qn_kvalue **initial = qn_arena_copy(w->arena, values, (size_t)(n + 1) * sizeof(*values));
    qn_writer_open_nest(w, n_cols - split, k->col_vars, column_tag(k, n_carried, reductions), n_carried,
                        values, kinds, loops);
    if (split)
        loops[n_cols - 1] =
            qn_writer_for_all(w, k->col_vars[n_cols - 1], QN_TAG_SERIAL, n_carried, initial, NULL);
    qn_writer_loop *innermost = &loops[n_cols > 0 ? n_cols - 1 : 0];
    stream_columns(k, pass);
    fetch_outputs(k, pass);
    for (int i = n_carried; i < n; i++) {
        qn_kvalue *x = qn_writer_value(w, reductions[i].node->operands[0], reductions[i].index);
        if (terms[i] != k->traces[reductions[i].node->operands[0]->id].staged)
            qn_writer_store(w, terms[i], k->rows.col, qn_kb_convert(&w->b, reductions[i].dtype, x));
    }
    for (int i = 0; i < n_carried; i++) {
        qn_kvalue *x = qn_writer_value(w, reductions[i].node->operands[0], reductions[i].index);
        qn_kvalue *old = innermost->carried[i], *new = qn_kb_convert(&w->b, reductions[i].dtype, x);
        values[i] = leaves_nan_out(k, reductions[i].node)
                        ? qn_kb_select(&w->b, qn_kb_compare(&w->b, QN_GT, new, old), new, old)
                        : qn_writer_combine(w, kinds[i], old, new);
    }
    qn_kvalue **stored = QN_NEW_ARRAY(w->arena, qn_kvalue *, n_outputs + 1);
    for (int i = 0; i < n_outputs; i++)
        stored[i] = qn_writer_value(w, outputs[i], at[i]);
    for (int i = 0; i < n_outputs; i++)
        store_output(k, outputs[i], at[i], stored[i]);
    w->stream = NULL;
    if (split) {
        qn_writer_end_for(w, innermost, values);
        for (int i = 0; i < n_carried; i++)
            values[i] = qn_writer_combine(w, kinds[i], loops[n_cols - 2].carried[i], innermost->carried[i]);
    }
    qn_writer_close_nest(w, n_cols - split, loops, values);
    for (int i = 0; i < n_carried; i++)
        values[i] = loops[0].carried[i];
    if (n_carried < n)
        add_up(k, n - n_carried, reductions + n_carried, terms + n_carried, values + n_carried);
    for (int i = 0; i < n; i++) {
        const qn_value *result = &reductions[i].node->results[0];
        k->results[result->id] = qn_kb_convert(&w->b, result->type.dtype, values[i]);
        qn_writer_bind(w, result, fetch_result, k);
    }
    for (int i = 0; i < g->n_nodes; i++) {
        const trace *t = &k->traces[g->nodes[i]->results[0].id];
        if (t->staged && __builtin_ctz(t->passes) == pass)
            qn_writer_bind(w, &g->nodes[i]->results[0], fetch_staged, k);
    }
}

static void write_row(row_kernel *k)
{
    qn_writer *w = k->w;
    for (int pass = 0; pass < k->n_passes; pass++)
        write_pass(k, pass);
    for (int i = 0; i < k->group->n_outputs; i++) {
        qn_value *value = k->group->outputs[i];
        qn_dim at[QN_MAX_RANK];
        if (is_full(k, value))
            continue;
        output_index(k, value, at);
        store_output(k, value, at, qn_writer_value(w, value, at));
    }
}

/* ---- the kernel ---- */

static bool stages(const row_kernel *k)
{
    for (int i = 0; i < k->group->n_nodes; i++)
        if (k->traces[k->group->nodes[i]->results[0].id].staged)
            return true;
    return false;
}

/* Between two passes over short rows everything waits for a sum over lanes: the passes of other rows fill that time. Rows of whole
 * pages lie at the same places of their pages: what is stored to one holds up loads from others that are not aligned. Then it
 * pays only where something dear is computed (layer norm of NumPy's arrays loses a fifth). */
static qn_ktag row_tag(const row_kernel *k)
{
    const int64_t size = (int64_t)qn_dtype_bytes(k->group->outputs[0]->type.dtype);
    const qn_dim columns = k->rows.n_cols;
    if (k->rows_are_lanes)
        return QN_TAG_VECTOR;
    if (k->rows_a_task < OVERLAP_ROWS || columns->max > FAR_BYTES / size)
        return QN_TAG_SERIAL;
    return !qn_dim_divisible(columns, PAGE_BYTES / size) || stages(k) ? QN_TAG_OVERLAP : QN_TAG_SERIAL;
}

/* Lanes of the loop over rows; 0: those of a vector. A single sum of each goes over as many vectors at once as cover a few lines of
 * memory: one vector alone would wait for each addition, and take a line of every page. */
static int lanes_of_rows(const row_kernel *k)
{
    enum { VECTORS = 4, MOST = 64 };
    const qn_machine *machine = k->lowering->options->machine;
    int n_sums = 0;
    for (int i = 0; i < k->group->n_nodes; i++)
        n_sums += k->group->nodes[i]->op == QN_OP_REDUCE;
    if (!machine || machine->gpu || k->rehearsing || k->in_blocks || n_sums != 1 || k->row_nest.n == 0)
        return 0;
    const qn_dim rows = k->row_nest.dims[k->row_nest.n - 1];
    const int lanes = machine->vector_bytes / 4 * VECTORS;
    return lanes <= MOST && qn_dim_divisible(rows, lanes) ? lanes : 0;
}

static void write_kernel(row_kernel *k)
{
    qn_writer *w = k->w;
    qn_writer_loop open[QN_MAX_RANK];
    const int n = k->row_loops.n;
    for (int i = 0; i < k->group->n_inputs; i++)
        qn_writer_bind_input(w, k->group->inputs[i]);
    for (int i = 0; i < k->col_nest.n; i++)
        k->col_vars[i] = qn_ispace_var(&w->space, qn_ispace_import(&w->space, k->col_nest.dims[i]), false);
    set_geometry(k, k->row_loops.index);
    w->computed = computed;
    w->computed_user = k;
    if (!k->rehearsing)
        stage(k);
    for (int i = 0; i < n; i++)
        open[i] = qn_planned_loop_open(w, &k->row_loops.loops[i], i == n - 1 ? row_tag(k) : QN_TAG_SERIAL);
    if (k->rows_are_lanes && n > 0 && open[n - 1].inst)
        open[n - 1].inst->lanes = lanes_of_rows(k);
    write_row(k);
    for (int i = n - 1; i >= 0; i--)
        qn_writer_end_for(w, &open[i], NULL);
}

/* May the number be another one in another iteration? */
static bool varies(const qn_kvalue *x, int depth)
{
    if (!x || !x->inst || x->inst->n_blocks > 0 || depth == 0)
        return true;
    for (int i = 0; i < x->inst->n_operands; i++)
        if (varies(x->inst->operands[i], depth - 1))
            return true;
    return false;
}

/* Does an address depend on numbers that are not the same in all rows and columns? */
static bool looks_up(const qn_writer *w, qn_dim linear)
{
    enum { DEPTH = 6 };
    for (size_t i = 0; i < w->space.vars.n; i++) {
        const qn_var *var = &w->space.vars.items[i];
        if (var->data && qn_ix_uses(linear, var->symbol) && varies(var->value, DEPTH))
            return true;
    }
    return false;
}

/* Lanes of vectors of the data that most tensors have. */
static int vector_lanes(const row_kernel *k)
{
    const qn_machine *machine = k->lowering->options->machine;
    return machine && !machine->gpu ? machine->vector_bytes / 4 : 0;
}

/* Are neighbouring values of the variable neighbours in memory, from each multiple of `lanes` to the next? Channels in blocks are:
 * floordiv(c, 16)*1024 + mod(c, 16). */
static bool has_blocks(qn_ispace *space, qn_dim linear, qn_dim var, int lanes)
{
    qn_dim coefficient, rest;
    if (lanes < 2 || var->kind != QN_DIM_SYMBOL || !qn_ix_uses(linear, var))
        return false;
    const qn_dim width = qn_dim_const(space->dims, lanes);
    const qn_dim block =
        qn_ispace_var(space, qn_dim_ceildiv(space->dims, qn_ispace_var_of(space, var)->extent, width), false);
    const qn_dim lane = qn_ispace_var(space, width, false);
    qn_dim *values = QN_NEW_ARRAY(space->arena, qn_dim, var->symbol + 1);
    values[var->symbol] = qn_dim_add(space->dims, qn_dim_mul(space->dims, block, width), lane);
    const qn_dim there = qn_dim_substitute(space->dims, linear, values, var->symbol + 1);
    return qn_ix_affine(space, there, lane, &coefficient, &rest) && qn_dim_is(coefficient, 1);
}

/* How many accesses have neighbours in memory for neighbouring values of the variable, within blocks of `lanes` at least. What is
 * looked up counts as several: in the other direction each lane has a place of its own. */
static int contiguous_along(qn_writer *w, qn_dim var, int n_cols, const qn_dim *col_vars, int lanes,
                            bool *in_blocks)
{
    enum { LOOKUP = 8 };
    int n = 0;
    for (size_t i = 0; i < w->accesses.n; i++) {
        qn_dim coefficient, rest;
        const qn_access *a = &w->accesses.items[i];
        const bool found = looks_up(w, a->linear);
        bool each_column = n_cols == 0 || found;
        for (int k = 0; k < n_cols; k++)
            each_column |= qn_ix_uses(a->linear, col_vars[k]);
        if (!a->buffer || !each_column || a->buffer->space != QN_SPACE_ARGUMENT)
            continue;
        const bool affine = qn_ix_affine(&w->space, a->linear, var, &coefficient, &rest);
        if (affine ? !qn_dim_is(coefficient, 1) : !has_blocks(&w->space, a->linear, var, lanes))
            continue;
        n += found ? LOOKUP : 1;
        *in_blocks |= !affine;
    }
    return n;
}

static bool choose_lanes(row_kernel *k, qn_writer *rehearsal, const qn_nest *rows, const qn_nest *cols,
                         const qn_dim *row_vars, const qn_dim *col_vars)
{
    bool ignored = false;
    if (rows->n == 0 || cols->n == 0)
        return rows->n > 0;
    const bool is_short = cols->dims[cols->n - 1]->max < SHORT_ROW;
    const int n_cols = is_short ? 0 : cols->n; /* what a row has once counts where it is short */
    const int along_rows =
        contiguous_along(rehearsal, row_vars[rows->n - 1], n_cols, col_vars, vector_lanes(k), &k->in_blocks);
    const int along_cols = contiguous_along(rehearsal, col_vars[cols->n - 1], n_cols, col_vars, 0, &ignored);
    return along_rows != along_cols ? along_rows > along_cols : is_short;
}

static void rehearse(row_kernel *k, qn_arena *scratch, const char *name)
{
    qn_writer w;
    qn_dim row_vars[QN_MAX_RANK];
    qn_writer_init(&w, k->lowering, name, scratch);
    k->w = &w;
    k->rehearsing = true;
    for (int i = 0; i < k->row_nest.n; i++) {
        row_vars[i] = k->row_loops.index[i] =
            qn_ispace_var(&w.space, qn_ispace_import(&w.space, k->row_nest.dims[i]), false);
        k->row_loops.loops[k->row_loops.n++] = (qn_planned_loop){ .var = row_vars[i] };
    }
    write_kernel(k);
    const qn_nest rows = k->row_nest, cols = k->col_nest;
    qn_nest_merge(&w, &k->row_nest, row_vars);
    qn_nest_merge(&w, &k->col_nest, k->col_vars);
    k->rows_are_lanes = choose_lanes(k, &w, &rows, &cols, row_vars, k->col_vars);
    k->in_blocks &= k->rows_are_lanes;
    k->rehearsing = false;
}

qn_status qn_lower_rows(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    const int n_values = l->scope->graph->n_values;
    row_kernel k = { .lowering = l, .group = group };
    k.levels = QN_NEW_ARRAY(scratch, int, n_values);
    k.traces = QN_NEW_ARRAY(scratch, trace, n_values);
    k.results = QN_NEW_ARRAY(scratch, qn_kvalue *, n_values);
    double columns = 1;
    for (int i = 0; i < group->n_dims; i++) {
        qn_nest *nest = group->is_row[i] ? &k.row_nest : &k.col_nest;
        if (qn_dim_is(group->dims[i], 1))
            continue;
        nest->dims[nest->n++] = qn_lower_dim(l, group->dims[i]);
        columns *= group->is_row[i] ? 1 : qn_likely_extent(group->dims[i]);
    }
    find_levels(&k);
    QN_ASSERT(k.n_passes <= QN_ROW_PASSES, "lower: %d passes over a row", k.n_passes);
    const char *name = qn_group_kernel_name(group, scratch);
    rehearse(&k, scratch, name);

    qn_writer w;
    qn_writer_init(&w, l, name, scratch);
    k.w = &w;
    const double grain = (double)qn_task_elements(l, group) / (columns < 1 ? 1 : columns);
    const int64_t least = !k.rows_are_lanes ? 1 : k.in_blocks ? vector_lanes(&k) : LEAST_ROWS;
    k.rows_a_task = grain < (double)least ? least : (int64_t)grain / least * least;
    qn_loops_plan(&w, &k.row_nest, k.rows_a_task, &k.row_loops);
    write_kernel(&k);
    const qn_status status = qn_writer_finish(&w, k.row_loops.tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}
