/* Convolution in channel blocks: the sums of one tile.
 *
 * In strict math the channels of a block come before kernel rows and columns, which is the order that defines a sum, and
 * multiply and add are apart. What padding would add is +0 or -0, which changes no sum, since none is -0: it is skipped. */
#include "passes/conv_emit.h"

#include <string.h>

#include "passes/words.h"

/* ---- a row of the kernel ---- */

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
static void fetch_next_block(qn_conv_emitter *e, qn_kvalue *x_at, qn_conv_span rows)
{
    enum { LINE = 16 }; /* words */
    const qn_conv_axis *height = &e->p.axes[1], *width = &e->p.axes[2];
    const int64_t words = e->columns.size * width->stride * e->p.c;
    for (int64_t r = rows.first; r < rows.last; r++)
        for (int64_t i = 0; i < words + LINE; i += LINE) {
            const int64_t at = e->plane_elements + r * height->stride * e->row_elements + i;
            qn_word_prefetch(&e->w.b, e->x, qn_conv_offset(e, x_at, at), 0);
        }
}

/* One row of the kernel over one block of x, of which `channels` take part. */
static void kernel_row(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels,
                       qn_conv_span rows)
{
    const qn_conv_plan *p = &e->p;
    const qn_conv_axis *width = &p->axes[2];
    if (p->inside) {
        qn_conv_row_inside(e, x_at, w_at, rows);
        return;
    }
    if (p->word > 1)
        fetch_next_block(e, x_at, rows);
    qn_conv_span span;
    for (int64_t k = 0, n; k < width->kernel; k += n) {
        n = offsets_alike(width, &e->columns, k, &span);
        if (span.first == span.last)
            continue;
        qn_kvalue *x_k = qn_conv_offset(e, x_at, k * width->dilation * p->c),
                  *w_k = qn_conv_offset(e, w_at, k * p->w_c * p->lanes);
        if (n == 1 ||
            (width->dilation == 1 && channels == p->c)) { /* they follow each other in x as in the weights */
            qn_conv_steps(e, x_k, w_k, (n - 1) * p->c + channels, rows, span);
            continue;
        }
        qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, n), 1);
        qn_conv_steps(e, qn_conv_along(e, x_k, qn_loop_counter(loop), width->dilation * p->c),
                      qn_conv_along(e, w_k, qn_loop_counter(loop), p->w_c * p->lanes), channels, rows, span);
        qn_conv_close_loop(e, loop);
    }
}

/* ---- the kernel over a block ---- */

/* Kernel offsets along an axis that read inside of x at output position `at`: [out_low, out_high). */
static void kernel_range(qn_conv_emitter *e, const qn_conv_axis *a, qn_dim at, qn_kvalue **out_low,
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
static void kernel_plane(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const qn_conv_axis *height = &e->p.axes[1];
    const int64_t x_step = height->dilation * e->row_elements;
    qn_conv_span rows = { 0, 1 };
    if (e->p.n_rows == 0) {
        qn_kvalue *low, *high;
        kernel_range(e, height, e->row, &low, &high);
        qn_kinst *loop = qn_conv_open_loop(e, low, high, 1);
        kernel_row(e, qn_conv_along(e, x_at, qn_loop_counter(loop), x_step),
                   qn_conv_along(e, w_at, qn_loop_counter(loop), e->w_row), channels, rows);
        qn_conv_close_loop(e, loop);
        return;
    }
    for (int64_t k = 0, n; k < height->kernel; k += n) {
        n = offsets_alike(height, &e->rows, k, &rows);
        if (rows.first == rows.last)
            continue;
        qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(&e->w.b, k), qn_kb_index(&e->w.b, k + n), 1);
        kernel_row(e, qn_conv_along(e, x_at, qn_loop_counter(loop), x_step),
                   qn_conv_along(e, w_at, qn_loop_counter(loop), e->w_row), channels, rows);
        qn_conv_close_loop(e, loop);
    }
}

/* A kernel over one block of x. */
static void kernel_block(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    const qn_conv_axis *depth = &e->p.axes[0];
    qn_kvalue *low, *high;
    kernel_range(e, depth, e->depth, &low, &high);
    qn_kinst *loop = qn_conv_open_loop(e, low, high, 1);
    qn_kvalue *k = qn_loop_counter(loop);
    const int64_t slice = e->p.axes[1].in * e->row_elements;
    kernel_plane(e, qn_conv_along(e, x_at, k, depth->dilation * slice),
                 qn_conv_along(e, w_at, k, e->p.axes[1].kernel * e->w_row), channels);
    qn_conv_close_loop(e, loop);
}

