/* A product with constants, compiled to machine code. */
#ifndef QN_TESTS_LINEAR_H
#define QN_TESTS_LINEAR_H

#include <stdint.h>

/* CPUs whose code this machine runs: how many. NULL is its own. */
int host_cpus(const char *out[3]);

/* out [m, n] = x [m, k] times w [k, n] plus bias [n], w and bias constants; shape: m, k, n. A status. */
int linear_run(const char *precision, const char *cpu, const int64_t *shape, const float *x, const float *w,
               const float *bias, float *out);

#endif
