/* Arrays of the command line: looking at an entry's buffers, filling inputs, showing and comparing. */
#ifndef QN_DRIVER_TENSORS_H
#define QN_DRIVER_TENSORS_H

#include <stdio.h>

#include "driver/cli.h"
#include "runtime/session.h"

int qn_entry_count(const quern_entry_info *entry, quern_role role);
int qn_entry_buffer(const quern_entry_info *entry, quern_role role,
                    int k); /* index of the k-th of that role */
const char *qn_entry_names(const quern_entry_info *entry, quern_role role, qn_arena *arena); /* "a, b" */
/* The array of that name, or of the name prefix followed by k; -1 when there is none. */
int qn_npy_find(int n, const qn_npy *arrays, const char *name, const char *prefix, int k);

/* What was read, where `dtype` is meant: .npy has no names for narrow types, whose elements are read as bytes. */
quern_array qn_npy_as(const quern_array *array, int32_t dtype);

/* Binds all inputs: from the files ("NAME=FILE", or "FILE" for .npz and for the only input), or with none given at
 * random. The arrays live in `arena`. An exit status. */
int qn_bind_inputs(const qn_cli *cli, quern_session *session, int n_files, const char *const *files,
                   uint64_t seed, qn_arena *arena, qn_diags *diags);

/* Floats from a normal distribution, integers and bools 0 or 1; symbols at 1 or their least value. A quern_status. */
int qn_bind_random(quern_session *session, uint64_t seed, qn_arena *arena);

/* Floats from a normal distribution, integers and bools 0 or 1. */
void qn_fill_random(qn_dtype dtype, int64_t n, void *to, uint64_t *state);

const char *qn_array_type(const quern_array *array, qn_arena *arena); /* "f32[2, 3]" */
/* What the elements of an i64 array are the numbers of. */
typedef struct qn_texts {
    const char *const *items;
    int64_t n;                  /* 0: they are numbers */
    const quern_strings *table; /* instead, where the session has one */
} qn_texts;
/* "f32[2, 3] [1 2 3 …]\n", "strings[2] ["no" "yes"]\n": the first elements. A number that no string has is shown as it is. */
void qn_array_show(const quern_array *array, qn_texts texts, FILE *to);
/* "dtype": "f32", "dims": [2, 3], "data": [1, 2, 3, …] - all elements, in a row. What is no number in JSON is "NaN", "Infinity",
 * "-Infinity"; the dtype of strings is "string". */
void qn_array_json(const quern_array *array, qn_texts texts, FILE *to);

typedef struct qn_difference {
    int64_t n, n_wrong, first; /* elements; those outside the tolerance; the first of these */
    double largest, relative;  /* largest difference, and that by the largest finite expected value */
    double atol;               /* that was used */
    double is, expected;       /* of the first wrong one */
} qn_difference;
/* False when dtypes or dims differ. NaN is equal to NaN, infinities to themselves. atol below 0: 1e-5 of the largest
 * finite expected value. */
bool qn_array_compare(const quern_array *array, const quern_array *expected, double rtol, double atol,
                      qn_difference *out);

#endif
