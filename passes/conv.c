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
 * In strict math the channels of a block come before kernel rows and columns, which is the order that defines a sum, and
 * multiply and add are apart. What padding would add is +0 or -0, which changes no sum, since none is -0: it is skipped.
 *
 * Then the tile is stored, or, if more is computed from it, put into local memory and taken up again element by element by
 * the code that any group has (lower_value.c): vector by vector while it is in the L1 cache, or, where that is cheap, written
 * out for each vector, which then stays in its register (forward.c).
 *
 * Of bytes, u8 times i8 with sums of 32 bits, four channels are multiplied at a time, of bf16 two: x and weights count in words
 * (words.h).
 *
 * A last output block of few channels would leave most lanes of a vector idle. Its sums are made in parts instead, which lie
 * side by side, each of some channels of x, and are added up at the end. Of 4 channels:
 *
 *   w = weights of channels 0 … 3: those of output 0, then those of output 1, …
 *   for each position p of the tile: sum[p] += x[p][0 … 3, 0 … 3, 0 … 3, 0 … 3] * w
 *
 * Each sum is made by one task in an order that depends on shapes only. */
#include "passes/conv.h"

#include <string.h>

#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/words.h"

typedef struct emitter {
    qn_writer w;
    qn_conv_plan p;
    const qn_group *group;
    qn_ktype vector;
    bool fused; /* multiply-add */
    qn_kbuffer *x, *weights, *local;
    int64_t row_elements, plane_elements; /* of x */
    int64_t w_row, w_block;               /* elements of a row of a kernel; of an output block */
    /* the tile at work */
    int64_t vectors;
    int64_t parts;   /* of its sums, side by side */
    int64_t channel; /* of groups inside of blocks */
    qn_kvalue *first,
        *next; /* of groups across blocks: lanes of the first; how far behind its channels the next one's lie */
    qn_conv_run rows, columns;
    qn_dim sample, block, depth, row, column; /* of its first position: of the result */
    qn_kvalue *sums[QN_CONV_TILE];
    /* for the group's elements: the place in the tile */
    qn_dim at_vector, at_row, at_column, at_lane;
} emitter;

static int64_t positions(const emitter *e)
{
    return e->rows.size * e->columns.size;
}

static qn_kvalue **sum_at(emitter *e, int64_t row, int64_t column, int64_t vector)
{
    return &e->sums[(row * e->columns.size + column) * e->vectors + vector];
}

static qn_kvalue *offset(emitter *e, qn_kvalue *at, int64_t by)
{
    return qn_kb_iadd(&e->w.b, at, qn_kb_index(&e->w.b, by));
}

/* at + i * step */
static qn_kvalue *along(emitter *e, qn_kvalue *at, qn_kvalue *i, int64_t step)
{
    return qn_kb_iadd(&e->w.b, at, qn_kb_imul(&e->w.b, i, qn_kb_index(&e->w.b, step)));
}

/* `lanes` numbers or words. */
static qn_kvalue *load(emitter *e, qn_kbuffer *buffer, qn_kvalue *at, int64_t lanes)
{
    return e->p.word > 1 ? qn_word_load(&e->w.b, buffer, at, (int)lanes)
                         : qn_kb_load(&e->w.b, buffer, at, (int)lanes);
}

/* One of them in all lanes. */
static qn_kvalue *repeat(emitter *e, qn_kbuffer *buffer, qn_kvalue *at)
{
    return e->p.word > 1 ? qn_word_repeat(&e->w.b, buffer, at, (int)e->p.lanes)
                         : qn_kb_splat(&e->w.b, qn_kb_load(&e->w.b, buffer, at, 1), (int)e->p.lanes);
}

static void multiply_add(emitter *e, qn_kvalue **sum, qn_kvalue *x, qn_kvalue *y)
{
    *sum = qn_word_multiply_add(&e->w.b, x, y, *sum, e->fused);
}

/* ---- loops that carry the tile's sums ---- */

static qn_kinst *open_loop(emitter *e, qn_kvalue *low, qn_kvalue *high, int64_t step)
{
    const int n = (int)(positions(e) * e->vectors);
    return qn_kb_carry(&e->w.b, low, high, qn_kb_index(&e->w.b, step), QN_TAG_SERIAL, n, e->sums, NULL);
}

static void close_loop(emitter *e, qn_kinst *loop)
{
    qn_kb_end_carry(&e->w.b, loop, e->sums);
}

/* ---- products ---- */

