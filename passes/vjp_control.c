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

/* The scan in the other direction that is being made. */
typedef struct backward {
    qn_vjp *v;
    qn_node *node;
    qn_value *const *g;
    scan_shape s;
    qn_node *forward; /* with residuals */
    qn_graph *body;
    int n_residuals, n_adjoints, n_sums; /* carried: adjoints, then sums */
    values carried, scanned, inputs;     /* operands; the body's inputs, in the same order */
    qn_value **starts, **kept,
        **slices;               /* of `inputs`: what steps started from, residuals, original slices */
    qn_value **output_adjoints; /* likewise */
    values primal_inputs;       /* of the step's forward, in the body */
    qn_value **gradients;       /* of adjoints, sums, slices, in the body */
    int n_gradients;
    contraction *later; /* for each sum */
    values stacked;     /* factors of those that are stacked for it */
} backward;

/* Operands of the backward scan. */
static void collect_operands(backward *b)
{
    qn_arena *arena = b->node->graph->module->arena;
    qn_node *node = b->node;
    for (int i = 0; i < b->s.n_carried; i++) {
        if (is_float(node->operands[i]))
            qn_vec_push(arena, &b->carried, b->g[i] ? b->g[i] : qn_vjp_zeros_like(b->v, &node->results[i]));
    }
    b->n_adjoints = (int)b->carried.n;
    for (int i = b->s.n_carried + b->s.n_scanned; i < node->n_operands; i++) {
        if (qn_vjp_wants(b->v, node, i))
            qn_vec_push(arena, &b->carried, qn_vjp_zeros_like(b->v, node->operands[i]));
    }
    b->n_sums = (int)b->carried.n - b->n_adjoints;
    for (int i = 0; i < b->s.n_carried + b->n_residuals; i++)
        qn_vec_push(arena, &b->scanned, &b->forward->results[node->n_results + i]);
    push_all(arena, &b->scanned, b->s.n_scanned, node->operands + b->s.n_carried);
    for (int i = 0; i < b->s.n_outputs; i++) {
        if (b->g[b->s.n_carried + i])
            qn_vec_push(arena, &b->scanned, b->g[b->s.n_carried + i]);
    }
}

static void add_inputs(backward *b)
{
    qn_module *module = b->node->graph->module;
    qn_arena *arena = module->arena;
    b->body = qn_region_new(module);
    for (size_t i = 0; i < b->carried.n; i++)
        qn_vec_push(arena, &b->inputs,
                    qn_graph_add_input(b->body, NULL, b->carried.items[i]->type, QN_ROLE_INPUT));
    for (size_t i = 0; i < b->scanned.n; i++)
        qn_vec_push(
            arena, &b->inputs,
            qn_graph_add_input(b->body, NULL, slice_type(module, b->scanned.items[i]), QN_ROLE_INPUT));
    b->starts = b->inputs.items + b->carried.n;
    b->kept = b->starts + b->s.n_carried;
    b->slices = b->kept + b->n_residuals;
    b->output_adjoints = b->slices + b->s.n_scanned;
    push_all(arena, &b->primal_inputs, b->s.n_carried, b->starts);
    push_all(arena, &b->primal_inputs, b->s.n_scanned, b->slices);
    for (int i = b->s.n_carried + b->s.n_scanned; i < b->node->n_operands; i++)
        qn_vec_push(arena, &b->primal_inputs,
                    qn_graph_add_input(b->body, NULL, b->node->operands[i]->type, QN_ROLE_INPUT));
}

/* The step's forward, its contractions taken from the stack once the derivative has been built from them. */
static qn_status pull_back_step(backward *b)
{
    qn_arena *arena = b->node->graph->module->arena;
    const scan_shape s = b->s;
    qn_graph *step = b->forward->regions[0];
    qn_value **primal = QN_NEW_ARRAY(arena, qn_value *, step->n_outputs);
    QN_TRY(qn_inline_graph(step, b->body, NULL, b->primal_inputs.items, primal, b->v->b.diags));
    qn_value **recomputed = primal + b->node->n_results + s.n_carried;

    values pulled = { 0 }, adjoints = { 0 }, wrt = { 0 };
    for (int i = 0, at = 0; i < s.n_carried; i++) {
        if (is_float(primal[i])) {
            qn_vec_push(arena, &pulled, primal[i]);
            qn_vec_push(arena, &adjoints, b->inputs.items[at++]);
        }
    }
    for (int i = 0, at = 0; i < s.n_outputs; i++) {
        if (b->g[s.n_carried + i]) {
            qn_vec_push(arena, &pulled, primal[s.n_carried + i]);
            qn_vec_push(arena, &adjoints, b->output_adjoints[at++]);
        }
    }
    for (int i = 0; i < s.n_carried; i++) {
        if (is_float(b->starts[i]))
            qn_vec_push(arena, &wrt, b->starts[i]);
    }
    for (int i = s.n_carried + s.n_scanned; i < b->node->n_operands; i++) {
        if (qn_vjp_wants(b->v, b->node, i))
            qn_vec_push(arena, &wrt, b->primal_inputs.items[i]);
    }
    for (int i = 0; i < s.n_scanned; i++) {
        if (qn_vjp_wants(b->v, b->node, s.n_carried + i))
            qn_vec_push(arena, &wrt, b->slices[i]);
    }
    b->n_gradients = (int)wrt.n;
    b->gradients = QN_NEW_ARRAY(arena, qn_value *, wrt.n);
    QN_TRY(qn_pull_back(b->body, (int)pulled.n, pulled.items, adjoints.items, (int)wrt.n, wrt.items,
                        b->gradients, b->v->b.diags));
    for (int i = 0; i < b->n_residuals; i++)
        qn_value_replace(recomputed[i], b->kept[i]);
    qn_graph_resolve(b->body);
    for (int i = 0; i < b->n_gradients; i++)
        b->gradients[i] = qn_value_resolve(b->gradients[i]);
    return QUERN_OK;
}

