/* quern_tensor.h - tensors: memory with a data type, dims and strides, and operations that are computed at once.
 *
 *   quern_scope *scope = quern_scope_begin();
 *   quern_tensor *x = quern_tensor_reshape(quern_tensor_arange(QUERN_F32, 0, 12, 1), QUERN_DIMS(3, 4));
 *   quern_tensor *y = quern_tensor_exp(quern_tensor_sub(x, quern_tensor_max(x, QUERN_AXES(1), 1)));
 *   ...
 *   quern_scope_end(scope);
 *
 * Each operation is a kernel of the compiler, made when it is first needed for its data types and for the way in which its
 * operands repeat; other sizes use the same kernel. docs/tensors.md says which operations share memory, and what they cost.
 *
 * Ownership. A call that gives a tensor gives one use of it, which quern_tensor_free ends. While the thread has a scope
 * open, these uses belong to the scope instead: nothing is freed by hand, and what is to outlive it is retained. Views use
 * the storage of the tensor that they look at, which lives as long as any of them.
 *
 * Errors. A call that fails gives NULL, and quern_last_error() says why; a call that is given NULL for a tensor gives NULL
 * and leaves the message alone. So a chain of calls is checked once, at its end.
 *
 * Devices. A tensor lies in the CPU's memory or on a GPU, and what is computed from it lies and runs there. Nothing moves by
 * itself: quern_tensor_to copies. Operands on different devices are a mistake, but for scalars of the CPU. A GPU computes
 * behind the call, in order; what brings values to the CPU waits for it.
 *
 * Threads. Any thread may use any tensor. Tensors are counted atomically and kernels are made once, under a lock; contents
 * are guarded by nobody: as with arrays, a write must not be at the same time as another access. Scopes and tapes are the
 * thread's own. Large operations run on all cores, with the same bits for any number of them. */
#ifndef QUERN_TENSOR_H
#define QUERN_TENSOR_H

#include "quern.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct quern_tensor quern_tensor;

/* A rank and dims, and a number of axes and axes, for calls that take both: QUERN_DIMS(3, 4); QUERN_AXES(0). */
#define QUERN_DIMS(...) QUERN_LIST(int64_t, __VA_ARGS__)
#define QUERN_AXES(...) QUERN_LIST(int, __VA_ARGS__)
#define QUERN_SCALAR 0, NULL /* no dims */
#define QUERN_ALL_AXES -1, NULL
#define QUERN_ALL INT64_MIN /* a bound of a slice that is left out */

/* ---- uses ---- */

QUERN_API quern_tensor *quern_tensor_retain(quern_tensor *x); /* one use more; gives x */
QUERN_API void quern_tensor_free(quern_tensor *x);            /* one use less; NULL is fine */

/* From begin to end, the tensors that the thread's calls give belong to the scope. Scopes nest. */
typedef struct quern_scope quern_scope;
QUERN_API quern_scope *quern_scope_begin(void);
QUERN_API void quern_scope_end(quern_scope *scope); /* NULL is fine */

/* ---- making ---- */

QUERN_API quern_tensor *quern_tensor_new(int dtype, int rank, const int64_t *dims); /* zeros */
QUERN_API quern_tensor *quern_tensor_from(const quern_array *array);                /* a copy */
/* The caller's memory itself, which stays valid until release(user) is called (by the last use's end) or for ever where
 * release is NULL. Strides in elements; NULL: row-major. */
QUERN_API quern_tensor *quern_tensor_wrap(const quern_array *array, const int64_t *strides,
                                          void (*release)(void *user), void *user);
/* The same for memory of a GPU ("cuda:0"), with the address that it has there. */
QUERN_API quern_tensor *quern_tensor_wrap_on(const char *device, const quern_array *array,
                                             const int64_t *strides, void (*release)(void *user), void *user);
/* A scalar whose data type gives way to that of the tensor it meets, as a number in a program does: `real` for QUERN_F64,
 * `whole` for QUERN_I64 and QUERN_BOOL. */
