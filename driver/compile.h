/* From a module to machine code: passes, lowering, weights, kernels in parallel through the cache, entries. What
 * comes out is loaded into this process (model_jit.c) or written to files (emit.c). */
#ifndef QN_DRIVER_COMPILE_H
#define QN_DRIVER_COMPILE_H

#include "backends/backend.h"
#include "backends/llvm/choice.h"
#include "driver/cache.h"
#include "driver/weights.h"
#include "quern.h"
#include "runtime/device.h"

typedef enum qn_blas_choice { QN_BLAS_AUTO, QN_BLAS_NONE, QN_BLAS_OPENBLAS } qn_blas_choice;

/* quern_compile_options, with defaults filled in. */
typedef struct qn_settings {
    const qn_backend *backend; /* NULL: the interpreter */
    qn_target target;
    const char *device; /* that the code is to run on, of this machine: "cuda", "cuda:1"; NULL: the CPU */
    qn_math math;
    qn_precision precision;
    int threads; /* of the model's runs; 0: as many as the process may use */
    bool fuse;
    qn_remat remat;
    int64_t memory_limit; /* bytes of each entry's workspace; 0: any number */
    qn_blas_choice blas;
    const char *cache;
    void (*progress)(void *user, const char *what, int done, int total); /* or NULL */
    void *progress_user;
    void (*planned)(void *user, const char *entry, const qn_remat_report *plan); /* or NULL; user as above */
    const qn_pass_hooks *hooks;        /* of the graph passes, or NULL */
    const qn_schedule_book *schedules; /* NULL: those that the cache has */
    bool tune;                         /* measure them first */
    int compile_threads;               /* 0: as many as the process may use */
    const volatile int *cancel;        /* or NULL */
} qn_settings;

QN_MUST_USE qn_status qn_settings_from(const quern_compile_options *options, qn_settings *out,
                                       qn_diags *diags);

/* Refuses settings that only hold for code in this process; `what` is made instead: "a file". */
QN_MUST_USE qn_status qn_settings_need_no_blas(const qn_settings *settings, const char *what,
                                               qn_diags *diags);

/* Time that each stage took, in seconds. */
typedef struct qn_compile_times {
    double passes, lower, kernels, entries;
    int n_kernels, n_cached; /* different kernels; those that came from the cache */
} qn_compile_times;

typedef struct qn_compiled {
    qn_arena *arena; /* of everything here but what is the module's: it must outlive this */
    int n_programs;
    qn_program **programs;
    double *
        flops; /* per program: of its contractions, once; 0 where a size depends on symbols or a loop on data */
    qn_remat_report *plans; /* per program */
    qn_weights weights;
    int n_strings; /* of the module */
    const char *const *strings;
    int n_kernels; /* different ones */
    qn_code *kernels;
    const char **kernel_symbols, **kernel_names;
    const char ***program_symbols;   /* per program and kernel of it */
    qn_cache_key **program_keys;     /* likewise: of the kernel's object */
    bool *kept;                      /* per program: out of the cache (kept.h), its kernels have no bodies */
    const struct qn_kept **found_by; /* per program: what it is kept by; NULL: it is not */
    qn_code entries;                 /* of QN_JIT_PREFIX, where a program was kept; else empty */
    qn_machine machine;
    qn_compile_times times;
} qn_compiled;

/* "x86_64-unknown-linux-gnu znver4": triple and CPU, without the long list of features. */
const char *qn_machine_name(const qn_machine *machine, qn_arena *arena);

/* Programs and the layout of the weights, without code. `module` is changed, as below. */
QN_MUST_USE qn_status qn_plan_module(qn_module *module, const qn_settings *settings, qn_arena *arena,
                                     qn_compiled *out, qn_diags *diags);
/* Everything but the entries. `module` is changed: give a clone where it is still needed. With `emit` other than an
 * object the kernels are text. Results live in `arena`. */
QN_MUST_USE qn_status qn_compile_module(qn_module *module, const qn_settings *settings, qn_emit emit,
                                        qn_arena *arena, qn_compiled *out, qn_diags *diags);

