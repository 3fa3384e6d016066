/* Spells out what lowering has no kernel of its own for.
 *
 * Before: any graph. After: no composites, except those that a kernel template keeps (passes/claim.h) and gelu where the
 * machine reads it from a table; no calls: the function's nodes stand there; no arg_reduce: it is said by two reductions,
 * which fuse into one kernel with what surrounds them and run vectorized; no top_k and suppress but those with a kernel of
 * their own (passes/lower_opaque_keys.c): they are a sort and slices, or a loop.
 *
 *   %0 = softmax %x {axis = 1}
 *   ->
 *   %0 = reduce %x {axes = [1], kind = max}
 *   %1 = broadcast %0 …
 *   …
 */
#include <string.h>

#include "ir/build.h"
#include "passes/attention.h"
#include "passes/claim.h"
#include "passes/expand_suppress.h"
#include "passes/inline.h"
#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/quantize.h"

/* arg_reduce as reductions: the extreme m of x, then the least (last: the greatest) index where x equals m. NaN counts as
 * extreme, and so does the reduction: m is NaN exactly when x has one, and then the indices of NaN are asked for. */
static qn_value *expand_arg_reduce(qn_builder *b, qn_node *node)
{
    qn_value *x = node->operands[0];
    const int rank = x->type.rank;
    const int64_t axis = qn_attr_int(node, QN_ATTR_AXIS);
    const bool last = qn_attr_bool(node, QN_ATTR_LAST);
    qn_value *m = qn_b_reduce(b, qn_attr_reduce_kind(node), x, 1, &axis, false);
    if (!m)
        return NULL;
    int64_t axes[QN_MAX_RANK];
    for (int i = 0, k = 0; i < rank; i++)
        if (i != axis)
            axes[k++] = i;
    qn_value *everywhere = qn_b_broadcast(b, m, rank, x->type.dims, axes);
    qn_value *hit = qn_b_compare(b, QN_EQ, x, everywhere);
    if (qn_dtype_is_float(x->type.dtype)) {
        qn_value *both = qn_b_binary(b, QN_OP_AND, qn_b_unary(b, QN_OP_IS_NAN, x),
                                     qn_b_unary(b, QN_OP_IS_NAN, everywhere));
        hit = qn_b_binary(b, QN_OP_OR, hit, both);
    }
    const qn_type index_type = qn_type_make(b->graph->module, QUERN_I64, rank, x->type.dims);
    qn_value *index = qn_b_iota(b, &index_type, (int)axis);
    qn_value *none = last ? qn_b_full(b, &index_type, -1)
                          : qn_b_broadcast(b, qn_b_dim_value(b, QUERN_I64, x->type.dims[axis]), rank,
                                           x->type.dims, (const int64_t[]){ 0 });
    qn_value *candidates = qn_b_select(b, hit, index, none);
    return qn_b_reduce(b, last ? QN_KIND_MAX : QN_KIND_MIN, candidates, 1, &axis, false);
}

/* top_k: the first k of a stable sort of the elements and their indices. */
static void expand_top_k(qn_builder *b, qn_node *node, qn_value **out_results)
{
    qn_value *x = node->operands[0];
    const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
    qn_dims *dims = qn_b_dims(b);
    const qn_type index_type = qn_type_make(b->graph->module, QUERN_I64, x->type.rank, x->type.dims);
    qn_value *const operands[2] = { x, qn_b_iota(b, &index_type, axis) };
    const qn_node *sort = qn_b_sort(b, 2, operands, axis, qn_attr_bool(node, QN_ATTR_LARGEST));
    for (int i = 0; i < 2; i++)
        out_results[i] = sort ? qn_b_slice_axis(b, &sort->results[i], axis, qn_dim_const(dims, 0),
                                                qn_attr_dims(node, QN_ATTR_K, NULL)[0])
                              : NULL;
}

/* The one node that reads the result, when it is a transposition that swaps heads and queries; else NULL. */
static qn_node *heads_to_the_end(const qn_node *node)
{
    qn_node *reader = NULL;
    for (int i = 0; i < node->graph->n_outputs; i++)
        if (qn_value_resolve(node->graph->outputs[i]) == &node->results[0])
            return NULL;
    for (qn_node *other = node->next; other; other = other->next) {
        qn_node_resolve(other);
        for (int i = 0; i < other->n_operands; i++)
            if (other->operands[i] == &node->results[0]) {
                if (reader || other->op != QN_OP_TRANSPOSE)
                    return NULL;
                reader = other;
            }
    }
    static const int64_t swapped[4] = { 0, 2, 1, 3 };
    return reader && memcmp(qn_attr_ints(reader, QN_ATTR_PERM, NULL), swapped, sizeof swapped) == 0 ? reader
                                                                                                    : NULL;
}

/* One query a head, and heads that share their keys: as one head with so many queries, so that keys are read once. All of it
 * only says another shape. */
