/* Convolution in channel blocks whose spatial extents are symbols: sound of any length, pictures of any size.
 *
 * conv.c knows where each tile meets the border. Here nobody does. A tile is some positions side by side in one row; what is left
 * of a row is made of tiles of 16, 8, 4, 2 and 1 positions, as long as these are smaller:
 *
 *   a row of 39 positions, tiles of 14:   14 14 8 2 1
 *
 * Rows of the kernel that read outside of x are left out. Of the columns of x that a tile reads in a row, no more than the first ones,
 * as many as there are of padding before x, may lie before it, and likewise the last ones behind it: only numbers from there are
 * compared with x's extent, and are 0 outside. Where rows have more padding (MOST_PADDING), of a dilated kernel columns that lie
 * outside of x for the whole tile are left out, and what is read of x for one that meets the border is copied to a local buffer first,
 * with its zeros. Other kernels get a padded x then.
 *
 *   task: some panels of output channels x some lines; a line is a part of a row of the result, some tiles long
 *     for each panel, line, tile
 *       for block, kernel's depth and height, kernel's width, channel: sum[position][vector] += x[position] * weights[vector]
 *       store, or: tile to a local buffer, then what follows, element by element
 *
 * Where groups lie inside of blocks a position's x is a vector, of which each lane takes its group's channels, one after the
 * other. Of bytes four channels are multiplied at a time, of bf16 two: x and weights count in words then (words.h). The order of a
 * sum depends on nothing but the kernel. */
#include "passes/conv_symbolic.h"

#include <string.h>

#include "passes/arith.h"
#include "passes/conv.h"
#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/terms.h"
#include "passes/words.h"

/* Elements of padding before and behind a row of x: with more, comparing costs more than a copy of x that is padded. */
enum { MOST_PADDING = 1 };

typedef struct axis {
    qn_dim in, out; /* of the module; NULL: 1 */
    int64_t kernel, stride, dilation, low;
    int64_t high; /* places that it may read behind x; of an extent that is not known all */
} axis;

typedef struct plan {
    const qn_node *node;
    qn_dtype dtype; /* of the sums */
    bool inside;    /* groups lie inside of blocks: each lane takes its group's channels */
    bool flat;      /* of one place, without strides: all positions are one row */
    int64_t word;   /* elements of x and w that are multiplied at a time; 1: they are numbers */
    int64_t lanes, c, channels, blocks, out_blocks, groups; /* c and channels in words */
    int64_t of_group,
        reach; /* groups inside of blocks: output channels of one; channels of x that a block reads */
    axis axes[QN_CONV_AXES];
    int spatial, slot[QN_CONV_AXES]; /* which of `axes` spatial axis i is; -1: none, its extent is 1 */
    int64_t k;                       /* products of a sum */
    int64_t vectors, positions;      /* of a tile */
    int64_t tiles;                   /* of a line */
    int64_t panels, panels_per_task, lines_per_task;
    bool lines_first;
} plan;

typedef struct emitter {
    qn_writer w;
    plan p;
    const qn_group *group;
    qn_ktype vector;
    bool fused;
    qn_kbuffer *x, *weights, *local, *border;
    qn_dim in[QN_CONV_AXES], out[QN_CONV_AXES];                /* of the space */
    qn_dim dims[QN_MAX_RANK];                                  /* of the result; of the space */
    qn_kvalue *row_elements, *slice_elements, *plane_elements; /* of x, in a block */
    /* the tile at work */
    int64_t vectors, n;
    int64_t channel; /* of groups inside of blocks */
    qn_kvalue *from[QN_CONV_AXES],
        *to[QN_CONV_AXES]; /* planes and rows of the kernel that read in x; columns if it reaches far */
    qn_kvalue *x_column, *row_at; /* of x: the first one of the tile; where the row at work begins */
    qn_kvalue *width;             /* of x */
    qn_dim sample, block, depth, row, column;
    qn_kvalue *sums[QN_CONV_TILE];
    qn_dim at_vector, at_column, at_lane;
} emitter;

#define TERMS (&e->w.b)

/* ---- the plan ---- */

static bool read_axes(plan *p)
{
    const qn_type *x = &p->node->operands[0]->type, *w = &p->node->operands[1]->type,
                  *y = &p->node->results[0].type;
    bool symbolic = false;
    int last = QN_CONV_AXES;
    p->flat = true;
    p->spatial = x->rank - 3;
    if (p->spatial > QN_CONV_AXES)
        return false;
    for (int i = 0; i < QN_CONV_AXES; i++)
        p->axes[i] = (axis){ .kernel = 1, .stride = 1, .dilation = 1 };
    for (int i = p->spatial - 1; i >= 0; i--) {
        axis a = { .in = x->dims[2 + i],
                   .out = y->dims[2 + i],
                   .stride = qn_attr_ints(p->node, QN_ATTR_STRIDE, NULL)[i],
                   .dilation = qn_attr_ints(p->node, QN_ATTR_W_DILATION, NULL)[i] };
        const qn_dim low = qn_attr_dims(p->node, QN_ATTR_LOW, NULL)[i],
                     high = qn_attr_dims(p->node, QN_ATTR_HIGH, NULL)[i];
        const bool exact = qn_dim_is(low, 0) && qn_dim_is(high, 0);
        if (!qn_dim_known(w->dims[2 + i], &a.kernel) || !qn_dim_known(low, &a.low))
            return false;
        a.high = high->max;
        symbolic |= !qn_dim_is_const(a.in) || !qn_dim_is_const(a.out);
        p->k *= a.kernel;
        p->flat &= a.kernel == 1 && a.stride == 1 && exact;
        p->slot[i] = qn_dim_is(a.in, 1) && qn_dim_is(a.out, 1) && a.kernel == 1 && exact ? -1 : --last;
        if (p->slot[i] >= 0)
            p->axes[p->slot[i]] = a;
    }
    return symbolic;
}

