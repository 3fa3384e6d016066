/* Random graphs: reductions, contractions, composites, random bits. */
#include <math.h>
#include <string.h>

#include "tests/support/random_internal.h"

static int64_t extent(qn_value *x, int axis)
{
    return qn_dim_is_const(x->type.dims[axis]) ? x->type.dims[axis]->value : 0;
}

/* ---- reductions ---- */

static bool reduce(qn_rg *g)
{
    bool smooth = qn_rg_has(g, QN_RANDOM_SMOOTH);
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    qn_kind kind = smooth ? QN_SUM : (qn_kind)qn_rg_below(g, 4);
    if (type->dtype == QUERN_BOOL)
        kind = qn_rg_chance(g, 50) ? QN_KIND_MAX : QN_KIND_MIN;
    int64_t axes[QN_MAX_RANK];
    int n = 0;
    double count = 1;
    for (int i = 0; i < type->rank; i++)
        if (qn_rg_chance(g, 50)) {
            axes[n++] = i;
            count *= (double)type->dims[i]->max;
        }
    bool floats = qn_dtype_is_float(type->dtype), order = kind == QN_SUM || kind == QN_PROD;
    double bound = kind == QN_SUM    ? x.bound * count
                   : kind == QN_PROD ? pow(fmax(x.bound, 1), count)
                                     : x.bound;
    if (n == 0 || (floats && !(bound < 10000)))
        return false;
    qn_value *y = floats && kind == QN_SUM && qn_rg_chance(g, 30)
                      ? qn_b_mean(&g->b, x.value, n, axes, qn_rg_chance(g, 50))
                      : qn_b_reduce(&g->b, kind, x.value, n, axes, qn_rg_chance(g, 40));
    return qn_rg_push(g, y, bound, x.exact && !(order && floats));
}