static qn_node *with_groups_as_heads(qn_builder *b, qn_node *node)
{
    const qn_type *q = &node->operands[0]->type, *k = &node->operands[1]->type;
    const qn_dim one = qn_dim_const(qn_b_dims(b), 1), heads = q->dims[1], groups = k->dims[1];
    if (q->dims[2] != one || heads == groups || !qn_dim_is_const(heads) || !qn_dim_is_const(groups))
        return node;
    const qn_dim shared = qn_dim_const(qn_b_dims(b), heads->value / groups->value);
    qn_value *mask = node->n_operands > 3 ? node->operands[3] : NULL;
    if (mask && mask->type.dims[1] == heads)
        mask = qn_b_reshape(b, mask, 4, (qn_dim[]){ mask->type.dims[0], groups, shared, mask->type.dims[3] });
    qn_value *x = qn_b_reshape(b, node->operands[0], 4, (qn_dim[]){ q->dims[0], groups, shared, q->dims[3] });
    qn_value *y = qn_b_attention(b, x, node->operands[1], node->operands[2], mask,
                                 qn_attr_float(node, QN_ATTR_SCALE), false); /* one query sees all keys */
    qn_value *result = qn_b_reshape(b, y, 4, node->results[0].type.dims);
    if (!result)
        return node;
    qn_value_replace(&node->results[0], result);
    qn_node_remove(node);
    return y->node;
}

static qn_value *panels_of_keys(qn_builder *b, qn_value *k, int64_t width)
{
    const qn_dim *dims = k->type.dims;
    return width == QN_ATTENTION_IN_PLACE
               ? qn_b_reshape(
                     b, k, 5,
                     (qn_dim[]){ dims[0], dims[1], dims[2], dims[3], qn_dim_const(qn_b_dims(b), width) })
               : qn_b_panels(b, qn_b_transpose(b, k, (const int64_t[]){ 0, 1, 3, 2 }), width);
}

/* `y` instead of the attention, and of the transposition of its result, where it does that. */
static void replace_attention(qn_node *node, qn_node *transpose, qn_value *y)
{
    if (transpose) { /* first, so that nobody reads the result any more */
        qn_value_replace(&transpose->results[0], y);
        qn_node_remove(transpose);
    } else {
        qn_value_replace(&node->results[0], y);
    }
    qn_node_remove(node);
}

/* As attention_packed, which also does a transposition of the result. */
static bool pack_one_attention(qn_node *node, const qn_pass_options *options, qn_diags *diags)
{
    int64_t k_width, v_width;
    if (!qn_attention_plan(node, options, &k_width, &v_width))
        return false;
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
    if (k_width == QN_ATTENTION_IN_PLACE) {
        node = with_groups_as_heads(&b, node);
        b.before = node;
    }
    qn_dims *dims = qn_b_dims(&b);
    qn_node *transpose = heads_to_the_end(node);
    qn_value *mask = node->n_operands > 3 ? node->operands[3] : NULL, *v = node->operands[2];
    qn_value *k = panels_of_keys(&b, node->operands[1], k_width);
    const qn_dim zero = qn_dim_const(dims, 0), columns = v->type.dims[3];
    if (!qn_dim_is(columns, v_width)) {
        const qn_dim none[4] = { zero, zero, zero, zero };
        const qn_dim past[4] = { zero, zero, zero, qn_dim_const(dims, v_width - columns->value) };
        v = qn_b_pad(&b, v, qn_b_scalar(&b, v->type.dtype, 0), none, past, NULL);
    }
    qn_value *y = qn_b_attention_packed(&b, node->operands[0], k, v, mask, qn_attr_float(node, QN_ATTR_SCALE),
                                        qn_attr_bool(node, QN_ATTR_CAUSAL), columns, transpose != NULL);
    if (!y)
        return false;
    replace_attention(node, transpose, y);
    return true;
}

/* May it be a step of a decoder, one query for each of its keys of before? */
static bool may_be_a_step(const qn_node *node)
{
    const qn_type *q = &node->operands[0]->type, *k = &node->operands[1]->type;
    if (q->dims[2]->min > 1 || q->dims[2]->max <= 1 || q->dims[2] == k->dims[2])
        return false;
    for (int i = 1; i < 3; i++) /* in memory as they are */
        if (node->operands[i]->node && node->operands[i]->node->op == QN_OP_TRANSPOSE)
            return false;
    return true;
}

/* The attention in a region that gets its operands: of one query, whose result is repeated as if there were several; or of all. Or
 * NULL. */
