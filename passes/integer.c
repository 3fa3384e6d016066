/* Multiplies bytes where a model multiplies the numbers that they stand for.
 *
 * Before: quantize and dequantize around products and convolutions, as quantized models have them; convolutions of whole numbers,
 * the differences of bytes and zero points. After: on a CPU, products of u8 and i8 with sums of 32 bits, from which zero points are
 * taken out afterwards:
 *
 *   sum (x - zx)(w - zw) = sum x w - zx sum w - zw sum x + K zx zw                     sums of weights are constants
 *
 *   %1 = dequantize %x, 0.1, 3 : f32[8, 64];  %2 = dequantize %w, %s, 0 {axis = 1} : f32[64, 32]
 *   %3 = dot_general %1, %2
 *   %4 = quantize %3, 0.2, 0 : u8[8, 32]
 *   ->
 *   %1 = dot_general %x, %w {dtype = i32};  %2 = sub %1, 3 * (sums of the columns of %w)
 *   %3 = mul (convert %2 : f32), 0.1 * %s / 0.2
 *   %4 = quantize %3, 1, 0 : u8[8, 32]
 *
 * What only moves numbers moves their bytes. x is made u8 (or i8, where the machine multiplies bytes of one kind) and w i8,
 * which instructions want: where the other kind is stored, numbers and zero points differ by 128. A border of a convolution is
 * one of zero points.
 *
 * Sums become exact, and the scale of a result is part of the factors before it, so it rounds differently: strict math has
 * whole numbers alone. */
#include <math.h>
#include <string.h>

#include "passes/integer.h"
#include "passes/simplify.h"

static bool is_byte(const qn_value *v)
{
    return v->type.dtype == QUERN_I8 || v->type.dtype == QUERN_U8;
}

bool qn_integer_is_whole(const qn_value *v, int64_t *out)
{
    qn_scalar s;
    while (v->node && (v->node->op == QN_OP_BROADCAST || v->node->op == QN_OP_RESHAPE ||
                       (v->node->op == QN_OP_CONVERT && is_byte(v->node->operands[0]))))
        v = v->node->operands[0];
    const bool known = qn_dtype_is_int(v->type.dtype) && qn_value_splat(v, &s);
    *out = known ? s.i : 0;
    return known;
}

static bool is_number(const qn_value *v, int64_t number)
{
    int64_t found;
    return qn_integer_is_whole(v, &found) && found == number;
}

bool qn_integer_is_zero(const qn_value *zero)
{
    return is_number(zero, 0);
}

/* v + by as i32; a constant stays one. */
static qn_value *shifted(qn_builder *b, qn_value *v, int64_t by)
{
    int64_t number;
    if (!qn_integer_is_whole(v, &number)) {
        v = qn_b_convert(b, QUERN_I32, v);
        return by ? qn_b_binary_bcast(b, QN_OP_ADD, v, qn_b_scalar_int(b, QUERN_I32, by)) : v;
    }
    qn_value *sum = qn_b_scalar_int(b, QUERN_I32, number + by);
    return v->type.rank ? qn_b_broadcast(b, sum, v->type.rank, v->type.dims, NULL) : sum;
}

/* ---- what a value stands for ---- */

static bool read_dequantize(qn_builder *b, const qn_node *node, qn_integer *q)
{
    if (!is_byte(node->operands[0]) || node->results[0].type.dtype != QUERN_F32 ||
        qn_attr_find(node, QN_ATTR_BLOCK))
        return false;
    *q = (qn_integer){ .bytes = node->operands[0],
                       .scale = node->operands[1],
                       .zero = shifted(b, node->operands[2], 0),
                       .axis = (int)qn_attr_int_or(node, QN_ATTR_AXIS, -1) };
    return true;
}

/* A zero point that is repeated: a scalar, or one for each index of an axis. */
static bool read_zero(qn_builder *b, qn_value *value, qn_integer *q)
{
    const qn_node *node = qn_value_made_by(value, QN_OP_BROADCAST);
    if (!node)
        return false;
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    int which = -1;
    for (int i = 0; i < x->type.rank; i++) {
        if (qn_dim_is(x->type.dims[i], 1))
            continue;
        if (which >= 0 || x->type.dims[i] != value->type.dims[axes[i]])
            return false;
        which = i;
    }
    q->axis = which < 0 ? -1 : (int)axes[which];
    q->zero = which < 0 ? qn_b_reshape(b, x, 0, NULL) : qn_b_reshape(b, x, 1, &x->type.dims[which]);
    return true;
}

