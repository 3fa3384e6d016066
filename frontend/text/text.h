/* Reads the text form (docs/text-form.md) that ir/print.c writes. */
#ifndef QN_FRONTEND_TEXT_TEXT_H
#define QN_FRONTEND_TEXT_TEXT_H

#include "ir/graph.h"

/* Reads a module; `text` needs no NUL behind it, `file` is what messages call it. On success *out_module is a new module
 * of the caller's (qn_module_free) that passes qn_verify; on failure it is NULL and everything wrong is in `diags`: the
 * first mistake of each function. Any text is safe: nesting and sizes are bounded. */
QN_MUST_USE qn_status qn_text_parse(const char *text, size_t length, const char *file, qn_module **out_module,
                                    qn_diags *diags);

#endif
