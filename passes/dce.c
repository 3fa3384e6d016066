/* Removes nodes without effect whose results nobody reads, in regions too.
 *
 * Before: any graph. After: every node's results are read, or it has an effect.
 *
 *   %0 = exp %x            (gone)
 *   %1 = neg %x
 *   return %1
 */
#include "passes/passes.h"

qn_status qn_pass_dce(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    (void)options, (void)diags;
    *out_changed = qn_graph_remove_dead(graph);
    return QUERN_OK;
}
