/* Derivatives of control flow.
 *
 * scan: the forward scan also stacks what its steps started from (and its contractions' results, which are dear to compute
 * again); the gradient is a scan in the other direction, whose body runs a step's forward again and pulls back.
 *
 *   carried:   adjoints of the carried values, running sums of the captured values' gradients
 *   scanned:   stacked starts, stacked residuals, the original slices, adjoints of the stacked outputs
 *   captured:  as the original
 *
 * Where a captured value's gradient is a contraction in each step, as that of a recurrent weight is, its factors are stacked
 * instead and contracted once behind the scan: one large product for many small ones.
 *
 * if: an `if` over the pull-backs of the branches, which run their forward again. */
#include "passes/autodiff.h"
#include "passes/inline.h"
#include "passes/vjp.h"

typedef qn_vec(qn_value *) values;

static bool is_float(const qn_value *value)
{
    return qn_dtype_is_float(value->type.dtype);
}

static void push_all(qn_arena *arena, values *to, int n, qn_value *const *from)
{
    for (int i = 0; i < n; i++)
        qn_vec_push(arena, to, from[i]);
}

/* ---- scan ---- */

typedef struct {
    int n_carried, n_scanned, n_captured, n_outputs; /* outputs: the stacked ones */
} scan_shape;

static scan_shape shape_of(const qn_node *node)
{
    scan_shape s = { .n_carried = (int)qn_attr_int_or(node, QN_ATTR_N_CARRIED, 0),
                     .n_scanned = (int)qn_attr_int_or(node, QN_ATTR_N_SCANNED, 0) };
    s.n_captured = node->n_operands - s.n_carried - s.n_scanned;
    s.n_outputs = node->n_results - s.n_carried;
    return s;
}

/* The scan again, stacking also its carried values at the start of each step and every contraction's result. */
static qn_node *scan_with_residuals(qn_vjp *v, qn_node *node, values *out_residuals)
{
    scan_shape s = shape_of(node);
    qn_graph *body = qn_graph_clone(node->regions[0], NULL);
    for (int i = 0; i < s.n_carried; i++)
        qn_graph_add_output(body, body->inputs[i], NULL, -1);
    QN_FOR_NODES (body, inner) {
        if (qn_ops[inner->op].class == QN_CONTRACTION) {
            qn_graph_add_output(body, &inner->results[0], NULL, -1);
            qn_vec_push(body->module->arena, out_residuals, &inner->results[0]);
        }
    }
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = v->b.diags };
    qn_node *copy =
        qn_b_scan(&b, s.n_carried, s.n_scanned, s.n_captured, node->operands,
                  qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0], qn_attr_bool(node, QN_ATTR_REVERSE), body);
    for (int i = 0; copy && i < node->n_results; i++)
        qn_value_replace(&node->results[i], &copy->results[i]);
    return copy;
}

static qn_type slice_type(qn_module *module, const qn_value *stacked)
{
    return qn_type_make(module, stacked->type.dtype, stacked->type.rank - 1, stacked->type.dims + 1);
}

/* A gradient inside a step that is a product, transposed or not. */
typedef struct {
    const qn_node *product; /* NULL: it is something else */
    const int64_t *perm;    /* NULL: as it is */
} contraction;

static contraction find_contraction(const qn_value *gradient)
{
    contraction c = { 0 };
    const qn_node *node = gradient->node;
    if (node && node->op == QN_OP_TRANSPOSE) {
        c.perm = qn_attr_ints(node, QN_ATTR_PERM, NULL);
        node = node->operands[0]->node;
    }
    if (!node || node->op != QN_OP_DOT_GENERAL || qn_attr_find(node, QN_ATTR_DTYPE))
        return c;
    /* not where the stacks would be larger than the sums that they save */
    int64_t size = 0;
    for (int i = 0; i < 2; i++) {
        const qn_type *type = &node->operands[i]->type;
        if (type->rank == QN_MAX_RANK)
            return c;
        size += qn_type_is_static(type) ? qn_type_elements(type) : 0;
    }
    if (!qn_type_is_static(&gradient->type) || size <= qn_type_elements(&gradient->type))
        c.product = node;
    return c;
}

