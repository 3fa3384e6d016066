/* TreeEnsemble, TreeEnsembleRegressor and TreeEnsembleClassifier: what their attributes say, as a forest, and what is made of
 * its scores. */
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/forest.h"
#include "frontend/onnx/ml.h"

/* ---- attributes ---- */

/* A list of integers that must have `want` elements; NULL after a report. */
static const int64_t *integers(qn_onnx_node *n, const char *name, int want)
{
    int count;
    const int64_t *list = qn_onnx_attr_ints(n, name, &count);
    if (list && count == want)
        return list;
    if (qn_onnx_ok(n))
        qn_onnx_malformed(n, "attribute %s has %d elements where there must be %d", name, count, want);
    return NULL;
}

/* A tensor that must have `want` elements of a data type (or be of floats, with QUERN_INVALID_DTYPE); NULL after a report. */
static const qn_tensor *tensor_of(qn_onnx_node *n, const char *name, qn_dtype dtype, int64_t want)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__TENSOR);
    const qn_tensor *t = a && a->t ? qn_onnx_tensor(n->im, a->t, &n->b.loc) : NULL;
    if (!t) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute %s, a tensor, is missing", name);
        return NULL;
    }
    const bool fits =
        dtype == QUERN_INVALID_DTYPE ? qn_dtype_is_float(t->type.dtype) : t->type.dtype == dtype;
    if (fits && (want < 0 || qn_type_elements(&t->type) == want))
        return t;
    qn_onnx_malformed(n, "attribute %s is %s, which does not fit", name,
                      qn_type_print(&t->type, n->im->arena));
    return NULL;
}

static double float_at(const qn_tensor *t, int64_t i)
{
    const uint8_t *data = qn_tensor_data(t);
    return qn_scalar_load(t->type.dtype, data + (size_t)i * qn_dtype_bytes(t->type.dtype)).f;
}

/* ---- TreeEnsembleRegressor, TreeEnsembleClassifier: nodes have numbers of their own in each tree ---- */

typedef struct key {
    int64_t tree, node;
    int index;
} key;

static int by_key(const void *a, const void *b)
{
    const key *x = a, *y = b;
    if (x->tree != y->tree)
        return x->tree < y->tree ? -1 : 1;
    return (x->node > y->node) - (x->node < y->node);
}

static int find_node(const key *keys, int n, int64_t tree, int64_t node)
{
    const key wanted = { tree, node, 0 };
    const key *found = bsearch(&wanted, keys, (size_t)n, sizeof *keys, by_key);
    return found ? found->index : -1;
}

static bool read_modes(qn_onnx_node *n, qn_forest *f)
{
    static const char *const words[] = { "BRANCH_LEQ", "BRANCH_LT",  "BRANCH_GTE",    "BRANCH_GT",
                                         "BRANCH_EQ",  "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF" };
    const Onnx__Attribute *a = qn_onnx_attr(n, "nodes_modes", ONNX__ATTRIBUTE__KIND__STRINGS);
    if (!a || (int)a->n_strings != f->n_nodes) {
        qn_onnx_malformed(n, "attribute nodes_modes must have an element for each of %d nodes", f->n_nodes);
        return false;
    }
    for (int i = 0; i < f->n_nodes; i++) {
        int mode = 0;
        while (mode <= QN_SPLIT_LEAF && (strlen(words[mode]) != a->strings[i].len ||
                                         memcmp(words[mode], a->strings[i].data, a->strings[i].len) != 0))
            mode++;
        if (mode > QN_SPLIT_LEAF || mode == QN_SPLIT_MEMBER) {
            qn_onnx_malformed(n, "node %d has the mode \"%.*s\"", i, (int)(a->strings[i].len & 0xff),
                              (const char *)a->strings[i].data);
            return false;
        }
        f->nodes[i].split = (qn_split)mode;
    }
    return true;
}

