/* Type rules of reductions, windows, contractions, order and random bits. */
#include "ir/condensed.h"
#include "ir/infer_rules.h"
#include "ir/winograd.h"

#define DIMS (c->module->dims)

/* ---- reductions ---- */

static qn_status reduce(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int n, rank = 0;
    const int64_t *axes;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_axes(c, QN_ATTR_AXES, x->rank, true, &n, &axes));
    qn_kind kind = qn_attr_reduce_kind(c->node);
    if (kind == QN_SET || kind == QN_MEAN || (x->dtype == QUERN_BOOL && (kind == QN_SUM || kind == QN_PROD)))
        return qn_infer_fail(c, "kind %s does not reduce %s", qn_kind_names[kind], qn_infer_print(c, x));
    for (int i = 0, at = 0; i < x->rank; i++) {
        if (at < n && axes[at] == i)
            at++;
        else
            dims[rank++] = x->dims[i];
    }
    return qn_infer_give(c, x->dtype, rank, dims);
}

static qn_status arg_reduce(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int axis = 0, rank = 0;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    qn_kind kind = qn_attr_reduce_kind(c->node);
    if (kind != QN_KIND_MAX && kind != QN_KIND_MIN)
        return qn_infer_fail(c, "kind is %s; expected max or min", qn_kind_names[kind]);
    if (qn_dim_is(x->dims[axis], 0))
        return qn_infer_fail(c, "axis %d of %s is empty", axis, qn_infer_print(c, x));
    for (int i = 0; i < x->rank; i++) {
        if (i != axis)
            dims[rank++] = x->dims[i];
    }
    return qn_infer_give(c, QUERN_I64, rank, dims);
}

static qn_status constants(qn_infer_context *c, qn_attr_key key, const qn_dim *dims, int n)
{
    for (int i = 0; i < n; i++) {
        if (!qn_dim_is_const(dims[i]))
            return qn_infer_fail(c, "%s has %s; expected numbers", qn_attrs[key].name,
                                 qn_dim_print(dims[i], c->module->arena));
    }
    return QUERN_OK;
}

static qn_status at_least(qn_infer_context *c, qn_attr_key key, const int64_t *values, int n, int64_t least)
{
    for (int i = 0; i < n; i++) {
        if (values[i] < least)
            return qn_infer_fail(c, "%s has %lld; expected at least %lld", qn_attrs[key].name,
                                 (long long)values[i], (long long)least);
        if (values[i] > INT32_MAX)
            return qn_infer_fail(c, "%s has %lld; expected at most %d", qn_attrs[key].name,
                                 (long long)values[i], INT32_MAX);
    }
    return QUERN_OK;
}

/* (n + low + high - reach) / stride + 1 places for a window that reaches over `reach` elements; none if it doesn't fit.
 * One of a single element has none in nothing: along the batch of an empty one. */
static qn_status places(qn_infer_context *c, int axis, qn_dim n, qn_dim low, qn_dim high, qn_dim reach,
                        int64_t stride, qn_dim *out)
{
    qn_dim room = qn_dim_sub(DIMS, qn_dim_add(DIMS, qn_dim_add(DIMS, n, low), high), reach);
    if (room->max < (qn_dim_is(reach, 1) ? -1 : 0))
        return qn_infer_fail(c, "along axis %d the window reaches over %s elements, more than there are: %s",
                             axis, qn_dim_print(reach, c->module->arena), qn_dim_print(n, c->module->arena));
    *out = qn_dim_add(DIMS, qn_dim_floordiv(DIMS, room, qn_infer_const(c, stride)), qn_infer_const(c, 1));
    return QUERN_OK;
}

