/* Computes values of the forward part again where the backward part reads them, instead of keeping them: rematerialization.
 *
 * Before: a graph that the other passes are done with; its first output is the loss, and what runs until that is known the
 * forward part. After: the same with second copies of some forward nodes, beside their readers; nodes in the order in which
 * they are to run. The last pass of all: cse would undo it.
 *
 *   %h = exp %x                      %h = exp %x
 *   %l = reduce %h {…}               %l = reduce %h {…}              %h is in memory only until here
 *   …                          ->    …
 *   %g = mul %d, %h                  %h' = exp %x
 *                                    %g = mul %d, %h'
 *
 * Which values is the planner's choice (remat_plan.c), on groups as they are fused: what stays inside of a kernel costs nothing.
 * A plan is then lowered and its memory planned, since only that tells its workspace. Chen et al., 2016 (sqrt); Jain et al.,
 * 2020 (what is worth computing again is decided by bytes, time and work). */
#include <inttypes.h>
#include <string.h>

#include "ir/build.h"
#include "passes/remat.h"

/* ---- work ---- */

/* Multiply-adds for an element of a contraction. */
static double depth_of(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    switch (node->op) {
    case QN_OP_DOT_GENERAL: {
        const qn_dot_side side = qn_dot_side_of(node, 0);
        double depth = 1;
        for (int i = 0; i < side.n_contract; i++)
            depth *= (double)x->dims[side.contract[i]]->max;
        return depth;
    }
    case QN_OP_MATMUL_PACKED: return (double)x->dims[x->rank - 1]->max;
    case QN_OP_CONVOLUTION: return qn_type_most_elements(w) / (double)w->dims[0]->max;
    case QN_OP_CONV_PACKED:
        return qn_type_most_elements(w) / (double)(w->dims[0]->max * w->dims[w->rank - 1]->max);
    case QN_OP_CONV_WINOGRAD: return 9 * (double)w->dims[3]->max;
    case QN_OP_ATTENTION_PACKED: return 2 * (double)node->operands[2]->type.dims[2]->max;
    default: return 1;
    }
}

/* Roughly the floating-point operations of a node. */
static double work_of(const qn_node *node)
{
    double work = 0;
    if (qn_ops[node->op].class == QN_CONTRACTION)
        return 2 * depth_of(node) * qn_type_most_elements(&node->results[0].type);
    if (node->n_regions > 0) {
        double times = 1;
        for (int i = 0; i < node->n_regions; i++)
            QN_FOR_NODES (node->regions[i], inside)
                work += work_of(inside);
        if (node->op == QN_OP_SCAN)
            times = (double)qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0]->max;
        return times * work;
    }
    if (node->op == QN_OP_CONSTANT || node->op == QN_OP_RESHAPE || node->op == QN_OP_BROADCAST)
        return 0;
    const bool reads_more = qn_ops[node->op].class == QN_REDUCTION;
    const int cost = qn_node_cost(node);
    return qn_type_most_elements(reads_more ? &node->operands[0]->type : &node->results[0].type) *
           (cost > 1 ? cost : 1);
}

/* May it run twice? */
static bool may_repeat(const qn_node *node)
{
    return !(qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)) && node->op != QN_OP_WHILE;
}

/* ---- the model ---- */

typedef struct view {
    qn_graph *graph;
    qn_arena *arena;
    qn_groups groups;
    qn_remat_model model;
    bool *forward; /* by value id: of the forward part */
    int *item;     /* by value id: its item, or -1: it stays inside of kernels */
    int *seen;     /* by value id: the item + 1 that it was found for */
    bool fixed;    /* the workspace depends on no symbol */
} view;

static void mark_forward(view *v, const qn_value *value)
{
    if (v->forward[value->id])
        return;
    v->forward[value->id] = true;
    for (int i = 0; value->node && i < value->node->n_operands; i++)
        mark_forward(v, value->node->operands[i]);
}

/* An item for each node with a result in memory. */
static void find_items(view *v)
{
    qn_remat_model *m = &v->model;
    m->items = QN_NEW_ARRAY(v->arena, qn_remat_item, v->graph->n_values);
    memset(v->item, -1, (size_t)v->graph->n_values * sizeof *v->item);
    for (size_t g = 0; g < v->groups.n; g++) {
        const qn_group *group = &v->groups.items[g];
        for (int k = 0; k < group->n_outputs; k++) {
            const qn_node *node = group->outputs[k]->node;
            int *item = &v->item[node->results[0].id];
            if (*item < 0)
                *item = m->n_items++;
            v->item[group->outputs[k]->id] = *item;
            m->items[*item].bytes += qn_type_most_elements(&group->outputs[k]->type) *
                                     (double)quern_dtype_size(group->outputs[k]->type.dtype);
        }
    }
    for (int i = 0; i < v->graph->n_outputs; i++) { /* the caller's memory */
        const int item = v->item[qn_value_memory(v->graph->outputs[i])->id];
        if (item >= 0)
            m->items[item].bytes = 0;
    }
}

