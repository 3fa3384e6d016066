/* Panels of 28 bits a number: see condensed.h. */
#include "ir/condensed.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    LEAST_ROOM = 4,
    SHARE = 512, /* one of so many may have another top byte: of normal distributions some in 10000 have */
    LINE = 64    /* bytes */
};

static int64_t ceil_of(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

bool qn_condensed_has(int64_t k, int64_t width)
{
    return (width == 4 || width == 8 || width == 16 || width == 32) && k > 0 && k <= UINT32_MAX / width;
}

int64_t qn_condensed_room(int64_t k, int64_t width)
{
    const int64_t entries = LEAST_ROOM + k * width / SHARE;
    const int64_t bytes = QN_CONDENSED_LIST + entries * QN_CONDENSED_ENTRY;
    return (ceil_of(bytes, LINE) * LINE - QN_CONDENSED_LIST) / QN_CONDENSED_ENTRY;
}

int64_t qn_condensed_head(int64_t k, int64_t width)
{
    return QN_CONDENSED_LIST + qn_condensed_room(k, width) * QN_CONDENSED_ENTRY;
}

static int64_t columns_of(int64_t width)
{
    return width < QN_CONDENSED_COLUMNS ? width : QN_CONDENSED_COLUMNS;
}

/* Of the blocks of eight rows. */
static int64_t rows_bytes(int64_t width)
{
    return 4 * QN_CONDENSED_PLANES * width;
}

int64_t qn_condensed_bytes(int64_t k, int64_t width)
{
    return qn_condensed_head(k, width) + ceil_of(k, QN_CONDENSED_ROWS) * rows_bytes(width);
}

/* ---- writing ---- */

/* The kinds of top bytes in a table: 0, and KINDS exponents that follow one another, each with both signs. */
enum { KINDS = 7, EXPONENTS = 128, OTHER = 0x80 };

static uint32_t exponent_of(uint32_t bits)
{
    return bits >> 24 & (EXPONENTS - 1);
}

/* Does a table that begins with exponent `first` lack that one? */
static bool lacks(uint32_t first, uint32_t exponent)
{
    return exponent != 0 && exponent - first >= KINDS;
}

static void put(uint8_t *to, uint32_t word)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(word >> 8 * i);
}

/* Where runs are short, and far apart: no core follows them. */
static void fetch(const uint8_t *run, int64_t length)
{
    for (int64_t line = 0; line < 4 * length; line += LINE)
        __builtin_prefetch(run + line);
}

/* Counts the numbers of one of `run_step` runs, of these one of `step`, by exponent. */
static void count(const qn_runs *panel, int64_t run_step, int64_t step, uint32_t counts[EXPONENTS])
{
    enum { AHEAD = 4 };
    memset(counts, 0, EXPONENTS * sizeof *counts);
    for (int64_t r = 0; r < panel->n; r += run_step) {
        const uint8_t *run = panel->from + 4 * r * panel->stride;
        fetch(run + 4 * AHEAD * run_step * panel->stride, panel->length);
        for (int64_t i = 0; i < panel->length; i += step) {
            uint32_t bits;
            memcpy(&bits, run + 4 * i, sizeof bits);
            counts[exponent_of(bits)]++;
        }
    }
}

/* The first exponent of the table that fits best. */
static uint32_t first_of(const uint32_t counts[EXPONENTS])
{
    uint32_t inside = 0, most = 0, first = 1;
    for (uint32_t i = 1; i < EXPONENTS; i++) {
        inside += counts[i] - (i > KINDS ? counts[i - KINDS] : 0);
        if (inside > most) {
            most = inside;
            first = i >= KINDS ? i - KINDS + 1 : 1;
        }
    }
    return first;
}

/* How many of them does a table lack that begins with that one? */
static int64_t others_of(const uint32_t counts[EXPONENTS], uint32_t first)
{
    int64_t others = 0;
    for (uint32_t i = 0; i < EXPONENTS; i++)
        others += lacks(first, i) ? counts[i] : 0;
    return others;
}

/* A panel's table is chosen by its rows 0, row_step, …: so it is the same one however its numbers lie. */
static int64_t row_step(int64_t k, int64_t width)
{
    enum { EACH = 16, LARGE = 8192 };
    return k * width < LARGE ? 1 : EACH;
}

