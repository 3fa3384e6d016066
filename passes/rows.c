/* The geometry of a ROWS group. See rows.h. */
#include "passes/rows.h"

void qn_rows_set(qn_ispace *space, qn_rows *rows, int n_dims, const qn_dim *dims, const qn_dim *vars,
                 const bool *is_row)
{
    qn_dim row_vars[QN_MAX_RANK], row_extents[QN_MAX_RANK];
    int n_row_vars = 0;
    rows->n_rows = rows->n_cols = qn_dim_const(space->dims, 1);
    rows->n_col_vars = 0;
    for (int i = 0; i < n_dims; i++) {
        if (is_row[i]) {
            row_vars[n_row_vars] = vars[i];
            row_extents[n_row_vars++] = dims[i];
            rows->n_rows = qn_dim_mul(space->dims, rows->n_rows, dims[i]);
        } else {
            rows->col_vars[rows->n_col_vars] = vars[i];
            rows->col_extents[rows->n_col_vars++] = dims[i];
            rows->n_cols = qn_dim_mul(space->dims, rows->n_cols, dims[i]);
        }
    }
    rows->row = qn_ix_linear(space, n_row_vars, row_extents, row_vars);
    rows->col = qn_ix_linear(space, rows->n_col_vars, rows->col_extents, rows->col_vars);
}

bool qn_rows_operand(qn_ispace *space, const qn_rows *rows, const qn_node *node, const qn_dim *index,
                     qn_dim *out_index)
{
    const qn_type *type = &node->operands[0]->type;
    qn_dim dims[QN_MAX_RANK], kept[QN_MAX_RANK], reduced[QN_MAX_RANK], reduced_index[QN_MAX_RANK];
    int n_axes, n_kept = 0, n_reduced = 0;
    const int64_t *axes = qn_attr_ints(node, QN_ATTR_AXES, &n_axes);
    qn_ispace_dims(space, type, dims);
    qn_dim n_rows = qn_dim_const(space->dims, 1), n_cols = n_rows;
    for (int i = 0, k = 0; i < type->rank; i++)
        if (k < n_axes && axes[k] == i) {
            reduced[n_reduced++] = dims[i];
            n_cols = qn_dim_mul(space->dims, n_cols, dims[i]);
            k++;
        } else {
            kept[n_kept++] = dims[i];
            n_rows = qn_dim_mul(space->dims, n_rows, dims[i]);
        }
    if (n_rows != rows->n_rows || n_cols != rows->n_cols ||
        qn_ix_linear(space, n_kept, kept, index) != rows->row)
        return false;
    qn_ix_reshape(space, rows->n_col_vars, rows->col_extents, rows->col_vars, n_reduced, reduced,
                  reduced_index);
    for (int i = 0, k = 0, r = 0; i < type->rank; i++)
        out_index[i] = r < n_axes && axes[r] == i ? reduced_index[r++] : index[k++];
    return true;
}
