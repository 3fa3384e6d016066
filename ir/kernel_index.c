/* Index arithmetic of the builder: every result is put together anew from its polynomial (kernel_poly.h), terms in
 * canonical order, so that equal sums become equal instructions. A table remembers what was made; what is visible from
 * the cursor is used again.
 *
 * Division splits x = q*d + r: terms divisible by d go to q, and where 0 <= r < d is proven nothing is left to divide:
 *   (i*n + j) / n = i         (i*n + j) % n = j          for 0 <= j < n
 *   (i*4 + j) / 8 = i / 2     (i*4 + j) % 8 = i % 2 * 4 + j   for 0 <= j < 4
 *   (x / a) / b = x / (a*b)   x / n * n + x % n = x */
#include "ir/kernel_poly.h"

/* ---- the table of what was made: chains, twice as many when there are more entries than chains ---- */

typedef struct entry {
    qn_kop op;
    qn_op fn;
    bool index_math;
    uint32_t hash;
    const qn_kvalue *x, *y;
    int64_t imm;
    qn_kvalue *value; /* the newest with this key */
    struct entry *next;
} entry;

enum { FIRST_SIZE = 256 };
typedef struct table {
    uint32_t size, n;
    entry **chains;
} table;

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

static void grow(qn_kernel *k, table *t)
{
    const uint32_t size = t->size ? 2 * t->size : FIRST_SIZE;
    entry **chains = QN_NEW_ARRAY(k->arena, entry *, size);
    for (uint32_t i = 0; i < t->size; i++)
        for (entry *e = t->chains[i], *next; e; e = next) {
            entry **chain = &chains[e->hash % size];
            next = e->next;
            e->next = *chain;
            *chain = e;
        }
    t->size = size;
    t->chains = chains;
}

static entry *find(qn_kernel *k, entry key)
{
    if (!k->index_table)
        k->index_table = QN_NEW(k->arena, table);
    table *t = k->index_table;
    if (t->n == t->size)
        grow(k, t);
    uint64_t h = mix(mix(key.op, key.fn * 2u + key.index_math), (uint64_t)key.imm);
    h = mix(mix(h, key.x ? (uint64_t)key.x->serial : 0), key.y ? (uint64_t)key.y->serial : 0);
    key.hash = (uint32_t)h;
    entry **chain = &t->chains[key.hash % t->size];
    for (entry *e = *chain; e; e = e->next)
        if (e->hash == key.hash && e->op == key.op && e->fn == key.fn && e->index_math == key.index_math &&
            e->x == key.x && e->y == key.y && e->imm == key.imm)
            return e;
    entry *made = QN_NEW(k->arena, entry);
    *made = key;
    made->next = *chain;
    *chain = made;
    t->n++;
    return made;
}

/* The builder appends at the end of open blocks, so whatever is in an enclosing block comes before the cursor. */
static bool visible(const qn_kbuilder *b, const qn_kvalue *v)
{
    return v && v->inst->parent && qn_kblock_inside(b->block, v->inst->parent);
}

qn_kvalue *qn_kb_index(qn_kbuilder *b, int64_t value)
{
    entry *e = find(b->kernel, (entry){ .op = QN_K_CONST, .imm = value });
    if (!visible(b, e->value))
        e->value = qn_kb_const(b, qn_ktype_make(QUERN_I64, 1), (qn_scalar){ .i = value });
    return e->value;
}

static qn_kvalue *make(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y)
{
    bool index_math = fn != QN_OP_MIN && fn != QN_OP_MAX;
    entry *e =
        find(b->kernel, (entry){ .op = QN_K_BINARY, .fn = fn, .index_math = index_math, .x = x, .y = y });
    if (visible(b, e->value))
        return e->value;
    e->value = qn_kb_emit(b, QN_K_BINARY, 2, (qn_kvalue *[]){ x, y }, x->type);
    e->value->inst->fn = fn;
    e->value->inst->index_math = index_math;
    qn_kinst_bound(b->kernel, e->value->inst);
    return e->value;
}

/* ---- polynomials to instructions ---- */

