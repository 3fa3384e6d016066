/* What the files of the dimension expressions share: the arithmetic of constants, and nodes in normal form. */
#ifndef QN_IR_DIM_INTERNAL_H
#define QN_IR_DIM_INTERNAL_H

#include "ir/dim.h"

static inline int64_t qn_add_saturated(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? (a > 0 ? INT64_MAX : INT64_MIN) : sum;
}

static inline int64_t qn_mul_saturated(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? ((a < 0) == (b < 0) ? INT64_MAX : INT64_MIN) : product;
}

static inline int64_t qn_div_floor(int64_t a, int64_t b)
{
    if (b == 0)
        return 0;
    if (b == -1)
        return qn_mul_saturated(a, -1);
    const int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static inline int64_t qn_mod_floor(int64_t a, int64_t b)
{
    if (b == 0 || b == -1)
        return 0;
    const int64_t r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

static inline uint64_t qn_magnitude(int64_t v)
{
    return v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
}

static inline uint64_t qn_gcd(uint64_t a, uint64_t b)
{
    while (b) {
        const uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static inline bool qn_dim_is_saturated(qn_dim d)
{
    return d->kind == QN_DIM_CONST && (d->value == INT64_MAX || d->value == INT64_MIN);
}

/* The node of that kind and those operands, which are in normal form already. */
qn_dim qn_dim_intern(qn_dims *dims, qn_dim_kind kind, int n, const qn_dim *operands);

/* The order of the normal form: by names and structure, never by address. */
int qn_dim_compare(qn_dim a, qn_dim b);

#endif
