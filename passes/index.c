/* Index expressions: algebra over loop variables, and the map of each movement op. See index.h. */
#include "passes/index.h"

#include <string.h>

/* ---- the space ---- */

void qn_ispace_init(qn_ispace *space, qn_arena *arena)
{
    memset(space, 0, sizeof *space);
    space->arena = arena;
    space->dims = qn_dims_new(arena);
}

/* Symbols that came into the table since the last call belong to the module. */
static void note_symbols(qn_ispace *space)
{
    while ((int)space->var_of_symbol.n < qn_dims_symbol_count(space->dims))
        qn_vec_push(space->arena, &space->var_of_symbol, -1);
}

static qn_dim alias_of(qn_ispace *space, qn_dim meaning)
{
    for (size_t i = 0; i < space->aliases.n; i++)
        if (space->aliases.items[i].meaning == meaning)
            return space->aliases.items[i].symbol;
    const char *name = qn_arena_printf(space->arena, "$%zu", space->aliases.n);
    const qn_alias alias = { qn_dim_symbol(space->dims, name, meaning->min, meaning->max), meaning };
    qn_vec_push(space->arena, &space->aliases, alias);
    return alias.symbol;
}

/* A constant, a symbol, or a sum of products of those. */
static bool is_polynomial(qn_dim d)
{
    if (d->kind != QN_DIM_ADD && d->kind != QN_DIM_MUL)
        return d->kind == QN_DIM_CONST || d->kind == QN_DIM_SYMBOL;
    for (int i = 0; i < d->n; i++)
        if (!is_polynomial(d->operands[i]))
            return false;
    return true;
}

qn_dim qn_ispace_import(qn_ispace *space, qn_dim module_dim)
{
    qn_dim d = qn_dim_import(space->dims, module_dim);
    if (!is_polynomial(d)) {
        if (d->kind == QN_DIM_MUL) {
            qn_dim product = qn_dim_const(space->dims, 1);
            for (int i = 0; i < d->n; i++)
                product = qn_dim_mul(space->dims, product,
                                     is_polynomial(d->operands[i]) ? d->operands[i]
                                                                   : alias_of(space, d->operands[i]));
            d = product;
        } else {
            d = alias_of(space, d);
        }
    }
    note_symbols(space);
    return d;
}

qn_dim qn_ispace_meaning(const qn_ispace *space, qn_dim d)
{
    if (space->aliases.n == 0)
        return d;
    const int n = qn_dims_symbol_count(space->dims);
    qn_dim *values = QN_NEW_ARRAY(space->arena, qn_dim, n);
    for (size_t i = 0; i < space->aliases.n; i++)
        values[space->aliases.items[i].symbol->symbol] = space->aliases.items[i].meaning;
    return qn_dim_substitute(space->dims, d, values, n);
}

void qn_ispace_dims(qn_ispace *space, const qn_type *type, qn_dim *out_dims)
{
    for (int i = 0; i < type->rank; i++)
        out_dims[i] = qn_ispace_import(space, type->dims[i]);
}

qn_dim qn_ispace_var(qn_ispace *space, qn_dim extent, bool data)
{
    if (qn_dim_is(extent, 1))
        return qn_dim_const(space->dims, 0);
    const int64_t max = extent->max > 0 ? extent->max - 1 : 0;
    /* No symbol of a module begins with '#'. */
    const char *name = qn_arena_printf(space->arena, "#%zu", space->vars.n);
    const qn_var var = { .symbol = qn_dim_symbol(space->dims, name, 0, max), .extent = extent, .data = data };
    qn_vec_push(space->arena, &space->vars, var);
    note_symbols(space);
    space->var_of_symbol.items[var.symbol->symbol] = (int)space->vars.n - 1;
    return var.symbol;
}

qn_var *qn_ispace_var_of(const qn_ispace *space, qn_dim symbol)
{
    QN_ASSERT(symbol->kind == QN_DIM_SYMBOL && (size_t)symbol->symbol < space->var_of_symbol.n,
              "an index symbol of another space");
    const int var = space->var_of_symbol.items[symbol->symbol];
    return var < 0 ? NULL : &space->vars.items[var];
}

