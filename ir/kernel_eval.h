/* What element-wise instructions compute, one element at a time: constants fold by it, the kernel interpreter runs by it. */
#ifndef QN_IR_KERNEL_EVAL_H
#define QN_IR_KERNEL_EVAL_H

#include "ir/kernel.h"

/* Element-wise ops with one or two operands that UNARY and BINARY may name, and their result's dtype. */
bool qn_keval_is_unary(qn_op fn);
bool qn_keval_is_binary(qn_op fn);
bool qn_keval_accepts(qn_op fn, qn_dtype dtype);
qn_dtype qn_keval_result(qn_op fn, qn_dtype dtype); /* bool for is_nan and is_inf, else dtype */
/* Has one right answer to the last bit on every machine: what constant folding may compute. */
bool qn_keval_is_exact(qn_op fn);

qn_scalar qn_keval_unary(qn_op fn, qn_dtype dtype, qn_scalar a);
qn_scalar qn_keval_binary(qn_op fn, qn_dtype dtype, qn_scalar a, qn_scalar b);
qn_scalar qn_keval_fma(qn_dtype dtype, qn_scalar a, qn_scalar b, qn_scalar c);
bool qn_keval_compare(qn_direction d, qn_dtype dtype, qn_scalar a, qn_scalar b);
qn_scalar qn_keval_convert(qn_dtype from, qn_dtype to, qn_scalar a);
qn_scalar qn_keval_bitcast(qn_dtype from, qn_dtype to, qn_scalar a);
qn_scalar qn_keval_scale2(qn_dtype dtype, qn_scalar a, qn_scalar n);
/* `value` as that dtype holds it: floats rounded, integers wrapped, bool 0 or 1. */
qn_scalar qn_keval_normal(qn_dtype dtype, qn_scalar value);
bool qn_keval_same(qn_dtype dtype, qn_scalar a, qn_scalar b); /* the same bits; all NaN alike */

#endif
