/* Arithmetic, comparison, logic, casts. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "ir/narrow.h"

/* Operators that are one op of ours. */
static const struct {
    const char *name;
    qn_op op;
} same_op[] = {
    { "Abs", QN_OP_ABS },        { "Neg", QN_OP_NEG },        { "Sign", QN_OP_SIGN },
    { "Floor", QN_OP_FLOOR },    { "Ceil", QN_OP_CEIL },      { "Round", QN_OP_ROUND },
    { "Sqrt", QN_OP_SQRT },      { "Exp", QN_OP_EXP },        { "Log", QN_OP_LOG },
    { "Sin", QN_OP_SIN },        { "Cos", QN_OP_COS },        { "Tan", QN_OP_TAN },
    { "Asin", QN_OP_ASIN },      { "Acos", QN_OP_ACOS },      { "Atan", QN_OP_ATAN },
    { "Sinh", QN_OP_SINH },      { "Cosh", QN_OP_COSH },      { "Tanh", QN_OP_TANH },
    { "Asinh", QN_OP_ASINH },    { "Acosh", QN_OP_ACOSH },    { "Atanh", QN_OP_ATANH },
    { "Erf", QN_OP_ERF },        { "Not", QN_OP_NOT },        { "BitwiseNot", QN_OP_NOT },
    { "IsNaN", QN_OP_IS_NAN },   { "Add", QN_OP_ADD },        { "Sub", QN_OP_SUB },
    { "Mul", QN_OP_MUL },        { "Div", QN_OP_DIV },        { "Max", QN_OP_MAX },
    { "Min", QN_OP_MIN },        { "And", QN_OP_AND },        { "Or", QN_OP_OR },
    { "Xor", QN_OP_XOR },        { "BitwiseAnd", QN_OP_AND }, { "BitwiseOr", QN_OP_OR },
    { "BitwiseXor", QN_OP_XOR },
};

static qn_op op_of(const qn_onnx_node *n)
{
    for (size_t i = 0; i < sizeof same_op / sizeof *same_op; i++)
        if (!strcmp(same_op[i].name, n->proto->op_type))
            return same_op[i].op;
    QN_UNREACHABLE("no op for %s", n->proto->op_type);
}

static void import_unary(qn_onnx_node *n)
{
    if (!qn_onnx_fold_unary(n, n->proto->op_type))
        qn_onnx_out(n, 0, qn_b_unary(&n->b, op_of(n), qn_onnx_in(n, 0)));
}

static void import_reciprocal(qn_onnx_node *n)
{
    if (qn_onnx_fold_unary(n, "Reciprocal"))
        return;
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(n, 0, divide(&n->b, number_like(&n->b, x, 1), x));
}

/* Before opset 7 the second operand broadcasts only where attribute broadcast says so, from attribute axis on. */
static qn_value *align_legacy(qn_onnx_node *n, qn_value *x, qn_value *y)
{
    if (n->opset >= 7 || !x || !y || x->type.rank <= y->type.rank || !qn_onnx_attr_int(n, "broadcast", 0))
        return y;
    int64_t axis = qn_onnx_attr_int(n, "axis", -1);
    if (axis < 0)
        axis = x->type.rank - y->type.rank;
    if (axis + y->type.rank > x->type.rank) {
        qn_onnx_malformed(n, "axis %lld leaves no room for the second operand", (long long)axis);
        return NULL;
    }
    qn_dim dims[QN_MAX_RANK];
    int rank = x->type.rank - (int)axis;
    for (int i = 0; i < rank; i++)
        dims[i] = i < y->type.rank ? y->type.dims[i] : qn_dim_const(n->im->dims, 1);
    return qn_b_reshape(&n->b, y, rank, dims);
}

static void import_binary(qn_onnx_node *n)
{
    if (n->opset >= 7 && qn_onnx_fold_binary(n, n->proto->op_type))
        return;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    qn_onnx_out(n, 0, qn_b_binary_bcast(&n->b, op_of(n), x, align_legacy(n, x, y)));
}

