/* Graphs of convolutions and what lies between them, in channel blocks, give what the interpreter gives without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "passes/passes.h"
#include "tests/support/lowered.h"
#include "tests/support/net.h"
#include "tests/support/random_graph.h"

/* ---- networks, made of constants that differ from element to element ---- */

static qn_value *weights(net *n, int rank, const int64_t *dims)
{
    int64_t elements = 1;
    for (int i = 0; i < rank; i++)
        elements *= dims[i];
    float *data = malloc((size_t)elements * sizeof *data + 1);
    assert_non_null(data);
    for (int64_t i = 0; i < elements; i++) {
        n->seed = n->seed * 1664525u + 1013904223u;
        data[i] = (float)(n->seed >> 16 & 255) / 256 - 0.5f;
    }
    qn_value *v = qn_b_constant(&n->b, qn_tensor_new(n->b.graph->module, QUERN_F32, rank, dims, data));
    free(data);
    return v;
}

static int64_t channels_of(const qn_value *x)
{
    return x->type.dims[1]->value;
}

static qn_value *conv(net *n, qn_value *x, int64_t out, int64_t kernel, int64_t stride, int64_t groups)
{
    int64_t w_dims[5] = { out, channels_of(x) / groups };
    int64_t strides[3], low[3];
    for (int i = 0; i < x->type.rank - 2; i++) {
        w_dims[2 + i] = kernel;
        strides[i] = stride;
        low[i] = kernel / 2;
    }
    const qn_conv c = { .stride = strides, .low = low, .high = low, .groups = groups };
    return qn_b_convolution(&n->b, x, weights(n, x->type.rank, w_dims), &c);
}

/* op(x, one number per channel) */
static qn_value *per_channel(net *n, qn_op op, qn_value *x)
{
    const int64_t dims[3] = { channels_of(x), 1, 1 };
    return qn_b_binary_bcast(&n->b, op, x, weights(n, x->type.rank - 1, dims));
}

static qn_value *relu(net *n, qn_value *x)
{
    return qn_b_binary_scalar(&n->b, QN_OP_MAX, x, 0);
}

static qn_value *pool(net *n, qn_kind kind, qn_value *x)
{
    const int64_t window[] = { 1, 1, 3, 3 }, stride[] = { 1, 1, 2, 2 }, low[] = { 0, 0, 1, 1 };
    return qn_b_reduce_window(&n->b, kind, x, &(qn_window){ window, stride, NULL, low, low });
}

/* The gradient of such a pooling of x, where all of the result's gradients are made of x, too; also of windows that do not meet. */
static qn_value *pool_gradient(net *n, qn_value *x, int64_t size)
{
    const int64_t window[] = { 1, 1, size, size }, stride[] = { 1, 1, 2, 2 },
                  low[] = { 0, 0, size / 2, size / 2 };
    const qn_window w = { window, stride, NULL, low, low };
    qn_value *y = qn_b_reduce_window(&n->b, QN_KIND_MAX, x, &w);
    return qn_b_select_and_scatter(&n->b, x, qn_b_unary(&n->b, QN_OP_TANH, y), &w);
}

static qn_value *spatial_mean(net *n, qn_value *x, bool keep)
{
    return qn_b_mean(&n->b, x, 2, (const int64_t[]){ 2, 3 }, keep);
}

static qn_value *residual_network(net *n, qn_value *x)
{
    x = relu(n, per_channel(n, QN_OP_ADD, conv(n, x, 20, 7, 2, 1)));
    x = pool(n, QN_KIND_MAX, x);
    qn_value *y = relu(n, per_channel(n, QN_OP_ADD, conv(n, x, 33, 1, 1, 1)));
    y = per_channel(n, QN_OP_ADD, per_channel(n, QN_OP_MUL, conv(n, y, 20, 3, 1, 1)));
    x = relu(n, qn_b_binary(&n->b, QN_OP_ADD, x, y));
    x = relu(n, qn_b_binary(&n->b, QN_OP_ADD, conv(n, x, 64, 1, 2, 1),
                            conv(n, conv(n, x, 8, 1, 1, 1), 64, 3, 2, 1)));
    x = spatial_mean(n, x, false);
    return qn_b_matmul(&n->b, x, weights(n, 2, (const int64_t[]){ 64, 10 }));
}

