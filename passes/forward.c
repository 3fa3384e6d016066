/* qn_kernel_forward: what a task puts into its local memory and takes out again stays in registers.
 *
 * Before:  store %tile[16], %a   …   %b = load %tile[16] x16   …   store %y[%i], add %b, %c
 * After:   store %y[%i], add %a, %c      without %tile, where all its loads were such
 *
 * Only at constant places, from the same block or one around it, with nothing between that may have changed the place. */
#include "ir/kernel_edit.h"
#include "passes/lower.h"

typedef struct stored {
    const qn_kbuffer *buffer;
    int64_t at;
    qn_kvalue *value;
    const qn_kblock *block; /* where it was stored; it holds in the blocks inside */
} stored;

typedef struct forwarding {
    qn_arena *arena;
    qn_vec(stored) known;
} forwarding;

/* The elements [at, at + n) of the buffer are changed; n < 0: any of them. */
static void forget(forwarding *f, const qn_kbuffer *buffer, int64_t at, int64_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < f->known.n; i++) {
        const stored *s = &f->known.items[i];
        const bool apart = n >= 0 && (at >= s->at + s->value->type.lanes || s->at >= at + n);
        if (s->buffer != buffer || apart)
            f->known.items[kept++] = *s;
    }
    f->known.n = kept;
}

/* What a loop changes is changed before its first instruction, seen from the second iteration. */
static void forget_changed(forwarding *f, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->op == QN_K_STORE || inst->op == QN_K_TILE_STORE)
            forget(f, inst->buffer, 0, -1);
        for (int i = 0; i < inst->n_blocks; i++)
            forget_changed(f, inst->blocks[i]);
    }
}

static bool visit(qn_krewriter *r, qn_kinst *inst)
{
    forwarding *f = r->user;
    if (inst->op == QN_K_FOR)
        forget_changed(f, inst->blocks[0]);
    if ((inst->op != QN_K_LOAD && inst->op != QN_K_STORE && inst->op != QN_K_TILE_STORE) ||
        inst->buffer->space != QN_SPACE_LOCAL)
        return false;
    qn_kvalue *index = qn_kr_get(inst->operands[0]);
    const bool fixed = qn_k_is_const(index) && qn_k_is_index(index);
    const int64_t at = fixed ? index->inst->imm.i : 0;
    if (inst->op == QN_K_LOAD) {
        for (size_t i = 0; fixed && inst->n_operands == 1 && i < f->known.n; i++) {
            const stored *s = &f->known.items[i];
            if (s->buffer == inst->buffer && s->at == at &&
                qn_ktype_equal(s->value->type, inst->results[0].type) &&
                qn_kblock_inside(r->b.block, s->block)) {
                qn_kr_set(&inst->results[0], s->value);
                return true;
            }
        }
        return false;
    }
    const bool whole = inst->op == QN_K_STORE && inst->n_operands == 2 && fixed;
    forget(f, inst->buffer, at, whole ? inst->operands[1]->type.lanes : -1);
    if (whole) {
        const stored s = { inst->buffer, at, qn_kr_get(inst->operands[1]), r->b.block };
        qn_vec_push(f->arena, &f->known, s);
    }
    return false;
}

static bool is_read(const qn_kblock *block, const qn_kbuffer *buffer)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->buffer == buffer && inst->op != QN_K_STORE)
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (is_read(inst->blocks[i], buffer))
                return true;
    }
    return false;
}

static void drop_stores(qn_kblock *block, const qn_kbuffer *buffer)
{
    for (qn_kinst *inst = block->first, *next; inst; inst = next) {
        next = inst->next;
        for (int i = 0; i < inst->n_blocks; i++)
            drop_stores(inst->blocks[i], buffer);
        if (inst->buffer == buffer)
            qn_kinst_unlink(inst);
    }
}

void qn_kernel_forward(qn_kernel *kernel)
{
    if (kernel->n_all_buffers == kernel->n_buffers)
        return;
    forwarding f = { .arena = kernel->arena };
    qn_krewrite(kernel, visit, &f);
    int kept = kernel->n_buffers;
    for (int i = kernel->n_buffers; i < kernel->n_all_buffers; i++) {
        if (kernel->buffers[i]->space != QN_SPACE_LOCAL || is_read(kernel->body, kernel->buffers[i]))
            kernel->buffers[kept++] = kernel->buffers[i];
        else
            drop_stores(kernel->body, kernel->buffers[i]);
    }
    kernel->n_all_buffers = kept;
}
