/* What attention means: its body in primitives, and that of its gradient. See ops.def. */
#include "ir/composite_attention.h"

#include <math.h>

static qn_value *over_keys(qn_builder *b, qn_kind kind, qn_value *scores)
{
    return qn_b_reduce(b, kind, scores, 1, (int64_t[]){ 3 }, false);
}

/* A value of each row for each of its keys. */
static qn_value *each_key(qn_builder *b, qn_value *rows, const qn_value *scores)
{
    return rows ? qn_b_broadcast(b, rows, 4, scores->type.dims, (int64_t[]){ 0, 1, 2 }) : NULL;
}

/* [B, H, S, D] as [B, G, H / G, S, D]: query heads by the key head they read. */
static qn_value *by_group(qn_builder *b, qn_value *x, qn_dim groups)
{
    const qn_dim *d = x->type.dims;
    qn_dim dims[5] = { d[0], groups, qn_dim_floordiv(qn_b_dims(b), d[1], groups), d[2], d[3] };
    return qn_b_reshape(b, x, 5, dims);
}

/* out[b, h, i, j] = sum over k of x[b, h, i, k] y[b, h / (H / G), …], y's axis `contract` being k. */
static qn_value *dot_of_heads(qn_builder *b, qn_value *x, qn_value *y, int contract)
{
    if (!x || !y)
        return NULL;
    qn_dot dot = { .n_batch = 2, .n_contract = 1, .x_batch = { 0, 1 }, .y_batch = { 0, 1 } };
    dot.y_contract[0] = contract;
    const qn_dim *d = x->type.dims;
    if (d[1] == y->type.dims[1]) {
        dot.x_contract[0] = 3;
        return qn_b_dot_general(b, x, y, &dot, QUERN_INVALID_DTYPE);
    }
    dot.x_contract[0] = 4;
    qn_value *grouped = by_group(b, x, y->type.dims[1]);
    return qn_b_reshape(b, qn_b_dot_general(b, grouped, y, &dot, QUERN_INVALID_DTYPE), 4,
                        (qn_dim[]){ d[0], d[1], d[2], y->type.dims[contract == 3 ? 2 : 3] });
}

/* Scores where key t <= s + T - S; -inf elsewhere. */
static qn_value *hide_future(qn_builder *b, qn_value *scores)
{
    if (!scores)
        return NULL;
    const qn_dim *d = scores->type.dims;
    qn_type type = qn_type_make(b->graph->module, QUERN_I64, 2, d + 2);
    qn_value *shift = qn_b_dim_value(b, QUERN_I64, qn_dim_sub(qn_b_dims(b), d[3], d[2]));
    qn_value *last = qn_b_binary(b, QN_OP_ADD, qn_b_iota(b, &type, 0), qn_b_broadcast_to(b, shift, 2, d + 2));
    qn_value *visible = qn_b_compare(b, QN_LE, qn_b_iota(b, &type, 1), last);
    return qn_b_select(b, qn_b_broadcast_to(b, visible, 4, d), scores,
                       qn_b_full(b, &scores->type, -INFINITY));
}

/* The softmax of the last axis, with 0 for a row of nothing but -inf. */
static qn_value *visible_softmax(qn_builder *b, qn_value *scores)
{
    qn_value *max = over_keys(b, QN_KIND_MAX, scores);
    if (!max)
        return NULL;
    qn_value *zero = qn_b_full(b, &max->type, 0), *one = qn_b_full(b, &max->type, 1);
    qn_value *hidden = qn_b_compare(b, QN_EQ, max, qn_b_full(b, &max->type, -INFINITY));
    qn_value *shift = each_key(b, qn_b_select(b, hidden, zero, max), scores);
    qn_value *powers = qn_b_unary(b, QN_OP_EXP, qn_b_binary(b, QN_OP_SUB, scores, shift));
    qn_value *sum = qn_b_select(b, hidden, one, over_keys(b, QN_SUM, powers));
    return qn_b_binary(b, QN_OP_DIV, powers, each_key(b, sum, scores));
}

/* Scores with the mask, or NULL: added, or where it is bool, -inf where it is false. */
static qn_value *apply_mask(qn_builder *b, qn_value *scores, qn_value *mask)
{
    if (!scores || !mask)
        return scores;
    if (mask->type.dtype == QUERN_BOOL)
        return qn_b_select(b, qn_b_broadcast_to(b, mask, 4, scores->type.dims), scores,
                           qn_b_full(b, &scores->type, -INFINITY));
    mask = qn_b_convert(b, scores->type.dtype, mask);
    return qn_b_binary(b, QN_OP_ADD, scores, qn_b_broadcast_to(b, mask, 4, scores->type.dims));
}

