/* A communicator of MPI ranks (quern_mpi.h).
 *
 * An all_reduce goes through a piece of the elements at a time: each rank gets its part of everybody's piece, combines it in the
 * order of the ranks, and sends the result to all: 2 (P - 1) / P times the bytes go out of each rank, which no algorithm betters.
 * A few elements go to everybody at once, and each combines all: the bits are the same, and there is one round less.
 *
 * Before elements, ranks exchange what they ask for. While a rank waits for that it also listens to ranks that have failed.
 *
 * MPI need not move anything while none of its functions runs, and Open MPI doesn't. So what is started runs in a thread of ours,
 * which calls them until it has ended; nobody else does meanwhile, so that MPI_THREAD_SERIALIZED is enough. */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quern_mpi.h"
#include "runtime/dist/carrier.h"
#include "runtime/dist/dist.h"

enum {
    PIECE = 4 << 20, /* bytes: of what is kept of all ranks at a time */
    FEW = 16 << 10,  /* bytes of all ranks together that all get at once */
    PATIENCE = 100,  /* tests before a rank that waits lets others have its core */
    NAP = 20000,     /* nanoseconds between tests beside kernels */
    TAG = 1
};

typedef struct mpi {
    quern_comm comm;
    MPI_Comm ranks, failures; /* duplicates: ours alone */
    bool ends;                /* it started MPI */
    bool failed;
    bool pending; /* for good: MPI may still read and write the requests */
    char reason[QN_DIST_TEXT];
    qn_request *requests; /* by rank */
    const void **in;
    char *scratch; /* of what all ranks give of a piece */
    qn_carrier carrier;
    bool beside;      /* this collective runs in the carrier's thread: cores are the kernels' */
    atomic_bool told; /* by its own host to fail: the carrier waits for no rank any more */
} mpi;

static char last_error[QN_DIST_TEXT];

const char *quern_mpi_error(void)
{
    return last_error;
}

static int failed(mpi *m, const char *reason)
{
    if (!m->failed) {
        m->failed = true;
        snprintf(m->reason, sizeof m->reason, "%s", reason);
    }
    return QUERN_ERROR_ARGUMENT;
}

static int check(mpi *m, int code)
{
    char text[MPI_MAX_ERROR_STRING + 1];
    int length = 0;
    if (code == MPI_SUCCESS)
        return QUERN_OK;
    MPI_Error_string(code, text, &length);
    text[length] = 0;
    failed(m, text);
    return QUERN_ERROR_IO;
}

/* ---- agreeing ---- */

/* To all other ranks. The message is small enough to go out whether or not it is received. */
static void tell(mpi *m, const char *reason)
{
    if (m->failed)
        return;
    char *text = calloc(1, QN_DIST_TEXT); /* belongs to the sends, which nobody waits for */
    snprintf(m->reason, sizeof m->reason, "rank %d failed: %s", m->comm.rank, reason ? reason : "");
    m->failed = true;
    if (text)
        memcpy(text, m->reason, sizeof m->reason);
    for (int i = 0; text && i < m->comm.ranks; i++) {
        MPI_Request request;
        if (i != m->comm.rank &&
            MPI_Isend(text, QN_DIST_TEXT, MPI_CHAR, i, TAG, m->failures, &request) == MPI_SUCCESS)
            MPI_Request_free(&request);
    }
}

/* Has a rank said that it failed? */
static bool heard_of_failure(mpi *m)
{
    int there = 0;
    MPI_Status status;
    char text[QN_DIST_TEXT];
    if (MPI_Iprobe(MPI_ANY_SOURCE, TAG, m->failures, &there, &status) != MPI_SUCCESS || !there)
        return false;
    MPI_Recv(text, (int)sizeof text, MPI_CHAR, status.MPI_SOURCE, TAG, m->failures, MPI_STATUS_IGNORE);
    text[sizeof text - 1] = 0;
    failed(m, text);
    return true;
}

/* Between two tests of the same thing; ranks may share cores with each other and with kernels. */
static void pause_at(const mpi *m, int turn)
{
    if (turn <= PATIENCE)
        return;
    if (m->beside)
        nanosleep(&(struct timespec){ .tv_nsec = NAP }, NULL);
    else
        sched_yield();
}

