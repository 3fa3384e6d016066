/* Short names for arithmetic in operators' functions. Binary ones broadcast as NumPy does; NULL in, NULL out. */
#ifndef QN_FRONTEND_ONNX_ARITH_H
#define QN_FRONTEND_ONNX_ARITH_H

#include <math.h>

#include "ir/build.h"

static inline qn_value *add(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_ADD, x, y);
}
static inline qn_value *sub(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_SUB, x, y);
}
static inline qn_value *mul(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_MUL, x, y);
}
static inline qn_value *divide(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_DIV, x, y);
}
static inline qn_value *maximum(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_MAX, x, y);
}
static inline qn_value *minimum(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_MIN, x, y);
}
static inline qn_value *and_also(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_AND, x, y);
}
static inline qn_value *or_else(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_OR, x, y);
}
static inline qn_value *compare(qn_builder *b, qn_direction direction, qn_value *x, qn_value *y)
{
    return qn_b_compare_bcast(b, direction, x, y);
}
static inline qn_value *choose(qn_builder *b, qn_value *p, qn_value *x, qn_value *y)
{
    return qn_b_select_bcast(b, p, x, y);
}

/* x [.., in] times the transpose of a matrix [out, in]: [.., out] */
static inline qn_value *times_transposed(qn_builder *b, qn_value *x, qn_value *matrix)
{
    const qn_dot dot = { .n_contract = 1, .x_contract = { x ? x->type.rank - 1 : 0 }, .y_contract = { 1 } };
    return qn_b_dot_general(b, x, matrix, &dot, QUERN_INVALID_DTYPE);
}

/* y in x's dtype; NULL after a report where an integer dtype does not have it */
static inline qn_value *number_like(qn_builder *b, qn_value *x, double y)
{
    if (!x)
        return NULL;
    qn_dtype dtype = x->type.dtype;
    if (!qn_dtype_is_float(dtype)) {
        double bits = dtype == QUERN_BOOL ? 1 : 8 * (double)qn_dtype_bytes(dtype);
        bool is_signed = qn_dtype_class_of(dtype) == QN_CLASS_SIGNED;
        double limit = ldexp(1, (int)bits - is_signed); /* the first number above */
        if (y != floor(y) || !(y < limit) || y < (is_signed ? -limit : 0)) {
            qn_error(b->diags, QUERN_ERROR_MODEL, &b->loc, "%g is not a number of type %s", y,
                     qn_dtype_name(dtype));
            return NULL;
        }
    }
    return qn_b_scalar(b, dtype, y);
}
/* the least number of x's dtype */
static inline qn_value *lowest_like(qn_builder *b, qn_value *x)
{
    if (!x || qn_dtype_is_float(x->type.dtype))
        return number_like(b, x, -INFINITY);
    bool is_signed = qn_dtype_class_of(x->type.dtype) == QN_CLASS_SIGNED;
    return number_like(b, x, is_signed ? -ldexp(1, 8 * (int)qn_dtype_bytes(x->type.dtype) - 1) : 0);
}

/* with a number, in x's dtype */
static inline qn_value *add_number(qn_builder *b, qn_value *x, double y)
{
    return add(b, x, number_like(b, x, y));
}
static inline qn_value *mul_number(qn_builder *b, qn_value *x, double y)
{
    return mul(b, x, number_like(b, x, y));
}
static inline qn_value *div_number(qn_builder *b, qn_value *x, double y)
{
    return divide(b, x, number_like(b, x, y));
}
static inline qn_value *max_number(qn_builder *b, qn_value *x, double y)
{
    return maximum(b, x, number_like(b, x, y));
}
static inline qn_value *min_number(qn_builder *b, qn_value *x, double y)
{
    return minimum(b, x, number_like(b, x, y));
}
static inline qn_value *compare_number(qn_builder *b, qn_direction direction, qn_value *x, double y)
{
    return qn_b_compare_bcast(b, direction, x, number_like(b, x, y));
}

static inline qn_value *negate(qn_builder *b, qn_value *x)
{
    return qn_b_unary(b, QN_OP_NEG, x);
}
static inline qn_value *square(qn_builder *b, qn_value *x)
{
    return qn_b_binary(b, QN_OP_MUL, x, x);
}
static inline qn_value *logical_not(qn_builder *b, qn_value *x)
{
    return qn_b_unary(b, QN_OP_NOT, x);
}

#endif
