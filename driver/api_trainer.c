/* quern.h: a trainer, which keeps the sessions of a learning model and cuts arrays into batches. */
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/shuffle.h"

/* An entry and where its buffers are. */
typedef struct bound_entry {
    quern_session *session;
    int inputs[2];     /* x, target */
    int loss, correct; /* correct: -1 where there is none */
} bound_entry;

struct quern_trainer {
    quern_model *model;
    bound_entry step, eval;
};

/* The session of the entry; more than one input besides the target is an error. */
static qn_status open_entry(quern_trainer *t, const char *name, bound_entry *e, qn_diags *diags)
{
    const quern_entry_info *info = quern_model_entry(t->model, name);
    int n_inputs = 0;
    *e = (bound_entry){ .loss = -1, .correct = -1 };
    for (int i = 0; i < info->n_buffers; i++) {
        const quern_buffer_info *buffer = &info->buffers[i];
        if (buffer->role == QUERN_INPUT && n_inputs++ < 2)
            e->inputs[n_inputs - 1] = i;
        if (buffer->role == QUERN_OUTPUT && strcmp(buffer->name, "loss") == 0)
            e->loss = i;
        if (buffer->role == QUERN_OUTPUT && strcmp(buffer->name, "correct") == 0)
            e->correct = i;
    }
    if (n_inputs != 2)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "a trainer takes a model with one input, not %d: run the entries of "
                        "quern_make_training in sessions instead",
                        n_inputs - 1);
    return quern_session_new(t->model, name, &e->session);
}

int quern_trainer_new(quern_module *module, const quern_train_options *train,
                      const quern_compile_options *compile, quern_trainer **out)
{
    *out = NULL;
    int status = quern_make_training(module, train);
    quern_trainer *t = calloc(1, sizeof *t);
    QN_ASSERT(t, "out of memory");
    if (!status)
        status = quern_compile(module, compile, &t->model);
    if (!status) {
        qn_call call;
        qn_call_begin(&call);
        status = open_entry(t, "train_step", &t->step, &call.diags);
        if (!status)
            status = open_entry(t, "eval", &t->eval, &call.diags);
        /* a session reports its own failure */
        if (call.diags.n_errors)
            status = qn_call_end(&call, (qn_status)status);
        else
            qn_call_end(&call, QUERN_OK);
    }
    if (!status)
        status = quern_session_share_states(t->eval.session, t->step.session);
    if (status)
        quern_trainer_free(t);
    else
        *out = t;
    return status;
}

int quern_train(quern_builder *b, const quern_train_options *train, const quern_compile_options *compile,
                quern_trainer **out)
{
    quern_module *module;
    *out = NULL;
    int status = quern_builder_finish(b, &module);
    if (!status)
        status = quern_trainer_new(module, train, compile, out);
    quern_module_free(module);
    return status;
}

void quern_trainer_free(quern_trainer *t)
{
    if (!t)
        return;
    quern_session_free(t->eval.session);
    quern_session_free(t->step.session);
    quern_model_free(t->model);
    free(t);
}

quern_session *quern_trainer_session(quern_trainer *t)
{
    return t->step.session;
}

const quern_entry_info *quern_trainer_entry(const quern_trainer *t)
{
    return quern_model_entry(t->model, "train_step");
}

static int run(const bound_entry *e, const quern_array *x, const quern_array *target, double *out_loss,
               int64_t *out_correct)
{
    quern_array result;
    int status = quern_session_bind(e->session, e->inputs[0], x);
    if (!status)
        status = quern_session_bind(e->session, e->inputs[1], target);
    if (!status)
        status = quern_session_run(e->session);
    if (!status && out_loss) {
        status = quern_session_get(e->session, e->loss, &result);
        if (!status)
            *out_loss = qn_scalar_load((qn_dtype)result.dtype, result.data).f;
    }
    if (!status && out_correct) {
        *out_correct = -1;
        if (e->correct >= 0)
            status = quern_session_get(e->session, e->correct, &result);
        if (!status && e->correct >= 0)
            *out_correct = *(int64_t *)result.data;
    }
    return status;
}

