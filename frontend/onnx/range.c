/* Between what numbers the values lie that a model computes.
 *
 * It follows from how they are computed: from constants and extents on, op by op, out of a region to what it captures. */
#include "frontend/onnx/range.h"

#include <math.h>

enum { MOST_CONSTANTS = 1 << 16 }; /* elements of a constant that are looked at for its largest */

typedef struct finder {
    qn_dims *dims;
    const qn_onnx_scope *scope; /* of the values */
    int budget;
} finder;

static qn_onnx_range find_range(finder *f, qn_value *v);

/* ---- constants ---- */

double qn_onnx_number_at(const qn_tensor *tensor, int64_t at)
{
    const qn_dtype dtype = tensor->type.dtype;
    const qn_scalar s =
        qn_scalar_load(dtype, (const uint8_t *)qn_tensor_data(tensor) + (size_t)at * qn_dtype_bytes(dtype));
    return qn_dtype_is_float(dtype) ? s.f : (double)s.i;
}

bool qn_onnx_constant_number(qn_value *v, double *out)
{
    v = qn_value_resolve(v);
    while (v->node && (v->node->op == QN_OP_BROADCAST || v->node->op == QN_OP_RESHAPE))
        v = qn_value_resolve(v->node->operands[0]);
    if (!v->node || v->node->op != QN_OP_CONSTANT || qn_dtype_is_stored(v->type.dtype))
        return false;
    const qn_tensor *tensor = qn_attr_tensor(v->node, QN_ATTR_VALUE);
    const int64_t n = qn_type_elements(&v->type);
    bool same = n > 0 && n <= QN_ONNX_CONTENTS_MAX;
    for (int64_t i = 0; same && i < n; i++)
        same = qn_onnx_number_at(tensor, i) == qn_onnx_number_at(tensor, 0);
    if (same)
        *out = qn_onnx_number_at(tensor, 0);
    return same;
}

bool qn_onnx_all_are(qn_value *x, double number)
{
    double is;
    return qn_onnx_constant_number(x, &is) && is == number;
}

static qn_onnx_range constant_range(const finder *f, const qn_tensor *tensor)
{
    const int64_t n = qn_type_is_static(&tensor->type) ? qn_type_elements(&tensor->type) : -1;
    qn_onnx_range r = { INT64_MIN, NULL };
    double low = INFINITY, high = -INFINITY;
    if (n < 1 || n > MOST_CONSTANTS || qn_dtype_is_stored(tensor->type.dtype))
        return r;
    for (int64_t i = 0; i < n; i++) {
        const double x = qn_onnx_number_at(tensor, i);
        if (isnan(x))
            return r;
        low = fmin(low, x);
        high = fmax(high, x);
    }
    if (fabs(low) < (double)QN_DIM_MAX_VALUE)
        r.least = (int64_t)floor(low);
    if (fabs(high) < (double)QN_DIM_MAX_VALUE)
        r.most = qn_dim_const(f->dims, (int64_t)ceil(high));
    return r;
}

/* ---- arithmetic with ranges ---- */

/* Of either: the bounds of values that are one or the other. */
static qn_onnx_range hull(const finder *f, qn_onnx_range a, qn_onnx_range b)
{
    return (qn_onnx_range){ a.least < b.least ? a.least : b.least,
                            a.most && b.most ? qn_dim_max(f->dims, a.most, b.most) : NULL };
}

/* Of n elements together. */
static qn_onnx_range sum_range(const finder *f, qn_onnx_range r, qn_dim n)
{
    const qn_dim zero = qn_dim_const(f->dims, 0);
    return (qn_onnx_range){ r.least >= 0 ? 0 : INT64_MIN,
                            r.most ? qn_dim_mul(f->dims, n, qn_dim_max(f->dims, r.most, zero)) : NULL };
}

static qn_onnx_range quotient_range(const finder *f, qn_onnx_range r, qn_value *by)
{
    double d;
    if (!qn_onnx_constant_number(by, &d) || !(d >= 1) || r.least < 0)
        return (qn_onnx_range){ INT64_MIN, NULL };
    const int64_t whole = d < (double)QN_DIM_MAX_VALUE ? (int64_t)d : QN_DIM_MAX_VALUE;
    return (qn_onnx_range){ 0,
                            r.most ? qn_dim_ceildiv(f->dims, r.most, qn_dim_const(f->dims, whole)) : NULL };
}

