/* Keeps the values around convolutions in channel blocks.
 *
 * Before: convolutions of [N, C, spatial…]. After: conv_packed of [N, blocks, spatial…, lanes], channel i in block i / lanes at
 * i % lanes, and what lies between them (element-wise ops, windows, padding, reductions, …) in the same layout, so that
 * nothing is rearranged from one convolution to the next. Where blocks begin and end, values are converted by pad, reshape
 * and transpose. Lanes beyond C hold anything: nobody reads them.
 *
 *   %1 = convolution %0: f32[1, 64, 56, 56], %w
 *   %2 = broadcast %bias {axes = [1], …}; %3 = add %1, %2; %4 = reduce_window %3 …
 *   ->
 *   %w' = reshape and transpose of %w to [4, 4, 3, 3, 16, 16], which fold computes
 *   %1 = conv_packed %0': f32[1, 4, 56, 56, 16], %w'
 *   %2 = broadcast (reshape %bias to [4, 16]) {axes = [1, 4], …}; %3 = add %1, %2; %4 = reduce_window %3 …
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
 * bytes, and for groups of several channels that are no whole blocks, such a convolution stays as it is.
 *
 * Norms of groups of channels, whose values are of other dims, stay in blocks (below).
 *
 * Channels that are cut, joined or shuffled other than by whole blocks are noted, and gathered from blocks to blocks where they are read (below).
 *
 * Values are visited in order. Each has a plain form, a blocked form, or both, made when first asked for. */
#include <string.h>

#include "ir/winograd.h"
#include "passes/conv.h"
#include "passes/conv_symbolic.h"
#include "passes/conv_tile.h"
#include "passes/passes.h"
#include "passes/quantize.h"
#include "passes/simplify.h"
#include "passes/winograd.h"
#include "passes/words.h"

/* A channel of a value in blocks. */
typedef struct channel {
    qn_value *blocked;
    int64_t number;
} channel;

typedef struct place {
    bool native;             /* it is computed in blocks */
    qn_value *blocked;       /* NULL: none yet */
    const channel *channels; /* not NULL: what it is in blocks once somebody asks */
    int64_t lanes;           /* then: of a block */
    qn_value *plain;         /* NULL: none yet; the original unless it is native */
    bool normalized;         /* a reshape whose rows, all axes behind the second one, are reduced */
    const qn_type *as; /* not NULL: it is [N, groups, …], and blocked its reshape to this type, [N, C, …] */
} place;

typedef struct converted {
    qn_value *from, *to;
} converted;

typedef struct layout {
    qn_graph *graph;
    const qn_pass_options *options;
    qn_builder b;  /* before the node that is looked at */
    place *places; /* by id of the original values */
    bool *wanted;  /* likewise: somebody reads it in blocks */
    qn_value **
        shuffled; /* likewise: whose channels it has in another order, or it is a step on the way there; or NULL */
    bool bytes_by_unit; /* convolutions of bytes are a matrix unit's */
    qn_arena *scratch;
    qn_vec(converted) converted;
    bool changed;
} layout;

static qn_dim number(const layout *l, int64_t value)
{
    return qn_dim_const(qn_b_dims(&l->b), value);
}

/* ---- the two forms ---- */

/* Dims of a value of that type in blocks of c channels. */
static void blocked_dims(const layout *l, const qn_type *type, int64_t c, qn_dim *out)
{
    for (int i = 0; i < type->rank; i++)
        out[i] = type->dims[i];
    out[1] = number(l, (type->dims[1]->value + c - 1) / c);
    out[type->rank] = number(l, c);
}

/* Axis `axis` padded with zeros to a multiple of c and split in two: [blocks, c]. */
static qn_value *split_axis(layout *l, qn_value *x, int axis, int64_t c)
{
    qn_dim dims[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK];
    const int64_t extent = x->type.dims[axis]->value, blocks = (extent + c - 1) / c;
    for (int i = 0; i < x->type.rank; i++) {
        low[i] = high[i] = number(l, 0);
        dims[i < axis ? i : i + 1] = x->type.dims[i];
    }
    high[axis] = number(l, blocks * c - extent);
    dims[axis] = number(l, blocks);
    dims[axis + 1] = number(l, c);
    const int rank = x->type.rank;
    if (blocks * c != extent)
        x = qn_b_pad(&l->b, x, qn_b_scalar(&l->b, x->type.dtype, 0), low, high, NULL);
    return qn_b_reshape(&l->b, x, rank + 1, dims);
}

static qn_value *to_blocks(layout *l, qn_value *x, int64_t c)
{
    int64_t perm[QN_MAX_RANK] = { 0, 1 };
    const int rank = x->type.rank;
    for (int i = 2; i < rank; i++)
        perm[i] = i + 1;
    perm[rank] = 2;
    return qn_b_transpose(&l->b, split_axis(l, x, 1, c), perm);
}

/* A broadcast in blocks is a broadcast of what has blocks only where it has channels. Its operand is plain. */
static qn_value *broadcast_to_blocks(layout *l, const qn_node *node, int64_t c)
{
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    const int rank = node->results[0].type.rank, n_axes = x->type.rank;
    qn_dim dims[QN_MAX_RANK];
    int64_t blocked_axes[QN_MAX_RANK];
    int n = 0;
    blocked_dims(l, &node->results[0].type, c, dims);
    for (int i = 0; i < n_axes; i++) {
        blocked_axes[n++] = axes[i];
        if (axes[i] == 1 && !qn_dim_is(x->type.dims[i], 1)) {
            x = split_axis(l, x, i, c);
            if (!x)
                return NULL;
            blocked_axes[n++] = rank;
        }
    }
    return qn_b_broadcast(&l->b, x, rank + 1, dims, blocked_axes);
}

