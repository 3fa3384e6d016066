/* Algebra and data movement.
 *
 * Before: any graph. After: the same values by cheaper nodes. A rule looks at a node and at what makes its operands; each is
 * exact in the math mode it is for, and each makes the graph cheaper, so that rewriting ends. Identities of element-wise
 * ops are data (passes/algebra.rules); rules for movement are in simplify_movement.c.
 *
 *   %0 = constant 1.0 : f32[]
 *   %1 = broadcast %0 {axes = [], dims = [8]}
 *   %2 = mul %x, %1                            is %x
 *   %3 = transpose %2 {perm = [0]}             is %x
 */
#include "passes/simplify.h"

#include <math.h>
#include <string.h>

enum { MAX_SWEEPS = 8 };

/* ---- constants ---- */

bool qn_value_splat(const qn_value *value, qn_scalar *out_scalar)
{
    while (value->node && (value->node->op == QN_OP_BROADCAST || value->node->op == QN_OP_RESHAPE ||
                           value->node->op == QN_OP_TRANSPOSE))
        value = value->node->operands[0];
    const qn_tensor *tensor = qn_value_constant(value);
    const size_t size = tensor ? qn_dtype_bytes(tensor->type.dtype) : 0;
    if (!tensor || !tensor->data ||
        tensor->bytes < size) /* one that is yet to be computed: as if it were none */
        return false;
    /* every element equals the one before it */
    if (memcmp(tensor->data, (const char *)tensor->data + size, tensor->bytes - size) != 0)
        return false;
    *out_scalar = qn_scalar_load(tensor->type.dtype, tensor->data);
    return true;
}

static qn_value *splat_like(qn_builder *b, const qn_value *like, double number)
{
    qn_value *scalar = qn_dtype_is_float(like->type.dtype)
                           ? qn_b_scalar(b, like->type.dtype, number)
                           : qn_b_scalar_int(b, like->type.dtype, (int64_t)number);
    return like->type.rank == 0
               ? scalar
               : qn_b_broadcast(b, scalar, like->type.rank, like->type.dims, (const int64_t[]){ 0 });
}

/* ---- algebra.rules ---- */

typedef enum pattern { SAME, ZERO, NEG_ZERO, ONE, MINUS_ONE, TWO, THREE, HALF, ONES } pattern;
typedef enum outcome {
    A,
    B,
    NEG_A,
    NEG_B,
    CONST_ZERO,
    CONST_ONE,
    SQUARE,
    CUBE,
    RECIPROCAL,
    SQRT,
    X,
    INNER,
    OUTER_X
} outcome;

typedef struct identity {
    qn_op op;
    pattern right, left; /* the one that the rule is about; the other is any value */
    bool on_left;
    int dtypes;
    qn_math mode;
    outcome result;
} identity;

