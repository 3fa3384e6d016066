/* Lowering of one function: where its values are, and its groups one after the other.
 *
 * Before: a graph that the passes have simplified. After: a program whose kernels are complete, whose buffers have places
 * except for offsets in the workspace (passes/memplan.c) and the weights (whoever lays them out).
 *
 * Values of the graph become buffers: inputs and outputs are the caller's, constants weights, all others workspace. A reshape
 * is the memory of its operand. An output is written where it belongs by the kernel that makes it; a copy at the end is
 * needed only for what is an input or constant itself, for the second of two equal outputs, and for a state that is still
 * read after its new contents are known. */
#include "passes/lower.h"

#include <string.h>

#include "passes/passes.h"

/* ---- symbols ---- */

qn_dim qn_lower_dim(const qn_lowering *l, qn_dim d)
{
    return qn_dim_import(l->program->dims, d);
}

/* Brings the symbols into the program's table: first those that come with the call, in the order of the function's inputs (a
 * region's may have extents that a node binds), then those that nodes bind. */
static void add_entry_symbols(qn_lowering *l, const qn_graph *function)
{
    for (int i = 0; i < function->n_inputs; i++)
        for (int d = 0; d < function->inputs[i]->type.rank; d++)
            qn_lower_dim(l, function->inputs[i]->type.dims[d]);
}

static void add_bound_symbols(qn_lowering *l, const qn_graph *graph)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_regions; i++)
            add_bound_symbols(l, node->regions[i]);
        const qn_dim symbol = qn_node_binds(node);
        if (!symbol || qn_dim_find_symbol(l->program->dims, symbol->name))
            continue;
        qn_lower_dim(l, symbol);
        qn_vec_push(l->arena, &l->limits, qn_node_limit(node));
    }
}

/* Largest values of the bound symbols, by those of the ones before. */
static void find_limits(qn_lowering *l)
{
    qn_dims *dims = l->program->dims;
    const int n = qn_dims_symbol_count(dims);
    qn_dim *known = QN_NEW_ARRAY(l->arena, qn_dim, n), *limits = QN_NEW_ARRAY(l->arena, qn_dim, l->limits.n);
    for (size_t i = 0; i < l->limits.n; i++) {
        const qn_dim most = qn_dim_most(dims, qn_lower_dim(l, l->limits.items[i]), known, n);
        const qn_dim symbol = qn_dims_symbol_at(dims, l->program->n_entry_symbols + (int)i);
        limits[i] = qn_dim_min(dims, most, qn_dim_const(dims, symbol->max));
        if (limits[i]->max >= symbol->min)
            qn_dim_set_range(dims, symbol, symbol->min, limits[i]->max);
        known[l->program->n_entry_symbols + (int)i] = limits[i];
    }
    l->program->limits = limits;
}

/* A caller brings memory for what a buffer has at the limits. */
static qn_status check_largest(const qn_lowering *l)
{
    int io, axis;
    const qn_dim dim = qn_program_falling(l->program, &io, &axis);
    return dim ? qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, NULL,
                          "function '%s': %s has %s by axis %d, which falls where what the run finds "
                          "rises: how much memory it takes can't be said before",
                          l->function->name, l->program->io[io].name, qn_dim_print(dim, l->arena), axis)
               : QUERN_OK;
}

/* ---- buffers ---- */

static const char *name_of(const qn_value *value)
{
    return value->name                            ? value->name
           : value->node && value->node->loc.node ? value->node->loc.node
           : value->node                          ? qn_ops[value->node->op].name
                                                  : "";
}

static qn_pbuffer buffer_for(const qn_lowering *l, const qn_value *value, qn_place place)
{
    return (qn_pbuffer){ .name = name_of(value),
                         .dtype = value->type.dtype,
                         .elements = qn_lower_dim(l, qn_type_elements_dim(l->module->dims, &value->type)),
                         .place = place,
                         .io = -1,
                         .base = -1,
                         .loop = -1 };
}

int qn_lower_scratch(qn_lowering *l, const char *name, qn_dtype dtype, qn_dim elements)
{
    return qn_program_add_buffer(l->program, (qn_pbuffer){ .name = name,
                                                           .dtype = dtype,
                                                           .elements = elements,
                                                           .place = QN_PLACE_ARENA,
                                                           .io = -1,
                                                           .base = -1,
                                                           .loop = -1 });
}

