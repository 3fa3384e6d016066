/* The type rule of each op: what its operands and attributes must be, and the types of its results. What every op has in
 * common (counts, dtype of operand 0, attributes present) is checked here from the op table; element-wise rules are here
 * too; the others in infer_movement.c, infer_compute.c and infer_control.c. */
#include "ir/infer_rules.h"
#include "ir/narrow.h"

qn_status qn_infer_fail(qn_infer_context *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(c->module->arena, format, args);
    va_end(args);
    return qn_error(c->diags, QUERN_ERROR_MODEL, &c->node->loc, "%s: %s", qn_ops[c->node->op].name, text);
}

bool qn_infer_exceeds(const qn_infer_context *c, qn_dim a, qn_dim b)
{
    return qn_dim_at_most(c->module->dims, qn_dim_add(c->module->dims, b, qn_infer_const(c, 1)), a);
}

/* Are the bytes of a value at its smallest more than a number can say? */
static bool is_too_large(qn_dtype dtype, int rank, const qn_dim *dims)
{
    int64_t bytes = (int64_t)qn_dtype_bytes(dtype);
    bool overflow = false;
    for (int i = 0; i < rank; i++) {
        if (dims[i]->min <= 0)
            return false;
        overflow |= __builtin_mul_overflow(bytes, dims[i]->min, &bytes);
    }
    return overflow;
}

/* May extents and their product have so many terms? */
static bool has_too_many_terms(const qn_infer_context *c, const qn_type *type)
{
    int64_t most = 1; /* of the product, where none of its terms are alike */
    for (int i = 0; i < type->rank && most <= QN_DIM_MAX_TERMS; i++)
        most *= qn_dim_terms(type->dims[i]);
    if (most <= QN_DIM_MAX_TERMS)
        return false;
    const qn_dim all = qn_type_elements_dim(c->module->dims, type);
    bool too_many = qn_dim_terms(all) > QN_DIM_MAX_TERMS || qn_dim_is(all, INT64_MAX);
    for (int i = 0; i < type->rank; i++)
        too_many |= qn_dim_terms(type->dims[i]) > QN_DIM_MAX_TERMS;
    return too_many;
}

qn_status qn_infer_give(qn_infer_context *c, qn_dtype dtype, int rank, const qn_dim *dims)
{
    if (rank > QN_MAX_RANK)
        return qn_infer_fail(c, "the result would have rank %d; at most %d is supported", rank, QN_MAX_RANK);
    for (int i = 0; i < rank; i++) {
        if (qn_dim_is(dims[i], INT64_MAX))
            return qn_infer_fail(c,
                                 "result dim %d would be too large, or a sum of more than %d terms: then fix "
                                 "some of the dimensions that it depends on",
                                 i, QN_DIM_MAX_TERMS);
        if (dims[i]->max < 0 || dims[i]->min > QN_DIM_MAX_VALUE)
            return qn_infer_fail(c, "result dim %d would be %s; expected 0 to %lld", i,
                                 qn_dim_print(dims[i], c->module->arena), (long long)QN_DIM_MAX_VALUE);
    }
    const qn_type type = { .dtype = dtype, .rank = rank, .dims = dims };
    if (has_too_many_terms(c, &type))
        return qn_infer_fail(
            c,
            "the result's size would be a sum of more than %d terms: fix some of the dimensions "
            "that it depends on",
            QN_DIM_MAX_TERMS);
    if (is_too_large(dtype, rank, dims))
        return qn_infer_fail(c, "the result would be %s, which no memory can hold", qn_infer_print(c, &type));
    QN_ASSERT(c->n < c->capacity, "qn_infer: room for %d results only", c->capacity);
    c->out[c->n++] = qn_type_make(c->module, dtype, rank, dims);
    return QUERN_OK;
}

qn_status qn_infer_expect_dtype(qn_infer_context *c, int i, qn_dtype dtype)
{
    const qn_type *t = qn_infer_operand(c, i);
    if (t->dtype == dtype)
        return QUERN_OK;
    return qn_infer_fail(c, "operand %d is %s; expected %s elements", i, qn_infer_print(c, t),
                         qn_dtype_name(dtype));
}

qn_status qn_infer_expect_index(qn_infer_context *c, int i)
{
    const qn_type *t = qn_infer_operand(c, i);
    if (t->dtype == QUERN_I64 || t->dtype == QUERN_I32)
        return QUERN_OK;
    return qn_infer_fail(c, "operand %d is %s; expected i32 or i64 indices", i, qn_infer_print(c, t));
}

