/* Checks every invariant of graphs and modules: what a pass may rely on before it runs, and must leave behind.
 *
 *   order     each operand is an input or a result of an earlier node of the same graph, and stands for itself (resolved)
 *   links     prev and next, the graph, the numbers of results
 *   types     those of qn_infer, given op, operands, attributes and regions
 *   regions   owned by one node; isolated: that follows from "of the same graph"
 *   symbols   what a node binds is used only behind it, in its graph and in regions of later nodes
 *   signature names, roles, initial contents, aliases
 *   calls     no function reaches itself */
#include <string.h>

#include "ir/graph.h"

/* A set of addresses. */
typedef struct pointer_set {
    const void **slots;
    size_t n, capacity;
} pointer_set;

/* The symbols that the nodes of a function bind: a flag for each symbol of the module; NULL: it binds none. */
typedef struct bound_symbols {
    const qn_graph *function;
    bool *flags;
} bound_symbols;

typedef struct verifier {
    const qn_graph *function; /* the one that is being checked, for messages */
    qn_diags *diags;
    qn_arena *scratch;
    pointer_set regions;         /* seen so far */
    qn_vec(bound_symbols) bound; /* of callees, as they were met */
} verifier;

/* ---- helpers ---- */

static size_t slot_of(const pointer_set *set, const void *p)
{
    size_t at = (size_t)((uintptr_t)p * 0x9e3779b97f4a7c15u >> 24) & (set->capacity - 1);
    while (set->slots[at] && set->slots[at] != p)
        at = (at + 1) & (set->capacity - 1);
    return at;
}

static bool set_has(const pointer_set *set, const void *p)
{
    return set->capacity && set->slots[slot_of(set, p)];
}

/* False when it was there already. */
static bool set_add(pointer_set *set, const void *p, qn_arena *arena)
{
    if (2 * (set->n + 1) > set->capacity) {
        pointer_set grown = { .n = set->n, .capacity = set->capacity ? 2 * set->capacity : 64 };
        grown.slots = QN_NEW_ARRAY(arena, const void *, grown.capacity);
        for (size_t i = 0; i < set->capacity; i++)
            if (set->slots[i])
                grown.slots[slot_of(&grown, set->slots[i])] = set->slots[i];
        *set = grown;
    }
    size_t at = slot_of(set, p);
    if (set->slots[at])
        return false;
    set->slots[at] = p;
    set->n++;
    return true;
}

static const char *name_of(const qn_graph *graph)
{
    return graph->name ? graph->name : "(region)";
}

__attribute__((format(printf, 3, 4))) static qn_status fail(verifier *v, const qn_node *node,
                                                            const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(v->scratch, format, args);
    va_end(args);
    return qn_error(v->diags, QUERN_ERROR_MODEL, node ? &node->loc : NULL, "graph @%s%s%s: %s",
                    name_of(v->function), node ? ", " : "", node ? qn_ops[node->op].name : "", text);
}

/* ---- symbols that nodes bind ---- */

static qn_status collect_bound(verifier *v, const qn_graph *graph, bool **flags)
{
    QN_FOR_NODES (graph, node) {
        qn_dim symbol = qn_node_binds(node);
        if (symbol) {
            if (!*flags)
                *flags = QN_NEW_ARRAY(v->scratch, bool, qn_dims_symbol_count(graph->module->dims));
            if ((*flags)[symbol->symbol])
                return fail(v, node, "another node binds dimension %s already", symbol->name);
            (*flags)[symbol->symbol] = true;
        }
        for (int r = 0; r < node->n_regions; r++)
            QN_TRY(collect_bound(v, node->regions[r], flags));
    }
    return QUERN_OK;
}

/* What a function binds; NULL for nothing. Mistakes in another function than the one being checked are its own. */
static const bool *bound_by(verifier *v, const qn_graph *function)
{
    for (size_t i = 0; i < v->bound.n; i++)
        if (v->bound.items[i].function == function)
            return v->bound.items[i].flags;
    qn_diags quiet;
    verifier other = { .function = function, .diags = &quiet, .scratch = v->scratch };
    qn_diags_init(&quiet, v->scratch);
    bound_symbols bound = { function, NULL };
    (void)collect_bound(&other, function, &bound.flags);
    qn_vec_push(v->scratch, &v->bound, bound);
    return bound.flags;
}

