/* Modules compiled to machine code and run; a product with constants. */
#ifndef QN_TESTS_LINEAR_H
#define QN_TESTS_LINEAR_H

#include "quern.h"

/* CPUs whose code this machine runs: how many. NULL is its own. */
int host_cpus(const char *out[3]);

/* out [m, n] = x [m, k] times w [k, n] plus bias [n], w and bias constants; shape: m, k, n. A status. */
int linear_run(const char *precision, const char *cpu, const int64_t *shape, const float *x, const float *w,
               const float *bias, float *out);

/* Fails the test unless the precision gives the bits that f32 gives. */
void linear_is_exact(const char *precision, const char *cpu, const int64_t *shape, const float *x,
                     const float *w, const float *bias);

/* Compiles the module, which is freed, runs it on the inputs and copies its output of f32. A status. */
int module_run(quern_module *module, const quern_compile_options *options, int n_inputs,
               const quern_array *inputs, float *out);

#endif
