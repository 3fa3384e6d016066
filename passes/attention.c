/* The template for attention_packed: softmax(q k^T scale + mask) v, of which never more than some rows of scores exist.
 *
 *   task: a batch, a head, some tiles of queries (12 with AVX-512, 6 with 16 registers)
 *     for each tile
 *       rows of q, scaled                          -> local, computed from what q is made of
 *       for each block of keys                     512 at most; all keys at once where they are fewer
 *         for each panel of k: scores of the tile  -> local, in the first cache
 *         for each row: mask, maximum              in place
 *         for each row: exp, sum                   in place
 *         for each panel of v: weights x v         -> local
 *       divide by the sums, apply what follows element by element, store
 *
 * Of few queries k is read where it lies, a key a row: a panel would be used too seldom to be made. Then a score is a sum over
 * lanes, and the queries of a group of heads may be rows of one tile. Where queries fill tiles of two vectors, scores lie in
 * columns, and k needs no panels either: see attention_columns.c.
 *
 * More than one block makes the softmax an online one: what was summed up so far is scaled by exp(old maximum - new maximum).
 * Causal: blocks and panels that no query of the tile sees are left out, and so are keys behind the last one that a mask doesn't
 * hide from the tile: a buffer of keys costs no more than what is in it. The last tile of a head may have rows that
 * do not exist: they repeat the last query and are not stored. Tasks depend on the shape only. */
#include <math.h>

#include "passes/attention.h"
#include "passes/attention_columns.h"
#include "passes/math/math.h"
#include "passes/terms.h"

enum {
    BLOCK = 512,     /* keys */
    SKEW = 16,       /* elements between rows of scores, so that they don't share cache sets */
    MAX_DEPTH = 256, /* columns of q and of v */
    LEAST_QUERIES = 8,
    /* Scores in columns: blocks in turn (attention_columns.c) from so many keys on, up to so many columns of q. */
    KEYS_AT_ONCE = 128,
    DEPTH_IN_TURN = 64,
    TASK_NANOSECONDS = 50000,
    FLOPS_A_NANOSECOND = 100 /* of a core: for the size of tasks only */
};

typedef qn_attention_kernel attention;

static const double LOG2_E = 1.4426950408889634;

/* ---- what it takes ---- */

/* Of a panel with so many columns in all: the vectors that a tile is wide. */
static int64_t width_of(const qn_machine *machine, qn_dim n)
{
    const int lanes = machine->vector_bytes / 4;
    return n->max > lanes ? 2 * lanes : lanes;
}

static bool is_moved(const qn_value *value)
{
    return value->node && value->node->op == QN_OP_TRANSPOSE;
}

/* Few queries, and k and v in whole vectors that nobody has to move first; or such as lie in columns. */
static bool in_place(const qn_node *node, const qn_machine *machine, qn_dim columns)
{
    const int lanes = machine->vector_bytes / 4;
    const qn_value *q = node->operands[0], *k = node->operands[1], *v = node->operands[2];
    if (!qn_dim_is_const(q->type.dims[2]) || !qn_dim_is_const(q->type.dims[3]) ||
        q->type.dims[3]->value % lanes != 0 || !qn_dim_is_const(columns) || columns->value % lanes != 0)
        return false;
    if (node->op == QN_OP_ATTENTION_PACKED)
        return qn_dim_is(k->type.dims[4], QN_ATTENTION_IN_PLACE);
    return q->type.dims[2]->value < LEAST_QUERIES ? !is_moved(k) && !is_moved(v)
                                                  : qn_attention_fits_columns(node, machine);
}

