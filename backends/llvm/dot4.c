/* QN_K_DOT4, products of bytes added four by four: vpdpbusd where an x86 CPU has it, sdot, udot and usdot where an AArch64 has
 * them. An AArch64 without multiplies bytes of the same kind to 16 bits, which it adds in pairs to 32. Elsewhere the bytes at
 * even and at odd places are widened to 16 bits, whose products x86 adds in pairs (vpmaddwd). */
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

/* sdot, udot, usdot */
static LLVMValueRef neon_dot(const qn_emitter *e, const char *name, LLVMValueRef a, LLVMValueRef b,
                             LLVMValueRef c)
{
    LLVMTypeRef types[] = { qn_llvm_lanes(e->i32, 4), qn_llvm_lanes(e->i8, 16) };
    return qn_llvm_intrinsic(e, name, 2, types, 3, (LLVMValueRef[]){ c, a, b });
}

/* Of the same kind, four lanes, without such instructions: products fit in 16 bits, and their sums by two in 32. */
static LLVMValueRef neon_pairs(const qn_emitter *e, bool is_signed, LLVMValueRef a, LLVMValueRef b,
                               LLVMValueRef c)
{
    LLVMTypeRef words = qn_llvm_lanes(e->i32, 4), halves = qn_llvm_lanes(e->i16, 8),
                pairs[] = { words, halves };
    LLVMValueRef sums[2];
    for (int i = 0; i < 2; i++) {
        LLVMValueRef factors[] = { qn_llvm_slice(e, a, 8 * i, 8), qn_llvm_slice(e, b, 8 * i, 8) };
        LLVMValueRef products = qn_llvm_intrinsic(
            e, is_signed ? "llvm.aarch64.neon.smull" : "llvm.aarch64.neon.umull", 1, &halves, 2, factors);
        sums[i] = qn_llvm_intrinsic(e, is_signed ? "llvm.aarch64.neon.saddlp" : "llvm.aarch64.neon.uaddlp", 2,
                                    pairs, 1, &products);
    }
    LLVMValueRef sum = qn_llvm_intrinsic(e, "llvm.aarch64.neon.addp", 1, &words, 2, sums);
    return LLVMBuildAdd(e->builder, c, sum, "");
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

/* The bytes of `v` at even or odd places as 16 bits. */
static LLVMValueRef every_other(const qn_emitter *e, qn_ktype type, LLVMValueRef v, bool odd)
{
    const qn_ktype words = { QUERN_I16, type.lanes / 2 };
    LLVMValueRef x = as(e, v, qn_llvm_type(e, words)), eight = qn_llvm_int(e, words, 8);
    if (type.dtype == QUERN_U8)
        return odd ? LLVMBuildLShr(e->builder, x, eight, "")
                   : LLVMBuildAnd(e->builder, x, qn_llvm_int(e, words, 255), "");
    return LLVMBuildAShr(e->builder, odd ? x : LLVMBuildShl(e->builder, x, eight, ""), eight, "");
}

/* In one instruction or a few; NULL: there are none for it. */
static LLVMValueRef by_instruction(const qn_emitter *e, int lanes, qn_dtype x, qn_dtype y, LLVMValueRef a,
                                   LLVMValueRef b, LLVMValueRef c)
{
    const qn_llvm_target *t = e->target;
    const bool mixed = x != y;
    if (t->isa == QN_ISA_X86)
        return t->vnni && mixed && (lanes == 4 || lanes == 8 || lanes == 16) ? vnni(e, lanes, a, b, c) : NULL;
    if (t->isa != QN_ISA_AARCH64 || lanes != 4)
        return NULL;
    if (mixed)
        return t->i8mm ? neon_dot(e, "llvm.aarch64.neon.usdot", a, b, c) : NULL;
    if (t->dotprod)
        /* the code generator finds a repeated word in the second place: a template's x, which is a */
        return neon_dot(e, x == QUERN_I8 ? "llvm.aarch64.neon.sdot" : "llvm.aarch64.neon.udot", b, a, c);
    return neon_pairs(e, x == QUERN_I8, a, b, c);
}

LLVMValueRef qn_llvm_dot4(const qn_emitter *e, int lanes, qn_dtype x, qn_dtype y, LLVMValueRef a,
                          LLVMValueRef b, LLVMValueRef c)
{
    const int half = lanes / 2;
    if (lanes * 4 > e->target->vector_bytes && lanes > 1) {
        LLVMValueRef sums[2];
        for (int i = 0; i < 2; i++)
            sums[i] = qn_llvm_dot4(e, half, x, y, qn_llvm_slice(e, a, 4 * half * i, 4 * half),
                                   qn_llvm_slice(e, b, 4 * half * i, 4 * half),
                                   qn_llvm_slice(e, c, half * i, half));
        return qn_llvm_concat(e, sums[0], sums[1]);
    }
    LLVMValueRef made = by_instruction(e, lanes, x, y, a, b, c);
    if (made)
        return made;
    const qn_ktype of_a = { x, 4 * lanes }, of_b = { y, 4 * lanes };
    LLVMValueRef even = add_pairs(e, lanes, every_other(e, of_a, a, false), every_other(e, of_b, b, false));
    LLVMValueRef odd = add_pairs(e, lanes, every_other(e, of_a, a, true), every_other(e, of_b, b, true));
    return LLVMBuildAdd(e->builder, c, LLVMBuildAdd(e->builder, even, odd, ""), "");
}
