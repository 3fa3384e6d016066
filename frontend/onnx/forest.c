/* Ensembles of decision trees as formulas.
 *
 * First every question becomes `column <= threshold`: columns are features, features whose missing values are -inf (they go to the
 * first child), and truth values of what is no threshold (equality, membership). `x < t` is `x <= the number before t`, the
 * other two swap the children.
 *
 * Small trees are computed for many rows at once, without following a path: 32 leaves, from left to right, are the bits of a
 * word. A question that isn't answered by yes clears the leaves below its first child. The lowest bit that is left is the leaf
 * of the path: those before it were cleared where they part from it. A tree of more leaves is several words; where a word begins
 * amid a tree, questions above it that are answered by yes clear leaves as well, and of all words but one nothing is left.
 *
 *             x0 <= 5                 yes: 11111           no: 11100  (from bit 4 to bit 0)
 *          x1 <= 2   x0 <= 9               11111               11110
 *         0      1  2     x2 <= 1 …
 *
 * All of it is arithmetic on [targets, words, N] which runs in vectors along N, with the sum over words in a register. Large trees
 * are walked down a level at a time by looking up the node's feature, threshold and child. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/forest.h"

enum {
    WORD = 32,        /* leaves */
    MAX_DEPTH = 1000, /* of a tree */
    WALK_COST = 25,   /* of a level, in questions of a word */
    LEAF_COST = 8,    /* of finding a word's leaf */
    LANES = 12,       /* rows that a word is computed for in about the time of one */
    WALKED_FEW = 64,  /* rows below which trees that are walked anyway fill vectors, not rows */
    BUCKETS = 3       /* words of about as many questions are computed together */
};

/* ---- questions ---- */

typedef struct column {
    const qn_tree_node *asks; /* NULL: the feature itself */
    int64_t feature;
    bool filled; /* missing values are -inf */
} column;

typedef struct question {
    int column; /* -1: a leaf */
    double threshold;
    int child[2];
    int first, middle, last; /* leaves below it: the second child's from `middle` on */
} question;

typedef struct planner {
    qn_onnx_node *n;
    qn_builder b; /* where to */
    qn_arena *arena;
    qn_forest *forest;
    question *questions; /* by node */
    bool *reached;
    qn_vec(column) columns;
    int64_t n_features; /* -1: not known */
} planner;

static bool same_question(const qn_tree_node *x, const qn_tree_node *y)
{
    return x->split == y->split && x->missing_true == y->missing_true && x->n_members == y->n_members &&
           !memcmp(&x->value, &y->value, sizeof x->value) &&
           (x->n_members == 0 || !memcmp(x->members, y->members, (size_t)x->n_members * sizeof(double)));
}

static int column_of(planner *p, const qn_tree_node *asks, int64_t feature, bool filled)
{
    for (size_t i = 0; i < p->columns.n; i++) {
        const column *c = &p->columns.items[i];
        if (c->feature == feature && c->filled == filled && !c->asks == !asks &&
            (!asks || same_question(c->asks, asks)))
            return (int)i;
    }
    const column made = { asks, feature, filled };
    qn_vec_push(p->arena, &p->columns, made);
    return (int)p->columns.n - 1;
}

/* The largest number of the forest's dtype below x; NaN below -inf. */
static double before(const planner *p, double x)
{
    if (x == -INFINITY)
        return NAN;
    return p->forest->dtype == QUERN_F64 ? nextafter(x, -INFINITY) : (double)nextafterf((float)x, -INFINITY);
}

static question question_of(planner *p, const qn_tree_node *node)
{
    question q = { .column = -1 };
    bool swap = false, missing = node->missing_true, plain = true;
    if (node->split == QN_SPLIT_LEAF)
        return q;
    double at = p->forest->dtype == QUERN_F64 ? node->value : (double)(float)node->value;
    switch (node->split) {
    case QN_SPLIT_LEQ: break;
    case QN_SPLIT_LT: at = before(p, at); break;
    case QN_SPLIT_GTE: at = before(p, at), swap = true; break;
    case QN_SPLIT_GT: swap = true; break;
    default: plain = false; break;
    }
    /* nothing is <= NaN, but what is missing may have to go to the first child */
    if (plain && isnan(at) && (swap || missing))
        plain = swap = false;
    if (plain) {
        q.column = column_of(p, NULL, node->feature, missing != swap);
        q.threshold = at;
    } else { /* 1 where it holds, which is not <= 0.5 */
        q.column = column_of(p, node, node->feature, false);
        q.threshold = 0.5;
        swap = true;
    }
    q.child[0] = node->child[swap];
    q.child[1] = node->child[!swap];
    return q;
}