/* Votes of nodes: attributes `prefix`_treeids, _nodeids, _ids and _weights. In the order of the nodes. */
static bool read_votes(qn_onnx_node *n, qn_forest *f, const key *keys, const char *prefix, bool *io_double)
{
    qn_arena *arena = n->im->arena;
    bool doubles;
    int count;
    const double *weights =
        qn_ml_numbers(n, qn_arena_printf(arena, "%s_weights", prefix),
                      qn_arena_printf(arena, "%s_weights_as_tensor", prefix), &count, &doubles);
    if (!weights) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute %s_weights is missing", prefix);
        return false;
    }
    const int64_t *trees = integers(n, qn_arena_printf(arena, "%s_treeids", prefix), count);
    const int64_t *nodes = trees ? integers(n, qn_arena_printf(arena, "%s_nodeids", prefix), count) : NULL;
    const int64_t *ids = nodes ? integers(n, qn_arena_printf(arena, "%s_ids", prefix), count) : NULL;
    if (!ids)
        return false;
    *io_double |= doubles;
    int *at = QN_NEW_ARRAY(arena, int, count);
    for (int i = 0; i < count; i++) {
        at[i] = find_node(keys, f->n_nodes, trees[i], nodes[i]);
        if (at[i] < 0 || ids[i] < 0 || ids[i] >= f->n_targets) {
            qn_onnx_malformed(n, "weight %d is for node %lld of tree %lld and target %lld of %d", i,
                              (long long)nodes[i], (long long)trees[i], (long long)ids[i], f->n_targets);
            return false;
        }
        f->nodes[at[i]].n_votes++;
    }
    for (int i = 0, next = 0; i < f->n_nodes; i++) {
        f->nodes[i].vote = next;
        next += f->nodes[i].n_votes;
        f->nodes[i].n_votes = 0;
    }
    f->n_votes = count;
    f->votes = QN_NEW_ARRAY(arena, qn_vote, count);
    for (int i = 0; i < count; i++) {
        qn_tree_node *node = &f->nodes[at[i]];
        f->votes[node->vote + node->n_votes++] = (qn_vote){ (int)ids[i], weights[i] };
    }
    return true;
}

/* Everything but n_targets and the aggregate. False after a report. */
static bool read_numbered(qn_onnx_node *n, const char *prefix, qn_forest *f)
{
    qn_arena *arena = n->im->arena;
    bool doubles;
    const double *values = qn_ml_numbers(n, "nodes_values", "nodes_values_as_tensor", &f->n_nodes, &doubles);
    if (!values) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute nodes_values is missing");
        return false;
    }
    const int64_t *trees = integers(n, "nodes_treeids", f->n_nodes);
    const int64_t *ids = trees ? integers(n, "nodes_nodeids", f->n_nodes) : NULL;
    const int64_t *features = ids ? integers(n, "nodes_featureids", f->n_nodes) : NULL;
    const int64_t *yes = features ? integers(n, "nodes_truenodeids", f->n_nodes) : NULL;
    const int64_t *no = yes ? integers(n, "nodes_falsenodeids", f->n_nodes) : NULL;
    int n_missing;
    const int64_t *missing = qn_onnx_attr_ints(n, "nodes_missing_value_tracks_true", &n_missing);
    missing = n_missing == 0 ? NULL : integers(n, "nodes_missing_value_tracks_true", f->n_nodes);
    if (!no || !qn_onnx_ok(n))
        return false;
    f->nodes = QN_NEW_ARRAY(arena, qn_tree_node, f->n_nodes);
    if (!read_modes(n, f))
        return false;
    key *keys = QN_NEW_ARRAY(arena, key, f->n_nodes);
    for (int i = 0; i < f->n_nodes; i++)
        keys[i] = (key){ trees[i], ids[i], i };
    qsort(keys, (size_t)f->n_nodes, sizeof *keys, by_key);
    bool *below = QN_NEW_ARRAY(arena, bool, f->n_nodes);
    for (int i = 0; i < f->n_nodes; i++) {
        qn_tree_node *node = &f->nodes[i];
        if (i > 0 && by_key(&keys[i - 1], &keys[i]) == 0) {
            qn_onnx_malformed(n, "tree %lld has two nodes %lld", (long long)keys[i].tree,
                              (long long)keys[i].node);
            return false;
        }
        node->feature = features[i];
        node->value = values[i];
        node->missing_true = missing && missing[i];
        for (int k = 0; k < 2 && node->split != QN_SPLIT_LEAF; k++) {
            const int64_t to = k ? no[i] : yes[i];
            node->child[k] = find_node(keys, f->n_nodes, trees[i], to);
            if (node->child[k] < 0) {
                qn_onnx_malformed(n, "node %lld of tree %lld leads to node %lld, which is not there",
                                  (long long)ids[i], (long long)trees[i], (long long)to);
                return false;
            }
            below[node->child[k]] = true;
        }
    }
    f->roots = QN_NEW_ARRAY(arena, int, f->n_nodes);
    for (int i = 0; i < f->n_nodes; i++) {
        const int64_t tree = keys[i].tree;
        int root = -1, several = 0;
        for (; i < f->n_nodes && keys[i].tree == tree; i++)
            if (!below[keys[i].index])
                root = keys[i].index, several++;
        i--;
        if (several != 1) {
            qn_onnx_malformed(n, "tree %lld has %d nodes that are below no other; one must be",
                              (long long)tree, several);
            return false;
        }
        f->roots[f->n_roots++] = root;
    }
    if (!read_votes(n, f, keys, prefix, &doubles))
        return false;
    f->dtype = doubles || n->in[0]->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    return true;
}

