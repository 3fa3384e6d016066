/* Tensors of constant data: their contents, which may be made late, hashes, equality. */
#include <string.h>
#include <sys/mman.h>

#include "ir/graph.h"
#include "ir/narrow.h"

qn_tensor *qn_tensor_new(qn_module *module, qn_dtype dtype, int rank, const int64_t *dims, const void *data)
{
    qn_tensor *tensor = QN_NEW(module->arena, qn_tensor);
    tensor->type = qn_type_static(module, dtype, rank, dims);
    const int64_t elements = qn_type_elements(&tensor->type);
    QN_ASSERT(elements >= 0 && (uint64_t)elements <= QN_ARENA_LIMIT / qn_dtype_bytes(dtype),
              "a tensor of %lld elements", (long long)elements);
    tensor->bytes = (size_t)elements * qn_dtype_bytes(dtype);
    void *copy = qn_arena_alloc(module->arena, tensor->bytes);
    if (data && tensor->bytes > 0)
        memcpy(copy, data, tensor->bytes);
    tensor->data = copy;
    return tensor;
}

/* ---- packed numbers ---- */

/* The box, a row at a time. */
static void read_packed(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to)
{
    const uint8_t *bytes = tensor->source->operands[0]->data;
    const int bits = qn_narrow_of(tensor->type.dtype)->bits, last = tensor->type.rank - 1;
    const int64_t length = extent[last];
    int64_t rows = 1, index[QN_MAX_RANK] = { 0 };
    for (int i = 0; i < last; i++)
        rows *= extent[i];
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = 0;
        for (int i = 0; i <= last; i++)
            at = at * tensor->type.dims[i]->value + low[i] + index[i];
        qn_narrow_unpack(bits, bytes, at, length, (uint8_t *)to + r * length);
        for (int i = last - 1; i >= 0 && ++index[i] == extent[i]; i--)
            index[i] = 0;
    }
}

const qn_tensor *qn_tensor_packed(qn_arena *arena, qn_type type, const void *bytes, bool mapped,
                                  const char *name)
{
    enum { SMALL = 1 << 16 };
    const int bits = qn_narrow_of(type.dtype)->bits;
    const int64_t n = qn_type_elements(&type);
    qn_tensor *t = QN_NEW(arena, qn_tensor);
    *t = (qn_tensor){ .type = type, .bytes = (size_t)n, .name = name };
    if (n < SMALL || type.rank == 0) {
        uint8_t *data = qn_arena_alloc(arena, t->bytes);
        qn_narrow_unpack(bits, bytes, 0, n, data);
        t->data = data;
        return t;
    }
    qn_tensor *packed = QN_NEW(arena, qn_tensor), **operand = QN_NEW(arena, qn_tensor *);
    *packed = (qn_tensor){
        .type = type, .data = bytes, .bytes = (size_t)(n * bits + 7) / 8, .mapped = mapped, .name = name
    };
    *operand = packed;
    qn_tensor_source *source = QN_NEW(arena, qn_tensor_source);
    *source = (qn_tensor_source){
        .operands = (const qn_tensor *const *)operand, .cost = 1, .arena = arena, .read = read_packed
    };
    t->source = source;
    return t;
}

/* How many tensors it is computed from. */
static int n_sources(const qn_tensor *tensor)
{
    return !tensor->source ? 0 : tensor->source->node ? tensor->source->node->n_operands : 1;
}

/* ---- contents ---- */

const void *qn_tensor_data(const qn_tensor *tensor)
{
    if (tensor->data || !tensor->source)
        return tensor->data;
    unsigned char *data = qn_arena_alloc(tensor->source->arena, tensor->bytes);
    const int64_t n = qn_tensor_pieces(tensor);
    for (int64_t i = 0; i < n; i++)
        qn_tensor_read(tensor, i, data + qn_tensor_piece(tensor, i).offset);
    ((qn_tensor *)tensor)->data = data;
    return data;
}

/* How the rows of a tensor that is made in pieces are cut: pieces of `count` indices of `axis`, all of what is inside. */
typedef struct cut {
    int axis;
    int64_t count, per_axis, inner; /* pieces along the axis; elements inside one index of it */
} cut;

