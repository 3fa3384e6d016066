/* Runs a program step by step with the kernel interpreter: what an entry's machine code does, for tests. */
#include <stddef.h>
#include <string.h>

#include "backends/interp/interp.h"
#include "ir/text_ops.h"

typedef struct {
    const qn_program *p;
    char *const *io;
    char *workspace, *weights;
    int64_t *symbols;    /* by number, in io: the caller reads there those that the program binds */
    int64_t *iterations; /* by loop */
    char **slots;        /* by buffer: pointer variables */
    quern_ctx *ctx;
    qn_diags *diags;
} machine;

static int64_t eval(const machine *m, qn_dim d)
{
    return qn_dim_eval(d, m->symbols);
}

static char *address(const machine *m, int buffer)
{
    const qn_pbuffer *b = &m->p->buffers[buffer];
    switch (b->place) {
    case QN_PLACE_ARENA: return m->workspace + eval(m, b->offset);
    case QN_PLACE_IO: return m->io[b->io];
    case QN_PLACE_WEIGHTS: return m->weights + eval(m, b->offset);
    case QN_PLACE_VIEW: {
        int64_t offset = b->offset ? eval(m, b->offset) : 0;
        if (b->loop >= 0)
            offset += m->iterations[b->loop] * eval(m, b->stride);
        return address(m, b->base) + offset;
    }
    case QN_PLACE_SLOT: return m->slots[buffer];
    }
    QN_UNREACHABLE("interp: buffer place %d", (int)b->place);
}

/* Of a kernel or a library's function. */
static qn_status run_call(machine *m, const qn_step *step)
{
    int64_t small[64], *args = small;
    size_t n = 1 + (size_t)step->n_buffers + (size_t)step->n_params;
    if (n > sizeof small / sizeof *small)
        args = QN_NEW_ARRAY(m->diags->arena, int64_t, n);
    args[0] = -1;
    for (int i = 0; i < step->n_buffers; i++)
        args[1 + i] = (int64_t)(intptr_t)address(m, step->buffers[i]);
    for (int i = 0; i < step->n_params; i++)
        args[1 + step->n_buffers + i] = eval(m, step->params[i]);
    const int64_t tasks = eval(m, step->tasks);
    if (step->kind == QN_STEP_LIBRARY) {
        for (int64_t task = 0; task < tasks; task++)
            qn_interp_library(step->library, args, task);
        return QUERN_OK;
    }
    QN_TRY(qn_interp_kernel(m->p->kernels[step->kernel], args, tasks, m->diags));
    if (args[0] < 0)
        return QUERN_OK;
    if (m->ctx)
        m->ctx->failed_node = (int32_t)args[0];
    return qn_error(m->diags, QUERN_ERROR_INDEX, NULL, "%s: an index is out of range",
                    args[0] < m->p->n_nodes ? m->p->node_names[args[0]] : step->name);
}

static qn_status run_check(const machine *m, const qn_step *step)
{
    if (eval(m, step->params[0]) == eval(m, step->params[1]))
        return QUERN_OK;
    if (m->ctx)
        m->ctx->failed_node = step->node;
    return qn_error(m->diags, QUERN_ERROR_ARGUMENT, NULL, "%s", m->p->node_names[step->node]);
}

static qn_status run_bind(const machine *m, const qn_step *step)
{
    const qn_dim symbol = step->count;
    const int64_t most = eval(m, m->p->limits[symbol->symbol - m->p->n_entry_symbols]);
    int64_t *value = &m->symbols[symbol->symbol];
    memcpy(value, address(m, step->buffers[0]), sizeof *value);
    if (*value >= symbol->min && *value <= most)
        return QUERN_OK;
    return qn_error(m->diags, QUERN_ERROR_RANGE, NULL,
                    "%s is %lld here; the model was compiled for %lld to %lld", symbol->name,
                    (long long)*value, (long long)symbol->min, (long long)most);
}

static quern_comm *lent_comm(const machine *m)
{
    const bool lends = m->ctx && m->ctx->size >= offsetof(quern_ctx, comm) + sizeof m->ctx->comm;
    return lends ? m->ctx->comm : NULL;
}

static qn_status run_wait(const machine *m)
{
    quern_comm *comm = lent_comm(m);
    const int status = qn_comm_starts(comm) ? comm->wait(comm) : QUERN_OK;
    return status ? qn_error(m->diags, status, NULL, "all_reduce: %s", comm->error(comm)) : QUERN_OK;
}

