/* Convolution in channel blocks, with what follows it element by element.
 *
 * The kernel keeps a tile of sums in registers (conv_plan.c): output positions times vectors of output channels. For one
 * tile it goes over the input: blocks of channels, kernel rows, kernel columns, channels of the block; for each of these it
 * loads a vector of weights per output block, which lie in that order, and multiplies it with one number of x per position.
 *
 *   for block, row, column, channel
 *     w0 = weights[…, 0 … 15]; w1 = the same of the next output block
 *     for each position p of the tile (unrolled): sum[p][0] += x[p] * w0; sum[p][1] += x[p] * w1
 *
 * Then the tile is stored, or, if more is computed from it, put into local memory and taken up again element by element by
 * the code that any group has (lower_value.c): vector by vector while it is in the L1 cache, or, where that is cheap, written
 * out for each vector, which then stays in its register (forward.c).
 *
 * Each sum is made by one task in an order that depends on shapes only. */
#include "passes/conv_emit.h"
#include "passes/passes.h"

/* ---- what is done with the sums ---- */

static void local_dims(const qn_conv_emitter *e, qn_dim *dims)
{
    const int64_t extents[] = { e->vectors, e->rows.size, e->columns.size, e->p.lanes };
    for (int i = 0; i < 4; i++)
        dims[i] = qn_dim_const(e->w.space.dims, extents[i]);
}

/* Number i of the tile's sums, vector by vector and row by row, as local_dims has them. */
static qn_kvalue **tile_sum(qn_conv_emitter *e, int64_t i)
{
    return &e->sums[i % qn_conv_positions(e) * e->vectors + i / qn_conv_positions(e)];
}

static void set_place(qn_conv_emitter *e, int64_t i)
{
    qn_dims *dims = e->w.space.dims;
    const int64_t position = i % qn_conv_positions(e);
    e->at_vector = qn_dim_const(dims, i / qn_conv_positions(e));
    e->at_row = qn_dim_const(dims, position / e->columns.size);
    e->at_column = qn_dim_const(dims, position % e->columns.size);
}

/* The sum that belongs to the element at work: qn_fetch_fn. The group reads it nowhere else. */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    qn_conv_emitter *e = user;
    const qn_dim at[] = { e->at_vector, e->at_row, e->at_column, e->at_lane };
    qn_dim dims[4];
    (void)value;
    (void)index;
    if (e->group->turned)
        return qn_conv_fetch_turned(e);
    local_dims(e, dims);
    return qn_writer_load(w, e->local, qn_ix_linear(&w->space, 4, dims, at));
}

/* Index of the result's element at the place in the tile. */
static void result_index(const qn_conv_emitter *e, qn_dim *out)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim along[QN_CONV_AXES] = { e->depth, qn_dim_add(dims, e->row, e->at_row),
                                         qn_dim_add(dims, e->column, e->at_column) };
    out[0] = e->sample;
    out[1] = qn_dim_add(dims, e->block, e->at_vector);
    for (int i = 0; i < e->p.spatial; i++)
        out[2 + i] = e->p.slot[i] < 0 ? qn_dim_const(dims, 0) : along[e->p.slot[i]];
    out[2 + e->p.spatial] = e->at_lane;
}

static void store_sums(qn_conv_emitter *e, qn_value *value)
{
    qn_writer *w = &e->w;
    qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), false, true);
    qn_dim index[QN_MAX_RANK], dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &value->type, dims);
    e->at_lane = qn_dim_const(w->space.dims, 0);
    for (int64_t i = 0; i < qn_conv_positions(e) * e->vectors; i++) {
        set_place(e, i);
        result_index(e, index);
        const qn_dim linear = qn_ix_linear(&w->space, value->type.rank, dims, index);
        qn_kb_store(&w->b, y, qn_writer_index(w, linear), *tile_sum(e, i), NULL);
    }
}

static bool is_written_out(const qn_conv_emitter *e)
{
    enum { MOST = 256 };
    int64_t cost = 0;
    for (int i = 0; i < e->group->n_nodes; i++)
        cost += e->group->nodes[i] == e->group->root ? 0 : qn_node_cost(e->group->nodes[i]);
    return cost * qn_conv_positions(e) * e->vectors <= MOST;
}