static cut cut_of(const qn_tensor *tensor)
{
    const qn_type *type = &tensor->type;
    const int64_t most = QN_PIECE_BYTES / (int64_t)qn_dtype_bytes(type->dtype);
    cut c = { .axis = 0, .inner = qn_type_elements(type) };
    for (; c.axis < type->rank; c.axis++) {
        c.inner /= type->dims[c.axis]->value;
        if (c.inner <= most)
            break;
    }
    c.count = most / c.inner;
    c.per_axis = (type->dims[c.axis]->value + c.count - 1) / c.count;
    return c;
}

/* The box of elements that a piece is. */
static void piece_box(const qn_tensor *tensor, const cut *c, int64_t piece, int64_t *low, int64_t *extent)
{
    const qn_type *type = &tensor->type;
    const int64_t along = piece % c->per_axis * c->count, left = type->dims[c->axis]->value - along;
    int64_t outer = piece / c->per_axis;
    for (int i = 0; i < type->rank; i++) {
        low[i] = 0;
        extent[i] = type->dims[i]->value;
    }
    low[c->axis] = along;
    extent[c->axis] = left < c->count ? left : c->count;
    for (int i = c->axis - 1; i >= 0; i--) {
        low[i] = outer % type->dims[i]->value;
        outer /= type->dims[i]->value;
        extent[i] = 1;
    }
}

static bool is_made_in_pieces(const qn_tensor *tensor)
{
    return !tensor->data && tensor->source && tensor->bytes > 0;
}

int64_t qn_tensor_pieces(const qn_tensor *tensor)
{
    if (!is_made_in_pieces(tensor))
        return (int64_t)((tensor->bytes + QN_PIECE_BYTES - 1) / QN_PIECE_BYTES);
    const cut c = cut_of(tensor);
    int64_t n = c.per_axis;
    for (int i = 0; i < c.axis; i++)
        n *= tensor->type.dims[i]->value;
    return n;
}

qn_piece qn_tensor_piece(const qn_tensor *tensor, int64_t piece)
{
    if (!is_made_in_pieces(tensor)) {
        const size_t offset = (size_t)piece * QN_PIECE_BYTES, left = tensor->bytes - offset;
        return (qn_piece){ offset, left < QN_PIECE_BYTES ? left : QN_PIECE_BYTES };
    }
    const cut c = cut_of(tensor);
    int64_t low[QN_MAX_RANK], extent[QN_MAX_RANK], at = 0, n = 1;
    piece_box(tensor, &c, piece, low, extent);
    for (int i = 0; i < tensor->type.rank; i++) {
        at = at * tensor->type.dims[i]->value + low[i];
        n *= extent[i];
    }
    const size_t element = qn_dtype_bytes(tensor->type.dtype);
    return (qn_piece){ (size_t)at * element, (size_t)n * element };
}

void qn_tensor_read(const qn_tensor *tensor, int64_t piece, void *to)
{
    if (is_made_in_pieces(tensor)) {
        const cut c = cut_of(tensor);
        int64_t low[QN_MAX_RANK], extent[QN_MAX_RANK];
        piece_box(tensor, &c, piece, low, extent);
        tensor->source->read(tensor, low, extent, to);
        return;
    }
    const qn_piece p = qn_tensor_piece(tensor, piece);
    memcpy(to, (const char *)tensor->data + p.offset, p.bytes);
    if (tensor->mapped)
        qn_release_mapped((const char *)tensor->data + p.offset, p.bytes);
}

