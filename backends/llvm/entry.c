/* A set of programs as one object: their entries, the tables of quern_abi.h that describe them, the query function. */
#include "backends/llvm/entry.h"

#include <stddef.h>
#include <string.h>

typedef struct job {
    const qn_entries *entries;
    bool jit;
} job;

/* The tables are structures with C's layout. What stands here in order of members is checked by these. */
_Static_assert(offsetof(quern_ctx, parallel_for) == 8 && offsetof(quern_ctx, weights) == 24 &&
                   offsetof(quern_ctx, failed_node) == 56 && offsetof(quern_ctx, parallel_for_down) == 64 &&
                   offsetof(quern_ctx, comm) == 72 && offsetof(quern_ctx, strings) == 80,
               "quern_ctx has other members than ctx_type");
_Static_assert(offsetof(quern_comm, rank) == 8 && offsetof(quern_comm, ranks) == 12 &&
                   offsetof(quern_comm, all_reduce) == 16 && offsetof(quern_comm, broadcast) == 40 &&
                   offsetof(quern_comm, start_all_reduce) == 72 && offsetof(quern_comm, wait) == 80,
               "quern_comm has other members than comm_type");
_Static_assert(offsetof(quern_symbol_info, decided) == 32 && sizeof(quern_symbol_info) == 40,
               "quern_symbol_info has other members than symbol_type");
_Static_assert(offsetof(quern_buffer_info, dims) == 32 && offsetof(quern_buffer_info, initial) == 56 &&
                   sizeof(quern_buffer_info) == 72,
               "quern_buffer_info has other members than buffer_type");
_Static_assert(offsetof(quern_entry_info, n_buffers) == 40 && offsetof(quern_entry_info, node_names) == 72 &&
                   sizeof(quern_entry_info) == 88,
               "quern_entry_info has other members than entry_type");
_Static_assert(offsetof(quern_model_info, weights) == 56 && offsetof(quern_model_info, lacks) == 72 &&
                   offsetof(quern_model_info, n_strings) == 88 && sizeof(quern_model_info) == 96,
               "quern_model_info has other members than model_type");

/* ---- constants ---- */

static LLVMValueRef table(const qn_emitter *e, LLVMTypeRef element, int n, LLVMValueRef *items)
{
    if (n == 0)
        return LLVMConstNull(e->ptr);
    LLVMValueRef data = LLVMConstArray2(element, items, (uint64_t)n);
    LLVMValueRef global = LLVMAddGlobal(e->module, LLVMTypeOf(data), "");
    LLVMSetInitializer(global, data);
    LLVMSetGlobalConstant(global, 1);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    return global;
}

static LLVMTypeRef struct_type(const qn_emitter *e, int n, LLVMTypeRef *members)
{
    return LLVMStructTypeInContext(e->context, members, (unsigned)n, 0);
}

