/* The template for matmul_packed of bfloat16 or bytes on a machine with a matrix unit (QN_K_TILE_*).
 *
 *   task: some blocks of up to 32 rows x some panels of 32 columns
 *     for each panel, each pass over k, each block of rows: a piece
 *       tiles 0 … 3 = 0, or what the pass before has left      rows 0 … 15 | 16 … 31  x  columns 0 … 15 | 16 … 31
 *       for k in steps of 64 bytes
 *         tiles 4, 5: x; 6, 7: the panel; four products
 *         what follows the product, element by element, over some rows of the piece before
 *       store the sums to a local buffer, or where they belong if nothing follows
 *
 * The unit works by itself: what follows a product is done while it multiplies the next piece. A panel is read once from memory for
 * all blocks of rows, which lie in the second cache. What that cache does not have yet is fetched meanwhile: the next panel by the
 * first blocks, the next block's rows with the first panel, the lines that this piece's results go to.
 *
 * Rows are spread evenly over blocks of two heights where their number is known; where it is a symbol, the last block is
 * what is left. A block of at most 16 rows uses one row of tiles. Tasks depend on the shape only. */
#include "passes/gemm_tile.h"

#include "passes/block.h"
#include "passes/schedule.h"
#include "passes/terms.h"

enum {
    BLOCK_ROWS = 2 * QN_TILE_ROWS,
    TILE_COLUMNS = QN_TILE_BYTES / 4,
    LINE = 64,
    LEAST_ROWS = 8, /* of bytes: fewer are bound by reading y */
    MOST_BLOCKS = 16,
    MOST_PANELS = 64,
    TASK_NANOSECONDS = 10000,
    BYTES_A_NANOSECOND_OF_WORK = 1500, /* of x and y, multiplied by a core; for the size of tasks only */
    BYTES_A_NANOSECOND = 15,
    FETCH_PARTS = 4, /* blocks that fetch the next panel between them */
    /* QN_KNOB_AHEAD: at least that where something is fetched */
    FETCHES_RESULTS = 2,
    FETCHES_ROWS = 4,
    /* tiles: sums [rows][columns], then x by rows, y by columns */
    X_TILE = 4,
    Y_TILE = 6
};

typedef struct gemm {
    qn_writer w;
    qn_block block;
    qn_kbuffer *x, *y;
    qn_kbuffer *out;     /* stored directly: the group is the product alone; else NULL */
    qn_kbuffer *partial; /* sums of the task's blocks between passes; NULL: one pass */
    qn_dtype x_type, y_type, sum;
    int64_t step, group_elements,
        width;               /* k of one product; of k that lie side by side; columns of a panel */
    int64_t blocks, panels;  /* of a task */
    int64_t depth, n_passes; /* of k in a pass */
    int64_t ahead;
    qn_dim k, n_panels;
    qn_kvalue *m_value, *k_value;
    qn_kvalue *upper, *lower; /* rows of a block's tiles; lower NULL: it has one row of them */
    qn_kvalue *first_block;   /* of the task */
} gemm;

static bool is_byte(qn_dtype dtype)
{
    return dtype == QUERN_I8 || dtype == QUERN_U8;
}

bool qn_gemm_tile_takes_bytes(const qn_type *x, int n_batch, const qn_machine *machine)
{
    const qn_dim k = x->dims[x->rank - 1];
    double rows = 1;
    for (int i = n_batch; i < x->rank - 1; i++)
        rows *= (double)x->dims[i]->max;
    return machine && machine->tiles && is_byte(x->dtype) && qn_dim_is_const(k) &&
           k->value % QN_TILE_BYTES == 0 && rows >= LEAST_ROWS;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (group->kind != QN_GROUP_CONTRACTION || group->root->op != QN_OP_MATMUL_PACKED || !machine ||
        !machine->tiles || group->root->n_operands > 2)
        return false;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    const qn_dtype sum = group->root->results[0].type.dtype;
    const int batch = (int)qn_attr_int(group->root, QN_ATTR_BATCH_DIMS);
    const bool halves = x->dtype == QUERN_BF16 && y->dtype == QUERN_BF16 && sum == QUERN_F32 &&
                        qn_dim_is_const(x->dims[x->rank - 1]) &&
                        x->dims[x->rank - 1]->value % (QN_TILE_BYTES / 2) == 0;
    const bool bytes = is_byte(y->dtype) && sum == QUERN_I32 && qn_gemm_tile_takes_bytes(x, batch, machine);
    return (halves || bytes) && y->rank == batch + 4 && qn_dim_is(y->dims[y->rank - 1], halves ? 2 : 4) &&
           y->dims[y->rank - 2]->value % TILE_COLUMNS == 0 && y->dims[y->rank - 2]->value <= 2 * TILE_COLUMNS;
}

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&g->w.b)

