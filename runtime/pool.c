/* Thread pool: see pool.h.
 *
 * One job at a time lies in the pool. `open` says that it may be entered; a worker first counts itself into `inside`, then
 * looks at `open`, and the caller first closes, then waits until nobody is inside. Both orders are sequentially
 * consistent, so a worker is either seen by the caller or sees that the job is closed.
 *
 * Each thread has a share: a range of tasks, [first, end) in one word. Its owner takes tasks from the front, one at a time;
 * who has none left takes half of another's from the back, as a share of his own (`down`: from the other ends). Every change is one exchange of the
 * whole word, which is all there is to know about a share: an exchange that succeeds is right however old the look was. */
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

typedef struct share {
    alignas(64)
        atomic_uint_least64_t range; /* first task in the low half, behind the last in the high half */
} share;

typedef struct worker {
    quern_pool *pool;
    int number; /* of its share */
    pthread_t thread;
} worker;

struct quern_pool {
    /* written by the caller while no job is open */
    void (*task)(void *arg, int64_t i);
    void *arg;
    int64_t base;    /* what is added to the numbers in the shares */
    bool down;       /* each thread goes from the end of its share to the front */
    atomic_int core; /* of the last caller; -1: unknown */
    int n_workers;   /* the caller's: workers may run before it is known */
    int n_wanted;    /* workers that were asked for */
    worker *workers;
    pthread_mutex_t busy; /* held through a parallel_for */
    atomic_bool quit;
    atomic_int runs;               /* runs of sessions under way: more jobs are to be expected */
    share *shares;                 /* of the caller, then of the workers */
    alignas(64) atomic_int inside; /* workers that may look at the job */
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

static void futex_wake(atomic_uint *word, int most)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, most, NULL, NULL, 0);
}

static uint64_t range(int64_t first, int64_t end)
{
    return (uint64_t)first | (uint64_t)end << 32;
}

static int64_t first_of(uint64_t range)
{
    return (int64_t)(range & UINT32_MAX);
}

static int64_t end_of(uint64_t range)
{
    return (int64_t)(range >> 32);
}

/* The next task of the share, or -1. */
static int64_t take_one(share *own, bool down)
{
    uint64_t seen = atomic_load_explicit(&own->range, memory_order_relaxed);
    while (first_of(seen) < end_of(seen)) {
        const int64_t first = first_of(seen) + !down, end = end_of(seen) - down;
        if (atomic_compare_exchange_weak_explicit(&own->range, &seen, range(first, end), memory_order_relaxed,
                                                  memory_order_relaxed))
            return down ? end : first - 1;
    }
    return -1;
}

/* Moves the far half of another's share to an empty one. false: nobody has any tasks left. */
static bool take_half(quern_pool *pool, int number)
{
    const int n = pool->n_workers + 1;
    for (int i = 1; i < n; i++) {
        share *other = &pool->shares[(number + i) % n];
        uint64_t seen = atomic_load_explicit(&other->range, memory_order_relaxed);
        while (first_of(seen) < end_of(seen)) {
            const int64_t n_left = (end_of(seen) - first_of(seen)) / 2, first = first_of(seen),
                          end = end_of(seen);
            const uint64_t left = pool->down ? range(end - n_left, end) : range(first, first + n_left);
            const uint64_t taken = pool->down ? range(first, end - n_left) : range(first + n_left, end);
            if (!atomic_compare_exchange_weak_explicit(&other->range, &seen, left, memory_order_relaxed,
                                                       memory_order_relaxed))
                continue;
            atomic_store_explicit(&pool->shares[number].range, taken, memory_order_relaxed);
            return true;
        }
    }
    return false;
}

static void run_tasks(quern_pool *pool, int number)
{
    inside_task = true;
    do
        for (int64_t i; (i = take_one(&pool->shares[number], pool->down)) >= 0;)
            pool->task(pool->arg, pool->base + i);
    while (take_half(pool, number));
    inside_task = false;
}

/* A thread that woke on the caller's core would wait for it, or stop it: that core is forbidden meanwhile. */
static void sleep_apart(quern_pool *pool, unsigned seen)
{
    cpu_set_t all, apart, now;
    const int core = atomic_load_explicit(&pool->core, memory_order_relaxed);
    bool moved = core >= 0 && core < CPU_SETSIZE && sched_getaffinity(0, sizeof all, &all) == 0;
    if (moved) {
        apart = all;
        CPU_CLR(core, &apart);
        moved = CPU_COUNT(&apart) >= pool->n_wanted && sched_setaffinity(0, sizeof apart, &apart) == 0;
    }
    atomic_fetch_add(&pool->sleepers, 1);
    if (!atomic_load(&pool->quit))
        futex_wait(&pool->epoch, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
    /* unless somebody else has set it meanwhile */
    if (moved && sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &apart))
        sched_setaffinity(0, sizeof all, &all);
}