static LLVMValueRef structure(const qn_emitter *e, int n, LLVMValueRef *members)
{
    return LLVMConstStructInContext(e->context, members, (unsigned)n, 0);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- tables of one entry ---- */

static LLVMValueRef symbol_table(const qn_emitter *e, const qn_program *p)
{
    int n = qn_dims_symbol_count(p->dims);
    LLVMTypeRef type = struct_type(e, 5, (LLVMTypeRef[]){ e->i64, e->ptr, e->i64, e->i64, e->i32 });
    LLVMValueRef *items = QN_NEW_ARRAY(e->arena, LLVMValueRef, n);
    for (int i = 0; i < n; i++) {
        qn_dim s = qn_dims_symbol_at(p->dims, i);
        LLVMValueRef members[] = { qn_llvm_i64(e, sizeof(quern_symbol_info)), qn_llvm_string(e, s->name),
                                   qn_llvm_i64(e, s->min), qn_llvm_i64(e, s->max),
                                   qn_llvm_i32(e, i >= p->n_entry_symbols) };
        items[i] = structure(e, COUNT(members), members);
    }
    return table(e, type, n, items);
}

static LLVMValueRef buffer_table(const qn_emitter *e, const qn_program *p)
{
    LLVMTypeRef members_of[] = { e->i64, e->ptr, e->i32, e->i32, e->i32, e->i32,
                                 e->ptr, e->ptr, e->ptr, e->i64, e->i32 };
    LLVMTypeRef type = struct_type(e, COUNT(members_of), members_of);
    LLVMValueRef *items = QN_NEW_ARRAY(e->arena, LLVMValueRef, p->n_io);
    for (int i = 0; i < p->n_io; i++) {
        const qn_pio *io = &p->io[i];
        LLVMValueRef dims[QN_MAX_RANK], symbols[QN_MAX_RANK];
        for (int d = 0; d < io->type.rank; d++) {
            qn_dim dim = io->type.dims[d];
            dims[d] = qn_llvm_i64(e, qn_dim_is_const(dim) ? dim->value : -1);
            symbols[d] = qn_llvm_i32(e, dim->kind == QN_DIM_SYMBOL ? dim->symbol : -1);
        }
        LLVMValueRef members[] = {
            qn_llvm_i64(e, sizeof(quern_buffer_info)),
            qn_llvm_string(e, io->name),
            qn_llvm_i32(e, io->role),
            qn_llvm_i32(e, io->type.dtype),
            qn_llvm_i32(e, io->type.rank),
            qn_llvm_i32(e, io->alias),
            table(e, e->i64, io->type.rank, dims),
            table(e, e->i32, io->type.rank, symbols),
            qn_llvm_string(e, qn_type_print(&io->type, e->arena)),
            qn_llvm_i64(e, io->role == QUERN_STATE && io->initial ? io->initial_offset : -1),
            qn_llvm_i32(e, io->role == QUERN_STATE && io->trainable),
        };
        items[i] = structure(e, COUNT(members), members);
    }
    return table(e, type, p->n_io, items);
}

static LLVMValueRef node_table(const qn_emitter *e, const qn_program *p)
{
    LLVMValueRef *names = QN_NEW_ARRAY(e->arena, LLVMValueRef, p->n_nodes);
    for (int i = 0; i < p->n_nodes; i++)
        names[i] = qn_llvm_string(e, p->node_names[i] ? p->node_names[i] : "");
    return table(e, e->ptr, p->n_nodes, names);
}

static LLVMTypeRef entry_type(const qn_emitter *e)
{
    LLVMTypeRef members[] = { e->i64, e->ptr, e->ptr, e->ptr, e->ptr, e->i32,
                              e->i32, e->ptr, e->ptr, e->i32, e->ptr, e->ptr };
    return struct_type(e, COUNT(members), members);
}

static LLVMValueRef emit_refusal(const qn_emitter *e, const char *name)
{
    LLVMValueRef f = qn_llvm_function(e, name, e->i32, 3, (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr });
    LLVMSetLinkage(f, LLVMInternalLinkage);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMBuildRet(e->builder, qn_llvm_i32(e, QUERN_ERROR_DEVICE));
    return f;
}

static LLVMValueRef emit_entry(qn_emitter *e, const qn_entry_module *m, const qn_entries *entries, int which)
{
    const qn_program *p = entries->programs[which];
    const char *name = qn_arena_printf(e->arena, "%s_%s", m->prefix, p->name);
    LLVMValueRef run =
        m->refusing ? emit_refusal(e, name) : qn_emit_run(e, m, p, entries->kernel_symbols[which], name);
    LLVMValueRef workspace_bytes = qn_emit_workspace_bytes(e, p, name), shape = qn_emit_shape(e, p, name);
    LLVMValueRef limits = qn_emit_limits(e, p, name);
    LLVMValueRef members[] = {
        qn_llvm_i64(e, sizeof(quern_entry_info)),
        qn_llvm_string(e, p->name),
        run,
        workspace_bytes,
        shape,
        qn_llvm_i32(e, p->n_io),
        qn_llvm_i32(e, qn_dims_symbol_count(p->dims)),
        buffer_table(e, p),
        symbol_table(e, p),
        qn_llvm_i32(e, p->n_nodes),
        node_table(e, p),
        limits ? limits : LLVMConstNull(e->ptr),
    };
    return structure(e, COUNT(members), members);
}

/* ---- the model ---- */

static bool have_step(const qn_entries *entries, qn_step_kind kind)
{
    bool have = false;
    for (int i = 0; i < entries->n_programs; i++)
        have |= qn_steps_have(&entries->programs[i]->steps, kind);
    return have;
}

static void declare_shared(qn_emitter *e, qn_entry_module *m, const qn_entries *entries)
{
    const bool text =
        have_step(entries, QN_STEP_TEXT); /* other models have the structures without what these need */
    m->ctx_type = struct_type(e, text ? 11 : 10,
                              (LLVMTypeRef[]){ e->i64, e->ptr, e->ptr, e->ptr, e->ptr, e->ptr, e->ptr, e->i32,
                                               e->ptr, e->ptr, e->ptr });
    m->comm_type = struct_type(e, 12,
                               (LLVMTypeRef[]){ e->i64, e->i32, e->i32, e->ptr, e->ptr, e->ptr, e->ptr,
                                                e->ptr, e->ptr, e->ptr, e->ptr, e->ptr });
    m->model_type = struct_type(e, text ? 12 : 10,
                                (LLVMTypeRef[]){ e->i64, e->i32, e->ptr, e->ptr, e->i32, e->ptr, e->i64,
                                                 e->ptr, e->ptr, e->ptr, e->ptr, e->i32 });
    m->kernel_type = LLVMFunctionType(e->nothing, (LLVMTypeRef[]){ e->ptr, e->i64 }, 2, 0);
    m->launch_type =
        LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->ptr, e->ptr, e->ptr, e->i64, e->ptr, e->i1 }, 6, 0);
    m->copy_type = LLVMFunctionType(e->nothing, (LLVMTypeRef[]){ e->ptr, e->ptr, e->i64 }, 3, 0);
    m->default_ctx = LLVMAddGlobal(e->module, m->ctx_type, "default_ctx");
    LLVMSetInitializer(m->default_ctx, LLVMConstNull(m->ctx_type));
    LLVMSetGlobalConstant(m->default_ctx, 1);
    LLVMSetLinkage(m->default_ctx, LLVMPrivateLinkage);
    m->model = LLVMAddGlobal(e->module, m->model_type, qn_arena_printf(e->arena, "%s_model", m->prefix));
    LLVMSetLinkage(m->model, LLVMInternalLinkage);
    if (m->jit && m->weights_inside) {
        const char *name = qn_arena_printf(e->arena, "%s_weights_base", m->prefix);
        m->weights_base = LLVMAddGlobal(e->module, e->ptr, name);
        LLVMSetInitializer(m->weights_base, LLVMConstNull(e->ptr));
    }
    if (m->jit) {
        const char *name = qn_arena_printf(e->arena, "%s_libraries", m->prefix);
        m->libraries = LLVMAddGlobal(e->module, LLVMArrayType2(e->ptr, QN_N_LIBRARIES), name);
        LLVMSetInitializer(m->libraries, LLVMConstNull(LLVMArrayType2(e->ptr, QN_N_LIBRARIES)));
    }
    if (!m->refusing) {
        m->launch = qn_emit_launch(e, m);
        m->copy = qn_emit_copy(e, m);
        const bool collective = have_step(entries, QN_STEP_COLLECTIVE);
        m->collective = collective ? qn_emit_collective(e, m) : NULL;
        m->wait = collective ? qn_emit_wait(e, m) : NULL;
        m->rank = collective ? qn_emit_rank(e, m) : NULL;
        m->text = text ? qn_emit_text(e, m) : NULL;
    }
}

