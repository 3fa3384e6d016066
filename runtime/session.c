/* Sessions: see session.h.
 *
 * Binding checks what one array can say by itself: dtype, rank, fixed dims. Before the first run, and before a run
 * after something of another shape was bound, `prepare` finds the symbols from the inputs' dims, checks all dims
 * together, and gets the workspace and the outputs that nobody bound. Every other run is one call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/pool.h"
#include "runtime/session.h"
#include "runtime/strings.h"

/* ---- messages ---- */

#define TEXT_SIZE 512

/* "f32[3, 5]" */
static const char *array_text(char *out, int dtype, int rank, const int64_t *dims)
{
    size_t n = (size_t)snprintf(out, TEXT_SIZE, "%s[", quern_dtype_text(dtype));
    for (int i = 0; i < rank && n < TEXT_SIZE; i++)
        n += (size_t)snprintf(out + n, TEXT_SIZE - n, "%s%lld", i ? ", " : "", (long long)dims[i]);
    if (n < TEXT_SIZE)
        snprintf(out + n, TEXT_SIZE - n, "]");
    return out;
}

static const char *expected_text(const quern_buffer_info *info)
{
    return QN_HAS_FIELD(info, text) && info->text ? info->text : quern_dtype_text(info->dtype);
}

static const char *role_text(const quern_buffer_info *info)
{
    return info->role == QUERN_INPUT ? "input" : info->role == QUERN_OUTPUT ? "output" : "state";
}

/* "input 0 'x'": inputs, outputs and states are counted apart, as users do. */
static const char *slot_text(char *out, const quern_session *s, int index)
{
    const quern_buffer_info *info = s->slots[index].info;
    int number = 0;
    for (int i = 0; i < index; i++)
        number += s->slots[i].info->role == info->role;
    snprintf(out, TEXT_SIZE, "%s %d '%s'", role_text(info), number, info->name);
    return out;
}

static int wrong_type(quern_session *s, int index, const quern_array *array)
{
    char what[TEXT_SIZE], is[TEXT_SIZE];
    return qn_fail(QUERN_ERROR_ARGUMENT, "%s is %s; the model takes %s", slot_text(what, s, index),
                   array_text(is, array->dtype, array->rank, array->dims),
                   expected_text(s->slots[index].info));
}

static int out_of_memory(const char *what, int64_t bytes)
{
    return qn_fail(QUERN_ERROR_MEMORY, "no memory for %s of %lld bytes", what, (long long)bytes);
}

/* ---- dims ---- */

static int plain_symbol(const quern_buffer_info *info, int axis)
{
    return QN_HAS_FIELD(info, symbols) && info->symbols ? info->symbols[axis] : -1;
}

void qn_session_shape(const quern_session *s, int index, const int64_t *symbols, int64_t *out)
{
    if (s->model->shape)
        s->model->shape(s->model, s->entry_index, index, symbols, out);
    else
        s->entry->shape(index, symbols, out);
}

bool qn_bytes_of(int dtype, int rank, const int64_t *dims, size_t *out)
{
    size_t bytes = quern_dtype_size(dtype);
    bool fits = true, none = false;
    for (int i = 0; i < rank; i++) {
        fits &= dims[i] >= 0 && !__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes);
        none |= dims[i] == 0;
    }
    *out = none ? 0 : bytes;
    return none || (fits && bytes <= PTRDIFF_MAX);
}

static bool same_dims(int rank, const int64_t *a, const int64_t *b)
{
    return rank == 0 || memcmp(a, b, (size_t)rank * sizeof *a) == 0;
}

static void copy_dims(int rank, int64_t *to, const int64_t *from)
{
    if (rank > 0)
        memcpy(to, from, (size_t)rank * sizeof *to);
}

static bool is_static(const quern_buffer_info *info)
{
    for (int i = 0; i < info->rank; i++)
        if (info->dims[i] < 0)
            return false;
    return true;
}

/* ---- making and freeing ---- */

