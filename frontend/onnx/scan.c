/* Scan: a scan, its inputs turned so that they are scanned along axis 0, forwards. */
#include "frontend/onnx/body.h"
#include "frontend/onnx/families.h"

/* Moves `axis` to the front, or the front to `axis`. */
static qn_value *move_axis(qn_builder *b, qn_value *x, int axis, bool to_front)
{
    int64_t perm[QN_MAX_RANK];
    if (!x)
        return NULL;
    for (int i = 0, from = 0; i < x->type.rank; i++) {
        if (to_front)
            perm[i] = i == 0 ? axis : from + (from >= axis);
        else
            perm[i] = i == axis ? 0 : from + 1;
        from += to_front ? i != 0 : i != axis;
    }
    return qn_b_transpose(b, x, perm);
}

static int64_t list_item(const int64_t *list, int n, int i)
{
    return list && i < n ? list[i] : 0;
}

static qn_value *reversed(qn_builder *b, qn_value *x, int axis)
{
    return qn_b_reverse(b, x, 1, (int64_t[]){ axis });
}

/* One scan: n_carried initial values and n_scanned sequences (axis 0, forwards) to results. */
static bool scan_once(qn_onnx_node *n, const Onnx__Graph *body, int n_carried, int n_scanned,
                      qn_value **inputs, qn_value **results)
{
    qn_graph *graph = qn_region_new(n->im->module);
    qn_onnx_scope *scope = qn_onnx_scope_new(n, graph);
    qn_builder inner = qn_onnx_region_builder(n, graph);
    if (!scope)
        return false;
    for (int i = 0; i < n_carried + n_scanned; i++) {
        qn_type type = inputs[i]->type;
        if (i >= n_carried)
            type = qn_type_make(n->im->module, type.dtype, type.rank - 1, type.dims + 1);
        qn_value *input = qn_graph_add_input(graph, NULL, type, QN_ROLE_INPUT);
        if (!qn_onnx_scope_define(scope, body->input[i]->name, qn_onnx_value_from(n->im, input), &n->b.loc))
            return false;
    }
    if (!qn_onnx_scope_import(scope, body))
        return false;
    qn_onnx_touched(n, scope);
    for (int i = 0; i < (int)body->n_output; i++) {
        qn_value *v = qn_onnx_body_output(n, scope, body, i);
        qn_value *out = i < n_carried ? qn_onnx_of_type(&inner, v, &inputs[i]->type) : v;
        if (v && !out)
            qn_onnx_unsupported(n, "state %d starts as %s and continues as %s", i,
                                qn_type_print(&inputs[i]->type, n->im->arena),
                                qn_type_print(&v->type, n->im->arena));
        if (!out)
            return false;
        qn_graph_add_output(graph, out, NULL, -1);
    }
    int n_captured = (int)scope->captured.n, n_own = n_carried + n_scanned;
    qn_value **operands = QN_NEW_ARRAY(n->im->arena, qn_value *, n_own + n_captured);
    for (int i = 0; i < n_own + n_captured; i++)
        operands[i] = i < n_own ? inputs[i] : scope->captured.items[i - n_own];
    qn_dim length = inputs[n_carried]->type.dims[0];
    qn_node *node = qn_b_scan(&n->b, n_carried, n_scanned, n_captured, operands, length, false, graph);
    for (int i = 0; node && i < (int)body->n_output; i++)
        results[i] = &node->results[i];
    return node != NULL;
}

