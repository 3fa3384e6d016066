/* quern.h: a trainer, which keeps the sessions of a learning model and cuts arrays into batches. */
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/shuffle.h"
#include "quern_tensor.h"
#include "runtime/error.h"
#include "runtime/model.h"

/* An entry and where its buffers are. */
typedef struct bound_entry {
    quern_session *session;
    int n_inputs, *inputs;         /* the model's; behind them the target, but not of infer */
    int *axes;                     /* for each: along which its rows lie */
    int target;                    /* the number of the target among them; -1 where there is none */
    int prediction, loss, correct; /* likewise */
} bound_entry;

struct quern_trainer {
    quern_model *model;
    bound_entry step, eval, infer;
    bool parallel;    /* the step averages over ranks */
    quern_comm *comm; /* or NULL */
};

static int open_entry(quern_trainer *t, const char *name, bound_entry *e)
{
    const quern_entry_info *info = quern_model_entry(t->model, name);
    *e = (bound_entry){ .prediction = -1, .loss = -1, .correct = -1 };
    e->inputs = calloc((size_t)info->n_buffers + 1, sizeof *e->inputs);
    e->axes = calloc((size_t)info->n_buffers + 1, sizeof *e->axes);
    QN_ASSERT(e->inputs && e->axes, "out of memory");
    for (int i = 0; i < info->n_buffers; i++) {
        const quern_buffer_info *buffer = &info->buffers[i];
        if (buffer->role == QUERN_INPUT)
            e->inputs[e->n_inputs++] = i;
        if (buffer->role != QUERN_OUTPUT)
            continue;
        if (e->prediction < 0)
            e->prediction = i;
        if (strcmp(buffer->name, "loss") == 0)
            e->loss = i;
        if (strcmp(buffer->name, "correct") == 0)
            e->correct = i;
    }
    e->target = e->n_inputs > t->infer.n_inputs ? e->n_inputs - 1 : -1;
    return quern_session_new(t->model, name, &e->session);
}

int quern_trainer_new(quern_module *module, const quern_train_options *train,
                      const quern_compile_options *compile, quern_trainer **out)
{
    qn_call call;
    *out = NULL;
    qn_call_begin(&call);
    int status = qn_need_size(train, "quern_train_options", &call.diags);
    if (!status)
        status = qn_need_size(compile, "quern_compile_options", &call.diags);
    if (qn_call_end(&call, status))
        return status;
    QN_OPTIONS(quern_train_options, how, train);
    QN_OPTIONS(quern_compile_options, compiled, compile);
    if (!how.loss && how.parts)
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "quern_trainer_new: no loss is named, so there is no step: compile the module of "
                       "quern_make_training and run forward, backward and update");
    how.size = sizeof how;
    how.math = how.math ? how.math : compiled.math;
    status = quern_make_training(module, &how);
    quern_trainer *t = calloc(1, sizeof *t);
    QN_ASSERT(t, "out of memory");
    if (!status)
        status = quern_compile(module, compile, &t->model);
    if (!status)
        status = open_entry(t, "infer", &t->infer); /* first: its inputs are the model's */
    if (!status)
        status = open_entry(t, "train_step", &t->step);
    t->parallel = how.data_parallel != 0;
    if (!status && t->model->device) /* they stay where they learn */
        status = quern_session_states_to(t->step.session, t->model->device->name);
    if (!status)
        status = open_entry(t, "eval", &t->eval);
    if (!status)
        status = quern_session_share_states(t->eval.session, t->step.session);
    if (!status)
        status = quern_session_share_states(t->infer.session, t->step.session);
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
    bound_entry *const entries[] = { &t->infer, &t->eval, &t->step };
    for (int i = 0; i < 3; i++) {
        quern_session_free(entries[i]->session);
        free(entries[i]->inputs);
        free(entries[i]->axes);
    }
    quern_model_free(t->model);
    free(t);
}

int quern_trainer_set_comm(quern_trainer *t, quern_comm *comm)
{
    if (!t->parallel)
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "quern_trainer_set_comm: the model was not trained with data_parallel");
    t->comm = comm;
    quern_session_set_comm(t->step.session, comm);
    return quern_session_broadcast_states(t->step.session, 0);
}

/* A state that is in `step`, but not in what the model is without training. */
static bool is_own(const quern_trainer *t, const char *name)
{
    return quern_session_find_role(t->step.session, QUERN_STATE, name) >= 0 &&
           quern_session_find(t->infer.session, name) < 0;
}

