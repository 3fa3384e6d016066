/* The template for attention_packed: softmax(q k^T scale + mask) v, of which never more than some rows of scores exist.
 *
 *   task: a batch, a head, some tiles of queries (12 with AVX-512, 6 with 16 registers)
 *     for each tile
 *       rows of q, scaled                          -> local, computed from what q is made of
 *       for each block of keys                     512 at most; all keys at once where they are fewer
 *         for each panel of k: scores of the tile  -> local, in the first cache
 *         for each row: mask, maximum, exp, sum    in place
 *         for each panel of v: weights x v         -> local
 *       divide by the sums, apply what follows element by element, store
 *
 * More than one block makes the softmax an online one: what was summed up so far is scaled by exp(old maximum - new maximum).
 * Causal: blocks and panels that no query of the tile sees are left out. The last tile of a head may have rows that
 * do not exist: they repeat the last query and are not stored. Tasks depend on the shape only. */
#include <math.h>

#include "passes/attention.h"
#include "passes/lower.h"

enum {
    BLOCK = 512, /* keys */
    SKEW = 16,   /* elements between rows of scores, so that they don't share cache sets */
    UNROLL = 2,
    MAX_ROWS = 12,
    MAX_DEPTH = 256, /* columns of q and of v */
    LEAST_QUERIES = 8,
    TASK_NANOSECONDS = 50000,
    FLOPS_A_NANOSECOND = 100 /* of a core: for the size of tasks only */
};

typedef struct {
    qn_writer w;
    const qn_group *group;
    qn_value *q, *mask;                  /* mask: NULL when there is none */
    qn_kbuffer *k, *v;                   /* packed */
    qn_kbuffer *queries, *scores, *sums; /* local: of one tile */
    qn_kbuffer *maxima, *totals,
        *factors; /* by row: largest score, sum of the weights, what `sums` are scaled by */
    int lanes, rows, k_vectors, v_vectors;
    int64_t depth, columns, v_width; /* of q; of the result; of v, whole vectors */
    int64_t block, stride;           /* keys a block; elements between rows of scores */
    double scale;
    bool causal, heads_last, one_block;
    qn_dim batches, heads, groups, n_queries, n_keys, k_panels;
    qn_dim batch, head, query, at_depth, key, column; /* variables */
    qn_kvalue *n_queries_value, *n_keys_value;
    qn_kvalue *first_query, *total; /* of the tile; of the row being stored */
} attention;

/* ---- what it takes ---- */

static int rows_of(const qn_machine *machine)
{
    return machine->vector_registers >= 32 ? MAX_ROWS : MAX_ROWS / 2;
}

