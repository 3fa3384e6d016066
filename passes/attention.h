/* What the expand pass asks of the attention template. */
#ifndef QN_PASSES_ATTENTION_H
#define QN_PASSES_ATTENTION_H

#include "passes/pass.h"

enum { QN_ATTENTION_IN_PLACE = 1 }; /* the width of k's panels where it lies as it was: a key a panel */

/* Is there a kernel for such an attention (or attention_packed)? With k in panels, and v in rows, of these widths. */
bool qn_attention_plan(const qn_node *node, const qn_pass_options *options, int64_t *out_k_width,
                       int64_t *out_v_width);

#endif
