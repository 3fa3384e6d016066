/* suppress, said by a sort and a loop. */
#ifndef QN_PASSES_EXPAND_SUPPRESS_H
#define QN_PASSES_EXPAND_SUPPRESS_H

#include "ir/build.h"

/* What the node gives, or NULL after a report. */
qn_value *qn_expand_suppress(qn_builder *b, const qn_node *node);

#endif
