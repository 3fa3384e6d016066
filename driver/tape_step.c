/* What is made of a tape: gradients, and steps that run again. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/tape.h"
#include "passes/autodiff.h"
#include "runtime/error.h"
#include "runtime/pool.h"

/* ---- running a tape's graph ---- */

/* The compiled graph with its memory: addresses of the graph's inputs and outputs, in order, on the CPU or the model's
 * device. */
typedef struct bound {
    quern_model *model;
    const quern_entry_info *entry;
    void **io;
    bool *on_device;
    qn_memory workspace;
} bound;

static void bind_at(bound *b, int i, void *data, const qn_device *device)
{
    b->io[i] = data;
    b->on_device[i] = device != NULL;
}

static int bind(bound *b, quern_model *model, const quern_tape *tape)
{
    b->model = model;
    b->entry = quern_model_entry(model, NULL);
    b->io = calloc((size_t)b->entry->n_buffers + 1, sizeof *b->io);
    b->on_device = calloc((size_t)b->entry->n_buffers + 1, sizeof *b->on_device);
    QN_ASSERT(b->io && b->on_device, "out of memory");
    for (int i = 0; i < tape->n; i++)
        if (tape->items[i].input >= 0)
            bind_at(b, tape->items[i].input, tape->items[i].storage->data, tape->items[i].storage->device);
    int64_t bytes = model->device ? 0 : b->entry->workspace_bytes(NULL);
    if (bytes > 0 && !qn_memory_reserve(&b->workspace, (size_t)bytes))
        return qn_fail(QUERN_ERROR_MEMORY, "no memory for a workspace of %lld bytes", (long long)bytes);
    return QUERN_OK;
}

static void unbind(bound *b)
{
    free(b->io);
    free(b->on_device);
    qn_memory_free(&b->workspace);
}

static int run(const bound *b)
{
    quern_ctx ctx = { .size = sizeof ctx, .failed_node = -1, .weights = b->model->weights };
    if (b->model->device)
        return qn_model_cuda_run(b->model, &(qn_cuda_run){ .io = b->io,
                                                           .on_device = b->on_device,
                                                           .ctx = &ctx,
                                                           .transient = true,
                                                           .device = b->model->device });
    ctx.pool = qn_eager_pool();
    if (ctx.pool) {
        ctx.parallel_for = quern_pool_parallel_for;
        ctx.parallel_for_down = quern_pool_parallel_for_down;
    }
    qn_pool_enter_run(ctx.pool);
    int status = b->entry->run(b->io, b->workspace.data, &ctx);
    qn_pool_leave_run(ctx.pool);
    if (!status)
        return QUERN_OK;
    const char *node = ctx.failed_node >= 0 ? b->entry->node_names[ctx.failed_node] : "";
    return qn_fail(status, "the step: %s%s%s", quern_status_name(status), node[0] ? " in " : "", node);
}

/* The graph with these outputs, as a module of its own; aliases may be NULL. The tape's graph has none afterwards. */
static qn_module *with_outputs(quern_tape *tape, int n, qn_value *const *outputs, const int *aliases)
{
    qn_graph *graph = tape->build.graph;
    for (int i = 0; i < n; i++)
        qn_graph_add_output(graph, outputs[i], qn_arena_printf(tape->module->arena, "y%d", i),
                            aliases ? aliases[i] : -1);
    qn_module *copy = qn_module_clone(tape->module, 0, NULL);
    graph->n_outputs = 0;
    graph->outputs = NULL;
    graph->output_names = NULL;
    graph->aliases = NULL;
    qn_graph_remove_dead(copy->functions[0]);
    return copy;
}