void qn_release_mapped(const void *at, size_t bytes)
{
    enum { PAGE = 64 * 1024 }; /* the largest that is in use */
    const uintptr_t begin = ((uintptr_t)at + PAGE - 1) / PAGE * PAGE,
                    end = ((uintptr_t)at + bytes) / PAGE * PAGE;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void qn_tensor_release(const qn_tensor *tensor)
{
    if (tensor->data && tensor->mapped)
        qn_release_mapped(tensor->data, tensor->bytes);
    for (int i = 0; !tensor->data && i < n_sources(tensor); i++)
        qn_tensor_release(tensor->source->operands[i]);
}

/* ---- hashing: multiplications to 128 bits, folded; three independent chains keep the multiplier busy ---- */

__extension__ typedef unsigned __int128 u128;

static uint64_t fold(uint64_t a, uint64_t b)
{
    const u128 product = (u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64) ^ a ^ b; /* a factor of 0 must not lose the other */
}

static uint64_t load64(const unsigned char *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

static uint64_t hash_bytes(const unsigned char *at, size_t n, uint64_t seed)
{
    static const uint64_t odd[4] = { 0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu,
                                     0xd6e8feb86659fd93u };
    uint64_t h = seed ^ odd[0], h1 = seed ^ odd[1], h2 = seed ^ odd[2];
    size_t left = n;
    for (; left >= 48; left -= 48, at += 48) {
        h = fold(load64(at) ^ odd[0], load64(at + 8) ^ h);
        h1 = fold(load64(at + 16) ^ odd[1], load64(at + 24) ^ h1);
        h2 = fold(load64(at + 32) ^ odd[2], load64(at + 40) ^ h2);
    }
    h ^= fold(h1 ^ odd[3], h2 ^ odd[1]);
    for (; left > 0; at += left < 16 ? left : 16, left -= left < 16 ? left : 16) {
        unsigned char block[16] = { 0 };
        memcpy(block, at, left < 16 ? left : 16);
        h = fold(load64(block) ^ odd[3], load64(block + 8) ^ h);
    }
    return fold(h ^ odd[1], (uint64_t)n ^ odd[2]);
}

static uint64_t hash_type(const qn_tensor *tensor)
{
    uint64_t head[QN_MAX_RANK + 1] = { (uint64_t)tensor->type.dtype };
    for (int i = 0; i < tensor->type.rank; i++)
        head[i + 1] = (uint64_t)tensor->type.dims[i]->value;
    return hash_bytes((const unsigned char *)head, (size_t)(tensor->type.rank + 1) * sizeof *head, 0);
}

uint64_t qn_tensor_hash(const qn_tensor *tensor)
{
    if (tensor->hash)
        return tensor->hash;
    uint64_t h = hash_bytes(qn_tensor_data(tensor), tensor->bytes, hash_type(tensor));
    h += h == 0; /* 0 means "not computed yet" */
    ((qn_tensor *)tensor)->hash = h;
    return h;
}

/* ---- equality ---- */

uint64_t qn_tensor_key(const qn_tensor *tensor)
{
    enum { ENDS = 512 }; /* of large ones both ends alone: each page of a mapped file has to be found first */
    const unsigned char *data = tensor->data;
    if (!data && tensor->source) {
        uint64_t h = tensor->source->node ? (uint64_t)tensor->source->node->op + 1 : 0;
        for (int i = 0; i < n_sources(tensor); i++)
            h = fold(h, qn_tensor_key(tensor->source->operands[i]));
        return h;
    }
    if (tensor->bytes <= 2 * ENDS)
        return hash_bytes(data, tensor->bytes, tensor->bytes);
    return hash_bytes(data + tensor->bytes - ENDS, ENDS, hash_bytes(data, ENDS, tensor->bytes));
}

/* Of types that may belong to two modules. */
static bool equal_statics(const qn_type *a, const qn_type *b)
{
    bool same = a->dtype == b->dtype && a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++)
        same = a->dims[i]->value == b->dims[i]->value;
    return same;
}

/* Of nodes of constants: their dims are numbers. */
static bool equal_attrs(const qn_attr *a, const qn_attr *b)
{
    if (qn_attrs[a->key].kind != QN_ATTR_KIND_DIMS)
        return qn_attr_equal(a, b);
    bool same = a->key == b->key && a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = a->dims[i]->value == b->dims[i]->value;
    return same;
}

bool qn_tensor_same_bytes(const qn_tensor *a, const qn_tensor *b)
{
    if (a->bytes != b->bytes)
        return false;
    if (a == b || (a->data && a->data == b->data) || a->bytes == 0)
        return true;
    if (a->data && b->data)
        return memcmp(a->data, b->data, a->bytes) == 0;
    if (a->data || b->data)
        return false;
    const qn_node *x = a->source->node, *y = b->source->node;
    if (!x || !y)
        return x == y && a->source->read == b->source->read && equal_statics(&a->type, &b->type) &&
               qn_tensor_same_bytes(a->source->operands[0], b->source->operands[0]);
    bool same = x->op == y->op && x->n_operands == y->n_operands && x->n_attrs == y->n_attrs &&
                equal_statics(&a->type, &b->type);
    for (int i = 0; same && i < x->n_attrs; i++)
        same = equal_attrs(&x->attrs[i], &y->attrs[i]);
    for (int i = 0; same && i < x->n_operands; i++)
        same = equal_statics(&a->source->operands[i]->type, &b->source->operands[i]->type) &&
               qn_tensor_same_bytes(a->source->operands[i], b->source->operands[i]);
    return same;
}
