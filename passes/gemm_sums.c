/* The sums of gemm.c: rows of x, where they lie or copied, times a panel, where it lies or packed, k in the innermost loop. */
#include "passes/gemm.h"

#include "passes/terms.h"
#include "passes/words.h"

enum {
    /* Rows of y that are fetched before they are needed, where y lies row by row: they share few cache sets. */
    ROWS_AHEAD = 3
};

#define TERMS (&g->w.b)

/* ---- rows ---- */

/* Where row r of the tile begins: elements of x, or of the copy, to which k is added. */
static qn_kvalue *row_start(qn_gemm *g, qn_kvalue *x_tile, int r)
{
    if (g->copy)
        return SUB(INDEX(r * (g->depth + QN_GEMM_SKEW)), g->low);
    return ADD(x_tile, MUL(g->k_value, INDEX(r)));
}

/* Words u and u + 1 of a row's `words`, and of the row below it. */
static qn_kvalue *rows_together(qn_gemm *g, qn_kvalue *const *words, int u)
{
    const int all = words[0]->type.lanes, pair = 2 * qn_word_elements(g->x->dtype);
    int mask[32];
    for (int i = 0; i < 2 * pair; i++)
        mask[i] = u / 2 * pair + i % pair + i / pair * all;
    return qn_kb_shuffle(&g->w.b, words[0], words[1], 2 * pair, mask);
}

/* Where a pair's words from k on are in the copy, two of a row and two of the other by turns. */
static qn_kvalue *in_copied_pair(qn_gemm *g, int row, qn_kvalue *k)
{
    return ADD(INDEX(row * (g->depth + QN_GEMM_SKEW)), MUL(SUB(k, g->low), INDEX(2)));
}

