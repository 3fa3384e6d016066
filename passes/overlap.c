/* qn_kernel_overlap: passes over a row run together with the passes before them over the next rows.
 *
 * Before:  for %r = %lo to %hi overlap { A: for %c …   B: for %c …   C: for %c … }     each needs all that the one before makes
 * After:   A of row lo;  B of row lo with A of the next
 *          for %i = %lo + 1 to %hi { for %c … { C of row %i - 1, B of row %i, A of row %i + 1 } }
 *          C of the last row
 *
 * So what waits for memory, what computes and what stores are under way at any time, and nothing waits at the end of a row for a
 * sum over its lanes. A row's values go from iteration to iteration as carried ones; the last row's first passes run twice.
 * What a pass puts into local memory for the next one lies at the same column, which the other row's reader has left. */
#include "ir/kernel_edit.h"
#include "passes/lower.h"

enum { MOST = 3 }; /* passes */

/* A value of the body of the loop over rows, outside the passes. */
typedef struct value {
    qn_kvalue *old;
    int pass;              /* in which it is made: by its loop, or in front of that */
    int age;               /* how many passes later it is needed at most */
    bool repeated;         /* made from the row's number alone: each pass makes it for itself */
    qn_kvalue *made[MOST]; /* by the passes of this step, each for its row */
    qn_kvalue *aged[MOST]; /* made in the last step, and so on */
} value;

typedef struct overlap {
    qn_krewriter *r;
    const qn_kernel *kernel;
    qn_kinst *rows;
    int n, last; /* passes found, and the number of the last one */
    qn_kinst *passes[MOST];
    qn_vec(value) values;
    qn_kvalue *counters[MOST]; /* of the rows that this step's passes are at */
} overlap;

/* ---- what can be overlapped ---- */

static value *find(overlap *o, const qn_kvalue *old)
{
    for (size_t i = 0; i < o->values.n; i++)
        if (o->values.items[i].old == old)
            return &o->values.items[i];
    return NULL;
}

static void need(overlap *o, const qn_kvalue *old, int pass)
{
    value *v = find(o, old);
    if (v && !v->repeated && pass - v->pass > v->age)
        v->age = pass - v->pass;
}

/* Local memory hands an element of a row on to the next pass, at that element's column; arguments are read or written, and rows
 * do not share their elements. The first pass over the last row comes twice, so what it stores must not depend on what was
 * stored since: it is not in place of an input, nor does the last of two passes, which is at that row by then, come in between. */
static bool memory_fits(const overlap *o, const qn_kinst *inst, int pass, const qn_kvalue *column,
                        int *written_in)
{
    const qn_kbuffer *buffer = inst->buffer;
    if (buffer->space == QN_SPACE_ARGUMENT)
        return inst->op != QN_K_STORE
                   ? !buffer->written || inst->op == QN_K_PREFETCH
                   : !buffer->read && (pass == o->last || (o->last > 1 && buffer->inplace < 0));
    if (buffer->space != QN_SPACE_LOCAL || !column || inst->operands[0] != column)
        return false;
    for (int i = o->kernel->n_buffers; i < o->kernel->n_all_buffers; i++)
        if (o->kernel->buffers[i] == buffer) {
            if (inst->op == QN_K_STORE && written_in[i] < 0)
                written_in[i] = pass;
            return inst->op == QN_K_STORE ? written_in[i] == pass : written_in[i] == pass - 1;
        }
    return false;
}

static bool body_fits(overlap *o, const qn_kinst *loop, int pass, int *written_in)
{
    const qn_kblock *body = loop->blocks[0];
    for (const qn_kinst *inst = body->first; inst; inst = inst->next) {
        const bool memory = inst->op == QN_K_LOAD || inst->op == QN_K_STORE || inst->op == QN_K_PREFETCH;
        if (memory ? !memory_fits(o, inst, pass, &body->arguments[0], written_in)
                   : inst->n_results != 1 || inst->n_blocks > 0)
            return false;
        for (int i = 0; i < inst->n_operands; i++)
            need(o, inst->operands[i], pass);
    }
    for (int i = 0; i < body->n_yields; i++)
        need(o, body->yields[i], pass);
    return true;
}

