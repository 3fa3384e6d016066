/* Random graphs: element-wise ops, constants, conversions. */
#include <math.h>

#include "tests/support/random_internal.h"

/* ---- one operand ---- */

/* What an op needs of its operand; what is picked is brought there by smooth ops. */
typedef enum {
    ANY,
    SMALL,     /* |x| <= 2 */
    POSITIVE,  /* x x + 1/2 */
    ABOVE_ONE, /* x x + 5/4 */
    UNIT,      /* 0.9 tanh x */
    EXACT      /* the op jumps, or has a kink */
} domain;

static const struct {
    qn_op op;
    domain domain;
    double bound; /* of the result; 0: as the operand */
} unary_floats[] = {
    { QN_OP_NEG, ANY, 0 },       { QN_OP_TANH, ANY, 1 },        { QN_OP_LOGISTIC, ANY, 1 },
    { QN_OP_SIN, SMALL, 1 },     { QN_OP_COS, SMALL, 1 },       { QN_OP_ATAN, ANY, 1.6 },
    { QN_OP_ERF, ANY, 1 },       { QN_OP_EXP, SMALL, 7.4 },     { QN_OP_EXPM1, SMALL, 7.4 },
    { QN_OP_SINH, SMALL, 3.7 },  { QN_OP_COSH, SMALL, 3.8 },    { QN_OP_ASINH, ANY, 6 },
    { QN_OP_TAN, UNIT, 1.3 },    { QN_OP_ASIN, UNIT, 1.2 },     { QN_OP_ACOS, UNIT, 2.7 },
    { QN_OP_ATANH, UNIT, 1.5 },  { QN_OP_SQRT, POSITIVE, 0 },   { QN_OP_RSQRT, POSITIVE, 1.5 },
    { QN_OP_LOG, POSITIVE, 10 }, { QN_OP_LOG1P, POSITIVE, 10 }, { QN_OP_ACOSH, ABOVE_ONE, 11 },
    { QN_OP_ABS, EXACT, 0 },     { QN_OP_SIGN, EXACT, 1 },      { QN_OP_FLOOR, EXACT, 0 },
    { QN_OP_CEIL, EXACT, 0 },    { QN_OP_ROUND, EXACT, 0 },     { QN_OP_TRUNC, EXACT, 0 },
    { QN_OP_IS_NAN, EXACT, 1 },  { QN_OP_IS_INF, EXACT, 1 },
};
enum { N_UNARY = sizeof unary_floats / sizeof *unary_floats, N_SMOOTH_UNARY = 21 };

static qn_value *into_domain(qn_rg *g, qn_rg_item x, domain domain)
{
    qn_builder *b = &g->b;
    qn_value *v = x.value;
    switch (domain) {
    case SMALL: return x.bound <= 2 ? v : qn_b_binary_scalar(b, QN_OP_MUL, v, 2 / x.bound);
    case POSITIVE: return qn_b_binary_scalar(b, QN_OP_ADD, qn_b_binary(b, QN_OP_MUL, v, v), 0.5);
    case ABOVE_ONE: return qn_b_binary_scalar(b, QN_OP_ADD, qn_b_binary(b, QN_OP_MUL, v, v), 1.25);
    case UNIT: return qn_b_binary_scalar(b, QN_OP_MUL, qn_b_unary(b, QN_OP_TANH, v), 0.875);
    case ANY:
    case EXACT: break;
    }
    return v;
}

static bool unary(qn_rg *g)
{
    bool smooth = qn_rg_has(g, QN_RANDOM_SMOOTH);
    int i = qn_rg_below(g, smooth ? N_SMOOTH_UNARY : N_UNARY);
    qn_op op = unary_floats[i].op;
    bool exact_only = unary_floats[i].domain == EXACT;
    if ((op == QN_OP_IS_NAN || op == QN_OP_IS_INF) && !qn_rg_has(g, QN_RANDOM_INTS))
        return false;
    qn_rg_item x = exact_only ? qn_rg_pick_exact(g, QN_CLASS_FLOAT, 0) : qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    qn_value *y = qn_b_unary(&g->b, op, into_domain(g, x, unary_floats[i].domain));
    double bound = unary_floats[i].bound ? unary_floats[i].bound : x.bound + 1;
    return qn_rg_push(g, y, bound, x.exact && (exact_only || op == QN_OP_NEG));
}

static bool unary_integer(qn_rg *g)
{
    static const qn_op ops[] = { QN_OP_NOT, QN_OP_NEG, QN_OP_ABS, QN_OP_SIGN };
    qn_rg_item x = qn_rg_pick(g, QN_ANY_LOGICAL, 0);
    if (!x.value)
        return false;
    return qn_rg_push(
        g, qn_b_unary(&g->b, ops[x.value->type.dtype == QUERN_BOOL ? 0 : qn_rg_below(g, 4)], x.value), 0,
        true);
}

/* ---- two operands ---- */

