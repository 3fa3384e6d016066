/* The pipeline from a module to kernels' code: see compile.h. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/llvm/host.h"
#include "driver/blas.h"
#include "driver/build_id.h"
#include "driver/cache.h"
#include "driver/compile.h"
#include "driver/flops.h"
#include "driver/kept.h"
#include "driver/llvm_key.h"
#include "driver/tune.h"
#include "ir/clock.h"
#include "ir/condensed.h"
#include "ir/print.h"
#include "ir/strbuf.h"
#include "passes/passes.h"
#include "runtime/pool.h"

static void progress(const qn_settings *s, const char *what, int done, int total)
{
    if (s->progress)
        s->progress(s->progress_user, what, done, total);
}

static qn_status check_cancel(const qn_settings *s, qn_diags *diags)
{
    return s->cancel && *s->cancel
               ? qn_error(diags, QUERN_ERROR_CANCELLED, NULL, "the compilation was cancelled")
               : QUERN_OK;
}

/* ---- graphs to programs ---- */

#ifdef NDEBUG
enum { QN_VERIFY_PROGRAMS = 0 };
#else
enum { QN_VERIFY_PROGRAMS = 1 };
#endif

static bool has_blas_alone(void)
{
    return qn_blas_open(true, NULL) != NULL;
}

/* OpenBLAS is opened when a model needs it, since it starts threads and takes milliseconds; at once when it was asked for. */
static qn_status choose_blas(const qn_settings *s, qn_pass_options *out, qn_diags *diags)
{
    const char *why = "";
    if (!s->target.jit || s->blas == QN_BLAS_NONE)
        return QUERN_OK;
    if (s->blas == QN_BLAS_AUTO) {
        out->blas = QN_BLAS_WHERE_UNTUNED;
        out->has_blas = has_blas_alone;
        return QUERN_OK;
    }
    out->blas = QN_BLAS_ALWAYS;
    if (!qn_blas_open(false, &why))
        return qn_error(diags, QUERN_ERROR_IO, NULL, "OpenBLAS cannot be used: %s", why);
    return QUERN_OK;
}

/* What LLVM made. */
static void keep_code(qn_cache *cache, const qn_cache_key *key, const qn_code *code)
{
    qn_arena *scratch = qn_arena_new();
    if (qn_cache_put(cache, key, code))
        qn_llvm_keep(cache, scratch);
    qn_arena_free(scratch);
}

static const char *target_key(const qn_settings *s, const qn_cache *cache, qn_arena *arena)
{
    return qn_arena_printf(arena, "quern %s %s llvm %s abi %u backend %s triple %s cpu %s features %s",
                           QN_VERSION_STRING, qn_this_build(arena), qn_llvm_key(cache, arena),
                           QUERN_ABI_VERSION, s->backend->name, s->target.triple ? s->target.triple : "",
                           s->target.cpu ? s->target.cpu : "", s->target.features ? s->target.features : "");
}

/* What the code depends on besides the kernel: the target, the math mode. */
static const char *common_key(const qn_settings *s, const qn_cache *cache, const qn_machine *machine,
                              qn_emit emit, qn_arena *arena)
{
    return qn_arena_printf(arena, "%s+%s math %d emit %d", target_key(s, cache, arena),
                           machine->features ? machine->features : "", (int)s->math, (int)emit);
}

/* A machine that LLVM is asked for, as it was described the last time: its numbers, then the text of its features. */
static bool find_machine(const qn_cache *cache, const qn_cache_key *key, qn_arena *arena, qn_machine *out)
{
    qn_code code;
    if (!qn_cache_get(cache, key, arena, &code) || code.size < sizeof *out)
        return false;
    memcpy(out, code.data, sizeof *out);
    out->features =
        qn_arena_printf(arena, "%.*s", (int)(code.size - sizeof *out), (char *)code.data + sizeof *out);
    return true;
}

static void keep_machine(qn_cache *cache, const qn_cache_key *key, const qn_machine *machine, qn_arena *arena)
{
    qn_strbuf text = { .arena = arena };
    qn_machine numbers = *machine;
    numbers.features = NULL;
    qn_strbuf_add(&text, (const char *)&numbers, sizeof numbers);
    qn_strbuf_puts(&text, machine->features ? machine->features : "");
    keep_code(cache, key, &(qn_code){ text.data, text.n });
}

