/* Bump allocator: everything one compilation makes, freed at once. Not thread-safe: one arena, one thread at a time. */
#ifndef QN_IR_ARENA_H
#define QN_IR_ARENA_H

#include <stdarg.h>
#include <stddef.h>

typedef struct qn_arena qn_arena;

qn_arena *qn_arena_new(void);
void qn_arena_free(qn_arena *arena);

/* Zeroed memory aligned to 16 bytes. Never NULL: a compilation that runs out of memory ends the process with a
 * message; so does a size above QN_ARENA_LIMIT: check sizes that come from input first. `qn_arena_alloc(a, 0)` is valid. */
#define QN_ARENA_LIMIT ((size_t)1 << 46)
void *qn_arena_alloc(qn_arena *arena, size_t bytes);
void *qn_arena_calloc(qn_arena *arena, size_t count, size_t size); /* overflow-checked */
void *qn_arena_copy(qn_arena *arena, const void *from, size_t bytes);
char *qn_arena_strdup(qn_arena *arena, const char *s);
char *qn_arena_printf(qn_arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *qn_arena_vprintf(qn_arena *arena, const char *format, va_list args);

/* Runs `free_fn(object)` when the arena is freed, newest first: for what an arena object owns outside the arena. */
void qn_arena_defer(qn_arena *arena, void (*free_fn)(void *object), void *object);

/* Gives the pages of one allocation back to the system before the arena is freed; does nothing for memory that is not the
 * arena's. Nobody may read it any more. */
void qn_arena_release(qn_arena *arena, const void *memory, size_t bytes);

size_t qn_arena_bytes(const qn_arena *arena); /* handed out so far */

#define QN_NEW(arena, type) ((type *)qn_arena_alloc((arena), sizeof(type)))
#define QN_NEW_ARRAY(arena, type, count) ((type *)qn_arena_calloc((arena), (size_t)(count), sizeof(type)))

/* A growing array in an arena: `T *items; size_t n, capacity;` as `qn_vec(T)`. Old storage is left to the arena. */
#define qn_vec(type)        \
    struct {                \
        type *items;        \
        size_t n, capacity; \
    }
void *qn_vec_grow(qn_arena *arena, void *items, size_t n, size_t *capacity, size_t item_size);
#define qn_vec_push(arena, vec, item)                                                                       \
    ((vec)->n == (vec)->capacity                                                                            \
         ? (void)((vec)->items =                                                                            \
                      qn_vec_grow((arena), (vec)->items, (vec)->n, &(vec)->capacity, sizeof *(vec)->items)) \
         : (void)0,                                                                                         \
     (void)((vec)->items[(vec)->n++] = (item)))

#endif
