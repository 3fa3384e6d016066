/* Weights: see weights.h. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "driver/weights.h"
#include "ir/condensed.h"
#include "quern.h"

enum { PARALLEL_BYTES = 1 << 22 };

/* ---- layout ---- */

/* Tensors by what `hash` says of them: open addressing. */
typedef struct tensor_map {
    qn_weight **slots;
    size_t mask;
} tensor_map;

typedef struct layout {
    qn_weights *weights;
    tensor_map by_address; /* the quick way: the same constant in several programs */
    tensor_map by_contents;
} layout;

static void map_init(tensor_map *map, size_t capacity, qn_arena *arena)
{
    map->mask = 15;
    while (map->mask < 2 * capacity)
        map->mask = 2 * map->mask + 1;
    map->slots = QN_NEW_ARRAY(arena, qn_weight *, map->mask + 1);
}

static qn_weight **slot_by_address(const tensor_map *map, const qn_tensor *tensor)
{
    const uintptr_t address = (uintptr_t)(tensor->data ? tensor->data : (const void *)tensor->source);
    size_t at = (address >> 4) * 0x9e3779b97f4a7c15u >> 20 & map->mask;
    for (; map->slots[at]; at = (at + 1) & map->mask) {
        const qn_tensor *other = map->slots[at]->tensor;
        if (other->bytes == tensor->bytes && other->data == tensor->data && other->source == tensor->source)
            break;
    }
    return &map->slots[at];
}

/* Dims and dtype do not matter. */
static qn_weight **slot_by_contents(const tensor_map *map, const qn_tensor *tensor)
{
    size_t at = qn_tensor_key(tensor) & map->mask;
    while (map->slots[at] && !qn_tensor_same_bytes(map->slots[at]->tensor, tensor))
        at = (at + 1) & map->mask;
    return &map->slots[at];
}

static int64_t place(layout *l, const qn_tensor *tensor)
{
    qn_weight **known = slot_by_address(&l->by_address, tensor);
    if (*known)
        return (*known)->offset;
    qn_weight **slot = slot_by_contents(&l->by_contents, tensor);
    if (!*slot) {
        *slot = &l->weights->items[l->weights->n++];
        **slot = (qn_weight){ .tensor = tensor, .offset = l->weights->bytes };
        l->weights->bytes +=
            ((int64_t)tensor->bytes + QN_WEIGHT_ALIGN - 1) / QN_WEIGHT_ALIGN * QN_WEIGHT_ALIGN;
        *known = *slot;
    }
    return (*slot)->offset;
}

void qn_weights_lay_out(int n_programs, qn_program *const *programs, qn_arena *arena, qn_weights *out)
{
    size_t capacity = 0;
    for (int p = 0; p < n_programs; p++)
        capacity += (size_t)(programs[p]->n_buffers + programs[p]->n_io);
    *out = (qn_weights){ .items = QN_NEW_ARRAY(arena, qn_weight, capacity) };
    layout l = { .weights = out };
    map_init(&l.by_address, capacity, arena);
    map_init(&l.by_contents, capacity, arena);
    for (int p = 0; p < n_programs; p++) {
        qn_program *program = programs[p];
        for (int i = 0; i < program->n_buffers; i++)
            if (program->buffers[i].place == QN_PLACE_WEIGHTS)
                program->buffers[i].offset =
                    qn_dim_const(program->dims, place(&l, program->buffers[i].tensor));
        for (int i = 0; i < program->n_io; i++)
            program->io[i].initial_offset = program->io[i].initial ? place(&l, program->io[i].initial) : -1;
    }
    for (int p = 0; p < n_programs; p++)
        programs[p]->weights_bytes = out->bytes;
}

/* ---- contents ---- */

static const char zeros[QN_WEIGHT_ALIGN];

static size_t gap_after(const qn_weight *w)
{
    return (size_t)(-w->tensor->bytes % QN_WEIGHT_ALIGN);
}