static qn_status describe(const qn_settings *s, qn_cache *cache, qn_arena *arena, qn_machine *out,
                          qn_diags *diags)
{
    const qn_target *t = &s->target;
    if (s->backend == &qn_backend_cpu && !t->triple && (!t->cpu || strcmp(t->cpu, "native") == 0))
        return s->backend->describe(t, arena, out, diags); /* this one, which the CPU is asked for */
    const char *texts[] = { "machine", target_key(s, cache, arena),
                            t->jit     ? "jit"
                            : t->plain ? "plain"
                                       : "",
                            qn_host_text() }; /* what this one lacks, a process has no code for */
    const qn_cache_key key = qn_cache_key_of(4, texts);
    if (find_machine(cache, &key, arena, out))
        return QUERN_OK;
    QN_TRY(s->backend->describe(t, arena, out, diags));
    keep_machine(cache, &key, out, arena);
    return QUERN_OK;
}

/* What programs are made with. */
typedef struct planner {
    qn_settings settings;
    qn_pass_options options;
    qn_cache cache;
    qn_kept_schedules schedules;
    quern_pool *pool;   /* NULL until something is to run on it */
    const char *common; /* common_key */
    const char
        *kept_by; /* what kept programs depend on besides their graphs; NULL: they are not looked for */
    qn_compiled *out;
} planner;

/* Programs are kept of models for this process, which need nothing of their kernels' bodies. */
static const char *kept_by(const planner *p, qn_arena *arena)
{
    const qn_settings *s = &p->settings;
    const qn_machine *machine = &p->out->machine;
    if (!s->target.jit || s->backend != &qn_backend_cpu || s->hooks || p->cache.folder < 0 ||
        s->schedules != &p->schedules.schedules)
        return NULL;
    return qn_arena_printf(arena, "%s fuse %d precision %d caches %lld %lld %lld tuned %s", p->common,
                           s->fuse, (int)s->precision, (long long)machine->l1_bytes,
                           (long long)machine->l2_bytes, (long long)machine->l3_bytes,
                           qn_last_tuned(&p->cache, machine, arena));
}

/* Threads take longer to come and go than a small model takes to come out of the cache. */
static void parallel_for(void *planner_, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    planner *p = planner_;
    if (n > 1 && !p->pool && p->settings.compile_threads != 1)
        p->pool = quern_pool_new(p->settings.compile_threads);
    quern_pool_parallel_for(p->pool, task, arg, n);
}

/* end_planning is for what fails here, too. */
static qn_status begin_planning(planner *p, const qn_settings *s, qn_emit emit, qn_compiled *out,
                                qn_diags *diags)
{
    *p = (planner){ .settings = *s, .out = out, .cache = { .folder = -1 } };
    QN_TRY(qn_cache_open(&p->cache, s->cache, diags));
    QN_TRY(describe(s, &p->cache, out->arena, &out->machine, diags));
    qn_kept_schedules_init(&p->schedules, &p->cache, &out->machine);
    if (!s->schedules)
        p->settings.schedules = &p->schedules.schedules;
    p->options = (qn_pass_options){ .math = s->math,
                                    .precision = s->precision,
                                    .machine = &out->machine,
                                    .fold = qn_interp_fold,
                                    .schedules = p->settings.schedules,
                                    .parallel_for = parallel_for,
                                    .pool = p,
                                    .samples = s->target.jit,
                                    .no_fusion = !s->fuse,
                                    .remat = s->remat,
                                    .memory_limit = s->memory_limit };
    p->common = common_key(s, &p->cache, &out->machine, emit, out->arena);
    p->kept_by = kept_by(p, out->arena);
    return choose_blas(s, &p->options, diags);
}

static void end_planning(planner *p)
{
    quern_pool_free(p->pool);
    qn_cache_close(&p->cache);
}

static bool verifies_programs(const qn_settings *s)
{
    return QN_VERIFY_PROGRAMS || (s->hooks && s->hooks->verify_each);
}

/* Keys of the objects of a program's kernels. */
static qn_cache_key *keys_of(const planner *p, const qn_program *program)
{
    qn_cache_key *keys = QN_NEW_ARRAY(p->out->arena, qn_cache_key, program->n_kernels);
    for (int k = 0; k < program->n_kernels; k++)
        keys[k] = qn_cache_key_of(2, (const char *[]){ p->common, program->kernel_texts[k] });
    return keys;
}

