/* NumPy's files: .npy (one array) and .npz (a zip archive of them), read and written. */
#ifndef QN_DRIVER_NPY_H
#define QN_DRIVER_NPY_H

#include "ir/diag.h"
#include "quern.h"

#define QN_NPY_MAX_RANK 32

typedef struct qn_npy {
    const char *name;  /* in the archive, without ".npy"; "" in a single file */
    quern_array array; /* contiguous, row-major; in the arena */
    size_t bytes;
} qn_npy;

/* All arrays of the file, whichever kind it is by its contents. Other byte orders and column-major arrays are
 * converted; dtypes that Quern does not have (complex, strings, objects) are an error that names the array.
 * 2-byte void elements are bf16: that is how NumPy writes an extension's type. */
QN_MUST_USE qn_status qn_npy_read(const char *path, qn_arena *arena, int *out_n, qn_npy **out,
                                  qn_diags *diags);
size_t qn_array_bytes(const quern_array *array);
/* Written atomically. */
QN_MUST_USE qn_status qn_npy_write(const char *path, const quern_array *array, qn_diags *diags);
QN_MUST_USE qn_status qn_npz_write(const char *path, int n, const qn_npy *arrays, qn_diags *diags);

#endif