qn_status qn_infer_expect_rank(qn_infer_context *c, int i, int rank)
{
    const qn_type *t = qn_infer_operand(c, i);
    if (t->rank == rank)
        return QUERN_OK;
    return qn_infer_fail(c, "operand %d is %s; expected rank %d", i, qn_infer_print(c, t), rank);
}

qn_status qn_infer_expect_dims(qn_infer_context *c, int i, int rank, const qn_dim *dims)
{
    const qn_type *t = qn_infer_operand(c, i);
    bool equal = t->rank == rank;
    for (int axis = 0; equal && axis < rank; axis++)
        equal = t->dims[axis] == dims[axis];
    if (equal)
        return QUERN_OK;
    const qn_type expected = { .dtype = t->dtype, .rank = rank, .dims = dims };
    return qn_infer_fail(c, "operand %d is %s; expected %s", i, qn_infer_print(c, t),
                         qn_infer_print(c, &expected));
}

qn_status qn_infer_axis(qn_infer_context *c, qn_attr_key key, int rank, int *out_axis)
{
    int64_t axis = qn_attr_int(c->node, key);
    if (rank == 0)
        return qn_infer_fail(c, "%s is %lld; there are no axes", qn_attrs[key].name, (long long)axis);
    if (axis < 0 || axis >= rank)
        return qn_infer_fail(c, "%s is %lld; expected 0 to %d", qn_attrs[key].name, (long long)axis,
                             rank - 1);
    *out_axis = (int)axis;
    return QUERN_OK;
}

static qn_status expect_length(qn_infer_context *c, qn_attr_key key, int found, int expected)
{
    if (found == expected)
        return QUERN_OK;
    return qn_infer_fail(c, "%s has %d entries; expected %d", qn_attrs[key].name, found, expected);
}

qn_status qn_infer_ints(qn_infer_context *c, qn_attr_key key, int n, const int64_t **out)
{
    int found;
    *out = qn_attr_ints(c->node, key, &found);
    return expect_length(c, key, found, n);
}

qn_status qn_infer_dims(qn_infer_context *c, qn_attr_key key, int n, const qn_dim **out)
{
    int found;
    *out = qn_attr_dims(c->node, key, &found);
    return expect_length(c, key, found, n);
}

qn_status qn_infer_axes(qn_infer_context *c, qn_attr_key key, int rank, bool sorted, int *out_n,
                        const int64_t **out)
{
    const int64_t *axes = *out = qn_attr_ints(c->node, key, out_n);
    for (int i = 0; i < *out_n; i++) {
        if (axes[i] < 0 || axes[i] >= rank)
            return qn_infer_fail(c, "%s has %lld; expected 0 to %d", qn_attrs[key].name, (long long)axes[i],
                                 rank - 1);
        for (int j = 0; j < i; j++) {
            if (axes[j] == axes[i] || (sorted && axes[j] > axes[i]))
                return qn_infer_fail(c, "%s must be %s", qn_attrs[key].name,
                                     sorted ? "distinct and ascending" : "distinct");
        }
    }
    return QUERN_OK;
}

/* ---- leaves and element-wise ops ---- */

static qn_status leaf(qn_infer_context *c)
{
    if (c->node->op == QN_OP_CONSTANT) {
        const qn_type *t = &qn_attr_tensor(c->node, QN_ATTR_VALUE)->type;
        return qn_infer_give(c, t->dtype, t->rank, t->dims);
    }
    int n, axis = 0;
    const qn_dim *dims = qn_attr_dims(c->node, QN_ATTR_DIMS, &n);
    qn_dtype dtype = (qn_dtype)qn_attr_int(c->node, QN_ATTR_DTYPE);
    if (c->node->op == QN_OP_DIM_VALUE) {
        QN_TRY(expect_length(c, QN_ATTR_DIMS, n, 1));
        return qn_infer_give(c, dtype, 0, NULL);
    }
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, n, &axis));
    return qn_infer_give(c, dtype, n, dims);
}

