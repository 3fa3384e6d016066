/* What the files of the simplify pass share. */
#ifndef QN_PASSES_SIMPLIFY_H
#define QN_PASSES_SIMPLIFY_H

#include "ir/build.h"
#include "passes/passes.h"

typedef struct qn_rewriter {
    qn_builder b; /* inserts before the node that is looked at, with its location */
    qn_math math;
} qn_rewriter;

/* What stands for the node's first result: an older value or one built by r->b; NULL: the rule does not apply. */
typedef qn_value *(*qn_rewrite_fn)(qn_rewriter *r, const qn_node *node);

typedef struct qn_rewrite_rule {
    qn_op op;
    qn_rewrite_fn apply;
} qn_rewrite_rule;

extern const qn_rewrite_rule qn_movement_rules[]; /* simplify_movement.c; ends with a NULL function */

/* Of a value: the node that makes it if its op is `op`, else NULL. */
static inline const qn_node *qn_value_made_by(const qn_value *value, qn_op op)
{
    return value->node && value->node->op == op ? value->node : NULL;
}

static inline bool qn_same_dims(const qn_type *a, const qn_type *b)
{
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dims[i] != b->dims[i])
            return false;
    return true;
}

#endif
