/* Element by element, with NumPy's broadcasting and promotion of data types. */
#include <string.h>

#include "driver/eager.h"
#include "runtime/error.h"

/* ---- data types ---- */

static int kind(int dtype) /* bool, unsigned, signed, float */
{
    switch (qn_dtype_class_of((qn_dtype)dtype)) {
    case QN_CLASS_BOOL: return 0;
    case QN_CLASS_UNSIGNED: return 1;
    case QN_CLASS_SIGNED: return 2;
    default: return 3;
    }
}

/* The float that holds integers of so many bytes: f16 for 1, f32 for 2, f64 for more. */
static int float_for(size_t bytes)
{
    return bytes == 1 ? QUERN_F16 : bytes == 2 ? QUERN_F32 : QUERN_F64;
}

int qn_promote_types(int x, int y)
{
    if (x == y || qn_dtype_is_stored((qn_dtype)x)) /* with which no op computes, and says so */
        return x;
    if (qn_dtype_is_stored((qn_dtype)y))
        return y;
    if (kind(x) > kind(y)) {
        int swapped = x;
        x = y;
        y = swapped;
    }
    const size_t x_size = qn_dtype_bytes((qn_dtype)x), y_size = qn_dtype_bytes((qn_dtype)y);
    if (kind(x) == 0)
        return y;
    if (kind(x) == 3 && x_size == y_size) /* f16 and bf16 */
        return QUERN_F32;
    if (kind(x) == kind(y))
        return x_size > y_size ? x : y;
    if (kind(y) == 3) {
        if (y == QUERN_BF16)
            return x_size == 1 ? y : qn_promote_types(y, float_for(x_size));
        return qn_promote_types(y, float_for(x_size));
    }
    /* Unsigned and signed: a signed one that holds both, or f64. */
    static const int larger[] = { [1] = QUERN_I16, [2] = QUERN_I32, [4] = QUERN_I64, [8] = QUERN_F64 };
    return y_size > x_size ? y : larger[x_size];
}

int qn_promote(const quern_tensor *x, const quern_tensor *y)
{
    if (x->number == y->number)
        return qn_promote_types(x->dtype, y->dtype);
    const quern_tensor *number = x->number ? x : y, *other = x->number ? y : x;
    const bool gives_way =
        kind(number->dtype) <= kind(other->dtype) || (number->dtype == QUERN_I64 && kind(other->dtype) > 0);
    return gives_way ? other->dtype : number->dtype;
}

/* What a float function makes of it. */
static int floating(int dtype)
{
    return kind(dtype) == 3 ? dtype : float_for(qn_dtype_bytes((qn_dtype)dtype));
}

/* ---- what an op is ---- */

typedef enum dtype_rule {
    ANY,      /* computed and given in the common data type */
    NUMBER,   /* the same, of numbers */
    ALWAYS_8, /* the same; bool counts as i8 */
    LOGICAL,  /* bool and integers */
    FLOATING, /* floats; integers become floats */
    DIVIDE,   /* the same; integers become f64 */
    TEST,     /* floats as they are, integers as floats; gives bool */
    COMPARE   /* gives bool */
} dtype_rule;

typedef enum special { NONE, SQUARE, FLOOR_DIV, MODULO, ROUNDING } special;

typedef struct op_info {
    const char *name;
    int n_operands;
    dtype_rule rule;
    int code; /* qn_op, or qn_direction under COMPARE */
    special special;
} op_info;

