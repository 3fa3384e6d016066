/* quern.h: training steps. */
#include <math.h>
#include <string.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "passes/train.h"

/* The function that a training step is made of: the only one, "main" or "infer". */
static qn_graph *forward_function(const qn_module *module)
{
    if (module->n_functions == 1)
        return module->functions[0];
    qn_graph *graph = qn_module_find(module, "main");
    return graph ? graph : qn_module_find(module, "infer");
}

/* The number of the name in the list; -1 after a report that lists what there is. */
static int find_name(const qn_train_name *list, const char *what, const char *name, qn_diags *diags)
{
    const char *all = "";
    for (int i = 0; list[i].name; i++) {
        if (name && strcmp(list[i].name, name) == 0)
            return i;
        all = qn_arena_printf(diags->arena, "%s%s%s", all, i ? ", " : "", list[i].name);
    }
    qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "there is no %s '%s': expected %s", what, name ? name : "",
             all);
    return -1;
}

static double or_usual(double given, double usual)
{
    return given != 0 ? given : usual;
}

typedef struct range {
    const char *name;
    double value, low, below; /* low <= value < below */
} range;

static qn_status check_ranges(const quern_train_options *o, qn_diags *diags)
{
    const double any = INFINITY;
    const range ranges[] = {
        { "momentum", o->momentum, 0, 1 },
        { "beta1", o->beta1, 0, 1 },
        { "beta2", o->beta2, 0, 1 },
        { "epsilon", o->epsilon, 0, any },
        { "weight_decay", o->weight_decay, 0, any },
        { "alpha", o->alpha, 0, 1 },
        { "trust", o->trust, 0, any },
        { "clip_norm", o->clip_norm, 0, any },
        { "ema", o->ema, 0, 1 },
        { "huber_delta", o->huber_delta, 0, any },
        { "label_smoothing", o->label_smoothing, 0, 1 },
        { "loss_scale", o->loss_scale, 0, any },
        { "schedule_factor", o->schedule_factor, 0, any },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const range *r = &ranges[i];
        if (r->value >= r->low && r->value < r->below)
            continue;
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        r->below < any ? "%s is %g: it must be at least 0 and below 1"
                                       : "%s is %g: it must be a number of at least 0",
                        r->name, r->value);
    }
    if (!(o->learning_rate > 0 && o->learning_rate < any))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "learning_rate is %g: it must be above 0",
                        o->learning_rate);
    if (o->warmup_steps < 0 || o->schedule_steps < 0 || o->n_params < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "numbers of steps and parameters are not negative");
    if (o->loss_scale_steps < 0 || (o->loss_scale_steps > 0 && o->loss_scale == 0))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "loss_scale_steps are steps after which a loss_scale above 0 is doubled");
    if (o->loss_scale > 0 && o->parts)
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "loss_scale is of the whole step: in parts, the host scales what it gives to backward");
    if ((o->sync_batch_norm || o->bucket_bytes) && !o->data_parallel)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s is an option of data_parallel",
                        o->sync_batch_norm ? "sync_batch_norm" : "bucket_bytes");
    if (o->bucket_bytes < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "bucket_bytes is a number of bytes");
    if (o->sync_batch_norm && o->parts)
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "sync_batch_norm is of the whole step: its collectives would be in forward and in backward");
    if (o->nesterov && o->momentum == 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "Nesterov's momentum needs a momentum above 0");
    return QUERN_OK;
}

/* Is the name among those of the list, "a, b, c"? */
static bool is_listed(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ' ')) {
        at += *at == ' ';
        if (strncmp(at, name, length) == 0 && (!at[length] || at[length] == ','))
            return true;
    }
    return false;
}

typedef struct own_option {
    const char *name;
    double value;
    const char *chosen, *takers; /* what was chosen, and what takes the option */
} own_option;

