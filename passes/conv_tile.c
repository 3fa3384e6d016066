/* The template for conv_packed of bfloat16 or bytes on a machine with a matrix unit (QN_K_TILE_*): two spatial axes, one group.
 *
 * A position is 64 bytes of x: a block of 32 channels, of bytes 64. A tile of x is up to 16 positions that lie at equal distances, so
 * for each block of channels and each place of the kernel it is loaded as it lies in x, and multiplied with that place's weights
 * for a panel of 32 output channels, of bytes half a block:
 *
 *   task: some rows of the map x some panels
 *     where x has a border: copy the rows of x that are read, with the border as zeros, to local memory
 *     for each panel
 *       for each pair of tiles of positions
 *         for block of x, kernel row, kernel column: sums += x[positions] * weights
 *         store the sums to a local buffer, then what follows, element by element over it
 *
 * What a tile of positions is depends on the map:
 *   wide rows                      a part of a row                       56 wide: 14 14 14 14
 *   rows of up to 16               one row, or several with what lies between them, whose sums nobody reads: 7 wide: 7 + 2 + 7
 *   1 x 1, stride 1, no border     the rows are one long row
 *
 * Each sum is made by one task in an order that depends on shapes only. */
#include "passes/conv_tile.h"

#include <string.h>

#include "passes/arith.h"
#include "passes/lower.h"
#include "passes/terms.h"

enum {
    HALF = QN_TILE_BYTES / 4, /* output channels of a tile */
    PANEL = 2 * HALF,
    X_TILE = 4,
    Y_TILE = 6,
    PARTS = 8,                /* tasks, at least, where there is work for so many */
    SMALLEST_TASK = 10000000, /* multiplications and additions */
    LOCAL_BYTES = 160 * 1024,
    UNROLL = 9,    /* places of a kernel that are written out */
    FEW_PAIRS = 12 /* of tiles: fewer use a block's weights so seldom that these have to be fetched ahead */
};

typedef struct axis {
    int64_t in, out, kernel, stride, low, high;
} axis;

/* `n` tiles of `size` positions, then one of `last` where that is not 0. */
typedef struct units {
    int64_t n, size, last;
} units;

typedef struct plan {
    axis h, w;
    qn_dtype x_type, w_type, sum;
    int64_t c, word; /* channels of a block; of them side by side in the weights */
    int64_t blocks, out_panels;
    bool copied;
    bool flat;            /* the rows of a task are one */
    int64_t rows;         /* of a task; divides h.out */
    int64_t panels;       /* of a task */
    int64_t pitch, depth; /* positions of a row, rows of a block, where the tiles are loaded from */
    int64_t unit_rows;    /* rows of a tile; 0: a row has several tiles */
    units units;          /* of a row, or of the rows of a task */
} plan;

/* ---- planning ---- */

static bool read_axis(const qn_node *node, int i, axis *a)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type, *y = &node->results[0].type;
    const qn_dim low = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i],
                 high = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i];
    const bool spread = node->op == QN_OP_CONVOLUTION && qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] != 1;
    if (!qn_dim_known(x->dims[2 + i], &a->in) || !qn_dim_known(w->dims[2 + i], &a->kernel) ||
        !qn_dim_known(y->dims[2 + i], &a->out) || !qn_dim_is_const(low) || !qn_dim_is_const(high) || spread ||
        qn_attr_ints(node, QN_ATTR_W_DILATION, NULL)[i] != 1)
        return false;
    a->stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[i];
    a->low = low->value;
    a->high = high->value;
    return a->in > 0 && a->kernel > 0 && a->out > 0 && a->low >= 0 && a->high >= 0;
}

/* Tiles of `length` positions in a row, of nearly equal size. */
static units split(int64_t length)
{
    const int64_t n = ceil_div(length, QN_TILE_ROWS), size = ceil_div(length, n), whole = length / size;
    return (units){ whole, size, length - whole * size };
}

/* Local memory that a task of so many rows copies x to. */
static int64_t copied_bytes(const plan *p, int64_t rows)
{
    const int64_t depth = (rows - 1) * p->h.stride + p->h.kernel;
    return p->copied ? p->blocks * depth * p->pitch * QN_TILE_BYTES : 0;
}

