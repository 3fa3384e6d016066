/* All_reduces beside kernels: each starts where its operand is ready, and what needs its result waits as late as possible.
 *
 * Before:  all_reduce %0 to %1    update of %1    kernel    all_reduce %2 to %3    update of %3
 * After:   start %0 to %1    kernel    start %2 to %3    wait %1    update of %1    wait %3    update of %3
 *
 * Steps move down only, behind others that use nothing of theirs. Collectives keep their order, since the other ranks make them
 * in that order too; one that would be waited for at once, or is small, stays whole. Where nothing but the communicator uses the
 * operand any more, the result takes its place, so that gradients which wait for their update are in memory once. */
#include "ir/program.h"
#include "passes/lower.h"

/* What a norm tells the other ranks. To hand so little to another thread takes longer than to wait for it. */
enum { SMALL = 8 << 10 }; /* bytes */

typedef struct mover {
    qn_program *p;
    const int *mates; /* by buffer: see qn_program_mates */
    int *memory;      /* by buffer: a number for all that may be the same memory */
    qn_steps out;
    qn_steps held; /* steps that wait for something, and the waits, in order; `released` of them are out */
    size_t released;
    int *read, *written; /* by memory: the last of `held` that does this, or -1 */
} mover;

/* ---- what steps use ---- */

static int find(const int *memory, int buffer)
{
    while (memory[buffer] != buffer)
        buffer = memory[buffer];
    return buffer;
}

static void find_memory(mover *m)
{
    const qn_program *p = m->p;
    int *first = QN_NEW_ARRAY(p->arena, int, p->n_io + 1); /* buffer of this io, and 1 */
    m->mates = qn_program_mates(p, p->arena);
    m->memory = QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1);
    for (int i = 0; i < p->n_buffers; i++)
        m->memory[i] = i;
    for (int i = 0; i < p->n_buffers; i++) {
        m->memory[find(m->memory, i)] = find(m->memory, qn_program_root(p, i));
        m->memory[find(m->memory, i)] = find(m->memory, m->mates[i]);
        if (p->buffers[i].place != QN_PLACE_IO)
            continue;
        int *same = &first[qn_program_io_memory(p, p->buffers[i].io)];
        if (*same)
            m->memory[find(m->memory, i)] = find(m->memory, *same - 1);
        *same = i + 1;
    }
    for (int i = 0; i < p->n_buffers; i++)
        m->memory[i] = find(m->memory, i);
}

typedef void (*use_fn)(mover *m, void *user, int memory, bool reads, bool writes);

static void each_use(mover *m, const qn_step *step, use_fn use, void *user)
{
    for (int i = 0; i < step->n_buffers; i++)
        use(m, user, m->memory[step->buffers[i]], qn_step_reads(m->p, step, i),
            qn_step_writes(m->p, step, i) || step->kind == QN_STEP_SWAP);
    if (step->condition >= 0)
        use(m, user, m->memory[step->condition], true, false);
    const qn_steps *inside[] = { &step->test, &step->body, &step->other };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < inside[k]->n; i++)
            each_use(m, &inside[k]->items[i], use, user);
}

/* ---- moving ---- */

static void find_last_before(mover *m, void *user, int memory, bool reads, bool writes)
{
    int *last = user;
    (void)reads;
    if (m->written[memory] > *last)
        *last = m->written[memory];
    if (writes && m->read[memory] > *last)
        *last = m->read[memory];
}

static void note_held(mover *m, void *user, int memory, bool reads, bool writes)
{
    if (reads)
        m->read[memory] = *(const int *)user;
    if (writes)
        m->written[memory] = *(const int *)user;
}

static void add(mover *m, qn_steps *to, const qn_step *step)
{
    *qn_steps_add(m->p, to, step->kind) = *step;
}

static void hold(mover *m, const qn_step *step)
{
    each_use(m, step, note_held, &(int){ (int)m->held.n });
    add(m, &m->held, step);
}

/* The first `n` of what is held. A collective with nothing behind it yet is not worth a start. */
static void let_go(mover *m, size_t n)
{
    for (; m->released < n; m->released++) {
        const qn_step *step = &m->held.items[m->released];
        qn_step *before = m->out.n ? &m->out.items[m->out.n - 1] : NULL;
        if (step->kind == QN_STEP_WAIT && before && before->starts && before->buffers == step->buffers)
            before->starts = false;
        else
            add(m, &m->out, step);
    }
}

static void start(mover *m, const qn_step *step)
{
    qn_step first = *step, wait = { .kind = QN_STEP_WAIT, .condition = -1, .loop = -1 };
    first.starts = true;
    wait.name = qn_arena_printf(m->p->arena, "wait_%s", step->name ? step->name : "all_reduce");
    wait.n_buffers = step->n_buffers;
    wait.buffers = step->buffers;
    add(m, &m->out, &first);
    hold(m, &wait);
}

