/* What the files of ops with kernels of their own share. */
#ifndef QN_PASSES_LOWER_OPAQUE_H
#define QN_PASSES_LOWER_OPAQUE_H

#include "passes/lower.h"

qn_status qn_lower_dynamic_update_slice(qn_lowering *l, const qn_group *group);
qn_status qn_lower_gather_packed(qn_lowering *l, const qn_group *group);
qn_status qn_lower_scatter_nd(qn_lowering *l, const qn_group *group);
qn_status qn_lower_scatter_elements(qn_lowering *l, const qn_group *group);
qn_status qn_lower_select_and_scatter(qn_lowering *l, const qn_group *group);
qn_status qn_lower_cumulative(qn_lowering *l, const qn_group *group);
qn_status qn_lower_sort(qn_lowering *l, const qn_group *group);
qn_status qn_lower_keys(qn_lowering *l, const qn_group *group); /* where qn_lower_packs_keys */
qn_status qn_lower_extent(qn_lowering *l, const qn_group *group);
qn_status qn_lower_non_zero(qn_lowering *l, const qn_group *group);
qn_status qn_lower_suppress(qn_lowering *l, const qn_group *group); /* where qn_lower_packs_keys */
qn_status qn_lower_collective(qn_lowering *l, const qn_group *group);
qn_status qn_lower_text(qn_lowering *l, const qn_group *group);

/* Makes the contents of a buffer those of an operand of the group, which may be in memory (a copy) or, being one number
 * everywhere or an iota, in none (a kernel). */
qn_status qn_lower_into(qn_lowering *l, const qn_group *group, qn_value *value, int buffer);

/* The buffer that the operand is in; one that is in no memory is written into one. */
qn_status qn_lower_operand(qn_lowering *l, const qn_group *group, qn_value *operand, int *out);

/* A kernel for an opaque node: its inputs are bound. */
typedef struct qn_opaque {
    qn_lowering *l;
    const qn_group *group;
    qn_node *node;
    qn_arena *arena; /* scratch */
    qn_writer w;
} qn_opaque;

void qn_opaque_begin(qn_opaque *o, qn_lowering *l, const qn_group *group);
qn_status qn_opaque_end(qn_opaque *o, qn_dim tasks); /* always ends what begin began */

/* The axes of a type but for those of extent 1 and those of the bit set; out_axes[i] is the axis that nest axis i is. */
void qn_opaque_nest(const qn_opaque *o, const qn_type *type, unsigned without, qn_nest *out_nest,
                    int *out_axes);
/* Plans loops over the nest and opens all of them, the innermost as lanes. */
void qn_opaque_open(qn_opaque *o, const qn_nest *nest, int64_t grain, qn_loops *out_loops,
                    qn_writer_loop *out_open);
void qn_opaque_close(qn_opaque *o, const qn_loops *loops, qn_writer_loop *open);
/* Row-major number of an element. */
qn_dim qn_opaque_linear(qn_opaque *o, const qn_type *type, const qn_dim *index);
/* x > y, NaN being above all numbers: the order of sort. */
qn_kvalue *qn_opaque_above(qn_opaque *o, qn_kvalue *x, qn_kvalue *y);

/* Merges the runs of `width` numbers that half halves[0] of a buffer has into halves[1], those into halves[0], and so on, until one
 * run has all `count`, in at most n_passes. Gives the half with that run, then the other. */
void qn_opaque_merge(qn_opaque *o, qn_kvalue *width, qn_kvalue *count, int n_passes, qn_kvalue **halves,
                     void (*pass)(void *user, qn_kvalue *from, qn_kvalue *to, qn_kvalue *width), void *user);

#endif
