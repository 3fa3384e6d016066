/* What the pack pass asks of the template for products on a matrix unit. */
#ifndef QN_PASSES_GEMM_TILE_H
#define QN_PASSES_GEMM_TILE_H

#include "passes/pass.h"

/* Are products of these bytes, rows of whole steps, multiplied by the matrix unit? It takes any signs. */
bool qn_gemm_tile_takes_bytes(const qn_type *x, int n_batch, const qn_machine *machine);

#endif