/* Of a panel with so many columns in all: the vectors that a tile is wide. */
static int64_t width_of(const qn_machine *machine, qn_dim n)
{
    const int lanes = machine->vector_bytes / 4;
    return n->max > lanes ? 2 * lanes : lanes;
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
    *out_k_width = width_of(machine, keys);
    const int64_t v_panel = width_of(machine, columns);
    *out_v_width = qn_dim_is_const(columns) ? (columns->value + v_panel - 1) / v_panel * v_panel : v_panel;
    return qn_dim_is_const(q->dims[3]) && q->dims[3]->value >= 1 && q->dims[3]->value <= MAX_DEPTH &&
           qn_dim_is_const(columns) && columns->value >= 1 && columns->value <= MAX_DEPTH &&
           q->dims[2]->max >= LEAST_QUERIES && keys->max >= 1;
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

#define INDEX(c) qn_kb_index(&a->w.b, (c))
#define ADD(x, y) qn_kb_iadd(&a->w.b, (x), (y))
#define SUB(x, y) qn_kb_isub(&a->w.b, (x), (y))
#define MUL(x, y) qn_kb_imul(&a->w.b, (x), (y))
#define MIN(x, y) qn_kb_imin(&a->w.b, (x), (y))
#define MAX(x, y) qn_kb_imax(&a->w.b, (x), (y))

static qn_kvalue *counter(const qn_kinst *loop)
{
    return &loop->blocks[0]->arguments[0];
}

static qn_kinst *for_range(attention *a, qn_kvalue *low, qn_kvalue *high)
{
    return qn_kb_for(&a->w.b, low, high, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
}

static void end_for(attention *a, qn_kinst *loop)
{
    qn_kb_end_for(&a->w.b, loop, NULL);
}

static qn_kinst *for_lanes(attention *a, qn_kvalue *low, qn_kvalue *high)
{
    return qn_kb_for(&a->w.b, low, high, INDEX(1), QN_TAG_VECTOR, 0, NULL, NULL);
}

static qn_kvalue *number(attention *a, double value)
{
    return qn_kb_float(&a->w.b, (qn_ktype){ QUERN_F32, 1 }, value);
}

/* x rounded up to whole vectors */
static qn_kvalue *whole_vectors(attention *a, qn_kvalue *x)
{
    return MUL(qn_kb_idiv(&a->w.b, ADD(x, INDEX(a->lanes - 1)), INDEX(a->lanes)), INDEX(a->lanes));
}

static void set_var(attention *a, qn_dim var, qn_kvalue *value)
{
    if (var->kind == QN_DIM_SYMBOL)
        qn_ispace_var_of(&a->w.space, var)->value = value;
}

static void fill(attention *a, qn_kbuffer *buffer, qn_kvalue *from, qn_kvalue *low, qn_kvalue *high,
                 double value)
{
    qn_kinst *loop = for_lanes(a, low, high);
    qn_kb_store(&a->w.b, buffer, ADD(from, counter(loop)), number(a, value), NULL);
    end_for(a, loop);
}

/* ---- the products ---- */

/* For k in [0, high): acc[r][v] += x[r * x_stride + k] * y[panel + k * y_stride][v], in registers. `ahead`, or NULL, is
 * where the memory begins that the first cache is to have later. */
static void product(attention *a, int rows, int vectors, qn_kbuffer *x, int64_t x_stride, qn_kbuffer *y,
                    int64_t y_stride, qn_kvalue *panel, qn_kvalue *high, qn_kvalue *ahead, qn_kvalue **acc)
{
    qn_kbuilder *b = &a->w.b;
    const int n = rows * vectors;
    const int step = qn_k_proven_multiple(high, UNROLL) ? UNROLL : 1;
    qn_kinst *loop = qn_kb_for(b, INDEX(0), high, INDEX(step), QN_TAG_SERIAL, n, acc, NULL);
    for (int i = 0; i < n; i++)
        acc[i] = &loop->blocks[0]->arguments[1 + i];
    for (int u = 0; u < step; u++) {
        qn_kvalue *k = ADD(counter(loop), INDEX(u)), *offset = MUL(k, INDEX(y_stride));
        qn_kvalue *columns[2];
        for (int v = 0; v < vectors; v++) {
            columns[v] = qn_kb_load(b, y, ADD(panel, ADD(offset, INDEX(v * a->lanes))), a->lanes);
            if (ahead && v % (64 / (4 * a->lanes)) == 0) /* once a line */
                qn_kb_prefetch(b, y, ADD(ahead, ADD(offset, INDEX(v * a->lanes))), 0);
        }
        for (int r = 0; r < rows; r++) {
            qn_kvalue *scalar = qn_kb_splat(b, qn_kb_load(b, x, ADD(INDEX(r * x_stride), k), 1), a->lanes);
            for (int v = 0; v < vectors; v++)
                acc[r * vectors + v] = qn_kb_fma(b, scalar, columns[v], acc[r * vectors + v]);
        }
    }
    qn_kb_end_for(b, loop, acc);
    for (int i = 0; i < n; i++)
        acc[i] = &loop->results[i];
}

/* Rows of scores for `n` keys of the block from panel `first` on. */
static void score_panels(attention *a, int rows, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->w.b;
    const int64_t width = (int64_t)a->k_vectors * a->lanes, panel_size = a->depth * width;
    qn_kvalue *count = qn_kb_idiv(b, ADD(n, INDEX(width - 1)), INDEX(width)), *acc[2 * MAX_ROWS];
    qn_kvalue *base = ADD(MUL(group, qn_writer_index(&a->w, a->k_panels)), first);
    qn_kinst *loop = for_range(a, INDEX(0), count);
    qn_kvalue *panel = MUL(ADD(base, counter(loop)), INDEX(panel_size));
    for (int i = 0; i < rows * a->k_vectors; i++)
        acc[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, a->lanes }, 0);
    product(a, rows, a->k_vectors, a->queries, a->depth, a->k, width, panel, INDEX(a->depth),
            ADD(panel, INDEX(panel_size)), acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < a->k_vectors; v++)
            qn_kb_store(b, a->scores,
                        ADD(MUL(counter(loop), INDEX(width)), INDEX(r * a->stride + v * a->lanes)),
                        acc[r * a->k_vectors + v], NULL);
    end_for(a, loop);
}

/* sums = sums * factor + weights x v, over `n` keys from key `first` on. */
static void weigh_values(attention *a, int rows, qn_kvalue *first, qn_kvalue *n, qn_kvalue *group)
{
    qn_kbuilder *b = &a->w.b;
    qn_kvalue *acc[2 * MAX_ROWS], *row = ADD(MUL(group, a->n_keys_value), first);
    const int64_t width = (int64_t)a->v_vectors * a->lanes;
    qn_kinst *loop = for_range(a, INDEX(0), INDEX(a->v_width / width));
    qn_kvalue *column = MUL(counter(loop), INDEX(width));
    qn_kvalue *panel = ADD(MUL(row, INDEX(a->v_width)), column);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *factor = a->one_block ? NULL : qn_kb_load(b, a->factors, INDEX(r), 1);
        for (int v = 0; v < a->v_vectors; v++) {
            qn_kvalue *at = ADD(column, INDEX(r * a->v_width + v * a->lanes));
            acc[r * a->v_vectors + v] = factor ? qn_kb_binary(b, QN_OP_MUL, qn_kb_splat(b, factor, a->lanes),
                                                              qn_kb_load(b, a->sums, at, a->lanes))
                                               : qn_kb_float(b, (qn_ktype){ QUERN_F32, a->lanes }, 0);
        }
    }
    product(a, rows, a->v_vectors, a->scores, a->stride, a->v, a->v_width, panel, n, NULL, acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < a->v_vectors; v++)
            qn_kb_store(b, a->sums, ADD(column, INDEX(r * a->v_width + v * a->lanes)),
                        acc[r * a->v_vectors + v], NULL);
    end_for(a, loop);
}

