/* Small products that share their left side become one: threads meet once, and a wide product divides better among them.
 *
 *   %q = dot_general %x, %wq : f32[8, 384]           %w = concatenate %wq, %wk, %wv {axis = 1}      which fold computes
 *   %k = dot_general %x, %wk : f32[8, 384]    ->     %y = dot_general %x, %w : f32[8, 1152]
 *   %v = dot_general %x, %wv : f32[8, 384]           %q, %k, %v = slices of %y
 *
 * Large ones gain nothing: they have tasks enough, and read their rows from the caches. Right sides are constants that nobody
 * else reads. A slice costs nothing where what reads it takes elements from other places anyway (transposed into heads,
 * rotated, put into a cache); where it doesn't, the reader would have been computed with the product, or would need a copy,
 * and the product stays by itself.
 *
 * Before: any graph. After: no two such products of a graph with equal attributes read the same value. */
#include "ir/build.h"
#include "passes/passes.h"

typedef struct reading {
    const qn_node *reader;
    int below; /* another of the same value, or -1 */
} reading;

typedef struct family {
    const qn_graph *graph;
    qn_arena *scratch;
    int *uses;  /* by value id, outputs among them */
    int *heads; /* by value id: into `readings`, or -1 */
    qn_vec(reading) readings;
    qn_vec(qn_node *) products;
} family;

/* Is an element of the value, or of what is computed from it alone, read from another place? */
static bool is_moved(const family *f, const qn_value *value, int depth)
{
    for (int i = depth > 0 ? f->heads[value->id] : -1; i >= 0; i = f->readings.items[i].below) {
        const qn_node *reader = f->readings.items[i].reader;
        const qn_op_class class = qn_ops[reader->op].class;
        if (class == QN_INJECTIVE && reader->op != QN_OP_RESHAPE)
            return true;
        if ((class == QN_ELEMENTWISE || reader->op == QN_OP_RESHAPE) &&
            is_moved(f, &reader->results[0], depth - 1))
            return true;
    }
    return false;
}

static bool is_output(const qn_graph *graph, const qn_value *value)
{
    for (int i = 0; i < graph->n_outputs; i++)
        if (graph->outputs[i] == value)
            return true;
    return false;
}

/* Multiplications at most; where there may be any number, too many. */
static double work(const qn_node *node)
{
    const qn_dot_side x = qn_dot_side_of(node, 0);
    const qn_type *xt = &node->operands[0]->type;
    double n = (double)qn_type_elements(&node->operands[1]->type);
    for (int i = 0; i < x.n_free; i++)
        n *= (double)xt->dims[x.free[i]]->max;
    return n;
}

/* A product that could be a part of a wider one. LARGE takes a core about 80 us. */
static bool is_candidate(const family *f, const qn_node *node)
{
    enum { DEPTH = 8, LARGE = 4000000 };
    if (node->op != QN_OP_DOT_GENERAL || !qn_value_constant(node->operands[1]) ||
        f->uses[node->operands[1]->id] != 1)
        return false;
    const qn_dot_side y = qn_dot_side_of(node, 1);
    return y.n_batch == 0 && y.n_free == 1 && work(node) < LARGE && !is_output(f->graph, &node->results[0]) &&
           is_moved(f, &node->results[0], DEPTH);
}

static void survey(family *f, qn_graph *graph)
{
    f->graph = graph;
    f->uses = qn_graph_count_uses(graph, f->scratch);
    f->heads = QN_NEW_ARRAY(f->scratch, int, graph->n_values);
    for (int i = 0; i < graph->n_values; i++)
        f->heads[i] = -1;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_operands; i++) {
            const reading r = { node, f->heads[node->operands[i]->id] };
            f->heads[node->operands[i]->id] = (int)f->readings.n;
            qn_vec_push(f->scratch, &f->readings, r);
        }
    QN_FOR_NODES (graph, node)
        if (is_candidate(f, node))
            qn_vec_push(f->scratch, &f->products, node);
}

static bool are_siblings(const qn_node *a, const qn_node *b)
{
    bool alike = a->operands[0] == b->operands[0] && a->n_attrs == b->n_attrs &&
                 a->operands[1]->type.dtype == b->operands[1]->type.dtype;
    for (int i = 0; alike && i < a->n_attrs; i++)
        alike = qn_attr_equal(&a->attrs[i], &b->attrs[i]);
    return alike;
}

/* In place of the products, of which the first in the graph comes first. */
static bool unite(qn_graph *graph, int n, qn_node *const *products, qn_diags *diags)
{
    qn_node *first = products[0];
    qn_builder b = { .graph = graph, .before = first, .loc = first->loc, .diags = diags };
    const qn_dot_side side = qn_dot_side_of(first, 1);
    const int64_t free = side.free[0];
    qn_value **weights = QN_NEW_ARRAY(graph->module->arena, qn_value *, n);
    for (int i = 0; i < n; i++) {
        weights[i] = products[i]->operands[1];
        if (i > 0)
            qn_node_move_before(weights[i]->node, first);
    }
    qn_value *operands[] = { first->operands[0], qn_b_concatenate(&b, n, weights, (int)free) };
    qn_node *wide = !operands[1] ? NULL
                                 : qn_node_new(graph, first, QN_OP_DOT_GENERAL, 2, operands, first->n_attrs,
                                               first->attrs, 0, NULL, &first->loc, diags);
    if (!wide)
        return false;
    const int last = wide->results[0].type.rank - 1;
    qn_dim at = qn_dim_const(qn_b_dims(&b), 0);
    for (int i = 0; i < n; i++) {
        const qn_dim end = qn_dim_add(qn_b_dims(&b), at, weights[i]->type.dims[free]);
        b.loc = products[i]->loc;
        qn_value *part = qn_b_slice_axis(&b, &wide->results[0], last, at, end);
        if (!part)
            return false;
        qn_value_replace(&products[i]->results[0], part);
        at = end;
    }
    for (int i = 0; i < n; i++)
        qn_node_remove(products[i]);
    return true;
}

static bool unite_siblings(qn_graph *graph, qn_diags *diags)
{
    bool changed = false;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_regions; i++)
            changed |= unite_siblings(node->regions[i], diags);
    family f = { .scratch = qn_arena_new() };
    survey(&f, graph);
    qn_node **siblings = QN_NEW_ARRAY(f.scratch, qn_node *, f.products.n);
    for (size_t i = 0; i < f.products.n; i++) {
        qn_node *first = f.products.items[i];
        int n = 0;
        for (size_t k = i; first && k < f.products.n; k++) {
            qn_node *other = f.products.items[k];
            if (!other || !are_siblings(first, other))
                continue;
            siblings[n++] = other;
            f.products.items[k] = NULL;
        }
        if (n > 1 && unite(graph, n, siblings, diags))
            changed = true;
    }
    qn_arena_free(f.scratch);
    qn_graph_resolve(graph);
    return changed;
}

qn_status qn_pass_siblings(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                           qn_diags *diags)
{
    *out_changed = false;
    if (options->no_fusion) /* slices would be kernels */
        return QUERN_OK;
    const int errors = diags->n_errors;
    *out_changed = unite_siblings(graph, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
