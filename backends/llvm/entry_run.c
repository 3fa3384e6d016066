/* The function `run` of an entry: checks what the caller gave, then executes the program's steps.
 *
 *   entry:  io there?  symbols in their ranges?  buffers and workspace there?  -> finish: a status
 *   sizes:  every dimension expression of given symbols that a step needs, computed once
 *   steps:  a kernel call is stores into one array of arguments and a call of `launch`; loops and ifs are blocks
 *   finish: ctx->failed_node, the status
 *
 * The code generator spends no effort on this (see qn_llvm_effort), so blocks are written as they should run. */
#include "backends/llvm/entry.h"
#include "ir/text_ops.h"

typedef struct runner {
    qn_emitter *e;
    const qn_entry_module *m;
    const qn_program *p;
    const char *const *kernel_symbols;
    qn_dim_code dims;
    LLVMValueRef function, ctx, workspace, weights, symbols;
    LLVMValueRef args;        /* an array that every kernel call fills; args[0] stays -1 until a node fails */
    LLVMValueRef *io;         /* buffers of the entry */
    LLVMValueRef *slots;      /* by buffer: the pointer variable of a SLOT */
    LLVMValueRef *iterations; /* by loop */
    LLVMValueRef odd;         /* is the innermost loop in an odd iteration? NULL: in none */
    LLVMBasicBlockRef finish;
    LLVMValueRef status; /* phi of `finish` */
} runner;

/* ---- failing ---- */

static void fail_if(runner *r, LLVMValueRef bad, LLVMValueRef status)
{
    LLVMBasicBlockRef next = qn_llvm_block(r->e, "");
    qn_llvm_incoming(r->status, status, qn_llvm_here(r->e));
    LLVMBuildCondBr(r->e->builder, bad, r->finish, next);
    qn_llvm_at(r->e, next);
}

static void fail_with(runner *r, LLVMValueRef bad, quern_status status)
{
    fail_if(r, bad, qn_llvm_i32(r->e, status));
}

/* ---- places ---- */

static LLVMValueRef address(runner *r, int buffer)
{
    const qn_emitter *e = r->e;
    const qn_pbuffer *b = &r->p->buffers[buffer];
    switch (b->place) {
    case QN_PLACE_IO: return r->io[b->io];
    case QN_PLACE_ARENA: return qn_entry_plus(e, r->workspace, qn_dim_emit(&r->dims, b->offset));
    case QN_PLACE_WEIGHTS: return qn_entry_plus(e, r->weights, qn_dim_emit(&r->dims, b->offset));
    case QN_PLACE_SLOT: return qn_entry_load(e, e->ptr, r->slots[buffer]);
    case QN_PLACE_VIEW: break;
    }
    LLVMValueRef base = address(r, b->base);
    if (b->offset && !qn_dim_is(b->offset, 0))
        base = qn_entry_plus(e, base, qn_dim_emit(&r->dims, b->offset));
    if (b->loop < 0)
        return base;
    LLVMValueRef iteration = r->iterations[b->loop];
    QN_ASSERT(iteration, "program %s: buffer %d is used outside its loop %d", r->p->name, buffer, b->loop);
    LLVMValueRef stride = qn_dim_emit(&r->dims, b->stride);
    return qn_entry_plus(e, base, LLVMBuildMul(e->builder, iteration, stride, ""));
}

static LLVMValueRef load_bool(runner *r, int buffer)
{
    LLVMValueRef byte = qn_entry_load(r->e, r->e->i8, address(r, buffer));
    return LLVMBuildIsNotNull(r->e->builder, byte, "");
}

/* ---- steps ---- */

static void emit_steps(runner *r, const qn_steps *steps);