/* The tile, and how much of the work is a task. What is symbolic is taken to be as long as is likely. */
static void divide(plan *p, const qn_machine *machine)
{
    enum { TASK = 3000000, LONGEST = 16 };
    const int64_t in_group = p->out_blocks / p->groups;
    p->vectors = p->inside ? 1 : in_group % 2 == 0 ? 2 : in_group % 3 == 0 ? 3 : 1;
    if (!p->inside && p->groups == 1 && p->out_blocks > 3)
        p->vectors = 2;
    p->positions =
        p->inside ? machine->vector_registers / 2 - 2 : qn_conv_tile_positions(machine, p->vectors);
    p->positions = least(p->positions, QN_CONV_TILE / 2 * (p->vectors == 1 ? 2 : 1));
    const qn_dim out = p->axes[2].out;
    const bool known = !p->flat && qn_dim_is_const(out);
    if (known && out->value > 0)
        p->positions = ceil_div(out->value, ceil_div(out->value, p->positions));
    p->panels = ceil_div(p->out_blocks, p->vectors);
    const int64_t panel = p->k * p->vectors * p->lanes, bytes = panel * (int64_t)qn_dtype_bytes(p->dtype);
    p->panels_per_task = most(1, least(p->panels, machine->l2_bytes / 2 / most(bytes, 1)));
    const double tile = 2.0 * (double)(panel * p->positions);
    if (tile * (double)p->panels_per_task > TASK)
        p->panels_per_task = most(1, (int64_t)(TASK / tile));
    p->panels_per_task = ceil_div(p->panels, ceil_div(p->panels, p->panels_per_task));
    const double in_task = TASK / (tile * (double)p->panels_per_task), /* tiles of a task */
        likely = qn_likely_extent(out) / (double)p->positions;
    p->tiles = most(1, least((int64_t)in_task, known ? (int64_t)likely : LONGEST));
    p->lines_per_task =
        most(1, (int64_t)(in_task / (likely < (double)p->tiles ? most(1, (int64_t)likely) : p->tiles)));
    p->lines_first = bytes * p->panels <= machine->l2_bytes / 2;
}

/* Groups of w_c channels each: whole blocks, or inside of them. */
static bool read_groups(plan *p, int64_t w_c)
{
    p->of_group =
        qn_attr_find(p->node, QN_ATTR_OUT_CHANNELS) ? qn_attr_int(p->node, QN_ATTR_OUT_CHANNELS) : 0;
    if (p->of_group == 0 && p->groups <= p->blocks)
        return w_c == p->c && p->blocks % p->groups == 0 && p->out_blocks % p->groups == 0;
    if (p->of_group == 0)
        p->of_group = p->out_blocks * p->lanes / p->groups;
    if (p->word > 1 || p->groups == 1 || p->channels != w_c || p->of_group < 1 || p->lanes % p->of_group != 0)
        return false;
    p->inside = true;
    p->reach = p->lanes / p->of_group * w_c;
    return p->reach > 1 && p->c % p->reach == 0 && p->out_blocks * p->reach <= p->blocks * p->c;
}

static bool meets_border(const axis *a)
{
    return a->low > 0 || a->high > 0;
}

/* Is there more padding than numbers are compared for, wherever they are? */
static bool reaches_far(const axis *a)
{
    return a->low > MOST_PADDING || a->high > MOST_PADDING;
}