/* Numbers of x for `n` steps of K from `at` on, at the positions `columns` of a tile's rows. A machine that multiplies by lanes
 * reads them in vectors: where those of neighbouring positions lie side by side, all that a row needs, else a position's own. */
typedef struct reading {
    emitter *e;
    qn_kvalue *at;
    int64_t n, next_row, next_column; /* elements from a position to the next */
    qn_conv_span columns;
    int64_t row_words, row_vectors; /* of all positions of a row; 0: each has its own */
    qn_kvalue **vectors;            /* NULL: there are none, or it was not read yet */
} reading;

static reading read_x(emitter *e, qn_kvalue *at, int64_t n, qn_conv_span rows, qn_conv_span columns)
{
    const qn_conv_plan *p = &e->p;
    reading r = {
        e, at, n, p->axes[1].stride * e->row_elements, p->axes[2].stride * p->c, columns, 0, 0, NULL
    };
    if (!e->w.lowering->options->machine->by_lane)
        return r;
    const int64_t words = (columns.last - columns.first - 1) * r.next_column + n;
    if (r.next_column < p->lanes && words >= p->lanes) {
        r.row_words = words;
        r.row_vectors = (words + p->lanes - 1) / p->lanes;
    }
    const int64_t each_row = r.row_vectors > 0 ? r.row_vectors : e->columns.size;
    r.vectors = QN_NEW_ARRAY(e->w.arena, qn_kvalue *, rows.last * each_row);
    return r;
}

/* The number of step u at a position, in all lanes. Vectors are read as they are needed, the last one so early that it ends with
 * the row. */
static qn_kvalue *x_number(const reading *r, int64_t row, int64_t column, int64_t u)
{
    emitter *e = r->e;
    const int lanes = (int)e->p.lanes;
    const int64_t row_at = row * r->next_row, first = r->columns.first * r->next_column;
    const int64_t word = column * r->next_column + u - first, own = u - u % lanes;
    qn_kvalue **vector;
    int64_t start;
    if (r->row_words > 0) {
        start = word - word % lanes;
        start = start + lanes > r->row_words ? r->row_words - lanes : start;
        vector = &r->vectors[row * r->row_vectors + word / lanes];
    } else if (r->vectors && own + lanes <= r->n) {
        start = column * r->next_column + own - first;
        vector = &r->vectors[row * e->columns.size + column];
        *vector = u == own ? NULL : *vector;
    } else {
        return repeat(e, e->x, offset(e, r->at, row_at + first + word));
    }
    if (!*vector)
        *vector = load(e, e->x, offset(e, r->at, row_at + first + start), lanes);
    return qn_word_lane(&e->w.b, *vector, lanes, (int)(word - start), lanes);
}

/* Vectors of few lanes, lane by lane: all vectors' first, then their second, … */
static qn_kvalue *interleaved(emitter *e, qn_kvalue *const *vectors, int64_t n, int64_t step)
{
    if (n == 1)
        return vectors[0];
    qn_kvalue *even = interleaved(e, vectors, n / 2, 2 * step),
              *odd = interleaved(e, vectors + step, n / 2, 2 * step);
    const int lanes = even->type.lanes;
    int mask[64];
    for (int i = 0; i < 2 * lanes; i++)
        mask[i] = i / 2 + i % 2 * lanes;
    return qn_kb_shuffle(&e->w.b, even, odd, 2 * lanes, mask);
}

/* `n` steps of K where sums are in parts: as many steps at a time. */
static void steps_in_parts(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows,
                           qn_conv_span columns)
{
    const qn_conv_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int64_t parts = e->parts, outputs = p->lanes / parts;
    int mask[64];
    for (int64_t i = 0; i < p->lanes; i++)
        mask[i] = (int)(i % parts);
    for (int64_t u = 0; u < n; u += parts) {
        qn_kvalue *each[64];
        for (int64_t i = 0; i < parts; i++)
            each[i] = load(e, e->weights, offset(e, w_at, (u + i) * p->lanes), outputs);
        qn_kvalue *weights = interleaved(e, each, parts, 1);
        for (int64_t r = rows.first; r < rows.last; r++)
            for (int64_t q = columns.first; q < columns.last; q++) {
                const int64_t at = r * p->axes[1].stride * e->row_elements + q * p->axes[2].stride * p->c + u;
                qn_kvalue *x = load(e, e->x, offset(e, x_at, at), parts);
                multiply_add(e, sum_at(e, r, q, 0), qn_kb_shuffle(b, x, x, (int)p->lanes, mask), weights);
            }
    }
}