static qn_value *from_blocks(layout *l, qn_value *x, const qn_type *type)
{
    int64_t perm[QN_MAX_RANK] = { 0, 1, type->rank };
    qn_dim dims[QN_MAX_RANK], start[QN_MAX_RANK], limit[QN_MAX_RANK];
    for (int i = 2; i < type->rank; i++)
        perm[i + 1] = i;
    for (int i = 0; i < type->rank; i++) {
        start[i] = number(l, 0);
        dims[i] = limit[i] = type->dims[i];
    }
    dims[1] = number(l, x->type.dims[1]->value * x->type.dims[type->rank]->value);
    x = qn_b_reshape(&l->b, qn_b_transpose(&l->b, x, perm), type->rank, dims);
    return dims[1] == type->dims[1] ? x : qn_b_slice(&l->b, x, start, limit, NULL);
}

/* The channels of values in blocks as the blocks of one. */
static qn_value *gather_channels(layout *l, const channel *channels, int64_t n, int64_t c)
{
    const int64_t n_lanes = (n + c - 1) / c * c;
    qn_value **xs = QN_NEW_ARRAY(l->scratch, qn_value *, n);
    int64_t *lanes = QN_NEW_ARRAY(l->scratch, int64_t, n_lanes);
    int n_xs = 0;
    for (int64_t i = 0; i < n_lanes; i++) {
        int64_t before = 0;
        int k = 0;
        for (; i < n && k < n_xs && xs[k] != channels[i].blocked; k++)
            before += xs[k]->type.dims[1]->value * c;
        if (i < n && k == n_xs)
            xs[n_xs++] = channels[i].blocked;
        lanes[i] = i < n ? before + channels[i].number : -1;
    }
    return qn_b_gather_packed(&l->b, n_xs, xs, (int)n_lanes, lanes);
}

/* ---- which form a value has ---- */

/* How many channels a block of it has; 0 when it isn't computed in blocks. */
static int64_t lanes_of(const layout *l, const qn_value *value)
{
    const place *p = &l->places[value->id];
    return !p->native ? 0 : p->channels ? p->lanes : p->blocked->type.dims[p->blocked->type.rank - 1]->value;
}

/* What is computed in blocks. */
static qn_value *in_blocks(layout *l, const qn_value *value)
{
    place *p = &l->places[value->id];
    if (!p->blocked)
        p->blocked = gather_channels(l, p->channels, value->type.dims[1]->value, p->lanes);
    return p->blocked;
}

static qn_value *plain_of(layout *l, qn_value *value)
{
    place *p = &l->places[value->id];
    const qn_type *type = &value->type;
    if (!p->plain)
        p->plain = p->native ? from_blocks(l, in_blocks(l, value), p->as ? p->as : type) : value;
    if (p->as) /* when it is that already, nothing is made */
        p->plain = qn_b_reshape(&l->b, p->plain, type->rank, type->dims);
    return p->plain;
}

static qn_value *blocked_of(layout *l, qn_value *value, int64_t c)
{
    place *p = &l->places[value->id];
    if (p->native && lanes_of(l, value) == c)
        return in_blocks(l, value);
    if (p->blocked && qn_dim_is(p->blocked->type.dims[p->blocked->type.rank - 1], c))
        return p->blocked;
    qn_value *plain = plain_of(l, value);
    const bool broadcast = value->node && value->node->op == QN_OP_BROADCAST && plain == value;
    qn_value *blocked = broadcast ? broadcast_to_blocks(l, value->node, c) : to_blocks(l, plain, c);
    if (!p->native) /* else in blocks of another size, which stay its form */
        p->blocked = blocked;
    return blocked;
}

static void set_blocked(layout *l, const qn_value *value, qn_value *blocked)
{
    l->places[value->id] = (place){ .native = blocked, .blocked = blocked };
    l->changed = true;
}

static void set_grouped(layout *l, const qn_value *value, qn_value *blocked, const qn_type *as)
{
    set_blocked(l, value, blocked);
    l->places[value->id].as = as;
}

static void set_plain(layout *l, const qn_value *value, qn_value *plain)
{
    l->places[value->id] = (place){ .plain = plain };
    l->changed = true;
}

/* The channels of all operands that are computed in blocks, which must agree. 0: none is, or some differ. */
static int64_t common_lanes(const layout *l, const qn_node *node)
{
    int64_t c = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const int64_t lanes = lanes_of(l, node->operands[i]);
        if (lanes && c && lanes != c)
            return 0;
        c = lanes ? lanes : c;
    }
    return c;
}

/* ---- ops that stay in blocks ---- */

/* The node's op on other operands; a list attribute gets one more entry, of the lanes' axis. */
static qn_value *rebuild(layout *l, const qn_node *node, qn_value *const *operands)
{
    qn_attr attrs[QN_N_ATTRS];
    int64_t ints[QN_N_ATTRS][QN_MAX_RANK];
    qn_dim dims[QN_N_ATTRS][QN_MAX_RANK];
    const int rank = node->operands[0]->type.rank;
    for (int i = 0; i < node->n_attrs; i++) {
        qn_attr *a = &attrs[i];
        *a = node->attrs[i];
        if (a->n != rank || a->key == QN_ATTR_AXES)
            continue;
        if (qn_attrs[a->key].kind == QN_ATTR_KIND_INTS) {
            memcpy(ints[i], a->ints, (size_t)rank * sizeof **ints);
            ints[i][rank] = a->key != QN_ATTR_INTERIOR;
            a->ints = ints[i];
            a->n++;
        } else if (qn_attrs[a->key].kind == QN_ATTR_KIND_DIMS) {
            memcpy(dims[i], a->dims, (size_t)rank * sizeof **dims);
            dims[i][rank] = number(l, 0);
            a->dims = dims[i];
            a->n++;
        }
    }
    qn_node *made = qn_node_new(l->graph, l->b.before, node->op, node->n_operands, operands, node->n_attrs,
                                attrs, 0, NULL, &node->loc, l->b.diags);
    return made ? &made->results[0] : NULL;
}

