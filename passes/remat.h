/* What the remat pass and its planner share: a training step as items of memory, and which of them are computed twice. */
#ifndef QN_PASSES_REMAT_H
#define QN_PASSES_REMAT_H

#include "passes/passes.h"

/* What one node puts into memory. */
typedef struct qn_remat_item {
    double bytes, work; /* work: floating-point operations from `needs` to it */
    int n_needs;
    int *needs;   /* items that it is computed from */
    bool forward; /* may be computed again for the backward part: is worth it, and can be */
    bool dropped; /* is */
} qn_remat_item;

/* A group of passes/fuse.c: items that it reads, and that it makes. */
typedef struct qn_remat_group {
    int n_reads, n_makes;
    int *reads, *makes;
} qn_remat_group;

typedef struct qn_remat_model {
    qn_arena *arena;
    int n_items, n_groups;
    qn_remat_item *items;
    qn_remat_group *groups; /* in the order in which they run */
    int last_forward; /* the group that makes the loss: what comes behind reads what is dropped from a second one */
} qn_remat_model;

/* The run as it is with what is dropped: the largest sum of bytes live at one time, the sum over all times of what is above
 * the limit of a search, and the work that is done twice. */
typedef struct qn_remat_run {
    double peak, excess, work;
} qn_remat_run;
qn_remat_run qn_remat_run_of(qn_remat_model *model);

/* Drops what saves most bytes x time above the limit for its work, until the peak is within the limit. False: it can't be. */
bool qn_remat_search(qn_remat_model *model, double limit);
/* As long as the peak gets lower. */
void qn_remat_search_least(qn_remat_model *model);
/* Keeps what lies across about sqrt(n) cuts through the n groups of the forward part, and drops all else. */
void qn_remat_cut(qn_remat_model *model);

#endif
