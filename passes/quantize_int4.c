/* Weights of four bits under precision int4: what pack makes of a product of few rows, which waits for the panels of a constant.
 *
 * GROUP of k share a scale: of the number with the largest magnitude an eighth, so that this number is -8 or 8 (and becomes 7).
 * A weight is stored as a whole number from 0 to 15, 8 more than the multiple of the scale that it is nearest to; eight of k in
 * four bytes, as matmul_packed wants them. What they are multiplied by is rounded to bytes as under int8, but with a scale for
 * each such group of a row: a number that is far larger than the others spoils its group alone.
 *
 *   %r = dot_general %x: f32[1, 768], %y: f32[768, 3072]
 *   ->
 *   %w: u8[96, 96, 32, 4],  %s: bf16[96, 24, 32];  %x': i8[1, 768],  %m: f32[1, 24]
 *   %r = matmul_packed %x', %w, %s, %m : f32[1, 3072]
 *
 * A group of zeros has the scale 0. A group with NaN or infinity makes what it takes part in NaN or infinite.
 *
 * Weights that a model has in four bits keep their numbers and scales under every precision, and no float32 is made of them;
 * rows are bytes under int4, int8 and where the weights allow it (byte_rows), else as they are. Strict math has the weights as
 * float32. Zero points (i4: 8 more than they are) that aren't 8 go along, a byte for each scale:
 *
 *   %d = dequantize %q: u4[768, 3072], %s: f32[24, 3072], %z {axis = 0, block = 32};   %r = dot_general %x, %d
 *   ->
 *   %r = matmul_packed %x', panels of %q, panels of %s, panels of %z, %m
 *
 * Weights in bytes with scales for blocks are kept likewise, four of k in four bytes; but under int4, which makes four bits of
 * them for few rows.
 *
 * Rows of floats may be any number: many are multiplied by panels that are unpacked a part at a time (gemm.c), and so are many
 * rows of bytes on a machine that multiplies those; on others, more than few are floats. Under bf16, and under int8 on a machine
 * that doesn't multiply bytes or has a matrix unit for them, weights are made float32 for many rows of floats; under int8 for
 * rows that are known to be many, too. Where the number of rows is not known until a run and few differ from many, both are
 * there, and an `if` takes one. */
#include "passes/quantize.h"

enum { GROUP = 32, BYTE_ZERO = 128, NUMBERS = 8, LEAST = -8, MOST = 7, LEAST_WEIGHTS = 1 << 16 };

bool qn_int4_takes(const qn_value *y)
{
    const qn_type *type = &y->type;
    const qn_dim k = type->dims[type->rank - 2];
    return qn_dim_is_const(k) && k->value % GROUP == 0 && qn_type_is_static(type) &&
           qn_type_elements(type) >= LEAST_WEIGHTS;
}

/* The last axis but one in pieces of n: [batch…, panels, K, width] -> [batch…, panels, K / n, n, width] */
static qn_value *cut(qn_builder *b, qn_value *v, int64_t n)
{
    qn_dim dims[QN_MAX_RANK];
    if (!v)
        return NULL;
    const int rank = v->type.rank;
    for (int i = 0; i < rank; i++)
        dims[i] = v->type.dims[i];
    dims[rank] = dims[rank - 1];
    dims[rank - 1] = qn_dim_const(qn_b_dims(b), n);
    dims[rank - 2] = qn_dim_const(qn_b_dims(b), dims[rank - 2]->value / n);
    return qn_b_reshape(b, v, rank + 1, dims);
}

static qn_value *f32(qn_builder *b, double value)
{
    return qn_b_scalar(b, QUERN_F32, value);
}

/* Eight of k in four bytes: [batch…, panels, K, width] -> [batch…, panels, K / 8, width, 4] */
static qn_value *together(qn_builder *b, qn_value *numbers)
{
    qn_value *half[2];
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK];
    qn_value *eight = cut(b, numbers, NUMBERS);
    if (!eight)
        return NULL;
    const int rank = eight->type.rank, axis = rank - 2;
    for (int i = 0; i < rank; i++) {
        start[i] = qn_dim_const(qn_b_dims(b), 0);
        limit[i] = eight->type.dims[i];
        perm[i] = i == axis ? rank - 1 : i == rank - 1 ? axis : i;
    }
    for (int upper = 0; upper < 2; upper++) {
        start[axis] = qn_dim_const(qn_b_dims(b), upper * NUMBERS / 2);
        limit[axis] = qn_dim_const(qn_b_dims(b), (upper + 1) * NUMBERS / 2);
        half[upper] = qn_b_slice(b, eight, start, limit, NULL);
    }
    half[1] = qn_b_binary_bcast(b, QN_OP_SHIFT_LEFT, half[1], qn_b_scalar(b, QUERN_U8, 4));
    return qn_b_transpose(b, qn_b_binary(b, QN_OP_OR, half[0], half[1]), perm);
}

