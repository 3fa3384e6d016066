/* The template for matmul_packed of a few rows with a right side that is stored in fewer bits than it is multiplied in: it
 * waits for memory, so half the bytes are half the time.
 *
 *   task: some panels of columns
 *     for each pair of panels                     two streams hide more of the memory's latency than one
 *       for k: sums += x[rows, k] * float32(panel[k, 0 … width))
 *       or, where y is of four bits and x of bytes or floats:
 *       for each group of k that shares scales: sums += scales * float32(sum of x[rows, k] * (numbers - 8))
 *       what follows the product, over the sums
 *
 * Several sums per element where rows are few, since one chain of multiply-adds waits for itself. Tasks depend on the shape
 * only. */
#include "passes/block.h"
#include "passes/nibbles.h"
#include "passes/terms.h"
#include "passes/words.h"

enum {
    STREAMS = QN_NIBBLES_STREAMS,
    MOST_ROWS = QN_NIBBLES_MOST_ROWS,
    SUMS = 8,   /* that hide the latency of a multiply-add */
    AHEAD = 24, /* lines that are fetched before they are needed */
    TASK_NANOSECONDS = 15000,
    BYTES_A_NANOSECOND = 15
};

typedef struct gemm {
    qn_writer w;
    qn_block block;
    qn_kbuffer *x, *y;
    qn_nibbles four; /* where y is of four bits or bytes: scale is not NULL */
    int lanes, vectors, rows, streams;
    bool fused, in_order; /* multiply-add; one sum for each element */
    qn_dim k;
    qn_kvalue *k_value;
} gemm;

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (group->kind != QN_GROUP_CONTRACTION || group->root->op != QN_OP_MATMUL_PACKED || !machine ||
        machine->gpu)
        return false;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    const int n_batch = (int)qn_attr_int(group->root, QN_ATTR_BATCH_DIMS);
    const int64_t lanes = machine->vector_bytes / QN_WORD_BYTES;
    const bool narrow =
        x->dtype == QUERN_F32 && (y->dtype == QUERN_BF16 || y->dtype == QUERN_F16) && y->rank == n_batch + 3;
    if (!narrow && (qn_nibbles_group(group->root) == 0 || qn_gemm_takes_nibbles(group->root, options)))
        return false;
    const int64_t width = y->dims[n_batch + 2]->value;
    return width == lanes || width == 2 * lanes;
}

#define TERMS (&g->w.b)

/* One step of k. sums[(stream * rows + row) * vectors + vector] */
static void multiply_add(gemm *g, qn_kvalue *const *panels, qn_kvalue *x_at, qn_kvalue *k, qn_kvalue **sums)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *x[MOST_ROWS];
    for (int r = 0; r < g->rows; r++)
        x[r] = qn_kb_splat(b, qn_kb_load(b, g->x, ADD(ADD(x_at, MUL(g->k_value, INDEX(r))), k), 1), g->lanes);
    for (int s = 0; s < g->streams; s++) {
        qn_kvalue *at = ADD(panels[s], MUL(k, INDEX(g->block.width)));
        qn_kb_prefetch(b, g->y, ADD(at, INDEX(AHEAD * g->block.width)), 0);
        for (int v = 0; v < g->vectors; v++) {
            qn_kvalue *y = qn_kb_load(b, g->y, ADD(at, INDEX(v * g->lanes)), g->lanes);
            y = qn_kb_convert(b, QUERN_F32, y);
            for (int r = 0; r < g->rows; r++) {
                qn_kvalue **sum = &sums[(s * g->rows + r) * g->vectors + v];
                *sum = qn_word_multiply_add(b, x[r], y, *sum, g->fused);
            }
        }
    }
}

static void k_loop(gemm *g, qn_kvalue *const *panels, qn_kvalue *x_at, qn_kvalue *low, qn_kvalue *high,
                   int step, int sets, qn_kvalue **sums)
{
    const int each = g->streams * g->rows * g->vectors;
    qn_kinst *loop = qn_kb_carry(&g->w.b, low, high, INDEX(step), QN_TAG_SERIAL, each * sets, sums, NULL);
    qn_kvalue *k = qn_loop_counter(loop);
    for (int u = 0; u < step; u++)
        multiply_add(g, panels, x_at, ADD(k, INDEX(u)), sums + u % sets * each);
    qn_kb_end_carry(&g->w.b, loop, sums);
}

/* Of panels of wider numbers, which begin at elements `starts`. */
static void sums_of_panels(gemm *g, qn_kvalue *const *starts, qn_kvalue *x_at, qn_kvalue **sums)
{
    qn_kbuilder *b = &g->w.b;
    const int each = g->streams * g->rows * g->vectors, sets = each >= SUMS || g->in_order ? 1 : SUMS / each;
    const int step = sets > 2 ? sets : 2;
    for (int i = 0; i < each * sets; i++)
        sums[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, g->lanes }, 0);
    qn_kvalue *left = MOD(g->k_value, INDEX(step)), *even = SUB(g->k_value, left);
    k_loop(g, starts, x_at, INDEX(0), even, step, sets, sums);
    for (int half = sets / 2; half > 0; half /= 2)
        for (int i = 0; i < half * each; i++)
            sums[i] = qn_kb_binary(b, QN_OP_ADD, sums[i], sums[i + half * each]);
    k_loop(g, starts, x_at, even, g->k_value, 1, 1, sums);
}