/* Adds up the parts of a sum; 0 in the lanes behind. */
static qn_kvalue *added_up(emitter *e, qn_kvalue *sum)
{
    qn_kbuilder *b = &e->w.b;
    int mask[64];
    while (sum->type.lanes > e->p.lanes / e->parts) {
        qn_kvalue *half[2];
        for (int k = 0; k < 2; k++) {
            for (int i = 0; i < sum->type.lanes / 2; i++)
                mask[i] = 2 * i + k;
            half[k] = qn_kb_shuffle(b, sum, sum, sum->type.lanes / 2, mask);
        }
        sum = qn_kb_binary(b, QN_OP_ADD, half[0], half[1]);
    }
    for (int i = 0; i < e->p.lanes; i++)
        mask[i] = i < sum->type.lanes ? i : sum->type.lanes;
    return qn_kb_shuffle(b, sum, qn_kb_const(b, sum->type, (qn_scalar){ .i = 0 }), (int)e->p.lanes, mask);
}

/* `n` steps of K, unrolled: numbers of x from x_at on, weights from w_at on. */
static void steps(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows,
                  qn_conv_span columns)
{
    const int lanes = (int)e->p.lanes;
    if (e->parts > 1) {
        steps_in_parts(e, x_at, w_at, n, rows, columns);
        return;
    }
    const reading reading = read_x(e, x_at, n, rows, columns);
    for (int64_t u = 0; u < n; u++) {
        qn_kvalue *weights[4];
        for (int64_t j = 0; j < e->vectors; j++)
            weights[j] = load(e, e->weights, offset(e, w_at, j * e->w_block + u * lanes), lanes);
        for (int64_t r = rows.first; r < rows.last; r++)
            for (int64_t q = columns.first; q < columns.last; q++) {
                qn_kvalue *x = x_number(&reading, r, q, u);
                for (int64_t j = 0; j < e->vectors; j++)
                    multiply_add(e, sum_at(e, r, q, j), x, weights[j]);
            }
    }
}

/* Steps that are written out: more of them where a tile is small, since they wait for their own sums; but no two of them
 * that read the same x, which would be kept in a register, but where vectors of x are loaded. */
static int64_t unroll(const emitter *e, int64_t length)
{
    const bool by_lane = e->w.lowering->options->machine->by_lane;
    const int64_t by = (positions(e) * e->vectors > 16 ? 4 : 8) * e->parts,
                  apart = e->p.axes[2].stride * e->p.c;
    return by > apart && !by_lane ? apart : length < 2 * by ? length : by;
}

static void run(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t length, qn_conv_span rows,
                qn_conv_span columns)
{
    const int64_t by = unroll(e, length), looped = by == length ? 0 : length - length % by;
    if (looped > 0) {
        qn_kinst *loop = open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, looped), by);
        qn_kvalue *k = qn_loop_counter(loop);
        steps(e, qn_kb_iadd(&e->w.b, x_at, k), along(e, w_at, k, e->p.lanes), by, rows, columns);
        close_loop(e, loop);
    }
    if (length > looped)
        steps(e, offset(e, x_at, looped), offset(e, w_at, looped * e->p.lanes), length - looped, rows,
              columns);
}

/* The channel at work of each lane's group, of a vector of x. */
static qn_kvalue *spread(emitter *e, qn_kvalue *x)
{
    const qn_conv_plan *p = &e->p;
    int mask[64];
    for (int64_t lane = 0; lane < p->lanes; lane++)
        mask[lane] = (int)(lane / p->of_group * p->w_c + e->channel);
    return qn_kb_shuffle(&e->w.b, x, x, (int)p->lanes, mask);
}

/* What each lane of an output block multiplies at that place of x. */
static qn_kvalue *by_lanes(emitter *e, qn_kvalue *at)
{
    if (e->p.across && !e->next)
        return repeat(e, e->x, at);
    if (!e->p.across)
        return spread(e, qn_kb_load(&e->w.b, e->x, at, (int)e->p.reach));
    qn_kvalue *x = repeat(e, e->x, at), *next = repeat(e, e->x, qn_kb_iadd(&e->w.b, at, e->next));
    return qn_kb_select(&e->w.b, e->first, x, next);
}

/* One channel of groups inside of blocks: x in vectors. `n` columns of the kernel, position after position, so that a column of
 * x is loaded, and put in order, once for all of them that meet it. */