/* The number of the next job, which is another than `seen`. */
static unsigned wait_for_job(quern_pool *pool, unsigned seen)
{
    unsigned epoch;
    int64_t start = 0, expected = 0; /* when it began to wait; when a job was last to be expected */
    for (unsigned spins = 1; (epoch = atomic_load(&pool->epoch)) == seen; spins++) {
        pause_cpu();
        if (spins % 32)
            continue;
        const int64_t now = now_ns();
        if (!start)
            start = expected = now;
        if (atomic_load_explicit(&pool->runs, memory_order_relaxed) && now - start < QN_POOL_RUN_SPIN_NS)
            expected = now;
        if (now - expected >= QN_POOL_SPIN_NS ||
            sched_getcpu() == atomic_load_explicit(&pool->core, memory_order_relaxed))
            sleep_apart(pool, seen);
    }
    return epoch;
}

static void *work(void *arg)
{
    const worker *self = arg;
    quern_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_job(pool, seen);
        if (atomic_load(&pool->quit))
            return NULL;
        atomic_fetch_add(&pool->inside, 1);
        if (atomic_load(&pool->open))
            run_tasks(pool, self->number);
        atomic_fetch_sub(&pool->inside, 1);
    }
}

void qn_pool_enter_run(quern_pool *pool)
{
    if (pool)
        atomic_fetch_add_explicit(&pool->runs, 1, memory_order_relaxed);
}

void qn_pool_leave_run(quern_pool *pool)
{
    if (pool)
        atomic_fetch_sub_explicit(&pool->runs, 1, memory_order_relaxed);
}

/* Tasks base … base + n - 1, with the pool held. */
static void run_job(quern_pool *pool, int64_t base, int64_t n)
{
    const int threads = pool->n_workers + 1;
    /* A worker that came late to the last job may still be about to find it closed. It reads nothing of the job then. */
    pool->base = base;
    for (int t = 0; t < threads; t++)
        atomic_store_explicit(&pool->shares[t].range,
                              range((n * t + threads - 1) / threads, (n * (t + 1) + threads - 1) / threads),
                              memory_order_relaxed);
    atomic_store(&pool->open, 1);
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers))
        futex_wake(&pool->epoch, (int)(n - 1 < pool->n_workers ? n - 1 : pool->n_workers));
    run_tasks(pool, 0);
    atomic_store(&pool->open, 0);
    for (unsigned spins = 1; atomic_load(&pool->inside); spins++) {
        pause_cpu();
        if (spins % 1024 == 0)
            sched_yield(); /* the worker may have lost its core: to us */
    }
}

static void parallel_for(void *handle, void (*task)(void *arg, int64_t i), void *arg, int64_t n, bool down)
{
    enum { MOST = 1 << 30 }; /* tasks of one job: their numbers fit into halves of a word */
    quern_pool *pool = handle;
    if (n <= 1 || !pool || pool->n_workers == 0 || inside_task || pthread_mutex_trylock(&pool->busy)) {
        for (int64_t i = 0; i < n; i++)
            task(arg, down ? n - 1 - i : i);
        return;
    }
    pool->task = task;
    pool->arg = arg;
    pool->down = down;
    atomic_store_explicit(&pool->core, sched_getcpu(), memory_order_relaxed);
    for (int64_t base = 0; base < n; base += MOST)
        run_job(pool, base, n - base < MOST ? n - base : MOST);
    pthread_mutex_unlock(&pool->busy);
}

void quern_pool_parallel_for(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    parallel_for(pool, task, arg, n, false);
}

void quern_pool_parallel_for_down(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    parallel_for(pool, task, arg, n, true);
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
    share *shares = aligned_alloc(alignof(share), (size_t)threads * sizeof *shares);
    worker *workers = calloc((size_t)threads, sizeof *workers);
    if (!pool || !shares || !workers) {
        free(pool);
        free(shares);
        free(workers);
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    pool->workers = workers;
    pool->shares = shares;
    pool->n_wanted = threads - 1;
    atomic_store(&pool->core, sched_getcpu());
    pthread_mutex_init(&pool->busy, NULL);
    /* A pool with fewer workers than asked for is slower, not wrong. */
    for (int i = 0; i < threads - 1; i++) {
        workers[i] = (worker){ .pool = pool, .number = 1 + i };
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            break;
        pool->n_workers++;
    }
    return pool;
}

void quern_pool_free(quern_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->quit, true);
    atomic_fetch_add(&pool->epoch, 1);
    futex_wake(&pool->epoch, QN_POOL_MAX_THREADS);
    for (int i = 0; i < pool->n_workers; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_mutex_destroy(&pool->busy);
    free(pool->workers);
    free(pool->shares);
    free(pool);
}

int quern_pool_threads(const quern_pool *pool)
{
    return pool ? pool->n_workers + 1 : 1;
}
