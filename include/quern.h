/* quern.h - compile a model, run it, train it.
 *
 * A module is a model being described: loaded from a file or built by calls. Compiling it gives a model: immutable
 * machine code with its weights, usable from any thread. A session binds a model to memory: one per thread.
 *
 * Every fallible call returns a quern_status; quern_last_error() has the message of the calling thread's last failure.
 * Structures of options begin with `size`, which the caller sets to their sizeof; all else may be 0.
 * Functions that take a handle accept NULL where said. The library never prints and never ends the process but in one case: where
 * compilation itself (not a run, nor a size that a caller gives) finds no memory, with a line on standard error.
 */
#ifndef QUERN_H
#define QUERN_H

#include "quern_abi.h"

/* How many there are and the list itself, as two arguments of a call; for the macros below. */
#ifdef __cplusplus
extern "C++" {
#include <initializer_list>
template <class... T> char (&quern_count(const T &...))[sizeof...(T)];
}
#define QUERN_LIST(type, ...) \
    (int)sizeof(quern_count(__VA_ARGS__)), std::initializer_list<type>{ __VA_ARGS__ }.begin()
#else
#define QUERN_LIST(type, ...) \
    (int)(sizeof((type const[]){ __VA_ARGS__ }) / sizeof(type)), ((type const[]){ __VA_ARGS__ })
#endif

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QUERN_API __attribute__((visibility("default")))
#define QUERN_MUST_USE __attribute__((warn_unused_result))
#else
#define QUERN_API
#define QUERN_MUST_USE
#endif

QUERN_API const char *quern_version(void); /* "0.1.0" */
/* Message of this thread's last failed call: where, what, and what would do; several lines when several things are
 * wrong. Valid until the thread's next failing call. "" when nothing failed yet. */
QUERN_API const char *quern_last_error(void);
QUERN_API int
quern_last_status(void); /* its status, for calls that give NULL; QUERN_OK when nothing failed yet */
QUERN_API const char *quern_status_name(int status); /* "unsupported" */
QUERN_API size_t quern_dtype_size(int dtype);        /* bytes an element; 0 for an unknown one */
QUERN_API const char *quern_dtype_text(int dtype);   /* "f32" */

/* ---- modules ---- */

typedef struct quern_module quern_module;

/* A dimension given or bounded by the user: name = min..max (equal: fixed). Also one that a model computes: `length`, as messages
 * call it that want to know its largest value. */
typedef struct quern_dim_range {
    const char *name;
    int64_t min, max;
} quern_dim_range;

/* Memory of one tensor: contiguous, row-major. */
typedef struct quern_array {
    int32_t dtype, rank;
    const int64_t *dims;
    void *data;
} quern_array;

/* Contents of an input that are known when it is compiled: the input stays, its value is not read at run time. */
typedef struct quern_known_input {
    const char *name;
    quern_array array;
} quern_known_input;

/* The shape of an input, where the model does not say it, or not exactly: "[2, n]". Of a sequence that of each of its tensors:
 * "([2, n], [3, n])", or "()"; of an optional as of what is in it, or "none". Dimensions are numbers, names and expressions. */
typedef struct quern_shape {
    const char *name; /* of the input */
    const char *text;
} quern_shape;

typedef struct quern_load_options {
    size_t size; /* sizeof(quern_load_options) */
    int n_dims;
    const quern_dim_range *dims;
    int n_constants;
    const quern_known_input *constants;
    uint64_t seed; /* of random operators that have none of their own */
    /* Called for each input whose contents the model's operators would have to know to be compiled (a shape, axes, a
     * trip count), when loading fails for that: load again with them among `constants`. `index` counts the inputs that
     * the caller gives. Or NULL */
    void (*needs)(void *user, const char *input, int index);
    void *needs_user;
    /* The same of dimensions whose values operators would have to know (the extents of a kernel, a head's size): load again
     * with `dim` fixed among `dims`. It is dimension `axis` of input `input`; of a sequence, needs_shape is called. Or NULL */
    void (*needs_dim)(void *user, const char *dim, const char *input, int index, int axis);
    int n_shapes;
    const quern_shape *shapes;
    /* The same of inputs whose shapes have to be among `shapes`. Or NULL */
    void (*needs_shape)(void *user, const char *input, int index);
    int every_dim; /* needs_dim is called for each dimension that is not fixed, whether or not an operator asks for it */
} quern_load_options;

/* ONNX or Quern text, by content. Options may be NULL. Files beside the model (external data) stay inside its folder. */
QUERN_API int quern_load(const char *path, const quern_load_options *options,
                         quern_module **out) QUERN_MUST_USE;
QUERN_API int quern_load_bytes(const void *data, size_t size, const quern_load_options *options,
                               quern_module **out) QUERN_MUST_USE;
QUERN_API void quern_module_free(quern_module *module); /* NULL is fine */
/* What an imported model calls one input or output and the module has as several tensors, or none, or as numbers of strings: a
 * sequence is `n` tensors, NAME_0, NAME_1, …, the inputs or outputs from number `first` on; an optional without a value is none. */
typedef struct quern_group {
    size_t size;
    const char *name;
    int role;     /* QUERN_INPUT or QUERN_OUTPUT */
    int position; /* among the inputs that a caller gives, or the outputs, of the imported model */
    int sequence; /* 0: an optional without a value, or a tensor of strings */
    int first, n;
    int strings; /* elements are i64, the numbers of strings in the table of quern_module_strings */
} quern_group;

/* Gives their number. They live as long as the module. */
QUERN_API int quern_module_groups(const quern_module *module, const quern_group **out);
/* The strings that the model has (labels, categories, keys), by their numbers. A caller gives strings of inputs that are none of
 * them numbers from their count on: the same number for the same string. For a session with a table of its own
 * (quern_session_strings) that gives the numbers. */
