/* A model that the reference interpreter runs: the same tables as compiled ones, made from the graphs. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "driver/api.h"
#include "ir/text_ops.h"
#include "runtime/error.h"
#include "runtime/session.h"

/* What the buffers of an entry are in its graph. */
typedef struct interp_entry {
    qn_graph *graph;
    int *output_buffers; /* per output of the graph: its buffer; an updated state's own */
    qn_type *types;      /* per buffer */
    int *symbols;        /* per symbol of the entry: its number in the module */
} interp_entry;

typedef struct interp_model {
    quern_module *handle; /* kept: the module below shares its constants */
    qn_module *module;    /* a copy */
    interp_entry *entries;
    quern_model_info info;
    pthread_mutex_t lock; /* the interpreter numbers the values of a graph while it runs */
} interp_model;

/* ---- tables ---- */

/* Symbols of the inputs come first: the caller gives them. What only outputs have, the run finds. */
static void make_symbols(const qn_module *module, interp_entry *e, quern_entry_info *info)
{
    qn_arena *arena = module->arena;
    const qn_graph *graph = e->graph;
    int n = qn_dims_symbol_count(module->dims);
    bool *given = QN_NEW_ARRAY(arena, bool, n), *used = QN_NEW_ARRAY(arena, bool, n);
    for (int i = 0; i < graph->n_inputs; i++)
        qn_type_mark_symbols(&graph->inputs[i]->type, given);
    for (int i = 0; i < graph->n_outputs; i++)
        qn_type_mark_symbols(&graph->outputs[i]->type, used);
    quern_symbol_info *symbols = QN_NEW_ARRAY(arena, quern_symbol_info, n);
    e->symbols = QN_NEW_ARRAY(arena, int, n);
    for (int decided = 0; decided < 2; decided++)
        for (int i = 0; i < n; i++) {
            if (decided ? given[i] || !used[i] : !given[i])
                continue;
            qn_dim symbol = qn_dims_symbol_at(module->dims, i);
            symbols[info->n_symbols] = (quern_symbol_info){ .size = sizeof *symbols,
                                                            .name = symbol->name,
                                                            .min = symbol->min,
                                                            .max = symbol->max,
                                                            .decided = decided };
            e->symbols[info->n_symbols++] = i;
        }
    info->symbols = symbols;
}

static quern_buffer_info make_buffer(const qn_module *module, const interp_entry *e, int n_symbols,
                                     const char *name, quern_role role, const qn_type *type)
{
    qn_arena *arena = module->arena;
    int64_t *dims = QN_NEW_ARRAY(arena, int64_t, type->rank);
    int32_t *symbols = QN_NEW_ARRAY(arena, int32_t, type->rank);
    for (int i = 0; i < type->rank; i++) {
        qn_dim d = type->dims[i];
        dims[i] = qn_dim_is_const(d) ? d->value : -1;
        symbols[i] = -1;
        for (int s = 0; d->kind == QN_DIM_SYMBOL && s < n_symbols; s++)
            if (e->symbols[s] == d->symbol)
                symbols[i] = s;
    }
    return (quern_buffer_info){ .size = sizeof(quern_buffer_info),
                                .name = name,
                                .role = role,
                                .dtype = type->dtype,
                                .rank = type->rank,
                                .alias = -1,
                                .dims = dims,
                                .symbols = symbols,
                                .text = qn_type_print(type, arena),
                                .initial = -1 };
}

static void make_entry(const qn_module *module, qn_graph *graph, interp_entry *e, quern_entry_info *info)
{
    qn_arena *arena = module->arena;
    int capacity = graph->n_inputs + graph->n_outputs;
    quern_buffer_info *buffers = QN_NEW_ARRAY(arena, quern_buffer_info, capacity);
    *info = (quern_entry_info){ .size = sizeof *info,
                                .name = strcmp(graph->name, "main") == 0 ? "infer" : graph->name,
                                .n_nodes = 0 };
    e->graph = graph;
    e->types = QN_NEW_ARRAY(arena, qn_type, capacity);
    e->output_buffers = QN_NEW_ARRAY(arena, int, graph->n_outputs);
    make_symbols(module, e, info);
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_value *input = graph->inputs[i];
        qn_input_role role = graph->input_roles[i];
        quern_buffer_info *b = &buffers[info->n_buffers];
        *b = make_buffer(module, e, info->n_symbols,
                         input->name ? input->name : qn_arena_printf(arena, "input_%d", i),
                         role == QN_ROLE_INPUT ? QUERN_INPUT : QUERN_STATE, &input->type);
        b->trainable = role == QN_ROLE_PARAM;
        e->types[info->n_buffers++] = input->type;
    }
    for (int i = 0; i < graph->n_outputs; i++) {
        int alias = graph->aliases ? graph->aliases[i] : -1;
        if (alias >= 0 && graph->input_roles[alias] != QN_ROLE_INPUT) {
            e->output_buffers[i] = alias; /* the state is the output */
            continue;
        }
        quern_buffer_info *b = &buffers[info->n_buffers];
        const char *name = graph->output_names[i];
        *b = make_buffer(module, e, info->n_symbols, name ? name : qn_arena_printf(arena, "output_%d", i),
                         QUERN_OUTPUT, &graph->outputs[i]->type);
        b->alias = alias;
        e->types[info->n_buffers] = graph->outputs[i]->type;
        e->output_buffers[i] = info->n_buffers++;
    }
    info->buffers = buffers;
}

