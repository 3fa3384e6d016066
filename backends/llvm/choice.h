/* Objects that hold code for several CPUs of x86-64 and choose when they are loaded. */
#ifndef QN_BACKENDS_LLVM_CHOICE_H
#define QN_BACKENDS_LLVM_CHOICE_H

#include "backends/backend.h"

/* CPUs that a running machine can be compared with: x86-64-v3 … sapphirerapids, each with all that those before it have. A
 * number for `name`, larger for more, and in *out (its CPU and features) what code for it may use; -1: there is no such. */
int qn_llvm_level(const char *name, qn_target *out);
extern const char qn_llvm_level_names[]; /* "x86-64-v3, …" */

/* The function `<prefix>_query` of an object with tables for the n levels, which ascend: queries[i] is the name of the function
 * that gives those for levels[i]. It gives the last that this machine's CPU can run, or where it can run none tables like
 * theirs whose entries return QUERN_ERROR_DEVICE. `entries` are those of the first level. */
qn_status qn_llvm_emit_choice(const qn_entries *entries, const char *triple, int n, const int *levels,
                              const char *const *queries, qn_arena *arena, qn_code *out_code,
                              qn_diags *diags);

#endif
