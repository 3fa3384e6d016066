/* Convolution in channel blocks: products of numbers of x and weights.
 *
 * Of bytes, u8 times i8 with sums of 32 bits, four channels are multiplied at a time, of bf16 two: x and weights count in words
 * (words.h).
 *
 * A last output block of few channels would leave most lanes of a vector idle. Its sums are made in parts instead, which lie
 * side by side, each of some channels of x, and are added up at the end. Of 4 channels:
 *
 *   w = weights of channels 0 … 3: those of output 0, then those of output 1, …
 *   for each position p of the tile: sum[p] += x[p][0 … 3, 0 … 3, 0 … 3, 0 … 3] * w */
#include "passes/conv_emit.h"
#include "passes/words.h"

static qn_kvalue **sum_at(qn_conv_emitter *e, int64_t row, int64_t column, int64_t vector)
{
    return &e->sums[(row * e->columns.size + column) * e->vectors + vector];
}

/* `lanes` numbers or words. */
static qn_kvalue *load(qn_conv_emitter *e, qn_kbuffer *buffer, qn_kvalue *at, int64_t lanes)
{
    return e->p.word > 1 ? qn_word_load(&e->w.b, buffer, at, (int)lanes)
                         : qn_kb_load(&e->w.b, buffer, at, (int)lanes);
}

/* One of them in all lanes. */
static qn_kvalue *repeat(qn_conv_emitter *e, qn_kbuffer *buffer, qn_kvalue *at)
{
    return e->p.word > 1 ? qn_word_repeat(&e->w.b, buffer, at, (int)e->p.lanes)
                         : qn_kb_splat(&e->w.b, qn_kb_load(&e->w.b, buffer, at, 1), (int)e->p.lanes);
}

static void multiply_add(qn_conv_emitter *e, qn_kvalue **sum, qn_kvalue *x, qn_kvalue *y)
{
    *sum = qn_word_multiply_add(&e->w.b, x, y, *sum, e->fused);
}

/* ---- sums in parts ---- */

/* Vectors of few lanes, lane by lane: all vectors' first, then their second, … */
static qn_kvalue *interleaved(qn_conv_emitter *e, qn_kvalue *const *vectors, int64_t n, int64_t step)
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
static void steps_in_parts(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows,
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
            each[i] = load(e, e->weights, qn_conv_offset(e, w_at, (u + i) * p->lanes), outputs);
        qn_kvalue *weights = interleaved(e, each, parts, 1);
        for (int64_t r = rows.first; r < rows.last; r++)
            for (int64_t q = columns.first; q < columns.last; q++) {
                const int64_t at = r * p->axes[1].stride * e->row_elements + q * p->axes[2].stride * p->c + u;
                qn_kvalue *x = load(e, e->x, qn_conv_offset(e, x_at, at), parts);
                multiply_add(e, sum_at(e, r, q, 0), qn_kb_shuffle(b, x, x, (int)p->lanes, mask), weights);
            }
    }
}

/* Adds up the parts of a sum; 0 in the lanes behind. */
qn_kvalue *qn_conv_added_up(qn_conv_emitter *e, qn_kvalue *sum)
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

/* ---- steps in a row ---- */

/* Numbers of x for `n` steps of K from `at` on, at the positions `columns` of a tile's rows. A machine that multiplies by lanes
 * reads them in vectors: where those of neighbouring positions lie side by side, all that a row needs, else a position's own. */
typedef struct reading {
    qn_conv_emitter *e;
    qn_kvalue *at;
    int64_t n, next_row, next_column; /* elements from a position to the next */
    qn_conv_span columns;
    int64_t row_words, row_vectors; /* of all positions of a row; 0: each has its own */
    qn_kvalue **vectors;            /* NULL: there are none, or it was not read yet */
} reading;

static reading read_x(qn_conv_emitter *e, qn_kvalue *at, int64_t n, qn_conv_span rows, qn_conv_span columns)
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
    qn_conv_emitter *e = r->e;
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
        return repeat(e, e->x, qn_conv_offset(e, r->at, row_at + first + word));
    }
    if (!*vector)
        *vector = load(e, e->x, qn_conv_offset(e, r->at, row_at + first + start), lanes);
    return qn_word_lane(&e->w.b, *vector, lanes, (int)(word - start), lanes);
}

