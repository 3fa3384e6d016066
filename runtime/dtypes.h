/* Names and sizes of the data types: the same table as ir/dtype.h, which the runtime may not see; tests/unit/test_session.c
 * compares them. A table in a header, since libquern_mpi has a copy of its own. */
#ifndef QN_RUNTIME_DTYPES_H
#define QN_RUNTIME_DTYPES_H

#include <stddef.h>

#include "quern_abi.h"

static const struct {
    const char *text;
    size_t bytes; /* of an element */
} qn_dtypes[] = {
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

/* Of any number. */
static inline int qn_dtype_known(int64_t dtype)
{
    return dtype > 0 && dtype < (int64_t)(sizeof qn_dtypes / sizeof *qn_dtypes);
}

#endif
