/* A kernel being written: its arguments and parameters, loops, index expressions, memory accesses. See lower.h. */
#include <string.h>

#include "passes/lower.h"

enum { AHEAD_BYTES = 1 << 20, CALLERS_AHEAD_BYTES = 256 << 10, PAST_CACHES_BYTES = 32 << 20 };

void qn_writer_init(qn_writer *w, qn_lowering *l, const char *name, qn_arena *scratch)
{
    memset(w, 0, sizeof *w);
    w->lowering = l;
    w->arena = scratch;
    qn_ispace_init(&w->space, scratch);
    w->kernel = qn_kernel_new(scratch, name);
    w->b = qn_kb_new(w->kernel);
    w->b.fast = l->options->math == QN_MATH_FAST;
    memset(w->known_heads, -1, sizeof w->known_heads);
}

/* ---- arguments ---- */

/* What the program promises of an address: the workspace, the weights and states lie at multiples of 64 bytes; a caller's
 * buffers at multiples of their element, of 16 bytes on a GPU. */
static int alignment_of(const qn_program *p, int buffer, bool gpu)
{
    const qn_pbuffer *b = &p->buffers[buffer];
    const int element = (int)qn_dtype_bytes(b->dtype);
    switch (b->place) {
    case QN_PLACE_ARENA:
    case QN_PLACE_WEIGHTS: return 64;
    case QN_PLACE_IO: return gpu ? 16 : element;
    case QN_PLACE_SLOT: return alignment_of(p, b->base, gpu);
    case QN_PLACE_VIEW: {
        int align = alignment_of(p, b->base, gpu);
        while (align > element &&
               (!qn_dim_divisible(b->offset, align) || (b->stride && !qn_dim_divisible(b->stride, align))))
            align /= 2;
        return align;
    }
    }
    QN_UNREACHABLE("place %d", (int)b->place);
}

qn_kbuffer *qn_writer_argument(qn_writer *w, int buffer, bool read, bool written)
{
    for (size_t i = 0; i < w->arguments.n; i++)
        if (w->arguments.items[i].buffer == buffer) {
            w->arguments.items[i].kbuffer->read |= read;
            w->arguments.items[i].kbuffer->written |= written;
            return w->arguments.items[i].kbuffer;
        }
    const qn_program *p = w->lowering->program;
    const qn_machine *machine = w->lowering->options->machine;
    const bool gpu = machine && machine->gpu;
    const qn_argument argument = { .buffer = buffer,
                                   .kbuffer =
                                       qn_kernel_add_buffer(w->kernel, p->buffers[buffer].name,
                                                            qn_dtype_carrier(p->buffers[buffer].dtype), read,
                                                            written, alignment_of(p, buffer, gpu)) };
    qn_vec_push(w->arena, &w->arguments, argument);
    return argument.kbuffer;
}

void qn_writer_bind_input(qn_writer *w, qn_value *value)
{
    const qn_binding binding = {
        .value = value, .buffer = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), true, false)
    };
    qn_vec_push(w->arena, &w->bindings, binding);
}

void qn_writer_bind(qn_writer *w, const qn_value *value, qn_fetch_fn fetch, void *user)
{
    const qn_binding binding = { .value = value, .fetch = fetch, .user = user };
    qn_vec_push(w->arena, &w->bindings, binding);
}

const qn_binding *qn_writer_binding(const qn_writer *w, const qn_value *value)
{
    for (size_t i = w->bindings.n; i-- > 0;) /* the newest first */
        if (w->bindings.items[i].value == value)
            return &w->bindings.items[i];
    return NULL;
}

/* ---- index expressions ---- */

static int64_t multiple_of(qn_dim d)
{
    int64_t multiple = 64;
    while (multiple > 1 && !qn_dim_divisible(d, multiple))
        multiple /= 2;
    return multiple;
}

static qn_kvalue *param(qn_writer *w, qn_dim d)
{
    for (size_t i = 0; i < w->params.n; i++)
        if (w->params.items[i] == d)
            return qn_kernel_param(w->kernel, (int)i);
    const char *name = d->kind == QN_DIM_SYMBOL && d->name[0] != '$' ? d->name : "p";
    qn_vec_push(w->arena, &w->params, d);
    return qn_kernel_add_param(w->kernel, name, d->min, d->max, multiple_of(d));
}

/* Divisors are at least 1 wherever they divide; where an axis is empty nothing is divided, but the instruction may be
 * moved in front of the loop that doesn't run. */
static qn_kvalue *divisor(qn_writer *w, qn_dim d)
{
    return qn_writer_index(w, d->min >= 1 ? d : qn_dim_max(w->space.dims, d, qn_dim_const(w->space.dims, 1)));
}

