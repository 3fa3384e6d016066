/* Numbers that a model computes and uses as extents: of what Range, Expand, Slice and others give.
 *
 * A number is an element of a small integer tensor. It is followed back through what only moves it and through arithmetic with
 * what is known, to a scalar that the run computes; an op binds a symbol to that (QN_OP_EXTENT), and the extent is an expression in
 * the symbol. Its limit follows from how it is computed (a sum of a mask is at most the mask's length), or is what the user says of
 * the symbol, like of a dimension of an input. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/range.h"

enum { MOST_DEPTH = 8 }; /* of arithmetic with numbers */

/* ---- the same number, computed twice ---- */

static bool one_element(const qn_value *v)
{
    return qn_type_is_static(&v->type) && qn_type_elements(&v->type) == 1;
}

static bool reduces_all(const qn_value *v)
{
    return v->node && v->node->op == QN_OP_REDUCE && one_element(v);
}

/* A value of the same elements in the same order. */
static qn_value *elements_of(const qn_onnx_scope *scope, qn_value *v)
{
    double number;
    for (int steps = 0; steps < QN_ONNX_MOST_STEPS; steps++) {
        v = qn_value_resolve(v);
        const qn_node *node = v->node;
        if (node && node->op == QN_OP_SELECT &&
            qn_value_resolve(node->operands[1]) == qn_value_resolve(node->operands[2]))
            v = node->operands[1];
        else if (node && node->op == QN_OP_MAX && qn_onnx_constant_number(node->operands[1], &number) &&
                 number <= 0 && qn_onnx_range_of(scope, node->operands[0]).least >= 0)
            v = node->operands[0];
        else if (node && node->op == QN_OP_RESHAPE)
            v = node->operands[0];
        else
            return v;
    }
    return v;
}

static bool same(const qn_onnx_scope *scope, const qn_value *a, const qn_value *b, int *budget)
{
    a = qn_value_resolve((qn_value *)(uintptr_t)a);
    b = qn_value_resolve((qn_value *)(uintptr_t)b);
    if (a == b)
        return true;
    const qn_node *x = a->node, *y = b->node;
    if (reduces_all(a) && reduces_all(b) && x->operands[0]->type.dtype == y->operands[0]->type.dtype &&
        qn_attr_int(x, QN_ATTR_KIND) == qn_attr_int(y, QN_ATTR_KIND) && (*budget)-- > 0 &&
        same(scope, elements_of(scope, x->operands[0]), elements_of(scope, y->operands[0]), budget))
        return true;
    if (!x || !y || (*budget)-- <= 0 || x->op != y->op || x->n_operands != y->n_operands ||
        x->n_attrs != y->n_attrs || x->n_regions || x->op == QN_OP_RANDOM_BITS || x->n_operands == 0 ||
        a - x->results != b - y->results || (qn_ops[x->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS)))
        return x && y && x->op == QN_OP_CONSTANT && y->op == QN_OP_CONSTANT &&
               qn_tensor_same_bytes(qn_attr_tensor(x, QN_ATTR_VALUE), qn_attr_tensor(y, QN_ATTR_VALUE)) &&
               qn_type_equal(&a->type, &b->type);
    for (int i = 0; i < x->n_attrs; i++)
        if (!qn_attr_equal(&x->attrs[i], &y->attrs[i]))
            return false;
    for (int i = 0; i < x->n_operands; i++)
        if (!same(scope, x->operands[i], y->operands[i], budget))
            return false;
    return true;
}

/* An element of a value that a symbol was bound to. */
struct qn_onnx_extent {
    const qn_graph *graph;
    qn_value *value;
    int64_t at;
    qn_dim symbol;
    const struct qn_onnx_extent *next;
};

static qn_dim find_bound(const qn_onnx_scope *scope, qn_value *value, int64_t at)
{
    while (scope && value) {
        for (const struct qn_onnx_extent *e = scope->im->extents; e; e = e->next) {
            int budget = QN_ONNX_MOST_STEPS;
            if (e->graph == scope->graph && e->at == at && same(scope, e->value, value, &budget))
                return e->symbol;
        }
        value = value->node ? NULL : qn_onnx_captured_by(scope, value, &scope);
    }
    return NULL;
}

/* ---- following ---- */