static qn_status run_collective(const machine *m, const qn_step *step)
{
    quern_comm *comm = lent_comm(m);
    const int last = step->n_buffers - 1;
    if (step->collective == QN_OP_RANK) {
        *(int64_t *)(void *)address(m, step->buffers[0]) = comm ? comm->rank : 0;
        return QUERN_OK;
    }
    const qn_pbuffer *b = &m->p->buffers[step->buffers[step->collective == QN_OP_REDUCE_SCATTER ? last : 0]];
    const qn_collective c = { .op = step->collective,
                              .how = step->how,
                              .ranks = step->ranks,
                              .n = eval(m, b->elements),
                              .dtype = b->dtype };
    if (m->ctx && !qn_collective_fits(&c, comm))
        m->ctx->failed_node = step->node;
    if (step->starts && qn_comm_starts(comm)) {
        const int status = comm->start_all_reduce(comm, address(m, step->buffers[0]),
                                                  address(m, step->buffers[1]), c.n, c.dtype, c.how);
        return status ? qn_error(m->diags, status, NULL, "all_reduce: %s", comm->error(comm)) : QUERN_OK;
    }
    return qn_interp_collective(&c, comm, address(m, step->buffers[0]), address(m, step->buffers[last]), NULL,
                                m->diags);
}

static qn_status run_text(const machine *m, const qn_step *step)
{
    int64_t args[3 + QN_TEXT_MOST_PARAMS];
    const bool lends = m->ctx && m->ctx->size >= offsetof(quern_ctx, strings) + sizeof m->ctx->strings;
    for (int i = 0; i < step->n_buffers; i++)
        args[i] = (int64_t)(intptr_t)address(m, step->buffers[i]);
    for (int i = 0; i < step->n_params; i++)
        args[step->n_buffers + i] = eval(m, step->params[i]);
    const qn_status status = qn_interp_text(step->text, lends ? m->ctx->strings : NULL, args, NULL, m->diags);
    if (status && m->ctx)
        m->ctx->failed_node = step->node;
    return status;
}

static qn_status run_steps(machine *m, const qn_steps *steps);

static bool holds(const machine *m, const qn_step *step)
{
    return *address(m, step->condition) != 0;
}

static qn_status run_loop(machine *m, const qn_step *step)
{
    int64_t count = step->count ? eval(m, step->count) : INT64_MAX;
    for (int64_t i = 0; i < count; i++) {
        m->iterations[step->loop] = step->reverse ? count - 1 - i : i;
        if (step->condition >= 0) {
            QN_TRY(run_steps(m, &step->test));
            if (!holds(m, step))
                break;
        }
        QN_TRY(run_steps(m, &step->body));
    }
    return QUERN_OK;
}

static qn_status run_step(machine *m, const qn_step *step)
{
    switch (step->kind) {
    case QN_STEP_KERNEL:
    case QN_STEP_LIBRARY: return run_call(m, step);
    case QN_STEP_COPY: {
        int64_t bytes = eval(m, qn_program_copied_bytes(m->p, step));
        if (bytes > 0)
            memmove(address(m, step->buffers[1]), address(m, step->buffers[0]), (size_t)bytes);
        return QUERN_OK;
    }
    case QN_STEP_LOOP: return run_loop(m, step);
    case QN_STEP_IF: return run_steps(m, holds(m, step) ? &step->body : &step->other);
    case QN_STEP_SWAP: {
        char *kept = m->slots[step->buffers[0]];
        m->slots[step->buffers[0]] = m->slots[step->buffers[1]];
        m->slots[step->buffers[1]] = kept;
        return QUERN_OK;
    }
    case QN_STEP_CHECK: return run_check(m, step);
    case QN_STEP_COLLECTIVE: return run_collective(m, step);
    case QN_STEP_TEXT: return run_text(m, step);
    case QN_STEP_WAIT: return run_wait(m);
    case QN_STEP_BIND: return run_bind(m, step);
    }
    QN_UNREACHABLE("interp: step kind %d", (int)step->kind);
}

static qn_status run_steps(machine *m, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++)
        QN_TRY(run_step(m, &steps->items[i]));
    return QUERN_OK;
}

/* Pointer variables start anew each time their loop begins; a program sets them up once, before its steps, because a
 * slot inside an outer loop is swapped an unknown number of times there. So they start at each entry, like machine code's. */
qn_status qn_interp_program(const qn_program *program, void *io, void *workspace, const void *weights,
                            quern_ctx *ctx, qn_diags *diags)
{
    machine m = { .p = program,
                  .io = io,
                  .workspace = workspace,
                  .weights = (char *)(uintptr_t)weights,
                  .symbols = (int64_t *)(void *)((char **)io + program->n_io),
                  .iterations = QN_NEW_ARRAY(diags->arena, int64_t, program->n_loops + 1),
                  .slots = QN_NEW_ARRAY(diags->arena, char *, program->n_buffers + 1),
                  .ctx = ctx,
                  .diags = diags };
    for (int i = 0; i < program->n_buffers; i++) {
        if (program->buffers[i].place == QN_PLACE_SLOT)
            m.slots[i] = address(&m, program->buffers[i].base);
    }
    return run_steps(&m, &program->steps);
}
