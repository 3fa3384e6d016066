/* Gives the right side of matrix products the layout that a kernel reads in order.
 *
 * Before: %r = dot_general %x, %w  with any batch, free and contracted axes, float32, on a CPU.
 * After:  the right side as panels of `width` columns, [batch…, panels, K, width], made by data movement that fold computes
 *         at compile time where it is a constant; the left side as [batch…, m…, K]; a matmul_packed over them.
 *
 * A right side that is no constant and already lies in rows of whole panels is multiplied by where it lies, where a kernel does
 * that (qn_gemm_reads_rows). For few rows one that lies row by row along the summed axis (the keys of attention with one query) is
 * multiplied row by row:
 *
 *   dot_general %q: f32[12, 1, 64], %k: f32[12, 1025, 64]     ->     reduce (mul %q, %k : f32[12, 1, 1025, 64]) {axes = [3]}
 *
 * On a machine that multiplies them also bf16, of K in whole pairs, or steps of a matrix unit, with pairs of k side by side:
 * [batch…, panels, K / 2, width, 2]. Products of bytes with sums of 32 bits likewise, on any CPU, with four of k side by side:
 * [batch…, panels, K / 4, width, 4], of the signs that the machine multiplies. Under precision bf16 and int4 constant right
 * sides of few rows, which are bound by reading them, are kept as bf16 and multiplied as float32 (but see stays_in_cache), or
 * kept in four bits (quantize_int4.c).
 *
 *   %w: f32[768, 3072]                    %p = reshape %w [768, 96, 32], transpose to [96, 768, 32]
 *   dot_general %x: f32[128, 768], %w     matmul_packed %x, %p : f32[128, 3072]
 * / */
#include "passes/claim.h"
#include "passes/gemm_tile.h"
#include "passes/quantize.h"
#include "passes/words.h"

/* The product of dims[from … to) */
static qn_dim product(qn_dims *table, const qn_dim *dims, int from, int to)
{
    qn_dim p = qn_dim_const(table, 1);
    for (int i = from; i < to; i++)
        p = qn_dim_mul(table, p, dims[i]);
    return p;
}

/* Panels pay even for a few hundred multiply-adds, since each takes a lane; not where hardly anything is summed. Packing a right
 * side that is not a constant costs as much as some rows of the product. */
static bool worth_packing(qn_dims *table, const qn_node *node, const qn_dot_side *x, const qn_dot_side *y)
{
    enum { LEAST_ROWS = 3, LEAST_DEPTH = 4, LEAST_WORK = 512 };
    const qn_type *xt = &node->operands[0]->type, *yt = &node->operands[1]->type;
    qn_dim rows = qn_dim_const(table, 1), columns = rows, depth = rows;
    for (int i = 0; i < x->n_free; i++)
        rows = qn_dim_mul(table, rows, xt->dims[x->free[i]]);
    for (int i = 0; i < y->n_free; i++)
        columns = qn_dim_mul(table, columns, yt->dims[y->free[i]]);
    for (int i = 0; i < y->n_contract; i++)
        depth = qn_dim_mul(table, depth, yt->dims[y->contract[i]]);
    qn_dim work = qn_dim_mul(table, rows, qn_dim_mul(table, columns, depth));
    if (work->max < LEAST_WORK || columns->max < 2 || depth->max < LEAST_DEPTH)
        return false;
    return qn_is_constant(node->operands[1]) || rows->max >= LEAST_ROWS;
}

/* How many rows (columns, of y) there are at most. */
static double most_of(const qn_value *v, const qn_dot_side *side)
{
    double rows = 1;
    for (int i = 0; i < side->n_free; i++)
        rows *= (double)v->type.dims[side->free[i]]->max;
    return rows;
}

static double most_rows(const qn_node *node, const qn_dot_side *x)
{
    return most_of(node->operands[0], x);
}

/* Is it no constant, and does it lie row by row along the axis that is summed? How long that is; else 0. */
static int64_t depth_of_rows(const qn_value *v, const qn_dot_side *side)
{
    const int rank = v->type.rank;
    int n_perm;
    if (v->type.dtype != QUERN_F32 || qn_is_constant(v) || side->n_contract != 1 ||
        side->contract[0] != rank - 1 || !qn_dim_is_const(v->type.dims[rank - 1]) ||
        (v->node && v->node->op == QN_OP_TRANSPOSE &&
         qn_attr_ints(v->node, QN_ATTR_PERM, &n_perm)[rank - 1] != rank - 1))
        return 0;
    return v->type.dims[rank - 1]->value;
}

