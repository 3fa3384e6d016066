/* The GPUs that tensors lie on. Each is opened when it is first asked for, and stays open: tensors may live as long as the
 * process. Any thread may call these. */
#ifndef QN_RUNTIME_DEVICE_H
#define QN_RUNTIME_DEVICE_H

#include "runtime/cuda/driver.h"

typedef struct qn_device {
    int number;
    char name[16]; /* "cuda:0" */
    qn_cuda *cuda;
} qn_device;

/* "cpu" (NULL in *out), "cuda" (the first GPU), "cuda:1". A status, with a message that begins with `call`. */
int qn_device_find(const char *call, const char *name, qn_device **out);
const char *qn_device_name(const qn_device *device); /* NULL: "cpu" */

#endif
