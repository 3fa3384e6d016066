/* The CPU backend's table. */
#include "backends/llvm/emit.h"
#include "backends/llvm/jit.h"

const qn_backend qn_backend_cpu = {
    .name = "cpu",
    .describe = qn_llvm_describe,
    .emit_kernel = qn_llvm_emit_kernel,
    .emit_entries = qn_llvm_emit_entries,
    .load = qn_llvm_jit_load,
    .symbol = qn_llvm_jit_symbol,
    .unload = qn_llvm_jit_unload,
};
