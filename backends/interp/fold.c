/* Constant folding: nodes evaluated into tensors of their module. What is worth it is said in backends/backend.h. */
#include "backends/interp/interp.h"

#include <string.h>

/* The constant that an operand is, or repeats, or repeats and reshapes. */
static const qn_tensor *source_of(qn_value *operand)
{
    const qn_value *value = qn_value_resolve(operand);
    if (value->node && value->node->op == QN_OP_RESHAPE && qn_type_is_static(&value->type))
        value = qn_value_resolve(value->node->operands[0]);
    const bool repeats = value->node && value->node->op == QN_OP_BROADCAST && qn_type_is_static(&value->type);
    return qn_value_constant(repeats ? qn_value_resolve(value->node->operands[0]) : value);
}

/* Saturating product of some dims. */
static int64_t extent(const qn_type *type, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        if (__builtin_mul_overflow(n, type->dims[i]->value, &n))
            return INT64_MAX;
    return n;
}

/* Elementary steps for each element of the result. */
static int64_t work_per_element(const qn_node *node)
{
    int64_t work = 1;
    int n;
    switch (node->op) {
    case QN_OP_DOT_GENERAL: {
        const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n);
        for (int i = 0; i < n; i++)
            work *= node->operands[0]->type.dims[axes[i]]->value;
        return work;
    }
    case QN_OP_CONVOLUTION: return extent(&node->operands[1]->type, 1, node->operands[1]->type.rank);
    case QN_OP_REDUCE_WINDOW:
    case QN_OP_SELECT_AND_SCATTER: {
        const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, &n);
        for (int i = 0; i < n; i++)
            if (__builtin_mul_overflow(work, window[i], &work))
                return INT64_MAX;
        return work;
    }
    case QN_OP_ATTENTION:
    case QN_OP_ATTENTION_GRAD: return 2 * extent(&node->operands[1]->type, 2, 4);
    case QN_OP_LSTM: return extent(&node->operands[2]->type, 0, 2);
    case QN_OP_CONV_WINOGRAD: return extent(&node->operands[1]->type, 1, 4);
    default: return 1;
    }
}

static bool worthwhile(const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    if (node->n_results != 1 || node->n_regions > 0 || node->op == QN_OP_CONSTANT ||
        qn_ops[node->op].class == QN_CONTROL || (qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)) ||
        !qn_type_is_static(type))
        return false;
    size_t read = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_tensor *source = source_of(node->operands[i]);
        if (!source)
            return false;
        read += source->bytes;
    }
    const int64_t elements = qn_type_elements(type);
    int64_t bytes, work;
    if (__builtin_mul_overflow(elements, (int64_t)qn_dtype_bytes(type->dtype), &bytes) ||
        __builtin_mul_overflow(elements, work_per_element(node), &work))
        return false;
    if (qn_op_is_composite(node->op) && bytes >= (int64_t)QN_DEFER_BYTES)
        return false; /* its primitives can be read in pieces */
    const uint64_t growth = node->op == QN_OP_PAD ? QN_FOLD_PAD_GROWTH : 4;
    return work <= QN_FOLD_WORK && (bytes <= QN_FOLD_BYTES || (uint64_t)bytes / growth <= read);
}

/* The operand as an array, in `arena` unless the tensor's own memory will do. */
static qn_status load_operand(qn_interp *in, qn_value *operand, qn_array *out)
{
    const qn_value *value = qn_value_resolve(operand);
    qn_array results[1];
    if (value->node->op == QN_OP_CONSTANT)
        return qn_interp_eval(in, value->node, NULL, out);
    QN_TRY(load_operand(in, value->node->operands[0], &results[0]));
    return qn_interp_eval(in, value->node, results, out);
}

/* An operand with a source, as a tensor. */
static const qn_tensor *defer_operand(qn_value *operand)
{
    const qn_value *value = qn_value_resolve(operand);
    const qn_tensor *constant = qn_value_constant(value);
    if (constant)
        return constant;
    const qn_tensor *inner = defer_operand(value->node->operands[0]); /* repeated or reshaped */
    return inner ? qn_tensor_defer(value->node, &inner) : NULL;
}

/* A large result as a tensor whose contents are made where they are needed, or NULL. */
static const qn_tensor *defer(const qn_node *node)
{
    enum { MOST_OPERANDS = 64 };
    const qn_tensor *operands[MOST_OPERANDS];
    if (node->n_operands == 0 || node->n_operands > MOST_OPERANDS)
        return NULL;
    for (int i = 0; i < node->n_operands; i++) {
        operands[i] = defer_operand(node->operands[i]);
        if (!operands[i])
            return NULL;
    }
    return qn_tensor_defer(node, operands);
}

/* Ops that only say the same bytes differently. */
static bool is_view(qn_op op)
{
    return op == QN_OP_RESHAPE || op == QN_OP_BITCAST || op == QN_OP_STOP_GRADIENT;
}

static bool reads_deferred(const qn_node *node)
{
    for (int i = 0; i < node->n_operands; i++) {
        const qn_tensor *source = source_of(node->operands[i]);
        if (source && !source->data)
            return true;
    }
    return false;
}

static qn_status evaluate(const qn_node *node, qn_interp *in, qn_array *operands, qn_array *result)
{
    qn_arena *temporary = in->arena;
    for (int i = 0; i < node->n_operands; i++)
        QN_TRY(load_operand(in, node->operands[i], &operands[i]));
    in->arena = node->graph->module->arena;
    const qn_status status = qn_interp_eval(in, node, operands, result);
    in->arena = temporary;
    return status;
}

const qn_tensor *qn_interp_fold(const qn_node *node, void *folder)
{
    (void)folder;
    if (!worthwhile(node))
        return NULL;
    qn_module *module = node->graph->module;
    const qn_type *type = &node->results[0].type;
    qn_tensor tensor = { .type = *type,
                         .bytes = (size_t)qn_type_elements(type) * qn_dtype_bytes(type->dtype) };
    const qn_tensor *source =
        node->n_operands > 0 ? qn_value_constant(qn_value_resolve(node->operands[0])) : NULL;
    if (is_view(node->op) && source && source->data) {
        tensor.data = source->data;
        tensor.mapped = source->mapped;
        return qn_arena_copy(module->arena, &tensor, sizeof tensor);
    }
    if (is_view(node->op) && !source)
        return NULL; /* of a broadcast: which costs nothing */
    if (tensor.bytes >= QN_DEFER_BYTES || reads_deferred(node)) {
        const qn_tensor *deferred = defer(node);
        if (deferred && (tensor.bytes < QN_DEFER_BYTES || node->op == QN_OP_REDUCE))
            qn_tensor_data(deferred); /* now, but without all of its operands in memory */
        if (deferred)
            return deferred;
    }
    qn_arena *temporary = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, temporary);
    qn_interp in = { .module = module, .arena = temporary, .diags = &diags };
    qn_array *operands = QN_NEW_ARRAY(temporary, qn_array, node->n_operands), result;
    const qn_status status = evaluate(node, &in, operands, &result);
    qn_arena_free(temporary);
    if (status)
        return NULL;
    tensor.data = result.data;
    return qn_arena_copy(module->arena, &tensor, sizeof tensor);
}
