/* Derivatives of dot_general and convolution: contractions again. */
#include "passes/conv.h"
#include "passes/vjp.h"

/* ---- dot_general ---- */

static bool is_identity(const int64_t *perm, int rank)
{
    for (int i = 0; i < rank; i++) {
        if (perm[i] != i)
            return false;
    }
    return true;
}

/* The gradient of one operand (`own`) is the product of g and the other operand over the other's free axes. It comes out as
 * batch, then own free and own contracted axes in the order of the factors: the order is chosen that needs no transpose
 * where there is one. The contracted axes come in the order of the other operand. */
static qn_value *operand_gradient(qn_vjp *v, const qn_node *node, int operand, qn_value *g)
{
    const qn_dot_side own = qn_dot_side_of(node, operand), other = qn_dot_side_of(node, 1 - operand);
    /* f16 and bf16 operands may have an f32 result, whose gradient is f32 */
    qn_value *y = qn_b_convert(&v->b, g->type.dtype, node->operands[1 - operand]);
    int g_other_free = own.n_batch + (operand == 0 ? own.n_free : 0);
    qn_dot dot = { .n_batch = own.n_batch, .n_contract = other.n_free };
    /* other's contracted axes in ascending order of the axis, as dot_general will give them */
    int order[QN_MAX_RANK];
    for (int i = 0; i < other.n_contract; i++) {
        int place = 0;
        for (int j = 0; j < other.n_contract; j++)
            place += other.contract[j] < other.contract[i];
        order[i] = place;
    }
    for (int flipped = 0;; flipped++) {
        int64_t perm[QN_MAX_RANK]; /* own axis -> axis of the product */
        int free_at = own.n_batch + (flipped ? own.n_contract : 0);
        int contract_at = own.n_batch + (flipped ? 0 : own.n_free);
        for (int i = 0; i < own.n_batch; i++)
            perm[own.batch[i]] = i;
        for (int i = 0; i < own.n_free; i++)
            perm[own.free[i]] = free_at + i;
        for (int i = 0; i < own.n_contract; i++)
            perm[own.contract[i]] = contract_at + order[i];
        bool natural = is_identity(perm, node->operands[operand]->type.rank);
        if (!natural && !flipped)
            continue;
        if (!natural) { /* neither order is free of a transpose: the first one */
            for (int i = 0; i < own.n_free; i++)
                perm[own.free[i]] = own.n_batch + i;
            for (int i = 0; i < own.n_contract; i++)
                perm[own.contract[i]] = own.n_batch + own.n_free + order[i];
            flipped = 0;
        }
        for (int i = 0; i < own.n_batch; i++) {
            (flipped ? dot.y_batch : dot.x_batch)[i] = i;
            (flipped ? dot.x_batch : dot.y_batch)[i] = other.batch[i];
        }
        for (int i = 0; i < other.n_free; i++) {
            (flipped ? dot.y_contract : dot.x_contract)[i] = g_other_free + i;
            (flipped ? dot.x_contract : dot.y_contract)[i] = other.free[i];
        }
        qn_value *product = flipped ? qn_b_dot_general(&v->b, y, g, &dot, QUERN_INVALID_DTYPE)
                                    : qn_b_dot_general(&v->b, g, y, &dot, QUERN_INVALID_DTYPE);
        return qn_b_convert(&v->b, node->operands[operand]->type.dtype, qn_b_transpose(&v->b, product, perm));
    }
}

static qn_status dot_general(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    for (int i = 0; i < 2; i++) {
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(v, node, i, operand_gradient(v, node, i, g[0]));
    }
    return QUERN_OK;
}

/* ---- convolution ---- */

typedef struct {
    int n; /* spatial axes */
    int64_t groups;
    const int64_t *stride, *x_dilation, *w_dilation;
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t x[QN_MAX_RANK], w[QN_MAX_RANK], y[QN_MAX_RANK]; /* spatial extents; x spread by its dilation */
} conv;

