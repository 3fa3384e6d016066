/* Winograd convolution in channel blocks, with what follows it element by element.
 *
 * A task has a group of tiles of the map and some panels of output channels (winograd_plan.c). With E = t * t places in a tile,
 *
 *   V[e][tile][k]       for each tile of the group and block of k: the t x t elements of x under it, B^T d B   (or by a kernel
 *                       before, for all groups)
 *   for panel
 *     for e, piece      M[e][tile][o] = sum over k of V[e][tile][k] * U[panel][e][k][o]
 *     for tile, block   A^T M A, m x m results of 16 channels, into local memory; and from there what the group computes
 *
 * A piece is some tiles whose sums stay in registers; U lies in the order in which it is read. How many tiles there are is not
 * known where extents are symbols: then what whole pieces leave of a group is one piece more, of the least of a few sizes that
 * holds it, and sums behind the last tile nobody reads.
 *
 * Each sum is made by one task in an order that depends on shapes only. */
#include "passes/winograd.h"

#include "ir/winograd.h"
#include "passes/lower.h"
#include "passes/words.h"

enum { TILE = QN_WINOGRAD_TILE, LARGEST_PIECE = 32, SIZES = 3 };

typedef struct emitter {
    qn_writer w;
    qn_winograd_plan p;
    const qn_group *group;
    qn_value *x, *result;
    qn_ktype vector;
    qn_kbuffer *in, *filters, *v, *m, *tile;
    qn_dim sample;
    qn_dim x_dims[2], out[2], across, tiles; /* of the space: extents, tiles of a row and of all rows */
    qn_dim groups;                           /* of tiles */
    /* for the group's elements: the place in the result */
    qn_dim block, row, column, at_row, at_column, at_lane;
} emitter;

static int64_t places(const emitter *e)
{
    return (int64_t)e->p.t * e->p.t;
}

static qn_dim number(const emitter *e, int64_t value)
{
    return qn_dim_const(e->w.space.dims, value);
}

static qn_kvalue *offset(emitter *e, qn_kvalue *at, int64_t by)
{
    return qn_kb_iadd(&e->w.b, at, qn_kb_index(&e->w.b, by));
}

static qn_kvalue *scaled(emitter *e, qn_kvalue *i, int64_t step)
{
    return qn_kb_imul(&e->w.b, i, qn_kb_index(&e->w.b, step));
}

static qn_kvalue *along(emitter *e, qn_kvalue *at, qn_kvalue *i, int64_t step)
{
    return qn_kb_iadd(&e->w.b, at, scaled(e, i, step));
}

/* ---- arithmetic ---- */

static qn_kvalue *add(emitter *e, qn_kvalue *x, qn_kvalue *y)
{
    return qn_kb_binary(&e->w.b, QN_OP_ADD, x, y);
}

static qn_kvalue *sub(emitter *e, qn_kvalue *x, qn_kvalue *y)
{
    return qn_kb_binary(&e->w.b, QN_OP_SUB, x, y);
}

/* x * y + z */
static qn_kvalue *fma_of(emitter *e, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z)
{
    if (e->w.lowering->options->machine->fma)
        return qn_kb_fma(&e->w.b, x, y, z);
    return add(e, qn_kb_binary(&e->w.b, QN_OP_MUL, x, y), z);
}

/* factor * x + z */
static qn_kvalue *times_add(emitter *e, double factor, qn_kvalue *x, qn_kvalue *z)
{
    return fma_of(e, qn_kb_float(&e->w.b, e->vector, factor), x, z);
}

static qn_kvalue *times(emitter *e, double factor, qn_kvalue *x)
{
    return qn_kb_binary(&e->w.b, QN_OP_MUL, qn_kb_float(&e->w.b, e->vector, factor), x);
}

