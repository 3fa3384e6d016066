/* What follows a product, over a block of its sums that is in the first cache: see block.h. */
#include "passes/block.h"

/* The product at an index inside the block: only ever asked at (row, col). */
static qn_kvalue *fetch_sum(qn_writer *w, void *user, const qn_value *value, const qn_dim *index)
{
    const qn_block *b = user;
    (void)value, (void)index;
    qn_kvalue *row = qn_kb_isub(&w->b, qn_writer_index(w, b->row), b->first_row);
    qn_kvalue *col = qn_kb_isub(&w->b, qn_writer_index(w, b->col), b->first_col);
    qn_kvalue *start = qn_kb_imul(&w->b, row, qn_kb_index(&w->b, b->width));
    if (b->first_sum)
        start = qn_kb_iadd(&w->b, b->first_sum, start);
    return qn_kb_load(&w->b, b->sums, qn_kb_iadd(&w->b, start, col), 1);
}

void qn_block_open(qn_block *b, qn_writer *w, const qn_group *group, int64_t width, int64_t rows,
                   qn_kbuffer **out_x, qn_kbuffer **out_y)
{
    qn_node *root = group->root;
    qn_value *x = root->operands[0], *y = root->operands[1], *product = &root->results[0];
    const int n_batch = (int)qn_attr_int(root, QN_ATTR_BATCH_DIMS);
    *b = (qn_block){ .w = w, .group = group, .rank = product->type.rank, .width = width };
    *out_x = qn_writer_argument(w, qn_lower_buffer(w->lowering, x), true, false);
    *out_y = qn_writer_argument(w, qn_lower_buffer(w->lowering, y), true, false);
    qn_writer_note_load(w, *out_x);
    qn_writer_note_load(w, *out_y);
    for (int i = 0; i < group->n_inputs; i++) /* x may be read by what follows, too */
        if (group->inputs[i] != y)
            qn_writer_bind_input(w, group->inputs[i]);
    qn_dims *dims = w->space.dims;
    qn_ispace_dims(&w->space, &product->type, b->dims);
    b->batch = b->m = qn_dim_const(dims, 1);
    for (int i = 0; i < b->rank - 1; i++) {
        qn_dim *to = i < n_batch ? &b->batch : &b->m;
        *to = qn_dim_mul(dims, *to, b->dims[i]);
    }
    b->n = b->dims[b->rank - 1];
    b->row = qn_ispace_var(&w->space, qn_dim_mul(dims, b->batch, b->m), false);
    b->col = qn_ispace_var(&w->space, b->n, false);
    b->n_value = qn_writer_index(w, b->n);
    b->whole = qn_dim_divisible(b->n, width);
    b->sums = qn_kernel_add_local(w->kernel, "sums", product->type.dtype, rows * width);
    qn_writer_bind(w, product, fetch_sum, b);
}

void qn_block_finish(qn_block *b)
{
    qn_block_finish_rows(b, b->first_row, qn_kb_iadd(&b->w->b, b->first_row, b->n_rows));
}

void qn_block_finish_rows(qn_block *b, qn_kvalue *low, qn_kvalue *high)
{
    qn_writer *w = b->w;
    qn_kbuilder *kb = &w->b;
    qn_dim index[QN_MAX_RANK];
    qn_ix_split(&w->space, b->row, b->rank - 1, b->dims, index);
    index[b->rank - 1] = b->col;
    qn_kvalue *past_col = qn_kb_iadd(kb, b->first_col, qn_kb_index(kb, b->width));
    if (!b->whole)
        past_col = qn_kb_imin(kb, past_col, b->n_value);
    qn_writer_loop by_row = qn_writer_for(w, b->row, low, high, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop by_col = qn_writer_for(w, b->col, b->first_col, past_col, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store_outputs(w, b->group, b->rank, b->dims, index);
    qn_writer_end_for(w, &by_col, NULL);
    qn_writer_end_for(w, &by_row, NULL);
}
