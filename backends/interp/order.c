/* Ops that depend on the order of elements. */
#include "backends/interp/interp.h"

#include <string.h>

/* Sorts the indices 0 … n - 1 by key, stably, into `order`; `other` is as large. Bottom-up merge sort. */
static void sort_indices(qn_dtype dtype, bool descending, const qn_scalar *keys, int64_t n, int64_t *order,
                         int64_t *other)
{
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    int64_t *from = order, *to = other;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t low = 0; low < n; low += 2 * width) {
            const int64_t middle = low + width < n ? low + width : n;
            const int64_t high = low + 2 * width < n ? low + 2 * width : n;
            int64_t a = low, b = middle;
            for (int64_t k = low; k < high; k++) {
                bool second = a == middle;
                if (a < middle && b < high) {
                    const int sign = qn_scalar_order(dtype, keys[from[a]], keys[from[b]]);
                    second = descending ? sign < 0 : sign > 0; /* equals: the first one first */
                }
                to[k] = second ? from[b++] : from[a++];
            }
        }
        int64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != order && n > 0)
        memcpy(order, from, (size_t)n * sizeof *order);
}

typedef struct sorter {
    qn_lines lines;
    qn_scalar *keys;
    int64_t *order, *other;
} sorter;

static qn_status sorter_new(qn_eval *e, int axis, sorter *s)
{
    qn_scalar *memory;
    s->lines = qn_lines_of(&e->x[0], axis);
    const int64_t n = s->lines.length;
    QN_TRY(qn_eval_scalars(e, n, &s->keys));
    QN_TRY(qn_eval_scalars(e, n, &memory));
    s->order = &memory->i;
    QN_TRY(qn_eval_scalars(e, n, &memory));
    s->other = &memory->i;
    return QUERN_OK;
}

static void sort_line(const sorter *s, const qn_array *keys, int64_t line, bool descending)
{
    const int64_t n = s->lines.length;
    qn_lanes_load(keys->dtype, qn_element(keys, qn_line_start(&s->lines, line)), s->lines.stride, n, s->keys);
    sort_indices(keys->dtype, descending, s->keys, n, s->order, s->other);
}

qn_status qn_eval_sort(qn_eval *e)
{
    const bool descending = qn_attr_bool(e->node, QN_ATTR_DESCENDING);
    sorter s;
    QN_TRY(sorter_new(e, (int)qn_attr_int(e->node, QN_ATTR_AXIS), &s));
    for (int64_t l = 0; l < s.lines.n; l++) {
        const int64_t start = qn_line_start(&s.lines, l);
        sort_line(&s, &e->x[0], l, descending);
        for (int k = 0; k < e->node->n_operands; k++)
            for (int64_t i = 0; i < s.lines.length; i++)
                memcpy(qn_element(&e->y[k], start + i * s.lines.stride),
                       qn_element(&e->x[k], start + s.order[i] * s.lines.stride),
                       qn_dtype_bytes(e->x[k].dtype));
    }
    return QUERN_OK;
}

qn_status qn_eval_top_k(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    const int axis = (int)qn_attr_int(e->node, QN_ATTR_AXIS);
    const bool largest = qn_attr_bool(e->node, QN_ATTR_LARGEST);
    sorter s;
    QN_TRY(sorter_new(e, axis, &s));
    const qn_lines out = qn_lines_of(&e->y[0], axis);
    if (out.length > s.lines.length)
        return qn_eval_error(e, QUERN_ERROR_ARGUMENT, "top_k: k is %lld, but axis %d has %lld elements",
                             (long long)out.length, axis, (long long)s.lines.length);
    if (qn_array_elements(&e->y[0]) == 0)
        return QUERN_OK;
    for (int64_t l = 0; l < s.lines.n; l++) {
        const int64_t from = qn_line_start(&s.lines, l), to = qn_line_start(&out, l);
        sort_line(&s, x, l, largest);
        for (int64_t i = 0; i < out.length; i++) {
            memcpy(qn_element(&e->y[0], to + i * out.stride),
                   qn_element(x, from + s.order[i] * s.lines.stride), qn_dtype_bytes(x->dtype));
            ((int64_t *)e->y[1].data)[to + i * out.stride] = s.order[i];
        }
    }
    return QUERN_OK;
}

/* The result's dims come from data: it finds them, and gives its symbol the count. */
qn_status qn_eval_non_zero(qn_eval *e)
{
    const qn_array *x = &e->x[0];
    const int64_t total = qn_array_elements(x);
    const qn_dtype dtype = x->dtype;
    qn_scalar v[QN_LANES];
    int64_t count = 0;
    qn_array *r = &e->y[0];
    int64_t *columns = NULL;
    for (int round = 0; round < 2; round++) { /* count, then write */
        int64_t found = 0, index[QN_MAX_RANK] = { 0 };
        for (int64_t at = 0; at < total; at += QN_LANES) {
            const int64_t n = total - at < QN_LANES ? total - at : QN_LANES;
            qn_lanes_load(dtype, qn_element(x, at), 1, n, v);
            for (int64_t i = 0; i < n; i++) {
                const bool set = qn_dtype_is_float(dtype) ? v[i].f != 0 : v[i].i != 0;
                if (columns && set)
                    for (int a = 0; a < x->rank; a++)
                        columns[a * count + found] = index[a];
                found += set;
                if (columns)
                    qn_next_index(x->rank, x->dims, index);
            }
        }
        if (round == 1)
            break;
        count = found;
        *r = (qn_array){ .dtype = QUERN_I64, .rank = 2, .dims = { x->rank, count } };
        QN_TRY(qn_array_alloc(r, e->in->arena, &e->node->loc, e->in->diags));
        columns = r->data;
    }
    const qn_dim symbol = qn_attr_dims(e->node, QN_ATTR_SYMBOL, NULL)[0];
    if (symbol->symbol < e->in->n_symbols)
        e->in->symbols[symbol->symbol] = count;
    return QUERN_OK;
}

qn_status qn_eval_extent(qn_eval *e)
{
    const qn_dim symbol = qn_node_binds(e->node);
    const int64_t value = *(const int64_t *)e->x[0].data;
    int64_t most;
    QN_TRY(qn_eval_dims(e, QN_ATTR_LIMIT, &most));
    most = most < symbol->max ? most : symbol->max;
    if (value < symbol->min || value > most)
        return qn_eval_error(e, QUERN_ERROR_RANGE, "%s is %lld here; the model was compiled for %lld to %lld",
                             symbol->name, (long long)value, (long long)symbol->min, (long long)most);
    *(int64_t *)e->y[0].data = value;
    if (symbol->symbol < e->in->n_symbols)
        e->in->symbols[symbol->symbol] = value;
    return QUERN_OK;
}
