/* Modules, graphs, nodes and values: making, changing, walking. */
#include "ir/graph.h"

#include <stdlib.h>
#include <string.h>

/* ---- modules and graphs ---- */

qn_module *qn_module_new(const char *name)
{
    qn_arena *arena = qn_arena_new();
    qn_module *module = QN_NEW(arena, qn_module);
    module->arena = arena;
    module->dims = qn_dims_new(arena);
    module->name = qn_arena_strdup(arena, name ? name : "");
    return module;
}

void qn_module_free(qn_module *module)
{
    if (module)
        qn_arena_free(module->arena);
}

qn_graph *qn_module_find(const qn_module *module, const char *name)
{
    for (int i = 0; i < module->n_functions; i++)
        if (strcmp(module->functions[i]->name, name) == 0)
            return module->functions[i];
    return NULL;
}

qn_graph *qn_region_new(qn_module *module)
{
    qn_graph *graph = QN_NEW(module->arena, qn_graph);
    graph->module = module;
    return graph;
}

/* `array` with room for item number n: capacities are powers of two, so it moves when n is one. */
static void *room_for_one(qn_arena *arena, void *array, int n, size_t item_size)
{
    if (n != 0 && (n & (n - 1)) != 0)
        return array;
    void *grown = qn_arena_calloc(arena, n ? 2 * (size_t)n : 1, item_size);
    if (n > 0)
        memcpy(grown, array, (size_t)n * item_size);
    return grown;
}

qn_graph *qn_function_new(qn_module *module, const char *name)
{
    QN_ASSERT(!qn_module_find(module, name), "two functions named '%s'", name);
    qn_graph *graph = qn_region_new(module);
    graph->name = qn_arena_strdup(module->arena, name);
    if (module->n_functions == module->function_capacity) {
        size_t capacity = (size_t)module->function_capacity;
        module->functions = qn_vec_grow(module->arena, module->functions, (size_t)module->n_functions,
                                        &capacity, sizeof *module->functions);
        module->function_capacity = (int)capacity;
    }
    module->functions[module->n_functions++] = graph;
    return graph;
}

static const char *copy_name(qn_arena *arena, const char *name)
{
    return name ? qn_arena_strdup(arena, name) : NULL;
}

qn_value *qn_graph_add_input(qn_graph *graph, const char *name, qn_type type, qn_input_role role)
{
    qn_arena *arena = graph->module->arena;
    const int n = graph->n_inputs;
    qn_value *value = QN_NEW(arena, qn_value);
    *value = (qn_value){ .type = type, .index = n, .name = copy_name(arena, name) };
    graph->inputs = room_for_one(arena, graph->inputs, n, sizeof *graph->inputs);
    graph->inputs[n] = value;
    if (graph->name) {
        graph->input_roles = room_for_one(arena, graph->input_roles, n, sizeof *graph->input_roles);
        graph->input_initial = room_for_one(arena, graph->input_initial, n, sizeof *graph->input_initial);
        graph->input_roles[n] = role;
        graph->input_initial[n] = NULL;
    }
    graph->n_inputs++;
    return value;
}

void qn_graph_add_output(qn_graph *graph, qn_value *value, const char *name, int alias)
{
    qn_arena *arena = graph->module->arena;
    const int n = graph->n_outputs;
    graph->outputs = room_for_one(arena, graph->outputs, n, sizeof *graph->outputs);
    graph->outputs[n] = value;
    if (graph->name) {
        graph->output_names = room_for_one(arena, graph->output_names, n, sizeof *graph->output_names);
        graph->output_names[n] = copy_name(arena, name);
    }
    if (graph->aliases) {
        graph->aliases = room_for_one(arena, graph->aliases, n, sizeof *graph->aliases);
    } else if (alias >= 0) {
        int capacity = 1;
        while (capacity <= n)
            capacity *= 2;
        graph->aliases = QN_NEW_ARRAY(arena, int, capacity);
        for (int i = 0; i < n; i++)
            graph->aliases[i] = -1;
    }
    if (graph->aliases)
        graph->aliases[n] = alias;
    graph->n_outputs++;
}

