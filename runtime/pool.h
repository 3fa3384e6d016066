/* The thread pool behind quern_ctx.parallel_for. Public calls are in quern.h (quern_pool_*).
 *
 * A pool serves one parallel_for at a time: a call from inside a task, or while another host thread's call is under
 * way, runs its tasks inline. Each thread begins with an equal share of consecutive tasks, the same ones in each job of that
 * size (what they left in its core's cache is found there by the next), and takes from the others' when it has done its own:
 * a thread that lost its core delays only the task it holds. Workers spin through a run, unless one kernel of it takes
 * very long, and QN_POOL_SPIN_NS after it; then they sleep on a futex, and may not wake on the caller's core: schedulers that
 * keep work on few cores would put them there. Signals are left to the host's threads. In a child of fork() the pool starts new
 * workers when it is next used. */
#ifndef QN_RUNTIME_POOL_H
#define QN_RUNTIME_POOL_H

#include "quern.h"

#define QN_POOL_SPIN_NS 50000
#define QN_POOL_RUN_SPIN_NS 1000000
#define QN_POOL_MAX_THREADS 256

/* Threads this process may use: CPU affinity, lowered by a cgroup's CPU quota; at least 1. */
int qn_usable_threads(void);

/* CPUs, rounded up, that the cgroups of a list like /proc/self/cgroup leave a process, those that they are in included; 0: no
 * limit. */
int qn_cgroup_threads(const char *list, const char *root);

/* Around what makes several jobs with little between them. NULL is fine. */
void qn_pool_enter_run(quern_pool *pool);
void qn_pool_leave_run(quern_pool *pool);

#endif
