/* The template for attention on GPUs, in one kernel: scores are in registers and never in memory (Dao, FlashAttention-2, 2023).
 *
 *   block: QUERIES of one head
 *     queries -> shared memory
 *     for each KEYS of the head's keys, up to the last that a query sees
 *       keys and values -> shared memory                                        barriers
 *       scores = queries * keys * scale, masked; -inf where there is none
 *       largest = the row's largest so far; powers = exp(scores - largest) -> shared memory
 *       outputs, sums *= exp(largest before - largest); sums += powers; outputs += powers * values
 *     outputs / sums; stores
 *
 * A warp has 16 queries: a thread four of them, and four of a step's keys or of every 32 outputs. So a row's largest and its sum
 * are found by three shuffles among the eight threads that share it. What lies along the depth is turned as it comes to shared
 * memory, as in passes/gpu_gemm.c. Not with strict mathematics: sums are in another order. */
#include "passes/lower.h"
#include "passes/terms.h"

#include <math.h>

enum {
    WARP = 32,
    THREADS = 128,
    ACROSS = 8, /* threads of a warp that share a row */
    FOUR = 4,
    QUERIES = THREADS / ACROSS * FOUR,
    KEYS = ACROSS * FOUR,
    PAD = 4,
    DEPTHS = 16, /* the depth is a multiple */
    MOST = 64,   /* depth, and elements of an output */
    LEAST = 32   /* queries and keys: below, products of few rows are as good */
};

typedef struct attention {
    qn_writer w;
    const qn_node *node;
    qn_kbuffer *q, *k, *v, *mask, *out;
    qn_kbuffer *queries, *keys, *values, *powers; /* shared */
    qn_dim heads, groups, n_queries, n_keys;
    int depth, width, chunks; /* of a query; of an output, in chunks of 32 */
    qn_kvalue *thread, *batch, *head, *group, *first, *row,
        *col; /* row, col: the thread's first in the block; of keys or outputs */
    qn_kvalue *queries_value, *keys_value;
} attention;

#define TERMS (&a->w.b)

static bool is_multiple(qn_dim d, int64_t of)
{
    return qn_dim_is_const(d) && d->value >= of && d->value <= MOST && d->value % of == 0;
}

static bool keeps(const qn_node *node, const qn_pass_options *options)
{
    if (node->op != QN_OP_ATTENTION || !options->machine || !options->machine->gpu ||
        options->math == QN_MATH_STRICT)
        return false;
    const qn_type *q = &node->operands[0]->type, *v = &node->operands[2]->type;
    for (int i = 0; i < node->n_operands; i++) {
        const qn_dtype dtype = node->operands[i]->type.dtype;
        if (dtype != QUERN_F32 && !(i == 3 && dtype == QUERN_BOOL))
            return false;
    }
    return is_multiple(q->dims[3], DEPTHS) && is_multiple(v->dims[3], KEYS) && v->dims[2]->min >= 1 &&
           q->dims[2]->min >= 1 && v->dims[1]->min >= 1 && qn_likely_extent(q->dims[2]) >= LEAST &&
           qn_likely_extent(v->dims[2]) >= LEAST;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return keeps(group->root, options);
}

/* ---- to shared memory ---- */

/* Element [row][0] of the head's rows of an operand. */
static qn_kvalue *row_of(attention *a, qn_kvalue *head, qn_dim heads, qn_kvalue *rows, qn_kvalue *row,
                         int width)
{
    return MUL(ADD(MUL(ADD(MUL(a->batch, qn_writer_index(&a->w, heads)), head), rows), row), INDEX(width));
}

/* `lines` rows from `first` on, turned: to[k][row]. Those behind the last are copies of it. */
static void bring_turned(attention *a, qn_kbuffer *from, qn_kvalue *head, qn_dim heads, qn_kvalue *rows,
                         qn_kvalue *first, qn_kbuffer *to, int lines)
{
    qn_kbuilder *b = &a->w.b;
    for (int i = 0; i < lines * a->depth / FOUR / THREADS; i++) {
        qn_kvalue *n = ADD(a->thread, INDEX((int64_t)i * THREADS)), *pair = DIV(n, INDEX(2)),
                  *line = MOD(pair, INDEX(lines)),
                  *k = MUL(ADD(MUL(DIV(pair, INDEX(lines)), INDEX(2)), MOD(n, INDEX(2))), INDEX(FOUR));
        qn_kvalue *row = MIN(ADD(first, line), ADD(rows, INDEX(-1)));
        qn_kvalue *x = qn_kb_load(b, from, ADD(row_of(a, head, heads, rows, row, a->depth), k), FOUR);
        for (int e = 0; e < FOUR; e++)
            qn_kb_store(b, to, ADD(MUL(ADD(k, INDEX(e)), INDEX(lines + PAD)), line), qn_kb_extract(b, x, e),
                        NULL);
    }
}