int quern_trainer_share(quern_trainer *t, quern_trainer *owner)
{
    const quern_entry_info *entry = quern_trainer_entry(t);
    for (int i = 0; i < entry->n_buffers; i++) {
        const char *name = entry->buffers[i].name;
        if (is_own(t, name) && is_own(owner, name))
            return qn_fail(QUERN_ERROR_ARGUMENT,
                           "quern_trainer_share: each training has a state '%s' of its own: give them names "
                           "(quern_train_options.name), and parameters of their own (params)",
                           name);
    }
    const bound_entry *const entries[] = { &t->step, &t->eval, &t->infer };
    int status = quern_session_share_states(t->step.session, owner->step.session);
    for (int i = 1; i < 3 && !status; i++)
        status = quern_session_share_states(entries[i]->session, t->step.session);
    return status;
}

quern_session *quern_trainer_session(quern_trainer *t)
{
    return t->step.session;
}

const quern_entry_info *quern_trainer_entry(const quern_trainer *t)
{
    return quern_model_entry(t->model, "train_step");
}

/* A step is a call of all ranks: where this one can't do its part, the others need not wait. */
static int tell_ranks(quern_trainer *t, int status)
{
    if (status && t->comm)
        t->comm->fail(t->comm, quern_last_error());
    return status;
}

static int run(const bound_entry *e, const quern_array *x, const quern_array *target, double *out_loss,
               int64_t *out_correct)
{
    quern_array result;
    int status = QUERN_OK;
    if ((target != NULL) != (e->target >= 0))
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       target ? "the loss takes no target: it must be NULL" : "the target is NULL");
    for (int i = 0; i < e->n_inputs && !status; i++)
        status = quern_session_bind(e->session, e->inputs[i], i == e->target ? target : &x[i]);
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
    return tell_ranks(t, run(&t->step, x, target, out_loss, NULL));
}

int quern_trainer_eval(quern_trainer *t, const quern_array *x, const quern_array *target, double *out_loss,
                       int64_t *out_correct)
{
    return run(&t->eval, x, target, out_loss, out_correct);
}

int quern_trainer_predict(quern_trainer *t, const quern_array *x, quern_array *out)
{
    const int status = run(&t->infer, x, NULL, NULL, NULL);
    return status ? status : quern_session_get(t->infer.session, t->infer.prediction, out);
}

int quern_trainer_batch_axis(quern_trainer *t, int which, int axis)
{
    if (which < 0 || which >= t->step.n_inputs)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_trainer_batch_axis: %d: x has %d arrays%s", which,
                       t->infer.n_inputs, t->step.target < 0 ? "" : ", and the target is the next");
    if (axis < 0 || axis >= QN_MAX_RANK)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_trainer_batch_axis: %d is no axis", axis);
    t->step.axes[which] = axis;
    return QUERN_OK;
}

/* Rows of an array, as a batch: in place, or gathered into memory of its own. */
typedef struct rows {
    const quern_array *from;
    int axis;
    int64_t dims[QN_MAX_RANK];
    size_t row_bytes; /* of one */
    char *memory;     /* or NULL */
} rows;

static quern_array take(rows *r, const int64_t *order, int64_t first, int64_t n)
{
    char *data = (char *)r->from->data + (size_t)first * r->row_bytes;
    if (r->memory)
        qn_samples_take(r->from, r->axis, order + first, n, r->memory);
    r->dims[r->axis] = n;
    return (quern_array){
        .dtype = r->from->dtype, .rank = r->from->rank, .dims = r->dims, .data = r->memory ? r->memory : data
    };
}

static void rows_init(rows *r, const quern_array *from, int axis, int64_t batch, bool gathered,
                      qn_arena *arena)
{
    *r = (rows){ .from = from, .axis = axis, .row_bytes = quern_dtype_size(from->dtype) };
    memcpy(r->dims, from->dims, (size_t)from->rank * sizeof *from->dims);
    for (int i = 0; i < from->rank; i++)
        r->row_bytes *= i == axis ? 1 : (size_t)from->dims[i];
    if (gathered)
        r->memory = qn_arena_alloc(arena, (size_t)batch * r->row_bytes + 1);
}

