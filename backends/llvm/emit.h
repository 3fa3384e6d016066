/* What the parts of the code generator share: one LLVM module in the making, and the leaves of the kernel IR.
 *
 * How values of the kernel IR are represented:
 *   bool        i1; a byte in memory
 *   integers    iN
 *   f32, f64    float, double
 *   f16, bf16   i16 that holds the bits: arithmetic goes through f32, so that no helper of a C library is ever called
 *   lanes > 1   a vector of that
 *
 * An emitter belongs to one call of qn_llvm_compile and one thread. */
#ifndef QN_BACKENDS_LLVM_EMIT_H
#define QN_BACKENDS_LLVM_EMIT_H

#include "backends/backend.h"
#include "backends/llvm/compat.h"
#include "backends/llvm/target.h"

typedef struct qn_emitter {
    LLVMContextRef context;
    LLVMModuleRef module;
    LLVMBuilderRef builder;
    const qn_llvm_target *target;
    qn_arena *arena;
    qn_diags *diags;
    LLVMTypeRef i1, i8, i16, i32, i64, f16, f32, f64, ptr, nothing;
} qn_emitter;

/* ---- emit.c: types, constants, functions, blocks ---- */

LLVMTypeRef qn_llvm_type(const qn_emitter *e, qn_ktype type);
LLVMTypeRef qn_llvm_memory_type(const qn_emitter *e, qn_ktype type); /* bool is a byte there */
LLVMTypeRef qn_llvm_lanes(LLVMTypeRef element, int lanes);           /* lanes 1: the element itself */

LLVMValueRef qn_llvm_i64(const qn_emitter *e, int64_t value);
LLVMValueRef qn_llvm_i32(const qn_emitter *e, int64_t value);
LLVMValueRef qn_llvm_constant(const qn_emitter *e, qn_ktype type, qn_scalar value);
LLVMValueRef qn_llvm_int(const qn_emitter *e, qn_ktype type, int64_t value);
LLVMValueRef qn_llvm_float(const qn_emitter *e, qn_ktype type, double value);
LLVMValueRef qn_llvm_splat(const qn_emitter *e, LLVMValueRef scalar, int lanes);
/* Lanes start … start + n - 1 of a vector; a scalar when n is 1. */
LLVMValueRef qn_llvm_slice(const qn_emitter *e, LLVMValueRef vector, int start, int n);
/* All lanes of a, then those of b. Both have the same type; scalars are vectors of one lane. */
LLVMValueRef qn_llvm_concat(const qn_emitter *e, LLVMValueRef a, LLVMValueRef b);
int qn_llvm_lane_count(LLVMValueRef value);

/* Calls intrinsic `name`, overloaded on `n_types` types. */
LLVMValueRef qn_llvm_intrinsic(const qn_emitter *e, const char *name, int n_types, LLVMTypeRef *types,
                               int n_args, LLVMValueRef *args);

/* The name is for a symbol that others look for: an entry that has it, by its own name, is called something else. */
void qn_llvm_claim(const qn_emitter *e, const char *name);
LLVMValueRef qn_llvm_function(const qn_emitter *e, const char *name, LLVMTypeRef result, int n_params,
                              LLVMTypeRef *params); /* with the attributes that all our functions have */
void qn_llvm_attribute(const qn_emitter *e, LLVMValueRef function, const char *key, const char *value);
void qn_llvm_enum_attribute(const qn_emitter *e, LLVMValueRef function, unsigned at, const char *key,
                            uint64_t value);
/* A new block behind the current one. Positioning at it is the caller's. */
LLVMBasicBlockRef qn_llvm_block(const qn_emitter *e, const char *name);
void qn_llvm_at(const qn_emitter *e, LLVMBasicBlockRef block);
LLVMBasicBlockRef qn_llvm_here(const qn_emitter *e);
LLVMValueRef qn_llvm_phi(const qn_emitter *e, LLVMTypeRef type); /* without incoming values */
void qn_llvm_incoming(LLVMValueRef phi, LLVMValueRef value, LLVMBasicBlockRef from);
/* A private constant with the text. */
LLVMValueRef qn_llvm_string(const qn_emitter *e, const char *text);

