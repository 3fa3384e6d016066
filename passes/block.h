/* A block of a product's sums in local memory, and what follows the product element by element: for templates. */
#ifndef QN_PASSES_BLOCK_H
#define QN_PASSES_BLOCK_H

#include "passes/lower.h"

/* A product [batch…, m…, n], seen as rows of all batches x columns. `open` fills in the first part; who writes the kernel
 * the second, before each `finish`. */
typedef struct qn_block {
    qn_writer *w;
    const qn_group *group; /* its root is the product */
    int rank;
    qn_dim dims[QN_MAX_RANK]; /* in the kernel's space */
    qn_dim m, n, batch;       /* rows and columns of a batch; batches */
    qn_dim row, col;          /* variables */
    qn_kvalue *n_value;
    int64_t width;    /* columns of a block */
    bool whole;       /* n is a multiple of width */
    qn_kbuffer *sums; /* local, [rows][width] */

    qn_kvalue *first_row, *first_col,
        *n_rows;          /* where the block lies; width columns, or as many as there are left */
    qn_kvalue *first_sum; /* of the block, in `sums`; NULL: 0 */
} qn_block;

/* The writer is new. Binds the group's inputs but the product's operands, whose arguments come first; sums for `rows` rows. */
void qn_block_open(qn_block *block, qn_writer *w, const qn_group *group, int64_t width, int64_t rows,
                   qn_kbuffer **out_x, qn_kbuffer **out_y);
/* Computes the group's outputs from the sums, row by row, and stores them. */
void qn_block_finish(qn_block *block);
/* The same of rows [low, high) of all batches, which are some of the block's. */
void qn_block_finish_rows(qn_block *block, qn_kvalue *low, qn_kvalue *high);

#endif
