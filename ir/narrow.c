/* The narrow types' table and conversions. */
#include "ir/narrow.h"

#include <math.h>

#include "ir/diag.h"

/* clang-format off */
static const qn_narrow types[] = {
    [QUERN_I4 - QUERN_I4] = { .bits = 4, .sign = true },
    [QUERN_U4 - QUERN_I4] = { .bits = 4 },
    [QUERN_I2 - QUERN_I4] = { .bits = 2, .sign = true },
    [QUERN_U2 - QUERN_I4] = { .bits = 2 },
    /*                                                             mantissa, bias, largest, beyond, nan */
    [QUERN_F8E4M3FN   - QUERN_I4] = { .bits = 8, .sign = true,  .is_float = true, 3,   7, 0x7e, 0x7f, 0x7f },
    [QUERN_F8E4M3FNUZ - QUERN_I4] = { .bits = 8, .sign = true,  .is_float = true, 3,   8, 0x7f, 0x80, 0x80 },
    [QUERN_F8E5M2     - QUERN_I4] = { .bits = 8, .sign = true,  .is_float = true, 2,  15, 0x7b, 0x7c, 0x7e },
    [QUERN_F8E5M2FNUZ - QUERN_I4] = { .bits = 8, .sign = true,  .is_float = true, 2,  16, 0x7f, 0x80, 0x80 },
    [QUERN_F4E2M1     - QUERN_I4] = { .bits = 4, .sign = true,  .is_float = true, 1,   1, 0x07, 0x07, 0x00 },
    [QUERN_F8E8M0     - QUERN_I4] = { .bits = 8, .sign = false, .is_float = true, 0, 127, 0xfe, 0xff, 0xff },
};
/* clang-format on */

const qn_narrow *qn_narrow_of(qn_dtype dtype)
{
    return qn_dtype_is_stored(dtype) ? &types[dtype - QUERN_I4] : NULL;
}

void qn_narrow_unpack(int bits, const uint8_t *restrict from, int64_t first, int64_t n, uint8_t *restrict to)
{
    const int per_byte = 8 / bits;
    int64_t done = 0;
    if (bits == 4 && first % 2 == 0) { /* a loop that compilers make vectors of */
        const uint8_t *at = from + first / 2;
        for (; done + 2 <= n; done += 2) {
            to[done] = at[done / 2] & 15;
            to[done + 1] = at[done / 2] >> 4;
        }
    }
    for (int64_t i = done; i < n; i++) {
        const int64_t at = first + i;
        to[i] = (uint8_t)(from[at / per_byte] >> (int)(at % per_byte) * bits & ((1 << bits) - 1));
    }
}

double qn_narrow_value(qn_dtype dtype, uint8_t bits)
{
    const qn_narrow *n = qn_narrow_of(dtype);
    const int top = 1 << (n->bits - 1), all = 2 * top - 1;
    const bool negative = n->sign && (bits & top);
    if (!n->is_float)
        return (bits & all) - (negative ? 2 * top : 0);
    const int magnitude = bits & (n->sign ? top - 1 : all);
    double value;
    if (magnitude > n->largest)
        value = magnitude == n->beyond && n->beyond != n->nan ? INFINITY : NAN;
    else if (qn_narrow_is_uz(n) && negative && magnitude == 0)
        return NAN;
    else {
        const int exponent = magnitude >> n->mantissa, one = 1 << n->mantissa;
        const bool denormal = exponent == 0 && n->mantissa > 0;
        value =
            ldexp(magnitude % one + (denormal ? 0 : one), (denormal ? 1 : exponent) - n->bias - n->mantissa);
    }
    return negative ? -value : value;
}

static int float_bits(const qn_narrow *n, double magnitude)
{
    /* The lowest exponent; where there are denormals, one that they share. */
    const int lowest = n->mantissa > 0 ? 1 - n->bias : -n->bias;
    if (isnan(magnitude) || (n->mantissa == 0 && magnitude < ldexp(1, lowest)))
        return n->nan;
    if (isinf(magnitude))
        return n->beyond;
    const int exponent = magnitude < ldexp(1, lowest) ? lowest : ilogb(magnitude);
    const double units = nearbyint(ldexp(magnitude, n->mantissa - exponent));
    /* A carry out of the mantissa moves into the exponent. */
    const int bits = (exponent + n->bias - 1) * (1 << n->mantissa) + (int)units;
    return bits > n->largest ? n->beyond : bits;
}

uint8_t qn_narrow_from_float(qn_dtype dtype, double value)
{
    const qn_narrow *n = qn_narrow_of(dtype);
    const int top = 1 << (n->bits - 1);
    if (!n->is_float) {
        const int low = n->sign ? -top : 0, high = n->sign ? top - 1 : 2 * top - 1;
        return qn_narrow_from_int(dtype, isnan(value) ? 0 : (int64_t)fmin(fmax(value, low), high));
    }
    if (!n->sign)
        return signbit(value) ? n->nan : (uint8_t)float_bits(n, value);
    const int bits = float_bits(n, fabs(value));
    return (uint8_t)(bits == 0 && qn_narrow_is_uz(n) ? 0 : bits | (signbit(value) ? top : 0));
}

uint8_t qn_narrow_from_int(qn_dtype dtype, int64_t value)
{
    const qn_narrow *n = qn_narrow_of(dtype);
    QN_ASSERT(!n->is_float, "%s is a float", qn_dtype_name(dtype));
    return (uint8_t)((uint64_t)value & ((1u << n->bits) - 1));
}