/* An option that what was chosen knows nothing of would do nothing, and nobody would notice. */
static qn_status check_owners(const quern_train_options *o, qn_diags *diags)
{
    const char *loss = o->loss ? o->loss : "none", *optimizer = o->optimizer,
               *schedule = o->schedule ? o->schedule : "constant";
    const own_option options[] = {
        { "momentum", o->momentum, optimizer, "sgd, rmsprop, lars" },
        { "nesterov", o->nesterov, optimizer, "sgd, rmsprop, lars" },
        { "beta1", o->beta1, optimizer, "adam, adamw, lamb" },
        { "beta2", o->beta2, optimizer, "adam, adamw, lamb" },
        { "epsilon", o->epsilon, optimizer, "adam, adamw, rmsprop, adagrad, lamb" },
        { "alpha", o->alpha, optimizer, "rmsprop" },
        { "trust", o->trust, optimizer, "lars" },
        { "huber_delta", o->huber_delta, loss, "huber" },
        { "label_smoothing", o->label_smoothing, loss, "cross_entropy" },
        { "schedule_steps", (double)o->schedule_steps, schedule, "cosine, linear, step" },
        { "schedule_factor", o->schedule_factor, schedule, "cosine, linear, step" },
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].value != 0 && !is_listed(options[i].takers, options[i].chosen))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s is an option of %s, and not of %s",
                            options[i].name, options[i].takers, options[i].chosen);
    return QUERN_OK;
}

qn_status qn_train_module(qn_module *module, const quern_train_options *o, bool only_eval, qn_diags *diags)
{
    const int loss = o->loss ? find_name(qn_losses, "loss", o->loss, diags) : 0;
    const int optimizer = find_name(qn_optimizers, "optimizer", o->optimizer, diags);
    const int schedule = find_name(qn_schedules, "schedule", o->schedule ? o->schedule : "constant", diags);
    qn_settings settings;
    QN_TRY(
        qn_settings_from(&(quern_compile_options){ .size = sizeof(quern_compile_options), .math = o->math },
                         &settings, diags));
    QN_TRY(check_ranges(o, diags));
    QN_TRY(qn_diags_status(diags));
    QN_TRY(check_owners(o, diags));
    const qn_train_options t = {
        .loss = (qn_loss)loss,
        .optimizer = (qn_optimizer)optimizer,
        .schedule = (qn_schedule)schedule,
        .learning_rate = o->learning_rate,
        .momentum = o->momentum,
        .nesterov = o->nesterov != 0,
        .beta1 = or_usual(o->beta1, 0.9),
        .beta2 = or_usual(o->beta2, 0.999),
        .epsilon = or_usual(o->epsilon, qn_optimizer_epsilons[optimizer]),
        .alpha = or_usual(o->alpha, 0.99),
        .trust = or_usual(o->trust, 0.001),
        .weight_decay = o->weight_decay,
        .clip_norm = o->clip_norm,
        .ema = o->ema,
        .huber_delta = or_usual(o->huber_delta, 1),
        .label_smoothing = o->label_smoothing,
        .loss_scale = o->loss_scale,
        .loss_scale_steps = o->loss_scale_steps,
        .warmup_steps = o->warmup_steps,
        .schedule_steps = o->schedule_steps,
        .schedule_factor =
            schedule == QN_SCHEDULE_STEP ? or_usual(o->schedule_factor, 0.1) : o->schedule_factor,
        .name = o->name,
        .n_params = o->n_params,
        .params = o->params,
        .seed = o->seed,
        .math = settings.math,
        .only_eval = only_eval,
        .parts = o->parts != 0,
        .own_loss = !o->loss,
        .input_gradients = o->input_gradients != 0,
        .data_parallel = o->data_parallel != 0,
        .sync_batch_norm = o->sync_batch_norm != 0,
        .bucket_bytes = o->bucket_bytes ? o->bucket_bytes : QN_BUCKET_BYTES,
    };
    if (!t.parts && (t.own_loss || t.input_gradients))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        t.own_loss
                            ? "no loss is named: a step needs one; a host with a loss of its own takes "
                              "the step in parts"
                            : "input_gradients are backward's: they need the step in parts");
    if (schedule != QN_SCHEDULE_CONSTANT && schedule != QN_SCHEDULE_HOST && t.schedule_steps == 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "schedule '%s' needs a number of steps",
                        qn_schedules[schedule].name);
    qn_graph *forward = forward_function(module);
    if (!forward)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "the module has %d functions, and none of them is called 'main' or 'infer'",
                        module->n_functions);
    return qn_make_training(forward, &t, diags);
}

int quern_make_training(quern_module *module, const quern_train_options *options)
{
    qn_call call;
    qn_call_begin(&call);
    QN_OPTIONS(quern_train_options, o, options);
    qn_status status = qn_call_need(&call, module, "quern_make_training", "module");
    if (!status)
        status = qn_need_size(options, "quern_train_options", &call.diags);
    if (!status)
        status = qn_train_module(module->ir, &o, false, &call.diags);
    return qn_call_end(&call, status);
}