void qn_ispace_set(const qn_ispace *space, qn_dim var, qn_kvalue *value)
{
    if (var->kind == QN_DIM_SYMBOL)
        qn_ispace_var_of(space, var)->value = value;
}

/* ---- questions ---- */

bool qn_ix_uses(qn_dim a, qn_dim symbol)
{
    if (a == symbol)
        return true;
    for (int i = 0; i < a->n; i++)
        if (qn_ix_uses(a->operands[i], symbol))
            return true;
    return false;
}

bool qn_ix_uses_vars(const qn_ispace *space, qn_dim a)
{
    if (a->kind == QN_DIM_SYMBOL)
        return qn_ispace_var_of(space, a) != NULL;
    for (int i = 0; i < a->n; i++)
        if (qn_ix_uses_vars(space, a->operands[i]))
            return true;
    return false;
}

bool qn_ix_uses_data(const qn_ispace *space, qn_dim a)
{
    for (size_t i = 0; i < space->vars.n; i++)
        if (space->vars.items[i].data && qn_ix_uses(a, space->vars.items[i].symbol))
            return true;
    return false;
}

bool qn_ix_affine(qn_ispace *space, qn_dim a, qn_dim symbol, qn_dim *out_coefficient, qn_dim *out_rest)
{
    const qn_dim zero = qn_dim_const(space->dims, 0);
    qn_dim coefficient = zero, rest = zero;
    const int n = a->kind == QN_DIM_ADD ? a->n : 1;
    for (int i = 0; i < n; i++) {
        const qn_dim term = a->kind == QN_DIM_ADD ? a->operands[i] : a;
        if (!qn_ix_uses(term, symbol)) {
            rest = qn_dim_add(space->dims, rest, term);
            continue;
        }
        qn_dim factor = qn_dim_const(space->dims, 1);
        bool found = term == symbol;
        if (term->kind == QN_DIM_MUL)
            for (int k = 0; k < term->n; k++) {
                if (term->operands[k] == symbol && !found) {
                    found = true;
                    continue;
                }
                if (qn_ix_uses(term->operands[k], symbol))
                    return false;
                factor = qn_dim_mul(space->dims, factor, term->operands[k]);
            }
        if (!found)
            return false;
        coefficient = qn_dim_add(space->dims, coefficient, factor);
    }
    *out_coefficient = coefficient;
    *out_rest = rest;
    return true;
}

/* A remainder or quotient that is a factor of a term of `a` and depends on variables. */
static qn_dim dependent_part(const qn_ispace *space, qn_dim a)
{
    if ((a->kind == QN_DIM_MOD || a->kind == QN_DIM_FLOORDIV) && qn_ix_uses_vars(space, a))
        return a;
    qn_dim found = NULL;
    if (a->kind == QN_DIM_ADD || a->kind == QN_DIM_MUL)
        for (int i = 0; i < a->n && !found; i++)
            found = dependent_part(space, a->operands[i]);
    return found;
}

static qn_dim extreme(qn_ispace *space, qn_dim a, int sign);

/* The greatest value of a part that is never negative, as far as it is known; NULL when it isn't. */
static qn_dim greatest(qn_ispace *space, qn_dim part)
{
    const qn_dim one = qn_dim_const(space->dims, 1);
    if (part->kind == QN_DIM_SYMBOL)
        return qn_dim_sub(space->dims, qn_ispace_var_of(space, part)->extent, one);
    if (part->kind == QN_DIM_MOD)
        return qn_dim_sub(space->dims, part->operands[1], one);
    if (!qn_ix_not_negative(space, part->operands[0]))
        return NULL;
    const qn_dim dividend = extreme(space, part->operands[0], 1);
    return dividend ? qn_dim_floordiv(space->dims, dividend, part->operands[1]) : NULL;
}

/* The least (sign < 0) or greatest value of `a`, as an expression without variables: they, and remainders and quotients of
 * them, are replaced one after the other by 0 or their greatest value, whichever makes it so. NULL when the influence of
 * one isn't known. */
