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
#include "passes/terms.h"
#include "passes/words.h"

enum {
    STREAMS = 2,
    MOST_ROWS = 4,
    SUMS = 8,        /* that hide the latency of a multiply-add */
    AHEAD = 24,      /* lines that are fetched before they are needed */
    LINE = 16,       /* words of a line */
    MOST_WORDS = 16, /* of x that share a scale */
    NUMBERS = 8,     /* of four bits in a word */
    TASK_NANOSECONDS = 15000,
    BYTES_A_NANOSECOND = 15
};

typedef struct gemm {
    qn_writer w;
    qn_block block;
    qn_kbuffer *x, *y, *scale; /* scale: of four bits; else NULL */
    int lanes, vectors, rows, streams;
    int64_t group;        /* of k that share a scale; 0: no scale */
    bool fused, in_order; /* multiply-add; one sum for each element */
    qn_dim k;
    qn_kvalue *k_value;
} gemm;

/* Of k that share a scale, where y is of four bits and there is a kernel for so many; else 0. */
static int64_t group_of(const qn_node *node)
{
    if (node->n_operands < 3)
        return 0;
    const qn_type *x = &node->operands[0]->type, *scale = &node->operands[2]->type;
    const qn_dim k = x->dims[x->rank - 1];
    const int64_t group = k->value / scale->dims[scale->rank - 2]->value;
    return group <= MOST_WORDS * QN_WORD_BYTES ? group : 0;
}

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
    if (!narrow && group_of(group->root) == 0)
        return false;
    const int64_t width = y->dims[n_batch + 2]->value;
    return width == lanes || width == 2 * lanes;
}

#define TERMS (&g->w.b)

/* Numbers below 128, as the machine multiplies them with x's bytes. */
static qn_kvalue *as_bytes(gemm *g, qn_kvalue *numbers)
{
    const bool same = g->w.lowering->options->machine->dot4_signs == QN_SIGNS_SAME;
    return same ? qn_kb_bitcast(&g->w.b, QUERN_I8, numbers) : numbers;
}

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

/* The numbers of four bits of one group of k and a vector of columns times x, as whole numbers: parts[row] += x * (number - 8).
 * `x` holds the rows' words of the group. */
static void multiply_group(gemm *g, qn_kvalue *at, qn_kvalue *const *x, qn_kvalue **parts)
{
    qn_kbuilder *b = &g->w.b;
    const int words = (int)g->group / QN_WORD_BYTES;
    for (int i = 0; i < words; i += 2) { /* four of k in the lower halves of bytes, four in the upper ones */
        qn_kvalue *y = qn_word_load(b, g->y, ADD(at, INDEX(i / 2 * g->block.width)), g->lanes);
        qn_kvalue *lower = qn_kb_const(b, y->type, (qn_scalar){ .i = 15 });
        qn_kvalue *four = qn_kb_const(b, y->type, (qn_scalar){ .i = 4 });
        lower = qn_kb_binary(b, QN_OP_AND, y, lower);
        y = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, y, four);
        for (int r = 0; r < g->rows; r++) {
            parts[r] = qn_kb_dot4(b, as_bytes(g, lower), x[r * words + i], parts[r]);
            parts[r] = qn_kb_dot4(b, as_bytes(g, y), x[r * words + i + 1], parts[r]);
        }
    }
}

/* The same where x is of floats, as floats: the columns' bytes times a word that is 1 in one of its bytes and 0 in the others is the
 * number there. */
