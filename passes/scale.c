/* Folds what the result of a convolution is multiplied by and what is added to it, one number for each channel, into its
 * weights and into one bias: batch normalization at inference costs nothing.
 *
 *   %1 = convolution %x, %w          %w' = mul %w, (broadcast %s over the kernels)        which fold computes
 *   %2 = add %1, %b             ->   %1 = convolution %x, %w'
 *   %3 = mul %2, %s                  %2 = add %1, (b * s + c)
 *   %4 = add %3, %c
 *
 * Two convolutions of the same x that are added, of which one's kernel has all places of the other's, are one: what is trained as
 * branches (RepVGG, MobileOne, FastViT) runs as it would once they are put together.
 *
 *   %1 = convolution %x, %v: 3 x 3
 *   %2 = convolution %x, %w: 1 x 1   ->   %3 = convolution %x, (%v + pad %w)
 *   %3 = add %1, %2
 *
 * But not where the larger kernel has so many more places that fold.c would leave the pad to the run.
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

static qn_value *with_weights(scaler *s, const qn_node *conv, qn_value *w)
{
    if (!w)
        return NULL;
    qn_value *operands[2] = { conv->operands[0], w };
    qn_node *made = qn_node_new(s->b.graph, s->b.before, QN_OP_CONVOLUTION, 2, operands, conv->n_attrs,
                                conv->attrs, 0, NULL, &conv->loc, s->b.diags);
    return made ? &made->results[0] : NULL;
}

static qn_value *scaled(scaler *s, const qn_node *conv, qn_value *factor)
{
    qn_value *w = conv->operands[1];
    return with_weights(
        s, conv,
        qn_b_binary(&s->b, QN_OP_MUL, w,
                    qn_b_broadcast(&s->b, factor, w->type.rank, w->type.dims, (const int64_t[]){ 0 })));
}

/* ---- branches ---- */

/* A convolution and what is added to each channel of it, or NULL. */
typedef struct branch {
    const qn_node *conv;
    qn_value *bias;
} branch;

static bool is_branch(scaler *s, qn_value *value, branch *out)
{
    qn_value *inner;
    out->bias = read_once(s, value, QN_OP_ADD) ? constant_operand(s, value->node, &inner) : NULL;
    out->conv = own_convolution(s, out->bias ? inner : value);
    return out->conv != NULL;
}

static bool all_ones(const qn_node *node, qn_attr_key name)
{
    int n;
    const int64_t *values = qn_attr_ints(node, name, &n);
    for (int i = 0; i < n; i++)
        if (values[i] != 1)
            return false;
    return true;
}

/* Are b's places among those that a's kernel has? Then out_before and out_behind are what a has more of. */
static bool covers(const qn_node *a, const qn_node *b, qn_dims *dims, qn_dim *out_before, qn_dim *out_behind)
{
    double growth = 1;
    const qn_type *v = &a->operands[1]->type, *w = &b->operands[1]->type;
    const int64_t *v_stride = qn_attr_ints(a, QN_ATTR_STRIDE, NULL),
                  *w_stride = qn_attr_ints(b, QN_ATTR_STRIDE, NULL);
    if (a->operands[0] != b->operands[0] || v->dtype != w->dtype || v->dims[0] != w->dims[0] ||
        v->dims[1] != w->dims[1] || qn_attr_int(a, QN_ATTR_GROUPS) != qn_attr_int(b, QN_ATTR_GROUPS) ||
        !all_ones(a, QN_ATTR_X_DILATION) || !all_ones(b, QN_ATTR_X_DILATION) ||
        !all_ones(a, QN_ATTR_W_DILATION) || !all_ones(b, QN_ATTR_W_DILATION))
        return false;
    out_before[0] = out_before[1] = out_behind[0] = out_behind[1] = qn_dim_const(dims, 0);
    for (int i = 0; i < v->rank - 2; i++) {
        int64_t v_low, w_low, v_places, w_places;
        if (!qn_dim_known(qn_attr_dims(a, QN_ATTR_LOW, NULL)[i], &v_low) ||
            !qn_dim_known(qn_attr_dims(b, QN_ATTR_LOW, NULL)[i], &w_low) ||
            !qn_dim_known(v->dims[2 + i], &v_places) || !qn_dim_known(w->dims[2 + i], &w_places))
            return false;
        const int64_t before = v_low - w_low, behind = v_places - w_places - before;
        if (v_stride[i] != w_stride[i] || before < 0 || behind < 0)
            return false;
        growth *= (double)v_places / (double)w_places;
        out_before[2 + i] = qn_dim_const(dims, before);
        out_behind[2 + i] = qn_dim_const(dims, behind);
    }
    return growth <= QN_FOLD_PAD_GROWTH;
}

/* The sum of two branches, if they are one. */
static qn_value *united(scaler *s, const branch *a, const branch *b, const qn_type *type)
{
    qn_dim before[QN_MAX_RANK], behind[QN_MAX_RANK];
    qn_dims *dims = s->b.graph->module->dims;
    const bool first = covers(a->conv, b->conv, dims, before, behind);
    if (!first && !covers(b->conv, a->conv, dims, before, behind))
        return NULL;
    const qn_node *outer = first ? a->conv : b->conv, *inner = first ? b->conv : a->conv;
    qn_value *w = inner->operands[1], *zero = qn_b_scalar(&s->b, w->type.dtype, 0);
    w = qn_b_binary(&s->b, QN_OP_ADD, outer->operands[1], qn_b_pad(&s->b, w, zero, before, behind, NULL));
    qn_value *sum = with_weights(s, outer, w), *bias = a->bias && b->bias
                                                           ? qn_b_binary(&s->b, QN_OP_ADD, a->bias, b->bias)
                                                       : a->bias ? a->bias
                                                                 : b->bias;
    return bias ? qn_b_binary(&s->b, QN_OP_ADD, sum, over_channels(s, bias, type)) : sum;
}

/* A sum of branches, of which the first may be among others: (a + y) + b is (a + b) + y. */
static qn_value *sum_of_branches(scaler *s, const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    for (int i = 0; i < 2; i++) {
        qn_value *other = node->operands[1 - i];
        branch a, b;
        if (!is_branch(s, node->operands[i], &b))
            continue;
        if (is_branch(s, other, &a))
            return united(s, &a, &b, type);
        if (!read_once(s, other, QN_OP_ADD))
            continue;
        for (int k = 0; k < 2; k++) {
            qn_value *sum = is_branch(s, other->node->operands[k], &a) ? united(s, &a, &b, type) : NULL;
            if (sum)
                return qn_b_binary(&s->b, QN_OP_ADD, sum, other->node->operands[1 - k]);
        }
    }
    return NULL;
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
        return node->op == QN_OP_ADD ? sum_of_branches(s, node) : NULL;
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
