/* Loops, conditions and checks of a kernel. */
#include "backends/llvm/kernel.h"

#include "ir/kernel_edit.h"

static void emit_unrolled(qn_llvm_kernel *s, const qn_kinst *loop)
{
    const qn_kblock *body = loop->blocks[0];
    int n = loop->n_results;
    LLVMValueRef *carried = QN_NEW_ARRAY(s->e->arena, LLVMValueRef, n);
    int64_t low = loop->operands[0]->inst->imm.i, high = loop->operands[1]->inst->imm.i;
    for (int i = 0; i < n; i++)
        carried[i] = qn_llvm_operand(s, loop, 3 + i);
    for (int64_t at = low; at < high; at += loop->operands[2]->inst->imm.i) {
        qn_llvm_set(s, &body->arguments[0], qn_llvm_i64(s->e, at));
        for (int i = 0; i < n; i++)
            qn_llvm_set(s, &body->arguments[1 + i], carried[i]);
        qn_llvm_emit_block(s, body);
        for (int i = 0; i < n; i++)
            carried[i] = qn_llvm_get(s, body->yields[i]);
    }
    for (int i = 0; i < n; i++)
        qn_llvm_set(s, &loop->results[i], carried[i]);
}

static bool is_unrolled(const qn_kinst *loop)
{
    enum { MOST = 1024 };
    if (loop->tag != QN_TAG_UNROLL)
        return false;
    for (int i = 0; i < 3; i++)
        if (!qn_k_is_const(loop->operands[i]))
            return false;
    int64_t low = loop->operands[0]->inst->imm.i, high = loop->operands[1]->inst->imm.i;
    return high - low <= MOST * loop->operands[2]->inst->imm.i;
}

/* A thread does iterations thread, thread + threads, …; what it carries starts neutral but for the first thread's. */
static void emit_thread_for(qn_llvm_kernel *s, const qn_kinst *loop)
{
    const qn_emitter *e = s->e;
    const qn_kblock *body = loop->blocks[0];
    LLVMBuilderRef b = e->builder;
    int n = loop->n_results;
    LLVMValueRef *initial = QN_NEW_ARRAY(e->arena, LLVMValueRef, n),
                 *phis = QN_NEW_ARRAY(e->arena, LLVMValueRef, n),
                 *next_phis = QN_NEW_ARRAY(e->arena, LLVMValueRef, n);
    qn_ktype *types = QN_NEW_ARRAY(e->arena, qn_ktype, n);
    LLVMValueRef high = qn_llvm_operand(s, loop, 1), step = qn_llvm_operand(s, loop, 2);
    LLVMValueRef low =
        LLVMBuildNSWAdd(b, qn_llvm_operand(s, loop, 0), LLVMBuildNSWMul(b, s->thread, step, ""), "");
    LLVMValueRef stride = LLVMBuildNSWMul(b, step, qn_llvm_i64(e, s->threads), "");
    LLVMValueRef is_first = LLVMBuildIsNull(b, s->thread, "");
    for (int i = 0; i < n; i++) {
        types[i] = loop->results[i].type;
        LLVMValueRef neutral =
            qn_llvm_constant(e, types[i], qn_neutral(loop->carried_kinds[i], types[i].dtype));
        initial[i] = LLVMBuildSelect(b, is_first, qn_llvm_operand(s, loop, 3 + i), neutral, "");
    }
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, "");
    LLVMBasicBlockRef next = qn_llvm_block(e, "next"), inside = qn_llvm_block(e, "thread"),
                      head = qn_llvm_block(e, "threads");
    LLVMBuildBr(b, head);
    qn_llvm_at(e, next);
    for (int i = 0; i < n; i++)
        next_phis[i] = qn_llvm_phi(e, qn_llvm_type(e, types[i]));
    qn_llvm_at(e, head);
    LLVMValueRef counter = qn_llvm_phi(e, e->i64);
    for (int i = 0; i < n; i++) {
        phis[i] = qn_llvm_phi(e, qn_llvm_type(e, types[i]));
        qn_llvm_incoming(phis[i], initial[i], before);
        qn_llvm_incoming(phis[i], next_phis[i], next);
        qn_llvm_set(s, &body->arguments[1 + i], phis[i]);
    }
    qn_llvm_set(s, &body->arguments[0], counter);
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, counter, high, ""), inside, behind);

    qn_llvm_at(e, inside);
    qn_llvm_escape way = { next, n, phis, next_phis };
    s->escape = &way;
    qn_llvm_emit_block(s, body);
    s->escape = NULL;
    for (int i = 0; i < n; i++)
        qn_llvm_incoming(next_phis[i], qn_llvm_get(s, body->yields[i]), qn_llvm_here(e));
    LLVMBuildBr(b, next);
    qn_llvm_at(e, next);
    qn_llvm_incoming(counter, low, before);
    qn_llvm_incoming(counter, LLVMBuildNSWAdd(b, counter, stride, ""), next);
    LLVMBuildBr(b, head);

    qn_llvm_at(e, behind);
    qn_llvm_gpu_combine(e, s->symbol, s->threads, s->thread, n, types, loop->carried_kinds, phis);
    for (int i = 0; i < n; i++)
        qn_llvm_set(s, &loop->results[i], phis[i]);
}