/* Max, Min, Sum, Mean of any number of inputs. */
static void import_variadic(qn_onnx_node *n)
{
    const char *name = n->proto->op_type;
    bool is_sum = !strcmp(name, "Sum") || !strcmp(name, "Mean");
    if (n->n_in == 0)
        qn_onnx_malformed(n, "it has no inputs");
    if (n->n_in == 0 || qn_onnx_fold_binary(n, is_sum ? "Add" : name))
        return;
    qn_value *x = qn_onnx_in(n, 0);
    for (int i = 1; i < n->n_in; i++)
        x = qn_b_binary_bcast(&n->b, is_sum ? QN_OP_ADD : op_of(n), x, qn_onnx_in(n, i));
    if (!strcmp(name, "Mean"))
        x = div_number(&n->b, x, n->n_in);
    qn_onnx_out(n, 0, x);
}

static void import_compare(qn_onnx_node *n)
{
    static const struct {
        const char *name;
        qn_direction direction;
    } directions[] = { { "Equal", QN_EQ },
                       { "Less", QN_LT },
                       { "Greater", QN_GT },
                       { "LessOrEqual", QN_LE },
                       { "GreaterOrEqual", QN_GE } };
    if (n->opset >= 7 && qn_onnx_fold_binary(n, n->proto->op_type))
        return;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    for (size_t i = 0; i < sizeof directions / sizeof *directions; i++)
        if (!strcmp(directions[i].name, n->proto->op_type))
            qn_onnx_out(n, 0, compare(&n->b, directions[i].direction, x, align_legacy(n, x, y)));
}

/* The result has the base's type; bases and exponents of different types meet in a float type. */
static void import_pow(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    if (!x || !y)
        return;
    qn_dtype dtype = x->type.dtype, common = dtype;
    if (qn_dtype_is_int(dtype) && qn_dtype_is_float(y->type.dtype))
        common = qn_dtype_bytes(dtype) == 8 || y->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    y = align_legacy(n, x, y);
    x = qn_b_binary_bcast(b, QN_OP_POW, qn_b_convert(b, common, x), qn_b_convert(b, common, y));
    qn_onnx_out(n, 0, qn_b_convert(b, dtype, x));
}

/* fmod = 0: the result has the sign of the divisor. */
static void import_mod(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    bool fmod = qn_onnx_attr_int(n, "fmod", 0) != 0;
    if (!fmod && qn_onnx_fold_binary(n, "Mod"))
        return;
    qn_value *x = qn_onnx_in(n, 0), *y = qn_onnx_in(n, 1);
    qn_value *r = qn_b_binary_bcast(b, QN_OP_REM, x, y);
    if (!fmod && r && qn_dtype_class_of(r->type.dtype) != QN_CLASS_UNSIGNED) {
        qn_value *differ =
            qn_b_binary_bcast(b, QN_OP_XOR, compare_number(b, QN_LT, r, 0), compare_number(b, QN_LT, y, 0));
        qn_value *adjust = and_also(b, compare_number(b, QN_NE, r, 0), differ);
        r = choose(b, adjust, add(b, r, y), r);
    }
    qn_onnx_out(n, 0, r);
}

static void import_bit_shift(qn_onnx_node *n)
{
    bool left = qn_onnx_attr_is(n, "direction", "", "LEFT");
    if (!left && !qn_onnx_attr_is(n, "direction", "", "RIGHT"))
        qn_onnx_malformed(n, "attribute direction must be LEFT or RIGHT");
    else
        qn_onnx_out(n, 0,
                    qn_b_binary_bcast(&n->b, left ? QN_OP_SHIFT_LEFT : QN_OP_SHIFT_RIGHT, qn_onnx_in(n, 0),
                                      qn_onnx_in(n, 1)));
}

static void import_where(qn_onnx_node *n)
{
    if (n->n_in == 3 && qn_onnx_fold_where(n))
        return;
    qn_value *p = qn_onnx_in(n, 0), *x = qn_onnx_in(n, 1), *y = qn_onnx_in(n, 2);
    qn_onnx_out(n, 0, choose(&n->b, p, x, y));
}

