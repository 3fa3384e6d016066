/* Ops that depend on the order or number of elements: sort (of short keys and top_k: lower_opaque_keys.c), non_zero. */
#include <string.h>

#include "passes/lower_opaque.h"

/* ---- sort ---- */

/* Each line along the axis is sorted by a stable bottom-up merge sort of its indices, which go back and forth between two
 * halves of a scratch line; then all operands are read in that order.
 *
 *   half[i] = i
 *   for width = 1, 2, 4, … below n
 *     for low = 0 to n step 2*width       merge [low, low + width) and [low + width, low + 2*width) into the other half
 *       for k = low to high carrying a, b
 *         take b where a is used up, or where b is not and key[b] belongs before key[a] */
typedef struct sorter {
    qn_opaque *o;
    qn_kbuffer *scratch;
    qn_dim n;
    qn_dim line;            /* start of the scratch line */
    qn_dim at[QN_MAX_RANK]; /* of the line; [axis] is free */
    int axis;
    bool descending;
} sorter;

static qn_kvalue *key_at(sorter *s, qn_kvalue *number)
{
    qn_writer *w = &s->o->w;
    qn_dim at[QN_MAX_RANK];
    memcpy(at, s->at, sizeof at);
    at[s->axis] = qn_writer_datum(w, number, s->n);
    return qn_writer_value(w, s->o->node->operands[0], at);
}

/* scratch[line + half + i] as an i64 */
static qn_kvalue *index_at(sorter *s, qn_kvalue *half, qn_kvalue *i, qn_kvalue *mask)
{
    qn_kbuilder *b = &s->o->w.b;
    qn_kvalue *at = qn_kb_iadd(b, qn_kb_iadd(b, qn_writer_index(&s->o->w, s->line), half), i);
    return qn_kb_convert(b, QUERN_I64, qn_kb_load_masked(b, s->scratch, at, 1, mask, NULL));
}

