/* Moving elements: index arithmetic, strided copies, fills. Every movement op is one or two of these calls. */
#include "backends/interp/interp.h"

#include <stdlib.h>
#include <string.h>

int64_t qn_product(const int64_t *dims, int from, int to)
{
    int64_t n =
        1; /* bounded: the elements of an array fit, and so does any part, unless the array is empty */
    for (int i = from; i < to; i++)
        if (__builtin_mul_overflow(n, dims[i], &n))
            return 0;
    return n;
}

void qn_strides(const qn_array *a, int64_t *out)
{
    for (int i = 0; i < a->rank; i++)
        out[i] = qn_product(a->dims, i + 1, a->rank);
}

bool qn_next_index(int rank, const int64_t *dims, int64_t *index)
{
    for (int i = rank - 1; i >= 0; i--) {
        if (++index[i] < dims[i])
            return true;
        index[i] = 0;
    }
    return false;
}

#define FILL(type)                           \
    do {                                     \
        type *p = to;                        \
        const type v = *(const type *)value; \
        for (int64_t i = 0; i < n; i++)      \
            p[i] = v;                        \
    } while (0)

void qn_fill(size_t size, void *to, int64_t n, const void *value)
{
    switch (size) {
    case 1:
        if (n > 0)
            memset(to, *(const uint8_t *)value, (size_t)n);
        return;
    case 2: FILL(qn_word2); return;
    case 4: FILL(qn_word4); return;
    default: FILL(qn_word8); return;
    }
}

typedef struct axis {
    int64_t n, to, from; /* extent; strides in elements */
} axis;

#define COPY_LINE(type)                   \
    do {                                  \
        type *t = to;                     \
        const type *f = from;             \
        for (int64_t i = 0; i < a.n; i++) \
            t[i * a.to] = f[i * a.from];  \
    } while (0)

/* A transposition in tiles, so that each cache line is fetched once whichever way it runs. */
enum { TILE = 32 };
#define COPY_PLANE(type)                                                     \
    do {                                                                     \
        type *t = to;                                                        \
        const type *f = from;                                                \
        for (int64_t i0 = 0; i0 < b.n; i0 += TILE)                           \
            for (int64_t j0 = 0; j0 < a.n; j0 += TILE)                       \
                for (int64_t i = i0; i < i0 + TILE && i < b.n; i++)          \
                    for (int64_t j = j0; j < j0 + TILE && j < a.n; j++)      \
                        t[i * b.to + j * a.to] = f[i * b.from + j * a.from]; \
    } while (0)

static void copy_line(size_t size, axis a, void *to, const void *from)
{
    if (a.to == 1 && a.from == 1) {
        memcpy(to, from, (size_t)a.n * size);
        return;
    }
    if (a.to == 1 && a.from == 0) {
        qn_fill(size, to, a.n, from);
        return;
    }
    switch (size) {
    case 1: COPY_LINE(qn_word1); return;
    case 2: COPY_LINE(qn_word2); return;
    case 4: COPY_LINE(qn_word4); return;
    default: COPY_LINE(qn_word8); return;
    }
}

/* Four words side by side, anywhere. */
typedef uint32_t words __attribute__((vector_size(16), aligned(1), may_alias));
enum { WORDS = 4 };

/* Four lines of four words, turned: what was below is beside. */
static void turn_words(qn_word4 *to, int64_t to_line, const qn_word4 *from, int64_t from_line)
{
#define LINE(p, i, stride) (*(const words *)((p) + (i) * (stride)))
    const words a = LINE(from, 0, from_line), b = LINE(from, 1, from_line), c = LINE(from, 2, from_line),
                d = LINE(from, 3, from_line);
    const words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
                cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
#undef LINE
#define LINE(i) (*(words *)(to + (i) * to_line))
    LINE(0) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    LINE(1) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    LINE(2) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    LINE(3) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
#undef LINE
}

