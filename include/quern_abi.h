/* quern_abi.h - the binary interface between a compiled model and the program that runs it.
 *
 * Stands alone: C11 or C++, standard headers only. A shared object that Quern emits exports one symbol,
 * `<prefix>_query`, and needs nothing of Quern at run time. The same structures describe a model compiled in
 * memory. All tables are immutable and may be read from any thread.
 *
 * Every struct begins with its size in bytes; later versions only append fields.
 */
#ifndef QUERN_ABI_H
#define QUERN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QUERN_ABI_VERSION 1u

/* Element types. The numbers are part of the ABI and never change. */
typedef enum quern_dtype {
    QUERN_INVALID_DTYPE = 0,
    QUERN_BOOL = 1, /* one byte, 0 or 1 */
    QUERN_I8 = 2,
    QUERN_I16 = 3,
    QUERN_I32 = 4,
    QUERN_I64 = 5,
    QUERN_U8 = 6,
    QUERN_U16 = 7,
    QUERN_U32 = 8,
    QUERN_U64 = 9,
    QUERN_F16 = 10,
    QUERN_BF16 = 11,
    QUERN_F32 = 12,
    QUERN_F64 = 13,
    /* Stored, not computed with. An element is a byte: the lowest bits of it, the others 0 when Quern writes them and not
     * looked at when it reads. Floats are named by their bits of exponent and mantissa; "fn": no infinity, "uz": no -0. */
    QUERN_I4 = 14,
    QUERN_U4 = 15,
    QUERN_I2 = 16,
    QUERN_U2 = 17,
    QUERN_F8E4M3FN = 18,
    QUERN_F8E4M3FNUZ = 19,
    QUERN_F8E5M2 = 20,
    QUERN_F8E5M2FNUZ = 21,
    QUERN_F4E2M1 = 22,
    QUERN_F8E8M0 = 23 /* powers of two, from 2^-127 to 2^127, and NaN */
} quern_dtype;

/* What an entry returns, and what every fallible call of quern.h returns. */
typedef enum quern_status {
    QUERN_OK = 0,
    QUERN_ERROR_ARGUMENT = 1,    /* NULL or inconsistent argument, wrong shape or dtype */
    QUERN_ERROR_RANGE = 2,       /* a symbolic dimension outside the range that was compiled */
    QUERN_ERROR_INDEX = 3,       /* a gather or scatter index outside its operand */
    QUERN_ERROR_CANCELLED = 4,   /* the caller set quern_ctx.cancel */
    QUERN_ERROR_MODEL = 5,       /* the model is malformed */
    QUERN_ERROR_UNSUPPORTED = 6, /* well-formed, but Quern cannot compile it */
    QUERN_ERROR_IO = 7,          /* a file could not be read or written */
    QUERN_ERROR_MEMORY = 8,      /* out of memory */
    QUERN_ERROR_DEVICE = 9,      /* no such device, or the device reported an error */
    QUERN_ERROR_INTERNAL = 10,   /* a bug in Quern */
    QUERN_ERROR_NUMERIC = 11 /* a result is NaN or infinite, and quern_compile_options.check_numerics asks */
} quern_status;

/* "index": a status in a word, for programs that have the object alone (quern_status_name is the same in a library). */
static inline const char *quern_status_text(int status)
{
    static const char *const names[] = {
        "ok",          "argument", "range",  "index",  "cancelled", "model",
        "unsupported", "io",       "memory", "device", "internal",  "numeric"
    };
    return status >= QUERN_OK && status <= QUERN_ERROR_NUMERIC ? names[status] : "unknown";
}

/* What a buffer is to an entry. */
typedef enum quern_role {
    QUERN_INPUT = 0,
    QUERN_OUTPUT = 1,
    QUERN_STATE = 2 /* read and updated in place: parameters, optimizer state, KV cache */
} quern_role;

/* How collectives combine the elements of all ranks. Sums run in the order of the ranks, from 0 up: of f16, bf16 and f32 in f64,
 * rounded once; of integers they wrap. The mean is of floats only: the sum divided by the number of ranks. Of bool, max is "any"
 * and min is "all". */
typedef enum quern_combine {
    QUERN_COMBINE_SUM = 0,
    QUERN_COMBINE_MEAN = 1,
    QUERN_COMBINE_MAX = 2,
    QUERN_COMBINE_MIN = 3
} quern_combine;

