/* What the kernel printer, parser and verifier share. The text form:
 *
 *   kernel @name(%x: f32 in, %y: f32 out align 64 inplace %x; %rows [0, 1024] multiple 16) gpu_threads 128 flops 2000000 {
 *     local %tile: f32[1024]
 *     shared %stage: f32[256] align 16
 *     %0 = imul task, 64
 *     %1 = min %0, %rows
 *     %2, %3 = for %4 = %0 to %1 step 1 vector 16 carry %5 = f32 0 sum, %6 = f32 -inf max {
 *       %7 = load %x[%4] : f32
 *       %8 = mul.fast %7, f32 0.5
 *       store %y[%4], %8
 *       …
 *       yield %9, %10
 *     }
 *     %11 = if %12 {
 *       yield %2
 *     } else {
 *       yield %3
 *     }
 *   }
 *
 * in, out, inout, unused: how an argument is used. Parameters are named; other values are numbered when printed, and may
 * have names when parsed; a name holds to the end of its block. Constants stand where they are used: `64` is i64, others
 * say their type: `f32 0.5`, `i32x16 3`, `bool true`. `task` is the task number. Comments go from # to the end of the line.
 *   unary, binary     their op's name: %1 = exp %0; .fast where rounding may differ; iadd isub imul idiv imod: index math
 *   fma a, b, c       compare lt a, b      select p, a, b        scale2 a, n
 *   convert a : i32   bitcast a : i32x16   splat a : f32x16      ramp a : i64x16
 *   extract a, 3      reduce sum a         shuffle a, b [0, 2, 4, 6]
 *   lookup a [0, 0.5, …] pick a, b             join a : f32x16
 *   load %x[i] : f32x16, mask m, other o   load %x[i] : u8x64 in_order         store %y[i], v, mask m nontemporal
 *   prefetch %x[i], 0                      atomic_add %x[i], v
 *   check p, 12       barrier */
#ifndef QN_IR_KERNEL_TEXT_H
#define QN_IR_KERNEL_TEXT_H

#include "ir/kernel.h"

extern const char *const qn_kop_names[]; /* by qn_kop; UNARY and BINARY go by their op's */
extern const char *const qn_ktag_names[5];
/* "iadd" for QN_OP_ADD and so on; NULL: there is no such index op. */
const char *qn_k_index_name(qn_op fn);
qn_op qn_k_index_parse(const char *name, size_t length); /* QN_N_OPS: none */
/* What is wrong with one instruction, in itself: operands, types, buffer, attributes; not its blocks. NULL: nothing. */
const char *qn_kinst_mistake(const qn_kernel *k, const qn_kinst *inst, qn_arena *arena);
const char *qn_ktype_print(qn_ktype type, qn_arena *arena); /* "f32x16" */

#endif
