/* From a module in the making to machine code or text: the frame around kernel.c and entry.c. */
#include <string.h>

#include "backends/llvm/elf.h"
#include "backends/llvm/emit.h"
#include "backends/llvm/guard.h"

typedef struct job {
    const char *what;
    qn_emitter e;
    qn_emit emit;
    qn_llvm_effort effort;
    qn_status (*build)(qn_emitter *e, void *user);
    void *user;
    qn_code *out_code;
    qn_status status;
} job;

static qn_status internal_error(const job *j, const char *stage, const char *message)
{
    return qn_error(j->e.diags, QUERN_ERROR_INTERNAL, NULL, "%s: %s: %s", j->what, stage, message);
}

static void open_module(job *j)
{
    qn_emitter *e = &j->e;
    e->context = LLVMContextCreate();
    LLVMContextRef c = e->context;
    e->module = LLVMModuleCreateWithNameInContext("quern", c);
    LLVMSetTarget(e->module, e->target->triple);
    LLVMSetDataLayout(e->module, e->target->data_layout);
    e->builder = LLVMCreateBuilderInContext(c);
    e->i1 = LLVMInt1TypeInContext(c);
    e->i8 = LLVMInt8TypeInContext(c);
    e->i16 = LLVMInt16TypeInContext(c);
    e->i32 = LLVMInt32TypeInContext(c);
    e->i64 = LLVMInt64TypeInContext(c);
    e->f16 = LLVMHalfTypeInContext(c);
    e->f32 = LLVMFloatTypeInContext(c);
    e->f64 = LLVMDoubleTypeInContext(c);
    e->ptr = LLVMPointerTypeInContext(c, 0);
    e->nothing = LLVMVoidTypeInContext(c);
}

static void close_module(job *j)
{
    LLVMDisposeBuilder(j->e.builder);
    LLVMDisposeModule(j->e.module);
    LLVMContextDispose(j->e.context);
}

static void on_diagnostic(LLVMDiagnosticInfoRef info, void *user)
{
    job *j = user;
    if (LLVMGetDiagInfoSeverity(info) != LLVMDSError || j->status)
        return;
    char *text = LLVMGetDiagInfoDescription(info);
    j->status = internal_error(j, "code generation", text);
    LLVMDisposeMessage(text);
}

/* The generated code must need nothing that the module itself didn't name: an instruction that LLVM turned into a call
 * of a C library would leave an undefined symbol in a model that stands alone. */
static qn_status check_symbols(const job *j)
{
    qn_elf_symbol *symbols;
    int n = qn_elf_symbols(j->out_code, j->e.arena, &symbols);
    if (n < 0)
        return QUERN_OK; /* not ELF: nothing is known */
    for (int i = 0; i < n; i++) {
        const char *name = symbols[i].name;
        if (symbols[i].defined || strcmp(name, "_GLOBAL_OFFSET_TABLE_") == 0 ||
            LLVMGetNamedFunction(j->e.module, name) || LLVMGetNamedGlobal(j->e.module, name))
            continue;
        return internal_error(j, "the generated code calls a library function", name);
    }
    return QUERN_OK;
}

static qn_status emit_text(const job *j)
{
    char *text = LLVMPrintModuleToString(j->e.module);
    j->out_code->size = strlen(text);
    j->out_code->data = qn_arena_copy(j->e.arena, text, j->out_code->size + 1);
    LLVMDisposeMessage(text);
    return QUERN_OK;
}

static qn_status emit_machine_code(job *j)
{
    LLVMTargetMachineRef machine = qn_llvm_target_machine(j->e.target, j->effort, j->e.diags);
    if (!machine)
        return QUERN_ERROR_INTERNAL;
    LLVMCodeGenFileType type = j->emit == QN_EMIT_OBJECT ? LLVMObjectFile : LLVMAssemblyFile;
    LLVMMemoryBufferRef buffer = NULL;
    char *message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(machine, j->e.module, type, &message, &buffer)) {
        qn_status status = internal_error(j, "code generation", message);
        LLVMDisposeMessage(message);
        return status;
    }
    size_t size = LLVMGetBufferSize(buffer);
    char *copy = qn_arena_alloc(j->e.arena, size + 1);
    memcpy(copy, LLVMGetBufferStart(buffer), size);
    *j->out_code = (qn_code){ copy, size };
    LLVMDisposeMemoryBuffer(buffer);
    if (j->status) /* a diagnostic came in between */
        return j->status;
    return j->emit == QN_EMIT_OBJECT ? check_symbols(j) : QUERN_OK;
}

static qn_status build_and_emit(job *j)
{
    char *message = NULL;
    QN_TRY(j->build(&j->e, j->user));
    LLVMBool invalid = LLVMVerifyModule(j->e.module, LLVMReturnStatusAction, &message);
    qn_status status = invalid ? internal_error(j, "invalid LLVM IR", message) : QUERN_OK;
    LLVMDisposeMessage(message);
    QN_TRY(status);
    return j->emit == QN_EMIT_LLVM ? emit_text(j) : emit_machine_code(j);
}

static void run(void *user)
{
    job *j = user;
    open_module(j);
    LLVMContextSetDiagnosticHandler(j->e.context, on_diagnostic, j);
    qn_status status = build_and_emit(j);
    if (!j->status)
        j->status = status;
    close_module(j);
}

qn_status qn_llvm_compile(const char *what, const qn_target *target, qn_emit emit, qn_llvm_effort effort,
                          qn_status (*build)(qn_emitter *e, void *user), void *user, qn_arena *arena,
                          qn_code *out_code, qn_diags *diags)
{
    job j = {
        .what = what, .emit = emit, .effort = effort, .build = build, .user = user, .out_code = out_code
    };
    char message[512];
    *out_code = (qn_code){ 0 };
    QN_TRY(qn_llvm_target_find(target, &j.e.target, diags));
    j.e.arena = arena;
    j.e.diags = diags;
    if (!qn_llvm_guarded(run, &j, message, sizeof message)) {
        qn_llvm_target_machines_abandon();
        *out_code = (qn_code){ 0 };
        return internal_error(&j, "LLVM gave up", message);
    }
    return j.status;
}
