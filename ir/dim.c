/* Dimension expressions: the hash-consing table, bounds, the choices min, max and select_one, evaluation.
 * Sums, products and division are in dim_sum.c.
 *
 * The normal form is a sum of products:
 *
 *   add( mul(2, n, m), n, floordiv(n, 3), 7 )        2*m*n + n + floordiv(n, 3) + 7
 *
 * A product has its coefficient first (unless 1), then its factors in order; a sum has its constant last. Factors are
 * "atoms": symbols, floordiv, mod, min, max, select_one. Sums never hide in products: products are multiplied out.
 * The order compares names, never addresses or numbers, so that it is the same in every table. */
#include "ir/dim.h"

#include <stdlib.h>
#include <string.h>

#include "ir/diag.h"
#include "ir/dim_internal.h"

enum { MAX_SIZE = 4096, MAX_CHOICES = 32 };

struct qn_dims {
    qn_arena *arena;
    struct qn_dim_node **buckets;
    size_t n_buckets, n_nodes; /* a power of two */
    qn_vec(struct qn_dim_node *) symbols;
};

/* ---- the table ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static uint64_t hash_name(const char *name)
{
    uint64_t h = QN_DIM_SYMBOL;
    for (; *name; name++)
        h = mix(h, (unsigned char)*name);
    return h;
}

qn_dims *qn_dims_new(qn_arena *arena)
{
    qn_dims *dims = QN_NEW(arena, qn_dims);
    dims->arena = arena;
    dims->n_buckets = 64;
    dims->buckets = QN_NEW_ARRAY(arena, struct qn_dim_node *, dims->n_buckets);
    return dims;
}

static void table_insert(qn_dims *dims, struct qn_dim_node *node)
{
    struct qn_dim_node **bucket = &dims->buckets[node->hash & (dims->n_buckets - 1)];
    node->next = *bucket;
    *bucket = node;
}

static void table_add(qn_dims *dims, struct qn_dim_node *node)
{
    if (++dims->n_nodes > dims->n_buckets) {
        struct qn_dim_node **old = dims->buckets;
        const size_t n = dims->n_buckets;
        dims->n_buckets = 2 * n;
        dims->buckets = QN_NEW_ARRAY(dims->arena, struct qn_dim_node *, dims->n_buckets);
        for (size_t i = 0; i < n; i++)
            for (struct qn_dim_node *d = old[i], *next; d; d = next) {
                next = (struct qn_dim_node *)d->next;
                table_insert(dims, d);
            }
    }
    table_insert(dims, node);
}

/* A term of a sum: coefficient times factors, which are sorted. */
typedef struct term {
    int64_t coefficient;
    int n;
    const qn_dim *factors;
} term;

static term term_of(const qn_dim *d)
{
    const bool product = (*d)->kind == QN_DIM_MUL;
    const qn_dim *factors = product ? (*d)->operands : d;
    const int n = product ? (*d)->n : 1;
    return qn_dim_is_const(factors[0]) ? (term){ factors[0]->value, n - 1, factors + 1 }
                                       : (term){ 1, n, factors };
}

/* The least that t's factors without those of `part` come to; 0: t doesn't have all of these, or one that may be negative. */
static int64_t least_of_rest(const term *t, const term *part)
{
    int64_t least = 1;
    int k = 0;
    for (int i = 0; i < t->n; i++) {
        if (t->factors[i]->min < 0)
            return 0;
        if (k < part->n && t->factors[i] == part->factors[k])
            k++;
        else
            least = qn_mul_saturated(least, t->factors[i]->min);
    }
    return k == part->n ? least : 0;
}

/* What the terms of a sum come to at least, where some outweigh others, of which their factors are multiples: n*h - n is not
 * negative where h is 1 at least. */
