/* Reads, compiles and runs single kernels in this process. Failures end the test with the diagnostics. */
#ifndef QN_TESTS_JIT_KERNEL_H
#define QN_TESTS_JIT_KERNEL_H

#include "backends/backend.h"

typedef struct jit_kernel {
    void *image;
    void (*run)(int64_t *args, int64_t task);
} jit_kernel;

/* A kernel from its text, in the arena. */
qn_kernel *kernel_parsed(const char *text, qn_arena *arena);

/* cpu NULL: this machine's. A CPU with features more or less: "x86-64-v4 +avx512vnni,…". */
jit_kernel jit_kernel_new(const qn_kernel *kernel, const char *cpu);
void jit_kernel_free(jit_kernel *kernel);

/* Runs a kernel as machine code and in the interpreter on the same random contents (all kinds of bits in floats; small
 * non-negative numbers in i64 buffers that are only read, so that they can be indices) and fails the test unless all
 * written buffers and args[0] agree. elements[i]: of argument buffer i; each ends at a page that must not be touched. */
void kernel_compare(const qn_kernel *kernel, const int64_t *elements, const int64_t *params, int64_t tasks,
                    const char *cpu);

/* The assembly (or LLVM IR) of a kernel, in the arena. */
const char *kernel_text(const qn_kernel *kernel, const qn_target *target, qn_emit emit, qn_arena *arena);

/* What the assembly for a CPU has in it, and what it has not. */
typedef struct cpu_code {
    const char *triple, *cpu, *has, *has_not;
} cpu_code;
void kernel_uses(const char *text, size_t n, const cpu_code *cases);

#endif