static qn_dim extreme(qn_ispace *space, qn_dim a, int sign)
{
    for (;;) {
        qn_dim part = dependent_part(space, a);
        /* the last variable first: extents never depend on later ones */
        for (size_t i = space->vars.n; i-- > 0 && !part;)
            if (qn_ix_uses(a, space->vars.items[i].symbol))
                part = space->vars.items[i].symbol;
        if (!part)
            return a;
        qn_dim coefficient, rest;
        if (!qn_ix_affine(space, a, part, &coefficient, &rest))
            return NULL;
        if (coefficient->min < 0 && coefficient->max > 0)
            return NULL;
        const bool grows = coefficient->min >= 0;
        a = rest;
        if (grows == (sign > 0)) {
            const qn_dim last = greatest(space, part);
            if (!last)
                return NULL;
            a = qn_dim_add(space->dims, rest, qn_dim_mul(space->dims, coefficient, last));
        }
    }
}

bool qn_ix_not_negative(qn_ispace *space, qn_dim a)
{
    if (a->min >= 0)
        return true;
    const qn_dim least = extreme(space, a, -1);
    return least && least->min >= 0;
}

bool qn_ix_below(qn_ispace *space, qn_dim a, qn_dim b)
{
    if (a->max < b->min)
        return true;
    const qn_dim difference = qn_dim_sub(space->dims, b, a);
    if (difference->min >= 1)
        return true;
    /* Where every extent is at least 1 there is a point at all; elsewhere any claim holds. */
    const qn_dim least = extreme(space, difference, -1);
    if (least && least->min >= 1)
        return true;
    const qn_dim most = space->aliases.n > 0 ? extreme(space, a, 1) : NULL;
    if (most &&
        qn_dim_at_most(space->dims, qn_ispace_meaning(space, most),
                       qn_dim_sub(space->dims, qn_ispace_meaning(space, b), qn_dim_const(space->dims, 1))))
        return true;
    /* x / c < b where x < b*c, x % c < c */
    if (a->kind == QN_DIM_FLOORDIV)
        return qn_ix_below(space, a->operands[0], qn_dim_mul(space->dims, b, a->operands[1]));
    return a->kind == QN_DIM_MOD && a->operands[1] == b;
}

/* ---- arithmetic ---- */

static qn_dim term_of(qn_dim a, int i)
{
    return a->kind == QN_DIM_ADD ? a->operands[i] : a;
}

static int term_count(qn_dim a)
{
    return a->kind == QN_DIM_ADD ? a->n : 1;
}

/* The first factor of that kind in a term; out_rest: the product of the others. */
static qn_dim factor_of_kind(qn_ispace *space, qn_dim term, qn_dim_kind kind, qn_dim *out_rest)
{
    if (term->kind == kind) {
        *out_rest = qn_dim_const(space->dims, 1);
        return term;
    }
    if (term->kind != QN_DIM_MUL)
        return NULL;
    qn_dim found = NULL, rest = qn_dim_const(space->dims, 1);
    for (int i = 0; i < term->n; i++)
        if (!found && term->operands[i]->kind == kind)
            found = term->operands[i];
        else
            rest = qn_dim_mul(space->dims, rest, term->operands[i]);
    *out_rest = rest;
    return found;
}

/* Terms floordiv(x, b) with x proven to be in [0, b) are 0. */
static qn_dim drop_zero_quotients(qn_ispace *space, qn_dim a)
{
    for (int i = 0; i < term_count(a); i++) {
        qn_dim rest;
        const qn_dim q = factor_of_kind(space, term_of(a, i), QN_DIM_FLOORDIV, &rest);
        if (q && qn_ix_not_negative(space, q->operands[0]) &&
            qn_ix_below(space, q->operands[0], q->operands[1])) {
            a = qn_dim_sub(space->dims, a, term_of(a, i));
            i = -1;
        }
    }
    return a;
}

/* a = q*b + r, q being a variable whose coefficient is b but for a number, and r proven to be in [0, b): i*(2*n - 1) + n + j over
 * 2*n is i, and n - i + j, for i and j in [0, n). */
