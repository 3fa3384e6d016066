/* OpenBLAS, where this machine has it: opened at run time, never linked. It does contractions in models that are compiled
 * into this process (quern_compile_options.blas), and is what `bench` compares with. Any thread may call everything here.
 *
 * Its use sets OpenBLAS to one thread, for all that use it in this process: ours are the threads, and tasks that depend on
 * shapes alone, each done by one thread, give the same bits for any number of threads. So who only would like to use it
 * leaves alone one that the process uses already. */
#ifndef QN_DRIVER_BLAS_H
#define QN_DRIVER_BLAS_H

#include <stdint.h>

#include "ir/program.h"

typedef struct qn_blas {
    const char *name; /* "OpenBLAS 0.3.21 … SkylakeX" */
    /* CBLAS, row-major (101), transpositions 111 (none) and 112 */
    void (*sgemm)(int order, int x_transposed, int y_transposed, int m, int n, int k, float alpha,
                  const float *x, int x_stride, const float *y, int y_stride, float beta, float *out,
                  int out_stride);
    void (*dgemm)(int order, int x_transposed, int y_transposed, int m, int n, int k, double alpha,
                  const double *x, int x_stride, const double *y, int y_stride, double beta, double *out,
                  int out_stride);
    bool serial; /* it may be in one call at a time only */
} qn_blas;

/* NULL where there is none, or only one that something else in the process had opened before and `alone`, with the reason in
 * *out_why (static) when that is not NULL. $QUERN_OPENBLAS names the file, else it is looked for as libopenblas.so.0. */
const qn_blas *qn_blas_open(bool alone, const char **out_why);

/* The functions of qn_library as machine code calls them; only after qn_blas_open has found it. */
typedef void qn_library_fn(int64_t *args, int64_t task);
extern qn_library_fn *const qn_blas_functions[QN_N_LIBRARIES];

#endif