typedef struct needs {
    int item;
    qn_vec(int) items;
    double work;
    bool repeats; /* each node may run twice */
} needs;

/* The nodes between `node` and what is in memory. */
static void find_needs(const view *v, const qn_node *node, needs *n)
{
    n->work += work_of(node);
    n->repeats &= may_repeat(node);
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *operand = node->operands[i];
        if (v->seen[operand->id] == n->item + 1)
            continue;
        v->seen[operand->id] = n->item + 1;
        if (v->item[operand->id] >= 0)
            qn_vec_push(v->arena, &n->items, v->item[operand->id]);
        else if (operand->node)
            find_needs(v, operand->node, n);
    }
}

static void fill_item(view *v, const qn_node *node)
{
    const int number = v->item[node->results[0].id];
    needs n = { .item = number, .repeats = true };
    find_needs(v, node, &n);
    qn_remat_item *item = &v->model.items[number];
    item->work = n.work;
    item->needs = n.items.items;
    item->n_needs = (int)n.items.n;
    /* not the caller's memory, and not scalars */
    item->forward = v->forward[node->results[0].id] && n.repeats && item->bytes > QN_ARENA_ALIGNMENT;
}

static void fill_group(view *v, const qn_group *from, qn_remat_group *to)
{
    to->reads = QN_NEW_ARRAY(v->arena, int, from->n_inputs);
    to->makes = QN_NEW_ARRAY(v->arena, int, from->n_outputs);
    for (int i = 0; i < from->n_inputs; i++) {
        const int item = v->item[qn_value_memory(from->inputs[i])->id];
        if (item >= 0)
            to->reads[to->n_reads++] = item;
    }
    for (int i = 0; i < from->n_outputs; i++) {
        const qn_node *node = from->outputs[i]->node;
        const int item = v->item[from->outputs[i]->id];
        if (i > 0 && from->outputs[i - 1]->node == node)
            continue;
        to->makes[to->n_makes++] = item;
        fill_item(v, node);
    }
}

/* The group that makes the value, or -1. */
static int maker_of(const view *v, const qn_value *value)
{
    for (int g = 0; g < (int)v->groups.n; g++)
        for (int k = 0; k < v->groups.items[g].n_outputs; k++)
            if (v->groups.items[g].outputs[k] == value)
                return g;
    return -1;
}

/* False: there is nothing to compute again. */
static bool look(view *v, const qn_pass_options *options, qn_diags *diags)
{
    qn_graph *graph = v->graph;
    qn_remat_model *m = &v->model;
    if (graph->n_outputs < 2 || qn_fuse(graph, options, v->arena, &v->groups, diags))
        return false;
    v->forward = QN_NEW_ARRAY(v->arena, bool, graph->n_values);
    v->item = QN_NEW_ARRAY(v->arena, int, graph->n_values);
    v->seen = QN_NEW_ARRAY(v->arena, int, graph->n_values);
    m->arena = v->arena;
    m->n_groups = (int)v->groups.n;
    m->groups = QN_NEW_ARRAY(v->arena, qn_remat_group, m->n_groups);
    m->last_forward = maker_of(v, qn_value_memory(graph->outputs[0]));
    for (int g = 0; g <= m->last_forward; g++)
        for (int k = 0; k < v->groups.items[g].n_outputs; k++)
            mark_forward(v, v->groups.items[g].outputs[k]);
    find_items(v);
    for (int g = 0; g < m->n_groups; g++)
        fill_group(v, &v->groups.items[g], &m->groups[g]);
    return m->last_forward >= 0;
}

static int count_dropped(const view *v)
{
    int n = 0;
    for (int i = 0; i < v->model.n_items; i++)
        n += v->model.items[i].dropped;
    return n;
}

/* ---- the graph that a plan says ---- */

typedef struct rewrite {
    const view *v;
    qn_graph *graph;   /* like v->graph, number by number */
    qn_value **values; /* by id: the value of `graph` */
    qn_value **again;  /* by id: what the backward part reads for it; NULL: not asked yet */
    bool *placed;      /* by id of a node's first result: it has its place in the new order */
    int n_again;       /* nodes that are there twice */
    qn_diags *diags;
} rewrite;

static void append(rewrite *r, qn_node *node)
{
    r->placed[node->results[0].id] = true;
    qn_node_move_before(node, NULL);
}

static void place_early(rewrite *r, qn_node *node)
{
    if (r->placed[node->results[0].id])
        return;
    for (int i = 0; i < node->n_operands; i++)
        if (node->operands[i]->node)
            place_early(r, node->operands[i]->node);
    append(r, node);
}