static int find_entry(const quern_model *model, const char *name)
{
    for (int i = 0; i < model->info->n_entries; i++)
        if (!name || strcmp(qn_entry_at(model->info, i)->name, name) == 0)
            return i;
    return -1;
}

/* Memory for a state, with its initial contents. */
static int make_state(quern_session *s, int index)
{
    qn_slot *slot = &s->slots[index];
    char what[TEXT_SIZE];
    if (slot->memory.data)
        return QUERN_OK;
    if (!qn_memory_reserve(&slot->memory, slot->bytes))
        return out_of_memory(slot_text(what, s, index), (int64_t)slot->bytes);
    const quern_buffer_info *info = slot->info;
    const char *weights = s->model->weights ? s->model->weights : s->model->info->weights;
    if (QN_HAS_FIELD(info, initial) && info->initial >= 0 && weights)
        memcpy(slot->memory.data, weights + info->initial, slot->bytes);
    else
        memset(slot->memory.data, 0, slot->bytes);
    s->io[index] = slot->memory.data;
    return QUERN_OK;
}

static bool allocate(quern_session *s)
{
    size_t n_dims = 0;
    s->n_buffers = s->entry->n_buffers;
    s->n_symbols = s->entry->n_symbols;
    for (int i = 0; i < s->n_buffers; i++)
        n_dims += (size_t)qn_buffer_at(s->entry, i)->rank;
    s->slots = calloc((size_t)s->n_buffers + 1, sizeof *s->slots);
    s->io = calloc((size_t)(s->n_buffers + s->n_symbols) + 1, 8);
    s->known = calloc((size_t)s->n_symbols + 1, sizeof *s->known);
    int64_t *dims = calloc(2 * n_dims + 1, sizeof *dims);
    if (!s->slots || !s->io || !s->known || !dims) {
        free(dims);
        return false;
    }
    _Static_assert(sizeof(void *) == 8, "io holds addresses and int64_t values alike");
    s->symbols = (int64_t *)(s->io + s->n_buffers);
    s->slots[0].dims = dims; /* owns all of them */
    for (int i = 0; i < s->n_buffers; i++) {
        s->slots[i].info = qn_buffer_at(s->entry, i);
        s->slots[i].dims = dims;
        s->slots[i].found_dims = dims + s->slots[i].info->rank;
        dims += 2 * s->slots[i].info->rank;
    }
    return true;
}

int quern_session_new(quern_model *model, const char *entry_name, quern_session **out)
{
    *out = NULL;
    if (!model)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_session_new: model is NULL");
    int entry = find_entry(model, entry_name);
    if (entry < 0)
        return qn_fail(QUERN_ERROR_ARGUMENT, "the model has no entry '%s'; its first is '%s'", entry_name,
                       qn_entry_at(model->info, 0)->name);
    quern_session *s = calloc(1, sizeof *s);
    if (!s)
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    s->model = model;
    s->entry_index = entry;
    s->entry = qn_entry_at(model->info, entry);
    s->run = s->entry->run;
    if (!allocate(s)) {
        quern_session_free(s);
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    }
    for (int i = 0; i < s->n_symbols; i++)
        s->decided |= QN_HAS_FIELD(qn_symbol_at(s->entry, i), decided) && qn_symbol_at(s->entry, i)->decided;
    for (int i = 0; i < s->n_buffers; i++) {
        qn_slot *slot = &s->slots[i];
        if (!is_static(slot->info))
            continue;
        copy_dims(slot->info->rank, slot->dims, slot->info->dims);
        slot->has_dims = qn_bytes_of(slot->info->dtype, slot->info->rank, slot->dims, &slot->bytes);
    }
    s->ctx.size = sizeof s->ctx;
    s->ctx.weights = model->weights;
    s->ctx.failed_node = -1;
    const quern_model_info *info = model->info;
    const bool needs_strings = QN_HAS_FIELD(info, n_strings) && info->strings;
    const int status =
        needs_strings ? quern_strings_new(info->strings, info->n_strings, &s->strings) : QUERN_OK;
    if (status) {
        quern_session_free(s);
        return status;
    }
    s->ctx.strings = s->strings;
    quern_pool *pool = qn_pool_borrow(model->threads);
    if (pool) {
        s->ctx.pool = pool;
        s->ctx.parallel_for = quern_pool_parallel_for;
        s->ctx.parallel_for_down = quern_pool_parallel_for_down;
        s->pool = pool;
    }
    *out = s;
    return QUERN_OK;
}