static void columns_inside(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows)
{
    const qn_conv_plan *p = &e->p;
    const qn_conv_axis *width = &p->axes[2];
    const int64_t next_row = p->axes[1].stride * e->row_elements;
    for (int64_t r = rows.first; r < rows.last; r++)
        for (int64_t q = 0; q < e->columns.size; q++)
            for (int64_t k = 0; k < n; k++) {
                const qn_conv_span span = qn_conv_valid(width, e->columns.start, e->columns.size, k);
                if (q < span.first || q >= span.last)
                    continue;
                const int64_t column = q * width->stride + k * width->dilation;
                qn_kvalue *x = by_lanes(e, offset(e, x_at, r * next_row + column * p->c));
                qn_kvalue *w =
                    load(e, e->weights, offset(e, w_at, (k * p->w_c + e->channel) * p->lanes), p->lanes);
                multiply_add(e, sum_at(e, r, q, 0), x, w);
            }
}

/* A wide kernel, which meets no border, goes some columns at a time. */
static void row_inside(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, qn_conv_span rows)
{
    enum { COLUMNS = QN_CONV_WIDTH / 2 };
    const qn_conv_plan *p = &e->p;
    const int64_t kernel = p->axes[2].kernel, x_step = p->axes[2].dilation * p->c, w_step = p->w_c * p->lanes;
    if (kernel <= QN_CONV_WIDTH) {
        columns_inside(e, x_at, w_at, kernel, rows);
        return;
    }
    const int64_t rest = kernel % COLUMNS, looped = kernel - rest;
    qn_kinst *loop = open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, looped), COLUMNS);
    qn_kvalue *k = qn_loop_counter(loop);
    columns_inside(e, along(e, x_at, k, x_step), along(e, w_at, k, w_step), COLUMNS, rows);
    close_loop(e, loop);
    columns_inside(e, offset(e, x_at, looped * x_step), offset(e, w_at, looped * w_step), rest, rows);
}

/* How many kernel offsets from k on read inside of x at the same positions of a tile: out_span. */
static int64_t offsets_alike(const qn_conv_axis *axis, const qn_conv_run *tile, int64_t k,
                             qn_conv_span *out_span)
{
    int64_t n = 1;
    *out_span = qn_conv_valid(axis, tile->start, tile->size, k);
    for (; k + n < axis->kernel; n++) {
        const qn_conv_span next = qn_conv_valid(axis, tile->start, tile->size, k + n);
        if (next.first != out_span->first || next.last != out_span->last)
            break;
    }
    return n;
}

/* The same row of the next block of x, which lies too far away for the machine's own prefetcher. Of bytes and bf16, which wait for
 * it: their products take a quarter or half of the time. */
static void fetch_next_block(emitter *e, qn_kvalue *x_at, qn_conv_span rows)
{
    enum { LINE = 16 }; /* words */
    const qn_conv_axis *height = &e->p.axes[1], *width = &e->p.axes[2];
    const int64_t words = e->columns.size * width->stride * e->p.c;
    for (int64_t r = rows.first; r < rows.last; r++)
        for (int64_t i = 0; i < words + LINE; i += LINE) {
            const int64_t at = e->plane_elements + r * height->stride * e->row_elements + i;
            qn_word_prefetch(&e->w.b, e->x, offset(e, x_at, at), 0);
        }
}

/* One row of the kernel over one block of x, of which `channels` take part. */
static void kernel_row(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels, qn_conv_span rows)
{
    const qn_conv_plan *p = &e->p;
    const qn_conv_axis *width = &p->axes[2];
    if (p->inside) {
        row_inside(e, x_at, w_at, rows);
        return;
    }
    if (p->word > 1)
        fetch_next_block(e, x_at, rows);
    qn_conv_span span;
    for (int64_t k = 0, n; k < width->kernel; k += n) {
        n = offsets_alike(width, &e->columns, k, &span);
        if (span.first == span.last)
            continue;
        qn_kvalue *x_k = offset(e, x_at, k * width->dilation * p->c),
                  *w_k = offset(e, w_at, k * p->w_c * p->lanes);
        if (n == 1 ||
            (width->dilation == 1 && channels == p->c)) { /* they follow each other in x as in the weights */
            run(e, x_k, w_k, (n - 1) * p->c + channels, rows, span);
            continue;
        }
        qn_kinst *loop = open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, n), 1);
        run(e, along(e, x_k, qn_loop_counter(loop), width->dilation * p->c),
            along(e, w_k, qn_loop_counter(loop), p->w_c * p->lanes), channels, rows, span);
        close_loop(e, loop);
    }
}

