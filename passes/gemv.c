/* The template for matmul_packed with one row a batch: a vector times a matrix, bound by the stream of the matrix.
 *
 *   task: some panels of columns, in two halves that are read side by side, since memory gives more to two streams
 *     for each panel p of the first half
 *       for k: sums of panels p and p + half += x[k] * panel[k, 0 … width), lines asked for 1 KB ahead where that helps
 *       store, or: both to a local buffer, then what follows element by element over it
 *     and one panel alone where their number is odd
 *
 * A stream that ends runs on into the panels behind it: those of the next task. Tasks are small, so that a loop that goes
 * through them up and down by turns (see qn_step.alternates) finds as much as there is room for in the second cache.
 * Tasks depend on the shape only. As in gemm.c, k and panels count in words (words.h).
 *
 * Panels in 28 or 12 bits a number (ir/condensed.h) are the same, eight of k at a time, whose numbers are put together in registers; what
 * is in a panel's list is added behind. */
#include "ir/condensed.h"
#include "passes/lower.h"
#include "passes/schedule.h"
#include "passes/terms.h"
#include "passes/words.h"

enum {
    SETS = 2,      /* sums of an element, k by turns: more chains of FMAs; in strict math there is one */
    MOST_SETS = 4, /* as many as there are lanes, where x is read in vectors and multiplied by lanes */
    TASK_BYTES = 256 << 10, /* of the matrix */
    AHEAD_BYTES = 1024,
    /* Where the core follows streams: farther ahead than it does itself; and of matrices most of which comes from memory, not. */
    FOLLOWED_AHEAD_BYTES = 2048,
    FOLLOWED_BYTES = 16 << 20,
    LINE_BYTES = 64,
    MAX_CHAINS = 2 * 2 * MOST_SETS
};

typedef struct {
    qn_writer w;
    const qn_group *group;
    qn_kbuffer *x, *y, *tile;
    qn_kbuffer *out; /* stored directly: the group is the product alone; else NULL */
    int lanes, vectors, width;
    int ahead; /* bytes; 0: the core fetches them itself */
    int64_t task_panels;
    int rank;                 /* of the result */
    qn_dim dims[QN_MAX_RANK]; /* of the result, in the kernel's space */
    qn_dim n, k, batch, n_panels;
    qn_dtype sum;
    int sets;
    bool fused;
    bool is_condensed;
    qn_condensed condensed;  /* what its panels are of */
    qn_dim row_var, col_var; /* the batch as a row of the result; column */
    qn_kvalue *k_value, *n_value, *row, *first_col;
} gemv;

/* Columns of a panel, where y is what the right side is in 28 or 12 bits a number; else 0. */
static int condensed_panels(const qn_type *y, int n_batch, const qn_machine *machine)
{
    const int lanes = machine->vector_bytes / QN_WORD_BYTES;
    if (y->dtype != QUERN_U8 || y->rank != n_batch + 3)
        return 0;
    const int64_t width = y->dims[n_batch + 2]->value;
    return width == lanes || width == 2 * lanes ? (int)width : 0;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (group->kind != QN_GROUP_CONTRACTION || group->root->op != QN_OP_MATMUL_PACKED ||
        group->root->n_operands > 2 || !machine || machine->gpu)
        return false;
    const qn_type *type = &group->root->results[0].type, *y = &group->root->operands[1]->type;
    for (int i = (int)qn_attr_int(group->root, QN_ATTR_BATCH_DIMS); i < type->rank - 1; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return false;
    const int n_batch = (int)qn_attr_int(group->root, QN_ATTR_BATCH_DIMS);
    return qn_word_panels(y, n_batch, machine) > 0 || condensed_panels(y, n_batch, machine) > 0;
}

#define TERMS (&g->w.b)

/* ---- sums ---- */

/* Steps of `step` from low to high; acc[(set * n_panels + panel) * vectors + vector]. */
static void k_loop(gemv *g, int n_panels, qn_kvalue *const *panels, qn_kvalue *low, qn_kvalue *high, int step,
                   qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    const int each = n_panels * g->vectors, n = each * step;
    const bool by_lane = g->w.lowering->options->machine->by_lane && step == g->lanes;
    qn_kvalue *x_lanes = NULL;
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(step), QN_TAG_SERIAL, n, acc, NULL);
    for (int set = 0; set < step; set++) {
        qn_kvalue *k = ADD(qn_loop_counter(loop), INDEX(set));
        qn_kvalue *x = qn_word_in_turn(b, g->x, ADD(MUL(g->row, g->k_value), k), g->lanes,
                                       by_lane ? &x_lanes : NULL, set);
        for (int p = 0; p < n_panels; p++) {
            qn_kvalue *at = ADD(panels[p], MUL(k, INDEX(g->width)));
            const bool begins_line = set * g->width * 4 % LINE_BYTES == 0;
            for (int bytes = 0; g->ahead && begins_line && bytes < g->width * 4; bytes += LINE_BYTES)
                qn_word_prefetch(b, g->y, ADD(at, INDEX((g->ahead + bytes) / 4)), 0);
            for (int v = 0; v < g->vectors; v++) {
                qn_kvalue **sum = &acc[(set * n_panels + p) * g->vectors + v];
                *sum = qn_word_multiply_add(
                    b, x, qn_word_load(b, g->y, ADD(at, INDEX(v * g->lanes)), g->lanes), *sum, g->fused);
            }
        }
    }
    qn_kb_end_carry(b, loop, acc);
}