static void multiply_group_floats(gemm *g, qn_kvalue *at, qn_kvalue *x_at, qn_kvalue **parts)
{
    qn_kbuilder *b = &g->w.b;
    const qn_ktype i32 = { QUERN_I32, g->lanes };
    qn_kvalue *one[QN_WORD_BYTES], *minus_eight = qn_kb_const(b, i32, (qn_scalar){ .i = -8 });
    int mask[64];
    for (int j = 0; j < QN_WORD_BYTES; j++) {
        const qn_ktype bytes = { QUERN_I8, QN_WORD_BYTES * g->lanes };
        qn_kvalue *zeros = qn_kb_const(b, bytes, (qn_scalar){ .i = 0 }),
                  *ones = qn_kb_const(b, bytes, (qn_scalar){ .i = 1 });
        for (int i = 0; i < QN_WORD_BYTES * g->lanes; i++)
            mask[i] = i % QN_WORD_BYTES == j ? QN_WORD_BYTES * g->lanes : 0;
        one[j] = qn_kb_shuffle(b, zeros, ones, QN_WORD_BYTES * g->lanes, mask);
    }
    for (int k = 0; k < g->group; k += NUMBERS) {
        qn_kvalue *y = qn_word_load(b, g->y, ADD(at, INDEX(k / NUMBERS * g->block.width)), g->lanes);
        qn_kvalue *half[2] = { qn_kb_binary(b, QN_OP_AND, y, qn_kb_const(b, y->type, (qn_scalar){ .i = 15 })),
                               qn_kb_binary(b, QN_OP_SHIFT_RIGHT, y,
                                            qn_kb_const(b, y->type, (qn_scalar){ .i = 4 })) };
        for (int i = 0; i < NUMBERS; i++) {
            qn_kvalue *number = qn_kb_convert(
                b, QUERN_F32,
                qn_kb_dot4(b, as_bytes(g, half[i / QN_WORD_BYTES]), one[i % QN_WORD_BYTES], minus_eight));
            for (int r = 0; r < g->rows; r++) {
                qn_kvalue *from = ADD(ADD(x_at, MUL(g->k_value, INDEX(r))), INDEX(k + i));
                parts[r] = qn_word_multiply_add(b, qn_kb_splat(b, qn_kb_load(b, g->x, from, 1), g->lanes),
                                                number, parts[r], g->fused);
            }
        }
    }
}

/* A group of k: the sums of its products, times the scales. `panels` count in elements of k, as for other right sides. */
static void multiply_add_scaled(gemm *g, qn_kvalue *const *panels, qn_kvalue *x_at, qn_kvalue *k,
                                qn_kvalue **sums)
{
    qn_kbuilder *b = &g->w.b;
    const int64_t width = g->block.width;
    const int words = (int)g->group / QN_WORD_BYTES;
    const bool bytes = g->x->dtype == QUERN_I8;
    const qn_ktype part = { bytes ? QUERN_I32 : QUERN_F32, g->lanes };
    qn_kvalue *x[MOST_ROWS * MOST_WORDS], *offset[MOST_ROWS], *parts[MOST_ROWS];
    qn_kvalue *eight =
        qn_kb_const(b, (qn_ktype){ QUERN_U8, QN_WORD_BYTES * g->lanes }, (qn_scalar){ .i = 8 });
    for (int r = 0; r < g->rows && bytes; r++) { /* 8 times the sum of x, to be taken off again */
        qn_kvalue *at = ADD(ADD(x_at, MUL(g->k_value, INDEX(r))), k);
        at = qn_kb_idiv(b, at, INDEX(QN_WORD_BYTES));
        offset[r] = qn_kb_const(b, part, (qn_scalar){ .i = 0 });
        for (int i = 0; i < words; i++) {
            x[r * words + i] = qn_word_repeat(b, g->x, ADD(at, INDEX(i)), g->lanes);
            offset[r] = qn_kb_dot4(b, as_bytes(g, eight), x[r * words + i], offset[r]);
        }
    }
    for (int s = 0; s < g->streams; s++) {
        qn_kvalue *from = ADD(panels[s], MUL(k, INDEX(width)));
        qn_kvalue *at = qn_kb_idiv(b, from, INDEX(NUMBERS)), *scales = qn_kb_idiv(b, from, INDEX(g->group));
        for (int64_t i = 0; i < g->group / NUMBERS * width; i += LINE)
            qn_word_prefetch(b, g->y, ADD(at, INDEX(AHEAD * LINE + i)), 0);
        for (int v = 0; v < g->vectors; v++) {
            for (int r = 0; r < g->rows; r++)
                parts[r] = qn_kb_const(b, part, (qn_scalar){ .i = 0 });
            if (bytes)
                multiply_group(g, ADD(at, INDEX(v * g->lanes)), x, parts);
            else
                multiply_group_floats(g, ADD(at, INDEX(v * g->lanes)), ADD(x_at, k), parts);
            qn_kvalue *scale = qn_kb_load(b, g->scale, ADD(scales, INDEX(v * g->lanes)), g->lanes);
            scale = qn_kb_convert(b, QUERN_F32, scale);
            for (int r = 0; r < g->rows; r++) {
                qn_kvalue **sum = &sums[(s * g->rows + r) * g->vectors + v];
                if (bytes)
                    parts[r] = qn_kb_convert(b, QUERN_F32, qn_kb_binary(b, QN_OP_SUB, parts[r], offset[r]));
                *sum = qn_word_multiply_add(b, parts[r], scale, *sum, g->fused);
            }
        }
    }
}