/* B^T x. Rows of points p and -p are even + odd and even - odd parts of the same polynomial. */
static void transform_input(emitter *e, qn_kvalue *const *x, qn_kvalue **y)
{
    const double a = QN_WINOGRAD_A, b = QN_WINOGRAD_B;
    if (e->p.t == 4) {
        y[0] = sub(e, x[2], x[0]);
        y[1] = add(e, x[1], x[2]);
        y[2] = sub(e, x[2], x[1]);
        y[3] = sub(e, x[3], x[1]);
        return;
    }
    for (int i = 0; i < 2; i++) /* (x^2 - a^2) (x^2 - b^2), and x times it */
        y[5 * i] = times_add(e, a * a * b * b, x[i], times_add(e, -(a * a + b * b), x[2 + i], x[4 + i]));
    for (int i = 0; i < 2; i++) { /* x (x + p) (x^2 - q^2) */
        const double p = i == 0 ? a : b, q = i == 0 ? b : a;
        qn_kvalue *even = times_add(e, -q * q, x[2], x[4]), *odd = times_add(e, -q * q, x[1], x[3]);
        y[1 + 2 * i] = times_add(e, p, odd, even);
        y[2 + 2 * i] = times_add(e, -p, odd, even);
    }
}

/* A^T x */
static void transform_result(emitter *e, qn_kvalue *const *x, qn_kvalue **y)
{
    const double a = QN_WINOGRAD_A, b = QN_WINOGRAD_B;
    qn_kvalue *even = add(e, x[1], x[2]), *odd = sub(e, x[1], x[2]);
    if (e->p.t == 4) {
        y[0] = add(e, x[0], even);
        y[1] = add(e, odd, x[3]);
        return;
    }
    qn_kvalue *even_b = add(e, x[3], x[4]), *odd_b = sub(e, x[3], x[4]);
    y[0] = add(e, add(e, x[0], even), even_b);
    y[1] = times_add(e, a, odd, times(e, b, odd_b));
    y[2] = times_add(e, a * a, even, times(e, b * b, even_b));
    y[3] = times_add(e, a * a * a, odd, times_add(e, b * b * b, odd_b, x[5]));
}

typedef void (*transform_fn)(emitter *e, qn_kvalue *const *x, qn_kvalue **y);

/* The transform from both sides: x, `from` x `from`, becomes `to` x `to`. */
static void both_sides(emitter *e, transform_fn transform, int from, int to, qn_kvalue *x[TILE][TILE],
                       qn_kvalue *y[TILE][TILE])
{
    qn_kvalue *half[TILE][TILE], *column[TILE], *made[TILE];
    for (int j = 0; j < from; j++) {
        for (int i = 0; i < from; i++)
            column[i] = x[i][j];
        transform(e, column, made);
        for (int i = 0; i < to; i++)
            half[i][j] = made[i];
    }
    for (int i = 0; i < to; i++)
        transform(e, half[i], y[i]);
}

/* ---- inputs ---- */

/* Is 0 <= at + i < extent, at + i being where row or column i of the tile reads? */
static qn_kvalue *inside(emitter *e, qn_kvalue *at, int64_t i, qn_kvalue *extent)
{
    qn_kbuilder *b = &e->w.b;
    qn_kvalue *place = offset(e, at, i);
    return qn_kb_binary(b, QN_OP_AND, qn_kb_compare(b, QN_GE, place, qn_kb_index(b, 0)),
                        qn_kb_compare(b, QN_LT, place, extent));
}

/* All blocks of channels of one tile whose first element is at (row, column) of x. Where the tile reaches over the border
 * (`checked`), what lies beyond is 0. */
static void input_blocks(emitter *e, qn_kvalue *row, qn_kvalue *column, qn_kvalue *v_at, bool checked)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int t = p->t, lanes = (int)p->lanes;
    qn_kvalue *height = qn_writer_index(&e->w, e->x_dims[0]), *width = qn_writer_index(&e->w, e->x_dims[1]);
    qn_kvalue *in_row = scaled(e, width, lanes), *plane = qn_kb_imul(b, height, in_row);
    const int64_t k_blocks = (p->channels + lanes - 1) / lanes;
    qn_kvalue *rows[TILE] = { NULL }, *columns[TILE] = { NULL };
    for (int i = 0; i < t && checked; i++) {
        rows[i] = inside(e, row, i, height);
        columns[i] = inside(e, column, i, width);
    }
    qn_kvalue *sample = qn_writer_index(&e->w, e->sample);
    qn_kvalue *first = qn_kb_imul(b, scaled(e, sample, p->blocks), plane);
    first = along(e, qn_kb_iadd(b, first, qn_kb_imul(b, row, in_row)), column, lanes);
    qn_kinst *loop = qn_kb_for(b, qn_kb_index(b, 0), qn_kb_index(b, k_blocks), qn_kb_index(b, 1),
                               QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *k = qn_loop_counter(loop);
    qn_kvalue *at = qn_kb_iadd(b, first, qn_kb_imul(b, k, plane)), *to = along(e, v_at, k, lanes);
    qn_kvalue *x[TILE][TILE], *y[TILE][TILE];
    for (int j = 0; j < t; j++)
        for (int i = 0; i < t; i++) {
            qn_kvalue *element = offset(e, along(e, at, in_row, i), j * lanes);
            x[i][j] = checked
                          ? qn_kb_load_masked(
                                b, e->in, element, lanes,
                                qn_kb_splat(b, qn_kb_binary(b, QN_OP_AND, rows[i], columns[j]), lanes), NULL)
                          : qn_kb_load(b, e->in, element, lanes);
        }
    both_sides(e, transform_input, t, t, x, y);
    for (int i = 0; i < t; i++)
        for (int j = 0; j < t; j++)
            qn_kb_store(b, e->v, offset(e, to, (i * t + j) * p->v_plane), y[i][j], NULL);
    qn_kb_end_for(b, loop, NULL);
}

