/* Types, constants, functions and blocks of an LLVM module. */
#include "backends/llvm/emit.h"

#include <string.h>

/* ---- types ---- */

LLVMTypeRef qn_llvm_lanes(LLVMTypeRef element, int lanes)
{
    return lanes == 1 ? element : LLVMVectorType(element, (unsigned)lanes);
}

static LLVMTypeRef element_type(const qn_emitter *e, qn_dtype dtype)
{
    switch (dtype) {
    case QUERN_BOOL: return e->i1;
    case QUERN_I8:
    case QUERN_U8: return e->i8;
    case QUERN_I16:
    case QUERN_U16:
    case QUERN_F16:
    case QUERN_BF16: return e->i16;
    case QUERN_I32:
    case QUERN_U32: return e->i32;
    case QUERN_I64:
    case QUERN_U64: return e->i64;
    case QUERN_F32: return e->f32;
    case QUERN_F64: return e->f64;
    default: QN_UNREACHABLE("dtype %d has no machine type", (int)dtype);
    }
}

LLVMTypeRef qn_llvm_type(const qn_emitter *e, qn_ktype type)
{
    return qn_llvm_lanes(element_type(e, type.dtype), type.lanes);
}

LLVMTypeRef qn_llvm_memory_type(const qn_emitter *e, qn_ktype type)
{
    return qn_llvm_lanes(type.dtype == QUERN_BOOL ? e->i8 : element_type(e, type.dtype), type.lanes);
}

int qn_llvm_lane_count(LLVMValueRef value)
{
    LLVMTypeRef type = LLVMTypeOf(value);
    return LLVMGetTypeKind(type) == LLVMVectorTypeKind ? (int)LLVMGetVectorSize(type) : 1;
}

/* ---- constants ---- */

LLVMValueRef qn_llvm_i64(const qn_emitter *e, int64_t value)
{
    return LLVMConstInt(e->i64, (unsigned long long)value, 1);
}

LLVMValueRef qn_llvm_i32(const qn_emitter *e, int64_t value)
{
    return LLVMConstInt(e->i32, (unsigned long long)value & UINT32_MAX, 0);
}

static LLVMValueRef constant_splat(LLVMValueRef scalar, int lanes)
{
    LLVMValueRef elements[64];
    if (lanes == 1)
        return scalar;
    QN_ASSERT(lanes <= 64, "a vector of %d lanes", lanes);
    for (int i = 0; i < lanes; i++)
        elements[i] = scalar;
    return LLVMConstVector(elements, (unsigned)lanes);
}

/* The bits of an integer of that type, without what lies above them. */
static LLVMValueRef integer(LLVMTypeRef type, uint64_t bits)
{
    unsigned width = LLVMGetIntTypeWidth(type);
    return LLVMConstInt(type, width < 64 ? bits & ((UINT64_C(1) << width) - 1) : bits, 0);
}

LLVMValueRef qn_llvm_constant(const qn_emitter *e, qn_ktype type, qn_scalar value)
{
    LLVMTypeRef element = element_type(e, type.dtype);
    LLVMValueRef scalar;
    switch (type.dtype) {
    case QUERN_F16: scalar = integer(element, qn_f64_to_f16(value.f)); break;
    case QUERN_BF16: scalar = integer(element, qn_f64_to_bf16(value.f)); break;
    case QUERN_F32:
        /* By its bits: LLVMConstReal would round through its own conversion and lose a NaN's payload. */
        {
            float f = (float)value.f;
            uint32_t bits;
            memcpy(&bits, &f, sizeof bits);
            scalar = LLVMConstBitCast(integer(e->i32, bits), e->f32);
            break;
        }
    case QUERN_F64: {
        uint64_t bits;
        memcpy(&bits, &value.f, sizeof bits);
        scalar = LLVMConstBitCast(integer(e->i64, bits), e->f64);
        break;
    }
    case QUERN_BOOL: scalar = integer(element, value.i != 0); break;
    default: scalar = integer(element, (uint64_t)value.i);
    }
    return constant_splat(scalar, type.lanes);
}

LLVMValueRef qn_llvm_int(const qn_emitter *e, qn_ktype type, int64_t value)
{
    return constant_splat(integer(element_type(e, type.dtype), (uint64_t)value), type.lanes);
}

LLVMValueRef qn_llvm_float(const qn_emitter *e, qn_ktype type, double value)
{
    return qn_llvm_constant(e, type, (qn_scalar){ .f = value });
}

/* ---- lanes ---- */

LLVMValueRef qn_llvm_splat(const qn_emitter *e, LLVMValueRef scalar, int lanes)
{
    if (lanes == 1)
        return scalar;
    if (LLVMIsConstant(scalar))
        return constant_splat(scalar, lanes);
    LLVMTypeRef type = LLVMVectorType(LLVMTypeOf(scalar), (unsigned)lanes);
    LLVMValueRef none = LLVMGetPoison(type);
    LLVMValueRef first = LLVMBuildInsertElement(e->builder, none, scalar, qn_llvm_i32(e, 0), "");
    return LLVMBuildShuffleVector(e->builder, first, none,
                                  LLVMConstNull(LLVMVectorType(e->i32, (unsigned)lanes)), "");
}

