/* Extents that fit together only for some values of the symbols: x[n] + y[m] where n is m, or one of them is 1.
 *
 * Shape rules accept what they cannot refute. Before anything is computed from such a value the program checks it, as soon as
 * the symbols are known: at the start, or behind the step that binds the last of them. So no kernel leaves its buffers. */
#include "passes/lower.h"

typedef struct checker {
    qn_lowering *l;
    const qn_node *node;
    bool *would; /* not NULL: nothing is checked, but whether something would be is said here */
} checker;

static bool is_known(const qn_lowering *l, qn_dim d)
{
    if (d->kind == QN_DIM_SYMBOL && d->symbol >= l->program->n_entry_symbols) {
        for (size_t i = 0; i < l->bound.n; i++)
            if (l->bound.items[i] == d->symbol)
                return true;
        return false;
    }
    for (int i = 0; i < d->n; i++)
        if (!is_known(l, d->operands[i]))
            return false;
    return true;
}

static bool is_checked(const qn_lowering *l, qn_dim a, qn_dim b)
{
    for (size_t i = 0; i < l->checks.n; i++)
        if (l->checks.items[i].a == a && l->checks.items[i].b == b)
            return true;
    return false;
}

/* That a is b, both of the module's dims. `wanted` says it, as the user knows the symbols. */
static void check_equal(const checker *c, qn_dim a, qn_dim b, const char *wanted)
{
    qn_lowering *l = c->l;
    if (c->would) {
        *c->would |= a != b;
        return;
    }
    const qn_dim have = qn_lower_dim(l, a), want = qn_lower_dim(l, b);
    if (have == want || !is_known(l, have) || !is_known(l, want) || is_checked(l, have, want))
        return;
    qn_dim *params = QN_NEW_ARRAY(l->arena, qn_dim, 2);
    params[0] = have;
    params[1] = want;
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_CHECK);
    step->n_params = 2;
    step->params = params;
    step->node =
        qn_lower_node_text(l, qn_arena_printf(l->arena, "%s: %s", qn_lower_node_name(l, c->node), wanted));
    qn_vec_push(l->arena, &l->checks, ((qn_lower_pair){ have, want }));
}

static const char *print(const checker *c, qn_dim d)
{
    return qn_dim_print(d, c->l->arena);
}

/* From 1, or from what it is. A choice of the extent that isn't 1 takes its first operand where that is none. */
static void check_broadcast(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const qn_type *x = &c->node->operands[0]->type, *y = &c->node->results[0].type;
    const int64_t *axes = qn_attr_ints(c->node, QN_ATTR_AXES, NULL);
    for (int i = 0; i < x->rank; i++) {
        const qn_dim from = x->dims[i], to = y->dims[axes[i]], one = qn_dim_const(dims, 1);
        const bool chosen = to->kind == QN_DIM_SELECT_ONE;
        if (from == to || from == one || (chosen && to->operands[0] == from))
            continue;
        const qn_dim wrong = qn_dim_mul(dims, qn_dim_sub(dims, from, one), qn_dim_sub(dims, from, to));
        check_equal(
            c, wrong, qn_dim_const(dims, 0),
            qn_arena_printf(c->l->arena, "broadcast of extent %s to %s (axis %lld): it has to be 1 or equal",
                            print(c, from), print(c, chosen ? to->operands[0] : to), (long long)axes[i]));
    }
}

static void check_reshape(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const qn_dim from = qn_type_elements_dim(dims, &c->node->operands[0]->type),
                 to = qn_type_elements_dim(dims, &c->node->results[0].type);
    check_equal(c, from, to,
                qn_arena_printf(c->l->arena, "reshape of %s elements to %s: they have to be equal",
                                print(c, from), print(c, to)));
}

static void check_slice(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const qn_type *x = &c->node->operands[0]->type;
    const qn_dim *start = qn_attr_dims(c->node, QN_ATTR_START, NULL),
                 *limit = qn_attr_dims(c->node, QN_ATTR_LIMIT, NULL), zero = qn_dim_const(dims, 0);
    for (int i = 0; i < x->rank; i++) {
        if (qn_dim_at_most(dims, zero, start[i]) && qn_dim_at_most(dims, start[i], limit[i]) &&
            qn_dim_at_most(dims, limit[i], x->dims[i]))
            continue;
        /* 0 <= start <= limit <= extent, each where the one before holds */
        const qn_dim inside = qn_dim_min(dims, qn_dim_max(dims, limit[i], start[i]), x->dims[i]);
        const char *wanted = qn_arena_printf(c->l->arena, "slice [%s, %s) of axis %d, whose extent is %s",
                                             print(c, start[i]), print(c, limit[i]), i, print(c, x->dims[i]));
        check_equal(c, qn_dim_max(dims, start[i], zero), start[i], wanted);
        check_equal(c, inside, limit[i], wanted);
    }
}