/* ---- the softmax of a row ---- */

static qn_kvalue *hides(attention *a, qn_kvalue *max)
{
    return qn_kb_compare(&a->w.b, QN_EQ, max, number(a, -INFINITY));
}

/* Scores of row `from` of the local buffer with the mask of query a->query, for `n` keys from key `first` on. */
static void add_mask(attention *a, qn_kvalue *from, qn_kvalue *first, qn_kvalue *n)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    const qn_dim vars[4] = { a->batch, a->head, a->query, a->key };
    qn_dim index[4];
    for (int i = 0; i < 4; i++)
        index[i] = qn_dim_is(a->mask->type.dims[i], 1) ? qn_dim_const(w->space.dims, 0) : vars[i];
    qn_writer_loop loop = qn_writer_for(w, a->key, first, ADD(first, n), QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *key = loop.inst ? SUB(counter(loop.inst), first) : INDEX(0);
    qn_kvalue *score = qn_kb_load(b, a->scores, ADD(from, key), 1),
              *mask = qn_writer_value(w, a->mask, index);
    score = a->mask->type.dtype == QUERN_BOOL ? qn_kb_select(b, mask, score, number(a, -INFINITY))
                                              : qn_kb_binary(b, QN_OP_ADD, score, mask);
    qn_kb_store(b, a->scores, ADD(from, key), score, NULL);
    qn_writer_end_for(w, &loop, NULL);
}

