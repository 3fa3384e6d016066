/* Collectives: by the communicator that the host lends; without one this is the only rank. */
#include <stddef.h>
#include <string.h>

#include "backends/interp/interp.h"

typedef int (*collective_fn)(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                             int32_t how);

static collective_fn function_of(const quern_comm *comm, qn_op op)
{
    switch (op) {
    case QN_OP_ALL_REDUCE: return comm->all_reduce;
    case QN_OP_ALL_GATHER: return comm->all_gather;
    case QN_OP_REDUCE_SCATTER: return comm->reduce_scatter;
    case QN_OP_BROADCAST_RANK: return comm->broadcast;
    default: QN_UNREACHABLE("%s is no collective", qn_ops[op].name);
    }
}

bool qn_comm_starts(const quern_comm *comm)
{
    return comm && comm->size >= offsetof(quern_comm, wait) + sizeof comm->wait && comm->start_all_reduce;
}

bool qn_collective_fits(const qn_collective *c, const quern_comm *comm)
{
    const int ranks = comm ? comm->ranks : 1;
    return (!c->ranks || c->ranks == ranks) && !(c->op == QN_OP_BROADCAST_RANK && c->how >= ranks);
}

qn_status qn_interp_collective(const qn_collective *c, quern_comm *comm, const void *in, void *out,
                               const qn_loc *loc, qn_diags *diags)
{
    if (!qn_collective_fits(c, comm))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, loc, "%s",
                        qn_collective_wants(c->op, c->ranks, c->how, diags->arena));
    if (comm) {
        const int status = function_of(comm, c->op)(comm, in, out, c->n, c->dtype, c->how);
        return status ? qn_error(diags, status, loc, "%s: %s", qn_ops[c->op].name, comm->error(comm))
                      : QUERN_OK;
    }
    if (c->n > 0)
        memmove(out, in, (size_t)c->n * qn_dtype_bytes(c->dtype));
    return QUERN_OK;
}

qn_status qn_eval_collective(qn_eval *e)
{
    const qn_node *node = e->node;
    const qn_collective c = { .op = node->op,
                              .how = qn_collective_how(node),
                              .ranks = qn_collective_ranks(node),
                              .n = qn_array_elements(node->op == QN_OP_REDUCE_SCATTER ? &e->y[0] : &e->x[0]),
                              .dtype = e->x[0].dtype };
    return qn_interp_collective(&c, e->in->comm, e->x[0].data, e->y[0].data, &node->loc, e->in->diags);
}

qn_status qn_eval_rank(qn_eval *e)
{
    *(int64_t *)e->y[0].data = e->in->comm ? e->in->comm->rank : 0;
    return QUERN_OK;
}