static const op_info ops[] = {
    { "add", 2, ANY, QN_OP_ADD, NONE },
    { "sub", 2, NUMBER, QN_OP_SUB, NONE },
    { "mul", 2, ANY, QN_OP_MUL, NONE },
    { "div", 2, DIVIDE, QN_OP_DIV, NONE },
    { "pow", 2, ALWAYS_8, QN_OP_POW, NONE },
    { "max", 2, ANY, QN_OP_MAX, NONE },
    { "min", 2, ANY, QN_OP_MIN, NONE },
    { "floor_div", 2, ALWAYS_8, QN_OP_DIV, FLOOR_DIV },
    { "mod", 2, ALWAYS_8, QN_OP_REM, MODULO },
    { "div_trunc", 2, ALWAYS_8, QN_OP_DIV, NONE },
    { "rem", 2, ALWAYS_8, QN_OP_REM, NONE },
    { "atan2", 2, FLOATING, QN_OP_ATAN2, NONE },
    { "and", 2, LOGICAL, QN_OP_AND, NONE },
    { "or", 2, LOGICAL, QN_OP_OR, NONE },
    { "xor", 2, LOGICAL, QN_OP_XOR, NONE },
    { "shift_left", 2, ALWAYS_8, QN_OP_SHIFT_LEFT, NONE },
    { "shift_right", 2, ALWAYS_8, QN_OP_SHIFT_RIGHT, NONE },
    { "eq", 2, COMPARE, QN_EQ, NONE },
    { "ne", 2, COMPARE, QN_NE, NONE },
    { "lt", 2, COMPARE, QN_LT, NONE },
    { "le", 2, COMPARE, QN_LE, NONE },
    { "gt", 2, COMPARE, QN_GT, NONE },
    { "ge", 2, COMPARE, QN_GE, NONE },
    { "neg", 1, NUMBER, QN_OP_NEG, NONE },
    { "abs", 1, ANY, QN_OP_ABS, NONE },
    { "sign", 1, NUMBER, QN_OP_SIGN, NONE },
    { "square", 1, ANY, QN_OP_MUL, SQUARE },
    { "relu", 1, NUMBER, QN_OP_RELU, NONE },
    { "not", 1, LOGICAL, QN_OP_NOT, NONE },
    { "floor", 1, ANY, QN_OP_FLOOR, ROUNDING },
    { "ceil", 1, ANY, QN_OP_CEIL, ROUNDING },
    { "round", 1, ANY, QN_OP_ROUND, ROUNDING },
    { "trunc", 1, ANY, QN_OP_TRUNC, ROUNDING },
    { "is_nan", 1, TEST, QN_OP_IS_NAN, NONE },
    { "is_inf", 1, TEST, QN_OP_IS_INF, NONE },
    { "sqrt", 1, FLOATING, QN_OP_SQRT, NONE },
    { "rsqrt", 1, FLOATING, QN_OP_RSQRT, NONE },
    { "exp", 1, FLOATING, QN_OP_EXP, NONE },
    { "expm1", 1, FLOATING, QN_OP_EXPM1, NONE },
    { "log", 1, FLOATING, QN_OP_LOG, NONE },
    { "log1p", 1, FLOATING, QN_OP_LOG1P, NONE },
    { "sin", 1, FLOATING, QN_OP_SIN, NONE },
    { "cos", 1, FLOATING, QN_OP_COS, NONE },
    { "tan", 1, FLOATING, QN_OP_TAN, NONE },
    { "asin", 1, FLOATING, QN_OP_ASIN, NONE },
    { "acos", 1, FLOATING, QN_OP_ACOS, NONE },
    { "atan", 1, FLOATING, QN_OP_ATAN, NONE },
    { "sinh", 1, FLOATING, QN_OP_SINH, NONE },
    { "cosh", 1, FLOATING, QN_OP_COSH, NONE },
    { "tanh", 1, FLOATING, QN_OP_TANH, NONE },
    { "asinh", 1, FLOATING, QN_OP_ASINH, NONE },
    { "acosh", 1, FLOATING, QN_OP_ACOSH, NONE },
    { "atanh", 1, FLOATING, QN_OP_ATANH, NONE },
    { "erf", 1, FLOATING, QN_OP_ERF, NONE },
    { "logistic", 1, FLOATING, QN_OP_LOGISTIC, NONE },
    { "gelu", 1, FLOATING, QN_OP_GELU, NONE },
    { "gelu_tanh", 1, FLOATING, QN_OP_GELU_TANH, NONE },
    { "silu", 1, FLOATING, QN_OP_SILU, NONE },
};
enum { N_OPS = sizeof ops / sizeof *ops };

/* By name, through a table of hashes that is the same whoever fills it. */
static const op_info *find_op(const char *name)
{
    static _Atomic(const op_info *) found[256];
    unsigned hash = 5381;
    for (const char *c = name; *c; c++)
        hash = hash * 33 + (unsigned char)*c;
    _Atomic(const op_info *) *slot = &found[(hash ^ hash >> 8) % 256];
    const op_info *op = atomic_load_explicit(slot, memory_order_relaxed);
    if (op && strcmp(op->name, name) == 0)
        return op;
    for (op = ops; op < ops + N_OPS; op++)
        if (strcmp(op->name, name) == 0) {
            atomic_store_explicit(slot, op, memory_order_relaxed);
            return op;
        }
    qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_elementwise: there is no op '%s' (quern_tensor.h lists them)",
            name);
    return NULL;
}

/* ---- graphs ---- */

enum { ATTR_OP, ATTR_DTYPE, N_ATTRS };

