/* quern.h: handles of modules, loading, text, gradients. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backends/backend.h"
#include "driver/api.h"
#include "driver/output.h"
#include "frontend/onnx/onnx.h"
#include "frontend/text/text.h"
#include "passes/autodiff.h"
#include "passes/pass.h"
#include "runtime/error.h"

/* ---- calls and handles ---- */

void qn_call_begin(qn_call *call)
{
    call->arena = qn_arena_new();
    qn_diags_init(&call->diags, call->arena);
}

int qn_call_end(qn_call *call, qn_status status)
{
    if (status) {
        const char *text = qn_diags_text(&call->diags, call->arena);
        qn_fail_text(status, text[0] ? text : quern_status_name(status));
    }
    qn_arena_free(call->arena);
    return status;
}

qn_status qn_call_need(qn_call *call, const void *argument, const char *function, const char *name)
{
    if (argument)
        return QUERN_OK;
    return qn_error(&call->diags, QUERN_ERROR_ARGUMENT, NULL, "%s: %s is NULL", function, name);
}

qn_status qn_need_size(const void *options, const char *type, qn_diags *diags)
{
    size_t size = SIZE_MAX;
    if (options)
        memcpy(&size, options, sizeof size);
    if (size > sizeof size)
        return QUERN_OK;
    return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s.size is %zu: set it to sizeof(%s)", type, size,
                    type);
}

quern_module *qn_handle_new(qn_module *ir, void *bytes)
{
    quern_module *handle = calloc(1, sizeof *handle);
    QN_ASSERT(handle, "out of memory");
    handle->ir = ir;
    handle->bytes = bytes;
    atomic_init(&handle->users, 1);
    return handle;
}

void qn_handle_release(quern_module *handle)
{
    if (!handle || atomic_fetch_sub(&handle->users, 1) != 1)
        return;
    qn_module_free(handle->ir);
    free(handle->bytes);
    free(handle);
}

void quern_module_free(quern_module *module)
{
    qn_handle_release(module);
}

void quern_free(void *memory)
{
    free(memory);
}

/* ---- loading ---- */

/* Quern's text begins with a comment or a word; an ONNX file begins with the tag of one of its fields, none of which is
 * a letter or '#'. */
static bool looks_like_text(const char *data, size_t size)
{
    size_t i = 0;
    while (i < size && (data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r'))
        i++;
    return i < size && (data[i] == '#' || (data[i] >= 'a' && data[i] <= 'z'));
}

static bool starts_as_text(const char *path, size_t *out_n)
{
    char start[256];
    FILE *f = fopen(path, "rbe");
    *out_n = f ? fread(start, 1, sizeof start, f) : 0;
    if (f)
        fclose(f);
    return looks_like_text(start, *out_n);
}

bool qn_is_text_model(const char *path)
{
    size_t n;
    return starts_as_text(path, &n);
}

static qn_status check_options(const quern_load_options *o, qn_diags *diags)
{
    for (int i = 0; i < o->n_shapes; i++)
        if (!o->shapes[i].name || !o->shapes[i].text)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "shape %d has no name, or no text", i);
    for (int i = 0; i < o->n_dims; i++)
        if (!o->dims[i].name || o->dims[i].min < 0 || o->dims[i].max < o->dims[i].min ||
            o->dims[i].max > QN_DIM_MAX_VALUE)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "dimension %s = %lld..%lld: the range must be min <= max, 0 to %lld",
                            o->dims[i].name ? o->dims[i].name : "(no name)", (long long)o->dims[i].min,
                            (long long)o->dims[i].max, (long long)QN_DIM_MAX_VALUE);
    return QUERN_OK;
}

static qn_status load_onnx(const char *path, const void *data, size_t size, const quern_load_options *o,
                           qn_module **out, qn_diags *diags)
{
    qn_onnx_needs needs = { 0 };
    qn_onnx_constant *constants = QN_NEW_ARRAY(diags->arena, qn_onnx_constant, o->n_constants);
    for (int i = 0; i < o->n_constants; i++)
        constants[i] = (qn_onnx_constant){ .name = o->constants[i].name, .array = o->constants[i].array };
    qn_onnx_options options = { .n_dims = o->n_dims,
                                .dims = o->dims,
                                .n_constants = o->n_constants,
                                .constants = constants,
                                .n_shapes = o->n_shapes,
                                .shapes = o->shapes,
                                .seed = o->seed,
                                .needs = &needs,
                                .every_dim = o->every_dim != 0,
                                .gradient = qn_gradient_at,
                                .fold = qn_interp_fold };
    qn_status status = path ? qn_onnx_load(path, &options, out, diags)
                            : qn_onnx_load_bytes(data, size, "(memory)", &options, out, diags);
    for (int i = 0; o->needs && i < needs.n; i++)
        o->needs(o->needs_user, needs.names[i], needs.indices[i]);
    for (int i = 0; o->needs_shape && i < needs.n_shapes; i++)
        o->needs_shape(o->needs_user, needs.shape_names[i], needs.shape_indices[i]);
    for (int i = 0; o->needs_dim && i < needs.n_dims; i++)
        o->needs_dim(o->needs_user, needs.dims[i], needs.dim_names[i], needs.dim_inputs[i],
                     needs.dim_axes[i]);
    return status;
}

