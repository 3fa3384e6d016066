/* Functions that all entries of a module share: launching a kernel, collectives, copies. */
#include "backends/llvm/entry.h"

#include <stddef.h>

/* The member, where the caller's quern_ctx has it and it isn't NULL; otherwise `fallback`. */
static LLVMValueRef parallel_for_down(const qn_emitter *e, const qn_entry_module *m, LLVMValueRef ctx,
                                      LLVMValueRef fallback)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef size = qn_entry_load(e, e->i64, qn_entry_member(e, m->ctx_type, ctx, 0));
    LLVMValueRef least = qn_llvm_i64(e, offsetof(quern_ctx, parallel_for_down) + sizeof(void *));
    LLVMValueRef has = LLVMBuildICmp(b, LLVMIntUGE, size, least, "");
    LLVMValueRef at = LLVMBuildSelect(b, has, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_PARALLEL_FOR_DOWN),
                                      qn_entry_member(e, m->ctx_type, ctx, QN_CTX_PARALLEL_FOR), "");
    LLVMValueRef down = qn_entry_load(e, e->ptr, at);
    return LLVMBuildSelect(b, LLVMBuildIsNull(b, down, ""), fallback, down, "");
}

LLVMValueRef qn_emit_launch(const qn_emitter *e, const qn_entry_module *m)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef trace_type = LLVMFunctionType(e->nothing, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i32 }, 3, 0);
    LLVMTypeRef for_type =
        LLVMFunctionType(e->nothing, (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr, e->i64 }, 4, 0);
    LLVMValueRef never = LLVMAddGlobal(e->module, e->i32, "never");
    LLVMSetInitializer(never, qn_llvm_i32(e, 0));
    LLVMSetGlobalConstant(never, 1);
    LLVMSetLinkage(never, LLVMPrivateLinkage);

    LLVMValueRef f = qn_llvm_function(e, "launch", e->i32, 6,
                                      (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr, e->i64, e->ptr, e->i1 });
    qn_llvm_attribute(e, f, "frame-pointer", "all"); /* debuggers and profilers find callers by it */
    LLVMSetLinkage(f, LLVMInternalLinkage);
    LLVMValueRef ctx = LLVMGetParam(f, 0), args = LLVMGetParam(f, 1), kernel = LLVMGetParam(f, 2),
                 tasks = LLVMGetParam(f, 3), name = LLVMGetParam(f, 4), down = LLVMGetParam(f, 5);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMBasicBlockRef cancelled = qn_llvm_block(e, "cancelled"), done = qn_llvm_block(e, "done"),
                      trace_end = qn_llvm_block(e, "trace_end"), after = qn_llvm_block(e, "after"),
                      loop = qn_llvm_block(e, "loop"), serial = qn_llvm_block(e, "serial"),
                      parallel = qn_llvm_block(e, "parallel"), run = qn_llvm_block(e, "run"),
                      trace_begin = qn_llvm_block(e, "trace_begin"), go = qn_llvm_block(e, "go");

    LLVMValueRef cancel = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_CANCEL));
    cancel = LLVMBuildSelect(b, LLVMBuildIsNull(b, cancel, ""), never, cancel, "");
    LLVMValueRef stop = qn_entry_load(e, e->i32, cancel);
    LLVMSetVolatile(stop, 1);
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, stop, ""), go, cancelled);
    qn_llvm_at(e, cancelled);
    LLVMBuildRet(b, qn_llvm_i32(e, QUERN_ERROR_CANCELLED));

    qn_llvm_at(e, go);
    LLVMValueRef trace = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_TRACE));
    LLVMValueRef untraced = LLVMBuildIsNull(b, trace, "");
    LLVMBuildCondBr(b, untraced, run, trace_begin);
    for (int begin = 1; begin >= 0; begin--) {
        qn_llvm_at(e, begin ? trace_begin : trace_end);
        LLVMValueRef user = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_TRACE_USER));
        LLVMBuildCall2(b, trace_type, trace, (LLVMValueRef[]){ user, name, qn_llvm_i32(e, begin) }, 3, "");
        LLVMBuildBr(b, begin ? run : done);
    }

    qn_llvm_at(e, run);
    LLVMValueRef for_ = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_PARALLEL_FOR));
    for_ = LLVMBuildSelect(b, down, parallel_for_down(e, m, ctx, for_), for_, "");
    LLVMValueRef several = LLVMBuildICmp(b, LLVMIntSGT, tasks, qn_llvm_i64(e, 1), "");
    LLVMBuildCondBr(b, LLVMBuildAnd(b, several, LLVMBuildIsNotNull(b, for_, ""), ""), parallel, serial);
    qn_llvm_at(e, parallel);
    LLVMValueRef pool = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_POOL));
    LLVMBuildCall2(b, for_type, for_, (LLVMValueRef[]){ pool, kernel, args, tasks }, 4, "");
    LLVMBuildBr(b, after);
    qn_llvm_at(e, serial);
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSGT, tasks, qn_llvm_i64(e, 0), ""), loop, after);
    qn_llvm_at(e, loop);
    LLVMValueRef i = qn_llvm_phi(e, e->i64);
    LLVMValueRef next = LLVMBuildAdd(b, i, qn_llvm_i64(e, 1), "");
    LLVMValueRef task = LLVMBuildSelect(b, down, LLVMBuildSub(b, tasks, next, ""), i, "");
    LLVMBuildCall2(b, m->kernel_type, kernel, (LLVMValueRef[]){ args, task }, 2, "");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, next, tasks, ""), loop, after);
    qn_llvm_incoming(i, qn_llvm_i64(e, 0), serial);
    qn_llvm_incoming(i, next, loop);

    qn_llvm_at(e, after);
    LLVMBuildCondBr(b, untraced, done, trace_end);
    qn_llvm_at(e, done);
    LLVMValueRef good = LLVMBuildICmp(b, LLVMIntSLT, qn_entry_load(e, e->i64, args), qn_llvm_i64(e, 0), "");
    LLVMBuildRet(b,
                 LLVMBuildSelect(b, good, qn_llvm_i32(e, QUERN_OK), qn_llvm_i32(e, QUERN_ERROR_INDEX), ""));
    return f;
}

