/* Proofs about index polynomials: is p >= 0 whatever the counters, parameters and loaded values are?
 *
 * First by numeric bounds of the atoms. Then by symbolic ones, newest atom first: a counter of `for i = a to b` has
 * a <= i <= b - 1 (b - step where b - a is a multiple of step), min(x, y) <= x, x mod d <= d - 1, x - d + 1 <= d * (x div d)
 * <= x. Replacing an atom by a bound that makes p smaller, then proving the smaller one, is a proof for p. Example:
 * is i*n + j <= m*n - 1 for i < m, j < n?  m*n - 1 - i*n - j  >=  m*n - 1 - i*n - (n - 1) = m*n - i*n - n  >=
 * m*n - (m - 1)*n - n = 0. */
#include "ir/kernel_poly.h"

__extension__ typedef __int128 wide;
#define WIDE_LIMIT ((wide)1 << 100) /* finite values stay within it */
#define WIDE_INFINITE ((wide)1 << 120)

typedef struct interval {
    wide low, high; /* -WIDE_INFINITE and WIDE_INFINITE: unbounded */
} interval;

static wide clamp_low(wide v)
{
    return v < -WIDE_LIMIT ? -WIDE_INFINITE : v > WIDE_LIMIT ? WIDE_LIMIT : v;
}

static wide clamp_high(wide v)
{
    return v > WIDE_LIMIT ? WIDE_INFINITE : v < -WIDE_LIMIT ? -WIDE_LIMIT : v;
}

/* Magnitudes up to 2^100 times 2^63: through long double only to see whether it fits; the product itself is exact. */
static wide times(wide a, wide b)
{
    const wide small = (wide)1 << 50;
    if (a > -small && a < small && b > -small && b < small)
        return a * b;
    if (a == 0 || b == 0)
        return 0;
    long double size = (long double)a * (long double)b;
    if (size > 0x1p+110L)
        return WIDE_INFINITE;
    if (size < -0x1p+110L)
        return -WIDE_INFINITE;
    return a * b;
}

static interval atom_interval(const qn_kvalue *v)
{
    interval r = { v->min == INT64_MIN ? -WIDE_INFINITE : v->min,
                   v->max == INT64_MAX ? WIDE_INFINITE : v->max };
    return r;
}

static interval multiply(interval a, interval b)
{
    wide products[4] = { times(a.low, b.low), times(a.low, b.high), times(a.high, b.low),
                         times(a.high, b.high) };
    interval r = { products[0], products[0] };
    for (int i = 1; i < 4; i++) {
        if (products[i] < r.low)
            r.low = products[i];
        if (products[i] > r.high)
            r.high = products[i];
    }
    r.low = clamp_low(r.low);
    r.high = clamp_high(r.high);
    return r;
}

static interval term_interval(const qn_term *t)
{
    interval r = { t->factor, t->factor };
    for (int i = 0; i < t->n; i++)
        r = multiply(r, atom_interval(t->atoms[i]));
    return r;
}

static bool numerically_nonnegative(const qn_poly *p)
{
    wide low = 0;
    for (int i = 0; i < p->n; i++) {
        interval r = term_interval(&p->terms[i]);
        if (r.low <= -WIDE_LIMIT)
            return false;
        low += r.low;
    }
    return low >= 0;
}

/* scale * atom <= limit (upper) or >= limit (lower) */
typedef struct symbolic {
    bool upper;
    qn_term scale;
    qn_poly limit;
} symbolic;

enum { MAX_SYMBOLIC = 3 };

static bool plus_constant(qn_poly *p, int64_t value)
{
    qn_poly c;
    qn_poly_constant(&c, value);
    return qn_poly_add(p, p, &c, 1);
}

static symbolic *add_bound(symbolic *out, int *n, bool upper, const qn_kvalue *limit)
{
    symbolic *s = &out[(*n)++];
    s->upper = upper;
    s->scale = (qn_term){ .factor = 1 };
    qn_poly_of(limit, &s->limit);
    return s;
}

static void counter_bounds(const qn_kvalue *atom, symbolic *out, int *n)
{
    const qn_kinst *loop = atom->block->owner;
    const qn_kvalue *low = loop->operands[0], *high = loop->operands[1], *step = loop->operands[2];
    int64_t back = 1;
    if (qn_k_is_const(step) && low->multiple % step->inst->imm.i == 0 &&
        high->multiple % step->inst->imm.i == 0)
        back = step->inst->imm.i;
    if (!qn_k_is_const(high) && !plus_constant(&add_bound(out, n, true, high)->limit, -back))
        --*n;
    if (!qn_k_is_const(low))
        add_bound(out, n, false, low);
}