static void shape(const quern_model *model, int entry, int buffer, const int64_t *symbols, int64_t *out_dims)
{
    const interp_model *m = model->owner;
    const interp_entry *e = &m->entries[entry];
    int n = qn_dims_symbol_count(m->module->dims);
    int64_t values[n + 1];
    memset(values, 0, sizeof values);
    for (int i = 0; i < m->info.entries[entry].n_symbols; i++)
        values[e->symbols[i]] = symbols[i];
    for (int i = 0; i < e->types[buffer].rank; i++)
        out_dims[i] = qn_dim_eval(e->types[buffer].dims[i], values);
}

/* Initial contents of states, one after another, as the weights of a compiled model would have them. */
static void lay_out_states(interp_model *m, quern_entry_info *entries)
{
    qn_arena *arena = m->module->arena;
    int64_t bytes = 0;
    for (int pass = 0; pass < 2; pass++) {
        char *data = pass ? qn_arena_alloc(arena, (size_t)bytes) : NULL;
        int64_t at = 0;
        for (int e = 0; e < m->info.n_entries; e++)
            for (int i = 0; i < m->entries[e].graph->n_inputs; i++) {
                const qn_tensor *initial = m->entries[e].graph->input_initial[i];
                if (!initial)
                    continue;
                if (pass) {
                    memcpy(data + at, qn_tensor_data(initial), initial->bytes);
                    ((quern_buffer_info *)entries[e].buffers)[i].initial = at;
                }
                at += ((int64_t)initial->bytes + 63) / 64 * 64;
            }
        bytes = at;
        m->info.weights = data;
    }
    m->info.weights_bytes = bytes;
}

/* ---- running ---- */

static qn_status run_graph(quern_session *s, qn_arena *arena, qn_diags *diags)
{
    interp_model *m = s->model->owner;
    interp_entry *e = &m->entries[s->entry_index];
    qn_graph *graph = e->graph;
    qn_array *inputs = QN_NEW_ARRAY(arena, qn_array, graph->n_inputs);
    qn_array *outputs = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    for (int i = 0; i < graph->n_inputs; i++) {
        inputs[i] =
            (qn_array){ .dtype = s->slots[i].info->dtype, .rank = s->slots[i].info->rank, .data = s->io[i] };
        memcpy(inputs[i].dims, s->slots[i].dims, (size_t)inputs[i].rank * sizeof(int64_t));
    }
    QN_TRY(qn_interp_run_with(graph, &s->ctx, inputs, outputs, arena, diags));
    for (int i = 0; i < graph->n_outputs; i++) {
        int buffer = e->output_buffers[i];
        size_t bytes = qn_dtype_bytes(outputs[i].dtype);
        for (int axis = 0; axis < outputs[i].rank; axis++)
            bytes *= (size_t)outputs[i].dims[axis];
        if (s->slots[buffer].info->role == QUERN_OUTPUT) {
            int status = qn_session_resize(s, buffer, outputs[i].dims);
            if (status)
                return qn_error(diags, status, NULL, "%s", quern_last_error());
        }
        memcpy(s->io[buffer], outputs[i].data, bytes);
    }
    return QUERN_OK;
}

static int run(quern_session *s)
{
    interp_model *m = s->model->owner;
    qn_call call;
    qn_call_begin(&call);
    /* Of ranks that share the model, one would wait for another that waits for it. */
    if (!s->ctx.comm)
        pthread_mutex_lock(&m->lock);
    else if (pthread_mutex_trylock(&m->lock))
        return qn_call_end(
            &call, qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                            "another thread runs this model: with target interp each rank compiles its own"));
    qn_status status = run_graph(s, call.arena, &call.diags);
    pthread_mutex_unlock(&m->lock);
    return qn_call_end(&call, status);
}

/* ---- making and freeing ---- */

static void release(quern_model *model)
{
    interp_model *m = model->owner;
    qn_module_free(m->module);
    qn_handle_release(m->handle);
    pthread_mutex_destroy(&m->lock);
    free(m);
    free(model);
}

qn_status qn_model_interp(quern_module *handle, quern_model **out, qn_diags *diags)
{
    if (handle->ir->n_functions == 0)
        return qn_error(diags, QUERN_ERROR_MODEL, NULL, "the module has no function");
    quern_model *model = calloc(1, sizeof *model);
    interp_model *m = calloc(1, sizeof *m);
    QN_ASSERT(model && m, "out of memory");
    atomic_fetch_add(&handle->users, 1);
    m->handle = handle;
    m->module = qn_module_clone(handle->ir, 0, NULL);
    pthread_mutex_init(&m->lock, NULL);
    int n = m->module->n_functions;
    quern_entry_info *entries = QN_NEW_ARRAY(m->module->arena, quern_entry_info, n);
    m->entries = QN_NEW_ARRAY(m->module->arena, interp_entry, n);
    for (int i = 0; i < n; i++)
        make_entry(m->module, m->module->functions[i], &m->entries[i], &entries[i]);
    m->info = (quern_model_info){ .size = sizeof m->info,
                                  .abi_version = QUERN_ABI_VERSION,
                                  .name = m->module->name,
                                  .target = "interp",
                                  .n_entries = n,
                                  .entries = entries,
                                  .weights_hash = "" };
    bool text = false;
    for (int i = 0; i < n; i++)
        text |= qn_text_in(m->module->functions[i]);
    if (text) {
        qn_vec_push(m->module->arena, &m->module->strings,
                    (const char *)NULL); /* a table, even if it is empty */
        m->info.n_strings = (int)--m->module->strings.n;
        m->info.strings = m->module->strings.items;
    }
    lay_out_states(m, entries);
    *model = (quern_model){
        .info = &m->info, .threads = 1, .run = run, .shape = shape, .release = release, .owner = m
    };
    *out = model;
    return QUERN_OK;
}
