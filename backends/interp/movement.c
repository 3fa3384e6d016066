/* Ops that only move elements, at indices that the node itself says: views, strided copies, fills. */
#include "backends/interp/interp.h"

#include <string.h>

qn_status qn_eval_view(qn_eval *e)
{
    if (qn_array_elements(&e->x[0]) != qn_array_elements(&e->y[0]))
        return qn_eval_error(e, QUERN_ERROR_ARGUMENT, "%s of %lld elements to %lld", qn_ops[e->node->op].name,
                             (long long)qn_array_elements(&e->x[0]), (long long)qn_array_elements(&e->y[0]));
    e->y[0].data = e->x[0].data;
    return QUERN_OK;
}

/* The result from the operand read with these strides (per result axis), beginning at element `offset`. */
static qn_status copy_from(qn_eval *e, int64_t offset, const int64_t *strides)
{
    qn_array *r = &e->y[0];
    int64_t to[QN_MAX_RANK];
    qn_strides(r, to);
    if (qn_array_elements(r) > 0)
        qn_copy_strided(qn_dtype_bytes(r->dtype), r->rank, r->dims, r->data, to, qn_element(&e->x[0], offset),
                        strides);
    return QUERN_OK;
}

qn_status qn_eval_broadcast(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    const int64_t *axes = qn_attr_ints(e->node, QN_ATTR_AXES, NULL);
    int64_t strides[QN_MAX_RANK], from[QN_MAX_RANK] = { 0 };
    qn_strides(x, strides);
    for (int i = 0; i < x->rank; i++) {
        const int64_t extent = e->y[0].dims[axes[i]];
        if (x->dims[i] != 1 && x->dims[i] != extent)
            return qn_eval_error(e, QUERN_ERROR_ARGUMENT,
                                 "broadcast of extent %lld to %lld (axis %lld): it has to be 1 or equal",
                                 (long long)x->dims[i], (long long)extent, (long long)axes[i]);
        from[axes[i]] = x->dims[i] == 1 ? 0 : strides[i];
    }
    return copy_from(e, 0, from);
}

qn_status qn_eval_transpose(qn_eval *e)
{
    const int64_t *perm = qn_attr_ints(e->node, QN_ATTR_PERM, NULL);
    int64_t strides[QN_MAX_RANK], from[QN_MAX_RANK];
    qn_strides(&e->x[0], strides);
    for (int i = 0; i < e->x[0].rank; i++)
        from[i] = strides[perm[i]];
    return copy_from(e, 0, from);
}

qn_status qn_eval_slice(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    const int64_t *stride = qn_attr_ints(e->node, QN_ATTR_STRIDE, NULL);
    int64_t start[QN_MAX_RANK], limit[QN_MAX_RANK], strides[QN_MAX_RANK], offset = 0;
    QN_TRY(qn_eval_dims(e, QN_ATTR_START, start));
    QN_TRY(qn_eval_dims(e, QN_ATTR_LIMIT, limit));
    qn_strides(x, strides);
    for (int i = 0; i < x->rank; i++) {
        if (start[i] < 0 || start[i] > limit[i] || limit[i] > x->dims[i])
            return qn_eval_error(e, QUERN_ERROR_ARGUMENT,
                                 "slice [%lld, %lld) of axis %d, whose extent is %lld", (long long)start[i],
                                 (long long)limit[i], i, (long long)x->dims[i]);
        offset += start[i] * strides[i];
        if (e->y[0].dims[i] > 1) /* else any stride will do, and its product may not fit */
            strides[i] *= stride[i];
    }
    return copy_from(e, offset, strides);
}

qn_status qn_eval_reverse(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    int n;
    const int64_t *axes = qn_attr_ints(e->node, QN_ATTR_AXES, &n);
    int64_t strides[QN_MAX_RANK], offset = 0;
    qn_strides(x, strides);
    for (int i = 0; i < n; i++) {
        offset += (x->dims[axes[i]] - 1) * strides[axes[i]];
        strides[axes[i]] = -strides[axes[i]];
    }
    return copy_from(e, offset, strides);
}

/* Operand element i of an axis is result element low + i * (interior + 1); those outside the result are cropped. */
qn_status qn_eval_pad(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    qn_array *r = &e->y[0];
    const size_t size = qn_dtype_bytes(r->dtype);
    const int64_t *interior = qn_attr_ints(e->node, QN_ATTR_INTERIOR, NULL);
    int64_t low[QN_MAX_RANK], to[QN_MAX_RANK], from[QN_MAX_RANK], box[QN_MAX_RANK];
    int64_t to_offset = 0, from_offset = 0;
    QN_TRY(qn_eval_dims(e, QN_ATTR_LOW, low));
    qn_strides(x, from);
    qn_strides(r, to);
    bool any = true;
    for (int i = 0; i < x->rank; i++) {
        if (low[i] < -QN_DIM_MAX_VALUE || low[i] > QN_DIM_MAX_VALUE || interior[i] > QN_DIM_MAX_VALUE)
            return qn_eval_error(e, QUERN_ERROR_ARGUMENT, "pad of axis %d by %lld, interior %lld", i,
                                 (long long)low[i], (long long)interior[i]);
        const int64_t step = x->dims[i] > 1 ? interior[i] + 1 : 1;
        const int64_t first = low[i] >= 0 ? 0 : (-low[i] + step - 1) / step;
        const int64_t room = r->dims[i] - 1 - low[i]; /* of the last element */
        const int64_t end = room < 0 ? 0 : room / step + 1 < x->dims[i] ? room / step + 1 : x->dims[i];
        box[i] = end > first ? end - first : 0;
        any = any && box[i] > 0;
        if (!any)
            continue;
        from_offset += first * from[i];
        to_offset += (low[i] + first * step) * to[i];
        to[i] *= step;
    }
    if (!any || qn_product(box, 0, x->rank) != qn_array_elements(r))
        qn_fill(size, r->data, qn_array_elements(r), e->x[1].data);
    if (any)
        qn_copy_strided(size, x->rank, box, qn_element(r, to_offset), to, qn_element(x, from_offset), from);
    return QUERN_OK;
}