static int agree(mpi *m, const qn_request *mine)
{
    char text[QN_DIST_TEXT];
    const int words = (int)(sizeof *mine / sizeof(int64_t));
    MPI_Request exchange;
    int done = 0, status;
    if (m->failed || atomic_load(&m->told) || heard_of_failure(m))
        return QUERN_ERROR_ARGUMENT;
    if (!qn_dist_sound(mine, m->comm.ranks, text)) {
        tell(m, text);
        return QUERN_ERROR_ARGUMENT;
    }
    m->requests[m->comm.rank] = *mine;
    status = check(m, MPI_Iallgather(MPI_IN_PLACE, words, MPI_INT64_T, m->requests, words, MPI_INT64_T,
                                     m->ranks, &exchange));
    for (int turn = 0; !status && !done; turn++) {
        status = check(m, MPI_Test(&exchange, &done, MPI_STATUS_IGNORE));
        if (!status && !done && (atomic_load(&m->told) || heard_of_failure(m))) {
            m->pending = true;
            return QUERN_ERROR_ARGUMENT;
        }
        if (!done)
            pause_at(m, turn);
    }
    if (!status && !qn_dist_agree(m->requests, m->comm.ranks, text))
        return failed(m, text);
    return status;
}

/* ---- moving elements ---- */

/* With each other rank in turn: sends what lies at `send` for it and receives from it; bytes by rank, at most PIECE. */
typedef const char *(*place_fn)(const void *user, int rank, int64_t *out_bytes);

static int exchange(mpi *m, place_fn send, const void *send_user, place_fn receive, const void *receive_user)
{
    const int ranks = m->comm.ranks, rank = m->comm.rank;
    int status = QUERN_OK;
    for (int k = 1; k < ranks && !status; k++) {
        const int to = (rank + k) % ranks, from = (rank - k + ranks) % ranks;
        int64_t out, in;
        const char *what = send(send_user, to, &out), *where = receive(receive_user, from, &in);
        MPI_Request both[2] = { MPI_REQUEST_NULL, MPI_REQUEST_NULL };
        status =
            check(m, MPI_Irecv((void *)(uintptr_t)where, (int)in, MPI_BYTE, from, TAG, m->ranks, &both[0]));
        if (!status)
            status = check(m, MPI_Isend(what, (int)out, MPI_BYTE, to, TAG, m->ranks, &both[1]));
        for (int turn = 0, done = 0; !status && !done; turn++) {
            status = check(m, MPI_Testall(2, both, &done, MPI_STATUSES_IGNORE));
            if (!done)
                pause_at(m, turn);
        }
    }
    return status;
}

/* Where things lie: `base` and a stride from rank to rank, or the part of each rank of n elements. */
typedef struct layout {
    const char *base;
    int64_t stride, bytes; /* of even ones */
    int64_t n;             /* of parts, else 0 */
    size_t size;
    int ranks;
} layout;

static const char *even(const void *user, int rank, int64_t *out_bytes)
{
    const layout *l = user;
    *out_bytes = l->bytes;
    return l->base + rank * l->stride;
}

static const char *part(const void *user, int rank, int64_t *out_bytes)
{
    const layout *l = user;
    const int64_t first = qn_dist_part(l->n, rank, l->ranks);
    *out_bytes = (qn_dist_part(l->n, rank + 1, l->ranks) - first) * (int64_t)l->size;
    return l->base + first * (int64_t)l->size;
}

/* ---- the collectives ---- */

/* What all ranks have in the scratch, one behind the other, this rank's at `mine`. */
static void combine(mpi *m, const qn_request *r, const char *mine, int64_t stride, void *out, int64_t n)
{
    for (int i = 0; i < m->comm.ranks; i++)
        m->in[i] = i == m->comm.rank ? mine : m->scratch + i * stride;
    qn_dist_combine(r->dtype, r->how, m->comm.ranks, m->in, out, n);
}