QUERN_API int quern_module_strings(const quern_module *module, const char *const **out);
/* The text form; free with quern_free. */
QUERN_API int quern_module_text(const quern_module *module, char **out) QUERN_MUST_USE;
QUERN_API void quern_free(void *memory);

/* Adds a function: the gradient of output `loss` (a scalar) of function `function` (NULL: the first) with respect to its inputs
 * `wrt`. Its inputs are the function's; its outputs the loss, then grad_NAME for each: of a loss that is itself a gradient,
 * grad_x, grad2_NAME, and so on. */
QUERN_API int quern_grad(quern_module *module, const char *function, const char *loss, int n_wrt,
                         const char *const *wrt, const char *name) QUERN_MUST_USE;

/* Adds a function, forward mode: its inputs are the function's, then tangent_NAME for each of `wrt`; its outputs the function's,
 * then tangent_NAME for each output of floats, which is the Jacobian times the tangents. Of a gradient (quern_grad) that is
 * the Hessian times a vector. Where there are tangents already, the new ones are called tangent2_NAME, and so on. */
QUERN_API int quern_jvp(quern_module *module, const char *function, int n_wrt, const char *const *wrt,
                        const char *name) QUERN_MUST_USE;

/* Turns a forward module (its first output, of floats, is the prediction) into one that learns, with the entries
 *   infer        as before; batch norms use running statistics, dropouts do nothing
 *   train_step   inputs, then a label input `target`; output `loss`, the mean before the update. Parameters, running
 *                statistics of batch norms, optimizer state, the number of the step and the key of random masks are
 *                states, updated in place
 *   eval         inputs and `target`; output `loss`, and of cross_entropy `correct`: how many rows are right (i64)
 * With the loss "output" the function says its loss itself, as the mean of its first output: there is no `target`.
 * Parameters are the inputs made by quern_param and the float initializers of an imported model that reach an operand which
 * is learnt: not masks, bounds and initial states. Those of f16 and bf16 become states of f32, rounded where they are read; a
 * target of floats is f32 then. */
typedef struct quern_train_options {
    size_t size;
    const char *loss; /* "cross_entropy" (i64 classes), "mse", "huber", "bce", "bce_with_logits", "output" */
    const char *optimizer; /* "sgd", "adam", "adamw", "rmsprop", "adagrad", "lars", "lamb" */
    double learning_rate;
    double momentum; /* sgd, rmsprop, lars: 0 */
    double beta1, beta2,
        epsilon; /* adam, adamw, lamb: 0.9, 0.999 where 0; 1e-8 (adagrad 1e-10, lamb 1e-6) where 0 */
    double weight_decay;
    int nesterov;       /* sgd, with a momentum */
    double alpha;       /* rmsprop: 0.99 where 0 */
    double trust;       /* lars: 0.001 where 0 */
    double clip_norm;   /* most that the norm of all gradients together may be; 0: no limit */
    double ema;         /* keeps averages of the parameters with this decay, in states NAME.ema; 0: none */
    double huber_delta; /* 1 where 0 */
    /* Of the learning rate: "constant" (NULL), "cosine", "linear", "step"; "host": the rate is the f64 state `learning_rate`,
     * which the host sets between steps; warm-up applies. */
    const char *schedule;
    int64_t warmup_steps; /* the rate rises to learning_rate in as many steps, before the schedule begins */
    /* cosine, linear: from learning_rate to its schedule_factor-th; step: between drops */
    int64_t schedule_steps;
    double schedule_factor;    /* cosine, linear: 0; step: each drop's factor, 0.1 where 0 */
    int n_params;              /* 0: all parameters */
    const char *const *params; /* names of those that are trained; "*" stands for any letters */
    uint64_t seed;             /* of dropout's masks and random numbers */
    /* Adds the step in parts, for hosts that add up gradients over several batches, exchange them between machines or have
     * a loss of their own (then `loss` is NULL, and there are no target, train_step and eval):
     *   forward   as train_step, outputs `loss`, the model's, and residual.0, …: what backward has to know
     *   backward  inputs grad_loss (or grad_NAME for each output of floats), the residuals, and what else it needs of
     *             forward's inputs, as they were then; outputs grad_NAME for each parameter
     *   update    inputs grad_NAME for each parameter
     * States are those of train_step; `update` has them all. */
    int parts;
    int input_gradients; /* backward also gives grad_NAME for each input of floats */
    /* Of models that compute in float16: gradients are computed times this and divided by it before they are used; a step with
     * one that is not finite updates nothing. 0: not. With loss_scale_steps the scale is a state (`loss_scale`): halved by
     * such a step, doubled after so many others in a row. */
    double loss_scale;
    int64_t loss_scale_steps;
    /* As quern_compile_options.math, for what is simplified before differentiating; a trainer takes those. */
    const char *math;
    double
        label_smoothing; /* cross_entropy: the share of the target that goes evenly to all classes; below 1 */
    /* For ranks that each take a part of the batch, of as many rows: gradients, the loss and running statistics are averaged over
     * the ranks of the session's communicator (quern_session_set_comm, quern_trainer_set_comm), so that states stay alike on all
     * of them. With a loss that is a mean the step is that of the whole batch. In parts, `update` averages. */
    int data_parallel;
    int sync_batch_norm;  /* batch norms take the statistics of all ranks' rows; 0: of their own */
    int64_t bucket_bytes; /* as many bytes of gradients are averaged by one collective; 4 MiB where 0 */
    /* Stands before the names of the states that are the training's own: `step`, `random_key` and the like become NAME.step.
     * For models that share parameters (quern_trainer_share). NULL: nothing */
    const char *name;
} quern_train_options;
QUERN_API int quern_make_training(quern_module *module, const quern_train_options *options) QUERN_MUST_USE;

