/* Decides which nodes run together.
 *
 * Before: a graph without composites that lowering doesn't claim. After: groups in an order in which they can run.
 *
 * Nodes are visited from the last to the first. A cluster starts with a value that has to be in memory and grows backwards:
 * it keeps, for each value that it reads, at which indices it does (its demands, index.h). A producer whose demands are
 * complete either joins the clusters that read it, which passes its demands on to its operands, or is put into memory by
 * a cluster that it starts, or by one of its readers as a further output.
 *
 *   %0 = reduce %x {axes = [1], kind = max}     demanded at (#0): one value a row, so the cluster becomes ROWS
 *   %1 = broadcast %0 {axes = [0], …}           demanded at (#0, #1): joins
 *   %2 = sub %x, %1                             joins
 *   %3 = exp %2                                 stored: starts a cluster over (#0, #1)
 *
 * What joins and what doesn't is decided by how often an element would be computed, and how dear that is. */
#include "passes/fuse.h"

#include "passes/claim.h"

enum {
    COPY_BUDGET = 3, /* cost of what is computed in several kernels instead of being stored */
    MAX_COPIES = 3   /* kernels that compute it */
};

/* What computing it in one more kernel costs: its own work, and more than the budget where that reads more from memory
 * than its result would be. */
static int copy_cost(const qn_node *node)
{
    int streams = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *operand = node->operands[i];
        while (operand->node && operand->node->op == QN_OP_RESHAPE)
            operand = operand->node->operands[0];
        const bool repeated = operand->node && qn_ops[operand->node->op].class == QN_BROADCAST;
        streams += qn_ops[node->op].class == QN_ELEMENTWISE && !repeated && operand->type.rank > 0;
    }
    return qn_node_cost(node) + (streams > 1 ? COPY_BUDGET : 0);
}

/* ---- does v reach c through other clusters? Readers of a value in memory follow its maker. ---- */

static bool reaches(qn_fuser *f, qn_cluster *from, const qn_cluster *target)
{
    if (from == target)
        return true;
    if (from->visited == f->visit)
        return false;
    from->visited = f->visit;
    for (size_t i = 0; i < from->outputs.n; i++)
        for (const qn_demand *d = f->demands[from->outputs.items[i]->id]; d; d = d->next)
            if (d->by != from && reaches(f, d->by, target))
                return true;
    return false;
}

/* May `c` put `value` into memory: does no other reader of it come before c? */
static bool may_store(qn_fuser *f, qn_cluster *c, const qn_value *value)
{
    for (const qn_demand *d = f->demands[value->id]; d; d = d->next) {
        if (d->by == c)
            continue;
        f->visit++;
        if (reaches(f, d->by, c))
            return false;
    }
    return true;
}

/* Is every element the same number, or its own index? Nothing is read to make it, so even opaque nodes compute it. */
static bool is_trivial(const qn_value *value)
{
    qn_scalar s;
    return qn_value_splat(value, &s) || (value->node && value->node->op == QN_OP_IOTA);
}

/* ---- one node ---- */

static void start_cluster(qn_fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    const qn_op_class class = qn_ops[node->op].class;
    /* what joins turns a LOOP cluster into what it needs */
    const qn_group_kind kind = qn_fuse_is_loop(node) || qn_fuse_is_sum(node) || node->op == QN_OP_REDUCE
                                   ? QN_GROUP_LOOP
                               : class == QN_CONTROL ? QN_GROUP_CONTROL
                                                     : QN_GROUP_SINGLE;
    qn_cluster *c = qn_cluster_new(f, kind, node);
    if (c->closed) {
        qn_cluster_take(f, c, node);
        for (int i = 0; i < node->n_results; i++)
            qn_cluster_add_output(f, c, &node->results[i]);
        for (int k = 0; k < node->n_operands; k++)
            if (kind == QN_GROUP_SINGLE && !f->options->no_fusion && is_trivial(node->operands[k]) &&
                !qn_template_keeps(node, f->options)) /* a template reads memory */
                qn_demand_add(f, node->operands[k], c);
            else
                qn_demand_whole(f, node->operands[k], c);
        return;
    }
    /* As if the cluster had been there before, reading the value where it computes it. */
    qn_cluster_set_space(c, &value->type);
    qn_demand *d = qn_demand_at(f, value, c, c->vars);
    if (qn_fuse_is_loop(node)) {
        qn_cluster_join(f, c, node);
    } else {
        const bool fits = qn_fuse_is_sum(node) ? qn_cluster_join_sum(f, d, node)
                                               : qn_cluster_join_reduction(f, d, node, true);
        QN_ASSERT(fits, "fuse: %s does not fit its own cluster", qn_ops[node->op].name);
    }
    qn_cluster_add_output(f, c, value);
}