/* scores [N, targets] plus base values, of which there may be none, one or one for each target */
static qn_value *add_base(qn_onnx_node *n, qn_value *scores)
{
    qn_builder *b = &n->b;
    bool doubles;
    int count;
    const double *base = qn_ml_numbers(n, "base_values", "base_values_as_tensor", &count, &doubles);
    if (!scores || !base || count == 0)
        return scores;
    const int64_t extent = count;
    qn_value *v = qn_b_constant(b, qn_onnx_tensor_of(n->im, QUERN_F64, 1, &extent, base));
    return add(b, scores, qn_b_convert(b, scores->type.dtype, v));
}

static qn_value *average(qn_onnx_node *n, qn_value *scores, const qn_forest *f, bool is_average)
{
    return is_average ? div_number(&n->b, scores, f->n_roots) : scores;
}

static void set_aggregate(qn_forest *f, int word)
{
    static const qn_kind kinds[] = { QN_SUM, QN_SUM, QN_KIND_MIN, QN_KIND_MAX };
    f->aggregate = kinds[word];
}

static void import_regressor(qn_onnx_node *n)
{
    static const char *const words[] = { "AVERAGE", "SUM", "MIN", "MAX", NULL };
    qn_forest f = { 0 };
    const int word = qn_ml_word(n, "aggregate_function", "SUM", words), post = qn_ml_post_of(n);
    const int64_t targets = qn_onnx_attr_int(n, "n_targets", 1);
    if (word < 0 || post < 0 || !qn_onnx_in_type(n, 0))
        return;
    if (targets < 1 || targets > QN_ONNX_CONTENTS_MAX) {
        qn_onnx_malformed(n, "attribute n_targets is %lld", (long long)targets);
        return;
    }
    f.n_targets = (int)targets;
    set_aggregate(&f, word);
    if (!read_numbered(n, "target", &f))
        return;
    qn_value *scores = average(n, qn_forest_scores(n, qn_onnx_in(n, 0), &f), &f, word == 0);
    scores = qn_ml_post_transform(n, (qn_ml_post)post, add_base(n, scores));
    qn_onnx_out(n, 0, qn_b_convert(&n->b, QUERN_F32, scores));
}

/* ---- TreeEnsembleClassifier ---- */

/* The class of the largest score of each row, i64 [N]; the first of equal ones. */
static qn_value *best(qn_builder *b, qn_value *scores)
{
    return qn_b_arg_reduce(b, QN_KIND_MAX, scores, 1, false);
}