/* A symbol of d whose flag is set, or NULL. */
static qn_dim find_flagged(qn_dim d, const bool *flags)
{
    if (d->kind == QN_DIM_SYMBOL)
        return flags[d->symbol] ? d : NULL;
    for (int i = 0; i < d->n; i++) {
        qn_dim found = find_flagged(d->operands[i], flags);
        if (found)
            return found;
    }
    return NULL;
}

static qn_dim find_flagged_in(const qn_dim *dims, int n, const bool *flags)
{
    for (int i = 0; i < n; i++) {
        qn_dim found = find_flagged(dims[i], flags);
        if (found)
            return found;
    }
    return NULL;
}

/* `open`: bound by the function, but not by a node above. */
static qn_status check_symbols(verifier *v, const qn_graph *graph, bool *open)
{
    for (int i = 0; i < graph->n_inputs; i++) {
        qn_dim symbol = find_flagged_in(graph->inputs[i]->type.dims, graph->inputs[i]->type.rank, open);
        if (symbol)
            return fail(v, NULL, "input %d uses dimension %s, which a node binds only later", i,
                        symbol->name);
    }
    QN_FOR_NODES (graph, node) {
        qn_dim bound = qn_node_binds(node), used = NULL;
        if (bound)
            open[bound->symbol] = false;
        for (int i = 0; i < node->n_attrs && !used; i++)
            if (qn_attrs[node->attrs[i].key].kind == QN_ATTR_KIND_DIMS)
                used = find_flagged_in(node->attrs[i].dims, node->attrs[i].n, open);
        for (int r = 0; r < node->n_regions; r++) {
            QN_TRY(check_symbols(v, node->regions[r], open));
            QN_FOR_NODES (node->regions[r], inner) /* no longer bound outside */
                if (qn_node_binds(inner))
                    open[qn_node_binds(inner)->symbol] = true;
        }
        for (int i = 0; i < node->n_results && !used; i++)
            used = find_flagged_in(node->results[i].type.dims, node->results[i].type.rank, open);
        if (used)
            return fail(v, node, "uses dimension %s, which no node above it binds", used->name);
    }
    return QUERN_OK;
}

/* The results of a call can't have dimensions that the callee finds out. */
static qn_status check_call_symbols(verifier *v, const qn_node *node)
{
    const qn_attr *name = qn_attr_find(node, QN_ATTR_FUNCTION);
    const qn_graph *callee = name ? qn_module_find(node->graph->module, name->s) : NULL;
    const bool *flags = callee ? bound_by(v, callee) : NULL;
    for (int i = 0; flags && i < node->n_results; i++) {
        qn_dim symbol = find_flagged_in(node->results[i].type.dims, node->results[i].type.rank, flags);
        if (symbol)
            return fail(v, node, "result %d has dimension %s, which @%s binds itself", i, symbol->name,
                        callee->name);
    }
    return QUERN_OK;
}

/* ---- nodes ---- */

static qn_status check_attrs(verifier *v, const qn_node *node)
{
    for (int i = 0; i < node->n_attrs; i++) {
        const qn_attr *attr = &node->attrs[i];
        if ((unsigned)attr->key >= QN_N_ATTRS)
            return fail(v, node, "attribute %d has no known key", i);
        if (i > 0 && node->attrs[i - 1].key >= attr->key)
            return fail(v, node, "attributes %s and %s are not in order",
                        qn_attrs[node->attrs[i - 1].key].name, qn_attrs[attr->key].name);
        if (attr->n < 0)
            return fail(v, node, "attribute %s has a negative length", qn_attrs[attr->key].name);
        if (qn_attrs[attr->key].kind == QN_ATTR_KIND_DTYPE && !qn_dtype_bytes((qn_dtype)attr->i))
            return fail(v, node, "attribute dtype is no data type");
    }
    return QUERN_OK;
}

static qn_status check_types(verifier *v, const qn_node *node)
{
    int capacity = qn_node_max_results(node), n;
    qn_type *types = QN_NEW_ARRAY(v->scratch, qn_type, capacity);
    QN_TRY(qn_infer(node, node->graph->module, types, capacity, &n, v->diags));
    if (n != node->n_results)
        return fail(v, node, "it has %d results, by its rule %d", node->n_results, n);
    for (int i = 0; i < n; i++)
        if (!qn_type_equal(&types[i], &node->results[i].type))
            return fail(v, node, "result %d is %s, by its rule %s", i,
                        qn_type_print(&node->results[i].type, v->scratch),
                        qn_type_print(&types[i], v->scratch));
    return QUERN_OK;
}