static double flops(const plan *p)
{
    return 2.0 * (double)(p->h.out * p->w.out * p->h.kernel * p->w.kernel * p->c * PANEL) *
           (double)(p->blocks * p->out_panels);
}

/* The most rows that fit, but so few that there are several tasks, as long as these are not too small. */
static bool choose_rows(plan *p)
{
    p->rows = 0;
    for (int64_t rows = 1; rows <= p->h.out; rows++) {
        const bool small =
            flops(p) * (double)rows / (double)p->h.out < SMALLEST_TASK || rows * p->w.out < 2 * QN_TILE_ROWS;
        if (p->h.out % rows == 0 && copied_bytes(p, rows) <= LOCAL_BYTES &&
            (p->rows == 0 || small || p->h.out / rows >= PARTS))
            p->rows = rows;
    }
    return p->rows > 0;
}

static void choose_units(plan *p)
{
    const int64_t between = p->pitch - p->w.out;
    p->flat = !p->copied && between == 0 && p->h.stride == 1 && p->w.stride == 1 && p->h.kernel == 1;
    p->unit_rows = 0;
    if (p->flat) {
        const int64_t length = p->rows * p->w.out;
        const int64_t size = length < QN_TILE_ROWS ? length : QN_TILE_ROWS;
        p->units = (units){ length / size, size, length % size };
    } else if (p->w.out > QN_TILE_ROWS) {
        p->units = split(p->w.out);
    } else {
        const int64_t several =
            p->w.stride == 1 && p->h.stride == 1 ? (QN_TILE_ROWS + between) / p->pitch : 1;
        p->unit_rows = several < 1 ? 1 : several > p->rows ? p->rows : several;
        if (!p->copied && p->rows % p->unit_rows != 0)
            p->unit_rows = 1;
        const int64_t last = p->rows % p->unit_rows;
        p->units = (units){ p->rows / p->unit_rows, p->unit_rows * p->pitch - between,
                            last ? last * p->pitch - between : 0 };
    }
}

static bool is_byte(qn_dtype dtype)
{
    return dtype == QUERN_I8 || dtype == QUERN_U8;
}

int64_t qn_conv_tile_channels(qn_dtype x)
{
    return QN_TILE_BYTES / (is_byte(x) ? 1 : 2);
}

static bool make_plan(const qn_node *node, const qn_pass_options *options, plan *p)
{
    memset(p, 0, sizeof *p);
    if (!options->machine || !options->machine->tiles ||
        (node->op != QN_OP_CONVOLUTION && node->op != QN_OP_CONV_PACKED) ||
        qn_attr_int(node, QN_ATTR_GROUPS) != 1)
        return false;
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    const bool packed = node->op == QN_OP_CONV_PACKED, bytes = is_byte(x->dtype);
    p->x_type = bytes ? x->dtype : QUERN_BF16;
    p->w_type = bytes ? w->dtype : QUERN_BF16;
    p->sum = bytes ? QUERN_I32 : QUERN_F32;
    p->c = qn_conv_tile_channels(x->dtype);
    p->word = 4 / (int64_t)qn_dtype_bytes(p->x_type);
    if (node->results[0].type.dtype != p->sum ||
        (bytes ? !is_byte(w->dtype) : options->math == QN_MATH_STRICT))
        return false;
    if (x->rank != (packed ? 5 : 4) || !read_axis(node, 0, &p->h) || !read_axis(node, 1, &p->w) ||
        !qn_dim_known(x->dims[1], &p->blocks) || !qn_dim_known(w->dims[0], &p->out_panels) || p->blocks < 1 ||
        p->out_panels < 1)
        return false;
    if (packed && (w->rank != 7 || !qn_dim_is(x->dims[4], p->c) || !qn_dim_is(w->dims[5], p->c) ||
                   !qn_dim_is(w->dims[6], p->word) || x->dtype != p->x_type))
        return false;
    if (!packed) {
        if (p->blocks < p->c || p->out_panels < p->c)
            return false;
        p->blocks = ceil_div(p->blocks, p->c);
        p->out_panels = ceil_div(p->out_panels, p->c);
    }
    p->out_panels *= p->c / PANEL;
    p->copied = p->h.low + p->h.high + p->w.low + p->w.high > 0;
    p->pitch = p->copied ? (p->w.out - 1) * p->w.stride + p->w.kernel : p->w.in;
    if (!choose_rows(p))
        return false;
    p->depth = p->copied ? (p->rows - 1) * p->h.stride + p->h.kernel : p->h.in;
    choose_units(p);
    /* with what is left, output channels for some tasks more; but a copy of x should be used several times */
    const int64_t parts = p->h.out / p->rows, wanted = ceil_div(p->copied ? PARTS / 2 : PARTS, parts);
    const double each = flops(p) / (double)parts / (double)p->out_panels;
    int64_t least = (int64_t)(SMALLEST_TASK / each) + 1;
    least = least > p->out_panels ? p->out_panels : least;
    p->panels = ceil_div(p->out_panels, wanted > p->out_panels ? p->out_panels : wanted);
    p->panels = p->panels < least ? least : p->panels;
    return true;
}