static void import_classifier(qn_onnx_node *n)
{
    static const char *const labels = "classlabels_int64s";
    qn_builder *b = &n->b;
    qn_forest f = { .aggregate = QN_SUM };
    const int post = qn_ml_post_of(n);
    if (post < 0 || !qn_onnx_in_type(n, 0) || (f.n_targets = qn_ml_n_classes(n, labels)) < 0 ||
        !read_numbered(n, "class", &f))
        return;
    bool one = true, positive = true; /* do all weights belong to one class; is none negative? */
    for (int i = 0; i < f.n_votes; i++) {
        one &= f.votes[i].target == f.votes[0].target;
        positive &= f.votes[i].weight >= 0;
    }
    const bool binary = f.n_targets == 2 && one && f.n_votes > 0;
    qn_value *scores, *classes;
    if (binary) { /* the score is of the second class, whichever its number says */
        for (int i = 0; i < f.n_votes; i++)
            f.votes[i].target = 0;
        f.n_targets = 1;
    }
    scores = qn_forest_scores(n, qn_onnx_in(n, 0), &f);
    if (binary) {
        bool doubles;
        int count;
        const double *base = qn_ml_numbers(n, "base_values", "base_values_as_tensor", &count, &doubles);
        scores = base && count > 0 ? add_number(b, scores, base[count - 1]) : scores;
        qn_value *both[2], *over = compare_number(b, QN_GT, scores, positive ? 0.5 : 0);
        over = over ? qn_b_convert(b, QUERN_I64, over) : NULL;
        classes = over ? qn_b_squeeze(b, over, 1) : NULL;
        both[1] = scores;
        /* probabilities of two classes add up to 1, scores are opposite */
        both[0] = (post == QN_POST_NONE && positive) || post == QN_POST_PROBIT
                      ? add_number(b, negate(b, scores), 1)
                      : negate(b, scores);
        scores = qn_ml_post_transform(n, (qn_ml_post)post, qn_b_concatenate(b, 2, both, 1));
    } else {
        scores = add_base(n, scores);
        classes = scores ? best(b, scores) : NULL;
        scores = qn_ml_post_transform(n, (qn_ml_post)post, scores);
    }
    if (!scores || !classes)
        return;
    qn_ml_out_labels(n, 0, labels, classes);
    qn_onnx_out(n, 1, qn_b_convert(b, QUERN_F32, scores));
}

/* ---- TreeEnsemble ---- */

static bool read_members(qn_onnx_node *n, qn_forest *f, int n_splits)
{
    int64_t at = 0, count = 0;
    const qn_tensor *t = NULL;
    if (qn_onnx_attr(n, "membership_values", ONNX__ATTRIBUTE__KIND__TENSOR)) {
        t = tensor_of(n, "membership_values", QUERN_INVALID_DTYPE, -1);
        if (!t)
            return false;
        count = qn_type_elements(&t->type);
    }
    double *members = QN_NEW_ARRAY(n->im->arena, double, count);
    for (int64_t i = 0; i < count; i++)
        members[i] = float_at(t, i);
    for (int i = 0; i < n_splits; i++) {
        qn_tree_node *node = &f->nodes[i];
        if (node->split != QN_SPLIT_MEMBER)
            continue;
        if (at >= count) {
            qn_onnx_malformed(
                n, "attribute membership_values has too few sets for the nodes of mode BRANCH_MEMBER");
            return false;
        }
        node->members = members + at;
        for (; at < count && !isnan(members[at]); at++)
            node->n_members++;
        at++;
    }
    return true;
}

/* Leaves, which come behind the nodes, and roots; false: one of them is wrong. */
static bool read_leaves(qn_onnx_node *n, qn_forest *f, int n_splits, const int64_t *targets,
                        const qn_tensor *weights, const int64_t *roots)
{
    for (int i = 0; i < f->n_votes; i++) {
        if (targets[i] < 0 || targets[i] >= f->n_targets) {
            qn_onnx_malformed(n, "leaf %d is for target %lld of %d", i, (long long)targets[i], f->n_targets);
            return false;
        }
        f->votes[i] = (qn_vote){ (int)targets[i], float_at(weights, i) };
        f->nodes[n_splits + i] = (qn_tree_node){ .split = QN_SPLIT_LEAF, .vote = i, .n_votes = 1 };
    }
    for (int i = 0; i < f->n_roots; i++) {
        if (roots[i] < 0 || roots[i] >= n_splits) {
            qn_onnx_malformed(n, "tree %d begins at node %lld, which is not there", i, (long long)roots[i]);
            return false;
        }
        f->roots[i] = (int)roots[i];
    }
    return true;
}