static bool arg_reduce(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick_exact(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    int axis = qn_rg_below(g, x.value->type.rank);
    if (x.value->type.dims[axis]->min < 1)
        return false;
    qn_kind kind = qn_rg_chance(g, 50) ? QN_KIND_MAX : QN_KIND_MIN;
    return qn_rg_push(g, qn_b_arg_reduce(&g->b, kind, x.value, axis, qn_rg_chance(g, 30)), 0, true);
}

static bool reduce_window(qn_rg *g)
{
    bool smooth = qn_rg_has(g, QN_RANDOM_SMOOTH);
    qn_rg_item x = qn_rg_pick(g, QN_ANY_NUMBER, 1);
    if (!x.value)
        return false;
    int64_t window[QN_MAX_RANK], stride[QN_MAX_RANK], dilation[QN_MAX_RANK], low[QN_MAX_RANK],
        high[QN_MAX_RANK];
    double count = 1;
    for (int i = 0; i < x.value->type.rank; i++) {
        int64_t n = extent(x.value, i);
        window[i] = n > 2 && qn_rg_chance(g, 60) ? 2 + qn_rg_below(g, 2) : 1;
        stride[i] = window[i] > 1 ? 1 + qn_rg_below(g, 2) : 1;
        dilation[i] = window[i] == 2 && n > 3 && qn_rg_chance(g, 20) ? 2 : 1;
        low[i] = window[i] > 1 ? qn_rg_below(g, 2) : 0;
        high[i] = window[i] > 1 ? qn_rg_below(g, 2) : 0;
        count *= (double)window[i];
    }
    qn_window w = { window, stride, dilation, low, high };
    qn_kind kind = smooth || qn_rg_chance(g, 50) ? QN_SUM : qn_rg_chance(g, 60) ? QN_KIND_MAX : QN_KIND_MIN;
    bool floats = qn_dtype_is_float(x.value->type.dtype);
    /* A window in the padding alone would give the least or greatest float: each must see an element. */
    for (int i = 0; i < x.value->type.rank && kind != QN_SUM; i++)
        if (dilation[i] == 2 || window[i] == 1)
            low[i] = high[i] = 0;
    qn_value *y = qn_b_reduce_window(&g->b, kind, x.value, &w);
    if (!y ||
        !qn_rg_push(g, y, kind == QN_SUM ? x.bound * count : x.bound, x.exact && !(floats && kind == QN_SUM)))
        return false;
    if (kind == QN_KIND_MAX && floats && x.exact && qn_rg_chance(g, 50)) {
        qn_rg_item gradient = qn_rg_like(g, &y->type);
        return qn_rg_push(g, qn_b_select_and_scatter(&g->b, x.value, gradient.value, &w),
                          gradient.bound * count, false);
    }
    return true;
}

static bool cumulative(qn_rg *g)
{
    bool smooth = qn_rg_has(g, QN_RANDOM_SMOOTH);
    qn_rg_item x = qn_rg_pick(g, QN_ANY_NUMBER, 1);
    if (!x.value)
        return false;
    int axis = qn_rg_below(g, x.value->type.rank);
    qn_kind kind = smooth || qn_rg_chance(g, 50) ? QN_SUM : (qn_kind)(1 + qn_rg_below(g, 3));
    bool floats = qn_dtype_is_float(x.value->type.dtype), exclusive = qn_rg_chance(g, 30);
    if (floats &&
        ((kind == QN_PROD && x.bound > 1) || (exclusive && (kind == QN_KIND_MAX || kind == QN_KIND_MIN))))
        return false; /* may grow without bound; starts at an infinity */
    qn_value *y = qn_b_cumulative(&g->b, kind, x.value, axis, exclusive, qn_rg_chance(g, 30));
    double bound = kind == QN_SUM ? x.bound * (double)x.value->type.dims[axis]->max : x.bound + 1;
    return qn_rg_push(g, y, bound, x.exact && !(floats && (kind == QN_SUM || kind == QN_PROD)));
}

/* ---- contractions ---- */

/* x with y made to fit: random batch, contracted and free axes, y's in any order. */
static bool dot_general(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, qn_rg_has(g, QN_RANDOM_INTS) ? QN_ANY_NUMBER : QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    qn_dot dot = { 0 };
    qn_dim y_dims[QN_MAX_RANK];
    int y_rank = 0;
    double depth = 1;
    int n_free = qn_rg_below(g, 3);
    for (int i = 0; i < n_free; i++)
        y_dims[y_rank++] = qn_dim_const(qn_b_dims(&g->b), 1 + qn_rg_below(g, 9));
    for (int i = 0; i < type->rank && i < 4; i++) {
        int what = qn_rg_below(g, 3);
        if (what == 0 && dot.n_batch < 2) {
            dot.x_batch[dot.n_batch] = i;
            dot.y_batch[dot.n_batch++] = y_rank;
            y_dims[y_rank++] = type->dims[i];
        } else if (what == 1 || (i == type->rank - 1 && dot.n_contract == 0)) {
            dot.x_contract[dot.n_contract] = i;
            dot.y_contract[dot.n_contract++] = y_rank;
            y_dims[y_rank++] = type->dims[i];
            depth *= (double)type->dims[i]->max;
        }
    }
    /* Rotating y's axes puts the free ones anywhere. */
    int shift = y_rank ? qn_rg_below(g, y_rank) : 0;
    qn_dim rotated[QN_MAX_RANK];
    for (int i = 0; i < y_rank; i++)
        rotated[(i + shift) % y_rank] = y_dims[i];
    for (int i = 0; i < dot.n_batch; i++)
        dot.y_batch[i] = (dot.y_batch[i] + shift) % y_rank;
    for (int i = 0; i < dot.n_contract; i++)
        dot.y_contract[i] = (dot.y_contract[i] + shift) % y_rank;
    bool bytes = type->dtype == QUERN_I8 || type->dtype == QUERN_U8;
    bool half = type->dtype == QUERN_F16 || type->dtype == QUERN_BF16;
    qn_dtype y_dtype = bytes && qn_rg_chance(g, 30) ? QUERN_U8 : type->dtype;
    qn_dtype result = bytes ? QUERN_I32 : half && qn_rg_chance(g, 30) ? QUERN_F32 : QUERN_INVALID_DTYPE;
    qn_type y_type = qn_type_make(g->b.graph->module, y_dtype, y_rank, rotated);
    if (qn_rg_elements(&y_type) > QN_RG_MAX_ELEMENTS ||
        qn_rg_elements(type) * qn_rg_elements(&y_type) > 64 * QN_RG_MAX_ELEMENTS)
        return false;
    qn_rg_item y = qn_rg_like(g, &y_type);
    qn_value *z = qn_b_dot_general(&g->b, x.value, y.value, &dot, result);
    return qn_rg_push(g, z, x.bound * y.bound * depth, !qn_dtype_is_float(type->dtype));
}

static bool matmul(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    qn_dim dims[QN_MAX_RANK];
    int rank = 0;
    for (int i = 0; i < type->rank - 2; i++)
        if (qn_rg_chance(g, 60) || rank)
            dims[rank++] = qn_rg_chance(g, 70) ? type->dims[i] : qn_dim_const(qn_b_dims(&g->b), 1);
    dims[rank++] = type->dims[type->rank - 1];
    dims[rank++] = qn_dim_const(qn_b_dims(&g->b), 1 + qn_rg_below(g, 20));
    qn_type y_type = qn_type_make(g->b.graph->module, type->dtype, rank, dims);
    if (qn_rg_elements(&y_type) > QN_RG_MAX_ELEMENTS || qn_rg_elements(type) > QN_RG_MAX_ELEMENTS / 8)
        return false;
    qn_rg_item y = qn_rg_fresh(g, &y_type);
    return qn_rg_push(g, qn_b_matmul(&g->b, x.value, y.value),
                      x.bound * y.bound * (double)type->dims[type->rank - 1]->max, false);
}

static bool convolution(qn_rg *g)
{
    int n = 1 + qn_rg_below(g, 2);
    int64_t groups = qn_rg_chance(g, 30) ? 2 : 1, channels = groups * (1 + qn_rg_below(g, 3));
    int64_t x_dims[4] = { 1 + qn_rg_below(g, 2), channels },
            w_dims[4] = { groups * (1 + qn_rg_below(g, 4)), channels / groups };
    int64_t stride[2], low[2], high[2], x_dilation[2], w_dilation[2];
    double depth = (double)w_dims[1];
    for (int i = 0; i < n; i++) {
        x_dims[2 + i] = 4 + qn_rg_below(g, 5);
        w_dims[2 + i] = 1 + qn_rg_below(g, 3);
        stride[i] = 1 + qn_rg_below(g, 2);
        low[i] = qn_rg_below(g, 3) - (x_dims[2 + i] > 6 && qn_rg_chance(g, 20));
        high[i] = qn_rg_below(g, 3);
        x_dilation[i] = qn_rg_chance(g, 20) ? 2 : 1;
        w_dilation[i] = x_dims[2 + i] > 4 && qn_rg_chance(g, 20) ? 2 : 1;
        if (low[i] < 0 && w_dims[2 + i] == 3)
            w_dilation[i] = 1;
        depth *= (double)w_dims[2 + i];
    }
    qn_type type = qn_type_static(g->b.graph->module, qn_rg_float_dtype(g), 2 + n, x_dims);
    /* A last extent that may be as little as 1; such a convolution has no gradient. */
    if (qn_rg_has(g, QN_RANDOM_SYMBOLS) && !qn_rg_has(g, QN_RANDOM_SMOOTH) && qn_rg_chance(g, 40)) {
        const int i = n - 1;
        const int64_t reach = (w_dims[1 + n] - 1) * w_dilation[i] + 1;
        qn_dim dims[4];
        memcpy(dims, type.dims, (size_t)(2 + n) * sizeof *dims);
        dims[1 + n] = qn_rg_symbol(g);
        type = qn_type_make(g->b.graph->module, type.dtype, 2 + n, dims);
        low[i] = low[i] < 0 ? 0 : low[i];
        high[i] += low[i] + 1 + high[i] < reach ? reach : 0;
    }
    qn_rg_item x = qn_rg_like(g, &type), w = qn_rg_fresh_static(g, type.dtype, 2 + n, w_dims);
    qn_conv conv = { stride, low, high, x_dilation, w_dilation, groups };
    return qn_rg_push(g, qn_b_convolution(&g->b, x.value, w.value, &conv), x.bound * w.bound * depth, false);
}

/* Groups across blocks of x and of the result. */
static bool conv_packed_across(qn_rg *g, const int64_t *stride, const int64_t *low, const int64_t *high,
                               const int64_t *w_dilation, const int64_t *x_dims, int64_t o)
{
    const int64_t all = x_dims[1] * x_dims[4], channels = 1 + qn_rg_below(g, (int)all / 2),
                  groups = all / channels, out_channels = 1 + qn_rg_below(g, 5);
    const int64_t w_dims[6] = {
        (groups * out_channels + o - 1) / o, 1, 1 + qn_rg_below(g, 3), 1 + qn_rg_below(g, 2), channels, o
    };
    const qn_conv conv = { stride, low, high, NULL, w_dilation, groups };
    const qn_type type = qn_type_static(g->b.graph->module, qn_rg_float_dtype(g), 5, x_dims);
    const qn_rg_item x = qn_rg_like(g, &type), w = qn_rg_fresh_static(g, type.dtype, 6, w_dims);
    const double depth = (double)(channels * w_dims[2] * w_dims[3]);
    return qn_rg_push(g, qn_b_conv_packed_across(&g->b, x.value, w.value, &conv, channels, out_channels),
                      x.bound * w.bound * depth, false);
}

static bool conv_packed(qn_rg *g)
{
    const bool inside = qn_rg_chance(g, 30); /* groups inside of blocks, of `group` channels */
    const int64_t group = inside ? 1 + qn_rg_below(g, 3) : 1, in_block = inside ? 2 + qn_rg_below(g, 3) : 1;
    const int64_t c = inside ? group * in_block : 1 + qn_rg_below(g, 4);
    const int64_t o = inside ? in_block * (1 + qn_rg_below(g, 2)) : 1 + qn_rg_below(g, 4);
    const int64_t blocks = 1 + qn_rg_below(g, 3), parts = !inside && qn_rg_chance(g, 30) ? 2 : 1;
    const int64_t x_dims[5] = { 1 + qn_rg_below(g, 2), blocks * parts, 4 + qn_rg_below(g, 4),
                                4 + qn_rg_below(g, 4), c };
    const int64_t w_dims[6] = { (inside ? blocks : parts) * (1 + qn_rg_below(g, 2)),
                                inside ? 1 : blocks,
                                1 + qn_rg_below(g, 3),
                                1 + qn_rg_below(g, 2),
                                inside ? group : c,
                                o };
    int64_t stride[2], low[2], high[2], w_dilation[2];
    for (int i = 0; i < 2; i++) {
        stride[i] = 1 + qn_rg_below(g, 2);
        low[i] = qn_rg_below(g, 3);
        high[i] = qn_rg_below(g, 3);
        w_dilation[i] = x_dims[2 + i] > 4 && qn_rg_chance(g, 20) ? 2 : 1;
    }
    if (x_dims[1] * x_dims[4] > 1 && qn_rg_chance(g, 15))
        return conv_packed_across(g, stride, low, high, w_dilation, x_dims, o);
    const int64_t channels = 1 + qn_rg_below(g, (int)(inside ? group : blocks * c));
    const qn_conv conv = { stride, low, high, NULL, w_dilation, inside ? blocks * in_block : parts };
    const qn_type type = qn_type_static(g->b.graph->module, qn_rg_float_dtype(g), 5, x_dims);
    const qn_rg_item x = qn_rg_like(g, &type), w = qn_rg_fresh_static(g, type.dtype, 6, w_dims);
    const double depth = (double)(channels * w_dims[2] * w_dims[3]);
    return qn_rg_push(g, qn_b_conv_packed(&g->b, x.value, w.value, &conv, channels),
                      x.bound * w.bound * depth, false);
}

/* ---- composites ---- */

static bool conv_winograd(qn_rg *g)
{
    const int64_t c = 1 + qn_rg_below(g, 4), blocks = 1 + qn_rg_below(g, 2), t = qn_rg_chance(g, 50) ? 4 : 6;
    const int64_t x_dims[5] = { 1 + qn_rg_below(g, 2), blocks, 3 + qn_rg_below(g, 5), 3 + qn_rg_below(g, 5),
                                c };
    const int64_t channels = 1 + qn_rg_below(g, (int)(blocks * c));
    const int64_t u_dims[5] = { 1 + qn_rg_below(g, 2), t, t, channels, c * (1 + qn_rg_below(g, 2)) };
    const int64_t low[2] = { qn_rg_below(g, 3), qn_rg_below(g, 3) };
    const int64_t high[2] = { qn_rg_below(g, 3), qn_rg_below(g, 3) };
    const qn_type type = qn_type_static(g->b.graph->module, qn_rg_float_dtype(g), 5, x_dims);
    const qn_rg_item x = qn_rg_like(g, &type), u = qn_rg_fresh_static(g, type.dtype, 5, u_dims);
    /* rows of B^T add up to less than 5 times an element, rows of A^T to less than 10 */
    return qn_rg_push(g, qn_b_conv_winograd(&g->b, x.value, u.value, low, high),
                      x.bound * u.bound * (double)channels * (t == 4 ? 4 * 9 : 25 * 100), false);
}

static bool softmax(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    bool log = qn_rg_chance(g, 40);
    qn_value *y = qn_b_softmax(&g->b, log ? QN_OP_LOG_SOFTMAX : QN_OP_SOFTMAX, x.value,
                               qn_rg_below(g, x.value->type.rank));
    return qn_rg_push(g, y, log ? 2 * x.bound + 8 : 1, false);
}

static bool activation(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    switch (qn_rg_below(g, qn_rg_has(g, QN_RANDOM_SMOOTH) ? 3 : 4)) {
    case 0: return qn_rg_push(g, qn_b_unary(&g->b, QN_OP_GELU, x.value), x.bound, false);
    case 1: return qn_rg_push(g, qn_b_unary(&g->b, QN_OP_GELU_TANH, x.value), x.bound, false);
    case 2: return qn_rg_push(g, qn_b_unary(&g->b, QN_OP_SILU, x.value), x.bound, false);
    default: return qn_rg_push(g, qn_b_unary(&g->b, QN_OP_RELU, x.value), x.bound, x.exact);
    }
}

static bool norm(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    int axis = qn_rg_below(g, type->rank);
    qn_type rows = qn_type_make(g->b.graph->module, type->dtype, type->rank - axis, type->dims + axis);
    qn_value *scale = qn_rg_fresh(g, &rows).value,
             *bias = qn_rg_chance(g, 70) ? qn_rg_fresh(g, &rows).value : NULL;
    /* A generous epsilon keeps rows of nearly equal elements from magnifying rounding errors. */
    qn_value *y = qn_rg_chance(g, 50) ? qn_b_layer_norm(&g->b, x.value, scale, bias, axis, 0.5)
                                      : qn_b_rms_norm(&g->b, x.value, scale, axis, 0.5);
    return qn_rg_push(g, y, 4 * sqrt((double)qn_rg_elements(&rows)) + 2, false);
}

static bool group_norm(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 2);
    if (!x.value || !qn_dim_is_const(x.value->type.dims[1]))
        return false;
    const qn_type *type = &x.value->type;
    const int64_t channels = type->dims[1]->value;
    qn_type factors = qn_type_make(g->b.graph->module, type->dtype, 1, type->dims + 1);
    int64_t groups = 1 + qn_rg_below(g, (int)channels + 1);
    while (channels % groups != 0)
        groups--;
    qn_value *scale = qn_rg_fresh(g, &factors).value, *bias = qn_rg_fresh(g, &factors).value;
    return qn_rg_push(g, qn_b_group_norm(&g->b, x.value, scale, bias, groups, 0.5),
                      4 * sqrt((double)qn_rg_elements(type)) + 2, false);
}

