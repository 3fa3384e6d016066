/* Reads the text form (docs/text-form.md) that ir/print.c writes. */
#ifndef QN_FRONTEND_TEXT_TEXT_H
#define QN_FRONTEND_TEXT_TEXT_H

#include "ir/program.h"

/* Reads a module; `text` needs no NUL behind it, `file` is what messages call it. On success *out_module is a new module
 * of the caller's (qn_module_free) that passes qn_verify; on failure it is NULL and everything wrong is in `diags`: the
 * first mistake of each function. Any text is safe: nesting and sizes are bounded. */
QN_MUST_USE qn_status qn_text_parse(const char *text, size_t length, const char *file, qn_module **out_module,
                                    qn_diags *diags);

/* Is it a text of programs? One begins with the word `program`. */
bool qn_text_has_programs(const char *text, size_t length);
/* Reads programs, each as qn_program_print writes it. They live in `arena`, pass qn_program_verify, and run in the
 * interpreter when their weights are laid out. On failure the first mistake is in `diags`. Any text is safe. */
QN_MUST_USE qn_status qn_text_parse_programs(const char *text, size_t length, const char *file,
                                             qn_arena *arena, int *out_n, qn_program ***out_programs,
                                             qn_diags *diags);

/* Reads attributes as they stand between the braces of a node, "axis = 1, kind = sum", for a node of this op. Sorted by
 * key; everything lives in the module's arena. Messages point into the text, which they call `file`. */
QN_MUST_USE qn_status qn_text_parse_attrs(const char *text, const char *file, qn_op op, qn_module *module,
                                          int *out_n, qn_attr **out_attrs, qn_diags *diags);

#endif