qn_kvalue *qn_writer_index(qn_writer *w, qn_dim d)
{
    qn_kbuilder *b = &w->b;
    if (d->kind == QN_DIM_CONST)
        return qn_kb_index(b, d->value);
    if (!qn_ix_uses_vars(&w->space, d))
        return param(w, d);
    switch (d->kind) {
    case QN_DIM_SYMBOL: {
        const qn_var *var = qn_ispace_var_of(&w->space, d);
        QN_ASSERT(var && var->value, "lower: %s is read outside of its loop", d->name);
        return var->value;
    }
    case QN_DIM_ADD:
    case QN_DIM_MUL: { /* what has no variables is one parameter */
        qn_dim fixed = qn_dim_const(w->space.dims, d->kind == QN_DIM_MUL);
        qn_kvalue *value = NULL;
        for (int i = 0; i < d->n; i++) {
            if (!qn_ix_uses_vars(&w->space, d->operands[i])) {
                fixed = d->kind == QN_DIM_ADD ? qn_dim_add(w->space.dims, fixed, d->operands[i])
                                              : qn_dim_mul(w->space.dims, fixed, d->operands[i]);
                continue;
            }
            qn_kvalue *part = qn_writer_index(w, d->operands[i]);
            value = !value                  ? part
                    : d->kind == QN_DIM_ADD ? qn_kb_iadd(b, value, part)
                                            : qn_kb_imul(b, value, part);
        }
        qn_kvalue *rest = qn_writer_index(w, fixed);
        return d->kind == QN_DIM_ADD ? qn_kb_iadd(b, value, rest) : qn_kb_imul(b, value, rest);
    }
    case QN_DIM_FLOORDIV:
        return qn_kb_idiv(b, qn_writer_index(w, d->operands[0]), divisor(w, d->operands[1]));
    case QN_DIM_MOD: return qn_kb_imod(b, qn_writer_index(w, d->operands[0]), divisor(w, d->operands[1]));
    case QN_DIM_MIN:
        return qn_kb_imin(b, qn_writer_index(w, d->operands[0]), qn_writer_index(w, d->operands[1]));
    case QN_DIM_MAX:
        return qn_kb_imax(b, qn_writer_index(w, d->operands[0]), qn_writer_index(w, d->operands[1]));
    case QN_DIM_SELECT_ONE: {
        qn_kvalue *x = qn_writer_index(w, d->operands[0]);
        return qn_kb_select(b, qn_kb_compare(b, QN_EQ, x, qn_kb_index(b, 1)),
                            qn_writer_index(w, d->operands[1]), x);
    }
    case QN_DIM_CONST: break;
    }
    QN_UNREACHABLE("dim kind %d", (int)d->kind);
}

/* ---- memory ---- */

static void note_access(qn_writer *w, const qn_kbuffer *buffer, qn_dim linear, bool store)
{
    const qn_access access = {
        .buffer = buffer, .linear = linear, .store = store, .section = w->section, .part = w->part
    };
    qn_vec_push(w->arena, &w->accesses, access);
}

void qn_writer_note_index(qn_writer *w, qn_dim expression)
{
    note_access(w, NULL, expression, false);
}

void qn_writer_note_load(qn_writer *w, const qn_kbuffer *buffer)
{
    note_access(w, buffer, NULL, false);
}

/* Sizes of buffers from which streaming pays (see qn_writer.stream). What bypasses the caches had better not be found in
 * them by the next kernel: stores of 16 MB are quicker the ordinary way where the last cache is large, and slower where they
 * fill half of it. */
static int64_t past_caches(const qn_writer *w)
{
    const int64_t l3_bytes = w->lowering->options->machine->l3_bytes;
    return l3_bytes > 0 && l3_bytes / 2 < PAST_CACHES_BYTES ? l3_bytes / 2 : PAST_CACHES_BYTES;
}

/* What is known of the size at compile time counts. */
static bool has_bytes(const qn_writer *w, int buffer, int64_t least)
{
    const qn_pbuffer *b = &w->lowering->program->buffers[buffer];
    return b->elements->min >= least / (int64_t)qn_dtype_bytes(b->dtype);
}

static bool on_cpu(const qn_writer *w)
{
    const qn_machine *machine = w->lowering->options->machine;
    return machine && !machine->gpu;
}

bool qn_writer_bypasses(const qn_writer *w, int buffer)
{
    return on_cpu(w) && has_bytes(w, buffer, past_caches(w));
}

