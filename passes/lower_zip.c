/* LOOP groups whose last axis has two elements, one behind the other in lines that lie apart: pairs of rows side by side, as products of
 * bfloat16 want them, or two planes as one of pairs.
 *
 *   for each block of 16 elements of the axis before (as many as a vector has lanes)
 *     16 elements with the first number of a pair, vectorized, then 16 with the second -> local, in the first cache
 *     both shuffled into 32 that follow each other, stored
 *
 * By itself the last axis would be a vector of two lanes, gathered from two lines. */
#include "passes/lower.h"

enum { TWO = 2 };

static int lanes_of(const qn_lowering *l)
{
    const qn_machine *machine = l->options->machine;
    return machine && !machine->gpu ? machine->vector_bytes / 4 : 0;
}

bool qn_nest_zips(qn_writer *r, const qn_group *group, const qn_nest *nest, const qn_dim *vars)
{
    const int lanes = lanes_of(r->lowering), last = nest->n - 1, before = last - 1;
    if (lanes < 4 || last < 1 || nest->n == QN_MAX_RANK || group->n_outputs != 1 ||
        !qn_dim_is(nest->dims[last], TWO) || nest->whole[last] || !qn_dim_is_const(nest->dims[before]) ||
        nest->whole[before] || nest->dims[before]->value % lanes != 0 ||
        qn_dtype_bytes(group->outputs[0]->type.dtype) > 4)
        return false;
    bool crosses = false;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        qn_dim along, rest;
        if (!a->buffer)
            continue;
        if (a->store) {
            if (!qn_ix_affine(&r->space, a->linear, vars[last], &along, &rest) || !qn_dim_is(along, 1) ||
                !qn_ix_affine(&r->space, a->linear, vars[before], &along, &rest) || !qn_dim_is(along, TWO))
                return false;
        } else {
            crosses |= qn_lower_crosses(r, a->linear, vars[before], vars[last], true);
        }
    }
    return crosses;
}

/* Vectors of the two in the block, element by element by turns, to the output from `at` on. */
static void store_zipped(qn_writer *w, qn_kbuffer *block, qn_kbuffer *to, qn_kvalue *at, int lanes)
{
    enum { MOST = 64 };
    qn_kbuilder *b = &w->b;
    int mask[MOST];
    qn_kvalue *halves[TWO];
    const int all = TWO * lanes,
              width = w->lowering->options->machine->vector_bytes / (int)qn_dtype_bytes(to->dtype),
              n = all < width ? all : width;
    for (int j = 0; j < TWO; j++)
        halves[j] = qn_kb_load(b, block, qn_kb_index(b, j * lanes), lanes);
    for (int from = 0; from < all; from += n) {
        for (int i = 0; i < n; i++)
            mask[i] = (from + i) / TWO + (from + i) % TWO * lanes;
        qn_kb_store(b, to, qn_kb_iadd(b, at, qn_kb_index(b, from)),
                    qn_kb_shuffle(b, halves[0], halves[1], n, mask), NULL);
    }
}

qn_dim qn_write_zipped(qn_writer *w, const qn_group *group, const qn_nest *nest, int64_t grain)
{
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_value *value = group->outputs[0];
    const int lanes = lanes_of(w->lowering), before = nest->n - 2, n = before + 1;
    qn_nest cut = *nest; /* the axis before the last is one of blocks and one of a block's elements */
    cut.dims[before] = qn_dim_const(w->lowering->program->dims, nest->dims[before]->value / lanes);
    cut.dims[n] = qn_dim_const(w->lowering->program->dims, lanes);
    cut.dims[n + 1] = nest->dims[n];
    cut.first[n + 1] = cut.whole[n + 1] = 0;
    cut.n++;
    qn_dim extents[QN_MAX_RANK], index[QN_MAX_RANK], at[QN_MAX_RANK], to[QN_MAX_RANK],
        all = qn_dim_const(dims, 1);
    for (int i = 0; i < n; i++) {
        extents[i] = qn_ispace_import(&w->space, cut.dims[i]);
        all = qn_dim_mul(dims, all, extents[i]);
    }
    const int64_t blocks = grain / (TWO * lanes) > 1 ? grain / (TWO * lanes) : 1; /* of a task */
    const qn_dim step = qn_ispace_var(&w->space, all, false),
                 element = qn_ispace_var(&w->space, qn_dim_const(dims, lanes), false);
    qn_ix_split(&w->space, step, n, extents, index);
    qn_ispace_dims(&w->space, &value->type, to);
    qn_kbuffer *block = qn_kernel_add_local(w->kernel, "pairs", value->type.dtype, TWO * lanes);
    qn_kvalue *low = qn_kb_imul(b, qn_writer_task(w), qn_kb_index(b, blocks)),
              *high = qn_kb_imin(b, qn_kb_iadd(b, low, qn_kb_index(b, blocks)), qn_writer_index(w, all));
    qn_writer_loop steps = qn_writer_for(w, step, low, high, QN_TAG_SERIAL, 0, NULL, NULL);
    for (int j = 0; j < TWO; j++) {
        index[n] = element;
        index[n + 1] = qn_dim_const(dims, j);
        qn_nest_index(w, &cut, index, &value->type, at);
        w->section++;
        qn_writer_loop elements = qn_writer_for_all(w, element, QN_TAG_VECTOR, 0, NULL, NULL);
        qn_kvalue *place = qn_kb_iadd(b, qn_writer_index(w, element), qn_kb_index(b, (int64_t)j * lanes));
        qn_kb_store(b, block, place, qn_writer_value(w, value, at), NULL);
        qn_writer_end_for(w, &elements, NULL);
    }
    index[n] = index[n + 1] = qn_dim_const(dims, 0);
    qn_nest_index(w, &cut, index, &value->type, at);
    qn_kbuffer *out = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), false, true);
    store_zipped(w, block, out, qn_writer_index(w, qn_ix_linear(&w->space, value->type.rank, to, at)), lanes);
    qn_writer_end_for(w, &steps, NULL);
    return qn_dim_ceildiv(dims, all, qn_dim_const(dims, blocks));
}