static qn_status window_dims(qn_infer_context *c, qn_dim *out)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const int64_t *window, *stride, *dilation;
    const qn_dim *low, *high;
    int rank = x->rank;
    QN_TRY(qn_infer_ints(c, QN_ATTR_WINDOW, rank, &window));
    QN_TRY(qn_infer_ints(c, QN_ATTR_STRIDE, rank, &stride));
    QN_TRY(qn_infer_ints(c, QN_ATTR_DILATION, rank, &dilation));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LOW, rank, &low));
    QN_TRY(qn_infer_dims(c, QN_ATTR_HIGH, rank, &high));
    QN_TRY(at_least(c, QN_ATTR_WINDOW, window, rank, 1));
    QN_TRY(at_least(c, QN_ATTR_STRIDE, stride, rank, 1));
    QN_TRY(at_least(c, QN_ATTR_DILATION, dilation, rank, 1));
    QN_TRY(constants(c, QN_ATTR_LOW, low, rank));
    QN_TRY(constants(c, QN_ATTR_HIGH, high, rank));
    for (int i = 0; i < rank; i++) {
        qn_dim reach = qn_infer_const(c, (window[i] - 1) * dilation[i] + 1);
        QN_TRY(places(c, i, x->dims[i], low[i], high[i], reach, stride[i], &out[i]));
    }
    return QUERN_OK;
}

static qn_status reduce_window(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    qn_dim dims[QN_MAX_RANK];
    const qn_kind kind = qn_attr_reduce_kind(c->node);
    if (kind == QN_SET || kind == QN_MEAN)
        return qn_infer_fail(c, "kind %s does not reduce", qn_kind_names[kind]);
    QN_TRY(window_dims(c, dims));
    return qn_infer_give(c, x->dtype, x->rank, dims);
}

