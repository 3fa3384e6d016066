/* quern train: a forward model learns from arrays in files; writes the trained model, checkpoints, the step as an object. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver/api.h"
#include "driver/checkpoint.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"
#include "driver/tensors.h"
#include "driver/train_data.h"
#include "ir/clock.h"
#include "quern_tensor.h"
#include "runtime/session.h"

enum {
    DATA,
    TEST,
    LOSS,
    OPTIMIZER,
    RATE,
    EPOCHS,
    BATCH,
    BATCH_AXIS,
    SEED,
    OUTPUT,
    CHECKPOINT,
    RESUME,
    EMIT_STEP,
    PARTS,
    INPUT_GRADIENTS,
    MOMENTUM,
    NESTEROV,
    BETA1,
    BETA2,
    EPSILON,
    ALPHA,
    TRUST,
    DECAY,
    CLIP,
    EMA,
    DELTA,
    SMOOTHING,
    SCHEDULE,
    WARMUP,
    SCHEDULE_STEPS,
    FACTOR,
    LOSS_SCALE,
    LOSS_SCALE_STEPS,
    PARAMS,
    DATA_PARALLEL,
    SYNC_BATCH_NORM,
    BUCKET
};

static const qn_cli_option options[] = {
    [DATA] = { "data", 'd', "[NAME=]FILE",
               ".npz with the inputs' names (or x, in_0, …) and target (or y), or .npy" },
    [TEST] = { "test", 0, "[NAME=]FILE", "likewise: what the model is measured on after each epoch" },
    [LOSS] = { "loss", 0, "NAME",
               "cross_entropy, mse, huber, bce, bce_with_logits, output (the model's own); cross_entropy. "
               "none: the host's, with --parts" },
    [OPTIMIZER] = { "optimizer", 0, "NAME", "sgd, adam, adamw, rmsprop, adagrad, lars, lamb; adamw" },
    [RATE] = { "learning-rate", 0, "X", "1e-3" },
    [EPOCHS] = { "epochs", 0, "N", "passes over the data; 1" },
    [BATCH] = { "batch", 0, "N", "rows of a step; 32, or what the model says" },
    [BATCH_AXIS] = { "batch-axis", 0, "[NAME=]N",
                     "along which axis the rows lie, of all inputs and the target or of NAME; 0" },
    [SEED] = { "seed", 0, "N", "of the order of the data and of dropout; 0" },
    [OUTPUT] = { "output", 'o', "FILE", "the trained ONNX model; external data goes to FILE.data" },
    [CHECKPOINT] = { "checkpoint", 0, "FILE", "all states as safetensors, after each epoch" },
    [RESUME] = { "resume", 0, NULL, "go on from the checkpoint" },
    [EMIT_STEP] = { "emit-step", 0, "FILE.so",
                    "entries infer, train_step and eval as a shared object (or .a, .o, …), and a C header" },
    [PARTS] = { "parts", 0, NULL, "with --emit-step: also entries forward, backward and update" },
    [INPUT_GRADIENTS] = { "input-gradients", 0, NULL,
                          "with --parts: backward gives those of the inputs too" },
    [MOMENTUM] = { "momentum", 0, "X", "sgd, rmsprop, lars; 0" },
    [NESTEROV] = { "nesterov", 0, NULL, "Nesterov's momentum" },
    [BETA1] = { "beta1", 0, "X", "adam, adamw, lamb; 0.9" },
    [BETA2] = { "beta2", 0, "X", "0.999" },
    [EPSILON] = { "epsilon", 0, "X", "of the optimizer; 1e-8 (adagrad 1e-10, lamb 1e-6)" },
    [ALPHA] = { "alpha", 0, "X", "rmsprop; 0.99" },
    [TRUST] = { "trust", 0, "X", "lars; 1e-3" },
    [DECAY] = { "weight-decay", 0, "X", "0" },
    [CLIP] = { "clip-norm", 0, "X", "most that the norm of all gradients together may be" },
    [EMA] = { "ema", 0, "X", "keep averages of the parameters with this decay, and write these" },
    [DELTA] = { "huber-delta", 0, "X", "1" },
    [SMOOTHING] = { "label-smoothing", 0, "X",
                    "cross_entropy: the share that goes evenly to all classes; 0" },
    [SCHEDULE] = { "schedule", 0, "NAME",
                   "of the learning rate: constant, cosine, linear, step; host: the state learning_rate" },
    [WARMUP] = { "warmup-steps", 0, "N", "steps in which the learning rate rises" },
    [SCHEDULE_STEPS] = { "schedule-steps", 0, "N",
                         "cosine, linear: all steps after the warm-up; step: between drops" },
    [FACTOR] = { "schedule-factor", 0, "X", "cosine, linear: of the last rate, 0; step: of each drop, 0.1" },
    [LOSS_SCALE] = { "loss-scale", 0, "X",
                     "for float16: compute gradients times X; those that are not finite are skipped" },
    [LOSS_SCALE_STEPS] = { "loss-scale-steps", 0, "N",
                           "halve the scale where gradients are not finite, double it after N good steps" },
    [PARAMS] = { "params", 0, "NAMES", "train only these, with commas between; * stands for any letters" },
    [DATA_PARALLEL] = { "data-parallel", 0, NULL,
                        "a rank of mpirun (-n P quern train …): each takes its part of each batch" },
    [SYNC_BATCH_NORM] = { "sync-batch-norm", 0, NULL,
                          "with --data-parallel: batch norms take the statistics of all ranks' rows" },
    [BUCKET] = { "bucket-bytes", 0, "N",
                 "with --data-parallel: of gradients that are averaged together; 4194304" },
    { NULL, 0, NULL, NULL },
};

typedef struct train {
    qn_cli cli;
    qn_arena *arena;
    qn_diags diags;
    qn_vec(const char *) data, test, params;
    qn_vec(qn_batch_axis) axes;
    quern_train_options how;
    long epochs, batch, seed;
    long rows;        /* of a step on this rank: its part of the batch */
    quern_comm *comm; /* NULL: this is the only rank */
    const char *output, *checkpoint, *emit_step;
    bool resume;
    quern_model *model, *eval_model;
    quern_session *step, *eval;
    qn_train_data samples, test_samples;
    int loss_buffer;
} train;

