/* A growing text in an arena, for printers. Storage it outgrows is left to the arena. */
#ifndef QN_IR_STRBUF_H
#define QN_IR_STRBUF_H

#include <stdint.h>
#include <string.h>

#include "ir/arena.h"

typedef struct qn_strbuf {
    qn_arena *arena;
    char *data; /* ends with a NUL once something was added */
    size_t n, capacity;
} qn_strbuf;

/* Where text may be written: room for `more` bytes and a NUL. */
char *qn_strbuf_reserve(qn_strbuf *buffer, size_t more);
/* In the header: printers call these for every word, mostly with a literal, whose length is then a number. */
static inline void qn_strbuf_add(qn_strbuf *buffer, const char *text, size_t length)
{
    char *to =
        buffer->capacity - buffer->n > length ? buffer->data + buffer->n : qn_strbuf_reserve(buffer, length);
    if (length)
        memcpy(to, text, length);
    to[length] = 0;
    buffer->n += length;
}
static inline void qn_strbuf_puts(qn_strbuf *buffer, const char *text)
{
    qn_strbuf_add(buffer, text, strlen(text));
}
void qn_strbuf_int(qn_strbuf *buffer, int64_t value); /* in decimal */
void qn_strbuf_printf(qn_strbuf *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* `text` in double quotes, with \" \\ \n \t and \xHH for other control characters. */
void qn_strbuf_quote(qn_strbuf *buffer, const char *text);
/* The text so far; valid until more is added. */
const char *qn_strbuf_text(qn_strbuf *buffer);

#endif