/* Of the tensor that a buffer is bound to. */
static void let_go(qn_slot *slot)
{
    quern_tensor_free(slot->tensor);
    slot->tensor = NULL;
    slot->on_device = false;
}

void quern_session_free(quern_session *s)
{
    if (!s)
        return;
    qn_pool_return(s->pool);
    for (int i = 0; s->slots && i < s->n_buffers; i++) {
        qn_memory_free(&s->slots[i].memory);
        let_go(&s->slots[i]);
    }
    if (s->slots)
        free(s->slots[0].dims);
    qn_memory_free(&s->workspace);
    quern_strings_free(s->strings);
    free(s->slots);
    free(s->io);
    free(s->known);
    free(s);
}

quern_ctx *quern_session_ctx(quern_session *s)
{
    return &s->ctx;
}

quern_strings *quern_session_strings(quern_session *s)
{
    return s->ctx.strings;
}

void quern_session_set_strings(quern_session *s, quern_strings *strings)
{
    s->ctx.strings = strings ? strings : s->strings;
}

/* ---- binding ---- */

/* What quern_session_find or _find_role last looked for in vain on this thread ("buffer 'x'"): they give -1, and the call that is
 * given that says why. */
static _Thread_local struct {
    const quern_session *session;
    char what[128];
} missing;

static int keep_missing(const quern_session *s, const char *kind, const char *name)
{
    missing.session = s;
    snprintf(missing.what, sizeof missing.what, "%s '%s'", kind, name);
    return -1;
}

static int check_index(const quern_session *s, int index)
{
    char names[TEXT_SIZE] = "", what[sizeof missing.what];
    if (index >= 0 && index < s->n_buffers)
        return QUERN_OK;
    for (size_t i = 0, n = 0; i < (size_t)s->n_buffers && n < sizeof names; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", s->slots[i].info->name);
    snprintf(what, sizeof what, "buffer %d", index);
    return qn_fail(QUERN_ERROR_ARGUMENT, "there is no %s: entry '%s' has %d: %s",
                   index == -1 && missing.session == s ? missing.what : what, s->entry->name, s->n_buffers,
                   names);
}

static void unbind(quern_session *s, int index)
{
    qn_slot *slot = &s->slots[index];
    if (!slot->bound && !slot->shared)
        return;
    let_go(slot);
    slot->bound = slot->shared = s->ready = false;
    slot->has_dims = is_static(slot->info);
    s->io[index] = NULL;
}

/* Stands for the address of an array without elements: entries want one. */
static _Alignas(64) char empty;

int quern_session_bind(quern_session *s, int index, const quern_array *array)
{
    int status = check_index(s, index);
    if (status)
        return status;
    qn_slot *slot = &s->slots[index];
    const quern_buffer_info *info = slot->info;
    if (!array) {
        unbind(s, index);
        return QUERN_OK;
    }
    if (array->dtype != info->dtype || array->rank != info->rank)
        return wrong_type(s, index, array);
    for (int i = 0; i < info->rank; i++)
        if (array->dims[i] < 0 || (info->dims[i] >= 0 && array->dims[i] != info->dims[i]))
            return wrong_type(s, index, array);
    size_t bytes;
    char what[TEXT_SIZE];
    if (!qn_bytes_of(array->dtype, array->rank, array->dims, &bytes))
        return qn_fail(QUERN_ERROR_RANGE, "%s is too large for this machine", slot_text(what, s, index));
    if (!array->data && bytes)
        return qn_fail(QUERN_ERROR_ARGUMENT, "the data of %s is NULL", slot_text(what, s, index));
    if ((uintptr_t)array->data % quern_dtype_size(array->dtype))
        return qn_fail(QUERN_ERROR_ARGUMENT, "the data of %s is not aligned to its elements of %zu bytes",
                       slot_text(what, s, index), quern_dtype_size(array->dtype));
    if (!slot->has_dims || !same_dims(info->rank, slot->dims, array->dims)) {
        copy_dims(info->rank, slot->dims, array->dims);
        s->ready = false;
    }
    if (!slot->bound) {
        s->ready = false;
        qn_memory_free(&slot->memory);
    }
    let_go(slot);
    slot->bytes = bytes;
    slot->has_dims = true;
    slot->bound = true;
    slot->shared = false;
    s->io[index] = array->data ? array->data : &empty;
    return QUERN_OK;
}

int quern_session_bind_tensor(quern_session *s, int index, quern_tensor *x)
{
    if (!x)
        return QUERN_ERROR_ARGUMENT;
    int status = check_index(s, index);
    if (status)
        return status;
    char what[TEXT_SIZE], text[TEXT_SIZE];
    qn_slot *slot = &s->slots[index];
    qn_device *device = x->storage->device;
    if (!quern_tensor_is_contiguous(x))
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: %s does not lie row-major: quern_tensor_contiguous copies it",
                       slot_text(what, s, index), qn_tensor_text(x, text));
    if (device && device != s->model->device)
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "%s: %s is on %s and the model runs on %s: quern_tensor_to copies it there",
                       slot_text(what, s, index), qn_tensor_text(x, text), device->name,
                       qn_device_name(s->model->device));
    if (device && slot->info->role == QUERN_OUTPUT && s->decided && !is_static(slot->info))
        return qn_fail(QUERN_ERROR_UNSUPPORTED, "%s is kept on the CPU: the run decides its dims",
                       slot_text(what, s, index));
    const quern_array array = { .dtype = x->dtype, .rank = x->rank, .dims = x->dims, .data = x->data };
    status = quern_session_bind(s, index, &array);
    if (status)
        return status;
    slot->on_device = device != NULL;
    slot->tensor = quern_tensor_retain(x);
    return QUERN_OK;
}