/* ---- options ---- */

static int read_real(train *t, int option, const char *value, double *to)
{
    return qn_cli_real(value, to)
               ? QN_EXIT_OK
               : qn_cli_usage(&t->cli, "--%s %s: a number of at least 0", options[option].name, value);
}

/* Of numbers whose 0 means the usual one: nobody asks for that by writing 0. */
static int read_positive(train *t, int option, const char *value, double *to)
{
    return qn_cli_real(value, to) && *to > 0
               ? QN_EXIT_OK
               : qn_cli_usage(&t->cli, "--%s %s: a number above 0", options[option].name, value);
}

static int read_number(train *t, int option, const char *value, long least, long *to)
{
    return qn_cli_number(value, least, 1000000000000, to)
               ? QN_EXIT_OK
               : qn_cli_usage(&t->cli, "--%s %s: a number of at least %ld", options[option].name, value,
                              least);
}

/* [NAME=]N */
static int read_axis(train *t, const char *value)
{
    const char *name = NULL, *number = value;
    long axis;
    if (!qn_cli_split(value, t->arena, &name, &number))
        number = value;
    if (!qn_cli_number(number, 0, QN_MAX_RANK - 1, &axis))
        return qn_cli_usage(&t->cli, "--batch-axis %s: [NAME=]N, N being the number of an axis from 0 on",
                            value);
    const qn_batch_axis said = { name, (int)axis };
    qn_vec_push(t->arena, &t->axes, said);
    return QN_EXIT_OK;
}

