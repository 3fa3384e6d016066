/* The rule for attention: two products with a softmax between them.
 *
 *   %s = dot_general %q, %k       any order of axes; factors on %q, %k or %s
 *   %m = add %s, %mask            additive masks; or select(condition, %s, -inf); or none; several
 *   %p = softmax %m               the last axis; a row of NaN may be replaced by 0
 *   %r = dot_general %p, %v
 *   ->
 *   %r = attention %q', %k', %v', %mask {causal, scale}      with transpositions to [B, H, S, D] and so on
 *
 * Heads that were repeated for their group (reshape(broadcast %k)) are given once. A row of nothing but -inf, NaN when
 * spelled out, is 0 in the composite.
 *
 * Of any number of batch axes the last one is the heads; those before it, windows of an image say, become one. Between masks
 * such axes may be split or joined by reshapes. */
#include <math.h>

#include "passes/raise.h"

typedef struct scores {
    const qn_node *dot;
    double scale;
    qn_mask_parts mask;
} scores;

/* ---- from the softmax back to the first product ---- */

static bool read_scores(qn_raiser *s, qn_value *value, double outer, int depth, scores *out);

/* The mask without the axes that it is repeated along, or itself: also where only a run says along which. */
static qn_value *without_repetition(qn_builder *b, qn_value *mask)
{
    const qn_node *broadcast = mask ? qn_value_made_by(mask, QN_OP_BROADCAST) : NULL;
    if (!broadcast)
        return mask;
    int n;
    const int64_t *axes = qn_attr_ints(broadcast, QN_ATTR_AXES, &n);
    const qn_type *from = &broadcast->operands[0]->type;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < mask->type.rank; i++)
        dims[i] = qn_dim_const(qn_b_dims(b), 1);
    for (int i = 0; i < n; i++) {
        dims[axes[i]] = from->dims[i];
        if ((i > 0 && axes[i] <= axes[i - 1]) ||
            (!qn_dim_is(from->dims[i], 1) && from->dims[i] != mask->type.dims[axes[i]]))
            return mask;
    }
    return qn_b_reshape(b, broadcast->operands[0], mask->type.rank, dims);
}

/* A mask of scores of more than four axes, of which all but the last three become one. */
static qn_value *joined(qn_builder *b, qn_value *mask, const qn_type *scores)
{
    enum { LAST = 3 }; /* heads, queries, keys */
    const int rank = scores->rank, before = rank - LAST;
    if (!mask || rank <= LAST + 1)
        return mask;
    mask = without_repetition(b, mask);
    while (mask && mask->type.rank < rank)
        mask = qn_b_expand_dims(b, mask, 0);
    if (!mask)
        return NULL;
    qn_dim dims[QN_MAX_RANK], all = qn_dim_const(qn_b_dims(b), 1);
    int64_t axes[QN_MAX_RANK];
    bool repeats = false, differs = false;
    for (int i = 0; i < rank; i++) {
        axes[i] = i;
        dims[i] = i < before ? scores->dims[i] : mask->type.dims[i];
        repeats |= i < before && mask->type.dims[i] != scores->dims[i];
        differs |= i < before && !qn_dim_is(mask->type.dims[i], 1);
    }
    if (repeats && differs)
        mask = qn_b_broadcast(b, mask, rank, dims, axes);
    for (int i = 0; i < before && differs; i++)
        all = qn_dim_mul(qn_b_dims(b), all, dims[i]);
    dims[before - 1] = all;
    return qn_b_reshape(b, mask, LAST + 1, dims + before - 1);
}

/* Does a reshape leave heads, queries and keys as they are? */
static bool keeps_heads(const qn_node *reshape)
{
    const qn_type *x = &reshape->operands[0]->type, *y = &reshape->results[0].type;
    if (x->rank < 2 || y->rank < 2)
        return false;
    for (int i = 1; i <= 3; i++) {
        const qn_dim from = i <= x->rank ? x->dims[x->rank - i] : NULL,
                     to = i <= y->rank ? y->dims[y->rank - i] : NULL;
        if (from && to ? from != to : (from && !qn_dim_is(from, 1)) || (to && !qn_dim_is(to, 1)))
            return false;
    }
    return true;
}

/* mask * factor, where what it is added to is scaled behind the addition */
static qn_value *scaled(qn_raiser *s, qn_value *mask, double factor)
{
    return factor == 1 ? mask : qn_b_binary_scalar(&s->r.b, QN_OP_MUL, mask, factor);
}