QUERN_API quern_tensor *quern_tensor_number(int dtype, double real, int64_t whole);
#define QUERN_REAL(x) quern_tensor_number(QUERN_F64, (x), 0)
#define QUERN_WHOLE(x) quern_tensor_number(QUERN_I64, 0, (x))

/* start, start + step, … up to but not including stop */
QUERN_API quern_tensor *quern_tensor_arange(int dtype, double start, double stop, double step);
QUERN_API quern_tensor *quern_tensor_full(int dtype, int rank, const int64_t *dims, double value);
QUERN_API quern_tensor *quern_tensor_eye(int dtype, int64_t n);
/* Philox 4x32-10 with the seed as its key: the same numbers for the same seed and size, whatever the dims and the machine.
 * Of f32 or f64. */
QUERN_API quern_tensor *quern_tensor_uniform(int dtype, int rank, const int64_t *dims,
                                             uint64_t seed); /* [0, 1) */
QUERN_API quern_tensor *quern_tensor_randn(int dtype, int rank, const int64_t *dims, uint64_t seed);

/* ---- what a tensor is ---- */

QUERN_API int quern_tensor_dtype(const quern_tensor *x);
QUERN_API int quern_tensor_rank(const quern_tensor *x);
QUERN_API const int64_t *quern_tensor_dims(const quern_tensor *x);
QUERN_API const int64_t *quern_tensor_strides(const quern_tensor *x); /* in elements; may be negative, or 0 */
QUERN_API int64_t quern_tensor_elements(const quern_tensor *x);
QUERN_API void *
quern_tensor_data(const quern_tensor *x); /* the first element: of a GPU's tensor, its address there */
QUERN_API const char *quern_tensor_device(const quern_tensor *x); /* "cpu", "cuda:0"; for ever */
/* The storage: its address, its bytes, and how many tensors look at it. The last two may be NULL. */
QUERN_API void *quern_tensor_storage(const quern_tensor *x, size_t *out_bytes, int *out_users);
QUERN_API int quern_tensor_is_contiguous(const quern_tensor *x); /* row-major, without gaps */
/* The value of a tensor of one element, on whatever device. */
QUERN_API int quern_tensor_item(const quern_tensor *x, double *out) QUERN_MUST_USE;

/* ---- views: no element is copied ---- */

QUERN_API quern_tensor *quern_tensor_transpose(const quern_tensor *x, const int *perm); /* NULL: backwards */
/* Along one axis, as Python's x[start:stop:step]; QUERN_ALL for a bound that is left out. */
QUERN_API quern_tensor *quern_tensor_slice(const quern_tensor *x, int axis, int64_t start, int64_t stop,
                                           int64_t step);
QUERN_API quern_tensor *quern_tensor_select(const quern_tensor *x, int axis,
                                            int64_t index); /* without the axis */
QUERN_API quern_tensor *quern_tensor_broadcast(const quern_tensor *x, int rank,
                                               const int64_t *dims); /* repeated, by strides of 0 */
/* One dim may be -1. A copy only where no strides say it. */
QUERN_API quern_tensor *quern_tensor_reshape(const quern_tensor *x, int rank, const int64_t *dims);

/* ---- copies ---- */

QUERN_API quern_tensor *quern_tensor_contiguous(quern_tensor *x); /* x itself, retained, where it is that */
QUERN_API quern_tensor *quern_tensor_copy(const quern_tensor *x);
QUERN_API quern_tensor *quern_tensor_convert(const quern_tensor *x, int dtype); /* a copy in any case */
/* target[…] = x: repeated and converted to fit; they may overlap, or lie on different devices. */
QUERN_API int quern_tensor_assign(quern_tensor *target, const quern_tensor *x) QUERN_MUST_USE;

/* ---- devices: "cpu", "cuda" (the first GPU), "cuda:1" ---- */

/* x itself, retained, where it is there; else a row-major copy on that device. QUERN_ERROR_DEVICE, and what is missing, where
 * there is no such GPU. */
QUERN_API quern_tensor *quern_tensor_to(quern_tensor *x, const char *device);
QUERN_API quern_tensor *quern_tensor_new_on(const char *device, int dtype, int rank,
                                            const int64_t *dims); /* zeros */