static bool make_plan(const qn_node *node, const qn_pass_options *options, plan *p)
{
    const qn_machine *machine = options->machine;
    memset(p, 0, sizeof *p);
    if (node->op != QN_OP_CONV_PACKED || !machine || machine->gpu)
        return false;
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    int64_t w_c, w_blocks;
    p->node = node;
    p->dtype = node->results[0].type.dtype;
    p->word = qn_conv_word(node);
    const int last = w->rank - 1 - (p->word > 1); /* axis of the lanes */
    p->groups = qn_attr_int(node, QN_ATTR_GROUPS);
    p->channels = qn_attr_int(node, QN_ATTR_CHANNELS);
    /* sums of whole numbers are the same in any order */
    if (p->word == 0 || (options->math == QN_MATH_STRICT && p->dtype != QUERN_I32) || last != x->rank ||
        !qn_dim_known(x->dims[1], &p->blocks) || !qn_dim_known(x->dims[x->rank - 1], &p->c) ||
        !qn_dim_known(w->dims[0], &p->out_blocks) || !qn_dim_known(w->dims[1], &w_blocks) ||
        !qn_dim_known(w->dims[last - 1], &w_c) || !qn_dim_known(w->dims[last], &p->lanes) || p->blocks < 1 ||
        p->out_blocks < 1 || p->c % p->word || p->channels % p->word ||
        p->lanes * (int64_t)qn_dtype_bytes(p->dtype) != machine->vector_bytes)
        return false;
    p->c /= p->word;
    p->channels /= p->word;
    if (!read_groups(p, w_c))
        return false;
    p->k = p->channels;
    if (!read_axes(p))
        return false;
    if (reaches_far(&p->axes[2]) && (p->axes[2].dilation == 1 || p->c == 1 || p->inside))
        return false;
    if (p->inside)
        p->groups = 1;
    divide(p, machine);
    return true;
}

bool qn_conv_symbolic_takes(const qn_node *node, const qn_pass_options *options)
{
    plan p;
    return make_plan(node, options, &p);
}

/* ---- sums ---- */

static qn_kinst *open_loop(emitter *e, qn_kvalue *low, qn_kvalue *high, int64_t step)
{
    return qn_kb_carry(TERMS, low, high, INDEX(step), QN_TAG_SERIAL, (int)(e->n * e->vectors), e->sums, NULL);
}

static void close_loop(emitter *e, qn_kinst *loop)
{
    qn_kb_end_carry(TERMS, loop, e->sums);
}

static int64_t places(const plan *p)
{
    return p->axes[0].kernel * p->axes[1].kernel * p->axes[2].kernel;
}

/* Elements of the weights of a place of the kernel, for a block of x. */
static int64_t place_weights(const plan *p)
{
    return (p->inside ? p->channels : p->c) * p->lanes;
}

/* Elements of the weights of an output block. */
static int64_t block_weights(const plan *p)
{
    return (p->inside ? 1 : p->blocks / p->groups) * places(p) * place_weights(p);
}

/* Numbers or words side by side. */
static qn_kvalue *load(emitter *e, qn_kbuffer *buffer, qn_kvalue *at, int64_t lanes)
{
    return e->p.word > 1 ? qn_word_load(TERMS, buffer, at, (int)lanes)
                         : qn_kb_load(TERMS, buffer, at, (int)lanes);
}

/* One of them in all lanes. */
static qn_kvalue *repeat(emitter *e, qn_kbuffer *buffer, qn_kvalue *at)
{
    return e->p.word > 1 ? qn_word_repeat(TERMS, buffer, at, (int)e->p.lanes)
                         : qn_kb_splat(TERMS, qn_kb_load(TERMS, buffer, at, 1), (int)e->p.lanes);
}

/* Some steps in a row of the kernel, from column `first` of it on, which is `low` to `high`. */
typedef struct row_part {
    qn_kvalue *first;
    int64_t low, high;
    int64_t x_step, w_step; /* from one step to the next x and the weights are read so much further */
    bool columns;           /* steps are columns; otherwise channels of one */
    bool lies_inside;       /* of x, for the whole tile */
} row_part;

/* Does position q of the tile read in x at step u? NULL: it surely does. */
static qn_kvalue *reads_inside(emitter *e, const row_part *part, int64_t q, int64_t u)
{
    const axis *a = &e->p.axes[2];
    const int64_t of_kernel = part->columns ? u : 0, at = q * a->stride,
                  last = (e->n - 1) * a->stride + (a->kernel - 1) * a->dilation;
    const bool before = at + (part->low + of_kernel) * a->dilation < a->low,
               behind = last - at - (part->high + of_kernel) * a->dilation < a->high;
    if (part->lies_inside || (!before && !behind))
        return NULL;
    qn_kvalue *k = ADD(part->first, INDEX(of_kernel)),
              *column = ADD(ADD(e->x_column, INDEX(at)), MUL(k, INDEX(a->dilation)));
    qn_kvalue *not_before = qn_kb_compare(TERMS, QN_GE, column, INDEX(0)),
              *not_behind = qn_kb_compare(TERMS, QN_LT, column, e->width);
    return !before   ? not_behind
           : !behind ? not_before
                     : qn_kb_binary(TERMS, QN_OP_AND, not_before, not_behind);
}

/* The channel at work of each lane's group, of a vector of x. */
static qn_kvalue *by_lanes(emitter *e, qn_kvalue *x)
{
    const plan *p = &e->p;
    int mask[64];
    for (int64_t lane = 0; lane < p->lanes; lane++)
        mask[lane] = (int)(lane / p->of_group * p->channels + e->channel);
    return qn_kb_shuffle(TERMS, x, x, (int)p->lanes, mask);
}

