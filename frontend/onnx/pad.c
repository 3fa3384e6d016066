/* Operators that put elements around a tensor, or take some off: Pad, CenterCropPad. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* Index of the source element of position at (counted from the first unpadded one) under a mode. */
static int64_t padded_source(const char *mode, int64_t at, int64_t extent)
{
    if (!strcmp(mode, "edge"))
        return at < 0 ? 0 : at >= extent ? extent - 1 : at;
    int64_t period = !strcmp(mode, "wrap") ? extent : 2 * (extent - 1);
    if (period <= 0)
        return 0;
    at = (at % period + period) % period;
    return at < extent ? at : period - at;
}

enum { MAX_GATHERED = 1 << 24 };

/* One axis by a gather of constant indices. low and high are not negative and within the range of dimensions. */
static qn_value *pad_axis(qn_onnx_node *n, qn_value *x, int axis, const char *mode, int64_t low, int64_t high)
{
    int64_t extent = x->type.dims[axis]->value, count = low + extent + high;
    if (count > MAX_GATHERED || (extent == 0 && count > 0)) {
        qn_onnx_unsupported(n, "padding axis %d from %lld to %lld elements", axis, (long long)extent,
                            (long long)count);
        return NULL;
    }
    int64_t *index = QN_NEW_ARRAY(n->im->arena, int64_t, count);
    for (int64_t i = 0; i < count; i++)
        index[i] = padded_source(mode, i - low, extent);
    return qn_b_gather(&n->b, x, qn_b_ints(&n->b, (int)count, index), axis);
}

/* Elements [start, limit) of the axis in front of or behind it; reflected ones backwards. */
static qn_value *pad_piece(qn_onnx_node *n, qn_value *x, int axis, qn_dim start, qn_dim limit, bool backwards)
{
    qn_value *piece = qn_b_slice_axis(&n->b, x, axis, start, limit);
    return backwards ? qn_b_reverse(&n->b, piece, 1, (int64_t[]){ axis }) : piece;
}

/* Has the axis all that goes in front of it or behind it? A symbolic one is taken to. */
static bool has_pieces(qn_dim extent, const char *mode, int64_t low, int64_t high)
{
    const int64_t most = low > high ? low : high;
    return !qn_dim_is_const(extent) || (!strcmp(mode, "edge")      ? extent->value > 0
                                        : !strcmp(mode, "reflect") ? most < extent->value
                                                                   : most <= extent->value);
}

/* One axis by known amounts: pieces of it on either side, which are copied as runs. */
static qn_value *pad_pieces(qn_onnx_node *n, qn_value *x, int axis, const char *mode, int64_t low,
                            int64_t high)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_dim extent = x->type.dims[axis], zero = qn_onnx_dim(n, 0), one = qn_onnx_dim(n, 1);
    bool reflect = !strcmp(mode, "reflect"), edge = !strcmp(mode, "edge");
    qn_value *parts[3];
    int n_parts = 0;
    qn_dim amounts[2] = { qn_onnx_dim(n, low), qn_onnx_dim(n, high) };
    for (int side = 0; side < 2 && x; side++) {
        qn_dim amount = amounts[side], start, limit;
        if (side == 1)
            parts[n_parts++] = x;
        if (qn_dim_is(amount, 0))
            continue;
        if (edge) {
            start = side ? qn_dim_sub(t, extent, one) : zero;
            qn_dim dims[QN_MAX_RANK];
            for (int i = 0; i < x->type.rank; i++)
                dims[i] = i == axis ? amount : x->type.dims[i];
            parts[n_parts++] = qn_b_broadcast_to(
                b, pad_piece(n, x, axis, start, qn_dim_add(t, start, one), false), x->type.rank, dims);
            continue;
        }
        if (reflect) /* without the outermost itself */
            start = side ? qn_dim_sub(t, qn_dim_sub(t, extent, one), amount) : one;
        else
            start = side ? zero : qn_dim_sub(t, extent, amount);
        limit = qn_dim_add(t, start, amount);
        parts[n_parts++] = pad_piece(n, x, axis, start, limit, reflect);
    }
    return x ? qn_b_concatenate(b, n_parts, parts, axis) : NULL;
}