/* Four of k in four bytes: [batch…, panels, K, width] -> [batch…, panels, K / 4, width, 4] */
static qn_value *side_by_side(qn_builder *b, qn_value *numbers)
{
    int64_t perm[QN_MAX_RANK];
    qn_value *four = cut(b, numbers, NUMBERS / 2);
    if (!four)
        return NULL;
    const int rank = four->type.rank;
    for (int i = 0; i < rank; i++)
        perm[i] = i == rank - 2 ? rank - 1 : i == rank - 1 ? rank - 2 : i;
    return qn_b_transpose(b, four, perm);
}

/* [batch…, K, N] as matmul_packed wants it, with its scale. Rounded before it is put into panels: then bytes are moved, not floats. */
static qn_value *four_bits(qn_builder *b, qn_value *w, int64_t width, qn_value **out_scale)
{
    const int64_t axis[] = { w->type.rank - 1 }; /* of a group's members */
    const qn_type *type = &w->type;
    qn_value *groups = cut(b, w, GROUP);
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, groups, 1, axis, true);
    qn_value *least = qn_b_reduce(b, QN_KIND_MIN, groups, 1, axis, true);
    qn_value *positive = qn_b_compare_bcast(b, QN_GT, most, qn_b_unary(b, QN_OP_NEG, least));
    qn_value *extreme = qn_b_select_bcast(b, positive, most, least);
    qn_value *scale = qn_b_convert(b, QUERN_BF16, qn_b_binary_bcast(b, QN_OP_DIV, extreme, f32(b, LEAST)));
    qn_value *q = qn_b_binary_bcast(b, QN_OP_DIV, groups, qn_b_convert(b, QUERN_F32, scale));
    q = qn_b_binary_bcast(b, QN_OP_MIN, qn_b_unary(b, QN_OP_ROUND, q), f32(b, MOST));
    q = qn_b_convert(b, QUERN_U8, qn_b_binary_bcast(b, QN_OP_SUB, q, f32(b, LEAST)));
    scale = scale ? qn_b_squeeze(b, scale, (int)axis[0]) : NULL;
    q = qn_b_reshape(b, q, type->rank, type->dims);
    if (!q || !scale)
        return NULL;
    *out_scale = qn_b_panels(b, scale, width);
    return together(b, qn_b_panels(b, q, width));
}

/* x [batch…, m…, K] as bytes, with a scale for each `group` of k: [batch…, m…, K / group]. */
static qn_quantized bytes_of(qn_builder *b, qn_value *x, int64_t group)
{
    const qn_type *type = &x->type;
    const int rank = type->rank;
    qn_dot_side groups = { .n_free = rank, .n_contract = 1, .contract = { rank } };
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        groups.free[i] = i;
        dims[i] = type->dims[i];
    }
    dims[rank - 1] = qn_dim_const(qn_b_dims(b), type->dims[rank - 1]->value / group);
    dims[rank] = qn_dim_const(qn_b_dims(b), group);
    qn_value *cut = qn_b_reshape(b, x, rank + 1, dims);
    if (!cut)
        return (qn_quantized){ 0 };
    qn_quantized q = qn_quantize_bytes(b, cut, &groups);
    q.bytes = qn_b_reshape(b, q.bytes, rank, type->dims);
    return q;
}

qn_value *qn_int4_product(qn_builder *b, qn_value *x, qn_value *w, int n_batch, int64_t width)
{
    const qn_quantized q = bytes_of(b, x, GROUP);
    qn_value *scale = NULL, *y = four_bits(b, w, width, &scale);
    const qn_dim n = w->type.dims[w->type.rank - 1];
    return q.bytes ? qn_b_matmul_packed_scaled(b, q.bytes, y, scale, NULL, q.scale, n_batch, n) : NULL;
}

/* ---- weights that came in four bits ---- */

