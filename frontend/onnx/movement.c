/* Operators that move elements without looking at them: shapes, concatenation, repetition; slice.c has slices. Each also moves known
 * contents, see contents.c. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* The constant extents; false when one is symbolic. */
static bool static_shape(int rank, const qn_dim *dims, int64_t *shape)
{
    for (int i = 0; i < rank; i++) {
        if (!qn_dim_is_const(dims[i]))
            return false;
        shape[i] = dims[i]->value;
    }
    return true;
}

/* Output 0 is input 0 with other dims: the same constant, contents, or a reshape. */
static void reshape_input(qn_onnx_node *n, int rank, const qn_dim *dims)
{
    qn_onnx_value *v = n->in[0];
    int64_t shape[QN_MAX_RANK];
    bool is_static = static_shape(rank, dims, shape);
    qn_dim from = qn_type_elements_dim(n->im->dims, &v->type), to = qn_onnx_dim(n, 1);
    for (int i = 0; i < rank; i++)
        to = qn_dim_mul(n->im->dims, to, dims[i]);
    if (qn_dim_is_const(from) && qn_dim_is_const(to) && from != to) {
        qn_onnx_malformed(n, "%lld elements cannot take a shape of %lld", (long long)from->value,
                          (long long)to->value);
        return;
    }
    if (v->tensor && is_static && !(n->im->keep_floats && qn_dtype_is_float(v->type.dtype))) {
        qn_tensor *t = QN_NEW(n->im->arena, qn_tensor);
        *t = *v->tensor;
        t->type = qn_type_static(n->im->module, t->type.dtype, rank, shape);
        t->hash = 0;
        qn_onnx_out_tensor(n, 0, t);
    } else if (v->dims && is_static) {
        qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, v->type.dtype, rank, shape, v->dims));
    } else {
        qn_onnx_out(n, 0, qn_b_reshape(&n->b, qn_onnx_in(n, 0), rank, dims));
    }
}

static void import_reshape(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_dim dims[QN_MAX_RANK];
    int rank, inferred = -1;
    if (!x)
        return;
    if (n->opset < 5) {
        const int64_t *shape = qn_onnx_attr_ints(n, "shape", &rank);
        if (!shape || rank > QN_MAX_RANK) {
            qn_onnx_malformed(n, "attribute shape is missing or too long");
            return;
        }
        for (int i = 0; i < rank; i++)
            dims[i] = qn_onnx_dim(n, shape[i]);
    } else if (!qn_onnx_in_extents(n, 1, QN_MAX_RANK, qn_type_elements_dim(n->im->dims, x), dims, &rank)) {
        return;
    }
    bool allow_zero = qn_onnx_attr_int(n, "allowzero", 0) != 0;
    /* What the -1 is found from leaves out dimensions that are copied, which may be 0. */
    qn_dim known = qn_onnx_dim(n, 1), total = known;
    bool copied[QN_MAX_RANK] = { false };
    for (int i = 0; i < rank; i++) {
        if (qn_dim_is(dims[i], 0) && !allow_zero) {
            if (i >= x->rank) {
                qn_onnx_malformed(n, "element %d of the shape copies a dimension that the input lacks", i);
                return;
            }
            dims[i] = x->dims[i];
            copied[i] = true;
            continue;
        } else if (qn_dim_is(dims[i], -1)) {
            if (inferred >= 0) {
                qn_onnx_malformed(n, "more than one element of the shape is -1");
                return;
            }
            inferred = i;
            continue;
        } else if (dims[i]->max < 0) {
            qn_onnx_malformed(n, "element %d of the shape is negative", i);
            return;
        }
        known = qn_dim_mul(n->im->dims, known, dims[i]);
    }
    if (inferred >= 0) {
        for (int i = 0; i < x->rank; i++)
            total = copied[i] ? total : qn_dim_mul(n->im->dims, total, x->dims[i]);
        if (qn_dim_is(known, 0)) {
            qn_onnx_malformed(n, "the -1 in the shape is undetermined, as another element is 0");
            return;
        }
        dims[inferred] = qn_dim_floordiv(n->im->dims, total, known);
    }
    reshape_input(n, rank, dims);
}

static void import_flatten(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int64_t axis = qn_onnx_attr_int(n, "axis", 1);
    if (axis < -x->rank || axis > x->rank) {
        qn_onnx_malformed(n, "axis %lld is outside of rank %d", (long long)axis, x->rank);
        return;
    }
    axis += axis < 0 ? x->rank : 0;
    qn_dim dims[2] = { qn_onnx_dim(n, 1), qn_onnx_dim(n, 1) };
    for (int i = 0; i < x->rank; i++)
        dims[i >= axis] = qn_dim_mul(n->im->dims, dims[i >= axis], x->dims[i]);
    reshape_input(n, 2, dims);
}