/* What the scan reads the value from, slice by slice; NULL: the body computes it. */
static qn_value *stack_of(const qn_value *value, const values *inputs, const values *carried,
                          const values *scanned)
{
    for (size_t i = 0; i < scanned->n; i++)
        if (inputs->items[carried->n + i] == value)
            return scanned->items[i];
    return NULL;
}

/* The sum over the steps of the product: the steps are one more contracted axis. */
static qn_value *contract_stacks(qn_vjp *v, const contraction *c, qn_value *const *factors)
{
    qn_dot dot = { 0 };
    const qn_attr_key batch[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    const qn_attr_key contract[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    for (int f = 0; f < 2; f++) {
        const int64_t *axes = qn_attr_ints(c->product, batch[f], &dot.n_batch);
        for (int i = 0; i < dot.n_batch; i++)
            (f ? dot.y_batch : dot.x_batch)[i] = axes[i] + 1;
        axes = qn_attr_ints(c->product, contract[f], &dot.n_contract);
        int64_t *to = f ? dot.y_contract : dot.x_contract;
        to[0] = 0;
        for (int i = 0; i < dot.n_contract; i++)
            to[i + 1] = axes[i] + 1;
    }
    dot.n_contract++;
    qn_value *sum = qn_b_dot_general(&v->b, factors[0], factors[1], &dot, QUERN_INVALID_DTYPE);
    return c->perm && sum ? qn_b_transpose(&v->b, sum, c->perm) : sum;
}

static qn_status scan(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_module *module = node->graph->module;
    qn_arena *arena = module->arena;
    scan_shape s = shape_of(node);
    values residuals = { 0 };
    qn_node *forward = scan_with_residuals(v, node, &residuals);
    if (!forward)
        return QUERN_ERROR_INTERNAL;
    int n_residuals = (int)residuals.n;

    /* Operands of the backward scan, and the inputs of its body in the same order. */
    values carried = { 0 }, scanned = { 0 };
    for (int i = 0; i < s.n_carried; i++) {
        if (is_float(node->operands[i]))
            qn_vec_push(arena, &carried, g[i] ? g[i] : qn_vjp_zeros_like(v, &node->results[i]));
    }
    int n_adjoints = (int)carried.n;
    for (int i = 0; i < s.n_captured; i++) {
        int operand = s.n_carried + s.n_scanned + i;
        if (qn_vjp_wants(v, node, operand))
            qn_vec_push(arena, &carried, qn_vjp_zeros_like(v, node->operands[operand]));
    }
    for (int i = 0; i < s.n_carried + n_residuals; i++)
        qn_vec_push(arena, &scanned, &forward->results[node->n_results + i]);
    push_all(arena, &scanned, s.n_scanned, node->operands + s.n_carried);
    for (int i = 0; i < s.n_outputs; i++) {
        if (g[s.n_carried + i])
            qn_vec_push(arena, &scanned, g[s.n_carried + i]);
    }

    qn_graph *body = qn_region_new(module);
    values inputs = { 0 };
    for (size_t i = 0; i < carried.n; i++)
        qn_vec_push(arena, &inputs, qn_graph_add_input(body, NULL, carried.items[i]->type, QN_ROLE_INPUT));
    for (size_t i = 0; i < scanned.n; i++)
        qn_vec_push(arena, &inputs,
                    qn_graph_add_input(body, NULL, slice_type(module, scanned.items[i]), QN_ROLE_INPUT));
    qn_value **starts = inputs.items + carried.n, **kept = starts + s.n_carried;
    qn_value **slices = kept + n_residuals, **output_adjoints = slices + s.n_scanned;
    values primal_inputs = { 0 };
    push_all(arena, &primal_inputs, s.n_carried, starts);
    push_all(arena, &primal_inputs, s.n_scanned, slices);
    for (int i = 0; i < s.n_captured; i++)
        qn_vec_push(arena, &primal_inputs,
                    qn_graph_add_input(body, NULL, node->operands[s.n_carried + s.n_scanned + i]->type,
                                       QN_ROLE_INPUT));

    /* The step's forward, its contractions taken from the stack once the derivative has been built from them. */
    qn_graph *step = forward->regions[0];
    qn_value **primal = QN_NEW_ARRAY(arena, qn_value *, step->n_outputs);
    QN_TRY(qn_inline_graph(step, body, NULL, primal_inputs.items, primal, v->b.diags));
    qn_value **recomputed = primal + node->n_results + s.n_carried;

    values pulled = { 0 }, adjoints = { 0 }, wrt = { 0 };
    for (int i = 0, at = 0; i < s.n_carried; i++) {
        if (is_float(primal[i])) {
            qn_vec_push(arena, &pulled, primal[i]);
            qn_vec_push(arena, &adjoints, inputs.items[at++]);
        }
    }
    for (int i = 0, at = 0; i < s.n_outputs; i++) {
        if (g[s.n_carried + i]) {
            qn_vec_push(arena, &pulled, primal[s.n_carried + i]);
            qn_vec_push(arena, &adjoints, output_adjoints[at++]);
        }
    }
    for (int i = 0; i < s.n_carried; i++) {
        if (is_float(starts[i]))
            qn_vec_push(arena, &wrt, starts[i]);
    }
    for (int i = 0; i < s.n_captured; i++) {
        if (qn_vjp_wants(v, node, s.n_carried + s.n_scanned + i))
            qn_vec_push(arena, &wrt, primal_inputs.items[s.n_carried + s.n_scanned + i]);
    }
    for (int i = 0; i < s.n_scanned; i++) {
        if (qn_vjp_wants(v, node, s.n_carried + i))
            qn_vec_push(arena, &wrt, slices[i]);
    }
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, wrt.n);
    QN_TRY(qn_pull_back(body, (int)pulled.n, pulled.items, adjoints.items, (int)wrt.n, wrt.items, gradients,
                        v->b.diags));
    for (int i = 0; i < n_residuals; i++)
        qn_value_replace(recomputed[i], kept[i]);
    qn_graph_resolve(body);
    for (size_t i = 0; i < wrt.n; i++)
        gradients[i] = qn_value_resolve(gradients[i]);

    /* What is summed, and what is stacked to be contracted later. */
    qn_builder inner = { .graph = body, .loc = node->loc, .diags = v->b.diags };
    contraction *later = QN_NEW_ARRAY(arena, contraction, s.n_captured);
    const int n_sums = (int)carried.n - n_adjoints;
    for (int i = 0; i < n_sums; i++)
        later[i] = find_contraction(gradients[n_adjoints + i]);
    for (size_t i = 0; i < wrt.n; i++) {
        const int k = (int)i - n_adjoints;
        const bool sum = k >= 0 && k < n_sums;
        if (sum && later[k].product)
            continue;
        qn_graph_add_output(
            body, sum ? qn_b_binary(&inner, QN_OP_ADD, inputs.items[i], gradients[i]) : gradients[i], NULL,
            -1);
    }
    values stacked = { 0 }, operands = { 0 };
    for (int i = 0; i < n_sums; i++)
        for (int k = 0; later[i].product && k < 2; k++)
            if (!stack_of(later[i].product->operands[k], &inputs, &carried, &scanned)) {
                qn_graph_add_output(body, later[i].product->operands[k], NULL, -1);
                qn_vec_push(arena, &stacked, later[i].product->operands[k]);
            }
    int n_carried = n_adjoints;
    push_all(arena, &operands, n_adjoints, carried.items);
    for (int i = 0; i < n_sums; i++)
        if (!later[i].product) {
            qn_vec_push(arena, &operands, carried.items[n_adjoints + i]);
            n_carried++;
        }
    push_all(arena, &operands, (int)scanned.n, scanned.items);
    push_all(arena, &operands, s.n_captured, node->operands + s.n_carried + s.n_scanned);
    qn_graph_remove_dead(body);
    for (int i = n_sums - 1; i >= 0; i--)
        if (later[i].product)
            qn_graph_remove_input(body, n_adjoints + i);
    qn_node *backward =
        qn_b_scan(&v->b, n_carried, (int)scanned.n, s.n_captured, operands.items,
                  qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0], !qn_attr_bool(node, QN_ATTR_REVERSE), body);
    if (!backward)
        return QUERN_ERROR_INTERNAL;

    qn_value *result = backward->results;
    for (int i = 0; i < s.n_carried; i++) {
        if (is_float(node->operands[i]))
            qn_vjp_add(v, node, i, result++);
    }
    qn_value *extra = backward->results + backward->n_results - stacked.n;
    for (int i = s.n_carried + s.n_scanned, k = 0; i < node->n_operands; i++) {
        if (!qn_vjp_wants(v, node, i))
            continue;
        const contraction *c = &later[k++];
        if (!c->product) {
            qn_vjp_add(v, node, i, result++);
            continue;
        }
        qn_value *factors[2];
        for (int f = 0; f < 2; f++) {
            factors[f] = stack_of(c->product->operands[f], &inputs, &carried, &scanned);
            factors[f] = factors[f] ? factors[f] : extra++;
        }
        qn_vjp_add(v, node, i, contract_stacks(v, c, factors));
    }
    for (int i = s.n_carried; i < s.n_carried + s.n_scanned; i++) {
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i, result++);
    }
    return QUERN_OK;
}

