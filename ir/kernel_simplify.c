/* qn_kernel_simplify: three sweeps over a kernel.
 *
 *   fold    the body made anew through the folding builder; loops that never run go, loops that run once are unwrapped,
 *           `if` on a constant is replaced by its block
 *   share   equal pure instructions in a block and its parents become one; what does not change in a loop moves in
 *           front of it
 *   sweep   values nobody reads go, carried values among them
 *
 *   for %i = 0 to 1 step 1 { for %j = 0 to %n step 1 { %a = imul %i, %n  %b = iadd %a, %j  … } }
 *   for %j = 0 to %n step 1 { … %j … } */
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"

/* ---- fold ---- */

/* The block's instructions at the cursor, its arguments being `arguments`, its yields the results of inst. */
static void inline_block(qn_krewriter *r, qn_kinst *inst, qn_kblock *block, qn_kvalue *const *arguments)
{
    for (int i = 0; i < block->n_arguments; i++)
        block->arguments[i].user = arguments[i];
    qn_kr_block(r, block);
    for (int i = 0; i < inst->n_results; i++)
        inst->results[i].user = qn_kr_get(block->yields[i]);
}

static int64_t trips_of(qn_kvalue *low, qn_kvalue *high, qn_kvalue *step)
{
    qn_kvalue *operands[3] = { low, high, step };
    qn_kinst probe = { .op = QN_K_FOR, .n_operands = 3, .operands = operands };
    int64_t trips = qn_kfor_trips(&probe);
    /* One trip also where low < high is proven and low + step reaches high. */
    int64_t width;
    if (trips < 0 && qn_k_is_const(step) && qn_k_proven_lt(low, high) && high->max != INT64_MAX &&
        !__builtin_sub_overflow(high->max, low->min, &width) && width <= step->inst->imm.i)
        return 1;
    return trips;
}

static bool fold(qn_krewriter *r, qn_kinst *inst)
{
    if (inst->op == QN_K_IF && qn_k_is_const(qn_kr_get(inst->operands[0]))) {
        bool taken = qn_kr_get(inst->operands[0])->inst->imm.i != 0;
        inline_block(r, inst, inst->blocks[taken ? 0 : 1], NULL);
        return true;
    }
    if (inst->op != QN_K_FOR || inst->tag == QN_TAG_GPU_THREAD)
        return false;
    qn_kvalue *low = qn_kr_get(inst->operands[0]);
    int64_t trips = trips_of(low, qn_kr_get(inst->operands[1]), qn_kr_get(inst->operands[2]));
    if (trips != 0 && trips != 1)
        return false;
    qn_kvalue **arguments = QN_NEW_ARRAY(r->b.kernel->arena, qn_kvalue *, 1 + inst->n_results);
    arguments[0] = low;
    for (int i = 0; i < inst->n_results; i++)
        arguments[1 + i] = qn_kr_get(inst->operands[3 + i]);
    if (trips == 1)
        inline_block(r, inst, inst->blocks[0], arguments);
    else
        for (int i = 0; i < inst->n_results; i++)
            inst->results[i].user = arguments[1 + i];
    return true;
}

/* ---- share ---- */

/* Pure instructions seen so far, in scopes: leaving a block forgets what it added. */
typedef struct known {
    qn_kinst *inst;
    uint64_t hash;
    int below; /* index of the one before in the chain, or -1 */
} known;

typedef struct sharing {
    qn_kernel *kernel;
    qn_vec(known) seen;
    bool moved; /* something went to an outer scope: another round may find it there */
    int heads[1024];
} sharing;

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

static uint64_t hash_inst(const qn_kinst *inst)
{
    uint64_t h = mix(inst->op, (uint64_t)inst->fn);
    h = mix(h, (uint64_t)inst->imm.i);
    h = mix(h, (uint64_t)inst->index);
    h = mix(h, (uint64_t)inst->results[0].type.dtype * 256 + (uint64_t)inst->results[0].type.lanes);
    for (int i = 0; i < inst->n_operands; i++)
        h = mix(h, (uint64_t)inst->operands[i]->serial);
    return h;
}