static int weights(qn_lowering *l, const qn_value *value)
{
    const qn_tensor *tensor = qn_value_constant(value);
    for (int i = 0; i < l->program->n_buffers; i++) {
        const qn_pbuffer *b = &l->program->buffers[i];
        if (b->place == QN_PLACE_WEIGHTS && b->dtype == tensor->type.dtype &&
            qn_tensor_same_bytes(b->tensor, tensor))
            return i;
    }
    qn_pbuffer buffer = buffer_for(l, value, QN_PLACE_WEIGHTS);
    buffer.tensor = tensor;
    return qn_program_add_buffer(l->program, buffer);
}

int qn_lower_buffer(qn_lowering *l, qn_value *value)
{
    value = qn_value_memory(value);
    int *buffer = &l->scope->buffers[value->id];
    if (*buffer < 0)
        *buffer = qn_value_constant(value)
                      ? weights(l, value)
                      : qn_program_add_buffer(l->program, buffer_for(l, value, QN_PLACE_ARENA));
    return *buffer;
}

bool qn_lower_is_io(const qn_lowering *l, qn_value *value)
{
    const int buffer = l->scope->buffers[qn_value_memory(value)->id];
    return buffer >= 0 && l->program->buffers[buffer].place == QN_PLACE_IO;
}

int qn_lower_replaced(const qn_lowering *l, int buffer)
{
    const qn_graph *graph = l->scope->graph;
    for (int i = 0; graph == l->function && i < graph->n_outputs; i++)
        if (l->aliased[i] >= 0 && l->scope->buffers[qn_value_memory(graph->outputs[i])->id] == buffer)
            return l->aliased[i];
    return -1;
}

void qn_lower_copy(qn_lowering *l, int from, int to)
{
    if (from == to)
        return;
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_COPY);
    step->n_buffers = 2;
    step->buffers = QN_NEW_ARRAY(l->arena, int, 2);
    step->buffers[0] = from;
    step->buffers[1] = to;
}

const char *qn_lower_node_name(const qn_lowering *l, const qn_node *node)
{
    const char *name = name_of(&node->results[0]);
    return node->loc.op ? qn_arena_printf(l->arena, "%s (%s)", name, node->loc.op) : name;
}

int qn_lower_node_text(qn_lowering *l, const char *text)
{
    qn_program *p = l->program;
    if (p->n_nodes == l->node_capacity) {
        l->node_capacity = l->node_capacity ? 2 * l->node_capacity : 16;
        const char **names = QN_NEW_ARRAY(l->arena, const char *, l->node_capacity);
        if (p->n_nodes > 0)
            memcpy(names, p->node_names, (size_t)p->n_nodes * sizeof *names);
        p->node_names = names;
    }
    p->node_names[p->n_nodes] = text;
    return p->n_nodes++;
}

int qn_lower_node_number(qn_lowering *l, const qn_node *node)
{
    qn_node *mutable = (qn_node *)node; /* `user` is scratch */
    if (!mutable->user)
        mutable->user = (void *)(intptr_t)(qn_lower_node_text(l, qn_lower_node_name(l, node)) + 1);
    return (int)(intptr_t)mutable->user - 1;
}

/* ---- names ---- */

static const char *op_name(const qn_node *node)
{
    return node->op == QN_OP_REDUCE ? qn_kind_names[qn_attr_reduce_kind(node)] : qn_ops[node->op].name;
}

/* The names of what it computes, without what only moves; the first few of many. */
const char *qn_group_kernel_name(const qn_group *group, qn_arena *arena)
{
    enum { SHOWN = 4 };
    const char *name = "";
    int shown = 0, all = 0;
    for (int i = 0; i < group->n_nodes; i++) {
        const qn_op_class class = qn_ops[group->nodes[i]->op].class;
        if (class == QN_BROADCAST || class == QN_LEAF || group->nodes[i]->op == QN_OP_RESHAPE)
            continue;
        if (all++ < SHOWN) {
            name = qn_arena_printf(arena, "%s%s%s", name, *name ? "_" : "", op_name(group->nodes[i]));
            shown++;
        }
    }
    if (all > shown)
        return qn_arena_printf(arena, "%s_%d_more", name, all - shown);
    return *name ? name : op_name(group->root);
}

const char *qn_group_step_name(const qn_group *group, qn_arena *arena)
{
    const char *kernel = qn_group_kernel_name(group, arena);
    const qn_node *last = group->n_outputs > 0 ? group->outputs[0]->node : group->root;
    const char *node = group->root->loc.node ? group->root->loc.node : last->loc.node;
    return node ? qn_arena_printf(arena, "%s %s", kernel, node) : kernel;
}