/* A byte as a whole number, or less a zero point. */
static bool read_difference(qn_builder *b, qn_value *value, qn_integer *q)
{
    const qn_node *sub = qn_value_made_by(value, QN_OP_SUB);
    const qn_node *convert = qn_value_made_by(sub ? sub->operands[0] : value, QN_OP_CONVERT);
    if (!convert || value->type.dtype != QUERN_I32 || !is_byte(convert->operands[0]))
        return false;
    *q = (qn_integer){ .bytes = convert->operands[0], .zero = qn_b_scalar_int(b, QUERN_I32, 0), .axis = -1 };
    return !sub || read_zero(b, sub->operands[1], q);
}

static bool read_value(qn_builder *b, qn_value *value, qn_integer *q)
{
    const qn_node *node = qn_value_made_by(value, QN_OP_DEQUANTIZE);
    return node ? read_dequantize(b, node, q) : read_difference(b, value, q);
}

qn_dtype qn_integer_x_dtype(const qn_machine *machine)
{
    return machine->dot4_signs == QN_SIGNS_SAME ? QUERN_I8 : QUERN_U8;
}

void qn_integer_make(qn_builder *b, qn_integer *q, qn_dtype dtype)
{
    if (q->bytes->type.dtype == dtype)
        return;
    q->bytes = qn_flip_bytes(b, q->bytes);
    q->zero = shifted(b, q->zero, dtype == QUERN_U8 ? 128 : -128);
}

/* ---- zero points and scales of a result ---- */

/* Repeated over the result of that type; axes: where each of the value's axes is in it. */
static qn_value *over(qn_builder *b, qn_value *v, const qn_type *type, const int64_t *axes)
{
    return v ? qn_b_broadcast(b, v, type->rank, type->dims, axes) : NULL;
}

static qn_value *multiply(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, QN_OP_MUL, x, y);
}

qn_value *qn_integer_result(qn_builder *b, const qn_integer_sums *s, const qn_integer *x, const qn_integer *w,
                            int64_t w_axis)
{
    const qn_type *type = &s->product->type;
    qn_value *y = s->product;
    if (s->of_w) {
        qn_value *of_w = s->of_w;
        if (s->of_x) /* sums of (w - zw), which has zw's axis last or none */
            of_w = qn_b_binary_bcast(b, QN_OP_SUB, of_w, multiply(b, s->depth, w->zero));
        y = qn_b_binary(b, QN_OP_SUB, y, over(b, multiply(b, of_w, x->zero), type, s->w_axes));
    }
    if (s->of_x)
        y = qn_b_binary(
            b, QN_OP_SUB, y,
            qn_b_binary(b, QN_OP_MUL, over(b, s->of_x, type, s->x_axes), over(b, w->zero, type, &w_axis)));
    if (!x->scale || !y)
        return y;
    qn_value *scale = multiply(b, x->scale, w->scale);
    return qn_b_binary(b, QN_OP_MUL, qn_b_convert(b, QUERN_F32, y), over(b, scale, type, &w_axis));
}

qn_value *qn_integer_sum(qn_builder *b, qn_value *x, int n, const int64_t *axes, bool keep)
{
    return qn_b_reduce(b, QN_SUM, qn_b_convert(b, QUERN_I32, x), n, axes, keep);
}

/* ---- products ---- */

/* The sums along what is contracted of one side of a product; out_axes: where theirs are in the result. */
static qn_value *side_sums(qn_builder *b, qn_value *v, const qn_dot_side *side, int first_free,
                           int64_t *out_axes)
{
    int64_t to[QN_MAX_RANK];
    for (int axis = 0; axis < v->type.rank; axis++)
        to[axis] = -1;
    for (int i = 0; i < side->n_batch; i++)
        to[side->batch[i]] = i;
    for (int i = 0; i < side->n_free; i++)
        to[side->free[i]] = first_free + i;
    for (int axis = 0; axis < v->type.rank; axis++)
        if (to[axis] >= 0)
            *out_axes++ = to[axis];
    return qn_integer_sum(b, v, side->n_contract, side->contract, false);
}