/* Is the element one of a buffer that is gone through in order now? */
static bool is_streamed(qn_writer *w, const qn_kbuffer *buffer, qn_dim linear)
{
    qn_dim coefficient, rest;
    return w->stream && buffer->space == QN_SPACE_ARGUMENT &&
           qn_ix_affine(&w->space, linear, w->stream, &coefficient, &rest) && qn_dim_is(coefficient, 1);
}

/* Has what a load will read later fetched now, where that is likely not in the caches: what the caller owns was last seen a run
 * ago. */
static void fetch_ahead(qn_writer *w, qn_kbuffer *buffer, qn_dim linear, qn_kvalue *index)
{
    const int at = w->arguments.items[buffer->index].buffer;
    const bool callers = w->lowering->program->buffers[at].place == QN_PLACE_IO;
    if (w->ahead > 0 && on_cpu(w) && is_streamed(w, buffer, linear) &&
        has_bytes(w, at, callers ? CALLERS_AHEAD_BYTES : AHEAD_BYTES))
        qn_kb_prefetch(&w->b, buffer, qn_kb_iadd(&w->b, index, qn_kb_index(&w->b, w->ahead)), 0);
}

qn_kvalue *qn_writer_load(qn_writer *w, qn_kbuffer *buffer, qn_dim linear)
{
    note_access(w, buffer, linear, false);
    qn_kvalue *other = w->load ? w->load(w, w->load_user, buffer, linear) : NULL;
    if (other)
        return other;
    qn_kvalue *index = qn_writer_index(w, linear);
    if (buffer->space == QN_SPACE_ARGUMENT)
        fetch_ahead(w, buffer, linear, index);
    return w->mask ? qn_kb_load_masked(&w->b, buffer, index, 1, w->mask, NULL)
                   : qn_kb_load(&w->b, buffer, index, 1);
}

void qn_writer_store(qn_writer *w, qn_kbuffer *buffer, qn_dim linear, qn_kvalue *value)
{
    note_access(w, buffer, linear, true);
    qn_kinst *store = qn_kb_store(&w->b, buffer, qn_writer_index(w, linear), value, NULL);
    store->nontemporal = !buffer->read && !w->mask && is_streamed(w, buffer, linear) &&
                         qn_writer_bypasses(w, w->arguments.items[buffer->index].buffer);
}

void qn_writer_prefetch(qn_writer *w, qn_kbuffer *buffer, qn_dim linear)
{
    const int at = w->arguments.items[buffer->index].buffer;
    if (on_cpu(w) && !w->mask && is_streamed(w, buffer, linear) && has_bytes(w, at, AHEAD_BYTES) &&
        !has_bytes(w, at, past_caches(w)))
        qn_kb_prefetch(&w->b, buffer, qn_writer_index(w, linear), 0);
}

/* ---- loops ---- */

size_t qn_writer_mark(const qn_writer *w)
{
    return w->known.n;
}

static uint64_t known_hash(const qn_value *value, int rank, const qn_dim *index)
{
    uint64_t hash = (uint64_t)(uintptr_t)value * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < rank; i++)
        hash = (hash ^ (uint64_t)(uintptr_t)index[i]) * 0x9e3779b97f4a7c15u;
    return hash >> 40;
}

void qn_writer_forget(qn_writer *w, size_t mark)
{
    while (w->known.n > mark) {
        const qn_known *k = &w->known.items[--w->known.n];
        w->known_heads[known_hash(k->value, k->value->type.rank, k->index) % QN_KNOWN_BUCKETS] = k->below;
    }
    while (w->data.n > 0 && w->data.items[w->data.n - 1].known >= mark)
        w->data.n--;
}

qn_known *qn_writer_find_known(qn_writer *w, const qn_value *value, const qn_dim *index)
{
    const int rank = value->type.rank;
    for (int at = w->known_heads[known_hash(value, rank, index) % QN_KNOWN_BUCKETS]; at >= 0;
         at = w->known.items[at].below) {
        qn_known *k = &w->known.items[at];
        if (k->value == value && (!k->mask || k->mask == w->mask) &&
            (rank == 0 || memcmp(k->index, index, (size_t)rank * sizeof *index) == 0))
            return k;
    }
    return NULL;
}

void qn_writer_add_known(qn_writer *w, const qn_value *value, const qn_dim *index, qn_kvalue *result)
{
    const int rank = value->type.rank;
    int *head = &w->known_heads[known_hash(value, rank, index) % QN_KNOWN_BUCKETS];
    const qn_known entry = { .value = value,
                             .index = qn_arena_copy(w->arena, index, (size_t)rank * sizeof *index),
                             .mask = w->mask,
                             .result = result,
                             .below = *head };
    *head = (int)w->known.n;
    qn_vec_push(w->arena, &w->known, entry);
}