static int compile(qn_module *module, const qn_device *device, const quern_compile_options *options,
                   quern_model **out)
{
    qn_call call;
    qn_settings settings;
    qn_device *chosen = NULL;
    QN_OPTIONS(quern_compile_options, o, options);
    o.size = sizeof o;
    if (!o.target)
        o.target = qn_device_name(device);
    qn_call_begin(&call);
    qn_status status = qn_need_size(options, "quern_compile_options", &call.diags);
    if (!status)
        status = qn_verify(module, &call.diags);
    if (!status)
        status = qn_settings_from(&o, &settings, &call.diags);
    if (!status &&
        (settings.backend != (device ? &qn_backend_nvptx : &qn_backend_cpu) ||
         (device && (qn_device_find("quern_tape_compile", o.target, &chosen) || chosen != device))))
        status = qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                          "a step runs where its tensors are: the target is %s", qn_device_name(device));
    if (!status && device) {
        status = qn_model_cuda(qn_module_clone(module, 0, NULL), &settings, out, &call.diags);
    } else if (!status) {
        settings.target.jit = true;
        status = qn_model_jit(module, &settings, out, &call.diags);
    }
    return qn_call_end(&call, status);
}

/* ---- gradients ---- */

/* Models of gradients, by the text of their graph and the device: a program that records the same again does not wait again.
 * They live as long as the process; what comes when the places are taken is compiled each time. */
#define KEPT_MODELS 256
static struct {
    XXH128_hash_t text;
    const qn_device *device;
    quern_model *model;
} kept[KEPT_MODELS];
static int n_kept;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static int model_of(qn_module *module, const qn_device *device, quern_model **out, bool *out_is_kept)
{
    const char *text = qn_module_print(module, module->arena);
    const XXH128_hash_t hash = XXH3_128bits(text, strlen(text));
    int status = QUERN_OK, i = 0;
    pthread_mutex_lock(&kept_lock);
    while (i < n_kept && !(XXH128_isEqual(kept[i].text, hash) && kept[i].device == device))
        i++;
    *out_is_kept = i < KEPT_MODELS;
    if (i < n_kept) {
        *out = kept[i].model;
    } else {
        status = compile(module, device, NULL, out);
        if (!status && *out_is_kept) {
            kept[i].text = hash;
            kept[i].device = device;
            kept[i].model = *out;
            n_kept++;
        }
    }
    pthread_mutex_unlock(&kept_lock);
    return status;
}

/* Their values, from what the tape's inputs held at its beginning. */
static int compute(quern_tape *tape, int n, qn_value *const *values, quern_tensor *const *to)
{
    bound b = { 0 };
    quern_model *model = NULL;
    bool is_kept = true;
    qn_module *module = with_outputs(tape, n, values, NULL);
    int status = model_of(module, tape->device, &model, &is_kept);
    qn_module_free(module);
    if (!status)
        status = bind(&b, model, tape);
    if (!status) {
        for (int i = 0; i < tape->n; i++)
            if (tape->items[i].before)
                bind_at(&b, tape->items[i].input, tape->items[i].before, NULL);
        for (int i = 0; i < n; i++)
            bind_at(&b, b.entry->n_buffers - n + i, to[i]->data, to[i]->storage->device);
        status = run(&b);
    }
    unbind(&b);
    if (!is_kept)
        quern_model_free(model);
    return status;
}

/* The part of the gradient of its storage that x looks at. */
static qn_value *part_of(quern_tape *tape, qn_value *gradient, const quern_tensor *x)
{
    return gradient ? qn_tape_view(&tape->build, gradient, x) : NULL;
}

static int differentiate(quern_tape *tape, const quern_tensor *loss, int n, quern_tensor *const *wrt,
                         qn_value **out)
{
    static const char call[] = "quern_tape_gradient";
    char text[256];
    qn_arena *arena = tape->module->arena;
    qn_value **values = QN_NEW_ARRAY(arena, qn_value *, n), **gradients = QN_NEW_ARRAY(arena, qn_value *, n);
    if (loss->elements != 1 || !qn_dtype_is_float((qn_dtype)loss->dtype) ||
        !qn_tape_find(tape, loss->storage))
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: the loss is %s; it must be one floating-point number that the tape recorded",
                       call, qn_tensor_text(loss, text));
    for (int i = 0; i < n; i++) {
        const qn_taped *item = wrt[i] ? qn_tape_find(tape, wrt[i]->storage) : NULL;
        if (!item)
            return qn_fail(QUERN_ERROR_ARGUMENT, "%s: the tape recorded nothing of tensor %d%s%s", call, i,
                           wrt[i] ? ", " : "", wrt[i] ? qn_tensor_text(wrt[i], text) : "");
        values[i] = qn_value_resolve(item->first);
    }
    tape->build.loc = (qn_loc){ .op = "gradient" };
    qn_value *scalar = qn_b_reshape(&tape->build, qn_tape_read(tape, loss), 0, NULL);
    if (scalar &&
        qn_differentiate(tape->build.graph, &scalar, NULL, n, values, gradients, &tape->diags) == QUERN_OK)
        for (int i = 0; i < n; i++)
            out[i] = part_of(tape, gradients[i], wrt[i]);
    return qn_tape_status(tape, call);
}

