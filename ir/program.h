/* A program: one function compiled down to kernel calls over memory whose places are known. What backends emit. */
#ifndef QN_IR_PROGRAM_H
#define QN_IR_PROGRAM_H

#include "ir/graph.h"
#include "ir/kernel.h"

typedef enum qn_place {
    QN_PLACE_ARENA,   /* workspace + offset */
    QN_PLACE_IO,      /* buffer number `io` of the entry */
    QN_PLACE_WEIGHTS, /* weights + offset; constant, shared by all entries */
    QN_PLACE_VIEW,    /* buffer `base` + offset + iteration of loop `loop` * stride */
    QN_PLACE_SLOT     /* a pointer variable, set to buffer `base` at entry; QN_STEP_SWAP exchanges two */
} qn_place;

/* A stretch of memory. Offsets and strides in bytes. */
typedef struct qn_pbuffer {
    const char *name; /* of the value, for people */
    qn_dtype dtype;
    qn_dim elements;
    qn_place place;
    int io;        /* IO */
    int base;      /* VIEW, SLOT */
    qn_dim offset; /* ARENA (set by memplan), WEIGHTS (set by the driver, over all programs), VIEW */
    int loop;      /* VIEW: id of an enclosing loop step, or -1 */
    qn_dim stride; /* VIEW with loop */
    const qn_tensor *tensor; /* WEIGHTS: contents */
    int first,
        last; /* ARENA: live from step to step, inclusive, in the order of qn_program_number (set by memplan) */
    qn_loc loc; /* in the text that it was read from */
} qn_pbuffer;

typedef enum qn_step_kind {
    QN_STEP_KERNEL,
    QN_STEP_LIBRARY, /* like a kernel, but the code is a library's: see qn_library */
    QN_STEP_COPY,    /* from buffer 0 to buffer 1 */
    QN_STEP_LOOP, /* body `count` times, and/or while the bool in `condition` is true (tested before each iteration) */
    QN_STEP_IF,    /* bool in `condition` ? body : other */
    QN_STEP_SWAP,  /* pointer variables of buffers 0 and 1 (both SLOT) */
    QN_STEP_BIND,  /* the symbol `count` := the i64 in buffer 0 */
    QN_STEP_CHECK, /* parameters 0 and 1 are equal; otherwise `node` fails with QUERN_ERROR_ARGUMENT */
    QN_STEP_COLLECTIVE, /* from buffer 0 to buffer 1, with the other ranks; where they are not as many as it is for, `node` fails as
                         * in a CHECK. Of QN_OP_RANK: into buffer 0 */
    QN_STEP_TEXT, /* a call of the run's table of strings, with buffers, of which the last is written, and parameters (ir/text_ops.h);
                   * where it fails, so does `node` */
    QN_STEP_WAIT /* until the oldest collective that was started has ended; it has the same buffers. Until then no step writes
                  * buffer 0 or uses buffer 1. Both are in the same list of steps */
} qn_step_kind;

/* Functions of libraries. They are called as kernels are, with their buffers and parameters as arguments, and each task
 * writes its own elements. In this process only: whoever loads the code says where they are.
 *
 * SGEMM, DGEMM: out[b, i, j] = sum of x[b, i, k] * y[b, k, j], in any order and with any contraction of the arithmetic, the
 * same for any number of threads. Buffers x, y, out, dense and row-major; x or y may lie transposed ([b, k, i], [b, j, k]).
 * A task does QN_GEMM_ROWS x QN_GEMM_COLUMNS elements: number (b * blocks of rows + block of rows) * blocks of columns +
 * block of columns. */
typedef enum qn_library { QN_LIBRARY_SGEMM, QN_LIBRARY_DGEMM, QN_N_LIBRARIES } qn_library;
enum {
    QN_GEMM_BATCH,
    QN_GEMM_M,
    QN_GEMM_N,
    QN_GEMM_K,
    QN_GEMM_X_TRANSPOSED, /* 0 or 1 */
    QN_GEMM_Y_TRANSPOSED,
    QN_GEMM_ROWS, /* constants, at least 1 */
    QN_GEMM_COLUMNS,
    QN_GEMM_PARAMS
};
typedef struct qn_library_info {
    const char *name; /* "sgemm" */
    qn_dtype dtype;   /* of all buffers */
} qn_library_info;
extern const qn_library_info qn_libraries[QN_N_LIBRARIES];

typedef struct qn_step qn_step;
typedef struct qn_steps {
    qn_step *items;
    size_t n, capacity;
} qn_steps;

struct qn_step {
    qn_step_kind kind;
    const char *name;   /* for traces: the kernel's name with its nodes' names */
    int kernel;         /* KERNEL: index into program.kernels */
    qn_library library; /* LIBRARY */
    int n_buffers;
    int *buffers; /* KERNEL: in the order of the kernel's arguments */
    int n_params;
    const qn_dim *params; /* KERNEL, LIBRARY, CHECK, TEXT */
    qn_dim tasks;         /* KERNEL, LIBRARY: task numbers 0 … tasks - 1 */
    double
        flops; /* KERNEL: of this step, for `bench`: others may run the kernel for more tasks. Not in the text */
    bool alternates;      /* KERNEL: had better run downwards in odd iterations of the innermost loop */
    int node;             /* CHECK, COLLECTIVE, TEXT: in node_names, with what it wants */
    qn_op collective;     /* COLLECTIVE */
    qn_op text;           /* TEXT */
    int how;              /* COLLECTIVE: what the communicator's function takes as such */
    int64_t ranks;        /* COLLECTIVE: how many it is for; 0: any number */
    bool starts;          /* COLLECTIVE: an all_reduce that only begins here; a WAIT ends it */
    int loop;             /* LOOP: its id */
    qn_dim count;         /* LOOP: NULL when only the condition ends it */
    bool reverse;         /* LOOP: iteration number runs count - 1 … 0 */
    int condition;        /* LOOP, IF: a bool scalar buffer; -1: none */
    qn_steps body, other; /* LOOP body; IF both */
    qn_steps test;        /* LOOP with condition: steps that compute it, before each iteration */
    int number;           /* qn_program_number */
    int last;             /* number of the last step inside it; its own when there is none */
    qn_loc loc;           /* in the text that it was read from */
};

