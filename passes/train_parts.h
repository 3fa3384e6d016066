/* What the files of the training step share. */
#ifndef QN_PASSES_TRAIN_PARTS_H
#define QN_PASSES_TRAIN_PARTS_H

#include "ir/build.h"
#include "passes/train.h"

/* An input's name that the graph does not use yet: `name`, or name_1, … */
const char *qn_train_fresh_name(const qn_graph *graph, const char *name);

/* ---- train.c ---- */

/* A function of the forward function's kind: its inputs, then a target where the loss has one, then parameters and states;
 * its body. */
typedef struct qn_train_copy {
    qn_builder b;
    qn_value **inputs;                     /* by input of the forward function */
    qn_value **outputs;                    /* of the forward function */
    qn_value *target;                      /* or NULL */
    qn_value *step;                        /* the i64 state that counts updates, or NULL */
    qn_value *scale, *good_steps, *finite; /* see loss_scale.c; NULL without */
    int statistics, n_statistics;          /* outputs that are running statistics: from which on, how many */
    int n_params;
    qn_value **params; /* the inputs that are parameters */
} qn_train_copy;

/* In training mode. `updates`: what comes behind it will update parameters, so there is the state `step` where the optimizer
 * counts. Outputs so far: the loss, unless the host has it; the function's, unless `updates`; updated states. */
qn_status qn_train_forward(const qn_graph *forward, const char *name, const qn_train_options *options,
                           bool updates, qn_diags *diags, qn_train_copy *c);
/* A state of the training's own in the function that is made; initial NULL: zeros. */
qn_value *qn_train_add_state(qn_graph *graph, const qn_train_options *options, const char *name,
                             qn_dtype dtype, int rank, const int64_t *dims, const void *initial);
/* Averaged over ranks: the gradients (or NULL), the running statistics that are outputs, the first output where it is the loss. */
void qn_train_average(qn_train_copy *c, const qn_train_options *options, qn_value **gradients, bool loss);
/* Behind the gradients: new parameters and optimizer states, one more step. */
void qn_train_update(qn_train_copy *c, const qn_train_options *options, qn_value **gradients);

/* ---- parallelize.c ---- */

/* Replaces values of floats by their means over all ranks: small ones go together, in buckets of so many bytes, as soon as they are
 * ready. */
void qn_parallel_average(qn_builder *b, int n, qn_value **values, int64_t bucket_bytes);
/* The random key with this rank's number in it: ranks draw masks of their own; rank 0 those that it draws alone. */
qn_value *qn_parallel_key(qn_builder *b, qn_value *key);
/* Batch norms in training mode take the statistics of all ranks' rows. */
qn_status qn_parallel_batch_norms(qn_graph *graph, qn_diags *diags);

/* ---- loss_scale.c ---- */

/* The scale that the gradients are to be computed times. */
void qn_loss_scale_begin(qn_train_copy *c, const qn_train_options *options);
/* Divides the gradients by it. */
void qn_loss_scale_undo(qn_train_copy *c, qn_value **gradients);
/* Behind the update, whose outputs begin with that number: nothing is updated where a gradient was not finite. */
void qn_loss_scale_end(qn_train_copy *c, const qn_train_options *options, int first_output);

/* ---- train_split.c ---- */

/* Adds the functions forward, backward and update. */
qn_status qn_train_split(const qn_graph *function, const qn_train_options *options, qn_diags *diags);

/* ---- train_params.c ---- */

/* Makes parameters PARAM inputs of the function and running statistics of batch norms STATE inputs. Parameters are its PARAM
 * inputs and the named float constants of rank 1 or more, of moderate numbers, that reach an operand which is learnt: what is
 * multiplied, convolved, added or looked up, but not masks, bounds, divisors or initial states of recurrences. With
 * options->params ("*" stands for any letters) they are those of these names. */
qn_status qn_train_parameters(qn_graph *function, const qn_train_options *options, qn_diags *diags);

/* ---- train_mode.c ---- */

/* Is a random key needed, for dropouts or random numbers? */
bool qn_train_is_random(const qn_graph *graph);
/* Batch norms, dropouts and random numbers in training mode; outputs that update running statistics are added. key: u64[2],
 * step: u64; NULL where it isn't random. */
qn_status qn_training_mode(qn_graph *graph, qn_value *key, qn_value *step, qn_diags *diags);
void qn_inference_mode(qn_graph *graph, qn_diags *diags);

/* ---- loss.c ---- */

/* Is it a prediction that the loss takes? */
qn_status qn_loss_check(const qn_train_options *options, const qn_value *prediction, const char *name,
                        qn_diags *diags);
bool qn_loss_has_target(const qn_train_options *options);
qn_type qn_loss_target(const qn_train_options *options, const qn_value *prediction);
/* One for each element of the prediction, for each row of cross_entropy as a vector. target: NULL where the loss has none */
qn_value *qn_loss_values(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                         qn_value *target);
/* Their mean. */
qn_value *qn_loss_value(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                        qn_value *target);

/* ---- optimizer.c ---- */

/* Does the update depend on the number of the step? */
bool qn_optimizer_counts(const qn_train_options *options);
/* Adds the updates of all parameters to the step's graph, and the states they need. step: i64, from 0; NULL unless it counts. */
void qn_optimizer_apply(qn_builder *b, const qn_train_options *options, qn_value *step, int n,
                        qn_value **params, qn_value **gradients);

#endif