/* ---- the loops of K ---- */

/* Kernel offsets along an axis that read inside of x at output position `at`: [out_low, out_high). */
static void kernel_range(emitter *e, const qn_conv_axis *a, qn_dim at, qn_kvalue **out_low,
                         qn_kvalue **out_high)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim zero = qn_dim_const(dims, 0), dilation = qn_dim_const(dims, a->dilation);
    const qn_dim before =
        qn_dim_sub(dims, qn_dim_const(dims, a->low), qn_dim_mul(dims, at, qn_dim_const(dims, a->stride)));
    const bool crosses_low = a->low > 0;
    const bool crosses_high = (a->out - 1) * a->stride - a->low + (a->kernel - 1) * a->dilation >= a->in;
    qn_dim low = zero, high = qn_dim_const(dims, a->kernel);
    if (crosses_low)
        low = qn_dim_ceildiv(dims, qn_dim_max(dims, before, zero), dilation);
    if (crosses_high)
        high = qn_dim_min(
            dims, high,
            qn_dim_ceildiv(dims, qn_dim_max(dims, qn_dim_add(dims, before, qn_dim_const(dims, a->in)), zero),
                           dilation));
    *out_low = qn_writer_index(&e->w, low);
    *out_high = qn_writer_index(&e->w, high);
}

/* All rows of a kernel plane. */
static void kernel_plane(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const qn_conv_axis *height = &e->p.axes[1];
    const int64_t x_step = height->dilation * e->row_elements;
    qn_conv_span rows = { 0, 1 };
    if (e->p.n_rows == 0) {
        qn_kvalue *low, *high;
        kernel_range(e, height, e->row, &low, &high);
        qn_kinst *loop = open_loop(e, low, high, 1);
        kernel_row(e, along(e, x_at, qn_loop_counter(loop), x_step),
                   along(e, w_at, qn_loop_counter(loop), e->w_row), channels, rows);
        close_loop(e, loop);
        return;
    }
    for (int64_t k = 0, n; k < height->kernel; k += n) {
        n = offsets_alike(height, &e->rows, k, &rows);
        if (rows.first == rows.last)
            continue;
        qn_kinst *loop = open_loop(e, qn_kb_index(&e->w.b, k), qn_kb_index(&e->w.b, k + n), 1);
        kernel_row(e, along(e, x_at, qn_loop_counter(loop), x_step),
                   along(e, w_at, qn_loop_counter(loop), e->w_row), channels, rows);
        close_loop(e, loop);
    }
}

/* A kernel over one block of x. */
static void kernel_block(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const qn_conv_axis *depth = &e->p.axes[0];
    qn_kvalue *low, *high;
    kernel_range(e, depth, e->depth, &low, &high);
    qn_kinst *loop = open_loop(e, low, high, 1);
    qn_kvalue *k = qn_loop_counter(loop);
    const int64_t slice = e->p.axes[1].in * e->row_elements;
    kernel_plane(e, along(e, x_at, k, depth->dilation * slice),
                 along(e, w_at, k, e->p.axes[1].kernel * e->w_row), channels);
    close_loop(e, loop);
}

/* `channels` channels of a block of x, together or one after the other. */
static void block_of_channels(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    if (!e->p.by_channel) {
        kernel_block(e, x_at, w_at, channels);
        return;
    }
    qn_kinst *loop = open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, channels), 1);
    qn_kvalue *k = qn_loop_counter(loop);
    kernel_block(e, qn_kb_iadd(&e->w.b, x_at, k), along(e, w_at, k, e->w_block / e->p.w_channels), 1);
    close_loop(e, loop);
}

static qn_dim scaled(qn_dims *dims, qn_dim at, const qn_conv_axis *a)
{
    return qn_dim_sub(dims, qn_dim_mul(dims, at, qn_dim_const(dims, a->stride)), qn_dim_const(dims, a->low));
}

