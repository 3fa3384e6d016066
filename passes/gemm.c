/* The template for matmul_packed, and for products whose right side lies row by row: a register tile of rows x one panel, K in
 * the innermost loop, what follows element by element applied to the tile while it is in the first cache.
 *
 *   task: some tiles of rows x some panels of columns
 *     for each part of k                    all of it up to MAX_DEPTH, so that rows and panels stay in the second cache
 *       for each tile of rows               12 rows of x (AVX-512; 6 with 16 registers); copied first where they are more
 *         for each panel                    than the lines of a cache set, all of them in the same sets
 *           for k: accumulators += x[rows, k] * panel[k, 0 … width)
 *           store, or: tile to a local buffer, then the epilogue over it; before the last part of k: to `partial`
 *
 * A right side that is no constant is read where it lies, panels beside one another in its rows, where the lines of some panels
 * and rows find room in the second cache (see qn_gemm_reads_rows): packing it takes longer than that costs. Elsewhere, where it
 * is used by one block of rows alone, it is not packed before: each pass packs the panels it multiplies by. A right side of four
 * bits is unpacked so, whatever the number of rows; but where it is one, which is known when the kernel runs, or where rows are
 * of bytes, numbers are unpacked in registers (nibbles.h).
 *
 * Weights of a model are larger than its caches. So the first tiles of a task fetch the panels that come after its own (the next
 * part of k, or the next task) into the second cache while they compute.
 *
 * Rows are spread evenly over tiles of two heights where their number is known, so nothing is left over; where it is a symbol, the
 * last tile is made of pieces of 8, 4, 2 and 1 rows. Few rows keep several sums per element, since one chain of FMAs
 * waits for itself; not in strict math, where a sum has one order. Tasks depend on the shape only.
 *
 * Bytes are multiplied four at a time, with sums of 32 bits: k, x and panels count in words (words.h). Where a machine
 * multiplies pairs of rows by pairs of columns (QN_K_MMLA), two words of each at a time, sums are in blocks of 2 x 2 meanwhile. */
#include "passes/gemm.h"

#include "passes/arith.h"
#include "passes/quantize.h"
#include "passes/schedule.h"
#include "passes/terms.h"
#include "passes/words.h"

enum {
    UNROLL = 2, /* of k */
    TASK_NANOSECONDS = 20000,
    FLOPS_A_NANOSECOND = 100, /* of a core: for the size of tasks only */
    BYTES_A_NANOSECOND = 15,
    FIGHTING_STRIDE = 4096, /* bytes of a way of the first cache: rows this far apart share sets */
    MAX_DEPTH = 768,        /* of k in one pass over a task's tiles */
    MAX_TILES = 16,         /* of a task, one below the other */
    PAIR_PANELS = 4,        /* of a task, for which rows are put together by pairs first */
    SPREAD = 4,             /* tiles that fetch the next panels between them */
    ENOUGH_TASKS = 12,      /* for the threads that there may be */
    COPY_BYTES = QN_LOCAL_LIMIT / 3,
    PARTIAL_BYTES = QN_LOCAL_LIMIT / 12 * 7, /* the rest is a tile's */
    COPIED_DEPTH = 256, /* of k in a pass that copies rows, packs panels, or reads them from rows */
    /* Of k, from where on passes over rows are twice as deep: partial sums go through the caches once a pass. */
    LONG = 8 * COPIED_DEPTH,
    SHARING_STRIDE = 4096, /* bytes: of rows of y that share too few sets of the second cache in a pass */
    LEAST_SIDE = 256,      /* elements of a right side that lies row by row */
    PACKED_BYTES = QN_LOCAL_LIMIT / 8 * 3, /* of packed panels; partial sums take as much then */
    UNPACKED_BYTES = QN_LOCAL_LIMIT / 2,   /* of panels of four bits */
    UNPACKED_PARTIAL_BYTES = QN_LOCAL_LIMIT / 16 * 7,
    OFFSETS_BYTES = QN_LOCAL_LIMIT / 2 /* of rows of bytes */
};

static bool multiplies(const qn_node *node, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (node->op != QN_OP_MATMUL_PACKED || node->n_operands > 2 || !machine || machine->gpu)
        return false;
    const int n_batch = (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS);
    const qn_type *y = &node->operands[1]->type;
    return qn_word_panels(y, n_batch, machine) > 0 || qn_word_pair_panels(y, n_batch, machine) > 0;
}