/* The rest of x / y, with the sign of y; *out_quotient: the quotient that goes with it, or NULL. */
static qn_value *floor_mod(qn_builder *b, qn_value *x, qn_value *y, qn_value **out_quotient)
{
    qn_dtype dtype = x->type.dtype;
    qn_value *zero = qn_b_full(b, &x->type, 0), *rest = qn_b_binary(b, QN_OP_REM, x, y);
    qn_value *is_apart = qn_b_binary(
        b, QN_OP_AND, qn_b_compare(b, QN_NE, rest, zero),
        qn_b_binary(b, QN_OP_XOR, qn_b_compare(b, QN_LT, rest, zero), qn_b_compare(b, QN_LT, y, zero)));
    qn_value *moved = qn_b_select(b, is_apart, qn_b_binary(b, QN_OP_ADD, rest, y), rest);
    if (out_quotient && qn_dtype_is_float(dtype)) {
        /* (x - rest) / y is whole but for rounding. */
        qn_value *whole =
            qn_b_unary(b, QN_OP_ROUND, qn_b_binary(b, QN_OP_DIV, qn_b_binary(b, QN_OP_SUB, x, moved), y));
        qn_value *plain = qn_b_binary(b, QN_OP_DIV, x, y); /* infinities and NaN of a division by 0 */
        *out_quotient = qn_b_select(b, qn_b_compare(b, QN_EQ, y, zero), plain, whole);
    } else if (out_quotient) {
        qn_value *quotient = qn_b_binary(b, QN_OP_DIV, x, y);
        qn_value *less = qn_b_binary(b, QN_OP_SUB, quotient, qn_b_full(b, &x->type, 1));
        *out_quotient = qn_b_select(b, is_apart, less, quotient);
    }
    return moved;
}

static qn_value *build_op(qn_builder *b, const op_info *op, qn_value *x, qn_value *y)
{
    const bool is_bool = x && x->type.dtype == QUERN_BOOL;
    qn_value *quotient = NULL;
    if (!x || !y)
        return NULL;
    if (op->rule == COMPARE)
        return qn_b_compare(b, (qn_direction)op->code, x, y);
    switch (op->special) {
    case SQUARE: y = x; break;
    case MODULO: return floor_mod(b, x, y, NULL);
    case FLOOR_DIV: floor_mod(b, x, y, &quotient); return quotient;
    case ROUNDING:
        if (!qn_dtype_is_float(x->type.dtype))
            return x;
        break;
    default: break;
    }
    if (is_bool && op->code == QN_OP_ABS)
        return x;
    qn_op code = is_bool && op->code == QN_OP_ADD   ? QN_OP_OR
                 : is_bool && op->code == QN_OP_MUL ? QN_OP_AND
                                                    : (qn_op)op->code;
    return op->n_operands == 2 || op->special == SQUARE ? qn_b_binary(b, code, x, y) : qn_b_unary(b, code, x);
}

/* An operand in all dims and in the data type that is computed in. */
static qn_value *prepared(qn_builder *b, const qn_eager_call *call, int i, qn_value *x, const qn_dim *dims,
                          qn_dtype dtype)
{
    int64_t axes[QN_TENSOR_MAX_RANK];
    for (int axis = 0; axis < call->x[i].rank; axis++)
        axes[axis] = call->x[i].axes[axis];
    x = qn_b_convert(b, dtype, x);
    if (call->x[i].rank == call->n_symbols || !x)
        return x;
    return qn_b_broadcast(b, x, call->n_symbols, dims, axes);
}

static qn_value *build_elementwise(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                                   const qn_dim *dims)
{
    const op_info *op = &ops[call->attrs[ATTR_OP]];
    const qn_dtype dtype = (qn_dtype)call->attrs[ATTR_DTYPE];
    qn_value *first = prepared(b, call, 0, x[0], dims, dtype);
    qn_value *second = call->n > 1 ? prepared(b, call, 1, x[1], dims, dtype) : first;
    return build_op(b, op, first, second);
}

static qn_value *build_convert(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                               const qn_dim *dims)
{
    (void)b, (void)call, (void)dims;
    return x[0]; /* the conversion is that of the result */
}

static qn_value *build_where(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    const qn_dtype dtype = (qn_dtype)call->dtype;
    return qn_b_select(b, prepared(b, call, 0, x[0], dims, QUERN_BOOL),
                       prepared(b, call, 1, x[1], dims, dtype), prepared(b, call, 2, x[2], dims, dtype));
}

/* ---- shapes ---- */

