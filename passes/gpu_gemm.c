/* The template for products and convolutions on GPUs: a block of threads computes a tile of the result, each thread some 64
 * elements of it in registers.
 *
 *   block: one tile of rows x columns of one batch
 *     the first step of k of both sides -> shared memory
 *     for each step of k
 *       the next step of both sides -> registers, 16 bytes at a time where they lie so
 *       this one, from shared memory: sums += rows * columns
 *       what came of the next one -> the other half of shared memory                     barrier
 *     what follows element by element, on each thread's sums; stores
 *
 * float32: by multiply-adds. In shared memory both sides lie k by k; one that lies along k in memory is turned as it comes. A
 * thread's rows and columns are fours that lie THREADS_DOWN * 4 and THREADS_ACROSS * 4 apart, so that a warp reads 16 and 32
 * elements in a row, which no two of its threads take from the same bank at different places. Sums are those of the reference, k
 * after k.
 *
 * bfloat16 and float16, where both sides are: by the matrix unit, 16 x 8 sums of 16 products at a time. In shared memory a side
 * lies as it does in memory, and is turned where a warp loads tiles of 8 x 8 from there. Sums are float32, in the unit's order.
 *
 * Lines in shared memory are 16 bytes longer than what is in them, so that what a warp touches lies in different banks. Rows and
 * columns beyond the last are copies of the last, k beyond the last is 0 on both sides: no branch is in the way of the loads.
 *
 * A convolution is the product of its filters and a matrix with a column for each pixel of its result, which is never there: an
 * element of it is found where it is brought from. The rows are a group's output channels, k its input channels and places in
 * the filter.
 *
 * Tiles are numbered in bands of BAND rows, so that those that run together share what the second cache holds. */
#include "passes/gpu.h"
#include "passes/terms.h"

#include <math.h>

enum {
    STEP = 16,      /* of k */
    UNIT_STEP = 32, /* likewise, with the matrix unit */
    ACCESS = 16,    /* bytes */
    FOUR = 4,
    TILE = 8, /* of the matrix unit */
    WARP = 32,
    THREADS_DOWN = 4, /* of a warp */
    THREADS_ACROSS = WARP / THREADS_DOWN,
    BAND = 8,
    MOST_SUMS = 64,
    MOST_SINGLE = 16, /* registers of a thread for what it brings */
    LEAST_EXTENT = 8, /* of rows, columns and k: below, one thread an element is as good */
};

/* Tiles of a block and of a warp. A smaller one multiplies less often for each element that it reads: `speed` is what is left. */
typedef struct shape {
    int rows, cols, warp_rows, warp_cols;
    double speed;
} shape;

enum { N_SHAPES = 5 };
static const shape shapes[2][N_SHAPES] = {
    { { 128, 128, 32, 64, 1.0 },
      { 128, 64, 32, 64, 0.85 },
      { 64, 128, 32, 64, 0.85 },
      { 64, 64, 32, 32, 0.65 },
      { 32, 32, 16, 32, 0.4 } },
    /* of the matrix unit */
    { { 128, 128, 64, 32, 1.0 },
      { 128, 64, 64, 32, 0.85 },
      { 64, 128, 64, 32, 0.85 },
      { 64, 64, 32, 32, 0.65 },
      { 32, 32, 16, 32, 0.4 } },
};

typedef struct side {
    qn_kbuffer *from, *tile;
    int extent;    /* of the tile: rows of x, columns of y */
    bool along_k;  /* neighbours in memory lie along k, else along its rows or columns */
    bool wide;     /* and what a thread brings at once begins at multiples of its size */
    qn_dim free;   /* rows or columns of a batch */
    qn_dim var;    /* one of them */
    qn_dim linear; /* element of `from`, by batch, var and k */
    int n_bounds;  /* it is 0 where one is exceeded, or `at` is no multiple of `step` */
    struct {
        qn_dim at, end;
        int64_t step;
    } bounds[QN_MAX_RANK];
    qn_kvalue *first; /* of the block */
} side;

typedef struct gemm {
    qn_writer w;
    const qn_group *group;
    bool unit;      /* the matrix unit multiplies */
    qn_dtype dtype; /* what is multiplied */
    const shape *shape;
    int threads, step, run; /* of k; neighbours that a thread brings at once */
    int thread_rows, thread_cols;
    side sides[2];
    qn_dim batch, k; /* extents */
    qn_dim batch_var, k_var;
    int rank;       /* of the result */
    int n_row_dims; /* batch and rows are its first ones, of a convolution all but the second are columns */
    bool convolves;
    qn_dim dims[QN_MAX_RANK];
    qn_dim row_var, col_var; /* of all batches; of the result */
    bool whole_k;            /* k is a multiple of a step */
    qn_kvalue *thread, *batch_value, *k_value;
    qn_kvalue *row, *col, *warp_row, *warp_col; /* the thread's and the warp's first ones in the tile */
    qn_kvalue *now;                             /* the sum that is being finished */
} gemm;

