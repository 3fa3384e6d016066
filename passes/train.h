/* A forward function becomes a training step: forward, backward and update in one function. */
#ifndef QN_PASSES_TRAIN_H
#define QN_PASSES_TRAIN_H

#include "passes/pass.h"

#define QN_LOSS(id, name, target, help) QN_LOSS_##id,
typedef enum qn_loss {
#include "passes/train.def"
    QN_N_LOSSES
} qn_loss;
#define QN_OPTIMIZER(id, name, decay, epsilon, help) QN_##id,
typedef enum qn_optimizer {
#include "passes/train.def"
    QN_N_OPTIMIZERS
} qn_optimizer;
#define QN_SCHEDULE(id, name, help) QN_SCHEDULE_##id,
typedef enum qn_schedule {
#include "passes/train.def"
    QN_N_SCHEDULES
} qn_schedule;

typedef struct qn_train_name { /* ends with a NULL name */
    const char *name, *help;
} qn_train_name;
extern const qn_train_name qn_losses[], qn_optimizers[], qn_schedules[];
extern const double qn_optimizer_epsilons[]; /* the usual one of each */

typedef struct qn_train_options {
    qn_loss loss;
    qn_optimizer optimizer;
    qn_schedule schedule;
    double learning_rate;
    double momentum; /* sgd, rmsprop, lars; 0: no velocity is kept */
    bool nesterov;
    double beta1, beta2, epsilon; /* adam, adamw, lamb; epsilon also rmsprop, adagrad */
    double alpha;                 /* rmsprop: v = alpha v + (1 - alpha) g^2 */
    double trust;                 /* lars: the rate is times trust |p| / (|g| + decay |p|) */
    double weight_decay;
    double clip_norm; /* gradients are scaled so that the norm of all of them is at most this; 0: not */
    double ema;       /* average = ema average + (1 - ema) p for each parameter; 0: none is kept */
    double huber_delta;
    double label_smoothing;   /* cross_entropy */
    double loss_scale;        /* gradients are computed times this, for float16; 0: not */
    int64_t loss_scale_steps; /* good steps after which it is doubled; 0: it stays */
    int64_t warmup_steps;     /* the rate rises in a line from rate / warmup_steps in the first step */
    int64_t schedule_steps;
    double schedule_factor;
    const char *name; /* in front of the names of its own states: NAME.step; NULL: none */
    int n_params;     /* 0: found, see qn_train_parameters */
    const char *const *params;
    uint64_t seed;        /* of dropout */
    qn_math math;         /* of what is simplified before differentiating */
    bool only_eval;       /* without train_step */
    bool parts;           /* with forward, backward and update */
    bool own_loss;        /* the host has the loss: no target, no train_step, no eval; with parts */
    bool input_gradients; /* backward gives those of the inputs too */
    bool
        data_parallel; /* several ranks, each with its part of the batch: what becomes of states is averaged over them */
    bool sync_batch_norm; /* batch norms take the statistics of all ranks' rows */
    int64_t bucket_bytes; /* of gradients that are averaged together */
} qn_train_options;

#define QN_BUCKET_BYTES ((int64_t)4 << 20) /* the usual ones */

/* Takes `function`'s first output as the prediction. Parameters become PARAM inputs, running statistics STATE inputs of it; it is
 * put into inference mode and renamed `infer`. Added are
 *   train_step  inputs   the function's, then `target` where the loss has one, then parameters and states (running statistics,
 *                        optimizer state; the i64 `step` and the u64[2] `random_key` where they are needed), which are
 *                        updated in place
 *               outputs  `loss` (the mean; a scalar), then what is updated
 *   eval        inputs   the function's, `target`, parameters and running statistics
 *               outputs  `loss`; for cross_entropy `correct`, the i64 number of rows whose largest logit is the target's
 * With options->parts also
 *   forward     inputs   as train_step's (without optimizer state); the i64 `draws`, which counts forwards, takes the place of `step`
 *                        for the masks of dropouts, in train_step too
 *               outputs  `loss` (own_loss: the function's), updated states, `residual.0`, … for backward
 *   backward    inputs   `grad_loss` (own_loss: grad_NAME for each output of floats), the residuals, and of forward's inputs and
 *                        parameters those that it needs
 *               outputs  `grad_NAME` for each parameter, with input_gradients for each input of floats
 *   update      inputs   `grad_NAME` for each parameter; all parameters and states, updated in place
 * With options->data_parallel the step's loss, gradients and running statistics are means over ranks (in parts, `update` averages
 * the gradients and `forward` the statistics), and so are states alike on all ranks. Each rank draws masks of its own.
 * Batch norms use and update statistics in the step; dropouts draw masks from `random_key` and `step`: the same at every number
 * of threads. */
qn_status qn_make_training(qn_graph *function, const qn_train_options *options, qn_diags *diags);

#endif
