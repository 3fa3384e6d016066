/* See device.h. */
#include "runtime/device.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quern_tensor.h"
#include "runtime/error.h"

enum { MOST_DEVICES = 64, MOST_KEPT = 4096, GRAIN = 512, LARGE = 1 << 20, LARGE_GRAIN = 2 << 20 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static qn_device *devices[MOST_DEVICES];

/* The number in "cuda" or "cuda:1"; -1: it is no such name. */
static int number_of(const char *name)
{
    if (strcmp(name, "cuda") == 0)
        return 0;
    char *end;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9')
        return -1;
    long number = strtol(name + 5, &end, 10);
    return *end || number >= MOST_DEVICES ? -1 : (int)number;
}

static int open_device(int number, qn_device **out)
{
    qn_device *device = calloc(1, sizeof *device);
    if (!device)
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    int status = qn_cuda_open(number, &device->cuda);
    if (status) {
        free(device);
        return status;
    }
    device->number = number;
    pthread_mutex_init(&device->lock, NULL);
    snprintf(device->name, sizeof device->name, "cuda:%d", number);
    *out = devices[number] = device;
    return QUERN_OK;
}

int qn_device_find(const char *call, const char *name, qn_device **out)
{
    *out = NULL;
    if (!name || strcmp(name, "cpu") == 0)
        return QUERN_OK;
    const int number = number_of(name);
    if (number < 0)
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: there is no device '%s': cpu, cuda (the first GPU), cuda:1, …", call, name);
    pthread_mutex_lock(&lock);
    *out = devices[number];
    int status = *out ? QUERN_OK : open_device(number, out);
    pthread_mutex_unlock(&lock);
    return status;
}

const char *qn_device_name(const qn_device *device)
{
    return device ? device->name : "cpu";
}

/* ---- memory ---- */

/* The smallest kept block that is large enough, but not twice as large. */
static bool take_kept(qn_device *device, size_t bytes, qn_device_block *out)
{
    pthread_mutex_lock(&device->lock);
    int best = -1;
    for (int i = 0; i < device->n_kept; i++) {
        const size_t has = device->kept[i].bytes;
        if (has >= bytes && has / 2 <= bytes && (best < 0 || has < device->kept[best].bytes))
            best = i;
    }
    if (best >= 0) {
        *out = device->kept[best];
        device->kept[best] = device->kept[--device->n_kept];
    }
    pthread_mutex_unlock(&device->lock);
    return best >= 0;
}

static void trim(qn_device *device)
{
    pthread_mutex_lock(&device->lock);
    while (device->n_kept > 0)
        qn_cuda_free(device->cuda, device->kept[--device->n_kept].at);
    pthread_mutex_unlock(&device->lock);
}

int qn_device_take(qn_device *device, size_t bytes, qn_device_block *out)
{
    const size_t grain = bytes < LARGE ? GRAIN : LARGE_GRAIN;
    const size_t rounded = bytes ? (bytes + grain - 1) / grain * grain : grain;
    if (take_kept(device, rounded, out))
        return QUERN_OK;
    out->bytes = rounded;
    int status = qn_cuda_alloc(device->cuda, rounded, &out->at);
    if (status != QUERN_ERROR_MEMORY)
        return status;
    trim(device);
    status = qn_cuda_alloc(device->cuda, rounded, &out->at);
    return status == QUERN_ERROR_MEMORY
               ? qn_fail(status, "%s has no memory for %zu bytes", device->name, bytes)
               : status;
}

void qn_device_give(qn_device *device, qn_device_block block)
{
    pthread_mutex_lock(&device->lock);
    if (device->n_kept == device->capacity && device->capacity < MOST_KEPT) {
        const int capacity = device->capacity ? 2 * device->capacity : 64;
        qn_device_block *more = realloc(device->kept, (size_t)capacity * sizeof *more);
        device->kept = more ? more : device->kept;
        device->capacity = more ? capacity : device->capacity;
    }
    const bool is_kept = device->n_kept < device->capacity;
    if (is_kept)
        device->kept[device->n_kept++] = block;
    pthread_mutex_unlock(&device->lock);
    if (!is_kept)
        qn_cuda_free(device->cuda, block.at);
}

/* ---- the public calls ---- */

int quern_device_trim(const char *name)
{
    qn_device *device;
    int status = qn_device_find("quern_device_trim", name, &device);
    if (!status && device)
        trim(device);
    return status;
}

int quern_device_count(void)
{
    int n;
    return qn_cuda_count(&n) ? 0 : n;
}

int quern_device_wait(const char *name)
{
    qn_device *device;
    int status = qn_device_find("quern_device_wait", name, &device);
    return status || !device ? status : qn_cuda_wait(device->cuda);
}