#define TERMS (&g->w.b)

/* ---- what it takes ---- */

static bool sums_in_f32(qn_dtype dtype)
{
    return dtype == QUERN_F32 || dtype == QUERN_F16 || dtype == QUERN_BF16;
}

bool qn_gpu_takes(const qn_group *group, const qn_pass_options *options)
{
    const qn_node *root = group->root;
    if (group->kind != QN_GROUP_CONTRACTION || !options->machine || !options->machine->gpu ||
        root->n_operands != 2 || !sums_in_f32(root->results[0].type.dtype) ||
        !sums_in_f32(root->operands[0]->type.dtype) || !sums_in_f32(root->operands[1]->type.dtype))
        return false;
    for (int i = 0; i < group->n_nodes; i++)
        if (qn_ix_moves(group->nodes[i]) && qn_ix_data_count(group->nodes[i]) > 0)
            return false;
    return true;
}

double qn_gpu_likely(const qn_type *type, int n, const int64_t *axes)
{
    double product = 1;
    for (int i = 0; i < n; i++)
        product *= qn_likely_extent(type->dims[axes[i]]);
    return product;
}

static bool fits_product(const qn_node *root)
{
    for (int i = 0; i < 2; i++) {
        const qn_type *type = &root->operands[i]->type;
        const qn_dot_side s = qn_dot_side_of(root, i);
        if (qn_gpu_likely(type, s.n_free, s.free) < LEAST_EXTENT ||
            qn_gpu_likely(type, s.n_contract, s.contract) < LEAST_EXTENT)
            return false;
        for (int k = 0; k < s.n_contract; k++)
            if (type->dims[s.contract[k]]->min < 1)
                return false;
    }
    return true;
}

static bool fits_convolution(const qn_node *root)
{
    static const int64_t filter[QN_MAX_RANK - 1] = { 1, 2, 3, 4, 5, 6, 7 };
    const qn_type *w = &root->operands[1]->type;
    for (int i = 0; i < w->rank; i++)
        if (!qn_dim_is_const(w->dims[i]) || w->dims[i]->value < 1)
            return false;
    return w->dims[0]->value / qn_attr_int(root, QN_ATTR_GROUPS) >= LEAST_EXTENT &&
           qn_gpu_likely(w, w->rank - 1, filter) >= LEAST_EXTENT;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    const qn_node *root = group->root;
    return qn_gpu_takes(group, options) && (root->op == QN_OP_DOT_GENERAL   ? fits_product(root)
                                            : root->op == QN_OP_CONVOLUTION ? fits_convolution(root)
                                                                            : false);
}

/* Can the matrix unit multiply it? It adds in an order of its own, so not with strict mathematics. */
static bool in_unit(const qn_node *root, const qn_pass_options *options)
{
    const qn_dtype dtype = root->operands[0]->type.dtype;
    return options->machine->gpu_arch >= 80 && options->math != QN_MATH_STRICT &&
           (dtype == QUERN_BF16 || dtype == QUERN_F16) && root->operands[1]->type.dtype == dtype;
}

static int threads_of(const shape *s)
{
    return s->rows / s->warp_rows * (s->cols / s->warp_cols) * WARP;
}

/* Has a thread registers for what it brings? One element in each, where they don't come by 16 bytes. */
static bool has_registers(const gemm *g, const shape *s)
{
    return (g->sides[0].wide && g->sides[1].wide) ||
           (s->rows + s->cols) * STEP <= MOST_SINGLE * threads_of(s);
}

/* The shape with the least work for the busiest multiprocessor. */
static const shape *choose(const gemm *g)
{
    const double rows = qn_likely_extent(g->sides[0].free), cols = qn_likely_extent(g->sides[1].free),
                 units = g->w.lowering->options->machine->gpu_units;
    const shape *best = NULL;
    double least = 0;
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[g->unit][i];
        const double blocks = qn_likely_extent(g->batch) * ceil(rows / s->rows) * ceil(cols / s->cols);
        const double time = ceil(blocks / units) * s->rows * s->cols / s->speed;
        if (has_registers(g, s) && (!best || time < least)) {
            best = s;
            least = time;
        }
    }
    return best;
}

/* ---- sides of a product ---- */

qn_dim qn_gpu_extent(qn_ispace *space, const qn_type *type, int n, const int64_t *axes)
{
    qn_dim product = qn_dim_const(space->dims, 1);
    for (int i = 0; i < n; i++)
        product = qn_dim_mul(space->dims, product, qn_ispace_import(space, type->dims[axes[i]]));
    return product;
}