/* ---- one piece ---- */

static int tile_rows(const gemm *g)
{
    return g->lower ? 2 : 1;
}

static int tile_columns(const gemm *g)
{
    return (int)(g->width / TILE_COLUMNS);
}

static void set_shape(gemm *g)
{
    qn_kvalue *rows[QN_TILES], *none = INDEX(0);
    for (int i = 0; i < QN_TILES; i++) {
        const bool sums = i < X_TILE, y = i >= Y_TILE;
        const int row = sums ? i / 2 : i - X_TILE, column = sums ? i % 2 : i - Y_TILE;
        rows[i] = y                                   ? column < tile_columns(g) ? INDEX(QN_TILE_ROWS) : none
                  : sums && column >= tile_columns(g) ? none
                  : row == 0                          ? g->upper
                  : g->lower                          ? g->lower
                                                      : none;
    }
    qn_kb_tile_shape(&g->w.b, rows);
}

/* Blocks of one shape, each with each of some panels. */
typedef struct strip {
    qn_kvalue *batch, *from, *n_blocks, *low, *n_panels;
    qn_kvalue *height, *past; /* block i begins at row i * height + past of the batch */
    qn_kvalue *n_rows;
} strip;

typedef struct piece {
    qn_kvalue *block, *pass, *panel;
    qn_kvalue *row, *column; /* where it begins, of all batches */
} piece;

static piece piece_at(gemm *g, const strip *s, qn_kvalue *i)
{
    qn_kvalue *n = MAX(s->n_blocks, INDEX(1)), *turn = DIV(i, n);
    piece p = { .block = ADD(s->from, MOD(i, n)),
                .pass = MOD(turn, INDEX(g->n_passes)),
                .panel = ADD(s->low, DIV(turn, INDEX(g->n_passes))) };
    p.row = ADD(MUL(s->batch, g->m_value), ADD(MUL(p.block, s->height), s->past));
    p.column = MUL(p.panel, INDEX(g->width));
    return p;
}

/* An `if`, or nothing where the condition is NULL. */
static qn_kinst *when(gemm *g, qn_kvalue *condition)
{
    return condition ? qn_kb_if(&g->w.b, condition) : NULL;
}

static void end_when(gemm *g, qn_kinst *branch)
{
    if (!branch)
        return;
    qn_kb_else(&g->w.b, branch, 0, NULL);
    qn_kb_end_if(&g->w.b, branch, 0, NULL);
}

/* ---- what is fetched ---- */

/* Some lines of the panel behind this one, as of step k: a fourth of them with each of the first four blocks. */
static void fetch_panel(gemm *g, const strip *s, const piece *p, qn_kvalue *panel, qn_kvalue *k)
{
    qn_kbuilder *b = &g->w.b;
    const int64_t elements = LINE / (int64_t)qn_dtype_bytes(g->y_type),
                  lines = g->step * g->width / elements / FETCH_PARTS;
    qn_kvalue *part = SUB(p->block, s->from);
    qn_kinst *branch = when(g, qn_kb_compare(b, QN_LT, part, INDEX(FETCH_PARTS)));
    qn_kvalue *at =
        ADD(ADD(panel, MUL(ADD(g->k_value, k), INDEX(g->width))), MUL(part, INDEX(lines * elements)));
    for (int64_t i = 0; i < lines; i++)
        qn_kb_prefetch(b, g->y, ADD(at, INDEX(i * elements)), 1);
    end_when(g, branch);
}

