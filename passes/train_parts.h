/* What the files of the training step share. */
#ifndef QN_PASSES_TRAIN_PARTS_H
#define QN_PASSES_TRAIN_PARTS_H

#include "ir/build.h"
#include "passes/train.h"

/* An input's name that the graph does not use yet: `name`, or name_1, … */
const char *qn_train_fresh_name(const qn_graph *graph, const char *name);

/* ---- train_params.c ---- */

/* Makes parameters PARAM inputs of the function and running statistics of batch norms STATE inputs. Parameters are its PARAM
 * inputs and the named float constants of rank 1 or more, of moderate numbers, that reach an operand which is learnt: what is
 * multiplied, convolved, added or looked up, but not masks, bounds, divisors or initial states of recurrences. With
 * options->params ("*" stands for any letters) they are those of these names. */
qn_status qn_train_parameters(qn_graph *function, const qn_train_options *options, qn_diags *diags);

/* ---- train_mode.c ---- */

/* Calls become the bodies of what they call: batch norms and dropouts lie in one graph. */
qn_status qn_train_inline_calls(qn_graph *graph, qn_diags *diags);
/* Is a random key needed? */
bool qn_train_has_dropout(const qn_graph *graph);
/* Batch norms and dropouts in training mode; outputs that update running statistics are added. key: u64[2], step: u64; NULL
 * without dropout. */
qn_status qn_training_mode(qn_graph *graph, qn_value *key, qn_value *step, qn_diags *diags);
void qn_inference_mode(qn_graph *graph, qn_diags *diags);

/* ---- loss.c ---- */

/* Is it a prediction that the loss takes? */
qn_status qn_loss_check(const qn_train_options *options, const qn_value *prediction, const char *name,
                        qn_diags *diags);
qn_type qn_loss_target(const qn_train_options *options, const qn_value *prediction);
qn_value *qn_loss_value(qn_builder *b, const qn_train_options *options, qn_value *prediction,
                        qn_value *target);

/* ---- optimizer.c ---- */

/* Does the update depend on the number of the step? */
bool qn_optimizer_counts(const qn_train_options *options);
/* Adds the updates of all parameters to the step's graph, and the states they need. step: i64, from 0; NULL unless it counts. */
void qn_optimizer_apply(qn_builder *b, const qn_train_options *options, qn_value *step, int n,
                        qn_value **params, qn_value **gradients);

#endif
