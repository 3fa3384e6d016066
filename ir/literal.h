/* Scalars as text: the one place where printers and parsers agree, to the last bit. Independent of the locale. */
#ifndef QN_IR_LITERAL_H
#define QN_IR_LITERAL_H

#include <stdbool.h>
#include <stddef.h>

#include "ir/dtype.h"

#define QN_LITERAL_MAX 32 /* room for any literal with its NUL */

/* The element of `dtype` at `at` as text; gives its length.
 *   integers  decimal              bool  true, false
 *   floats    whole numbers below 1e7 as they are, else the fewest digits that read back to the same bits; inf, -inf;
 *             nan for the positive quiet NaN without payload, every other NaN by its bits: 0xffc00000 */
int qn_literal_print(qn_dtype dtype, const void *at, char out[QN_LITERAL_MAX]);

/* Reads a literal into `at`, of qn_dtype_bytes(dtype) bytes. Floats round to nearest even; decimal and 0x bits.
 * False when the text is no literal of that dtype or an integer is outside its range. */
bool qn_literal_parse(qn_dtype dtype, const char *text, size_t length, void *at);

#endif
