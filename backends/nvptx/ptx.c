/* See ptx.h. */
#include "backends/nvptx/ptx.h"

#include <string.h>

size_t qn_ptx_header_size(const char *text, size_t size)
{
    static const char last[] = ".address_size";
    const char *at = memmem(text, size, last, sizeof last - 1);
    if (!at)
        return 0;
    const char *end = memchr(at, '\n', size - (size_t)(at - text));
    return end ? (size_t)(end + 1 - text) : size;
}