/* By pairs, as they are multiplied: so that they are put together once for all panels of the task. */
static void copy_pairs(qn_gemm *g, int rows, qn_kvalue *x_tile)
{
    qn_kbuilder *b = &g->w.b;
    qn_kinst *loop = qn_kb_for(b, g->low, g->high, INDEX(g->lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *k = qn_loop_counter(loop);
    for (int r = 0; r < rows; r += 2) {
        qn_kvalue *words[2];
        for (int i = 0; i < 2; i++) {
            const int row = r + i < rows ? r + i : r;
            words[i] = qn_word_load(b, g->x, ADD(ADD(x_tile, INDEX(row * g->k->value)), k), g->lanes);
        }
        for (int u = 0; u < g->lanes; u += 2)
            qn_word_store(b, g->copy, in_copied_pair(g, r, ADD(k, INDEX(u))), rows_together(g, words, u));
    }
    qn_kb_end_for(b, loop, NULL);
}

void qn_gemm_copy_rows(qn_gemm *g, int rows, qn_kvalue *x_tile)
{
    qn_kbuilder *b = &g->w.b;
    if (g->pairs) {
        copy_pairs(g, rows, x_tile);
        return;
    }
    qn_kinst *k = qn_kb_for(b, g->low, g->high, INDEX(g->lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *from = ADD(ADD(x_tile, INDEX(r * g->k->value)), qn_loop_counter(k));
        qn_word_store(b, g->copy, ADD(row_start(g, x_tile, r), qn_loop_counter(k)),
                      qn_word_load(b, g->x, from, g->lanes));
    }
    qn_kb_end_for(b, k, NULL);
}

/* ---- panels ---- */

qn_kvalue *qn_gemm_panel(qn_gemm *g, qn_kvalue *batch, qn_kvalue *panel)
{
    return MUL(ADD(MUL(batch, qn_writer_index(&g->w, g->n_panels)), panel), MUL(g->k_value, INDEX(g->width)));
}

/* The pass's part of the task's panels, from four bits. */
static void unpack_panels(qn_gemm *g, qn_kvalue *batch)
{
    qn_kinst *panels = FOR(g->first_panel, g->past_panel);
    qn_kvalue *to = MUL(SUB(qn_loop_counter(panels), g->first_panel), INDEX(g->depth * g->width));
    qn_nibbles_unpack(&g->four, qn_gemm_panel(g, batch, qn_loop_counter(panels)), g->low, g->high, g->y, to);
    qn_kb_end_for(&g->w.b, panels, NULL);
}

void qn_gemm_pack_panels(qn_gemm *g, qn_kvalue *batch)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_value *y = g->group->root->operands[1];
    const int n_batch = y->type.rank - 3;
    if (g->unpacks) {
        unpack_panels(g, batch);
        return;
    }
    qn_dim index[QN_MAX_RANK], var[3], which = qn_ispace_var(&w->space, g->batch, false);
    qn_ispace_set(&w->space, which, batch);
    qn_ix_split(&w->space, which, n_batch, g->dims, index);
    for (int i = 0; i < 3; i++)
        index[n_batch + i] = var[i] =
            qn_ispace_var(&w->space, qn_ispace_import(&w->space, y->type.dims[n_batch + i]), false);
    w->section++;
    qn_writer_loop rows = qn_writer_for(w, var[1], g->low, g->high, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop panels =
        qn_writer_for(w, var[0], g->first_panel, g->past_panel, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_prepare(w, y, index);
    qn_writer_loop lanes = qn_writer_for_all(w, var[2], QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *row = SUB(qn_writer_index(w, var[1]), g->low),
              *panel = MUL(SUB(qn_writer_index(w, var[0]), g->first_panel), INDEX(g->depth));
    qn_kvalue *at = ADD(MUL(ADD(panel, row), INDEX(g->width)), qn_writer_index(w, var[2]));
    qn_kb_store(b, g->y, at, qn_writer_value(w, y, index), NULL);
    qn_writer_end_for(w, &lanes, NULL);
    qn_writer_end_for(w, &panels, NULL);
    qn_writer_end_for(w, &rows, NULL);
}

/* ---- sums ---- */

/* Elements between a panel's columns for one k and for the next. */
static int64_t y_stride(const qn_gemm *g)
{
    return g->reads_rows ? g->n->value : g->width;
}

/* The row's x at k, in all lanes. */
static qn_kvalue *x_at(qn_gemm *g, qn_kvalue *start, qn_kvalue *k)
{
    return qn_word_repeat(&g->w.b, g->copy ? g->copy : g->x, ADD(start, k), g->lanes);
}

/* One step of k for all rows. x_lanes: of each row as many steps as there are lanes, of which this is number `lane`; or NULL. */
static void multiply_add(qn_gemm *g, int rows, qn_kvalue *const *starts, qn_kvalue *panel, qn_kvalue *k,
                         qn_kvalue *const *x_lanes, int lane, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *columns[2], *at = ADD(panel, MUL(k, INDEX(y_stride(g))));
    for (int i = 0; g->reads_rows && i < g->width; i += QN_GEMM_LINE)
        qn_word_prefetch(b, g->y, ADD(at, INDEX(ROWS_AHEAD * y_stride(g) + i)), 0);
    if (!g->fetch && !g->packs && !g->reads_rows &&
        lane * g->width % QN_GEMM_LINE == 0) /* bound by the stream of panels */
        qn_word_prefetch(b, g->y, ADD(at, INDEX(16 * g->width)), 0);
    for (int v = 0; v < g->vectors; v++)
        columns[v] = qn_word_load(b, g->y, ADD(at, INDEX(v * g->lanes)), g->lanes);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *x =
            x_lanes ? qn_word_lane(b, x_lanes[r], g->lanes, lane, g->lanes) : x_at(g, starts[r], k);
        for (int v = 0; v < g->vectors; v++)
            acc[r * g->vectors + v] =
                qn_word_multiply_add(b, x, columns[v], acc[r * g->vectors + v], g->fused);
    }
}

/* This tile's share of the panel that will be read after this one is done with. */
static void fetch_next(qn_gemm *g, qn_kvalue *k, int step)
{
    int elements = step * g->width / g->spread; /* of a line or more */
    qn_kvalue *at = ADD(g->fetch, MUL(SUB(k, g->low), INDEX(g->width / g->spread)));
    if (g->unpacks) { /* a part of a line */
        qn_word_prefetch(&g->w.b, g->four.y, DIV(at, INDEX(g->four.each)), 1);
        return;
    }
    for (int i = 0; i < elements; i += QN_GEMM_LINE)
        qn_word_prefetch(&g->w.b, g->y, ADD(at, INDEX(i)), 1);
}

/* Steps of `step` from low to high; `sets` accumulator sets taken in turn. */
static void k_loop(qn_gemm *g, int rows, qn_kvalue *const *starts, qn_kvalue *panel, qn_kvalue *low,
                   qn_kvalue *high, int step, int sets, qn_kvalue **acc)
{
    const int each = rows * g->vectors;
    qn_kvalue *x_lanes[QN_GEMM_MOST_ROWS];
    qn_kinst *loop = qn_kb_carry(&g->w.b, low, high, INDEX(step), QN_TAG_SERIAL, each * sets, acc, NULL);
    if (g->fetch && step > 1)
        fetch_next(g, qn_loop_counter(loop), step);
    const bool by_lane = g->by_lane && step % g->lanes == 0;
    for (int u = 0; u < step; u++) {
        qn_kvalue *k = ADD(qn_loop_counter(loop), INDEX(u));
        for (int r = 0; r < rows && by_lane && u % g->lanes == 0; r++)
            x_lanes[r] = qn_word_load(&g->w.b, g->copy ? g->copy : g->x, ADD(starts[r], k), g->lanes);
        multiply_add(g, rows, starts, panel, k, by_lane ? x_lanes : NULL, u % g->lanes,
                     acc + u % sets * each);
    }
    qn_kb_end_carry(&g->w.b, loop, acc);
}

/* Four lanes of two rows that lie below one another as two blocks of 2 x 2, or back: both are the same. */
static void turn_pairs(qn_gemm *g, int rows, qn_kvalue *const *from, qn_kvalue **to)
{
    static const int first[] = { 0, 1, 4, 5 }, second[] = { 2, 3, 6, 7 };
    for (int r = 0; r < rows; r += 2)
        for (int v = 0; v < g->vectors; v++) {
            qn_kvalue *above = from[r * g->vectors + v], *below = from[(r + 1) * g->vectors + v];
            to[r * g->vectors + v] = qn_kb_shuffle(&g->w.b, above, below, 4, first);
            to[(r + 1) * g->vectors + v] = qn_kb_shuffle(&g->w.b, above, below, 4, second);
        }
}

/* Steps of `step` words of k, by two words. acc: blocks of 2 x 2 sums, a pair of rows after the other, where those of a vector
 * of columns are [r * vectors + v] and [(r + 1) * vectors + v]. */
static void pairs_loop(qn_gemm *g, int rows, qn_kvalue *const *starts, qn_kvalue *panel, qn_kvalue *low,
                       qn_kvalue *high, int step, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    const int n = rows * g->vectors;
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(step), QN_TAG_SERIAL, n, acc, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *words[QN_GEMM_MOST_ROWS],
              *at = ADD(panel, MUL(k, INDEX(g->width)));
    if (g->fetch && step > 2)
        fetch_next(g, k, step);
    for (int r = 0; r < rows && !g->copy; r++)
        words[r] = qn_word_load(b, g->x, ADD(starts[r], k), step);
    for (int u = 0; u < step; u += 2) {
        qn_kvalue *columns[4];
        for (int i = 0; i < 2 * g->vectors; i++)
            columns[i] = qn_word_load(b, g->y, ADD(at, INDEX(u * g->width + i * g->lanes)), g->lanes);
        for (int r = 0; r < rows; r += 2) {
            qn_kvalue *both = g->copy
                                  ? qn_word_load(b, g->copy, in_copied_pair(g, r, ADD(k, INDEX(u))), g->lanes)
                                  : rows_together(g, &words[r], u);
            for (int i = 0; i < 2 * g->vectors; i++) {
                qn_kvalue **sum = &acc[(r + i % 2) * g->vectors + i / 2];
                *sum = qn_kb_mmla(b, both, columns[i], *sum);
            }
        }
    }
    qn_kb_end_carry(b, loop, acc);
}

/* acc += the pass's products, by pairs of rows; the row below the last of an odd number is that row again, and forgotten. */
static void sums_of_pairs(qn_gemm *g, int rows, qn_kvalue **starts, qn_kvalue *panel, qn_kvalue *even,
                          int step, qn_kvalue **acc)
{
    const int all = rows + rows % 2;
    qn_kvalue *blocks[QN_GEMM_MOST_ROWS * 2];
    if (all > rows) {
        starts[rows] = starts[rows - 1];
        for (int v = 0; v < g->vectors; v++)
            acc[rows * g->vectors + v] = acc[(rows - 1) * g->vectors + v];
    }
    turn_pairs(g, all, acc, blocks);
    pairs_loop(g, all, starts, panel, g->low, even, step, blocks);
    if (!qn_k_proven_multiple(SUB(g->high, g->low), step))
        pairs_loop(g, all, starts, panel, even, g->high, 2, blocks);
    turn_pairs(g, all, blocks, acc);
}

void qn_gemm_sums(qn_gemm *g, int rows, qn_kvalue *x_tile, qn_kvalue *panel, qn_kvalue *slot, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    int each = rows * g->vectors, sets = 1;
    while (!g->in_order && !g->pairs && sets * each < QN_GEMM_CHAINS)
        sets *= 2;
    const int step = sets > g->step ? sets : g->step;
    qn_kvalue *starts[QN_GEMM_MOST_ROWS],
        *zero = qn_kb_const(b, (qn_ktype){ g->sum, g->lanes }, (qn_scalar){ .i = 0 });
    for (int r = 0; r < rows; r++)
        starts[r] = row_start(g, x_tile, r);
    for (int i = 0; i < each * sets; i++)
        acc[i] = zero;
    if (g->partial) {
        qn_kvalue *later = qn_kb_splat(b, qn_kb_compare(b, QN_GT, g->pass, INDEX(0)), g->lanes);
        for (int i = 0; i < each; i++)
            acc[i] = qn_kb_load_masked(b, g->partial, ADD(slot, INDEX(i * g->lanes)), g->lanes, later, zero);
    }
    qn_kvalue *length = SUB(g->high, g->low), *left = MOD(length, INDEX(step)), *even = SUB(g->high, left);
    if (g->pairs) {
        sums_of_pairs(g, rows, starts, panel, even, step, acc);
        return;
    }
    k_loop(g, rows, starts, panel, g->low, even, step, sets, acc);
    for (int half = sets / 2; half > 0; half /= 2) {
        for (int i = 0; i < half * each; i++)
            acc[i] = qn_kb_binary(b, QN_OP_ADD, acc[i], acc[i + half * each]);
    }
    if (!qn_k_proven_multiple(length, step))
        k_loop(g, rows, starts, panel, even, g->high, 1, 1, acc);
}
