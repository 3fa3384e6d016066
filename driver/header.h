/* The C header of an emitted model: typed structures and wrappers over its tables, and a copy of quern_abi.h, so that a
 * host needs this one file and the object. */
#ifndef QN_DRIVER_HEADER_H
#define QN_DRIVER_HEADER_H

#include <stdio.h>

#include "ir/program.h"

typedef struct qn_header_info {
    const char *prefix; /* of C names */
    const char *name;   /* of the header file, for its first line */
    const char *source; /* what was compiled */
    const char *object; /* what was emitted */
    int64_t weights_bytes;
    bool weights_inside;
    int n_strings; /* that elements stand for */
    const char *const *strings;
} qn_header_info;

void qn_header_write(FILE *to, const qn_header_info *info, int n_programs, qn_program *const *programs);

/* The text of include/quern_abi.h (made by the build). */
extern const char qn_abi_header[];

#endif
