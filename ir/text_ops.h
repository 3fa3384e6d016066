/* Ops on text: what of a run's table of strings they call. */
#ifndef QN_IR_TEXT_OPS_H
#define QN_IR_TEXT_OPS_H

#include "ir/graph.h"

/* QUERN_TEXT_* of an op; 0: it is none on text. */
int qn_text_what(qn_op op);
/* How many buffers the function takes, with the one that it writes: the last. */
int qn_text_buffers(qn_op op);
bool qn_text_reads(qn_dtype dtype);     /* Is it one that text_parse gives and text_print takes? */
bool qn_text_in(const qn_graph *graph); /* Is there such an op? */

/* The numbers that come behind the buffers. */
enum { QN_TEXT_MOST_PARAMS = 4, QN_TEXT_COLUMNS = 257 };
int qn_text_params(const qn_module *module, const qn_node *node, qn_dim out[QN_TEXT_MOST_PARAMS]);

#endif
