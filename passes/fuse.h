/* What the parts of the fuse pass share: clusters, and the indices at which they read values. All of it lives in the
 * scratch arena of one run. */
#ifndef QN_PASSES_FUSE_H
#define QN_PASSES_FUSE_H

#include "passes/passes.h"
#include "passes/rows.h"

typedef struct qn_cluster qn_cluster;
typedef struct qn_demand qn_demand;

/* That a cluster reads a value, and where. */
struct qn_demand {
    qn_cluster *by;
    bool whole; /* from memory: by an opaque node */
    int repeated; /* cost of the consumers in the cluster that are computed more often than they have elements */
    int copied;                     /* cost of the consumers that are in several clusters */
    qn_vec(const qn_dim *) indices; /* distinct; each has the value's rank */
    qn_demand *next;                /* of the same value */
};

struct qn_cluster {
    qn_group group;
    bool closed; /* takes in nobody */
    bool sums;   /* has a contraction or windows: one of them, and no reductions */
    int number, order;
    qn_ispace space;
    qn_dim vars[QN_MAX_RANK], dims[QN_MAX_RANK]; /* the iteration space: group.n_dims of them */
    bool is_row[QN_MAX_RANK];
    qn_dim linear, n_elements;
    qn_rows rows; /* ROWS */
    int n_reductions;
    qn_vec(qn_node *) nodes;
    qn_vec(qn_value *) inputs, outputs;
    qn_vec(qn_value *) waits; /* for nodes that bind symbols which its own have: results of such */
    int visited;
};

typedef struct qn_fuser {
    qn_graph *graph;
    qn_arena *arena;   /* results */
    qn_arena *scratch; /* clusters and their spaces */
    const qn_pass_options *options;
    qn_demand **demands; /* by value id */
    bool *stored;        /* by value id: has to be in memory */
    qn_cluster **maker;  /* by value id: the cluster that stores it */
    qn_vec(qn_cluster *) clusters;
    qn_vec(qn_value *) binders; /* results of nodes of the graph that bind symbols */
    bool *symbols;              /* by number; NULL: it binds none */
    int visit;
} qn_fuser;

/* ---- passes/fuse_cluster.c: clusters and demands as they are ---- */

qn_demand *qn_demand_find(const qn_fuser *f, const qn_value *value, const qn_cluster *by);
qn_demand *qn_demand_add(qn_fuser *f, qn_value *value, qn_cluster *by); /* or the one that is there */
/* At one more index, of the value's rank. */
qn_demand *qn_demand_at(qn_fuser *f, qn_value *value, qn_cluster *by, const qn_dim *index);
/* From memory. by NULL: no reader yet. */
void qn_demand_whole(qn_fuser *f, qn_value *value, qn_cluster *by);

/* Takes the node in. What has symbols that other nodes of the graph bind reads these nodes' results, as it were. */
void qn_cluster_take(qn_fuser *f, qn_cluster *c, qn_node *node);
qn_cluster *qn_cluster_new(qn_fuser *f, qn_group_kind kind, qn_node *root);
/* The iteration space: the elements of a type, in row-major order. */
void qn_cluster_set_space(qn_cluster *c, const qn_type *type);
/* The row-major number of the element of a type at `index`. */
qn_dim qn_cluster_linear(qn_cluster *c, const qn_type *type, const qn_dim *index);
/* Does the cluster read the value at exactly one index, which is the element that it computes itself? Then it can store
 * the value as it goes. In a ROWS cluster also one element a row. */
bool qn_cluster_reads_own(qn_cluster *c, const qn_demand *d, const qn_type *type);
void qn_cluster_add_output(qn_fuser *f, qn_cluster *c, qn_value *value);

/* ---- passes/fuse_join.c: how a node joins the cluster that reads it ---- */

bool qn_fuse_is_loop(const qn_node *node); /* computed element by element */
bool qn_fuse_is_sum(const qn_node *node);  /* a contraction or windows */
/* Is it cheaper to compute `node` in cluster d->by than to read its result from memory? */
bool qn_cluster_wants(const qn_demand *d, const qn_node *node);
/* Takes in a loop node, or a trivial one where the cluster is closed. */
void qn_cluster_join(qn_fuser *f, qn_cluster *c, qn_node *node);
/* Takes in a reduction, whose rows become those of the cluster; own: the cluster is there for it. False: does not fit. */
bool qn_cluster_join_reduction(qn_fuser *f, const qn_demand *d, qn_node *node, bool own);
/* Takes in a sum, whose result what is there already reads element by element: the cluster becomes the sum's. False: does
 * not fit. */
bool qn_cluster_join_sum(qn_fuser *f, const qn_demand *d, qn_node *node);
/* A value of the row that has to be in memory: can the cluster become one over rows to store it? Then it is. */
bool qn_cluster_becomes_own_row(qn_cluster *c, const qn_demand *d, const qn_value *value);

#endif
