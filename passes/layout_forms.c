/* Values in channel blocks and as they were: how one becomes the other, and which there are of each. */
#include "passes/layout.h"

/* ---- from one form to the other ---- */

void qn_layout_blocked_dims(const qn_layout *l, const qn_type *type, int64_t c, qn_dim *out)
{
    for (int i = 0; i < type->rank; i++)
        out[i] = type->dims[i];
    out[1] = qn_layout_dim(l, (type->dims[1]->value + c - 1) / c);
    out[type->rank] = qn_layout_dim(l, c);
}

qn_value *qn_layout_split_axis(qn_layout *l, qn_value *x, int axis, int64_t c)
{
    qn_dim dims[QN_MAX_RANK], low[QN_MAX_RANK], high[QN_MAX_RANK];
    const int64_t extent = x->type.dims[axis]->value, blocks = (extent + c - 1) / c;
    for (int i = 0; i < x->type.rank; i++) {
        low[i] = high[i] = qn_layout_dim(l, 0);
        dims[i < axis ? i : i + 1] = x->type.dims[i];
    }
    high[axis] = qn_layout_dim(l, blocks * c - extent);
    dims[axis] = qn_layout_dim(l, blocks);
    dims[axis + 1] = qn_layout_dim(l, c);
    const int rank = x->type.rank;
    if (blocks * c != extent)
        x = qn_b_pad(&l->b, x, qn_b_scalar(&l->b, x->type.dtype, 0), low, high, NULL);
    return qn_b_reshape(&l->b, x, rank + 1, dims);
}

static qn_value *to_blocks(qn_layout *l, qn_value *x, int64_t c)
{
    int64_t perm[QN_MAX_RANK] = { 0, 1 };
    const int rank = x->type.rank;
    for (int i = 2; i < rank; i++)
        perm[i] = i + 1;
    perm[rank] = 2;
    return qn_b_transpose(&l->b, qn_layout_split_axis(l, x, 1, c), perm);
}

/* A broadcast in blocks is a broadcast of what has blocks only where it has channels. Its operand is plain. */
static qn_value *broadcast_to_blocks(qn_layout *l, const qn_node *node, int64_t c)
{
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    const int rank = node->results[0].type.rank, n_axes = x->type.rank;
    qn_dim dims[QN_MAX_RANK];
    int64_t blocked_axes[QN_MAX_RANK];
    int n = 0;
    qn_layout_blocked_dims(l, &node->results[0].type, c, dims);
    for (int i = 0; i < n_axes; i++) {
        blocked_axes[n++] = axes[i];
        if (axes[i] == 1 && !qn_dim_is(x->type.dims[i], 1)) {
            x = qn_layout_split_axis(l, x, i, c);
            if (!x)
                return NULL;
            blocked_axes[n++] = rank;
        }
    }
    return qn_b_broadcast(&l->b, x, rank + 1, dims, blocked_axes);
}

qn_value *qn_layout_from_blocks(qn_layout *l, qn_value *x, const qn_type *type)
{
    int64_t perm[QN_MAX_RANK] = { 0, 1, type->rank };
    qn_dim dims[QN_MAX_RANK], start[QN_MAX_RANK], limit[QN_MAX_RANK];
    for (int i = 2; i < type->rank; i++)
        perm[i + 1] = i;
    for (int i = 0; i < type->rank; i++) {
        start[i] = qn_layout_dim(l, 0);
        dims[i] = limit[i] = type->dims[i];
    }
    dims[1] = qn_layout_dim(l, x->type.dims[1]->value * x->type.dims[type->rank]->value);
    x = qn_b_reshape(&l->b, qn_b_transpose(&l->b, x, perm), type->rank, dims);
    return dims[1] == type->dims[1] ? x : qn_b_slice(&l->b, x, start, limit, NULL);
}

/* ---- which form a value has ---- */

int64_t qn_layout_lanes(const qn_layout *l, const qn_value *value)
{
    const qn_layout_place *p = &l->places[value->id];
    return !p->native ? 0 : p->channels ? p->lanes : p->blocked->type.dims[p->blocked->type.rank - 1]->value;
}

qn_value *qn_layout_in_blocks(qn_layout *l, const qn_value *value)
{
    qn_layout_place *p = &l->places[value->id];
    if (!p->blocked)
        p->blocked = qn_layout_gather_channels(l, p->channels, value->type.dims[1]->value, p->lanes);
    return p->blocked;
}

qn_value *qn_layout_plain(qn_layout *l, qn_value *value)
{
    qn_layout_place *p = &l->places[value->id];
    const qn_type *type = &value->type;
    if (!p->plain)
        p->plain =
            p->native ? qn_layout_from_blocks(l, qn_layout_in_blocks(l, value), p->as ? p->as : type) : value;
    if (p->as) /* when it is that already, nothing is made */
        p->plain = qn_b_reshape(&l->b, p->plain, type->rank, type->dims);
    return p->plain;
}

qn_value *qn_layout_blocked(qn_layout *l, qn_value *value, int64_t c)
{
    qn_layout_place *p = &l->places[value->id];
    if (p->native && qn_layout_lanes(l, value) == c)
        return qn_layout_in_blocks(l, value);
    if (p->blocked && qn_dim_is(p->blocked->type.dims[p->blocked->type.rank - 1], c))
        return p->blocked;
    qn_value *plain = qn_layout_plain(l, value);
    const bool broadcast = value->node && value->node->op == QN_OP_BROADCAST && plain == value;
    qn_value *blocked = broadcast ? broadcast_to_blocks(l, value->node, c) : to_blocks(l, plain, c);
    if (!p->native) /* else in blocks of another size, which stay its form */
        p->blocked = blocked;
    return blocked;
}

void qn_layout_set_blocked(qn_layout *l, const qn_value *value, qn_value *blocked)
{
    l->places[value->id] = (qn_layout_place){ .native = blocked, .blocked = blocked };
    l->changed = true;
}

void qn_layout_set_plain(qn_layout *l, const qn_value *value, qn_value *plain)
{
    l->places[value->id] = (qn_layout_place){ .plain = plain };
    l->changed = true;
}

int64_t qn_layout_common_lanes(const qn_layout *l, const qn_node *node)
{
    int64_t c = 0;
    for (int i = 0; i < node->n_operands; i++) {
        const int64_t lanes = qn_layout_lanes(l, node->operands[i]);
        if (lanes && c && lanes != c)
            return 0;
        c = lanes ? lanes : c;
    }
    return c;
}