/* Gives the contents from first to last in stretches; `to` may keep none of them. */
static void stream(const qn_weights *weights, void (*to)(void *user, const void *data, size_t bytes),
                   void *user)
{
    void *piece = malloc(QN_PIECE_BYTES);
    QN_ASSERT(piece, "out of memory");
    for (int i = 0; i < weights->n; i++) {
        const qn_weight *w = &weights->items[i];
        const int64_t n = qn_tensor_pieces(w->tensor);
        for (int64_t k = 0; k < n; k++) {
            qn_tensor_read(w->tensor, k, piece);
            to(user, piece, qn_tensor_piece(w->tensor, k).bytes);
        }
        to(user, zeros, gap_after(w));
        qn_tensor_release(w->tensor);
    }
    free(piece);
}

static void hash_stretch(void *state, const void *data, size_t bytes)
{
    XXH3_128bits_update(state, data, bytes);
}

void qn_weights_hash(qn_weights *weights)
{
    XXH3_state_t *state = XXH3_createState();
    QN_ASSERT(state, "out of memory");
    XXH3_128bits_reset(state);
    stream(weights, hash_stretch, state);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    for (int i = 0; i < 16; i++)
        sprintf(weights->hash + 2 * i, "%02x", canonical.digest[i]);
}

static void write_stretch(void *file, const void *data, size_t bytes)
{
    fwrite(data, 1, bytes, file);
}

void qn_weights_write(const qn_weights *weights, FILE *file)
{
    stream(weights, write_stretch, file);
}

/* ---- moving them to their place, by all threads ---- */

typedef struct moving {
    int n;
    const qn_weight **items;
    char *to;
    qn_arena *arena;
    int64_t *first;    /* number of the first piece of each tensor */
    atomic_long *left; /* pieces of each tensor that are still to be read */
} moving;

static void move_piece(void *arg, int64_t i)
{
    const moving *m = arg;
    int low = 0, high = m->n;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(m->first[middle] <= i ? &low : &high) = middle;
    }
    const qn_weight *w = m->items[low];
    const int64_t piece = i - m->first[low];
    qn_tensor_read(w->tensor, piece, m->to + w->offset + qn_tensor_piece(w->tensor, piece).offset);
    if (atomic_fetch_sub(&m->left[low], 1) > 1)
        return;
    qn_tensor_release(w->tensor);
    if (w->tensor->data && !w->tensor->mapped)
        qn_arena_release(m->arena, w->tensor->data, w->tensor->bytes);
}

/* The sampled tensors, or the others. */
static void move_some(moving *m, const qn_weights *weights, bool sampled, quern_pool *pool)
{
    int64_t n = 0;
    m->n = 0;
    for (int i = 0; i < weights->n; i++) {
        const qn_tensor *tensor = weights->items[i].tensor;
        if ((qn_tensor_sampled(tensor) != NULL) != sampled)
            continue;
        const int64_t pieces = qn_tensor_pieces(tensor);
        m->items[m->n] = &weights->items[i];
        m->first[m->n] = n;
        atomic_init(&m->left[m->n++], (long)pieces);
        n += pieces;
    }
    quern_pool_parallel_for(pool, move_piece, m, n);
}

bool qn_weights_move(const qn_weights *weights, void *to, qn_arena *arena)
{
    const size_t n = (size_t)weights->n + 1;
    moving m = { .items = malloc(n * sizeof *m.items),
                 .to = to,
                 .arena = arena,
                 .first = malloc(n * sizeof *m.first),
                 .left = malloc(n * sizeof *m.left) };
    QN_ASSERT(m.items && m.first && m.left, "out of memory");
    quern_pool *pool = weights->bytes >= PARALLEL_BYTES ? quern_pool_new(0) : NULL;
    bool lost = false;
    move_some(&m, weights, true, pool);
    for (int i = 0; i < m.n; i++)
        lost |= qn_tensor_is_lost(m.items[i]->tensor);
    if (!lost)
        move_some(&m, weights, false, pool);
    quern_pool_free(pool);
    free((void *)m.items);
    free(m.first);
    free((void *)m.left);
    return !lost;
}

