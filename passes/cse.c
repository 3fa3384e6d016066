/* Merges equal nodes: same op, operands and attributes, no effect, no regions. And results of a scan that stack the same values.
 *
 * Before: any graph. After: no two such nodes are equal, up to the order of operands that commute. Regions are graphs of
 * their own: nothing is shared between them, since they are isolated.
 *
 *   %0 = exp %x
 *   %1 = exp %x            (is %0)
 *   %2 = mul %0, %1        -> mul %0, %0
 */
#include <string.h>

#include "passes/passes.h"

typedef struct table {
    qn_node **slots; /* open addressing; n_slots a power of two */
    size_t n_slots;
} table;

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t hash_attr(const qn_attr *attr)
{
    uint64_t hash = mix((uint64_t)attr->key, (uint64_t)attr->n);
    switch (qn_attrs[attr->key].kind) {
    case QN_ATTR_KIND_FLOAT: {
        uint64_t bits;
        memcpy(&bits, &attr->f, sizeof bits);
        return mix(hash, bits);
    }
    case QN_ATTR_KIND_INTS:
        for (int i = 0; i < attr->n; i++)
            hash = mix(hash, (uint64_t)attr->ints[i]);
        return hash;
    case QN_ATTR_KIND_DIMS:
        for (int i = 0; i < attr->n; i++)
            hash = mix(hash, attr->dims[i]->hash);
        return hash;
    case QN_ATTR_KIND_STRING:
        for (const char *s = attr->s; *s; s++)
            hash = mix(hash, (unsigned char)*s);
        return hash;
    case QN_ATTR_KIND_TENSOR: return mix(hash, qn_tensor_key(attr->tensor));
    default: return mix(hash, (uint64_t)attr->i);
    }
}

static uint64_t hash_node(const qn_node *node)
{
    uint64_t hash = mix((uint64_t)node->op, (uint64_t)node->n_operands), operands = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const uint64_t operand = mix(7, (uint64_t)(uintptr_t)node->operands[i]);
        operands = (qn_ops[node->op].flags & QN_FLAG_COMMUTES) ? operands + operand : mix(operands, operand);
    }
    hash = mix(hash, operands);
    for (int i = 0; i < node->n_attrs; i++)
        hash = mix(hash, hash_attr(&node->attrs[i]));
    return hash;
}

static bool equal_nodes(const qn_node *a, const qn_node *b)
{
    if (a->op != b->op || a->n_operands != b->n_operands || a->n_attrs != b->n_attrs ||
        a->n_results != b->n_results)
        return false;
    bool same = true, crossed = a->n_operands == 2 && (qn_ops[a->op].flags & QN_FLAG_COMMUTES);
    for (int i = 0; i < a->n_operands; i++) {
        same &= a->operands[i] == b->operands[i];
        crossed = crossed && a->operands[i] == b->operands[1 - i];
    }
    if (!same && !crossed)
        return false;
    for (int i = 0; i < a->n_attrs; i++)
        if (!qn_attr_equal(&a->attrs[i], &b->attrs[i]))
            return false;
    return true;
}

/* The first node equal to `node`; `node` itself, which is then in the table, when there is none. */
static qn_node *find_or_insert(table *t, qn_node *node)
{
    for (size_t at = hash_node(node) & (t->n_slots - 1);; at = (at + 1) & (t->n_slots - 1)) {
        if (!t->slots[at])
            return t->slots[at] = node;
        if (equal_nodes(t->slots[at], node))
            return t->slots[at];
    }
}

/* Behind its node. The value stays, so it is not forwarded. */
static bool use_instead(qn_value *old, qn_value *value)
{
    bool changed = false;
    for (qn_node *node = old->node->next; node; node = node->next)
        for (int i = 0; i < node->n_operands; i++)
            if (qn_value_resolve(node->operands[i]) == old) {
                node->operands[i] = value;
                changed = true;
            }
    qn_graph *graph = old->node->graph;
    for (int i = 0; i < graph->n_outputs; i++)
        if (qn_value_resolve(graph->outputs[i]) == old) {
            graph->outputs[i] = value;
            changed = true;
        }
    return changed;
}

/* The gradient of a loop's body may say one value for two of the things that the body reads. */
static bool merge_stacked(qn_node *scan)
{
    const qn_graph *body = scan->regions[0];
    const int n_carried = (int)qn_attr_int(scan, QN_ATTR_N_CARRIED);
    bool changed = false;
    for (int i = n_carried + 1; i < scan->n_results; i++)
        for (int k = n_carried; k < i; k++)
            if (qn_value_resolve(body->outputs[i]) == qn_value_resolve(body->outputs[k])) {
                changed |= use_instead(&scan->results[i], &scan->results[k]);
                break;
            }
    return changed;
}

static bool merge_equal(qn_graph *graph, qn_arena *scratch)
{
    size_t n = 0;
    QN_FOR_NODES (graph, node)
        n++;
    table t = { .n_slots = 16 };
    while (t.n_slots < 2 * n)
        t.n_slots *= 2;
    t.slots = QN_NEW_ARRAY(scratch, qn_node *, t.n_slots);
    bool changed = false;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        for (int i = 0; i < node->n_regions; i++)
            changed |= merge_equal(node->regions[i], scratch);
        if (node->op == QN_OP_SCAN)
            changed |= merge_stacked(node);
        if (node->n_regions > 0 || (qn_ops[node->op].flags & QN_FLAG_EFFECT) || node->n_results == 0)
            continue;
        const qn_node *first = find_or_insert(&t, node);
        if (first == node)
            continue;
        for (int i = 0; i < node->n_results; i++)
            qn_value_replace(&node->results[i], &first->results[i]);
        qn_node_remove(node);
        changed = true;
    }
    return changed;
}

qn_status qn_pass_cse(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    (void)options, (void)diags;
    qn_arena *scratch = qn_arena_new();
    *out_changed = merge_equal(graph, scratch);
    qn_arena_free(scratch);
    if (*out_changed)
        qn_graph_resolve(graph);
    return QUERN_OK;
}
