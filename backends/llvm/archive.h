/* Static libraries (ar files) with the symbol index that linkers want. */
#ifndef QN_BACKENDS_LLVM_ARCHIVE_H
#define QN_BACKENDS_LLVM_ARCHIVE_H

#include <stdio.h>

#include "backends/backend.h"

typedef struct qn_archive_member {
    const char *name;
    qn_code code;
} qn_archive_member;

/* Streams the members to `file`; equal members give equal bytes. Write errors show in ferror(file). */
QN_MUST_USE qn_status qn_archive_write(FILE *file, int n, const qn_archive_member *members, qn_arena *arena,
                                       qn_diags *diags);

#endif
