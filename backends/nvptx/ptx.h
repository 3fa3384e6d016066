/* PTX as text: several kernels in one module. */
#ifndef QN_BACKENDS_NVPTX_PTX_H
#define QN_BACKENDS_NVPTX_PTX_H

#include "backends/backend.h"

/* One module of what emit_kernel gave for each of n > 0 kernels, ended by a 0: .version, .target and .address_size are said
 * once. In `arena`. */
const char *qn_ptx_join(int n, const qn_code *kernels, qn_arena *arena);

#endif
