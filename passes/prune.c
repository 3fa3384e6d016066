/* Takes out of loops and branches what nobody reads: stacked results, carried values that only make themselves, operands.
 *
 *   %a, %b, %c = scan %x, %y, %z {…}              %a = scan %x {…}
 *     body (%p, %q: carried; %r) {                  body (%p: carried) {
 *       return f(%p), g(%q, %r), %q           ->      return f(%p)
 *   return %a                                     return %a
 */
#include "ir/build.h"
#include "passes/passes.h"

typedef struct control {
    qn_node *node;
    int n_carried, n_inputs; /* of the regions */
    int offset;              /* input i of the regions is operand i + offset */
    bool *live_input, *live_result;
} control;

/* Marks the inputs of the region that its outputs with `wanted` (NULL: all) depend on. */
static void mark_inputs(control *c, qn_graph *region, const bool *wanted, qn_arena *scratch)
{
    bool *live = QN_NEW_ARRAY(scratch, bool, qn_graph_number(region) + 1);
    bool *used = qn_graph_binds(region)
                     ? QN_NEW_ARRAY(scratch, bool, qn_dims_symbol_count(region->module->dims))
                     : NULL;
    for (int i = 0; i < region->n_outputs; i++)
        live[region->outputs[i]->id] |= !wanted || wanted[i];
    for (const qn_node *node = region->last; node; node = node->prev) {
        bool any = qn_node_has_effect(node);
        any |= used && qn_node_binds(node) && used[qn_node_binds(node)->symbol];
        for (int i = 0; i < node->n_results; i++)
            any |= live[node->results[i].id];
        for (int i = 0; i < node->n_operands && any; i++)
            live[node->operands[i]->id] = true;
        if (any && used)
            qn_node_mark_symbols(node, used);
    }
    for (int i = 0; i < c->n_inputs; i++)
        c->live_input[i] |= live[region->inputs[i]->id];
}

static bool is_condition(const control *c, int region)
{
    return c->node->op == QN_OP_WHILE && region == 0;
}

/* What a carried value is made of is needed as long as the value is. */
static void find_live(control *c, qn_arena *scratch)
{
    for (bool again = true; again;) {
        again = false;
        for (int r = 0; r < c->node->n_regions; r++)
            mark_inputs(c, c->node->regions[r], is_condition(c, r) ? NULL : c->live_result, scratch);
        for (int i = 0; i < c->n_carried; i++)
            if (c->live_input[i] && !c->live_result[i])
                c->live_result[i] = again = true;
    }
    for (int i = 0; i < c->n_carried; i++)
        c->live_input[i] = c->live_result[i];
}

static qn_graph *prune_region(const control *c, const qn_graph *region, bool keeps_outputs)
{
    qn_graph *copy = qn_graph_clone(region, NULL);
    const int n = copy->n_outputs;
    qn_value **outputs = copy->outputs;
    copy->n_outputs = 0;
    copy->outputs = NULL;
    copy->output_names = NULL;
    for (int i = 0; i < n; i++)
        if (keeps_outputs || c->live_result[i])
            qn_graph_add_output(copy, outputs[i], NULL, -1);
    qn_graph_remove_dead(copy);
    for (int i = c->n_inputs - 1; i >= 0; i--)
        if (!c->live_input[i])
            qn_graph_remove_input(copy, i);
    return copy;
}

static bool rebuild(const control *c, qn_diags *diags)
{
    qn_node *node = c->node;
    qn_arena *arena = node->graph->module->arena;
    const int n_scanned = node->op == QN_OP_SCAN ? (int)qn_attr_int(node, QN_ATTR_N_SCANNED) : 0;
    qn_graph **regions = QN_NEW_ARRAY(arena, qn_graph *, node->n_regions);
    qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands);
    qn_attr *attrs = QN_NEW_ARRAY(arena, qn_attr, node->n_attrs);
    int n = 0, carried = 0, scanned = 0;
    for (int i = 0; i < c->offset; i++)
        operands[n++] = node->operands[i];
    for (int i = 0; i < c->n_inputs; i++)
        if (c->live_input[i]) {
            operands[n++] = node->operands[i + c->offset];
            carried += i < c->n_carried;
            scanned += i >= c->n_carried && i < c->n_carried + n_scanned;
        }
    for (int i = 0; i < node->n_attrs; i++) {
        attrs[i] = node->attrs[i];
        if (attrs[i].key == QN_ATTR_N_CARRIED)
            attrs[i].i = carried;
        if (attrs[i].key == QN_ATTR_N_SCANNED)
            attrs[i].i = scanned;
    }
    for (int r = 0; r < node->n_regions; r++)
        regions[r] = prune_region(c, node->regions[r], is_condition(c, r));
    qn_node *small = qn_node_new(node->graph, node, node->op, n, operands, node->n_attrs, attrs,
                                 node->n_regions, regions, &node->loc, diags);
    if (!small)
        return false;
    for (int i = 0, k = 0; i < node->n_results; i++)
        if (c->live_result[i]) {
            small->results[k].name = node->results[i].name;
            qn_value_replace(&node->results[i], &small->results[k++]);
        }
    qn_node_remove(node);
    return true;
}

static bool prune_node(qn_node *node, const int *uses, qn_arena *scratch, qn_diags *diags)
{
    control c = { .node = node, .n_inputs = node->regions[0]->n_inputs };
    c.offset = node->n_operands - c.n_inputs;
    c.n_carried = node->op == QN_OP_IF ? 0 : (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    c.live_input = QN_NEW_ARRAY(scratch, bool, c.n_inputs + 1);
    c.live_result = QN_NEW_ARRAY(scratch, bool, node->n_results + 1);
    for (int i = 0; i < node->n_results; i++)
        c.live_result[i] = uses[node->results[i].id] > 0;
    find_live(&c, scratch);
    bool all = true;
    for (int i = 0; i < c.n_inputs; i++)
        all &= c.live_input[i];
    for (int i = 0; i < node->n_results; i++)
        all &= c.live_result[i];
    return !all && rebuild(&c, diags);
}

static bool prune(qn_graph *graph, qn_arena *scratch, qn_diags *diags)
{
    bool changed = false;
    const int *uses = qn_graph_count_uses(graph, scratch);
    for (qn_node *node = graph->last, *prev; node; node = prev) {
        prev = node->prev;
        if (node->n_regions == 0)
            continue;
        qn_node *const next = node->next;
        changed |= prune_node(node, uses, scratch, diags);
        node = next ? next->prev : graph->last;
        for (int r = 0; r < node->n_regions; r++)
            changed |= prune(node->regions[r], scratch, diags);
    }
    return changed;
}

bool qn_prune(qn_graph *graph, qn_diags *diags)
{
    bool changed = qn_graph_remove_dead(graph);
    for (bool again = true; again;) {
        qn_arena *scratch = qn_arena_new();
        again = prune(graph, scratch, diags);
        qn_arena_free(scratch);
        again = again && (qn_graph_remove_dead(graph), true);
        changed |= again;
    }
    return changed;
}
