/* The template for reduce_window along the last axis, as pooling of images that lie plane by plane has it: the windows' rows are put
 * together first, then neighbours in that row, which takes 3 + 3 operations for windows of 3 x 3 in place of 9.
 *
 *   task: some rows of the result
 *     for each piece of the rows
 *       rows = the neutral element where the piece reaches into the padding
 *       for a few rows
 *         for each of them, for each column that the piece's windows have, vectorized
 *           rows[row][column] = x[rows of the window, column] combined     no masks: the loops go over rows that exist
 *         for each of them, for each element of the piece, vectorized
 *           rows[row][stride * element + 0, 1, …] combined; what follows; stored
 *
 * A few, since what was just stored can't be read at another place before it has reached the cache.
 *
 * Sums come in another order than they are defined in, so strict math has them element by element. */
#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/terms.h"

enum {
    PIECE = 1024,   /* columns of x for one, at most, if a window isn't longer */
    MOST_TAPS = 16, /* that are written one after the other */
    LINE = 64,      /* elements of a row that stay together */
    ROWS = 8,       /* a few */
    LANES = 16      /* whose multiple a row's columns are */
};

typedef struct windows {
    qn_writer w;
    const qn_group *group;
    qn_node *node;
    int rank;
    qn_kind kind;
    qn_dtype dtype; /* of what is combined */
    const int64_t *window, *stride, *dilation;
    qn_dim low[QN_MAX_RANK], dims[QN_MAX_RANK], x_dims[QN_MAX_RANK]; /* of the result and of x */
    qn_dim index[QN_MAX_RANK];                                       /* of the result's element */
    qn_dim column;                                                   /* of x */
    int64_t piece, columns;                                          /* of the result; of x for it */
    qn_kbuffer *rows;
    qn_kvalue *row; /* where the row begins there */
    qn_kvalue *first,
        *start; /* element and column that the piece begins with; the column may be in the padding */
} windows;

#define TERMS (&p->w.b)

static int64_t span_of(const int64_t *window, const int64_t *dilation, int axis)
{
    return (window[axis] - 1) * dilation[axis] + 1;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_node *node = group->root;
    if (group->kind != QN_GROUP_LOOP || node->op != QN_OP_REDUCE_WINDOW || !options->machine ||
        options->machine->gpu)
        return false;
    const int last = node->operands[0]->type.rank - 1;
    const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL);
    const qn_kind kind = qn_attr_reduce_kind(node);
    const bool any_order = kind == QN_KIND_MAX || kind == QN_KIND_MIN ||
                           !qn_dtype_is_float(node->operands[0]->type.dtype) ||
                           options->math != QN_MATH_STRICT;
    for (int i = 0; i < group->n_dims; i++)
        if (qn_dim_is(group->dims[i], 0))
            return false;
    /* a window of one place along a padded axis has no loop whose bounds would say that it is in the padding */
    for (int i = 0; i < last; i++)
        if (window[i] == 1 && (qn_attr_dims(node, QN_ATTR_LOW, NULL)[i]->max > 0 ||
                               qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i]->max > 0))
            return false;
    return any_order && last >= 0 && window[last] > 1 && !qn_dim_is(node->operands[0]->type.dims[last], 1) &&
           span_of(window, qn_attr_ints(node, QN_ATTR_DILATION, NULL), last) <= PIECE / 2;
}

/* Where along an axis of x the window's first element is; it may be in the padding. */
static qn_dim begin_of(windows *p, int axis)
{
    qn_dims *dims = p->w.space.dims;
    return qn_dim_sub(dims, qn_dim_mul(dims, p->index[axis], qn_dim_const(dims, p->stride[axis])),
                      p->low[axis]);
}

/* acc combined with an element of x, whose axes before the last are at `taps` of the window. */
static qn_kvalue *combine_tap(windows *p, const qn_dim *taps, qn_kvalue *acc)
{
    qn_writer *w = &p->w;
    qn_dims *dims = w->space.dims;
    qn_dim at[QN_MAX_RANK];
    for (int i = 0; i < p->rank - 1; i++)
        at[i] =
            qn_dim_add(dims, begin_of(p, i), qn_dim_mul(dims, taps[i], qn_dim_const(dims, p->dilation[i])));
    at[p->rank - 1] = p->column;
    qn_kvalue *element = qn_writer_value(w, p->node->operands[0], at);
    return qn_writer_combine(w, p->kind, acc, qn_kb_convert(&w->b, p->dtype, element));
}

