/* Arrays of the command line: see tensors.h. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "driver/output.h"
#include "driver/shuffle.h"
#include "driver/tensors.h"
#include "ir/narrow.h"
#include "runtime/error.h"
#include "runtime/memory.h"

/* ---- buffers of an entry ---- */

int qn_entry_count(const quern_entry_info *entry, quern_role role)
{
    int n = 0;
    for (int i = 0; i < entry->n_buffers; i++)
        n += qn_buffer_at(entry, i)->role == (int32_t)role;
    return n;
}

int qn_entry_buffer(const quern_entry_info *entry, quern_role role, int k)
{
    for (int i = 0; i < entry->n_buffers; i++)
        if (qn_buffer_at(entry, i)->role == (int32_t)role && k-- == 0)
            return i;
    return -1;
}

const char *qn_entry_names(const quern_entry_info *entry, quern_role role, qn_arena *arena)
{
    const char *names = "";
    for (int i = 0; i < entry->n_buffers; i++)
        if (qn_buffer_at(entry, i)->role == (int32_t)role)
            names =
                qn_arena_printf(arena, "%s%s%s", names, names[0] ? ", " : "", qn_buffer_at(entry, i)->name);
    return names;
}

int qn_npy_find(int n, const qn_npy *arrays, const char *name, const char *prefix, int k)
{
    char numbered[32];
    snprintf(numbered, sizeof numbered, "%s%d", prefix, k);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < n; i++)
            if (strcmp(arrays[i].name, pass ? numbered : name) == 0)
                return i;
    return -1;
}

quern_array qn_npy_as(const quern_array *array, int32_t dtype)
{
    quern_array taken = *array;
    if (array->dtype == QUERN_U8 && qn_dtype_is_stored((qn_dtype)dtype))
        taken.dtype = dtype;
    return taken;
}

/* ---- inputs ---- */

typedef struct binding {
    const qn_cli *cli;
    quern_session *session;
    const quern_entry_info *entry;
    bool *bound; /* per buffer */
    qn_arena *arena;
    qn_diags *diags;
} binding;

static int bind_array(binding *b, int k, const quern_array *array)
{
    int buffer = qn_entry_buffer(b->entry, QUERN_INPUT, k);
    const quern_array taken = qn_npy_as(array, qn_buffer_at(b->entry, buffer)->dtype);
    if (quern_session_bind(b->session, buffer, &taken))
        return qn_cli_fail_api(b->cli);
    b->bound[buffer] = true;
    return QN_EXIT_OK;
}

/* All inputs that the archive has. */
static int bind_archive(binding *b, const char *path, int n, const qn_npy *arrays)
{
    int n_bound = 0;
    for (int k = 0; k < qn_entry_count(b->entry, QUERN_INPUT); k++) {
        int buffer = qn_entry_buffer(b->entry, QUERN_INPUT, k);
        int found = qn_npy_find(n, arrays, qn_buffer_at(b->entry, buffer)->name, "in_", k);
        if (found < 0)
            continue;
        int status = bind_array(b, k, &arrays[found].array);
        if (status)
            return status;
        n_bound++;
    }
    if (n_bound)
        return QN_EXIT_OK;
    return qn_cli_fail(b->cli, "%s has none of the inputs: %s, or in_0, in_1, …", path,
                       qn_entry_names(b->entry, QUERN_INPUT, b->arena));
}

static int bind_file(binding *b, const char *argument)
{
    const char *name = NULL, *path = argument;
    int n, n_inputs = qn_entry_count(b->entry, QUERN_INPUT), k = n_inputs == 1 ? 0 : -1;
    qn_npy *arrays;
    if (qn_cli_split(argument, b->arena, &name, &path)) {
        k = -1;
        for (int i = 0; i < n_inputs; i++)
            if (strcmp(qn_buffer_at(b->entry, qn_entry_buffer(b->entry, QUERN_INPUT, i))->name, name) == 0)
                k = i;
        if (k < 0)
            return qn_cli_fail(b->cli, "there is no input '%s'; the inputs are: %s", name,
                               qn_entry_names(b->entry, QUERN_INPUT, b->arena));
    }
    if (qn_npy_read(path, b->arena, &n, &arrays, b->diags))
        return qn_cli_fail_diags(b->cli, b->diags);
    if (n == 1 && k >= 0)
        return bind_array(b, k, &arrays[0].array);
    if (!name && arrays[0].name[0])
        return bind_archive(b, path, n, arrays);
    return qn_cli_fail(b->cli, "which input is %s? Write NAME=%s; the inputs are: %s", path, path,
                       qn_entry_names(b->entry, QUERN_INPUT, b->arena));
}