/* Numbers the leaves of a tree from left to right, and asks its questions. False after a report. */
static bool number_leaves(planner *p, int index, int depth, int *n_leaves, int *io_depth)
{
    question *q = &p->questions[index];
    const qn_tree_node *node = &p->forest->nodes[index];
    *io_depth = depth > *io_depth ? depth : *io_depth;
    if (depth > MAX_DEPTH) {
        qn_onnx_unsupported(p->n, "trees of more than %d levels", MAX_DEPTH);
        return false;
    }
    if (node->split == QN_SPLIT_LEAF) {
        ++*n_leaves;
        q->column = -1;
        return true;
    }
    if (p->reached[index]) {
        qn_onnx_malformed(p->n, "node %d is below two nodes, or below itself", index);
        return false;
    }
    p->reached[index] = true;
    if (node->feature < 0 || node->feature > INT32_MAX / 4 ||
        (p->n_features >= 0 && node->feature >= p->n_features)) {
        qn_onnx_malformed(p->n, "node %d asks for feature %lld of %lld", index, (long long)node->feature,
                          (long long)p->n_features);
        return false;
    }
    *q = question_of(p, node);
    q->first = *n_leaves;
    if (!number_leaves(p, q->child[0], depth + 1, n_leaves, io_depth))
        return false;
    q->middle = *n_leaves;
    const bool good = number_leaves(p, q->child[1], depth + 1, n_leaves, io_depth);
    q->last = *n_leaves;
    return good;
}

/* The columns: [N, columns]. */
static qn_value *make_columns(planner *p, qn_value *x)
{
    qn_builder *b = &p->b;
    const int n = (int)p->columns.n;
    const int64_t count = n;
    int32_t *features = QN_NEW_ARRAY(p->arena, int32_t, n);
    qn_value **pieces = QN_NEW_ARRAY(p->arena, qn_value *, n);
    bool special = false, in_order = p->n_features == n;
    for (int i = 0; i < n; i++) {
        const column *c = &p->columns.items[i];
        features[i] = (int32_t)c->feature;
        in_order &= c->feature == i;
        special |= c->filled || c->asks;
    }
    if (!in_order)
        x = qn_b_gather(b, x, qn_b_constant(b, qn_onnx_tensor_of(p->n->im, QUERN_I32, 1, &count, features)),
                        1);
    if (!special)
        return x;
    /* columns of a kind side by side are one piece */
    int n_pieces = 0;
    for (int i = 0, end; i < n; i = end) {
        const column *c = &p->columns.items[i];
        for (end = i + 1;
             end < n && !c->asks && !p->columns.items[end].asks && p->columns.items[end].filled == c->filled;)
            end++;
        qn_value *piece = qn_b_slice_axis(b, x, 1, qn_onnx_dim(p->n, i), qn_onnx_dim(p->n, end));
        qn_value *missing = qn_b_unary(b, QN_OP_IS_NAN, piece);
        if (c->asks) {
            qn_value *holds = NULL;
            const qn_tree_node *node = c->asks;
            for (int k = 0; k < node->n_members; k++) {
                qn_value *is = compare_number(b, QN_EQ, piece, node->members[k]);
                holds = holds ? or_else(b, holds, is) : is;
            }
            if (node->split != QN_SPLIT_MEMBER) {
                const qn_direction direction = node->split == QN_SPLIT_LEQ   ? QN_LE
                                               : node->split == QN_SPLIT_LT  ? QN_LT
                                               : node->split == QN_SPLIT_GTE ? QN_GE
                                               : node->split == QN_SPLIT_GT  ? QN_GT
                                               : node->split == QN_SPLIT_NEQ ? QN_NE
                                                                             : QN_EQ;
                holds = compare_number(b, direction, piece, node->value);
            }
            holds = !holds ? compare_number(b, QN_EQ, piece, NAN) : holds;
            holds = node->missing_true ? or_else(b, holds, missing) : holds;
            piece = qn_b_convert(b, p->forest->dtype, holds);
        } else if (c->filled) {
            piece = choose(b, missing, number_like(b, piece, -INFINITY), piece);
        }
        pieces[n_pieces++] = piece;
    }
    return n_pieces == 1 ? pieces[0] : qn_b_concatenate(b, n_pieces, pieces, 1);
}

