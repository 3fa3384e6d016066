/* Panels of 28 or 12 bits a number: see condensed.h. */
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

bool qn_condensed_has(qn_condensed c)
{
    return (c.dtype == QUERN_F32 || c.dtype == QUERN_BF16) &&
           (c.width == 4 || c.width == 8 || c.width == 16 || c.width == 32) && c.k > 0 &&
           c.k <= UINT32_MAX / c.width;
}

int64_t qn_condensed_room(qn_condensed c)
{
    const int64_t entries = LEAST_ROOM + c.k * c.width / SHARE;
    const int64_t bytes = QN_CONDENSED_LIST + entries * QN_CONDENSED_ENTRY;
    return (ceil_of(bytes, LINE) * LINE - QN_CONDENSED_LIST) / QN_CONDENSED_ENTRY;
}

int64_t qn_condensed_head(qn_condensed c)
{
    return QN_CONDENSED_LIST + qn_condensed_room(c) * QN_CONDENSED_ENTRY;
}

int qn_condensed_planes(qn_condensed c)
{
    return 2 * (int)qn_dtype_bytes(c.dtype) - 1;
}

int64_t qn_condensed_columns(qn_condensed c)
{
    return c.width < QN_CONDENSED_COLUMNS ? c.width : QN_CONDENSED_COLUMNS;
}

/* Of the blocks of eight rows. */
static int64_t rows_bytes(qn_condensed c)
{
    return 4 * qn_condensed_planes(c) * c.width;
}

int64_t qn_condensed_bytes(qn_condensed c)
{
    return qn_condensed_head(c) + ceil_of(c.k, QN_CONDENSED_ROWS) * rows_bytes(c);
}