static qn_status lower(planner *p, qn_graph *graph, int number, qn_diags *diags)
{
    qn_compiled *out = p->out;
    qn_program *program;
    QN_TRY(qn_lower(graph, &p->options, out->arena, &program, diags));
    QN_TRY(qn_memplan(program, diags));
    if (verifies_programs(&p->settings))
        QN_TRY(qn_program_verify(program, diags));
    out->programs[number] = program;
    out->program_keys[number] = keys_of(p, program);
    return QUERN_OK;
}

typedef struct lost_constants {
    const qn_kept *kept; /* or NULL */
    const bool *lost;    /* per constant of that; NULL: none */
} lost_constants;

static bool is_lost(const qn_tensor *tensor, void *user)
{
    const lost_constants *c = user;
    for (int i = 0; c->lost && i < c->kept->n_constants; i++)
        if (c->lost[i] && c->kept->constants[i] == tensor)
            return true;
    return qn_tensor_is_lost(tensor);
}

/* Makes constants whole that were condensed by a sample, and of which numbers were lost. */
static bool expand_lost(planner *p, qn_graph *graph, const qn_kept *kept)
{
    lost_constants c = { kept, kept ? qn_kept_lost(&p->cache, kept, p->out->arena) : NULL };
    const bool any = qn_expand_sampled(graph, is_lost, &c) > 0;
    if (any)
        qn_graph_remove_dead(graph);
    return any;
}

/* As it was kept, or lowered and kept. */
static qn_status find_or_lower(planner *p, qn_graph *graph, int number, qn_diags *diags)
{
    qn_compiled *out = p->out;
    qn_kept kept;
    bool changed;
    QN_TRY(qn_pass_find("expand")->run(graph, &p->options, &changed, diags)); /* as lowering begins */
    qn_graph_remove_dead(graph);
    bool keeps = p->kept_by && qn_kept_of(graph, &p->options, p->kept_by, out->arena, &kept);
    if (expand_lost(p, graph, keeps ? &kept : NULL))
        keeps = p->kept_by && qn_kept_of(graph, &p->options, p->kept_by, out->arena, &kept);
    out->found_by[number] = keeps ? qn_arena_copy(out->arena, &kept, sizeof kept) : NULL;
    out->kept[number] = keeps && qn_kept_get(&p->cache, &kept, out->arena, &out->programs[number],
                                             &out->program_keys[number]);
    if (out->kept[number])
        return verifies_programs(&p->settings) ? qn_program_verify(out->programs[number], diags) : QUERN_OK;
    QN_TRY(lower(p, graph, number, diags));
    if (keeps)
        qn_kept_put(&p->cache, &kept, out->programs[number], out->program_keys[number]);
    return QUERN_OK;
}

static void name_program(const qn_graph *graph, qn_program *program)
{
    if (strcmp(graph->name, "main") == 0)
        program->name = "infer"; /* what importers call the only function there is */
}

static void take_program(const qn_compiled *out, const qn_graph *graph, int number)
{
    name_program(graph, out->programs[number]);
    out->plans[number].bytes = out->programs[number]->arena_bytes->max;
    out->plans[number].varies = !qn_dim_is_const(out->programs[number]->arena_bytes);
}

static qn_status make_programs(planner *p, qn_module *module, qn_diags *diags)
{
    const qn_settings *s = &p->settings;
    qn_compiled *out = p->out;
    if (module->n_functions == 0)
        return qn_error(diags, QUERN_ERROR_MODEL, NULL, "the module has no function");
    out->n_strings = (int)module->strings.n;
    out->strings = (const char *const *)module->strings.items;
    out->n_programs = module->n_functions;
    out->programs = QN_NEW_ARRAY(out->arena, qn_program *, out->n_programs);
    out->program_keys = QN_NEW_ARRAY(out->arena, qn_cache_key *, out->n_programs);
    out->kept = QN_NEW_ARRAY(out->arena, bool, out->n_programs);
    out->found_by = QN_NEW_ARRAY(out->arena, const qn_kept *, out->n_programs);
    out->flops = QN_NEW_ARRAY(out->arena, double, out->n_programs);
    out->plans = QN_NEW_ARRAY(out->arena, qn_remat_report, out->n_programs);
    for (int i = 0; i < out->n_programs; i++) {
        qn_graph *graph = module->functions[i];
        double start = qn_seconds();
        progress(s, "optimizing", i, out->n_programs);
        QN_TRY(check_cancel(s, diags));
        if (!qn_count_flops(graph, 1, &out->flops[i]))
            out->flops[i] = 0;
        p->options.remat_report = &out->plans[i];
        QN_TRY(qn_run_passes(graph, NULL, &p->options, s->hooks, diags));
        double passes_done = qn_seconds();
        QN_TRY(check_cancel(s, diags));
        QN_TRY(find_or_lower(p, graph, i, diags));
        take_program(out, graph, i);
        if (s->planned)
            s->planned(s->progress_user, out->programs[i]->name, &out->plans[i]);
        out->times.passes += passes_done - start;
        out->times.lower += qn_seconds() - passes_done;
    }
    qn_weights_lay_out(out->n_programs, out->programs, out->arena, &out->weights);
    return QUERN_OK;
}