/* ---- sums of panels in 28 or 12 bits ---- */

/* Bytes, or pairs of them, of x and y by turns, inside of 16: of the first halves or of the second ones. */
static qn_kvalue *interleave(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, int size, bool second)
{
    enum { INSIDE = 16 };
    const int lanes = x->type.lanes;
    int mask[64];
    for (int i = 0; i < lanes; i++) {
        const int in = i % INSIDE,
                  from = i - in + (second ? INSIDE / 2 : 0) + in / (2 * size) * size + in % size;
        mask[i] = from + (in / size % 2 ? lanes : 0);
    }
    return qn_kb_shuffle(b, x, y, lanes, mask);
}

static qn_kvalue *load_bytes(gemv *g, qn_kvalue *at, int64_t offset, int n)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *(*load)(qn_kbuilder *, qn_kbuffer *, qn_kvalue *, int) =
        n > 4 ? qn_kb_load_in_order : qn_kb_load;
    return load(b, g->y, ADD(at, INDEX(offset)), n);
}

static int64_t block_bytes(const gemv *g)
{
    return qn_condensed_planes(g->condensed) * QN_WORD_BYTES * qn_condensed_columns(g->condensed);
}

/* Vector number `vector` of the rows of the block that begins at byte `at`. */
static void numbers_of_block(gemv *g, qn_kvalue *at, qn_kvalue *table, int vector, qn_kvalue **rows)
{
    qn_kbuilder *b = &g->w.b;
    const int bytes = QN_WORD_BYTES * g->lanes, inside = vector * bytes;
    const int64_t plane = QN_WORD_BYTES * qn_condensed_columns(g->condensed);
    const bool wide = g->condensed.dtype == QUERN_F32;
    qn_kvalue *low = wide ? NULL : qn_kb_const(b, (qn_ktype){ QUERN_U8, bytes }, (qn_scalar){ .i = 0 });
    qn_kvalue *places = load_bytes(g, at, inside, bytes);
    for (int half = 0; half < 2; half++) {
        const int64_t from = (1 + (wide ? 3 : 1) * half) * plane + inside;
        qn_kvalue *place = places;
        if (half)
            place = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, places,
                                 qn_kb_const(b, places->type, (qn_scalar){ .i = 4 }));
        qn_kvalue *top = qn_kb_pick(b, place, table), *third = load_bytes(g, at, from, bytes);
        for (int pair = 0; pair < 2; pair++) {
            if (wide)
                low = load_bytes(g, at, from + (1 + pair) * plane, bytes);
            qn_kvalue *high = interleave(b, third, top, 1, pair);
            for (int row = 0; row < 2; row++)
                *rows++ = qn_kb_join(b, QUERN_F32, interleave(b, low, high, 2, row));
        }
    }
}