static void import_squeeze(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes, rank = 0;
    bool given;
    if (!x || !qn_onnx_axes(n, n->opset >= 13 ? 1 : -1, x->rank, axes, &n_axes, &given))
        return;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0, k = 0; i < x->rank; i++) {
        bool listed = k < n_axes && axes[k] == i;
        k += listed;
        if (listed && x->dims[i]->min > 1) {
            qn_onnx_malformed(n, "axis %d cannot be squeezed: its dimension is not 1", i);
            return;
        }
        if (!given && !qn_dim_is_const(x->dims[i])) {
            qn_onnx_needs_dim(n, x->dims[i]);
            qn_onnx_unsupported(n, "the axes must be given, as dimension %d is symbolic", i);
            return;
        }
        if (!listed && (given || !qn_dim_is(x->dims[i], 1)))
            dims[rank++] = x->dims[i];
    }
    reshape_input(n, rank, dims);
}

static void import_unsqueeze(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes = 0;
    bool given;
    if (!x)
        return;
    const int64_t *attr =
        qn_onnx_attr_ints(n, "axes", &n_axes); /* their number gives the rank they are read with */
    if (!attr && !qn_onnx_in_ints(n, 1, QN_MAX_RANK, axes, &n_axes))
        return;
    if (n_axes > QN_MAX_RANK - x->rank) {
        qn_onnx_unsupported(n, "the result's rank is too high; at most %d is supported", QN_MAX_RANK);
        return;
    }
    int rank = x->rank + n_axes;
    if (!qn_onnx_axes(n, 1, rank, axes, &n_axes, &given))
        return;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0, k = 0, from = 0; i < rank; i++)
        dims[i] = k < n_axes && axes[k] == i ? (k++, qn_onnx_dim(n, 1)) : x->dims[from++];
    reshape_input(n, rank, dims);
}

static void import_identity(qn_onnx_node *n)
{
    qn_onnx_out_any(n, 0, qn_onnx_in_any(n, 0));
}

static void import_transpose(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int n_perm;
    const int64_t *given = qn_onnx_attr_ints(n, "perm", &n_perm);
    int64_t perm[QN_MAX_RANK];
    bool seen[QN_MAX_RANK] = { false }, good = !given || n_perm == x->rank;
    for (int i = 0; i < x->rank && good; i++) {
        perm[i] = given ? given[i] : x->rank - 1 - i;
        if (perm[i] < 0 && given)
            perm[i] += x->rank;
        good = perm[i] >= 0 && perm[i] < x->rank && !seen[perm[i]];
        if (good)
            seen[perm[i]] = true;
    }
    if (!good) {
        qn_onnx_malformed(n, "attribute perm is not a permutation of the axes");
        return;
    }
    qn_onnx_contents c;
    if (!qn_onnx_contents_of(n->im, n->in[0], &c)) {
        qn_onnx_out(n, 0, qn_b_transpose(&n->b, qn_onnx_in(n, 0), perm));
        return;
    }
    int64_t shape[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 }, source[QN_MAX_RANK];
    int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, c.n);
    for (int i = 0; i < c.rank; i++)
        shape[i] = c.shape[perm[i]];
    for (int64_t k = 0; k < c.n; k++, qn_onnx_next_index(c.rank, shape, index)) {
        for (int i = 0; i < c.rank; i++)
            source[perm[i]] = index[i];
        map[k] = qn_onnx_position(c.rank, c.shape, source);
    }
    qn_onnx_contents_move(n, 0, &c, c.rank, shape, map);
}