/* ---- what follows a register tile ---- */

/* Are more sums carried than there are registers to spare for constants? */
static bool is_tile(const qn_kinst *loop)
{
    enum { MANY = 8 };
    int vectors = 0;
    for (int i = 0; i < loop->n_results; i++)
        vectors += loop->results[i].type.lanes > 1;
    return vectors >= MANY;
}

static void hide(const qn_llvm_kernel *s, const qn_kvalue *v, qn_llvm_hidden *out)
{
    const qn_emitter *e = s->e;
    if (!qn_k_is_const(v))
        return;
    const qn_ktype type = v->type;
    LLVMValueRef known = qn_llvm_constant(e, type, v->inst->imm);
    if (type.lanes == 1 || qn_dtype_bytes(type.dtype) != 4 || LLVMIsNull(known) ||
        out->n == (int)(sizeof out->items / sizeof *out->items))
        return;
    for (int i = 0; i < out->n; i++)
        if (out->items[i].known == known)
            return;
    LLVMTypeRef same = LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->i32 }, 1, 0);
    LLVMValueRef code = LLVMGetInlineAsm(same, "", 0, "=r,0", 4, 1, 0, LLVMInlineAsmDialectATT, 0);
    const qn_ktype one = { type.dtype, 1 }, bits = { QUERN_I32, 1 };
    LLVMValueRef scalar = LLVMConstBitCast(qn_llvm_constant(e, one, v->inst->imm), e->i32);
    scalar = qn_llvm_bitcast(e, bits, type.dtype, LLVMBuildCall2(e->builder, same, code, &scalar, 1, ""));
    out->items[out->n].known = known;
    out->items[out->n++].value = qn_llvm_splat(e, scalar, type.lanes);
}

/* All vector constants that a block uses, before the loop that it is in. */
static void hide_constants(const qn_llvm_kernel *s, const qn_kblock *block, qn_llvm_hidden *out)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_operands; i++)
            if (inst->operands[i])
                hide(s, inst->operands[i], out);
        for (int i = 0; i < inst->n_blocks; i++)
            if (inst->blocks[i])
                hide_constants(s, inst->blocks[i], out);
    }
}

/* Its counter, also what it is behind the last iteration. */
static bool counts_in_32(const qn_llvm_kernel *s, const qn_kinst *loop)
{
    const qn_kvalue *high = loop->operands[1], *step = loop->operands[2];
    return qn_llvm_is_narrow(s, loop->operands[0]) && qn_llvm_is_narrow(s, high) &&
           qn_llvm_is_narrow(s, step) && high->max + step->max <= INT32_MAX;
}

