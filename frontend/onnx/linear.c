/* Linear models and support vector machines: LinearRegressor, LinearClassifier, SVMRegressor, SVMClassifier. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/ml.h"

/* x [N, C] as f32; NULL after a report where it has not C features. */
static qn_value *features(qn_onnx_node *n, int64_t count)
{
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return NULL;
    if (x->type.rank != 2) {
        qn_onnx_malformed(n, "the input must have rank 2");
        return NULL;
    }
    x = qn_onnx_with_dim(n, x, 1, qn_onnx_dim(n, count));
    if (x && x->type.dims[1] != qn_onnx_dim(n, count)) {
        qn_onnx_malformed(n, "the input has %s features; the attributes are for %lld",
                          qn_dim_print(x->type.dims[1], n->im->arena), (long long)count);
        return NULL;
    }
    return qn_b_convert(&n->b, QUERN_F32, x);
}

static qn_value *matrix(qn_onnx_node *n, int64_t rows, int64_t columns, const float *data)
{
    const int64_t dims[2] = { rows, columns };
    return qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_F32, 2, dims, data));
}

/* x times the attribute `coefficients`, as rows for `count` targets, plus `intercepts`. */
static qn_value *linear(qn_onnx_node *n, int64_t count)
{
    int n_coefficients;
    const float *coefficients = qn_onnx_attr_floats(n, "coefficients", &n_coefficients);
    qn_value *bias = qn_ml_vector(n, "intercepts");
    if (!coefficients || count < 1 || n_coefficients % count) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n,
                              "attribute coefficients has %d elements, which do not divide into %lld targets",
                              n_coefficients, (long long)count);
        return NULL;
    }
    const int64_t columns = n_coefficients / count;
    qn_value *x = features(n, columns);
    if (!x)
        return NULL;
    x = times_transposed(&n->b, x, matrix(n, count, columns, coefficients));
    return bias ? add(&n->b, x, bias) : x;
}

static void import_linear_regressor(qn_onnx_node *n)
{
    const int post = qn_ml_post_of(n);
    qn_value *scores = post < 0 ? NULL : linear(n, qn_onnx_attr_int(n, "targets", 1));
    qn_onnx_out(n, 0, qn_ml_post_transform(n, (qn_ml_post)post, scores));
}

/* One score of two classes as [-score, score], or probabilities of both. */
static qn_value *both_classes(qn_builder *b, qn_value *score, bool probability)
{
    qn_value *both[2] = { negate(b, score), score };
    if (probability)
        both[0] = add_number(b, both[0], 1);
    return qn_b_concatenate(b, 2, both, 1);
}

static qn_value *best(qn_builder *b, qn_value *scores)
{
    return scores ? qn_b_arg_reduce(b, QN_KIND_MAX, scores, 1, false) : NULL;
}

/* A score for each class; or one, of the second of two classes. */
static void import_linear_classifier(qn_onnx_node *n)
{
    static const char *const labels = "classlabels_ints";
    qn_builder *b = &n->b;
    const int post = qn_ml_post_of(n), n_classes = post < 0 ? -1 : qn_ml_n_classes(n, labels);
    int n_scores;
    if (n_classes < 0)
        return;
    if (!qn_onnx_attr_floats(n, "intercepts", &n_scores))
        n_scores = n_classes;
    if (n_scores != n_classes && (n_scores != 1 || n_classes != 2)) {
        qn_onnx_malformed(n, "there are %d intercepts for %d classes", n_scores, n_classes);
        return;
    }
    qn_value *scores = linear(n, n_scores), *classes;
    if (n_scores == n_classes) {
        classes = best(b, scores);
    } else {
        qn_value *over = compare_number(b, QN_GT, scores, 0);
        classes = over ? qn_b_squeeze(b, qn_b_convert(b, QUERN_I64, over), 1) : NULL;
        scores = both_classes(b, scores, post == QN_POST_NONE);
    }
    scores = qn_ml_post_transform(n, (qn_ml_post)post, scores);
    if (!scores || !classes)
        return;
    qn_ml_out_labels(n, 0, labels, classes);
    qn_onnx_out(n, 1, scores);
}

/* ---- support vectors ---- */