/* All taps from axis `axis` on. `inside`: all of the window is, so that its bounds are known. */
static qn_kvalue *combine_taps(windows *p, int axis, bool inside, bool one_by_one, qn_dim *taps,
                               qn_kvalue *acc)
{
    qn_writer *w = &p->w;
    qn_dims *dims = w->space.dims;
    if (axis == p->rank - 1)
        return combine_tap(p, taps, acc);
    if (one_by_one || p->window[axis] == 1) {
        for (int64_t k = 0; k < p->window[axis]; k++) {
            taps[axis] = qn_dim_const(dims, k);
            acc = combine_taps(p, axis + 1, inside, one_by_one, taps, acc);
        }
        return acc;
    }
    qn_kvalue *low = INDEX(0), *high = INDEX(p->window[axis]);
    if (!inside) {
        qn_kvalue *begin = qn_writer_index(w, begin_of(p, axis)), *step = INDEX(p->dilation[axis]),
                  *behind = INDEX(p->dilation[axis] - 1);
        low = MIN(high, DIV(ADD(MAX(INDEX(0), SUB(INDEX(0), begin)), behind), step));
        qn_kvalue *end = SUB(qn_writer_index(w, p->x_dims[axis]), begin);
        high = MAX(low, MIN(high, DIV(ADD(MAX(INDEX(0), end), behind), step)));
    }
    taps[axis] = qn_ispace_var(&w->space, qn_dim_const(dims, p->window[axis]), false);
    qn_writer_loop loop = qn_writer_for(w, taps[axis], low, high, QN_TAG_SERIAL, 1, &acc, NULL);
    acc = combine_taps(p, axis + 1, inside, one_by_one, taps, loop.carried[0]);
    qn_writer_end_for(w, &loop, &acc);
    return loop.carried[0];
}