/* As of step k, the rows of the block behind this one, with the first of all panels. */
static void fetch_rows(gemm *g, const strip *s, const piece *p, qn_kvalue *k)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *next = ADD(p->block, INDEX(1)), *n = SUB(ADD(s->from, s->n_blocks), next);
    qn_kvalue *first = qn_kb_compare(b, QN_EQ, p->panel, INDEX(0)), *rows = ADD(p->row, s->height);
    qn_kinst *loop = FOR(INDEX(0), qn_kb_select(b, first, MIN(MUL(n, s->n_rows), s->n_rows), INDEX(0)));
    qn_kb_prefetch(b, g->x, ADD(MUL(ADD(rows, qn_loop_counter(loop)), g->k_value), k), 1);
    qn_kb_end_for(b, loop, NULL);
}

/* Rows of a piece that come with a step, so that all do with any pass. */
static int64_t rows_a_step(const gemm *g)
{
    const int64_t last = g->k->value - (g->n_passes - 1) * g->depth, steps = last / g->step;
    return (BLOCK_ROWS + steps - 1) / steps;
}

/* The lines that some rows of the piece go to. */
static void fetch_results(gemm *g, const strip *s, const piece *p, qn_kvalue *step)
{
    qn_writer *w = &g->w;
    const qn_block *block = &g->block;
    qn_kvalue *last = ADD(p->row, SUB(s->n_rows, INDEX(1)));
    qn_dim index[QN_MAX_RANK];
    qn_ix_split(&w->space, block->row, block->rank - 1, block->dims, index);
    index[block->rank - 1] = block->col;
    for (int64_t i = 0; i < rows_a_step(g); i++)
        for (int j = 0; j < tile_columns(g); j++) {
            const size_t mark = qn_writer_mark(w);
            qn_kvalue *row = ADD(p->row, ADD(MUL(step, INDEX(rows_a_step(g))), INDEX(i)));
            qn_ispace_set(&w->space, block->row, MIN(row, last));
            qn_ispace_set(&w->space, block->col, ADD(p->column, INDEX(j * TILE_COLUMNS)));
            qn_writer_prefetch_outputs(w, g->block.group, block->rank, block->dims, index, block->col);
            qn_writer_forget(w, mark);
        }
}

/* ---- the sums ---- */

static qn_kvalue *slot_of(gemm *g, const piece *p)
{
    return MUL(SUB(p->block, g->first_block), INDEX(BLOCK_ROWS * g->width));
}

typedef void move_tile(qn_kbuilder *b, int tile, qn_kbuffer *buffer, qn_kvalue *at, qn_kvalue *stride);

static void move_sums(gemm *g, move_tile *move, qn_kbuffer *buffer, qn_kvalue *at, qn_kvalue *stride)
{
    for (int i = 0; i < tile_rows(g); i++)
        for (int j = 0; j < tile_columns(g); j++)
            move(&g->w.b, 2 * i + j, buffer,
                 ADD(i == 0 ? at : ADD(at, MUL(g->upper, stride)), INDEX(j * TILE_COLUMNS)), stride);
}

static void begin_sums(gemm *g, const piece *p)
{
    qn_kbuilder *b = &g->w.b;
    qn_kinst *branch = when(g, g->partial ? qn_kb_compare(b, QN_GT, p->pass, INDEX(0)) : NULL);
    if (branch) {
        move_sums(g, qn_kb_tile_load, g->partial, slot_of(g, p), INDEX(g->width));
        qn_kb_else(b, branch, 0, NULL);
    }
    for (int i = 0; i < tile_rows(g); i++)
        for (int j = 0; j < tile_columns(g); j++)
            qn_kb_tile_zero(b, 2 * i + j);
    if (branch)
        qn_kb_end_if(b, branch, 0, NULL);
}

static qn_kvalue *is_last(gemm *g, const piece *p)
{
    return qn_kb_compare(&g->w.b, QN_EQ, p->pass, INDEX(g->n_passes - 1));
}

/* Where the sums of piece `i` wait for what follows: those of the next one come in the meantime. */
static qn_kvalue *waiting(gemm *g, qn_kvalue *i)
{
    return MUL(MOD(i, INDEX(2)), INDEX(BLOCK_ROWS * g->width));
}

static void end_sums(gemm *g, const piece *p, qn_kvalue *i)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *n = g->block.n_value;
    qn_kinst *branch = when(g, g->partial ? is_last(g, p) : NULL);
    if (g->out)
        move_sums(g, qn_kb_tile_store, g->out, ADD(MUL(p->row, n), p->column), n);
    else
        move_sums(g, qn_kb_tile_store, g->block.sums, waiting(g, i), INDEX(g->width));
    if (!branch)
        return;
    qn_kb_else(b, branch, 0, NULL);
    move_sums(g, qn_kb_tile_store, g->partial, slot_of(g, p), INDEX(g->width));
    qn_kb_end_if(b, branch, 0, NULL);
}