/* Depthwise convolutions and a gate for each channel. */
static qn_value *gated_network(net *n, qn_value *x)
{
    x = conv(n, x, 24, 3, 2, 1);
    x = qn_b_binary(&n->b, QN_OP_MUL, x, qn_b_unary(&n->b, QN_OP_LOGISTIC, x));
    x = per_channel(n, QN_OP_ADD, conv(n, x, 24, 3, 1, 24));
    qn_value *gate = relu(n, conv(n, spatial_mean(n, x, true), 8, 1, 1, 1));
    gate = qn_b_unary(&n->b, QN_OP_LOGISTIC, conv(n, gate, 24, 1, 1, 1));
    x = qn_b_binary_bcast(&n->b, QN_OP_MUL, x, gate);
    return conv(n, x, 40, 5, 2, 1);
}

/* Concatenated channels, whole blocks or not; a plain value among those in blocks. */
static qn_value *dense_network(net *n, qn_value *x)
{
    qn_value *a = conv(n, x, 16, 3, 1, 1), *b = conv(n, a, 32, 1, 1, 1), *c = conv(n, b, 5, 3, 1, 1);
    a = qn_b_concatenate(&n->b, 3, (qn_value *[]){ a, b, c }, 1);
    b = qn_b_concatenate(&n->b, 2, (qn_value *[]){ c, x }, 1);
    c = qn_b_concatenate(&n->b, 2, (qn_value *[]){ conv(n, a, 16, 1, 1, 1), conv(n, b, 16, 1, 1, 1) }, 2);
    return qn_b_binary_bcast(&n->b, QN_OP_SUB, pool(n, QN_SUM, c), spatial_mean(n, c, true));
}

static qn_value *cut(net *n, qn_value *x, int64_t first, int64_t behind)
{
    qn_dims *dims = qn_b_dims(&n->b);
    return qn_b_slice_axis(&n->b, x, 1, qn_dim_const(dims, first), qn_dim_const(dims, behind));
}

/* Channels of each of so many groups by turns. */
static qn_value *shuffle(net *n, qn_value *x, int64_t groups)
{
    const qn_type type = x->type;
    qn_dims *t = qn_b_dims(&n->b);
    qn_dim dims[QN_MAX_RANK] = { type.dims[0], qn_dim_const(t, groups),
                                 qn_dim_const(t, channels_of(x) / groups) };
    int64_t perm[QN_MAX_RANK] = { 0, 2, 1 };
    for (int i = 2; i < type.rank; i++) {
        dims[i + 1] = type.dims[i];
        perm[i + 1] = i + 1;
    }
    x = qn_b_transpose(&n->b, qn_b_reshape(&n->b, x, type.rank + 1, dims), perm);
    return qn_b_reshape(&n->b, x, type.rank, type.dims);
}

/* Half of the channels pass by, and meet the others shuffled. */
static qn_value *shuffled_network(net *n, qn_value *x)
{
    x = conv(n, x, 58, 3, 2, 1);
    for (int i = 0; i < 3; i++) {
        qn_value *y = relu(n, conv(n, cut(n, x, 29, 58), 29, 1, 1, 1));
        y = conv(n, conv(n, y, 29, 3, 1, 29), 29, 1, 1, 1);
        x = shuffle(n, qn_b_concatenate(&n->b, 2, (qn_value *[]){ cut(n, x, 0, 29), y }, 1), 2);
    }
    return pool(n, QN_KIND_MAX, x);
}

/* Parts with kernels of their own, joined again, as they are and with others; one part by itself, rounded, is a result, too. */
static qn_value *mixed_network(net *n, qn_value *x)
{
    x = conv(n, x, 60, 1, 1, 1);
    qn_value *a = cut(n, x, 0, 22), *b = cut(n, x, 22, 40), *c = cut(n, x, 40, 60);
    b = qn_b_convert(&n->b, QUERN_F32, qn_b_convert(&n->b, QUERN_BF16, b));
    qn_value *parts[] = { conv(n, a, 22, 3, 1, 22), conv(n, b, 18, 5, 1, 18), c };
    qn_value *joined = relu(n, qn_b_concatenate(&n->b, 3, parts, 1));
    joined = qn_b_binary_bcast(&n->b, QN_OP_MUL, joined,
                               qn_b_unary(&n->b, QN_OP_LOGISTIC, spatial_mean(n, joined, true)));
    qn_value *y = conv(n, joined, 20, 3, 2, 1);
    qn_graph_add_output(n->b.graph, shuffle(n, cut(n, joined, 1, 52), 3), "part", -1);
    return shuffle(n, y, 4);
}

