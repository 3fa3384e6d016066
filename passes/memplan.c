/* Memory plan: where each arena buffer lies, so that buffers that are never live together share bytes.
 *
 * Before: ARENA buffers have no offset. After: they have one, a multiple of QN_ARENA_ALIGNMENT; arena_bytes holds them all;
 * buffers live at one step do not overlap, which is checked again from the result alone.
 *
 * Buffers of constant size are placed greedily, largest first, at the lowest offset that is free over their whole
 * lifetime (Pisarchyk and Lee, 2020, "greedy by size"). Behind them come slots for buffers whose size depends on
 * symbols: a slot is as large as its largest tenant, where the compiler can tell which that is. */
#include <stdlib.h>

#include "passes/pass.h"

typedef struct {
    int buffer; /* the one that owns the place; others share it through `shared` */
    int first, last;
    qn_dim bytes; /* rounded up to QN_ARENA_ALIGNMENT */
    qn_dim offset;
    bool used;
} lifetime;

typedef struct {
    qn_program *p;
    lifetime *of; /* by buffer; of a buffer that shares: unused */
    int *shared;  /* by buffer: whose place it has; itself */
    int *mates;   /* by buffer: see qn_program_mates */
} planner;

static int owner(const planner *plan, int buffer)
{
    while (plan->shared[buffer] != buffer)
        buffer = plan->shared[buffer];
    return buffer;
}

static bool in_arena(const planner *plan, int buffer)
{
    return plan->p->buffers[buffer].place == QN_PLACE_ARENA;
}

/* ---- lifetimes ---- */

static void touch(planner *plan, int buffer, int from, int to)
{
    lifetime *life = &plan->of[buffer];
    if (!life->used || from < life->first)
        life->first = from;
    if (!life->used || to > life->last)
        life->last = to;
    life->used = true;
}

/* Does the step write the buffer without reading it first? */
static bool overwrites(const qn_program *p, const qn_step *step, int root)
{
    bool writes = false;
    for (int i = 0; i < step->n_buffers; i++) {
        if (qn_program_root(p, step->buffers[i]) != root)
            continue;
        if (!qn_step_writes(p, step, i) || qn_step_reads(p, step, i))
            return false;
        writes = true;
    }
    return writes;
}

/* A pointer variable may point to any of the buffers that it was exchanged with. */
static void touch_buffer(planner *plan, int buffer, int from, int to, bool *read_first)
{
    const int root = qn_program_root(plan->p, buffer);
    const bool slot = qn_program_through_slot(plan->p, buffer);
    int at = root;
    do {
        if (in_arena(plan, at)) {
            read_first[at] |= slot;
            touch(plan, at, from, to);
        }
        at = plan->mates[at];
    } while (slot && at != root);
}

static void touch_step(planner *plan, const qn_step *step, bool *read_first)
{
    const qn_program *p = plan->p;
    for (int i = 0; i < step->n_buffers; i++) {
        const int root = qn_program_root(p, step->buffers[i]);
        if (in_arena(plan, root) && !plan->of[root].used && !overwrites(p, step, root))
            read_first[root] = true;
        touch_buffer(plan, step->buffers[i], step->number, step->number, read_first);
    }
    if (step->condition >= 0)
        touch_buffer(plan, step->condition, step->number,
                     step->kind == QN_STEP_LOOP ? step->last : step->number, read_first);
}

/* What is used in a loop and also outside it, or carries something from one iteration to the next, lives through the
 * whole loop. */
static void collect(planner *plan, const qn_steps *steps, bool *read_first)
{
    int n = plan->p->n_buffers;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        touch_step(plan, step, read_first);
        if (step->kind != QN_STEP_LOOP) {
            collect(plan, &step->body, read_first);
            collect(plan, &step->other, read_first);
            continue;
        }
        bool *inside_read_first = calloc((size_t)n + 1, sizeof *inside_read_first);
        QN_ASSERT(inside_read_first, "memplan: out of memory");
        collect(plan, &step->test, inside_read_first);
        collect(plan, &step->body, inside_read_first);
        for (int b = 0; b < n; b++) {
            lifetime *life = &plan->of[b];
            bool inside = life->used && life->last >= step->number && life->last <= step->last;
            if (inside && (life->first < step->number || inside_read_first[b]))
                touch(plan, b, step->number, step->last);
            if (inside && life->first >= step->number)
                read_first[b] |= inside_read_first[b];
        }
        free(inside_read_first);
    }
}

