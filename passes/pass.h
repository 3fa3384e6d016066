/* What a pass is, and the list of them. */
#ifndef QN_PASSES_PASS_H
#define QN_PASSES_PASS_H

#include "ir/graph.h"
#include "ir/program.h"

/* What contractions multiply: float32 as the model says; or, where that is faster, bfloat16 with sums in float32, bytes with sums
 * of 32 bits, bytes by weights of four bits. */
typedef enum qn_precision {
    QN_PRECISION_F32,
    QN_PRECISION_BF16,
    QN_PRECISION_INT8,
    QN_PRECISION_INT4
} qn_precision;
extern const char *const qn_precision_names[]; /* passes/quantize.c; ends with NULL */

typedef enum qn_math { QN_MATH_STRICT, QN_MATH_DEFAULT, QN_MATH_FAST } qn_math;

/* What lowering must know of the machine it lowers for. Backends fill it in. */
/* Of which bytes QN_K_DOT4 is fastest. */
typedef enum qn_dot4_signs {
    QN_SIGNS_MIXED, /* u8 and i8 */
    QN_SIGNS_SAME,  /* two u8 or two i8 */
    QN_SIGNS_ANY
} qn_dot4_signs;

typedef struct qn_machine {
    bool gpu;
    int vector_bytes;     /* 64: AVX-512, 32: AVX2, 16: SSE/NEON */
    int vector_registers; /* 32 or 16 */
    bool fma;
    bool by_lane; /* multiply-adds take a lane of a vector in place of a number in all lanes */
    bool masked;  /* masked loads and stores are cheap */
    bool lookup;  /* QN_K_LOOKUP is one instruction */
    bool dot4;    /* QN_K_DOT4 is one instruction, for bytes of these signs */
    qn_dot4_signs dot4_signs;
    bool dot2;  /* QN_K_DOT2 is one, of which two are as fast as two multiply-adds */
    bool mmla;  /* QN_K_MMLA is one instruction, with twice the products of QN_K_DOT4 and QN_K_DOT2 */
    bool tiles; /* the matrix unit of QN_K_TILE_*, bf16 and bytes */
    bool follows_streams; /* the core fetches what comes next of two streams from memory in time, unasked */
    int64_t l1_bytes, l2_bytes;
    int64_t l3_bytes;     /* that a group of cores shares; 0: unknown */
    int gpu_arch;         /* 90 for sm_90 */
    int gpu_units;        /* multiprocessors of the largest GPU of that kind */
    const char *features; /* for keys and messages */
    uint32_t needs; /* what a CPU has to have to run such code, as its backend counts it; 0: not known */
} qn_machine;

/* Which contractions are calls of a library (QN_STEP_LIBRARY): those for which lowering has no tuned kernel on the machine,
 * or all that the library can do. */
typedef enum qn_blas_use { QN_BLAS_NEVER, QN_BLAS_WHERE_UNTUNED, QN_BLAS_ALWAYS } qn_blas_use;

/* Which values are computed again behind the loss instead of being kept: as many as the memory limit asks for, none, all but
 * what lies across sqrt(n) cuts, or as long as that saves memory. */
typedef enum qn_remat { QN_REMAT_AUTO, QN_REMAT_NONE, QN_REMAT_SQRT, QN_REMAT_ALL } qn_remat;

bool qn_remat_parse(const char *word, qn_remat *out); /* "none", "sqrt", "all" */

typedef struct qn_remat_report {
    int64_t bytes,
        bytes_before; /* of workspace, and what it would be without; before: 0 where nothing was asked for */
    bool varies;      /* with the dimensions of a call: `bytes` are the most */
    double flops_again, flops; /* operations that are done twice; of all nodes, once */
    int n_again;               /* nodes that are there twice */
} qn_remat_report;

typedef struct qn_schedule_book qn_schedule_book; /* passes/schedule.h */

typedef struct qn_pass_options {
    qn_math math;
    qn_precision precision;
    const qn_machine *machine;
    const qn_tensor *(*fold)(
        const qn_node *node,
        void *folder); /* evaluates a node whose operands are all constants; NULL: no folding */
    void *folder;
    qn_blas_use blas;
    bool (*has_blas)(void); /* asked when a contraction is to be a call of the library; NULL: it is there */
    bool
        no_fusion; /* a kernel for each node, but what only says the shape of another's: for looking for mistakes */
    const qn_schedule_book *schedules; /* that were measured; NULL: cost models say all */
    /* Runs task(arg, i) for each i below n, on several threads; NULL: there is only this one. */
    void (*parallel_for)(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n);
    void *pool;
    bool
        samples; /* looks at some of a constant's numbers, where whoever writes them looks at all (passes/condense.c) */
    qn_remat remat;
    int64_t memory_limit;          /* bytes that a function's workspace may have; 0: any number */
    qn_remat_report *remat_report; /* of the function that the pass ran over last; or NULL */
} qn_pass_options;

/* May a product and a sum be one instruction, with one rounding? */
static inline bool qn_may_fuse(const qn_pass_options *options)
{
    return options->math != QN_MATH_STRICT && options->machine && options->machine->fma;
}