/* What was read at scores of that type. */
static void add_parts(qn_raiser *s, const qn_mask_parts *parts, const qn_type *scores, qn_mask_parts *to)
{
    qn_builder *b = &s->r.b;
    qn_value *additive = joined(b, parts->additive, scores), *visible = joined(b, parts->visible, scores);
    to->causal |= parts->causal;
    if (additive)
        to->additive = to->additive ? qn_b_binary_bcast(b, QN_OP_ADD, to->additive, additive) : additive;
    if (visible)
        to->visible = to->visible ? qn_b_binary_bcast(b, QN_OP_AND, to->visible, visible) : visible;
}

static bool read_sum(qn_raiser *s, const qn_node *add, double outer, int depth, scores *out)
{
    const int rank = add->results[0].type.rank;
    const qn_dim *dims = add->results[0].type.dims;
    for (int i = 0; i < 2; i++) {
        if (!read_scores(s, add->operands[i], outer, depth - 1, out))
            continue;
        qn_value *mask = scaled(s, add->operands[1 - i], outer);
        qn_mask_parts parts = { false, NULL, NULL };
        qn_mask_add_additive(s, mask, dims[rank - 2], dims[rank - 1], &parts);
        add_parts(s, &parts, &add->results[0].type, &out->mask);
        return true;
    }
    return false;
}

/* select(condition, scores, fill) and select(condition, fill, scores) */
static bool read_select(qn_raiser *s, const qn_node *select, double outer, int depth, scores *out)
{
    const qn_type *type = &select->results[0].type;
    for (int i = 0; i < 2; i++) {
        qn_scalar fill;
        if (!qn_value_splat(select->operands[2 - i], &fill) || outer <= 0 ||
            !qn_mask_is_hiding(type->dtype, fill.f) ||
            !read_scores(s, select->operands[1 + i], outer, depth - 1, out))
            continue;
        qn_mask_parts parts = { false, NULL, NULL };
        qn_value *condition = select->operands[0];
        qn_mask_add_visible(s, condition, i == 1, type->dims[type->rank - 2], type->dims[type->rank - 1],
                            &parts);
        if (isinf(fill.f) || !parts.visible) {
            add_parts(s, &parts, type, &out->mask);
            return true;
        }
        /* where a row sees nothing, all keys weigh the same: as with an additive mask */
        qn_builder *b = &s->r.b;
        qn_type full = condition->type;
        full.dtype = type->dtype;
        qn_value *zero = qn_b_full(b, &full, 0), *low = qn_b_full(b, &full, fill.f);
        qn_value *mask = i == 0 ? qn_b_select(b, condition, zero, low) : qn_b_select(b, condition, low, zero);
        add_parts(s, &(qn_mask_parts){ .additive = mask }, type, &out->mask);
        return true;
    }
    return false;
}

static bool read_scores(qn_raiser *s, qn_value *value, double outer, int depth, scores *out)
{
    const qn_node *node = value->node;
    double factor = 1;
    if (!node || depth == 0)
        return false;
    if (node->op == QN_OP_DOT_GENERAL) {
        *out = (scores){ .dot = node, .scale = outer };
        return !qn_attr_find(node, QN_ATTR_DTYPE);
    }
    qn_value *inner = qn_raise_without_one_factor(value, &factor);
    if (inner)
        return read_scores(s, inner, outer * factor, depth - 1, out);
    if (node->op == QN_OP_ADD)
        return read_sum(s, node, outer, depth, out);
    if (node->op == QN_OP_RESHAPE)
        return keeps_heads(node) && read_scores(s, node->operands[0], outer, depth - 1, out);
    return node->op == QN_OP_SELECT && read_select(s, node, outer, depth, out);
}

/* select(is_nan(p), 0, p) -> p */
static qn_value *without_nan_guard(qn_value *p)
{
    const qn_node *select = qn_value_made_by(p, QN_OP_SELECT);
    const qn_node *test = select ? qn_value_made_by(select->operands[0], QN_OP_IS_NAN) : NULL;
    qn_scalar zero;
    return test && test->operands[0] == select->operands[2] && qn_value_splat(select->operands[1], &zero) &&
                   zero.f == 0
               ? select->operands[2]
               : p;
}

/* ---- operands as the composite wants them ---- */

/* Axes of a side of a product with batch axes, one free and one contracted axis. Free ones of extent 1 before it count as batch
 * axes that the other side doesn't have. */
typedef struct side {
    qn_value *value;
    int n_batch;
    int64_t batch[QN_MAX_RANK], free, contract;
} side;

