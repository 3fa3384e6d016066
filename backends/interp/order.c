/* Ops that depend on the order of elements. */
#include "backends/interp/interp.h"

#include <math.h>
#include <string.h>

#include "ir/kernel_eval.h"

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

qn_status qn_eval_require(qn_eval *e)
{
    const qn_dim symbol = qn_node_binds(e->node);
    const int64_t value = *(const int64_t *)e->x[0].data;
    if (value != 1)
        return qn_eval_error(e, QUERN_ERROR_ARGUMENT, QN_REQUIRED);
    *(int64_t *)e->y[0].data = value;
    if (symbol->symbol < e->in->n_symbols)
        e->in->symbols[symbol->symbol] = value;
    return QUERN_OK;
}

/* ---- suppress ---- */

enum { LOW_0, LOW_1, HIGH_0, HIGH_1, AREA, BOX };

typedef struct boxes {
    const qn_array *all;
    qn_dtype dtype; /* computed in */
    bool centre;
    qn_scalar overlap;
} boxes;

static qn_scalar calculate(const boxes *b, qn_op op, qn_scalar x, qn_scalar y)
{
    return qn_keval_binary(op, b->dtype, x, y);
}

static void read_box(const boxes *b, int64_t batch, int64_t number, qn_scalar *box)
{
    qn_scalar x[4];
    qn_lanes_load(b->all->dtype, qn_element(b->all, (batch * b->all->dims[1] + number) * 4), 1, 4, x);
    for (int i = 0; i < 2; i++) {
        const qn_scalar half = calculate(b, QN_OP_MUL, x[i + 2], (qn_scalar){ .f = 0.5 });
        box[LOW_0 + i] =
            b->centre ? calculate(b, QN_OP_SUB, x[i], half) : calculate(b, QN_OP_MIN, x[i], x[i + 2]);
        box[HIGH_0 + i] =
            b->centre ? calculate(b, QN_OP_ADD, x[i], half) : calculate(b, QN_OP_MAX, x[i], x[i + 2]);
    }
    box[AREA] = calculate(b, QN_OP_MUL, calculate(b, QN_OP_SUB, box[HIGH_0], box[LOW_0]),
                          calculate(b, QN_OP_SUB, box[HIGH_1], box[LOW_1]));
}

static bool overlaps(const boxes *b, const qn_scalar *x, const qn_scalar *y)
{
    qn_scalar side[2];
    for (int i = 0; i < 2; i++) {
        const qn_scalar low = calculate(b, QN_OP_MAX, x[LOW_0 + i], y[LOW_0 + i]);
        const qn_scalar high = calculate(b, QN_OP_MIN, x[HIGH_0 + i], y[HIGH_0 + i]);
        side[i] = calculate(b, QN_OP_MAX, calculate(b, QN_OP_SUB, high, low), (qn_scalar){ .f = 0 });
    }
    const qn_scalar common = calculate(b, QN_OP_MUL, side[0], side[1]);
    const qn_scalar joint = calculate(b, QN_OP_SUB, calculate(b, QN_OP_ADD, x[AREA], y[AREA]), common);
    return qn_keval_compare(QN_GT, b->dtype, common, calculate(b, QN_OP_MUL, joint, b->overlap));
}

qn_status qn_eval_suppress(qn_eval *e)
{
    const qn_array *scores = &e->x[0];
    const qn_dtype given = e->x[1].dtype;
    boxes b = { .all = &e->x[1],
                .dtype = given == QUERN_F64 ? QUERN_F64 : QUERN_F32,
                .centre = qn_attr_bool(e->node, QN_ATTR_CENTRE) };
    qn_scalar least = { .f = 0 }, *kept;
    int64_t limit = *(const int64_t *)e->x[2].data, *out = e->y[0].data;
    const int64_t k = e->y[0].dims[2];
    sorter s;
    limit = limit < 0 ? 0 : limit < k ? limit : k;
    qn_lanes_load(given, e->x[3].data, 1, 1, &b.overlap);
    if (e->node->n_operands > 4)
        qn_lanes_load(scores->dtype, e->x[4].data, 1, 1, &least);
    QN_TRY(sorter_new(e, 2, &s));
    QN_TRY(qn_eval_scalars(e, (limit < s.lines.length ? limit : s.lines.length) * BOX, &kept));
    for (int64_t l = 0; l < s.lines.n; l++, out += k) {
        int64_t n = 0;
        sort_line(&s, scores, l, true);
        for (int64_t i = 0; i < s.lines.length && n < limit; i++) {
            const double score = s.keys[s.order[i]].f;
            bool keep = e->node->n_operands > 4 ? score > least.f : !isnan(score);
            qn_scalar *box = kept + n * BOX;
            read_box(&b, l / scores->dims[1], s.order[i], box);
            for (int64_t j = 0; j < n && keep; j++)
                keep = !overlaps(&b, kept + j * BOX, box);
            if (keep)
                out[n++] = s.order[i];
        }
        for (; n < k; n++)
            out[n] = -1;
    }
    return QUERN_OK;
}