static qn_status check_body(verifier *v, const qn_graph *graph);

static qn_status check_node(verifier *v, const qn_node *node, const qn_graph *graph, pointer_set *defined)
{
    if ((unsigned)node->op >= QN_N_OPS)
        return fail(v, NULL, "a node has no known op");
    if (node->graph != graph || node->dead)
        return fail(v, node, node->dead ? "it was removed" : "it belongs to another graph");
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *operand = node->operands[i];
        if (!operand || !set_has(defined, operand))
            return fail(v, node, "operand %d is not defined above it", i);
        if (operand->forward)
            return fail(v, node, "operand %d was replaced, which is not resolved", i);
    }
    QN_TRY(check_attrs(v, node));
    if (node->n_regions && qn_ops[node->op].class != QN_CONTROL)
        return fail(v, node, "it has regions");
    for (int r = 0; r < node->n_regions; r++) {
        const qn_graph *region = node->regions[r];
        if (!set_add(&v->regions, region, v->scratch))
            return fail(v, node, "its region %d belongs to another node too", r);
        if (region->module != graph->module || region->name || region->aliases)
            return fail(v, node, "its region %d is a function", r);
        QN_TRY(check_body(v, region));
    }
    QN_TRY(check_types(v, node));
    if (node->op == QN_OP_CALL)
        QN_TRY(check_call_symbols(v, node));
    for (int i = 0; i < node->n_results; i++) {
        if (node->results[i].node != node || node->results[i].index != i)
            return fail(v, node, "result %d doesn't know that it is one", i);
        set_add(defined, &node->results[i], v->scratch);
    }
    return QUERN_OK;
}

static qn_status check_body(verifier *v, const qn_graph *graph)
{
    pointer_set defined = { 0 };
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_value *input = graph->inputs[i];
        if (input->node || input->index != i)
            return fail(v, NULL, "input %d doesn't know that it is one", i);
        if (!quern_dtype_size((int)input->type.dtype) || input->type.rank < 0 ||
            input->type.rank > QN_MAX_RANK)
            return fail(v, NULL, "input %d has no valid type", i);
        if (!set_add(&defined, input, v->scratch))
            return fail(v, NULL, "input %d is there twice", i);
    }
    const qn_node *previous = NULL;
    QN_FOR_NODES (graph, node) {
        if (node->prev != previous)
            return fail(v, node, "the list of nodes is broken here");
        QN_TRY(check_node(v, node, graph, &defined));
        previous = node;
    }
    if (graph->last != previous)
        return fail(v, NULL, "the list of nodes ends before the last one");
    for (int i = 0; i < graph->n_outputs; i++) {
        if (!graph->outputs[i] || !set_has(&defined, graph->outputs[i]))
            return fail(v, NULL, "output %d is no value of the graph", i);
        if (graph->outputs[i]->forward)
            return fail(v, NULL, "output %d was replaced, which is not resolved", i);
    }
    return QUERN_OK;
}

/* ---- functions ---- */

static bool same_name(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

static qn_status check_inputs(verifier *v, const qn_graph *graph)
{
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_value *input = graph->inputs[i];
        for (int k = 0; k < i; k++)
            if (same_name(input->name, graph->inputs[k]->name))
                return fail(v, NULL, "inputs %d and %d are both called %s", k, i, input->name);
        const qn_tensor *initial = graph->input_initial ? graph->input_initial[i] : NULL;
        if (!initial)
            continue;
        if (graph->input_roles[i] == QN_ROLE_INPUT)
            return fail(v, NULL, "input %d is neither param nor state, but has initial contents", i);
        if (!qn_type_equal(&initial->type, &input->type))
            return fail(v, NULL, "input %d is %s, its initial contents are %s", i,
                        qn_type_print(&input->type, v->scratch), qn_type_print(&initial->type, v->scratch));
    }
    return QUERN_OK;
}

