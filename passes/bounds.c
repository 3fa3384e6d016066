/* Interval arithmetic over the graph; see bounds.h. */
#include "passes/bounds.h"

#include "passes/passes.h"

enum { DEPTH = 256 }; /* of chains that are followed */

static qn_bounds between(int64_t low, int64_t high)
{
    return (qn_bounds){ true, low, high };
}

static qn_bounds all_of(qn_dtype dtype)
{
    const int bits = 8 * (int)qn_dtype_bytes(dtype);
    if (dtype == QUERN_BOOL)
        return between(0, 1);
    if (!qn_dtype_is_int(dtype) || bits == 64)
        return between(INT64_MIN, INT64_MAX); /* u64: of the bit pattern */
    if (qn_dtype_class_of(dtype) == QN_CLASS_SIGNED)
        return between(-((int64_t)1 << (bits - 1)), ((int64_t)1 << (bits - 1)) - 1);
    return between(0, ((int64_t)1 << bits) - 1);
}

static qn_bounds both(qn_bounds x, qn_bounds y)
{
    return between(x.low < y.low ? x.low : y.low, x.high > y.high ? x.high : y.high);
}

/* Of integers that are there, and of the wide ones that are indices also before they are made; longer ones take longer to read than
 * checks take. */
bool qn_bounds_reads(const qn_tensor *constant)
{
    enum { MOST = 1 << 20, MOST_INDICES = 1 << 22 }; /* bytes */
    const qn_dtype dtype = constant->type.dtype;
    if (dtype == QUERN_I32 || dtype == QUERN_I64)
        return constant->bytes <= MOST_INDICES;
    return constant->data && constant->bytes <= MOST && !qn_dtype_is_float(dtype);
}

static qn_bounds of_constant(const qn_tensor *tensor)
{
    const qn_dtype dtype = tensor->type.dtype;
    const size_t size = qn_dtype_bytes(dtype);
    const uint8_t *data = qn_bounds_reads(tensor) ? qn_tensor_data(tensor) : NULL;
    const int64_t n = qn_type_elements(&tensor->type);
    qn_bounds made = all_of(dtype);
    for (int64_t i = 0; i < n && data; i++) {
        const int64_t x = qn_scalar_load(dtype, data + (size_t)i * size).i;
        made = i == 0 ? between(x, x) : both(made, between(x, x));
    }
    return made;
}

static qn_bounds sum(qn_bounds x, qn_bounds y, qn_bounds all)
{
    int64_t low, high;
    if (__builtin_add_overflow(x.low, y.low, &low) || __builtin_add_overflow(x.high, y.high, &high))
        return all;
    return between(low, high);
}

static qn_bounds difference(qn_bounds x, qn_bounds y, qn_bounds all)
{
    int64_t low, high;
    if (__builtin_sub_overflow(x.low, y.high, &low) || __builtin_sub_overflow(x.high, y.low, &high))
        return all;
    return between(low, high);
}

static qn_bounds product(qn_bounds x, qn_bounds y, qn_bounds all)
{
    const int64_t xs[2] = { x.low, x.high }, ys[2] = { y.low, y.high };
    qn_bounds made = all;
    for (int i = 0; i < 4; i++) {
        int64_t p;
        if (__builtin_mul_overflow(xs[i / 2], ys[i % 2], &p))
            return all;
        made = i == 0 ? between(p, p) : both(made, between(p, p));
    }
    return made;
}

static qn_bounds find(qn_bounds *memo, const qn_value *value, int depth);

static qn_bounds of_node(qn_bounds *memo, const qn_node *node, const qn_value *value, qn_bounds all,
                         int depth)
{
    qn_bounds x = all, y = all;
    if (node->n_operands > 0 && node->op != QN_OP_SELECT)
        x = find(memo, node->operands[0], depth);
    if (node->n_operands > 1 && qn_ops[node->op].class == QN_ELEMENTWISE)
        y = find(memo, node->operands[1], depth);
    switch (node->op) {
    case QN_OP_CONSTANT: return of_constant(qn_attr_tensor(node, QN_ATTR_VALUE));
    case QN_OP_IOTA: {
        const qn_dim extent = value->type.dims[qn_attr_int(node, QN_ATTR_AXIS)];
        return between(0, extent->max > 0 ? extent->max - 1 : 0);
    }
    case QN_OP_DIM_VALUE: {
        const qn_dim d = qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0];
        return between(d->min, d->max);
    }
    case QN_OP_CONVERT: return qn_dtype_is_float(node->operands[0]->type.dtype) ? all : x;
    case QN_OP_PAD: return both(x, find(memo, node->operands[1], depth));
    case QN_OP_CONCATENATE:
        for (int i = 1; i < node->n_operands; i++)
            x = both(x, find(memo, node->operands[i], depth));
        return x;
    case QN_OP_ADD: return sum(x, y, all);
    case QN_OP_SUB: return difference(x, y, all);
    case QN_OP_MUL: return product(x, y, all);
    case QN_OP_MAX: return between(x.low > y.low ? x.low : y.low, x.high > y.high ? x.high : y.high);
    case QN_OP_MIN: return between(x.low < y.low ? x.low : y.low, x.high < y.high ? x.high : y.high);
    case QN_OP_AND: /* of numbers that are not negative, no bits come in */
        if (x.low < 0 && y.low < 0)
            return all;
        return between(0, x.low < 0 ? y.high : y.low < 0 || x.high < y.high ? x.high : y.high);
    case QN_OP_SHIFT_RIGHT:
        if (x.low < 0 || y.low < 0)
            return all;
        return between(0, y.low > 62 ? 0 : x.high >> y.low);
    case QN_OP_SELECT: return both(y, find(memo, node->operands[2], depth));
    case QN_OP_ARG_REDUCE: {
        const qn_dim extent = node->operands[0]->type.dims[qn_attr_int(node, QN_ATTR_AXIS)];
        return between(0, extent->max > 0 ? extent->max - 1 : 0);
    }
    default: return qn_op_selects(node->op) ? x : all;
    }
}

static qn_bounds find(qn_bounds *memo, const qn_value *value, int depth)
{
    qn_bounds *known = &memo[value->id];
    if (known->known)
        return *known;
    const qn_bounds all = all_of(value->type.dtype);
    if (!value->node || depth == 0 || qn_dtype_bytes(value->type.dtype) == 0 ||
        (!qn_dtype_is_int(value->type.dtype) && value->type.dtype != QUERN_BOOL))
        return all;
    qn_bounds made = of_node(memo, value->node, value, all, depth - 1);
    /* integers wrap */
    if (made.low < all.low || made.high > all.high || value->type.dtype == QUERN_U64)
        made = all;
    return *known = made;
}

qn_bounds qn_bounds_of(qn_bounds *memo, const qn_value *value)
{
    return find(memo, value, DEPTH);
}
