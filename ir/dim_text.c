/* Dimension expressions as text, and from one table or meaning into another. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ir/diag.h"
#include "ir/dim.h"

static const struct {
    qn_dim_kind kind;
    const char *name;
    qn_dim (*make)(qn_dims *dims, qn_dim a, qn_dim b);
} functions[] = {
    { QN_DIM_ADD, NULL, qn_dim_add },
    { QN_DIM_MUL, NULL, qn_dim_mul },
    { QN_DIM_FLOORDIV, "floordiv", qn_dim_floordiv },
    { QN_DIM_MOD, "mod", qn_dim_mod },
    { QN_DIM_MIN, "min", qn_dim_min },
    { QN_DIM_MAX, "max", qn_dim_max },
    { QN_DIM_SELECT_ONE, "select_one", qn_dim_select_one },
};
enum { N_FUNCTIONS = sizeof functions / sizeof *functions, MAX_DEPTH = 200 };

/* ---- printing ---- */

typedef struct text {
    qn_arena *arena;
    qn_vec(char) bytes;
} text;

static void put_char(text *t, char c)
{
    qn_vec_push(t->arena, &t->bytes, c);
}

static void put(text *t, const char *s)
{
    for (; *s; s++)
        put_char(t, *s);
}

static void put_number(text *t, uint64_t magnitude)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, magnitude);
    put(t, digits);
}

static bool starts_name(char c)
{
    return isalpha((unsigned char)c) || c == '_';
}

static bool continues_name(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '.';
}

static void put_name(text *t, const char *name)
{
    bool plain = starts_name(*name);
    for (const char *c = name; *c; c++)
        plain &= continues_name(*c);
    if (plain) {
        put(t, name);
        return;
    }
    put_char(t, '"');
    for (; *name; name++) {
        if (*name == '"' || *name == '\\')
            put_char(t, '\\');
        put_char(t, *name);
    }
    put_char(t, '"');
}

/* The sign of a term, printed by the sum it is in. */
static bool is_negative(qn_dim d)
{
    return d->kind == QN_DIM_CONST ? d->value < 0 : d->kind == QN_DIM_MUL && is_negative(d->operands[0]);
}

static void put_dim(text *t, qn_dim d);

static void put_magnitude(text *t, qn_dim d)
{
    if (d->kind == QN_DIM_CONST) {
        put_number(t, d->value < 0 ? 0 - (uint64_t)d->value : (uint64_t)d->value);
    } else if (d->kind == QN_DIM_MUL) {
        const int first = qn_dim_is(d->operands[0], -1); /* -n is not -1*n */
        for (int i = first; i < d->n; i++) {
            if (i > first)
                put_char(t, '*');
            put_magnitude(t, d->operands[i]);
        }
    } else {
        put_dim(t, d);
    }
}

static void put_dim(text *t, qn_dim d)
{
    switch (d->kind) {
    case QN_DIM_SYMBOL: put_name(t, d->name); return;
    case QN_DIM_CONST:
    case QN_DIM_MUL:
        if (is_negative(d))
            put_char(t, '-');
        put_magnitude(t, d);
        return;
    case QN_DIM_ADD:
        put_dim(t, d->operands[0]);
        for (int i = 1; i < d->n; i++) {
            put(t, is_negative(d->operands[i]) ? " - " : " + ");
            put_magnitude(t, d->operands[i]);
        }
        return;
    case QN_DIM_FLOORDIV:
    case QN_DIM_MOD:
    case QN_DIM_MIN:
    case QN_DIM_MAX:
    case QN_DIM_SELECT_ONE:
        for (int f = 0; f < N_FUNCTIONS; f++)
            if (functions[f].kind == d->kind)
                put(t, functions[f].name);
        put_char(t, '(');
        put_dim(t, d->operands[0]);
        put(t, ", ");
        put_dim(t, d->operands[1]);
        put_char(t, ')');
        return;
    }
    QN_UNREACHABLE("dim kind %d", (int)d->kind);
}

const char *qn_dim_print(qn_dim d, qn_arena *arena)
{
    if (d->kind == QN_DIM_CONST)
        return qn_arena_printf(arena, "%" PRId64, d->value);
    text t = { .arena = arena };
    put_dim(&t, d);
    put_char(&t, 0);
    return t.bytes.items;
}

/* ---- parsing ----
 *   sum     = term { ("+" | "-") term }
 *   term    = factor { "*" factor }
 *   factor  = "-" factor | number | name | function "(" sum "," sum ")" | "(" sum ")"
 */

typedef struct parser {
    qn_dims *dims;
    qn_arena *arena; /* names, until they are symbols */
    const char *at;
    int depth;
} parser;

static qn_dim parse_sum(parser *p);

static void skip_spaces(parser *p)
{
    while (*p->at == ' ' || *p->at == '\t')
        p->at++;
}

static bool accept(parser *p, char c)
{
    skip_spaces(p);
    if (*p->at != c)
        return false;
    p->at++;
    return true;
}

