/* Last errors, and the names of statuses and data types. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/dtypes.h"
#include "runtime/error.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key; /* malloc'ed text; freed when its thread ends */
static int key_status = -1;
static _Thread_local int last_status;

static void make_key(void)
{
    key_status = pthread_key_create(&key, free);
}

int qn_fail_text(int status, const char *text)
{
    pthread_once(&once, make_key);
    last_status = status;
    if (key_status)
        return status;
    char *old = pthread_getspecific(key);
    char *copy = strdup(text);
    if (copy && pthread_setspecific(key, copy) == 0)
        free(old);
    else
        free(copy);
    return status;
}

int qn_fail(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = NULL;
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        return qn_fail_text(status, "out of memory");
    qn_fail_text(status, text);
    free(text);
    return status;
}

const char *quern_last_error(void)
{
    pthread_once(&once, make_key);
    const char *text = key_status ? NULL : pthread_getspecific(key);
    return text ? text : "";
}

int quern_last_status(void)
{
    return last_status;
}

const char *quern_version(void)
{
    return QN_VERSION_STRING;
}

const char *quern_status_name(int status)
{
    return quern_status_text(status);
}

size_t quern_dtype_size(int dtype)
{
    return qn_dtype_known(dtype) ? qn_dtypes[dtype].bytes : 0;
}

const char *quern_dtype_text(int dtype)
{
    return qn_dtype_known(dtype) ? qn_dtypes[dtype].text : "unknown";
}