static bool read_conv(const qn_node *node, conv *c)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type, *y = &node->results[0].type;
    *c = (conv){ .n = x->rank - 2,
                 .groups = qn_attr_int(node, QN_ATTR_GROUPS),
                 .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                 .x_dilation = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL),
                 .w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL) };
    for (int i = 0; i < c->n; i++) {
        if (!qn_dim_known(x->dims[i + 2], &c->x[i]) || !qn_dim_known(w->dims[i + 2], &c->w[i]) ||
            !qn_dim_known(y->dims[i + 2], &c->y[i]))
            return false;
        c->low[i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i]->value;
        c->high[i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i]->value;
        c->x[i] = (c->x[i] - 1) * c->x_dilation[i] + 1;
    }
    return true;
}

/* Exchanges the first two axes within each group: [G*a, b, s…] -> [G*b, a, s…] (the groups on axis 0) or
 * [a, G*b, s…] -> [b, G*a, s…] (on axis 1). */
static qn_value *exchange(qn_vjp *v, qn_value *x, int64_t groups, int group_axis)
{
    qn_dims *dims = qn_b_dims(&v->b);
    const qn_type *t = &x->type;
    qn_dim g = qn_dim_const(dims, groups), split[QN_MAX_RANK], joined[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK];
    qn_dim per_group = qn_dim_floordiv(dims, t->dims[group_axis], g), other = t->dims[1 - group_axis];
    if (group_axis == 0) { /* [G*a, b] -> [G, a, b] -> [G, b, a] -> [G*b, a] */
        split[0] = g, split[1] = per_group, split[2] = other;
        perm[0] = 0, perm[1] = 2, perm[2] = 1;
        joined[0] = qn_dim_mul(dims, g, other), joined[1] = per_group;
    } else { /* [a, G*b] -> [a, G, b] -> [b, G, a] -> [b, G*a] */
        split[0] = other, split[1] = g, split[2] = per_group;
        perm[0] = 2, perm[1] = 1, perm[2] = 0;
        joined[0] = per_group, joined[1] = qn_dim_mul(dims, g, other);
    }
    for (int i = 2; i < t->rank; i++) {
        split[i + 1] = joined[i] = t->dims[i];
        perm[i + 1] = i + 1;
    }
    qn_value *y = qn_b_reshape(&v->b, x, t->rank + 1, split);
    y = qn_b_transpose(&v->b, y, perm);
    return qn_b_reshape(&v->b, y, t->rank, joined);
}

qn_value *qn_vjp_convolution_back(qn_vjp *v, const qn_node *node, const int64_t *low, const int64_t *high,
                                  qn_value *g)
{
    const int n = node->operands[1]->type.rank - 2;
    const int64_t groups = qn_attr_int(node, QN_ATTR_GROUPS);
    int64_t spatial[QN_MAX_RANK];
    for (int i = 0; i < n; i++)
        spatial[i] = i + 2;
    qn_value *w = qn_b_reverse(&v->b, node->operands[1], n, spatial);
    const qn_conv back = { .stride = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL),
                           .low = low,
                           .high = high,
                           .x_dilation = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                           .w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL),
                           .groups = groups };
    /* [G*O, C] -> [G*C, O] */
    return w ? qn_b_convolution_in_phases(&v->b, g, exchange(v, w, groups, 0), &back) : NULL;
}

static qn_value *x_gradient(qn_vjp *v, const qn_node *node, const conv *c, qn_value *g)
{
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
    for (int i = 0; i < c->n; i++) {
        int64_t reach = (c->w[i] - 1) * c->w_dilation[i];
        low[i] = reach - c->low[i];
        high[i] = c->x[i] + reach - ((c->y[i] - 1) * c->stride[i] + 1) - low[i];
    }
    return qn_vjp_convolution_back(v, node, low, high, g);
}