/* Some code of kept programs is no longer there: they are made anew, from the graphs that the passes left. */
static qn_status lower_kept(planner *p, qn_module *module, qn_diags *diags)
{
    qn_compiled *out = p->out;
    for (int i = 0; i < out->n_programs; i++)
        if (out->kept[i]) {
            out->kept[i] = false;
            QN_TRY(lower(p, module->functions[i], i, diags));
            name_program(module->functions[i], out->programs[i]);
        }
    qn_weights_lay_out(out->n_programs, out->programs, out->arena, &out->weights);
    return QUERN_OK;
}

/* ---- kernels to code ---- */

typedef struct kernel_job {
    const qn_kernel *kernel; /* NULL: only in kept programs */
    const char *name;
    qn_cache_key key;
    const char *symbol;
    size_t cost; /* of emitting: length of the text */
    qn_code *code;
    qn_arena *arena; /* of the thread that did it */
    qn_diags diags;
    qn_status status;
} kernel_job;

typedef struct kernel_jobs {
    const qn_settings *settings;
    qn_cache *cache;
    qn_emit emit;
    kernel_job *items;                  /* costly ones first */
    int n, n_done, n_cached, n_missing; /* missing: not there, and of kept programs */
    pthread_mutex_t lock;               /* of the counts and the progress report */
} kernel_jobs;

/* A kernel's symbol is made of its key: equal symbols are equal code. */
static const char *symbol_of(const qn_cache_key *key, qn_arena *arena)
{
    char text[33];
    qn_cache_key_text(key, text);
    return qn_arena_printf(arena, "qn_k_%s", text);
}

/* From the cache, or made and put there. */
static qn_status get_kernel(const qn_kernel *kernel, const qn_cache_key *key, const char *symbol,
                            const qn_settings *s, qn_cache *cache, qn_arena *arena, qn_code *out,
                            bool *cached, qn_diags *diags)
{
    *cached = qn_cache_get(cache, key, arena, out);
    if (*cached)
        return QUERN_OK;
    QN_TRY(s->backend->emit_kernel(kernel, symbol, &s->target, s->math, QN_EMIT_OBJECT, arena, out, diags));
    keep_code(cache, key, out);
    return QUERN_OK;
}

qn_status qn_compile_kernel(const qn_kernel *kernel, const qn_machine *machine, const qn_settings *s,
                            qn_arena *arena, const char **symbol, qn_code *out, qn_diags *diags)
{
    qn_cache cache;
    bool cached;
    QN_TRY(qn_cache_open(&cache, s->cache, diags));
    const char *texts[] = { common_key(s, &cache, machine, QN_EMIT_OBJECT, arena),
                            qn_kernel_canonical(kernel, arena) };
    const qn_cache_key key = qn_cache_key_of(2, texts);
    *symbol = symbol_of(&key, arena);
    const qn_status status = get_kernel(kernel, &key, *symbol, s, &cache, arena, out, &cached, diags);
    qn_cache_close(&cache);
    return status;
}

