#include "tests/support/onnx_writer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void put(onnx_bytes *to, const void *data, size_t n)
{
    if (to->capacity - to->n < n) {
        to->capacity = to->capacity * 2 + n;
        to->data = realloc(to->data, to->capacity);
        assert(to->data);
    }
    if (n)
        memcpy(to->data + to->n, data, n);
    to->n += n;
}

static void put_varint(onnx_bytes *to, uint64_t value)
{
    do {
        unsigned char byte = (unsigned char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        put(to, &byte, 1);
        value >>= 7;
    } while (value);
}

void onnx_put_int(onnx_bytes *to, int field, int64_t value)
{
    put_varint(to, (uint64_t)field << 3);
    put_varint(to, (uint64_t)value);
}

void onnx_put_bytes(onnx_bytes *to, int field, const void *data, size_t n)
{
    put_varint(to, (uint64_t)field << 3 | 2);
    put_varint(to, n);
    put(to, data, n);
}

void onnx_put_string(onnx_bytes *to, int field, const char *s)
{
    onnx_put_bytes(to, field, s, strlen(s));
}

void onnx_put_message(onnx_bytes *to, int field, onnx_bytes *message)
{
    onnx_put_bytes(to, field, message->data, message->n);
    free(message->data);
    *message = (onnx_bytes){ 0 };
}

void onnx_put_value(onnx_bytes *graph, int field, const char *name, int elem, const char *dims)
{
    onnx_bytes value = { 0 }, type = { 0 }, tensor = { 0 }, shape = { 0 };
    onnx_put_int(&tensor, 1, elem);
    for (const char *at = dims; at && *at;) {
        size_t length = strcspn(at, ",");
        onnx_bytes dim = { 0 };
        if (*at == '-' || (*at >= '0' && *at <= '9'))
            onnx_put_int(&dim, 1, strtoll(at, NULL, 10));
        else if (*at != '?')
            onnx_put_bytes(&dim, 2, at, length);
        onnx_put_message(&shape, 1, &dim);
        at += length + (at[length] == ',');
    }
    if (dims)
        onnx_put_message(&tensor, 2, &shape);
    onnx_put_message(&type, 1, &tensor);
    onnx_put_string(&value, 1, name);
    onnx_put_message(&value, 2, &type);
    onnx_put_message(graph, field, &value);
}

onnx_bytes onnx_tensor(const char *name, int elem, int rank, const int64_t *dims, const void *data, size_t n)
{
    onnx_bytes tensor = { 0 };
    for (int i = 0; i < rank; i++)
        onnx_put_int(&tensor, 1, dims[i]);
    onnx_put_int(&tensor, 2, elem);
    onnx_put_string(&tensor, 8, name);
    onnx_put_bytes(&tensor, 9, data, n);
    return tensor;
}

void onnx_initializer(onnx_bytes *graph, const char *name, int elem, int rank, const int64_t *dims,
                      const void *data)
{
    size_t n = elem == ONNX_FLOAT ? 4 : elem == ONNX_BOOL ? 1 : 8;
    for (int i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    onnx_bytes tensor = onnx_tensor(name, elem, rank, dims, data, n);
    onnx_put_message(graph, 5, &tensor);
}

void onnx_ints(onnx_bytes *graph, const char *name, int n, const int64_t *values)
{
    int64_t dims = n;
    onnx_initializer(graph, name, ONNX_INT64, 1, &dims, values);
}

static void put_names(onnx_bytes *node, int field, const char *names)
{
    while (*names) {
        size_t length = strcspn(names, " ");
        onnx_put_bytes(node, field, names, length == 1 && *names == '-' ? 0 : length);
        names += length + (names[length] == ' ');
    }
}

onnx_bytes onnx_node(const char *op, const char *inputs, const char *outputs)
{
    onnx_bytes node = { 0 };
    put_names(&node, 1, inputs);
    put_names(&node, 2, outputs);
    onnx_put_string(&node, 4, op);
    return node;
}

void onnx_attr_int(onnx_bytes *node, const char *name, int64_t value)
{
    onnx_bytes a = { 0 };
    onnx_put_string(&a, 1, name);
    onnx_put_int(&a, 3, value);
    onnx_put_int(&a, 20, 2);
    onnx_put_message(node, 5, &a);
}

void onnx_attr_ints(onnx_bytes *node, const char *name, int n, const int64_t *values)
{
    onnx_bytes a = { 0 };
    onnx_put_string(&a, 1, name);
    for (int i = 0; i < n; i++)
        onnx_put_int(&a, 8, values[i]);
    onnx_put_int(&a, 20, 7);
    onnx_put_message(node, 5, &a);
}

void onnx_attr_string(onnx_bytes *node, const char *name, const char *value)
{
    onnx_bytes a = { 0 };
    onnx_put_string(&a, 1, name);
    onnx_put_string(&a, 4, value);
    onnx_put_int(&a, 20, 3);
    onnx_put_message(node, 5, &a);
}

void onnx_attr_graph(onnx_bytes *node, const char *name, onnx_bytes *graph)
{
    onnx_bytes a = { 0 };
    onnx_put_string(&a, 1, name);
    onnx_put_message(&a, 6, graph);
    onnx_put_int(&a, 20, 5);
    onnx_put_message(node, 5, &a);
}

void onnx_put_node(onnx_bytes *graph, onnx_bytes *node)
{
    onnx_put_message(graph, 1, node);
}

void onnx_simple(onnx_bytes *graph, const char *op, const char *inputs, const char *outputs)
{
    onnx_bytes node = onnx_node(op, inputs, outputs);
    onnx_put_node(graph, &node);
}

onnx_bytes onnx_model(onnx_bytes *graph, int64_t opset)
{
    onnx_bytes model = { 0 }, id = { 0 };
    onnx_put_int(&model, 1, 8);
    onnx_put_message(&model, 7, graph);
    onnx_put_string(&id, 1, "");
    onnx_put_int(&id, 2, opset);
    onnx_put_message(&model, 8, &id);
    return model;
}
