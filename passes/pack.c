/* Gives the right side of matrix products the layout that a kernel reads in order.
 *
 * Before: %r = dot_general %x, %w  with any batch, free and contracted axes, float32, on a CPU.
 * After:  the right side as panels of `width` columns, [batch…, panels, K, width], made by data movement that fold computes
 *         at compile time where it is a constant; the left side as [batch…, m…, K]; a matmul_packed over them.
 *
 * On a machine with a matrix unit also bf16 of K in whole steps, with pairs of k side by side: [batch…, panels, K / 2, width, 2].
 * Under precision bf16 constant right sides of few rows, which are bound by reading them, are kept as bf16 and multiplied as
 * float32.
 *
 *   %w: f32[768, 3072]                    %p = reshape %w [768, 96, 32], transpose to [96, 768, 32]
 *   dot_general %x: f32[128, 768], %w     matmul_packed %x, %p : f32[128, 3072]
 */
#include "ir/build.h"
#include "passes/claim.h"
#include "passes/passes.h"

/* The product of dims[from … to) */
static qn_dim product(qn_dims *table, const qn_dim *dims, int from, int to)
{
    qn_dim p = qn_dim_const(table, 1);
    for (int i = from; i < to; i++)
        p = qn_dim_mul(table, p, dims[i]);
    return p;
}

static bool is_constant(const qn_value *value)
{
    while (value->node && value->node->n_operands == 1 && value->node->n_regions == 0)
        value = value->node->operands[0];
    return value->node && value->node->op == QN_OP_CONSTANT;
}

/* Packing a right side that is not a constant costs as much as some rows of the product. */
static bool worth_packing(qn_dims *table, const qn_node *node, const qn_dot_side *x, const qn_dot_side *y)
{
    enum { LEAST_ROWS = 8, LEAST_WORK = 2048 };
    const qn_type *xt = &node->operands[0]->type, *yt = &node->operands[1]->type;
    qn_dim rows = qn_dim_const(table, 1), columns = rows, depth = rows;
    for (int i = 0; i < x->n_free; i++)
        rows = qn_dim_mul(table, rows, xt->dims[x->free[i]]);
    for (int i = 0; i < y->n_free; i++)
        columns = qn_dim_mul(table, columns, yt->dims[y->free[i]]);
    for (int i = 0; i < y->n_contract; i++)
        depth = qn_dim_mul(table, depth, yt->dims[y->contract[i]]);
    qn_dim work = qn_dim_mul(table, columns, depth);
    if (work->max < LEAST_WORK || columns->max < 2)
        return false;
    return is_constant(node->operands[1]) || rows->max >= LEAST_ROWS;
}

/* Behind what `to` has already. */
static int64_t *put_axes(int n, const int64_t *axes, int64_t *to)
{
    for (int i = 0; i < n; i++)
        *to++ = axes[i];
    return to;
}

/* [batch…, panels, K, width] -> [batch…, panels, K / 2, width, 2] */
static qn_value *pairs_of(qn_builder *b, qn_value *y)
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
    dims[rank - 1] = qn_dim_const(qn_b_dims(b), 2);
    dims[rank - 2] = qn_dim_const(qn_b_dims(b), dims[rank - 2]->value / 2);
    perm[rank - 1] = rank;
    perm[rank] = rank - 1;
    return qn_b_transpose(b, qn_b_reshape(b, y, rank + 1, dims), perm);
}

static qn_value *packed_product(qn_builder *b, const qn_node *node, const qn_dot_side *xs,
                                const qn_dot_side *ys, int lanes, bool shorter)
{
    qn_dims *table = qn_b_dims(b);
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
    qn_value *panels = qn_b_panels(b, y, n->max > lanes ? 2 * lanes : lanes);
    if (x->type.dtype == QUERN_BF16)
        panels = pairs_of(b, panels);
    else if (shorter)
        panels = qn_b_convert(b, QUERN_BF16, panels);
    const qn_type *type = &node->results[0].type;
    qn_value *r = qn_b_matmul_packed(b, x, panels, n_batch, n, type->dtype);
    return qn_b_reshape(b, r, type->rank, type->dims);
}

/* Float32; or bf16 whose K the matrix unit takes in whole steps. */
static bool can_pack(const qn_node *node, const qn_machine *machine)
{
    enum { STEP = 32 };
    const qn_dtype dtype = node->operands[0]->type.dtype;
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &n);
    int64_t k = 1;
    if (node->results[0].type.dtype != QUERN_F32 || dtype != node->operands[1]->type.dtype)
        return false;
    for (int i = 0; i < n; i++) {
        const qn_dim d = node->operands[0]->type.dims[axes[i]];
        k = qn_dim_is_const(d) && k <= INT32_MAX ? k * d->value : 0;
    }
    return dtype == QUERN_F32 || (dtype == QUERN_BF16 && machine->tiles && k > 0 && k % STEP == 0);
}

/* A product that only waits for its right side. */
static bool waits_for_memory(const qn_node *node, const qn_dot_side *x)
{
    enum { FEW_ROWS = 4 };
    double rows = 1;
    for (int i = 0; i < x->n_free; i++)
        rows *= (double)node->operands[0]->type.dims[x->free[i]]->max;
    return rows <= FEW_ROWS && node->operands[0]->type.dtype == QUERN_F32 && is_constant(node->operands[1]);
}

static qn_status pack_graph(qn_graph *graph, const qn_pass_options *options, bool *changed, qn_diags *diags)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        for (int r = 0; r < node->n_regions; r++)
            QN_TRY(pack_graph(node->regions[r], options, changed, diags));
        if (node->op != QN_OP_DOT_GENERAL || !can_pack(node, options->machine) ||
            qn_blas_takes(node, options))
            continue;
        const qn_dot_side x = qn_dot_side_of(node, 0), y = qn_dot_side_of(node, 1);
        if (!worth_packing(graph->module->dims, node, &x, &y))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        const bool shorter = options->precision == QN_PRECISION_BF16 && waits_for_memory(node, &x);
        qn_value *r = packed_product(&b, node, &x, &y, options->machine->vector_bytes / 4, shorter);
        if (!r)
            return qn_diags_status(diags);
        qn_value_replace(&node->results[0], r);
        qn_node_remove(node);
        *changed = true;
    }
    qn_graph_resolve(graph);
    return QUERN_OK;
}

qn_status qn_pass_pack(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    *out_changed = false;
    if (!options->machine || options->machine->gpu || options->machine->vector_bytes < 16)
        return QUERN_OK;
    return pack_graph(graph, options, out_changed, diags);
}
