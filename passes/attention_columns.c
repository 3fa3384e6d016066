/* Attention's kernel where queries lie side by side in the lanes of vectors, and scores of a key in a row: k is read where it
 * lies, a number for all queries of the tile, and so are the weights by the product with v. Nobody has to pack k, and a
 * query's largest score and sum are found without going across lanes. What is turned instead are the tile's queries.
 *
 * The scores of a block of keys become weights in the loop that computes the scores of the next one: the units that multiply and
 * add, which bound it, are asked for a third of what exp takes. */
#include "passes/attention_columns.h"
#include "passes/terms.h"

#include <math.h>

enum {
    VECTORS = 2,              /* of queries */
    SUMS = 16,                /* vectors of sums of a product */
    WASTE = 8,                /* a part of so many queries at most is computed for nothing */
    MOST_WIDE = VECTORS * 16, /* queries of a tile */
    UNROLL = 2,
    LINE = 16,     /* elements of a line of the caches */
    MOST_LINES = 8 /* to fetch at a time */
};

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&a->t.w.b)

typedef qn_attention_kernel attention;

static int64_t wide(const attention *a)
{
    return (int64_t)VECTORS * a->t.lanes;
}

static qn_kvalue *vector(attention *a, double value)
{
    return qn_kb_float(&a->t.w.b, (qn_ktype){ QUERN_F32, a->t.lanes }, value);
}

/* ---- what it takes ---- */

int qn_attention_columns(const qn_machine *machine)
{
    return VECTORS * machine->vector_bytes / 4;
}

/* Scores leave a third of the first cache to the queries and to what passes through. */
int64_t qn_attention_columns_block(const qn_machine *machine)
{
    const int64_t keys = machine->l1_bytes * 2 / 3 / (VECTORS * machine->vector_bytes);
    return keys / QN_ATTENTION_KEYS * QN_ATTENTION_KEYS;
}

bool qn_attention_fits_columns(const qn_node *node, const qn_machine *machine)
{
    const qn_type *q = &node->operands[0]->type, *v = &node->operands[2]->type;
    const qn_value *mask = node->n_operands > 3 ? node->operands[3] : NULL;
    if (!machine->lookup || machine->vector_registers < 32 || !qn_dim_is_const(q->dims[2]) ||
        !qn_dim_is_const(v->dims[2]) || v->dims[2]->value % QN_ATTENTION_KEYS != 0)
        return false;
    const int64_t n = q->dims[2]->value, tile = qn_attention_columns(machine);
    const int64_t wasted = (n + tile - 1) / tile * tile - n;
    return wasted <= n / WASTE && (!mask || qn_dim_is(mask->type.dims[2], 1));
}

/* ---- queries ---- */