/* Does it talk to other ranks, number strings, or change what dimensions or pointers are for the steps behind it? */
static bool stays(const qn_step *step)
{
    if ((step->kind == QN_STEP_COLLECTIVE && step->collective != QN_OP_RANK) || step->kind == QN_STEP_BIND ||
        step->kind == QN_STEP_SWAP || step->kind == QN_STEP_TEXT)
        return true;
    const qn_steps *inside[] = { &step->test, &step->body, &step->other };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < inside[k]->n; i++)
            if (inside[k]->items[i].kind != QN_STEP_SWAP && stays(&inside[k]->items[i]))
                return true;
    return false;
}

static bool is_small(const qn_program *p, const qn_step *step)
{
    const qn_dim bytes = qn_program_buffer_bytes(p, step->buffers[0]);
    return bytes->max <= SMALL;
}

static void move(mover *m, const qn_step *step)
{
    int last = -1; /* of those held that it has to come behind */
    each_use(m, step, find_last_before, &last);
    const bool waits = last >= (int)m->released;
    if (waits && !stays(step)) {
        hold(m, step);
        return;
    }
    const bool collective = step->kind == QN_STEP_COLLECTIVE;
    let_go(m, !stays(step) || collective ? (size_t)(last + 1) : m->held.n);
    if (collective && step->collective == QN_OP_ALL_REDUCE && !is_small(m->p, step))
        start(m, step);
    else
        add(m, &m->out, step);
}

/* ---- results in place of operands ---- */

typedef struct span {
    int *first, *last, at; /* by memory, -1: never; the step that is looked at */
} span;

static void note_span(mover *m, void *user, int memory, bool reads, bool writes)
{
    span *s = user;
    (void)m;
    (void)reads;
    (void)writes;
    if (s->first[memory] < 0)
        s->first[memory] = s->at;
    if (s->last[memory] < s->at)
        s->last[memory] = s->at;
}

typedef struct search {
    int memory;
    bool found;
} search;

static void note_found(mover *m, void *user, int memory, bool reads, bool writes)
{
    search *s = user;
    (void)m;
    (void)reads;
    (void)writes;
    s->found |= s->memory == memory;
}

/* Does a step use it between these two? A collective that was started before the first may have it until then. */
static bool used_between(mover *m, int memory, int first, int last)
{
    search s = { .memory = memory };
    for (int i = first + 1; i < last; i++)
        each_use(m, &m->out.items[i], note_found, &s);
    return s.found;
}

/* Memory of the workspace that is nothing else's. */
static bool is_plain(const mover *m, int buffer)
{
    return m->p->buffers[buffer].place == QN_PLACE_ARENA && m->memory[buffer] == buffer &&
           m->mates[buffer] == buffer;
}

static void share_memory(mover *m)
{
    qn_program *p = m->p;
    span s = { QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1), QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1),
               0 };
    for (int i = 0; i < p->n_buffers; i++)
        s.first[i] = s.last[i] = -1;
    for (; s.at < (int)m->out.n; s.at++)
        each_use(m, &m->out.items[s.at], note_span, &s);
    for (int i = 0, end; i < (int)m->out.n; i++) {
        const qn_step *step = &m->out.items[i];
        if (step->kind != QN_STEP_COLLECTIVE || step->collective != QN_OP_ALL_REDUCE)
            continue;
        for (end = i; step->starts && m->out.items[end].kind != QN_STEP_WAIT;)
            end++;
        while (step->starts && m->out.items[end].buffers != step->buffers)
            end++;
        const int in = step->buffers[0], result = step->buffers[1];
        if (!is_plain(m, in) || !is_plain(m, result) || s.last[in] != end || s.first[result] != i ||
            used_between(m, in, i, end))
            continue;
        p->buffers[result].place = QN_PLACE_VIEW;
        p->buffers[result].base = in;
        p->buffers[result].loop = -1;
    }
}

static bool has_all_reduce(const qn_program *p)
{
    for (size_t i = 0; i < p->steps.n; i++)
        if (p->steps.items[i].kind == QN_STEP_COLLECTIVE && p->steps.items[i].collective == QN_OP_ALL_REDUCE)
            return true;
    return false;
}

void qn_lower_beside(qn_program *p)
{
    mover m = { .p = p };
    if (!has_all_reduce(p))
        return;
    find_memory(&m);
    m.read = QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1);
    m.written = QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1);
    for (int i = 0; i < p->n_buffers; i++)
        m.read[i] = m.written[i] = -1;
    for (size_t i = 0; i < p->steps.n; i++)
        move(&m, &p->steps.items[i]);
    let_go(&m, m.held.n);
    share_memory(&m);
    p->steps = m.out;
}
