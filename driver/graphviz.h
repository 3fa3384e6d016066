/* Graphviz as a program: lays a DOT text out. */
#ifndef QN_DRIVER_GRAPHVIZ_H
#define QN_DRIVER_GRAPHVIZ_H

#include <stdio.h>

#include "ir/diag.h"

/* A temporary file without a name, for what goes in or comes out; the caller closes it. */
QN_MUST_USE qn_status qn_temporary_file(FILE **out, qn_diags *diags);

/* Runs `dot -Tsvg`, found in PATH, without a shell, over the whole of `dot`; *out_svg is its drawing, in `arena`. An error that
 * says what to install where there is no such program. */
QN_MUST_USE qn_status qn_graphviz_svg(FILE *dot, qn_arena *arena, char **out_svg, qn_diags *diags);

#endif