void qn_attention_turn_queries(attention *a)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes;
    qn_kinst *loop = qn_kb_for(b, INDEX(0), INDEX(a->depth), INDEX(lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *depth = qn_loop_counter(loop), *x[MOST_WIDE];
    for (int v = 0; v < VECTORS; v++) {
        for (int i = 0; i < lanes; i++)
            x[i] = qn_kb_load(b, a->queries, ADD(INDEX((v * lanes + i) * a->depth), depth), lanes);
        qn_kb_transpose(b, lanes, x);
        for (int i = 0; i < lanes; i++)
            qn_kb_store(b, a->turned, ADD(MUL(ADD(depth, INDEX(i)), INDEX(wide(a))), INDEX(v * lanes)), x[i],
                        NULL);
    }
    qn_attention_end(&a->t, loop);
}

/* ---- what is not in the caches ---- */

/* Has what is loaded of the row at work fetched to the second cache instead: for qn_writer.load. */
static qn_kvalue *fetch_instead(qn_writer *w, void *user, qn_kbuffer *buffer, qn_dim linear)
{
    const attention *a = user;
    qn_dim coefficient, rest;
    if (buffer->space == QN_SPACE_ARGUMENT &&
        qn_ix_affine(&w->space, linear, a->at_depth, &coefficient, &rest) && qn_dim_is(coefficient, 1))
        qn_kb_prefetch(&w->b, buffer, qn_writer_index(w, linear), 1);
    return qn_kb_const(&w->b, (qn_ktype){ buffer->dtype, 1 }, (qn_scalar){ 0 });
}

static int64_t lines_of(int64_t elements)
{
    return (elements + LINE - 1) / LINE;
}

/* Row `step * n / row_lines` and what comes behind it, in `n` lines; a->t.query and `along` are set to where they begin. */
static void each_line(attention *a, qn_kvalue *first, qn_kvalue *last, qn_kvalue *step, int64_t row_lines,
                      qn_dim along, void (*fetch)(attention *a))
{
    qn_writer *w = &a->t.w;
    const int64_t steps = a->t.n_keys->value / QN_ATTENTION_KEYS,
                  needed = (2 * wide(a) * row_lines + steps - 1) / steps,
                  n = needed < MOST_LINES ? needed : MOST_LINES;
    for (int64_t i = 0; i < n; i++) {
        qn_kvalue *line = ADD(MUL(step, INDEX(n)), INDEX(i));
        qn_ispace_set(&w->space, a->t.query, MIN(ADD(first, DIV(line, INDEX(row_lines))), last));
        qn_ispace_set(&w->space, along, MUL(MOD(line, INDEX(row_lines)), INDEX(LINE)));
        const size_t mark = qn_writer_mark(w);
        fetch(a);
        qn_writer_forget(w, mark);
    }
}

static void fetch_query(attention *a)
{
    const qn_dim index[4] = { a->t.batch, a->t.head, a->t.query, a->at_depth };
    a->t.w.load = fetch_instead;
    a->t.w.load_user = a;
    qn_writer_value(&a->t.w, a->t.q, index);
    a->t.w.load = NULL;
}

/* Some lines of the next tile's queries, which may be those of the next head, and of where this one's results go: all of them with
 * the first half of the keys. They were last used long ago, and nothing could be done while they are waited for. */
static void fetch_lines(attention *a, qn_kvalue *key)
{
    qn_writer *w = &a->t.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *step = DIV(key, INDEX(QN_ATTENTION_KEYS)), *next = ADD(a->first_query, INDEX(wide(a))),
              *last = SUB(a->t.n_queries_value, INDEX(1)), *head = NULL;
    each_line(a, a->first_query, last, step, lines_of(a->columns), a->column, qn_attention_fetch_results);
    if (a->t.head->kind != QN_DIM_CONST) {
        head = qn_writer_index(w, a->t.head);
        qn_kvalue *more = qn_kb_compare(b, QN_LE, next, last),
                  *after = MIN(ADD(head, INDEX(1)), SUB(qn_writer_index(w, a->t.heads), INDEX(1)));
        next = qn_kb_select(b, more, next, INDEX(0));
        qn_ispace_set(&w->space, a->t.head, qn_kb_select(b, more, head, after));
    }
    each_line(a, next, last, step, lines_of(a->depth), a->at_depth, fetch_query);
    if (head)
        qn_ispace_set(&w->space, a->t.head, head);
}

/* ---- scores ---- */

/* What the mask says of this key, for all queries. */
static qn_kvalue *mask_of(attention *a, qn_kvalue *key)
{
    qn_writer *w = &a->t.w;
    const qn_dim vars[4] = { a->t.batch, a->t.head, a->t.query, a->t.key };
    qn_dim index[4];
    for (int i = 0; i < 4; i++)
        index[i] = qn_dim_is(a->t.mask->type.dims[i], 1) ? qn_dim_const(w->space.dims, 0) : vars[i];
    qn_ispace_set(&a->t.w.space, a->t.key, key);
    const size_t mark = qn_writer_mark(w);
    qn_kvalue *value = qn_writer_value(w, a->t.mask, index);
    qn_writer_forget(w, mark);
    return qn_kb_splat(&w->b, value, a->t.lanes);
}

/* For each lane: does that query see the key under causal? */
static qn_kvalue *seen(attention *a, int vector, qn_kvalue *key)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *query = ADD(a->first_query, INDEX(vector * a->t.lanes));
    /* that see key - (n_keys - n_queries) */
    qn_kvalue *last = qn_kb_convert(b, QUERN_I32, qn_attention_seen(&a->t, query));
    return qn_kb_compare(b, QN_GE, qn_kb_ramp(b, last, a->t.lanes),
                         qn_kb_splat(b, qn_kb_convert(b, QUERN_I32, key), a->t.lanes));
}

/* Scores of an earlier block, from `from` on, that become weights meanwhile. */
typedef struct earlier {
    attention *a;
    qn_kvalue *from, *shift[VECTORS], *totals[VECTORS];
    qn_kvalue *key; /* the first of so many that do with the keys at work */
    int64_t step;
} earlier;

