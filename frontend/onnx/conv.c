/* Convolutions. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/window.h"

/* Kernel extents of weights [O, I, k…]; false after a report when they are symbolic. */
static bool kernel_of(qn_onnx_node *n, const qn_type *x, const qn_type *w, int64_t *kernel)
{
    if (x->rank < 3 || w->rank != x->rank) {
        qn_onnx_malformed(n, "input and weights must have the same rank, 3 or more");
        return false;
    }
    int n_given;
    const int64_t *given = qn_onnx_attr_ints(n, "kernel_shape", &n_given);
    for (int i = 2; i < w->rank; i++) {
        if (!qn_dim_is_const(w->dims[i])) {
            qn_onnx_needs_dim(n, w->dims[i]);
            qn_onnx_unsupported(n, "the kernel's extents must be constant");
            return false;
        }
        kernel[i - 2] = w->dims[i]->value;
        if (kernel[i - 2] < 1 || kernel[i - 2] > (1 << 20) ||
            (given && (n_given != w->rank - 2 || given[i - 2] != kernel[i - 2]))) {
            qn_onnx_malformed(
                n, "attribute kernel_shape differs from the shape of the weights, or a kernel is empty");
            return false;
        }
    }
    return true;
}

qn_value *qn_onnx_per_channel(qn_onnx_node *n, int i, int rank)
{
    qn_value *v = qn_onnx_in(n, i);
    qn_dim dims[QN_MAX_RANK];
    if (!v)
        return NULL;
    if (v->type.rank != 1 || rank < 2) {
        qn_onnx_malformed(n, "input %d must have rank 1, and the first rank 2 or more", i);
        return NULL;
    }
    for (int k = 0; k < rank - 1; k++)
        dims[k] = k ? qn_dim_const(n->im->dims, 1) : v->type.dims[0];
    return qn_b_reshape(&n->b, v, rank - 1, dims);
}

qn_value *qn_onnx_convolve(qn_onnx_node *n, qn_value *x, qn_value *w)
{
    int64_t kernel[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK], ones[QN_MAX_RANK];
    qn_onnx_window window;
    if (!x || !w || !kernel_of(n, &x->type, &w->type, kernel) ||
        !qn_onnx_window_read(n, &x->type, kernel, &window))
        return NULL;
    if (!qn_onnx_window_is_static(&window))
        x = qn_onnx_window_pad(n, &window, x, number_like(&n->b, x, 0));
    for (int i = 0; i < window.n; i++) {
        low[i] = window.low[i]->value;
        high[i] = window.high[i]->value;
        ones[i] = 1;
    }
    qn_conv conv = { window.stride, low, high, ones, window.dilation, qn_onnx_attr_int(n, "group", 1) };
    if (conv.groups < 1) {
        qn_onnx_malformed(n, "attribute group must be positive");
        return NULL;
    }
    qn_dim channels = qn_dim_mul(n->im->dims, w->type.dims[1], qn_dim_const(n->im->dims, conv.groups));
    x = qn_onnx_with_dim(n, x, 1, channels);
    return qn_b_convolution(&n->b, x, w, &conv);
}

static void import_conv(qn_onnx_node *n)
{
    qn_value *y = qn_onnx_convolve(n, qn_onnx_in(n, 0), qn_onnx_in(n, 1));
    if (y && qn_onnx_has(n, 2))
        y = add(&n->b, y, qn_onnx_per_channel(n, 2, y->type.rank));
    qn_onnx_out(n, 0, y);
}