/* Like accept, but leaves the cursor in front of the spaces when c doesn't follow. */
static bool accept_operator(parser *p, char c)
{
    const char *before = p->at;
    if (accept(p, c))
        return true;
    p->at = before;
    return false;
}

static qn_dim parse_number(parser *p)
{
    int64_t value = 0;
    for (; isdigit((unsigned char)*p->at); p->at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *p->at - '0', &value))
            value = INT64_MAX;
    return qn_dim_const(p->dims, value);
}

static qn_dim make_symbol(parser *p, const char *name)
{
    return qn_dim_symbol(p->dims, name, 0, QN_DIM_MAX_VALUE);
}

static qn_dim parse_quoted(parser *p)
{
    const char *start = p->at, *end = start + 1;
    size_t length = 0;
    while (*end && *end != '"')
        end += *end == '\\' && end[1] ? 2 : 1;
    char *name = qn_arena_alloc(p->arena, (size_t)(end - start));
    for (p->at++; *p->at && *p->at != '"'; p->at++) {
        if (*p->at == '\\' && p->at[1])
            p->at++;
        name[length++] = *p->at;
    }
    if (*p->at != '"' || length == 0) {
        p->at = start;
        return NULL;
    }
    p->at++;
    return make_symbol(p, name);
}

static qn_dim parse_name(parser *p)
{
    const char *start = p->at;
    while (continues_name(*p->at))
        p->at++;
    const size_t length = (size_t)(p->at - start);
    if (*p->at == '(')
        for (int f = 0; f < N_FUNCTIONS; f++) {
            if (!functions[f].name || strlen(functions[f].name) != length ||
                memcmp(functions[f].name, start, length) != 0)
                continue;
            p->at++;
            const qn_dim a = parse_sum(p);
            if (!a || !accept(p, ','))
                return NULL;
            const qn_dim b = parse_sum(p);
            return b && accept(p, ')') ? functions[f].make(p->dims, a, b) : NULL;
        }
    return make_symbol(p, qn_arena_printf(p->arena, "%.*s", (int)length, start));
}

static qn_dim parse_factor(parser *p)
{
    skip_spaces(p);
    if (isdigit((unsigned char)*p->at))
        return parse_number(p);
    if (starts_name(*p->at))
        return parse_name(p);
    if (*p->at == '"')
        return parse_quoted(p);
    if (*p->at != '-' && *p->at != '(')
        return NULL;
    if (p->depth == MAX_DEPTH)
        return NULL;
    p->depth++;
    qn_dim d;
    if (accept(p, '-')) {
        d = parse_factor(p);
        if (d)
            d = qn_dim_mul(p->dims, qn_dim_const(p->dims, -1), d);
    } else {
        p->at++;
        d = parse_sum(p);
        if (d && !accept(p, ')'))
            d = NULL;
    }
    p->depth--;
    return d;
}

static qn_dim parse_term(parser *p)
{
    qn_dim d = parse_factor(p);
    while (d && accept_operator(p, '*')) {
        const qn_dim right = parse_factor(p);
        d = right ? qn_dim_mul(p->dims, d, right) : NULL;
    }
    return d;
}

static qn_dim parse_sum(parser *p)
{
    if (p->depth == MAX_DEPTH)
        return NULL;
    p->depth++;
    qn_dim d = parse_term(p);
    while (d) {
        const bool plus = accept_operator(p, '+');
        if (!plus && !accept_operator(p, '-'))
            break;
        const qn_dim right = parse_term(p);
        d = !right ? NULL : plus ? qn_dim_add(p->dims, d, right) : qn_dim_sub(p->dims, d, right);
    }
    p->depth--;
    return d;
}

qn_dim qn_dim_parse(qn_dims *dims, const char **cursor)
{
    parser p = { .dims = dims, .arena = qn_arena_new(), .at = *cursor };
    const qn_dim d = parse_sum(&p);
    qn_arena_free(p.arena);
    *cursor = p.at;
    return d;
}

/* ---- translation ---- */

/* d in `to`, with the symbol numbers below n_values replaced where there is a value; others by name. */
static qn_dim rebuild(qn_dims *to, qn_dim d, const qn_dim *values, int n_values)
{
    if (d->kind == QN_DIM_CONST)
        return qn_dim_const(to, d->value);
    if (d->kind == QN_DIM_SYMBOL)
        return d->symbol < n_values && values[d->symbol] ? values[d->symbol]
                                                         : qn_dim_symbol(to, d->name, d->min, d->max);
    qn_dim result = rebuild(to, d->operands[d->n - 1], values, n_values);
    for (int i = d->n - 2; i >= 0; i--) {
        const qn_dim left = rebuild(to, d->operands[i], values, n_values);
        for (int f = 0; f < N_FUNCTIONS; f++)
            if (functions[f].kind == d->kind)
                result = functions[f].make(to, left, result);
    }
    return result;
}

qn_dim qn_dim_import(qn_dims *to, qn_dim d)
{
    return rebuild(to, d, NULL, 0);
}

qn_dim qn_dim_substitute(qn_dims *dims, qn_dim d, const qn_dim *values, int n_values)
{
    return rebuild(dims, d, values, n_values);
}