/* The group's outputs at the place in the tile. */
static void store_outputs(qn_conv_emitter *e)
{
    qn_writer *w = &e->w;
    const qn_group *g = e->group;
    const qn_type *type = &e->p.node->results[0].type;
    qn_dim *const vars[] = { &e->at_vector, &e->at_row, &e->at_column, &e->at_lane };
    qn_dim index[QN_MAX_RANK], from[QN_MAX_RANK];
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *at);
    qn_dim(*to)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *to);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, g->n_outputs);
    result_index(e, index);
    qn_ispace_dims(&w->space, type, from);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_ispace_dims(&w->space, &g->outputs[i]->type, to[i]);
        qn_ix_reshape(&w->space, type->rank, from, index, g->outputs[i]->type.rank, to[i], at[i]);
    }
    qn_writer_loop loops[4];
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < g->n_outputs; k++)
            qn_writer_prepare(w, g->outputs[k], at[k]);
        loops[i] = qn_writer_for_all(w, *vars[i], i == 3 ? QN_TAG_VECTOR : QN_TAG_SERIAL, 0, NULL, NULL);
    }
    for (int i = 0; i < g->n_outputs; i++)
        values[i] = qn_writer_value(w, g->outputs[i], at[i]);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, g->outputs[i]), false, true);
        qn_writer_store(w, y, qn_ix_linear(&w->space, g->outputs[i]->type.rank, to[i], at[i]), values[i]);
    }
    for (int i = 3; i >= 0; i--)
        qn_writer_end_for(w, &loops[i], NULL);
}

static void store_group(qn_conv_emitter *e)
{
    qn_writer *w = &e->w;
    const int64_t rows = e->rows.size, columns = e->columns.size, n = rows * columns * e->vectors;
    for (int64_t i = 0; i < n; i++)
        qn_kb_store(&w->b, e->local, qn_kb_index(&w->b, i * e->p.lanes), *tile_sum(e, i), NULL);
    e->at_lane = qn_ispace_var(&w->space, qn_dim_const(w->space.dims, e->p.lanes), false);
    if (!is_written_out(e)) {
        qn_dim extents[4];
        qn_dim *const vars[] = { &e->at_vector, &e->at_row, &e->at_column };
        local_dims(e, extents);
        for (int i = 0; i < 3; i++)
            *vars[i] = qn_ispace_var(&w->space, extents[i], false);
        store_outputs(e);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        set_place(e, i);
        store_outputs(e);
    }
}

static void tile(qn_conv_emitter *e)
{
    qn_conv_sum_tile(e);
    for (int64_t i = 0; e->parts > 1 && i < qn_conv_positions(e); i++)
        e->sums[i] = qn_conv_added_up(e, e->sums[i]);
    if (e->group->turned)
        qn_conv_store_turned(e);
    else if (e->local)
        store_group(e);
    else
        store_sums(e, e->group->outputs[0]);
}

/* ---- the loops of a task ---- */

/* Opens the loop over the tiles of a run; out_at: the first position of one. */
static qn_writer_loop open_run(qn_conv_emitter *e, const qn_conv_run *run, qn_dim *out_at)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim i = qn_ispace_var(&e->w.space, qn_dim_const(dims, run->n), false);
    *out_at =
        qn_dim_add(dims, qn_dim_mul(dims, i, qn_dim_const(dims, run->size)), qn_dim_const(dims, run->start));
    return qn_writer_for_all(&e->w, i, QN_TAG_SERIAL, 0, NULL, NULL);
}

static void all_columns(qn_conv_emitter *e)
{
    for (int i = 0; i < e->p.n_columns; i++) {
        e->columns = e->p.columns[i];
        qn_writer_loop loop = open_run(e, &e->columns, &e->column);
        tile(e);
        qn_writer_end_for(&e->w, &loop, NULL);
    }
}

/* Output row number `line` of all depths; or, with tiles of several rows, all rows of depth `line`. */
static void one_line(qn_conv_emitter *e, qn_dim line)
{
    qn_dims *dims = e->w.space.dims;
    if (e->p.n_rows == 0) {
        const qn_dim height = qn_dim_const(dims, e->p.axes[1].out);
        e->depth = qn_ix_div(&e->w.space, line, height);
        e->row = qn_ix_mod(&e->w.space, line, height);
        e->rows = (qn_conv_run){ .n = 1, .size = 1 };
        all_columns(e);
        return;
    }
    e->depth = line;
    for (int i = 0; i < e->p.n_rows; i++) {
        e->rows = e->p.rows[i];
        qn_writer_loop loop = open_run(e, &e->rows, &e->row);
        all_columns(e);
        qn_writer_end_for(&e->w, &loop, NULL);
    }
}

