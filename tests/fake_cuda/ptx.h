/* PTX, run on the host: as much of it as the code generator writes, checked as it goes.
 *
 * A block's threads run one after the other, each to its next barrier. What is not understood is refused when the module is
 * read, so that a test fails instead of passing without it. */
#ifndef QN_TESTS_FAKE_CUDA_PTX_H
#define QN_TESTS_FAKE_CUDA_PTX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ptx_module ptx_module;
typedef struct ptx_kernel ptx_kernel;

/* NULL: `error` (512 bytes) says why. */
ptx_module *ptx_parse(const char *text, char *error);
void ptx_free(ptx_module *module);
const ptx_kernel *ptx_find(const ptx_module *module, const char *name);
int ptx_threads(const ptx_kernel *kernel); /* .maxntid */
int ptx_params(const ptx_kernel *kernel);  /* each of 8 bytes */

/* One block. `reach` gives the host's address of device memory, NULL where there is none of that size. `backwards`: the last
 * thread goes first, which must make no difference. */
bool ptx_run(const ptx_kernel *kernel, unsigned block, int n_threads, bool backwards, const uint64_t *params,
             void *(*reach)(uint64_t address, size_t bytes), char *error);

#endif
