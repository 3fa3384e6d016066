/* Parts of the kernels for attention: see attention_tile.h. */
#include "passes/attention_tile.h"

#include <math.h>

#include "passes/passes.h"
#include "passes/terms.h"
#include "passes/words.h"

enum { UNROLL = 2, MOST_CARRIED = 2 * QN_ATTENTION_ROWS + 8 };

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&a->w.b)

int qn_attention_rows(const qn_machine *machine)
{
    enum { BY_LANE = 8 }; /* a vector of each row's x takes a register, too */
    return machine->by_lane                  ? BY_LANE
           : machine->vector_registers >= 32 ? QN_ATTENTION_ROWS
                                             : QN_ATTENTION_ROWS / 2;
}

qn_kinst *qn_attention_for(qn_attention *a, qn_kvalue *low, qn_kvalue *high)
{
    return qn_kb_for(&a->w.b, low, high, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
}

void qn_attention_end(qn_attention *a, qn_kinst *loop)
{
    qn_kb_end_for(&a->w.b, loop, NULL);
}

qn_kinst *qn_attention_lanes(qn_attention *a, qn_kvalue *low, qn_kvalue *high)
{
    return qn_kb_for(&a->w.b, low, high, INDEX(1), QN_TAG_VECTOR, 0, NULL, NULL);
}

qn_kvalue *qn_attention_number(qn_attention *a, double value)
{
    return qn_kb_float(&a->w.b, (qn_ktype){ QUERN_F32, 1 }, value);
}

qn_kvalue *qn_attention_whole(qn_attention *a, qn_kvalue *x)
{
    return MUL(DIV(ADD(x, INDEX(a->lanes - 1)), INDEX(a->lanes)), INDEX(a->lanes));
}

void qn_attention_fill(qn_attention *a, qn_kbuffer *buffer, qn_kvalue *from, qn_kvalue *low, qn_kvalue *high,
                       double value)
{
    qn_kinst *loop = qn_attention_lanes(a, low, high);
    qn_kb_store(&a->w.b, buffer, ADD(from, qn_loop_counter(loop)), qn_attention_number(a, value), NULL);
    qn_attention_end(a, loop);
}

qn_kvalue *qn_attention_seen(qn_attention *a, qn_kvalue *past)
{
    return ADD(past, SUB(a->n_keys_value, a->n_queries_value));
}

void qn_attention_read(qn_attention *a, const qn_node *node, int mask)
{
    qn_ispace *space = &a->w.space;
    const qn_type *q = &node->operands[0]->type, *k = &node->operands[1]->type, *v = &node->operands[2]->type;
    a->q = node->operands[0];
    a->mask = node->n_operands > mask ? node->operands[mask] : NULL;
    a->lanes = a->w.lowering->options->machine->vector_bytes / 4;
    a->scale = qn_attr_float(node, QN_ATTR_SCALE);
    a->causal = qn_attr_bool(node, QN_ATTR_CAUSAL);
    a->batches = qn_ispace_import(space, q->dims[0]);
    a->heads = qn_ispace_import(space, q->dims[1]);
    a->n_queries = qn_ispace_import(space, q->dims[2]);
    a->groups = qn_ispace_import(space, k->dims[1]);
    a->n_keys = qn_ispace_import(space, v->dims[2]);
    a->batch = qn_ispace_var(space, a->batches, false);
    a->head = qn_ispace_var(space, a->heads, false);
    a->query = qn_ispace_var(space, a->n_queries, false);
    a->key = qn_ispace_var(space, a->n_keys, false);
    a->n_queries_value = qn_writer_index(&a->w, a->n_queries);
    a->n_keys_value = qn_writer_index(&a->w, a->n_keys);
}

qn_kvalue *qn_attention_hides(qn_attention *a, qn_kvalue *max)
{
    return qn_kb_compare(&a->w.b, QN_EQ, max, qn_kb_float(&a->w.b, max->type, -INFINITY));
}

/* May such numbers hide a key? Those that are looked up or learned don't. */
static bool may_hide(const qn_value *mask, int depth)
{
    const qn_node *node = mask->node;
    qn_scalar s;
    if (!qn_dtype_is_float(mask->type.dtype))
        return false;
    if (qn_value_splat(mask, &s))
        return s.f == -INFINITY;
    if (!node || depth == 0 || (qn_ops[node->op].class != QN_ELEMENTWISE && !qn_ix_moves(node)))
        return false;
    for (int i = 0; i < node->n_operands; i++)
        if (may_hide(node->operands[i], depth - 1))
            return true;
    return false;
}

/* Are there enough keys for a look at the mask, which is a cost where it hides none? */
static bool is_worth_a_look(const qn_attention *a)
{
    enum { FEW_KEYS = 64, DEPTH = 8 };
    if (!a->mask || a->n_keys->max <= FEW_KEYS || qn_dim_is(a->mask->type.dims[3], 1))
        return false;
    return qn_dim_is(a->mask->type.dims[2], 1) || !qn_dim_is_const(a->n_keys) ||
           a->mask->type.dtype == QUERN_BOOL || may_hide(a->mask, DEPTH);
}

/* Does the mask show the key at work to the query at work? */
static qn_kvalue *shows(qn_attention *a)
{
    qn_writer *w = &a->w;
    const qn_dim vars[4] = { a->batch, a->head, a->query, a->key };
    qn_dim index[4];
    for (int i = 0; i < 4; i++)
        index[i] = qn_dim_is(a->mask->type.dims[i], 1) ? qn_dim_const(w->space.dims, 0) : vars[i];
    qn_kvalue *mask = qn_writer_value(w, a->mask, index);
    return a->mask->type.dtype == QUERN_BOOL
               ? mask
               : qn_kb_compare(&w->b, QN_NE, mask, qn_kb_float(&w->b, mask->type, -INFINITY));
}

/* The query of a tile's row: the last rows may repeat the last one. */
static void go_to_query(qn_attention *a, qn_kvalue *first_query, qn_kvalue *row)
{
    qn_ispace_set(&a->w.space, a->query, MIN(ADD(first_query, row), SUB(a->n_queries_value, INDEX(1))));
}

qn_kvalue *qn_attention_shown(qn_attention *a, int rows, qn_kvalue *first_query, qn_kvalue *end)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    if (!is_worth_a_look(a))
        return end;
    rows = qn_dim_is(a->mask->type.dims[2], 1) ? 1 : rows;
    /* Mostly somebody sees the last key, and that is all there is to know. */
    qn_kvalue *seen = INDEX(0);
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(rows), INDEX(1), QN_TAG_SERIAL, 1, &seen, NULL);
    size_t mark = qn_writer_mark(w);
    go_to_query(a, first_query, qn_loop_counter(loop));
    qn_ispace_set(&w->space, a->key, MAX(SUB(end, INDEX(1)), INDEX(0)));
    seen = MAX(seen, qn_kb_select(b, shows(a), end, INDEX(0)));
    qn_writer_forget(w, mark);
    qn_kb_end_carry(b, loop, &seen);

    qn_kvalue *last = seen;
    loop =
        qn_kb_carry(b, INDEX(0), qn_kb_select(b, qn_kb_compare(b, QN_LT, last, end), INDEX(rows), INDEX(0)),
                    INDEX(1), QN_TAG_SERIAL, 1, &last, NULL);
    mark = qn_writer_mark(w);
    go_to_query(a, first_query, qn_loop_counter(loop));
    const qn_kind kind = QN_KIND_MAX;
    qn_kvalue *none = qn_kb_const(b, (qn_ktype){ QUERN_I32, 1 }, (qn_scalar){ .i = 0 }), *most = none;
    qn_writer_loop keys = qn_writer_for(w, a->key, INDEX(0), end, QN_TAG_VECTOR, 1, &most, &kind);
    qn_kvalue *past = qn_kb_convert(b, QUERN_I32, ADD(qn_loop_counter(keys.inst), INDEX(1)));
    most = qn_kb_binary(b, QN_OP_MAX, &keys.inst->blocks[0]->arguments[1],
                        qn_kb_select(b, shows(a), past, none));
    qn_writer_end_for(w, &keys, &most);
    last = MAX(last, qn_kb_convert(b, QUERN_I64, &keys.inst->results[0]));
    qn_writer_forget(w, mark);
    qn_kb_end_carry(b, loop, &last);
    return last;
}