/* Is it the last of the free axes, with no batch axis behind it? Then it is the result's last, too. */
static bool is_last(const qn_dot_side *side, int axis)
{
    for (int i = 0; i < side->n_batch; i++)
        if (side->batch[i] > axis)
            return false;
    return side->n_free > 0 && side->free[side->n_free - 1] == axis;
}

static qn_value *product(qn_builder *b, const qn_node *node, qn_integer *x, qn_integer *w,
                         const qn_machine *machine)
{
    const qn_dot dot = qn_dot_of(node);
    const qn_dot_side xs = qn_dot_side_of(node, 0), ws = qn_dot_side_of(node, 1);
    if (x->axis >= 0 || (w->axis >= 0 && !is_last(&ws, w->axis)))
        return NULL;
    const int64_t w_axis = node->results[0].type.rank - 1;
    qn_integer_make(b, x, qn_integer_x_dtype(machine));
    qn_integer_make(b, w, QUERN_I8);
    qn_integer_sums s = { .product = qn_b_dot_general(b, x->bytes, w->bytes, &dot, QUERN_I32) };
    if (!s.product)
        return NULL;
    qn_dim depth = qn_dim_const(qn_b_dims(b), 1);
    for (int i = 0; i < xs.n_contract; i++)
        depth = qn_dim_mul(qn_b_dims(b), depth, x->bytes->type.dims[xs.contract[i]]);
    s.depth = qn_b_dim_value(b, QUERN_I32, depth);
    if (!qn_integer_is_zero(x->zero))
        s.of_w = side_sums(b, w->bytes, &ws, xs.n_batch + xs.n_free, s.w_axes);
    if (!qn_integer_is_zero(w->zero))
        s.of_x = side_sums(b, x->bytes, &xs, xs.n_batch, s.x_axes);
    return qn_integer_result(b, &s, x, w, w_axis);
}

static qn_value *contraction(qn_builder *b, const qn_node *node, const qn_pass_options *options)
{
    qn_integer x, w;
    if (!read_value(b, node->operands[0], &x) || !read_value(b, node->operands[1], &w) ||
        !x.scale != !w.scale || (x.scale && options->math == QN_MATH_STRICT))
        return NULL;
    return node->op == QN_OP_DOT_GENERAL ? product(b, node, &x, &w, options->machine)
                                         : qn_integer_convolution(b, node, &x, &w, options->machine);
}

/* ---- bytes that are moved ---- */

/* The same scale and zero point? */
static bool same(const qn_value *x, const qn_value *y)
{
    qn_scalar a, b;
    if (x == y)
        return true;
    if (!qn_value_splat(x, &a) || !qn_value_splat(y, &b) || x->type.rank != y->type.rank)
        return false;
    return qn_dtype_is_float(x->type.dtype) ? a.f == b.f : a.i == b.i;
}

/* A finite number, so large that nothing is lost by it. */
static bool is_scale(const qn_value *value, double *out)
{
    qn_scalar s;
    const bool good = qn_value_splat(value, &s) && s.f >= 1e-30 && s.f <= 1e30;
    *out = good ? s.f : 1;
    return good;
}

static qn_value *requantize(qn_builder *b, const qn_node *node, const qn_machine *machine)
{
    const qn_node *x = qn_value_made_by(node->operands[0], QN_OP_DEQUANTIZE);
    double scale;
    const bool back = x && x->n_attrs == 0 && node->results[0].type.dtype == x->operands[0]->type.dtype &&
                      same(x->operands[1], node->operands[1]) && same(x->operands[2], node->operands[2]) &&
                      is_scale(x->operands[1], &scale) && is_byte(&node->results[0]);
    if (back)
        return x->operands[0];
    if (node->results[0].type.dtype != QUERN_I8 || qn_integer_x_dtype(machine) == QUERN_I8 ||
        qn_attr_find(node, QN_ATTR_AXIS))
        return NULL;
    int64_t number;
    qn_value *zero = node->operands[2];
    zero = qn_integer_is_whole(zero, &number) ? qn_b_scalar_int(b, QUERN_U8, number + 128)
                                              : qn_flip_bytes(b, zero);
    qn_value *y = qn_b_quantize(b, node->operands[0], node->operands[1], zero, -1, 0);
    const qn_node *made = y ? y->node : NULL;
    qn_value *same_bytes = made ? requantize(b, made, machine) : NULL;
    return qn_flip_bytes(b, same_bytes ? same_bytes : y);
}