/* Where the tile begins in x along an axis. */
static qn_kvalue *tile_start(emitter *e, qn_kvalue *tile, int axis)
{
    return offset(e, scaled(e, tile, e->p.t - 2), -e->p.axes[axis].low);
}

/* Transforms the inputs of tiles [low, high); the first one's are at v_at. */
static void input_tiles(emitter *e, qn_kvalue *low, qn_kvalue *high, qn_kvalue *v_at)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    qn_kvalue *across = qn_writer_index(&e->w, e->across);
    qn_kinst *loop = qn_kb_for(b, low, high, qn_kb_index(b, 1), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *tile = qn_loop_counter(loop);
    qn_kvalue *row = tile_start(e, qn_kb_idiv(b, tile, across), 0);
    qn_kvalue *column = tile_start(e, qn_kb_imod(b, tile, across), 1);
    qn_kvalue *to = along(e, v_at, qn_kb_isub(b, tile, low), p->v_row);
    qn_kvalue *whole = qn_kb_binary(
        b, QN_OP_AND, inside(e, row, 0, offset(e, qn_writer_index(&e->w, e->x_dims[0]), 1 - p->t)),
        inside(e, column, 0, offset(e, qn_writer_index(&e->w, e->x_dims[1]), 1 - p->t)));
    qn_kinst *branch = qn_kb_if(b, whole);
    input_blocks(e, row, column, to, false);
    qn_kb_else(b, branch, 0, NULL);
    input_blocks(e, row, column, to, true);
    qn_kb_end_if(b, branch, 0, NULL);
    qn_kb_end_for(b, loop, NULL);
}

/* ---- products ---- */

/* `n` steps of k from (v_at, u_at) on. */
static void steps(emitter *e, qn_kvalue *v_at, qn_kvalue *u_at, int64_t n, int64_t size, qn_kvalue **sums)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int lanes = (int)p->lanes;
    qn_kvalue *x_lanes[LARGEST_PIECE];
    for (int64_t u = 0; u < n; u++) {
        qn_kvalue *filters[4];
        const int lane = (int)(u % lanes);
        const bool in_lanes = e->w.lowering->options->machine->by_lane && u - lane + lanes <= n;
        for (int64_t j = 0; j < p->vectors; j++)
            filters[j] = qn_kb_load(b, e->filters, offset(e, u_at, (u * p->vectors + j) * lanes), lanes);
        for (int64_t i = 0; i < size; i++) {
            qn_kvalue *x = qn_word_in_turn(b, e->v, offset(e, v_at, i * p->v_row + u), lanes,
                                           in_lanes ? &x_lanes[i] : NULL, lane);
            for (int64_t j = 0; j < p->vectors; j++)
                sums[i * p->vectors + j] = fma_of(e, x, filters[j], sums[i * p->vectors + j]);
        }
    }
}

/* Fetches, while steps [k, k + n) of piece number `piece` of a group run, its share of the filters that the next place reads
 * at those steps: what is read in order, but comes from beyond the L2 cache, is there in time. */