/* A pointer of a struct that begins with its size, in bytes; NULL where that ends before `least`. */
static LLVMValueRef pointer_within(const qn_emitter *e, LLVMTypeRef type, LLVMValueRef from, int index,
                                   size_t least)
{
    LLVMBuilderRef b = e->builder;
    LLVMBasicBlockRef here = qn_llvm_here(e), known = qn_llvm_block(e, "known"),
                      behind = qn_llvm_block(e, "");
    LLVMValueRef size = qn_entry_load(e, e->i64, qn_entry_member(e, type, from, 0));
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntUGE, size, qn_llvm_i64(e, (int64_t)least), ""), known, behind);
    qn_llvm_at(e, known);
    LLVMValueRef there = qn_entry_load(e, e->ptr, qn_entry_member(e, type, from, index));
    LLVMBuildBr(b, behind);
    qn_llvm_at(e, behind);
    LLVMValueRef pointer = qn_llvm_phi(e, e->ptr);
    qn_llvm_incoming(pointer, LLVMConstNull(e->ptr), here);
    qn_llvm_incoming(pointer, there, known);
    return pointer;
}

/* The communicator that the caller's quern_ctx lends; NULL where there is none. */
static LLVMValueRef lent_comm(const qn_emitter *e, const qn_entry_module *m, LLVMValueRef ctx)
{
    return pointer_within(e, m->ctx_type, ctx, QN_CTX_COMM, offsetof(quern_ctx, comm) + sizeof(void *));
}

LLVMValueRef qn_emit_rank(const qn_emitter *e, const qn_entry_module *m)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef f = qn_llvm_function(e, "rank", e->i64, 1, (LLVMTypeRef[]){ e->ptr });
    LLVMSetLinkage(f, LLVMInternalLinkage);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMValueRef comm = lent_comm(e, m, LLVMGetParam(f, 0));
    LLVMBasicBlockRef alone = qn_llvm_block(e, "alone"), together = qn_llvm_block(e, "together");
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, comm, ""), alone, together);
    qn_llvm_at(e, alone);
    LLVMBuildRet(b, qn_llvm_i64(e, 0));
    qn_llvm_at(e, together);
    LLVMValueRef rank = qn_entry_load(e, e->i32, qn_entry_member(e, m->comm_type, comm, QN_COMM_RANK));
    LLVMBuildRet(b, LLVMBuildSExt(b, rank, e->i64, ""));
    return f;
}

/* Traces the beginning or the end, where the host wants that. */
static void emit_trace(const qn_emitter *e, const qn_entry_module *m, LLVMValueRef ctx, LLVMValueRef name,
                       int begin)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef type = LLVMFunctionType(e->nothing, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i32 }, 3, 0);
    LLVMBasicBlockRef traced = qn_llvm_block(e, ""), behind = qn_llvm_block(e, "");
    LLVMValueRef trace = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_TRACE));
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, trace, ""), behind, traced);
    qn_llvm_at(e, traced);
    LLVMValueRef user = qn_entry_load(e, e->ptr, qn_entry_member(e, m->ctx_type, ctx, QN_CTX_TRACE_USER));
    LLVMBuildCall2(b, type, trace, (LLVMValueRef[]){ user, name, qn_llvm_i32(e, begin) }, 3, "");
    LLVMBuildBr(b, behind);
    qn_llvm_at(e, behind);
}