/* Changes `graph` in place; *out_changed is true exactly when it did. Graph invariants hold before and after. */
typedef qn_status (*qn_pass_fn)(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                                qn_diags *diags);

typedef struct qn_pass {
    const char *name;
    qn_pass_fn run;
    const char *help; /* one line */
} qn_pass;

extern const qn_pass qn_passes[]; /* from passes/pipeline.def, in their order; ends with a NULL name */
const qn_pass *qn_pass_find(const char *name);

typedef struct qn_pass_hooks { /* all may be NULL */
    bool (*enabled)(void *user, const qn_pass *pass,
                    int occurrence); /* for bisection: false skips this one */
    void (*after)(void *user, const qn_pass *pass, const qn_graph *graph, bool changed, double seconds);
    void *user;
    bool verify_each;
} qn_pass_hooks;

/* Runs the comma-separated passes, or the standard pipeline for NULL, over one graph. */
qn_status qn_run_passes(qn_graph *graph, const char *names, const qn_pass_options *options,
                        const qn_pass_hooks *hooks, qn_diags *diags);

/* ---- passes/autodiff.c ---- */

/* Adds a function `name`: `function`'s inputs -> its output `loss` (scalar float), then the gradients of the `wrt`
 * inputs (indices), in order; all outputs of `function` but the loss follow when `keep_outputs`. */
qn_graph *qn_grad(qn_graph *function, const char *name, int loss, int n_wrt, const int *wrt,
                  bool keep_outputs, qn_diags *diags);

/* Adds a function `name`, forward mode: `function`'s inputs, then `tangent_NAME` for each of the `wrt` inputs -> its outputs, then
 * `tangent_NAME` for each output of floats: the Jacobian times the tangents. (passes/jvp.c) */
qn_graph *qn_jvp(qn_graph *function, const char *name, int n_wrt, const int *wrt, qn_diags *diags);

/* ---- passes/fuse.c, passes/lower.c, passes/memplan.c ---- */

/* One kernel to be: nodes that run together. Every node is in one group; in several when it is cheap enough to be computed
 * again in each; or in none when it becomes no code (constants, reshapes of what is in memory). */
typedef enum qn_group_kind {
    QN_GROUP_LOOP, /* elementwise, broadcast, injective: one loop nest over the root's elements */
    QN_GROUP_ROWS, /* reductions over the same axes and what surrounds them: one task = some rows (kept axes) */
    QN_GROUP_CONTRACTION, /* one dot_general or convolution with what follows it element by element */
    QN_GROUP_SINGLE,      /* an opaque node */
    QN_GROUP_CONTROL      /* if, while, scan, call: program steps */
} qn_group_kind;

typedef struct qn_group {
    qn_group_kind kind;
    qn_node *root; /* the node that gives the group its shape (the contraction, the last node) */
    int n_nodes;
    qn_node **nodes; /* in order */
    int n_inputs;
    qn_value **inputs; /* read from outside, each once */
    int n_waits;
    qn_value **waits; /* results of nodes that bind symbols which its own have: it runs behind them */
    int n_outputs;
    qn_value **outputs; /* read outside */
    /* LOOP, ROWS, CONTRACTION: the iteration space, in the row-major order of the root (but `turned`). ROWS: reductions keep the axes where
     * is_row is set and run over the others; outputs have the elements of all axes or of the rows. */
    int n_dims;
    const qn_dim *dims;
    const bool *is_row; /* ROWS; NULL otherwise */
    bool
        turned; /* CONTRACTION: the space is that of the outputs, planes of channels, while the root's result lies in blocks */
} qn_group;

typedef struct qn_groups {
    qn_group *items;
    size_t n, capacity;
} qn_groups;

qn_status qn_fuse(qn_graph *graph, const qn_pass_options *options, qn_arena *arena, qn_groups *out_groups,
                  qn_diags *diags);

/* The kernel for a group. Buffers: inputs, then outputs, in the group's order. Params and tasks are expressions over the
 * module's symbols. Local kernel-to-kernel scratch, when a group needs several kernels, is the lowering's own (see lower.c). */
qn_status qn_lower(qn_graph *function, const qn_pass_options *options, qn_arena *arena,
                   qn_program **out_program, qn_diags *diags);

/* Kernel passes, applied by qn_lower in this order for a CPU. */
void qn_kernel_overlap(qn_kernel *kernel); /* passes over neighbouring rows -> one loop */
void qn_kernel_vectorize(qn_kernel *kernel,
                         const qn_machine *machine); /* loops tagged vector -> vector code */
void qn_kernel_expand_math(qn_kernel *kernel, const qn_machine *machine,
                           qn_math math); /* exp, tanh, … -> polynomials */
void qn_kernel_legalize(qn_kernel *kernel,
                        const qn_machine *machine); /* f16 and bf16 arithmetic in f32; bool, narrow ints */
void qn_kernel_forward(qn_kernel *kernel); /* what is stored to local memory and loaded again -> registers */
/* For a GPU, instead of vectorize and as the last pass: loops tagged vector -> threads of a block. */
void qn_kernel_gpu_map(qn_kernel *kernel);

qn_status qn_memplan(qn_program *program, qn_diags *diags);

#endif