qn_gpu_element qn_gpu_element_of(qn_ispace *space, const qn_node *dot, int side, const qn_dim *batch_index,
                                 qn_dim free, qn_dim k)
{
    const qn_type *type = &dot->operands[side]->type;
    const qn_dot_side axes = qn_dot_side_of(dot, side);
    const int last = type->rank - 1;
    qn_dim dims[QN_MAX_RANK], part[QN_MAX_RANK], index[QN_MAX_RANK], at[QN_MAX_RANK];
    qn_ispace_dims(space, type, dims);
    for (int i = 0; i < axes.n_batch; i++)
        at[axes.batch[i]] = batch_index[i];
    for (int sort = 0; sort < 2; sort++) {
        const int n = sort ? axes.n_contract : axes.n_free;
        const int64_t *list = sort ? axes.contract : axes.free;
        for (int i = 0; i < n; i++)
            part[i] = dims[list[i]];
        qn_ix_split(space, sort ? k : free, n, part, index);
        for (int i = 0; i < n; i++)
            at[list[i]] = index[i];
    }
    return (qn_gpu_element){ .linear = qn_ix_linear(space, type->rank, dims, at),
                             .line = last >= 0 ? dims[last] : qn_dim_const(space->dims, 1),
                             .along_k = axes.n_contract > 0 && axes.contract[axes.n_contract - 1] == last,
                             .along_free = axes.n_free > 0 && axes.free[axes.n_free - 1] == last };
}

/* ---- from memory to shared memory ---- */

static int line(const gemm *g, const side *s)
{
    const int inside = g->unit && s->along_k ? g->step : s->extent;
    return inside + ACCESS / (int)qn_dtype_bytes(g->dtype);
}

static int64_t half_size(const gemm *g, const side *s)
{
    return (int64_t)line(g, s) * (g->unit && s->along_k ? s->extent : g->step);
}

static qn_kvalue *half_of(gemm *g, const side *s, qn_kvalue *step)
{
    return MUL(MOD(step, INDEX(2)), INDEX(half_size(g, s)));
}

static qn_kvalue *in_half(gemm *g, const side *s, qn_kvalue *free, qn_kvalue *k)
{
    return g->unit && s->along_k ? ADD(MUL(free, INDEX(line(g, s))), k)
                                 : ADD(MUL(k, INDEX(line(g, s))), free);
}

/* Neighbours of a side that a thread brings at once; all threads bring `runs` of them. */
typedef struct run {
    qn_kvalue *free, *k; /* of the first, in the tile */
} run;

static int runs(const gemm *g, const side *s)
{
    return s->extent * g->step / g->run / g->threads;
}

/* Of a side that lies along k two neighbours of a line, or with the matrix unit all of the step: a warp reads whole sectors of 32
 * bytes, and threads that write together write to different banks. Else neighbours along the line. */
static run run_of(gemm *g, const side *s, int number)
{
    qn_kvalue *n = ADD(g->thread, INDEX((int64_t)number * g->threads)), *lines = INDEX(s->extent);
    if (!s->along_k) {
        qn_kvalue *in_line = INDEX(s->extent / g->run);
        return (run){ MUL(MOD(n, in_line), INDEX(g->run)), DIV(n, in_line) };
    }
    if (g->unit) {
        const int in_line = g->step / g->run;
        return (run){ ADD(MUL(DIV(n, INDEX(TILE * in_line)), INDEX(TILE)), MOD(n, INDEX(TILE))),
                      MUL(MOD(DIV(n, INDEX(TILE)), INDEX(in_line)), INDEX(g->run)) };
    }
    qn_kvalue *two = INDEX(2), *pair = DIV(n, two);
    return (run){ MOD(pair, lines), MUL(ADD(MUL(DIV(pair, lines), two), MOD(n, two)), INDEX(g->run)) };
}

/* NULL: it surely is there. */
static qn_kvalue *is_there(gemm *g, const side *s, qn_kvalue *k)
{
    qn_writer *w = &g->w;
    qn_kvalue *there = g->whole_k ? NULL : qn_kb_compare(&w->b, QN_LT, k, g->k_value);
    for (int i = 0; i < s->n_bounds; i++) {
        const qn_dim at = s->bounds[i].at, step = qn_dim_const(w->space.dims, s->bounds[i].step);
        there = qn_writer_and_inside(w, there, at, s->bounds[i].end);
        if (s->bounds[i].step == 1)
            continue;
        qn_kvalue *rest = qn_writer_index(w, qn_ix_mod(&w->space, at, step));
        rest = qn_kb_compare(&w->b, QN_EQ, rest, INDEX(0));
        there = there ? qn_kb_binary(&w->b, QN_OP_AND, there, rest) : rest;
    }
    return there;
}

