/* The template for products on GPUs of which one side has few rows or columns: they wait for the memory of the other side, which
 * is read once, in whole lines, by as many threads as there are. Here `few` are the rows of the small side, `many` those of the
 * large one, whichever of the two is x.
 *
 *   block: some `many`
 *     each thread: every SLICES-th piece of k, for one `many`, or for four side by side where they lie so
 *     its sums -> shared memory                                      barrier
 *     one thread for each few x many: the sum over the slices, what follows element by element, stores
 *
 * Where the large side lies along k, a warp reads 512 bytes of one `many` at a time; else 32 of them, or 8 fours, for each k. Sums
 * are made in another order than the reference's: not with strict mathematics. */
#include "passes/gpu.h"
#include "passes/terms.h"

enum {
    THREADS = 256,
    WARP = 32,
    MOST_FEW = 7,
    LEAST_MANY = 32,
    LEAST_DEPTH = 64,
    ACCESS = 16, /* bytes */
    FOUR = 4,
    MOST_RUN = ACCESS / 2,
    PIECES = 4 /* of k, on their way at once */
};

typedef struct gemv {
    qn_writer w;
    const qn_group *group;
    int large, few;       /* which operand is the large one; rows of the other */
    int run, beside;      /* a thread's elements along k, or along `many`, that come at once */
    int slices, in_block; /* threads that share the k; `many` of a block */
    qn_kbuffer *from[2], *cells;
    qn_gpu_element element[2];
    qn_dim batch, k, free[2];
    qn_dim batch_var, k_var, var[2];
    int rank, n_row_dims;
    qn_dim dims[QN_MAX_RANK], row_var, col_var; /* of the result: rows of all batches */
    qn_kvalue *thread, *batch_value, *k_value, *first, *own,
        *slice; /* own: the thread's first `many` in the block */
    qn_kvalue *sum;
} gemv;

#define TERMS (&g->w.b)

/* Rows of the side where they are few; 0: they are not, or are not known. */
static int few_of(const qn_node *dot, int side)
{
    const qn_dot_side axes = qn_dot_side_of(dot, side);
    int64_t n = 1;
    for (int i = 0; i < axes.n_free; i++) {
        const qn_dim d = dot->operands[side]->type.dims[axes.free[i]];
        if (!qn_dim_is_const(d) || __builtin_mul_overflow(n, d->value, &n) || n > MOST_FEW)
            return 0;
    }
    return (int)n;
}

static bool is_large(const qn_node *dot, int side)
{
    const qn_type *type = &dot->operands[side]->type;
    const qn_dot_side axes = qn_dot_side_of(dot, side);
    return few_of(dot, !side) > 0 && qn_gpu_likely(type, axes.n_free, axes.free) >= LEAST_MANY &&
           qn_gpu_likely(type, axes.n_contract, axes.contract) >= LEAST_DEPTH;
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return qn_gpu_takes(group, options) && group->root->op == QN_OP_DOT_GENERAL &&
           options->math != QN_MATH_STRICT && (is_large(group->root, 0) || is_large(group->root, 1));
}

/* ---- sums ---- */

/* `lanes` neighbours of an operand as float32 numbers. */
static void bring(gemv *g, int side, int lanes, qn_kvalue **out)
{
    qn_kbuilder *b = &g->w.b;
    qn_kvalue *x = qn_kb_load(b, g->from[side], qn_writer_index(&g->w, g->element[side].linear), lanes);
    x = qn_kb_convert(b, QUERN_F32, x);
    for (int i = 0; i < lanes; i++)
        out[i] = lanes > 1 ? qn_kb_extract(b, x, i) : x;
}

/* sums[few * beside + i] += of the thread's run of k */
static void add_run(gemv *g, qn_kvalue *k, qn_kvalue **sums)
{
    qn_kvalue *large[MOST_RUN], *small[MOST_RUN];
    const int side = g->large;
    const bool together = g->run > 1 && g->element[!side].along_k;
    qn_ispace_set(&g->w.space, g->k_var, k);
    bring(g, side, g->run * g->beside, large);
    for (int f = 0; f < g->few; f++) {
        qn_ispace_set(&g->w.space, g->var[!side], INDEX(f));
        if (together)
            bring(g, !side, g->run, small);
        for (int r = 0; r < g->run; r++) {
            qn_ispace_set(&g->w.space, g->k_var, ADD(k, INDEX(r)));
            if (!together)
                bring(g, !side, 1, &small[r]);
        }
        qn_ispace_set(&g->w.space, g->k_var, k);
        for (int r = 0; r < g->run; r++)
            for (int i = 0; i < g->beside; i++) {
                qn_kvalue **sum = &sums[f * g->beside + i];
                *sum =
                    qn_writer_combine(&g->w, QN_SUM, *sum,
                                      qn_kb_binary(&g->w.b, QN_OP_MUL, small[r], large[r * g->beside + i]));
            }
    }
}