static bool same(const qn_kvalue *x, const qn_kvalue *y)
{
    return x == y || (qn_k_is_const(x) && qn_k_is_index_const(y, x->inst->imm.i));
}

static bool is_pass(const overlap *o, const qn_kinst *inst)
{
    const qn_kinst *first = o->n > 0 ? o->passes[0] : inst;
    bool fits = inst->op == QN_K_FOR && inst->tag == QN_TAG_VECTOR && inst->lanes == first->lanes &&
                qn_k_is_index_const(inst->operands[2], 1);
    for (int i = 0; i < inst->n_results && fits; i++)
        fits = inst->carried_kinds;
    return fits && same(inst->operands[0], first->operands[0]) && same(inst->operands[1], first->operands[1]);
}

static void add_value(overlap *o, qn_kvalue *old, bool repeated)
{
    const value v = { .old = old, .pass = o->n, .repeated = repeated };
    qn_vec_push(o->kernel->arena, &o->values, v);
}

/* Finds the passes and what goes from one to the next. */
static bool survey(overlap *o)
{
    const qn_kblock *body = o->rows->blocks[0];
    int *written_in = QN_NEW_ARRAY(o->kernel->arena, int, o->kernel->n_all_buffers);
    for (int i = 0; i < o->kernel->n_all_buffers; i++)
        written_in[i] = -1;
    if (o->rows->n_results > 0 || !qn_k_is_index_const(o->rows->operands[2], 1))
        return false;
    o->last = -1;
    for (const qn_kinst *inst = body->first; inst; inst = inst->next)
        o->last += inst->op == QN_K_FOR;
    if (o->last < 1 || o->last >= MOST)
        return false;
    add_value(o, &body->arguments[0], true);
    for (qn_kinst *inst = body->first; inst; inst = inst->next) {
        const int pass = o->n < o->last ? o->n : o->last; /* behind the last loop it is still its pass */
        bool repeated = qn_kinst_is_pure(o->kernel, inst);
        for (int i = 0; i < inst->n_operands; i++) {
            const value *v = find(o, inst->operands[i]);
            repeated &= !v || v->repeated;
        }
        if (is_pass(o, inst)) {
            for (int i = 0; i < inst->n_results; i++)
                add_value(o, &inst->results[i], false);
            for (int i = 0; i < 3; i++)
                if (find(o, inst->operands[i]) && !qn_k_is_const(inst->operands[i]))
                    return false;
            if (!body_fits(o, inst, o->n, written_in))
                return false;
            o->passes[o->n++] = inst;
        } else if (inst->n_blocks == 0 && inst->n_results == 1) {
            if (inst->op == QN_K_LOAD && !memory_fits(o, inst, pass, NULL, written_in))
                return false;
            add_value(o, &inst->results[0], repeated);
        } else if (inst->op != QN_K_STORE || !memory_fits(o, inst, pass, NULL, written_in)) {
            return false;
        }
        for (int i = 0; i < inst->n_operands; i++)
            need(o, inst->operands[i], pass);
    }
    return true;
}

/* ---- steps ---- */

static void copy(overlap *o, qn_kinst *inst)
{
    o->r->b.fast = inst->fast;
    qn_kr_copy(o->r, inst);
}