static qn_status check_outputs(verifier *v, const qn_graph *graph)
{
    for (int i = 0; i < graph->n_outputs; i++) {
        for (int k = 0; k < i; k++)
            if (graph->output_names && same_name(graph->output_names[i], graph->output_names[k]))
                return fail(v, NULL, "outputs %d and %d are both called %s", k, i, graph->output_names[i]);
        int alias = graph->aliases ? graph->aliases[i] : -1;
        if (alias < 0)
            continue;
        if (alias >= graph->n_inputs)
            return fail(v, NULL, "output %d updates input %d, which is not there", i, alias);
        for (int k = 0; k < i; k++)
            if (graph->aliases[k] == alias)
                return fail(v, NULL, "outputs %d and %d both update input %d", k, i, alias);
        if (!qn_type_equal(&graph->outputs[i]->type, &graph->inputs[alias]->type))
            return fail(v, NULL, "output %d is %s, but updates input %d, which is %s", i,
                        qn_type_print(&graph->outputs[i]->type, v->scratch), alias,
                        qn_type_print(&graph->inputs[alias]->type, v->scratch));
    }
    return QUERN_OK;
}

static qn_status check_function(const qn_graph *graph, qn_arena *scratch, qn_diags *diags)
{
    verifier v = { .function = graph, .diags = diags, .scratch = scratch };
    QN_TRY(check_body(&v, graph));
    QN_TRY(check_inputs(&v, graph));
    QN_TRY(check_outputs(&v, graph));
    bool *open = NULL;
    QN_TRY(collect_bound(&v, graph, &open));
    return open ? check_symbols(&v, graph, open) : QUERN_OK;
}

qn_status qn_verify_graph(const qn_graph *graph, qn_diags *diags)
{
    qn_arena *scratch = qn_arena_new();
    qn_status status = check_function(graph, scratch, diags);
    qn_arena_free(scratch);
    return status;
}

/* ---- modules ---- */

typedef enum { UNSEEN, ON_PATH, DONE } visit;

static qn_status check_calls(verifier *v, const qn_module *module, int function, visit *visits);

static qn_status check_calls_in(verifier *v, const qn_graph *graph, visit *visits)
{
    const qn_module *module = graph->module;
    QN_FOR_NODES (graph, node) {
        for (int r = 0; r < node->n_regions; r++)
            QN_TRY(check_calls_in(v, node->regions[r], visits));
        const qn_attr *name = node->op == QN_OP_CALL ? qn_attr_find(node, QN_ATTR_FUNCTION) : NULL;
        for (int i = 0; name && i < module->n_functions; i++)
            if (strcmp(module->functions[i]->name, name->s) == 0) {
                if (visits[i] == ON_PATH)
                    return fail(v, node, "@%s reaches itself by calls, which no graph may", name->s);
                QN_TRY(check_calls(v, module, i, visits));
            }
    }
    return QUERN_OK;
}

static qn_status check_calls(verifier *v, const qn_module *module, int function, visit *visits)
{
    if (visits[function] == DONE)
        return QUERN_OK;
    visits[function] = ON_PATH;
    QN_TRY(check_calls_in(v, module->functions[function], visits));
    visits[function] = DONE;
    return QUERN_OK;
}

static qn_status check_module(const qn_module *module, qn_arena *scratch, qn_diags *diags)
{
    verifier v = { .diags = diags, .scratch = scratch };
    visit *visits = QN_NEW_ARRAY(scratch, visit, module->n_functions);
    for (int i = 0; i < module->n_functions; i++) {
        v.function = module->functions[i];
        if (!v.function->name || !*v.function->name)
            return fail(&v, NULL, "function %d has no name", i);
        if (v.function->module != module)
            return fail(&v, NULL, "it belongs to another module");
        for (int k = 0; k < i; k++)
            if (strcmp(v.function->name, module->functions[k]->name) == 0)
                return fail(&v, NULL, "two functions have this name");
    }
    for (int i = 0; i < module->n_functions; i++) {
        v.function = module->functions[i];
        QN_TRY(check_calls(&v, module, i, visits));
        QN_TRY(check_function(v.function, scratch, diags));
    }
    return QUERN_OK;
}

qn_status qn_verify(const qn_module *module, qn_diags *diags)
{
    qn_arena *scratch = qn_arena_new();
    qn_status status = check_module(module, scratch, diags);
    qn_arena_free(scratch);
    return status;
}
