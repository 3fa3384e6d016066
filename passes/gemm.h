/* A product as its template knows it: gemm.c cuts it into tasks and tiles and finishes these; gemm_sums.c copies and packs operands
 * and emits the sums of a tile. */
#ifndef QN_PASSES_GEMM_H
#define QN_PASSES_GEMM_H

#include "passes/lower.h"
#include "passes/nibbles.h"

enum {
    QN_GEMM_MOST_ROWS = 24, /* of a tile, at most */
    QN_GEMM_CHAINS = 8,     /* sums that hide the latency of an FMA */
    QN_GEMM_SUMS = 2 * (QN_GEMM_MOST_ROWS + QN_GEMM_CHAINS),
    QN_GEMM_LINE = 16, /* elements of a cache line */
    QN_GEMM_SKEW = 16, /* between copied rows, so that they don't share sets of the first cache */
};

typedef struct qn_gemm {
    qn_writer w;
    const qn_group *group;
    qn_kbuffer *x, *y, *tile, *copy; /* copy: NULL when x is read where it is */
    qn_kbuffer *partial;             /* sums of the task's tiles between passes over k; NULL: one pass */
    bool pairs;                      /* of rows by pairs of columns: QN_K_MMLA */
    bool by_lane;                    /* x is loaded in vectors, for so many steps of k */
    bool copies;                     /* rows of x, where they fight for cache sets */
    bool packs;                      /* the panels: y is local, with what the pass multiplies by */
    bool unpacks;                    /* them, from four bits or bytes */
    qn_nibbles four;     /* those; or what rows of bytes are multiplied by; else its scale is NULL */
    qn_kbuffer *offsets; /* local: of such rows */
    int64_t n_groups;    /* of k that share a scale */
    bool reads_rows;     /* y lies row by row */
    qn_kbuffer *out;     /* stored directly: the group is the product alone; else NULL */
    int lanes, vectors, width, rows; /* rows: of the highest tile */
    int step;                        /* of k, that are written out */
    int rank;                        /* of the result */
    qn_dim dims[QN_MAX_RANK];        /* of the result, in the kernel's space */
    qn_dim m, n, k, batch;           /* rows and columns of one batch; k in words */
    qn_dim n_panels;
    qn_dtype sum;
    bool fused, in_order;    /* multiply-add; one sum for each element, which strict math wants */
    qn_dim row_var, col_var; /* of all batches; of one row */
    qn_kvalue *k_value, *n_value;
    int64_t depth, n_passes; /* of k in a pass; passes */
    int64_t task_tiles, task_panels;
    int spread; /* tiles that fetch the next panels between them; 0: none do */
    qn_kvalue *first_tile, *first_panel, *past_panel; /* of the task */
    qn_kvalue *fetch;                 /* what the tile fetches; NULL: a little ahead of what it reads */
    qn_kvalue *pass, *low, *high;     /* the running pass, its part of k */
    qn_kvalue *first_row, *first_col; /* of the tile being finished */
    bool whole_panels;
} qn_gemm;

/* The rows' part of the running pass to `copy`, one behind the other. x_tile: where in x the tile begins, an element. */
void qn_gemm_copy_rows(qn_gemm *g, int rows, qn_kvalue *x_tile);

/* Where panel number `panel` of the batch begins, in elements of k x width. */
qn_kvalue *qn_gemm_panel(qn_gemm *g, qn_kvalue *batch, qn_kvalue *panel);

/* The pass's part of the task's panels to local memory, row by row of what they are packed from. */
void qn_gemm_pack_panels(qn_gemm *g, qn_kvalue *batch);

/* acc[row * vectors + vector]: the sums of a tile over the running pass and, in `partial` from `slot` on, over those before it. acc
 * has room for QN_GEMM_SUMS. */
void qn_gemm_sums(qn_gemm *g, int rows, qn_kvalue *x_tile, qn_kvalue *panel, qn_kvalue *slot,
                  qn_kvalue **acc);

#endif
