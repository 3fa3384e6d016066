/* Losses: a scalar from prediction and target, the mean over the elements (cross_entropy: over the rows). Predictions of 16 bits
 * are taken in float32. */
#include "passes/train_parts.h"

const qn_train_name qn_losses[] = {
#define QN_LOSS(id, name, target, help) { #name, help },
#include "passes/train.def"
    { NULL, NULL }
};

typedef enum target_kind { CLASSES, LIKE, NONE } target_kind;
static const target_kind targets[] = {
#define QN_LOSS(id, name, target, help) target,
#include "passes/train.def"
};

#define MUL(x, y) qn_b_binary(b, QN_OP_MUL, x, y)
#define ADD(x, y) qn_b_binary(b, QN_OP_ADD, x, y)
#define SUB(x, y) qn_b_binary(b, QN_OP_SUB, x, y)
#define NUMBER(op, x, c) qn_b_binary_scalar(b, QN_OP_##op, x, c)
#define FULL(like, c) ((like) ? qn_b_full(b, &(like)->type, c) : NULL)

typedef qn_value *(*loss_fn)(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                             qn_value *target);

/* Of each row. Smoothing mixes the target with the same share of each class (Szegedy et al., 2016). */
static qn_value *loss_cross_entropy(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                                    qn_value *target)
{
    static const int64_t classes = 1; /* the axis */
    const double smoothing = options->label_smoothing;
    const bool soft = qn_dtype_is_float(target->type.dtype); /* shares of the classes instead of one */
    qn_type outer = prediction->type;
    outer.rank--;
    qn_dim rows = qn_type_elements_dim(qn_b_dims(b), soft ? &outer : &target->type);
    qn_dim flat[2] = { rows, prediction->type.dims[prediction->type.rank - 1] };
    qn_value *logits = qn_b_reshape(b, prediction, 2, flat), *loss;
    qn_value *logs = soft || smoothing > 0 ? qn_b_softmax(b, QN_OP_LOG_SOFTMAX, logits, classes) : NULL;
    if (soft) {
        qn_value *shares = qn_b_reshape(b, target, 2, flat);
        loss = qn_b_unary(b, QN_OP_NEG, qn_b_reduce(b, QN_SUM, MUL(shares, logs), 1, &classes, false));
    } else {
        loss = qn_b_cross_entropy(b, logits, qn_b_class_labels(b, qn_b_reshape(b, target, 1, &rows)));
    }
    if (!loss || smoothing == 0)
        return loss;
    qn_value *even = qn_b_unary(b, QN_OP_NEG, qn_b_mean(b, logs, 1, &classes, false));
    even = qn_b_convert(b, loss->type.dtype, even);
    return ADD(NUMBER(MUL, loss, 1 - smoothing), NUMBER(MUL, even, smoothing));
}

static qn_value *loss_mse(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                          qn_value *target)
{
    (void)options;
    qn_value *d = SUB(prediction, target);
    return MUL(d, d);
}

static qn_value *loss_huber(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                            qn_value *target)
{
    const double delta = options->huber_delta;
    qn_value *d = SUB(prediction, target), *size = qn_b_unary(b, QN_OP_ABS, d);
    qn_value *near = NUMBER(MUL, MUL(d, d), 0.5);
    qn_value *far = NUMBER(MUL, NUMBER(SUB, size, delta / 2), delta);
    return size ? qn_b_select(b, qn_b_compare(b, QN_LE, size, FULL(size, delta)), near, far) : NULL;
}

/* log x, at least -100: a certain but wrong prediction costs a lot, not an infinity */
static qn_value *bounded_log(qn_builder *b, qn_value *x)
{
    return NUMBER(MAX, qn_b_unary(b, QN_OP_LOG, x), -100);
}

static qn_value *one_minus(qn_builder *b, qn_value *x)
{
    return x ? SUB(FULL(x, 1), x) : NULL;
}

static qn_value *loss_bce(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                          qn_value *target)
{
    (void)options;
    qn_value *yes = MUL(target, bounded_log(b, prediction));
    qn_value *no = MUL(one_minus(b, target), bounded_log(b, one_minus(b, prediction)));
    return qn_b_unary(b, QN_OP_NEG, ADD(yes, no));
}

/* x (1 - t) + log(1 + e^-x), the logarithm as max(-x, 0) + log1p(e^-|x|) */
static qn_value *loss_bce_with_logits(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                                      qn_value *target)
{
    (void)options;
    qn_value *minus = qn_b_unary(b, QN_OP_NEG, prediction);
    qn_value *size = qn_b_unary(b, QN_OP_ABS, prediction);
    qn_value *log = qn_b_unary(b, QN_OP_LOG1P, qn_b_unary(b, QN_OP_EXP, qn_b_unary(b, QN_OP_NEG, size)));
    qn_value *softplus = ADD(NUMBER(MAX, minus, 0), log);
    return ADD(MUL(prediction, one_minus(b, target)), softplus);
}

static qn_value *loss_output(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                             qn_value *target)
{
    (void)b, (void)options, (void)target;
    return prediction;
}

qn_status qn_loss_check(const qn_train_options *options, const qn_value *prediction, const char *name,
                        qn_diags *diags)
{
    const qn_type *type = &prediction->type;
    const bool classes = targets[options->loss] == CLASSES;
    if (qn_dtype_is_float(type->dtype) && (!classes || type->rank >= 2))
        return QUERN_OK;
    return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "output '%s' is %s; %s takes floating-point %s", name,
                    qn_type_print(type, diags->arena), qn_losses[options->loss].name,
                    classes ? "logits [rows…, classes]" : "predictions");
}

bool qn_loss_has_target(const qn_train_options *options)
{
    return targets[options->loss] != NONE;
}

qn_type qn_loss_target(const qn_train_options *options, const qn_value *prediction)
{
    qn_type type = prediction->type;
    if (targets[options->loss] == CLASSES) {
        type.dtype = QUERN_I64;
        type.rank--;
    } else if (qn_dtype_is_narrow(type.dtype)) {
        type.dtype = QUERN_F32;
    }
    return type;
}

qn_value *qn_loss_values(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                         qn_value *target)
{
    static const loss_fn functions[] = {
#define QN_LOSS(id, name, target, help) loss_##name,
#include "passes/train.def"
    };
    if (qn_dtype_is_narrow(prediction->type.dtype))
        prediction = qn_b_convert(b, QUERN_F32, prediction);
    return functions[options->loss](b, options, prediction, target);
}

qn_value *qn_loss_value(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                        qn_value *target)
{
    int64_t axes[QN_MAX_RANK];
    qn_value *losses = qn_loss_values(b, options, prediction, target);
    for (int i = 0; losses && i < losses->type.rank; i++)
        axes[i] = i;
    return losses ? qn_b_mean(b, losses, losses->type.rank, axes, false) : NULL;
}