/* A buffer that lives inside a loop by the walk above but is touched again behind it was first met inside: it holds what
 * the loop leaves (stacked outputs), so it lives from the loop's beginning. */
static void extend_over_loops(planner *plan, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        if (step->kind == QN_STEP_LOOP) {
            for (int b = 0; b < plan->p->n_buffers; b++) {
                lifetime *life = &plan->of[b];
                if (life->used && life->first > step->number && life->first <= step->last &&
                    life->last > step->last)
                    life->first = step->number;
            }
        }
        extend_over_loops(plan, &step->test);
        extend_over_loops(plan, &step->body);
        extend_over_loops(plan, &step->other);
    }
}

/* ---- in place: the result of an element-wise kernel, or a copy, takes the place of an operand that dies there ---- */

static bool share(planner *plan, const qn_step *step, int from, int to)
{
    if (!in_arena(plan, to) || owner(plan, to) != to || !in_arena(plan, from) || to == from)
        return false;
    lifetime *a = &plan->of[from], *b = &plan->of[to];
    if (a->last != step->number || b->first != step->number || a->bytes != b->bytes)
        return false;
    a->last = b->last;
    plan->shared[to] = from;
    b->used = false;
    return true;
}

static void share_in_place(planner *plan, const qn_steps *steps)
{
    qn_program *p = plan->p;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        share_in_place(plan, &step->test);
        share_in_place(plan, &step->body);
        share_in_place(plan, &step->other);
        if (step->kind == QN_STEP_COPY)
            share(plan, step, owner(plan, step->buffers[0]), step->buffers[1]);
        if (step->kind != QN_STEP_KERNEL)
            continue;
        const qn_kernel *k = p->kernels[step->kernel];
        for (int j = 0; j < k->n_buffers; j++) {
            int source = k->buffers[j]->inplace;
            if (!k->buffers[j]->written || source < 0)
                continue;
            int times = 0;
            for (int m = 0; m < k->n_buffers; m++)
                times += qn_program_root(p, step->buffers[m]) == qn_program_root(p, step->buffers[source]);
            if (times == 1)
                share(plan, step, owner(plan, step->buffers[source]), step->buffers[j]);
        }
    }
}

/* Copies of a buffer to its own place go. */
static void remove_void_copies(const planner *plan, qn_steps *steps)
{
    size_t kept = 0;
    for (size_t i = 0; i < steps->n; i++) {
        qn_step *step = &steps->items[i];
        remove_void_copies(plan, &step->test);
        remove_void_copies(plan, &step->body);
        remove_void_copies(plan, &step->other);
        if (step->kind == QN_STEP_COPY && in_arena(plan, step->buffers[0]) &&
            in_arena(plan, step->buffers[1]) &&
            owner(plan, step->buffers[0]) == owner(plan, step->buffers[1]))
            continue;
        steps->items[kept++] = *step;
    }
    steps->n = kept;
}

/* Numbers of the steps that are left, in order. */
static void collect_numbers(const qn_steps *steps, int *numbers, int *n)
{
    for (size_t i = 0; i < steps->n; i++) {
        numbers[(*n)++] = steps->items[i].number;
        collect_numbers(&steps->items[i].test, numbers, n);
        collect_numbers(&steps->items[i].body, numbers, n);
        collect_numbers(&steps->items[i].other, numbers, n);
    }
}

/* After steps went: new numbers, and lifetimes in them. */
static void renumber(planner *plan, int n_before)
{
    qn_program *p = plan->p;
    int *numbers = QN_NEW_ARRAY(p->arena, int, n_before), n = 0;
    collect_numbers(&p->steps, numbers, &n);
    qn_program_number(p);
    for (int i = 0; i < p->n_buffers; i++) {
        if (!in_arena(plan, i))
            continue;
        qn_pbuffer *b = &p->buffers[i];
        int first = 0, last = -1;
        while (first < n && numbers[first] < b->first)
            first++;
        while (last + 1 < n && numbers[last + 1] <= b->last)
            last++;
        b->first = first <= last ? first : 0; /* not used any more */
        b->last = first <= last ? last : 0;
    }
}

/* ---- placing ---- */

static bool meet(const lifetime *a, const lifetime *b)
{
    return a->first <= b->last && b->first <= a->last;
}

static int by_size(const void *x, const void *y)
{
    const lifetime *a = *(lifetime *const *)x, *b = *(lifetime *const *)y;
    if (a->bytes->value != b->bytes->value)
        return a->bytes->value < b->bytes->value ? 1 : -1;
    if (a->first != b->first)
        return a->first - b->first;
    return a->buffer - b->buffer;
}

