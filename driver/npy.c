/* .npy and .npz files: see npy.h. The formats are NumPy's documented ones (numpy.lib.format) and PKWARE's zip, of which
 * stored and deflated entries and the 64-bit extension are read; entries are written stored. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <zlib.h>

#include "driver/npy.h"
#include "driver/output.h"

/* ---- .npy ---- */

static const char magic[6] = { '\x93', 'N', 'U', 'M', 'P', 'Y' };

/* descr without its byte order */
static const struct {
    const char *text;
    quern_dtype dtype;
} descrs[] = {
    { "b1", QUERN_BOOL }, { "i1", QUERN_I8 },  { "i2", QUERN_I16 },  { "i4", QUERN_I32 }, { "i8", QUERN_I64 },
    { "u1", QUERN_U8 },   { "u2", QUERN_U16 }, { "u4", QUERN_U32 },  { "u8", QUERN_U64 }, { "f2", QUERN_F16 },
    { "f4", QUERN_F32 },  { "f8", QUERN_F64 }, { "V2", QUERN_BF16 }, { "V1", QUERN_U8 },
};

typedef struct npy_reader {
    const char *path, *name; /* name: of the array in the archive, or NULL */
    qn_arena *arena;
    qn_diags *diags;
} npy_reader;

static qn_status bad(const npy_reader *r, const char *what)
{
    return qn_error(r->diags, QUERN_ERROR_ARGUMENT, NULL, "%s%s%s%s: %s", r->path, r->name ? ": array '" : "",
                    r->name ? r->name : "", r->name ? "'" : "", what);
}

/* The value of a key in the header's Python dictionary: the text after "'key':". */
static const char *find_key(const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (!at)
        return NULL;
    at += strlen(key);
    while (*at == ' ')
        at++;
    return *at == ':' ? at + 1 + strspn(at + 1, " ") : NULL;
}

/* Contents of column-major or byte-swapped arrays, put in order. */
static void reorder(char *to, const char *from, size_t size, int rank, const int64_t *dims, bool swapped,
                    bool column)
{
    int64_t index[QN_NPY_MAX_RANK] = { 0 }, n = 1;
    size_t strides[QN_NPY_MAX_RANK], stride = size;
    for (int i = 0; i < rank; i++) {
        int axis = column ? i : rank - 1 - i;
        strides[axis] = stride;
        stride *= (size_t)dims[axis];
        n *= dims[i];
    }
    for (int64_t e = 0; e < n; e++, to += size) {
        const char *at = from;
        for (int i = 0; i < rank; i++)
            at += (size_t)index[i] * strides[i];
        for (size_t byte = 0; byte < size; byte++)
            to[byte] = at[swapped ? size - 1 - byte : byte];
        for (int i = rank - 1; i >= 0 && ++index[i] == dims[i]; i--)
            index[i] = 0;
    }
}

static qn_status parse_shape(const npy_reader *r, const char *at, int64_t *dims, int *out_rank)
{
    int rank = 0;
    if (!at || *at++ != '(')
        return bad(r, "its header has no shape");
    for (;;) {
        at += strspn(at, " ,");
        if (*at == ')')
            break;
        if (*at < '0' || *at > '9' || rank == QN_NPY_MAX_RANK)
            return bad(r, "its shape is malformed");
        int64_t value = 0;
        for (; *at >= '0' && *at <= '9'; at++)
            if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *at - '0', &value))
                return bad(r, "its shape is malformed");
        at += *at == 'L';
        dims[rank++] = value;
    }
    *out_rank = rank;
    return QUERN_OK;
}

static qn_status parse_npy(const npy_reader *r, const char *data, size_t size, qn_npy *out)
{
    if (size < 12 || memcmp(data, magic, sizeof magic) != 0)
        return bad(r, "not a .npy file");
    const unsigned char *u = (const unsigned char *)data;
    size_t start = u[6] == 1 ? 10 : 12;
    size_t length = u[8] | (size_t)u[9] << 8;
    if (u[6] > 1)
        length |= (size_t)u[10] << 16 | (size_t)u[11] << 24;
    if (length > size - start)
        return bad(r, "it ends inside its header");
    char *header = qn_arena_alloc(r->arena, length + 1);
    memcpy(header, data + start, length);

    const char *descr = find_key(header, "'descr'"), *order = find_key(header, "'fortran_order'");
    if (!descr || (*descr != '\'' && *descr != '[') || !order)
        return bad(r, "its header is malformed");
    quern_dtype dtype = QUERN_INVALID_DTYPE;
    if (*descr == '\'' && descr[1] && descr[2] && descr[3] && descr[4] == '\'')
        for (size_t i = 0; i < sizeof descrs / sizeof *descrs; i++)
            if (strncmp(descr + 2, descrs[i].text, 2) == 0)
                dtype = descrs[i].dtype;
    if (!dtype)
        return bad(r, qn_arena_printf(r->arena, "elements of type %.*s are not supported",
                                      (int)strcspn(descr + 1, "'],") + 2, descr));
    int64_t dims[QN_NPY_MAX_RANK];
    int rank;
    QN_TRY(parse_shape(r, find_key(header, "'shape'"), dims, &rank));
    size_t bytes = quern_dtype_size(dtype);
    for (int i = 0; i < rank; i++)
        if (__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes))
            return bad(r, "its shape is too large");
    if (bytes > size - start - length)
        return bad(r, "it is shorter than its shape says");

    const char *contents = data + start + length;
    bool swapped = descr[1] == '>', column = strncmp(order, "True", 4) == 0 && rank > 1;
    char *copy = qn_arena_alloc(r->arena, bytes);
    if (swapped || column)
        reorder(copy, contents, quern_dtype_size(dtype), rank, dims, swapped, column);
    else
        memcpy(copy, contents, bytes);
    out->array = (quern_array){ .dtype = dtype,
                                .rank = rank,
                                .dims = qn_arena_copy(r->arena, dims, (size_t)rank * sizeof *dims),
                                .data = copy };
    out->bytes = bytes;
    return QUERN_OK;
}