static qn_rg_item combine(qn_rg *g, qn_rg_item x, qn_rg_item y, int which)
{
    qn_builder *b = &g->b;
    switch (which) {
    case 0: return (qn_rg_item){ qn_b_binary(b, QN_OP_ADD, x.value, y.value), x.bound + y.bound, false };
    case 1: return (qn_rg_item){ qn_b_binary(b, QN_OP_SUB, x.value, y.value), x.bound + y.bound, false };
    case 2: return (qn_rg_item){ qn_b_binary(b, QN_OP_MUL, x.value, y.value), x.bound * y.bound, false };
    case 3:
        return (qn_rg_item){ qn_b_binary(b, QN_OP_DIV, x.value, into_domain(g, y, POSITIVE)), 2 * x.bound,
                             false };
    case 4:
        return (qn_rg_item){ qn_b_binary(b, QN_OP_ATAN2, x.value, into_domain(g, y, POSITIVE)), 1.6, false };
    default: {
        qn_value *power = qn_b_binary(b, QN_OP_POW, into_domain(g, x, POSITIVE), into_domain(g, y, UNIT));
        return (qn_rg_item){ power, x.bound * x.bound + 2, false };
    }
    }
}

static bool binary(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    int which = qn_rg_below(g, 6);
    qn_rg_item z = combine(g, x, qn_rg_like(g, &x.value->type), which);
    return qn_rg_push(g, z.value, z.bound, z.exact);
}

/* add x y with y of fewer dims, or with dims of 1 */
static bool binary_broadcast(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    qn_dim dims[QN_MAX_RANK];
    int drop = qn_rg_below(g, type->rank + 1);
    for (int i = drop; i < type->rank; i++)
        dims[i - drop] = qn_rg_chance(g, 30) ? qn_dim_const(qn_b_dims(&g->b), 1) : type->dims[i];
    qn_type small = qn_type_make(g->b.graph->module, type->dtype, type->rank - drop, dims);
    qn_rg_item y = qn_rg_like(g, &small);
    bool product = qn_rg_chance(g, 50);
    qn_value *z = qn_b_binary_bcast(&g->b, product ? QN_OP_MUL : QN_OP_ADD, x.value, y.value);
    return qn_rg_push(g, z, product ? x.bound * y.bound : x.bound + y.bound, false);
}

static bool binary_scalar(qn_rg *g)
{
    static const qn_op ops[] = { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL, QN_OP_DIV };
    static const double scalars[] = { 0, 1, -1, 2, 0.5, 3, -0.75, 0.1 };
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    int op = qn_rg_below(g, 4);
    double y = scalars[op == 3 ? 1 + qn_rg_below(g, 6) : qn_rg_below(g, 8)];
    bool left = op < 3 && qn_rg_chance(g, 30); /* also y op x */
    qn_value *full = qn_b_full(&g->b, &x.value->type, y);
    qn_value *z =
        left ? qn_b_binary(&g->b, ops[op], full, x.value) : qn_b_binary(&g->b, ops[op], x.value, full);
    return qn_rg_push(g, z, 3 * (x.bound + 1), false);
}

static bool max_min(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    qn_rg_item y = qn_rg_like(g, &x.value->type);
    qn_value *z = qn_b_binary(&g->b, qn_rg_chance(g, 50) ? QN_OP_MAX : QN_OP_MIN, x.value, y.value);
    return qn_rg_push(g, z, fmax(x.bound, y.bound), x.exact && y.exact);
}

static bool binary_integer(qn_rg *g)
{
    static const qn_op ints[] = { QN_OP_ADD, QN_OP_SUB,        QN_OP_MUL,        QN_OP_DIV,
                                  QN_OP_REM, QN_OP_POW,        QN_OP_AND,        QN_OP_OR,
                                  QN_OP_XOR, QN_OP_SHIFT_LEFT, QN_OP_SHIFT_RIGHT };
    qn_rg_item x = qn_rg_pick(g, QN_ANY_LOGICAL, 0);
    if (!x.value)
        return false;
    int i = x.value->type.dtype == QUERN_BOOL ? 6 + qn_rg_below(g, 3) : qn_rg_below(g, 11);
    return qn_rg_push(g, qn_b_binary(&g->b, ints[i], x.value, qn_rg_like(g, &x.value->type).value), 0, true);
}

