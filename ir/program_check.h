/* What the files that verify programs share. */
#ifndef QN_IR_PROGRAM_CHECK_H
#define QN_IR_PROGRAM_CHECK_H

#include "ir/program.h"

typedef struct qn_program_check {
    const qn_program *p;
    qn_diags *diags;
    qn_arena *arena; /* scratch */
} qn_program_check;

/* Says what is wrong at a place of the program's text (without a file: of a program that was made, not read). */
qn_status qn_program_wrong(const qn_program_check *c, const qn_loc *loc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ir/program_live.c: what a step reads from the workspace was written there and nothing else since. Everything that
 * verifying looks at before holds. */
QN_MUST_USE qn_status qn_program_check_contents(const qn_program_check *c);

#endif
