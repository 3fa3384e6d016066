/* Checkpoints and trained models: see checkpoint.h. */
#include "driver/checkpoint.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "driver/api.h"
#include "driver/npy.h"
#include "driver/output.h"
#include "driver/weights.h"
#include "frontend/onnx/onnx.h"
#include "runtime/session.h"

enum { HASH_TEXT = 33 }; /* with the zero at its end */
#define METADATA "__metadata__"
#define HASH_KEY "quern_checkpoint"
#define NOTE_KEY "quern_note"
/* What stands for the hash while it is made: it covers the header too, note and padding included. */
static const char blank[] = "00000000000000000000000000000000";

typedef struct state {
    const char *name;
    quern_array array;
    size_t bytes;
    bool trainable;
    qn_device *device;  /* that it is on; `array` then is a copy of what there is */
    qn_cuda_address at; /* its address, there or here */
} state;

typedef struct states {
    int n;
    state *items;
    size_t bytes;
} states;

static const state *find_state(const states *all, const char *name)
{
    for (int i = 0; i < all->n; i++)
        if (strcmp(all->items[i].name, name) == 0)
            return &all->items[i];
    return NULL;
}

/* Adds the session's states. What another session has too is there once, by its address. */
static qn_status add_states(quern_session *session, qn_diags *diags, states *out)
{
    const quern_entry_info *entry = session->entry;
    for (int i = 0; i < entry->n_buffers; i++) {
        const quern_buffer_info *info = qn_buffer_at(entry, i);
        state *s = &out->items[out->n];
        if (info->role != QUERN_STATE)
            continue;
        if (quern_session_get(session, i, &s->array))
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s", quern_last_error());
        const state *other = find_state(out, info->name);
        s->at = (uintptr_t)s->array.data;
        if (other && other->at != s->at)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "two sessions have a state '%s', and do not share it: its name says nothing then",
                            info->name);
        if (other)
            continue;
        s->name = info->name;
        s->trainable = info->trainable;
        s->bytes = qn_array_bytes(&s->array);
        if (session->slots[i].on_device) {
            s->device = session->model->device;
            s->array.data = qn_arena_alloc(diags->arena, s->bytes + 1);
            int status = qn_cuda_to_host(s->device->cuda, s->array.data, s->at, s->bytes);
            if (status)
                return qn_error(diags, status, NULL, "%s", quern_last_error());
        }
        out->bytes += s->bytes;
        out->n++;
    }
    return QUERN_OK;
}

static qn_status find_states(int n, quern_session *const *sessions, qn_diags *diags, states *out)
{
    int most = 1;
    for (int i = 0; i < n; i++)
        most += sessions[i]->entry->n_buffers;
    *out = (states){ .items = QN_NEW_ARRAY(diags->arena, state, most) };
    for (int i = 0; i < n; i++)
        QN_TRY(add_states(sessions[i], diags, out));
    return out->n ? QUERN_OK
                  : qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "entry '%s' has no states",
                             n ? sessions[0]->entry->name : "");
}

/* XXH3-128 of the bytes of all stretches */
static void hash_text(int n, const void *const *data, const size_t *bytes, char *out)
{
    XXH3_state_t *hash = XXH3_createState();
    QN_ASSERT(hash, "out of memory");
    XXH3_128bits_reset(hash);
    for (int i = 0; i < n; i++)
        XXH3_128bits_update(hash, data[i], bytes[i]);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    XXH3_freeState(hash);
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", canonical.digest[i]);
}

/* ---- saving ---- */