static int symbolic_bounds(const qn_kvalue *atom, symbolic *out)
{
    int n = 0;
    if (!atom->inst) {
        if (atom->index == 0 && atom->block->owner->op == QN_K_FOR)
            counter_bounds(atom, out, &n);
        return n;
    }
    if (atom->inst->op != QN_K_BINARY)
        return 0;
    const qn_kvalue *x = atom->inst->operands[0], *y = atom->inst->operands[1];
    switch (atom->inst->fn) {
    case QN_OP_MIN:
    case QN_OP_MAX:
        for (int i = 0; i < 2; i++)
            if (!qn_k_is_const(atom->inst->operands[i]))
                add_bound(out, &n, atom->inst->fn == QN_OP_MIN, atom->inst->operands[i]);
        break;
    case QN_OP_REM:
        if (!atom->inst->index_math)
            break;
        if (!qn_k_is_const(y) && !plus_constant(&add_bound(out, &n, true, y)->limit, -1))
            n--;
        add_bound(out, &n, true, x);
        break;
    case QN_OP_DIV: {
        qn_poly divisor;
        qn_poly_of(y, &divisor);
        if (!atom->inst->index_math || divisor.n != 1)
            break;
        add_bound(out, &n, true, x)->scale = divisor.terms[0];
        symbolic *lower = add_bound(out, &n, false, x);
        lower->scale = divisor.terms[0];
        if (!qn_poly_add(&lower->limit, &lower->limit, &divisor, -1) || !plus_constant(&lower->limit, 1))
            n--;
        break;
    }
    default: break;
    }
    return n;
}

/* p with `bound` put in for `atom` wherever that makes it smaller; false where nothing changes. */
static bool replace_atom(qn_poly *out, const qn_poly *p, const qn_kvalue *atom, const symbolic *bound)
{
    qn_term with = bound->scale;
    bool changed = false;
    qn_poly result, piece, whole;
    qn_poly_copy(&result, p);
    qn_poly_atom(&whole, atom);
    if (!qn_poly_mul_term(&whole, &whole, &with))
        return false;
    with = whole.terms[0];
    for (int i = 0; i < p->n; i++) {
        qn_term rest;
        if (!qn_term_divide(&p->terms[i], &with, &rest))
            continue;
        interval sign = term_interval(&rest);
        if (bound->upper ? sign.high > 0 : sign.low < 0)
            continue;
        qn_poly term;
        qn_poly_term(&term, &p->terms[i]);
        if (!qn_poly_mul_term(&piece, &bound->limit, &rest) || !qn_poly_add(&result, &result, &term, -1) ||
            !qn_poly_add(&result, &result, &piece, 1))
            return false;
        changed = true;
    }
    if (changed)
        qn_poly_copy(out, &result);
    return changed;
}

/* Newest atom of p older than serial `below`; NULL: none. */
static const qn_kvalue *newest_atom(const qn_poly *p, int below)
{
    const qn_kvalue *best = NULL;
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < p->terms[i].n; j++) {
            const qn_kvalue *atom = p->terms[i].atoms[j];
            if (atom->serial < below && (!best || atom->serial > best->serial))
                best = atom;
        }
    return best;
}

static bool prove(const qn_poly *p, int depth, int *budget)
{
    if (numerically_nonnegative(p))
        return true;
    if (depth == 0)
        return false;
    const qn_kvalue *atom = newest_atom(p, INT32_MAX);
    for (; atom; atom = newest_atom(p, atom->serial)) {
        symbolic bounds[MAX_SYMBOLIC];
        int n = symbolic_bounds(atom, bounds);
        for (int i = 0; i < n; i++) {
            qn_poly smaller;
            if (!replace_atom(&smaller, p, atom, &bounds[i]))
                continue;
            if (--*budget < 0)
                return false;
            if (prove(&smaller, depth - 1, budget))
                return true;
        }
    }
    return false;
}

bool qn_poly_nonnegative(const qn_poly *p)
{
    int budget = 40;
    return prove(p, 8, &budget);
}

bool qn_poly_inside(const qn_poly *p, const qn_poly *d)
{
    qn_poly room;
    return qn_poly_nonnegative(p) && qn_poly_add(&room, d, p, -1) && plus_constant(&room, -1) &&
           qn_poly_nonnegative(&room);
}

/* y - x - gap >= 0 */
static bool proven_apart(const qn_kvalue *x, const qn_kvalue *y, int64_t gap)
{
    if (x->max != INT64_MAX && y->min != INT64_MIN && (gap ? x->max < y->min : x->max <= y->min))
        return true;
    if (gap ? x->min >= y->max : x->min > y->max)
        return false; /* never holds */
    qn_poly a, b, room;
    qn_poly_of(x, &a);
    qn_poly_of(y, &b);
    return qn_poly_add(&room, &b, &a, -1) && plus_constant(&room, -gap) && qn_poly_nonnegative(&room);
}

bool qn_k_proven_le(const qn_kvalue *x, const qn_kvalue *y)
{
    return x == y || proven_apart(x, y, 0);
}

bool qn_k_proven_lt(const qn_kvalue *x, const qn_kvalue *y)
{
    return x != y && proven_apart(x, y, 1);
}

bool qn_k_proven_multiple(const qn_kvalue *x, int64_t by)
{
    return by > 0 && x->multiple % by == 0;
}
