/* Pools. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/window.h"

/* reduce_window of all axes; padding is the kind's neutral element. */
static qn_value *reduce_window(qn_onnx_node *n, qn_kind kind, qn_value *x, const qn_onnx_window *given)
{
    qn_builder *b = &n->b;
    qn_onnx_window w = *given;
    int64_t kernel[QN_MAX_RANK], stride[QN_MAX_RANK], dilation[QN_MAX_RANK], low[QN_MAX_RANK],
        high[QN_MAX_RANK];
    if (!qn_onnx_window_is_static(&w))
        x = qn_onnx_window_pad(n, &w, x, kind == QN_KIND_MAX ? lowest_like(b, x) : number_like(b, x, 0));
    kernel[0] = kernel[1] = stride[0] = stride[1] = dilation[0] = dilation[1] = 1;
    low[0] = low[1] = high[0] = high[1] = 0;
    for (int i = 0; i < w.n; i++) {
        kernel[i + 2] = w.kernel[i];
        stride[i + 2] = w.stride[i];
        dilation[i + 2] = w.dilation[i];
        low[i + 2] = w.low[i]->value;
        high[i + 2] = w.high[i]->value + w.extra[i]->value;
    }
    qn_window window = { kernel, stride, dilation, low, high };
    return qn_b_reduce_window(b, kind, x, &window);
}

/* ---- max ---- */

/* Positions of the maxima in the flattened input: per window position a strided slice of the padded input, stacked along
 * a new axis; arg_reduce along it gives the window position, tables its coordinates. */
static qn_value *max_positions(qn_onnx_node *n, qn_value *x, const qn_onnx_window *given, bool column_major)
{
    enum { MAX_PATCHES = 1024 };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_onnx_window w = *given;
    int64_t n_patches = 1, low[QN_MAX_RANK];
    int rank = x->type.rank;
    for (int i = 0; i < w.n; i++) {
        n_patches *= w.kernel[i];
        if (!qn_dim_is_const(w.low[i]) || n_patches > MAX_PATCHES) {
            qn_onnx_unsupported(n, "indices of windows of more than %d elements or of symbolic padding",
                                MAX_PATCHES);
            return NULL;
        }
        low[i] = w.low[i]->value;
    }
    qn_value *padded = qn_onnx_window_pad(n, &w, x, lowest_like(b, x));
    qn_value **patches = QN_NEW_ARRAY(n->im->arena, qn_value *, n_patches);
    int64_t *offsets = QN_NEW_ARRAY(n->im->arena, int64_t, n_patches *w.n); /* [axis][patch] */
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK], one = qn_dim_const(t, 1);
    int64_t stride[QN_MAX_RANK];
    for (int64_t p = 0; p < n_patches; p++) {
        int64_t rest = p;
        for (int i = w.n - 1; i >= 0; i--) {
            offsets[i * n_patches + p] = rest % w.kernel[i] * w.dilation[i];
            rest /= w.kernel[i];
        }
        for (int i = 0; i < rank; i++) {
            start[i] = i < 2 ? qn_dim_const(t, 0) : qn_dim_const(t, offsets[(i - 2) * n_patches + p]);
            stride[i] = i < 2 ? 1 : w.stride[i - 2];
            qn_dim count = i < 2 ? x->type.dims[i] : w.out[i - 2];
            qn_dim length = qn_dim_mul(t, qn_dim_sub(t, count, one), qn_dim_const(t, stride[i]));
            limit[i] = i < 2 ? count : qn_dim_add(t, qn_dim_add(t, start[i], length), one);
        }
        patches[p] = qn_b_expand_dims(b, qn_b_slice(b, padded, start, limit, stride), rank);
    }
    qn_value *chosen =
        qn_b_arg_reduce(b, QN_KIND_MAX, qn_b_concatenate(b, (int)n_patches, patches, rank), rank, false);
    if (!chosen)
        return NULL;
    qn_type index_type = qn_type_make(n->im->module, QUERN_I64, rank, chosen->type.dims);
    qn_value *sum = NULL;
    qn_dim scale = one;
    for (int k = 0; k < rank; k++) { /* from the fastest axis */
        int axis = rank - 1 - k;
        if (column_major && k < w.n)
            axis = 2 + k;
        qn_value *at = qn_b_iota(b, &index_type, axis);
        if (axis >= 2) {
            qn_value *table = qn_b_ints(b, (int)n_patches, offsets + (axis - 2) * n_patches);
            at = add_number(b, mul_number(b, at, (double)w.stride[axis - 2]), (double)-low[axis - 2]);
            at = add(b, at, qn_b_gather(b, table, chosen, 0));
        }
        at = mul(b, at, qn_b_dim_value(b, QUERN_I64, scale));
        sum = sum ? add(b, sum, at) : at;
        scale = qn_dim_mul(t, scale, x->type.dims[axis]);
    }
    return sum;
}

