/* The builder: nodes in general, leaves, element-wise ops. Movement is in build_move.c, everything that computes across
 * elements in build_reduce.c, regions, random numbers and composites in build_more.c. */
#include "ir/build.h"

#include <math.h>
#include <string.h>

#include "ir/build_internal.h"

/* ---- attributes and nodes ---- */

static qn_attr *add_attr(qn_attr_list *list, qn_attr_key key)
{
    QN_ASSERT(list->n < (int)(sizeof list->items / sizeof *list->items), "too many attributes");
    int at = list->n++;
    for (; at > 0 && list->items[at - 1].key > key; at--)
        list->items[at] = list->items[at - 1];
    list->items[at] = (qn_attr){ .key = key };
    return &list->items[at];
}

void qn_attrs_int(qn_attr_list *list, qn_attr_key key, int64_t value)
{
    add_attr(list, key)->i = value;
}

void qn_attrs_flag(qn_attr_list *list, qn_attr_key key, bool value)
{
    if (value)
        add_attr(list, key)->i = 1;
}

void qn_attrs_float(qn_attr_list *list, qn_attr_key key, double value)
{
    add_attr(list, key)->f = value;
}

void qn_attrs_ints(qn_attr_list *list, qn_attr_key key, int n, const int64_t *values)
{
    qn_attr *attr = add_attr(list, key);
    attr->n = n;
    attr->ints = values;
}

void qn_attrs_dims(qn_attr_list *list, qn_attr_key key, int n, const qn_dim *values)
{
    qn_attr *attr = add_attr(list, key);
    attr->n = n;
    attr->dims = values;
}

void qn_attrs_string(qn_attr_list *list, qn_attr_key key, const char *value)
{
    add_attr(list, key)->s = value;
}

qn_node *qn_build_node(qn_builder *b, qn_op op, int n, qn_value *const *operands, const qn_attr_list *list,
                       int n_regions, qn_graph *const *regions)
{
    for (int i = 0; i < n; i++)
        if (!operands[i])
            return NULL;
    return qn_node_new(b->graph, b->before, op, n, operands, list ? list->n : 0, list ? list->items : NULL,
                       n_regions, regions, &b->loc, b->diags);
}

qn_value *qn_build(qn_builder *b, qn_op op, int n, qn_value *const *operands, const qn_attr_list *list)
{
    qn_node *node = qn_build_node(b, op, n, operands, list, 0, NULL);
    return node ? &node->results[0] : NULL;
}

qn_value *qn_build_error(qn_builder *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(b->diags->arena, format, args);
    va_end(args);
    (void)qn_error(b->diags, QUERN_ERROR_MODEL, &b->loc, "%s", text);
    return NULL;
}

/* ---- leaves ---- */

qn_value *qn_b_constant(qn_builder *b, const qn_tensor *tensor)
{
    qn_attr_list list = { 1, { { .key = QN_ATTR_VALUE, .tensor = tensor } } };
    return qn_build(b, QN_OP_CONSTANT, 0, NULL, &list);
}

static qn_value *scalar(qn_builder *b, qn_dtype dtype, qn_scalar value)
{
    char element[8];
    qn_scalar_store(dtype, value, element);
    return qn_b_constant(b, qn_tensor_new(b->graph->module, dtype, 0, NULL, element));
}

qn_value *qn_b_scalar_int(qn_builder *b, qn_dtype dtype, int64_t value)
{
    if (qn_dtype_is_float(dtype))
        return scalar(b, dtype, (qn_scalar){ .f = (double)value });
    return scalar(b, dtype, (qn_scalar){ .i = dtype == QUERN_BOOL ? value != 0 : value });
}

qn_value *qn_b_scalar(qn_builder *b, qn_dtype dtype, double value)
{
    if (qn_dtype_is_float(dtype))
        return scalar(b, dtype, (qn_scalar){ .f = value });
    if (dtype == QUERN_U64 && value >= 0x1p63)
        return scalar(b, dtype, (qn_scalar){ .i = value >= 0x1p64 ? -1 : (int64_t)(uint64_t)value });
    QN_ASSERT(value >= -0x1p63 && value < 0x1p63, "%g is no %s", value, qn_dtype_name(dtype));
    return qn_b_scalar_int(b, dtype, (int64_t)value);
}

