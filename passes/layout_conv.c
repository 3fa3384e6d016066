/* Convolutions, which become those of blocks.
 *
 * Convolutions of bytes, u8 times i8 with sums of 32 bits, have four input channels side by side in w, those of bf16 two; few
 * channels are one block. For a matrix unit convolutions of bf16 have blocks of 32 channels, those of bytes of 64, where all convolutions
 * of the graph do: going back and forth costs more than is gained.
 *
 * A convolution of 3 x 3 whose filters are constants becomes conv_winograd where a kernel is faster so (winograd_plan.c).
 *
 * Over three axes it becomes a sum of those of each plane of the kernel, where few planes of x are padding.
 *
 * In strict math w has blocks of one channel, since a sum goes through the kernel of a channel before the next channel.
 *
 * A first convolution, of few channels, reads its planes as blocks of one channel, which they are already.
 *
 * Over extents that are symbols x is padded before: the kernels for those (conv_symbolic.c) meet no border. In strict math, but of
 * bytes, and for groups of several channels that are no whole blocks, such a convolution stays as it is. */
#include <string.h>

#include "ir/winograd.h"
#include "passes/conv.h"
#include "passes/conv_symbolic.h"
#include "passes/conv_tile.h"
#include "passes/layout.h"
#include "passes/quantize.h"
#include "passes/simplify.h"
#include "passes/winograd.h"
#include "passes/words.h"

/* ---- filters ---- */

/* [O, C, kernel…] to [O / lanes, C / c, kernel…, c, lanes] */
static qn_value *pack_weights(qn_layout *l, qn_value *w, int64_t c, int64_t lanes)
{
    const int rank = w->type.rank;
    int64_t perm[QN_MAX_RANK] = { 0, 2 };
    for (int i = 2; i < rank; i++)
        perm[i] = i + 2;
    perm[rank] = 3;
    perm[rank + 1] = 1;
    w = qn_layout_split_axis(l, w, 1, c);
    w = w ? qn_layout_split_axis(l, w, 0, lanes) : NULL;
    return qn_b_transpose(&l->b, w, perm);
}

/* [O, C, kernel…] to [O / lanes, C / c, kernel…, c / n, lanes, n]: n channels side by side */
static qn_value *pack_side_by_side(qn_layout *l, qn_value *w, int64_t c, int64_t lanes, int64_t n)
{
    int64_t perm[QN_MAX_RANK];
    qn_dim dims[QN_MAX_RANK];
    w = pack_weights(l, w, c, lanes);
    if (!w)
        return NULL;
    const int rank = w->type.rank;
    for (int i = 0; i < rank; i++) {
        dims[i] = w->type.dims[i];
        perm[i] = i;
    }
    dims[rank - 2] = qn_layout_dim(l, c / n);
    dims[rank - 1] = qn_layout_dim(l, n);
    dims[rank] = qn_layout_dim(l, lanes);
    perm[rank - 1] = rank;
    perm[rank] = rank - 1;
    return qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 1, dims), perm);
}

/* The weights of `groups` groups as those of groups / m, between whose parts nothing is but zeros:
 *
 *   [O, C, …] -> [G, m, O / (G m), C, …] -> [G, O / (G m), m with m zeros behind each but the last, C, …]
 *             -> [G, O / (G m), m, m, C, …] -> [G, m, O / (G m), m, C, …] -> [O, m C, …] */