/* The range of a task's part `part` of `n` things, `each` a task. */
static void part_range(qn_conv_emitter *e, qn_dim part, int64_t each, int64_t n, qn_dim *out_low,
                       qn_dim *out_high)
{
    qn_dims *dims = e->w.space.dims;
    *out_low = qn_dim_mul(dims, part, qn_dim_const(dims, each));
    *out_high = qn_dim_min(dims, qn_dim_add(dims, *out_low, qn_dim_const(dims, each)), qn_dim_const(dims, n));
}

/* `vectors` output blocks from `block` on. */
static void one_panel(qn_conv_emitter *e, qn_dim block, int64_t vectors, int64_t parts, qn_dim line_part)
{
    qn_dims *dims = e->w.space.dims;
    qn_dim low, high;
    e->vectors = vectors;
    e->parts = parts;
    e->block = block;
    part_range(e, line_part, e->p.lines_per_task, e->p.lines, &low, &high);
    const qn_dim line = qn_ispace_var(&e->w.space, qn_dim_const(dims, e->p.lines), false);
    qn_writer_loop loop = qn_writer_for(&e->w, line, qn_writer_index(&e->w, low),
                                        qn_writer_index(&e->w, high), QN_TAG_SERIAL, 0, NULL, NULL);
    one_line(e, line);
    qn_writer_end_for(&e->w, &loop, NULL);
}

/* The panels below `high` from `low` on that are as wide as others. */
static void whole_panels(qn_conv_emitter *e, qn_dim low, qn_dim high, int64_t n, qn_dim line_part)
{
    qn_writer *w = &e->w;
    const qn_dim panel = qn_ispace_var(&w->space, qn_dim_const(w->space.dims, n), false);
    qn_writer_loop loop = qn_writer_for(w, panel, qn_writer_index(w, low), qn_writer_index(w, high),
                                        QN_TAG_SERIAL, 0, NULL, NULL);
    one_panel(e, qn_dim_mul(w->space.dims, panel, qn_dim_const(w->space.dims, e->p.vectors)), e->p.vectors, 1,
              line_part);
    qn_writer_end_for(w, &loop, NULL);
}

/* What is written where `low` is below `high`. */
typedef struct branch {
    qn_kinst *inst;
    size_t mark;
} branch;

static branch open_branch(qn_conv_emitter *e, qn_dim low, qn_dim high)
{
    qn_writer *w = &e->w;
    qn_kvalue *is = qn_kb_compare(&w->b, QN_LT, qn_writer_index(w, low), qn_writer_index(w, high));
    return (branch){ qn_kb_if(&w->b, is), qn_writer_mark(w) };
}

static void close_branch(qn_conv_emitter *e, const branch *b)
{
    qn_writer_forget(&e->w, b->mark);
    qn_kb_else(&e->w.b, b->inst, 0, NULL);
    qn_kb_end_if(&e->w.b, b->inst, 0, NULL);
}

/* Panel `panel`, where it is one of [low, high). */
static void panel_alone(qn_conv_emitter *e, qn_dim low, qn_dim high, int64_t panel, int64_t vectors,
                        int64_t parts, qn_dim line_part)
{
    qn_dims *dims = e->w.space.dims;
    const bool last = panel == e->p.panels - 1; /* then low is not behind it */
    const int64_t block = last ? e->p.out_blocks - vectors : panel * e->p.vectors;
    branch from;
    if (!last)
        from = open_branch(e, low, qn_dim_const(dims, panel + 1));
    const branch to = open_branch(e, qn_dim_const(dims, panel), high);
    one_panel(e, qn_dim_const(dims, block), vectors, parts, line_part);
    close_branch(e, &to);
    if (!last)
        close_branch(e, &from);
}