static int accept(void *user, int option, const char *value)
{
    train *t = user;
    long number = 0;
    int status = QN_EXIT_OK;
    switch (option) {
    case DATA: qn_vec_push(t->arena, &t->data, value); break;
    case TEST: qn_vec_push(t->arena, &t->test, value); break;
    case LOSS: t->how.loss = strcmp(value, "none") == 0 ? NULL : value; break;
    case OPTIMIZER: t->how.optimizer = value; break;
    case RATE: return read_real(t, option, value, &t->how.learning_rate);
    case EPOCHS: return read_number(t, option, value, 0, &t->epochs);
    case BATCH: return read_number(t, option, value, 1, &t->batch);
    case BATCH_AXIS: return read_axis(t, value);
    case SEED: return read_number(t, option, value, 0, &t->seed);
    case OUTPUT: t->output = value; break;
    case CHECKPOINT: t->checkpoint = value; break;
    case RESUME: t->resume = true; break;
    case EMIT_STEP: t->emit_step = value; break;
    case PARTS: t->how.parts = 1; break;
    case INPUT_GRADIENTS: t->how.input_gradients = 1; break;
    case MOMENTUM: return read_real(t, option, value, &t->how.momentum);
    case NESTEROV: t->how.nesterov = 1; break;
    case BETA1: return read_positive(t, option, value, &t->how.beta1);
    case BETA2: return read_positive(t, option, value, &t->how.beta2);
    case EPSILON: return read_positive(t, option, value, &t->how.epsilon);
    case ALPHA: return read_positive(t, option, value, &t->how.alpha);
    case TRUST: return read_positive(t, option, value, &t->how.trust);
    case DECAY: return read_real(t, option, value, &t->how.weight_decay);
    case CLIP: return read_real(t, option, value, &t->how.clip_norm);
    case EMA: return read_real(t, option, value, &t->how.ema);
    case DELTA: return read_positive(t, option, value, &t->how.huber_delta);
    case SMOOTHING: return read_real(t, option, value, &t->how.label_smoothing);
    case DATA_PARALLEL: t->how.data_parallel = 1; break;
    case SYNC_BATCH_NORM: t->how.sync_batch_norm = 1; break;
    case BUCKET:
        status = read_number(t, option, value, 1, &number);
        t->how.bucket_bytes = number;
        return status;
    case SCHEDULE: t->how.schedule = value; break;
    case FACTOR: return read_real(t, option, value, &t->how.schedule_factor);
    case LOSS_SCALE: return read_real(t, option, value, &t->how.loss_scale);
    case LOSS_SCALE_STEPS:
        status = read_number(t, option, value, 1, &number);
        t->how.loss_scale_steps = number;
        return status;
    case WARMUP:
        status = read_number(t, option, value, 0, &number);
        t->how.warmup_steps = number;
        return status;
    case SCHEDULE_STEPS:
        status = read_number(t, option, value, 1, &number);
        t->how.schedule_steps = number;
        return status;
    case PARAMS:
        for (const char *at = value; at; at = strchr(at, ',')) {
            at += *at == ',';
            const char *name = qn_arena_printf(t->arena, "%.*s", (int)strcspn(at, ","), at);
            qn_vec_push(t->arena, &t->params, name);
        }
        break;
    default: return qn_cli_usage(&t->cli, "one model at a time: what is '%s'?", value);
    }
    return QN_EXIT_OK;
}

/* ---- ranks ---- */

static int rank_of(const train *t)
{
    return t->comm ? t->comm->rank : 0;
}

static int ranks_of(const train *t)
{
    return t->comm ? t->comm->ranks : 1;
}