static bool split_off(qn_ispace *space, qn_dim a, qn_dim b, qn_dim *out_q, qn_dim *out_r)
{
    qn_dims *dims = space->dims;
    for (size_t i = 0; i < space->vars.n && !qn_dim_is_const(b); i++) {
        const qn_dim v = space->vars.items[i].symbol;
        qn_dim c, rest;
        if (!qn_ix_uses(a, v) || !qn_ix_affine(space, a, v, &c, &rest))
            continue;
        const qn_dim more = qn_dim_sub(dims, qn_ispace_meaning(space, c), qn_ispace_meaning(space, b));
        if (!qn_dim_is_const(more) || more->value == INT64_MAX)
            continue;
        const qn_dim r = qn_dim_add(dims, rest, qn_dim_mul(dims, v, more));
        if (qn_ix_not_negative(space, r) && qn_ix_below(space, r, b)) {
            *out_q = v;
            *out_r = r;
            return true;
        }
    }
    return false;
}

qn_dim qn_ix_div(qn_ispace *space, qn_dim a, qn_dim b)
{
    const qn_dim quotient = drop_zero_quotients(space, qn_dim_floordiv(space->dims, a, b));
    qn_dim q, r;
    return dependent_part(space, quotient) && split_off(space, a, b, &q, &r) ? q : quotient;
}

qn_dim qn_ix_mod(qn_ispace *space, qn_dim a, qn_dim b)
{
    const qn_dim m = qn_dim_mod(space->dims, a, b);
    qn_dim scale, q, r;
    const qn_dim atom = factor_of_kind(space, m, QN_DIM_MOD, &scale);
    if (atom && qn_ix_not_negative(space, atom->operands[0]) &&
        qn_ix_below(space, atom->operands[0], atom->operands[1]))
        return qn_dim_mul(space->dims, scale, atom->operands[0]);
    return dependent_part(space, m) && split_off(space, a, b, &q, &r) ? r : m;
}

/* c*mod(x, m) + c*m*floordiv(x, m) = c*x, wherever that makes the expression smaller. */
static qn_dim join_quotients(qn_ispace *space, qn_dim a)
{
    qn_dims *dims = space->dims;
    for (int i = 0; i < term_count(a); i++) {
        qn_dim c;
        const qn_dim mod = factor_of_kind(space, term_of(a, i), QN_DIM_MOD, &c);
        if (!mod)
            continue;
        const qn_dim x = mod->operands[0], m = mod->operands[1];
        const qn_dim quotient = qn_dim_mul(dims, qn_dim_mul(dims, c, m), qn_dim_floordiv(dims, x, m));
        const qn_dim joined = qn_dim_add(dims, qn_dim_sub(dims, qn_dim_sub(dims, a, term_of(a, i)), quotient),
                                         qn_dim_mul(dims, c, x));
        if (joined->size < a->size) {
            a = joined;
            i = -1;
        }
    }
    return a;
}

qn_dim qn_ix_linear(qn_ispace *space, int rank, const qn_dim *dims, const qn_dim *index)
{
    qn_dim linear = qn_dim_const(space->dims, 0), stride = qn_dim_const(space->dims, 1);
    for (int i = 0; i < rank; i++)
        if (qn_dim_is(dims[i], 0)) /* there is no element; strides may be beyond numbers */
            return linear;
    for (int i = rank - 1; i >= 0; i--) {
        linear = qn_dim_add(space->dims, linear, qn_dim_mul(space->dims, index[i], stride));
        stride = qn_dim_mul(space->dims, stride, dims[i]);
    }
    linear = join_quotients(space, linear);
    QN_ASSERT(linear->kind != QN_DIM_CONST || linear->value != INT64_MAX, "an index expression is too large");
    return linear;
}

void qn_ix_split(qn_ispace *space, qn_dim linear, int rank, const qn_dim *dims, qn_dim *out_index)
{
    for (int i = rank - 1; i >= 0; i--) {
        bool outermost = true; /* with more than one element */
        for (int k = 0; k < i; k++)
            outermost &= qn_dim_is(dims[k], 1);
        if (qn_dim_is(dims[i], 1)) {
            out_index[i] = qn_dim_const(space->dims, 0);
        } else if (outermost) {
            out_index[i] = linear;
            linear = qn_dim_const(space->dims, 0);
        } else {
            out_index[i] = qn_ix_mod(space, linear, dims[i]);
            linear = qn_ix_div(space, linear, dims[i]);
        }
    }
}

/* Equal axes at both ends stay as they are; what is between goes over the row-major number, in runs of axes with equal
 * products where those are known. */
