/* The tape of quern_tensor.h: a graph of what a thread's operations compute.
 *
 * The tape knows storages, not tensors: for each one that was read or written while it recorded, the value that stands for
 * its contents now. A tensor is read as a view of that value, and written by a value for the storage with the view's
 * elements replaced; so views and operations in place need nothing of their own.
 *
 * Its graph runs on the CPU, or on the GPU that some of the storages are on: the others are copied there and back.
 *
 * A storage that was there before is an input. What it held when it was first read is kept aside when it is about to be
 * written, for the gradients that are computed meanwhile. */
#ifndef QN_DRIVER_TAPE_H
#define QN_DRIVER_TAPE_H

#include "driver/eager.h"

typedef struct qn_taped {
    qn_storage *storage; /* retained: its address is its name */
    qn_dtype dtype;
    int input;             /* of the graph; -1: made on the tape */
    qn_value *first, *now; /* contents, with any dims, row-major */
    char *before;          /* contents at the beginning, of an input that was written since; or NULL */
} qn_taped;

struct quern_tape {
    bool recording;
    const qn_device
        *device;          /* that its graph runs on: the GPU of the tensors; NULL: they are all on the CPU */
    quern_module *handle; /* of the module: modules made of the tape use its constants */
    qn_module *module;
    qn_builder build; /* into the module's only function */
    qn_diags diags;
    int n, capacity;
    qn_taped *items;
    int n_slots; /* a power of two */
    int *slots;  /* by hash of the storage's address: number of the item + 1, or 0 */
};

/* ---- tape.c ---- */

/* Is a tape of this thread recording? */
bool qn_tape_active(void);
/* The thread computes on, or copies to or from, a device (NULL: the CPU). False with a message where the tape, if there is one,
 * is for another GPU. */
bool qn_tape_may_use(const qn_device *device);
/* `target` is about to be written. */
bool qn_tape_will_write(const quern_tensor *target);
/* `result` now holds what the call computes. These give false with a message. */
bool qn_tape_record(const qn_eager_call *call, const quern_tensor *result);
/* The elements of `to` are now those of `from`, which has the same dims. */
bool qn_tape_record_copy(const quern_tensor *to, const quern_tensor *from);

qn_taped *qn_tape_find(quern_tape *tape, const qn_storage *storage); /* NULL: never heard of */
qn_value *qn_tape_read(quern_tape *tape, const quern_tensor *x);     /* with the dims of x */
bool qn_tape_write(quern_tape *tape, const quern_tensor *x, qn_value *value);
/* Status of what was reported since the last call, with the message set; what is reported next is heard of again. */
int qn_tape_status(quern_tape *tape, const char *call);

/* ---- tape_view.c ---- */

/* The tensor that looks at a storage whose contents are `contents`. */
qn_value *qn_tape_view(qn_builder *b, qn_value *contents, const quern_tensor *x);
/* The contents with the elements that x looks at replaced. */
qn_value *qn_tape_replace(qn_builder *b, qn_value *contents, const quern_tensor *x, qn_value *value);

#endif
