/* What a mask of attention says: causal, or what else.
 *
 *   compare(iota over keys <= iota over queries + (T - S))        causal
 *   trilu of ones, == 0, a constant with these contents, not …    causal
 *   select(causal, 0, -inf), added                                causal
 *   and(causal, padding)                                          causal, and `padding` says what is visible
 *   anything else                                                 a mask that is read */
#include <math.h>
#include <string.h>

#include "passes/raise.h"

/* A value that is looked at, and which of its axes are queries and keys; -1: the same along it. */
typedef struct view {
    const qn_value *value;
    int queries, keys;
} view;

typedef enum sense {
    UNKNOWN,
    CAUSAL,
    FUTURE
} sense; /* true where a key is visible; true where it is hidden */

static sense opposite(sense s)
{
    return s == CAUSAL ? FUTURE : s == FUTURE ? CAUSAL : UNKNOWN;
}

static int through_broadcast(const qn_node *broadcast, int axis)
{
    int n;
    const int64_t *axes = qn_attr_ints(broadcast, QN_ATTR_AXES, &n);
    for (int i = 0; i < n; i++)
        if (axes[i] == axis)
            return broadcast->operands[0]->type.dims[i] == broadcast->results[0].type.dims[axis] ? i : -1;
    return -1;
}

/* Where the axis is in front of a reshape that adds or drops 1s; -2: it isn't such a reshape. */
static int through_reshape(const qn_node *reshape, int axis)
{
    const qn_type *from = &reshape->operands[0]->type, *to = &reshape->results[0].type;
    int i = 0, found = -1;
    for (int k = 0; k < to->rank; k++) {
        if (qn_dim_is(to->dims[k], 1))
            continue;
        while (i < from->rank && qn_dim_is(from->dims[i], 1))
            i++;
        if (i == from->rank || from->dims[i] != to->dims[k])
            return -2;
        if (k == axis)
            found = i;
        i++;
    }
    while (i < from->rank && qn_dim_is(from->dims[i], 1))
        i++;
    return i == from->rank ? found : -2;
}

bool qn_mask_repeats(const qn_value *value, int axis, int depth)
{
    const qn_node *node = value->node;
    if (qn_dim_is(value->type.dims[axis], 1))
        return true;
    if (!node || depth == 0)
        return false;
    if (node->op == QN_OP_BROADCAST || node->op == QN_OP_RESHAPE) {
        const int from =
            node->op == QN_OP_BROADCAST ? through_broadcast(node, axis) : through_reshape(node, axis);
        return from == -1 || (from >= 0 && qn_mask_repeats(node->operands[0], from, depth - 1));
    }
    if (qn_ops[node->op].class != QN_ELEMENTWISE)
        return false;
    for (int i = 0; i < node->n_operands; i++)
        if (!qn_mask_repeats(node->operands[i], axis, depth - 1))
            return false;
    return true;
}

/* The view in front of broadcasts and reshapes. */
static view behind_movement(view v)
{
    for (;;) {
        const qn_node *node = v.value->node;
        if (node && node->op == QN_OP_BROADCAST) {
            v.queries = v.queries < 0 ? -1 : through_broadcast(node, v.queries);
            v.keys = v.keys < 0 ? -1 : through_broadcast(node, v.keys);
        } else if (node && node->op == QN_OP_RESHAPE && through_reshape(node, -1) != -2) {
            v.queries = v.queries < 0 ? -1 : through_reshape(node, v.queries);
            v.keys = v.keys < 0 ? -1 : through_reshape(node, v.keys);
        } else {
            return v;
        }
        v.value = node->operands[0];
    }
}

/* ---- positions: an index along an axis plus a number ---- */

typedef struct position {
    bool of_query, of_key; /* neither: the number alone */
    qn_dim offset;
} position;

