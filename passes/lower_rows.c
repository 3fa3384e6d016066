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

#include "passes/lower_rows.h"
#include "passes/passes.h"

enum {
    LEAST_ROWS = 64,   /* of a task when rows are lanes */
    NEAR_BYTES = 2048, /* how far streamed loads run ahead at least */
};

/* ---- levels ---- */

int qn_row_level(const qn_row_kernel *k, const qn_value *value)
{
    return value->node ? k->levels[value->id] : 0;
}

static void find_levels(qn_row_kernel *k)
{
    k->n_passes = 1;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_node *node = k->group->nodes[i];
        int level = 0;
        for (int o = 0; o < node->n_operands; o++)
            level = qn_row_level(k, node->operands[o]) > level ? qn_row_level(k, node->operands[o]) : level;
        k->levels[node->results[0].id] = level + (node->op == QN_OP_REDUCE);
        if (level + 1 > k->n_passes)
            k->n_passes = level + 1;
    }
}

/* ---- geometry ---- */

bool qn_row_is_full(qn_row_kernel *k, const qn_value *value)
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
static void output_index(qn_row_kernel *k, const qn_value *value, qn_dim *out_index)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&k->w->space, &value->type, dims);
    if (qn_row_is_full(k, value))
        qn_ix_reshape(&k->w->space, k->group->n_dims, k->dims, k->index, value->type.rank, dims, out_index);
    else
        qn_ix_reshape(&k->w->space, k->n_row_dims, k->row_dims, k->row_index, value->type.rank, dims,
                      out_index);
}

/* Axes of the group from the variables of the nests. */
static void set_geometry(qn_row_kernel *k, const qn_dim *row_vars)
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

/* ---- one pass ---- */

static qn_kvalue *fetch_result(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    (void)w, (void)index;
    const qn_row_kernel *k = user;
    QN_ASSERT(k->results[value->id], "lower: a reduction is read before its pass");
    return k->results[value->id];
}

static qn_kvalue *fetch_staged(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    (void)index;
    const qn_row_kernel *k = user;
    return qn_writer_load(w, k->traces[value->id].staged, k->rows.col);
}

static void store_output(qn_row_kernel *k, qn_value *value, const qn_dim *index, qn_kvalue *element)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&k->w->space, &value->type, dims);
    qn_kbuffer *to = qn_writer_argument(k->w, qn_lower_buffer(k->lowering, value), false, true);
    qn_writer_store(k->w, to, qn_ix_linear(&k->w->space, value->type.rank, dims, index), element);
}

/* For the loop over columns that was opened last. A row stays in the first cache for its passes; the next row is asked for
 * in one of them, the second where there are three: the first does little else than wait for memory, the last stores. */
static void stream_columns(qn_row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    const int64_t columns = k->rows.n_cols->max;
    const int64_t size = (int64_t)qn_dtype_bytes(k->group->outputs[0]->type.dtype);
    if (k->rows_are_lanes || k->col_nest.n == 0)
        return;
    w->stream = k->col_vars[k->col_nest.n - 1];
    if (columns > QN_ROW_FAR_BYTES / size)
        w->ahead = NEAR_BYTES / size;
    else if (pass == (k->n_passes > 2 ? 1 : 0))
        w->ahead = columns > NEAR_BYTES / size ? columns : NEAR_BYTES / size;
    else
        w->ahead = 0;
}

/* A pass that makes outputs of what was staged has nothing to do but store: the pass that stages, busy computing, has the
 * lines fetched. */
static void fetch_outputs(qn_row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    bool stages = false;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_row_trace *t = &k->traces[k->group->nodes[i]->results[0].id];
        stages |= t->staged && __builtin_ctz(t->passes) == pass;
    }
    for (int i = 0; i < k->group->n_outputs && stages; i++) {
        qn_value *value = k->group->outputs[i];
        qn_dim dims[QN_MAX_RANK], at[QN_MAX_RANK];
        if (!qn_row_is_full(k, value) || qn_row_level(k, value) <= pass)
            continue;
        output_index(k, value, at);
        qn_ispace_dims(&w->space, &value->type, dims);
        qn_kbuffer *to = qn_writer_argument(w, qn_lower_buffer(k->lowering, value), false, true);
        qn_writer_prefetch(w, to, qn_ix_linear(&w->space, value->type.rank, dims, at));
    }
}

/* The reductions that a pass computes: gives their number. */
static int reductions_of(qn_row_kernel *k, int pass, qn_row_reduction *out)
{
    qn_writer *w = k->w;
    int n = 0;
    for (int i = 0; i < k->group->n_nodes; i++) {
        qn_node *node = k->group->nodes[i];
        if (node->op != QN_OP_REDUCE || qn_row_level(k, node->operands[0]) != pass)
            continue;
        qn_row_reduction *r = &out[n++];
        *r = (qn_row_reduction){ .node = node,
                                 .kind = qn_attr_reduce_kind(node),
                                 .dtype = qn_dtype_wide(node->operands[0]->type.dtype) };
        qn_dim kept_dims[QN_MAX_RANK], kept[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &node->results[0].type, kept_dims);
        qn_ix_reshape(&w->space, k->n_row_dims, k->row_dims, k->row_index, node->results[0].type.rank,
                      kept_dims, kept);
        const bool fits = qn_rows_operand(&w->space, &k->rows, node, kept, r->index);
        QN_ASSERT(fits, "lower: a reduction does not fit the rows of its group");
    }
    return n;
}

