/* Thread pool: see pool.h.
 *
 * One job at a time lies in the pool. `open` says that it may be entered; a worker first counts itself into `inside`, then
 * looks at `open`, and the caller first closes, then waits until nobody is inside. Both orders are sequentially
 * consistent, so a worker is either seen by the caller or sees that the job is closed.
 *
 * Each thread has a share: a range of tasks, [first, end) in one word. Its owner takes tasks from the front, one at a time; who
 * has none left takes half of another's from the back, as a share of his own (`down`: from the other ends). Every change is one
 * exchange of the whole word, which is all there is to know about a share: an exchange that succeeds is right however old the
 * look was. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
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
    atomic_uint process;           /* `forks` where its workers were started */
    atomic_int runs;               /* runs of sessions under way: more jobs are to be expected */
    share *shares;                 /* of the caller, then of the workers */
    alignas(64) atomic_int inside; /* workers that may look at the job */
    atomic_int open;
    alignas(64) atomic_uint epoch; /* counts jobs; what sleepers wait on */
    atomic_int sleepers;
};

static _Thread_local bool inside_task;

/* fork() takes only the calling thread along. Each is counted in the child: a pool of another count has no workers there. */
static atomic_uint forks;
#define STARTING UINT_MAX /* `process` of a pool whose workers are being started again */

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

static void count_fork(void)
{
    atomic_fetch_add(&forks, 1);
}

static void watch_forks(void)
{
    (void)pthread_atfork(NULL, NULL, count_fork);
}

/* Workers take no signals: these are the host's, whose handlers expect its threads. But those that a thread makes itself, and a
 * profiler's, mean the thread that is at work. A pool with fewer workers than asked for is slower, not wrong. */
static void start_workers(quern_pool *pool)
{
    static const int kept[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF };
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        sigdelset(&blocked, kept[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    pool->n_workers = 0;
    for (int i = 0; i < pool->n_wanted; i++) {
        pool->workers[i] = (worker){ .pool = pool, .number = 1 + i };
        if (pthread_create(&pool->workers[i].thread, NULL, work, &pool->workers[i]))
            break;
        pool->n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Whether the pool's workers are in this process. If not, one caller starts them, while others do without. */
static bool has_workers(quern_pool *pool)
{
    const unsigned here = atomic_load_explicit(&forks, memory_order_relaxed);
    unsigned seen = atomic_load_explicit(&pool->process, memory_order_acquire);
    if (seen == here)
        return true;
    if (seen == STARTING || !atomic_compare_exchange_strong(&pool->process, &seen, STARTING))
        return false;
    pthread_mutex_init(&pool->busy, NULL); /* the parent may have held it */
    atomic_store(&pool->inside, 0);
    atomic_store(&pool->open, 0);
    atomic_store(&pool->sleepers, 0);
    start_workers(pool);
    atomic_store_explicit(&pool->process, here, memory_order_release);
    return true;
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
    if (n <= 1 || !pool || inside_task || !has_workers(pool) || pool->n_workers == 0 ||
        pthread_mutex_trylock(&pool->busy)) {
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

/* Numbers of a file of a cgroup; "max" is none. */
static int read_numbers(const char *folder, const char *path, int length, const char *name, long long out[2])
{
    char file[PATH_MAX];
    if (snprintf(file, sizeof file, "%s%.*s/%s", folder, length, path, name) >= (int)sizeof file)
        return 0;
    FILE *f = fopen(file, "re");
    if (!f)
        return 0;
    const int n = fscanf(f, "%lld %lld", &out[0], &out[1]);
    fclose(f);
    return n < 0 ? 0 : n;
}

/* CPUs that one cgroup may use, "200000 100000" in v2's cpu.max, two files in v1; 0: no limit. */
static int quota_of(const char *folder, const char *path, int length)
{
    long long cpu[2] = { 0, 0 }, period[2];
    if (read_numbers(folder, path, length, "cpu.max", cpu) != 2) {
        if (read_numbers(folder, path, length, "cpu.cfs_quota_us", cpu) != 1 ||
            read_numbers(folder, path, length, "cpu.cfs_period_us", period) != 1)
            return 0;
        cpu[1] = period[0];
    }
    if (cpu[0] <= 0 || cpu[1] <= 0)
        return 0;
    const long long n = (cpu[0] + cpu[1] - 1) / cpu[1];
    return n < QN_POOL_MAX_THREADS ? (int)n : QN_POOL_MAX_THREADS;
}

/* The least of the process's cgroup and those that it is in. In a container its path may be the host's, whose folders are not to be
 * seen, but for the last, which is then the container's own. */
static int least_quota(const char *folder, const char *path)
{
    int least = 0;
    for (int length = (int)strlen(path);;) {
        const int n = quota_of(folder, path, length);
        least = n && (!least || n < least) ? n : least;
        if (length == 0)
            return least;
        while (length > 0 && path[--length] != '/') {}
    }
}

static bool has_word(const char *words, const char *word) /* between commas */
{
    const size_t length = strlen(word);
    for (; words; words = strchr(words, ',') ? strchr(words, ',') + 1 : NULL)
        if (strncmp(words, word, length) == 0 && (!words[length] || words[length] == ','))
            return true;
    return false;
}

int qn_cgroup_threads(const char *list, const char *root)
{
    char line[PATH_MAX + 64], folder[PATH_MAX];
    int least = 0;
    FILE *f = fopen(list, "re");
    while (f && fgets(line, sizeof line, f)) { /* "4:cpu,cpuacct:/a/b" or "0::/a/b" */
        char *kinds = strchr(line, ':'), *path = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!path)
            continue;
        *kinds++ = *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        const bool v2 = !*kinds;
        if (!v2 && !has_word(kinds, "cpu"))
            continue;
        snprintf(folder, sizeof folder, "%s%s", root, v2 ? "" : "/cpu");
        const int n = least_quota(folder, path);
        least = n && (!least || n < least) ? n : least;
    }
    if (f)
        fclose(f);
    return least;
}

int qn_usable_threads(void)
{
    cpu_set_t set;
    int n =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    int quota = qn_cgroup_threads("/proc/self/cgroup", "/sys/fs/cgroup");
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
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    atomic_store(&pool->process, atomic_load(&forks));
    start_workers(pool);
    return pool;
}

void quern_pool_free(quern_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->quit, true);
    atomic_fetch_add(&pool->epoch, 1);
    futex_wake(&pool->epoch, QN_POOL_MAX_THREADS);
    const bool here = atomic_load(&pool->process) == atomic_load(&forks);
    for (int i = 0; here && i < pool->n_workers; i++)
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
