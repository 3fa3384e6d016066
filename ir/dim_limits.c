/* Bounds of an expression by bounds of some of its symbols: what memory has to be there before a run finds their values. */
#include "ir/dim.h"

typedef struct limits {
    qn_dims *dims;
    const qn_dim *most; /* by symbol; NULL: it stays */
    int n;
} limits;

static bool has_limit(const limits *l, qn_dim d)
{
    if (d->kind == QN_DIM_SYMBOL)
        return d->symbol < l->n && l->most[d->symbol];
    for (int i = 0; i < d->n; i++)
        if (has_limit(l, d->operands[i]))
            return true;
    return false;
}

static qn_dim bound(const limits *l, qn_dim d, bool upper);

/* All that is known of it without its symbols. */
static qn_dim range_of(const limits *l, qn_dim d, bool upper)
{
    return qn_dim_const(l->dims, upper ? d->max : d->min);
}

/* Factors that are never negative, behind one that is constant. */
static qn_dim bound_product(const limits *l, qn_dim d, bool upper)
{
    const int first = qn_dim_is_const(d->operands[0]) ? 1 : 0;
    const bool turned = first && d->operands[0]->value < 0;
    const qn_dim zero = qn_dim_const(l->dims, 0);
    qn_dim product = first ? d->operands[0] : qn_dim_const(l->dims, 1);
    for (int i = first; i < d->n; i++) {
        if (d->operands[i]->min < 0)
            return range_of(l, d, upper);
        const qn_dim factor = bound(l, d->operands[i], upper != turned);
        product = qn_dim_mul(l->dims, product, qn_dim_max(l->dims, factor, zero));
    }
    return product;
}

static qn_dim bound_quotient(const limits *l, qn_dim d, bool upper)
{
    const qn_dim a = bound(l, d->operands[0], upper), one = qn_dim_const(l->dims, 1);
    if (qn_dim_is_const(d->operands[1]))
        return qn_dim_floordiv(l->dims, a, d->operands[1]);
    if (d->operands[0]->min < 0)
        return range_of(l, d, upper);
    const qn_dim by = qn_dim_max(l->dims, bound(l, d->operands[1], !upper), one);
    return qn_dim_floordiv(l->dims, qn_dim_max(l->dims, a, qn_dim_const(l->dims, 0)), by);
}

static qn_dim bound_sum(const limits *l, qn_dim d, bool upper)
{
    qn_dim sum = qn_dim_const(l->dims, 0);
    for (int i = 0; i < d->n; i++) {
        const qn_dim term = bound(l, d->operands[i], upper);
        if (qn_dim_is(term, INT64_MAX) || qn_dim_is(term, INT64_MIN))
            return term;
        sum = qn_dim_add(l->dims, sum, term);
    }
    return sum;
}

static qn_dim bound(const limits *l, qn_dim d, bool upper)
{
    if (!has_limit(l, d))
        return d;
    switch (d->kind) {
    case QN_DIM_CONST: break;
    case QN_DIM_SYMBOL: return upper ? l->most[d->symbol] : range_of(l, d, false);
    case QN_DIM_ADD: return bound_sum(l, d, upper);
    case QN_DIM_MUL: return bound_product(l, d, upper);
    case QN_DIM_FLOORDIV: return bound_quotient(l, d, upper);
    case QN_DIM_MOD: return range_of(l, d, upper);
    case QN_DIM_MIN:
    case QN_DIM_MAX: {
        const qn_dim a = bound(l, d->operands[0], upper), b = bound(l, d->operands[1], upper);
        return d->kind == QN_DIM_MIN ? qn_dim_min(l->dims, a, b) : qn_dim_max(l->dims, a, b);
    }
    case QN_DIM_SELECT_ONE: {
        const qn_dim a = bound(l, d->operands[0], upper), b = bound(l, d->operands[1], upper);
        return upper ? qn_dim_max(l->dims, a, b) : qn_dim_min(l->dims, a, b);
    }
    }
    return d;
}

qn_dim qn_dim_most(qn_dims *dims, qn_dim d, const qn_dim *most, int n)
{
    const limits l = { dims, most, n };
    return bound(&l, d, true);
}