static bool remainder_of_floats(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick_exact(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    return qn_rg_push(g, qn_b_binary_scalar(&g->b, QN_OP_REM, x.value, 0.75), 1, true);
}

static bool compare(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick_exact(g, QN_ANY_DTYPE, 0);
    if (!x.value)
        return false;
    qn_rg_item y = qn_rg_like(g, &x.value->type);
    return y.exact &&
           qn_rg_push(g, qn_b_compare(&g->b, (qn_direction)qn_rg_below(g, 6), x.value, y.value), 0, true);
}

static bool select_(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    qn_rg_item y = qn_rg_like(g, &x.value->type);
    qn_type type = x.value->type;
    type.dtype = QUERN_BOOL;
    qn_value *p =
        qn_rg_has(g, QN_RANDOM_INTS) ? qn_rg_like(g, &type).value : qn_rg_mask(g, type.rank, type.dims);
    return qn_rg_push(g, qn_b_select(&g->b, p, x.value, y.value), fmax(x.bound, y.bound), x.exact && y.exact);
}

/* ---- conversions and leaves ---- */

static bool convert_float(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    qn_dtype to = qn_rg_float_dtype(g);
    return to != x.value->type.dtype && qn_rg_push(g, qn_b_convert(&g->b, to, x.value), x.bound, x.exact);
}

static bool convert_any(qn_rg *g)
{
    static const qn_dtype dtypes[] = { QUERN_BOOL, QUERN_I8,  QUERN_I16, QUERN_I32, QUERN_I64,
                                       QUERN_U8,   QUERN_U16, QUERN_U32, QUERN_U64 };
    qn_rg_item x = qn_rg_pick_exact(g, QN_ANY_DTYPE, 0);
    if (!x.value)
        return false;
    bool to_float = !qn_dtype_is_float(x.value->type.dtype) && qn_rg_chance(g, 60);
    qn_value *v = x.value;
    if (to_float && v->type.dtype != QUERN_BOOL) /* whatever it was, it becomes small */
        v = qn_b_binary_scalar(&g->b, QN_OP_REM, v, 13);
    qn_value *y = qn_b_convert(&g->b, to_float ? qn_rg_float_dtype(g) : dtypes[qn_rg_below(g, 9)], v);
    return y != x.value && qn_rg_push(g, y, 13, true);
}

static bool bitcast(qn_rg *g)
{
    static const qn_dtype pairs[][2] = {
        { QUERN_I8, QUERN_U8 }, { QUERN_I16, QUERN_U16 }, { QUERN_I32, QUERN_U32 }, { QUERN_I64, QUERN_U64 }
    };
    qn_rg_item x = qn_rg_pick(g, QN_ANY_INT, 0);
    if (!x.value)
        return false;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 2; k++)
            if (pairs[i][k] == x.value->type.dtype)
                return qn_rg_push(g, qn_b_bitcast(&g->b, pairs[i][!k], x.value), 0, true);
    return false;
}

static bool leaf(qn_rg *g)
{
    int rank;
    qn_dim dims[QN_MAX_RANK];
    qn_rg_random_dims(g, &rank, dims);
    qn_type type = qn_type_make(g->b.graph->module, qn_rg_float_dtype(g), rank, dims);
    qn_rg_item x = qn_rg_fresh(g, &type);
    return qn_rg_push(g, x.value, x.bound, x.exact);
}

static bool dim_value(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    qn_dim dim = x.value->type.dims[qn_rg_below(g, x.value->type.rank)];
    return qn_rg_push(g, qn_b_dim_value(&g->b, qn_rg_chance(g, 70) ? QUERN_I64 : QUERN_I32, dim), 0, true);
}

static bool stop_gradient(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    return qn_rg_push(g, qn_b_unary(&g->b, QN_OP_STOP_GRADIENT, x.value), x.bound, x.exact);
}

qn_rg_item qn_rg_mutate(qn_rg *g, qn_rg_item x)
{
    static const qn_op ops[] = { QN_OP_NEG, QN_OP_TANH, QN_OP_LOGISTIC, QN_OP_ATAN };
    qn_dtype_class class = qn_dtype_class_of(x.value->type.dtype);
    if (class != QN_CLASS_FLOAT) {
        qn_value *y = class == QN_CLASS_BOOL ? qn_b_unary(&g->b, QN_OP_NOT, x.value)
                                             : qn_b_binary_scalar(&g->b, QN_OP_ADD, x.value, 1);
        return (qn_rg_item){ y, 0, true };
    }
    if (qn_rg_chance(g, 50)) {
        qn_rg_item y = qn_rg_like(g, &x.value->type);
        qn_value *half = qn_b_binary_scalar(&g->b, QN_OP_MUL, y.value, 0.5);
        x = (qn_rg_item){ qn_b_binary(&g->b, QN_OP_ADD, x.value, half), x.bound + y.bound, false };
    }
    return (qn_rg_item){ qn_b_unary(&g->b, ops[qn_rg_below(g, 4)], x.value), fmax(x.bound, 1.6), false };
}

const qn_rg_choice qn_rg_elementwise[] = {
    { unary, 14, 0, true },
    { unary_integer, 3, QN_RANDOM_INTS, false },
    { binary, 14, 0, true },
    { binary_broadcast, 6, 0, true },
    { binary_scalar, 6, 0, true },
    { max_min, 4, 0, false },
    { binary_integer, 6, QN_RANDOM_INTS, false },
    { remainder_of_floats, 1, 0, false },
    { compare, 4, QN_RANDOM_INTS, false },
    { select_, 4, 0, true },
    { convert_float, 3, QN_RANDOM_NARROW, true },
    { convert_any, 5, QN_RANDOM_INTS, false },
    { bitcast, 1, QN_RANDOM_INTS, false },
    { leaf, 2, 0, true },
    { dim_value, 2, QN_RANDOM_INTS | QN_RANDOM_SYMBOLS, false },
    { stop_gradient, 1, 0, false },
    { 0 },
};