static void free_module(void *module)
{
    qn_module_free(module);
}

static qn_status load_text(const char *path, const char *data, size_t size, const quern_load_options *o,
                           qn_module **out, qn_diags *diags)
{
    if (o->n_shapes || o->n_constants)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s: Quern's text says what %s",
                        path ? path : "(memory)", o->n_shapes ? "shapes its inputs have" : "is constant");
    QN_TRY(qn_text_parse(data, size, path ? path : "(memory)", out, diags));
    qn_module *module = *out;
    for (int i = 0; i < o->n_dims; i++) {
        qn_dim symbol = qn_dim_find_symbol(module->dims, o->dims[i].name);
        if (!symbol) {
            *out = NULL;
            qn_module_free(module);
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "%s: no dimension is called '%s'",
                            path ? path : "(memory)", o->dims[i].name);
        }
    }
    if (o->n_dims) {
        *out = qn_module_clone(module, o->n_dims, o->dims);
        qn_arena_defer((*out)->arena, free_module, module); /* whose constants the copy shares */
    }
    return QUERN_OK;
}

qn_status qn_load_module(const char *path, const void *data, size_t size, const quern_load_options *options,
                         qn_module **out, qn_diags *diags)
{
    *out = NULL;
    QN_TRY(qn_need_size(options, "quern_load_options", diags));
    QN_OPTIONS(quern_load_options, o, options);
    QN_TRY(check_options(&o, diags));
    if (path) {
        size_t n;
        struct stat kind;
        if (stat(path, &kind) == 0 && S_ISFIFO(kind.st_mode))
            return qn_error(diags, QUERN_ERROR_IO, &(qn_loc){ .file = path },
                            "it is a pipe: a model is read from a file, or from memory");
        if (!starts_as_text(path, &n) && n)
            return load_onnx(path, NULL, 0, &o, out, diags);
        char *text;
        QN_TRY(qn_read_file(path, diags->arena, &text, &size, diags));
        data = text;
    }
    if (size == 0)
        return qn_error(diags, QUERN_ERROR_MODEL, &(qn_loc){ .file = path },
                        "it is empty: expected an ONNX model or Quern's text");
    if (!looks_like_text(data, size))
        return load_onnx(NULL, data, size, &o, out, diags);
    return load_text(path, data, size, &o, out, diags);
}

int quern_load(const char *path, const quern_load_options *options, quern_module **out)
{
    qn_call call;
    qn_module *module = NULL;
    *out = NULL;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, path, "quern_load", "path");
    if (!status)
        status = qn_load_module(path, NULL, 0, options, &module, &call.diags);
    if (!status)
        *out = qn_handle_new(module, NULL);
    return qn_call_end(&call, status);
}

int quern_load_bytes(const void *data, size_t size, const quern_load_options *options, quern_module **out)
{
    qn_call call;
    qn_module *module = NULL;
    *out = NULL;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, data, "quern_load_bytes", "data");
    /* Weights point into the bytes, which the caller may free. */
    void *copy = status ? NULL : malloc(size + 1);
    if (!status && !copy)
        status = qn_error(&call.diags, QUERN_ERROR_MEMORY, NULL, "no memory for a model of %zu bytes", size);
    if (!status) {
        memcpy(copy, data, size);
        status = qn_load_module(NULL, copy, size, options, &module, &call.diags);
    }
    if (status)
        free(copy);
    else
        *out = qn_handle_new(module, copy);
    return qn_call_end(&call, status);
}

int quern_module_groups(const quern_module *module, const quern_group **out)
{
    *out = module ? module->ir->groups.items : NULL;
    return module ? (int)module->ir->groups.n : 0;
}