/* Ranks of one machine share its cores, unless mpirun has given each its own. */
static void share_threads(train *t)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE") ? getenv("OMPI_COMM_WORLD_LOCAL_SIZE")
                                                             : getenv("MPI_LOCALNRANKS");
    long ranks;
    if (t->cli.compile.threads || !local || !qn_cli_number(local, 1, 1 << 20, &ranks))
        return;
    quern_pool *pool = quern_pool_new(0);
    const int may = quern_pool_threads(pool);
    quern_pool_free(pool);
    t->cli.compile.threads = may < sysconf(_SC_NPROCESSORS_ONLN) ? may : may > ranks ? may / (int)ranks : 1;
}

/* Rank 0 alone prints and writes. */
static int join_ranks(train *t)
{
    if (!t->how.data_parallel)
        return QN_EXIT_OK;
    if (quern_comm_mpi(&t->comm))
        return qn_cli_fail_api(&t->cli);
    if (rank_of(t) > 0) {
        t->output = NULL;
        if (!freopen("/dev/null", "w", stdout))
            return qn_cli_fail(&t->cli, "/dev/null can't be opened");
    }
    share_threads(t);
    return QN_EXIT_OK;
}

/* ---- models ---- */

/* The axis of rows of the forward model's input i, if it is an input with one. */
static bool batch_dim(const train *t, const qn_graph *forward, int i, qn_dim *out)
{
    const qn_type *type = &forward->inputs[i]->type;
    const int axis = qn_batch_axis_of((int)t->axes.n, t->axes.items, forward->inputs[i]->name);
    if (forward->input_roles[i] != QN_ROLE_INPUT || axis >= type->rank)
        return false;
    *out = type->dims[axis];
    return true;
}

/* The forward model's extents of batches: with a symbol there, the batch is free. Gives the number of them, or says what is given. */
static int find_batch(train *t, const quern_module *module)
{
    const qn_graph *forward = module->ir->functions[0];
    qn_dim dim;
    for (int i = 0; i < forward->n_inputs; i++) {
        if (!batch_dim(t, forward, i, &dim))
            continue;
        if (qn_dim_is_const(dim)) {
            if (t->batch && t->batch != dim->value * ranks_of(t))
                return qn_cli_fail(&t->cli,
                                   "the model is made for batches of %" PRId64
                                   ", not of %ld: so long is the axis "
                                   "of rows of input '%s' (--batch-axis)",
                                   dim->value, t->batch / ranks_of(t), forward->inputs[i]->name);
            t->batch = (long)dim->value * ranks_of(t);
        } else if (dim->kind != QN_DIM_SYMBOL || t->cli.n_dims == QN_CLI_MAX_DIMS ||
                   strlen(dim->name) >= QN_CLI_MAX_NAME) {
            return qn_cli_fail(&t->cli, "the dimension of rows of input '%s' is neither a number nor a name",
                               forward->inputs[i]->name);
        }
    }
    t->batch = t->batch ? t->batch : 32;
    t->rows = t->batch / ranks_of(t);
    if (t->batch % ranks_of(t))
        return qn_cli_fail(&t->cli, "a batch of %ld does not go into %d equal parts, one for each rank",
                           t->batch, ranks_of(t));
    return QN_EXIT_OK;
}

/* Names of dimensions of rows are fixed to the batch. */
static void fix_batch(train *t, const quern_module *module)
{
    const qn_graph *forward = module->ir->functions[0];
    qn_dim dim;
    for (int i = 0; i < forward->n_inputs; i++) {
        if (!batch_dim(t, forward, i, &dim) || qn_dim_is_const(dim))
            continue;
        const char *name = dim->name;
        bool known = false;
        for (int k = 0; k < t->cli.n_dims; k++)
            known |= strcmp(t->cli.dims[k].name, name) == 0;
        if (known)
            continue;
        char *copy = t->cli.dim_names[t->cli.n_dims];
        memcpy(copy, name, strlen(name) + 1);
        t->cli.dims[t->cli.n_dims++] = (quern_dim_range){ copy, t->rows, t->rows };
    }
}