/* What position q multiplies at step u. */
static qn_kvalue *number_of_x(emitter *e, const row_part *part, qn_kvalue *x_at, int64_t q, int64_t u)
{
    const plan *p = &e->p;
    qn_kvalue *at = ADD(x_at, INDEX(q * p->axes[2].stride * p->c + u * part->x_step)),
              *inside = reads_inside(e, part, q, u);
    if (inside)
        at = qn_kb_select(TERMS, inside, at, e->row_at);
    qn_kvalue *x = p->inside ? by_lanes(e, qn_kb_load(TERMS, e->x, at, (int)p->reach)) : repeat(e, e->x, at);
    if (inside)
        x = qn_kb_select(TERMS, qn_kb_splat(TERMS, inside, x->type.lanes), x,
                         qn_kb_const(TERMS, x->type, (qn_scalar){ .i = 0 }));
    return x;
}

/* `n` steps, unrolled. */
static void steps(emitter *e, const row_part *part, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n)
{
    const plan *p = &e->p;
    for (int64_t u = 0; u < n && !p->inside; u++) {
        qn_kvalue *weights[4];
        for (int64_t j = 0; j < e->vectors; j++)
            weights[j] =
                load(e, e->weights, ADD(w_at, INDEX(j * block_weights(p) + u * part->w_step)), p->lanes);
        for (int64_t q = 0; q < e->n; q++) {
            qn_kvalue *x = number_of_x(e, part, x_at, q, u);
            for (int64_t j = 0; j < e->vectors; j++) {
                qn_kvalue **sum = &e->sums[q * e->vectors + j];
                *sum = qn_word_multiply_add(TERMS, x, weights[j], *sum, e->fused);
            }
        }
    }
    /* position after position, so that a column of x is put in order once for all steps that read it */
    for (int64_t q = 0; q < e->n && p->inside; q++)
        for (int64_t u = 0; u < n; u++) {
            qn_kvalue *x = number_of_x(e, part, x_at, q, u);
            qn_kvalue *weights = load(e, e->weights, ADD(w_at, INDEX(u * part->w_step)), p->lanes);
            e->sums[q] = qn_word_multiply_add(TERMS, x, weights, e->sums[q], e->fused);
        }
}

/* Where they follow each other; see conv_steps.c. */
static void ask_for_weights(emitter *e, const row_part *part, qn_kvalue *w_at, int64_t n)
{
    const plan *p = &e->p;
    const int64_t block = block_weights(p);
    if (part->w_step == p->lanes &&
        qn_conv_asks_for_weights(e->w.lowering->options->machine, e->vectors * block))
        for (int64_t j = 0; j < e->vectors; j++)
            qn_word_prefetch_run(TERMS, e->weights, ADD(w_at, INDEX(j * block + QN_CONV_AHEAD * p->lanes)),
                                 n * p->lanes);
}

static void run(emitter *e, row_part part, qn_kvalue *x_at, qn_kvalue *w_at, int64_t length)
{
    const int64_t by = length <= 8              ? length
                       : e->n * e->vectors > 16 ? 4
                                                : 8,
                  looped = by == length ? 0 : length - length % by;
    if (looped > 0) {
        qn_kinst *loop = open_loop(e, INDEX(0), INDEX(looped), by);
        qn_kvalue *u = qn_loop_counter(loop);
        qn_kvalue *w_u = ADD(w_at, MUL(u, INDEX(part.w_step)));
        row_part here = part;
        ask_for_weights(e, &part, w_u, by);
        if (part.columns) {
            here.first = ADD(part.first, u);
            here.high += looped - by;
        }
        steps(e, &here, ADD(x_at, MUL(u, INDEX(part.x_step))), w_u, by);
        close_loop(e, loop);
    }
    if (part.columns) {
        part.first = ADD(part.first, INDEX(looped));
        part.low += looped;
        part.high += looped;
    }
    if (length > looped)
        steps(e, &part, ADD(x_at, INDEX(looped * part.x_step)), ADD(w_at, INDEX(looped * part.w_step)),
              length - looped);
}

/* What the tile reads of x for a column of the kernel: copied, with 0 outside of x. */
static void copy_column(emitter *e, qn_kvalue *first, qn_kvalue *x_at)
{
    const plan *p = &e->p;
    const int64_t lanes = least(p->c & -p->c, p->lanes);
    for (int64_t q = 0; q < e->n; q++) {
        const int64_t column = q * p->axes[2].stride;
        qn_kvalue *at = ADD(first, INDEX(column)),
                  *inside = qn_kb_binary(TERMS, QN_OP_AND, qn_kb_compare(TERMS, QN_GE, at, INDEX(0)),
                                         qn_kb_compare(TERMS, QN_LT, at, e->width)),
                  *from = qn_kb_select(TERMS, inside, ADD(x_at, INDEX(column * p->c)), e->row_at);
        for (int64_t i = 0; i < p->c; i += lanes) {
            qn_kvalue *x = load(e, e->x, ADD(from, INDEX(i)), lanes);
            x = qn_kb_select(TERMS, qn_kb_splat(TERMS, inside, x->type.lanes), x,
                             qn_kb_const(TERMS, x->type, (qn_scalar){ .i = 0 }));
            qn_kb_store(TERMS, e->border, INDEX((column * p->c + i) * p->word), x, NULL);
        }
    }
}