static int64_t least_of_sum(const struct qn_dim_node *d)
{
    static const term nothing = { 0, 0, NULL };
    int64_t least = 0, left[QN_DIM_MAX_TERMS];
    if (d->n > QN_DIM_MAX_TERMS)
        return INT64_MIN;
    for (int i = 0; i < d->n; i++)
        left[i] = term_of(&d->operands[i]).coefficient;
    for (int i = 0; i < d->n; i++) {
        const term minus = term_of(&d->operands[i]);
        for (int k = 0; k < d->n && left[i] < 0 && left[i] > INT64_MIN && minus.n > 0; k++) {
            const term plus = term_of(&d->operands[k]);
            const int64_t rest = left[k] > 0 ? least_of_rest(&plus, &minus) : 0;
            if (rest < 1)
                continue;
            const int64_t needed = left[i] / -rest + (left[i] % rest != 0),
                          taken = needed < left[k] ? needed : left[k];
            left[k] -= taken;
            left[i] = needed == taken ? 0 : left[i] + taken * rest;
        }
    }
    for (int i = 0; i < d->n; i++) {
        const term t = term_of(&d->operands[i]);
        const int64_t rest = t.n > 0 && left[i] > 0 ? least_of_rest(&t, &nothing) : 0;
        if (left[i] != t.coefficient && left[i] >= 0)
            least = qn_add_saturated(least, qn_mul_saturated(left[i], rest));
        else
            least = qn_add_saturated(least, d->operands[i]->min);
    }
    return least;
}

static void set_bounds(struct qn_dim_node *d)
{
    const qn_dim a = d->operands[0], b = d->operands[1];
    switch (d->kind) {
    case QN_DIM_ADD:
        d->min = d->max = 0;
        for (int i = 0; i < d->n; i++) {
            d->min = qn_add_saturated(d->min, d->operands[i]->min);
            d->max = qn_add_saturated(d->max, d->operands[i]->max);
        }
        if (d->min < 0 && d->max > 0) {
            const int64_t least = least_of_sum(d);
            d->min = least > d->min ? least : d->min;
        }
        break;
    case QN_DIM_MUL:
        d->min = d->max = 1;
        for (int i = 0; i < d->n; i++) {
            const qn_dim f = d->operands[i];
            const int64_t corners[4] = { qn_mul_saturated(d->min, f->min), qn_mul_saturated(d->min, f->max),
                                         qn_mul_saturated(d->max, f->min), qn_mul_saturated(d->max, f->max) };
            d->min = d->max = corners[0];
            for (int k = 1; k < 4; k++) {
                d->min = corners[k] < d->min ? corners[k] : d->min;
                d->max = corners[k] > d->max ? corners[k] : d->max;
            }
        }
        break;
    case QN_DIM_FLOORDIV: { /* by something positive, or 0, which gives 0 */
        const int64_t low = b->min < 1 ? 1 : b->min, high = b->max < 1 ? 1 : b->max;
        d->min = qn_div_floor(a->min, a->min < 0 ? low : high);
        d->max = qn_div_floor(a->max, a->max < 0 ? high : low);
        if (b->min < 1) {
            d->min = d->min > 0 ? 0 : d->min;
            d->max = d->max < 0 ? 0 : d->max;
        }
        break;
    }
    case QN_DIM_MOD:
        d->min = 0;
        d->max = b->max < 1 ? 0 : b->max - 1;
        if (a->min >= 0 && a->max < d->max)
            d->max = a->max;
        break;
    case QN_DIM_MIN:
        d->min = a->min < b->min ? a->min : b->min;
        d->max = a->max < b->max ? a->max : b->max;
        break;
    case QN_DIM_MAX:
        d->min = a->min > b->min ? a->min : b->min;
        d->max = a->max > b->max ? a->max : b->max;
        break;
    case QN_DIM_SELECT_ONE:
        d->min = a->min < b->min ? a->min : b->min;
        d->max = a->max > b->max ? a->max : b->max;
        break;
    case QN_DIM_CONST:
    case QN_DIM_SYMBOL: break;
    }
}

qn_dim qn_dim_intern(qn_dims *dims, qn_dim_kind kind, int n, const qn_dim *operands)
{
    uint64_t hash = mix((uint64_t)kind, (uint64_t)n);
    int size = 1;
    for (int i = 0; i < n; i++) {
        hash = mix(hash, operands[i]->hash);
        size += operands[i]->size;
    }
    if (size > MAX_SIZE)
        return qn_dim_const(dims, INT64_MAX);
    for (const struct qn_dim_node *d = dims->buckets[hash & (dims->n_buckets - 1)]; d; d = d->next)
        if (d->hash == hash && d->kind == kind && d->n == n &&
            memcmp(d->operands, operands, (size_t)n * sizeof *operands) == 0)
            return d;
    struct qn_dim_node *d = QN_NEW(dims->arena, struct qn_dim_node);
    d->kind = kind;
    d->n = n;
    d->operands = qn_arena_copy(dims->arena, operands, (size_t)n * sizeof *operands);
    d->hash = hash;
    d->size = size;
    set_bounds(d);
    if (d->min == d->max) /* one value, whatever the symbols are */
        return qn_dim_const(dims, d->min);
    table_add(dims, d);
    return d;
}