/* The step for whole batches. The measuring entry of any number of rows comes from a second module where the batch is free. */
static int make_models(train *t)
{
    int status = QN_EXIT_OK;
    quern_module *free_module = qn_cli_module(&t->cli, &status), *module = NULL;
    if (!free_module)
        return status;
    status = find_batch(t, free_module);
    const int n_dims = t->cli.n_dims;
    fix_batch(t, free_module);
    const bool is_free = t->cli.n_dims > n_dims;
    if (!status)
        module = qn_cli_module(&t->cli, &status);
    if (module && quern_make_training(module, &t->how))
        status = qn_cli_fail_api(&t->cli);
    if (!status && t->data.n)
        status = qn_cli_compile(&t->cli, module, &t->model);
    if (!status && t->emit_step)
        status = qn_cli_emit(&t->cli, module, &(quern_emit_options){ .size = sizeof(quern_emit_options) },
                             t->emit_step, NULL);
    if (!status && t->data.n && is_free) {
        t->cli.compile.remat = NULL; /* it has no gradients, and any number of rows */
        t->cli.compile.memory_limit = 0;
        if (qn_train_module(free_module->ir, &t->how, true, &t->diags))
            status = qn_cli_fail_diags(&t->cli, &t->diags);
        else
            status = qn_cli_compile(&t->cli, free_module, &t->eval_model);
    }
    quern_module_free(module);
    quern_module_free(free_module);
    return status;
}

/* The measuring session looks at the step's states. */
static int share_states(train *t)
{
    const quern_entry_info *entry = quern_model_entry(t->model, "train_step");
    const quern_entry_info *eval = quern_model_entry(t->eval_model ? t->eval_model : t->model, "eval");
    for (int i = 0; i < eval->n_buffers; i++) {
        const quern_buffer_info *info = qn_buffer_at(eval, i);
        for (int k = 0; info->role == QUERN_STATE && k < entry->n_buffers; k++) {
            quern_array array;
            if (qn_buffer_at(entry, k)->role != QUERN_STATE ||
                strcmp(qn_buffer_at(entry, k)->name, info->name) != 0)
                continue;
            quern_tensor *tensor = quern_session_tensor(t->step, k);
            const bool failed =
                tensor ? quern_session_bind_tensor(t->eval, i, tensor)
                       : quern_session_get(t->step, k, &array) || quern_session_bind(t->eval, i, &array);
            quern_tensor_free(tensor);
            if (failed)
                return qn_cli_fail_api(&t->cli);
        }
    }
    return QN_EXIT_OK;
}

/* States are on the GPU that the model runs on while it learns, and come back for who writes or reads them. */
static int move_states(train *t, bool to_device)
{
    if (!t->model->device)
        return QN_EXIT_OK;
    if (quern_session_states_to(t->step, to_device ? t->model->device->name : "cpu"))
        return qn_cli_fail_api(&t->cli);
    return share_states(t);
}

static int make_sessions(train *t)
{
    quern_model *measured = t->eval_model ? t->eval_model : t->model;
    if (quern_session_new(t->model, "train_step", &t->step) || quern_session_new(measured, "eval", &t->eval))
        return qn_cli_fail_api(&t->cli);
    t->loss_buffer = qn_entry_buffer(quern_model_entry(t->model, "train_step"), QUERN_OUTPUT, 0);
    return share_states(t);
}

/* ---- training ---- */

static int bind(train *t, quern_session *session, const quern_entry_info *entry, const qn_train_data *data)
{
    for (int k = 0; k < data->n_buffers; k++)
        if (quern_session_bind(session, qn_entry_buffer(entry, QUERN_INPUT, k), &data->batch[k]))
            return qn_cli_fail_api(&t->cli);
    return QN_EXIT_OK;
}

static double scalar_of(quern_session *session, int buffer)
{
    quern_array array;
    if (quern_session_get(session, buffer, &array))
        return NAN;
    const qn_scalar value = qn_scalar_load((qn_dtype)array.dtype, array.data);
    return qn_dtype_is_float((qn_dtype)array.dtype) ? value.f : (double)value.i;
}