/* The header, padded so that what follows it is aligned to 64 bytes. */
static const char *npy_header(const quern_array *array, qn_arena *arena, size_t *out_length)
{
    const char *descr = "V1", *shape = ""; /* as NumPy writes narrow types, whose names it does not know */
    for (size_t i = sizeof descrs / sizeof *descrs; i-- > 0;)
        if ((int)descrs[i].dtype == array->dtype) /* the first of them: u8 is read from V1, too */
            descr = descrs[i].text;
    for (int i = 0; i < array->rank; i++)
        shape = qn_arena_printf(arena, "%s%lld%s", shape, (long long)array->dims[i],
                                i + 1 < array->rank ? ", "
                                : array->rank == 1  ? ","
                                                    : "");
    const char *text = qn_arena_printf(arena, "{'descr': '%c%s', 'fortran_order': False, 'shape': (%s), }",
                                       quern_dtype_size(array->dtype) == 1 ? '|' : '<', descr, shape);
    size_t total = (10 + strlen(text) + 1 + 63) / 64 * 64;
    char *header = qn_arena_alloc(arena, total);
    memset(header, ' ', total);
    memcpy(header, magic, sizeof magic);
    header[6] = 1;
    header[7] = 0;
    header[8] = (char)((total - 10) & 255);
    header[9] = (char)((total - 10) >> 8);
    memcpy(header + 10, text, strlen(text));
    header[total - 1] = '\n';
    *out_length = total;
    return header;
}

size_t qn_array_bytes(const quern_array *array)
{
    size_t bytes = quern_dtype_size(array->dtype);
    for (int i = 0; i < array->rank; i++)
        bytes *= (size_t)array->dims[i];
    return bytes;
}

qn_status qn_npy_write(const char *path, const quern_array *array, qn_diags *diags)
{
    qn_output output;
    QN_TRY(qn_output_open(&output, path, diags));
    size_t length;
    const char *header = npy_header(array, diags->arena, &length);
    fwrite(header, 1, length, output.file);
    fwrite(array->data, 1, qn_array_bytes(array), output.file);
    return qn_output_commit(&output, diags);
}

/* ---- zip ---- */