static qn_status select_and_scatter(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(window_dims(c, dims));
    QN_TRY(qn_infer_expect_dtype(c, 1, x->dtype));
    QN_TRY(qn_infer_expect_dims(c, 1, x->rank, dims));
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

static qn_status cumulative(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int axis = 0;
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    const qn_kind kind = qn_attr_reduce_kind(c->node);
    if (kind == QN_SET || kind == QN_MEAN)
        return qn_infer_fail(c, "kind %s does not accumulate", qn_kind_names[kind]);
    return qn_infer_give(c, x->dtype, x->rank, x->dims);
}

/* ---- contractions ---- */

static qn_status dot_dtype(qn_infer_context *c, qn_dtype *out)
{
    qn_dtype x = qn_infer_operand(c, 0)->dtype, y = qn_infer_operand(c, 1)->dtype;
    *out = (qn_dtype)qn_attr_int_or(c->node, QN_ATTR_DTYPE, x);
    bool bytes = (x == QUERN_I8 || x == QUERN_U8) && (y == QUERN_I8 || y == QUERN_U8);
    bool halves = x == y && (x == QUERN_F16 || x == QUERN_BF16);
    if ((x == y && *out == x) || (bytes && *out == QUERN_I32) || (halves && *out == QUERN_F32))
        return QUERN_OK;
    return qn_infer_fail(c, "operands of %s and %s don't give %s", qn_dtype_name(x), qn_dtype_name(y),
                         qn_dtype_name(*out));
}

static qn_status dot_general(qn_infer_context *c)
{
    const qn_type *t[2] = { qn_infer_operand(c, 0), qn_infer_operand(c, 1) };
    const qn_attr_key batch_key[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    const qn_attr_key contract_key[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    const int64_t *batch[2], *contract[2];
    int n_batch[2], n_contract[2], rank = 0;
    bool used[2][QN_MAX_RANK] = { { false } };
    qn_dim dims[2 * QN_MAX_RANK];
    qn_dtype dtype;
    QN_TRY(dot_dtype(c, &dtype));
    for (int s = 0; s < 2; s++) {
        QN_TRY(qn_infer_axes(c, batch_key[s], t[s]->rank, false, &n_batch[s], &batch[s]));
        QN_TRY(qn_infer_axes(c, contract_key[s], t[s]->rank, false, &n_contract[s], &contract[s]));
        for (int i = 0; i < n_batch[s]; i++)
            used[s][batch[s][i]] = true;
        for (int i = 0; i < n_contract[s]; i++) {
            if (used[s][contract[s][i]])
                return qn_infer_fail(c, "axis %lld is both a batch and a contracted axis",
                                     (long long)contract[s][i]);
            used[s][contract[s][i]] = true;
        }
    }
    if (n_batch[0] != n_batch[1] || n_contract[0] != n_contract[1])
        return qn_infer_fail(c, "x and y have %d and %d batch, %d and %d contracted axes; expected as many",
                             n_batch[0], n_batch[1], n_contract[0], n_contract[1]);
    for (int i = 0; i < n_batch[0] + n_contract[0]; i++) {
        bool b = i < n_batch[0];
        int64_t ax = b ? batch[0][i] : contract[0][i - n_batch[0]],
                ay = b ? batch[1][i] : contract[1][i - n_batch[0]];
        if (t[0]->dims[ax] != t[1]->dims[ay])
            return qn_infer_fail(c, "%s axes %lld of %s and %lld of %s differ", b ? "batch" : "contracted",
                                 (long long)ax, qn_infer_print(c, t[0]), (long long)ay,
                                 qn_infer_print(c, t[1]));
    }
    for (int i = 0; i < n_batch[0]; i++)
        dims[rank++] = t[0]->dims[batch[0][i]];
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < t[s]->rank; i++) {
            if (!used[s][i])
                dims[rank++] = t[s]->dims[i];
        }
    }
    return qn_infer_give(c, dtype, rank, dims);
}

/* (n - 1) * dilation + 1 */
static qn_dim dilate(qn_infer_context *c, qn_dim n, int64_t dilation)
{
    const qn_dim one = qn_infer_const(c, 1);
    return qn_dim_add(DIMS, qn_dim_mul(DIMS, qn_dim_sub(DIMS, n, one), qn_infer_const(c, dilation)), one);
}

/* y of four bits or, where x is f32, of bytes: u8 [batch…, panels, K / 8 or K / 4, width, 4], with a scale
 * [batch…, panels, K / s, width]. */
static qn_status check_scale(qn_infer_context *c, int batch)
{
    const qn_type *x = qn_infer_operand(c, 0), *y = qn_infer_operand(c, 1), *scale = qn_infer_operand(c, 2);
    bool good = batch >= 0 && (x->dtype == QUERN_I8 || x->dtype == QUERN_F32) && y->dtype == QUERN_U8 &&
                y->rank == batch + 4 && qn_dim_is(y->dims[batch + 3], 4) && scale->rank == batch + 3 &&
                (scale->dtype == QUERN_F32 || scale->dtype == QUERN_BF16 || scale->dtype == QUERN_F16);
    for (int i = 0; good && i < scale->rank; i++) {
        const qn_dim of_y = y->dims[i], of_scale = scale->dims[i];
        if (i != batch + 1)
            good = of_y == of_scale;
        else
            good = qn_dim_is_const(of_y) && qn_dim_is_const(of_scale) && of_scale->value > 0 &&
                   of_y->value % of_scale->value == 0;
    }
    if (good && c->node->n_operands > 3 &&
        (x->dtype != QUERN_I8 || c->node->n_operands == 5 || qn_infer_operand(c, 3)->dtype != QUERN_F32)) {
        const qn_type *zeros = qn_infer_operand(c, 3);
        bool same = zeros->dtype == QUERN_U8 && zeros->rank == scale->rank;
        for (int i = 0; same && i < zeros->rank; i++)
            same = zeros->dims[i] == scale->dims[i];
        if (!same)
            return qn_infer_fail(c, "zeros are %s; expected u8 with the dims of the scale, %s",
                                 qn_infer_print(c, zeros), qn_infer_print(c, scale));
    }
    const int last = good ? qn_packed_factors(c->node) : 0;
    if (last > 0) {
        const qn_type *factors = qn_infer_operand(c, last);
        bool same = x->dtype == QUERN_I8 && factors->dtype == QUERN_F32 && factors->rank == x->rank &&
                    x->rank > 0 && factors->dims[x->rank - 1] == scale->dims[batch + 1];
        for (int i = 0; same && i < x->rank - 1; i++)
            same = factors->dims[i] == x->dims[i];
        if (!same)
            return qn_infer_fail(c,
                                 "x is %s, its factors %s, scale %s; expected i8 [batch…, m…, K] and f32 "
                                 "[batch…, m…, K / s]",
                                 qn_infer_print(c, x), qn_infer_print(c, factors), qn_infer_print(c, scale));
    }
    return good ? QUERN_OK
                : qn_infer_fail(c,
                                "x is %s, y %s, scale %s; expected i8 or f32, u8 [batch…, panels, K / 8 or "
                                "K / 4, width, 4] and a "
                                "float [batch…, panels, K / s, width], s a multiple of 8",
                                qn_infer_print(c, x), qn_infer_print(c, y), qn_infer_print(c, scale));
}

/* y f32 in 28 bits a number, or bf16 in 12: u8 [batch…, panels, bytes / width, width]. */
static bool is_condensed(const qn_infer_context *c, int batch)
{
    const qn_type *x = qn_infer_operand(c, 0), *y = qn_infer_operand(c, 1);
    if (c->node->n_operands > 2 || x->dtype != QUERN_F32 || y->dtype != QUERN_U8 || batch < 0 ||
        y->rank != batch + 3 || x->rank < 1)
        return false;
    const qn_dim k = x->dims[x->rank - 1], rows = y->dims[batch + 1], width = y->dims[batch + 2];
    qn_condensed of;
    return qn_dim_is_const(k) && qn_dim_is_const(rows) && qn_dim_is_const(width) && width->value > 0 &&
           rows->value <= INT64_MAX / width->value &&
           qn_condensed_of(k->value, width->value, rows->value * width->value, &of);
}

static qn_status matmul_packed(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *y = qn_infer_operand(c, 1);
    int64_t batch = qn_attr_int(c->node, QN_ATTR_BATCH_DIMS);
    const qn_dim *n;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_dims(c, QN_ATTR_DIMS, 1, &n));
    qn_dtype dtype = x->dtype;
    const bool scaled = c->node->n_operands > 2, condensed = is_condensed(c, (int)batch),
               stored_shorter =
                   condensed || (x->dtype == QUERN_F32 && (y->dtype == QUERN_BF16 || y->dtype == QUERN_F16));
    if (scaled) {
        QN_TRY(check_scale(c, (int)batch));
        dtype = QUERN_F32;
    } else if (!stored_shorter || qn_attr_int_or(c->node, QN_ATTR_DTYPE, x->dtype) != x->dtype) {
        QN_TRY(dot_dtype(c, &dtype));
    }
    const bool grouped = y->rank == batch + 4;
    const bool bytes = scaled && x->rank > 0 &&
                       qn_dim_mul(DIMS, y->dims[batch + 1], qn_infer_const(c, 4)) == x->dims[x->rank - 1];
    if (batch < 0 || x->rank < batch + 1 || (y->rank != batch + 3 && !grouped) ||
        !qn_dim_is_const(y->dims[batch + 2]) || !qn_dim_is_const(y->dims[y->rank - 1]) ||
        (!condensed && qn_dim_mul(DIMS, y->dims[batch + 1],
                                  scaled    ? qn_infer_const(c, bytes ? 4 : 8)
                                  : grouped ? y->dims[batch + 3]
                                            : qn_infer_const(c, 1)) != x->dims[x->rank - 1]))
        return qn_infer_fail(c,
                             "x is %s and y is %s; expected [batch…, m…, K] and [batch…, panels, K, width] "
                             "or [batch…, panels, K / g, width, g]",
                             qn_infer_print(c, x), qn_infer_print(c, y));
    for (int i = 0; i < x->rank; i++) {
        dims[i] = i == x->rank - 1 ? n[0] : x->dims[i];
        if (i < batch && y->dims[i] != x->dims[i])
            return qn_infer_fail(c, "batch dim %d differs: %s and %s", i, qn_infer_print(c, x),
                                 qn_infer_print(c, y));
    }
    if (n[0]->min > qn_dim_mul(DIMS, y->dims[batch], y->dims[batch + 2])->max)
        return qn_infer_fail(c, "y is %s; it has no %s columns", qn_infer_print(c, y),
                             qn_dim_print(n[0], c->module->arena));
    return qn_infer_give(c, dtype, x->rank, dims);
}