static LLVMValueRef kernel_function(const runner *r, const char *symbol)
{
    LLVMValueRef f = LLVMGetNamedFunction(r->e->module, symbol);
    if (f)
        return f;
    f = LLVMAddFunction(r->e->module, symbol, r->m->kernel_type);
    qn_llvm_enum_attribute(r->e, f, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    /* In one object file with the kernels they are near; in this process they may be anywhere. */
    if (!r->m->jit)
        LLVMSetVisibility(f, LLVMHiddenVisibility);
    return f;
}

/* The address of a library's function, which the driver has stored. */
static LLVMValueRef library_function(const runner *r, qn_library library)
{
    QN_ASSERT(r->m->libraries, "program %s: calls of libraries are for code in this process", r->p->name);
    return qn_entry_load(r->e, r->e->ptr,
                         qn_entry_element(r->e, r->e->ptr, r->m->libraries, (int64_t)library));
}

/* Buffers and parameters, behind args[0]. */
static void store_arguments(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    int at = 1;
    for (int i = 0; i < step->n_buffers; i++)
        LLVMBuildStore(b, address(r, step->buffers[i]), qn_entry_element(e, e->i64, r->args, at++));
    for (int i = 0; i < step->n_params; i++)
        LLVMBuildStore(b, qn_dim_emit(&r->dims, step->params[i]), qn_entry_element(e, e->i64, r->args, at++));
}

static void emit_call(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    store_arguments(r, step);
    const bool is_kernel = step->kind == QN_STEP_KERNEL;
    const char *name = step->name  ? step->name
                       : is_kernel ? r->p->kernels[step->kernel]->name
                                   : qn_libraries[step->library].name;
    LLVMValueRef function =
        is_kernel ? kernel_function(r, r->kernel_symbols[step->kernel]) : library_function(r, step->library);
    LLVMValueRef down = step->alternates && r->odd ? r->odd : LLVMConstNull(e->i1);
    LLVMValueRef call[] = {
        r->ctx, r->args, function, qn_dim_emit(&r->dims, step->tasks), qn_llvm_string(e, name), down
    };
    LLVMValueRef status = LLVMBuildCall2(b, r->m->launch_type, r->m->launch, call, 6, "");
    fail_if(r, LLVMBuildIsNotNull(b, status, ""), status);
}

static void emit_copy_step(runner *r, const qn_step *step)
{
    LLVMValueRef call[] = { address(r, step->buffers[1]), address(r, step->buffers[0]),
                            qn_dim_emit(&r->dims, qn_program_copied_bytes(r->p, step)) };
    LLVMBuildCall2(r->e->builder, r->m->copy_type, r->m->copy, call, 3, "");
}

/* head: i < count?  test steps, condition?  ->  body, i + 1 -> head  |  behind */
static void emit_loop(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    LLVMValueRef count = step->count ? qn_dim_emit(&r->dims, step->count) : NULL;
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, "loop_end"),
                      head = qn_llvm_block(e, "loop");
    LLVMBuildBr(b, head);
    qn_llvm_at(e, head);
    LLVMValueRef i = qn_llvm_phi(e, e->i64);
    LLVMValueRef iteration = i;
    if (count) {
        LLVMBasicBlockRef body = qn_llvm_block(e, "");
        LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, i, count, ""), body, behind);
        qn_llvm_at(e, body);
        if (step->reverse)
            iteration = LLVMBuildSub(b, LLVMBuildSub(b, count, qn_llvm_i64(e, 1), ""), i, "");
    }
    LLVMValueRef outer_odd = r->odd;
    r->iterations[step->loop] = iteration;
    r->odd = LLVMBuildTrunc(b, i, e->i1, "");
    if (step->condition >= 0) {
        emit_steps(r, &step->test);
        LLVMBasicBlockRef body = qn_llvm_block(e, "");
        LLVMBuildCondBr(b, load_bool(r, step->condition), body, behind);
        qn_llvm_at(e, body);
    }
    emit_steps(r, &step->body);
    LLVMValueRef next = LLVMBuildAdd(b, i, qn_llvm_i64(e, 1), "");
    qn_llvm_incoming(i, qn_llvm_i64(e, 0), before);
    qn_llvm_incoming(i, next, qn_llvm_here(e));
    LLVMBuildBr(b, head);
    r->iterations[step->loop] = NULL;
    r->odd = outer_odd;
    qn_llvm_at(e, behind);
}

