/* Objects made callable in this process. An image is used through qn_backend_cpu.{load, symbol, unload}.
 *
 * Environment: QUERN_JIT_PERF=1 writes /tmp/perf-PID.map for `perf`; QUERN_JIT_GDB=1 tells gdb of the code. */
#ifndef QN_BACKENDS_LLVM_JIT_H
#define QN_BACKENDS_LLVM_JIT_H

#include "backends/backend.h"

/* The objects see each other and nothing else of the process; of symbols with the same name the first is taken. Thread-safe,
 * as is symbol; unload ends every use. */
qn_status qn_llvm_jit_load(int n_objects, const qn_code *objects, const char *const *names, void **out_image,
                           qn_diags *diags);
void *qn_llvm_jit_symbol(void *image, const char *name); /* NULL when there is none */
void qn_llvm_jit_unload(void *image);

#endif
