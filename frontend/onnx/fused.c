/* Operators of com.microsoft that do in one what ONNX says in several, as ONNX Runtime's optimizers write them: activations with
 * a bias, products and convolutions with an activation, norms of sums. Each becomes those several again. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/functions.h"

/* ---- activations ---- */

/* Input 0, plus input `bias` where it is given. */
static qn_value *with_bias(qn_onnx_node *n, int bias)
{
    qn_value *x = qn_onnx_in(n, 0);
    return qn_onnx_has(n, bias) ? add(&n->b, x, qn_onnx_in(n, bias)) : x;
}

/* Gelu, and BiasGelu with its second input. */
static void import_gelu(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, qn_b_unary(&n->b, QN_OP_GELU, with_bias(n, 1)));
}

static void import_fast_gelu(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, qn_b_unary(&n->b, QN_OP_GELU_TANH, with_bias(n, 1)));
}

static void import_quick_gelu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const double alpha = qn_onnx_attr_float(n, "alpha", 1.702);
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_out(n, 0,
                alpha == 1 ? qn_b_unary(b, QN_OP_SILU, x)
                           : mul(b, x, qn_b_unary(b, QN_OP_LOGISTIC, mul_number(b, x, alpha))));
}

/* The first half of the last axis times gelu of the second. */
static void import_bias_split_gelu(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = with_bias(n, 1);
    if (!x)
        return;
    if (x->type.rank < 1) {
        qn_onnx_malformed(n, "X must have rank 1 or more");
        return;
    }
    const int axis = x->type.rank - 1;
    const qn_dim whole = x->type.dims[axis], half = qn_dim_floordiv(n->im->dims, whole, qn_onnx_dim(n, 2));
    qn_value *left = qn_b_slice_axis(b, x, axis, qn_onnx_dim(n, 0), half),
             *right = qn_b_slice_axis(b, x, axis, half, whole);
    qn_onnx_out(n, 0, mul(b, left, qn_b_unary(b, QN_OP_GELU, right)));
}

static void import_bias_add(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, add(&n->b, with_bias(n, 1), qn_onnx_in(n, 2)));
}

/* ---- products and convolutions with an activation ---- */

/* y through the function that attribute `activation` names; itself when there is none. Its parameters are attributes of their own,
 * or (FusedConv) in a list. */
static qn_value *activated(qn_onnx_node *n, qn_value *y)
{
    qn_builder *b = &n->b;
    const char *name = qn_onnx_attr_string(n, "activation", "");
    int n_params;
    const float *params = qn_onnx_attr_floats(n, "activation_params", &n_params);
    if (!y || !*name)
        return y;
    if (!strcmp(name, "Clip") && n_params == 2)
        return min_number(b, max_number(b, y, (double)params[0]), (double)params[1]);
    const qn_onnx_function *f = qn_onnx_function_find(name, strlen(name));
    if (!f) {
        qn_onnx_unsupported(n, "activation %s", name);
        return NULL;
    }
    const double alpha = params && n_params > 0 ? (double)params[0] : f->alpha,
                 beta = params && n_params > 1 ? (double)params[1] : f->beta;
    return qn_onnx_function_apply(b, f, qn_onnx_attr_float(n, "activation_alpha", alpha),
                                  qn_onnx_attr_float(n, "activation_beta", beta), y);
}

static void import_fused_gemm(qn_onnx_node *n)
{
    qn_value *in[3] = { qn_onnx_in(n, 0), qn_onnx_in(n, 1), qn_onnx_in_opt(n, 2) };
    if (in[0] && in[1] && qn_onnx_ok(n))
        qn_onnx_out(n, 0, activated(n, qn_onnx_apply(n, "Gemm", 13, in[2] ? 3 : 2, in)));
}

/* Input 3 is added before the activation. */
static void import_fused_conv(qn_onnx_node *n)
{
    qn_value *in[3] = { qn_onnx_in(n, 0), qn_onnx_in(n, 1), qn_onnx_in_opt(n, 2) };
    if (!in[0] || !in[1] || !qn_onnx_ok(n))
        return;
    qn_value *y = qn_onnx_apply(n, "Conv", 11, in[2] ? 3 : 2, in);
    if (qn_onnx_has(n, 3))
        y = add(&n->b, y, qn_onnx_in(n, 3));
    qn_onnx_out(n, 0, activated(n, y));
}

