/* Derivatives of convolutions over spatial extents that are symbols.
 *
 * That of x is a convolution again. That of w would be one whose kernel is as large as the image, for which there is no kernel: it is
 * products over the batch and all positions instead, of what some taps of the kernel meet:
 *
 *   for some taps   met   = for each tap, every stride-th element of the padded x from the tap on     [taps C, N positions]
 *                   gw    = met g^T                                                                   [taps C, O]
 *
 * Where x is spread (a transposed convolution) and each position counts, it is the same with x and g exchanged, so that the zeros
 * between elements of x are not multiplied: g is what the taps meet then, from the last one on. */
#include "passes/arith.h"
#include "passes/vjp.h"

typedef struct conv {
    int n; /* spatial axes */
    int64_t groups;
    const int64_t *stride, *x_dilation, *w_dilation;
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t kernel[QN_MAX_RANK];
    int64_t taps;
} conv;

static bool read_conv(const qn_node *node, conv *c)
{
    const qn_type *w = &node->operands[1]->type;
    *c = (conv){ .n = w->rank - 2,
                 .groups = qn_attr_int(node, QN_ATTR_GROUPS),
                 .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                 .x_dilation = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL),
                 .w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL),
                 .taps = 1 };
    for (int i = 0; i < c->n; i++) {
        c->low[i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i]->value;
        c->high[i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i]->value;
        if (!qn_dim_known(w->dims[2 + i], &c->kernel[i]) || c->kernel[i] > QN_VJP_MAX_WINDOW / c->taps)
            return false;
        c->taps *= c->kernel[i];
    }
    return qn_dim_is_const(w->dims[0]) && qn_dim_is_const(w->dims[1]);
}

static int64_t reach(const conv *c, int i)
{
    return (c->kernel[i] - 1) * c->w_dilation[i];
}

static qn_dim plus(qn_vjp *v, qn_dim x, int64_t more)
{
    return qn_dim_add(qn_b_dims(&v->b), x, qn_dim_const(qn_b_dims(&v->b), more));
}

static qn_dim times(qn_vjp *v, qn_dim x, int64_t factor)
{
    return qn_dim_mul(qn_b_dims(&v->b), x, qn_dim_const(qn_b_dims(&v->b), factor));
}

static qn_value *zero(qn_vjp *v, const qn_value *like)
{
    return qn_b_scalar(&v->b, like->type.dtype, 0);
}

/* ---- x ---- */

/* With strides the windows leave out some elements at the end, how many is not known: the result is made long enough for all, and
 * cut. */
static qn_value *x_gradient(qn_vjp *v, const qn_node *node, const conv *c, qn_value *g)
{
    qn_dims *dims = qn_b_dims(&v->b);
    const qn_type *x = &node->operands[0]->type;
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
    for (int i = 0; i < c->n; i++) {
        low[i] = reach(c, i) - c->low[i];
        high[i] = reach(c, i) - c->high[i] + c->stride[i] - 1;
    }
    qn_value *gx = qn_vjp_convolution_back(v, node, low, high, g);
    qn_dim none[QN_MAX_RANK], rest[QN_MAX_RANK];
    bool longer = false;
    for (int i = 0; gx && i < x->rank; i++) {
        none[i] = qn_dim_const(dims, 0);
        rest[i] = qn_dim_sub(dims, x->dims[i], gx->type.dims[i]);
        longer |= rest[i] != none[i];
    }
    return longer ? qn_b_pad(&v->b, gx, zero(v, gx), none, rest, NULL) : gx;
}

/* ---- w ---- */

/* What the taps meet, and what they meet it with at each position. */
typedef struct meeting {
    const conv *c;
    qn_value *met;         /* padded; channels first */
    const int64_t *stride; /* from a position to the next */
    bool backwards;        /* the last tap meets it first */
    const qn_type *with;   /* [N, channels, positions…] */
} meeting;