static qn_status convolution(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *w = qn_infer_operand(c, 1);
    int n = x->rank - 2;
    int64_t groups = qn_attr_int(c->node, QN_ATTR_GROUPS);
    const int64_t *stride, *x_dilation, *w_dilation;
    const qn_dim *low, *high;
    qn_dim dims[QN_MAX_RANK];
    if (n < 1)
        return qn_infer_fail(c, "operand 0 is %s; expected [N, C, spatial…]", qn_infer_print(c, x));
    qn_dtype dtype;
    QN_TRY(dot_dtype(c, &dtype));
    QN_TRY(qn_infer_expect_rank(c, 1, x->rank));
    QN_TRY(qn_infer_ints(c, QN_ATTR_STRIDE, n, &stride));
    QN_TRY(qn_infer_ints(c, QN_ATTR_X_DILATION, n, &x_dilation));
    QN_TRY(qn_infer_ints(c, QN_ATTR_W_DILATION, n, &w_dilation));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LOW, n, &low));
    QN_TRY(qn_infer_dims(c, QN_ATTR_HIGH, n, &high));
    QN_TRY(at_least(c, QN_ATTR_STRIDE, stride, n, 1));
    QN_TRY(at_least(c, QN_ATTR_X_DILATION, x_dilation, n, 1));
    QN_TRY(at_least(c, QN_ATTR_W_DILATION, w_dilation, n, 1));
    QN_TRY(at_least(c, QN_ATTR_GROUPS, &groups, 1, 1));
    QN_TRY(constants(c, QN_ATTR_LOW, low, n));
    QN_TRY(constants(c, QN_ATTR_HIGH, high, n));
    if (qn_dim_mul(DIMS, w->dims[1], qn_infer_const(c, groups)) != x->dims[1])
        return qn_infer_fail(c, "x is %s and w is %s: channels don't match in %lld group(s)",
                             qn_infer_print(c, x), qn_infer_print(c, w), (long long)groups);
    if (!qn_dim_divisible(w->dims[0], groups))
        return qn_infer_fail(c, "w is %s: its output channels don't divide into %lld groups",
                             qn_infer_print(c, w), (long long)groups);
    dims[0] = x->dims[0];
    dims[1] = w->dims[0];
    for (int i = 0; i < n; i++) {
        if (w->dims[i + 2]->max < 1)
            return qn_infer_fail(c, "w is %s: its window is empty", qn_infer_print(c, w));
        const qn_dim spread = qn_dim_spread(DIMS, x->dims[i + 2], x_dilation[i]);
        const qn_dim reach = dilate(c, w->dims[i + 2], w_dilation[i]);
        QN_TRY(places(c, i + 2, spread, low[i], high[i], reach, stride[i], &dims[i + 2]));
    }
    return qn_infer_give(c, dtype, x->rank, dims);
}