static bool elementwise(layout *l, const qn_node *node)
{
    const qn_type *type = &node->results[0].type;
    const int64_t c = common_lanes(l, node);
    qn_value *operands[4];
    if (!c || node->n_results != 1 || node->n_operands > 4 || qn_attr_find(node, QN_ATTR_AXIS))
        return false;
    for (int i = 0; i < node->n_operands; i++)
        if (node->operands[i]->type.rank != type->rank)
            return false;
    for (int i = 0; i < node->n_operands; i++)
        operands[i] = blocked_of(l, node->operands[i], c);
    set_blocked(l, &node->results[0], rebuild(l, node, operands));
    return true;
}

static bool reduce_window(layout *l, const qn_node *node)
{
    if (!lanes_of(l, node->operands[0]))
        return false;
    for (int i = 0; i < 2; i++)
        if (qn_attr_ints(node, QN_ATTR_WINDOW, NULL)[i] != 1 ||
            qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[i] != 1 ||
            !qn_dim_is(qn_attr_dims(node, QN_ATTR_LOW, NULL)[i], 0) ||
            !qn_dim_is(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i], 0))
            return false;
    set_blocked(l, &node->results[0], rebuild(l, node, (qn_value *[]){ in_blocks(l, node->operands[0]) }));
    return true;
}

static bool pad(layout *l, const qn_node *node)
{
    if (!lanes_of(l, node->operands[0]) || !qn_dim_is(qn_attr_dims(node, QN_ATTR_LOW, NULL)[1], 0) ||
        !qn_dim_is(qn_attr_dims(node, QN_ATTR_HIGH, NULL)[1], 0) ||
        qn_attr_ints(node, QN_ATTR_INTERIOR, NULL)[1] != 0)
        return false;
    qn_value *operands[2] = { in_blocks(l, node->operands[0]), plain_of(l, node->operands[1]) };
    set_blocked(l, &node->results[0], rebuild(l, node, operands));
    return true;
}

/* Of the same channels at more positions: a gate for each channel, say. */
static bool broadcast(layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const qn_type *type = &node->results[0].type;
    const int64_t c = lanes_of(l, x), *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    qn_dim dims[QN_MAX_RANK];
    int64_t blocked_axes[QN_MAX_RANK];
    if (!c || type->rank != x->type.rank || type->dims[1] != x->type.dims[1])
        return false;
    for (int i = 0; i < type->rank; i++)
        if (axes[i] != i)
            return false;
    for (int i = 0; i <= type->rank; i++)
        blocked_axes[i] = i;
    blocked_dims(l, type, c, dims);
    set_blocked(l, &node->results[0],
                qn_b_broadcast(&l->b, in_blocks(l, x), type->rank + 1, dims, blocked_axes));
    return true;
}

/* ---- channels that are cut, joined and shuffled ----
 *
 * Where that is not by whole blocks, a value is noted as channels of others, and gather_packed makes its blocks where somebody asks for
 * them: several such steps are one, and of what is handed on past a step nothing is copied. */

/* Notes a value's channels. */
static void set_channels(layout *l, const qn_value *value, const channel *channels, int64_t lanes)
{
    l->places[value->id] = (place){ .native = true, .channels = channels, .lanes = lanes };
    l->changed = true;
}

/* Adds those of a value, n of them from `first` on. */
static void add_channels(layout *l, qn_value *value, int64_t c, int64_t first, int64_t stride, int64_t n,
                         channel *to)
{
    const place *p = &l->places[value->id];
    qn_value *blocked = p->channels ? NULL : blocked_of(l, value, c);
    for (int64_t i = 0; i < n; i++)
        to[i] = blocked ? (channel){ blocked, first + i * stride } : p->channels[first + i * stride];
}

/* Has the node's result the whole of its operand's axes but for the second one? */
static bool cuts_channels_only(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type;
    for (int i = 0; i < x->rank; i++)
        if (i != 1 && node->results[0].type.dims[i] != x->dims[i])
            return false;
    return true;
}

static bool slice(layout *l, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const int64_t c = lanes_of(l, x);
    const int rank = x->type.rank;
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK];
    if (!c)
        return false;
    memcpy(start, qn_attr_dims(node, QN_ATTR_START, NULL), (size_t)rank * sizeof *start);
    memcpy(limit, qn_attr_dims(node, QN_ATTR_LIMIT, NULL), (size_t)rank * sizeof *limit);
    memcpy(stride, qn_attr_ints(node, QN_ATTR_STRIDE, NULL), (size_t)rank * sizeof *stride);
    if (!qn_dim_is_const(start[1]) || !qn_dim_is_const(limit[1]))
        return false;
    const int64_t n = node->results[0].type.dims[1]->value;
    const bool aligned = start[1]->value % c == 0 && stride[1] == 1 &&
                         (limit[1]->value % c == 0 || limit[1] == x->type.dims[1]);
    if (n > 0 && (!aligned || l->places[x->id].channels) && cuts_channels_only(node)) {
        if (!l->wanted[node->results[0].id])
            return false;
        channel *channels = QN_NEW_ARRAY(l->scratch, channel, n);
        add_channels(l, x, c, start[1]->value, stride[1], n, channels);
        set_channels(l, &node->results[0], channels, c);
        return true;
    }
    if (!aligned)
        return false;
    start[1] = number(l, start[1]->value / c);
    limit[1] = number(l, (limit[1]->value + c - 1) / c);
    start[rank] = number(l, 0);
    limit[rank] = number(l, c);
    stride[rank] = 1;
    set_blocked(l, &node->results[0], qn_b_slice(&l->b, in_blocks(l, x), start, limit, stride));
    return true;
}

