/* Data-parallel training: every rank runs the step on its part of the batch, and what is to be alike on all of them is averaged.
 *
 *   %g1 = …                                   gradients, as they become ready
 *   %g0 = …
 *   %0 = reshape %g1 : f32[30]                together they are a bucket: one collective instead of many,
 *   %1 = reshape %g0 : f32[12]                right behind the last gradient that is in it
 *   %2 = concatenate %0, %1 : f32[42]
 *   %3 = all_reduce %2 {kind = mean}
 *   %4 = slice %3 … : the average of %g1, and so on
 *
 * Means of equal parts average to the mean of all: with the loss of a mean this is the step of the whole batch on one rank.
 * Sums of collectives go element by element in the order of the ranks, so that buckets change no bit.
 *
 * What batch norms see is their rank's rows; their running statistics are averaged. Or, on request, they see all ranks'. */
#include <stdlib.h>

#include "passes/passes.h"
#include "passes/train_parts.h"

/* ---- averages in buckets ---- */

typedef struct bucket {
    qn_vec(qn_value **) values; /* places of those that are in it */
    int64_t bytes;
} bucket;

/* Before everything that comes behind what makes the value. */
static void place_behind(qn_builder *b, const qn_value *value)
{
    b->before = value->node ? value->node->next : b->graph->first;
}

static qn_dim elements_of(qn_builder *b, const qn_value *value)
{
    return qn_type_elements_dim(qn_b_dims(b), &value->type);
}

static void reduce_bucket(qn_builder *b, bucket *pending)
{
    const size_t n = pending->values.n;
    qn_value **flat = QN_NEW_ARRAY(b->graph->module->arena, qn_value *, n + 1);
    if (n == 0)
        return;
    place_behind(b, *pending->values.items[n - 1]);
    for (size_t i = 0; i < n && n > 1; i++) {
        const qn_dim elements = elements_of(b, *pending->values.items[i]);
        flat[i] = qn_b_reshape(b, *pending->values.items[i], 1, &elements);
    }
    qn_value *mean =
        qn_b_all_reduce(b, QN_MEAN, n > 1 ? qn_b_concatenate(b, (int)n, flat, 0) : *pending->values.items[0]);
    qn_dim at = qn_dim_const(qn_b_dims(b), 0);
    for (size_t i = 0; i < n; i++) {
        qn_value **value = pending->values.items[i];
        const qn_dim end = qn_dim_add(qn_b_dims(b), at, elements_of(b, *value));
        qn_value *part = n > 1 ? qn_b_slice_axis(b, mean, 0, at, end) : mean;
        *value = qn_b_reshape(b, part, (*value)->type.rank, (*value)->type.dims);
        at = end;
    }
    pending->values.n = 0;
    pending->bytes = 0;
    b->before = NULL;
}

static int by_readiness(const void *a, const void *b)
{
    const qn_value *x = **(qn_value * *const *)a, *y = **(qn_value * *const *)b;
    return (x->id > y->id) - (x->id < y->id);
}

/* Bytes of a value of known size; -1: nobody knows. */
static int64_t bytes_of(const qn_value *value)
{
    return qn_type_is_static(&value->type)
               ? qn_type_elements(&value->type) * (int64_t)qn_dtype_bytes(value->type.dtype)
               : -1;
}

void qn_parallel_average(qn_builder *b, int n, qn_value **values, int64_t bucket_bytes)
{
    qn_arena *arena = b->graph->module->arena;
    qn_value ***order = QN_NEW_ARRAY(arena, qn_value **, n);
    bucket pending[QUERN_F64 + 1] = { 0 }; /* by data type */
    int count = 0;
    qn_graph_resolve(b->graph);
    qn_graph_number(b->graph); /* in the order in which they become ready */
    for (int i = 0; i < n; i++) {
        qn_scalar same;
        values[i] = qn_value_resolve(values[i]);
        if (qn_dtype_is_float(values[i]->type.dtype) &&
            !qn_value_splat(values[i], &same)) /* alike on all ranks */
            order[count++] = &values[i];
    }
    qsort(order, (size_t)count, sizeof *order, by_readiness);
    for (int i = 0; i < count; i++) {
        bucket *to = &pending[(*order[i])->type.dtype], alone = { 0 };
        const int64_t bytes = bytes_of(*order[i]);
        if (bytes < 0 || bytes >= bucket_bytes)
            to = &alone;
        qn_vec_push(arena, &to->values, order[i]);
        to->bytes += bytes;
        if (to == &alone || to->bytes >= bucket_bytes)
            reduce_bucket(b, to);
    }
    for (int dtype = 0; dtype <= QUERN_F64; dtype++)
        reduce_bucket(b, &pending[dtype]);
}

