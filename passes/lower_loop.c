/* LOOP groups, contractions without a template, and other values that are computed one element at a time: a nest of loops
 * over the elements of the outputs, the innermost one vectorized.
 *
 *   [n, 768] of which nothing tells the axes apart        one axis of 768*n elements; task t does 32768 of them:
 *     for #0 = 32768*t to min(32768*t + 32768, 768*n) vector
 *   [n, c, 3136], a bias of [c]                           axes n*c and 3136; a task does some rows:
 *     for #0 = 10*t to min(10*t + 10, n*c)
 *       for #1 = 0 to 3136 vector
 *
 * The kernel is written twice: first with one variable an axis, to see which expressions it reads and writes at
 * (a rehearsal), then with the axes merged that none of them tells apart. */
#include "passes/lower.h"
#include "passes/passes.h"

/* ---- merging axes ---- */

bool qn_nest_sees_as_one(qn_ispace *space, qn_dim d, qn_dim a, qn_dim b, qn_dim extent)
{
    qn_dim from_a, from_b, rest;
    if (!qn_ix_uses(d, a) && !qn_ix_uses(d, b))
        return true;
    return qn_ix_affine(space, d, a, &from_a, &rest) && qn_ix_affine(space, d, b, &from_b, &rest) &&
           !qn_ix_uses(from_a, b) && from_a == qn_dim_mul(space->dims, from_b, extent);
}

void qn_nest_add(qn_nest *nest, const qn_nest *from, int i)
{
    nest->dims[nest->n] = from->dims[i];
    nest->first[nest->n] = from->first[i];
    nest->whole[nest->n++] = from->whole[i];
}

bool qn_nest_join(qn_lowering *l, qn_nest *nest, const qn_nest *from, int i)
{
    const int before = nest->n - 1;
    if (from->whole[i] || (nest->whole[before] && !qn_dim_is_const(from->dims[i])))
        return false;
    nest->dims[before] = qn_dim_mul(l->program->dims, nest->dims[before], from->dims[i]);
    if (nest->whole[before]) {
        nest->first[before] *= from->dims[i]->value;
        nest->whole[before] *= from->dims[i]->value;
    }
    return true;
}

void qn_nest_merge(qn_writer *r, qn_nest *nest, const qn_dim *vars)
{
    qn_nest merged = { 0 };
    for (int i = 0; i < nest->n; i++) {
        bool one = i > 0;
        for (size_t k = 0; k < r->accesses.n && one; k++)
            one = qn_nest_sees_as_one(&r->space, r->accesses.items[k].linear, vars[i - 1], vars[i],
                                      qn_ispace_var_of(&r->space, vars[i])->extent);
        if (!one || !qn_nest_join(r->lowering, &merged, nest, i))
            qn_nest_add(&merged, nest, i);
    }
    *nest = merged;
}

/* ---- planning the loops ---- */

double qn_likely_extent(qn_dim d)
{
    enum { SYMBOL = 128 };
    return qn_dim_is_const(d) ? (double)d->value : d->max < SYMBOL ? (double)d->max : SYMBOL;
}