void qn_graph_remove_input(qn_graph *graph, int index)
{
    QN_ASSERT(index >= 0 && index < graph->n_inputs, "no input %d", index);
    for (int i = index; i + 1 < graph->n_inputs; i++) {
        graph->inputs[i] = graph->inputs[i + 1];
        graph->inputs[i]->index = i;
        if (graph->input_roles) {
            graph->input_roles[i] = graph->input_roles[i + 1];
            graph->input_initial[i] = graph->input_initial[i + 1];
        }
    }
    graph->n_inputs--;
    /* Arrays have room for the next power of two; shrinking to one would make the next addition move too early,
     * which costs memory only. */
    for (int i = 0; graph->aliases && i < graph->n_outputs; i++)
        if (graph->aliases[i] == index)
            graph->aliases[i] = -1;
        else if (graph->aliases[i] > index)
            graph->aliases[i]--;
}

/* ---- nodes ---- */

static void link_before(qn_node *node, qn_node *before)
{
    qn_graph *graph = node->graph;
    node->next = before;
    node->prev = before ? before->prev : graph->last;
    *(node->prev ? &node->prev->next : &graph->first) = node;
    *(before ? &before->prev : &graph->last) = node;
}

static void unlink_node(qn_node *node)
{
    *(node->prev ? &node->prev->next : &node->graph->first) = node->next;
    *(node->next ? &node->next->prev : &node->graph->last) = node->prev;
    node->prev = node->next = NULL;
}

/* Attributes sorted by key, with lists and strings of their own. */
static qn_attr *copy_attrs(qn_arena *arena, int n, const qn_attr *attrs)
{
    qn_attr *copy = QN_NEW_ARRAY(arena, qn_attr, n);
    for (int i = 0; i < n; i++) {
        qn_attr attr = attrs[i];
        switch (qn_attrs[attr.key].kind) {
        case QN_ATTR_KIND_INTS:
            attr.ints = qn_arena_copy(arena, attr.ints, (size_t)attr.n * sizeof *attr.ints);
            break;
        case QN_ATTR_KIND_DIMS:
            attr.dims = qn_arena_copy(arena, attr.dims, (size_t)attr.n * sizeof *attr.dims);
            break;
        case QN_ATTR_KIND_STRING: attr.s = qn_arena_strdup(arena, attr.s); break;
        case QN_ATTR_KIND_INT:
        case QN_ATTR_KIND_FLOAT:
        case QN_ATTR_KIND_BOOL:
        case QN_ATTR_KIND_DTYPE:
        case QN_ATTR_KIND_KIND:
        case QN_ATTR_KIND_DIRECTION:
        case QN_ATTR_KIND_TENSOR: break;
        }
        int at = i;
        for (; at > 0 && copy[at - 1].key > attr.key; at--)
            copy[at] = copy[at - 1];
        copy[at] = attr;
    }
    return copy;
}

int qn_node_max_results(const qn_node *node)
{
    if (qn_ops[node->op].n_results >= 0)
        return qn_ops[node->op].n_results;
    int n = node->n_operands;
    for (int r = 0; r < node->n_regions; r++)
        n = node->regions[r]->n_outputs > n ? node->regions[r]->n_outputs : n;
    const qn_attr *function = qn_attr_find(node, QN_ATTR_FUNCTION);
    const qn_graph *callee = function ? qn_module_find(node->graph->module, function->s) : NULL;
    return callee && callee->n_outputs > n ? callee->n_outputs : n;
}

static void add_results(qn_node *node, int n, const qn_type *types)
{
    node->n_results = n;
    node->results = QN_NEW_ARRAY(node->graph->module->arena, qn_value, n);
    for (int i = 0; i < n; i++)
        node->results[i] = (qn_value){ .type = types[i], .node = node, .index = i };
}

