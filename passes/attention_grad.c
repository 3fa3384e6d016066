/* The template for attention_grad: gradients of q, k and v, of which never more than some rows of scores exist.
 *
 *   task: a batch, a head of k and v
 *     k and v in panels                              -> workspace
 *     gradients of k and v = 0
 *     for each head of q that reads them, each tile of queries (12 with AVX-512, 6 with 16 registers; fewer where keys are many)
 *       rows of q, scaled, and of the gradient g     -> local
 *       scores = q k^T, slopes = g v^T               -> local, over all keys that the tile sees
 *       for each row: weights = softmax(scores), slopes = weights (slopes - sum(weights slopes)), in place
 *       gradient of q = slopes k
 *       gradients of v += weights^T g, of k += slopes^T q: products as deep as the tile is high
 *
 * The forward pass keeps nothing for it, as in FlashAttention (Dao 2023), where a row's largest score and sum are kept because its
 * rows are seen in pieces. Tasks depend on the shape only. */
#include <math.h>

#include "passes/attention.h"
#include "passes/attention_tile.h"
#include "passes/terms.h"

enum {
    SKEW = 16,       /* elements between rows of scores, so that they don't share cache sets */
    MAX_DEPTH = 256, /* columns of q and of v */
    MAX_KEYS = 8192,
    LEAST_QUERIES = 8,
    TILE_BYTES = 200 * 1024 /* of scores and slopes */
};

typedef struct grad {
    qn_attention t;
    qn_kbuffer *q, *k, *v, *g, *gq, *gk, *gv;
    qn_kbuffer *k_panels, *v_panels;          /* of the workspace */
    qn_kbuffer *queries, *gradients, *slopes; /* local: of one tile */
    int rows, vectors;                        /* of a tile; of a panel */
    int64_t depth, columns;                   /* of q; of v */
    qn_dim n_panels;
    qn_kvalue *first_query, *group, *head; /* of the tile; of all batches: of k and v, of q */
} grad;

/* ---- what it takes ---- */

static int64_t stride_of(qn_dim keys, int64_t width)
{
    return (keys->max + width - 1) / width * width + SKEW;
}

static int rows_of(const qn_machine *machine, int64_t stride)
{
    const int most = qn_attention_rows(machine);
    const int64_t fit = TILE_BYTES / (2 * 4 * stride);
    return fit < most ? (int)fit : most;
}

static bool keeps(const qn_node *node, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (node->op != QN_OP_ATTENTION_GRAD || !machine || machine->gpu || machine->vector_bytes < 16 ||
        options->math == QN_MATH_STRICT)
        return false;
    const qn_type *q = &node->operands[0]->type, *v = &node->operands[2]->type;
    const int lanes = machine->vector_bytes / 4;
    for (int i = 0; i < 2; i++) {
        const qn_dim columns = i ? v->dims[3] : q->dims[3];
        if (!qn_dim_is_const(columns) || columns->value < 1 || columns->value > MAX_DEPTH ||
            columns->value % lanes != 0)
            return false;
    }
    return q->dtype == QUERN_F32 && q->dims[2]->max >= LEAST_QUERIES && v->dims[2]->max >= 1 &&
           v->dims[2]->max <= MAX_KEYS;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return keeps(group->root, options);
}

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&a->t.w.b)
#define AT(loop) qn_loop_counter(loop)

static int64_t width_of(const grad *a)
{
    return (int64_t)a->vectors * a->t.lanes;
}

/* Where the group's rows of k or v begin. */
static qn_kvalue *rows_at(grad *a, int64_t columns)
{
    return MUL(MUL(a->group, a->t.n_keys_value), INDEX(columns));
}

static qn_kvalue *panels_at(grad *a, int64_t columns)
{
    return MUL(MUL(a->group, qn_writer_index(&a->t.w, a->n_panels)), INDEX(columns * width_of(a)));
}

/* ---- before the tiles ---- */