/* What the backward part reads for a value of the forward part. `inside`: of what is computed again; all of that is, down to
 * what is in memory, since a node that both parts read would be put there. */
static qn_value *again(rewrite *r, qn_value *value, bool inside)
{
    const int id = value->id, item = r->v->item[id];
    qn_node *node = value->node;
    if (!node || node->op == QN_OP_CONSTANT)
        return value;
    if (r->again[id] && !(inside && item < 0 && r->again[id] == value))
        return r->again[id];
    const bool dropped = item >= 0 && r->v->model.items[item].dropped;
    bool other = item < 0 ? inside : dropped;
    qn_arena *arena = r->graph->module->arena;
    qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands);
    for (int i = 0; i < node->n_operands && (item < 0 || dropped); i++) {
        operands[i] = again(r, node->operands[i], other);
        if (!operands[i])
            return NULL;
        other |= operands[i] != node->operands[i];
    }
    if (!other) {
        place_early(r, node);
        return r->again[id] = value;
    }
    qn_graph **regions = QN_NEW_ARRAY(arena, qn_graph *, node->n_regions);
    for (int i = 0; i < node->n_regions; i++)
        regions[i] = qn_graph_clone(node->regions[i], NULL);
    for (int i = 0; i < node->n_operands; i++) /* constants */
        if (node->operands[i]->node && operands[i] == node->operands[i])
            place_early(r, node->operands[i]->node);
    qn_node *copy = qn_node_new(r->graph, NULL, node->op, node->n_operands, operands, node->n_attrs,
                                node->attrs, node->n_regions, regions, &node->loc, r->diags);
    if (!copy)
        return NULL;
    r->n_again++;
    for (int i = 0; i < node->n_results; i++) {
        copy->results[i].id = node->results[i].id;
        r->again[node->results[i].id] = &copy->results[i];
    }
    return r->again[id];
}

static void place_late(rewrite *r, qn_node *node)
{
    if (r->placed[node->results[0].id])
        return;
    for (int i = 0; i < node->n_operands; i++) {
        qn_value *operand = node->operands[i];
        if (r->v->forward[operand->id]) {
            qn_value *made = again(r, operand, false);
            if (made)
                node->operands[i] = made;
        }
        if (node->operands[i]->node && node->operands[i] == operand)
            place_late(r, operand->node);
    }
    append(r, node);
}

/* Changes `graph`, which is the planned one or a clone of it. Gives the number of nodes that are there twice. */
static qn_status apply(const view *v, qn_graph *graph, int *out_n, qn_diags *diags)
{
    const int n = qn_graph_number(graph);
    qn_arena *arena = v->arena;
    rewrite r = { .v = v, .graph = graph, .diags = diags };
    r.values = QN_NEW_ARRAY(arena, qn_value *, n);
    r.again = QN_NEW_ARRAY(arena, qn_value *, n);
    r.placed = QN_NEW_ARRAY(arena, bool, n);
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            r.values[node->results[i].id] = &node->results[i];
    for (int g = 0; g < (int)v->groups.n; g++) {
        const qn_group *group = &v->groups.items[g];
        const bool late = g > v->model.last_forward;
        for (int i = 0; i < group->n_nodes; i++) {
            const int id = group->nodes[i]->results[0].id;
            if (!late)
                place_early(&r, r.values[id]->node);
            else if (!v->forward[id])
                place_late(&r, r.values[id]->node);
        }
    }
    for (int id = 0; id < n; id++) /* reshapes of outputs, and what nobody reads */
        if (r.values[id])
            place_late(&r, r.values[id]->node);
    QN_TRY(qn_diags_status(diags));
    qn_graph_remove_dead(graph);
    *out_n = r.n_again;
    return QUERN_OK;
}

/* ---- the pass ---- */

bool qn_remat_parse(const char *word, qn_remat *out)
{
    static const char *const words[] = { [QN_REMAT_NONE] = "none",
                                         [QN_REMAT_SQRT] = "sqrt",
                                         [QN_REMAT_ALL] = "all" };
    for (size_t i = QN_REMAT_NONE; i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i], word) == 0) {
            *out = (qn_remat)i;
            return true;
        }
    return false;
}

