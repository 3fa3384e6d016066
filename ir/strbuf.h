/* A growing text in an arena, for printers. Storage it outgrows is left to the arena. */
#ifndef QN_IR_STRBUF_H
#define QN_IR_STRBUF_H

#include <stdint.h>

#include "ir/arena.h"

typedef struct qn_strbuf {
    qn_arena *arena;
    char *data; /* ends with a NUL once something was added */
    size_t n, capacity;
} qn_strbuf;

void qn_strbuf_add(qn_strbuf *buffer, const char *text, size_t length);
void qn_strbuf_puts(qn_strbuf *buffer, const char *text);
void qn_strbuf_int(qn_strbuf *buffer, int64_t value); /* in decimal */
void qn_strbuf_printf(qn_strbuf *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* `text` in double quotes, with \" \\ \n \t and \xHH for other control characters. */
void qn_strbuf_quote(qn_strbuf *buffer, const char *text);
/* The text so far; valid until more is added. */
const char *qn_strbuf_text(qn_strbuf *buffer);

#endif
