/* What templates for products do with panels of four bits (see matmul_packed with scales): multiply by them as they are unpacked in
 * registers, or unpack a part of them into local memory. Panels of bytes are the same with fewer numbers in a word, times floats. */
#ifndef QN_PASSES_NIBBLES_H
#define QN_PASSES_NIBBLES_H

#include "passes/lower.h"

enum {
    QN_NIBBLES = 8,           /* numbers of a word, which holds half as many bytes */
    QN_NIBBLES_MOST_ROWS = 4, /* of x at a time */
    QN_NIBBLES_STREAMS =
        2, /* panels that are read side by side: they hide more of the memory's latency than one */
    QN_NIBBLES_MOST_GROUP = 64, /* of k that share a scale */
};

typedef struct qn_nibbles {
    qn_kbuilder *b;
    qn_kbuffer *x, *y, *scale, *zeros; /* zeros: NULL where they are the usual ones */
    qn_kbuffer *factors;               /* of x's groups; or NULL */
    int lanes, vectors;                /* of a panel's columns */
    int64_t width;
    int64_t group; /* of k that share a scale */
    int each;      /* numbers of a word */
    qn_kvalue *k_value;
    bool fused;
    bool same_signs; /* the machine multiplies signed bytes by signed ones */
} qn_nibbles;

/* Of k that share a scale, where the right side is of four bits or bytes and there is a kernel for so many; else 0. */
int64_t qn_nibbles_group(const qn_node *product);

/* Are there more rows than few? Then each part of the panels is read once for many of them (gemm.c): where they are floats, it is
 * unpacked first; bytes are multiplied by numbers in registers. */
bool qn_nibbles_have_many_rows(const qn_node *product);

/* Of the product's operands, which become arguments of the kernel if they are not yet. */
qn_nibbles qn_nibbles_open(qn_writer *w, const qn_node *product, int lanes, int vectors, qn_kvalue *k_value);

/* `rows` rows of x, the first of which begins at x_at, times `streams` panels that begin at elements `panels` of k x width:
 * sums[(stream * rows + row) * vectors + vector]. */
void qn_nibbles_sums(const qn_nibbles *n, int rows, int streams, qn_kvalue *const *panels, qn_kvalue *x_at,
                     qn_kvalue **sums);
/* Is it an operand that qn_nibbles_open takes care of? */
bool qn_nibbles_reads(const qn_node *product, const qn_value *value);

/* Of `rows` rows of bytes, the first of which begins at element x_at, what the numbers that stand for 0 need: the sum over each
 * group, or what it makes where these numbers are the usual ones; to row r's offsets [r][K / group], of qn_nibbles_offset's
 * type. */
qn_dtype qn_nibbles_offset(const qn_nibbles *n);
void qn_nibbles_offsets(const qn_nibbles *n, int rows, qn_kvalue *x_at, qn_kbuffer *offsets,
                        int64_t n_groups);
/* The same rows, with these offsets, times the panel that begins at element `panel`: sums[row * vectors + vector]. */
void qn_nibbles_byte_sums(const qn_nibbles *n, int rows, qn_kvalue *panel, qn_kvalue *x_at,
                          qn_kbuffer *offsets, int64_t n_groups, qn_kvalue **sums);
/* Lines [low, high) of k of a panel, multiples of a group, times their scales: f32 [k][width] from element `at` of `to` on. */
void qn_nibbles_unpack(const qn_nibbles *n, qn_kvalue *panel, qn_kvalue *low, qn_kvalue *high, qn_kbuffer *to,
                       qn_kvalue *at);

#endif