qn_node *qn_node_new(qn_graph *graph, qn_node *before, qn_op op, int n_operands, qn_value *const *operands,
                     int n_attrs, const qn_attr *attrs, int n_regions, qn_graph *const *regions,
                     const qn_loc *loc, qn_diags *diags)
{
    enum { FEW = 16 };
    qn_module *module = graph->module;
    qn_arena *arena = module->arena;
    qn_node *node = QN_NEW(arena, qn_node);
    node->op = op;
    node->graph = graph;
    if (loc)
        node->loc = *loc;
    node->n_operands = n_operands;
    node->operands = QN_NEW_ARRAY(arena, qn_value *, n_operands);
    for (int i = 0; i < n_operands; i++)
        node->operands[i] = qn_value_resolve(operands[i]);
    node->n_attrs = n_attrs;
    node->attrs = copy_attrs(arena, n_attrs, attrs);
    node->n_regions = n_regions;
    if (n_regions > 0)
        node->regions = qn_arena_copy(arena, regions, (size_t)n_regions * sizeof(qn_graph *));

    qn_type few[FEW], *types = few;
    int capacity = qn_node_max_results(node), n_results = 0;
    if (capacity > FEW)
        types = QN_NEW_ARRAY(arena, qn_type, capacity);
    else
        capacity = FEW;
    if (qn_infer(node, module, types, capacity, &n_results, diags))
        return NULL;
    add_results(node, n_results, types);
    link_before(node, before);
    return node;
}

void qn_node_remove(qn_node *node)
{
    unlink_node(node);
    node->dead = true;
}

void qn_node_move_before(qn_node *node, qn_node *before)
{
    if (node == before)
        return;
    unlink_node(node);
    link_before(node, before);
}

/* ---- values ---- */

const qn_tensor *qn_value_constant(const qn_value *value)
{
    return value->node && value->node->op == QN_OP_CONSTANT ? qn_attr_tensor(value->node, QN_ATTR_VALUE)
                                                            : NULL;
}

qn_value *qn_value_resolve(qn_value *value)
{
    qn_value *end = value;
    while (end->forward)
        end = end->forward;
    while (value != end) { /* the next reader has one step to go */
        qn_value *next = value->forward;
        value->forward = end;
        value = next;
    }
    return end;
}

void qn_value_replace(qn_value *old, qn_value *value)
{
    old = qn_value_resolve(old);
    value = qn_value_resolve(value);
    if (old == value)
        return;
    QN_ASSERT(old->type.dtype == value->type.dtype && old->type.rank == value->type.rank,
              "a value is replaced by one of another type");
    old->forward = value;
}

void qn_graph_resolve(qn_graph *graph)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_operands; i++)
            node->operands[i] = qn_value_resolve(node->operands[i]);
        for (int r = 0; r < node->n_regions; r++)
            qn_graph_resolve(node->regions[r]);
    }
    for (int i = 0; i < graph->n_outputs; i++)
        graph->outputs[i] = qn_value_resolve(graph->outputs[i]);
}

int qn_graph_number(qn_graph *graph)
{
    int id = 0;
    for (int i = 0; i < graph->n_inputs; i++)
        graph->inputs[i]->id = id++;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            node->results[i].id = id++;
    graph->n_values = id;
    return id;
}

int *qn_graph_count_uses(qn_graph *graph, qn_arena *arena)
{
    int *uses = QN_NEW_ARRAY(arena, int, qn_graph_number(graph));
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_operands; i++)
            uses[node->operands[i]->id]++;
    for (int i = 0; i < graph->n_outputs; i++)
        uses[graph->outputs[i]->id]++;
    return uses;
}

int qn_collective_how(const qn_node *node)
{
    if (node->op == QN_OP_BROADCAST_RANK)
        return (int)qn_attr_int(node, QN_ATTR_ROOT);
    if (node->op == QN_OP_ALL_GATHER)
        return 0;
    switch (qn_attr_reduce_kind(node)) {
    case QN_MEAN: return QUERN_COMBINE_MEAN;
    case QN_KIND_MAX: return QUERN_COMBINE_MAX;
    case QN_KIND_MIN: return QUERN_COMBINE_MIN;
    default: return QUERN_COMBINE_SUM;
    }
}

int64_t qn_collective_ranks(const qn_node *node)
{
    return qn_attr_find(node, QN_ATTR_RANKS) ? qn_attr_int(node, QN_ATTR_RANKS) : 0;
}

const char *qn_collective_wants(qn_op op, int64_t ranks, int how, qn_arena *arena)
{
    if (op == QN_OP_BROADCAST_RANK)
        return qn_arena_printf(arena,
                               "%s is from rank %d: the communicator has fewer ranks, or there is none",
                               qn_ops[op].name, how);
    return qn_arena_printf(arena,
                           "%s is for %lld ranks: the communicator has another number, or there is none",
                           qn_ops[op].name, (long long)ranks);
}