static bool read_number(qn_dims *dims, const qn_value *value, qn_dim *out)
{
    qn_scalar s;
    const view v = behind_movement((view){ value, -1, -1 });
    if (qn_value_made_by(v.value, QN_OP_DIM_VALUE)) {
        *out = qn_attr_dims(v.value->node, QN_ATTR_DIMS, NULL)[0];
        return true;
    }
    if (!qn_value_splat(v.value, &s))
        return false;
    const bool is_float = qn_dtype_is_float(v.value->type.dtype);
    if (is_float && (s.f != floor(s.f) || fabs(s.f) > 1e9))
        return false;
    *out = qn_dim_const(dims, is_float ? (int64_t)s.f : s.i);
    return true;
}

static bool read_position(qn_dims *dims, view v, int depth, position *out)
{
    v = behind_movement(v);
    const qn_node *node = v.value->node;
    *out = (position){ .offset = qn_dim_const(dims, 0) };
    if (read_number(dims, v.value, &out->offset))
        return true;
    if (!node || depth == 0)
        return false;
    switch (node->op) {
    case QN_OP_IOTA: {
        const int axis = (int)qn_attr_int(node, QN_ATTR_AXIS);
        out->of_query = axis == v.queries;
        out->of_key = axis == v.keys;
        return out->of_query || out->of_key;
    }
    case QN_OP_CONVERT: {
        const qn_dtype from = node->operands[0]->type.dtype;
        return (from == QUERN_I32 || from == QUERN_I64) &&
               read_position(dims, (view){ node->operands[0], v.queries, v.keys }, depth - 1, out);
    }
    case QN_OP_SLICE: { /* a position further on */
        const qn_dim *start = qn_attr_dims(node, QN_ATTR_START, NULL);
        const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
        if (!read_position(dims, (view){ node->operands[0], v.queries, v.keys }, depth - 1, out))
            return false;
        const int axis = out->of_query ? v.queries : out->of_key ? v.keys : -1;
        if (axis >= 0 && stride[axis] != 1)
            return false;
        if (axis >= 0)
            out->offset = qn_dim_add(dims, out->offset, start[axis]);
        return true;
    }
    case QN_OP_ADD:
    case QN_OP_SUB: {
        position x, y;
        if (!read_position(dims, (view){ node->operands[0], v.queries, v.keys }, depth - 1, &x) ||
            !read_position(dims, (view){ node->operands[1], v.queries, v.keys }, depth - 1, &y))
            return false;
        const bool y_moves = y.of_query || y.of_key;
        if (y_moves && (node->op == QN_OP_SUB || x.of_query || x.of_key))
            return false;
        out->of_query = x.of_query || y.of_query;
        out->of_key = x.of_key || y.of_key;
        out->offset = node->op == QN_OP_ADD ? qn_dim_add(dims, x.offset, y.offset)
                                            : qn_dim_sub(dims, x.offset, y.offset);
        return true;
    }
    default: return false;
    }
}

/* ---- conditions ---- */

static sense read_condition(qn_dims *dims, view v, qn_dim shift, int depth);

/* key + a  direction  query + b, shift being T - S */
static sense read_compare(qn_dims *dims, const view *v, qn_dim shift)
{
    static const qn_direction swapped[] = { [QN_EQ] = QN_EQ, [QN_NE] = QN_NE, [QN_LT] = QN_GT,
                                            [QN_LE] = QN_GE, [QN_GT] = QN_LT, [QN_GE] = QN_LE };
    const qn_node *node = v->value->node;
    qn_direction d = qn_attr_compare_direction(node);
    position x, y;
    enum { DEPTH = 6 };
    if (!read_position(dims, (view){ node->operands[0], v->queries, v->keys }, DEPTH, &x) ||
        !read_position(dims, (view){ node->operands[1], v->queries, v->keys }, DEPTH, &y))
        return UNKNOWN;
    if (x.of_query && y.of_key) {
        const position swap = x;
        x = y;
        y = swap;
        d = swapped[d];
    }
    if (!x.of_key || !y.of_query)
        return UNKNOWN;
    const qn_dim beyond = qn_dim_sub(dims, qn_dim_sub(dims, y.offset, x.offset), shift);
    switch (d) { /* key <= query + shift + beyond, and so on */
    case QN_LE: return qn_dim_is(beyond, 0) ? CAUSAL : UNKNOWN;
    case QN_LT: return qn_dim_is(beyond, 1) ? CAUSAL : UNKNOWN;
    case QN_GT: return qn_dim_is(beyond, 0) ? FUTURE : UNKNOWN;
    case QN_GE: return qn_dim_is(beyond, 1) ? FUTURE : UNKNOWN;
    default: return UNKNOWN;
    }
}