quern_tensor *quern_session_tensor(const quern_session *s, int index)
{
    if (check_index(s, index))
        return NULL;
    return qn_tensor_give(quern_tensor_retain(s->slots[index].tensor));
}

int quern_session_share_states(quern_session *s, quern_session *owner)
{
    char what[TEXT_SIZE];
    for (int i = 0; i < s->n_buffers; i++) {
        qn_slot *slot = &s->slots[i];
        if (slot->info->role != QUERN_STATE)
            continue;
        for (int j = 0; j < owner->n_buffers; j++) {
            qn_slot *other = &owner->slots[j];
            if (other->info->role != QUERN_STATE || strcmp(other->info->name, slot->info->name) != 0)
                continue;
            if (other->info->dtype != slot->info->dtype || other->info->rank != slot->info->rank ||
                !slot->has_dims || !other->has_dims || !same_dims(slot->info->rank, slot->dims, other->dims))
                return qn_fail(QUERN_ERROR_ARGUMENT, "%s is %s here and %s in the owner's entry '%s'",
                               slot_text(what, s, i), expected_text(slot->info), expected_text(other->info),
                               owner->entry->name);
            int status = other->bound || other->shared ? QUERN_OK : make_state(owner, j);
            if (status)
                return status;
            if (other->on_device && s->model->device != owner->model->device)
                return qn_fail(QUERN_ERROR_ARGUMENT, "%s of the owner is on %s, and the model runs on %s",
                               slot_text(what, s, i), owner->model->device->name,
                               qn_device_name(s->model->device));
            qn_memory_free(&slot->memory);
            let_go(slot);
            slot->tensor = quern_tensor_retain(other->tensor);
            slot->on_device = other->on_device;
            slot->bound = false;
            slot->shared = true;
            s->io[i] = owner->io[j];
            s->ready = false;
        }
    }
    return QUERN_OK;
}