static LLVMValueRef as_vector(const qn_emitter *e, LLVMValueRef value)
{
    LLVMTypeRef type = LLVMTypeOf(value);
    if (LLVMGetTypeKind(type) == LLVMVectorTypeKind)
        return value;
    return LLVMBuildInsertElement(e->builder, LLVMGetPoison(LLVMVectorType(type, 1)), value,
                                  qn_llvm_i32(e, 0), "");
}

/* A vector of 32 bits, which is no type of NEON, as a number; what was just loaded is loaded so. */
static LLVMValueRef as_word(const qn_emitter *e, LLVMValueRef a)
{
    static const char *const tags[] = { "alias.scope", "noalias", "invariant.load" };
    if (!LLVMIsALoadInst(a))
        return LLVMBuildBitCast(e->builder, a, e->i32, "");
    const LLVMBasicBlockRef here = qn_llvm_here(e);
    LLVMPositionBuilderBefore(e->builder, a);
    LLVMValueRef word = LLVMBuildLoad2(e->builder, e->i32, LLVMGetOperand(a, 0), "");
    LLVMSetAlignment(word, LLVMGetAlignment(a));
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        const unsigned kind = LLVMGetMDKindIDInContext(e->context, tags[i], (unsigned)strlen(tags[i]));
        if (LLVMGetMetadata(a, kind))
            LLVMSetMetadata(word, kind, LLVMGetMetadata(a, kind));
    }
    qn_llvm_at(e, here);
    return word;
}

/* Number of the 32 bits that a shuffle of bytes or 16-bit numbers puts into all of the result; -1: it does something else. */
static int word_everywhere(const qn_emitter *e, LLVMValueRef a, int n_mask, const int *mask)
{
    LLVMTypeRef element = LLVMGetElementType(LLVMTypeOf(a));
    if (e->target->isa != QN_ISA_AARCH64 || LLVMGetTypeKind(element) != LLVMIntegerTypeKind)
        return -1;
    const int each = 32 / (int)LLVMGetIntTypeWidth(element), n = qn_llvm_lane_count(a);
    if (each < 2 || n % each || n_mask % each || mask[0] < 0 || mask[0] >= n || mask[0] % each)
        return -1;
    for (int i = 0; i < n_mask; i++)
        if (mask[i] != mask[0] + i % each)
            return -1;
    return mask[0] / each;
}

/* Said in numbers of 32 bits it becomes an operand by lane: of sdot as an integer, of bfdot as a float. */
static LLVMValueRef spread_word(const qn_emitter *e, LLVMValueRef a, int word, int n_mask)
{
    LLVMTypeRef element = LLVMGetElementType(LLVMTypeOf(a));
    const int each = 32 / (int)LLVMGetIntTypeWidth(element), n = n_mask / each;
    int lanes[64];
    if (qn_llvm_lane_count(a) == each)
        return LLVMBuildBitCast(e->builder, qn_llvm_splat(e, as_word(e, a), n),
                                qn_llvm_lanes(element, n_mask), "");
    for (int i = 0; i < n; i++)
        lanes[i] = word;
    LLVMTypeRef type = qn_llvm_lanes(each == 2 ? e->f32 : e->i32, qn_llvm_lane_count(a) / each);
    LLVMValueRef words = qn_llvm_shuffle(e, LLVMBuildBitCast(e->builder, a, type, ""), NULL, n, lanes);
    return LLVMBuildBitCast(e->builder, words, qn_llvm_lanes(element, n_mask), "");
}

LLVMValueRef qn_llvm_shuffle(const qn_emitter *e, LLVMValueRef a, LLVMValueRef b, int n_mask, const int *mask)
{
    LLVMValueRef lanes[64];
    int n = qn_llvm_lane_count(a);
    const int word = n > 1 && n_mask > 4 ? word_everywhere(e, a, n_mask, mask) : -1;
    if (word >= 0)
        return spread_word(e, a, word, n_mask);
    QN_ASSERT(n_mask <= 64, "a shuffle of %d lanes", n_mask);
    if (n_mask == 1) {
        LLVMValueRef from = mask[0] < n ? a : b;
        return n == 1 ? from : LLVMBuildExtractElement(e->builder, from, qn_llvm_i32(e, mask[0] % n), "");
    }
    for (int i = 0; i < n_mask; i++)
        lanes[i] = mask[i] < 0 ? LLVMGetPoison(e->i32) : qn_llvm_i32(e, mask[i]);
    a = as_vector(e, a);
    b = b ? as_vector(e, b) : LLVMGetPoison(LLVMTypeOf(a));
    return LLVMBuildShuffleVector(e->builder, a, b, LLVMConstVector(lanes, (unsigned)n_mask), "");
}

LLVMValueRef qn_llvm_slice(const qn_emitter *e, LLVMValueRef vector, int start, int n)
{
    int mask[64];
    if (start == 0 && n == qn_llvm_lane_count(vector))
        return vector;
    for (int i = 0; i < n; i++)
        mask[i] = start + i;
    return qn_llvm_shuffle(e, vector, NULL, n, mask);
}