/* Few rows, times what is no constant and lies row by row along the axis that is summed, or such rows times one column: products of
 * rows with rows, each the sum of their elements' products, for which what comes in is read in order. A product would read it in
 * columns, or pack it first. */
static bool sums_along_rows(const qn_node *node, const qn_dot_side *x, const qn_dot_side *y)
{
    enum { MOST_ROWS = 7, LEAST_DEPTH = 16, MOST_DEPTH = 1024, LEAST_OF_COLUMN = 8 };
    if (node->results[0].type.dtype != QUERN_F32 || node->results[0].type.rank == QN_MAX_RANK)
        return false;
    const int64_t depth = depth_of_rows(node->operands[1], y);
    if (depth >= LEAST_DEPTH && depth <= MOST_DEPTH && most_rows(node, x) <= MOST_ROWS)
        return true;
    return depth_of_rows(node->operands[0], x) >= LEAST_OF_COLUMN && y->n_contract == 1 &&
           most_of(node->operands[1], y) <= 1;
}

/* [batch…, x free…, y free…, K] of one side, whose free axes start at `at`. */
static qn_value *as_pairs(qn_builder *b, qn_value *v, const qn_dot_side *side, int at, int rank,
                          const qn_dim *dims)
{
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < side->n_batch; i++)
        axes[side->batch[i]] = i;
    for (int i = 0; i < side->n_free; i++)
        axes[side->free[i]] = at + i;
    axes[side->contract[0]] = rank - 1;
    return qn_b_broadcast(b, v, rank, dims, axes);
}

static qn_value *sums_of_rows(qn_builder *b, const qn_node *node, const qn_dot_side *x, const qn_dot_side *y)
{
    const qn_type *type = &node->results[0].type;
    const int rank = type->rank + 1;
    const int64_t last = rank - 1;
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < type->rank; i++)
        dims[i] = type->dims[i];
    dims[last] = node->operands[1]->type.dims[y->contract[0]];
    qn_value *pairs = qn_b_binary(b, QN_OP_MUL, as_pairs(b, node->operands[0], x, x->n_batch, rank, dims),
                                  as_pairs(b, node->operands[1], y, x->n_batch + x->n_free, rank, dims));
    return qn_b_reduce(b, QN_SUM, pairs, 1, &last, false);
}

/* Behind what `to` has already. */
static int64_t *put_axes(int n, const int64_t *axes, int64_t *to)
{
    for (int i = 0; i < n; i++)
        *to++ = axes[i];
    return to;
}

/* [batch…, panels, K, width] -> [batch…, panels, K / n, width, n] */
static qn_value *side_by_side(qn_builder *b, qn_value *y, int64_t n)
{
    qn_dim dims[QN_MAX_RANK];
    int64_t perm[QN_MAX_RANK];
    if (!y)
        return NULL;
    const int rank = y->type.rank;
    for (int i = 0; i < rank; i++) {
        dims[i] = y->type.dims[i];
        perm[i] = i;
    }
    dims[rank] = dims[rank - 1];
    dims[rank - 1] = qn_dim_const(qn_b_dims(b), n);
    dims[rank - 2] = qn_dim_const(qn_b_dims(b), dims[rank - 2]->value / n);
    perm[rank - 1] = rank;
    perm[rank] = rank - 1;
    return qn_b_transpose(b, qn_b_reshape(b, y, rank + 1, dims), perm);
}

/* ---- bytes ---- */

static bool is_byte(qn_dtype dtype)
{
    return dtype == QUERN_I8 || dtype == QUERN_U8;
}

qn_value *qn_flip_bytes(qn_builder *b, qn_value *y)
{
    if (!y)
        return NULL;
    const bool sign = y->type.dtype == QUERN_I8;
    qn_value *top = qn_b_scalar(b, y->type.dtype, sign ? -128 : 128);
    return qn_b_bitcast(b, sign ? QUERN_U8 : QUERN_I8, qn_b_binary_bcast(b, QN_OP_XOR, y, top));
}

/* Zeros behind what axis `axis` has, up to a multiple of the bytes of `words` words. */
static qn_value *whole_words(qn_builder *b, qn_value *v, int axis, int64_t words)
{
    qn_dims *table = qn_b_dims(b);
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    if (!v)
        return NULL;
    const int64_t bytes = words * QN_WORD_BYTES, past = (bytes - v->type.dims[axis]->value % bytes) % bytes;
    for (int i = 0; i < v->type.rank; i++)
        low[i] = high[i] = qn_dim_const(table, 0);
    high[axis] = qn_dim_const(table, past);
    return past ? qn_b_pad(b, v, qn_b_scalar(b, v->type.dtype, 0), low, high, NULL) : v;
}

