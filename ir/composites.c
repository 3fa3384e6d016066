/* What every composite op means: its body in primitives. The reference interpreter runs these bodies, and backends get
 * them for the composites that they don't claim.
 *
 *   %y = softmax %x {axis = 1}        becomes        %m = reduce %x {axes = [1], kind = max}
 *                                                    %d = sub %x, broadcast %m
 *                                                    %e = exp %d
 *                                                    %s = reduce %e {axes = [1], kind = sum}
 *                                                    %y = div %e, broadcast %s
 *
 * f16 and bf16 compute in f32 and round once at the end. */
#include <math.h>

#include "ir/composite_attention.h"
#include "ir/narrow.h"
#include "ir/winograd.h"

typedef struct expansion {
    qn_builder b; /* in front of the node */
    const qn_node *node;
    qn_value **results;
} expansion;

/* ---- helpers ---- */

/* Operand i in the dtype that is computed in. */
static qn_value *wide_operand(expansion *e, int i)
{
    qn_value *x = e->node->operands[i];
    return qn_b_convert(&e->b, qn_dtype_wide(x->type.dtype), x);
}

/* `y` has the dims of x but for `axis`, which is missing: repeats it along that axis. */
static qn_value *spread(qn_builder *b, qn_value *y, const qn_value *x, int axis)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank - 1; i++)
        axes[i] = i + (i >= axis);
    return y ? qn_b_broadcast(b, y, x->type.rank, x->type.dims, axes) : NULL;
}

static qn_value *reduce_axis(qn_builder *b, qn_kind kind, qn_value *x, int axis)
{
    return qn_b_reduce(b, kind, x, 1, (int64_t[]){ axis }, false);
}

/* x - max(x) along an axis. */
static qn_value *minus_max(qn_builder *b, qn_value *x, int axis)
{
    return x ? qn_b_binary(b, QN_OP_SUB, x, spread(b, reduce_axis(b, QN_KIND_MAX, x, axis), x, axis)) : NULL;
}

static qn_value *scale_by(qn_builder *b, qn_value *x, double factor)
{
    return qn_b_binary_scalar(b, QN_OP_MUL, x, factor);
}

/* ---- softmax and losses ---- */

static qn_value *softmax(expansion *e)
{
    qn_builder *b = &e->b;
    int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    qn_value *powers = qn_b_unary(b, QN_OP_EXP, minus_max(b, wide_operand(e, 0), axis));
    if (!powers)
        return NULL;
    return qn_b_binary(b, QN_OP_DIV, powers, spread(b, reduce_axis(b, QN_SUM, powers, axis), powers, axis));
}

static qn_value *log_softmax(expansion *e)
{
    qn_builder *b = &e->b;
    int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    qn_value *x = minus_max(b, wide_operand(e, 0), axis);
    qn_value *sum = reduce_axis(b, QN_SUM, qn_b_unary(b, QN_OP_EXP, x), axis);
    return x ? qn_b_binary(b, QN_OP_SUB, x, spread(b, qn_b_unary(b, QN_OP_LOG, sum), x, axis)) : NULL;
}

/* log(sum(exp(x - max))) - (x - max)[label] */
static qn_value *cross_entropy(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = minus_max(b, wide_operand(e, 0), 1);
    qn_value *log_sum = qn_b_unary(b, QN_OP_LOG, reduce_axis(b, QN_SUM, qn_b_unary(b, QN_OP_EXP, x), 1));
    qn_value *labels = qn_b_expand_dims(b, e->node->operands[1], 1);
    qn_value *of_label = qn_b_squeeze(b, qn_b_gather_elements(b, x, labels, 1), 1);
    return qn_b_binary(b, QN_OP_SUB, log_sum, of_label);
}

/* ---- norms ---- */

/* Repeats an operand of the dims x[axis:] along the axes in front. */
static qn_value *over_rows(expansion *e, int operand, const qn_value *x)
{
    qn_value *y = qn_b_convert(&e->b, x->type.dtype, e->node->operands[operand]);
    return qn_b_broadcast_to(&e->b, y, x->type.rank, x->type.dims);
}

/* The mean over the axes from `axis` on. */
static qn_value *mean_of_rows(qn_builder *b, qn_value *x, int axis)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = axis; x && i < x->type.rank; i++)
        axes[i - axis] = i;
    return x ? qn_b_mean(b, x, x->type.rank - axis, axes, false) : NULL;
}

/* Repeats a value of the dims x[:axis] along the axes behind. */
static qn_value *along_rows(qn_builder *b, qn_value *y, const qn_value *x, int axis)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < axis; i++)
        axes[i] = i;
    return y ? qn_b_broadcast(b, y, x->type.rank, x->type.dims, axes) : NULL;
}