/* ---- compilation ---- */

typedef struct quern_compile_options {
    size_t size;
    const char *target; /* "cpu" (NULL), "interp" (the reference interpreter), "nvptx64", "cuda" */
    const char *
        cpu; /* "native" (NULL), "x86-64-v3", "x86-64-v4"; GPU: "sm_90". For files also a list, from the least to
                         * the most: "x86-64-v3,x86-64-v4" holds code for each, chosen when it is loaded (docs/abi.md) */
    const char *math;  /* "default" (NULL), "strict", "fast" */
    int threads;       /* for quern_session_run; 0: as many as the process may use */
    int optimize;      /* 0: default (2). 1: a kernel for each node, no fusion; for looking for mistakes */
    const char *cache; /* folder; NULL: $QUERN_CACHE, else the user's cache folder; "": none. No
                         * larger than $QUERN_CACHE_LIMIT ("500M"; 1 GiB where unset, 0: any size) */
    /* Called by any of the threads that compile, by one at a time; or NULL */
    void (*progress)(void *user, const char *what, int done, int total);
    void *progress_user;
    /* Who multiplies matrices of f32 and f64 in models for this process (quern_compile, target "cpu", not math "strict").
     * "none": our own kernels. "openblas": OpenBLAS, wherever operands lie as it reads them; an error where it cannot be
     * opened. "auto" (NULL): OpenBLAS for what we have no tuned kernels for (f64), where it can be opened and nothing else in
     * the process uses it. It is set to one thread, for everybody in the process: ours are the threads, and any number of
     * them gives the same bits. $QUERN_OPENBLAS names its file; otherwise it is libopenblas.so.0. */
    const char *blas;
    /* What large products and convolutions of float32 multiply, where the machine is faster so: "f32" (NULL); "bf16": operands
     * rounded to bfloat16, sums in float32; "int8": products with constants, of bytes with a scale for each row and column;
     * "int4": weights of four bits in products of few rows. Inputs and outputs stay what they are. See docs/precision.md */
    const char *precision;
    /* quern_compile, targets "cpu" and "interp": a run after which an output or a state is NaN or infinite fails
     * (QUERN_ERROR_NUMERIC), and says which node made the first of them, of what. States are as they were before it. Costs a
     * copy of the states for each run; the function is compiled again, looking at all values, when it has happened. */
    int check_numerics;
    /* Which values of a training step's forward part are computed again for its backward part instead of being kept: "none",
     * "sqrt" (about sqrt(n) of n steps keep theirs), "all" (as long as that saves memory); NULL: as many as the memory limit
     * makes necessary. See docs/training.md */
    const char *remat;
    int64_t
        memory_limit; /* bytes of workspace that an entry may have; 0: any number. MEMORY where that can't be */
    /* 1: measures schedules first, as quern_tune does with its defaults. */
    int tune;
    int compile_threads; /* of the compilation itself; 0: as many as the process may use */
    /* Looked at between the stages of a compilation and its kernels, each of them milliseconds: non-zero ends it with
     * QUERN_ERROR_CANCELLED. Set by a thread that watches the time, or by `progress`. Or NULL */
    const volatile int *cancel;
} quern_compile_options;

typedef struct quern_model quern_model;

/* Just-in-time: every function of the module becomes an entry. The module may be freed afterwards. Options may be NULL. */
QUERN_API int quern_compile(quern_module *module, const quern_compile_options *options,
                            quern_model **out) QUERN_MUST_USE;

/* Removes from the cache folder (as in quern_compile_options) what was not used for longest until `most` bytes are left: 0 clears
 * it, of tuned schedules too; below 0 removes nothing. Others may be using it. out_bytes, out_entries (or NULL): what is left. */
QUERN_API int quern_cache_trim(const char *folder, int64_t most, int64_t *out_bytes,
                               int64_t *out_entries) QUERN_MUST_USE;

/* Measures on this machine what cost models otherwise choose for the kernels that take the time (register tiles, how work is cut
 * into tasks, Winograd or direct convolution, how far ahead memory is read), with the entry's inputs at random and symbols at
 * their least value, and keeps winners in the cache folder. Every later compilation with that folder uses them, for the same
 * CPU and the same kernels and shapes, in any model. They don't depend on the number of threads, but are measured with
 * options.threads. Results of a model may change within the bounds of their ops: sums are made in another order. */
typedef struct quern_tune_options {
    size_t size;
    const char *entry; /* what is run; NULL: the first */
    double seconds;    /* of measuring, beside compilations; 20 where 0 */
    /* Told in the end of each kernel that was measured, its seconds of a run before and after, and its schedule; then of the
     * whole run, with site NULL. Or NULL */
    void (*report)(void *user, const char *site, double before, double after, const char *schedule);
    void *report_user;
} quern_tune_options;
QUERN_API int quern_tune(quern_module *module, const quern_compile_options *options,
                         const quern_tune_options *tune) QUERN_MUST_USE;

/* Ahead of time, written atomically. */
typedef struct quern_emit_options {
    size_t size;
    /* "so", "a", "o", "llvm", "asm", "ptx", "qn"; NULL: as the path's ending says (.so, .a, .o, .ll, .s, .ptx, .qn), "so" with
     * another one */
    const char *emit;
    const char *prefix;  /* of the C symbols; NULL: from the file name */
    const char *weights; /* "embed" (NULL), "side": <path>.safetensors */
    const char *header;  /* path of the C header; NULL: beside the output; "": none */
} quern_emit_options;
QUERN_API int quern_compile_file(quern_module *module, const quern_compile_options *options,
                                 const quern_emit_options *emit, const char *path) QUERN_MUST_USE;

