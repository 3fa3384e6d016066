/* What the files of the random graphs share. */
#ifndef QN_TESTS_RANDOM_INTERNAL_H
#define QN_TESTS_RANDOM_INTERNAL_H

#include "ir/build.h"
#include "tests/support/random_graph.h"

/* A value that later nodes may read. */
typedef struct qn_rg_item {
    qn_value *value;
    double bound; /* floats: about the largest magnitude */
    bool exact;   /* every correct backend has the same bits */
} qn_rg_item;

typedef struct qn_rg {
    qn_builder b;
    uint64_t state;
    int flags;
    bool in_region; /* no more inputs can be added */
    qn_vec(qn_rg_item) pool;
    int n_inputs, n_functions;
} qn_rg;

/* Makes a node or a few and adds their results to the pool; false when nothing in the pool fits. */
typedef bool (*qn_rg_step)(qn_rg *g);
typedef struct qn_rg_choice {
    qn_rg_step step;
    int weight;
    int flags;   /* all of these must be allowed */
    bool smooth; /* may be used for SMOOTH */
} qn_rg_choice;

/* ---- random_graph.c ---- */
uint64_t qn_rg_next(qn_rg *g);
int qn_rg_below(qn_rg *g, int n);
bool qn_rg_chance(qn_rg *g, int percent);
bool qn_rg_has(const qn_rg *g, int flag);
int64_t qn_rg_elements(const qn_type *type); /* at most, for any symbol values */
enum { QN_RG_MAX_ELEMENTS = 1024 };
/* Adds a value to the pool; scales it down first when it may be large. */
bool qn_rg_push(qn_rg *g, qn_value *value, double bound, bool exact);
/* A value whose dtype is in the set of classes, of at least that rank; NULL value when there is none. */
qn_rg_item qn_rg_pick(qn_rg *g, int classes, int min_rank);
qn_rg_item qn_rg_pick_exact(qn_rg *g, int classes, int min_rank);
/* Another value of the same type: from the pool, or a new one. */
qn_rg_item qn_rg_like(qn_rg *g, const qn_type *type);
/* A new value of that type: an input, or an expression of constants in a region. Not in the pool. */
qn_rg_item qn_rg_fresh(qn_rg *g, const qn_type *type);
qn_rg_item qn_rg_fresh_static(qn_rg *g, qn_dtype dtype, int rank, const int64_t *dims);
qn_dtype qn_rg_float_dtype(qn_rg *g);
qn_dim qn_rg_symbol(qn_rg *g); /* n or m, from 1 on */
void qn_rg_random_dims(qn_rg *g, int *out_rank, qn_dim *out_dims);
/* An i64 (or i32) constant of numbers in [low, high). */
qn_value *qn_rg_int_constant(qn_rg *g, int rank, const int64_t *dims, int64_t low, int64_t high);
/* A bool of these dims that depends on no float. */
qn_value *qn_rg_mask(qn_rg *g, int rank, const qn_dim *dims);
/* A new value of the type of x, computed from it by one or two smooth element-wise ops. */
qn_rg_item qn_rg_mutate(qn_rg *g, qn_rg_item x);

/* ---- the steps ---- */
extern const qn_rg_choice qn_rg_elementwise[]; /* random_elementwise.c; each list ends with a NULL step */
extern const qn_rg_choice qn_rg_movement[];    /* random_movement.c */
extern const qn_rg_choice qn_rg_compute[];     /* random_compute.c */
extern const qn_rg_choice qn_rg_control[];     /* random_control.c */

#endif