static bool concatenate(layout *l, const qn_node *node)
{
    const int64_t c = common_lanes(l, node), axis = qn_attr_int(node, QN_ATTR_AXIS);
    bool aligned = true, noted = false;
    if (!c)
        return false;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_dim channels = node->operands[i]->type.dims[1];
        if (!qn_dim_is_const(channels))
            return false;
        aligned &= axis != 1 || i == node->n_operands - 1 || channels->value % c == 0;
        noted |= l->places[node->operands[i]->id].channels != NULL;
    }
    if (axis == 1 && (!aligned || noted) && node->results[0].type.dims[1]->value > 0) {
        if (!l->wanted[node->results[0].id])
            return false;
        channel *channels = QN_NEW_ARRAY(l->scratch, channel, node->results[0].type.dims[1]->value);
        int64_t at = 0;
        for (int i = 0; i < node->n_operands; i++) {
            const int64_t n = node->operands[i]->type.dims[1]->value;
            add_channels(l, node->operands[i], c, 0, 1, n, channels + at);
            at += n;
        }
        set_channels(l, &node->results[0], channels, c);
        return true;
    }
    if (!aligned)
        return false;
    qn_value **operands = QN_NEW_ARRAY(l->graph->module->arena, qn_value *, node->n_operands);
    for (int i = 0; i < node->n_operands; i++)
        operands[i] = blocked_of(l, node->operands[i], c);
    set_blocked(l, &node->results[0], qn_b_concatenate(&l->b, node->n_operands, operands, (int)axis));
    return true;
}

/* [N, C, …] as [N, a, b, …], as [N, b, a, …], as [N, C, …]: what it shuffles; or NULL. */
static qn_value *shuffled_by(const qn_node *node, const int *uses)
{
    const qn_node *turned =
        node->op == QN_OP_RESHAPE ? qn_value_made_by(node->operands[0], QN_OP_TRANSPOSE) : NULL;
    const qn_node *split = turned ? qn_value_made_by(turned->operands[0], QN_OP_RESHAPE) : NULL;
    qn_value *x = split ? split->operands[0] : NULL;
    if (!x || uses[turned->results[0].id] != 1 || uses[split->results[0].id] != 1 ||
        !qn_same_dims(&x->type, &node->results[0].type) || split->results[0].type.rank != x->type.rank + 1 ||
        x->type.rank < 3)
        return NULL;
    const int64_t *perm = qn_attr_ints(turned, QN_ATTR_PERM, NULL);
    const qn_dim *dims = split->results[0].type.dims;
    for (int i = 0; i <= x->type.rank; i++)
        if (perm[i] != (i == 1   ? 2
                        : i == 2 ? 1
                                 : i) ||
            (i != 1 && i != 2 && dims[i] != x->type.dims[i == 0 ? 0 : i - 1]))
            return NULL;
    return qn_dim_is_const(dims[1]) && qn_dim_is_const(dims[2]) && dims[1]->value > 0 && dims[2]->value > 0
               ? x
               : NULL;
}

/* Channels stay where they are: only the order counts. */
static bool shuffle(layout *l, const qn_node *node)
{
    qn_value *x = node->n_results == 1 ? l->shuffled[node->results[0].id] : NULL;
    if (!x || !lanes_of(l, x) || l->places[x->id].as)
        return false;
    if (node->results[0].type.rank != x->type.rank)
        return true; /* on the way */
    const qn_node *turned = node->operands[0]->node;
    const int64_t b = turned->results[0].type.dims[1]->value, a = turned->results[0].type.dims[2]->value,
                  c = lanes_of(l, x);
    channel *channels = QN_NEW_ARRAY(l->scratch, channel, a * b);
    for (int64_t i = 0; i < b; i++)
        add_channels(l, x, c, i, b, a, channels + i * a);
    set_channels(l, &node->results[0], channels, c);
    return true;
}

/* Finds the shuffles, and what is read in blocks if it is there. */
static void find_wanted(layout *l)
{
    const int *uses = qn_graph_count_uses(l->graph, l->scratch);
    for (const qn_node *node = l->graph->last; node; node = node->prev) {
        bool passes = false;
        switch (node->op) {
        case QN_OP_CONVOLUTION:
        case QN_OP_REDUCE_WINDOW: passes = true; break;
        case QN_OP_BROADCAST:
        case QN_OP_PAD:
        case QN_OP_SLICE:
        case QN_OP_CONCATENATE: passes = l->wanted[node->results[0].id]; break;
        case QN_OP_RESHAPE: {
            qn_value *x = shuffled_by(node, uses);
            if (x && l->wanted[node->results[0].id]) {
                for (const qn_value *step = &node->results[0]; step != x; step = step->node->operands[0])
                    l->shuffled[step->id] = x;
                l->wanted[x->id] = true;
            }
            break;
        }
        default:
            passes = qn_ops[node->op].class == QN_ELEMENTWISE && node->n_results == 1 &&
                     l->wanted[node->results[0].id];
            break;
        }
        for (int i = 0; i < (passes ? node->n_operands : 0); i++)
            l->wanted[node->operands[i]->id] = true;
    }
}

