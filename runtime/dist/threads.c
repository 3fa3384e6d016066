/* A communicator whose ranks are threads of this process: for tests, and for hosts that share a machine's cores between models.
 *
 *   post what I ask for  |  all have posted: do they agree?  do my part, reading everybody's memory  |  all have done theirs
 *
 * Each rank combines one part of the elements, for all. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/dist/carrier.h"
#include "runtime/dist/dist.h"
#include "runtime/error.h"

typedef struct group {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int ranks, arrived, users;
    uint64_t meetings; /* that have taken place */
    bool failed;
    char reason[QN_DIST_TEXT];
    qn_request *requests; /* by rank; these three change only before all have met */
    const void **in;
    void **out;
} group;

typedef struct member {
    quern_comm comm;
    group *group;
    qn_carrier carrier;
} member;

static group *group_of(const quern_comm *comm)
{
    return ((const member *)comm)->group;
}

static qn_carrier *carrier_of(quern_comm *comm)
{
    return &((member *)comm)->carrier;
}

static void fail_group(group *g, const char *reason)
{
    pthread_mutex_lock(&g->lock);
    if (!g->failed) {
        g->failed = true;
        snprintf(g->reason, sizeof g->reason, "%s", reason);
    }
    pthread_cond_broadcast(&g->all_here);
    pthread_mutex_unlock(&g->lock);
}

/* Until all ranks are here; false: one of them won't come. Those that are `sure` to come have met before: each still reads what
 * the others have, whatever fails beside it. */
static bool meet(group *g, bool sure)
{
    pthread_mutex_lock(&g->lock);
    const uint64_t before = g->meetings;
    if ((sure || !g->failed) && ++g->arrived == g->ranks) {
        g->arrived = 0;
        g->meetings++;
        pthread_cond_broadcast(&g->all_here);
    }
    while (g->meetings == before && (sure || !g->failed))
        pthread_cond_wait(&g->all_here, &g->lock);
    const bool met = g->meetings != before;
    pthread_mutex_unlock(&g->lock);
    return met;
}

/* ---- what a rank does ---- */

static void *at_element(const void *base, int64_t index, size_t size)
{
    return (char *)(uintptr_t)base + (size_t)index * size;
}

static void copy(void *to, const void *from, int64_t n, size_t size)
{
    if (n > 0 && to != from)
        memcpy(to, from, (size_t)n * size);
}

/* Everybody's elements from `first` on, combined. */
static void combine(const group *g, const qn_request *r, int64_t first, void *out, int64_t n)
{
    const void *in[g->ranks];
    for (int i = 0; i < g->ranks; i++)
        in[i] = at_element(g->in[i], first, qn_dist_size(r->dtype));
    qn_dist_combine(r->dtype, r->how, g->ranks, in, out, n);
}

static void do_part(const group *g, const qn_request *r, int rank)
{
    const size_t size = qn_dist_size(r->dtype);
    switch ((qn_request_kind)r->kind) {
    case QN_ALL_REDUCE: {
        const int64_t first = qn_dist_part(r->n, rank, g->ranks),
                      end = qn_dist_part(r->n, rank + 1, g->ranks);
        combine(g, r, first, at_element(g->out[rank], first, size), end - first);
        for (int i = 0; i < g->ranks; i++)
            copy(at_element(g->out[i], first, size), at_element(g->out[rank], first, size), end - first,
                 size);
        return;
    }
    case QN_REDUCE_SCATTER: combine(g, r, rank * r->n, g->out[rank], r->n); return;
    case QN_ALL_GATHER:
        for (int i = 0; i < g->ranks; i++)
            copy(at_element(g->out[rank], i * r->n, size), g->in[i], r->n, size);
        return;
    case QN_BROADCAST: copy(g->out[rank], g->in[r->how], r->n, size); return;
    case QN_LEAVE: return; /* ranks that are threads leave by themselves */
    }
}

static int run(quern_comm *comm, qn_request_kind kind, const void *in, void *out, int64_t n, int32_t dtype,
               int32_t how)
{
    group *g = group_of(comm);
    const qn_request request = { kind, n, dtype, how };
    char text[QN_DIST_TEXT];
    if (!qn_dist_sound(&request, g->ranks, text)) {
        fail_group(g, text);
        return QUERN_ERROR_ARGUMENT;
    }
    /* a failed group's ranks may still be looking at what was posted */
    pthread_mutex_lock(&g->lock);
    if (!g->failed) {
        g->requests[comm->rank] = request;
        g->in[comm->rank] = in;
        g->out[comm->rank] = out;
    }
    pthread_mutex_unlock(&g->lock);
    if (!meet(g, false))
        return QUERN_ERROR_ARGUMENT;
    if (!qn_dist_agree(g->requests, g->ranks, text)) {
        fail_group(g, text);
        return QUERN_ERROR_ARGUMENT;
    }
    do_part(g, &request, comm->rank);
    return meet(g, true) ? QUERN_OK : QUERN_ERROR_ARGUMENT;
}

