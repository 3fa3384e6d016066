/* Ops on text become steps of the program: no kernel, but a call of the table of strings that the host lends. */
#include "ir/text_ops.h"
#include "passes/lower_opaque.h"

qn_status qn_lower_text(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    if (l->options->machine && l->options->machine->gpu)
        return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &node->loc, "%s runs on CPUs only",
                        qn_ops[node->op].name);
    int *buffers = QN_NEW_ARRAY(l->arena, int, node->n_operands + 1);
    for (int i = 0; i < node->n_operands; i++)
        QN_TRY(qn_lower_operand(l, group, node->operands[i], &buffers[i]));
    buffers[node->n_operands] = qn_lower_buffer(l, &node->results[0]);
    qn_dim *params = QN_NEW_ARRAY(l->arena, qn_dim, QN_TEXT_MOST_PARAMS);
    const int n_params = qn_text_params(l->module, node, params);
    for (int i = 0; i < n_params; i++)
        params[i] = qn_lower_dim(l, params[i]);
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_TEXT);
    step->name = qn_group_step_name(group, l->arena);
    step->text = node->op;
    step->n_buffers = node->n_operands + 1;
    step->buffers = buffers;
    step->n_params = n_params;
    step->params = params;
    step->node = qn_lower_node_text(l, qn_lower_node_name(l, node));
    return QUERN_OK;
}