/* Rows of `from` as panels; behind the last key its row is repeated, which nobody looks at. */
static void pack(grad *a, qn_kbuffer *from, qn_kbuffer *to, int64_t columns)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes;
    qn_kvalue *rows = rows_at(a, columns), *panels = panels_at(a, columns),
              *last = SUB(a->t.n_keys_value, INDEX(1));
    qn_kinst *panel = qn_attention_for(&a->t, INDEX(0), qn_writer_index(&a->t.w, a->n_panels));
    qn_kvalue *base = ADD(panels, MUL(AT(panel), INDEX(columns * width_of(a))));
    qn_kinst *block = qn_kb_for(b, INDEX(0), INDEX(columns), INDEX(lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    for (int v = 0; v < a->vectors; v++) {
        qn_kvalue *x[QN_TRANSPOSE_LANES], *key = ADD(MUL(AT(panel), INDEX(width_of(a))), INDEX(v * lanes));
        for (int i = 0; i < lanes; i++) {
            qn_kvalue *row = MUL(MIN(ADD(key, INDEX(i)), last), INDEX(columns));
            x[i] = qn_kb_load(b, from, ADD(ADD(rows, row), AT(block)), lanes);
        }
        qn_kb_transpose(b, lanes, x);
        for (int i = 0; i < lanes; i++) {
            qn_kvalue *at = ADD(base, MUL(ADD(AT(block), INDEX(i)), INDEX(width_of(a))));
            qn_kb_store(b, to, ADD(at, INDEX(v * lanes)), x[i], NULL);
        }
    }
    qn_attention_end(&a->t, block);
    qn_attention_end(&a->t, panel);
}

/* The tile's rows of q and g. Queries that do not exist are the last one, with no gradient. */
static void load_rows(grad *a, int rows)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kinst *row = qn_attention_for(&a->t, INDEX(0), INDEX(rows));
    qn_kvalue *query = ADD(a->first_query, AT(row)),
              *exists = qn_kb_compare(b, QN_LT, query, a->t.n_queries_value);
    qn_kvalue *from =
        ADD(MUL(a->head, a->t.n_queries_value), MIN(query, SUB(a->t.n_queries_value, INDEX(1))));
    qn_kinst *at = qn_attention_lanes(&a->t, INDEX(0), INDEX(a->depth));
    qn_kvalue *x = qn_kb_load(b, a->q, ADD(MUL(from, INDEX(a->depth)), AT(at)), 1);
    x = qn_kb_binary(b, QN_OP_MUL, x, qn_attention_number(&a->t, a->t.scale));
    qn_kb_store(b, a->queries, ADD(MUL(AT(row), INDEX(a->depth)), AT(at)), x, NULL);
    qn_attention_end(&a->t, at);
    at = qn_attention_lanes(&a->t, INDEX(0), INDEX(a->columns));
    x = qn_kb_load(b, a->g, ADD(MUL(from, INDEX(a->columns)), AT(at)), 1);
    x = qn_kb_select(b, exists, x, qn_attention_number(&a->t, 0));
    qn_kb_store(b, a->gradients, ADD(MUL(AT(row), INDEX(a->columns)), AT(at)), x, NULL);
    qn_attention_end(&a->t, at);
    qn_attention_end(&a->t, row);
}

/* ---- products ---- */

/* Rows of x times the panels, over `n` keys: scores and slopes. */
static void times_panels(grad *a, int rows, qn_kbuffer *x, int64_t columns, qn_kbuffer *panels,
                         qn_kbuffer *to, qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes;
    const int64_t width = width_of(a), size = columns * width;
    qn_kvalue *count = DIV(ADD(n, INDEX(width - 1)), INDEX(width)), *acc[2 * QN_ATTENTION_ROWS];
    qn_kvalue *base = panels_at(a, columns);
    qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), count);
    qn_kvalue *panel = ADD(base, MUL(AT(loop), INDEX(size)));
    for (int i = 0; i < rows * a->vectors; i++)
        acc[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, lanes }, 0);
    qn_attention_product(&a->t, rows, a->vectors, x, columns, panels, width, panel, INDEX(columns),
                         ADD(panel, INDEX(size)), acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < a->vectors; v++)
            qn_kb_store(b, to, ADD(MUL(AT(loop), INDEX(width)), INDEX(r * a->t.stride + v * lanes)),
                        acc[r * a->vectors + v], NULL);
    qn_attention_end(&a->t, loop);
}

