/* Tensors of the model file as constant data: in place where the bytes are laid out as ours, else converted. */
#include <string.h>

#include "frontend/onnx/import.h"
#include "ir/narrow.h"

/* What the model's element types are to us. Those without a dtype cannot be values. */
static const struct {
    const char *name;
    qn_dtype dtype;
    int bits; /* an element in raw data */
} elems[QN_ONNX_N_ELEMS] = {
    [QN_ONNX_UNDEFINED] = { "undefined", QUERN_INVALID_DTYPE, 0 },
    [QN_ONNX_FLOAT] = { "float", QUERN_F32, 32 },
    [QN_ONNX_UINT8] = { "uint8", QUERN_U8, 8 },
    [QN_ONNX_INT8] = { "int8", QUERN_I8, 8 },
    [QN_ONNX_UINT16] = { "uint16", QUERN_U16, 16 },
    [QN_ONNX_INT16] = { "int16", QUERN_I16, 16 },
    [QN_ONNX_INT32] = { "int32", QUERN_I32, 32 },
    [QN_ONNX_INT64] = { "int64", QUERN_I64, 64 },
    [QN_ONNX_STRING] = { "string", QUERN_INVALID_DTYPE, 0 },
    [QN_ONNX_BOOL] = { "bool", QUERN_BOOL, 8 },
    [QN_ONNX_FLOAT16] = { "float16", QUERN_F16, 16 },
    [QN_ONNX_DOUBLE] = { "double", QUERN_F64, 64 },
    [QN_ONNX_UINT32] = { "uint32", QUERN_U32, 32 },
    [QN_ONNX_UINT64] = { "uint64", QUERN_U64, 64 },
    [QN_ONNX_COMPLEX64] = { "complex64", QUERN_INVALID_DTYPE, 0 },
    [QN_ONNX_COMPLEX128] = { "complex128", QUERN_INVALID_DTYPE, 0 },
    [QN_ONNX_BFLOAT16] = { "bfloat16", QUERN_BF16, 16 },
    [QN_ONNX_FLOAT8E4M3FN] = { "float8e4m3fn", QUERN_F8E4M3FN, 8 },
    [QN_ONNX_FLOAT8E4M3FNUZ] = { "float8e4m3fnuz", QUERN_F8E4M3FNUZ, 8 },
    [QN_ONNX_FLOAT8E5M2] = { "float8e5m2", QUERN_F8E5M2, 8 },
    [QN_ONNX_FLOAT8E5M2FNUZ] = { "float8e5m2fnuz", QUERN_F8E5M2FNUZ, 8 },
    [QN_ONNX_UINT4] = { "uint4", QUERN_U4, 4 },
    [QN_ONNX_INT4] = { "int4", QUERN_I4, 4 },
    [QN_ONNX_FLOAT4E2M1] = { "float4e2m1", QUERN_F4E2M1, 4 },
    [QN_ONNX_FLOAT8E8M0] = { "float8e8m0", QUERN_F8E8M0, 8 },
    [QN_ONNX_UINT2] = { "uint2", QUERN_U2, 2 },
    [QN_ONNX_INT2] = { "int2", QUERN_I2, 2 },
    [QN_ONNX_FLOAT6E2M3] = { "float6e2m3", QUERN_INVALID_DTYPE, 6 },
    [QN_ONNX_FLOAT6E3M2] = { "float6e3m2", QUERN_INVALID_DTYPE, 6 },
};

const char *qn_onnx_elem_name(int elem)
{
    return elem >= 0 && elem < QN_ONNX_N_ELEMS ? elems[elem].name : "unknown";
}

qn_dtype qn_onnx_elem_dtype(int elem)
{
    return elem >= 0 && elem < QN_ONNX_N_ELEMS ? elems[elem].dtype : QUERN_INVALID_DTYPE;
}

qn_onnx_elem qn_onnx_dtype_elem(qn_dtype dtype)
{
    for (int elem = 1; elem < QN_ONNX_N_ELEMS; elem++)
        if (elems[elem].dtype == dtype)
            return (qn_onnx_elem)elem;
    return QN_ONNX_UNDEFINED;
}

const qn_tensor *qn_onnx_tensor_of(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *dims,
                                   const void *data)
{
    return qn_tensor_new(im->module, dtype, rank, dims, data);
}

