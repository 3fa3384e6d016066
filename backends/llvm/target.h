/* Targets: what triple, CPU and features a qn_target means, and what that CPU can do.
 *
 * Resolved targets live for the whole process and may be read from any thread. */
#ifndef QN_BACKENDS_LLVM_TARGET_H
#define QN_BACKENDS_LLVM_TARGET_H

#include "backends/backend.h"
#include "backends/llvm/compat.h"
#include "backends/llvm/host.h"

typedef struct qn_llvm_target {
    qn_isa isa;
    int vector_bytes;
    bool avx512;        /* F, BW, DQ and VL: what x86-64-v4 and every AVX-512 server has */
    bool vnni;          /* AVX512_VNNI or AVX_VNNI: vpdpbusd */
    bool bf16;          /* AVX512_BF16: vdpbf16ps, vcvtneps2bf16; AArch64: bfdot, bfcvtn */
    bool fp16;          /* AVX512_FP16 */
    bool bitalg;        /* AVX512_BITALG, with which VBMI, VBMI2, VPOPCNTDQ and GFNI come */
    bool dotprod, i8mm; /* AArch64: sdot and udot; usdot */
    qn_machine machine;
    /* As LLVM wants them. Of this machine's CPU they are not known before code is generated. */
    const char *triple, *cpu, *features, *data_layout;
    LLVMTargetRef llvm;
    const char *text; /* triple, CPU, features */
} qn_llvm_target;

/* The one for `target` with all that LLVM wants, made on first use; opens LLVM. A mistake in the names is reported. */
qn_status qn_llvm_target_find(const qn_target *target, const qn_llvm_target **out, qn_diags *diags);
bool qn_llvm_is_host_triple(const char *triple); /* code for it runs on this machine; NULL: yes */
/* Slot of qn_backend_cpu. Of this machine's CPU it needs no LLVM. */
qn_status qn_llvm_describe(const qn_target *target, qn_arena *arena, qn_machine *out_machine,
                           qn_diags *diags);

/* What the code generator's time goes into. Kernels are worth it; an entry is long straight code that runs once a call:
 * optimized, its 1000 kernel calls take half a second and are no faster. */
typedef enum qn_llvm_effort { QN_LLVM_FAST_CODE, QN_LLVM_FAST_COMPILE } qn_llvm_effort;

/* A target machine of the calling thread, reused from call to call: position-independent, small code model. NULL with
 * a diagnostic when LLVM has none. */
LLVMTargetMachineRef qn_llvm_target_machine(const qn_llvm_target *target, qn_llvm_effort effort,
                                            qn_diags *diags);
/* After a fatal error of LLVM: the thread's target machines are not used again. */
void qn_llvm_target_machines_abandon(void);

#endif
