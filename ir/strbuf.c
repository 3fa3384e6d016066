/* Owns the growing text that printers write to. */
#include "ir/strbuf.h"

#include <stdio.h>
#include <string.h>

char *qn_strbuf_reserve(qn_strbuf *buffer, size_t more)
{
    if (buffer->capacity - buffer->n <= more) { /* one more for the NUL */
        size_t capacity = buffer->capacity ? buffer->capacity : 128;
        while (capacity - buffer->n <= more)
            capacity *= 2;
        char *data = qn_arena_alloc(buffer->arena, capacity);
        if (buffer->n)
            memcpy(data, buffer->data, buffer->n);
        buffer->data = data;
        buffer->capacity = capacity;
    }
    return buffer->data + buffer->n;
}

void qn_strbuf_int(qn_strbuf *buffer, int64_t value)
{
    char digits[20], *at = digits + sizeof digits;
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        *--at = (char)('0' + magnitude % 10);
        magnitude /= 10;
    } while (magnitude);
    if (value < 0)
        qn_strbuf_add(buffer, "-", 1);
    qn_strbuf_add(buffer, at, (size_t)(digits + sizeof digits - at));
}

void qn_strbuf_printf(qn_strbuf *buffer, const char *format, ...)
{
    enum { LIKELY = 64 };
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(qn_strbuf_reserve(buffer, LIKELY), LIKELY + 1, format, args);
    va_end(args);
    if (length > LIKELY)
        vsnprintf(qn_strbuf_reserve(buffer, (size_t)length), (size_t)length + 1, format, again);
    if (length > 0)
        buffer->n += (size_t)length;
    va_end(again);
}

void qn_strbuf_quote(qn_strbuf *buffer, const char *text)
{
    qn_strbuf_add(buffer, "\"", 1);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            qn_strbuf_printf(buffer, "\\%c", c);
        else if (c == '\n')
            qn_strbuf_puts(buffer, "\\n");
        else if (c == '\t')
            qn_strbuf_puts(buffer, "\\t");
        else if (c < 0x20 || c == 0x7f)
            qn_strbuf_printf(buffer, "\\x%02x", c);
        else
            qn_strbuf_add(buffer, text, 1);
    }
    qn_strbuf_add(buffer, "\"", 1);
}

const char *qn_strbuf_text(qn_strbuf *buffer)
{
    *qn_strbuf_reserve(buffer, 0) = 0;
    return buffer->data;
}