/* The address of the weights, for the table; runs read it from there, since it may be further than 2 GB from the code. */
static LLVMValueRef weights_address(qn_emitter *e, const qn_entry_module *m, int64_t bytes)
{
    if (!m->weights_inside || m->jit || bytes == 0)
        return LLVMConstNull(e->ptr);
    const char *name = qn_arena_printf(e->arena, "%s_weights", m->prefix);
    qn_llvm_claim(e, name);
    LLVMValueRef weights = LLVMAddGlobal(e->module, e->i8, name);
    LLVMSetVisibility(weights, LLVMHiddenVisibility);
    LLVMSetGlobalConstant(weights, 1);
    return weights;
}

/* The table of a model that makes strings is there even if it has none itself. */
static LLVMValueRef string_table(qn_emitter *e, const qn_entries *of)
{
    LLVMValueRef *strings = QN_NEW_ARRAY(e->arena, LLVMValueRef, of->n_strings + 1);
    for (int i = 0; i < of->n_strings; i++)
        strings[i] = qn_llvm_string(e, of->strings[i]);
    strings[of->n_strings] = LLVMConstNull(e->ptr);
    return table(e, e->ptr, of->n_strings + 1, strings);
}

static void define_model(qn_emitter *e, const qn_entry_module *m, const qn_entries *of, LLVMValueRef *entries)
{
    int64_t weights_bytes = of->n_programs > 0 ? of->programs[0]->weights_bytes : 0;
    const bool text = have_step(of, QN_STEP_TEXT);
    LLVMValueRef members[] = {
        qn_llvm_i64(e,
                    text ? (int64_t)sizeof(quern_model_info) : (int64_t)offsetof(quern_model_info, strings)),
        qn_llvm_i32(e, QUERN_ABI_VERSION),
        qn_llvm_string(e, m->prefix),
        qn_llvm_string(e, of->machine ? of->machine : e->target->text),
        qn_llvm_i32(e, of->n_programs),
        table(e, entry_type(e), of->n_programs, entries),
        qn_llvm_i64(e, weights_bytes),
        weights_address(e, m, weights_bytes),
        qn_llvm_string(e, of->weights_hash ? of->weights_hash : ""),
        LLVMConstNull(e->ptr),
        text ? string_table(e, of) : NULL,
        qn_llvm_i32(e, of->n_strings),
    };
    LLVMSetInitializer(m->model,
                       LLVMConstNamedStruct(m->model_type, members, COUNT(members) - (text ? 0 : 2)));
    LLVMSetGlobalConstant(m->model, !m->jit);
}

