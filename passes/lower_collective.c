/* Collectives become steps of the program: no kernel, but a call of the communicator that the host lends. */
#include "passes/lower_opaque.h"

qn_status qn_lower_collective(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    int in = -1;
    if (l->options->machine && l->options->machine->gpu)
        return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &node->loc, "%s runs on CPUs only so far",
                        qn_ops[node->op].name);
    if (node->n_operands > 0)
        QN_TRY(qn_lower_operand(l, group, node->operands[0], &in));
    const int out = qn_lower_buffer(l, &node->results[0]);
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_COLLECTIVE);
    step->name = qn_group_step_name(group, l->arena);
    step->collective = node->op;
    step->buffers = QN_NEW_ARRAY(l->arena, int, 2);
    if (node->op == QN_OP_RANK) {
        step->n_buffers = 1;
        step->buffers[0] = out;
        return QUERN_OK;
    }
    step->n_buffers = 2;
    step->buffers[0] = in;
    step->buffers[1] = out;
    step->how = qn_collective_how(node);
    step->ranks = qn_collective_ranks(node);
    const char *wants = qn_collective_wants(node->op, step->ranks, step->how, l->arena);
    step->node =
        qn_lower_node_text(l, qn_arena_printf(l->arena, "%s: %s", qn_lower_node_name(l, node), wants));
    return QUERN_OK;
}