QUERN_API int quern_device_count(void);                           /* of GPUs; 0: quern_last_error says why */
/* Memory of freed tensors is kept for the next ones, and given back where there is no other. This gives it back now. */
QUERN_API int quern_device_trim(const char *device) QUERN_MUST_USE;
/* Until the device has done all that was asked of it. */
QUERN_API int quern_device_wait(const char *device) QUERN_MUST_USE;
/* Binds a buffer of a session to a tensor's memory, which lies row-major, on the CPU or on the GPU that the model runs on: a
 * run then copies nothing, and quern_session_get gives the address there. The session uses the tensor until the buffer is
 * bound anew or the session ends. */
QUERN_API int quern_session_bind_tensor(quern_session *session, int index, quern_tensor *x) QUERN_MUST_USE;
/* The tensor that a buffer is bound to; NULL: none. */
QUERN_API quern_tensor *quern_session_tensor(const quern_session *session, int index);
/* Moves all states of a session to the GPU that its model runs on, where they stay from run to run, or back ("cpu"). Before
 * others share them. */
QUERN_API int quern_session_states_to(quern_session *session, const char *device) QUERN_MUST_USE;

/* ---- element by element: NumPy's broadcasting and promotion ---- */

QUERN_API quern_tensor *quern_tensor_add(const quern_tensor *x, const quern_tensor *y);
QUERN_API quern_tensor *quern_tensor_sub(const quern_tensor *x, const quern_tensor *y);
QUERN_API quern_tensor *quern_tensor_mul(const quern_tensor *x, const quern_tensor *y);
QUERN_API quern_tensor *quern_tensor_div(const quern_tensor *x, const quern_tensor *y); /* of integers: f64 */
QUERN_API quern_tensor *quern_tensor_pow(const quern_tensor *x, const quern_tensor *y);
QUERN_API quern_tensor *quern_tensor_equal(const quern_tensor *x, const quern_tensor *y); /* bool */
QUERN_API quern_tensor *quern_tensor_less(const quern_tensor *x, const quern_tensor *y);  /* bool */
QUERN_API quern_tensor *quern_tensor_neg(const quern_tensor *x);
QUERN_API quern_tensor *
quern_tensor_exp(const quern_tensor *x); /* of integers: of floats, as the next ones */
QUERN_API quern_tensor *quern_tensor_log(const quern_tensor *x);
QUERN_API quern_tensor *quern_tensor_sqrt(const quern_tensor *x);
QUERN_API quern_tensor *quern_tensor_tanh(const quern_tensor *x);
QUERN_API quern_tensor *quern_tensor_square(const quern_tensor *x);
/* condition ? x : y */
QUERN_API quern_tensor *quern_tensor_where(const quern_tensor *condition, const quern_tensor *x,
                                           const quern_tensor *y);

/* These and all the others, by name:
 *   one operand   every element-wise op of docs/ops.md of one operand (no attributes), "square"
 *   two           add sub mul div pow max min atan2 and or xor shift_left shift_right; floor_div and mod, which round
 *                 to minus infinity as Python does; div_trunc and rem, which round to zero as C does; eq ne lt le gt ge
 * y is NULL for one operand. With `out` the result is written there and `out` is given, retained: its dims must be the
 * result's, and its data type one that the result's can become by the rule "same kind". It may overlap the operands. */
QUERN_API quern_tensor *quern_tensor_elementwise(const char *op, const quern_tensor *x, const quern_tensor *y,
                                                 quern_tensor *out);

/* ---- reductions: over these axes, or all of them (QUERN_ALL_AXES); keep leaves them, with a dim of 1 ---- */

QUERN_API quern_tensor *quern_tensor_sum(const quern_tensor *x, int n, const int *axes, int keep);
QUERN_API quern_tensor *quern_tensor_mean(const quern_tensor *x, int n, const int *axes, int keep);
QUERN_API quern_tensor *quern_tensor_max(const quern_tensor *x, int n, const int *axes, int keep);
QUERN_API quern_tensor *quern_tensor_min(const quern_tensor *x, int n, const int *axes, int keep);
/* "sum", "prod", "mean", "max", "min", "any", "all" */
QUERN_API quern_tensor *quern_tensor_reduce(const char *kind, const quern_tensor *x, int n, const int *axes,
                                            int keep);