bool qn_gemm_takes_nibbles(const qn_node *node, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (!machine || machine->gpu || qn_nibbles_group(node) == 0 || !qn_nibbles_have_many_rows(node))
        return false;
    const qn_type *x = &node->operands[0]->type;
    const int64_t k = x->dims[x->rank - 1]->value;
    return qn_word_panels(&node->operands[1]->type, (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS), machine) >
               0 &&
           (x->dtype == QUERN_F32 ||
            (machine->dot4 && k / qn_nibbles_group(node) * machine->vector_registers <= OFFSETS_BYTES));
}

bool qn_gemm_reads_rows(const qn_node *node, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (node->op != QN_OP_DOT_GENERAL || !machine || machine->gpu || qn_is_constant(node->operands[1]))
        return false;
    const qn_type *x = &node->operands[0]->type, *y = &node->operands[1]->type;
    const qn_dot_side xs = qn_dot_side_of(node, 0), ys = qn_dot_side_of(node, 1);
    const int n_batch = xs.n_batch, width = 2 * machine->vector_bytes / QN_WORD_BYTES;
    if (x->dtype != QUERN_F32 || y->dtype != QUERN_F32 || node->results[0].type.dtype != QUERN_F32 ||
        width < 2 * QN_GEMM_LINE || xs.n_contract != 1 || xs.contract[0] != x->rank - 1 ||
        ys.contract[0] != n_batch || ys.n_free != 1)
        return false;
    for (int i = 0; i < n_batch; i++)
        if (xs.batch[i] != i || ys.batch[i] != i)
            return false;
    const qn_dim k = y->dims[n_batch], n = y->dims[n_batch + 1];
    return qn_dim_is_const(n) && n->value > 0 && n->value % width == 0 &&
           n->value * 4 % SHARING_STRIDE != 0 && (double)n->value * (double)k->max >= LEAST_SIDE;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return group->kind == QN_GROUP_CONTRACTION &&
           (multiplies(group->root, options) || qn_gemm_takes_nibbles(group->root, options) ||
            qn_gemm_reads_rows(group->root, options));
}

/* Most rows of a tile: accumulators, a panel's vectors and one broadcast value in registers; or a vector of each row's x. */
static int most_rows_of_tile(const qn_machine *machine, int vectors)
{
    const int registers = machine->vector_registers;
    const int most = machine->by_lane ? (registers - vectors) / (vectors + 1) : (registers - 1) / vectors - 1;
    return most < QN_GEMM_MOST_ROWS ? most : QN_GEMM_MOST_ROWS;
}

static int rows_of_tile(const qn_machine *machine, int vectors)
{
    if (machine->by_lane)
        return vectors == 1 ? 12 : 8;
    return machine->vector_registers >= 32 ? 24 / vectors : 12 / vectors;
}

bool qn_gemm_packs(const qn_node *node, const qn_pass_options *options)
{
    if (!multiplies(node, options) || options->no_fusion || node->operands[1]->type.dtype != QUERN_F32)
        return false;
    const qn_type *x = &node->operands[0]->type, *y = &node->operands[1]->type;
    const int vectors = (int)y->dims[y->rank - 1]->value * 4 / options->machine->vector_bytes;
    const int64_t most = (int64_t)MAX_TILES * rows_of_tile(options->machine, vectors);
    int64_t rows = 1;
    for (int i = y->rank - 3; i < x->rank - 1; i++)
        if (!qn_dim_is_const(x->dims[i]) || __builtin_mul_overflow(rows, x->dims[i]->value, &rows) ||
            rows > most)
            return false;
    /* the tasks differ in panels alone */
    const double panels = qn_likely_extent(y->dims[y->rank - 3]);
    double tasks = panels;
    for (int i = 0; i < y->rank - 3; i++)
        tasks *= qn_likely_extent(y->dims[i]);
    const qn_dim k = y->dims[y->rank - 2];
    return rows > 1 && qn_dim_is_const(k) && node->operands[1]->node &&
           node->operands[1]->node->op == QN_OP_TRANSPOSE &&
           (tasks >= ENOUGH_TASKS || 2.0 * (double)rows * panels * vectors * 16 * (double)k->value <
                                         tasks * FLOPS_A_NANOSECOND * TASK_NANOSECONDS);
}