static bool graph_has_effect(const qn_graph *graph, int depth);

/* `depth` ends the descent into functions that call each other in a circle (which qn_verify refuses). */
static bool node_has_effect(const qn_node *node, int depth)
{
    if (qn_ops[node->op].flags & QN_FLAG_EFFECT)
        return true;
    for (int r = 0; r < node->n_regions; r++)
        if (graph_has_effect(node->regions[r], depth + 1))
            return true;
    if (node->op != QN_OP_CALL)
        return false;
    const qn_graph *callee = qn_module_find(node->graph->module, qn_attr_string(node, QN_ATTR_FUNCTION));
    return !callee || graph_has_effect(callee, depth + 1);
}

static bool graph_has_effect(const qn_graph *graph, int depth)
{
    if (depth > 100)
        return true;
    QN_FOR_NODES (graph, node)
        if (node_has_effect(node, depth))
            return true;
    return false;
}

bool qn_node_has_effect(const qn_node *node)
{
    return node_has_effect(node, 0);
}

/* ---- symbols ---- */

qn_dim qn_node_binds(const qn_node *node)
{
    const qn_attr *attr = qn_ops[node->op].flags & QN_FLAG_BINDS ? qn_attr_find(node, QN_ATTR_SYMBOL) : NULL;
    return attr && attr->n == 1 && attr->dims[0]->kind == QN_DIM_SYMBOL ? attr->dims[0] : NULL;
}

qn_dim qn_node_limit(const qn_node *node)
{
    return node->op == QN_OP_EXTENT
               ? qn_attr_dims(node, QN_ATTR_LIMIT, NULL)[0]
               : qn_type_elements_dim(node->graph->module->dims, &node->operands[0]->type);
}

bool qn_graph_binds(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        if (qn_node_binds(node))
            return true;
    return false;
}

static void mark_dim(qn_dim d, bool *flags)
{
    if (d->kind == QN_DIM_SYMBOL)
        flags[d->symbol] = true;
    for (int i = 0; i < d->n; i++)
        mark_dim(d->operands[i], flags);
}

void qn_type_mark_symbols(const qn_type *type, bool *flags)
{
    for (int i = 0; i < type->rank; i++)
        mark_dim(type->dims[i], flags);
}

void qn_node_mark_symbols(const qn_node *node, bool *flags)
{
    const qn_dim bound = qn_node_binds(node);
    const bool before = bound && flags[bound->symbol];
    for (int i = 0; i < node->n_operands; i++)
        qn_type_mark_symbols(&node->operands[i]->type, flags);
    for (int i = 0; i < node->n_results; i++)
        qn_type_mark_symbols(&node->results[i].type, flags);
    for (int i = 0; i < node->n_attrs; i++)
        for (int k = 0; qn_attrs[node->attrs[i].key].kind == QN_ATTR_KIND_DIMS && k < node->attrs[i].n; k++)
            mark_dim(node->attrs[i].dims[k], flags);
    if (bound)
        flags[bound->symbol] = before;
    for (int r = 0; r < node->n_regions; r++)
        QN_FOR_NODES (node->regions[r], inner)
            qn_node_mark_symbols(inner, flags);
}

/* ---- what nobody reads ---- */

/* Backwards, taking the uses of what goes away with it, so that one walk finds all. */
static bool remove_dead(qn_graph *graph, qn_arena *scratch)
{
    bool changed = false;
    bool *used =
        qn_graph_binds(graph) ? QN_NEW_ARRAY(scratch, bool, qn_dims_symbol_count(graph->module->dims)) : NULL;
    int *uses = qn_graph_count_uses(graph, scratch);
    for (qn_node *node = graph->last, *prev; node; node = prev) {
        prev = node->prev;
        bool live = false;
        for (int i = 0; i < node->n_results && !live; i++)
            live = uses[node->results[i].id] > 0;
        live |= used && qn_node_binds(node) && used[qn_node_binds(node)->symbol];
        if (live || node_has_effect(node, 0)) {
            for (int r = 0; r < node->n_regions; r++)
                changed |= remove_dead(node->regions[r], scratch);
            if (used)
                qn_node_mark_symbols(node, used);
            continue;
        }
        for (int i = 0; i < node->n_operands; i++)
            uses[node->operands[i]->id]--;
        qn_node_remove(node);
        changed = true;
    }
    return changed;
}

