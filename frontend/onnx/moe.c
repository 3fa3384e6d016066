/* Mixtures of experts as the domain com.microsoft has them: MoE, and QMoE with weights of few bits.
 *
 * A token's best experts are those of its highest scores. Each expert takes its own tokens out of all, as many as there are, so
 * that weights of experts which nobody asks for are not read: a token reads those of its own, a prompt multiplies no row that
 * does not count. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

typedef enum activation { RELU, GELU, SILU, IDENTITY, SWIGLU } activation;

typedef struct experts {
    qn_onnx_node *n;
    bool quantized;
    int64_t count, hidden, inner; /* experts; what a token has; what an expert makes of it */
    activation function;
    int64_t
        fusion; /* of SwiGLU: 0: the gate is layer 0, the other layer 2; 1: in turns in layer 0; 2: halves of it */
    double alpha, beta, limit; /* limit < 0: none */
    qn_dtype wide;
} experts;

/* ---- one expert's part of the weights ---- */

static int weight_input(const experts *x, int layer)
{
    return 2 + layer * (x->quantized ? 3 : 2);
}

/* Row `expert` of constant input i [experts, ...] as a constant of `rank` axes. */
static const qn_tensor *part_of(const experts *x, int i, int64_t expert, int rank, const int64_t *dims,
                                qn_dtype dtype)
{
    const qn_tensor *all = x->n->in[i]->tensor;
    qn_tensor *part = QN_NEW(x->n->im->arena, qn_tensor);
    *part = *all;
    part->bytes = all->bytes / (size_t)x->count;
    part->data = (const uint8_t *)all->data + (size_t)expert * part->bytes;
    part->hash = 0;
    part->name = NULL;
    return qn_onnx_tensor_of_bits(x->n->im, dtype, rank, dims, part);
}

/* The same for inputs that hold whole elements; NULL where there is none. */
static qn_value *row_of(const experts *x, int i, int64_t expert)
{
    if (!qn_onnx_has(x->n, i))
        return NULL;
    const qn_type *type = &x->n->in[i]->tensor->type;
    int64_t dims[QN_MAX_RANK];
    for (int k = 1; k < type->rank; k++)
        dims[k - 1] = type->dims[k]->value;
    qn_builder *b = &x->n->b;
    return qn_b_convert(b, x->wide,
                        qn_b_constant(b, part_of(x, i, expert, type->rank - 1, dims, type->dtype)));
}

static int64_t bits_of(const experts *x, int layer)
{
    static const char *const names[3] = { "fc1_expert_weight_bits", "fc2_expert_weight_bits",
                                          "fc3_expert_weight_bits" };
    return qn_onnx_attr_int(x->n, names[layer], qn_onnx_attr_int(x->n, "expert_weight_bits", 4));
}

/* Packed numbers of input i, `rows` of `columns`, of which each row or, where the input has no axis of columns, all begin a byte. */
static qn_value *unpacked(const experts *x, int i, int64_t expert, int64_t bits, int64_t rows,
                          int64_t columns)
{
    qn_builder *b = &x->n->b;
    const qn_tensor *all = x->n->in[i]->tensor;
    const bool flat = all->type.rank == 2;
    const int64_t wide = all->type.dims[flat ? 1 : 2]->value * 8 / bits;
    const int64_t dims[2] = { flat ? 1 : rows, wide };
    const qn_dtype dtype = bits == 2 ? QUERN_U2 : bits == 4 ? QUERN_U4 : QUERN_U8;
    qn_value *v = qn_b_constant(b, part_of(x, i, expert, 2, dims, dtype));
    v = qn_b_slice_axis(b, v, 1, qn_onnx_dim(x->n, 0), qn_onnx_dim(x->n, flat ? rows : columns));
    const qn_dim shape[2] = { qn_onnx_dim(x->n, rows), qn_onnx_dim(x->n, columns) };
    return flat ? qn_b_reshape(b, v, 2, shape) : v;
}

/* [rows, columns] of the float type that is computed in. */
static qn_value *weights_of(const experts *x, int layer, int64_t expert, int64_t rows, int64_t columns)
{
    qn_builder *b = &x->n->b;
    const int i = weight_input(x, layer);
    if (!x->quantized)
        return row_of(x, i, expert);
    const int64_t bits = bits_of(x, layer);
    const qn_type *scales = &x->n->in[i + 1]->tensor->type;
    const int64_t blocks = scales->rank == 3 ? scales->dims[2]->value : 1;
    const qn_dim dims[2] = { qn_onnx_dim(x->n, rows), qn_onnx_dim(x->n, blocks) };
    qn_value *scale = qn_b_reshape(b, row_of(x, i + 1, expert), 2, dims);
    qn_value *w = unpacked(x, i, expert, bits, rows, columns), *zero;
    if (!w || !scale)
        return NULL;
    if (qn_onnx_has(x->n, 11 + layer))
        zero = unpacked(x, 11 + layer, expert, bits, rows, blocks);
    else
        zero = qn_b_broadcast(b, qn_b_scalar_int(b, w->type.dtype, (int64_t)1 << (bits - 1)), 2, dims, NULL);
    return qn_b_dequantize_weights(b, w, scale, zero, 1, columns / blocks,
                                   qn_onnx_attr_int(x->n, "accuracy_level", 0) == 4);
}