/* row = windows' rows of the columns from low to high combined. */
static void put_rows_together(windows *p, qn_kvalue *low, qn_kvalue *high, bool inside, bool one_by_one)
{
    qn_writer *w = &p->w;
    const size_t mark = qn_writer_mark(w);
    qn_dim taps[QN_MAX_RANK];
    qn_writer_loop columns = qn_writer_for(w, p->column, low, high, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *acc = qn_kb_const(&w->b, (qn_ktype){ p->dtype, 1 }, qn_neutral(p->kind, p->dtype));
    acc = combine_taps(p, 0, inside, one_by_one, taps, acc);
    qn_kb_store(&w->b, p->rows, ADD(p->row, SUB(qn_writer_index(w, p->column), p->start)), acc, NULL);
    qn_writer_end_for(w, &columns, NULL);
    qn_writer_forget(w, mark);
}

static void fill(windows *p, qn_kvalue *low, qn_kvalue *high)
{
    qn_kbuilder *b = &p->w.b;
    qn_kvalue *neutral = qn_kb_const(b, (qn_ktype){ p->dtype, 1 }, qn_neutral(p->kind, p->dtype));
    qn_kinst *loop = FOR(low, high);
    for (int i = 0; i < ROWS; i++)
        qn_kb_store(b, p->rows, ADD(SUB(qn_loop_counter(loop), p->start), INDEX(i * p->columns)), neutral,
                    NULL);
    qn_kb_end_for(b, loop, NULL);
}

/* qn_fetch_fn: the windows' element from the row. */
static qn_kvalue *fetch(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    windows *p = user;
    qn_kbuilder *b = &w->b;
    const int last = p->rank - 1;
    qn_kvalue *at = ADD(p->row, MUL(SUB(qn_writer_index(w, index[last]), p->first), INDEX(p->stride[last])));
    qn_kvalue *acc = NULL;
    if (p->window[last] <= MOST_TAPS) {
        for (int64_t k = 0; k < p->window[last]; k++) {
            qn_kvalue *x = qn_kb_load(b, p->rows, ADD(at, INDEX(k * p->dilation[last])), 1);
            acc = acc ? qn_writer_combine(w, p->kind, acc, x) : x;
        }
    } else {
        acc = qn_kb_const(b, (qn_ktype){ p->dtype, 1 }, qn_neutral(p->kind, p->dtype));
        qn_kinst *taps =
            qn_kb_carry(b, INDEX(0), INDEX(p->window[last]), INDEX(1), QN_TAG_SERIAL, 1, &acc, NULL);
        qn_kvalue *x =
            qn_kb_load(b, p->rows, ADD(at, MUL(qn_loop_counter(taps), INDEX(p->dilation[last]))), 1);
        acc = qn_writer_combine(w, p->kind, acc, x);
        qn_kb_end_carry(b, taps, &acc);
    }
    return qn_kb_convert(b, value->type.dtype, acc);
}

/* The windows of a row of the result, columns from low to high of x. */
static void write_row(windows *p, qn_kvalue *low, qn_kvalue *high)
{
    qn_writer *w = &p->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    int64_t taps = 1;
    qn_kvalue *inside = NULL;
    for (int i = 0; i < p->rank - 1; i++) {
        taps *= p->window[i];
        if (p->window[i] == 1 && p->stride[i] == 1 && qn_dim_is(p->low[i], 0))
            continue;
        const qn_dim begin = begin_of(p, i);
        const qn_dim end =
            qn_dim_add(dims, begin, qn_dim_const(dims, span_of(p->window, p->dilation, i) - 1));
        inside = qn_writer_and_inside(w, inside, begin, p->x_dims[i]);
        inside = qn_writer_and_inside(w, inside, end, p->x_dims[i]);
    }
    const bool one_by_one = taps <= MOST_TAPS;
    if (!inside) {
        put_rows_together(p, low, high, true, one_by_one);
        return;
    }
    qn_kinst *branch = qn_kb_if(b, inside);
    put_rows_together(p, low, high, true, one_by_one);
    qn_kb_else(b, branch, 0, NULL);
    put_rows_together(p, low, high, false, false);
    qn_kb_end_if(b, branch, 0, NULL);
}

/* A loop over some rows, each with its place in the buffer. */
static qn_writer_loop each_row(windows *p, const qn_planned_loop *rows, qn_kvalue *low)
{
    qn_writer *w = &p->w;
    p->row = INDEX(0);
    if (!rows)
        return qn_writer_for(w, qn_dim_const(w->space.dims, 0), NULL, NULL, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *high =
        rows->high ? rows->high : qn_writer_index(w, qn_ispace_var_of(&w->space, rows->var)->extent);
    qn_writer_loop loop =
        qn_writer_for(w, rows->var, low, MIN(ADD(low, INDEX(ROWS)), high), QN_TAG_SERIAL, 0, NULL, NULL);
    p->row = MUL(SUB(qn_writer_index(w, rows->var), low), INDEX(p->columns));
    return loop;
}

/* One piece of some rows, of the elements from p->first to high. `rows` is their loop; NULL: there is one. */
static void write_piece(windows *p, const qn_planned_loop *rows, qn_kvalue *high)
{
    qn_writer *w = &p->w;
    qn_kbuilder *b = &w->b;
    const int last = p->rank - 1;
    qn_kvalue *stride = INDEX(p->stride[last]);
    p->start = SUB(MUL(p->first, stride), qn_writer_index(w, p->low[last]));
    qn_kvalue *end = ADD(ADD(p->start, MUL(SUB(SUB(high, p->first), INDEX(1)), stride)),
                         INDEX(span_of(p->window, p->dilation, last)));
    qn_kvalue *from = MIN(MAX(p->start, INDEX(0)), end);
    qn_kvalue *to = MAX(MIN(end, qn_writer_index(w, p->x_dims[last])), from);
    fill(p, p->start, from);
    fill(p, to, end);
    qn_kinst *some = NULL;
    qn_kvalue *low = INDEX(0);
    if (rows) {
        qn_kvalue *behind =
            rows->high ? rows->high : qn_writer_index(w, qn_ispace_var_of(&w->space, rows->var)->extent);
        some =
            qn_kb_for(b, rows->low ? rows->low : INDEX(0), behind, INDEX(ROWS), QN_TAG_SERIAL, 0, NULL, NULL);
        low = qn_loop_counter(some);
    }
    qn_writer_loop loop = each_row(p, rows, low);
    write_row(p, from, to);
    qn_writer_end_for(w, &loop, NULL);
    w->section++;
    loop = each_row(p, rows, low);
    qn_writer_loop elements = qn_writer_for(w, p->index[last], p->first, high, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store_outputs(w, p->group, p->rank, p->dims, p->index);
    qn_writer_end_for(w, &elements, NULL);
    qn_writer_end_for(w, &loop, NULL);
    if (some)
        qn_kb_end_for(b, some, NULL);
}

/* All rows, in tasks: how many. */
static qn_dim write_rows(windows *p)
{
    qn_writer *w = &p->w;
    qn_kbuilder *b = &w->b;
    const int last = p->rank - 1;
    qn_nest nest = { 0 };
    qn_loops loops;
    qn_writer_loop open[QN_MAX_RANK];
    int axes[QN_MAX_RANK];
    double work = 1;
    for (int i = 0; i < last; i++) {
        work *= (double)p->window[i];
        p->index[i] = qn_dim_const(w->space.dims, 0);
        if (!qn_dim_is(p->dims[i], 1)) {
            axes[nest.n] = i;
            nest.dims[nest.n++] = qn_lower_dim(w->lowering, p->node->results[0].type.dims[i]);
        }
    }
    work = work * (double)p->stride[last] + (double)p->window[last]; /* for an element */
    const double rows =
        (double)qn_task_elements(w->lowering, p->group) / (work * qn_likely_extent(p->dims[last]));
    qn_loops_plan(w, &nest, rows < 1 ? 1 : (int64_t)rows, &loops);
    for (int i = 0; i < nest.n; i++)
        p->index[axes[i]] = loops.index[i];
    const int outer = loops.n > 0 ? loops.n - 1 : 0;
    for (int i = 0; i < outer; i++)
        open[i] = qn_planned_loop_open(w, &loops.loops[i], QN_TAG_SERIAL);
    qn_kvalue *all = qn_writer_index(w, p->dims[last]);
    qn_kinst *pieces = qn_kb_for(b, INDEX(0), all, INDEX(p->piece), QN_TAG_SERIAL, 0, NULL, NULL);
    p->first = qn_loop_counter(pieces);
    write_piece(p, loops.n > 0 ? &loops.loops[outer] : NULL, MIN(ADD(p->first, INDEX(p->piece)), all));
    qn_kb_end_for(b, pieces, NULL);
    for (int i = outer - 1; i >= 0; i--)
        qn_writer_end_for(w, &open[i], NULL);
    return loops.tasks;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    windows *p = QN_NEW(scratch, windows);
    qn_writer *w = &p->w;
    qn_node *node = group->root;
    const qn_type *x = &node->operands[0]->type, *y = &node->results[0].type;
    const int last = x->rank - 1;
    *p = (windows){ .group = group,
                    .node = node,
                    .rank = x->rank,
                    .kind = qn_attr_reduce_kind(node),
                    .dtype = qn_dtype_wide(x->dtype),
                    .window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL),
                    .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                    .dilation = qn_attr_ints(node, QN_ATTR_DILATION, NULL) };
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    qn_writer_bind(w, &node->results[0], fetch, p);
    qn_ispace_dims(&w->space, y, p->dims);
    qn_ispace_dims(&w->space, x, p->x_dims);
    for (int i = 0; i <= last; i++)
        p->low[i] = qn_ispace_import(&w->space, qn_attr_dims(node, QN_ATTR_LOW, NULL)[i]);
    p->column = qn_ispace_var(&w->space, p->x_dims[last], false);
    p->index[last] = qn_ispace_var(&w->space, p->dims[last], false);
    const int64_t span = span_of(p->window, p->dilation, last), fit = (PIECE - span) / p->stride[last];
    p->piece = fit < LINE ? (fit < 1 ? 1 : fit) : fit / LINE * LINE;
    if (qn_dim_is_const(p->dims[last]) && p->dims[last]->value < p->piece)
        p->piece = p->dims[last]->value;
    p->columns = ((p->piece - 1) * p->stride[last] + span + LANES - 1) / LANES * LANES;
    p->rows = qn_kernel_add_local(w->kernel, "rows", p->dtype, ROWS * p->columns);
    const qn_dim tasks = write_rows(p);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_windows = { .name = "windows", .matches = matches, .lower = lower };
