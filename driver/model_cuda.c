/* Models whose kernels run on a GPU: the host walks through the program's steps, memory and kernels are the device's.
 *
 * The tables (sizes, shapes, names) are those of a CPU model of the same programs; its `run` is never called. Weights stay on
 * the device. Buffers that lie there, at multiples of 16 bytes, are used in place; others are copied to their place for a run, and
 * outputs and states back after it. A run waits for the device where something comes back, or a kernel has checks. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/nvptx/ptx.h"
#include "driver/api.h"
#include "driver/compile.h"
#include "runtime/cuda/driver.h"
#include "runtime/error.h"
#include "runtime/session.h"

typedef struct cuda_model {
    pthread_mutex_t lock; /* of the device and what follows */
    qn_cuda *cuda;
    qn_module *module; /* the programs' */
    qn_arena *arena;
    qn_compiled compiled;
    void ***functions; /* per program and kernel of it */
    bool *has_checks;  /* per program */
    void *image;       /* the tables */
    qn_memory weights; /* on the host: states start from there */
    qn_cuda_address weights_at, memory;
    size_t memory_bytes;
    bool is_clear; /* no node's number is written at its begin */
} cuda_model;

/* ---- one run ---- */

typedef struct run {
    cuda_model *m;
    const qn_program *p;
    void **functions;
    const qn_cuda_run *of;
    qn_arena *arena;
    qn_device_block own; /* of a transient run */
    qn_cuda_address arguments, workspace;
    qn_cuda_address *io, *slots; /* by buffer of the entry; of the program */
    size_t *io_bytes;
    int64_t *symbols, *iterations, *args;
} run;

static int64_t eval(const run *r, qn_dim d)
{
    return qn_dim_eval(d, r->symbols);
}

static qn_cuda_address address(const run *r, int buffer)
{
    const qn_pbuffer *b = &r->p->buffers[buffer];
    switch (b->place) {
    case QN_PLACE_ARENA: return r->workspace + (uint64_t)eval(r, b->offset);
    case QN_PLACE_IO: return r->io[b->io];
    case QN_PLACE_WEIGHTS: return r->m->weights_at + (uint64_t)eval(r, b->offset);
    case QN_PLACE_VIEW: {
        int64_t offset = b->offset ? eval(r, b->offset) : 0;
        if (b->loop >= 0)
            offset += r->iterations[b->loop] * eval(r, b->stride);
        return address(r, b->base) + (uint64_t)offset;
    }
    case QN_PLACE_SLOT: return r->slots[buffer];
    }
    QN_UNREACHABLE("cuda: buffer place %d", (int)b->place);
}

/* The number of a failed node is what all kernels of a run share; arguments are too many to be parameters where they lie behind
 * it. */
static int launch(run *r, const qn_step *step)
{
    const quern_ctx *ctx = r->of->ctx;
    const qn_kernel *kernel = r->p->kernels[step->kernel];
    size_t n = (size_t)step->n_buffers + (size_t)step->n_params;
    int64_t *args = r->args, tasks = eval(r, step->tasks);
    const char *name = step->name ? step->name : kernel->name;
    if (ctx->cancel && *ctx->cancel)
        return qn_fail(QUERN_ERROR_CANCELLED, "the run was cancelled");
    if (tasks <= 0)
        return QUERN_OK;
    for (int i = 0; i < step->n_buffers; i++)
        args[i] = (int64_t)address(r, step->buffers[i]);
    for (int i = 0; i < step->n_params; i++)
        args[step->n_buffers + i] = eval(r, step->params[i]);
    if (ctx->trace)
        ctx->trace(ctx->trace_user, name, 1);
    int status = n > QN_GPU_ARGUMENTS
                     ? qn_cuda_to_device(r->m->cuda, r->arguments + 8, args, n * sizeof *args)
                     : QUERN_OK;
    if (!status)
        status = qn_cuda_launch(r->m->cuda, r->functions[step->kernel], r->arguments,
                                n > QN_GPU_ARGUMENTS ? 0 : (int)n, args, tasks, kernel->gpu_threads);
    if (ctx->trace) {
        if (!status)
            status = qn_cuda_wait(r->m->cuda);
        ctx->trace(ctx->trace_user, name, 0);
    }
    return status;
}