bool qn_attention_plan(const qn_node *node, const qn_pass_options *options, int64_t *out_k_width,
                       int64_t *out_v_width)
{
    const qn_machine *machine = options->machine;
    const qn_type *q = &node->operands[0]->type, *v = &node->operands[2]->type;
    if (!machine || machine->gpu || machine->vector_bytes < 16 || options->math == QN_MATH_STRICT ||
        q->dtype != QUERN_F32)
        return false;
    const bool packed = node->op == QN_OP_ATTENTION_PACKED;
    const qn_dim columns = packed ? qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0] : v->dims[3];
    const qn_dim keys = v->dims[2];
    const bool fits = qn_dim_is_const(q->dims[3]) && q->dims[3]->value >= 1 &&
                      q->dims[3]->value <= MAX_DEPTH && qn_dim_is_const(columns) && columns->value >= 1 &&
                      columns->value <= MAX_DEPTH && q->dims[2]->max >= 1 && keys->max >= 1;
    if (fits && in_place(node, machine, columns)) {
        *out_k_width = QN_ATTENTION_IN_PLACE;
        *out_v_width = columns->value;
        return true;
    }
    *out_k_width = width_of(machine, keys);
    const int64_t v_panel = width_of(machine, columns);
    *out_v_width = qn_dim_is_const(columns) ? (columns->value + v_panel - 1) / v_panel * v_panel : v_panel;
    return fits && q->dims[2]->max >= LEAST_QUERIES;
}

static bool keeps(const qn_node *node, const qn_pass_options *options)
{
    int64_t k_width, v_width;
    return node->op == QN_OP_ATTENTION_PACKED && qn_attention_plan(node, options, &k_width, &v_width) &&
           qn_dim_is(node->operands[1]->type.dims[4], k_width) &&
           qn_dim_is(node->operands[2]->type.dims[3], v_width);
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return group->kind == QN_GROUP_CONTRACTION && keeps(group->root, options);
}

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&a->t.w.b)

/* ---- the products ---- */

/* Rows of scores for `n` keys of the block from panel `first` on. */
static void score_panels(attention *a, int rows, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    const int64_t width = (int64_t)a->k_vectors * a->t.lanes, panel_size = a->depth * width;
    qn_kvalue *count = DIV(ADD(n, INDEX(width - 1)), INDEX(width)), *acc[2 * QN_ATTENTION_ROWS];
    qn_kvalue *base = ADD(MUL(group, qn_writer_index(&a->t.w, a->k_panels)), first);
    qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), count);
    qn_kvalue *panel = MUL(ADD(base, qn_loop_counter(loop)), INDEX(panel_size));
    for (int i = 0; i < rows * a->k_vectors; i++)
        acc[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, a->t.lanes }, 0);
    qn_attention_product(&a->t, rows, a->k_vectors, a->queries, a->depth, a->k, width, panel, INDEX(a->depth),
                         ADD(panel, INDEX(panel_size)), acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < a->k_vectors; v++)
            qn_kb_store(
                b, a->t.scores,
                ADD(MUL(qn_loop_counter(loop), INDEX(width)), INDEX(r * a->t.stride + v * a->t.lanes)),
                acc[r * a->k_vectors + v], NULL);
    qn_attention_end(&a->t, loop);
}

/* The same of keys that lie row by row, from key `first` on. */
static void score_rows(attention *a, int rows, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    enum { MOST_VECTORS = MAX_DEPTH / 4 };
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes, vectors = (int)a->depth / lanes;
    qn_kvalue *base = ADD(MUL(group, a->t.n_keys_value), first), *parts[MOST_VECTORS];
    qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), n);
    qn_kvalue *key = MUL(ADD(base, qn_loop_counter(loop)), INDEX(a->depth));
    for (int v = 0; v < vectors; v++)
        parts[v] = qn_kb_load(b, a->k, ADD(key, INDEX(v * lanes)), lanes);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *sum = qn_kb_float(b, (qn_ktype){ QUERN_F32, lanes }, 0);
        for (int v = 0; v < vectors; v++)
            sum = qn_kb_fma(b, qn_kb_load(b, a->queries, INDEX(r * a->depth + v * lanes), lanes), parts[v],
                            sum);
        qn_kb_store(b, a->t.scores, ADD(INDEX(r * a->t.stride), qn_loop_counter(loop)),
                    qn_kb_reduce(b, QN_SUM, sum), NULL);
    }
    qn_attention_end(&a->t, loop);
}