/* A shared object that Quern emitted. prefix: of its names; NULL: from the file's name, or, where it was renamed, that of the
 * only model in it. A file that was replaced since another model was opened from it is the new one; not where a host opened it
 * by itself. */
QUERN_API int quern_model_open(const char *path, const char *prefix, quern_model **out) QUERN_MUST_USE;

QUERN_API void quern_model_free(quern_model *model); /* after its sessions; NULL is fine */
QUERN_API const quern_model_info *quern_model_describe(const quern_model *model);
QUERN_API const quern_entry_info *quern_model_entry(const quern_model *model,
                                                    const char *name); /* NULL: the first; NULL when absent */

/* ---- running ---- */

typedef struct quern_session quern_session;

/* A session of one entry (NULL: the first). Owns a workspace, and every buffer that is not bound. States start at the
 * model's initial values and belong to the session. Not thread-safe: one per thread. */
QUERN_API int quern_session_new(quern_model *model, const char *entry, quern_session **out) QUERN_MUST_USE;
QUERN_API void quern_session_free(quern_session *session);

/* Strings of models that make some or read their characters: see docs/abi.md. A tensor of strings has their numbers in a table. One
 * thread at a time uses a table. */

/* The session's own; NULL: its model needs none. */
QUERN_API quern_strings *quern_session_strings(quern_session *session);
/* Lends another one, which begins with the model's strings (NULL: the session's own again): of several sessions, so that they
 * understand each other's numbers. */
QUERN_API void quern_session_set_strings(quern_session *session, quern_strings *strings);
/* A table of these strings, with the numbers 0 to n - 1; they stay the caller's and must outlive it. */
QUERN_API int quern_strings_new(const char *const *texts, int n, quern_strings **out) QUERN_MUST_USE;
QUERN_API void quern_strings_free(quern_strings *strings); /* NULL is fine */
/* The number of a string, which becomes the last one of the table where it isn't there; and the string of a number, which ends with a
 * byte of zero that doesn't count (NULL: there is none). */
QUERN_API int quern_strings_number(quern_strings *strings, const char *text, size_t length,
                                   int64_t *out) QUERN_MUST_USE;
QUERN_API const char *quern_strings_text(const quern_strings *strings, int64_t number, size_t *out_length);
/* Forgets all but those that the table was made with: before the inputs of the next run, when the results of the last have been read. */
QUERN_API void quern_strings_clear(quern_strings *strings);
/* How many bytes those that are put behind may take, with what finds them; 256 MiB unless said otherwise. One more is
 * QUERN_ERROR_MEMORY. */
QUERN_API void quern_strings_limit(quern_strings *strings, size_t bytes);

/* The index of the first buffer of that name; -1 where there is none, which the calls below refuse: their error says the name. */
QUERN_API int quern_session_find(const quern_session *session, const char *name);
/* Of that role alone: an output may have the name of an input. */
QUERN_API int quern_session_find_role(const quern_session *session, quern_role role, const char *name);
/* Binds buffer `index` (see quern_entry_info.buffers) to the caller's memory, which must stay valid until rebound.
 * Checks dtype and dims; dims of inputs set the symbols. NULL: back to the session's own memory. */
QUERN_API int quern_session_bind(quern_session *session, int index, const quern_array *array) QUERN_MUST_USE;
QUERN_API int quern_session_run(quern_session *session) QUERN_MUST_USE;
/* Dims that the buffer has with the inputs that are bound now, rank values; of an output whose extent only the run finds,
 * the largest it may have (the interpreter cannot tell: UNSUPPORTED). */
QUERN_API int quern_session_dims(quern_session *session, int index, int64_t *out_dims) QUERN_MUST_USE;
/* The array of a buffer: after a run for outputs; owned by the session or the caller that bound it. */
QUERN_API int quern_session_get(quern_session *session, int index, quern_array *out) QUERN_MUST_USE;
/* What each run of the session lends to its entry: set trace or cancel, or lend another pool. Weights stay as they are. */
QUERN_API quern_ctx *quern_session_ctx(quern_session *session);
/* Lets sessions of a training model share states: `session` uses the state buffers of `owner` (matched by name). */
QUERN_API int quern_session_share_states(quern_session *session, quern_session *owner) QUERN_MUST_USE;

/* Binds each input of `session` to the buffer of that name of `from`, which has run: an input bound there, or an output. So
 * `backward` reads what `forward` read and left. Both see the same memory: rebind, or run `backward`, before the next run of
 * `from`. */
QUERN_API int quern_session_bind_from(quern_session *session, quern_session *from) QUERN_MUST_USE;

/* Writes all states by name as a safetensors file, atomically, with a note of the caller's (or NULL) and a hash of it all. */
QUERN_API int quern_session_save(quern_session *session, const char *path, const char *note) QUERN_MUST_USE;
/* Sets all states to those of such a file: a session goes on with the same bits. A file that is damaged or of another model
 * is refused, and nothing is changed. out_note (or NULL): free with quern_free. */
QUERN_API int quern_session_restore(quern_session *session, const char *path, char **out_note) QUERN_MUST_USE;
/* The same of several sessions in one file, as of two models that learn by turns. A state that they share is there once; states
 * that are alike in name alone are refused. */
QUERN_API int quern_sessions_save(int n, quern_session *const *sessions, const char *path,
                                  const char *note) QUERN_MUST_USE;
QUERN_API int quern_sessions_restore(int n, quern_session *const *sessions, const char *path,
                                     char **out_note) QUERN_MUST_USE;