static qn_kvalue *emit_product(qn_kbuilder *b, const qn_term *t, int64_t factor)
{
    if (t->n == 0)
        return qn_kb_index(b, factor);
    qn_kvalue *product = (qn_kvalue *)t->atoms[0];
    for (int i = 1; i < t->n; i++)
        product = make(b, QN_OP_MUL, product, (qn_kvalue *)t->atoms[i]);
    return factor == 1 ? product : make(b, QN_OP_MUL, product, qn_kb_index(b, factor));
}

static qn_kvalue *emit(qn_kbuilder *b, const qn_poly *p)
{
    qn_kvalue *sum = NULL;
    for (int i = 0; i < p->n; i++) {
        const qn_term *t = &p->terms[i];
        bool subtract = sum && t->n > 0 && t->factor < 0 && t->factor != INT64_MIN;
        qn_kvalue *part = emit_product(b, t, subtract ? -t->factor : t->factor);
        sum = !sum ? part : make(b, subtract ? QN_OP_SUB : QN_OP_ADD, sum, part);
    }
    return sum ? sum : qn_kb_index(b, 0);
}

static bool is_index_op(const qn_kvalue *v, qn_op fn)
{
    return v->inst && v->inst->op == QN_K_BINARY && v->inst->fn == fn && v->inst->index_math;
}

static void check(const qn_kbuilder *b, const qn_kvalue *x, const qn_kvalue *y)
{
    QN_ASSERT(qn_k_is_index(x) && qn_k_is_index(y), "kernel %s: index arithmetic on other than i64 scalars",
              b->kernel->name);
}

static bool same_poly(const qn_kvalue *a, const qn_kvalue *b)
{
    if (a == b)
        return true;
    qn_poly x, y;
    qn_poly_of(a, &x);
    qn_poly_of(b, &y);
    return qn_poly_equal(&x, &y);
}

static bool remove_term(qn_poly *p, const qn_term *t)
{
    qn_poly one;
    qn_poly_term(&one, t);
    return qn_poly_add(p, p, &one, -1);
}

/* u = rest * e * (x div e), or rest * e * (x div e mod f); what the pair of terms amounts to is added to *sum. */
static bool join_pair(qn_kbuilder *b, qn_poly *sum, const qn_term *rest, const qn_kvalue *mod,
                      const qn_term *u)
{
    qn_poly e, whole;
    qn_poly_of(mod->inst->operands[1], &e);
    if (!qn_poly_mul_term(&e, &e, rest) || e.n != 1)
        return false;
    for (int i = 0; i < u->n; i++) {
        const qn_kvalue *q = u->atoms[i], *outer = NULL;
        if (is_index_op(q, QN_OP_REM)) {
            outer = q;
            q = q->inst->operands[0];
        }
        if (!is_index_op(q, QN_OP_DIV) || !same_poly(q->inst->operands[0], mod->inst->operands[0]) ||
            !same_poly(q->inst->operands[1], mod->inst->operands[1]))
            continue;
        qn_poly_atom(&whole, outer ? outer : q);
        if (!qn_poly_mul_term(&whole, &whole, &e.terms[0]) || whole.n != 1)
            continue;
        qn_poly one;
        qn_poly_term(&one, u);
        if (!qn_poly_equal(&whole, &one))
            continue;
        qn_kvalue *joined = mod->inst->operands[0];
        if (outer)
            joined = qn_kb_imod(b, joined, qn_kb_imul(b, mod->inst->operands[1], outer->inst->operands[1]));
        qn_poly_of(joined, &whole);
        return qn_poly_mul_term(&whole, &whole, rest) && qn_poly_add(sum, sum, &whole, 1);
    }
    return false;
}

static bool join_once(qn_kbuilder *b, qn_poly *p)
{
    for (int i = 0; i < p->n; i++)
        for (int a = 0; a < p->terms[i].n; a++) {
            const qn_kvalue *mod = p->terms[i].atoms[a];
            if (!is_index_op(mod, QN_OP_REM))
                continue;
            qn_term one = { .factor = 1, .n = 1, .atoms = { mod } }, rest;
            if (!qn_term_divide(&p->terms[i], &one, &rest))
                continue;
            for (int j = 0; j < p->n; j++) {
                qn_poly joined;
                qn_poly_copy(&joined, p);
                if (j == i || !remove_term(&joined, &p->terms[i]) || !remove_term(&joined, &p->terms[j]) ||
                    !join_pair(b, &joined, &rest, mod, &p->terms[j]))
                    continue;
                qn_poly_copy(p, &joined);
                return true;
            }
        }
    return false;
}