/* A value that is one number where a condition holds and another elsewhere. */
typedef struct two_valued {
    const qn_value *condition;
    double yes, no;
} two_valued;

static double as_double(qn_dtype dtype, qn_scalar s)
{
    return qn_dtype_is_float(dtype) ? s.f : (double)s.i;
}

static bool read_two_valued(const qn_value *value, two_valued *out)
{
    const qn_node *node = value->node;
    qn_scalar yes, no;
    if (node && node->op == QN_OP_CONVERT) {
        if (node->operands[0]->type.dtype == QUERN_BOOL) {
            *out = (two_valued){ node->operands[0], 1, 0 };
            return true;
        }
        return qn_dtype_is_float(value->type.dtype) && read_two_valued(node->operands[0], out);
    }
    if (!node || node->op != QN_OP_SELECT || !qn_value_splat(node->operands[1], &yes) ||
        !qn_value_splat(node->operands[2], &no))
        return false;
    *out = (two_valued){ node->operands[0], as_double(value->type.dtype, yes),
                         as_double(value->type.dtype, no) };
    return true;
}

/* number == (two-valued) and the like: the condition, or its opposite */
static sense read_test(qn_dims *dims, const view *v, qn_dim shift, int depth)
{
    const qn_node *node = v->value->node;
    const qn_direction d = qn_attr_compare_direction(node);
    for (int i = 0; i < 2 && (d == QN_EQ || d == QN_NE); i++) {
        const view side = behind_movement((view){ node->operands[i], v->queries, v->keys });
        two_valued two;
        qn_scalar s;
        if (!qn_value_splat(node->operands[1 - i], &s) || !read_two_valued(side.value, &two))
            continue;
        const double number = as_double(side.value->type.dtype, s);
        const bool yes = (two.yes == number) == (d == QN_EQ), no = (two.no == number) == (d == QN_EQ);
        if (yes == no)
            return UNKNOWN;
        const sense inner =
            read_condition(dims, (view){ two.condition, side.queries, side.keys }, shift, depth - 1);
        return yes ? inner : opposite(inner);
    }
    return UNKNOWN;
}

/* Does an element of a constant say "visible" (1) or "hidden" (0)? -1: neither. */
static int constant_says(qn_dtype dtype, const void *element)
{
    const qn_scalar s = qn_scalar_load(dtype, element);
    if (dtype == QUERN_BOOL)
        return s.i != 0;
    return s.f == 0 ? 1 : qn_mask_is_hiding(dtype, s.f) ? 0 : -1;
}

