/* An ONNX model written again with other contents of some initializers: everything else is copied as it is, byte by byte.
 *
 * The file is a list of fields; the graph (field 7) a list in it; an initializer (field 5 of the graph) a list in that. Only the
 * initializers that change, and those with external data, which moves along, are taken apart. */
#include <stdio.h>
#include <string.h>

#include "frontend/onnx/import.h"
#include "frontend/onnx/map.h"

enum { MODEL_GRAPH = 7, GRAPH_INITIALIZER = 5 };
enum {
    TENSOR_DATA_TYPE = 2,
    TENSOR_FLOAT_DATA = 4,
    TENSOR_INT32_DATA = 5,
    TENSOR_NAME = 8,
    TENSOR_RAW_DATA = 9,
    TENSOR_DOUBLE_DATA = 10,
    TENSOR_EXTERNAL_DATA = 13,
    TENSOR_DATA_LOCATION = 14
};
enum { ENTRY_KEY = 1, ENTRY_VALUE = 2 };
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { DATA_ALIGN = 64, MAX_NAME = 1 << 20 };

/* ---- reading fields ---- */

typedef struct field {
    uint32_t number;
    int wire;
    const uint8_t *start, *end; /* with its tag */
    const uint8_t *data;        /* BYTES: the contents, up to end */
    uint64_t value;             /* VARINT */
} field;

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        const uint8_t byte = *(*at)++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* The field at *at, which moves behind it; false at the end of the message or where it is broken. */
static bool next_field(const uint8_t **at, const uint8_t *end, field *out)
{
    uint64_t tag, length = 0;
    *out = (field){ .start = *at };
    if (*at >= end || !read_varint(at, end, &tag))
        return false;
    out->number = (uint32_t)(tag >> 3);
    out->wire = (int)(tag & 7);
    if (out->wire == WIRE_VARINT) {
        if (!read_varint(at, end, &out->value))
            return false;
    } else if (out->wire == WIRE_BYTES) {
        if (!read_varint(at, end, &length))
            return false;
    } else if (out->wire == WIRE_64 || out->wire == WIRE_32) {
        length = out->wire == WIRE_64 ? 8 : 4;
    } else {
        return false;
    }
    if (length > (uint64_t)(end - *at))
        return false;
    out->data = *at;
    *at += length;
    out->end = *at;
    return true;
}

/* ---- writing: a list of stretches of memory, whose length is known before they are written ---- */

typedef struct stretch {
    const void *data;
    size_t size;
} stretch;

typedef struct writer {
    qn_arena *arena;
    qn_diags *diags;
    qn_vec(stretch) pieces; /* of the graph */
    size_t size;
    qn_onnx_import import; /* for external data: its folder, files and messages */
    FILE *data;            /* external data of the new model */
    const char *data_name;
    size_t data_size;
    int n;
    qn_onnx_replacement *replacements;
} writer;

static void put(writer *w, const void *data, size_t size)
{
    const stretch piece = { data, size };
    qn_vec_push(w->arena, &w->pieces, piece);
    w->size += size;
}

