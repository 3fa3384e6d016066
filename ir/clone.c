/* A copy of a module, with dimensions fixed or narrowed on the way. Contents of tensors are shared, not copied. */
#include <string.h>

#include "ir/graph.h"

typedef struct cloner {
    qn_module *to;
    qn_dim *symbols; /* what stands for each symbol of the original */
    int n_symbols;
} cloner;

static qn_dim clone_dim(const cloner *c, qn_dim d)
{
    return qn_dim_substitute(c->to->dims, d, c->symbols, c->n_symbols);
}

static const qn_dim *clone_dims(const cloner *c, int n, const qn_dim *dims)
{
    qn_dim *copy = QN_NEW_ARRAY(c->to->arena, qn_dim, n);
    for (int i = 0; i < n; i++)
        copy[i] = clone_dim(c, dims[i]);
    return copy;
}

static qn_type clone_type(const cloner *c, const qn_type *type)
{
    return (
        qn_type){ .dtype = type->dtype, .rank = type->rank, .dims = clone_dims(c, type->rank, type->dims) };
}

static const char *clone_text(const cloner *c, const char *text)
{
    return text ? qn_arena_strdup(c->to->arena, text) : NULL;
}

static const qn_tensor *clone_tensor(const cloner *c, const qn_tensor *tensor)
{
    if (!tensor)
        return NULL;
    qn_tensor *copy = qn_arena_copy(c->to->arena, tensor, sizeof *tensor);
    copy->type = clone_type(c, &tensor->type);
    copy->name = clone_text(c, tensor->name);
    return copy;
}

static qn_attr clone_attr(const cloner *c, const qn_attr *attr)
{
    qn_attr copy = *attr;
    switch (qn_attrs[attr->key].kind) {
    case QN_ATTR_KIND_INTS:
        copy.ints = qn_arena_copy(c->to->arena, attr->ints, (size_t)attr->n * sizeof *attr->ints);
        break;
    case QN_ATTR_KIND_DIMS: copy.dims = clone_dims(c, attr->n, attr->dims); break;
    case QN_ATTR_KIND_STRING: copy.s = clone_text(c, attr->s); break;
    case QN_ATTR_KIND_TENSOR: copy.tensor = clone_tensor(c, attr->tensor); break;
    case QN_ATTR_KIND_INT:
    case QN_ATTR_KIND_FLOAT:
    case QN_ATTR_KIND_BOOL:
    case QN_ATTR_KIND_DTYPE:
    case QN_ATTR_KIND_KIND:
    case QN_ATTR_KIND_DIRECTION: break;
    }
    return copy;
}

static void clone_graph(const cloner *c, qn_graph *from, qn_graph *to);

/* values: of the copy, by number in the original graph */
static qn_node *clone_node(const cloner *c, const qn_node *from, qn_graph *to, qn_value **values)
{
    qn_arena *arena = c->to->arena;
    qn_node *node = QN_NEW(arena, qn_node);
    node->op = from->op;
    node->graph = to;
    node->loc = (qn_loc){ .file = clone_text(c, from->loc.file),
                          .line = from->loc.line,
                          .column = from->loc.column,
                          .node = clone_text(c, from->loc.node),
                          .op = clone_text(c, from->loc.op) };
    node->n_operands = from->n_operands;
    node->operands = QN_NEW_ARRAY(arena, qn_value *, from->n_operands);
    for (int i = 0; i < from->n_operands; i++)
        node->operands[i] = values[from->operands[i]->id];
    node->n_attrs = from->n_attrs;
    node->attrs = QN_NEW_ARRAY(arena, qn_attr, from->n_attrs);
    for (int i = 0; i < from->n_attrs; i++)
        node->attrs[i] = clone_attr(c, &from->attrs[i]);
    node->n_regions = from->n_regions;
    node->regions = QN_NEW_ARRAY(arena, qn_graph *, from->n_regions);
    for (int i = 0; i < from->n_regions; i++) {
        node->regions[i] = qn_region_new(c->to);
        clone_graph(c, from->regions[i], node->regions[i]);
    }
    node->n_results = from->n_results;
    node->results = QN_NEW_ARRAY(arena, qn_value, from->n_results);
    for (int i = 0; i < from->n_results; i++) {
        node->results[i] = (qn_value){ .type = clone_type(c, &from->results[i].type),
                                       .node = node,
                                       .index = i,
                                       .name = clone_text(c, from->results[i].name) };
        values[from->results[i].id] = &node->results[i];
    }
    return node;
}

static void clone_graph(const cloner *c, qn_graph *from, qn_graph *to)
{
    qn_arena *scratch = qn_arena_new();
    qn_graph_resolve(from);
    qn_value **values = QN_NEW_ARRAY(scratch, qn_value *, qn_graph_number(from));
    for (int i = 0; i < from->n_inputs; i++) {
        const qn_value *input = from->inputs[i];
        values[input->id] = qn_graph_add_input(to, input->name, clone_type(c, &input->type),
                                               from->input_roles ? from->input_roles[i] : QN_ROLE_INPUT);
        if (from->input_initial)
            to->input_initial[i] = clone_tensor(c, from->input_initial[i]);
    }
    QN_FOR_NODES (from, node) {
        qn_node *copy = clone_node(c, node, to, values);
        copy->prev = to->last;
        *(to->last ? &to->last->next : &to->first) = copy;
        to->last = copy;
    }
    for (int i = 0; i < from->n_outputs; i++)
        qn_graph_add_output(to, values[from->outputs[i]->id],
                            from->output_names ? from->output_names[i] : NULL,
                            from->aliases ? from->aliases[i] : -1);
    qn_arena_free(scratch);
}

qn_module *qn_module_clone(const qn_module *module, int n_ranges, const quern_dim_range *ranges)
{
    qn_module *to = qn_module_new(module->name);
    cloner c = { .to = to, .n_symbols = qn_dims_symbol_count(module->dims) };
    c.symbols = QN_NEW_ARRAY(to->arena, qn_dim, c.n_symbols);
    for (int i = 0; i < c.n_symbols; i++) {
        qn_dim symbol = qn_dims_symbol_at(module->dims, i);
        int64_t min = symbol->min, max = symbol->max;
        for (int r = 0; r < n_ranges; r++)
            if (strcmp(ranges[r].name, symbol->name) == 0) {
                min = ranges[r].min;
                max = ranges[r].max;
            }
        c.symbols[i] = n_ranges && min == max ? qn_dim_const(to->dims, min)
                                              : qn_dim_symbol(to->dims, symbol->name, min, max);
    }
    for (int i = 0; i < module->n_functions; i++)
        clone_graph(&c, module->functions[i], qn_function_new(to, module->functions[i]->name));
    for (size_t i = 0; i < module->strings.n; i++)
        qn_vec_push(to->arena, &to->strings,
                    (const char *)qn_arena_strdup(to->arena, module->strings.items[i]));
    for (size_t i = 0; i < module->groups.n; i++) {
        quern_group group = module->groups.items[i];
        group.name = qn_arena_strdup(to->arena, group.name);
        qn_vec_push(to->arena, &to->groups, group);
    }
    return to;
}