/* sums = sums * factor + weights x v, over `n` keys from key `first` on. */
static void weigh_values(attention *a, int rows, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *acc[2 * QN_ATTENTION_ROWS], *row = ADD(MUL(group, a->t.n_keys_value), first);
    const int64_t width = (int64_t)a->v_vectors * a->t.lanes;
    qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), INDEX(a->v_width / width));
    qn_kvalue *column = MUL(qn_loop_counter(loop), INDEX(width));
    qn_kvalue *panel = ADD(MUL(row, INDEX(a->v_width)), column);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *factor = a->one_block ? NULL : qn_kb_load(b, a->factors, INDEX(r), 1);
        for (int v = 0; v < a->v_vectors; v++) {
            qn_kvalue *at = ADD(column, INDEX(r * a->v_width + v * a->t.lanes));
            acc[r * a->v_vectors + v] = factor
                                            ? qn_kb_binary(b, QN_OP_MUL, qn_kb_splat(b, factor, a->t.lanes),
                                                           qn_kb_load(b, a->sums, at, a->t.lanes))
                                            : qn_kb_float(b, (qn_ktype){ QUERN_F32, a->t.lanes }, 0);
        }
    }
    qn_attention_product(&a->t, rows, a->v_vectors, a->t.scores, a->t.stride, a->v, a->v_width, panel, n,
                         NULL, acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < a->v_vectors; v++)
            qn_kb_store(b, a->sums, ADD(column, INDEX(r * a->v_width + v * a->t.lanes)),
                        acc[r * a->v_vectors + v], NULL);
    qn_attention_end(&a->t, loop);
}

/* ---- the softmax of rows ---- */

/* How many of the block's `n` keys from key `first` on row `row` sees. */
static qn_kvalue *seen_by(attention *a, qn_kvalue *row, qn_kvalue *first, qn_kvalue *n)
{
    qn_ispace_set(&a->t.w.space, a->t.query,
                  MIN(ADD(a->first_query, row), SUB(a->t.n_queries_value, INDEX(1))));
    qn_kvalue *query = qn_writer_index(&a->t.w, a->t.query);
    return a->t.causal ? MIN(MAX(SUB(qn_attention_seen(&a->t, ADD(query, INDEX(1))), first), INDEX(0)), n)
                       : n;
}

qn_kvalue *qn_attention_shift(attention *a, qn_kvalue *max)
{
    return qn_kb_select(&a->t.w.b, qn_attention_hides(&a->t, max), qn_kb_float(&a->t.w.b, max->type, 0), max);
}

qn_kvalue *qn_attention_power(attention *a, qn_kvalue *exponent)
{
    qn_kbuilder *b = &a->t.w.b;
    if (!a->base_2)
        return qn_kb_exp_nonpositive(b, exponent);
    const bool fast = b->fast;
    const qn_mb m = qn_mb_make(b, a->t.w.lowering->options->machine, exponent->type);
    b->fast = false; /* its sums must not be taken apart */
    qn_kvalue *power = qn_math_exp2_nonpositive(&m, exponent);
    b->fast = fast;
    return power;
}

/* The mask, the largest score, and what the sums of earlier blocks are scaled by. */
static void find_maximum(attention *a, qn_kvalue *row, qn_kvalue *first, qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *from = MUL(row, INDEX(a->t.stride)), *seen = seen_by(a, row, first, n);
    if (a->t.mask)
        qn_attention_mask(&a->t, from, first, seen);
    qn_kvalue *whole = qn_attention_whole(&a->t, seen);
    qn_attention_fill(&a->t, a->t.scores, from, seen, whole, -INFINITY);

    const qn_kind kind = QN_KIND_MAX;
    qn_kvalue *old = a->one_block ? qn_attention_number(&a->t, -INFINITY) : qn_kb_load(b, a->maxima, row, 1),
              *max = old;
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), whole, INDEX(1), QN_TAG_VECTOR, 1, &max, &kind);
    /* One instruction, since NaN is left out here: its weight is NaN, and with it the row's sum and results. */
    qn_kvalue *score = qn_kb_load(b, a->t.scores, ADD(from, qn_loop_counter(loop)), 1);
    max = qn_kb_select(b, qn_kb_compare(b, QN_GT, score, max), score, max);
    qn_kb_end_carry(b, loop, &max);
    if (!a->one_block) {
        qn_kvalue *factor =
            qn_attention_power(a, qn_kb_binary(b, QN_OP_SUB, old, qn_attention_shift(a, max)));
        qn_kvalue *total = qn_kb_binary(b, QN_OP_MUL, qn_kb_load(b, a->totals, row, 1), factor);
        qn_kb_store(b, a->factors, row, factor, NULL);
        qn_kb_store(b, a->totals, row, total, NULL);
    }
    qn_kb_store(b, a->maxima, row, max, NULL);
}

