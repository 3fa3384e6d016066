/* Loads, stores, gathers, scatters and prefetches. Addresses are aligned to their element, and to more where the tags say so. */
#include "backends/llvm/emit.h"

static void tag(const qn_emitter *e, LLVMValueRef inst, qn_llvm_tags tags)
{
    if (tags.alias_scope)
        LLVMSetMetadata(inst, LLVMGetMDKindIDInContext(e->context, "alias.scope", 11), tags.alias_scope);
    if (tags.noalias)
        LLVMSetMetadata(inst, LLVMGetMDKindIDInContext(e->context, "noalias", 7), tags.noalias);
    if (tags.unchanging)
        LLVMSetMetadata(inst, LLVMGetMDKindIDInContext(e->context, "invariant.load", 14),
                        LLVMMetadataAsValue(e->context, LLVMMDNodeInContext2(e->context, NULL, 0)));
}

static unsigned align_of(qn_ktype type, qn_llvm_tags tags)
{
    return tags.align ? tags.align : (unsigned)qn_dtype_bytes(type.dtype);
}

/* ---- between memory and values: bool is a byte in memory ---- */

static LLVMValueRef from_memory(const qn_emitter *e, qn_ktype type, LLVMValueRef loaded)
{
    if (type.dtype != QUERN_BOOL)
        return loaded;
    return LLVMBuildICmp(e->builder, LLVMIntNE, loaded, LLVMConstNull(qn_llvm_memory_type(e, type)), "");
}

static LLVMValueRef to_memory(const qn_emitter *e, qn_ktype type, LLVMValueRef value)
{
    if (type.dtype != QUERN_BOOL)
        return value;
    return LLVMBuildZExt(e->builder, value, qn_llvm_memory_type(e, type), "");
}

/* ---- masked intrinsics ---- */

/* Calls one of llvm.masked.*: `args` without the alignment, which is said about the address, argument `address`. */
static LLVMValueRef masked(const qn_emitter *e, const char *name, LLVMTypeRef value_type, size_t align,
                           int address, int n_args, LLVMValueRef *args, qn_llvm_tags tags)
{
    LLVMTypeRef types[] = { value_type, LLVMTypeOf(args[address]) };
    LLVMValueRef call;
    if (QN_LLVM_ALIGN_IS_ATTRIBUTE) {
        call = qn_llvm_intrinsic(e, name, 2, types, n_args, args);
        unsigned kind = LLVMGetEnumAttributeKindForName("align", 5);
        LLVMAddCallSiteAttribute(call, (LLVMAttributeIndex)(address + 1),
                                 LLVMCreateEnumAttribute(e->context, kind, align));
    } else {
        LLVMValueRef with_align[5];
        for (int i = 0; i <= n_args; i++)
            with_align[i] = i <= address       ? args[i]
                            : i == address + 1 ? qn_llvm_i32(e, (int64_t)align)
                                               : args[i - 1];
        call = qn_llvm_intrinsic(e, name, 2, types, n_args + 1, with_align);
    }
    tag(e, call, tags);
    return call;
}

static LLVMValueRef all_lanes(const qn_emitter *e, int lanes)
{
    return LLVMConstAllOnes(qn_llvm_lanes(e->i1, lanes));
}

static LLVMValueRef other_in_memory(const qn_emitter *e, qn_ktype type, LLVMValueRef other)
{
    return other ? to_memory(e, type, other) : LLVMConstNull(qn_llvm_memory_type(e, type));
}

/* ---- contiguous ---- */

static LLVMValueRef load(const qn_emitter *e, qn_ktype type, LLVMValueRef address, qn_llvm_tags tags)
{
    LLVMValueRef loaded = LLVMBuildLoad2(e->builder, qn_llvm_memory_type(e, type), address, "");
    LLVMSetAlignment(loaded, align_of(type, tags));
    LLVMSetVolatile(loaded, tags.in_order);
    tag(e, loaded, tags);
    return from_memory(e, type, loaded);
}

static void store(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef value,
                  qn_llvm_tags tags)
{
    LLVMValueRef inst = LLVMBuildStore(e->builder, to_memory(e, type, value), address);
    LLVMSetAlignment(inst, align_of(type, tags));
    tag(e, inst, tags);
}