static qn_value *channels_first(qn_vjp *v, qn_value *x)
{
    int64_t perm[QN_MAX_RANK] = { 1, 0 };
    for (int i = 2; i < x->type.rank; i++)
        perm[i] = i;
    return qn_b_transpose(&v->b, x, perm);
}

/* [channels, N, positions…] with zeros, or cropped, so that each tap meets something at each of the positions. */
static qn_value *padded(qn_vjp *v, const conv *c, qn_value *x, const int64_t *low, const int64_t *interior,
                        const int64_t *stride, const qn_type *with)
{
    qn_dims *dims = qn_b_dims(&v->b);
    qn_dim before[QN_MAX_RANK], after[QN_MAX_RANK];
    int64_t between[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < c->n + 2; i++)
        before[i] = after[i] = qn_dim_const(dims, 0);
    for (int i = 0; i < c->n; i++) {
        const int64_t step = interior ? interior[i] : 1;
        const qn_dim spread = qn_dim_spread(dims, x->type.dims[2 + i], step);
        before[2 + i] = qn_dim_const(dims, low[i]);
        after[2 + i] =
            qn_dim_sub(dims, plus(v, times(v, with->dims[2 + i], stride[i]), reach(c, i) - low[i]), spread);
        between[2 + i] = step - 1;
    }
    return qn_b_pad(&v->b, x, zero(v, x), before, after, between);
}

/* What tap number `tap` meets: [channels, N, positions…] */
static qn_value *met_by(qn_vjp *v, const meeting *m, int64_t tap)
{
    qn_dims *dims = qn_b_dims(&v->b);
    const conv *c = m->c;
    const int rank = c->n + 2;
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        start[i] = qn_dim_const(dims, 0);
        limit[i] = m->met->type.dims[i];
        stride[i] = 1;
    }
    for (int i = c->n - 1; i >= 0; i--) {
        const int64_t at = tap % c->kernel[i] * c->w_dilation[i],
                      first = m->backwards ? reach(c, i) - at : at;
        tap /= c->kernel[i];
        start[2 + i] = qn_dim_const(dims, first);
        limit[2 + i] = plus(v, times(v, m->with->dims[2 + i], m->stride[i]), first);
        stride[2 + i] = m->stride[i];
    }
    return qn_b_slice(&v->b, m->met, start, limit, stride);
}

/* Of taps [low, high): [taps, G, met channels, with channels]; `with` is [channels, N positions]. */
static qn_value *product_of(qn_vjp *v, const meeting *m, qn_value *with, int64_t low, int64_t high)
{
    qn_builder *b = &v->b;
    qn_dims *dims = qn_b_dims(b);
    const conv *c = m->c;
    const int64_t taps = high - low;
    const qn_dim columns = with->type.dims[1], groups = qn_dim_const(dims, c->groups),
                 n_taps = qn_dim_const(dims, taps), met = qn_dim_floordiv(dims, m->met->type.dims[0], groups),
                 others = qn_dim_floordiv(dims, with->type.dims[0], groups);
    qn_value **each = QN_NEW_ARRAY(b->graph->module->arena, qn_value *, taps);
    for (int64_t i = 0; i < taps; i++)
        each[i] = met_by(v, m, low + i);
    qn_value *x = taps == 1 ? each[0] : qn_b_concatenate(b, (int)taps, each, 0);
    if (!x)
        return NULL;
    const qn_dim shape[] = { n_taps, groups, met, others };
    if (c->groups == 1) {
        const qn_dot dot = { .n_contract = 1, .x_contract = { 1 }, .y_contract = { 1 } };
        x = qn_b_reshape(b, x, 2, (qn_dim[]){ x->type.dims[0], columns });
        x = x ? qn_b_dot_general(b, x, with, &dot, QUERN_INVALID_DTYPE) : NULL;
        return qn_b_reshape(b, x, 4, shape);
    }
    if (qn_dim_is(met, 1) && qn_dim_is(others, 1)) { /* a group for each channel */
        x = qn_b_reshape(b, x, 3, (qn_dim[]){ n_taps, groups, columns });
        x = x ? qn_vjp_mul(v, x, qn_b_broadcast(b, with, 3, x->type.dims, (const int64_t[]){ 1, 2 })) : NULL;
        x = x ? qn_b_reduce(b, QN_SUM, x, 1, (const int64_t[]){ 2 }, false) : NULL;
        return qn_b_reshape(b, x, 4, shape);
    }
    x = qn_b_reshape(b, x, 4, (qn_dim[]){ n_taps, groups, met, columns });
    qn_value *y = qn_b_reshape(b, with, 3, (qn_dim[]){ groups, others, columns });
    const qn_dot dot = {
        .n_batch = 1, .n_contract = 1, .x_batch = { 1 }, .x_contract = { 3 }, .y_contract = { 2 }
    };
    x = x && y ? qn_b_dot_general(b, x, y, &dot, QUERN_INVALID_DTYPE) : NULL; /* [G, taps, met, others] */
    return qn_b_transpose(b, x, (const int64_t[]){ 1, 0, 2, 3 });
}