void qn_loops_plan(qn_writer *w, const qn_nest *nest, int64_t grain, qn_loops *out)
{
    enum { FEW_TASKS = 12 };
    qn_dims *dims = w->space.dims;
    qn_dim extents[QN_MAX_RANK];
    double at_most = 1;
    for (int i = 0; i < nest->n; i++) {
        extents[i] = qn_ispace_import(&w->space, nest->dims[i]);
        at_most *= (double)extents[i]->max;
    }
    *out = (qn_loops){ .tasks = qn_dim_const(dims, 1) };
    /* how many leading axes are spread over tasks: the fewest that leave no more than a grain for one step of them */
    int lead = 0;
    if (at_most > 1.5 * (double)grain) {
        double inner = 1;
        for (lead = nest->n; lead > 1 && inner * qn_likely_extent(extents[lead - 1]) <= (double)grain; lead--)
            inner *= qn_likely_extent(extents[lead - 1]);
    }
    if (lead > 0 && lead == nest->n) { /* pieces of the last axis */
        const qn_dim last = extents[lead - 1], size = qn_dim_const(dims, grain);
        const qn_dim pieces = qn_dim_ceildiv(dims, last, size);
        out->tasks = pieces;
        for (int i = 0; i < lead - 1; i++)
            out->tasks = qn_dim_mul(dims, out->tasks, extents[i]);
        const qn_dim task = qn_ispace_var(&w->space, out->tasks, false);
        qn_ispace_set(&w->space, task, qn_writer_task(w));
        const qn_dim piece = lead == 1 ? task : qn_ix_mod(&w->space, task, pieces);
        if (lead > 1)
            qn_ix_split(&w->space, qn_ix_div(&w->space, task, pieces), lead - 1, extents, out->index);
        const qn_dim var = out->index[lead - 1] = qn_ispace_var(&w->space, last, false);
        qn_kvalue *low = qn_kb_imul(&w->b, qn_writer_index(w, piece), qn_kb_index(&w->b, grain));
        qn_kvalue *high =
            qn_kb_imin(&w->b, qn_kb_iadd(&w->b, low, qn_kb_index(&w->b, grain)), qn_writer_index(w, last));
        out->loops[out->n++] = (qn_planned_loop){ .var = var, .low = low, .high = high };
        out->whole = qn_dim_divisible(last, grain) ? grain : 0;
        return;
    }
    if (lead > 0) { /* some steps of the leading axes, counted as one */
        qn_dim steps = qn_dim_const(dims, 1), inner = steps;
        for (int i = 0; i < nest->n; i++) {
            qn_dim *to = i < lead ? &steps : &inner;
            *to = qn_dim_mul(dims, *to, extents[i]);
        }
        const qn_dim one = qn_dim_const(dims, 1);
        qn_dim chunk = qn_dim_max(
            dims, one, qn_dim_floordiv(dims, qn_dim_const(dims, grain), qn_dim_max(dims, one, inner)));
        out->tasks = qn_dim_ceildiv(dims, steps, chunk);
        if (qn_dim_is_const(out->tasks) && out->tasks->value % 2 && out->tasks->value > 1 &&
            out->tasks->value < FEW_TASKS) { /* three would take two threads as long as four */
            chunk = qn_dim_ceildiv(dims, steps, qn_dim_const(dims, out->tasks->value + 1));
            out->tasks = qn_dim_ceildiv(dims, steps, chunk);
        }
        const qn_dim var = qn_ispace_var(&w->space, steps, false);
        qn_ix_split(&w->space, var, lead, extents, out->index);
        if (qn_dim_is(chunk, 1)) {
            qn_ispace_set(&w->space, var, qn_writer_task(w));
        } else {
            qn_kvalue *size = qn_writer_index(w, chunk), *low = qn_kb_imul(&w->b, qn_writer_task(w), size);
            qn_kvalue *high = qn_kb_imin(&w->b, qn_kb_iadd(&w->b, low, size), qn_writer_index(w, steps));
            out->loops[out->n++] = (qn_planned_loop){ .var = var, .low = low, .high = high };
            if (qn_dim_is_const(chunk) && qn_dim_divisible(steps, chunk->value))
                out->whole = chunk->value;
        }
    }
    for (int i = lead; i < nest->n; i++) {
        out->index[i] = qn_ispace_var(&w->space, extents[i], false);
        out->loops[out->n++] = (qn_planned_loop){ .var = out->index[i] };
    }
}