/* w's channels, one after the other, in the blocks of a group of x: of several groups these are whole blocks. */
static bool fit_in_blocks(qn_infer_context *c, qn_dim channels, int64_t groups, const qn_type *x)
{
    const qn_dim lanes = x->dims[x->rank - 1];
    if (!qn_dim_is_const(lanes) || lanes->value < 1 ||
        (groups > 1 && !qn_dim_divisible(channels, lanes->value)))
        return false;
    return qn_dim_mul(DIMS, qn_dim_ceildiv(DIMS, channels, lanes), qn_infer_const(c, groups)) == x->dims[1];
}

/* x, w and the result of groups that lie across blocks. */
static bool fit_across(qn_infer_context *c, const qn_type *x, const qn_type *w, int64_t groups,
                       int64_t channels, int64_t out_channels)
{
    const int last = w->rank - 1;
    const qn_dim there = qn_dim_mul(DIMS, x->dims[1], x->dims[x->rank - 1]),
                 made = qn_dim_mul(DIMS, w->dims[0], w->dims[last]), group = qn_infer_const(c, groups);
    return qn_dim_is(w->dims[1], 1) && qn_dim_is(w->dims[last - 1], channels) &&
           qn_dim_at_most(DIMS, qn_dim_mul(DIMS, group, qn_infer_const(c, channels)), there) &&
           qn_dim_at_most(DIMS, qn_dim_mul(DIMS, group, qn_infer_const(c, out_channels)), made);
}