/* Weights [C, M/g, k…] -> [M, C/g, k…], kernels reversed: those of the convolution that spreads what it did gather. */
static qn_value *transpose_weights(qn_onnx_node *n, qn_value *w, int64_t groups)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    int rank = w->type.rank;
    qn_dim split[QN_MAX_RANK], merged[QN_MAX_RANK], g = qn_dim_const(t, groups);
    int64_t perm[QN_MAX_RANK], axes[QN_MAX_RANK];
    if (rank + 1 > QN_MAX_RANK)
        return NULL;
    split[0] = g;
    split[1] = qn_dim_floordiv(t, w->type.dims[0], g);
    split[2] = w->type.dims[1];
    merged[0] = qn_dim_mul(t, w->type.dims[1], g);
    merged[1] = split[1];
    perm[0] = 0, perm[1] = 2, perm[2] = 1;
    for (int i = 2; i < rank; i++) {
        split[i + 1] = merged[i] = w->type.dims[i];
        perm[i + 1] = i + 1;
        axes[i - 2] = i;
    }
    w = qn_b_reverse(b, w, rank - 2, axes);
    return qn_b_reshape(b, qn_b_transpose(b, qn_b_reshape(b, w, rank + 1, split), perm), rank, merged);
}

static void import_conv_transpose(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *w = qn_onnx_in(n, 1);
    int64_t kernel[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK], ones[QN_MAX_RANK];
    qn_onnx_window window;
    if (!x || !w || !kernel_of(n, &x->type, &w->type, kernel))
        return;
    int64_t groups = qn_onnx_attr_int(n, "group", 1);
    int n_spatial = x->type.rank - 2, n_extra, n_shape;
    const int64_t *extra = qn_onnx_attr_ints(n, "output_padding", &n_extra);
    const int64_t *shape = qn_onnx_attr_ints(n, "output_shape", &n_shape);
    /* the window is read for an input that any kernel fits, for its checks of the attributes */
    qn_type large = x->type;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = qn_dim_const(n->im->dims, QN_DIM_MAX_VALUE);
    large.dims = dims;
    if (!qn_onnx_window_read(n, &large, kernel, &window))
        return;
    if (groups < 1 || (extra && n_extra != n_spatial) || (shape && n_shape != n_spatial)) {
        qn_onnx_malformed(n, "attribute group, output_padding or output_shape does not fit");
        return;
    }
    const char *auto_pad = qn_onnx_attr_string(n, "auto_pad", "NOTSET");
    bool upper = !strcmp(auto_pad, "SAME_UPPER"), same = upper || !strcmp(auto_pad, "SAME_LOWER");
    for (int i = 0; i < n_spatial; i++) {
        int64_t reach = (kernel[i] - 1) * window.dilation[i], more = extra ? extra[i] : 0;
        int64_t pad_low = same ? 0 : window.low[i]->value, pad_high = same ? 0 : window.high[i]->value;
        if (more < 0 || more > (1 << 20) || (shape && (shape[i] < 0 || shape[i] > QN_DIM_MAX_VALUE))) {
            qn_onnx_malformed(n, "attribute output_padding or output_shape is out of range");
            return;
        }
        if (shape || same) {
            qn_dim extent = x->type.dims[i + 2];
            int64_t total = reach + 1 + more - window.stride[i];
            if (shape && !qn_dim_is_const(extent)) {
                qn_onnx_needs_dim(n, extent);
                qn_onnx_unsupported(n, "attribute output_shape with a symbolic dimension");
                return;
            }
            if (shape)
                total += extent->value * window.stride[i] - shape[i];
            /* the input would have to reach further than it does: only padding at the end can make that up */
            pad_low = total < 0 ? 0 : upper ? total / 2 : total - total / 2;
            pad_high = total - pad_low;
        }
        low[i] = reach - pad_low;
        high[i] = reach - pad_high + more;
        ones[i] = 1;
    }
    x = qn_onnx_with_dim(n, x, 1, w->type.dims[0]);
    w = transpose_weights(n, w, groups);
    qn_conv conv = { ones, low, high, window.stride, window.dilation, groups };
    qn_value *y = qn_b_convolution_in_phases(b, x, w, &conv);
    if (y && qn_onnx_has(n, 2))
        y = add(b, y, qn_onnx_per_channel(n, 2, y->type.rank));
    qn_onnx_out(n, 0, y);
}

