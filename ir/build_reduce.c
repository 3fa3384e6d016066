/* The builder's ops that compute across elements: reductions, windows, contractions, order. */
#include <string.h>

#include "ir/build_internal.h"

/* ---- reductions ---- */

qn_value *qn_b_reduce(qn_builder *b, qn_kind kind, qn_value *x, int n_axes, const int64_t *axes,
                      bool keep_dims)
{
    qn_attr_list list = { 0 };
    int64_t sorted[QN_MAX_RANK];
    qn_dim dims[QN_MAX_RANK];
    if (!x || n_axes == 0)
        return x;
    if (n_axes > x->type.rank)
        return qn_build_error(b, "a reduction of %d axes of %s", n_axes,
                              qn_type_print(&x->type, b->diags->arena));
    for (int i = 0; i < n_axes; i++) {
        int at = i;
        for (; at > 0 && sorted[at - 1] > axes[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = axes[i];
    }
    qn_attrs_ints(&list, QN_ATTR_AXES, n_axes, sorted);
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    qn_value *reduced = qn_build(b, QN_OP_REDUCE, 1, &x, &list);
    if (!reduced || !keep_dims)
        return reduced;
    memcpy(dims, x->type.dims, (size_t)x->type.rank * sizeof *dims);
    for (int i = 0; i < n_axes; i++)
        dims[sorted[i]] = qn_dim_const(qn_b_dims(b), 1);
    return qn_b_reshape(b, reduced, x->type.rank, dims);
}

qn_value *qn_b_mean(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes, bool keep_dims)
{
    if (!x || n_axes == 0)
        return x;
    /* The sum of a narrow float may overflow where the mean doesn't. */
    qn_dtype dtype = x->type.dtype;
    qn_value *sum = qn_b_reduce(b, QN_SUM, qn_b_convert(b, qn_dtype_wide(dtype), x), n_axes, axes, keep_dims);
    if (!sum)
        return NULL;
    qn_dim count = qn_dim_const(qn_b_dims(b), 1);
    for (int i = 0; i < n_axes; i++)
        count = qn_dim_mul(qn_b_dims(b), count, x->type.dims[axes[i]]);
    qn_value *n = qn_dim_is_const(count)
                      ? qn_b_scalar_int(b, sum->type.dtype, count->value)
                      : qn_b_convert(b, sum->type.dtype, qn_b_dim_value(b, QUERN_I64, count));
    n = qn_b_broadcast_to(b, n, sum->type.rank, sum->type.dims);
    return qn_b_convert(b, dtype, qn_b_binary(b, QN_OP_DIV, sum, n));
}

qn_value *qn_b_arg_reduce(qn_builder *b, qn_kind kind, qn_value *x, int axis, bool last)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    qn_attrs_flag(&list, QN_ATTR_LAST, last);
    return qn_build(b, QN_OP_ARG_REDUCE, 1, &x, &list);
}

qn_value *qn_b_cumulative(qn_builder *b, qn_kind kind, qn_value *x, int axis, bool exclusive, bool reverse)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_flag(&list, QN_ATTR_EXCLUSIVE, exclusive);
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    qn_attrs_flag(&list, QN_ATTR_REVERSE, reverse);
    return qn_build(b, QN_OP_CUMULATIVE, 1, &x, &list);
}

/* ---- windows ---- */

/* Where the defaults of a window or a convolution are written out. */
typedef struct spatial {
    int64_t ones[QN_MAX_RANK];
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
} spatial;

static const int64_t *or_ones(const int64_t *given, spatial *room)
{
    for (int i = 0; i < QN_MAX_RANK; i++)
        room->ones[i] = 1;
    return given ? given : room->ones;
}

static void add_padding(qn_builder *b, qn_attr_list *list, int n, const int64_t *low, const int64_t *high,
                        spatial *room)
{
    for (int i = 0; i < n; i++) {
        room->low[i] = qn_dim_const(qn_b_dims(b), low ? low[i] : 0);
        room->high[i] = qn_dim_const(qn_b_dims(b), high ? high[i] : 0);
    }
    qn_attrs_dims(list, QN_ATTR_LOW, n, room->low);
    qn_attrs_dims(list, QN_ATTR_HIGH, n, room->high);
}