/* For a GPU: all axes as one, so that neighbouring threads do neighbouring elements however short the axes are. */
static void plan_flat(qn_writer *w, const qn_nest *nest, int64_t grain, qn_loops *out)
{
    qn_dims *dims = w->space.dims;
    qn_dim extents[QN_MAX_RANK], all = qn_dim_const(dims, 1);
    for (int i = 0; i < nest->n; i++) {
        extents[i] = qn_ispace_import(&w->space, nest->dims[i]);
        all = qn_dim_mul(dims, all, extents[i]);
    }
    *out = (qn_loops){ .n = 1, .tasks = qn_dim_ceildiv(dims, all, qn_dim_const(dims, grain)) };
    const qn_dim var = qn_ispace_var(&w->space, all, false);
    qn_ix_split(&w->space, var, nest->n, extents, out->index);
    qn_kvalue *size = qn_kb_index(&w->b, grain), *low = qn_kb_imul(&w->b, qn_writer_task(w), size);
    qn_kvalue *high = qn_kb_imin(&w->b, qn_kb_iadd(&w->b, low, size), qn_writer_index(w, all));
    out->loops[0] = (qn_planned_loop){ .var = var, .low = low, .high = high };
}

qn_writer_loop qn_planned_loop_open(qn_writer *w, const qn_planned_loop *loop, qn_ktag tag)
{
    return loop->low ? qn_writer_for(w, loop->var, loop->low, loop->high, tag, 0, NULL, NULL)
                     : qn_writer_for_all(w, loop->var, tag, 0, NULL, NULL);
}

void qn_nest_index(qn_writer *w, const qn_nest *nest, const qn_dim *index, const qn_type *type,
                   qn_dim *out_index)
{
    qn_dims *dims = w->space.dims;
    qn_dim from[QN_MAX_RANK], to[QN_MAX_RANK], at[QN_MAX_RANK];
    for (int i = 0; i < nest->n; i++) {
        from[i] =
            nest->whole[i] ? qn_dim_const(dims, nest->whole[i]) : qn_ispace_import(&w->space, nest->dims[i]);
        at[i] = nest->first[i] ? qn_dim_add(dims, index[i], qn_dim_const(dims, nest->first[i])) : index[i];
    }
    qn_ispace_dims(&w->space, type, to);
    qn_ix_reshape(&w->space, nest->n, from, at, type->rank, to, out_index);
}

/* ---- the kernel ---- */

static void bind_all(qn_writer *w, const qn_group *group)
{
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
}

/* Memory gives more to several streams than to one: where an output goes past the caches, a task does two halves of its part
 * side by side. Then half of the steps of the first loop, otherwise 0. */
static int64_t half_of_task(qn_writer *w, const qn_group *group, const qn_loops *loops)
{
    enum { STEP = 64 }; /* elements that stay whole where the first loop is the only one */
    const int64_t half = loops->whole / 2;
    if (loops->whole % (loops->n == 1 ? 2 * STEP : 2) != 0)
        return 0;
    for (int i = 0; i < group->n_outputs; i++)
        if (qn_writer_bypasses(w, qn_lower_buffer(w->lowering, group->outputs[i])))
            return half;
    return 0;
}

void qn_loop_element(qn_writer *w, const qn_group *group, qn_dim (*at)[QN_MAX_RANK])
{
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, group->n_outputs);
    for (int i = 0; i < group->n_outputs; i++)
        values[i] = qn_writer_value(w, group->outputs[i], at[i]);
    for (int i = 0; i < group->n_outputs; i++) {
        qn_dim dims[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &group->outputs[i]->type, dims);
        qn_kbuffer *to = qn_writer_argument(w, qn_lower_buffer(w->lowering, group->outputs[i]), false, true);
        qn_writer_store(w, to, qn_ix_linear(&w->space, group->outputs[i]->type.rank, dims, at[i]), values[i]);
    }
}

/* Does a load jump from line to line along the last axis, and (`before`) step through a line along the axis before it? That is a
 * transpose: row by row each line would be fetched again for each element of it. Of a rehearsal with one variable an axis. */
static bool crosses_lines(qn_writer *r, int n, const qn_dim *vars, bool before)
{
    for (size_t i = 0; i < r->accesses.n && n >= 2; i++) {
        const qn_access *a = &r->accesses.items[i];
        if (a->buffer && !a->store && qn_lower_crosses(r, a->linear, vars[n - 2], vars[n - 1], before))
            return true;
    }
    return false;
}

