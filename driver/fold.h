/* Constant folding for the passes: what qn_pass_options.fold is, everywhere in the driver. */
#ifndef QN_DRIVER_FOLD_H
#define QN_DRIVER_FOLD_H

#include "passes/pass.h"

/* Evaluates a node whose operands are constants with the reference interpreter. NULL where that is an error (an index
 * outside its operand, say): it stays for run time. `folder` is not used. */
const qn_tensor *qn_fold_by_interpreter(const qn_node *node, void *folder);

#endif
