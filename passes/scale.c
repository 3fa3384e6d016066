/* Folds what the result of a convolution is multiplied by and what is added to it, one number for each channel, into its
 * weights and into one bias: batch normalization at inference costs nothing.
 *
 *   %1 = convolution %x, %w          %w' = mul %w, (broadcast %s over the kernels)        which fold computes
 *   %2 = add %1, %b             ->   %1 = convolution %x, %w'
 *   %3 = mul %2, %s                  %2 = add %1, (b * s + c)
 *   %4 = add %3, %c
 *
 * Before: any graph. After: where weights and factors are constants and nobody else reads what is between, no convolution is
 * followed by such a product or by two such sums. It rounds differently, so strict math has none of it. */
#include "ir/build.h"
#include "passes/passes.h"

typedef struct scaler {
    qn_builder b;
    const int *uses; /* by id of the values at the start of the sweep */
} scaler;

/* `value`, of [N, C, …], as [C] when it is a constant for each channel; else NULL. */
static qn_value *channel_constant(scaler *s, qn_value *value)
{
    const qn_node *node = value->node;
    const qn_dim channels = value->type.dims[1];
    qn_scalar splat;
    if (!qn_dim_is_const(channels))
        return NULL;
    if (qn_value_splat(value, &splat))
        return qn_b_broadcast(&s->b, qn_b_scalar(&s->b, value->type.dtype, splat.f), 1, &channels, NULL);
    if (!node || node->op != QN_OP_BROADCAST || !qn_is_known(node->operands[0]))
        return NULL;
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    for (int i = 0; i < x->type.rank; i++)
        if (!qn_dim_is(x->type.dims[i], 1) && (axes[i] != 1 || x->type.dims[i] != channels))
            return NULL;
    if (qn_type_elements(&x->type) != channels->value)
        return NULL; /* one number, and no splat: not yet folded */
    return qn_b_reshape(&s->b, x, 1, &channels);
}

static qn_value *over_channels(scaler *s, qn_value *vector, const qn_type *type)
{
    return qn_b_broadcast(&s->b, vector, type->rank, type->dims, (const int64_t[]){ 1 });
}

/* Is it made in this sweep's graph and read once? */
static bool read_once(const scaler *s, const qn_value *value, qn_op op)
{
    return !value->forward && value->node && value->node->op == op && s->uses[value->id] == 1;
}

/* The convolution whose result `value` is, if its weights are constant and nobody else reads it. */
static const qn_node *own_convolution(const scaler *s, const qn_value *value)
{
    if (!read_once(s, value, QN_OP_CONVOLUTION) || !qn_dtype_is_float(value->type.dtype))
        return NULL;
    return qn_is_known(value->node->operands[1]) ? value->node : NULL;
}

/* Of a sum or product of two operands: the one that is a constant for each channel, as [C], and the other. */
static qn_value *constant_operand(scaler *s, const qn_node *node, qn_value **out_other)
{
    for (int i = 1; i >= 0; i--) {
        qn_value *vector = channel_constant(s, node->operands[i]);
        *out_other = node->operands[1 - i];
        if (vector)
            return vector;
    }
    return NULL;
}

static qn_value *scaled(scaler *s, const qn_node *conv, qn_value *factor)
{
    qn_value *w = conv->operands[1];
    w = qn_b_binary(&s->b, QN_OP_MUL, w,
                    qn_b_broadcast(&s->b, factor, w->type.rank, w->type.dims, (const int64_t[]){ 0 }));
    if (!w)
        return NULL;
    qn_value *operands[2] = { conv->operands[0], w };
    qn_node *made = qn_node_new(s->b.graph, s->b.before, QN_OP_CONVOLUTION, 2, operands, conv->n_attrs,
                                conv->attrs, 0, NULL, &conv->loc, s->b.diags);
    return made ? &made->results[0] : NULL;
}

/* What stands for the node, or NULL. */
static qn_value *rewrite(scaler *s, const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    qn_value *x, *inner;
    if ((node->op != QN_OP_MUL && node->op != QN_OP_ADD) || type->rank < 3 ||
        !qn_dtype_is_float(type->dtype) || node->operands[0]->forward || node->operands[1]->forward)
        return NULL;
    qn_value *vector = constant_operand(s, node, &x);
    if (!vector)
        return NULL;
    const qn_node *conv = own_convolution(s, x);
    if (conv)
        return node->op == QN_OP_MUL ? scaled(s, conv, vector) : NULL;
    if (!read_once(s, x, QN_OP_ADD))
        return NULL;
    qn_value *bias = constant_operand(s, x->node, &inner);
    conv = bias ? own_convolution(s, inner) : NULL;
    if (!conv)
        return NULL;
    bias = qn_b_binary(&s->b, node->op, bias, vector);
    if (node->op == QN_OP_MUL)
        inner = scaled(s, conv, vector);
    return qn_b_binary(&s->b, QN_OP_ADD, inner, over_channels(s, bias, type));
}

/* One sweep over a graph: what is made in it is looked at in the next. */
static bool sweep(qn_graph *graph, qn_diags *diags)
{
    qn_arena *scratch = qn_arena_new();
    scaler s = { .uses = qn_graph_count_uses(graph, scratch) };
    bool changed = false;
    const int errors = diags->n_errors;
    for (qn_node *node = graph->first, *next; node && diags->n_errors == errors; node = next) {
        next = node->next;
        qn_node *const before = node->prev;
        s.b = (qn_builder){ .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *made = rewrite(&s, node);
        if (made) {
            qn_value_replace(&node->results[0], made);
            qn_node_remove(node);
            changed = true;
            continue;
        }
        while (node->prev != before) /* vectors that were not needed */
            qn_node_remove(node->prev);
    }
    if (changed)
        qn_graph_resolve(graph);
    qn_arena_free(scratch);
    return changed;
}

static bool scale_graph(qn_graph *graph, qn_diags *diags)
{
    const int errors = diags->n_errors;
    bool changed = false;
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_regions; i++)
            changed |= scale_graph(node->regions[i], diags);
    while (diags->n_errors == errors && sweep(graph, diags))
        changed = true;
    return changed;
}

qn_status qn_pass_scale(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    *out_changed = false;
    if (options->math == QN_MATH_STRICT)
        return QUERN_OK;
    const int errors = diags->n_errors;
    *out_changed = scale_graph(graph, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