static char *header_of(const states *all, const char *note)
{
    cJSON *root = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(root, METADATA);
    cJSON_AddStringToObject(metadata, HASH_KEY, blank); /* first: the first such digits are its */
    cJSON_AddStringToObject(metadata, NOTE_KEY, note);
    double offset = 0;
    for (int i = 0; i < all->n; i++) {
        const state *s = &all->items[i];
        cJSON *entry = cJSON_AddObjectToObject(root, s->name);
        cJSON_AddStringToObject(entry, "dtype", qn_safetensors_dtype((qn_dtype)s->array.dtype));
        cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
        for (int axis = 0; axis < s->array.rank; axis++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)s->array.dims[axis]));
        cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(offset));
        offset += (double)s->bytes;
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(offset));
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    QN_ASSERT(text, "out of memory");
    return text;
}

qn_status qn_checkpoint_save(int n, quern_session *const *sessions, const char *path, const char *note,
                             qn_diags *diags)
{
    states all;
    qn_output output;
    char hash[HASH_TEXT];
    QN_TRY(find_states(n, sessions, diags, &all));
    char *text = header_of(&all, note ? note : "");
    const size_t padded = (strlen(text) + 8 + 63) / 64 * 64 - 8;
    char *header = qn_arena_printf(diags->arena, "%-*s", (int)padded, text);
    free(text);
    const void **data = QN_NEW_ARRAY(diags->arena, const void *, all.n + 1);
    size_t *bytes = QN_NEW_ARRAY(diags->arena, size_t, all.n + 1);
    data[0] = header;
    bytes[0] = padded;
    for (int i = 0; i < all.n; i++) {
        data[1 + i] = all.items[i].array.data;
        bytes[1 + i] = all.items[i].bytes;
    }
    hash_text(all.n + 1, data, bytes, hash);
    memcpy(strstr(header, blank), hash, sizeof blank - 1);
    QN_TRY(qn_output_open(&output, path, diags));
    for (int i = 0; i < 8; i++)
        putc((int)((uint64_t)padded >> 8 * i & 255), output.file);
    for (int i = 0; i <= all.n; i++)
        fwrite(data[i], 1, bytes[i], output.file);
    return qn_output_commit(&output, diags);
}

/* ---- restoring ---- */

typedef struct file {
    const char *path, *data; /* data: behind the header */
    size_t size;             /* of the data */
    char *text;              /* of the header */
    size_t length;
    const cJSON *header;
    qn_diags *diags;
} file;

static qn_status refuse(const file *f, const char *why)
{
    return qn_error(f->diags, QUERN_ERROR_MODEL, &(qn_loc){ .file = f->path }, "%s", why);
}

static const char *string_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return text ? text : "";
}

/* Where the state's contents lie in the file; NULL after a report. */
static const char *contents_of(const file *f, const state *s)
{
    qn_arena *arena = f->diags->arena;
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(f->header, s->name);
    if (!entry) {
        refuse(f, qn_arena_printf(arena, "it has no '%s': it is of another model or another optimizer",
                                  s->name));
        return NULL;
    }
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    bool same = strcmp(string_of(entry, "dtype"), qn_safetensors_dtype((qn_dtype)s->array.dtype)) == 0 &&
                cJSON_GetArraySize(shape) == s->array.rank;
    for (int axis = 0; same && axis < s->array.rank; axis++)
        same = cJSON_GetNumberValue(cJSON_GetArrayItem(shape, axis)) == (double)s->array.dims[axis];
    if (!same) {
        refuse(f, qn_arena_printf(arena, "'%s' has another type or shape: it is of another model", s->name));
        return NULL;
    }
    const double start = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 0));
    const double end = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 1));
    if (!(start >= 0 && end <= (double)f->size && end - start == (double)s->bytes)) {
        refuse(f, "it is damaged: contents lie outside of the file");
        return NULL;
    }
    return f->data + (size_t)start;
}