/* The product takes x and y of different signs, or of the same; of any on the matrix unit. Where they are not as it takes them,
 * y is made 128 less or more, which adds to the result, or takes from it, 128 times the sum of x's row. */
static qn_value *bytes_product(qn_builder *b, qn_value *x, qn_value *y, int n_batch, qn_dim n, int64_t width,
                               const qn_machine *machine, int64_t words)
{
    const int last = x->type.rank - 1;
    const qn_dot4_signs signs = machine->dot4_signs;
    const bool same = x->type.dtype == y->type.dtype, turned = x->type.dtype == QUERN_I8 && !same,
               any = signs == QN_SIGNS_ANY || qn_gemm_tile_takes_bytes(&x->type, n_batch, machine),
               unfit = any ? words > 1 && turned : same != (signs == QN_SIGNS_SAME);
    qn_value *sums = NULL;
    if (unfit) {
        qn_value *wide = qn_b_convert(b, QUERN_I32, x);
        sums = qn_b_reduce(b, QN_SUM, wide, 1, (int64_t[]){ last }, true);
        qn_value *by = qn_b_scalar(b, QUERN_I32, y->type.dtype == QUERN_I8 ? -128 : 128);
        sums = qn_b_binary_bcast(b, QN_OP_MUL, sums, by);
        y = qn_flip_bytes(b, y);
    }
    qn_value *panels =
        side_by_side(b, qn_b_panels(b, whole_words(b, y, n_batch, words), width), words * QN_WORD_BYTES);
    qn_value *r = qn_b_matmul_packed(b, whole_words(b, x, last, words), panels, n_batch, n, QUERN_I32);
    return unfit ? qn_b_binary_bcast(b, QN_OP_ADD, r, sums) : r;
}

/* A constant that the model has in float16: few rows, which wait for it, read it so. */
static bool is_of_halves(const qn_value *v)
{
    return v->node && v->node->op == QN_OP_CONVERT && v->node->operands[0]->type.dtype == QUERN_F16;
}

static qn_value *packed_product(qn_builder *b, const qn_node *node, const qn_dot_side *xs,
                                const qn_dot_side *ys, const qn_machine *machine, qn_precision stored)
{
    qn_dims *table = qn_b_dims(b);
    const int lanes = machine->vector_bytes / 4;
    int n_batch = xs->n_batch;
    int64_t order[QN_MAX_RANK];
    put_axes(xs->n_contract, xs->contract,
             put_axes(xs->n_free, xs->free, put_axes(n_batch, xs->batch, order)));
    qn_value *x = qn_b_transpose(b, node->operands[0], order);
    put_axes(ys->n_free, ys->free,
             put_axes(ys->n_contract, ys->contract, put_axes(n_batch, ys->batch, order)));
    qn_value *y = qn_b_transpose(b, node->operands[1], order);
    if (!x || !y)
        return NULL;
    qn_dim dims[QN_MAX_RANK];
    const qn_dim *from = y->type.dims;
    for (int i = 0; i < n_batch; i++)
        dims[i] = from[i];
    dims[n_batch] = product(table, from, n_batch, n_batch + ys->n_contract);
    dims[n_batch + 1] = product(table, from, n_batch + ys->n_contract, y->type.rank);
    y = qn_b_reshape(b, y, n_batch + 2, dims);
    int x_rank = n_batch + xs->n_free + 1;
    for (int i = 0; i < x_rank - 1; i++)
        dims[i] = x->type.dims[i];
    dims[x_rank - 1] = product(table, x->type.dims, x_rank - 1, x->type.rank);
    x = qn_b_reshape(b, x, x_rank, dims);
    if (!x || !y)
        return NULL;
    qn_dim n = y->type.dims[n_batch + 1];
    const int64_t width = n->max > lanes ? 2 * lanes : lanes;
    const qn_type *type = &node->results[0].type;
    const int64_t words = machine->mmla && most_rows(node, xs) > 1 ? 2 : 1; /* of a column, side by side */
    if (is_byte(x->type.dtype))
        return qn_b_reshape(b, bytes_product(b, x, y, n_batch, n, width, machine, words), type->rank,
                            type->dims);
    if (stored == QN_PRECISION_INT4 && qn_int4_takes(y))
        return qn_b_reshape(b, qn_int4_product(b, x, y, n_batch, width), type->rank, type->dims);
    qn_value *panels = qn_b_panels(b, y, width);
    if (x->type.dtype == QUERN_BF16)
        panels = side_by_side(b, panels, words > 1 && y->type.dims[n_batch]->value % 4 == 0 ? 4 : 2);
    else if (stored == QN_PRECISION_BF16)
        panels = qn_b_convert(b, QUERN_BF16, panels);
    else if (qn_waits_for_memory(node, xs) && is_of_halves(node->operands[1]))
        panels = qn_b_convert(b, QUERN_F16, panels);
    qn_value *r = qn_b_matmul_packed(b, x, panels, n_batch, n, type->dtype);
    return qn_b_reshape(b, r, type->rank, type->dims);
}