/* Writes the ONNX model in file `from` to `to`, atomically: the same to the byte but for the initializers that the session
 * has trained (with `averages`, the averages of its parameters) and their running statistics. External data goes to TO.data. */
QUERN_API int quern_session_write_onnx(quern_session *session, const char *from, const char *to,
                                       int averages) QUERN_MUST_USE;

/* ---- threads: a pool that any entry can be lent, see quern_ctx ---- */

typedef struct quern_pool quern_pool;
QUERN_API quern_pool *
quern_pool_new(int threads); /* including the caller's; 0: as many as the process may use */
QUERN_API void quern_pool_free(quern_pool *pool);
QUERN_API int quern_pool_threads(const quern_pool *pool);
/* Fits quern_ctx.parallel_for. */
QUERN_API void quern_pool_parallel_for(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n);
/* Fits quern_ctx.parallel_for_down. */
QUERN_API void quern_pool_parallel_for_down(void *pool, void (*task)(void *arg, int64_t i), void *arg,
                                            int64_t n);

/* ---- ranks that compute together: communicators (quern_comm), see docs/parallel.md ---- */

/* Ranks that are threads of this process: thread i uses out_comms[i]. Each is freed by itself; whoever waits for one that is
 * freed gets an error. */
QUERN_API int quern_comm_threads(int ranks, quern_comm **out_comms) QUERN_MUST_USE;
/* This process among those that mpirun started, by libquern_mpi, which is opened now: it lies beside this library, or $QUERN_MPI
 * names it. Without mpirun there is one rank. Starts MPI where that has not been done; freeing the communicator ends it then. */
QUERN_API int quern_comm_mpi(quern_comm **out) QUERN_MUST_USE;
QUERN_API void quern_comm_free(quern_comm *comm); /* NULL is fine */
/* Collectives of the host's own memory, as the functions of quern_comm; comm NULL: this is the only rank. */
QUERN_API int quern_comm_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int dtype,
                                    int combine) QUERN_MUST_USE;
QUERN_API int quern_comm_all_gather(quern_comm *comm, const void *in, void *out, int64_t n,
                                    int dtype) QUERN_MUST_USE;
QUERN_API int quern_comm_reduce_scatter(quern_comm *comm, const void *in, void *out, int64_t n, int dtype,
                                        int combine) QUERN_MUST_USE;
QUERN_API int quern_comm_broadcast(quern_comm *comm, void *data, int64_t n, int dtype,
                                   int root) QUERN_MUST_USE;
/* The session runs as this rank, which it does not own. A run that fails fails on the other ranks too. NULL: alone. */
QUERN_API void quern_session_set_comm(quern_session *session, quern_comm *comm);
/* Every state becomes that of rank `root`, on all ranks of the session's communicator. */
QUERN_API int quern_session_broadcast_states(quern_session *session, int root) QUERN_MUST_USE;

/* ---- building a model by calls ---- */

/* Values belong to the builder. A mistake is kept, with the call's name, and reported by quern_builder_finish: values
 * made from a failed one fail silently, so user code checks once. */
typedef struct quern_builder quern_builder;
typedef struct quern_value quern_value; /* opaque */

typedef struct quern_dim { /* a number, or a symbol when name is set */
    int64_t value;
    const char *name;
} quern_dim;
#ifdef __cplusplus
#define QUERN_DIM(symbol) (quern_dim{ 0, symbol })
#define QUERN_N(number) (quern_dim{ (number), NULL })
#else
#define QUERN_DIM(symbol) ((quern_dim){ 0, symbol })
#define QUERN_N(number) ((quern_dim){ (number), NULL })
#endif
/* A rank and dims, for calls that take both: QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(64)) */
#define QUERN_SHAPE(...) QUERN_LIST(quern_dim, __VA_ARGS__)

QUERN_API quern_builder *quern_builder_new(const char *function_name);
QUERN_API void quern_builder_free(quern_builder *builder); /* without finishing */
QUERN_API void quern_builder_seed(quern_builder *builder,
                                  uint64_t seed); /* of what comes after; 0 at first */
QUERN_API quern_value *quern_input(quern_builder *b, const char *name, int dtype, int rank,
                                   const quern_dim *dims);
/* A trainable parameter with initial contents (copied). */
QUERN_API quern_value *quern_param(quern_builder *b, const char *name, int dtype, int rank,
                                   const int64_t *dims, const void *initial);
/* A buffer that stays from run to run, with initial contents (copied; NULL: zeros): a cache, or data that steps read. The
 * host may read and write it through quern_session_get. */
QUERN_API quern_value *quern_state(quern_builder *b, const char *name, int dtype, int rank,
                                   const int64_t *dims, const void *initial);
/* Parameters of floats drawn from the builder's seed: normal of mean 0 and that deviation, or uniform in +-bound. */
QUERN_API quern_value *quern_param_normal(quern_builder *b, const char *name, int dtype, int rank,
                                          const int64_t *dims, double deviation);
QUERN_API quern_value *quern_param_uniform(quern_builder *b, const char *name, int dtype, int rank,
                                           const int64_t *dims, double bound);
/* What the state holds after a run, written in place. A state that is never set stays as it is. */
QUERN_API void quern_set_state(quern_builder *b, quern_value *state, quern_value *value);
QUERN_API quern_value *quern_constant(quern_builder *b, int dtype, int rank, const int64_t *dims,
                                      const void *data); /* copied */
QUERN_API quern_value *quern_scalar(quern_builder *b, int dtype,
                                    double value); /* a constant, of integers exact, else rounded */
/* Any op of docs/ops.md: operands and attributes in the text form, such as "axis = 1" or "kind = sum, axes = [1]". */
QUERN_API quern_value *quern_op(quern_builder *b, const char *op, int n_operands,
                                quern_value *const *operands, const char *attributes);