/* A column of a kernel that reaches far, which meets x for some position of the tile. */
static void far_column(emitter *e, row_part part, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const axis *a = &e->p.axes[2];
    const int n = (int)(e->n * e->vectors);
    part.lies_inside = true;
    if (e->n == 1) {
        run(e, part, x_at, w_at, channels);
        return;
    }
    qn_kvalue *first = ADD(e->x_column, MUL(part.first, INDEX(a->dilation))),
              *last = ADD(first, INDEX((e->n - 1) * a->stride)), *before[QN_CONV_TILE];
    memcpy(before, e->sums, (size_t)n * sizeof *before);
    qn_kinst *branch =
        qn_kb_if(TERMS, qn_kb_binary(TERMS, QN_OP_AND, qn_kb_compare(TERMS, QN_GE, first, INDEX(0)),
                                     qn_kb_compare(TERMS, QN_LT, last, e->width)));
    run(e, part, x_at, w_at, channels);
    qn_kb_else(TERMS, branch, n, e->sums);
    memcpy(e->sums, before, (size_t)n * sizeof *before);
    copy_column(e, first, x_at);
    qn_kbuffer *const x = e->x;
    e->x = e->border;
    run(e, part, INDEX(0), w_at, channels);
    e->x = x;
    qn_kb_end_if(TERMS, branch, n, e->sums);
    for (int i = 0; i < n; i++)
        e->sums[i] = &branch->results[i];
}

/* One row of the kernel over `channels` channels of a block, whose row of x begins at row_at. */
static void kernel_row(emitter *e, qn_kvalue *row_at, qn_kvalue *w_at, int64_t channels)
{
    const plan *p = &e->p;
    const axis *a = &p->axes[2];
    const int64_t x_column = a->dilation * p->c, w_column = place_weights(p);
    qn_kvalue *x_at = ADD(row_at, MUL(e->x_column, INDEX(p->c)));
    row_part part = { .first = INDEX(0), .x_step = x_column, .w_step = w_column, .columns = true };
    e->row_at = row_at;
    if (p->inside) { /* a channel's weights, and no more, stay in registers */
        for (e->channel = 0; e->channel < p->channels; e->channel++)
            run(e, part, x_at, ADD(w_at, INDEX(e->channel * p->lanes)), a->kernel);
        return;
    }
    if (p->c == 1) { /* a column is a step */
        run(e, part, x_at, w_at, a->kernel);
        return;
    }
    part = (row_part){ .first = INDEX(0), .x_step = 1, .w_step = p->lanes };
    /* columns follow each other in x as in the weights */
    if (a->dilation == 1 && channels == p->c && !meets_border(a)) {
        run(e, part, x_at, w_at, a->kernel * p->c);
        return;
    }
    qn_kinst *loop = open_loop(e, e->from[2], e->to[2], 1);
    part.first = qn_loop_counter(loop);
    part.high = a->kernel - 1;
    x_at = ADD(x_at, MUL(part.first, INDEX(x_column)));
    w_at = ADD(w_at, MUL(part.first, INDEX(w_column)));
    if (reaches_far(a))
        far_column(e, part, x_at, w_at, channels);
    else
        run(e, part, x_at, w_at, channels);
    close_loop(e, loop);
}

static void kernel_block(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const plan *p = &e->p;
    const axis *depth = &p->axes[0], *height = &p->axes[1];
    const int64_t w_row = p->axes[2].kernel * place_weights(p);
    qn_kinst *planes = open_loop(e, e->from[0], e->to[0], 1);
    qn_kvalue *k = qn_loop_counter(planes);
    x_at = ADD(x_at, MUL(MUL(k, INDEX(depth->dilation)), e->slice_elements));
    w_at = ADD(w_at, MUL(k, INDEX(height->kernel * w_row)));
    qn_kinst *rows = open_loop(e, e->from[1], e->to[1], 1);
    k = qn_loop_counter(rows);
    kernel_row(e, ADD(x_at, MUL(MUL(k, INDEX(height->dilation)), e->row_elements)),
               ADD(w_at, MUL(k, INDEX(w_row))), channels);
    close_loop(e, rows);
    close_loop(e, planes);
}

static qn_dim scaled(qn_dims *dims, qn_dim at, int64_t by)
{
    return qn_dim_mul(dims, at, qn_dim_const(dims, by));
}

/* Which place of x along an axis the kernel's first one meets at that output position; and which of the kernel meet x, of planes
 * and rows: none where rows are empty. Of columns those that meet x for some position of the tile, if it reaches far. */
