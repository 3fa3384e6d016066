/* What has no derivative rule of its own is said by other ops before the walk.
 *
 *   cumulative of products, maxima and minima      -> a scan that carries what there is so far
 *   reduce_window of products                      -> the product of one slice for each position in the window
 *   while with a limit                             -> a scan of as many steps; the steps after the end keep what they get
 *   calls, composites without a rule               -> their bodies */
#include <math.h>

#include "passes/inline.h"
#include "passes/passes.h"
#include "passes/vjp.h"

/* ---- cumulative ---- */

static double neutral_of(qn_kind kind)
{
    return kind == QN_KIND_MAX ? -INFINITY : kind == QN_KIND_MIN ? INFINITY : kind == QN_PROD ? 1 : 0;
}

static qn_op op_of(qn_kind kind)
{
    return kind == QN_KIND_MAX ? QN_OP_MAX : kind == QN_KIND_MIN ? QN_OP_MIN : QN_OP_MUL;
}

static qn_value *cumulative_as_scan(qn_builder *b, qn_node *node)
{
    qn_module *module = node->graph->module;
    const qn_kind kind = qn_attr_reduce_kind(node);
    const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS), rank = node->operands[0]->type.rank;
    int64_t perm[QN_MAX_RANK], inverse[QN_MAX_RANK];
    for (int i = 0; i < rank; i++)
        perm[i] = i == 0 ? axis : i <= axis ? i - 1 : i;
    for (int i = 0; i < rank; i++)
        inverse[perm[i]] = i;
    qn_value *x = qn_b_transpose(b, node->operands[0], perm);
    if (!x)
        return NULL;
    const qn_type slice = qn_type_make(module, x->type.dtype, rank - 1, x->type.dims + 1);
    qn_graph *body = qn_region_new(module);
    qn_builder inner = { .graph = body, .loc = node->loc, .diags = b->diags };
    qn_value *so_far = qn_graph_add_input(body, NULL, slice, QN_ROLE_INPUT);
    qn_value *element = qn_graph_add_input(body, NULL, slice, QN_ROLE_INPUT);
    qn_value *next = qn_b_binary(&inner, op_of(kind), so_far, element);
    qn_graph_add_output(body, next, NULL, -1);
    qn_graph_add_output(body, qn_attr_bool(node, QN_ATTR_EXCLUSIVE) ? so_far : next, NULL, -1);
    qn_value *operands[2] = { qn_b_full(b, &slice, neutral_of(kind)), x };
    const qn_node *scan =
        qn_b_scan(b, 1, 1, 0, operands, x->type.dims[0], qn_attr_bool(node, QN_ATTR_REVERSE), body);
    return scan ? qn_b_transpose(b, &scan->results[1], inverse) : NULL;
}

/* ---- windows ---- */

static qn_dim window_dim(qn_builder *b, const qn_node *node, qn_attr_key key, int axis)
{
    const qn_attr *attr = qn_attr_find(node, key);
    if (!attr)
        return qn_dim_const(qn_b_dims(b), 0);
    return qn_attrs[key].kind == QN_ATTR_KIND_DIMS ? attr->dims[axis]
                                                   : qn_dim_const(qn_b_dims(b), attr->ints[axis]);
}

int64_t qn_vjp_window_size(const qn_node *node)
{
    int rank;
    int64_t n = 1;
    const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, &rank);
    for (int i = 0; i < rank; i++)
        n = window[i] > QN_VJP_MAX_WINDOW ? QN_VJP_MAX_WINDOW + 1 : n * window[i];
    return n > QN_VJP_MAX_WINDOW ? -1 : n;
}

qn_value *qn_vjp_window_padded(qn_builder *b, const qn_node *node, qn_value *x, double outside)
{
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    for (int i = 0; x && i < x->type.rank; i++) {
        low[i] = window_dim(b, node, QN_ATTR_LOW, i);
        high[i] = window_dim(b, node, QN_ATTR_HIGH, i);
    }
    return x ? qn_b_pad(b, x, qn_b_scalar(b, x->type.dtype, outside), low, high, NULL) : NULL;
}

qn_value *qn_vjp_window_slice(qn_builder *b, const qn_node *node, qn_value *padded, const qn_type *windows,
                              int64_t position)
{
    qn_dims *dims = qn_b_dims(b);
    const qn_attr *strides = qn_attr_find(node, QN_ATTR_STRIDE);
    const qn_attr *dilations = qn_attr_find(node, QN_ATTR_DILATION);
    const int64_t *window = qn_attr_ints(node, QN_ATTR_WINDOW, NULL);
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK];
    for (int i = windows->rank - 1; i >= 0; i--) {
        const int64_t at = position % window[i] * (dilations ? dilations->ints[i] : 1);
        position /= window[i];
        stride[i] = strides ? strides->ints[i] : 1;
        const qn_dim last = qn_dim_mul(dims, qn_dim_sub(dims, windows->dims[i], qn_dim_const(dims, 1)),
                                       qn_dim_const(dims, stride[i]));
        start[i] = qn_dim_const(dims, at);
        limit[i] = qn_dim_add(dims, last, qn_dim_const(dims, at + 1));
    }
    return qn_b_slice(b, padded, start, limit, stride);
}