static int by_column(const void *a, const void *b)
{
    const column *x = *(column *const *)a, *y = *(column *const *)b;
    const int kinds[2] = { x->asks ? 2 : x->filled, y->asks ? 2 : y->filled };
    if (kinds[0] != kinds[1])
        return kinds[0] - kinds[1];
    return x->feature != y->feature ? (x->feature > y->feature) - (x->feature < y->feature)
           : x < y                  ? -1
                                    : x > y;
}

/* Sorts the columns: features, filled ones, truth values. */
static void sort_columns(planner *p)
{
    const int n = (int)p->columns.n;
    column **order = QN_NEW_ARRAY(p->arena, column *, n), *sorted = QN_NEW_ARRAY(p->arena, column, n);
    int *to = QN_NEW_ARRAY(p->arena, int, n);
    for (int i = 0; i < n; i++)
        order[i] = &p->columns.items[i];
    qsort(order, (size_t)n, sizeof *order, by_column);
    for (int i = 0; i < n; i++) {
        sorted[i] = *order[i];
        to[order[i] - p->columns.items] = i;
    }
    memcpy(p->columns.items, sorted, (size_t)n * sizeof *sorted);
    for (int i = 0; i < p->forest->n_nodes; i++)
        if (p->reached[i])
            p->questions[i].column = to[p->questions[i].column];
}

/* ---- words ---- */

typedef struct slot { /* a question, as a word hears it */
    int column;
    double threshold;
    uint32_t keeps; /* bits that are left where it clears */
} slot;

typedef qn_vec(slot) slots;

typedef struct word {
    int tree, begin, end; /* leaves of the tree */
    slots no, yes;        /* clear where the answer is no, where it is yes */
    int target;           /* of all its leaves; 0 where they have several */
    const int *leaves;    /* the tree's nodes that are leaves */
} word;

typedef qn_vec(word) word_list;

static uint32_t bits_between(int first, int last, int begin, int end)
{
    first = first > begin ? first : begin;
    last = last < end ? last : end;
    if (first >= last)
        return 0;
    return ((last - first == WORD ? 0 : (uint32_t)1 << (last - first)) - 1) << (first - begin);
}

static void ask(planner *p, int index, word *w)
{
    const question *q = &p->questions[index];
    if (q->column < 0)
        return;
    const uint32_t left = bits_between(q->first, q->middle, w->begin, w->end);
    const uint32_t right = bits_between(q->middle, q->last, w->begin, w->end);
    if (left) {
        const slot s = { q->column, q->threshold, ~left };
        qn_vec_push(p->arena, &w->no, s);
        ask(p, q->child[0], w);
    }
    if (right) {
        const slot s = { q->column, q->threshold, ~right };
        if (q->first < w->begin)
            qn_vec_push(p->arena, &w->yes, s);
        ask(p, q->child[1], w);
    }
}

static void list_leaves(const planner *p, int index, int **io_at)
{
    const question *q = &p->questions[index];
    if (q->column < 0) {
        *(*io_at)++ = index;
        return;
    }
    list_leaves(p, q->child[0], io_at);
    list_leaves(p, q->child[1], io_at);
}

static int size_of(const word *w)
{
    return (int)(w->no.n + w->yes.n);
}

static int by_size(const void *a, const void *b)
{
    const word *x = a, *y = b;
    if (size_of(x) != size_of(y))
        return size_of(x) < size_of(y) ? -1 : 1;
    return x->tree != y->tree ? (x->tree > y->tree) - (x->tree < y->tree) : x->begin - y->begin;
}

/* What a leaf gives a target; the aggregate's neutral number where it has no vote for it. */
static double vote_of(const planner *p, int leaf, int target)
{
    const qn_tree_node *node = &p->forest->nodes[leaf];
    double made = qn_neutral(p->forest->aggregate, p->forest->dtype).f;
    for (int i = 0; i < node->n_votes; i++) {
        const qn_vote *v = &p->forest->votes[node->vote + i];
        if (v->target != target)
            continue;
        made = p->forest->aggregate == QN_SUM        ? made + v->weight
               : p->forest->aggregate == QN_KIND_MIN ? fmin(made, v->weight)
                                                     : fmax(made, v->weight);
    }
    return made;
}