/* Rows from `row` on against the panels from number `panel` on, g->streams of them. */
static void panels(gemm *g, qn_kvalue *batch, qn_kvalue *row, qn_kvalue *panel, qn_kvalue *n_panels)
{
    qn_kbuilder *b = &g->w.b;
    qn_block *block = &g->block;
    qn_kvalue *sums[2 * SUMS + STREAMS * MOST_ROWS * 2], *starts[STREAMS], *x_at = MUL(row, g->k_value);
    for (int s = 0; s < g->streams; s++)
        starts[s] =
            MUL(ADD(ADD(MUL(batch, n_panels), panel), INDEX(s)), MUL(g->k_value, INDEX(block->width)));
    if (g->four.scale)
        qn_nibbles_sums(&g->four, g->rows, g->streams, starts, x_at, sums);
    else
        sums_of_panels(g, starts, x_at, sums);
    for (int s = 0; s < g->streams; s++) {
        for (int i = 0; i < g->rows * g->vectors; i++)
            qn_kb_store(b, block->sums, INDEX(i * g->lanes), sums[s * g->rows * g->vectors + i], NULL);
        block->first_row = row;
        block->n_rows = INDEX(g->rows);
        block->first_col = MUL(ADD(panel, INDEX(s)), INDEX(block->width));
        qn_block_finish(block);
    }
}

static qn_dim write_tasks(gemm *g, qn_dim n_panels)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const qn_block *block = &g->block;
    const double bytes = (g->four.scale ? 4.0 / g->four.each : 2) * (double)block->width *
                         qn_likely_extent(g->k); /* of a panel */
    int64_t each = (int64_t)(TASK_NANOSECONDS * BYTES_A_NANOSECOND / bytes) / STREAMS * STREAMS;
    each = each < STREAMS ? STREAMS : each > 1024 ? 1024 : each;
    const qn_dim parts = qn_dim_ceildiv(dims, n_panels, qn_dim_const(dims, each));
    qn_kvalue *task = qn_kb_task(b), *n = qn_writer_index(w, n_panels), *n_parts = qn_writer_index(w, parts);
    qn_kvalue *batch = DIV(task, n_parts), *low = MUL(MOD(task, n_parts), INDEX(each));
    qn_kvalue *high = MIN(ADD(low, INDEX(each)), n), *m = qn_writer_index(w, block->m);
    qn_kvalue *last = SUB(high, MOD(SUB(high, low), INDEX(STREAMS)));
    qn_kinst *rows = qn_kb_for(b, INDEX(0), m, INDEX(g->rows), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *row = ADD(MUL(batch, m), qn_loop_counter(rows));
    for (g->streams = STREAMS; g->streams > 0; g->streams /= 2) { /* pairs, then what is left */
        const bool pairs = g->streams == STREAMS;
        qn_kinst *loop = qn_kb_for(b, pairs ? low : last, pairs ? last : high, INDEX(g->streams),
                                   QN_TAG_SERIAL, 0, NULL, NULL);
        panels(g, batch, row, qn_loop_counter(loop), n);
        qn_kb_end_for(b, loop, NULL);
    }
    qn_kb_end_for(b, rows, NULL);
    return qn_dim_mul(dims, block->batch, parts);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemm *g = QN_NEW(scratch, gemm);
    qn_writer *w = &g->w;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    const int64_t width = y->dims[qn_attr_int(group->root, QN_ATTR_BATCH_DIMS) + 2]->value;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    qn_block_open(&g->block, w, group, width, MOST_ROWS, &g->x, &g->y);
    g->lanes = l->options->machine->vector_bytes / 4;
    g->vectors = (int)width / g->lanes;
    const qn_dim m = g->block.m;
    g->rows = qn_dim_is_const(m) && m->value > 0 ? (int)(m->value <= MOST_ROWS       ? m->value
                                                         : m->value % MOST_ROWS == 0 ? MOST_ROWS
                                                                                     : 1)
                                                 : 1;
    g->fused = qn_may_fuse(l->options);
    g->in_order = l->options->math == QN_MATH_STRICT;
    g->k = qn_ispace_import(&w->space, x->dims[x->rank - 1]);
    g->k_value = qn_writer_index(w, g->k);
    if (qn_nibbles_group(group->root) > 0)
        g->four = qn_nibbles_open(w, group->root, g->lanes, g->vectors, g->k_value);
    w->kernel->flops = 2 * qn_likely_extent(g->block.batch) * qn_likely_extent(m) *
                       qn_likely_extent(g->block.n) * qn_likely_extent(g->k);
    const qn_dim tasks =
        write_tasks(g, qn_ispace_import(&w->space, y->dims[qn_attr_int(group->root, QN_ATTR_BATCH_DIMS)]));
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemm_narrow = { .name = "gemm_narrow", .matches = matches, .lower = lower };
