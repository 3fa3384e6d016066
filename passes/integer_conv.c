/* Convolutions of the pass integer (integer.c). A border is one of zero points, so where these are not 0 it becomes part of x. */
#include <string.h>

#include "passes/integer.h"

bool qn_integer_convolves(const qn_node *node)
{
    const qn_value *x = node->operands[0];
    int64_t low, high;
    if (!qn_type_is_static(&node->operands[1]->type) || !qn_dim_is_const(x->type.dims[1]) ||
        qn_attr_int(node, QN_ATTR_GROUPS) != 1)
        return false;
    for (int i = 0; i < x->type.rank - 2; i++)
        if (qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] != 1 ||
            !qn_dim_known(qn_attr_dims(node, QN_ATTR_LOW, NULL)[i], &low) ||
            !qn_dim_known(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i], &high) || low < 0 || high < 0)
            return false;
    return true;
}

/* What the kernel meets of x at each position, of all channels: [N, spatial…] */
static qn_value *window_sums(qn_builder *b, qn_value *x, const qn_type *w, const qn_conv *conv)
{
    int64_t window[QN_MAX_RANK] = { 1, 1 }, stride[QN_MAX_RANK] = { 1, 1 }, dilation[QN_MAX_RANK] = { 1, 1 },
            low[QN_MAX_RANK] = { 0 }, high[QN_MAX_RANK] = { 0 };
    for (int i = 2; i < w->rank; i++) {
        window[i] = w->dims[i]->value;
        stride[i] = conv->stride[i - 2];
        dilation[i] = conv->w_dilation[i - 2];
        low[i] = conv->low[i - 2];
        high[i] = conv->high[i - 2];
    }
    const qn_window at = { window, stride, dilation, low, high };
    qn_value *sum = qn_b_reduce_window(b, QN_SUM, qn_integer_sum(b, x, 1, (const int64_t[]){ 1 }, true), &at);
    return sum ? qn_b_squeeze(b, sum, 1) : NULL;
}

static qn_value *of_bytes(qn_builder *b, const qn_node *node, qn_integer *x, qn_integer *w,
                          const qn_machine *machine)
{
    const qn_type *wt = &node->operands[1]->type;
    const int spatial = wt->rank - 2;
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK], depth = wt->dims[1]->value, axes[QN_MAX_RANK];
    qn_dim before[QN_MAX_RANK], behind[QN_MAX_RANK];
    bool bordered = false;
    if (x->axis >= 0 || w->axis > 0)
        return NULL;
    qn_integer_make(b, x, qn_integer_x_dtype(machine));
    qn_integer_make(b, w, QUERN_I8);
    before[0] = before[1] = behind[0] = behind[1] = qn_dim_const(qn_b_dims(b), 0);
    axes[0] = 1;
    for (int i = 0; i < spatial; i++) {
        before[2 + i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i];
        behind[2 + i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i];
        low[i] = before[2 + i]->value;
        high[i] = behind[2 + i]->value;
        bordered |= low[i] || high[i];
        depth *= wt->dims[2 + i]->value;
        axes[1 + i] = 2 + i;
    }
    if (bordered && !qn_integer_is_zero(x->zero)) {
        qn_value *zero = qn_b_convert(b, x->bytes->type.dtype, x->zero);
        x->bytes = qn_b_pad(b, x->bytes, zero, before, behind, NULL);
        memset(low, 0, sizeof low);
        memset(high, 0, sizeof high);
    }
    const qn_conv conv = { .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                           .low = low,
                           .high = high,
                           .w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL),
                           .groups = 1 };
    qn_integer_sums s = { .product = qn_b_convolution_to(b, x->bytes, w->bytes, &conv, QUERN_I32),
                          .w_axes = { 1 } };
    if (!s.product)
        return NULL;
    for (int i = 0; i < spatial; i++)
        s.x_axes[1 + i] = 2 + i;
    s.depth = qn_b_scalar_int(b, QUERN_I32, depth);
    if (!qn_integer_is_zero(x->zero))
        s.of_w = qn_integer_sum(b, w->bytes, 1 + spatial, axes, false);
    if (!qn_integer_is_zero(w->zero))
        s.of_x = window_sums(b, x->bytes, wt, &conv);
    return qn_integer_result(b, &s, x, w, 1);
}

/* Is each sum of products with bytes exact in float32? Known filters say how large theirs get. */
static bool is_exact_in_floats(const qn_node *node, const qn_integer *w)
{
    enum { MOST = (1 << 24) / 255 };
    const qn_type *type = &node->operands[1]->type;
    const qn_tensor *known = qn_value_constant(w->bytes);
    int64_t zero;
    if (!qn_type_is_static(type))
        return false;
    const int64_t filters = type->dims[0]->value, depth = filters ? qn_type_elements(type) / filters : 0;
    if (!known || !known->data || !qn_integer_is_whole(w->zero, &zero))
        return depth <= MOST / 255;
    const size_t size = qn_dtype_bytes(known->type.dtype);
    for (int64_t o = 0; o < filters; o++) {
        int64_t sum = 0;
        for (int64_t k = o * depth; k < (o + 1) * depth; k++) {
            const int64_t d =
                qn_scalar_load(known->type.dtype, (const uint8_t *)known->data + (size_t)k * size).i - zero;
            sum += d < 0 ? -d : d;
        }
        if (sum > MOST)
            return false;
    }
    return true;
}

/* Whole numbers in float32, where that is exact: there is a kernel for channels by themselves, and for groups of them. */
static qn_value *in_floats(qn_builder *b, const qn_node *node, const qn_integer *w)
{
    if (node->results[0].type.dtype != QUERN_I32 || !is_exact_in_floats(node, w))
        return NULL;
    qn_value *operands[2] = { qn_b_convert(b, QUERN_F32, node->operands[0]),
                              qn_b_convert(b, QUERN_F32, node->operands[1]) };
    const qn_node *made = operands[0] && operands[1]
                              ? qn_node_new(b->graph, b->before, QN_OP_CONVOLUTION, 2, operands,
                                            node->n_attrs, node->attrs, 0, NULL, &node->loc, b->diags)
                              : NULL;
    return made ? qn_b_convert(b, QUERN_I32, (qn_value *)&made->results[0]) : NULL;
}

qn_value *qn_integer_convolution(qn_builder *b, const qn_node *node, qn_integer *x, qn_integer *w,
                                 const qn_machine *machine)
{
    return qn_integer_convolves(node) ? of_bytes(b, node, x, w, machine) : in_floats(b, node, w);
}
