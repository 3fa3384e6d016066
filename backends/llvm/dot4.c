/* QN_K_DOT4, products of bytes added four by four: vpdpbusd where the CPU has it. Elsewhere the bytes at even and at odd places are
 * widened to 16 bits, whose products x86 adds in pairs (vpmaddwd), and other machines' code generators take apart. */
#include <string.h>

#include "backends/llvm/emit.h"

static LLVMValueRef as(const qn_emitter *e, LLVMValueRef value, LLVMTypeRef type)
{
    return LLVMBuildBitCast(e->builder, value, type, "");
}

/* vpdpbusd; what LLVM calls the bytes' type differs from version to version. */
static LLVMValueRef vnni(const qn_emitter *e, int lanes, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c)
{
    const char *name = lanes == 16  ? "llvm.x86.avx512.vpdpbusd.512"
                       : lanes == 8 ? "llvm.x86.avx512.vpdpbusd.256"
                                    : "llvm.x86.avx512.vpdpbusd.128";
    LLVMTypeRef types[3];
    LLVMGetParamTypes(LLVMIntrinsicGetType(e->context, LLVMLookupIntrinsicID(name, strlen(name)), NULL, 0),
                      types);
    return qn_llvm_intrinsic(e, name, 0, NULL, 3,
                             (LLVMValueRef[]){ c, as(e, a, types[1]), as(e, b, types[2]) });
}

/* Lane i: a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], of 16 bits with signs. */
static LLVMValueRef add_pairs(const qn_emitter *e, int lanes, LLVMValueRef a, LLVMValueRef b)
{
    if (e->target->isa == QN_ISA_X86 && (lanes == 8 || lanes == 16))
        return qn_llvm_intrinsic(e, lanes == 16 ? "llvm.x86.avx512.pmaddw.d.512" : "llvm.x86.avx2.pmadd.wd",
                                 0, NULL, 2, (LLVMValueRef[]){ a, b });
    LLVMTypeRef wide = qn_llvm_lanes(e->i32, 2 * lanes);
    LLVMValueRef products = LLVMBuildMul(e->builder, LLVMBuildSExt(e->builder, a, wide, ""),
                                         LLVMBuildSExt(e->builder, b, wide, ""), "");
    int mask[2][64];
    for (int i = 0; i < lanes; i++) {
        mask[0][i] = 2 * i;
        mask[1][i] = 2 * i + 1;
    }
    return LLVMBuildAdd(e->builder, qn_llvm_shuffle(e, products, NULL, lanes, mask[0]),
                        qn_llvm_shuffle(e, products, NULL, lanes, mask[1]), "");
}

LLVMValueRef qn_llvm_dot4(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c)
{
    LLVMBuilderRef at = e->builder;
    const int lanes = type.lanes, half = lanes / 2;
    if (lanes * 4 > e->target->vector_bytes && lanes > 1) {
        const qn_ktype part = { type.dtype, half };
        LLVMValueRef sums[2];
        for (int i = 0; i < 2; i++)
            sums[i] = qn_llvm_dot4(e, part, qn_llvm_slice(e, a, 4 * half * i, 4 * half),
                                   qn_llvm_slice(e, b, 4 * half * i, 4 * half),
                                   qn_llvm_slice(e, c, half * i, half));
        return qn_llvm_concat(e, sums[0], sums[1]);
    }
    if (e->target->vnni && (lanes == 4 || lanes == 8 || lanes == 16))
        return vnni(e, lanes, a, b, c);
    const qn_ktype words = { QUERN_I16, 2 * lanes };
    LLVMValueRef eight = qn_llvm_int(e, words, 8);
    LLVMValueRef x = as(e, a, qn_llvm_type(e, words)), y = as(e, b, qn_llvm_type(e, words));
    LLVMValueRef even = add_pairs(e, lanes, LLVMBuildAnd(at, x, qn_llvm_int(e, words, 255), ""),
                                  LLVMBuildAShr(at, LLVMBuildShl(at, y, eight, ""), eight, ""));
    LLVMValueRef odd = add_pairs(e, lanes, LLVMBuildLShr(at, x, eight, ""), LLVMBuildAShr(at, y, eight, ""));
    return LLVMBuildAdd(at, c, LLVMBuildAdd(at, even, odd, ""), "");
}