qn_status qn_eval_concatenate(qn_eval *e)
{
    qn_array *r = &e->y[0];
    const int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    const int64_t outer = qn_product(r->dims, 0, axis), inner = qn_product(r->dims, axis + 1, r->rank);
    int64_t at = 0;
    for (int k = 0; k < e->node->n_operands; k++) {
        const qn_array *x = &e->x[k];
        const int64_t run = x->dims[axis] * inner, row = r->dims[axis] * inner;
        if (outer * run > 0)
            qn_copy_strided(qn_dtype_bytes(r->dtype), 2, (int64_t[]){ outer, run }, qn_element(r, at * inner),
                            (int64_t[]){ row, 1 }, x->data, (int64_t[]){ run, 1 });
        at += x->dims[axis];
    }
    return QUERN_OK;
}

qn_status qn_eval_gather_packed(qn_eval *e)
{
    qn_array *r = &e->y[0];
    const int64_t *lanes = qn_attr_ints(e->node, QN_ATTR_LANES, NULL), c = r->dims[r->rank - 1],
                  places = qn_product(r->dims, 2, r->rank - 1), blocks = r->dims[1];
    const size_t bytes = qn_dtype_bytes(r->dtype);
    for (int64_t n = 0; n < r->dims[0]; n++)
        for (int64_t i = 0; i < blocks * c; i++) {
            int64_t from = lanes[i];
            int k = 0;
            while (from >= 0 && from >= e->x[k].dims[1] * c)
                from -= e->x[k++].dims[1] * c;
            char *to = qn_element(r, ((n * blocks + i / c) * places) * c + i % c);
            const qn_array *x = &e->x[k];
            const char *source =
                from < 0 ? NULL : qn_element(x, ((n * x->dims[1] + from / c) * places) * c + from % c);
            for (int64_t p = 0; p < places; p++)
                if (source)
                    memcpy(to + (size_t)(p * c) * bytes, source + (size_t)(p * c) * bytes, bytes);
                else
                    memset(to + (size_t)(p * c) * bytes, 0, bytes);
        }
    return QUERN_OK;
}

/* Offset of a box of these sizes in x; starts are moved so that it fits. */
static qn_status clamped_offset(qn_eval *e, const qn_array *starts, const int64_t *sizes, int64_t *out)
{
    const qn_array *x = &e->x[0];
    int64_t strides[QN_MAX_RANK], offset = 0;
    qn_strides(x, strides);
    for (int i = 0; i < x->rank; i++) {
        const int64_t most = x->dims[i] - sizes[i];
        const int64_t at = qn_scalar_load(starts[i].dtype, starts[i].data).i;
        if (most < 0)
            return qn_eval_error(e, QUERN_ERROR_ARGUMENT, "%s of %lld elements of axis %d, which has %lld",
                                 qn_ops[e->node->op].name, (long long)sizes[i], i, (long long)x->dims[i]);
        offset += (at < 0 ? 0 : at > most ? most : at) * strides[i];
    }
    *out = offset;
    return QUERN_OK;
}

qn_status qn_eval_dynamic_slice(qn_eval *e)
{
    int64_t strides[QN_MAX_RANK], offset;
    QN_TRY(clamped_offset(e, e->x + 1, e->y[0].dims, &offset));
    qn_strides(&e->x[0], strides);
    return copy_from(e, offset, strides);
}

qn_status qn_eval_dynamic_update_slice(qn_eval *e)
{
    const qn_array *x = &e->x[0], *update = &e->x[1];
    qn_array *r = &e->y[0];
    const size_t size = qn_dtype_bytes(r->dtype);
    int64_t to[QN_MAX_RANK], from[QN_MAX_RANK], offset;
    QN_TRY(clamped_offset(e, e->x + 2, update->dims, &offset));
    if (qn_array_elements(r) > 0)
        memcpy(r->data, x->data, (size_t)qn_array_elements(r) * size);
    qn_strides(r, to);
    qn_strides(update, from);
    if (qn_array_elements(update) > 0)
        qn_copy_strided(size, update->rank, update->dims, qn_element(r, offset), to, update->data, from);
    return QUERN_OK;
}
