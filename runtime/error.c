/* Last errors, and the names of statuses and data types. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    static const char *const names[] = {
        "ok",          "argument", "range",  "index",  "cancelled", "model",
        "unsupported", "io",       "memory", "device", "internal",  "numeric"
    };
    return status >= 0 && (size_t)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

/* The same table as ir/dtype.h, which the runtime may not see; tests/unit/test_session.c compares them. */
static const struct {
    const char *text;
    size_t bytes;
} dtypes[] = {
    [QUERN_BOOL] = { "bool", 1 },
    [QUERN_I8] = { "i8", 1 },
    [QUERN_I16] = { "i16", 2 },
    [QUERN_I32] = { "i32", 4 },
    [QUERN_I64] = { "i64", 8 },
    [QUERN_U8] = { "u8", 1 },
    [QUERN_U16] = { "u16", 2 },
    [QUERN_U32] = { "u32", 4 },
    [QUERN_U64] = { "u64", 8 },
    [QUERN_F16] = { "f16", 2 },
    [QUERN_BF16] = { "bf16", 2 },
    [QUERN_F32] = { "f32", 4 },
    [QUERN_F64] = { "f64", 8 },
    [QUERN_I4] = { "i4", 1 },
    [QUERN_U4] = { "u4", 1 },
    [QUERN_I2] = { "i2", 1 },
    [QUERN_U2] = { "u2", 1 },
    [QUERN_F8E4M3FN] = { "f8e4m3fn", 1 },
    [QUERN_F8E4M3FNUZ] = { "f8e4m3fnuz", 1 },
    [QUERN_F8E5M2] = { "f8e5m2", 1 },
    [QUERN_F8E5M2FNUZ] = { "f8e5m2fnuz", 1 },
    [QUERN_F4E2M1] = { "f4e2m1", 1 },
    [QUERN_F8E8M0] = { "f8e8m0", 1 },
};

size_t quern_dtype_size(int dtype)
{
    return dtype > 0 && (size_t)dtype < sizeof dtypes / sizeof *dtypes ? dtypes[dtype].bytes : 0;
}

const char *quern_dtype_text(int dtype)
{
    return dtype > 0 && (size_t)dtype < sizeof dtypes / sizeof *dtypes ? dtypes[dtype].text : "unknown";
}