#define TERMS (&g->w.b)

/* ---- finishing a tile ---- */

static void store_sums(qn_gemm *g, int rows, qn_kvalue *const *acc)
{
    qn_kbuilder *b = &g->w.b;
    for (int r = 0; r < rows; r++) {
        qn_kvalue *row = ADD(MUL(ADD(g->first_row, INDEX(r)), g->n_value), g->first_col);
        for (int v = 0; v < g->vectors; v++) {
            qn_kvalue *mask = NULL;
            if (!g->whole_panels) {
                qn_kvalue *columns = qn_kb_ramp(b, ADD(g->first_col, INDEX(v * g->lanes)), g->lanes);
                mask = qn_kb_compare(b, QN_LT, columns, qn_kb_splat(b, g->n_value, g->lanes));
            }
            qn_kb_store(b, g->out, ADD(row, INDEX(v * g->lanes)), acc[r * g->vectors + v], mask);
        }
    }
}

/* The product at an index inside the tile: only ever asked at (row_var, col_var). */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    qn_gemm *g = user;
    (void)value, (void)index;
    qn_kvalue *row = qn_kb_isub(&w->b, qn_writer_index(w, g->row_var), g->first_row);
    qn_kvalue *col = qn_kb_isub(&w->b, qn_writer_index(w, g->col_var), g->first_col);
    return qn_kb_load(&w->b, g->tile, ADD(MUL(row, INDEX(g->width)), col), 1);
}

static void apply_epilogue(qn_gemm *g, int rows, qn_kvalue *const *acc)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    w->section++; /* another tile, other elements */
    for (int i = 0; i < rows * g->vectors; i++)
        qn_kb_store(b, g->tile, INDEX(i * g->lanes), acc[i], NULL);
    qn_dim index[QN_MAX_RANK];
    qn_ix_split(&w->space, g->row_var, g->rank - 1, g->dims, index);
    index[g->rank - 1] = g->col_var;
    qn_kvalue *past_row = ADD(g->first_row, INDEX(rows)), *past_col = ADD(g->first_col, INDEX(g->width));
    if (!g->whole_panels)
        past_col = MIN(past_col, g->n_value);
    qn_writer_loop by_row =
        qn_writer_for(w, g->row_var, g->first_row, past_row, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop by_col =
        qn_writer_for(w, g->col_var, g->first_col, past_col, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store_outputs(w, g->group, g->rank, g->dims, index);
    qn_writer_end_for(w, &by_col, NULL);
    qn_writer_end_for(w, &by_row, NULL);
}

static void finish(qn_gemm *g, int rows, qn_kvalue *const *acc)
{
    if (g->out)
        store_sums(g, rows, acc);
    else
        apply_epilogue(g, rows, acc);
}

/* `rows` rows from `row` (of the batch) on, tile number `number`, against the task's panels. `below`: rows of the tile
 * that other calls do. */
static void tile(qn_gemm *g, int rows, qn_kvalue *batch, qn_kvalue *row, qn_kvalue *number, qn_kvalue *below)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *m = qn_writer_index(&g->w, g->m), *acc[QN_GEMM_SUMS];
    g->first_row = ADD(MUL(batch, m), row);
    qn_kvalue *x_tile = MUL(g->first_row, g->k_value);
    if (g->copy)
        qn_gemm_copy_rows(g, rows, x_tile);
    if (g->offsets)
        qn_nibbles_offsets(&g->four, rows, x_tile, g->offsets, g->n_groups);
    qn_kinst *panels = FOR(g->first_panel, g->past_panel);
    qn_kvalue *panel_size = MUL(g->k_value, INDEX(g->width));
    qn_kvalue *n_panels = qn_writer_index(&g->w, g->n_panels);
    qn_kvalue *panel = MUL(ADD(MUL(batch, n_panels), qn_loop_counter(panels)), panel_size);
    if (g->reads_rows)
        panel = ADD(MUL(batch, MUL(g->k_value, g->n_value)), MUL(qn_loop_counter(panels), INDEX(g->width)));
    if (g->packs)
        panel = MUL(SUB(MUL(SUB(qn_loop_counter(panels), g->first_panel), INDEX(g->depth)), g->low),
                    INDEX(g->width));
    qn_kvalue *behind = SUB(number, g->first_tile), *slot = NULL, *last = NULL;
    g->first_col = MUL(qn_loop_counter(panels), INDEX(g->width));
    if (g->partial) {
        slot = ADD(MUL(behind, INDEX(g->task_panels)), SUB(qn_loop_counter(panels), g->first_panel));
        slot = MUL(ADD(MUL(slot, INDEX(g->rows)), below), INDEX(g->width));
        last = qn_kb_compare(b, QN_EQ, g->pass, INDEX(g->n_passes - 1));
    }
    if (g->spread) {
        qn_kvalue *here = g->unpacks ? qn_gemm_panel(g, batch, qn_loop_counter(panels)) : panel;
        qn_kvalue *next = ADD(here, MUL(panel_size, SUB(g->past_panel, g->first_panel)));
        if (g->partial)
            next = qn_kb_select(b, last, next, ADD(here, MUL(g->high, INDEX(g->width))));
        qn_kvalue *share = DIV(MUL(SUB(g->high, g->low), INDEX(g->width)), INDEX(g->spread));
        g->fetch = ADD(next, MUL(MOD(behind, INDEX(g->spread)), share));
    }
    if (g->offsets)
        qn_nibbles_byte_sums(&g->four, rows, panel, x_tile, g->offsets, g->n_groups, acc);
    else
        qn_gemm_sums(g, rows, x_tile, panel, slot, acc);
    if (g->partial) {
        qn_kinst *done = qn_kb_if(b, last);
        size_t mark = qn_writer_mark(&g->w);
        finish(g, rows, acc);
        qn_writer_forget(&g->w, mark);
        qn_kb_else(b, done, 0, NULL);
        for (int i = 0; i < rows * g->vectors; i++)
            qn_kb_store(b, g->partial, ADD(slot, INDEX(i * g->lanes)), acc[i], NULL);
        qn_kb_end_if(b, done, 0, NULL);
    } else {
        finish(g, rows, acc);
    }
    qn_kb_end_for(b, panels, NULL);
}

