/* Copies of kernels: the rewriter (a body made anew from the old one) and clone. */
#include <string.h>

#include "ir/kernel_edit.h"

qn_kvalue *qn_kr_get(qn_kvalue *old)
{
    QN_ASSERT(old->user, "a kernel rewrite reads a value that it has not made yet");
    return old->user;
}

void qn_kr_set(qn_kvalue *old, qn_kvalue *made)
{
    QN_ASSERT(qn_ktype_equal(old->type, made->type), "a kernel rewrite changes the type of a value");
    old->user = made;
}

static qn_kvalue *copy_binary(qn_kbuilder *b, const qn_kinst *inst, qn_kvalue *const *o)
{
    if (qn_k_is_index(o[0]) && (inst->fn == QN_OP_MIN || inst->fn == QN_OP_MAX))
        return inst->fn == QN_OP_MIN ? qn_kb_imin(b, o[0], o[1]) : qn_kb_imax(b, o[0], o[1]);
    if (inst->index_math && qn_k_is_index(o[0])) {
        switch (inst->fn) {
        case QN_OP_ADD: return qn_kb_iadd(b, o[0], o[1]);
        case QN_OP_SUB: return qn_kb_isub(b, o[0], o[1]);
        case QN_OP_MUL: return qn_kb_imul(b, o[0], o[1]);
        case QN_OP_DIV: return qn_kb_idiv(b, o[0], o[1]);
        default: return qn_kb_imod(b, o[0], o[1]);
        }
    }
    qn_kvalue *v = qn_kb_binary(b, inst->fn, o[0], o[1]);
    if (inst->index_math && v->inst && v->inst->op == QN_K_BINARY && v->inst->fn == inst->fn)
        v->inst->index_math = true;
    return v;
}

static qn_kvalue *copy_value(qn_kbuilder *b, const qn_kinst *inst, qn_kvalue *const *o)
{
    qn_ktype type = inst->results[0].type;
    switch (inst->op) {
    case QN_K_CONST:
        return qn_k_is_index(inst->results) ? qn_kb_index(b, inst->imm.i) : qn_kb_const(b, type, inst->imm);
    case QN_K_PARAM: return qn_kernel_param(b->kernel, (int)inst->index);
    case QN_K_TASK: return qn_kb_task(b);
    case QN_K_THREAD: return qn_kb_thread(b);
    case QN_K_UNARY:
        return inst->nonpositive ? qn_kb_exp_nonpositive(b, o[0]) : qn_kb_unary(b, inst->fn, o[0]);
    case QN_K_BINARY: return copy_binary(b, inst, o);
    case QN_K_FMA: return qn_kb_fma(b, o[0], o[1], o[2]);
    case QN_K_DOT4: return qn_kb_dot4(b, o[0], o[1], o[2]);
    case QN_K_DOT2: return qn_kb_dot2(b, o[0], o[1], o[2]);
    case QN_K_MMLA: return qn_kb_mmla(b, o[0], o[1], o[2]);
    case QN_K_COMPARE: return qn_kb_compare(b, inst->direction, o[0], o[1]);
    case QN_K_SELECT: return qn_kb_select(b, o[0], o[1], o[2]);
    case QN_K_CONVERT: return qn_kb_convert(b, type.dtype, o[0]);
    case QN_K_BITCAST: return qn_kb_bitcast(b, type.dtype, o[0]);
    case QN_K_SCALE2: return qn_kb_scale2(b, o[0], o[1]);
    case QN_K_LOOKUP: return qn_kb_lookup(b, inst->table, o[0]);
    case QN_K_PICK: return qn_kb_pick(b, o[0], o[1]);
    case QN_K_JOIN: return qn_kb_join(b, type.dtype, o[0]);
    case QN_K_SPLAT: return qn_kb_splat(b, o[0], type.lanes);
    case QN_K_RAMP: return qn_kb_ramp(b, o[0], type.lanes);
    case QN_K_EXTRACT: return qn_kb_extract(b, o[0], (int)inst->index);
    case QN_K_SHUFFLE: return qn_kb_shuffle(b, o[0], o[1], inst->n_mask, inst->mask);
    case QN_K_REDUCE: return qn_kb_reduce(b, inst->kind, o[0]);
    case QN_K_WARP_SHUFFLE: return qn_kb_warp_shuffle(b, o[0], (int)inst->index);
    case QN_K_WARP_LOAD: return qn_kb_warp_load(b, inst->buffer, o[0], inst->index);
    case QN_K_WARP_MMA: return qn_kb_warp_mma(b, o[0], o[1], o[2]);
    case QN_K_LOAD:
        if (inst->in_order)
            return qn_kb_load_in_order(b, inst->buffer, o[0], type.lanes);
        return qn_kb_load_masked(b, inst->buffer, o[0], type.lanes, inst->n_operands > 1 ? o[1] : NULL,
                                 inst->n_operands > 2 ? o[2] : NULL);
    default: QN_UNREACHABLE("kernel instruction %d has no value to copy", inst->op);
    }
}

