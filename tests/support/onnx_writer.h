/* Writes ONNX models for tests, field by field, so that broken ones can be written too. The writer shares no code with
 * the importer. Everything is on the heap; onnx_finish hands the bytes over. */
#ifndef QN_TESTS_ONNX_WRITER_H
#define QN_TESTS_ONNX_WRITER_H

#include <stddef.h>
#include <stdint.h>

typedef struct onnx_bytes {
    unsigned char *data;
    size_t n, capacity;
} onnx_bytes;

void onnx_put_int(onnx_bytes *to, int field, int64_t value);
void onnx_put_bytes(onnx_bytes *to, int field, const void *data, size_t n);
void onnx_put_string(onnx_bytes *to, int field, const char *s);
void onnx_put_message(onnx_bytes *to, int field, onnx_bytes *message); /* and frees it */

enum { ONNX_FLOAT = 1, ONNX_INT64 = 7, ONNX_BOOL = 9 };

/* "3,batch,?" as the dims of a tensor type. NULL: no shape. */
void onnx_put_value(onnx_bytes *graph, int field, const char *name, int elem, const char *dims);
static inline void onnx_input(onnx_bytes *graph, const char *name, int elem, const char *dims)
{
    onnx_put_value(graph, 11, name, elem, dims);
}
static inline void onnx_output(onnx_bytes *graph, const char *name, int elem)
{
    onnx_put_value(graph, 12, name, elem, NULL);
}

/* A tensor with raw data; to be put as field 5 of a graph (initializer) or 5 of an attribute. */
onnx_bytes onnx_tensor(const char *name, int elem, int rank, const int64_t *dims, const void *data, size_t n);
void onnx_initializer(onnx_bytes *graph, const char *name, int elem, int rank, const int64_t *dims,
                      const void *data);
void onnx_ints(onnx_bytes *graph, const char *name, int n, const int64_t *values); /* an initializer i64[n] */

/* A node; names are separated by spaces, "-" is a left-out one. Attributes are added before onnx_put_node. */
onnx_bytes onnx_node(const char *op, const char *inputs, const char *outputs);
void onnx_attr_int(onnx_bytes *node, const char *name, int64_t value);
void onnx_attr_ints(onnx_bytes *node, const char *name, int n, const int64_t *values);
void onnx_attr_string(onnx_bytes *node, const char *name, const char *value);
void onnx_attr_graph(onnx_bytes *node, const char *name, onnx_bytes *graph); /* and frees it */
void onnx_put_node(onnx_bytes *graph, onnx_bytes *node);                     /* and frees it */
void onnx_simple(onnx_bytes *graph, const char *op, const char *inputs, const char *outputs);

/* The model around a graph, which is freed. */
onnx_bytes onnx_model(onnx_bytes *graph, int64_t opset);

#endif
