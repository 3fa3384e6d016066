/* Conversions between element types: saturating where floats become integers, rounded once everywhere, no library call.
 * f16 and bf16 are i16 that hold the bits. */
#include <math.h>

#include "backends/llvm/emit.h"

static qn_ktype with_dtype(qn_ktype type, qn_dtype dtype)
{
    return (qn_ktype){ dtype, type.lanes };
}

static LLVMTypeRef type_as(const qn_emitter *e, qn_ktype type, qn_dtype dtype)
{
    return qn_llvm_type(e, with_dtype(type, dtype));
}

/* ---- 16-bit floats ---- */

static LLVMValueRef f16_to_f32(const qn_emitter *e, qn_ktype type, LLVMValueRef a)
{
    LLVMValueRef half = LLVMBuildBitCast(e->builder, a, qn_llvm_lanes(e->f16, type.lanes), "");
    return LLVMBuildFPExt(e->builder, half, type_as(e, type, QUERN_F32), "");
}

static LLVMValueRef f32_to_f16(const qn_emitter *e, qn_ktype type, LLVMValueRef a)
{
    LLVMValueRef half = LLVMBuildFPTrunc(e->builder, a, qn_llvm_lanes(e->f16, type.lanes), "");
    return LLVMBuildBitCast(e->builder, half, type_as(e, type, QUERN_F16), "");
}

static LLVMValueRef bf16_to_f32(const qn_emitter *e, qn_ktype type, LLVMValueRef a)
{
    LLVMValueRef bits = LLVMBuildZExt(e->builder, a, type_as(e, type, QUERN_U32), "");
    bits = LLVMBuildShl(e->builder, bits, qn_llvm_int(e, with_dtype(type, QUERN_U32), 16), "");
    return LLVMBuildBitCast(e->builder, bits, type_as(e, type, QUERN_F32), "");
}

/* The upper half of the bits, rounded to nearest even by adding just less than half and the bit that decides ties. Not
 * an x86's own instruction, which flushes denormals; an AArch64's does the same as is done here. */
static LLVMValueRef f32_to_bf16(const qn_emitter *e, qn_ktype type, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    qn_ktype u32 = with_dtype(type, QUERN_U32);
    if (e->target->bf16 && e->target->isa == QN_ISA_AARCH64) {
        LLVMTypeRef to = qn_llvm_lanes(LLVMBFloatTypeInContext(e->context), type.lanes);
        return LLVMBuildBitCast(b, LLVMBuildFPTrunc(b, a, to, ""), type_as(e, type, QUERN_BF16), "");
    }
    LLVMValueRef bits = LLVMBuildBitCast(b, a, qn_llvm_type(e, u32), ""), sixteen = qn_llvm_int(e, u32, 16);
    LLVMValueRef upper = LLVMBuildLShr(b, bits, sixteen, "");
    LLVMValueRef last = LLVMBuildAnd(b, upper, qn_llvm_int(e, u32, 1), "");
    LLVMValueRef add = LLVMBuildAdd(b, last, qn_llvm_int(e, u32, 0x7fff), "");
    LLVMValueRef rounded = LLVMBuildLShr(b, LLVMBuildAdd(b, bits, add, ""), sixteen, "");
    LLVMValueRef quiet = LLVMBuildOr(b, upper, qn_llvm_int(e, u32, 0x40), "");
    LLVMValueRef nan = LLVMBuildFCmp(b, LLVMRealUNO, a, a, "");
    LLVMValueRef r = LLVMBuildSelect(b, nan, quiet, rounded, "");
    return LLVMBuildTrunc(b, r, type_as(e, type, QUERN_BF16), "");
}

/* f64 to f32 rounded to odd: when inexact, of the two neighbours the one whose last bit is 1. Rounding that again to a
 * format that is shorter by two bits or more gives what one rounding would. */
