/* Channels that are cut, joined and shuffled.
 *
 * Where that is not by whole blocks, a value is noted as channels of others, and gather_packed makes its blocks where somebody asks for
 * them: several such steps are one, and of what is handed on past a step nothing is copied. */
#include "passes/layout.h"

#include <string.h>

#include "passes/simplify.h"

qn_value *qn_layout_gather_channels(qn_layout *l, const qn_layout_channel *channels, int64_t n, int64_t c)
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

/* ---- channels that are noted ---- */

/* Notes a value's channels. */
static void set_channels(qn_layout *l, const qn_value *value, const qn_layout_channel *channels,
                         int64_t lanes)
{
    l->places[value->id] = (qn_layout_place){ .native = true, .channels = channels, .lanes = lanes };
    l->changed = true;
}

/* Adds those of a value, n of them from `first` on. */
static void add_channels(qn_layout *l, qn_value *value, int64_t c, int64_t first, int64_t stride, int64_t n,
                         qn_layout_channel *to)
{
    const qn_layout_place *p = &l->places[value->id];
    qn_value *blocked = p->channels ? NULL : qn_layout_blocked(l, value, c);
    for (int64_t i = 0; i < n; i++)
        to[i] =
            blocked ? (qn_layout_channel){ blocked, first + i * stride } : p->channels[first + i * stride];
}

/* Numbers of another dtype are made of what has the channels, once for all that have some of them. */
bool qn_layout_convert_channels(qn_layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0];
    const qn_layout_place *p = &l->places[x->id];
    if (node->op != QN_OP_CONVERT || !p->channels)
        return false;
    const int64_t n = x->type.dims[1]->value;
    const qn_dtype dtype = node->results[0].type.dtype;
    qn_layout_channel *channels = QN_NEW_ARRAY(l->scratch, qn_layout_channel, n);
    for (int64_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < l->converted.n && (l->converted.items[k].from != p->channels[i].blocked ||
                                      l->converted.items[k].to->type.dtype != dtype))
            k++;
        if (k == l->converted.n) {
            qn_value *to = qn_b_convert(&l->b, dtype, p->channels[i].blocked);
            if (!to)
                return true; /* reported */
            const qn_layout_converted made = { p->channels[i].blocked, to };
            qn_vec_push(l->scratch, &l->converted, made);
        }
        channels[i] = (qn_layout_channel){ l->converted.items[k].to, p->channels[i].number };
    }
    set_channels(l, &node->results[0], channels, p->lanes);
    return true;
}

/* ---- slices and concatenations ---- */

/* Has the node's result the whole of its operand's axes but for the second one? */
static bool cuts_channels_only(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type;
    for (int i = 0; i < x->rank; i++)
        if (i != 1 && node->results[0].type.dims[i] != x->dims[i])
            return false;
    return true;
}

bool qn_layout_slice(qn_layout *l, const qn_node *node)
{
    qn_value *x = node->operands[0];
    const int64_t c = qn_layout_lanes(l, x);
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
        qn_layout_channel *channels = QN_NEW_ARRAY(l->scratch, qn_layout_channel, n);
        add_channels(l, x, c, start[1]->value, stride[1], n, channels);
        set_channels(l, &node->results[0], channels, c);
        return true;
    }
    if (!aligned)
        return false;
    start[1] = qn_layout_dim(l, start[1]->value / c);
    limit[1] = qn_layout_dim(l, (limit[1]->value + c - 1) / c);
    start[rank] = qn_layout_dim(l, 0);
    limit[rank] = qn_layout_dim(l, c);
    stride[rank] = 1;
    qn_layout_set_blocked(l, &node->results[0],
                          qn_b_slice(&l->b, qn_layout_in_blocks(l, x), start, limit, stride));
    return true;
}

bool qn_layout_concatenate(qn_layout *l, const qn_node *node)
{
    const int64_t c = qn_layout_common_lanes(l, node), axis = qn_attr_int(node, QN_ATTR_AXIS);
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
        qn_layout_channel *channels =
            QN_NEW_ARRAY(l->scratch, qn_layout_channel, node->results[0].type.dims[1]->value);
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
        operands[i] = qn_layout_blocked(l, node->operands[i], c);
    qn_layout_set_blocked(l, &node->results[0],
                          qn_b_concatenate(&l->b, node->n_operands, operands, (int)axis));
    return true;
}

/* ---- shuffles ---- */

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
bool qn_layout_shuffle(qn_layout *l, const qn_node *node)
{
    qn_value *x = node->n_results == 1 ? l->shuffled[node->results[0].id] : NULL;
    if (!x || !qn_layout_lanes(l, x) || l->places[x->id].as)
        return false;
    if (node->results[0].type.rank != x->type.rank)
        return true; /* on the way */
    const qn_node *turned = node->operands[0]->node;
    const int64_t b = turned->results[0].type.dims[1]->value, a = turned->results[0].type.dims[2]->value,
                  c = qn_layout_lanes(l, x);
    qn_layout_channel *channels = QN_NEW_ARRAY(l->scratch, qn_layout_channel, a * b);
    for (int64_t i = 0; i < b; i++)
        add_channels(l, x, c, i, b, a, channels + i * a);
    set_channels(l, &node->results[0], channels, c);
    return true;
}

/* ---- what is wanted ---- */

void qn_layout_find_wanted(qn_layout *l)
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