static qn_onnx_range negated(const finder *f, qn_onnx_range r)
{
    return (qn_onnx_range){ r.most && r.most->max < QN_DIM_MAX_VALUE ? -r.most->max : INT64_MIN,
                            r.least > -QN_DIM_MAX_VALUE ? qn_dim_const(f->dims, -r.least) : NULL };
}

static qn_onnx_range added(const finder *f, qn_onnx_range a, qn_onnx_range b)
{
    const bool low = a.least > -QN_DIM_MAX_VALUE && b.least > -QN_DIM_MAX_VALUE;
    return (qn_onnx_range){ low ? a.least + b.least : INT64_MIN,
                            a.most && b.most ? qn_dim_add(f->dims, a.most, b.most) : NULL };
}

/* ---- of a value ---- */

static qn_dim count_of(const finder *f, const qn_node *node)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    qn_dim count = qn_dim_const(f->dims, 1);
    for (int i = 0; i < n; i++)
        count = qn_dim_mul(f->dims, count, node->operands[0]->type.dims[axes[i]]);
    return count;
}

static qn_onnx_range binary_range(finder *f, const qn_node *node)
{
    const qn_onnx_range a = find_range(f, node->operands[0]), b = find_range(f, node->operands[1]);
    const qn_dim zero = qn_dim_const(f->dims, 0);
    switch (node->op) {
    case QN_OP_ADD: return added(f, a, b);
    case QN_OP_SUB: return added(f, a, negated(f, b));
    case QN_OP_MUL:
        if (a.least < 0 || b.least < 0)
            return (qn_onnx_range){ INT64_MIN, NULL };
        return (qn_onnx_range){ 0, a.most && b.most
                                       ? qn_dim_mul(f->dims, qn_dim_max(f->dims, a.most, zero), b.most)
                                       : NULL };
    case QN_OP_DIV: return quotient_range(f, a, node->operands[1]);
    case QN_OP_MAX: {
        qn_onnx_range r = hull(f, a, b);
        r.least = a.least > b.least ? a.least : b.least;
        return r;
    }
    case QN_OP_MIN: {
        qn_onnx_range r = hull(f, a, b);
        r.most = a.most && b.most ? qn_dim_min(f->dims, a.most, b.most) : a.most ? a.most : b.most;
        return r;
    }
    default: return (qn_onnx_range){ INT64_MIN, NULL };
    }
}

