/* Is everything that a step reads from the workspace still there? Follows the contents of each buffer of the workspace
 * through the steps, from the places alone, without the lifetimes that the memory plan has found.
 *
 * A buffer is unwritten, holds what was written to it, or has lost it, since another one that lies over it was written.
 * Where steps may or may not have run, it is the worse of both. Pointer variables that are exchanged may point to either
 * buffer: reading one reads both, and writing one counts as writing both. */
#include <string.h>

#include "ir/program_check.h"

/* The worse ones are higher. */
typedef enum contents { UNWRITTEN, WRITTEN, LOST } contents;

typedef struct list {
    int n, *items;
} list;

typedef struct follower {
    const qn_program_check *c;
    const qn_program *p;
    list *over; /* by buffer of the workspace: those that share bytes with it */
    int *mates; /* by buffer: see qn_program_mates */
} follower;

static bool is_placed(const follower *f, int buffer)
{
    const qn_pbuffer *b = &f->p->buffers[buffer];
    return b->place == QN_PLACE_ARENA && b->offset;
}

/* ---- what lies over what ---- */

static void find_overlaps(follower *f)
{
    const qn_program *p = f->p;
    const int n = p->n_buffers;
    qn_dim *ends = QN_NEW_ARRAY(f->c->arena, qn_dim, n);
    for (int i = 0; i < n; i++)
        if (is_placed(f, i))
            ends[i] = qn_dim_add(p->dims, p->buffers[i].offset, qn_program_place_bytes(p, i));
    f->over = QN_NEW_ARRAY(f->c->arena, list, n);
    int *found = QN_NEW_ARRAY(f->c->arena, int, n);
    for (int i = 0; i < n; i++) {
        int n_found = 0;
        for (int j = 0; ends[i] && j < n; j++)
            if (ends[j] && i != j && !qn_dim_at_most(p->dims, ends[i], p->buffers[j].offset) &&
                !qn_dim_at_most(p->dims, ends[j], p->buffers[i].offset))
                found[n_found++] = j;
        f->over[i] = (list){ n_found, qn_arena_copy(f->c->arena, found, (size_t)n_found * sizeof *found) };
    }
}

/* ---- following ---- */

static qn_status read_buffer(const follower *f, const qn_step *step, int buffer, const contents *now)
{
    const int root = qn_program_root(f->p, buffer);
    const bool slot = qn_program_through_slot(f->p, buffer);
    bool written = false;
    int at = root;
    do {
        if (!is_placed(f, at) || now[at] == WRITTEN)
            written = true;
        if (is_placed(f, at) && now[at] == LOST)
            return qn_program_wrong(f->c, &step->loc,
                                    "step %d reads %%%d, whose bytes another buffer has overwritten",
                                    step->number, at);
        at = f->mates[at];
    } while (slot && at != root);
    if (written || qn_dim_is(f->p->buffers[buffer].elements, 0))
        return QUERN_OK;
    return qn_program_wrong(f->c, &step->loc, "step %d reads %%%d, which nothing has written", step->number,
                            root);
}

static bool same_ring(const follower *f, int a, int b)
{
    for (int at = f->mates[a]; at != a; at = f->mates[at])
        if (at == b)
            return true;
    return a == b;
}

static void write_buffer(const follower *f, int buffer, contents *now)
{
    const int root = qn_program_root(f->p, buffer);
    const bool slot = qn_program_through_slot(f->p, buffer);
    int at = root;
    do {
        if (is_placed(f, at)) {
            now[at] = WRITTEN;
            for (int i = 0; i < f->over[at].n; i++) {
                const int other = f->over[at].items[i];
                if (now[other] == WRITTEN && !(slot && same_ring(f, root, other)))
                    now[other] = LOST;
            }
        }
        at = f->mates[at];
    } while (slot && at != root);
}

/* A kernel that writes one buffer over another that it uses says so. */
static qn_status check_arguments(const follower *f, const qn_step *step, const qn_kernel *k)
{
    const qn_program *p = f->p;
    for (int i = 0; i < k->n_buffers; i++) {
        const int written = qn_program_root(p, step->buffers[i]);
        if (!k->buffers[i]->written || !is_placed(f, written))
            continue;
        for (int j = 0; j < k->n_buffers; j++) {
            const int other = qn_program_root(p, step->buffers[j]);
            if (j == i || other == written || k->buffers[i]->inplace == j || !is_placed(f, other))
                continue;
            for (int m = 0; m < f->over[written].n; m++)
                if (f->over[written].items[m] == other)
                    return qn_program_wrong(f->c, &step->loc,
                                            "step %d: kernel %s writes %%%d over %%%d, which it also uses",
                                            step->number, k->name, written, other);
        }
    }
    return QUERN_OK;
}

static qn_status follow_call(const follower *f, const qn_step *step, contents *now, bool check)
{
    const qn_kernel *k = f->p->kernels[step->kernel];
    if (check) {
        QN_TRY(check_arguments(f, step, k));
        /* What it writes as well may be scratch that holds nothing yet. */
        for (int i = 0; i < k->n_buffers; i++)
            if (k->buffers[i]->read && !k->buffers[i]->written)
                QN_TRY(read_buffer(f, step, step->buffers[i], now));
    }
    for (int i = 0; i < k->n_buffers; i++)
        if (k->buffers[i]->written)
            write_buffer(f, step->buffers[i], now);
    return QUERN_OK;
}