static void run_job(void *arg, int64_t i)
{
    kernel_jobs *jobs = arg;
    kernel_job *job = &jobs->items[i];
    const qn_settings *s = jobs->settings;
    bool cached = false;
    job->arena = qn_arena_new();
    qn_diags_init(&job->diags, job->arena);
    job->status = check_cancel(s, &job->diags);
    if (job->status)
        return;
    if (!job->kernel)
        cached = qn_cache_get(jobs->cache, &job->key, job->arena, job->code);
    else
        job->status = jobs->emit == QN_EMIT_OBJECT
                          ? get_kernel(job->kernel, &job->key, job->symbol, s, jobs->cache, job->arena,
                                       job->code, &cached, &job->diags)
                          : s->backend->emit_kernel(job->kernel, job->symbol, &s->target, s->math, jobs->emit,
                                                    job->arena, job->code, &job->diags);
    pthread_mutex_lock(&jobs->lock);
    jobs->n_cached += cached;
    jobs->n_missing += !job->kernel && !cached;
    progress(s, "compiling kernels", ++jobs->n_done, jobs->n);
    pthread_mutex_unlock(&jobs->lock);
}

static int by_cost(const void *a, const void *b)
{
    size_t x = ((const kernel_job *)a)->cost, y = ((const kernel_job *)b)->cost;
    return x > y ? -1 : x < y;
}

static void free_arena(void *arena)
{
    qn_arena_free(arena);
}

/* One job for each different kernel of all programs; symbols into out->program_symbols. */
static void collect_jobs(kernel_jobs *jobs, qn_compiled *out)
{
    int total = 0;
    for (int p = 0; p < out->n_programs; p++)
        total += out->programs[p]->n_kernels;
    jobs->items = QN_NEW_ARRAY(out->arena, kernel_job, total);
    out->program_symbols = QN_NEW_ARRAY(out->arena, const char **, out->n_programs);
    out->kernels = QN_NEW_ARRAY(out->arena, qn_code, total);
    out->kernel_symbols = QN_NEW_ARRAY(out->arena, const char *, total);
    out->kernel_names = QN_NEW_ARRAY(out->arena, const char *, total);
    for (int p = 0; p < out->n_programs; p++) {
        qn_program *program = out->programs[p];
        out->program_symbols[p] = QN_NEW_ARRAY(out->arena, const char *, program->n_kernels);
        for (int k = 0; k < program->n_kernels; k++) {
            kernel_job job = { .kernel = out->kept[p] ? NULL : program->kernels[k],
                               .name = program->kernels[k]->name,
                               .key = out->program_keys[p][k],
                               .cost = out->kept[p] ? 0 : strlen(program->kernel_texts[k]) };
            int at = 0;
            while (at < jobs->n && memcmp(&jobs->items[at].key, &job.key, sizeof job.key) != 0)
                at++;
            if (at < jobs->n && !jobs->items[at].kernel) {
                jobs->items[at].kernel = job.kernel;
                jobs->items[at].cost = job.cost;
            }
            if (at == jobs->n) {
                job.symbol = symbol_of(&job.key, out->arena);
                job.code = &out->kernels[at];
                out->kernel_symbols[at] = job.symbol;
                out->kernel_names[at] = job.name;
                jobs->items[jobs->n++] = job;
            }
            out->program_symbols[p][k] = jobs->items[at].symbol;
        }
    }
    out->n_kernels = jobs->n;
}

/* *out_missing: some are needed of kept programs only, and not in the cache. */
static qn_status make_kernels(planner *p, qn_emit emit, bool *out_missing, qn_diags *diags)
{
    qn_compiled *out = p->out;
    kernel_jobs jobs = { .settings = &p->settings, .cache = &p->cache, .emit = emit };
    pthread_mutex_init(&jobs.lock, NULL);
    collect_jobs(&jobs, out);
    if (jobs.n)
        qsort(jobs.items, (size_t)jobs.n, sizeof *jobs.items, by_cost);
    int n_kept = 0; /* the last ones: they cost nothing */
    while (n_kept < jobs.n && !jobs.items[jobs.n - 1 - n_kept].kernel)
        n_kept++;
    parallel_for(p, run_job, &jobs, jobs.n - n_kept);
    for (int i = jobs.n - n_kept; i < jobs.n; i++)
        run_job(&jobs, i);
    pthread_mutex_destroy(&jobs.lock);
    *out_missing = jobs.n_missing > 0;
    out->times.n_kernels = jobs.n;
    out->times.n_cached = jobs.n_cached;
    qn_status status = QUERN_OK;
    const char *said = NULL;
    for (int i = 0; i < jobs.n; i++) {
        kernel_job *job = &jobs.items[i];
        qn_arena_defer(out->arena, free_arena, job->arena);
        if (!job->status)
            continue;
        const char *text = qn_diags_text(&job->diags, out->arena);
        if (!said || strcmp(said, text) != 0) /* what is wrong with all of them is said once */
            status = qn_error(diags, job->status, NULL, "%s", text);
        said = text;
    }
    return status;
}