/* What the host decides by may be made from what a failed check left undone: the check comes first. */
static int read_host(run *r, void *to, int buffer, size_t bytes)
{
    int64_t failed;
    int status = qn_cuda_to_host(r->m->cuda, &failed, r->arguments, sizeof failed);
    if (status || failed < 0)
        return status       ? status
               : buffer < 0 ? QUERN_OK
                            : qn_cuda_to_host(r->m->cuda, to, address(r, buffer), bytes);
    r->of->ctx->failed_node = (int32_t)failed;
    return qn_fail(QUERN_ERROR_INDEX, "%s: an index is out of range",
                   failed < r->p->n_nodes ? r->p->node_names[failed] : "a node");
}

static int run_steps(run *r, const qn_steps *steps);

static int read_condition(run *r, const qn_step *step, bool *out)
{
    unsigned char byte = 0;
    int status = read_host(r, &byte, step->condition, 1);
    *out = byte != 0;
    return status;
}

static int run_loop(run *r, const qn_step *step)
{
    int64_t count = step->count ? eval(r, step->count) : INT64_MAX;
    int status = QUERN_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        bool more = true;
        r->iterations[step->loop] = step->reverse ? count - 1 - i : i;
        if (step->condition >= 0) {
            status = run_steps(r, &step->test);
            if (!status)
                status = read_condition(r, step, &more);
        }
        if (!status && !more)
            break;
        if (!status)
            status = run_steps(r, &step->body);
    }
    return status;
}

static int bind(run *r, const qn_step *step)
{
    const int symbol = step->count->symbol;
    int64_t value = 0, most = eval(r, r->p->limits[symbol - r->p->n_entry_symbols]);
    int status = read_host(r, &value, step->buffers[0], sizeof value);
    if (!status && (value < step->count->min || value > most))
        status = qn_fail(QUERN_ERROR_RANGE, "%s is %lld here; the model was compiled for %lld to %lld",
                         step->count->name, (long long)value, (long long)step->count->min, (long long)most);
    if (!status)
        r->symbols[symbol] = value;
    return status;
}

static int check(const run *r, const qn_step *step)
{
    if (eval(r, step->params[0]) == eval(r, step->params[1]))
        return QUERN_OK;
    r->of->ctx->failed_node = step->node;
    return qn_fail(QUERN_ERROR_ARGUMENT, "%s", r->p->node_names[step->node]);
}

static int run_step(run *r, const qn_step *step)
{
    switch (step->kind) {
    case QN_STEP_KERNEL: return launch(r, step);
    case QN_STEP_COPY: {
        const int64_t bytes = eval(r, qn_program_copied_bytes(r->p, step));
        const qn_cuda_address from = address(r, step->buffers[0]), to = address(r, step->buffers[1]);
        return bytes <= 0 || from == to ? QUERN_OK : qn_cuda_copy(r->m->cuda, to, from, (size_t)bytes);
    }
    case QN_STEP_LOOP: return run_loop(r, step);
    case QN_STEP_IF: {
        bool holds = false;
        int status = read_condition(r, step, &holds);
        return status ? status : run_steps(r, holds ? &step->body : &step->other);
    }
    case QN_STEP_SWAP: {
        qn_cuda_address kept = r->slots[step->buffers[0]];
        r->slots[step->buffers[0]] = r->slots[step->buffers[1]];
        r->slots[step->buffers[1]] = kept;
        return QUERN_OK;
    }
    case QN_STEP_BIND: return bind(r, step);
    case QN_STEP_CHECK: return check(r, step);
    case QN_STEP_TEXT:
    case QN_STEP_COLLECTIVE: /* lowering for a GPU refuses them */
    case QN_STEP_WAIT:
    case QN_STEP_LIBRARY: break; /* lowering for a GPU makes none */
    }
    QN_UNREACHABLE("cuda: step kind %d", (int)step->kind);
}

static int run_steps(run *r, const qn_steps *steps)
{
    int status = QUERN_OK;
    for (size_t i = 0; i < steps->n && !status; i++)
        status = run_step(r, &steps->items[i]);
    return status;
}

/* ---- memory of a run ---- */

static size_t most_arguments(const qn_program *p, const qn_steps *steps)
{
    size_t most = 0;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        size_t inside[] = { (size_t)step->n_buffers + (size_t)step->n_params, most_arguments(p, &step->body),
                            most_arguments(p, &step->other), most_arguments(p, &step->test) };
        for (int k = 0; k < 4; k++)
            most = inside[k] > most ? inside[k] : most;
    }
    return most;
}

