/* LOOP groups that transpose: some operand is read across the lines that the outputs are written along.
 *
 *   for each block of 16 x 16 elements (as many as a vector has lanes)
 *     16 vectors along the operand's lines, transposed in registers     -> local, in the first cache
 *     for each row of the block
 *       16 elements of the outputs, vectorized; what was transposed comes from the local block
 *
 * An element that is fetched by itself, or gathered, costs as much as a vector; this takes four shuffles for 16 elements. */
#include <string.h>

#include "passes/lower.h"

enum { MAX_STAGED = 6 };

typedef struct staged { /* an operand's block */
    const qn_kbuffer *from;
    qn_dim linear;
    qn_kbuffer *block;
} staged;

typedef struct transposer {
    int lanes, n;
    qn_dim row, column;                  /* variables: the last two axes */
    qn_kvalue *first_row, *first_column; /* of the block */
    qn_kblock *ahead;                    /* code that runs before the block's elements */
    staged staged[MAX_STAGED];
} transposer;

bool qn_lower_crosses(qn_writer *w, qn_dim linear, qn_dim row, qn_dim column, bool along_row)
{
    enum { FAR = 16 };
    qn_dim factor, rest;
    if (row->kind != QN_DIM_SYMBOL || column->kind != QN_DIM_SYMBOL ||
        !qn_ix_affine(&w->space, linear, column, &factor, &rest) || factor->min < FAR)
        return false;
    return !along_row || (qn_ix_affine(&w->space, linear, row, &factor, &rest) && qn_dim_is(factor, 1));
}

bool qn_transposes_in_blocks(const qn_lowering *l, const qn_nest *nest)
{
    const qn_machine *machine = l->options->machine;
    const int64_t lanes = machine && !machine->gpu ? machine->vector_bytes / 4 : 0;
    if (nest->n < 2 || lanes < 4 || lanes > QN_TRANSPOSE_LANES)
        return false;
    for (int i = nest->n - 2; i < nest->n; i++)
        if (!qn_dim_is_const(nest->dims[i]) || nest->dims[i]->value % lanes != 0)
            return false;
    return true;
}

/* Each round is a perfect shuffle of all elements, row i with row i + lanes / 2; after log2(lanes) of them rows are columns. */
void qn_kb_transpose(qn_kbuilder *b, int lanes, qn_kvalue **rows)
{
    int low[QN_TRANSPOSE_LANES], high[QN_TRANSPOSE_LANES];
    for (int i = 0; i < lanes; i++) {
        low[i] = i / 2 + i % 2 * lanes;
        high[i] = low[i] + lanes / 2;
    }
    for (int round = 1; round < lanes; round *= 2) {
        qn_kvalue *next[QN_TRANSPOSE_LANES];
        for (int i = 0; i < lanes / 2; i++) {
            next[2 * i] = qn_kb_shuffle(b, rows[i], rows[i + lanes / 2], lanes, low);
            next[2 * i + 1] = qn_kb_shuffle(b, rows[i], rows[i + lanes / 2], lanes, high);
        }
        memcpy(rows, next, sizeof next);
    }
}

/* The operand's block, transposed, before the elements of the block that is being written. */
static qn_kbuffer *stage(qn_writer *w, const transposer *t, qn_kbuffer *from, qn_dim linear)
{
    qn_kbuilder *b = &w->b;
    qn_kblock *const cursor = b->block;
    qn_var *row = qn_ispace_var_of(&w->space, t->row), *column = qn_ispace_var_of(&w->space, t->column);
    qn_kvalue *const at_row = row->value, *const at_column = column->value, *rows[QN_TRANSPOSE_LANES];
    qn_kbuffer *block = qn_kernel_add_local(w->kernel, "block", from->dtype, (int64_t)t->lanes * t->lanes);
    b->block = t->ahead;
    row->value = t->first_row;
    for (int i = 0; i < t->lanes; i++) {
        column->value = qn_kb_iadd(b, t->first_column, qn_kb_index(b, i));
        rows[i] = qn_kb_load(b, from, qn_writer_index(w, linear), t->lanes);
    }
    qn_kb_transpose(b, t->lanes, rows);
    for (int i = 0; i < t->lanes; i++)
        qn_kb_store(b, block, qn_kb_index(b, (int64_t)i * t->lanes), rows[i], NULL);
    b->block = cursor;
    row->value = at_row;
    column->value = at_column;
    return block;
}

/* qn_writer.load: loads across lines come from blocks. */
static qn_kvalue *load(qn_writer *w, void *user, qn_kbuffer *from, qn_dim linear)
{
    transposer *t = user;
    if (w->mask || qn_dtype_bytes(from->dtype) != 4 || !qn_lower_crosses(w, linear, t->row, t->column, true))
        return NULL;
    int i = 0;
    while (i < t->n && (t->staged[i].from != from || t->staged[i].linear != linear))
        i++;
    if (i == MAX_STAGED)
        return NULL;
    if (i == t->n)
        t->staged[t->n++] = (staged){ from, linear, stage(w, t, from, linear) };
    qn_kbuilder *b = &w->b;
    qn_kvalue *row = qn_kb_isub(b, qn_writer_index(w, t->row), t->first_row);
    qn_kvalue *column = qn_kb_isub(b, qn_writer_index(w, t->column), t->first_column);
    return qn_kb_load(b, t->staged[i].block,
                      qn_kb_iadd(b, qn_kb_imul(b, row, qn_kb_index(b, t->lanes)), column), 1);
}