/* Sums blocks [N, C * block, L] into the image they were cut from: per position in the block, its elements spread out by
 * stride and padded to where they belong. */
static void import_col2im(qn_onnx_node *n)
{
    enum { MAX_BLOCK = 1024 };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t image[QN_MAX_RANK], block[QN_MAX_RANK];
    int n_image, n_block;
    if (!x || !qn_onnx_in_ints(n, 1, QN_MAX_RANK - 3, image, &n_image) ||
        !qn_onnx_in_ints(n, 2, QN_MAX_RANK - 3, block, &n_block))
        return;
    if (x->type.rank != 3 || n_image != n_block || n_image < 1) {
        qn_onnx_malformed(n, "the input must have rank 3, and image and block the same number of axes");
        return;
    }
    /* the window's attributes, over an image of that shape */
    qn_dim dims[QN_MAX_RANK], split[QN_MAX_RANK];
    int64_t n_blocks = 1, size = 1;
    dims[0] = x->type.dims[0];
    dims[1] = qn_dim_const(t, 1);
    for (int i = 0; i < n_image; i++) {
        if (block[i] < 1 || block[i] > MAX_BLOCK || image[i] < 1 || image[i] > (1 << 24) ||
            size * block[i] > MAX_BLOCK) {
            qn_onnx_unsupported(n, "an image or block of that size; blocks of %d elements are supported",
                                MAX_BLOCK);
            return;
        }
        size *= block[i];
        dims[i + 2] = qn_dim_const(t, image[i]);
    }
    qn_type type = qn_type_make(n->im->module, x->type.dtype, n_image + 2, dims);
    qn_onnx_window w;
    if (!qn_onnx_window_read(n, &type, block, &w))
        return;
    qn_dim channels = qn_dim_floordiv(t, x->type.dims[1], qn_dim_const(t, size));
    split[0] = x->type.dims[0];
    split[1] = channels;
    split[2] = qn_dim_const(t, size);
    for (int i = 0; i < n_image; i++) {
        split[i + 3] = w.out[i];
        n_blocks *= w.out[i]->value;
    }
    if (!qn_dim_is(x->type.dims[2], n_blocks) && qn_dim_is_const(x->type.dims[2])) {
        qn_onnx_malformed(n, "there are %lld blocks and the image has room for %lld",
                          (long long)x->type.dims[2]->value, (long long)n_blocks);
        return;
    }
    x = qn_b_reshape(b, x, n_image + 3, split);
    qn_value *sum = NULL, *zero = number_like(b, x, 0);
    for (int64_t k = 0; k < size; k++) {
        qn_value *part =
            qn_b_squeeze(b, qn_b_slice_axis(b, x, 2, qn_dim_const(t, k), qn_dim_const(t, k + 1)), 2);
        qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
        int64_t interior[QN_MAX_RANK] = { 0 }, rest = k;
        low[0] = low[1] = high[0] = high[1] = qn_dim_const(t, 0);
        for (int i = n_image - 1; i >= 0; i--) {
            int64_t at = rest % block[i] * w.dilation[i] - w.low[i]->value;
            int64_t reach = (w.out[i]->value - 1) * w.stride[i] + 1;
            rest /= block[i];
            interior[i + 2] = w.stride[i] - 1;
            low[i + 2] = qn_dim_const(t, at);
            high[i + 2] = qn_dim_const(t, image[i] - at - reach);
        }
        part = qn_b_pad(b, part, zero, low, high, interior);
        sum = sum ? add(b, sum, part) : part;
    }
    qn_onnx_out(n, 0, sum);
}

const qn_onnx_op qn_onnx_conv_ops[] = {
    { "Conv", NULL, 1, 0, import_conv },
    { "ConvTranspose", NULL, 1, 0, import_conv_transpose },
    { "Col2Im", NULL, 18, 0, import_col2im },
    { 0 },
};