static void import_max_pool(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_window window;
    if (!x || !qn_onnx_window_read(n, &x->type, NULL, &window))
        return;
    qn_onnx_out(n, 0, reduce_window(n, QN_KIND_MAX, x, &window));
    if (qn_onnx_wants(n, 1))
        qn_onnx_out(n, 1, max_positions(n, x, &window, qn_onnx_attr_int(n, "storage_order", 0) != 0));
}

/* Scatters the values to their positions in zeros of the unpooled shape. */
static void import_max_unpool(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *index = qn_onnx_in(n, 1);
    qn_onnx_window w;
    int n_dims;
    if (!x || !index)
        return;
    /* the attributes are those of a pool that gave x: read for an input that fits */
    qn_type large = x->type;
    qn_dim big[QN_MAX_RANK], dims[QN_MAX_RANK], real[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        big[i] = qn_dim_const(t, QN_DIM_MAX_VALUE);
    large.dims = big;
    if (!qn_onnx_window_read(n, &large, NULL, &w))
        return;
    for (int i = 0; i < x->type.rank; i++) {
        dims[i] = x->type.dims[i];
        if (i < 2)
            continue;
        qn_dim grown =
            qn_dim_mul(t, qn_dim_sub(t, dims[i], qn_dim_const(t, 1)), qn_dim_const(t, w.stride[i - 2]));
        qn_dim pads = qn_dim_add(t, w.low[i - 2], w.high[i - 2]);
        dims[i] = qn_dim_sub(t, qn_dim_add(t, grown, qn_dim_const(t, w.kernel[i - 2])), pads);
    }
    /* positions are those in the pool's input, of these dims; a larger output is zero beyond them */
    qn_dim all = qn_dim_const(t, 1), count = qn_type_elements_dim(t, &x->type);
    for (int i = 0; i < x->type.rank; i++) {
        all = qn_dim_mul(t, all, dims[i]);
        real[i] = dims[i];
    }
    if (qn_onnx_has(n, 2)) {
        if (!qn_onnx_in_dims(n, 2, QN_MAX_RANK, real, &n_dims))
            return;
        if (n_dims != x->type.rank) {
            qn_onnx_malformed(n, "the output shape must have an element per axis");
            return;
        }
    }
    qn_type flat = qn_type_make(n->im->module, x->type.dtype, 1, &all);
    qn_value *y = qn_b_scatter_elements(b, QN_SET, qn_b_full(b, &flat, 0), qn_b_reshape(b, index, 1, &count),
                                        qn_b_reshape(b, x, 1, &count), 0);
    y = qn_b_reshape(b, y, x->type.rank, dims);
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++) {
        low[i] = qn_dim_const(t, 0);
        high[i] = qn_dim_sub(t, real[i], dims[i]);
    }
    qn_onnx_out(n, 0, qn_b_pad(b, y, number_like(b, x, 0), low, high, NULL));
}

/* ---- average ---- */

/* How many positions of each window are counted along a spatial axis; NULL when all count. */
static qn_value *count_axis(qn_onnx_node *n, qn_value *x, const qn_onnx_window *w, int i, bool with_padding)
{
    int64_t extent = x->type.dims[i + 2]->value, out = w->out[i]->value;
    int64_t first = with_padding ? -w->low[i]->value : 0;
    int64_t last = extent + (with_padding ? w->high[i]->value : 0);
    double *counts = QN_NEW_ARRAY(n->im->arena, double, out);
    bool full = true;
    for (int64_t o = 0; o < out; o++) {
        int64_t at = o * w->stride[i] - w->low[i]->value, dilation = w->dilation[i];
        int64_t from = at >= first ? 0 : (first - at + dilation - 1) / dilation;
        int64_t to = at >= last ? 0 : (last - 1 - at) / dilation + 1;
        to = to < w->kernel[i] ? to : w->kernel[i];
        int64_t count = to > from ? to - from : 0;
        counts[o] = (double)count;
        full &= count == w->kernel[i];
    }
    if (full)
        return NULL;
    int64_t dims[QN_MAX_RANK];
    for (int k = 0; k < x->type.rank; k++)
        dims[k] = k == i + 2 ? out : 1;
    const qn_tensor *tensor = qn_onnx_tensor_of(n->im, QUERN_F64, x->type.rank, dims, counts);
    return qn_b_convert(&n->b, x->type.dtype, qn_b_constant(&n->b, tensor));
}

