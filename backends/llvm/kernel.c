/* Kernels: kernel IR to LLVM IR, instruction by instruction.
 *
 *   void kernel(ptr noalias %args, i64 %task) {       on a GPU: of the grid's first block, and the arguments behind it
 *   entry:   local buffers, buffer addresses
 *   body:    straight code; a `for` becomes  test? -> loop (phis, bottom test) -> behind,  an `if` two blocks and phis
 *
 * The kernel IR is vector code already, so no LLVM pass runs before code generation. What LLVM is told beyond it: buffers
 * don't overlap (alias scopes), index arithmetic doesn't wrap, and nothing about floats unless the instruction is marked
 * fast. */
#include "backends/llvm/kernel.h"

#include "ir/kernel_edit.h"
#include "passes/lower.h"

/* The constant, or the value that hides it. */
static LLVMValueRef find_hidden(const qn_llvm_kernel *s, LLVMValueRef constant)
{
    for (int i = 0; s->hidden && i < s->hidden->n; i++)
        if (s->hidden->items[i].known == constant)
            return s->hidden->items[i].value;
    return constant;
}

LLVMValueRef qn_llvm_get(const qn_llvm_kernel *s, const qn_kvalue *v)
{
    LLVMValueRef value = s->values[v->serial];
    QN_ASSERT(value, "kernel %s: a value is used before it is made", s->k->name);
    return s->hidden ? find_hidden(s, value) : value;
}

void qn_llvm_set(qn_llvm_kernel *s, const qn_kvalue *v, LLVMValueRef value)
{
    s->values[v->serial] = value;
}

LLVMValueRef qn_llvm_operand(const qn_llvm_kernel *s, const qn_kinst *inst, int i)
{
    return qn_llvm_get(s, inst->operands[i]);
}

LLVMValueRef qn_llvm_operand_or_null(const qn_llvm_kernel *s, const qn_kinst *inst, int i)
{
    return i < inst->n_operands && inst->operands[i] ? qn_llvm_get(s, inst->operands[i]) : NULL;
}

void qn_llvm_unsupported(qn_llvm_kernel *s, const char *what)
{
    if (!s->status)
        s->status = qn_error(s->e->diags, QUERN_ERROR_INTERNAL, NULL, "kernel %s: no %s code for %s",
                             s->k->name, s->threads ? "GPU" : "CPU", what);
}

void qn_llvm_end_task(const qn_llvm_kernel *s)
{
    if (s->tile_config)
        qn_llvm_tile_release(s->e);
    LLVMBuildRetVoid(s->e->builder);
}

static void emit_tile(qn_llvm_kernel *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMValueRef rows[QN_TILES];
    if (!e->target->machine.tiles) {
        qn_llvm_unsupported(s, "matrix instructions");
        return;
    }
    switch (inst->op) {
    case QN_K_TILE_SHAPE:
        for (int i = 0; i < QN_TILES; i++)
            rows[i] = qn_llvm_operand(s, inst, i);
        qn_llvm_tile_shape(e, s->tile_config, rows);
        return;
    case QN_K_TILE_ZERO: qn_llvm_tile_zero(e, inst->mask[0]); return;
    case QN_K_TILE_MMA: qn_llvm_tile_mma(e, inst->mask, inst->tile_type[0], inst->tile_type[1]); return;
    default: break; /* LOAD, STORE */
    }
    LLVMValueRef bytes = qn_llvm_i64(e, (int64_t)qn_dtype_bytes(inst->buffer->dtype));
    qn_llvm_tile_move(e, inst->op == QN_K_TILE_LOAD, inst->mask[0],
                      qn_llvm_address(s, inst->buffer, inst->operands[0]),
                      LLVMBuildNSWMul(e->builder, qn_llvm_operand(s, inst, 1), bytes, ""));
}

static const char *op_name(const qn_kinst *inst)
{
    return inst->op == QN_K_UNARY || inst->op == QN_K_BINARY ? qn_ops[inst->fn].name
           : inst->op == QN_K_ATOMIC_ADD                     ? "an atomic"
           : inst->op == QN_K_BARRIER                        ? "a barrier"
                                                             : "a matrix instruction";
}

/* What an instruction marked fast allows: another order, fused or approximate operations; never that NaN and infinity
 * don't occur. */
static void mark_fast(LLVMValueRef value)
{
    if (value && LLVMCanValueUseFastMathFlags(value) && LLVMIsAInstruction(value))
        LLVMSetFastMathFlags(value, LLVMFastMathAllowReassoc | LLVMFastMathAllowReciprocal |
                                        LLVMFastMathAllowContract | LLVMFastMathApproxFunc);
}