static void all_panels(qn_conv_emitter *e, qn_dim panel_part, qn_dim line_part)
{
    qn_dims *dims = e->w.space.dims;
    const int64_t blocks = qn_conv_whole_blocks(&e->p), whole = blocks / e->p.vectors,
                  rest = blocks % e->p.vectors;
    const qn_dim n = qn_dim_const(dims, whole);
    qn_dim low, high;
    part_range(e, panel_part, e->p.panels_per_task, e->p.panels, &low, &high);
    if (whole == 1 && e->p.panels > e->p.panels_per_task) { /* a single one makes no loop */
        const branch b = open_branch(e, low, n);
        whole_panels(e, low, n, whole, line_part);
        close_branch(e, &b);
    } else if (whole > 0) {
        whole_panels(e, low, whole < e->p.panels ? qn_dim_min(dims, high, n) : high, whole, line_part);
    }
    if (rest > 0)
        panel_alone(e, low, high, whole, rest, 1, line_part);
    if (e->p.parts > 1)
        panel_alone(e, low, high, e->p.panels - 1, 1, e->p.parts, line_part);
}

/* ---- the template ---- */

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    qn_conv_plan plan;
    return group->kind == QN_GROUP_CONTRACTION && qn_conv_plan_make(group->root, options, &plan);
}

/* Elements of local memory that the largest tile takes. */
static int64_t largest_tile(const qn_conv_emitter *e)
{
    const qn_conv_plan *p = &e->p;
    int64_t rows = 1, columns = 1;
    for (int i = 0; i < p->n_rows; i++)
        rows = p->rows[i].size > rows ? p->rows[i].size : rows;
    for (int i = 0; i < p->n_columns; i++)
        columns = p->columns[i].size > columns ? p->columns[i].size : columns;
    const int64_t positions = rows * columns;
    return (e->group->turned ? qn_conv_turned_length(e, positions) : positions) * p->vectors * p->lanes;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    qn_conv_emitter e = { .group = group };
    const bool planned = qn_conv_plan_make(group->root, l->options, &e.p);
    QN_ASSERT(planned, "conv: a group that was matched has no plan");
    const qn_conv_plan *p = &e.p;
    qn_writer *w = &e.w;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    qn_dims *dims = w->space.dims;
    e.vector = (qn_ktype){ p->dtype, (int)p->lanes };
    e.fused = qn_may_fuse(l->options);
    e.row_elements = p->axes[2].in * p->c;
    e.plane_elements = p->axes[0].in * p->axes[1].in * e.row_elements;
    e.w_row = p->axes[2].kernel * p->w_c * p->lanes;
    e.w_block = p->w_channels * p->axes[0].kernel * p->axes[1].kernel * p->axes[2].kernel * p->lanes;
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    e.x = qn_writer_argument(w, qn_lower_buffer(l, p->node->operands[0]), true, false);
    e.weights = qn_writer_argument(w, qn_lower_buffer(l, p->node->operands[1]), true, false);
    qn_writer_note_load(w, e.x);
    qn_writer_note_load(w, e.weights);
    if (group->n_nodes > 1) {
        e.local = qn_kernel_add_local(w->kernel, "tile", p->dtype, largest_tile(&e));
        qn_writer_bind(w, &p->node->results[0], fetch_sum, &e);
    }
    const qn_dim samples = qn_ispace_import(&w->space, p->node->results[0].type.dims[0]);
    const int64_t panel_parts = (p->panels + p->panels_per_task - 1) / p->panels_per_task;
    const int64_t line_parts = (p->lines + p->lines_per_task - 1) / p->lines_per_task;
    /* Threads get neighbouring tasks: those of some lines, which the same thread has made, or of some weights. */
    const qn_dim panels = qn_dim_const(dims, panel_parts), lines = qn_dim_const(dims, line_parts);
    const qn_dim parts[] = { p->lines_first ? samples : panels, p->lines_first ? lines : samples,
                             p->lines_first ? panels : lines };
    const qn_dim tasks = qn_dim_mul(dims, samples, qn_dim_const(dims, panel_parts * line_parts));
    const qn_dim task = qn_ispace_var(&w->space, tasks, false);
    qn_ispace_set(&w->space, task, qn_kb_task(&w->b));
    qn_dim part[3];
    qn_ix_split(&w->space, task, 3, parts, part);
    e.sample = part[p->lines_first ? 0 : 1];
    all_panels(&e, part[p->lines_first ? 2 : 0], part[p->lines_first ? 1 : 2]);
    w->kernel->flops = qn_conv_flops(p) * qn_likely_extent(samples);
    qn_conv_plan_note(p, l->options);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_conv = { "conv", NULL, matches, lower };