/* Row `row` of the scores becomes weights; `n` keys of the block from key `first` on are what any row of the tile sees. */
static void weigh_row(attention *a, qn_kvalue *row, qn_kvalue *first, qn_kvalue *n)
{
    qn_kbuilder *b = &a->w.b;
    qn_kvalue *from = MUL(row, INDEX(a->stride)), *seen = n;
    set_var(a, a->query, MIN(ADD(a->first_query, row), SUB(a->n_queries_value, INDEX(1))));
    qn_kvalue *query = qn_writer_index(&a->w, a->query);
    if (a->causal) {
        qn_kvalue *last = ADD(query, SUB(ADD(a->n_keys_value, INDEX(1)), a->n_queries_value));
        seen = MIN(MAX(SUB(last, first), INDEX(0)), n);
    }
    if (a->mask)
        add_mask(a, from, first, seen);
    qn_kvalue *whole = whole_vectors(a, seen);
    fill(a, a->scores, from, seen, whole, -INFINITY);

    const qn_kind max_kind = QN_KIND_MAX, sum_kind = QN_SUM;
    qn_kvalue *old = a->one_block ? number(a, -INFINITY) : qn_kb_load(b, a->maxima, row, 1);
    qn_kinst *loop = qn_kb_for(b, INDEX(0), whole, INDEX(1), QN_TAG_VECTOR, 1, &old, &max_kind);
    qn_kvalue *max = qn_kb_binary(b, QN_OP_MAX, &loop->blocks[0]->arguments[1],
                                  qn_kb_load(b, a->scores, ADD(from, counter(loop)), 1));
    qn_kb_end_for(b, loop, &max);
    max = &loop->results[0];
    qn_kvalue *shift = qn_kb_select(b, hides(a, max), number(a, 0), max), *sum = number(a, 0);

    loop = qn_kb_for(b, INDEX(0), whole, INDEX(1), QN_TAG_VECTOR, 1, &sum, &sum_kind);
    qn_kvalue *score = qn_kb_load(b, a->scores, ADD(from, counter(loop)), 1);
    qn_kvalue *weight = qn_kb_unary(b, QN_OP_EXP, qn_kb_binary(b, QN_OP_SUB, score, shift));
    qn_kb_store(b, a->scores, ADD(from, counter(loop)), weight, NULL);
    sum = qn_kb_binary(b, QN_OP_ADD, &loop->blocks[0]->arguments[1], weight);
    qn_kb_end_for(b, loop, &sum);
    sum = &loop->results[0];
    if (a->causal) /* what other rows of the tile see */
        fill(a, a->scores, from, whole, n, 0);
    if (!a->one_block) {
        qn_kvalue *factor = qn_kb_unary(b, QN_OP_EXP, qn_kb_binary(b, QN_OP_SUB, old, shift));
        qn_kvalue *total = qn_kb_binary(b, QN_OP_MUL, qn_kb_load(b, a->totals, row, 1), factor);
        sum = qn_kb_binary(b, QN_OP_ADD, total, sum);
        qn_kb_store(b, a->factors, row, factor, NULL);
    }
    qn_kb_store(b, a->maxima, row, max, NULL);
    qn_kb_store(b, a->totals, row, sum, NULL);
}

/* ---- a tile ---- */

static void load_queries(attention *a, int rows)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    const qn_dim index[4] = { a->batch, a->head, a->query, a->at_depth };
    qn_kinst *by_row = for_range(a, INDEX(0), INDEX(rows));
    const size_t mark = qn_writer_mark(w);
    set_var(a, a->query, MIN(ADD(a->first_query, counter(by_row)), SUB(a->n_queries_value, INDEX(1))));
    qn_writer_prepare(w, a->q, index);
    qn_writer_loop loop = qn_writer_for_all(w, a->at_depth, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *depth = loop.inst ? counter(loop.inst) : INDEX(0);
    qn_kvalue *scaled = qn_kb_binary(b, QN_OP_MUL, qn_writer_value(w, a->q, index), number(a, a->scale));
    qn_kb_store(b, a->queries, ADD(MUL(counter(by_row), INDEX(a->depth)), depth), scaled, NULL);
    qn_writer_end_for(w, &loop, NULL);
    qn_writer_forget(w, mark);
    end_for(a, by_row);
}

