/* Thread pool: see pool.h.
 *
 * One job at a time lies in the pool. `open` says that it may be entered; a worker first counts itself into `inside`, then
 * looks at `open`, and the caller first closes, then waits until nobody is inside. Both orders are sequentially
 * consistent, so a worker is either seen by the caller or sees that the job is closed. */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime/pool.h"

struct quern_pool {
    /* written by the caller while no job is open */
    void (*task)(void *arg, int64_t i);
    void *arg;
    int64_t n;
    int n_workers;
    pthread_t *workers;
    pthread_mutex_t busy; /* held through a parallel_for */
    atomic_bool quit;
    alignas(64) atomic_int_least64_t next; /* first task nobody has claimed */
    alignas(64) atomic_int inside;         /* workers that may look at the job */
    atomic_int open;
    alignas(64) atomic_uint epoch; /* counts jobs; what sleepers wait on */
    atomic_int sleepers;
};

static _Thread_local bool inside_task;

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, QN_POOL_MAX_THREADS, NULL, NULL, 0);
}

static void run_tasks(quern_pool *pool)
{
    inside_task = true;
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (i >= pool->n)
            break;
        pool->task(pool->arg, i);
    }
    inside_task = false;
}

static void *work(void *arg)
{
    quern_pool *pool = arg;
    unsigned seen = 0;
    for (;;) {
        int64_t deadline = 0;
        unsigned epoch;
        for (unsigned spins = 1; (epoch = atomic_load(&pool->epoch)) == seen; spins++) {
            pause_cpu();
            if (spins % 256)
                continue;
            int64_t now = now_ns();
            if (!deadline)
                deadline = now + QN_POOL_SPIN_NS;
            if (now < deadline)
                continue;
            atomic_fetch_add(&pool->sleepers, 1);
            if (!atomic_load(&pool->quit))
                futex_wait(&pool->epoch, seen);
            atomic_fetch_sub(&pool->sleepers, 1);
        }
        seen = epoch;
        if (atomic_load(&pool->quit))
            return NULL;
        atomic_fetch_add(&pool->inside, 1);
        if (atomic_load(&pool->open))
            run_tasks(pool);
        atomic_fetch_sub(&pool->inside, 1);
    }
}

void quern_pool_parallel_for(void *handle, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    quern_pool *pool = handle;
    if (n <= 1 || !pool || pool->n_workers == 0 || inside_task || pthread_mutex_trylock(&pool->busy)) {
        for (int64_t i = 0; i < n; i++)
            task(arg, i);
        return;
    }
    /* A worker that came late to the last job may still be about to find it closed. It reads nothing of the job then. */
    pool->task = task;
    pool->arg = arg;
    pool->n = n;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store(&pool->open, 1);
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers))
        futex_wake_all(&pool->epoch);
    run_tasks(pool);
    atomic_store(&pool->open, 0);
    for (unsigned spins = 1; atomic_load(&pool->inside); spins++) {
        pause_cpu();
        if (spins % 1024 == 0)
            sched_yield(); /* the worker may have lost its core: to us */
    }
    pthread_mutex_unlock(&pool->busy);
}

/* "max 100000" or "200000 100000" in cgroup v2's cpu.max; two files in v1. 0: no limit. */
static int cgroup_threads(void)
{
    long long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2)
            quota = 0;
        fclose(f);
    } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re"))) {
        if (fscanf(f, "%lld", &quota) != 1)
            quota = 0;
        fclose(f);
        if (quota > 0 && (f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re"))) {
            if (fscanf(f, "%lld", &period) != 1)
                period = 0;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int qn_usable_threads(void)
{
    cpu_set_t set;
    int n =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    int quota = cgroup_threads();
    if (quota && quota < n)
        n = quota;
    return n < 1 ? 1 : n > QN_POOL_MAX_THREADS ? QN_POOL_MAX_THREADS : n;
}

quern_pool *quern_pool_new(int threads)
{
    if (threads <= 0)
        threads = qn_usable_threads();
    if (threads > QN_POOL_MAX_THREADS)
        threads = QN_POOL_MAX_THREADS;
    quern_pool *pool = aligned_alloc(alignof(quern_pool), sizeof *pool);
    pthread_t *workers = calloc((size_t)threads, sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    pool->workers = workers;
    pthread_mutex_init(&pool->busy, NULL);
    /* A pool with fewer workers than asked for is slower, not wrong. */
    while (pool->n_workers < threads - 1 && pthread_create(&workers[pool->n_workers], NULL, work, pool) == 0)
        pool->n_workers++;
    return pool;
}

void quern_pool_free(quern_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->quit, true);
    atomic_fetch_add(&pool->epoch, 1);
    futex_wake_all(&pool->epoch);
    for (int i = 0; i < pool->n_workers; i++)
        pthread_join(pool->workers[i], NULL);
    pthread_mutex_destroy(&pool->busy);
    free(pool->workers);
    free(pool);
}

int quern_pool_threads(const quern_pool *pool)
{
    return pool ? pool->n_workers + 1 : 1;
}