/* Groups that are larger than blocks and don't fill them. */
static qn_value *large_groups_network(net *n, qn_value *x)
{
    x = conv(n, conv(n, x, 60, 1, 1, 1), 72, 3, 1, 3);    /* 20 to 24 */
    return conv(n, conv(n, x, 51, 1, 1, 3), 75, 3, 2, 3); /* 24 to 17, 17 to 25 */
}

/* Groups that are put together, unless they are too many; several of a block, with room at its end; with more channels out than in. */
static qn_value *odd_groups_network(net *n, qn_value *x)
{
    x = conv(n, x, 48, 3, 1, 1);
    x = conv(n, conv(n, x, 60, 1, 1, 4), 20, 3, 2, 5);      /* 12 to 15, 12 to 4 */
    x = conv(n, conv(n, x, 40, 3, 1, 5), 80, 3, 1, 10);     /* 4 to 8, 4 to 8 */
    return conv(n, conv(n, x, 80, 1, 1, 20), 60, 1, 1, 20); /* 4 to 4; 4 to 3 */
}

/* Groups of whole blocks, of parts of blocks; slices and padding of values in blocks; a sum over channels. */
static qn_value *grouped_network(net *n, qn_value *x)
{
    qn_dims *dims = qn_b_dims(&n->b);
    qn_dim start[4], limit[4], low[4];
    x = conv(n, conv(n, x, 32, 3, 1, 1), 64, 3, 1, 2);
    x = conv(n, x, 64, 3, 1, 16);
    for (int i = 0; i < 4; i++) {
        start[i] = qn_dim_const(dims, i == 1 ? 16 : i > 1);
        limit[i] = i == 1 ? qn_dim_const(dims, 48) : x->type.dims[i];
        low[i] = qn_dim_const(dims, i > 1 ? 2 : 0);
    }
    x = qn_b_slice(&n->b, conv(n, x, 64, 1, 1, 1), start, limit, NULL);
    x = qn_b_pad(&n->b, relu(n, x), qn_b_scalar(&n->b, QUERN_F32, 0.25), low, low, NULL);
    x = conv(n, x, 16, 3, 1, 1);
    return qn_b_reduce(&n->b, QN_SUM, qn_b_binary(&n->b, QN_OP_MUL, x, x), 1, (const int64_t[]){ 1 }, false);
}

/* A decoder: strides undone by dilation; weights that come in as an input; a compare and a select in blocks. */
static qn_value *transposed_network(net *n, qn_value *x)
{
    const qn_conv up = { .low = (const int64_t[]){ 1, 1 },
                         .high = (const int64_t[]){ 2, 1 },
                         .x_dilation = (const int64_t[]){ 2, 3 } };
    x = conv(n, x, 12, 3, 1, 1);
    qn_value *w = qn_graph_add_input(
        n->b.graph, "w", qn_type_static(n->b.graph->module, QUERN_F32, 4, (const int64_t[]){ 18, 12, 3, 3 }),
        QN_ROLE_INPUT);
    x = qn_b_convolution(&n->b, x, w, &up);
    qn_value *positive = qn_b_compare(&n->b, QN_GT, x, qn_b_full(&n->b, &x->type, 0));
    return qn_b_select(&n->b, positive, x, qn_b_binary_scalar(&n->b, QN_OP_MUL, x, 0.1));
}

/* Groups of channels as rows of [N, groups, …], which has that many axes. */
static qn_value *groups_of(net *n, qn_value *x, int64_t groups, int rank)
{
    qn_dims *t = qn_b_dims(&n->b);
    qn_dim dims[QN_MAX_RANK] = { x->type.dims[0], qn_dim_const(t, groups),
                                 qn_dim_const(t, channels_of(x) / groups) };
    for (int i = 2; i < x->type.rank; i++)
        if (rank == 3)
            dims[2] = qn_dim_mul(t, dims[2], x->type.dims[i]);
        else
            dims[i + 1] = x->type.dims[i];
    return qn_b_reshape(&n->b, x, rank, dims);
}

