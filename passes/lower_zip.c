/* LOOP groups whose last axis has two or three elements, one behind the other in lines that lie apart: pairs of rows side by side, as
 * products of bfloat16 want them, planes of colours as pixels; or the same element again, as where an image becomes larger.
 *
 *   for each block of 16 elements of the axis before (as many as a vector has lanes; the last one may have less, or, where masks are dear,
 *   all have a part of them that the axis is whole blocks of)
 *     16 elements with the first number of a pair, vectorized, then 16 with the second -> local, in the first cache
 *     both shuffled into 32 that follow each other, stored
 *
 * By itself the last axis would be a vector of two lanes, gathered from two lines. */
#include <string.h>

#include "passes/lower.h"

enum {
    TWO = 2,
    MOST = 3, /* elements of the last axis */
    LEAST_LANES = 4
};

/* Of a block of elements of an axis of that extent; less than LEAST_LANES: there are none. */
static int lanes_of(const qn_lowering *l, int64_t extent)
{
    const qn_machine *machine = l->options->machine;
    int lanes = machine && !machine->gpu && extent >= LEAST_LANES ? machine->vector_bytes / 4 : 0;
    while (lanes >= LEAST_LANES && !machine->masked && extent % lanes != 0)
        lanes /= 2;
    return lanes;
}

bool qn_nest_may_zip(const qn_nest *nest)
{
    const int last = nest->n - 1;
    return last >= 1 && nest->n < QN_MAX_RANK && !nest->whole[last] && !nest->whole[last - 1] &&
           (qn_dim_is(nest->dims[last], TWO) || qn_dim_is(nest->dims[last], MOST)) &&
           qn_dim_is_const(nest->dims[last - 1]);
}

bool qn_nest_stores_zipped(qn_writer *r, const qn_group *group, const qn_nest *nest, const qn_dim *vars)
{
    const int last = nest->n - 1, before = last - 1;
    const qn_dtype dtype = group->outputs[0]->type.dtype;
    if (group->kind != QN_GROUP_LOOP || group->n_outputs != 1 || qn_dtype_bytes(dtype) > 4 ||
        dtype == QUERN_BOOL || qn_dtype_carrier(dtype) != dtype ||
        lanes_of(r->lowering, nest->dims[before]->value) < LEAST_LANES)
        return false;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        qn_dim along, rest;
        if (a->buffer && a->store &&
            (!qn_ix_affine(&r->space, a->linear, vars[last], &along, &rest) || !qn_dim_is(along, 1) ||
             !qn_ix_affine(&r->space, a->linear, vars[before], &along, &rest) ||
             !qn_dim_is(along, nest->dims[last]->value)))
            return false;
    }
    return true;
}

bool qn_nest_zips(qn_writer *r, const qn_nest *nest, const qn_dim *vars)
{
    const int last = nest->n - 1, before = last - 1;
    bool apart = false;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        qn_dim along, rest;
        if (!a->buffer || a->store)
            continue;
        if (!qn_lower_depends_only_on(r, a->linear, nest->n, vars)) {
            return false; /* short runs from anywhere */
        } else {
            apart |= qn_lower_crosses(r, a->linear, vars[before], vars[last], true) ||
                     (!qn_ix_uses(a->linear, vars[last]) &&
                      qn_ix_affine(&r->space, a->linear, vars[before], &along, &rest) && qn_dim_is(along, 1));
        }
    }
    return apart;
}

typedef struct zipper {
    qn_writer *w;
    const qn_nest *nest;
    qn_value *value;
    qn_kbuffer *block;
    qn_dim *index; /* of the nest's axes; those of the last two are of the block */
    int lanes, count;
} zipper;

void qn_store_zipped(qn_writer *w, qn_kbuffer *block, int count, int lanes, qn_kbuffer *to, qn_kvalue *at,
                     int64_t n)
{
    enum { MOST_LANES = 64 };
    qn_kbuilder *b = &w->b;
    qn_kvalue *parts[MOST];
    const int all = count * lanes;
    int width = w->lowering->options->machine->vector_bytes / (int)qn_dtype_bytes(to->dtype);
    width = count > TWO && width > lanes ? lanes : width < all ? width : all;
    for (int j = 0; j < count; j++)
        parts[j] = qn_kb_load(b, block, qn_kb_index(b, (int64_t)j * lanes), lanes);
    for (int from = 0; from < all && from < n * count; from += width) {
        qn_kvalue *made = parts[0], *some = NULL;
        for (int j = 1; j < count; j++) {
            int mask[MOST_LANES];
            for (int i = 0; i < width; i++) {
                const int part = (from + i) % count, place = (from + i) / count;
                mask[i] = part == j ? lanes + place : j == 1 && part == 0 ? place : i % lanes;
            }
            made = qn_kb_shuffle(b, made, parts[j], width, mask);
        }
        if (from + width > n * count)
            some = qn_kb_compare(b, QN_LT, qn_kb_ramp(b, qn_kb_index(b, from), width),
                                 qn_kb_splat(b, qn_kb_index(b, n * count), width));
        qn_kb_store(b, to, qn_kb_iadd(b, at, qn_kb_index(b, from)), made, some);
    }
}