/* The scores of a key become weights, and are added to `totals`. */
static void weigh_key(attention *a, qn_kvalue *from, qn_kvalue *key, qn_kvalue *const *shift,
                      qn_kvalue **totals)
{
    qn_kbuilder *b = &a->t.w.b;
    for (int v = 0; v < VECTORS; v++) {
        qn_kvalue *at = ADD(from, ADD(MUL(key, INDEX(wide(a))), INDEX(v * a->t.lanes)));
        qn_kvalue *score = qn_kb_load(b, a->t.scores, at, a->t.lanes);
        qn_kvalue *weight = qn_attention_power(a, qn_kb_binary(b, QN_OP_SUB, score, shift[v]));
        qn_kb_store(b, a->t.scores, at, weight, NULL);
        totals[v] = qn_kb_binary(b, QN_OP_ADD, totals[v], weight);
    }
}

static void weigh_beside(void *user, qn_kvalue *k, qn_kvalue **totals)
{
    const earlier *e = user;
    attention *a = e->a;
    weigh_key(a, e->from, ADD(e->key, DIV(k, INDEX(e->step))), e->shift, totals);
}

/* Scores of some keys of the block, [low, high) times QN_ATTENTION_KEYS of them, to `to`; `largest` goes along. `hides`: causal
 * hides some of them from some queries. */
static void score_keys(attention *a, qn_kvalue *to, qn_kvalue *first, qn_kvalue *low, qn_kvalue *high,
                       qn_kvalue *group, bool hides, qn_kvalue **largest, earlier *before)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes, rows = QN_ATTENTION_KEYS, n = before ? 2 * VECTORS : VECTORS;
    qn_kvalue *carried[2 * VECTORS];
    for (int v = 0; v < n; v++)
        carried[v] = v < VECTORS ? largest[v] : before->totals[v - VECTORS];
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(1), QN_TAG_SERIAL, n, carried, NULL);
    qn_kvalue *key = MUL(qn_loop_counter(loop), INDEX(rows)), *acc[SUMS];
    const qn_attention_side k = { a->k,
                                  MUL(ADD(ADD(MUL(group, a->t.n_keys_value), first), key), INDEX(a->depth)),
                                  a->depth, 1 };
    fetch_lines(a, ADD(first, key));
    for (int i = 0; i < rows * VECTORS; i++)
        acc[i] = vector(a, 0);
    if (before)
        before->key = key;
    const qn_attention_beside beside = { before ? before->step : 0, VECTORS, carried + VECTORS, weigh_beside,
                                         before };
    qn_attention_product_of(&a->t, rows, VECTORS, k, a->turned, wide(a), INDEX(0), INDEX(a->depth), NULL,
                            before ? &beside : NULL, acc);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *row = ADD(key, INDEX(r)), *mask = a->t.mask ? mask_of(a, ADD(first, row)) : NULL;
        for (int v = 0; v < VECTORS; v++) {
            qn_kvalue *score = acc[r * VECTORS + v];
            if (mask)
                score = a->t.mask->type.dtype == QUERN_BOOL
                            ? qn_kb_select(b, mask, score, vector(a, -INFINITY))
                            : qn_kb_binary(b, QN_OP_ADD, score, mask);
            if (hides)
                score = qn_kb_select(b, seen(a, v, ADD(first, row)), score, vector(a, -INFINITY));
            qn_kb_store(b, a->t.scores, ADD(to, ADD(MUL(row, INDEX(wide(a))), INDEX(v * lanes))), score,
                        NULL);
            /* One instruction, since NaN is left out here: its weight is NaN, and with it the query's sum and results. */
            carried[v] = qn_kb_select(b, qn_kb_compare(b, QN_GT, score, carried[v]), score, carried[v]);
        }
    }
    qn_kb_end_carry(b, loop, carried);
    for (int v = 0; v < n; v++)
        *(v < VECTORS ? &largest[v] : &before->totals[v - VECTORS]) = carried[v];
}