static qn_value *group_norm(net *n, qn_value *x, int64_t groups, int rank)
{
    const qn_type type = x->type;
    const int64_t axes[] = { 2, 3, 4 };
    x = groups_of(n, x, groups, rank);
    x = qn_b_binary_bcast(&n->b, QN_OP_SUB, x, qn_b_mean(&n->b, x, rank - 2, axes, true));
    qn_value *variance = qn_b_mean(&n->b, qn_b_binary(&n->b, QN_OP_MUL, x, x), rank - 2, axes, true);
    variance = qn_b_unary(&n->b, QN_OP_RSQRT, qn_b_binary_scalar(&n->b, QN_OP_ADD, variance, 1e-5));
    x = qn_b_binary_bcast(&n->b, QN_OP_MUL, x, variance);
    x = qn_b_binary_bcast(&n->b, QN_OP_ADD, x, weights(n, rank - 1, (const int64_t[]){ groups, 1, 1, 1 }));
    x = qn_b_reshape(&n->b, x, type.rank, type.dims);
    return per_channel(n, QN_OP_ADD, per_channel(n, QN_OP_MUL, x));
}

/* Groups of less than a block, across blocks, of all channels, of one each. */
static qn_value *normed_network(net *n, qn_value *x)
{
    x = relu(n, group_norm(n, conv(n, x, 20, 3, 1, 1), 4, 3));
    x = relu(n, group_norm(n, conv(n, x, 36, 3, 1, 1), 3, 3));
    x = qn_b_binary(&n->b, QN_OP_ADD, x, group_norm(n, x, 1, 3));
    return group_norm(n, conv(n, x, 20, 3, 2, 1), 20, 3);
}

/* The same with the channels of a group as an axis; rows less their maxima, which go out as rows. */
static qn_value *normed_apart_network(net *n, qn_value *x)
{
    x = group_norm(n, conv(n, x, 40, 3, 1, 1), 5, 5);
    const qn_dim rows[3] = { x->type.dims[0], qn_dim_const(qn_b_dims(&n->b), 8),
                             qn_dim_mul(qn_b_dims(&n->b), qn_dim_const(qn_b_dims(&n->b), 5),
                                        qn_dim_mul(qn_b_dims(&n->b), x->type.dims[2], x->type.dims[3])) };
    x = qn_b_reshape(&n->b, conv(n, x, 40, 1, 1, 1), 3, rows);
    return qn_b_binary_bcast(&n->b, QN_OP_SUB, x,
                             qn_b_reduce(&n->b, QN_KIND_MAX, x, 1, (const int64_t[]){ 2 }, true));
}

/* Norms of each channel over batch and positions, as in training: of one block and a part, of a part, of whole ones. */
static qn_value *batch_norm(net *n, qn_value *x)
{
    const int64_t axes[] = { 0, 2, 3 };
    x = qn_b_binary_bcast(&n->b, QN_OP_SUB, x, qn_b_mean(&n->b, x, 3, axes, true));
    qn_value *variance = qn_b_mean(&n->b, qn_b_binary(&n->b, QN_OP_MUL, x, x), 3, axes, true);
    variance = qn_b_unary(&n->b, QN_OP_RSQRT, qn_b_binary_scalar(&n->b, QN_OP_ADD, variance, 1e-5));
    return per_channel(n, QN_OP_ADD, qn_b_binary_bcast(&n->b, QN_OP_MUL, x, variance));
}

static qn_value *batch_normed_network(net *n, qn_value *x)
{
    x = relu(n, batch_norm(n, conv(n, x, 37, 3, 1, 1)));
    x = relu(n, batch_norm(n, conv(n, x, 9, 3, 1, 1)));
    return batch_norm(n, conv(n, x, 64, 1, 2, 1));
}