/* softmax(q k^T scale + mask) */
static qn_value *weights(qn_builder *b, const qn_node *node, qn_value *q, qn_value *k, qn_value *mask)
{
    qn_value *scores = dot_of_heads(b, q, k, 3);
    scores =
        apply_mask(b, qn_b_binary_scalar(b, QN_OP_MUL, scores, qn_attr_float(node, QN_ATTR_SCALE)), mask);
    if (qn_attr_bool(node, QN_ATTR_CAUSAL))
        scores = hide_future(b, scores);
    return scores ? visible_softmax(b, scores) : NULL;
}

static qn_value *packed(qn_builder *b, const qn_node *node, qn_value *const *x)
{
    qn_dims *dims = qn_b_dims(b);
    const qn_dim zero = qn_dim_const(dims, 0);
    if (!x[1] || !x[2])
        return NULL;
    /* [B, G, panels, D, width] as [B, G, panels * width, D] */
    const qn_dim *d = x[1]->type.dims;
    qn_value *k = qn_b_transpose(b, x[1], (const int64_t[]){ 0, 1, 2, 4, 3 });
    k = qn_b_reshape(b, k, 4, (const qn_dim[]){ d[0], d[1], qn_dim_mul(dims, d[2], d[4]), d[3] });
    k = qn_b_slice_axis(b, k, 2, zero, x[2]->type.dims[2]);
    qn_value *v = qn_b_slice_axis(b, x[2], 3, zero, qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0]);
    qn_value *y = dot_of_heads(b, weights(b, node, x[0], k, x[3]), v, 2);
    return y && qn_attr_bool(node, QN_ATTR_HEADS_LAST) ? qn_b_transpose(b, y, (const int64_t[]){ 0, 2, 1, 3 })
                                                       : y;
}

/* out[b, g, t, d] = sum over the queries s of the group's heads of x[b, h, s, t] y[b, h, s, d] */
static qn_value *dot_of_queries(qn_builder *b, qn_value *x, qn_value *y, qn_dim groups)
{
    if (!x || !y)
        return NULL;
    const qn_dot dot = { .n_batch = 2,
                         .n_contract = 2,
                         .x_batch = { 0, 1 },
                         .y_batch = { 0, 1 },
                         .x_contract = { 2, 3 },
                         .y_contract = { 2, 3 } };
    return qn_b_dot_general(b, by_group(b, x, groups), by_group(b, y, groups), &dot, QUERN_INVALID_DTYPE);
}

static void grad(qn_builder *b, const qn_node *node, qn_value *const *x, qn_value **out_results)
{
    qn_value *q = x[0], *k = x[1], *v = x[2], *g = x[3];
    const double scale = qn_attr_float(node, QN_ATTR_SCALE);
    qn_value *a = weights(b, node, q, k, x[4]), *of_a = dot_of_heads(b, g, v, 3);
    if (!a || !of_a)
        return;
    qn_value *mean = over_keys(b, QN_SUM, qn_b_binary(b, QN_OP_MUL, a, of_a));
    qn_value *s = qn_b_binary(b, QN_OP_MUL, a, qn_b_binary(b, QN_OP_SUB, of_a, each_key(b, mean, a)));
    s = qn_b_binary_scalar(b, QN_OP_MUL, s, scale);
    out_results[0] = dot_of_heads(b, s, k, 2);
    out_results[1] = dot_of_queries(b, s, q, k->type.dims[1]);
    out_results[2] = dot_of_queries(b, a, g, k->type.dims[1]);
}

void qn_attention_expand(qn_builder *b, const qn_node *node, qn_value *const *x, qn_value **out_results)
{
    switch (node->op) {
    case QN_OP_ATTENTION:
        out_results[0] = dot_of_heads(b, weights(b, node, x[0], x[1], x[3]), x[2], 2);
        break;
    case QN_OP_ATTENTION_PACKED: out_results[0] = packed(b, node, x); break;
    case QN_OP_ATTENTION_GRAD: grad(b, node, x, out_results); break;
    default: QN_UNREACHABLE("%s is no attention", qn_ops[node->op].name);
    }
}
