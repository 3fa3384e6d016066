/* A kernel that is being made LLVM IR, and what the parts of that share. */
#ifndef QN_BACKENDS_LLVM_KERNEL_H
#define QN_BACKENDS_LLVM_KERNEL_H

#include "backends/llvm/emit.h"

/* Constants whose values LLVM is not to know. It would move them out of all loops, to the top of the kernel, and then has no
 * registers left for a tile's sums (of 12 x 32, in the innermost loop): products with an epilogue took half as long again. */
typedef struct qn_llvm_hidden {
    int n;
    struct {
        qn_ktype type;
        LLVMValueRef known, value;
    } items[32];
} qn_llvm_hidden;

/* Where a thread of a GPU goes on after a failed check: with its next iteration. It can't leave, others wait for it. */
typedef struct qn_llvm_escape {
    LLVMBasicBlockRef next;
    int n;
    LLVMValueRef *before, *phis; /* carried values at the iteration's begin; in `next` */
} qn_llvm_escape;

typedef struct qn_llvm_kernel {
    qn_emitter *e;
    const qn_kernel *k;
    const char *symbol;
    LLVMValueRef function, args, task;
    LLVMValueRef *values;    /* by serial number */
    LLVMValueRef *addresses; /* by position in k->buffers */
    qn_llvm_tags *tags;
    int threads;                  /* of a GPU's block; 0 on a CPU */
    LLVMValueRef thread;          /* GPU: number of this one */
    const qn_llvm_escape *escape; /* in a loop that is spread over GPU threads */
    bool aligned;             /* in the version for buffers aligned to whole vectors: see are_aligned below */
    bool bypassed;            /* non-temporal stores were emitted: a fence is due */
    LLVMValueRef tile_config; /* NULL: it uses no tiles */
    bool behind_tile;         /* a loop before, in this block, has a tile's sums in registers */
    const qn_llvm_hidden *hidden; /* constants of the running loop; NULL: none are hidden */
    qn_status status;
} qn_llvm_kernel;

/* ---- kernel.c ---- */

LLVMValueRef qn_llvm_get(const qn_llvm_kernel *s, const qn_kvalue *v);
void qn_llvm_set(qn_llvm_kernel *s, const qn_kvalue *v, LLVMValueRef value);
LLVMValueRef qn_llvm_operand(const qn_llvm_kernel *s, const qn_kinst *inst, int i);
LLVMValueRef qn_llvm_operand_or_null(const qn_llvm_kernel *s, const qn_kinst *inst, int i);
/* The kernel's status becomes that there is no code for it. */
void qn_llvm_unsupported(qn_llvm_kernel *s, const char *what);
void qn_llvm_emit_block(qn_llvm_kernel *s, const qn_kblock *block);
void qn_llvm_end_task(const qn_llvm_kernel *s);

/* ---- kernel_memory.c ---- */

/* On a GPU: are addresses and parameters the kernel's own? */
bool qn_llvm_has_arguments(const qn_llvm_kernel *s);
LLVMValueRef qn_llvm_load_argument(const qn_llvm_kernel *s, LLVMTypeRef type, int number);
void qn_llvm_place_buffers(qn_llvm_kernel *s);
/* An alias scope a buffer: its accesses are in its own and overlap none of the others. */
void qn_llvm_make_alias_scopes(qn_llvm_kernel *s);
/* Splits x + constant, so that the constant becomes the displacement of the machine's addressing mode. */
LLVMValueRef qn_llvm_address(const qn_llvm_kernel *s, const qn_kbuffer *buffer, const qn_kvalue *index);
LLVMValueRef qn_llvm_emit_load(qn_llvm_kernel *s, const qn_kinst *inst);
void qn_llvm_emit_store(qn_llvm_kernel *s, const qn_kinst *inst);
/* At run time: are all non-temporal stores to addresses that they can have? NULL: so they are, or there are none.
 *
 * Such stores are only for addresses that are multiples of the vector. The index tells at compile time; the buffer of a caller,
 * who promises no more than the element's alignment, only at run time; so is whether an output took the memory of the input
 * that it is made from, whose lines are in the cache then. A kernel with such stores is made twice and chooses at its
 * start. */
LLVMValueRef qn_llvm_are_aligned(const qn_llvm_kernel *s);

/* ---- kernel_value.c ---- */

/* NULL: there is no code for it. */
LLVMValueRef qn_llvm_emit_value(qn_llvm_kernel *s, const qn_kinst *inst);
/* A GPU's registers have 32 bits: indices that are known to fit into one are computed so, and are numbers of 64 bits only where
 * they become addresses. */
bool qn_llvm_is_narrow(const qn_llvm_kernel *s, const qn_kvalue *v);
LLVMValueRef qn_llvm_narrow(const qn_llvm_kernel *s, LLVMValueRef wide);
LLVMValueRef qn_llvm_widen(const qn_llvm_kernel *s, LLVMValueRef x);

/* ---- kernel_control.c ---- */

void qn_llvm_emit_for(qn_llvm_kernel *s, const qn_kinst *loop);
void qn_llvm_emit_if(qn_llvm_kernel *s, const qn_kinst *inst);
void qn_llvm_emit_check(qn_llvm_kernel *s, const qn_kinst *inst);

#endif
