/* Norms of groups of channels, whose values stay in blocks.
 *
 * A norm over groups of channels, as exporters write it, goes over [N, groups, …]. It stays in the blocks of [N, C, spatial…]:
 * statistics are reduced to [N, C] in blocks, then over the channels of each group, and spread over these before they meet blocks.
 *
 *   %1 = reshape %0 to [N, groups, …]; %2 = reduce %1 {axes = [2], …}; %3 = broadcast %2; %4 = sub %1, %3; %5 = reshape %4 to %0's dims
 *   ->
 *   %1 = reduce %0' {axes = [2, 3], …}; %2 = reduce (reshape (plain %1) to [N, groups, C / groups]) {axes = [2], …}
 *   %3 = broadcast (reshape (broadcast %2 to [N, groups, C / groups]) to [N, blocks, lanes]); %5' = sub %0', %3
 *
 * So does its gradient, which sums up products of such values. */
#include "passes/layout.h"
#include "passes/simplify.h"

/* Is that every axis behind the second one? */
static bool are_rows(const int64_t *axes, int n, int rank)
{
    for (int i = 0; i < n; i++)
        if (axes[i] != i + 2)
            return false;
    return rank > 2 && n == rank - 2;
}

/* Notes reshapes that the rows are, or are computed of element by element: gradients of norms sum up products. */
static void note_rows(qn_layout *l, const qn_value *rows, int depth)
{
    const qn_node *node = rows->node;
    if (!node || depth == 0 || l->places[rows->id].normalized ||
        (node->op != QN_OP_RESHAPE && qn_ops[node->op].class != QN_ELEMENTWISE))
        return;
    l->places[rows->id].normalized = true;
    for (int i = 0; i < node->n_operands && node->op != QN_OP_RESHAPE; i++)
        if (qn_same_dims(&node->operands[i]->type, &rows->type))
            note_rows(l, node->operands[i], depth - 1);
}

void qn_layout_find_norms(qn_layout *l)
{
    enum { FAR = 32 };
    for (const qn_node *node = l->graph->first; node; node = node->next) {
        int n;
        const int64_t *axes = node->op == QN_OP_REDUCE ? qn_attr_ints(node, QN_ATTR_AXES, &n) : NULL;
        if (axes && are_rows(axes, n, node->operands[0]->type.rank))
            note_rows(l, node->operands[0], FAR);
    }
}

const qn_type *qn_layout_grouped(const qn_layout *l, const qn_node *node)
{
    for (int i = 0; i < node->n_operands; i++)
        if (l->places[node->operands[i]->id].as)
            return l->places[node->operands[i]->id].as;
    return NULL;
}

static void set_grouped(qn_layout *l, const qn_value *value, qn_value *blocked, const qn_type *as)
{
    qn_layout_set_blocked(l, value, blocked);
    l->places[value->id].as = as;
}

/* [N, C], [N, C, 1, …] */
static bool are_channels(const qn_type *type)
{
    for (int i = 2; i < type->rank; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return false;
    return type->rank >= 2 && type->rank < QN_MAX_RANK;
}

bool qn_layout_reshape(qn_layout *l, const qn_node *node)
{
    const qn_value *x = node->operands[0], *y = &node->results[0];
    const qn_layout_place *p = &l->places[x->id];
    if (!p->native)
        return false;
    if (p->as) { /* back again */
        if (!qn_same_dims(p->as, &y->type))
            return false;
        qn_layout_set_blocked(l, y, p->blocked);
        return true;
    }
    if (are_channels(&x->type) && are_channels(&y->type) && x->type.dims[0] == y->type.dims[0] &&
        x->type.dims[1] == y->type.dims[1]) { /* one position, with axes or without */
        qn_dim dims[QN_MAX_RANK];
        qn_layout_blocked_dims(l, &y->type, qn_layout_lanes(l, x), dims);
        qn_layout_set_blocked(l, y, qn_b_reshape(&l->b, qn_layout_in_blocks(l, x), y->type.rank + 1, dims));
        return true;
    }
    if (!l->places[y->id].normalized || x->type.dims[0] != y->type.dims[0])
        return false;
    const qn_dim channels = x->type.dims[1], groups = y->type.dims[1];
    if (!qn_dim_is_const(groups) || groups->value < 1 || channels->value % groups->value != 0)
        return false;
    if (l->options->math == QN_MATH_STRICT && qn_dtype_is_float(x->type.dtype))
        return false; /* sums of channels would be made before the group's */
    set_grouped(l, y, qn_layout_in_blocks(l, x), &x->type);
    return true;
}

/* What the broadcast repeats along rows of [N, groups, …] in the blocks of `as`; NULL when rows have different elements. */
static qn_value *spread_groups(qn_layout *l, const qn_node *node, const qn_type *as, int64_t c)
{
    const qn_type *type = &node->results[0].type;
    qn_value *x = node->operands[0];
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, NULL);
    qn_dim dims[QN_MAX_RANK], of[3] = { qn_layout_dim(l, 1), qn_layout_dim(l, 1),
                                        qn_layout_dim(l, as->dims[1]->value / type->dims[1]->value) };
    int64_t to[3] = { 0, 1, as->rank };
    for (int i = 0; i < x->type.rank; i++) {
        if ((i > 0 && axes[i] < axes[i - 1]) || (axes[i] > 1 && !qn_dim_is(x->type.dims[i], 1)))
            return NULL;
        if (axes[i] < 2)
            of[axes[i]] = x->type.dims[i];
    }
    qn_layout_blocked_dims(l, as, c, dims);
    x = qn_b_reshape(&l->b, x, 2, of);
    if (qn_dim_is(of[1], 1))
        return qn_b_broadcast(&l->b, x, as->rank + 1, dims, to);
    x = qn_b_broadcast(&l->b, x, 3, of, (int64_t[]){ 0, 1 });
    of[1] = as->dims[1];
    x = qn_layout_split_axis(l, qn_b_reshape(&l->b, x, 2, of), 1, c);
    return qn_b_broadcast(&l->b, x, as->rank + 1, dims, to);
}

bool qn_layout_grouped_elementwise(qn_layout *l, const qn_node *node, const qn_type *as)
{
    const int64_t c = qn_layout_common_lanes(l, node);
    qn_value *operands[4];
    if (!c || node->n_results != 1 || node->n_operands > 4 || qn_attr_find(node, QN_ATTR_AXIS))
        return false;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_value *x = node->operands[i];
        const qn_layout_place *p = &l->places[x->id];
        if (!qn_same_dims(&x->type, &node->results[0].type) ||
            (p->native ? !p->as || !qn_same_dims(p->as, as) : !qn_value_made_by(x, QN_OP_BROADCAST)))
            return false;
        operands[i] = p->native ? p->blocked : spread_groups(l, x->node, as, c);
        if (!operands[i])
            return false;
    }
    set_grouped(l, &node->results[0], qn_layout_rebuild(l, node, operands), as);
    return true;
}

bool qn_layout_grouped_reduce(qn_layout *l, const qn_node *node, const qn_type *as)
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
    x = x ? qn_layout_from_blocks(l, x, &of_channels) : NULL;
    const qn_dim shares[3] = { type->dims[0], type->dims[1],
                               qn_layout_dim(l, as->dims[1]->value / type->dims[1]->value) };
    x = qn_b_reshape(&l->b, x, 3, shares);
    qn_layout_set_plain(l, &node->results[0], qn_b_reduce(&l->b, kind, x, 1, (int64_t[]){ 2 }, false));
    return true;
}