static qn_value *merge_groups(qn_layout *l, qn_value *w, int64_t groups, int64_t m)
{
    const int rank = w->type.rank;
    const int64_t merged = groups / m, out = w->type.dims[0]->value, channels = w->type.dims[1]->value;
    qn_dim dims[QN_MAX_RANK], none[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK], interior[QN_MAX_RANK] = { 0, 0, m };
    for (int i = 0; i < rank + 3; i++) {
        perm[i] = i;
        none[i] = qn_layout_dim(l, 0);
    }
    for (int i = 2; i < rank; i++)
        dims[i + 2] = w->type.dims[i];
    dims[0] = qn_layout_dim(l, merged);
    dims[1] = qn_layout_dim(l, m);
    dims[2] = qn_layout_dim(l, out / groups);
    dims[3] = qn_layout_dim(l, channels);
    perm[1] = 2;
    perm[2] = 1;
    w = qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 2, dims), perm);
    w = qn_b_pad(&l->b, w, w ? qn_b_scalar(&l->b, w->type.dtype, 0) : NULL, none, none, interior);
    for (int i = rank + 1; i > 2; i--)
        dims[i + 1] = dims[i];
    dims[1] = qn_layout_dim(l, out / groups);
    dims[2] = dims[3] = qn_layout_dim(l, m);
    w = qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 3, dims), perm);
    dims[0] = qn_layout_dim(l, out);
    dims[1] = qn_layout_dim(l, m * channels);
    for (int i = 2; i < rank; i++)
        dims[i] = dims[i + 3];
    return qn_b_reshape(&l->b, w, rank, dims);
}

/* ---- the input ---- */

/* Zeros where the convolution reads outside of x, and between its elements where it is dilated. */
static qn_value *pad_input(qn_layout *l, const qn_node *node, qn_value *x)
{
    const int rank = x->type.rank, spatial = node->operands[0]->type.rank - 2;
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t interior[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < rank; i++)
        low[i] = high[i] = qn_layout_dim(l, 0);
    for (int i = 0; i < spatial; i++) {
        low[2 + i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i];
        high[2 + i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i];
        interior[2 + i] = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] - 1;
    }
    return qn_b_pad(&l->b, x, qn_b_scalar(&l->b, x->type.dtype, 0), low, high, interior);
}

/* x in blocks, where a kernel of bfloat16 also reads `read` lanes behind the channels, with weights of 0: what they hold, which may be
 * NaN, becomes 0. */
static qn_value *clear_behind(qn_layout *l, const qn_value *plain, qn_value *x, int64_t read)
{
    if (!x || read == 0)
        return x;
    const int64_t channels = plain->type.dims[1]->value, blocks = x->type.dims[1]->value;
    const int last = x->type.rank - 1;
    const int64_t c = x->type.dims[last]->value, n = blocks * c, axes[] = { 1, last };
    if (qn_layout_lanes(l, plain) != c && !qn_value_made_by(plain, QN_OP_BROADCAST))
        return x; /* zeros were put there */
    qn_arena *scratch = qn_arena_new();
    bool *is_channel = QN_NEW_ARRAY(scratch, bool, n);
    for (int64_t i = 0; i < n; i++)
        is_channel[i] = i < channels;
    const qn_tensor *mask =
        qn_tensor_new(l->graph->module, QUERN_BOOL, 2, (int64_t[]){ blocks, c }, is_channel);
    qn_arena_free(scratch);
    return qn_b_select_bcast(
        &l->b, qn_b_broadcast(&l->b, qn_b_constant(&l->b, mask), x->type.rank, x->type.dims, axes), x,
        qn_b_scalar(&l->b, x->type.dtype, 0));
}

static qn_value *packed(qn_layout *l, const qn_node *node, qn_value *x, qn_value *w, bool padded,
                        int64_t groups, int64_t channels, int64_t out_channels)
{
    qn_conv_room room;
    qn_conv conv = qn_conv_of(node, &room);
    conv.groups = groups;
    if (padded)
        memset(&room, 0, sizeof room);
    x = padded ? pad_input(l, node, x) : x;
    return out_channels ? qn_b_conv_packed_across(&l->b, x, w, &conv, channels, out_channels)
                        : qn_b_conv_packed_to(&l->b, x, w, &conv, channels, node->results[0].type.dtype);
}

/* ---- by Winograd's method ---- */

