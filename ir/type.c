/* Types of values, and tensors of constant data. */
#include <string.h>

#include "ir/graph.h"

bool qn_type_equal(const qn_type *a, const qn_type *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           (a->rank == 0 || memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims) == 0);
}

bool qn_type_is_static(const qn_type *type)
{
    for (int i = 0; i < type->rank; i++)
        if (!qn_dim_is_const(type->dims[i]))
            return false;
    return true;
}

int64_t qn_type_elements(const qn_type *type)
{
    int64_t n = 1;
    bool overflow = false;
    for (int i = 0; i < type->rank; i++) {
        QN_ASSERT(qn_dim_is_const(type->dims[i]), "the number of elements of a type that is not static");
        if (type->dims[i]->value == 0)
            return 0;
        overflow |= __builtin_mul_overflow(n, type->dims[i]->value, &n);
    }
    return overflow ? INT64_MAX : n;
}

qn_dim qn_type_elements_dim(qn_dims *dims, const qn_type *type)
{
    qn_dim n = qn_dim_const(dims, 1);
    for (int i = 0; i < type->rank; i++)
        n = qn_dim_mul(dims, n, type->dims[i]);
    return n;
}

const char *qn_type_print(const qn_type *type, qn_arena *arena)
{
    const char *text = qn_arena_printf(arena, "%s[", qn_dtype_name(type->dtype));
    for (int i = 0; i < type->rank; i++)
        text = qn_arena_printf(arena, i ? "%s, %s" : "%s%s", text, qn_dim_print(type->dims[i], arena));
    return qn_arena_printf(arena, "%s]", text);
}

qn_type qn_type_make(qn_module *module, qn_dtype dtype, int rank, const qn_dim *dims)
{
    QN_ASSERT(rank >= 0 && rank <= QN_MAX_RANK, "a type of rank %d", rank);
    return (qn_type){ dtype, rank, qn_arena_copy(module->arena, dims, (size_t)rank * sizeof *dims) };
}

qn_type qn_type_static(qn_module *module, qn_dtype dtype, int rank, const int64_t *dims)
{
    qn_dim extents[QN_MAX_RANK];
    QN_ASSERT(rank >= 0 && rank <= QN_MAX_RANK, "a type of rank %d", rank);
    for (int i = 0; i < rank; i++)
        extents[i] = qn_dim_const(module->dims, dims[i]);
    return qn_type_make(module, dtype, rank, extents);
}

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

uint64_t qn_tensor_hash(const qn_tensor *tensor)
{
    if (tensor->hash)
        return tensor->hash;
    uint64_t head[QN_MAX_RANK + 1] = { (uint64_t)tensor->type.dtype };
    for (int i = 0; i < tensor->type.rank; i++)
        head[i + 1] = (uint64_t)tensor->type.dims[i]->value;
    const size_t head_bytes = (size_t)(tensor->type.rank + 1) * sizeof *head;
    uint64_t h = hash_bytes((const unsigned char *)head, head_bytes, 0);
    h = hash_bytes(tensor->data, tensor->bytes, h);
    h += h == 0; /* 0 means "not computed yet" */
    ((qn_tensor *)tensor)->hash = h;
    return h;
}