/* Several ranks that compute together: threads of a process, processes, machines. Each rank has a structure of its own, and one
 * thread at a time uses it. All ranks call the same functions in the same order with the same n, dtype and how: what they were
 * given is compared first, and where it differs every rank's call fails. Results are the same bits on every rank, and in every
 * run. All give a quern_status; after a failure the communicator fails for good. n counts elements, `in` and `out` are aligned to
 * them and do not overlap; those of all_reduce and broadcast may be the same. */
typedef struct quern_comm {
    size_t size;
    int32_t rank, ranks; /* this one's number, from 0 up; how many there are */
    /* out[i] = in[i] of all ranks, combined; how: quern_combine */
    int (*all_reduce)(struct quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                      int32_t how);
    /* out[r * n + i] = in[i] of rank r; how: 0 */
    int (*all_gather)(struct quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                      int32_t how);
    /* out[i] = in[rank * n + i] of all ranks, combined; how: quern_combine */
    int (*reduce_scatter)(struct quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                          int32_t how);
    /* out[i] = in[i] of rank `how` */
    int (*broadcast)(struct quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                     int32_t how);
    /* This rank can't go on: the others' collectives fail, with this reason, instead of waiting for it. Afterwards nothing that
     * this rank has started uses its buffers any more: a host calls this behind a run that failed. */
    void (*fail)(struct quern_comm *comm, const char *reason);
    const char *(*error)(const struct quern_comm *comm); /* why it has failed; "" while it has not */
    void (*free)(struct quern_comm *comm);
    /* As all_reduce, but gives back at once, and the ranks combine while this one goes on: until `wait` gives back, or `fail`
     * has, nobody else may write `in` or use `out`. What was started runs in the order in which it was, and other collectives
     * behind it. `wait`: until the oldest that was not waited for has ended; gives its status. Both may be NULL, or lie beyond
     * `size`: then entries call all_reduce. */
    int (*start_all_reduce)(struct quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype,
                            int32_t how);
    int (*wait)(struct quern_comm *comm);
} quern_comm;

/* What runs compute of strings, by one function, `compute`: args are addresses of buffers, then numbers. A buffer of strings has their
 * numbers in the table (int64_t). n: how many elements there are; separator: the number of a string, -1: runs of white space, which
 * are also skipped in front; most: how often it is split at most, -1: as often as the separator is there; dtype: quern_dtype, i64,
 * u64, f32 or f64. */
typedef enum quern_text {
    QUERN_TEXT_CONCAT = 1, /* x, y, out; n: x and y, one behind the other */
    QUERN_TEXT_CASE = 2,   /* x, out; n, upper (0 or 1): x in that case */
    QUERN_TEXT_COUNT = 3,  /* x, out (int64_t); n, separator, most: how many pieces x has */
    QUERN_TEXT_SPLIT =
        4, /* x, out [n, k]; n, separator, most, k: the first k pieces of x, then empty strings */
    /* x, table (uint16_t [states, 257]), out (a byte, 0 or 1); n, states: from state 1 on, by each byte of x, to the state in the row of
     * the last one; does its last column say 1? State 0 is the end of the way */
    QUERN_TEXT_MATCH = 5,
    QUERN_TEXT_PARSE = 6, /* x, out (dtype); n, dtype: the number that x is */
    QUERN_TEXT_PRINT = 7  /* x (dtype), out; n, dtype: x in decimal */
} quern_text;

/* A table of strings, by numbers from 0 on: first those that the model has (quern_model_info.strings), then those that the host and
 * runs have put behind them. Equal strings have equal numbers. One thread at a time uses it. quern_strings_new of quern.h makes one. */
typedef struct quern_strings {
    size_t size;
    int (*compute)(struct quern_strings *strings, int32_t what /* quern_text */,
                   const int64_t *args); /* gives a quern_status */
    const char *(*error)(
        const struct quern_strings *strings); /* of the last call of compute; "" after one that succeeded */
} quern_strings;