static LLVMValueRef f64_to_f32_odd(const qn_emitter *e, qn_ktype type, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    qn_ktype i32 = with_dtype(type, QUERN_I32), f32 = with_dtype(type, QUERN_F32);
    LLVMTypeRef f64 = type_as(e, type, QUERN_F64);
    LLVMValueRef near = LLVMBuildFPTrunc(b, a, qn_llvm_type(e, f32), "");
    LLVMValueRef back = LLVMBuildFPExt(b, near, f64, "");
    LLVMValueRef magnitude = qn_llvm_intrinsic(e, "llvm.fabs", 1, &f64, 1, &a);
    LLVMValueRef back_magnitude = qn_llvm_intrinsic(e, "llvm.fabs", 1, &f64, 1, &back);
    LLVMValueRef inexact = LLVMBuildFCmp(b, LLVMRealONE, back, a, "");
    LLVMValueRef away = LLVMBuildFCmp(b, LLVMRealOGT, back_magnitude, magnitude, "");
    LLVMValueRef bits = LLVMBuildBitCast(b, near, qn_llvm_type(e, i32), "");
    LLVMValueRef toward_zero = LLVMBuildAdd(b, bits, LLVMBuildSExt(b, away, qn_llvm_type(e, i32), ""), "");
    LLVMValueRef odd = LLVMBuildOr(b, toward_zero, qn_llvm_int(e, i32, 1), "");
    return LLVMBuildBitCast(b, LLVMBuildSelect(b, inexact, odd, bits, ""), qn_llvm_type(e, f32), "");
}

/* ---- between classes ---- */

static LLVMValueRef float_to_float(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    if (from.dtype == to)
        return a;
    if (from.dtype == QUERN_F16 || from.dtype == QUERN_BF16) {
        a = from.dtype == QUERN_F16 ? f16_to_f32(e, from, a) : bf16_to_f32(e, from, a);
        return float_to_float(e, with_dtype(from, QUERN_F32), to, a);
    }
    if (to == QUERN_F64)
        return LLVMBuildFPExt(e->builder, a, type_as(e, from, to), "");
    if (to == QUERN_F32)
        return LLVMBuildFPTrunc(e->builder, a, type_as(e, from, to), "");
    if (from.dtype == QUERN_F64)
        a = f64_to_f32_odd(e, from, a);
    return to == QUERN_F16 ? f32_to_f16(e, from, a) : f32_to_bf16(e, from, a);
}

static LLVMValueRef int_to_float(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    /* Straight to f32 or f64, which rounds once; the short floats come from the f32. */
    qn_dtype via = to == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    LLVMTypeRef type = type_as(e, from, via);
    LLVMValueRef r = qn_dtype_class_of(from.dtype) == QN_CLASS_SIGNED
                         ? LLVMBuildSIToFP(e->builder, a, type, "")
                         : LLVMBuildUIToFP(e->builder, a, type, "");
    return float_to_float(e, with_dtype(from, via), to, r);
}

/* Largest and smallest values exact in the float type: clamp, then convert what cannot overflow. */
static LLVMValueRef clamp_to_int(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    int bits = (int)qn_dtype_bytes(to) * 8;
    bool sign = qn_dtype_class_of(to) == QN_CLASS_SIGNED;
    double high = ldexp(1, sign ? bits - 1 : bits) - 1, low = sign ? -high - 1 : 0;
    LLVMValueRef lowest = qn_llvm_float(e, from, low), highest = qn_llvm_float(e, from, high);
    LLVMValueRef number = LLVMBuildFCmp(b, LLVMRealORD, a, a, "");
    a = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOGT, a, lowest, ""), a, lowest, "");
    a = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOLT, a, highest, ""), a, highest, "");
    LLVMValueRef r;
    if (bits < 32) {
        r = LLVMBuildFPToSI(b, a, type_as(e, from, QUERN_I32), "");
        r = LLVMBuildTrunc(b, r, type_as(e, from, to), "");
    } else {
        r = sign ? LLVMBuildFPToSI(b, a, type_as(e, from, to), "")
                 : LLVMBuildFPToUI(b, a, type_as(e, from, to), "");
    }
    return sign ? LLVMBuildSelect(b, number, r, qn_llvm_int(e, with_dtype(from, to), 0), "") : r;
}

/* Where the largest integer is no float: convert what is not too small, then put the limit where the value was too
 * large (the conversion gives anything there). LLVM's own saturating conversion goes lane by lane. */