static void write_pass(qn_row_kernel *k, int pass)
{
    qn_writer *w = k->w;
    const qn_group *g = k->group;
    qn_row_reduction *reductions = QN_NEW_ARRAY(w->arena, qn_row_reduction, g->n_nodes);
    qn_value **outputs = QN_NEW_ARRAY(w->arena, qn_value *, g->n_outputs);
    w->pass = pass;
    const int n = reductions_of(k, pass, reductions);
    int n_outputs = 0;
    for (int i = 0; i < g->n_outputs; i++)
        if (qn_row_level(k, g->outputs[i]) == pass && qn_row_is_full(k, g->outputs[i]))
            outputs[n_outputs++] = g->outputs[i];
    if (n == 0 && n_outputs == 0)
        return;

    qn_kbuffer **terms = QN_NEW_ARRAY(w->arena, qn_kbuffer *, n + 1);
    const int n_carried = qn_row_split_ordered(k, n, reductions, terms);
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
    const bool split = qn_row_sums_by_parts(k, n_carried, reductions);
    qn_kvalue **initial = qn_arena_copy(w->arena, values, (size_t)(n + 1) * sizeof(*values));
    qn_writer_open_nest(w, n_cols - split, k->col_vars, qn_row_column_tag(k, n_carried, reductions),
                        n_carried, values, kinds, loops);
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
        values[i] = qn_row_leaves_nan_out(k, reductions[i].node)
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
        qn_row_add_up(k, n - n_carried, reductions + n_carried, terms + n_carried, values + n_carried);
    for (int i = 0; i < n; i++) {
        const qn_value *result = &reductions[i].node->results[0];
        k->results[result->id] = qn_kb_convert(&w->b, result->type.dtype, values[i]);
        qn_writer_bind(w, result, fetch_result, k);
    }
    for (int i = 0; i < g->n_nodes; i++) {
        const qn_row_trace *t = &k->traces[g->nodes[i]->results[0].id];
        if (t->staged && __builtin_ctz(t->passes) == pass)
            qn_writer_bind(w, &g->nodes[i]->results[0], fetch_staged, k);
    }
}

static void write_row(qn_row_kernel *k)
{
    qn_writer *w = k->w;
    for (int pass = 0; pass < k->n_passes; pass++)
        write_pass(k, pass);
    for (int i = 0; i < k->group->n_outputs; i++) {
        qn_value *value = k->group->outputs[i];
        qn_dim at[QN_MAX_RANK];
        if (qn_row_is_full(k, value))
            continue;
        output_index(k, value, at);
        store_output(k, value, at, qn_writer_value(w, value, at));
    }
}

/* ---- the kernel ---- */

static void write_kernel(qn_row_kernel *k)
{
    qn_writer *w = k->w;
    qn_writer_loop open[QN_MAX_RANK];
    const int n = k->row_loops.n;
    for (int i = 0; i < k->group->n_inputs; i++)
        qn_writer_bind_input(w, k->group->inputs[i]);
    for (int i = 0; i < k->col_nest.n; i++)
        k->col_vars[i] = qn_ispace_var(&w->space, qn_ispace_import(&w->space, k->col_nest.dims[i]), false);
    set_geometry(k, k->row_loops.index);
    w->computed = qn_row_computed;
    w->computed_user = k;
    if (!k->rehearsing)
        qn_row_stage(k);
    for (int i = 0; i < n; i++)
        open[i] = qn_planned_loop_open(w, &k->row_loops.loops[i], i == n - 1 ? qn_row_tag(k) : QN_TAG_SERIAL);
    if (k->rows_are_lanes && n > 0 && open[n - 1].inst)
        open[n - 1].inst->lanes = qn_row_lanes(k);
    write_row(k);
    for (int i = n - 1; i >= 0; i--)
        qn_writer_end_for(w, &open[i], NULL);
}

static void rehearse(qn_row_kernel *k, qn_arena *scratch, const char *name)
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
    k->rows_are_lanes = qn_row_choose_lanes(k, &w, &rows, &cols, row_vars, k->col_vars);
    k->in_blocks &= k->rows_are_lanes;
    k->rehearsing = false;
}

qn_status qn_lower_rows(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    const int n_values = l->scope->graph->n_values;
    qn_row_kernel k = { .lowering = l, .group = group };
    k.levels = QN_NEW_ARRAY(scratch, int, n_values);
    k.traces = QN_NEW_ARRAY(scratch, qn_row_trace, n_values);
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
    const int64_t least = !k.rows_are_lanes ? 1 : k.in_blocks ? qn_row_vector_lanes(&k) : LEAST_ROWS;
    k.rows_a_task = grain < (double)least ? least : (int64_t)grain / least * least;
    qn_loops_plan(&w, &k.row_nest, k.rows_a_task, &k.row_loops);
    write_kernel(&k);
    const qn_status status = qn_writer_finish(&w, k.row_loops.tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}