static qn_value *table(planner *p, qn_dtype dtype, int64_t d0, int64_t d1, int64_t d2, const void *data)
{
    const int64_t dims[3] = { d0, d1, d2 };
    return qn_b_constant(&p->b, qn_onnx_tensor_of(p->n->im, dtype, 3, dims, data));
}

static qn_value *numbers(planner *p, int64_t d0, int64_t d1, int64_t d2, const double *data)
{
    const int64_t n = d0 * d1 * d2;
    if (p->forest->dtype == QUERN_F64)
        return table(p, QUERN_F64, d0, d1, d2, data);
    float *rounded = QN_NEW_ARRAY(p->arena, float, n);
    for (int64_t i = 0; i < n; i++)
        rounded[i] = (float)data[i];
    return table(p, QUERN_F32, d0, d1, d2, rounded);
}

/* Column i of a table [targets, words, slots], as [targets, words, 1]. */
static qn_value *slot_of(planner *p, qn_value *t, int i)
{
    return qn_b_slice_axis(&p->b, t, 2, qn_onnx_dim(p->n, i), qn_onnx_dim(p->n, i + 1));
}

/* The score of n words, which have at most n_no and n_yes questions: [targets, N]. `groups`: targets whose words are side by side. */
static qn_value *score_words(planner *p, qn_value *columns, int n, const word *words)
{
    qn_builder *b = &p->b;
    const int targets = p->forest->n_targets;
    int64_t n_no = 0, n_yes = 0, per_target = 0;
    bool single = true;
    int *counts = QN_NEW_ARRAY(p->arena, int, targets);
    for (int i = 0; i < n; i++) {
        n_no = (int64_t)words[i].no.n > n_no ? (int64_t)words[i].no.n : n_no;
        n_yes = (int64_t)words[i].yes.n > n_yes ? (int64_t)words[i].yes.n : n_yes;
        single &= words[i].target >= 0;
    }
    const int groups = single ? targets : 1;
    for (int i = 0; i < n; i++) {
        const int count = ++counts[single ? words[i].target : 0];
        per_target = count > per_target ? count : per_target;
    }
    n_no = n_no + n_yes == 0 ? 1 : n_no; /* trees of one leaf ask nothing */
    const int64_t n_slots = n_no + n_yes, all = (int64_t)groups * per_target;
    int32_t *column = QN_NEW_ARRAY(p->arena, int32_t, all *n_slots);
    uint32_t *keeps = QN_NEW_ARRAY(p->arena, uint32_t, all *n_slots);
    double *thresholds = QN_NEW_ARRAY(p->arena, double, all *n_slots);
    const int64_t n_tables = single ? 1 : targets;
    double *votes = QN_NEW_ARRAY(p->arena, double, n_tables * all * (WORD + 1));
    memset(keeps, -1, (size_t)(all * n_slots) * sizeof *keeps);
    for (int64_t i = 0; i < n_tables * all * (WORD + 1); i++)
        votes[i] = qn_neutral(p->forest->aggregate, p->forest->dtype).f;
    memset(counts, 0, (size_t)targets * sizeof *counts);
    for (int i = 0; i < n; i++) {
        const word *w = &words[i];
        const int group = single ? w->target : 0;
        const int64_t at = group * per_target + counts[group]++;
        for (int yes = 0; yes < 2; yes++) {
            const slots *from = yes ? &w->yes : &w->no;
            for (size_t k = 0; k < from->n; k++) {
                const int64_t to = at * n_slots + (yes ? n_no : 0) + (int64_t)k;
                column[to] = from->items[k].column;
                thresholds[to] = from->items[k].threshold;
                keeps[to] = from->items[k].keeps;
            }
        }
        for (int k = w->begin; k < w->end; k++)
            for (int64_t t = 0; t < n_tables; t++)
                votes[(t * all + at) * (WORD + 1) + 1 + k - w->begin] =
                    vote_of(p, w->leaves[k], single ? w->target : (int)t);
    }

    qn_value *table_column = table(p, QUERN_I32, groups, per_target, n_slots, column);
    qn_value *table_keeps = table(p, QUERN_I32, groups, per_target, n_slots, keeps);
    qn_value *table_threshold = numbers(p, groups, per_target, n_slots, thresholds), *left = NULL;
    const qn_dim two[2] = { qn_onnx_dim(p->n, groups), qn_onnx_dim(p->n, per_target) };
    for (int i = 0; i < n_slots; i++) {
        qn_value *value = qn_b_gather(b, columns, qn_b_reshape(b, slot_of(p, table_column, i), 2, two), 0);
        qn_value *answer = compare(b, QN_LE, value, slot_of(p, table_threshold, i));
        qn_value *kept = slot_of(p, table_keeps, i), *every = qn_b_scalar_int(b, QUERN_I32, -1);
        kept = i < n_no ? choose(b, answer, every, kept) : choose(b, answer, kept, every);
        left = left ? qn_b_binary(b, QN_OP_AND, left, kept) : kept;
    }
    /* the number of the lowest bit, counted from 1, is in the exponent of its value; 0 where no bit is left */
    qn_value *lowest = left ? qn_b_binary(b, QN_OP_AND, left, negate(b, left)) : NULL;
    qn_value *leaf = lowest ? qn_b_bitcast(b, QUERN_I32, qn_b_convert(b, QUERN_F32, lowest)) : NULL;
    leaf = qn_b_binary_bcast(b, QN_OP_SHIFT_RIGHT, leaf, qn_b_scalar_int(b, QUERN_I32, 23));
    leaf = and_also(b, leaf, qn_b_scalar_int(b, QUERN_I32, 255));
    leaf = min_number(b, max_number(b, add_number(b, leaf, -126), 0), WORD);
    qn_value *given = numbers(p, groups * n_tables, per_target, WORD + 1, votes);
    if (!single && leaf) {
        const qn_dim dims[3] = { qn_onnx_dim(p->n, targets), two[1], leaf->type.dims[2] };
        leaf = qn_b_broadcast_to(b, leaf, 3, dims);
    }
    const int64_t axis = 1;
    return qn_b_reduce(b, p->forest->aggregate, qn_b_gather_elements(b, given, leaf, 2), 1, &axis, false);
}