static void add_window(qn_builder *b, qn_attr_list *list, int rank, const qn_window *w, spatial *room)
{
    qn_attrs_ints(list, QN_ATTR_WINDOW, rank, w->window);
    qn_attrs_ints(list, QN_ATTR_STRIDE, rank, or_ones(w->stride, room));
    qn_attrs_ints(list, QN_ATTR_DILATION, rank, or_ones(w->dilation, room));
    add_padding(b, list, rank, w->low, w->high, room);
}

qn_value *qn_b_reduce_window(qn_builder *b, qn_kind kind, qn_value *x, const qn_window *window)
{
    qn_attr_list list = { 0 };
    spatial room;
    if (!x)
        return NULL;
    add_window(b, &list, x->type.rank, window, &room);
    qn_attrs_int(&list, QN_ATTR_KIND, kind);
    return qn_build(b, QN_OP_REDUCE_WINDOW, 1, &x, &list);
}

qn_value *qn_b_select_and_scatter(qn_builder *b, qn_value *x, qn_value *gradient, const qn_window *window)
{
    qn_attr_list list = { 0 };
    spatial room;
    if (!x)
        return NULL;
    add_window(b, &list, x->type.rank, window, &room);
    return qn_build(b, QN_OP_SELECT_AND_SCATTER, 2, (qn_value *[]){ x, gradient }, &list);
}

/* ---- contractions ---- */

qn_value *qn_b_dot_general(qn_builder *b, qn_value *x, qn_value *y, const qn_dot *dot, qn_dtype result)
{
    qn_attr_list list = { 0 };
    if (!x || !y)
        return NULL;
    if (result != QUERN_INVALID_DTYPE && result != x->type.dtype)
        qn_attrs_int(&list, QN_ATTR_DTYPE, result);
    qn_attrs_ints(&list, QN_ATTR_X_BATCH, dot->n_batch, dot->x_batch);
    qn_attrs_ints(&list, QN_ATTR_X_CONTRACT, dot->n_contract, dot->x_contract);
    qn_attrs_ints(&list, QN_ATTR_Y_BATCH, dot->n_batch, dot->y_batch);
    qn_attrs_ints(&list, QN_ATTR_Y_CONTRACT, dot->n_contract, dot->y_contract);
    return qn_build(b, QN_OP_DOT_GENERAL, 2, (qn_value *[]){ x, y }, &list);
}

qn_value *qn_b_matmul_packed(qn_builder *b, qn_value *x, qn_value *y, int batch_dims, qn_dim n,
                             qn_dtype result)
{
    qn_attr_list list = { 0 };
    if (!x || !y)
        return NULL;
    qn_attrs_int(&list, QN_ATTR_BATCH_DIMS, batch_dims);
    qn_attrs_dims(&list, QN_ATTR_DIMS, 1, &n);
    if (result != QUERN_INVALID_DTYPE && result != x->type.dtype)
        qn_attrs_int(&list, QN_ATTR_DTYPE, result);
    return qn_build(b, QN_OP_MATMUL_PACKED, 2, (qn_value *[]){ x, y }, &list);
}

qn_value *qn_b_matmul_packed_scaled(qn_builder *b, qn_value *x, qn_value *y, qn_value *scale, qn_value *zeros,
                                    qn_value *factors, int batch_dims, qn_dim n)
{
    qn_attr_list list = { 0 };
    qn_value *operands[5] = { x, y, scale };
    int n_operands = 3;
    if (!x || !y || !scale)
        return NULL;
    if (zeros)
        operands[n_operands++] = zeros;
    if (factors)
        operands[n_operands++] = factors;
    qn_attrs_int(&list, QN_ATTR_BATCH_DIMS, batch_dims);
    qn_attrs_dims(&list, QN_ATTR_DIMS, 1, &n);
    qn_attrs_int(&list, QN_ATTR_DTYPE, QUERN_F32);
    return qn_build(b, QN_OP_MATMUL_PACKED, n_operands, operands, &list);
}

/* Drops leading axes of extent 1, down to a matrix. */
static qn_value *drop_ones(qn_builder *b, qn_value *x)
{
    while (x && x->type.rank > 2 && qn_dim_is(x->type.dims[0], 1))
        x = qn_b_squeeze(b, x, 0);
    return x;
}

