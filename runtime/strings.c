/* Tables of strings: see quern.h. A string is found by its hash in slots that are probed one after the other. Strings are forgotten
 * in the opposite order of their coming, so that emptying a slot breaks no other one's way: what came later is gone already. */
#include "runtime/strings.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"

typedef struct entry {
    qn_text text;
    uint64_t hash;
} entry;

typedef struct chunk { /* of the texts that were put behind the model's */
    struct chunk *next;
    size_t used, capacity;
    char bytes[];
} chunk;

typedef struct table {
    quern_strings shown;     /* first: what hosts and entries see */
    size_t n, own, capacity; /* strings; those that it was made with; room */
    entry *entries;
    uint32_t *slots; /* a string's number plus one; 0: empty. A power of two, at least half empty */
    size_t n_slots;
    chunk *chunks;
    size_t bytes, limit; /* of what is behind the model's */
    qn_text_buffer scratch;
    char error[256];
} table;

enum { CHUNK = 1 << 16, FIRST_SLOTS = 64 };
static const size_t default_limit = (size_t)256 << 20;

static table *of(const quern_strings *strings)
{
    return (table *)(uintptr_t)strings;
}

int qn_strings_fail(quern_strings *strings, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(of(strings)->error, sizeof of(strings)->error, format, args);
    va_end(args);
    return status;
}

static int out_of_memory(table *t)
{
    return qn_strings_fail(&t->shown, QUERN_ERROR_MEMORY, "no memory for the table of strings");
}

static const char *error_of(const quern_strings *strings)
{
    return of(strings)->error;
}

/* ---- finding ---- */