bool qn_conv_tile_fits(const qn_node *node, const qn_pass_options *options)
{
    plan p;
    return node->op == QN_OP_CONVOLUTION && make_plan(node, options, &p);
}

bool qn_conv_tile_takes(const qn_node *node, const qn_pass_options *options)
{
    const qn_dtype x = node->operands[0]->type.dtype;
    return (x == QUERN_BF16 || is_byte(x)) && qn_conv_tile_fits(node, options);
}

/* ---- the kernel ---- */

typedef struct emitter {
    qn_writer w;
    plan p;
    const qn_group *group;
    qn_kbuffer *x, *weights, *patch, *sums;
    qn_dim sample, first_row, panel; /* of the task */
    qn_kvalue *base;                 /* where the task's tiles are loaded from: the first position it reads */
    qn_kvalue *panel_at;             /* where its weights begin */
    qn_dim at_lane;
} emitter;

#define TERMS (&e->w.b)

static qn_kinst *count_to(emitter *e, int64_t n)
{
    return qn_kb_for(&e->w.b, INDEX(0), INDEX(n), INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
}

static void end(emitter *e, qn_kinst *loop)
{
    qn_kb_end_for(&e->w.b, loop, NULL);
}

/* ---- the copy of x ---- */

static void clear(emitter *e, qn_kvalue *at, int64_t positions)
{
    if (positions <= 0)
        return;
    qn_kinst *loop = count_to(e, positions);
    const qn_ktype type = { e->p.x_type, (int)e->p.c };
    qn_kb_store(&e->w.b, e->patch, ADD(at, MUL(qn_loop_counter(loop), INDEX(e->p.c))),
                qn_kb_const(&e->w.b, type, (qn_scalar){ 0 }), NULL);
    end(e, loop);
}

/* Row by row: zeros, positions of x, zeros; or only zeros. */
static void copy_x(emitter *e, qn_kvalue *sample_at, qn_kvalue *top)
{
    const plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int64_t low = p->w.low < p->pitch ? p->w.low : p->pitch, room = p->pitch - low,
                  n = room < p->w.in ? room : p->w.in;
    qn_kinst *blocks = count_to(e, p->blocks), *rows = count_to(e, p->depth);
    qn_kvalue *to = MUL(ADD(MUL(qn_loop_counter(blocks), INDEX(p->depth)), qn_loop_counter(rows)),
                        INDEX(p->pitch * p->c));
    qn_kvalue *row = ADD(top, qn_loop_counter(rows));
    qn_kvalue *inside = qn_kb_binary(b, QN_OP_AND, qn_kb_compare(b, QN_GE, row, INDEX(0)),
                                     qn_kb_compare(b, QN_LT, row, INDEX(p->h.in)));
    qn_kinst *branch = qn_kb_if(b, inside);
    clear(e, to, low);
    qn_kvalue *from =
        ADD(sample_at, MUL(ADD(MUL(qn_loop_counter(blocks), INDEX(p->h.in)), row), INDEX(p->w.in * p->c)));
    qn_kinst *loop = count_to(e, n);
    qn_kvalue *offset = MUL(qn_loop_counter(loop), INDEX(p->c));
    qn_kb_store(b, e->patch, ADD(ADD(to, INDEX(low * p->c)), offset),
                qn_kb_load(b, e->x, ADD(from, offset), (int)p->c), NULL);
    end(e, loop);
    clear(e, ADD(to, INDEX((low + n) * p->c)), room - n);
    qn_kb_else(b, branch, 0, NULL);
    clear(e, to, p->pitch);
    qn_kb_end_if(b, branch, 0, NULL);
    end(e, rows);
    end(e, blocks);
}

/* ---- products ---- */

/* Weights of a place of the kernel, for a block of output channels; of all places and blocks of x. */
static int64_t place_elements(const plan *p)
{
    return p->c * p->c;
}

static int64_t block_elements(const plan *p)
{
    return p->blocks * p->h.kernel * p->w.kernel * place_elements(p);
}

/* Rows that the tiles are taken from one after the other, and pairs of tiles for all of them. */
static int64_t n_lines(const plan *p)
{
    return p->flat || p->unit_rows ? 1 : p->rows;
}

static int64_t n_pairs(const plan *p)
{
    return n_lines(p) * ((p->units.n + (p->units.last > 0) + 1) / 2);
}

/* The next place's weights in order, which the machine's own prefetcher follows further: it has more reads under way than
 * instructions can have. */
static void fetch_next(emitter *e, qn_kvalue *w_at)
{
    const plan *p = &e->p;
    if (n_pairs(p) > FEW_PAIRS)
        return;
    for (int64_t row = 0; row < QN_TILE_ROWS; row++)
        for (int64_t j = 0; j < 2; j++)
            qn_kb_prefetch(&e->w.b, e->weights,
                           ADD(w_at, INDEX(place_elements(p) + (row * p->c + j * HALF) * p->word)), 0);
}

/* Products with one place of the kernel: not two: there is one tile of positions. */
static void one_place(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, bool two, int64_t lower_offset)
{
    qn_kbuilder *b = &e->w.b;
    qn_kbuffer *x = e->patch ? e->patch : e->x;
    qn_kvalue *stride = INDEX(e->p.w.stride * e->p.c);
    fetch_next(e, w_at);
    for (int i = 0; i < (two ? 2 : 1); i++) {
        qn_kb_tile_load(b, X_TILE + i, x, ADD(x_at, INDEX(i * lower_offset)), stride);
        for (int j = 0; j < 2; j++) {
            if (i == 0)
                qn_kb_tile_load(b, Y_TILE + j, e->weights, ADD(w_at, INDEX(j * HALF * e->p.word)),
                                INDEX(e->p.c * e->p.word));
            qn_kb_tile_mma(b, 2 * i + j, X_TILE + i, Y_TILE + j, e->p.x_type, e->p.w_type);
        }
    }
}

/* The sums of one or two tiles, whose first position of x is at x_at. */
static void multiply(emitter *e, qn_kvalue *x_at, bool two, int64_t lower_offset)
{
    const plan *p = &e->p;
    const int64_t places = p->h.kernel * p->w.kernel;
    for (int i = 0; i < (two ? 4 : 2); i++)
        qn_kb_tile_zero(&e->w.b, i);
    qn_kinst *blocks = count_to(e, p->blocks);
    x_at = ADD(x_at, MUL(qn_loop_counter(blocks), INDEX(p->depth * p->pitch * p->c)));
    qn_kvalue *w_at = ADD(e->panel_at, MUL(qn_loop_counter(blocks), INDEX(places * place_elements(p))));
    if (places <= UNROLL) {
        for (int64_t k = 0; k < places; k++)
            one_place(e, ADD(x_at, INDEX((k / p->w.kernel * p->pitch + k % p->w.kernel) * p->c)),
                      ADD(w_at, INDEX(k * place_elements(p))), two, lower_offset);
    } else {
        qn_kinst *rows = count_to(e, p->h.kernel), *columns = count_to(e, p->w.kernel);
        qn_kvalue *place = ADD(MUL(qn_loop_counter(rows), INDEX(p->w.kernel)), qn_loop_counter(columns));
        one_place(e,
                  ADD(x_at, MUL(ADD(MUL(qn_loop_counter(rows), INDEX(p->pitch)), qn_loop_counter(columns)),
                                INDEX(p->c))),
                  ADD(w_at, MUL(place, INDEX(place_elements(p)))), two, lower_offset);
        end(e, columns);
        end(e, rows);
    }
    end(e, blocks);
}

/* ---- what is done with the sums ---- */

/* Some positions side by side: of the result from (row, column) on, in the sums from `at` on. A flat row goes on in the next. */
typedef struct strip {
    int64_t at, n;
    qn_dim row, column;
    qn_dim var; /* number of the position at work */
} strip;

typedef struct fetching {
    emitter *e;
    const strip *s;
} fetching;

static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const fetching *f = user;
    qn_dims *dims = w->space.dims;
    (void)value, (void)index;
    const qn_dim position = qn_dim_add(dims, f->s->var, qn_dim_const(dims, f->s->at));
    return qn_writer_load(
        w, f->e->sums,
        qn_dim_add(dims, qn_dim_mul(dims, position, qn_dim_const(dims, PANEL)), f->e->at_lane));
}