static uint64_t get(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

typedef struct zip_entry {
    const char *name;
    unsigned method;
    uint32_t crc;
    uint64_t packed, unpacked, offset; /* offset: of the local header */
} zip_entry;

/* Where the central directory begins, and its entries' number; false where there is none. */
static bool find_directory(const unsigned char *data, size_t size, uint64_t *out_offset, uint64_t *out_n)
{
    if (size < 22)
        return false;
    size_t lowest = size > 22 + 65535 ? size - 22 - 65535 : 0;
    for (size_t at = size - 22;; at--) {
        if (get(data + at, 4) == 0x06054b50) {
            *out_n = get(data + at + 10, 2);
            *out_offset = get(data + at + 16, 4);
            if ((*out_n == 0xffff || *out_offset == 0xffffffff) && at >= 20 &&
                get(data + at - 20, 4) == 0x07064b50) {
                uint64_t end64 = get(data + at - 12, 8);
                if (end64 > size - 22 || size - end64 < 56 || get(data + end64, 4) != 0x06064b50)
                    return false;
                *out_n = get(data + end64 + 32, 8);
                *out_offset = get(data + end64 + 48, 8);
            }
            return *out_offset <= size;
        }
        if (at == lowest)
            return false;
    }
}

/* Reads the directory entry at *cursor and moves behind it. */
static bool next_entry(const unsigned char *data, size_t size, uint64_t *cursor, qn_arena *arena,
                       zip_entry *out)
{
    if (*cursor > size || size - *cursor < 46 || get(data + *cursor, 4) != 0x02014b50)
        return false;
    const unsigned char *e = data + *cursor;
    uint64_t name = get(e + 28, 2), extra = get(e + 30, 2), comment = get(e + 32, 2);
    if (size - *cursor - 46 < name + extra + comment)
        return false;
    *out = (zip_entry){ .method = (unsigned)get(e + 10, 2),
                        .crc = (uint32_t)get(e + 16, 4),
                        .packed = get(e + 20, 4),
                        .unpacked = get(e + 24, 4),
                        .offset = get(e + 42, 4) };
    char *text = qn_arena_alloc(arena, name + 1);
    memcpy(text, e + 46, name);
    if (name > 4 && strcmp(text + name - 4, ".npy") == 0)
        text[name - 4] = '\0';
    out->name = text;
    /* The 64-bit extension holds, in this order, those fields that are all ones. */
    const unsigned char *x = e + 46 + name, *end = x + extra;
    while (end - x >= 4) {
        uint64_t id = get(x, 2), length = get(x + 2, 2);
        x += 4;
        if ((uint64_t)(end - x) < length)
            return false;
        const unsigned char *field = x;
        uint64_t *const wide[] = { &out->unpacked, &out->packed, &out->offset };
        for (int i = 0; id == 1 && i < 3; i++)
            if (*wide[i] == 0xffffffff && x + length - field >= 8) {
                *wide[i] = get(field, 8);
                field += 8;
            }
        x += length;
    }
    *cursor += 46 + name + extra + comment;
    return true;
}

static qn_status inflate_entry(const npy_reader *r, const zip_entry *e, const unsigned char *from,
                               unsigned char *to)
{
    z_stream z = { .next_in = (unsigned char *)from, .next_out = to };
    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        return bad(r, "zlib cannot start");
    uint64_t in = e->packed, out = e->unpacked;
    int status = Z_OK;
    while (status == Z_OK) { /* zlib counts in 32 bits */
        uInt in_step = in > 1u << 30 ? 1u << 30 : (uInt)in, out_step = out > 1u << 30 ? 1u << 30 : (uInt)out;
        z.avail_in = in_step;
        z.avail_out = out_step;
        status = inflate(&z, Z_NO_FLUSH);
        in -= in_step - z.avail_in;
        out -= out_step - z.avail_out;
    }
    inflateEnd(&z);
    return status == Z_STREAM_END && out == 0 ? QUERN_OK : bad(r, "its compressed data is damaged");
}

static qn_status read_entry(const npy_reader *r, const zip_entry *e, const unsigned char *data, size_t size,
                            qn_npy *out)
{
    if (e->offset > size || size - e->offset < 30 || get(data + e->offset, 4) != 0x04034b50)
        return bad(r, "the archive is damaged");
    uint64_t start = e->offset + 30 + get(data + e->offset + 26, 2) + get(data + e->offset + 28, 2);
    if (start > size || size - start < e->packed)
        return bad(r, "the archive ends inside it");
    const unsigned char *contents = data + start;
    if (e->method == 8) {
        /* deflate packs at most 1032 to 1 */
        if (e->unpacked > e->packed * 1040 + 64)
            return bad(r, "its compressed data is damaged");
        unsigned char *copy = qn_arena_alloc(r->arena, e->unpacked);
        QN_TRY(inflate_entry(r, e, contents, copy));
        contents = copy;
    } else if (e->method != 0 || e->packed != e->unpacked) {
        return bad(r, "it is compressed by a method other than deflate");
    }
    uLong crc = crc32(0, NULL, 0);
    for (uint64_t at = 0; at < e->unpacked; at += 1u << 30) {
        uint64_t rest = e->unpacked - at;
        crc = crc32(crc, contents + at, rest > 1u << 30 ? 1u << 30 : (uInt)rest);
    }
    if (crc != e->crc)
        return bad(r, "its checksum is wrong");
    return parse_npy(r, (const char *)contents, e->unpacked, out);
}

qn_status qn_npy_read(const char *path, qn_arena *arena, int *out_n, qn_npy **out, qn_diags *diags)
{
    char *data;
    size_t size;
    QN_TRY(qn_read_file(path, arena, &data, &size, diags));
    npy_reader r = { .path = path, .arena = arena, .diags = diags };
    if (size < 2 || memcmp(data, "PK", 2) != 0) {
        *out_n = 1;
        *out = QN_NEW(arena, qn_npy);
        (*out)->name = "";
        return parse_npy(&r, data, size, *out);
    }
    const unsigned char *bytes = (const unsigned char *)data;
    uint64_t cursor, n;
    if (!find_directory(bytes, size, &cursor, &n) || n > size / 46)
        return bad(&r, "the archive has no directory: it is not complete");
    *out = QN_NEW_ARRAY(arena, qn_npy, n);
    for (uint64_t i = 0; i < n; i++) {
        zip_entry e;
        r.name = NULL;
        if (!next_entry(bytes, size, &cursor, arena, &e))
            return bad(&r, "the directory of the archive is damaged");
        r.name = e.name;
        (*out)[i].name = e.name;
        QN_TRY(read_entry(&r, &e, bytes, size, &(*out)[i]));
    }
    *out_n = (int)n;
    return QUERN_OK;
}

/* ---- writing an archive ---- */

static void put(FILE *f, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        putc((int)(value >> 8 * i & 255), f);
}

typedef struct stored {
    const char *name;
    uint64_t offset, size;
    uint32_t crc;
} stored;

/* The fields that local header and directory entry share; sizes and offset are in the 64-bit extension. */
static void put_common(FILE *f, const stored *e)
{
    put(f, 45, 2);         /* version that knows the extension */
    put(f, 0x800, 2);      /* names are UTF-8 */
    put(f, 0, 2);          /* stored */
    put(f, 0x21 << 16, 4); /* 1980-01-01: the same contents make the same file */
    put(f, e->crc, 4);
    put(f, 0xffffffff, 4);
    put(f, 0xffffffff, 4);
    put(f, strlen(e->name), 2);
}

static uint32_t crc_of(uint32_t crc, const void *data, size_t n)
{
    const unsigned char *at = data;
    for (; n > 1u << 30; n -= 1u << 30, at += 1u << 30)
        crc = (uint32_t)crc32(crc, at, 1u << 30);
    return (uint32_t)crc32(crc, at, (uInt)n);
}

static void write_entry(FILE *f, const qn_npy *array, stored *e, qn_arena *arena)
{
    size_t header_length, bytes = qn_array_bytes(&array->array);
    const char *header = npy_header(&array->array, arena, &header_length);
    e->name = qn_arena_printf(arena, "%s.npy", array->name);
    e->size = header_length + bytes;
    e->crc = crc_of(crc_of(0, header, header_length), array->array.data, bytes);
    put(f, 0x04034b50, 4);
    put_common(f, e);
    put(f, 20, 2);
    fputs(e->name, f);
    put(f, 1, 2);
    put(f, 16, 2);
    put(f, e->size, 8);
    put(f, e->size, 8);
    fwrite(header, 1, header_length, f);
    fwrite(array->array.data, 1, bytes, f);
}

static void write_directory_entry(FILE *f, const stored *e)
{
    put(f, 0x02014b50, 4);
    put(f, 45, 2);
    put_common(f, e);
    put(f, 28, 2);
    put(f, 0, 2); /* comment */
    put(f, 0, 2); /* disk */
    put(f, 0, 2); /* internal attributes */
    put(f, 0, 4); /* external attributes */
    put(f, 0xffffffff, 4);
    fputs(e->name, f);
    put(f, 1, 2);
    put(f, 24, 2);
    put(f, e->size, 8);
    put(f, e->size, 8);
    put(f, e->offset, 8);
}

static void write_directory_end(FILE *f, uint64_t n, uint64_t offset, uint64_t size)
{
    put(f, 0x06064b50, 4); /* the 64-bit one */
    put(f, 44, 8);
    put(f, 45, 2);
    put(f, 45, 2);
    put(f, 0, 8);
    put(f, n, 8);
    put(f, n, 8);
    put(f, size, 8);
    put(f, offset, 8);
    put(f, 0x07064b50, 4); /* where it is */
    put(f, 0, 4);
    put(f, offset + size, 8);
    put(f, 1, 4);
    put(f, 0x06054b50, 4); /* the 32-bit one, which says: see the other */
    put(f, 0, 4);
    put(f, 0xffff, 2);
    put(f, 0xffff, 2);
    put(f, 0xffffffff, 4);
    put(f, 0xffffffff, 4);
    put(f, 0, 2);
}

qn_status qn_npz_write(const char *path, int n, const qn_npy *arrays, qn_diags *diags)
{
    qn_output output;
    QN_TRY(qn_output_open(&output, path, diags));
    FILE *f = output.file;
    stored *entries = QN_NEW_ARRAY(diags->arena, stored, n);
    uint64_t at = 0;
    for (int i = 0; i < n; i++) {
        entries[i].offset = at;
        write_entry(f, &arrays[i], &entries[i], diags->arena);
        at += 30 + strlen(entries[i].name) + 20 + entries[i].size;
    }
    uint64_t directory = at;
    for (int i = 0; i < n; i++) {
        write_directory_entry(f, &entries[i]);
        at += 46 + strlen(entries[i].name) + 28;
    }
    write_directory_end(f, (uint64_t)n, directory, at - directory);
    return qn_output_commit(&output, diags);
}
