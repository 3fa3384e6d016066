/* Index values as polynomials over atoms, for simplifying and proving: ir/kernel_index.c.
 *
 * An atom is a value that is not index addition, subtraction or multiplication: a counter, parameter, quotient,
 * minimum, loaded value. A polynomial is a sum of terms, coefficient * product of atoms, sorted; the constant is last. */
#ifndef QN_IR_KERNEL_POLY_H
#define QN_IR_KERNEL_POLY_H

#include "ir/kernel_edit.h"

enum { QN_POLY_TERMS = 16, QN_POLY_ATOMS = 6 };

typedef struct qn_term {
    int64_t factor;                        /* never 0 */
    int n;                                 /* atoms; 0: the constant */
    const qn_kvalue *atoms[QN_POLY_ATOMS]; /* by serial, ascending */
} qn_term;

typedef struct qn_poly {
    int n;
    qn_term terms[QN_POLY_TERMS];
} qn_poly;

void qn_poly_constant(qn_poly *out, int64_t value);
void qn_poly_atom(qn_poly *out, const qn_kvalue *v);
void qn_poly_term(qn_poly *out, const qn_term *t);
void qn_poly_copy(qn_poly *to, const qn_poly *from); /* the terms there are: a whole one is a kilobyte */
/* The polynomial of a value: index arithmetic taken apart. */
void qn_poly_of(const qn_kvalue *v, qn_poly *out);

/* These are false, with *out undefined, when the result has too many terms or a coefficient overflows. out may be an input. */
bool qn_poly_add(qn_poly *out, const qn_poly *a, const qn_poly *b, int64_t b_factor); /* a + b_factor * b */
bool qn_poly_mul(qn_poly *out, const qn_poly *a, const qn_poly *b);
bool qn_poly_mul_term(qn_poly *out, const qn_poly *a, const qn_term *t);

bool qn_poly_equal(const qn_poly *a, const qn_poly *b);
bool qn_poly_is_const(const qn_poly *p, int64_t *out);
/* t = quotient * d exactly */
bool qn_term_divide(const qn_term *t, const qn_term *d, qn_term *out_quotient);
void qn_term_gcd(const qn_term *a, const qn_term *b, qn_term *out);
bool qn_term_is_one(const qn_term *t);

/* Proofs; false means "not proven". */
bool qn_poly_nonnegative(const qn_poly *p);
/* 0 <= p < d */
bool qn_poly_inside(const qn_poly *p, const qn_poly *d);

#endif
