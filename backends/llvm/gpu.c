/* Leaves of GPU kernels: threads, barriers, shared memory, reductions over the threads of a block. */
#include <stdio.h>
#include <string.h>

#include "backends/llvm/emit.h"

enum { CALLING_CONVENTION = 71 }; /* a PTX kernel */

void qn_llvm_gpu_kernel(const qn_emitter *e, LLVMValueRef function, int threads, bool by_thread)
{
    enum { REGISTERS = 1 << 16, MOST_REGISTERS = 128 /* of a thread: 16 warps a multiprocessor at least */ };
    char text[16];
    snprintf(text, sizeof text, "%d", threads);
    LLVMSetFunctionCallConv(function, CALLING_CONVENTION);
    qn_llvm_attribute(e, function, "nvvm.maxntid", text);
    snprintf(text, sizeof text, "%d", REGISTERS / MOST_REGISTERS / threads);
    if (by_thread)
        qn_llvm_attribute(e, function, "nvvm.minctasm", text);
}

static LLVMValueRef special_register(const qn_emitter *e, const char *name)
{
    return LLVMBuildZExt(e->builder, qn_llvm_intrinsic(e, name, 0, NULL, 0, NULL), e->i64, "");
}

LLVMValueRef qn_llvm_gpu_thread(const qn_emitter *e)
{
    return special_register(e, "llvm.nvvm.read.ptx.sreg.tid.x");
}

LLVMValueRef qn_llvm_gpu_block(const qn_emitter *e)
{
    return special_register(e, "llvm.nvvm.read.ptx.sreg.ctaid.x");
}

void qn_llvm_gpu_barrier(const qn_emitter *e)
{
    LLVMValueRef number = qn_llvm_i32(e, 0);
    qn_llvm_intrinsic(e, QN_LLVM_GPU_BARRIER, 0, NULL, QN_LLVM_GPU_BARRIER_HAS_NUMBER, &number);
}

LLVMValueRef qn_llvm_gpu_global(const qn_emitter *e, LLVMValueRef address)
{
    return LLVMBuildAddrSpaceCast(e->builder, address, LLVMPointerTypeInContext(e->context, QN_GPU_GLOBAL),
                                  "");
}

LLVMValueRef qn_llvm_gpu_shared(const qn_emitter *e, const char *name, LLVMTypeRef element, int64_t elements)
{
    LLVMValueRef shared = LLVMGetNamedGlobal(e->module, name);
    if (shared)
        return shared;
    LLVMTypeRef array = LLVMArrayType2(element, (uint64_t)elements);
    shared = LLVMAddGlobalInAddressSpace(e->module, array, name, QN_GPU_SHARED);
    LLVMSetInitializer(shared, LLVMGetPoison(array));
    LLVMSetLinkage(shared, LLVMInternalLinkage);
    LLVMSetAlignment(shared, 64);
    return shared;
}

/* ---- the matrix unit: registers of two 16-bit floats ---- */

/* Registers of a struct as one vector, or the parts of a vector as registers. */
static LLVMValueRef joined(const qn_emitter *e, LLVMValueRef registers, int n, LLVMTypeRef part)
{
    LLVMValueRef all = LLVMGetPoison(LLVMVectorType(part, (unsigned)n));
    for (int i = 0; i < n; i++)
        all = LLVMBuildInsertElement(e->builder, all,
                                     LLVMBuildExtractValue(e->builder, registers, (unsigned)i, ""),
                                     qn_llvm_i32(e, i), "");
    return all;
}

static void split(const qn_emitter *e, LLVMValueRef vector, int n, LLVMTypeRef part, LLVMValueRef *out)
{
    LLVMValueRef words = LLVMBuildBitCast(e->builder, vector, LLVMVectorType(e->i32, (unsigned)n), "");
    for (int i = 0; i < n; i++)
        out[i] = LLVMBuildBitCast(
            e->builder, LLVMBuildExtractElement(e->builder, words, qn_llvm_i32(e, i), ""), part, "");
}

LLVMValueRef qn_llvm_gpu_warp_load(const qn_emitter *e, LLVMValueRef address, bool turned)
{
    LLVMTypeRef type = LLVMTypeOf(address);
    LLVMValueRef loaded = qn_llvm_intrinsic(e,
                                            turned ? "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16"
                                                   : "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16",
                                            1, &type, 1, &address);
    return LLVMBuildBitCast(e->builder, joined(e, loaded, 4, e->i32),
                            LLVMVectorType(LLVMInt16TypeInContext(e->context), 8), "");
}

