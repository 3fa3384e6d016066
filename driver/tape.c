/* Recording: see tape.h. */
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/tape.h"
#include "runtime/error.h"

static _Thread_local quern_tape *current;

bool qn_tape_active(void)
{
    return current != NULL;
}

quern_tape *quern_tape_begin(void)
{
    if (current) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tape_begin: a tape of this thread is recording already");
        return NULL;
    }
    quern_tape *tape = calloc(1, sizeof *tape);
    QN_ASSERT(tape, "out of memory");
    tape->module = qn_module_new("");
    tape->handle = qn_handle_new(tape->module, NULL);
    qn_diags_init(&tape->diags, tape->module->arena);
    tape->build = (qn_builder){ .graph = qn_function_new(tape->module, "step"), .diags = &tape->diags };
    tape->recording = true;
    return current = tape;
}

void quern_tape_end(quern_tape *tape)
{
    if (!tape)
        return;
    tape->recording = false;
    if (current == tape)
        current = NULL;
}

void quern_tape_free(quern_tape *tape)
{
    if (!tape)
        return;
    quern_tape_end(tape);
    for (int i = 0; i < tape->n; i++) {
        qn_storage_release(tape->items[i].storage);
        free(tape->items[i].before);
    }
    free(tape->items);
    free(tape->slots);
    qn_handle_release(tape->handle);
    free(tape);
}

int qn_tape_status(quern_tape *tape, const char *call)
{
    if (!tape->diags.n_errors)
        return QUERN_OK;
    int status = qn_fail((int)qn_diags_status(&tape->diags), "%s: %s", call,
                         qn_diags_text(&tape->diags, tape->module->arena));
    qn_diags_init(&tape->diags, tape->module->arena);
    return status;
}

/* ---- storages ---- */

static int *slot_of(quern_tape *tape, const qn_storage *storage)
{
    size_t hash = (size_t)((uintptr_t)storage >> 4) * 0x9e3779b97f4a7c15u >> 20;
    int *slot = &tape->slots[hash & (size_t)(tape->n_slots - 1)];
    while (*slot && tape->items[*slot - 1].storage != storage)
        slot = slot + 1 == tape->slots + tape->n_slots ? tape->slots : slot + 1;
    return slot;
}

qn_taped *qn_tape_find(quern_tape *tape, const qn_storage *storage)
{
    int *slot = tape->n_slots ? slot_of(tape, storage) : NULL;
    return slot && *slot ? &tape->items[*slot - 1] : NULL;
}

static void grow(quern_tape *tape)
{
    tape->capacity = tape->capacity ? 2 * tape->capacity : 64;
    tape->n_slots = 4 * tape->capacity;
    tape->items = realloc(tape->items, (size_t)tape->capacity * sizeof *tape->items);
    free(tape->slots);
    tape->slots = calloc((size_t)tape->n_slots, sizeof *tape->slots);
    QN_ASSERT(tape->items && tape->slots, "out of memory");
    for (int i = 0; i < tape->n; i++)
        *slot_of(tape, tape->items[i].storage) = i + 1;
}

static qn_taped *add(quern_tape *tape, const quern_tensor *x, int input, qn_value *value)
{
    if (tape->n == tape->capacity)
        grow(tape);
    *slot_of(tape, x->storage) = tape->n + 1;
    qn_storage_retain(x->storage);
    qn_taped *item = &tape->items[tape->n++];
    *item = (qn_taped){ x->storage, (qn_dtype)x->dtype, input, value, value, NULL };
    return item;
}

/* Does x look at its whole storage, row-major? */
static bool is_whole(const quern_tensor *x)
{
    return x->data == x->storage->data && quern_tensor_is_contiguous(x) &&
           (size_t)x->elements * qn_dtype_bytes((qn_dtype)x->dtype) == x->storage->bytes;
}

/* A storage that the tape did not make: an input, with the dims of x where x is all of it. */
static qn_taped *add_input(quern_tape *tape, const quern_tensor *x)
{
    qn_graph *graph = tape->build.graph;
    const int64_t n = (int64_t)(x->storage->bytes / qn_dtype_bytes((qn_dtype)x->dtype));
    qn_type type = is_whole(x) ? qn_type_static(tape->module, (qn_dtype)x->dtype, x->rank, x->dims)
                               : qn_type_static(tape->module, (qn_dtype)x->dtype, 1, &n);
    const char *name = qn_arena_printf(tape->module->arena, "x%d", graph->n_inputs);
    const int input = graph->n_inputs;
    return add(tape, x, input, qn_graph_add_input(graph, name, type, QN_ROLE_INPUT));
}