/* A tensor of the data where it lies. */
static qn_tensor *tensor_in_place(qn_onnx_import *im, const Onnx__Tensor *proto, qn_dtype dtype,
                                  const void *data, size_t bytes)
{
    qn_tensor *t = QN_NEW(im->arena, qn_tensor);
    t->type = qn_type_static(im->module, dtype, (int)proto->n_dims, proto->dims);
    t->data = data;
    t->bytes = bytes;
    t->name = proto->name && *proto->name ? proto->name : NULL;
    return t;
}

const qn_tensor *qn_onnx_tensor_of_bits(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *dims,
                                        const qn_tensor *packed)
{
    const qn_type type = qn_type_static(im->module, dtype, rank, dims);
    if (qn_dtype_is_stored(dtype))
        return qn_tensor_packed(im->arena, type, packed->data, packed->mapped, packed->name);
    qn_tensor *t = QN_NEW(im->arena, qn_tensor);
    *t = *packed;
    t->type = type;
    t->hash = 0;
    return t;
}

/* Elements in a field of their type; small integers, 16-bit floats' bits and bools are in int32_data. */
typedef struct typed_data {
    const uint8_t *from;
    size_t count, stride;
} typed_data;

static typed_data typed_data_of(const Onnx__Tensor *proto)
{
    switch (proto->data_type) {
    case QN_ONNX_FLOAT: return (typed_data){ (const uint8_t *)proto->float_data, proto->n_float_data, 4 };
    case QN_ONNX_DOUBLE: return (typed_data){ (const uint8_t *)proto->double_data, proto->n_double_data, 8 };
    case QN_ONNX_INT64: return (typed_data){ (const uint8_t *)proto->int64_data, proto->n_int64_data, 8 };
    case QN_ONNX_UINT32:
    case QN_ONNX_UINT64: return (typed_data){ (const uint8_t *)proto->uint64_data, proto->n_uint64_data, 8 };
    default: return (typed_data){ (const uint8_t *)proto->int32_data, proto->n_int32_data, 4 };
    }
}

/* The low bytes of each element come first, as everything is little-endian. Packed types: one byte of them each. */
static void copy_typed(const typed_data *data, size_t bytes, uint8_t *to)
{
    for (size_t i = 0; i < data->count; i++)
        memcpy(to + i * bytes, data->from + i * data->stride, bytes);
}

const qn_tensor *qn_onnx_tensor(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc)
{
    const char *name = proto->name && *proto->name ? proto->name : "(without a name)";
    qn_dtype dtype = qn_onnx_elem_dtype(proto->data_type);
    if (dtype == QUERN_INVALID_DTYPE) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, loc,
                 "tensor %s has data type %s, which is not supported", name,
                 qn_onnx_elem_name(proto->data_type));
        return NULL;
    }
    if (proto->n_dims > QN_MAX_RANK) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, loc,
                 "tensor %s has %zu dimensions; at most %d are supported", name, proto->n_dims, QN_MAX_RANK);
        return NULL;
    }
    int64_t n = 1;
    bool empty = false, overflow = false;
    for (size_t i = 0; i < proto->n_dims; i++) {
        if (proto->dims[i] < 0) {
            qn_error(im->diags, QUERN_ERROR_MODEL, loc, "tensor %s has a negative dimension", name);
            return NULL;
        }
        empty |= proto->dims[i] == 0;
        overflow |= proto->dims[i] >= QN_DIM_MAX_VALUE || __builtin_mul_overflow(n, proto->dims[i], &n);
        overflow |= n >= QN_DIM_MAX_VALUE;
    }
    if (overflow) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc, "tensor %s is too large", name);
        return NULL;
    }
    if (empty)
        n = 0;
    int bits = elems[proto->data_type].bits;
    size_t bytes = (size_t)n * qn_dtype_bytes(dtype), raw_bytes = ((size_t)n * (size_t)bits + 7) / 8;
    const uint8_t *raw = NULL;
    size_t raw_size = 0;
    bool mapped = false; /* from a file, not from the caller's memory */
    if (proto->data_location == 1) {
        mapped = true;
        raw = qn_onnx_external_bytes(im, proto, loc, &raw_size);
        if (!raw)
            return NULL;
    } else if (proto->mapped_size) {
        mapped = im->folder != NULL;
        raw = im->bytes + proto->mapped_offset;
        raw_size = proto->mapped_size;
    } else if (proto->raw_data.len) {
        raw = proto->raw_data.data;
        raw_size = proto->raw_data.len;
    }
    if (raw && raw_size != raw_bytes) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc,
                 "tensor %s has %zu bytes of data where its dimensions ask for %zu", name, raw_size,
                 raw_bytes);
        return NULL;
    }
    if (!raw && n) {
        typed_data typed = typed_data_of(proto);
        size_t element = bits < 8 ? 1 : qn_dtype_bytes(dtype);
        if (typed.count != raw_bytes / element) {
            qn_error(im->diags, QUERN_ERROR_MODEL, loc,
                     "tensor %s has %zu elements of data where its dimensions ask for %zu", name, typed.count,
                     raw_bytes / element);
            return NULL;
        }
        uint8_t *copy = qn_arena_alloc(im->arena, raw_bytes);
        copy_typed(&typed, element, copy);
        raw = copy;
        raw_size = raw_bytes;
    }
    bool plain = bits >= 8;
    for (size_t i = 0; dtype == QUERN_BOOL && i < raw_size && plain; i++)
        plain = raw[i] <= 1;
    if (plain) {
        qn_tensor *t = tensor_in_place(im, proto, dtype, raw, bytes);
        t->mapped = mapped;
        return t;
    }
    if (dtype != QUERN_BOOL)
        return qn_tensor_packed(im->arena, qn_type_static(im->module, dtype, (int)proto->n_dims, proto->dims),
                                raw, mapped, proto->name && *proto->name ? proto->name : NULL);
    uint8_t *data = qn_arena_alloc(im->arena, bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = raw[i] != 0;
    return tensor_in_place(im, proto, dtype, data, bytes);
}