static void one_block(attention *a, int rows, qn_kvalue *first, qn_kvalue *first_panel, qn_kvalue *end,
                      qn_kvalue *group)
{
    qn_kvalue *n = a->one_block ? end : MIN(SUB(end, first), INDEX(a->block));
    score_panels(a, rows, first_panel, n, group);
    qn_kinst *by_row = for_range(a, INDEX(0), INDEX(rows));
    const size_t mark = qn_writer_mark(&a->w);
    weigh_row(a, counter(by_row), first, n);
    qn_writer_forget(&a->w, mark);
    end_for(a, by_row);
    weigh_values(a, rows, first, n, group);
}

/* The result's element at the place at work: qn_fetch_fn. */
static qn_kvalue *fetch_result(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    attention *a = user;
    (void)value, (void)index;
    qn_kvalue *row = SUB(qn_writer_index(w, a->query), a->first_query);
    qn_kvalue *sum =
        qn_kb_load(&w->b, a->sums, ADD(MUL(row, INDEX(a->v_width)), qn_writer_index(w, a->column)), 1);
    return qn_kb_binary(&w->b, QN_OP_DIV, sum, a->total);
}

static void store_results(attention *a, int rows)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    const qn_group *group = a->group;
    const qn_dim index[4] = { a->batch, a->heads_last ? a->query : a->head,
                              a->heads_last ? a->head : a->query, a->column };
    qn_kvalue *past = MIN(ADD(a->first_query, INDEX(rows)), a->n_queries_value);
    qn_writer_loop by_row = qn_writer_for(w, a->query, a->first_query, past, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *row = SUB(qn_writer_index(w, a->query), a->first_query);
    a->total = qn_kb_select(b, hides(a, qn_kb_load(b, a->maxima, row, 1)), number(a, 1),
                            qn_kb_load(b, a->totals, row, 1));
    qn_writer_loop by_column = qn_writer_for_all(w, a->column, QN_TAG_VECTOR, 0, NULL, NULL);
    const qn_type *root = &group->root->results[0].type;
    qn_dim from[QN_MAX_RANK];
    qn_ispace_dims(&w->space, root, from);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, group->n_outputs);
    qn_dim *linear = QN_NEW_ARRAY(w->arena, qn_dim, group->n_outputs);
    for (int i = 0; i < group->n_outputs; i++) {
        const qn_type *type = &group->outputs[i]->type;
        qn_dim dims[QN_MAX_RANK], at[QN_MAX_RANK];
        qn_ispace_dims(&w->space, type, dims);
        qn_ix_reshape(&w->space, root->rank, from, index, type->rank, dims, at);
        linear[i] = qn_ix_linear(&w->space, type->rank, dims, at);
        values[i] = qn_writer_value(w, group->outputs[i], at);
    }
    for (int i = 0; i < group->n_outputs; i++) {
        const int buffer = qn_lower_buffer(w->lowering, group->outputs[i]);
        qn_writer_store(w, qn_writer_argument(w, buffer, false, true), linear[i], values[i]);
    }
    qn_writer_end_for(w, &by_column, NULL);
    qn_writer_end_for(w, &by_row, NULL);
}

/* `rows` queries from `first_query` on */
static void tile(attention *a, int rows, qn_kvalue *first_query)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    a->first_query = first_query;
    load_queries(a, rows);
    qn_kvalue *group = ADD(MUL(qn_writer_index(w, a->batch), qn_writer_index(w, a->groups)),
                           qn_kb_idiv(b, MUL(qn_writer_index(w, a->head), qn_writer_index(w, a->groups)),
                                      qn_writer_index(w, a->heads)));
    qn_kvalue *end = a->n_keys_value;
    if (a->causal) {
        qn_kvalue *past = MIN(ADD(first_query, INDEX(rows)), a->n_queries_value);
        end = MIN(MAX(ADD(past, SUB(a->n_keys_value, a->n_queries_value)), INDEX(0)), end);
    }
    if (a->one_block) {
        one_block(a, rows, INDEX(0), INDEX(0), end, group);
    } else {
        fill(a, a->sums, INDEX(0), INDEX(0), INDEX(rows * a->v_width), 0);
        fill(a, a->totals, INDEX(0), INDEX(0), INDEX(rows), 0);
        fill(a, a->maxima, INDEX(0), INDEX(0), INDEX(rows), -INFINITY);
        qn_kvalue *count = qn_kb_idiv(b, ADD(end, INDEX(a->block - 1)), INDEX(a->block));
        qn_kinst *loop = for_range(a, INDEX(0), count);
        one_block(a, rows, MUL(counter(loop), INDEX(a->block)),
                  MUL(counter(loop), INDEX(a->block / (a->k_vectors * a->lanes))), end, group);
        end_for(a, loop);
    }
    store_results(a, rows);
}

