/* Moves out of loops what is the same in every step.
 *
 * Before: %h = scan %0, %w {…}                        After: %p = transpose %w …
 *           body (%a: …, %b: …) {                            %h = scan %0, %w, %p {…}
 *             %c = transpose %b …                              body (%a: …, %b: …, %c: …) {
 *
 * Weights that are parameters rather than constants are packed once, not once a step. What only repeats elements stays: it costs
 * nothing where it is read. */
#include "ir/build.h"
#include "passes/lower.h"
#include "passes/passes.h"

typedef struct hoist {
    qn_node *loop;
    qn_graph *body;
    qn_value **outer; /* by value id of the body: the same value outside, made so far; NULL: none */
    bool *fixed;      /* by value id: the same in every step */
    bool *bound;      /* by number: symbols that the body finds; NULL: none */
    qn_diags *diags;
} hoist;

/* Not what checks indices or extents: a loop that makes no step finds none wrong. Not what binds a symbol. */
static bool may_move(const qn_node *node)
{
    switch (node->op) {
    case QN_OP_GATHER:
    case QN_OP_GATHER_ND:
    case QN_OP_GATHER_ELEMENTS:
    case QN_OP_SCATTER_ND:
    case QN_OP_SCATTER_ELEMENTS: return false;
    default: break;
    }
    return node->n_regions == 0 && !(qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)) &&
           qn_ops[node->op].class != QN_CONTROL && !qn_lower_would_check(node);
}

/* Has it a symbol that the body finds in each step? */
static bool has_bound(const hoist *h, const qn_node *node)
{
    const int n = qn_dims_symbol_count(h->body->module->dims);
    bool any = false;
    if (!h->bound)
        return false;
    bool *has = QN_NEW_ARRAY(h->body->module->arena, bool, n);
    qn_node_mark_symbols(node, has);
    for (int i = 0; i < n; i++)
        any |= has[i] && h->bound[i];
    return any;
}

static void find_bound(hoist *h)
{
    if (qn_graph_binds(h->body))
        h->bound = QN_NEW_ARRAY(h->body->module->arena, bool, qn_dims_symbol_count(h->body->module->dims));
    QN_FOR_NODES (h->body, node)
        if (qn_node_binds(node))
            h->bound[qn_node_binds(node)->symbol] = true;
}

/* Worth a buffer outside: it moves or computes elements, and there are no more of them than went in. */
static bool is_work(const qn_node *node)
{
    const qn_op_class class = qn_ops[node->op].class;
    if (class == QN_LEAF || class == QN_BROADCAST || node->op == QN_OP_RESHAPE || node->n_results != 1)
        return false;
    int64_t most = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_type *type = &node->operands[i]->type;
        const int64_t n = qn_type_is_static(type) ? qn_type_elements(type) : INT64_MAX;
        most = n > most ? n : most;
    }
    const qn_type *type = &node->results[0].type;
    return !qn_type_is_static(type) || qn_type_elements(type) / 2 <= most;
}

static void find_fixed(hoist *h)
{
    const int n = qn_graph_number(h->body), captured = qn_first_captured(h->loop);
    h->fixed = QN_NEW_ARRAY(h->body->module->arena, bool, n + 1);
    h->outer = QN_NEW_ARRAY(h->body->module->arena, qn_value *, n + 1);
    for (int i = captured; i < h->loop->n_operands; i++) {
        h->fixed[h->body->inputs[i]->id] = true;
        h->outer[h->body->inputs[i]->id] = h->loop->operands[i];
    }
    QN_FOR_NODES (h->body, node) {
        bool all = may_move(node) && !has_bound(h, node);
        for (int i = 0; i < node->n_operands; i++)
            all &= h->fixed[node->operands[i]->id];
        for (int i = 0; i < node->n_results; i++)
            h->fixed[node->results[i].id] = all;
    }
}

/* The value outside the loop, in front of it. */
static qn_value *outside(hoist *h, qn_value *value)
{
    if (h->outer[value->id])
        return h->outer[value->id];
    const qn_node *node = value->node;
    qn_value **operands = QN_NEW_ARRAY(h->body->module->arena, qn_value *, node->n_operands);
    for (int i = 0; i < node->n_operands; i++)
        if (!(operands[i] = outside(h, node->operands[i])))
            return NULL;
    qn_node *copy = qn_node_new(h->loop->graph, h->loop, node->op, node->n_operands, operands, node->n_attrs,
                                node->attrs, 0, NULL, &node->loc, h->diags);
    for (int i = 0; copy && i < node->n_results; i++)
        h->outer[node->results[i].id] = &copy->results[i];
    return h->outer[value->id];
}

static void capture(hoist *h, qn_value *value)
{
    qn_node *loop = h->loop;
    qn_value *made = outside(h, value);
    if (!made)
        return;
    qn_value **operands = QN_NEW_ARRAY(h->body->module->arena, qn_value *, loop->n_operands + 1);
    for (int i = 0; i < loop->n_operands; i++)
        operands[i] = loop->operands[i];
    operands[loop->n_operands] = made;
    loop->operands = operands;
    loop->n_operands++;
    for (int r = 0; r < loop->n_regions; r++) {
        qn_value *input = qn_graph_add_input(loop->regions[r], NULL, made->type, QN_ROLE_INPUT);
        if (loop->regions[r] == h->body)
            qn_value_replace(value, input);
    }
}

static bool hoist_from(qn_node *loop, qn_diags *diags)
{
    hoist h = { .loop = loop, .body = loop->regions[loop->n_regions - 1], .diags = diags };
    qn_arena *arena = h.body->module->arena;
    find_bound(&h);
    find_fixed(&h);
    /* what is fixed and read by what is not, or returned; where it holds work */
    bool *work = QN_NEW_ARRAY(arena, bool, h.body->n_values + 1);
    bool *wanted = QN_NEW_ARRAY(arena, bool, h.body->n_values + 1), changed = false;
    QN_FOR_NODES (h.body, node) {
        const bool fixed = node->n_results > 0 && h.fixed[node->results[0].id];
        bool any = fixed && is_work(node);
        for (int i = 0; i < node->n_operands; i++) {
            any |= work[node->operands[i]->id];
            wanted[node->operands[i]->id] |= !fixed;
        }
        for (int i = 0; i < node->n_results; i++)
            work[node->results[i].id] = fixed && any;
    }
    for (int i = 0; i < h.body->n_outputs; i++)
        wanted[h.body->outputs[i]->id] = true;
    for (qn_node *node = h.body->first; node; node = node->next)
        for (int i = 0; i < node->n_results; i++) {
            qn_value *value = &node->results[i];
            if (work[value->id] && wanted[value->id] && qn_ops[node->op].class != QN_BROADCAST) {
                capture(&h, value);
                changed = true;
            }
        }
    if (changed)
        qn_graph_resolve(h.body);
    return changed;
}

static bool hoist_graph(qn_graph *graph, qn_diags *diags)
{
    bool changed = false;
    for (qn_node *node = graph->first; node; node = node->next) {
        for (int r = 0; r < node->n_regions; r++)
            changed |= hoist_graph(node->regions[r], diags);
        if (node->op == QN_OP_SCAN || node->op == QN_OP_WHILE)
            changed |= hoist_from(node, diags);
    }
    return changed;
}

qn_status qn_pass_hoist(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    (void)options;
    const int errors = diags->n_errors;
    *out_changed = hoist_graph(graph, diags);
    if (*out_changed)
        qn_graph_resolve(graph);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
