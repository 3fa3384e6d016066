/* A GPU's driver for machines without a GPU, opened through QUERN_CUDA_LIBRARY: memory that only device code and copies can
 * touch, and kernels that run as the PTX says (ptx.h).
 *
 * Addresses of device memory have the device's number + 1 in bits 48 to 55: the host faults where it uses one, a device that is not
 * the memory's is told so, and whatever is not inside of something that is allocated is an error. A driver's call needs a
 * current context, and memory and kernels of that context's device.
 *
 * In the environment:
 *   FAKE_CUDA_LOG=FILE      one line a call: what was asked, in order
 *   FAKE_CUDA_DEVICES=N     how many GPUs there are: 1
 *   FAKE_CUDA_FAIL=N        kernels do nothing but report that the check of node N has failed
 *   FAKE_CUDA_BACKWARDS=1   blocks and threads run last first
 *   FAKE_CUDA_MEMORY=BYTES  what a device has
 * A program that opens the library itself may ask fake_cuda_live (allocations that are not freed) and fake_cuda_mistakes. */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptx.h"

enum { MAJOR = 75, MOST_DEVICES = 8 };
enum {
    INVALID = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_PTX = 218,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700
};

typedef struct context {
    int device;
} context;

typedef struct allocation {
    char *data;
    size_t bytes;
    int device;
    struct allocation *next;
} allocation;

typedef struct module {
    ptx_module *ptx;
    const context *context;
} module;

/* A function keeps its module: the name alone would not do. */
typedef struct function {
    const ptx_kernel *kernel;
    module *module;
    struct function *next;
} function;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static const context contexts[MOST_DEVICES] = { { 0 }, { 1 }, { 2 }, { 3 }, { 4 }, { 5 }, { 6 }, { 7 } };
static int n_uses[MOST_DEVICES];
enum { MOST_PUSHED = 4 }; /* calls are not nested: one that is not popped shows soon */
static _Thread_local const context *current, *pushed[MOST_PUSHED];
static _Thread_local int n_pushed;
static allocation *allocations;
static function *functions;
static long n_live, n_mistakes;
static size_t bytes_used[MOST_DEVICES];
static char message[600] = "an error";

long fake_cuda_live(void);
long fake_cuda_mistakes(void);

static void say(const char *format, ...)
{
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f)
        return;
    va_list list;
    va_start(list, format);
    vfprintf(f, format, list);
    va_end(list);
    fclose(f);
}

static int mistake(int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    n_mistakes++;
    say("mistake: %s\n", message);
    fprintf(stderr, "fake_cuda: %s\n", message);
    return code;
}

long fake_cuda_live(void)
{
    return n_live;
}

long fake_cuda_mistakes(void)
{
    return n_mistakes;
}

/* ---- devices ---- */

static int n_devices(void)
{
    const char *text = getenv("FAKE_CUDA_DEVICES");
    return text ? atoi(text) : 1;
}

int cuInit(unsigned flags)
{
    return flags ? INVALID : 0;
}

int cuGetErrorString(int code, const char **out)
{
    *out = code == OUT_OF_MEMORY ? "out of memory" : message;
    return 0;
}

int cuDeviceGetCount(int *out)
{
    *out = n_devices();
    return 0;
}

int cuDeviceGet(int *out, int number)
{
    *out = number;
    return number < 0 || number >= n_devices() ? INVALID_DEVICE : 0;
}

int cuDeviceGetAttribute(int *out, int attribute, int device)
{
    *out = attribute == MAJOR ? 9 : 0;
    return device < 0 || device >= n_devices() ? INVALID_DEVICE : 0;
}

int cuDevicePrimaryCtxRetain(void **out, int device)
{
    pthread_mutex_lock(&lock);
    n_uses[device]++;
    pthread_mutex_unlock(&lock);
    *out = (void *)&contexts[device];
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    say("release\n");
    pthread_mutex_lock(&lock);
    int code = --n_uses[device] < 0 ? mistake(INVALID_CONTEXT, "a context is released too often") : 0;
    pthread_mutex_unlock(&lock);
    return code;
}

