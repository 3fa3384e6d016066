/* Dimension expressions: sums of products, and division with its remainder. */
#include <stdlib.h>
#include <string.h>

#include "ir/diag.h"
#include "ir/dim.h"
#include "ir/dim_internal.h"

enum { MAX_TERMS = QN_DIM_MAX_TERMS * 5 / 4, MAX_FACTORS = 16 };

/* ---- sums of products ---- */

typedef struct product {
    int64_t coefficient;
    int n;
    qn_dim factors[MAX_FACTORS]; /* sorted */
} product;

/* `failed`: too large, or a coefficient overflowed; what is made of it is INT64_MAX. */
typedef struct sum {
    int n;
    bool failed;
    product terms[MAX_TERMS]; /* no two with the same factors; in any order */
} sum;

static bool same_factors(const product *a, const product *b)
{
    return a->n == b->n && memcmp(a->factors, b->factors, (size_t)a->n * sizeof *a->factors) == 0;
}

static void sum_add_product(sum *s, const product *p)
{
    for (int i = 0; i < s->n; i++) {
        product *t = &s->terms[i];
        if (!same_factors(t, p))
            continue;
        s->failed |= __builtin_add_overflow(t->coefficient, p->coefficient, &t->coefficient);
        if (t->coefficient == 0)
            *t = s->terms[--s->n];
        return;
    }
    if (p->coefficient == 0)
        return;
    if (s->n == MAX_TERMS)
        s->failed = true;
    else
        s->terms[s->n++] = *p;
}

static void product_of(qn_dim d, product *out)
{
    out->coefficient = 1;
    out->n = 0;
    if (d->kind == QN_DIM_CONST) {
        out->coefficient = d->value;
    } else if (d->kind == QN_DIM_MUL) {
        for (int i = 0; i < d->n; i++)
            if (d->operands[i]->kind == QN_DIM_CONST)
                out->coefficient = d->operands[i]->value;
            else
                out->factors[out->n++] = d->operands[i];
    } else {
        out->factors[out->n++] = d;
    }
}

static void sum_of(qn_dim d, sum *out)
{
    const int n = d->kind == QN_DIM_ADD ? d->n : 1;
    out->n = 0;
    out->failed = false;
    for (int i = 0; i < n; i++) {
        product p;
        product_of(d->kind == QN_DIM_ADD ? d->operands[i] : d, &p);
        sum_add_product(out, &p);
    }
}

/* out = a * b; false when it overflows or has too many factors */
static bool multiply(const product *a, const product *b, product *out)
{
    if (a->n + b->n > MAX_FACTORS ||
        __builtin_mul_overflow(a->coefficient, b->coefficient, &out->coefficient))
        return false;
    int i = 0, k = 0;
    out->n = 0;
    while (i < a->n || k < b->n) {
        const bool from_a = k == b->n || (i < a->n && qn_dim_compare(a->factors[i], b->factors[k]) <= 0);
        out->factors[out->n++] = from_a ? a->factors[i++] : b->factors[k++];
    }
    return true;
}

/* out = a / b when that is exact */
static bool divide(const product *a, const product *b, product *out)
{
    if (b->coefficient == 0 || a->coefficient == INT64_MIN || a->coefficient % b->coefficient != 0)
        return false;
    out->coefficient = a->coefficient / b->coefficient;
    out->n = 0;
    int k = 0;
    for (int i = 0; i < a->n; i++)
        if (k < b->n && a->factors[i] == b->factors[k])
            k++;
        else
            out->factors[out->n++] = a->factors[i];
    return k == b->n;
}

/* Terms of a sum: by factors, the longer of two that begin alike first, the constant last: n*n + n + 1. */
static int compare_products(const void *left, const void *right)
{
    const product *a = left, *b = right;
    for (int i = 0; i < a->n && i < b->n; i++) {
        const int c = qn_dim_compare(a->factors[i], b->factors[i]);
        if (c)
            return c;
    }
    return b->n - a->n;
}