int quern_session_bind_from(quern_session *s, quern_session *from)
{
    for (int i = 0; i < s->n_buffers; i++) {
        if (s->slots[i].info->role != QUERN_INPUT)
            continue;
        for (int k = 0; k < from->n_buffers; k++) {
            quern_array array;
            if (from->slots[k].info->role == QUERN_STATE || !from->io[k] ||
                strcmp(from->slots[k].info->name, s->slots[i].info->name) != 0)
                continue;
            int status = quern_session_get(from, k, &array);
            if (!status && from->slots[k].on_device && from->model->device != s->model->device)
                status = qn_fail(QUERN_ERROR_ARGUMENT, "'%s' of the other session is on %s",
                                 from->slots[k].info->name, from->model->device->name);
            if (!status)
                status = quern_session_bind(s, i, &array);
            if (status)
                return status;
            s->slots[i].on_device = from->slots[k].on_device;
            break;
        }
    }
    return QUERN_OK;
}

/* ---- preparing ---- */

/* "batch is 100 by input 0 'x'; the model was compiled for 1 to 64" */
static int check_range(quern_session *s, int symbol, int by)
{
    const quern_symbol_info *info = qn_symbol_at(s->entry, symbol);
    if (s->symbols[symbol] >= info->min && s->symbols[symbol] <= info->max)
        return QUERN_OK;
    char what[TEXT_SIZE];
    return qn_fail(QUERN_ERROR_RANGE, "%s is %lld by %s; the model was compiled for %lld to %lld", info->name,
                   (long long)s->symbols[symbol], slot_text(what, s, by), (long long)info->min,
                   (long long)info->max);
}

/* Dims that are one symbol give its value. */
static int find_plain_symbols(quern_session *s)
{
    memset(s->known, 0, (size_t)s->n_symbols * sizeof *s->known);
    for (int i = 0; i < s->n_buffers; i++) {
        qn_slot *slot = &s->slots[i];
        if (slot->info->role != QUERN_INPUT || !slot->bound)
            continue;
        for (int axis = 0; axis < slot->info->rank; axis++) {
            int symbol = plain_symbol(slot->info, axis);
            if (symbol < 0 || s->known[symbol])
                continue;
            s->symbols[symbol] = slot->dims[axis];
            s->known[symbol] = true;
            int status = check_range(s, symbol, i);
            if (status)
                return status;
        }
    }
    return QUERN_OK;
}

/* A symbol that no dim is by itself may be in one as a*symbol + b. Whether that was right is checked afterwards, with all
 * other dims. */
static int solve_symbol(quern_session *s, int symbol)
{
    int64_t low = qn_symbol_at(s->entry, symbol)->min;
    for (int i = 0; i < s->n_buffers; i++) {
        qn_slot *slot = &s->slots[i];
        int rank = slot->info->rank;
        int64_t at_low[rank + 1], at_next[rank + 1];
        if (slot->info->role != QUERN_INPUT || !slot->bound)
            continue;
        s->symbols[symbol] = low;
        qn_session_shape(s, i, s->symbols, at_low);
        s->symbols[symbol] = low + 1;
        qn_session_shape(s, i, s->symbols, at_next);
        for (int axis = 0; axis < rank; axis++) {
            int64_t step = at_next[axis] - at_low[axis], rest = slot->dims[axis] - at_low[axis];
            if (step == 0 || rest % step)
                continue;
            s->symbols[symbol] = low + rest / step;
            s->known[symbol] = true;
            return check_range(s, symbol, i);
        }
    }
    s->symbols[symbol] = low;
    return QUERN_OK;
}

static int find_symbols(quern_session *s)
{
    int status = find_plain_symbols(s);
    for (int i = 0; i < s->n_symbols; i++)
        if (!s->known[i])
            s->symbols[i] = qn_symbol_at(s->entry, i)->min;
    for (int i = 0; !status && i < s->n_symbols; i++)
        if (!s->known[i] && !(s->decided && qn_symbol_at(s->entry, i)->decided))
            status = solve_symbol(s, i);
    return status;
}

