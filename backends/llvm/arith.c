/* Arithmetic leaves: element-wise ops with the meaning of ir/ops.def (nothing traps, nothing is undefined), FMA, scale2
 * and reductions over lanes. No instruction here may become a call of a library. */
#include <math.h>

#include "backends/llvm/emit.h"

static bool is_half(qn_dtype dtype)
{
    return dtype == QUERN_F16 || dtype == QUERN_BF16;
}

static bool is_signed(qn_dtype dtype)
{
    return qn_dtype_class_of(dtype) == QN_CLASS_SIGNED;
}

static int bits_of(qn_dtype dtype)
{
    return (int)qn_dtype_bytes(dtype) * 8;
}

static qn_ktype with_dtype(qn_ktype type, qn_dtype dtype)
{
    return (qn_ktype){ dtype, type.lanes };
}

/* An intrinsic on operands of one type, which it is overloaded on. */
static LLVMValueRef same_type(const qn_emitter *e, const char *name, int n, LLVMValueRef *args)
{
    LLVMTypeRef type = LLVMTypeOf(args[0]);
    return qn_llvm_intrinsic(e, name, 1, &type, n, args);
}

static LLVMValueRef call1(const qn_emitter *e, const char *name, LLVMValueRef a)
{
    return same_type(e, name, 1, &a);
}

static LLVMValueRef call2(const qn_emitter *e, const char *name, LLVMValueRef a, LLVMValueRef b)
{
    return same_type(e, name, 2, (LLVMValueRef[]){ a, b });
}

static LLVMValueRef select_(const qn_emitter *e, LLVMValueRef condition, LLVMValueRef a, LLVMValueRef b)
{
    return LLVMBuildSelect(e->builder, condition, a, b, "");
}

/* A constant (each lane the same or not) none of whose lanes is NaN. */
static bool is_number(LLVMValueRef value)
{
    if (!LLVMIsConstant(value))
        return false;
    int n = qn_llvm_lane_count(value);
    for (int i = 0; i < n; i++) {
        LLVMValueRef lane = n == 1 ? value : LLVMGetAggregateElement(value, (unsigned)i);
        LLVMBool inexact;
        if (!lane || !LLVMIsAConstantFP(lane) || isnan(LLVMConstRealGetDouble(lane, &inexact)))
            return false;
    }
    return true;
}

/* ---- one operand ---- */

static LLVMValueRef float_unary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef zero = qn_llvm_float(e, type, 0);
    switch (fn) {
    case QN_OP_NEG: return LLVMBuildFNeg(b, a, "");
    case QN_OP_ABS: return call1(e, "llvm.fabs", a);
    case QN_OP_SIGN: {
        LLVMValueRef one = call2(e, "llvm.copysign", qn_llvm_float(e, type, 1), a);
        LLVMValueRef itself = LLVMBuildFCmp(b, LLVMRealUEQ, a, zero, ""); /* NaN, 0 and -0 */
        return select_(e, itself, a, one);
    }
    case QN_OP_FLOOR: return call1(e, "llvm.floor", a);
    case QN_OP_CEIL: return call1(e, "llvm.ceil", a);
    case QN_OP_ROUND: return call1(e, "llvm.roundeven", a);
    case QN_OP_TRUNC: return call1(e, "llvm.trunc", a);
    case QN_OP_SQRT: return call1(e, "llvm.sqrt", a);
    case QN_OP_RSQRT: return LLVMBuildFDiv(b, qn_llvm_float(e, type, 1), call1(e, "llvm.sqrt", a), "");
    case QN_OP_IS_NAN: return LLVMBuildFCmp(b, LLVMRealUNO, a, a, "");
    case QN_OP_IS_INF:
        return LLVMBuildFCmp(b, LLVMRealOEQ, call1(e, "llvm.fabs", a), qn_llvm_float(e, type, INFINITY), "");
    case QN_OP_RELU: return qn_llvm_binary(e, QN_OP_MAX, type, a, zero);
    default: return NULL;
    }
}