static qn_dim build_product(qn_dims *dims, const product *p)
{
    if (p->n == 0 || p->coefficient == 0)
        return qn_dim_const(dims, p->coefficient);
    if (p->n == 1 && p->coefficient == 1)
        return p->factors[0];
    qn_dim operands[MAX_FACTORS + 1];
    int n = 0;
    if (p->coefficient != 1)
        operands[n++] = qn_dim_const(dims, p->coefficient);
    memcpy(operands + n, p->factors, (size_t)p->n * sizeof *operands);
    return qn_dim_intern(dims, QN_DIM_MUL, n + p->n, operands);
}

static qn_dim build_sorted(qn_dims *dims, const sum *s)
{
    if (s->failed)
        return qn_dim_const(dims, INT64_MAX);
    if (s->n == 0)
        return qn_dim_const(dims, 0);
    qn_dim operands[MAX_TERMS];
    for (int i = 0; i < s->n; i++) {
        operands[i] = build_product(dims, &s->terms[i]);
        if (qn_dim_is_saturated(operands[i]))
            return operands[i];
    }
    return s->n == 1 ? operands[0] : qn_dim_intern(dims, QN_DIM_ADD, s->n, operands);
}

static qn_dim build(qn_dims *dims, sum *s)
{
    qsort(s->terms, (size_t)s->n, sizeof *s->terms, compare_products);
    return build_sorted(dims, s);
}

static int terms_of(const qn_dim *d, const qn_dim **out)
{
    *out = (*d)->kind == QN_DIM_ADD ? (*d)->operands : d;
    return (*d)->kind == QN_DIM_ADD ? (*d)->n : 1;
}

/* out = a + factor * b, sorted as their terms are: long sums are compared by the thousand */
static void merge(qn_dim a, qn_dim b, int64_t factor, sum *out)
{
    const qn_dim *left, *right;
    const int n = terms_of(&a, &left), m = terms_of(&b, &right);
    out->n = 0;
    out->failed = false;
    product x, y;
    for (int i = 0, k = 0; i < n || k < m;) {
        if (i < n)
            product_of(left[i], &x);
        if (k < m) {
            product_of(right[k], &y);
            out->failed |= __builtin_mul_overflow(y.coefficient, factor, &y.coefficient);
        }
        const int order = i == n ? 1 : k == m ? -1 : compare_products(&x, &y);
        product *const next = order > 0 ? &y : &x;
        if (order == 0)
            out->failed |= __builtin_add_overflow(x.coefficient, y.coefficient, &x.coefficient);
        i += order <= 0;
        k += order >= 0;
        if (next->coefficient == 0)
            continue;
        if (out->n == MAX_TERMS) {
            out->failed = true;
            return;
        }
        out->terms[out->n++] = *next;
    }
}

/* a + factor * b */
static qn_dim add_scaled(qn_dims *dims, qn_dim a, qn_dim b, int64_t factor)
{
    if (qn_dim_is_saturated(a))
        return a;
    if (b->kind == QN_DIM_CONST) {
        const int64_t value = qn_mul_saturated(b->value, factor);
        if (value == 0)
            return a;
        if (value == INT64_MAX || value == INT64_MIN)
            return qn_dim_const(dims, value);
        if (a->kind == QN_DIM_CONST)
            return qn_dim_const(dims, qn_add_saturated(a->value, value));
    }
    sum s;
    merge(a, b, factor, &s);
    return build_sorted(dims, &s);
}

qn_dim qn_dim_add(qn_dims *dims, qn_dim a, qn_dim b)
{
    return qn_dim_is(a, 0) ? b : add_scaled(dims, a, b, 1);
}

qn_dim qn_dim_sub(qn_dims *dims, qn_dim a, qn_dim b)
{
    return add_scaled(dims, a, b, -1);
}