/* By Winograd's method, of that t and panels so wide, what `direct` computes: of x with the borders of another node. */
static qn_value *winograd_of(qn_layout *l, qn_value *x, qn_value *w, const qn_node *direct,
                             const qn_node *borders, int t, int64_t width)
{
    const qn_type *type = &w->type;
    int64_t low[2], high[2];
    for (int i = 0; i < 2; i++) {
        low[i] = qn_attr_dims(borders, QN_ATTR_LOW, NULL)[i]->value;
        high[i] = qn_attr_dims(borders, QN_ATTR_HIGH, NULL)[i]->value;
    }
    const int64_t lanes = direct->results[0].type.dims[4]->value;
    qn_dim none[4], more[4];
    for (int i = 0; i < 4; i++)
        none[i] = more[i] = qn_layout_dim(l, 0);
    more[0] = qn_layout_dim(l, direct->results[0].type.dims[1]->value * lanes - type->dims[0]->value);
    if (more[0] != none[0])
        w = qn_b_pad(&l->b, w, qn_b_scalar(&l->b, type->dtype, 0), none, more, NULL);
    return qn_b_conv_winograd(&l->b, x, qn_winograd_weights(&l->b, w, t, width), low, high);
}

/* The same where that is faster and the filters w, of one group, are constants. */
static qn_value *by_winograd(qn_layout *l, qn_value *w, const qn_conv_plan *plan)
{
    int t;
    int64_t width;
    return qn_is_known(w) && qn_winograd_wins(plan, false, l->options, &t, &width)
               ? winograd_of(l, plan->node->operands[0], w, plan->node, plan->node, t, width)
               : NULL;
}

/* Is it a convolution over three axes whose kernels are planes of 3 x 3, which Winograd's method takes? */
static bool has_planes(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    if (x->rank != 5 || x->dtype != QUERN_F32 || !qn_dim_is(w->dims[3], 3) || !qn_dim_is(w->dims[4], 3) ||
        stride[1] != 1 || stride[2] != 1)
        return false;
    for (int i = 0; i < 3; i++)
        if (qn_attr_ints(node, QN_ATTR_W_DILATION, NULL)[i] != 1 ||
            qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] != 1)
            return false;
    return qn_attr_dims(node, QN_ATTR_LOW, NULL)[0]->value >= 0 &&
           qn_attr_dims(node, QN_ATTR_HIGH, NULL)[0]->value >= 0;
}

/* How many of the planes of x that plane k of the kernel meets are there, not padding. */
static int64_t planes_inside(const qn_node *node, int64_t k)
{
    const int64_t stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[0],
                  low = qn_attr_dims(node, QN_ATTR_LOW, NULL)[0]->value;
    int64_t inside = 0;
    for (int64_t i = 0; i < node->results[0].type.dims[2]->value; i++) {
        const int64_t at = i * stride + k - low;
        inside += at >= 0 && at < node->operands[0]->type.dims[2]->value;
    }
    return inside;
}

/* The product of plane k of the kernel: x, which is padded, is [N, B, D, H, W, c]; the result [N D', B', H', W', c]. NULL: that isn't
 * faster by Winograd's method. */