/* i64: where the first of the greatest ("max") or least ("min") lies along the axis */
QUERN_API quern_tensor *quern_tensor_arg(const char *kind, const quern_tensor *x, int axis);
/* "sum", "prod", "max", "min" of each element and those before it */
QUERN_API quern_tensor *quern_tensor_cumulative(const char *kind, const quern_tensor *x, int axis);

/* ---- products ---- */

/* NumPy's matmul: of matrices in the last two axes, of vectors where the rank is 1. A transposed view is read as it lies. */
QUERN_API quern_tensor *quern_tensor_matmul(const quern_tensor *x, const quern_tensor *y);

/* ---- by index and by mask: copies; indices of i64 or i32, from -n to n - 1 ---- */

/* The parts of x with these indices along the axis: NumPy's take. */
QUERN_API quern_tensor *quern_tensor_index_select(const quern_tensor *x, int axis,
                                                  const quern_tensor *indices);
/* Element by element along the axis: NumPy's take_along_axis. */
QUERN_API quern_tensor *quern_tensor_gather(const quern_tensor *x, int axis, const quern_tensor *indices);
/* Where the mask holds, which has the dims that x begins with. */
QUERN_API quern_tensor *quern_tensor_masked_select(const quern_tensor *x, const quern_tensor *mask);
/* x[…, indices, …] = values, repeated to fit. With an index named twice the later value stays. */
QUERN_API int quern_tensor_put(quern_tensor *x, int axis, const quern_tensor *indices,
                               const quern_tensor *values) QUERN_MUST_USE;
QUERN_API quern_tensor *quern_tensor_concatenate(int n, const quern_tensor *const *xs, int axis);

/* ---- any op ---- */

/* An op of docs/ops.md as it is there (no promotion, no broadcasting), with attributes in the text form; its first result. */
QUERN_API quern_tensor *quern_tensor_op(const char *op, int n, const quern_tensor *const *operands,
                                        const char *attributes);

/* ---- the tape ---- */

/* From begin to end, what the thread's tensors compute is recorded as a graph, and computed as well. Tensors that were there
 * before are inputs of the graph, tensors that are made by operations are values in it, numbers (quern_tensor_number) are
 * constants; views and writing in place are understood. What it recorded lives as long as the tape. */
typedef struct quern_tape quern_tape;
QUERN_API quern_tape *quern_tape_begin(void); /* NULL where the thread's tape records already */
QUERN_API void quern_tape_end(quern_tape *tape);
QUERN_API void quern_tape_free(quern_tape *tape); /* NULL is fine */
/* The gradients of a loss of one float with respect to n tensors that the tape has read or made, as they were when it
 * first heard of them. They are recorded too, so that they can be differentiated or used in what follows. */
QUERN_API int quern_tape_gradient(quern_tape *tape, const quern_tensor *loss, int n, quern_tensor *const *wrt,
                                  quern_tensor **out) QUERN_MUST_USE;

/* A compiled step does again what the tape recorded, without recording: it reads the memory of the inputs, as it is then,
 * and writes that of the results; inputs that were written to while the tape recorded are written again. One thread at a
 * time. It needs the tape no more. It runs on the GPU that tensors of the tape are on, of which there is at most one: those of the
 * CPU are copied there and back each time. Options may be NULL. */
typedef struct quern_step quern_step;
QUERN_API int quern_tape_compile(quern_tape *tape, int n, quern_tensor *const *results,
                                 const quern_compile_options *options, quern_step **out) QUERN_MUST_USE;
QUERN_API int quern_step_run(quern_step *step) QUERN_MUST_USE;
QUERN_API void quern_step_free(quern_step *step); /* NULL is fine */
/* The same as a module, to be looked at, emitted or run elsewhere: inputs x0, x1, … in the order in which the tape met them,
 * outputs y0, y1, …: those that update inputs, then the results. */
QUERN_API int quern_tape_module(quern_tape *tape, int n, quern_tensor *const *results,
                                quern_module **out) QUERN_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
