/* Panels of 28 bits a number: see condensed.h. */
#include "ir/condensed.h"

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

static uint32_t bits_at(const uint8_t *from)
{
    uint32_t bits;
    memcpy(&bits, from, sizeof bits);
    return bits;
}

/* The first exponent of the table that fits best; of a large panel by one number of each few: those whose row and column leave the
 * same rest, so that it is the same table by rows and by columns. */
static uint32_t choose_first(const qn_runs *panel)
{
    enum { EACH = 8, AHEAD = 8, LARGE = 8192 };
    const int64_t each = panel->n * panel->length < LARGE ? 1 : EACH;
    uint32_t counts[EXPONENTS] = { 0 }, inside = 0, most = 0, first = 1;
    for (int64_t r = 0; r < panel->n; r++) {
        const uint8_t *run = panel->from + 4 * r * panel->stride;
        for (int64_t i = 0; i < panel->length;
             i += LINE / 4) /* short runs, far apart: no core follows them */
            __builtin_prefetch(run + 4 * (AHEAD * panel->stride + i));
        for (int64_t i = r % each; i < panel->length; i += each)
            counts[exponent_of(bits_at(run + 4 * i))]++;
    }
    for (uint32_t i = 1; i < EXPONENTS; i++) {
        inside += counts[i] - (i > KINDS ? counts[i - KINDS] : 0);
        if (inside > most) {
            most = inside;
            first = i >= KINDS ? i - KINDS + 1 : 1;
        }
    }
    return first;
}

bool qn_condensed_takes(const qn_runs *panel, int64_t k, int64_t width)
{
    const uint32_t first = choose_first(panel);
    int64_t others = 0;
    for (int64_t r = 0; r < panel->n; r++) {
        const uint8_t *run = panel->from + 4 * r * panel->stride;
        uint32_t n = 0; /* a run is shorter */
        for (int64_t i = 0; i < panel->length; i++)
            n += lacks(first, exponent_of(bits_at(run + 4 * i)));
        others += n;
    }
    return others <= qn_condensed_room(k, width);
}

typedef struct writer {
    uint8_t *to;
    int64_t room, n; /* entries of the list */
    uint32_t first;
    uint8_t places[256]; /* by top byte; OTHER: the table lacks it */
} writer;

/* Of four neighbours those that the table lacks go to the list and are 0 here. */
static void list_others(writer *w, uint64_t *pairs, int64_t at)
{
    uint32_t numbers[4];
    memcpy(numbers, pairs, sizeof numbers);
    for (int i = 0; i < 4; i++) {
        if (w->places[numbers[i] >> 24] != OTHER)
            continue;
        if (w->n < w->room) {
            uint8_t *entry = w->to + QN_CONDENSED_LIST + w->n * QN_CONDENSED_ENTRY;
            put(entry, (uint32_t)(at + i));
            put(entry + 4, numbers[i]);
        }
        w->n++;
        numbers[i] = 0;
    }
    memcpy(pairs, numbers, sizeof numbers);
}

static uint32_t places_of(const writer *w, const uint64_t *pairs)
{
    return w->places[pairs[0] >> 24 & 255] | (uint32_t)w->places[pairs[0] >> 56] << 8 |
           (uint32_t)w->places[pairs[1] >> 24 & 255] << 16 | (uint32_t)w->places[pairs[1] >> 56] << 24;
}

/* Four neighbours of row `row` of a block, the first of which is number `at` of the panel and `column` of the block: two at a time. */
static inline void write_four(writer *w, const uint8_t *from, int64_t at, int columns, int row, int column,
                              uint8_t *block)
{
    const int plane = 4 * columns, r = row % 4, half = row / 4, by_four = 4 * (column + r);
    uint64_t p[2], low = 0;
    uint32_t third = 0, both;
    memcpy(p, from, sizeof p);
    uint32_t places = places_of(w, p);
    if (places & 0x80808080u) {
        list_others(w, p, at);
        places = places_of(w, p);
    }
    for (int i = 0; i < 2; i++) {
        low |= ((p[i] & 0xffff) | (p[i] >> 16 & 0xffff0000u)) << 32 * i;
        third |= (uint32_t)((p[i] >> 16 & 0xff) | (p[i] >> 40 & 0xff00)) << 16 * i;
    }
    uint8_t *thirds = block + (1 + half * 3) * plane, *lows = thirds + (1 + r / 2) * plane;
    memcpy(thirds + by_four, &third, sizeof third);
    memcpy(lows + 4 * column + r % 2 * 8, &low, sizeof low);
    memcpy(&both, block + by_four, sizeof both);
    both = half ? both | places << 4 : places;
    memcpy(block + by_four, &both, sizeof both);
}

static void write_table(uint8_t *to, uint32_t first)
{
    for (uint32_t i = 0; i < QN_CONDENSED_TABLE; i++)
        to[i] = (uint8_t)((i % 8 ? first + i % 8 - 1 : 0) + i / 8 * 128);
}

bool qn_condense(const qn_runs *panel, int64_t k, int64_t width, void *to)
{
    const int64_t head = qn_condensed_head(k, width), rows = QN_CONDENSED_ROWS, columns = columns_of(width);
    writer w = { .to = to, .room = qn_condensed_room(k, width), .first = choose_first(panel) };
    uint8_t *block = w.to + head;
    memset(to, 0, (size_t)head);
    write_table(to, w.first);
    for (uint32_t i = 0; i < 256; i++) {
        const uint32_t exponent = i % EXPONENTS, place = exponent ? exponent - w.first + 1 : 0;
        w.places[i] = lacks(w.first, exponent) ? OTHER : (uint8_t)(place + i / EXPONENTS * 8);
    }
    if (k % rows)
        memset(block + k / rows * rows_bytes(width), 0, (size_t)rows_bytes(width));
    for (int64_t row = 0; row < k; row += rows)
        for (int64_t column = 0; column < width;
             column += columns, block += QN_CONDENSED_PLANES * 4 * columns)
            for (int r = 0; r < rows && row + r < k; r++) {
                const uint8_t *from = panel->from + 4 * ((row + r) * panel->stride + column);
                for (int c = 0; c < columns; c += 4)
                    write_four(&w, from + 4 * (ptrdiff_t)c, (row + r) * width + column + c, (int)columns, r,
                               c, block);
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
        QN_ASSERT(fits, "panel %lld has no room for its numbers", (long long)panel);
        for (int64_t row = 0; row < extent[rank - 2] && !whole; row++)
            memcpy(at + row * extent[rank - 1], made + (low[rank - 2] + row) * width + low[rank - 1],
                   (size_t)extent[rank - 1]);
        at += extent[rank - 2] * extent[rank - 1];
    }
    free(made);
    free(scratch);
}

const qn_tensor *qn_tensor_condensed(qn_module *module, const qn_tensor *panels)
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
    qn_tensor_source *source = QN_NEW(arena, qn_tensor_source);
    *source = (qn_tensor_source){ .operands = qn_arena_copy(arena, &panels, sizeof(panels)),
                                  .cost = 1 + (panels->source && !panels->data ? panels->source->cost : 0),
                                  .arena = arena,
                                  .read = read_condensed };
    t->source = source;
    return t;
}
