/* Convolution in channel blocks over extents that are symbols: which ones there is a kernel for. */
#ifndef QN_PASSES_CONV_SYMBOLIC_H
#define QN_PASSES_CONV_SYMBOLIC_H

#include "passes/pass.h"

/* `node` is a conv_packed. None of those takes padding: the layout pass pads x before. */
bool qn_conv_symbolic_takes(const qn_node *node, const qn_pass_options *options);

#endif