/* Of bytes whose kind was changed, as they were before. */
static qn_value *unflipped(const qn_value *v)
{
    const qn_node *node = qn_value_made_by(v, QN_OP_BITCAST),
                  *flip = node ? qn_value_made_by(node->operands[0], QN_OP_XOR) : NULL;
    return flip && is_byte(v) && is_number(flip->operands[1], v->type.dtype == QUERN_I8 ? 128 : -128)
               ? flip->operands[0]
               : NULL;
}

static qn_value *dequantize(qn_builder *b, const qn_node *node)
{
    qn_value *x = unflipped(node->operands[0]), *zero = node->operands[2];
    int64_t number;
    if (!x || qn_attr_find(node, QN_ATTR_AXIS) || !qn_integer_is_whole(zero, &number))
        return NULL;
    zero = qn_b_scalar_int(b, x->type.dtype, number + (x->type.dtype == QUERN_U8 ? 128 : -128));
    return qn_b_dequantize(b, x, node->operands[1], zero, -1, 0);
}

/* Does the node's result hold elements of its first operand, and no others? The largest of numbers have the largest of bytes. */
static bool moves(const qn_node *node, const qn_node *of)
{
    double scale;
    switch (node->op) {
    case QN_OP_GATHER:
    case QN_OP_TRANSPOSE: return true;
    case QN_OP_RESHAPE:
    case QN_OP_SLICE:
    case QN_OP_REVERSE:
    case QN_OP_BROADCAST: return !qn_is_constant(of->operands[0]);
    case QN_OP_REDUCE_WINDOW:
        return qn_attr_reduce_kind(node) == QN_KIND_MAX && is_scale(of->operands[1], &scale);
    default: return false;
    }
}

static qn_value *moved(qn_builder *b, const qn_node *node)
{
    const qn_node *of = node->n_operands ? qn_value_made_by(node->operands[0], QN_OP_DEQUANTIZE) : NULL;
    if (!of || !is_byte(of->operands[0]) || qn_attr_find(of, QN_ATTR_BLOCK) || !moves(node, of))
        return NULL;
    int axis = (int)qn_attr_int_or(of, QN_ATTR_AXIS, -1);
    if (axis >= 0 && node->op != QN_OP_TRANSPOSE)
        return NULL;
    if (axis >= 0) {
        const int64_t *perm = qn_attr_ints(node, QN_ATTR_PERM, NULL);
        int at = 0;
        while (perm[at] != axis)
            at++;
        axis = at;
    }
    qn_value **operands = QN_NEW_ARRAY(b->graph->module->arena, qn_value *, node->n_operands);
    memcpy(operands, node->operands, (size_t)node->n_operands * sizeof(qn_value *));
    operands[0] = of->operands[0];
    qn_node *made = qn_node_new(b->graph, b->before, node->op, node->n_operands, operands, node->n_attrs,
                                node->attrs, 0, NULL, &node->loc, b->diags);
    return made ? qn_b_dequantize(b, &made->results[0], of->operands[1], of->operands[2], axis, 0) : NULL;
}

static qn_value *replacement(qn_builder *b, const qn_node *node, const qn_pass_options *options)
{
    switch (node->op) {
    case QN_OP_DOT_GENERAL:
    case QN_OP_CONVOLUTION: return contraction(b, node, options);
    case QN_OP_QUANTIZE: return requantize(b, node, options->machine);
    case QN_OP_DEQUANTIZE: return dequantize(b, node);
    default: return moved(b, node);
    }
}

/* ---- scales of results ---- */

typedef struct divider {
    qn_builder *b;
    const int *uses; /* by id of the values before */
    double by;
} divider;

static qn_value *divided(const divider *d, qn_value *v, int depth);