void qn_attention_mask(qn_attention *a, qn_kvalue *from, qn_kvalue *first, qn_kvalue *n)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    const qn_dim vars[4] = { a->batch, a->head, a->query, a->key };
    qn_dim index[4];
    for (int i = 0; i < 4; i++)
        index[i] = qn_dim_is(a->mask->type.dims[i], 1) ? qn_dim_const(w->space.dims, 0) : vars[i];
    qn_writer_loop loop = qn_writer_for(w, a->key, first, ADD(first, n), QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *key = loop.inst ? SUB(qn_loop_counter(loop.inst), first) : INDEX(0);
    qn_kvalue *score = qn_kb_load(b, a->scores, ADD(from, key), 1),
              *mask = qn_writer_value(w, a->mask, index);
    score = a->mask->type.dtype == QUERN_BOOL
                ? qn_kb_select(b, mask, score, qn_attention_number(a, -INFINITY))
                : qn_kb_binary(b, QN_OP_ADD, score, mask);
    qn_kb_store(b, a->scores, ADD(from, key), score, NULL);
    qn_writer_end_for(w, &loop, NULL);
}

void qn_attention_product(qn_attention *a, int rows, int vectors, qn_kbuffer *x, int64_t x_stride,
                          qn_kbuffer *y, int64_t y_stride, qn_kvalue *panel, qn_kvalue *high,
                          qn_kvalue *ahead, qn_kvalue **acc)
{
    qn_attention_product_of(a, rows, vectors, (qn_attention_side){ x, INDEX(0), x_stride, 1 }, y, y_stride,
                            panel, high, ahead, NULL, acc);
}