/* Takes `node` into the cluster of `d` in the way of its class. */
static bool join_by_class(qn_fuser *f, const qn_demand *d, qn_node *node)
{
    if (node->op == QN_OP_REDUCE)
        return qn_cluster_join_reduction(f, d, node, false);
    if (qn_fuse_is_sum(node))
        return qn_cluster_join_sum(f, d, node);
    if (!qn_fuse_is_loop(node) || d->by->closed || !qn_cluster_wants(d, node))
        return false;
    qn_cluster_join(f, d->by, node);
    return true;
}

/* The result goes to memory: by a reader that computes it anyway, or by a cluster of its own. */
static void store(qn_fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    if (node->n_results == 1)
        for (const qn_demand *d = f->demands[value->id]; d; d = d->next) {
            if (d->by->closed || !may_store(f, d->by, value))
                continue;
            if (node->op != QN_OP_REDUCE && !qn_cluster_reads_own(d->by, d, &value->type) &&
                !qn_cluster_becomes_own_row(d->by, d, value))
                continue;
            if (join_by_class(f, d, node)) {
                qn_cluster_add_output(f, d->by, value);
                return;
            }
        }
    start_cluster(f, node);
}

/* Reads of a reshape that is in memory are reads of what it was made from: it is the same memory. */
static void visit_reshape(qn_fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0], *source = node->operands[0];
    const bool stored = f->stored[value->id];
    for (qn_demand *d = f->demands[value->id]; d; d = d->next)
        if (d->whole)
            qn_demand_whole(f, source, d->by);
        else
            qn_cluster_join(f, d->by, node);
    if (stored) {
        f->stored[source->id] = true;
        f->stored[value->id] = false;
    }
}

static void visit(qn_fuser *f, qn_node *node)
{
    qn_value *value = &node->results[0];
    if (node->op == QN_OP_CONSTANT)
        return;
    if (node->op == QN_OP_RESHAPE) {
        visit_reshape(f, node);
        return;
    }
    if (node->n_results != 1 || node->n_regions > 0 || (qn_ops[node->op].flags & QN_FLAG_EFFECT)) {
        start_cluster(f, node);
        return;
    }
    int n_readers = 0;
    bool open = true;
    for (const qn_demand *d = f->demands[value->id]; d; d = d->next) {
        n_readers++;
        open &= !d->whole;
    }
    if (n_readers == 0 && !f->stored[value->id])
        return; /* dead */
    if (f->options->no_fusion || qn_blas_takes(node, f->options)) {
        start_cluster(f, node);
        return;
    }
    /* Closed readers compute what is trivial themselves. */
    if (open && !f->stored[value->id]) {
        bool all = true;
        const bool shared = n_readers > 1;
        const int cost = copy_cost(node);
        if (shared)
            all = qn_fuse_is_loop(node) && (cost == 0 || n_readers <= MAX_COPIES);
        for (const qn_demand *d = f->demands[value->id]; d && all; d = d->next) {
            if (d->by->closed) {
                all = is_trivial(value);
                continue;
            }
            if (shared)
                all = qn_cluster_wants(d, node) && (cost == 0 || d->copied + cost <= COPY_BUDGET);
        }
        if (all && shared) {
            for (qn_demand *d = f->demands[value->id]; d; d = d->next) {
                d->copied += cost;
                qn_cluster_join(f, d->by, node);
            }
            return;
        }
        if (all && f->demands[value->id]->by->closed) {
            qn_cluster_join(f, f->demands[value->id]->by, node);
            return;
        }
        if (all && join_by_class(f, f->demands[value->id], node))
            return;
    }
    store(f, node);
}

/* ---- the result ---- */

/* A constant or an input needs nobody to put it into memory. */
static bool in_memory_already(const qn_value *value)
{
    return !value->node || value->node->op == QN_OP_CONSTANT;
}