/* `lanes` elements from k on; 0 where there are none. */
static qn_kvalue *bring(gemm *g, const side *s, qn_kvalue *free, qn_kvalue *k, int lanes)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *last = ADD(qn_writer_index(&g->w, s->free), INDEX(s->along_k ? -1 : -lanes));
    qn_ispace_set(&g->w.space, s->var, MIN(ADD(s->first, free), last));
    qn_ispace_set(&g->w.space, g->k_var, k);
    qn_kvalue *at = qn_writer_index(&g->w, s->linear), *there = is_there(g, s, k);
    if (there)
        at = qn_kb_select(b, there, at, INDEX(0));
    qn_kvalue *x = qn_kb_convert(b, g->dtype, qn_kb_load(b, s->from, at, lanes));
    if (there)
        x = qn_kb_select(b, qn_kb_splat(b, there, lanes), x,
                         qn_kb_float(b, (qn_ktype){ g->dtype, lanes }, 0));
    return x;
}

/* What a thread brings of a step of the side: places in the tile, each of `lanes` elements along k or along the line. A side
 * that lies in lines but not at multiples of 16 bytes is brought one element at a time, each thread's all in one column. */
static int places(gemm *g, const side *s, run *out, int *lanes)
{
    const int n = runs(g, s);
    *lanes = s->wide ? g->run : 1;
    if (!s->wide && !s->along_k) {
        for (int i = 0; i < n * g->run; i++)
            out[i] = (run){ MOD(g->thread, INDEX(s->extent)),
                            ADD(DIV(g->thread, INDEX(s->extent)), INDEX(i * (g->threads / s->extent))) };
        return n * g->run;
    }
    const int each = g->run / *lanes;
    for (int i = 0; i < n; i++)
        for (int e = 0; e < each; e++) {
            const run r = run_of(g, s, i);
            out[i * each + e] = (run){ r.free, ADD(r.k, INDEX(e)) };
        }
    return n * each;
}

/* out: this thread's of the step from k on */
static void bring_step(gemm *g, const side *s, qn_kvalue *k, qn_kvalue **out)
{
    run at[MOST_SUMS];
    int lanes;
    const int n = places(g, s, at, &lanes);
    for (int i = 0; i < n; i++)
        out[i] = bring(g, s, at[i].free, ADD(k, at[i].k), lanes);
}

/* `half`: where that half of the tile begins */
static void put_step(gemm *g, const side *s, qn_kvalue *half, qn_kvalue *const *brought)
{
    qn_kbuilder *b = &g->w.b;
    run at[MOST_SUMS];
    int lanes;
    const int n = places(g, s, at, &lanes);
    const bool turns = s->along_k && !g->unit && lanes > 1;
    for (int i = 0; i < n; i++) {
        qn_kvalue *to = ADD(half, in_half(g, s, at[i].free, at[i].k));
        for (int e = 0; e < (turns ? lanes : 1); e++)
            qn_kb_store(b, s->tile, ADD(to, INDEX(e * line(g, s))),
                        turns ? qn_kb_extract(b, brought[i], e) : brought[i], NULL);
    }
}

/* ---- sums ---- */

/* One k's elements of a side for this thread, from its place in the tile on: fours that lie `apart`. */
static void take(gemm *g, const side *s, qn_kvalue *at, int n, int apart, qn_kvalue **out)
{
    qn_kbuilder *b = &g->w.b;
    for (int i = 0; i < n; i += FOUR) {
        qn_kvalue *x = qn_kb_load(b, s->tile, ADD(at, INDEX(i / FOUR * apart)), FOUR);
        for (int e = 0; e < FOUR; e++)
            out[i + e] = qn_kb_extract(b, x, e);
    }
}

/* sums += of the step that lies in shared memory, by multiply-adds */
static void multiply(gemm *g, qn_kvalue *const *halves, qn_kvalue **sums)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    const int rows = g->thread_rows, cols = g->thread_cols;
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(STEP), INDEX(1), QN_TAG_UNROLL, rows * cols, sums, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *x[8], *y[8];
    const side *xs = &g->sides[0], *ys = &g->sides[1];
    take(g, xs, ADD(halves[0], in_half(g, xs, g->row, k)), rows, FOUR * THREADS_DOWN, x);
    take(g, ys, ADD(halves[1], in_half(g, ys, g->col, k)), cols, FOUR * THREADS_ACROSS, y);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            sums[i * cols + j] =
                qn_writer_combine(w, QN_SUM, sums[i * cols + j], qn_kb_binary(b, QN_OP_MUL, x[i], y[j]));
    qn_kb_end_carry(b, loop, sums);
}