/* Splits words, sorted by size, where that saves the most questions that nobody asks. */
static int bucket_end(int n, const word *words, int buckets_left)
{
    int best = n;
    const int64_t whole = (int64_t)n * (size_of(&words[n - 1]) + LEAF_COST);
    int64_t least = buckets_left > 1 ? whole - whole / 8 : 0;
    for (int i = 1; i < n && buckets_left > 1; i++) {
        const int64_t cost = (int64_t)i * (size_of(&words[i - 1]) + LEAF_COST) +
                             (int64_t)(n - i) * (size_of(&words[n - 1]) + LEAF_COST);
        if (cost < least) {
            least = cost;
            best = i;
        }
    }
    return best;
}

/* ---- walking ---- */

static int count_below(const planner *p, int index)
{
    const question *q = &p->questions[index];
    return q->column < 0 ? 1 : 1 + count_below(p, q->child[0]) + count_below(p, q->child[1]);
}

typedef struct nodes {
    int32_t *column, *child;
    double *threshold, *votes; /* votes: [tables, nodes] */
    int64_t n, capacity, n_tables;
    int target; /* -1: all */
} nodes;

/* Node `at` gets what `index` is; its children get two places side by side. A leaf asks for NaN, which sends everybody to the node
 * behind the one before it: itself. */
static void place(const planner *p, nodes *to, int index, int64_t at)
{
    const question *q = &p->questions[index];
    if (q->column < 0) {
        to->column[at] = 0;
        to->threshold[at] = NAN;
        to->child[at] = (int32_t)at - 1;
        for (int64_t t = 0; t < to->n_tables; t++)
            to->votes[t * to->capacity + at] = vote_of(p, index, to->target < 0 ? (int)t : to->target);
        return;
    }
    const int64_t child = to->n;
    to->n += 2;
    to->column[at] = q->column;
    to->threshold[at] = q->threshold;
    to->child[at] = (int32_t)child;
    place(p, to, q->child[0], child);
    place(p, to, q->child[1], child + 1);
}

static qn_value *vector(planner *p, qn_value *t)
{
    const qn_dim n = qn_type_elements_dim(p->n->im->dims, &t->type);
    return qn_b_reshape(&p->b, t, 1, &n);
}

/* The score of trees, `targets[i]` being the only target of trees[i], or -1: [targets, N]. columns: [N, columns]. Of few rows,
 * vectors are trees; else they are rows, which go through the same nodes at first. */