bool qn_graph_remove_dead(qn_graph *graph)
{
    qn_arena *scratch = qn_arena_new();
    qn_graph_resolve(graph);
    const bool changed = remove_dead(graph, scratch);
    qn_arena_free(scratch);
    return changed;
}

/* ---- copies ---- */

/* Which value of the copy stands for which of the original: open addressing by address. */
typedef struct value_map {
    const qn_value **keys;
    qn_value **values;
    size_t mask, n;
} value_map;

static size_t map_slot(const value_map *map, const qn_value *key)
{
    size_t i = ((uintptr_t)key >> 4) * 0x9e3779b97f4a7c15u >> 20 & map->mask;
    while (map->keys[i] && map->keys[i] != key)
        i = (i + 1) & map->mask;
    return i;
}

static void map_init(value_map *map, qn_arena *arena, const qn_graph *graph)
{
    size_t n = (size_t)graph->n_inputs;
    QN_FOR_NODES (graph, node)
        n += (size_t)node->n_results;
    map->mask = 15;
    while (map->mask < 2 * n)
        map->mask = 2 * map->mask + 1;
    map->keys = QN_NEW_ARRAY(arena, const qn_value *, map->mask + 1);
    map->values = QN_NEW_ARRAY(arena, qn_value *, map->mask + 1);
}

static void map_add(value_map *map, const qn_value *from, qn_value *to)
{
    const size_t i = map_slot(map, from);
    map->keys[i] = from;
    map->values[i] = to;
}

static qn_value *map_get(const value_map *map, qn_value *from)
{
    const size_t i = map_slot(map, qn_value_resolve(from));
    QN_ASSERT(map->keys[i], "a graph that reads a value from outside is copied");
    return map->values[i];
}

static void clone_into(const qn_graph *from, qn_graph *to, qn_arena *scratch)
{
    qn_arena *arena = to->module->arena;
    value_map map;
    map_init(&map, scratch, from);
    for (int i = 0; i < from->n_inputs; i++) {
        const qn_value *input = from->inputs[i];
        const qn_input_role role = from->input_roles ? from->input_roles[i] : QN_ROLE_INPUT;
        qn_value *copy = qn_graph_add_input(to, NULL, input->type, role);
        copy->name = input->name;
        if (from->input_initial && to->input_initial)
            to->input_initial[i] = from->input_initial[i];
        map_add(&map, input, copy);
    }
    QN_FOR_NODES (from, node) {
        qn_node *copy = QN_NEW(arena, qn_node);
        *copy = *node;
        copy->graph = to;
        copy->user = NULL;
        copy->operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands);
        for (int i = 0; i < node->n_operands; i++)
            copy->operands[i] = map_get(&map, node->operands[i]);
        copy->attrs = qn_arena_copy(arena, node->attrs, (size_t)node->n_attrs * sizeof *node->attrs);
        copy->regions = QN_NEW_ARRAY(arena, qn_graph *, node->n_regions);
        for (int r = 0; r < node->n_regions; r++) {
            copy->regions[r] = qn_region_new(to->module);
            clone_into(node->regions[r], copy->regions[r], scratch);
        }
        copy->results = qn_arena_copy(arena, node->results, (size_t)node->n_results * sizeof *node->results);
        for (int i = 0; i < node->n_results; i++) {
            copy->results[i].node = copy;
            copy->results[i].forward = NULL;
            map_add(&map, &node->results[i], &copy->results[i]);
        }
        link_before(copy, NULL);
    }
    for (int i = 0; i < from->n_outputs; i++)
        qn_graph_add_output(to, map_get(&map, from->outputs[i]),
                            from->output_names ? from->output_names[i] : NULL,
                            from->aliases ? from->aliases[i] : -1);
}

qn_graph *qn_graph_clone(const qn_graph *graph, const char *name)
{
    qn_graph *copy = name ? qn_function_new(graph->module, name) : qn_region_new(graph->module);
    qn_arena *scratch = qn_arena_new();
    clone_into(graph, copy, scratch);
    qn_arena_free(scratch);
    return copy;
}