/* Extents that are no larger than x's: those of a part that is taken or put, or of indices, but along their own axis. */
static void check_within(const checker *c, const qn_dim *extents, int but)
{
    qn_dims *dims = c->l->module->dims;
    const qn_type *x = &c->node->operands[0]->type;
    for (int i = 0; i < x->rank; i++) {
        if (i == but || qn_dim_at_most(dims, extents[i], x->dims[i]))
            continue;
        check_equal(c, qn_dim_min(dims, extents[i], x->dims[i]), extents[i],
                    qn_arena_printf(c->l->arena, "%s elements along axis %d, whose extent is %s",
                                    print(c, extents[i]), i, print(c, x->dims[i])));
    }
}

static void check_top_k(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const int axis = (int)qn_attr_int(c->node, QN_ATTR_AXIS);
    const qn_dim k = qn_attr_dims(c->node, QN_ATTR_K, NULL)[0], n = c->node->operands[0]->type.dims[axis];
    const qn_dim zero = qn_dim_const(dims, 0);
    if (qn_dim_at_most(dims, zero, k) && qn_dim_at_most(dims, k, n))
        return;
    const char *wanted = qn_arena_printf(c->l->arena, "the first %s of axis %d, whose extent is %s",
                                         print(c, k), axis, print(c, n));
    check_equal(c, qn_dim_max(dims, k, zero), k, wanted);
    check_equal(c, qn_dim_min(dims, qn_dim_max(dims, k, zero), n), k, wanted);
}

/* A window that does not fit, or a length that is computed, may leave less than nothing. */
static void check_extents(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const qn_dim zero = qn_dim_const(dims, 0);
    for (int r = 0; r < c->node->n_results; r++) {
        const qn_type *type = &c->node->results[r].type;
        for (int i = 0; i < type->rank; i++)
            if (type->dims[i]->min < 0 && !qn_dim_at_most(dims, zero, type->dims[i]))
                check_equal(c, qn_dim_max(dims, type->dims[i], zero), type->dims[i],
                            qn_arena_printf(c->l->arena, "axis %d would have %s elements: fewer than none", i,
                                            print(c, type->dims[i])));
    }
}

/* Numbers hold positions of so many bits. */
static void check_line(const checker *c)
{
    qn_dims *dims = c->l->module->dims;
    const int axis = c->node->op == QN_OP_SUPPRESS ? 2 : (int)qn_attr_int(c->node, QN_ATTR_AXIS);
    const qn_dim n = c->node->operands[0]->type.dims[axis];
    if (qn_lower_packs_keys(c->node, c->l->options) && n->max > QN_PACKED_LINE)
        check_equal(c, qn_dim_min(dims, n, qn_dim_const(dims, QN_PACKED_LINE)), n,
                    qn_arena_printf(c->l->arena, "axis %d, whose extent is %s: it may be %lld at most", axis,
                                    print(c, n), (long long)QN_PACKED_LINE));
}

static void check_node(const checker *c)
{
    check_extents(c);
    switch (c->node->op) {
    case QN_OP_BROADCAST: check_broadcast(c); break;
    case QN_OP_RESHAPE: check_reshape(c); break;
    case QN_OP_SLICE: check_slice(c); break;
    case QN_OP_DYNAMIC_SLICE: check_within(c, c->node->results[0].type.dims, -1); break;
    case QN_OP_DYNAMIC_UPDATE_SLICE: check_within(c, c->node->operands[1]->type.dims, -1); break;
    case QN_OP_GATHER_ELEMENTS:
    case QN_OP_SCATTER_ELEMENTS:
        check_within(c, c->node->operands[1]->type.dims, (int)qn_attr_int(c->node, QN_ATTR_AXIS));
        break;
    case QN_OP_TOP_K: check_top_k(c); break;
    case QN_OP_REQUIRE:
        check_equal(c, qn_node_binds(c->node), qn_dim_const(c->l->module->dims, 1), QN_REQUIRED);
        break;
    default: break;
    }
}

void qn_lower_checks(qn_lowering *l, const qn_graph *graph)
{
    QN_FOR_NODES (graph, node) {
        const checker c = { .l = l, .node = node };
        check_node(&c);
        if (node->op == QN_OP_TOP_K || node->op == QN_OP_SORT || node->op == QN_OP_SUPPRESS)
            check_line(&c);
    }
}

bool qn_lower_would_check(const qn_node *node)
{
    bool would = false;
    qn_lowering l = { .module = node->graph->module, .arena = qn_arena_new() };
    check_node(&(checker){ .l = &l, .node = node, .would = &would });
    qn_arena_free(l.arena);
    return would;
}
