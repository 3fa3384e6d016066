/* PTX as text: several kernels in one module. */
#ifndef QN_BACKENDS_NVPTX_PTX_H
#define QN_BACKENDS_NVPTX_PTX_H

#include <stddef.h>

/* Where the kernel begins in what emit_kernel gave: behind .version, .target and .address_size, which a module says once. */
size_t qn_ptx_header_size(const char *text, size_t size);

#endif