static void emit_if(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMBasicBlockRef behind = qn_llvm_block(e, "if_end"), otherwise = qn_llvm_block(e, "else"),
                      then = qn_llvm_block(e, "then");
    LLVMBuildCondBr(e->builder, load_bool(r, step->condition), then, otherwise);
    qn_llvm_at(e, then);
    emit_steps(r, &step->body);
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, otherwise);
    emit_steps(r, &step->other);
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, behind);
}

static void emit_swap(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMValueRef x = r->slots[step->buffers[0]], y = r->slots[step->buffers[1]];
    QN_ASSERT(x && y, "program %s: a swap of what is no slot", r->p->name);
    LLVMValueRef was_x = qn_entry_load(e, e->ptr, x), was_y = qn_entry_load(e, e->ptr, y);
    LLVMBuildStore(e->builder, was_y, x);
    LLVMBuildStore(e->builder, was_x, y);
}

/* The value goes into io, where later steps and the caller read it; sizes follow from it, so it must be in range. */
static void emit_bind(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMValueRef value = qn_entry_load(e, e->i64, address(r, step->buffers[0]));
    const int symbol = step->count->symbol;
    LLVMBuildStore(e->builder, value, qn_entry_element(e, e->i64, r->symbols, symbol));
    LLVMValueRef most = qn_dim_emit(&r->dims, r->p->limits[symbol - r->p->n_entry_symbols]);
    LLVMValueRef bad = LLVMBuildICmp(e->builder, LLVMIntSGT, value, most, "");
    bad = LLVMBuildOr(e->builder, bad, qn_symbols_outside(&r->dims, r->p->dims, symbol, symbol + 1), "");
    fail_with(r, bad, QUERN_ERROR_RANGE);
}

/* Where `wrong` holds the run ends with that status at that node. */
static void fail_at_node(runner *r, LLVMValueRef wrong, LLVMValueRef status, int node)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    LLVMBasicBlockRef stop = qn_llvm_block(e, "wrong"), next = qn_llvm_block(e, "");
    LLVMBuildCondBr(b, wrong, stop, next);
    qn_llvm_at(e, stop);
    LLVMBuildStore(b, qn_llvm_i64(e, node), r->args);
    qn_llvm_incoming(r->status, status, stop);
    LLVMBuildBr(b, r->finish);
    qn_llvm_at(e, next);
}

static void emit_check_step(runner *r, const qn_step *step)
{
    LLVMValueRef have = qn_dim_emit(&r->dims, step->params[0]), want = qn_dim_emit(&r->dims, step->params[1]);
    fail_at_node(r, LLVMBuildICmp(r->e->builder, LLVMIntNE, have, want, ""),
                 qn_llvm_i32(r->e, QUERN_ERROR_ARGUMENT), step->node);
}

static void emit_collective(runner *r, const qn_step *step)
{
    static const qn_op functions[] = { QN_OP_ALL_REDUCE, QN_OP_ALL_GATHER, QN_OP_REDUCE_SCATTER,
                                       QN_OP_BROADCAST_RANK };
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    const int last = step->n_buffers - 1;
    if (step->collective == QN_OP_RANK) {
        LLVMTypeRef type = LLVMFunctionType(e->i64, (LLVMTypeRef[]){ e->ptr }, 1, 0);
        LLVMBuildStore(b, LLVMBuildCall2(b, type, r->m->rank, &r->ctx, 1, ""), address(r, step->buffers[0]));
        return;
    }
    int which = 0;
    while (functions[which] != step->collective)
        which++;
    const qn_pbuffer *counted =
        &r->p->buffers[step->buffers[step->collective == QN_OP_REDUCE_SCATTER ? last : 0]];
    LLVMValueRef n = qn_dim_emit(&r->dims, counted->elements);
    LLVMValueRef bytes = LLVMBuildMul(b, n, qn_llvm_i64(e, (int64_t)qn_dtype_bytes(counted->dtype)), "");
    const int64_t least = step->collective == QN_OP_BROADCAST_RANK ? step->how + 1 : step->ranks;
    LLVMTypeRef types[] = { e->ptr, e->ptr, e->i32, e->ptr, e->ptr, e->i64,
                            e->i64, e->i32, e->i32, e->i32, e->i32 };
    LLVMValueRef args[] = { r->ctx,
                            qn_llvm_string(e, step->name ? step->name : qn_ops[step->collective].name),
                            qn_llvm_i32(e, step->starts ? -1 : which),
                            address(r, step->buffers[0]),
                            address(r, step->buffers[last]),
                            n,
                            bytes,
                            qn_llvm_i32(e, counted->dtype),
                            qn_llvm_i32(e, step->how),
                            qn_llvm_i32(e, step->ranks),
                            qn_llvm_i32(e, least) };
    LLVMValueRef status =
        LLVMBuildCall2(b, LLVMFunctionType(e->i32, types, 11, 0), r->m->collective, args, 11, "");
    fail_at_node(r, LLVMBuildICmp(b, LLVMIntSLT, status, qn_llvm_i32(e, 0), ""),
                 qn_llvm_i32(e, QUERN_ERROR_ARGUMENT), step->node);
    fail_if(r, LLVMBuildIsNotNull(b, status, ""), status);
}