/* It reads all but the last buffer, which it writes, over none of them. */
static qn_status follow_function(const follower *f, const qn_step *step, contents *now, bool check)
{
    const int last = step->n_buffers - 1, out = qn_program_root(f->p, step->buffers[last]);
    for (int i = 0; check && i < last; i++) {
        const int in = qn_program_root(f->p, step->buffers[i]);
        QN_TRY(read_buffer(f, step, step->buffers[i], now));
        bool over = in == out;
        for (int m = 0; is_placed(f, out) && m < f->over[out].n; m++)
            over |= f->over[out].items[m] == in;
        if (over)
            return qn_program_wrong(
                f->c, &step->loc, "step %d: %s writes %%%d over %%%d, which it also uses", step->number,
                step->kind == QN_STEP_TEXT ? qn_ops[step->text].name : qn_libraries[step->library].name, out,
                in);
    }
    write_buffer(f, step->buffers[last], now);
    return QUERN_OK;
}

/* Each rank reads and writes at its own time: never over what it gives. */
static qn_status follow_collective(const follower *f, const qn_step *step, contents *now, bool check)
{
    const int out = qn_program_root(f->p, step->buffers[step->n_buffers - 1]);
    if (check && step->n_buffers > 1) {
        const int in = qn_program_root(f->p, step->buffers[0]);
        QN_TRY(read_buffer(f, step, step->buffers[0], now));
        bool over =
            in == out && step->collective != QN_OP_ALL_REDUCE && step->collective != QN_OP_BROADCAST_RANK;
        for (int m = 0; is_placed(f, out) && m < f->over[out].n; m++)
            over |= f->over[out].items[m] == in;
        if (over)
            return qn_program_wrong(f->c, &step->loc, "step %d: %s writes %%%d over %%%d, which it also uses",
                                    step->number, qn_ops[step->collective].name, out, in);
    }
    write_buffer(f, step->buffers[step->n_buffers - 1], now);
    return QUERN_OK;
}

static contents *copy_of(const follower *f, const contents *now)
{
    return qn_arena_copy(f->c->arena, now, (size_t)f->p->n_buffers * sizeof *now);
}

static void worsen(const follower *f, contents *now, const contents *other)
{
    for (int i = 0; i < f->p->n_buffers; i++)
        now[i] = other[i] > now[i] ? other[i] : now[i];
}

static qn_status follow_steps(const follower *f, const qn_steps *steps, contents *now, bool check);

/* One iteration tells what any number of them do: each step either leaves a buffer as it is or decides what it holds. So
 * an iteration finds what one before may have left, and the loop is checked in that state. */
static qn_status follow_loop(const follower *f, const qn_step *step, contents *now, bool check)
{
    contents *iteration = copy_of(f, now);
    QN_TRY(follow_steps(f, &step->test, iteration, false));
    QN_TRY(follow_steps(f, &step->body, iteration, false));
    worsen(f, now, iteration);
    QN_TRY(follow_steps(f, &step->test, now, check));
    if (!check)
        return QUERN_OK;
    if (step->condition >= 0)
        QN_TRY(read_buffer(f, step, step->condition, now));
    return follow_steps(f, &step->body, copy_of(f, now), true);
}

static qn_status follow_if(const follower *f, const qn_step *step, contents *now, bool check)
{
    if (check)
        QN_TRY(read_buffer(f, step, step->condition, now));
    contents *other = copy_of(f, now);
    QN_TRY(follow_steps(f, &step->body, now, check));
    QN_TRY(follow_steps(f, &step->other, other, check));
    worsen(f, now, other);
    return QUERN_OK;
}

static qn_status follow_steps(const follower *f, const qn_steps *steps, contents *now, bool check)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        switch (step->kind) {
        case QN_STEP_KERNEL: QN_TRY(follow_call(f, step, now, check)); break;
        case QN_STEP_TEXT:
        case QN_STEP_LIBRARY: QN_TRY(follow_function(f, step, now, check)); break;
        case QN_STEP_COLLECTIVE: QN_TRY(follow_collective(f, step, now, check)); break;
        case QN_STEP_WAIT: /* the memory of both was its own from the start on */
            for (int k = 0; check && k < 2; k++)
                QN_TRY(read_buffer(f, step, step->buffers[k], now));
            break;
        case QN_STEP_COPY:
            if (check)
                QN_TRY(read_buffer(f, step, step->buffers[0], now));
            write_buffer(f, step->buffers[1], now);
            break;
        case QN_STEP_BIND:
            if (check)
                QN_TRY(read_buffer(f, step, step->buffers[0], now));
            break;
        case QN_STEP_LOOP: QN_TRY(follow_loop(f, step, now, check)); break;
        case QN_STEP_IF: QN_TRY(follow_if(f, step, now, check)); break;
        case QN_STEP_SWAP:
        case QN_STEP_CHECK: break;
        }
    }
    return QUERN_OK;
}

qn_status qn_program_check_contents(const qn_program_check *c)
{
    const qn_program *p = c->p;
    follower f = { .c = c, .p = p, .mates = qn_program_mates(p, c->arena) };
    find_overlaps(&f);
    return follow_steps(&f, &p->steps, QN_NEW_ARRAY(c->arena, contents, p->n_buffers), true);
}