/* ---- groups ---- */

static qn_status lower_group(qn_lowering *l, const qn_group *group)
{
    const qn_template *template = qn_template_for(group, l->options);
    if (template)
        return template->lower(l, group);
    if (group->root->op == QN_OP_MATMUL_PACKED)
        return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &group->root->loc,
                        "matmul_packed of %s and %s: there is no kernel for such panels on this machine",
                        qn_type_print(&group->root->operands[0]->type, l->arena),
                        qn_type_print(&group->root->operands[1]->type, l->arena));
    switch (group->kind) {
    case QN_GROUP_LOOP:
    case QN_GROUP_CONTRACTION: return qn_lower_loop(l, group);
    case QN_GROUP_ROWS: return qn_lower_rows(l, group);
    case QN_GROUP_SINGLE: return qn_lower_opaque(l, group);
    case QN_GROUP_CONTROL: return qn_lower_control(l, group);
    }
    QN_UNREACHABLE("group kind %d", (int)group->kind);
}

qn_status qn_lower_graph(qn_lowering *l, qn_graph *graph, const int *input_buffers, const int *wishes,
                         int *out_buffers)
{
    qn_scope scope = { .graph = graph }, *outer = l->scope;
    qn_groups groups;
    QN_TRY(qn_fuse(graph, l->options, l->arena, &groups, l->diags));
    scope.buffers = QN_NEW_ARRAY(l->arena, int, graph->n_values); /* numbered by fuse */
    scope.bounds = QN_NEW_ARRAY(l->arena, qn_bounds, graph->n_values);
    memset(scope.buffers, -1, (size_t)graph->n_values * sizeof *scope.buffers);
    QN_FOR_NODES (graph, node)
        node->user = NULL;
    for (int i = 0; i < graph->n_inputs; i++)
        scope.buffers[graph->inputs[i]->id] = input_buffers[i];
    for (int i = 0; i < graph->n_outputs; i++) {
        const qn_value *memory = qn_value_memory(graph->outputs[i]);
        if (wishes[i] >= 0 && memory->node && !qn_value_constant(memory) && scope.buffers[memory->id] < 0)
            scope.buffers[memory->id] = wishes[i];
    }
    l->scope = &scope;
    const size_t n_checks = l->checks.n;
    qn_lower_checks(l, graph);
    for (size_t i = 0; i < groups.n; i++)
        QN_TRY(lower_group(l, &groups.items[i]));
    l->checks.n = n_checks;
    for (int i = 0; i < graph->n_outputs; i++) {
        out_buffers[i] = qn_lower_buffer(l, graph->outputs[i]);
        if (wishes[i] >= 0) {
            qn_lower_copy(l, out_buffers[i], wishes[i]);
            out_buffers[i] = wishes[i];
        }
    }
    l->scope = outer;
    return QUERN_OK;
}

/* ---- the function ---- */

static int add_io(qn_lowering *l, const qn_value *value, const char *name, qn_pio io)
{
    qn_program *p = l->program;
    io.name = name ? name : name_of(value);
    io.type = value->type;
    qn_dim *dims = QN_NEW_ARRAY(l->arena, qn_dim, value->type.rank);
    for (int i = 0; i < value->type.rank; i++)
        dims[i] = qn_lower_dim(l, value->type.dims[i]);
    io.type.dims = dims;
    p->io[p->n_io] = io;
    qn_pbuffer buffer = buffer_for(l, value, QN_PLACE_IO);
    buffer.name = io.name;
    buffer.io = p->n_io++;
    return qn_program_add_buffer(p, buffer);
}

/* May the output be written to the memory of the state that it replaces, by whatever step writes it now? Every other step
 * that touches the state comes before; the step itself may read it where it writes. */
typedef struct alias_check {
    const qn_program *p;
    int memory; /* io */
    int target; /* buffer that is to become it */
    int last_use, first_write, number;
    bool conflict, in_loop;
} alias_check;

static bool is_memory(const qn_program *p, int buffer, int io)
{
    const qn_pbuffer *b = &p->buffers[qn_program_root(p, buffer)];
    return b->place == QN_PLACE_IO && qn_program_io_memory(p, b->io) == io;
}

static bool starts_from(const qn_program *p, int buffer, int target)
{
    while (buffer != target &&
           (p->buffers[buffer].place == QN_PLACE_VIEW || p->buffers[buffer].place == QN_PLACE_SLOT))
        buffer = p->buffers[buffer].base;
    return buffer == target;
}