/* Is it another value than its last operand only where that is a negative number? */
static bool is_default(const qn_node *select, int64_t at)
{
    const qn_node *p = qn_value_resolve(select->operands[0])->node;
    if (!p || p->op != QN_OP_COMPARE || qn_attr_int(p, QN_ATTR_DIRECTION) != QN_EQ ||
        qn_value_resolve(p->operands[0]) != qn_value_resolve(select->operands[2]))
        return false;
    double number;
    const qn_value *to = qn_value_resolve(p->operands[1]);
    if (to->node && to->node->op == QN_OP_CONSTANT)
        return qn_onnx_number_at(qn_attr_tensor(to->node, QN_ATTR_VALUE), at) < 0;
    return qn_onnx_constant_number(p->operands[1], &number) && number < 0;
}

/* What element `at` of `v` is an element of, past what only moves it. */
static qn_value *source_of(qn_value *v, int64_t *at)
{
    for (int steps = 0; steps < QN_ONNX_MOST_STEPS; steps++) {
        v = qn_value_resolve(v);
        const qn_node *node = v->node;
        if (!node || node->n_operands == 0)
            return v;
        qn_value *x = node->operands[0];
        const int64_t here = *at;
        double index;
        switch (node->op) {
        case QN_OP_RESHAPE: break;
        case QN_OP_REDUCE: /* of one number, whatever it does */
            if (!one_element(x) || x->type.dtype != v->type.dtype)
                return v;
            *at = 0;
            break;
        case QN_OP_CONVERT:
            x = qn_value_resolve(x);
            if (qn_dtype_is_float(x->type.dtype) && x->node && x->node->op == QN_OP_CONVERT)
                x = x->node->operands[0]; /* of an integer, as is Range of floats up to an extent */
            if (!qn_dtype_is_int(x->type.dtype) || qn_dtype_bytes(x->type.dtype) < 4)
                return v;
            break;
        case QN_OP_BROADCAST:
            if (!one_element(x))
                return v;
            *at = 0;
            break;
        case QN_OP_SLICE:
            if (v->type.rank != 1 || !qn_dim_is_const(qn_attr_dims(node, QN_ATTR_START, NULL)[0]))
                return v;
            *at = qn_attr_dims(node, QN_ATTR_START, NULL)[0]->value +
                  *at * qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[0];
            break;
        case QN_OP_GATHER:
            if (x->type.rank != 1 || !one_element(node->operands[1]) ||
                !qn_onnx_constant_number(node->operands[1], &index) || !qn_dim_is_const(x->type.dims[0]) ||
                fabs(index) > QN_DIM_MAX_VALUE)
                return v;
            *at = (int64_t)index + (index < 0 ? x->type.dims[0]->value : 0);
            break;
        case QN_OP_SELECT: /* where(x == -1, y, x), as shapes to expand to are made: of an extent it is x */
            if (!is_default(node, *at))
                return v;
            x = node->operands[2];
            break;
        case QN_OP_CONCATENATE: {
            int part = 0;
            if (v->type.rank != 1 || !qn_type_is_static(&v->type) || *at >= qn_type_elements(&v->type))
                return v;
            while (*at >= node->operands[part]->type.dims[0]->value)
                *at -= node->operands[part++]->type.dims[0]->value;
            x = node->operands[part];
            break;
        }
        default: return v;
        }
        if (*at < 0 || (qn_type_is_static(&x->type) && *at >= qn_type_elements(&x->type))) {
            *at = here; /* there is no such element */
            return v;
        }
        v = x;
    }
    return v;
}

static const char *word_of(qn_op op)
{
    switch (op) {
    case QN_OP_ADD: return "Add";
    case QN_OP_SUB: return "Sub";
    case QN_OP_MUL: return "Mul";
    case QN_OP_DIV: return "Div";
    case QN_OP_MIN: return "Min";
    case QN_OP_MAX: return "Max";
    default: return NULL;
    }
}