void qn_ix_reshape(qn_ispace *space, int from_rank, const qn_dim *from_dims, const qn_dim *index, int to_rank,
                   const qn_dim *to_dims, qn_dim *out_index)
{
    int i = 0, j = 0;
    while (i < from_rank || j < to_rank) {
        if (i < from_rank && qn_dim_is(from_dims[i], 1)) {
            i++;
            continue;
        }
        if (j < to_rank && qn_dim_is(to_dims[j], 1)) {
            out_index[j++] = qn_dim_const(space->dims, 0);
            continue;
        }
        if (i == from_rank || j == to_rank) { /* no elements at all, or extents that are 1 only at run time */
            for (; j < to_rank; j++)
                out_index[j] = qn_dim_const(space->dims, 0);
            return;
        }
        /* the shortest runs of axes with equal products */
        int p = i + 1, q = j + 1;
        qn_dim from = from_dims[i], to = to_dims[j];
        while (from != to && (p < from_rank || q < to_rank)) {
            const bool grow_from =
                q == to_rank ||
                (p < from_rank && (qn_dim_is_const(from) && qn_dim_is_const(to) ? from->value < to->value
                                                                                : from->size <= to->size));
            if (grow_from)
                from = qn_dim_mul(space->dims, from, from_dims[p++]);
            else
                to = qn_dim_mul(space->dims, to, to_dims[q++]);
        }
        if (p - i == 1 && q - j == 1)
            out_index[j] = index[i];
        else
            qn_ix_split(space, qn_ix_linear(space, p - i, from_dims + i, index + i), q - j, to_dims + j,
                        out_index + j);
        i = p;
        j = q;
    }
}

/* ---- movement ---- */

bool qn_ix_moves(const qn_node *node)
{
    switch (qn_ops[node->op].class) {
    case QN_ELEMENTWISE:
    case QN_BROADCAST:
    case QN_INJECTIVE: return true;
    default: return false;
    }
}

int qn_ix_data_count(const qn_node *node)
{
    switch (node->op) {
    case QN_OP_DYNAMIC_SLICE: return node->results[0].type.rank;
    case QN_OP_GATHER:
    case QN_OP_GATHER_ELEMENTS: return 1;
    case QN_OP_GATHER_ND: { /* the last dim of the indices, which is a constant */
        const qn_type *type = &node->operands[1]->type;
        return (int)type->dims[type->rank - 1]->value;
    }
    default: return 0;
    }
}

static void broadcast_operand(qn_ispace *space, const qn_node *node, const qn_dim *index, qn_dim *out_index)
{
    const qn_type *from = &node->operands[0]->type, *to = &node->results[0].type;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    for (int i = 0; i < from->rank; i++) {
        const qn_dim extent = qn_ispace_import(space, from->dims[i]);
        if (qn_dim_is(extent, 1))
            out_index[i] = qn_dim_const(space->dims, 0);
        else if (from->dims[i] == to->dims[axes[i]] || extent->min > 1)
            out_index[i] = index[axes[i]];
        else /* repeated where it is 1 at run time: min(index, extent - 1) */
            out_index[i] = qn_dim_min(space->dims, index[axes[i]],
                                      qn_dim_sub(space->dims, extent, qn_dim_const(space->dims, 1)));
    }
}

static void gather_operand(qn_ispace *space, const qn_node *node, int k, const qn_dim *index,
                           const qn_dim *data, qn_dim *out_index)
{
    (void)space;
    const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    const int rank = node->operands[0]->type.rank, n = node->operands[1]->type.rank;
    if (k == 1) {
        memcpy(out_index, index + axis, (size_t)n * sizeof *index);
        return;
    }
    for (int i = 0; i < rank; i++)
        out_index[i] = i < axis ? index[i] : i == axis ? data[0] : index[i - 1 + n];
}

/* indices [batch…, m…, k]: result [batch…, m…, x dims from batch + k]. As an operand, `indices` is read at element 0 of its
 * last axis; the reader moves on from there. */
