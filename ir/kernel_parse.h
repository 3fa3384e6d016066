/* What the parts of the kernel parser share. After the first mistake everything returns quickly, with something to go on
 * with. */
#ifndef QN_IR_KERNEL_PARSE_H
#define QN_IR_KERNEL_PARSE_H

#include "ir/kernel_text.h"

typedef struct qn_kword {
    const char *at;
    size_t n;
} qn_kword;

typedef struct qn_kbinding {
    qn_kword name;
    qn_kvalue *value; /* NULL: a result that is being defined */
} qn_kbinding;

typedef struct qn_kparser {
    const char *at, *line_start, *file;
    int line;
    qn_arena *arena;
    qn_diags *diags;
    qn_kernel *k;
    qn_kbuilder b;
    qn_vec(qn_kbinding) names; /* innermost last */
    int depth;
    bool failed; /* reported; everything returns quickly */
} qn_kparser;

/* ---- ir/kernel_parse_words.c ---- */

void qn_kp_fail(qn_kparser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
void qn_kp_skip(qn_kparser *p);
qn_kword qn_kp_peek(qn_kparser *p);
bool qn_kp_word_is(qn_kword w, const char *text);
bool qn_kp_accept(qn_kparser *p, const char *text); /* takes the word or sign when it is next */
void qn_kp_expect(qn_kparser *p, const char *text);
qn_kword qn_kp_word(qn_kparser *p, const char *what);
qn_kword qn_kp_name(qn_kparser *p);                     /* %name */
qn_scalar qn_kp_literal(qn_kparser *p, qn_dtype dtype); /* a word with its signs */
int64_t qn_kp_int(qn_kparser *p, int64_t min, int64_t max);
qn_dtype qn_kp_dtype(qn_kparser *p);
/* "f32", "i32x16"; *out stays as it is when it is neither */
bool qn_kp_parse_type(qn_kword w, qn_ktype *out);
qn_ktype qn_kp_type(qn_kparser *p);
int qn_kp_choice(qn_kparser *p, const char *what, const char *const *choices, int n);

/* ---- ir/kernel_parse_inst.c ---- */

qn_kbuffer *qn_kp_find_buffer(qn_kparser *p, qn_kword name); /* NULL: none */
qn_kvalue *qn_kp_find_value(qn_kparser *p, qn_kword name);
void qn_kp_block(qn_kparser *p, qn_kblock *block); /* up to and with its '}' */

#endif
