/* What a product of fewer bits is made of, for each precision: the parts of the pass quantize. */
#ifndef QN_PASSES_QUANTIZE_H
#define QN_PASSES_QUANTIZE_H

#include "ir/build.h"
#include "passes/passes.h"

/* A constant, or made of constants. */
bool qn_is_constant(const qn_value *value);
/* The axes of a dot_general, to build another with. */
qn_dot qn_dot_of(const qn_node *node);

/* ---- quantize_int8.c ---- */

/* Is the dot_general faster with bytes? */
bool qn_int8_is_worth_it(const qn_node *node, const qn_machine *machine);
/* What replaces its result; NULL after a report. */
qn_value *qn_int8_product(qn_builder *b, const qn_node *node);

#endif
