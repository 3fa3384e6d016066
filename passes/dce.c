/* Removes nodes without effect whose results nobody reads, in regions too, and of loops and branches what nobody reads (prune.c).
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
    (void)options;
    *out_changed = qn_prune(graph, diags);
    return qn_diags_status(diags);
}
