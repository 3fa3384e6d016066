/* if, while, scan: steps of the program. */
#include "passes/lower.h"

qn_status qn_lower_control(qn_lowering *l, const qn_group *group)
{
    return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &group->root->loc, "%s can't be compiled yet",
                    qn_ops[group->root->op].name);
}