qn_dim qn_dim_mul(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (qn_dim_is(a, 0) || qn_dim_is(b, 1))
        return a;
    if (qn_dim_is(b, 0) || qn_dim_is(a, 1))
        return b;
    if (qn_dim_is_saturated(a) || qn_dim_is_saturated(b)) {
        const qn_dim limit = qn_dim_is_saturated(a) ? a : b, other = qn_dim_is_saturated(a) ? b : a;
        return qn_dim_const(dims, (limit->value > 0) == (other->max >= 0) ? INT64_MAX : INT64_MIN);
    }
    if (a->kind == QN_DIM_CONST && b->kind == QN_DIM_CONST)
        return qn_dim_const(dims, qn_mul_saturated(a->value, b->value));
    sum x, y, all;
    all.n = 0;
    all.failed = false;
    sum_of(a, &x);
    sum_of(b, &y);
    for (int i = 0; i < x.n && !all.failed; i++)
        for (int k = 0; k < y.n && !all.failed; k++) {
            product p;
            if (multiply(&x.terms[i], &y.terms[k], &p))
                sum_add_product(&all, &p);
            else
                all.failed = true;
        }
    return build(dims, &all);
}

/* ---- division ---- */

/* The largest product that divides all terms of both sums; of their coefficients only when `coefficients`. */
static product common_factor(const sum *a, const sum *b)
{
    product g = a->n ? a->terms[0] : b->terms[0];
    uint64_t coefficient = 0;
    for (int side = 0; side < 2; side++) {
        const sum *s = side ? b : a;
        for (int i = 0; i < s->n; i++) {
            const product *t = &s->terms[i];
            coefficient = qn_gcd(coefficient, qn_magnitude(t->coefficient));
            int n = 0, k = 0;
            for (int f = 0; f < g.n; f++) { /* both sorted, but k may have to skip: search onwards */
                int at = k;
                while (at < t->n && t->factors[at] != g.factors[f])
                    at++;
                if (at < t->n) {
                    g.factors[n++] = g.factors[f];
                    k = at + 1;
                }
            }
            g.n = n;
        }
    }
    g.coefficient = coefficient == 0 || coefficient > INT64_MAX ? 1 : (int64_t)coefficient;
    return g;
}

static void sum_divide(sum *s, const product *by)
{
    for (int i = 0; i < s->n; i++) {
        product q;
        const bool exact = divide(&s->terms[i], by, &q);
        QN_ASSERT(exact, "the common factor of a sum doesn't divide it");
        s->terms[i] = q;
    }
}

/* Moves the terms of `a` that `by` divides to `out_quotient`, divided. */
static void take_multiples(sum *a, const product *by, sum *out_quotient)
{
    out_quotient->n = 0;
    out_quotient->failed = false;
    for (int i = 0; i < a->n;) {
        product q;
        if (divide(&a->terms[i], by, &q)) {
            sum_add_product(out_quotient, &q);
            a->terms[i] = a->terms[--a->n];
        } else {
            i++;
        }
    }
}

/* Polynomial division by a sum of several terms; true when nothing is left over: 2*n + 2 by n + 1. */
static bool divide_exactly(sum *a, sum *b, sum *out_quotient)
{
    out_quotient->n = 0;
    out_quotient->failed = false;
    qsort(b->terms, (size_t)b->n, sizeof *b->terms, compare_products);
    for (int step = 0; a->n > 0; step++) {
        qsort(a->terms, (size_t)a->n, sizeof *a->terms, compare_products);
        product q;
        if (step == MAX_TERMS || !divide(&a->terms[0], &b->terms[0], &q))
            return false;
        sum_add_product(out_quotient, &q);
        for (int i = 0; i < b->n; i++) {
            product p;
            if (!multiply(&q, &b->terms[i], &p) || p.coefficient == INT64_MIN)
                return false;
            p.coefficient = -p.coefficient;
            sum_add_product(a, &p);
        }
        if (a->failed || out_quotient->failed)
            return false;
    }
    return true;
}

qn_dim qn_dim_not_negative(qn_dims *dims, qn_dim d)
{
    if (d->min >= 0)
        return d;
    sum s;
    sum_of(d, &s);
    product g = common_factor(&s, &s);
    int n = 0;
    for (int i = 0; i < g.n; i++)
        if (g.factors[i]->min >= 0)
            g.factors[n++] = g.factors[i];
    g.n = n;
    bool divides = !s.failed;
    for (int i = 0; i < s.n; i++)
        divides &= s.terms[i].coefficient != INT64_MIN;
    const qn_dim zero = qn_dim_const(dims, 0);
    if (!divides)
        return qn_dim_max(dims, d, zero);
    sum_divide(&s, &g);
    return qn_dim_mul(dims, build_product(dims, &g), qn_dim_max(dims, build(dims, &s), zero));
}