int quern_tape_gradient(quern_tape *tape, const quern_tensor *loss, int n, quern_tensor *const *wrt,
                        quern_tensor **out)
{
    if (!tape || !loss || n < 1)
        return tape && loss ? qn_fail(QUERN_ERROR_ARGUMENT, "quern_tape_gradient: of nothing")
                            : QUERN_ERROR_ARGUMENT;
    qn_value **values = QN_NEW_ARRAY(tape->module->arena, qn_value *, n);
    int status = differentiate(tape, loss, n, wrt, values), made = 0;
    for (; !status && made < n; made++) {
        out[made] =
            qn_tensor_make_on(wrt[made]->storage->device, wrt[made]->dtype, wrt[made]->rank, wrt[made]->dims);
        if (!out[made])
            status = QUERN_ERROR_MEMORY;
    }
    if (!status)
        status = compute(tape, n, values, out);
    for (int i = 0; i < made && !status; i++)
        if (!qn_tape_write(tape, out[i], values[i]))
            status = qn_tape_status(tape, "quern_tape_gradient");
    for (int i = 0; i < n; i++)
        if (status || i >= made) {
            if (i < made)
                quern_tensor_free(out[i]);
            out[i] = NULL;
        } else {
            qn_tensor_give(out[i]);
        }
    return status;
}

/* ---- steps ---- */

struct quern_step {
    bound b;
    int n_storages, n_late;
    qn_storage **storages; /* retained: the inputs' and the outputs' */
    struct late {          /* outputs that do not lie row-major: computed elsewhere, then copied */
        quern_tensor *made, *target;
    } *late;
};

typedef struct outputs {
    int n;
    qn_value **values;
    int *aliases;
    const quern_tensor **targets; /* NULL: the storage of the input */
} outputs;

static void add_output(outputs *o, qn_value *value, int alias, const quern_tensor *target)
{
    o->values[o->n] = value;
    o->aliases[o->n] = alias;
    o->targets[o->n++] = target;
}

/* Inputs that the tape wrote to, then the tensors that are asked for. */
static int collect(quern_tape *tape, int n, quern_tensor *const *results, outputs *o)
{
    static const char call[] = "quern_tape_compile";
    qn_arena *arena = tape->module->arena;
    const qn_graph *graph = tape->build.graph;
    o->values = QN_NEW_ARRAY(arena, qn_value *, tape->n + n);
    o->aliases = QN_NEW_ARRAY(arena, int, tape->n + n);
    o->targets = QN_NEW_ARRAY(arena, const quern_tensor *, tape->n + n);
    for (int i = 0; i < tape->n; i++) {
        const qn_taped *item = &tape->items[i];
        qn_value *now = qn_value_resolve(item->now);
        if (item->input < 0 || now == qn_value_resolve(item->first))
            continue;
        const qn_type *type = &graph->inputs[item->input]->type;
        add_output(o, qn_b_reshape(&tape->build, now, type->rank, type->dims), item->input, NULL);
    }
    for (int i = 0; i < n; i++) {
        const qn_taped *item = results[i] ? qn_tape_find(tape, results[i]->storage) : NULL;
        if (!item)
            return qn_fail(QUERN_ERROR_ARGUMENT, "%s: the tape recorded nothing of tensor %d", call, i);
        if (qn_tensor_repeats(results[i]))
            return qn_fail(QUERN_ERROR_ARGUMENT, "%s: tensor %d repeats elements", call, i);
        if (item->input < 0)
            add_output(o, qn_tape_read(tape, results[i]), -1, results[i]);
    }
    if (o->n == 0)
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: the step would have no result: name one, or write to a tensor in place", call);
    return qn_tape_status(tape, call);
}

