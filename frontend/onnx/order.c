/* The order in which nodes are imported. Nodes come behind what they read, as ONNX wants it; but converters append nodes that make
 * inputs of earlier ones, and ONNX Runtime takes that. */
#include <string.h>

#include "frontend/onnx/import.h"

typedef struct maker {
    const char *name; /* NULL: free */
    size_t node;
} maker;

typedef struct ordering {
    qn_arena *arena;
    maker *makers; /* open addressing */
    size_t mask;
    qn_vec(size_t) needed; /* those that a node reads from, one node's behind the other's */
} ordering;

static maker *find_maker(const ordering *o, const char *name)
{
    size_t at = (size_t)qn_onnx_hash_name(name) & o->mask;
    while (o->makers[at].name && strcmp(o->makers[at].name, name))
        at = (at + 1) & o->mask;
    return &o->makers[at];
}

static void add_makers(ordering *o, size_t n, Onnx__Node *const *nodes)
{
    size_t n_names = 0, capacity = 16;
    for (size_t i = 0; i < n; i++)
        n_names += nodes[i]->n_output;
    while (capacity < 2 * n_names)
        capacity *= 2;
    o->mask = capacity - 1;
    o->makers = QN_NEW_ARRAY(o->arena, maker, capacity);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < nodes[i]->n_output; k++)
            *find_maker(o, nodes[i]->output[k]) = (maker){ nodes[i]->output[k], i };
}

static void need(ordering *o, const char *name)
{
    const maker *m = *name ? find_maker(o, name) : NULL;
    if (m && m->name)
        qn_vec_push(o->arena, &o->needed, m->node);
}

/* What the node reads, its graphs included: those may read any name around them. */
static void need_inputs(ordering *o, const Onnx__Node *node, int depth)
{
    for (size_t i = 0; i < node->n_input; i++)
        need(o, node->input[i]);
    for (size_t i = 0; i < node->n_attribute; i++) {
        const Onnx__Graph *g = node->attribute[i]->g;
        for (size_t k = 0; g && depth < QN_ONNX_MAX_DEPTH && k < g->n_node; k++)
            need_inputs(o, g->node[k], depth + 1);
        for (size_t k = 0; g && k < g->n_output; k++)
            need(o, g->output[k]->name);
    }
}

/* Each node behind those that it needs, else in their order; false where they go in a circle. */
static bool sort(qn_arena *arena, size_t n, const size_t *starts, const size_t *needed, size_t *out)
{
    enum { NEW, BEGUN, DONE };
    uint8_t *state = QN_NEW_ARRAY(arena, uint8_t, n);
    size_t *next = qn_arena_copy(arena, starts, n * sizeof *starts), *stack = QN_NEW_ARRAY(arena, size_t, n),
           n_out = 0;
    for (size_t i = 0; i < n; i++) {
        size_t depth = 0;
        if (state[i] == NEW) {
            state[i] = BEGUN;
            stack[depth++] = i;
        }
        while (depth) {
            const size_t top = stack[depth - 1];
            if (next[top] == starts[top + 1]) {
                state[top] = DONE;
                out[n_out++] = top;
                depth--;
                continue;
            }
            const size_t other = needed[next[top]++];
            if (state[other] == BEGUN)
                return false;
            if (state[other] == NEW) {
                state[other] = BEGUN;
                stack[depth++] = other;
            }
        }
    }
    return true;
}

const size_t *qn_onnx_order(qn_arena *arena, size_t n, Onnx__Node *const *nodes)
{
    ordering o = { .arena = arena };
    size_t *starts = QN_NEW_ARRAY(arena, size_t, n + 1), *order = QN_NEW_ARRAY(arena, size_t, n);
    bool sorted = true;
    add_makers(&o, n, nodes);
    for (size_t i = 0; i < n; i++) {
        need_inputs(&o, nodes[i], 0);
        starts[i + 1] = o.needed.n;
        for (size_t k = starts[i]; k < starts[i + 1]; k++)
            sorted &= o.needed.items[k] < i;
    }
    return !sorted && sort(arena, n, starts, o.needed.items, order) ? order : NULL;
}
