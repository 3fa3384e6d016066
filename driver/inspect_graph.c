/* The graph of a model with its fused kernels, for Graphviz: a box a node, a frame a kernel. Regions of loops and branches are
 * drawn inside the frame of their node, with inputs of their own. */
#include "driver/inspect.h"

typedef struct graph_drawing {
    const qn_view *v;
    FILE *to;
    int n_graphs, n_kernels; /* so far: numbers for names */
    qn_diags *diags;
} graph_drawing;

/* One graph or region. */
typedef struct level {
    qn_graph *graph;
    int number;
    qn_groups groups;
    int *maker; /* by value id: the group that has it as an output, or -1 */
} level;

static const struct {
    const char *name, *color;
} kinds[] = {
    [QN_GROUP_LOOP] = { "element by element", "#e3f0fb" }, [QN_GROUP_ROWS] = { "rows", "#e4f5e4" },
    [QN_GROUP_CONTRACTION] = { "contraction", "#fdeeda" }, [QN_GROUP_SINGLE] = { "single", "#eeeeee" },
    [QN_GROUP_CONTROL] = { "control", "#efe6fa" },
};

/* Where a value is in memory: reshapes are the same memory. */
static const qn_value *memory_of(const level *l, const qn_value *value)
{
    while (l->maker[value->id] < 0 && value->node && value->node->op == QN_OP_RESHAPE)
        value = value->node->operands[0];
    return value;
}

static bool is_in(const qn_group *group, const qn_node *node)
{
    for (int i = 0; i < group->n_nodes; i++)
        if (group->nodes[i] == node)
            return true;
    return false;
}

/* The name in DOT of a node in a group (which may be in several). */
static const char *node_name(const graph_drawing *d, const level *l, int group, const qn_node *node)
{
    return qn_arena_printf(d->v->arena, "n%d_%d_%d", l->number, group, node->results[0].id);
}

static const char *type_text(const graph_drawing *d, const qn_value *value)
{
    return qn_type_print(&value->type, d->v->arena);
}

/* An edge to `target` from where the value comes from: another kernel or an input; none from constants. */
static void draw_edge(const graph_drawing *d, const level *l, const qn_value *value, const char *target)
{
    const qn_value *memory = memory_of(l, value);
    const int maker = l->maker[memory->id];
    const char *source;
    if (maker >= 0)
        source = node_name(d, l, maker, memory->node);
    else if (!memory->node)
        source = qn_arena_printf(d->v->arena, "i%d_%d", l->number, memory->index);
    else
        return;
    fprintf(d->to, "  %s -> %s [label=", source, target);
    qn_dot_label(qn_arena_printf(d->v->arena, " %s", type_text(d, memory)), 'n', d->to);
    fputs("];\n", d->to);
}

/* What it is, what comes out and the constants that go in. */
static const char *node_label(const graph_drawing *d, const level *l, const qn_node *node)
{
    qn_arena *arena = d->v->arena;
    const char *text = qn_ops[node->op].name;
    if (node->n_results > 0)
        text = qn_arena_printf(arena, "%s\n%s", text, type_text(d, &node->results[0]));
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *value = memory_of(l, node->operands[i]);
        if (value->node && value->node->op == QN_OP_CONSTANT && value->type.rank > 0)
            text = qn_arena_printf(arena, "%s\nconstant %s", text, type_text(d, value));
    }
    return text;
}

static qn_status draw_graph(graph_drawing *d, qn_graph *graph, const char *const *output_names);

static qn_status draw_regions(graph_drawing *d, const qn_node *node)
{
    for (int i = 0; i < node->n_regions; i++) {
        fprintf(d->to, "  subgraph cluster_region_%d { style=\"rounded,dashed\"; fillcolor=white; label=",
                d->n_graphs);
        qn_dot_label(qn_arena_printf(d->v->arena, "region %d of %s", i, qn_ops[node->op].name), 'n', d->to);
        fputs(";\n", d->to);
        QN_TRY(draw_graph(d, node->regions[i], NULL));
        fputs("  }\n", d->to);
    }
    return QUERN_OK;
}