/* n elements of the axis before the last, from `first` on. */
static void write_block(const zipper *z, qn_dim first, int64_t n)
{
    qn_writer *w = z->w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const int last = z->nest->n - 1;
    const size_t mark = qn_writer_mark(w);
    qn_dim at[QN_MAX_RANK], to[QN_MAX_RANK];
    const qn_dim element = qn_ispace_var(&w->space, qn_dim_const(dims, n), false);
    z->index[last - 1] = qn_dim_add(dims, first, element);
    for (int j = 0; j < z->count; j++) {
        z->index[last] = qn_dim_const(dims, j);
        qn_nest_index(w, z->nest, z->index, &z->value->type, at);
        w->section++;
        /* whole vectors, which are read again at once: what isn't there is masked where it is loaded, not stored */
        qn_writer_loop elements = qn_writer_for(w, element, qn_kb_index(b, 0), qn_kb_index(b, z->lanes),
                                                QN_TAG_VECTOR, 0, NULL, NULL);
        qn_kvalue *place = qn_kb_iadd(b, qn_writer_index(w, element), qn_kb_index(b, (int64_t)j * z->lanes));
        if (n < z->lanes)
            w->mask = qn_kb_compare(b, QN_LT, qn_writer_index(w, element), qn_kb_index(b, n));
        qn_kvalue *value = qn_writer_value(w, z->value, at);
        w->mask = NULL;
        qn_kb_store(b, z->block, place, value, NULL);
        qn_writer_end_for(w, &elements, NULL);
    }
    z->index[last - 1] = first;
    z->index[last] = qn_dim_const(dims, 0);
    qn_nest_index(w, z->nest, z->index, &z->value->type, at);
    qn_ispace_dims(&w->space, &z->value->type, to);
    qn_kbuffer *out = qn_writer_argument(w, qn_lower_buffer(w->lowering, z->value), false, true);
    qn_store_zipped(w, z->block, z->count, z->lanes, out,
                    qn_writer_index(w, qn_ix_linear(&w->space, z->value->type.rank, to, at)), n);
    qn_writer_forget(w, mark);
}

qn_dim qn_write_zipped(qn_writer *w, const qn_group *group, const qn_nest *nest, int64_t grain)
{
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    const int before = nest->n - 2;
    const int64_t extent = nest->dims[before]->value;
    qn_dim index[QN_MAX_RANK];
    zipper z = { .w = w,
                 .nest = nest,
                 .value = group->outputs[0],
                 .index = index,
                 .lanes = lanes_of(w->lowering, extent),
                 .count = (int)nest->dims[before + 1]->value };
    const int64_t lanes = z.lanes, whole = extent / lanes, rest = extent % lanes,
                  blocks = grain / (z.count * lanes); /* of a task */
    z.block = qn_kernel_add_local(w->kernel, "apart", z.value->type.dtype, z.count * lanes);
    qn_nest steps = *nest; /* of all blocks; the axis of one isn't there */
    steps.n = whole + (rest > 0) > 1 ? before + 1 : before;
    steps.dims[before] = qn_dim_const(w->lowering->program->dims, whole + (rest > 0));
    qn_loops loops;
    qn_writer_loop open[QN_MAX_RANK];
    qn_loops_plan(w, &steps, blocks > 1 ? blocks : 1, &loops);
    for (int i = 0; i < loops.n; i++)
        open[i] = qn_planned_loop_open(w, &loops.loops[i], QN_TAG_SERIAL);
    memcpy(index, loops.index, sizeof index);
    const qn_dim full = qn_ispace_var(&w->space, qn_dim_const(dims, whole), false);
    qn_kvalue *step = steps.n > before ? qn_writer_index(w, index[before]) : qn_kb_index(b, 0);
    if (full->kind == QN_DIM_SYMBOL)
        qn_ispace_set(&w->space, full, step);
    const qn_dim first = qn_dim_mul(dims, full, qn_dim_const(dims, lanes));
    if (whole == 0 || rest == 0) {
        write_block(&z, first, whole == 0 ? rest : lanes);
    } else {
        qn_kinst *branch = qn_kb_if(b, qn_kb_compare(b, QN_LT, step, qn_kb_index(b, whole)));
        write_block(&z, first, lanes);
        qn_kb_else(b, branch, 0, NULL);
        write_block(&z, qn_dim_const(dims, whole * lanes), rest);
        qn_kb_end_if(b, branch, 0, NULL);
    }
    for (int i = loops.n - 1; i >= 0; i--)
        qn_writer_end_for(w, &open[i], NULL);
    return loops.tasks;
}
