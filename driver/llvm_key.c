/* See llvm_key.h. What is kept is "size.seconds.nanoseconds path", as the target of a symbolic link, which is there as a whole
 * or not. */
#include "driver/llvm_key.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/llvm/open.h"

/* NULL where there is no such file. */
static const char *of_file(const char *path, qn_arena *arena)
{
    struct stat st;
    if (!*path || stat(path, &st))
        return NULL;
    return qn_arena_printf(arena, "%lld.%lld.%ld", (long long)st.st_size, (long long)st.st_mtim.tv_sec,
                           (long)st.st_mtim.tv_nsec);
}

/* What the link in the folder says; "" where there is none. */
static const char *kept(const qn_cache *cache, qn_arena *arena)
{
    char text[4096];
    const ssize_t n = cache->folder >= 0 ? readlinkat(cache->folder, "llvm", text, sizeof text) : -1;
    return n > 0 ? qn_arena_printf(arena, "%.*s", (int)n, text) : "";
}

const char *qn_llvm_key(const qn_cache *cache, qn_arena *arena)
{
    const char *here = of_file(qn_llvm_file(), arena);
    if (here)
        return here;
    const char *last = kept(cache, arena), *path = strchr(last, ' ');
    here = path ? of_file(path + 1, arena) : NULL;
    return here ? here : qn_arena_printf(arena, "%.*s", (int)strcspn(last, " "), last);
}

void qn_llvm_keep(const qn_cache *cache, qn_arena *arena)
{
    static atomic_uint counter;
    const char *path = qn_llvm_file(), *here = of_file(path, arena);
    if (!here || cache->folder < 0)
        return;
    const char *text = qn_arena_printf(arena, "%s %s", here, path);
    if (strcmp(text, kept(cache, arena)) == 0)
        return;
    const char *temporary = qn_arena_printf(arena, "llvm.%ld.%u", (long)getpid(), counter++);
    if (symlinkat(text, cache->folder, temporary))
        return;
    if (renameat(cache->folder, temporary, cache->folder, "llvm"))
        unlinkat(cache->folder, temporary, 0);
}