/* The last two loops as blocks of a line's elements, row by row within a block: the lines of a block stay in the first cache. */
static void write_blocks(qn_writer *w, const qn_group *group, const qn_nest *nest, const qn_loops *loops)
{
    enum { LINE = 64 };
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)group->n_outputs, sizeof *at);
    qn_writer_loop open[QN_MAX_RANK];
    const int n = loops->n;
    const qn_planned_loop *last = &loops->loops[n - 1];
    for (int i = 0; i < group->n_outputs; i++)
        qn_nest_index(w, nest, loops->index, &group->outputs[i]->type, at[i]);
    for (int k = 0; k < n - 2; k++) {
        for (int i = 0; i < group->n_outputs; i++)
            qn_writer_prepare(w, group->outputs[i], at[i]);
        open[k] = qn_planned_loop_open(w, &loops->loops[k], QN_TAG_SERIAL);
    }
    qn_kbuilder *b = &w->b;
    qn_kvalue *width = qn_kb_index(b, LINE / (int64_t)qn_dtype_bytes(group->outputs[0]->type.dtype));
    qn_kvalue *low = last->low ? last->low : qn_kb_index(b, 0);
    qn_kvalue *high =
        last->high ? last->high : qn_writer_index(w, qn_ispace_var_of(&w->space, last->var)->extent);
    qn_kinst *blocks = qn_kb_for(b, low, high, width, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *first = qn_loop_counter(blocks);
    open[n - 2] = qn_planned_loop_open(w, &loops->loops[n - 2], QN_TAG_SERIAL);
    open[n - 1] = qn_writer_for(w, last->var, first, qn_kb_imin(b, qn_kb_iadd(b, first, width), high),
                                QN_TAG_VECTOR, 0, NULL, NULL);
    qn_loop_element(w, group, at);
    qn_writer_end_for(w, &open[n - 1], NULL);
    qn_writer_end_for(w, &open[n - 2], NULL);
    qn_kb_end_for(b, blocks, NULL);
    for (int k = n - 3; k >= 0; k--)
        qn_writer_end_for(w, &open[k], NULL);
}

/* Is what is loaded one run of memory along the last axis and the third last together, cut by the axis between them? That is the
 * packing of a matrix in panels: pieces of its rows. Of a rehearsal with one variable an axis. */
static bool cuts_rows(qn_writer *r, int n, const qn_dim *vars)
{
    if (n < 3 || vars[n - 1]->kind != QN_DIM_SYMBOL || vars[n - 2]->kind != QN_DIM_SYMBOL ||
        vars[n - 3]->kind != QN_DIM_SYMBOL)
        return false;
    const qn_dim piece = qn_ispace_var_of(&r->space, vars[n - 1])->extent;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        qn_dim along, outer, between, rest;
        if (a->buffer && !a->store && qn_ix_affine(&r->space, a->linear, vars[n - 1], &along, &rest) &&
            qn_dim_is(along, 1) && qn_ix_affine(&r->space, a->linear, vars[n - 3], &outer, &rest) &&
            outer == piece && qn_ix_affine(&r->space, a->linear, vars[n - 2], &between, &rest) &&
            between->min > piece->max)
            return true;
    }
    return false;
}

/* Elements of a task that packs panels: several of them, if that leaves enough tasks. */
static int64_t pieces_grain(const qn_nest *nest, int64_t grain)
{
    enum { PIECES = 8, ENOUGH_TASKS = 16 };
    double panel = 1, panels = 1;
    for (int i = 0; i < nest->n; i++)
        *(i < nest->n - 2 ? &panels : &panel) *= qn_likely_extent(nest->dims[i]);
    const double wanted = panels / ENOUGH_TASKS < PIECES ? panels / ENOUGH_TASKS : PIECES;
    const double size = panel * (double)(int64_t)wanted;
    return size > (double)grain ? (int64_t)size : grain;
}