static void merge(sorter *s, qn_kvalue *from, qn_kvalue *to, qn_kvalue *low, qn_kvalue *width)
{
    qn_writer *w = &s->o->w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *n = qn_writer_index(w, s->n);
    qn_kvalue *middle = qn_kb_imin(b, qn_kb_iadd(b, low, width), n);
    qn_kvalue *high = qn_kb_imin(b, qn_kb_iadd(b, middle, width), n);
    qn_kvalue *initial[2] = { low, middle };
    qn_kinst *loop = qn_kb_for(b, low, high, qn_kb_index(b, 1), QN_TAG_SERIAL, 2, initial, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *left = &loop->blocks[0]->arguments[1];
    qn_kvalue *right = &loop->blocks[0]->arguments[2];
    const size_t mark = qn_writer_mark(w);
    qn_kvalue *has_left = qn_kb_compare(b, QN_LT, left, middle),
              *has_right = qn_kb_compare(b, QN_LT, right, high);
    qn_kvalue *index_left = index_at(s, from, left, has_left),
              *index_right = index_at(s, from, right, has_right);
    /* what is masked off is index 0, which every line that is merged has */
    qn_kvalue *key_left = key_at(s, index_left), *key_right = key_at(s, index_right);
    qn_kvalue *before = s->descending ? qn_opaque_above(s->o, key_right, key_left)
                                      : qn_opaque_above(s->o, key_left, key_right);
    qn_kvalue *second = qn_kb_binary(b, QN_OP_OR, qn_kb_unary(b, QN_OP_NOT, has_left),
                                     qn_kb_binary(b, QN_OP_AND, has_right, before));
    qn_kvalue *taken = qn_kb_select(b, second, index_right, index_left);
    qn_kvalue *at = qn_kb_iadd(b, qn_kb_iadd(b, qn_writer_index(w, s->line), to), k);
    qn_kb_store(b, s->scratch, at, qn_kb_convert(b, s->scratch->dtype, taken), NULL);
    qn_kvalue *step = qn_kb_convert(b, QUERN_I64, second), *one = qn_kb_index(b, 1);
    qn_kvalue *const next[2] = { qn_kb_iadd(b, left, qn_kb_isub(b, one, step)), qn_kb_iadd(b, right, step) };
    qn_kb_end_for(b, loop, next);
    qn_writer_forget(w, mark);
}

/* One width; gives nothing where the line is sorted already. */
static void merge_pass(void *user, qn_kvalue *from, qn_kvalue *to, qn_kvalue *width)
{
    sorter *s = user;
    qn_kbuilder *b = &s->o->w.b;
    qn_kvalue *n = qn_writer_index(&s->o->w, s->n);
    qn_kinst *lows =
        qn_kb_for(b, qn_kb_index(b, 0), n, qn_kb_iadd(b, width, width), QN_TAG_SERIAL, 0, NULL, NULL);
    merge(s, from, to, qn_loop_counter(lows), width);
    qn_kb_end_for(b, lows, NULL);
}

qn_status qn_lower_sort(qn_lowering *l, const qn_group *group)
{
    enum { PASSES = 41 }; /* lines are shorter than 2^41 */
    qn_node *node = group->root;
    const qn_type *type = &node->operands[0]->type;
    if (qn_lower_packs_keys(node, l->options))
        return qn_lower_keys(l, group);
    qn_opaque o;
    sorter s = { .o = &o,
                 .axis = (int)qn_attr_int(node, QN_ATTR_AXIS),
                 .descending = qn_attr_bool(node, QN_ATTR_DESCENDING) };
    qn_opaque_begin(&o, l, group);
    qn_writer *w = &o.w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    s.n = qn_ispace_import(&w->space, type->dims[s.axis]);
    const qn_dtype index_dtype = s.n->max <= INT32_MAX ? QUERN_I32 : QUERN_I64;
    const qn_dim two_lines = qn_dim_mul(l->program->dims, qn_dim_const(l->program->dims, 2),
                                        qn_lower_dim(l, qn_type_elements_dim(l->module->dims, type)));
    s.scratch = qn_writer_argument(w, qn_lower_scratch(l, "order", index_dtype, two_lines), true, true);
    const double grain = QN_GRAIN / (8 * (1 + qn_likely_extent(type->dims[s.axis])));
    qn_opaque_nest(&o, type, 1u << s.axis, &nest, axes);
    qn_loops_plan(w, &nest, grain < 1 ? 1 : (int64_t)grain, &loops);
    for (int i = 0; i < type->rank; i++)
        s.at[i] = qn_dim_const(dims, 0);
    for (int i = 0; i < nest.n; i++)
        s.at[axes[i]] = loops.index[i];
    for (int i = 0; i < loops.n; i++)
        open[i] = qn_planned_loop_open(w, &loops.loops[i], QN_TAG_SERIAL);
    qn_dim nest_dims[QN_MAX_RANK];
    for (int i = 0; i < nest.n; i++)
        nest_dims[i] = qn_ispace_import(&w->space, nest.dims[i]);
    s.line = qn_dim_mul(dims, qn_dim_mul(dims, s.n, qn_dim_const(dims, 2)),
                        qn_ix_linear(&w->space, nest.n, nest_dims, loops.index));

    qn_kvalue *n = qn_writer_index(w, s.n);
    const qn_dim i = qn_ispace_var(&w->space, s.n, false);
    qn_writer_loop fill = qn_writer_for_all(w, i, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_writer_store(w, s.scratch, qn_dim_add(dims, s.line, i),
                    qn_kb_convert(b, index_dtype, qn_writer_index(w, i)));
    qn_writer_end_for(w, &fill, NULL);

    int n_passes = 0;
    while (n_passes < PASSES && (int64_t)1 << n_passes < s.n->max)
        n_passes++;
    qn_kvalue *halves[2] = { qn_kb_index(b, 0), n };
    qn_opaque_merge(&o, qn_kb_index(b, 1), n, n_passes, halves, merge_pass, &s);

    const qn_dim j = qn_ispace_var(&w->space, s.n, false);
    qn_writer_loop write = qn_writer_for_all(w, j, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_dim at[QN_MAX_RANK], out[QN_MAX_RANK];
    memcpy(at, s.at, sizeof at);
    memcpy(out, s.at, sizeof out);
    at[s.axis] = qn_writer_datum(w, index_at(&s, halves[0], qn_writer_index(w, j), NULL), s.n);
    out[s.axis] = j;
    for (int k = 0; k < node->n_results; k++)
        qn_writer_store(w, qn_writer_argument(w, qn_lower_buffer(l, &node->results[k]), false, true),
                        qn_opaque_linear(&o, type, out), qn_writer_value(w, node->operands[k], at));
    qn_writer_end_for(w, &write, NULL);
    qn_opaque_close(&o, &loops, open);
    return qn_opaque_end(&o, loops.tasks);
}

/* ---- non_zero ---- */

/* Is the element that the variables are at non-zero? NaN is. */
static qn_kvalue *element_is_set(qn_opaque *o, const qn_dim *at)
{
    qn_kvalue *x = qn_writer_value(&o->w, o->node->operands[0], at);
    return qn_kb_convert(&o->w.b, QUERN_BOOL, x);
}

static int all_axes(qn_opaque *o, const qn_type *type, qn_dim *out_at)
{
    for (int i = 0; i < type->rank; i++)
        out_at[i] = qn_ispace_var(&o->w.space, qn_ispace_import(&o->w.space, type->dims[i]), false);
    return type->rank;
}

static void bind(qn_lowering *l, const char *name, int number, qn_dim symbol)
{
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_BIND);
    step->name = name;
    step->n_buffers = 1;
    step->buffers = QN_NEW_ARRAY(l->arena, int, 1);
    step->buffers[0] = number;
    step->count = qn_lower_dim(l, symbol);
    qn_vec_push(l->arena, &l->bound, step->count->symbol);
    qn_lower_checks(l, l->scope->graph); /* what has the symbol may be too small for what is done with it */
}

/* Two kernels of one task with the symbol bound between them: the first counts, the second writes the indices. */
qn_status qn_lower_non_zero(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    const qn_type *type = &node->operands[0]->type;
    qn_dims *dims = l->program->dims;
    const int count = qn_lower_scratch(l, "count", QUERN_I64, qn_dim_const(dims, 1));
    const qn_dim symbol = qn_attr_dims(node, QN_ATTR_SYMBOL, NULL)[0];
    qn_dim at[QN_MAX_RANK];
    qn_writer_loop loops[QN_MAX_RANK];

    qn_opaque o;
    qn_opaque_begin(&o, l, group);
    int n = all_axes(&o, type, at);
    qn_kvalue *found = qn_kb_index(&o.w.b, 0);
    qn_writer_open_nest(&o.w, n, at, QN_TAG_VECTOR, 1, &found, (qn_kind[]){ QN_SUM }, loops);
    found = qn_kb_binary(&o.w.b, QN_OP_ADD, loops[n > 0 ? n - 1 : 0].carried[0],
                         qn_kb_convert(&o.w.b, QUERN_I64, element_is_set(&o, at)));
    qn_writer_close_nest(&o.w, n, loops, &found);
    qn_writer_store(&o.w, qn_writer_argument(&o.w, count, false, true), qn_dim_const(o.w.space.dims, 0),
                    loops[0].carried[0]);
    QN_TRY(qn_opaque_end(&o, qn_dim_const(o.w.space.dims, 1)));

    bind(l, "count", count, symbol);
    qn_opaque_begin(&o, l, group);
    qn_kbuilder *b = &o.w.b;
    n = all_axes(&o, type, at);
    qn_kbuffer *out = qn_writer_argument(&o.w, qn_lower_buffer(l, &node->results[0]), false, true);
    qn_kvalue *total = qn_writer_index(&o.w, qn_ispace_import(&o.w.space, symbol));
    qn_kvalue *position = qn_kb_index(b, 0);
    qn_writer_open_nest(&o.w, n, at, QN_TAG_SERIAL, 1, &position, NULL, loops);
    position = loops[n > 0 ? n - 1 : 0].carried[0];
    qn_kvalue *set = element_is_set(&o, at);
    for (int i = 0; i < n; i++)
        qn_kb_store(b, out, qn_kb_iadd(b, qn_kb_imul(b, total, qn_kb_index(b, i)), position),
                    qn_writer_index(&o.w, at[i]), set);
    position = qn_kb_iadd(b, position, qn_kb_convert(b, QUERN_I64, set));
    qn_writer_close_nest(&o.w, n, loops, &position);
    return qn_opaque_end(&o, qn_dim_const(o.w.space.dims, 1));
}

/* ---- extent ---- */

qn_status qn_lower_extent(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    int number;
    QN_TRY(qn_lower_operand(l, group, node->operands[0], &number));
    bind(l, qn_ops[node->op].name, number, qn_node_binds(node));
    int *result = &l->scope->buffers[node->results[0].id];
    if (*result < 0)
        *result = number; /* the same number */
    qn_lower_copy(l, number, *result);
    return QUERN_OK;
}