static LLVMValueRef int_unary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef zero = qn_llvm_int(e, type, 0);
    switch (fn) {
    case QN_OP_NOT: return LLVMBuildNot(b, a, "");
    case QN_OP_NEG: return LLVMBuildNeg(b, a, "");
    case QN_OP_ABS:
        return is_signed(type.dtype)
                   ? same_type(e, "llvm.abs", 2, (LLVMValueRef[]){ a, LLVMConstInt(e->i1, 0, 0) })
                   : a;
    case QN_OP_SIGN: {
        LLVMTypeRef t = LLVMTypeOf(a);
        LLVMValueRef positive = LLVMBuildZExt(b, LLVMBuildICmp(b, LLVMIntNE, a, zero, ""), t, "");
        if (!is_signed(type.dtype))
            return positive;
        LLVMValueRef negative = LLVMBuildSExt(b, LLVMBuildICmp(b, LLVMIntSLT, a, zero, ""), t, "");
        return LLVMBuildOr(b, positive, negative, ""); /* -1 | 1 is -1 */
    }
    case QN_OP_RELU: return qn_llvm_binary(e, QN_OP_MAX, type, a, zero);
    default: return NULL;
    }
}

LLVMValueRef qn_llvm_unary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a)
{
    if (fn == QN_OP_STOP_GRADIENT)
        return a;
    if (!qn_dtype_is_float(type.dtype))
        return type.dtype == QUERN_BOOL && fn != QN_OP_NOT ? NULL : int_unary(e, fn, type, a);
    if (!is_half(type.dtype))
        return float_unary(e, fn, type, a);
    LLVMValueRef wide = qn_llvm_convert(e, type, QUERN_F32, a);
    LLVMValueRef result = float_unary(e, fn, with_dtype(type, QUERN_F32), wide);
    bool predicate = fn == QN_OP_IS_NAN || fn == QN_OP_IS_INF;
    return !result || predicate ? result
                                : qn_llvm_convert(e, with_dtype(type, QUERN_F32), type.dtype, result);
}

/* ---- integer division ---- */

LLVMValueRef qn_llvm_divide_unchecked(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a,
                                      LLVMValueRef b)
{
    bool quotient = fn == QN_OP_DIV;
    if (is_signed(type.dtype))
        return quotient ? LLVMBuildSDiv(e->builder, a, b, "") : LLVMBuildSRem(e->builder, a, b, "");
    return quotient ? LLVMBuildUDiv(e->builder, a, b, "") : LLVMBuildURem(e->builder, a, b, "");
}

/* A quotient by floating-point division: exact for up to 32 bits in f64, 16 bits in f32, because a quotient that is no
 * integer is further from one than the division's rounding error. CPUs divide vectors of floats but not of integers. */
static LLVMValueRef divide_as_floats(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b)
{
    bool narrow = bits_of(type.dtype) <= 16;
    LLVMTypeRef wide = qn_llvm_type(e, with_dtype(type, narrow ? QUERN_F32 : QUERN_F64));
    /* Quotients fit a type of twice the width, so that -2^31 / -1 does not overflow. */
    LLVMTypeRef via = qn_llvm_type(e, with_dtype(type, narrow ? QUERN_I32 : QUERN_I64));
    bool sign = is_signed(type.dtype);
    LLVMValueRef x =
        sign ? LLVMBuildSIToFP(e->builder, a, wide, "") : LLVMBuildUIToFP(e->builder, a, wide, "");
    LLVMValueRef y =
        sign ? LLVMBuildSIToFP(e->builder, b, wide, "") : LLVMBuildUIToFP(e->builder, b, wide, "");
    LLVMValueRef q = LLVMBuildFPToSI(e->builder, LLVMBuildFDiv(e->builder, x, y, ""), via, "");
    return LLVMBuildTrunc(e->builder, q, qn_llvm_type(e, type), "");
}