static const identity identities[] = {
#define RULE(op, right, dtypes, mode, result) \
    { QN_OP_##op, right, SAME, false, dtypes, QN_MATH_##mode, result },
#define LEFT_RULE(op, left, dtypes, mode, result) \
    { QN_OP_##op, SAME, left, true, dtypes, QN_MATH_##mode, result },
#include "passes/algebra.rules"
};

typedef struct pair {
    qn_op outer, inner;
    int dtypes;
    outcome result;
} pair;

static const pair pairs[] = {
#define TWICE(outer, inner, dtypes, result) { QN_OP_##outer, QN_OP_##inner, dtypes, result },
#include "passes/algebra.rules"
};

static bool matches(pattern p, qn_dtype dtype, qn_scalar s)
{
    static const double numbers[] = { [ONE] = 1, [MINUS_ONE] = -1, [TWO] = 2, [THREE] = 3, [HALF] = 0.5 };
    const bool is_float = qn_dtype_is_float(dtype);
    switch (p) {
    case SAME: return false;
    case ZERO: return is_float ? s.f == 0 && !signbit(s.f) : s.i == 0;
    case NEG_ZERO: return is_float && s.f == 0 && signbit(s.f);
    case HALF: return is_float && s.f == 0.5;
    case MINUS_ONE:
        if (!is_float)
            return qn_dtype_class_of(dtype) == QN_CLASS_SIGNED && s.i == -1;
        return s.f == -1;
    case ONES: {
        unsigned char bytes[8];
        if (dtype == QUERN_BOOL)
            return s.i != 0;
        if (is_float)
            return false;
        qn_scalar_store(dtype, s, bytes);
        for (size_t i = 0; i < qn_dtype_bytes(dtype); i++)
            if (bytes[i] != 0xff)
                return false;
        return true;
    }
    default: return is_float ? s.f == numbers[p] : s.i == (int64_t)numbers[p];
    }
}

static qn_value *produce(qn_rewriter *r, outcome result, const qn_node *node)
{
    qn_value *a = node->operands[0], *b = node->n_operands > 1 ? node->operands[1] : NULL;
    switch (result) {
    case A: return a;
    case B: return b;
    case NEG_A: return qn_b_unary(&r->b, QN_OP_NEG, a);
    case NEG_B: return qn_b_unary(&r->b, QN_OP_NEG, b);
    case CONST_ZERO: return splat_like(&r->b, a, 0);
    case CONST_ONE: return splat_like(&r->b, a, 1);
    case SQUARE: return qn_b_binary(&r->b, QN_OP_MUL, a, a);
    case CUBE: return qn_b_binary(&r->b, QN_OP_MUL, qn_b_binary(&r->b, QN_OP_MUL, a, a), a);
    case RECIPROCAL: return qn_b_binary(&r->b, QN_OP_DIV, splat_like(&r->b, a, 1), a);
    case SQRT: return qn_b_unary(&r->b, QN_OP_SQRT, a);
    case X: return a->node->operands[0];
    case INNER: return a;
    case OUTER_X: return qn_b_unary(&r->b, node->op, a->node->operands[0]);
    }
    QN_UNREACHABLE("outcome %d", (int)result);
}

static qn_value *apply_identities(qn_rewriter *r, const qn_node *node)
{
    if (node->n_operands == 1) {
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            if (pairs[i].outer == node->op && qn_value_made_by(node->operands[0], pairs[i].inner) &&
                (pairs[i].dtypes & (int)qn_dtype_class_of(node->operands[0]->type.dtype)))
                return produce(r, pairs[i].result, node);
        return NULL;
    }
    if (node->n_operands != 2)
        return NULL;
    const qn_value *left = node->operands[0], *right = node->operands[1];
    const qn_dtype dtype = left->type.dtype;
    qn_scalar left_scalar = { .i = 0 }, right_scalar = { .i = 0 };
    const bool left_known = qn_value_splat(left, &left_scalar),
               right_known = qn_value_splat(right, &right_scalar);
    for (size_t i = 0; i < sizeof identities / sizeof *identities; i++) {
        const identity *rule = &identities[i];
        if (rule->op != node->op || !(rule->dtypes & (int)qn_dtype_class_of(dtype)) || r->math < rule->mode)
            continue;
        if (rule->on_left         ? left_known && matches(rule->left, dtype, left_scalar)
            : rule->right == SAME ? left == right
                                  : right_known && matches(rule->right, right->type.dtype, right_scalar))
            return produce(r, rule->result, node);
    }
    return NULL;
}

/* ---- rules with conditions of their own ---- */

/* x / c = x * (1/c) when the reciprocal is exact: c a power of two, 1/c normal. */
static qn_value *div_by_constant(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    qn_scalar c;
    int exponent;
    if (!qn_dtype_is_float(x->type.dtype) || !qn_value_splat(node->operands[1], &c) || c.f == 0 ||
        !isfinite(c.f))
        return NULL;
    const double inverse = 1 / c.f;
    const bool power = fabs(frexp(c.f, &exponent)) == 0.5;
    /* least exponent of a normal f16 and of f32 (and bf16), by frexp */
    const int least = x->type.dtype == QUERN_F16 ? -13 : x->type.dtype == QUERN_F64 ? -1021 : -125;
    const bool exact = power && exponent >= least && 2 - exponent >= least;
    if (!exact && (r->math < QN_MATH_FAST || !isnormal((float)inverse) || x->type.dtype == QUERN_F16))
        return NULL;
    return qn_b_binary(&r->b, QN_OP_MUL, x, splat_like(&r->b, x, inverse));
}

/* Can every value of `from` be said in `to`? */
static bool holds_all(qn_dtype to, qn_dtype from)
{
    const qn_dtype_class t = qn_dtype_class_of(to), f = qn_dtype_class_of(from);
    const size_t to_bytes = qn_dtype_bytes(to), from_bytes = qn_dtype_bytes(from);
    if (from == QUERN_BOOL)
        return true;
    if (t == QN_CLASS_STORED || f == QN_CLASS_STORED)
        return false;
    if (t == QN_CLASS_FLOAT && f == QN_CLASS_FLOAT)
        return to_bytes > from_bytes;
    if (t == QN_CLASS_FLOAT) { /* integers of at most the mantissa's width; bf16 has 8 bits, f16 11 */
        const size_t bits = to == QUERN_F64 ? 53 : to == QUERN_F32 ? 24 : to == QUERN_F16 ? 11 : 8;
        return 8 * from_bytes <= bits;
    }
    if (t == QN_CLASS_BOOL || f == QN_CLASS_FLOAT)
        return false;
    return t == f ? to_bytes >= from_bytes : f == QN_CLASS_UNSIGNED && to_bytes > from_bytes;
}

/* convert(convert(x)) = convert(x) when the inner one loses nothing. From a float to an integer saturates, though, where
 * from an integer it wraps. */
static qn_value *convert_twice(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_dtype to = node->results[0].type.dtype;
    if (x->type.dtype == to)
        return x;
    const qn_node *inner = qn_value_made_by(x, QN_OP_CONVERT);
    if (!inner)
        return NULL;
    const qn_dtype from = inner->operands[0]->type.dtype;
    const bool saturates = qn_dtype_is_int(from) && qn_dtype_is_float(x->type.dtype) &&
                           (qn_dtype_is_int(to) || qn_dtype_is_stored(to));
    return holds_all(x->type.dtype, from) && (!saturates || holds_all(to, from))
               ? qn_b_convert(&r->b, to, inner->operands[0])
               : NULL;
}

static qn_value *bitcast_twice(qn_rewriter *r, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const qn_node *inner = qn_value_made_by(x, QN_OP_BITCAST);
    if (x->type.dtype == node->results[0].type.dtype)
        return x;
    return inner ? qn_b_bitcast(&r->b, node->results[0].type.dtype, inner->operands[0]) : NULL;
}

static qn_value *stop_gradient(qn_rewriter *r, const qn_node *node)
{
    /* Autodiff has run by the time anything is lowered; before it, the mark has to stay. */
    (void)r;
    return qn_value_made_by(node->operands[0], QN_OP_STOP_GRADIENT) ? node->operands[0] : NULL;
}

static qn_value *select_known(qn_rewriter *r, const qn_node *node)
{
    qn_scalar condition;
    if (node->operands[1] == node->operands[2])
        return node->operands[1];
    if (qn_value_splat(node->operands[0], &condition))
        return node->operands[condition.i ? 1 : 2];
    const qn_node *negated = qn_value_made_by(node->operands[0], QN_OP_NOT);
    return negated ? qn_b_select(&r->b, negated->operands[0], node->operands[2], node->operands[1]) : NULL;
}

static qn_value *compare_same(qn_rewriter *r, const qn_node *node)
{
    if (node->operands[0] != node->operands[1] || qn_dtype_is_float(node->operands[0]->type.dtype))
        return NULL;
    const qn_direction d = qn_attr_compare_direction(node);
    return splat_like(&r->b, &node->results[0], d == QN_EQ || d == QN_LE || d == QN_GE);
}

/* Operands that commute: constants on the right. */
static qn_value *order_operands(qn_rewriter *r, const qn_node *node)
{
    qn_scalar s;
    if (node->n_operands != 2 || !(qn_ops[node->op].flags & QN_FLAG_COMMUTES) ||
        !qn_value_splat(node->operands[0], &s) || qn_value_splat(node->operands[1], &s))
        return NULL;
    return qn_b_binary(&r->b, node->op, node->operands[1], node->operands[0]);
}

/* op(broadcast(x), broadcast(y)) = broadcast(op(x, y)): fewer elements, and constants meet constants.
 * All operands are broadcast from the same dims along the same axes. */
static qn_value *below_broadcast(qn_rewriter *r, const qn_node *node)
{
    if (qn_ops[node->op].class != QN_ELEMENTWISE || node->n_operands == 0 || node->op == QN_OP_QUANTIZE ||
        node->op == QN_OP_DEQUANTIZE)
        return NULL;
    qn_value *sources[3];
    const qn_node *first = NULL;
    QN_ASSERT(node->n_operands <= 3, "%s has %d operands", qn_ops[node->op].name, node->n_operands);
    for (int i = 0; i < node->n_operands; i++) {
        const qn_node *broadcast = qn_value_made_by(node->operands[i], QN_OP_BROADCAST);
        if (!broadcast)
            return NULL;
        if (!first) {
            first = broadcast;
        } else {
            int n, m;
            const int64_t *axes = qn_attr_ints(first, QN_ATTR_AXES, &n);
            const int64_t *others = qn_attr_ints(broadcast, QN_ATTR_AXES, &m);
            if (n != m || (n > 0 && memcmp(axes, others, (size_t)n * sizeof *axes) != 0) ||
                !qn_same_dims(&first->operands[0]->type, &broadcast->operands[0]->type))
                return NULL;
        }
        sources[i] = broadcast->operands[0];
    }
    qn_node *small = qn_node_new(r->b.graph, r->b.before, node->op, node->n_operands, sources, node->n_attrs,
                                 node->attrs, 0, NULL, &node->loc, r->b.diags);
    const qn_type *type = &node->results[0].type;
    return small ? qn_b_broadcast(&r->b, &small->results[0], type->rank, type->dims,
                                  qn_attr_ints(first, QN_ATTR_AXES, NULL))
                 : NULL;
}

/* x times a constant c? Then x. */
static qn_value *times(const qn_value *product, double c)
{
    const qn_node *node = qn_value_made_by(product, QN_OP_MUL);
    qn_scalar s;
    for (int i = 0; node && i < 2; i++)
        if (qn_value_splat(node->operands[i], &s) && s.f == c)
            return node->operands[!i];
    return NULL;
}

/* (tanh(u) + 1) / 2 = logistic(2 u), cheaper and without the cancellation: exponentials meet in both, but the sum loses what
 * tanh(u) near -1 knows. The half may be a factor of what the sum is multiplied by, as in gelu. */
static qn_value *half_of_tanh(qn_rewriter *r, const qn_node *node)
{
    const qn_dtype dtype = node->results[0].type.dtype;
    if (r->math < QN_MATH_DEFAULT || (dtype != QUERN_F32 && dtype != QUERN_F64))
        return NULL;
    for (int i = 0; i < 2; i++) {
        const qn_node *sum = qn_value_made_by(node->operands[i], QN_OP_ADD);
        qn_value *other = node->operands[!i];
        qn_scalar s;
        for (int j = 0; sum && j < 2; j++) {
            const qn_node *tanh = qn_value_made_by(sum->operands[j], QN_OP_TANH);
            if (!tanh || !qn_value_splat(sum->operands[!j], &s) || s.f != 1)
                continue;
            const bool is_half = qn_value_splat(other, &s) && s.f == 0.5;
            qn_value *factor = is_half ? NULL : times(other, 0.5), *u = tanh->operands[0];
            if (!is_half && !factor)
                continue;
            qn_value *logistic = qn_b_unary(&r->b, QN_OP_LOGISTIC, qn_b_binary(&r->b, QN_OP_ADD, u, u));
            return factor ? qn_b_binary(&r->b, QN_OP_MUL, factor, logistic) : logistic;
        }
    }
    return NULL;
}

/* Is it exp(x - m) with m the maximum of x along the axes of `sum`, which adds it up? Then the sum is at least 1, or NaN. */
static bool is_softmax_sum(const qn_node *sum, const qn_value *numerator)
{
    const qn_node *exp = qn_value_made_by(numerator, QN_OP_EXP);
    const qn_node *difference = exp ? qn_value_made_by(exp->operands[0], QN_OP_SUB) : NULL;
    const qn_node *spread = difference ? qn_value_made_by(difference->operands[1], QN_OP_BROADCAST) : NULL;
    const qn_node *most = spread ? qn_value_made_by(spread->operands[0], QN_OP_REDUCE) : NULL;
    int n, m;
    if (!most || most->operands[0] != difference->operands[0] || qn_attr_reduce_kind(most) != QN_KIND_MAX ||
        sum->operands[0] != numerator || qn_attr_reduce_kind(sum) != QN_SUM)
        return false;
    const int64_t *axes = qn_attr_ints(sum, QN_ATTR_AXES, &n), *others = qn_attr_ints(most, QN_ATTR_AXES, &m);
    return n == m && (n == 0 || memcmp(axes, others, (size_t)n * sizeof *axes) == 0);
}

/* e / sum = e * (1 / sum) in softmax: one division a row. The reciprocal neither overflows nor gets denormal there, so that
 * all it costs is one more rounding. */
static qn_value *softmax_quotient(qn_rewriter *r, const qn_node *node)
{
    const qn_node *spread = qn_value_made_by(node->operands[1], QN_OP_BROADCAST);
    const qn_node *sum = spread ? qn_value_made_by(spread->operands[0], QN_OP_REDUCE) : NULL;
    const qn_dtype dtype = node->results[0].type.dtype;
    if (!sum || r->math < QN_MATH_DEFAULT || (dtype != QUERN_F32 && dtype != QUERN_F64) ||
        !is_softmax_sum(sum, node->operands[0]))
        return NULL;
    qn_value *total = spread->operands[0];
    qn_value *inverse = qn_b_binary(&r->b, QN_OP_DIV, splat_like(&r->b, total, 1), total);
    const qn_type *type = &node->results[0].type;
    return qn_b_binary(
        &r->b, QN_OP_MUL, node->operands[0],
        qn_b_broadcast(&r->b, inverse, type->rank, type->dims, qn_attr_ints(spread, QN_ATTR_AXES, NULL)));
}

static const qn_rewrite_rule algebra_rules[] = {
    { QN_OP_DIV, div_by_constant },         { QN_OP_DIV, softmax_quotient },  { QN_OP_MUL, half_of_tanh },
    { QN_OP_CONVERT, convert_twice },       { QN_OP_BITCAST, bitcast_twice }, { QN_OP_SELECT, select_known },
    { QN_OP_STOP_GRADIENT, stop_gradient }, { QN_OP_COMPARE, compare_same },  { QN_N_OPS, apply_identities },
    { QN_N_OPS, order_operands },           { QN_N_OPS, below_broadcast },    { QN_N_OPS, NULL },
};

/* ---- the pass ---- */

/* QN_N_OPS in a table stands for any element-wise op. */
static qn_value *apply_table(qn_rewriter *r, const qn_rewrite_rule *rules, const qn_node *node)
{
    const bool elementwise = qn_ops[node->op].class == QN_ELEMENTWISE;
    for (const qn_rewrite_rule *rule = rules; rule->apply; rule++)
        if (rule->op == node->op || (rule->op == QN_N_OPS && elementwise)) {
            qn_value *value = rule->apply(r, node);
            if (value)
                return value;
        }
    return NULL;
}

static bool sweep(qn_graph *graph, qn_rewriter *r)
{
    bool changed = false;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        for (int i = 0; i < node->n_regions; i++)
            changed |= sweep(node->regions[i], r);
        if (node->n_results != 1)
            continue;
        qn_node *const before = node->prev;
        r->b.graph = graph;
        r->b.before = node;
        r->b.loc = node->loc;
        qn_value *value = apply_table(r, algebra_rules, node);
        if (!value)
            value = apply_table(r, qn_movement_rules, node);
        if (!value)
            continue;
        qn_value_replace(&node->results[0], value);
        qn_node_remove(node);
        next = before ? before->next : graph->first; /* what the rule built is looked at too */
        changed = true;
    }
    return changed;
}

qn_status qn_pass_simplify(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                           qn_diags *diags)
{
    qn_rewriter r = { .b = { .diags = diags }, .math = options->math };
    const int errors = diags->n_errors;
    *out_changed = false;
    for (int i = 0; i < MAX_SWEEPS && sweep(graph, &r); i++) {
        *out_changed = true;
        qn_graph_resolve(graph);
    }
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