/* A constant condition or additive mask: every element by its position, 1s in front. */
static sense read_constant(const view *v, qn_dim shift)
{
    const qn_tensor *tensor = qn_value_constant(v->value);
    const qn_type *type = &v->value->type;
    if (!tensor || v->queries < 0 || v->keys != v->queries + 1 || v->keys != type->rank - 1 ||
        !qn_dim_is_const(shift) || (type->dtype != QUERN_BOOL && !qn_dtype_is_float(type->dtype)))
        return UNKNOWN;
    for (int i = 0; i < v->queries; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return UNKNOWN;
    const int64_t queries = type->dims[v->queries]->value, keys = type->dims[v->keys]->value;
    const size_t size = qn_dtype_bytes(type->dtype);
    if (queries == 0 || keys == 0)
        return UNKNOWN;
    const char *data = qn_tensor_data(tensor); /* a large one may be folded, and not made yet */
    const bool causal = (constant_says(type->dtype, data) == 1) == (0 <= shift->value);
    for (int64_t s = 0; s < queries; s++)
        for (int64_t t = 0; t < keys; t++)
            if (constant_says(type->dtype, data + (size_t)(s * keys + t) * size) !=
                ((t <= s + shift->value) == causal))
                return UNKNOWN;
    return causal ? CAUSAL : FUTURE;
}

static sense read_condition(qn_dims *dims, view v, qn_dim shift, int depth)
{
    v = behind_movement(v);
    const qn_node *node = v.value->node;
    if (!node || depth == 0)
        return UNKNOWN;
    switch (node->op) {
    case QN_OP_CONSTANT: return v.value->type.dtype == QUERN_BOOL ? read_constant(&v, shift) : UNKNOWN;
    case QN_OP_NOT:
        return opposite(
            read_condition(dims, (view){ node->operands[0], v.queries, v.keys }, shift, depth - 1));
    case QN_OP_COMPARE: {
        const sense s = read_compare(dims, &v, shift);
        return s == UNKNOWN ? read_test(dims, &v, shift, depth) : s;
    }
    case QN_OP_CONVERT: { /* of numbers: != 0 */
        two_valued two;
        if (!read_two_valued(node->operands[0], &two) || (two.yes != 0) == (two.no != 0))
            return UNKNOWN;
        const sense inner =
            read_condition(dims, (view){ two.condition, v.queries, v.keys }, shift, depth - 1);
        return two.yes != 0 ? inner : opposite(inner);
    }
    default: return UNKNOWN;
    }
}

enum { CONDITION_DEPTH = 8 };

static sense condition_of(qn_raiser *s, const qn_value *value, qn_dim queries, qn_dim keys)
{
    qn_dims *dims = qn_b_dims(&s->r.b);
    const int rank = value->type.rank;
    if (rank < 2)
        return UNKNOWN;
    return read_condition(dims, (view){ value, rank - 2, rank - 1 }, qn_dim_sub(dims, keys, queries),
                          CONDITION_DEPTH);
}

/* ---- the parts of a mask ---- */

bool qn_mask_is_hiding(qn_dtype dtype, double number)
{
    /* Beside it, scores of any use vanish: they are below its last bit. */
    return number <= (dtype == QUERN_F16 ? -65504 : -1e30);
}

void qn_mask_add_visible(qn_raiser *s, qn_value *condition, bool negated, qn_dim queries, qn_dim keys,
                         qn_mask_parts *parts)
{
    qn_builder *b = &s->r.b;
    if (qn_value_made_by(condition, QN_OP_NOT)) {
        qn_mask_add_visible(s, condition->node->operands[0], !negated, queries, keys, parts);
        return;
    }
    if (qn_value_made_by(condition, negated ? QN_OP_OR : QN_OP_AND)) {
        for (int i = 0; i < 2; i++)
            qn_mask_add_visible(s, condition->node->operands[i], negated, queries, keys, parts);
        return;
    }
    if (condition_of(s, condition, queries, keys) == (negated ? FUTURE : CAUSAL)) {
        parts->causal = true;
        return;
    }
    qn_value *visible = negated ? qn_b_unary(b, QN_OP_NOT, condition) : condition;
    parts->visible = parts->visible ? qn_b_binary_bcast(b, QN_OP_AND, parts->visible, visible) : visible;
}

void qn_mask_add_additive(qn_raiser *s, qn_value *mask, qn_dim queries, qn_dim keys, qn_mask_parts *parts)
{
    const view v = behind_movement((view){ mask, mask->type.rank - 2, mask->type.rank - 1 });
    qn_dims *dims = qn_b_dims(&s->r.b);
    two_valued two;
    if (mask->type.rank >= 2 && read_two_valued(v.value, &two)) {
        const sense sense = read_condition(dims, (view){ two.condition, v.queries, v.keys },
                                           qn_dim_sub(dims, keys, queries), CONDITION_DEPTH);
        const double visible = sense == CAUSAL ? two.yes : two.no,
                     hidden = sense == CAUSAL ? two.no : two.yes;
        if (sense != UNKNOWN && visible == 0 && qn_mask_is_hiding(mask->type.dtype, hidden)) {
            parts->causal = true;
            return;
        }
    }
    if (mask->type.rank >= 2 && read_constant(&v, qn_dim_sub(dims, keys, queries)) == CAUSAL) {
        parts->causal = true;
        return;
    }
    parts->additive = parts->additive ? qn_b_binary_bcast(&s->r.b, QN_OP_ADD, parts->additive, mask) : mask;
}