static void copy_effect(qn_kbuilder *b, const qn_kinst *inst, qn_kvalue *const *o)
{
    switch (inst->op) {
    case QN_K_STORE:
        qn_kb_store(b, inst->buffer, o[0], o[1], inst->n_operands > 2 ? o[2] : NULL)->nontemporal =
            inst->nontemporal;
        break;
    case QN_K_PREFETCH: qn_kb_prefetch(b, inst->buffer, o[0], (int)inst->index); break;
    case QN_K_CHECK: qn_kb_check(b, o[0], (int)inst->index); break;
    default: /* ATOMIC_ADD, BARRIER, TILE_* */
        qn_kb_emit(b, inst->op, inst->n_operands, o, qn_ktype_make(QUERN_INVALID_DTYPE, 0));
        b->block->last->buffer = inst->buffer;
        b->block->last->index = inst->index;
        b->block->last->n_mask = inst->n_mask;
        b->block->last->mask =
            qn_arena_copy(b->kernel->arena, inst->mask, (size_t)inst->n_mask * sizeof *inst->mask);
        memcpy(b->block->last->tile_type, inst->tile_type, sizeof inst->tile_type);
        break;
    }
}

void qn_kr_yields(const qn_kblock *old, qn_kvalue **out_yields)
{
    for (int i = 0; i < old->n_yields; i++)
        out_yields[i] = qn_kr_get(old->yields[i]);
}

static void copy_for(qn_krewriter *r, qn_kinst *inst, qn_kvalue *const *o)
{
    qn_kbuilder *b = &r->b;
    qn_kblock *body = inst->blocks[0];
    qn_kinst *loop = qn_kb_for(b, o[0], o[1], o[2], inst->tag, inst->n_results, o + 3, inst->carried_kinds);
    loop->lanes = inst->lanes;
    for (int i = 0; i < body->n_arguments; i++)
        body->arguments[i].user = &loop->blocks[0]->arguments[i];
    qn_kr_block(r, body);
    qn_kvalue **yields = QN_NEW_ARRAY(b->kernel->arena, qn_kvalue *, body->n_yields);
    qn_kr_yields(body, yields);
    qn_kb_end_for(b, loop, yields);
    for (int i = 0; i < inst->n_results; i++)
        inst->results[i].user = &loop->results[i];
}

static void copy_if(qn_krewriter *r, qn_kinst *inst, qn_kvalue *const *o)
{
    qn_kbuilder *b = &r->b;
    int n = inst->n_results;
    qn_kvalue **yields = QN_NEW_ARRAY(b->kernel->arena, qn_kvalue *, n);
    qn_kinst *branch = qn_kb_if(b, o[0]);
    qn_kr_block(r, inst->blocks[0]);
    qn_kr_yields(inst->blocks[0], yields);
    qn_kb_else(b, branch, n, yields);
    qn_kr_block(r, inst->blocks[1]);
    qn_kr_yields(inst->blocks[1], yields);
    qn_kb_end_if(b, branch, n, yields);
    for (int i = 0; i < n; i++)
        inst->results[i].user = &branch->results[i];
}

void qn_kr_copy(qn_krewriter *r, qn_kinst *inst)
{
    qn_kvalue *few[8], **o = few;
    if (inst->n_operands > 8)
        o = QN_NEW_ARRAY(r->b.kernel->arena, qn_kvalue *, inst->n_operands);
    for (int i = 0; i < inst->n_operands; i++)
        o[i] = qn_kr_get(inst->operands[i]);
    if (inst->op == QN_K_FOR)
        copy_for(r, inst, o);
    else if (inst->op == QN_K_IF)
        copy_if(r, inst, o);
    else if (inst->n_results == 1)
        qn_kr_set(&inst->results[0], copy_value(&r->b, inst, o));
    else
        copy_effect(&r->b, inst, o);
}

void qn_kr_block(qn_krewriter *r, qn_kblock *old)
{
    for (qn_kinst *inst = old->first; inst; inst = inst->next) {
        r->b.fast = inst->fast;
        if (!r->visit || !r->visit(r, inst))
            qn_kr_copy(r, inst);
    }
}

bool qn_kblock_any(const qn_kblock *block, bool (*is)(const qn_kinst *inst, const void *user),
                   const void *user)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (is(inst, user))
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (qn_kblock_any(inst->blocks[i], is, user))
                return true;
    }
    return false;
}

void qn_krewrite(qn_kernel *kernel, bool (*visit)(qn_krewriter *r, qn_kinst *inst), void *user)
{
    qn_kblock *old = kernel->body;
    kernel->body = qn_kblock_new(kernel, NULL, 0, 0, NULL);
    qn_krewriter r = { .b = qn_kb_new(kernel), .visit = visit, .user = user };
    qn_kr_block(&r, old);
}