static bool same_inst(const qn_kinst *a, const qn_kinst *b)
{
    if (a->op != b->op || a->fn != b->fn || a->direction != b->direction || a->kind != b->kind ||
        a->imm.i != b->imm.i || a->index != b->index || a->buffer != b->buffer || a->fast != b->fast ||
        a->nonpositive != b->nonpositive || a->index_math != b->index_math || a->n_mask != b->n_mask ||
        a->n_operands != b->n_operands || !qn_ktype_equal(a->results[0].type, b->results[0].type))
        return false;
    for (int i = 0; i < a->n_operands; i++)
        if (a->operands[i] != b->operands[i])
            return false;
    if (a->table && memcmp(a->table, b->table, QN_LOOKUP * sizeof *a->table) != 0)
        return false;
    return a->n_mask == 0 || memcmp(a->mask, b->mask, (size_t)a->n_mask * sizeof *a->mask) == 0;
}

static void sort_operands(qn_kinst *inst)
{
    bool swap = inst->op == QN_K_BINARY && (qn_ops[inst->fn].flags & QN_FLAG_COMMUTES) &&
                !inst->index_math && /* has an order of its own */
                /* of two NaN or two zeros, max and min give the first or the second */
                !(qn_dtype_is_float(inst->results[0].type.dtype) &&
                  (inst->fn == QN_OP_MAX || inst->fn == QN_OP_MIN)) &&
                !qn_k_is_const(inst->operands[1]) &&
                (qn_k_is_const(inst->operands[0]) || inst->operands[0]->serial > inst->operands[1]->serial);
    if (swap) {
        qn_kvalue *first = inst->operands[0];
        inst->operands[0] = inst->operands[1];
        inst->operands[1] = first;
    }
}

static qn_kvalue *current(qn_kvalue *v)
{
    while (v->user)
        v = v->user;
    return v;
}

static void clear_users(qn_kblock *block)
{
    for (int i = 0; i < block->n_arguments; i++)
        block->arguments[i].user = NULL;
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_results; i++)
            inst->results[i].user = NULL;
        for (int i = 0; i < inst->n_blocks; i++)
            clear_users(inst->blocks[i]);
    }
}

static bool surely_runs(const qn_kinst *loop)
{
    return qn_k_proven_lt(loop->operands[0], loop->operands[1]);
}

/* Is the value defined outside `loop`? */
static bool outside(const qn_kvalue *v, const qn_kinst *loop)
{
    return !qn_kblock_inside(qn_kvalue_block(v), loop->blocks[0]);
}

/* Outermost loop that `inst` (in `loop`'s own block) can be moved in front of, or NULL. Walks outwards. */
static qn_kinst *hoist_target(const qn_kinst *inst, bool guarded)
{
    qn_kinst *target = NULL;
    const qn_kblock *block = inst->parent;
    while (block->owner && block->owner->op == QN_K_FOR) {
        qn_kinst *loop = block->owner;
        for (int i = 0; i < inst->n_operands; i++)
            if (!outside(inst->operands[i], loop))
                return target;
        if (inst->op == QN_K_LOAD) {
            if (guarded || !surely_runs(loop))
                return target;
            /* Only one loop at a time: what guards the outer loop's body before this loop is not known here. */
            return loop;
        }
        target = loop;
        block = loop->parent;
    }
    return target;
}

static void share_block(sharing *s, qn_kblock *block);

/* True when something in the instruction may end the task or keep what follows from running. */
static bool guards(const qn_kinst *inst)
{
    if (inst->op == QN_K_CHECK)
        return true;
    for (int b = 0; b < inst->n_blocks; b++)
        for (const qn_kinst *inner = inst->blocks[b]->first; inner; inner = inner->next)
            if (guards(inner))
                return true;
    return false;
}

static qn_kinst *find_equal(const sharing *s, const qn_kinst *inst, uint64_t hash)
{
    for (int at = s->heads[hash % 1024]; at >= 0; at = s->seen.items[at].below)
        if (s->seen.items[at].hash == hash && same_inst(s->seen.items[at].inst, inst))
            return s->seen.items[at].inst;
    return NULL;
}

static void remember(sharing *s, qn_kinst *inst, uint64_t hash)
{
    known k = { inst, hash, s->heads[hash % 1024] };
    s->heads[hash % 1024] = (int)s->seen.n;
    qn_vec_push(s->kernel->arena, &s->seen, k);
}