/* Of k that share a scale in the kernel, where `block` do in the model; 0: there is no kernel. */
static int64_t group_of(int64_t block)
{
    enum { MOST = 64 };
    return block <= MOST ? (block % NUMBERS == 0 ? block : 0)
                         : (block % MOST == 0    ? MOST
                            : block % GROUP == 0 ? GROUP
                                                 : 0);
}

static bool is_of_bytes(const qn_node *weights)
{
    const qn_dtype dtype = weights->operands[0]->type.dtype;
    return dtype == QUERN_I8 || dtype == QUERN_U8;
}

/* Constant numbers of a matrix, as i4 or u4 with scales of float32 along one axis, or as bytes with those for blocks. */
static bool is_candidate(const qn_node *node, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    const qn_dtype dtype = node->op == QN_OP_DEQUANTIZE ? node->operands[0]->type.dtype : QUERN_INVALID_DTYPE;
    const bool four = dtype == QUERN_I4 || dtype == QUERN_U4,
               bytes = node->op == QN_OP_DEQUANTIZE && is_of_bytes(node) &&
                       options->precision != QN_PRECISION_INT4 && qn_attr_int_or(node, QN_ATTR_BLOCK, 0) > 0;
    return (options->math != QN_MATH_STRICT || options->precision == QN_PRECISION_INT4) && machine &&
           !machine->gpu && machine->vector_bytes >= 16 && (four || bytes) &&
           node->results[0].type.dtype == QUERN_F32 && node->operands[0]->type.rank == 2 &&
           qn_type_is_static(&node->operands[0]->type) && qn_attr_find(node, QN_ATTR_AXIS) &&
           qn_is_constant(&node->results[0]);
}

/* k that share a scale of the weights, when the product sums along the axis that is cut so; else 0. */
static int64_t block_for(const qn_node *product, const qn_node *weights)
{
    if (product->op != QN_OP_DOT_GENERAL || product->operands[1] != &weights->results[0] ||
        product->results[0].type.dtype != QUERN_F32 || product->operands[0]->type.rank == QN_MAX_RANK)
        return 0;
    const qn_dot_side y = qn_dot_side_of(product, 1);
    if (y.n_batch > 0 || y.n_contract != 1)
        return 0;
    const int64_t k = weights->operands[0]->type.dims[y.contract[0]]->value;
    const int64_t block = qn_attr_int_or(weights, QN_ATTR_BLOCK, 0),
                  axis = qn_attr_int(weights, QN_ATTR_AXIS);
    if (block == 0)
        return axis != y.contract[0] ? k : 0;
    return axis == y.contract[0] && k % block == 0 ? block : 0;
}

/* Numbers, scale or zero point of the weights as [K or blocks of it, N]; `contract`: the axis of K. */
static qn_value *in_columns(qn_builder *b, qn_value *v, int64_t contract)
{
    if (v && v->type.rank == 1)
        return qn_b_expand_dims(b, v, 0);
    return v && contract == 1 ? qn_b_transpose(b, v, (const int64_t[]){ 1, 0 }) : v;
}

/* Rows of [n, N], each `times` times: [n * times, N] */
static qn_value *repeat_rows(qn_builder *b, qn_value *v, int64_t times)
{
    if (!v || times == 1)
        return v;
    const qn_dim rows = v->type.dims[0], n = qn_dim_const(qn_b_dims(b), times);
    const qn_dim apart[] = { rows, n, v->type.dims[1] },
                 joined[] = { qn_dim_mul(qn_b_dims(b), rows, n), apart[2] };
    return qn_b_reshape(b, qn_b_broadcast(b, v, 3, apart, (const int64_t[]){ 0, 2 }), 2, joined);
}

static bool is_signed(const qn_value *v)
{
    return v->type.dtype == QUERN_I4 || v->type.dtype == QUERN_I8;
}

/* Numbers of 8 bits or fewer as u8; signed ones `middle` more than they are. */
static qn_value *unsigned_of(qn_builder *b, qn_value *v, int middle)
{
    if (!is_signed(v))
        return qn_b_convert(b, QUERN_U8, v);
    v = qn_b_binary_bcast(b, QN_OP_ADD, qn_b_convert(b, QUERN_I16, v), qn_b_scalar(b, QUERN_I16, middle));
    return qn_b_convert(b, QUERN_U8, v);
}

/* The weights as matmul_packed wants them. */
typedef struct laid_out {
    qn_value *panels, *scales;
    qn_value *zeros; /* NULL where they are the usual ones */
    int64_t group;   /* of k that share a scale */
    qn_dim n;
} laid_out;

