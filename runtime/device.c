/* See device.h. */
#include "runtime/device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quern_tensor.h"
#include "runtime/error.h"

enum { MOST_DEVICES = 64 };

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