/* What is in front of the pass, for its row. Made by earlier passes: what they made for this row. */
static void open_pass(overlap *o, int pass, qn_kvalue *row)
{
    int before = 0;
    for (size_t i = 0; i < o->values.n; i++) {
        value *v = &o->values.items[i];
        v->old->user = v->pass < pass && !v->repeated ? v->aged[pass - v->pass - 1] : NULL;
    }
    qn_kr_set(&o->rows->blocks[0]->arguments[0], row);
    for (qn_kinst *inst = o->rows->blocks[0]->first; inst; inst = inst->next) {
        if (inst->op == QN_K_FOR)
            before++;
        else if (before == pass || (inst->n_results == 1 && find(o, inst->results)->repeated))
            copy(o, inst);
    }
    for (size_t i = 0; i < o->values.n; i++)
        o->values.items[i].made[pass] = o->values.items[i].old->user;
}

/* The names in the old body stand for what the pass sees at its row. */
static void at_pass(overlap *o, int pass)
{
    for (size_t i = 0; i < o->values.n; i++)
        o->values.items[i].old->user = o->values.items[i].made[pass];
}

static bool is_index_work(const qn_kinst *inst)
{
    return inst->op != QN_K_LOAD && inst->n_results == 1 && qn_k_is_index(inst->results);
}

/* Inputs are fetched ahead of the row that is read first. Not by indices that are data. */
static void fetch(overlap *o, int pass, int first)
{
    qn_kinst *from = o->passes[pass]->blocks[0]->first;
    at_pass(o, first);
    for (qn_kinst *inst = from; inst; inst = inst->next)
        for (int i = 0; i < inst->n_results; i++)
            inst->results[i].user = NULL;
    for (qn_kinst *inst = from; inst; inst = inst->next) {
        bool known = is_index_work(inst) || (inst->op == QN_K_PREFETCH && !inst->buffer->written);
        for (int i = 0; i < inst->n_operands; i++)
            known &= inst->operands[i]->user != NULL;
        if (known)
            copy(o, inst);
    }
}

static void write_body(overlap *o, int pass)
{
    for (qn_kinst *inst = o->passes[pass]->blocks[0]->first; inst; inst = inst->next)
        if (inst->op != QN_K_PREFETCH || inst->buffer->written)
            copy(o, inst);
}

/* Passes first … last, each over its row, in one loop; later passes go first: they read what earlier ones overwrite. */
static void step(overlap *o, int first, int last)
{
    qn_kbuilder *b = &o->r->b;
    qn_arena *arena = o->kernel->arena;
    int n = 0, at = 0;
    for (int p = first; p <= last; p++) {
        open_pass(o, p, o->counters[p]);
        n += o->passes[p]->n_results;
    }
    qn_kvalue **carried = QN_NEW_ARRAY(arena, qn_kvalue *, n + 1),
              **yields = QN_NEW_ARRAY(arena, qn_kvalue *, n + 1);
    qn_kind *kinds = QN_NEW_ARRAY(arena, qn_kind, n + 1);
    for (int p = last; p >= first; p--) {
        at_pass(o, p);
        for (int i = 0; i < o->passes[p]->n_results; i++, at++) {
            carried[at] = qn_kr_get(o->passes[p]->operands[3 + i]);
            kinds[at] = o->passes[p]->carried_kinds[i];
        }
    }
    const qn_kinst *like = o->passes[0];
    qn_kinst *loop = qn_kb_for(b, qn_kr_get(like->operands[0]), qn_kr_get(like->operands[1]),
                               qn_kr_get(like->operands[2]), QN_TAG_VECTOR, n, carried, kinds);
    loop->lanes = like->lanes;
    qn_kblock *body = loop->blocks[0];
    at = 0;
    for (int p = last; p >= first; p--) {
        qn_kblock *old = o->passes[p]->blocks[0];
        qn_kr_set(&old->arguments[0], &body->arguments[0]);
        fetch(o, p, first);
        at_pass(o, p);
        for (int i = 0; i < o->passes[p]->n_results; i++)
            qn_kr_set(&old->arguments[1 + i], &body->arguments[1 + at + i]);
        write_body(o, p);
        qn_kr_yields(old, yields + at);
        at += o->passes[p]->n_results;
    }
    qn_kb_end_for(b, loop, yields);
    at = 0;
    for (int p = last; p >= first; p--)
        for (int i = 0; i < o->passes[p]->n_results; i++, at++)
            find(o, &o->passes[p]->results[i])->made[p] = &loop->results[at];
    if (last == o->n - 1) {
        at_pass(o, last);
        for (qn_kinst *inst = o->passes[last]->next; inst; inst = inst->next)
            copy(o, inst);
    }
    for (size_t i = 0; i < o->values.n; i++) {
        value *v = &o->values.items[i];
        if (v->pass < first || v->pass > last)
            continue;
        for (int age = v->age - 1; age > 0; age--)
            v->aged[age] = v->aged[age - 1];
        v->aged[0] = v->made[v->pass];
    }
}