/* Where the tile's first position reads with kernel offset 0 (which may be outside of x), in the first block of its group. */
static qn_dim first_element(emitter *e)
{
    const qn_conv_plan *p = &e->p;
    qn_dims *dims = e->w.space.dims;
    qn_dim block = e->block;
    qn_dim channel = qn_dim_const(dims, 0); /* in the block */
    if (p->across) {
        block = channel;
    } else if (p->inside) {
        const qn_dim first = qn_dim_mul(dims, e->block, qn_dim_const(dims, p->reach)),
                     c = qn_dim_const(dims, p->c);
        block = qn_ix_div(&e->w.space, first, c);
        channel = qn_ix_mod(&e->w.space, first, c);
    } else {
        block =
            qn_dim_mul(dims, qn_ix_div(&e->w.space, e->block, qn_dim_const(dims, p->out_blocks / p->groups)),
                       qn_dim_const(dims, p->blocks / p->groups));
    }
    const qn_dim parts[] = { e->sample, block, scaled(dims, e->depth, &p->axes[0]),
                             scaled(dims, e->row, &p->axes[1]), scaled(dims, e->column, &p->axes[2]) };
    const int64_t extents[] = { 0, p->blocks, p->axes[0].in, p->axes[1].in, p->axes[2].in };
    qn_dim at = parts[0];
    for (int i = 1; i < 5; i++)
        at = qn_dim_add(dims, qn_dim_mul(dims, at, qn_dim_const(dims, extents[i])), parts[i]);
    return qn_dim_add(dims, qn_dim_mul(dims, at, qn_dim_const(dims, p->c)), channel);
}

/* Blocks of x that are written out: of kernels of one element, so that a loop has as many steps of K as a vector has lanes. */
static int64_t blocks_at_a_time(const emitter *e)
{
    const qn_conv_axis *a = e->p.axes;
    const bool one = a[0].kernel * a[1].kernel * a[2].kernel == 1;
    return one && !e->p.by_channel && e->w.lowering->options->machine->by_lane && e->p.c < e->p.lanes
               ? e->p.lanes / e->p.c
               : 1;
}

/* Where a channel of x lies behind the first one. */
static qn_kvalue *channel_at(emitter *e, qn_kvalue *channel)
{
    qn_kbuilder *b = &e->w.b;
    qn_kvalue *c = qn_kb_index(b, e->p.c);
    return qn_kb_iadd(b, qn_kb_imul(b, qn_kb_idiv(b, channel, c), qn_kb_index(b, e->plane_elements)),
                      qn_kb_imod(b, channel, c));
}

/* All channels of a group, from `low` on, and of another one, if there is, from `high` on. Those that surely lie in one block,
 * for both, are written out. */
static void all_channels(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, qn_kvalue *low, qn_kvalue *high)
{
    const qn_conv_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int64_t by = qn_conv_common_divisor(p->channels, p->c);
    qn_kinst *loop = open_loop(e, qn_kb_index(b, 0), qn_kb_index(b, p->channels), by);
    qn_kvalue *i = qn_loop_counter(loop), *at = channel_at(e, qn_kb_iadd(b, low, i));
    e->next = high ? qn_kb_isub(b, channel_at(e, qn_kb_iadd(b, high, i)), at) : NULL;
    for (int64_t k = 0; k < by; k++)
        kernel_block(e, offset(e, qn_kb_iadd(b, x_at, at), k),
                     along(e, offset(e, w_at, k * p->lanes), i, p->lanes), 1);
    close_loop(e, loop);
}

/* Groups across blocks: of one group, which most output blocks are if groups are large, or of two. */
static void sum_across(emitter *e, qn_kvalue *x_at, qn_kvalue *w_at)
{
    const qn_conv_plan *p = &e->p;
    qn_writer *w = &e->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const qn_dim from = qn_dim_mul(dims, e->block, qn_dim_const(dims, p->lanes)),
                 last = qn_dim_const(dims, p->groups - 1), one = qn_dim_const(dims, 1),
                 group = qn_dim_min(dims, qn_ix_div(&w->space, from, qn_dim_const(dims, p->of_group)), last),
                 next = qn_dim_min(dims, qn_dim_add(dims, group, one), last),
                 end = qn_dim_mul(dims, qn_dim_add(dims, group, one), qn_dim_const(dims, p->of_group));
    qn_kvalue *of_first = qn_writer_index(w, qn_dim_sub(dims, end, from));
    e->first = qn_kb_compare(b, QN_LT, qn_kb_ramp(b, qn_kb_index(b, 0), (int)p->lanes),
                             qn_kb_splat(b, of_first, (int)p->lanes));
    qn_kvalue *low = qn_kb_imul(b, qn_writer_index(w, group), qn_kb_index(b, p->channels)),
              *high = qn_kb_imul(b, qn_writer_index(w, next), qn_kb_index(b, p->channels));
    const int n = (int)(positions(e) * e->vectors);
    qn_kvalue *zeros[QN_CONV_TILE];
    memcpy(zeros, e->sums, (size_t)n * sizeof *zeros);
    qn_kinst *branch = qn_kb_if(b, qn_kb_compare(b, QN_GE, of_first, qn_kb_index(b, p->lanes)));
    const size_t mark = qn_writer_mark(w);
    all_channels(e, x_at, w_at, low, NULL);
    qn_writer_forget(w, mark);
    qn_kb_else(b, branch, n, e->sums);
    memcpy(e->sums, zeros, (size_t)n * sizeof *zeros);
    all_channels(e, x_at, w_at, low, high);
    qn_writer_forget(w, mark);
    qn_kb_end_if(b, branch, n, e->sums);
    for (int i = 0; i < n; i++)
        e->sums[i] = &branch->results[i];
}

