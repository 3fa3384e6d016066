/* The communicator of MPI is in a library of its own, libquern_mpi, which is opened when it is asked for: nothing links MPI. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"

typedef int (*world_fn)(quern_comm **out);
typedef const char *(*error_fn)(void);

/* Beside the file that this code is in, or where an installation has libraries. */
static void *open_mpi_library(char *path, size_t size)
{
    static const char *const places[] = { "", "../lib/", "../" QN_LIBDIR "/" };
    const char *named = getenv("QUERN_MPI");
    Dl_info here;
    if (named && *named) {
        snprintf(path, size, "%s", named);
        return dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    if (dladdr((void *)(uintptr_t)quern_comm_free, &here) && here.dli_fname && strchr(here.dli_fname, '/')) {
        const int folder = (int)(strrchr(here.dli_fname, '/') + 1 - here.dli_fname);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            snprintf(path, size, "%.*s%slibquern_mpi.so", folder, here.dli_fname, places[i]);
            void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
            if (library)
                return library;
        }
    }
    snprintf(path, size, "libquern_mpi.so");
    return dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

int quern_comm_mpi(quern_comm **out)
{
    char path[4096];
    *out = NULL;
    void *library = open_mpi_library(path, sizeof path); /* stays open: MPI cannot start a second time */
    if (!library)
        return qn_fail(QUERN_ERROR_IO,
                       "no MPI here: %s (it is built where MPI is installed; QUERN_MPI names its file)",
                       dlerror());
    void *world = dlsym(library, "quern_mpi_world"), *error = dlsym(library, "quern_mpi_error");
    if (!world || !error)
        return qn_fail(QUERN_ERROR_IO, "%s is no libquern_mpi", path);
    const int status = ((world_fn)(uintptr_t)world)(out);
    return status ? qn_fail(status, "%s", ((error_fn)(uintptr_t)error)()) : QUERN_OK;
}