/* The communicator's function that starts an all_reduce; NULL where it has none. */
static LLVMValueRef starting(const qn_emitter *e, const qn_entry_module *m, LLVMValueRef comm)
{
    return pointer_within(e, m->comm_type, comm, QN_COMM_START_ALL_REDUCE,
                          offsetof(quern_comm, wait) + sizeof(void *));
}

/* Nothing was started where there is one rank, or the communicator starts nothing. */
LLVMValueRef qn_emit_wait(const qn_emitter *e, const qn_entry_module *m)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef f = qn_llvm_function(e, "wait", e->i32, 2, (LLVMTypeRef[]){ e->ptr, e->ptr });
    LLVMSetLinkage(f, LLVMInternalLinkage);
    LLVMValueRef ctx = LLVMGetParam(f, 0), name = LLVMGetParam(f, 1);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMValueRef comm = lent_comm(e, m, ctx);
    LLVMBasicBlockRef together = qn_llvm_block(e, "together"), nothing = qn_llvm_block(e, "nothing"),
                      call = qn_llvm_block(e, "call");
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, comm, ""), nothing, together);
    qn_llvm_at(e, together);
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, starting(e, m, comm), ""), nothing, call);
    qn_llvm_at(e, nothing);
    LLVMBuildRet(b, qn_llvm_i32(e, QUERN_OK));
    qn_llvm_at(e, call);
    emit_trace(e, m, ctx, name, 1);
    LLVMValueRef wait = qn_entry_load(e, e->ptr, qn_entry_member(e, m->comm_type, comm, QN_COMM_WAIT));
    LLVMValueRef status =
        LLVMBuildCall2(b, LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr }, 1, 0), wait, &comm, 1, "");
    emit_trace(e, m, ctx, name, 0);
    LLVMBuildRet(b, status);
    return f;
}

/* Alone, a rank has what all ranks have, where `alone` says that this will do. The status is -1 where the ranks are not as many
 * as `least`, or another number than `ranks` (0: any). */
LLVMValueRef qn_emit_collective(const qn_emitter *e, const qn_entry_module *m)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef types[] = { e->ptr, e->ptr, e->i32, e->ptr, e->ptr, e->i64,
                            e->i64, e->i32, e->i32, e->i32, e->i32 };
    LLVMTypeRef call_type =
        LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr, e->i64, e->i32, e->i32 }, 6, 0);
    LLVMValueRef f = qn_llvm_function(e, "collective", e->i32, 11, types);
    LLVMSetLinkage(f, LLVMInternalLinkage);
    LLVMValueRef p[11];
    LLVMGetParams(f, p);
    LLVMValueRef ctx = p[0], name = p[1], which = p[2], in = p[3], out = p[4], n = p[5], bytes = p[6],
                 dtype = p[7], how = p[8], ranks = p[9], least = p[10];
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMValueRef comm = lent_comm(e, m, ctx);
    LLVMBasicBlockRef alone = qn_llvm_block(e, "alone"), together = qn_llvm_block(e, "together"),
                      copy = qn_llvm_block(e, "copy"), call = qn_llvm_block(e, "call"),
                      wrong = qn_llvm_block(e, "wrong");
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, comm, ""), alone, together);
    qn_llvm_at(e, alone);
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLE, least, qn_llvm_i32(e, 1), ""), copy, wrong);
    qn_llvm_at(e, copy);
    LLVMBuildCall2(b, m->copy_type, m->copy, (LLVMValueRef[]){ out, in, bytes }, 3, "");
    LLVMBuildRet(b, qn_llvm_i32(e, QUERN_OK));
    qn_llvm_at(e, together);
    LLVMValueRef there = qn_entry_load(e, e->i32, qn_entry_member(e, m->comm_type, comm, QN_COMM_RANKS));
    LLVMValueRef fits =
        LLVMBuildOr(b, LLVMBuildIsNull(b, ranks, ""), LLVMBuildICmp(b, LLVMIntEQ, there, ranks, ""), "");
    fits = LLVMBuildAnd(b, fits, LLVMBuildICmp(b, LLVMIntSGE, there, least, ""), "");
    LLVMBuildCondBr(b, fits, call, wrong);
    qn_llvm_at(e, wrong);
    LLVMBuildRet(b, qn_llvm_i32(e, -1));
    qn_llvm_at(e, call);
    emit_trace(e, m, ctx, name, 1);
    LLVMValueRef start = starting(e, m, comm);
    LLVMValueRef starts = LLVMBuildAnd(b, LLVMBuildIsNotNull(b, start, ""),
                                       LLVMBuildICmp(b, LLVMIntSLT, which, qn_llvm_i32(e, 0), ""), "");
    LLVMValueRef first = qn_entry_member(e, m->comm_type, comm, QN_COMM_ALL_REDUCE);
    which = LLVMBuildSelect(b, LLVMBuildICmp(b, LLVMIntSLT, which, qn_llvm_i32(e, 0), ""), qn_llvm_i32(e, 0),
                            which, "");
    LLVMValueRef at = LLVMBuildGEP2(b, e->ptr, first, &which, 1, "");
    LLVMValueRef function = LLVMBuildSelect(b, starts, start, qn_entry_load(e, e->ptr, at), "");
    LLVMValueRef status =
        LLVMBuildCall2(b, call_type, function, (LLVMValueRef[]){ comm, in, out, n, dtype, how }, 6, "");
    emit_trace(e, m, ctx, name, 0);
    LLVMBuildRet(b, status);
    return f;
}

