/* What is not a finite number, value by value, in loops too: see numerics.h.
 *
 *   %a = sqrt %x                     flag.0 = [[0 or NEVER, 0 or NEVER]] of %a
 *   %s = scan %a {            ->     %s, %n, flag.1 = scan %a, 0, [[NEVER, NEVER]…] {
 *     body (%b) {                      body (%b, %i, %f) {
 *       %c = exp %b                      %c = exp %b
 *       return %c                        return %c, %i + one iteration, min(%f, %i where %c is bad)
 */
#include "passes/numerics.h"

#include "ir/build.h"
#include "passes/inline.h"

typedef qn_vec(qn_value *) values;

typedef struct flags {
    qn_module *module;
    qn_diags *diags;
    int loops; /* around what is looked at */
    qn_vec(qn_flag) all;
} flags;

static bool has_flag(const qn_value *value)
{
    return qn_dtype_is_float(value->type.dtype) && value->node->op != QN_OP_CONSTANT;
}

static int64_t count(const qn_graph *graph);

/* Rows that the values in the node's regions take. */
static int64_t count_inside(const qn_node *node)
{
    int64_t n = 0;
    for (int r = node->op == QN_OP_WHILE; r < node->n_regions; r++)
        n += count(node->regions[r]);
    return n;
}

/* Rows that the graph's values take. */
static int64_t count(const qn_graph *graph)
{
    int64_t n = 0;
    QN_FOR_NODES (graph, node) {
        n += count_inside(node);
        for (int i = 0; i < node->n_results; i++)
            n += has_flag(&node->results[i]);
    }
    return n;
}

/* i64[n, 2] of that number */
static qn_value *rows(qn_builder *b, int64_t n, int64_t number)
{
    const qn_type type = qn_type_static(b->graph->module, QUERN_I64, 2, (int64_t[]){ n, 2 });
    return qn_b_broadcast_to(b, qn_b_scalar_int(b, QUERN_I64, number), 2, type.dims);
}

static qn_value *join(qn_builder *b, const values *pieces)
{
    return pieces->n == 1 ? pieces->items[0] : qn_b_concatenate(b, (int)pieces->n, pieces->items, 0);
}

/* [[0 where an element is NaN or infinite, 0 where one is NaN]]; else NEVER */
static qn_value *row_of(qn_builder *b, qn_value *x)
{
    qn_module *module = b->graph->module;
    int64_t axes[QN_MAX_RANK];
    qn_type type = x->type;
    type.dtype = QUERN_I32;
    for (int i = 0; i < type.rank; i++)
        axes[i] = i;
    qn_value *infinite = qn_b_convert(b, QUERN_I32, qn_b_unary(b, QN_OP_IS_INF, x));
    qn_value *worst = qn_b_select(b, qn_b_unary(b, QN_OP_IS_NAN, x), qn_b_full(b, &type, 2), infinite);
    worst = type.rank ? qn_b_reduce(b, QN_KIND_MAX, worst, type.rank, axes, false) : worst;
    qn_value *levels =
        qn_b_constant(b, qn_tensor_new(module, QUERN_I32, 2, (int64_t[]){ 1, 2 }, (int32_t[]){ 1, 2 }));
    qn_value *bad = worst ? qn_b_compare_bcast(b, QN_GE, worst, levels) : NULL;
    return qn_b_select(b, bad, rows(b, 1, 0), rows(b, 1, QN_FLAG_NEVER));
}

static void flag_values(flags *f, qn_graph *graph, values *out_pieces);

/* The region with inputs for the time and the rows behind `n_carried` others; what its outputs became. */
static qn_graph *wider(const flags *f, const qn_graph *region, int n_carried, int64_t n_rows,
                       qn_value **out_added, qn_value **out_results)
{
    qn_graph *copy = qn_region_new(f->module);
    qn_value **inputs = QN_NEW_ARRAY(f->module->arena, qn_value *, region->n_inputs);
    const qn_type types[2] = { qn_type_static(f->module, QUERN_I64, 0, NULL),
                               qn_type_static(f->module, QUERN_I64, 2, (int64_t[]){ n_rows, 2 }) };
    for (int i = 0; i <= region->n_inputs; i++) {
        for (int k = 0; k < 2 && i == n_carried; k++)
            out_added[k] = qn_graph_add_input(copy, NULL, types[k], QN_ROLE_INPUT);
        if (i < region->n_inputs)
            inputs[i] = qn_graph_add_input(copy, NULL, region->inputs[i]->type, QN_ROLE_INPUT);
    }
    return qn_inline_graph(region, copy, NULL, inputs, out_results, f->diags) ? NULL : copy;
}