/* "input 1 'y' is f32[5]; with batch = 3 the model takes f32[3]" */
static int wrong_dims(quern_session *s, int index, const int64_t *expected)
{
    char what[TEXT_SIZE], is[TEXT_SIZE], wanted[TEXT_SIZE], symbols[TEXT_SIZE];
    const qn_slot *slot = &s->slots[index];
    size_t n = 0;
    symbols[0] = '\0';
    for (int i = 0; i < s->n_symbols && n < sizeof symbols; i++)
        if (s->known[i])
            n += (size_t)snprintf(symbols + n, sizeof symbols - n, "%s%s = %lld", n ? ", " : "",
                                  qn_symbol_at(s->entry, i)->name, (long long)s->symbols[i]);
    return qn_fail(QUERN_ERROR_ARGUMENT, "%s is %s; the model takes %s%s%s%s%s", slot_text(what, s, index),
                   array_text(is, slot->info->dtype, slot->info->rank, slot->dims), expected_text(slot->info),
                   n ? ", which is " : "",
                   n ? array_text(wanted, slot->info->dtype, slot->info->rank, expected) : "",
                   n ? " with " : "", symbols);
}

static int check_dims(quern_session *s, int index, const int64_t *expected)
{
    const qn_slot *slot = &s->slots[index];
    size_t bytes;
    if (same_dims(slot->info->rank, slot->dims, expected))
        return QUERN_OK;
    /* Of an output whose extent the run decides, enough is right as well. */
    if (s->decided && slot->info->role == QUERN_OUTPUT && !is_static(slot->info) &&
        qn_bytes_of(slot->info->dtype, slot->info->rank, expected, &bytes) && bytes <= slot->bytes)
        return QUERN_OK;
    return wrong_dims(s, index, expected);
}

/* Dims and memory of one buffer, now that the symbols are known. */
static int prepare_slot(quern_session *s, int index)
{
    qn_slot *slot = &s->slots[index];
    const quern_buffer_info *info = slot->info;
    char what[TEXT_SIZE];
    int64_t dims[info->rank + 1];
    qn_session_shape(s, index, s->symbols, dims);
    if (slot->bound)
        return check_dims(s, index, dims);
    if (info->role == QUERN_INPUT && !(slot->lent && slot->has_dims))
        return qn_fail(QUERN_ERROR_ARGUMENT, "%s (%s) is not bound", slot_text(what, s, index),
                       expected_text(info));
    if (slot->shared)
        return QUERN_OK;
    copy_dims(info->rank, slot->dims, dims);
    if (!qn_bytes_of(info->dtype, info->rank, dims, &slot->bytes))
        return qn_fail(QUERN_ERROR_RANGE, "%s is too large for this machine", slot_text(what, s, index));
    slot->has_dims = true;
    if (info->role == QUERN_STATE)
        return make_state(s, index);
    if (s->model->run && s->decided && info->role == QUERN_OUTPUT)
        return QUERN_OK; /* see qn_session_resize */
    if (info->role == QUERN_OUTPUT && info->alias >= 0 && s->slots[info->alias].info->role == QUERN_STATE) {
        int status = prepare_slot(s, info->alias);
        s->io[index] = s->io[info->alias];
        slot->on_device = s->slots[info->alias].on_device;
        return status;
    }
    if (!qn_memory_reserve(&slot->memory, slot->bytes))
        return out_of_memory(slot_text(what, s, index), (int64_t)slot->bytes);
    s->io[index] = slot->memory.data;
    return QUERN_OK;
}

static int prepare(quern_session *s)
{
    int status = find_symbols(s);
    if (!status && s->decided && !s->model->run && QN_HAS_FIELD(s->entry, limits) && s->entry->limits)
        s->entry->limits(s->symbols);
    for (int i = 0; !status && i < s->n_buffers; i++)
        status = prepare_slot(s, i);
    if (status)
        return status;
    if (!s->model->run) {
        int64_t bytes = s->entry->workspace_bytes(s->symbols);
        if (bytes < 0)
            return qn_fail(QUERN_ERROR_RANGE, "entry '%s' has no code for these dims", s->entry->name);
        if (!qn_memory_reserve(&s->workspace, (size_t)bytes))
            return out_of_memory("the workspace", bytes);
    }
    s->ready = true;
    return QUERN_OK;
}

