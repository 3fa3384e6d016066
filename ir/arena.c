/* The bump allocator: a list of zeroed chunks, handed out front to back, freed together. */
#include "ir/arena.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 16, FIRST_CHUNK = 64 * 1024, LARGEST_CHUNK = 4 * 1024 * 1024 };

/* Memory of a chunk follows its header. */
typedef struct chunk {
    struct chunk *next;
    size_t size, used;
} chunk;

typedef struct deferred {
    void (*free_fn)(void *object);
    void *object;
    struct deferred *next; /* older */
} deferred;

struct qn_arena {
    chunk *chunks; /* the first one is being filled */
    size_t next_size, bytes;
    deferred *deferred; /* newest first */
};

_Static_assert(sizeof(chunk) <= 2 * ALIGN, "chunk headers are padded to two units");
static unsigned char *chunk_memory(chunk *c)
{
    return (unsigned char *)c + 2 * (size_t)ALIGN;
}

static _Noreturn void out_of_memory(size_t bytes)
{
    fprintf(stderr, "quern: out of memory (%zu bytes)\n", bytes);
    exit(EXIT_FAILURE);
}

/* calloc: fresh pages are zero already, and each byte is handed out once. */
static chunk *chunk_new(size_t size)
{
    chunk *c = calloc(1, size + 2 * (size_t)ALIGN);
    if (!c)
        out_of_memory(size);
    c->size = size;
    return c;
}

qn_arena *qn_arena_new(void)
{
    qn_arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        out_of_memory(sizeof *arena);
    arena->next_size = FIRST_CHUNK;
    return arena;
}

void qn_arena_free(qn_arena *arena)
{
    if (!arena)
        return;
    for (deferred *d = arena->deferred; d; d = d->next)
        d->free_fn(d->object);
    for (chunk *c = arena->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(arena);
}

void *qn_arena_alloc(qn_arena *arena, size_t bytes)
{
    if (bytes > QN_ARENA_LIMIT)
        out_of_memory(bytes);
    const size_t size = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    chunk *c = arena->chunks;
    arena->bytes += bytes;
    if (c && size <= c->size - c->used) {
        void *at = chunk_memory(c) + c->used;
        c->used += size;
        return at;
    }
    if (size > arena->next_size / 4) { /* a chunk of its own, behind the one being filled */
        chunk *large = chunk_new(size);
        large->used = size;
        if (c) {
            large->next = c->next;
            c->next = large;
        } else {
            arena->chunks = large;
        }
        return chunk_memory(large);
    }
    chunk *fresh = chunk_new(arena->next_size);
    if (arena->next_size < LARGEST_CHUNK)
        arena->next_size *= 2;
    fresh->next = c;
    fresh->used = size;
    arena->chunks = fresh;
    return chunk_memory(fresh);
}

void qn_arena_release(qn_arena *arena, const void *memory, size_t bytes)
{
    enum { PAGE = 64 * 1024 }; /* the largest that is in use */
    const uintptr_t at = (uintptr_t)memory, end = (at + bytes) / PAGE * PAGE,
                    begin = (at + PAGE - 1) / PAGE * PAGE;
    if (begin >= end)
        return;
    for (chunk *c = arena->chunks; c; c = c->next) {
        const uintptr_t low = (uintptr_t)chunk_memory(c);
        if (at < low || at + bytes > low + c->used)
            continue;
        madvise((void *)begin, end - begin, MADV_DONTNEED);
        return;
    }
}

void *qn_arena_calloc(qn_arena *arena, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        out_of_memory(SIZE_MAX);
    return qn_arena_alloc(arena, bytes);
}

void *qn_arena_copy(qn_arena *arena, const void *from, size_t bytes)
{
    void *to = qn_arena_alloc(arena, bytes);
    if (bytes > 0)
        memcpy(to, from, bytes);
    return to;
}

char *qn_arena_strdup(qn_arena *arena, const char *s)
{
    return qn_arena_copy(arena, s, strlen(s) + 1);
}

char *qn_arena_vprintf(qn_arena *arena, const char *format, va_list args)
{
    char small[256];
    va_list again;
    va_copy(again, args);
    const int length = vsnprintf(small, sizeof small, format, args);
    if (length < 0) { /* an encoding error: only %ls can cause it, and we do not use it */
        va_end(again);
        return qn_arena_strdup(arena, "");
    }
    char *text = qn_arena_alloc(arena, (size_t)length + 1);
    if ((size_t)length < sizeof small)
        memcpy(text, small, (size_t)length + 1);
    else
        vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

char *qn_arena_printf(qn_arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = qn_arena_vprintf(arena, format, args);
    va_end(args);
    return text;
}

void qn_arena_defer(qn_arena *arena, void (*free_fn)(void *object), void *object)
{
    deferred *d = QN_NEW(arena, deferred);
    *d = (deferred){ free_fn, object, arena->deferred };
    arena->deferred = d;
}

size_t qn_arena_bytes(const qn_arena *arena)
{
    return arena->bytes;
}

void *qn_vec_grow(qn_arena *arena, void *items, size_t n, size_t *capacity, size_t item_size)
{
    const size_t grown = *capacity ? *capacity * 2 : 8;
    void *to = qn_arena_calloc(arena, grown, item_size);
    if (n > 0)
        memcpy(to, items, n * item_size);
    *capacity = grown;
    return to;
}