/* The constant term, taken out of the sum. */
static int64_t take_constant(sum *s)
{
    for (int i = 0; i < s->n; i++)
        if (s->terms[i].n == 0) {
            const int64_t value = s->terms[i].coefficient;
            s->terms[i] = s->terms[--s->n];
            return value;
        }
    return 0;
}

static qn_dim add_const(qn_dims *dims, qn_dim a, int64_t value)
{
    return value == 0 ? a : qn_dim_add(dims, a, qn_dim_const(dims, value));
}

/* a / b, b >= 2: multiples of b move out, then what the rest has in common with b cancels, since
 * floor((g*x + c) / (g*b)) = floor((x + floor(c/g)) / b). */
static qn_dim floordiv_const(qn_dims *dims, qn_dim a, int64_t b)
{
    sum rest, quotient;
    sum_of(a, &rest);
    const int64_t c = take_constant(&rest);
    take_multiples(&rest, &(product){ .coefficient = b }, &quotient);
    int64_t inside = qn_mod_floor(c, b);
    const qn_dim outside = add_const(dims, build(dims, &quotient), qn_div_floor(c, b));
    if (rest.n == 0)
        return outside;
    uint64_t g = (uint64_t)b;
    for (int i = 0; i < rest.n; i++)
        g = qn_gcd(g, qn_magnitude(rest.terms[i].coefficient));
    sum_divide(&rest, &(product){ .coefficient = (int64_t)g });
    inside = qn_div_floor(inside, (int64_t)g);
    b /= (int64_t)g;
    qn_dim x = build(dims, &rest);
    /* floor((floor(y/d) + c) / b) = floor((y + c*d) / (d*b)) */
    int64_t d, bd, cd;
    if (x->kind == QN_DIM_FLOORDIV && qn_dim_is_const(x->operands[1])) {
        d = x->operands[1]->value;
        if (!__builtin_mul_overflow(b, d, &bd) && !__builtin_mul_overflow(inside, d, &cd))
            return qn_dim_add(dims, outside, floordiv_const(dims, add_const(dims, x->operands[0], cd), bd));
    }
    x = add_const(dims, x, inside);
    if (qn_dim_is_saturated(x))
        return x;
    const int64_t low = qn_div_floor(x->min, b), high = qn_div_floor(x->max, b);
    if (low == high)
        return add_const(dims, outside, low);
    return qn_dim_add(dims, outside,
                      qn_dim_intern(dims, QN_DIM_FLOORDIV, 2, (qn_dim[]){ x, qn_dim_const(dims, b) }));
}

/* b no constant. Cancelling takes it for non-zero. */
static qn_dim floordiv_symbolic(qn_dims *dims, qn_dim a, qn_dim b)
{
    sum rest, by, quotient;
    sum_of(b, &by);
    sum_of(a, &rest);
    if (by.n > 1) {
        if (divide_exactly(&rest, &by, &quotient))
            return build(dims, &quotient);
        sum_of(a, &rest); /* it was used up */
        quotient.n = 0;
        quotient.failed = false;
    } else {
        take_multiples(&rest, &by.terms[0], &quotient);
        if (rest.n == 0)
            return build(dims, &quotient);
    }
    const product g = common_factor(&rest, &by);
    if (g.n > 0 || g.coefficient > 1) {
        sum_divide(&rest, &g);
        sum_divide(&by, &g);
        const qn_dim part = qn_dim_floordiv(dims, build(dims, &rest), build(dims, &by));
        return qn_dim_add(dims, build(dims, &quotient), part);
    }
    const qn_dim x = build(dims, &rest);
    if (x->min >= 0 && b->min >= 1 && x->max < b->min)
        return build(dims, &quotient);
    return qn_dim_add(dims, build(dims, &quotient),
                      qn_dim_intern(dims, QN_DIM_FLOORDIV, 2, (qn_dim[]){ x, b }));
}