/* x / 0 = 0 and x % 0 = 0; MIN / -1 = MIN, MIN % -1 = 0. */
static LLVMValueRef int_divide(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a, LLVMValueRef b)
{
    LLVMBuilderRef builder = e->builder;
    LLVMValueRef zero = qn_llvm_int(e, type, 0), one = qn_llvm_int(e, type, 1);
    LLVMValueRef by_zero = LLVMBuildICmp(builder, LLVMIntEQ, b, zero, "");
    if (type.lanes > 1 && bits_of(type.dtype) <= 32 && !LLVMIsConstant(b)) {
        LLVMValueRef q = divide_as_floats(e, type, a, select_(e, by_zero, one, b));
        if (fn == QN_OP_DIV)
            return select_(e, by_zero, zero, q);
        return select_(e, by_zero, zero, LLVMBuildSub(builder, a, LLVMBuildMul(builder, q, b, ""), ""));
    }
    LLVMValueRef unfit = by_zero;
    if (is_signed(type.dtype)) {
        LLVMValueRef minus_one = LLVMBuildICmp(builder, LLVMIntEQ, b, qn_llvm_int(e, type, -1), "");
        unfit = LLVMBuildOr(builder, by_zero, minus_one, "");
        LLVMValueRef fit = select_(e, unfit, one, b);
        LLVMValueRef r = qn_llvm_divide_unchecked(e, fn, type, a, fit);
        LLVMValueRef by_minus_one = fn == QN_OP_DIV ? LLVMBuildNeg(builder, a, "") : zero;
        return select_(e, unfit, select_(e, by_zero, zero, by_minus_one), r);
    }
    LLVMValueRef r = qn_llvm_divide_unchecked(e, fn, type, a, select_(e, unfit, one, b));
    return select_(e, by_zero, zero, r);
}

/* ---- two operands ---- */

/* By squaring, in a loop over the exponent's bits. A negative exponent gives 0, except for 1 and -1. */
static LLVMValueRef int_power(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef exponent)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef t = qn_llvm_type(e, type);
    LLVMValueRef one = qn_llvm_int(e, type, 1), zero = qn_llvm_int(e, type, 0);
    LLVMBasicBlockRef before = qn_llvm_here(e), loop = qn_llvm_block(e, "power"), after;
    LLVMBuildBr(b, loop);
    qn_llvm_at(e, loop);
    LLVMValueRef bit = qn_llvm_phi(e, e->i32), left = qn_llvm_phi(e, t);
    LLVMValueRef square = qn_llvm_phi(e, t), product = qn_llvm_phi(e, t);
    LLVMValueRef odd = LLVMBuildICmp(b, LLVMIntNE, LLVMBuildAnd(b, left, one, ""), zero, "");
    LLVMValueRef next_product = LLVMBuildMul(b, product, select_(e, odd, square, one), "");
    LLVMValueRef next_square = LLVMBuildMul(b, square, square, "");
    LLVMValueRef next_left = LLVMBuildLShr(b, left, one, "");
    LLVMValueRef next_bit = LLVMBuildAdd(b, bit, qn_llvm_i32(e, 1), "");
    LLVMValueRef more = LLVMBuildICmp(b, LLVMIntULT, next_bit, qn_llvm_i32(e, bits_of(type.dtype)), "");
    after = qn_llvm_block(e, "");
    LLVMBuildCondBr(b, more, loop, after);
    qn_llvm_incoming(bit, qn_llvm_i32(e, 0), before);
    qn_llvm_incoming(bit, next_bit, loop);
    qn_llvm_incoming(left, exponent, before);
    qn_llvm_incoming(left, next_left, loop);
    qn_llvm_incoming(square, a, before);
    qn_llvm_incoming(square, next_square, loop);
    qn_llvm_incoming(product, one, before);
    qn_llvm_incoming(product, next_product, loop);
    qn_llvm_at(e, after);
    if (!is_signed(type.dtype))
        return next_product;
    LLVMValueRef unit = LLVMBuildOr(b, LLVMBuildICmp(b, LLVMIntEQ, a, one, ""),
                                    LLVMBuildICmp(b, LLVMIntEQ, a, qn_llvm_int(e, type, -1), ""), "");
    LLVMValueRef vanishes =
        LLVMBuildAnd(b, LLVMBuildICmp(b, LLVMIntSLT, exponent, zero, ""), LLVMBuildNot(b, unit, ""), "");
    /* 1 and -1 need only the exponent's lowest bit, which the sign doesn't change. */
    return select_(e, vanishes, zero, next_product);
}

static LLVMValueRef shift(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a, LLVMValueRef by)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef width = qn_llvm_int(e, type, bits_of(type.dtype));
    if (fn == QN_OP_SHIFT_RIGHT && is_signed(type.dtype)) {
        LLVMValueRef most = qn_llvm_int(e, type, bits_of(type.dtype) - 1);
        return LLVMBuildAShr(b, a, call2(e, "llvm.umin", by, most), "");
    }
    LLVMValueRef within = LLVMBuildICmp(b, LLVMIntULT, by, width, "");
    LLVMValueRef zero = qn_llvm_int(e, type, 0), fit = select_(e, within, by, zero);
    LLVMValueRef shifted =
        fn == QN_OP_SHIFT_LEFT ? LLVMBuildShl(b, a, fit, "") : LLVMBuildLShr(b, a, fit, "");
    return select_(e, within, shifted, zero);
}

