/* A backend is a table of functions. The driver picks one by target name; nobody else calls them. */
#ifndef QN_BACKENDS_BACKEND_H
#define QN_BACKENDS_BACKEND_H

#include "ir/program.h"
#include "passes/pass.h"

typedef struct qn_target {
    const char *triple;   /* "x86_64-unknown-linux-gnu"; NULL: the host's */
    const char *cpu;      /* "native", "x86-64-v3", "x86-64-v4", "sm_90" */
    const char *features; /* extra LLVM features, or NULL */
    bool jit;             /* code for this process, or for an object file */
    bool
        plain; /* code that computes nothing: for any CPU of that name, also those that lack what kernels need */
} qn_target;

typedef enum qn_emit { QN_EMIT_OBJECT, QN_EMIT_LLVM, QN_EMIT_ASSEMBLY } qn_emit;

/* Machine code or text; in the arena it was asked for with. */
typedef struct qn_code {
    void *data;
    size_t size;
} qn_code;

/* A set of programs to be the entries of an object. */
typedef struct qn_entries {
    int n_programs;
    const qn_program *const *programs;
    const char *const *const *kernel_symbols; /* kernel_symbols[p][k] for programs[p]->kernels[k] */
    const char *prefix;                       /* of C symbols */
    const char *query; /* the query function's symbol; hidden unless it is <prefix>_query */
    const char *weights_hash;
    bool weights_inside; /* else quern_ctx.weights has them */
    /* for the tables, where programs have steps on text: those of the module */
    int n_strings;
    const char *const *strings;
    const char *machine; /* what the tables say that the code is for; NULL: its target */
} qn_entries;

typedef struct qn_backend {
    const char *name; /* "cpu", "nvptx64", "interp" */
    qn_status (*describe)(const qn_target *target, qn_arena *arena, qn_machine *out_machine, qn_diags *diags);
    /* One kernel as code with the external symbol `symbol`: hidden and weak, since equal symbols are equal code.
     * Thread-safe: called from several threads at once. */
    qn_status (*emit_kernel)(const qn_kernel *kernel, const char *symbol, const qn_target *target,
                             qn_math math, qn_emit emit, qn_arena *arena, qn_code *out_code, qn_diags *diags);
    /* The entry functions, tables and query function. Weights inside: in an object file they are the hidden symbol
     * `<prefix>_weights` of another object, which the driver makes; in this process (target->jit) the driver stores
     * their address in the variable `<prefix>_weights_base` (a const void *) before it first calls the query function.
     * In this process the driver also stores the addresses of library functions, as kernels are called, in the array
     * `<prefix>_libraries` (QN_N_LIBRARIES of void (*)(int64_t *args, int64_t task)) where programs call them.
     * See docs/abi.md. */
    qn_status (*emit_entries)(const qn_entries *entries, const qn_target *target, qn_emit emit,
                              qn_arena *arena, qn_code *out_code, qn_diags *diags);
    /* optional: makes objects callable in this process */
    qn_status (*load)(int n_objects, const qn_code *objects, const char *const *names, void **out_image,
                      qn_diags *diags);
    void *(*symbol)(void *image, const char *name);
    void (*unload)(void *image);
} qn_backend;

extern const qn_backend qn_backend_cpu;   /* backends/llvm */
extern const qn_backend qn_backend_nvptx; /* backends/nvptx */

/* ---- backends/interp: the definition of every op ---- */

/* A tensor value at run time. `data` is owned by the arena of the call. dims are numbers. */
typedef struct qn_array {
    qn_dtype dtype;
    int rank;
    int64_t dims[QN_MAX_RANK];
    void *data;
} qn_array;

/* Runs a graph on concrete inputs, which may lie at any address; symbols are bound from the inputs' dims. Outputs are
 * filled in, their data in `arena`. A resolved graph (qn_graph_resolve) is only read: several threads may run it, each with
 * an arena and diagnostics of its own. */
qn_status qn_interp_run(const qn_graph *graph, const qn_array *inputs, qn_array *outputs, qn_arena *arena,
                        qn_diags *diags);
/* The same with the communicator and the table of strings that ctx lends; of this version's size. */
qn_status qn_interp_run_with(const qn_graph *graph, const quern_ctx *ctx, const qn_array *inputs,
                             qn_array *outputs, qn_arena *arena, qn_diags *diags);
/* For qn_pass_options.fold; `folder` is not read. Evaluates a node with one result whose operands are constants, or
 * broadcasts of constants, to a tensor of the node's module. NULL when it does not: a control node or an effect, a result
 * that depends on symbols, a mistake (an index out of range stays in the graph: it may never run), or too much of it:
 *   result   more than QN_FOLD_BYTES and than four times the bytes of the constants (QN_FOLD_PAD_GROWTH times of a pad), so that
 *            broadcasts and iota stay small while weights may be moved, padded, converted, scaled and quantized
 *   work     more than QN_FOLD_WORK multiplications or comparisons: contractions, windows
 *   op       a composite that gives QN_DEFER_BYTES or more: its primitives can be read in pieces
 * Movement and element-wise arithmetic that gives QN_DEFER_BYTES or more is not evaluated here but when the contents are
 * asked for (qn_tensor_data, qn_tensor_read). */
#define QN_DEFER_BYTES ((size_t)1 << 16)
#define QN_FOLD_BYTES ((int64_t)1 << 20)
#define QN_FOLD_WORK ((int64_t)1 << 28)
const qn_tensor *qn_interp_fold(const qn_node *node, void *folder);
/* Runs a kernel for tasks 0 … tasks-1; args as for machine code. */
qn_status qn_interp_kernel(const qn_kernel *kernel, int64_t *args, int64_t tasks, qn_diags *diags);
/* A task of a library's function; args as for a kernel. */
void qn_interp_library(qn_library library, const int64_t *args, int64_t task);
/* Runs a program with the kernel interpreter; io as for machine code. */
qn_status qn_interp_program(const qn_program *program, void *io, void *workspace, const void *weights,
                            quern_ctx *ctx, qn_diags *diags);

#endif
