/* The tables of a model (quern_abi.h) read from the file of a shared object, without loading its code: of an object for another
 * machine, too. */
#ifndef QN_DRIVER_OBJECT_FILE_H
#define QN_DRIVER_OBJECT_FILE_H

#include "ir/diag.h"
#include "quern.h"

typedef struct qn_object_file {
    /* One for each CPU that the object has code for, from the least on. Their functions and weights are NULL. */
    const quern_model_info *const *models;
    int n;
} qn_object_file;

/* Nothing in the file is trusted. The result is in `arena`, and holds for as long. */
QN_MUST_USE qn_status qn_object_read(const char *path, qn_arena *arena, qn_object_file *out, qn_diags *diags);

#endif
