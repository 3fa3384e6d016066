/* Finding where NaN and infinity come from. */
#ifndef QN_PASSES_NUMERICS_H
#define QN_PASSES_NUMERICS_H

#include "ir/graph.h"

#define QN_FLAG_NEVER INT64_MAX

/* What an iteration of a loop in so many others, itself included, adds to the time in loops: the outermost one counts most. */
static inline int64_t qn_flag_iteration(int loops)
{
    return loops <= 3 ? (int64_t)1 << (60 - 20 * loops) : 0;
}

/* Where the function tells of a value: row `row` of output `output`, an i64[rows, 2]. The first number tells of infinities and NaN,
 * the second of NaN alone: QN_FLAG_NEVER where there were none; else the time when there were some first: 0 outside of loops. */
typedef struct qn_flag {
    const qn_value *value;
    int output;
    int64_t row;
} qn_flag;

/* The function gives other outputs: flags of each float result of a node, in regions too (but not of constants, nor in the
 * conditions of whiles). Nodes with regions are replaced; states are not updated. Calls must have been inlined. */
qn_status qn_flag_numerics(qn_graph *graph, int *out_n, qn_flag **out_flags, qn_diags *diags);

#endif
