/* The data type table and the conversions of its narrow floats. */
#include "ir/dtype.h"

#include <string.h>

#include "ir/diag.h"

typedef struct dtype_info {
    const char *name;
    size_t bytes;
    qn_dtype_class class;
} dtype_info;

static const dtype_info dtypes[] = {
#define ROW(dtype, text, bytes, class) [dtype] = { text, bytes, class },
    QN_DTYPES(ROW)
#undef ROW
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

static const dtype_info *info_of(qn_dtype dtype)
{
    QN_ASSERT(dtype > QUERN_INVALID_DTYPE && (int)dtype < N_DTYPES, "%d is no dtype", (int)dtype);
    return &dtypes[dtype];
}

const char *qn_dtype_name(qn_dtype dtype)
{
    return info_of(dtype)->name;
}

qn_dtype qn_dtype_parse(const char *name, size_t length)
{
    for (int d = 1; d < N_DTYPES; d++)
        if (strlen(dtypes[d].name) == length && memcmp(dtypes[d].name, name, length) == 0)
            return (qn_dtype)d;
    return QUERN_INVALID_DTYPE;
}

size_t qn_dtype_bytes(qn_dtype dtype)
{
    return info_of(dtype)->bytes;
}

qn_dtype_class qn_dtype_class_of(qn_dtype dtype)
{
    return info_of(dtype)->class;
}

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* `value` in a 16-bit float of that many mantissa bits (10: binary16, 7: bfloat16), rounded once to nearest even. */
static uint16_t round_to_16(double value, int mantissa_bits)
{
    const int bias = (1 << (14 - mantissa_bits)) - 1;
    const uint32_t infinity = (uint32_t)((1 << (15 - mantissa_bits)) - 1) << mantissa_bits;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (uint32_t)(bits >> 63) << 15;
    const int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    const uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
    if (exponent == 1024) {
        const uint32_t quiet = (uint32_t)1 << (mantissa_bits - 1);
        const uint32_t payload = (uint32_t)(fraction >> (52 - mantissa_bits));
        return (uint16_t)(sign | infinity | (fraction ? quiet | payload : 0));
    }
    if (exponent > bias)
        return (uint16_t)(sign | infinity);
    /* The significand has 53 bits. Below the smallest normal number fewer of them are kept. */
    const int below = exponent < 1 - bias ? 1 - bias - exponent : 0;
    const int shift = 52 - mantissa_bits + below;
    if (shift > 53) /* less than half of the smallest denormal; so are the denormals of double */
        return (uint16_t)sign;
    const uint64_t significand = fraction | (uint64_t)1 << 52;
    const uint64_t half = (uint64_t)1 << (shift - 1), rest = significand & (2 * half - 1);
    uint32_t kept = (uint32_t)(significand >> shift);
    kept += rest > half || (rest == half && (kept & 1));
    /* A carry out of the mantissa moves into the exponent: to the smallest normal, the next binade, or infinity. */
    if (below == 0)
        kept += (uint32_t)(exponent + bias - 1) << mantissa_bits;
    return (uint16_t)(sign | kept);
}

float qn_f16_to_f32(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
    if (exponent == 0x1f)
        return float_of_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent == 0) { /* zero or denormal: mantissa * 2^-24, exact */
        const float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t qn_f32_to_f16(float value)
{
    return round_to_16(value, 10);
}

uint16_t qn_f64_to_f16(double value)
{
    return round_to_16(value, 10);
}

float qn_bf16_to_f32(uint16_t bits)
{
    const bool nan = (bits & 0x7fff) > 0x7f80;
    return float_of_bits((uint32_t)bits << 16 | (nan ? 0x400000 : 0));
}

uint16_t qn_f32_to_bf16(float value)
{
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t qn_f64_to_bf16(double value)
{
    return round_to_16(value, 7);
}

qn_scalar qn_scalar_load(qn_dtype dtype, const void *at)
{
    union {
        int8_t i8;
        int16_t i16;
        int32_t i32;
        int64_t i64;
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        float f32;
        double f64;
    } v;
    memcpy(&v, at, qn_dtype_bytes(dtype));
    switch (dtype) {
    case QUERN_BOOL: return (qn_scalar){ .i = v.u8 != 0 };
    case QUERN_I8: return (qn_scalar){ .i = v.i8 };
    case QUERN_I16: return (qn_scalar){ .i = v.i16 };
    case QUERN_I32: return (qn_scalar){ .i = v.i32 };
    case QUERN_I64:
    case QUERN_U64: return (qn_scalar){ .i = v.i64 };
    case QUERN_U8: return (qn_scalar){ .i = v.u8 };
    case QUERN_U16: return (qn_scalar){ .i = v.u16 };
    case QUERN_U32: return (qn_scalar){ .i = v.u32 };
    case QUERN_F16: return (qn_scalar){ .f = (double)qn_f16_to_f32(v.u16) };
    case QUERN_BF16: return (qn_scalar){ .f = (double)qn_bf16_to_f32(v.u16) };
    case QUERN_F32: return (qn_scalar){ .f = (double)v.f32 };
    case QUERN_F64: return (qn_scalar){ .f = v.f64 };
    default: break;
    }
    if (qn_dtype_is_stored(dtype))
        return (qn_scalar){ .i = v.u8 };
    QN_UNREACHABLE("dtype %d", (int)dtype);
}

void qn_scalar_store(qn_dtype dtype, qn_scalar value, void *at)
{
    switch (dtype) {
    case QUERN_BOOL: *(unsigned char *)at = value.i != 0; return;
    case QUERN_I8:
    case QUERN_U8: *(unsigned char *)at = (unsigned char)value.i; return;
    case QUERN_I16:
    case QUERN_U16: memcpy(at, &(uint16_t){ (uint16_t)value.i }, 2); return;
    case QUERN_I32:
    case QUERN_U32: memcpy(at, &(uint32_t){ (uint32_t)value.i }, 4); return;
    case QUERN_I64:
    case QUERN_U64: memcpy(at, &value.i, 8); return;
    case QUERN_F16: memcpy(at, &(uint16_t){ qn_f64_to_f16(value.f) }, 2); return;
    case QUERN_BF16: memcpy(at, &(uint16_t){ qn_f64_to_bf16(value.f) }, 2); return;
    case QUERN_F32: memcpy(at, &(float){ (float)value.f }, 4); return;
    case QUERN_F64: memcpy(at, &value.f, 8); return;
    default: break;
    }
    if (qn_dtype_is_stored(dtype)) {
        *(unsigned char *)at = (unsigned char)value.i;
        return;
    }
    QN_UNREACHABLE("dtype %d", (int)dtype);
}