static const char *array_name(const bound_entry *e, int i, qn_arena *arena)
{
    return i == e->target ? "target" : i == 0 && e->n_inputs <= 2 ? "x" : qn_arena_printf(arena, "x[%d]", i);
}

/* The model's inputs, then the target. */
static qn_status check_rows(const bound_entry *e, const quern_array *const *arrays, int64_t batch,
                            qn_diags *diags)
{
    const int last = e->n_inputs - 1;
    for (int i = last; i >= 0; i--) {
        const char *name = array_name(e, i, diags->arena);
        const quern_array *a = arrays[i];
        if (a->rank <= e->axes[i] || a->rank > QN_MAX_RANK || !quern_dtype_size(a->dtype))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "quern_trainer_epoch: %s has no axis %d of samples", name, e->axes[i]);
        if (a->dims[e->axes[i]] != arrays[last]->dims[e->axes[last]])
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "quern_trainer_epoch: %s has %lld samples, and %s %lld", name,
                            (long long)a->dims[e->axes[i]], array_name(e, last, diags->arena),
                            (long long)arrays[last]->dims[e->axes[last]]);
    }
    if (batch < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "quern_trainer_epoch: the batch must be at least 1");
    if (arrays[last]->dims[e->axes[last]] < 1)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "quern_trainer_epoch: there are no samples");
    return QUERN_OK;
}

static int epoch(quern_trainer *t, const quern_array *x, const quern_array *target, int64_t batch,
                 uint64_t shuffle, double *out_losses)
{
    qn_call call;
    qn_call_begin(&call);
    int status = qn_call_need(&call, x, "quern_trainer_epoch", "x");
    if (!status && t->step.target >= 0)
        status = qn_call_need(&call, target, "quern_trainer_epoch", "target");
    const int n_arrays = t->step.n_inputs;
    const quern_array **arrays = QN_NEW_ARRAY(call.arena, const quern_array *, n_arrays);
    for (int i = 0; i < n_arrays; i++)
        arrays[i] = i == t->step.target ? target : &x[i];
    if (!status)
        status = check_rows(&t->step, arrays, batch, &call.diags);
    if (status)
        return qn_call_end(&call, (qn_status)status);
    const int64_t ranks = t->comm ? t->comm->ranks : 1, rank = t->comm ? t->comm->rank : 0;
    const int64_t n = arrays[n_arrays - 1]->dims[t->step.axes[n_arrays - 1]];
    if (batch % ranks)
        return qn_call_end(&call,
                           qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                                    "quern_trainer_epoch: a batch of %lld does not go into %lld equal parts",
                                    (long long)batch, (long long)ranks));
    if (batch > n)
        batch = n / ranks * ranks;
    if (batch < 1)
        return qn_call_end(&call, qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                                           "quern_trainer_epoch: %lld samples are too few for %lld ranks",
                                           (long long)n, (long long)ranks));
    int64_t *order = QN_NEW_ARRAY(call.arena, int64_t, n);
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    if (shuffle)
        qn_random_order(n, order, shuffle, 0);
    rows *all = QN_NEW_ARRAY(call.arena, rows, n_arrays);
    quern_array *taken = QN_NEW_ARRAY(call.arena, quern_array, n_arrays);
    for (int k = 0; k < n_arrays; k++)
        rows_init(&all[k], arrays[k], t->step.axes[k], batch, shuffle || t->step.axes[k], call.arena);
    for (int64_t first = 0, i = 0; first < n && !status; first += batch, i++) {
        const int64_t part = (n - first < batch ? n - first : batch) / ranks;
        if (part == 0)
            break;
        for (int k = 0; k < n_arrays; k++)
            taken[k] = take(&all[k], order, first + rank * part, part);
        status = run(&t->step, taken, target ? &taken[n_arrays - 1] : NULL,
                     out_losses ? &out_losses[i] : NULL, NULL);
    }
    /* what was gathered goes away with the call */
    for (int k = 0; k < n_arrays; k++) {
        const int unbound = quern_session_bind(t->step.session, t->step.inputs[k], NULL);
        status = status ? status : unbound;
    }
    qn_call_end(&call, QUERN_OK);
    return status;
}

int quern_trainer_epoch(quern_trainer *t, const quern_array *x, const quern_array *target, int64_t batch,
                        uint64_t shuffle, double *out_losses)
{
    return tell_ranks(t, epoch(t, x, target, batch, shuffle, out_losses));
}
