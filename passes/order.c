/* The order in which groups run: each as soon as it can where that frees more memory than it takes, or takes next to none.
 *
 * Before: groups in an order in which they can run. After: in another such order.
 *
 *   %g = dot_general …        the gradient of %w
 *   …                         those of all other layers
 *   %1 = sub %w, %step        the update of %w by %g: runs right behind it, so that %g is not kept until here
 *
 * What replaces a state waits for the others that read the state: it can then be written in place. */
#include <string.h>

#include "passes/passes.h"

typedef struct place { /* of a value in memory */
    double bytes;      /* that its last reader frees; 0: it is an input, an output or a constant */
    int n_left;        /* readers that have not run */
    qn_vec(int) readers;
} place;

typedef struct unit { /* a group */
    int n_waits;      /* groups that have to run before */
    double takes;     /* bytes */
    bool done, fixed; /* fixed: it stays behind those that came before it */
    qn_vec(int) followers, inputs;
} unit;

typedef struct order {
    qn_arena *arena;
    place *places; /* by value id */
    unit *units;
    const qn_groups *groups;
    qn_groups result;
    qn_vec(int) maybe; /* groups that may run now */
} order;

static double bytes_of(const qn_type *type)
{
    return (double)quern_dtype_size(type->dtype) * qn_type_most_elements(type);
}

static void add_follower(order *o, int before, int after)
{
    if (before == after)
        return;
    qn_vec_push(o->arena, &o->units[before].followers, after);
    o->units[after].n_waits++;
}

static void find_places(order *o, const qn_graph *graph, int *maker)
{
    for (int i = 0; i < graph->n_values; i++)
        maker[i] = -1;
    for (int i = 0; i < (int)o->groups->n; i++) {
        const qn_group *g = &o->groups->items[i];
        for (int k = 0; k < g->n_outputs; k++) {
            maker[g->outputs[k]->id] = i;
            o->places[g->outputs[k]->id].bytes = bytes_of(&g->outputs[k]->type);
        }
        o->units[i].fixed = g->kind == QN_GROUP_CONTROL;
        for (int k = 0; k < g->n_nodes; k++)
            o->units[i].fixed |= (qn_ops[g->nodes[k]->op].flags & QN_FLAG_EFFECT) != 0;
    }
    for (int i = 0; i < graph->n_outputs; i++)
        o->places[qn_value_memory(graph->outputs[i])->id].bytes = 0;
}

static void find_readers(order *o, const int *maker)
{
    for (int i = 0; i < (int)o->groups->n; i++) {
        const qn_group *g = &o->groups->items[i];
        for (int k = 0; k < g->n_outputs; k++)
            o->units[i].takes += o->places[g->outputs[k]->id].bytes;
        for (int k = 0; k < g->n_inputs; k++) {
            const int id = qn_value_memory(g->inputs[k])->id;
            place *p = &o->places[id];
            if (p->readers.n > 0 && p->readers.items[p->readers.n - 1] == i)
                continue;
            qn_vec_push(o->arena, &p->readers, i);
            p->n_left++;
            qn_vec_push(o->arena, &o->units[i].inputs, id);
            if (maker[id] >= 0)
                add_follower(o, maker[id], i);
        }
        for (int k = 0; k < g->n_waits; k++)
            add_follower(o, maker[qn_value_memory(g->waits[k])->id], i);
    }
}

/* What replaces a state comes behind what reads it. */
static void wait_for_states(order *o, const qn_graph *graph, const int *maker)
{
    for (int i = 0; graph->aliases && i < graph->n_outputs; i++) {
        const int by = maker[qn_value_memory(graph->outputs[i])->id];
        if (graph->aliases[i] < 0 || by < 0)
            continue;
        const place *state = &o->places[graph->inputs[graph->aliases[i]]->id];
        for (size_t k = 0; k < state->readers.n; k++)
            add_follower(o, state->readers.items[k], by);
    }
}

static void run(order *o, int i)
{
    unit *u = &o->units[i];
    u->done = true;
    qn_vec_push(o->arena, &o->result, o->groups->items[i]);
    for (size_t k = 0; k < u->followers.n; k++)
        if (--o->units[u->followers.items[k]].n_waits == 0)
            qn_vec_push(o->arena, &o->maybe, u->followers.items[k]);
    for (size_t k = 0; k < u->inputs.n; k++) {
        place *p = &o->places[u->inputs.items[k]];
        if (--p->n_left == 1) /* the one that is left frees it */
            for (size_t r = 0; r < p->readers.n; r++)
                if (!o->units[p->readers.items[r]].done)
                    qn_vec_push(o->arena, &o->maybe, p->readers.items[r]);
    }
}

static bool saves_memory(const order *o, const unit *u)
{
    double freed = 0;
    for (size_t k = 0; k < u->inputs.n; k++) {
        const place *p = &o->places[u->inputs.items[k]];
        freed += p->n_left == 1 ? p->bytes : 0;
    }
    return freed > u->takes || u->takes <= QN_ARENA_ALIGNMENT; /* others may wait for a scalar */
}

void qn_order_groups(const qn_graph *graph, qn_groups *groups)
{
    qn_arena *scratch = qn_arena_new();
    const int n = (int)groups->n;
    order o = { .arena = scratch, .groups = groups };
    o.places = QN_NEW_ARRAY(scratch, place, graph->n_values);
    o.units = QN_NEW_ARRAY(scratch, unit, n);
    int *maker = QN_NEW_ARRAY(scratch, int, graph->n_values);
    find_places(&o, graph, maker);
    find_readers(&o, maker);
    wait_for_states(&o, graph, maker);
    for (int i = 0; i < n; i++)
        if (o.units[i].n_waits == 0)
            qn_vec_push(scratch, &o.maybe, i);
    for (int i = 0; i < n; i++) {
        if (!o.units[i].done)
            run(&o, i);
        for (size_t k = 0; k < o.maybe.n; k++) {
            const unit *u = &o.units[o.maybe.items[k]];
            if (!u->done && !u->fixed && u->n_waits == 0 && saves_memory(&o, u))
                run(&o, o.maybe.items[k]);
        }
        o.maybe.n = 0;
    }
    if (n > 0)
        memcpy(groups->items, o.result.items, (size_t)n * sizeof *groups->items);
    qn_arena_free(scratch);
}
