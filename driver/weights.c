/* Weights: see weights.h. */
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "driver/weights.h"

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
    size_t at = ((uintptr_t)tensor->data >> 4) * 0x9e3779b97f4a7c15u >> 20 & map->mask;
    for (; map->slots[at]; at = (at + 1) & map->mask) {
        const qn_tensor *other = map->slots[at]->tensor;
        if (other->bytes == tensor->bytes && other->data == tensor->data)
            break;
    }
    return &map->slots[at];
}

/* Dims and dtype do not matter. */
static qn_weight **slot_by_contents(const tensor_map *map, const qn_tensor *tensor)
{
    size_t at = XXH3_64bits(tensor->data, tensor->bytes) & map->mask;
    for (; map->slots[at]; at = (at + 1) & map->mask) {
        const qn_tensor *other = map->slots[at]->tensor;
        if (other->bytes == tensor->bytes && memcmp(other->data, tensor->data, tensor->bytes) == 0)
            break;
    }
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

void qn_weights_hash(qn_weights *weights)
{
    XXH3_state_t *state = XXH3_createState();
    QN_ASSERT(state, "out of memory");
    XXH3_128bits_reset(state);
    for (int i = 0; i < weights->n; i++) {
        const qn_weight *w = &weights->items[i];
        XXH3_128bits_update(state, w->tensor->data, w->tensor->bytes);
        XXH3_128bits_update(state, zeros, gap_after(w));
    }
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    for (int i = 0; i < 16; i++)
        sprintf(weights->hash + 2 * i, "%02x", canonical.digest[i]);
}

void qn_weights_move(const qn_weights *weights, void *to, qn_arena *arena)
{
    for (int i = 0; i < weights->n; i++) {
        const qn_tensor *tensor = weights->items[i].tensor;
        memcpy((char *)to + weights->items[i].offset, tensor->data, tensor->bytes);
        qn_arena_release(arena, tensor->data, tensor->bytes);
    }
}

void qn_weights_write(const qn_weights *weights, FILE *file)
{
    for (int i = 0; i < weights->n; i++) {
        const qn_weight *w = &weights->items[i];
        fwrite(w->tensor->data, 1, w->tensor->bytes, file);
        fwrite(zeros, 1, gap_after(w), file);
    }
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

static const char *safetensors_dtype(qn_dtype dtype)
{
    static const char *const names[] = {
        [QUERN_BOOL] = "BOOL", [QUERN_I8] = "I8",   [QUERN_I16] = "I16",   [QUERN_I32] = "I32",
        [QUERN_I64] = "I64",   [QUERN_U8] = "U8",   [QUERN_U16] = "U16",   [QUERN_U32] = "U32",
        [QUERN_U64] = "U64",   [QUERN_F16] = "F16", [QUERN_BF16] = "BF16", [QUERN_F32] = "F32",
        [QUERN_F64] = "F64",
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
        fprintf(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, safetensors_dtype(t->type.dtype));
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
