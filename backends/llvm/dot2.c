/* QN_K_DOT2, products of bf16 added two by two: vdpbf16ps or bfdot where the CPU has it. Elsewhere the numbers at even and at
 * odd places are widened to f32, and two multiply-adds follow each other, with the odd products first, as the instruction has
 * them. */
#include <string.h>

#include "backends/llvm/emit.h"

static LLVMValueRef instruction(const qn_emitter *e, int lanes, LLVMValueRef a, LLVMValueRef b,
                                LLVMValueRef c)
{
    const bool x86 = e->target->isa == QN_ISA_X86;
    const char *name = !x86          ? "llvm.aarch64.neon.bfdot"
                       : lanes == 16 ? "llvm.x86.avx512bf16.dpbf16ps.512"
                       : lanes == 8  ? "llvm.x86.avx512bf16.dpbf16ps.256"
                                     : "llvm.x86.avx512bf16.dpbf16ps.128";
    LLVMTypeRef type = qn_llvm_lanes(LLVMBFloatTypeInContext(e->context), 2 * lanes);
    LLVMTypeRef types[] = { qn_llvm_lanes(e->f32, lanes), type };
    LLVMValueRef x = LLVMBuildBitCast(e->builder, a, type, ""), y = LLVMBuildBitCast(e->builder, b, type, "");
    if (!x86) /* the code generator finds a repeated pair in the second place: a template's x, which is a */
        return qn_llvm_intrinsic(e, name, 2, types, 3, (LLVMValueRef[]){ c, y, x });
    return qn_llvm_intrinsic(e, name, 0, NULL, 3, (LLVMValueRef[]){ c, x, y });
}

LLVMValueRef qn_llvm_dot2(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c)
{
    const int lanes = type.lanes, half = lanes / 2;
    if (lanes * 4 > e->target->vector_bytes && lanes > 1) {
        const qn_ktype part = { type.dtype, half };
        LLVMValueRef sums[2];
        for (int i = 0; i < 2; i++)
            sums[i] = qn_llvm_dot2(e, part, qn_llvm_slice(e, a, 2 * half * i, 2 * half),
                                   qn_llvm_slice(e, b, 2 * half * i, 2 * half),
                                   qn_llvm_slice(e, c, half * i, half));
        return qn_llvm_concat(e, sums[0], sums[1]);
    }
    if (e->target->bf16 && (lanes == 4 || lanes == 8 || lanes == 16))
        return instruction(e, lanes, a, b, c);
    const qn_ktype words = { QUERN_U32, lanes };
    LLVMTypeRef pairs = qn_llvm_type(e, words), floats = qn_llvm_type(e, type);
    LLVMValueRef sixteen = qn_llvm_int(e, words, 16), upper = qn_llvm_int(e, words, (int64_t)0xffff0000);
    LLVMValueRef x = LLVMBuildBitCast(e->builder, a, pairs, ""),
                 y = LLVMBuildBitCast(e->builder, b, pairs, "");
    for (int odd = 1; odd >= 0; odd--) {
        LLVMValueRef u =
            odd ? LLVMBuildAnd(e->builder, x, upper, "") : LLVMBuildShl(e->builder, x, sixteen, "");
        LLVMValueRef v =
            odd ? LLVMBuildAnd(e->builder, y, upper, "") : LLVMBuildShl(e->builder, y, sixteen, "");
        c = qn_llvm_fma(e, type, LLVMBuildBitCast(e->builder, u, floats, ""),
                        LLVMBuildBitCast(e->builder, v, floats, ""), c);
    }
    return c;
}