static int train_epoch(train *t, long epoch, double *out_loss)
{
    const quern_entry_info *entry = quern_model_entry(t->model, "train_step");
    const int64_t n = qn_train_data_batches(&t->samples, t->rows, false) / ranks_of(t);
    qn_train_data_shuffle(&t->samples, (uint64_t)t->seed, epoch);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        qn_train_data_take(&t->samples, i * ranks_of(t) + rank_of(t), t->rows);
        int status = i ? QN_EXIT_OK : bind(t, t->step, entry, &t->samples);
        if (status)
            return status;
        if (quern_session_run(t->step))
            return qn_cli_fail_api(&t->cli);
        const double loss = scalar_of(t->step, t->loss_buffer);
        if (!isfinite(loss))
            return qn_cli_fail(&t->cli,
                               "the loss is %s in epoch %ld, batch %" PRId64
                               ": nothing is written. A smaller --learning-rate or --clip-norm may help; "
                               "--check-numerics names the node",
                               isnan(loss) ? "NaN" : "infinite", epoch + 1, i + 1);
        sum += loss;
        if (i * 200 / n == (i + 1) * 200 / n)
            continue;
        char text[96];
        snprintf(text, sizeof text, "epoch %ld/%ld, loss %.4g, batch", epoch + 1, t->epochs,
                 sum / (double)(i + 1));
        qn_cli_progress(&t->cli, text, (int)(i + 1), (int)n);
    }
    qn_cli_progress_end(&t->cli);
    *out_loss = sum / (double)n;
    return QN_EXIT_OK;
}

/* Loss and share of right rows (NAN where the loss has none) over all samples, in their order. */
static int measure(train *t, qn_train_data *data, double *out_loss, double *out_share)
{
    quern_model *measured = t->eval_model ? t->eval_model : t->model;
    const quern_entry_info *entry = quern_model_entry(measured, "eval");
    const int correct_buffer = qn_entry_buffer(entry, QUERN_OUTPUT, 1);
    const int64_t n = qn_train_data_batches(data, t->rows, t->eval_model != NULL);
    double loss = 0, correct = 0, rows = 0, targets = 0;
    for (int64_t i = 0; i < data->n_samples; i++)
        data->order[i] = i;
    for (int64_t i = 0; i < n; i++) {
        const double taken = (double)qn_train_data_take(data, i, t->rows);
        int status = bind(t, t->eval, entry, data);
        if (status)
            return status;
        if (quern_session_run(t->eval))
            return qn_cli_fail_api(&t->cli);
        const quern_array *target = &data->batch[data->n_buffers - 1];
        double elements = 1;
        for (int axis = 0; axis < target->rank; axis++)
            elements *= (double)target->dims[axis];
        loss += taken * scalar_of(t->eval, qn_entry_buffer(entry, QUERN_OUTPUT, 0));
        correct += correct_buffer >= 0 ? scalar_of(t->eval, correct_buffer) : 0;
        rows += taken;
        targets += elements;
    }
    *out_loss = rows > 0 ? loss / rows : NAN;
    *out_share = correct_buffer >= 0 && targets > 0 ? correct / targets : NAN;
    return QN_EXIT_OK;
}

/* What makes a checkpoint go on with the same bits, beside the states. */
static const char *note_of(train *t, long epochs)
{
    return qn_arena_printf(t->arena, "epochs=%ld batch=%ld seed=%ld samples=%" PRId64, epochs, t->batch,
                           t->seed, t->samples.n_samples);
}