static void check_alias_steps(alias_check *c, const qn_steps *steps, int depth)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        const int number = c->number++;
        const qn_kernel *k = step->kind == QN_STEP_KERNEL ? c->p->kernels[step->kernel] : NULL;
        int input = -1, output = -1;
        bool uses = step->condition >= 0 && is_memory(c->p, step->condition, c->memory);
        for (int b = 0; b < step->n_buffers; b++) {
            if (is_memory(c->p, step->buffers[b], c->memory)) {
                uses = true;
                input = input < 0 && step->buffers[b] != c->target ? b : -2;
            }
            if (starts_from(c->p, step->buffers[b], c->target)) {
                output = b;
                if (c->first_write < 0)
                    c->first_write = number;
            }
        }
        if (uses)
            c->last_use = number;
        if (uses && output >= 0 && number == c->first_write)
            c->conflict |=
                !(step->kind == QN_STEP_COPY || (k && input >= 0 && k->buffers[output]->inplace == input));
        c->in_loop |= depth > 0 && (uses || output >= 0);
        const int inside = depth + (step->kind == QN_STEP_LOOP);
        check_alias_steps(c, &step->test, inside);
        check_alias_steps(c, &step->body, inside);
        check_alias_steps(c, &step->other, inside);
    }
}

/* Does another output become what the memory holds before the run? That is copied at the end. */
static bool is_kept(const qn_program *p, const qn_graph *graph, const int *made, int output, int memory)
{
    for (int i = 0; i < graph->n_outputs; i++)
        if (i != output && is_memory(p, made[i], memory))
            return true;
    return false;
}

static bool may_write_in_place(const qn_lowering *l, const qn_graph *graph, const int *made, int output,
                               int io)
{
    const int target = made[output];
    if (l->program->buffers[target].place != QN_PLACE_ARENA ||
        is_kept(l->program, graph, made, output, qn_program_io_memory(l->program, io)))
        return false;
    alias_check c = { .p = l->program,
                      .memory = qn_program_io_memory(l->program, io),
                      .target = target,
                      .last_use = -1,
                      .first_write = -1 };
    check_alias_steps(&c, &l->program->steps, 0);
    return !c.conflict && !c.in_loop && c.last_use <= c.first_write;
}

/* Surely the same memory: an output that may replace an input can also have its own. */
static bool same_io(const qn_program *p, const qn_pbuffer *a, const qn_pbuffer *b)
{
    const int memory = qn_program_io_memory(p, a->io);
    return memory == qn_program_io_memory(p, b->io) && (a->io == b->io || p->io[memory].role == QUERN_STATE);
}

/* Copies that became copies of a buffer to itself go. */
static void remove_void_copies(qn_program *p, qn_steps *steps)
{
    size_t kept = 0;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        if (step->kind == QN_STEP_COPY) {
            const qn_pbuffer *from = &p->buffers[step->buffers[0]], *to = &p->buffers[step->buffers[1]];
            if (from == to ||
                (from->place == QN_PLACE_IO && to->place == QN_PLACE_IO && same_io(p, from, to)))
                continue;
        }
        steps->items[kept++] = *step;
    }
    steps->n = kept;
}

/* Outputs that replace states. Those that can't be written in place are copied at the end, by way of a buffer of their own
 * where a copy before would overwrite them. */
static void place_aliased(qn_lowering *l, const qn_graph *graph, const int *io_buffers, const int *made)
{
    qn_program *p = l->program;
    int *sources = QN_NEW_ARRAY(l->arena, int, graph->n_outputs);
    for (int i = 0; i < graph->n_outputs; i++) {
        sources[i] = -1;
        if (io_buffers[i] < 0)
            continue;
        const int io = p->buffers[io_buffers[i]].io;
        if (may_write_in_place(l, graph, made, i, io)) {
            p->buffers[made[i]].place = QN_PLACE_IO;
            p->buffers[made[i]].io = io;
        } else {
            sources[i] = made[i];
        }
    }
    for (int i = 0; i < graph->n_outputs; i++)
        if (sources[i] >= 0 && p->buffers[sources[i]].place == QN_PLACE_IO && sources[i] != io_buffers[i]) {
            const qn_pbuffer *from = &p->buffers[sources[i]];
            const int own = qn_lower_scratch(l, from->name, from->dtype, from->elements);
            qn_lower_copy(l, sources[i], own);
            sources[i] = own;
        }
    for (int i = 0; i < graph->n_outputs; i++)
        if (sources[i] >= 0)
            qn_lower_copy(l, sources[i], io_buffers[i]);
    remove_void_copies(p, &p->steps);
}