/* The same with the operands behind: QUERN_OP(b, "gather", "axis = 0", table, rows) */
#define QUERN_OP(b, op, attributes, ...) quern_op(b, op, QUERN_LIST(quern_value *, __VA_ARGS__), attributes)
/* Another result of the op that made `value`. */
QUERN_API quern_value *quern_result(quern_builder *b, quern_value *value, int index);
QUERN_API quern_value *quern_add(quern_builder *b, quern_value *x,
                                 quern_value *y); /* NumPy broadcasting, as the next ones */
QUERN_API quern_value *quern_sub(quern_builder *b, quern_value *x, quern_value *y);
QUERN_API quern_value *quern_mul(quern_builder *b, quern_value *x, quern_value *y);
QUERN_API quern_value *quern_div(quern_builder *b, quern_value *x, quern_value *y);
QUERN_API quern_value *quern_max(quern_builder *b, quern_value *x, quern_value *y);
QUERN_API quern_value *quern_min(quern_builder *b, quern_value *x, quern_value *y);
/* x repeated to these dims, as NumPy does. */
QUERN_API quern_value *quern_broadcast(quern_builder *b, quern_value *x, int rank, const quern_dim *dims);
QUERN_API quern_value *quern_matmul(quern_builder *b, quern_value *x, quern_value *y);
QUERN_API quern_value *quern_relu(quern_builder *b, quern_value *x);
QUERN_API quern_value *quern_leaky_relu(quern_builder *b, quern_value *x,
                                        double slope); /* x, or slope x where x is negative */
QUERN_API quern_value *quern_tanh(quern_builder *b, quern_value *x);
QUERN_API quern_value *quern_sigmoid(quern_builder *b, quern_value *x); /* 1 / (1 + e^-x) */
QUERN_API quern_value *quern_gelu(quern_builder *b, quern_value *x);    /* x / 2 (1 + erf(x / sqrt 2)) */
/* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): GPT-2's gelu */
QUERN_API quern_value *quern_gelu_tanh(quern_builder *b, quern_value *x);
QUERN_API quern_value *quern_convert(quern_builder *b, quern_value *x, int dtype); /* each element */
/* As many elements, row-major. One of the dims may be QUERN_N(-1): what remains. */
QUERN_API quern_value *quern_reshape(quern_builder *b, quern_value *x, int rank, const quern_dim *dims);
/* Elements start to limit - 1 along an axis. Negative numbers, of the axis too, count from the end; limit INT64_MAX is the end. */
QUERN_API quern_value *quern_slice(quern_builder *b, quern_value *x, int axis, int64_t start, int64_t limit);
QUERN_API quern_value *quern_softmax(quern_builder *b, quern_value *x, int axis);
/* x [.., in] times a new parameter [in, out] plus a bias [out]; uniform in +-1/sqrt(in) from the builder's seed */
QUERN_API quern_value *quern_linear(quern_builder *b, quern_value *x, int64_t out, const char *name);
/* x [N, C, H, W] with new filters [channels, C, kernel, kernel], plus a bias [channels]; `padding` zeros at each side. Both
 * parameters are uniform in +-1/sqrt(C kernel kernel), as in quern_linear. */
QUERN_API quern_value *quern_conv2d(quern_builder *b, quern_value *x, int64_t channels, int64_t kernel,
                                    int64_t stride, int64_t padding, const char *name);
/* Its transpose, which enlarges: x [N, C, H, W] with new filters [C, channels, kernel, kernel] to [N, channels,
 * (H - 1) stride + kernel - 2 padding, likewise of W]. Both parameters start likewise. torch.nn.ConvTranspose2d; ONNX
 * ConvTranspose */
QUERN_API quern_value *quern_conv_transpose2d(quern_builder *b, quern_value *x, int64_t channels,
                                              int64_t kernel, int64_t stride, int64_t padding,
                                              const char *name);
/* The greatest of each window of window x window elements, which do not overlap; what fills no window is left out. */
QUERN_API quern_value *quern_max_pool2d(quern_builder *b, quern_value *x, int64_t window);
/* Row indices[..] of a new parameter NAME.weight [rows, width] of f32: [.., width]. Normal, of mean 0 and deviation 1, from
 * the builder's seed. A run in which an index is none of 0 .. rows - 1 fails. ONNX Gather; torch.nn.Embedding */
QUERN_API quern_value *quern_embedding(quern_builder *b, quern_value *indices, int64_t rows, int64_t width,
                                       const char *name);
/* (x - mean) / sqrt(variance + 1e-5) * NAME.weight + NAME.bias over the last axis of x [.., width]; ones and zeros [width] at
 * first. ONNX LayerNormalization; Ba, Kiros and Hinton, 2016 */
QUERN_API quern_value *quern_layer_norm(quern_builder *b, quern_value *x, const char *name);
/* The same for each of x [N, C, ..] over all axes but the first, with mean and variance of `groups` groups of C / groups channels
 * each; ones and zeros [C] at first. ONNX GroupNormalization; Wu and He, 2018 */
QUERN_API quern_value *quern_group_norm(quern_builder *b, quern_value *x, int64_t groups, const char *name);
/* The same over all axes but the second of x [N, C, ..], for each of C channels. Training takes mean and variance of the
 * batch, and sets the states NAME.running_mean (at first 0) and NAME.running_var (1) to 0.9 of what they were plus 0.1 of the
 * batch's; elsewhere these are used. ONNX BatchNormalization; Ioffe and Szegedy, 2015 */
QUERN_API quern_value *quern_batch_norm(quern_builder *b, quern_value *x, const char *name);
/* In training each element is 0 with probability `ratio` (at least 0, below 1), otherwise divided by 1 - ratio: the mean is
 * kept. Elsewhere x. The masks depend on quern_train_options.seed, the step and the dropout's number alone. ONNX Dropout;
 * Srivastava et al., 2014 */
