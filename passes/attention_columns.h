/* The template for attention_packed, and the part of it in which queries lie side by side in the lanes of vectors. */
#ifndef QN_PASSES_ATTENTION_COLUMNS_H
#define QN_PASSES_ATTENTION_COLUMNS_H

#include "passes/attention_tile.h"

typedef struct qn_attention_kernel {
    qn_attention t;
    qn_kbuffer *k, *v;          /* packed; or k in place */
    qn_kbuffer *queries, *sums; /* local: of one tile */
    qn_kbuffer *turned;         /* local: `queries`, one beside the other; NULL: scores lie in rows */
    qn_kbuffer *maxima, *totals,
        *factors;                   /* by row: largest score, sum of the weights, what `sums` are scaled by */
    int rows, k_vectors, v_vectors; /* k_vectors: 0 in place */
    int64_t depth, columns, v_width; /* of q; of the result; of v, whole vectors */
    int64_t block;                   /* keys */
    bool heads_last, one_block;
    bool in_turn; /* a block's scores become weights while those of the next one are computed */
    bool base_2;  /* scores are scaled to exponents of 2, not of e */
    qn_dim k_panels;
    qn_dim at_depth, column; /* variables */
    qn_kvalue *first_query;  /* of the tile */
    qn_kvalue *factor;       /* of the row being stored: 1 / its total */
} qn_attention_kernel;

/* What is taken from scores whose largest is `max`, before exp. */
qn_kvalue *qn_attention_shift(qn_attention_kernel *a, qn_kvalue *max);
/* Of a score without its row's largest: e or 2 to the power of it. */
qn_kvalue *qn_attention_power(qn_attention_kernel *a, qn_kvalue *exponent);

/* Has the lines fetched that the result of a->t.query is stored in, from a->column on. */
void qn_attention_fetch_results(qn_attention_kernel *a);

/* ---- attention_columns.c ---- */

enum { QN_ATTENTION_KEYS = 8 /* at a time: their number is a multiple of it */ };

/* How many queries a tile has, and keys a block at most. */
int qn_attention_columns(const qn_machine *machine);
int64_t qn_attention_columns_block(const qn_machine *machine);
/* Has the attention such a shape and mask, with k in place? */
bool qn_attention_fits_columns(const qn_node *node, const qn_machine *machine);
/* The tile's queries, one beside the other. */
void qn_attention_turn_queries(qn_attention_kernel *a);
/* The tile's sums, maxima and totals over all keys before `end`. `group` is the number of k's and v's head. */
void qn_attention_add_keys(qn_attention_kernel *a, qn_kvalue *end, qn_kvalue *group);

#endif