/* ---- clone: without folding, instruction by instruction ---- */

static qn_kbuffer *clone_buffer(qn_kernel *k, const qn_kbuffer *from)
{
    qn_kbuffer *to = qn_arena_copy(k->arena, from, sizeof *from);
    to->name = qn_arena_strdup(k->arena, from->name);
    return to;
}

typedef struct cloner {
    const qn_kernel *from;
    qn_kernel *to;
} cloner;

static void clone_value(const qn_kvalue *old, qn_kvalue *new)
{
    new->min = old->min;
    new->max = old->max;
    new->multiple = old->multiple;
    ((qn_kvalue *)old)->user = new;
}

static void clone_block(cloner *c, const qn_kblock *old, qn_kblock *new);

static void clone_inst(cloner *c, const qn_kinst *old, qn_kblock *into)
{
    qn_arena *arena = c->to->arena;
    qn_ktype *types = QN_NEW_ARRAY(arena, qn_ktype, old->n_results);
    for (int i = 0; i < old->n_results; i++)
        types[i] = old->results[i].type;
    qn_kinst *new = qn_kinst_new(c->to, old->op, old->n_operands, old->operands, old->n_results, types);
    for (int i = 0; i < old->n_operands; i++)
        new->operands[i] = old->operands[i]->user;
    new->fn = old->fn;
    new->direction = old->direction;
    new->kind = old->kind;
    new->imm = old->imm;
    new->index = old->index;
    new->nontemporal = old->nontemporal;
    new->in_order = old->in_order;
    new->fast = old->fast;
    new->nonpositive = old->nonpositive;
    new->index_math = old->index_math;
    new->tag = old->tag;
    new->lanes = old->lanes;
    new->n_mask = old->n_mask;
    memcpy(new->tile_type, old->tile_type, sizeof new->tile_type);
    if (old->table)
        new->table = qn_arena_copy(arena, old->table, QN_LOOKUP * sizeof *old->table);
    if (old->mask)
        new->mask = qn_arena_copy(arena, old->mask, (size_t)old->n_mask * sizeof *old->mask);
    if (old->carried_kinds)
        new->carried_kinds =
            qn_arena_copy(arena, old->carried_kinds, (size_t)old->n_results * sizeof *old->carried_kinds);
    for (int i = 0; old->buffer && i < c->from->n_all_buffers; i++)
        if (c->from->buffers[i] == old->buffer)
            new->buffer = c->to->buffers[i];
    qn_kblock_insert(into, new, NULL);
    for (int i = 0; i < old->n_blocks; i++) {
        const qn_kblock *block = old->blocks[i];
        qn_ktype *arguments = QN_NEW_ARRAY(arena, qn_ktype, block->n_arguments);
        for (int j = 0; j < block->n_arguments; j++)
            arguments[j] = block->arguments[j].type;
        clone_block(c, block, qn_kblock_new(c->to, new, i, block->n_arguments, arguments));
    }
    for (int i = 0; i < old->n_results; i++)
        clone_value(&old->results[i], &new->results[i]);
}

static void clone_block(cloner *c, const qn_kblock *old, qn_kblock *new)
{
    for (int i = 0; i < old->n_arguments; i++)
        clone_value(&old->arguments[i], &new->arguments[i]);
    for (const qn_kinst *inst = old->first; inst; inst = inst->next)
        clone_inst(c, inst, new);
    qn_kblock_set_yields(c->to, new, old->n_yields, old->yields);
    for (int i = 0; i < old->n_yields; i++)
        new->yields[i] = old->yields[i]->user;
}

qn_kernel *qn_kernel_clone(const qn_kernel *kernel, qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, kernel->name);
    size_t n = (size_t)kernel->n_params;
    k->n_buffers = kernel->n_buffers;
    k->n_all_buffers = kernel->n_all_buffers;
    k->buffers = QN_NEW_ARRAY(arena, qn_kbuffer *, k->n_all_buffers);
    for (int i = 0; i < k->n_all_buffers; i++)
        k->buffers[i] = clone_buffer(k, kernel->buffers[i]);
    k->n_params = kernel->n_params;
    k->param_names = QN_NEW_ARRAY(arena, const char *, n);
    for (size_t i = 0; i < n; i++)
        k->param_names[i] = qn_arena_strdup(arena, kernel->param_names[i]);
    if (n > 0) {
        k->param_min = qn_arena_copy(arena, kernel->param_min, n * sizeof *k->param_min);
        k->param_max = qn_arena_copy(arena, kernel->param_max, n * sizeof *k->param_max);
        k->param_multiple = qn_arena_copy(arena, kernel->param_multiple, n * sizeof *k->param_multiple);
    }
    k->gpu_threads = kernel->gpu_threads;
    k->by_thread = kernel->by_thread;
    k->flops = kernel->flops;
    k->bytes = kernel->bytes;
    cloner c = { kernel, k };
    clone_block(&c, kernel->body, k->body);
    return k;
}