static int run_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    return run(comm, QN_ALL_REDUCE, in, out, n, dtype, how);
}

static int run_behind(quern_comm *comm, qn_request_kind kind, const void *in, void *out, int64_t n,
                      int32_t dtype, int32_t how)
{
    qn_carrier_drain(carrier_of(comm));
    return run(comm, kind, in, out, n, dtype, how);
}

static int all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    return run_behind(comm, QN_ALL_REDUCE, in, out, n, dtype, how);
}

static int all_gather(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    return run_behind(comm, QN_ALL_GATHER, in, out, n, dtype, how);
}

static int reduce_scatter(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    return run_behind(comm, QN_REDUCE_SCATTER, in, out, n, dtype, how);
}

static int broadcast(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    return run_behind(comm, QN_BROADCAST, in, out, n, dtype, how);
}

static int start_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                            int32_t how)
{
    return qn_carrier_start(
        carrier_of(comm),
        &(qn_started){
            .call = run_all_reduce, .comm = comm, .in = in, .out = out, .n = n, .dtype = dtype, .how = how });
}

static int wait_for_oldest(quern_comm *comm)
{
    return qn_carrier_wait(carrier_of(comm));
}

static void fail(quern_comm *comm, const char *reason)
{
    char text[QN_DIST_TEXT];
    snprintf(text, sizeof text, "rank %d failed: %s", comm->rank, reason ? reason : "");
    fail_group(group_of(comm), text);
    qn_carrier_drain(carrier_of(comm));
}

/* Once failed, the reason doesn't change any more. */
static const char *error(const quern_comm *comm)
{
    group *g = group_of(comm);
    pthread_mutex_lock(&g->lock);
    const char *reason = g->failed ? g->reason : "";
    pthread_mutex_unlock(&g->lock);
    return reason;
}

/* ---- making and freeing ---- */

static void free_group(group *g)
{
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->all_here);
    free(g->requests);
    free(g->in);
    free(g->out);
    free(g);
}

static void release(quern_comm *comm)
{
    group *g = group_of(comm);
    char text[QN_DIST_TEXT];
    snprintf(text, sizeof text, "rank %d has left", comm->rank);
    fail_group(g, text); /* whoever waits for it */
    qn_carrier_release(carrier_of(comm));
    pthread_mutex_lock(&g->lock);
    const bool last = --g->users == 0;
    pthread_mutex_unlock(&g->lock);
    if (last)
        free_group(g);
    free(comm);
}

int quern_comm_threads(int ranks, quern_comm **out_comms)
{
    if (ranks < 1 || !out_comms)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_comm_threads: %d ranks; there is at least 1", ranks);
    group *g = calloc(1, sizeof *g);
    bool whole = g != NULL;
    if (g) {
        pthread_mutex_init(&g->lock, NULL);
        pthread_cond_init(&g->all_here, NULL);
        g->ranks = g->users = ranks;
        g->requests = calloc((size_t)ranks, sizeof *g->requests);
        g->in = calloc((size_t)ranks, sizeof *g->in);
        g->out = calloc((size_t)ranks, sizeof *g->out);
        whole = g->requests && g->in && g->out;
    }
    for (int i = 0; i < ranks; i++) {
        member *m = whole ? calloc(1, sizeof *m) : NULL;
        out_comms[i] = m ? &m->comm : NULL;
        whole = m != NULL;
        if (!m)
            continue;
        m->comm = (quern_comm){ sizeof m->comm, i,    ranks, all_reduce, all_gather,       reduce_scatter,
                                broadcast,      fail, error, release,    start_all_reduce, wait_for_oldest };
        m->group = g;
        qn_carrier_init(&m->carrier, ranks > 1);
    }
    if (whole)
        return QUERN_OK;
    for (int i = 0; i < ranks; i++) {
        if (out_comms[i])
            qn_carrier_release(carrier_of(out_comms[i]));
        free(out_comms[i]);
        out_comms[i] = NULL;
    }
    if (g)
        free_group(g);
    return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
}