/* Both of rank >= 2: batch dims broadcast to their common ones. */
static qn_value *batched_matmul(qn_builder *b, qn_value *x, qn_value *y, qn_dtype result)
{
    qn_value *operands[2] = { x, y };
    qn_dim batch[QN_MAX_RANK];
    int rank = x->type.rank > y->type.rank ? x->type.rank : y->type.rank, n = rank - 2;
    qn_value batch_of[2] = { *x, *y }; /* only their types are read */
    for (int i = 0; i < 2; i++)
        batch_of[i].type.rank -= 2;
    if (!qn_b_broadcast_dims(b, 2, (qn_value *[]){ &batch_of[0], &batch_of[1] }, &n, batch))
        return NULL;
    qn_dot dot = { .n_batch = n, .n_contract = 1, .x_contract = { rank - 1 }, .y_contract = { rank - 2 } };
    for (int i = 0; i < n; i++)
        dot.x_batch[i] = dot.y_batch[i] = i;
    for (int i = 0; i < 2; i++) {
        const qn_type *type = &operands[i]->type;
        batch[n] = type->dims[type->rank - 2];
        batch[n + 1] = type->dims[type->rank - 1];
        operands[i] = qn_b_broadcast_to(b, operands[i], rank, batch);
    }
    return qn_b_dot_general(b, operands[0], operands[1], &dot, result);
}

qn_value *qn_b_matmul(qn_builder *b, qn_value *x, qn_value *y)
{
    return qn_b_matmul_to(b, x, y, QUERN_INVALID_DTYPE);
}

qn_value *qn_b_matmul_to(qn_builder *b, qn_value *x, qn_value *y, qn_dtype result)
{
    if (!x || !y)
        return NULL;
    if (x->type.rank == 0 || y->type.rank == 0)
        return qn_build_error(b, "a matrix product of %s and %s: neither may be a scalar",
                              qn_type_print(&x->type, b->diags->arena),
                              qn_type_print(&y->type, b->diags->arena));
    int x_rank = x->type.rank, y_rank = y->type.rank;
    qn_dot dot = { .n_contract = 1,
                   .x_contract = { x_rank - 1 },
                   .y_contract = { y_rank >= 2 ? y_rank - 2 : 0 } };
    if (x_rank == 1 || y_rank <= 2) /* no batch, or only x's: what is free in x comes first anyway */
        return qn_b_dot_general(b, x, y, &dot, result);
    qn_value *matrix = y_rank <= x_rank ? drop_ones(b, y) : y;
    if (matrix && matrix->type.rank == 2) {
        dot.y_contract[0] = 0;
        return qn_b_dot_general(b, x, matrix, &dot, result);
    }
    return batched_matmul(b, x, y, result);
}

qn_value *qn_b_convolution(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv)
{
    return qn_b_convolution_to(b, x, w, conv, QUERN_INVALID_DTYPE);
}

qn_value *qn_b_convolution_to(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, qn_dtype result)
{
    qn_attr_list list = { 0 };
    spatial room;
    if (!x || !w)
        return NULL;
    int n = x->type.rank - 2;
    if (n < 1)
        return qn_build_error(
            b, "a convolution of %s: it needs a batch, a channel and at least one spatial axis",
            qn_type_print(&x->type, b->diags->arena));
    if (result != QUERN_INVALID_DTYPE && result != x->type.dtype)
        qn_attrs_int(&list, QN_ATTR_DTYPE, result);
    qn_attrs_int(&list, QN_ATTR_GROUPS, conv->groups ? conv->groups : 1);
    qn_attrs_ints(&list, QN_ATTR_STRIDE, n, or_ones(conv->stride, &room));
    qn_attrs_ints(&list, QN_ATTR_X_DILATION, n, or_ones(conv->x_dilation, &room));
    qn_attrs_ints(&list, QN_ATTR_W_DILATION, n, or_ones(conv->w_dilation, &room));
    add_padding(b, &list, n, conv->low, conv->high, &room);
    return qn_build(b, QN_OP_CONVOLUTION, 2, (qn_value *[]){ x, w }, &list);
}