/* ---- pieces ---- */

static void multiply(gemm *g, const strip *s, const piece *p, qn_kvalue *panel, qn_kvalue *k, qn_kvalue *step)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *x_at = MUL(p->row, g->k_value), *y_at = ADD(panel, MUL(k, INDEX(g->width)));
    fetch_panel(g, s, p, panel, k);
    if (g->ahead >= FETCHES_ROWS)
        fetch_rows(g, s, p, k);
    if (g->ahead >= FETCHES_RESULTS)
        fetch_results(g, s, p, step);
    for (int i = 0; i < tile_rows(g); i++) {
        qn_kvalue *row = i == 0 ? x_at : ADD(x_at, MUL(g->upper, g->k_value));
        qn_kb_tile_load(b, X_TILE + i, g->x, ADD(row, k), g->k_value);
        for (int j = 0; j < tile_columns(g); j++) {
            if (i == 0)
                qn_kb_tile_load(b, Y_TILE + j, g->y, ADD(y_at, INDEX(j * TILE_COLUMNS * g->group_elements)),
                                INDEX(g->width * g->group_elements));
            qn_kb_tile_mma(b, 2 * i + j, X_TILE + i, Y_TILE + j, g->x_type, g->y_type);
        }
    }
}

/* What follows the product, over some rows of the piece before number `i`, if that one is done. */
static void finish_rows(gemm *g, const strip *s, const piece *before, qn_kvalue *i, qn_kvalue *step)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *done = qn_kb_compare(b, QN_GT, i, INDEX(0));
    if (g->partial)
        done = qn_kb_binary(b, QN_OP_AND, done, is_last(g, before));
    qn_kvalue *n = qn_kb_select(b, done, s->n_rows, INDEX(0)), *share = INDEX(rows_a_step(g));
    qn_kvalue *low = MIN(MUL(step, share), n), *high = MIN(ADD(low, share), n);
    g->block.first_row = before->row;
    g->block.first_col = before->column;
    g->block.first_sum = waiting(g, ADD(i, INDEX(1)));
    qn_block_finish_rows(&g->block, ADD(before->row, low), ADD(before->row, high));
}

/* Piece number `i` of `n`; where something follows, there is one more, which multiplies nothing. */
static void one_piece(gemm *g, const strip *s, qn_kvalue *i, qn_kvalue *n)
{
    qn_kbuilder *b = &g->w.b;
    const piece p = piece_at(g, s, i);
    piece before = p;
    qn_kvalue *is_one = NULL;
    if (!g->out) {
        before = piece_at(g, s, SUB(i, INDEX(1)));
        is_one = qn_kb_compare(b, QN_LT, i, n);
    }
    qn_kvalue *panels = ADD(MUL(s->batch, qn_writer_index(&g->w, g->n_panels)), p.panel),
              *panel = MUL(panels, MUL(g->k_value, INDEX(g->width)));
    qn_kvalue *low = MUL(p.pass, INDEX(g->depth)), *high = ADD(low, INDEX(g->depth));
    if (g->n_passes > 1)
        high = MIN(high, g->k_value);
    qn_kinst *branch = when(g, is_one);
    begin_sums(g, &p);
    end_when(g, branch);
    qn_kinst *loop = qn_kb_for(b, low, high, INDEX(g->step), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *step = DIV(SUB(qn_loop_counter(loop), low), INDEX(g->step));
    branch = when(g, is_one);
    multiply(g, s, &p, panel, qn_loop_counter(loop), step);
    end_when(g, branch);
    if (!g->out)
        finish_rows(g, s, &before, i, step);
    qn_kb_end_for(b, loop, NULL);
    branch = when(g, is_one);
    end_sums(g, &p, i);
    end_when(g, branch);
}

/* ---- blocks and tasks ---- */

static void pieces(gemm *g, strip *s, qn_kvalue *to)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *none = INDEX(0);
    set_shape(g);
    s->n_blocks = MAX(SUB(to, s->from), none);
    qn_kvalue *n = MUL(MUL(s->n_blocks, s->n_panels), INDEX(g->n_passes)), *more = n;
    if (!g->out)
        more = ADD(n, MIN(n, INDEX(1)));
    qn_kinst *loop = FOR(none, more);
    one_piece(g, s, qn_loop_counter(loop), n);
    qn_kb_end_for(b, loop, NULL);
}