static int resume(train *t, long *out_epoch)
{
    const char *note;
    long epochs, batch, seed;
    long long samples;
    if (rank_of(t) > 0) /* it gets them from rank 0 */
        return QN_EXIT_OK;
    if (qn_checkpoint_restore(1, &t->step, t->checkpoint, &note, &t->diags))
        return qn_cli_fail_diags(&t->cli, &t->diags);
    if (sscanf(note, "epochs=%ld batch=%ld seed=%ld samples=%lld", &epochs, &batch, &seed, &samples) != 4)
        return qn_cli_fail(&t->cli, "%s: it was not written by quern train", t->checkpoint);
    if (batch != t->batch || seed != t->seed || samples != t->samples.n_samples)
        return qn_cli_fail(
            &t->cli,
            "%s was made with --batch %ld --seed %ld on %lld samples: with others it does not go on "
            "where it stopped",
            t->checkpoint, batch, seed, samples);
    *out_epoch = epochs;
    printf("resumed %s after %ld epochs\n", t->checkpoint, epochs);
    return QN_EXIT_OK;
}

static int report(train *t, const char *what, qn_train_data *data)
{
    double loss = NAN, share = NAN;
    int status = measure(t, data, &loss, &share);
    if (status)
        return status;
    printf("%s loss %.6g", what, loss);
    if (!isnan(share))
        printf(", accuracy %.2f %%", 100 * share);
    return QN_EXIT_OK;
}

/* A rank with other samples would be through with an epoch before or behind the others. */
static int compare_samples(train *t)
{
    const int64_t n = t->samples.n_samples;
    int64_t most[2] = { n, -n };
    if (t->comm && quern_comm_all_reduce(t->comm, most, most, 2, QUERN_I64, QUERN_COMBINE_MAX))
        return qn_cli_fail_api(&t->cli);
    if (t->comm && most[0] != -most[1])
        return qn_cli_fail(&t->cli,
                           "--data has %" PRId64 " samples for rank %d, and from %" PRId64 " to %" PRId64
                           " for all: each rank reads the same",
                           n, rank_of(t), -most[1], most[0]);
    return QN_EXIT_OK;
}

static int train_epochs(train *t)
{
    long first = 0;
    int status = compare_samples(t);
    if (!status && t->resume)
        status = resume(t, &first);
    int64_t begin = first;
    if (!status && (quern_comm_broadcast(t->comm, &begin, 1, QUERN_I64, 0) ||
                    quern_session_broadcast_states(t->step, 0)))
        status = qn_cli_fail_api(&t->cli);
    first = (long)begin;
    for (long epoch = first; epoch < t->epochs && !status; epoch++) {
        const double start = qn_seconds();
        double loss = NAN;
        status = move_states(t, true);
        if (!status)
            status = train_epoch(t, epoch, &loss);
        if (status)
            return status;
        const double seconds = qn_seconds() - start;
        printf("epoch %ld/%ld: loss %.6g", epoch + 1, t->epochs, loss);
        if (t->test.n && rank_of(t) == 0)
            status = report(t, ", test", &t->test_samples);
        printf(" (%.2f s)\n", seconds);
        fflush(stdout);
        if (!status && t->checkpoint && rank_of(t) == 0)
            status = move_states(t, false);
        if (!status && t->checkpoint && rank_of(t) == 0 &&
            qn_checkpoint_save(1, &t->step, t->checkpoint, note_of(t, epoch + 1), &t->diags))
            status = qn_cli_fail_diags(&t->cli, &t->diags);
    }
    if (!status && !t->test.n && rank_of(t) == 0) {
        status = move_states(t, true);
        if (!status)
            status = report(t, "trained:", &t->samples);
        putchar('\n');
    }
    return status ? status : move_states(t, false);
}

