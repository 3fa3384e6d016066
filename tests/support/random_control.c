/* Random graphs: regions and calls. */
#include <math.h>

#include "tests/support/random_internal.h"

/* Dice and flags go on in the region; the pool is its own. */
static qn_rg inside(qn_rg *g, qn_graph *region)
{
    qn_rg inner = { .b = { .graph = region, .diags = g->b.diags },
                    .state = qn_rg_next(g),
                    .flags = g->flags,
                    .in_region = true };
    return inner;
}

static qn_rg_item add_input(qn_rg *inner, qn_rg_item like)
{
    like.value = qn_graph_add_input(inner->b.graph, NULL, like.value->type, QN_ROLE_INPUT);
    qn_rg_push(inner, like.value, like.bound > 100 ? 100 : like.bound, like.exact);
    return like;
}

static qn_rg_item mutate_some(qn_rg *inner, qn_rg_item x)
{
    for (int i = 1 + qn_rg_below(inner, 3); i > 0; i--)
        x = qn_rg_mutate(inner, x);
    return x;
}

/* Both branches map (x, y) to something like x. */
static bool if_(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0), y = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    qn_graph *branches[2];
    double bound = 0;
    if (!x.value || !y.value)
        return false;
    bool exact = x.exact;
    for (int i = 0; i < 2; i++) {
        branches[i] = qn_region_new(g->b.graph->module);
        qn_rg inner = inside(g, branches[i]);
        qn_rg_item out = add_input(&inner, x);
        add_input(&inner, y);
        if (i == 0 || qn_rg_chance(g, 70))
            out = mutate_some(&inner, out);
        qn_graph_add_output(branches[i], out.value, NULL, -1);
        bound = fmax(bound, out.bound);
        exact = exact && out.exact;
    }
    qn_value *condition = qn_rg_mask(g, 0, NULL);
    if (qn_rg_has(g, QN_RANDOM_INTS)) {
        qn_type type = qn_type_make(g->b.graph->module, QUERN_BOOL, 0, NULL);
        condition = qn_rg_like(g, &type).value;
    }
    qn_node *node =
        qn_b_if(&g->b, condition, 2, (qn_value *[]){ x.value, y.value }, branches[0], branches[1]);
    return node && qn_rg_push(g, &node->results[0], bound, exact);
}

/* Counts up to a few, changing x each time; y is captured. */
static bool while_(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0), y = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    if (!x.value || !y.value)
        return false;
    qn_module *module = g->b.graph->module;
    qn_rg_item zero = { qn_b_scalar_int(&g->b, QUERN_I64, 0), 0, true };
    qn_graph *condition = qn_region_new(module), *body = qn_region_new(module);
    qn_rg test = inside(g, condition), inner = inside(g, body);
    int64_t turns = qn_rg_below(g, 4);
    qn_rg_item i = add_input(&test, zero);
    add_input(&test, x);
    add_input(&test, y);
    qn_value *more = qn_b_compare(&test.b, QN_LT, i.value, qn_b_scalar_int(&test.b, QUERN_I64, turns));
    qn_graph_add_output(condition, more, NULL, -1);
    i = add_input(&inner, zero);
    qn_rg_item carried = add_input(&inner, x);
    add_input(&inner, y);
    carried = mutate_some(&inner, carried);
    if (qn_dtype_is_float(x.value->type.dtype)) /* stays within bounds however often */
        carried.value = qn_b_unary(&inner.b, QN_OP_TANH, carried.value);
    qn_graph_add_output(body, qn_b_binary_scalar(&inner.b, QN_OP_ADD, i.value, 1), NULL, -1);
    qn_graph_add_output(body, carried.value, NULL, -1);
    qn_dim limit =
        qn_rg_has(g, QN_RANDOM_SMOOTH) || qn_rg_chance(g, 50) ? qn_dim_const(qn_b_dims(&g->b), 5) : NULL;
    qn_node *node =
        qn_b_while(&g->b, 2, 1, (qn_value *[]){ zero.value, x.value, y.value }, limit, condition, body);
    return node && qn_rg_push(g, &node->results[1], fmax(x.bound, 1),
                              x.exact && !qn_dtype_is_float(x.value->type.dtype));
}

/* h' = tanh(h / 2 + slice), and something of it stacked; another value is captured. */
static bool scan(qn_rg *g)
{
    qn_rg_item xs = qn_rg_pick(g, QN_CLASS_FLOAT, 1), captured = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    if (!xs.value || !captured.value)
        return false;
    qn_module *module = g->b.graph->module;
    const qn_type *type = &xs.value->type;
    qn_type step = qn_type_make(module, type->dtype, type->rank - 1, type->dims + 1);
    qn_rg_item start = qn_rg_like(g, &step);
    qn_graph *body = qn_region_new(module);
    qn_rg inner = inside(g, body);
    qn_rg_item h = add_input(&inner, start), x = start;
    x.bound = xs.bound;
    x = add_input(&inner, x);
    add_input(&inner, captured);
    qn_value *sum =
        qn_b_binary(&inner.b, QN_OP_ADD, qn_b_binary_scalar(&inner.b, QN_OP_MUL, h.value, 0.5), x.value);
    qn_rg_item next = { qn_b_unary(&inner.b, QN_OP_TANH, sum), 1, false };
    qn_rg_item out = mutate_some(&inner, next);
    qn_graph_add_output(body, next.value, NULL, -1);
    qn_graph_add_output(body, out.value, NULL, -1);
    qn_node *node = qn_b_scan(&g->b, 1, 1, 1, (qn_value *[]){ start.value, xs.value, captured.value },
                              type->dims[0], qn_rg_chance(g, 40), body);
    return node && qn_rg_push(g, &node->results[0], fmax(start.bound, 1), false) &&
           qn_rg_push(g, &node->results[1], fmax(out.bound, 2), false);
}

/* A function of x of its own. */
static bool call(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    if (!x.value || g->in_region)
        return false;
    qn_module *module = g->b.graph->module;
    const char *name = qn_arena_printf(module->arena, "helper%d", g->n_functions++);
    qn_graph *helper = qn_function_new(module, name);
    qn_rg inner = inside(g, helper);
    qn_value *input = qn_graph_add_input(helper, "x", x.value->type, QN_ROLE_INPUT);
    qn_rg_item item = { input, x.bound, x.exact };
    qn_rg_push(&inner, input, x.bound, x.exact);
    qn_rg_item out = mutate_some(&inner, item);
    qn_graph_add_output(helper, out.value, "y", -1);
    qn_node *node = qn_b_call(&g->b, name, 1, &x.value);
    return node && qn_rg_push(g, &node->results[0], out.bound, out.exact);
}

const qn_rg_choice qn_rg_control[] = {
    { if_, 2, QN_RANDOM_CONTROL, true },
    { while_, 1, QN_RANDOM_CONTROL, true },
    { scan, 2, QN_RANDOM_CONTROL, true },
    { call, 1, QN_RANDOM_CONTROL, true },
    { 0 },
};