static void prefetch(emitter *e, qn_kvalue *u_at, qn_kvalue *piece, int64_t n)
{
    const qn_winograd_plan *p = &e->p;
    const int64_t width = p->vectors * p->lanes, line = 64 / (int64_t)qn_dtype_bytes(p->dtype);
    const int64_t lines = n * width / line, share = (lines + p->pieces_per_group - 1) / p->pieces_per_group;
    qn_kvalue *at = along(e, offset(e, u_at, p->channels * width), piece, share * line);
    for (int64_t i = 0; i < share; i++)
        qn_kb_prefetch(&e->w.b, e->filters, offset(e, at, i * line), 1);
}

/* Sums of `size` tiles with a panel's filters at one of the t * t places. */
static void piece_sums(emitter *e, qn_kvalue *piece, qn_kvalue *v_at, qn_kvalue *u_at, qn_kvalue *m_at,
                       int64_t size)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int64_t n = size * p->vectors, by = n > 16 ? 4 : 8, looped = p->channels - p->channels % by;
    const int64_t width = p->vectors * p->lanes;
    qn_kvalue *sums[LARGEST_PIECE];
    for (int64_t i = 0; i < n; i++)
        sums[i] = qn_kb_float(b, e->vector, 0);
    if (looped > 0) {
        qn_kinst *loop = qn_kb_carry(b, qn_kb_index(b, 0), qn_kb_index(b, looped), qn_kb_index(b, by),
                                     QN_TAG_SERIAL, (int)n, sums, NULL);
        qn_kvalue *k = qn_loop_counter(loop);
        qn_kvalue *u_k = along(e, u_at, k, width);
        if (p->streams)
            prefetch(e, u_k, piece, by);
        steps(e, qn_kb_iadd(b, v_at, k), u_k, by, size, sums);
        qn_kb_end_carry(b, loop, sums);
    }
    steps(e, offset(e, v_at, looped), offset(e, u_at, looped * width), p->channels - looped, size, sums);
    for (int64_t i = 0; i < n; i++)
        qn_kb_store(b, e->m, offset(e, m_at, i * p->lanes), sums[i], NULL);
}

/* Pieces [low, high) of `size` tiles each, of a group that begins with piece `first`; the first one's first tile is number `tile`
 * of the group. */
static void pieces(emitter *e, qn_kvalue *first, qn_kvalue *low, qn_kvalue *high, int64_t size,
                   qn_kvalue *tile, qn_kvalue *v_at, qn_kvalue *u_at, qn_kvalue *m_at)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    qn_kinst *loop = qn_kb_for(b, low, high, qn_kb_index(b, 1), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *piece = qn_loop_counter(loop);
    qn_kvalue *at = qn_kb_iadd(b, tile, scaled(e, qn_kb_isub(b, piece, low), size));
    piece_sums(e, qn_kb_isub(b, piece, first), along(e, v_at, at, p->v_row), u_at,
               along(e, m_at, at, p->vectors * p->lanes), size);
    qn_kb_end_for(b, loop, NULL);
}

/* A group of tiles: pieces [first, end), of which those before `tall` have p.piece tiles. */
typedef struct range {
    qn_kvalue *first, *tall, *end;
    qn_kvalue *start, *stop; /* its tiles */
} range;

static qn_kvalue *piece_start(emitter *e, qn_kvalue *piece)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    return qn_kb_iadd(b, scaled(e, piece, p->piece - 1), qn_kb_imin(b, piece, qn_kb_index(b, p->n_tall)));
}

/* Sizes of pieces over symbols, from p.piece down: halves of one another, as long as that saves cycles of a step. Gives how many. */
static int piece_sizes(const emitter *e, int64_t *out)
{
    enum { NEEDED = 8 }; /* sums, with which multiply-adds needn't wait for each other */
    int n = 0;
    for (int64_t size = e->p.piece; n < SIZES; size = (size + 1) / 2) {
        out[n++] = size;
        if (size * e->p.vectors <= NEEDED)
            break;
    }
    return n;
}

