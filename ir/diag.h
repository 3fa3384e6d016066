/* Statuses and diagnostics. A user's mistake is a status plus one or more diagnostics; a broken invariant of ours is
 * an assertion. Diagnostics collect, so that everything that is wrong with a model is reported at once. */
#ifndef QN_IR_DIAG_H
#define QN_IR_DIAG_H

#include <stdarg.h>
#include <stddef.h>

#include "ir/arena.h"
#include "quern_abi.h"

typedef quern_status qn_status;

#define QN_MUST_USE __attribute__((warn_unused_result))

/* Where something came from; printed in front of every message about it. All fields may be NULL or 0. */
typedef struct qn_loc {
    const char *file; /* "model.onnx", "x.qn" */
    int line, column; /* text input: from 1 */
    const char *node; /* ONNX: node name, or op type and index where it has none; else NULL */
    const char *op;   /* ONNX: "Conv, opset 18" */
} qn_loc;

typedef struct qn_diag {
    qn_status status;
    const char *text; /* "model.onnx: /layer1/conv/Conv (Conv, opset 18): …" */
    struct qn_diag *next;
} qn_diag;

typedef struct qn_diags {
    qn_arena *arena; /* owns the texts */
    qn_diag *first, *last;
    int n_errors; /* reported; those past QN_DIAG_LIMIT are counted, not kept */
} qn_diags;

#define QN_DIAG_LIMIT 100

void qn_diags_init(qn_diags *diags, qn_arena *arena);

/* Reports an error and returns `status`, so that callers can write `return qn_error(...)`.
 * The text says what is wrong and what would be accepted; no trailing newline or full stop. */
qn_status qn_error(qn_diags *diags, qn_status status, const qn_loc *loc, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* All texts, one a line, in `arena`; "" when there are none. */
const char *qn_diags_text(const qn_diags *diags, qn_arena *arena);

/* The messages of `from` come behind those of `to`. */
void qn_diags_move(qn_diags *from, qn_diags *to);

/* First reported status, or QUERN_OK. */
qn_status qn_diags_status(const qn_diags *diags);

/* Broken invariant: prints where and what, then aborts. For our own mistakes only, never for input. */
_Noreturn void qn_panic(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define QN_ASSERT(condition, ...) ((condition) ? (void)0 : qn_panic(__FILE__, __LINE__, __VA_ARGS__))
#define QN_UNREACHABLE(...) qn_panic(__FILE__, __LINE__, __VA_ARGS__)

/* if (status) return status; */
#define QN_TRY(call)                    \
    do {                                \
        qn_status try_status_ = (call); \
        if (try_status_)                \
            return try_status_;         \
    } while (0)

/* The word (NULL is none) that takes the fewest edits to make of a text, at most two and no more than half of it; NULL: none does. */
const char *qn_nearest_word(const char *text, size_t length, const char *const *words, int n);

#endif
