/* terms.h: arithmetic on the indices of a kernel, written as in a formula: ADD(MUL(row, INDEX(8)), lane). A template
 * that includes this defines TERMS, the qn_kbuilder * that they are written by. */
#ifndef QN_PASSES_TERMS_H
#define QN_PASSES_TERMS_H

#include "ir/kernel.h"

#define INDEX(number) qn_kb_index(TERMS, (number))
#define ADD(x, y) qn_kb_iadd(TERMS, (x), (y))
#define SUB(x, y) qn_kb_isub(TERMS, (x), (y))
#define MUL(x, y) qn_kb_imul(TERMS, (x), (y))
#define DIV(x, y) qn_kb_idiv(TERMS, (x), (y))
#define MOD(x, y) qn_kb_imod(TERMS, (x), (y))
#define MIN(x, y) qn_kb_imin(TERMS, (x), (y))
#define MAX(x, y) qn_kb_imax(TERMS, (x), (y))
/* Begins a loop over [low, high) that carries nothing. */
#define FOR(low, high) qn_kb_for(TERMS, (low), (high), INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL)

#endif