static range group_range(emitter *e, qn_kvalue *group)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    range r;
    r.first = scaled(e, group, p->pieces_per_group);
    if (p->symbolic) {
        int64_t sizes[SIZES];
        const int64_t smaller = piece_sizes(e, sizes) > 1 ? sizes[1] : 0; /* tiles that need no whole piece */
        r.start = scaled(e, r.first, p->piece);
        r.stop = qn_kb_imin(b, offset(e, r.start, p->pieces_per_group * p->piece),
                            qn_writer_index(&e->w, e->tiles));
        qn_kvalue *n = offset(e, qn_kb_isub(b, r.stop, r.start), p->piece - 1 - smaller);
        r.end = r.tall = qn_kb_iadd(b, r.first, qn_kb_idiv(b, n, qn_kb_index(b, p->piece)));
        return r;
    }
    r.end = qn_kb_imin(b, offset(e, r.first, p->pieces_per_group), qn_kb_index(b, p->n_pieces));
    r.tall = qn_kb_imin(b, qn_kb_imax(b, r.first, qn_kb_index(b, p->n_tall)), r.end);
    r.start = piece_start(e, r.first);
    r.stop = piece_start(e, r.end);
    return r;
}

/* The piece, if there is one, of the group's tiles from number `past` on, which are fewer than a whole piece has. */
static void last_piece(emitter *e, const range *r, qn_kvalue *past, qn_kvalue *v_at, qn_kvalue *u_at,
                       qn_kvalue *m_at)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    int64_t sizes[SIZES];
    const int n = piece_sizes(e, sizes);
    qn_kvalue *left = qn_kb_isub(b, qn_kb_isub(b, r->stop, r->start), past);
    for (int i = 1; i < n; i++) {
        const int64_t next = i + 1 < n ? sizes[i + 1] : 0;
        qn_kvalue *is_it = qn_kb_binary(b, QN_OP_AND, qn_kb_compare(b, QN_GT, left, qn_kb_index(b, next)),
                                        qn_kb_compare(b, QN_LE, left, qn_kb_index(b, sizes[i])));
        qn_kinst *branch = qn_kb_if(b, is_it);
        piece_sums(e, qn_kb_isub(b, r->tall, r->first), along(e, v_at, past, p->v_row), u_at,
                   along(e, m_at, past, p->vectors * p->lanes), sizes[i]);
        qn_kb_end_if(b, branch, 0, NULL);
    }
}

/* M of a panel whose filters begin at u_at. */
static void panel_sums(emitter *e, const range *r, qn_kvalue *v_at, qn_kvalue *u_at)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    qn_kinst *loop = qn_kb_for(b, qn_kb_index(b, 0), qn_kb_index(b, places(e)), qn_kb_index(b, 1),
                               QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *place = qn_loop_counter(loop);
    qn_kvalue *v = along(e, v_at, place, p->v_plane), *m = scaled(e, place, p->m_plane);
    qn_kvalue *u = along(e, u_at, place, p->channels * p->vectors * p->lanes);
    qn_kvalue *past = scaled(e, qn_kb_isub(b, r->tall, r->first), p->piece);
    pieces(e, r->first, r->first, r->tall, p->piece, qn_kb_index(b, 0), v, u, m);
    if (p->symbolic)
        last_piece(e, r, past, v, u, m);
    else if (p->n_tall < p->n_pieces && p->piece > 1)
        pieces(e, r->first, r->tall, r->end, p->piece - 1, past, v, u, m);
    qn_kb_end_for(b, loop, NULL);
}

/* ---- results ---- */

static void tile_dims(const emitter *e, qn_dim *dims)
{
    dims[0] = dims[1] = number(e, e->p.t - 2);
    dims[2] = number(e, e->p.lanes);
}

/* The result that belongs to the element at work: qn_fetch_fn. The group reads it nowhere else. */
static qn_kvalue *fetch_result(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const emitter *e = user;
    const qn_dim at[] = { e->at_row, e->at_column, e->at_lane };
    qn_dim dims[3];
    (void)value;
    (void)index;
    tile_dims(e, dims);
    return qn_writer_load(w, e->tile, qn_ix_linear(&w->space, 3, dims, at));
}

/* How many of a tile's rows or columns, the first at `first`, are in the result. */
static qn_kvalue *kept(emitter *e, qn_dim first, int axis)
{
    const int64_t m = e->p.t - 2;
    const qn_dim out = e->out[axis];
    qn_kvalue *most = qn_kb_index(&e->w.b, m);
    if (qn_dim_divisible(out, m))
        return most;
    return qn_kb_imin(&e->w.b, most,
                      qn_kb_isub(&e->w.b, qn_writer_index(&e->w, out), qn_writer_index(&e->w, first)));
}