int quern_session_find(const quern_session *s, const char *name)
{
    for (int i = 0; i < s->n_buffers; i++)
        if (strcmp(s->slots[i].info->name, name) == 0)
            return i;
    return keep_missing(s, "buffer", name);
}

int quern_session_find_role(const quern_session *s, quern_role role, const char *name)
{
    for (int i = 0; i < s->n_buffers; i++)
        if (s->slots[i].info->role == (int)role && strcmp(s->slots[i].info->name, name) == 0)
            return i;
    return keep_missing(s, role == QUERN_INPUT ? "input" : role == QUERN_OUTPUT ? "output" : "state", name);
}

int quern_session_dims(quern_session *s, int index, int64_t *out_dims)
{
    int status = check_index(s, index);
    if (!status && !s->ready)
        status = find_symbols(s);
    if (status)
        return status;
    int64_t symbols[s->n_symbols + 1];
    copy_dims(s->n_symbols, symbols, s->symbols);
    if (s->decided && s->slots[index].info->role == QUERN_OUTPUT) {
        if (s->model->run || !QN_HAS_FIELD(s->entry, limits) || !s->entry->limits)
            return qn_fail(QUERN_ERROR_UNSUPPORTED, "the dims are known after a run only");
        s->entry->limits(symbols);
    }
    qn_session_shape(s, index, symbols, out_dims);
    return QUERN_OK;
}

int qn_session_resize(quern_session *s, int index, const int64_t *dims)
{
    qn_slot *slot = &s->slots[index];
    const quern_buffer_info *info = slot->info;
    char what[TEXT_SIZE];
    if (slot->bound) {
        if (!same_dims(info->rank, slot->dims, dims))
            return wrong_dims(s, index, dims);
        return QUERN_OK;
    }
    if (!qn_bytes_of(info->dtype, info->rank, dims, &slot->bytes) ||
        !qn_memory_reserve(&slot->memory, slot->bytes))
        return out_of_memory(slot_text(what, s, index), (int64_t)slot->bytes);
    copy_dims(info->rank, slot->dims, dims);
    slot->has_dims = true;
    s->io[index] = slot->memory.data;
    return QUERN_OK;
}

/* ---- running ---- */

/* What the run found that is not in its range, or -1; the others' values are of this run, of one before, or their limits. They are all
 * limits again. */
static int find_outside(quern_session *s, int64_t *out_value, int64_t *out_most)
{
    int64_t found[s->n_symbols + 1];
    int outside = -1;
    if (!s->decided || !QN_HAS_FIELD(s->entry, limits) || !s->entry->limits)
        return -1;
    copy_dims(s->n_symbols, found, s->symbols);
    s->entry->limits(s->symbols);
    for (int i = 0; i < s->n_symbols; i++)
        if (qn_symbol_at(s->entry, i)->decided &&
            (found[i] < qn_symbol_at(s->entry, i)->min || found[i] > s->symbols[i])) {
            outside = i;
            *out_value = found[i];
            *out_most = s->symbols[i];
        }
    return outside;
}

