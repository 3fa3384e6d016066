/* Ops with kernels of their own: who writes which, and what they share. */
#include "passes/lower_opaque.h"

static const struct {
    qn_op op;
    qn_status (*lower)(qn_lowering *l, const qn_group *group);
} ops[] = {
    { QN_OP_DYNAMIC_UPDATE_SLICE, qn_lower_dynamic_update_slice },
    { QN_OP_GATHER_PACKED, qn_lower_gather_packed },
    { QN_OP_SCATTER_ND, qn_lower_scatter_nd },
    { QN_OP_SCATTER_ELEMENTS, qn_lower_scatter_elements },
    { QN_OP_SELECT_AND_SCATTER, qn_lower_select_and_scatter },
    { QN_OP_CUMULATIVE, qn_lower_cumulative },
    { QN_OP_SORT, qn_lower_sort },
    { QN_OP_TOP_K, qn_lower_keys },
    { QN_OP_NON_ZERO, qn_lower_non_zero },
    { QN_OP_EXTENT, qn_lower_extent },
    { QN_OP_REQUIRE, qn_lower_extent }, /* see lower_check.c */
    { QN_OP_SUPPRESS, qn_lower_suppress },
    { QN_OP_ALL_REDUCE, qn_lower_collective },
    { QN_OP_ALL_GATHER, qn_lower_collective },
    { QN_OP_REDUCE_SCATTER, qn_lower_collective },
    { QN_OP_BROADCAST_RANK, qn_lower_collective },
    { QN_OP_RANK, qn_lower_collective },
    { QN_OP_TEXT_CONCAT, qn_lower_text },
    { QN_OP_TEXT_CASE, qn_lower_text },
    { QN_OP_TEXT_COUNT, qn_lower_text },
    { QN_OP_TEXT_SPLIT, qn_lower_text },
    { QN_OP_TEXT_MATCH, qn_lower_text },
    { QN_OP_TEXT_PARSE, qn_lower_text },
    { QN_OP_TEXT_PRINT, qn_lower_text },
};

qn_status qn_lower_opaque(qn_lowering *l, const qn_group *group)
{
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (ops[i].op == group->root->op)
            return ops[i].lower(l, group);
    return qn_error(l->diags, QUERN_ERROR_UNSUPPORTED, &group->root->loc, "%s can't be compiled yet",
                    qn_ops[group->root->op].name);
}

/* ---- shared ---- */

qn_status qn_lower_into(qn_lowering *l, const qn_group *group, qn_value *value, int buffer)
{
    for (int i = 0; i < group->n_inputs; i++)
        if (group->inputs[i] == value) {
            qn_lower_copy(l, qn_lower_buffer(l, value), buffer);
            return QUERN_OK;
        }
    /* made from nothing: a loop that fills the buffer, as if that were where the value is */
    qn_value *memory = value;
    while (memory->node->op == QN_OP_RESHAPE)
        memory = memory->node->operands[0];
    const qn_group fill = { .kind = QN_GROUP_LOOP,
                            .root = memory->node,
                            .n_nodes = 1,
                            .nodes = &memory->node,
                            .n_outputs = 1,
                            .outputs = &memory,
                            .n_dims = memory->type.rank,
                            .dims = memory->type.dims };
    int *place = &l->scope->buffers[memory->id];
    const int elsewhere = *place;
    *place = buffer;
    const qn_status status = qn_lower_loop(l, &fill);
    *place = elsewhere;
    return status;
}

qn_status qn_lower_operand(qn_lowering *l, const qn_group *group, qn_value *operand, int *out)
{
    for (int i = 0; i < group->n_inputs; i++)
        if (group->inputs[i] == operand) {
            *out = qn_lower_buffer(l, operand);
            return QUERN_OK;
        }
    const qn_dim elements = qn_lower_dim(l, qn_type_elements_dim(l->module->dims, &operand->type));
    *out = qn_lower_scratch(l, "", operand->type.dtype, elements);
    return qn_lower_into(l, group, operand, *out);
}

/* Does the kernel read this input? Not where the input only is what the result starts as, by a copy before: the kernel writes a
 * part of the result, and a state may be updated in place. Scatters check their indices: a run that fails leaves the state. */