/* NumPy's common dims; -1 with a message where there are none. */
static int common_dims(const char *name, int n, const quern_tensor *const *xs, int64_t *out)
{
    int rank = 0;
    for (int i = 0; i < n; i++)
        rank = xs[i]->rank > rank ? xs[i]->rank : rank;
    for (int axis = 0; axis < rank; axis++) {
        out[axis] = 1;
        for (int i = 0; i < n; i++) {
            int own = axis - (rank - xs[i]->rank);
            if (own < 0 || xs[i]->dims[own] == 1)
                continue;
            if (out[axis] != 1 && out[axis] != xs[i]->dims[own]) {
                char a[256], b[256], c[256];
                qn_fail(QUERN_ERROR_ARGUMENT, "%s: the dims of %s%s%s and %s do not fit each other", name,
                        qn_tensor_text(xs[0], a), n > 2 ? ", " : "", n > 2 ? qn_tensor_text(xs[1], b) : "",
                        qn_tensor_text(xs[n - 1], c));
                return -1;
            }
            out[axis] = xs[i]->dims[own];
        }
    }
    return rank;
}

/* Has the operand an element of its own for each index of that axis of the result? */
static bool has_axis(const quern_tensor *x, int rank, int axis)
{
    int own = axis - (rank - x->rank);
    return own >= 0 && x->dims[own] != 1 && x->strides[own] != 0;
}

/* Operand i without the axes that it has no elements of its own for. */
static quern_tensor *unrepeated(const quern_tensor *x, int i, int rank, const unsigned *owners)
{
    int64_t dims[QN_TENSOR_MAX_RANK];
    for (int own = 0; own < x->rank; own++)
        dims[own] = owners[own + rank - x->rank] & 1u << i ? x->dims[own] : 1;
    return qn_tensor_view(x, x->data, x->rank, dims, x->strides);
}

/* Adds operands with few axes: those that are 1 are gone, neighbours along which the same operands repeat are one. */
static void add_operands(qn_eager_call *call, int n, const quern_tensor *const *xs, int rank,
                         const int64_t *dims)
{
    unsigned owners[QN_TENSOR_MAX_RANK], of_symbol[QN_TENSOR_MAX_RANK]; /* sets of operands */
    uint8_t axes[QN_TENSOR_MAX_RANK];
    for (int axis = 0; axis < rank; axis++) {
        owners[axis] = 0;
        for (int i = 0; i < n; i++)
            owners[axis] |= (unsigned)has_axis(xs[i], rank, axis) << i;
        if (dims[axis] == 1)
            continue;
        if (!owners
                [axis]) /* all repeat: then one is written out, for how long an axis is comes from an operand */
            for (int i = 0; i < n && !owners[axis]; i++)
                owners[axis] |=
                    (unsigned)(axis >= rank - xs[i]->rank && xs[i]->dims[axis - rank + xs[i]->rank] != 1)
                    << i;
        if (call->n_symbols && owners[axis] == of_symbol[call->n_symbols - 1])
            call->symbols[call->n_symbols - 1] *= dims[axis];
        else
            of_symbol[qn_eager_symbol(call, dims[axis])] = owners[axis];
    }
    for (int i = 0; i < n; i++) {
        int own = 0;
        for (int s = 0; s < call->n_symbols; s++)
            if (of_symbol[s] & 1u << i)
                axes[own++] = (uint8_t)s;
        if (!qn_tensor_repeats(xs[i])) {
            qn_eager_add(call, xs[i], own, axes);
            continue;
        }
        quern_tensor *once = unrepeated(xs[i], i, rank, owners);
        qn_eager_add(call, once, own, axes);
        if (call->x[i].temporary)
            quern_tensor_free(once);
        else
            call->x[i].temporary = once;
    }
}

/* ---- calls ---- */

static bool may_store(const op_info *op, int from, const quern_tensor *out, int rank, const int64_t *dims)
{
    char a[256], b[256];
    if (!qn_tensor_same_dims(out, rank, dims))
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: the result is %s and cannot be written to %s", op->name,
                qn_dims_text(rank, dims, a), qn_tensor_text(out, b));
    else if (kind(from) > kind(out->dtype))
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: the result is of %s and cannot be written to %s: convert it first",
                op->name, qn_dtype_name((qn_dtype)from), qn_tensor_text(out, b));
    else if (qn_tensor_repeats(out))
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: %s repeats elements (a stride is 0): copy it to write to it",
                op->name, qn_tensor_text(out, b));
    else
        return true;
    return false;
}