/* x with zeros where the kernel reaches beyond it, or without what is cropped; low and high become 0. Not of one that is spread. */
static qn_value *pad_spatial(qn_vjp *v, qn_value *x, int n, int64_t *low, int64_t *high)
{
    qn_dims *dims = qn_b_dims(&v->b);
    qn_dim before[QN_MAX_RANK], after[QN_MAX_RANK];
    for (int i = 0; i < n + 2; i++) {
        before[i] = qn_dim_const(dims, i < 2 ? 0 : low[i - 2]);
        after[i] = qn_dim_const(dims, i < 2 ? 0 : high[i - 2]);
    }
    for (int i = 0; i < n; i++)
        low[i] = high[i] = 0;
    return qn_b_pad(&v->b, x, qn_b_scalar(&v->b, x->type.dtype, 0), before, after, NULL);
}

/* x [N, G*C] against g [N, G*O], with the batch as channels: [C, G*N] * [G*O, N] -> [C, G*O] */
static qn_value *correlate(qn_vjp *v, const conv *c, qn_value *x, qn_value *g, const int64_t *low,
                           const int64_t *high, const int64_t *dilation)
{
    int64_t perm[QN_MAX_RANK] = { 1, 0 };
    for (int i = 0; i < c->n; i++)
        perm[i + 2] = i + 2;
    qn_conv back = { .stride = c->w_dilation,
                     .low = low,
                     .high = high,
                     .x_dilation = c->x_dilation,
                     .w_dilation = dilation,
                     .groups = c->groups };
    if (!x)
        return NULL;
    return qn_b_convolution(&v->b, exchange(v, x, c->groups, 1), qn_b_transpose(&v->b, g, perm), &back);
}

/* The same of a padded x, phase by phase of the strides: where the convolution takes every s-th element, those of one remainder are
 * a convolution of their own that takes every one. Its results lie s apart in the kernel. */
static qn_value *correlate_phases(qn_vjp *v, const conv *c, qn_value *x, qn_value *g)
{
    static const int64_t zeros[QN_MAX_RANK];
    qn_dims *dims = qn_b_dims(&v->b);
    int64_t ones[QN_MAX_RANK], step[QN_MAX_RANK] = { 1, 1 }, interior[QN_MAX_RANK] = { 0, 0 };
    int64_t n_phases = 1;
    qn_value *sum = NULL;
    for (int i = 0; i < c->n; i++) {
        ones[i] = 1;
        step[i + 2] = c->stride[i];
        interior[i + 2] = c->stride[i] - 1;
        n_phases *= c->stride[i] < c->w[i] ? c->stride[i] : c->w[i];
    }
    for (int64_t phase = 0; x && phase < n_phases; phase++) {
        qn_dim start[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK];
        start[0] = start[1] = low[0] = low[1] = high[0] = high[1] = qn_dim_const(dims, 0);
        int64_t rest = phase;
        for (int i = 0; i < c->n; i++) {
            const int64_t phases = c->stride[i] < c->w[i] ? c->stride[i] : c->w[i], at = rest % phases;
            rest /= phases;
            const int64_t last = at + (c->w[i] - 1 - at) / c->stride[i] * c->stride[i];
            start[i + 2] = low[i + 2] = qn_dim_const(dims, at);
            high[i + 2] = qn_dim_const(dims, c->w[i] - 1 - last);
        }
        qn_value *part =
            correlate(v, c, qn_b_slice(&v->b, x, start, x->type.dims, step), g, zeros, zeros, ones);
        part = part ? qn_b_pad(&v->b, part, qn_b_scalar(&v->b, x->type.dtype, 0), low, high, interior) : NULL;
        sum = sum ? qn_b_binary(&v->b, QN_OP_ADD, sum, part) : part;
    }
    return sum;
}

/* Where in a padded image [rows, channels] each position finds what each tap of the kernel meets: i64 [positions * taps]. */
static const qn_tensor *met_by_taps(qn_vjp *v, const conv *c, const int64_t *extent, int64_t taps,
                                    int64_t positions)
{
    const int64_t n = positions * taps;
    const qn_tensor *tensor = qn_tensor_new(v->b.graph->module, QUERN_I64, 1, &n, NULL);
    int64_t *out = (int64_t *)(uintptr_t)tensor->data; /* nobody else has it yet */
    for (int64_t i = 0; i < n; i++) {
        int64_t tap = i % taps, position = i / taps, scale = 1;
        for (int axis = c->n - 1; axis >= 0; axis--) {
            out[i] +=
                scale * (position % c->y[axis] * c->stride[axis] + tap % c->w[axis] * c->w_dilation[axis]);
            position /= c->y[axis];
            tap /= c->w[axis];
            scale *= extent[axis];
        }
    }
    return tensor;
}