QUERN_API quern_value *quern_dropout(quern_builder *b, quern_value *x, double ratio);

/* Recurrences over x [batch, time, features] from states of 0, which give all hidden states [batch, time, hidden]. Their
 * parameters, with the order of the gates, and how these start are PyTorch's: NAME.weight_ih [gates hidden, features],
 * NAME.weight_hh [gates hidden, hidden], NAME.bias_ih and NAME.bias_hh [gates hidden], uniform in +-1/sqrt(hidden).
 *
 * Gates input i, forget f, cell g, output o: c' = f c + i g, h' = o tanh(c'), with i, f and o behind a sigmoid and g behind
 * a tanh. torch.nn.LSTM; Hochreiter and Schmidhuber, 1997 */
QUERN_API quern_value *quern_lstm(quern_builder *b, quern_value *x, int64_t hidden, const char *name);
/* Gates reset r, update z, new n: n = tanh(from x + r (from h)), h' = (1 - z) n + z h. torch.nn.GRU; Cho et al., 2014 */
QUERN_API quern_value *quern_gru(quern_builder *b, quern_value *x, int64_t hidden, const char *name);

/* One step of either from states of the caller's, and with the same parameters: x [batch, features], h and *c [batch, hidden].
 * Gives the next h, and puts the next c into *c. torch.nn.LSTMCell, GRUCell */
QUERN_API quern_value *quern_lstm_cell(quern_builder *b, quern_value *x, quern_value *h, quern_value **c,
                                       const char *name);
QUERN_API quern_value *quern_gru_cell(quern_builder *b, quern_value *x, quern_value *h, const char *name);

/* A loop over axis 0 of the values in `scanned`, at least one, all as long. `body` is called once and describes a step: it is
 * given the carried values and a slice of each scanned one, replaces the former by the next ones, which are of the same type, and
 * fills `step` with what is kept of each step. It may use all values made before, and layers, whose parameters every
 * step shares. Then `carried`, which had the first values, has the last ones, and `stacked` what was kept: [length, ...].
 * JAX lax.scan */
typedef void (*quern_scan_fn)(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                              quern_value **step);
QUERN_API void quern_scan(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                          quern_value *const *scanned, int n_stacked, quern_value **stacked,
                          quern_scan_fn body, void *user);
/* The same from the last slice to the first: what a step keeps lies where its slices do. */
QUERN_API void quern_scan_reverse(quern_builder *b, int n_carried, quern_value **carried, int n_scanned,
                                  quern_value *const *scanned, int n_stacked, quern_value **stacked,
                                  quern_scan_fn body, void *user);

/* softmax(q k^T / sqrt(depth) + mask) v of q [batch, heads, length, depth], k [batch, groups, keys, depth] and
 * v [batch, groups, keys, width], heads being a multiple of groups: [batch, heads, length, width]. The mask (or NULL) is
 * added, or of bool: true where a key is seen; of rank 4, each dim 1 or that of [batch, heads, length, keys].
 * causal: query s sees keys t <= s + keys - length. Vaswani et al., 2017 */
QUERN_API quern_value *quern_dot_product_attention(quern_builder *b, quern_value *q, quern_value *k,
                                                   quern_value *v, quern_value *mask, int causal);
/* Multi-head attention of x [batch, length, width] to `memory` [batch, keys, any width] (NULL: to x itself): linear layers
 * NAME.q of x, NAME.k and NAME.v of memory, as wide as x; `heads` heads, which divide width; a layer NAME.o behind them.
 * Parameters as in quern_linear. Gives [batch, length, width]. torch.nn.MultiheadAttention, batch first */
QUERN_API quern_value *quern_attention(quern_builder *b, quern_value *x, quern_value *memory, int64_t heads,
                                       int causal, const char *name);
QUERN_API quern_value *quern_mean(quern_builder *b, quern_value *x); /* of all elements: a scalar */
/* Collectives of the ranks that run the model together, whose sessions have communicators (quern_session_set_comm); combine: a
 * quern_combine. A model with `ranks` is for so many. Differentiable: see docs/parallel.md */
QUERN_API quern_value *quern_all_reduce(quern_builder *b, quern_value *x, int combine);
/* The tensors of all ranks, one behind the other along the axis. */
QUERN_API quern_value *quern_all_gather(quern_builder *b, quern_value *x, int axis, int ranks);
/* This rank's part, along the axis, of all tensors combined. */
QUERN_API quern_value *quern_reduce_scatter(quern_builder *b, quern_value *x, int combine, int axis,
                                            int ranks);
QUERN_API quern_value *quern_broadcast_rank(quern_builder *b, quern_value *x,
                                            int root); /* that of rank root */
QUERN_API quern_value *quern_rank(quern_builder *b);   /* this rank's number, from 0 up: an i64 scalar */
/* Losses, as those that quern_train_options.loss names: scalars, the mean over the elements (cross_entropy: over the rows).
 * They may be added up and weighed; a function whose first output is one trains with the loss "output". The target has
 * the prediction's dims, or is a scalar, and is converted to its data type. Predictions of 16 bits are taken in float32. */
typedef struct quern_loss_options {
    size_t size;
    const char *reduction;  /* "mean" (NULL), "sum", or "none": one for each element, or row */
    double huber_delta;     /* 1 where 0 */
    double label_smoothing; /* cross_entropy: as in quern_train_options */
} quern_loss_options;
/* By name: "cross_entropy", "mse", "huber", "bce", "bce_with_logits". Options may be NULL. */
QUERN_API quern_value *quern_loss(quern_builder *b, const char *name, quern_value *prediction,
                                  quern_value *target, const quern_loss_options *options);