qn_value *qn_b_ints(qn_builder *b, int n, const int64_t *values)
{
    return qn_b_constant(b, qn_tensor_new(b->graph->module, QUERN_I64, 1, (int64_t[]){ n }, values));
}

qn_value *qn_b_full(qn_builder *b, const qn_type *type, double value)
{
    return qn_b_broadcast_to(b, qn_b_scalar(b, type->dtype, value), type->rank, type->dims);
}

qn_value *qn_b_iota(qn_builder *b, const qn_type *type, int axis)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_dims(&list, QN_ATTR_DIMS, type->rank, type->dims);
    qn_attrs_int(&list, QN_ATTR_DTYPE, type->dtype);
    return qn_build(b, QN_OP_IOTA, 0, NULL, &list);
}

qn_value *qn_b_dim_value(qn_builder *b, qn_dtype dtype, qn_dim dim)
{
    if (qn_dim_is_const(dim))
        return qn_b_scalar_int(b, dtype, dim->value);
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_DIMS, 1, &dim);
    qn_attrs_int(&list, QN_ATTR_DTYPE, dtype);
    return qn_build(b, QN_OP_DIM_VALUE, 0, NULL, &list);
}

/* ---- element-wise ---- */

qn_value *qn_b_unary(qn_builder *b, qn_op op, qn_value *x)
{
    return qn_build(b, op, 1, &x, NULL);
}

qn_value *qn_b_binary(qn_builder *b, qn_op op, qn_value *x, qn_value *y)
{
    return qn_build(b, op, 2, (qn_value *[]){ x, y }, NULL);
}

qn_value *qn_b_compare(qn_builder *b, qn_direction direction, qn_value *x, qn_value *y)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_DIRECTION, direction);
    return qn_build(b, QN_OP_COMPARE, 2, (qn_value *[]){ x, y }, &list);
}

qn_value *qn_b_select(qn_builder *b, qn_value *condition, qn_value *x, qn_value *y)
{
    return qn_build(b, QN_OP_SELECT, 3, (qn_value *[]){ condition, x, y }, NULL);
}

/* Broadcasts all in place to their common dims; false when one is NULL or they don't fit. */
static bool broadcast_all(qn_builder *b, int n, qn_value **values)
{
    int rank;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < n; i++)
        if (!values[i])
            return false;
    if (!qn_b_broadcast_dims(b, n, values, &rank, dims))
        return false;
    for (int i = 0; i < n; i++)
        if (!(values[i] = qn_b_broadcast_to(b, values[i], rank, dims)))
            return false;
    return true;
}

qn_value *qn_b_binary_bcast(qn_builder *b, qn_op op, qn_value *x, qn_value *y)
{
    qn_value *operands[] = { x, y };
    return broadcast_all(b, 2, operands) ? qn_build(b, op, 2, operands, NULL) : NULL;
}

qn_value *qn_b_compare_bcast(qn_builder *b, qn_direction direction, qn_value *x, qn_value *y)
{
    qn_value *operands[] = { x, y };
    return broadcast_all(b, 2, operands) ? qn_b_compare(b, direction, operands[0], operands[1]) : NULL;
}

qn_value *qn_b_select_bcast(qn_builder *b, qn_value *condition, qn_value *x, qn_value *y)
{
    qn_value *operands[] = { condition, x, y };
    return broadcast_all(b, 3, operands) ? qn_build(b, QN_OP_SELECT, 3, operands, NULL) : NULL;
}

static qn_value *to_dtype(qn_builder *b, qn_op op, qn_dtype dtype, qn_value *x)
{
    qn_attr_list list = { 0 };
    if (x && x->type.dtype == dtype)
        return x;
    qn_attrs_int(&list, QN_ATTR_DTYPE, dtype);
    return qn_build(b, op, 1, &x, &list);
}

qn_value *qn_b_convert(qn_builder *b, qn_dtype dtype, qn_value *x)
{
    return to_dtype(b, QN_OP_CONVERT, dtype, x);
}

qn_value *qn_b_bitcast(qn_builder *b, qn_dtype dtype, qn_value *x)
{
    return to_dtype(b, QN_OP_BITCAST, dtype, x);
}

qn_value *qn_b_binary_scalar(qn_builder *b, qn_op op, qn_value *x, double y)
{
    return x ? qn_b_binary(b, op, x, qn_b_full(b, &x->type, y)) : NULL;
}
