/* Kernels of single operations: see eager.h. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/eager.h"
#include "driver/tape.h"
#include "runtime/error.h"

/* ---- describing a call ---- */

int qn_eager_symbol(qn_eager_call *call, int64_t value)
{
    QN_ASSERT(call->n_symbols < QN_EAGER_SYMBOLS, "a call has too many axes");
    call->symbols[call->n_symbols] = value;
    return call->n_symbols++;
}

/* Operands are on one device, but scalars of the CPU may meet any. */
static bool place(qn_eager_call *call, const quern_tensor *x)
{
    if (!x || (x->rank == 0 && !x->storage->device))
        return true;
    const qn_device *here = call->placed ? call->placed->storage->device : x->storage->device;
    if (!call->placed)
        call->placed = x;
    if (x->storage->device == here)
        return true;
    char a[256], b[256];
    qn_fail(QUERN_ERROR_ARGUMENT,
            "%s: %s is on %s and %s on %s: quern_tensor_to copies one to the other's device", call->name,
            qn_tensor_text(call->placed, a), qn_device_name(here), qn_tensor_text(x, b),
            qn_device_name(x->storage->device));
    return false;
}

static qn_device *device_of(const qn_eager_call *call)
{
    return call->placed ? call->placed->storage->device : NULL;
}

void qn_eager_add(qn_eager_call *call, const quern_tensor *x, int rank, const uint8_t *axes)
{
    QN_ASSERT(call->n < QN_EAGER_OPERANDS, "a call has too many operands");
    qn_eager_operand *operand = &call->x[call->n++];
    *operand = (qn_eager_operand){ .tensor = x, .rank = rank };
    if (!place(call, x))
        call->failed = true;
    if (rank)
        memcpy(operand->axes, axes, (size_t)rank);
    if (x && !quern_tensor_is_contiguous(x))
        operand->tensor = operand->temporary = qn_eager_compact(x);
    if (!operand->tensor)
        call->failed = true;
}

void qn_eager_add_around(qn_eager_call *call, const quern_tensor *x, int axis)
{
    static const uint8_t axes[] = { 0, 1, 2 };
    call->symbols[0] = call->symbols[2] = 1;
    call->symbols[1] = x->dims[axis];
    for (int i = 0; i < x->rank; i++)
        if (i != axis)
            call->symbols[i < axis ? 0 : 2] *= x->dims[i];
    call->n_symbols = 3;
    qn_eager_add(call, x, 3, axes);
}

/* ---- kernels by description ---- */

#define KEY_BYTES 2048

typedef struct kernel {
    struct kernel *next; /* in its bucket */
    uint64_t hash;
    quern_model *model;
    const quern_entry_info *entry;
    int (*run)(void *io, void *workspace, quern_ctx *ctx);
    int n_symbols;                       /* of the entry */
    uint8_t symbol_of[QN_EAGER_SYMBOLS]; /* which one of the call's each is */
    size_t key_bytes;
    char key[];
} kernel;

#define N_BUCKETS 4096
static kernel *_Atomic buckets[N_BUCKETS]; /* only ever added to: kernels live as long as the process */
static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

/* All that the kernel depends on. `alias`: operand in whose place the result is, or -1. */
static size_t describe(const qn_eager_call *call, int alias, char *key)
{
    size_t n = 0;
#define PUT(at, bytes) (memcpy(key + n, (at), (bytes)), n += (bytes))
    const qn_device *device = device_of(call);
    const int16_t counts[] = { (int16_t)call->n,
                               call->fixed,
                               (int16_t)call->n_symbols,
                               (int16_t)call->dtype,
                               (int16_t)call->n_attrs,
                               (int16_t)alias,
                               (int16_t)(device ? device->number : -1) };
    PUT(&call->build, sizeof call->build);
    PUT(counts, sizeof counts);
    PUT(call->attrs, (size_t)call->n_attrs * sizeof *call->attrs);
    for (int i = 0; i < call->n; i++) {
        const qn_eager_operand *x = &call->x[i];
        const uint8_t head[] = { (uint8_t)x->tensor->dtype, (uint8_t)x->rank };
        PUT(head, sizeof head);
        PUT(x->axes, (size_t)x->rank);
    }
    if (call->fixed)
        PUT(call->symbols, (size_t)call->n_symbols * sizeof *call->symbols);
    if (call->text)
        PUT(call->text, strlen(call->text));
#undef PUT
    return n;
}

