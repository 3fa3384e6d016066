/* Ops that combine elements along axes. */
#include "backends/interp/interp.h"

/* In row-major order of the operand, so each result element sees its elements in order. A run of the innermost axis
 * goes into one accumulator (the axis is reduced) or into as many (it is kept). */
qn_status qn_eval_reduce(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    qn_array *r = &e->y[0];
    const qn_kind kind = qn_attr_reduce_kind(e->node);
    int n_axes;
    const int64_t *axes = qn_attr_ints(e->node, QN_ATTR_AXES, &n_axes);
    bool reduced[QN_MAX_RANK] = { false };
    for (int i = 0; i < n_axes; i++)
        reduced[axes[i]] = true;
    const int64_t n_out = qn_array_elements(r);
    int64_t r_strides[QN_MAX_RANK], strides[QN_MAX_RANK]; /* the latter per operand axis: 0 where reduced */
    qn_strides(r, r_strides);
    for (int i = 0, kept = 0; i < x->rank; i++)
        strides[i] = reduced[i] ? 0 : r_strides[kept++];
    const qn_scalar neutral = qn_neutral(kind, x->dtype);
    const bool quick = qn_quick_reduces(kind, x->dtype);
    qn_scalar *to = NULL;
    if (!quick)
        QN_TRY(qn_eval_scalars(e, n_out, &to));
    for (int64_t i = 0; i < n_out; i++)
        if (quick)
            qn_scalar_store(r->dtype, neutral, qn_element(r, i));
        else
            to[i] = neutral;

    /* The innermost run: as many trailing axes as are all reduced or all kept. */
    int outer = x->rank;
    while (outer > 0 && reduced[outer - 1] == reduced[x->rank - 1])
        outer--;
    const int64_t run = qn_product(x->dims, outer, x->rank), step = x->rank > 0 && !reduced[x->rank - 1];
    int64_t index[QN_MAX_RANK] = { 0 };
    qn_scalar v[QN_LANES];
    for (int64_t at = 0, total = qn_array_elements(x); at < total; at += run) {
        int64_t o = 0;
        for (int i = 0; i < outer; i++)
            o += index[i] * strides[i];
        if (quick)
            qn_quick_combine(kind, qn_element(r, o), step != 0, qn_element(x, at), run);
        for (int64_t k = 0; k < run && !quick; k += QN_LANES) {
            const int64_t n = run - k < QN_LANES ? run - k : QN_LANES;
            qn_lanes_load(x->dtype, qn_element(x, at + k), 1, n, v);
            qn_lanes_combine(kind, x->dtype, to + o + k * step, step, v, n);
        }
        qn_next_index(outer, x->dims, index);
    }
    if (!quick)
        qn_lanes_store(r->dtype, to, n_out, r->data, 1);
    return QUERN_OK;
}

qn_status qn_eval_arg_reduce(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    int64_t *r = e->y[0].data;
    const bool last = qn_attr_bool(e->node, QN_ATTR_LAST);
    const bool largest = qn_attr_reduce_kind(e->node) == QN_KIND_MAX;
    const qn_lines lines = qn_lines_of(x, (int)qn_attr_int(e->node, QN_ATTR_AXIS));
    qn_scalar *v;
    QN_TRY(qn_eval_scalars(e, lines.length, &v));
    for (int64_t l = 0; l < lines.n; l++) {
        qn_lanes_load(x->dtype, qn_element(x, qn_line_start(&lines, l)), lines.stride, lines.length, v);
        int64_t best = 0; /* also of an empty line */
        for (int64_t i = 1; i < lines.length; i++) {
            int order = qn_scalar_order(x->dtype, v[i], v[best]);
            if (!largest && qn_dtype_is_float(x->dtype) && order != 0) {
                /* NaN is the extreme of both kinds. */
                const bool nan = v[i].f != v[i].f, best_nan = v[best].f != v[best].f;
                order = nan || best_nan ? order : -order;
            } else if (!largest) {
                order = -order;
            }
            if (order > 0 || (last && order == 0))
                best = i;
        }
        r[l] = best;
    }
    return QUERN_OK;
}

qn_status qn_eval_cumulative(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    const qn_kind kind = qn_attr_reduce_kind(e->node);
    const bool exclusive = qn_attr_bool(e->node, QN_ATTR_EXCLUSIVE);
    const bool reverse = qn_attr_bool(e->node, QN_ATTR_REVERSE);
    const qn_lines lines = qn_lines_of(x, (int)qn_attr_int(e->node, QN_ATTR_AXIS));
    qn_scalar *v;
    QN_TRY(qn_eval_scalars(e, lines.length, &v));
    for (int64_t l = 0; l < lines.n; l++) {
        const int64_t start = qn_line_start(&lines, l);
        qn_lanes_load(x->dtype, qn_element(x, start), lines.stride, lines.length, v);
        qn_scalar acc = qn_neutral(kind, x->dtype);
        for (int64_t k = 0; k < lines.length; k++) {
            qn_scalar *at = &v[reverse ? lines.length - 1 - k : k];
            const qn_scalar before = acc;
            qn_lanes_combine(kind, x->dtype, &acc, 0, at, 1);
            *at = exclusive ? before : acc;
        }
        qn_lanes_store(x->dtype, v, lines.length, qn_element(&e->y[0], start), lines.stride);
    }
    return QUERN_OK;
}

/* ---- windows ---- */