/* ---- tiles and tasks ---- */

static int64_t at_least_1(int64_t x)
{
    return x < 1 ? 1 : x;
}

/* How k is cut into passes, and how many tiles and panels make a task. A task's panels in one pass, and those that are fetched
 * for the next, lie in half of the second cache; in two thirds where copied rows wait for more panels. */
static void choose_blocks(qn_gemm *g, const qn_schedule *schedule)
{
    const qn_machine *machine = g->w.lowering->options->machine;
    const double l2 = machine->l2_bytes > 0 ? (double)machine->l2_bytes : 512 * 1024;
    const double k = qn_likely_extent(g->k), m = qn_likely_extent(g->m), batch = qn_likely_extent(g->batch);
    const int64_t n_panels = at_least_1((int64_t)qn_likely_extent(g->n_panels)),
                  n_tiles = at_least_1(ceil_div((int64_t)m, g->rows));
    g->n_passes = 1;
    g->depth = (int64_t)k;
    const bool fights = qn_dim_is_const(g->k) && g->k->value * 4 % FIGHTING_STRIDE == 0 &&
                        qn_dim_is_const(g->m) && g->m->value > 4 &&
                        g->rows > machine->l1_bytes / FIGHTING_STRIDE;
    const int64_t copied = g->reads_rows && k >= LONG ? 2 * COPIED_DEPTH : COPIED_DEPTH,
                  modelled = g->packs || g->reads_rows || fights ? copied : MAX_DEPTH,
                  most = qn_schedule_get(schedule, QN_KNOB_DEPTH, modelled, INT32_MAX);
    const bool bytes = g->four.scale && !g->unpacks;
    if (qn_dim_is_const(g->k) && g->k->value > most && (n_tiles > 1 || g->packs) && !bytes) {
        int64_t step = QN_GEMM_LINE; /* a pass has whole groups that share a scale */
        while (g->unpacks && step % g->four.group != 0)
            step += QN_GEMM_LINE;
        g->depth = ceil_div(g->k->value, ceil_div(g->k->value, most));
        g->depth = ceil_div(g->depth, step) * step;
        g->n_passes = ceil_div(g->k->value, g->depth);
    }
    const double panel_bytes = (bytes ? 0.5 : 4) * g->width * (double)at_least_1(g->depth);
    g->copies = fights && !bytes && (g->depth + QN_GEMM_SKEW) * g->rows * 4 <= COPY_BYTES;
    const double room = g->unpacks ? UNPACKED_BYTES : g->packs ? PACKED_BYTES : g->copies ? l2 / 3 : l2 / 4;
    const int64_t partial = g->unpacks ? UNPACKED_PARTIAL_BYTES : g->packs ? PACKED_BYTES : PARTIAL_BYTES;
    int64_t panels = (int64_t)(room / panel_bytes), tiles = MAX_TILES;
    panels = panels > n_panels ? n_panels : at_least_1(panels);
    tiles = tiles > n_tiles ? n_tiles : tiles;
    /* enough tasks for several threads, where the work is worth it; copied rows keep as many panels as they can */
    double nanoseconds = 2 * batch * m * (double)n_panels * g->width * k / FLOPS_A_NANOSECOND;
    double by_bytes = batch * 4 * k * (double)n_panels * g->width / BYTES_A_NANOSECOND;
    nanoseconds = nanoseconds > by_bytes ? nanoseconds : by_bytes;
    double wanted = nanoseconds / TASK_NANOSECONDS;
    wanted = wanted > ENOUGH_TASKS ? ENOUGH_TASKS : wanted;
    while ((panels > 1 || (tiles > SPREAD && !g->packs)) &&
           batch * (double)(ceil_div(n_panels, panels) * ceil_div(n_tiles, tiles)) < wanted) {
        if (panels > 1 &&
            (g->packs || tiles <= SPREAD || (!g->copies && panels * g->width >= tiles * g->rows)))
            panels = (panels + 1) / 2;
        else
            tiles = (tiles + 1) / 2;
    }
    tiles = qn_schedule_get(schedule, QN_KNOB_TILES, tiles, n_tiles < MAX_TILES ? n_tiles : MAX_TILES);
    panels = qn_schedule_get(schedule, QN_KNOB_PANELS, panels, n_panels);
    while (g->n_passes > 1 && tiles * panels * g->rows * g->width * 4 > partial)
        *(tiles > 2 * SPREAD && !g->packs ? &tiles : &panels) -= 1;
    panels = ceil_div(n_panels, ceil_div(n_panels, panels));
    tiles = ceil_div(n_tiles, ceil_div(n_tiles, tiles));
    if (g->pairs) /* worth it for some panels */
        g->copies = panels >= PAIR_PANELS && qn_dim_is_const(g->k) && g->k->value % g->lanes == 0 &&
                    (g->depth + QN_GEMM_SKEW) * (g->rows + 1) * 4 <= COPY_BYTES;
    g->task_panels = panels;
    g->task_tiles = tiles;
    g->spread = g->unpacks                           ? 1
                : g->packs || g->reads_rows || bytes ? 0
                : tiles >= SPREAD                    ? SPREAD
                : tiles >= 2                         ? 2
                                                     : 0;
    while (g->spread > 1 && g->step * g->width / g->spread < QN_GEMM_LINE)
        g->spread /= 2;
}

