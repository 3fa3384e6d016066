/* A GPU driver that has memory but runs nothing: it writes what is asked of it into the file $FAKE_CUDA_LOG. For
 * test_gpu.sh, on machines without a GPU. $FAKE_CUDA_FAIL=N: kernels report that the check of node N has failed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAJOR = 75, OUT_OF_MEMORY = 2, INVALID = 1 };

static char *memory; /* the newest, the largest */
static size_t memory_size;
static char names[64][128];
static int n_names;

static void say(const char *format, long a, long b, const char *text)
{
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f)
        return;
    fprintf(f, format, a, b, text);
    fclose(f);
}

int cuInit(unsigned flags)
{
    return flags ? INVALID : 0;
}
int cuGetErrorString(int code, const char **out)
{
    *out = code == INVALID ? "invalid" : "an error";
    return 0;
}
int cuDeviceGetCount(int *out)
{
    *out = getenv("FAKE_CUDA_NONE") ? 0 : 1;
    return 0;
}
int cuDeviceGet(int *out, int number)
{
    *out = number;
    return 0;
}
int cuDeviceGetAttribute(int *out, int attribute, int device)
{
    *out = attribute == MAJOR ? 9 : 0;
    return device;
}
int cuDevicePrimaryCtxRetain(void **out, int device)
{
    *out = names;
    return device;
}
int cuDevicePrimaryCtxRelease_v2(int device)
{
    say("release\n", 0, 0, "");
    return device;
}
int cuCtxSetCurrent(void *context)
{
    return context == names || !context ? 0 : INVALID;
}
int cuCtxSynchronize(void)
{
    return 0;
}
int cuModuleLoadDataEx(void **out, const void *image, unsigned n, int *options, void **values)
{
    (void)options, (void)values;
    *out = &n_names;
    say("module\n", 0, 0, "");
    return n || !strstr(image, ".target sm_90");
}
int cuModuleUnload(void *module)
{
    say("unload\n", 0, 0, "");
    return module == &n_names ? 0 : INVALID;
}
int cuModuleGetFunction(void **out, void *module, const char *name)
{
    if (module != &n_names || n_names == 64)
        return INVALID;
    snprintf(names[n_names], sizeof names[0], "%s", name);
    *out = names[n_names++];
    return 0;
}
int cuMemAlloc_v2(uint64_t *out, size_t bytes)
{
    char *made = calloc(1, bytes);
    *out = (uint64_t)(uintptr_t)made;
    if (bytes > memory_size) {
        memory = made;
        memory_size = bytes;
    }
    say("alloc %ld\n", (long)bytes, 0, "");
    return made ? 0 : OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address)
{
    free((void *)(uintptr_t)address);
    say("free\n", 0, 0, "");
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    memcpy((void *)(uintptr_t)to, from, bytes);
    return stream ? INVALID : 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes)
{
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream)
{
    memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    say("copy %ld\n", (long)bytes, 0, "");
    return stream ? INVALID : 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra)
{
    int64_t *args = *(int64_t **)parameters[0], first = *(int64_t *)parameters[1];
    const char *fail = getenv("FAKE_CUDA_FAIL");
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || stream || extra || first != 0)
        return INVALID;
    /* the last buffer of these kernels is the output */
    if ((char *)args < memory || (char *)args >= memory + memory_size || (fail ? 0 : args[0] != -1))
        return INVALID;
    if (fail)
        args[0] = atoi(fail);
    say("launch blocks %ld threads %ld %s\n", (long)gx, (long)bx, function);
    return 0;
}
