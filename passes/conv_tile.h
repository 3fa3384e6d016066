/* Convolution of bf16 or bytes in blocks of channels on a matrix unit: which ones there is a kernel for. */
#ifndef QN_PASSES_CONV_TILE_H
#define QN_PASSES_CONV_TILE_H

#include "passes/pass.h"

/* Channels of a block, of x as of the result, which are 64 bytes of x. */
int64_t qn_conv_tile_channels(qn_dtype x);

/* `node` is a convolution, with operands of float32 or bf16, that is to be one of bf16 with sums in float32. */
bool qn_conv_tile_fits(const qn_node *node, const qn_pass_options *options);
/* Likewise, and its operands are bf16; or bytes, with sums of 32 bits. */
bool qn_conv_tile_takes(const qn_node *node, const qn_pass_options *options);

#endif