bool qn_condensed_takes(const qn_runs *panel, int64_t k, int64_t width)
{
    const bool by_rows = panel->n == k;
    const int64_t step = row_step(k, width);
    uint32_t some[EXPONENTS], all[EXPONENTS];
    count(panel, by_rows ? step : 1, by_rows ? 1 : step, some);
    count(panel, 1, 1, all);
    return others_of(all, first_of(some)) <= qn_condensed_room(k, width);
}

int64_t qn_condensed_sample(const qn_runs *panel, int64_t *out_others)
{
    enum { EACH = 8 };
    uint32_t counts[EXPONENTS];
    count(panel, EACH, 1, counts);
    *out_others = others_of(counts, first_of(counts));
    return ceil_of(panel->n, EACH) * panel->length;
}

/* ---- tiles: four columns of the eight rows of a block, in vectors of 16 bytes ---- */

typedef uint32_t words __attribute__((vector_size(16)));
typedef uint16_t pairs __attribute__((vector_size(16)));
typedef uint8_t bytes __attribute__((vector_size(16)));
enum { TILE = 4 };

typedef struct writer {
    uint8_t *to;
    int64_t width;
    int64_t room, n; /* entries of the list */
    uint32_t first;
    int plane; /* bytes */
} writer;

/* Number 2 i, or 2 i + 1, of x and y, one behind the other. */
static inline pairs lower_pairs(words x, words y)
{
    return __builtin_shufflevector((pairs)x, (pairs)y, 0, 2, 4, 6, 8, 10, 12, 14);
}

static inline pairs upper_pairs(words x, words y)
{
    return __builtin_shufflevector((pairs)x, (pairs)y, 1, 3, 5, 7, 9, 11, 13, 15);
}

static inline bytes lower_bytes(pairs x, pairs y)
{
    return __builtin_shufflevector((bytes)x, (bytes)y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                   30);
}

static inline bytes upper_bytes(pairs x, pairs y)
{
    return __builtin_shufflevector((bytes)x, (bytes)y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29,
                                   31);
}

/* Places of top bytes; bytes of *others are not 0 where the table lacks one. */
static inline bytes places_of(bytes top, bytes first, bytes *others)
{
    const bytes exponent = top & (EXPONENTS - 1), after = exponent - first;
    const bytes inside = (bytes)(after < KINDS);
    *others |= (bytes)(exponent != 0) & ~inside;
    return ((after + 1) & inside) | (top >> 4 & 8);
}

static inline void store(uint8_t *to, bytes x)
{
    memcpy(to, &x, sizeof x);
}

/* False: the table lacks some of the numbers. */
static inline bool write_tile(const writer *w, const words rows[QN_CONDENSED_ROWS], uint8_t *tile)
{
    bytes place[2], first = (bytes){ 0 } + (uint8_t)w->first, others = { 0 };
    for (int half = 0; half < 2; half++) {
        const words *r = rows + TILE * half;
        const pairs high[2] = { upper_pairs(r[0], r[1]), upper_pairs(r[2], r[3]) };
        uint8_t *to = tile + (1 + 3 * half) * w->plane;
        store(to, lower_bytes(high[0], high[1]));
        store(to + w->plane, (bytes)lower_pairs(r[0], r[1]));
        store(to + 2 * w->plane, (bytes)lower_pairs(r[2], r[3]));
        place[half] = places_of(upper_bytes(high[0], high[1]), first, &others);
    }
    store(tile, place[0] | place[1] << 4);
    uint64_t any[2];
    memcpy(any, &others, sizeof any);
    return (any[0] | any[1]) == 0;
}

/* Those that the table lacks go to the list and are 0 here; the first number is `at` of the panel. */
static void list_others(writer *w, words rows[QN_CONDENSED_ROWS], int64_t at)
{
    for (int r = 0; r < QN_CONDENSED_ROWS; r++)
        for (int c = 0; c < TILE; c++) {
            if (!lacks(w->first, exponent_of(rows[r][c])))
                continue;
            if (w->n < w->room) {
                uint8_t *entry = w->to + QN_CONDENSED_LIST + w->n * QN_CONDENSED_ENTRY;
                put(entry, (uint32_t)(at + r * w->width + c));
                put(entry + 4, rows[r][c]);
            }
            w->n++;
            rows[r][c] = 0;
        }
}

/* The tile whose first number lies there, and is number `at` of the panel: n rows of it. */
static inline void make_tile(writer *w, const uint8_t *from, int64_t stride, int64_t n, int64_t at,
                             uint8_t *tile)
{
    words rows[QN_CONDENSED_ROWS] = { 0 };
    for (int r = 0; r < n; r++)
        memcpy(&rows[r], from + 4 * r * stride, sizeof *rows);
    if (write_tile(w, rows, tile))
        return;
    list_others(w, rows, at);
    write_tile(w, rows, tile);
}