/* Of n elements, whose parts of all ranks fit into the scratch. */
static int reduce_piece(mpi *m, const qn_request *r, const char *in, char *out, int64_t n)
{
    const int ranks = m->comm.ranks, rank = m->comm.rank;
    const size_t size = qn_dist_size(r->dtype);
    const int64_t bytes = n * (int64_t)size;
    if (bytes * ranks <= FEW) {
        const layout whole = { .base = in, .bytes = bytes },
                     all = { .base = m->scratch, .stride = bytes, .bytes = bytes };
        const int status = exchange(m, even, &whole, even, &all);
        if (!status)
            combine(m, r, in, bytes, out, n);
        return status;
    }
    const int64_t first = qn_dist_part(n, rank, ranks), mine = qn_dist_part(n, rank + 1, ranks) - first;
    const int64_t my_bytes = mine * (int64_t)size;
    const layout parts = { .base = in, .n = n, .size = size, .ranks = ranks };
    const layout of_mine = { .base = m->scratch, .stride = my_bytes, .bytes = my_bytes };
    int status = exchange(m, part, &parts, even, &of_mine);
    if (status)
        return status;
    combine(m, r, in + first * (int64_t)size, my_bytes, out + first * (int64_t)size, mine);
    const layout result = { .base = out + first * (int64_t)size, .bytes = my_bytes };
    const layout results = { .base = out, .n = n, .size = size, .ranks = ranks };
    return exchange(m, even, &result, part, &results);
}

static int run_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    mpi *m = (mpi *)comm;
    const qn_request r = { QN_ALL_REDUCE, n, dtype, how };
    const int64_t size = (int64_t)qn_dist_size(dtype);
    int status = agree(m, &r);
    for (int64_t at = 0; !status && at < n; at += PIECE / size) {
        const int64_t left = n - at;
        status = reduce_piece(m, &r, (const char *)in + at * size, (char *)out + at * size,
                              left < PIECE / size ? left : PIECE / size);
    }
    return status;
}

static int all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    qn_carrier_drain(&((mpi *)comm)->carrier);
    return run_all_reduce(comm, in, out, n, dtype, how);
}

static int carry_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                            int32_t how)
{
    mpi *m = (mpi *)comm;
    m->beside = m->carrier.beside;
    const int status = run_all_reduce(comm, in, out, n, dtype, how);
    m->beside = false;
    return status;
}

static int start_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                            int32_t how)
{
    return qn_carrier_start(&((mpi *)comm)->carrier, &(qn_started){ .call = carry_all_reduce,
                                                                    .comm = comm,
                                                                    .in = in,
                                                                    .out = out,
                                                                    .n = n,
                                                                    .dtype = dtype,
                                                                    .how = how });
}

static int wait_for_oldest(quern_comm *comm)
{
    return qn_carrier_wait(&((mpi *)comm)->carrier);
}

static int reduce_scatter(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    mpi *m = (mpi *)comm;
    const qn_request r = { QN_REDUCE_SCATTER, n, dtype, how };
    const int64_t size = (int64_t)qn_dist_size(dtype);
    qn_carrier_drain(&m->carrier);
    int status = agree(m, &r);
    const int64_t most = status ? 1 : PIECE / size / comm->ranks > 0 ? PIECE / size / comm->ranks : 1;
    for (int64_t at = 0; !status && at < n; at += most) {
        const int64_t count = n - at < most ? n - at : most, bytes = count * size;
        const layout to = { .base = (const char *)in + at * size, .stride = n * size, .bytes = bytes };
        const layout from = { .base = m->scratch, .stride = bytes, .bytes = bytes };
        status = exchange(m, even, &to, even, &from);
        if (!status)
            combine(m, &r, to.base + comm->rank * to.stride, bytes, (char *)out + at * size, count);
    }
    return status;
}

static int all_gather(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    mpi *m = (mpi *)comm;
    const qn_request r = { QN_ALL_GATHER, n, dtype, how };
    const int64_t size = (int64_t)qn_dist_size(dtype), most = size ? PIECE / size : 1;
    qn_carrier_drain(&m->carrier);
    int status = agree(m, &r);
    if (!status && n > 0)
        memcpy((char *)out + comm->rank * n * size, in, (size_t)(n * size));
    for (int64_t at = 0; !status && at < n; at += most) {
        const int64_t bytes = (n - at < most ? n - at : most) * size;
        const layout mine = { .base = (const char *)in + at * size, .bytes = bytes };
        const layout all = { .base = (const char *)out + at * size, .stride = n * size, .bytes = bytes };
        status = exchange(m, even, &mine, even, &all);
    }
    return status;
}