static bool reads(const qn_group *group, const qn_value *input)
{
    const bool starts = group->root->op == QN_OP_DYNAMIC_UPDATE_SLICE;
    for (int i = 0; i < group->n_nodes; i++)
        for (int k = 0; k < group->nodes[i]->n_operands; k++)
            if (group->nodes[i]->operands[k] == input &&
                !(starts && group->nodes[i] == group->root && k == 0))
                return true;
    return false;
}

void qn_opaque_begin(qn_opaque *o, qn_lowering *l, const qn_group *group)
{
    o->arena = qn_arena_new();
    o->l = l;
    o->group = group;
    o->node = group->root;
    qn_writer_init(&o->w, l, qn_group_kernel_name(group, o->arena), o->arena);
    for (int i = 0; i < group->n_inputs; i++)
        if (reads(group, group->inputs[i]))
            qn_writer_bind_input(&o->w, group->inputs[i]);
}

qn_status qn_opaque_end(qn_opaque *o, qn_dim tasks)
{
    const qn_status status = qn_writer_finish(&o->w, tasks, qn_group_step_name(o->group, o->l->arena));
    qn_arena_free(o->arena);
    return status;
}

void qn_opaque_nest(const qn_opaque *o, const qn_type *type, unsigned without, qn_nest *out_nest,
                    int *out_axes)
{
    out_nest->n = 0;
    for (int i = 0; i < type->rank; i++)
        if (!(without >> i & 1) && !qn_dim_is(type->dims[i], 1)) {
            out_axes[out_nest->n] = i;
            out_nest->dims[out_nest->n++] = qn_lower_dim(o->l, type->dims[i]);
        }
}

void qn_opaque_open(qn_opaque *o, const qn_nest *nest, int64_t grain, qn_loops *out_loops,
                    qn_writer_loop *out_open)
{
    qn_loops_plan(&o->w, nest, grain, out_loops);
    for (int i = 0; i < out_loops->n; i++)
        out_open[i] = qn_planned_loop_open(&o->w, &out_loops->loops[i],
                                           i == out_loops->n - 1 ? QN_TAG_VECTOR : QN_TAG_SERIAL);
}

void qn_opaque_close(qn_opaque *o, const qn_loops *loops, qn_writer_loop *open)
{
    for (int i = loops->n - 1; i >= 0; i--)
        qn_writer_end_for(&o->w, &open[i], NULL);
}

qn_dim qn_opaque_linear(qn_opaque *o, const qn_type *type, const qn_dim *index)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&o->w.space, type, dims);
    return qn_ix_linear(&o->w.space, type->rank, dims, index);
}

qn_kvalue *qn_opaque_above(qn_opaque *o, qn_kvalue *x, qn_kvalue *y)
{
    qn_kbuilder *b = &o->w.b;
    qn_kvalue *above = qn_kb_compare(b, QN_GT, x, y);
    if (!qn_dtype_is_float(x->type.dtype))
        return above;
    qn_kvalue *number = qn_kb_unary(b, QN_OP_NOT, qn_kb_unary(b, QN_OP_IS_NAN, y));
    qn_kvalue *nan = qn_kb_binary(b, QN_OP_AND, qn_kb_unary(b, QN_OP_IS_NAN, x), number);
    return qn_kb_binary(b, QN_OP_OR, above, nan);
}

void qn_opaque_merge(qn_opaque *o, qn_kvalue *width, qn_kvalue *count, int n_passes, qn_kvalue **halves,
                     void (*pass)(void *user, qn_kvalue *from, qn_kvalue *to, qn_kvalue *width), void *user)
{
    qn_kbuilder *b = &o->w.b;
    qn_kvalue *state[3] = { width, halves[0], halves[1] };
    qn_kinst *passes = qn_kb_carry(b, qn_kb_index(b, 0), qn_kb_index(b, n_passes), qn_kb_index(b, 1),
                                   QN_TAG_SERIAL, 3, state, NULL);
    const size_t mark = qn_writer_mark(&o->w);
    qn_kinst *more = qn_kb_if(b, qn_kb_compare(b, QN_LT, state[0], count));
    pass(user, state[1], state[2], state[0]);
    qn_kb_else(b, more, 3, (qn_kvalue *[]){ qn_kb_iadd(b, state[0], state[0]), state[2], state[1] });
    qn_kb_end_if(b, more, 3, state);
    qn_writer_forget(&o->w, mark);
    for (int i = 0; i < 3; i++)
        state[i] = &more->results[i];
    qn_kb_end_carry(b, passes, state);
    halves[0] = state[1];
    halves[1] = state[2];
}
