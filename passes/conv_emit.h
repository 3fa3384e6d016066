/* What the files of the kernel that convolves in channel blocks share.
 *
 *   conv.c        the template: tasks, their tiles, what is done with a tile's sums
 *   conv_sums.c   the sums of one tile: loops over channels and kernels
 *   conv_steps.c  the products at their heart
 *   conv_turned.c what is done with them where the result leaves the blocks
 */
#ifndef QN_PASSES_CONV_EMIT_H
#define QN_PASSES_CONV_EMIT_H

#include "passes/conv.h"
#include "passes/lower.h"

typedef struct qn_conv_emitter {
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
    /* for the group's elements: the place in the tile; turned, its positions are one row */
    qn_dim at_vector, at_row, at_column, at_lane, at_position;
} qn_conv_emitter;

/* Positions of the tile. */
static inline int64_t qn_conv_positions(const qn_conv_emitter *e)
{
    return e->rows.size * e->columns.size;
}

static inline qn_kvalue *qn_conv_offset(qn_conv_emitter *e, qn_kvalue *at, int64_t by)
{
    return qn_kb_iadd(&e->w.b, at, qn_kb_index(&e->w.b, by));
}

/* at + i * step */
static inline qn_kvalue *qn_conv_along(qn_conv_emitter *e, qn_kvalue *at, qn_kvalue *i, int64_t step)
{
    return qn_kb_iadd(&e->w.b, at, qn_kb_imul(&e->w.b, i, qn_kb_index(&e->w.b, step)));
}

/* A loop that carries the tile's sums. */
static inline qn_kinst *qn_conv_open_loop(qn_conv_emitter *e, qn_kvalue *low, qn_kvalue *high, int64_t step)
{
    const int n = (int)(qn_conv_positions(e) * e->vectors);
    return qn_kb_carry(&e->w.b, low, high, qn_kb_index(&e->w.b, step), QN_TAG_SERIAL, n, e->sums, NULL);
}

static inline void qn_conv_close_loop(qn_conv_emitter *e, qn_kinst *loop)
{
    qn_kb_end_carry(&e->w.b, loop, e->sums);
}

/* ---- conv_sums.c ---- */

/* Makes the tile's sums. */
void qn_conv_sum_tile(qn_conv_emitter *e);

/* ---- conv_steps.c ---- */

/* `length` steps of K, whose numbers of x and whose weights lie in a row from x_at and w_at on, at those positions of the tile. */
void qn_conv_steps(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, int64_t length, qn_conv_span rows,
                   qn_conv_span columns);
/* A row of the kernel for one channel of groups inside of blocks. */
void qn_conv_row_inside(qn_conv_emitter *e, qn_kvalue *x_at, qn_kvalue *w_at, qn_conv_span rows);
/* Adds up the parts of a sum; 0 in the lanes behind. */
qn_kvalue *qn_conv_added_up(qn_conv_emitter *e, qn_kvalue *sum);

/* ---- conv_turned.c ---- */

/* Elements of local memory for each channel of a tile of so many positions. */
int64_t qn_conv_turned_length(const qn_conv_emitter *e, int64_t positions);
/* The sum that belongs to the element at work, which qn_conv_store_turned has put there. */
qn_kvalue *qn_conv_fetch_turned(qn_conv_emitter *e);
/* The outputs of a group whose order is not that of blocks, for the tile. */
void qn_conv_store_turned(qn_conv_emitter *e);

#endif