static bool batch_norm(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 2);
    if (!x.value)
        return false;
    const qn_type *type = &x.value->type;
    qn_type channels = qn_type_make(g->b.graph->module, type->dtype, 1, type->dims + 1);
    qn_value *in[4];
    for (int i = 0; i < 4; i++)
        in[i] = qn_rg_fresh(g, &channels).value;
    in[3] = qn_b_binary(&g->b, QN_OP_MUL, in[3], in[3]);
    const bool training = qn_rg_chance(g, 50);
    qn_node *node = qn_b_batch_norm(&g->b, x.value, in[0], in[1], in[2], in[3], 0.5, 0.75, training);
    const double bound = 4 * (training ? sqrt((double)qn_rg_elements(type)) : x.bound + 2) + 2;
    return node && qn_rg_push(g, &node->results[0], bound, false) &&
           qn_rg_push(g, &node->results[1], x.bound + 2, false) &&
           qn_rg_push(g, &node->results[2], x.bound * x.bound + 4, false);
}

static bool dropout(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 0);
    if (!x.value)
        return false;
    const int64_t two = 2;
    qn_value *key = qn_b_convert(&g->b, QUERN_U64, qn_rg_int_constant(g, 1, &two, 0, 1000));
    qn_value *step = qn_b_convert(&g->b, QUERN_U64, qn_rg_int_constant(g, 0, NULL, 0, 1000));
    qn_node *node = qn_b_dropout(&g->b, x.value, key, step, 0.5, qn_rg_chance(g, 70));
    return node && qn_rg_push(g, &node->results[0], 2 * x.bound, x.exact);
}