/* Such a task takes its pieces of a row before it goes to the next row: memory gives a run of lines faster than single lines
 * that lie in as many pages. */
static void take_rows_first(qn_loops *loops)
{
    loops->pieces = true;
    loops->whole = 0;
    if (loops->n == 3 && loops->loops[0].low) {
        const qn_planned_loop panels = loops->loops[0];
        loops->loops[0] = loops->loops[1];
        loops->loops[1] = panels;
    }
}

/* Bytes by which streamed loads run ahead: not so many that lines leave a small first cache before they are read (Zen 4 takes 0.82
 * of the time with 512 that it takes with 768 or more; Sapphire Rapids wants 2048). */
static int64_t bytes_ahead(const qn_machine *machine)
{
    return machine && machine->l1_bytes < 48 << 10 ? 512 : 2048;
}

static void write_elements(qn_writer *w, const qn_group *group, const qn_nest *nest, const qn_loops *loops)
{
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)group->n_outputs, sizeof *at);
    qn_writer_loop open[QN_MAX_RANK];
    const int64_t half = half_of_task(w, group, loops);
    for (int i = 0; i < group->n_outputs; i++)
        qn_nest_index(w, nest, loops->index, &group->outputs[i]->type, at[i]);
    for (int k = 0; k < loops->n; k++) {
        qn_planned_loop loop = loops->loops[k];
        if (half &&
            k ==
                0) /* what is computed for its steps differs between the halves: not before the inner loops */
            loop.high = qn_kb_iadd(&w->b, loop.low, qn_kb_index(&w->b, half));
        for (int i = 0; i < group->n_outputs && !(half && k > 0); i++)
            qn_writer_prepare(w, group->outputs[i], at[i]);
        open[k] = qn_planned_loop_open(w, &loop, k == loops->n - 1 ? QN_TAG_VECTOR : QN_TAG_SERIAL);
    }
    if (loops->n > 0) {
        w->stream = loops->loops[loops->n - 1].var;
        w->ahead = loops->pieces ? 0
                                 : bytes_ahead(w->lowering->options->machine) /
                                       (int64_t)qn_dtype_bytes(group->outputs[0]->type.dtype);
    }
    if (half) {
        const size_t mark = qn_writer_mark(w);
        qn_var *var = qn_ispace_var_of(&w->space, loops->loops[0].var);
        qn_kvalue *first = var->value;
        qn_loop_element(w, group, at);
        qn_writer_forget(w, mark);
        var->value = qn_kb_iadd(&w->b, first, qn_kb_index(&w->b, half));
    }
    qn_loop_element(w, group, at);
    w->stream = NULL;
    for (int k = loops->n - 1; k >= 0; k--)
        qn_writer_end_for(w, &open[k], NULL);
}

/* Is an input the caller's, which is hardly in the caches? */
static bool reads_callers(const qn_lowering *l, const qn_group *group)
{
    for (int i = 0; i < group->n_inputs; i++)
        if (qn_lower_is_io(l, group->inputs[i]))
            return true;
    return false;
}

/* Enough tasks for some threads, each of some microseconds: handing one over costs a third of one. Where the size isn't known
 * there may be much to do. */
int64_t qn_task_elements(const qn_lowering *l, const qn_group *group)
{
    enum { ENOUGH_TASKS = 16, TASK_PICOSECONDS = 2000000, COST = 10 /* picoseconds */, DEAR = 64 };
    const int64_t most = QN_GRAIN_OF(l->options);
    int64_t elements = 1, cost = 0;
    bool known = true;
    if (l->options->machine && l->options->machine->gpu)
        return most;
    for (int i = 0; i < group->n_dims; i++)
        known = known && qn_dim_is_const(group->dims[i]) &&
                !__builtin_mul_overflow(elements, group->dims[i]->value, &elements);
    for (int i = 0; i < group->n_nodes; i++)
        cost += qn_node_cost(group->nodes[i]);
    if (!known && cost < DEAR)
        return most;
    const int64_t element = reads_callers(l, group) ? 250 : 100;
    int64_t least = most;
    while (least > 64 && least / 2 * (element + COST * cost) >= TASK_PICOSECONDS)
        least /= 2;
    if (!known) /* dear elements, as of an ensemble of trees: few are worth a task */
        return least;
    const int64_t even = elements / ENOUGH_TASKS / 64 * 64;
    return even < least ? least : even > most ? most : even;
}

