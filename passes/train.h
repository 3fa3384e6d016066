/* A forward function becomes a training step: forward, backward and update in one function. */
#ifndef QN_PASSES_TRAIN_H
#define QN_PASSES_TRAIN_H

#include "ir/graph.h"

typedef enum qn_loss { QN_LOSS_CROSS_ENTROPY, QN_LOSS_MSE } qn_loss;
typedef enum qn_optimizer { QN_SGD, QN_ADAM } qn_optimizer;

typedef struct qn_train_options {
    qn_loss loss;
    qn_optimizer optimizer;
    double learning_rate;
    double momentum;              /* SGD: v = momentum v + g, p -= rate v; 0: no v */
    double beta1, beta2, epsilon; /* Adam (Kingma and Ba, 2015), as PyTorch computes it */
    double weight_decay;          /* added to the gradient: g + decay p */
} qn_train_options;

/* Takes `function`'s first output as the prediction. Its named float constants (the initializers of an imported model) become
 * PARAM inputs; it is renamed `infer`; and `train_step` is added:
 *   inputs   the function's, then `target` (cross-entropy: i64 class numbers of the prediction's dims but the last; mse: as
 *            the prediction), then parameters and optimizer state, which are updated in place
 *   outputs  `loss` (the mean; a scalar), then the updated parameters and states */
qn_status qn_make_training(qn_graph *function, const qn_train_options *options, qn_diags *diags);

#endif