/* All that may be measured: what is not left to the cost model, since all rows have to be one task's. */
static void choose(qn_gemm *g)
{
    const qn_pass_options *options = g->w.lowering->options;
    const qn_dim shape[] = { g->batch, g->m, g->k, g->n, qn_dim_const(g->w.space.dims, g->width) };
    char site[QN_SITE_SIZE];
    qn_schedule schedule = { { 0 } };
    qn_schedule_site(g->w.kernel->name, g->x->dtype, 5, shape, site);
    if (!g->packs)
        schedule = qn_schedule_find(options, site);
    g->rows = (int)qn_schedule_get(&schedule, QN_KNOB_ROWS, g->rows,
                                   most_rows_of_tile(options->machine, g->vectors));
    choose_blocks(g, &schedule);
    if (!g->packs)
        qn_schedule_note(options, site, g->group->root,
                         (qn_schedule){ .knobs = { [QN_KNOB_ROWS] = g->rows,
                                                   [QN_KNOB_DEPTH] = g->depth,
                                                   [QN_KNOB_TILES] = g->task_tiles,
                                                   [QN_KNOB_PANELS] = g->task_panels } });
}

/* One row times the task's panels of four bits, `streams` of them at a time. */
static void multiply_row(qn_gemm *g, qn_kvalue *batch, int streams, qn_kvalue *from, qn_kvalue *to)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *starts[QN_NIBBLES_STREAMS], *sums[QN_NIBBLES_STREAMS * 2];
    qn_kinst *panels = qn_kb_for(b, from, to, INDEX(streams), QN_TAG_SERIAL, 0, NULL, NULL);
    for (int s = 0; s < streams; s++)
        starts[s] = qn_gemm_panel(g, batch, ADD(qn_loop_counter(panels), INDEX(s)));
    g->first_row = batch;
    qn_nibbles_sums(&g->four, 1, streams, starts, MUL(batch, g->k_value), sums);
    for (int s = 0; s < streams; s++) {
        g->first_col = MUL(ADD(qn_loop_counter(panels), INDEX(s)), INDEX(g->width));
        finish(g, 1, sums + s * g->vectors);
    }
    qn_kb_end_for(b, panels, NULL);
}