/* Rows [first, past) of the eight from k on, to whose blocks `blocks` are the first bytes: row i to set i % sets. */
static void add_rows(gemv *g, int n_panels, qn_kvalue *const *blocks, qn_kvalue *const *tables, qn_kvalue *k,
                     int first, int past, int sets, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    const bool by_lane = g->w.lowering->options->machine->by_lane && past - first == QN_CONDENSED_ROWS;
    const int vectors = (int)qn_condensed_columns(g->condensed) / g->lanes; /* of a block */
    qn_kvalue *x[QN_CONDENSED_ROWS], *rows[QN_CONDENSED_ROWS], *x_lanes = NULL;
    for (int i = first; i < past; i++)
        x[i] = qn_word_in_turn(b, g->x, ADD(MUL(g->row, g->k_value), ADD(k, INDEX(i))), g->lanes,
                               by_lane ? &x_lanes : NULL, i % g->lanes);
    for (int v = 0; v < g->vectors; v++)
        for (int p = 0; p < n_panels; p++) {
            qn_kvalue *at = ADD(blocks[p], INDEX(v / vectors * block_bytes(g)));
            for (int64_t line = 0; g->ahead && v % vectors == 0 && line < block_bytes(g); line += LINE_BYTES)
                qn_kb_prefetch(b, g->y, ADD(at, INDEX(g->ahead + line)), 0);
            numbers_of_block(g, at, tables[p], v % vectors, rows);
            for (int i = first; i < past; i++) {
                qn_kvalue **sum = &acc[(i % sets * n_panels + p) * g->vectors + v];
                *sum = qn_word_multiply_add(b, x[i], rows[i], *sum, g->fused);
            }
        }
}