/* What a cluster reads that it doesn't compute. */
static void find_inputs(qn_fuser *f)
{
    const int n = f->graph->n_values;
    int *inside = QN_NEW_ARRAY(f->scratch, int, n);
    for (size_t i = 0; i < f->clusters.n; i++) {
        qn_cluster *c = f->clusters.items[i];
        for (size_t k = 0; k < c->nodes.n; k++)
            for (int r = 0; r < c->nodes.items[k]->n_results; r++)
                inside[c->nodes.items[k]->results[r].id] = c->number + 1;
        for (size_t k = c->nodes.n; k-- > 0;)
            for (int o = 0; o < c->nodes.items[k]->n_operands; o++) {
                qn_value *value = c->nodes.items[k]->operands[o];
                qn_scalar s;
                if (inside[value->id] == c->number + 1 ||
                    (c->group.kind != QN_GROUP_CONTROL && in_memory_already(value) && value->node &&
                     qn_value_splat(value, &s)))
                    continue;
                inside[value->id] = c->number + 1; /* once */
                qn_vec_push(f->scratch, &c->inputs, value);
            }
    }
}

static void emit_group(qn_fuser *f, qn_cluster *c, qn_groups *out_groups)
{
    qn_group *g = &c->group;
    /* in the order of the graph: clusters grew backwards */
    g->n_nodes = (int)c->nodes.n;
    g->nodes = QN_NEW_ARRAY(f->arena, qn_node *, c->nodes.n);
    for (size_t i = 0; i < c->nodes.n; i++)
        g->nodes[i] = c->nodes.items[c->nodes.n - 1 - i];
    g->n_inputs = (int)c->inputs.n;
    g->inputs = qn_arena_copy(f->arena, c->inputs.items, c->inputs.n * sizeof(qn_value *));
    g->n_waits = (int)c->waits.n;
    g->waits = qn_arena_copy(f->arena, c->waits.items, c->waits.n * sizeof(qn_value *));
    g->n_outputs = (int)c->outputs.n;
    g->outputs = qn_arena_copy(f->arena, c->outputs.items, c->outputs.n * sizeof(qn_value *));
    if (!c->closed) {
        qn_dim *dims = QN_NEW_ARRAY(f->arena, qn_dim, g->n_dims);
        for (int i = 0; i < g->n_dims; i++)
            dims[i] = qn_dim_import(f->graph->module->dims, qn_ispace_meaning(&c->space, c->dims[i]));
        g->dims = dims;
        if (g->kind == QN_GROUP_ROWS)
            g->is_row = qn_arena_copy(f->arena, c->is_row, sizeof c->is_row);
    }
    qn_vec_push(f->arena, out_groups, *g);
}

/* Depth first: what a cluster reads comes before it. */
static void order(qn_fuser *f, qn_cluster *c, qn_groups *out_groups)
{
    if (c->order)
        return;
    c->order = 1;
    for (size_t i = 0; i < c->inputs.n + c->waits.n; i++) {
        qn_value *value = i < c->inputs.n ? c->inputs.items[i] : c->waits.items[i - c->inputs.n];
        qn_cluster *maker = f->maker[qn_value_memory(value)->id];
        if (maker && maker != c)
            order(f, maker, out_groups);
    }
    emit_group(f, c, out_groups);
}

qn_status qn_fuse(qn_graph *graph, const qn_pass_options *options, qn_arena *arena, qn_groups *out_groups,
                  qn_diags *diags)
{
    (void)diags;
    qn_arena *scratch = qn_arena_new();
    const int n = qn_graph_number(graph);
    qn_fuser f = { .graph = graph, .arena = arena, .scratch = scratch, .options = options };
    f.demands = QN_NEW_ARRAY(scratch, qn_demand *, n);
    f.stored = QN_NEW_ARRAY(scratch, bool, n);
    f.maker = QN_NEW_ARRAY(scratch, qn_cluster *, n);
    for (int i = 0; i < graph->n_outputs; i++)
        f.stored[graph->outputs[i]->id] = true;
    QN_FOR_NODES (graph, node)
        if (qn_node_binds(node)) { /* maybe for an output, which no kernel makes */
            qn_vec_push(scratch, &f.binders, &node->results[0]);
            f.stored[node->results[0].id] = true;
        }
    if (f.binders.n > 0)
        f.symbols = QN_NEW_ARRAY(scratch, bool, qn_dims_symbol_count(graph->module->dims));
    for (qn_node *node = graph->last; node; node = node->prev)
        visit(&f, node);
    find_inputs(&f);
    *out_groups = (qn_groups){ 0 };
    for (size_t i = f.clusters.n; i-- > 0;) /* the last cluster has the first nodes */
        order(&f, f.clusters.items[i], out_groups);
    qn_order_groups(graph, out_groups);
    qn_arena_free(scratch);
    return QUERN_OK;
}