static qn_status draw_group(graph_drawing *d, const level *l, int number)
{
    const qn_group *group = &l->groups.items[number];
    const char *from = group->root->loc.node;
    fprintf(d->to,
            "  subgraph cluster_%d { style=\"rounded,filled\"; color=\"#888888\"; fillcolor=\"%s\"; label=",
            d->n_kernels, kinds[group->kind].color);
    qn_dot_label(qn_arena_printf(d->v->arena, "%d: %s\n%s%s", d->n_kernels, kinds[group->kind].name,
                                 from ? from : "", from ? "\n" : ""),
                 'l', d->to);
    fputs(";\n", d->to);
    d->n_kernels++;
    for (int i = 0; i < group->n_nodes; i++) {
        fprintf(d->to, "  %s [label=", node_name(d, l, number, group->nodes[i]));
        qn_dot_label(node_label(d, l, group->nodes[i]), 'n', d->to);
        fputs("];\n", d->to);
        QN_TRY(draw_regions(d, group->nodes[i]));
    }
    fputs("  }\n", d->to);
    for (int i = 0; i < group->n_nodes; i++) {
        const qn_node *node = group->nodes[i];
        const char *target = node_name(d, l, number, node);
        for (int k = 0; k < node->n_operands; k++) {
            const qn_value *value = node->operands[k];
            if (value->node && is_in(group, value->node))
                fprintf(d->to, "  %s -> %s;\n", node_name(d, l, number, value->node), target);
            else
                draw_edge(d, l, value, target);
        }
    }
    return QUERN_OK;
}

static void draw_end(const graph_drawing *d, const char *id, const char *name, const qn_value *value)
{
    fprintf(d->to, "  %s [shape=ellipse, style=filled, fillcolor=\"#fff8c8\", label=", id);
    qn_dot_label(qn_arena_printf(d->v->arena, "%s\n%s", name, type_text(d, value)), 'n', d->to);
    fputs("];\n", d->to);
}

static qn_status draw_graph(graph_drawing *d, qn_graph *graph, const char *const *output_names)
{
    qn_arena *arena = d->v->arena;
    level l = { .graph = graph, .number = d->n_graphs++ };
    QN_TRY(qn_fuse(graph, &d->v->options, arena, &l.groups, d->diags));
    const int n = qn_graph_number(graph);
    l.maker = QN_NEW_ARRAY(arena, int, n);
    for (int i = 0; i < n; i++)
        l.maker[i] = -1;
    for (size_t g = 0; g < l.groups.n; g++)
        for (int i = 0; i < l.groups.items[g].n_outputs; i++)
            l.maker[l.groups.items[g].outputs[i]->id] = (int)g;
    for (int i = 0; i < graph->n_inputs; i++)
        draw_end(d, qn_arena_printf(arena, "i%d_%d", l.number, i),
                 graph->inputs[i]->name ? graph->inputs[i]->name : qn_arena_printf(arena, "input %d", i),
                 graph->inputs[i]);
    for (size_t g = 0; g < l.groups.n; g++)
        QN_TRY(draw_group(d, &l, (int)g));
    for (int i = 0; i < graph->n_outputs; i++) {
        const char *id = qn_arena_printf(arena, "o%d_%d", l.number, i);
        draw_end(d, id,
                 output_names && output_names[i] ? output_names[i] : qn_arena_printf(arena, "output %d", i),
                 graph->outputs[i]);
        draw_edge(d, &l, graph->outputs[i], id);
    }
    return QUERN_OK;
}

qn_status qn_view_graph(const qn_view *v, FILE *to, qn_diags *diags)
{
    qn_graph *graph = v->module->functions[0];
    graph_drawing d = { .v = v, .to = to, .diags = diags };
    fputs("digraph model {\n  node [shape=box, style=\"rounded,filled\", fillcolor=white, color=\"#444444\", "
          "fontname=\"sans-serif\", fontsize=10, height=0.3, margin=\"0.12,0.05\"];\n"
          "  edge [fontname=\"sans-serif\", fontsize=8, color=\"#666666\", arrowsize=0.6];\n"
          "  graph [fontname=\"sans-serif\", fontsize=10, nodesep=0.25, ranksep=0.35, labeljust=l];\n",
          to);
    QN_TRY(draw_graph(&d, graph, graph->output_names));
    fputs("}\n", to);
    return QUERN_OK;
}