static LLVMValueRef int_binary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef x, LLVMValueRef y)
{
    LLVMBuilderRef b = e->builder;
    bool sign = is_signed(type.dtype);
    switch (fn) {
    case QN_OP_ADD: return LLVMBuildAdd(b, x, y, "");
    case QN_OP_SUB: return LLVMBuildSub(b, x, y, "");
    case QN_OP_MUL: return LLVMBuildMul(b, x, y, "");
    case QN_OP_DIV:
    case QN_OP_REM: return int_divide(e, fn, type, x, y);
    case QN_OP_POW: return int_power(e, type, x, y);
    case QN_OP_MAX: return call2(e, sign ? "llvm.smax" : "llvm.umax", x, y);
    case QN_OP_MIN: return call2(e, sign ? "llvm.smin" : "llvm.umin", x, y);
    case QN_OP_AND: return LLVMBuildAnd(b, x, y, "");
    case QN_OP_OR: return LLVMBuildOr(b, x, y, "");
    case QN_OP_XOR: return LLVMBuildXor(b, x, y, "");
    case QN_OP_SHIFT_LEFT:
    case QN_OP_SHIFT_RIGHT: return shift(e, fn, type, x, y);
    default: return NULL;
    }
}

static LLVMValueRef bool_binary(const qn_emitter *e, qn_op fn, LLVMValueRef x, LLVMValueRef y)
{
    switch (fn) {
    case QN_OP_MAX:
    case QN_OP_OR: return LLVMBuildOr(e->builder, x, y, "");
    case QN_OP_MIN:
    case QN_OP_AND: return LLVMBuildAnd(e->builder, x, y, "");
    case QN_OP_XOR: return LLVMBuildXor(e->builder, x, y, "");
    default: return NULL;
    }
}

/* NaN if either is. A comparison with a select behind it is one machine instruction that gives its second operand when
 * either is NaN: enough when the first is a number, else a NaN in the first is put back. */
static LLVMValueRef float_extreme(const qn_emitter *e, LLVMRealPredicate better, LLVMValueRef x,
                                  LLVMValueRef y)
{
    if (is_number(y)) {
        LLVMValueRef number = y;
        y = x;
        x = number;
    }
    LLVMValueRef r = select_(e, LLVMBuildFCmp(e->builder, better, x, y, ""), x, y);
    if (is_number(x))
        return r;
    return select_(e, LLVMBuildFCmp(e->builder, LLVMRealUNO, x, x, ""), x, r);
}

static LLVMValueRef float_binary(const qn_emitter *e, qn_op fn, LLVMValueRef x, LLVMValueRef y)
{
    switch (fn) {
    case QN_OP_ADD: return LLVMBuildFAdd(e->builder, x, y, "");
    case QN_OP_SUB: return LLVMBuildFSub(e->builder, x, y, "");
    case QN_OP_MUL: return LLVMBuildFMul(e->builder, x, y, "");
    case QN_OP_DIV: return LLVMBuildFDiv(e->builder, x, y, "");
    case QN_OP_MAX: return float_extreme(e, LLVMRealOGT, x, y);
    case QN_OP_MIN: return float_extreme(e, LLVMRealOLT, x, y);
    default: return NULL;
    }
}

LLVMValueRef qn_llvm_binary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a, LLVMValueRef b)
{
    if (type.dtype == QUERN_BOOL)
        return bool_binary(e, fn, a, b);
    if (!qn_dtype_is_float(type.dtype))
        return int_binary(e, fn, type, a, b);
    if (!is_half(type.dtype))
        return float_binary(e, fn, a, b);
    /* One operation in f32 and one rounding give the correctly rounded result: 24 bits are more than twice 11. */
    LLVMValueRef x = qn_llvm_convert(e, type, QUERN_F32, a), y = qn_llvm_convert(e, type, QUERN_F32, b);
    LLVMValueRef result = float_binary(e, fn, x, y);
    return result ? qn_llvm_convert(e, with_dtype(type, QUERN_F32), type.dtype, result) : NULL;
}