static LLVMValueRef emit_query(qn_emitter *e, const qn_entry_module *m, const char *name)
{
    LLVMBuilderRef b = e->builder;
    const char *shown = qn_arena_printf(e->arena, "%s_query", m->prefix);
    qn_llvm_claim(e, name ? name : shown);
    LLVMValueRef f = qn_llvm_function(e, name ? name : shown, e->ptr, 1, &e->i32);
    if (name && strcmp(name, shown) != 0)
        LLVMSetVisibility(f, LLVMHiddenVisibility);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    if (m->weights_base) { /* the same value each time */
        LLVMValueRef at = LLVMBuildStructGEP2(b, m->model_type, m->model, QN_MODEL_WEIGHTS, "");
        LLVMBuildStore(b, LLVMBuildLoad2(b, e->ptr, m->weights_base, ""), at);
    }
    LLVMValueRef known =
        LLVMBuildICmp(b, LLVMIntEQ, LLVMGetParam(f, 0), qn_llvm_i32(e, QUERN_ABI_VERSION), "");
    LLVMBuildRet(b, LLVMBuildSelect(b, known, m->model, LLVMConstNull(e->ptr), ""));
    return f;
}

LLVMValueRef qn_llvm_build_entries(qn_emitter *e, const qn_entries *entries, bool jit, bool refusing)
{
    qn_entry_module m = {
        .prefix = entries->prefix, .weights_inside = entries->weights_inside, .jit = jit, .refusing = refusing
    };
    LLVMValueRef *tables = QN_NEW_ARRAY(e->arena, LLVMValueRef, entries->n_programs);
    declare_shared(e, &m, entries);
    for (int i = 0; i < entries->n_programs; i++)
        tables[i] = emit_entry(e, &m, entries, i);
    define_model(e, &m, entries, tables);
    return emit_query(e, &m, entries->query);
}

static qn_status build(qn_emitter *e, void *user)
{
    const job *j = user;
    qn_llvm_build_entries(e, j->entries, j->jit, false);
    return QUERN_OK;
}

qn_status qn_llvm_emit_entries(const qn_entries *entries, const qn_target *target, qn_emit emit,
                               qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    job j = { entries, target->jit };
    const char *what = qn_arena_printf(arena, "entries of %s", entries->prefix);
    return qn_llvm_compile(what, target, emit, QN_LLVM_FAST_COMPILE, build, &j, arena, out_code, diags);
}