/* Per axis, all integers: element k of the window at output o is operand element o * stride + k * dilation - low. */
typedef struct window {
    int rank;
    const int64_t *size, *stride, *dilation;
    int64_t low[QN_MAX_RANK];
} window;

static qn_status window_of(qn_eval *e, window *w)
{
    *w = (window){ .rank = e->x[0].rank,
                   .size = qn_attr_ints(e->node, QN_ATTR_WINDOW, NULL),
                   .stride = qn_attr_ints(e->node, QN_ATTR_STRIDE, NULL),
                   .dilation = qn_attr_ints(e->node, QN_ATTR_DILATION, NULL) };
    return qn_eval_dims(e, QN_ATTR_LOW, w->low);
}

/* Window element k is inside the operand for the outputs [first, end) of an axis. */
static void inside(const window *w, int axis, int64_t k, int64_t extent, int64_t n_out, int64_t *first,
                   int64_t *end)
{
    const int64_t at = k * w->dilation[axis] - w->low[axis], stride = w->stride[axis];
    *first = at >= 0 ? 0 : (-at - 1) / stride + 1;
    const int64_t room = extent - 1 - at;
    *end = room < 0 ? 0 : room / stride + 1;
    *first = *first < n_out ? *first : n_out;
    *end = *end < n_out ? *end : n_out;
}

/* For each element of the window, all outputs at once: a strided sum of boxes. */
qn_status qn_eval_reduce_window(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    qn_array *r = &e->y[0];
    const qn_kind kind = qn_attr_reduce_kind(e->node);
    const int rank = x->rank;
    const int64_t n_out = qn_array_elements(r);
    window w;
    QN_TRY(window_of(e, &w));
    if (n_out == 0)
        return QUERN_OK;
    qn_scalar *acc;
    QN_TRY(qn_eval_scalars(e, n_out, &acc));
    for (int64_t i = 0; i < n_out; i++)
        acc[i] = qn_neutral(kind, x->dtype);
    int64_t x_strides[QN_MAX_RANK], r_strides[QN_MAX_RANK], k[QN_MAX_RANK] = { 0 };
    qn_strides(x, x_strides);
    qn_strides(r, r_strides);
    qn_scalar v[QN_LANES];
    do {
        int64_t first[QN_MAX_RANK + 1], box[QN_MAX_RANK + 1], index[QN_MAX_RANK] = { 0 };
        bool empty = false;
        for (int a = 0; a < rank; a++) {
            int64_t end;
            inside(&w, a, k[a], x->dims[a], r->dims[a], &first[a], &end);
            box[a] = end - first[a];
            empty = empty || box[a] <= 0;
        }
        if (empty)
            continue;
        /* The last axis is the run; a scalar has none. */
        const int outer = rank > 0 ? rank - 1 : 0;
        const int64_t run = rank > 0 ? box[rank - 1] : 1, step = rank > 0 ? w.stride[rank - 1] : 1;
        do {
            int64_t o = 0, from = 0;
            for (int a = 0; a < rank; a++) {
                const int64_t at = first[a] + (a < outer ? index[a] : 0);
                o += at * r_strides[a];
                from += (at * w.stride[a] + k[a] * w.dilation[a] - w.low[a]) * x_strides[a];
            }
            for (int64_t i = 0; i < run; i += QN_LANES) {
                const int64_t n = run - i < QN_LANES ? run - i : QN_LANES;
                qn_lanes_load(x->dtype, qn_element(x, from + i * step), step, n, v);
                qn_lanes_combine(kind, x->dtype, acc + o + i, 1, v, n);
            }
        } while (qn_next_index(outer, box, index));
    } while (qn_next_index(rank, w.size, k));
    qn_lanes_store(r->dtype, acc, n_out, r->data, 1);
    return QUERN_OK;
}

qn_status qn_eval_select_and_scatter(qn_eval *e)
{
    const qn_array *x = &e->x[0], *g = &e->x[1];
    qn_array *r = &e->y[0];
    const int rank = x->rank;
    window w;
    QN_TRY(window_of(e, &w));
    qn_scalar *acc;
    QN_TRY(qn_eval_scalars(e, qn_array_elements(r), &acc));
    for (int64_t i = 0; i < qn_array_elements(r); i++)
        acc[i].f = 0;
    int64_t strides[QN_MAX_RANK], o[QN_MAX_RANK] = { 0 };
    qn_strides(x, strides);
    for (int64_t at = 0; at < qn_array_elements(g); at++, qn_next_index(rank, g->dims, o)) {
        int64_t k[QN_MAX_RANK] = { 0 }, best = -1;
        qn_scalar best_value = { 0 };
        do {
            int64_t from = 0;
            bool in = true;
            for (int a = 0; a < rank; a++) {
                const int64_t i = o[a] * w.stride[a] + k[a] * w.dilation[a] - w.low[a];
                in = in && i >= 0 && i < x->dims[a];
                from += in ? i * strides[a] : 0;
            }
            if (!in)
                continue;
            const qn_scalar v = qn_scalar_load(x->dtype, qn_element(x, from));
            if (best < 0 || qn_scalar_order(x->dtype, v, best_value) > 0) {
                best = from;
                best_value = v;
            }
        } while (qn_next_index(rank, w.size, k));
        if (best >= 0) /* else the window lies in the padding */
            acc[best].f += qn_scalar_load(g->dtype, qn_element(g, at)).f;
    }
    qn_lanes_store(r->dtype, acc, qn_array_elements(r), r->data, 1);
    return QUERN_OK;
}