static bool attention(qn_rg *g)
{
    int64_t batch = 1 + qn_rg_below(g, 2), groups = 1 + qn_rg_below(g, 2),
            heads = groups * (1 + qn_rg_below(g, 2));
    int64_t s = 1 + qn_rg_below(g, 5), t = 1 + qn_rg_below(g, 6), d = 1 + qn_rg_below(g, 8),
            e = 1 + qn_rg_below(g, 8);
    qn_dtype dtype = qn_rg_float_dtype(g);
    int64_t one_or[4] = { qn_rg_chance(g, 50) ? batch : 1, qn_rg_chance(g, 50) ? heads : 1,
                          qn_rg_chance(g, 70) ? s : 1, t };
    qn_rg_item q = qn_rg_fresh_static(g, dtype, 4, (int64_t[]){ batch, heads, s, d });
    qn_rg_item k = qn_rg_fresh_static(g, dtype, 4, (int64_t[]){ batch, groups, t, d });
    qn_rg_item v = qn_rg_fresh_static(g, dtype, 4, (int64_t[]){ batch, groups, t, e });
    qn_value *mask = qn_rg_chance(g, 40) ? qn_rg_fresh_static(g, dtype, 4, one_or).value : NULL;
    if (mask && qn_rg_chance(g, 40))
        mask = qn_b_compare(&g->b, QN_GT, mask, qn_b_full(&g->b, &mask->type, 0));
    const double scale = 0.25 * (1 + qn_rg_below(g, 3));
    const bool causal = qn_rg_chance(g, 40);
    if (qn_rg_chance(g, 60))
        return qn_rg_push(g, qn_b_attention(&g->b, q.value, k.value, v.value, mask, scale, causal), v.bound,
                          false);
    const qn_rg_item of = qn_rg_fresh_static(g, dtype, 4, (int64_t[]){ batch, heads, s, e });
    qn_node *grad = qn_b_attention_grad(&g->b, (qn_value *[]){ q.value, k.value, v.value }, of.value, mask,
                                        scale, causal);
    const double slope = 2 * (double)e * of.bound * v.bound * scale, n = (double)(s * heads);
    return grad && qn_rg_push(g, &grad->results[0], slope * k.bound, false) &&
           qn_rg_push(g, &grad->results[1], n * slope * q.bound, false) &&
           qn_rg_push(g, &grad->results[2], n * of.bound, false);
}