static void k_loop(gemm *g, qn_kvalue *const *panels, qn_kvalue *x_at, qn_kvalue *low, qn_kvalue *high,
                   int step, int sets, qn_kvalue **sums)
{
    const int each = g->streams * g->rows * g->vectors;
    qn_kinst *loop = qn_kb_for(&g->w.b, low, high, INDEX(step), QN_TAG_SERIAL, each * sets, sums, NULL);
    qn_kvalue *k = qn_loop_counter(loop);
    for (int i = 0; i < each * sets; i++)
        sums[i] = &loop->blocks[0]->arguments[1 + i];
    if (g->scale)
        multiply_add_scaled(g, panels, x_at, k, sums);
    for (int u = 0; u < step && !g->scale; u++)
        multiply_add(g, panels, x_at, ADD(k, INDEX(u)), sums + u % sets * each);
    qn_kb_end_for(&g->w.b, loop, sums);
    for (int i = 0; i < each * sets; i++)
        sums[i] = &loop->results[i];
}

/* Rows from `row` on against the panels from number `panel` on, g->streams of them. */
static void panels(gemm *g, qn_kvalue *batch, qn_kvalue *row, qn_kvalue *panel, qn_kvalue *n_panels)
{
    qn_kbuilder *b = &g->w.b;
    qn_block *block = &g->block;
    const int each = g->streams * g->rows * g->vectors,
              sets = each >= SUMS || g->scale || g->in_order ? 1 : SUMS / each;
    const int step = g->scale ? (int)g->group : sets > 2 ? sets : 2;
    qn_kvalue *sums[2 * SUMS + STREAMS * MOST_ROWS * 2], *starts[STREAMS];
    for (int s = 0; s < g->streams; s++)
        starts[s] =
            MUL(ADD(ADD(MUL(batch, n_panels), panel), INDEX(s)), MUL(g->k_value, INDEX(block->width)));
    for (int i = 0; i < each * sets; i++)
        sums[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, g->lanes }, 0);
    qn_kvalue *x_at = MUL(row, g->k_value), *left = qn_kb_imod(b, g->k_value, INDEX(step)),
              *even = qn_kb_isub(b, g->k_value, left);
    k_loop(g, starts, x_at, INDEX(0), even, step, sets, sums);
    for (int half = sets / 2; half > 0; half /= 2)
        for (int i = 0; i < half * each; i++)
            sums[i] = qn_kb_binary(b, QN_OP_ADD, sums[i], sums[i + half * each]);
    if (!g->scale)
        k_loop(g, starts, x_at, even, g->k_value, 1, 1, sums);
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
    const double bytes =
        (g->scale ? 0.5 : 2) * (double)block->width * qn_likely_extent(g->k); /* of a panel */
    int64_t each = (int64_t)(TASK_NANOSECONDS * BYTES_A_NANOSECOND / bytes) / STREAMS * STREAMS;
    each = each < STREAMS ? STREAMS : each > 1024 ? 1024 : each;
    const qn_dim parts = qn_dim_ceildiv(dims, n_panels, qn_dim_const(dims, each));
    qn_kvalue *task = qn_kb_task(b), *n = qn_writer_index(w, n_panels), *n_parts = qn_writer_index(w, parts);
    qn_kvalue *batch = qn_kb_idiv(b, task, n_parts), *low = MUL(qn_kb_imod(b, task, n_parts), INDEX(each));
    qn_kvalue *high = qn_kb_imin(b, ADD(low, INDEX(each)), n), *m = qn_writer_index(w, block->m);
    qn_kvalue *last = qn_kb_isub(b, high, qn_kb_imod(b, qn_kb_isub(b, high, low), INDEX(STREAMS)));
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
    g->group = group_of(group->root);
    if (g->group) {
        g->scale = qn_writer_argument(w, qn_lower_buffer(l, group->root->operands[2]), true, false);
        qn_writer_note_load(w, g->scale);
    }
    w->kernel->flops = 2 * qn_likely_extent(g->block.batch) * qn_likely_extent(m) *
                       qn_likely_extent(g->block.n) * qn_likely_extent(g->k);
    const qn_dim tasks =
        write_tasks(g, qn_ispace_import(&w->space, y->dims[qn_attr_int(group->root, QN_ATTR_BATCH_DIMS)]));
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemm_narrow = { .name = "gemm_narrow", .matches = matches, .lower = lower };