qn_dim qn_dim_const(qn_dims *dims, int64_t value)
{
    const uint64_t hash = mix(QN_DIM_CONST + 99, (uint64_t)value);
    for (const struct qn_dim_node *d = dims->buckets[hash & (dims->n_buckets - 1)]; d; d = d->next)
        if (d->kind == QN_DIM_CONST && d->value == value)
            return d;
    struct qn_dim_node *d = QN_NEW(dims->arena, struct qn_dim_node);
    d->kind = QN_DIM_CONST;
    d->value = d->min = d->max = value;
    d->hash = hash;
    d->size = 1;
    table_add(dims, d);
    return d;
}

qn_dim qn_dim_find_symbol(const qn_dims *dims, const char *name)
{
    const uint64_t hash = hash_name(name);
    for (const struct qn_dim_node *d = dims->buckets[hash & (dims->n_buckets - 1)]; d; d = d->next)
        if (d->kind == QN_DIM_SYMBOL && d->hash == hash && strcmp(d->name, name) == 0)
            return d;
    return NULL;
}

qn_dim qn_dim_symbol(qn_dims *dims, const char *name, int64_t min, int64_t max)
{
    const qn_dim found = qn_dim_find_symbol(dims, name);
    if (found)
        return found;
    struct qn_dim_node *d = QN_NEW(dims->arena, struct qn_dim_node);
    d->kind = QN_DIM_SYMBOL;
    d->name = qn_arena_strdup(dims->arena, name);
    d->symbol = (int)dims->symbols.n;
    d->hash = hash_name(name);
    d->size = 1;
    d->min = min;
    d->max = max;
    qn_vec_push(dims->arena, &dims->symbols, d);
    table_add(dims, d);
    return d;
}

void qn_dim_set_range(qn_dims *dims, qn_dim symbol, int64_t min, int64_t max)
{
    QN_ASSERT(symbol->kind == QN_DIM_SYMBOL && dims->symbols.items[symbol->symbol] == symbol,
              "the range of something that is no symbol of this table");
    struct qn_dim_node *d = dims->symbols.items[symbol->symbol];
    d->min = min > d->min ? min : d->min;
    d->max = max < d->max ? max : d->max;
}

qn_dim qn_dim_fresh(qn_dims *dims, const char *stem, int64_t min, int64_t max)
{
    const char *name = stem;
    for (int i = 1; qn_dim_find_symbol(dims, name); i++)
        name = qn_arena_printf(dims->arena, "%s_%d", stem, i);
    return qn_dim_symbol(dims, name, min, max);
}

int qn_dims_symbol_count(const qn_dims *dims)
{
    return (int)dims->symbols.n;
}

qn_dim qn_dims_symbol_at(const qn_dims *dims, int symbol)
{
    QN_ASSERT(symbol >= 0 && (size_t)symbol < dims->symbols.n, "no symbol number %d", symbol);
    return dims->symbols.items[symbol];
}

/* ---- the order ---- */

int qn_dim_compare(qn_dim a, qn_dim b)
{
    if (a == b)
        return 0;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if (a->kind == QN_DIM_CONST)
        return a->value < b->value ? -1 : 1;
    if (a->kind == QN_DIM_SYMBOL)
        return strcmp(a->name, b->name);
    for (int i = 0; i < a->n && i < b->n; i++) {
        const int c = qn_dim_compare(a->operands[i], b->operands[i]);
        if (c)
            return c;
    }
    return a->n < b->n ? -1 : a->n > b->n;
}

static int compare_pointers(const void *a, const void *b)
{
    return qn_dim_compare(*(const qn_dim *)a, *(const qn_dim *)b);
}

/* ---- choices ---- */

/* The choices of nested min, max or select_one, sorted, each once; -1 when there are too many. */
static int choices_of(qn_dim_kind kind, qn_dim a, qn_dim b, qn_dim *out)
{
    int n = 0;
    const qn_dim both[2] = { a, b };
    for (int i = 0; i < 2; i++) {
        qn_dim d = both[i];
        for (; d->kind == kind; d = d->operands[1]) {
            if (n == MAX_CHOICES - 2)
                return -1;
            out[n++] = d->operands[0];
        }
        out[n++] = d;
    }
    qsort(out, (size_t)n, sizeof *out, compare_pointers);
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (kept == 0 || out[kept - 1] != out[i])
            out[kept++] = out[i];
    return kept;
}

