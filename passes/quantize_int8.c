/* Products of bytes under precision int8: what quantize makes of a product of float32 whose right side is constant.
 *
 * Weights get a scale for each column, known at compile time; what they are multiplied by gets one for each row when it is known:
 * the largest magnitude becomes 127. Products of bytes are summed exactly, in 32 bits, and scaled back.
 *
 *   %r = dot_general %x: f32[128, 768], %w: f32[768, 3072]
 *   ->
 *   %m = reduce (abs %x) {axes = [1], kind = max} : f32[128];   %n = reduce (abs %w) {axes = [0], kind = max} : f32[3072]
 *   %x' = convert (round (mul %x, 127 / %m)) : i8[128, 768];    %w' = convert (round (mul %w, 127 / %n)) : i8[768, 3072]
 *   %p = dot_general %x', %w' {dtype = i32} : i32[128, 3072]
 *   %r = mul (mul (convert %p : f32), %m / 127), %n / 127
 *
 * A row of zeros has 127 / 0, and 0 times that is NaN, which convert makes 0. A row with NaN or infinity becomes NaN.
 *
 * Convolutions likewise, with one scale for each sample of x and one for each output channel. Their kernel wants x unsigned: with
 * a zero point of 128, or, where it has no negative numbers, with 0 and the largest as 255. */
#include <math.h>

#include "passes/integer.h"

enum { LARGEST = 127 };

/* `v`, which has the axes `free` of `like`, repeated along the others. */
static qn_value *spread(qn_builder *b, qn_value *v, const qn_type *like, const int64_t *axes)
{
    return v ? qn_b_broadcast(b, v, like->rank, like->dims, axes) : NULL;
}

qn_quantized qn_quantize_bytes(qn_builder *b, qn_value *v, const qn_dot_side *side)
{
    qn_value *most =
        qn_b_reduce(b, QN_KIND_MAX, qn_b_unary(b, QN_OP_ABS, v), side->n_contract, side->contract, false);
    qn_value *largest = qn_b_scalar(b, QUERN_F32, LARGEST);
    qn_value *factor = spread(b, qn_b_binary_bcast(b, QN_OP_DIV, largest, most), &v->type, side->free);
    qn_value *rounded = qn_b_unary(b, QN_OP_ROUND, qn_b_binary(b, QN_OP_MUL, v, factor));
    return (qn_quantized){ .bytes = qn_b_convert(b, QUERN_I8, rounded),
                           .scale = qn_b_binary_bcast(b, QN_OP_DIV, most, largest) };
}

static bool product_is_worth_it(const qn_node *node, const qn_machine *machine)
{
    enum { FEW_ROWS = 4, LEAST_DEPTH = 32, LEAST_COLUMNS = 16 };
    const qn_dot_side x = qn_dot_side_of(node, 0), y = qn_dot_side_of(node, 1);
    const qn_type *xt = &node->operands[0]->type, *yt = &node->operands[1]->type;
    double rows = 1, columns = 1, depth = 1;
    if (xt->dtype != QUERN_F32 || yt->dtype != QUERN_F32 || x.n_batch > 0 || x.n_free == 0 ||
        !qn_is_constant(node->operands[1]))
        return false;
    for (int i = 0; i < x.n_free; i++)
        rows *= (double)xt->dims[x.free[i]]->max;
    for (int i = 0; i < y.n_free; i++)
        columns *= (double)yt->dims[y.free[i]]->max;
    for (int i = 0; i < y.n_contract; i++)
        depth *= (double)yt->dims[y.contract[i]]->max;
    return depth >= LEAST_DEPTH && columns >= LEAST_COLUMNS && (machine->dot4 || rows <= FEW_ROWS);
}

qn_value *qn_int8_product(qn_builder *b, const qn_node *node)
{
    const qn_dot_side xs = qn_dot_side_of(node, 0), ys = qn_dot_side_of(node, 1);
    const qn_quantized x = qn_quantize_bytes(b, node->operands[0], &xs),
                       y = qn_quantize_bytes(b, node->operands[1], &ys);
    const qn_dot dot = qn_dot_of(node);
    const qn_type *type = &node->results[0].type;
    qn_value *product = qn_b_convert(b, QUERN_F32, qn_b_dot_general(b, x.bytes, y.bytes, &dot, QUERN_I32));
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < type->rank; i++)
        axes[i] = i;
    product = qn_b_binary(b, QN_OP_MUL, product, spread(b, x.scale, type, axes));
    return qn_b_binary(b, QN_OP_MUL, product, spread(b, y.scale, type, axes + xs.n_free));
}