/* Rows behind the last are 0: times powers of 0 they add nothing, which copies of an infinite one would. */
static void bring_values(attention *a, qn_kvalue *first)
{
    qn_kbuilder *b = &a->w.b;
    qn_kvalue *zeros = qn_kb_float(b, (qn_ktype){ QUERN_F32, FOUR }, 0);
    for (int i = 0; i < KEYS * a->width / FOUR / THREADS; i++) {
        qn_kvalue *n = ADD(a->thread, INDEX((int64_t)i * THREADS)), *line = DIV(n, INDEX(a->width / FOUR)),
                  *at = MUL(MOD(n, INDEX(a->width / FOUR)), INDEX(FOUR));
        qn_kvalue *row = ADD(first, line), *there = qn_kb_compare(b, QN_LT, row, a->keys_value);
        row = MIN(row, ADD(a->keys_value, INDEX(-1)));
        qn_kvalue *from = ADD(row_of(a, a->group, a->groups, a->keys_value, row, a->width), at);
        qn_kvalue *x = qn_kb_select(b, qn_kb_splat(b, there, FOUR), qn_kb_load(b, a->v, from, FOUR), zeros);
        qn_kb_store(b, a->values, ADD(MUL(line, INDEX(a->width + PAD)), at), x, NULL);
    }
}

/* ---- arithmetic ---- */

static void take(attention *a, qn_kbuffer *from, qn_kvalue *at, qn_kvalue **out)
{
    qn_kvalue *x = qn_kb_load(&a->w.b, from, at, FOUR);
    for (int e = 0; e < FOUR; e++)
        out[e] = qn_kb_extract(&a->w.b, x, e);
}

/* sums[i * columns + j] += x[k][rows of the thread] * y[k][its columns, in fours 32 apart], for all k below `depth` */
static void multiply(attention *a, qn_kbuffer *x, int x_line, qn_kbuffer *y, int y_line, int depth,
                     int columns, qn_kvalue **sums)
{
    qn_kbuilder *b = &a->w.b;
    const int n = FOUR * columns;
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(depth), INDEX(1), QN_TAG_UNROLL, n, sums, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *xs[FOUR], *ys[MOST / ACROSS];
    take(a, x, ADD(MUL(k, INDEX(x_line)), a->row), xs);
    for (int j = 0; j < columns; j += FOUR)
        take(a, y, ADD(MUL(k, INDEX(y_line)), ADD(a->col, INDEX(j * ACROSS))), ys + j);
    for (int i = 0; i < FOUR; i++)
        for (int j = 0; j < columns; j++)
            sums[i * columns + j] = qn_writer_combine(&a->w, QN_SUM, sums[i * columns + j],
                                                      qn_kb_binary(b, QN_OP_MUL, xs[i], ys[j]));
    qn_kb_end_carry(b, loop, sums);
}

static qn_kvalue *number(attention *a, double x)
{
    return qn_kb_float(&a->w.b, (qn_ktype){ QUERN_F32, 1 }, x);
}

/* The row's, of what its eight threads have. */
static qn_kvalue *over_row(attention *a, qn_op op, qn_kvalue *x)
{
    for (int with = 1; with < ACROSS; with *= 2)
        x = qn_kb_binary(&a->w.b, op, x, qn_kb_warp_shuffle(&a->w.b, x, with));
    return x;
}

/* Element of the mask, whose axes are those of [B, H, S, T] or 1. */
static qn_kvalue *load_mask(attention *a, qn_kvalue *query, qn_kvalue *key)
{
    const qn_type *type = &a->node->operands[3]->type;
    qn_kvalue *const index[4] = { a->batch, a->head, MIN(query, ADD(a->queries_value, INDEX(-1))),
                                  MIN(key, ADD(a->keys_value, INDEX(-1))) };
    qn_kvalue *at = INDEX(0);
    for (int i = 0; i < 4; i++) {
        const qn_dim d = qn_ispace_import(&a->w.space, type->dims[i]);
        at = MUL(at, qn_writer_index(&a->w, d));
        if (!qn_dim_is(d, 1))
            at = ADD(at, index[i]);
    }
    return qn_kb_load(&a->w.b, a->mask, at, 1);
}