static int type_bytes(const run *r, const qn_type *type, size_t *out)
{
    int64_t n = (int64_t)qn_dtype_bytes(type->dtype);
    for (int i = 0; i < type->rank; i++)
        if (__builtin_mul_overflow(n, eval(r, type->dims[i]), &n))
            return qn_fail(QUERN_ERROR_RANGE, "a buffer is too large");
    *out = (size_t)n;
    return QUERN_OK;
}

static size_t take(size_t *at, size_t bytes)
{
    size_t place = *at;
    *at += (bytes + 255) / 256 * 256;
    return place;
}

/* Does the kernels' code take the buffer where it lies on the device? Its accesses are of up to 16 bytes. */
static bool in_place(const run *r, int io)
{
    return r->of->on_device[io] && (uintptr_t)r->of->io[io] % 16 == 0;
}

static int grow_memory(cuda_model *m, size_t bytes)
{
    qn_cuda_free(m->cuda, m->memory);
    m->memory_bytes = 0;
    int status = qn_cuda_alloc(m->cuda, bytes, &m->memory);
    m->memory_bytes = status ? 0 : bytes;
    m->is_clear = false;
    return status;
}

/* Everything in one stretch. */
static int find_memory(run *r)
{
    cuda_model *m = r->m;
    const qn_program *p = r->p;
    const size_t n_args = most_arguments(p, &p->steps);
    size_t end = 0, at_arguments = take(&end, 8 * (1 + (n_args > QN_GPU_ARGUMENTS ? n_args : 0)));
    r->args = QN_NEW_ARRAY(r->arena, int64_t, n_args + 1);
    size_t at_workspace = take(&end, (size_t)eval(r, p->arena_bytes)),
           *at = QN_NEW_ARRAY(r->arena, size_t, p->n_io);
    for (int i = 0; i < p->n_io; i++) {
        int status = type_bytes(r, &p->io[i].type, &r->io_bytes[i]);
        if (status)
            return status;
        const int alias = p->io[i].alias;
        bool same = alias >= 0 && alias < i && r->of->io[i] == r->of->io[alias];
        at[i] = same ? at[alias] : in_place(r, i) ? 0 : take(&end, r->io_bytes[i]);
    }
    int status = QUERN_OK;
    if (r->of->transient)
        status = qn_device_take(r->of->device, end, &r->own);
    else if (end > m->memory_bytes)
        status = grow_memory(m, end);
    if (status)
        return status;
    const qn_cuda_address memory = r->of->transient ? r->own.at : m->memory;
    r->arguments = memory + at_arguments;
    r->workspace = memory + at_workspace;
    for (int i = 0; i < p->n_io; i++)
        r->io[i] = in_place(r, i) ? (qn_cuda_address)(uintptr_t)r->of->io[i] : memory + at[i];
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_SLOT)
            r->slots[i] = address(r, p->buffers[i].base);
    return QUERN_OK;
}

static int give_inputs(run *r)
{
    const int64_t none = -1;
    int status = QUERN_OK;
    if (r->of->transient || !r->m->is_clear)
        status = qn_cuda_to_device(r->m->cuda, r->arguments, &none, sizeof none);
    if (!r->of->transient)
        r->m->is_clear = !status;
    for (int i = 0; i < r->p->n_io && !status; i++)
        if (r->p->io[i].role != QUERN_OUTPUT && !in_place(r, i))
            status = r->of->on_device[i]
                         ? qn_cuda_copy(r->m->cuda, r->io[i], (uintptr_t)r->of->io[i], r->io_bytes[i])
                         : qn_cuda_to_device(r->m->cuda, r->io[i], r->of->io[i], r->io_bytes[i]);
    return status;
}

static int take_outputs(run *r)
{
    quern_session *s = r->of->session;
    int status = r->m->has_checks[r->of->entry] ? read_host(r, NULL, -1, 0) : QUERN_OK;
    for (int i = 0; i < r->p->n_io && !status; i++) {
        const qn_pio *io = &r->p->io[i];
        if (io->role == QUERN_INPUT || in_place(r, i))
            continue;
        if (r->of->on_device[i]) {
            status = qn_cuda_copy(r->m->cuda, (uintptr_t)r->of->io[i], r->io[i], r->io_bytes[i]);
            continue;
        }
        if (io->role == QUERN_OUTPUT && s && s->decided) {
            int64_t dims[QN_MAX_RANK];
            for (int k = 0; k < io->type.rank; k++)
                dims[k] = eval(r, io->type.dims[k]);
            status = qn_session_resize(s, i, dims);
            if (!status)
                status = type_bytes(r, &io->type, &r->io_bytes[i]);
        }
        if (!status)
            status = qn_cuda_to_host(r->m->cuda, r->of->io[i], r->io[i], r->io_bytes[i]);
    }
    return status;
}

