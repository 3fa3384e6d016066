/* Files that appear whole or not at all: written under a temporary name beside the target, renamed when complete. What a process
 * that was killed has left of a target is removed when it is next written. */
#ifndef QN_DRIVER_OUTPUT_H
#define QN_DRIVER_OUTPUT_H

#include <stdbool.h>
#include <stdio.h>

#include "ir/diag.h"

typedef struct qn_output {
    const char *path;      /* where it is to appear */
    const char *temporary; /* where it is until then; the path itself where that is a device or pipe */
    FILE *file;
    FILE *lock; /* held on the temporary file as long as it is there */
} qn_output;

/* Opens the temporary file. Texts are in the arena of the diagnostics. */
QN_MUST_USE qn_status qn_output_open(qn_output *output, const char *path, qn_diags *diags);
/* Only makes the temporary name, for a program that writes the file itself; output->file is NULL. */
QN_MUST_USE qn_status qn_output_reserve(qn_output *output, const char *path, qn_diags *diags);
/* Writes out what is in memory and closes the file; its name is still the temporary one. On an error nothing is left. */
QN_MUST_USE qn_status qn_output_close(qn_output *output, qn_diags *diags);
/* Closes it and gives it its name; on an error (a full disk shows here at the latest) nothing is left. */
QN_MUST_USE qn_status qn_output_commit(qn_output *output, qn_diags *diags);
void qn_output_discard(qn_output *output); /* nothing is left; also after commit, when it does nothing */

/* Reads a whole file (or pipe) into `arena`; a zero byte follows the contents. */
QN_MUST_USE qn_status qn_read_file(const char *path, qn_arena *arena, char **out, size_t *out_size,
                                   qn_diags *diags);

/* A text in quotes, as JSON has it; NULL is "". Bytes that are no UTF-8 are \udc80 to \udcff, as Python's surrogateescape has them. */
void qn_json_string(const char *text, FILE *to);
/* The same, where NULL is null. */
void qn_json_string_or_null(const char *text, FILE *to);

#endif