static void gather_nd_operand(qn_ispace *space, const qn_node *node, int k, const qn_dim *index,
                              const qn_dim *data, qn_dim *out_index)
{
    const int batch = (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS);
    const int rank = node->operands[0]->type.rank, n = node->operands[1]->type.rank;
    const int count = qn_ix_data_count(node);
    if (k == 1) {
        memcpy(out_index, index, (size_t)(n - 1) * sizeof *index);
        out_index[n - 1] = qn_dim_const(space->dims, 0);
        return;
    }
    for (int i = 0; i < rank; i++)
        out_index[i] = i < batch           ? index[i]
                       : i < batch + count ? data[i - batch]
                                           : index[n - 1 + i - batch - count];
}

void qn_ix_operand(qn_ispace *space, const qn_node *node, int k, const qn_dim *index, const qn_dim *data,
                   qn_dim *out_index)
{
    qn_dims *dims = space->dims;
    const qn_type *from = &node->operands[k]->type, *to = &node->results[0].type;
    if (qn_ops[node->op].class == QN_ELEMENTWISE) {
        memcpy(out_index, index, (size_t)to->rank * sizeof *index);
        return;
    }
    switch (node->op) {
    case QN_OP_BROADCAST: broadcast_operand(space, node, index, out_index); return;
    case QN_OP_RESHAPE: {
        qn_dim from_dims[QN_MAX_RANK], to_dims[QN_MAX_RANK];
        qn_ispace_dims(space, from, from_dims);
        qn_ispace_dims(space, to, to_dims);
        qn_ix_reshape(space, to->rank, to_dims, index, from->rank, from_dims, out_index);
        return;
    }
    case QN_OP_TRANSPOSE: {
        const int64_t *perm = qn_attr_ints(node, QN_ATTR_PERM, NULL);
        for (int i = 0; i < to->rank; i++)
            out_index[perm[i]] = index[i];
        return;
    }
    case QN_OP_SLICE: {
        const qn_dim *start = qn_attr_dims(node, QN_ATTR_START, NULL);
        const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
        for (int i = 0; i < to->rank; i++)
            out_index[i] = qn_dim_add(dims, qn_ispace_import(space, start[i]),
                                      qn_dim_mul(dims, index[i], qn_dim_const(dims, stride[i])));
        return;
    }
    case QN_OP_PAD: {
        if (k == 1)
            return; /* a scalar */
        const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
        const int64_t *interior = qn_attr_ints(node, QN_ATTR_INTERIOR, NULL);
        for (int i = 0; i < to->rank; i++)
            out_index[i] = qn_ix_div(space, qn_dim_sub(dims, index[i], qn_ispace_import(space, low[i])),
                                     qn_dim_const(dims, interior[i] + 1));
        return;
    }
    case QN_OP_CONCATENATE: {
        const int64_t axis = qn_attr_int(node, QN_ATTR_AXIS);
        memcpy(out_index, index, (size_t)to->rank * sizeof *index);
        for (int i = 0; i < k; i++)
            out_index[axis] = qn_dim_sub(dims, out_index[axis],
                                         qn_ispace_import(space, node->operands[i]->type.dims[axis]));
        return;
    }
    case QN_OP_REVERSE: {
        int n;
        const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
        memcpy(out_index, index, (size_t)to->rank * sizeof *index);
        for (int i = 0; i < n; i++) {
            const qn_dim last =
                qn_dim_sub(dims, qn_ispace_import(space, to->dims[axes[i]]), qn_dim_const(dims, 1));
            out_index[axes[i]] = qn_dim_sub(dims, last, index[axes[i]]);
        }
        return;
    }
    case QN_OP_DYNAMIC_SLICE:
        if (k == 0)
            for (int i = 0; i < to->rank; i++)
                out_index[i] = qn_dim_add(dims, index[i], data[i]);
        return;
    case QN_OP_GATHER: gather_operand(space, node, k, index, data, out_index); return;
    case QN_OP_GATHER_ND: gather_nd_operand(space, node, k, index, data, out_index); return;
    case QN_OP_GATHER_ELEMENTS:
        memcpy(out_index, index, (size_t)to->rank * sizeof *index);
        if (k == 0)
            out_index[qn_attr_int(node, QN_ATTR_AXIS)] = data[0];
        return;
    default: QN_UNREACHABLE("%s does not move elements", qn_ops[node->op].name);
    }
}
