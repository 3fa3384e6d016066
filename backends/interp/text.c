/* Ops on text: by the table of strings that the host lends. */
#include "ir/text_ops.h"

#include "backends/interp/interp.h"

qn_status qn_interp_text(qn_op op, quern_strings *strings, const int64_t *args, const qn_loc *loc,
                         qn_diags *diags)
{
    if (!strings)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, loc, "%s needs a table of strings (quern_strings_new)",
                        qn_ops[op].name);
    const int status = strings->compute(strings, qn_text_what(op), args);
    return status ? qn_error(diags, status, loc, "%s", strings->error(strings)) : QUERN_OK;
}

qn_status qn_eval_text(qn_eval *e)
{
    const qn_node *node = e->node;
    int64_t args[3 + QN_TEXT_MOST_PARAMS];
    qn_dim params[QN_TEXT_MOST_PARAMS];
    int n = 0;
    for (int i = 0; i < node->n_operands; i++)
        args[n++] = (int64_t)(intptr_t)e->x[i].data;
    args[n++] = (int64_t)(intptr_t)e->y[0].data;
    const int n_params = qn_text_params(e->in->module, node, params);
    for (int i = 0; i < n_params; i++)
        QN_TRY(qn_interp_dim(e->in, params[i], &node->loc, &args[n++]));
    return qn_interp_text(node->op, e->in->strings, args, &node->loc, e->in->diags);
}