static qn_status conv_packed(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *w = qn_infer_operand(c, 1);
    const int n = x->rank - 3;
    const int64_t groups = qn_attr_int(c->node, QN_ATTR_GROUPS);
    const int64_t channels = qn_attr_int(c->node, QN_ATTR_CHANNELS);
    const int64_t *stride, *w_dilation;
    const qn_dim *low, *high;
    qn_dim dims[QN_MAX_RANK];
    if (n < 1)
        return qn_infer_fail(c, "operand 0 is %s; expected [N, B, spatial…, c]", qn_infer_print(c, x));
    qn_dtype dtype;
    QN_TRY(dot_dtype(c, &dtype));
    const bool grouped = w->rank == n + 5;
    if (!grouped)
        QN_TRY(qn_infer_expect_rank(c, 1, n + 4));
    QN_TRY(qn_infer_ints(c, QN_ATTR_STRIDE, n, &stride));
    QN_TRY(qn_infer_ints(c, QN_ATTR_W_DILATION, n, &w_dilation));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LOW, n, &low));
    QN_TRY(qn_infer_dims(c, QN_ATTR_HIGH, n, &high));
    QN_TRY(at_least(c, QN_ATTR_STRIDE, stride, n, 1));
    QN_TRY(at_least(c, QN_ATTR_W_DILATION, w_dilation, n, 1));
    QN_TRY(at_least(c, QN_ATTR_GROUPS, &groups, 1, 1));
    QN_TRY(at_least(c, QN_ATTR_CHANNELS, &channels, 1, 1));
    QN_TRY(constants(c, QN_ATTR_LOW, low, n));
    QN_TRY(constants(c, QN_ATTR_HIGH, high, n));
    int64_t out_channels = 0; /* it isn't said */
    if (qn_attr_find(c->node, QN_ATTR_OUT_CHANNELS)) {
        out_channels = qn_attr_int(c->node, QN_ATTR_OUT_CHANNELS);
        QN_TRY(at_least(c, QN_ATTR_OUT_CHANNELS, &out_channels, 1, 1));
    }
    const qn_dim blocks = x->dims[1], lanes = x->dims[n + 2], out_blocks = w->dims[0],
                 one = qn_infer_const(c, 1);
    const qn_dim w_lanes = grouped ? qn_dim_mul(DIMS, w->dims[n + 2], w->dims[n + 4]) : w->dims[n + 2];
    const bool across = !grouped && groups > 1 && out_channels > 0;
    const bool inside = !grouped && qn_dim_is_const(blocks) && groups > blocks->value;
    const qn_dim all = qn_dim_mul(DIMS, blocks, lanes), group = qn_infer_const(c, groups);
    bool fits = across   ? fit_across(c, x, w, groups, channels, out_channels)
                : inside ? qn_dim_divisible(group, blocks->value) && w->dims[1] == one &&
                               qn_dim_mul(DIMS, w->dims[n + 2], group) == all &&
                               qn_dim_divisible(qn_dim_mul(DIMS, out_blocks, w->dims[n + 3]), groups)
                         : qn_dim_divisible(out_blocks, groups) &&
                               (w_lanes == lanes
                                    ? qn_dim_mul(DIMS, w->dims[1], group) == blocks
                                    : !grouped && w_lanes == one && fit_in_blocks(c, w->dims[1], groups, x));
    const qn_dim made = qn_dim_mul(DIMS, out_blocks, w->dims[n + 3]);
    if (fits && groups == 1 && out_channels > 0 && qn_infer_exceeds(c, qn_infer_const(c, out_channels), made))
        return qn_infer_fail(c, "w is %s: it makes no %lld channels", qn_infer_print(c, w),
                             (long long)out_channels);
    if (!fits)
        return qn_infer_fail(c, "x is %s and w is %s: blocks don't match in %lld group(s)",
                             qn_infer_print(c, x), qn_infer_print(c, w), (long long)groups);
    if (qn_infer_exceeds(c, qn_infer_const(c, channels), qn_dim_mul(DIMS, w->dims[1], w_lanes)))
        return qn_infer_fail(c, "w is %s: it has no %lld channels", qn_infer_print(c, w),
                             (long long)channels);
    dims[0] = x->dims[0];
    dims[1] = out_blocks;
    dims[n + 2] = w->dims[n + 3];
    for (int i = 0; i < n; i++) {
        if (w->dims[i + 2]->max < 1)
            return qn_infer_fail(c, "w is %s: its window is empty", qn_infer_print(c, w));
        const qn_dim reach = dilate(c, w->dims[i + 2], w_dilation[i]);
        QN_TRY(places(c, i + 2, x->dims[i + 2], low[i], high[i], reach, stride[i], &dims[i + 2]));
    }
    return qn_infer_give(c, dtype, x->rank, dims);
}