/* All keys of a block, `n` from key `first` on. */
static void score_block(attention *a, qn_kvalue *to, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group,
                        qn_kvalue **largest, earlier *before)
{
    qn_kvalue *keys = INDEX(QN_ATTENTION_KEYS), *all = DIV(n, keys), *seen_by_all = all;
    if (a->t.causal) {
        qn_kvalue *visible = SUB(qn_attention_seen(&a->t, ADD(a->first_query, INDEX(1))), first);
        seen_by_all = MIN(DIV(MAX(visible, INDEX(0)), keys), all);
    }
    score_keys(a, to, first, INDEX(0), seen_by_all, group, false, largest, before);
    if (a->t.causal)
        score_keys(a, to, first, seen_by_all, all, group, true, largest, before);
}

/* ---- the softmax ---- */

/* The scores of keys [low, high) become weights, and are added to `totals`. */
static void weigh_keys(attention *a, qn_kvalue *from, qn_kvalue *low, qn_kvalue *high,
                       qn_kvalue *const *shift, qn_kvalue **totals)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *sums[UNROLL * VECTORS];
    for (int i = 0; i < UNROLL * VECTORS; i++)
        sums[i] = i < VECTORS ? totals[i] : vector(a, 0);
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(UNROLL), QN_TAG_SERIAL, UNROLL * VECTORS, sums, NULL);
    for (int u = 0; u < UNROLL; u++)
        weigh_key(a, from, ADD(qn_loop_counter(loop), INDEX(u)), shift, sums + u * VECTORS);
    qn_kb_end_carry(b, loop, sums);
    for (int v = 0; v < VECTORS; v++) {
        totals[v] = sums[v];
        for (int u = 1; u < UNROLL; u++)
            totals[v] = qn_kb_binary(b, QN_OP_ADD, totals[v], sums[u * VECTORS + v]);
    }
}

/* sums = sums * factor + weights x v, over `n` keys from key `first` on. */
static void weigh_values(attention *a, qn_kvalue *from, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes, vectors = a->v_vectors, rows = SUMS / vectors;
    const int64_t width = (int64_t)vectors * lanes;
    qn_kinst *by_row = qn_kb_for(b, INDEX(0), INDEX(wide(a)), INDEX(rows), QN_TAG_SERIAL, 0, NULL, NULL),
             *by_column =
                 qn_kb_for(b, INDEX(0), INDEX(a->v_width), INDEX(width), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *row = qn_loop_counter(by_row), *column = qn_loop_counter(by_column), *acc[SUMS], *at[SUMS];
    for (int r = 0; r < rows; r++) {
        qn_kvalue *query = ADD(row, INDEX(r)), *factor = NULL;
        if (!a->one_block)
            factor = qn_kb_splat(b, qn_kb_load(b, a->factors, query, 1), lanes);
        for (int i = r * vectors; i < (r + 1) * vectors; i++) {
            at[i] = ADD(MUL(query, INDEX(a->v_width)), ADD(column, INDEX(i % vectors * lanes)));
            acc[i] = factor ? qn_kb_binary(b, QN_OP_MUL, factor, qn_kb_load(b, a->sums, at[i], lanes))
                            : vector(a, 0);
        }
    }
    const qn_attention_side weights = { a->t.scores, ADD(from, row), 1, wide(a) };
    qn_kvalue *panel = ADD(MUL(ADD(MUL(group, a->t.n_keys_value), first), INDEX(a->v_width)), column);
    qn_attention_product_of(&a->t, rows, vectors, weights, a->v, a->v_width, panel, n, NULL, NULL, acc);
    for (int i = 0; i < SUMS; i++)
        qn_kb_store(b, a->sums, at[i], acc[i], NULL);
    qn_attention_end(&a->t, by_column);
    qn_attention_end(&a->t, by_row);
}

/* With a larger maximum, what there is so far counts less: the factor for `sums`, and the totals with it (of those in the buffer
 * where they are NULL). */
static qn_kvalue *rescale(attention *a, int v, qn_kvalue *shift, qn_kvalue *total)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *at = INDEX(v * a->t.lanes), *old = qn_kb_load(b, a->maxima, at, a->t.lanes),
              *factor = qn_attention_power(a, qn_kb_binary(b, QN_OP_SUB, old, shift));
    if (!total)
        total = qn_kb_load(b, a->totals, at, a->t.lanes);
    qn_kb_store(b, a->factors, at, factor, NULL);
    return qn_kb_binary(b, QN_OP_MUL, total, factor);
}

static qn_kvalue *whole_keys(attention *a, qn_kvalue *n)
{
    return MUL(DIV(ADD(n, INDEX(QN_ATTENTION_KEYS - 1)), INDEX(QN_ATTENTION_KEYS)), INDEX(QN_ATTENTION_KEYS));
}