/* ---- if ---- */

static qn_graph *branch_gradient(qn_vjp *v, const qn_node *node, int branch, qn_value *const *g,
                                 const values *given)
{
    qn_module *module = node->graph->module;
    qn_arena *arena = module->arena;
    const qn_graph *body = node->regions[branch];
    int n_captured = node->n_operands - 1;
    qn_graph *out = qn_region_new(module);
    qn_value **inputs = QN_NEW_ARRAY(arena, qn_value *, given->n);
    for (size_t i = 0; i < given->n; i++)
        inputs[i] = qn_graph_add_input(out, NULL, given->items[i]->type, QN_ROLE_INPUT);
    qn_value **primal = QN_NEW_ARRAY(arena, qn_value *, body->n_outputs);
    if (qn_inline_graph(body, out, NULL, inputs, primal, v->b.diags))
        return NULL;
    values pulled = { 0 }, adjoints = { 0 }, wrt = { 0 };
    for (int i = 0, at = n_captured; i < node->n_results; i++) {
        if (g[i]) {
            qn_vec_push(arena, &pulled, primal[i]);
            qn_vec_push(arena, &adjoints, inputs[at++]);
        }
    }
    for (int i = 0; i < n_captured; i++) {
        if (qn_vjp_wants(v, node, i + 1))
            qn_vec_push(arena, &wrt, inputs[i]);
    }
    qn_value **gradients = QN_NEW_ARRAY(arena, qn_value *, wrt.n);
    if (qn_pull_back(out, (int)pulled.n, pulled.items, adjoints.items, (int)wrt.n, wrt.items, gradients,
                     v->b.diags))
        return NULL;
    for (size_t i = 0; i < wrt.n; i++)
        qn_graph_add_output(out, gradients[i], NULL, -1);
    qn_graph_remove_dead(out);
    return out;
}