static qn_value *plane_by_winograd(qn_layout *l, const qn_node *node, qn_value *x, qn_value *w, int64_t k,
                                   int64_t c)
{
    const int64_t planes = node->results[0].type.dims[2]->value,
                  stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[0], one[] = { 1, 1 };
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    qn_dim start[6], limit[6];
    for (int i = 0; i < 6; i++) {
        start[i] = qn_layout_dim(l, i == 2 ? k : 0);
        limit[i] = i == 2 ? qn_layout_dim(l, k + (planes - 1) * stride + 1) : x->type.dims[i];
    }
    x = qn_b_slice(&l->b, x, start, limit, (const int64_t[]){ 1, 1, stride, 1, 1, 1 });
    x = qn_b_transpose(&l->b, x, (const int64_t[]){ 0, 2, 1, 3, 4, 5 });
    if (!x)
        return NULL;
    const qn_dim *d = x->type.dims, *o = w->type.dims;
    x = qn_b_reshape(&l->b, x, 5,
                     (qn_dim[]){ qn_dim_mul(qn_b_dims(&l->b), d[0], d[1]), d[2], d[3], d[4], d[5] });
    w = qn_b_slice_axis(&l->b, w, 2, qn_layout_dim(l, k), qn_layout_dim(l, k + 1));
    w = qn_b_reshape(&l->b, w, 4, (qn_dim[]){ o[0], o[1], o[3], o[4] });
    const int64_t lows[] = { low[1]->value, low[2]->value }, highs[] = { high[1]->value, high[2]->value };
    const qn_conv conv = { .stride = one, .low = lows, .high = highs, .w_dilation = one, .groups = 1 };
    const qn_value *direct = qn_b_conv_packed(&l->b, x, pack_weights(l, w, c, c), &conv, o[1]->value);
    qn_conv_plan plan;
    return direct && qn_conv_plan_make(direct->node, l->options, &plan) ? by_winograd(l, w, &plan) : NULL;
}

/* A convolution over three axes as a sum of those over two: of each plane of the kernel, for samples that are planes of x. */
static qn_value *by_planes(qn_layout *l, const qn_node *node, qn_value *x, qn_value *w, int64_t c)
{
    const int64_t kernel = node->operands[1]->type.dims[2]->value,
                  planes = node->results[0].type.dims[2]->value;
    int64_t inside = 0, met = 0;
    if (!has_planes(node) || node->operands[0]->type.dims[1]->value % c != 0 || !qn_is_known(w))
        return NULL;
    for (int64_t k = 0; k < kernel; k++) {
        inside += planes_inside(node, k);
        met += planes_inside(node, k) > 0;
    }
    if (4 * inside < 3 * met * planes)
        return NULL; /* too many zeros, which a direct kernel doesn't multiply */
    qn_node *const before = l->b.before->prev;
    qn_dim low[6], high[6];
    for (int i = 0; i < 6; i++)
        low[i] = high[i] = qn_layout_dim(l, 0);
    low[2] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[0];
    high[2] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[0];
    if (low[2] != low[0] || high[2] != high[0])
        x = qn_b_pad(&l->b, x, qn_b_scalar(&l->b, QUERN_F32, 0), low, high, NULL);
    qn_value *sum = NULL;
    for (int64_t k = 0; x && k < kernel; k++) {
        if (planes_inside(node, k) == 0)
            continue;
        qn_value *y = plane_by_winograd(l, node, x, w, k, c);
        if (!y) {
            while (l->b.before->prev != before)
                qn_node_remove(l->b.before->prev);
            return NULL;
        }
        sum = sum ? qn_b_binary(&l->b, QN_OP_ADD, sum, y) : y;
    }
    if (!sum)
        return NULL;
    const qn_dim *d = sum->type.dims;
    sum = qn_b_reshape(&l->b, sum, 6,
                       (qn_dim[]){ x->type.dims[0], qn_layout_dim(l, planes), d[1], d[2], d[3], d[4] });
    return qn_b_transpose(&l->b, sum, (const int64_t[]){ 0, 2, 1, 3, 4, 5 });
}

/* ---- groups ---- */

/* How the groups of a convolution lie in blocks. */
typedef struct grouping {
    bool by_lane;           /* each lane reads its own group's channels */
    int64_t groups, merged; /* of conv_packed; how many of the convolution's are one of it */
    int64_t out_channels;   /* of conv_packed; 0: it doesn't say */
} grouping;

/* Groups stay by themselves where a vector of output channels is of some that one vector of x has, or of two at most; others are
 * put together until they fill blocks. False: they are too many for that, or no products with 0 may be added. */