/* The kernel of each row of x with each of `count` support vectors: [N, count]. */
static qn_value *kernels(qn_onnx_node *n, int64_t count)
{
    static const char *const words[] = { "LINEAR", "POLY", "RBF", "SIGMOID", NULL };
    enum { LINEAR, POLY, RBF };
    qn_builder *b = &n->b;
    int n_params, n_floats;
    const float *params = qn_onnx_attr_floats(n, "kernel_params", &n_params);
    const float *vectors = qn_onnx_attr_floats(n, "support_vectors", &n_floats);
    const int kind = qn_ml_word(n, "kernel_type", "LINEAR", words);
    if (kind < 0 || !vectors || count < 1 || n_floats % count || (kind != LINEAR && n_params != 3)) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(
                n,
                "%d numbers of support vectors do not divide into %lld, or kernel_params has %d "
                "elements instead of 3",
                n_floats, (long long)count, n_params);
        return NULL;
    }
    qn_value *x = features(n, n_floats / count), *v = matrix(n, count, n_floats / count, vectors);
    if (!x)
        return NULL;
    const double gamma = n_params ? (double)params[0] : 0;
    if (kind == RBF) {
        const int64_t last = 2;
        qn_value *far = square(b, sub(b, qn_b_expand_dims(b, x, 1), v));
        far = qn_b_reduce(b, QN_SUM, far, 1, &last, false);
        return qn_b_unary(b, QN_OP_EXP, mul_number(b, far, -gamma));
    }
    qn_value *dot = times_transposed(b, x, v);
    if (kind == LINEAR)
        return dot;
    dot = add_number(b, mul_number(b, dot, gamma), (double)params[1]);
    if (kind == POLY)
        return qn_b_binary_bcast(b, QN_OP_POW, dot, number_like(b, dot, (double)params[2]));
    return qn_b_unary(b, QN_OP_TANH, dot);
}

/* The numbers of an attribute, of which there must be `want` (0: one at least). NULL after a report. */
static const float *floats(qn_onnx_node *n, const char *name, int64_t want)
{
    int count;
    const float *values = qn_onnx_attr_floats(n, name, &count);
    if (values && (want ? count == want : count > 0))
        return values;
    if (qn_onnx_ok(n))
        qn_onnx_malformed(n, "attribute %s has %d elements where there must be %lld", name, count,
                          (long long)(want ? want : 1));
    return NULL;
}

static void import_svm_regressor(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    int n_coefficients;
    const int post = qn_ml_post_of(n);
    const int64_t n_vectors = qn_onnx_attr_int(n, "n_supports", 0);
    const float *rho = floats(n, "rho", 0);
    qn_onnx_attr_floats(n, "coefficients", &n_coefficients);
    const float *coefficients = floats(n, "coefficients", n_vectors);
    if (post < 0 || !rho || !coefficients)
        return;
    qn_value *x = n_vectors > 0 ? kernels(n, n_vectors) : features(n, n_coefficients);
    if (!x)
        return;
    x = add_number(b, times_transposed(b, x, matrix(n, 1, n_coefficients, coefficients)), (double)rho[0]);
    if (qn_onnx_attr_int(n, "one_class", 0))
        x = choose(b, compare_number(b, QN_GT, x, 0), number_like(b, x, 1), number_like(b, x, -1));
    else
        x = qn_ml_post_transform(n, (qn_ml_post)post, x);
    qn_onnx_out(n, 0, x);
}

/* One against one: a score for each pair of classes i < j, positive for i: the support vectors of both by coefficients of
 * their own. [N, pairs]; *out_votes: how many pairs a class wins, [N, classes]. */