static void finish_strip(emitter *e, strip *s)
{
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_group *g = e->group;
    qn_value *product = &g->root->results[0];
    const qn_type *type = &product->type;
    qn_dim index[QN_MAX_RANK], from[QN_MAX_RANK];
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *at);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, g->n_outputs);
    fetching *f = QN_NEW(w->arena, fetching);
    *f = (fetching){ e, s };
    qn_writer_bind(w, product, fetch_sum, f);
    s->var = qn_ispace_var(&w->space, qn_dim_const(dims, s->n), false);
    e->at_lane = qn_ispace_var(&w->space, qn_dim_const(dims, PANEL), false);
    const qn_dim column = qn_dim_add(dims, s->column, s->var), width = qn_dim_const(dims, e->p.w.out);
    index[0] = e->sample;
    const qn_dim halves = qn_dim_const(dims, e->p.c / PANEL);
    index[1] = qn_ix_div(&w->space, e->panel, halves);
    index[2] = e->p.flat ? qn_dim_add(dims, s->row, qn_ix_div(&w->space, column, width)) : s->row;
    index[3] = e->p.flat ? qn_ix_mod(&w->space, column, width) : column;
    index[4] =
        qn_dim_add(dims, e->at_lane,
                   qn_dim_mul(dims, qn_ix_mod(&w->space, e->panel, halves), qn_dim_const(dims, PANEL)));
    qn_ispace_dims(&w->space, type, from);
    qn_dim(*to)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *to);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_ispace_dims(&w->space, &g->outputs[i]->type, to[i]);
        qn_ix_reshape(&w->space, type->rank, from, index, g->outputs[i]->type.rank, to[i], at[i]);
    }
    for (int i = 0; i < g->n_outputs; i++)
        qn_writer_prepare(w, g->outputs[i], at[i]);
    qn_writer_loop positions = qn_writer_for_all(w, s->var, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop lanes = qn_writer_for_all(w, e->at_lane, QN_TAG_VECTOR, 0, NULL, NULL);
    for (int i = 0; i < g->n_outputs; i++)
        values[i] = qn_writer_value(w, g->outputs[i], at[i]);
    for (int i = 0; i < g->n_outputs; i++)
        qn_writer_store(w, qn_writer_argument(w, qn_lower_buffer(w->lowering, g->outputs[i]), false, true),
                        qn_ix_linear(&w->space, g->outputs[i]->type.rank, to[i], at[i]), values[i]);
    qn_writer_end_for(w, &lanes, NULL);
    qn_writer_end_for(w, &positions, NULL);
}

