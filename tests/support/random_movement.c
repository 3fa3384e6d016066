/* Random graphs: movement ops, gathers and scatters, order. */
#include <math.h>

#include "tests/support/random_internal.h"

static qn_dim constant(qn_rg *g, int64_t value)
{
    return qn_dim_const(qn_b_dims(&g->b), value);
}

static bool push_like(qn_rg *g, qn_value *y, qn_rg_item x)
{
    return qn_rg_push(g, y, x.bound, x.exact);
}

static int64_t extent(qn_value *x, int axis)
{
    return qn_dim_is_const(x->type.dims[axis]) ? x->type.dims[axis]->value : 0;
}

static bool is_static(qn_value *x)
{
    return qn_type_is_static(&x->type);
}

/* ---- shapes ---- */

/* New axes anywhere, and axes of 1 repeated. */
static bool broadcast(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 0);
    const qn_type *type = &x.value->type;
    qn_dim dims[QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK];
    int rank = 0;
    if (type->rank > 4)
        return false;
    for (int i = 0; i <= type->rank; i++) {
        if (qn_rg_chance(g, 30))
            dims[rank++] = constant(g, 1 + qn_rg_below(g, 4));
        if (i == type->rank)
            break;
        axes[i] = rank;
        bool repeat = qn_dim_is(type->dims[i], 1) && qn_rg_chance(g, 60);
        dims[rank++] = repeat ? constant(g, 1 + qn_rg_below(g, 5)) : type->dims[i];
    }
    qn_type to = { type->dtype, rank, dims };
    if (qn_rg_elements(&to) > QN_RG_MAX_ELEMENTS)
        return false;
    return push_like(g, qn_b_broadcast(&g->b, x.value, rank, dims, axes), x);
}

/* Two neighbouring axes become one, one splits, or an axis of 1 comes or goes. */
static bool reshape(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    qn_builder *b = &g->b;
    const qn_type *type = &x.value->type;
    qn_dim dims[QN_MAX_RANK + 1];
    int at = qn_rg_below(g, type->rank), rank = 0;
    if (qn_rg_chance(g, 25))
        return type->rank < 6 &&
               push_like(g, qn_b_expand_dims(b, x.value, qn_rg_below(g, type->rank + 1)), x);
    if (qn_dim_is(type->dims[at], 1))
        return push_like(g, qn_b_squeeze(b, x.value, at), x);
    bool merge = at + 1 < type->rank && qn_rg_chance(g, 60);
    if (!merge && type->rank > 5)
        return false;
    for (int i = 0; i < type->rank; i++) {
        int64_t n = extent(x.value, i);
        if (i == at && merge) {
            dims[rank++] = qn_dim_mul(qn_b_dims(b), type->dims[i], type->dims[i + 1]);
            i++;
        } else if (i == at && n > 1) {
            int64_t factor = n % 2 == 0 ? 2 : n;
            dims[rank++] = constant(g, factor);
            dims[rank++] = constant(g, n / factor);
        } else {
            dims[rank++] = type->dims[i];
        }
    }
    return push_like(g, qn_b_reshape(b, x.value, rank, dims), x);
}

static bool transpose(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 2);
    if (!x.value)
        return false;
    int64_t perm[QN_MAX_RANK];
    int rank = x.value->type.rank;
    for (int i = 0; i < rank; i++)
        perm[i] = i;
    for (int i = rank - 1; i > 0; i--) {
        int k = qn_rg_below(g, i + 1);
        int64_t swap = perm[i];
        perm[i] = perm[k];
        perm[k] = swap;
    }
    qn_value *y = qn_b_transpose(&g->b, x.value, perm);
    return y != x.value && push_like(g, y, x);
}

static bool slice(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    qn_dim start[QN_MAX_RANK], limit[QN_MAX_RANK];
    int64_t stride[QN_MAX_RANK];
    for (int i = 0; i < x.value->type.rank; i++) {
        int64_t n = extent(x.value, i), from = 0;
        start[i] = constant(g, 0);
        limit[i] = x.value->type.dims[i];
        stride[i] = 1;
        if (n > 1 && qn_rg_chance(g, 60)) {
            from = qn_rg_below(g, (int)n);
            start[i] = constant(g, from);
            limit[i] = constant(g, from + 1 + qn_rg_below(g, (int)(n - from)));
            stride[i] = 1 + qn_rg_below(g, 3);
        }
    }
    return push_like(g, qn_b_slice(&g->b, x.value, start, limit, stride), x);
}

static bool pad(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value || qn_rg_elements(&x.value->type) > QN_RG_MAX_ELEMENTS / 8)
        return false;
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    int64_t interior[QN_MAX_RANK];
    for (int i = 0; i < x.value->type.rank; i++) {
        int64_t n = extent(x.value, i);
        bool crop = n > 2 && qn_rg_chance(g, 20);
        low[i] = constant(g, crop ? -1 : qn_rg_below(g, 3) * (qn_rg_below(g, 2)));
        high[i] = constant(g, qn_rg_chance(g, 30) ? qn_rg_below(g, 3) : 0);
        interior[i] = n > 0 && qn_rg_chance(g, 20) ? 1 : 0;
    }
    qn_value *value = qn_b_scalar_int(&g->b, x.value->type.dtype, qn_rg_below(g, 2));
    return qn_rg_push(g, qn_b_pad(&g->b, x.value, value, low, high, interior), x.bound + 1, x.exact);
}