typedef struct qn_pio { /* one buffer of the entry */
    const char *name;
    quern_role role;
    qn_type type;
    int alias;                /* index of an io it shares memory with, or -1 */
    const qn_tensor *initial; /* STATE: initial contents, or NULL */
    bool trainable;           /* STATE: a parameter */
    int64_t initial_offset;   /* STATE: of `initial` in the weights (set by the driver), or -1 */
} qn_pio;

/* Every buffer of the arena begins at a multiple of this many bytes and has all of those that it begins. */
#define QN_ARENA_ALIGNMENT 64

typedef struct qn_program {
    qn_arena *arena;
    qn_dims *
        dims; /* symbols of the entry; those below n_entry_symbols come with io, the rest are bound by steps */
    int n_entry_symbols;
    const qn_dim *limits; /* per symbol from n_entry_symbols on: its largest value, in entry symbols */
    const char *name;     /* entry name: "infer" */
    int n_io;
    qn_pio *io;
    int n_kernels, kernel_capacity;
    qn_kernel **kernels;       /* deduplicated */
    const char **kernel_texts; /* their canonical texts; NULL: the kernels have no bodies (driver/kept.h) */
    int n_buffers, buffer_capacity;
    qn_pbuffer *buffers;
    qn_steps steps;
    int n_loops;
    int n_nodes;
    const char **node_names;  /* for QN_K_CHECK and QN_STEP_CHECK */
    qn_dim arena_bytes;       /* set by memplan */
    qn_dim arena_lower_bound; /* largest sum of bytes live at one step: no plan can be smaller */
    int64_t weights_bytes;    /* set by the driver: of all programs together */
} qn_program;

qn_program *qn_program_new(qn_arena *arena, qn_dims *dims, const char *name);
int qn_program_add_buffer(qn_program *p, qn_pbuffer buffer);
/* A copy of the kernel; the index of an equal one if there is one. */
int qn_program_add_kernel(qn_program *p, const qn_kernel *kernel);
/* The same for a kernel whose memory lives as long as the program, with its canonical text. */
int qn_program_add_canonical(qn_program *p, qn_kernel *kernel, const char *text);
/* What a task of a product of matrices computes: a block of rows and columns of one batch, cut off at the edges. `params`:
 * values. */
typedef struct qn_gemm_block {
    int64_t batch, row, rows, column, columns;
} qn_gemm_block;
qn_gemm_block qn_gemm_block_of(const int64_t *params, int64_t task);
/* The number of tasks of a product of matrices with these parameters. */
qn_dim qn_gemm_tasks(qn_dims *dims, const qn_dim *params);
qn_step *qn_steps_add(qn_program *p, qn_steps *steps, qn_step_kind kind);
/* The buffer whose memory this one is part of: through views and slots to an ARENA, IO or WEIGHTS buffer. */
int qn_program_root(const qn_program *p, int buffer);
/* Which memory an io buffer is: that of the first io it is an alias of. */
int qn_program_io_memory(const qn_program *p, int io);
/* Is it reached through a slot? */
bool qn_program_through_slot(const qn_program *p, int buffer);
/* By buffer: the next of those that QN_STEP_SWAP may exchange with it; a ring, of itself alone where there is none. */
int *qn_program_mates(const qn_program *p, qn_arena *arena);
/* What an expression is at most, whatever the run finds: in symbols of the entry. */
qn_dim qn_program_most(const qn_program *p, qn_dim d);
/* A dimension of an io that is not largest at the limits: no caller could bring memory for it. NULL: there is none. */
qn_dim qn_program_falling(const qn_program *p, int *out_io, int *out_axis);
/* Bytes that an ARENA buffer has to itself, whatever the run finds: a multiple of QN_ARENA_ALIGNMENT. */
qn_dim qn_program_place_bytes(const qn_program *p, int buffer);
qn_dim qn_program_buffer_bytes(const qn_program *p, int buffer);
/* What a COPY step copies: what both of its buffers have. */
qn_dim qn_program_copied_bytes(const qn_program *p, const qn_step *step);
/* Is there a step of that kind, maybe inside of others? */
bool qn_steps_have(const qn_steps *steps, qn_step_kind kind);
/* Numbers all steps in order: a step, its test, body, other. Returns their count. */
int qn_program_number(qn_program *p);
/* What a KERNEL, LIBRARY or COPY step does with its buffer number i. */
bool qn_step_reads(const qn_program *p, const qn_step *step, int i);
bool qn_step_writes(const qn_program *p, const qn_step *step, int i);
/* Complete: frontend/text reads it back to the letter (docs/text-form.md). */
const char *qn_program_print(const qn_program *p, qn_arena *arena);

/* Places inside their bounds, everything that is read still there (ir/program_live.c), arguments match kernels, steps use
 * buffers and loops that exist. Holds for what is placed so far: before memplan nothing is said about the workspace,
 * before the weights are laid out nothing about them. A mistake is reported where the text says it, as a model's, or as
 * ours where there is no text. */
QN_MUST_USE qn_status qn_program_verify(const qn_program *p, qn_diags *diags);

#endif