/* The scores become weights. `n` keys are what any row of the tile sees. */
static void weigh_row(attention *a, qn_kvalue *row, qn_kvalue *first, qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kvalue *from = MUL(row, INDEX(a->t.stride)),
              *whole = qn_attention_whole(&a->t, seen_by(a, row, first, n)),
              *shift = qn_attention_shift(a, qn_kb_load(b, a->maxima, row, 1)),
              *sum = qn_attention_number(&a->t, 0);
    const qn_kind kind = QN_SUM;
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), whole, INDEX(1), QN_TAG_VECTOR, 1, &sum, &kind);
    qn_kvalue *score = qn_kb_load(b, a->t.scores, ADD(from, qn_loop_counter(loop)), 1);
    qn_kvalue *weight = qn_attention_power(a, qn_kb_binary(b, QN_OP_SUB, score, shift));
    qn_kb_store(b, a->t.scores, ADD(from, qn_loop_counter(loop)), weight, NULL);
    sum = qn_kb_binary(b, QN_OP_ADD, sum, weight);
    qn_kb_end_carry(b, loop, &sum);
    if (a->t.causal) /* what other rows of the tile see */
        qn_attention_fill(&a->t, a->t.scores, from, whole, n, 0);
    if (!a->one_block)
        sum = qn_kb_binary(b, QN_OP_ADD, qn_kb_load(b, a->totals, row, 1), sum);
    qn_kb_store(b, a->totals, row, sum, NULL);
}

/* All maxima before all weights: a row's weights wait for its maximum, and meanwhile the next rows' are found. */
static void weigh_rows(attention *a, int rows, qn_kvalue *first, qn_kvalue *n)
{
    void (*const parts[])(attention *, qn_kvalue *, qn_kvalue *, qn_kvalue *) = { find_maximum, weigh_row };
    for (int i = 0; i < 2; i++) {
        qn_kinst *by_row = qn_attention_for(&a->t, INDEX(0), INDEX(rows));
        const size_t mark = qn_writer_mark(&a->t.w);
        parts[i](a, qn_loop_counter(by_row), first, n);
        qn_writer_forget(&a->t.w, mark);
        qn_attention_end(&a->t, by_row);
    }
}

/* ---- a tile ---- */