/* ---- tiles and tasks ---- */

/* Tiles [from, to): of one height where the number of queries is known; otherwise the queries behind the full tiles are done in
 * smaller ones. */
static void tiles(attention *a, int height, qn_kvalue *from, qn_kvalue *to)
{
    qn_kbuilder *b = &a->w.b;
    if (qn_dim_is_const(a->n_queries)) {
        qn_kinst *loop = for_range(a, from, to);
        tile(a, height, MUL(counter(loop), INDEX(height)));
        end_for(a, loop);
        return;
    }
    const int small = height / 3;
    qn_kvalue *full = qn_kb_idiv(b, a->n_queries_value, INDEX(height));
    qn_kinst *loop = for_range(a, from, MIN(to, full));
    tile(a, height, MUL(counter(loop), INDEX(height)));
    end_for(a, loop);
    qn_kvalue *rest = qn_kb_imod(b, a->n_queries_value, INDEX(height));
    qn_kinst *last = for_range(a, MAX(from, full), to);
    qn_kinst *pieces = for_range(a, INDEX(0), qn_kb_idiv(b, ADD(rest, INDEX(small - 1)), INDEX(small)));
    tile(a, small, ADD(MUL(counter(last), INDEX(height)), MUL(counter(pieces), INDEX(small))));
    end_for(a, pieces);
    end_for(a, last);
}

static qn_dim write_tasks(attention *a)
{
    qn_writer *w = &a->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    int64_t height = a->rows;
    if (qn_dim_is_const(a->n_queries)) { /* as even as can be */
        const int64_t n = a->n_queries->value, count = (n + height - 1) / height;
        height = count > 0 ? (n + count - 1) / count : height;
    }
    const double work = 2 * (double)height * qn_likely_extent(a->n_keys) * (double)(a->depth + a->columns);
    int64_t each = (int64_t)(TASK_NANOSECONDS * FLOPS_A_NANOSECOND / (work > 1 ? work : 1)) + 1;
    const qn_dim n_tiles = qn_dim_ceildiv(dims, a->n_queries, qn_dim_const(dims, height));
    if (each > n_tiles->max)
        each = n_tiles->max > 1 ? n_tiles->max : 1;
    const qn_dim chunks = qn_dim_ceildiv(dims, n_tiles, qn_dim_const(dims, each));
    const qn_dim parts[3] = { a->batches, a->heads, chunks };
    const qn_dim tasks = qn_dim_mul(dims, qn_dim_mul(dims, parts[0], parts[1]), parts[2]);
    qn_kvalue *task = qn_kb_task(b), *n_chunks = qn_writer_index(w, chunks),
              *heads = qn_writer_index(w, a->heads);
    qn_kvalue *from = MUL(qn_kb_imod(b, task, n_chunks), INDEX(each)), *head = qn_kb_idiv(b, task, n_chunks);
    set_var(a, a->head, qn_kb_imod(b, head, heads));
    set_var(a, a->batch, qn_kb_idiv(b, head, heads));
    tiles(a, (int)height, from, MIN(ADD(from, INDEX(each)), qn_writer_index(w, n_tiles)));
    return tasks;
}