int quern_trainer_step(quern_trainer *t, const quern_array *x, const quern_array *target, double *out_loss)
{
    return run(&t->step, x, target, out_loss, NULL);
}

int quern_trainer_eval(quern_trainer *t, const quern_array *x, const quern_array *target, double *out_loss,
                       int64_t *out_correct)
{
    return run(&t->eval, x, target, out_loss, out_correct);
}

/* Rows of an array, as a batch: in place, or gathered into memory of its own. */
typedef struct rows {
    const quern_array *from;
    int64_t dims[QN_MAX_RANK];
    size_t row_bytes;
    char *memory; /* or NULL */
} rows;

static quern_array take(rows *r, const int64_t *order, int64_t first, int64_t n)
{
    char *data = (char *)r->from->data + (size_t)first * r->row_bytes;
    for (int64_t i = 0; r->memory && i < n; i++)
        memcpy(r->memory + (size_t)i * r->row_bytes,
               (const char *)r->from->data + (size_t)order[first + i] * r->row_bytes, r->row_bytes);
    r->dims[0] = n;
    return (quern_array){
        .dtype = r->from->dtype, .rank = r->from->rank, .dims = r->dims, .data = r->memory ? r->memory : data
    };
}

static void rows_init(rows *r, const quern_array *from, int64_t batch, bool gathered, qn_arena *arena)
{
    *r = (rows){ .from = from, .row_bytes = quern_dtype_size(from->dtype) };
    memcpy(r->dims, from->dims, (size_t)from->rank * sizeof *from->dims);
    for (int i = 1; i < from->rank; i++)
        r->row_bytes *= (size_t)from->dims[i];
    if (gathered)
        r->memory = qn_arena_alloc(arena, (size_t)batch * r->row_bytes + 1);
}

static qn_status check_rows(const quern_array *x, const quern_array *target, int64_t batch, qn_diags *diags)
{
    const quern_array *both[] = { x, target };
    for (int i = 0; i < 2; i++)
        if (both[i]->rank < 1 || both[i]->rank > QN_MAX_RANK || !quern_dtype_size(both[i]->dtype))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "quern_trainer_epoch: %s has no first axis of samples", i ? "target" : "x");
    if (x->dims[0] != target->dims[0])
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "quern_trainer_epoch: x has %lld samples, and target %lld", (long long)x->dims[0],
                        (long long)target->dims[0]);
    if (batch < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "quern_trainer_epoch: the batch must be at least 1");
    return QUERN_OK;
}

int quern_trainer_epoch(quern_trainer *t, const quern_array *x, const quern_array *target, int64_t batch,
                        uint64_t shuffle, double *out_losses)
{
    qn_call call;
    qn_call_begin(&call);
    int status = qn_call_need(&call, x, "quern_trainer_epoch", "x");
    if (!status)
        status = qn_call_need(&call, target, "quern_trainer_epoch", "target");
    if (!status)
        status = check_rows(x, target, batch, &call.diags);
    if (status)
        return qn_call_end(&call, (qn_status)status);
    const int64_t n = x->dims[0];
    if (batch > n)
        batch = n;
    int64_t *order = NULL;
    if (shuffle) {
        order = QN_NEW_ARRAY(call.arena, int64_t, n);
        qn_random_order(n, order, shuffle, 0);
    }
    rows both[2];
    rows_init(&both[0], x, batch, shuffle != 0, call.arena);
    rows_init(&both[1], target, batch, shuffle != 0, call.arena);
    for (int64_t first = 0, i = 0; first < n && !status; first += batch, i++) {
        const int64_t taken = n - first < batch ? n - first : batch;
        const quern_array batch_x = take(&both[0], order, first, taken);
        const quern_array batch_target = take(&both[1], order, first, taken);
        status = run(&t->step, &batch_x, &batch_target, out_losses ? &out_losses[i] : NULL, NULL);
    }
    /* what was gathered goes away with the call */
    for (int i = 0; i < 2; i++) {
        const int unbound = quern_session_bind(t->step.session, t->step.inputs[i], NULL);
        status = status ? status : unbound;
    }
    qn_call_end(&call, QUERN_OK);
    return status;
}
