/* See ranks.h. */
#include "tests/support/ranks.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/ok.h"

typedef struct rank {
    quern_comm *comm;
    void (*body)(quern_comm *comm, void *arg);
    void *arg;
} rank;

static void *run_rank(void *user)
{
    rank *r = user;
    r->body(r->comm, r->arg);
    return NULL;
}

void on_ranks(int ranks, void (*body)(quern_comm *comm, void *arg), void *arg)
{
    quern_comm *comms[MOST_RANKS];
    pthread_t threads[MOST_RANKS];
    rank all[MOST_RANKS];
    ok(quern_comm_threads(ranks, comms));
    for (int i = 0; i < ranks; i++) {
        all[i] = (rank){ comms[i], body, arg };
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &all[i]), 0);
    }
    for (int i = 0; i < ranks; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < ranks; i++)
        quern_comm_free(comms[i]);
}

double number(int rank, int64_t i)
{
    return (double)((i * 7 + rank * 13) % 11);
}