int quern_module_strings(const quern_module *module, const char *const **out)
{
    *out = module ? (const char *const *)module->ir->strings.items : NULL;
    return module ? (int)module->ir->strings.n : 0;
}

int quern_module_text(const quern_module *module, char **out)
{
    qn_call call;
    *out = NULL;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, module, "quern_module_text", "module");
    if (!status) {
        *out = strdup(qn_module_print(module->ir, call.arena));
        if (!*out)
            status = qn_error(&call.diags, QUERN_ERROR_MEMORY, NULL, "no memory for the text");
    }
    return qn_call_end(&call, status);
}

/* ---- gradients ---- */

static int find_output(const qn_graph *graph, const char *name)
{
    for (int i = 0; i < graph->n_outputs; i++) {
        const char *called = qn_graph_output_name(graph, i);
        if (called && strcmp(called, name) == 0)
            return i;
    }
    return -1;
}

static int find_input(const qn_graph *graph, const char *name)
{
    for (int i = 0; name && i < graph->n_inputs; i++)
        if (graph->inputs[i]->name && strcmp(graph->inputs[i]->name, name) == 0)
            return i;
    return -1;
}

/* The function, and the numbers of its inputs `wrt`; the new name must be free. */
static qn_status find_wrt(qn_module *module, const char *function, int n_wrt, const char *const *wrt,
                          const char *name, qn_graph **out_graph, int **out_inputs, qn_diags *diags)
{
    if (n_wrt < 0 || (n_wrt > 0 && !wrt))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "wrt: %d names are expected, and there are none",
                        n_wrt);
    *out_inputs = QN_NEW_ARRAY(diags->arena, int, n_wrt);
    qn_graph *graph = *out_graph = function              ? qn_module_find(module, function)
                                   : module->n_functions ? module->functions[0]
                                                         : NULL;
    if (!graph)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "the module has no function '%s'",
                        function ? function : "");
    if (qn_module_find(module, name))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "the module has a function '%s' already", name);
    for (int i = 0; i < n_wrt; i++) {
        (*out_inputs)[i] = find_input(graph, wrt[i]);
        if ((*out_inputs)[i] < 0)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "function '%s' has no input '%s'", graph->name,
                            wrt[i] ? wrt[i] : "(NULL)");
        for (int k = 0; k < i; k++)
            if ((*out_inputs)[k] == (*out_inputs)[i])
                return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "'%s' is named twice in wrt", wrt[i]);
    }
    return QUERN_OK;
}

/* Gives the status of what made `made`, after its own report. */
static qn_status status_of(const qn_graph *made, qn_diags *diags)
{
    return made ? QUERN_OK : diags->n_errors ? qn_diags_status(diags) : QUERN_ERROR_INTERNAL;
}

qn_status qn_add_gradient(qn_module *module, const char *function, const char *loss, int n_wrt,
                          const char *const *wrt, const char *name, qn_diags *diags)
{
    qn_graph *graph;
    int *inputs;
    QN_TRY(find_wrt(module, function, n_wrt, wrt, name, &graph, &inputs, diags));
    const int output = find_output(graph, loss);
    if (output < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "function '%s' has no output '%s'", graph->name,
                        loss);
    return status_of(qn_grad(graph, name, output, n_wrt, inputs, false, diags), diags);
}

qn_status qn_add_jvp(qn_module *module, const char *function, int n_wrt, const char *const *wrt,
                     const char *name, qn_diags *diags)
{
    qn_graph *graph;
    int *inputs;
    QN_TRY(find_wrt(module, function, n_wrt, wrt, name, &graph, &inputs, diags));
    return status_of(qn_jvp(graph, name, n_wrt, inputs, diags), diags);
}

int quern_grad(quern_module *module, const char *function, const char *loss, int n_wrt,
               const char *const *wrt, const char *name)
{
    qn_call call;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, module, "quern_grad", "module");
    if (!status)
        status = qn_call_need(&call, loss, "quern_grad", "loss");
    if (!status)
        status = qn_call_need(&call, name, "quern_grad", "name");
    if (!status)
        status = qn_add_gradient(module->ir, function, loss, n_wrt, wrt, name, &call.diags);
    return qn_call_end(&call, status);
}

int quern_jvp(quern_module *module, const char *function, int n_wrt, const char *const *wrt, const char *name)
{
    qn_call call;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, module, "quern_jvp", "module");
    if (!status)
        status = qn_call_need(&call, name, "quern_jvp", "name");
    if (!status)
        status = qn_add_jvp(module->ir, function, n_wrt, wrt, name, &call.diags);
    return qn_call_end(&call, status);
}