/* Contents side by side, as one list of expressions or of bytes. */
static bool concat_contents(qn_onnx_node *n, int axis)
{
    int64_t shape[QN_MAX_RANK] = { 0 };
    qn_onnx_contents *parts = QN_NEW_ARRAY(n->im->arena, qn_onnx_contents, n->n_in);
    bool data = true, dims = true;
    for (int k = 0; k < n->n_in; k++) {
        if (!qn_onnx_contents_of(n->im, n->in[k], &parts[k]) || parts[k].dtype != parts[0].dtype ||
            parts[k].rank != parts[0].rank)
            return false;
        data &= parts[k].data != NULL;
        dims &= parts[k].dims != NULL;
        for (int i = 0; i < parts[k].rank; i++)
            if (i == axis)
                shape[i] += parts[k].shape[i];
            else if (parts[k].shape[i] != parts[0].shape[i])
                return false;
            else
                shape[i] = parts[k].shape[i];
    }
    int rank = parts[0].rank;
    int64_t count = qn_onnx_count(rank, shape);
    if (count < 0 || (!data && !dims))
        return false;
    size_t size = data ? qn_dtype_bytes(parts[0].dtype) : sizeof(qn_dim);
    uint8_t *all = qn_arena_alloc(n->im->arena, (size_t)count * size), *to = all;
    int64_t outer = 1;
    for (int i = 0; i < axis; i++)
        outer *= shape[i];
    for (int64_t row = 0; row < outer; row++)
        for (int k = 0; k < n->n_in; k++) {
            size_t bytes = (size_t)(parts[k].n / outer) * size;
            const uint8_t *from = data ? parts[k].data : (const uint8_t *)parts[k].dims;
            memcpy(to, from + (size_t)row * bytes, bytes);
            to += bytes;
        }
    if (data)
        qn_onnx_out_tensor(n, 0, qn_onnx_tensor_of(n->im, parts[0].dtype, rank, shape, all));
    else
        qn_onnx_out_any(n, 0,
                        qn_onnx_value_dims(n->im, parts[0].dtype, rank, shape, (const qn_dim *)(void *)all));
    return true;
}

static void import_concat(qn_onnx_node *n)
{
    const qn_type *first = qn_onnx_in_type(n, 0);
    int axis;
    if (!first || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 1), first->rank, &axis) ||
        concat_contents(n, axis))
        return;
    qn_value **parts = QN_NEW_ARRAY(n->im->arena, qn_value *, n->n_in);
    for (int k = 0; k < n->n_in; k++)
        parts[k] = qn_onnx_in(n, k);
    for (int k = 1; k < n->n_in && qn_onnx_ok(n); k++)
        for (int i = 0; i < first->rank && parts[k] && parts[k]->type.rank == first->rank; i++)
            if (i != axis)
                parts[k] = qn_onnx_with_dim(n, parts[k], i, first->dims[i]);
    if (qn_onnx_ok(n))
        qn_onnx_out(n, 0, n->n_in == 1 ? parts[0] : qn_b_concatenate(&n->b, n->n_in, parts, axis));
}

/* ---- repetition ---- */

/* The extent two dims broadcast to; NULL when they differ. */
static qn_dim common_dim(qn_dims *t, qn_dim x, qn_dim y)
{
    if (x == y || qn_dim_is(y, 1))
        return x;
    if (qn_dim_is(x, 1))
        return y;
    if (qn_dim_is_const(x) && qn_dim_is_const(y))
        return NULL;
    return qn_dim_select_one(t, x, y);
}

static void import_expand(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_dim shape[QN_MAX_RANK], dims[QN_MAX_RANK];
    int n_shape;
    if (!x || !qn_onnx_in_extents(n, 1, QN_MAX_RANK, NULL, shape, &n_shape))
        return;
    int rank = n_shape > x->rank ? n_shape : x->rank;
    for (int i = 0; i < rank; i++) {
        int from_x = i - (rank - x->rank), from_shape = i - (rank - n_shape);
        qn_dim a = from_x < 0 ? qn_onnx_dim(n, 1) : x->dims[from_x];
        qn_dim b = from_shape < 0 ? qn_onnx_dim(n, 1) : shape[from_shape];
        dims[i] =
            qn_dim_is(b, -1) ? a : common_dim(n->im->dims, a, b); /* -1, as in torch, is seen in exports */
        if (!dims[i]) {
            qn_onnx_malformed(n, "dimension %lld cannot be expanded to %lld", (long long)a->value,
                              (long long)b->value);
            return;
        }
    }
    qn_onnx_contents c;
    int64_t extents[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 };
    if (qn_onnx_contents_of(n->im, n->in[0], &c) && static_shape(rank, dims, extents) &&
        qn_onnx_count(rank, extents) >= 0) {
        int64_t count = qn_onnx_count(rank, extents);
        int64_t *map = QN_NEW_ARRAY(n->im->arena, int64_t, count);
        for (int64_t k = 0; k < count; k++, qn_onnx_next_index(rank, extents, index)) {
            map[k] = 0;
            for (int i = 0; i < c.rank; i++)
                map[k] = map[k] * c.shape[i] + (c.shape[i] == 1 ? 0 : index[i + rank - c.rank]);
        }
        qn_onnx_contents_move(n, 0, &c, rank, extents, map);
        return;
    }
    qn_onnx_out(n, 0, qn_b_broadcast_to(&n->b, qn_onnx_in(n, 0), rank, dims));
}