/* Numbers of another dtype are made of what has the channels, once for all that have some of them. */
static bool convert_channels(layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const place *p = &l->places[x->id];
    if (node->op != QN_OP_CONVERT || !p->channels)
        return false;
    const int64_t n = x->type.dims[1]->value;
    const qn_dtype dtype = node->results[0].type.dtype;
    channel *channels = QN_NEW_ARRAY(l->scratch, channel, n);
    for (int64_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < l->converted.n && (l->converted.items[k].from != p->channels[i].blocked ||
                                      l->converted.items[k].to->type.dtype != dtype))
            k++;
        if (k == l->converted.n) {
            qn_value *to = qn_b_convert(&l->b, dtype, p->channels[i].blocked);
            if (!to)
                return true; /* reported */
            const converted made = { p->channels[i].blocked, to };
            qn_vec_push(l->scratch, &l->converted, made);
        }
        channels[i] = (channel){ l->converted.items[k].to, p->channels[i].number };
    }
    set_channels(l, &node->results[0], channels, p->lanes);
    return true;
}

/* Over spatial axes the result is in blocks, too. Over the channels, when these fill their blocks, it is plain, and the samples may be
 * among its axes. */
static bool reduce(layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const int64_t c = lanes_of(l, x);
    const int rank = x->type.rank;
    int n;
    int64_t axes[QN_MAX_RANK];
    if (!c)
        return false;
    const int64_t *given = qn_attr_ints(node, QN_ATTR_AXES, &n);
    bool channels = false, samples = false;
    int64_t last = 0;
    for (int i = 0; i < n; i++) {
        axes[i] = given[i];
        channels |= axes[i] == 1;
        samples |= axes[i] == 0;
        last = axes[i] > last ? axes[i] : last;
    }
    if (channels ? x->type.dims[1]->value % c != 0 : samples)
        return false;
    if (channels && last > 1 && l->options->math == QN_MATH_STRICT && qn_dtype_is_float(x->type.dtype))
        return false; /* positions would come before the channels of a block */
    if (channels)
        axes[n++] = rank;
    qn_value *made = qn_b_reduce(&l->b, qn_attr_reduce_kind(node), in_blocks(l, x), n, axes, false);
    if (channels)
        set_plain(l, &node->results[0], made);
    else
        set_blocked(l, &node->results[0], made);
    return true;
}

/* ---- norms of groups ----
 *
 * A norm over groups of channels, as exporters write it, goes over [N, groups, …]. It stays in the blocks of [N, C, spatial…]:
 * statistics are reduced to [N, C] in blocks, then over the channels of each group, and spread over these before they meet blocks.
 *
 *   %1 = reshape %0 to [N, groups, …]; %2 = reduce %1 {axes = [2], …}; %3 = broadcast %2; %4 = sub %1, %3; %5 = reshape %4 to %0's dims
 *   ->
 *   %1 = reduce %0' {axes = [2, 3], …}; %2 = reduce (reshape (plain %1) to [N, groups, C / groups]) {axes = [2], …}
 *   %3 = broadcast (reshape (broadcast %2 to [N, groups, C / groups]) to [N, blocks, lanes]); %5' = sub %0', %3 */

/* Is that every axis behind the second one? */
static bool are_rows(const int64_t *axes, int n, int rank)
{
    for (int i = 0; i < n; i++)
        if (axes[i] != i + 2)
            return false;
    return rank > 2 && n == rank - 2;
}

/* Notes which reshapes begin a norm. */
static void find_norms(layout *l)
{
    for (const qn_node *node = l->graph->first; node; node = node->next) {
        int n;
        const int64_t *axes = node->op == QN_OP_REDUCE ? qn_attr_ints(node, QN_ATTR_AXES, &n) : NULL;
        if (axes && qn_value_made_by(node->operands[0], QN_OP_RESHAPE) &&
            are_rows(axes, n, node->operands[0]->type.rank))
            l->places[node->operands[0]->id].normalized = true;
    }
}

/* [N, C], [N, C, 1, …] */
static bool are_channels(const qn_type *type)
{
    for (int i = 2; i < type->rank; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return false;
    return type->rank >= 2 && type->rank < QN_MAX_RANK;
}

static bool reshape(layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0], *y = &node->results[0];
    const place *p = &l->places[x->id];
    if (!p->native)
        return false;
    if (p->as) { /* back again */
        if (!qn_same_dims(p->as, &y->type))
            return false;
        set_blocked(l, y, p->blocked);
        return true;
    }
    if (are_channels(&x->type) && are_channels(&y->type) && x->type.dims[0] == y->type.dims[0] &&
        x->type.dims[1] == y->type.dims[1]) { /* one position, with axes or without */
        qn_dim dims[QN_MAX_RANK];
        blocked_dims(l, &y->type, lanes_of(l, x), dims);
        set_blocked(l, y, qn_b_reshape(&l->b, in_blocks(l, x), y->type.rank + 1, dims));
        return true;
    }
    if (!l->places[y->id].normalized || x->type.dims[0] != y->type.dims[0])
        return false;
    const qn_dim channels = x->type.dims[1], groups = y->type.dims[1];
    if (!qn_dim_is_const(groups) || groups->value < 1 || channels->value % groups->value != 0)
        return false;
    if (l->options->math == QN_MATH_STRICT && qn_dtype_is_float(x->type.dtype))
        return false; /* sums of channels would be made before the group's */
    set_grouped(l, y, in_blocks(l, x), &x->type);
    return true;
}

