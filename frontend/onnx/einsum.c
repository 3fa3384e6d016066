/* Einsum: per operand the diagonal of repeated labels, then products of two, left to right; a label that no later
 * operand and no output needs is summed as soon as it can be. */
#include <ctype.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

enum { ELLIPSIS = 128, N_LABELS = ELLIPSIS + QN_MAX_RANK + 1, MAX_LABELS = QN_MAX_RANK };

typedef struct term {
    qn_value *x;
    int n;
    int labels[MAX_LABELS + 1]; /* letters, or ELLIPSIS + i: the i-th axis from the right of the ellipsis */
} term;

/* One term of the equation, without blanks; axes: those of its operand, or -1. False when it does not fit. */
static bool read_term(const char **at, int rank, int ellipsis_axes, term *out)
{
    out->n = 0;
    int explicit_labels = 0;
    for (const char *c = *at; *c && *c != ',' && *c != '-'; c++)
        explicit_labels += isalpha((unsigned char)*c) != 0;
    bool seen = false;
    for (; **at && **at != ',' && **at != '-'; ++*at) {
        if (**at == ' ')
            continue;
        if (isalpha((unsigned char)**at)) {
            if (out->n >= MAX_LABELS)
                return false;
            out->labels[out->n++] = **at;
        } else if (!strncmp(*at, "...", 3) && !seen) {
            int n = rank >= 0 ? rank - explicit_labels : ellipsis_axes;
            seen = true;
            *at += 2;
            if (n < 0 || out->n + n > MAX_LABELS)
                return false;
            for (int i = 0; i < n; i++)
                out->labels[out->n++] = ELLIPSIS + n - 1 - i;
        } else {
            return false;
        }
    }
    return rank < 0 || out->n == rank;
}

static int find_label(const term *t, int label)
{
    for (int i = 0; i < t->n; i++)
        if (t->labels[i] == label)
            return i;
    return -1;
}

static void remove_label(term *t, int at)
{
    for (int i = at + 1; i < t->n; i++)
        t->labels[i - 1] = t->labels[i];
    t->n--;
}

/* "ii" -> the diagonal: element i of the last of the two axes, where the first is at i. */
static void take_diagonals(qn_onnx_node *n, term *t)
{
    qn_builder *b = &n->b;
    for (int i = 0; i < t->n && t->x; i++) {
        int other = -1;
        for (int k = i + 1; k < t->n; k++)
            if (t->labels[k] == t->labels[i])
                other = k;
        if (other < 0)
            continue;
        qn_dim dims[QN_MAX_RANK];
        for (int k = 0; k < t->n; k++)
            dims[k] = k == other ? qn_dim_const(n->im->dims, 1) : t->x->type.dims[k];
        qn_type type = qn_type_make(n->im->module, QUERN_I64, t->n, dims);
        t->x = qn_b_squeeze(b, qn_b_gather_elements(b, t->x, qn_b_iota(b, &type, i), other), other);
        remove_label(t, other);
        i--;
    }
}

/* Sums the axes whose labels nobody needs. */
static void sum_unneeded(qn_builder *b, term *t, const bool *needed)
{
    int64_t axes[QN_MAX_RANK];
    int n_axes = 0;
    for (int i = 0; i < t->n; i++)
        if (!needed[t->labels[i]])
            axes[n_axes++] = i;
    if (n_axes)
        t->x = qn_b_reduce(b, QN_SUM, t->x, n_axes, axes, false);
    for (int i = n_axes - 1; i >= 0; i--)
        remove_label(t, (int)axes[i]);
}

/* x times y: labels of both are batch axes where needed later, else contracted. An extent of 1 broadcasts. */
static void multiply(qn_onnx_node *n, term *x, term *y, const bool *needed)
{
    qn_builder *b = &n->b;
    qn_dot dot = { 0 };
    term out = { 0 };
    for (int i = 0; i < x->n; i++) {
        int other = find_label(y, x->labels[i]);
        if (other < 0 || !x->x || !y->x)
            continue;
        qn_dim dx = x->x->type.dims[i], dy = y->x->type.dims[other];
        if (dx != dy && (qn_dim_is(dx, 1) || qn_dim_is(dy, 1))) { /* only one of them has the label */
            term *one = qn_dim_is(dx, 1) ? x : y;
            int at = qn_dim_is(dx, 1) ? i : other;
            one->x = qn_b_squeeze(b, one->x, at);
            remove_label(one, at);
            i -= one == x;
        }
    }
    if (!x->x || !y->x)
        return;
    for (int i = 0; i < x->n; i++) {
        int other = find_label(y, x->labels[i]);
        if (other >= 0)
            y->x = qn_onnx_with_dim(n, y->x, other, x->x->type.dims[i]);
        if (other >= 0 && needed[x->labels[i]]) {
            dot.x_batch[dot.n_batch] = i;
            dot.y_batch[dot.n_batch++] = other;
            out.labels[out.n++] = x->labels[i];
        } else if (other >= 0) {
            dot.x_contract[dot.n_contract] = i;
            dot.y_contract[dot.n_contract++] = other;
        }
    }
    for (int k = 0; k < 2; k++) {
        const term *t = k ? y : x, *against = k ? x : y;
        for (int i = 0; i < t->n; i++)
            if (find_label(against, t->labels[i]) < 0) {
                if (out.n >= MAX_LABELS) {
                    qn_onnx_unsupported(n, "a product has more than %d axes", MAX_LABELS);
                    return;
                }
                out.labels[out.n++] = t->labels[i];
            }
    }
    out.x = qn_b_dot_general(b, x->x, y->x, &dot, QUERN_INVALID_DTYPE);
    *x = out;
    sum_unneeded(b, x, needed);
}