static qn_status conv_winograd(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *u = qn_infer_operand(c, 1);
    const qn_dim *low, *high;
    QN_TRY(qn_infer_expect_rank(c, 0, 5));
    QN_TRY(qn_infer_expect_rank(c, 1, 5));
    QN_TRY(qn_infer_expect_dtype(c, 1, x->dtype));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LOW, 2, &low));
    QN_TRY(qn_infer_dims(c, QN_ATTR_HIGH, 2, &high));
    QN_TRY(constants(c, QN_ATTR_LOW, low, 2));
    QN_TRY(constants(c, QN_ATTR_HIGH, high, 2));
    const qn_dim t = u->dims[1], lanes = x->dims[4], width = u->dims[4];
    if (u->dims[2] != t || !qn_dim_is_const(t) || !qn_winograd_has(t->value))
        return qn_infer_fail(c, "u is %s; expected [panels, t, t, K, width] with t = 4 or 6",
                             qn_infer_print(c, u));
    if (!qn_dim_is_const(lanes) || lanes->value < 1 || !qn_dim_is_const(width) ||
        width->value % lanes->value != 0)
        return qn_infer_fail(c, "x is %s and u is %s: panels are no whole blocks", qn_infer_print(c, x),
                             qn_infer_print(c, u));
    if (qn_infer_exceeds(c, u->dims[3], qn_dim_mul(DIMS, x->dims[1], lanes)))
        return qn_infer_fail(c, "x is %s and u is %s: it has not so many channels", qn_infer_print(c, x),
                             qn_infer_print(c, u));
    qn_dim dims[5] = { x->dims[0],
                       qn_dim_mul(DIMS, u->dims[0], qn_infer_const(c, width->value / lanes->value)) };
    for (int i = 0; i < 2; i++)
        QN_TRY(places(c, 2 + i, x->dims[2 + i], low[i], high[i], qn_infer_const(c, 3), 1, &dims[2 + i]));
    dims[4] = lanes;
    return qn_infer_give(c, x->dtype, 5, dims);
}

/* ---- order, random ---- */

static qn_status sort(qn_infer_context *c)
{
    const qn_type *key = qn_infer_operand(c, 0);
    int axis = 0;
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, key->rank, &axis));
    for (int i = 0; i < c->node->n_operands; i++) {
        QN_TRY(qn_infer_expect_dims(c, i, key->rank, key->dims));
        QN_TRY(qn_infer_give(c, qn_infer_operand(c, i)->dtype, key->rank, key->dims));
    }
    return QUERN_OK;
}

static qn_status top_k(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    int axis = 0;
    const qn_dim *k;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(qn_infer_axis(c, QN_ATTR_AXIS, x->rank, &axis));
    QN_TRY(qn_infer_dims(c, QN_ATTR_K, 1, &k));
    if (k[0]->max < 0 || qn_infer_exceeds(c, k[0], x->dims[axis]))
        return qn_infer_fail(c, "k is %s for %s along axis %d", qn_dim_print(k[0], c->module->arena),
                             qn_infer_print(c, x), axis);
    for (int i = 0; i < x->rank; i++)
        dims[i] = i == axis ? k[0] : x->dims[i];
    QN_TRY(qn_infer_give(c, x->dtype, x->rank, dims));
    return qn_infer_give(c, QUERN_I64, x->rank, dims);
}

static qn_status non_zero(qn_infer_context *c)
{
    const qn_dim *symbol;
    QN_TRY(qn_infer_dims(c, QN_ATTR_SYMBOL, 1, &symbol));
    if (symbol[0]->kind != QN_DIM_SYMBOL)
        return qn_infer_fail(c, "symbol is %s; expected a symbol", qn_dim_print(symbol[0], c->module->arena));
    qn_dim dims[2] = { qn_infer_const(c, qn_infer_operand(c, 0)->rank), symbol[0] };
    return qn_infer_give(c, QUERN_I64, 2, dims);
}

static qn_status extent(qn_infer_context *c)
{
    const qn_dim *symbol, *limit;
    QN_TRY(qn_infer_dims(c, QN_ATTR_SYMBOL, 1, &symbol));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LIMIT, 1, &limit));
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    QN_TRY(qn_infer_expect_rank(c, 0, 0));
    if (symbol[0]->kind != QN_DIM_SYMBOL)
        return qn_infer_fail(c, "symbol is %s; expected a symbol", qn_dim_print(symbol[0], c->module->arena));
    if (symbol[0]->min < 0 || limit[0]->max < 0)
        return qn_infer_fail(c, "%s, of at most %s, may be negative", symbol[0]->name,
                             qn_dim_print(limit[0], c->module->arena));
    return qn_infer_give(c, QUERN_I64, 0, NULL);
}