static qn_value *channels_last(qn_vjp *v, qn_value *x)
{
    const int rank = x->type.rank;
    int64_t perm[QN_MAX_RANK] = { 0 };
    for (int i = 1; i + 1 < rank; i++)
        perm[i] = i + 1;
    perm[rank - 1] = 1;
    return qn_b_transpose(&v->b, x, perm);
}

/* gw as one product, over the batch and all positions, of what each tap of the kernel meets. For a batch that is a symbol: it
 * cannot be the channels of a convolution, whose kernels are for known ones. NULL where it is known, or the kernel or image is
 * large. */
static qn_value *w_gradient_product(qn_vjp *v, const conv *c, qn_value *x, qn_value *g)
{
    enum { MAX_TAPS = 64, MAX_MET = 1 << 18 };
    qn_builder *b = &v->b;
    qn_dims *dims = qn_b_dims(b);
    const int last = c->n + 1;
    const qn_dim zero = qn_dim_const(dims, 0), batch = x->type.dims[0], channels = x->type.dims[1],
                 outputs = g->type.dims[1];
    int64_t taps = 1, positions = 1, size = 1, extent[QN_MAX_RANK], back[QN_MAX_RANK];
    qn_dim low[QN_MAX_RANK] = { zero }, high[QN_MAX_RANK] = { zero }, shape[QN_MAX_RANK];
    if (qn_dim_is_const(batch) || c->groups != 1 || c->n < 1 || x->type.dtype != g->type.dtype)
        return NULL;
    for (int i = 0; i < c->n; i++) {
        if (c->x_dilation[i] != 1 || c->w[i] < 1 || c->y[i] < 1 || c->w[i] > MAX_TAPS / taps ||
            c->y[i] > MAX_MET / MAX_TAPS / positions)
            return NULL;
        extent[i] = (c->w[i] - 1) * c->w_dilation[i] + (c->y[i] - 1) * c->stride[i] + 1;
        taps *= c->w[i];
        positions *= c->y[i];
        size *= extent[i];
        low[i + 1] = qn_dim_const(dims, c->low[i]);
        high[i + 1] = qn_dim_const(dims, extent[i] - c->x[i] - c->low[i]);
        shape[i] = qn_dim_const(dims, c->w[i]);
        back[i + 2] = i;
    }
    const qn_dim all = qn_dim_const(dims, size),
                 rows = qn_dim_mul(dims, batch, qn_dim_const(dims, positions)),
                 wide = qn_dim_mul(dims, channels, qn_dim_const(dims, taps));
    low[last] = high[last] = zero;
    shape[c->n] = channels, shape[last] = outputs;
    back[0] = last, back[1] = c->n;
    /* channels last, so that each tap takes rows of them */
    x = qn_b_pad(b, channels_last(v, x), qn_b_scalar(b, x->type.dtype, 0), low, high, NULL);
    x = x ? qn_b_reshape(b, x, 3, (qn_dim[]){ batch, all, channels }) : NULL;
    if (!x)
        return NULL;
    x = qn_b_gather(b, x, qn_b_constant(b, met_by_taps(v, c, extent, taps, positions)), 1);
    x = qn_b_reshape(b, x, 2, (qn_dim[]){ rows, wide });
    g = qn_b_reshape(b, channels_last(v, g), 2, (qn_dim[]){ rows, outputs });
    const qn_dot dot = { .n_contract = 1 };
    qn_value *sum = x && g ? qn_b_dot_general(b, x, g, &dot, QUERN_INVALID_DTYPE) : NULL;
    return sum ? qn_b_transpose(b, qn_b_reshape(b, sum, last + 1, shape), back) : NULL;
}