/* A product on its way: acc += x[rows, k] * y[k, columns] for some k. */
typedef struct product {
    qn_attention *a;
    int rows, vectors;
    qn_attention_side x;
    qn_kbuffer *y;
    int64_t y_stride;
    qn_kvalue *panel, *ahead;
    const qn_attention_beside *beside;
} product;

/* Steps of `step` from low to high. Of as many as there are lanes x is loaded in vectors, where the machine multiplies by lanes. */
static void product_loop(const product *p, qn_kvalue *low, qn_kvalue *high, int64_t step, qn_kvalue **acc)
{
    qn_attention *a = p->a;
    qn_kbuilder *b = &a->w.b;
    const qn_attention_beside *beside = p->beside;
    const int n = p->rows * p->vectors, all = n + (beside ? beside->n : 0);
    const bool by_lane = !beside && step == a->lanes;
    qn_kvalue *x_lanes[QN_ATTENTION_ROWS], *carried[MOST_CARRIED];
    for (int i = 0; i < all; i++)
        carried[i] = i < n ? acc[i] : beside->values[i - n];
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(step), QN_TAG_SERIAL, all, carried, NULL);
    for (int64_t u = 0; u < step; u++) {
        qn_kvalue *k = ADD(qn_loop_counter(loop), INDEX(u)), *offset = MUL(k, INDEX(p->y_stride));
        qn_kvalue *columns[QN_ATTENTION_VECTORS];
        for (int v = 0; v < p->vectors; v++) {
            columns[v] = qn_kb_load(b, p->y, ADD(p->panel, ADD(offset, INDEX(v * a->lanes))), a->lanes);
            if (p->ahead && v % (64 / (4 * a->lanes)) == 0) /* once a line */
                qn_kb_prefetch(b, p->y, ADD(p->ahead, ADD(offset, INDEX(v * a->lanes))), 0);
        }
        for (int r = 0; r < p->rows; r++) {
            qn_kvalue *at = ADD(p->x.from, ADD(INDEX(r * p->x.stride), MUL(k, INDEX(p->x.step))));
            qn_kvalue *number =
                qn_word_in_turn(b, p->x.buffer, at, a->lanes, by_lane ? &x_lanes[r] : NULL, (int)u);
            for (int v = 0; v < p->vectors; v++)
                carried[r * p->vectors + v] = qn_kb_fma(b, number, columns[v], carried[r * p->vectors + v]);
        }
    }
    if (beside)
        beside->write(beside->user, qn_loop_counter(loop), carried + n);
    qn_kb_end_carry(b, loop, carried);
    for (int i = 0; i < all; i++)
        *(i < n ? &acc[i] : &beside->values[i - n]) = carried[i];
}

void qn_attention_product_of(qn_attention *a, int rows, int vectors, qn_attention_side x, qn_kbuffer *y,
                             int64_t y_stride, qn_kvalue *panel, qn_kvalue *high, qn_kvalue *ahead,
                             const qn_attention_beside *beside, qn_kvalue **acc)
{
    const product p = { a, rows, vectors, x, y, y_stride, panel, ahead, beside };
    const qn_machine *machine = a->w.lowering->options->machine;
    if (beside || !machine->by_lane || x.step != 1) {
        const int64_t step = beside ? beside->step : qn_k_proven_multiple(high, UNROLL) ? UNROLL : 1;
        product_loop(&p, INDEX(0), high, step, acc);
        return;
    }
    qn_kvalue *even = SUB(high, MOD(high, INDEX(a->lanes)));
    product_loop(&p, INDEX(0), even, a->lanes, acc);
    if (!qn_k_proven_multiple(high, a->lanes))
        product_loop(&p, even, high, 1, acc);
}