/* ---- tiles of positions ---- */

/* The same for all tiles of a kernel: to change it waits for everything before, the weights' memory among it. */
static void set_shape(emitter *e)
{
    qn_kvalue *values[QN_TILES];
    for (int i = 0; i < QN_TILES; i++)
        values[i] = INDEX(i < Y_TILE ? e->p.units.size : QN_TILE_ROWS);
    qn_kb_tile_shape(&e->w.b, values);
}

/* What a pair's second tile is; LAST: smaller than the others. */
typedef enum second { NONE, WHOLE, LAST } second;

/* One or two tiles, of which the first is number `unit` of the row, and the last one where first_is_last; `line`: the row,
 * where it has several tiles. A smaller last tile of a row is as large as the others: it begins so much earlier, and the
 * sums that others have made are not looked at. One of several rows goes on behind the copy of x. */
static void one_pair(emitter *e, qn_dim line, qn_dim unit, bool first_is_last, second second)
{
    const plan *p = &e->p;
    const units *u = &p->units;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_dim row = qn_dim_add(dims, e->first_row, line);
    const int64_t skip = p->unit_rows ? 0 : u->size - u->last, first_skip = first_is_last ? skip : 0,
                  second_skip = second == LAST ? skip : 0;
    const int64_t in_row = p->h.stride * p->pitch,
                  in_unit = p->unit_rows ? p->unit_rows * in_row : u->size * p->w.stride;
    qn_dim position = qn_dim_add(dims, qn_dim_mul(dims, line, qn_dim_const(dims, in_row)),
                                 qn_dim_mul(dims, unit, qn_dim_const(dims, in_unit)));
    position = qn_dim_sub(dims, position, qn_dim_const(dims, first_skip * p->w.stride));
    multiply(e, ADD(e->base, MUL(qn_writer_index(w, position), INDEX(p->c))), second != NONE,
             (in_unit - second_skip * p->w.stride) * p->c);
    for (int i = 0; i < (second != NONE ? 4 : 2); i++)
        qn_kb_tile_store(&w->b, i, e->sums, INDEX((i / 2 * u->size) * PANEL + i % 2 * HALF), INDEX(PANEL));
    if (!p->unit_rows) {
        const qn_dim column = qn_dim_mul(dims, unit, qn_dim_const(dims, u->size));
        strip s = { first_skip, second == WHOLE ? 2 * u->size : u->size - first_skip, row, column, NULL };
        finish_strip(e, &s);
        if (second == LAST) {
            strip t = { u->size + skip, u->last, row, qn_dim_add(dims, column, qn_dim_const(dims, u->size)),
                        NULL };
            finish_strip(e, &t);
        }
        return;
    }
    const qn_dim first = qn_dim_add(dims, row, qn_dim_mul(dims, unit, qn_dim_const(dims, p->unit_rows)));
    for (int i = 0; i < (second != NONE ? 2 : 1); i++) {
        const bool last = i == 0 ? first_is_last : second == LAST;
        for (int64_t r = 0; r < (last ? p->rows % p->unit_rows : p->unit_rows); r++) {
            strip s = { i * u->size + r * p->pitch, p->w.out,
                        qn_dim_add(dims, first, qn_dim_const(dims, i * p->unit_rows + r)),
                        qn_dim_const(dims, 0), NULL };
            finish_strip(e, &s);
        }
    }
}