static int run_failed(quern_session *s, int status)
{
    int64_t value = 0, most = 0;
    const int outside = status == QUERN_ERROR_RANGE ? find_outside(s, &value, &most) : -1;
    const char *node = NULL;
    if (s->ctx.failed_node >= 0 && s->ctx.failed_node < s->entry->n_nodes)
        node = s->entry->node_names[s->ctx.failed_node];
    const char *reason = s->ctx.comm ? s->ctx.comm->error(s->ctx.comm) : "";
    if (*reason)
        return qn_fail(status, "entry '%s': %s", s->entry->name, reason);
    reason = s->ctx.strings ? s->ctx.strings->error(s->ctx.strings) : "";
    if (*reason)
        return qn_fail(status, "entry '%s': %s%s%s%s", s->entry->name, node ? "node " : "", node ? node : "",
                       node ? ": " : "", reason);
    switch (status) {
    case QUERN_ERROR_INDEX:
        return qn_fail(status, "entry '%s': %s%s%san index is outside the operand it selects from",
                       s->entry->name, node ? "node " : "", node ? node : "", node ? ": " : "");
    case QUERN_ERROR_ARGUMENT:
        if (node)
            return qn_fail(status, "entry '%s': node %s", s->entry->name, node);
        break;
    case QUERN_ERROR_RANGE:
        if (outside >= 0) {
            const quern_symbol_info *symbol = qn_symbol_at(s->entry, outside);
            return qn_fail(status,
                           "entry '%s': %s is %lld here; the model was compiled for %lld to %lld%s%s%s",
                           s->entry->name, symbol->name, (long long)value, (long long)symbol->min,
                           (long long)most, value > most ? " (--dim " : "", value > most ? symbol->name : "",
                           value > most ? "=0..N says how far it may go)" : "");
        }
        break;
    case QUERN_ERROR_DEVICE:
        return qn_fail(status, "entry '%s' cannot run here: it was compiled for %s", s->entry->name,
                       s->model->info->target);
    case QUERN_ERROR_CANCELLED: return qn_fail(status, "entry '%s' was cancelled", s->entry->name);
    default: break;
    }
    return qn_fail(status, "entry '%s' failed: %s", s->entry->name, quern_status_name(status));
}

/* The other ranks need not wait for this one. */
static int tell_ranks(quern_session *s, int status)
{
    if (status && s->ctx.comm)
        s->ctx.comm->fail(s->ctx.comm, quern_last_error());
    return status;
}

int qn_session_run_plainly(quern_session *s)
{
    if (s->model->run)
        return tell_ranks(s, s->model->run(s));
    if (s->ctx.strings)
        qn_strings_begin(s->ctx.strings);
    qn_pool_enter_run(s->pool);
    int status = s->run(s->io, s->workspace.data, &s->ctx);
    qn_pool_leave_run(s->pool);
    return status ? tell_ranks(s, run_failed(s, status)) : QUERN_OK;
}

int quern_session_run(quern_session *s)
{
    if (!s->ready) {
        int status = prepare(s);
        if (status)
            return tell_ranks(s, status);
    }
    return s->model->around ? s->model->around->run(s->model->around, s) : qn_session_run_plainly(s);
}

/* An input that nobody bound gets memory of the session's own, so that the caller can fill it in. */
static int lend_input(quern_session *s, int index)
{
    qn_slot *slot = &s->slots[index];
    char what[TEXT_SIZE];
    if (!slot->has_dims)
        return qn_fail(QUERN_ERROR_ARGUMENT, "%s (%s) is not bound, and its dims are not known",
                       slot_text(what, s, index), expected_text(slot->info));
    if (!qn_memory_reserve(&slot->memory, slot->bytes))
        return out_of_memory(slot_text(what, s, index), (int64_t)slot->bytes);
    slot->lent = true;
    s->io[index] = slot->memory.data;
    return QUERN_OK;
}

int quern_session_get(quern_session *s, int index, quern_array *out)
{
    int status = check_index(s, index);
    if (status)
        return status;
    qn_slot *slot = &s->slots[index];
    char what[TEXT_SIZE];
    if (!slot->bound && !slot->shared && slot->info->role == QUERN_INPUT)
        status = lend_input(s, index);
    else if (!slot->bound && !slot->shared && slot->info->role == QUERN_STATE && slot->has_dims)
        status = make_state(s, index);
    else if (!s->ready && !slot->bound && !slot->shared)
        status = prepare(s);
    if (status)
        return status;
    if (!s->io[index])
        return qn_fail(QUERN_ERROR_ARGUMENT, "%s is known after a run only", slot_text(what, s, index));
    bool found = s->decided && s->ready && !s->model->run && slot->info->role == QUERN_OUTPUT;
    if (found)
        qn_session_shape(s, index, s->symbols, slot->found_dims);
    *out = (quern_array){ .dtype = slot->info->dtype,
                          .rank = slot->info->rank,
                          .dims = found ? slot->found_dims : slot->dims,
                          .data = s->io[index] };
    return QUERN_OK;
}
