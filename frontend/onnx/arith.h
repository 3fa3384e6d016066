/* Short names for arithmetic in operators' functions. Binary ones broadcast as NumPy does; NULL in, NULL out. */
#ifndef QN_FRONTEND_ONNX_ARITH_H
#define QN_FRONTEND_ONNX_ARITH_H

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

/* with a number, in x's dtype */
static inline qn_value *number_like(qn_builder *b, qn_value *x, double y)
{
    return x ? qn_b_scalar(b, x->type.dtype, y) : NULL;
}
static inline qn_value *add_number(qn_builder *b, qn_value *x, double y)
{
    return qn_b_binary_scalar(b, QN_OP_ADD, x, y);
}
static inline qn_value *mul_number(qn_builder *b, qn_value *x, double y)
{
    return qn_b_binary_scalar(b, QN_OP_MUL, x, y);
}
static inline qn_value *div_number(qn_builder *b, qn_value *x, double y)
{
    return qn_b_binary_scalar(b, QN_OP_DIV, x, y);
}
static inline qn_value *max_number(qn_builder *b, qn_value *x, double y)
{
    return qn_b_binary_scalar(b, QN_OP_MAX, x, y);
}
static inline qn_value *min_number(qn_builder *b, qn_value *x, double y)
{
    return qn_b_binary_scalar(b, QN_OP_MIN, x, y);
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