static qn_value *layer_of(const experts *x, int layer, int64_t expert, qn_value *tokens, int64_t rows)
{
    qn_builder *b = &x->n->b;
    const int64_t columns = layer == 1 ? x->inner : x->hidden;
    qn_value *y = times_transposed(b, tokens, weights_of(x, layer, expert, rows, columns));
    qn_value *bias = row_of(x, weight_input(x, layer) + (x->quantized ? 2 : 1), expert);
    return bias ? add(b, y, bias) : y;
}

/* ---- what is there ---- */

/* Constant input i of that shape, of floats or (`bits` > 0) of bytes. False after a report. */
static bool check_input(const experts *x, int i, int rank, const int64_t *dims, bool bytes)
{
    qn_onnx_node *n = x->n;
    const qn_type *type = qn_onnx_in_type(n, i);
    if (!type)
        return false;
    if (!n->in[i]->tensor || !n->in[i]->tensor->data) {
        qn_onnx_unsupported(n, "input %d must be a constant", i);
        return false;
    }
    bool fits = type->rank == rank && (bytes ? type->dtype == QUERN_U8 : qn_dtype_is_float(type->dtype));
    for (int k = 0; k < rank && fits; k++)
        fits = qn_dim_is(type->dims[k], dims[k]);
    if (!fits)
        qn_onnx_malformed(n, "input %d does not have the type or shape that the other inputs ask for", i);
    return fits;
}

static bool check_layer(const experts *x, int layer, int64_t rows)
{
    qn_onnx_node *n = x->n;
    const int i = weight_input(x, layer), bias = i + (x->quantized ? 2 : 1);
    const int64_t columns = layer == 1 ? x->inner : x->hidden, e = x->count;
    if (qn_onnx_has(n, bias) && !check_input(x, bias, 2, (int64_t[]){ e, rows }, false))
        return false;
    if (!x->quantized)
        return check_input(x, i, 3, (int64_t[]){ e, rows, columns }, false);
    const int64_t bits = bits_of(x, layer), block = qn_onnx_attr_int(n, "block_size", 0);
    if (bits != 2 && bits != 4 && bits != 8) {
        qn_onnx_unsupported(n, "weights of %lld bits; 2, 4 and 8 are", (long long)bits);
        return false;
    }
    if (columns * bits % 8 || (block > 0 && columns % block)) {
        qn_onnx_malformed(n, "a row of %lld weights is no multiple of a byte and of block_size",
                          (long long)columns);
        return false;
    }
    const int64_t blocks = block > 0 ? columns / block : 1;
    const int64_t scales[3] = { e, rows, blocks };
    const int64_t zeros[3] = { e, block > 0 ? rows : (rows * bits + 7) / 8, (blocks * bits + 7) / 8 };
    return check_input(x, i, 3, (int64_t[]){ e, rows, columns * bits / 8 }, true) &&
           check_input(x, i + 1, block > 0 ? 3 : 2, scales, false) &&
           (!qn_onnx_has(n, 11 + layer) || check_input(x, 11 + layer, block > 0 ? 3 : 2, zeros, true));
}

static bool read_function(experts *x)
{
    static const char *const names[] = { "relu", "gelu", "silu", "identity", "swiglu" };
    qn_onnx_node *n = x->n;
    const char *name = qn_onnx_attr_string(n, "activation_type", "relu");
    for (x->function = RELU; strcmp(name, names[x->function]); x->function++)
        if (x->function == SWIGLU) {
            qn_onnx_unsupported(n, "attribute activation_type = %s", name);
            return false;
        }
    x->fusion = qn_onnx_attr_int(n, "swiglu_fusion", 0);
    x->alpha = qn_onnx_attr_float(n, "activation_alpha", 1);
    x->beta = qn_onnx_attr_float(n, "activation_beta", 0);
    x->limit = qn_onnx_attr_float(n, "swiglu_limit", -1);
    if (x->fusion >= 0 && x->fusion <= 2)
        return true;
    qn_onnx_malformed(n, "attribute swiglu_fusion must be 0, 1 or 2");
    return false;
}