LLVMValueRef qn_llvm_concat(const qn_emitter *e, LLVMValueRef a, LLVMValueRef b)
{
    int mask[64], n = 2 * qn_llvm_lane_count(a);
    QN_ASSERT(n <= 64 && n == 2 * qn_llvm_lane_count(b), "vectors of %d and %d lanes put together",
              qn_llvm_lane_count(a), qn_llvm_lane_count(b));
    for (int i = 0; i < n; i++)
        mask[i] = i;
    return qn_llvm_shuffle(e, a, b, n, mask);
}

LLVMValueRef qn_llvm_ramp(const qn_emitter *e, qn_ktype type, LLVMValueRef first)
{
    LLVMValueRef steps[64];
    if (type.lanes == 1)
        return first;
    for (int i = 0; i < type.lanes; i++)
        steps[i] = integer(element_type(e, type.dtype), (uint64_t)i);
    return LLVMBuildAdd(e->builder, qn_llvm_splat(e, first, type.lanes),
                        LLVMConstVector(steps, (unsigned)type.lanes), "");
}

/* ---- functions, blocks ---- */

LLVMValueRef qn_llvm_intrinsic(const qn_emitter *e, const char *name, int n_types, LLVMTypeRef *types,
                               int n_args, LLVMValueRef *args)
{
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    QN_ASSERT(id != 0, "LLVM has no intrinsic %s", name);
    LLVMValueRef function = LLVMGetIntrinsicDeclaration(e->module, id, types, (size_t)n_types);
    LLVMTypeRef type = LLVMIntrinsicGetType(e->context, id, types, (size_t)n_types);
    return LLVMBuildCall2(e->builder, type, function, args, (unsigned)n_args, "");
}

void qn_llvm_attribute(const qn_emitter *e, LLVMValueRef function, const char *key, const char *value)
{
    LLVMAddAttributeAtIndex(
        function, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
        LLVMCreateStringAttribute(e->context, key, (unsigned)strlen(key), value, (unsigned)strlen(value)));
}

void qn_llvm_enum_attribute(const qn_emitter *e, LLVMValueRef function, unsigned at, const char *key,
                            uint64_t value)
{
    unsigned kind = LLVMGetEnumAttributeKindForName(key, strlen(key));
    QN_ASSERT(kind != 0, "LLVM has no attribute %s", key);
    LLVMAddAttributeAtIndex(function, at, LLVMCreateEnumAttribute(e->context, kind, value));
}

LLVMValueRef qn_llvm_function(const qn_emitter *e, const char *name, LLVMTypeRef result, int n_params,
                              LLVMTypeRef *params)
{
    LLVMTypeRef type = LLVMFunctionType(result, params, (unsigned)n_params, 0);
    LLVMValueRef function = LLVMAddFunction(e->module, name, type);
    qn_llvm_enum_attribute(e, function, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    qn_llvm_attribute(e, function, "no-builtins", "");
    if (e->target->isa == QN_ISA_X86)
        qn_llvm_attribute(e, function, "prefer-vector-width", e->target->avx512 ? "512" : "256");
    return function;
}

void qn_llvm_claim(const qn_emitter *e, const char *name)
{
    LLVMValueRef has_it = LLVMGetNamedFunction(e->module, name);
    if (has_it)
        LLVMSetValueName2(has_it, "entry", strlen("entry"));
}

LLVMBasicBlockRef qn_llvm_here(const qn_emitter *e)
{
    return LLVMGetInsertBlock(e->builder);
}

LLVMBasicBlockRef qn_llvm_block(const qn_emitter *e, const char *name)
{
    LLVMBasicBlockRef here = qn_llvm_here(e), next = LLVMGetNextBasicBlock(here);
    if (next)
        return LLVMInsertBasicBlockInContext(e->context, next, name);
    return LLVMAppendBasicBlockInContext(e->context, LLVMGetBasicBlockParent(here), name);
}

void qn_llvm_at(const qn_emitter *e, LLVMBasicBlockRef block)
{
    LLVMPositionBuilderAtEnd(e->builder, block);
}

LLVMValueRef qn_llvm_phi(const qn_emitter *e, LLVMTypeRef type)
{
    return LLVMBuildPhi(e->builder, type, "");
}

void qn_llvm_incoming(LLVMValueRef phi, LLVMValueRef value, LLVMBasicBlockRef from)
{
    LLVMAddIncoming(phi, &value, &from, 1);
}

LLVMValueRef qn_llvm_string(const qn_emitter *e, const char *text)
{
    size_t length = strlen(text);
    LLVMValueRef data = LLVMConstStringInContext2(e->context, text, length, 0);
    LLVMValueRef global = LLVMAddGlobal(e->module, LLVMTypeOf(data), "");
    LLVMSetInitializer(global, data);
    LLVMSetGlobalConstant(global, 1);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    LLVMSetUnnamedAddress(global, LLVMGlobalUnnamedAddr);
    return global;
}