/* A matrix operand: with transBatch its first axis comes behind the batch's others, then the last two change places. */
static qn_value *arranged(qn_onnx_node *n, qn_value *x, const char *trans_batch, const char *trans)
{
    int64_t perm[QN_MAX_RANK];
    if (!x || x->type.rank < 2)
        return x;
    const int rank = x->type.rank;
    for (int i = 0; i < rank; i++)
        perm[i] = i;
    if (qn_onnx_attr_int(n, trans_batch, 0)) {
        for (int i = 0; i + 2 < rank; i++)
            perm[i] = i + 1;
        perm[rank - 2] = 0;
    }
    if (qn_onnx_attr_int(n, trans, 0)) {
        const int64_t swapped = perm[rank - 2];
        perm[rank - 2] = perm[rank - 1];
        perm[rank - 1] = swapped;
    }
    return qn_b_transpose(&n->b, x, perm);
}

static void import_fused_matmul(qn_onnx_node *n)
{
    const double alpha = qn_onnx_attr_float(n, "alpha", 1);
    qn_value *in[2] = { arranged(n, qn_onnx_in(n, 0), "transBatchA", "transA"),
                        arranged(n, qn_onnx_in(n, 1), "transBatchB", "transB") };
    if (!in[0] || !in[1])
        return;
    qn_value *y = qn_onnx_apply(n, "MatMul", 13, 2, in);
    qn_onnx_out(n, 0, activated(n, alpha == 1 ? y : mul_number(&n->b, y, alpha)));
}

static void import_gemm_fast_gelu(qn_onnx_node *n)
{
    qn_value *in[2] = { qn_onnx_in(n, 0), qn_onnx_in(n, 1) };
    if (!in[0] || !in[1])
        return;
    qn_value *y = qn_onnx_apply(n, "MatMul", 13, 2, in);
    y = qn_onnx_has(n, 2) ? add(&n->b, y, qn_onnx_in(n, 2)) : y;
    qn_onnx_out(n, 0, qn_b_unary(&n->b, QN_OP_GELU_TANH, y));
}

/* ---- norms of sums ---- */

/* Layer norm, or RMS norm, over the last axis; `offset` may be NULL. */
static qn_value *norm(qn_onnx_node *n, qn_value *x, qn_value *scale, qn_value *offset, bool rms)
{
    const double epsilon = qn_onnx_attr_float(n, "epsilon", 1e-12);
    if (!x || !scale || !qn_onnx_ok(n))
        return NULL;
    if (x->type.rank < 1 || scale->type.rank != 1 || (offset && offset->type.rank != 1)) {
        qn_onnx_malformed(n, "the input must have rank 1 or more, and gamma and beta rank 1");
        return NULL;
    }
    const int axis = x->type.rank - 1;
    x = qn_onnx_with_dim(n, x, axis, scale->type.dims[0]);
    offset = offset ? qn_onnx_with_dim(n, offset, 0, scale->type.dims[0]) : NULL;
    return rms ? qn_b_rms_norm(&n->b, x, scale, axis, epsilon)
               : qn_b_layer_norm(&n->b, x, scale, offset, axis, epsilon);
}

/* Of (input + skip + bias); the sum is an output, too. */
static void import_skip_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const bool rms = !strcmp(n->proto->op_type, "SkipSimplifiedLayerNormalization");
    const int bias = rms ? 3 : 4;
    qn_value *x = qn_onnx_in(n, 0), *skip = qn_onnx_in(n, 1);
    if (!x || !skip)
        return;
    const int extra = x->type.rank - skip->type.rank;
    for (int i = 0; extra >= 0 && i < skip->type.rank; i++)
        if (!qn_dim_is(skip->type.dims[i], 1))
            skip = qn_onnx_with_dim(n, skip, i, x->type.dims[i + extra]);
    qn_value *sum = add(b, x, skip);
    if (qn_onnx_has(n, bias))
        sum = add(b, sum, qn_onnx_in(n, bias));
    if (!sum)
        return;
    if (sum->type.rank != x->type.rank) {
        qn_onnx_malformed(n, "skip and bias must not have a higher rank than the input");
        return;
    }
    if (qn_onnx_wants(n, 1) || qn_onnx_wants(n, 2)) {
        qn_onnx_unsupported(n, "output %d (%s)", qn_onnx_wants(n, 1) ? 1 : 2,
                            qn_onnx_wants(n, 1) ? "mean" : "inv_std_var");
        return;
    }
    qn_onnx_out(n, 0, norm(n, sum, qn_onnx_in(n, 2), rms ? NULL : qn_onnx_in_opt(n, 3), rms));
    qn_onnx_out(n, 3, sum);
}