qn_entries qn_compiled_entries(const qn_compiled *c, const char *prefix, bool weights_inside)
{
    bool text = false;
    for (int i = 0; i < c->n_programs; i++)
        text |= qn_steps_have(&c->programs[i]->steps, QN_STEP_TEXT);
    return (qn_entries){ .n_programs = c->n_programs,
                         .programs = (const qn_program *const *)c->programs,
                         .kernel_symbols = (const char *const *const *)c->program_symbols,
                         .prefix = prefix,
                         .weights_hash = c->weights.hash,
                         .n_strings = text ? c->n_strings : 0,
                         .strings = text ? c->strings : NULL,
                         .weights_inside = weights_inside };
}

/* All that entries depend on: the programs' text without what constants contain, the kernels by their symbols, which are
 * hashes of their texts, and their names, which traces show. */
static qn_cache_key entries_key(const qn_compiled *c, const qn_entries *e, const qn_settings *s,
                                const qn_cache *cache, qn_arena *arena)
{
    const qn_print_options without_contents = { .no_contents = true };
    qn_vec(const char *) texts = { 0 };
    qn_vec_push(arena, &texts, common_key(s, cache, &c->machine, QN_EMIT_OBJECT, arena));
    qn_vec_push(arena, &texts,
                qn_arena_printf(arena,
                                "entries %d jit %d plain %d weights %d %s prefix %s query %s machine %s",
                                e->n_programs, s->target.jit, s->target.plain, e->weights_inside,
                                e->weights_hash ? e->weights_hash : "", e->prefix, e->query ? e->query : "",
                                e->machine ? e->machine : ""));
    if (e->n_strings)
        qn_vec_push(arena, &texts, qn_arena_printf(arena, "strings %d", e->n_strings));
    for (int i = 0; i < e->n_strings; i++)
        qn_vec_push(arena, &texts, e->strings[i]);
    for (int i = 0; i < e->n_programs; i++) {
        const qn_program *p = e->programs[i];
        qn_vec_push(arena, &texts, qn_program_print_as(p, &without_contents, false, arena));
        for (int k = 0; k < p->n_kernels; k++) {
            qn_vec_push(arena, &texts, e->kernel_symbols[i][k]);
            qn_vec_push(arena, &texts, p->kernels[k]->name);
        }
    }
    return qn_cache_key_of((int)texts.n, texts.items);
}

qn_status qn_compile_entries(const qn_compiled *c, const qn_entries *entries, const qn_settings *s,
                             qn_code *out, qn_diags *diags)
{
    qn_cache cache;
    if (c->entries.data) {
        *out = c->entries;
        return QUERN_OK;
    }
    QN_TRY(qn_cache_open(&cache, s->cache, diags));
    qn_arena *scratch = qn_arena_new();
    const qn_cache_key key = entries_key(c, entries, s, &cache, scratch);
    qn_status status = QUERN_OK;
    if (!qn_cache_get(&cache, &key, c->arena, out)) {
        status = s->backend->emit_entries(entries, &s->target, QN_EMIT_OBJECT, c->arena, out, diags);
        if (!status)
            keep_code(&cache, &key, out);
    }
    qn_arena_free(scratch);
    qn_cache_close(&cache);
    return status;
}

qn_status qn_compile_choice(const qn_compiled *c, const qn_choice *choice, const qn_settings *s, qn_code *out,
                            qn_diags *diags)
{
    qn_cache cache;
    QN_TRY(qn_cache_open(&cache, s->cache, diags));
    qn_arena *scratch = qn_arena_new();
    qn_strbuf text = { .arena = scratch };
    qn_strbuf_printf(&text, "choice %s", choice->cpu);
    for (int i = 0; i < choice->n; i++)
        qn_strbuf_printf(&text, " %x %s", choice->needs[i], choice->queries[i]);
    qn_cache_key key = entries_key(c, choice->entries, s, &cache, scratch);
    char entries[33];
    qn_cache_key_text(&key, entries);
    key = qn_cache_key_of(2, (const char *[]){ text.data, entries });
    qn_status status = QUERN_OK;
    if (!qn_cache_get(&cache, &key, c->arena, out)) {
        status = qn_llvm_emit_choice(choice, c->arena, out, diags);
        if (!status)
            keep_code(&cache, &key, out);
    }
    qn_arena_free(scratch);
    qn_cache_close(&cache);
    return status;
}