static void import_ensemble(qn_onnx_node *n)
{
    qn_arena *arena = n->im->arena;
    qn_forest f = { 0 };
    int n_splits, n_leaves;
    const int64_t word = qn_onnx_attr_int(n, "aggregate_function", 1);
    const int64_t post = qn_onnx_attr_int(n, "post_transform", 0);
    const int64_t targets = qn_onnx_attr_int(n, "n_targets", 1);
    const qn_type *type = qn_onnx_in_type(n, 0);
    if (!type)
        return;
    if (word < 0 || word > 3 || post < 0 || post > QN_POST_PROBIT || targets < 1 ||
        targets > QN_ONNX_CONTENTS_MAX) {
        qn_onnx_malformed(n, "aggregate_function %lld, post_transform %lld, n_targets %lld", (long long)word,
                          (long long)post, (long long)targets);
        return;
    }
    const int64_t *features = qn_onnx_attr_ints(n, "nodes_featureids", &n_splits);
    const int64_t *leaf_targets = qn_onnx_attr_ints(n, "leaf_targetids", &n_leaves);
    const int64_t *roots = qn_onnx_attr_ints(n, "tree_roots", &f.n_roots);
    if (!features || !leaf_targets || !roots) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n,
                              "an attribute of nodes_featureids, leaf_targetids and tree_roots is missing");
        return;
    }
    const int64_t *to[2], *leads_to_leaf[2];
    static const char *const names[2][2] = { { "nodes_truenodeids", "nodes_trueleafs" },
                                             { "nodes_falsenodeids", "nodes_falseleafs" } };
    for (int k = 0; k < 2; k++) {
        to[k] = integers(n, names[k][0], n_splits);
        leads_to_leaf[k] = to[k] ? integers(n, names[k][1], n_splits) : NULL;
        if (!leads_to_leaf[k])
            return;
    }
    const qn_tensor *modes = tensor_of(n, "nodes_modes", QUERN_U8, n_splits);
    const qn_tensor *values = modes ? tensor_of(n, "nodes_splits", QUERN_INVALID_DTYPE, n_splits) : NULL;
    const qn_tensor *weights = values ? tensor_of(n, "leaf_weights", QUERN_INVALID_DTYPE, n_leaves) : NULL;
    int n_missing;
    const int64_t *missing = qn_onnx_attr_ints(n, "nodes_missing_value_tracks_true", &n_missing);
    missing = n_missing == 0 ? NULL : integers(n, "nodes_missing_value_tracks_true", n_splits);
    if (!weights || !qn_onnx_ok(n))
        return;
    if (n_splits > INT32_MAX / 2 || n_leaves > INT32_MAX / 2) {
        qn_onnx_unsupported(n, "ensembles of that size");
        return;
    }
    f.n_nodes = n_splits + n_leaves;
    f.n_votes = n_leaves;
    f.n_targets = (int)targets;
    f.nodes = QN_NEW_ARRAY(arena, qn_tree_node, f.n_nodes);
    f.votes = QN_NEW_ARRAY(arena, qn_vote, n_leaves);
    f.roots = QN_NEW_ARRAY(arena, int, f.n_roots);
    f.dtype = type->dtype == QUERN_F64 || values->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    set_aggregate(&f, (int)word);
    const uint8_t *mode = qn_tensor_data(modes);
    for (int i = 0; i < n_splits; i++) {
        qn_tree_node *node = &f.nodes[i];
        *node = (qn_tree_node){ .split = (qn_split)mode[i],
                                .feature = features[i],
                                .value = float_at(values, i),
                                .missing_true = missing && missing[i] };
        if (mode[i] > QN_SPLIT_MEMBER) {
            qn_onnx_malformed(n, "node %d has the mode %d", i, mode[i]);
            return;
        }
        for (int k = 0; k < 2; k++) {
            const bool leaf = leads_to_leaf[k][i] != 0;
            if (to[k][i] < 0 || to[k][i] >= (leaf ? n_leaves : n_splits)) {
                qn_onnx_malformed(n, "node %d leads to %s %lld, which is not there", i,
                                  leaf ? "leaf" : "node", (long long)to[k][i]);
                return;
            }
            node->child[k] = (leaf ? n_splits : 0) + (int)to[k][i];
        }
    }
    if (!read_leaves(n, &f, n_splits, leaf_targets, weights, roots) || !read_members(n, &f, n_splits))
        return;
    qn_value *scores = average(n, qn_forest_scores(n, qn_onnx_in(n, 0), &f), &f, word == 0);
    scores = qn_ml_post_transform(n, (qn_ml_post)post, scores);
    qn_onnx_out(n, 0, scores ? qn_b_convert(&n->b, type->dtype, scores) : NULL);
}

const qn_onnx_op qn_onnx_trees_ops[] = {
    { "TreeEnsemble", "ai.onnx.ml", 5, 0, import_ensemble },
    { "TreeEnsembleRegressor", "ai.onnx.ml", 1, 0, import_regressor },
    { "TreeEnsembleClassifier", "ai.onnx.ml", 1, 0, import_classifier },
    { 0 },
};