static void import_average_pool(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_window w;
    if (!x || !qn_onnx_window_read(n, &x->type, NULL, &w))
        return;
    bool with_padding = qn_onnx_attr_int(n, "count_include_pad", 0) != 0,
         is_static = qn_onnx_window_is_static(&w);
    bool padded = false;
    double full = 1;
    for (int i = 0; i < w.n; i++) {
        is_static &= qn_dim_is_const(x->type.dims[i + 2]) && w.out[i]->value < (1 << 20);
        bool own = !qn_dim_is(w.low[i], 0) || !qn_dim_is(w.high[i], 0);
        padded |= (own && !with_padding) || !qn_dim_is(w.extra[i], 0);
        full *= (double)w.kernel[i];
    }
    qn_value *y = reduce_window(n, QN_SUM, x, &w);
    if (!padded) {
        qn_onnx_out(n, 0, div_number(b, y, full));
        return;
    }
    if (!is_static) { /* count by pooling ones */
        qn_dim dims[QN_MAX_RANK];
        for (int i = 0; i < x->type.rank; i++)
            dims[i] = i < 2 ? qn_dim_const(n->im->dims, 1) : x->type.dims[i];
        qn_type type = qn_type_make(n->im->module, x->type.dtype, x->type.rank, dims);
        qn_value *ones = qn_b_full(b, &type, 1);
        qn_onnx_window inner = w;
        if (with_padding) {
            for (int i = 0; i < w.n; i++)
                inner.extra[i] = qn_dim_const(n->im->dims, 0);
            ones = qn_onnx_window_pad(n, &inner, ones, number_like(b, x, 1));
            for (int i = 0; i < w.n; i++)
                inner.extra[i] = w.extra[i];
        }
        qn_onnx_out(n, 0, divide(b, y, reduce_window(n, QN_SUM, ones, &inner)));
        return;
    }
    qn_value *counts = number_like(b, x, 1);
    for (int i = 0; i < w.n; i++) {
        qn_value *axis = count_axis(n, x, &w, i, with_padding);
        counts = axis ? mul(b, counts, axis) : mul_number(b, counts, (double)w.kernel[i]);
    }
    qn_onnx_out(n, 0, divide(b, y, counts));
}

/* (sum |x|^p)^(1/p) */
static qn_value *lp_norm(qn_builder *b, qn_value *x, int64_t p, bool before)
{
    qn_value *exponent = number_like(b, x, before ? (double)p : 1.0 / (double)p);
    if (before)
        x = qn_b_unary(b, QN_OP_ABS, x);
    return p == 1 ? x : qn_b_binary_bcast(b, QN_OP_POW, x, exponent);
}

static void import_lp_pool(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_onnx_window w;
    if (!x || !qn_onnx_window_read(n, &x->type, NULL, &w))
        return;
    int64_t p = qn_onnx_attr_int(n, "p", 2);
    qn_onnx_out(n, 0, lp_norm(&n->b, reduce_window(n, QN_SUM, lp_norm(&n->b, x, p, true), &w), p, false));
}

/* ---- over all positions ---- */

static void import_global_pool(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t axes[QN_MAX_RANK], p = qn_onnx_attr_int(n, "p", 2);
    if (!x)
        return;
    if (x->type.rank < 3) {
        qn_onnx_malformed(n, "the input must have rank 3 or more");
        return;
    }
    int n_axes = x->type.rank - 2;
    for (int i = 0; i < n_axes; i++)
        axes[i] = i + 2;
    if (!strcmp(n->proto->op_type, "GlobalAveragePool"))
        x = qn_b_mean(b, x, n_axes, axes, true);
    else if (!strcmp(n->proto->op_type, "GlobalMaxPool"))
        x = qn_b_reduce(b, QN_KIND_MAX, x, n_axes, axes, true);
    else
        x = lp_norm(b, qn_b_reduce(b, QN_SUM, lp_norm(b, x, p, true), n_axes, axes, true), p, false);
    qn_onnx_out(n, 0, x);
}

const qn_onnx_op qn_onnx_pool_ops[] = {
    { "MaxPool", NULL, 1, 0, import_max_pool },
    { "MaxUnpool", NULL, 9, 0, import_max_unpool },
    { "AveragePool", NULL, 1, 0, import_average_pool },
    { "LpPool", NULL, 2, 0, import_lp_pool },
    { "GlobalAveragePool", NULL, 1, 0, import_global_pool },
    { "GlobalMaxPool", NULL, 1, 0, import_global_pool },
    { "GlobalLpPool", NULL, 2, 0, import_global_pool },
    { 0 },
};