LLVMValueRef qn_llvm_fma(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c)
{
    LLVMValueRef args[3] = { a, b, c };
    if (!is_half(type.dtype))
        return same_type(e, "llvm.fma", 3, args);
    for (int i = 0; i < 3; i++)
        args[i] = qn_llvm_convert(e, type, QUERN_F32, args[i]);
    return qn_llvm_convert(e, with_dtype(type, QUERN_F32), type.dtype, same_type(e, "llvm.fma", 3, args));
}

LLVMValueRef qn_llvm_compare(const qn_emitter *e, qn_direction direction, qn_ktype type, LLVMValueRef a,
                             LLVMValueRef b)
{
    static const LLVMRealPredicate real[] = { LLVMRealOEQ, LLVMRealUNE, LLVMRealOLT,
                                              LLVMRealOLE, LLVMRealOGT, LLVMRealOGE };
    static const LLVMIntPredicate with_sign[] = { LLVMIntEQ,  LLVMIntNE,  LLVMIntSLT,
                                                  LLVMIntSLE, LLVMIntSGT, LLVMIntSGE };
    static const LLVMIntPredicate without[] = { LLVMIntEQ,  LLVMIntNE,  LLVMIntULT,
                                                LLVMIntULE, LLVMIntUGT, LLVMIntUGE };
    if (is_half(type.dtype)) {
        a = qn_llvm_convert(e, type, QUERN_F32, a);
        b = qn_llvm_convert(e, type, QUERN_F32, b);
    }
    if (qn_dtype_is_float(type.dtype))
        return LLVMBuildFCmp(e->builder, real[direction], a, b, "");
    return LLVMBuildICmp(e->builder, (is_signed(type.dtype) ? with_sign : without)[direction], a, b, "");
}

/* ---- a * 2^n ---- */

/* vscalef: one instruction, any n, one rounding. `lanes` is what one register of 128, 256 or 512 bits holds. */
static LLVMValueRef scale2_register(const qn_emitter *e, qn_dtype dtype, int lanes, LLVMValueRef a,
                                    LLVMValueRef n)
{
    int bits = lanes * bits_of(dtype);
    const char *name = dtype == QUERN_F32 ? bits == 512   ? "llvm.x86.avx512.mask.scalef.ps.512"
                                            : bits == 256 ? "llvm.x86.avx512.mask.scalef.ps.256"
                                                          : "llvm.x86.avx512.mask.scalef.ps.128"
                       : bits == 512      ? "llvm.x86.avx512.mask.scalef.pd.512"
                       : bits == 256      ? "llvm.x86.avx512.mask.scalef.pd.256"
                                          : "llvm.x86.avx512.mask.scalef.pd.128";
    LLVMTypeRef mask_type = lanes == 16 ? e->i16 : e->i8;
    LLVMValueRef all = LLVMConstAllOnes(mask_type), current_rounding = qn_llvm_i32(e, 4);
    LLVMValueRef args[] = { a, n, LLVMGetPoison(LLVMTypeOf(a)), all, current_rounding };
    return qn_llvm_intrinsic(e, name, 0, NULL, bits == 512 ? 5 : 4, args);
}

static LLVMValueRef scale2_avx512(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef n)
{
    int most = 64 / (int)qn_dtype_bytes(type.dtype), least = most / 4;
    if (type.lanes > most) {
        int half = type.lanes / 2;
        qn_ktype part = { type.dtype, half };
        LLVMValueRef low = scale2_avx512(e, part, qn_llvm_slice(e, a, 0, half), qn_llvm_slice(e, n, 0, half));
        LLVMValueRef high =
            scale2_avx512(e, part, qn_llvm_slice(e, a, half, half), qn_llvm_slice(e, n, half, half));
        return qn_llvm_concat(e, low, high);
    }
    if (type.lanes >= least)
        return scale2_register(e, type.dtype, type.lanes, a, n);
    int widen[4];
    for (int i = 0; i < least; i++)
        widen[i] = i < type.lanes ? i : -1;
    LLVMValueRef r = scale2_register(e, type.dtype, least, qn_llvm_shuffle(e, a, NULL, least, widen),
                                     qn_llvm_shuffle(e, n, NULL, least, widen));
    return qn_llvm_slice(e, r, 0, type.lanes);
}