static void sum_tile(emitter *e)
{
    const qn_conv_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    for (int64_t i = 0; i < positions(e) * e->vectors; i++)
        e->sums[i] = qn_kb_const(b, e->vector, (qn_scalar){ .i = 0 });
    qn_kvalue *x_at = qn_writer_index(&e->w, first_element(e));
    qn_kvalue *w_at = qn_writer_index(
        &e->w, qn_dim_mul(e->w.space.dims, e->block, qn_dim_const(e->w.space.dims, e->w_block)));
    if (p->across) {
        e->channel = 0;
        sum_across(e, x_at, w_at);
        return;
    }
    if (p->inside) { /* a channel's weights, and no more, stay in registers; and it is the order that defines a sum */
        for (e->channel = 0; e->channel < p->channels; e->channel++)
            kernel_block(e, x_at, w_at, 1);
        return;
    }
    const int64_t whole = p->channels / p->c, rest = p->channels % p->c,
                  w_step = e->w_block / p->w_channels * p->c;
    for (int64_t by = blocks_at_a_time(e), done = 0; done < whole; by = 1) {
        const int64_t end = whole - (whole - done) % by;
        if (end == done)
            continue;
        qn_kinst *loop = open_loop(e, qn_kb_index(b, done), qn_kb_index(b, end), by);
        for (int64_t i = 0; i < by; i++) {
            qn_kvalue *k = offset(e, qn_loop_counter(loop), i);
            block_of_channels(e, along(e, x_at, k, e->plane_elements), along(e, w_at, k, w_step), p->c);
        }
        close_loop(e, loop);
        done = end;
    }
    if (rest > 0)
        block_of_channels(e, offset(e, x_at, whole * e->plane_elements), offset(e, w_at, whole * w_step),
                          rest);
}

/* ---- what is done with the sums ---- */

static void local_dims(const emitter *e, qn_dim *dims)
{
    const int64_t extents[] = { e->vectors, e->rows.size, e->columns.size, e->p.lanes };
    for (int i = 0; i < 4; i++)
        dims[i] = qn_dim_const(e->w.space.dims, extents[i]);
}

/* Number i of the tile's sums, vector by vector and row by row, as local_dims has them. */
static qn_kvalue **tile_sum(emitter *e, int64_t i)
{
    return &e->sums[i % positions(e) * e->vectors + i / positions(e)];
}

static void set_place(emitter *e, int64_t i)
{
    qn_dims *dims = e->w.space.dims;
    const int64_t position = i % positions(e);
    e->at_vector = qn_dim_const(dims, i / positions(e));
    e->at_row = qn_dim_const(dims, position / e->columns.size);
    e->at_column = qn_dim_const(dims, position % e->columns.size);
}

/* The sum that belongs to the element at work: qn_fetch_fn. The group reads it nowhere else. */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const emitter *e = user;
    const qn_dim at[] = { e->at_vector, e->at_row, e->at_column, e->at_lane };
    qn_dim dims[4];
    (void)value;
    (void)index;
    local_dims(e, dims);
    return qn_writer_load(w, e->local, qn_ix_linear(&w->space, 4, dims, at));
}

/* Index of the result's element at the place in the tile. */
static void result_index(const emitter *e, qn_dim *out)
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

