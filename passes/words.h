/* What templates for products multiply at a time: a float, or in the place of one four bytes (QN_K_DOT4) or two bf16 (QN_K_DOT2).
 * Kernels count in words, so that these need no loops of their own. A buffer's dtype says which it is. */
#ifndef QN_PASSES_WORDS_H
#define QN_PASSES_WORDS_H

#include "ir/kernel.h"
#include "passes/pass.h"

enum { QN_WORD_BYTES = 4 };

/* Elements of a word: 1 for f32 and f64, 2 for bf16, 4 for i8 and u8. */
int qn_word_elements(qn_dtype dtype);
/* Columns of a panel, where y is what the right side of matmul_packed is for words on that machine; else 0. */
int qn_word_panels(const qn_type *y, int n_batch, const qn_machine *machine);
/* The same where words of a column lie two by two, as QN_K_MMLA has them. */
int qn_word_pair_panels(const qn_type *y, int n_batch, const qn_machine *machine);
/* `lanes` words from word number `at` on, as a vector of their elements. */
qn_kvalue *qn_word_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes);
/* One word, `lanes` times. */
qn_kvalue *qn_word_repeat(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes);
/* Of n words number i, `lanes` times. */
qn_kvalue *qn_word_lane(qn_kbuilder *b, qn_kvalue *words, int n, int i, int lanes);
/* Word `at` of a row that is read in order, `lanes` times: loaded alone, where `vector` is NULL; else, where a machine
 * multiplies by lanes, number `lane` of the row's running vector, which is loaded for number 0 and kept in `vector`. */
qn_kvalue *qn_word_in_turn(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes, qn_kvalue **vector,
                           int lane);
void qn_word_store(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, qn_kvalue *words);
void qn_word_prefetch(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int locality);
/* All lines of `n` words from number `at` on, but for one that only its end reaches. */
void qn_word_prefetch_run(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int64_t n);
/* sum + x * y, word by word; of bytes both, one or none are signed. Of floats with one rounding, or, not fused, with two. */
qn_kvalue *qn_word_multiply_add(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *sum, bool fused);

#endif