static qn_onnx_range result_range(finder *f, const qn_value *v)
{
    const qn_node *node = v->node;
    const qn_dim one = qn_dim_const(f->dims, 1);
    const qn_onnx_range unknown = { INT64_MIN, NULL };
    qn_onnx_range r = unknown;
    switch (node->op) {
    case QN_OP_CONSTANT: return constant_range(f, qn_attr_tensor(node, QN_ATTR_VALUE));
    case QN_OP_DIM_VALUE: {
        const qn_dim d = qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0];
        return (qn_onnx_range){ d->min, d };
    }
    case QN_OP_EXTENT: return (qn_onnx_range){ 0, qn_node_binds(node) };
    case QN_OP_IOTA:
        return (qn_onnx_range){ 0, qn_dim_sub(f->dims, v->type.dims[qn_attr_int(node, QN_ATTR_AXIS)], one) };
    case QN_OP_ARG_REDUCE:
        return (qn_onnx_range){ 0, node->operands[0]->type.dims[qn_attr_int(node, QN_ATTR_AXIS)] };
    case QN_OP_NON_ZERO: return (qn_onnx_range){ 0, qn_type_elements_dim(f->dims, &node->operands[0]->type) };
    case QN_OP_TOP_K:
        if (v != &node->results[0])
            return (qn_onnx_range){ 0, node->operands[0]->type.dims[qn_attr_int(node, QN_ATTR_AXIS)] };
        return find_range(f, node->operands[0]);
    case QN_OP_SORT: return find_range(f, node->operands[v - node->results]);
    case QN_OP_CONVERT:
        if (qn_dtype_bytes(v->type.dtype) < 4 && qn_dtype_is_int(v->type.dtype))
            return unknown; /* may wrap */
        r = find_range(f, node->operands[0]);
        return v->type.dtype == QUERN_I32 && r.most && r.most->max > INT32_MAX ? unknown : r;
    case QN_OP_FLOOR:
    case QN_OP_CEIL:
    case QN_OP_ROUND:
    case QN_OP_TRUNC:
    case QN_OP_STOP_GRADIENT: return find_range(f, node->operands[0]);
    case QN_OP_NEG: return negated(f, find_range(f, node->operands[0]));
    case QN_OP_ABS:
    case QN_OP_RELU:
        r = find_range(f, node->operands[0]);
        if (node->op == QN_OP_ABS && r.least < 0)
            r.most = NULL;
        r.least = r.least > 0 ? r.least : 0;
        return r;
    case QN_OP_EXP: return (qn_onnx_range){ 0, NULL };
    case QN_OP_LOGISTIC:
    case QN_OP_SOFTMAX: return (qn_onnx_range){ 0, one };
    case QN_OP_TANH:
    case QN_OP_SIN:
    case QN_OP_COS: return (qn_onnx_range){ -1, one };
    case QN_OP_PAD:
    case QN_OP_CONCATENATE:
        r = find_range(f, node->operands[0]);
        for (int i = 1; i < node->n_operands; i++)
            r = hull(f, r, find_range(f, node->operands[i]));
        return r;
    case QN_OP_SELECT: return hull(f, find_range(f, node->operands[1]), find_range(f, node->operands[2]));
    case QN_OP_REDUCE:
        r = find_range(f, node->operands[0]);
        switch (qn_attr_reduce_kind(node)) {
        case QN_SUM: return sum_range(f, r, count_of(f, node));
        case QN_KIND_MAX:
        case QN_KIND_MIN: return r;
        default: return unknown;
        }
    case QN_OP_CUMULATIVE:
        if (qn_attr_reduce_kind(node) != QN_SUM)
            return unknown;
        return sum_range(f, find_range(f, node->operands[0]), v->type.dims[qn_attr_int(node, QN_ATTR_AXIS)]);
    case QN_OP_REM: {
        double d;
        if (!qn_onnx_constant_number(node->operands[1], &d) || !(d >= 1 && d < (double)QN_DIM_MAX_VALUE))
            return unknown;
        r = find_range(f, node->operands[0]);
        return (qn_onnx_range){ r.least >= 0 ? 0 : (int64_t)-ceil(d),
                                qn_dim_const(f->dims, (int64_t)ceil(d)) };
    }
    default:
        if (qn_op_selects(node->op))
            return find_range(f, node->operands[0]);
        return node->n_operands == 2 ? binary_range(f, node) : unknown;
    }
}

qn_value *qn_onnx_captured_by(const qn_onnx_scope *scope, const qn_value *input, const qn_onnx_scope **out)
{
    while (scope->parent && scope->parent->graph == scope->graph)
        scope = scope->parent;
    *out = scope->parent;
    for (size_t i = 0; scope->parent && i < scope->captured.n; i++)
        if (scope->captured_inputs.items[i] == input)
            return qn_value_resolve(scope->captured.items[i]);
    return NULL;
}

static qn_onnx_range find_range(finder *f, qn_value *v)
{
    v = qn_value_resolve(v);
    if (v->type.dtype == QUERN_BOOL)
        return (qn_onnx_range){ 0, qn_dim_const(f->dims, 1) };
    if (f->budget-- <= 0)
        return (qn_onnx_range){ INT64_MIN, NULL };
    if (v->node)
        return result_range(f, v);
    const qn_onnx_scope *scope = f->scope;
    qn_value *outer = qn_onnx_captured_by(scope, v, &f->scope);
    const qn_onnx_range r = outer ? find_range(f, outer) : (qn_onnx_range){ INT64_MIN, NULL };
    f->scope = scope;
    return r;
}

qn_onnx_range qn_onnx_range_of(const qn_onnx_scope *scope, qn_value *v)
{
    finder f = { scope->im->dims, scope, QN_ONNX_MOST_STEPS };
    qn_onnx_range r = find_range(&f, v);
    if (r.most && (r.most->max > QN_ONNX_DIM_MAX || r.most->max < 0))
        r.most = NULL; /* says nothing that memory could be planned by */
    return r;
}