static void one_block(qn_writer *w, transposer *t, const qn_group *group, qn_dim (*at)[QN_MAX_RANK])
{
    qn_kbuilder *b = &w->b;
    qn_kvalue *lanes = qn_kb_index(b, t->lanes), *past_row = qn_kb_iadd(b, t->first_row, lanes),
              *past_column = qn_kb_iadd(b, t->first_column, lanes);
    /* a loop of one step holds a place for what is found to be staged; nothing that it needs comes behind it */
    qn_kinst *once =
        qn_kb_for(b, qn_kb_index(b, 0), qn_kb_index(b, 1), qn_kb_index(b, 1), QN_TAG_SERIAL, 0, NULL, NULL);
    t->ahead = once->blocks[0];
    t->n = 0;
    qn_kb_end_for(b, once, NULL);
    w->load = load;
    w->load_user = t;
    qn_writer_loop rows = qn_writer_for(w, t->row, t->first_row, past_row, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop columns =
        qn_writer_for(w, t->column, t->first_column, past_column, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_loop_element(w, group, at);
    qn_writer_end_for(w, &columns, NULL);
    qn_writer_end_for(w, &rows, NULL);
    w->load = NULL;
}

qn_dim qn_write_transposed(qn_writer *w, const qn_group *group, const qn_nest *nest, int64_t grain)
{
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    transposer *t = QN_NEW(w->arena, transposer);
    t->lanes = w->lowering->options->machine->vector_bytes / 4;
    qn_dim extents[QN_MAX_RANK], index[QN_MAX_RANK], outer = qn_dim_const(dims, 1);
    const int n_outer = nest->n - 2;
    for (int i = 0; i < nest->n; i++)
        extents[i] = qn_ispace_import(&w->space, nest->dims[i]);
    for (int i = 0; i < n_outer; i++)
        outer = qn_dim_mul(dims, outer, extents[i]);
    const int64_t n_rows = extents[n_outer]->value, n_columns = extents[n_outer + 1]->value;
    /* a task: some rows of one step of the outer axes, or some steps of them */
    int64_t rows = grain / n_columns / t->lanes * t->lanes;
    rows = rows < t->lanes ? t->lanes : rows > n_rows ? n_rows : rows;
    const int64_t pieces = (n_rows + rows - 1) / rows,
                  steps = pieces > 1 || grain < n_rows * n_columns ? 1 : grain / (n_rows * n_columns);
    const qn_dim parts = qn_dim_ceildiv(dims, outer, qn_dim_const(dims, steps));
    const qn_dim step = qn_ispace_var(&w->space, outer, false);
    qn_ix_split(&w->space, step, n_outer, extents, index);
    t->row = index[n_outer] = qn_ispace_var(&w->space, extents[n_outer], false);
    t->column = index[n_outer + 1] = qn_ispace_var(&w->space, extents[n_outer + 1], false);
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)group->n_outputs, sizeof *at);
    for (int i = 0; i < group->n_outputs; i++)
        qn_nest_index(w, nest, index, &group->outputs[i]->type, at[i]);

    qn_kvalue *task = qn_kb_task(b), *lanes = qn_kb_index(b, t->lanes), *all = qn_kb_index(b, n_rows);
    qn_kvalue *low = qn_kb_imul(b, qn_kb_imod(b, task, qn_kb_index(b, pieces)), qn_kb_index(b, rows));
    qn_kvalue *high = qn_kb_imin(b, qn_kb_iadd(b, low, qn_kb_index(b, rows)), all);
    qn_kvalue *from = qn_kb_imul(b, qn_kb_idiv(b, task, qn_kb_index(b, pieces)), qn_kb_index(b, steps));
    qn_kvalue *to = qn_kb_imin(b, qn_kb_iadd(b, from, qn_kb_index(b, steps)), qn_writer_index(w, outer));
    qn_writer_loop by_step = qn_writer_for(w, step, from, to, QN_TAG_SERIAL, 0, NULL, NULL);
    for (int i = 0; i < group->n_outputs; i++)
        qn_writer_prepare(w, group->outputs[i], at[i]);
    qn_kinst *by_column =
        qn_kb_for(b, qn_kb_index(b, 0), qn_kb_index(b, n_columns), lanes, QN_TAG_SERIAL, 0, NULL, NULL);
    t->first_column = &by_column->blocks[0]->arguments[0];
    qn_kinst *by_row = qn_kb_for(b, low, high, lanes, QN_TAG_SERIAL, 0, NULL, NULL);
    t->first_row = &by_row->blocks[0]->arguments[0];
    one_block(w, t, group, at);
    qn_kb_end_for(b, by_row, NULL);
    qn_kb_end_for(b, by_column, NULL);
    qn_writer_end_for(w, &by_step, NULL);
    return qn_dim_mul(dims, parts, qn_dim_const(dims, pieces));
}