/* A transposition of words: what is read lies side by side along `b`, what is written along `a`. */
static void turn_plane(axis b, axis a, qn_word4 *to, const qn_word4 *from)
{
    const int64_t rows = b.n / WORDS * WORDS, columns = a.n / WORDS * WORDS;
    for (int64_t i0 = 0; i0 < rows; i0 += TILE)
        for (int64_t j = 0; j < columns; j += WORDS) {
            for (int r = 0; r < WORDS;
                 r++) { /* what the next tile reads, of lines that are too many to be followed */
                __builtin_prefetch(from + i0 + TILE + (j + r) * a.from);
                __builtin_prefetch(from + i0 + TILE + TILE / 2 + (j + r) * a.from);
            }
            for (int64_t i = i0; i < i0 + TILE && i < rows; i += WORDS)
                turn_words(to + i * b.to + j, b.to, from + i + j * a.from, a.from);
        }
    for (int64_t i = 0; i < b.n; i++)
        for (int64_t j = i < rows ? columns : 0; j < a.n; j++)
            to[i * b.to + j] = from[i + j * a.from];
}

static void copy_plane(size_t size, axis b, axis a, void *to, const void *from)
{
    if (size == 4 && b.from == 1 && a.to == 1) {
        turn_plane(b, a, to, from);
        return;
    }
    switch (size) {
    case 1: COPY_PLANE(qn_word1); return;
    case 2: COPY_PLANE(qn_word2); return;
    case 4: COPY_PLANE(qn_word4); return;
    default: COPY_PLANE(qn_word8); return;
    }
}

/* Axes of extent 1 go; neighbours that are one run in both memories become one axis. False when nothing is to copy. */
static bool simplify(int rank, const int64_t *dims, const int64_t *to_strides, const int64_t *from_strides,
                     axis *axes, int *out_n)
{
    int n = 0;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0)
            return false;
        if (dims[i] == 1)
            continue;
        const axis a = { dims[i], to_strides[i], from_strides[i] };
        axis *last = n > 0 ? &axes[n - 1] : NULL;
        if (last && last->to == a.n * a.to && last->from == a.n * a.from)
            *last = (axis){ last->n * a.n, a.to, a.from };
        else
            axes[n++] = a;
    }
    *out_n = n;
    return true;
}

void qn_copy_strided(size_t size, int rank, const int64_t *dims, void *to, const int64_t *to_strides,
                     const void *from, const int64_t *from_strides)
{
    axis axes[QN_MAX_RANK];
    int n;
    if (!simplify(rank, dims, to_strides, from_strides, axes, &n))
        return;
    if (n == 0) {
        memcpy(to, from, size);
        return;
    }
    /* The last axis is the inner loop. Where it jumps in `from`, the axis that does not becomes the one around it. */
    const axis inner = axes[n - 1];
    bool plane = false;
    for (int i = 0; i < n - 1 && inner.from != 1 && inner.from != 0 && !plane; i++)
        if (axes[i].from == 1) {
            const axis moved = axes[i];
            memmove(&axes[i], &axes[i + 1], (size_t)(n - 2 - i) * sizeof *axes);
            axes[n - 2] = moved;
            plane = true;
        }
    const int outer = n - (plane ? 2 : 1);
    for (int i = 1; i < outer && !plane; i++) /* lines in the order in which `from` has them */
        for (int j = i; j > 0 && llabs(axes[j - 1].from) < llabs(axes[j].from); j--) {
            const axis larger = axes[j];
            axes[j] = axes[j - 1];
            axes[j - 1] = larger;
        }
    int64_t extents[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < outer; i++)
        extents[i] = axes[i].n;
    do {
        int64_t to_at = 0, from_at = 0;
        for (int i = 0; i < outer; i++) {
            to_at += index[i] * axes[i].to;
            from_at += index[i] * axes[i].from;
        }
        void *t = (char *)to + to_at * (int64_t)size;
        const void *f = (const char *)from + from_at * (int64_t)size;
        if (plane)
            copy_plane(size, axes[n - 2], inner, t, f);
        else
            copy_line(size, inner, t, f);
    } while (qn_next_index(outer, extents, index));
}

qn_lines qn_lines_of(const qn_array *a, int axis)
{
    const int64_t outer = qn_product(a->dims, 0, axis), inner = qn_product(a->dims, axis + 1, a->rank);
    return (qn_lines){ .n = outer * inner, .length = a->dims[axis], .stride = inner };
}
