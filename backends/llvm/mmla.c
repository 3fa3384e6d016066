/* QN_K_MMLA: smmla, ummla and usmmla, bfmmla. Other CPUs have nothing like it. */
#include "backends/llvm/emit.h"

LLVMValueRef qn_llvm_mmla(const qn_emitter *e, qn_ktype type, qn_dtype x, qn_dtype y, LLVMValueRef a,
                          LLVMValueRef b, LLVMValueRef c)
{
    enum { LANES = 4 };
    const int half = type.lanes / 2, row = type.dtype == QUERN_F32 ? 2 : 4; /* elements for a lane of c */
    if (!e->target->machine.mmla)
        return NULL;
    if (type.lanes > LANES) {
        const qn_ktype part = { type.dtype, half };
        LLVMValueRef sums[2];
        for (int i = 0; i < 2; i++)
            sums[i] = qn_llvm_mmla(e, part, x, y, qn_llvm_slice(e, a, row * half * i, row * half),
                                   qn_llvm_slice(e, b, row * half * i, row * half),
                                   qn_llvm_slice(e, c, half * i, half));
        return qn_llvm_concat(e, sums[0], sums[1]);
    }
    if (type.dtype == QUERN_F32) {
        LLVMTypeRef of_bf16 = qn_llvm_lanes(LLVMBFloatTypeInContext(e->context), 2 * LANES);
        return qn_llvm_intrinsic(e, "llvm.aarch64.neon.bfmmla", 0, NULL, 3,
                                 (LLVMValueRef[]){ c, LLVMBuildBitCast(e->builder, a, of_bf16, ""),
                                                   LLVMBuildBitCast(e->builder, b, of_bf16, "") });
    }
    LLVMTypeRef types[] = { qn_llvm_lanes(e->i32, LANES), qn_llvm_lanes(e->i8, 4 * LANES) };
    const char *name = x != y          ? "llvm.aarch64.neon.usmmla"
                       : x == QUERN_I8 ? "llvm.aarch64.neon.smmla"
                                       : "llvm.aarch64.neon.ummla";
    return qn_llvm_intrinsic(e, name, 2, types, 3, (LLVMValueRef[]){ c, a, b });
}