static void write_table(uint8_t *to, uint32_t first)
{
    for (uint32_t i = 0; i < QN_CONDENSED_TABLE; i++)
        to[i] = (uint8_t)((i % 8 ? first + i % 8 - 1 : 0) + i / 8 * 128);
}

bool qn_condense(const qn_runs *panel, int64_t k, int64_t width, void *to)
{
    const int64_t head = qn_condensed_head(k, width), rows = QN_CONDENSED_ROWS, columns = columns_of(width);
    uint32_t counts[EXPONENTS];
    count(panel, row_step(k, width), 1, counts);
    writer w = { .to = to,
                 .width = width,
                 .room = qn_condensed_room(k, width),
                 .first = first_of(counts),
                 .plane = (int)(4 * columns) };
    uint8_t *block = w.to + head;
    memset(to, 0, (size_t)head);
    write_table(to, w.first);
    for (int64_t row = 0; row < k; row += rows) {
        const uint8_t *from = panel->from + 4 * row * panel->stride;
        for (int64_t r = 0; r < rows; r++)
            fetch(from + 4 * (rows + r) * panel->stride, width);
        for (int64_t first = 0; first < width; first += columns, block += QN_CONDENSED_PLANES * 4 * columns)
            for (int64_t c = 0; c < columns; c += TILE) {
                const int64_t at = row * width + first + c;
                if (row + rows <= k)
                    make_tile(&w, from + 4 * (first + c), panel->stride, rows, at, block + 4 * c);
                else
                    make_tile(&w, from + 4 * (first + c), panel->stride, k - row, at, block + 4 * c);
            }
    }
    put(w.to + QN_CONDENSED_COUNT, (uint32_t)(w.n < w.room ? w.n : w.room));
    return w.n <= w.room;
}

/* ---- reading ---- */

static uint32_t get(const uint8_t *from, int bytes)
{
    uint32_t word = 0;
    for (int i = bytes - 1; i >= 0; i--)
        word = word << 8 | from[i];
    return word;
}

/* Bits of a number of a block. */
static uint32_t read_one(const uint8_t *table, const uint8_t *block, int64_t columns, int64_t row,
                         int64_t column)
{
    const int64_t plane = 4 * columns, half = row / 4, r = row % 4, by_four = column / 4 * 16 + column % 4;
    const int place = block[by_four + r * 4] >> 4 * half & 15;
    const uint8_t *third = block + (1 + 3 * half) * plane, *low = third + (1 + r / 2) * plane;
    return get(low + column / 4 * 16 + r % 2 * 8 + column % 4 * 2, 2) |
           (uint32_t)third[by_four + r * 4] << 16 | (uint32_t)table[place] << 24;
}

void qn_condensed_read(const void *from, int64_t k, int64_t width, float *to)
{
    const int64_t columns = columns_of(width), rows = QN_CONDENSED_ROWS;
    const uint8_t *panel = from, *blocks = panel + qn_condensed_head(k, width);
    for (int64_t row = 0; row < k; row++)
        for (int64_t column = 0; column < width; column++) {
            const uint8_t *block = blocks + row / rows * rows_bytes(width) +
                                   column / columns * QN_CONDENSED_PLANES * 4 * columns;
            const uint32_t bits = read_one(panel, block, columns, row % rows, column % columns);
            memcpy(&to[row * width + column], &bits, sizeof bits);
        }
    const int64_t room = qn_condensed_room(k, width), count = get(panel + QN_CONDENSED_COUNT, 4);
    for (int64_t i = 0; i < count && i < room; i++) {
        const uint8_t *entry = panel + QN_CONDENSED_LIST + i * QN_CONDENSED_ENTRY;
        const int64_t place = get(entry, 4), row = place / width < k ? place / width : k - 1;
        const uint32_t bits = get(entry + 4, 4);
        memcpy(&to[row * width + place % width], &bits, sizeof bits);
    }
}

/* ---- tensors ---- */

typedef struct condensed_source {
    qn_tensor_source source;
    bool sampled;        /* that its numbers are alike enough is a guess, */
    atomic_bool is_lost; /* which was wrong */
} condensed_source;