/* Four tiles of a side: 16 of its rows or columns, from `free` of the warp's on, and 16 k. */
static qn_kvalue *take_tiles(gemm *g, int number, qn_kvalue *half, int free, qn_kvalue *k)
{
    const side *s = &g->sides[number];
    qn_kvalue *lane = MOD(g->thread, INDEX(WARP)), *line_of_tile = MOD(lane, INDEX(TILE)),
              *odd = MUL(MOD(DIV(lane, INDEX(TILE)), INDEX(2)), INDEX(TILE)),
              *second = MUL(DIV(lane, INDEX(2 * TILE)), INDEX(TILE));
    /* tiles of rows come row after row, those of columns k after k */
    qn_kvalue *across = number ? second : odd, *deep = number ? odd : second;
    if (s->along_k)
        across = ADD(across, line_of_tile);
    else
        deep = ADD(deep, line_of_tile);
    across = ADD(across, ADD(number ? g->warp_col : g->warp_row, INDEX(free)));
    return qn_kb_warp_load(&g->w.b, s->tile, ADD(half, in_half(g, s, across, ADD(k, deep))), !s->along_k);
}

/* The same by the matrix unit: each of `sums` is four of them, of 16 x 8 of the warp's */
static void multiply_tiles(gemm *g, qn_kvalue *const *halves, qn_kvalue **sums)
{
    static const int part[2][FOUR] = { { 0, 1, 2, 3 }, { 4, 5, 6, 7 } };
    qn_kbuilder *b = &g->w.b;
    const int down = g->shape->warp_rows / (2 * TILE), across = g->shape->warp_cols / TILE;
    qn_kinst *loop =
        qn_kb_carry(b, INDEX(0), INDEX(UNIT_STEP), INDEX(2 * TILE), QN_TAG_UNROLL, down * across, sums, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *x[4], *y[8];
    for (int i = 0; i < down; i++)
        x[i] = take_tiles(g, 0, halves[0], 2 * TILE * i, k);
    for (int j = 0; j < across; j += 2) {
        qn_kvalue *two = take_tiles(g, 1, halves[1], TILE * j, k);
        for (int e = 0; e < 2; e++)
            y[j + e] = qn_kb_shuffle(b, two, two, FOUR, part[e]);
    }
    for (int i = 0; i < down; i++)
        for (int j = 0; j < across; j++)
            sums[i * across + j] = qn_kb_warp_mma(b, x[i], y[j], sums[i * across + j]);
    qn_kb_end_carry(b, loop, sums);
}

/* sums: the thread's, row by row */
static void compute_sums(gemm *g, qn_kvalue **sums)
{
    qn_kbuilder *b = &g->w.b;
    const int each = g->unit ? FOUR : 1, rows = g->thread_rows, cols = g->thread_cols, n = rows * cols / each;
    qn_kvalue *brought[2][MOST_SUMS], *halves[2], *acc[MOST_SUMS],
        *zero = qn_kb_float(b, (qn_ktype){ QUERN_F32, each }, 0);
    for (int i = 0; i < 2; i++) {
        bring_step(g, &g->sides[i], INDEX(0), brought[i]);
        put_step(g, &g->sides[i], INDEX(0), brought[i]);
    }
    qn_kb_barrier(b);
    for (int i = 0; i < n; i++)
        acc[i] = zero;
    qn_kvalue *steps = DIV(ADD(g->k_value, INDEX(g->step - 1)), INDEX(g->step));
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), steps, INDEX(1), QN_TAG_SERIAL, n, acc, NULL);
    qn_kvalue *step = qn_loop_counter(loop), *next = ADD(step, INDEX(1)), *k = MUL(next, INDEX(g->step));
    if (g->whole_k) /* behind the last step: it again */
        k = MIN(k, ADD(g->k_value, INDEX(-g->step)));
    for (int i = 0; i < 2; i++) {
        halves[i] = half_of(g, &g->sides[i], step);
        bring_step(g, &g->sides[i], k, brought[i]);
    }
    (g->unit ? multiply_tiles : multiply)(g, halves, acc);
    for (int i = 0; i < 2; i++)
        put_step(g, &g->sides[i], half_of(g, &g->sides[i], next), brought[i]);
    qn_kb_barrier(b);
    qn_kb_end_carry(b, loop, acc);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            qn_kvalue *sum = acc[g->unit ? (i / 2 * cols + j) / 2 : i * cols + j];
            sums[i * cols + j] = g->unit ? qn_kb_extract(b, sum, i % 2 * 2 + j % 2) : sum;
        }
}

/* How far the thread's row i and column j lie behind its first ones. */
static int row_offset(const gemm *g, int i)
{
    return g->unit ? i * TILE : i / FOUR * FOUR * THREADS_DOWN + i % FOUR;
}

static int col_offset(const gemm *g, int j)
{
    return g->unit ? j / 2 * TILE + j % 2 : j / FOUR * FOUR * THREADS_ACROSS + j % FOUR;
}

/* ---- what follows ---- */

static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    gemm *g = user;
    (void)index;
    return qn_kb_convert(&w->b, value->type.dtype, g->now);
}

