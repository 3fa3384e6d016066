/* How a pass over a row reduces its columns: in which order, by lanes or one after the other, from terms in a buffer, with or without
 * NaN. */
#include <string.h>

#include "passes/lower_rows.h"
#include "passes/passes.h"

enum { TERMS_BYTES = 64 << 10 }; /* of the terms of a row's ordered sums */

static bool spreads_nan(qn_op op)
{
    switch (op) {
    case QN_OP_ADD:
    case QN_OP_SUB:
    case QN_OP_MUL:
    case QN_OP_DIV:
    case QN_OP_NEG:
    case QN_OP_LOG:
    case QN_OP_BROADCAST:
    case QN_OP_RESHAPE: return true;
    default: return false;
    }
}

/* May this maximum leave NaN out? Where it only shifts the operands of exp, a sum of which is in all that the kernel makes, NaN
 * comes by that way: softmax and its logarithm. Then it is one instruction instead of three. */
bool qn_row_leaves_nan_out(const qn_row_kernel *k, const qn_node *max)
{
    const qn_group *g = k->group;
    if (qn_attr_reduce_kind(max) != QN_KIND_MAX || !qn_dtype_is_float(max->results[0].type.dtype))
        return false;
    bool *has_sum = QN_NEW_ARRAY(k->w->arena, bool, k->lowering->scope->graph->n_values); /* by value id */
    for (int i = 0; i < g->n_nodes; i++) {
        const qn_node *node = g->nodes[i];
        bool *has = &has_sum[node->results[0].id];
        if (node->op == QN_OP_REDUCE && qn_attr_reduce_kind(node) == QN_SUM) {
            const qn_node *exp = node->operands[0]->node;
            *has = exp && exp->op == QN_OP_EXP && qn_maximum_taken(exp->operands[0]) == max;
        }
        for (int o = 0; o < node->n_operands && spreads_nan(node->op); o++)
            *has |= has_sum[node->operands[o]->id];
    }
    for (int i = 0; i < g->n_outputs; i++)
        if (!has_sum[g->outputs[i]->id])
            return false;
    return true;
}

/* Reassociating a sum is not strict; its columns then go one after the other. */
static bool is_ordered(const qn_row_kernel *k, const qn_row_reduction *r)
{
    return (r->kind == QN_SUM || r->kind == QN_PROD) && qn_dtype_is_float(r->dtype) &&
           k->lowering->options->math == QN_MATH_STRICT;
}

qn_ktag qn_row_column_tag(const qn_row_kernel *k, int n, const qn_row_reduction *reductions)
{
    if (k->rows_are_lanes)
        return QN_TAG_SERIAL;
    for (int i = 0; i < n; i++)
        if (is_ordered(k, &reductions[i]))
            return QN_TAG_SERIAL;
    return QN_TAG_VECTOR;
}

/* A lane adds up all columns of its row, an image's positions after another's: a sum for each image keeps errors small, as sums over
 * lanes do elsewhere. */
bool qn_row_sums_by_parts(const qn_row_kernel *k, int n, const qn_row_reduction *reductions)
{
    for (int i = 0; i < n; i++)
        if (is_ordered(k, &reductions[i]))
            return false;
    return k->in_blocks && n > 0 && k->col_nest.n > 1;
}

int qn_row_split_ordered(qn_row_kernel *k, int n, qn_row_reduction *reductions, qn_kbuffer **out_terms)
{
    const qn_machine *machine = k->lowering->options->machine;
    const int64_t columns = k->rows.n_cols->max;
    int64_t bytes = k->terms_bytes;
    int n_free = 0;
    if (k->rehearsing || k->rows_are_lanes || !machine || machine->gpu || columns > QN_ROW_STAGE_BYTES)
        return n;
    for (int i = 0; i < n; i++) {
        const qn_value *x = reductions[i].node->operands[0];
        if (!is_ordered(k, &reductions[i])) {
            const qn_row_reduction first = reductions[i];
            memmove(&reductions[n_free + 1], &reductions[n_free], (size_t)(i - n_free) * sizeof first);
            reductions[n_free++] = first;
        } else if (k->traces[x->id].index) { /* it is computed, not only loaded */
            bytes += columns * (int64_t)qn_dtype_bytes(reductions[i].dtype);
        } else {
            return n;
        }
    }
    if (bytes > TERMS_BYTES)
        return n;
    k->terms_bytes = bytes;
    for (int i = n_free; i < n; i++) {
        const qn_value *x = reductions[i].node->operands[0];
        const qn_row_trace *t = &k->traces[x->id];
        out_terms[i] =
            t->staged && t->staged->dtype == reductions[i].dtype && __builtin_ctz(t->passes) == k->w->pass
                ? t->staged
                : qn_kernel_add_local(k->w->kernel, "terms", reductions[i].dtype, columns);
    }
    return n_free;
}

void qn_row_add_up(qn_row_kernel *k, int n, const qn_row_reduction *reductions, qn_kbuffer *const *terms,
                   qn_kvalue **values)
{
    qn_writer *w = k->w;
    qn_writer_loop loops[QN_MAX_RANK];
    const int n_cols = k->col_nest.n;
    qn_writer_open_nest(w, n_cols, k->col_vars, QN_TAG_SERIAL, n, values, NULL, loops);
    const qn_writer_loop *innermost = &loops[n_cols > 0 ? n_cols - 1 : 0];
    for (int i = 0; i < n; i++)
        values[i] = qn_writer_combine(w, reductions[i].kind, innermost->carried[i],
                                      qn_writer_load(w, terms[i], k->rows.col));
    qn_writer_close_nest(w, n_cols, loops, values);
    for (int i = 0; i < n; i++)
        values[i] = loops[0].carried[i];
}