int cuCtxPushCurrent_v2(void *c)
{
    if (n_pushed == MOST_PUSHED)
        return mistake(INVALID_CONTEXT, "contexts are pushed and not popped");
    pushed[n_pushed++] = current;
    current = c;
    return 0;
}

int cuCtxPopCurrent_v2(void **out)
{
    if (n_pushed == 0)
        return mistake(INVALID_CONTEXT, "there is no context to pop");
    *out = (void *)(uintptr_t)current;
    current = pushed[--n_pushed];
    return 0;
}

int cuCtxSynchronize(void)
{
    say("wait\n");
    return current ? 0 : mistake(INVALID_CONTEXT, "there is no current context");
}

/* ---- memory ---- */

static char *host_of(uint64_t address)
{
    return (char *)(uintptr_t)(address & (((uint64_t)1 << 48) - 1));
}

static int device_of(uint64_t address)
{
    return (int)(address >> 48) - 1;
}

/* The host's address of these bytes of a device; NULL where they are not inside of one allocation. Under the lock. */
static void *reach_on(int device, uint64_t address, size_t bytes)
{
    char *data = host_of(address);
    if (device_of(address) != device)
        return NULL;
    for (allocation *a = allocations; a; a = a->next)
        if (a->device == device && data >= a->data && bytes <= a->bytes &&
            (size_t)(data - a->data) <= a->bytes - bytes)
            return data;
    return NULL;
}

static void *reach(uint64_t address, size_t bytes)
{
    return reach_on(current->device, address, bytes);
}

int cuMemAlloc_v2(uint64_t *out, size_t bytes)
{
    const char *most = getenv("FAKE_CUDA_MEMORY");
    if (!current || bytes == 0)
        return mistake(INVALID, "an allocation of %zu bytes%s", bytes, current ? "" : " without a context");
    pthread_mutex_lock(&lock);
    int code = 0;
    if (most && bytes_used[current->device] + bytes > strtoull(most, NULL, 10)) {
        code = OUT_OF_MEMORY;
    } else {
        allocation *a = calloc(1, sizeof *a);
        *a = (allocation){
            .data = malloc(bytes), .bytes = bytes, .device = current->device, .next = allocations
        };
        memset(a->data, 0xa5, bytes); /* it holds anything */
        allocations = a;
        bytes_used[current->device] += bytes;
        n_live++;
        *out = (uint64_t)(uintptr_t)a->data | (uint64_t)(current->device + 1) << 48;
    }
    pthread_mutex_unlock(&lock);
    say("alloc %zu\n", bytes);
    return code;
}

int cuMemFree_v2(uint64_t address)
{
    int code = 0;
    say("free\n");
    pthread_mutex_lock(&lock);
    allocation **at = &allocations;
    while (*at && (*at)->data != host_of(address))
        at = &(*at)->next;
    if (!*at || !current || (*at)->device != current->device || device_of(address) != current->device) {
        code = mistake(INVALID, "%#llx is freed, which is no allocation of this device",
                       (unsigned long long)address);
    } else {
        allocation *a = *at;
        *at = a->next;
        bytes_used[a->device] -= a->bytes;
        n_live--;
        free(a->data);
        free(a);
    }
    pthread_mutex_unlock(&lock);
    return code;
}

/* Copies where both ends are what they should be; `to_device` or `from_device` -1: the host. */
static int copied(int to_device, uint64_t to, int from_device, uint64_t from, size_t bytes)
{
    pthread_mutex_lock(&lock);
    void *target = to_device < 0 ? (void *)(uintptr_t)to : reach_on(to_device, to, bytes);
    void *source = from_device < 0 ? (void *)(uintptr_t)from : reach_on(from_device, from, bytes);
    if (target && source)
        memmove(target, source, bytes);
    pthread_mutex_unlock(&lock);
    return target && source ? 0
                            : mistake(ILLEGAL_ADDRESS, "a copy of %zu bytes from %#llx to %#llx", bytes,
                                      (unsigned long long)from, (unsigned long long)to);
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes)
{
    say("in %zu\n", bytes);
    return !current ? INVALID : copied(current->device, to, -1, (uint64_t)(uintptr_t)from, bytes);
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes)
{
    say("out %zu\n", bytes);
    return current ? copied(-1, (uint64_t)(uintptr_t)to, current->device, from, bytes) : INVALID;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream)
{
    say("copy %zu\n", bytes);
    return stream || !current ? INVALID : copied(current->device, to, current->device, from, bytes);
}

