/* See ptx.h. */
#include "backends/nvptx/ptx.h"

#include <string.h>

/* Where the kernel begins: behind the line with .address_size, the last one that is the module's. */
static size_t header_size(const char *text, size_t size)
{
    static const char last[] = ".address_size";
    const char *at = memmem(text, size, last, sizeof last - 1);
    const char *end = at ? memchr(at, '\n', size - (size_t)(at - text)) : NULL;
    QN_ASSERT(end, "PTX without .address_size");
    return (size_t)(end + 1 - text);
}

const char *qn_ptx_join(int n, const qn_code *kernels, qn_arena *arena)
{
    size_t size = 1;
    for (int i = 0; i < n; i++)
        size += kernels[i].size;
    char *text = qn_arena_alloc(arena, size), *end = text;
    for (int i = 0; i < n; i++) {
        size_t skipped = i ? header_size(kernels[i].data, kernels[i].size) : 0;
        memcpy(end, (const char *)kernels[i].data + skipped, kernels[i].size - skipped);
        end += kernels[i].size - skipped;
    }
    *end = '\0';
    return text;
}