/* The element as an expression in what is known and bound by now; NULL: it is none. */
static qn_dim follow(qn_onnx_node *n, qn_value *v, int64_t at, int *budget)
{
    v = source_of(v, &at);
    const qn_node *node = v->node;
    if ((*budget)-- <= 0)
        return NULL;
    const qn_dim bound = find_bound(n->scope, v, at);
    if (bound || !node)
        return bound;
    if (node->op == QN_OP_CONSTANT && qn_dtype_is_int(v->type.dtype)) {
        const uint8_t *data = qn_tensor_data(qn_attr_tensor(node, QN_ATTR_VALUE));
        return qn_dim_const(
            n->im->dims, qn_scalar_load(v->type.dtype, data + (size_t)at * qn_dtype_bytes(v->type.dtype)).i);
    }
    if (node->op == QN_OP_DIM_VALUE)
        return qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0];
    if (!word_of(node->op) || !qn_dtype_is_int(v->type.dtype))
        return NULL;
    const qn_dim x = follow(n, node->operands[0], at, budget);
    const qn_dim y = x ? follow(n, node->operands[1], at, budget) : NULL;
    return y ? qn_onnx_fold_dim(n->im->dims, word_of(node->op), x, y) : NULL;
}

/* ---- binding ---- */

/* What the user says of it, and what operators want of it. */
static void apply_options(qn_onnx_import *im, const char *name, int64_t *min, int64_t *max, bool *out_given)
{
    for (int i = 0; i < im->options->n_dims; i++)
        if (!strcmp(im->options->dims[i].name, name)) {
            im->met[i] = *out_given = true;
            *min = im->options->dims[i].min > *min ? im->options->dims[i].min : *min;
            *max = im->options->dims[i].max < *max ? im->options->dims[i].max : *max;
        }
    for (const qn_onnx_limit *l = im->limits; l; l = l->next)
        if (!strcmp(l->name, name)) {
            *min = l->least > *min ? l->least : *min;
            *max = l->most < *max ? l->most : *max;
        }
}

/* Is there a value that the dimension may have? False after a report. */
static bool is_range(qn_onnx_node *n, const char *name, int64_t min, int64_t max)
{
    if (min > max)
        qn_onnx_unsupported(n, "dimension %s is at most %lld here, and would have to be %lld", name,
                            (long long)max, (long long)min);
    return min <= max;
}

static const char *fresh(const qn_onnx_import *im, const char *stem)
{
    const char *name = stem;
    for (int i = 1; qn_dim_find_symbol(im->dims, name); i++)
        name = qn_arena_printf(im->arena, "%s_%d", stem, i);
    return name;
}

/* That the next length has: one that no dimension has, or that of a body which is imported again. */
static const char *next_name(const qn_onnx_import *im)
{
    return (size_t)im->n_lengths < im->lengths.n ? im->lengths.items[im->n_lengths] : fresh(im, "length");
}

static void take_name(qn_onnx_import *im, const char *name)
{
    if ((size_t)im->n_lengths++ == im->lengths.n)
        qn_vec_push(im->arena, &im->lengths, name);
}

/* The symbol that the larger one of 0 and the element was bound to: where the element is an extent itself, it is that. */
static qn_dim bound_from_zero(qn_onnx_node *n, qn_value *v, int64_t at)
{
    qn_builder *b = &n->b;
    for (const struct qn_onnx_extent *e = n->im->extents; e; e = e->next) {
        int64_t where = e->at;
        int budget = QN_ONNX_MOST_STEPS;
        double zero;
        const qn_node *node = e->value->node;
        if (e->graph != b->graph || !node || node->op != QN_OP_MAX || !one_element(e->value) ||
            !qn_onnx_constant_number(node->operands[1], &zero) || zero != 0)
            continue;
        qn_value *x = source_of(node->operands[0], &where);
        if (where != at || !same(n->scope, x, v, &budget))
            continue;
        qn_value *least = qn_b_reshape(b, node->operands[0], 0, NULL);
        if (!qn_onnx_require(n, qn_b_compare_bcast(b, QN_GE, least, qn_b_scalar_int(b, least->type.dtype, 0)),
                             "a length must not be negative"))
            return NULL;
        return e->symbol;
    }
    return NULL;
}

/* A symbol for the element, which is at most `limit` (NULL: as far as is known), for want of the contents of `wanted`. NULL after a
 * report: nothing says how large it is. */