/* ---- arith.c, convert.c: values ---- */

/* NULL where the op has no machine code of its own (exp, …: passes expand those). `type` is a's. */
LLVMValueRef qn_llvm_unary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a);
LLVMValueRef qn_llvm_binary(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a, LLVMValueRef b);
LLVMValueRef qn_llvm_fma(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);
/* a's bytes are of type x, b's of y. */
LLVMValueRef qn_llvm_dot4(const qn_emitter *e, int lanes, qn_dtype x, qn_dtype y, LLVMValueRef a,
                          LLVMValueRef b, LLVMValueRef c);
/* NULL: the CPU has no such instruction. */
LLVMValueRef qn_llvm_mmla(const qn_emitter *e, qn_ktype type, qn_dtype x, qn_dtype y, LLVMValueRef a,
                          LLVMValueRef b, LLVMValueRef c);
LLVMValueRef qn_llvm_dot2(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);
LLVMValueRef qn_llvm_compare(const qn_emitter *e, qn_direction direction, qn_ktype type, LLVMValueRef a,
                             LLVMValueRef b);
LLVMValueRef qn_llvm_scale2(const qn_emitter *e, qn_ktype type, LLVMValueRef a, LLVMValueRef n);
LLVMValueRef qn_llvm_lookup(const qn_emitter *e, int lanes, const float *table, LLVMValueRef index);
LLVMValueRef qn_llvm_pick(const qn_emitter *e, int lanes, LLVMValueRef index, LLVMValueRef table);
LLVMValueRef qn_llvm_reduce(const qn_emitter *e, qn_kind kind, qn_ktype type, LLVMValueRef a);
LLVMValueRef qn_llvm_convert(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a);
LLVMValueRef qn_llvm_round_to_bf16(const qn_emitter *e, qn_ktype from,
                                   LLVMValueRef a); /* may flush denormals */
LLVMValueRef qn_llvm_bitcast(const qn_emitter *e, qn_ktype from, qn_dtype to, LLVMValueRef a);
LLVMValueRef qn_llvm_ramp(const qn_emitter *e, qn_ktype type, LLVMValueRef first);
LLVMValueRef qn_llvm_shuffle(const qn_emitter *e, LLVMValueRef a, LLVMValueRef b, int n_mask,
                             const int *mask);
/* Integer division and remainder without a check: for operands that are known to be fit. */
LLVMValueRef qn_llvm_divide_unchecked(const qn_emitter *e, qn_op fn, qn_ktype type, LLVMValueRef a,
                                      LLVMValueRef b);

/* ---- memory.c ---- */

/* How an access touches memory; element alignment where nothing more is known. `tags` are put on the instruction. */
typedef struct qn_llvm_tags {
    LLVMValueRef alias_scope, noalias; /* metadata, or NULL */
    unsigned align;                    /* of the address, in bytes; 0: of the element */
    bool unchanging;                   /* nobody writes what is loaded while the kernel runs */
    bool in_order;                     /* a load that stays behind the ones before it */
} qn_llvm_tags;

/* Contiguous lanes from `address` on. mask NULL: all; other NULL: zero. */
LLVMValueRef qn_llvm_load(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef mask,
                          LLVMValueRef other, qn_llvm_tags tags);
void qn_llvm_store(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef value,
                   LLVMValueRef mask, qn_llvm_tags tags);
/* A whole vector past the caches, to an address that is a multiple of its size (of the target's largest vector). */
void qn_llvm_store_nontemporal(const qn_emitter *e, qn_ktype type, LLVMValueRef address, LLVMValueRef value,
                               qn_llvm_tags tags);
/* Behind such stores, before another thread is told of them. */
void qn_llvm_store_fence(const qn_emitter *e);
LLVMValueRef qn_llvm_gather(const qn_emitter *e, qn_ktype type, LLVMValueRef addresses, LLVMValueRef mask,
                            LLVMValueRef other, qn_llvm_tags tags);
void qn_llvm_scatter(const qn_emitter *e, qn_ktype type, LLVMValueRef addresses, LLVMValueRef value,
                     LLVMValueRef mask, qn_llvm_tags tags);