/* Opset 8: every input has a batch axis in front, whose elements are scanned one by one. */
static void scan_batched(qn_onnx_node *n, const Onnx__Graph *body, int n_carried, int n_scanned)
{
    qn_builder *b = &n->b;
    int n_in = n_carried + n_scanned, n_out = (int)body->n_output, n_directions;
    const int64_t *directions = qn_onnx_attr_ints(n, "directions", &n_directions);
    qn_value **inputs = QN_NEW_ARRAY(n->im->arena, qn_value *, n_in);
    qn_value **results = QN_NEW_ARRAY(n->im->arena, qn_value *, n_out);
    const qn_type *first = qn_onnx_in_type(n, 1);
    if (!first || first->rank < 1 || !qn_dim_is_const(first->dims[0]) || first->dims[0]->value < 1 ||
        first->dims[0]->value > QN_ONNX_MAX_UNROLLED || qn_onnx_has(n, 0)) {
        if (first && first->rank > 0)
            qn_onnx_needs_dim(n, first->dims[0]);
        qn_onnx_unsupported(n,
                            "before opset 9, only batches of known size without sequence_lens are supported");
        return;
    }
    int batch = (int)first->dims[0]->value;
    qn_value ***rows = QN_NEW_ARRAY(n->im->arena, qn_value **, n_out);
    for (int i = 0; i < n_out; i++)
        rows[i] = QN_NEW_ARRAY(n->im->arena, qn_value *, batch);
    for (int k = 0; k < batch; k++) {
        qn_dim start = qn_dim_const(n->im->dims, k), limit = qn_dim_const(n->im->dims, k + 1);
        for (int i = 0; i < n_in; i++) {
            inputs[i] = qn_b_squeeze(b, qn_b_slice_axis(b, qn_onnx_in(n, i + 1), 0, start, limit), 0);
            if (i >= n_carried && list_item(directions, n_directions, i - n_carried))
                inputs[i] = reversed(b, inputs[i], 0);
            if (!inputs[i] || (i >= n_carried && inputs[i]->type.rank == 0))
                return;
        }
        if (!scan_once(n, body, n_carried, n_scanned, inputs, results))
            return;
        for (int i = 0; i < n_out; i++)
            rows[i][k] = qn_b_expand_dims(b, results[i], 0);
    }
    for (int i = 0; i < n->n_out; i++)
        qn_onnx_out(n, i, qn_b_concatenate(b, batch, rows[i], 0));
}

static void import_scan(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const Onnx__Graph *body = qn_onnx_attr_graph(n, "body");
    int64_t n_scanned = qn_onnx_attr_int(n, "num_scan_inputs", 0);
    if (!body)
        return;
    int n_in = (int)body->n_input, n_out = (int)body->n_output, n_carried = n_in - (int)n_scanned;
    if (n_scanned < 1 || n_scanned > n_in || n_carried > n_out || n->n_out > n_out ||
        n->n_in != n_in + (n->opset < 9)) {
        qn_onnx_malformed(n, "the body's inputs and outputs do not fit the node's");
        return;
    }
    if (n->opset < 9) {
        scan_batched(n, body, n_carried, (int)n_scanned);
        return;
    }
    int n_in_axes, n_in_dirs, n_out_axes, n_out_dirs, axis;
    const int64_t *in_axes = qn_onnx_attr_ints(n, "scan_input_axes", &n_in_axes);
    const int64_t *in_dirs = qn_onnx_attr_ints(n, "scan_input_directions", &n_in_dirs);
    const int64_t *out_axes = qn_onnx_attr_ints(n, "scan_output_axes", &n_out_axes);
    const int64_t *out_dirs = qn_onnx_attr_ints(n, "scan_output_directions", &n_out_dirs);
    qn_value **inputs = QN_NEW_ARRAY(n->im->arena, qn_value *, n_in);
    qn_value **results = QN_NEW_ARRAY(n->im->arena, qn_value *, n_out);
    for (int i = 0; i < n_in; i++) {
        qn_value *x = qn_onnx_in(n, i);
        if (x && i >= n_carried) {
            if (!qn_onnx_axis(n, list_item(in_axes, n_in_axes, i - n_carried), x->type.rank, &axis))
                return;
            x = move_axis(b, x, axis, true);
            if (list_item(in_dirs, n_in_dirs, i - n_carried))
                x = reversed(b, x, 0);
        }
        if (!x)
            return;
        inputs[i] = x;
    }
    if (!scan_once(n, body, n_carried, (int)n_scanned, inputs, results))
        return;
    for (int i = 0; i < n->n_out; i++) {
        qn_value *y = results[i];
        if (i >= n_carried) {
            if (list_item(out_dirs, n_out_dirs, i - n_carried))
                y = reversed(b, y, 0);
            if (!y || !qn_onnx_axis(n, list_item(out_axes, n_out_axes, i - n_carried), y->type.rank, &axis))
                return;
            y = move_axis(b, y, axis, false);
        }
        qn_onnx_out(n, i, y);
    }
}

const qn_onnx_op qn_onnx_scan_ops[] = {
    { "Scan", NULL, 8, 0, import_scan },
    { 0 },
};