/* What a gradient of a norm of groups does: sums of products, and of what is made with them. */
static qn_value *group_gradient(net *n, qn_value *x, qn_value *y, int64_t groups, int rank)
{
    const qn_type type = x->type;
    const int64_t axes[] = { 2, 3, 4 };
    x = groups_of(n, qn_b_unary(&n->b, QN_OP_TANH, x), groups, rank);
    y = groups_of(n, qn_b_unary(&n->b, QN_OP_LOGISTIC, y), groups, rank);
    qn_value *dot = qn_b_mean(&n->b, qn_b_binary(&n->b, QN_OP_MUL, x, y), rank - 2, axes, true);
    x = qn_b_unary(&n->b, QN_OP_NEG,
                   qn_b_binary(&n->b, QN_OP_SUB, x, qn_b_binary_bcast(&n->b, QN_OP_MUL, y, dot)));
    x = qn_b_binary_bcast(&n->b, QN_OP_SUB, x, qn_b_mean(&n->b, x, rank - 2, axes, true));
    return qn_b_reshape(&n->b, x, type.rank, type.dims);
}

static qn_value *group_gradient_network(net *n, qn_value *x)
{
    x = conv(n, x, 40, 3, 1, 1);
    x = group_gradient(n, x, conv(n, x, 40, 1, 1, 1), 5, 3);
    x = group_gradient(n, conv(n, x, 40, 3, 1, 1), x, 10, 5);
    return group_gradient(n, conv(n, x, 20, 3, 2, 1), conv(n, x, 20, 1, 2, 1), 20, 3);
}

/* Long kernels at a border get a padded input. */
static qn_value *line_network(net *n, qn_value *x)
{
    x = relu(n, conv(n, x, 20, 21, 2, 1));
    return conv(n, x, 16, 19, 1, 1);
}

static qn_value *solid_network(net *n, qn_value *x)
{
    return conv(n, relu(n, conv(n, x, 17, 3, 1, 1)), 4, 3, 2, 1);
}

/* Planes of 3 x 3 by Winograd's method: with padding on both sides of them, with steps between them, one by itself. */
static qn_value *planes_network(net *n, qn_value *x)
{
    x = relu(n, conv(n, conv(n, x, 32, 1, 1, 1), 32, 3, 1, 1));
    const qn_conv apart = { .stride = (const int64_t[]){ 2, 1, 1 },
                            .low = (const int64_t[]){ 0, 1, 0 },
                            .high = (const int64_t[]){ 1, 1, 2 } };
    x = qn_b_convolution(&n->b, x, weights(n, 5, (const int64_t[]){ 40, 32, 2, 3, 3 }), &apart);
    x = relu(n, conv(n, x, 32, 1, 1, 1));
    const qn_conv one = { .low = (const int64_t[]){ 0, 1, 1 }, .high = (const int64_t[]){ 0, 1, 1 } };
    return qn_b_convolution(&n->b, x, weights(n, 5, (const int64_t[]){ 32, 32, 1, 3, 3 }), &one);
}

/* Gradients of pooling between convolutions of channels that fill no blocks. */
static qn_value *pooled_network(net *n, qn_value *x)
{
    x = pool_gradient(n, conv(n, x, 20, 3, 1, 1), 3);
    return conv(n, pool_gradient(n, conv(n, x, 33, 3, 1, 1), 2), 20, 1, 1, 1);
}

/* The same, and a mean. */
static qn_value *pooled_blocks(net *n, qn_value *x)
{
    return spatial_mean(n, pool_gradient(n, conv(n, x, 32, 3, 1, 1), 3), false);
}

typedef struct network {
    const char *name;
    int rank;
    int64_t dims[5]; /* 0: a symbol */
    qn_value *(*build)(net *n, qn_value *x);
    int packed, plain; /* convolutions of each sort afterwards, with 16 lanes */
} network;