/* What the group computes from the results of a tile. */
static void store_group(emitter *e)
{
    qn_writer *w = &e->w;
    const qn_group *g = e->group;
    const qn_type *type = &e->result->type;
    qn_dim extents[3], from[QN_MAX_RANK];
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *at);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, g->n_outputs);
    tile_dims(e, extents);
    qn_dim *const vars[] = { &e->at_row, &e->at_column, &e->at_lane };
    for (int i = 0; i < 3; i++)
        *vars[i] = qn_ispace_var(&w->space, extents[i], false);
    const qn_dim index[] = { e->sample, e->block, qn_dim_add(w->space.dims, e->row, e->at_row),
                             qn_dim_add(w->space.dims, e->column, e->at_column), e->at_lane };
    qn_ispace_dims(&w->space, type, from);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_dim to[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &g->outputs[i]->type, to);
        qn_ix_reshape(&w->space, type->rank, from, index, g->outputs[i]->type.rank, to, at[i]);
    }
    qn_writer_loop loops[3];
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < g->n_outputs; k++)
            qn_writer_prepare(w, g->outputs[k], at[k]);
        qn_kvalue *high = i == 2 ? qn_kb_index(&w->b, e->p.lanes) : kept(e, i == 0 ? e->row : e->column, i);
        loops[i] = qn_writer_for(w, *vars[i], qn_kb_index(&w->b, 0), high,
                                 i == 2 ? QN_TAG_VECTOR : QN_TAG_SERIAL, 0, NULL, NULL);
    }
    for (int i = 0; i < g->n_outputs; i++)
        values[i] = qn_writer_value(w, g->outputs[i], at[i]);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_dim to[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &g->outputs[i]->type, to);
        qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, g->outputs[i]), false, true);
        qn_writer_store(w, y, qn_ix_linear(&w->space, g->outputs[i]->type.rank, to, at[i]), values[i]);
    }
    for (int i = 2; i >= 0; i--)
        qn_writer_end_for(w, &loops[i], NULL);
}

/* A^T M A of one tile, whose sums for one block begin at m_at, into local memory. */
static void result_tile(emitter *e, qn_kvalue *m_at)
{
    const qn_winograd_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int t = p->t, m = t - 2;
    qn_kvalue *x[TILE][TILE], *y[TILE][TILE];
    for (int j = 0; j < t; j++)
        for (int i = 0; i < t; i++)
            x[i][j] = qn_kb_load(b, e->m, offset(e, m_at, (i * t + j) * p->m_plane), (int)p->lanes);
    both_sides(e, transform_result, t, m, x, y);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < m; j++)
            qn_kb_store(b, e->tile, qn_kb_index(b, (i * m + j) * p->lanes), y[i][j], NULL);
}

static void panel_results(emitter *e, const range *r, qn_dim panel)
{
    const qn_winograd_plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const int64_t m = p->t - 2;
    const qn_dim tile = qn_ispace_var(&w->space, e->tiles, false), across = e->across;
    qn_writer_loop tiles = qn_writer_for(w, tile, r->start, r->stop, QN_TAG_SERIAL, 0, NULL, NULL);
    e->row = qn_dim_mul(dims, qn_ix_div(&w->space, tile, across), number(e, m));
    e->column = qn_dim_mul(dims, qn_ix_mod(&w->space, tile, across), number(e, m));
    qn_kvalue *m_at = scaled(e, qn_kb_isub(&w->b, qn_writer_index(w, tile), r->start), p->vectors * p->lanes);
    const qn_dim j = qn_ispace_var(&w->space, number(e, p->vectors), false);
    qn_writer_loop blocks = qn_writer_for_all(w, j, QN_TAG_SERIAL, 0, NULL, NULL);
    e->block = qn_dim_add(dims, qn_dim_mul(dims, panel, number(e, p->vectors)), j);
    result_tile(e, along(e, m_at, qn_writer_index(w, j), p->lanes));
    store_group(e);
    qn_writer_end_for(w, &blocks, NULL);
    qn_writer_end_for(w, &tiles, NULL);
}

/* ---- kernels ---- */

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    qn_winograd_plan plan;
    return group->kind == QN_GROUP_CONTRACTION && qn_winograd_plan_make(group->root, options, &plan);
}