static bool lay_out(qn_builder *b, const qn_node *product, const qn_node *weights, int64_t block,
                    const qn_pass_options *options, laid_out *out)
{
    const int lanes = options->machine->vector_bytes / 4;
    const int64_t contract = qn_dot_side_of(product, 1).contract[0];
    qn_value *const *parts = weights->operands;
    const bool bytes = is_of_bytes(weights);
    const int middle = bytes ? BYTE_ZERO : -LEAST;
    qn_value *numbers = in_columns(b, unsigned_of(b, parts[0], middle), contract);
    qn_value *scale = in_columns(b, parts[1], contract);
    if (!numbers || !scale)
        return false;
    const qn_dim n = numbers->type.dims[1];
    const int64_t width = n->value > lanes ? 2 * lanes : lanes;
    const int64_t group = group_of(block), groups = block / group;
    *out = (laid_out){ .panels = qn_b_panels(b, numbers, width), .group = group, .n = n };
    out->panels = bytes ? side_by_side(b, out->panels) : together(b, out->panels);
    out->scales = qn_b_panels(b, repeat_rows(b, scale, groups), width);
    qn_scalar zero;
    const int usual = is_signed(parts[2]) ? 0 : middle;
    if (!(qn_value_splat(parts[2], &zero) && (zero.i & (2 * middle - 1)) == usual)) {
        qn_value *zeros = in_columns(b, unsigned_of(b, parts[2], middle), contract);
        if (!(out->zeros = qn_b_panels(b, repeat_rows(b, zeros, groups), width)))
            return false;
    }
    return out->panels && out->scales;
}

/* `left`, the product's left side, times the weights; as bytes or as floats. */
static qn_value *product_of(qn_builder *b, const qn_node *product, qn_value *left, const laid_out *weights,
                            bool bytes)
{
    const qn_dot_side xs = qn_dot_side_of(product, 0);
    int64_t order[QN_MAX_RANK];
    for (int i = 0; i < xs.n_free; i++)
        order[i] = xs.free[i];
    order[xs.n_free] = xs.contract[0];
    qn_value *x = qn_b_transpose(b, left, order);
    if (!x)
        return NULL;
    const qn_quantized q = bytes ? bytes_of(b, x, weights->group) : (qn_quantized){ .bytes = x };
    return q.bytes ? qn_b_matmul_packed_scaled(b, q.bytes, weights->panels, weights->scales, weights->zeros,
                                               q.scale, 0, weights->n)
                   : NULL;
}

/* ---- where the number of rows is not known ---- */

static qn_dim rows_of(const qn_node *product)
{
    const qn_dot_side x = qn_dot_side_of(product, 0);
    qn_dims *table = product->graph->module->dims;
    qn_dim rows = qn_dim_const(table, 1);
    for (int i = 0; i < x.n_free; i++)
        rows = qn_dim_mul(table, rows, product->operands[0]->type.dims[x.free[i]]);
    return rows;
}

/* The constant in another graph. */
static qn_value *constant_in(qn_builder *b, qn_value *v)
{
    const qn_tensor *tensor = qn_value_constant(v);
    qn_scalar number;
    if (tensor)
        return qn_b_constant(b, tensor);
    if (!qn_value_splat(v, &number))
        return NULL;
    const qn_dtype dtype = v->type.dtype;
    qn_value *scalar =
        qn_dtype_is_float(dtype) ? qn_b_scalar(b, dtype, number.f) : qn_b_scalar_int(b, dtype, number.i);
    return qn_b_broadcast(b, scalar, v->type.rank, v->type.dims, NULL);
}

/* The product with float32 made of the weights, of which nothing is left that would be taken once more. */
static qn_value *float_product(qn_builder *b, const qn_node *product, const qn_node *weights, qn_value *left,
                               qn_value *const *parts)
{
    const qn_dot_side x = qn_dot_side_of(product, 0), y = qn_dot_side_of(product, 1);
    const qn_dot dot = { .n_contract = 1, .x_contract = { x.contract[0] }, .y_contract = { y.contract[0] } };
    qn_value *w = qn_b_dequantize(b, parts[0], parts[1], parts[2], (int)qn_attr_int(weights, QN_ATTR_AXIS),
                                  qn_attr_int_or(weights, QN_ATTR_BLOCK, 0)),
             *spelt = NULL;
    if (!w)
        return NULL;
    qn_node *const made = w->node;
    qn_composite_expand(made, &spelt, b->diags);
    if (!spelt)
        return NULL;
    qn_node_remove(made);
    return qn_b_dot_general(b, left, spelt, &dot, QUERN_F32);
}