/* ---- convolutions ---- */

/* Quantizing x goes over it twice more: every element has to take part in enough products. */
static bool convolution_is_worth_it(const qn_node *node, const qn_machine *machine)
{
    enum { LEAST_DEPTH = 32, LEAST_USES = 64 };
    const qn_type *w = &node->operands[1]->type;
    double uses = 1, depth = 1;
    if (!machine->dot4 || node->operands[0]->type.dtype != QUERN_F32 || !qn_integer_convolves(node) ||
        !qn_is_constant(node->operands[1]))
        return false;
    for (int i = 0; i < w->rank; i++) {
        const double extent = (double)w->dims[i]->value;
        uses *= i == 1   ? 1
                : i == 0 ? extent
                         : extent / (double)qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[i - 2];
        depth *= i == 0 ? 1 : extent;
    }
    return depth >= LEAST_DEPTH && uses >= LEAST_USES;
}

/* Of floats: surely without negative ones. */
static bool is_positive(const qn_value *v)
{
    const qn_node *node = v->node;
    qn_scalar s;
    if (!node)
        return false;
    switch (node->op) {
    case QN_OP_MAX: return qn_value_splat(node->operands[1], &s) && s.f >= 0;
    case QN_OP_MIN:
        return qn_value_splat(node->operands[1], &s) && s.f >= 0 && is_positive(node->operands[0]);
    case QN_OP_REDUCE_WINDOW:
        return qn_attr_reduce_kind(node) == QN_KIND_MAX && is_positive(node->operands[0]);
    default: return false;
    }
}

/* All numbers of a sample with one scale: u8. */
static qn_quantized quantize_samples(qn_builder *b, qn_value *v, int zero)
{
    int64_t axes[QN_MAX_RANK], first = 0;
    for (int i = 0; i < v->type.rank - 1; i++)
        axes[i] = i + 1;
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, qn_b_unary(b, QN_OP_ABS, v), v->type.rank - 1, axes, false);
    qn_value *largest = qn_b_scalar(b, QUERN_F32, zero ? LARGEST : 2 * LARGEST + 1);
    qn_value *factor = spread(b, qn_b_binary_bcast(b, QN_OP_DIV, largest, most), &v->type, &first);
    qn_value *rounded = qn_b_unary(b, QN_OP_ROUND, qn_b_binary(b, QN_OP_MUL, v, factor));
    if (zero)
        rounded = qn_b_binary_bcast(b, QN_OP_ADD, rounded, qn_b_scalar(b, QUERN_F32, zero));
    return (qn_quantized){ .bytes = qn_b_convert(b, QUERN_U8, rounded),
                           .scale = qn_b_binary_bcast(b, QN_OP_DIV, most, largest) };
}

qn_value *qn_int8_convolution(qn_builder *b, const qn_node *node, const qn_machine *machine)
{
    const qn_type *type = &node->results[0].type, *w_type = &node->operands[1]->type;
    const int64_t sample = 0, channel = 1;
    qn_dot_side kernels = { .n_free = 1, .n_contract = w_type->rank - 1 };
    for (int i = 0; i < kernels.n_contract; i++)
        kernels.contract[i] = i + 1;
    const int zero = is_positive(node->operands[0]) ? 0 : LARGEST + 1;
    const qn_quantized x = quantize_samples(b, node->operands[0], zero),
                       w = qn_quantize_bytes(b, node->operands[1], &kernels);
    if (!x.bytes || !w.bytes)
        return NULL;
    qn_integer xs = { .bytes = x.bytes, .zero = qn_b_scalar_int(b, QUERN_I32, zero), .axis = -1 },
               ws = { .bytes = w.bytes, .zero = qn_b_scalar_int(b, QUERN_I32, 0), .axis = -1 };
    qn_value *sums = qn_integer_convolution(b, node, &xs, &ws, machine);
    qn_value *r =
        qn_b_binary(b, QN_OP_MUL, qn_b_convert(b, QUERN_F32, sums), spread(b, x.scale, type, &sample));
    return qn_b_binary(b, QN_OP_MUL, r, spread(b, w.scale, type, &channel));
}

bool qn_int8_is_worth_it(const qn_node *node, const qn_machine *machine)
{
    return node->op == QN_OP_DOT_GENERAL
               ? product_is_worth_it(node, machine)
               : node->op == QN_OP_CONVOLUTION && convolution_is_worth_it(node, machine);
}