static bool read_side(const qn_node *dot, int operand, side *out)
{
    int n_contract;
    const qn_type *type = &dot->operands[operand]->type;
    bool taken[QN_MAX_RANK] = { false };
    *out = (side){ .value = dot->operands[operand], .free = -1 };
    const int64_t *batch = qn_attr_ints(dot, operand ? QN_ATTR_Y_BATCH : QN_ATTR_X_BATCH, &out->n_batch);
    const int64_t *contract =
        qn_attr_ints(dot, operand ? QN_ATTR_Y_CONTRACT : QN_ATTR_X_CONTRACT, &n_contract);
    if (n_contract != 1)
        return false;
    out->contract = contract[0];
    taken[contract[0]] = true;
    for (int i = 0; i < out->n_batch; i++) {
        out->batch[i] = batch[i];
        taken[batch[i]] = true;
    }
    for (int i = 0; i < type->rank; i++) {
        if (taken[i])
            continue;
        if (out->free >= 0) {
            if (operand == 1 || !qn_dim_is(type->dims[out->free], 1))
                return false;
            out->batch[out->n_batch++] = out->free;
        }
        out->free = i;
    }
    return out->free >= 0;
}

/* The extents of the scores that the first side makes: all batch axes but the last, that one, the free axis. */
static void extents_of(qn_builder *b, const side *s, qn_dim out[3])
{
    const qn_dim *dims = s->value->type.dims;
    out[0] = out[1] = qn_dim_const(qn_b_dims(b), 1);
    for (int i = 0; i < s->n_batch - 1; i++)
        out[0] = qn_dim_mul(qn_b_dims(b), out[0], dims[s->batch[i]]);
    if (s->n_batch > 0)
        out[1] = dims[s->batch[s->n_batch - 1]];
    out[2] = dims[s->free];
}

/* What heads were repeated from, [.., G, ..] for [.., G * R, ..] at the axis; NULL: they were not. */
static qn_value *once_a_group(qn_builder *b, const side *s)
{
    const qn_node *reshape = s->n_batch == 2 ? qn_value_made_by(s->value, QN_OP_RESHAPE) : NULL;
    const qn_node *broadcast = reshape ? qn_value_made_by(reshape->operands[0], QN_OP_BROADCAST) : NULL;
    if (!broadcast || broadcast->results[0].type.rank != 5)
        return NULL;
    const int head = (int)s->batch[1];
    const qn_dim *apart = broadcast->results[0].type.dims, *joined = reshape->results[0].type.dims;
    qn_dim dims[4];
    for (int i = 0, k = 0; i < 4; i++, k++) { /* joined axis `head` is apart `head` and the one behind it */
        dims[i] = apart[k];
        if (i == head)
            k++;
        else if (joined[i] != apart[k])
            return NULL;
    }
    int n;
    const int64_t *axes = qn_attr_ints(broadcast, QN_ATTR_AXES, &n);
    const qn_type *from = &broadcast->operands[0]->type;
    bool kept[5] = { false };
    for (int i = 0; i < n; i++) {
        const bool repeated = axes[i] == head + 1;
        if (i > 0 && axes[i] <= axes[i - 1])
            return NULL;
        if (repeated ? !qn_dim_is(from->dims[i], 1) : from->dims[i] != apart[axes[i]])
            return NULL;
        kept[axes[i]] = true;
    }
    for (int i = 0; i < 5; i++)
        if (!kept[i] && i != head + 1 && !qn_dim_is(apart[i], 1))
            return NULL;
    return qn_b_reshape(b, broadcast->operands[0], 4, dims);
}

/* [B, H, rows, columns] of `n_batch` batch axes, with 1s for those that are not there */
static qn_value *arranged(qn_builder *b, const side *s, int n_batch, int64_t rows, int64_t columns)
{
    int64_t perm[QN_MAX_RANK];
    qn_dim dims[4];
    int n = 0;
    for (int i = 0; i < s->n_batch; i++)
        perm[n++] = s->batch[i];
    perm[n++] = rows;
    perm[n++] = columns;
    /* what was transposed under a factor that is gone now */
    const qn_node *inner = qn_value_made_by(s->value, QN_OP_TRANSPOSE);
    const int64_t *first = inner ? qn_attr_ints(inner, QN_ATTR_PERM, NULL) : NULL;
    for (int i = 0; first && i < n; i++)
        perm[i] = first[perm[i]];
    qn_value *x = qn_b_transpose(b, inner ? inner->operands[0] : s->value, perm);
    for (int i = s->n_batch; x && i < n_batch; i++)
        x = qn_b_expand_dims(b, x, i);
    while (x && x->type.rank < 4)
        x = qn_b_expand_dims(b, x, 0);
    if (!x || x->type.rank == 4)
        return x;
    dims[0] = qn_dim_const(qn_b_dims(b), 1);
    for (int i = 0; i < x->type.rank - 3; i++)
        dims[0] = qn_dim_mul(qn_b_dims(b), dims[0], x->type.dims[i]);
    for (int i = 1; i < 4; i++)
        dims[i] = x->type.dims[x->type.rank - 4 + i];
    return qn_b_reshape(b, x, 4, dims);
}