qn_dim qn_dim_floordiv(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (qn_dim_is(a, 0) || qn_dim_is(b, 0))
        return qn_dim_const(dims, 0);
    if (qn_dim_is_saturated(a) || qn_dim_is(b, 1))
        return a;
    if (b->kind != QN_DIM_CONST)
        return floordiv_symbolic(dims, a, b);
    if (a->kind == QN_DIM_CONST)
        return qn_dim_const(dims, qn_div_floor(a->value, b->value));
    if (b->value < 0)
        return qn_dim_floordiv(dims, qn_dim_sub(dims, qn_dim_const(dims, 0), a),
                               qn_dim_const(dims, qn_mul_saturated(b->value, -1)));
    return floordiv_const(dims, a, b->value);
}

qn_dim qn_dim_ceildiv(qn_dims *dims, qn_dim a, qn_dim b)
{
    return qn_dim_floordiv(dims, qn_dim_add(dims, a, add_const(dims, b, -1)), b);
}

qn_dim qn_dim_spread(qn_dims *dims, qn_dim n, int64_t step)
{
    if (step == 1)
        return n;
    const qn_dim one = qn_dim_const(dims, 1),
                 from_first = qn_dim_mul(dims, qn_dim_sub(dims, n, one), qn_dim_const(dims, step)),
                 spread = qn_dim_add(dims, from_first, one);
    return n->min < 1 ? qn_dim_max(dims, spread, qn_dim_const(dims, 0)) : spread;
}

qn_dim qn_dim_mod(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (qn_dim_is(a, 0) || qn_dim_is(b, 0) || qn_dim_is(b, 1))
        return qn_dim_const(dims, 0);
    if (qn_dim_is_saturated(a))
        return a;
    if (b->kind == QN_DIM_CONST && a->kind == QN_DIM_CONST)
        return qn_dim_const(dims, qn_mod_floor(a->value, b->value));
    if (b->kind == QN_DIM_CONST && b->value < 0)
        return qn_dim_sub(dims, a, qn_dim_mul(dims, b, qn_dim_floordiv(dims, a, b)));
    sum rest, by;
    sum_of(a, &rest);
    if (b->kind != QN_DIM_CONST) {
        sum ignored;
        sum_of(b, &by);
        if (by.n == 1 ? (take_multiples(&rest, &by.terms[0], &ignored), rest.n == 0)
                      : divide_exactly(&rest, &by, &ignored))
            return qn_dim_const(dims, 0);
        const qn_dim x = by.n == 1 ? build(dims, &rest) : a;
        if (x->min >= 0 && b->min >= 1 && x->max < b->min)
            return x;
        return qn_dim_intern(dims, QN_DIM_MOD, 2, (qn_dim[]){ x, b });
    }
    for (int i = 0; i < rest.n;) {
        rest.terms[i].coefficient = qn_mod_floor(rest.terms[i].coefficient, b->value);
        if (rest.terms[i].coefficient == 0)
            rest.terms[i] = rest.terms[--rest.n];
        else
            i++;
    }
    if (rest.n == 0)
        return qn_dim_const(dims, 0);
    uint64_t g = (uint64_t)b->value;
    for (int i = 0; i < rest.n; i++)
        g = qn_gcd(g, (uint64_t)rest.terms[i].coefficient);
    sum_divide(&rest, &(product){ .coefficient = (int64_t)g });
    const int64_t m = b->value / (int64_t)g;
    const qn_dim x = build(dims, &rest), scale = qn_dim_const(dims, (int64_t)g);
    if (qn_dim_is_saturated(x))
        return x;
    if (qn_div_floor(x->min, m) == qn_div_floor(x->max, m))
        return qn_dim_mul(dims, scale, add_const(dims, x, qn_mul_saturated(-m, qn_div_floor(x->min, m))));
    return qn_dim_mul(dims, scale,
                      qn_dim_intern(dims, QN_DIM_MOD, 2, (qn_dim[]){ x, qn_dim_const(dims, m) }));
}