qn_writer_loop qn_writer_for(qn_writer *w, qn_dim var, qn_kvalue *low, qn_kvalue *high, qn_ktag tag,
                             int n_carried, qn_kvalue *const *initial, const qn_kind *kinds)
{
    qn_writer_loop loop = { .var = var, .known_mark = qn_writer_mark(w), .n_carried = n_carried };
    loop.carried = QN_NEW_ARRAY(w->arena, qn_kvalue *, n_carried);
    if (var->kind == QN_DIM_CONST) {
        for (int i = 0; i < n_carried; i++)
            loop.carried[i] = initial[i];
        return loop;
    }
    loop.inst = qn_kb_for(&w->b, low, high, qn_kb_index(&w->b, 1), tag, n_carried, initial, kinds);
    qn_kblock *body = loop.inst->blocks[0];
    qn_ispace_var_of(&w->space, var)->value = &body->arguments[0];
    for (int i = 0; i < n_carried; i++)
        loop.carried[i] = &body->arguments[1 + i];
    return loop;
}

qn_writer_loop qn_writer_for_all(qn_writer *w, qn_dim var, qn_ktag tag, int n_carried,
                                 qn_kvalue *const *initial, const qn_kind *kinds)
{
    qn_kvalue *low = NULL, *high = NULL;
    if (var->kind != QN_DIM_CONST) {
        low = qn_kb_index(&w->b, 0);
        high = qn_writer_index(w, qn_ispace_var_of(&w->space, var)->extent);
    }
    return qn_writer_for(w, var, low, high, tag, n_carried, initial, kinds);
}

void qn_writer_end_for(qn_writer *w, qn_writer_loop *loop, qn_kvalue *const *yields)
{
    if (!loop->inst) {
        for (int i = 0; i < loop->n_carried; i++)
            loop->carried[i] = yields[i];
        return; /* what is known stays known: there was no block */
    }
    qn_kb_end_for(&w->b, loop->inst, yields);
    for (int i = 0; i < loop->n_carried; i++)
        loop->carried[i] = &loop->inst->results[i];
    qn_ispace_var_of(&w->space, loop->var)->value = NULL;
    qn_writer_forget(w, loop->known_mark);
}

void qn_writer_open_nest(qn_writer *w, int n, const qn_dim *vars, qn_ktag innermost, int n_carried,
                         qn_kvalue *const *initial, const qn_kind *kinds, qn_writer_loop *out_loops)
{
    /* The innermost loop that is one at all, since extents of 1 make none. */
    int last = n - 1;
    while (last > 0 && vars[last]->kind == QN_DIM_CONST)
        last--;
    for (int i = 0; i < n; i++) {
        const qn_ktag tag = i == last ? innermost : QN_TAG_SERIAL;
        out_loops[i] = qn_writer_for_all(w, vars[i], tag, n_carried, initial, kinds);
        initial = out_loops[i].carried;
    }
    if (n == 0)
        out_loops[0] = qn_writer_for(w, qn_dim_const(w->space.dims, 0), NULL, NULL, innermost, n_carried,
                                     initial, kinds);
}

void qn_writer_close_nest(qn_writer *w, int n, qn_writer_loop *loops, qn_kvalue *const *yields)
{
    for (int i = n > 0 ? n - 1 : 0; i >= 0; i--) {
        qn_writer_end_for(w, &loops[i], yields);
        yields = loops[i].carried;
    }
}

/* Where output `i` has what is at `index` of a tensor with these dims: `at`, and its number. */
static qn_dim output_place(qn_writer *w, const qn_group *group, int i, int rank, const qn_dim *dims,
                           const qn_dim *index, qn_dim *at)
{
    const qn_type *type = &group->outputs[i]->type;
    qn_dim to[QN_MAX_RANK];
    qn_ispace_dims(&w->space, type, to);
    qn_ix_reshape(&w->space, rank, dims, index, type->rank, to, at);
    return qn_ix_linear(&w->space, type->rank, to, at);
}

void qn_writer_store_outputs(qn_writer *w, const qn_group *group, int rank, const qn_dim *dims,
                             const qn_dim *index)
{
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, group->n_outputs);
    qn_dim *linear = QN_NEW_ARRAY(w->arena, qn_dim, group->n_outputs);
    for (int i = 0; i < group->n_outputs; i++) {
        qn_dim at[QN_MAX_RANK];
        linear[i] = output_place(w, group, i, rank, dims, index, at);
        values[i] = qn_writer_value(w, group->outputs[i], at);
    }
    for (int i = 0; i < group->n_outputs; i++) {
        const int buffer = qn_lower_buffer(w->lowering, group->outputs[i]);
        qn_writer_store(w, qn_writer_argument(w, buffer, false, true), linear[i], values[i]);
    }
}