/* Without a table of strings nothing can be computed of them. */
LLVMValueRef qn_emit_text(const qn_emitter *e, const qn_entry_module *m)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef call_type = LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr, e->i32, e->ptr }, 3, 0);
    LLVMValueRef f =
        qn_llvm_function(e, "text", e->i32, 4, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i32, e->ptr });
    LLVMSetLinkage(f, LLVMInternalLinkage);
    LLVMValueRef ctx = LLVMGetParam(f, 0), name = LLVMGetParam(f, 1), what = LLVMGetParam(f, 2),
                 args = LLVMGetParam(f, 3);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMValueRef strings =
        pointer_within(e, m->ctx_type, ctx, QN_CTX_STRINGS, offsetof(quern_ctx, strings) + sizeof(void *));
    LLVMBasicBlockRef none = qn_llvm_block(e, "none"), call = qn_llvm_block(e, "call");
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, strings, ""), none, call);
    qn_llvm_at(e, none);
    LLVMBuildRet(b, qn_llvm_i32(e, QUERN_ERROR_ARGUMENT));
    qn_llvm_at(e, call);
    emit_trace(e, m, ctx, name, 1);
    LLVMValueRef compute = qn_entry_load(
        e, e->ptr, qn_entry_plus(e, strings, qn_llvm_i64(e, (int64_t)offsetof(quern_strings, compute))));
    LLVMValueRef status =
        LLVMBuildCall2(b, call_type, compute, (LLVMValueRef[]){ strings, what, args }, 3, "");
    emit_trace(e, m, ctx, name, 0);
    LLVMBuildRet(b, status);
    return f;
}

/* for (; i + n * width <= bytes; i += n * width) of a copy by n pieces of `width` bytes; gives where it ended. */
static LLVMValueRef copy_loop(const qn_emitter *e, LLVMValueRef to, LLVMValueRef from, LLVMValueRef start,
                              LLVMValueRef bytes, int width, int n)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef type = qn_llvm_lanes(e->i8, width);
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, ""),
                      body = qn_llvm_block(e, "copy"), test = qn_llvm_block(e, "test");
    LLVMBuildBr(b, test);
    qn_llvm_at(e, test);
    LLVMValueRef i = qn_llvm_phi(e, e->i64);
    LLVMValueRef next = LLVMBuildAdd(b, i, qn_llvm_i64(e, (int64_t)width * n), "");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLE, next, bytes, ""), body, behind);
    qn_llvm_at(e, body);
    LLVMValueRef source = qn_entry_plus(e, from, i), target = qn_entry_plus(e, to, i);
    for (int piece = 0; piece < n; piece++) {
        LLVMValueRef offset = qn_llvm_i64(e, (int64_t)width * piece);
        LLVMValueRef value = qn_entry_load(e, type, qn_entry_plus(e, source, offset));
        LLVMSetAlignment(value, 1);
        LLVMSetAlignment(LLVMBuildStore(b, value, qn_entry_plus(e, target, offset)), 1);
    }
    LLVMBuildBr(b, test);
    qn_llvm_incoming(i, start, before);
    qn_llvm_incoming(i, next, body);
    qn_llvm_at(e, behind);
    return i;
}

LLVMValueRef qn_emit_copy(const qn_emitter *e, const qn_entry_module *m)
{
    (void)m;
    LLVMBuilderRef b = e->builder;
    LLVMValueRef f = qn_llvm_function(e, "copy", e->nothing, 3, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i64 });
    LLVMSetLinkage(f, LLVMInternalLinkage);
    LLVMValueRef to = LLVMGetParam(f, 0), from = LLVMGetParam(f, 1), bytes = LLVMGetParam(f, 2);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMBasicBlockRef same = qn_llvm_block(e, "same"), different = qn_llvm_block(e, "different");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntEQ, to, from, ""), same, different);
    qn_llvm_at(e, different);
    LLVMValueRef at = copy_loop(e, to, from, qn_llvm_i64(e, 0), bytes, e->target->vector_bytes, 8);
    copy_loop(e, to, from, at, bytes, 1, 1);
    LLVMBuildBr(b, same);
    qn_llvm_at(e, same);
    LLVMBuildRetVoid(b);
    return f;
}