LLVMValueRef qn_llvm_gpu_warp_mma(const qn_emitter *e, qn_dtype dtype, LLVMValueRef x, LLVMValueRef y,
                                  LLVMValueRef sums)
{
    const bool half = dtype == QUERN_F16;
    LLVMTypeRef part = half ? LLVMVectorType(e->f16, 2) : e->i32;
    LLVMValueRef args[10];
    split(e, x, 4, part, args);
    split(e, y, 2, part, args + 4);
    for (int i = 0; i < 4; i++)
        args[6 + i] = LLVMBuildExtractElement(e->builder, sums, qn_llvm_i32(e, i), "");
    return joined(e,
                  qn_llvm_intrinsic(e,
                                    half ? "llvm.nvvm.mma.m16n8k16.row.col.f32.f32"
                                         : "llvm.nvvm.mma.m16n8k16.row.col.bf16",
                                    0, NULL, 10, args),
                  4, e->f32);
}

/* ---- reductions over the threads ----
 *
 *   every thread      cells[thread] = value                       barrier
 *   the first G       sums[thread] = cells[thread] + cells[thread + G] + …    barrier
 *   every thread      sums[0] + … + sums[G - 1]
 *
 * The next reduction needs no barrier before its first step: cells were read before the second barrier here, and sums
 * are written after the first one there. */

typedef struct combination {
    const qn_emitter *e;
    qn_ktype type;
    qn_kind kind;
    LLVMValueRef cells; /* threads, then G sums */
} combination;

static LLVMValueRef cell(const combination *c, LLVMValueRef index)
{
    return LLVMBuildGEP2(c->e->builder, qn_llvm_memory_type(c->e, c->type), c->cells, &index, 1, "");
}

/* cells[first] … cells[first + (n - 1) * stride], in this order. */
static LLVMValueRef combine_cells(const combination *c, LLVMValueRef first, int n, int stride)
{
    static const qn_op ops[] = {
        [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
    };
    LLVMValueRef all = NULL;
    for (int i = 0; i < n; i++) {
        LLVMValueRef at = LLVMBuildNSWAdd(c->e->builder, first, qn_llvm_i64(c->e, (int64_t)i * stride), "");
        LLVMValueRef x = qn_llvm_load(c->e, c->type, cell(c, at), NULL, NULL, (qn_llvm_tags){ 0 });
        all = all ? qn_llvm_binary(c->e, ops[c->kind], c->type, all, x) : x;
    }
    return all;
}

static void put(const combination *c, LLVMValueRef at, LLVMValueRef value)
{
    qn_llvm_store(c->e, c->type, cell(c, at), value, NULL, (qn_llvm_tags){ 0 });
}

void qn_llvm_gpu_combine(const qn_emitter *e, const char *prefix, int threads, LLVMValueRef thread, int n,
                         const qn_ktype *types, const qn_kind *kinds, LLVMValueRef *values)
{
    int groups = 1;
    if (threads == 1 || n == 0)
        return;
    while (groups * groups < threads)
        groups *= 2;
    combination *c = QN_NEW_ARRAY(e->arena, combination, n);
    for (int i = 0; i < n; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s_cells%d_%s", prefix, i, qn_dtype_name(types[i].dtype));
        c[i] =
            (combination){ e, types[i], kinds[i],
                           qn_llvm_gpu_shared(e, name, qn_llvm_memory_type(e, types[i]), threads + groups) };
        put(&c[i], thread, values[i]);
    }
    qn_llvm_gpu_barrier(e);
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), some = qn_llvm_block(e, "combine");
    LLVMBuildCondBr(e->builder, LLVMBuildICmp(e->builder, LLVMIntULT, thread, qn_llvm_i64(e, groups), ""),
                    some, behind);
    qn_llvm_at(e, some);
    for (int i = 0; i < n; i++)
        put(&c[i], LLVMBuildNSWAdd(e->builder, thread, qn_llvm_i64(e, threads), ""),
            combine_cells(&c[i], thread, threads / groups, groups));
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, behind);
    qn_llvm_gpu_barrier(e);
    for (int i = 0; i < n; i++)
        values[i] = combine_cells(&c[i], qn_llvm_i64(e, threads), groups, 1);
}