/* Two factors of about half the exponent each. For 2^-60 <= |a| <= 2^60 the first product is exact whenever the second is
 * not zero, so the result is rounded once. */
static LLVMValueRef scale2_two_steps(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef n)
{
    LLVMBuilderRef b = e->builder;
    bool f32 = type.dtype == QUERN_F32;
    qn_ktype int_type = with_dtype(type, f32 ? QUERN_I32 : QUERN_I64);
    double limit = f32 ? 252 : 2044;
    LLVMValueRef bias = qn_llvm_int(e, int_type, f32 ? 127 : 1023);
    LLVMValueRef place = qn_llvm_int(e, int_type, f32 ? 23 : 52), one = qn_llvm_int(e, int_type, 1);
    LLVMValueRef low = qn_llvm_float(e, type, -limit), high = qn_llvm_float(e, type, limit);
    n = select_(e, LLVMBuildFCmp(b, LLVMRealOGT, n, low, ""), n, low); /* NaN too */
    n = select_(e, LLVMBuildFCmp(b, LLVMRealOLT, n, high, ""), n, high);
    LLVMValueRef whole = LLVMBuildFPToSI(b, n, qn_llvm_type(e, with_dtype(type, QUERN_I32)), "");
    if (!f32)
        whole = LLVMBuildSExt(b, whole, qn_llvm_type(e, int_type), "");
    LLVMValueRef half = LLVMBuildAShr(b, whole, one, ""), rest = LLVMBuildSub(b, whole, half, "");
    LLVMValueRef parts[2] = { half, rest };
    for (int i = 0; i < 2; i++) {
        LLVMValueRef bits = LLVMBuildShl(b, LLVMBuildAdd(b, parts[i], bias, ""), place, "");
        a = LLVMBuildFMul(b, a, LLVMBuildBitCast(b, bits, qn_llvm_type(e, type), ""), "");
    }
    return a;
}

LLVMValueRef qn_llvm_scale2(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef n)
{
    if (is_half(type.dtype)) {
        qn_ktype wide = with_dtype(type, QUERN_F32);
        LLVMValueRef r = qn_llvm_scale2(e, wide, qn_llvm_convert(e, type, QUERN_F32, a),
                                        qn_llvm_convert(e, type, QUERN_F32, n));
        return qn_llvm_convert(e, wide, type.dtype, r);
    }
    return e->target->avx512 ? scale2_avx512(e, type, a, n) : scale2_two_steps(e, type, a, n);
}

/* ---- tables ---- */

/* vpermi2ps: two registers are the table, and of the indices the last five bits count. */
static LLVMValueRef lookup_avx512(const qn_emitter *e, int lanes, LLVMValueRef table, LLVMValueRef index)
{
    enum { REGISTER = QN_LOOKUP / 2 };
    if (lanes > REGISTER) {
        const int half = lanes / 2;
        LLVMValueRef low = lookup_avx512(e, half, table, qn_llvm_slice(e, index, 0, half));
        return qn_llvm_concat(e, low, lookup_avx512(e, half, table, qn_llvm_slice(e, index, half, half)));
    }
    int widen[REGISTER];
    for (int i = 0; i < REGISTER; i++)
        widen[i] = i < lanes ? i : -1;
    index = lanes == 1 ? qn_llvm_splat(e, index, REGISTER) : qn_llvm_shuffle(e, index, NULL, REGISTER, widen);
    LLVMValueRef args[] = { qn_llvm_slice(e, table, 0, REGISTER), index,
                            qn_llvm_slice(e, table, REGISTER, REGISTER) };
    return qn_llvm_slice(e, qn_llvm_intrinsic(e, "llvm.x86.avx512.vpermi2var.ps.512", 0, NULL, 3, args), 0,
                         lanes);
}