int cuMemcpyPeer(uint64_t to, void *to_context, uint64_t from, void *from_context, size_t bytes)
{
    say("peer %zu\n", bytes);
    return to_context && from_context
               ? copied(((context *)to_context)->device, to, ((context *)from_context)->device, from, bytes)
               : INVALID;
}

int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream)
{
    say("fill %zu\n", bytes);
    pthread_mutex_lock(&lock);
    void *data = current ? reach(at, bytes) : NULL;
    if (data)
        memset(data, value, bytes);
    pthread_mutex_unlock(&lock);
    return stream || !data
               ? mistake(ILLEGAL_ADDRESS, "%zu bytes are filled at %#llx", bytes, (unsigned long long)at)
               : 0;
}

/* ---- code ---- */

int cuModuleLoadDataEx(void **out, const void *image, unsigned n, int *options, void **values)
{
    (void)options, (void)values;
    say("module\n");
    if (n || !current || !strstr(image, ".target sm_90"))
        return mistake(INVALID_PTX, "the module is not for this device");
    char error[512];
    ptx_module *ptx = ptx_parse(image, error);
    if (!ptx)
        return mistake(INVALID_PTX, "%s", error);
    module *made = calloc(1, sizeof *made);
    *made = (module){ .ptx = ptx, .context = current };
    *out = made;
    return 0;
}

int cuModuleUnload(void *unloaded)
{
    say("unload\n");
    module *m = unloaded;
    pthread_mutex_lock(&lock);
    for (function **at = &functions; *at;)
        if ((*at)->module == m) {
            function *f = *at;
            *at = f->next;
            free(f);
        } else {
            at = &(*at)->next;
        }
    pthread_mutex_unlock(&lock);
    ptx_free(m->ptx);
    free(m);
    return 0;
}

int cuModuleGetFunction(void **out, void *of, const char *name)
{
    module *m = of;
    const ptx_kernel *kernel = ptx_find(m->ptx, name);
    if (!kernel)
        return mistake(NOT_FOUND, "the module has no %s", name);
    function *f = calloc(1, sizeof *f);
    pthread_mutex_lock(&lock);
    *f = (function){ .kernel = kernel, .module = m, .next = functions };
    functions = f;
    pthread_mutex_unlock(&lock);
    *out = f;
    return 0;
}

int cuLaunchKernel(void *launched, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra)
{
    const function *f = launched;
    const int n = ptx_params(f->kernel);
    uint64_t params[n];
    for (int i = 0; i < n; i++)
        params[i] = *(uint64_t *)parameters[i];
    const char *fail = getenv("FAKE_CUDA_FAIL");
    say("launch blocks %u threads %u\n", gx, bx);
    if (gx == 0 || gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || stream || extra || !current)
        return mistake(INVALID, "a launch of %u blocks", gx);
    if (f->module->context != current || (int)bx > ptx_threads(f->kernel))
        return mistake(INVALID, "a launch of %u threads, or in another context", bx);
    char error[512];
    int code = 0;
    pthread_mutex_lock(&lock);
    int64_t *args = reach(params[0], sizeof *args);
    if (!args || (fail ? 0 : args[0] != -1))
        code = mistake(INVALID, "args[0] is %lld, not -1", args ? (long long)args[0] : 0);
    else if (fail)
        args[0] = atoi(fail);
    for (unsigned i = 0; i < gx && !fail && !code; i++) {
        const bool backwards = getenv("FAKE_CUDA_BACKWARDS") != NULL;
        if (!ptx_run(f->kernel, backwards ? gx - 1 - i : i, (int)bx, backwards, params, reach, error))
            code = mistake(ILLEGAL_ADDRESS, "%s", error);
    }
    pthread_mutex_unlock(&lock);
    return code;
}
