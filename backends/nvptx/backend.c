/* GPUs of NVIDIA: kernels as PTX text, through the code generator of backends/llvm, of which only leaves differ.
 *
 * A kernel in PTX has the CPU's arguments, but those behind args[0] by themselves where they are not too many:
 *   .entry kernel(.param .u64 args, .param .u64 first_task, .param .u64 …)     block b of the grid does task first_task + b
 * and blocks of as many threads as `.maxntid` says. Programs are run by the host: driver/model_cuda.c. */
#include "backends/llvm/emit.h"

static qn_target resolved(const qn_target *target)
{
    return (qn_target){ .triple = "nvptx64-nvidia-cuda",
                        .cpu = target->cpu ? target->cpu : "sm_90",
                        .features = target->features };
}

static qn_status describe(const qn_target *target, qn_arena *arena, qn_machine *out_machine, qn_diags *diags)
{
    const qn_target gpu = resolved(target);
    return qn_llvm_describe(&gpu, arena, out_machine, diags);
}

static qn_status emit_kernel(const qn_kernel *kernel, const char *symbol, const qn_target *target,
                             qn_math math, qn_emit emit, qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    const qn_target gpu = resolved(target);
    if (emit == QN_EMIT_OBJECT)
        emit = QN_EMIT_ASSEMBLY; /* PTX is what drivers load */
    return qn_llvm_emit_kernel(kernel, symbol, &gpu, math, emit, arena, out_code, diags);
}

const qn_backend qn_backend_nvptx = {
    .name = "nvptx64",
    .describe = describe,
    .emit_kernel = emit_kernel,
};