static qn_status require(qn_infer_context *c)
{
    const qn_dim *symbol;
    QN_TRY(qn_infer_dims(c, QN_ATTR_SYMBOL, 1, &symbol));
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    QN_TRY(qn_infer_expect_rank(c, 0, 0));
    if (symbol[0]->kind != QN_DIM_SYMBOL || symbol[0]->min > 0 || symbol[0]->max < 1)
        return qn_infer_fail(c, "symbol is %s; expected a symbol that may be 0 and 1",
                             qn_dim_print(symbol[0], c->module->arena));
    return qn_infer_give(c, QUERN_I64, 0, NULL);
}

/* (scores [B, C, N], boxes [B, N, 4], limit, overlap, least?) -> [B, C, k] */
static qn_status suppress(qn_infer_context *c)
{
    const qn_type *scores = qn_infer_operand(c, 0);
    const qn_dim *k;
    QN_TRY(qn_infer_expect_rank(c, 0, 3));
    const qn_dim boxes[3] = { scores->dims[0], scores->dims[2], qn_infer_const(c, 4) };
    QN_TRY(qn_infer_expect_dims(c, 1, 3, boxes));
    if (!qn_dtype_is_float(qn_infer_operand(c, 1)->dtype))
        return qn_infer_fail(c, "boxes are %s; expected floats", qn_infer_print(c, qn_infer_operand(c, 1)));
    QN_TRY(qn_infer_expect_dtype(c, 2, QUERN_I64));
    QN_TRY(qn_infer_expect_dtype(c, 3, qn_infer_operand(c, 1)->dtype));
    if (c->node->n_operands > 4)
        QN_TRY(qn_infer_expect_dtype(c, 4, scores->dtype));
    for (int i = 2; i < c->node->n_operands; i++)
        QN_TRY(qn_infer_expect_rank(c, i, 0));
    QN_TRY(qn_infer_dims(c, QN_ATTR_K, 1, &k));
    if (k[0]->max < 0)
        return qn_infer_fail(c, "k is %s", qn_dim_print(k[0], c->module->arena));
    return qn_infer_give(c, QUERN_I64, 3, (qn_dim[]){ scores->dims[0], scores->dims[1], k[0] });
}

static qn_status random_bits(qn_infer_context *c)
{
    qn_dim two = qn_infer_const(c, 2);
    int rank;
    const qn_dim *dims = qn_attr_dims(c->node, QN_ATTR_DIMS, &rank);
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_U64));
    QN_TRY(qn_infer_expect_dims(c, 0, 1, &two));
    QN_TRY(qn_infer_expect_dtype(c, 1, QUERN_U64));
    QN_TRY(qn_infer_expect_rank(c, 1, 0));
    return qn_infer_give(c, QUERN_U32, rank, dims);
}

qn_infer_rule qn_infer_compute(qn_op op)
{
    switch (op) {
    case QN_OP_REDUCE: return reduce;
    case QN_OP_ARG_REDUCE: return arg_reduce;
    case QN_OP_REDUCE_WINDOW: return reduce_window;
    case QN_OP_SELECT_AND_SCATTER: return select_and_scatter;
    case QN_OP_CUMULATIVE: return cumulative;
    case QN_OP_DOT_GENERAL: return dot_general;
    case QN_OP_CONVOLUTION: return convolution;
    case QN_OP_CONV_PACKED: return conv_packed;
    case QN_OP_CONV_WINOGRAD: return conv_winograd;
    case QN_OP_MATMUL_PACKED: return matmul_packed;
    case QN_OP_SORT: return sort;
    case QN_OP_TOP_K: return top_k;
    case QN_OP_NON_ZERO: return non_zero;
    case QN_OP_EXTENT: return extent;
    case QN_OP_REQUIRE: return require;
    case QN_OP_SUPPRESS: return suppress;
    case QN_OP_RANDOM_BITS: return random_bits;
    default: return NULL;
    }
}