static const kernel *find(uint64_t hash, const char *key, size_t bytes)
{
    const kernel *k = atomic_load_explicit(&buckets[hash % N_BUCKETS], memory_order_acquire);
    while (k && !(k->hash == hash && k->key_bytes == bytes && memcmp(k->key, key, bytes) == 0))
        k = k->next;
    return k;
}

/* The call as a function of a module. */
static qn_status build(const qn_eager_call *call, int alias, qn_module *module, qn_diags *diags)
{
    qn_graph *graph = qn_function_new(module, "main");
    qn_builder b = { .graph = graph, .loc = { .op = call->name }, .diags = diags };
    qn_value *x[QN_EAGER_OPERANDS];
    qn_dim dims[QN_EAGER_SYMBOLS];
    char name[16];
    for (int i = 0; i < call->n_symbols; i++) {
        snprintf(name, sizeof name, "d%d", i);
        dims[i] = call->fixed ? qn_dim_const(module->dims, call->symbols[i])
                              : qn_dim_symbol(module->dims, name, 0, QN_DIM_MAX_VALUE);
    }
    for (int i = 0; i < call->n; i++) {
        qn_dim own[QN_TENSOR_MAX_RANK];
        for (int axis = 0; axis < call->x[i].rank; axis++)
            own[axis] = dims[call->x[i].axes[axis]];
        snprintf(name, sizeof name, "x%d", i);
        qn_type type = qn_type_make(module, (qn_dtype)call->x[i].tensor->dtype, call->x[i].rank, own);
        x[i] = qn_graph_add_input(graph, qn_arena_strdup(module->arena, name), type, QN_ROLE_INPUT);
    }
    qn_value *result = call->build(&b, call, x, dims);
    if (result && call->dtype)
        result = qn_b_convert(&b, (qn_dtype)call->dtype, result);
    if (!result)
        return diags->n_errors ? qn_diags_status(diags) : QUERN_ERROR_INTERNAL;
    qn_graph_add_output(graph, result, "result", alias);
    return qn_verify(module, diags);
}

static qn_status compile(const qn_eager_call *call, int alias, quern_model **out, qn_diags *diags)
{
    qn_settings settings;
    const qn_device *device = device_of(call);
    const quern_compile_options options = { .size = sizeof options, .target = qn_device_name(device) };
    QN_TRY(qn_settings_from(&options, &settings, diags));
    qn_module *module = qn_module_new("");
    qn_status status = build(call, alias, module, diags);
    if (!status && device)
        return qn_model_cuda(module, &settings, out, diags);
    settings.target.jit = true;
    if (!status)
        status = qn_model_jit(module, &settings, out, diags);
    qn_module_free(module);
    return status;
}

static const kernel *add(quern_model *model, uint64_t hash, const char *key, size_t bytes)
{
    kernel *k = calloc(1, sizeof *k + bytes);
    QN_ASSERT(k, "out of memory");
    k->hash = hash;
    k->model = model;
    k->entry = quern_model_entry(model, NULL);
    k->run = k->entry->run;
    k->n_symbols = k->entry->n_symbols;
    for (int i = 0; i < k->n_symbols; i++)
        k->symbol_of[i] = (uint8_t)atoi(qn_symbol_at(k->entry, i)->name + 1);
    k->key_bytes = bytes;
    memcpy(k->key, key, bytes);
    k->next = atomic_load_explicit(&buckets[hash % N_BUCKETS], memory_order_relaxed);
    atomic_store_explicit(&buckets[hash % N_BUCKETS], k, memory_order_release);
    return k;
}

static const kernel *made(const qn_eager_call *call, int alias);

/* The model of a call; NULL with a message. A fixed call is built with numbers for its symbols, which finds what is wrong with
 * it; then the kernel of all sizes serves, where there is one. */
static quern_model *model_of(const qn_eager_call *call, int alias)
{
    qn_call api;
    quern_model *model = NULL;
    qn_status status = QUERN_OK;
    qn_call_begin(&api);
    if (call->fixed) {
        qn_module *module = qn_module_new("");
        status = build(call, alias, module, &api.diags);
        qn_module_free(module);
    }
    if (!status && call->fixed) {
        qn_eager_call of_all_sizes = *call;
        of_all_sizes.fixed = false;
        const kernel *k = made(&of_all_sizes, alias);
        model = k ? k->model : NULL;
    }
    if (!status && !model)
        status = compile(call, alias, &model, &api.diags);
    return qn_call_end(&api, status) ? NULL : model;
}