/* Multiplications and additions for one element of the group's result: what a task's size is measured by. */
static double work_of(const qn_group *group)
{
    const qn_node *node = group->root;
    double work = 1;
    if (node->op == QN_OP_DOT_GENERAL) {
        int n;
        const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n);
        for (int i = 0; i < n; i++)
            work *= qn_likely_extent(node->operands[0]->type.dims[axes[i]]);
    } else if (node->op == QN_OP_CONVOLUTION || node->op == QN_OP_CONV_PACKED) {
        for (int i = 1; i < node->operands[0]->type.rank; i++)
            work *= qn_likely_extent(node->operands[1]->type.dims[i]);
    } else if (node->op == QN_OP_REDUCE_WINDOW) {
        int n;
        const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, &n);
        for (int i = 0; i < n; i++)
            work *= (double)window[i];
    }
    return work < 1 ? 1 : work;
}

/* What the kernel of a nest reads and writes, with one variable an axis. */
static void rehearse(qn_writer *w, qn_lowering *l, const qn_group *group, const char *name, qn_arena *scratch,
                     const qn_nest *nest, qn_dim *out_vars)
{
    qn_loops loops = { 0 };
    qn_writer_init(w, l, name, scratch);
    for (int i = 0; i < nest->n; i++) {
        out_vars[i] = loops.index[i] =
            qn_ispace_var(&w->space, qn_ispace_import(&w->space, nest->dims[i]), false);
        loops.loops[loops.n++] = (qn_planned_loop){ .var = out_vars[i] };
    }
    bind_all(w, group);
    write_elements(w, group, nest, &loops);
}

/* How a nest is gone over. */
typedef struct shape {
    qn_nest nest;
    bool blocks, pieces, run, zipped;
    bool bounded;   /* something is only there within bounds */
    int transposed; /* axis, or -1 */
    qn_transposed_pairs pairs;
} shape;

/* Of a nest of all axes: with one variable an axis; where axes were merged or cut that may cross lines, again. */
static void find_shape(qn_lowering *l, const qn_group *group, const char *name, qn_arena *scratch, shape *s)
{
    enum { CUTS = 2 };
    const bool gpu = l->options->machine && l->options->machine->gpu;
    qn_writer rehearsal;
    qn_dim vars[QN_MAX_RANK + 1];
    s->transposed = -1;
    for (int before = -1, jumps = 1; before != s->nest.n && jumps;) {
        before = s->nest.n;
        rehearse(&rehearsal, l, group, name, scratch, &s->nest, vars);
        s->bounded = rehearsal.bounds.n > 0;
        s->blocks = !gpu && crosses_lines(&rehearsal, s->nest.n, vars, true);
        jumps = !gpu && crosses_lines(&rehearsal, s->nest.n, vars, false);
        s->pieces = !gpu && cuts_rows(&rehearsal, s->nest.n, vars);
        s->transposed = qn_transposed_axis(&rehearsal, &s->nest, vars);
        qn_nest_merge(&rehearsal, &s->nest, vars);
        if (s->transposed >= 0 || before != s->nest.n || gpu)
            continue;
        qn_nest cut = s->nest; /* an axis may be several: channels of a block, blocks, positions */
        for (int i = 0; i < CUTS && s->transposed < 0 && qn_nest_cut(&rehearsal, &cut, vars); i++) {
            rehearse(&rehearsal, l, group, name, scratch, &cut, vars);
            s->transposed = qn_transposed_axis(&rehearsal, &cut, vars);
            if (s->transposed >= 0)
                s->nest = cut;
        }
    }
    if (!gpu && qn_nest_may_zip(&s->nest)) {
        rehearse(&rehearsal, l, group, name, scratch, &s->nest, vars);
        const bool stores = qn_nest_stores_zipped(&rehearsal, group, &s->nest, vars);
        s->zipped = stores && qn_nest_zips(&rehearsal, &s->nest, vars);
        const int paired = stores && !s->zipped ? qn_paired_axis(&rehearsal, &s->nest, vars, &s->pairs) : -1;
        s->transposed = s->zipped || paired >= 0 ? paired : s->transposed;
    }
    for (bool more = s->transposed >= 0 && !s->pairs; more; s->run |= more) {
        rehearse(&rehearsal, l, group, name, scratch, &s->nest, vars);
        more = qn_nest_run(&rehearsal, &s->nest, s->transposed, vars);
    }
}