static void share_inst(sharing *s, qn_kinst *inst, bool guarded)
{
    for (int i = 0; i < inst->n_operands; i++)
        inst->operands[i] = current(inst->operands[i]);
    for (int i = 0; i < inst->n_blocks; i++)
        share_block(s, inst->blocks[i]);
    if (inst->n_results != 1 || !qn_kinst_is_pure(s->kernel, inst))
        return;
    sort_operands(inst);
    uint64_t hash = hash_inst(inst);
    qn_kinst *equal = find_equal(s, inst, hash);
    if (equal) {
        inst->results[0].user = &equal->results[0];
        qn_kinst_unlink(inst);
        return;
    }
    qn_kinst *loop = hoist_target(inst, guarded);
    if (loop) {
        qn_kblock *into = loop->parent;
        qn_kinst_unlink(inst);
        qn_kblock_insert(into, inst, loop);
        s->moved = true;
    }
    remember(s, inst, hash);
}

static void share_block(sharing *s, qn_kblock *block)
{
    size_t mark = s->seen.n;
    bool guarded = false;
    for (qn_kinst *inst = block->first, *next; inst; inst = next) {
        next = inst->next;
        share_inst(s, inst, guarded);
        guarded = guarded || guards(inst);
    }
    for (int i = 0; i < block->n_yields; i++)
        block->yields[i] = current(block->yields[i]);
    while (s->seen.n > mark) {
        known *k = &s->seen.items[--s->seen.n];
        s->heads[k->hash % 1024] = k->below;
    }
}

static void share(qn_kernel *kernel)
{
    sharing *s = QN_NEW(kernel->arena, sharing);
    s->kernel = kernel;
    for (int i = 0; i < 1024; i++)
        s->heads[i] = -1;
    for (int round = 0; round < 4 && (round == 0 || s->moved); round++) {
        s->moved = false;
        clear_users(kernel->body);
        share_block(s, kernel->body);
    }
}

/* ---- sweep ---- */

/* user is non-NULL on values that are needed. */
static void need(qn_kvalue *v)
{
    if (v->user)
        return;
    v->user = v;
    if (!v->inst) { /* carried: what comes in and what comes round */
        qn_kinst *loop = v->block->owner;
        if (v->index > 0) {
            need(loop->operands[2 + v->index]);
            need(v->block->yields[v->index - 1]);
            need(&loop->results[v->index - 1]);
        }
        return;
    }
    qn_kinst *inst = v->inst;
    if (inst->op == QN_K_FOR) {
        need(&inst->blocks[0]->arguments[1 + v->index]);
        return;
    }
    if (inst->op == QN_K_IF) {
        need(inst->operands[0]);
        need(inst->blocks[0]->yields[v->index]);
        need(inst->blocks[1]->yields[v->index]);
        return;
    }
    for (int i = 0; i < inst->n_operands; i++)
        need(inst->operands[i]);
}

static bool needs_effects(const qn_kernel *k, qn_kblock *block);

/* Marks what instructions with effects read; true when the instruction has one. */
static bool need_effect(const qn_kernel *k, qn_kinst *inst)
{
    if (inst->op == QN_K_FOR || inst->op == QN_K_IF) {
        bool effect = false;
        for (int i = 0; i < inst->n_blocks; i++)
            effect = needs_effects(k, inst->blocks[i]) || effect;
        for (int i = 0; effect && i < (inst->op == QN_K_FOR ? 3 : 1); i++)
            need(inst->operands[i]);
        return effect;
    }
    if (inst->op == QN_K_LOAD || inst->op == QN_K_WARP_LOAD || qn_kinst_is_pure(k, inst))
        return false;
    for (int i = 0; i < inst->n_operands; i++)
        need(inst->operands[i]);
    return true;
}

static bool needs_effects(const qn_kernel *k, qn_kblock *block)
{
    bool effect = false;
    for (qn_kinst *inst = block->first; inst; inst = inst->next)
        effect = need_effect(k, inst) || effect;
    return effect;
}

static bool has_needed(qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_results; i++)
            if (inst->results[i].user)
                return true;
        if (inst->op != QN_K_FOR && inst->op != QN_K_IF && inst->n_results == 0)
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (has_needed(inst->blocks[i]))
                return true;
    }
    return false;
}

/* Loops whose results are needed read their bounds. Repeats until nothing new is needed. */
static bool need_bounds(qn_kblock *block)
{
    bool more = false;
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_blocks; i++)
            more = need_bounds(inst->blocks[i]) || more;
        if (inst->op != QN_K_FOR)
            continue;
        bool used = has_needed(inst->blocks[0]);
        for (int i = 0; i < inst->n_results; i++)
            used = used || inst->results[i].user;
        for (int i = 0; used && i < 3; i++) {
            more = more || !inst->operands[i]->user;
            need(inst->operands[i]);
        }
    }
    return more;
}