/* A block of `n` keys from key `first` on, or all keys. */
static void by_itself(attention *a, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *largest[VECTORS], *shift[VECTORS], *totals[VECTORS], *none = INDEX(0);
    n = whole_keys(a, n);
    for (int v = 0; v < VECTORS; v++)
        largest[v] =
            a->one_block ? vector(a, -INFINITY) : qn_kb_load(b, a->maxima, INDEX(v * a->t.lanes), a->t.lanes);
    score_block(a, none, first, n, group, largest, NULL);
    for (int v = 0; v < VECTORS; v++) {
        shift[v] = qn_attention_shift(a, largest[v]);
        totals[v] = a->one_block ? vector(a, 0) : rescale(a, v, shift[v], NULL);
        qn_kb_store(b, a->maxima, INDEX(v * a->t.lanes), largest[v], NULL);
    }
    weigh_keys(a, none, none, n, shift, totals);
    for (int v = 0; v < VECTORS; v++)
        qn_kb_store(b, a->totals, INDEX(v * a->t.lanes), totals[v], NULL);
    weigh_values(a, none, first, n, group);
}

/* Block number `block`, whose scores are there, while those of the next one are computed. */
static void in_turn(attention *a, qn_kvalue *block, qn_kvalue *end, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *size = INDEX(a->block), *first = MUL(block, size), *next = ADD(first, size), *none = INDEX(0),
              *n = whole_keys(a, MIN(SUB(end, first), size)),
              *n_next = whole_keys(a, MAX(MIN(SUB(end, next), size), none)), *largest[VECTORS];
    const int64_t half = a->block * wide(a);
    qn_kvalue *to = MUL(MOD(ADD(block, INDEX(1)), INDEX(2)), INDEX(half));
    earlier e = { .a = a,
                  .from = MUL(MOD(block, INDEX(2)), INDEX(half)),
                  .step = a->depth / QN_ATTENTION_KEYS };
    for (int v = 0; v < VECTORS; v++) {
        qn_kvalue *at = INDEX(v * a->t.lanes);
        largest[v] = qn_kb_load(b, a->maxima, at, a->t.lanes);
        e.shift[v] = qn_attention_shift(a, largest[v]);
        e.totals[v] = qn_kb_load(b, a->totals, at, a->t.lanes);
    }
    score_block(a, to, next, n_next, group, largest, &e);
    weigh_keys(a, e.from, MIN(n_next, n), n, e.shift, e.totals);
    weigh_values(a, e.from, first, n, group);
    for (int v = 0; v < VECTORS; v++) {
        qn_kvalue *at = INDEX(v * a->t.lanes),
                  *total = rescale(a, v, qn_attention_shift(a, largest[v]), e.totals[v]);
        qn_kb_store(b, a->maxima, at, largest[v], NULL);
        qn_kb_store(b, a->totals, at, total, NULL);
    }
}

/* The scores of the first block, before the blocks in turn. */
static void begin_turns(attention *a, qn_kvalue *end, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *largest[VECTORS], *none = INDEX(0);
    for (int v = 0; v < VECTORS; v++)
        largest[v] = vector(a, -INFINITY);
    score_block(a, none, none, whole_keys(a, MIN(end, INDEX(a->block))), group, largest, NULL);
    for (int v = 0; v < VECTORS; v++) {
        qn_kb_store(b, a->maxima, INDEX(v * a->t.lanes), largest[v], NULL);
        qn_kb_store(b, a->factors, INDEX(v * a->t.lanes), vector(a, 0), NULL);
    }
}

void qn_attention_add_keys(attention *a, qn_kvalue *end, qn_kvalue *group)
{
    qn_kvalue *none = INDEX(0), *size = INDEX(a->block);
    if (a->one_block) {
        by_itself(a, none, end, group);
        return;
    }
    if (a->in_turn)
        begin_turns(a, end, group);
    qn_kinst *loop = qn_attention_for(&a->t, none, DIV(ADD(end, SUB(size, INDEX(1))), size));
    qn_kvalue *block = qn_loop_counter(loop), *first = MUL(block, size);
    if (a->in_turn)
        in_turn(a, block, end, group);
    else
        by_itself(a, first, MIN(SUB(end, first), size), group);
    qn_attention_end(&a->t, loop);
}
