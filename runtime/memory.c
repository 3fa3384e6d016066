/* Aligned memory: see memory.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/memory.h"

#define HUGE_PAGE ((size_t)2 << 20)

/* Above this size memory comes from mmap, on a huge page's boundary: fewer page faults, fewer TLB misses. */
static int is_mapped(size_t bytes)
{
    return bytes >= 2 * HUGE_PAGE;
}

static void *map(size_t bytes)
{
    size_t reserved = bytes + HUGE_PAGE;
    char *base = mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)base % HUGE_PAGE;
    if (before)
        munmap(base, before);
    munmap(base + before + bytes, reserved - before - bytes);
    madvise(base + before, bytes, MADV_HUGEPAGE);
    return base + before;
}

bool qn_memory_reserve(qn_memory *memory, size_t bytes)
{
    if (memory->data && memory->bytes >= bytes)
        return true;
    qn_memory_free(memory);
    if (bytes > PTRDIFF_MAX - 2 * HUGE_PAGE)
        return false;
    size_t rounded = bytes ? (bytes + 63) / 64 * 64 : 64;
    if (is_mapped(rounded))
        rounded = (rounded + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *data = is_mapped(rounded) ? map(rounded) : aligned_alloc(64, rounded);
    if (!data)
        return false;
    if (!is_mapped(rounded))
        memset(data, 0, rounded);
    memory->data = data;
    memory->bytes = rounded;
    return true;
}

void qn_memory_free(qn_memory *memory)
{
    if (memory->data && is_mapped(memory->bytes))
        munmap(memory->data, memory->bytes);
    else
        free(memory->data);
    memory->data = NULL;
    memory->bytes = 0;
}
