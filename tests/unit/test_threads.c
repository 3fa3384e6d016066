/* The pool: every task once, nested and concurrent calls, sleeping workers, many small jobs. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/pool.h"

enum { N = 1000 };

typedef struct {
    atomic_int hits[N];
    quern_pool *pool;
} counts;

static void hit(void *arg, int64_t i)
{
    atomic_fetch_add(&((counts *)arg)->hits[i], 1);
}

static void hit_all_nested(void *arg, int64_t i)
{
    counts *c = arg;
    (void)i;
    quern_pool_parallel_for(c->pool, hit, c, N);
}

static void assert_hits(counts *c, int each)
{
    for (int i = 0; i < N; i++)
        assert_int_equal(atomic_load(&c->hits[i]), each);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        counts c = { .pool = quern_pool_new(threads) };
        assert_int_equal(quern_pool_threads(c.pool), threads);
        quern_pool_parallel_for(c.pool, hit, &c, N);
        assert_hits(&c, 1);
        quern_pool_parallel_for(c.pool, hit_all_nested, &c, 7);
        assert_hits(&c, 8);
        quern_pool_free(c.pool);
    }
}

static void workers_that_sleep_wake_up(void **state)
{
    (void)state;
    counts c = { .pool = quern_pool_new(3) };
    for (int round = 1; round <= 5; round++) {
        usleep(2000); /* longer than the spin */
        quern_pool_parallel_for(c.pool, hit, &c, N);
        assert_hits(&c, round);
    }
    quern_pool_free(c.pool);
}

static void *hammer(void *arg)
{
    counts *c = arg;
    for (int i = 0; i < 2000; i++)
        quern_pool_parallel_for(c->pool, hit, c, 1 + i % 5);
    return NULL;
}

static void host_threads_share_a_pool(void **state)
{
    (void)state;
    counts c = { .pool = quern_pool_new(3) };
    pthread_t other[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&other[i], NULL, hammer, &c), 0);
    hammer(&c);
    for (int i = 0; i < 2; i++)
        pthread_join(other[i], NULL);
    for (int i = 0; i < 5; i++)
        assert_int_equal(atomic_load(&c.hits[i]), 3 * 2000 * (5 - i) / 5);
    quern_pool_free(c.pool);
}

static void no_pool_runs_inline(void **state)
{
    (void)state;
    counts c = { .pool = NULL };
    quern_pool_parallel_for(NULL, hit, &c, N);
    assert_hits(&c, 1);
    assert_true(qn_usable_threads() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(workers_that_sleep_wake_up),
        cmocka_unit_test(host_threads_share_a_pool),
        cmocka_unit_test(no_pool_runs_inline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