/* The group's elements in tasks; how many. */
static qn_dim write_shape(qn_writer *w, const qn_group *group, const shape *s)
{
    const qn_lowering *l = w->lowering;
    const bool gpu = l->options->machine && l->options->machine->gpu;
    const int64_t least = gpu ? 256 : 64;
    const double grain = (double)qn_task_elements(l, group) / work_of(group);
    int64_t size = grain < (double)least ? least : (int64_t)grain;
    if (s->pieces)
        size = pieces_grain(&s->nest, size);
    if (s->transposed >= 0)
        return qn_write_transposed(w, group, &s->nest, s->transposed, s->run, s->pairs, size);
    if (s->zipped)
        return qn_write_zipped(w, group, &s->nest, size);
    qn_loops loops = { 0 };
    if (gpu && s->nest.n > 0)
        plan_flat(w, &s->nest, size, &loops);
    else
        qn_loops_plan(w, &s->nest, size, &loops);
    if (s->pieces)
        take_rows_first(&loops);
    if (s->blocks && loops.n >= 2)
        write_blocks(w, group, &s->nest, &loops);
    else
        write_elements(w, group, &s->nest, &loops);
    return loops.tasks;
}

/* Part after part, each with tasks of its own. */
static qn_dim write_parts(qn_writer *w, const qn_group *group, const char *name, const qn_nest *nest,
                          const qn_parts *parts)
{
    qn_kinst *branches[QN_MAX_PARTS];
    int64_t before = 0;
    for (int p = 0; p < parts->n; p++) {
        shape s = { .nest = *nest };
        qn_nest_part(w->lowering, &s.nest, parts, p);
        find_shape(w->lowering, group, name, w->arena, &s);
        qn_writer rehearsal; /* says how many tasks the part has */
        qn_writer_init(&rehearsal, w->lowering, name, w->arena);
        bind_all(&rehearsal, group);
        const int64_t tasks = write_shape(&rehearsal, group, &s)->value;
        qn_kvalue *task = qn_kb_task(&w->b);
        if (p < parts->n - 1)
            branches[p] =
                qn_kb_if(&w->b, qn_kb_compare(&w->b, QN_LT, task, qn_kb_index(&w->b, before + tasks)));
        const size_t mark = qn_writer_mark(w);
        w->part = p;
        w->section++;
        w->task = qn_kb_isub(&w->b, task, qn_kb_index(&w->b, before));
        write_shape(w, group, &s);
        qn_writer_forget(w, mark);
        if (p < parts->n - 1)
            qn_kb_else(&w->b, branches[p], 0, NULL);
        before += tasks;
    }
    for (int p = parts->n - 2; p >= 0; p--)
        qn_kb_end_if(&w->b, branches[p], 0, NULL);
    return qn_dim_const(w->space.dims, before);
}