/* A mask that goes along with scores of rank 2 to 4, of rank 4, without the axes that it is repeated along. */
static qn_value *mask_of_rank_4(qn_builder *b, qn_value *mask)
{
    mask = without_repetition(b, mask);
    /* A repetition further back counts for queries, which the kernel then takes side by side. */
    enum { DEPTH = 8 };
    const int queries = mask ? mask->type.rank - 2 : -1;
    if (queries >= 0 && !qn_dim_is(mask->type.dims[queries], 1) && mask->type.dims[queries]->min >= 1 &&
        qn_mask_repeats(mask, queries, DEPTH))
        mask =
            qn_b_slice_axis(b, mask, queries, qn_dim_const(qn_b_dims(b), 0), qn_dim_const(qn_b_dims(b), 1));
    while (mask && mask->type.rank < 4)
        mask = qn_b_expand_dims(b, mask, 0);
    return mask;
}

/* One mask for both sorts of parts; NULL: none. */
static qn_value *join_masks(qn_builder *b, const qn_mask_parts *parts)
{
    qn_value *visible = mask_of_rank_4(b, parts->visible), *additive = mask_of_rank_4(b, parts->additive);
    if (!visible || !additive)
        return visible ? visible : additive;
    return qn_b_select_bcast(b, visible, additive, qn_b_scalar(b, additive->type.dtype, -INFINITY));
}

static bool is_all_of_p(const side *p)
{
    for (int i = 0; i < p->n_batch; i++)
        if (p->batch[i] != i)
            return false;
    return p->free == p->n_batch && p->contract == p->n_batch + 1;
}

static qn_value *attention(qn_raiser *s, const qn_node *node)
{
    enum { DEPTH = 8 };
    qn_builder *b = &s->r.b;
    side p, v, q, k;
    scores in;
    if (qn_attr_find(node, QN_ATTR_DTYPE) || !read_side(node, 0, &p) || !is_all_of_p(&p))
        return NULL;
    qn_value *weights = without_nan_guard(p.value);
    const qn_node *softmax = qn_value_made_by(weights, QN_OP_SOFTMAX);
    if (!softmax || qn_attr_int(softmax, QN_ATTR_AXIS) != p.n_batch + 1 || qn_raise_uses(s, p.value) != 1 ||
        qn_raise_uses(s, weights) > (weights == p.value ? 1 : 2) || !read_side(node, 1, &v) ||
        !read_scores(s, softmax->operands[0], 1, DEPTH, &in) || !read_side(in.dot, 0, &q) ||
        !read_side(in.dot, 1, &k))
        return NULL;
    qn_dim of_q[3], of_p[3];
    extents_of(b, &q, of_q);
    extents_of(b, &p, of_p);
    const qn_type *scores_type = &in.dot->results[0].type;
    if (of_q[0] != of_p[0] || of_q[1] != of_p[1] || of_q[2] != of_p[2] ||
        scores_type->dims[scores_type->rank - 1] != p.value->type.dims[p.contract])
        return NULL;
    if (in.mask.causal) { /* so that every query sees a key */
        const qn_dim more = qn_dim_sub(qn_b_dims(b), p.value->type.dims[p.contract], of_p[2]);
        if (more->min < 0)
            return NULL;
    }
    q.value = qn_raise_without_factor(q.value, &in.scale);
    k.value = qn_raise_without_factor(k.value, &in.scale);
    if (!isfinite(in.scale))
        return NULL;
    const qn_dim *d = p.value->type.dims;
    for (int i = 0; i < v.n_batch; i++)
        if (v.value->type.dims[v.batch[i]] != d[i])
            return NULL;
    qn_value *one_k = once_a_group(b, &k), *one_v = once_a_group(b, &v);
    if (q.n_batch == 2 && p.n_batch == 2 && one_k && one_v &&
        one_k->type.dims[k.batch[1]] == one_v->type.dims[v.batch[1]]) {
        k.value = one_k;
        v.value = one_v;
    }
    qn_value *y = qn_b_attention(
        b, arranged(b, &q, q.n_batch, q.free, q.contract), arranged(b, &k, q.n_batch, k.free, k.contract),
        arranged(b, &v, p.n_batch, v.contract, v.free), join_masks(b, &in.mask), in.scale, in.mask.causal);
    const qn_type *type = &node->results[0].type;
    return qn_b_reshape(b, y, type->rank, type->dims);
}

const qn_raise_rule qn_raise_attention_rules[] = { { QN_OP_DOT_GENERAL, false, attention },
                                                   { QN_N_OPS, false, NULL } };