const char *qn_machine_name(const qn_machine *machine, qn_arena *arena)
{
    const char *text = machine->features ? machine->features : "";
    size_t triple = strcspn(text, " ");
    size_t cpu = text[triple] ? strcspn(text + triple + 1, " ") + 1 : 0;
    return qn_arena_printf(arena, "%.*s", (int)(triple + cpu), text);
}

qn_status qn_plan_module(qn_module *module, const qn_settings *settings, qn_arena *arena, qn_compiled *out,
                         qn_diags *diags)
{
    planner p;
    *out = (qn_compiled){ .arena = arena };
    qn_status status = begin_planning(&p, settings, QN_EMIT_OBJECT, out, diags);
    p.kept_by = NULL; /* whoever asks wants to see kernels */
    if (!status)
        status = make_programs(&p, module, diags);
    end_planning(&p);
    return status;
}

/* Kernels, and entries where they are in the cache; *out_missing as above, and where some are needed of kept programs. */
static qn_status find_code(planner *p, qn_emit emit, bool *out_missing, qn_diags *diags)
{
    qn_compiled *out = p->out;
    bool any_kept = false;
    QN_TRY(make_kernels(p, emit, out_missing, diags));
    for (int i = 0; i < out->n_programs; i++)
        any_kept |= out->kept[i];
    if (!any_kept || *out_missing)
        return QUERN_OK;
    const qn_entries entries = qn_compiled_entries(out, QN_JIT_PREFIX, true);
    qn_arena *scratch = qn_arena_new();
    const qn_cache_key key = entries_key(out, &entries, &p->settings, &p->cache, scratch);
    *out_missing = !qn_cache_get(&p->cache, &key, out->arena, &out->entries);
    qn_arena_free(scratch);
    return QUERN_OK;
}

static qn_status make_code(planner *p, qn_module *module, qn_emit emit, qn_diags *diags)
{
    bool missing;
    double start = qn_seconds();
    QN_TRY(find_code(p, emit, &missing, diags));
    if (missing) {
        QN_TRY(lower_kept(p, module, diags));
        QN_TRY(make_kernels(p, emit, &missing, diags));
    }
    p->out->times.kernels += qn_seconds() - start;
    return QUERN_OK;
}

static qn_status compile(planner *p, qn_module *module, qn_emit emit, qn_diags *diags)
{
    QN_TRY(make_programs(p, module, diags));
    return make_code(p, module, emit, diags);
}

qn_status qn_compile_module(qn_module *module, const qn_settings *settings, qn_emit emit, qn_arena *arena,
                            qn_compiled *out, qn_diags *diags)
{
    planner p;
    *out = (qn_compiled){ .arena = arena };
    qn_status status = begin_planning(&p, settings, emit, out, diags);
    if (!status)
        status = compile(&p, module, emit, diags);
    end_planning(&p);
    return status;
}

static qn_status compile_again(planner *p, qn_module *module, qn_diags *diags)
{
    qn_compiled *out = p->out;
    const double start = qn_seconds();
    for (int i = 0; i < out->n_programs; i++) {
        expand_lost(p, module->functions[i], out->found_by[i]);
        QN_TRY(find_or_lower(p, module->functions[i], i, diags));
        take_program(out, module->functions[i], i);
    }
    qn_weights_lay_out(out->n_programs, out->programs, out->arena, &out->weights);
    out->times.lower += qn_seconds() - start;
    return make_code(p, module, QN_EMIT_OBJECT, diags);
}

qn_status qn_compile_again(qn_module *module, const qn_settings *settings, qn_compiled *compiled,
                           qn_diags *diags)
{
    planner p;
    compiled->entries = (qn_code){ 0 };
    qn_status status = begin_planning(&p, settings, QN_EMIT_OBJECT, compiled, diags);
    if (!status)
        status = compile_again(&p, module, diags);
    end_planning(&p);
    return status;
}