/* Numbers for each channel, or for each channel of each of a batch, as they lie beside x, whose channels are `axis`. */
static qn_value *of_channels(qn_onnx_node *n, qn_value *v, const qn_value *x, int axis)
{
    qn_dim dims[QN_MAX_RANK];
    if (!v || v->type.rank < 1 || v->type.rank > 2)
        return v;
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = qn_dim_const(n->im->dims, 1);
    if (v->type.rank == 2)
        dims[0] = v->type.dims[0];
    dims[axis] = v->type.dims[v->type.rank - 1];
    return qn_b_reshape(&n->b, v, x->type.rank, dims);
}

/* x + skip + bias; NULL where that has other dims than x. */
static qn_value *with_skip(qn_onnx_node *n, qn_value *x, int axis)
{
    qn_value *skip = of_channels(n, qn_onnx_in(n, 3), x, axis),
             *bias = of_channels(n, qn_onnx_in_opt(n, 4), x, axis);
    qn_value *sum = skip ? add(&n->b, x, skip) : NULL;
    sum = bias ? add(&n->b, sum, bias) : sum;
    if (sum && (sum->type.rank != x->type.rank ||
                memcmp(sum->type.dims, x->type.dims, (size_t)x->type.rank * sizeof *x->type.dims) != 0)) {
        qn_onnx_malformed(n, "skip and bias must broadcast to the input");
        return NULL;
    }
    return sum;
}

/* As the UNet of a diffusion model has it: of channels that lie last, behind a sum and in front of silu. */
static void import_group_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const int64_t groups = qn_onnx_attr_int(n, "groups", 0), silu = qn_onnx_attr_int(n, "activation", 0);
    qn_value *x = qn_onnx_in(n, 0), *gamma = qn_onnx_in(n, 1), *beta = qn_onnx_in(n, 2);
    if (!x || !gamma || !beta)
        return;
    if (x->type.rank < 2 || gamma->type.rank != 1 || beta->type.rank != 1 || groups < 1) {
        qn_onnx_malformed(
            n, "the input must have channels, gamma and beta rank 1, and attribute groups be positive");
        return;
    }
    if (silu != 0 && silu != 1) {
        qn_onnx_unsupported(n, "attribute activation = %lld", (long long)silu);
        return;
    }
    const int rank = x->type.rank, axis = qn_onnx_attr_int(n, "channels_last", 1) ? rank - 1 : 1;
    int64_t first[QN_MAX_RANK] = { 0, axis }, back[QN_MAX_RANK] = { 0 };
    for (int i = 2; i < rank; i++)
        first[i] = axis == 1 ? i : i - 1;
    for (int i = 0; i < rank; i++)
        back[first[i]] = i;
    x = qn_onnx_with_dim(n, x, axis, gamma->type.dims[0]);
    beta = qn_onnx_with_dim(n, beta, 0, gamma->type.dims[0]);
    if (!strcmp(n->proto->op_type, "SkipGroupNorm"))
        qn_onnx_out(n, 1, x = x ? with_skip(n, x, axis) : NULL);
    x = qn_b_transpose(b, x, first);
    if (!x || !beta)
        return;
    qn_value *y = qn_b_group_norm(b, x, gamma, beta, groups, qn_onnx_attr_float(n, "epsilon", 1e-5));
    qn_onnx_out(n, 0, qn_b_transpose(b, silu ? qn_b_unary(b, QN_OP_SILU, y) : y, back));
}

/* What bytes stand for, by the scale at `scale` and the zero point five inputs behind it, which are scalars; with scale 0, x
 * itself. */
static qn_value *numbers_of(qn_onnx_node *n, qn_value *x, int scale)
{
    qn_builder *b = &n->b;
    if (!x || scale == 0)
        return x;
    qn_value *of[2] = { qn_onnx_in(n, scale), qn_onnx_in(n, scale + 5) };
    for (int i = 0; i < 2; i++)
        if (!(of[i] = of[i] ? qn_b_reshape(b, of[i], 0, NULL) : NULL))
            return NULL;
    return qn_b_dequantize(b, x, of[0], of[1], -1, 0);
}

