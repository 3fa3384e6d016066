/* The geometry of a ROWS group: which reductions run over the same rows. Shared by fuse_join.c, which decides what fits, and
 * lower_rows*.c, which emit it. */
#ifndef QN_PASSES_ROWS_H
#define QN_PASSES_ROWS_H

#include "passes/index.h"

/* Passes over a row's columns, at most: one more than reductions that depend on each other. */
enum { QN_ROW_PASSES = 32 };

typedef struct qn_rows {
    qn_dim row,
        n_rows; /* row-major number of the row, as an expression of the row variables; how many there are */
    qn_dim col, n_cols; /* likewise within a row */
    int n_col_vars;
    qn_dim col_vars[QN_MAX_RANK], col_extents[QN_MAX_RANK];
} qn_rows;

/* Rows are the axes of an index space for which is_row is set, columns the others. */
void qn_rows_set(qn_ispace *space, qn_rows *rows, int n_dims, const qn_dim *dims, const qn_dim *vars,
                 const bool *is_row);
/* Does reduction `node`, read at `index`, give a value of exactly this row, from as many elements as a row has? Then
 * out_index is where it reads its operand. */
bool qn_rows_operand(qn_ispace *space, const qn_rows *rows, const qn_node *node, const qn_dim *index,
                     qn_dim *out_index);

#endif