LLVMValueRef qn_llvm_lookup(const qn_emitter *e, int lanes, const float *table, LLVMValueRef index)
{
    const qn_ktype f32 = { QUERN_F32, 1 }, i32 = { QUERN_I32, 1 };
    LLVMValueRef numbers[QN_LOOKUP];
    for (int i = 0; i < QN_LOOKUP; i++)
        numbers[i] = qn_llvm_float(e, f32, table[i]);
    LLVMValueRef all = LLVMConstVector(numbers, QN_LOOKUP);
    if (e->target->avx512)
        return lookup_avx512(e, lanes, all, index);
    LLVMValueRef result = LLVMGetPoison(qn_llvm_type(e, (qn_ktype){ QUERN_F32, lanes }));
    for (int i = 0; i < lanes; i++) {
        LLVMValueRef at =
            LLVMBuildAnd(e->builder, qn_llvm_slice(e, index, i, 1), qn_llvm_int(e, i32, QN_LOOKUP - 1), "");
        LLVMValueRef one = LLVMBuildExtractElement(e->builder, all, at, "");
        result = lanes == 1 ? one : LLVMBuildInsertElement(e->builder, result, one, qn_llvm_i32(e, i), "");
    }
    return result;
}

/* pshufb and tbl, of whole vectors. */
static LLVMValueRef pick_vector(const qn_emitter *e, int lanes, LLVMValueRef index, LLVMValueRef table)
{
    int repeat[64];
    for (int i = 0; i < lanes; i++)
        repeat[i] = i % 16;
    if (e->target->isa == QN_ISA_AARCH64) {
        LLVMTypeRef type = qn_llvm_lanes(e->i8, 16);
        return qn_llvm_intrinsic(e, "llvm.aarch64.neon.tbl1", 1, &type, 2, (LLVMValueRef[]){ table, index });
    }
    const char *name = lanes == 64   ? "llvm.x86.avx512.pshuf.b.512"
                       : lanes == 32 ? "llvm.x86.avx2.pshuf.b"
                                     : "llvm.x86.ssse3.pshuf.b.128";
    if (lanes > 16)
        table = qn_llvm_shuffle(e, table, NULL, lanes, repeat);
    return qn_llvm_intrinsic(e, name, 0, NULL, 2, (LLVMValueRef[]){ table, index });
}

LLVMValueRef qn_llvm_pick(const qn_emitter *e, int lanes, LLVMValueRef index, LLVMValueRef table)
{
    const qn_ktype bytes = { QUERN_U8, lanes };
    const bool arm = e->target->isa == QN_ISA_AARCH64;
    const int most = e->target->vector_bytes;
    if (lanes > most) {
        const int half = lanes / 2;
        return qn_llvm_concat(e, qn_llvm_pick(e, half, qn_llvm_slice(e, index, 0, half), table),
                              qn_llvm_pick(e, half, qn_llvm_slice(e, index, half, half), table));
    }
    index = LLVMBuildAnd(e->builder, index, qn_llvm_int(e, bytes, 15), "");
    if (lanes >= 16 && (arm || e->target->isa == QN_ISA_X86))
        return pick_vector(e, lanes, index, table);
    LLVMValueRef result = LLVMGetPoison(qn_llvm_type(e, bytes));
    for (int i = 0; i < lanes; i++) {
        LLVMValueRef one = LLVMBuildExtractElement(e->builder, table, qn_llvm_slice(e, index, i, 1), "");
        result = lanes == 1 ? one : LLVMBuildInsertElement(e->builder, result, one, qn_llvm_i32(e, i), "");
    }
    return result;
}

/* ---- reduction over lanes ---- */

LLVMValueRef qn_llvm_reduce(const qn_emitter *e, qn_kind kind, qn_ktype type, LLVMValueRef a)
{
    static const qn_op ops[] = {
        [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
    };
    QN_ASSERT(kind <= QN_KIND_MIN, "a reduction over lanes of kind %d", (int)kind);
    if (type.dtype == QUERN_BOOL && type.lanes > 1 && (kind == QN_KIND_MAX || kind == QN_KIND_MIN)) {
        LLVMTypeRef bits = LLVMIntTypeInContext(e->context, (unsigned)type.lanes);
        const bool any = kind == QN_KIND_MAX;
        return LLVMBuildICmp(e->builder, any ? LLVMIntNE : LLVMIntEQ,
                             LLVMBuildBitCast(e->builder, a, bits, ""),
                             any ? LLVMConstNull(bits) : LLVMConstAllOnes(bits), "");
    }
    for (int n = type.lanes / 2; n >= 1; n /= 2) {
        qn_ktype part = { type.dtype, n };
        LLVMValueRef low = qn_llvm_slice(e, a, 0, n), high = qn_llvm_slice(e, a, n, n);
        a = qn_llvm_binary(e, ops[kind], part, low, high);
    }
    return a;
}