/* ---- dropout ---- */

qn_value *qn_parallel_key(qn_builder *b, qn_value *key)
{
    const int64_t one = 1;
    const qn_dim dim = qn_dim_const(qn_b_dims(b), 1);
    const uint64_t odd = 0x9e3779b97f4a7c15, zero = 0;
    qn_value *rank = qn_b_reshape(b, qn_b_convert(b, QUERN_U64, qn_b_rank(b)), 1, &dim);
    qn_value *factor = qn_b_constant(b, qn_tensor_new(b->graph->module, QUERN_U64, 1, &one, &odd));
    qn_value *parts[2] = { qn_b_binary(b, QN_OP_MUL, rank, factor),
                           qn_b_constant(b, qn_tensor_new(b->graph->module, QUERN_U64, 1, &one, &zero)) };
    return qn_b_binary(b, QN_OP_ADD, key, qn_b_concatenate(b, 2, parts, 0));
}

/* ---- batch norms of all ranks' rows ---- */

/* Of the batch, over all axes but that of channels; of equal parts, so that the mean of means is the mean. */
static qn_value *mean_of_all(qn_builder *b, qn_value *x)
{
    int64_t axes[QN_MAX_RANK];
    int n = 0;
    for (int i = 0; i < x->type.rank; i++)
        if (i != 1)
            axes[n++] = i;
    return qn_b_all_reduce(b, QN_MEAN, qn_b_mean(b, x, n, axes, false));
}

/* As in inference, with the statistics that the ranks have found together. */
static void share_statistics(qn_node *node, qn_diags *diags)
{
    static const int64_t channel = 1;
    qn_builder b = { .graph = node->graph, .before = node, .loc = node->loc, .diags = diags };
    const qn_dtype dtype = node->operands[0]->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    const double epsilon = qn_attr_float(node, QN_ATTR_EPSILON),
                 momentum = qn_attr_float(node, QN_ATTR_MOMENTUM);
    qn_value *x = qn_b_convert(&b, dtype, node->operands[0]), *now[2];
    now[0] = mean_of_all(&b, x);
    qn_value *centred =
        qn_b_binary(&b, QN_OP_SUB, x, qn_b_broadcast(&b, now[0], x->type.rank, x->type.dims, &channel));
    now[1] = centred ? mean_of_all(&b, qn_b_binary(&b, QN_OP_MUL, centred, centred)) : NULL;
    qn_node *norm = now[1] ? qn_b_batch_norm(&b, x, qn_b_convert(&b, dtype, node->operands[1]),
                                             qn_b_convert(&b, dtype, node->operands[2]), now[0], now[1],
                                             epsilon, momentum, false)
                           : NULL;
    if (!norm)
        return;
    qn_value_replace(&node->results[0], qn_b_convert(&b, node->results[0].type.dtype, &norm->results[0]));
    for (int i = 0; i < 2; i++) {
        qn_value *running =
            qn_b_binary_scalar(&b, QN_OP_MUL, qn_b_convert(&b, dtype, node->operands[3 + i]), momentum);
        qn_value *added = qn_b_binary_scalar(&b, QN_OP_MUL, now[i], 1 - momentum);
        qn_value *next =
            qn_b_convert(&b, node->results[1 + i].type.dtype, qn_b_binary(&b, QN_OP_ADD, running, added));
        if (next)
            qn_value_replace(&node->results[1 + i], next);
    }
    qn_node_remove(node);
}

qn_status qn_parallel_batch_norms(qn_graph *graph, qn_diags *diags)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        if (node->op == QN_OP_BATCH_NORM && qn_attr_bool(node, QN_ATTR_TRAINING))
            share_statistics(node, diags);
    }
    qn_graph_resolve(graph);
    return qn_diags_status(diags);
}