/* Found, or made and added. Under the lock. */
static const kernel *made(const qn_eager_call *call, int alias)
{
    char key[KEY_BYTES];
    size_t bytes = describe(call, alias, key);
    uint64_t hash = XXH3_64bits(key, bytes);
    const kernel *k = find(hash, key, bytes);
    if (k)
        return k;
    quern_model *model = model_of(call, alias);
    return model ? add(model, hash, key, bytes) : NULL;
}

static const kernel *kernel_of(const qn_eager_call *call, int alias)
{
    char key[KEY_BYTES];
    QN_ASSERT(!call->text || strlen(call->text) < KEY_BYTES / 4, "attributes are too long");
    size_t bytes = describe(call, alias, key);
    uint64_t hash = XXH3_64bits(key, bytes);
    const kernel *k = find(hash, key, bytes);
    if (k)
        return k;
    pthread_mutex_lock(&making);
    k = made(call, alias);
    pthread_mutex_unlock(&making);
    return k;
}

/* ---- running ---- */

static quern_pool *pool;
static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

static void borrow_pool(void)
{
    pool = qn_pool_borrow(0);
}

quern_pool *qn_eager_pool(void)
{
    pthread_once(&pool_once, borrow_pool);
    return pool;
}

/* The thread's workspace; freed when it ends. */
static pthread_key_t workspace_key;
static pthread_once_t workspace_once = PTHREAD_ONCE_INIT;

static void free_workspace(void *memory)
{
    qn_memory_free(memory);
    free(memory);
}

static void make_workspace_key(void)
{
    QN_ASSERT(pthread_key_create(&workspace_key, free_workspace) == 0, "out of thread-specific keys");
}

static void *workspace_of(int64_t bytes)
{
    static _Alignas(64) char none[64];
    if (bytes == 0)
        return none;
    static _Thread_local qn_memory *mine;
    pthread_once(&workspace_once, make_workspace_key);
    if (!mine) {
        mine = calloc(1, sizeof *mine);
        pthread_setspecific(workspace_key, mine);
    }
    return mine && qn_memory_reserve(mine, (size_t)bytes) ? mine->data : NULL;
}

typedef struct call_io {
    void *slots[QN_EAGER_OPERANDS + 1 + QN_EAGER_SYMBOLS];
    bool on_device[QN_EAGER_OPERANDS + 1];
    int64_t *symbols; /* in slots */
} call_io;

static void set_inputs(const qn_eager_call *call, const kernel *k, call_io *io)
{
    for (int i = 0; i < call->n; i++) {
        io->slots[i] = call->x[i].tensor->data;
        io->on_device[i] = call->x[i].tensor->storage->device != NULL;
    }
    io->on_device[call->n] = device_of(call) != NULL; /* the result */
    io->symbols = (int64_t *)(io->slots + call->n + 1);
    for (int i = 0; i < k->n_symbols; i++)
        io->symbols[i] = k->symbol_of[i] < call->n_symbols ? call->symbols[k->symbol_of[i]] : 0;
}

static bool run(const qn_eager_call *call, const kernel *k, call_io *io)
{
    quern_ctx ctx = { .size = sizeof ctx, .failed_node = -1 };
    if (k->model->device)
        return qn_model_cuda_run(k->model, &(qn_cuda_run){ .io = io->slots,
                                                           .on_device = io->on_device,
                                                           .n_symbols = k->n_symbols,
                                                           .symbols = io->symbols,
                                                           .ctx = &ctx,
                                                           .transient = true,
                                                           .device = k->model->device }) == QUERN_OK;
    ctx.pool = qn_eager_pool();
    if (ctx.pool) {
        ctx.parallel_for = quern_pool_parallel_for;
        ctx.parallel_for_down = quern_pool_parallel_for_down;
    }
    int64_t bytes = k->entry->workspace_bytes(io->symbols);
    void *workspace = bytes >= 0 ? workspace_of(bytes) : NULL;
    int status = bytes < 0    ? QUERN_ERROR_RANGE
                 : !workspace ? QUERN_ERROR_MEMORY
                              : k->run(io->slots, workspace, &ctx);
    if (!status)
        return true;
    if (status == QUERN_ERROR_INDEX)
        qn_fail(status, "%s: an index is out of range", call->name);
    else
        qn_fail(status, "%s: %s", call->name, quern_status_name(status));
    return false;
}

/* Which operand the result may replace, given that it begins there and is as long: -1 for none. `*out_apart` says whether
 * it overlaps no other. */