static size_t write_varint(uint8_t *to, uint64_t value)
{
    size_t n = 0;
    do {
        to[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
    return n;
}

/* Tag and length of a BYTES field. */
static stretch head_of(writer *w, int number, size_t length)
{
    uint8_t *head = qn_arena_alloc(w->arena, 20);
    size_t n = write_varint(head, (uint64_t)number << 3 | WIRE_BYTES);
    n += write_varint(head + n, length);
    return (stretch){ head, n };
}

/* One entry of external_data as a field of the tensor. */
static void put_entry(writer *w, const char *key, const char *value)
{
    const size_t k = strlen(key), v = strlen(value);
    const stretch key_head = head_of(w, ENTRY_KEY, k), value_head = head_of(w, ENTRY_VALUE, v);
    const stretch head = head_of(w, TENSOR_EXTERNAL_DATA, key_head.size + k + value_head.size + v);
    put(w, head.data, head.size);
    put(w, key_head.data, key_head.size);
    put(w, key, k);
    put(w, value_head.data, value_head.size);
    put(w, value, v);
}

/* The contents go to the file of external data. */
static void put_external(writer *w, const void *data, size_t size)
{
    static const char zeros[DATA_ALIGN];
    static const uint8_t location[2] = { TENSOR_DATA_LOCATION << 3 | WIRE_VARINT, 1 };
    const size_t gap = (DATA_ALIGN - w->data_size % DATA_ALIGN) % DATA_ALIGN;
    fwrite(zeros, 1, gap, w->data);
    fwrite(data, 1, size, w->data);
    put_entry(w, "location", w->data_name);
    put_entry(w, "offset", qn_arena_printf(w->arena, "%zu", w->data_size + gap));
    put_entry(w, "length", qn_arena_printf(w->arena, "%zu", size));
    put(w, location, sizeof location);
    w->data_size += gap + size;
}

/* ---- initializers ---- */

typedef struct initializer {
    const char *name;
    int elem;
    bool external;
} initializer;

static bool read_initializer(writer *w, const field *f, initializer *out)
{
    const uint8_t *at = f->data;
    field part;
    *out = (initializer){ .name = "" };
    while (next_field(&at, f->end, &part)) {
        if (part.number == TENSOR_NAME && part.wire == WIRE_BYTES && part.end - part.data < MAX_NAME)
            out->name =
                qn_arena_printf(w->arena, "%.*s", (int)(part.end - part.data), (const char *)part.data);
        else if (part.number == TENSOR_DATA_TYPE)
            out->elem = (int)part.value;
        else if (part.number == TENSOR_DATA_LOCATION)
            out->external = part.value == 1;
    }
    return at == f->end;
}

static void *arena_alloc(void *arena, size_t size)
{
    return qn_arena_alloc(arena, size);
}

static void arena_free(void *arena, void *memory)
{
    (void)arena;
    (void)memory;
}

/* The tensor's fields but those of its contents, then the new contents. */
static qn_status put_initializer(writer *w, const field *f, const initializer *tensor,
                                 const qn_onnx_replacement *with)
{
    ProtobufCAllocator allocator = { arena_alloc, arena_free, w->arena };
    const qn_loc loc = { .file = w->import.file };
    const void *contents = with ? with->data : NULL;
    size_t size = with ? with->bytes : 0;
    if (!with) {
        const Onnx__Tensor *proto = onnx__tensor__unpack(&allocator, (size_t)(f->end - f->data), f->data);
        contents = proto ? qn_onnx_external_bytes(&w->import, proto, &loc, &size) : NULL;
        if (!contents)
            return proto ? qn_diags_status(w->diags)
                         : qn_error(w->diags, QUERN_ERROR_MODEL, &loc, "tensor %s is broken", tensor->name);
    }
    /* the length of the tensor comes before its fields: they are put aside first */
    const size_t first = w->pieces.n, before = w->size;
    const uint8_t *at = f->data;
    field part;
    while (next_field(&at, f->end, &part))
        if (part.number != TENSOR_FLOAT_DATA && part.number != TENSOR_INT32_DATA &&
            part.number != TENSOR_RAW_DATA && part.number != TENSOR_DOUBLE_DATA &&
            part.number != TENSOR_EXTERNAL_DATA && part.number != TENSOR_DATA_LOCATION)
            put(w, part.start, (size_t)(part.end - part.start));
    if (tensor->external) {
        put_external(w, contents, size);
    } else {
        const stretch head = head_of(w, TENSOR_RAW_DATA, size);
        put(w, head.data, head.size);
        put(w, contents, size);
    }
    const stretch head = head_of(w, GRAPH_INITIALIZER, w->size - before);
    put(w, NULL, 0);
    memmove(w->pieces.items + first + 1, w->pieces.items + first,
            (w->pieces.n - first - 1) * sizeof *w->pieces.items);
    w->pieces.items[first] = head;
    w->size += head.size;
    return QUERN_OK;
}

static qn_onnx_replacement *find_replacement(writer *w, const char *name)
{
    for (int i = 0; i < w->n; i++)
        if (strcmp(w->replacements[i].name, name) == 0)
            return &w->replacements[i];
    return NULL;
}

/* Float32 rounded to a data type of 16 bits. */
static void narrow(writer *w, qn_onnx_replacement *with, qn_dtype dtype)
{
    const size_t n = with->bytes / sizeof(float), size = qn_dtype_bytes(dtype);
    char *data = qn_arena_alloc(w->arena, n * size);
    for (size_t i = 0; i < n; i++)
        qn_scalar_store(dtype, qn_scalar_load(QUERN_F32, (const float *)with->data + i), data + i * size);
    with->dtype = dtype;
    with->data = data;
    with->bytes = n * size;
}

static qn_status put_graph(writer *w, const field *graph)
{
    const qn_loc loc = { .file = w->import.file };
    const uint8_t *at = graph->data;
    field f;
    while (next_field(&at, graph->end, &f)) {
        initializer tensor;
        if (f.number != GRAPH_INITIALIZER || f.wire != WIRE_BYTES) {
            put(w, f.start, (size_t)(f.end - f.start));
            continue;
        }
        if (!read_initializer(w, &f, &tensor))
            return qn_error(w->diags, QUERN_ERROR_MODEL, &loc, "an initializer is broken");
        qn_onnx_replacement *with = find_replacement(w, tensor.name);
        if (with) {
            const qn_dtype dtype = qn_onnx_elem_dtype(tensor.elem);
            if (with->dtype == QUERN_F32 && qn_dtype_is_narrow(dtype))
                narrow(w, with, dtype);
            if (dtype != with->dtype)
                return qn_error(w->diags, QUERN_ERROR_ARGUMENT, &loc, "initializer %s is of type %s, not %s",
                                tensor.name, qn_onnx_elem_name(tensor.elem), qn_dtype_name(with->dtype));
            with->used = true;
        }
        if (with || tensor.external)
            QN_TRY(put_initializer(w, &f, &tensor, with));
        else
            put(w, f.start, (size_t)(f.end - f.start));
    }
    return at == graph->end ? QUERN_OK
                            : qn_error(w->diags, QUERN_ERROR_MODEL, &loc, "this is not an ONNX model");
}

static void write_pieces(const writer *w, FILE *file)
{
    for (size_t i = 0; i < w->pieces.n; i++)
        fwrite(w->pieces.items[i].data, 1, w->pieces.items[i].size, file);
}

static qn_status rewrite(writer *w, const char *from, FILE *model)
{
    const qn_loc loc = { .file = from };
    qn_onnx_mapping mapping;
    QN_TRY(qn_onnx_map(from, w->arena, &loc, w->diags, &mapping));
    const uint8_t *at = mapping.data, *end = mapping.data + mapping.size;
    field f;
    while (next_field(&at, end, &f)) {
        if (f.number != MODEL_GRAPH || f.wire != WIRE_BYTES) {
            fwrite(f.start, 1, (size_t)(f.end - f.start), model);
            continue;
        }
        QN_TRY(put_graph(w, &f));
        const stretch head = head_of(w, MODEL_GRAPH, w->size);
        fwrite(head.data, 1, head.size, model);
        write_pieces(w, model);
    }
    if (at != end)
        return qn_error(w->diags, QUERN_ERROR_MODEL, &loc, "this is not an ONNX model");
    for (int i = 0; i < w->n; i++)
        if (!w->replacements[i].used && !w->replacements[i].optional)
            return qn_error(w->diags, QUERN_ERROR_ARGUMENT, &loc, "the model has no initializer %s",
                            w->replacements[i].name);
    return QUERN_OK;
}

qn_status qn_onnx_rewrite(const char *from, int n, qn_onnx_replacement *replacements, FILE *model, FILE *data,
                          const char *data_name, bool *out_has_data, qn_diags *diags)
{
    const char *slash = strrchr(from, '/');
    writer w = { .arena = qn_arena_new(),
                 .diags = diags,
                 .data = data,
                 .data_name = data_name,
                 .n = n,
                 .replacements = replacements };
    w.import = (qn_onnx_import){
        .arena = w.arena,
        .diags = diags,
        .file = from,
        .folder = !slash ? "." : qn_arena_printf(w.arena, "%.*s", (int)(slash - from + 1), from)
    };
    const qn_status status = rewrite(&w, from, model);
    *out_has_data = w.data_size > 0;
    qn_arena_free(w.arena);
    return status;
}
