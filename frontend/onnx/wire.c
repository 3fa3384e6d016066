/* The wire-level scan in front of protobuf-c, which copies every bytes field and descends without bound.
 *
 * One walk over the bytes, guided by protobuf-c's own message descriptors, writes a reduced stream:
 *   raw_data of 64 KB or more      -> its offset and size in the original bytes
 *   fields that the schema lacks   -> left out
 *   messages                       -> walked, to a bounded depth and number
 *   everything else                -> copied
 * protobuf-c then parses the reduced stream into the arena. */
#include "frontend/onnx/wire.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_DEPTH = 300,        /* messages within messages: 3 for a subgraph */
    MAX_MESSAGES = 1 << 24, /* bounds what the parsed form takes */
    LENGTH_BYTES = 5,       /* of a message's length in the reduced stream: patched in afterwards */
    RAW_DATA = 9,           /* field numbers of Tensor */
    MAPPED_OFFSET = 30001,
    MAPPED_SIZE = 30002
};

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct scan {
    const uint8_t *base;
    uint8_t *out;
    size_t n, capacity;
    int n_messages;
    const char *problem;
} scan;

static bool fail(scan *s, const char *problem)
{
    if (!s->problem)
        s->problem = problem;
    return false;
}

static bool put(scan *s, const void *bytes, size_t n)
{
    if (s->capacity - s->n < n) {
        size_t capacity = s->capacity * 2 + n;
        uint8_t *out = realloc(s->out, capacity);
        if (!out)
            return fail(s, "out of memory");
        s->out = out;
        s->capacity = capacity;
    }
    memcpy(s->out + s->n, bytes, n);
    s->n += n;
    return true;
}

static bool put_varint(scan *s, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    do {
        bytes[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
    return put(s, bytes, n);
}

static bool put_fixed64(scan *s, uint32_t field, uint64_t value)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    return put_varint(s, (uint64_t)field << 3 | WIRE_64) && put(s, bytes, sizeof bytes);
}

static bool get_varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* Walks the fields of one message in [at, end). */
static bool scan_message(scan *s, const ProtobufCMessageDescriptor *message, const uint8_t *at,
                         const uint8_t *end, int depth)
{
    if (depth > MAX_DEPTH)
        return fail(s, "it is nested too deeply");
    if (++s->n_messages > MAX_MESSAGES)
        return fail(s, "it has too many parts");
    while (at < end) {
        const uint8_t *start = at;
        uint64_t tag, value = 0;
        if (!get_varint(&at, end, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX)
            return fail(s, "a field's tag is broken");
        uint32_t number = (uint32_t)(tag >> 3);
        switch (tag & 7) {
        case WIRE_VARINT:
            if (!get_varint(&at, end, &value))
                return fail(s, "a number is broken");
            break;
        case WIRE_64:
        case WIRE_32: {
            size_t bytes = (tag & 7) == WIRE_64 ? 8 : 4;
            if ((size_t)(end - at) < bytes)
                return fail(s, "it ends within a number");
            at += bytes;
            break;
        }
        case WIRE_BYTES:
            if (!get_varint(&at, end, &value) || value > (size_t)(end - at))
                return fail(s, "it ends within a field");
            at += value;
            break;
        default: return fail(s, "it has a field of an unknown kind");
        }
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(message, number);
        if (!field || (message == &onnx__tensor__descriptor && number >= MAPPED_OFFSET))
            continue;
        bool is_message = field->type == PROTOBUF_C_TYPE_MESSAGE && (tag & 7) == WIRE_BYTES;
        if (is_message) {
            if (!put_varint(s, tag))
                return false;
            size_t length_at = s->n;
            if (!put(s, "\x80\x80\x80\x80", LENGTH_BYTES) ||
                !scan_message(s, field->descriptor, at - value, at, depth + 1))
                return false;
            size_t length = s->n - length_at - LENGTH_BYTES;
            if (length > INT32_MAX)
                return fail(s, "it is larger than 2 GB without its weights");
            for (int i = 0; i < LENGTH_BYTES; i++)
                s->out[length_at + (size_t)i] |= (uint8_t)(length >> (7 * i) & 0x7f);
        } else if (message == &onnx__tensor__descriptor && number == RAW_DATA && (tag & 7) == WIRE_BYTES &&
                   value >= QN_ONNX_MAPPED_MIN) {
            if (!put_fixed64(s, MAPPED_OFFSET, (uint64_t)(at - value - s->base)) ||
                !put_fixed64(s, MAPPED_SIZE, value))
                return false;
        } else if (!put(s, start, (size_t)(at - start))) {
            return false;
        }
    }
    return true;
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

qn_status qn_onnx_parse(const void *data, size_t size, const char *name, qn_arena *arena, Onnx__Model **out,
                        qn_diags *diags)
{
    qn_loc loc = { .file = name };
    scan s = { .base = data };
    *out = NULL;
    if (scan_message(&s, &onnx__model__descriptor, data, (const uint8_t *)data + size, 0)) {
        ProtobufCAllocator allocator = { arena_alloc, arena_free, arena };
        *out = onnx__model__unpack(&allocator, s.n, s.out);
        if (!*out)
            s.problem = "a field has the wrong kind";
    }
    free(s.out);
    if (!*out)
        return qn_error(diags, QUERN_ERROR_MODEL, &loc, "this is not an ONNX model: %s", s.problem);
    if (!(*out)->graph)
        return qn_error(diags, QUERN_ERROR_MODEL, &loc, "this is not an ONNX model: it has no graph");
    return QUERN_OK;
}