static void multiply_one_row(qn_gemm *g, qn_kvalue *batch)
{
    qn_kvalue *odd = MOD(SUB(g->past_panel, g->first_panel), INDEX(QN_NIBBLES_STREAMS)),
              *past = SUB(g->past_panel, odd);
    multiply_row(g, batch, QN_NIBBLES_STREAMS, g->first_panel, past);
    multiply_row(g, batch, 1, past, g->past_panel);
}

/* Tiles [first_tile, to) of the rows of a batch. */
static void tiles(qn_gemm *g, qn_kvalue *batch, qn_kvalue *to)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *from = g->first_tile;
    if (g->packs)
        qn_gemm_pack_panels(g, batch);
    if (qn_dim_is_const(g->m)) { /* the first `higher` tiles have one row more than the others */
        int64_t m = g->m->value, n_tiles = (m + g->rows - 1) / g->rows, height = m / n_tiles,
                higher = m % n_tiles;
        if (higher) {
            qn_kinst *loop = FOR(from, MIN(to, INDEX(higher)));
            tile(g, (int)height + 1, batch, MUL(qn_loop_counter(loop), INDEX(height + 1)),
                 qn_loop_counter(loop), INDEX(0));
            qn_kb_end_for(b, loop, NULL);
            from = MAX(from, INDEX(higher));
        }
        qn_kinst *loop = FOR(from, to);
        tile(g, (int)height, batch, ADD(MUL(qn_loop_counter(loop), INDEX(height)), INDEX(higher)),
             qn_loop_counter(loop), INDEX(0));
        qn_kb_end_for(b, loop, NULL);
        return;
    }
    qn_kvalue *m = qn_writer_index(&g->w, g->m), *full = DIV(m, INDEX(g->rows));
    qn_kinst *loop = FOR(from, MIN(to, full));
    tile(g, g->rows, batch, MUL(qn_loop_counter(loop), INDEX(g->rows)), qn_loop_counter(loop), INDEX(0));
    qn_kb_end_for(b, loop, NULL);
    /* the rows behind the full tiles, in the task that has the tile number `full` */
    qn_kvalue *rest = MOD(m, INDEX(g->rows));
    qn_kinst *last = FOR(MAX(from, full), to);
    qn_kvalue *row = MUL(qn_loop_counter(last), INDEX(g->rows));
    for (int height = 16; height >= 1; height /= 2) {
        if (height >= g->rows)
            continue;
        qn_kvalue *twice = INDEX(2 * height), *left = 2 * height > g->rows ? rest : MOD(rest, twice);
        qn_kvalue *before = SUB(rest, left);
        qn_kinst *once = FOR(INDEX(0), DIV(left, INDEX(height)));
        tile(g, height, batch, ADD(row, before), qn_loop_counter(last), before);
        qn_kb_end_for(b, once, NULL);
    }
    qn_kb_end_for(b, last, NULL);
}

/* Tiles [first_tile, past) of the rows of a batch, over all of k. */
static void all_passes(qn_gemm *g, qn_kvalue *batch, qn_kvalue *past)
{
    qn_kbuilder *b = &g->w.b;
    g->low = INDEX(0);
    g->high = g->k_value;
    if (g->n_passes == 1) {
        tiles(g, batch, past);
        return;
    }
    qn_kinst *passes = FOR(INDEX(0), INDEX(g->n_passes));
    g->pass = qn_loop_counter(passes);
    g->low = MUL(g->pass, INDEX(g->depth));
    g->high = MIN(ADD(g->low, INDEX(g->depth)), g->k_value);
    tiles(g, batch, past);
    qn_kb_end_for(b, passes, NULL);
}