/* What the broadcast repeats along rows of [N, groups, …] in the blocks of `as`; NULL when rows have different elements. */
static qn_value *spread_groups(layout *l, const qn_node *node, const qn_type *as, int64_t c)
{
    const qn_type *type = &node->results[0].type;
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    qn_dim dims[QN_MAX_RANK],
        of[3] = { number(l, 1), number(l, 1), number(l, as->dims[1]->value / type->dims[1]->value) };
    int64_t to[3] = { 0, 1, as->rank };
    for (int i = 0; i < x->type.rank; i++) {
        if ((i > 0 && axes[i] < axes[i - 1]) || (axes[i] > 1 && !qn_dim_is(x->type.dims[i], 1)))
            return NULL;
        if (axes[i] < 2)
            of[axes[i]] = x->type.dims[i];
    }
    blocked_dims(l, as, c, dims);
    x = qn_b_reshape(&l->b, x, 2, of);
    if (qn_dim_is(of[1], 1))
        return qn_b_broadcast(&l->b, x, as->rank + 1, dims, to);
    x = qn_b_broadcast(&l->b, x, 3, of, (int64_t[]){ 0, 1 });
    of[1] = as->dims[1];
    x = split_axis(l, qn_b_reshape(&l->b, x, 2, of), 1, c);
    return qn_b_broadcast(&l->b, x, as->rank + 1, dims, to);
}

static bool grouped_elementwise(layout *l, const qn_node *node, const qn_type *as)
{
    const int64_t c = common_lanes(l, node);
    qn_value *operands[4];
    if (!c || node->n_results != 1 || node->n_operands > 4 || qn_attr_find(node, QN_ATTR_AXIS))
        return false;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *x = node->operands[i];
        const place *p = &l->places[x->id];
        if (!qn_same_dims(&x->type, &node->results[0].type) ||
            (p->native ? !p->as || !qn_same_dims(p->as, as) : !qn_value_made_by(x, QN_OP_BROADCAST)))
            return false;
        operands[i] = p->native ? p->blocked : spread_groups(l, x->node, as, c);
        if (!operands[i])
            return false;
    }
    set_grouped(l, &node->results[0], rebuild(l, node, operands), as);
    return true;
}

static bool grouped_reduce(layout *l, const qn_node *node, const qn_type *as)
{
    const qn_type *type = &node->results[0].type;
    const qn_kind kind = qn_attr_reduce_kind(node);
    int64_t positions[QN_MAX_RANK];
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n);
    if (!are_rows(axes, n, node->operands[0]->type.rank))
        return false;
    for (int i = 2; i < as->rank; i++)
        positions[i - 2] = i;
    qn_value *x =
        qn_b_reduce(&l->b, kind, l->places[node->operands[0]->id].blocked, as->rank - 2, positions, false);
    const qn_type of_channels = qn_type_make(l->graph->module, type->dtype, 2, as->dims);
    x = x ? from_blocks(l, x, &of_channels) : NULL;
    const qn_dim shares[3] = { type->dims[0], type->dims[1],
                               number(l, as->dims[1]->value / type->dims[1]->value) };
    x = qn_b_reshape(&l->b, x, 3, shares);
    set_plain(l, &node->results[0], qn_b_reduce(&l->b, kind, x, 1, (int64_t[]){ 2 }, false));
    return true;
}

/* The type of [N, C, spatial…] whose blocks an operand is in that is [N, groups, …]; else NULL. */
static const qn_type *grouped(const layout *l, const qn_node *node)
{
    for (int i = 0; i < node->n_operands; i++)
        if (l->places[node->operands[i]->id].as)
            return l->places[node->operands[i]->id].as;
    return NULL;
}

/* ---- convolutions ---- */

/* [O, C, kernel…] to [O / lanes, C / c, kernel…, c, lanes] */
static qn_value *pack_weights(layout *l, qn_value *w, int64_t c, int64_t lanes)
{
    const int rank = w->type.rank;
    int64_t perm[QN_MAX_RANK] = { 0, 2 };
    for (int i = 2; i < rank; i++)
        perm[i] = i + 2;
    perm[rank] = 3;
    perm[rank + 1] = 1;
    w = split_axis(l, w, 1, c);
    w = w ? split_axis(l, w, 0, lanes) : NULL;
    return qn_b_transpose(&l->b, w, perm);
}

/* [O, C, kernel…] to [O / lanes, C / c, kernel…, c / n, lanes, n]: n channels side by side */
static qn_value *pack_side_by_side(layout *l, qn_value *w, int64_t c, int64_t lanes, int64_t n)
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
    dims[rank - 2] = number(l, c / n);
    dims[rank - 1] = number(l, n);
    dims[rank] = number(l, lanes);
    perm[rank - 1] = rank;
    perm[rank] = rank - 1;
    return qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 1, dims), perm);
}

/* The weights of `groups` groups as those of groups / m, between whose parts nothing is but zeros:
 *
 *   [O, C, …] -> [G, m, O / (G m), C, …] -> [G, O / (G m), m with m zeros behind each but the last, C, …]
 *             -> [G, O / (G m), m, m, C, …] -> [G, m, O / (G m), m, C, …] -> [O, m C, …] */
