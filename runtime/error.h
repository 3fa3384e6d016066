/* The last error of each thread: what quern_last_error gives. Any thread may call these. */
#ifndef QN_RUNTIME_ERROR_H
#define QN_RUNTIME_ERROR_H

#include "quern.h"

/* Keeps the message for quern_last_error and returns `status`, so that callers can write `return qn_fail(...)`. */
int qn_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a text that exists already. */
int qn_fail_text(int status, const char *text);

#endif
