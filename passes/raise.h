/* What the files of the raise pass share: looking at graphs that spell composites out. */
#ifndef QN_PASSES_RAISE_H
#define QN_PASSES_RAISE_H

#include "passes/simplify.h"

typedef struct qn_raiser {
    qn_rewriter r;
    const int *uses; /* by value id, of what was there when the sweep began */
    int n_uses;
} qn_raiser;

/* What stands for the node's first result, built by s->r.b; NULL: it is not the end of such a pattern. */
typedef qn_value *(*qn_raise_fn)(qn_raiser *s, const qn_node *node);

typedef struct qn_raise_rule {
    qn_op op; /* that the pattern ends with */
    bool
        same_bits; /* the composite's body says the same in the same order, so it holds under --math strict, too */
    qn_raise_fn raise;
} qn_raise_rule;

extern const qn_raise_rule qn_raise_row_rules[]; /* raise_rows.c; each table ends with a NULL function */
extern const qn_raise_rule qn_raise_elementwise_rules[]; /* raise_elementwise.c */
extern const qn_raise_rule qn_raise_attention_rules[];   /* raise_attention.c */

/* How many read the value; many when it is new. */
int qn_raise_uses(const qn_raiser *s, const qn_value *value);

/* `value` as factor * (result): without a multiplication or division by a number, or a negation; *factor is multiplied. NULL: it
 * ends with none of these. */
qn_value *qn_raise_without_one_factor(const qn_value *value, double *factor);
/* Likewise, without all of them. */
qn_value *qn_raise_without_factor(qn_value *value, double *factor);
/* Is the value the number in every element, but for rounding? */
bool qn_raise_is_number(const qn_value *value, double number);
/* Are they the same but for a few roundings of the dtype? */
bool qn_raise_near(qn_dtype dtype, double a, double b);
/* Is `value` the product of `times` x, `n_others` (0 or 1) times `other`, and numbers that multiply to *out_factor? */
bool qn_raise_is_product(const qn_value *value, const qn_value *x, int times, const qn_value *other,
                         double *out_factor);

/* ---- masks of attention (raise_mask.c) ---- */

/* What a mask over [.., queries, keys] says. */
typedef struct qn_mask_parts {
    bool causal;        /* key t is hidden from query s unless t <= s + T - S */
    qn_value *visible;  /* bool, or NULL */
    qn_value *additive; /* or NULL */
} qn_mask_parts;

/* Takes a condition under which scores stay into parts: conjuncts that say "causal" become the flag. Its last two axes are
 * queries and keys. */
void qn_mask_add_visible(qn_raiser *s, qn_value *condition, bool negated, qn_dim queries, qn_dim keys,
                         qn_mask_parts *parts);
/* Likewise what is added to scores. */
void qn_mask_add_additive(qn_raiser *s, qn_value *mask, qn_dim queries, qn_dim keys, qn_mask_parts *parts);
/* Is the value surely the same all along the axis? */
bool qn_mask_repeats(const qn_value *value, int axis, int depth);
/* Is it as good as -inf as a score, or as an addend to one? */
bool qn_mask_is_hiding(qn_dtype dtype, double number);

#endif