/* Blocks [from, to) of the strip's batch, all of `height` rows, block i from row i * height + past on. */
static void blocks(gemm *g, strip s, qn_kvalue *from, qn_kvalue *to, int64_t height, int64_t past)
{
    const int64_t upper = height < QN_TILE_ROWS ? height : QN_TILE_ROWS;
    g->upper = INDEX(upper);
    g->lower = height > upper ? INDEX(height - upper) : NULL;
    s.from = from;
    s.height = s.n_rows = INDEX(height);
    s.past = INDEX(past);
    pieces(g, &s, to);
}

/* The rows behind `full` blocks of all 32, if there are any: in the task that has the block of that number. */
static void rest(gemm *g, strip s, qn_kvalue *full, qn_kvalue *to)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *left = MOD(g->m_value, INDEX(BLOCK_ROWS)), *tile = INDEX(QN_TILE_ROWS);
    s.from = MAX(s.from, full);
    s.height = INDEX(BLOCK_ROWS);
    s.past = INDEX(0);
    s.n_rows = left;
    for (int two = 0; two < 2; two++) {
        qn_kvalue *is_two = qn_kb_compare(b, QN_GT, left, tile);
        qn_kinst *branch =
            qn_kb_if(b, qn_kb_compare(b, QN_EQ, qn_kb_select(b, is_two, INDEX(1), INDEX(0)), INDEX(two)));
        g->upper = two ? tile : MIN(left, tile);
        g->lower = two ? MAX(SUB(left, tile), INDEX(1)) : NULL;
        const size_t mark = qn_writer_mark(&g->w);
        pieces(g, &s, to);
        qn_writer_forget(&g->w, mark);
        end_when(g, branch);
    }
}

static void all_blocks(gemm *g, const strip *s, qn_kvalue *to)
{
    if (!qn_dim_is_const(g->block.m)) {
        qn_kvalue *full = DIV(g->m_value, INDEX(BLOCK_ROWS));
        blocks(g, *s, s->from, MIN(to, full), BLOCK_ROWS, 0);
        rest(g, *s, full, to);
        return;
    }
    /* the first `higher` blocks have one row more than the others */
    const int64_t m = g->block.m->value, n = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, height = m / n,
                  higher = m % n;
    if (higher > 0)
        blocks(g, *s, s->from, MIN(to, INDEX(higher)), height + 1, 0);
    blocks(g, *s, MAX(s->from, INDEX(higher)), to, height, higher);
}

/* So many rows that they stay in half of the second cache, and panels for about TASK_NANOSECONDS; k in one pass: partial sums would
 * go through the second cache, which costs what is gained (docs/performance.md). */
