/* Loops over C types for what constants of models are made of when they are folded: gigabytes of weights, with scales, rounded to
 * bytes. They give the bits that the loops over lanes give: sums, products and quotients of float32 are rounded once there too. */
#include "backends/interp/interp.h"

#include <math.h>

#define LOOP2(type, op, value)                                             \
    case QN_OP_##op:                                                       \
        for (int64_t i = 0; i < n; i++) {                                  \
            const type x = ((const type *)a)[i], y = ((const type *)b)[i]; \
            ((type *)r)[i] = (type)(value);                                \
        }                                                                  \
        return true

static bool binary_f32(qn_op op, const void *restrict a, const void *restrict b, void *restrict r, int64_t n)
{
    switch (op) {
        LOOP2(float, ADD, x + y);
        LOOP2(float, SUB, x - y);
        LOOP2(float, MUL, x *y);
        LOOP2(float, DIV, x / y);
        LOOP2(float, MAX, ((x != x) | (x > y)) ? x : y);
        LOOP2(float, MIN, ((x != x) | (x < y)) ? x : y);
    default: return false;
    }
}

static bool binary_32(qn_op op, const void *restrict a, const void *restrict b, void *restrict r, int64_t n)
{
    switch (op) {
        LOOP2(uint32_t, ADD, x + y);
        LOOP2(uint32_t, SUB, x - y);
        LOOP2(uint32_t, MUL, x *y);
    default: return false;
    }
}

/* Bytes are shifted by the same count or not here. */
static bool shift_8(qn_op op, const void *restrict a, const void *restrict b, void *restrict r, int64_t n)
{
    const uint8_t *counts = b;
    const unsigned count = n > 0 ? counts[0] : 0;
    bool same = count < 8;
    for (int64_t i = 0; i < n; i++)
        same &= counts[i] == count;
    for (int64_t i = 0; same && i < n; i++) {
        const unsigned x = ((const uint8_t *)a)[i];
        ((uint8_t *)r)[i] = (uint8_t)(op == QN_OP_SHIFT_LEFT ? x << count : x >> count);
    }
    return same;
}

static bool binary_8(qn_op op, bool is_signed, const void *restrict a, const void *restrict b,
                     void *restrict r, int64_t n)
{
    switch (op) {
        LOOP2(uint8_t, ADD, x + y);
        LOOP2(uint8_t, SUB, x - y);
        LOOP2(uint8_t, AND, x &y);
        LOOP2(uint8_t, OR, x | y);
        LOOP2(uint8_t, XOR, x ^ y);
    case QN_OP_SHIFT_RIGHT:
        if (is_signed)
            return false;
        return shift_8(op, a, b, r, n);
    case QN_OP_SHIFT_LEFT: return shift_8(op, a, b, r, n);
    default: return false;
    }
}

/* Half to even: from 2^23 on numbers are whole, and adding it rounds those below. */
static float rounded(float x)
{
    const float whole = 0x1p23f, size = fabsf(x), y = copysignf((size + whole) - whole, x);
    return size < whole ? y : x;
}

#define LOOP1(op, value)                           \
    case QN_OP_##op:                               \
        for (int64_t i = 0; i < n; i++) {          \
            const float x = ((const float *)a)[i]; \
            ((float *)r)[i] = (value);             \
        }                                          \
        return true

static bool unary_f32(qn_op op, const void *restrict a, void *restrict r, int64_t n)
{
    switch (op) {
        LOOP1(NEG, -x);
        LOOP1(ABS, fabsf(x));
        LOOP1(ROUND, rounded(x));
    default: return false;
    }
}

#define COMPARE(name, holds)                                                      \
    case name:                                                                    \
        for (int64_t i = 0; i < n; i++)                                           \
            ((uint8_t *)r)[i] = ((const float *)a)[i] holds((const float *)b)[i]; \
        return true

static bool compare_f32(qn_direction direction, const void *restrict a, const void *restrict b,
                        void *restrict r, int64_t n)
{
    switch (direction) {
        COMPARE(QN_EQ, ==);
        COMPARE(QN_NE, !=);
        COMPARE(QN_LT, <);
        COMPARE(QN_LE, <=);
        COMPARE(QN_GT, >);
        COMPARE(QN_GE, >=);
    }
    return false;
}

bool qn_quick_elementwise(const qn_node *node, const qn_array *x, qn_array *r)
{
    const int64_t n = qn_array_elements(r);
    const void *a = x[0].data, *b = node->n_operands > 1 ? x[1].data : NULL;
    const qn_dtype dtype = x[0].dtype;
    if (dtype == QUERN_F32 && node->op == QN_OP_COMPARE)
        return compare_f32(qn_attr_compare_direction(node), a, b, r->data, n);
    if (dtype == QUERN_F32)
        return b ? binary_f32(node->op, a, b, r->data, n) : unary_f32(node->op, a, r->data, n);
    if (!b)
        return false;
    if (dtype == QUERN_I32 || dtype == QUERN_U32)
        return binary_32(node->op, a, b, r->data, n);
    return (dtype == QUERN_I8 || dtype == QUERN_U8) &&
           binary_8(node->op, dtype == QUERN_I8, a, b, r->data, n);
}