static bool cross_entropy(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_CLASS_FLOAT, 2);
    if (qn_rg_has(g, QN_RANDOM_DOUBLE)) /* its result is f32 */
        return false;
    if (!x.value || x.value->type.rank != 2 || extent(x.value, 0) < 1 || extent(x.value, 1) < 1)
        return false;
    int64_t n = extent(x.value, 0);
    qn_value *labels = qn_b_convert(&g->b, QUERN_I64, qn_rg_int_constant(g, 1, &n, 0, extent(x.value, 1)));
    return qn_rg_push(g, qn_b_cross_entropy(&g->b, x.value, labels), 2 * x.bound + 8, false);
}

static bool lstm(qn_rg *g)
{
    int64_t s = 1 + qn_rg_below(g, 4), batch = 1 + qn_rg_below(g, 3), in = 1 + qn_rg_below(g, 5),
            hidden = 1 + qn_rg_below(g, 5);
    qn_dtype dtype = qn_rg_float_dtype(g);
    qn_value *x = qn_rg_fresh_static(g, dtype, 3, (int64_t[]){ s, batch, in }).value;
    qn_value *w = qn_rg_fresh_static(g, dtype, 2, (int64_t[]){ 4 * hidden, in }).value;
    qn_value *r = qn_rg_fresh_static(g, dtype, 2, (int64_t[]){ 4 * hidden, hidden }).value;
    qn_value *bias = qn_rg_fresh_static(g, dtype, 1, (int64_t[]){ 4 * hidden }).value;
    qn_value *h = qn_rg_fresh_static(g, dtype, 2, (int64_t[]){ batch, hidden }).value;
    qn_value *c = qn_rg_fresh_static(g, dtype, 2, (int64_t[]){ batch, hidden }).value;
    qn_node *node = qn_b_lstm(&g->b, x, w, r, bias, h, c, qn_rg_chance(g, 40));
    return node && qn_rg_push(g, &node->results[0], 1, false) && qn_rg_push(g, &node->results[1], 1, false) &&
           qn_rg_push(g, &node->results[2], 7, false);
}

