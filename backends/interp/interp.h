/* What the files of the reference interpreter share. Nothing here is for other folders: they use backends/backend.h.
 *
 * A value is a qn_array: contiguous, row-major, aligned to its element, never written once its node is done, so that
 * views (reshape, bitcast) may share memory. Elements are computed on as qn_scalar, as many at a time as are handy
 * ("lanes"): every float dtype as double, every integer as 64 bits, which makes one loop per op do for all dtypes:
 *
 *   f16 bf16 f32   computed in double, rounded once when stored. For + - * / sqrt that is the correctly rounded
 *                  result, because double has more than twice their precision; for the rest it is as good as libm's
 *   f64            computed in f64
 *   integers       computed modulo 2^64, wrapped when stored
 *
 * Sums, products and contractions keep their accumulators in that form from the first term to the last: f16, bf16 and
 * f32 accumulate in double, which is more exact than any backend. */
#ifndef QN_BACKENDS_INTERP_H
#define QN_BACKENDS_INTERP_H

#include "backends/backend.h"

enum { QN_LANES = 512 }; /* chunk of element-wise loops */

/* One run: what all nodes of a function activation share. */
typedef struct qn_interp {
    const qn_module *module; /* for calls */
    qn_arena *arena;         /* results of nodes */
    qn_diags *diags;
    int64_t *symbols; /* values by symbol number; QN_UNBOUND: none yet */
    int n_symbols;
    int depth;              /* of regions and calls around */
    quern_comm *comm;       /* NULL: one rank */
    quern_strings *strings; /* NULL: none */
} qn_interp;

#define QN_UNBOUND INT64_MIN

/* One node at work. */
typedef struct qn_eval {
    qn_interp *in;
    const qn_node *node;
    const qn_array *x; /* operands */
    qn_array
        *y; /* results: dtype, dims and (unless the op is a view, see rules in run.c) uninitialised data */
    qn_arena *scratch; /* freed after the node */
} qn_eval;

/* The ops, one function per family. x and y agree with the types of the node when they are called. */
qn_status qn_eval_elementwise(qn_eval *e);
qn_status qn_eval_convert(qn_eval *e);
qn_status qn_eval_select(qn_eval *e);
qn_status qn_eval_constant(qn_eval *e);
qn_status qn_eval_iota(qn_eval *e);
qn_status qn_eval_dim_value(qn_eval *e);
qn_status qn_eval_view(qn_eval *e); /* the result is the operand, with the result's dims */
qn_status qn_eval_broadcast(qn_eval *e);
qn_status qn_eval_transpose(qn_eval *e);
qn_status qn_eval_slice(qn_eval *e);
qn_status qn_eval_pad(qn_eval *e);
qn_status qn_eval_concatenate(qn_eval *e);
qn_status qn_eval_gather_packed(qn_eval *e);
qn_status qn_eval_reverse(qn_eval *e);
qn_status qn_eval_dynamic_slice(qn_eval *e);
qn_status qn_eval_dynamic_update_slice(qn_eval *e);
qn_status qn_eval_gather(qn_eval *e);
qn_status qn_eval_gather_nd(qn_eval *e);
qn_status qn_eval_gather_elements(qn_eval *e);
qn_status qn_eval_scatter_nd(qn_eval *e);
qn_status qn_eval_scatter_elements(qn_eval *e);
qn_status qn_eval_reduce(qn_eval *e);
qn_status qn_eval_arg_reduce(qn_eval *e);
qn_status qn_eval_cumulative(qn_eval *e);
qn_status qn_eval_reduce_window(qn_eval *e);
qn_status qn_eval_select_and_scatter(qn_eval *e);
qn_status qn_eval_dot_general(qn_eval *e);
qn_status qn_eval_matmul_packed(qn_eval *e);
qn_status qn_eval_convolution(qn_eval *e);
qn_status qn_eval_conv_packed(qn_eval *e);
qn_status qn_eval_sort(qn_eval *e);
qn_status qn_eval_top_k(qn_eval *e);
qn_status qn_eval_non_zero(qn_eval *e);
qn_status qn_eval_extent(qn_eval *e);
qn_status qn_eval_require(qn_eval *e);
qn_status qn_eval_suppress(qn_eval *e);
qn_status qn_eval_random_bits(qn_eval *e);
qn_status qn_eval_collective(qn_eval *e);
qn_status qn_eval_rank(qn_eval *e);
qn_status qn_eval_text(qn_eval *e);
qn_status qn_eval_if(qn_eval *e);
qn_status qn_eval_while(qn_eval *e);
qn_status qn_eval_scan(qn_eval *e);
qn_status qn_eval_call(qn_eval *e);
qn_status qn_eval_composite(qn_eval *e);

