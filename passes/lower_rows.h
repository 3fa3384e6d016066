/* What the files that emit ROWS groups share: lower_rows.c (the kernel, pass by pass), lower_rows_values.c (what several passes
 * need), lower_rows_sums.c (how a pass reduces), lower_rows_lanes.c (which way vectors go). */
#ifndef QN_PASSES_LOWER_ROWS_H
#define QN_PASSES_LOWER_ROWS_H

#include "passes/lower.h"
#include "passes/rows.h"

enum {
    QN_ROW_STAGE_BYTES = 64 << 10, /* of one staged row */
    QN_ROW_FAR_BYTES =
        16 << 10, /* how far streamed loads run ahead at most: longer rows are asked for piece by piece */
};

/* What the rehearsal finds out about a value, by value id. */
typedef struct qn_row_trace {
    unsigned passes; /* bit p: computed for each column in pass p */
    bool scattered;  /* at several indices or under a condition: can't be staged */
    const qn_dim *index;
    qn_kbuffer *staged;
} qn_row_trace;

typedef struct qn_row_kernel {
    qn_lowering *lowering;
    const qn_group *group;
    qn_writer *w;
    qn_nest row_nest, col_nest;
    bool rows_are_lanes;
    bool in_blocks; /* neighbouring rows are neighbours in memory only within a vector: channels in blocks */
    int64_t rows_a_task;
    int *levels; /* by value id: how many passes have to be over before it can be computed */
    int n_passes;
    qn_row_trace *traces;
    qn_loops row_loops;
    qn_dim col_vars[QN_MAX_RANK];
    qn_rows rows;
    qn_dim dims[QN_MAX_RANK], index[QN_MAX_RANK];         /* of all axes of the group */
    qn_dim row_dims[QN_MAX_RANK], row_index[QN_MAX_RANK]; /* of the rows */
    int n_row_dims;
    qn_kvalue **results; /* by value id: of reductions, for this row */
    int64_t terms_bytes; /* of buffers for terms of ordered sums */
    bool rehearsing;
} qn_row_kernel;

/* One of the reductions of a pass. */
typedef struct qn_row_reduction {
    qn_node *node;
    qn_kind kind;
    qn_dtype dtype; /* of the accumulator */
    qn_dim index[QN_MAX_RANK];
} qn_row_reduction;

/* How many passes have to be over before it can be computed. */
int qn_row_level(const qn_row_kernel *k, const qn_value *value);
/* Has it an element for each column? Rows of one column have values of the row only. */
bool qn_row_is_full(qn_row_kernel *k, const qn_value *value);

/* The writer has computed a value: notes it in a rehearsal, stores what is staged else. */
void qn_row_computed(qn_writer *w, void *user, const qn_value *value, const qn_dim *index, qn_kvalue *result);
void qn_row_stage(qn_row_kernel *k); /* decides what is */
bool qn_row_stages(const qn_row_kernel *k);

/* May a maximum leave NaN out? */
bool qn_row_leaves_nan_out(const qn_row_kernel *k, const qn_node *max);
qn_ktag qn_row_column_tag(const qn_row_kernel *k, int n, const qn_row_reduction *reductions);
bool qn_row_sums_by_parts(const qn_row_kernel *k, int n, const qn_row_reduction *reductions);
/* Puts ordered reductions last and gives the number of the others, where the terms of the former are better computed by vectors,
 * into buffers, and added up behind that; otherwise n. */
int qn_row_split_ordered(qn_row_kernel *k, int n, qn_row_reduction *reductions, qn_kbuffer **out_terms);
/* The sums of terms that are there, in the order of the columns. */
void qn_row_add_up(qn_row_kernel *k, int n, const qn_row_reduction *reductions, qn_kbuffer *const *terms,
                   qn_kvalue **values);

/* From a rehearsal: are lanes rows? Sets in_blocks. */
bool qn_row_choose_lanes(qn_row_kernel *k, qn_writer *rehearsal, const qn_nest *rows, const qn_nest *cols,
                         const qn_dim *row_vars, const qn_dim *col_vars);
int qn_row_vector_lanes(const qn_row_kernel *k); /* of the data that most tensors have; 0: no vectors */
qn_ktag qn_row_tag(const qn_row_kernel *k);      /* of the innermost loop over rows */
int qn_row_lanes(const qn_row_kernel *k);        /* of that loop; 0: those of a vector */

#endif
