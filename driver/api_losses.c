/* quern.h: losses, by the graphs that training steps are made of (passes/loss.c). */
#include <string.h>

#include "driver/api_builder.h"
#include "passes/train_parts.h"

typedef enum reduction { MEAN, SUM, NONE, N_REDUCTIONS } reduction;
static const char *const reductions[N_REDUCTIONS] = { "mean", "sum", "none" };

/* -1 after a report. */
static int find_loss(quern_builder *b, const char *call, const char *name)
{
    for (int i = 0; i < QN_LOSS_OUTPUT; i++)
        if (name && strcmp(name, qn_losses[i].name) == 0)
            return i;
    qn_build_fail(b, call,
                  "there is no loss '%s': expected cross_entropy, mse, huber, bce or bce_with_logits",
                  name ? name : "");
    return -1;
}

/* N_REDUCTIONS after a report. */
static reduction find_reduction(quern_builder *b, const char *call, const char *name)
{
    int i = MEAN;
    while (name && i < N_REDUCTIONS && strcmp(name, reductions[i]) != 0)
        i++;
    if (i == N_REDUCTIONS)
        qn_build_fail(b, call, "there is no reduction '%s': expected mean, sum or none", name);
    return (reduction)i;
}

static const char *type_text(quern_builder *b, const qn_type *type)
{
    return qn_type_print(type, b->module->arena);
}

/* The target in the data type that the loss takes; NULL after a report. */
static qn_value *fitting_target(quern_builder *b, const char *call, const qn_train_options *options,
                                const qn_value *prediction, qn_value *target)
{
    const bool of_classes = options->loss == QN_LOSS_CROSS_ENTROPY;
    const bool is_float = qn_dtype_is_float(target->type.dtype);
    qn_type wanted = qn_loss_target(options, prediction);
    if (of_classes && is_float) /* shares of the classes */
        wanted = qn_loss_target(&(qn_train_options){ .loss = QN_LOSS_MSE }, prediction);
    if (!of_classes && target->type.rank == 0) /* one for all */
        return qn_b_broadcast_to(&b->build, qn_b_convert(&b->build, wanted.dtype, target), wanted.rank,
                                 wanted.dims);
    qn_type given = target->type;
    given.dtype = wanted.dtype;
    if (qn_type_equal(&given, &wanted) && !(of_classes && target->type.dtype == QUERN_BOOL))
        return qn_b_convert(&b->build, wanted.dtype, target);
    qn_build_fail(b, call, "the target is %s; of a prediction %s it is %s%s", type_text(b, &target->type),
                  type_text(b, &prediction->type), type_text(b, &wanted),
                  of_classes && !is_float ? ", or a share of each class" : "");
    return NULL;
}

static qn_value *reduced(qn_builder *b, reduction how, qn_value *losses, const qn_value *prediction,
                         bool by_rows)
{
    int64_t axes[QN_MAX_RANK];
    if (!losses)
        return NULL;
    for (int i = 0; i < losses->type.rank; i++)
        axes[i] = i;
    if (how == MEAN)
        return qn_b_mean(b, losses, losses->type.rank, axes, false);
    if (how == SUM)
        return qn_b_reduce(b, QN_SUM, losses, losses->type.rank, axes, false);
    return by_rows ? qn_b_reshape(b, losses, prediction->type.rank - 1, prediction->type.dims) : losses;
}

static quern_value *make(quern_builder *b, const char *call, const char *name, quern_value *prediction,
                         quern_value *target, const quern_loss_options *given)
{
    if (!qn_build_begin(b, call, 2, (quern_value *[]){ prediction, target }))
        return NULL;
    if (given && given->size <= sizeof given->size)
        return qn_build_fail(b, call, "quern_loss_options.size is %zu: set it to sizeof(quern_loss_options)",
                             given->size);
    QN_OPTIONS(quern_loss_options, o, given);
    const int loss = find_loss(b, call, name);
    const reduction how = find_reduction(b, call, o.reduction);
    if (loss < 0 || how == N_REDUCTIONS)
        return NULL;
    if (!(o.huber_delta >= 0) || !(o.label_smoothing >= 0 && o.label_smoothing < 1))
        return qn_build_fail(b, call, "%s is %g: it must be at least 0%s",
                             o.huber_delta >= 0 ? "label_smoothing" : "huber_delta",
                             o.huber_delta >= 0 ? o.label_smoothing : o.huber_delta,
                             o.huber_delta >= 0 ? " and below 1" : "");
    const bool by_rows = loss == QN_LOSS_CROSS_ENTROPY;
    const qn_train_options options = { .loss = (qn_loss)loss,
                                       .huber_delta = o.huber_delta > 0 ? o.huber_delta : 1,
                                       .label_smoothing = o.label_smoothing };
    const qn_type *type = &qn_in(prediction)->type;
    if (!qn_dtype_is_float(type->dtype) || (by_rows && type->rank < 2))
        return qn_build_fail(b, call, "the prediction is %s; it must be of floats%s", type_text(b, type),
                             by_rows ? " [rows.., classes]" : "");
    qn_value *fitting = fitting_target(b, call, &options, qn_in(prediction), qn_in(target));
    if (!fitting)
        return NULL;
    qn_value *losses = qn_loss_values(&b->build, &options, qn_in(prediction), fitting);
    return qn_out(reduced(&b->build, how, losses, qn_in(prediction), by_rows));
}

quern_value *quern_loss(quern_builder *b, const char *name, quern_value *prediction, quern_value *target,
                        const quern_loss_options *options)
{
    return make(b, "quern_loss", name, prediction, target, options);
}

quern_value *quern_cross_entropy(quern_builder *b, quern_value *logits, quern_value *labels)
{
    return make(b, "quern_cross_entropy", "cross_entropy", logits, labels, NULL);
}

quern_value *quern_mse(quern_builder *b, quern_value *prediction, quern_value *target)
{
    return make(b, "quern_mse", "mse", prediction, target, NULL);
}

quern_value *quern_huber(quern_builder *b, quern_value *prediction, quern_value *target, double delta)
{
    const quern_loss_options options = { .size = sizeof options, .huber_delta = delta };
    if (delta > 0)
        return make(b, "quern_huber", "huber", prediction, target, &options);
    return qn_build_begin(b, "quern_huber", 2, (quern_value *[]){ prediction, target })
               ? qn_build_fail(b, "quern_huber", "delta is %g: it must be above 0", delta)
               : NULL;
}

quern_value *quern_bce(quern_builder *b, quern_value *probability, quern_value *target)
{
    return make(b, "quern_bce", "bce", probability, target, NULL);
}

quern_value *quern_bce_with_logits(quern_builder *b, quern_value *logit, quern_value *target)
{
    return make(b, "quern_bce_with_logits", "bce_with_logits", logit, target, NULL);
}