/* What is in the list of a panel, added to its sums. */
static void add_list(gemv *g, qn_kvalue *panel, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    for (int v = 0; v < g->vectors; v++)
        qn_kb_store(b, g->tile, INDEX(v * g->lanes), acc[v], NULL);
    qn_kvalue *count = qn_kb_join(b, QUERN_U32, load_bytes(g, panel, QN_CONDENSED_COUNT, 4));
    const int64_t room = qn_condensed_room(g->condensed);
    qn_kvalue *past = MIN(qn_kb_convert(b, QUERN_I64, count), INDEX(room));
    qn_kinst *entries = qn_kb_for(b, INDEX(0), past, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *entry = ADD(panel, MUL(qn_loop_counter(entries), INDEX(QN_CONDENSED_ENTRY)));
    qn_kvalue *place =
        qn_kb_convert(b, QUERN_I64, qn_kb_join(b, QUERN_U32, load_bytes(g, entry, QN_CONDENSED_LIST, 4)));
    qn_kvalue *number = qn_kb_join(b, QUERN_F32, load_bytes(g, entry, QN_CONDENSED_LIST + 4, 4));
    qn_kvalue *k = MIN(DIV(place, INDEX(g->width)), INDEX(g->k->value - 1)),
              *column = MOD(place, INDEX(g->width));
    qn_kvalue *x = qn_kb_load(b, g->x, ADD(MUL(g->row, g->k_value), k), 1);
    qn_kvalue *sum = qn_word_multiply_add(b, x, number, qn_kb_load(b, g->tile, column, 1), g->fused);
    qn_kb_store(b, g->tile, column, sum, NULL);
    qn_kb_end_for(b, entries, NULL);
    for (int v = 0; v < g->vectors; v++)
        acc[v] = qn_kb_load(b, g->tile, INDEX(v * g->lanes), g->lanes);
}

/* What k_loop is for panels of float32, for the first bytes of these: rows [low, high) of k, the sums in the same order. */
static void condensed_loop(gemv *g, int n_panels, qn_kvalue *const *panels, int64_t low, int64_t high,
                           int sets, qn_kvalue **acc)
{
    enum { ROWS = QN_CONDENSED_ROWS };
    qn_kbuilder *b = &g->w.b;
    const int64_t past = high / ROWS * ROWS, head = qn_condensed_head(g->condensed);
    const int64_t bytes = g->width / qn_condensed_columns(g->condensed) * block_bytes(g);
    qn_kvalue *tables[2], *blocks[2];
    for (int p = 0; p < n_panels; p++) {
        tables[p] = qn_kb_load(b, g->y, panels[p], QN_CONDENSED_TABLE);
        for (int64_t line = 0; low == 0 && line < 4; line++)
            qn_kb_prefetch(b, g->y,
                           ADD(panels[p], INDEX(qn_condensed_bytes(g->condensed) + line * LINE_BYTES)), 0);
    }
    if (low < past) {
        qn_kinst *loop = qn_kb_carry(b, INDEX(low), INDEX(past), INDEX(ROWS), QN_TAG_SERIAL,
                                     n_panels * g->vectors * sets, acc, NULL);
        qn_kvalue *k = qn_loop_counter(loop);
        for (int p = 0; p < n_panels; p++)
            blocks[p] = ADD(ADD(panels[p], INDEX(head)), MUL(k, INDEX(bytes / ROWS)));
        add_rows(g, n_panels, blocks, tables, k, 0, ROWS, sets, acc);
        qn_kb_end_carry(b, loop, acc);
        low = past;
    }
    if (low == high)
        return;
    for (int p = 0; p < n_panels; p++)
        blocks[p] = ADD(panels[p], INDEX(head + past / ROWS * bytes));
    add_rows(g, n_panels, blocks, tables, INDEX(past), (int)(low - past), (int)(high - past), sets, acc);
}

/* acc[panel * vectors + vector]: the sums of the panels that begin at these elements, or bytes */
static void sums_of_panels(gemv *g, int n_panels, qn_kvalue *const *panels, qn_kvalue **acc)
{
    qn_kbuilder *b = &g->w.b;
    const int each = n_panels * g->vectors;
    const int64_t condensed_even = g->is_condensed ? g->k->value - g->k->value % g->sets : 0;
    for (int i = 0; i < each * g->sets; i++)
        acc[i] = qn_kb_const(b, (qn_ktype){ g->sum, g->lanes }, (qn_scalar){ .i = 0 });
    qn_kvalue *even = SUB(g->k_value, MOD(g->k_value, INDEX(g->sets)));
    if (g->is_condensed)
        condensed_loop(g, n_panels, panels, 0, condensed_even, g->sets, acc);
    else
        k_loop(g, n_panels, panels, INDEX(0), even, g->sets, acc);
    for (int i = 0; i < each; i++)
        for (int set = 1; set < g->sets; set++)
            acc[i] = qn_kb_binary(b, QN_OP_ADD, acc[i], acc[set * each + i]);
    if (g->is_condensed)
        condensed_loop(g, n_panels, panels, condensed_even, g->k->value, 1, acc);
    else if (!qn_dim_divisible(g->k, g->sets))
        k_loop(g, n_panels, panels, even, g->k_value, 1, acc);
    for (int p = 0; p < n_panels && g->is_condensed; p++)
        add_list(g, panels[p], acc + p * g->vectors);
}

/* ---- finishing ---- */

static void store_sums(gemv *g, qn_kvalue *first_col, qn_kvalue *const *acc)
{
    qn_kbuilder *b = &g->w.b;
    for (int v = 0; v < g->vectors; v++) {
        qn_kvalue *col = ADD(first_col, INDEX(v * g->lanes)), *mask = NULL;
        if (!qn_dim_divisible(g->n, g->width))
            mask =
                qn_kb_compare(b, QN_LT, qn_kb_ramp(b, col, g->lanes), qn_kb_splat(b, g->n_value, g->lanes));
        qn_kb_store(b, g->out, ADD(MUL(g->row, g->n_value), col), acc[v], mask);
    }
}

/* The product at an index inside the panel that is being finished: only ever asked at (row_var, col_var). */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const gemv *g = user;
    (void)value, (void)index;
    return qn_kb_load(&w->b, g->tile, qn_kb_isub(&w->b, qn_writer_index(w, g->col_var), g->first_col), 1);
}