static void read_shape(attention *a)
{
    qn_ispace *space = &a->w.space;
    const qn_node *root = a->group->root;
    const qn_machine *machine = a->w.lowering->options->machine;
    const qn_type *q = &root->operands[0]->type, *k = &root->operands[1]->type, *v = &root->operands[2]->type;
    a->q = root->operands[0];
    a->mask = root->n_operands > 3 ? root->operands[3] : NULL;
    a->lanes = machine->vector_bytes / 4;
    a->rows = rows_of(machine);
    a->k_vectors = (int)k->dims[4]->value / a->lanes;
    a->v_width = v->dims[3]->value;
    a->v_vectors = a->v_width > a->lanes ? 2 : 1;
    a->depth = q->dims[3]->value;
    a->columns = qn_attr_dims(root, QN_ATTR_DIMS, NULL)[0]->value;
    a->scale = qn_attr_float(root, QN_ATTR_SCALE);
    a->causal = qn_attr_bool(root, QN_ATTR_CAUSAL);
    a->heads_last = qn_attr_bool(root, QN_ATTR_HEADS_LAST);
    a->batches = qn_ispace_import(space, q->dims[0]);
    a->heads = qn_ispace_import(space, q->dims[1]);
    a->n_queries = qn_ispace_import(space, q->dims[2]);
    a->groups = qn_ispace_import(space, k->dims[1]);
    a->k_panels = qn_ispace_import(space, k->dims[2]);
    a->n_keys = qn_ispace_import(space, v->dims[2]);
    a->batch = qn_ispace_var(space, a->batches, false);
    a->head = qn_ispace_var(space, a->heads, false);
    a->query = qn_ispace_var(space, a->n_queries, false);
    a->at_depth = qn_ispace_var(space, qn_ispace_import(space, q->dims[3]), false);
    a->key = qn_ispace_var(space, a->n_keys, false);
    a->column = qn_ispace_var(space, qn_dim_const(space->dims, a->columns), false);
    a->n_queries_value = qn_writer_index(&a->w, a->n_queries);
    a->n_keys_value = qn_writer_index(&a->w, a->n_keys);
    /* as few blocks as can be, of the same number of panels */
    const int64_t width = (int64_t)a->k_vectors * a->lanes;
    a->one_block = a->n_keys->max <= BLOCK;
    int64_t blocks = qn_dim_is_const(a->n_keys) ? (a->n_keys->value + BLOCK - 1) / BLOCK : 1;
    int64_t keys = qn_dim_is_const(a->n_keys) ? (a->n_keys->value + blocks - 1) / (blocks > 0 ? blocks : 1)
                   : a->one_block             ? a->n_keys->max
                                              : BLOCK;
    a->block = (keys + width - 1) / width * width;
    a->stride = a->block + SKEW;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    attention *a = QN_NEW(scratch, attention);
    qn_writer *w = &a->w;
    a->group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(a);
    qn_value *const packed[2] = { group->root->operands[1], group->root->operands[2] };
    a->k = qn_writer_argument(w, qn_lower_buffer(l, packed[0]), true, false);
    a->v = qn_writer_argument(w, qn_lower_buffer(l, packed[1]), true, false);
    qn_writer_note_load(w, a->k);
    qn_writer_note_load(w, a->v);
    for (int i = 0; i < group->n_inputs; i++)
        if (group->inputs[i] != packed[0] && group->inputs[i] != packed[1])
            qn_writer_bind_input(w, group->inputs[i]);
    a->queries = qn_kernel_add_local(w->kernel, "queries", QUERN_F32, a->rows * a->depth);
    a->scores = qn_kernel_add_local(w->kernel, "scores", QUERN_F32, a->rows * a->stride);
    a->sums = qn_kernel_add_local(w->kernel, "sums", QUERN_F32, a->rows * a->v_width);
    a->maxima = qn_kernel_add_local(w->kernel, "maxima", QUERN_F32, a->rows);
    a->totals = qn_kernel_add_local(w->kernel, "totals", QUERN_F32, a->rows);
    if (!a->one_block)
        a->factors = qn_kernel_add_local(w->kernel, "factors", QUERN_F32, a->rows);
    qn_writer_bind(w, &group->root->results[0], fetch_result, a);
    w->kernel->flops = 2 * qn_likely_extent(a->batches) * qn_likely_extent(a->heads) *
                       qn_likely_extent(a->n_queries) * qn_likely_extent(a->n_keys) *
                       (double)(a->depth + a->columns) * (a->causal ? 0.5 : 1);
    const qn_dim tasks = write_tasks(a);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_attention = {
    .name = "attention", .keeps = keeps, .matches = matches, .lower = lower
};