bool qn_condensed_of(int64_t k, int64_t width, int64_t bytes, qn_condensed *out)
{
    static const qn_dtype dtypes[] = { QUERN_F32, QUERN_BF16 };
    for (int i = 0; i < 2; i++) {
        *out = (qn_condensed){ dtypes[i], k, width };
        if (qn_condensed_has(*out) && qn_condensed_bytes(*out) == bytes)
            return true;
    }
    return false;
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
static void fetch(const uint8_t *run, int64_t bytes)
{
    for (int64_t line = 0; line < bytes; line += LINE)
        __builtin_prefetch(run + line);
}

/* Counts the numbers of one of `run_step` runs, of these one of `step`, by exponent. */
static void count(const qn_runs *panel, qn_dtype dtype, int64_t run_step, int64_t step,
                  uint32_t counts[EXPONENTS])
{
    enum { AHEAD = 4 };
    const int64_t size = (int64_t)qn_dtype_bytes(dtype);
    memset(counts, 0, EXPONENTS * sizeof *counts);
    for (int64_t r = 0; r < panel->n; r += run_step) {
        const uint8_t *run = panel->from + size * r * panel->stride;
        fetch(run + size * AHEAD * run_step * panel->stride, size * panel->length);
        for (int64_t i = 0; i < panel->length; i += step)
            counts[run[size * i + size - 1] & (EXPONENTS - 1)]++;
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
static int64_t row_step(qn_condensed c)
{
    enum { EACH = 16, LARGE = 8192 };
    return c.k * c.width < LARGE ? 1 : EACH;
}

bool qn_condensed_takes(qn_condensed c, const qn_runs *panel)
{
    const bool by_rows = panel->n == c.k;
    const int64_t step = row_step(c);
    uint32_t some[EXPONENTS], all[EXPONENTS];
    count(panel, c.dtype, by_rows ? step : 1, by_rows ? 1 : step, some);
    count(panel, c.dtype, 1, 1, all);
    return others_of(all, first_of(some)) <= qn_condensed_room(c);
}

int64_t qn_condensed_sample(qn_condensed c, const qn_runs *panel, int64_t *out_others)
{
    enum { EACH = 8 };
    uint32_t counts[EXPONENTS];
    count(panel, c.dtype, EACH, 1, counts);
    *out_others = others_of(counts, first_of(counts));
    return ceil_of(panel->n, EACH) * panel->length;
}

/* ---- tiles: four columns of the eight rows of a block, in vectors of 16 bytes ---- */

typedef uint32_t words __attribute__((vector_size(16)));
typedef uint16_t pairs __attribute__((vector_size(16)));
typedef uint8_t bytes __attribute__((vector_size(16)));
enum { TILE = 4 };

typedef struct writer {
    qn_condensed of;
    uint8_t *to;
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
static inline bool write_tile(const writer *w, bool wide, const words rows[QN_CONDENSED_ROWS], uint8_t *tile)
{
    bytes place[2], first = (bytes){ 0 } + (uint8_t)w->first, others = { 0 };
    for (int half = 0; half < 2; half++) {
        const words *r = rows + TILE * half;
        const pairs high[2] = { upper_pairs(r[0], r[1]), upper_pairs(r[2], r[3]) };
        uint8_t *to = tile + (1 + half * (wide ? 3 : 1)) * w->plane;
        store(to, lower_bytes(high[0], high[1]));
        if (wide) {
            store(to + w->plane, (bytes)lower_pairs(r[0], r[1]));
            store(to + 2 * w->plane, (bytes)lower_pairs(r[2], r[3]));
        }
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
                put(entry, (uint32_t)(at + r * w->of.width + c));
                put(entry + 4, rows[r][c]);
            }
            w->n++;
            rows[r][c] = 0;
        }
}

/* Four numbers as float32. */
static inline words load_four(const uint8_t *from, bool wide)
{
    words four;
    uint16_t upper[TILE];
    if (wide) {
        memcpy(&four, from, sizeof four);
        return four;
    }
    memcpy(upper, from, sizeof upper);
    return (words){ upper[0], upper[1], upper[2], upper[3] } << 16;
}

/* The tile whose first number lies there, and is number `at` of the panel: n rows of it, `stride` bytes apart. */
static inline void make_tile(writer *w, bool wide, const uint8_t *from, int64_t stride, int64_t n, int64_t at,
                             uint8_t *tile)
{
    words rows[QN_CONDENSED_ROWS] = { 0 };
    for (int r = 0; r < n; r++)
        rows[r] = load_four(from + r * stride, wide);
    if (write_tile(w, wide, rows, tile))
        return;
    list_others(w, rows, at);
    write_tile(w, wide, rows, tile);
}

/* Rows `row` to `row` + n of all columns; `from`: the first of them. */
static inline void make_blocks(writer *w, bool wide, const uint8_t *from, int64_t stride, int64_t row,
                               int64_t n, uint8_t *block)
{
    const int64_t columns = qn_condensed_columns(w->of), size = wide ? 4 : 2;
    for (int64_t first = 0; first < w->of.width; first += columns) {
        for (int64_t c = 0; c < columns; c += TILE)
            make_tile(w, wide, from + size * (first + c), stride, n, row * w->of.width + first + c,
                      block + 4 * c);
        block += qn_condensed_planes(w->of) * 4 * columns;
    }
}

static void write_table(uint8_t *to, uint32_t first)
{
    for (uint32_t i = 0; i < QN_CONDENSED_TABLE; i++)
        to[i] = (uint8_t)((i % 8 ? first + i % 8 - 1 : 0) + i / 8 * 128);
}

static writer begin_panel(qn_condensed c, const qn_runs *panel, uint8_t *to)
{
    uint32_t counts[EXPONENTS];
    count(panel, c.dtype, row_step(c), 1, counts);
    const writer w = { .of = c,
                       .to = to,
                       .room = qn_condensed_room(c),
                       .first = first_of(counts),
                       .plane = (int)(4 * qn_condensed_columns(c)) };
    memset(to, 0, (size_t)qn_condensed_head(c));
    write_table(to, w.first);
    return w;
}

/* The eight rows from `row` on, or what is left of them. */
static void write_rows(writer *w, const qn_runs *panel, int64_t row)
{
    enum { ROWS = QN_CONDENSED_ROWS };
    const bool wide = w->of.dtype == QUERN_F32;
    const int64_t size = wide ? 4 : 2, stride = size * panel->stride;
    const uint8_t *from = panel->from + row * stride;
    uint8_t *block = w->to + qn_condensed_head(w->of) + row / ROWS * rows_bytes(w->of);
    for (int64_t r = 0; r < ROWS; r++)
        fetch(from + (ROWS + r) * stride, size * w->of.width);
    if (row + ROWS > w->of.k)
        make_blocks(w, wide, from, stride, row, w->of.k - row, block);
    else if (wide)
        make_blocks(w, true, from, stride, row, ROWS, block);
    else
        make_blocks(w, false, from, stride, row, ROWS, block);
}

static bool end_panel(const writer *w)
{
    put(w->to + QN_CONDENSED_COUNT, (uint32_t)(w->n < w->room ? w->n : w->room));
    return w->n <= w->room;
}

bool qn_condense(qn_condensed c, int n, const qn_runs *panels, void *to)
{
    writer writers[QN_CONDENSED_PANELS];
    const int64_t bytes = qn_condensed_bytes(c);
    bool fit = true;
    for (int p = 0; p < n; p++)
        writers[p] = begin_panel(c, &panels[p], (uint8_t *)to + p * bytes);
    for (int64_t row = 0; row < c.k; row += QN_CONDENSED_ROWS)
        for (int p = 0; p < n; p++)
            write_rows(&writers[p], &panels[p], row);
    for (int p = 0; p < n; p++)
        fit &= end_panel(&writers[p]);
    return fit;
}

/* ---- reading ---- */

static uint32_t get(const uint8_t *from, int bytes)
{
    uint32_t word = 0;
    for (int i = bytes - 1; i >= 0; i--)
        word = word << 8 | from[i];
    return word;
}

/* Bits of a number of a block, as float32. */
static uint32_t read_one(qn_condensed c, const uint8_t *table, const uint8_t *block, int64_t row,
                         int64_t column)
{
    const bool wide = c.dtype == QUERN_F32;
    const int64_t plane = 4 * qn_condensed_columns(c), half = row / 4, r = row % 4,
                  by_four = column / 4 * 16 + column % 4;
    const int place = block[by_four + r * 4] >> 4 * half & 15;
    const uint8_t *third = block + (1 + (wide ? 3 : 1) * half) * plane,
                  *low = third + (1 + r / 2) * plane + column / 4 * 16 + r % 2 * 8 + column % 4 * 2;
    return (wide ? get(low, 2) : 0) | (uint32_t)third[by_four + r * 4] << 16 | (uint32_t)table[place] << 24;
}

void qn_condensed_read(qn_condensed c, const void *from, float *to)
{
    const int64_t columns = qn_condensed_columns(c), rows = QN_CONDENSED_ROWS, width = c.width;
    const uint8_t *panel = from, *blocks = panel + qn_condensed_head(c);
    for (int64_t row = 0; row < c.k; row++)
        for (int64_t column = 0; column < width; column++) {
            const uint8_t *block =
                blocks + row / rows * rows_bytes(c) + column / columns * qn_condensed_planes(c) * 4 * columns;
            const uint32_t bits = read_one(c, panel, block, row % rows, column % columns);
            memcpy(&to[row * width + column], &bits, sizeof bits);
        }
    const int64_t room = qn_condensed_room(c), count = get(panel + QN_CONDENSED_COUNT, 4);
    for (int64_t i = 0; i < count && i < room; i++) {
        const uint8_t *entry = panel + QN_CONDENSED_LIST + i * QN_CONDENSED_ENTRY;
        const int64_t place = get(entry, 4), row = place / width < c.k ? place / width : c.k - 1;
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

qn_condensed qn_condensed_panels(const qn_tensor *panels)
{
    const qn_type *type = &panels->type;
    return (qn_condensed){ type->dtype, type->dims[type->rank - 2]->value,
                           type->dims[type->rank - 1]->value };
}

qn_runs qn_tensor_panel(const qn_tensor *panels, int64_t panel, bool by_rows, void *scratch)
{
    const qn_type *type = &panels->type;
    const int rank = type->rank;
    const int64_t k = type->dims[rank - 2]->value, width = type->dims[rank - 1]->value,
                  size = (int64_t)qn_dtype_bytes(type->dtype);
    int64_t low[QN_MAX_RANK] = { 0 }, extent[QN_MAX_RANK], strides[QN_MAX_RANK];
    const void *at;
    if (panels->data)
        return (qn_runs){ (const uint8_t *)panels->data + size * panel * k * width, k, width, width };
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
    return (qn_runs){ scratch, k, width, width };
}

/* The panel of all batches whose number has these digits: `low`, and the digits of i in a box of that extent. */
static int64_t panel_number(const qn_type *type, const int64_t *low, const int64_t *extent, int64_t i)
{
    int64_t panel = 0, step = 1;
    for (int d = type->rank - 3; d >= 0; d--) {
        panel += (low[d] + i % extent[d]) * step;
        i /= extent[d];
        step *= type->dims[d]->value;
    }
    return panel;
}

/* Whole panels are made, those that lie in memory several at a time; of one that is larger than a piece what is inside the box is
 * kept. */
static void read_condensed(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to)
{
    const qn_tensor *panels = tensor->source->operands[0];
    const int rank = tensor->type.rank;
    const qn_condensed c = qn_condensed_panels(panels);
    const int64_t bytes = qn_condensed_bytes(c);
    const bool whole = extent[rank - 2] * extent[rank - 1] == bytes;
    uint8_t *scratch = malloc((size_t)(c.k * c.width) * qn_dtype_bytes(c.dtype));
    uint8_t *made = whole ? NULL : malloc((size_t)bytes), *at = to;
    int64_t n = 1;
    bool fit = true;
    QN_ASSERT(scratch && (whole || made), "out of memory");
    for (int i = 0; i < rank - 2; i++)
        n *= extent[i];
    for (int64_t i = 0; i < n;) {
        qn_runs runs[QN_CONDENSED_PANELS];
        const int most = whole ? QN_CONDENSED_PANELS : 1;
        int now = 0;
        do {
            runs[now] =
                qn_tensor_panel(panels, panel_number(&tensor->type, low, extent, i + now), true, scratch);
        } while (runs[now++].from != scratch && now < most && i + now < n);
        fit &= qn_condense(c, now, runs, whole ? at : made);
        for (int64_t row = 0; row < extent[rank - 2] && !whole; row++)
            memcpy(at + row * extent[rank - 1], made + (low[rank - 2] + row) * c.width + low[rank - 1],
                   (size_t)extent[rank - 1]);
        at += now * extent[rank - 2] * extent[rank - 1];
        i += now;
    }
    condensed_source *source = (condensed_source *)(uintptr_t)tensor->source;
    QN_ASSERT(fit || source->sampled, "a panel of %s has no room for its numbers",
              tensor->name ? tensor->name : "a constant");
    if (!fit)
        source->is_lost = true;
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
    dims[rank - 2] = qn_condensed_bytes(qn_condensed_panels(panels)) / dims[rank - 1];
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