static LLVMValueRef convert_then_saturate(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    qn_ktype type = with_dtype(from, to);
    int bits = (int)qn_dtype_bytes(to) * 8;
    bool sign = qn_dtype_class_of(to) == QN_CLASS_SIGNED;
    LLVMValueRef above = qn_llvm_float(e, from, ldexp(1, sign ? bits - 1 : bits));
    LLVMValueRef lowest = qn_llvm_float(e, from, sign ? -ldexp(1, bits - 1) : 0);
    LLVMValueRef most = qn_llvm_int(e, type, sign ? INT64_MAX >> (64 - bits) : -1);
    LLVMValueRef number = LLVMBuildFCmp(b, LLVMRealORD, a, a, "");
    a = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOGT, a, lowest, ""), a, lowest, "");
    LLVMValueRef r = sign ? LLVMBuildFPToSI(b, a, qn_llvm_type(e, type), "")
                          : LLVMBuildFPToUI(b, a, qn_llvm_type(e, type), "");
    r = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOGE, a, above, ""), most, r, "");
    return sign ? LLVMBuildSelect(b, number, r, qn_llvm_int(e, type, 0), "") : r;
}

static LLVMValueRef float_to_int(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    if (from.dtype == QUERN_F16 || from.dtype == QUERN_BF16) {
        a = float_to_float(e, from, QUERN_F32, a);
        from.dtype = QUERN_F32;
    }
    int exact_bits = from.dtype == QUERN_F32 ? 24 : 53;
    bool exact = (int)qn_dtype_bytes(to) * 8 <= exact_bits;
    return (exact ? clamp_to_int : convert_then_saturate)(e, from, to, a);
}

static LLVMValueRef int_to_int(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    size_t old = qn_dtype_bytes(from.dtype), new = qn_dtype_bytes(to);
    LLVMTypeRef type = type_as(e, from, to);
    if (old == new)
        return a;
    if (new < old)
        return LLVMBuildTrunc(e->builder, a, type, "");
    return qn_dtype_class_of(from.dtype) == QN_CLASS_SIGNED ? LLVMBuildSExt(e->builder, a, type, "")
                                                            : LLVMBuildZExt(e->builder, a, type, "");
}

LLVMValueRef qn_llvm_convert(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    bool from_float = qn_dtype_is_float(from.dtype), to_float = qn_dtype_is_float(to);
    if (from.dtype == to)
        return a;
    if (to == QUERN_BOOL) {
        LLVMValueRef zero = from_float ? qn_llvm_float(e, from, 0) : qn_llvm_int(e, from, 0);
        return qn_llvm_compare(e, QN_NE, from, a, zero);
    }
    if (from.dtype == QUERN_BOOL) {
        if (!to_float)
            return LLVMBuildZExt(e->builder, a, type_as(e, from, to), "");
        return LLVMBuildSelect(e->builder, a, qn_llvm_float(e, with_dtype(from, to), 1),
                               qn_llvm_float(e, with_dtype(from, to), 0), "");
    }
    if (from_float)
        return to_float ? float_to_float(e, from, to, a) : float_to_int(e, from, to, a);
    return to_float ? int_to_float(e, from, to, a) : int_to_int(e, from, to, a);
}

/* With the CPU's own instruction where there is one. */
LLVMValueRef qn_llvm_round_to_bf16(const qn_emitter *e, qn_ktype from, LLVMValueRef a)
{
    enum { LANES = 16 };
    if (!e->target->bf16 || e->target->isa != QN_ISA_X86 || from.lanes < LANES)
        return qn_llvm_convert(e, from, QUERN_BF16, a);
    if (from.lanes > LANES) {
        const qn_ktype part = { from.dtype, from.lanes / 2 };
        LLVMValueRef low = qn_llvm_round_to_bf16(e, part, qn_llvm_slice(e, a, 0, part.lanes));
        LLVMValueRef high = qn_llvm_round_to_bf16(e, part, qn_llvm_slice(e, a, part.lanes, part.lanes));
        return qn_llvm_concat(e, low, high);
    }
    LLVMValueRef words = qn_llvm_intrinsic(e, "llvm.x86.avx512bf16.cvtneps2bf16.512", 0, NULL, 1, &a);
    return LLVMBuildBitCast(e->builder, words, qn_llvm_type(e, (qn_ktype){ QUERN_BF16, LANES }), "");
}

LLVMValueRef qn_llvm_bitcast(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a)
{
    if (from.dtype == to)
        return a;
    /* bool is one bit here and a byte elsewhere */
    if (from.dtype == QUERN_BOOL)
        return LLVMBuildZExt(e->builder, a, type_as(e, from, to), "");
    if (to == QUERN_BOOL)
        return LLVMBuildICmp(e->builder, LLVMIntNE, a, qn_llvm_int(e, from, 0), "");
    return LLVMBuildBitCast(e->builder, a, type_as(e, from, to), "");
}