/* Lent by the caller for one call; NULL is fine: single-threaded, weights from the object. */
typedef struct quern_ctx {
    size_t size; /* sizeof(quern_ctx) as the caller was compiled */
    /* Calls task(arg, i) once for each i in [0, n), in any order, on any threads, and returns when all are done.
     * NULL: the entry runs the tasks itself, in order. Results do not depend on it. */
    void (*parallel_for)(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n);
    void *pool;
    const void *weights; /* weights of a model compiled with a side file, or NULL */
    const volatile int
        *cancel; /* checked between kernels: non-zero stops with QUERN_ERROR_CANCELLED; or NULL */
    /* Called before (begin = 1) and after (begin = 0) each kernel, with its name; or NULL */
    void (*trace)(void *trace_user, const char *kernel, int begin);
    void *trace_user;
    int32_t
        failed_node; /* out: after QUERN_ERROR_INDEX, or QUERN_ERROR_ARGUMENT of extents that don't fit together, the
                      * number of the node (quern_entry_info.node_names); else -1 */
    /* As parallel_for; each thread had better begin with its last tasks: what they read is still in its core's cache since
     * the last call with these tasks. NULL: parallel_for is called. */
    void (*parallel_for_down)(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n);
    quern_comm *comm; /* for collectives; NULL: this is the only rank */
    quern_strings
        *strings; /* for models that make strings or read them (quern_model_info.strings); others need none */
} quern_ctx;

/* A symbolic dimension. Its value is an int64_t in the io structure. */
typedef struct quern_symbol_info {
    size_t size;
    const char *name;
    int64_t min, max; /* inclusive */
    int32_t
        decided; /* 1: a count that the run finds and writes into io; these come last. 0: given by the caller */
} quern_symbol_info;

/* One buffer of an entry: contiguous, row-major, aligned to its element (64 bytes is faster). */
typedef struct quern_buffer_info {
    size_t size;
    const char *name;
    int32_t role;  /* quern_role */
    int32_t dtype; /* quern_dtype */
    int32_t rank;
    int32_t alias; /* index of the buffer this one may share memory with, or -1 */
    const int64_t
        *dims; /* rank values; -1 where the dimension depends on symbols (see quern_entry_info.shape) */
    const int32_t
        *symbols;      /* rank values: which symbol the dimension is; -1: a number or a larger expression */
    const char *text;  /* "f32[batch, 2*n]", for people */
    int64_t initial;   /* STATE: byte offset of its initial contents in the weights, or -1: zeros */
    int32_t trainable; /* STATE: 1 for a parameter, 0 for other state (optimizer, cache) */
} quern_buffer_info;

/* An entry point. `io` points to a structure of n_buffers pointers, in the order of `buffers`, followed by n_symbols
 * int64_t values, in the order of `symbols`. The caller owns every buffer and the workspace, which is
 * workspace_bytes(symbols) bytes, aligned to 64. Returns a quern_status. Only declared aliases may overlap.
 * Thread-safe as long as no two calls share a workspace or a written buffer. Never allocates. */
typedef struct quern_entry_info {
    size_t size;
    const char *name;
    int (*run)(void *io, void *workspace, quern_ctx *ctx);
    /* Bytes of workspace for these symbol values; -1 when one is out of range. NULL symbols are fine without symbols. */
    int64_t (*workspace_bytes)(const int64_t *symbols);
    /* Writes the dims of buffer `buffer` (rank values) for these symbol values. */
    void (*shape)(int32_t buffer, const int64_t *symbols, int64_t *out_dims);
    int32_t n_buffers, n_symbols;
    const quern_buffer_info *buffers;
    const quern_symbol_info *symbols;
    int32_t n_nodes;
    const char *const *node_names; /* for quern_ctx.failed_node */
    /* Sets the decided symbols to their largest possible values for the given values of the others: with these, `shape`
     * and `workspace_bytes` say how much memory the run may need. NULL when no symbol is decided. */
    void (*limits)(int64_t *symbols);
} quern_entry_info;

/* What `<prefix>_query(QUERN_ABI_VERSION)` returns; NULL for a version the object does not know. */
typedef struct quern_model_info {
    size_t size;
    uint32_t abi_version;
    const char *name;
    const char *target; /* triple, CPU and features it was compiled for */
    int32_t n_entries;
    const quern_entry_info *entries;
    int64_t weights_bytes;    /* in the object, or to be lent as quern_ctx.weights */
    const void *weights;      /* NULL when they are in a side file */
    const char *weights_hash; /* XXH3 128 of the weights in a side file, hexadecimal; "" without one */
    /* what this machine's CPU has not and the code needs: entries return QUERN_ERROR_DEVICE then. NULL: nothing */
    const char *lacks;
    /* of models that make strings or read their characters, which have to get a table of strings that begins with these; else the
     * structure may end before, or `strings` is NULL */
    const char *const *strings;
    int32_t n_strings;
} quern_model_info;

typedef const quern_model_info *(*quern_query_fn)(uint32_t abi_version);

#ifdef __cplusplus
}
#endif
#endif