static void emit_inst(qn_llvm_kernel *s, const qn_kinst *inst)
{
    switch (inst->op) {
    case QN_K_STORE: qn_llvm_emit_store(s, inst); return;
    case QN_K_BARRIER:
        if (!s->threads)
            break;
        qn_llvm_gpu_barrier(s->e);
        return;
    case QN_K_PREFETCH:
        if (s->threads) /* other threads hide the latency */
            return;
        qn_llvm_prefetch(s->e, qn_llvm_address(s, inst->buffer, inst->operands[0]), (int)inst->index);
        return;
    case QN_K_FOR: qn_llvm_emit_for(s, inst); return;
    case QN_K_IF: qn_llvm_emit_if(s, inst); return;
    case QN_K_CHECK: qn_llvm_emit_check(s, inst); return;
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: emit_tile(s, inst); return;
    default: break;
    }
    LLVMValueRef value = inst->n_results == 1 ? qn_llvm_emit_value(s, inst) : NULL;
    if (!value) {
        qn_llvm_unsupported(s, op_name(inst));
        value = inst->n_results ? LLVMGetPoison(qn_llvm_type(s->e, inst->results[0].type)) : NULL;
    } else if (inst->fast) {
        mark_fast(value);
    }
    if (value)
        qn_llvm_set(s, &inst->results[0], value);
}

void qn_llvm_emit_block(qn_llvm_kernel *s, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        emit_inst(s, inst);
}

/* ---- the whole kernel ---- */

static void emit_version(qn_llvm_kernel *s, bool aligned)
{
    s->aligned = aligned;
    s->bypassed = false;
    qn_llvm_emit_block(s, s->k->body);
    if (s->bypassed) /* whoever is told that the task is done finds what it stored */
        qn_llvm_store_fence(s->e);
    qn_llvm_end_task(s);
}

static void make_function(qn_llvm_kernel *s)
{
    const qn_emitter *e = s->e;
    const int n = qn_llvm_has_arguments(s) ? s->k->n_buffers + s->k->n_params : 0;
    LLVMTypeRef *types = QN_NEW_ARRAY(e->arena, LLVMTypeRef, 2 + n);
    types[0] = e->ptr;
    types[1] = e->i64;
    for (int i = 0; i < n; i++)
        types[2 + i] = i < s->k->n_buffers ? LLVMPointerTypeInContext(e->context, QN_GPU_GLOBAL) : e->i64;
    s->function = qn_llvm_function(e, s->symbol, e->nothing, 2 + n, types);
}

static qn_status build(qn_emitter *e, void *user)
{
    qn_llvm_kernel *s = user;
    s->e = e;
    s->values = QN_NEW_ARRAY(e->arena, LLVMValueRef, s->k->n_serials);
    s->addresses = QN_NEW_ARRAY(e->arena, LLVMValueRef, s->k->n_all_buffers);
    s->tags = QN_NEW_ARRAY(e->arena, qn_llvm_tags, s->k->n_all_buffers);
    if (e->target->isa == QN_ISA_NVPTX)
        s->threads = s->k->gpu_threads > 0 ? s->k->gpu_threads : 1;
    make_function(s);
    if (s->threads) {
        qn_llvm_gpu_kernel(e, s->function, s->threads, s->k->by_thread);
    } else {
        LLVMSetLinkage(s->function, LLVMWeakODRLinkage);
        LLVMSetVisibility(s->function, LLVMHiddenVisibility);
    }
    qn_llvm_enum_attribute(e, s->function, 1, "noalias", 0);
    s->args = LLVMGetParam(s->function, 0);
    s->task = LLVMGetParam(s->function, 1);
    qn_llvm_make_alias_scopes(s);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(e->context, s->function, "entry");
    qn_llvm_at(e, entry);
    if (s->threads) {
        s->args = qn_llvm_gpu_global(e, s->args);
        s->task = LLVMBuildNSWAdd(e->builder, s->task, qn_llvm_gpu_block(e), "");
        s->thread = qn_llvm_gpu_thread(e);
    }
    qn_llvm_place_buffers(s);
    if (qn_kernel_uses_tiles(s->k) && e->target->machine.tiles)
        s->tile_config = qn_llvm_tile_config(e);

    LLVMValueRef are_aligned = qn_llvm_are_aligned(s);
    if (are_aligned) {
        LLVMBasicBlockRef other = qn_llvm_block(e, "unaligned"), aligned = qn_llvm_block(e, "aligned");
        LLVMBuildCondBr(e->builder, are_aligned, aligned, other);
        qn_llvm_at(e, aligned);
        emit_version(s, true);
        qn_llvm_at(e, other);
    }
    emit_version(s, false);
    return s->status;
}

qn_status qn_llvm_emit_kernel(const qn_kernel *kernel, const char *symbol, const qn_target *target,
                              qn_math math, qn_emit emit, qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    qn_llvm_kernel s = { .k = kernel, .symbol = symbol };
    (void)math; /* what it allows is said in the kernel: FMA instructions, `fast` marks */
    const char *what = qn_arena_printf(arena, "kernel %s", kernel->name);
    return qn_llvm_compile(what, target, emit, QN_LLVM_FAST_CODE, build, &s, arena, out_code, diags);
}