/* ---- convert ---- */

#define CONVERT(from, to, value)                 \
    do {                                         \
        for (int64_t i = 0; i < n; i++) {        \
            const from x = ((const from *)a)[i]; \
            ((to *)r)[i] = (to)(value);          \
        }                                        \
        return true;                             \
    } while (0)

/* Truncated and saturated; NaN is 0. */
static inline int32_t byte_of(float x, float least, float most)
{
    x = x > least ? x : x != x ? 0 : least;
    return (int32_t)(x < most ? x : most);
}

bool qn_quick_convert(qn_dtype from, qn_dtype to, const void *restrict a, int64_t n, void *restrict r)
{
    const int pair = (int)from << 8 | (int)to;
    switch (pair) {
    case QUERN_F32 << 8 | QUERN_I8: CONVERT(float, int8_t, byte_of(x, -128, 127));
    case QUERN_F32 << 8 | QUERN_U8: CONVERT(float, uint8_t, byte_of(x, 0, 255));
    case QUERN_F32 << 8 | QUERN_BF16: CONVERT(float, uint16_t, qn_f32_to_bf16(x));
    case QUERN_BF16 << 8 | QUERN_F32: CONVERT(uint16_t, float, qn_bf16_to_f32(x));
    case QUERN_I8 << 8 | QUERN_U8:
    case QUERN_U8 << 8 | QUERN_I8: CONVERT(uint8_t, uint8_t, x);
    case QUERN_I8 << 8 | QUERN_I32: CONVERT(int8_t, int32_t, x);
    case QUERN_U8 << 8 | QUERN_I32: CONVERT(uint8_t, int32_t, x);
    case QUERN_I32 << 8 | QUERN_F32: CONVERT(int32_t, float, x);
    case QUERN_U4 << 8 | QUERN_U8:
    case QUERN_U4 << 8 | QUERN_I8: CONVERT(uint8_t, uint8_t, x & 15);
    case QUERN_U4 << 8 | QUERN_I32: CONVERT(uint8_t, int32_t, x & 15);
    case QUERN_I4 << 8 | QUERN_I8: CONVERT(uint8_t, int8_t, ((x & 15) ^ 8) - 8);
    case QUERN_I4 << 8 | QUERN_I32: CONVERT(uint8_t, int32_t, ((x & 15) ^ 8) - 8);
    default: return false;
    }
}

/* ---- reduce ---- */

bool qn_quick_reduces(qn_kind kind, qn_dtype dtype)
{
    return dtype == QUERN_F32 ? kind == QN_KIND_MAX || kind == QN_KIND_MIN
                              : dtype == QUERN_I32 && kind == QN_SUM;
}

/* `a` is the accumulator, `x` the element. */
#define COMBINE(type, value)                                       \
    do {                                                           \
        type *to = acc;                                            \
        if (step) {                                                \
            for (int64_t i = 0; i < n; i++) {                      \
                const type a = to[i], x = ((const type *)from)[i]; \
                to[i] = (value);                                   \
            }                                                      \
        } else {                                                   \
            type a = to[0];                                        \
            for (int64_t i = 0; i < n; i++) {                      \
                const type x = ((const type *)from)[i];            \
                a = (value);                                       \
            }                                                      \
            to[0] = a;                                             \
        }                                                          \
    } while (0)

void qn_quick_combine(qn_kind kind, void *restrict acc, bool step, const void *restrict from, int64_t n)
{
    if (kind == QN_KIND_MAX)
        COMBINE(float, ((a != a) | (a > x)) ? a : x);
    else if (kind == QN_KIND_MIN)
        COMBINE(float, ((a != a) | (a < x)) ? a : x);
    else
        COMBINE(uint32_t, a + x);
}

/* ---- products ---- */

void qn_quick_dot(const float *restrict x, int64_t rows, int n_k, const qn_scalar *restrict m, int n,
                  float *restrict r)
{
    enum { WIDTH = 4 };
    for (int64_t i = 0; i < rows; i++, x += n_k, r += n) {
        double row[QN_QUICK_K];
        for (int k = 0; k < n_k; k++)
            row[k] = x[k];
        for (int j = 0; j < n; j += WIDTH) {
            double sum[WIDTH] = { 0 };
            for (int k = 0; k < n_k; k++)
                for (int c = 0; c < WIDTH; c++)
                    sum[c] += row[k] * m[k * QN_QUICK_N + j + c].f;
            for (int c = 0; c < WIDTH && j + c < n; c++)
                r[j + c] = (float)sum[c];
        }
    }
}