static bool quantize(qn_rg *g)
{
    static const qn_dtype dtypes[] = { QUERN_I8, QUERN_U8, QUERN_I16, QUERN_U16 };
    qn_rg_item x = qn_rg_pick_exact(g, QN_CLASS_FLOAT, 1);
    if (!x.value)
        return false;
    qn_builder *b = &g->b;
    qn_dims *dims = qn_b_dims(b);
    const qn_type *type = &x.value->type;
    qn_dtype dtype = dtypes[qn_rg_below(g, 4)];
    int axis = qn_rg_chance(g, 60) ? qn_rg_below(g, type->rank) : -1;
    int64_t block = axis >= 0 && qn_rg_chance(g, 50) ? 1 + qn_rg_below(g, 4) : 0;
    qn_dim parameter_dims[QN_MAX_RANK];
    for (int i = 0; i < type->rank; i++)
        parameter_dims[i] = block && i == axis
                                ? qn_dim_ceildiv(dims, type->dims[i], qn_dim_const(dims, block))
                                : type->dims[i];
    int rank = axis < 0 ? 0 : block ? type->rank : 1;
    qn_type scale_type = qn_type_make(b->graph->module, type->dtype, rank,
                                      block      ? parameter_dims
                                      : axis < 0 ? NULL
                                                 : type->dims + axis);
    qn_type zero_type = scale_type;
    zero_type.dtype = dtype;
    qn_value *scale = qn_b_full(b, &scale_type, 0.25), *zero = qn_rg_fresh(g, &zero_type).value;
    qn_value *y = qn_b_quantize(b, x.value, scale, zero, axis, block);
    if (!qn_rg_has(g, QN_RANDOM_INTS) || !qn_rg_push(g, y, 0, true) || qn_rg_chance(g, 40))
        return y != NULL;
    return qn_rg_push(g, qn_b_dequantize(b, y, scale, zero, axis, block), 4 * x.bound + 1000, true);
}