/* After qn_weights_move said that numbers of sampled constants were lost: these are whole again, and what qn_compile_module made of
 * `module` for this process is made without. */
QN_MUST_USE qn_status qn_compile_again(qn_module *module, const qn_settings *settings, qn_compiled *compiled,
                                       qn_diags *diags);

/* One kernel as an object with the symbol *symbol, by the cache. */
QN_MUST_USE qn_status qn_compile_kernel(const qn_kernel *kernel, const qn_machine *machine,
                                        const qn_settings *s, qn_arena *arena, const char **symbol,
                                        qn_code *out, qn_diags *diags);

/* What qn_compile_module made as the entries of an object. */
qn_entries qn_compiled_entries(const qn_compiled *c, const char *prefix, bool weights_inside);
/* The object with these entries and their tables, through the cache; in the arena of `c`. */
QN_MUST_USE qn_status qn_compile_entries(const qn_compiled *c, const qn_entries *entries,
                                         const qn_settings *settings, qn_code *out, qn_diags *diags);

/* The object that compares itself with the machine's CPU, through the cache; in the arena of `c`. */
QN_MUST_USE qn_status qn_compile_choice(const qn_compiled *c, const qn_choice *choice,
                                        const qn_settings *settings, qn_code *out, qn_diags *diags);

#define QN_JIT_PREFIX "model"
/* Into this process. `module` is changed, and may be freed afterwards. */
QN_MUST_USE qn_status qn_model_jit(qn_module *module, const qn_settings *settings, quern_model **out,
                                   qn_diags *diags);

/* Onto the GPU of this machine; QUERN_ERROR_DEVICE where there is none. `module` is the model's, also on an error. */
QN_MUST_USE qn_status qn_model_cuda(qn_module *module, const qn_settings *settings, quern_model **out,
                                    qn_diags *diags);

/* One run of such a model. */
typedef struct qn_cuda_run {
    int entry;
    void **io;             /* by buffer: an address on the host, or */
    const bool *on_device; /* where this says so, on the model's device */
    int n_symbols;
    int64_t *symbols; /* of the entry: those that the run decides are set by it */
    quern_ctx *ctx;
    quern_session *session; /* whose outputs get dims that the run has decided; or NULL */
    /* Memory that it needs besides is the model's, which keeps it; or, of a transient run, the device's, and given back. */
    bool transient;
    qn_device *device;
} qn_cuda_run;
int qn_model_cuda_run(const quern_model *model, const qn_cuda_run *run);

/* Makes sessions of the model find where NaN and infinity come from (quern_compile_options.check_numerics; numerics.c). */
void qn_check_numerics(quern_model *model, quern_module *module, const quern_compile_options *options);

/* What a model of qn_model_jit knows about its making; NULL for any other. */
typedef struct qn_kernel_cost {
    int entry;
    const char *name;    /* as quern_ctx.trace says it; several kernels of a node may have the same */
    double flops, bytes; /* of one call; 0: unknown */
    double times;        /* calls in a run: steps of the loops around it, where they are known */
} qn_kernel_cost;
typedef struct qn_model_notes {
    qn_compile_times times;
    const double *flops; /* per entry, as in qn_compiled */
    const qn_remat_report *plans;
    size_t n_costs, cost_capacity;
    qn_kernel_cost *costs;
} qn_model_notes;
const qn_model_notes *qn_model_notes_of(const quern_model *model);
/* Of one call, on average over the calls of kernels of that name; notes may be NULL. */
qn_kernel_cost qn_model_cost_of(const qn_model_notes *notes, int entry, const char *name);

/* What the ending of the path says that it is to be, as quern_emit_options.emit; NULL: nothing. */
const char *qn_emit_kind(const char *path);

/* Into files. out_times may be NULL. */
QN_MUST_USE qn_status qn_emit_files(qn_module *module, const qn_settings *settings,
                                    const quern_emit_options *emit, const char *path,
                                    qn_compile_times *out_times, qn_diags *diags);

#endif