static void store_sums(emitter *e, qn_value *value)
{
    qn_writer *w = &e->w;
    qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), false, true);
    qn_dim index[QN_MAX_RANK], dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &value->type, dims);
    e->at_lane = qn_dim_const(w->space.dims, 0);
    for (int64_t i = 0; i < positions(e) * e->vectors; i++) {
        set_place(e, i);
        result_index(e, index);
        const qn_dim linear = qn_ix_linear(&w->space, value->type.rank, dims, index);
        qn_kb_store(&w->b, y, qn_writer_index(w, linear), *tile_sum(e, i), NULL);
    }
}

static bool is_written_out(const emitter *e)
{
    enum { MOST = 256 };
    int64_t cost = 0;
    for (int i = 0; i < e->group->n_nodes; i++)
        cost += e->group->nodes[i] == e->group->root ? 0 : qn_node_cost(e->group->nodes[i]);
    return cost * positions(e) * e->vectors <= MOST;
}

/* The group's outputs at the place in the tile. */
static void store_outputs(emitter *e)
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

static void store_group(emitter *e)
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

static void tile(emitter *e)
{
    sum_tile(e);
    for (int64_t i = 0; e->parts > 1 && i < positions(e); i++)
        e->sums[i] = added_up(e, e->sums[i]);
    if (e->local)
        store_group(e);
    else
        store_sums(e, e->group->outputs[0]);
}

/* ---- the loops of a task ---- */

/* Opens the loop over the tiles of a run; out_at: the first position of one. */
static qn_writer_loop open_run(emitter *e, const qn_conv_run *run, qn_dim *out_at)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim i = qn_ispace_var(&e->w.space, qn_dim_const(dims, run->n), false);
    *out_at =
        qn_dim_add(dims, qn_dim_mul(dims, i, qn_dim_const(dims, run->size)), qn_dim_const(dims, run->start));
    return qn_writer_for_all(&e->w, i, QN_TAG_SERIAL, 0, NULL, NULL);
}

static void all_columns(emitter *e)
{
    for (int i = 0; i < e->p.n_columns; i++) {
        e->columns = e->p.columns[i];
        qn_writer_loop loop = open_run(e, &e->columns, &e->column);
        tile(e);
        qn_writer_end_for(&e->w, &loop, NULL);
    }
}

/* Output row number `line` of all depths; or, with tiles of several rows, all rows of depth `line`. */
static void one_line(emitter *e, qn_dim line)
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
static void part_range(emitter *e, qn_dim part, int64_t each, int64_t n, qn_dim *out_low, qn_dim *out_high)
{
    qn_dims *dims = e->w.space.dims;
    *out_low = qn_dim_mul(dims, part, qn_dim_const(dims, each));
    *out_high = qn_dim_min(dims, qn_dim_add(dims, *out_low, qn_dim_const(dims, each)), qn_dim_const(dims, n));
}

/* `vectors` output blocks from `block` on. */
static void one_panel(emitter *e, qn_dim block, int64_t vectors, int64_t parts, qn_dim line_part)
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
static void whole_panels(emitter *e, qn_dim low, qn_dim high, int64_t n, qn_dim line_part)
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

static branch open_branch(emitter *e, qn_dim low, qn_dim high)
{
    qn_writer *w = &e->w;
    qn_kvalue *is = qn_kb_compare(&w->b, QN_LT, qn_writer_index(w, low), qn_writer_index(w, high));
    return (branch){ qn_kb_if(&w->b, is), qn_writer_mark(w) };
}

static void close_branch(emitter *e, const branch *b)
{
    qn_writer_forget(&e->w, b->mark);
    qn_kb_else(&e->w.b, b->inst, 0, NULL);
    qn_kb_end_if(&e->w.b, b->inst, 0, NULL);
}

/* Panel `panel`, where it is one of [low, high). */
static void panel_alone(emitter *e, qn_dim low, qn_dim high, int64_t panel, int64_t vectors, int64_t parts,
                        qn_dim line_part)
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

static void all_panels(emitter *e, qn_dim panel_part, qn_dim line_part)
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

static int64_t largest_tile(const qn_conv_plan *p)
{
    int64_t rows = 1, columns = 1;
    for (int i = 0; i < p->n_rows; i++)
        rows = p->rows[i].size > rows ? p->rows[i].size : rows;
    for (int i = 0; i < p->n_columns; i++)
        columns = p->columns[i].size > columns ? p->columns[i].size : columns;
    return rows * columns * p->vectors * p->lanes;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    emitter e = { .group = group };
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
        e.local = qn_kernel_add_local(w->kernel, "tile", p->dtype, largest_tile(p));
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
