/* Which way the vectors of a ROWS group go: along the columns of a row, or across rows, where these are neighbours in memory. */
#include "passes/lower_rows.h"

enum {
    SHORT_ROW = 8,    /* columns; shorter ones don't fill a vector */
    OVERLAP_ROWS = 8, /* of a task from which the passes of neighbours are overlapped */
    PAGE_BYTES = 4096,
};

/* Between two passes over short rows everything waits for a sum over lanes: the passes of other rows fill that time. Rows of whole
 * pages lie at the same places of their pages: what is stored to one holds up loads from others that are not aligned. Then it
 * pays only where something dear is computed (layer norm of NumPy's arrays loses a fifth). */
qn_ktag qn_row_tag(const qn_row_kernel *k)
{
    const int64_t size = (int64_t)qn_dtype_bytes(k->group->outputs[0]->type.dtype);
    const qn_dim columns = k->rows.n_cols;
    if (k->rows_are_lanes)
        return QN_TAG_VECTOR;
    if (k->rows_a_task < OVERLAP_ROWS || columns->max > QN_ROW_FAR_BYTES / size)
        return QN_TAG_SERIAL;
    return !qn_dim_divisible(columns, PAGE_BYTES / size) || qn_row_stages(k) ? QN_TAG_OVERLAP : QN_TAG_SERIAL;
}

/* Lanes of the loop over rows; 0: those of a vector. A single sum of each goes over as many vectors at once as cover a few lines of
 * memory: one vector alone would wait for each addition, and take a line of every page. */
int qn_row_lanes(const qn_row_kernel *k)
{
    enum { VECTORS = 4, MOST = 64 };
    const qn_machine *machine = k->lowering->options->machine;
    int n_sums = 0;
    for (int i = 0; i < k->group->n_nodes; i++)
        n_sums += k->group->nodes[i]->op == QN_OP_REDUCE;
    if (!machine || machine->gpu || k->rehearsing || k->in_blocks || n_sums != 1 || k->row_nest.n == 0)
        return 0;
    const qn_dim rows = k->row_nest.dims[k->row_nest.n - 1];
    const int lanes = machine->vector_bytes / 4 * VECTORS;
    return lanes <= MOST && qn_dim_divisible(rows, lanes) ? lanes : 0;
}

/* May the number be another one in another iteration? */
static bool varies(const qn_kvalue *x, int depth)
{
    if (!x || !x->inst || x->inst->n_blocks > 0 || depth == 0)
        return true;
    for (int i = 0; i < x->inst->n_operands; i++)
        if (varies(x->inst->operands[i], depth - 1))
            return true;
    return false;
}

/* Does an address depend on numbers that are not the same in all rows and columns? */
static bool looks_up(const qn_writer *w, qn_dim linear)
{
    enum { DEPTH = 6 };
    for (size_t i = 0; i < w->space.vars.n; i++) {
        const qn_var *var = &w->space.vars.items[i];
        if (var->data && qn_ix_uses(linear, var->symbol) && varies(var->value, DEPTH))
            return true;
    }
    return false;
}

int qn_row_vector_lanes(const qn_row_kernel *k)
{
    const qn_machine *machine = k->lowering->options->machine;
    return machine && !machine->gpu ? machine->vector_bytes / 4 : 0;
}

/* Are neighbouring values of the variable neighbours in memory, from each multiple of `lanes` to the next? Channels in blocks are:
 * floordiv(c, 16)*1024 + mod(c, 16). */
static bool has_blocks(qn_ispace *space, qn_dim linear, qn_dim var, int lanes)
{
    qn_dim coefficient, rest;
    if (lanes < 2 || var->kind != QN_DIM_SYMBOL || !qn_ix_uses(linear, var))
        return false;
    const qn_dim width = qn_dim_const(space->dims, lanes);
    const qn_dim block =
        qn_ispace_var(space, qn_dim_ceildiv(space->dims, qn_ispace_var_of(space, var)->extent, width), false);
    const qn_dim lane = qn_ispace_var(space, width, false);
    qn_dim *values = QN_NEW_ARRAY(space->arena, qn_dim, var->symbol + 1);
    values[var->symbol] = qn_dim_add(space->dims, qn_dim_mul(space->dims, block, width), lane);
    const qn_dim there = qn_dim_substitute(space->dims, linear, values, var->symbol + 1);
    return qn_ix_affine(space, there, lane, &coefficient, &rest) && qn_dim_is(coefficient, 1);
}

/* How many accesses have neighbours in memory for neighbouring values of the variable, within blocks of `lanes` at least. What is
 * looked up counts as several: in the other direction each lane has a place of its own. */
static int contiguous_along(qn_writer *w, qn_dim var, int n_cols, const qn_dim *col_vars, int lanes,
                            bool *in_blocks)
{
    enum { LOOKUP = 8 };
    int n = 0;
    for (size_t i = 0; i < w->accesses.n; i++) {
        qn_dim coefficient, rest;
        const qn_access *a = &w->accesses.items[i];
        const bool found = looks_up(w, a->linear);
        bool each_column = n_cols == 0 || found;
        for (int k = 0; k < n_cols; k++)
            each_column |= qn_ix_uses(a->linear, col_vars[k]);
        if (!a->buffer || !each_column || a->buffer->space != QN_SPACE_ARGUMENT)
            continue;
        const bool affine = qn_ix_affine(&w->space, a->linear, var, &coefficient, &rest);
        if (affine ? !qn_dim_is(coefficient, 1) : !has_blocks(&w->space, a->linear, var, lanes))
            continue;
        n += found ? LOOKUP : 1;
        *in_blocks |= !affine;
    }
    return n;
}

bool qn_row_choose_lanes(qn_row_kernel *k, qn_writer *rehearsal, const qn_nest *rows, const qn_nest *cols,
                         const qn_dim *row_vars, const qn_dim *col_vars)
{
    bool ignored = false;
    if (rows->n == 0 || cols->n == 0)
        return rows->n > 0;
    const qn_nest *merged = &k->col_nest; /* 7 x 7 that lie side by side are 49 */
    const bool is_short = merged->dims[merged->n - 1]->max < SHORT_ROW;
    const int n_cols = is_short ? 0 : cols->n; /* what a row has once counts where it is short */
    const int along_rows = contiguous_along(rehearsal, row_vars[rows->n - 1], n_cols, col_vars,
                                            qn_row_vector_lanes(k), &k->in_blocks);
    const int along_cols = contiguous_along(rehearsal, col_vars[cols->n - 1], n_cols, col_vars, 0, &ignored);
    return along_rows != along_cols ? along_rows > along_cols : is_short;
}