static qn_dim nest(qn_dims *dims, qn_dim_kind kind, int n, const qn_dim *choices)
{
    qn_dim d = choices[n - 1];
    for (int i = n - 2; i >= 0; i--)
        d = qn_dim_intern(dims, kind, 2, (qn_dim[]){ choices[i], d });
    return d;
}

static qn_dim min_max(qn_dims *dims, qn_dim_kind kind, qn_dim a, qn_dim b)
{
    if (a == b)
        return a;
    if (a->kind == QN_DIM_CONST && b->kind == QN_DIM_CONST)
        return (a->value < b->value) == (kind == QN_DIM_MIN) ? a : b;
    qn_dim choices[MAX_CHOICES];
    const int n = choices_of(kind, a, b, choices);
    if (n < 0)
        return qn_dim_const(dims, INT64_MAX);
    /* Drop what another choice always beats; of two that are always equal, the later. */
    int kept = 0;
    for (int i = 0; i < n; i++) {
        bool beaten = false;
        for (int k = 0; k < n && !beaten; k++) {
            if (k == i)
                continue;
            const qn_dim low = kind == QN_DIM_MIN ? choices[k] : choices[i];
            const qn_dim high = kind == QN_DIM_MIN ? choices[i] : choices[k];
            beaten = qn_dim_at_most(dims, low, high) && (k < i || !qn_dim_at_most(dims, high, low));
        }
        if (!beaten)
            choices[kept++] = choices[i]; /* kept <= i: only what is beaten is overwritten */
    }
    /* What is provable isn't transitive: should all have been beaten in a circle, all stay. */
    return kept > 0 ? nest(dims, kind, kept, choices) : nest(dims, kind, n, choices);
}

qn_dim qn_dim_min(qn_dims *dims, qn_dim a, qn_dim b)
{
    return min_max(dims, QN_DIM_MIN, a, b);
}

qn_dim qn_dim_max(qn_dims *dims, qn_dim a, qn_dim b)
{
    return min_max(dims, QN_DIM_MAX, a, b);
}

/* Is d 1 whenever the symbol is? */
static bool is_one_with(qn_dims *dims, qn_dim symbol, qn_dim d)
{
    if (symbol->kind != QN_DIM_SYMBOL || symbol->min > 1 || d->min > 1)
        return false;
    qn_dim *values = QN_NEW_ARRAY(dims->arena, qn_dim, symbol->symbol + 1);
    values[symbol->symbol] = qn_dim_const(dims, 1);
    return qn_dim_is(qn_dim_substitute(dims, d, values, symbol->symbol + 1), 1);
}

qn_dim qn_dim_select_one(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (a == b || qn_dim_is(b, 1))
        return a;
    if (qn_dim_is(a, 1))
        return b;
    /* They fit where n is 1, or they are equal: select_one(n, min(n, 512)) is n. */
    if (is_one_with(dims, a, b))
        return a;
    if (is_one_with(dims, b, a))
        return b;
    qn_dim choices[MAX_CHOICES];
    const int n = choices_of(QN_DIM_SELECT_ONE, a, b, choices);
    if (n < 0)
        return qn_dim_const(dims, INT64_MAX);
    /* One that cannot be 1 is the extent; constants sort first, so they win. */
    for (int i = 0; i < n; i++)
        if (choices[i]->min > 1 || choices[i]->max < 1)
            return choices[i];
    return nest(dims, QN_DIM_SELECT_ONE, n, choices);
}

/* ---- questions ---- */

bool qn_dim_is_valid_extent(qn_dim d)
{
    return d->min >= 0 && d->max <= QN_DIM_MAX_VALUE;
}

/* Bounds of b - a: of the terms that do not cancel. */
static void difference_bounds(qn_dims *dims, qn_dim a, qn_dim b, int64_t *out_min, int64_t *out_max)
{
    if (qn_dim_is_saturated(a) || qn_dim_is_saturated(b)) { /* as far apart as they look */
        *out_min = qn_add_saturated(b->min, qn_mul_saturated(a->max, -1));
        *out_max = qn_add_saturated(b->max, qn_mul_saturated(a->min, -1));
        return;
    }
    const qn_dim d = qn_dim_sub(dims, b, a);
    *out_min = qn_dim_is_saturated(d) ? INT64_MIN : d->min;
    *out_max = qn_dim_is_saturated(d) ? INT64_MAX : d->max;
}

bool qn_dim_can_be_equal(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (a == b)
        return true;
    if (a->kind == QN_DIM_CONST && b->kind == QN_DIM_CONST)
        return false;
    int64_t min, max;
    difference_bounds(dims, a, b, &min, &max);
    return min <= 0 && max >= 0;
}