/* Each repeated axis becomes two, the first of them a broadcast, and one again. */
static void import_tile(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    qn_dim repeats[QN_MAX_RANK];
    int n_repeats;
    if (!x || !qn_onnx_in_extents(n, 1, QN_MAX_RANK, NULL, repeats, &n_repeats))
        return;
    int rank = x->type.rank;
    if (n_repeats != rank) {
        qn_onnx_malformed(n, "there must be one repeat per axis");
        return;
    }
    for (int i = 0; i < rank; i++) {
        qn_dim dims[QN_MAX_RANK + 1], merged[QN_MAX_RANK];
        int64_t axes[QN_MAX_RANK];
        if (!x || qn_dim_is(repeats[i], 1))
            continue;
        if (repeats[i]->max < 0 || rank == QN_MAX_RANK) {
            qn_onnx_unsupported(n, "a negative repeat, or too high a rank");
            return;
        }
        for (int k = 0; k < rank; k++) {
            merged[k] = k == i ? qn_dim_mul(n->im->dims, repeats[i], x->type.dims[k]) : x->type.dims[k];
            dims[k < i ? k : k + 1] = x->type.dims[k];
            axes[k] = k < i ? k : k + 1;
        }
        dims[i] = repeats[i];
        x = qn_b_reshape(b, qn_b_broadcast(b, x, rank + 1, dims, axes), rank, merged);
    }
    qn_onnx_out(n, 0, x);
}

/* ---- blocks ---- */

static void import_depth_to_space(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t block = qn_onnx_attr_int(n, "blocksize", 0);
    bool to_space = !strcmp(n->proto->op_type, "DepthToSpace");
    bool crd = qn_onnx_attr_is(n, "mode", "DCR", "CRD");
    if (!x)
        return;
    if (x->type.rank != 4 || block < 1 || block > 65536) {
        qn_onnx_malformed(n, "the input must have rank 4, and blocksize be positive");
        return;
    }
    qn_dim k = qn_onnx_dim(n, block);
    const qn_dim *d = x->type.dims;
    if (to_space) {
        qn_dim c = qn_dim_floordiv(t, d[1], qn_onnx_dim(n, block * block));
        qn_dim split_dcr[6] = { d[0], k, k, c, d[2], d[3] }, split_crd[6] = { d[0], c, k, k, d[2], d[3] };
        qn_dim merged[4] = { d[0], c, qn_dim_mul(t, d[2], k), qn_dim_mul(t, d[3], k) };
        x = qn_b_reshape(b, x, 6, crd ? split_crd : split_dcr);
        x = qn_b_transpose(b, x, crd ? (int64_t[]){ 0, 1, 4, 2, 5, 3 } : (int64_t[]){ 0, 3, 4, 1, 5, 2 });
        qn_onnx_out(n, 0, qn_b_reshape(b, x, 4, merged));
    } else {
        qn_dim h = qn_dim_floordiv(t, d[2], k), w = qn_dim_floordiv(t, d[3], k);
        qn_dim split[6] = { d[0], d[1], h, k, w, k };
        qn_dim merged[4] = { d[0], qn_dim_mul(t, d[1], qn_onnx_dim(n, block * block)), h, w };
        x = qn_b_reshape(b, x, 6, split);
        x = qn_b_transpose(b, x, crd ? (int64_t[]){ 0, 1, 3, 5, 2, 4 } : (int64_t[]){ 0, 3, 5, 1, 2, 4 });
        qn_onnx_out(n, 0, qn_b_reshape(b, x, 4, merged));
    }
}

const qn_onnx_op qn_onnx_movement_ops[] = {
    { "Reshape", NULL, 1, 0, import_reshape },
    { "Flatten", NULL, 1, 0, import_flatten },
    { "Squeeze", NULL, 1, 0, import_squeeze },
    { "Unsqueeze", NULL, 1, 0, import_unsqueeze },
    { "Identity", NULL, 1, 0, import_identity },
    { "Transpose", NULL, 1, 0, import_transpose },
    { "Concat", NULL, 1, 0, import_concat },
    { "Expand", NULL, 8, 0, import_expand },
    { "Tile", NULL, 6, 0, import_tile },
    { "DepthToSpace", NULL, 1, 0, import_depth_to_space },
    { "SpaceToDepth", NULL, 1, 0, import_depth_to_space },
    { 0 },
};
