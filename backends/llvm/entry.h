/* What the files that emit entries share. An entry is one program as the function `run` of quern_abi.h, with the
 * functions that tell sizes, and tables. tests/unit/test_abi.c has the same thing written by hand. */
#ifndef QN_BACKENDS_LLVM_ENTRY_H
#define QN_BACKENDS_LLVM_ENTRY_H

#include "backends/llvm/emit.h"

/* What all entries of a module use. */
typedef struct qn_entry_module {
    const char *prefix;
    bool weights_inside, jit, refusing; /* refusing: entries only return QUERN_ERROR_DEVICE */
    LLVMValueRef model;                 /* the quern_model_info */
    LLVMValueRef
        weights_base;       /* in this process, weights inside: the variable with their address; else NULL */
    LLVMValueRef libraries; /* in this process: an array with the addresses of library functions; else NULL */
    LLVMValueRef default_ctx; /* stands for a NULL ctx: a quern_ctx that lends nothing */
    LLVMValueRef launch;      /* i32 (ctx, args, kernel, i64 tasks, name): one kernel call, gives a status */
    LLVMValueRef copy;        /* void (to, from, i64 bytes) */
    /* Where programs have collectives, otherwise NULL: i32 (ctx, name, i32 which function (-1: start an all_reduce), in, out,
     * i64 n, i64 bytes, i32 dtype, i32 how, i32 ranks, i32 least ranks), gives a status; i64 (ctx), this rank's number */
    LLVMValueRef collective, rank;
    LLVMValueRef wait; /* likewise: i32 (ctx, name), gives a status */
    LLVMValueRef
        text; /* where programs have steps on text: i32 (ctx, name, i32 what, args), gives a status */
    LLVMTypeRef comm_type; /* quern_comm */
    LLVMTypeRef ctx_type, model_type, kernel_type, launch_type, copy_type;
} qn_entry_module;

enum {
    QN_CTX_PARALLEL_FOR = 1,
    QN_CTX_POOL,
    QN_CTX_WEIGHTS,
    QN_CTX_CANCEL,
    QN_CTX_TRACE,
    QN_CTX_TRACE_USER,
    QN_CTX_FAILED_NODE,
    QN_CTX_PARALLEL_FOR_DOWN,
    QN_CTX_COMM,
    QN_CTX_STRINGS
};
enum {
    QN_COMM_RANK = 1,
    QN_COMM_RANKS,
    QN_COMM_ALL_REDUCE,
    QN_COMM_ALL_GATHER,
    QN_COMM_REDUCE_SCATTER,
    QN_COMM_BROADCAST,
    QN_COMM_START_ALL_REDUCE = 10,
    QN_COMM_WAIT
};
enum { QN_MODEL_WEIGHTS = 7, QN_MODEL_LACKS = 9, QN_MODEL_N_STRINGS = 11 };

static inline LLVMValueRef qn_entry_member(const qn_emitter *e, LLVMTypeRef type, LLVMValueRef base,
                                           int index)
{
    return LLVMBuildStructGEP2(e->builder, type, base, (unsigned)index, "");
}

static inline LLVMValueRef qn_entry_load(const qn_emitter *e, LLVMTypeRef type, LLVMValueRef at)
{
    return LLVMBuildLoad2(e->builder, type, at, "");
}

static inline LLVMValueRef qn_entry_element(const qn_emitter *e, LLVMTypeRef type, LLVMValueRef base,
                                            int64_t index)
{
    LLVMValueRef i = qn_llvm_i64(e, index);
    return index ? LLVMBuildGEP2(e->builder, type, base, &i, 1, "") : base;
}

static inline LLVMValueRef qn_entry_plus(const qn_emitter *e, LLVMValueRef base, LLVMValueRef bytes)
{
    return LLVMBuildGEP2(e->builder, e->i8, base, &bytes, 1, "");
}

/* ---- entry.c ---- */

/* Into the emitter's module; gives the query function. */
LLVMValueRef qn_llvm_build_entries(qn_emitter *e, const qn_entries *entries, bool jit, bool refusing);

/* ---- entry_dims.c: dimension expressions as code ---- */

typedef struct qn_dim_value {
    qn_dim dim;
    LLVMValueRef value;
} qn_dim_value;

typedef struct qn_dim_code {
    const qn_emitter *e;
    LLVMValueRef *symbols; /* values, by number; NULL for those that change: read from `memory` at each use */
    LLVMValueRef memory;   /* address of all symbols' values */
    /* Where what depends on given values alone is computed, once; it dominates every use. */
    LLVMBasicBlockRef home;
    qn_vec(qn_dim_value) known;
} qn_dim_code;

/* The value at the builder's place; saturates where the bounds say that it may overflow, as qn_dim_eval does. */
LLVMValueRef qn_dim_emit(qn_dim_code *code, qn_dim dim);
/* i1: any of symbols from … to - 1 is outside its range. */
LLVMValueRef qn_symbols_outside(qn_dim_code *code, qn_dims *dims, int from, int to);

/* i64 <name>_workspace_bytes(ptr symbols), void <name>_shape(i32, ptr symbols, ptr out), void <name>_limits(ptr symbols);
 * the last is NULL when the program decides no symbol. */
LLVMValueRef qn_emit_workspace_bytes(const qn_emitter *e, const qn_program *p, const char *name);
LLVMValueRef qn_emit_shape(const qn_emitter *e, const qn_program *p, const char *name);
LLVMValueRef qn_emit_limits(const qn_emitter *e, const qn_program *p, const char *name);

/* ---- entry_shared.c ---- */

LLVMValueRef qn_emit_launch(const qn_emitter *e, const qn_entry_module *m);
LLVMValueRef qn_emit_collective(const qn_emitter *e, const qn_entry_module *m);
LLVMValueRef qn_emit_wait(const qn_emitter *e, const qn_entry_module *m);
LLVMValueRef qn_emit_rank(const qn_emitter *e, const qn_entry_module *m);
LLVMValueRef qn_emit_text(const qn_emitter *e, const qn_entry_module *m);
LLVMValueRef qn_emit_copy(const qn_emitter *e, const qn_entry_module *m);

/* ---- entry_run.c ---- */

/* i32 run(ptr io, ptr workspace, ptr ctx) */
LLVMValueRef qn_emit_run(qn_emitter *e, const qn_entry_module *m, const qn_program *p,
                         const char *const *kernel_symbols, const char *name);

#endif