static qn_status lower_function(qn_lowering *l, qn_graph *graph)
{
    qn_program *p = l->program;
    const int n = graph->n_outputs;
    int *inputs = QN_NEW_ARRAY(l->arena, int, graph->n_inputs);
    int *wishes = QN_NEW_ARRAY(l->arena, int, n), *made = QN_NEW_ARRAY(l->arena, int, n);
    int *aliased = QN_NEW_ARRAY(l->arena, int, n); /* buffer of the io that the output replaces, or -1 */
    p->io = QN_NEW_ARRAY(l->arena, qn_pio, graph->n_inputs + n);
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_value *value = graph->inputs[i];
        const qn_input_role role = graph->input_roles ? graph->input_roles[i] : QN_ROLE_INPUT;
        const qn_pio io = { .role = role == QN_ROLE_INPUT ? QUERN_INPUT : QUERN_STATE,
                            .alias = -1,
                            .trainable = role == QN_ROLE_PARAM,
                            .initial = graph->input_initial ? graph->input_initial[i] : NULL,
                            .initial_offset = -1 };
        inputs[i] = add_io(l, value, value->name, io);
    }
    for (int i = 0; i < n; i++) {
        const int alias = graph->aliases ? graph->aliases[i] : -1;
        const char *name = graph->output_names ? graph->output_names[i] : NULL;
        wishes[i] = aliased[i] = -1;
        if (alias >= 0 && p->io[p->buffers[inputs[alias]].io].role == QUERN_STATE) {
            aliased[i] = inputs[alias];
            continue;
        }
        const qn_pio io = { .role = QUERN_OUTPUT,
                            .alias = alias >= 0 ? p->buffers[inputs[alias]].io : -1,
                            .initial_offset = -1 };
        const int buffer = add_io(l, graph->outputs[i], name, io);
        *(alias >= 0 ? &aliased[i] : &wishes[i]) = buffer;
    }
    l->function = graph;
    l->aliased = aliased;
    QN_TRY(qn_lower_graph(l, graph, inputs, wishes, made));
    place_aliased(l, graph, aliased, made);
    return QUERN_OK;
}

int qn_lower_kernel(qn_lowering *l, const qn_kernel *kernel)
{
    qn_program *p = l->program;
    const int n = p->n_kernels;
    qn_arena *arena = qn_arena_new();
    const int number = qn_program_add_canonical(p, NULL, qn_kernel_canonical(kernel, arena));
    if (number < n) {
        qn_arena_free(arena);
        return number;
    }
    p->kernels[number] = qn_kernel_clone(kernel, arena);
    qn_vec_push(l->arena, &l->written, arena);
    return number;
}

qn_status qn_lower(qn_graph *function, const qn_pass_options *options, qn_arena *arena,
                   qn_program **out_program, qn_diags *diags)
{
    bool changed;
    QN_TRY(qn_pass_expand(function, options, &changed, diags));
    qn_graph_remove_dead(function);
    qn_dims *dims = qn_dims_new(arena);
    qn_lowering l = { .options = options,
                      .module = function->module,
                      .arena = arena,
                      .program = qn_program_new(arena, dims, function->name),
                      .diags = diags,
                      .loop = -1 };
    add_entry_symbols(&l, function);
    l.program->n_entry_symbols = qn_dims_symbol_count(dims);
    add_bound_symbols(&l, function);
    find_limits(&l);
    l.steps = &l.program->steps;
    const int n_known = qn_dims_symbol_count(dims);
    qn_status status = lower_function(&l, function);
    if (!status && qn_dims_symbol_count(dims) > n_known)
        status = qn_error(diags, QUERN_ERROR_MODEL, NULL,
                          "function '%s': dimension '%s' has no value: no input says it", function->name,
                          qn_dims_symbol_at(dims, n_known)->name);
    if (!status)
        status = check_largest(&l);
    if (status) {
        for (size_t i = 0; i < l.written.n; i++)
            qn_arena_free(l.written.items[i]);
        return status;
    }
    QN_TRY(qn_lower_finish(&l));
    qn_lower_beside(l.program);
    qn_program_number(l.program);
    *out_program = l.program;
    return QUERN_OK;
}
