/* Elements in bulk: between memory and the form they are computed in, and what reductions combine with. */
#include "backends/interp/interp.h"

#include <math.h>

#define LOAD(type, field, value)                  \
    do {                                          \
        const type *p = from;                     \
        for (int64_t i = 0; i < n; i++) {         \
            const type v = p[i * stride];         \
            to[i] = (qn_scalar){ field = value }; \
        }                                         \
    } while (0)

void qn_lanes_load(qn_dtype dtype, const void *from, int64_t stride, int64_t n, qn_scalar *to)
{
    switch (dtype) {
    case QUERN_BOOL: LOAD(uint8_t, .i, v != 0); return;
    case QUERN_I8: LOAD(int8_t, .i, v); return;
    case QUERN_I16: LOAD(int16_t, .i, v); return;
    case QUERN_I32: LOAD(int32_t, .i, v); return;
    case QUERN_I64: LOAD(int64_t, .i, v); return;
    case QUERN_U8: LOAD(uint8_t, .i, v); return;
    case QUERN_U16: LOAD(uint16_t, .i, v); return;
    case QUERN_U32: LOAD(uint32_t, .i, v); return;
    case QUERN_U64: LOAD(uint64_t, .i, (int64_t)v); return;
    case QUERN_F16: LOAD(uint16_t, .f, (double)qn_f16_to_f32(v)); return;
    case QUERN_BF16: LOAD(uint16_t, .f, (double)qn_bf16_to_f32(v)); return;
    case QUERN_F32: LOAD(float, .f, (double)v); return;
    case QUERN_F64: LOAD(double, .f, v); return;
    default: break;
    }
    QN_ASSERT(qn_dtype_is_stored(dtype), "dtype %d", (int)dtype);
    LOAD(uint8_t, .i, v);
}

#define STORE(type, value)                 \
    do {                                   \
        type *p = to;                      \
        for (int64_t i = 0; i < n; i++) {  \
            const qn_scalar v = from[i];   \
            p[i * stride] = (type)(value); \
        }                                  \
    } while (0)

void qn_lanes_store(qn_dtype dtype, const qn_scalar *from, int64_t n, void *to, int64_t stride)
{
    switch (dtype) {
    case QUERN_BOOL: STORE(uint8_t, v.i != 0); return;
    case QUERN_I8:
    case QUERN_U8: STORE(uint8_t, v.i); return;
    case QUERN_I16:
    case QUERN_U16: STORE(uint16_t, v.i); return;
    case QUERN_I32:
    case QUERN_U32: STORE(uint32_t, v.i); return;
    case QUERN_I64:
    case QUERN_U64: STORE(int64_t, v.i); return;
    case QUERN_F16: STORE(uint16_t, qn_f64_to_f16(v.f)); return;
    case QUERN_BF16: STORE(uint16_t, qn_f64_to_bf16(v.f)); return;
    case QUERN_F32: STORE(float, v.f); return;
    case QUERN_F64: STORE(double, v.f); return;
    default: break;
    }
    QN_ASSERT(qn_dtype_is_stored(dtype), "dtype %d", (int)dtype);
    STORE(uint8_t, v.i);
}

static double max_float(double a, double b)
{
    return isnan(a) || a > b ? a : b;
}

static double min_float(double a, double b)
{
    return isnan(a) || a < b ? a : b;
}

/* `a` is the accumulator, `b` the element. */
#define COMBINE(field, value)                                     \
    do {                                                          \
        for (int64_t i = 0; i < n; i++) {                         \
            const qn_scalar a = acc[i * acc_stride], b = x[i];    \
            acc[i * acc_stride] = (qn_scalar){ field = (value) }; \
        }                                                         \
    } while (0)

void qn_lanes_combine(qn_kind kind, qn_dtype dtype, qn_scalar *acc, int64_t acc_stride, const qn_scalar *x,
                      int64_t n)
{
    const bool is_float = qn_dtype_is_float(dtype), is_signed = qn_dtype_class_of(dtype) == QN_CLASS_SIGNED;
    switch (kind) {
    case QN_SUM:
        if (is_float)
            COMBINE(.f, a.f + b.f);
        else
            COMBINE(.i, (int64_t)((uint64_t)a.i + (uint64_t)b.i));
        return;
    case QN_PROD:
        if (is_float)
            COMBINE(.f, a.f * b.f);
        else
            COMBINE(.i, (int64_t)((uint64_t)a.i * (uint64_t)b.i));
        return;
    case QN_KIND_MAX:
        if (is_float)
            COMBINE(.f, max_float(a.f, b.f));
        else if (is_signed)
            COMBINE(.i, a.i > b.i ? a.i : b.i);
        else
            COMBINE(.i, (uint64_t)a.i > (uint64_t)b.i ? a.i : b.i);
        return;
    case QN_KIND_MIN:
        if (is_float)
            COMBINE(.f, min_float(a.f, b.f));
        else if (is_signed)
            COMBINE(.i, a.i < b.i ? a.i : b.i);
        else
            COMBINE(.i, (uint64_t)a.i < (uint64_t)b.i ? a.i : b.i);
        return;
    case QN_SET:
        for (int64_t i = 0; i < n; i++)
            acc[i * acc_stride] = x[i];
        return;
    case QN_MEAN:
    case QN_N_KINDS: break;
    }
    QN_UNREACHABLE("no such kind");
}

int qn_scalar_order(qn_dtype dtype, qn_scalar a, qn_scalar b)
{
    switch (qn_dtype_class_of(dtype)) {
    case QN_CLASS_FLOAT:
        if (isnan(a.f) || isnan(b.f))
            return !!isnan(a.f) - !!isnan(b.f);
        return (a.f > b.f) - (a.f < b.f);
    case QN_CLASS_SIGNED: return (a.i > b.i) - (a.i < b.i);
    default: return ((uint64_t)a.i > (uint64_t)b.i) - ((uint64_t)a.i < (uint64_t)b.i);
    }
}
