/* Types that store numbers and don't compute: integers of 4 and 2 bits, floats of 8 and 4.
 *
 * An element is a byte of memory whatever its width: its bits are the lowest of the byte, the others are 0 where Quern writes
 * them and not looked at where it reads. Only files pack several into a byte.
 *
 * Floats are as ONNX and OCP MX define them. To one of them rounds once, to nearest even; what is too large becomes infinity,
 * NaN where there is none, or the largest number where there is neither (f4e2m1, where NaN becomes 0). f8e8m0 has powers of two
 * from 2^-127 on, and NaN, which it also gives for 0, negative and smaller numbers; halfway between two it takes the larger.
 * To an integer truncates and saturates from floats, NaN being 0, and wraps from integers. */
#ifndef QN_IR_NARROW_H
#define QN_IR_NARROW_H

#include "ir/dtype.h"

typedef struct qn_narrow {
    int bits;  /* of an element */
    bool sign; /* the highest of them is one */
    bool is_float;
    int mantissa, bias; /* floats: bits of the mantissa, and the exponent's bias */
    uint8_t largest;    /* the largest number's bits */
    uint8_t beyond;     /* what is larger becomes: infinity, NaN or `largest` */
    uint8_t nan;        /* what NaN becomes */
} qn_narrow;

const qn_narrow *qn_narrow_of(qn_dtype dtype); /* NULL: it is none */

/* A float, narrow or not. */
static inline bool qn_is_real(qn_dtype dtype)
{
    const qn_narrow *n = qn_narrow_of(dtype);
    return n ? n->is_float : qn_dtype_is_float(dtype);
}

/* Has it neither -0 nor a NaN with a sign: are the bits of -0 NaN's? */
static inline bool qn_narrow_is_uz(const qn_narrow *n)
{
    return n->is_float && n->nan == 0x80;
}

/* n numbers of 2 or 4 bits from number `first` on, each to a byte of its own; the first of a byte is in its lowest bits. */
void qn_narrow_unpack(int bits, const uint8_t *from, int64_t first, int64_t n, uint8_t *to);

double qn_narrow_value(qn_dtype dtype, uint8_t bits); /* exact */
uint8_t qn_narrow_from_float(qn_dtype dtype, double value);
uint8_t qn_narrow_from_int(qn_dtype dtype, int64_t value); /* an integer type */

#endif