LLVMValueRef qn_llvm_load(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef mask,
                          LLVMValueRef other, qn_llvm_tags tags)
{
    if (!mask)
        return load(e, type, address, tags);
    if (type.lanes > 1) {
        LLVMValueRef args[] = { address, mask, other_in_memory(e, type, other) };
        return from_memory(e, type,
                           masked(e, "llvm.masked.load", qn_llvm_memory_type(e, type),
                                  qn_dtype_bytes(type.dtype), 0, 3, args, tags));
    }
    LLVMBasicBlockRef before = qn_llvm_here(e), after = qn_llvm_block(e, ""), then = qn_llvm_block(e, "read");
    LLVMBuildCondBr(e->builder, mask, then, after);
    qn_llvm_at(e, then);
    LLVMValueRef loaded = load(e, type, address, tags);
    LLVMBuildBr(e->builder, after);
    qn_llvm_at(e, after);
    LLVMValueRef result = qn_llvm_phi(e, qn_llvm_type(e, type));
    qn_llvm_incoming(result, other ? other : LLVMConstNull(qn_llvm_type(e, type)), before);
    qn_llvm_incoming(result, loaded, then);
    return result;
}

void qn_llvm_store(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef value,
                   LLVMValueRef mask, qn_llvm_tags tags)
{
    if (!mask) {
        store(e, type, address, value, tags);
    } else if (type.lanes > 1) {
        LLVMValueRef args[] = { to_memory(e, type, value), address, mask };
        masked(e, "llvm.masked.store", qn_llvm_memory_type(e, type), qn_dtype_bytes(type.dtype), 1, 3, args,
               tags);
    } else {
        LLVMBasicBlockRef after = qn_llvm_block(e, ""), then = qn_llvm_block(e, "write");
        LLVMBuildCondBr(e->builder, mask, then, after);
        qn_llvm_at(e, then);
        store(e, type, address, value, tags);
        LLVMBuildBr(e->builder, after);
        qn_llvm_at(e, after);
    }
}

void qn_llvm_store_nontemporal(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef value,
                               qn_llvm_tags tags)
{
    LLVMValueRef inst = LLVMBuildStore(e->builder, to_memory(e, type, value), address);
    size_t bytes = qn_dtype_bytes(type.dtype) * (size_t)type.lanes, most = (size_t)e->target->vector_bytes;
    LLVMSetAlignment(inst, (unsigned)(bytes < most ? bytes : most));
    LLVMMetadataRef one = LLVMValueAsMetadata(qn_llvm_i32(e, 1));
    LLVMValueRef node = LLVMMetadataAsValue(e->context, LLVMMDNodeInContext2(e->context, &one, 1));
    LLVMSetMetadata(inst, LLVMGetMDKindIDInContext(e->context, "nontemporal", 11), node);
    tag(e, inst, tags);
}

void qn_llvm_store_fence(const qn_emitter *e)
{
    if (e->target->isa == QN_ISA_X86)
        qn_llvm_intrinsic(e, "llvm.x86.sse.sfence", 0, NULL, 0, NULL);
    else
        LLVMBuildFence(e->builder, LLVMAtomicOrderingRelease, 0, "");
}

/* ---- each lane its own address ---- */

LLVMValueRef qn_llvm_gather(const qn_emitter *e, qn_ktype type, LLVMValueRef addresses, LLVMValueRef mask,
                            LLVMValueRef other, qn_llvm_tags tags)
{
    LLVMValueRef args[] = { addresses, mask ? mask : all_lanes(e, type.lanes),
                            other_in_memory(e, type, other) };
    return from_memory(e, type,
                       masked(e, "llvm.masked.gather", qn_llvm_memory_type(e, type),
                              qn_dtype_bytes(type.dtype), 0, 3, args, tags));
}

void qn_llvm_scatter(const qn_emitter *e, qn_ktype type, LLVMValueRef addresses, LLVMValueRef value,
                     LLVMValueRef mask, qn_llvm_tags tags)
{
    LLVMValueRef args[] = { to_memory(e, type, value), addresses, mask ? mask : all_lanes(e, type.lanes) };
    masked(e, "llvm.masked.scatter", qn_llvm_memory_type(e, type), qn_dtype_bytes(type.dtype), 1, 3, args,
           tags);
}

void qn_llvm_prefetch(const qn_emitter *e, LLVMValueRef address, int locality)
{
    int level = locality < 0 ? 3 : locality > 3 ? 0 : 3 - locality; /* LLVM counts the other way */
    LLVMValueRef args[] = { address, qn_llvm_i32(e, 0), qn_llvm_i32(e, level), qn_llvm_i32(e, 1) };
    LLVMTypeRef type = LLVMTypeOf(address);
    qn_llvm_intrinsic(e, "llvm.prefetch", 1, &type, 4, args);
}