static void emit_text(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMTypeRef type = LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i32, e->ptr }, 4, 0);
    store_arguments(r, step);
    LLVMValueRef args[] = { r->ctx, qn_llvm_string(e, step->name ? step->name : qn_ops[step->text].name),
                            qn_llvm_i32(e, qn_text_what(step->text)),
                            qn_entry_element(e, e->i64, r->args, 1) };
    LLVMValueRef status = LLVMBuildCall2(e->builder, type, r->m->text, args, 4, "");
    fail_at_node(r, LLVMBuildIsNotNull(e->builder, status, ""), status, step->node);
}

static void emit_wait(runner *r, const qn_step *step)
{
    const qn_emitter *e = r->e;
    LLVMTypeRef type = LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr, e->ptr }, 2, 0);
    LLVMValueRef args[] = { r->ctx, qn_llvm_string(e, step->name ? step->name : "wait") };
    LLVMValueRef status = LLVMBuildCall2(e->builder, type, r->m->wait, args, 2, "");
    fail_if(r, LLVMBuildIsNotNull(e->builder, status, ""), status);
}

static void emit_steps(runner *r, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        switch (step->kind) {
        case QN_STEP_KERNEL:
        case QN_STEP_LIBRARY: emit_call(r, step); break;
        case QN_STEP_COPY: emit_copy_step(r, step); break;
        case QN_STEP_LOOP: emit_loop(r, step); break;
        case QN_STEP_IF: emit_if(r, step); break;
        case QN_STEP_SWAP: emit_swap(r, step); break;
        case QN_STEP_BIND: emit_bind(r, step); break;
        case QN_STEP_CHECK: emit_check_step(r, step); break;
        case QN_STEP_COLLECTIVE: emit_collective(r, step); break;
        case QN_STEP_TEXT: emit_text(r, step); break;
        case QN_STEP_WAIT: emit_wait(r, step); break;
        }
    }
}

/* ---- the start ---- */

static int most_arguments(const qn_steps *steps)
{
    int most = 0;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        int n[] = { s->n_buffers + s->n_params, most_arguments(&s->body), most_arguments(&s->other),
                    most_arguments(&s->test) };
        for (int j = 0; j < 4; j++)
            most = n[j] > most ? n[j] : most;
    }
    return most;
}

static bool uses_weights(const qn_program *p)
{
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_WEIGHTS)
            return true;
    return false;
}

static bool surely_not_empty(const qn_type *type)
{
    for (int d = 0; d < type->rank; d++)
        if (type->dims[d]->min < 1)
            return false;
    return true;
}

/* Where the address of the weights is. */
static LLVMValueRef weights_pointer(const runner *r)
{
    if (r->m->weights_base)
        return r->m->weights_base;
    return r->m->weights_inside ? qn_entry_member(r->e, r->m->model_type, r->m->model, QN_MODEL_WEIGHTS)
                                : qn_entry_member(r->e, r->m->ctx_type, r->ctx, QN_CTX_WEIGHTS);
}