/* Runs of k from low to high, `step` apart, `pieces` of them at a time. */
static void add_runs(gemv *g, qn_kvalue *low, qn_kvalue *high, int64_t step, int pieces, int n,
                     qn_kvalue **sums)
{
    qn_kbuilder *b = &g->w.b;
    qn_kinst *loop = qn_kb_carry(b, low, high, INDEX(step * pieces), QN_TAG_SERIAL, n, sums, NULL);
    for (int p = 0; p < pieces; p++)
        add_run(g, ADD(qn_loop_counter(loop), INDEX(p * step)), sums);
    qn_kb_end_carry(b, loop, sums);
}

/* Lines of sums, one a slice, have an odd number of elements: a warp writes to one place in 32 of them. */
static int line(const gemv *g)
{
    return g->few * g->in_block + 1;
}

static void compute_sums(gemv *g)
{
    qn_kbuilder *b = &g->w.b;
    const int n = g->few * g->beside;
    const int64_t step = (int64_t)g->slices * g->run;
    qn_kvalue *sums[MOST_FEW * FOUR], *many = qn_writer_index(&g->w, g->free[g->large]);
    for (int i = 0; i < n; i++)
        sums[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, 1 }, 0);
    qn_ispace_set(&g->w.space, g->var[g->large], MIN(ADD(g->first, g->own), ADD(many, INDEX(-g->beside))));
    qn_kvalue *start = MUL(g->slice, INDEX(g->run)), *whole = INDEX(step * PIECES),
              *full = MUL(DIV(g->k_value, whole), whole);
    add_runs(g, start, full, step, PIECES, n, sums);
    add_runs(g, ADD(full, start), g->k_value, step, 1, n, sums);
    for (int f = 0; f < g->few; f++)
        for (int i = 0; i < g->beside; i++) {
            qn_kvalue *at = ADD(MUL(g->slice, INDEX(line(g))), ADD(INDEX(f * g->in_block + i), g->own));
            qn_kb_store(b, g->cells, at, sums[f * g->beside + i], NULL);
        }
    qn_kb_barrier(b);
}

/* ---- what follows ---- */

static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    gemv *g = user;
    (void)index;
    return qn_kb_convert(&w->b, value->type.dtype, g->sum);
}

static void finish(gemv *g)
{
    qn_writer *w = &g->w;
    qn_kbuilder *b = &w->b;
    qn_dim index[QN_MAX_RANK];
    qn_kvalue *many = ADD(g->first, MOD(g->thread, INDEX(g->in_block))),
              *few = DIV(g->thread, INDEX(g->in_block));
    qn_kvalue *one =
        qn_kb_binary(b, QN_OP_AND, qn_kb_compare(b, QN_LT, g->thread, INDEX(g->few * g->in_block)),
                     qn_kb_compare(b, QN_LT, many, qn_writer_index(w, g->free[g->large])));
    qn_kinst *branch = qn_kb_if(b, one);
    const size_t mark = qn_writer_mark(w);
    g->sum = qn_kb_float(b, (qn_ktype){ QUERN_F32, 1 }, 0);
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(g->slices), INDEX(1), QN_TAG_UNROLL, 1, &g->sum, NULL);
    qn_kvalue *at = ADD(MUL(qn_loop_counter(loop), INDEX(line(g))), g->thread);
    g->sum = qn_kb_binary(b, QN_OP_ADD, g->sum, qn_kb_load(b, g->cells, at, 1));
    qn_kb_end_carry(b, loop, &g->sum);
    qn_ispace_set(&g->w.space, g->col_var, g->large ? many : few);
    qn_ispace_set(&g->w.space, g->row_var,
                  ADD(MUL(g->batch_value, qn_writer_index(w, g->free[0])), g->large ? few : many));
    qn_ix_split(&w->space, g->row_var, g->n_row_dims, g->dims, index);
    qn_ix_split(&w->space, g->col_var, g->rank - g->n_row_dims, g->dims + g->n_row_dims,
                index + g->n_row_dims);
    qn_writer_store_outputs(w, g->group, g->rank, g->dims, index);
    qn_writer_forget(w, mark);
    qn_kb_else(b, branch, 0, NULL);
    qn_kb_end_if(b, branch, 0, NULL);
}

/* ---- the kernel ---- */

