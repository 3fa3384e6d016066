/* Collectives of a host's own buffers, and of a session's states. */
#include <string.h>

#include "runtime/dist/dist.h"
#include "runtime/error.h"
#include "runtime/session.h"

typedef int (*collective_fn)(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                             int32_t how);

static int run(quern_comm *comm, collective_fn call, qn_request_kind kind, const void *in, void *out,
               int64_t n, int dtype, int how)
{
    if (comm) {
        const int status = call(comm, in, out, n, dtype, how);
        return status ? qn_fail(status, "%s", comm->error(comm)) : QUERN_OK;
    }
    const qn_request request = { kind, n, dtype, how };
    char text[QN_DIST_TEXT];
    if (!qn_dist_sound(&request, 1, text))
        return qn_fail(QUERN_ERROR_ARGUMENT, "%s", text);
    if (n > 0 && in != out)
        memcpy(out, in, (size_t)n * qn_dist_size(dtype));
    return QUERN_OK;
}

int quern_comm_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int dtype, int combine)
{
    return run(comm, comm ? comm->all_reduce : NULL, QN_ALL_REDUCE, in, out, n, dtype, combine);
}

int quern_comm_all_gather(quern_comm *comm, const void *in, void *out, int64_t n, int dtype)
{
    return run(comm, comm ? comm->all_gather : NULL, QN_ALL_GATHER, in, out, n, dtype, 0);
}

int quern_comm_reduce_scatter(quern_comm *comm, const void *in, void *out, int64_t n, int dtype, int combine)
{
    return run(comm, comm ? comm->reduce_scatter : NULL, QN_REDUCE_SCATTER, in, out, n, dtype, combine);
}

int quern_comm_broadcast(quern_comm *comm, void *data, int64_t n, int dtype, int root)
{
    return run(comm, comm ? comm->broadcast : NULL, QN_BROADCAST, data, data, n, dtype, root);
}

void quern_comm_free(quern_comm *comm)
{
    if (comm)
        comm->free(comm);
}

void quern_session_set_comm(quern_session *session, quern_comm *comm)
{
    session->ctx.comm = comm;
}

/* ---- states ---- */

int quern_session_broadcast_states(quern_session *s, int root)
{
    quern_comm *comm = s->ctx.comm;
    for (int i = 0; comm && i < s->n_buffers; i++) {
        quern_array state;
        if (s->slots[i].info->role != QUERN_STATE)
            continue;
        int status = quern_session_get(s, i, &state);
        if (!status && s->slots[i].on_device)
            status = qn_fail(QUERN_ERROR_UNSUPPORTED, "state '%s' is on a device", s->slots[i].info->name);
        int64_t n = 1;
        for (int d = 0; !status && d < state.rank; d++)
            n *= state.dims[d];
        if (!status)
            status = quern_comm_broadcast(comm, state.data, n, state.dtype, root);
        if (status) {
            comm->fail(comm, quern_last_error()); /* the others need not wait */
            return status;
        }
    }
    return QUERN_OK;
}