static bool uses_tiles(const qn_program *p)
{
    for (int i = 0; i < p->n_kernels; i++)
        if (qn_kernel_uses_tiles(p->kernels[i]))
            return true;
    return false;
}

/* Also takes the pointers out of io. */
static void check_arguments(runner *r)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    const qn_program *p = r->p;
    LLVMValueRef io = LLVMGetParam(r->function, 0);
    fail_with(r, LLVMBuildIsNull(b, io, ""), QUERN_ERROR_ARGUMENT);
    r->symbols = r->dims.memory = qn_entry_element(e, e->ptr, io, p->n_io);
    for (int i = 0; i < p->n_entry_symbols; i++)
        r->dims.symbols[i] = qn_entry_load(e, e->i64, qn_entry_element(e, e->i64, r->symbols, i));
    if (p->n_entry_symbols > 0)
        fail_with(r, qn_symbols_outside(&r->dims, p->dims, 0, p->n_entry_symbols), QUERN_ERROR_RANGE);

    LLVMValueRef bad = LLVMConstNull(e->i1);
    for (int i = 0; i < p->n_io; i++) {
        r->io[i] = qn_entry_load(e, e->ptr, qn_entry_element(e, e->ptr, io, i));
        if (surely_not_empty(&p->io[i].type))
            bad = LLVMBuildOr(b, bad, LLVMBuildIsNull(b, r->io[i], ""), "");
    }
    r->workspace = LLVMGetParam(r->function, 1);
    if (!qn_dim_is(p->arena_bytes, 0)) {
        LLVMValueRef bits = LLVMBuildPtrToInt(b, r->workspace, e->i64, "");
        LLVMValueRef unaligned = LLVMBuildAnd(b, bits, qn_llvm_i64(e, 63), "");
        bad = LLVMBuildOr(b, bad, LLVMBuildIsNull(b, r->workspace, ""), "");
        bad = LLVMBuildOr(b, bad, LLVMBuildIsNotNull(b, unaligned, ""), "");
    }
    if (uses_weights(p)) {
        r->weights = qn_entry_load(e, e->ptr, weights_pointer(r));
        bad = LLVMBuildOr(b, bad, LLVMBuildIsNull(b, r->weights, ""), "");
    }
    fail_with(r, bad, QUERN_ERROR_ARGUMENT);
}

/* A workspace whose size overflows for these symbols: the caller was told -1. */
static void check_workspace(runner *r)
{
    const qn_emitter *e = r->e;
    qn_dim bytes = r->p->arena_bytes;
    if (bytes->max < INT64_MAX)
        return;
    LLVMValueRef value = qn_dim_emit(&r->dims, bytes);
    fail_with(r, LLVMBuildICmp(e->builder, LLVMIntEQ, value, qn_llvm_i64(e, INT64_MAX), ""),
              QUERN_ERROR_RANGE);
}

/* Has a buffer that may be empty elements for these values of the symbols, a count being the most that it may be? NULL: it
 * never has. */
static LLVMValueRef has_elements(runner *r, const qn_type *type)
{
    const qn_program *p = r->p;
    LLVMBuilderRef b = r->e->builder;
    LLVMValueRef has = LLVMConstAllOnes(r->e->i1);
    for (int d = 0; d < type->rank; d++) {
        const qn_dim dim = qn_program_most(p, type->dims[d]);
        if (dim->max < 1)
            return NULL;
        LLVMValueRef some =
            LLVMBuildICmp(b, LLVMIntSGT, qn_dim_emit(&r->dims, dim), qn_llvm_i64(r->e, 0), "");
        has = LLVMBuildAnd(b, has, some, "");
    }
    return has;
}

/* Buffers without an address that are not empty. check_arguments has looked at those that never are. */
static void check_empty(runner *r)
{
    const qn_program *p = r->p;
    LLVMBuilderRef b = r->e->builder;
    LLVMValueRef bad = NULL;
    for (int i = 0; i < p->n_io; i++) {
        const qn_type *type = &p->io[i].type;
        LLVMValueRef has = surely_not_empty(type) ? NULL : has_elements(r, type);
        if (has) {
            LLVMValueRef missing = LLVMBuildAnd(b, LLVMBuildIsNull(b, r->io[i], ""), has, "");
            bad = bad ? LLVMBuildOr(b, bad, missing, "") : missing;
        }
    }
    if (bad)
        fail_with(r, bad, QUERN_ERROR_ARGUMENT);
}