static void import_is_inf(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    bool negative = qn_onnx_attr_int(n, "detect_negative", 1),
         positive = qn_onnx_attr_int(n, "detect_positive", 1);
    qn_value *x = qn_onnx_in(n, 0), *inf = qn_b_unary(b, QN_OP_IS_INF, x);
    if (!negative)
        inf = and_also(b, inf, compare_number(b, QN_GT, x, 0));
    if (!positive)
        inf = and_also(b, inf, compare_number(b, QN_LT, x, 0));
    qn_onnx_out(n, 0, inf);
}

/* Opsets before 11 give the bounds as attributes. */
static void import_clip(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *low = NULL, *high = NULL;
    if (!x)
        return;
    if (n->opset < 11) {
        if (qn_onnx_attr(n, "min", ONNX__ATTRIBUTE__KIND__FLOAT))
            low = number_like(b, x, qn_onnx_attr_float(n, "min", 0));
        if (qn_onnx_attr(n, "max", ONNX__ATTRIBUTE__KIND__FLOAT))
            high = number_like(b, x, qn_onnx_attr_float(n, "max", 0));
    } else {
        low = qn_onnx_in_opt(n, 1);
        high = qn_onnx_in_opt(n, 2);
        if (!qn_onnx_ok(n))
            return;
    }
    if (low)
        x = maximum(b, x, low);
    if (high)
        x = minimum(b, x, high);
    qn_onnx_out(n, 0, x);
}

/* A power of two next to x, above or below it: 2 x lies in the same binade, x / 2 too. */
static qn_value *round_power(qn_builder *b, qn_value *x, bool up)
{
    if (!x)
        return NULL;
    qn_value *near = qn_b_convert(b, x->type.dtype, qn_b_convert(b, QUERN_F8E8M0, x));
    return choose(b, compare(b, up ? QN_LT : QN_GT, near, x), mul_number(b, near, up ? 2 : 0.5), near);
}

static qn_value *cast_narrow(qn_onnx_node *n, qn_dtype dtype, qn_value *x)
{
    qn_builder *b = &n->b;
    const bool is_float = qn_dtype_is_float(x->type.dtype);
    if (!qn_narrow_of(dtype)->is_float) /* from a float as from an integer: without the higher bits */
        return qn_b_convert(b, dtype, is_float ? qn_b_convert(b, QUERN_I32, x) : x);
    const char *mode = qn_onnx_attr_string(n, "round_mode", "up");
    if (qn_onnx_attr_int(n, "saturate", 1))
        x = qn_b_saturate(b, dtype, x);
    if (dtype == QUERN_F8E8M0 && strcmp(mode, "nearest") != 0)
        x = round_power(b, x && !is_float ? qn_b_convert(b, QUERN_F64, x) : x, strcmp(mode, "up") == 0);
    return x ? qn_b_convert(b, dtype, x) : NULL;
}

static void cast(qn_onnx_node *n, int64_t to)
{
    qn_dtype dtype = to > 0 && to < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)to) : QUERN_INVALID_DTYPE;
    if (!qn_onnx_in_type(n, 0))
        return;
    if (dtype == QUERN_INVALID_DTYPE)
        qn_onnx_unsupported(n, "casting to %s is not supported", qn_onnx_elem_name((int)to));
    else if (!qn_onnx_fold_cast(n, (qn_onnx_elem)to))
        qn_onnx_out(n, 0,
                    qn_dtype_is_stored(dtype) ? cast_narrow(n, dtype, qn_onnx_in(n, 0))
                                              : qn_b_convert(&n->b, dtype, qn_onnx_in(n, 0)));
}

static void import_cast(qn_onnx_node *n)
{
    int64_t to = qn_onnx_attr_int(n, "to", 0);
    if (to <= 0)
        qn_onnx_malformed(n, "attribute to must be a data type");
    else
        cast(n, to);
}

static void import_cast_like(qn_onnx_node *n)
{
    if (qn_onnx_in_type(n, 1))
        cast(n, (int64_t)qn_onnx_dtype_elem(n->in[1]->type.dtype));
}