/* Removes the results and carried values (or yields) that nobody needs, in place. */
static void drop_results(qn_kernel *k, qn_kinst *inst)
{
    int kept = 0;
    bool loop = inst->op == QN_K_FOR;
    for (int i = 0; i < inst->n_results; i++)
        kept += inst->results[i].user != NULL;
    if (kept == inst->n_results)
        return;
    qn_kvalue *results = QN_NEW_ARRAY(k->arena, qn_kvalue, kept);
    qn_kvalue *arguments = QN_NEW_ARRAY(k->arena, qn_kvalue, 1 + kept);
    qn_kind *kinds = inst->carried_kinds ? QN_NEW_ARRAY(k->arena, qn_kind, kept) : NULL;
    qn_kvalue **yields[2] = { 0 };
    for (int b = 0; b < inst->n_blocks; b++)
        yields[b] = QN_NEW_ARRAY(k->arena, qn_kvalue *, kept);
    /* Readers point at the old values: these stand for the new ones through `user`, resolved afterwards. */
    if (loop) {
        arguments[0] = inst->blocks[0]->arguments[0];
        inst->blocks[0]->arguments[0].user = &arguments[0];
    }
    for (int i = 0, at = 0; i < inst->n_results; i++) {
        if (!inst->results[i].user)
            continue;
        results[at] = inst->results[i];
        results[at].index = at;
        results[at].user = NULL;
        inst->results[i].user = &results[at];
        for (int b = 0; b < inst->n_blocks; b++)
            yields[b][at] = inst->blocks[b]->yields[i];
        if (loop) {
            arguments[1 + at] = inst->blocks[0]->arguments[1 + i];
            arguments[1 + at].index = 1 + at;
            arguments[1 + at].user = NULL;
            inst->blocks[0]->arguments[1 + i].user = &arguments[1 + at];
            inst->operands[3 + at] = inst->operands[3 + i];
        }
        if (kinds)
            kinds[at] = inst->carried_kinds[i];
        at++;
    }
    if (loop) {
        arguments[0].user = NULL;
        inst->n_operands = 3 + kept;
        inst->blocks[0]->arguments = arguments;
        inst->blocks[0]->n_arguments = 1 + kept;
    }
    for (int b = 0; b < inst->n_blocks; b++) {
        inst->blocks[b]->yields = yields[b];
        inst->blocks[b]->n_yields = kept;
    }
    inst->results = results;
    inst->n_results = kept;
    inst->carried_kinds = kinds;
}

static void remove_unneeded(qn_kernel *k, qn_kblock *block)
{
    for (qn_kinst *inst = block->first, *next; inst; inst = next) {
        next = inst->next;
        bool needed = inst->op != QN_K_FOR && inst->op != QN_K_IF && inst->n_results == 0;
        for (int i = 0; i < inst->n_results; i++)
            needed = needed || inst->results[i].user;
        for (int i = 0; i < inst->n_blocks; i++)
            needed = has_needed(inst->blocks[i]) || needed;
        /* Parameters stay: the builder looks for them at the front of the body. */
        if (!needed && inst->op != QN_K_PARAM) {
            qn_kinst_unlink(inst);
            continue;
        }
        for (int i = 0; i < inst->n_blocks; i++)
            remove_unneeded(k, inst->blocks[i]);
    }
}

/* A value that drop_results moved: `user` leads to where it is now (and to itself where it was only marked). */
static qn_kvalue *moved(qn_kvalue *v)
{
    return v->user && v->user != v ? v->user : v;
}

static void shrink(qn_kernel *k, qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->n_blocks > 0)
            drop_results(k, inst);
        for (int i = 0; i < inst->n_blocks; i++)
            shrink(k, inst->blocks[i]);
    }
}

static void resolve(qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_operands; i++)
            inst->operands[i] = moved(inst->operands[i]);
        for (int i = 0; i < inst->n_blocks; i++)
            resolve(inst->blocks[i]);
    }
    for (int i = 0; i < block->n_yields; i++)
        block->yields[i] = moved(block->yields[i]);
}

static void sweep(qn_kernel *kernel)
{
    clear_users(kernel->body);
    needs_effects(kernel, kernel->body);
    while (need_bounds(kernel->body))
        ;
    remove_unneeded(kernel, kernel->body);
    shrink(kernel, kernel->body);
    resolve(kernel->body);
    clear_users(kernel->body);
}

void qn_kernel_simplify(qn_kernel *kernel)
{
    qn_krewrite(kernel, fold, NULL);
    share(kernel);
    sweep(kernel);
}