/* Few rows in one way and more in another: which of them, a run decides. Few may be bytes where more are floats, times the same
 * panels; else more are multiplied by float32, of which the precision makes fewer bits. NULL where a part of the weights is
 * computed. */
static qn_value *either_product(qn_builder *b, const qn_node *product, const qn_node *weights,
                                const laid_out *laid, bool bytes)
{
    qn_module *module = product->graph->module;
    qn_graph *regions[2];
    qn_value *captured[] = { product->operands[0], laid->panels, laid->scales, laid->zeros };
    const int n_captured = laid->zeros ? 4 : 3;
    for (int r = 0; r < 2; r++) {
        regions[r] = qn_region_new(module);
        qn_builder in = { .graph = regions[r], .loc = b->loc, .diags = b->diags };
        qn_value *inner[4] = { NULL }, *parts[3], *y;
        for (int i = 0; i < n_captured; i++)
            inner[i] = qn_graph_add_input(regions[r], NULL, captured[i]->type, QN_ROLE_INPUT);
        if (r == 0 || bytes) {
            laid_out own = *laid;
            own.panels = inner[1], own.scales = inner[2], own.zeros = inner[3];
            y = product_of(&in, product, inner[0], &own, r == 0 && bytes);
        } else {
            for (int i = 0; i < 3; i++)
                if (!(parts[i] = constant_in(&in, weights->operands[i])))
                    return NULL;
            y = float_product(&in, product, weights, inner[0], parts);
        }
        if (!y)
            return NULL;
        qn_graph_add_output(regions[r], y, NULL, -1);
    }
    qn_value *few = qn_b_compare(b, QN_LE, qn_b_dim_value(b, QUERN_I64, rows_of(product)),
                                 qn_b_scalar_int(b, QUERN_I64, QN_FEW_ROWS));
    qn_node *node = qn_b_if(b, few, n_captured, captured, regions[0], regions[1]);
    return node ? &node->results[0] : NULL;
}

/* What replaces the product's result; NULL: it stays. */
static qn_value *replacement(qn_builder *b, const qn_node *product, const qn_node *weights,
                             const qn_pass_options *options)
{
    const int64_t block = block_for(product, weights);
    if (block == 0 || group_of(block) == 0 || qn_type_elements(&weights->results[0].type) < LEAST_WEIGHTS)
        return NULL;
    const qn_dim rows = rows_of(product);
    const qn_machine *machine = options->machine;
    const bool few = rows->max <= QN_FEW_ROWS, many = rows->min > QN_FEW_ROWS;
    const bool bytes =
                   options->precision == QN_PRECISION_INT4 ||
                   (options->precision == QN_PRECISION_INT8 && machine->dot4 && !machine->tiles && !many) ||
                   qn_attr_bool(weights, QN_ATTR_BYTE_ROWS),
               many_bytes = bytes && machine->dot4,
               wider = !bytes && options->precision != QN_PRECISION_F32; /* for many rows */
    laid_out laid;
    if ((many && wider) || !lay_out(b, product, weights, block, options, &laid))
        return NULL;
    if (few || many || many_bytes || (!bytes && !wider))
        return product_of(b, product, product->operands[0], &laid, few ? bytes : many_bytes);
    return either_product(b, product, weights, &laid, bytes);
}

static bool is_output(const qn_node *node)
{
    for (int i = 0; i < node->graph->n_outputs; i++)
        if (qn_value_resolve(node->graph->outputs[i]) == &node->results[0])
            return true;
    return false;
}

bool qn_int4_take_products(qn_node *weights, const qn_pass_options *options, qn_diags *diags)
{
    if (!is_candidate(weights, options))
        return false;
    bool left = is_output(weights);
    for (qn_node *node = weights->next, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *made = replacement(&b, node, weights, options);
        if (made) {
            qn_value_replace(&node->results[0], made);
            qn_node_remove(node);
            continue;
        }
        for (int i = 0; i < node->n_operands; i++)
            left |= node->operands[i] == &weights->results[0];
    }
    if (!left)
        qn_node_remove(weights);
    return !left;
}
