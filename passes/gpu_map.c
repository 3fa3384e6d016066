/* qn_kernel_gpu_map: a task becomes a block of GPU threads.
 *
 *   for %c = 0 to %n vector carried max {     ->   barrier
 *     row[%c] = …                                  for %c = 0 to %n gpu_thread carried max { row[%c] = … }
 *   }                                              barrier
 *
 * Before: what lowering wrote, loops tagged vector. After: the outermost of these whose iterations are independent are
 * spread over the threads. The kernel still says what the block does as a whole, which is how the interpreter runs it:
 *
 *   in a gpu_thread loop   a thread does every n-th iteration; carried values are combined over the threads in a fixed order, and
 *                          every thread has the result
 *   outside                every thread computes the same; one of them stores
 *
 * Local buffers belong to the block: they move to shared memory. Memory that is written in one place and touched in
 * another gets barriers around each of them. A kernel without a loop to spread, or whose local buffers are larger than
 * shared memory, runs on one thread a block. Kernels of templates that say what each thread does stay as they are. */
#include <string.h>

#include "ir/kernel_edit.h"
#include "passes/lower.h"

enum {
    MOST_THREADS = 256,
    WARP = 32,
    SHARED_BYTES = 48 << 10, /* that every GPU has without being asked */
    MOST_CARRIED = 16
};

typedef struct place { /* memory: a buffer with those that may be the same memory */
    bool written, read, several, repeated;
    int first; /* context that touches it: 0 is what all threads do alike, others are loops; -1: none yet */
} place;

typedef struct mapper {
    qn_kernel *k;
    place *places;
    bool *varies; /* by serial number: differs between the iterations of the loop looked at */
    int n_contexts;
    int64_t most_trips, reduction_bytes;
    bool unknown_trips;
} mapper;

/* ---- which loops ---- */

static bool survey_block(mapper *m, const qn_kblock *block);

/* Marks what differs between iterations; false for what can't be done by several threads at once. */
static bool survey_inst(mapper *m, const qn_kinst *inst)
{
    bool any = inst->op == QN_K_FOR || inst->op == QN_K_IF;
    for (int i = 0; i < inst->n_operands; i++)
        any |= m->varies[inst->operands[i]->serial];
    if (inst->op == QN_K_BARRIER || inst->op >= QN_K_TILE_SHAPE || inst->tag == QN_TAG_GPU_THREAD)
        return false;
    if (inst->op == QN_K_STORE && !m->varies[inst->operands[0]->serial])
        return false; /* the last iteration wins */
    for (int i = 0; i < inst->n_blocks; i++) {
        for (int a = 0; a < inst->blocks[i]->n_arguments; a++)
            m->varies[inst->blocks[i]->arguments[a].serial] = true;
        if (!survey_block(m, inst->blocks[i]))
            return false;
    }
    for (int i = 0; i < inst->n_results; i++)
        m->varies[inst->results[i].serial] = any;
    return true;
}

static bool survey_block(mapper *m, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        if (!survey_inst(m, inst))
            return false;
    return true;
}

static bool can_spread(mapper *m, const qn_kinst *loop)
{
    if (loop->tag != QN_TAG_VECTOR || loop->n_results > MOST_CARRIED)
        return false;
    for (int i = 0; i < loop->n_results; i++)
        if (!loop->carried_kinds || loop->carried_kinds[i] == QN_SET || loop->results[i].type.lanes != 1)
            return false;
    memset(m->varies, 0, (size_t)m->k->n_serials);
    for (int i = 0; i < loop->blocks[0]->n_arguments; i++)
        m->varies[loop->blocks[0]->arguments[i].serial] = true;
    return survey_block(m, loop->blocks[0]);
}

static void choose_loops(mapper *m, qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->op == QN_K_FOR && can_spread(m, inst)) {
            inst->tag = QN_TAG_GPU_THREAD;
            inst->lanes = 0;
            const int64_t trips = qn_kfor_trips(inst);
            m->unknown_trips |= trips < 0;
            m->most_trips = trips > m->most_trips ? trips : m->most_trips;
            for (int i = 0; i < inst->n_results; i++)
                m->reduction_bytes += 64; /* a number for each warp */
            m->n_contexts++;
            continue;
        }
        for (int i = 0; i < inst->n_blocks; i++)
            choose_loops(m, inst->blocks[i]);
    }
}

static void forget_loops(qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->tag == QN_TAG_GPU_THREAD)
            inst->tag = QN_TAG_SERIAL;
        for (int i = 0; i < inst->n_blocks; i++)
            forget_loops(inst->blocks[i]);
    }
}

/* ---- what needs barriers ---- */