static bool refuse_options(qn_onnx_node *n)
{
    static const char *const names[] = { "use_sparse_mixer", "swiglu_limit_after_activation" };
    for (int i = 0; i < 2; i++)
        if (qn_onnx_attr_int(n, names[i], 0)) {
            qn_onnx_unsupported(n, "attribute %s", names[i]);
            return false;
        }
    if (!qn_onnx_attr_is(n, "quant_type", "int", "int") || qn_onnx_attr_int(n, "weights_prepacked", -1) > 0) {
        qn_onnx_unsupported(n, "weights that are prepacked, or of another quant_type than int");
        return false;
    }
    for (int i = 15; i < n->n_in; i++)
        if (qn_onnx_has(n, i)) {
            qn_onnx_unsupported(n, "input %d", i);
            return false;
        }
    return true;
}

/* ---- the experts ---- */

/* Every second column of y [n, 2 * inner], or a half of them. */
static qn_value *half_of(const experts *x, qn_value *y, int which)
{
    qn_onnx_node *n = x->n;
    if (!y)
        return NULL;
    const bool turns = x->fusion == 1;
    const int64_t start = turns ? which : which * x->inner;
    const qn_dim starts[2] = { qn_onnx_dim(n, 0), qn_onnx_dim(n, start) };
    const qn_dim limits[2] = { y->type.dims[0],
                               qn_onnx_dim(n, start + (turns ? 2 * x->inner - 1 : x->inner)) };
    return qn_b_slice(&n->b, y, starts, limits, (int64_t[]){ 1, turns ? 2 : 1 });
}

static qn_value *activate(const experts *x, int64_t expert, qn_value *tokens)
{
    qn_builder *b = &x->n->b;
    const bool both = x->function == SWIGLU && x->fusion;
    qn_value *y = layer_of(x, 0, expert, tokens, both ? 2 * x->inner : x->inner);
    if (!y)
        return NULL;
    switch (x->function) {
    case RELU: return max_number(b, y, 0);
    case GELU: return qn_b_unary(b, QN_OP_GELU_TANH, y);
    case SILU: return qn_b_unary(b, QN_OP_SILU, y);
    case IDENTITY: return y;
    case SWIGLU: break;
    }
    qn_value *gate = both ? half_of(x, y, 0) : y;
    qn_value *line = both ? half_of(x, y, 1) : layer_of(x, 2, expert, tokens, x->inner);
    if (x->limit >= 0) {
        gate = min_number(b, gate, x->limit);
        line = max_number(b, min_number(b, line, x->limit), -x->limit);
    }
    gate = x->alpha == 1 ? qn_b_unary(b, QN_OP_SILU, gate)
                         : mul(b, gate, qn_b_unary(b, QN_OP_LOGISTIC, mul_number(b, gate, x->alpha)));
    return mul(b, gate, x->beta == 0 ? line : add_number(b, line, x->beta));
}

/* What the chosen experts count for a token: a softmax of their scores, or their part in that of all; or what input 14 says. QMoE
 * alone without it is normalized whatever its attribute says, as ONNX Runtime has it on CPUs. */
static qn_value *shares(const experts *x, qn_value *scores, qn_value *best, qn_value *which)
{
    qn_onnx_node *n = x->n;
    qn_builder *b = &n->b;
    const bool normalized = qn_onnx_attr_int(n, "normalize_routing_weights", 0) != 0;
    const int64_t last = 1;
    if (qn_onnx_has(n, 14)) {
        qn_value *given = qn_b_convert(b, x->wide, qn_onnx_in(n, 14));
        for (int i = 0; i < 2 && given; i++)
            given = qn_onnx_with_dim(n, given, i, scores->type.dims[i]);
        given = given ? qn_b_gather_elements(b, given, which, 1) : NULL;
        return given && normalized ? divide(b, given, qn_b_reduce(b, QN_SUM, given, 1, &last, true)) : given;
    }
    if (normalized || x->quantized)
        return qn_b_softmax(b, QN_OP_SOFTMAX, best, 1);
    return qn_b_gather_elements(b, qn_b_softmax(b, QN_OP_SOFTMAX, scores, 1), which, 1);
}