/* ---- safetensors ---- */

/* The name as the contents of a JSON string. */
static const char *json_text(const char *name, qn_arena *arena)
{
    char *text = qn_arena_alloc(arena, 6 * strlen(name) + 1), *at = text;
    for (; *name; name++)
        if (*name == '"' || *name == '\\')
            at += sprintf(at, "\\%c", *name);
        else if ((unsigned char)*name < 0x20)
            at += sprintf(at, "\\u%04x", *name);
        else
            *at++ = *name;
    *at = '\0';
    return text;
}

const char *qn_safetensors_dtype(qn_dtype dtype)
{
    static const char *const names[] = {
        [QUERN_BOOL] = "BOOL",
        [QUERN_I8] = "I8",
        [QUERN_I16] = "I16",
        [QUERN_I32] = "I32",
        [QUERN_I64] = "I64",
        [QUERN_U8] = "U8",
        [QUERN_U16] = "U16",
        [QUERN_U32] = "U32",
        [QUERN_U64] = "U64",
        [QUERN_F16] = "F16",
        [QUERN_BF16] = "BF16",
        [QUERN_F32] = "F32",
        [QUERN_F64] = "F64",
        [QUERN_I4] = "U8",
        [QUERN_U4] = "U8",
        [QUERN_I2] = "U8",
        [QUERN_U2] = "U8",
        [QUERN_F8E4M3FN] = "F8_E4M3",
        [QUERN_F8E4M3FNUZ] = "F8_E4M3FNUZ",
        [QUERN_F8E5M2] = "F8_E5M2",
        [QUERN_F8E5M2FNUZ] = "F8_E5M2FNUZ",
        [QUERN_F4E2M1] = "U8",
        [QUERN_F8E8M0] = "F8_E8M0",
    };
    return names[dtype];
}

static bool name_taken(const qn_weights *weights, int before, const char *name)
{
    for (int i = 0; i < before; i++)
        if (weights->items[i].tensor->name && strcmp(weights->items[i].tensor->name, name) == 0)
            return true;
    return false;
}

void qn_weights_write_safetensors(const qn_weights *weights, FILE *file, qn_arena *arena)
{
    char *header = NULL;
    size_t length = 0;
    FILE *h = open_memstream(&header, &length);
    QN_ASSERT(h, "out of memory");
    fprintf(h, "{\"__metadata__\":{\"quern_weights\":\"%s\"}", weights->hash);
    for (int i = 0; i < weights->n; i++) {
        const qn_weight *w = &weights->items[i];
        const qn_tensor *t = w->tensor;
        bool named =
            t->name && t->name[0] && strncmp(t->name, "gap.", 4) != 0 && !name_taken(weights, i, t->name);
        const char *name = named ? json_text(t->name, arena) : qn_arena_printf(arena, "constant.%d", i);
        fprintf(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, qn_safetensors_dtype(t->type.dtype));
        for (int d = 0; d < t->type.rank; d++)
            fprintf(h, "%s%lld", d ? "," : "", (long long)t->type.dims[d]->value);
        long long end = (long long)w->offset + (long long)t->bytes;
        fprintf(h, "],\"data_offsets\":[%lld,%lld]}", (long long)w->offset, end);
        if (gap_after(w))
            fprintf(h, ",\"gap.%d\":{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[%lld,%lld]}", i,
                    gap_after(w), end, end + (long long)gap_after(w));
    }
    putc('}', h);
    while (fflush(h) == 0 && (length + 8) % QN_WEIGHT_ALIGN)
        putc(' ', h);
    fclose(h);
    for (int i = 0; i < 8; i++)
        putc((int)((uint64_t)length >> 8 * i & 255), file);
    fwrite(header, 1, length, file);
    free(header);
    qn_weights_write(weights, file);
}
