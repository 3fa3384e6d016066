/* Polynomials over atoms: normal form and arithmetic. */
#include "ir/kernel_poly.h"

#include <string.h>

/* The constant sorts last; otherwise the newest atoms decide, so that what changes in inner loops comes late. */
static int compare_terms(const qn_term *a, const qn_term *b)
{
    if (a->n == 0 || b->n == 0)
        return (a->n == 0) - (b->n == 0);
    int n = a->n < b->n ? a->n : b->n;
    for (int i = 1; i <= n; i++) {
        int x = a->atoms[a->n - i]->serial, y = b->atoms[b->n - i]->serial;
        if (x != y)
            return x < y ? -1 : 1;
    }
    return a->n - b->n;
}

void qn_poly_constant(qn_poly *out, int64_t value)
{
    out->n = value != 0;
    out->terms[0].factor = value;
    out->terms[0].n = 0;
}

void qn_poly_atom(qn_poly *out, const qn_kvalue *v)
{
    out->n = 1;
    out->terms[0].factor = 1;
    out->terms[0].n = 1;
    out->terms[0].atoms[0] = v;
}

void qn_poly_term(qn_poly *out, const qn_term *t)
{
    out->n = 1;
    out->terms[0] = *t;
}

void qn_poly_copy(qn_poly *to, const qn_poly *from)
{
    to->n = from->n;
    memcpy(to->terms, from->terms, (size_t)from->n * sizeof *from->terms);
}

bool qn_poly_add(qn_poly *out, const qn_poly *a, const qn_poly *b, int64_t b_factor)
{
    qn_poly sum;
    sum.n = 0;
    for (int i = 0, j = 0; i < a->n || j < b->n;) {
        int order = i == a->n ? 1 : j == b->n ? -1 : compare_terms(&a->terms[i], &b->terms[j]);
        const qn_term *from = order <= 0 ? &a->terms[i] : &b->terms[j];
        int64_t factor = order <= 0 ? a->terms[i].factor : 0, other = 0;
        if (order >= 0 && __builtin_mul_overflow(b->terms[j].factor, b_factor, &other))
            return false;
        if (__builtin_add_overflow(factor, other, &factor))
            return false;
        i += order <= 0;
        j += order >= 0;
        if (factor == 0)
            continue;
        if (sum.n == QN_POLY_TERMS)
            return false;
        sum.terms[sum.n] = *from;
        sum.terms[sum.n++].factor = factor;
    }
    qn_poly_copy(out, &sum);
    return true;
}

static bool multiply_terms(const qn_term *a, const qn_term *b, qn_term *out)
{
    qn_term product;
    if (a->n + b->n > QN_POLY_ATOMS || __builtin_mul_overflow(a->factor, b->factor, &product.factor))
        return false;
    product.n = 0;
    for (int i = 0, j = 0; i < a->n || j < b->n;) {
        bool left = j == b->n || (i < a->n && a->atoms[i]->serial <= b->atoms[j]->serial);
        product.atoms[product.n++] = left ? a->atoms[i++] : b->atoms[j++];
    }
    *out = product;
    return true;
}

/* Products of different terms with the same one are different, and mostly in the same order. */
bool qn_poly_mul_term(qn_poly *out, const qn_poly *a, const qn_term *t)
{
    qn_poly product;
    for (product.n = 0; product.n < a->n; product.n++) {
        qn_term one;
        int at = product.n;
        if (!multiply_terms(&a->terms[product.n], t, &one))
            return false;
        for (; at > 0 && compare_terms(&product.terms[at - 1], &one) > 0; at--)
            product.terms[at] = product.terms[at - 1];
        product.terms[at] = one;
    }
    qn_poly_copy(out, &product);
    return true;
}

bool qn_poly_mul(qn_poly *out, const qn_poly *a, const qn_poly *b)
{
    qn_poly sum, part;
    if (b->n == 1)
        return qn_poly_mul_term(out, a, &b->terms[0]);
    sum.n = 0;
    for (int i = 0; i < b->n; i++)
        if (!qn_poly_mul_term(&part, a, &b->terms[i]) || !qn_poly_add(&sum, &sum, &part, 1))
            return false;
    qn_poly_copy(out, &sum);
    return true;
}

void qn_poly_of(const qn_kvalue *v, qn_poly *out)
{
    const qn_kinst *inst = v->inst;
    if (qn_k_is_const(v)) {
        qn_poly_constant(out, inst->imm.i);
        return;
    }
    bool linear = inst && inst->op == QN_K_BINARY && inst->index_math &&
                  (inst->fn == QN_OP_ADD || inst->fn == QN_OP_SUB || inst->fn == QN_OP_MUL);
    if (linear) {
        qn_poly x, y;
        qn_poly_of(inst->operands[0], &x);
        qn_poly_of(inst->operands[1], &y);
        if (inst->fn == QN_OP_MUL ? qn_poly_mul(out, &x, &y)
                                  : qn_poly_add(out, &x, &y, inst->fn == QN_OP_SUB ? -1 : 1))
            return;
    }
    qn_poly_atom(out, v);
}

bool qn_poly_equal(const qn_poly *a, const qn_poly *b)
{
    if (a->n != b->n)
        return false;
    for (int i = 0; i < a->n; i++)
        if (a->terms[i].factor != b->terms[i].factor || compare_terms(&a->terms[i], &b->terms[i]))
            return false;
    return true;
}

bool qn_poly_is_const(const qn_poly *p, int64_t *out)
{
    if (p->n > 1 || (p->n == 1 && p->terms[0].n > 0))
        return false;
    *out = p->n ? p->terms[0].factor : 0;
    return true;
}

bool qn_term_is_one(const qn_term *t)
{
    return t->n == 0 && t->factor == 1;
}

bool qn_term_divide(const qn_term *t, const qn_term *d, qn_term *out_quotient)
{
    if (d->factor == 0 || (d->factor == -1 && t->factor == INT64_MIN) || t->factor % d->factor)
        return false;
    qn_term quotient = { .factor = t->factor / d->factor };
    int j = 0;
    for (int i = 0; i < t->n; i++) {
        if (j < d->n && d->atoms[j] == t->atoms[i])
            j++;
        else
            quotient.atoms[quotient.n++] = t->atoms[i];
    }
    if (j < d->n)
        return false;
    *out_quotient = quotient;
    return true;
}

void qn_term_gcd(const qn_term *a, const qn_term *b, qn_term *out)
{
    uint64_t x = a->factor < 0 ? 0 - (uint64_t)a->factor : (uint64_t)a->factor;
    uint64_t y = b->factor < 0 ? 0 - (uint64_t)b->factor : (uint64_t)b->factor;
    while (y) {
        uint64_t rest = x % y;
        x = y;
        y = rest;
    }
    qn_term common = { .factor = x > INT64_MAX ? 1 : (int64_t)x };
    for (int i = 0, j = 0; i < a->n && j < b->n;) {
        if (a->atoms[i] == b->atoms[j]) {
            common.atoms[common.n++] = a->atoms[i];
            i++;
            j++;
        } else if (a->atoms[i]->serial < b->atoms[j]->serial) {
            i++;
        } else {
            j++;
        }
    }
    *out = common;
}