static qn_value *last_time(qn_builder *b, int loops)
{
    return qn_b_scalar_int(b, QUERN_I64, qn_flag_iteration(loops - 1) - qn_flag_iteration(loops));
}

static qn_graph *flag_body(flags *f, const qn_graph *body, int n_carried, int64_t n_rows)
{
    qn_value *added[2] = { NULL }, **results = QN_NEW_ARRAY(f->module->arena, qn_value *, body->n_outputs);
    qn_graph *copy = wider(f, body, n_carried, n_rows, added, results);
    values pieces = { 0 };
    if (!copy)
        return NULL;
    f->loops++;
    flag_values(f, copy, &pieces);
    qn_builder b = { .graph = copy, .diags = f->diags };
    qn_value *never = rows(&b, n_rows, QN_FLAG_NEVER), *now = join(&b, &pieces);
    qn_value *bad = qn_b_compare(&b, QN_LT, now, never);
    now = qn_b_binary(&b, QN_OP_ADD, now, qn_b_broadcast_to(&b, added[0], 2, added[1]->type.dims));
    added[1] = qn_b_binary(&b, QN_OP_MIN, added[1], qn_b_select(&b, bad, now, never));
    qn_value *next =
        qn_b_binary(&b, QN_OP_ADD, added[0], qn_b_scalar_int(&b, QUERN_I64, qn_flag_iteration(f->loops)));
    /* the last that there is a number for stands for all behind it */
    added[0] = f->loops == 1 ? next : qn_b_binary(&b, QN_OP_MIN, next, last_time(&b, f->loops));
    f->loops--;
    for (int i = 0; i <= body->n_outputs && added[0] && added[1]; i++) {
        for (int k = 0; k < 2 && i == n_carried; k++)
            qn_graph_add_output(copy, added[k], NULL, -1);
        if (i < body->n_outputs)
            qn_graph_add_output(copy, qn_value_resolve(results[i]), NULL, -1);
    }
    return copy;
}

/* The loop again, with two more carried values, of which the second is the rows. */
static qn_node *flag_loop(flags *f, qn_builder *b, const qn_node *node)
{
    qn_arena *arena = f->module->arena;
    const bool is_scan = node->op == QN_OP_SCAN;
    const int n_carried = (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    const int n_scanned = is_scan ? (int)qn_attr_int(node, QN_ATTR_N_SCANNED) : 0;
    const int n_captured = node->n_operands - n_carried - n_scanned;
    const int64_t n_rows = count_inside(node);
    qn_value *start[2] = { qn_b_scalar_int(b, QUERN_I64, 0), rows(b, n_rows, QN_FLAG_NEVER) };
    qn_value **operands = QN_NEW_ARRAY(arena, qn_value *, node->n_operands + 2);
    for (int i = 0; i < node->n_operands + 2; i++)
        operands[i] = i < n_carried       ? node->operands[i]
                      : i < n_carried + 2 ? start[i - n_carried]
                                          : node->operands[i - 2];
    qn_graph *body = flag_body(f, node->regions[is_scan ? 0 : 1], n_carried, n_rows);
    if (!body)
        return NULL;
    if (is_scan)
        return qn_b_scan(b, n_carried + 2, n_scanned, n_captured, operands,
                         qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0], qn_attr_bool(node, QN_ATTR_REVERSE),
                         body);
    qn_value *added[2], *holds;
    qn_graph *condition = wider(f, node->regions[0], n_carried, n_rows, added, &holds);
    if (!condition)
        return NULL;
    qn_graph_add_output(condition, holds, NULL, -1);
    return qn_b_while(b, n_carried + 2, n_captured, operands,
                      qn_attr_find(node, QN_ATTR_LIMIT) ? qn_attr_dims(node, QN_ATTR_LIMIT, NULL)[0] : NULL,
                      condition, body);
}