/* Tested at the bottom, and before the first iteration unless that surely happens. */
void qn_llvm_emit_for(qn_llvm_kernel *s, const qn_kinst *loop)
{
    const qn_emitter *e = s->e;
    const qn_kblock *body = loop->blocks[0];
    LLVMBuilderRef b = e->builder;
    if (is_unrolled(loop)) {
        emit_unrolled(s, loop);
        return;
    }
    if (s->threads && loop->tag == QN_TAG_GPU_THREAD) {
        emit_thread_for(s, loop);
        return;
    }
    const bool behind_tile = s->behind_tile, hides = behind_tile && !s->hidden && !s->threads;
    qn_llvm_hidden constants = { 0 };
    if (hides) {
        hide_constants(s, body, &constants);
        s->hidden = &constants;
    }
    s->behind_tile = false;
    LLVMValueRef low = qn_llvm_operand(s, loop, 0), high = qn_llvm_operand(s, loop, 1);
    bool surely = qn_k_proven_lt(loop->operands[0], loop->operands[1]);
    int n = loop->n_results;
    const bool narrow_counter = counts_in_32(s, loop);
    if (narrow_counter) {
        low = qn_llvm_narrow(s, low);
        high = qn_llvm_narrow(s, high);
    }
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, "");
    LLVMBasicBlockRef head = qn_llvm_block(e, "loop");
    if (surely)
        LLVMBuildBr(b, head);
    else
        LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, low, high, ""), head, behind);

    qn_llvm_at(e, head);
    LLVMValueRef counter = qn_llvm_phi(e, narrow_counter ? e->i32 : e->i64),
                 step = qn_llvm_operand(s, loop, 2);
    qn_llvm_incoming(counter, low, before);
    for (int i = 0; i < n; i++) {
        LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, loop->results[i].type));
        qn_llvm_incoming(phi, qn_llvm_operand(s, loop, 3 + i), before);
        qn_llvm_set(s, &body->arguments[1 + i], phi);
    }
    qn_llvm_set(s, &body->arguments[0], narrow_counter ? qn_llvm_widen(s, counter) : counter);
    qn_llvm_emit_block(s, body);
    LLVMBasicBlockRef end = qn_llvm_here(e);
    LLVMValueRef next = LLVMBuildNSWAdd(b, counter, narrow_counter ? qn_llvm_narrow(s, step) : step, "");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, next, high, ""), head, behind);
    qn_llvm_incoming(counter, next, end);
    for (int i = 0; i < n; i++)
        qn_llvm_incoming(qn_llvm_get(s, &body->arguments[1 + i]), qn_llvm_get(s, body->yields[i]), end);

    qn_llvm_at(e, behind);
    for (int i = 0; i < n; i++) {
        LLVMValueRef result = qn_llvm_get(s, body->yields[i]);
        if (!surely) {
            LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, loop->results[i].type));
            qn_llvm_incoming(phi, qn_llvm_operand(s, loop, 3 + i), before);
            qn_llvm_incoming(phi, result, end);
            result = phi;
        }
        qn_llvm_set(s, &loop->results[i], result);
    }
    if (hides)
        s->hidden = NULL;
    s->behind_tile = behind_tile || is_tile(loop);
}

void qn_llvm_emit_if(qn_llvm_kernel *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), otherwise = qn_llvm_block(e, "else");
    LLVMBasicBlockRef starts[2] = { qn_llvm_block(e, "then"), otherwise }, ends[2];
    LLVMValueRef *values[2];
    LLVMBuildCondBr(e->builder, qn_llvm_operand(s, inst, 0), starts[0], starts[1]);
    for (int i = 0; i < 2; i++) {
        const qn_kblock *block = i < inst->n_blocks ? inst->blocks[i] : NULL;
        qn_llvm_at(e, starts[i]);
        if (block)
            qn_llvm_emit_block(s, block);
        values[i] = QN_NEW_ARRAY(e->arena, LLVMValueRef, inst->n_results);
        for (int r = 0; r < inst->n_results; r++)
            values[i][r] = qn_llvm_get(s, block->yields[r]);
        ends[i] = qn_llvm_here(e);
        LLVMBuildBr(e->builder, behind);
    }
    qn_llvm_at(e, behind);
    for (int r = 0; r < inst->n_results; r++) {
        LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, inst->results[r].type));
        for (int i = 0; i < 2; i++)
            qn_llvm_incoming(phi, values[i][r], ends[i]);
        qn_llvm_set(s, &inst->results[r], phi);
    }
}

/* Another task may report at the same time: the store is atomic, any of the nodes may win. */
void qn_llvm_emit_check(qn_llvm_kernel *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMValueRef good = qn_llvm_operand(s, inst, 0);
    good = qn_llvm_reduce(e, QN_KIND_MIN, inst->operands[0]->type, good);
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), failed = qn_llvm_block(e, "failed");
    LLVMBuildCondBr(e->builder, good, behind, failed);
    qn_llvm_at(e, failed);
    LLVMValueRef store = LLVMBuildStore(e->builder, qn_llvm_i64(e, inst->index), s->args);
    LLVMSetAlignment(store, 8);
    LLVMSetOrdering(store, LLVMAtomicOrderingMonotonic);
    if (s->escape) {
        for (int i = 0; i < s->escape->n; i++)
            qn_llvm_incoming(s->escape->phis[i], s->escape->before[i], failed);
        LLVMBuildBr(e->builder, s->escape->next);
    } else {
        qn_llvm_end_task(s);
    }
    qn_llvm_at(e, behind);
}