static qn_value *pairs(qn_onnx_node *n, int classes, const int64_t *per_class, qn_value **out_votes)
{
    qn_builder *b = &n->b;
    int64_t total = 0;
    int64_t *first = QN_NEW_ARRAY(n->im->arena, int64_t, classes);
    for (int i = 0; i < classes; i++) {
        if (per_class[i] < 0 || per_class[i] > INT32_MAX) {
            qn_onnx_malformed(n, "class %d has %lld support vectors", i, (long long)per_class[i]);
            return NULL;
        }
        first[i] = total;
        total += per_class[i];
    }
    const int64_t n_pairs = (int64_t)classes * (classes - 1) / 2;
    const float *given = floats(n, "coefficients", total * (classes - 1));
    const float *rho = given ? floats(n, "rho", n_pairs) : NULL;
    qn_value *k = rho ? kernels(n, total) : NULL;
    if (!k)
        return NULL;
    float *w = QN_NEW_ARRAY(n->im->arena, float, n_pairs *total);
    float *wins[2] = { QN_NEW_ARRAY(n->im->arena, float, n_pairs *classes),
                       QN_NEW_ARRAY(n->im->arena, float, n_pairs *classes) };
    int64_t at = 0;
    for (int i = 0; i < classes; i++)
        for (int j = i + 1; j < classes; j++, at++) {
            memcpy(w + at * total + first[i], given + (j - 1) * total + first[i],
                   (size_t)per_class[i] * sizeof *w);
            memcpy(w + at * total + first[j], given + i * total + first[j], (size_t)per_class[j] * sizeof *w);
            wins[0][i * n_pairs + at] = wins[1][j * n_pairs + at] = 1;
        }
    qn_value *scores =
        add(b, times_transposed(b, k, matrix(n, n_pairs, total, w)), matrix(n, 1, n_pairs, rho));
    qn_value *over = compare_number(b, QN_GT, scores, 0);
    if (!over)
        return NULL;
    *out_votes =
        add(b, times_transposed(b, qn_b_convert(b, QUERN_F32, over), matrix(n, classes, n_pairs, wins[0])),
            times_transposed(b, qn_b_convert(b, QUERN_F32, logical_not(b, over)),
                             matrix(n, classes, n_pairs, wins[1])));
    return scores;
}

/* ---- probabilities of several classes ---- */

/* By pairwise coupling (T.-F. Wu, C.-J. Lin, R. C. Weng 2004), as libsvm and ONNX Runtime do it: from r[i, j], the probability of
 * class i where it is i or j, those p that make sum over i, j of (r[j, i] p[i] - r[i, j] p[j])^2 least: p Q p with Q[i, i] the
 * sum over j of r[j, i]^2 and Q[i, j] = -r[j, i] r[i, j]. From equal ones on, each p[t] in turn is set to what is best for it and
 * all are divided by their sum, until no component of Q p is farther than 0.005 / classes from p Q p. Rows are the last axis. */
typedef struct coupling {
    qn_value *p, *qp, *pqp, *open; /* [C, N], Q p [C, N], p Q p [N], is the row's end not reached? [N] */
} coupling;

static qn_value *sum_first(qn_builder *b, qn_value *x)
{
    return x ? qn_b_reduce(b, QN_SUM, x, 1, (int64_t[]){ 0 }, false) : NULL;
}

/* What else there is for p; q [C, C, N]. */
static bool measure(qn_builder *b, int classes, qn_value *q, coupling *c)
{
    c->qp = sum_first(b, mul(b, q, c->p ? qn_b_expand_dims(b, c->p, 1) : NULL)); /* Q is symmetric */
    c->pqp = sum_first(b, mul(b, c->p, c->qp));
    qn_value *away = sub(b, c->qp, c->pqp);
    away =
        away ? qn_b_reduce(b, QN_KIND_MAX, qn_b_unary(b, QN_OP_ABS, away), 1, (int64_t[]){ 0 }, false) : NULL;
    c->open = compare_number(b, QN_GE, away, 0.005 / classes);
    return c->open != NULL;
}

/* The body of a scan over t with Q[t] [C, N] and row t of the identity [C, 1]: p[t] gets its best value. */
static qn_graph *coordinate(qn_onnx_node *n, const coupling *c, const qn_type *row, const qn_type *unit)
{
    qn_graph *body = qn_region_new(n->im->module);
    qn_builder b = { .graph = body, .loc = n->b.loc, .diags = n->b.diags };
    qn_value *p = qn_graph_add_input(body, NULL, c->p->type, QN_ROLE_INPUT);
    qn_value *qp = qn_graph_add_input(body, NULL, c->qp->type, QN_ROLE_INPUT);
    qn_value *pqp = qn_graph_add_input(body, NULL, c->pqp->type, QN_ROLE_INPUT);
    qn_value *q = qn_graph_add_input(body, NULL, *row, QN_ROLE_INPUT);
    qn_value *at = qn_graph_add_input(body, NULL, *unit, QN_ROLE_INPUT);
    qn_value *own = sum_first(&b, mul(&b, q, at)), *own_qp = sum_first(&b, mul(&b, qp, at));
    qn_value *step = divide(&b, sub(&b, pqp, own_qp), own), *whole = add_number(&b, step, 1);
    qn_value *more = mul(&b, step, add(&b, mul(&b, step, own), mul_number(&b, own_qp, 2)));
    qn_value *next = divide(&b, add(&b, p, mul(&b, step, at)), whole);
    if (!next)
        return NULL;
    qn_graph_add_output(body, next, NULL, -1);
    qn_graph_add_output(body, divide(&b, add(&b, qp, mul(&b, step, q)), whole), NULL, -1);
    qn_graph_add_output(body, divide(&b, divide(&b, add(&b, pqp, more), whole), whole), NULL, -1);
    return body;
}