static int run(train *t)
{
    const quern_entry_info *entry;
    int status = make_models(t);
    if (status || !t->data.n)
        return status;
    entry = quern_model_entry(t->model, "train_step");
    const bool has_target = qn_entry_count(entry, QUERN_INPUT) >
                            qn_entry_count(quern_model_entry(t->model, "infer"), QUERN_INPUT);
    const int n_axes = (int)t->axes.n;
    status = qn_train_data_read(&t->cli, entry, (int)t->data.n, t->data.items, has_target, t->rows, n_axes,
                                t->axes.items, t->arena, &t->diags, &t->samples);
    if (!status && qn_train_data_batches(&t->samples, t->rows, false) < ranks_of(t))
        status = qn_cli_fail(&t->cli, "the data has %" PRId64 " samples: too few for a batch of %ld",
                             t->samples.n_samples, t->batch);
    if (!status && t->test.n)
        status = qn_train_data_read(&t->cli, entry, (int)t->test.n, t->test.items, has_target, t->rows,
                                    n_axes, t->axes.items, t->arena, &t->diags, &t->test_samples);
    if (!status)
        status = make_sessions(t);
    if (!status) {
        quern_session_set_comm(t->step, t->comm);
        status = train_epochs(t);
    }
    if (!status && t->output && qn_write_onnx(t->step, t->cli.model, t->output, t->how.ema != 0, &t->diags))
        status = qn_cli_fail_diags(&t->cli, &t->diags);
    return status;
}

/* Can it be written? Better known before the work than after it. */
static int try_path(train *t, const char *path)
{
    qn_output output;
    if (path && qn_output_reserve(&output, path, &t->diags))
        return qn_cli_fail_diags(&t->cli, &t->diags);
    if (path)
        qn_output_discard(&output);
    return QN_EXIT_OK;
}

static int check_usage(train *t)
{
    if (!t->data.n && !t->emit_step)
        return qn_cli_usage(&t->cli, "learn from what? --data FILE.npz");
    if ((t->how.parts || !t->how.loss) && (t->data.n || !t->emit_step))
        return qn_cli_usage(&t->cli,
                            "--parts and --loss none are for hosts: with --emit-step, without --data");
    if ((t->how.sync_batch_norm || t->how.bucket_bytes) && !t->how.data_parallel)
        return qn_cli_usage(&t->cli, "--sync-batch-norm and --bucket-bytes are for --data-parallel");
    if (t->data.n && !t->output && !t->checkpoint)
        return qn_cli_usage(&t->cli, "where to? -o FILE.onnx, or --checkpoint FILE.safetensors");
    if (t->resume && !t->checkpoint)
        return qn_cli_usage(&t->cli, "--resume goes on from what --checkpoint names");
    if (t->output && qn_is_text_model(t->cli.model))
        return qn_cli_fail(&t->cli,
                           "-o %s: only ONNX models are written back; --checkpoint takes the states of any",
                           t->output);
    int status = try_path(t, t->output);
    return status ? status : try_path(t, t->checkpoint);
}

int quern_main_train(int argc, char **argv)
{
    train t = {
        .cli = { .command = "train",
                 .synopsis = "MODEL.onnx --data FILE.npz -o TRAINED.onnx [options]",
                 .options = options,
                 .accept = accept },
        .how = { .size = sizeof t.how, .loss = "cross_entropy", .optimizer = "adamw", .learning_rate = 1e-3 },
        .epochs = 1
    };
    int status = QN_EXIT_OK;
    t.cli.user = &t;
    t.arena = qn_arena_new();
    qn_diags_init(&t.diags, t.arena);
    const bool good = qn_cli_read(&t.cli, argc, argv, &status);
    if (good)
        status = check_usage(&t);
    if (good && !status)
        status = join_ranks(&t);
    if (good && !status) {
        t.how.n_params = (int)t.params.n;
        t.how.params = t.params.items;
        t.how.seed = (uint64_t)t.seed;
        t.how.math = t.cli.compile.math;
        status = run(&t);
    }
    if (t.comm && status) /* the others need not wait */
        t.comm->fail(t.comm, "see its message");
    quern_session_free(t.eval);
    quern_session_free(t.step);
    quern_model_free(t.eval_model);
    quern_model_free(t.model);
    qn_arena_free(t.arena);
    status = status ? status : qn_cli_finish(&t.cli);
    quern_comm_free(t.comm);
    return status;
}