static const network networks[] = {
    { "residual", 4, { 1, 3, 40, 37 }, residual_network, 6, 0 },
    { "residual, any batch", 4, { 0, 3, 32, 32 }, residual_network, 6, 0 },
    { "residual, blocks of input", 4, { 2, 19, 21, 22 }, residual_network, 6, 0 },
    { "gated", 4, { 2, 3, 24, 18 }, gated_network, 5, 0 },
    { "dense", 4, { 1, 4, 9, 9 }, dense_network, 5, 0 },
    { "shuffled", 4, { 2, 3, 11, 14 }, shuffled_network, 10, 0 },
    { "shuffled, any batch", 4, { 0, 3, 11, 14 }, shuffled_network, 10, 0 },
    { "mixed", 4, { 1, 7, 6, 5 }, mixed_network, 4, 0 },
    { "grouped", 4, { 1, 5, 8, 15 }, grouped_network, 5, 0 },
    { "odd groups", 4, { 2, 5, 8, 15 }, odd_groups_network, 6, 1 },
    { "large groups", 4, { 2, 5, 8, 15 }, large_groups_network, 4, 0 },
    { "transposed", 4, { 1, 2, 5, 6 }, transposed_network, 2, 0 },
    { "normed", 4, { 2, 3, 7, 9 }, normed_network, 3, 0 },
    { "normed, any batch", 4, { 0, 3, 7, 9 }, normed_network, 3, 0 },
    { "normed apart", 4, { 2, 3, 7, 9 }, normed_apart_network, 2, 0 },
    { "group gradients", 4, { 2, 3, 7, 9 }, group_gradient_network, 5, 0 },
    { "group gradients, any batch", 4, { 0, 3, 7, 9 }, group_gradient_network, 5, 0 },
    { "batch normed", 4, { 3, 3, 7, 9 }, batch_normed_network, 3, 0 },
    { "batch normed, any batch", 4, { 0, 3, 7, 9 }, batch_normed_network, 3, 0 },
    { "pooling's gradient", 4, { 2, 3, 7, 10 }, pooled_network, 3, 0 },
    { "pooling's gradient, any batch", 4, { 0, 3, 7, 10 }, pooled_network, 3, 0 },
    { "line", 3, { 2, 18, 100 }, line_network, 2, 0 },
    { "planes", 5, { 1, 3, 5, 14, 13 }, planes_network, 2, 0 },
    { "planes, any batch", 5, { 0, 3, 5, 14, 13 }, planes_network, 2, 0 },
    { "solid", 5, { 1, 2, 5, 6, 7 }, solid_network, 2, 0 },
};

static qn_array noise(const qn_type *type, const int64_t *symbols, unsigned seed, qn_arena *arena)
{
    qn_array a;
    const int64_t n = array_of_type(&a, type, symbols, arena);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ((float *)a.data)[i] = (float)(seed >> 16 & 255) / 128 - 1;
    }
    return a;
}

static void networks_in_blocks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        for (int m = 0; m < LOWERED_MACHINES; m++) {
            const network *k = &networks[i];
            net n;
            net_begin(&n);
            qn_dim dims[5];
            const int64_t symbols[] = { 3 };
            for (int d = 0; d < k->rank; d++)
                dims[d] = k->dims[d] ? qn_dim_const(n.module->dims, k->dims[d])
                                     : qn_dim_symbol(n.module->dims, "n", 1, 8);
            qn_value *y = k->build(&n, net_input(&n, "x", QUERN_F32, k->rank, dims));
            if (!y)
                fail_msg("%s: %s", k->name, qn_diags_text(&n.diags, n.arena));
            qn_graph_add_output(n.b.graph, y, "y", -1);
            qn_array inputs[2];
            for (int a = 0; a < n.b.graph->n_inputs; a++)
                inputs[a] = noise(&n.b.graph->inputs[a]->type, symbols, 3 + (unsigned)a, n.arena);
            const qn_pass_options options = { .math = m == 1 ? QN_MATH_STRICT : QN_MATH_DEFAULT,
                                              .machine = &lowered_machines[m],
                                              .fold = qn_interp_fold };
            char name[64];
            snprintf(name, sizeof name, "%s, %d bytes", k->name, lowered_machines[m].vector_bytes);
            lowered_compare(name, n.b.graph, &options, inputs,
                            symbols); /* after it the graph is as the passes left it */
            if (m == 0) {
                assert_int_equal(lowered_count(n.b.graph, QN_OP_CONV_PACKED), k->packed);
                assert_int_equal(lowered_count(n.b.graph, QN_OP_CONVOLUTION), k->plain);
            }
            net_end(&n);
        }
}

/* Three norms of groups, and a mean. */
static qn_value *normed_blocks(net *n, qn_value *x)
{
    for (int groups = 1; groups <= 32; groups *= 4)
        x = relu(n, group_norm(n, conv(n, x, 32, 3, 1, 1), groups, 3));
    return spatial_mean(n, x, false);
}