static qn_kvalue *masked(attention *a, qn_kvalue *score, qn_kvalue *query, qn_kvalue *key)
{
    qn_kbuilder *b = &a->w.b;
    score = qn_kb_binary(b, QN_OP_MUL, score, number(a, qn_attr_float(a->node, QN_ATTR_SCALE)));
    if (a->mask) {
        qn_kvalue *x = load_mask(a, query, key);
        score = x->type.dtype == QUERN_BOOL ? qn_kb_select(b, x, score, number(a, -INFINITY))
                                            : qn_kb_binary(b, QN_OP_ADD, score, x);
    }
    qn_kvalue *there = qn_kb_compare(b, QN_LT, key, a->keys_value);
    if (qn_attr_bool(a->node, QN_ATTR_CAUSAL)) {
        qn_kvalue *last = ADD(query, SUB(a->keys_value, a->queries_value));
        there = qn_kb_binary(b, QN_OP_AND, there, qn_kb_compare(b, QN_LE, key, last));
    }
    return qn_kb_select(b, there, score, number(a, -INFINITY));
}

/* One step, from the key `key` on. carried: outputs of the thread, then the largest and the sum of each of its rows. */
static void step(attention *a, qn_kvalue *key, qn_kvalue **carried)
{
    qn_kbuilder *b = &a->w.b;
    const int columns = FOUR * a->chunks;
    qn_kvalue **largest = carried + FOUR * columns, **sums = largest + FOUR, *scores[FOUR * FOUR];
    qn_kb_barrier(b);
    bring_turned(a, a->k, a->group, a->groups, a->keys_value, key, a->keys, KEYS);
    bring_values(a, key);
    qn_kb_barrier(b);
    for (int i = 0; i < FOUR * FOUR; i++)
        scores[i] = number(a, 0);
    multiply(a, a->queries, QUERIES + PAD, a->keys, KEYS + PAD, a->depth, FOUR, scores);
    for (int i = 0; i < FOUR; i++) {
        qn_kvalue *query = ADD(ADD(a->first, a->row), INDEX(i)), *most = NULL, *sum = NULL;
        for (int j = 0; j < FOUR; j++) {
            qn_kvalue **s = &scores[i * FOUR + j];
            *s = masked(a, *s, query, ADD(ADD(key, a->col), INDEX(j)));
            most = most ? qn_kb_binary(b, QN_OP_MAX, most, *s) : *s;
        }
        most = qn_kb_binary(b, QN_OP_MAX, largest[i], over_row(a, QN_OP_MAX, most));
        qn_kvalue *hidden = qn_kb_compare(b, QN_EQ, most, number(a, -INFINITY)),
                  *shift = qn_kb_select(b, hidden, number(a, 0), most);
        qn_kvalue *less = qn_kb_exp_nonpositive(b, qn_kb_binary(b, QN_OP_SUB, largest[i], shift));
        for (int j = 0; j < FOUR; j++) {
            qn_kvalue **s = &scores[i * FOUR + j];
            *s = qn_kb_exp_nonpositive(b, qn_kb_binary(b, QN_OP_SUB, *s, shift));
            sum = sum ? qn_kb_binary(b, QN_OP_ADD, sum, *s) : *s;
        }
        sums[i] = qn_kb_binary(b, QN_OP_ADD, qn_kb_binary(b, QN_OP_MUL, sums[i], less), sum);
        largest[i] = most;
        for (int j = 0; j < columns; j++)
            carried[i * columns + j] = qn_kb_binary(b, QN_OP_MUL, carried[i * columns + j], less);
    }
    for (int j = 0; j < FOUR; j++)
        for (int i = 0; i < FOUR; i++)
            qn_kb_store(b, a->powers,
                        ADD(MUL(ADD(a->col, INDEX(j)), INDEX(QUERIES + PAD)), ADD(a->row, INDEX(i))),
                        scores[i * FOUR + j], NULL);
    qn_kb_barrier(b);
    multiply(a, a->powers, QUERIES + PAD, a->values, a->width + PAD, KEYS, columns, carried);
}

static void store_rows(attention *a, qn_kvalue *const *carried)
{
    qn_kbuilder *b = &a->w.b;
    const int columns = FOUR * a->chunks;
    for (int i = 0; i < FOUR; i++) {
        qn_kvalue *query = ADD(ADD(a->first, a->row), INDEX(i)),
                  *sum = over_row(a, QN_OP_ADD, carried[FOUR * columns + FOUR + i]);
        sum =
            qn_kb_select(b, qn_kb_compare(b, QN_EQ, sum, number(a, 0)), number(a, 1), sum); /* sees nothing */
        qn_kinst *branch = qn_kb_if(b, qn_kb_compare(b, QN_LT, query, a->queries_value));
        qn_kvalue *to = row_of(a, a->head, a->heads, a->queries_value, query, a->width);
        for (int j = 0; j < columns; j++)
            qn_kb_store(b, a->out, ADD(to, ADD(a->col, INDEX(j / FOUR * KEYS + j % FOUR))),
                        qn_kb_binary(b, QN_OP_DIV, carried[i * columns + j], sum), NULL);
        qn_kb_else(b, branch, 0, NULL);
        qn_kb_end_if(b, branch, 0, NULL);
    }
}

