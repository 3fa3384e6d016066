/* Lets large products multiply bfloat16 where that is faster: on machines with a matrix unit.
 *
 * Before: dot_general of float32, {precision = bf16}. After: its operands rounded to bf16, its sums float32 as before.
 * Constants are rounded at compile time; other operands by whoever computes them, so what lies in memory is bf16.
 *
 *   %r = dot_general %x: f32[128, 768], %w: f32[768, 3072]
 *   ->
 *   %x' = convert %x : bf16;  %w' = convert %w : bf16
 *   %r = dot_general %x', %w' {dtype = f32} : f32[128, 3072]
 *
 * Convolutions likewise, where there is a kernel for them (conv_tile.c); the layout pass puts them in blocks of channels.
 * Products that are small, or bound by reading the right side, stay as they are; see pack.c for the latter. */
#include <string.h>

#include "ir/build.h"
#include "passes/conv_tile.h"
#include "passes/passes.h"

enum {
    STEP = 32,      /* of K, that one instruction takes */
    LEAST_ROWS = 8, /* fewer are bound by reading y */
    LEAST_COLUMNS = 16,
    LEAST_WORK = 1 << 18 /* multiplications */
};

/* Is each of the axes of constant extent? The product of the extents. */
static bool extent(const qn_type *type, int n, const int64_t *axes, int64_t *out)
{
    *out = 1;
    for (int i = 0; i < n; i++) {
        const qn_dim d = type->dims[axes[i]];
        if (!qn_dim_is_const(d) || __builtin_mul_overflow(*out, d->value, out))
            return false;
    }
    return true;
}

/* Largest number of elements along the axes that are in neither list. */
static double free_elements(const qn_type *type, int n_a, const int64_t *a, int n_b, const int64_t *b)
{
    double n = 1;
    for (int axis = 0; axis < type->rank; axis++) {
        bool taken = false;
        for (int i = 0; i < n_a; i++)
            taken |= a[i] == axis;
        for (int i = 0; i < n_b; i++)
            taken |= b[i] == axis;
        n *= taken ? 1 : (double)type->dims[axis]->max;
    }
    return n;
}

static bool worth_it(const qn_node *node)
{
    static const qn_attr_key batch_key[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    static const qn_attr_key contract_key[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    double free[2];
    int64_t k = 0;
    for (int side = 0; side < 2; side++) {
        const qn_type *type = &node->operands[side]->type;
        int n_batch, n_contract;
        const int64_t *batch = qn_attr_ints(node, batch_key[side], &n_batch);
        const int64_t *contract = qn_attr_ints(node, contract_key[side], &n_contract);
        if (type->dtype != QUERN_F32 || !extent(type, n_contract, contract, &k))
            return false;
        free[side] = free_elements(type, n_batch, batch, n_contract, contract);
    }
    return k > 0 && k % STEP == 0 && free[0] >= LEAST_ROWS && free[1] >= LEAST_COLUMNS &&
           free[0] * free[1] * (double)k >= LEAST_WORK;
}

static qn_value *round_operands(qn_builder *b, const qn_node *node)
{
    qn_dot dot = { 0 };
    int n;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_X_BATCH, &dot.n_batch);
    memcpy(dot.x_batch, axes, (size_t)dot.n_batch * sizeof *axes);
    axes = qn_attr_ints(node, QN_ATTR_Y_BATCH, &n);
    memcpy(dot.y_batch, axes, (size_t)n * sizeof *axes);
    axes = qn_attr_ints(node, QN_ATTR_X_CONTRACT, &dot.n_contract);
    memcpy(dot.x_contract, axes, (size_t)dot.n_contract * sizeof *axes);
    axes = qn_attr_ints(node, QN_ATTR_Y_CONTRACT, &n);
    memcpy(dot.y_contract, axes, (size_t)n * sizeof *axes);
    return qn_b_dot_general(b, qn_b_convert(b, QUERN_BF16, node->operands[0]),
                            qn_b_convert(b, QUERN_BF16, node->operands[1]), &dot, QUERN_F32);
}

/* ---- convolutions ---- */

/* Whether none of the graph's convolutions stays float32 for good: where each channel is convolved by itself, in blocks of
 * another size, going back and forth costs more than is gained. */
static bool convolutions_fit(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_CONVOLUTION && qn_attr_int(node, QN_ATTR_GROUPS) != 1)
            return false;
    return true;
}

static qn_value *round_convolution(qn_builder *b, const qn_node *node)
{
    int64_t low[QN_MAX_RANK], high[QN_MAX_RANK];
    int n;
    qn_attr_dims(node, QN_ATTR_LOW, &n);
    for (int i = 0; i < n; i++) {
        low[i] = qn_attr_dims(node, QN_ATTR_LOW, NULL)[i]->value;
        high[i] = qn_attr_dims(node, QN_ATTR_HIGH, NULL)[i]->value;
    }
    const qn_conv conv = {
        .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL), .low = low, .high = high, .groups = 1
    };
    return qn_b_convolution_to(b, qn_b_convert(b, QUERN_BF16, node->operands[0]),
                               qn_b_convert(b, QUERN_BF16, node->operands[1]), &conv, QUERN_F32);
}

/* ---- the pass ---- */

static qn_status quantize_graph(qn_graph *graph, const qn_pass_options *options, bool *changed,
                                qn_diags *diags)
{
    const bool convolutions = convolutions_fit(graph);
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            QN_TRY(quantize_graph(node->regions[i], options, changed, diags));
        const bool product = node->op == QN_OP_DOT_GENERAL && worth_it(node);
        if (!product && !(convolutions && node->op == QN_OP_CONVOLUTION &&
                          node->operands[0]->type.dtype == QUERN_F32 && qn_conv_tile_fits(node, options)))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_node_resolve(node);
        qn_value *made = product ? round_operands(&b, node) : round_convolution(&b, node);
        if (!made)
            return qn_diags_status(diags);
        qn_value_replace(&node->results[0], made);
        qn_node_remove(node);
        *changed = true;
    }
    qn_graph_resolve(graph);
    return QUERN_OK;
}

qn_status qn_pass_quantize(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                           qn_diags *diags)
{
    *out_changed = false;
    if (options->precision != QN_PRECISION_BF16 || !options->machine || !options->machine->tiles)
        return QUERN_OK;
    return quantize_graph(graph, options, out_changed, diags);
}