static bool concatenate(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value || qn_rg_elements(&x.value->type) > QN_RG_MAX_ELEMENTS / 4)
        return false;
    qn_value *xs[3] = { x.value };
    int n = 2 + qn_rg_below(g, 2);
    for (int i = 1; i < n; i++) {
        qn_rg_item y = qn_rg_like(g, &x.value->type);
        xs[i] = y.value;
        x.bound = fmax(x.bound, y.bound);
        x.exact = x.exact && y.exact;
    }
    return push_like(g, qn_b_concatenate(&g->b, n, xs, qn_rg_below(g, x.value->type.rank)), x);
}

/* Channels of up to three values, or nothing, anywhere. */
static bool gather_packed(qn_rg *g)
{
    enum { BLOCKS = 3, MOST = 16 };
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 3);
    if (!x.value)
        return false;
    const int64_t blocks = extent(x.value, 1), c = extent(x.value, x.value->type.rank - 1);
    if (blocks == 0 || c == 0 || c > MOST || qn_rg_elements(&x.value->type) > QN_RG_MAX_ELEMENTS / BLOCKS)
        return false;
    qn_value *xs[3] = { x.value };
    const int n = 1 + qn_rg_below(g, 3);
    for (int i = 1; i < n; i++) {
        qn_rg_item y = qn_rg_like(g, &x.value->type);
        xs[i] = y.value;
        x.bound = fmax(x.bound, y.bound);
        x.exact = x.exact && y.exact;
    }
    int64_t lanes[BLOCKS * MOST];
    const int made = (1 + qn_rg_below(g, BLOCKS)) * (int)c;
    for (int i = 0; i < made; i++)
        lanes[i] = qn_rg_below(g, (int)(n * blocks * c) + 1) - 1;
    return push_like(g, qn_b_gather_packed(&g->b, n, xs, made, lanes), x);
}

static bool reverse(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    int64_t axes[2] = { qn_rg_below(g, x.value->type.rank) };
    int n = 1;
    if (x.value->type.rank > 1 && qn_rg_chance(g, 30))
        axes[n++] = (axes[0] + 1) % x.value->type.rank;
    return push_like(g, qn_b_reverse(&g->b, x.value, n, axes), x);
}

/* ---- by index ---- */

static qn_value *any_start(qn_rg *g)
{
    return qn_b_scalar_int(&g->b, QUERN_I64, qn_rg_below(g, 9) - 2); /* some are clamped */
}

static bool dynamic_slice(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    qn_value *starts[QN_MAX_RANK];
    qn_dim sizes[QN_MAX_RANK];
    for (int i = 0; i < x.value->type.rank; i++) {
        int64_t n = extent(x.value, i);
        starts[i] = any_start(g);
        sizes[i] = n > 1 ? constant(g, 1 + qn_rg_below(g, (int)n)) : x.value->type.dims[i];
    }
    qn_value *y = qn_b_dynamic_slice(&g->b, x.value, starts, sizes);
    if (qn_rg_chance(g, 50))
        return push_like(g, y, x);
    qn_rg_item update = qn_rg_like(g, &y->type);
    for (int i = 0; i < x.value->type.rank; i++)
        starts[i] = any_start(g);
    y = qn_b_dynamic_update_slice(&g->b, x.value, update.value, starts);
    return qn_rg_push(g, y, fmax(x.bound, update.bound), x.exact && update.exact);
}

static bool gather(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    int axis = qn_rg_below(g, x.value->type.rank), rank = qn_rg_below(g, 3);
    int64_t n = extent(x.value, axis), dims[2] = { 1 + qn_rg_below(g, 4), 1 + qn_rg_below(g, 3) };
    if (n < 1 || qn_rg_elements(&x.value->type) * 12 > QN_RG_MAX_ELEMENTS * n)
        return false;
    return push_like(g, qn_b_gather(&g->b, x.value, qn_rg_int_constant(g, rank, dims, -n, n), axis), x);
}

static int64_t least_extent(qn_value *x, int from, int to)
{
    int64_t least = INT32_MAX;
    for (int i = from; i < to; i++)
        least = extent(x, i) < least ? extent(x, i) : least;
    return least;
}

static bool gather_nd(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    int rank = x.value->type.rank, batch = rank > 1 && extent(x.value, 0) > 0 ? qn_rg_below(g, 2) : 0;
    int k = 1 + qn_rg_below(g, rank - batch);
    int64_t least = least_extent(x.value, batch, batch + k), dims[3];
    int n = 0;
    if (least < 1 || qn_rg_elements(&x.value->type) > QN_RG_MAX_ELEMENTS / 4)
        return false;
    if (batch)
        dims[n++] = extent(x.value, 0);
    dims[n++] = 1 + qn_rg_below(g, 4);
    dims[n++] = k;
    qn_value *indices = qn_rg_int_constant(g, n, dims, -least, least);
    return push_like(g, qn_b_gather_nd(&g->b, x.value, indices, batch), x);
}