/* Data types: of the computation and of the result; false with a message. */
static bool types_of(const op_info *op, int common, int *out_compute, int *out_result)
{
    const bool is_bool = common == QUERN_BOOL;
    int compute = common;
    bool bad = false;
    switch (op->rule) {
    case ANY:
    case COMPARE: break;
    case NUMBER: bad = is_bool; break;
    case ALWAYS_8: compute = is_bool ? QUERN_I8 : common; break;
    case LOGICAL: bad = kind(common) == 3; break;
    case DIVIDE: compute = kind(common) == 3 ? common : QUERN_F64; break;
    case FLOATING:
    case TEST: compute = floating(common); break;
    }
    if (op->code == QN_OP_SHIFT_LEFT || op->code == QN_OP_SHIFT_RIGHT)
        bad |= op->rule == ALWAYS_8 && kind(common) == 3;
    *out_compute = compute;
    *out_result = op->rule == COMPARE || op->rule == TEST ? QUERN_BOOL : compute;
    if (bad)
        qn_fail(QUERN_ERROR_ARGUMENT, "%s is not defined for %s", op->name, qn_dtype_name((qn_dtype)common));
    return !bad;
}

static quern_tensor *elementwise(const op_info *op, const quern_tensor *x, const quern_tensor *y,
                                 quern_tensor *out)
{
    if (!op || !x || (op->n_operands == 2 && !y))
        return NULL;
    int64_t dims[QN_TENSOR_MAX_RANK];
    const quern_tensor *xs[] = { x, y };
    int compute, result, rank = common_dims(op->name, op->n_operands, xs, dims);
    int common = op->n_operands == 2 ? qn_promote(x, y) : x->dtype;
    if (rank < 0 || !types_of(op, common, &compute, &result) ||
        (out && !may_store(op, result, out, rank, dims)))
        return NULL;
    qn_eager_call call;
    call.name = op->name;
    call.build = build_elementwise;
    call.text = NULL;
    call.n_attrs = N_ATTRS;
    call.attrs[ATTR_OP] = op - ops;
    call.attrs[ATTR_DTYPE] = compute;
    call.dtype = out ? out->dtype : result;
    call.elementwise = true;
    call.fixed = call.updates = call.failed = false;
    call.placed = NULL;
    call.n = call.n_symbols = 0;
    add_operands(&call, op->n_operands, xs, rank, dims);
    return qn_tensor_give(qn_eager_run(&call, rank, dims, out));
}

quern_tensor *qn_eager_convert(const quern_tensor *x, int dtype, quern_tensor *out)
{
    qn_eager_call call = { .name = "convert", .build = build_convert, .dtype = dtype, .elementwise = true };
    if (!quern_dtype_size(dtype)) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_convert: %d is no data type", dtype);
        return NULL;
    }
    /* A number that gave its data type away is a tensor as any other. */
    uint8_t axes[] = { 0 };
    if (x->rank)
        qn_eager_symbol(&call, x->elements);
    qn_eager_add(&call, x, x->rank ? 1 : 0, axes);
    return qn_eager_run(&call, x->rank, x->dims, out);
}

quern_tensor *quern_tensor_convert(const quern_tensor *x, int dtype)
{
    return x ? qn_tensor_give(qn_eager_convert(x, dtype, NULL)) : NULL;
}

quern_tensor *quern_tensor_elementwise(const char *op, const quern_tensor *x, const quern_tensor *y,
                                       quern_tensor *out)
{
    return elementwise(find_op(op ? op : ""), x, y, out);
}

quern_tensor *quern_tensor_where(const quern_tensor *condition, const quern_tensor *x, const quern_tensor *y)
{
    if (!condition || !x || !y)
        return NULL;
    int64_t dims[QN_TENSOR_MAX_RANK];
    const quern_tensor *xs[] = { condition, x, y };
    int rank = common_dims("where", 3, xs, dims);
    if (rank < 0)
        return NULL;
    qn_eager_call call = {
        .name = "where", .build = build_where, .dtype = qn_promote(x, y), .elementwise = true
    };
    add_operands(&call, 3, xs, rank, dims);
    return qn_tensor_give(qn_eager_run(&call, rank, dims, NULL));
}

#define BINARY(function, op)                                                            \
    quern_tensor *quern_tensor_##function(const quern_tensor *x, const quern_tensor *y) \
    {                                                                                   \
        return quern_tensor_elementwise(op, x, y, NULL);                                \
    }
BINARY(add, "add")
BINARY(sub, "sub")
BINARY(mul, "mul")
BINARY(div, "div")
BINARY(pow, "pow")
BINARY(equal, "eq")
BINARY(less, "lt")

#define UNARY(op)                                            \
    quern_tensor *quern_tensor_##op(const quern_tensor *x)   \
    {                                                        \
        return quern_tensor_elementwise(#op, x, NULL, NULL); \
    }
UNARY(neg)
UNARY(exp)
UNARY(log)
UNARY(sqrt)
UNARY(tanh)
UNARY(square)