static int by_offset(const void *x, const void *y)
{
    const lifetime *a = *(lifetime *const *)x, *b = *(lifetime *const *)y;
    return (a->offset->value > b->offset->value) - (a->offset->value < b->offset->value);
}

/* Bytes used. */
static int64_t place_constants(planner *plan, lifetime **items, int n)
{
    qn_arena *arena = plan->p->arena;
    lifetime **near = QN_NEW_ARRAY(arena, lifetime *, n);
    int64_t end = 0;
    qsort(items, (size_t)n, sizeof *items, by_size);
    for (int i = 0; i < n; i++) {
        int n_near = 0;
        for (int j = 0; j < i; j++) {
            if (meet(items[i], items[j]))
                near[n_near++] = items[j];
        }
        qsort(near, (size_t)n_near, sizeof *near, by_offset);
        int64_t at = 0, size = items[i]->bytes->value;
        for (int j = 0; j < n_near; j++) {
            int64_t from = near[j]->offset->value, to = from + near[j]->bytes->value;
            if (from - at >= size)
                break;
            if (to > at)
                at = to;
        }
        items[i]->offset = qn_dim_const(plan->p->dims, at);
        if (at + size > end)
            end = at + size;
    }
    return end;
}

typedef struct {
    qn_dim bytes;
    lifetime **tenants;
    int n;
} slot;

static bool slot_is_free(const slot *s, const lifetime *life)
{
    for (int i = 0; i < s->n; i++) {
        if (meet(s->tenants[i], life))
            return false;
    }
    return true;
}

static int by_first(const void *x, const void *y)
{
    const lifetime *a = *(lifetime *const *)x, *b = *(lifetime *const *)y;
    return a->first != b->first ? a->first - b->first : a->buffer - b->buffer;
}

static qn_dim place_symbolic(planner *plan, lifetime **items, int n, qn_dim base)
{
    qn_program *p = plan->p;
    slot *slots = QN_NEW_ARRAY(p->arena, slot, n);
    slot **of = QN_NEW_ARRAY(p->arena, slot *, n);
    int n_slots = 0;
    qsort(items, (size_t)n, sizeof *items, by_first);
    for (int i = 0; i < n; i++) {
        qn_dim bytes = items[i]->bytes;
        slot *best = NULL;
        for (int j = 0; j < n_slots; j++) {
            slot *s = &slots[j];
            if (!slot_is_free(s, items[i]))
                continue;
            bool fits = qn_dim_at_most(p->dims, bytes, s->bytes),
                 grows = qn_dim_at_most(p->dims, s->bytes, bytes);
            if (!fits && !grows)
                continue;
            if (!best || s->bytes == bytes ||
                (fits && best->bytes != bytes && qn_dim_at_most(p->dims, s->bytes, best->bytes)))
                best = s;
        }
        if (!best) {
            best = &slots[n_slots++];
            best->bytes = bytes;
            best->tenants = QN_NEW_ARRAY(p->arena, lifetime *, n);
        }
        if (!qn_dim_at_most(p->dims, bytes, best->bytes))
            best->bytes = bytes;
        best->tenants[best->n++] = items[i];
        of[i] = best;
    }
    for (int j = 0; j < n_slots; j++) {
        for (int i = 0; i < n; i++) {
            if (of[i] == &slots[j])
                items[i]->offset = base;
        }
        base = qn_dim_add(p->dims, base, slots[j].bytes);
    }
    return base;
}

/* ---- the figures, and the check ---- */

static qn_dim live_bytes(const planner *plan, lifetime *const *items, int n, int step)
{
    qn_dim sum = qn_dim_const(plan->p->dims, 0);
    for (int i = 0; i < n; i++) {
        if (items[i]->first <= step && step <= items[i]->last)
            sum = qn_dim_add(plan->p->dims, sum, items[i]->bytes);
    }
    return sum;
}

/* The largest at one step; with symbols, at the step where it is largest for large symbols. */
static qn_dim lower_bound(const planner *plan, lifetime *const *items, int n)
{
    qn_dim best = qn_dim_const(plan->p->dims, 0);
    int previous = -1;
    for (int i = 0; i < n; i++) { /* a maximum is reached where something begins; items may be in any order */
        int step = items[i]->first;
        if (step == previous)
            continue;
        previous = step;
        qn_dim here = live_bytes(plan, items, n, step);
        if (here->max > best->max || (here->max == best->max && qn_dim_at_most(plan->p->dims, best, here)))
            best = here;
    }
    return best;
}