static void load_queries(attention *a, int rows)
{
    qn_writer *w = &a->t.w;
    qn_kbuilder *b = &w->b;
    const qn_dim index[4] = { a->t.batch, a->t.head, a->t.query, a->at_depth };
    qn_kinst *by_row = qn_attention_for(&a->t, INDEX(0), INDEX(rows));
    const size_t mark = qn_writer_mark(w);
    qn_ispace_set(&a->t.w.space, a->t.query,
                  MIN(ADD(a->first_query, qn_loop_counter(by_row)), SUB(a->t.n_queries_value, INDEX(1))));
    qn_writer_prepare(w, a->t.q, index);
    qn_writer_loop loop = qn_writer_for_all(w, a->at_depth, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *depth = loop.inst ? qn_loop_counter(loop.inst) : INDEX(0);
    qn_kvalue *scaled =
        qn_kb_binary(b, QN_OP_MUL, qn_writer_value(w, a->t.q, index), qn_attention_number(&a->t, a->t.scale));
    qn_kb_store(b, a->queries, ADD(MUL(qn_loop_counter(by_row), INDEX(a->depth)), depth), scaled, NULL);
    qn_writer_end_for(w, &loop, NULL);
    qn_writer_forget(w, mark);
    qn_attention_end(&a->t, by_row);
}

static void one_block(attention *a, int rows, qn_kvalue *first, qn_kvalue *first_panel, qn_kvalue *end,
                      qn_kvalue *group)
{
    qn_kvalue *n = a->one_block ? end : MIN(SUB(end, first), INDEX(a->block));
    if (a->k_vectors)
        score_panels(a, rows, first_panel, n, group);
    else
        score_rows(a, rows, first, n, group);
    weigh_rows(a, rows, first, n);
    weigh_values(a, rows, first, n, group);
}

/* The result's element at the place at work: qn_fetch_fn. */
static qn_kvalue *fetch_result(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    attention *a = user;
    (void)value, (void)index;
    qn_kvalue *row = SUB(qn_writer_index(w, a->t.query), a->first_query);
    qn_kvalue *sum =
        qn_kb_load(&w->b, a->sums, ADD(MUL(row, INDEX(a->v_width)), qn_writer_index(w, a->column)), 1);
    return qn_kb_binary(&w->b, QN_OP_MUL, sum, a->factor);
}

typedef struct place {
    int rank;
    qn_dim dims[4], index[4];
} place;

/* Of the column at work of the query at work. */
static place place_of_result(attention *a)
{
    const qn_type *root = &a->t.group->root->results[0].type;
    place p = { root->rank,
                { 0 },
                { a->t.batch, a->heads_last ? a->t.query : a->t.head, a->heads_last ? a->t.head : a->t.query,
                  a->column } };
    qn_ispace_dims(&a->t.w.space, root, p.dims);
    return p;
}

void qn_attention_fetch_results(attention *a)
{
    const place p = place_of_result(a);
    qn_writer_prefetch_outputs(&a->t.w, a->t.group, p.rank, p.dims, p.index, a->column);
}

static void store_results(attention *a, int rows)
{
    qn_writer *w = &a->t.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *past = MIN(ADD(a->first_query, INDEX(rows)), a->t.n_queries_value);
    qn_writer_loop by_row = qn_writer_for(w, a->t.query, a->first_query, past, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *row = SUB(qn_writer_index(w, a->t.query), a->first_query);
    qn_kvalue *one = qn_attention_number(&a->t, 1);
    qn_kvalue *total = qn_kb_select(b, qn_attention_hides(&a->t, qn_kb_load(b, a->maxima, row, 1)), one,
                                    qn_kb_load(b, a->totals, row, 1));
    a->factor = qn_kb_binary(b, QN_OP_DIV, one, total);
    qn_writer_loop by_column = qn_writer_for_all(w, a->column, QN_TAG_VECTOR, 0, NULL, NULL);
    const place p = place_of_result(a);
    qn_writer_store_outputs(w, a->t.group, p.rank, p.dims, p.index);
    qn_writer_end_for(w, &by_column, NULL);
    qn_writer_end_for(w, &by_row, NULL);
}

/* `rows` queries from `first_query` on */
static void tile(attention *a, int rows, qn_kvalue *first_query)
{
    qn_writer *w = &a->t.w;
    a->first_query = first_query;
    load_queries(a, rows);
    if (a->turned)
        qn_attention_turn_queries(a);
    qn_kvalue *group = ADD(MUL(qn_writer_index(w, a->t.batch), qn_writer_index(w, a->t.groups)),
                           DIV(MUL(qn_writer_index(w, a->t.head), qn_writer_index(w, a->t.groups)),
                               qn_writer_index(w, a->t.heads)));
    qn_kvalue *end = a->t.n_keys_value;
    if (a->t.causal) {
        qn_kvalue *past = MIN(ADD(first_query, INDEX(rows)), a->t.n_queries_value);
        end = MIN(MAX(qn_attention_seen(&a->t, past), INDEX(0)), end);
    }
    end = qn_attention_shown(&a->t, rows, first_query, end);
    if (!a->one_block) {
        qn_attention_fill(&a->t, a->sums, INDEX(0), INDEX(0), INDEX(rows * a->v_width), 0);
        qn_attention_fill(&a->t, a->totals, INDEX(0), INDEX(0), INDEX(rows), 0);
        qn_attention_fill(&a->t, a->maxima, INDEX(0), INDEX(0), INDEX(rows), -INFINITY);
    }
    if (a->turned) {
        qn_attention_add_keys(a, end, group);
    } else if (a->one_block) {
        one_block(a, rows, INDEX(0), INDEX(0), end, group);
    } else {
        qn_kvalue *count = DIV(ADD(end, INDEX(a->block - 1)), INDEX(a->block));
        qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), count);
        const int64_t panels = a->k_vectors ? a->block / (a->k_vectors * a->t.lanes) : 0;
        one_block(a, rows, MUL(qn_loop_counter(loop), INDEX(a->block)),
                  MUL(qn_loop_counter(loop), INDEX(panels)), end, group);
        qn_attention_end(&a->t, loop);
    }
    store_results(a, rows);
}

/* ---- tiles and tasks ---- */

/* Tiles [from, to): of one height where the number of queries is known; otherwise the queries behind the full tiles are done in
 * smaller ones. */