static uint64_t hash_of(qn_text text)
{
    uint64_t h = text.length * 0x9e3779b97f4a7c15u, word;
    size_t i = 0;
    for (; i + 8 <= text.length; i += 8) {
        memcpy(&word, text.at + i, 8);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    word = 0;
    if (i < text.length)
        memcpy(&word, text.at + i, text.length - i);
    h = (h ^ word) * 0xff51afd7ed558ccdu;
    return h ^ h >> 29;
}

/* Where the string's number is, or would be. */
static uint32_t *slot_of(const table *t, qn_text text, uint64_t hash)
{
    size_t at = (size_t)hash & (t->n_slots - 1);
    while (t->slots[at]) {
        const entry *e = &t->entries[t->slots[at] - 1];
        if (e->hash == hash && e->text.length == text.length &&
            (!text.length || !memcmp(e->text.at, text.at, text.length)))
            break;
        at = (at + 1) & (t->n_slots - 1);
    }
    return &t->slots[at];
}

static bool grow(table *t)
{
    if (t->n == t->capacity) {
        const size_t capacity = t->capacity ? 2 * t->capacity : FIRST_SLOTS / 2;
        entry *entries = capacity < UINT32_MAX ? realloc(t->entries, capacity * sizeof *entries) : NULL;
        if (!entries)
            return false;
        t->entries = entries;
        t->capacity = capacity;
    }
    if (2 * (t->n + 1) <= t->n_slots)
        return true;
    const size_t n = t->n_slots ? 2 * t->n_slots : FIRST_SLOTS;
    uint32_t *slots = calloc(n, sizeof *slots);
    if (!slots)
        return false;
    free(t->slots);
    t->slots = slots;
    t->n_slots = n;
    for (size_t i = 0; i < t->n; i++) {
        uint32_t *slot = slot_of(t, t->entries[i].text, t->entries[i].hash);
        if (!*slot) /* of equal ones the first */
            *slot = (uint32_t)i + 1;
    }
    return true;
}

/* ---- what is in it ---- */

int qn_strings_get(quern_strings *strings, int64_t number, qn_text *out)
{
    table *t = of(strings);
    if (number < 0 || (uint64_t)number >= t->n)
        return qn_strings_fail(strings, QUERN_ERROR_INDEX, "no string has the number %lld: there are %zu",
                               (long long)number, t->n);
    *out = t->entries[number].text;
    return QUERN_OK;
}

/* A copy that ends with a byte of zero; NULL: there is no memory. */
static const char *keep(table *t, qn_text text)
{
    if (!t->chunks || t->chunks->capacity - t->chunks->used <= text.length) {
        const size_t capacity = text.length < CHUNK ? CHUNK : text.length + 1;
        chunk *c = malloc(sizeof *c + capacity);
        if (!c)
            return NULL;
        *c = (chunk){ .next = t->chunks, .capacity = capacity };
        t->chunks = c;
    }
    char *to = t->chunks->bytes + t->chunks->used;
    if (text.length)
        memcpy(to, text.at, text.length);
    to[text.length] = '\0';
    t->chunks->used += text.length + 1;
    return to;
}

int qn_strings_put(quern_strings *strings, qn_text text, int64_t *out)
{
    table *t = of(strings);
    const uint64_t hash = hash_of(text);
    if (!grow(t))
        return out_of_memory(t);
    uint32_t *slot = slot_of(t, text, hash);
    if (!*slot) {
        const size_t bytes = text.length + 1 + sizeof(entry) + 2 * sizeof *slot;
        if (bytes > t->limit - t->bytes)
            return qn_strings_fail(strings, QUERN_ERROR_MEMORY,
                                   "the table of strings is full: %zu of %zu bytes (quern_strings_clear, "
                                   "quern_strings_limit)",
                                   t->bytes, t->limit);
        const char *kept = keep(t, text);
        if (!kept)
            return out_of_memory(t);
        t->bytes += bytes;
        t->entries[t->n++] = (entry){ { kept, text.length }, hash };
        *slot = (uint32_t)t->n;
    }
    *out = *slot - 1;
    return QUERN_OK;
}

int qn_strings_scratch(quern_strings *strings, size_t capacity, qn_text_buffer **out)
{
    table *t = of(strings);
    qn_text_buffer *b = &t->scratch;
    b->length = 0;
    *out = b;
    if (capacity <= b->capacity)
        return QUERN_OK;
    if (capacity > t->limit)
        return qn_strings_fail(strings, QUERN_ERROR_MEMORY,
                               "a string of %zu bytes is more than the table of strings may have (%zu)",
                               capacity, t->limit);
    char *data = realloc(b->data, capacity);
    if (!data)
        return out_of_memory(t);
    b->data = data;
    b->capacity = capacity;
    return QUERN_OK;
}

static int compute(quern_strings *strings, int32_t what, const int64_t *args)
{
    qn_strings_begin(strings);
    return qn_text_compute(strings, what, args);
}

void qn_strings_begin(quern_strings *strings)
{
    if (strings->compute == compute) /* else the host brings functions of its own */
        of(strings)->error[0] = '\0';
}

/* ---- for hosts ---- */

static bool put_own(table *t, const char *text)
{
    const qn_text own = { text, strlen(text) };
    const uint64_t hash = hash_of(own);
    if (!grow(t))
        return false;
    uint32_t *slot = slot_of(t, own, hash);
    t->entries[t->n++] = (entry){ own, hash };
    if (!*slot)
        *slot = (uint32_t)t->n;
    return true;
}

int quern_strings_new(const char *const *texts, int n, quern_strings **out)
{
    *out = NULL;
    if (n < 0 || (n > 0 && !texts))
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_strings_new: texts is NULL, or their number is negative");
    table *t = calloc(1, sizeof *t);
    bool made = t && grow(t);
    for (int i = 0; i < n && made; i++)
        made = put_own(t, texts[i]);
    if (!made) {
        quern_strings_free(t ? &t->shown : NULL);
        return qn_fail(QUERN_ERROR_MEMORY, "no memory for the table of strings");
    }
    t->shown = (quern_strings){ sizeof t->shown, compute, error_of };
    t->own = t->n;
    t->limit = default_limit;
    *out = &t->shown;
    return QUERN_OK;
}

static void free_chunks(table *t, const chunk *but)
{
    while (t->chunks && t->chunks != but) {
        chunk *next = t->chunks->next;
        free(t->chunks);
        t->chunks = next;
    }
}

void quern_strings_free(quern_strings *strings)
{
    if (!strings)
        return;
    table *t = of(strings);
    free_chunks(t, NULL);
    free(t->entries);
    free(t->slots);
    free(t->scratch.data);
    free(t);
}

int quern_strings_number(quern_strings *strings, const char *text, size_t length, int64_t *out)
{
    if (!strings || (!text && length))
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_strings_number: strings or text is NULL");
    const int status = qn_strings_put(strings, (qn_text){ text, length }, out);
    return status ? qn_fail_text(status, of(strings)->error) : QUERN_OK;
}

const char *quern_strings_text(const quern_strings *strings, int64_t number, size_t *out_length)
{
    const table *t = strings ? of(strings) : NULL;
    const bool there = t && number >= 0 && (uint64_t)number < t->n;
    if (out_length)
        *out_length = there ? t->entries[number].text.length : 0;
    return there ? t->entries[number].text.at : NULL;
}

void quern_strings_clear(quern_strings *strings)
{
    if (!strings)
        return;
    table *t = of(strings);
    while (t->n > t->own) {
        const entry *last = &t->entries[t->n - 1];
        *slot_of(t, last->text, last->hash) = 0;
        t->n--;
    }
    chunk *first = t->chunks; /* the oldest one stays, for the next run */
    while (first && first->next)
        first = first->next;
    free_chunks(t, first);
    if (first)
        first->used = 0;
    t->bytes = 0;
}

void quern_strings_limit(quern_strings *strings, size_t bytes)
{
    if (strings)
        of(strings)->limit = bytes > of(strings)->bytes ? bytes : of(strings)->bytes;
}
