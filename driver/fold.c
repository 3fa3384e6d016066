/* Joins the fold pass to the reference interpreter, which passes don't know. */
#include "driver/fold.h"

#include "backends/backend.h"

static qn_array array_of(const qn_tensor *tensor)
{
    qn_array array = { .dtype = tensor->type.dtype, .rank = tensor->type.rank, .data = (void *)tensor->data };
    for (int i = 0; i < array.rank; i++)
        array.dims[i] = tensor->type.dims[i]->value;
    return array;
}

static const qn_tensor *fold(const qn_node *node, qn_arena *scratch)
{
    qn_diags quiet;
    qn_diags_init(&quiet, scratch);
    qn_array *operands = QN_NEW_ARRAY(scratch, qn_array, node->n_operands), result = { 0 };
    for (int i = 0; i < node->n_operands; i++) {
        const qn_node *constant = node->operands[i]->node;
        if (!constant || constant->op != QN_OP_CONSTANT)
            return NULL;
        operands[i] = array_of(qn_attr_tensor(constant, QN_ATTR_VALUE));
    }
    if (qn_interp_node(node, operands, &result, NULL, scratch, &quiet))
        return NULL;
    return qn_tensor_new(node->graph->module, result.dtype, result.rank, result.dims, result.data);
}

const qn_tensor *qn_fold_by_interpreter(const qn_node *node, void *folder)
{
    (void)folder;
    qn_arena *scratch = qn_arena_new();
    const qn_tensor *tensor = node->n_results == 1 ? fold(node, scratch) : NULL;
    qn_arena_free(scratch);
    return tensor;
}