static int find_alias(const qn_eager_call *call, const quern_tensor *out, bool *out_apart)
{
    const char *low, *high;
    int alias = -1;
    qn_tensor_span(out, &low, &high);
    *out_apart = true;
    for (int i = 0; i < call->n; i++) {
        const quern_tensor *x = call->x[i].tensor;
        const char *x_low, *x_high;
        qn_tensor_span(x, &x_low, &x_high);
        if (x_high <= low || high <= x_low)
            continue;
        bool may = (call->elementwise && call->x[i].rank == call->n_symbols) || (call->updates && i == 0);
        bool same = may && x->data == out->data && x->elements == out->elements && x->dtype == out->dtype;
        if (same && alias < 0)
            alias = i;
        else
            *out_apart = false;
    }
    return alias;
}

/* One operand given twice is one operand: then a result may replace both. */
static void merge_equal(qn_eager_call *call)
{
    if (call->n != 2 || !call->elementwise || call->x[0].tensor->data != call->x[1].tensor->data ||
        call->x[0].tensor->dtype != call->x[1].tensor->dtype || call->x[0].rank != call->x[1].rank ||
        memcmp(call->x[0].axes, call->x[1].axes, (size_t)call->x[0].rank) != 0)
        return;
    if (call->x[1].temporary || call->x[0].tensor->number != call->x[1].tensor->number)
        return;
    call->n = 1;
}

static quern_tensor *end(qn_eager_call *call, quern_tensor *result)
{
    for (int i = 0; i < call->n; i++)
        quern_tensor_free(call->x[i].temporary);
    return result;
}

static bool compute(const qn_eager_call *call, int alias, quern_tensor *to)
{
    const kernel *k = kernel_of(call, alias);
    if (!k)
        return false;
    call_io io;
    set_inputs(call, k, &io);
    io.slots[call->n] = to->data;
    return to->elements == 0 || run(call, k, &io);
}

quern_tensor *qn_eager_run(qn_eager_call *call, int rank, const int64_t *dims, quern_tensor *out)
{
    if (call->failed)
        return end(call, NULL);
    merge_equal(call);
    if (out && !place(call, out))
        return end(call, NULL);
    bool apart = true, direct = !out || (out->dtype == call->dtype && quern_tensor_is_contiguous(out));
    int alias = out && direct ? find_alias(call, out, &apart) : -1;
    direct &= apart;
    quern_tensor *result = out && direct ? quern_tensor_retain(out)
                                         : qn_tensor_make_on(device_of(call), call->dtype, rank, dims);
    bool done = result && qn_tape_may_use(device_of(call)) && qn_tape_will_write(result) &&
                compute(call, direct ? alias : -1, result);
    if (done && qn_tape_active())
        done = qn_tape_record(call, result);
    if (done && !direct) { /* by way of memory of its own */
        done = qn_eager_assign(out, result) == QUERN_OK;
        quern_tensor_free(result);
        result = quern_tensor_retain(out);
    }
    if (!done) {
        quern_tensor_free(result);
        result = NULL;
    }
    return end(call, result);
}

quern_tensor *qn_eager_run_as_found(qn_eager_call *call)
{
    const kernel *k = call->failed ? NULL : kernel_of(call, -1);
    if (!k)
        return end(call, NULL);
    call_io io;
    int64_t dims[QN_TENSOR_MAX_RANK];
    const quern_buffer_info *info = qn_buffer_at(k->entry, call->n);
    set_inputs(call, k, &io);
    if (k->entry->limits)
        k->entry->limits(io.symbols);
    k->entry->shape(call->n, io.symbols, dims);
    quern_tensor *result = qn_tensor_make_on(device_of(call), info->dtype, info->rank, dims);
    if (!result)
        return end(call, NULL);
    io.slots[call->n] = result->data;
    bool done = qn_tape_may_use(device_of(call)) && run(call, k, &io);
    if (done && k->entry->limits) { /* only now is it known how much there is: it gets as much memory */
        k->entry->shape(call->n, io.symbols, dims);
        quern_tensor *part = qn_tensor_make_on(device_of(call), info->dtype, info->rank, dims);
        quern_tensor *front =
            part ? qn_tensor_view(result, result->data, info->rank, dims, part->strides) : NULL;
        done = front && qn_eager_copy_plainly(part, front);
        quern_tensor_free(front);
        quern_tensor_free(result);
        result = part;
    }
    if (done && result && qn_tape_active())
        done = qn_tape_record(call, result);
    if (!done) {
        quern_tensor_free(result);
        result = NULL;
    }
    return end(call, result);
}