/* Bytes of workspace that the graph needs, with what is dropped computed again. */
static qn_status measure(view *v, const qn_pass_options *options, int64_t *out_bytes, qn_diags *diags)
{
    qn_module *module = v->graph->module;
    qn_graph *copy = qn_graph_clone(v->graph, qn_arena_printf(module->arena, "%s, measured", v->graph->name));
    module->n_functions--; /* nobody calls it */
    qn_arena *scratch = qn_arena_new();
    qn_program *program = NULL;
    int n;
    qn_status status = count_dropped(v) ? apply(v, copy, &n, diags) : QUERN_OK;
    if (!status)
        status = qn_lower(copy, options, scratch, &program, diags);
    if (!status)
        status = qn_memplan(program, diags);
    if (!status) {
        *out_bytes = program->arena_bytes->max;
        v->fixed = qn_dim_is_const(program->arena_bytes);
    }
    qn_arena_free(scratch);
    return status;
}

static void clear(view *v)
{
    for (int i = 0; i < v->model.n_items; i++)
        v->model.items[i].dropped = false;
}

/* The least workspace: by the search or by cuts. */
static qn_status find_least(view *v, const qn_pass_options *options, int64_t *out_bytes, qn_diags *diags)
{
    int64_t searched;
    clear(v);
    qn_remat_search_least(&v->model);
    QN_TRY(measure(v, options, &searched, diags));
    qn_remat_cut(&v->model);
    QN_TRY(measure(v, options, out_bytes, diags));
    if (*out_bytes < searched)
        return QUERN_OK;
    clear(v);
    qn_remat_search_least(&v->model);
    *out_bytes = searched;
    return QUERN_OK;
}

/* As little as it takes to stay below the limit. The planner knows values only, not what kernels use beside them: its limit
 * is brought down until the workspace is within the real one. */
static qn_status fit(view *v, const qn_pass_options *options, int64_t *bytes, qn_diags *diags)
{
    enum { ROUNDS = 5 };
    const double before = (double)*bytes, limit = (double)options->memory_limit;
    double target = qn_remat_run_of(&v->model).peak * limit / before;
    for (int i = 0; i < ROUNDS; i++) {
        const bool found = qn_remat_search(&v->model, target);
        QN_TRY(measure(v, options, bytes, diags));
        if (*bytes <= options->memory_limit)
            return QUERN_OK;
        if (!found)
            break;
        target *= 0.98 * limit / (double)*bytes;
    }
    return find_least(v, options, bytes, diags);
}

static const char *size_text(int64_t bytes, qn_diags *diags)
{
    const bool large = bytes >= 1000000;
    return qn_arena_printf(diags->arena, "%.1f %s", (large ? 1e-6 : 1e-3) * (double)bytes,
                           large ? "MB" : "kB");
}

static qn_status plan(view *v, const qn_pass_options *options, qn_remat_report *report, qn_diags *diags)
{
    const bool possible = look(v, options, diags);
    QN_TRY(qn_diags_status(diags));
    QN_TRY(measure(v, options, &report->bytes_before, diags));
    report->bytes = report->bytes_before;
    const bool too_much = options->memory_limit > 0 && report->bytes > options->memory_limit;
    if (possible && options->remat == QN_REMAT_AUTO && too_much) {
        QN_TRY(fit(v, options, &report->bytes, diags));
    } else if (possible && options->remat == QN_REMAT_SQRT) {
        qn_remat_cut(&v->model);
        QN_TRY(measure(v, options, &report->bytes, diags));
    } else if (possible && options->remat == QN_REMAT_ALL) {
        QN_TRY(find_least(v, options, &report->bytes, diags));
    }
    if (report->bytes >= report->bytes_before) { /* nothing gained */
        clear(v);
        report->bytes = report->bytes_before;
    }
    report->flops_again = possible ? qn_remat_run_of(&v->model).work : 0;
    QN_FOR_NODES (v->graph, node)
        report->flops += work_of(node);
    if (options->memory_limit == 0 || report->bytes <= options->memory_limit)
        return QUERN_OK;
    return qn_error(
        diags, QUERN_ERROR_MEMORY, NULL,
        "'%s' needs %s of workspace, the memory limit is %s; %s is the least that was found by computing "
        "values again. %s",
        v->graph->name, size_text(report->bytes_before, diags), size_text(options->memory_limit, diags),
        size_text(report->bytes, diags),
        v->fixed ? "Smaller batches need less" : "Numbers or ranges for its dims would bound it");
}

qn_status qn_pass_remat(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    qn_remat_report storage = { 0 }, *report = options->remat_report ? options->remat_report : &storage;
    *out_changed = false;
    *report = (qn_remat_report){ 0 };
    if ((options->remat <= QN_REMAT_NONE && options->memory_limit == 0) || qn_graph_binds(graph))
        return QUERN_OK; /* the new order knows nothing of symbols */
    view v = { .graph = graph, .arena = qn_arena_new() };
    qn_status status = plan(&v, options, report, diags);
    if (!status && count_dropped(&v)) {
        *out_changed = true;
        status = apply(&v, graph, &report->n_again, diags);
    }
    qn_arena_free(v.arena);
    return status;
}