static void choose(gemm *g)
{
    const qn_pass_options *options = g->w.lowering->options;
    const qn_machine *machine = options->machine;
    const double half_l2 = machine->l2_bytes > 0 ? (double)machine->l2_bytes / 2 : 512 * 1024;
    const double m = qn_likely_extent(g->block.m),
                 bytes = (double)(g->k->value * (int64_t)qn_dtype_bytes(g->x_type));
    double n_blocks = half_l2 / (bytes * BLOCK_ROWS);
    n_blocks = n_blocks < 1 ? 1 : n_blocks > MOST_BLOCKS ? MOST_BLOCKS : (double)(int64_t)n_blocks;
    double rows = n_blocks * BLOCK_ROWS;
    rows = rows > m ? m : rows;
    const double by_work = rows * bytes * (double)g->width / BYTES_A_NANOSECOND_OF_WORK,
                 by_bytes = bytes * (double)g->width / BYTES_A_NANOSECOND;
    double n_panels = TASK_NANOSECONDS / (by_work > by_bytes ? by_work : by_bytes);
    n_panels = n_panels < 1 ? 1 : n_panels > MOST_PANELS ? MOST_PANELS : (double)(int64_t)n_panels;

    const qn_dim shape[] = { g->block.batch, g->block.m, g->k, g->block.n,
                             qn_dim_const(g->w.space.dims, g->width) };
    char site[QN_SITE_SIZE];
    qn_schedule_site(g->w.kernel->name, g->x_type, 5, shape, site);
    const qn_schedule found = qn_schedule_find(options, site);
    const int64_t steps = g->k->value / g->step, one_pass = g->k->value,
                  depth = qn_schedule_get(&found, QN_KNOB_DEPTH, one_pass, one_pass),
                  most = depth < g->step ? 1 : depth / g->step; /* steps of a pass */
    g->n_passes = (steps + most - 1) / most;
    g->depth = (steps + g->n_passes - 1) / g->n_passes * g->step;
    g->n_passes = (g->k->value + g->depth - 1) / g->depth;
    g->blocks = qn_schedule_get(&found, QN_KNOB_TILES, (int64_t)n_blocks, MOST_BLOCKS);
    g->panels = qn_schedule_get(&found, QN_KNOB_PANELS, (int64_t)n_panels, MOST_PANELS);
    g->ahead = qn_schedule_get(&found, QN_KNOB_AHEAD, FETCHES_ROWS, FETCHES_ROWS);
    qn_schedule_note(options, site, g->block.group->root,
                     (qn_schedule){ .knobs = { [QN_KNOB_DEPTH] = g->depth,
                                               [QN_KNOB_TILES] = g->blocks,
                                               [QN_KNOB_PANELS] = g->panels,
                                               [QN_KNOB_AHEAD] = g->ahead } });
}

static qn_dim write_tasks(gemm *g)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const qn_dim n_blocks = qn_dim_ceildiv(dims, g->block.m, qn_dim_const(dims, BLOCK_ROWS));
    const qn_dim row_parts = qn_dim_ceildiv(dims, n_blocks, qn_dim_const(dims, g->blocks));
    const qn_dim col_parts = qn_dim_ceildiv(dims, g->n_panels, qn_dim_const(dims, g->panels));
    qn_kvalue *task = qn_kb_task(b), *columns = qn_writer_index(w, col_parts),
              *rows = qn_writer_index(w, row_parts), *part = DIV(task, columns);
    qn_kvalue *low = MUL(MOD(task, columns), INDEX(g->panels));
    qn_kvalue *high = MIN(ADD(low, INDEX(g->panels)), qn_writer_index(w, g->n_panels));
    g->first_block = MUL(MOD(part, rows), INDEX(g->blocks));
    qn_kvalue *to = MIN(ADD(g->first_block, INDEX(g->blocks)), qn_writer_index(w, n_blocks));
    const strip s = {
        .batch = DIV(part, rows), .from = g->first_block, .low = low, .n_panels = SUB(high, low)
    };
    all_blocks(g, &s, to);
    return qn_dim_mul(dims, g->block.batch, qn_dim_mul(dims, row_parts, col_parts));
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemm *g = QN_NEW(scratch, gemm);
    qn_writer *w = &g->w;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    g->x_type = x->dtype;
    g->y_type = y->dtype;
    g->sum = group->root->results[0].type.dtype;
    g->step = QN_TILE_BYTES / (int64_t)qn_dtype_bytes(g->x_type);
    g->group_elements = y->dims[y->rank - 1]->value;
    g->width = y->dims[y->rank - 2]->value;
    qn_block_open(&g->block, w, group, g->width, 2 * BLOCK_ROWS, &g->x, &g->y);
    g->k = qn_ispace_import(&w->space, x->dims[x->rank - 1]);
    g->n_panels = qn_ispace_import(&w->space, y->dims[y->rank - 4]);
    g->k_value = qn_writer_index(w, g->k);
    g->m_value = qn_writer_index(w, g->block.m);
    if (group->n_nodes == 1 && g->block.whole)
        g->out = qn_writer_argument(w, qn_lower_buffer(l, &group->root->results[0]), false, true);
    choose(g);
    if (g->n_passes > 1)
        g->partial = qn_kernel_add_local(w->kernel, "partial", g->sum, g->blocks * BLOCK_ROWS * g->width);
    w->kernel->flops = 2 * qn_likely_extent(g->block.batch) * qn_likely_extent(g->block.m) *
                       qn_likely_extent(g->block.n) * (double)g->k->value;
    const qn_dim tasks = write_tasks(g);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemm_tile = { .name = "gemm_tile", .matches = matches, .lower = lower };