/* The `if` again, with the rows of both branches as its last result. */
static qn_node *flag_if(flags *f, qn_builder *b, const qn_node *node)
{
    const int64_t n_rows[2] = { count(node->regions[0]), count(node->regions[1]) };
    qn_graph *branches[2];
    for (int r = 0; r < 2; r++) {
        branches[r] = qn_graph_clone(node->regions[r], NULL);
        qn_builder inner = { .graph = branches[r], .diags = f->diags };
        values pieces = { 0 }, both = { 0 };
        flag_values(f, branches[r], &pieces);
        qn_value *own = pieces.n ? join(&inner, &pieces) : NULL;
        for (int k = 0; k < 2; k++)
            if (n_rows[k])
                qn_vec_push(f->module->arena, &both, k == r ? own : rows(&inner, n_rows[k], QN_FLAG_NEVER));
        qn_value *all = join(&inner, &both);
        if (!all)
            return NULL;
        qn_graph_add_output(branches[r], all, NULL, -1);
    }
    return qn_b_if(b, node->operands[0], node->n_operands - 1, node->operands + 1, branches[0], branches[1]);
}

/* The node's other self, which takes its place; its rows are the result *out_rows. */
static qn_node *flag_node(flags *f, qn_node *node, qn_value **out_rows)
{
    qn_graph *graph = node->graph;
    qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = f->diags };
    const bool is_if = node->op == QN_OP_IF;
    const int at = is_if ? node->n_results : (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    qn_node *wide = is_if ? flag_if(f, &b, node) : flag_loop(f, &b, node);
    if (!wide)
        return NULL;
    *out_rows = &wide->results[is_if ? at : at + 1];
    for (int i = 0; i < node->n_results; i++)
        qn_value_replace(&node->results[i], &wide->results[i < at ? i : i + 2]);
    qn_graph_resolve(graph);
    qn_node_remove(node);
    return wide;
}

/* Rows of all values of the graph as it is, those in regions first. */
static void flag_values(flags *f, qn_graph *graph, values *out_pieces)
{
    qn_arena *arena = f->module->arena;
    qn_node *const last = graph->last;
    qn_builder b = { .graph = graph, .diags = f->diags };
    for (qn_node *node = graph->first, *next; node && !qn_diags_status(f->diags); node = next) {
        next = node == last ? NULL : node->next;
        qn_node *flagged = node;
        qn_value *inner = NULL;
        if (count_inside(node) > 0)
            flagged = flag_node(f, node, &inner);
        if (!flagged)
            return;
        if (inner)
            qn_vec_push(arena, out_pieces, inner);
        for (int i = 0; i < flagged->n_results; i++) {
            qn_value *value = &flagged->results[i];
            if (!has_flag(value))
                continue;
            qn_vec_push(arena, out_pieces, row_of(&b, value));
            qn_vec_push(arena, &f->all, ((qn_flag){ .value = value }));
        }
    }
}

qn_status qn_flag_numerics(qn_graph *graph, int *out_n, qn_flag **out_flags, qn_diags *diags)
{
    flags f = { .module = graph->module, .diags = diags };
    values pieces = { 0 };
    graph->n_outputs = 0;
    graph->outputs = NULL;
    graph->output_names = NULL;
    graph->aliases = NULL;
    flag_values(&f, graph, &pieces);
    QN_TRY(qn_diags_status(diags));
    size_t k = 0;
    for (int i = 0; i < (int)pieces.n; i++) {
        for (int64_t row = 0; row < pieces.items[i]->type.dims[0]->value; row++, k++) {
            f.all.items[k].output = i;
            f.all.items[k].row = row;
        }
        qn_graph_add_output(graph, pieces.items[i], qn_arena_printf(f.module->arena, "flag.%d", i), -1);
    }
    *out_n = (int)f.all.n;
    *out_flags = f.all.items;
    return QUERN_OK;
}