static qn_status elementwise(qn_infer_context *c)
{
    const qn_node *node = c->node;
    const qn_type *like = qn_infer_operand(c, node->op == QN_OP_SELECT ? 1 : 0);
    qn_dtype dtype = like->dtype;
    for (int i = 0; i < node->n_operands; i++) {
        if (node->op != QN_OP_SELECT || i > 0)
            QN_TRY(qn_infer_expect_dtype(c, i, like->dtype));
        QN_TRY(qn_infer_expect_dims(c, i, like->rank, like->dims));
    }
    switch (node->op) {
    case QN_OP_COMPARE:
    case QN_OP_IS_NAN:
    case QN_OP_IS_INF: dtype = QUERN_BOOL; break;
    case QN_OP_CONVERT:
    case QN_OP_BITCAST: dtype = (qn_dtype)qn_attr_int(node, QN_ATTR_DTYPE); break;
    default: break;
    }
    if (node->op == QN_OP_BITCAST && qn_dtype_bytes(dtype) != qn_dtype_bytes(like->dtype))
        return qn_infer_fail(c, "%s and %s have different widths", qn_dtype_name(like->dtype),
                             qn_dtype_name(dtype));
    if (node->op == QN_OP_BITCAST && dtype == QUERN_BOOL && like->dtype != QUERN_BOOL)
        return qn_infer_fail(c, "%s may hold bits that are no bool", qn_dtype_name(like->dtype));
    const qn_narrow *narrow = qn_narrow_of(dtype), *was = qn_narrow_of(like->dtype);
    if (node->op == QN_OP_BITCAST && narrow && narrow->bits < 8 && !(was && was->bits == narrow->bits))
        return qn_infer_fail(c, "%s may hold bits that %s has none of", qn_dtype_name(like->dtype),
                             qn_dtype_name(dtype));
    return qn_infer_give(c, dtype, like->rank, like->dims);
}

/* scale and zero point: scalars, a line along `axis`, or one per block of it */
static qn_status quantization(qn_infer_context *c)
{
    const qn_node *node = c->node;
    const qn_type *x = qn_infer_operand(c, 0), *scale = qn_infer_operand(c, 1);
    bool quantize = node->op == QN_OP_QUANTIZE;
    qn_dtype stored = quantize ? (qn_dtype)qn_attr_int(node, QN_ATTR_DTYPE) : x->dtype;
    if (!qn_dtype_is_int(stored) && !qn_dtype_is_stored(stored))
        return qn_infer_fail(c, "dtype is %s; expected an integer or a narrow type", qn_dtype_name(stored));
    if (quantize ? scale->dtype != x->dtype : !qn_dtype_is_float(scale->dtype))
        return qn_infer_fail(c, "the scale is %s; expected %s", qn_infer_print(c, scale),
                             quantize ? "the element type of operand 0" : "floats");
    QN_TRY(qn_infer_expect_dtype(c, 2, stored));
    QN_TRY(qn_infer_expect_dims(c, 2, scale->rank, scale->dims));
    if (qn_attr_find(node, QN_ATTR_BLOCK) &&
        (!qn_attr_find(node, QN_ATTR_AXIS) || qn_attr_int(node, QN_ATTR_BLOCK) < 1))
        return qn_infer_fail(c, "block is %lld; expected at least 1, and an axis",
                             (long long)qn_attr_int(node, QN_ATTR_BLOCK));
    if (qn_attr_find(node, QN_ATTR_AXIS)) {
        int axis = 0;
        qn_dim expected[QN_MAX_RANK];
        QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
        int64_t block = qn_attr_int_or(node, QN_ATTR_BLOCK, 0);
        for (int i = 0; i < x->rank; i++)
            expected[i] = x->dims[i];
        if (block > 0) {
            expected[axis] = qn_dim_ceildiv(c->module->dims, x->dims[axis], qn_infer_const(c, block));
            QN_TRY(qn_infer_expect_dims(c, 1, x->rank, expected));
        } else {
            QN_TRY(qn_infer_expect_dims(c, 1, 1, &x->dims[axis]));
        }
    } else {
        QN_TRY(qn_infer_expect_rank(c, 1, 0));
    }
    return qn_infer_give(c, quantize ? stored : scale->dtype, x->rank, x->dims);
}

static qn_infer_rule find_rule(qn_op op)
{
    if (op == QN_OP_CONSTANT || op == QN_OP_IOTA || op == QN_OP_DIM_VALUE)
        return leaf;
    if (op == QN_OP_QUANTIZE || op == QN_OP_DEQUANTIZE)
        return quantization;
    if (qn_ops[op].class == QN_ELEMENTWISE)
        return elementwise;
    qn_infer_rule rule = qn_infer_movement(op);
    if (!rule)
        rule = qn_infer_compute(op);
    if (!rule)
        rule = qn_infer_composite(op);
    if (!rule)
        rule = qn_infer_collective(op);
    if (!rule)
        rule = qn_infer_text(op);
    return rule ? rule : qn_infer_control(op);
}