/* Is a + b <= c + d + 1? Then a > c and b > d are not both: n <= max(0, 2*n - 1), whatever n is. */
static bool sum_is_at_most(qn_dims *dims, qn_dim a, qn_dim b, qn_dim c, qn_dim d)
{
    const qn_dim left = qn_dim_add(dims, a, b), right = qn_dim_add(dims, c, d);
    const qn_dim difference = qn_dim_sub(dims, right, left);
    return !qn_dim_is_saturated(left) && !qn_dim_is_saturated(right) && !qn_dim_is_saturated(difference) &&
           difference->min >= -1;
}

bool qn_dim_at_most(qn_dims *dims, qn_dim a, qn_dim b)
{
    if (a == b || a->max <= b->min)
        return true;
    if (qn_dim_is_saturated(a) || qn_dim_is_saturated(b)) /* as far apart as they look */
        return false;
    const qn_dim d = qn_dim_sub(dims, b, a);
    if (!qn_dim_is_saturated(d) && d->min >= 0)
        return true;
    /* min(n, 5) <= n: on the left, one choice of a minimum will do and both of a maximum must hold; on the right the
     * other way round. */
    const qn_dim *x = a->operands, *y = b->operands;
    if (a->kind == QN_DIM_MIN && (qn_dim_at_most(dims, x[0], b) || qn_dim_at_most(dims, x[1], b)))
        return true;
    if (a->kind == QN_DIM_MAX && qn_dim_at_most(dims, x[0], b) && qn_dim_at_most(dims, x[1], b))
        return true;
    if (b->kind == QN_DIM_MAX && (qn_dim_at_most(dims, a, y[0]) || qn_dim_at_most(dims, a, y[1])))
        return true;
    if (b->kind == QN_DIM_MIN && qn_dim_at_most(dims, a, y[0]) && qn_dim_at_most(dims, a, y[1]))
        return true;
    return (b->kind == QN_DIM_MAX && sum_is_at_most(dims, a, a, y[0], y[1])) ||
           (a->kind == QN_DIM_MIN && sum_is_at_most(dims, x[0], x[1], b, b));
}

/* A number that divides d whatever the symbols are; 0 for d = 0. */
static uint64_t known_divisor(qn_dim d)
{
    uint64_t g = 0;
    switch (d->kind) {
    case QN_DIM_CONST: return qn_magnitude(d->value);
    case QN_DIM_SYMBOL:
    case QN_DIM_FLOORDIV: return 1;
    case QN_DIM_MUL:
        g = 1;
        for (int i = 0; i < d->n; i++)
            if (__builtin_mul_overflow(g, known_divisor(d->operands[i]), &g))
                return 1;
        return g;
    case QN_DIM_ADD:
    case QN_DIM_MOD:
    case QN_DIM_MIN:
    case QN_DIM_MAX:
    case QN_DIM_SELECT_ONE:
        for (int i = 0; i < d->n; i++)
            g = qn_gcd(g, known_divisor(d->operands[i]));
        return g;
    }
    QN_UNREACHABLE("dim kind %d", (int)d->kind);
}

bool qn_dim_divisible(qn_dim d, int64_t by)
{
    return by != 0 && known_divisor(d) % qn_magnitude(by) == 0;
}

int64_t qn_dim_eval(qn_dim d, const int64_t *symbols)
{
    if (d->kind == QN_DIM_CONST)
        return d->value;
    if (d->kind == QN_DIM_SYMBOL)
        return symbols[d->symbol];
    int64_t v = qn_dim_eval(d->operands[0], symbols);
    for (int i = 1; i < d->n; i++) {
        const int64_t w = qn_dim_eval(d->operands[i], symbols);
        switch (d->kind) {
        case QN_DIM_ADD: v = qn_add_saturated(v, w); break;
        case QN_DIM_MUL: v = qn_mul_saturated(v, w); break;
        case QN_DIM_FLOORDIV: v = qn_div_floor(v, w); break;
        case QN_DIM_MOD: v = qn_mod_floor(v, w); break;
        case QN_DIM_MIN: v = v < w ? v : w; break;
        case QN_DIM_MAX: v = v > w ? v : w; break;
        case QN_DIM_SELECT_ONE: v = v == 1 ? w : v; break;
        case QN_DIM_CONST:
        case QN_DIM_SYMBOL: break;
        }
    }
    return v;
}