/* The loops of a part behind those over the axes before it: axes that nothing tells apart are one. */
static qn_nest inner_nest(qn_writer *r, qn_lowering *l, const qn_group *group, const char *name,
                          qn_arena *scratch, const qn_nest *nest, int axis)
{
    qn_nest merged = { 0 };
    qn_dim vars[QN_MAX_RANK];
    rehearse(r, l, group, name, scratch, nest, vars);
    for (int i = 0; i < nest->n; i++) {
        bool one = i > axis && vars[i - 1]->kind == QN_DIM_SYMBOL;
        for (size_t k = 0; k < r->accesses.n && one; k++)
            one = qn_nest_sees_as_one(&r->space, r->accesses.items[k].linear, vars[i - 1], vars[i],
                                      qn_ispace_var_of(&r->space, vars[i])->extent);
        if (!one || !qn_nest_join(l, &merged, nest, i))
            qn_nest_add(&merged, nest, i);
    }
    return merged;
}

/* All parts in each task: loops over the axes before theirs, in them the parts one after the other. */
static qn_dim write_inner_parts(qn_writer *w, const qn_group *group, const char *name, const qn_nest *nest,
                                const qn_parts *parts)
{
    const double grain = (double)qn_task_elements(w->lowering, group) / work_of(group);
    qn_nest before = *nest;
    qn_loops outer;
    double inside = 1;
    before.n = parts->axis;
    for (int i = parts->axis; i < nest->n; i++)
        inside *= qn_likely_extent(nest->dims[i]);
    qn_loops_plan(w, &before, grain > inside ? (int64_t)(grain / inside) : 1, &outer);
    qn_writer_loop open[QN_MAX_RANK];
    for (int k = 0; k < outer.n; k++)
        open[k] = qn_planned_loop_open(w, &outer.loops[k], QN_TAG_SERIAL);
    for (int p = 0; p < parts->n; p++) {
        qn_nest part = *nest;
        qn_writer rehearsal;
        qn_nest_part(w->lowering, &part, parts, p);
        part = inner_nest(&rehearsal, w->lowering, group, name, w->arena, &part, parts->axis);
        const size_t mark = qn_writer_mark(w);
        w->section++;
        qn_loops loops = { 0 };
        for (int i = 0; i < part.n; i++) {
            loops.index[i] = i < parts->axis
                                 ? outer.index[i]
                                 : qn_ispace_var(&w->space, qn_ispace_import(&w->space, part.dims[i]), false);
            if (i >= parts->axis)
                loops.loops[loops.n++] = (qn_planned_loop){ .var = loops.index[i] };
        }
        write_elements(w, group, &part, &loops);
        qn_writer_forget(w, mark);
    }
    for (int k = outer.n - 1; k >= 0; k--)
        qn_writer_end_for(w, &open[k], NULL);
    return outer.tasks;
}

qn_status qn_lower_loop(qn_lowering *l, const qn_group *group)
{
    shape s = { .nest = { 0 } };
    for (int i = 0; i < group->n_dims; i++) {
        if (qn_dim_is(group->dims[i], 0))
            return QUERN_OK; /* nothing to compute */
        if (!qn_dim_is(group->dims[i], 1))
            s.nest.dims[s.nest.n++] = qn_lower_dim(l, group->dims[i]);
    }
    qn_arena *scratch = qn_arena_new();
    const char *name = qn_group_kernel_name(group, scratch);
    find_shape(l, group, name, scratch, &s);

    qn_writer w;
    qn_parts parts = { 0 };
    if (s.bounded && !s.run) {
        qn_dim vars[QN_MAX_RANK];
        rehearse(&w, l, group, name, scratch, &s.nest, vars);
        parts = qn_find_parts(&w, &s.nest, vars);
        if (!parts.tasks && (s.transposed >= 0 || s.zipped || s.blocks))
            parts.n = 0;
    }
    qn_writer_init(&w, l, name, scratch);
    bind_all(&w, group);
    const qn_dim tasks = parts.n == 0  ? write_shape(&w, group, &s)
                         : parts.tasks ? write_parts(&w, group, name, &s.nest, &parts)
                                       : write_inner_parts(&w, group, name, &s.nest, &parts);
    const qn_status status = qn_writer_finish(&w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}