static bool find_grouping(const qn_node *node, int64_t lanes, int64_t word, bool strict, grouping *out)
{
    enum { MOST = 16 }; /* times the work, which costs no more than a kernel that is no template's */
    const int64_t groups = qn_attr_int(node, QN_ATTR_GROUPS), in = node->operands[1]->type.dims[1]->value,
                  out_channels = node->operands[1]->type.dims[0]->value, of_group = out_channels / groups;
    *out = (grouping){ .groups = groups, .merged = 1 };
    if (groups == 1)
        return true;
    const bool inside = lanes % of_group == 0 && of_group < lanes && of_group % in == 0 &&
                        lanes / of_group * in > 1,
               across = of_group > lanes && (in % lanes != 0 || of_group % lanes != 0);
    if (word == 1 && (inside || across)) {
        const int64_t all = (groups * in + lanes - 1) / lanes * (lanes / in);
        const bool alike = inside && in == of_group; /* what is behind the channels is groups, too */
        out->by_lane = true;
        out->groups = alike ? all : groups;
        out->out_channels = alike ? 0 : of_group;
        return true;
    }
    const int64_t for_in = lanes / qn_conv_common_divisor(in, lanes),
                  for_out = lanes / qn_conv_common_divisor(of_group, lanes);
    int64_t merged = for_in > for_out ? for_in : for_out; /* powers of two, as lanes is one */
    merged = groups % merged == 0 ? merged : groups;
    out->merged = merged;
    out->groups = groups / merged;
    return merged == 1 || (merged <= MOST && !strict);
}

/* ---- by a matrix unit ---- */

bool qn_layout_all_fill_blocks(const qn_graph *graph, const qn_pass_options *options)
{
    const int64_t c = qn_conv_tile_channels(QUERN_U8), few = options->machine->vector_bytes / 4;
    QN_FOR_NODES (graph, node) {
        if (node->op != QN_OP_CONVOLUTION)
            continue;
        const qn_dim in = node->operands[0]->type.dims[1], out = node->results[0].type.dims[1];
        if (qn_attr_int(node, QN_ATTR_GROUPS) != 1 ||
            (in->max >= few &&
             (!qn_dim_is_const(in) || in->value < c || !qn_dim_is_const(out) || out->value < c)))
            return false;
    }
    return true;
}

/* By a matrix unit. */
static void by_unit(qn_layout *l, const qn_node *node)
{
    qn_value *const plain = node->operands[0];
    const qn_dtype dtype = plain->type.dtype;
    const int64_t c = qn_conv_tile_channels(dtype), channels = plain->type.dims[1]->value;
    qn_value *x = qn_layout_blocked(l, plain, c);
    if (dtype == QUERN_BF16)
        x = clear_behind(l, plain, x, -channels & (c - 1));
    qn_value *w = pack_side_by_side(l, qn_layout_plain(l, node->operands[1]), c, c, qn_word_elements(dtype));
    qn_layout_set_blocked(l, &node->results[0], packed(l, node, x, w, false, 1, channels, 0));
}

/* ---- any of them ---- */

/* Constant channels and kernel. */
static bool is_static(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    return qn_type_is_static(w) && qn_type_elements(w) > 0 && qn_dim_is_const(x->dims[1]) &&
           x->rank + 2 <= QN_MAX_RANK;
}