/* The word or number of an attribute is one that its kind has. Shapes of lists are the rules' own business. */
static bool is_sound(const qn_attr *attr)
{
    switch (qn_attrs[attr->key].kind) {
    case QN_ATTR_KIND_DTYPE: return attr->i >= QUERN_BOOL && attr->i <= QUERN_F8E8M0;
    case QN_ATTR_KIND_KIND: return attr->i >= QN_SUM && attr->i < QN_N_KINDS;
    case QN_ATTR_KIND_DIRECTION: return attr->i >= QN_EQ && attr->i <= QN_GE;
    case QN_ATTR_KIND_BOOL: return attr->i == 0 || attr->i == 1;
    case QN_ATTR_KIND_STRING: return attr->s != NULL;
    case QN_ATTR_KIND_TENSOR: return attr->tensor != NULL;
    default: return true;
    }
}

static qn_status check_attrs(qn_infer_context *c)
{
    const qn_node *node = c->node;
    uint64_t required, known = qn_op_attrs(node->op, &required), found = 0;
    for (int i = 0; i < node->n_attrs; i++) {
        const qn_attr *attr = &node->attrs[i];
        const char *name = qn_attrs[attr->key].name;
        const uint64_t bit = (uint64_t)1 << attr->key;
        if (found & bit)
            return qn_infer_fail(c, "the attribute %s is there twice", name);
        if (!(known & bit))
            return qn_infer_fail(c, "there is no attribute %s here", name);
        if (!is_sound(attr))
            return qn_infer_fail(c, "the attribute %s has a value that means nothing", name);
        found |= bit;
    }
    if (required & ~found)
        return qn_infer_fail(c, "the attribute %s is missing",
                             qn_attrs[__builtin_ctzll(required & ~found)].name);
    return QUERN_OK;
}

static qn_status check_operand_count(qn_infer_context *c)
{
    const int n = c->node->n_operands, min = qn_ops[c->node->op].min_operands,
              max = qn_ops[c->node->op].max_operands;
    if (n >= min && (max < 0 || n <= max))
        return QUERN_OK;
    if (max < 0)
        return qn_infer_fail(c, "%d operands; expected at least %d", n, min);
    if (min == max)
        return qn_infer_fail(c, "%d operands; expected %d", n, min);
    return qn_infer_fail(c, "%d operands; expected %d to %d", n, min, max);
}

static qn_status check_common(qn_infer_context *c)
{
    const qn_node *node = c->node;
    const qn_op_info *info = &qn_ops[node->op];
    QN_TRY(check_operand_count(c));
    QN_TRY(check_attrs(c));
    if (node->n_regions > 0 && info->class != QN_CONTROL)
        return qn_infer_fail(c, "%d regions; expected none", node->n_regions);
    if (node->n_operands > 0 && !(qn_dtype_class_of(qn_infer_operand(c, 0)->dtype) & info->dtypes))
        return qn_infer_fail(
            c, "operand 0 is %s; %s takes%s%s%s%s%s", qn_infer_print(c, qn_infer_operand(c, 0)), info->name,
            info->dtypes & QN_CLASS_BOOL ? " bool" : "", info->dtypes & QN_CLASS_SIGNED ? " integers" : "",
            info->dtypes & QN_CLASS_UNSIGNED && !(info->dtypes & QN_CLASS_SIGNED) ? " unsigned integers" : "",
            info->dtypes & QN_CLASS_FLOAT ? " floats" : "",
            qn_dtype_is_stored(qn_infer_operand(c, 0)->dtype) ? ": convert it first" : "");
    return QUERN_OK;
}

qn_status qn_infer(const qn_node *node, qn_module *module, qn_type *out_types, int out_capacity, int *out_n,
                   qn_diags *diags)
{
    qn_infer_context c = {
        .node = node, .module = module, .diags = diags, .out = out_types, .capacity = out_capacity
    };
    QN_TRY(check_common(&c));
    qn_infer_rule rule = find_rule(node->op);
    QN_ASSERT(rule, "no type rule for %s", qn_ops[node->op].name);
    QN_TRY(rule(&c));
    if (qn_ops[node->op].class == QN_LEAF &&
        !(qn_dtype_class_of(out_types[0].dtype) & qn_ops[node->op].dtypes))
        return qn_infer_fail(&c, "the result would be %s, which this op can't give",
                             qn_dtype_name(out_types[0].dtype));
    *out_n = c.n;
    return QUERN_OK;
}