static double next_normal(uint64_t *state)
{
    double u = ((double)(qn_random_next(state) >> 11) + 0.5) * 0x1p-53,
           v = (double)(qn_random_next(state) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

void qn_fill_random(qn_dtype dtype, int64_t n, void *to, uint64_t *state)
{
    char *at = to;
    for (int64_t i = 0; i < n; i++, at += qn_dtype_bytes(dtype)) {
        qn_scalar value;
        if (qn_dtype_is_float(dtype))
            value.f = next_normal(state);
        else if (qn_dtype_is_stored(dtype))
            value.i = qn_narrow_from_float(dtype, fabs(next_normal(state)));
        else
            value.i = (int64_t)(qn_random_next(state) & 1);
        qn_scalar_store(dtype, value, at);
    }
}

static void free_memory(void *memory)
{
    qn_memory_free(memory);
}

/* Memory for an input, freed with the arena; NULL with a message. The user says how much, so there may be less. */
static char *input_memory(const quern_buffer_info *info, const int64_t *dims, size_t *out_bytes,
                          qn_arena *arena)
{
    qn_memory *memory = QN_NEW(arena, qn_memory);
    if (qn_bytes_of(info->dtype, info->rank, dims, out_bytes) && qn_memory_reserve(memory, *out_bytes))
        qn_arena_defer(arena, free_memory, memory);
    else
        qn_fail(QUERN_ERROR_MEMORY, "no memory for input '%s' of %s: fix its dimensions to less", info->name,
                qn_array_type(&(quern_array){ info->dtype, info->rank, dims, NULL }, arena));
    return memory->data;
}

int qn_bind_random(quern_session *session, uint64_t seed, qn_arena *arena)
{
    const quern_entry_info *entry = session->entry;
    int64_t *symbols = QN_NEW_ARRAY(arena, int64_t, entry->n_symbols);
    for (int i = 0; i < entry->n_symbols; i++) {
        int64_t least = qn_symbol_at(entry, i)->min;
        symbols[i] = least > 1 ? least : 1;
    }
    uint64_t state = seed;
    for (int k = 0; k < qn_entry_count(entry, QUERN_INPUT); k++) {
        int buffer = qn_entry_buffer(entry, QUERN_INPUT, k);
        const quern_buffer_info *info = qn_buffer_at(entry, buffer);
        int64_t *dims = QN_NEW_ARRAY(arena, int64_t, info->rank);
        size_t bytes;
        qn_session_shape(session, buffer, symbols, dims);
        char *data = input_memory(info, dims, &bytes, arena);
        if (!data)
            return QUERN_ERROR_MEMORY;
        const qn_dtype dtype = (qn_dtype)info->dtype;
        qn_fill_random(dtype, (int64_t)(bytes / qn_dtype_bytes(dtype)), data, &state);
        quern_array array = { .dtype = info->dtype, .rank = info->rank, .dims = dims, .data = data };
        int status = quern_session_bind(session, buffer, &array);
        if (status)
            return status;
    }
    quern_strings *strings = quern_session_strings(session);
    int status = QUERN_OK;
    for (int i = 0; i < 2 && strings && !status; i++) { /* 0 and 1 are to be numbers of strings */
        int64_t number;
        status = quern_strings_number(strings, "a", (size_t)i, &number);
    }
    return status;
}

int qn_bind_inputs(const qn_cli *cli, quern_session *session, int n_files, const char *const *files,
                   uint64_t seed, qn_arena *arena, qn_diags *diags)
{
    binding b = { .cli = cli,
                  .session = session,
                  .entry = session->entry,
                  .bound = QN_NEW_ARRAY(arena, bool, session->entry->n_buffers),
                  .arena = arena,
                  .diags = diags };
    if (n_files == 0)
        return qn_bind_random(session, seed, arena) ? qn_cli_fail_api(cli) : QN_EXIT_OK;
    for (int i = 0; i < n_files; i++) {
        int status = bind_file(&b, files[i]);
        if (status)
            return status;
    }
    for (int i = 0; i < b.entry->n_buffers; i++)
        if (qn_buffer_at(b.entry, i)->role == QUERN_INPUT && !b.bound[i])
            return qn_cli_fail(cli, "input '%s' (%s) is missing: --input %s=FILE",
                               qn_buffer_at(b.entry, i)->name, qn_buffer_at(b.entry, i)->text,
                               qn_buffer_at(b.entry, i)->name);
    return QN_EXIT_OK;
}

/* ---- showing and comparing ---- */

const char *qn_array_type(const quern_array *array, qn_arena *arena)
{
    const char *text = qn_arena_printf(arena, "%s[", quern_dtype_text(array->dtype));
    for (int i = 0; i < array->rank; i++)
        text = qn_arena_printf(arena, "%s%s%" PRId64, text, i ? ", " : "", array->dims[i]);
    return qn_arena_printf(arena, "%s]", text);
}

static int64_t elements(const quern_array *array)
{
    int64_t n = 1;
    for (int i = 0; i < array->rank; i++)
        n *= array->dims[i];
    return n;
}

static qn_scalar element(const quern_array *array, int64_t i)
{
    return qn_scalar_load((qn_dtype)array->dtype,
                          (const char *)array->data + (size_t)i * quern_dtype_size(array->dtype));
}

static double as_double(const quern_array *array, qn_scalar value)
{
    if (qn_dtype_is_float((qn_dtype)array->dtype))
        return value.f;
    if (qn_dtype_is_stored((qn_dtype)array->dtype))
        return qn_narrow_value((qn_dtype)array->dtype, (uint8_t)value.i);
    return array->dtype == QUERN_U64 ? (double)(uint64_t)value.i : (double)value.i;
}

static bool are_strings(qn_texts texts)
{
    return texts.n || texts.table;
}

static const char *text_of(qn_texts texts, int64_t number)
{
    if (texts.table)
        return quern_strings_text(texts.table, number, NULL);
    return number >= 0 && number < texts.n ? texts.items[number] : NULL;
}

static void show_element(const quern_array *array, int64_t i, qn_texts texts, bool json, FILE *to)
{
    const qn_dtype dtype = (qn_dtype)array->dtype;
    const qn_scalar value = element(array, i);
    const char *text = are_strings(texts) ? text_of(texts, value.i) : NULL;
    if (text) {
        qn_json_string(text, to);
    } else if (qn_dtype_is_float(dtype) || qn_dtype_is_stored(dtype)) {
        const double real = as_double(array, value);
        if (!json)
            fprintf(to, dtype == QUERN_F64 ? "%.17g" : "%.7g", real);
        else if (isfinite(real))
            fprintf(to, dtype == QUERN_F64 ? "%.17g" : "%.9g", real);
        else
            fputs(isnan(real) ? "\"NaN\"" : real > 0 ? "\"Infinity\"" : "\"-Infinity\"", to);
    } else if (dtype == QUERN_BOOL && json) {
        fputs(value.i ? "true" : "false", to);
    } else if (dtype == QUERN_U64) {
        fprintf(to, "%" PRIu64, (uint64_t)value.i);
    } else {
        fprintf(to, "%" PRId64, value.i);
    }
}

static void show_dims(const quern_array *array, FILE *to)
{
    putc('[', to);
    for (int i = 0; i < array->rank; i++)
        fprintf(to, "%s%" PRId64, i ? ", " : "", array->dims[i]);
    putc(']', to);
}

void qn_array_show(const quern_array *array, qn_texts texts, FILE *to)
{
    enum { SHOWN = 16 };
    const int64_t n = elements(array);
    fputs(are_strings(texts) ? "strings" : quern_dtype_text(array->dtype), to);
    show_dims(array, to);
    fputs(" [", to);
    for (int64_t i = 0; i < n && i < SHOWN; i++) {
        if (i)
            putc(' ', to);
        show_element(array, i, texts, false, to);
    }
    fputs(n > SHOWN ? " …]\n" : "]\n", to);
}

void qn_array_json(const quern_array *array, qn_texts texts, FILE *to)
{
    const int64_t n = elements(array);
    fprintf(to,
            "\"dtype\": \"%s\", \"dims\": ", are_strings(texts) ? "string" : quern_dtype_text(array->dtype));
    show_dims(array, to);
    fputs(", \"data\": [", to);
    for (int64_t i = 0; i < n; i++) {
        if (i)
            fputs(", ", to);
        show_element(array, i, texts, true, to);
    }
    putc(']', to);
}

bool qn_array_compare(const quern_array *array, const quern_array *expected, double rtol, double atol,
                      qn_difference *out)
{
    *out = (qn_difference){ .n = elements(array) };
    if (array->dtype != expected->dtype || array->rank != expected->rank ||
        (array->rank && memcmp(array->dims, expected->dims, (size_t)array->rank * sizeof *array->dims) != 0))
        return false;
    double magnitude = 0;
    for (int64_t i = 0; i < out->n; i++) {
        double b = as_double(expected, element(expected, i));
        if (isfinite(b) && fabs(b) > magnitude)
            magnitude = fabs(b);
    }
    out->atol = atol < 0 ? 1e-5 * magnitude : atol;
    for (int64_t i = 0; i < out->n; i++) {
        double a = as_double(array, element(array, i)), b = as_double(expected, element(expected, i));
        if (a == b || (isnan(a) && isnan(b)))
            continue;
        double difference = fabs(a - b);
        if (!isnan(out->largest) && !(difference <= out->largest))
            out->largest = difference;
        if (difference <= out->atol + rtol * fabs(b) && isfinite(b))
            continue;
        if (out->n_wrong++ == 0) {
            out->first = i;
            out->is = a;
            out->expected = b;
        }
    }
    out->relative = magnitude > 0 ? out->largest / magnitude : out->largest;
    return true;
}
