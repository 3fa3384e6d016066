/* What the kernels for attention and for its gradient share: the shape, tiles of scores in a local buffer, products of such
 * tiles with panels. */
#ifndef QN_PASSES_ATTENTION_TILE_H
#define QN_PASSES_ATTENTION_TILE_H

#include "passes/lower.h"

enum {
    QN_ATTENTION_ROWS = 12,  /* of a tile, at most */
    QN_ATTENTION_VECTORS = 4 /* that a product is wide, at most */
};

typedef struct qn_attention {
    qn_writer w;
    const qn_group *group;
    qn_value *q, *mask; /* mask: NULL when there is none */
    qn_kbuffer *scores; /* local */
    int64_t stride;     /* elements between rows of scores */
    int lanes;
    double scale;
    bool causal;
    qn_dim batches, heads, groups, n_queries, n_keys;
    qn_dim batch, head, query, key; /* variables */
    qn_kvalue *n_queries_value, *n_keys_value;
} qn_attention;

/* Of a node whose operands begin with q, k and v; its mask is operand `mask`, where there is one. Needs t->w. */
void qn_attention_read(qn_attention *t, const qn_node *node, int mask);

/* Of a tile on that machine, at most. */
int qn_attention_rows(const qn_machine *machine);
/* for each number; for each lane of vectors */
qn_kinst *qn_attention_for(qn_attention *t, qn_kvalue *low, qn_kvalue *high);
qn_kinst *qn_attention_lanes(qn_attention *t, qn_kvalue *low, qn_kvalue *high);
void qn_attention_end(qn_attention *t, qn_kinst *loop);
qn_kvalue *qn_attention_number(qn_attention *t, double value);
qn_kvalue *qn_attention_whole(qn_attention *t, qn_kvalue *x); /* rounded up to whole vectors */
/* buffer[from + low … from + high) = value */
void qn_attention_fill(qn_attention *t, qn_kbuffer *buffer, qn_kvalue *from, qn_kvalue *low, qn_kvalue *high,
                       double value);
/* Under causal: how many keys the queries before `past` see, or less than 0. */
qn_kvalue *qn_attention_seen(qn_attention *t, qn_kvalue *past);
/* How many of the first `end` keys the mask leaves to any of `rows` queries from `first_query` on: those behind the last one
 * that it doesn't hide. */
qn_kvalue *qn_attention_shown(qn_attention *t, int rows, qn_kvalue *first_query, qn_kvalue *end);
/* Is it -inf: does the row with that largest score see nothing? */
qn_kvalue *qn_attention_hides(qn_attention *t, qn_kvalue *max);
/* Scores of row `from` of the local buffer with the mask of query t->query, for `n` keys from key `first` on. */
void qn_attention_mask(qn_attention *t, qn_kvalue *from, qn_kvalue *first, qn_kvalue *n);
/* For k in [0, high): acc[r][v] += x[r * x_stride + k] * y[panel + k * y_stride][v], in registers. `ahead`, or NULL, is
 * where the memory begins that the first cache is to have later. */
void qn_attention_product(qn_attention *t, int rows, int vectors, qn_kbuffer *x, int64_t x_stride,
                          qn_kbuffer *y, int64_t y_stride, qn_kvalue *panel, qn_kvalue *high,
                          qn_kvalue *ahead, qn_kvalue **acc);
/* The same of rows anywhere: element k of row r is buffer[from + r * stride + k * step]. */
typedef struct qn_attention_side {
    qn_kbuffer *buffer;
    qn_kvalue *from;
    int64_t stride, step;
} qn_attention_side;
/* Other work that is done after each `step` of k, with values of its own that go along. */
typedef struct qn_attention_beside {
    int64_t step;
    int n;
    qn_kvalue **values;
    void (*write)(void *user, qn_kvalue *k, qn_kvalue **values);
    void *user;
} qn_attention_beside;
/* `high` is a multiple of beside->step. */
void qn_attention_product_of(qn_attention *t, int rows, int vectors, qn_attention_side x, qn_kbuffer *y,
                             int64_t y_stride, qn_kvalue *panel, qn_kvalue *high, qn_kvalue *ahead,
                             const qn_attention_beside *beside, qn_kvalue **acc);

#endif