/* x / sqrt(mean(x * x) + epsilon) */
static qn_value *normalize(expansion *e, qn_value *x, int axis)
{
    qn_builder *b = &e->b;
    qn_value *mean = mean_of_rows(b, qn_b_binary(b, QN_OP_MUL, x, x), axis);
    if (!mean)
        return NULL;
    qn_value *sum = qn_b_binary_scalar(b, QN_OP_ADD, mean, qn_attr_float(e->node, QN_ATTR_EPSILON));
    return qn_b_binary(b, QN_OP_MUL, x, along_rows(b, qn_b_unary(b, QN_OP_RSQRT, sum), x, axis));
}

static qn_value *minus_mean(qn_builder *b, qn_value *x, int axis)
{
    qn_value *mean = mean_of_rows(b, x, axis);
    return mean ? qn_b_binary(b, QN_OP_SUB, x, along_rows(b, mean, x, axis)) : NULL;
}

/* normalize(x) * scale + bias */
static qn_value *norm_of_rows(expansion *e, qn_value *x, int axis)
{
    qn_builder *b = &e->b;
    qn_value *y = normalize(e, x, axis);
    if (!y)
        return NULL;
    y = qn_b_binary(b, QN_OP_MUL, y, over_rows(e, 1, x));
    return e->node->n_operands > 2 ? qn_b_binary(b, QN_OP_ADD, y, over_rows(e, 2, x)) : y;
}

static qn_value *layer_norm(expansion *e)
{
    int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    return norm_of_rows(e, minus_mean(&e->b, wide_operand(e, 0), axis), axis);
}

static qn_value *rms_norm(expansion *e)
{
    return norm_of_rows(e, wide_operand(e, 0), (int)qn_attr_int(e->node, QN_ATTR_AXIS));
}

/* Repeats a value for each channel along the other axes of x. */
static qn_value *per_channel(qn_builder *b, qn_value *y, const qn_value *x)
{
    return y ? qn_b_broadcast(b, y, x->type.rank, x->type.dims, (int64_t[]){ 1 }) : NULL;
}

static qn_value *group_norm(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = wide_operand(e, 0);
    qn_value *rows = qn_b_groups(b, x, qn_attr_int(e->node, QN_ATTR_GROUPS));
    qn_value *y = normalize(e, minus_mean(b, rows, 2), 2);
    if (!y)
        return NULL;
    qn_value *scale = qn_b_convert(b, x->type.dtype, e->node->operands[1]),
             *bias = qn_b_convert(b, x->type.dtype, e->node->operands[2]);
    y = qn_b_reshape(b, y, x->type.rank, x->type.dims);
    y = qn_b_binary(b, QN_OP_MUL, y, per_channel(b, scale, x));
    return qn_b_binary(b, QN_OP_ADD, y, per_channel(b, bias, x));
}

/* ---- what differs in training: batch_norm, dropout ---- */

/* With these statistics, one multiplication and one addition for each element; the factors fold where they are constants. */
static qn_value *scale_channels(expansion *e, qn_value *x, qn_value *mean, qn_value *variance)
{
    qn_builder *b = &e->b;
    qn_dtype dtype = mean->type.dtype;
    qn_value *sum = qn_b_binary_scalar(b, QN_OP_ADD, qn_b_convert(b, dtype, variance),
                                       qn_attr_float(e->node, QN_ATTR_EPSILON));
    qn_value *factor = qn_b_binary(b, QN_OP_MUL, qn_b_convert(b, dtype, e->node->operands[1]),
                                   qn_b_unary(b, QN_OP_RSQRT, sum));
    qn_value *offset = qn_b_binary(b, QN_OP_SUB, qn_b_convert(b, dtype, e->node->operands[2]),
                                   qn_b_binary(b, QN_OP_MUL, mean, factor));
    qn_value *y = qn_b_binary(b, QN_OP_MUL, qn_b_convert(b, dtype, x), per_channel(b, factor, x));
    return qn_b_binary(b, QN_OP_ADD, y, per_channel(b, offset, x));
}