/* ---- random ---- */

static bool random_numbers(qn_rg *g)
{
    qn_builder *b = &g->b;
    int rank;
    qn_dim dims[QN_MAX_RANK];
    qn_rg_random_dims(g, &rank, dims);
    qn_value *key = qn_rg_fresh_static(g, QUERN_U64, 1, (int64_t[]){ 2 }).value;
    qn_value *offset = qn_b_scalar_int(b, QUERN_U64, qn_rg_below(g, 1000));
    qn_type type = qn_type_make(b->graph->module, qn_rg_float_dtype(g), rank, dims);
    if (qn_rg_chance(g, 50))
        return qn_rg_push(g, qn_b_random_uniform(b, key, offset, &type), 1, true);
    return qn_rg_push(g, qn_b_random_normal(b, key, offset, &type), 9, false);
}

const qn_rg_choice qn_rg_compute[] = {
    { reduce, 9, QN_RANDOM_REDUCE, true },
    { arg_reduce, 2, QN_RANDOM_REDUCE | QN_RANDOM_INTS, false },
    { reduce_window, 3, QN_RANDOM_REDUCE, true },
    { cumulative, 2, QN_RANDOM_REDUCE, true },
    { dot_general, 6, QN_RANDOM_CONTRACT, true },
    { matmul, 5, QN_RANDOM_CONTRACT, true },
    { convolution, 3, QN_RANDOM_CONTRACT, true },
    { conv_packed, 1, QN_RANDOM_CONTRACT, false },
    { conv_winograd, 1, QN_RANDOM_COMPOSITE | QN_RANDOM_CONTRACT, false },
    { softmax, 3, QN_RANDOM_COMPOSITE, true },
    { activation, 4, QN_RANDOM_COMPOSITE, true },
    { norm, 3, QN_RANDOM_COMPOSITE, true },
    { group_norm, 2, QN_RANDOM_COMPOSITE, true },
    { batch_norm, 2, QN_RANDOM_COMPOSITE, true },
    { dropout, 1, QN_RANDOM_COMPOSITE, true },
    { attention, 2, QN_RANDOM_COMPOSITE, true },
    { cross_entropy, 2, QN_RANDOM_COMPOSITE, true },
    { lstm, 1, QN_RANDOM_COMPOSITE, true },
    { quantize, 2, QN_RANDOM_COMPOSITE | QN_RANDOM_INTS, false },
    { random_numbers, 2, QN_RANDOM_BITS, false },
    { 0 },
};