/* Which axis of the result column axis i is. */
static int column_axis(const gemm *g, int i)
{
    return g->convolves ? i + (i > 0) : i + g->n_row_dims;
}

/* The group's outputs at the variable row and the column `beside` the variable col, which is of the same line. */
static void store_element(gemm *g, int beside, qn_kvalue *sum)
{
    qn_writer *w = &g->w;
    qn_dims *dims = w->space.dims;
    qn_dim index[QN_MAX_RANK], columns[QN_MAX_RANK], at[QN_MAX_RANK];
    const size_t mark = qn_writer_mark(w);
    const int n = g->convolves ? g->rank - 1 : g->rank - g->n_row_dims;
    w->section++; /* other elements than before */
    g->now = sum;
    for (int i = 0; i < n; i++)
        columns[i] = g->dims[column_axis(g, i)];
    qn_ix_split(&w->space, g->col_var, n, columns, at);
    for (int i = 0; i < n; i++)
        index[column_axis(g, i)] = at[i];
    index[g->rank - 1] = qn_dim_add(dims, index[g->rank - 1], qn_dim_const(dims, beside));
    if (g->convolves)
        index[1] = g->row_var;
    else
        qn_ix_split(&w->space, g->row_var, g->n_row_dims, g->dims, index);
    qn_writer_store_outputs(w, g->group, g->rank, g->dims, index);
    qn_writer_forget(w, mark);
}

/* x < end, or NULL where it surely holds. */
static qn_kvalue *below(gemm *g, qn_kvalue *x, qn_kvalue *end, bool surely)
{
    return surely ? NULL : qn_kb_compare(&g->w.b, QN_LT, x, end);
}

static void finish(gemm *g, qn_kvalue *const *sums)
{
    qn_kbuilder *b = &g->w.b;
    const side *xs = &g->sides[0], *ys = &g->sides[1];
    const int rows = g->thread_rows, cols = g->thread_cols, beside = g->unit ? 2 : FOUR;
    const bool whole_rows = qn_dim_divisible(xs->free, xs->extent),
               whole_cols = qn_dim_divisible(ys->free, ys->extent),
               together = qn_dim_divisible(g->dims[g->rank - 1], beside);
    qn_kvalue *m = qn_writer_index(&g->w, xs->free), *n = qn_writer_index(&g->w, ys->free),
              *first_row = ADD(xs->first, g->row), *first_col = ADD(ys->first, g->col);
    for (int i = 0; i < rows; i++) {
        qn_kvalue *row = ADD(first_row, INDEX(row_offset(g, i))), *inside_row = below(g, row, m, whole_rows);
        qn_kinst *row_if = inside_row ? qn_kb_if(b, inside_row) : NULL;
        qn_ispace_set(&g->w.space, g->row_var, ADD(MUL(g->batch_value, m), row));
        for (int j = 0; j < cols; j += together ? beside : 1) {
            qn_kvalue *col = ADD(first_col, INDEX(col_offset(g, j))),
                      *inside_col = below(g, col, n, whole_cols);
            qn_kinst *col_if = inside_col ? qn_kb_if(b, inside_col) : NULL;
            qn_ispace_set(&g->w.space, g->col_var, col);
            for (int e = 0; e < (together ? beside : 1); e++)
                store_element(g, e, sums[i * cols + j + e]);
            if (col_if) {
                qn_kb_else(b, col_if, 0, NULL);
                qn_kb_end_if(b, col_if, 0, NULL);
            }
        }
        if (row_if) {
            qn_kb_else(b, row_if, 0, NULL);
            qn_kb_end_if(b, row_if, 0, NULL);
        }
    }
}

/* ---- the kernel ---- */

static void set_depth(gemm *g, qn_dim batch, qn_dim k)
{
    g->batch = batch;
    g->k = k;
    g->whole_k = qn_dim_divisible(k, g->step);
    g->batch_var = qn_ispace_var(&g->w.space, batch, false);
    g->k_var = qn_ispace_var(&g->w.space, k, false);
}

static side *take_side(gemm *g, int number, qn_value *value, qn_dim free)
{
    side *s = &g->sides[number];
    s->from = qn_writer_argument(&g->w, qn_lower_buffer(g->w.lowering, value), true, false);
    qn_writer_note_load(&g->w, s->from);
    s->free = free;
    s->var = qn_ispace_var(&g->w.space, free, false);
    return s;
}

static bool begins_wide(const gemm *g, const side *s)
{
    return s->from->align >= g->run * (int)qn_dtype_bytes(s->from->dtype);
}