/* Float32; bf16 whose K the machine takes in whole steps; bytes with sums of 32 bits. */
static bool can_pack(const qn_node *node, const qn_pass_options *options)
{
    const int step = qn_bf16_step(options);
    const qn_dtype x = node->operands[0]->type.dtype, y = node->operands[1]->type.dtype,
                   result = node->results[0].type.dtype;
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n);
    int64_t k = 1;
    for (int i = 0; i < n; i++) {
        const qn_dim d = node->operands[0]->type.dims[axes[i]];
        k = qn_dim_is_const(d) && k <= INT32_MAX ? k * d->value : 0;
    }
    if (is_byte(x) && is_byte(y) && result == QUERN_I32)
        return k > 0;
    return x == y && result == QUERN_F32 &&
           (x == QUERN_F32 || (x == QUERN_BF16 && step > 0 && k > 0 && k % step == 0));
}

bool qn_waits_for_memory(const qn_node *node, const qn_dot_side *x)
{
    return most_rows(node, x) <= QN_FEW_ROWS && node->operands[0]->type.dtype == QUERN_F32 &&
           qn_is_constant(node->operands[1]);
}

static qn_status pack_graph(qn_graph *graph, const qn_pass_options *options, bool *changed, qn_diags *diags)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        for (int r = 0; r < node->n_regions; r++)
            QN_TRY(pack_graph(node->regions[r], options, changed, diags));
        if (node->op != QN_OP_DOT_GENERAL || !can_pack(node, options) || qn_blas_takes(node, options) ||
            qn_gemm_reads_rows(node, options))
            continue;
        const qn_dot_side x = qn_dot_side_of(node, 0), y = qn_dot_side_of(node, 1);
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        const bool sums = sums_along_rows(node, &x, &y);
        if (!sums && !worth_packing(graph->module->dims, node, &x, &y))
            continue;
        const qn_precision stored = qn_waits_for_memory(node, &x) ? options->precision : QN_PRECISION_F32;
        qn_value *r = sums ? sums_of_rows(&b, node, &x, &y)
                           : packed_product(&b, node, &x, &y, options->machine, stored);
        if (!r)
            return qn_diags_status(diags);
        qn_value_replace(&node->results[0], r);
        qn_node_remove(node);
        *changed = true;
    }
    qn_graph_resolve(graph);
    return QUERN_OK;
}

static double bytes_of_constants(const qn_graph *graph)
{
    double bytes = 0;
    QN_FOR_NODES (graph, node) {
        if (node->op == QN_OP_CONSTANT && node->results[0].type.dtype == QUERN_F32)
            bytes += 4.0 * (double)qn_type_elements(&node->results[0].type);
        for (int r = 0; r < node->n_regions; r++)
            bytes += bytes_of_constants(node->regions[r]);
    }
    return bytes;
}

/* A product of few rows waits for its constant where that comes from memory or the last cache. Where the second one keeps all
 * constants from run to run, vectors of 256 bits take longer to widen bf16 (a fifth) than to read float32. */
static bool stays_in_cache(const qn_graph *graph, const qn_machine *machine)
{
    return machine->vector_bytes < 64 && bytes_of_constants(graph) <= (double)machine->l2_bytes;
}

qn_status qn_pass_pack(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    *out_changed = false;
    if (!options->machine || options->machine->gpu || options->machine->vector_bytes < 16)
        return QUERN_OK;
    qn_pass_options own = *options;
    if (own.precision == QN_PRECISION_BF16 && stays_in_cache(graph, own.machine))
        own.precision = QN_PRECISION_F32;
    return pack_graph(graph, &own, out_changed, diags);
}