static qn_kvalue *finish_sum(qn_kbuilder *b, qn_poly *p)
{
    for (int i = 0; i < QN_POLY_TERMS && join_once(b, p); i++)
        ;
    return emit(b, p);
}

qn_kvalue *qn_kb_iadd(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    check(b, x, y);
    qn_poly p, q;
    qn_poly_of(x, &p);
    qn_poly_of(y, &q);
    return qn_poly_add(&p, &p, &q, 1) ? finish_sum(b, &p) : make(b, QN_OP_ADD, x, y);
}

qn_kvalue *qn_kb_isub(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    check(b, x, y);
    qn_poly p, q;
    qn_poly_of(x, &p);
    qn_poly_of(y, &q);
    return qn_poly_add(&p, &p, &q, -1) ? finish_sum(b, &p) : make(b, QN_OP_SUB, x, y);
}

qn_kvalue *qn_kb_imul(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    check(b, x, y);
    qn_poly p, q;
    qn_poly_of(x, &p);
    qn_poly_of(y, &q);
    return qn_poly_mul(&p, &p, &q) ? emit(b, &p) : make(b, QN_OP_MUL, x, y);
}

/* ---- division ---- */

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

/* x = quotient * d + rest: moves whole multiples of d. False: too many terms. */
static bool split_multiples(const qn_poly *x, const qn_poly *d, qn_poly *quotient, qn_poly *rest)
{
    qn_poly_copy(rest, x);
    quotient->n = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < rest->n && !moved; i++) {
            qn_poly one, part, less;
            one.n = 1;
            if (!qn_term_divide(&rest->terms[i], &d->terms[0], &one.terms[0]) ||
                !qn_poly_mul(&part, d, &one) || !qn_poly_add(&less, rest, &part, -1) || less.n >= rest->n)
                continue;
            if (!qn_poly_add(quotient, quotient, &one, 1))
                return false;
            qn_poly_copy(rest, &less);
            moved = true;
        }
    }
    return true;
}

/* Likewise for a constant divisor, taking coefficients apart: 6*i = (1*i)*4 + 2*i. */
static bool split_factors(qn_poly *quotient, qn_poly *rest, int64_t d)
{
    qn_poly old;
    qn_poly_copy(&old, rest);
    rest->n = 0;
    for (int i = 0; i < old.n; i++) {
        qn_poly one;
        qn_poly_term(&one, &old.terms[i]);
        int64_t q = floor_div(old.terms[i].factor, d), r = old.terms[i].factor - q * d;
        one.terms[0].factor = 1;
        if (!qn_poly_add(quotient, quotient, &one, q) || !qn_poly_add(rest, rest, &one, r))
            return false;
    }
    return true;
}

/* rest = g * coarse + fine with 0 <= fine < g, for a g that divides d. */
static bool split_common(const qn_poly *rest, const qn_term *d, qn_term *g, qn_poly *coarse, qn_poly *fine)
{
    for (int i = 0; i < rest->n; i++) {
        if (rest->terms[i].n == 0 && rest->n > 1)
            continue;
        qn_term_gcd(&rest->terms[i], d, g);
        if (qn_term_is_one(g))
            continue;
        qn_poly by;
        qn_poly_term(&by, g);
        if (!split_multiples(rest, &by, coarse, fine))
            continue;
        if (g->n == 0 && !split_factors(coarse, fine, g->factor))
            continue;
        if (qn_poly_inside(fine, &by))
            return true;
    }
    return false;
}