static void read_shape(gemv *g)
{
    qn_ispace *space = &g->w.space;
    const qn_node *root = g->group->root;
    const qn_dot_side axes = qn_dot_side_of(root, 0);
    qn_dim batch_index[QN_MAX_RANK];
    g->large = is_large(root, 1);
    g->few = few_of(root, !g->large);
    g->rank = root->results[0].type.rank;
    g->n_row_dims = axes.n_batch + axes.n_free;
    qn_ispace_dims(space, &root->results[0].type, g->dims);
    g->batch = qn_gpu_extent(space, &root->operands[0]->type, axes.n_batch, axes.batch);
    g->k = qn_gpu_extent(space, &root->operands[0]->type, axes.n_contract, axes.contract);
    g->batch_var = qn_ispace_var(space, g->batch, false);
    g->k_var = qn_ispace_var(space, g->k, false);
    qn_ix_split(space, g->batch_var, axes.n_batch, g->dims, batch_index);
    for (int i = 0; i < 2; i++) {
        const qn_dot_side own = qn_dot_side_of(root, i);
        g->from[i] =
            qn_writer_argument(&g->w, qn_lower_buffer(g->w.lowering, root->operands[i]), true, false);
        qn_writer_note_load(&g->w, g->from[i]);
        g->free[i] = qn_gpu_extent(space, &root->operands[i]->type, own.n_free, own.free);
        g->var[i] = qn_ispace_var(space, g->free[i], false);
        g->element[i] = qn_gpu_element_of(space, root, i, batch_index, g->var[i], g->k_var);
    }
    g->row_var = qn_ispace_var(space, qn_dim_mul(space->dims, g->batch, g->free[0]), false);
    g->col_var = qn_ispace_var(space, g->free[1], false);
    const qn_gpu_element *e = &g->element[g->large];
    const int bytes = (int)qn_dtype_bytes(g->from[g->large]->dtype), most = ACCESS / bytes;
    const bool wide = g->from[g->large]->align >= ACCESS;
    g->run = wide && e->along_k && qn_dim_divisible(e->line, most) ? most : 1;
    g->beside = wide && e->along_free && qn_dim_divisible(e->line, FOUR) ? FOUR : 1;
    g->slices = e->along_k ? WARP : THREADS / (g->beside > 1 ? WARP / FOUR : WARP);
    g->in_block = THREADS / g->slices * g->beside;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_arena *scratch = qn_arena_new();
    gemv *g = QN_NEW(scratch, gemv);
    qn_writer *w = &g->w;
    g->group = group;
    qn_writer_init(w, l, qn_group_kernel_name(group, scratch), scratch);
    read_shape(g);
    for (int i = 0; i < group->n_inputs; i++)
        qn_writer_bind_input(w, group->inputs[i]);
    qn_writer_bind(w, &group->root->results[0], fetch_sum, g);
    w->kernel->gpu_threads = THREADS;
    w->kernel->by_thread = true;
    g->cells = qn_kernel_add_shared(w->kernel, "cells", QUERN_F32, (int64_t)g->slices * line(g));
    qn_dims *dims = w->space.dims;
    const qn_dim blocks = qn_dim_ceildiv(dims, g->free[g->large], qn_dim_const(dims, g->in_block));
    qn_kvalue *task = qn_kb_task(&w->b), *n = qn_writer_index(w, blocks),
              *groups = INDEX(THREADS / g->slices);
    const bool one = qn_dim_is(g->batch, 1); /* as in passes/gpu_gemm.c: bounds for the index arithmetic */
    g->thread = qn_kb_thread(&w->b);
    g->k_value = qn_writer_index(w, g->k);
    g->batch_value = one ? INDEX(0) : MIN(DIV(task, n), ADD(qn_writer_index(w, g->batch), INDEX(-1)));
    qn_ispace_set(&g->w.space, g->batch_var, g->batch_value);
    g->first = MUL(one ? MIN(task, ADD(n, INDEX(-1))) : MOD(task, n), INDEX(g->in_block));
    if (g->element[g->large].along_k) {
        g->slice = MOD(g->thread, INDEX(WARP));
        g->own = DIV(g->thread, INDEX(WARP));
    } else {
        g->slice = DIV(g->thread, groups);
        g->own = MUL(MOD(g->thread, groups), INDEX(g->beside));
    }
    w->kernel->flops = 2 * qn_likely_extent(g->batch) * qn_likely_extent(g->free[0]) *
                       qn_likely_extent(g->free[1]) * qn_likely_extent(g->k);
    compute_sums(g);
    finish(g);
    const qn_status status =
        qn_writer_finish(w, qn_dim_mul(dims, g->batch, blocks), qn_group_step_name(group, l->arena));
    qn_arena_free(scratch);
    return status;
}

const qn_template qn_template_gpu_gemv = { .name = "gpu_gemv", .matches = matches, .lower = lower };