static place *place_of(mapper *m, const qn_kbuffer *buffer)
{
    if (buffer->space == QN_SPACE_ARGUMENT)
        return &m->places[buffer->inplace >= 0 ? buffer->inplace : buffer->index];
    for (int i = m->k->n_buffers; i < m->k->n_all_buffers; i++)
        if (m->k->buffers[i] == buffer)
            return &m->places[i];
    QN_UNREACHABLE("kernel %s has no buffer %s", m->k->name, buffer->name);
}

static bool touches_memory(const qn_kinst *inst)
{
    return inst->op == QN_K_LOAD || inst->op == QN_K_STORE || inst->op == QN_K_ATOMIC_ADD;
}

/* `context` is counted in the order of the loops; `again`: what is around the loop repeats it. */
static void note_places(mapper *m, const qn_kblock *block, int context, bool again, int *n_loops)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (touches_memory(inst)) {
            place *p = place_of(m, inst->buffer);
            p->several |= p->first >= 0 && p->first != context;
            p->first = context;
            p->written |= inst->op != QN_K_LOAD;
            p->read |= inst->op != QN_K_STORE;
            p->repeated |= context > 0 && again;
        }
        const bool spread = inst->tag == QN_TAG_GPU_THREAD;
        const int inside = spread ? ++*n_loops : context;
        const bool repeats = again || (inst->op == QN_K_FOR && context == 0 && !spread);
        for (int i = 0; i < inst->n_blocks; i++)
            note_places(m, inst->blocks[i], inside, repeats, n_loops);
    }
}

static bool is_shared(const place *p)
{
    return p->written && (p->several || p->repeated || (p->first == 0 && p->read));
}

static bool touches_shared(mapper *m, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (touches_memory(inst) && is_shared(place_of(m, inst->buffer)))
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (touches_shared(m, inst->blocks[i]))
                return true;
    }
    return false;
}

static void insert_barrier(mapper *m, qn_kblock *block, qn_kinst *before)
{
    const qn_kinst *last = before ? before->prev : block->last;
    if (!last || last->op != QN_K_BARRIER)
        qn_kblock_insert(block, qn_kinst_new(m->k, QN_K_BARRIER, 0, NULL, 0, NULL), before);
}

/* Every thread takes the same way through what is outside the spread loops, so barriers may stand anywhere there. */
static void insert_barriers(mapper *m, qn_kblock *block)
{
    for (qn_kinst *inst = block->first, *next; inst; inst = next) {
        next = inst->next;
        const bool spread = inst->tag == QN_TAG_GPU_THREAD;
        const bool guarded =
            spread ? touches_shared(m, inst->blocks[0])
                   : touches_memory(inst) && inst->op != QN_K_LOAD && is_shared(place_of(m, inst->buffer));
        if (guarded) {
            insert_barrier(m, block, inst);
            insert_barrier(m, block, next);
        }
        for (int i = 0; i < inst->n_blocks && !spread; i++)
            insert_barriers(m, inst->blocks[i]);
    }
}

/* ---- the pass ---- */

static int64_t local_bytes(const qn_kernel *k)
{
    int64_t bytes = 0;
    for (int i = k->n_buffers; i < k->n_all_buffers; i++) /* each begins at a multiple of 64 */
        bytes += (k->buffers[i]->elements * (int64_t)qn_dtype_bytes(k->buffers[i]->dtype) + 63) / 64 * 64;
    return bytes;
}

void qn_kernel_gpu_map(qn_kernel *k)
{
    if (k->by_thread)
        return;
    qn_arena *scratch = qn_arena_new();
    mapper m = { .k = k };
    m.varies = QN_NEW_ARRAY(scratch, bool, k->n_serials + 1);
    m.places = QN_NEW_ARRAY(scratch, place, k->n_all_buffers + 1);
    for (int i = 0; i < k->n_all_buffers; i++)
        m.places[i].first = -1;
    choose_loops(&m, k->body);
    k->gpu_threads = 1;
    if (m.n_contexts > 0 && local_bytes(k) + m.reduction_bytes > SHARED_BYTES)
        forget_loops(k->body);
    else if (m.n_contexts > 0) {
        int n_loops = 0;
        k->gpu_threads = MOST_THREADS;
        while (!m.unknown_trips && k->gpu_threads > WARP && k->gpu_threads / 2 >= m.most_trips)
            k->gpu_threads /= 2;
        for (int i = k->n_buffers; i < k->n_all_buffers; i++)
            k->buffers[i]->space = QN_SPACE_SHARED;
        note_places(&m, k->body, 0, false, &n_loops);
        insert_barriers(&m, k->body);
    }
    qn_arena_free(scratch);
}