qn_runs qn_tensor_panel(const qn_tensor *panels, int64_t panel, bool by_rows, float *scratch)
{
    const qn_type *type = &panels->type;
    const int rank = type->rank;
    const int64_t k = type->dims[rank - 2]->value, width = type->dims[rank - 1]->value;
    int64_t low[QN_MAX_RANK] = { 0 }, extent[QN_MAX_RANK], strides[QN_MAX_RANK];
    const void *at;
    if (panels->data)
        return (qn_runs){ (const uint8_t *)panels->data + 4 * panel * k * width, k, width, width };
    for (int i = 0; i < rank; i++)
        extent[i] = i < rank - 2 ? 1 : type->dims[i]->value;
    for (int i = rank - 3; i >= 0; i--) {
        low[i] = panel % type->dims[i]->value;
        panel /= type->dims[i]->value;
    }
    if (panels->source->view && panels->source->view(panels, low, extent, &at, strides)) {
        if (strides[rank - 1] == 1)
            return (qn_runs){ at, k, width, strides[rank - 2] };
        if (strides[rank - 2] == 1 && !by_rows)
            return (qn_runs){ at, width, k, strides[rank - 1] };
    }
    panels->source->read(panels, low, extent, scratch);
    return (qn_runs){ (const uint8_t *)scratch, k, width, width };
}

/* Whole panels are made; of one that is larger than a piece what is inside the box is kept. */
static void read_condensed(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to)
{
    const qn_tensor *panels = tensor->source->operands[0];
    const qn_type *type = &tensor->type;
    const int rank = type->rank;
    const int64_t k = panels->type.dims[rank - 2]->value, width = panels->type.dims[rank - 1]->value,
                  bytes = qn_condensed_bytes(k, width);
    const bool whole = extent[rank - 2] * extent[rank - 1] == bytes;
    float *scratch = malloc((size_t)(k * width) * sizeof *scratch);
    uint8_t *made = whole ? NULL : malloc((size_t)bytes), *at = to;
    int64_t n = 1;
    QN_ASSERT(scratch && (whole || made), "out of memory");
    for (int i = 0; i < rank - 2; i++)
        n *= extent[i];
    for (int64_t i = 0; i < n; i++) {
        int64_t panel = 0, rest = i, step = 1;
        for (int d = rank - 3; d >= 0; d--) {
            panel += (low[d] + rest % extent[d]) * step;
            rest /= extent[d];
            step *= type->dims[d]->value;
        }
        const qn_runs rows = qn_tensor_panel(panels, panel, true, scratch);
        const bool fits = qn_condense(&rows, k, width, whole ? at : made);
        condensed_source *source = (condensed_source *)(uintptr_t)tensor->source;
        QN_ASSERT(fits || source->sampled, "panel %lld has no room for its numbers", (long long)panel);
        if (!fits)
            source->is_lost = true;
        for (int64_t row = 0; row < extent[rank - 2] && !whole; row++)
            memcpy(at + row * extent[rank - 1], made + (low[rank - 2] + row) * width + low[rank - 1],
                   (size_t)extent[rank - 1]);
        at += extent[rank - 2] * extent[rank - 1];
    }
    free(made);
    free(scratch);
}

const qn_tensor *qn_tensor_condensed(qn_module *module, const qn_tensor *panels, bool sampled)
{
    qn_arena *arena = module->arena;
    const qn_type *from = &panels->type;
    const int rank = from->rank;
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < rank; i++)
        dims[i] = from->dims[i]->value;
    dims[rank - 2] = qn_condensed_bytes(dims[rank - 2], dims[rank - 1]) / dims[rank - 1];
    qn_tensor *t = QN_NEW(arena, qn_tensor);
    *t = (qn_tensor){ .type = qn_type_static(module, QUERN_U8, rank, dims), .name = panels->name };
    t->bytes = (size_t)qn_type_elements(&t->type);
    condensed_source *source = QN_NEW(arena, condensed_source);
    source->sampled = sampled;
    source->source =
        (qn_tensor_source){ .operands = qn_arena_copy(arena, &panels, sizeof(panels)),
                            .cost = 1 + (panels->source && !panels->data ? panels->source->cost : 0),
                            .arena = arena,
                            .read = read_condensed };
    t->source = &source->source;
    return t;
}

const qn_tensor *qn_tensor_sampled(const qn_tensor *tensor)
{
    if (!tensor->source || tensor->source->read != read_condensed)
        return NULL;
    return ((const condensed_source *)tensor->source)->sampled ? tensor->source->operands[0] : NULL;
}

bool qn_tensor_is_lost(const qn_tensor *tensor)
{
    return qn_tensor_sampled(tensor) && ((const condensed_source *)tensor->source)->is_lost;
}
