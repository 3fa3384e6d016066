/* Values that several passes over a row need: a rehearsal tells in which passes each is computed; dear ones are then staged in a
 * local buffer by the first of these. */
#include <string.h>

#include "passes/lower_rows.h"
#include "passes/passes.h"

enum {
    DEAR = 8,                   /* cost of what is rather staged than computed twice */
    STAGE_TOTAL = 160 << 10,    /* of all staged rows together: below QN_LOCAL_LIMIT */
    GPU_STAGE_TOTAL = 32 << 10, /* in shared memory, beside what reductions need there */
};

static bool uses_columns(const qn_row_kernel *k, int rank, const qn_dim *index)
{
    for (int i = 0; i < rank; i++)
        for (int c = 0; c < k->col_nest.n; c++)
            if (k->col_vars[c]->kind == QN_DIM_SYMBOL && qn_ix_uses(index[i], k->col_vars[c]))
                return true;
    return false;
}

void qn_row_computed(qn_writer *w, void *user, const qn_value *value, const qn_dim *index, qn_kvalue *result)
{
    qn_row_kernel *k = user;
    const int rank = value->type.rank;
    qn_row_trace *t = &k->traces[value->id];
    if (k->rehearsing) {
        if (!uses_columns(k, rank, index)) {
            t->scattered |= qn_row_is_full(k, value); /* one column of it: a gather's */
            return;
        }
        t->passes |= 1u << w->pass;
        if (w->mask || (t->index && memcmp(t->index, index, (size_t)rank * sizeof *index) != 0))
            t->scattered = true;
        t->index = qn_arena_copy(w->arena, index, (size_t)rank * sizeof *index);
    } else if (t->staged && w->pass == __builtin_ctz(t->passes)) {
        qn_writer_store(w, t->staged, k->rows.col, result);
    }
}

static bool is_candidate(const qn_row_kernel *k, const qn_value *value)
{
    const qn_row_trace *t = &k->traces[value->id];
    return value->node && !t->scattered && __builtin_popcount(t->passes) > 1 &&
           qn_node_cost(value->node) >= DEAR;
}

/* Is it still needed in a pass after its first, when all candidates are staged? */
static bool needed_again(const qn_row_kernel *k, const qn_value *value)
{
    const unsigned later = k->traces[value->id].passes & (k->traces[value->id].passes - 1);
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_node *node = k->group->nodes[i];
        const qn_row_trace *t = &k->traces[node->results[0].id];
        bool reads = false;
        for (int o = 0; o < node->n_operands; o++)
            reads |= node->operands[o] == value;
        if (!reads)
            continue;
        /* passes in which the reader computes: a reduction in one, a staged value in its first */
        unsigned passes = t->passes;
        if (node->op == QN_OP_REDUCE)
            passes = 1u << qn_row_level(k, node->operands[0]);
        else if (is_candidate(k, &node->results[0]))
            passes &= ~(passes - 1);
        if (passes & later)
            return true;
    }
    for (int i = 0; i < k->group->n_outputs; i++)
        if (k->group->outputs[i] == value && (later >> qn_row_level(k, value) & 1))
            return true;
    return false;
}

void qn_row_stage(qn_row_kernel *k)
{
    const int64_t columns = k->rows.n_cols->max;
    int64_t total = 0;
    const qn_machine *machine = k->lowering->options->machine;
    const bool gpu = machine && machine->gpu;
    const int64_t most = gpu ? GPU_STAGE_TOTAL : QN_ROW_STAGE_BYTES;
    const int64_t most_of_all = gpu ? GPU_STAGE_TOTAL : STAGE_TOTAL;
    if (k->rows_are_lanes)
        return;
    for (int i = 0; i < k->group->n_nodes; i++) {
        const qn_value *value = &k->group->nodes[i]->results[0];
        if (!is_candidate(k, value) || !needed_again(k, value))
            continue;
        const int64_t size = (int64_t)qn_dtype_bytes(value->type.dtype);
        if (columns > most / size || total + columns * size > most_of_all)
            continue;
        total += columns * size;
        k->traces[value->id].staged =
            qn_kernel_add_local(k->w->kernel, "row", qn_dtype_carrier(value->type.dtype), columns);
    }
}

bool qn_row_stages(const qn_row_kernel *k)
{
    for (int i = 0; i < k->group->n_nodes; i++)
        if (k->traces[k->group->nodes[i]->results[0].id].staged)
            return true;
    return false;
}