/* Row k of a table for each number of `ids`. */
static qn_value *embedded(qn_onnx_node *n, int table, int scale, qn_value *ids)
{
    qn_value *rows = qn_onnx_in(n, table);
    if (!rows || !ids)
        return NULL;
    if (rows->type.rank != 2) {
        qn_onnx_malformed(n, "input %d must have rank 2", table);
        return NULL;
    }
    return numbers_of(n, qn_b_gather(&n->b, rows, ids, 0), scale);
}

/* Layer norm of the sum of a word's embedding, its position's and (where given) its segment's. Tables and parameters may be
 * bytes, and have scales then. */
static void import_embed_norm(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const bool bytes = n->proto->op_type[0] == 'Q';
    const int scale = bytes ? 8 : 0, each = bytes ? 1 : 0;
    qn_value *ids = qn_onnx_in(n, 0), *mask = qn_onnx_in_opt(n, 7),
             *positions = bytes ? NULL : qn_onnx_in_opt(n, 8);
    if (!ids || !qn_onnx_ok(n))
        return;
    if (ids->type.rank != 2 || (mask && mask->type.rank != 2)) {
        qn_onnx_malformed(n, "input_ids and mask must have rank 2");
        return;
    }
    const qn_dim batch = ids->type.dims[0], length = ids->type.dims[1];
    if (!positions) {
        qn_type type = qn_type_make(n->im->module, ids->type.dtype, 1, &length);
        positions = qn_b_iota(b, &type, 0);
    }
    qn_value *sum = add(b, embedded(n, 2, scale, ids), embedded(n, 3, scale + each, positions));
    if (qn_onnx_has(n, 1))
        sum = add(b, sum, embedded(n, 4, scale + 2 * each, qn_onnx_in(n, 1)));
    qn_value *gamma = numbers_of(n, qn_onnx_in(n, 5), bytes ? 11 : 0),
             *beta = numbers_of(n, qn_onnx_in(n, 6), bytes ? 12 : 0);
    qn_onnx_out(n, 0, beta ? norm(n, sum, gamma, beta, false) : NULL);
    qn_onnx_out(n, 2, sum);
    if (!qn_onnx_wants(n, 1))
        return;
    const int64_t last = 1;
    qn_type none = qn_type_make(n->im->module, QUERN_I32, 1, &batch);
    qn_value *words = mask ? qn_b_convert(b, QUERN_I32, compare_number(b, QN_EQ, mask, 1)) : NULL;
    qn_onnx_out(n, 1, mask ? qn_b_reduce(b, QN_SUM, words, 1, &last, false) : qn_b_full(b, &none, 0));
}

const qn_onnx_op qn_onnx_fused_ops[] = {
    { "Gelu", "com.microsoft", 1, 0, import_gelu },
    { "BiasGelu", "com.microsoft", 1, 0, import_gelu },
    { "FastGelu", "com.microsoft", 1, 0, import_fast_gelu },
    { "QuickGelu", "com.microsoft", 1, 0, import_quick_gelu },
    { "BiasSplitGelu", "com.microsoft", 1, 0, import_bias_split_gelu },
    { "BiasAdd", "com.microsoft", 1, 0, import_bias_add },
    { "FusedGemm", "com.microsoft", 1, 0, import_fused_gemm },
    { "FusedConv", "com.microsoft", 1, 0, import_fused_conv },
    { "FusedMatMul", "com.microsoft", 1, 0, import_fused_matmul },
    { "FusedMatMulActivation", "com.microsoft", 1, 0, import_fused_matmul },
    { "TransposeMatMul", "com.microsoft", 1, 0, import_fused_matmul },
    { "GemmFastGelu", "com.microsoft", 1, 0, import_gemm_fast_gelu },
    { "SkipLayerNormalization", "com.microsoft", 1, 0, import_skip_norm },
    { "SkipSimplifiedLayerNormalization", "com.microsoft", 1, 0, import_skip_norm },
    { "GroupNorm", "com.microsoft", 1, 0, import_group_norm },
    { "SkipGroupNorm", "com.microsoft", 1, 0, import_group_norm },
    { "EmbedLayerNormalization", "com.microsoft", 1, 0, import_embed_norm },
    { "QEmbedLayerNormalization", "com.microsoft", 1, 0, import_embed_norm },
    { 0 },
};