/* For a remainder by d: c * (y mod e) may become c * y where d divides c * e. */
static bool drop_inner_mod(qn_poly *rest, const qn_term *d)
{
    for (int i = 0; i < rest->n; i++)
        for (int a = 0; a < rest->terms[i].n; a++) {
            const qn_kvalue *mod = rest->terms[i].atoms[a];
            qn_term one = { .factor = 1, .n = 1, .atoms = { mod } }, factor, whole;
            qn_poly e, y, result;
            if (!is_index_op(mod, QN_OP_REM) || !qn_term_divide(&rest->terms[i], &one, &factor))
                continue;
            qn_poly_copy(&result, rest);
            qn_poly_of(mod->inst->operands[1], &e);
            if (!qn_poly_mul_term(&e, &e, &factor) || e.n != 1 || !qn_term_divide(&e.terms[0], d, &whole))
                continue;
            qn_poly_of(mod->inst->operands[0], &y);
            if (!qn_poly_mul_term(&y, &y, &factor) || !remove_term(&result, &rest->terms[i]) ||
                !qn_poly_add(&result, &result, &y, 1))
                continue;
            qn_poly_copy(rest, &result);
            return true;
        }
    return false;
}

/* For a remainder by a constant: terms that are multiples of it by what is known of their atoms go. */
static void drop_multiples(qn_poly *rest, int64_t by)
{
    int kept = 0;
    for (int i = 0; i < rest->n; i++) {
        int64_t left = by;
        for (int f = -1; f < rest->terms[i].n; f++) {
            int64_t a = f < 0 ? rest->terms[i].factor : rest->terms[i].atoms[f]->multiple, b = left;
            while (a) {
                int64_t r = b % a;
                b = a;
                a = r;
            }
            left /= b < 0 ? -b : b;
        }
        if (left != 1)
            rest->terms[kept++] = rest->terms[i];
    }
    rest->n = kept;
}

/* What is left when nothing simplifies: one instruction where x >= 0, else floor division spelled out. */
static qn_kvalue *divide_plainly(qn_kbuilder *b, const qn_poly *x, const qn_poly *d, bool want_rest)
{
    qn_op fn = want_rest ? QN_OP_REM : QN_OP_DIV;
    qn_kvalue *dividend = emit(b, x), *divisor = qn_kb_imax(b, emit(b, d), qn_kb_index(b, 1));
    int64_t by = 0;
    bool constant = qn_poly_is_const(d, &by);
    if (qn_poly_nonnegative(x)) {
        if (constant && dividend->max != INT64_MAX && dividend->min / by == dividend->max / by) {
            int64_t q = dividend->min / by;
            return want_rest ? qn_kb_isub(b, dividend, qn_kb_index(b, q * by)) : qn_kb_index(b, q);
        }
        return make(b, fn, dividend, divisor);
    }
    /* shifted by a multiple of the divisor until it cannot be negative */
    if (constant && by < INT32_MAX && dividend->min > -((int64_t)1 << 60)) {
        int64_t turns = floor_div(-dividend->min + by - 1, by);
        qn_kvalue *shifted = qn_kb_iadd(b, dividend, qn_kb_index(b, turns * by));
        qn_kvalue *r = make(b, fn, shifted, divisor);
        return want_rest ? r : qn_kb_isub(b, r, qn_kb_index(b, turns));
    }
    qn_kvalue *zero = qn_kb_index(b, 0);
    qn_kvalue *quotient = qn_kb_binary(b, QN_OP_DIV, dividend, divisor);
    qn_kvalue *rest = qn_kb_binary(b, QN_OP_REM, dividend, divisor);
    qn_kvalue *below = qn_kb_compare(b, QN_LT, rest, zero);
    if (want_rest) {
        qn_kvalue *r = qn_kb_select(b, below, qn_kb_iadd(b, rest, divisor), rest);
        return qn_kb_imin(b, qn_kb_imax(b, r, zero), qn_kb_isub(b, divisor, qn_kb_index(b, 1)));
    }
    return qn_kb_select(b, below, qn_kb_isub(b, quotient, qn_kb_index(b, 1)), quotient);
}