static qn_value *score_walk(planner *p, qn_value *columns, int n_trees, const int *trees, const int *targets,
                            int depth, bool few)
{
    enum { MOST_TABLES = 16 }; /* targets that are looked up one by one for the same leaves */
    qn_builder *b = &p->b;
    const int n_targets = p->forest->n_targets;
    bool single = true;
    int64_t capacity = 2, per_target = 0;
    int *counts = QN_NEW_ARRAY(p->arena, int, n_targets);
    for (int i = 0; i < n_trees; i++) {
        single &= targets[i] >= 0;
        capacity += count_below(p, p->forest->roots[trees[i]]);
    }
    for (int i = 0; i < n_trees; i++) {
        const int count = ++counts[single ? targets[i] : 0];
        per_target = count > per_target ? count : per_target;
    }
    const int64_t groups = single ? n_targets : 1;
    nodes to = { .capacity = capacity, .n_tables = single ? 1 : n_targets, .n = 2 };
    to.column = QN_NEW_ARRAY(p->arena, int32_t, capacity);
    to.child = QN_NEW_ARRAY(p->arena, int32_t, capacity);
    to.threshold = QN_NEW_ARRAY(p->arena, double, capacity);
    to.votes = QN_NEW_ARRAY(p->arena, double, capacity *to.n_tables);
    int32_t *roots = QN_NEW_ARRAY(p->arena, int32_t, groups *per_target);
    /* nodes 0 and 1 are leaves without votes: what is no tree begins at 1 */
    for (int64_t i = 0; i < capacity * to.n_tables; i++)
        to.votes[i] = qn_neutral(p->forest->aggregate, p->forest->dtype).f;
    to.threshold[0] = to.threshold[1] = NAN;
    for (int64_t i = 0; i < groups * per_target; i++)
        roots[i] = 1;
    memset(counts, 0, (size_t)n_targets * sizeof *counts);
    for (int i = 0; i < n_trees; i++) {
        const int group = single ? targets[i] : 0;
        const int64_t at = to.n++;
        roots[group * per_target + counts[group]++] = (int32_t)at;
        to.target = single ? group : -1;
        place(p, &to, p->forest->roots[trees[i]], at);
    }

    /* a node's child and column in one number, where they fit: one place to look up instead of two */
    int bits = 0;
    while ((int64_t)1 << bits < (int64_t)p->columns.n)
        bits++;
    const bool packed = to.n << bits <= INT32_MAX;
    for (int64_t i = 0; i < to.n && packed; i++)
        to.child[i] = (int32_t)((int64_t)to.child[i] << bits | to.column[i]);

    const int64_t n_walks = groups * per_target, swapped[2] = { 1, 0 };
    const int rows_at = few ? 0 : 1, trees_at = 1 - rows_at;
    qn_dim two[2], three[3];
    two[rows_at] = columns->type.dims[0];
    two[trees_at] = qn_onnx_dim(p->n, n_walks);
    qn_value *child = vector(p, table(p, QUERN_I32, 1, 1, to.n, to.child));
    qn_value *column = packed ? NULL : vector(p, table(p, QUERN_I32, 1, 1, to.n, to.column));
    qn_value *threshold = vector(p, numbers(p, 1, 1, to.n, to.threshold));
    qn_value *at = vector(p, table(p, QUERN_I32, 1, 1, n_walks, roots));
    const int64_t places[1] = { trees_at };
    at = qn_b_broadcast(b, at, 2, two, places);
    for (int i = 0; i < depth; i++) {
        qn_value *next = qn_b_gather(b, child, at, 0), *asked;
        if (packed) { /* the minimum says that the column is one */
            asked = and_also(b, next, qn_b_scalar_int(b, QUERN_I32, ((int64_t)1 << bits) - 1));
            asked = min_number(b, asked, (double)p->columns.n - 1);
            next = qn_b_binary_bcast(b, QN_OP_SHIFT_RIGHT, next, qn_b_scalar_int(b, QUERN_I32, bits));
        } else {
            asked = qn_b_gather(b, column, at, 0);
        }
        asked = few ? asked : qn_b_transpose(b, asked, swapped);
        qn_value *value = qn_b_gather_elements(b, columns, asked, 1);
        value = few ? value : qn_b_transpose(b, value, swapped);
        qn_value *yes = compare(b, QN_LE, value, qn_b_gather(b, threshold, at, 0));
        qn_value *step = choose(b, yes, qn_b_scalar_int(b, QUERN_I32, 0), qn_b_scalar_int(b, QUERN_I32, 1));
        at = add(b, next, step);
    }
    for (int64_t t = 1; t < to.n_tables; t++) /* without what was too much */
        memmove(to.votes + t * to.n, to.votes + t * capacity, (size_t)to.n * sizeof(double));
    const qn_kind aggregate = p->forest->aggregate;
    const int64_t axis = few ? 2 : 1, own_axis = trees_at;
    if (single) {
        three[few ? 0 : 2] = two[rows_at];
        three[few ? 1 : 0] = qn_onnx_dim(p->n, groups);
        three[few ? 2 : 1] = qn_onnx_dim(p->n, per_target);
        qn_value *given = qn_b_gather(b, vector(p, numbers(p, 1, 1, to.n, to.votes)), at, 0);
        given = qn_b_reduce(b, aggregate, qn_b_reshape(b, given, 3, three), 1, &axis, false);
        return few ? qn_b_transpose(b, given, swapped) : given;
    }
    if (to.n_tables > MOST_TABLES) {
        const qn_dim tables[2] = { qn_onnx_dim(p->n, n_targets), qn_onnx_dim(p->n, to.n) };
        qn_value *votes = qn_b_reshape(b, numbers(p, 1, n_targets, to.n, to.votes), 2, tables);
        return qn_b_reduce(b, aggregate, qn_b_gather(b, votes, at, 1), 1, &axis, false);
    }
    qn_value *rows[MOST_TABLES];
    for (int t = 0; t < n_targets; t++) { /* sums of one kernel */
        qn_value *votes = vector(p, numbers(p, 1, 1, to.n, to.votes + t * to.n));
        rows[t] = qn_b_reduce(b, aggregate, qn_b_gather(b, votes, at, 0), 1, &own_axis, false);
        rows[t] = rows[t] ? qn_b_expand_dims(b, rows[t], 0) : NULL;
    }
    return qn_b_concatenate(b, n_targets, rows, 0);
}

