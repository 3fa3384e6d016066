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
 *   within each warp  value = value of this lane + that of the lane 16, 8, 4, 2, 1 beside it
 *   where there are several                      barrier
 *   the first lanes   cells[warp] = value        barrier
 *   every thread      cells[0] + cells[1] + …
 *
 * The first barrier is for those who still read what another reduction left in the cells. */

enum { WARP = 32 };

/* The 32-bit words of a value of another lane of the warp: `how` it is found. */
static LLVMValueRef shuffle_word(const qn_emitter *e, LLVMValueRef word, const char *how, int lane)
{
    LLVMValueRef args[] = { qn_llvm_i32(e, -1), word, qn_llvm_i32(e, lane), qn_llvm_i32(e, WARP - 1) };
    return qn_llvm_intrinsic(e, how, 0, NULL, 4, args);
}

static LLVMValueRef shuffle_lanes(const qn_emitter *e, qn_ktype type, LLVMValueRef x, const char *how,
                                  int lane)
{
    LLVMBuilderRef b = e->builder;
    const unsigned bits = type.dtype == QUERN_BOOL ? 1 : 8 * (unsigned)qn_dtype_bytes(type.dtype);
    LLVMTypeRef integer = LLVMIntTypeInContext(e->context, bits), own = LLVMTypeOf(x);
    x = LLVMBuildBitCast(b, x, integer, "");
    if (bits <= 32) {
        x = shuffle_word(e, LLVMBuildZExtOrBitCast(b, x, e->i32, ""), how, lane);
        return LLVMBuildBitCast(b, LLVMBuildTruncOrBitCast(b, x, integer, ""), own, "");
    }
    LLVMValueRef half = LLVMConstInt(integer, 32, 0);
    LLVMValueRef low = shuffle_word(e, LLVMBuildTrunc(b, x, e->i32, ""), how, lane);
    LLVMValueRef high =
        shuffle_word(e, LLVMBuildTrunc(b, LLVMBuildLShr(b, x, half, ""), e->i32, ""), how, lane);
    high = LLVMBuildShl(b, LLVMBuildZExt(b, high, integer, ""), half, "");
    return LLVMBuildBitCast(b, LLVMBuildOr(b, LLVMBuildZExt(b, low, integer, ""), high, ""), own, "");
}

LLVMValueRef qn_llvm_gpu_warp_shuffle(const qn_emitter *e, qn_ktype type, LLVMValueRef x, int with)
{
    return shuffle_lanes(e, type, x, "llvm.nvvm.shfl.sync.bfly.i32", with);
}

static LLVMValueRef cell(const qn_emitter *e, qn_ktype type, LLVMValueRef cells, LLVMValueRef index)
{
    return LLVMBuildGEP2(e->builder, qn_llvm_memory_type(e, type), cells, &index, 1, "");
}

void qn_llvm_gpu_combine(const qn_emitter *e, const char *prefix, int threads, LLVMValueRef thread, int n,
                         const qn_ktype *types, const qn_kind *kinds, LLVMValueRef *values)
{
    static const qn_op ops[] = {
        [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
    };
    const int warps = threads / WARP;
    if (threads == 1 || n == 0)
        return;
    for (int i = 0; i < n; i++)
        for (int beside = WARP / 2; beside > 0; beside /= 2)
            values[i] = qn_llvm_binary(e, ops[kinds[i]], types[i], values[i],
                                       qn_llvm_gpu_warp_shuffle(e, types[i], values[i], beside));
    if (warps == 1) { /* of two zeros, or NaN, lanes may have found different ones */
        for (int i = 0; i < n; i++)
            values[i] = shuffle_lanes(e, types[i], values[i], "llvm.nvvm.shfl.sync.idx.i32", 0);
        return;
    }
    LLVMValueRef *cells = QN_NEW_ARRAY(e->arena, LLVMValueRef, n);
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), first = qn_llvm_block(e, "first_lane");
    qn_llvm_gpu_barrier(e);
    LLVMValueRef lane = LLVMBuildAnd(e->builder, thread, qn_llvm_i64(e, WARP - 1), ""),
                 warp = LLVMBuildLShr(e->builder, thread, qn_llvm_i64(e, 5), "");
    LLVMBuildCondBr(e->builder, LLVMBuildIsNull(e->builder, lane, ""), first, behind);
    qn_llvm_at(e, first);
    for (int i = 0; i < n; i++) {
        const char *name =
            qn_arena_printf(e->arena, "%s_cells%d_%s", prefix, i, qn_dtype_name(types[i].dtype));
        cells[i] = qn_llvm_gpu_shared(e, name, qn_llvm_memory_type(e, types[i]), warps);
        qn_llvm_store(e, types[i], cell(e, types[i], cells[i], warp), values[i], NULL, (qn_llvm_tags){ 0 });
    }
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, behind);
    qn_llvm_gpu_barrier(e);
    for (int i = 0; i < n; i++)
        for (int w = 0; w < warps; w++) {
            LLVMValueRef x = qn_llvm_load(e, types[i], cell(e, types[i], cells[i], qn_llvm_i64(e, w)), NULL,
                                          NULL, (qn_llvm_tags){ 0 });
            values[i] = w ? qn_llvm_binary(e, ops[kinds[i]], types[i], values[i], x) : x;
        }
}