/* A constant; where it is repeated, what is. */
static qn_value *divided_constant(const divider *d, qn_value *v)
{
    const qn_node *node = qn_value_made_by(v, QN_OP_BROADCAST);
    if (node)
        return qn_b_broadcast(d->b, divided_constant(d, node->operands[0]), v->type.rank, v->type.dims,
                              qn_attr_ints(node, QN_ATTR_AXES, NULL));
    return qn_b_binary_bcast(d->b, QN_OP_DIV, v, qn_b_scalar(d->b, QUERN_F32, d->by));
}

static qn_value *divided_pair(const divider *d, const qn_node *node, int depth)
{
    qn_value *x = node->operands[0], *y = node->operands[1];
    if (node->op == QN_OP_MUL) {
        if (qn_is_constant(x))
            return qn_b_binary(d->b, QN_OP_MUL, divided_constant(d, x), y);
        return qn_is_constant(y) ? qn_b_binary(d->b, QN_OP_MUL, x, divided_constant(d, y)) : NULL;
    }
    x = divided(d, x, depth);
    y = x ? divided(d, y, depth) : NULL;
    return y ? qn_b_binary(d->b, node->op, x, y) : NULL;
}

/* v / by, where that takes no more operations than v; NULL: it does. */
static qn_value *divided(const divider *d, qn_value *v, int depth)
{
    enum { DEEPEST = 6 };
    const qn_node *node = v->node;
    if (!node || depth > DEEPEST)
        return NULL;
    if (qn_is_constant(v))
        return divided_constant(d, v);
    switch (node->op) {
    case QN_OP_DEQUANTIZE:
        return qn_attr_find(node, QN_ATTR_BLOCK)
                   ? NULL
                   : qn_b_dequantize(d->b, node->operands[0], divided_constant(d, node->operands[1]),
                                     node->operands[2], (int)qn_attr_int_or(node, QN_ATTR_AXIS, -1), 0);
    case QN_OP_MUL:
    case QN_OP_ADD:
    case QN_OP_SUB:
    case QN_OP_MAX:
    case QN_OP_MIN: return d->uses[v->id] == 1 ? divided_pair(d, node, depth + 1) : NULL;
    default: return NULL;
    }
}

static bool divide_scales(qn_graph *graph, qn_diags *diags)
{
    bool changed = false;
    qn_arena *scratch = qn_arena_new();
    divider d = { .uses = qn_graph_count_uses(graph, scratch) };
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        double scale;
        if (node->op != QN_OP_QUANTIZE || node->operands[0]->type.dtype != QUERN_F32 ||
            qn_attr_find(node, QN_ATTR_AXIS) || !is_scale(node->operands[1], &scale) || scale == 1)
            continue;
        qn_node *const before = node->prev;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        d.b = &b;
        d.by = scale;
        qn_value *x = divided(&d, node->operands[0], 0);
        qn_value *y =
            x ? qn_b_quantize(&b, x, qn_b_scalar(&b, QUERN_F32, 1), node->operands[2], -1, 0) : NULL;
        if (y) {
            qn_value_replace(&node->results[0], y);
            qn_node_remove(node);
            qn_graph_resolve(graph);
            changed = true;
        }
        while (!y && node->prev != before)
            qn_node_remove(node->prev);
    }
    qn_arena_free(scratch);
    return changed;
}

/* ---- the pass ---- */

static bool integer_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    const int errors = diags->n_errors;
    bool changed = false;
    for (qn_node *node = graph->first, *next; node && diags->n_errors == errors; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            changed |= integer_graph(node->regions[i], options, diags);
        qn_node_resolve(node);
        qn_node *const before = node->prev;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *made = node->n_results == 1 ? replacement(&b, node, options) : NULL;
        if (made) {
            qn_value_replace(&node->results[0], made);
            qn_node_remove(node);
            changed = true;
        }
        while (!made && node->prev != before)
            qn_node_remove(node->prev);
    }
    qn_graph_resolve(graph);
    if (changed)
        qn_graph_remove_dead(graph);
    if (changed && options->math != QN_MATH_STRICT)
        divide_scales(graph, diags);
    if (changed)
        qn_graph_remove_dead(graph);
    return changed;
}

qn_status qn_pass_integer(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    const int errors = diags->n_errors;
    *out_changed = false;
    if (!options->machine || options->machine->gpu)
        return QUERN_OK;
    *out_changed = integer_graph(graph, options, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