/* Part i of n things, in parts as equal as can be: the halves of all parts are as equal. */
static void part(qn_gemm *g, qn_kvalue *i, qn_kvalue *parts, qn_kvalue *n, qn_kvalue **first,
                 qn_kvalue **past)
{
    *first = DIV(MUL(i, n), parts);
    *past = DIV(MUL(ADD(i, INDEX(1)), n), parts);
}

/* Rows by rows. But where a kernel made the panels just before, first all rows of one half of the columns: of two threads each then
 * reads the panels that it made, and no line of them goes from core to core. */
static qn_dim write_tasks(qn_gemm *g)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_dim n_tiles = qn_dim_ceildiv(dims, g->m, qn_dim_const(dims, g->rows));
    qn_dim row_blocks = qn_dim_ceildiv(dims, n_tiles, qn_dim_const(dims, g->task_tiles));
    qn_dim col_blocks = qn_dim_ceildiv(dims, g->n_panels, qn_dim_const(dims, g->task_panels));
    qn_dim tasks = qn_dim_mul(dims, g->batch, qn_dim_mul(dims, row_blocks, col_blocks));
    const bool halves = qn_dim_is(g->batch, 1) && !qn_is_constant(g->group->root->operands[1]) &&
                        qn_dim_is_const(col_blocks) && col_blocks->value % 2 == 0;
    qn_kvalue *task = qn_kb_task(b), *rows = qn_writer_index(w, row_blocks),
              *columns = qn_writer_index(w, col_blocks), *sides = INDEX(halves ? 2 : 1),
              *width = DIV(columns, sides); /* of a side */
    qn_kvalue *row = DIV(task, width), *side = DIV(row, rows), *batch = DIV(side, sides), *past_tile;
    qn_kvalue *column = ADD(MUL(MOD(side, sides), width), MOD(task, width));
    part(g, column, columns, qn_writer_index(w, g->n_panels), &g->first_panel, &g->past_panel);
    part(g, MOD(row, rows), rows, qn_writer_index(w, n_tiles), &g->first_tile, &past_tile);
    if (!g->four.scale || g->m->min > 1) {
        all_passes(g, batch, past_tile);
        return tasks;
    }
    qn_kinst *one = qn_kb_if(b, qn_kb_compare(b, QN_EQ, qn_writer_index(w, g->m), INDEX(1)));
    const size_t mark = qn_writer_mark(w);
    multiply_one_row(g, batch);
    qn_writer_forget(w, mark);
    qn_kb_else(b, one, 0, NULL);
    all_passes(g, batch, past_tile);
    qn_writer_forget(w, mark);
    qn_kb_end_if(b, one, 0, NULL);
    return tasks;
}