/* The most vectors up to `most`, a power of two, that divide so many columns. */
static int vectors_of(const grad *a, int64_t columns, int most)
{
    while (columns % ((int64_t)most * a->t.lanes) != 0)
        most /= 2;
    return most;
}

/* Gradients of the tile's rows of q: slopes times k, over `n` keys. */
static void store_queries(grad *a, int rows, qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes, vectors = vectors_of(a, a->depth, 2);
    qn_kvalue *acc[2 * QN_ATTENTION_ROWS], *from = rows_at(a, a->depth);
    qn_kvalue *scale = qn_kb_splat(b, qn_attention_number(&a->t, a->t.scale), lanes);
    qn_kinst *loop = qn_kb_for(b, INDEX(0), INDEX(a->depth), INDEX((int64_t)vectors * lanes), QN_TAG_SERIAL,
                               0, NULL, NULL);
    for (int i = 0; i < rows * vectors; i++)
        acc[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, lanes }, 0);
    qn_attention_product(&a->t, rows, vectors, a->slopes, a->t.stride, a->k, a->depth, ADD(from, AT(loop)), n,
                         NULL, acc);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *query = ADD(a->first_query, INDEX(r)),
                  *exists = qn_kb_splat(b, qn_kb_compare(b, QN_LT, query, a->t.n_queries_value), lanes);
        qn_kvalue *to = MUL(ADD(MUL(a->head, a->t.n_queries_value), query), INDEX(a->depth));
        for (int v = 0; v < vectors; v++)
            qn_kb_store(b, a->gq, ADD(ADD(to, AT(loop)), INDEX(v * lanes)),
                        qn_kb_binary(b, QN_OP_MUL, scale, acc[r * vectors + v]), exists);
    }
    qn_attention_end(&a->t, loop);
}

/* to[key + i][column …] += sum over the tile's rows r of x[r][key + i] y[r][column …], for `keys` keys. */
static void add_block(grad *a, int rows, int keys, int vectors, qn_kbuffer *x, qn_kbuffer *y, qn_kbuffer *to,
                      int64_t columns, qn_kvalue *key, qn_kvalue *column)
{
    qn_kbuilder *b = &a->t.w.b;
    const int lanes = a->t.lanes, n = keys * vectors;
    qn_kvalue *acc[2 * QN_ATTENTION_ROWS],
        *base = ADD(ADD(rows_at(a, columns), column), MUL(key, INDEX(columns)));
    for (int i = 0; i < keys; i++)
        for (int v = 0; v < vectors; v++)
            acc[i * vectors + v] = qn_kb_load(b, to, ADD(base, INDEX(i * columns + v * lanes)), lanes);
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(rows), INDEX(1), QN_TAG_SERIAL, n, acc, NULL);
    qn_kvalue *row[4], *from = ADD(MUL(AT(loop), INDEX(columns)), column);
    for (int v = 0; v < vectors; v++)
        row[v] = qn_kb_load(b, y, ADD(from, INDEX(v * lanes)), lanes);
    for (int i = 0; i < keys; i++) {
        qn_kvalue *at = ADD(ADD(MUL(AT(loop), INDEX(a->t.stride)), key), INDEX(i));
        qn_kvalue *weight = qn_kb_splat(b, qn_kb_load(b, x, at, 1), lanes);
        for (int v = 0; v < vectors; v++)
            acc[i * vectors + v] = qn_kb_fma(b, weight, row[v], acc[i * vectors + v]);
    }
    qn_kb_end_carry(b, loop, acc);
    for (int i = 0; i < keys; i++)
        for (int v = 0; v < vectors; v++)
            qn_kb_store(b, to, ADD(base, INDEX(i * columns + v * lanes)), acc[i * vectors + v], NULL);
}