void qn_writer_prefetch_outputs(qn_writer *w, const qn_group *group, int rank, const qn_dim *dims,
                                const qn_dim *index, qn_dim along)
{
    for (int i = 0; i < group->n_outputs; i++) {
        qn_dim at[QN_MAX_RANK], coefficient, rest;
        const qn_dim linear = output_place(w, group, i, rank, dims, index, at);
        const int buffer = qn_lower_buffer(w->lowering, group->outputs[i]);
        if (qn_ix_affine(&w->space, linear, along, &coefficient, &rest) && qn_dim_is(coefficient, 1))
            qn_kb_prefetch(&w->b, qn_writer_argument(w, buffer, false, true), qn_writer_index(w, linear), 1);
    }
}

/* ---- the end ---- */

/* Within a part. `used`: is the input read there? */
static bool part_may_replace(const qn_writer *w, const qn_kbuffer *in, const qn_kbuffer *out, int part,
                             bool *used)
{
    qn_dim element = NULL;
    for (size_t a = 0; a < w->accesses.n; a++) {
        const qn_access *access = &w->accesses.items[a];
        if (access->buffer != out || access->part != part)
            continue;
        if (!access->store || (element && element != access->linear))
            return false;
        element = access->linear;
    }
    int stored = -1; /* the newest section with a store */
    for (size_t a = 0; a < w->accesses.n; a++) {
        const qn_access *access = &w->accesses.items[a];
        if (access->part != part)
            continue;
        if (access->buffer == out)
            stored = access->section;
        if (access->buffer != in)
            continue;
        if (!element || access->linear != element || access->section == stored)
            return false;
        *used = true;
    }
    return true;
}

/* May the output take the memory of the input? Each element of it must be read before that element is stored. Accesses are
 * listed in the order in which a section makes them, pass after pass. Parts store different elements. */
static bool may_replace(const qn_writer *w, const qn_kbuffer *in, const qn_kbuffer *out)
{
    bool used = false;
    if (in->written || !in->read || in->dtype != out->dtype)
        return false;
    for (int part = 0; part <= w->part; part++)
        if (!part_may_replace(w, in, out, part, &used))
            return false;
    return used;
}

/* Outputs that replace a state take its memory where they may, others that of any input. */
static void find_inplace(qn_writer *w)
{
    bool taken[64] = { false };
    for (int wished = 1; wished >= 0; wished--)
        for (size_t o = 0; o < w->arguments.n; o++) {
            qn_kbuffer *out = w->arguments.items[o].kbuffer;
            if (!out->written || out->read || out->inplace >= 0)
                continue;
            const int wish = wished ? qn_lower_replaced(w->lowering, w->arguments.items[o].buffer) : -1;
            for (size_t i = 0; i < w->arguments.n && i < 64 && out->inplace < 0; i++) {
                const qn_kbuffer *in = w->arguments.items[i].kbuffer;
                if (taken[i] || (wished && w->arguments.items[i].buffer != wish) || !may_replace(w, in, out))
                    continue;
                out->inplace = in->index;
                taken[i] = true;
            }
        }
}

qn_status qn_writer_finish(qn_writer *w, qn_dim tasks, const char *step_name)
{
    qn_lowering *l = w->lowering;
    find_inplace(w);
    QN_TRY(qn_kernel_verify(w->kernel, l->diags));
    const int kernel = qn_lower_kernel(l, w->kernel);
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_KERNEL);
    step->name = step_name;
    step->kernel = kernel;
    step->flops = w->kernel->flops;
    step->n_buffers = (int)w->arguments.n;
    step->buffers = QN_NEW_ARRAY(l->arena, int, w->arguments.n);
    for (size_t i = 0; i < w->arguments.n; i++)
        step->buffers[i] = w->arguments.items[i].buffer;
    /* simplify keeps parameters that nobody reads any more, so numbers stay as they were */
    step->n_params = (int)w->params.n;
    qn_dim *params = QN_NEW_ARRAY(l->arena, qn_dim, w->params.n);
    for (size_t i = 0; i < w->params.n; i++)
        params[i] = qn_lower_dim(l, qn_ispace_meaning(&w->space, w->params.items[i]));
    step->params = params;
    step->tasks = qn_lower_dim(l, qn_ispace_meaning(&w->space, tasks));
    return QUERN_OK;
}