static bool keeps(const qn_node *node, const qn_pass_options *options)
{
    qn_winograd_plan plan;
    return qn_winograd_plan_make(node, options, &plan);
}

static void start_kernel(emitter *e, qn_lowering *l, const char *name, qn_arena *scratch)
{
    qn_writer_init(&e->w, l, name, scratch);
    qn_dims *dims = e->w.space.dims;
    e->vector = (qn_ktype){ e->p.dtype, (int)e->p.lanes };
    for (int i = 0; i < 2; i++) {
        e->x_dims[i] = qn_ispace_import(&e->w.space, e->x->type.dims[2 + i]);
        e->out[i] = qn_ispace_import(&e->w.space, e->result->type.dims[2 + i]);
    }
    const qn_dim edge = number(e, e->p.t - 2);
    e->across = qn_dim_ceildiv(dims, e->out[1], edge);
    e->tiles = qn_dim_mul(dims, qn_dim_ceildiv(dims, e->out[0], edge), e->across);
    e->groups = e->p.symbolic ? qn_dim_ceildiv(dims, e->tiles, number(e, e->p.pieces_per_group * e->p.piece))
                              : number(e, e->p.groups);
}

/* Splits the task number into `n` parts. */
static void split_task(emitter *e, int n, const qn_dim *parts, qn_dim *out_part, qn_dim *out_tasks)
{
    qn_writer *w = &e->w;
    qn_dim tasks = number(e, 1);
    for (int i = 0; i < n; i++)
        tasks = qn_dim_mul(w->space.dims, tasks, parts[i]);
    const qn_dim task = qn_ispace_var(&w->space, tasks, false);
    qn_ispace_set(&w->space, task, qn_kb_task(&w->b));
    qn_ix_split(&w->space, task, n, parts, out_part);
    *out_tasks = tasks;
}

/* Elements of V of all groups; of the program. */
static qn_dim inputs_elements(const emitter *e)
{
    qn_lowering *l = e->w.lowering;
    qn_dims *dims = l->program->dims;
    const qn_dim *y = e->result->type.dims, edge = qn_dim_const(dims, e->p.t - 2);
    qn_dim groups = qn_dim_const(dims, e->p.groups);
    if (e->p.symbolic)
        groups = qn_dim_ceildiv(dims,
                                qn_dim_mul(dims, qn_dim_ceildiv(dims, qn_lower_dim(l, y[2]), edge),
                                           qn_dim_ceildiv(dims, qn_lower_dim(l, y[3]), edge)),
                                qn_dim_const(dims, e->p.pieces_per_group * e->p.piece));
    return qn_dim_mul(dims, qn_dim_mul(dims, qn_lower_dim(l, y[0]), groups),
                      qn_dim_const(dims, places(e) * e->p.v_plane));
}

/* Where V of that group begins, in a buffer that has it of all groups. */
static qn_kvalue *group_inputs(emitter *e, qn_dim sample, qn_dim group)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim at = qn_dim_add(dims, qn_dim_mul(dims, sample, e->groups), group);
    return scaled(e, qn_writer_index(&e->w, at), places(e) * e->p.v_plane);
}

/* The kernel that transforms all inputs, into a buffer of the program: V of each group of each sample. */
static qn_status lower_inputs(qn_lowering *l, emitter *e, int *out_buffer)
{
    const qn_winograd_plan *p = &e->p;
    qn_arena *scratch = qn_arena_new();
    start_kernel(e, l, "winograd_input", scratch);
    qn_writer *w = &e->w;
    const qn_dim samples = qn_ispace_import(&w->space, e->result->type.dims[0]);
    *out_buffer = qn_lower_scratch(l, "winograd_input", p->dtype, inputs_elements(e));
    e->in = qn_writer_argument(w, qn_lower_buffer(l, e->x), true, false);
    e->v = qn_writer_argument(w, *out_buffer, false, true);
    qn_writer_note_load(w, e->in);
    qn_dim part[3], tasks;
    split_task(e, 3, (const qn_dim[]){ samples, e->groups, number(e, p->transforms) }, part, &tasks);
    e->sample = part[0];
    const range r = group_range(e, qn_writer_index(w, part[1]));
    qn_kvalue *past = scaled(e, qn_writer_index(w, part[2]), p->tiles_per_transform),
              *low = qn_kb_iadd(&w->b, r.start, past),
              *high = qn_kb_imin(&w->b, offset(e, low, p->tiles_per_transform), r.stop);
    input_tiles(e, low, high, along(e, group_inputs(e, part[0], part[1]), past, p->v_row));
    const char *node = e->group->root->loc.node, *name = w->kernel->name;
    const qn_status status =
        qn_writer_finish(w, tasks, node ? qn_arena_printf(l->arena, "%s %s", name, node) : name);
    qn_arena_free(scratch);
    return status;
}