/* ---- run.c ---- */

/* Evaluates one node into in->arena; results are filled in. Checks operands against the node's types. */
qn_status qn_interp_eval(qn_interp *in, const qn_node *node, const qn_array *operands, qn_array *results);
/* Reports at the node. */
qn_status qn_eval_error(const qn_eval *e, qn_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Memory for a result or operand of these dims, from `arena`, uninitialised or zero; refuses sizes that cannot be. */
qn_status qn_array_alloc(qn_array *array, qn_arena *arena, const qn_loc *loc, qn_diags *diags);
/* n scalars that last as long as the node is at work. */
qn_status qn_eval_scalars(qn_eval *e, int64_t n, qn_scalar **out);
/* dtype, rank and dims of a type for the symbol values of the run. */
qn_status qn_interp_shape(const qn_interp *in, const qn_type *type, const qn_loc *loc, qn_array *out);
qn_status qn_interp_dim(const qn_interp *in, qn_dim d, const qn_loc *loc, int64_t *out);
/* A list of dims attributes, evaluated; the node has it. */
qn_status qn_eval_dims(const qn_eval *e, qn_attr_key key, int64_t *out);

/* An element-wise node of arrays of any equal dims, into results that have their memory. */
qn_status qn_interp_eval_lanes(qn_interp *in, const qn_node *node, const qn_array *operands,
                               qn_array *results);

/* ---- pieces.c ---- */

/* The result of a node as a tensor whose contents are made when they are asked for; operands[i]: those of its operand i.
 * NULL where the op is none that can be read in pieces, or the chain behind it is long. The node must stay in memory. */
const qn_tensor *qn_tensor_defer(const qn_node *node, const qn_tensor *const *operands);

/* ---- control.c ---- */

/* A graph made ready to run several times. */
typedef struct qn_plan qn_plan;
qn_plan *qn_plan_new(const qn_graph *graph, qn_arena *arena);
/* Runs it. Outputs are copied to `arena`; everything else that was made is freed. Symbols stand in in->symbols. */
qn_status qn_plan_run(const qn_plan *plan, const qn_interp *in, const qn_array *inputs, qn_array *outputs,
                      qn_arena *arena);
/* Gives each symbol that is a dim of an input its value and checks all other dims and the ranges. */
qn_status qn_interp_bind(const qn_interp *in, const qn_graph *graph, const qn_array *inputs,
                         const qn_loc *loc);

/* ---- lanes.c ---- */

/* n elements from memory, `stride` elements apart, and back. Stored floats round to nearest even, integers wrap. */
void qn_lanes_load(qn_dtype dtype, const void *from, int64_t stride, int64_t n, qn_scalar *to);
void qn_lanes_store(qn_dtype dtype, const qn_scalar *from, int64_t n, void *to, int64_t stride);
/* acc[i * acc_stride] = acc[i * acc_stride] combined with x[i]: in order when acc_stride is 0. QN_SET: the last one. */
void qn_lanes_combine(qn_kind kind, qn_dtype dtype, qn_scalar *acc, int64_t acc_stride, const qn_scalar *x,
                      int64_t n);
/* The order that sort, top_k and arg_reduce keep: -1, 0, 1; NaN is above everything, -0 equals 0. */
int qn_scalar_order(qn_dtype dtype, qn_scalar a, qn_scalar b);

/* ---- collective.c ---- */

/* Of n elements that this rank gives, or gets of a reduce_scatter. `ranks`: how many it is for, 0: any number. */
typedef struct qn_collective {
    qn_op op;
    int how; /* quern_combine or root */
    int64_t ranks, n;
    qn_dtype dtype;
} qn_collective;
/* Are there as many ranks as it is for? */
bool qn_collective_fits(const qn_collective *c, const quern_comm *comm);
/* Does the communicator start collectives? Otherwise they run at once, and there is nothing to wait for. NULL: no. */
bool qn_comm_starts(const quern_comm *comm);
qn_status qn_interp_collective(const qn_collective *c, quern_comm *comm, const void *in, void *out,
                               const qn_loc *loc, qn_diags *diags);

/* ---- text.c ---- */

/* args: addresses of buffers, then parameters; strings NULL: an error. */
qn_status qn_interp_text(qn_op op, quern_strings *strings, const int64_t *args, const qn_loc *loc,
                         qn_diags *diags);

/* ---- quick.c: the same bits by loops over C types; false where there is none ---- */

bool qn_quick_elementwise(const qn_node *node, const qn_array *x, qn_array *r);
bool qn_quick_convert(qn_dtype from, qn_dtype to, const void *restrict a, int64_t n, void *restrict r);
bool qn_quick_reduces(qn_kind kind, qn_dtype dtype);
/* acc[i] (all of acc[0] without `step`) combined with from[i]. */
void qn_quick_combine(qn_kind kind, void *restrict acc, bool step, const void *restrict from, int64_t n);
/* Rows of n_k <= QN_QUICK_K elements by a matrix of n <= QN_QUICK_N columns, whose rows are QN_QUICK_N numbers long (zeros behind
 * the last): products are exact and sums go from k = 0 up, as in a dot_general. */
enum { QN_QUICK_K = 16, QN_QUICK_N = 64 };
void qn_quick_dot(const float *restrict x, int64_t rows, int n_k, const qn_scalar *restrict m, int n,
                  float *restrict r);

/* ---- copy.c ---- */

/* Elements that are only moved, by their size; at any address. */
typedef uint8_t __attribute__((may_alias)) qn_word1;
typedef uint16_t __attribute__((may_alias, aligned(1))) qn_word2;
typedef uint32_t __attribute__((may_alias, aligned(1))) qn_word4;
typedef uint64_t __attribute__((may_alias, aligned(1))) qn_word8;

static inline void *qn_element(const qn_array *a, int64_t index)
{
    return (char *)a->data + (size_t)index * qn_dtype_bytes(a->dtype);
}
int64_t qn_product(const int64_t *dims, int from, int to); /* of dims[from … to - 1] */
static inline int64_t qn_array_elements(const qn_array *a)
{
    return qn_product(a->dims, 0, a->rank);
}
/* Row-major strides, in elements. */
void qn_strides(const qn_array *a, int64_t *out);
/* The next index in row-major order of a box of `rank` dims; false after the last one (and the index is 0 again). */
bool qn_next_index(int rank, const int64_t *dims, int64_t *index);

/* to[sum(i * to_stride)] = from[sum(i * from_stride)] for all i in the box `dims`. Strides count elements of `size`
 * bytes (1, 2, 4, 8) and may be 0 or negative in `from`. The memories do not overlap. */
void qn_copy_strided(size_t size, int rank, const int64_t *dims, void *to, const int64_t *to_strides,
                     const void *from, const int64_t *from_strides);
void qn_fill(size_t size, void *to, int64_t n, const void *value);

/* The lines of an array along one axis: line l has `length` elements, `stride` apart, the first at qn_line_start. */
typedef struct qn_lines {
    int64_t n, length, stride;
} qn_lines;
qn_lines qn_lines_of(const qn_array *a, int axis);
static inline int64_t qn_line_start(const qn_lines *lines, int64_t line)
{
    return line / lines->stride * lines->stride * lines->length + line % lines->stride;
}

#endif
