/* Rules for what goes over rows: softmax, log_softmax, layer_norm, rms_norm, cross_entropy. In the pictures m(x), s(x), a(x) are
 * the maximum, sum and mean of x over axes, repeated along them again:  broadcast(reduce %x), with or without a reshape that
 * keeps the axes as 1s. */
#include <string.h>

#include "passes/raise.h"

typedef struct axis_set {
    int n;
    const int64_t *axes;
} axis_set;

/* The reduction that `value`, of rank `rank`, is one over the axes of, with the axes gone or kept as 1s; else NULL. */
static const qn_node *reduction_at(const qn_value *value, qn_kind kind, int rank, bool *out_kept)
{
    const qn_node *node = value->node;
    *out_kept = false;
    if (node && node->op == QN_OP_RESHAPE && value->type.rank == rank) {
        node = node->operands[0]->node;
        *out_kept = true;
    }
    if (!node || node->op != QN_OP_REDUCE || qn_attr_reduce_kind(node) != kind ||
        node->operands[0]->type.rank != rank)
        return NULL;
    if (!*out_kept)
        return node;
    const axis_set axes = { .axes = qn_attr_ints(node, QN_ATTR_AXES, NULL) };
    int n;
    (void)qn_attr_ints(node, QN_ATTR_AXES, &n);
    for (int i = 0, gone = 0; i < rank; i++) {
        const bool is_gone = gone < n && axes.axes[gone] == i;
        gone += is_gone;
        if (is_gone ? !qn_dim_is(value->type.dims[i], 1)
                    : value->type.dims[i] != node->operands[0]->type.dims[i])
            return NULL;
    }
    return node;
}

/* Of a value that is repeated along axes: what it is repeated from, its broadcast in *out. */
static qn_value *repeated_from(const qn_value *value, const qn_node **out)
{
    *out = qn_value_made_by(value, QN_OP_BROADCAST);
    return *out ? (*out)->operands[0] : NULL;
}

/* Does the broadcast put a value of the reduction (kept: with 1s) back where its rows were? */
static bool spreads_back(const qn_node *broadcast, const qn_node *reduction, bool kept)
{
    int n, n_gone;
    const int64_t *axes = qn_attr_ints(broadcast, QN_ATTR_AXES, &n),
                  *gone = qn_attr_ints(reduction, QN_ATTR_AXES, &n_gone);
    if (!qn_same_dims(&broadcast->results[0].type, &reduction->operands[0]->type))
        return false;
    for (int i = 0, at = 0, k = 0; i < n; i++, at++) {
        while (!kept && k < n_gone && gone[k] == at)
            k++, at++;
        if (axes[i] != at)
            return false;
    }
    return true;
}

/* broadcast(reduce x): the reduction, when `value` is that of kind `kind`. */
static const qn_node *row_value(const qn_value *value, qn_kind kind)
{
    const qn_node *broadcast;
    const qn_value *from = repeated_from(value, &broadcast);
    bool kept;
    const qn_node *reduction = from ? reduction_at(from, kind, value->type.rank, &kept) : NULL;
    return reduction && spreads_back(broadcast, reduction, kept) ? reduction : NULL;
}

/* The one axis of a reduction, or -1. */
static int single_axis(const qn_node *reduction)
{
    int n;
    const int64_t *axes = qn_attr_ints(reduction, QN_ATTR_AXES, &n);
    return n == 1 ? (int)axes[0] : -1;
}

/* Of x - m(x): x, and the axis. */
static qn_value *less_maximum(const qn_value *value, int *out_axis)
{
    const qn_node *sub = qn_value_made_by(value, QN_OP_SUB);
    const qn_node *max = sub ? row_value(sub->operands[1], QN_KIND_MAX) : NULL;
    if (!max || max->operands[0] != sub->operands[0] || (*out_axis = single_axis(max)) < 0)
        return NULL;
    return sub->operands[0];
}

/* softmax x for e = exp(x - m(x)) and its sum, over the same axis; else NULL */
static qn_value *softmax_of(qn_raiser *s, const qn_value *e, const qn_node *sum)
{
    const qn_node *exp = qn_value_made_by(e, QN_OP_EXP);
    int axis;
    if (!exp || !sum || sum->operands[0] != e || e->type.dtype == QUERN_F16 || e->type.dtype == QUERN_BF16)
        return NULL;
    qn_value *x = less_maximum(exp->operands[0], &axis);
    return x && axis == single_axis(sum) ? qn_b_softmax(&s->r.b, QN_OP_SOFTMAX, x, axis) : NULL;
}

/* e / s(e), e = exp(x - m(x))  ->  softmax x */
static qn_value *softmax(qn_raiser *s, const qn_node *node)
{
    return softmax_of(s, node->operands[0], row_value(node->operands[1], QN_SUM));
}

