/* Dimension expressions: constants, symbols with a range, + * floordiv mod min max. Hash-consed, so equal
 * expressions are the same pointer; normalised (sums of products in a fixed order), so that 2*n+n and 3*n are equal.
 *
 * Owned by a qn_dims table, which lives in an arena. Not thread-safe. */
#ifndef QN_IR_DIM_H
#define QN_IR_DIM_H

#include <stdbool.h>
#include <stdint.h>

#include "ir/arena.h"

typedef enum qn_dim_kind {
    QN_DIM_CONST,
    QN_DIM_SYMBOL,
    QN_DIM_ADD,      /* n-ary, operands sorted, at most one constant */
    QN_DIM_MUL,      /* n-ary, likewise */
    QN_DIM_FLOORDIV, /* a / b, b a positive expression */
    QN_DIM_MOD,
    QN_DIM_MIN, /* these three have two operands; more are nested in the second, sorted */
    QN_DIM_MAX,
    QN_DIM_SELECT_ONE /* operands (a, b): b when a == 1, else a: the extent of a broadcast decided at run time.
                       * One of a and b is 1 or they are equal (checked where the broadcast runs), so the order
                       * doesn't matter; select_one(a, 5) is 5 */
} qn_dim_kind;

typedef const struct qn_dim_node *qn_dim;
struct qn_dim_node {
    qn_dim_kind kind;
    int n; /* operands */
    const qn_dim *operands;
    int64_t value;    /* QN_DIM_CONST */
    const char *name; /* QN_DIM_SYMBOL */
    int symbol;       /* QN_DIM_SYMBOL: its number, from 0 in order of creation */
    int64_t min, max; /* inclusive bounds, derived */
    uint64_t hash;
    qn_dim next; /* hash chain */
    int size;    /* nodes of the tree; bounded */
};

#define QN_DIM_MAX_VALUE ((int64_t)1 << 40) /* largest upper bound of a symbol */
/* Terms that the extents of shapes and their products may have. Expressions may have a quarter more, so that what is made of an
 * extent (a number of tasks, a place behind it) can be said, too. */
#define QN_DIM_MAX_TERMS 256

typedef struct qn_dims qn_dims;
qn_dims *qn_dims_new(qn_arena *arena);
int qn_dims_symbol_count(const qn_dims *dims);
qn_dim qn_dims_symbol_at(const qn_dims *dims, int symbol);

qn_dim qn_dim_const(qn_dims *dims, int64_t value);
/* The symbol of that name, made with the range [min, max] if new; an existing one keeps its range. */
qn_dim qn_dim_symbol(qn_dims *dims, const char *name, int64_t min, int64_t max);
qn_dim qn_dim_find_symbol(const qn_dims *dims, const char *name); /* NULL when there is none */
/* Narrows a symbol's range; bounds of expressions made before stay as they were (sound, wider). */
void qn_dim_set_range(qn_dims *dims, qn_dim symbol, int64_t min, int64_t max);
qn_dim qn_dim_fresh(qn_dims *dims, const char *stem, int64_t min, int64_t max); /* stem, stem_1, … */

/* Total: never fail. A constant overflow saturates to INT64_MAX/MIN, which qn_dim_is_valid_extent refuses and sums and
 * products keep; so does an expression that grows past all reason (hundreds of terms). */
qn_dim qn_dim_add(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_sub(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_mul(qn_dims *dims, qn_dim a, qn_dim b);
/* Rounds to minus infinity; division by 0 gives 0. Common factors cancel: floordiv(n*m, n) is m. */
qn_dim qn_dim_floordiv(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_ceildiv(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_spread(qn_dims *dims, qn_dim n,
                     int64_t step); /* of n elements step apart: (n - 1) * step + 1, and 0 of 0 */
qn_dim qn_dim_mod(qn_dims *dims, qn_dim a, qn_dim b); /* a - b * floordiv(a, b); 0 for b == 0 */
qn_dim qn_dim_min(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_max(qn_dims *dims, qn_dim a, qn_dim b);
qn_dim qn_dim_select_one(qn_dims *dims, qn_dim a, qn_dim b);
/* max(d, 0) of a polynomial, with its common factors in front, so that multiples of one compare: for -2*n*m + 4*n it is
 * 2*n*max(0, -m + 2), half of that of -4*n*m + 8*n. */
qn_dim qn_dim_not_negative(qn_dims *dims, qn_dim d);

static inline bool qn_dim_is_const(qn_dim d)
{
    return d->kind == QN_DIM_CONST;
}
/* Is it a constant, and which? 0 where it is none. */
static inline bool qn_dim_known(qn_dim d, int64_t *out)
{
    *out = qn_dim_is_const(d) ? d->value : 0;
    return qn_dim_is_const(d);
}
static inline int qn_dim_terms(qn_dim d)
{
    return d->kind == QN_DIM_ADD ? d->n : 1;
}
static inline bool qn_dim_is(qn_dim d, int64_t value)
{
    return d->kind == QN_DIM_CONST && d->value == value;
}
bool qn_dim_is_valid_extent(qn_dim d);                       /* provably >= 0 and at most QN_DIM_MAX_VALUE */
bool qn_dim_can_be_equal(qn_dims *dims, qn_dim a, qn_dim b); /* not provably different */
bool qn_dim_at_most(qn_dims *dims, qn_dim a, qn_dim b);      /* provably a <= b */
/* Is a divisible by the constant, for all symbol values? */
bool qn_dim_divisible(qn_dim d, int64_t by);

/* Value for given symbol values (indexed by symbol number). */
int64_t qn_dim_eval(qn_dim d, const int64_t *symbols);
/* The same expression in another table (symbols matched by name, made where missing). */
qn_dim qn_dim_import(qn_dims *to, qn_dim d);
/* d with symbol number s replaced by values[s] where that is not NULL. */
qn_dim qn_dim_substitute(qn_dims *dims, qn_dim d, const qn_dim *values, int n_values);
/* What d is at most where symbol number s is at most most[s], and not below its range; where that is NULL, the symbol stays. */
qn_dim qn_dim_most(qn_dims *dims, qn_dim d, const qn_dim *most, int n);

/* "12", "batch", "2*n + 1", "floordiv(n, 2)", "max(a, b)": what qn_dim_parse reads. A symbol whose name is no identifier
 * (letters, digits, '_', '.') is quoted, with \ before " and \. The text depends on names only, not on order of creation. */
const char *qn_dim_print(qn_dim d, qn_arena *arena);
/* Parses from *cursor, moves it past the expression; NULL on a syntax error (*cursor at it). Unknown names become
 * symbols of range [0, QN_DIM_MAX_VALUE]. */
qn_dim qn_dim_parse(qn_dims *dims, const char **cursor);

#endif
