/* The thread pool behind quern_ctx.parallel_for. Public calls are in quern.h (quern_pool_*).
 *
 * A pool serves one parallel_for at a time: a call from inside a task, or while another host thread's call is under
 * way, runs its tasks inline. Tasks are claimed one by one from a counter, so a thread that lost its core delays only the
 * task it holds. Workers spin through a run and QN_POOL_SPIN_NS after it, then sleep on a futex. */
#ifndef QN_RUNTIME_POOL_H
#define QN_RUNTIME_POOL_H

#include "quern.h"

#define QN_POOL_SPIN_NS 50000
#define QN_POOL_MAX_THREADS 256

/* Threads this process may use: CPU affinity, lowered by a cgroup's CPU quota; at least 1. */
int qn_usable_threads(void);

#endif