/* e * (1 / s(e)), as simplify says it  ->  softmax x */
static qn_value *softmax_by_reciprocal(qn_raiser *s, const qn_node *node)
{
    for (int i = 0; i < 2; i++) {
        const qn_node *broadcast, *div;
        const qn_value *inverse = repeated_from(node->operands[1 - i], &broadcast);
        bool kept;
        if (!inverse || !(div = qn_value_made_by(inverse, QN_OP_DIV)) ||
            !qn_raise_is_number(div->operands[0], 1))
            continue;
        const qn_node *sum = reduction_at(div->operands[1], QN_SUM, node->results[0].type.rank, &kept);
        if (sum && spreads_back(broadcast, sum, kept))
            return softmax_of(s, node->operands[i], sum);
    }
    return NULL;
}

/* y - log(s(exp(y))), y = x - m(x)  ->  log_softmax x */
static qn_value *log_softmax(qn_raiser *s, const qn_node *node)
{
    int axis;
    const qn_node *broadcast, *log;
    qn_value *y = node->operands[0], *x = less_maximum(y, &axis),
             *from = x ? repeated_from(node->operands[1], &broadcast) : NULL;
    if (!from || x->type.dtype == QUERN_F16 || x->type.dtype == QUERN_BF16)
        return NULL;
    bool reshaped = false;
    if (qn_value_made_by(from, QN_OP_RESHAPE)) {
        reshaped = true;
        log = qn_value_made_by(from->node->operands[0], QN_OP_LOG);
    } else {
        log = qn_value_made_by(from, QN_OP_LOG);
    }
    bool kept;
    const qn_node *sum = log ? reduction_at(log->operands[0], QN_SUM, y->type.rank, &kept) : NULL;
    if (!sum || single_axis(sum) != axis || !spreads_back(broadcast, sum, kept || reshaped) ||
        (reshaped && from->type.rank != y->type.rank))
        return NULL;
    const qn_node *exp = qn_value_made_by(sum->operands[0], QN_OP_EXP);
    return exp && exp->operands[0] == y ? qn_b_softmax(&s->r.b, QN_OP_LOG_SOFTMAX, x, axis) : NULL;
}

/* ---- norms ---- */

/* The mean of a value over its last axes, from *out_axis on: s(x) times 1 / n where the sum is small. The value; else NULL. */
static qn_value *mean_of(qn_value *mean, int rank, int *out_axis, const qn_node **out_reduction,
                         bool *out_kept)
{
    double factor = 1, count = 1;
    qn_value *sum = qn_raise_without_factor(mean, &factor);
    const qn_node *reduction = reduction_at(sum, QN_SUM, rank, out_kept);
    if (!reduction)
        return NULL;
    int n;
    const int64_t *axes = qn_attr_ints(reduction, QN_ATTR_AXES, &n);
    const qn_type *type = &reduction->operands[0]->type;
    for (int i = 0; i < n; i++) {
        if (axes[i] != rank - n + i || !qn_dim_is_const(type->dims[axes[i]]))
            return NULL;
        count *= (double)type->dims[axes[i]]->value;
    }
    *out_axis = rank - n;
    *out_reduction = reduction;
    return qn_raise_near(type->dtype, factor * count, 1) ? reduction->operands[0] : NULL;
}

/* Of a factor 1 / sqrt(a(y y) + epsilon), repeated along rows: y; what divides when `divides`. */
static qn_value *normalized_by(const qn_value *value, bool divides, int *out_axis, double *out_epsilon)
{
    const qn_node *broadcast;
    const qn_value *from = repeated_from(value, &broadcast);
    bool kept, reshaped = false;
    if (from && qn_value_made_by(from, QN_OP_RESHAPE) && from->type.rank == value->type.rank) {
        from = from->node->operands[0];
        reshaped = true;
    }
    if (from && !divides && qn_value_made_by(from, QN_OP_DIV) &&
        qn_raise_is_number(from->node->operands[0], 1)) {
        from = from->node->operands[1];
        divides = true;
    }
    const qn_node *root = from ? qn_value_made_by(from, divides ? QN_OP_SQRT : QN_OP_RSQRT) : NULL;
    const qn_node *add = root ? qn_value_made_by(root->operands[0], QN_OP_ADD) : NULL;
    qn_scalar epsilon;
    if (!add || !qn_value_splat(add->operands[1], &epsilon) || !(epsilon.f >= 0))
        return NULL;
    const qn_node *reduction;
    qn_value *square = mean_of(add->operands[0], value->type.rank, out_axis, &reduction, &kept);
    if (!square || !spreads_back(broadcast, reduction, kept || reshaped) ||
        !qn_value_made_by(square, QN_OP_MUL) || square->node->operands[0] != square->node->operands[1])
        return NULL;
    *out_epsilon = epsilon.f;
    return square->node->operands[0];
}

/* y / sqrt(a(y y) + epsilon), however it is said */
static qn_value *normalized(const qn_value *value, int *out_axis, double *out_epsilon)
{
    const qn_node *node = value->node;
    if (!node || (node->op != QN_OP_MUL && node->op != QN_OP_DIV))
        return NULL;
    for (int i = 0; i < (node->op == QN_OP_MUL ? 2 : 1); i++) {
        qn_value *y = normalized_by(node->operands[1 - i], node->op == QN_OP_DIV, out_axis, out_epsilon);
        if (y && y == node->operands[i])
            return y;
    }
    return NULL;
}