static void apply_epilogue(gemv *g, qn_kvalue *first_col, qn_kvalue *const *acc)
{
    qn_writer *w = &g->w;
    for (int v = 0; v < g->vectors; v++)
        qn_kb_store(&w->b, g->tile, INDEX(v * g->lanes), acc[v], NULL);
    qn_dim index[QN_MAX_RANK];
    qn_ix_split(&w->space, g->row_var, g->rank - 1, g->dims, index);
    index[g->rank - 1] = g->col_var;
    g->first_col = first_col;
    qn_kvalue *past_col = ADD(first_col, INDEX(g->width));
    if (!qn_dim_divisible(g->n, g->width))
        past_col = qn_kb_imin(&w->b, past_col, g->n_value);
    qn_writer_loop columns = qn_writer_for(w, g->col_var, first_col, past_col, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store_outputs(w, g->group, g->rank, g->dims, index);
    qn_writer_end_for(w, &columns, NULL);
}

/* Panels `numbers` of the batch whose panels begin at number `base`. */
static void finish_panels(gemv *g, qn_kvalue *base, int n_panels, qn_kvalue *const *numbers)
{
    qn_kvalue *panels[2], *acc[MAX_CHAINS], *size = MUL(g->k_value, INDEX(g->width));
    if (g->is_condensed)
        size = INDEX(qn_condensed_bytes(g->condensed));
    for (int p = 0; p < n_panels; p++)
        panels[p] = MUL(ADD(base, numbers[p]), size);
    sums_of_panels(g, n_panels, panels, acc);
    for (int p = 0; p < n_panels; p++) {
        qn_kvalue *first_col = MUL(numbers[p], INDEX(g->width));
        if (g->out)
            store_sums(g, first_col, acc + p * g->vectors);
        else
            apply_epilogue(g, first_col, acc + p * g->vectors);
    }
}

/* ---- tasks ---- */

static int64_t panels_a_task(const gemv *g)
{
    const int64_t panel_bytes =
        g->is_condensed ? qn_condensed_bytes(g->condensed) : 4 * g->width * (int64_t)qn_likely_extent(g->k);
    const int64_t pairs = TASK_BYTES / (2 * (panel_bytes > 0 ? panel_bytes : 1));
    return 2 * (pairs < 1 ? 1 : pairs);
}

/* How far ahead lines are asked for. */
static int64_t bytes_ahead(const gemv *g)
{
    if (!g->w.lowering->options->machine->follows_streams)
        return AHEAD_BYTES;
    const double bytes =
        4.0 * g->width * (double)qn_likely_extent(g->n_panels) * (double)qn_likely_extent(g->k);
    const bool in_region = !g->group->root->graph->name;
    if (g->is_condensed) /* what a loop reads again is in the last cache */
        return in_region ? 0 : bytes < FOLLOWED_BYTES ? FOLLOWED_AHEAD_BYTES : 2 * FOLLOWED_AHEAD_BYTES;
    return bytes < FOLLOWED_BYTES ? FOLLOWED_AHEAD_BYTES : 0;
}

/* All that may be measured. */
static void choose(gemv *g)
{
    enum { MOST_AHEAD = 1 << 16, MOST_PANELS = 1 << 20 };
    const qn_pass_options *options = g->w.lowering->options;
    const qn_dim shape[] = { g->batch, g->k, g->n, qn_dim_const(g->w.space.dims, g->width) };
    char site[QN_SITE_SIZE];
    qn_schedule_site(g->w.kernel->name, g->x->dtype, 4, shape, site);
    const qn_schedule s = qn_schedule_find(options, site);
    g->ahead = (int)qn_schedule_get(&s, QN_KNOB_AHEAD, bytes_ahead(g), MOST_AHEAD) / LINE_BYTES * LINE_BYTES;
    g->task_panels = qn_schedule_get(&s, QN_KNOB_PANELS, panels_a_task(g), MOST_PANELS);
    g->task_panels += g->task_panels % 2;
    qn_schedule_note(
        options, site, g->group->root,
        (qn_schedule){ .knobs = { [QN_KNOB_AHEAD] = g->ahead, [QN_KNOB_PANELS] = g->task_panels } });
}

static qn_dim write_tasks(gemv *g)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const int64_t size = g->task_panels;
    const qn_dim blocks = qn_dim_ceildiv(dims, g->n_panels, qn_dim_const(dims, size));
    qn_kvalue *task = qn_kb_task(b), *n_blocks = qn_writer_index(w, blocks),
              *all = qn_writer_index(w, g->n_panels);
    g->row = DIV(task, n_blocks);
    qn_kvalue *low = MUL(MOD(task, n_blocks), INDEX(size)), *base = MUL(g->row, all);
    qn_kvalue *high = MIN(ADD(low, INDEX(size)), all);
    qn_kvalue *half = DIV(SUB(high, low), INDEX(2));
    g->row_var = qn_ispace_var(&w->space, g->batch, false);
    if (g->row_var->kind == QN_DIM_SYMBOL)
        qn_ispace_var_of(&w->space, g->row_var)->value = g->row;
    g->col_var = qn_ispace_var(&w->space, g->n, false);

    qn_kvalue *middle = ADD(low, half);
    qn_kinst *pairs = qn_kb_for(b, low, middle, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
    finish_panels(g, base, 2, (qn_kvalue *[]){ qn_loop_counter(pairs), ADD(qn_loop_counter(pairs), half) });
    qn_kb_end_for(b, pairs, NULL);
    if (!qn_dim_divisible(g->n_panels, 2)) {
        qn_kinst *last =
            qn_kb_for(b, ADD(middle, half), high, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL); /* once at most */
        finish_panels(g, base, 1, (qn_kvalue *[]){ qn_loop_counter(last) });
        qn_kb_end_for(b, last, NULL);
    }
    return qn_dim_mul(dims, g->batch, blocks);
}

static void read_shape(gemv *g)
{
    qn_ispace *space = &g->w.space;
    const qn_node *root = g->group->root;
    const qn_type *type = &root->results[0].type, *y = &root->operands[1]->type;
    g->rank = type->rank;
    qn_ispace_dims(space, type, g->dims);
    g->batch = qn_dim_const(space->dims, 1);
    for (int i = 0; i < g->rank - 1; i++)
        g->batch = qn_dim_mul(space->dims, g->batch, g->dims[i]);
    g->n = g->dims[g->rank - 1];
    const int n_batch = (int)qn_attr_int(root, QN_ATTR_BATCH_DIMS);
    g->is_condensed = condensed_panels(y, n_batch, g->w.lowering->options->machine) > 0;
    const qn_type *x = &root->operands[0]->type;
    g->k = qn_ispace_import(space, g->is_condensed ? x->dims[x->rank - 1] : y->dims[n_batch + 1]);
    g->n_panels = qn_ispace_import(space, y->dims[n_batch]);
    g->sum = type->dtype;
    const bool in_order = qn_dtype_is_float(g->sum) && g->w.lowering->options->math == QN_MATH_STRICT;
    g->fused = qn_may_fuse(g->w.lowering->options);
    g->lanes = g->w.lowering->options->machine->vector_bytes / QN_WORD_BYTES;
    g->width =
        (g->is_condensed ? condensed_panels : qn_word_panels)(y, n_batch, g->w.lowering->options->machine);
    if (g->is_condensed)
        qn_condensed_of(g->k->value, g->width, y->dims[n_batch + 1]->value * g->width, &g->condensed);
    g->vectors = g->width / g->lanes;
    const bool by_lane = g->w.lowering->options->machine->by_lane && g->lanes <= MOST_SETS;
    g->sets = in_order ? 1 : by_lane ? g->lanes : SETS;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemv *g = QN_NEW(scratch, gemv);
    qn_writer *w = &g->w;
    g->group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(g);
    qn_value *x = group->root->operands[0], *y = group->root->operands[1],
             *product = &group->root->results[0];
    g->x = qn_writer_argument(w, qn_lower_buffer(l, x), true, false);
    g->y = qn_writer_argument(w, qn_lower_buffer(l, y), true, false);
    qn_writer_note_load(w, g->x);
    qn_writer_note_load(w, g->y);
    for (int i = 0; i < group->n_inputs; i++) /* x and y too: what follows may read them */
        qn_writer_bind_input(w, group->inputs[i]);
    g->k_value = qn_writer_index(w, g->k);
    g->n_value = qn_writer_index(w, g->n);
    if (group->n_nodes == 1) {
        g->out = qn_writer_argument(w, qn_lower_buffer(l, product), false, true);
    } else {
        qn_writer_bind(w, product, fetch_sum, g);
    }
    if (!g->out || g->is_condensed)
        g->tile = qn_kernel_add_local(w->kernel, "tile", g->sum, g->width);
    w->kernel->flops = 2 * qn_likely_extent(g->batch) * qn_likely_extent(g->n) * qn_likely_extent(g->k) *
                       qn_word_elements(g->x->dtype);
    choose(g);
    const qn_dim tasks = write_tasks(g);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemv = { .name = "gemv", .matches = matches, .lower = lower };