static void import_pad(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_dim pads[2 * QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK];
    int n_pads, n_axes = -1;
    if (!x)
        return;
    int rank = x->type.rank;
    if (n->opset < 11) {
        const int64_t *given = qn_onnx_attr_ints(n, n->opset < 2 ? "paddings" : "pads", &n_pads);
        if (!given || n_pads > 2 * QN_MAX_RANK) {
            qn_onnx_malformed(n, "attribute pads is missing or too long");
            return;
        }
        for (int i = 0; i < n_pads; i++)
            pads[i] = qn_onnx_dim(n, given[i]);
    } else if (!qn_onnx_in_extents(n, 1, 2 * QN_MAX_RANK, NULL, pads, &n_pads) ||
               (qn_onnx_has(n, 3) && !qn_onnx_in_ints(n, 3, QN_MAX_RANK, axes, &n_axes))) {
        return;
    }
    if (n_axes < 0)
        for (n_axes = 0; n_axes < rank; n_axes++)
            axes[n_axes] = n_axes;
    if (n_pads != 2 * n_axes) {
        qn_onnx_malformed(n, "there must be two pads per axis");
        return;
    }
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    for (int i = 0; i < rank; i++)
        low[i] = high[i] = qn_onnx_dim(n, 0);
    for (int k = 0; k < n_axes; k++) {
        int axis;
        if (!qn_onnx_axis(n, axes[k], rank, &axis))
            return;
        low[axis] = pads[k];
        high[axis] = pads[k + n_axes];
        if (low[axis]->min < -QN_DIM_MAX_VALUE || high[axis]->min < -QN_DIM_MAX_VALUE ||
            low[axis]->max > QN_DIM_MAX_VALUE || high[axis]->max > QN_DIM_MAX_VALUE) {
            qn_onnx_malformed(n, "a pad of axis %d is too large", axis);
            return;
        }
    }
    const char *mode = qn_onnx_attr_string(n, "mode", "constant");
    if (!strcmp(mode, "constant")) {
        qn_value *value = n->opset >= 11 && qn_onnx_has(n, 2)
                              ? qn_b_reshape(b, qn_onnx_in(n, 2), 0, NULL)
                              : number_like(b, x, qn_onnx_attr_float(n, "value", 0));
        qn_onnx_out(n, 0, qn_b_pad(b, x, value, low, high, NULL));
        return;
    }
    if (strcmp(mode, "reflect") && strcmp(mode, "edge") && strcmp(mode, "wrap")) {
        qn_onnx_malformed(n, "attribute mode must be constant, reflect, edge or wrap");
        return;
    }
    for (int i = 0; i < rank && x; i++) {
        if (qn_dim_is(low[i], 0) && qn_dim_is(high[i], 0))
            continue;
        if (!qn_dim_is_const(low[i]) || !qn_dim_is_const(high[i])) {
            qn_onnx_needs_dim(n, low[i]);
            qn_onnx_needs_dim(n, high[i]);
            qn_onnx_unsupported(n, "mode %s by a symbolic number", mode);
            return;
        }
        int64_t before = low[i]->value, after = high[i]->value;
        if (before < 0 || after < 0) { /* what is cut off goes first */
            qn_dim start = qn_onnx_dim(n, before < 0 ? -before : 0);
            qn_dim limit = qn_dim_add(n->im->dims, x->type.dims[i], qn_onnx_dim(n, after < 0 ? after : 0));
            x = qn_b_slice_axis(b, x, i, start, limit);
            before = before < 0 ? 0 : before;
            after = after < 0 ? 0 : after;
        }
        if (!x)
            return;
        x = has_pieces(x->type.dims[i], mode, before, after) ? pad_pieces(n, x, i, mode, before, after)
                                                             : pad_axis(n, x, i, mode, before, after);
    }
    qn_onnx_out(n, 0, x);
}

/* Cuts or pads each axis evenly to the shape given. */
static void import_center_crop_pad(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    qn_dim shape[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK];
    int n_shape, n_axes = 0;
    if (!x || !qn_onnx_in_extents(n, 1, QN_MAX_RANK, NULL, shape, &n_shape))
        return;
    const int64_t *axes = qn_onnx_attr_ints(n, "axes", &n_axes);
    if ((axes ? n_axes : x->type.rank) != n_shape) {
        qn_onnx_malformed(n, "the shape must have an element per axis");
        return;
    }
    for (int i = 0; i < x->type.rank; i++)
        low[i] = high[i] = qn_onnx_dim(n, 0);
    for (int k = 0; k < n_shape; k++) {
        int axis = k;
        if (axes && !qn_onnx_axis(n, axes[k], x->type.rank, &axis))
            return;
        qn_dim from = x->type.dims[axis], more = qn_dim_sub(t, shape[k], from);
        if (!qn_dim_is_const(more)) {
            qn_onnx_needs_dim(n, more);
            qn_onnx_unsupported(n, "axis %d has a symbolic dimension", axis);
            return;
        }
        /* the first half is rounded down, of what is cut off as of what is added */
        int64_t half = more->value / 2;
        low[axis] = qn_onnx_dim(n, half);
        high[axis] = qn_onnx_dim(n, more->value - half);
    }
    qn_onnx_out(n, 0, qn_b_pad(b, x, number_like(b, x, 0), low, high, NULL));
}

const qn_onnx_op qn_onnx_pad_ops[] = {
    { "Pad", NULL, 1, 0, import_pad },
    { "CenterCropPad", NULL, 18, 0, import_center_crop_pad },
    { 0 },
};