/* [N, C] from the probabilities of i for each pair i < j, [N, pairs]. */
static qn_value *coupled(qn_onnx_node *n, int classes, qn_value *of_pairs)
{
    enum {
        CARRIED = 2,
        Q = CARRIED,
        UNITS,
        N_OPERANDS
    }; /* p and open; Q and the identity [C, C, 1] are captured */
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_module *module = n->im->module;
    if (!of_pairs)
        return NULL;
    if (classes > 1000) {
        qn_onnx_unsupported(n, "probabilities of more than 1000 classes");
        return NULL;
    }
    const int64_t square_of = (int64_t)classes * classes;
    const qn_dim count = qn_dim_const(t, classes), rows = of_pairs->type.dims[0];
    const qn_dim cube[3] = { count, count, rows };
    /* r[i, j] for i < j is the pair's, for i > j what is missing to 1, and 0 for i = j */
    int64_t *from = QN_NEW_ARRAY(n->im->arena, int64_t, square_of);
    float *sign = QN_NEW_ARRAY(n->im->arena, float, square_of),
          *rest = QN_NEW_ARRAY(n->im->arena, float, square_of),
          *unit = QN_NEW_ARRAY(n->im->arena, float, square_of);
    int64_t pair = 0;
    for (int i = 0; i < classes; i++) {
        unit[i * classes + i] = 1;
        for (int j = i + 1; j < classes; j++, pair++) {
            from[i * classes + j] = from[j * classes + i] = pair;
            sign[i * classes + j] = 1;
            sign[j * classes + i] = -1;
            rest[j * classes + i] = 1;
        }
    }
    qn_value *r = qn_b_gather(b, qn_b_transpose(b, of_pairs, (int64_t[]){ 1, 0 }),
                              qn_b_ints(b, (int)square_of, from), 0);
    r = add(b, mul(b, r, matrix(n, square_of, 1, sign)), matrix(n, square_of, 1, rest));
    r = r ? qn_b_reshape(b, r, 3, cube) : NULL;
    qn_value *turned = r ? qn_b_transpose(b, r, (int64_t[]){ 1, 0, 2 }) : NULL;
    const qn_dim unit_dims[3] = { count, count, qn_dim_const(t, 1) };
    qn_value *units = qn_b_reshape(b, matrix(n, classes, classes, unit), 3, unit_dims);
    qn_value *diagonal = mul(b, r ? qn_b_expand_dims(b, sum_first(b, square(b, r)), 0) : NULL, units);
    qn_value *operands[N_OPERANDS] = { [Q] = sub(b, diagonal, mul(b, r, turned)), [UNITS] = units };
    const qn_type p_type = qn_type_make(module, QUERN_F32, 2, cube + 1);
    coupling start = { .p = qn_b_full(b, &p_type, 1.0 / classes) };
    if (!operands[Q] || !measure(b, classes, operands[Q], &start))
        return NULL;
    operands[0] = start.p;
    operands[1] = start.open;
    qn_graph *const condition = qn_region_new(module), *const body = qn_region_new(module);
    qn_value *in[N_OPERANDS], *open = NULL;
    for (int i = 0; i < N_OPERANDS; i++) {
        qn_value *x = qn_graph_add_input(condition, NULL, operands[i]->type, QN_ROLE_INPUT);
        open = i == 1 ? x : open;
        in[i] = qn_graph_add_input(body, NULL, operands[i]->type, QN_ROLE_INPUT);
    }
    qn_builder end = { .graph = condition, .loc = b->loc, .diags = b->diags };
    qn_graph_add_output(condition, qn_b_reduce(&end, QN_KIND_MAX, open, 1, (int64_t[]){ 0 }, false), NULL,
                        -1);

    qn_builder inner = { .graph = body, .loc = b->loc, .diags = b->diags };
    coupling now = { .p = in[0] };
    const qn_type row = p_type, unit_row = qn_type_make(module, QUERN_F32, 2, unit_dims + 1);
    qn_graph *one = measure(&inner, classes, in[Q], &now) ? coordinate(n, &now, &row, &unit_row) : NULL;
    const qn_node *sweep =
        one ? qn_b_scan(&inner, 3, 2, 0, (qn_value *[]){ now.p, now.qp, now.pqp, in[Q], in[UNITS] }, count,
                        false, one)
            : NULL;
    if (!sweep)
        return NULL;
    coupling next = { .p = choose(&inner, in[1], &sweep->results[0], in[0]) };
    if (!measure(&inner, classes, in[Q], &next))
        return NULL;
    qn_graph_add_output(body, next.p, NULL, -1);
    qn_graph_add_output(body, and_also(&inner, in[1], next.open), NULL, -1);
    const qn_dim most = qn_dim_const(t, classes > 100 ? classes : 100);
    const qn_node *loop = qn_b_while(b, CARRIED, N_OPERANDS - CARRIED, operands, most, condition, body);
    return loop ? qn_b_transpose(b, &loop->results[0], (int64_t[]){ 1, 0 }) : NULL;
}