static void tiles(attention *a, int height, qn_kvalue *from, qn_kvalue *to)
{
    if (qn_dim_is_const(a->t.n_queries)) {
        qn_kinst *loop = qn_attention_for(&a->t, from, to);
        tile(a, height, MUL(qn_loop_counter(loop), INDEX(height)));
        qn_attention_end(&a->t, loop);
        return;
    }
    const int small = height / 3;
    qn_kvalue *full = DIV(a->t.n_queries_value, INDEX(height));
    qn_kinst *loop = qn_attention_for(&a->t, from, MIN(to, full));
    tile(a, height, MUL(qn_loop_counter(loop), INDEX(height)));
    qn_attention_end(&a->t, loop);
    qn_kvalue *rest = MOD(a->t.n_queries_value, INDEX(height));
    qn_kinst *last = qn_attention_for(&a->t, MAX(from, full), to);
    qn_kinst *pieces = qn_attention_for(&a->t, INDEX(0), DIV(ADD(rest, INDEX(small - 1)), INDEX(small)));
    tile(a, small,
         ADD(MUL(qn_loop_counter(last), INDEX(height)), MUL(qn_loop_counter(pieces), INDEX(small))));
    qn_attention_end(&a->t, pieces);
    qn_attention_end(&a->t, last);
}

static qn_dim write_tasks(attention *a)
{
    qn_writer *w = &a->t.w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const int64_t height = a->rows;
    const double work = 2 * (double)height * qn_likely_extent(a->t.n_keys) * (double)(a->depth + a->columns);
    int64_t each = (int64_t)(TASK_NANOSECONDS * FLOPS_A_NANOSECOND / (work > 1 ? work : 1)) + 1;
    const qn_dim n_tiles = qn_dim_ceildiv(dims, a->t.n_queries, qn_dim_const(dims, height));
    if (each > n_tiles->max)
        each = n_tiles->max > 1 ? n_tiles->max : 1;
    const qn_dim chunks = qn_dim_ceildiv(dims, n_tiles, qn_dim_const(dims, each));
    const qn_dim parts[3] = { a->t.batches, a->t.heads, chunks };
    const qn_dim tasks = qn_dim_mul(dims, qn_dim_mul(dims, parts[0], parts[1]), parts[2]);
    qn_kvalue *task = qn_kb_task(b), *n_chunks = qn_writer_index(w, chunks),
              *heads = qn_writer_index(w, a->t.heads);
    qn_kvalue *from = MUL(MOD(task, n_chunks), INDEX(each)), *head = DIV(task, n_chunks);
    qn_ispace_set(&a->t.w.space, a->t.head, MOD(head, heads));
    qn_ispace_set(&a->t.w.space, a->t.batch, DIV(head, heads));
    tiles(a, (int)height, from, MIN(ADD(from, INDEX(each)), qn_writer_index(w, n_tiles)));
    return tasks;
}

/* Of tiles of so many rows at most: as even as can be. */
static int even_rows(int most, qn_dim n_queries)
{
    if (!qn_dim_is_const(n_queries) || n_queries->value < 1)
        return most;
    const int64_t n = n_queries->value, count = (n + most - 1) / most;
    return (int)((n + count - 1) / count);
}

/* How many vectors of v go on side by side, in so many sums: each sum waits for the one before it. */
static int most_vectors(const attention *a, int sums)
{
    int vectors = QN_ATTENTION_VECTORS;
    while (vectors > 1 && (a->rows * vectors > sums || a->v_width % ((int64_t)vectors * a->t.lanes) != 0))
        vectors /= 2;
    return vectors;
}

