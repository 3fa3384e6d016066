/* The template for matmul_packed of bfloat16 on a machine with a matrix unit (QN_K_TILE_*).
 *
 *   task: some blocks of up to 32 rows x some panels of 32 columns
 *     for each panel
 *       for each block of rows
 *         tiles 0 … 3 = 0                     rows 0 … 15 | 16 … 31  x  columns 0 … 15 | 16 … 31
 *         for k in steps of 32                tiles 4, 5: x; 6, 7: the panel; four products
 *         store the sums to a local buffer, then what follows the product, element by element over it
 *
 * A panel is read once from memory for all blocks of rows, which lie in the second cache; the next one is fetched meanwhile.
 * Rows are spread evenly over blocks of two heights where their number is known; where it is a symbol, the last block is
 * what is left. A block of at most 16 rows uses one row of tiles. Tasks depend on the shape only. */
#include "passes/block.h"
#include "passes/terms.h"

enum {
    BLOCK_ROWS = 2 * QN_TILE_ROWS,
    TILE_COLUMNS = QN_TILE_BYTES / 4,
    LINE = 64,
    TASK_NANOSECONDS = 10000,
    FLOPS_A_NANOSECOND = 1500, /* of a core: for the size of tasks only */
    BYTES_A_NANOSECOND = 15,
    /* tiles: sums [rows][columns], then x by rows, y by columns */
    X_TILE = 4,
    Y_TILE = 6
};

typedef struct gemm {
    qn_writer w;
    qn_block block;
    qn_kbuffer *x, *y;
    qn_kbuffer *out; /* stored directly: the group is the product alone; else NULL */
    qn_dtype type;   /* of x and y */
    int64_t step, group_elements,
        width; /* k of one product; of k that lie side by side; columns of a panel */
    qn_dim k, n_panels;
    qn_kvalue *m_value, *k_value;
    qn_kvalue *upper, *lower; /* rows of a block's tiles; lower NULL: it has one row of them */
    qn_kvalue *from;          /* the task's first block */
} gemm;

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (group->kind != QN_GROUP_CONTRACTION || group->root->op != QN_OP_MATMUL_PACKED || !machine ||
        !machine->tiles)
        return false;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    const int64_t batch = qn_attr_int(group->root, QN_ATTR_BATCH_DIMS);
    return x->dtype == QUERN_BF16 && y->dtype == QUERN_BF16 &&
           group->root->results[0].type.dtype == QUERN_F32 && y->rank == batch + 4 &&
           qn_dim_is(y->dims[y->rank - 1], 2) && y->dims[y->rank - 2]->value % TILE_COLUMNS == 0 &&
           y->dims[y->rank - 2]->value <= 2 * TILE_COLUMNS && qn_dim_is_const(x->dims[x->rank - 1]) &&
           x->dims[x->rank - 1]->value % (QN_TILE_BYTES / 2) == 0;
}

/* ---- arithmetic on kernel indices ---- */

#define TERMS (&g->w.b)