static qn_value *merge_groups(layout *l, qn_value *w, int64_t groups, int64_t m)
{
    const int rank = w->type.rank;
    const int64_t merged = groups / m, out = w->type.dims[0]->value, channels = w->type.dims[1]->value;
    qn_dim dims[QN_MAX_RANK], none[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK], interior[QN_MAX_RANK] = { 0, 0, m };
    for (int i = 0; i < rank + 3; i++) {
        perm[i] = i;
        none[i] = number(l, 0);
    }
    for (int i = 2; i < rank; i++)
        dims[i + 2] = w->type.dims[i];
    dims[0] = number(l, merged);
    dims[1] = number(l, m);
    dims[2] = number(l, out / groups);
    dims[3] = number(l, channels);
    perm[1] = 2;
    perm[2] = 1;
    w = qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 2, dims), perm);
    w = qn_b_pad(&l->b, w, w ? qn_b_scalar(&l->b, w->type.dtype, 0) : NULL, none, none, interior);
    for (int i = rank + 1; i > 2; i--)
        dims[i + 1] = dims[i];
    dims[1] = number(l, out / groups);
    dims[2] = dims[3] = number(l, m);
    w = qn_b_transpose(&l->b, qn_b_reshape(&l->b, w, rank + 3, dims), perm);
    dims[0] = number(l, out);
    dims[1] = number(l, m * channels);
    for (int i = 2; i < rank; i++)
        dims[i] = dims[i + 3];
    return qn_b_reshape(&l->b, w, rank, dims);
}

/* Zeros where the convolution reads outside of x, and between its elements where it is dilated. */
static qn_value *pad_input(layout *l, const qn_node *node, qn_value *x)
{
    const int rank = x->type.rank, spatial = node->operands[0]->type.rank - 2;
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t interior[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < rank; i++)
        low[i] = high[i] = number(l, 0);
    for (int i = 0; i < spatial; i++) {
        low[2 + i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i];
        high[2 + i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i];
        interior[2 + i] = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] - 1;
    }
    return qn_b_pad(&l->b, x, qn_b_scalar(&l->b, x->type.dtype, 0), low, high, interior);
}

/* x in blocks, where a kernel of bfloat16 also reads `read` lanes behind the channels, with weights of 0: what they hold, which may be
 * NaN, becomes 0. */
static qn_value *clear_behind(layout *l, const qn_value *plain, qn_value *x, int64_t read)
{
    if (!x || read == 0)
        return x;
    const int64_t channels = plain->type.dims[1]->value, blocks = x->type.dims[1]->value;
    const int last = x->type.rank - 1;
    const int64_t c = x->type.dims[last]->value, n = blocks * c, axes[] = { 1, last };
    if (lanes_of(l, plain) != c && !qn_value_made_by(plain, QN_OP_BROADCAST))
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

static qn_value *packed(layout *l, const qn_node *node, qn_value *x, qn_value *w, bool padded, int64_t groups,
                        int64_t channels, int64_t out_channels)
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

/* By Winograd's method, of that t and panels so wide, what `direct` computes: of x with the borders of another node. */
static qn_value *winograd_of(layout *l, qn_value *x, qn_value *w, const qn_node *direct,
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
        none[i] = more[i] = number(l, 0);
    more[0] = number(l, direct->results[0].type.dims[1]->value * lanes - type->dims[0]->value);
    if (more[0] != none[0])
        w = qn_b_pad(&l->b, w, qn_b_scalar(&l->b, type->dtype, 0), none, more, NULL);
    return qn_b_conv_winograd(&l->b, x, qn_winograd_weights(&l->b, w, t, width), low, high);
}

/* The same where that is faster and the filters w, of one group, are constants. */
static qn_value *by_winograd(layout *l, qn_value *w, const qn_conv_plan *plan)
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
static qn_value *plane_by_winograd(layout *l, const qn_node *node, qn_value *x, qn_value *w, int64_t k,
                                   int64_t c)
{
    const int64_t planes = node->results[0].type.dims[2]->value,
                  stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL)[0], one[] = { 1, 1 };
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    qn_dim start[6], limit[6];
    for (int i = 0; i < 6; i++) {
        start[i] = number(l, i == 2 ? k : 0);
        limit[i] = i == 2 ? number(l, k + (planes - 1) * stride + 1) : x->type.dims[i];
    }
    x = qn_b_slice(&l->b, x, start, limit, (const int64_t[]){ 1, 1, stride, 1, 1, 1 });
    x = qn_b_transpose(&l->b, x, (const int64_t[]){ 0, 2, 1, 3, 4, 5 });
    if (!x)
        return NULL;
    const qn_dim *d = x->type.dims, *o = w->type.dims;
    x = qn_b_reshape(&l->b, x, 5,
                     (qn_dim[]){ qn_dim_mul(qn_b_dims(&l->b), d[0], d[1]), d[2], d[3], d[4], d[5] });
    w = qn_b_slice_axis(&l->b, w, 2, number(l, k), number(l, k + 1));
    w = qn_b_reshape(&l->b, w, 4, (qn_dim[]){ o[0], o[1], o[3], o[4] });
    const int64_t lows[] = { low[1]->value, low[2]->value }, highs[] = { high[1]->value, high[2]->value };
    const qn_conv conv = { .stride = one, .low = lows, .high = highs, .w_dilation = one, .groups = 1 };
    const qn_value *direct = qn_b_conv_packed(&l->b, x, pack_weights(l, w, c, c), &conv, o[1]->value);
    qn_conv_plan plan;
    return direct && qn_conv_plan_make(direct->node, l->options, &plan) ? by_winograd(l, w, &plan) : NULL;
}