static void read_product(gemm *g)
{
    qn_ispace *space = &g->w.space;
    const qn_node *root = g->group->root;
    const qn_dot_side axes = qn_dot_side_of(root, 0);
    qn_dim batch_index[QN_MAX_RANK];
    g->n_row_dims = axes.n_batch + axes.n_free;
    set_depth(g, qn_gpu_extent(space, &root->operands[0]->type, axes.n_batch, axes.batch),
              qn_gpu_extent(space, &root->operands[0]->type, axes.n_contract, axes.contract));
    qn_ix_split(space, g->batch_var, axes.n_batch, g->dims, batch_index);
    for (int i = 0; i < 2; i++) {
        const qn_dot_side own = qn_dot_side_of(root, i);
        side *s = take_side(g, i, root->operands[i],
                            qn_gpu_extent(space, &root->operands[i]->type, own.n_free, own.free));
        const qn_gpu_element e = qn_gpu_element_of(space, root, i, batch_index, s->var, g->k_var);
        s->linear = e.linear;
        s->along_k = e.along_k;
        s->wide = (e.along_k || e.along_free) && qn_dim_divisible(e.line, g->run) && begins_wide(g, s);
    }
}

/* x[n, g*C + c, (o*stride - low + k*w_dilation) / x_dilation] * w[o, c, k]: columns are of n and o's places, k of c and places
 * in w. */
static void read_convolution(gemm *g)
{
    qn_ispace *space = &g->w.space;
    qn_dims *dims = space->dims;
    const qn_node *root = g->group->root;
    const int rank = g->rank;
    const int64_t groups = qn_attr_int(root, QN_ATTR_GROUPS),
                  *stride = qn_attr_ints(root, QN_ATTR_STRIDE, NULL),
                  *x_dilation = qn_attr_ints(root, QN_ATTR_X_DILATION, NULL),
                  *w_dilation = qn_attr_ints(root, QN_ATTR_W_DILATION, NULL);
    const qn_dim *low = qn_attr_dims(root, QN_ATTR_LOW, NULL);
    qn_dim w_dims[QN_MAX_RANK], x_dims[QN_MAX_RANK], part[QN_MAX_RANK], out[QN_MAX_RANK], at[QN_MAX_RANK],
        k[QN_MAX_RANK], pixels = g->dims[0], depth = qn_dim_const(dims, 1), plane = qn_dim_const(dims, 1);
    qn_ispace_dims(space, &root->operands[1]->type, w_dims);
    qn_ispace_dims(space, &root->operands[0]->type, x_dims);
    for (int i = 1; i < rank; i++)
        depth = qn_dim_mul(dims, depth, w_dims[i]);
    for (int i = 2; i < rank; i++)
        plane = qn_dim_mul(dims, plane, g->dims[i]);
    pixels = qn_dim_mul(dims, pixels, plane);
    g->convolves = true;
    set_depth(g, qn_dim_const(dims, groups), depth);
    qn_ix_split(space, g->k_var, rank - 1, w_dims + 1, k);

    side *filters = take_side(g, 0, root->operands[1], qn_dim_const(dims, w_dims[0]->value / groups));
    at[0] = qn_dim_add(dims, qn_dim_mul(dims, g->batch_var, filters->free), filters->var);
    for (int i = 1; i < rank; i++)
        at[i] = k[i - 1];
    filters->linear = qn_ix_linear(space, rank, w_dims, at);
    filters->along_k = true;
    filters->wide = qn_dim_divisible(depth, g->run) && begins_wide(g, filters);

    side *x = take_side(g, 1, root->operands[0], pixels);
    for (int i = 0; i < rank - 1; i++)
        part[i] = g->dims[i + (i > 0)];
    qn_ix_split(space, x->var, rank - 1, part, out);
    at[0] = out[0];
    at[1] = qn_dim_add(dims, qn_dim_mul(dims, g->batch_var, w_dims[1]), k[0]);
    bool plain = qn_dim_divisible(plane, g->run);
    for (int i = 0; i < rank - 2; i++) {
        qn_dim place = qn_dim_add(dims, qn_dim_mul(dims, out[1 + i], qn_dim_const(dims, stride[i])),
                                  qn_dim_mul(dims, k[1 + i], qn_dim_const(dims, w_dilation[i])));
        place = qn_dim_sub(dims, place, qn_ispace_import(space, low[i]));
        plain = plain && place == out[1 + i] && x_dims[2 + i] == g->dims[2 + i] && x_dilation[i] == 1;
        const qn_dim step = qn_dim_const(dims, x_dilation[i]);
        x->bounds[i].at = place;
        x->bounds[i].end = qn_dim_mul(dims, x_dims[2 + i], step);
        x->bounds[i].step = x_dilation[i];
        at[2 + i] = qn_ix_div(space, place, step);
    }
    x->n_bounds = plain ? 0 : rank - 2;
    x->linear = qn_ix_linear(space, rank, x_dims, at);
    x->wide = plain && begins_wide(g, x);
}