/* Adds to `sum` [T, hidden] what the expert makes of its tokens. */
static qn_value *add_expert(const experts *x, int64_t expert, qn_value *tokens, qn_value *which,
                            qn_value *share, qn_value *sum)
{
    qn_onnx_node *n = x->n;
    qn_builder *b = &n->b;
    const int64_t last = 1;
    qn_value *mine = compare_number(b, QN_EQ, which, (double)expert); /* [T, k] */
    if (!mine || !sum)
        return NULL;
    const qn_dim all = tokens->type.dims[0];
    const int64_t most = all->max < QN_DIM_MAX_VALUE ? all->max : QN_DIM_MAX_VALUE;
    qn_value *asked = qn_b_reduce(b, QN_KIND_MAX, qn_b_convert(b, QUERN_I32, mine), 1, &last, false);
    qn_value *rows = qn_b_non_zero(b, asked, qn_dim_fresh(n->im->dims, "tokens", 0, most)); /* [1, n] */
    qn_value *of_each =
        qn_b_reduce(b, QN_SUM, choose(b, mine, share, number_like(b, share, 0)), 1, &last, false);
    if (!rows || !of_each)
        return NULL;
    const qn_dim count = rows->type.dims[1], column[2] = { count, qn_onnx_dim(n, 1) };
    qn_value *list = qn_b_reshape(b, rows, 1, &count);
    qn_value *y = layer_of(x, 1, expert, activate(x, expert, qn_b_gather(b, tokens, list, 0)), x->hidden);
    y = mul(b, y, qn_b_reshape(b, qn_b_gather(b, of_each, list, 0), 2, column));
    return qn_b_scatter_nd(b, QN_SUM, sum, qn_b_reshape(b, rows, 2, column), y);
}

static void import_experts(qn_onnx_node *n, bool quantized)
{
    qn_builder *b = &n->b;
    experts e = { .n = n, .quantized = quantized };
    qn_value *x = qn_onnx_in(n, 0), *scores = qn_onnx_in(n, 1);
    const int second = weight_input(&e, 1);
    const qn_type *fc1 = qn_onnx_in_type(n, 2), *fc2 = qn_onnx_in_type(n, second);
    const int64_t k = qn_onnx_attr_int(n, "k", 1);
    if (!x || !scores || !fc1 || !fc2 || !refuse_options(n) || !read_function(&e))
        return;
    const int rank = x->type.rank;
    if ((rank != 2 && rank != 3) || !qn_dtype_is_float(x->type.dtype) || scores->type.rank != 2 ||
        fc1->rank != 3 || fc2->rank != 3 || !qn_type_is_static(fc1) || !qn_type_is_static(fc2)) {
        qn_onnx_malformed(
            n, "the input must be of floats, of rank 2 or 3, router_probs of rank 2 and weights of rank 3");
        return;
    }
    const bool both = e.function == SWIGLU && e.fusion;
    e.count = fc1->dims[0]->value;
    e.hidden = fc2->dims[1]->value;
    e.inner = fc1->dims[1]->value / (both ? 2 : 1);
    e.wide = x->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    if (k < 1 || k > e.count || e.hidden < 1 || e.inner < 1 || (both && fc1->dims[1]->value % 2)) {
        qn_onnx_malformed(n, "attribute k must be between 1 and the number of experts, weights must not be "
                             "empty, and of fused gates there must be an even number");
        return;
    }
    if (!check_layer(&e, 0, fc1->dims[1]->value) || !check_layer(&e, 1, e.hidden) ||
        (e.function == SWIGLU && !both && !check_layer(&e, 2, e.inner)))
        return;
    x = qn_onnx_with_dim(n, x, rank - 1, qn_onnx_dim(n, e.hidden));
    scores = qn_onnx_with_dim(n, qn_b_convert(b, e.wide, scores), 1, qn_onnx_dim(n, e.count));
    if (!x || !scores)
        return;
    const qn_type type = x->type;
    qn_dim flat[2] = { rank == 3 ? qn_dim_mul(n->im->dims, type.dims[0], type.dims[1]) : type.dims[0],
                       type.dims[rank - 1] };
    scores = qn_onnx_with_dim(n, scores, 0, flat[0]);
    qn_value *tokens = qn_b_reshape(b, qn_b_convert(b, e.wide, x), 2, flat);
    qn_node *top = scores ? qn_b_top_k(b, scores, 1, qn_onnx_dim(n, k), true) : NULL;
    if (!tokens || !top)
        return;
    qn_value *which = &top->results[1], *share = shares(&e, scores, &top->results[0], which);
    const qn_type sums = qn_type_make(n->im->module, e.wide, 2, flat);
    qn_value *sum = share ? qn_b_full(b, &sums, 0) : NULL;
    for (int64_t i = 0; i < e.count && sum; i++)
        sum = add_expert(&e, i, tokens, which, share, sum);
    qn_onnx_out(n, 0, sum ? qn_b_convert(b, type.dtype, qn_b_reshape(b, sum, rank, type.dims)) : NULL);
}

static void import_moe(qn_onnx_node *n)
{
    import_experts(n, false);
}

static void import_qmoe(qn_onnx_node *n)
{
    import_experts(n, true);
}

const qn_onnx_op qn_onnx_moe_ops[] = {
    { "MoE", "com.microsoft", 1, 0, import_moe },
    { "QMoE", "com.microsoft", 1, 0, import_qmoe },
    { 0 },
};