static qn_status check(const planner *plan, lifetime *const *items, int n, qn_diags *diags)
{
    qn_dims *dims = plan->p->dims;
    qn_dim *ends = QN_NEW_ARRAY(plan->p->arena, qn_dim, n);
    for (int i = 0; i < n; i++) {
        ends[i] = qn_dim_add(dims, items[i]->offset, items[i]->bytes);
        for (int j = 0; j < i; j++) {
            const lifetime *a = items[i], *b = items[j];
            if (meet(a, b) && !qn_dim_at_most(dims, ends[j], a->offset) &&
                !qn_dim_at_most(dims, ends[i], b->offset))
                return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "memory plan: buffers %d and %d overlap",
                                a->buffer, b->buffer);
        }
    }
    return QUERN_OK;
}

/* A size is more than a dim can express (ir/dim.h): INT64_MAX. A run that decides dims cannot fix them. */
static qn_status refuse(const qn_program *p, qn_diags *diags)
{
    const int n = p->n_entry_symbols;
    const char *advice = "";
    for (int i = 0; i < n && i < 4; i++)
        advice = qn_arena_printf(p->arena, "%s%s%s", advice, i ? ", " : ": fix some of ",
                                 qn_dims_symbol_at(p->dims, i)->name);
    if (n > 0)
        advice = qn_arena_printf(p->arena, "%s%s (--dim NAME=N)", advice, n > 4 ? ", …" : "");
    return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                    "the workspace of '%s' depends in too many ways on its %d dimensions%s", p->name,
                    qn_dims_symbol_count(p->dims), advice);
}

qn_status qn_memplan(qn_program *p, qn_diags *diags)
{
    const int n_steps = qn_program_number(p);
    planner plan = { .p = p,
                     .of = QN_NEW_ARRAY(p->arena, lifetime, p->n_buffers + 1),
                     .shared = QN_NEW_ARRAY(p->arena, int, p->n_buffers + 1),
                     .mates = qn_program_mates(p, p->arena) };
    for (int i = 0; i < p->n_buffers; i++) {
        plan.shared[i] = i;
        plan.of[i].buffer = i;
        plan.of[i].bytes = qn_program_place_bytes(p, i);
    }
    bool *read_first = QN_NEW_ARRAY(p->arena, bool, p->n_buffers + 1);
    collect(&plan, &p->steps, read_first);
    extend_over_loops(&plan, &p->steps);
    share_in_place(&plan, &p->steps);
    lifetime **constant = QN_NEW_ARRAY(p->arena, lifetime *, p->n_buffers), **all;
    lifetime **symbolic = QN_NEW_ARRAY(p->arena, lifetime *, p->n_buffers);
    int n_constant = 0, n_symbolic = 0;
    for (int i = 0; i < p->n_buffers; i++) {
        lifetime *life = &plan.of[i];
        if (!in_arena(&plan, i) || !life->used)
            continue;
        if (qn_dim_is(life->bytes, INT64_MAX))
            return refuse(p, diags);
        if (qn_dim_is_const(life->bytes))
            constant[n_constant++] = life;
        else
            symbolic[n_symbolic++] = life;
    }
    qn_dim end = qn_dim_const(p->dims, place_constants(&plan, constant, n_constant));
    p->arena_bytes = place_symbolic(&plan, symbolic, n_symbolic, end);
    if (n_symbolic > 0 && qn_dim_is(p->arena_bytes, INT64_MAX))
        return refuse(p, diags);
    for (int i = 0; i < p->n_buffers; i++) {
        if (!in_arena(&plan, i))
            continue;
        const lifetime *life = &plan.of[owner(&plan, i)];
        p->buffers[i].offset = life->offset ? life->offset : qn_dim_const(p->dims, 0);
        p->buffers[i].first = life->first;
        p->buffers[i].last = life->last;
    }
    all = QN_NEW_ARRAY(p->arena, lifetime *, n_constant + n_symbolic);
    for (int i = 0; i < n_constant + n_symbolic; i++)
        all[i] = i < n_constant ? constant[i] : symbolic[i - n_constant];
    p->arena_lower_bound = lower_bound(&plan, all, n_constant + n_symbolic);
    remove_void_copies(&plan, &p->steps);
    renumber(&plan, n_steps);
    return check(&plan, all, n_constant + n_symbolic, diags);
}