/* Without "->": the labels that occur once, in order of the alphabet, after the ellipsis. */
static void implied_output(const term *terms, int n_terms, int ellipsis_axes, term *out)
{
    int counts[ELLIPSIS] = { 0 };
    for (int k = 0; k < n_terms; k++)
        for (int i = 0; i < terms[k].n; i++)
            if (terms[k].labels[i] < ELLIPSIS)
                counts[terms[k].labels[i]]++;
    for (int i = 0; i < ellipsis_axes && out->n < MAX_LABELS; i++)
        out->labels[out->n++] = ELLIPSIS + ellipsis_axes - 1 - i;
    for (int c = 0; c < ELLIPSIS; c++)
        if (counts[c] == 1 && out->n < MAX_LABELS)
            out->labels[out->n++] = c;
}

static void import_einsum(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const char *equation = qn_onnx_attr_string(n, "equation", ""), *at = equation;
    term *terms = QN_NEW_ARRAY(n->im->arena, term, n->n_in), out = { 0 };
    int ellipsis_axes = 0;
    bool good = n->n_in > 0;
    for (int k = 0; k < n->n_in && good; k++) {
        terms[k].x = qn_onnx_in(n, k);
        if (!terms[k].x)
            return;
        good = read_term(&at, terms[k].x->type.rank, 0, &terms[k]) && (k == n->n_in - 1 || *at++ == ',');
        int axes = 0;
        for (int i = 0; i < terms[k].n; i++)
            axes += terms[k].labels[i] >= ELLIPSIS;
        ellipsis_axes = axes > ellipsis_axes ? axes : ellipsis_axes;
    }
    if (good && !strncmp(at, "->", 2)) {
        at += 2;
        good = read_term(&at, -1, ellipsis_axes, &out);
    } else if (good) {
        implied_output(terms, n->n_in, ellipsis_axes, &out);
    }
    good = good && !*at;
    for (int i = 0; i < out.n && good; i++) {
        bool known = false;
        for (int k = 0; k < n->n_in; k++)
            known |= find_label(&terms[k], out.labels[i]) >= 0;
        good = known && find_label(&out, out.labels[i]) == i;
    }
    if (!good) {
        qn_onnx_malformed(n, "the equation \"%s\" does not fit the inputs", equation);
        return;
    }
    term result = { 0 };
    for (int k = 0; k < n->n_in; k++) {
        bool needed[N_LABELS] = { false };
        for (int i = 0; i < out.n; i++)
            needed[out.labels[i]] = true;
        for (int later = k + 1; later < n->n_in; later++)
            for (int i = 0; i < terms[later].n; i++)
                needed[terms[later].labels[i]] = true;
        take_diagonals(n, &terms[k]);
        if (k == 0) {
            result = terms[0];
            if (result.x)
                sum_unneeded(b, &result, needed);
        } else {
            bool own[N_LABELS];
            memcpy(own, needed, sizeof own);
            for (int i = 0; i < result.n; i++)
                own[result.labels[i]] = true;
            if (terms[k].x)
                sum_unneeded(b, &terms[k], own);
            multiply(n, &result, &terms[k], needed);
        }
        if (!result.x || !qn_onnx_ok(n))
            return;
    }
    int64_t perm[QN_MAX_RANK];
    for (int i = 0; i < out.n; i++) {
        int from = find_label(&result, out.labels[i]);
        if (from < 0 || result.n != out.n) {
            qn_onnx_unsupported(n, "the equation \"%s\"", equation);
            return;
        }
        perm[i] = from;
    }
    qn_onnx_out(n, 0, out.n ? qn_b_transpose(b, result.x, perm) : result.x);
}

const qn_onnx_op qn_onnx_einsum_ops[] = {
    { "Einsum", NULL, 12, 0, import_einsum },
    { 0 },
};
