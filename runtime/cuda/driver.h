/* NVIDIA GPUs through the driver API, opened at run time: no CUDA toolkit is needed to build or to start.
 *
 * A qn_cuda is a device and one module of code on it. Several may be of one device: its memory, and the order in which things
 * happen on it, are theirs together. Code is loaded by one thread at a time; any thread may do the rest. Functions give a
 * quern_status and keep the message (runtime/error.h). */
#ifndef QN_RUNTIME_CUDA_DRIVER_H
#define QN_RUNTIME_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef struct qn_cuda qn_cuda;
typedef uint64_t qn_cuda_address;

/* A GPU by its number. The library is libcuda.so.1, or what the environment's QUERN_CUDA_LIBRARY names. QUERN_ERROR_DEVICE
 * where there is none. */
int qn_cuda_open(int number, qn_cuda **out);
int qn_cuda_count(int *out);           /* of GPUs: 0 with QUERN_ERROR_DEVICE, and why */
void qn_cuda_close(qn_cuda *cuda);     /* frees the module too; memory is the caller's. NULL is fine */
int qn_cuda_arch(const qn_cuda *cuda); /* 90: sm_90 */

/* Its module: PTX as text with a 0 at its end. */
int qn_cuda_load(qn_cuda *cuda, const char *ptx);
int qn_cuda_function(qn_cuda *cuda, const char *name, void **out_function);

int qn_cuda_alloc(qn_cuda *cuda, size_t bytes, qn_cuda_address *out);
void qn_cuda_free(qn_cuda *cuda, qn_cuda_address address); /* 0 is fine */

/* What follows happens in this order on the device; only the way back to the host waits for it. Host memory may be
 * changed as soon as the call has come back. */
int qn_cuda_to_device(qn_cuda *cuda, qn_cuda_address to, const void *from, size_t bytes);
int qn_cuda_clear(qn_cuda *cuda, qn_cuda_address at, size_t bytes); /* zeros */
int qn_cuda_to_host(qn_cuda *cuda, void *to, qn_cuda_address from, size_t bytes);
int qn_cuda_copy(qn_cuda *cuda, qn_cuda_address to, qn_cuda_address from, size_t bytes);
/* From another GPU, behind all that was asked of either. */
int qn_cuda_copy_between(qn_cuda *cuda, qn_cuda_address to, qn_cuda *from_cuda, qn_cuda_address from,
                         size_t bytes);
/* The kernel with parameters (args, number of its first task, n more), blocks of `threads`, one a task. */
int qn_cuda_launch(qn_cuda *cuda, void *function, qn_cuda_address args, int n, int64_t *more, int64_t tasks,
                   int threads);
int qn_cuda_wait(qn_cuda *cuda);

#endif