/* ---- the forest ---- */

/* The only target that leaves below a node vote for; -1: there are several, -2: none so far. */
static int only_target(const planner *p, int index, int so_far)
{
    const question *q = &p->questions[index];
    if (q->column >= 0)
        return only_target(p, q->child[1], only_target(p, q->child[0], so_far));
    const qn_tree_node *node = &p->forest->nodes[index];
    for (int i = 0; i < node->n_votes; i++) {
        const int target = p->forest->votes[node->vote + i].target;
        so_far = so_far == -2 || so_far == target ? target : -1;
    }
    return so_far;
}

static qn_value *combine(planner *p, qn_value *x, qn_value *y)
{
    const qn_op op = p->forest->aggregate == QN_SUM        ? QN_OP_ADD
                     : p->forest->aggregate == QN_KIND_MIN ? QN_OP_MIN
                                                           : QN_OP_MAX;
    return x && y ? qn_b_binary(&p->b, op, x, y) : x ? x : y;
}

/* How a tree is computed. */
typedef struct plan {
    int depth, n_leaves, target; /* -1: several targets */
    bool walked;                 /* else it is words */
} plan;

static void plan_tree(planner *p, int tree, plan *t, word_list *words)
{
    const int root = p->forest->roots[tree], walking = t->n_leaves > WORD ? t->depth * WALK_COST : INT32_MAX;
    const size_t first = words->n;
    int cost = 0, *leaves = QN_NEW_ARRAY(p->arena, int, t->n_leaves), *end = leaves;
    t->target = only_target(p, root, -2);
    t->target = t->target == -2 ? 0 : t->target;
    list_leaves(p, root, &end);
    for (int at = 0; at < t->n_leaves && cost <= walking; at += WORD) {
        word w = { .tree = tree, .begin = at, .target = t->target, .leaves = leaves };
        w.end = t->n_leaves - at < WORD ? t->n_leaves : at + WORD;
        ask(p, root, &w);
        cost += size_of(&w) + LEAF_COST;
        qn_vec_push(p->arena, words, w);
    }
    t->walked = cost > walking;
    if (t->walked)
        words->n = first;
}

