/* Conversions of narrow types in kernels, where their elements are bytes. */
#ifndef QN_PASSES_MATH_NARROW_H
#define QN_PASSES_MATH_NARROW_H

#include "ir/kernel.h"

/* The convert op where `from` or `to` is narrow. x: of the carrier of `from`. Returns a value of the carrier of `to`. */
qn_kvalue *qn_narrow_convert(qn_kbuilder *b, qn_dtype from, qn_dtype to, qn_kvalue *x);

#endif