static qn_graph *attention_region(const qn_node *node, bool one_query, bool heads_last,
                                  const qn_pass_options *options, qn_diags *diags)
{
    qn_graph *region = qn_region_new(node->graph->module);
    qn_builder b = { .graph = region, .loc = node->loc, .diags = diags };
    const qn_dim zero = qn_dim_const(qn_b_dims(&b), 0), one = qn_dim_const(qn_b_dims(&b), 1);
    const qn_type *type = &node->results[0].type;
    qn_value *x[4] = { NULL };
    for (int i = 0; i < node->n_operands; i++) {
        x[i] = qn_graph_add_input(region, NULL, node->operands[i]->type, QN_ROLE_INPUT);
        if (one_query && (i == 0 || i == 3) && x[i]->type.dims[2] == type->dims[2])
            x[i] = qn_b_slice_axis(&b, x[i], 2, zero, one);
    }
    qn_value *y = qn_b_attention(&b, x[0], x[1], x[2], x[3], qn_attr_float(node, QN_ATTR_SCALE),
                                 !one_query &&
                                     qn_attr_bool(node, QN_ATTR_CAUSAL)), /* one query sees all keys */
        *all = y;
    if (one_query)
        all = qn_b_broadcast(&b, y, 4, type->dims, (const int64_t[]){ 0, 1, 2, 3 });
    if (heads_last)
        all = qn_b_transpose(&b, all, (const int64_t[]){ 0, 2, 1, 3 });
    int64_t k_width, v_width;
    if (!all || (one_query && (!qn_attention_plan(y->node, options, &k_width, &v_width) ||
                               k_width != QN_ATTENTION_IN_PLACE)))
        return NULL;
    qn_graph_add_output(region, all, NULL, -1);
    return pack_one_attention(y->node, options, diags) ? region : NULL;
}

/* Keys are packed for many queries, and read where they lie for one: which of them, a run decides. */
static bool choose_attention(qn_node *node, const qn_pass_options *options, qn_diags *diags)
{
    int64_t k_width, v_width;
    if (!may_be_a_step(node) || !qn_attention_plan(node, options, &k_width, &v_width))
        return false;
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
    qn_node *transpose = heads_to_the_end(node);
    qn_graph *step = attention_region(node, true, transpose, options, diags),
             *other = step ? attention_region(node, false, transpose, options, diags) : NULL;
    if (!other)
        return false;
    qn_value *is_step =
        qn_b_compare(&b, QN_EQ, qn_b_dim_value(&b, QUERN_I64, node->operands[0]->type.dims[2]),
                     qn_b_scalar_int(&b, QUERN_I64, 1));
    qn_node *chosen = qn_b_if(&b, is_step, node->n_operands, node->operands, step, other);
    if (!chosen)
        return false;
    replace_attention(node, transpose, &chosen->results[0]);
    return true;
}

/* attention, where there is a kernel for it. */
static bool pack_attention(qn_node *node, const qn_pass_options *options, qn_diags *diags)
{
    return node->op == QN_OP_ATTENTION &&
           (choose_attention(node, options, diags) || pack_one_attention(node, options, diags));
}

bool qn_expand_node(qn_node *node, qn_value **out_results, qn_diags *diags)
{
    if (qn_op_is_composite(node->op)) {
        qn_composite_expand(node, out_results, diags);
        return true;
    }
    if (node->op == QN_OP_CALL) {
        const qn_graph *callee = qn_module_find(node->graph->module, qn_attr_string(node, QN_ATTR_FUNCTION));
        /* A report by the builder is all that failing does here: results stay NULL. */
        return qn_inline_graph(callee, node->graph, node, node->operands, out_results, diags) == QUERN_OK;
    }
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
    if (node->op == QN_OP_ARG_REDUCE) {
        out_results[0] = expand_arg_reduce(&b, node);
        return true;
    }
    if (node->op == QN_OP_TOP_K) {
        expand_top_k(&b, node, out_results);
        return true;
    }
    if (node->op == QN_OP_SUPPRESS) {
        out_results[0] = qn_expand_suppress(&b, node);
        return true;
    }
    return false;
}

/* One function of kernels (passes/math/erf.c), quicker than what it is made of. */
static bool is_in_tables(const qn_node *node, const qn_pass_options *options)
{
    return (node->op == QN_OP_GELU || node->op == QN_OP_GELU_TANH) && options->machine &&
           options->machine->lookup && options->math != QN_MATH_STRICT &&
           node->results[0].type.dtype != QUERN_F64;
}

static bool expand_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    bool changed = false;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        for (int i = 0; i < node->n_regions; i++)
            changed |= expand_graph(node->regions[i], options, diags);
        if (qn_template_keeps(node, options) || is_in_tables(node, options) ||
            qn_lower_packs_keys(node, options))
            continue;
        qn_node *const before = node->prev;
        if (pack_attention(node, options, diags) || qn_int4_take_products(node, options, diags)) {
            next = before ? before->next : graph->first;
            changed = true;
            continue;
        }
        qn_value **results = QN_NEW_ARRAY(graph->module->arena, qn_value *, node->n_results);
        if (!qn_expand_node(node, results, diags))
            continue;
        for (int i = 0; i < node->n_results; i++) {
            if (!results[i])
                return changed;
            qn_value_replace(&node->results[i], results[i]);
        }
        qn_node_remove(node);
        next = before ? before->next : graph->first; /* an expansion may hold composites itself */
        changed = true;
    }
    return changed;
}

qn_status qn_pass_expand(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    const int errors = diags->n_errors;
    *out_changed = expand_graph(graph, options, diags);
    if (*out_changed)
        qn_graph_resolve(graph);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