static void read_shape(qn_gemm *g)
{
    qn_ispace *space = &g->w.space;
    const qn_node *root = g->group->root;
    const qn_machine *machine = g->w.lowering->options->machine;
    g->reads_rows = root->op == QN_OP_DOT_GENERAL;
    const int n_batch =
        g->reads_rows ? qn_dot_side_of(root, 0).n_batch : (int)qn_attr_int(root, QN_ATTR_BATCH_DIMS);
    const qn_type *type = &root->results[0].type, *y = &root->operands[1]->type;
    g->rank = type->rank;
    qn_ispace_dims(space, type, g->dims);
    g->batch = g->m = qn_dim_const(space->dims, 1);
    for (int i = 0; i < g->rank - 1; i++) {
        qn_dim *to = i < n_batch ? &g->batch : &g->m;
        *to = qn_dim_mul(space->dims, *to, g->dims[i]);
    }
    g->n = g->dims[g->rank - 1];
    g->lanes = machine->vector_bytes / QN_WORD_BYTES;
    g->pairs = !g->reads_rows && qn_word_pair_panels(y, n_batch, machine) > 0;
    g->width = g->reads_rows ? 2 * g->lanes
               : g->pairs    ? qn_word_pair_panels(y, n_batch, machine)
                             : qn_word_panels(y, n_batch, machine);
    const qn_type *x = &root->operands[0]->type;
    const bool nibbles = qn_nibbles_group(root) > 0;
    g->unpacks = nibbles && x->dtype == QUERN_F32;
    g->k = qn_ispace_import(space, nibbles ? x->dims[x->rank - 1] : y->dims[n_batch + !g->reads_rows]);
    if (g->pairs)
        g->k = qn_dim_mul(space->dims, g->k, qn_dim_const(space->dims, 2));
    g->n_panels = g->reads_rows ? qn_dim_const(space->dims, g->n->value / g->width)
                                : qn_ispace_import(space, y->dims[n_batch]);
    g->sum = type->dtype;
    g->fused = qn_may_fuse(g->w.lowering->options);
    g->in_order = qn_dtype_is_float(g->sum) && g->w.lowering->options->math == QN_MATH_STRICT;
    g->vectors = g->width / g->lanes;
    g->by_lane = machine->by_lane;
    g->step = g->by_lane ? g->lanes : UNROLL;
    g->rows = nibbles && !g->unpacks ? machine->vector_registers / 5 : rows_of_tile(machine, g->vectors);
    g->whole_panels = qn_dim_divisible(g->n, g->width);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    qn_gemm *g = QN_NEW(scratch, qn_gemm);
    qn_writer *w = &g->w;
    g->group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(g);
    qn_value *x = group->root->operands[0], *y = group->root->operands[1],
             *product = &group->root->results[0];
    g->packs = true;
    const bool nibbles = qn_nibbles_group(group->root) > 0;
    for (int i = 0; i < group->n_inputs && !g->unpacks; i++)
        g->packs &= group->inputs[i] != y;
    g->x = qn_writer_argument(w, qn_lower_buffer(l, x), true, false);
    qn_writer_note_load(w, g->x);
    if (!g->packs) {
        g->y = qn_writer_argument(w, qn_lower_buffer(l, y), true, false);
        qn_writer_note_load(w, g->y);
    }
    for (int i = 0; i < group->n_inputs; i++) /* x and y too: what follows may read them */
        if (!nibbles || !qn_nibbles_reads(group->root, group->inputs[i]))
            qn_writer_bind_input(w, group->inputs[i]);
    qn_dim all_rows = qn_dim_mul(w->space.dims, g->batch, g->m);
    g->row_var = qn_ispace_var(&w->space, all_rows, false);
    g->col_var = qn_ispace_var(&w->space, g->n, false);
    g->k_value = qn_writer_index(w, g->k);
    g->n_value = qn_writer_index(w, g->n);
    if (nibbles)
        g->four = qn_nibbles_open(w, group->root, g->lanes, g->vectors, g->k_value);
    choose(g);
    if (nibbles && !g->unpacks) {
        g->n_groups = g->k->value / g->four.group;
        g->offsets =
            qn_kernel_add_local(w->kernel, "offsets", qn_nibbles_offset(&g->four), g->rows * g->n_groups);
    }
    if (g->packs)
        g->y = qn_kernel_add_local(w->kernel, "panels", QUERN_F32, g->task_panels * g->depth * g->width);
    if (g->n_passes > 1)
        g->partial = qn_kernel_add_local(w->kernel, "partial", g->sum,
                                         g->task_tiles * g->task_panels * g->rows * g->width);
    if (g->copies)
        g->copy = qn_kernel_add_local(w->kernel, "rows", g->x->dtype,
                                      (g->depth + QN_GEMM_SKEW) * (g->rows + (g->pairs && g->rows % 2)) *
                                          qn_word_elements(g->x->dtype));
    if (group->outputs[0] == product && group->n_outputs == 1) {
        g->out = qn_writer_argument(w, qn_lower_buffer(l, product), false, true);
    } else {
        g->tile = qn_kernel_add_local(w->kernel, "tile", g->sum, (int64_t)g->rows * g->width);
        qn_writer_bind(w, product, fetch_sum, g);
    }
    w->kernel->flops = 2 * qn_likely_extent(g->batch) * qn_likely_extent(g->m) * qn_likely_extent(g->n) *
                       qn_likely_extent(g->k) * (nibbles ? 1 : qn_word_elements(g->x->dtype));
    qn_dim tasks = write_tasks(g);
    qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemm = { .name = "gemm", .matches = matches, .lower = lower };
