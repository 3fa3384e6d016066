/* The data type table. Everything about an element type is derived from here. */
#ifndef QN_IR_DTYPE_H
#define QN_IR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quern_abi.h"

typedef quern_dtype qn_dtype;

/*             enum  text   bytes class */
#define QN_DTYPES(X)                                      \
    X(QUERN_BOOL, "bool", 1, QN_CLASS_BOOL)               \
    X(QUERN_I8, "i8", 1, QN_CLASS_SIGNED)                 \
    X(QUERN_I16, "i16", 2, QN_CLASS_SIGNED)               \
    X(QUERN_I32, "i32", 4, QN_CLASS_SIGNED)               \
    X(QUERN_I64, "i64", 8, QN_CLASS_SIGNED)               \
    X(QUERN_U8, "u8", 1, QN_CLASS_UNSIGNED)               \
    X(QUERN_U16, "u16", 2, QN_CLASS_UNSIGNED)             \
    X(QUERN_U32, "u32", 4, QN_CLASS_UNSIGNED)             \
    X(QUERN_U64, "u64", 8, QN_CLASS_UNSIGNED)             \
    X(QUERN_F16, "f16", 2, QN_CLASS_FLOAT)                \
    X(QUERN_BF16, "bf16", 2, QN_CLASS_FLOAT)              \
    X(QUERN_F32, "f32", 4, QN_CLASS_FLOAT)                \
    X(QUERN_F64, "f64", 8, QN_CLASS_FLOAT)                \
    X(QUERN_I4, "i4", 1, QN_CLASS_STORED)                 \
    X(QUERN_U4, "u4", 1, QN_CLASS_STORED)                 \
    X(QUERN_I2, "i2", 1, QN_CLASS_STORED)                 \
    X(QUERN_U2, "u2", 1, QN_CLASS_STORED)                 \
    X(QUERN_F8E4M3FN, "f8e4m3fn", 1, QN_CLASS_STORED)     \
    X(QUERN_F8E4M3FNUZ, "f8e4m3fnuz", 1, QN_CLASS_STORED) \
    X(QUERN_F8E5M2, "f8e5m2", 1, QN_CLASS_STORED)         \
    X(QUERN_F8E5M2FNUZ, "f8e5m2fnuz", 1, QN_CLASS_STORED) \
    X(QUERN_F4E2M1, "f4e2m1", 1, QN_CLASS_STORED)         \
    X(QUERN_F8E8M0, "f8e8m0", 1, QN_CLASS_STORED)

typedef enum qn_dtype_class {
    QN_CLASS_BOOL = 1,
    QN_CLASS_SIGNED = 2,
    QN_CLASS_UNSIGNED = 4,
    QN_CLASS_FLOAT = 8,
    QN_CLASS_STORED = 16 /* moved and converted, not computed with: see ir/narrow.h */
} qn_dtype_class;

/* Sets of classes, for the op table. */
enum {
    QN_ANY_INT = QN_CLASS_SIGNED | QN_CLASS_UNSIGNED,
    QN_ANY_NUMBER = QN_ANY_INT | QN_CLASS_FLOAT,
    QN_ANY_LOGICAL = QN_ANY_INT | QN_CLASS_BOOL,
    QN_ANY_DTYPE = QN_ANY_NUMBER | QN_CLASS_BOOL,
    QN_ANY_ELEMENT = QN_ANY_DTYPE | QN_CLASS_STORED
};

const char *qn_dtype_name(qn_dtype dtype);                /* "f32" */
qn_dtype qn_dtype_parse(const char *name, size_t length); /* QUERN_INVALID_DTYPE when unknown */
size_t qn_dtype_bytes(qn_dtype dtype);
qn_dtype_class qn_dtype_class_of(qn_dtype dtype);
static inline bool qn_dtype_is_float(qn_dtype d)
{
    return qn_dtype_class_of(d) == QN_CLASS_FLOAT;
}
static inline bool qn_dtype_is_narrow(qn_dtype d) /* f16 or bf16 */
{
    return qn_dtype_is_float(d) && qn_dtype_bytes(d) == 2;
}
static inline bool qn_dtype_is_int(qn_dtype d)
{
    return (qn_dtype_class_of(d) & QN_ANY_INT) != 0;
}

static inline bool qn_dtype_is_stored(qn_dtype d)
{
    return qn_dtype_class_of(d) == QN_CLASS_STORED;
}
/* What sums of such elements are computed in: f32 for f16 and bf16, else the dtype itself. */
static inline qn_dtype qn_dtype_wide(qn_dtype d)
{
    return d == QUERN_F16 || d == QUERN_BF16 ? QUERN_F32 : d;
}
/* What kernels take an element for: narrow ones are bytes. */
static inline qn_dtype qn_dtype_carrier(qn_dtype d)
{
    return qn_dtype_is_stored(d) ? QUERN_U8 : d;
}

/* IEEE conversions, round to nearest even; NaN stays NaN (quiet), overflow gives infinity. */
float qn_f16_to_f32(uint16_t bits);
uint16_t qn_f32_to_f16(float value);
uint16_t qn_f64_to_f16(double value); /* one rounding */
float qn_bf16_to_f32(uint16_t bits);
uint16_t qn_f32_to_bf16(float value);
uint16_t qn_f64_to_bf16(double value);

/* A scalar of any dtype: floats in `f` (every float dtype is exact in double), everything else in `i`
 * (u64 as its bit pattern, narrow types as their bits). */
typedef union qn_scalar {
    double f;
    int64_t i;
} qn_scalar;

qn_scalar qn_scalar_load(qn_dtype dtype, const void *at);
void qn_scalar_store(qn_dtype dtype, qn_scalar value, void *at); /* floats round to nearest even; ints wrap */

#endif