static int run_program(cuda_model *m, const qn_cuda_run *of, qn_arena *arena)
{
    const qn_program *p = m->compiled.programs[of->entry];
    const int n_symbols = qn_dims_symbol_count(p->dims);
    run r = { .m = m,
              .p = p,
              .functions = m->functions[of->entry],
              .of = of,
              .arena = arena,
              .io = QN_NEW_ARRAY(arena, qn_cuda_address, p->n_io + 1),
              .io_bytes = QN_NEW_ARRAY(arena, size_t, p->n_io + 1),
              .slots = QN_NEW_ARRAY(arena, qn_cuda_address, p->n_buffers + 1),
              .symbols = QN_NEW_ARRAY(arena, int64_t, n_symbols + 1),
              .iterations = QN_NEW_ARRAY(arena, int64_t, p->n_loops + 1) };
    for (int i = 0; i < n_symbols; i++)
        r.symbols[i] = i < p->n_entry_symbols ? of->symbols[i] : eval(&r, p->limits[i - p->n_entry_symbols]);
    of->ctx->failed_node = -1;
    int status = find_memory(&r);
    if (!status)
        status = give_inputs(&r);
    if (!status)
        status = run_steps(&r, &p->steps);
    if (!status)
        status = take_outputs(&r);
    if (status) /* kernels may have written it, whatever this run ended by */
        m->is_clear = false;
    if (r.own.at)
        qn_device_give(of->device, r.own);
    for (int i = p->n_entry_symbols; i < of->n_symbols; i++)
        of->symbols[i] = r.symbols[i];
    return status;
}

int qn_model_cuda_run(const quern_model *model, const qn_cuda_run *of)
{
    cuda_model *m = model->owner;
    qn_arena *arena = qn_arena_new();
    pthread_mutex_lock(&m->lock);
    int status = run_program(m, of, arena);
    pthread_mutex_unlock(&m->lock);
    qn_arena_free(arena);
    return status;
}

static int run_session(quern_session *s)
{
    bool on_device[s->n_buffers + 1];
    for (int i = 0; i < s->n_buffers; i++)
        on_device[i] = s->slots[i].on_device;
    return qn_model_cuda_run(s->model, &(qn_cuda_run){ .entry = s->entry_index,
                                                       .io = s->io,
                                                       .on_device = on_device,
                                                       .n_symbols = s->n_symbols,
                                                       .symbols = s->symbols,
                                                       .ctx = &s->ctx,
                                                       .session = s });
}

/* ---- making and freeing ---- */

static void release(quern_model *model)
{
    cuda_model *m = model->owner;
    if (m->cuda) {
        qn_cuda_free(m->cuda, m->memory);
        qn_cuda_free(m->cuda, m->weights_at);
    }
    qn_cuda_close(m->cuda);
    if (m->image)
        qn_backend_cpu.unload(m->image);
    qn_memory_free(&m->weights);
    qn_arena_free(m->arena);
    qn_module_free(m->module);
    pthread_mutex_destroy(&m->lock);
    free(m);
    free(model);
}

/* The driver's words as a diagnostic. */
static qn_status from_runtime(int status, qn_diags *diags)
{
    return status ? qn_error(diags, status, NULL, "%s", quern_last_error()) : QUERN_OK;
}

static bool has_checks(const qn_kblock *block)
{
    for (const qn_kinst *i = block->first; i; i = i->next) {
        if (i->op == QN_K_CHECK)
            return true;
        for (int k = 0; k < i->n_blocks; k++)
            if (has_checks(i->blocks[k]))
                return true;
    }
    return false;
}

static qn_status load_kernels(cuda_model *m, qn_diags *diags)
{
    const qn_compiled *c = &m->compiled;
    if (c->n_kernels > 0) /* a program may consist of copies */
        QN_TRY(from_runtime(qn_cuda_load(m->cuda, qn_ptx_join(c->n_kernels, c->kernels, m->arena)), diags));
    m->functions = QN_NEW_ARRAY(m->arena, void **, c->n_programs);
    m->has_checks = QN_NEW_ARRAY(m->arena, bool, c->n_programs);
    for (int p = 0; p < c->n_programs; p++) {
        const int n = c->programs[p]->n_kernels;
        m->functions[p] = QN_NEW_ARRAY(m->arena, void *, n + 1);
        for (int k = 0; k < n; k++) {
            m->has_checks[p] |= has_checks(c->programs[p]->kernels[k]->body);
            QN_TRY(from_runtime(qn_cuda_function(m->cuda, c->program_symbols[p][k], &m->functions[p][k]),
                                diags));
        }
    }
    return QUERN_OK;
}