static void import_bit_cast(qn_onnx_node *n)
{
    int64_t to = qn_onnx_attr_int(n, "to", 0);
    qn_dtype dtype = to > 0 && to < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)to) : QUERN_INVALID_DTYPE;
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    if (dtype == QUERN_INVALID_DTYPE)
        qn_onnx_unsupported(n, "data type %s is not supported", qn_onnx_elem_name((int)to));
    else if (qn_dtype_bytes(dtype) != qn_dtype_bytes(x->type.dtype))
        qn_onnx_malformed(n, "%s and %s differ in size", qn_dtype_name(x->type.dtype), qn_dtype_name(dtype));
    else if (x->type.dtype == dtype)
        qn_onnx_out(n, 0, x);
    else
        qn_onnx_out(n, 0, qn_b_bitcast(&n->b, dtype, x));
}

const qn_onnx_op qn_onnx_elementwise_ops[] = {
    { "Abs", NULL, 1, 0, import_unary },
    { "Neg", NULL, 1, 0, import_unary },
    { "Sign", NULL, 9, 0, import_unary },
    { "Floor", NULL, 1, 0, import_unary },
    { "Ceil", NULL, 1, 0, import_unary },
    { "Round", NULL, 11, 0, import_unary },
    { "Sqrt", NULL, 1, 0, import_unary },
    { "Exp", NULL, 1, 0, import_unary },
    { "Log", NULL, 1, 0, import_unary },
    { "Sin", NULL, 7, 0, import_unary },
    { "Cos", NULL, 7, 0, import_unary },
    { "Tan", NULL, 7, 0, import_unary },
    { "Asin", NULL, 7, 0, import_unary },
    { "Acos", NULL, 7, 0, import_unary },
    { "Atan", NULL, 7, 0, import_unary },
    { "Sinh", NULL, 9, 0, import_unary },
    { "Cosh", NULL, 9, 0, import_unary },
    { "Tanh", NULL, 1, 0, import_unary },
    { "Asinh", NULL, 9, 0, import_unary },
    { "Acosh", NULL, 9, 0, import_unary },
    { "Atanh", NULL, 9, 0, import_unary },
    { "Erf", NULL, 9, 0, import_unary },
    { "Not", NULL, 1, 0, import_unary },
    { "BitwiseNot", NULL, 18, 0, import_unary },
    { "IsNaN", NULL, 9, 0, import_unary },
    { "IsInf", NULL, 10, 0, import_is_inf },
    { "Reciprocal", NULL, 1, 0, import_reciprocal },
    { "Add", NULL, 1, 0, import_binary },
    { "Sub", NULL, 1, 0, import_binary },
    { "Mul", NULL, 1, 0, import_binary },
    { "Div", NULL, 1, 0, import_binary },
    { "And", NULL, 1, 0, import_binary },
    { "Or", NULL, 1, 0, import_binary },
    { "Xor", NULL, 1, 0, import_binary },
    { "BitwiseAnd", NULL, 18, 0, import_binary },
    { "BitwiseOr", NULL, 18, 0, import_binary },
    { "BitwiseXor", NULL, 18, 0, import_binary },
    { "Max", NULL, 1, 0, import_variadic },
    { "Min", NULL, 1, 0, import_variadic },
    { "Sum", NULL, 1, 0, import_variadic },
    { "Mean", NULL, 1, 0, import_variadic },
    { "Equal", NULL, 1, 0, import_compare },
    { "Less", NULL, 1, 0, import_compare },
    { "Greater", NULL, 1, 0, import_compare },
    { "LessOrEqual", NULL, 12, 0, import_compare },
    { "GreaterOrEqual", NULL, 12, 0, import_compare },
    { "Pow", NULL, 1, 0, import_pow },
    { "Mod", NULL, 10, 0, import_mod },
    { "BitShift", NULL, 11, 0, import_bit_shift },
    { "Where", NULL, 9, 0, import_where },
    { "Clip", NULL, 6, 0, import_clip },
    { "Cast", NULL, 6, 0, import_cast },
    { "CastLike", NULL, 15, 0, import_cast_like },
    { "BitCast", NULL, 26, 0, import_bit_cast },
    { 0 },
};