bool qn_layout_convolution(qn_layout *l, qn_node *node)
{
    if (qn_conv_tile_takes(node, l->options) &&
        (l->bytes_by_unit || node->operands[0]->type.dtype == QUERN_BF16)) {
        by_unit(l, node);
        return true;
    }
    const qn_type *x_type = &node->operands[0]->type, *w_type = &node->operands[1]->type;
    const int spatial = x_type->rank - 2;
    const qn_dtype sums = node->results[0].type.dtype;
    const bool bytes = (x_type->dtype == QUERN_U8 || x_type->dtype == QUERN_I8) &&
                       w_type->dtype == QUERN_I8 && sums == QUERN_I32;
    const bool strict = l->options->math == QN_MATH_STRICT;
    const bool pairs =
        !strict && x_type->dtype == QUERN_BF16 && w_type->dtype == QUERN_BF16 && sums == QUERN_F32;
    const int64_t word = bytes || pairs ? qn_word_elements(x_type->dtype) : 1;
    if ((x_type->dtype != QUERN_F32 && x_type->dtype != QUERN_F64 && word == 1) || !is_static(node))
        return false;
    const int64_t lanes = l->options->machine->vector_bytes / (int64_t)qn_dtype_bytes(sums);
    const int64_t in = x_type->dims[1]->value;
    grouping g;
    if (!find_grouping(node, lanes, word, strict, &g))
        return false;
    const int64_t of_group = w_type->dims[1]->value * g.merged;
    const bool native = qn_layout_lanes(l, node->operands[0]) == lanes;
    const bool few = g.groups == 1 && !native && in < lanes, planes = few && word == 1;
    const int64_t c = planes ? 1 : few ? (in + word - 1) / word * word : lanes;
    const bool symbolic = !qn_conv_has_extents(node);
    if (word > 1 && g.groups > 1)
        return false;
    bool dilated = false, bordered = false;
    for (int i = 0; i < spatial; i++) {
        dilated |= qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] != 1;
        bordered |= !qn_dim_is(qn_attr_dims(node, QN_ATTR_LOW, NULL)[i], 0) ||
                    !qn_dim_is(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i], 0);
    }
    qn_layout_place *const of_x = &l->places[node->operands[0]->id], x_before = *of_x;
    qn_value *w = qn_layout_plain(l, node->operands[1]),
             *x = planes ? qn_layout_plain(l, node->operands[0]) : NULL;
    qn_node *const before = node->prev;
    if (planes) {
        qn_dim dims[QN_MAX_RANK];
        qn_layout_blocked_dims(l, x_type, c, dims);
        x = qn_b_reshape(&l->b, x, x_type->rank + 1, dims);
    } else {
        x = qn_layout_blocked(l, node->operands[0], c);
        if (pairs)
            x = clear_behind(l, node->operands[0], x, in % word);
    }
    if (g.merged > 1)
        w = merge_groups(l, w, g.groups * g.merged, g.merged);
    qn_value *const filters = w;
    w = word > 1 ? pack_side_by_side(l, w, c, lanes, word)
                 : pack_weights(l, w,
                                g.by_lane ? of_group
                                : strict  ? 1
                                          : c,
                                lanes);
    if (!symbolic && g.groups == 1 && word == 1 && w_type->dims[0]->value % lanes != 0)
        g.out_channels = w_type->dims[0]->value;
    /* weights past the channels are 0 */
    const int64_t channels = (of_group + word - 1) / word * word;
    /* First as it is, where a kernel may meet a border, then with a padded input. */
    for (int padded = dilated || (planes && bordered); padded <= (dilated || bordered); padded++) {
        qn_value *y = packed(l, node, x, w, padded, g.groups, channels, g.out_channels);
        qn_conv_plan plan;
        if (!y)
            return true; /* reported */
        int t;
        int64_t width;
        if (symbolic && qn_conv_symbolic_takes(y->node, l->options)) {
            if (!dilated && g.merged == 1 && word == 1 && qn_is_known(filters) &&
                qn_winograd_wins_over_symbols(y->node, channels, l->options, &t, &width))
                y = winograd_of(l, x, filters, y->node, node, t, width);
            qn_layout_set_blocked(l, &node->results[0], y);
            return true;
        }
        if (qn_conv_plan_make(y->node, l->options, &plan)) {
            qn_value *faster = g.groups == 1 && word == 1 && c == lanes && spatial == 3
                                   ? by_planes(l, node, x, filters, c)
                                   : by_winograd(l, filters, &plan);
            qn_layout_set_blocked(l, &node->results[0], faster ? faster : y);
            return true;
        }
    }
    while (node->prev != before)
        qn_node_remove(node->prev);
    *of_x = x_before;
    return false;
}