/* `channels` channels of a block of x, together or one after the other. */
static void block_of_channels(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t channels)
{
    if (!e->p.by_channel) {
        kernel_block(e, x_at, w_at, channels);
        return;
    }
    qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(&e->w.b, 0), qn_kb_index(&e->w.b, channels), 1);
    qn_kvalue *k = qn_loop_counter(loop);
    kernel_block(e, qn_kb_iadd(&e->w.b, x_at, k), qn_conv_along(e, w_at, k, e->w_block / e->p.w_channels), 1);
    qn_conv_close_loop(e, loop);
}

/* ---- groups across blocks ---- */

/* Where a channel of x lies behind the first one. */
static qn_kvalue *channel_at(qn_conv_emitter *e, qn_kvalue *channel)
{
    qn_kbuilder *b = &e->w.b;
    qn_kvalue *c = qn_kb_index(b, e->p.c);
    return qn_kb_iadd(b, qn_kb_imul(b, qn_kb_idiv(b, channel, c), qn_kb_index(b, e->plane_elements)),
                      qn_kb_imod(b, channel, c));
}

/* All channels of a group, from `low` on, and of another one, if there is, from `high` on. Those that surely lie in one block,
 * for both, are written out. */
static void all_channels(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, qn_kvalue *low,
                         qn_kvalue *high)
{
    const qn_conv_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    const int64_t by = qn_conv_common_divisor(p->channels, p->c);
    qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(b, 0), qn_kb_index(b, p->channels), by);
    qn_kvalue *i = qn_loop_counter(loop), *at = channel_at(e, qn_kb_iadd(b, low, i));
    e->next = high ? qn_kb_isub(b, channel_at(e, qn_kb_iadd(b, high, i)), at) : NULL;
    for (int64_t k = 0; k < by; k++)
        kernel_block(e, qn_conv_offset(e, qn_kb_iadd(b, x_at, at), k),
                     qn_conv_along(e, qn_conv_offset(e, w_at, k * p->lanes), i, p->lanes), 1);
    qn_conv_close_loop(e, loop);
}

/* Groups across blocks: of one group, which most output blocks are if groups are large, or of two. */
static void sum_across(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at)
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
    const int n = (int)(qn_conv_positions(e) * e->vectors);
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

/* ---- all of K ---- */

static qn_dim scaled(qn_dims *dims, qn_dim at, const qn_conv_axis *a)
{
    return qn_dim_sub(dims, qn_dim_mul(dims, at, qn_dim_const(dims, a->stride)), qn_dim_const(dims, a->low));
}

/* Where the tile's first position reads with kernel offset 0 (which may be outside of x), in the first block of its group. */
static qn_dim first_element(qn_conv_emitter *e)
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
static int64_t blocks_at_a_time(const qn_conv_emitter *e)
{
    const qn_conv_axis *a = e->p.axes;
    const bool one = a[0].kernel * a[1].kernel * a[2].kernel == 1;
    return one && !e->p.by_channel && e->w.lowering->options->machine->by_lane && e->p.c < e->p.lanes
               ? e->p.lanes / e->p.c
               : 1;
}

void qn_conv_sum_tile(qn_conv_emitter *e)
{
    const qn_conv_plan *p = &e->p;
    qn_kbuilder *b = &e->w.b;
    for (int64_t i = 0; i < qn_conv_positions(e) * e->vectors; i++)
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
        qn_kinst *loop = qn_conv_open_loop(e, qn_kb_index(b, done), qn_kb_index(b, end), by);
        for (int64_t i = 0; i < by; i++) {
            qn_kvalue *k = qn_conv_offset(e, qn_loop_counter(loop), i);
            block_of_channels(e, qn_conv_along(e, x_at, k, e->plane_elements),
                              qn_conv_along(e, w_at, k, w_step), p->c);
        }
        qn_conv_close_loop(e, loop);
        done = end;
    }
    if (rest > 0)
        block_of_channels(e, qn_conv_offset(e, x_at, whole * e->plane_elements),
                          qn_conv_offset(e, w_at, whole * w_step), rest);
}