/* Static dims of indices into x along `axis`: no larger than x elsewhere. */
static qn_value *element_indices(qn_rg *g, qn_value *x, int axis, int64_t *dims)
{
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = i == axis ? 1 + qn_rg_below(g, 4) : 1 + qn_rg_below(g, (int)extent(x, i));
    return qn_rg_int_constant(g, x->type.rank, dims, -extent(x, axis), extent(x, axis));
}

static bool gather_elements(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1);
    if (!x.value || !is_static(x.value) || least_extent(x.value, 0, x.value->type.rank) < 1)
        return false;
    int axis = qn_rg_below(g, x.value->type.rank);
    int64_t dims[QN_MAX_RANK];
    qn_value *indices = element_indices(g, x.value, axis, dims);
    return push_like(g, qn_b_gather_elements(&g->b, x.value, indices, axis), x);
}

/* Sums of several updates may be taken in any order. */
static qn_kind scatter_kind(qn_rg *g, const qn_type *type)
{
    static const qn_kind kinds[] = { QN_SUM, QN_SET, QN_KIND_MAX, QN_KIND_MIN };
    if (qn_rg_has(g, QN_RANDOM_SMOOTH))
        return QN_SUM;
    return kinds[type->dtype == QUERN_BOOL ? 1 + qn_rg_below(g, 3) : qn_rg_below(g, 4)];
}

static bool scatter(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick(g, QN_ANY_DTYPE, 1), updates;
    if (!x.value || !is_static(x.value) || least_extent(x.value, 0, x.value->type.rank) < 1)
        return false;
    const qn_type *type = &x.value->type;
    qn_kind kind = scatter_kind(g, type);
    int64_t dims[QN_MAX_RANK + 2];
    qn_value *y;
    if (qn_rg_chance(g, 50)) {
        int axis = qn_rg_below(g, type->rank);
        qn_value *indices = element_indices(g, x.value, axis, dims);
        updates = qn_rg_fresh_static(g, type->dtype, type->rank, dims);
        y = qn_b_scatter_elements(&g->b, kind, x.value, indices, updates.value, axis);
    } else {
        int k = 1 + qn_rg_below(g, type->rank);
        dims[0] = 1 + qn_rg_below(g, 4);
        dims[1] = k;
        int64_t least = least_extent(x.value, 0, k);
        qn_value *indices = qn_rg_int_constant(g, 2, dims, -least, least);
        for (int i = k; i < type->rank; i++)
            dims[1 + i - k] = extent(x.value, i);
        updates = qn_rg_fresh_static(g, type->dtype, 1 + type->rank - k, dims);
        y = qn_b_scatter_nd(&g->b, kind, x.value, indices, updates.value);
    }
    bool sums = kind == QN_SUM;
    return qn_rg_push(g, y, x.bound + 4 * updates.bound,
                      x.exact && updates.exact && !(sums && qn_dtype_is_float(type->dtype)));
}

/* ---- order ---- */

static bool sort(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick_exact(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    qn_rg_item y = qn_rg_like(g, &x.value->type);
    qn_node *node = qn_b_sort(&g->b, 2, (qn_value *[]){ x.value, y.value },
                              qn_rg_below(g, x.value->type.rank), qn_rg_chance(g, 50));
    return node && push_like(g, &node->results[0], x) && push_like(g, &node->results[1], y);
}

static bool top_k(qn_rg *g)
{
    qn_rg_item x = qn_rg_pick_exact(g, QN_ANY_DTYPE, 1);
    if (!x.value)
        return false;
    int axis = qn_rg_below(g, x.value->type.rank);
    if (extent(x.value, axis) < 1)
        return false;
    qn_dim k = constant(g, 1 + qn_rg_below(g, (int)extent(x.value, axis)));
    qn_node *node = qn_b_top_k(&g->b, x.value, axis, k, qn_rg_chance(g, 50));
    if (!node || !push_like(g, &node->results[0], x))
        return false;
    return !qn_rg_has(g, QN_RANDOM_INTS) || qn_rg_push(g, &node->results[1], 0, true);
}

const qn_rg_choice qn_rg_movement[] = {
    { broadcast, 6, 0, true },
    { reshape, 6, 0, true },
    { transpose, 6, 0, true },
    { slice, 5, 0, true },
    { pad, 3, 0, true },
    { concatenate, 3, 0, true },
    { gather_packed, 2, 0, false },
    { reverse, 2, 0, true },
    { dynamic_slice, 3, QN_RANDOM_INDEX, true },
    { gather, 3, QN_RANDOM_INDEX, true },
    { gather_nd, 2, QN_RANDOM_INDEX, true },
    { gather_elements, 2, QN_RANDOM_INDEX, true },
    { scatter, 3, QN_RANDOM_INDEX, true },
    { sort, 2, QN_RANDOM_INDEX, false },
    { top_k, 2, QN_RANDOM_INDEX, false },
    { 0 },
};