static qn_value *reshaped(quern_tape *tape, qn_value *value, int rank, const int64_t *dims)
{
    qn_dim to[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < rank; i++)
        to[i] = qn_dim_const(tape->module->dims, dims[i]);
    return qn_b_reshape(&tape->build, value, rank, to);
}

qn_value *qn_tape_read(quern_tape *tape, const quern_tensor *x)
{
    if (x->number) /* a number of the program is a constant */
        return qn_b_constant(&tape->build, qn_tensor_new(tape->module, (qn_dtype)x->dtype, 0, NULL, x->data));
    qn_taped *item = qn_tape_find(tape, x->storage);
    if (!item)
        item = add_input(tape, x);
    qn_value *now = qn_value_resolve(item->now);
    return is_whole(x) ? reshaped(tape, now, x->rank, x->dims) : qn_tape_view(&tape->build, now, x);
}

bool qn_tape_write(quern_tape *tape, const quern_tensor *x, qn_value *value)
{
    qn_taped *item = qn_tape_find(tape, x->storage);
    if (!item && is_whole(x))
        return value && add(tape, x, -1, value);
    if (!item)
        item = add_input(tape, x);
    qn_value *now = qn_value_resolve(item->now);
    value = is_whole(x) ? value : qn_tape_replace(&tape->build, now, x, value);
    if (value)
        item->now = value;
    return value != NULL;
}

bool qn_tape_may_use(const qn_device *device)
{
    if (!current || !device || current->device == device)
        return true;
    if (!current->device) {
        current->device = device;
        return true;
    }
    qn_fail(QUERN_ERROR_UNSUPPORTED,
            "a tape records tensors of the CPU and of one GPU: this one has %s and %s", current->device->name,
            device->name);
    return false;
}

bool qn_tape_will_write(const quern_tensor *target)
{
    qn_taped *item = current ? qn_tape_find(current, target->storage) : NULL;
    if (!item || item->input < 0 || item->before)
        return true;
    item->before = malloc(item->storage->bytes + 1); /* on the CPU in any case */
    if (!item->before) {
        qn_fail(QUERN_ERROR_MEMORY, "no memory to keep %zu bytes that are written while a tape records",
                item->storage->bytes);
        return false;
    }
    const qn_storage *storage = item->storage;
    if (storage->device)
        return !qn_cuda_to_host(storage->device->cuda, item->before, (uintptr_t)storage->data,
                                storage->bytes);
    memcpy(item->before, storage->data, storage->bytes);
    return true;
}

/* ---- operations ---- */

bool qn_tape_record(const qn_eager_call *call, const quern_tensor *result)
{
    quern_tape *tape = current;
    qn_value *x[QN_EAGER_OPERANDS];
    qn_dim dims[QN_EAGER_SYMBOLS];
    tape->build.loc = (qn_loc){ .op = call->name };
    for (int i = 0; i < call->n_symbols; i++)
        dims[i] = qn_dim_const(tape->module->dims, call->symbols[i]);
    for (int i = 0; i < call->n; i++) {
        int64_t own[QN_TENSOR_MAX_RANK];
        for (int axis = 0; axis < call->x[i].rank; axis++)
            own[axis] = call->symbols[call->x[i].axes[axis]];
        qn_value *value = call->x[i].extent ? NULL : qn_tape_read(tape, call->x[i].tensor);
        x[i] = value ? reshaped(tape, value, call->x[i].rank, own) : NULL;
    }
    qn_value *value = call->build(&tape->build, call, x, dims);
    if (value && call->dtype)
        value = qn_b_convert(&tape->build, (qn_dtype)call->dtype, value);
    if (value && qn_type_is_static(&value->type) && qn_type_elements(&value->type) == result->elements)
        value = reshaped(tape, value, result->rank, result->dims);
    else if (value)
        (void)qn_error(&tape->diags, QUERN_ERROR_UNSUPPORTED, &tape->build.loc,
                       "a tape cannot record what decides by its contents how much there is of it");
    if (!tape->diags.n_errors && qn_tape_write(tape, result, value))
        return true;
    qn_tape_status(tape, "the tape");
    return false;
}

bool qn_tape_record_copy(const quern_tensor *to, const quern_tensor *from)
{
    quern_tape *tape = current;
    tape->build.loc = (qn_loc){ .op = "copy" };
    qn_value *value = qn_tape_read(tape, from);
    if (value)
        value = reshaped(tape, value, to->rank, to->dims);
    if (value && qn_tape_write(tape, to, value))
        return true;
    qn_tape_status(tape, "the tape");
    return false;
}
