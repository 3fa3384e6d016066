/* Tables of strings, and what runs compute with them. A table belongs to a session, and to one thread at a time. */
#ifndef QN_RUNTIME_STRINGS_H
#define QN_RUNTIME_STRINGS_H

#include <stdbool.h>

#include "quern.h"

typedef struct qn_text {
    const char *at;
    size_t length;
} qn_text;

/* What QUERN_TEXT_* of quern_abi.h puts together before it becomes a string. */
typedef struct qn_text_buffer {
    char *data;
    size_t length, capacity;
} qn_text_buffer;

/* ---- strings.c ---- */

/* Fails with QUERN_ERROR_INDEX where no string has the number. */
int qn_strings_get(quern_strings *strings, int64_t number, qn_text *out);
/* The number of a string, which may be the text of one of the table. */
int qn_strings_put(quern_strings *strings, qn_text text, int64_t *out);
/* Keeps the message for `error` and gives the status. */
int qn_strings_fail(quern_strings *strings, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void qn_strings_begin(quern_strings *strings); /* of a run: no error so far */
/* Memory that operations put strings together in: empty, with room for so many bytes. */
int qn_strings_scratch(quern_strings *strings, size_t capacity, qn_text_buffer **out);

/* ---- text.c ---- */

/* The function `compute` of a table. */
int qn_text_compute(quern_strings *strings, int32_t what, const int64_t *args);

#endif
