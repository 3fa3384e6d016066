/* What this machine's CPU has, asked of the machine itself: known before LLVM is opened, which may never be. */
#ifndef QN_BACKENDS_LLVM_HOST_H
#define QN_BACKENDS_LLVM_HOST_H

#include <stdbool.h>

typedef enum qn_isa { QN_ISA_X86, QN_ISA_AARCH64, QN_ISA_NVPTX } qn_isa;

#if defined(__x86_64__)
#define QN_HOST_ISA QN_ISA_X86
#define QN_HOST_ARCH "x86_64"
#elif defined(__aarch64__)
#define QN_HOST_ISA QN_ISA_AARCH64
#define QN_HOST_ARCH "aarch64"
#else
#error "Quern runs on x86-64 and AArch64"
#endif

/* Has it a feature and does the system save its registers? LLVM's names, of those that lowering asks for. */
bool qn_host_has(const char *feature);

/* Is it a Zen 5, LLVM's "znver5"? */
bool qn_host_is_zen5(void);

/* All that LLVM's name of the CPU and list of its features follow from, as text: for keys. */
const char *qn_host_text(void);

#endif