static void emit_finish(runner *r)
{
    const qn_emitter *e = r->e;
    LLVMBuilderRef b = e->builder;
    LLVMBasicBlockRef give = qn_llvm_block(e, ""), tell = qn_llvm_block(e, "tell");
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, LLVMGetParam(r->function, 2), ""), give, tell);
    qn_llvm_at(e, tell);
    LLVMValueRef node = LLVMBuildTrunc(b, qn_entry_load(e, e->i64, r->args), e->i32, "");
    LLVMBuildStore(b, node, qn_entry_member(e, r->m->ctx_type, r->ctx, QN_CTX_FAILED_NODE));
    LLVMBuildBr(b, give);
    qn_llvm_at(e, give);
    LLVMBuildRet(b, r->status);
}

LLVMValueRef qn_emit_run(qn_emitter *e, const qn_entry_module *m, const qn_program *p,
                         const char *const *kernel_symbols, const char *name)
{
    LLVMBuilderRef b = e->builder;
    runner run = { .e = e, .m = m, .p = p, .kernel_symbols = kernel_symbols }, *r = &run;
    int n_symbols = qn_dims_symbol_count(p->dims);
    r->function = qn_llvm_function(e, name, e->i32, 3, (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr });
    qn_llvm_attribute(e, r->function, "frame-pointer", "all");
    LLVMSetLinkage(r->function, LLVMInternalLinkage);
    r->io = QN_NEW_ARRAY(e->arena, LLVMValueRef, p->n_io);
    r->slots = QN_NEW_ARRAY(e->arena, LLVMValueRef, p->n_buffers);
    r->iterations = QN_NEW_ARRAY(e->arena, LLVMValueRef, p->n_loops);
    r->dims = (qn_dim_code){ .e = e, .symbols = QN_NEW_ARRAY(e->arena, LLVMValueRef, n_symbols) };

    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, r->function, "entry"));
    r->finish = qn_llvm_block(e, "finish");
    r->args = LLVMBuildAlloca(b, LLVMArrayType2(e->i64, 1 + (uint64_t)most_arguments(&p->steps)), "args");
    LLVMSetAlignment(r->args, 64);
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_SLOT)
            r->slots[i] = LLVMBuildAlloca(b, e->ptr, "slot");
    LLVMBasicBlockRef here = qn_llvm_here(e);
    qn_llvm_at(e, r->finish);
    r->status = qn_llvm_phi(e, e->i32);
    qn_llvm_at(e, here);
    LLVMBuildStore(b, qn_llvm_i64(e, -1), r->args);
    LLVMValueRef lent = LLVMGetParam(r->function, 2);
    r->ctx = LLVMBuildSelect(b, LLVMBuildIsNull(b, lent, ""), m->default_ctx, lent, "");
    check_arguments(r);
    if (uses_tiles(p))
        fail_with(r, qn_llvm_tile_permission(e), QUERN_ERROR_DEVICE);

    r->dims.home = qn_llvm_here(e);
    LLVMBasicBlockRef steps = qn_llvm_block(e, "steps");
    qn_llvm_at(e, steps);
    check_workspace(r);
    check_empty(r);
    for (int i = 0; i < p->n_buffers; i++)
        if (r->slots[i])
            LLVMBuildStore(b, address(r, p->buffers[i].base), r->slots[i]);
    emit_steps(r, &p->steps);
    qn_llvm_incoming(r->status, qn_llvm_i32(e, QUERN_OK), qn_llvm_here(e));
    LLVMBuildBr(b, r->finish);
    qn_llvm_at(e, r->dims.home);
    LLVMBuildBr(b, steps);
    qn_llvm_at(e, r->finish);
    emit_finish(r);
    return r->function;
}
