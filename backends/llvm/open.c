/* See open.h. */
#include "backends/llvm/open.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/llvm/compat.h"

struct qn_llvm_calls qn_llvm_calls;

static const char *const names[] = {
#define NAME(function) #function,
    QN_LLVM_CALLS(NAME)
#undef NAME
};
_Static_assert(sizeof names / sizeof *names == sizeof qn_llvm_calls / sizeof(void *),
               "one pointer for each function");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;
static char problem[512]; /* empty: it is open */
static char *file;        /* that it is, once it is open */
static atomic_bool opened;

static void *open_first(const char *const *paths)
{
    void *opened = NULL;
    for (int i = 0; paths[i] && !opened; i++)
        opened = dlopen(paths[i], RTLD_LAZY | RTLD_LOCAL);
    if (!opened) {
        const char *message = dlerror();
        snprintf(problem, sizeof problem, "%s", message ? message : "it cannot be opened");
    }
    return opened;
}

static void find_functions(void)
{
    const char *missing = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *address = dlsym(library, names[i]);
        memcpy((char *)&qn_llvm_calls + i * sizeof address, &address, sizeof address);
        if (!address)
            missing = names[i];
    }
    unsigned major = LLVM_VERSION_MAJOR, minor, patch;
    if (LLVMGetVersion)
        LLVMGetVersion(&major, &minor, &patch);
    if (major != LLVM_VERSION_MAJOR) /* constants and the meaning of arguments are those of one version */
        snprintf(problem, sizeof problem, "it is LLVM %u", major);
    else if (missing)
        snprintf(problem, sizeof problem, "it has no %s", missing);
}

static void open_once(void)
{
    const char *chosen = getenv("QUERN_LLVM");
    const char *const usual[] = { QN_LLVM_FOLDER "/" QN_LLVM_FILE, QN_LLVM_FILE, NULL };
    library = open_first(chosen && *chosen ? (const char *const[]){ chosen, NULL } : usual);
    if (!library)
        return;
    find_functions();
    Dl_info info;
    if (!problem[0] && dladdr(*(void **)&qn_llvm_calls, &info) && info.dli_fname) {
        file = strdup(info.dli_fname);
        atomic_store_explicit(&opened, file != NULL, memory_order_release);
    }
}

const char *qn_llvm_file(void)
{
    if (atomic_load_explicit(&opened, memory_order_acquire))
        return file;
    const char *chosen = getenv("QUERN_LLVM");
    if (!chosen || !*chosen)
        return QN_LLVM_FOLDER "/" QN_LLVM_FILE;
    return strchr(chosen, '/') ? chosen : "";
}

qn_status qn_llvm_open(qn_diags *diags)
{
    pthread_once(&once, open_once);
    if (!problem[0])
        return QUERN_OK;
    return qn_error(
        diags, QUERN_ERROR_UNSUPPORTED, NULL,
        "generating code needs LLVM %d, which cannot be used: %s; install it (Debian and Ubuntu: apt-get "
        "install "
        "libllvm%d), or let QUERN_LLVM be the path of %s; without it there is what the cache has, and target "
        "'interp'",
        LLVM_VERSION_MAJOR, problem, LLVM_VERSION_MAJOR, QN_LLVM_FILE);
}

void (*qn_llvm_optional(const char *name))(void)
{
    void *address = dlsym(library, name);
    void (*function)(void);
    memcpy(&function, &address, sizeof function);
    return function;
}