/* What the scan reads the value from, slice by slice; NULL: the body computes it. */
static qn_value *stack_of(const backward *b, const qn_value *value)
{
    for (size_t i = 0; i < b->scanned.n; i++)
        if (b->inputs.items[b->carried.n + i] == value)
            return b->scanned.items[i];
    return NULL;
}

/* What is summed, and what is stacked to be contracted later. */
static void add_outputs(backward *b)
{
    qn_arena *arena = b->node->graph->module->arena;
    qn_builder inner = { .graph = b->body, .loc = b->node->loc, .diags = b->v->b.diags };
    b->later = QN_NEW_ARRAY(arena, contraction, b->s.n_captured);
    for (int i = 0; i < b->n_sums; i++)
        b->later[i] = find_contraction(b->gradients[b->n_adjoints + i]);
    for (int i = 0; i < b->n_gradients; i++) {
        const int k = i - b->n_adjoints;
        const bool sum = k >= 0 && k < b->n_sums;
        if (sum && b->later[k].product)
            continue;
        qn_value *gradient = b->gradients[i];
        qn_graph_add_output(
            b->body, sum ? qn_b_binary(&inner, QN_OP_ADD, b->inputs.items[i], gradient) : gradient, NULL, -1);
    }
    for (int i = 0; i < b->n_sums; i++)
        for (int k = 0; b->later[i].product && k < 2; k++) {
            qn_value *factor = b->later[i].product->operands[k];
            if (!stack_of(b, factor)) {
                qn_graph_add_output(b->body, factor, NULL, -1);
                qn_vec_push(arena, &b->stacked, factor);
            }
        }
}

/* The scan itself, which carries no sums of what is contracted later. */
static qn_node *make_scan(backward *b)
{
    const qn_node *node = b->node;
    qn_arena *arena = node->graph->module->arena;
    values operands = { 0 };
    int n_carried = b->n_adjoints;
    push_all(arena, &operands, b->n_adjoints, b->carried.items);
    for (int i = 0; i < b->n_sums; i++)
        if (!b->later[i].product) {
            qn_vec_push(arena, &operands, b->carried.items[b->n_adjoints + i]);
            n_carried++;
        }
    push_all(arena, &operands, (int)b->scanned.n, b->scanned.items);
    push_all(arena, &operands, b->s.n_captured, node->operands + b->s.n_carried + b->s.n_scanned);
    qn_graph_remove_dead(b->body);
    for (int i = b->n_sums - 1; i >= 0; i--)
        if (b->later[i].product)
            qn_graph_remove_input(b->body, b->n_adjoints + i);
    return qn_b_scan(&b->v->b, n_carried, (int)b->scanned.n, b->s.n_captured, operands.items,
                     qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0], !qn_attr_bool(node, QN_ATTR_REVERSE),
                     b->body);
}

static void give_gradients(const backward *b, qn_node *made)
{
    qn_node *node = b->node;
    qn_value *result = made->results;
    for (int i = 0; i < b->s.n_carried; i++) {
        if (is_float(node->operands[i]))
            qn_vjp_add(b->v, node, i, result++);
    }
    qn_value *extra = made->results + made->n_results - b->stacked.n;
    for (int i = b->s.n_carried + b->s.n_scanned, k = 0; i < node->n_operands; i++) {
        if (!qn_vjp_wants(b->v, node, i))
            continue;
        const contraction *c = &b->later[k++];
        if (!c->product) {
            qn_vjp_add(b->v, node, i, result++);
            continue;
        }
        qn_value *factors[2];
        for (int f = 0; f < 2; f++) {
            factors[f] = stack_of(b, c->product->operands[f]);
            factors[f] = factors[f] ? factors[f] : extra++;
        }
        qn_vjp_add(b->v, node, i, contract_stacks(b->v, c, factors));
    }
    for (int i = b->s.n_carried; i < b->s.n_carried + b->s.n_scanned; i++) {
        if (qn_vjp_wants(b->v, node, i))
            qn_vjp_add(b->v, node, i, result++);
    }
}

static qn_status scan(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    values residuals = { 0 };
    backward b = { .v = v, .node = node, .g = g, .s = shape_of(node) };
    b.forward = scan_with_residuals(v, node, &residuals);
    if (!b.forward)
        return QUERN_ERROR_INTERNAL;
    b.n_residuals = (int)residuals.n;
    collect_operands(&b);
    add_inputs(&b);
    QN_TRY(pull_back_step(&b));
    add_outputs(&b);
    qn_node *made = make_scan(&b);
    if (!made)
        return QUERN_ERROR_INTERNAL;
    give_gradients(&b, made);
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