/* A value of the dims x[axis:], repeated along the axes in front; else NULL. */
static qn_value *along_columns(qn_builder *b, const qn_value *value, int axis)
{
    const qn_node *broadcast;
    qn_value *from = repeated_from(value, &broadcast);
    if (!from || from->type.rank > value->type.rank)
        return NULL;
    int n;
    const int64_t *axes = qn_attr_ints(broadcast, QN_ATTR_AXES, &n);
    const int columns = value->type.rank - axis, ones = n - columns;
    if (ones < 0)
        return NULL;
    for (int i = 0; i < n; i++)
        if (i < ones ? !qn_dim_is(from->type.dims[i], 1)
                     : axes[i] != axis + i - ones || from->type.dims[i] != value->type.dims[axes[i]])
            return NULL;
    return qn_b_reshape(b, from, columns, value->type.dims + axis);
}

/* d / sqrt(a(d d) + epsilon) * scale, d = x - a(x)  ->  layer_norm x, scale;  without the difference  ->  rms_norm x, scale */
static qn_value *norm(qn_raiser *s, const qn_node *node)
{
    for (int i = 0; i < 2; i++) {
        int axis, mean_axis;
        double epsilon;
        qn_value *y = normalized(node->operands[i], &axis, &epsilon);
        qn_value *scale = y ? along_columns(&s->r.b, node->operands[1 - i], axis) : NULL;
        if (!scale || y->type.dtype == QUERN_F16 || y->type.dtype == QUERN_BF16)
            continue;
        const qn_node *sub = qn_value_made_by(y, QN_OP_SUB), *broadcast, *reduction;
        qn_value *from = sub ? repeated_from(sub->operands[1], &broadcast) : NULL;
        bool kept;
        if (from && mean_of(from, y->type.rank, &mean_axis, &reduction, &kept) == sub->operands[0] &&
            mean_axis == axis && spreads_back(broadcast, reduction, kept))
            return qn_b_layer_norm(&s->r.b, sub->operands[0], scale, NULL, axis, epsilon);
        return qn_b_rms_norm(&s->r.b, y, scale, axis, epsilon);
    }
    return NULL;
}

/* layer_norm x, scale + bias  ->  layer_norm x, scale, bias */
static qn_value *norm_with_bias(qn_raiser *s, const qn_node *node)
{
    for (int i = 0; i < 2; i++) {
        const qn_node *layer_norm = qn_value_made_by(node->operands[i], QN_OP_LAYER_NORM);
        if (!layer_norm || layer_norm->n_operands > 2)
            continue;
        const int axis = (int)qn_attr_int(layer_norm, QN_ATTR_AXIS);
        qn_value *bias = along_columns(&s->r.b, node->operands[1 - i], axis);
        if (bias)
            return qn_b_layer_norm(&s->r.b, layer_norm->operands[0], layer_norm->operands[1], bias, axis,
                                   qn_attr_float(layer_norm, QN_ATTR_EPSILON));
    }
    return NULL;
}

/* -(log_softmax x)[label], by gather_elements along axis 1 of [N, C]  ->  cross_entropy x, labels */
static qn_value *cross_entropy(qn_raiser *s, const qn_node *node)
{
    qn_value *picked = node->operands[0];
    if (picked->type.rank == 1 && qn_value_made_by(picked, QN_OP_RESHAPE))
        picked = picked->node->operands[0];
    const qn_node *gather = qn_value_made_by(picked, QN_OP_GATHER_ELEMENTS);
    const qn_node *logs = gather ? qn_value_made_by(gather->operands[0], QN_OP_LOG_SOFTMAX) : NULL;
    if (!logs || picked->type.rank != 2 || qn_attr_int(gather, QN_ATTR_AXIS) != 1 ||
        qn_attr_int(logs, QN_ATTR_AXIS) != 1 || !qn_dim_is(picked->type.dims[1], 1) ||
        picked->type.dims[0] != logs->results[0].type.dims[0] || logs->results[0].type.dtype != QUERN_F32 ||
        gather->operands[1]->type.dtype != QUERN_I64)
        return NULL;
    qn_value *labels = qn_b_squeeze(&s->r.b, gather->operands[1], 1);
    qn_value *loss = qn_b_cross_entropy(&s->r.b, logs->operands[0], labels);
    const qn_type *type = &node->results[0].type;
    return qn_b_reshape(&s->r.b, loss, type->rank, type->dims);
}

const qn_raise_rule qn_raise_row_rules[] = {
    { QN_OP_DIV, true, softmax },
    { QN_OP_SUB, true, log_softmax },
    { QN_OP_MUL, false, softmax_by_reciprocal },
    { QN_OP_MUL, false, norm },
    { QN_OP_ADD, true, norm_with_bias },
    { QN_OP_NEG, false, cross_entropy },
    { QN_N_OPS, false, NULL },
};
