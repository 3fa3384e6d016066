/* Collectives beside what their rank computes: a thread, made when the first is started, runs them one after the other. Needs
 * nothing but quern_abi.h, as dist.h. One thread at a time starts, waits and so on. */
#ifndef QN_RUNTIME_DIST_CARRIER_H
#define QN_RUNTIME_DIST_CARRIER_H

#include <pthread.h>
#include <stdbool.h>

#include "quern_abi.h"

typedef int (*qn_carried)(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how);

typedef struct qn_started {
    qn_carried call;
    quern_comm *comm;
    const void *in;
    void *out;
    int64_t n;
    int32_t dtype, how;
    int status;
} qn_started;

typedef struct qn_carrier {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool beside; /* otherwise what is started runs at once */
    bool runs;   /* there is a thread */
    bool leaves; /* when all is done */
    int failed;  /* a status: communicators that have failed do so for good, and nothing runs any more */
    qn_started *items;
    size_t capacity, started, ended, waited; /* of items; none once all were waited for */
} qn_carrier;

void qn_carrier_init(qn_carrier *carrier, bool beside);
/* Until all that was started has ended, then the thread ends. */
void qn_carrier_release(qn_carrier *carrier);
int qn_carrier_start(qn_carrier *carrier, const qn_started *what);
/* Until the oldest that was not waited for has ended; gives its status. */
int qn_carrier_wait(qn_carrier *carrier);
/* Until all that was started has ended. Their statuses stay for those who wait. */
void qn_carrier_drain(qn_carrier *carrier);
/* Has something that was started not ended? */
bool qn_carrier_busy(qn_carrier *carrier);

#endif