static qn_kvalue *meet(emitter *e, int i, qn_dim at)
{
    const axis *a = &e->p.axes[i];
    qn_dims *dims = e->w.space.dims;
    const qn_dim zero = qn_dim_const(dims, 0), dilation = qn_dim_const(dims, a->dilation),
                 first = qn_dim_sub(dims, scaled(dims, at, a->stride), qn_dim_const(dims, a->low));
    const bool columns = i == QN_CONV_AXES - 1, all = columns && !reaches_far(a);
    qn_dim low = zero, high = qn_dim_const(dims, a->kernel);
    if (a->low > 0 && !all) {
        const qn_dim last = qn_dim_add(dims, first, qn_dim_const(dims, columns ? (e->n - 1) * a->stride : 0));
        low = qn_dim_ceildiv(dims, qn_dim_max(dims, qn_dim_sub(dims, zero, last), zero), dilation);
    }
    if (a->high > 0 && !all)
        high = qn_dim_min(
            dims, high,
            qn_dim_ceildiv(dims, qn_dim_max(dims, qn_dim_sub(dims, e->in[i], first), zero), dilation));
    if (!columns && meets_border(&e->p.axes[2]) && e->in[2]->min < 1)
        high = qn_dim_min(dims, high, scaled(dims, e->in[2], a->kernel));
    e->from[i] = qn_writer_index(&e->w, low);
    e->to[i] = qn_writer_index(&e->w, high);
    return qn_writer_index(&e->w, first);
}

static void sum_tile(emitter *e)
{
    const plan *p = &e->p;
    qn_writer *w = &e->w;
    for (int64_t i = 0; i < e->n * e->vectors; i++)
        e->sums[i] = qn_kb_const(TERMS, e->vector, (qn_scalar){ .i = 0 });
    const int64_t in_group = p->blocks / p->groups, out_in_group = p->out_blocks / p->groups;
    qn_kvalue *block = qn_writer_index(w, e->block), *first = INDEX(0); /* of x */
    if (p->inside)
        first = DIV(MUL(block, INDEX(p->reach)), INDEX(p->c));
    else if (p->groups > 1)
        first = MUL(DIV(block, INDEX(out_in_group)), INDEX(in_group));
    qn_kvalue *x_at = ADD(MUL(qn_writer_index(w, e->sample), INDEX(p->blocks)), first);
    x_at = MUL(x_at, e->plane_elements);
    x_at = ADD(x_at, MUL(meet(e, 0, e->depth), e->slice_elements));
    x_at = ADD(x_at, MUL(meet(e, 1, e->row), e->row_elements));
    e->x_column = meet(e, 2, e->column);
    qn_kvalue *w_at = MUL(block, INDEX(block_weights(p)));
    if (p->inside) {
        kernel_block(e, ADD(x_at, MOD(MUL(block, INDEX(p->reach)), INDEX(p->c))), w_at, 1);
        return;
    }
    const int64_t whole = p->channels / p->c, rest = p->channels % p->c, w_step = places(p) * p->c * p->lanes;
    qn_kinst *loop = open_loop(e, INDEX(0), INDEX(whole), 1);
    qn_kvalue *k = qn_loop_counter(loop);
    kernel_block(e, ADD(x_at, MUL(k, e->plane_elements)), ADD(w_at, MUL(k, INDEX(w_step))), p->c);
    close_loop(e, loop);
    if (rest > 0)
        kernel_block(e, ADD(x_at, MUL(INDEX(whole), e->plane_elements)), ADD(w_at, INDEX(whole * w_step)),
                     rest);
}

/* ---- what is done with the sums ---- */

static void result_index(emitter *e, qn_dim *out)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim along[QN_CONV_AXES] = { e->depth, e->row, qn_dim_add(dims, e->column, e->at_column) };
    out[0] = e->sample;
    out[1] = qn_dim_add(dims, e->block, e->at_vector);
    if (e->p.flat)
        qn_ix_split(&e->w.space, along[2], e->p.spatial, e->dims + 2, out + 2);
    for (int i = 0; i < e->p.spatial && !e->p.flat; i++)
        out[2 + i] = e->p.slot[i] < 0 ? qn_dim_const(dims, 0) : along[e->p.slot[i]];
    out[2 + e->p.spatial] = e->at_lane;
}

static void set_place(emitter *e, int64_t i)
{
    e->at_vector = qn_dim_const(e->w.space.dims, i % e->vectors);
    e->at_column = qn_dim_const(e->w.space.dims, i / e->vectors);
}

static void store_sums(emitter *e, qn_value *value)
{
    qn_writer *w = &e->w;
    qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), false, true);
    qn_dim index[QN_MAX_RANK];
    e->at_lane = qn_dim_const(w->space.dims, 0);
    for (int64_t i = 0; i < e->n * e->vectors; i++) {
        set_place(e, i);
        result_index(e, index);
        const qn_dim linear = qn_ix_linear(&w->space, value->type.rank, e->dims, index);
        qn_kb_store(TERMS, y, qn_writer_index(w, linear), e->sums[i], NULL);
    }
}

/* The sum that belongs to the element at work: qn_fetch_fn. The group reads it nowhere else. */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const emitter *e = user;
    qn_dims *dims = w->space.dims;
    (void)value, (void)index;
    const qn_dim i = qn_dim_add(dims, scaled(dims, e->at_column, e->vectors), e->at_vector);
    return qn_writer_load(w, e->local, qn_dim_add(dims, scaled(dims, i, e->p.lanes), e->at_lane));
}