/* Indices are positions in the flattened tensor, or one row of coordinates each. */
const qn_tensor *qn_onnx_sparse_tensor(qn_onnx_import *im, const Onnx__SparseTensor *proto, const qn_loc *loc)
{
    if (!proto->values || !proto->indices || proto->n_dims > QN_MAX_RANK) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc, "a sparse tensor lacks its values or indices");
        return NULL;
    }
    const qn_tensor *values = qn_onnx_tensor(im, proto->values, loc);
    const qn_tensor *indices = qn_onnx_tensor(im, proto->indices, loc);
    if (!values || !indices)
        return NULL;
    int64_t n = 1, n_values = qn_type_elements(&values->type);
    bool good = indices->type.dtype == QUERN_I64 && values->type.rank == 1;
    for (size_t i = 0; i < proto->n_dims && good; i++)
        good = proto->dims[i] >= 0 && !__builtin_mul_overflow(n, proto->dims[i], &n) && n < QN_DIM_MAX_VALUE;
    size_t size = qn_dtype_bytes(values->type.dtype), per_value = 1;
    if (good && indices->type.rank == 2)
        per_value = proto->n_dims;
    good = good && qn_type_elements(&indices->type) == n_values * (int64_t)per_value;
    if (good && n > (1 << 26)) { /* it is made dense: bounds what a small file can ask for */
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, loc, "a sparse tensor of %lld elements is too large",
                 (long long)n);
        return NULL;
    }
    uint8_t *data = good ? qn_arena_alloc(im->arena, (size_t)n * size) : NULL;
    for (int64_t i = 0; i < n_values && good; i++) {
        int64_t at = 0;
        for (size_t k = 0; k < per_value; k++) {
            int64_t index;
            memcpy(&index, (const char *)indices->data + ((size_t)i * per_value + k) * 8, 8);
            int64_t extent = indices->type.rank == 2 ? proto->dims[k] : n;
            good &= index >= 0 && index < extent;
            at = at * extent + index;
        }
        if (good)
            memcpy(data + (size_t)at * size, (const char *)values->data + (size_t)i * size, size);
    }
    if (!good) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc,
                 "a sparse tensor has indices that do not fit its dimensions");
        return NULL;
    }
    qn_tensor *t = QN_NEW(im->arena, qn_tensor);
    t->type = qn_type_static(im->module, values->type.dtype, (int)proto->n_dims, proto->dims);
    t->data = data;
    t->bytes = (size_t)n * size;
    t->name = values->name;
    return t;
}