static qn_value *w_gradient(qn_vjp *v, const qn_node *node, const conv *c, qn_value *g)
{
    enum { WIDE = 128 }; /* rows of a product, where that many taps have them */
    qn_builder *b = &v->b;
    bool exchanged = false, whole = true;
    int64_t low[QN_MAX_RANK];
    for (int i = 0; i < c->n; i++) {
        exchanged |= c->x_dilation[i] > 1;
        whole &= c->stride[i] == 1;
    }
    exchanged &= whole;
    for (int i = 0; i < c->n; i++)
        low[i] = exchanged ? reach(c, i) - c->low[i] : c->low[i];
    qn_value *x = channels_first(v, node->operands[0]), *y = channels_first(v, g);
    if (!x || !y)
        return NULL;
    const int64_t *stride = exchanged ? c->x_dilation : c->stride;
    const qn_type *with_type = exchanged ? &node->operands[0]->type : &g->type;
    qn_value *with = exchanged ? x : y;
    meeting m = { c, NULL, stride, exchanged, with_type };
    m.met = padded(v, c, exchanged ? y : x, low, exchanged ? NULL : c->x_dilation, stride, with_type);
    qn_dim columns = with_type->dims[0];
    for (int i = 0; i < c->n; i++)
        columns = qn_dim_mul(qn_b_dims(b), columns, with_type->dims[2 + i]);
    with = qn_b_reshape(b, with, 2, (qn_dim[]){ with_type->dims[1], columns });
    if (!m.met || !with)
        return NULL;
    const int64_t channels = m.met->type.dims[0]->value, at_once = most(1, WIDE / most(channels, 1));
    const int parts = (int)ceil_div(c->taps, at_once);
    qn_value **part = QN_NEW_ARRAY(b->graph->module->arena, qn_value *, parts);
    for (int i = 0; i < parts; i++)
        part[i] = product_of(v, &m, with, i * at_once, least((i + 1) * at_once, c->taps));
    qn_value *gw = parts == 1 ? part[0] : qn_b_concatenate(b, parts, part, 0);
    /* [taps, G, C, O], or exchanged [taps, G, O, C], to [G, O, C, taps] */
    const int64_t perm[] = { 1, exchanged ? 2 : 3, exchanged ? 3 : 2, 0 };
    gw = gw ? qn_b_transpose(b, gw, perm) : NULL;
    return gw ? qn_b_reshape(b, gw, c->n + 2, node->operands[1]->type.dims) : NULL;
}

qn_status qn_vjp_convolution_symbolic(qn_vjp *v, qn_node *node, qn_value *g)
{
    conv c;
    if (!read_conv(node, &c))
        return qn_vjp_refuse(v, node, "its spatial dims are symbolic, and its filters' too, or too large");
    if (qn_vjp_wants(v, node, 0))
        qn_vjp_add(v, node, 0, x_gradient(v, node, &c, g));
    if (qn_vjp_wants(v, node, 1))
        qn_vjp_add(v, node, 1, w_gradient(v, node, &c, g));
    return QUERN_OK;
}