static void import_svm_classifier(qn_onnx_node *n)
{
    static const char *const labels = "classlabels_ints";
    qn_builder *b = &n->b;
    int n_per_class, n_prob_a, n_prob_b, n_coefficients;
    const int post = qn_ml_post_of(n), classes = post < 0 ? -1 : qn_ml_n_classes(n, labels);
    const int64_t *per_class = qn_onnx_attr_ints(n, "vectors_per_class", &n_per_class);
    const float *prob_a = qn_onnx_attr_floats(n, "prob_a", &n_prob_a);
    const float *prob_b = qn_onnx_attr_floats(n, "prob_b", &n_prob_b);
    if (classes < 0 || !qn_onnx_ok(n))
        return;
    qn_value *scores, *votes = NULL;
    if (!per_class || n_per_class == 0) { /* linear: a row of coefficients for each class */
        const float *coefficients = qn_onnx_attr_floats(n, "coefficients", &n_coefficients);
        const float *rho = floats(n, "rho", 0);
        if (!rho)
            return;
        if (!coefficients || n_coefficients == 0 || n_coefficients % classes) {
            qn_onnx_malformed(n, "%d coefficients do not divide into %d classes", n_coefficients, classes);
            return;
        }
        const int64_t columns = n_coefficients / classes;
        scores = features(n, columns);
        scores = scores ? times_transposed(b, scores, matrix(n, classes, columns, coefficients)) : NULL;
        votes = scores = add_number(b, scores, (double)rho[0]);
    } else if (classes < 2 || n_per_class != classes) {
        qn_onnx_malformed(n, "vectors_per_class has %d elements for %d classes", n_per_class, classes);
        return;
    } else {
        scores = pairs(n, classes, per_class, &votes);
        const int64_t n_pairs = (int64_t)classes * (classes - 1) / 2;
        if (n_prob_a && (n_prob_b != n_prob_a || n_prob_a != n_pairs)) {
            qn_onnx_malformed(n, "prob_a has %d elements and prob_b %d, for %lld pairs of classes", n_prob_a,
                              n_prob_b, (long long)n_pairs);
            return;
        }
        if (n_prob_a && scores) { /* of the second class of each pair */
            qn_value *at =
                add(b, mul(b, scores, matrix(n, 1, n_pairs, prob_a)), matrix(n, 1, n_pairs, prob_b));
            scores = at ? qn_b_unary(b, QN_OP_LOGISTIC, at) : NULL;
            scores = min_number(b, max_number(b, scores, 1e-7), 1 - 1e-7);
            scores = classes == 2 ? both_classes(b, scores, true)
                                  : coupled(n, classes, add_number(b, negate(b, scores), 1));
        } else if (classes == 2) {
            scores = both_classes(b, scores, false);
        }
    }
    qn_value *won = best(b, votes);
    scores = qn_ml_post_transform(n, (qn_ml_post)post, scores);
    if (!scores || !won)
        return;
    qn_ml_out_labels(n, 0, labels, won);
    qn_onnx_out(n, 1, scores);
}

const qn_onnx_op qn_onnx_linear_ops[] = {
    { "LinearRegressor", "ai.onnx.ml", 1, 0, import_linear_regressor },
    { "LinearClassifier", "ai.onnx.ml", 1, 0, import_linear_classifier },
    { "SVMRegressor", "ai.onnx.ml", 1, 0, import_svm_regressor },
    { "SVMClassifier", "ai.onnx.ml", 1, 0, import_svm_classifier },
    { 0 },
};
