/* Tensors as memory: a counted storage, and views of it with dtype, dims, strides and offset. Public calls are in
 * quern_tensor.h; what computes is in driver/eager.h.
 *
 * A storage may lie on a GPU. Then `data` is an address there, with which the host does arithmetic, but which it must not
 * follow.
 *
 * Counts are atomic: any thread may make views and free them. Contents are the users' to guard. */
#ifndef QN_RUNTIME_TENSOR_H
#define QN_RUNTIME_TENSOR_H

#include <stdatomic.h>
#include <stdbool.h>

#include "quern_tensor.h"
#include "runtime/device.h"
#include "runtime/memory.h"

#define QN_TENSOR_MAX_RANK 16

typedef struct qn_storage {
    atomic_int users;
    char *data;
    size_t bytes;
    qn_device *device;     /* NULL: the CPU */
    qn_device_block block; /* there, where it is our own */
    qn_memory memory;      /* large memory of our own; otherwise data is malloc'ed, or somebody else's */
    void (*release)(void *user); /* of memory that is somebody else's; or NULL */
    void *user;
    bool foreign;
} qn_storage;

struct quern_tensor {
    atomic_int users;
    int dtype, rank;
    bool number; /* from quern_tensor_number: its dtype gives way */
    qn_storage *storage;
    char *data; /* first element */
    int64_t elements;
    int64_t *strides; /* in elements; dims + rank */
    int64_t dims[];
};

void qn_storage_retain(qn_storage *storage);
void qn_storage_release(qn_storage *storage);

/* What a public call gives: it belongs to the thread's scope where there is one. NULL is fine. The other functions here leave
 * scopes alone, and the caller frees what they give. */
quern_tensor *qn_tensor_give(quern_tensor *x);
quern_tensor *qn_tensor_number(int dtype, double real, int64_t whole);
/* Row-major, with a storage of its own: zeros, or whatever is there. NULL with a message. */
quern_tensor *qn_tensor_make(int dtype, int rank, const int64_t *dims, bool zeroed);
/* The same on a device (NULL: the CPU), with whatever is there. */
quern_tensor *qn_tensor_make_on(qn_device *device, int dtype, int rank, const int64_t *dims);
/* The caller's memory on the CPU, for as long as that is valid. NULL with a message. */
quern_tensor *qn_tensor_wrapped(const quern_array *array);
/* Another look at the storage of x, which begins at `data`. */
quern_tensor *qn_tensor_view(const quern_tensor *x, char *data, int rank, const int64_t *dims,
                             const int64_t *strides);
/* The view of x with these dims, none of them -1 and as many elements; NULL without a message where only a copy would do. */
quern_tensor *qn_tensor_reshaped(const quern_tensor *x, int rank, const int64_t *dims);
/* Puts the one dim that is -1 in; false with a message where x cannot have these dims. */
bool qn_tensor_fill_dims(const quern_tensor *x, int rank, const int64_t *dims, int64_t *out_dims);
bool qn_tensor_same_dims(const quern_tensor *x, int rank, const int64_t *dims);
/* The bytes from the first to the last of its elements, from `*out_low` to before `*out_high`. */
void qn_tensor_span(const quern_tensor *x, const char **out_low, const char **out_high);
/* Can two indices reach one element (a stride of 0)? Such a tensor is not written to. */
bool qn_tensor_repeats(const quern_tensor *x);
/* An axis from -rank to rank - 1, as 0 to rank - 1; -1 with a message. */
int qn_tensor_axis(const quern_tensor *x, int axis, const char *call);
/* "f32[3, 5]" into 256 bytes. */
const char *qn_tensor_text(const quern_tensor *x, char *out);
const char *qn_dims_text(int rank, const int64_t *dims, char *out); /* "[3, 5]" */

#endif