static void keep(quern_step *step, qn_storage *storage)
{
    qn_storage_retain(storage);
    step->storages[step->n_storages++] = storage;
}

/* Where the outputs go. */
static int place(quern_step *step, quern_tape *tape, const outputs *o)
{
    const int first = step->b.entry->n_buffers - o->n;
    step->storages = calloc((size_t)(tape->n + o->n), sizeof(void *));
    step->late = calloc((size_t)o->n + 1, sizeof *step->late);
    QN_ASSERT(step->storages && step->late, "out of memory");
    for (int i = 0; i < tape->n; i++)
        if (tape->items[i].input >= 0)
            keep(step, tape->items[i].storage);
    for (int i = 0; i < o->n; i++) {
        const quern_tensor *target = o->targets[i];
        qn_device *device = target ? target->storage->device : NULL;
        if (!target) {
            step->b.io[first + i] = step->b.io[o->aliases[i]];
            step->b.on_device[first + i] = step->b.on_device[o->aliases[i]];
        } else if (quern_tensor_is_contiguous(target)) {
            keep(step, target->storage);
            bind_at(&step->b, first + i, target->data, device);
        } else {
            struct late *late = &step->late[step->n_late++];
            late->made = qn_tensor_make_on(device, target->dtype, target->rank, target->dims);
            late->target = qn_tensor_view(target, target->data, target->rank, target->dims, target->strides);
            if (!late->made || !late->target)
                return QUERN_ERROR_MEMORY;
            bind_at(&step->b, first + i, late->made->data, device);
        }
    }
    return QUERN_OK;
}

int quern_tape_compile(quern_tape *tape, int n, quern_tensor *const *results,
                       const quern_compile_options *options, quern_step **out)
{
    outputs o = { 0 };
    quern_model *model = NULL;
    *out = NULL;
    if (!tape)
        return QUERN_ERROR_ARGUMENT;
    int status = collect(tape, n, results, &o);
    if (status)
        return status;
    qn_module *module = with_outputs(tape, o.n, o.values, o.aliases);
    status = compile(module, tape->device, options, &model);
    qn_module_free(module);
    if (status)
        return status;
    quern_step *step = calloc(1, sizeof *step);
    QN_ASSERT(step, "out of memory");
    status = bind(&step->b, model, tape);
    if (!status)
        status = place(step, tape, &o);
    if (status)
        quern_step_free(step);
    else
        *out = step;
    return status;
}

int quern_step_run(quern_step *step)
{
    int status = step ? run(&step->b) : QUERN_ERROR_ARGUMENT;
    for (int i = 0; i < (step ? step->n_late : 0) && !status; i++)
        if (!qn_eager_copy(step->late[i].target, step->late[i].made))
            status = QUERN_ERROR_INTERNAL;
    return status;
}

void quern_step_free(quern_step *step)
{
    if (!step)
        return;
    for (int i = 0; i < step->n_storages; i++)
        qn_storage_release(step->storages[i]);
    for (int i = 0; i < step->n_late; i++) {
        quern_tensor_free(step->late[i].made);
        quern_tensor_free(step->late[i].target);
    }
    free(step->storages);
    free(step->late);
    unbind(&step->b);
    quern_model_free(step->b.model);
    free(step);
}

static void release(void *handle)
{
    qn_handle_release(handle);
}

int quern_tape_module(quern_tape *tape, int n, quern_tensor *const *results, quern_module **out)
{
    outputs o = { 0 };
    *out = NULL;
    int status = tape ? collect(tape, n, results, &o) : QUERN_ERROR_ARGUMENT;
    if (status)
        return status;
    qn_module *module = with_outputs(tape, o.n, o.values, o.aliases);
    atomic_fetch_add(&tape->handle->users, 1);
    qn_arena_defer(module->arena, release, tape->handle);
    *out = qn_handle_new(module, NULL);
    return QUERN_OK;
}