static qn_kinst *for_range(gemm *g, qn_kvalue *low, qn_kvalue *high)
{
    return qn_kb_for(&g->w.b, low, high, INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
}

/* ---- one block ---- */

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

/* Some lines of the panel behind this one, as of step k: a fourth of them with each of four blocks. */
static void fetch_next(gemm *g, qn_kvalue *panel, qn_kvalue *k, qn_kvalue *block)
{
    qn_kbuilder *b = &g->w.b;
    const int64_t elements = LINE / (int64_t)qn_dtype_bytes(g->type), parts = 4,
                  lines = g->step * g->width / elements / parts;
    qn_kvalue *part = qn_kb_imod(b, qn_kb_isub(b, block, g->from), INDEX(parts));
    qn_kvalue *at =
        ADD(ADD(panel, MUL(ADD(g->k_value, k), INDEX(g->width))), MUL(part, INDEX(lines * elements)));
    for (int64_t i = 0; i < lines; i++)
        qn_kb_prefetch(b, g->y, ADD(at, INDEX(i * elements)), 1);
}

static void multiply(gemm *g, qn_kvalue *x_at, qn_kvalue *panel, qn_kvalue *block)
{
    qn_kbuilder *b = &g->w.b;
    for (int i = 0; i < tile_rows(g); i++)
        for (int j = 0; j < tile_columns(g); j++)
            qn_kb_tile_zero(b, 2 * i + j);
    qn_kinst *loop = qn_kb_for(b, INDEX(0), g->k_value, INDEX(g->step), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *y_at = ADD(panel, MUL(k, INDEX(g->width)));
    fetch_next(g, panel, k, block);
    for (int i = 0; i < tile_rows(g); i++) {
        qn_kvalue *row = i == 0 ? x_at : ADD(x_at, MUL(g->upper, g->k_value));
        qn_kb_tile_load(b, X_TILE + i, g->x, ADD(row, k), g->k_value);
        for (int j = 0; j < tile_columns(g); j++) {
            if (i == 0)
                qn_kb_tile_load(b, Y_TILE + j, g->y, ADD(y_at, INDEX(j * TILE_COLUMNS * g->group_elements)),
                                INDEX(g->width * g->group_elements));
            qn_kb_tile_mma(b, 2 * i + j, X_TILE + i, Y_TILE + j, g->type, g->type);
        }
    }
    qn_kb_end_for(b, loop, NULL);
}

static void store_sums(gemm *g, qn_kbuffer *to, qn_kvalue *at, qn_kvalue *stride)
{
    for (int i = 0; i < tile_rows(g); i++)
        for (int j = 0; j < tile_columns(g); j++)
            qn_kb_tile_store(&g->w.b, 2 * i + j, to,
                             ADD(i == 0 ? at : ADD(at, MUL(g->upper, stride)), INDEX(j * TILE_COLUMNS)),
                             stride);
}

/* Block number `block` of a batch, whose first row is `row`, and a panel. */
static void one_block(gemm *g, qn_kvalue *batch, qn_kvalue *block, qn_kvalue *row, qn_kvalue *panel_number)
{
    qn_kvalue *n_panels = qn_writer_index(&g->w, g->n_panels);
    qn_kvalue *panel = MUL(ADD(MUL(batch, n_panels), panel_number), MUL(g->k_value, INDEX(g->width)));
    g->block.first_row = ADD(MUL(batch, g->m_value), row);
    g->block.first_col = MUL(panel_number, INDEX(g->width));
    multiply(g, MUL(g->block.first_row, g->k_value), panel, block);
    if (g->out) {
        store_sums(g, g->out, ADD(MUL(g->block.first_row, g->block.n_value), g->block.first_col),
                   g->block.n_value);
        return;
    }
    store_sums(g, g->block.sums, INDEX(0), INDEX(g->width));
    qn_block_finish(&g->block);
}

/* ---- blocks and tasks ---- */

/* Blocks [from, to) of a batch, all of `height` rows, block i from row i * height + past on, with panels [low, high). */
static void blocks(gemm *g, qn_kvalue *batch, qn_kvalue *from, qn_kvalue *to, int64_t height, int64_t past,
                   qn_kvalue *low, qn_kvalue *high)
{
    qn_kbuilder *b = &g->w.b;
    const int64_t upper = height < QN_TILE_ROWS ? height : QN_TILE_ROWS;
    g->block.n_rows = INDEX(height);
    g->upper = INDEX(upper);
    g->lower = height > upper ? INDEX(height - upper) : NULL;
    g->from = from;
    set_shape(g);
    qn_kinst *panels = for_range(g, low, high), *loop = for_range(g, from, to);
    one_block(g, batch, qn_loop_counter(loop), ADD(MUL(qn_loop_counter(loop), INDEX(height)), INDEX(past)),
              qn_loop_counter(panels));
    qn_kb_end_for(b, loop, NULL);
    qn_kb_end_for(b, panels, NULL);
}

/* The rows behind `full` blocks of all 32, if there are any: in the task that has the block of that number. */
static void rest(gemm *g, qn_kvalue *batch, qn_kvalue *full, qn_kvalue *from, qn_kvalue *to, qn_kvalue *low,
                 qn_kvalue *high)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *left = qn_kb_imod(b, g->m_value, INDEX(BLOCK_ROWS)), *tile = INDEX(QN_TILE_ROWS);
    qn_kinst *last = for_range(g, qn_kb_imax(b, from, full), to);
    for (int two = 0; two < 2; two++) {
        qn_kvalue *is_two = qn_kb_compare(b, QN_GT, left, tile), *number = qn_loop_counter(last);
        qn_kvalue *once = qn_kb_select(b, is_two, INDEX(two), INDEX(!two));
        qn_kinst *loop = for_range(g, INDEX(0), once);
        g->block.n_rows = left;
        g->upper = two ? tile : qn_kb_imin(b, left, tile);
        g->lower = two ? qn_kb_imax(b, qn_kb_isub(b, left, tile), INDEX(1)) : NULL;
        g->from = number;
        set_shape(g);
        qn_kinst *panels = for_range(g, low, high);
        one_block(g, batch, number, MUL(number, INDEX(BLOCK_ROWS)), qn_loop_counter(panels));
        qn_kb_end_for(b, panels, NULL);
        qn_kb_end_for(b, loop, NULL);
    }
    qn_kb_end_for(b, last, NULL);
}

static void all_blocks(gemm *g, qn_kvalue *batch, qn_kvalue *from, qn_kvalue *to, qn_kvalue *low,
                       qn_kvalue *high)
{
    qn_kbuilder *b = &g->w.b;
    if (!qn_dim_is_const(g->block.m)) {
        qn_kvalue *full = qn_kb_idiv(b, g->m_value, INDEX(BLOCK_ROWS));
        blocks(g, batch, from, qn_kb_imin(b, to, full), BLOCK_ROWS, 0, low, high);
        rest(g, batch, full, from, to, low, high);
        return;
    }
    /* the first `higher` blocks have one row more than the others */
    const int64_t m = g->block.m->value, n = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, height = m / n,
                  higher = m % n;
    if (higher > 0)
        blocks(g, batch, from, qn_kb_imin(b, to, INDEX(higher)), height + 1, 0, low, high);
    blocks(g, batch, qn_kb_imax(b, from, INDEX(higher)), to, height, higher, low, high);
}

typedef struct task_size {
    int64_t blocks, panels;
} task_size;

/* So many rows that they stay in half of the second cache, and panels for about TASK_NANOSECONDS. */
static task_size choose_tasks(const gemm *g)
{
    const qn_machine *machine = g->w.lowering->options->machine;
    const double half_l2 = machine->l2_bytes > 0 ? (double)machine->l2_bytes / 2 : 512 * 1024;
    const double k = (double)g->k->value, m = qn_likely_extent(g->block.m),
                 bytes = (double)qn_dtype_bytes(g->type);
    double n_blocks = half_l2 / (k * bytes * BLOCK_ROWS);
    n_blocks = n_blocks < 1 ? 1 : n_blocks > 16 ? 16 : (double)(int64_t)n_blocks;
    double rows = n_blocks * BLOCK_ROWS;
    rows = rows > m ? m : rows;
    const double by_flops = 2 * rows * k * (double)g->width / FLOPS_A_NANOSECOND,
                 by_bytes = k * (double)g->width * bytes / BYTES_A_NANOSECOND;
    const double panels = TASK_NANOSECONDS / (by_flops > by_bytes ? by_flops : by_bytes);
    return (task_size){ (int64_t)n_blocks, panels < 1 ? 1 : panels > 64 ? 64 : (int64_t)panels };
}

static qn_dim write_tasks(gemm *g)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const task_size size = choose_tasks(g);
    const qn_dim n_blocks = qn_dim_ceildiv(dims, g->block.m, qn_dim_const(dims, BLOCK_ROWS));
    const qn_dim row_parts = qn_dim_ceildiv(dims, n_blocks, qn_dim_const(dims, size.blocks));
    const qn_dim col_parts = qn_dim_ceildiv(dims, g->n_panels, qn_dim_const(dims, size.panels));
    qn_kvalue *task = qn_kb_task(b), *columns = qn_writer_index(w, col_parts),
              *rows = qn_writer_index(w, row_parts);
    qn_kvalue *low = MUL(qn_kb_imod(b, task, columns), INDEX(size.panels));
    qn_kvalue *high = qn_kb_imin(b, ADD(low, INDEX(size.panels)), qn_writer_index(w, g->n_panels));
    qn_kvalue *part = qn_kb_idiv(b, task, columns);
    qn_kvalue *from = MUL(qn_kb_imod(b, part, rows), INDEX(size.blocks));
    qn_kvalue *to = qn_kb_imin(b, ADD(from, INDEX(size.blocks)), qn_writer_index(w, n_blocks));
    all_blocks(g, qn_kb_idiv(b, part, rows), from, to, low, high);
    return qn_dim_mul(dims, g->block.batch, qn_dim_mul(dims, row_parts, col_parts));
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemm *g = QN_NEW(scratch, gemm);
    qn_writer *w = &g->w;
    const qn_type *x = &group->root->operands[0]->type, *y = &group->root->operands[1]->type;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    g->type = x->dtype;
    g->step = QN_TILE_BYTES / (int64_t)qn_dtype_bytes(g->type);
    g->group_elements = y->dims[y->rank - 1]->value;
    g->width = y->dims[y->rank - 2]->value;
    qn_block_open(&g->block, w, group, g->width, BLOCK_ROWS, &g->x, &g->y);
    g->k = qn_ispace_import(&w->space, x->dims[x->rank - 1]);
    g->n_panels = qn_ispace_import(&w->space, y->dims[y->rank - 4]);
    g->k_value = qn_writer_index(w, g->k);
    g->m_value = qn_writer_index(w, g->block.m);
    if (group->n_nodes == 1 && g->block.whole)
        g->out = qn_writer_argument(w, qn_lower_buffer(l, &group->root->results[0]), false, true);
    w->kernel->flops = 2 * qn_likely_extent(g->block.batch) * qn_likely_extent(g->block.m) *
                       qn_likely_extent(g->block.n) * (double)g->k->value;
    const qn_dim tasks = write_tasks(g);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gemm_tile = { .name = "gemm_tile", .matches = matches, .lower = lower };