/* locality 0: all levels of cache … 3: none */
void qn_llvm_prefetch(const qn_emitter *e, LLVMValueRef address, int locality);

/* ---- tile.c: the matrix unit, see QN_K_TILE_* ---- */

LLVMValueRef qn_llvm_tile_config(const qn_emitter *e); /* memory for a shape; in the function's first block */
void qn_llvm_tile_shape(const qn_emitter *e, LLVMValueRef config, LLVMValueRef *rows);
void qn_llvm_tile_zero(const qn_emitter *e, int number);
void qn_llvm_tile_move(const qn_emitter *e, bool load, int number, LLVMValueRef address,
                       LLVMValueRef row_bytes);
void qn_llvm_tile_mma(const qn_emitter *e, const int *tiles, qn_dtype x, qn_dtype y);
void qn_llvm_tile_release(const qn_emitter *e);
/* Asks Linux to let the process use tiles, which is needed once; true: refused. */
LLVMValueRef qn_llvm_tile_permission(const qn_emitter *e);

/* ---- gpu.c: leaves of GPU kernels ---- */

/* Address spaces of NVPTX. */
enum { QN_GPU_GLOBAL = 1, QN_GPU_SHARED = 3 };
enum { QN_GPU_ACCESS = 16 }; /* bytes that a thread reads or writes at once */

/* Marks it as a kernel of blocks of `threads`; by_thread: one that holds what it computes in registers. */
void qn_llvm_gpu_kernel(const qn_emitter *e, LLVMValueRef function, int threads, bool by_thread);
LLVMValueRef qn_llvm_gpu_thread(const qn_emitter *e); /* number in its block, i64 */
LLVMValueRef qn_llvm_gpu_block(const qn_emitter *e);  /* number in the grid, i64 */
void qn_llvm_gpu_barrier(const qn_emitter *e);
/* The value of the lane whose number differs by exclusive or. */
LLVMValueRef qn_llvm_gpu_warp_shuffle(const qn_emitter *e, qn_ktype type, LLVMValueRef x, int with);
/* See QN_K_WARP_LOAD and QN_K_WARP_MMA; 16-bit floats are i16. */
LLVMValueRef qn_llvm_gpu_warp_load(const qn_emitter *e, LLVMValueRef address, bool turned);
LLVMValueRef qn_llvm_gpu_warp_mma(const qn_emitter *e, qn_dtype dtype, LLVMValueRef x, LLVMValueRef y,
                                  LLVMValueRef sums);
LLVMValueRef qn_llvm_gpu_global(const qn_emitter *e, LLVMValueRef address); /* known to be in global memory */
/* Static shared memory for `elements` of memory type `element`, at a multiple of 64; one for each name. */
LLVMValueRef qn_llvm_gpu_shared(const qn_emitter *e, const char *name, LLVMTypeRef element, int64_t elements);

/* values[i] of all threads of the block (a power of two) combined by kinds[i], in the same order at every run; each thread
 * gets the result, in values[i]. All threads of the block must come here. `prefix` begins the names of shared memory. */
void qn_llvm_gpu_combine(const qn_emitter *e, const char *prefix, int threads, LLVMValueRef thread, int n,
                         const qn_ktype *types, const qn_kind *kinds, LLVMValueRef *values);

/* ---- object.c ---- */

/* Makes a module, lets `build` fill it and emits it. LLVM's fatal errors are a status; the context is abandoned then.
 * `what` names the thing for messages. */
qn_status qn_llvm_compile(const char *what, const qn_target *target, qn_emit emit, qn_llvm_effort effort,
                          qn_status (*build)(qn_emitter *e, void *user), void *user, qn_arena *arena,
                          qn_code *out_code, qn_diags *diags);

/* ---- kernel.c, entry.c: slots of qn_backend_cpu ---- */

qn_status qn_llvm_emit_kernel(const qn_kernel *kernel, const char *symbol, const qn_target *target,
                              qn_math math, qn_emit emit, qn_arena *arena, qn_code *out_code,
                              qn_diags *diags);
qn_status qn_llvm_emit_entries(const qn_entries *entries, const qn_target *target, qn_emit emit,
                               qn_arena *arena, qn_code *out_code, qn_diags *diags);

#endif