static void read_shape(attention *a)
{
    qn_ispace *space = &a->t.w.space;
    const qn_node *root = a->t.group->root;
    const qn_machine *machine = a->t.w.lowering->options->machine;
    const qn_type *q = &root->operands[0]->type, *k = &root->operands[1]->type, *v = &root->operands[2]->type;
    qn_attention_read(&a->t, root, 3);
    /* Not with numbers that are added to scores: the lowest of all, which hides no key by itself, would be -inf. */
    a->base_2 = machine->lookup && (!a->t.mask || a->t.mask->type.dtype == QUERN_BOOL);
    if (a->base_2)
        a->t.scale *= LOG2_E;
    a->k_vectors = (int)k->dims[4]->value / a->t.lanes;
    const bool turned = !a->k_vectors && qn_attention_fits_columns(root, machine);
    a->rows = turned ? qn_attention_columns(machine) : even_rows(qn_attention_rows(machine), a->t.n_queries);
    a->v_width = v->dims[3]->value;
    a->v_vectors = a->v_width > a->t.lanes ? 2 : 1;
    if (turned)
        a->v_vectors = a->v_width % (2 * a->t.lanes) == 0 ? 2 : 1;
    else if (!a->k_vectors)
        a->v_vectors = most_vectors(a, 2 * qn_attention_rows(machine));
    a->depth = q->dims[3]->value;
    a->columns = qn_attr_dims(root, QN_ATTR_DIMS, NULL)[0]->value;
    a->heads_last = qn_attr_bool(root, QN_ATTR_HEADS_LAST);
    a->k_panels = qn_ispace_import(space, k->dims[2]);
    a->at_depth = qn_ispace_var(space, qn_ispace_import(space, q->dims[3]), false);
    a->column = qn_ispace_var(space, qn_dim_const(space->dims, a->columns), false);
    /* as few blocks as can be, of the same number of panels */
    const int64_t width =
        turned ? QN_ATTENTION_KEYS : (int64_t)(a->k_vectors ? a->k_vectors : 1) * a->t.lanes;
    int64_t most = turned ? qn_attention_columns_block(machine) : BLOCK;
    a->in_turn = turned && a->depth <= DEPTH_IN_TURN && a->t.n_keys->value > KEYS_AT_ONCE;
    if (a->in_turn) /* two at a time */
        most = most / 2 / width * width;
    a->one_block = a->t.n_keys->max <= most;
    int64_t blocks = qn_dim_is_const(a->t.n_keys) ? (a->t.n_keys->value + most - 1) / most : 1;
    int64_t keys = qn_dim_is_const(a->t.n_keys)
                       ? (a->t.n_keys->value + blocks - 1) / (blocks > 0 ? blocks : 1)
                   : a->one_block ? a->t.n_keys->max
                                  : most;
    a->block = (keys + width - 1) / width * width;
    a->t.stride = a->in_turn ? 2 * a->block : a->block + SKEW;
    if (turned)
        a->turned = qn_kernel_add_local(a->t.w.kernel, "turned", QUERN_F32, a->rows * a->depth);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    attention *a = QN_NEW(scratch, attention);
    qn_writer *w = &a->t.w;
    a->t.group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(a);
    qn_value *const packed[2] = { group->root->operands[1], group->root->operands[2] };
    a->k = qn_writer_argument(w, qn_lower_buffer(l, packed[0]), true, false);
    a->v = qn_writer_argument(w, qn_lower_buffer(l, packed[1]), true, false);
    qn_writer_note_load(w, a->k);
    qn_writer_note_load(w, a->v);
    for (int i = 0; i < group->n_inputs; i++) /* k and v too: q may be one of them */
        qn_writer_bind_input(w, group->inputs[i]);
    a->queries = qn_kernel_add_local(w->kernel, "queries", QUERN_F32, a->rows * a->depth);
    a->t.scores = qn_kernel_add_local(w->kernel, "scores", QUERN_F32, a->rows * a->t.stride);
    a->sums = qn_kernel_add_local(w->kernel, "sums", QUERN_F32, a->rows * a->v_width);
    a->maxima = qn_kernel_add_local(w->kernel, "maxima", QUERN_F32, a->rows);
    a->totals = qn_kernel_add_local(w->kernel, "totals", QUERN_F32, a->rows);
    if (!a->one_block)
        a->factors = qn_kernel_add_local(w->kernel, "factors", QUERN_F32, a->rows);
    qn_writer_bind(w, &group->root->results[0], fetch_result, a);
    w->kernel->flops = 2 * qn_likely_extent(a->t.batches) * qn_likely_extent(a->t.heads) *
                       qn_likely_extent(a->t.n_queries) * qn_likely_extent(a->t.n_keys) *
                       (double)(a->depth + a->columns) * (a->t.causal ? 0.5 : 1);
    const qn_dim tasks = write_tasks(a);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_attention = {
    .name = "attention", .keeps = keeps, .matches = matches, .lower = lower
};