/* Scores [N, targets] of columns [N, columns]: of `few` rows all trees are walked, since words would have no lanes to fill. */
static qn_value *score(planner *p, qn_value *x, const plan *plans, const word_list *words, bool few)
{
    qn_builder *b = &p->b;
    const int64_t swapped[2] = { 1, 0 };
    const int n = p->forest->n_roots, n_words = few ? 0 : (int)words->n;
    int *trees = QN_NEW_ARRAY(p->arena, int, n), *targets = QN_NEW_ARRAY(p->arena, int, n);
    int n_walked = 0, depth = 0;
    qn_value *scores = NULL, *side_by_side = n_words > 0 ? qn_b_transpose(b, x, swapped) : NULL;
    for (int at = 0, buckets = BUCKETS; at < n_words; buckets--) {
        const int count = bucket_end(n_words - at, words->items + at, buckets);
        qn_value *made = score_words(p, side_by_side, count, words->items + at);
        if (!made)
            return NULL;
        scores = combine(p, scores, made);
        at += count;
    }
    for (int i = 0; i < n; i++)
        if (few || plans[i].walked) {
            trees[n_walked] = i;
            targets[n_walked++] = plans[i].target;
            depth = plans[i].depth > depth ? plans[i].depth : depth;
        }
    if (n_walked > 0)
        scores = combine(p, scores, score_walk(p, x, n_walked, trees, targets, depth, few));
    return scores ? qn_b_transpose(b, scores, swapped) : NULL;
}

/* Walking all trees is faster for fewer rows than this. */
static int few_rows_of(const planner *p, const plan *plans, const word_list *words)
{
    double by_words = 0, depth = 1;
    for (size_t i = 0; i < words->n; i++)
        by_words += size_of(&words->items[i]) + LEAF_COST;
    for (int i = 0; i < p->forest->n_roots; i++) {
        depth = plans[i].depth > depth ? plans[i].depth : depth;
        by_words += plans[i].walked ? (double)plans[i].depth * WALK_COST / LANES : 0;
    }
    const double few = ceil(LANES * by_words / (p->forest->n_roots * depth * WALK_COST));
    return few > LANES ? LANES : (int)few;
}

/* Both ways, of which the number of rows chooses one when it runs. */
static qn_value *score_either(planner *p, qn_value *x, const plan *plans, const word_list *words,
                              int few_rows)
{
    qn_builder outer = p->b;
    qn_graph *regions[2];
    for (int few = 0; few < 2; few++) {
        qn_graph *region = regions[!few] = qn_region_new(p->n->im->module);
        p->b.graph = region;
        qn_value *made =
            score(p, qn_graph_add_input(region, NULL, x->type, QN_ROLE_INPUT), plans, words, few);
        if (!made)
            return NULL;
        qn_graph_add_output(region, made, NULL, -1);
    }
    p->b = outer;
    qn_value *rows = qn_b_dim_value(&p->b, QUERN_I64, x->type.dims[0]);
    qn_value *few = compare_number(&p->b, QN_LT, rows, few_rows);
    qn_node *node = few ? qn_b_if(&p->b, few, 1, &x, regions[0], regions[1]) : NULL;
    return node ? &node->results[0] : NULL;
}

qn_value *qn_forest_scores(qn_onnx_node *n, qn_value *x, qn_forest *forest)
{
    planner planned = { .n = n, .arena = n->im->arena, .forest = forest, .b = n->b }, *p = &planned;
    if (!x)
        return NULL;
    if (x->type.rank != 2) {
        qn_onnx_malformed(n, "the input must have rank 2");
        return NULL;
    }
    p->n_features = qn_dim_is_const(x->type.dims[1]) ? x->type.dims[1]->value : -1;
    p->questions = QN_NEW_ARRAY(p->arena, question, forest->n_nodes);
    p->reached = QN_NEW_ARRAY(p->arena, bool, forest->n_nodes);
    plan *plans = QN_NEW_ARRAY(p->arena, plan, forest->n_roots);
    for (int i = 0; i < forest->n_roots; i++)
        if (!number_leaves(p, forest->roots[i], 0, &plans[i].n_leaves, &plans[i].depth))
            return NULL;
    if (p->columns.n == 0) /* trees of one leaf */
        column_of(p, NULL, 0, false);
    sort_columns(p);
    word_list words = { 0 };
    for (int i = 0; i < forest->n_roots; i++)
        plan_tree(p, i, &plans[i], &words);
    if (words.n > 0)
        qsort(words.items, words.n, sizeof(word), by_size);
    x = make_columns(p, qn_b_convert(&p->b, forest->dtype, x));
    if (!x)
        return NULL;
    const qn_dim rows = x->type.dims[0];
    int few = few_rows_of(p, plans, &words);
    for (int i = 0; i < forest->n_roots; i++)
        few = plans[i].walked && few < WALKED_FEW ? WALKED_FEW : few;
    if (few > 1 && rows->min < few && rows->max >= few)
        return score_either(p, x, plans, &words, few);
    return score(p, x, plans, &words, rows->max < few);
}