static qn_dim bind(qn_onnx_node *n, const qn_onnx_value *wanted, qn_value *v, int64_t at, qn_dim limit)
{
    qn_onnx_import *im = n->im;
    qn_builder *b = &n->b;
    const qn_onnx_range r = qn_onnx_range_of(n->scope, v);
    const char *name = next_name(im);
    int64_t min = r.least > 0 ? r.least : 0, max = QN_DIM_MAX_VALUE;
    bool given = false;
    apply_options(im, name, &min, &max, &given);
    take_name(im, name);
    limit = r.most ? r.most : limit;
    if (!limit && given)
        limit = qn_dim_const(im->dims, max);
    if (!limit) {
        qn_dim_symbol(im->dims, name, 0, QN_DIM_MAX_VALUE); /* the next message is about another one */
        if (wanted)
            qn_onnx_misses(n, wanted);
        qn_onnx_unsupported(
            n,
            "it gives as many elements as a number says that the model computes, and nothing bounds "
            "it: give its largest value as that of dimension %s (--dim %s=0..1000)",
            name, name);
        return NULL;
    }
    max = limit->max < max ? limit->max : max;
    if (!is_range(n, name, min, max))
        return NULL;
    const qn_dim symbol = qn_dim_symbol(im->dims, name, min, max);
    if (symbol->min > min || symbol->max < max) /* imported again, with other bounds */
        return bind(n, wanted, v, at, limit);
    qn_dim_set_range(im->dims, symbol, min, max);
    const int64_t elements = qn_type_elements(&v->type);
    qn_dim flat = qn_dim_const(im->dims, elements);
    qn_value *x = elements == 1 ? v
                                : qn_b_slice_axis(b, qn_b_reshape(b, v, 1, &flat), 0,
                                                  qn_dim_const(im->dims, at), qn_dim_const(im->dims, at + 1));
    x = qn_b_convert(b, QUERN_I64, qn_b_reshape(b, x, 0, NULL));
    if (!qn_b_extent(b, x, limit, symbol))
        return NULL;
    struct qn_onnx_extent *e = QN_NEW(im->arena, struct qn_onnx_extent);
    *e = (struct qn_onnx_extent){ b->graph, v, at, symbol, im->extents };
    im->extents = e;
    return symbol;
}

/* Binds what the element is computed from, where that is bounded and leaves an expression that is never negative: so that 2 n + 1 and
 * n have one symbol. */
static void bind_inside(qn_onnx_node *n, qn_value *v, int64_t at, int depth)
{
    v = source_of(v, &at);
    const qn_node *node = v->node;
    int budget = QN_ONNX_MOST_STEPS;
    if (depth == 0 || !node || !word_of(node->op) || !one_element(v) || !qn_dtype_is_int(v->type.dtype))
        return;
    for (int i = 0; i < 2; i++) {
        int64_t where = 0;
        qn_value *x = source_of(node->operands[i], &where);
        if (follow(n, x, where, &budget))
            continue;
        bind_inside(n, x, where, depth - 1);
        const qn_onnx_range r = qn_onnx_range_of(n->scope, x);
        budget = QN_ONNX_MOST_STEPS;
        if (!follow(n, x, where, &budget) && r.most && r.least >= 0 && x->node && !word_of(x->node->op) &&
            one_element(x))
            bind(n, NULL, x, where, NULL);
    }
}

static qn_dim extent_at(qn_onnx_node *n, const qn_onnx_value *wanted, qn_value *v, int64_t at, qn_dim limit)
{
    int budget = QN_ONNX_MOST_STEPS;
    qn_dim d = follow(n, v, at, &budget);
    if (!d) {
        bind_inside(n, v, at, MOST_DEPTH);
        budget = QN_ONNX_MOST_STEPS;
        d = follow(n, v, at, &budget);
    }
    if (d && (qn_dim_is_const(d) || d->min >= 0))
        return d;
    v = source_of(v, &at);
    d = bound_from_zero(n, v, at);
    return d ? d : bind(n, wanted, v, at, limit);
}

qn_dim qn_onnx_extent(qn_onnx_node *n, qn_value *number, qn_dim limit)
{
    return number ? extent_at(n, NULL, number, 0, limit) : NULL;
}

qn_dim qn_onnx_named_extent(qn_onnx_node *n, qn_value *number, const char *name, int64_t usual)
{
    int64_t min = 0, max = QN_DIM_MAX_VALUE;
    bool given = false;
    if (!number)
        return NULL;
    name = fresh(n->im, name);
    apply_options(n->im, name, &min, &max, &given);
    max = given ? max : usual;
    if (!is_range(n, name, min, max))
        return NULL;
    const qn_dim symbol = qn_dim_symbol(n->im->dims, name, min, max);
    return qn_b_extent(&n->b, number, qn_dim_const(n->im->dims, max), symbol) ? symbol : NULL;
}