/* gw of a kernel of one tap that meets each element once: one product over the batch and all positions. As a convolution its kernel
 * would be the image, and its result one position. NULL: it isn't one, or of few channels. */
static qn_value *w_gradient_pointwise(qn_vjp *v, const conv *c, qn_value *x, qn_value *g)
{
    enum { LEAST_CHANNELS = 8 };
    qn_builder *b = &v->b;
    qn_dims *dims = qn_b_dims(b);
    const qn_dim channels = x->type.dims[1], outputs = g->type.dims[1];
    qn_dim rows = x->type.dims[0], shape[QN_MAX_RANK] = { outputs, channels };
    if (c->groups != 1 || x->type.dtype != g->type.dtype || channels->min < LEAST_CHANNELS ||
        outputs->min < LEAST_CHANNELS)
        return NULL;
    for (int i = 0; i < c->n; i++) {
        if (c->w[i] != 1 || c->stride[i] != 1 || c->x_dilation[i] != 1 || c->low[i] != 0 ||
            c->y[i] != c->x[i])
            return NULL;
        rows = qn_dim_mul(dims, rows, qn_dim_const(dims, c->x[i]));
        shape[i + 2] = qn_dim_const(dims, 1);
    }
    x = qn_b_reshape(b, channels_last(v, x), 2, (qn_dim[]){ rows, channels });
    g = qn_b_reshape(b, channels_last(v, g), 2, (qn_dim[]){ rows, outputs });
    const qn_dot dot = { .n_contract = 1 };
    qn_value *sum = x && g ? qn_b_dot_general(b, g, x, &dot, QUERN_INVALID_DTYPE) : NULL;
    return qn_b_reshape(b, sum, c->n + 2, shape);
}

/* What one tap of a depthwise kernel adds up: x times g where it meets the image, both with channels last: [1, channels]. */
static qn_value *tap_gradient(qn_vjp *v, const conv *c, qn_value *x, qn_value *g, int64_t tap)
{
    qn_builder *b = &v->b;
    qn_dims *dims = qn_b_dims(b);
    const int last = c->n + 1;
    const qn_dim zero = qn_dim_const(dims, 0), row[2] = { qn_dim_const(dims, 1), x->type.dims[last] };
    qn_dim from_x[QN_MAX_RANK], from_g[QN_MAX_RANK], to_x[QN_MAX_RANK], to_g[QN_MAX_RANK];
    int64_t step[QN_MAX_RANK], axes[QN_MAX_RANK];
    for (int i = 0; i <= last; i++) {
        from_x[i] = from_g[i] = zero;
        to_x[i] = x->type.dims[i];
        to_g[i] = g->type.dims[i];
        axes[i] = i;
        step[i] = 1;
    }
    for (int i = c->n - 1; i >= 0; i--) {
        const int64_t stride = c->stride[i], at = tap % c->w[i] * c->w_dilation[i] - c->low[i];
        int64_t first = at < 0 ? (-at + stride - 1) / stride : 0,
                end = c->x[i] > at ? (c->x[i] - 1 - at) / stride + 1 : 0;
        tap /= c->w[i];
        end = end < c->y[i] ? end : c->y[i];
        if (first >= end) /* it meets nothing but padding */
            return qn_b_broadcast(b, qn_b_scalar(b, x->type.dtype, 0), 2, row, NULL);
        from_g[i + 1] = qn_dim_const(dims, first);
        to_g[i + 1] = qn_dim_const(dims, end);
        from_x[i + 1] = qn_dim_const(dims, first * stride + at);
        to_x[i + 1] = qn_dim_const(dims, (end - 1) * stride + at + 1);
        step[i + 1] = stride;
    }
    x = qn_b_slice(b, x, from_x, to_x, step);
    g = qn_b_slice(b, g, from_g, to_g, NULL);
    x = x && g ? qn_b_binary(b, QN_OP_MUL, x, g) : NULL;
    x = x ? qn_b_reduce(b, QN_SUM, x, last, axes, false) : NULL;
    return x ? qn_b_reshape(b, x, 2, row) : NULL;
}