static qn_value *window_as_product(qn_builder *b, qn_node *node)
{
    const int64_t n = qn_vjp_window_size(node);
    qn_value *padded = qn_vjp_window_padded(b, node, node->operands[0], 1), *product = NULL;
    for (int64_t k = 0; k < n; k++) {
        qn_value *slice = qn_vjp_window_slice(b, node, padded, &node->results[0].type, k);
        product = product ? qn_b_binary(b, QN_OP_MUL, product, slice) : slice;
    }
    return product;
}

/* ---- while ---- */

static qn_graph *step_of(qn_node *node, qn_builder *b)
{
    qn_module *module = node->graph->module;
    qn_arena *arena = module->arena;
    const int n_carried = (int)qn_attr_int(node, QN_ATTR_N_CARRIED), n = node->n_operands;
    qn_graph *step = qn_region_new(module), *then = qn_region_new(module), *otherwise = qn_region_new(module);
    qn_builder inner = { .graph = step, .loc = node->loc, .diags = b->diags };
    qn_value **values = QN_NEW_ARRAY(arena, qn_value *, n),
             **results = QN_NEW_ARRAY(arena, qn_value *, n + 1);
    qn_value **then_inputs = QN_NEW_ARRAY(arena, qn_value *, n), *goes_on = NULL;
    qn_type flag = qn_type_static(module, QUERN_BOOL, 0, NULL);
    for (int i = 0; i <= n; i++) {
        if (i == n_carried)
            goes_on = qn_graph_add_input(step, NULL, flag, QN_ROLE_INPUT);
        if (i < n)
            values[i] = qn_graph_add_input(step, NULL, node->operands[i]->type, QN_ROLE_INPUT);
    }
    for (int i = 0; i < n; i++) {
        then_inputs[i] = qn_graph_add_input(then, NULL, values[i]->type, QN_ROLE_INPUT);
        qn_value *kept = qn_graph_add_input(otherwise, NULL, values[i]->type, QN_ROLE_INPUT);
        if (i < n_carried)
            qn_graph_add_output(otherwise, kept, NULL, -1);
    }
    if (qn_inline_graph(node->regions[0], step, NULL, values, results, b->diags))
        return NULL;
    goes_on = qn_b_binary(&inner, QN_OP_AND, goes_on, results[0]);
    if (qn_inline_graph(node->regions[1], then, NULL, then_inputs, results, b->diags))
        return NULL;
    for (int i = 0; i < n_carried; i++)
        qn_graph_add_output(then, results[i], NULL, -1);
    const qn_node *either = goes_on ? qn_b_if(&inner, goes_on, n, values, then, otherwise) : NULL;
    if (!either)
        return NULL;
    for (int i = 0; i < n_carried; i++)
        qn_graph_add_output(step, (qn_value *)&either->results[i], NULL, -1);
    qn_graph_add_output(step, goes_on, NULL, -1);
    return step;
}

static bool while_as_scan(qn_builder *b, qn_node *node, qn_value **out_results)
{
    const int n_carried = (int)qn_attr_int(node, QN_ATTR_N_CARRIED), n = node->n_operands;
    qn_graph *step = step_of(node, b);
    qn_value **operands = QN_NEW_ARRAY(node->graph->module->arena, qn_value *, n + 1);
    for (int i = 0; i <= n; i++)
        operands[i] = i == n_carried  ? qn_b_scalar_int(b, QUERN_BOOL, 1)
                      : i < n_carried ? node->operands[i]
                                      : node->operands[i - 1];
    const qn_node *scan = step ? qn_b_scan(b, n_carried + 1, 0, n - n_carried, operands,
                                           qn_attr_dims(node, QN_ATTR_LIMIT, NULL)[0], false, step)
                               : NULL;
    for (int i = 0; i < node->n_results; i++)
        out_results[i] = scan ? (qn_value *)&scan->results[i] : NULL;
    return scan != NULL;
}

/* ---- all of them ---- */

bool qn_vjp_expand(qn_node *node, bool has_rule, qn_value **out_results, qn_diags *diags)
{
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
    switch (node->op) {
    case QN_OP_CUMULATIVE:
        if (qn_attr_reduce_kind(node) == QN_SUM)
            return false;
        out_results[0] = cumulative_as_scan(&b, node);
        return true;
    case QN_OP_REDUCE_WINDOW:
        if (qn_attr_reduce_kind(node) != QN_PROD || qn_vjp_window_size(node) < 1)
            return false;
        out_results[0] = window_as_product(&b, node);
        return true;
    case QN_OP_WHILE: return qn_attr_find(node, QN_ATTR_LIMIT) && while_as_scan(&b, node, out_results);
    case QN_OP_CALL: return qn_expand_node(node, out_results, diags);
    default:
        if (has_rule || !qn_op_is_composite(node->op))
            return false;
        qn_composite_expand(node, out_results, diags);
        return true;
    }
}
