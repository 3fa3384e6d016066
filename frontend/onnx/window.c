#include "frontend/onnx/window.h"

#include <string.h>

enum {
    MAX_WINDOW = 1 << 20
}; /* bound of kernel, stride and dilation: products of two stay far from overflow */

/* A list of n attributes within [min, MAX_WINDOW]; `fallback` each when it is absent. */
static bool read_list(qn_onnx_node *n, const char *name, int count, int64_t min, int64_t fallback,
                      int64_t *out)
{
    int given;
    const int64_t *values = qn_onnx_attr_ints(n, name, &given);
    if (values && given != count) {
        qn_onnx_malformed(n, "attribute %s must have %d elements", name, count);
        return false;
    }
    for (int i = 0; i < count; i++) {
        out[i] = values ? values[i] : fallback;
        if (out[i] < min || out[i] > MAX_WINDOW) {
            qn_onnx_malformed(n, "attribute %s has the element %lld", name, (long long)out[i]);
            return false;
        }
    }
    return true;
}

/* Positions that the window of axis i covers. */
static int64_t span(const qn_onnx_window *w, int i)
{
    return (w->kernel[i] - 1) * w->dilation[i] + 1;
}

/* Padding so that there is an output for each stride, the odd one at the end or at the start. */
static void same_padding(qn_dims *t, qn_onnx_window *w, int i, qn_dim extent, bool upper)
{
    qn_dim zero = qn_dim_const(t, 0), one = qn_dim_const(t, 1), stride = qn_dim_const(t, w->stride[i]);
    qn_dim steps = qn_dim_sub(t, qn_dim_ceildiv(t, extent, stride), one);
    qn_dim total = qn_dim_add(t, qn_dim_mul(t, steps, stride), qn_dim_const(t, span(w, i)));
    total = w->stride[i] == 1 ? qn_dim_const(t, span(w, i) - 1)
                              : qn_dim_max(t, zero, qn_dim_sub(t, total, extent));
    qn_dim less = qn_dim_floordiv(t, total, qn_dim_const(t, 2)), more = qn_dim_sub(t, total, less);
    w->low[i] = upper ? less : more;
    w->high[i] = upper ? more : less;
}

bool qn_onnx_window_read(qn_onnx_node *n, const qn_type *x, const int64_t *kernel, qn_onnx_window *w)
{
    qn_dims *t = n->im->dims;
    int64_t pads[2 * QN_MAX_RANK];
    w->n = x->rank - 2;
    if (w->n < 1) {
        qn_onnx_malformed(n, "the input must have rank 3 or more");
        return false;
    }
    if (!kernel && !qn_onnx_attr(n, "kernel_shape", ONNX__ATTRIBUTE__KIND__INTS)) {
        qn_onnx_malformed(n, "attribute kernel_shape is missing");
        return false;
    }
    for (int i = 0; kernel && i < w->n; i++)
        w->kernel[i] = kernel[i];
    if ((!kernel && !read_list(n, "kernel_shape", w->n, 1, 1, w->kernel)) ||
        !read_list(n, "strides", w->n, 1, 1, w->stride) ||
        !read_list(n, "dilations", w->n, 1, 1, w->dilation))
        return false;
    const char *auto_pad = qn_onnx_attr_string(n, "auto_pad", "NOTSET");
    bool upper = !strcmp(auto_pad, "SAME_UPPER"), lower = !strcmp(auto_pad, "SAME_LOWER");
    bool valid = !strcmp(auto_pad, "VALID"), ceil_mode = qn_onnx_attr_int(n, "ceil_mode", 0) != 0;
    if (!upper && !lower && !valid && strcmp(auto_pad, "NOTSET")) {
        qn_onnx_malformed(n, "attribute auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID");
        return false;
    }
    if (upper || lower || valid)
        memset(pads, 0, sizeof pads);
    else if (!read_list(n, "pads", 2 * w->n, -MAX_WINDOW, 0, pads))
        return false;
    for (int i = 0; i < w->n; i++) {
        qn_dim extent = x->dims[i + 2], zero = qn_dim_const(t, 0), one = qn_dim_const(t, 1);
        qn_dim stride = qn_dim_const(t, w->stride[i]);
        w->low[i] = qn_dim_const(t, pads[i]);
        w->high[i] = qn_dim_const(t, pads[i + w->n]);
        w->extra[i] = zero;
        if (upper || lower)
            same_padding(t, w, i, extent, upper);
        qn_dim padded = qn_dim_add(t, extent, qn_dim_add(t, w->low[i], w->high[i]));
        qn_dim room = qn_dim_sub(t, padded, qn_dim_const(t, span(w, i)));
        if (room->max < 0) {
            qn_onnx_malformed(n, "the window of %lld along spatial axis %d does not fit the padded input",
                              (long long)span(w, i), i);
            return false;
        }
        w->out[i] = qn_dim_add(t, qn_dim_floordiv(t, room, stride), one);
        if (ceil_mode && !valid) {
            /* one more where a part is left, if that window starts within the input or its padding at the start */
            const qn_dim starts = qn_dim_ceildiv(t, qn_dim_add(t, extent, w->low[i]), stride),
                         all = qn_dim_add(t, qn_dim_ceildiv(t, room, stride), one);
            const bool always = qn_dim_is_const(w->high[i]) && w->high[i]->value + w->stride[i] <= span(w, i);
            w->out[i] = always ? all : qn_dim_min(t, all, starts);
            const qn_dim used = qn_dim_mul(t, qn_dim_sub(t, w->out[i], one), stride);
            /* as much as it may take: what no window reads does no harm, and a number says more than an expression */
            w->extra[i] = always && !qn_dim_is_const(extent) ? qn_onnx_dim(n, w->stride[i] - 1)
                                                             : qn_dim_max(t, zero, qn_dim_sub(t, used, room));
        }
    }
    return qn_onnx_ok(n);
}

bool qn_onnx_window_is_static(const qn_onnx_window *w)
{
    for (int i = 0; i < w->n; i++)
        if (!qn_dim_is_const(w->low[i]) || !qn_dim_is_const(w->high[i]) || !qn_dim_is_const(w->extra[i]))
            return false;
    return true;
}

qn_value *qn_onnx_window_pad(qn_onnx_node *n, qn_onnx_window *w, qn_value *x, qn_value *value)
{
    qn_dims *t = n->im->dims;
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK], zero = qn_dim_const(t, 0);
    low[0] = low[1] = high[0] = high[1] = zero;
    for (int i = 0; i < w->n; i++) {
        low[i + 2] = w->low[i];
        high[i + 2] = qn_dim_add(t, w->high[i], w->extra[i]);
        w->low[i] = w->high[i] = w->extra[i] = zero;
    }
    return qn_b_pad(&n->b, x, value, low, high, NULL);
}