/* Pairs of whole tiles, then what is left of them. */
static void one_line(emitter *e, qn_dim line)
{
    const units *u = &e->p.units;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    if (u->n >= 2) {
        const qn_dim pair = qn_ispace_var(&w->space, qn_dim_const(dims, u->n / 2), false);
        qn_writer_loop loop = qn_writer_for_all(w, pair, QN_TAG_SERIAL, 0, NULL, NULL);
        one_pair(e, line, qn_dim_mul(dims, pair, qn_dim_const(dims, 2)), false, WHOLE);
        qn_writer_end_for(w, &loop, NULL);
    }
    if (u->n % 2)
        one_pair(e, line, qn_dim_const(dims, u->n - 1), false, u->last ? LAST : NONE);
    else if (u->last)
        one_pair(e, line, qn_dim_const(dims, u->n), true, NONE);
}

static void one_panel(emitter *e)
{
    const plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_dim halves = qn_dim_const(dims, p->c / PANEL), block = qn_ix_div(&w->space, e->panel, halves),
                 half = qn_ix_mod(&w->space, e->panel, halves);
    e->panel_at =
        qn_writer_index(w, qn_dim_add(dims, qn_dim_mul(dims, block, qn_dim_const(dims, block_elements(p))),
                                      qn_dim_mul(dims, half, qn_dim_const(dims, PANEL * p->word))));
    const qn_dim line = qn_ispace_var(&w->space, qn_dim_const(dims, n_lines(p)), false);
    qn_writer_loop loop = qn_writer_for_all(w, line, QN_TAG_SERIAL, 0, NULL, NULL);
    one_line(e, line);
    qn_writer_end_for(w, &loop, NULL);
}