/* A convolution over three axes as a sum of those over two: of each plane of the kernel, for samples that are planes of x. */
static qn_value *by_planes(layout *l, const qn_node *node, qn_value *x, qn_value *w, int64_t c)
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
        low[i] = high[i] = number(l, 0);
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
    sum =
        qn_b_reshape(&l->b, sum, 6, (qn_dim[]){ x->type.dims[0], number(l, planes), d[1], d[2], d[3], d[4] });
    return qn_b_transpose(&l->b, sum, (const int64_t[]){ 0, 2, 1, 3, 4, 5 });
}

/* Constant channels and kernel. */
static bool is_static(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    return qn_type_is_static(w) && qn_type_elements(w) > 0 && qn_dim_is_const(x->dims[1]) &&
           x->rank + 2 <= QN_MAX_RANK;
}

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

/* By a matrix unit. */
static void by_unit(layout *l, const qn_node *node)
{
    qn_value *const plain = node->operands[0];
    const qn_dtype dtype = plain->type.dtype;
    const int64_t c = qn_conv_tile_channels(dtype), channels = plain->type.dims[1]->value;
    qn_value *x = blocked_of(l, plain, c);
    if (dtype == QUERN_BF16)
        x = clear_behind(l, plain, x, -channels & (c - 1));
    qn_value *w = pack_side_by_side(l, plain_of(l, node->operands[1]), c, c, qn_word_elements(dtype));
    set_blocked(l, &node->results[0], packed(l, node, x, w, false, 1, channels, 0));
}

static bool convolution(layout *l, qn_node *node)
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
    const bool native = lanes_of(l, node->operands[0]) == lanes;
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
    place *const of_x = &l->places[node->operands[0]->id], x_before = *of_x;
    qn_value *w = plain_of(l, node->operands[1]), *x = planes ? plain_of(l, node->operands[0]) : NULL;
    qn_node *const before = node->prev;
    if (planes) {
        qn_dim dims[QN_MAX_RANK];
        blocked_dims(l, x_type, c, dims);
        x = qn_b_reshape(&l->b, x, x_type->rank + 1, dims);
    } else {
        x = blocked_of(l, node->operands[0], c);
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
    for (int padded = dilated || ((planes || symbolic) && bordered); padded <= (dilated || bordered);
         padded++) {
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
            set_blocked(l, &node->results[0], y);
            return true;
        }
        if (qn_conv_plan_make(y->node, l->options, &plan)) {
            qn_value *faster = g.groups == 1 && word == 1 && c == lanes && spatial == 3
                                   ? by_planes(l, node, x, filters, c)
                                   : by_winograd(l, filters, &plan);
            set_blocked(l, &node->results[0], faster ? faster : y);
            return true;
        }
    }
    while (node->prev != before)
        qn_node_remove(node->prev);
    *of_x = x_before;
    return false;
}

/* ---- the pass ---- */

static bool stays_in_blocks(layout *l, qn_node *node)
{
    const qn_type *as = grouped(l, node);
    if (shuffle(l, node))
        return true;
    if (node->op == QN_OP_RESHAPE)
        return reshape(l, node);
    if (qn_ops[node->op].class == QN_ELEMENTWISE)
        return convert_channels(l, node) || (as ? grouped_elementwise(l, node, as) : elementwise(l, node));
    if (as)
        return node->op == QN_OP_REDUCE && grouped_reduce(l, node, as);
    switch (node->op) {
    case QN_OP_CONVOLUTION: return convolution(l, node);
    case QN_OP_REDUCE_WINDOW: return reduce_window(l, node);
    case QN_OP_BROADCAST: return broadcast(l, node);
    case QN_OP_PAD: return pad(l, node);
    case QN_OP_SLICE: return slice(l, node);
    case QN_OP_CONCATENATE: return concatenate(l, node);
    case QN_OP_REDUCE: return reduce(l, node);
    default: return false;
    }
}

/* Whether each convolution has enough channels for the blocks that a matrix unit wants of bytes, but those that read the planes of a
 * few channels: of one with groups, or of a few channels more, blocks are those of a vector. */
static bool all_fill_blocks(const qn_graph *graph, const qn_pass_options *options)
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

static bool layout_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    qn_arena *scratch = qn_arena_new();
    layout l = { .graph = graph, .options = options };
    const int errors = diags->n_errors;
    bool inside = false;
    const int n_values = qn_graph_number(graph);
    l.scratch = scratch;
    l.places = QN_NEW_ARRAY(scratch, place, n_values);
    l.wanted = QN_NEW_ARRAY(scratch, bool, n_values);
    l.shuffled = QN_NEW_ARRAY(scratch, qn_value *, n_values);
    find_wanted(&l);
    find_norms(&l);
    l.bytes_by_unit = all_fill_blocks(graph, options);
    for (qn_node *node = graph->first, *next; node && diags->n_errors == errors; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            inside |= layout_graph(node->regions[i], options, diags);
        l.b = (qn_builder){ .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        if (stays_in_blocks(&l, node))
            continue;
        for (int i = 0; i < node->n_operands; i++)
            node->operands[i] = plain_of(&l, node->operands[i]);
    }
    l.b.before = NULL;
    for (int i = 0; i < graph->n_outputs && diags->n_errors == errors; i++)
        graph->outputs[i] = plain_of(&l, graph->outputs[i]);
    qn_arena_free(scratch);
    if (l.changed)
        qn_graph_remove_dead(graph);
    return l.changed || inside;
}

qn_status qn_pass_layout(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    const qn_machine *machine = options->machine;
    *out_changed = false;
    if (!machine || machine->gpu)
        return QUERN_OK;
    const int errors = diags->n_errors;
    *out_changed = layout_graph(graph, options, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