static qn_status load_weights(cuda_model *m, qn_diags *diags)
{
    const size_t bytes = (size_t)m->compiled.weights.bytes;
    if (!qn_memory_reserve(&m->weights, bytes))
        return qn_error(diags, QUERN_ERROR_MEMORY, NULL, "no memory for %zu bytes of weights", bytes);
    if (!qn_weights_move(&m->compiled.weights, m->weights.data, m->module->arena))
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "weights were lost");
    QN_TRY(from_runtime(qn_cuda_alloc(m->cuda, bytes, &m->weights_at), diags));
    return from_runtime(qn_cuda_to_device(m->cuda, m->weights_at, m->weights.data, bytes), diags);
}

/* Tables from the CPU backend; all kernels in them are one that does nothing. */
static qn_status load_tables(quern_model *model, cuda_model *m, const qn_settings *settings, qn_diags *diags)
{
    qn_compiled tables = m->compiled, *c = &tables;
    qn_settings host = *settings;
    qn_code objects[2];
    const char *names[] = { NULL, "model" };
    host.backend = &qn_backend_cpu;
    host.target = (qn_target){ .cpu = "native", .jit = true };
    QN_TRY(host.backend->describe(&host.target, m->arena, &c->machine, diags));
    QN_TRY(qn_compile_kernel(qn_kernel_new(m->arena, "nothing"), &c->machine, &host, m->arena, &names[0],
                             &objects[0], diags));
    const char ***symbols = QN_NEW_ARRAY(m->arena, const char **, c->n_programs);
    for (int p = 0; p < c->n_programs; p++) {
        symbols[p] = QN_NEW_ARRAY(m->arena, const char *, c->programs[p]->n_kernels + 1);
        for (int k = 0; k < c->programs[p]->n_kernels; k++)
            symbols[p][k] = names[0];
    }
    qn_entries entries = qn_compiled_entries(c, QN_JIT_PREFIX, true);
    entries.kernel_symbols = (const char *const *const *)symbols;
    QN_TRY(qn_compile_entries(c, &entries, &host, &objects[1], diags));
    QN_TRY(qn_backend_cpu.load(2, objects, names, &m->image, diags));
    const void **weights = qn_backend_cpu.symbol(m->image, "model_weights_base");
    quern_query_fn query = NULL;
    *(void **)&query = qn_backend_cpu.symbol(m->image, "model_query");
    if (!weights || !query)
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "the compiled model has no tables");
    *weights = m->weights.data;
    model->info = query(QUERN_ABI_VERSION);
    return QUERN_OK;
}

static qn_status make(quern_model *model, cuda_model *m, const qn_settings *settings, qn_diags *diags)
{
    qn_settings s = *settings;
    int status = qn_device_find("compile", settings->device, &model->device);
    if (!status)
        status = qn_cuda_open(model->device->number, &m->cuda);
    if (status)
        return qn_error(diags, status, NULL, "%s; use --target cpu", quern_last_error());
    if (!s.target.cpu)
        s.target.cpu = qn_arena_printf(m->arena, "sm_%d", qn_cuda_arch(m->cuda));
    QN_TRY(qn_compile_module(m->module, &s, QN_EMIT_OBJECT, m->arena, &m->compiled, diags));
    QN_TRY(load_kernels(m, diags));
    QN_TRY(load_weights(m, diags));
    return load_tables(model, m, settings, diags);
}

qn_status qn_model_cuda(qn_module *module, const qn_settings *settings, quern_model **out, qn_diags *diags)
{
    quern_model *model = calloc(1, sizeof *model);
    cuda_model *m = calloc(1, sizeof *m);
    QN_ASSERT(model && m, "out of memory");
    pthread_mutex_init(&m->lock, NULL);
    m->arena = qn_arena_new();
    m->module = module;
    *model = (quern_model){ .threads = 1, .run = run_session, .release = release, .owner = m };
    qn_status status = make(model, m, settings, diags);
    if (status)
        release(model);
    else
        *out = model;
    return status;
}