/* out_channels: 0: it isn't said */
static qn_value *conv_packed(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, int64_t channels,
                             int64_t out_channels, qn_dtype result)
{
    qn_attr_list list = { 0 };
    spatial room;
    if (!x || !w)
        return NULL;
    const int n = x->type.rank - 3;
    if (n < 1)
        return qn_build_error(b, "a convolution of %s: expected [batch, blocks, spatial…, channels]",
                              qn_type_print(&x->type, b->diags->arena));
    qn_attrs_int(&list, QN_ATTR_CHANNELS, channels);
    if (result != QUERN_INVALID_DTYPE && result != x->type.dtype)
        qn_attrs_int(&list, QN_ATTR_DTYPE, result);
    qn_attrs_int(&list, QN_ATTR_GROUPS, conv->groups ? conv->groups : 1);
    qn_attrs_ints(&list, QN_ATTR_STRIDE, n, or_ones(conv->stride, &room));
    qn_attrs_ints(&list, QN_ATTR_W_DILATION, n, or_ones(conv->w_dilation, &room));
    add_padding(b, &list, n, conv->low, conv->high, &room);
    if (out_channels > 0)
        qn_attrs_int(&list, QN_ATTR_OUT_CHANNELS, out_channels);
    return qn_build(b, QN_OP_CONV_PACKED, 2, (qn_value *[]){ x, w }, &list);
}

qn_value *qn_b_conv_packed(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, int64_t channels)
{
    return qn_b_conv_packed_to(b, x, w, conv, channels, QUERN_INVALID_DTYPE);
}

qn_value *qn_b_conv_packed_to(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv, int64_t channels,
                              qn_dtype result)
{
    return conv_packed(b, x, w, conv, channels, 0, result);
}

qn_value *qn_b_conv_packed_across(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv,
                                  int64_t channels, int64_t out_channels)
{
    return conv_packed(b, x, w, conv, channels, out_channels, QUERN_INVALID_DTYPE);
}

qn_value *qn_b_conv_winograd(qn_builder *b, qn_value *x, qn_value *u, const int64_t *low, const int64_t *high)
{
    qn_attr_list list = { 0 };
    spatial room;
    add_padding(b, &list, 2, low, high, &room);
    return qn_build(b, QN_OP_CONV_WINOGRAD, 2, (qn_value *[]){ x, u }, &list);
}

/* ---- order ---- */

qn_node *qn_b_sort(qn_builder *b, int n, qn_value *const *operands, int axis, bool descending)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_flag(&list, QN_ATTR_DESCENDING, descending);
    return qn_build_node(b, QN_OP_SORT, n, operands, &list, 0, NULL);
}

qn_node *qn_b_top_k(qn_builder *b, qn_value *x, int axis, qn_dim k, bool largest)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_AXIS, axis);
    qn_attrs_dims(&list, QN_ATTR_K, 1, &k);
    qn_attrs_flag(&list, QN_ATTR_LARGEST, largest);
    return qn_build_node(b, QN_OP_TOP_K, 1, &x, &list, 0, NULL);
}

qn_value *qn_b_extent(qn_builder *b, qn_value *x, qn_dim limit, qn_dim symbol)
{
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_LIMIT, 1, &limit);
    qn_attrs_dims(&list, QN_ATTR_SYMBOL, 1, &symbol);
    return qn_build(b, QN_OP_EXTENT, 1, &x, &list);
}

qn_value *qn_b_require(qn_builder *b, qn_value *condition)
{
    const qn_dim symbol = qn_dim_fresh(qn_b_dims(b), "required", 0, 1);
    qn_value *x = qn_b_convert(b, QUERN_I64, qn_b_convert(b, QUERN_BOOL, condition));
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_SYMBOL, 1, &symbol);
    return x ? qn_build(b, QN_OP_REQUIRE, 1, &x, &list) : NULL;
}

qn_value *qn_b_non_zero(qn_builder *b, qn_value *x, qn_dim count)
{
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_SYMBOL, 1, &count);
    return qn_build(b, QN_OP_NON_ZERO, 1, &x, &list);
}

qn_value *qn_b_suppress(qn_builder *b, qn_value *scores, qn_value *boxes, qn_value *limit, qn_value *overlap,
                        qn_value *least, qn_dim k, bool centre)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_CENTRE, centre);
    qn_attrs_dims(&list, QN_ATTR_K, 1, &k);
    return qn_build(b, QN_OP_SUPPRESS, least ? 5 : 4, (qn_value *[]){ scores, boxes, limit, overlap, least },
                    &list);
}