static int broadcast(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    mpi *m = (mpi *)comm;
    const qn_request r = { QN_BROADCAST, n, dtype, how };
    qn_carrier_drain(&m->carrier);
    int status = agree(m, &r);
    const int64_t bytes = status ? 0 : n * (int64_t)qn_dist_size(dtype);
    if (comm->rank == how && out != in && bytes > 0)
        memcpy(out, in, (size_t)bytes);
    for (int64_t at = 0; !status && at < bytes; at += PIECE)
        status = check(m, MPI_Bcast((char *)out + at, (int)(bytes - at < PIECE ? bytes - at : PIECE),
                                    MPI_BYTE, how, m->ranks));
    return status;
}

/* ---- failing, making, freeing ---- */

static void fail(quern_comm *comm, const char *reason)
{
    mpi *m = (mpi *)comm;
    atomic_store(&m->told, true);
    qn_carrier_drain(&m->carrier);
    tell(m, reason);
}

/* While the carrier is at something it may yet find a reason; a rank that has one of its own says that first. */
static const char *error(const quern_comm *comm)
{
    const mpi *m = (const mpi *)comm;
    return qn_carrier_busy((qn_carrier *)(uintptr_t)&m->carrier) ? "" : m->reason;
}

static void release_memory(mpi *m)
{
    if (m) {
        if (!m->pending)
            free(m->requests);
        free(m->in);
        free(m->scratch);
    }
    free(m);
}

/* Ranks leave together. Those that wait for one in a collective hear of it that it leaves. After a failure the other ranks may
 * not come any more, for whom the end of MPI would wait: mpirun ends them. */
static void release(quern_comm *comm)
{
    mpi *m = (mpi *)comm;
    qn_carrier_release(&m->carrier);
    if (!m->failed && !agree(m, &(qn_request){ .kind = QN_LEAVE })) {
        MPI_Comm_free(&m->ranks);
        MPI_Comm_free(&m->failures);
        if (m->ends)
            MPI_Finalize();
    }
    release_memory(m);
}

static int wrong(int status, const char *text)
{
    snprintf(last_error, sizeof last_error, "%s", text);
    return status;
}

static int make(MPI_Comm of, bool ends, quern_comm **out)
{
    int rank = 0, ranks = 0, threads = MPI_THREAD_SINGLE;
    *out = NULL;
    if (MPI_Comm_rank(of, &rank) != MPI_SUCCESS || MPI_Comm_size(of, &ranks) != MPI_SUCCESS)
        return wrong(QUERN_ERROR_ARGUMENT, "MPI does not know this communicator");
    mpi *m = calloc(1, sizeof *m);
    if (m) {
        m->requests = calloc((size_t)ranks, sizeof *m->requests);
        m->in = calloc((size_t)ranks, sizeof *m->in);
        m->scratch = malloc(PIECE + FEW + 8 * (size_t)ranks);
    }
    if (!m || !m->requests || !m->in || !m->scratch) {
        release_memory(m);
        return wrong(QUERN_ERROR_MEMORY, "out of memory");
    }
    MPI_Query_thread(&threads);
    qn_carrier_init(&m->carrier, ranks > 1 && threads >= MPI_THREAD_SERIALIZED);
    if (MPI_Comm_dup(of, &m->ranks) != MPI_SUCCESS || MPI_Comm_dup(of, &m->failures) != MPI_SUCCESS) {
        m->failed = true;
        release(&m->comm);
        return wrong(QUERN_ERROR_IO, "MPI can't duplicate this communicator");
    }
    MPI_Comm_set_errhandler(m->ranks, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(m->failures, MPI_ERRORS_RETURN);
    m->ends = ends;
    m->comm = (quern_comm){ sizeof m->comm, rank, ranks, all_reduce, all_gather,       reduce_scatter,
                            broadcast,      fail, error, release,    start_all_reduce, wait_for_oldest };
    *out = &m->comm;
    return QUERN_OK;
}

int quern_mpi_comm(MPI_Comm of, quern_comm **out)
{
    return make(of, false, out);
}

int quern_mpi_world(quern_comm **out)
{
    int started = 0, ended = 0, provided;
    *out = NULL;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    if (ended)
        return wrong(QUERN_ERROR_ARGUMENT, "MPI has ended in this process: it cannot start a second time");
    if (!started && MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
        return wrong(QUERN_ERROR_IO, "MPI does not start");
    return make(MPI_COMM_WORLD, !started, out);
}