/* Two gradients of such norms, and a mean. */
static qn_value *gradient_blocks(net *n, qn_value *x)
{
    for (int groups = 4; groups <= 8; groups *= 2) {
        x = conv(n, x, 32, 3, 1, 1);
        x = group_gradient(n, x, conv(n, x, 32, 1, 1, 1), groups, 3);
    }
    return spatial_mean(n, x, false);
}

/* Shuffled channels, and a mean of what is made of them. */
static qn_value *shuffled_blocks(net *n, qn_value *x)
{
    return spatial_mean(n, conv(n, shuffled_network(n, x), 32, 1, 1, 1), false);
}

/* With constant weights nothing is rearranged between the first convolution and what is at the end. */
static void nothing_rearranged(qn_value *(*build)(net *n, qn_value *x))
{
    net n;
    net_begin(&n);
    const qn_type type = qn_type_static(n.module, QUERN_F32, 4, (const int64_t[]){ 1, 3, 40, 40 });
    qn_value *x = qn_graph_add_input(n.b.graph, "x", type, QN_ROLE_INPUT);
    qn_graph_add_output(n.b.graph, build(&n, x), "y", -1);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                      .machine = &lowered_machines[0],
                                      .fold = qn_interp_fold };
    const qn_pass_hooks hooks = { .verify_each = true };
    assert_int_equal(qn_run_passes(n.b.graph, NULL, &options, &hooks, &n.diags), QUERN_OK);
    assert_int_equal(lowered_count(n.b.graph, QN_OP_TRANSPOSE), 0);
    assert_int_equal(lowered_count(n.b.graph, QN_OP_PAD), 1); /* the border of the image */
    assert_int_equal(lowered_count(n.b.graph, QN_OP_SLICE), 0);
    net_end(&n);
}

static void nothing_is_rearranged(void **state)
{
    (void)state;
    nothing_rearranged(residual_network);
    nothing_rearranged(normed_blocks);
    nothing_rearranged(gradient_blocks);
    nothing_rearranged(pooled_blocks);
    nothing_rearranged(shuffled_blocks);
}

/* Where there is no machine there are no blocks. */
static void no_machine(void **state)
{
    (void)state;
    net n;
    net_begin(&n);
    const qn_type type = qn_type_static(n.module, QUERN_F32, 4, (const int64_t[]){ 1, 3, 9, 9 });
    qn_value *x = qn_graph_add_input(n.b.graph, "x", type, QN_ROLE_INPUT);
    qn_graph_add_output(n.b.graph, conv(&n, x, 16, 3, 1, 1), "y", -1);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT };
    bool changed;
    assert_int_equal(qn_pass_layout(n.b.graph, &options, &changed, &n.diags), QUERN_OK);
    assert_false(changed);
    assert_int_equal(lowered_count(n.b.graph, QN_OP_CONVOLUTION), 1);
    net_end(&n);
}

static void random_graphs(void **state)
{
    (void)state;
    static const int flags[] = { QN_RANDOM_CONTRACT,
                                 QN_RANDOM_CONTRACT | QN_RANDOM_REDUCE | QN_RANDOM_SYMBOLS };
    const char *only = getenv("QUERN_SEED");
    for (int seed = 1; seed <= 160; seed++) {
        if (only && atoi(only) != seed)
            continue;
        qn_module *module = qn_graph_random((uint64_t)seed + 90000, flags[seed % 2], 14);
        qn_graph *graph = qn_module_find(module, "main");
        const int64_t *symbols = qn_random_symbols(module, (uint64_t)seed, module->arena);
        const qn_array *inputs = qn_random_inputs(graph, (uint64_t)seed, symbols, module->arena);
        const qn_pass_options options = { .math = seed % 5 ? QN_MATH_DEFAULT : QN_MATH_STRICT,
                                          .machine = &lowered_machines[seed % LOWERED_MACHINES],
                                          .fold = qn_interp_fold };
        char name[64];
        snprintf(name, sizeof name, "random graph %d", seed);
        lowered_compare(name, graph, &options, inputs, symbols);
        qn_module_free(module);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(networks_in_blocks),
        cmocka_unit_test(nothing_is_rearranged),
        cmocka_unit_test(no_machine),
        cmocka_unit_test(random_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