qn_dim qn_onnx_known_extent(qn_onnx_node *n, qn_value *number)
{
    int64_t at = 0;
    int budget = QN_ONNX_MOST_STEPS;
    bind_inside(n, number, 0, MOST_DEPTH);
    const qn_dim d = follow(n, number, 0, &budget);
    if (d)
        return d;
    number = source_of(number, &at);
    if (!qn_dtype_is_int(number->type.dtype))
        return NULL;
    const qn_onnx_range r = qn_onnx_range_of(n->scope, number);
    return r.least >= 0 && r.most ? bind(n, NULL, number, at, NULL) : NULL;
}

bool qn_onnx_never_negative(qn_onnx_node *n, qn_value *number)
{
    int64_t at = 0;
    int budget = QN_ONNX_MOST_STEPS;
    const qn_dim d = follow(n, number, 0, &budget);
    number = source_of(number, &at);
    return d ? d->min >= 0
             : qn_dtype_is_int(number->type.dtype) && qn_onnx_range_of(n->scope, number).least >= 0;
}

bool qn_onnx_is_input(const qn_onnx_node *n, int i)
{
    const qn_onnx_value *v = qn_onnx_in_any(n, i);
    if (v->kind != QN_ONNX_TENSOR || !v->value || !qn_type_is_static(&v->type))
        return false;
    for (int k = 0; k < n->im->options->n_dims; k++)
        if (!strcmp(n->im->options->dims[k].name, next_name(n->im)))
            return false;
    const int64_t count = qn_type_elements(&v->type);
    for (int64_t k = 0; k < count && k < QN_ONNX_CONTENTS_MAX; k++) {
        int64_t at = k;
        const qn_value *source = source_of(v->value, &at);
        if (!source->node && source->name)
            return true;
    }
    return false;
}

bool qn_onnx_compute_dims(qn_onnx_node *n, int i, qn_dim limit)
{
    qn_onnx_value *v = n->in[i];
    if (v->kind != QN_ONNX_TENSOR || v->strings || v->type.rank > 1 || !qn_type_is_static(&v->type) ||
        qn_type_elements(&v->type) > QN_ONNX_CONTENTS_MAX ||
        (v->type.dtype != QUERN_I64 && v->type.dtype != QUERN_I32) || qn_onnx_is_input(n, i))
        return false;
    qn_value *x = qn_onnx_value_make(&n->b, v);
    const int64_t count = x ? qn_type_elements(&v->type) : -1;
    if (!x)
        return false;
    qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, count);
    for (int64_t k = 0; k < count; k++)
        if (!(dims[k] = extent_at(n, v, x, k, limit)))
            return false;
    v->dims = dims;
    return true;
}

/* ---- outputs ---- */

/* Is it less where something is more that the run finds? Then nobody knows before how much memory it takes. */
static bool falls(qn_dims *dims, qn_dim d, const qn_dim *most, int n)
{
    return !qn_dim_at_most(dims, qn_dim_most(dims, d, most, n), qn_dim_substitute(dims, d, most, n));
}

qn_value *qn_onnx_settle(qn_onnx_import *im, qn_onnx_scope *scope, qn_value *x)
{
    const int n_symbols = qn_dims_symbol_count(im->dims);
    qn_onnx_node n = {
        .im = im,
        .scope = scope,
        .b = { .graph = scope->graph, .diags = im->diags, .loc = { .file = im->file } },
        .n_errors = im->diags->n_errors,
    };
    qn_dim *most = QN_NEW_ARRAY(im->arena, qn_dim, n_symbols), dims[QN_MAX_RANK];
    QN_FOR_NODES (scope->graph, node)
        if (qn_node_binds(node))
            most[qn_node_binds(node)->symbol] = qn_dim_const(im->dims, qn_node_binds(node)->max);
    for (int i = 0; i < x->type.rank; i++) {
        dims[i] = x->type.dims[i];
        if (falls(im->dims, dims[i], most, n_symbols))
            dims[i] = bind(&n, NULL, qn_b_dim_value(&n.b, QUERN_I64, dims[i]), 0, dims[i]);
        if (!dims[i])
            return NULL;
    }
    return qn_b_reshape(&n.b, x, x->type.rank, dims);
}