/* gw where each channel is a group of its own: for each tap a sum over the batch and all positions, for all channels side by side.
 * As a convolution, groups of one output would be put together with zeros between them. NULL where groups are larger, or the
 * kernel is. */
static qn_value *w_gradient_depthwise(qn_vjp *v, const conv *c, qn_value *x, qn_value *g)
{
    enum { MAX_TAPS = 64, MIN_CHANNELS = 8 };
    qn_builder *b = &v->b;
    qn_dims *dims = qn_b_dims(b);
    const qn_dim channels = x->type.dims[1];
    int64_t taps = 1;
    if (c->groups < MIN_CHANNELS || !qn_dim_is(channels, c->groups) || g->type.dims[1] != channels ||
        c->n < 1 || x->type.dtype != g->type.dtype)
        return NULL;
    qn_dim shape[QN_MAX_RANK] = { channels, qn_dim_const(dims, 1) };
    for (int i = 0; i < c->n; i++) {
        if (c->x_dilation[i] != 1 || c->w[i] < 1 || c->w[i] > MAX_TAPS / taps)
            return NULL;
        taps *= c->w[i];
        shape[i + 2] = qn_dim_const(dims, c->w[i]);
    }
    x = channels_last(v, x);
    g = channels_last(v, g);
    qn_value *sums[MAX_TAPS];
    for (int64_t tap = 0; tap < taps; tap++) {
        sums[tap] = x && g ? tap_gradient(v, c, x, g, tap) : NULL;
        if (!sums[tap])
            return NULL;
    }
    qn_value *sum = qn_b_concatenate(b, (int)taps, sums, 0);
    return sum ? qn_b_reshape(b, qn_b_transpose(b, sum, (int64_t[]){ 1, 0 }), c->n + 2, shape) : NULL;
}

/* gw: x against g. The kernel is as large as the image then: the kernels for convolutions want large ones to meet no border and
 * take every element. */
static qn_value *w_gradient(qn_vjp *v, const qn_node *node, const conv *c, qn_value *g)
{
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK], perm[QN_MAX_RANK] = { 1, 0 };
    qn_value *sum = w_gradient_pointwise(v, c, node->operands[0], g);
    if (!sum)
        sum = w_gradient_product(v, c, node->operands[0], g);
    if (!sum)
        sum = w_gradient_depthwise(v, c, node->operands[0], g);
    if (sum)
        return sum;
    bool plain = c->n > 0 && c->y[c->n - 1] > QN_CONV_WIDTH, strided = false;
    for (int i = 0; i < c->n; i++) {
        perm[i + 2] = i + 2;
        low[i] = c->low[i];
        high[i] = (c->w[i] - 1) * c->w_dilation[i] + (c->y[i] - 1) * c->stride[i] + 1 - c->x[i] - c->low[i];
        plain &= c->x_dilation[i] == 1 && c->w_dilation[i] == 1;
        strided |= c->stride[i] > 1;
    }
    qn_value *x = node->operands[0];
    if (plain)
        x = pad_spatial(v, x, c->n, low, high);
    sum = plain && strided ? correlate_phases(v, c, x, g) : correlate(v, c, x, g, low, high, c->stride);
    return sum ? qn_b_transpose(&v->b, sum, perm) : NULL;
}

static qn_status convolution(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    conv c;
    if (!read_conv(node, &c))
        return qn_vjp_convolution_symbolic(v, node, g[0]);
    if (qn_vjp_wants(v, node, 0))
        qn_vjp_add(v, node, 0, x_gradient(v, node, &c, g[0]));
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, w_gradient(v, node, &c, g[0]));
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_contraction(qn_op op)
{
    switch (op) {
    case QN_OP_DOT_GENERAL: return dot_general;
    case QN_OP_CONVOLUTION: return convolution;
    default: return NULL;
    }
}