/* ---- tasks ---- */

static qn_dim write_tasks(emitter *e)
{
    const plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_dim samples = qn_ispace_import(&w->space, e->group->root->results[0].type.dims[0]);
    const int64_t row_parts = p->h.out / p->rows, panel_parts = ceil_div(p->out_panels, p->panels);
    const qn_dim parts[] = { samples, qn_dim_const(dims, row_parts), qn_dim_const(dims, panel_parts) };
    const qn_dim tasks = qn_dim_mul(dims, samples, qn_dim_const(dims, row_parts * panel_parts));
    const qn_dim task = qn_ispace_var(&w->space, tasks, false);
    qn_dim part[3];
    qn_ispace_set(&w->space, task, qn_kb_task(&w->b));
    qn_ix_split(&w->space, task, 3, parts, part);
    e->sample = part[0];
    e->first_row = qn_dim_mul(dims, part[1], qn_dim_const(dims, p->rows));
    const qn_dim x_elements = qn_dim_const(dims, p->blocks * p->h.in * p->w.in * p->c);
    qn_kvalue *sample_at = qn_writer_index(w, qn_dim_mul(dims, e->sample, x_elements));
    const qn_dim top = qn_dim_mul(dims, e->first_row, qn_dim_const(dims, p->h.stride));
    if (p->copied) {
        copy_x(e, sample_at, qn_writer_index(w, qn_dim_sub(dims, top, qn_dim_const(dims, p->h.low))));
        e->base = INDEX(0);
    } else {
        e->base =
            ADD(sample_at, qn_writer_index(w, qn_dim_mul(dims, top, qn_dim_const(dims, p->pitch * p->c))));
    }
    set_shape(e);
    e->panel = qn_ispace_var(&w->space, qn_dim_const(dims, p->out_panels), false);
    const qn_dim low = qn_dim_mul(dims, part[2], qn_dim_const(dims, p->panels));
    const qn_dim high = qn_dim_min(dims, qn_dim_add(dims, low, qn_dim_const(dims, p->panels)),
                                   qn_dim_const(dims, p->out_panels));
    qn_writer_loop loop = qn_writer_for(w, e->panel, qn_writer_index(w, low), qn_writer_index(w, high),
                                        QN_TAG_SERIAL, 0, NULL, NULL);
    one_panel(e);
    qn_writer_end_for(w, &loop, NULL);
    return tasks;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    plan p;
    return group->kind == QN_GROUP_CONTRACTION && group->root->op == QN_OP_CONV_PACKED &&
           make_plan(group->root, options, &p);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    emitter *e = QN_NEW(scratch, emitter);
    e->group = group;
    const bool planned = make_plan(group->root, l->options, &e->p);
    QN_ASSERT(planned, "conv_tile: a group that was matched has no plan");
    qn_writer *w = &e->w;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    e->x = qn_writer_argument(w, qn_lower_buffer(l, group->root->operands[0]), true, false);
    e->weights = qn_writer_argument(w, qn_lower_buffer(l, group->root->operands[1]), true, false);
    qn_writer_note_load(w, e->x);
    qn_writer_note_load(w, e->weights);
    e->sums = qn_kernel_add_local(w->kernel, "sums", e->p.sum, 2 * QN_TILE_ROWS * PANEL);
    if (e->p.copied)
        e->patch = qn_kernel_add_local(w->kernel, "patch", e->p.x_type,
                                       copied_bytes(&e->p, e->p.rows) / (int64_t)qn_dtype_bytes(e->p.x_type) +
                                           QN_TILE_ROWS * e->p.c);
    w->kernel->flops =
        flops(&e->p) * qn_likely_extent(qn_ispace_import(&w->space, group->root->results[0].type.dims[0]));
    const qn_dim tasks = write_tasks(e);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_conv_tile = { .name = "conv_tile", .matches = matches, .lower = lower };
