/* Behind quern_tensor.h: operations on tensors as kernels of the compiler.
 *
 * A call is described as a small graph over operands whose axes are symbols. Kernels are kept by that description, without
 * the symbols' values: any thread may ask for one, and the first who does compiles it. The tape builds the same graph into
 * its own. */
#ifndef QN_DRIVER_EAGER_H
#define QN_DRIVER_EAGER_H

#include "ir/build.h"
#include "runtime/tensor.h"

#define QN_EAGER_OPERANDS 16
#define QN_EAGER_SYMBOLS 64
#define QN_EAGER_ATTRS 24

typedef struct qn_eager_call qn_eager_call;

/* Builds the result from the operands. dims[i] is symbol i. NULL after a report. */
typedef qn_value *(*qn_eager_build)(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                                    const qn_dim *dims);

typedef struct qn_eager_operand {
    const quern_tensor *tensor; /* row-major, whatever its own dims are */
    quern_tensor *temporary;    /* the same, where it was made for the call */
    bool extent;                /* only its axes matter */
    int rank;
    uint8_t axes[QN_TENSOR_MAX_RANK]; /* symbol of each axis */
} qn_eager_operand;

struct qn_eager_call {
    const char *name; /* for messages */
    qn_eager_build build;
    const char *text; /* an attribute for build, or NULL */
    int n_attrs;
    int64_t attrs[QN_EAGER_ATTRS];
    int dtype; /* the result is converted to it; 0: it is as it comes */
    bool
        elementwise; /* element i of the result comes from elements i of operands with all axes: it may replace them */
    bool fixed;   /* whether it is right for these symbols' values is decided when it is built */
    bool updates; /* the result may replace operand 0 */
    bool failed;  /* describing it failed, with a message */
    const quern_tensor
        *placed; /* the operand that says on which device it runs; NULL: all are scalars of the CPU */
    int n, n_symbols;
    qn_eager_operand x[QN_EAGER_OPERANDS];
    int64_t symbols[QN_EAGER_SYMBOLS];
};

/* ---- eager.c ---- */

int qn_eager_symbol(qn_eager_call *call, int64_t value); /* a new one; its number */
/* Adds an operand, copied where it is not row-major. Its axes follow as symbols. NULL x fails the call. */
void qn_eager_add(qn_eager_call *call, const quern_tensor *x, int rank, const uint8_t *axes);
/* The same with x as [before the axis, the axis, behind it]: symbols 0, 1, 2. The first operand. */
void qn_eager_add_around(qn_eager_call *call, const quern_tensor *x, int axis);

/* Computes it: into `out`, which has the result's elements and can hold its data type, or a new tensor with these dims.
 * Ends the call. NULL with a message. */
quern_tensor *qn_eager_run(qn_eager_call *call, int rank, const int64_t *dims, quern_tensor *out);
/* The same where the kernel says what the dims are. */
quern_tensor *qn_eager_run_as_found(qn_eager_call *call);

/* The threads that large operations run on; NULL: there is one. */
quern_pool *qn_eager_pool(void);

/* ---- eager_copy.c ---- */

/* Elements of `from` to `to`, which has the same dims and data type; they do not overlap. */
bool qn_eager_copy(quern_tensor *to, const quern_tensor *from);
/* The same behind the tape's back. */
bool qn_eager_copy_plainly(quern_tensor *to, const quern_tensor *from);
/* x as a new row-major tensor on its device. */
quern_tensor *qn_eager_compact(const quern_tensor *x);
/* target[…] = x, as quern_tensor_assign; a status. */
int qn_eager_assign(quern_tensor *target, const quern_tensor *x);

/* Axes longer than 1, those with large strides in `to` outside, neighbours that lie as one in both merged; how many. */
typedef struct qn_copy_axis {
    int64_t n, from, to; /* extent, strides */
} qn_copy_axis;
int qn_copy_axes(const quern_tensor *to, const quern_tensor *from, qn_copy_axis *out);

/* ---- eager_device.c ---- */

/* Elements of `to` from `from`, as qn_eager_copy, of which at least one is on a device. */
bool qn_eager_copy_on_device(quern_tensor *to, const quern_tensor *from);
/* x as a new row-major tensor on a device (NULL: the CPU). */
quern_tensor *qn_eager_copy_to(qn_device *device, const quern_tensor *x);

/* ---- eager_math.c ---- */

/* NumPy's common data type; numbers give way. */
int qn_promote_types(int x, int y);
int qn_promote(const quern_tensor *x, const quern_tensor *y);
quern_tensor *qn_eager_convert(const quern_tensor *x, int dtype, quern_tensor *out);

#endif
