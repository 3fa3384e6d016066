/* Ensembles of decision trees, as the operators of ai.onnx.ml describe them in their several ways. */
#ifndef QN_FRONTEND_ONNX_FOREST_H
#define QN_FRONTEND_ONNX_FOREST_H

#include "frontend/onnx/import.h"

/* What a node asks of its feature. A missing value (NaN) goes the way the comparison goes, or to the first child where
 * `missing_true`. */
typedef enum qn_split {
    QN_SPLIT_LEQ,
    QN_SPLIT_LT,
    QN_SPLIT_GTE,
    QN_SPLIT_GT,
    QN_SPLIT_EQ,
    QN_SPLIT_NEQ,
    QN_SPLIT_MEMBER,
    QN_SPLIT_LEAF
} qn_split;

typedef struct qn_tree_node {
    qn_split split;
    bool missing_true;
    int64_t feature;
    double value;
    const double *members; /* of QN_SPLIT_MEMBER */
    int n_members;
    int child[2];      /* where it holds, where it doesn't */
    int vote, n_votes; /* of a leaf: which of the forest's */
} qn_tree_node;

typedef struct qn_vote {
    int target;
    double weight;
} qn_vote;

typedef struct qn_forest {
    qn_dtype dtype; /* f32 or f64: of comparisons and sums */
    int n_nodes, n_roots, n_votes, n_targets;
    qn_tree_node *nodes;
    int *roots;
    qn_vote *votes;
    qn_kind aggregate; /* QN_SUM, QN_KIND_MIN or QN_KIND_MAX, over the trees */
} qn_forest;

/* What the trees say of each row of x [N, features], taken together: [N, targets] in the forest's dtype. NULL after a report. */
qn_value *qn_forest_scores(qn_onnx_node *n, qn_value *x, qn_forest *forest);

#endif
