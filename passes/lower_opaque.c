/* Ops with kernels of their own: the table of who writes which. */
#include "passes/lower.h"

typedef qn_status (*lower_fn)(qn_lowering *l, const qn_group *group);

static const struct {
    qn_op op;
    lower_fn lower;
} ops[] = {
    { QN_N_OPS, NULL },
};

qn_status qn_lower_opaque(qn_lowering *l, const qn_group *group)
{
    for (int i = 0; ops[i].lower; i++)
        if (ops[i].op == group->root->op)
            return ops[i].lower(l, group);
    return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &group->root->loc, "%s can't be compiled yet",
                    qn_ops[group->root->op].name);
}