/* Of logits [rows.., classes] and labels: class numbers [rows..], or each class's share [rows.., classes] in floats. */
QUERN_API quern_value *quern_cross_entropy(quern_builder *b, quern_value *logits, quern_value *labels);
QUERN_API quern_value *quern_mse(quern_builder *b, quern_value *prediction, quern_value *target);
QUERN_API quern_value *
quern_huber(quern_builder *b, quern_value *prediction, quern_value *target,
            double delta); /* d^2 / 2 up to |d| = delta, delta (|d| - delta / 2) beyond */
/* Of probabilities, or of logits, and targets from 0 to 1 (bool too). */
QUERN_API quern_value *quern_bce(quern_builder *b, quern_value *probability, quern_value *target);
QUERN_API quern_value *quern_bce_with_logits(quern_builder *b, quern_value *logit, quern_value *target);
QUERN_API void quern_output(quern_builder *b, quern_value *x, const char *name);
/* The module, and the end of the builder; or the first mistake. */
QUERN_API int quern_builder_finish(quern_builder *b, quern_module **out) QUERN_MUST_USE;
/* The same and quern_compile: the model. */
QUERN_API int quern_build(quern_builder *b, const quern_compile_options *options,
                          quern_model **out) QUERN_MUST_USE;

/* ---- training: a step, an epoch, an evaluation ---- */

/* The arrays of a .npy or .npz file. */
typedef struct quern_arrays quern_arrays;
QUERN_API int quern_arrays_read(const char *path, quern_arrays **out) QUERN_MUST_USE;
/* By the name it has in the archive; NULL where there is none. Belongs to `arrays`. */
QUERN_API const quern_array *quern_arrays_find(const quern_arrays *arrays, const char *name);
QUERN_API void quern_arrays_free(quern_arrays *arrays); /* NULL is fine */

/* A compiled model that learns: the entries of quern_make_training, and their states, in sessions of its own. `x` below is an
 * array for each input of the model, in their order: of a model with one input, a pointer to it. With target "cuda" the states
 * stay on the GPU: quern_session_tensor (quern_tensor.h) gives them. Not thread-safe. */
typedef struct quern_trainer quern_trainer;

/* Makes the module a learning one and compiles it; the module may be freed afterwards. Compile options may be NULL. */
QUERN_API int quern_trainer_new(quern_module *module, const quern_train_options *train,
                                const quern_compile_options *compile, quern_trainer **out) QUERN_MUST_USE;
/* The same of the model that the builder describes, whose first output is the prediction. The end of the builder. */
QUERN_API int quern_train(quern_builder *b, const quern_train_options *train,
                          const quern_compile_options *compile, quern_trainer **out) QUERN_MUST_USE;
QUERN_API void quern_trainer_free(quern_trainer *trainer); /* NULL is fine */
/* From now on `trainer` uses the parameters and states of `owner` that have the same name, where it evaluates and predicts too:
 * models that learn by turns, each some of the parameters (quern_train_options.params), as a generator and its critic. What
 * training itself adds stays apart: both have a quern_train_options.name where both have such states. The owner is freed last. */
QUERN_API int quern_trainer_share(quern_trainer *trainer, quern_trainer *owner) QUERN_MUST_USE;

/* One update, from a batch. target: NULL with the loss "output", here and below. out_loss (or NULL): the batch's mean loss
 * before the update. */
QUERN_API int quern_trainer_step(quern_trainer *trainer, const quern_array *x, const quern_array *target,
                                 double *out_loss) QUERN_MUST_USE;
/* Along which axis quern_trainer_epoch finds the rows of x[which], or of the target, whose number is that of the inputs; 0
 * where nothing is said. For models whose sequences come first. */
QUERN_API int quern_trainer_batch_axis(quern_trainer *trainer, int which, int axis) QUERN_MUST_USE;
/* One update for each `batch` rows of x and target (the last may have fewer), as they lie where `shuffle` is 0, otherwise
 * in an order that this number decides. out_losses (or NULL): the loss of each batch. */
QUERN_API int quern_trainer_epoch(quern_trainer *trainer, const quern_array *x, const quern_array *target,
                                  int64_t batch, uint64_t shuffle, double *out_losses) QUERN_MUST_USE;
/* The mean loss without an update, and how many rows are right (of cross_entropy; otherwise -1). Either may be NULL. */
QUERN_API int quern_trainer_eval(quern_trainer *trainer, const quern_array *x, const quern_array *target,
                                 double *out_loss, int64_t *out_correct) QUERN_MUST_USE;
/* The model's first output for x, from the parameters as they are. It belongs to the trainer, until the next prediction. */
QUERN_API int quern_trainer_predict(quern_trainer *trainer, const quern_array *x,
                                    quern_array *out) QUERN_MUST_USE;
/* For a model trained with data_parallel: this is a rank of the communicator, which the trainer does not own. States become those
 * of rank 0, on all ranks, which all call this. From now on quern_trainer_epoch is given all rows on each rank, and `batch` is
 * that of all together, a multiple of the ranks: each takes its part. Rows at the end that don't go into equal parts are left out.
 * quern_trainer_step takes this rank's rows. */
QUERN_API int quern_trainer_set_comm(quern_trainer *trainer, quern_comm *comm) QUERN_MUST_USE;
/* The session that owns the states: to read them, to save and restore them. Belongs to the trainer. */
QUERN_API quern_session *quern_trainer_session(quern_trainer *trainer);
QUERN_API const quern_entry_info *quern_trainer_entry(const quern_trainer *trainer); /* of that session */

#ifdef __cplusplus
}
#endif
#endif