/* `n` steps of K, unrolled: numbers of x from x_at on, weights from w_at on. */
static void steps(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows,
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
            weights[j] = load(e, e->weights, qn_conv_offset(e, w_at, j * e->w_block + u * lanes), lanes);
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
static int64_t unroll(const qn_conv_emitter *e, int64_t length)
{
    const bool by_lane = e->w.lowering->options->machine->by_lane;
    const int64_t by = (qn_conv_positions(e) * e->vectors > 16 ? 4 : 8) * e->parts,
                  apart = e->p.axes[2].stride * e->p.c;
    return by > apart && !by_lane ? apart : length < 2 * by ? length : by;
}

static void ask_for_weights(qn_conv_emitter *e, qn_kvalue *w_at, int64_t n)
{
    const int64_t lanes = e->p.lanes;
    if (qn_conv_asks_for_weights(e->w.lowering->options->machine, e->vectors * e->w_block))
        for (int64_t j = 0; j < e->vectors; j++)
            qn_word_prefetch_run(&e->w.b, e->weights,
                                 qn_conv_offset(e, w_at, j * e->w_block + QN_CONV_AHEAD * lanes), n * lanes);
}

void qn_conv_steps(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t length, qn_conv_span rows,
                   qn_conv_span columns)
{
    const int64_t by = unroll(e, length), looped = by == length ? 0 : length - length % by;
    if (looped > 0) {
        qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, looped), by);
        qn_kvalue *k = qn_loop_counter(loop), *w_k = qn_conv_along(e, w_at, k, e->p.lanes);
        ask_for_weights(e, w_k, by);
        steps(e, qn_kb_iadd(&e->w.b, x_at, k), w_k, by, rows, columns);
        qn_conv_close_loop(e, loop);
    }
    if (length > looped)
        steps(e, qn_conv_offset(e, x_at, looped), qn_conv_offset(e, w_at, looped * e->p.lanes),
              length - looped, rows, columns);
}

/* ---- groups inside of blocks, and across them ---- */

/* The channel at work of each lane's group, of a vector of x. */
static qn_kvalue *spread(qn_conv_emitter *e, qn_kvalue *x)
{
    const qn_conv_plan *p = &e->p;
    int mask[64];
    for (int64_t lane = 0; lane < p->lanes; lane++)
        mask[lane] = (int)(lane / p->of_group * p->w_c + e->channel);
    return qn_kb_shuffle(&e->w.b, x, x, (int)p->lanes, mask);
}

/* What each lane of an output block multiplies at that place of x. */
static qn_kvalue *by_lanes(qn_conv_emitter *e, qn_kvalue *at)
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
static void columns_inside(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t n, qn_conv_span rows)
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
                qn_kvalue *x = by_lanes(e, qn_conv_offset(e, x_at, r * next_row + column * p->c));
                qn_kvalue *w = load(e, e->weights,
                                    qn_conv_offset(e, w_at, (k * p->w_c + e->channel) * p->lanes), p->lanes);
                multiply_add(e, sum_at(e, r, q, 0), x, w);
            }
}

/* A wide kernel, which meets no border, goes some columns at a time. */
void qn_conv_row_inside(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, qn_conv_span rows)
{
    enum { COLUMNS = QN_CONV_WIDTH / 2 };
    const qn_conv_plan *p = &e->p;
    const int64_t kernel = p->axes[2].kernel, x_step = p->axes[2].dilation * p->c, w_step = p->w_c * p->lanes;
    if (kernel <= QN_CONV_WIDTH) {
        columns_inside(e, x_at, w_at, kernel, rows);
        return;
    }
    const int64_t rest = kernel % COLUMNS, looped = kernel - rest;
    qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, looped), COLUMNS);
    qn_kvalue *k = qn_loop_counter(loop);
    columns_inside(e, qn_conv_along(e, x_at, k, x_step), qn_conv_along(e, w_at, k, w_step), COLUMNS, rows);
    qn_conv_close_loop(e, loop);
    columns_inside(e, qn_conv_offset(e, x_at, looped * x_step), qn_conv_offset(e, w_at, looped * w_step),
                   rest, rows);
}
