/* Compiles and runs single kernels in this process. Failures end the test with the diagnostics. */
#ifndef QN_TESTS_JIT_KERNEL_H
#define QN_TESTS_JIT_KERNEL_H

#include "backends/backend.h"

typedef struct jit_kernel {
    void *image;
    void (*run)(int64_t *args, int64_t task);
} jit_kernel;

/* cpu NULL: this machine's. */
jit_kernel jit_kernel_new(const qn_kernel *kernel, const char *cpu);
void jit_kernel_free(jit_kernel *kernel);

/* The assembly (or LLVM IR) of a kernel, in the arena. */
const char *kernel_text(const qn_kernel *kernel, const qn_target *target, qn_emit emit, qn_arena *arena);

#endif