/* What is handed on from step to step, in an order of its own: put to `list` or taken from it. How many there are. */
static int hand_on(overlap *o, qn_kvalue **list, bool take)
{
    int n = 0;
    for (size_t i = 0; i < o->values.n; i++)
        for (int age = 0; age < o->values.items[i].age; age++, n++) {
            qn_kvalue **at = &o->values.items[i].aged[age];
            if (take)
                *at = list[n];
            else if (list)
                list[n] = *at;
        }
    return n;
}

static void rewrite(overlap *o)
{
    qn_kbuilder *b = &o->r->b;
    qn_kvalue *low = qn_kr_get(o->rows->operands[0]), *high = qn_kr_get(o->rows->operands[1]);
    qn_kvalue *one = qn_kb_index(b, 1), *final = qn_kb_isub(b, high, one);
    qn_kvalue *second = qn_kb_iadd(b, low, one);
    qn_kinst *some = qn_k_proven_lt(low, high) ? NULL : qn_kb_if(b, qn_kb_compare(b, QN_LT, low, high));
    o->counters[0] = low;
    step(o, 0, 0);
    if (o->n == 3) {
        o->counters[1] = low;
        o->counters[0] = qn_kb_imin(b, second, final);
        step(o, 0, 1);
    }
    const int n = hand_on(o, NULL, false);
    qn_kvalue **handed = QN_NEW_ARRAY(o->kernel->arena, qn_kvalue *, n + 1);
    hand_on(o, handed, false);
    qn_kinst *loop = qn_kb_carry(b, o->n == 3 ? second : low, high, one, QN_TAG_SERIAL, n, handed, NULL);
    hand_on(o, handed, true);
    qn_kvalue *row = qn_loop_counter(loop);
    o->counters[2] = qn_kb_isub(b, row, one);
    o->counters[1] = row;
    o->counters[0] = qn_kb_imin(b, qn_kb_iadd(b, row, one), final);
    step(o, 0, o->n - 1);
    hand_on(o, handed, false);
    qn_kb_end_carry(b, loop, handed);
    hand_on(o, handed, true);
    if (o->n == 3) {
        o->counters[2] = final;
        step(o, 2, 2);
    }
    if (some) {
        qn_kb_else(b, some, 0, NULL);
        qn_kb_end_if(b, some, 0, NULL);
    }
}

static bool is_overlapped(const qn_kinst *inst, const void *user)
{
    (void)user;
    return inst->op == QN_K_FOR && inst->tag == QN_TAG_OVERLAP;
}

static bool visit(qn_krewriter *r, qn_kinst *inst)
{
    if (!is_overlapped(inst, NULL))
        return false;
    inst->tag = QN_TAG_SERIAL;
    overlap o = { .r = r, .kernel = r->b.kernel, .rows = inst };
    if (!survey(&o))
        return false;
    rewrite(&o);
    return true;
}

void qn_kernel_overlap(qn_kernel *kernel)
{
    if (qn_kblock_any(kernel->body, is_overlapped, NULL))
        qn_krewrite(kernel, visit, NULL);
}