/* Gradients of k or v += x^T y, for the first `n` keys. */
static void add_rows(grad *a, int rows, qn_kbuffer *x, qn_kbuffer *y, qn_kbuffer *to, int64_t columns,
                     qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    const bool many = a->t.w.lowering->options->machine->vector_registers >= 32;
    const int vectors = vectors_of(a, columns, many ? 4 : 2);
    const int keys = (many ? 24 : 12) / (vectors > 1 ? vectors : 2);
    qn_kinst *block = qn_kb_for(b, INDEX(0), INDEX(columns), INDEX((int64_t)vectors * a->t.lanes),
                                QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *even = SUB(n, MOD(n, INDEX(keys)));
    qn_kinst *loop = qn_kb_for(b, INDEX(0), even, INDEX(keys), QN_TAG_SERIAL, 0, NULL, NULL);
    add_block(a, rows, keys, vectors, x, y, to, columns, AT(loop), AT(block));
    qn_attention_end(&a->t, loop);
    loop = qn_attention_for(&a->t, even, n);
    add_block(a, rows, 1, vectors, x, y, to, columns, AT(loop), AT(block));
    qn_attention_end(&a->t, loop);
    qn_attention_end(&a->t, block);
}

/* ---- a row, a tile ---- */

static qn_kvalue *load_at(grad *a, qn_kbuffer *buffer, qn_kvalue *from, const qn_kinst *loop)
{
    return qn_kb_load(&a->t.w.b, buffer, ADD(from, AT(loop)), 1);
}

/* Row `row`: scores become weights, and slopes, of the weights until then, those of the scores; over the `n` keys of the tile. */
static void finish_row(grad *a, qn_kvalue *row, qn_kvalue *n)
{
    qn_kbuilder *b = &a->t.w.b;
    qn_kbuffer *scores = a->t.scores;
    const qn_kind max_kind = QN_KIND_MAX, sum_kind = QN_SUM;
    qn_kvalue *from = MUL(row, INDEX(a->t.stride)), *seen = n, *none = INDEX(0),
              *zero = qn_attention_number(&a->t, 0);
    qn_ispace_set(&a->t.w.space, a->t.query,
                  MIN(ADD(a->first_query, row), SUB(a->t.n_queries_value, INDEX(1))));
    if (a->t.causal)
        seen =
            MIN(MAX(qn_attention_seen(&a->t, ADD(qn_writer_index(&a->t.w, a->t.query), INDEX(1))), none), n);
    if (a->t.mask)
        qn_attention_mask(&a->t, from, none, seen);
    qn_kvalue *whole = qn_attention_whole(&a->t, seen);
    qn_attention_fill(&a->t, scores, from, seen, whole, -INFINITY);

    qn_kvalue *max = qn_attention_number(&a->t, -INFINITY);
    qn_kinst *loop = qn_kb_carry(b, none, whole, INDEX(1), QN_TAG_VECTOR, 1, &max, &max_kind);
    max = qn_kb_binary(b, QN_OP_MAX, max, load_at(a, scores, from, loop));
    qn_kb_end_carry(b, loop, &max);
    qn_kvalue *hides = qn_attention_hides(&a->t, max), *shift = qn_kb_select(b, hides, zero, max);

    const qn_kind sums[2] = { sum_kind, sum_kind };
    qn_kvalue *carried[2] = { zero, zero };
    loop = qn_kb_carry(b, none, whole, INDEX(1), QN_TAG_VECTOR, 2, carried, sums);
    qn_kvalue *weight =
        qn_kb_unary(b, QN_OP_EXP, qn_kb_binary(b, QN_OP_SUB, load_at(a, scores, from, loop), shift));
    qn_kb_store(b, scores, ADD(from, AT(loop)), weight, NULL);
    carried[0] = qn_kb_binary(b, QN_OP_ADD, carried[0], weight);
    carried[1] = qn_kb_fma(b, weight, load_at(a, a->slopes, from, loop), carried[1]);
    qn_kb_end_carry(b, loop, carried);
    qn_kvalue *one = qn_attention_number(&a->t, 1), *total = qn_kb_select(b, hides, one, carried[0]);
    qn_kvalue *factor = qn_kb_binary(b, QN_OP_DIV, one, total),
              *mean = qn_kb_binary(b, QN_OP_MUL, carried[1], factor);

    loop = qn_attention_lanes(&a->t, none, whole);
    weight = qn_kb_binary(b, QN_OP_MUL, load_at(a, scores, from, loop), factor);
    qn_kvalue *slope = qn_kb_binary(b, QN_OP_SUB, load_at(a, a->slopes, from, loop), mean);
    qn_kb_store(b, scores, ADD(from, AT(loop)), weight, NULL);
    qn_kb_store(b, a->slopes, ADD(from, AT(loop)), qn_kb_binary(b, QN_OP_MUL, weight, slope), NULL);
    qn_attention_end(&a->t, loop);
    if (a->t.causal) { /* what other rows of the tile see */
        qn_attention_fill(&a->t, scores, from, whole, n, 0);
        qn_attention_fill(&a->t, a->slopes, from, whole, n, 0);
    }
}

static void tile(grad *a, int rows, qn_kvalue *first_query)
{
    a->first_query = first_query;
    load_rows(a, rows);
    qn_kvalue *n = a->t.n_keys_value;
    if (a->t.causal) {
        qn_kvalue *past = MIN(ADD(first_query, INDEX(rows)), a->t.n_queries_value);
        n = MIN(MAX(qn_attention_seen(&a->t, past), INDEX(0)), n);
    }
    times_panels(a, rows, a->queries, a->depth, a->k_panels, a->t.scores, n);
    times_panels(a, rows, a->gradients, a->columns, a->v_panels, a->slopes, n);
    qn_kinst *loop = qn_attention_for(&a->t, INDEX(0), INDEX(rows));
    const size_t mark = qn_writer_mark(&a->t.w);
    finish_row(a, AT(loop), n);
    qn_writer_forget(&a->t.w, mark);
    qn_attention_end(&a->t, loop);
    store_queries(a, rows, n);
    add_rows(a, rows, a->t.scores, a->gradients, a->gv, a->columns, n);
    add_rows(a, rows, a->slopes, a->queries, a->gk, a->depth, n);
}

/* ---- the kernel ---- */

static qn_dim write_tasks(grad *a)
{
    qn_writer *w = &a->t.w;
    qn_kbuilder *b = &w->b;
    int height = a->rows;
    if (qn_dim_is_const(a->t.n_queries) && a->t.n_queries->value > 0) { /* as even as can be */
        const int64_t n = a->t.n_queries->value, count = (n + height - 1) / height;
        height = (int)((n + count - 1) / count);
    }
    qn_kvalue *groups = qn_writer_index(w, a->t.groups);
    qn_kvalue *shared = DIV(qn_writer_index(w, a->t.heads), groups); /* heads of q that read one of k */
    a->group = qn_kb_task(b);
    qn_ispace_set(&a->t.w.space, a->t.batch, DIV(a->group, groups));
    pack(a, a->k, a->k_panels, a->depth);
    pack(a, a->v, a->v_panels, a->columns);
    qn_attention_fill(&a->t, a->gk, rows_at(a, a->depth), INDEX(0), MUL(a->t.n_keys_value, INDEX(a->depth)),
                      0);
    qn_attention_fill(&a->t, a->gv, rows_at(a, a->columns), INDEX(0),
                      MUL(a->t.n_keys_value, INDEX(a->columns)), 0);
    qn_kinst *heads = qn_attention_for(&a->t, INDEX(0), shared);
    qn_ispace_set(&a->t.w.space, a->t.head, ADD(MUL(MOD(a->group, groups), shared), AT(heads)));
    a->head = ADD(MUL(a->group, shared), AT(heads));
    qn_kinst *loop =
        qn_kb_for(b, INDEX(0), a->t.n_queries_value, INDEX(height), QN_TAG_SERIAL, 0, NULL, NULL);
    tile(a, height, AT(loop));
    qn_attention_end(&a->t, loop);
    qn_attention_end(&a->t, heads);
    return qn_dim_mul(w->space.dims, a->t.batches, a->t.groups);
}

/* Room for all groups' panels. */
static qn_kbuffer *panels(grad *a, const char *name, const qn_type *type, int64_t columns)
{
    qn_lowering *l = a->t.w.lowering;
    qn_dims *dims = l->program->dims;
    const qn_dim width = qn_dim_const(dims, width_of(a));
    qn_dim n = qn_dim_mul(dims, qn_lower_dim(l, type->dims[0]), qn_lower_dim(l, type->dims[1]));
    n = qn_dim_mul(dims, n,
                   qn_dim_mul(dims, qn_dim_ceildiv(dims, qn_lower_dim(l, type->dims[2]), width), width));
    n = qn_dim_mul(dims, n, qn_dim_const(dims, columns));
    return qn_writer_argument(&a->t.w, qn_lower_scratch(l, name, QUERN_F32, n), true, true);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    grad *a = QN_NEW(scratch, grad);
    qn_writer *w = &a->t.w;
    qn_node *root = group->root;
    a->t.group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    qn_attention_read(&a->t, root, 4);
    qn_kbuffer **const in[4] = { &a->q, &a->k, &a->v, &a->g }, **const out[3] = { &a->gq, &a->gk, &a->gv };
    for (int i = 0; i < 4; i++) {
        *in[i] = qn_writer_argument(w, qn_lower_buffer(l, root->operands[i]), true, false);
        qn_writer_note_load(w, *in[i]);
    }
    for (int i = 0; i < 3; i++)
        *out[i] = qn_writer_argument(w, qn_lower_buffer(l, &root->results[i]), i > 0, true);
    if (a->t.mask)
        qn_writer_bind_input(w, a->t.mask);
    const qn_type *k = &root->operands[1]->type, *v = &root->operands[2]->type;
    a->depth = k->dims[3]->value;
    a->columns = v->dims[3]->value;
    a->vectors = k->dims[2]->max > a->t.lanes ? 2 : 1;
    a->t.stride = stride_of(k->dims[2], width_of(a));
    a->rows = rows_of(l->options->machine, a->t.stride);
    a->n_panels = qn_dim_ceildiv(w->space.dims, a->t.n_keys, qn_dim_const(w->space.dims, width_of(a)));
    a->k_panels = panels(a, "k", k, a->depth);
    a->v_panels = panels(a, "v", v, a->columns);
    a->queries = qn_kernel_add_local(w->kernel, "queries", QUERN_F32, a->rows * a->depth);
    a->gradients = qn_kernel_add_local(w->kernel, "gradients", QUERN_F32, a->rows * a->columns);
    a->t.scores = qn_kernel_add_local(w->kernel, "scores", QUERN_F32, a->rows * a->t.stride);
    a->slopes = qn_kernel_add_local(w->kernel, "slopes", QUERN_F32, a->rows * a->t.stride);
    w->kernel->flops = 2 * qn_likely_extent(a->t.batches) * qn_likely_extent(a->t.heads) *
                       qn_likely_extent(a->t.n_queries) * qn_likely_extent(a->t.n_keys) *
                       (double)(3 * a->depth + 2 * a->columns) * (a->t.causal ? 0.5 : 1);
    const qn_dim tasks = write_tasks(a);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_attention_grad = {
    .name = "attention_grad", .keeps = keeps, .matches = matches, .lower = lower
};