static qn_status if_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_arena *arena = node->graph->module->arena;
    values given = { 0 };
    push_all(arena, &given, node->n_operands - 1, node->operands + 1);
    for (int i = 0; i < node->n_results; i++) {
        if (g[i])
            qn_vec_push(arena, &given, g[i]);
    }
    qn_graph *branches[2];
    for (int i = 0; i < 2; i++) {
        branches[i] = branch_gradient(v, node, i, g, &given);
        if (!branches[i])
            return QUERN_ERROR_UNSUPPORTED;
    }
    qn_node *gradient =
        qn_b_if(&v->b, node->operands[0], (int)given.n, given.items, branches[0], branches[1]);
    if (!gradient)
        return QUERN_ERROR_INTERNAL;
    qn_value *result = gradient->results;
    for (int i = 1; i < node->n_operands; i++) {
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i, result++);
    }
    return QUERN_OK;
}

static qn_status while_(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    (void)g;
    return qn_vjp_refuse(v, node,
                         "its number of iterations has no limit; give it one, or write it as a scan");
}

qn_vjp_rule qn_vjp_control(qn_op op)
{
    switch (op) {
    case QN_OP_SCAN: return scan;
    case QN_OP_IF: return if_;
    case QN_OP_WHILE: return while_;
    default: return NULL;
    }
}
