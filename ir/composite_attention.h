/* The bodies of attention, attention_packed and attention_grad. */
#ifndef QN_IR_COMPOSITE_ATTENTION_H
#define QN_IR_COMPOSITE_ATTENTION_H

#include "ir/build.h"

/* operands: the node's, floats in the dtype that is computed in. Results stay NULL where an operand is. */
void qn_attention_expand(qn_builder *b, const qn_node *node, qn_value *const *operands,
                         qn_value **out_results);

#endif