static void read_shape(gemm *g)
{
    const qn_node *root = g->group->root;
    g->unit = in_unit(root, g->w.lowering->options);
    g->dtype = g->unit ? root->operands[0]->type.dtype : QUERN_F32;
    g->step = g->unit ? UNIT_STEP : STEP;
    g->run = ACCESS / (int)qn_dtype_bytes(g->dtype);
    g->rank = root->results[0].type.rank;
    qn_ispace_dims(&g->w.space, &root->results[0].type, g->dims);
    if (root->op == QN_OP_CONVOLUTION)
        read_convolution(g);
    else
        read_product(g);
    g->row_var = qn_ispace_var(&g->w.space, qn_dim_mul(g->w.space.dims, g->batch, g->sides[0].free), false);
    g->col_var = qn_ispace_var(&g->w.space, g->sides[1].free, false);
}

/* Which tile the block is for, and where the thread's elements are in it; how many blocks. */
static qn_dim place(gemm *g)
{
    qn_writer *w = &g->w;
    qn_dims *dims = w->space.dims;
    const shape *s = g->shape;
    const qn_dim row_tiles = qn_dim_ceildiv(dims, g->sides[0].free, qn_dim_const(dims, s->rows)),
                 col_tiles = qn_dim_ceildiv(dims, g->sides[1].free, qn_dim_const(dims, s->cols)),
                 tiles = qn_dim_mul(dims, row_tiles, col_tiles);
    const bool one =
        qn_dim_is(g->batch, 1); /* what is said in other words below is a bound for the index arithmetic */
    qn_kvalue *task = qn_kb_task(&w->b), *n = qn_writer_index(w, tiles),
              *number = one ? MIN(task, ADD(n, INDEX(-1))) : MOD(task, n),
              *across = MUL(qn_writer_index(w, col_tiles), INDEX(BAND)),
              *first = MUL(DIV(number, across), INDEX(BAND)),
              *height = MIN(qn_kb_isub(&w->b, qn_writer_index(w, row_tiles), first), INDEX(BAND)),
              *in_band = MOD(number, across);
    g->batch_value = one ? INDEX(0) : MIN(DIV(task, n), ADD(qn_writer_index(w, g->batch), INDEX(-1)));
    qn_ispace_set(&g->w.space, g->batch_var, g->batch_value);
    g->sides[0].first = MUL(ADD(first, MOD(in_band, height)), INDEX(s->rows));
    g->sides[1].first = MUL(DIV(in_band, height), INDEX(s->cols));
    qn_kvalue *lane = MOD(g->thread, INDEX(WARP)), *warp = DIV(g->thread, INDEX(WARP)),
              *warps_across = INDEX(s->cols / s->warp_cols),
              *threads_across = INDEX(g->unit ? FOUR : THREADS_ACROSS);
    g->warp_row = MUL(DIV(warp, warps_across), INDEX(s->warp_rows));
    g->warp_col = MUL(MOD(warp, warps_across), INDEX(s->warp_cols));
    g->row = ADD(g->warp_row, MUL(DIV(lane, threads_across), INDEX(g->unit ? 1 : FOUR)));
    g->col = ADD(g->warp_col, MUL(MOD(lane, threads_across), INDEX(g->unit ? 2 : FOUR)));
    return qn_dim_mul(dims, g->batch, tiles);
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemm *g = QN_NEW(scratch, gemm);
    qn_writer *w = &g->w;
    qn_kvalue *sums[MOST_SUMS];
    g->group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(g);
    const qn_node *root = group->root;
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    qn_writer_bind(w, &root->results[0], fetch_sum, g);
    g->shape = choose(g);
    g->threads = threads_of(g->shape);
    g->thread_rows = g->shape->warp_rows / (g->unit ? TILE : THREADS_DOWN);
    g->thread_cols = g->shape->warp_cols / (g->unit ? FOUR : THREADS_ACROSS);
    w->kernel->gpu_threads = g->threads;
    w->kernel->by_thread = true;
    g->thread = qn_kb_thread(&w->b);
    g->k_value = qn_writer_index(w, g->k);
    for (int i = 0; i < 2; i++) {
        side *s = &g->sides[i];
        s->extent = i ? g->shape->cols : g->shape->rows;
        s->tile = qn_kernel_add_shared(w->kernel, i ? "columns" : "rows", g->dtype, 2 * half_size(g, s));
    }
    const qn_dim tasks = place(g);
    w->kernel->flops = 2 * qn_likely_extent(g->batch) * qn_likely_extent(g->sides[0].free) *
                       qn_likely_extent(g->sides[1].free) * qn_likely_extent(g->k);
    compute_sums(g, sums);
    finish(g, sums);
    const qn_status status = qn_writer_finish(w, tasks, qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gpu_gemm = { .name = "gpu_gemm", .matches = matches, .lower = lower };
