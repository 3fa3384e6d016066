/* LLVM is opened when code is first generated, not when Quern is loaded: it is a hundred times larger than Quern, and a process
 * whose kernels are all in the cache needs nothing of it. backends/llvm/compat.h has how it is called then. */
#ifndef QN_BACKENDS_LLVM_OPEN_H
#define QN_BACKENDS_LLVM_OPEN_H

#include "ir/diag.h"

/* Before LLVM's functions are called. The library that was found when Quern was built, in the folder where it was then or
 * where the system has it; $QUERN_LLVM is another path. Thread-safe; what happened first is the answer ever after. */
QN_MUST_USE qn_status qn_llvm_open(qn_diags *diags);

/* The file that is open, or the path of the one that would be opened first. Does not open it; "" where only the dynamic linker
 * can find it. Lives as long as the process. */
const char *qn_llvm_file(void);

/* A function that not every LLVM has; NULL where this one hasn't. */
void (*qn_llvm_optional(const char *name))(void);

/* Triple, CPU and features, as LLVM calls those of this machine: three words. */
QN_MUST_USE qn_status qn_llvm_host_text(const char **out, qn_diags *diags);

#endif
