/* The GPUs that tensors lie on. Each is opened when it is first asked for, and stays open: tensors may live as long as the
 * process. Any thread may call these. */
#ifndef QN_RUNTIME_DEVICE_H
#define QN_RUNTIME_DEVICE_H

#include <pthread.h>

#include "runtime/cuda/driver.h"

typedef struct qn_device_block {
    qn_cuda_address at;
    size_t bytes; /* of the block; at least what was asked for */
} qn_device_block;

typedef struct qn_device {
    int number;
    char name[16]; /* "cuda:0" */
    qn_cuda *cuda;
    pthread_mutex_t lock; /* of what follows */
    int n_kept, capacity;
    qn_device_block *kept; /* that were given back */
} qn_device;

/* "cpu" (NULL in *out), "cuda" (the first GPU), "cuda:1". A status, with a message that begins with `call`. */
int qn_device_find(const char *call, const char *name, qn_device **out);
/* Memory on a device. The driver waits for the device when memory is freed, so blocks that are given back are kept for the next
 * who asks. Everything happens in one order there: what was asked of the device with a block is done before what its next owner
 * asks. QUERN_ERROR_MEMORY where there is none, also without those that are kept. */
int qn_device_take(qn_device *device, size_t bytes, qn_device_block *out);
void qn_device_give(qn_device *device, qn_device_block block);

const char *qn_device_name(const qn_device *device); /* NULL: "cpu" */

#endif