static void batch_norm(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *mean = e->node->operands[3], *variance = e->node->operands[4];
    if (!qn_attr_bool(e->node, QN_ATTR_TRAINING)) {
        e->results[0] = scale_channels(e, e->node->operands[0], mean, variance);
        e->results[1] = mean;
        e->results[2] = variance;
        return;
    }
    qn_value *x = wide_operand(e, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes = 0;
    for (int i = 0; i < x->type.rank; i++)
        if (i != 1)
            axes[n_axes++] = i;
    qn_value *now = qn_b_mean(b, x, n_axes, axes, false);
    qn_value *centred = qn_b_binary(b, QN_OP_SUB, x, per_channel(b, now, x));
    qn_value *spread_now = qn_b_mean(b, qn_b_binary(b, QN_OP_MUL, centred, centred), n_axes, axes, false);
    if (!spread_now)
        return;
    e->results[0] = scale_channels(e, x, now, spread_now);
    double momentum = qn_attr_float(e->node, QN_ATTR_MOMENTUM);
    for (int i = 0; i < 2; i++) {
        qn_value *running = qn_b_convert(b, x->type.dtype, i ? variance : mean);
        e->results[1 + i] = qn_b_binary(b, QN_OP_ADD, scale_by(b, running, momentum),
                                        scale_by(b, i ? spread_now : now, 1 - momentum));
    }
}

static void dropout(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = e->node->operands[0];
    qn_type mask = x->type, uniform = x->type;
    mask.dtype = QUERN_BOOL;
    uniform.dtype = QUERN_F32;
    if (!qn_attr_bool(e->node, QN_ATTR_TRAINING)) {
        e->results[0] = x;
        e->results[1] = qn_b_broadcast_to(b, qn_b_scalar_int(b, QUERN_BOOL, 1), mask.rank, mask.dims);
        return;
    }
    double ratio = qn_attr_float(e->node, QN_ATTR_RATIO);
    qn_value *block =
        qn_b_binary(b, QN_OP_SHIFT_LEFT, e->node->operands[2], qn_b_scalar_int(b, QUERN_U64, 32));
    qn_value *number = qn_b_random_uniform(b, e->node->operands[1], block, &uniform);
    qn_value *keep = number ? qn_b_compare(b, QN_GE, number, qn_b_full(b, &number->type, ratio)) : NULL;
    qn_value *larger = scale_by(b, wide_operand(e, 0), ratio < 1 ? 1 / (1 - ratio) : 0);
    e->results[0] = larger ? qn_b_select(b, keep, larger, qn_b_full(b, &larger->type, 0)) : NULL;
    e->results[1] = keep;
}

/* ---- activations ---- */

/* x / 2 * (1 + f), f = erf(x / sqrt 2), or tanh(sqrt(2 / pi) (x + 0.044715 x^3)) */
static qn_value *gelu(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = wide_operand(e, 0), *f;
    if (e->node->op == QN_OP_GELU_TANH) {
        qn_value *cube = qn_b_binary(b, QN_OP_MUL, qn_b_binary(b, QN_OP_MUL, x, x), x);
        qn_value *inside = qn_b_binary(b, QN_OP_ADD, x, scale_by(b, cube, 0.044715));
        f = qn_b_unary(b, QN_OP_TANH, scale_by(b, inside, sqrt(M_2_PI)));
    } else {
        f = qn_b_unary(b, QN_OP_ERF, scale_by(b, x, M_SQRT1_2));
    }
    return qn_b_binary(b, QN_OP_MUL, scale_by(b, x, 0.5), qn_b_binary_scalar(b, QN_OP_ADD, f, 1));
}

static qn_value *silu(expansion *e)
{
    qn_value *x = wide_operand(e, 0);
    return qn_b_binary(&e->b, QN_OP_MUL, x, qn_b_unary(&e->b, QN_OP_LOGISTIC, x));
}

static qn_value *relu(expansion *e)
{
    return qn_b_binary_scalar(&e->b, QN_OP_MAX, e->node->operands[0], 0);
}

/* ---- attention ---- */

static void attention(expansion *e)
{
    qn_value *operands[5] = { NULL };
    for (int i = 0; i < e->node->n_operands; i++)
        operands[i] =
            qn_dtype_is_float(e->node->operands[i]->type.dtype) ? wide_operand(e, i) : e->node->operands[i];
    qn_attention_expand(&e->b, e->node, operands, e->results);
}

/* ---- quantization ---- */

/* A scale or zero point for each element of x. */
static qn_value *per_element(expansion *e, qn_value *parameter, const qn_value *x)
{
    qn_builder *b = &e->b;
    int rank = x->type.rank;
    const qn_attr *axis_attr = qn_attr_find(e->node, QN_ATTR_AXIS);
    int64_t block = qn_attr_int_or(e->node, QN_ATTR_BLOCK, 0);
    if (!parameter || !axis_attr)
        return qn_b_broadcast_to(b, parameter, rank, x->type.dims);
    int axis = (int)axis_attr->i;
    if (block == 0)
        return qn_b_broadcast(b, parameter, rank, x->type.dims, (int64_t[]){ axis });
    /* [.., n, ..] -> [.., n, block, ..] -> [.., n * block, ..] -> [.., x.dims[axis], ..] */
    qn_dims *dims = qn_b_dims(b);
    qn_dim apart[QN_MAX_RANK + 1], joined[QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        axes[i] = i + (i > axis);
        apart[axes[i]] = joined[i] = parameter->type.dims[i];
    }
    apart[axis + 1] = qn_dim_const(dims, block);
    joined[axis] = qn_dim_mul(dims, apart[axis], apart[axis + 1]);
    qn_value *blocks = qn_b_reshape(b, qn_b_broadcast(b, parameter, rank + 1, apart, axes), rank, joined);
    return qn_b_slice_axis(b, blocks, axis, qn_dim_const(dims, 0), x->type.dims[axis]);
}

static bool is_narrow_float(qn_dtype dtype)
{
    return qn_dtype_is_stored(dtype) && qn_is_real(dtype);
}

static qn_value *quantize(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = wide_operand(e, 0);
    qn_value *scale = wide_operand(e, 1);
    if (!x || !scale)
        return NULL;
    qn_dtype dtype = (qn_dtype)qn_attr_int(e->node, QN_ATTR_DTYPE);
    scale = qn_b_convert(b, x->type.dtype, scale);
    qn_value *y = qn_b_binary(b, QN_OP_DIV, x, per_element(e, scale, x));
    if (!is_narrow_float(dtype))
        y = qn_b_unary(b, QN_OP_ROUND, y);
    /* Where the sum could lie in the range of the result, it is exact: the conversion saturates the rest. */
    qn_dtype sum = qn_dtype_bytes(dtype) < 4 ? x->type.dtype : QUERN_F64;
    qn_value *zero_point = per_element(e, qn_b_convert(b, sum, e->node->operands[2]), x);
    y = qn_b_binary(b, QN_OP_ADD, qn_b_convert(b, sum, y), zero_point);
    return qn_b_convert(b, dtype, qn_b_saturate(b, dtype, y));
}

static qn_value *dequantize(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *x = e->node->operands[0], *scale = wide_operand(e, 1);
    if (!scale)
        return NULL;
    /* A difference of 32-bit integers may need 33 bits. */
    qn_dtype difference = is_narrow_float(x->type.dtype)      ? scale->type.dtype
                          : qn_dtype_bytes(x->type.dtype) < 4 ? QUERN_I32
                                                              : QUERN_I64;
    qn_value *zero_point = per_element(e, qn_b_convert(b, difference, e->node->operands[2]), x);
    qn_value *y = qn_b_binary(b, QN_OP_SUB, qn_b_convert(b, difference, x), zero_point);
    y = qn_b_convert(b, scale->type.dtype, y);
    return qn_b_binary(b, QN_OP_MUL, y, per_element(e, scale, x));
}

/* ---- lstm ---- */

static qn_value *gate(qn_builder *b, qn_op op, qn_value *gates, int i, qn_dim hidden)
{
    qn_dims *dims = qn_b_dims(b);
    qn_dim start = qn_dim_mul(dims, qn_dim_const(dims, i), hidden);
    return qn_b_unary(b, op, qn_b_slice_axis(b, gates, 1, start, qn_dim_add(dims, start, hidden)));
}

/* One step: (h, c, x W^T + bias of the step, R) -> h, c, h */
static qn_graph *lstm_body(expansion *e, qn_value *h0, qn_value *c0, qn_value *projected, qn_value *recurrent)
{
    qn_module *module = e->b.graph->module;
    qn_graph *body = qn_region_new(module);
    qn_builder b = { .graph = body, .loc = e->b.loc, .diags = e->b.diags };
    qn_type step = qn_type_make(module, projected->type.dtype, 2, projected->type.dims + 1);
    qn_value *h = qn_graph_add_input(body, "h", h0->type, QN_ROLE_INPUT);
    qn_value *c = qn_graph_add_input(body, "c", c0->type, QN_ROLE_INPUT);
    qn_value *x = qn_graph_add_input(body, "x", step, QN_ROLE_INPUT);
    qn_value *r = qn_graph_add_input(body, "r", recurrent->type, QN_ROLE_INPUT);
    qn_dim hidden = h0->type.dims[1];
    qn_dot dot = { .n_contract = 1, .x_contract = { 1 }, .y_contract = { 1 } };
    qn_value *gates = qn_b_binary(&b, QN_OP_ADD, x, qn_b_dot_general(&b, h, r, &dot, QUERN_INVALID_DTYPE));
    qn_value *in = gate(&b, QN_OP_LOGISTIC, gates, 0, hidden),
             *out = gate(&b, QN_OP_LOGISTIC, gates, 1, hidden);
    qn_value *forget = gate(&b, QN_OP_LOGISTIC, gates, 2, hidden),
             *cell = gate(&b, QN_OP_TANH, gates, 3, hidden);
    qn_value *next_c = qn_b_binary(&b, QN_OP_ADD, qn_b_binary(&b, QN_OP_MUL, forget, c),
                                   qn_b_binary(&b, QN_OP_MUL, in, cell));
    qn_value *next_h = qn_b_binary(&b, QN_OP_MUL, out, qn_b_unary(&b, QN_OP_TANH, next_c));
    if (!next_h)
        return NULL;
    qn_graph_add_output(body, next_h, NULL, -1);
    qn_graph_add_output(body, next_c, NULL, -1);
    qn_graph_add_output(body, next_h, NULL, -1);
    return body;
}

static void lstm(expansion *e)
{
    qn_builder *b = &e->b;
    qn_value *in[6];
    for (int i = 0; i < 6; i++)
        if (!(in[i] = wide_operand(e, i)))
            return;
    /* x W^T for the whole sequence at once: [S, B, I] x [4H, I] -> [S, B, 4H] */
    qn_dot dot = { .n_contract = 1, .x_contract = { 2 }, .y_contract = { 1 } };
    qn_value *projected = qn_b_dot_general(b, in[0], in[1], &dot, QUERN_INVALID_DTYPE);
    if (!projected)
        return;
    qn_value *bias = qn_b_broadcast_to(b, in[3], 3, projected->type.dims);
    projected = qn_b_binary(b, QN_OP_ADD, projected, bias);
    qn_graph *body = projected ? lstm_body(e, in[4], in[5], projected, in[2]) : NULL;
    if (!body)
        return;
    qn_value *operands[] = { in[4], in[5], projected, in[2] };
    qn_node *scan = qn_b_scan(b, 2, 1, 1, operands, projected->type.dims[0],
                              qn_attr_bool(e->node, QN_ATTR_REVERSE), body);
    if (!scan)
        return;
    e->results[0] = &scan->results[2];
    e->results[1] = &scan->results[0];
    e->results[2] = &scan->results[1];
}

/* ---- all of them ---- */

void qn_composite_expand(qn_node *node, qn_value **out_results, qn_diags *diags)
{
    expansion e = { .b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags },
                    .node = node,
                    .results = out_results };
    for (int i = 0; i < node->n_results; i++)
        out_results[i] = NULL;
    switch (node->op) {
    case QN_OP_SOFTMAX: out_results[0] = softmax(&e); break;
    case QN_OP_LOG_SOFTMAX: out_results[0] = log_softmax(&e); break;
    case QN_OP_CROSS_ENTROPY: out_results[0] = cross_entropy(&e); break;
    case QN_OP_LAYER_NORM: out_results[0] = layer_norm(&e); break;
    case QN_OP_RMS_NORM: out_results[0] = rms_norm(&e); break;
    case QN_OP_GROUP_NORM: out_results[0] = group_norm(&e); break;
    case QN_OP_BATCH_NORM: batch_norm(&e); break;
    case QN_OP_DROPOUT: dropout(&e); break;
    case QN_OP_GELU:
    case QN_OP_GELU_TANH: out_results[0] = gelu(&e); break;
    case QN_OP_SILU: out_results[0] = silu(&e); break;
    case QN_OP_RELU: out_results[0] = relu(&e); break;
    case QN_OP_ATTENTION:
    case QN_OP_ATTENTION_PACKED:
    case QN_OP_ATTENTION_GRAD: attention(&e); break;
    case QN_OP_QUANTIZE: out_results[0] = quantize(&e); break;
    case QN_OP_DEQUANTIZE: out_results[0] = dequantize(&e); break;
    case QN_OP_LSTM: lstm(&e); break;
    case QN_OP_CONV_WINOGRAD:
        out_results[0] = qn_winograd_expand(&e.b, node, wide_operand(&e, 0), wide_operand(&e, 1));
        break;
    default: QN_UNREACHABLE("%s is no composite", qn_ops[node->op].name);
    }
    for (int i = 0; i < node->n_results; i++)
        out_results[i] = qn_b_convert(&e.b, node->results[i].type.dtype, out_results[i]);
}