static qn_status restore(const file *f, const states *all, const char **out_note)
{
    char hash[HASH_TEXT];
    const cJSON *metadata = cJSON_GetObjectItemCaseSensitive(f->header, METADATA);
    if (!string_of(metadata, HASH_KEY)[0])
        return refuse(f, "it is no checkpoint");
    char *place = strstr(f->text, string_of(metadata, HASH_KEY));
    if (!place || strlen(string_of(metadata, HASH_KEY)) != sizeof blank - 1)
        return refuse(f, "it is damaged: it names no hash of its contents");
    memcpy(place, blank, sizeof blank - 1);
    hash_text(2, (const void *const[]){ f->text, f->data }, (const size_t[]){ f->length, f->size }, hash);
    if (strcmp(hash, string_of(metadata, HASH_KEY)) != 0)
        return refuse(f, "it is damaged: its contents do not have the hash that it names");
    const char **contents = QN_NEW_ARRAY(f->diags->arena, const char *, all->n);
    for (int i = 0; i < all->n; i++)
        if (!(contents[i] = contents_of(f, &all->items[i])))
            return qn_diags_status(f->diags);
    if (cJSON_GetArraySize(f->header) != all->n + 1)
        return refuse(f, "it has states that the model has not: it is of another model or another optimizer");
    for (int i = 0; i < all->n; i++)
        if (!all->items[i].device)
            memcpy(all->items[i].array.data, contents[i], all->items[i].bytes);
        else if (qn_cuda_to_device(all->items[i].device->cuda, all->items[i].at, contents[i],
                                   all->items[i].bytes))
            return qn_error(f->diags, QUERN_ERROR_DEVICE, NULL, "%s", quern_last_error());
    if (out_note)
        *out_note = qn_arena_strdup(f->diags->arena, string_of(metadata, NOTE_KEY));
    return QUERN_OK;
}

qn_status qn_checkpoint_restore(int n, quern_session *const *sessions, const char *path,
                                const char **out_note, qn_diags *diags)
{
    states all;
    char *bytes;
    size_t size;
    uint64_t length = 0;
    file f = { .path = path, .diags = diags };
    QN_TRY(find_states(n, sessions, diags, &all));
    qn_arena *arena = qn_arena_new(); /* of the file's contents: they may be large */
    qn_diags mine;
    qn_diags_init(&mine, arena);
    qn_status status = qn_read_file(path, arena, &bytes, &size, &mine);
    if (status)
        status = qn_error(diags, status, NULL, "%s", qn_diags_text(&mine, arena));
    for (int i = 0; !status && size >= 8 && i < 8; i++)
        length |= (uint64_t)(unsigned char)bytes[i] << 8 * i;
    if (!status && (size < 8 || length > size - 8))
        status = refuse(&f, "it is damaged: it ends in its header");
    cJSON *header = status ? NULL : cJSON_ParseWithLength(bytes + 8, (size_t)length);
    if (!status && !cJSON_IsObject(header))
        status = refuse(&f, "it is no safetensors file");
    if (!status) {
        f.text = bytes + 8;
        f.length = (size_t)length;
        f.data = bytes + 8 + length;
        f.size = size - 8 - (size_t)length;
        f.header = header;
        status = restore(&f, &all, out_note);
    }
    cJSON_Delete(header);
    qn_arena_free(arena);
    return status;
}

/* ---- trained models ---- */

/* Parameters, and states that begin as something: running statistics, which are initializers of the file, and what training adds
 * (random_key, learning_rate, averages), which are not. What the optimizer keeps begins as zeros. */
static int find_replacements(quern_session *session, const states *all, bool averages, qn_arena *arena,
                             qn_onnx_replacement *out)
{
    int n = 0, at = 0;
    for (int i = 0; i < session->entry->n_buffers; i++) {
        const quern_buffer_info *info = qn_buffer_at(session->entry, i);
        if (info->role != QUERN_STATE)
            continue;
        const state *s = &all->items[at++];
        if (!s->trainable && info->initial < 0)
            continue;
        const state *now =
            averages && s->trainable ? find_state(all, qn_arena_printf(arena, "%s.ema", s->name)) : NULL;
        now = now ? now : s;
        out[n++] = (qn_onnx_replacement){ .name = s->name,
                                          .dtype = (qn_dtype)s->array.dtype,
                                          .data = now->array.data,
                                          .bytes = s->bytes,
                                          .optional = !s->trainable };
    }
    return n;
}

