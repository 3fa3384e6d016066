/* Views of what a model was lowered to: what `quern inspect` prints. */
#ifndef QN_DRIVER_INSPECT_H
#define QN_DRIVER_INSPECT_H

#include <stdio.h>

#include "driver/compile.h"
#include "driver/object_file.h"

typedef struct qn_view {
    const qn_module *module; /* after the passes */
    const qn_compiled *compiled;
    const char *name;      /* of the file */
    const int *ops_before; /* per function: nodes before the passes */
    const int *ops_after;
    qn_pass_options options; /* that it was lowered with */
    qn_arena *arena;
} qn_view;

void qn_view_text(const qn_view *view, FILE *to); /* signature, kernels, memory: a summary */
void qn_view_json(const qn_view *view, FILE *to);
/* "dtype": "f32", "dims": [4, "n"] - extents that aren't known as text */
void qn_json_type(const qn_type *type, qn_arena *arena, FILE *to);
/* The steps of the first entry and the buffers between them, for Graphviz. */
void qn_view_dot(const qn_view *view, FILE *to);
/* The graph of the first entry with its fused kernels, for Graphviz. */
QN_MUST_USE qn_status qn_view_graph(const qn_view *view, FILE *to, qn_diags *diags);
/* That graph as Graphviz draws it, and the memory plan: a rectangle a buffer, steps to the right, offsets downwards. */
QN_MUST_USE qn_status qn_view_svg(const qn_view *view, FILE *to, qn_diags *diags);
/* What a compiled shared object says of itself. */
typedef struct qn_object_view {
    const char *path;
    const quern_model_info
        *info;           /* of what runs here; where nothing does, from the file, without functions */
    const char *refused; /* why nothing does; NULL: something does */
    qn_object_file file; /* n is 0 where it could not be read */
    qn_arena *arena;
} qn_object_view;
void qn_object_text(const qn_object_view *view, FILE *to);
void qn_object_json(const qn_object_view *view, FILE *to);
/* A text in quotes for DOT, with a backslash and line_end for each end of a line: 'n' centres the line before, 'l' puts it to
 * the left. */
void qn_dot_label(const char *text, char line_end, FILE *to);

#endif