/* The group's outputs at the place in the tile. */
static void store_outputs(emitter *e)
{
    qn_writer *w = &e->w;
    qn_dim index[QN_MAX_RANK];
    result_index(e, index);
    qn_writer_loop loop = qn_writer_for_all(w, e->at_lane, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store_outputs(w, e->group, e->p.spatial + 3, e->dims, index);
    qn_writer_end_for(w, &loop, NULL);
}

static bool is_written_out(const emitter *e)
{
    enum { MOST = 256 };
    int64_t cost = 0;
    for (int i = 0; i < e->group->n_nodes; i++)
        cost += e->group->nodes[i] == e->group->root ? 0 : qn_node_cost(e->group->nodes[i]);
    return cost * e->n * e->vectors <= MOST;
}

static void store_group(emitter *e)
{
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    w->section++; /* another tile, other elements */
    for (int64_t i = 0; i < e->n * e->vectors; i++)
        qn_kb_store(TERMS, e->local, INDEX(i * e->p.lanes), e->sums[i], NULL);
    e->at_lane = qn_ispace_var(&w->space, qn_dim_const(dims, e->p.lanes), false);
    if (is_written_out(e)) {
        for (int64_t i = 0; i < e->n * e->vectors; i++) {
            set_place(e, i);
            store_outputs(e);
        }
        return;
    }
    e->at_vector = qn_ispace_var(&w->space, qn_dim_const(dims, e->vectors), false);
    e->at_column = qn_ispace_var(&w->space, qn_dim_const(dims, e->n), false);
    qn_writer_loop vectors = qn_writer_for_all(w, e->at_vector, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop columns = qn_writer_for_all(w, e->at_column, QN_TAG_SERIAL, 0, NULL, NULL);
    store_outputs(e);
    qn_writer_end_for(w, &columns, NULL);
    qn_writer_end_for(w, &vectors, NULL);
}

/* ---- the loops of a task ---- */

/* Tiles of `size` positions, from column `start` on, `n` of them. */
static void tiles(emitter *e, int64_t size, qn_kvalue *start, qn_kvalue *n)
{
    qn_writer *w = &e->w;
    qn_kinst *loop = FOR(INDEX(0), n);
    const size_t mark = qn_writer_mark(w);
    e->n = size;
    e->column = qn_writer_datum(w, ADD(start, MUL(qn_loop_counter(loop), INDEX(size))), e->out[2]);
    sum_tile(e);
    if (e->local)
        store_group(e);
    else
        store_sums(e, e->group->outputs[0]);
    qn_writer_forget(w, mark);
    qn_kb_end_for(TERMS, loop, NULL);
}

/* Part `part` of a row. */
static void one_line(emitter *e, qn_kvalue *part)
{
    const plan *p = &e->p;
    const int64_t size = p->positions, length = p->tiles * size;
    qn_kvalue *start = MUL(part, INDEX(length)), *width = qn_writer_index(&e->w, e->out[2]),
              *n = MIN(SUB(width, start), INDEX(length));
    tiles(e, size, start, DIV(n, INDEX(size)));
    const bool known = qn_dim_is_const(e->out[2]);
    qn_kvalue *left = MOD(n, INDEX(size));
    for (int64_t piece = 16; piece >= 1; piece /= 2) {
        /* of a constant width all parts but the last one are whole */
        if (piece >= size || (known && (e->out[2]->value % size / piece) % 2 == 0))
            continue;
        qn_kvalue *here = 2 * piece >= size ? left : MOD(left, INDEX(2 * piece));
        tiles(e, piece, ADD(start, SUB(n, here)), DIV(here, INDEX(piece)));
    }
}

/* Lines [low, high) of a panel. */
static void one_panel(emitter *e, qn_kvalue *block, int64_t vectors, qn_kvalue *low, qn_kvalue *high,
                      qn_dim parts)
{
    qn_writer *w = &e->w;
    const size_t mark = qn_writer_mark(w);
    e->vectors = vectors;
    e->block = qn_writer_datum(w, block, qn_dim_const(w->space.dims, e->p.out_blocks));
    qn_kinst *loop = FOR(low, high);
    qn_kvalue *line = qn_loop_counter(loop), *n = qn_writer_index(w, parts), *row = DIV(line, n),
              *height = qn_writer_index(w, e->out[1]);
    e->depth = qn_writer_datum(w, DIV(row, height), e->out[0]);
    e->row = qn_writer_datum(w, MOD(row, height), e->out[1]);
    one_line(e, MOD(line, n));
    qn_writer_forget(w, mark);
    qn_kb_end_for(TERMS, loop, NULL);
}

static qn_dim write_tasks(emitter *e)
{
    const plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_dim samples = qn_ispace_import(&w->space, p->node->results[0].type.dims[0]);
    const qn_dim parts = qn_dim_ceildiv(dims, e->out[2], qn_dim_const(dims, p->tiles * p->positions));
    const qn_dim lines = qn_dim_mul(dims, qn_dim_mul(dims, e->out[0], e->out[1]), parts);
    const qn_dim line_parts = qn_dim_ceildiv(dims, lines, qn_dim_const(dims, p->lines_per_task));
    const int64_t panel_parts = ceil_div(p->panels, p->panels_per_task);
    const qn_dim tasks =
        qn_dim_mul(dims, qn_dim_mul(dims, samples, line_parts), qn_dim_const(dims, panel_parts));
    qn_kvalue *task = qn_kb_task(TERMS), *n_parts = qn_writer_index(w, line_parts), *sample, *part, *panel;
    if (p->lines_first) {
        panel = MOD(task, INDEX(panel_parts));
        task = DIV(task, INDEX(panel_parts));
        part = MOD(task, n_parts);
        sample = DIV(task, n_parts);
    } else {
        part = MOD(task, n_parts);
        task = DIV(task, n_parts);
        sample = MOD(task, qn_writer_index(w, samples));
        panel = DIV(task, qn_writer_index(w, samples));
    }
    e->sample = qn_writer_datum(w, sample, samples);
    qn_kvalue *low = MUL(part, INDEX(p->lines_per_task)),
              *high = MIN(ADD(low, INDEX(p->lines_per_task)), qn_writer_index(w, lines)),
              *first = MUL(panel, INDEX(p->panels_per_task)), *past = ADD(first, INDEX(p->panels_per_task));
    const int64_t whole = p->out_blocks / p->vectors, rest = p->out_blocks % p->vectors;
    qn_kinst *loop = FOR(first, MIN(past, INDEX(whole)));
    one_panel(e, MUL(qn_loop_counter(loop), INDEX(p->vectors)), p->vectors, low, high, parts);
    qn_kb_end_for(TERMS, loop, NULL);
    if (rest > 0) {
        loop = FOR(MAX(first, INDEX(whole)), MIN(past, INDEX(whole + 1)));
        one_panel(e, INDEX(whole * p->vectors), rest, low, high, parts);
        qn_kb_end_for(TERMS, loop, NULL);
    }
    return tasks;
}

/* ---- the template ---- */

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return group->kind == QN_GROUP_CONTRACTION && qn_conv_symbolic_takes(group->root, options);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    emitter *e = QN_NEW(scratch, emitter);
    e->group = group;
    const bool planned = make_plan(group->root, l->options, &e->p);
    QN_ASSERT(planned, "conv_symbolic: a group that was matched has no plan");
    const plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    qn_dims *dims = w->space.dims;
    e->vector = (qn_ktype){ p->dtype, (int)p->lanes };
    e->fused = qn_may_fuse(l->options);
    for (int i = 0; i < QN_CONV_AXES; i++) {
        const axis *a = &p->axes[i];
        e->in[i] = a->in ? qn_ispace_import(&w->space, a->in) : qn_dim_const(dims, 1);
        e->out[i] = a->out ? qn_ispace_import(&w->space, a->out) : qn_dim_const(dims, 1);
    }
    for (int i = 1; i >= 0 && p->flat; i--) {
        e->out[2] = e->in[2] = qn_dim_mul(dims, e->in[i], e->in[2]);
        e->out[i] = e->in[i] = qn_dim_const(dims, 1);
    }
    qn_ispace_dims(&w->space, &p->node->results[0].type, e->dims);
    const qn_dim row = scaled(dims, e->in[2], p->c), slice = qn_dim_mul(dims, e->in[1], row);
    e->width = qn_writer_index(w, e->in[2]);
    e->row_elements = qn_writer_index(w, row);
    e->slice_elements = qn_writer_index(w, slice);
    e->plane_elements = qn_writer_index(w, qn_dim_mul(dims, e->in[0], slice));
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    e->x = qn_writer_argument(w, qn_lower_buffer(l, p->node->operands[0]), true, false);
    e->weights = qn_writer_argument(w, qn_lower_buffer(l, p->node->operands[1]), true, false);
    qn_writer_note_load(w, e->x);
    qn_writer_note_load(w, e->weights);
    if (reaches_far(&p->axes[2]))
        e->border = qn_kernel_add_local(w->kernel, "border", e->x->dtype,
                                        ((p->positions - 1) * p->axes[2].stride + 1) * p->c * p->word);
    if (group->n_nodes > 1) {
        e->local = qn_kernel_add_local(w->kernel, "tile", p->dtype, p->positions * p->vectors * p->lanes);
        qn_writer_bind(w, &p->node->results[0], fetch_sum, e);
    }
    w->kernel->flops = 2.0 * (double)(p->k * p->out_blocks * p->lanes);
    for (int i = 0; i < QN_CONV_AXES; i++)
        w->kernel->flops *= qn_likely_extent(e->out[i]);
    w->kernel->flops *= qn_likely_extent(p->node->results[0].type.dims[0]);
    const qn_dim tasks = write_tasks(e);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_conv_symbolic = { .name = "conv_symbolic", .matches = matches, .lower = lower };
