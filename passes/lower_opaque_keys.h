/* Sorting numbers that hold a key and its position, for kernels that do more than that with them. See lower_opaque_keys.c. */
#ifndef QN_PASSES_LOWER_OPAQUE_KEYS_H
#define QN_PASSES_LOWER_OPAQUE_KEYS_H

#include "passes/lower_opaque.h"

enum { QN_KEYS_GROUP = 64 }; /* numbers that are sorted at once at first; halves have room for so many more */

typedef struct qn_keys {
    qn_opaque o;
    qn_kbuffer *numbers;
    qn_kvalue *base;  /* of the two halves in the buffer */
    qn_kvalue *half;  /* from one to the other */
    qn_kvalue *count; /* that are being sorted */
    qn_dim n, k;
    qn_dim at[QN_MAX_RANK]; /* of the line; [axis] is free */
    int axis, n_passes;     /* at most so many passes merge runs */
    bool descending;
    qn_kvalue *least,
        *shift; /* of keys of 64 bits, in their order: the line's least; from how far up a number has 32 of them */
    qn_kbuffer *positions; /* of such keys: u32 */
    qn_kvalue *list;       /* where the line's begin there */
} qn_keys;

/* A key's bits in its order, as a u32 or, of 64 bits, a u64. */
qn_kvalue *qn_keys_ordered(qn_keys *s, qn_kvalue *key);
/* Key i of the line (of operand 0), or 32 bits of it, above its position, as a u64. */
qn_kvalue *qn_keys_number(qn_keys *s, qn_dim i);
/* Where number i of the half that begins there is in `numbers`. */
qn_kvalue *qn_keys_place(qn_keys *s, qn_kvalue *half, qn_kvalue *i);
/* Sorts the first `count` numbers of the half from[0]; from[1] is the other one. Gives the halves by turns. */
void qn_keys_sort(qn_keys *s, qn_kvalue *count, qn_kvalue **from);
/* A power of two, from n and QN_KEYS_GROUP on. */
int64_t qn_keys_power(int64_t n);
/* How many passes merge the runs of so many numbers, a power of two. */
int qn_keys_passes(int64_t n);

#endif