/* ---- the kernel ---- */

static void compute(attention *a)
{
    qn_kbuilder *b = &a->w.b;
    const int n_outputs = FOUR * FOUR * a->chunks, n = n_outputs + 2 * FOUR;
    qn_kvalue *carried[FOUR * MOST / ACROSS + 2 * FOUR], *end = a->keys_value;
    bring_turned(a, a->q, a->head, a->heads, a->queries_value, a->first, a->queries, QUERIES);
    for (int i = 0; i < n; i++)
        carried[i] = number(a, i >= n_outputs && i < n_outputs + FOUR ? -INFINITY : 0);
    if (qn_attr_bool(a->node, QN_ATTR_CAUSAL)) /* what the last query of the block sees */
        end = MIN(end, ADD(ADD(a->first, INDEX(QUERIES)), SUB(a->keys_value, a->queries_value)));
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), end, INDEX(KEYS), QN_TAG_SERIAL, n, carried, NULL);
    step(a, qn_loop_counter(loop), carried);
    qn_kb_end_carry(b, loop, carried);
    store_rows(a, carried);
}

static qn_dim read_shape(attention *a)
{
    qn_writer *w = &a->w;
    qn_dims *dims = w->space.dims;
    const qn_type *q = &a->node->operands[0]->type, *v = &a->node->operands[2]->type;
    a->heads = qn_ispace_import(&w->space, q->dims[1]);
    a->groups = qn_ispace_import(&w->space, v->dims[1]);
    a->n_queries = qn_ispace_import(&w->space, q->dims[2]);
    a->n_keys = qn_ispace_import(&w->space, v->dims[2]);
    a->depth = (int)q->dims[3]->value;
    a->width = (int)v->dims[3]->value;
    a->chunks = a->width / KEYS;
    a->thread = qn_kb_thread(&w->b);
    a->queries_value = qn_writer_index(w, a->n_queries);
    a->keys_value = qn_writer_index(w, a->n_keys);
    const qn_dim blocks = qn_dim_ceildiv(dims, a->n_queries, qn_dim_const(dims, QUERIES));
    qn_kvalue *task = qn_kb_task(&w->b), *n = qn_writer_index(w, blocks),
              *heads = qn_writer_index(w, a->heads);
    a->first = MUL(MOD(task, n), INDEX(QUERIES));
    a->head = MOD(DIV(task, n), heads);
    a->batch = DIV(DIV(task, n), heads);
    a->group = DIV(a->head, DIV(heads, qn_writer_index(w, a->groups)));
    qn_kvalue *lane = MOD(a->thread, INDEX(WARP));
    a->row = ADD(MUL(DIV(a->thread, INDEX(WARP)), INDEX(WARP / ACROSS * FOUR)),
                 MUL(DIV(lane, INDEX(ACROSS)), INDEX(FOUR)));
    a->col = MUL(MOD(lane, INDEX(ACROSS)), INDEX(FOUR));
    return qn_dim_mul(dims, qn_dim_mul(dims, qn_ispace_import(&w->space, q->dims[0]), a->heads), blocks);
}

static qn_kbuffer *argument(attention *a, int operand)
{
    qn_writer *w = &a->w;
    qn_kbuffer *buffer =
        qn_writer_argument(w, qn_lower_buffer(w->lowering, a->node->operands[operand]), true, false);
    qn_writer_note_load(w, buffer);
    return buffer;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    attention *a = QN_NEW(scratch, attention);
    qn_writer *w = &a->w;
    a->node = group->root;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    w->kernel->gpu_threads = THREADS;
    w->kernel->by_thread = true;
    a->q = argument(a, 0);
    a->k = argument(a, 1);
    a->v = argument(a, 2);
    a->mask = a->node->n_operands > 3 ? argument(a, 3) : NULL;
    a->out = qn_writer_argument(w, qn_lower_buffer(l, &group->root->results[0]), false, true);
    const qn_dim tasks = read_shape(a);
    a->queries = qn_kernel_add_shared(w->kernel, "queries", QUERN_F32, (int64_t)a->depth * (QUERIES + PAD));
    a->keys = qn_kernel_add_shared(w->kernel, "keys", QUERN_F32, (int64_t)a->depth * (KEYS + PAD));
    a->values = qn_kernel_add_shared(w->kernel, "values", QUERN_F32, (int64_t)KEYS * (a->width + PAD));
    a->powers = qn_kernel_add_shared(w->kernel, "powers", QUERN_F32, (int64_t)KEYS * (QUERIES + PAD));
    compute(a);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gpu_attention = {
    .name = "gpu_attention", .keeps = keeps, .matches = matches, .lower = lower
};
