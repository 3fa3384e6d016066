/* See driver.h. Names and numbers are those of the CUDA driver API; the types are as small as what is used of them. */
#include "runtime/cuda/driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"

enum { SUCCESS = 0, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, MOST_BLOCKS = INT32_MAX };

/* Field, symbol, parameters: X(init, "cuInit", (unsigned flags)) */
#define FUNCTIONS(X)                                                                                  \
    X(init, "cuInit", (unsigned))                                                                     \
    X(error_text, "cuGetErrorString", (int, const char **))                                           \
    X(device_count, "cuDeviceGetCount", (int *))                                                      \
    X(device_get, "cuDeviceGet", (int *, int))                                                        \
    X(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                                    \
    X(context_retain, "cuDevicePrimaryCtxRetain", (void **, int))                                     \
    X(context_release, "cuDevicePrimaryCtxRelease_v2", (int))                                         \
    X(context_push, "cuCtxPushCurrent_v2", (void *))                                                  \
    X(context_pop, "cuCtxPopCurrent_v2", (void **))                                                   \
    X(context_wait, "cuCtxSynchronize", (void))                                                       \
    X(module_load, "cuModuleLoadDataEx", (void **, const void *, unsigned, int *, void **))           \
    X(module_unload, "cuModuleUnload", (void *))                                                      \
    X(module_function, "cuModuleGetFunction", (void **, void *, const char *))                        \
    X(memory_alloc, "cuMemAlloc_v2", (uint64_t *, size_t))                                            \
    X(memory_free, "cuMemFree_v2", (uint64_t))                                                        \
    X(to_device, "cuMemcpyHtoD_v2", (uint64_t, const void *, size_t))                                 \
    X(to_host, "cuMemcpyDtoH_v2", (void *, uint64_t, size_t))                                         \
    X(copy, "cuMemcpyDtoDAsync_v2", (uint64_t, uint64_t, size_t, void *))                             \
    X(copy_between, "cuMemcpyPeer", (uint64_t, void *, uint64_t, void *, size_t))                     \
    X(fill, "cuMemsetD8Async", (uint64_t, unsigned char, size_t, void *))                             \
    X(launch, "cuLaunchKernel",                                                                       \
      (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, \
       void **))

struct qn_cuda {
    void *library;
    int device, arch;
    void *context, *module;
#define FIELD(name, symbol, parameters) int(*name) parameters;
    FUNCTIONS(FIELD)
#undef FIELD
};

static int fail(const qn_cuda *c, const char *what, int code)
{
    const char *text = NULL;
    if (c->error_text(code, &text) != SUCCESS || !text)
        text = "unknown error";
    return qn_fail(QUERN_ERROR_DEVICE, "GPU: %s: %s (%d)", what, text, code);
}

static int check(const qn_cuda *c, const char *what, int code)
{
    return code == SUCCESS ? QUERN_OK : fail(c, what, code);
}

/* Calls come from any thread: each has a current context, which is the host's again when a call returns. */
static int enter(qn_cuda *c)
{
    return check(c, "cuCtxPushCurrent", c->context_push(c->context));
}

/* What became of the driver's call `what` in between. */
static int leave(qn_cuda *c, const char *what, int code)
{
    void *popped;
    const int pop = c->context_pop(&popped);
    return code ? fail(c, what, code) : check(c, "cuCtxPopCurrent", pop);
}

/* ---- the device ---- */

static int find_functions(qn_cuda *c, const char *library)
{
#define FIND(name, symbol, parameters)              \
    *(void **)&c->name = dlsym(c->library, symbol); \
    if (!c->name)                                   \
        return qn_fail(QUERN_ERROR_DEVICE, "%s has no %s: the GPU's driver is too old", library, symbol);
    FUNCTIONS(FIND)
#undef FIND
    return QUERN_OK;
}

/* How many GPUs there are: at least 1. */
static int count_devices(const qn_cuda *c, int *out)
{
    int code = c->init(0);
    *out = 0;
    if (code == SUCCESS)
        code = c->device_count(out);
    if (code == SUCCESS && *out > 0)
        return QUERN_OK;
    const char *text = NULL;
    if (code == SUCCESS || c->error_text(code, &text) != SUCCESS || !text)
        text = "the driver finds none";
    return qn_fail(QUERN_ERROR_DEVICE, "there is no GPU here: %s", text);
}

static int open_device(qn_cuda *c, int number)
{
    int n, major = 0, minor = 0, status = count_devices(c, &n);
    if (!status && (number < 0 || number >= n))
        status = qn_fail(QUERN_ERROR_DEVICE, "there is no GPU %d here: the driver finds %d, from cuda:0",
                         number, n);
    if (!status)
        status = check(c, "cuDeviceGet", c->device_get(&c->device, number));
    if (!status)
        status = check(c, "cuDeviceGetAttribute", c->device_attribute(&major, ATTRIBUTE_MAJOR, c->device));
    if (!status)
        status = check(c, "cuDeviceGetAttribute", c->device_attribute(&minor, ATTRIBUTE_MINOR, c->device));
    c->arch = 10 * major + minor;
    if (!status)
        status = check(c, "cuDevicePrimaryCtxRetain", c->context_retain(&c->context, c->device));
    return status;
}

/* The driver alone, without a device. */
static int open_library(qn_cuda **out)
{
    const char *given = getenv("QUERN_CUDA_LIBRARY"), *library = given && *given ? given : "libcuda.so.1";
    *out = NULL;
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return qn_fail(QUERN_ERROR_DEVICE, "there is no GPU here: libcuda.so.1 could not be opened (%s)",
                       dlerror());
    qn_cuda *c = calloc(1, sizeof *c);
    if (!c) {
        dlclose(handle);
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    }
    c->library = handle;
    int status = find_functions(c, library);
    if (status)
        qn_cuda_close(c);
    else
        *out = c;
    return status;
}

int qn_cuda_open(int number, qn_cuda **out)
{
    int status = open_library(out);
    if (!status)
        status = open_device(*out, number);
    if (status) {
        qn_cuda_close(*out);
        *out = NULL;
    }
    return status;
}

int qn_cuda_count(int *out)
{
    qn_cuda *c;
    *out = 0;
    int status = open_library(&c);
    if (!status)
        status = count_devices(c, out);
    qn_cuda_close(c);
    return status;
}

void qn_cuda_close(qn_cuda *c)
{
    if (!c)
        return;
    if (c->context) {
        void *popped;
        if (c->module && c->context_push(c->context) == SUCCESS) {
            c->module_unload(c->module);
            c->context_pop(&popped);
        }
        c->context_release(c->device);
    }
    dlclose(c->library);
    free(c);
}

int qn_cuda_arch(const qn_cuda *c)
{
    return c->arch;
}

/* ---- code ---- */

int qn_cuda_load(qn_cuda *c, const char *ptx)
{
    int status = enter(c);
    return status ? status
                  : leave(c, "the driver refuses the code", c->module_load(&c->module, ptx, 0, NULL, NULL));
}

int qn_cuda_function(qn_cuda *c, const char *name, void **out_function)
{
    return check(c, name, c->module_function(out_function, c->module, name));
}

int qn_cuda_launch(qn_cuda *c, void *function, qn_cuda_address args, int n, int64_t *more, int64_t tasks,
                   int threads)
{
    int64_t first = 0;
    int status = enter(c), code = SUCCESS;
    if (status)
        return status;
    void *parameters[2 + n];
    parameters[0] = &args;
    parameters[1] = &first;
    for (int i = 0; i < n; i++)
        parameters[2 + i] = &more[i];
    for (; first < tasks && !code; first += MOST_BLOCKS) {
        const unsigned blocks = (unsigned)(tasks - first < MOST_BLOCKS ? tasks - first : MOST_BLOCKS);
        code = c->launch(function, blocks, 1, 1, (unsigned)threads, 1, 1, 0, NULL, parameters, NULL);
    }
    return leave(c, "cuLaunchKernel", code);
}

int qn_cuda_wait(qn_cuda *c)
{
    int status = enter(c);
    return status ? status : leave(c, "a kernel failed", c->context_wait());
}

/* ---- memory ---- */

int qn_cuda_alloc(qn_cuda *c, size_t bytes, qn_cuda_address *out)
{
    *out = 0;
    int status = bytes ? enter(c) : QUERN_OK;
    if (status || bytes == 0)
        return status;
    const int code = c->memory_alloc(out, bytes);
    status = leave(c, "cuMemAlloc", SUCCESS);
    return code == SUCCESS ? status
                           : qn_fail(QUERN_ERROR_MEMORY, "GPU: no memory for %zu bytes (%d)", bytes, code);
}

void qn_cuda_free(qn_cuda *c, qn_cuda_address address)
{
    void *popped;
    if (address && c->context_push(c->context) == SUCCESS) {
        c->memory_free(address);
        c->context_pop(&popped);
    }
}

int qn_cuda_clear(qn_cuda *c, qn_cuda_address at, size_t bytes)
{
    int status = bytes ? enter(c) : QUERN_OK;
    return status || !bytes ? status : leave(c, "writing zeros on the GPU", c->fill(at, 0, bytes, NULL));
}

int qn_cuda_to_device(qn_cuda *c, qn_cuda_address to, const void *from, size_t bytes)
{
    int status = bytes ? enter(c) : QUERN_OK;
    return status || !bytes ? status : leave(c, "copying to the GPU", c->to_device(to, from, bytes));
}

int qn_cuda_to_host(qn_cuda *c, void *to, qn_cuda_address from, size_t bytes)
{
    int status = bytes ? enter(c) : QUERN_OK;
    return status || !bytes ? status : leave(c, "copying from the GPU", c->to_host(to, from, bytes));
}

int qn_cuda_copy(qn_cuda *c, qn_cuda_address to, qn_cuda_address from, size_t bytes)
{
    int status = bytes && to != from ? enter(c) : QUERN_OK;
    return status || !bytes || to == from ? status
                                          : leave(c, "copying on the GPU", c->copy(to, from, bytes, NULL));
}

int qn_cuda_copy_between(qn_cuda *c, qn_cuda_address to, qn_cuda *from_device, qn_cuda_address from,
                         size_t bytes)
{
    int status = bytes ? enter(c) : QUERN_OK;
    return status || !bytes ? status
                            : leave(c, "copying from one GPU to another",
                                    c->copy_between(to, c->context, from, from_device->context, bytes));
}