static bool divide(qn_kbuilder *b, const qn_poly *x, const qn_poly *d, bool want_rest, int depth,
                   qn_poly *out)
{
    qn_poly quotient, rest;
    int64_t by = 0;
    bool constant = qn_poly_is_const(d, &by);
    if (d->n == 0 || !split_multiples(x, d, &quotient, &rest))
        return false;
    if (want_rest && constant && by > 0)
        drop_multiples(&rest, by);
    if (qn_poly_inside(&rest, d)) {
        qn_poly_copy(out, want_rest ? &rest : &quotient);
        return true;
    }
    if (constant && by > 0) {
        qn_poly q, r;
        qn_poly_copy(&q, &quotient);
        qn_poly_copy(&r, &rest);
        if (split_factors(&q, &r, by) && qn_poly_inside(&r, d)) {
            qn_poly_copy(out, want_rest ? &r : &q);
            return true;
        }
    }
    qn_term g;
    qn_poly coarse, fine;
    bool reducible = depth > 0 && d->n == 1 && (d->terms[0].n > 0 || by > 0);
    if (reducible && split_common(&rest, &d->terms[0], &g, &coarse, &fine)) {
        qn_poly less, part;
        less.n = 1;
        if (qn_term_divide(&d->terms[0], &g, &less.terms[0]) &&
            divide(b, &coarse, &less, want_rest, depth - 1, &part)) {
            if (!want_rest)
                return qn_poly_add(out, &quotient, &part, 1);
            return qn_poly_mul_term(&part, &part, &g) && qn_poly_add(out, &part, &fine, 1);
        }
    }
    if (want_rest && reducible && drop_inner_mod(&rest, &d->terms[0]))
        return divide(b, &rest, d, want_rest, depth - 1, out);
    const qn_kvalue *only =
        rest.n == 1 && rest.terms[0].factor == 1 && rest.terms[0].n == 1 ? rest.terms[0].atoms[0] : NULL;
    if (!want_rest && reducible && only && is_index_op(only, QN_OP_DIV)) {
        qn_poly inner, product, part;
        qn_poly_of(only->inst->operands[0], &inner);
        qn_poly_of(only->inst->operands[1], &product);
        if (qn_poly_mul(&product, &product, d) && divide(b, &inner, &product, false, depth - 1, &part))
            return qn_poly_add(out, &quotient, &part, 1);
    }
    qn_poly_of(divide_plainly(b, &rest, d, want_rest), out);
    return want_rest || qn_poly_add(out, out, &quotient, 1);
}

static qn_kvalue *divide_values(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, bool want_rest)
{
    check(b, x, y);
    qn_poly p, d, result;
    qn_poly_of(x, &p);
    qn_poly_of(y, &d);
    int64_t by;
    if (qn_poly_is_const(&d, &by) && by < 1)
        qn_poly_constant(&d, 1);
    if (divide(b, &p, &d, want_rest, 4, &result))
        return emit(b, &result);
    qn_poly_atom(&p, x);
    qn_poly_atom(&d, y);
    return divide_plainly(b, &p, &d, want_rest);
}

qn_kvalue *qn_kb_idiv(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    return divide_values(b, x, y, false);
}

qn_kvalue *qn_kb_imod(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    return divide_values(b, x, y, true);
}

/* ---- minimum and maximum ---- */

static qn_kvalue *extreme(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y)
{
    check(b, x, y);
    if (qn_k_proven_le(x, y))
        return fn == QN_OP_MIN ? x : y;
    if (qn_k_proven_le(y, x))
        return fn == QN_OP_MIN ? y : x;
    if (qn_k_is_const(x) || (!qn_k_is_const(y) && x->serial > y->serial)) {
        qn_kvalue *other = x;
        x = y;
        y = other;
    }
    bool nested = x->inst && x->inst->op == QN_K_BINARY && x->inst->fn == fn;
    if (nested && qn_k_is_const(y) && qn_k_is_const(x->inst->operands[1]))
        return extreme(b, fn, x->inst->operands[0], extreme(b, fn, x->inst->operands[1], y));
    return make(b, fn, x, y);
}

qn_kvalue *qn_kb_imin(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    return extreme(b, QN_OP_MIN, x, y);
}

qn_kvalue *qn_kb_imax(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    return extreme(b, QN_OP_MAX, x, y);
}