qn_status qn_write_onnx(quern_session *session, const char *from, const char *to, bool averages,
                        qn_diags *diags)
{
    states all;
    qn_output model, data;
    bool has_data = false;
    QN_TRY(find_states(1, &session, diags, &all));
    qn_onnx_replacement *replacements = QN_NEW_ARRAY(diags->arena, qn_onnx_replacement, all.n);
    const int n = find_replacements(session, &all, averages, diags->arena, replacements);
    const char *data_path = qn_arena_printf(diags->arena, "%s.data", to), *slash = strrchr(data_path, '/');
    QN_TRY(qn_output_open(&model, to, diags));
    qn_status status = qn_output_open(&data, data_path, diags);
    if (!status)
        status = qn_onnx_rewrite(from, n, replacements, model.file, data.file, slash ? slash + 1 : data_path,
                                 &has_data, diags);
    if (!status && has_data)
        status = qn_output_commit(&data, diags);
    qn_output_discard(&data);
    if (!status)
        return qn_output_commit(&model, diags);
    qn_output_discard(&model);
    return status;
}

/* ---- quern.h ---- */

/* Are they all there? */
static qn_status need_sessions(qn_call *call, int n, quern_session *const *sessions, const char *function)
{
    for (int i = 0; i < n; i++)
        QN_TRY(qn_call_need(call, sessions[i], function, n == 1 ? "session" : "a session"));
    return QUERN_OK;
}

static int save(int n, quern_session *const *sessions, const char *path, const char *note,
                const char *function)
{
    qn_call call;
    qn_call_begin(&call);
    qn_status status = need_sessions(&call, n, sessions, function);
    if (!status)
        status = qn_call_need(&call, path, function, "path");
    if (!status)
        status = qn_checkpoint_save(n, sessions, path, note, &call.diags);
    return qn_call_end(&call, status);
}

static int restore_from(int n, quern_session *const *sessions, const char *path, char **out_note,
                        const char *function)
{
    qn_call call;
    const char *note = "";
    qn_call_begin(&call);
    if (out_note)
        *out_note = NULL;
    qn_status status = need_sessions(&call, n, sessions, function);
    if (!status)
        status = qn_call_need(&call, path, function, "path");
    if (!status)
        status = qn_checkpoint_restore(n, sessions, path, &note, &call.diags);
    if (!status && out_note && !(*out_note = strdup(note)))
        status = qn_error(&call.diags, QUERN_ERROR_MEMORY, NULL, "no memory for the note");
    return qn_call_end(&call, status);
}

int quern_session_save(quern_session *session, const char *path, const char *note)
{
    return save(1, &session, path, note, "quern_session_save");
}

int quern_session_restore(quern_session *session, const char *path, char **out_note)
{
    return restore_from(1, &session, path, out_note, "quern_session_restore");
}

int quern_sessions_save(int n, quern_session *const *sessions, const char *path, const char *note)
{
    return save(n, sessions, path, note, "quern_sessions_save");
}

int quern_sessions_restore(int n, quern_session *const *sessions, const char *path, char **out_note)
{
    return restore_from(n, sessions, path, out_note, "quern_sessions_restore");
}

int quern_session_write_onnx(quern_session *session, const char *from, const char *to, int averages)
{
    qn_call call;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, session, "quern_session_write_onnx", "session");
    if (!status)
        status = qn_call_need(&call, from, "quern_session_write_onnx", "from");
    if (!status)
        status = qn_call_need(&call, to, "quern_session_write_onnx", "to");
    if (!status)
        status = qn_write_onnx(session, from, to, averages != 0, &call.diags);
    return qn_call_end(&call, status);
}