static void one_panel(emitter *e, const range *r, qn_dim panel, qn_kvalue *v_at)
{
    const int64_t filters = places(e) * e->p.channels * e->p.vectors * e->p.lanes;
    panel_sums(e, r, v_at, scaled(e, qn_writer_index(&e->w, panel), filters));
    panel_results(e, r, panel);
}

static qn_status lower_products(qn_lowering *l, emitter *e, int v_buffer)
{
    const qn_winograd_plan *p = &e->p;
    const qn_group *group = e->group;
    qn_arena *scratch = qn_arena_new();
    start_kernel(e, l, qn_group_kernel_name(group, scratch), scratch);
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    e->in = qn_writer_argument(w, qn_lower_buffer(l, e->x), true, false);
    e->filters = qn_writer_argument(w, qn_lower_buffer(l, group->root->operands[1]), true, false);
    qn_writer_note_load(w, e->in);
    qn_writer_note_load(w, e->filters);
    if (p->shared) {
        e->v = qn_writer_argument(w, v_buffer, true, false);
        qn_writer_note_load(w, e->v);
    } else {
        e->v = qn_kernel_add_local(w->kernel, "inputs", p->dtype, places(e) * p->v_plane);
    }
    e->m = qn_kernel_add_local(w->kernel, "sums", p->dtype, places(e) * p->m_plane);
    e->tile = qn_kernel_add_local(w->kernel, "tile", p->dtype, (p->t - 2) * (p->t - 2) * p->lanes);
    qn_writer_bind(w, e->result, fetch_result, e);
    const qn_dim samples = qn_ispace_import(&w->space, e->result->type.dims[0]);
    const int64_t panel_parts = (p->panels + p->panels_per_task - 1) / p->panels_per_task;
    qn_dim part[3], tasks;
    split_task(e, 3, (const qn_dim[]){ number(e, panel_parts), samples, e->groups }, part, &tasks);
    e->sample = part[1];
    const range r = group_range(e, qn_writer_index(w, part[2]));
    qn_kvalue *v_at = qn_kb_index(&w->b, 0);
    if (p->shared)
        v_at = group_inputs(e, part[1], part[2]);
    else
        input_tiles(e, r.start, r.stop, v_at);
    const qn_dim low = qn_dim_mul(dims, part[0], number(e, p->panels_per_task));
    const qn_dim high =
        qn_dim_min(dims, qn_dim_add(dims, low, number(e, p->panels_per_task)), number(e, p->panels));
    const qn_dim panel = qn_ispace_var(&w->space, number(e, p->panels), false);
    qn_writer_loop loop = qn_writer_for(w, panel, qn_writer_index(w, low), qn_writer_index(w, high),
                                        QN_TAG_SERIAL, 0, NULL, NULL);
    one_panel(e, &r, panel, v_at);
    qn_writer_end_for(w, &loop, NULL);
    w->kernel->flops = 2 * 9.0 * qn_likely_extent(e->out[0]) * qn_likely_extent(e->out[1]) *
                       (double)p->channels * (double)(p->panels * p->vectors * p->lanes) *
                       qn_likely_extent(samples);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    emitter e = { .group = group, .x = group->root->operands[0], .result = &group->root->results[0] };
    int v_buffer = -1;
    const bool planned = qn_winograd_plan_make(group->root, l->options, &e.p);
    QN_ASSERT(planned, "winograd: a group that was matched has no plan");
    if (!e.p.symbolic)
        qn_winograd_plan_note(&e.p, group->root, l->options);
    if (e.p.shared)
        QN_TRY(lower_inputs(l, &e, &v_buffer));
    return lower_products(l, &e, v_buffer);
}

const qn_template qn_template_winograd = { "winograd", keeps, matches, lower };
