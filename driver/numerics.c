/* check_numerics: when a run leaves NaN or infinity, where did it begin?
 *
 * The states are copied before each run. Afterwards outputs and states are looked at. Where one is bad the states go back, the
 * function is compiled again so that it says of each value whether it is bad (passes/numerics.c), and runs on the same inputs. From
 * the bad output a path of bad operands leads back to the node that made NaN or infinity of good ones. */
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "passes/inline.h"
#include "passes/numerics.h"
#include "runtime/error.h"
#include "runtime/session.h"

enum { GOOD, INFINITE, NOT_A_NUMBER };
static const char *const kinds[] = { "finite", "infinite", "NaN" };

typedef struct checks {
    qn_around base;
    quern_module *module; /* kept: the copy below shares its constants */
    qn_module *ir;
    quern_compile_options options;
} checks;

/* ---- looking at numbers ---- */

/* The largest of n numbers' bits without their signs: those of infinity, or more where one is NaN. */
#define LARGEST(type)                                                     \
    for (size_t i = 0; i < n; i++) {                                      \
        type bits;                                                        \
        memcpy(&bits, (const char *)data + i * sizeof bits, sizeof bits); \
        bits &= (type) - 1 >> 1;                                          \
        largest = bits > largest ? bits : largest;                        \
    }

static int worst_of(qn_dtype dtype, size_t bytes, const void *data)
{
    const uint64_t infinity = dtype == QUERN_F64    ? 0x7ff0000000000000
                              : dtype == QUERN_F32  ? 0x7f800000
                              : dtype == QUERN_BF16 ? 0x7f80
                                                    : 0x7c00;
    const size_t size = qn_dtype_bytes(dtype), n = bytes / size;
    uint64_t largest = 0;
    if (!qn_dtype_is_float(dtype))
        return GOOD;
    if (size == 2)
        LARGEST(uint16_t)
    else if (size == 4)
        LARGEST(uint32_t)
    else
        LARGEST(uint64_t)
    return largest > infinity ? NOT_A_NUMBER : largest == infinity ? INFINITE : GOOD;
}

static size_t array_bytes(const quern_array *array)
{
    size_t bytes = quern_dtype_size(array->dtype);
    for (int i = 0; i < array->rank; i++)
        bytes *= (size_t)array->dims[i];
    return bytes;
}

static int worst_of_buffer(quern_session *s, int buffer)
{
    quern_array array;
    if (quern_session_get(s, buffer, &array))
        return GOOD;
    return worst_of((qn_dtype)array.dtype, array_bytes(&array), array.data);
}

static int find_buffer(const quern_session *s, const char *name)
{
    for (int i = 0; i < s->n_buffers; i++)
        if (s->slots[i].info->role != QUERN_OUTPUT && strcmp(s->slots[i].info->name, name) == 0)
            return i;
    return -1;
}

/* ---- the search ---- */

typedef struct search {
    quern_session *session;
    qn_graph *graph;
    int n_outputs; /* of the function as it was */
    qn_value **outputs;
    const char **output_names;
    const int *aliases;
    int *worst; /* by value id; -1: a constant that was not looked at yet */
} search;

static int worst_at(search *f, const qn_value *value)
{
    int *worst = &f->worst[value->id];
    if (*worst < 0) {
        const qn_tensor *tensor = qn_attr_tensor(value->node, QN_ATTR_VALUE);
        *worst = worst_of(tensor->type.dtype, tensor->bytes, qn_tensor_data(tensor));
    }
    return *worst;
}

/* Where the path of operands that are at least so bad ends. */
static qn_value *trace(search *f, qn_value *value, int kind)
{
    for (bool on = true; on && value->node;) {
        const qn_node *node = value->node;
        on = false;
        for (int i = 0; i < node->n_operands && !on; i++)
            if (worst_at(f, node->operands[i]) >= kind) {
                value = node->operands[i];
                on = true;
            }
    }
    return value;
}

static const char *text_of(const search *f, const qn_value *value, qn_arena *arena)
{
    if (!value->node)
        return qn_arena_printf(arena, "%s '%s'",
                               f->graph->input_roles[value->index] == QN_ROLE_INPUT ? "input" : "state",
                               value->name);
    return value->node->op == QN_OP_CONSTANT && value->name
               ? qn_arena_printf(arena, "constant '%s'", value->name)
               : qn_ops[value->node->op].name;
}

static qn_status report(search *f, qn_value *value, const char *what, qn_diags *diags)
{
    const int kind = worst_at(f, value);
    if (kind == GOOD)
        return qn_error(
            diags, QUERN_ERROR_NUMERIC, NULL,
            "%s is not finite, but it is with the kernels that tell where: it is a matter of rounding", what);
    const qn_value *origin = trace(f, value, kind);
    qn_error(diags, QUERN_ERROR_NUMERIC, origin->node ? &origin->node->loc : NULL,
             "%s %s %s: %s is not finite", text_of(f, origin, diags->arena), origin->node ? "gives" : "holds",
             kinds[kind], what);
    for (int i = 0; kind == NOT_A_NUMBER && origin->node && i < origin->node->n_operands; i++) {
        qn_value *operand = origin->node->operands[i];
        if (worst_at(f, operand) != INFINITE)
            continue;
        const qn_value *before = trace(f, operand, INFINITE);
        return qn_error(diags, QUERN_ERROR_NUMERIC, before->node ? &before->node->loc : NULL,
                        "%s %s infinities, of which that is made", text_of(f, before, diags->arena),
                        before->node ? "gives" : "holds");
    }
    return QUERN_ERROR_NUMERIC;
}

/* ---- the function again, which says of each value whether it is bad ---- */

static int run_flags(search *f, quern_session *t)
{
    for (int i = 0; i < t->n_buffers; i++) {
        quern_array array;
        if (t->slots[i].info->role == QUERN_OUTPUT)
            continue;
        const int from = find_buffer(f->session, t->slots[i].info->name);
        int status = from < 0 ? QUERN_ERROR_INTERNAL : quern_session_get(f->session, from, &array);
        if (!status)
            status = quern_session_bind(t, i, &array);
        if (status)
            return status;
    }
    return quern_session_run(t);
}

static int read_flags(search *f, quern_session *t, qn_arena *arena)
{
    int output = 0;
    while (output < t->n_buffers && t->slots[output].info->role != QUERN_OUTPUT)
        output++;
    f->worst = QN_NEW_ARRAY(arena, int, qn_graph_number(f->graph));
    for (int i = 0; i < f->graph->n_inputs; i++)
        f->worst[i] = worst_of_buffer(f->session, i);
    int left = f->graph->n_outputs;
    for (qn_node *node = f->graph->first; node && left > 0; node = node->next)
        for (int i = 0; i < node->n_results; i++) {
            quern_array flag;
            if (!qn_dtype_is_float(node->results[i].type.dtype))
                continue;
            if (node->op == QN_OP_CONSTANT) {
                f->worst[node->results[i].id] = -1;
                continue;
            }
            int status = quern_session_get(t, output++, &flag);
            if (status)
                return status;
            f->worst[node->results[i].id] = *(int32_t *)flag.data > 0 ? *(int32_t *)flag.data : GOOD;
            left--;
        }
    return QUERN_OK;
}

/* The value that ends up in the buffer. */
static qn_value *value_in(const search *f, int buffer)
{
    const quern_buffer_info *info = f->session->slots[buffer].info;
    for (int i = 0; i < f->n_outputs; i++) {
        const int alias = f->aliases ? f->aliases[i] : -1;
        const bool is_state = alias >= 0 && f->graph->input_roles[alias] != QN_ROLE_INPUT;
        const char *name = is_state ? f->graph->inputs[alias]->name : f->output_names[i];
        if (is_state == (info->role == QUERN_STATE) && strcmp(name, info->name) == 0)
            return f->outputs[i];
    }
    return f->graph->inputs[buffer];
}

static qn_status explain(const checks *c, quern_session *s, int buffer, qn_diags *diags)
{
    const quern_buffer_info *info = s->slots[buffer].info;
    const char *what =
        qn_arena_printf(diags->arena, "%s '%s' of entry '%s'",
                        info->role == QUERN_OUTPUT ? "output" : "state", info->name, s->entry->name);
    qn_module *module = qn_module_clone(c->ir, 0, NULL);
    quern_module *handle = qn_handle_new(module, NULL);
    quern_model *model = NULL;
    quern_session *t = NULL;
    qn_graph *graph = module->functions[s->entry_index];
    qn_status status = qn_inline_calls(graph, diags);
    search f = { .session = s,
                 .graph = graph,
                 .n_outputs = graph->n_outputs,
                 .outputs = graph->outputs,
                 .output_names = graph->output_names,
                 .aliases = graph->aliases };
    module->functions[0] = graph;
    module->n_functions = 1;
    if (!status)
        status = qn_flag_numerics(graph, diags);
    int failed = (int)status;
    if (!failed)
        failed = quern_compile(handle, &c->options, &model);
    if (!failed)
        failed = quern_session_new(model, NULL, &t);
    if (!failed)
        failed = run_flags(&f, t);
    if (!failed)
        failed = read_flags(&f, t, diags->arena);
    status = failed ? qn_error(diags, QUERN_ERROR_NUMERIC, NULL,
                               "%s is not finite; looking for where failed: %s", what, quern_last_error())
                    : report(&f, value_in(&f, buffer), what, diags);
    quern_session_free(t);
    quern_model_free(model);
    qn_handle_release(handle);
    return status;
}

/* ---- around a run ---- */

/* Copies the states to `memory`, or back; gives their bytes. */
static size_t copy_states(quern_session *s, char *memory, bool back)
{
    size_t at = 0;
    for (int i = 0; i < s->n_buffers; i++) {
        const qn_slot *slot = &s->slots[i];
        if (slot->info->role != QUERN_STATE)
            continue;
        if (memory && back)
            memcpy(s->io[i], memory + at, slot->bytes);
        else if (memory)
            memcpy(memory + at, s->io[i], slot->bytes);
        at += slot->bytes;
    }
    return at;
}

static int find_bad(quern_session *s)
{
    static const int roles[] = { QUERN_OUTPUT, QUERN_STATE };
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < s->n_buffers; i++)
            if ((int)s->slots[i].info->role == roles[r] && worst_of_buffer(s, i) != GOOD)
                return i;
    return -1;
}

static int run_checked(qn_around *around, quern_session *s)
{
    const size_t bytes = copy_states(s, NULL, false);
    char *states = malloc(bytes + 1);
    if (!states)
        return qn_fail(QUERN_ERROR_MEMORY, "no memory for a copy of the states of %zu bytes", bytes);
    copy_states(s, states, false);
    int status = qn_session_run_plainly(s);
    const int bad = status ? -1 : find_bad(s);
    if (bad >= 0) {
        qn_call call;
        copy_states(s, states, true);
        qn_call_begin(&call);
        status = qn_call_end(&call, explain((const checks *)around, s, bad, &call.diags));
    }
    free(states);
    return status;
}

static void release(qn_around *around)
{
    checks *c = (checks *)around;
    qn_module_free(c->ir);
    qn_handle_release(c->module);
    free(c);
}

static const char *keep(const checks *c, const char *text)
{
    return text ? qn_arena_strdup(c->ir->arena, text) : NULL;
}

void qn_check_numerics(quern_model *model, quern_module *module, const quern_compile_options *options)
{
    checks *c = calloc(1, sizeof *c);
    QN_ASSERT(c, "out of memory");
    atomic_fetch_add(&module->users, 1);
    QN_OPTIONS(quern_compile_options, o, options);
    *c = (checks){ .base = { .run = run_checked, .release = release },
                   .module = module,
                   .ir = qn_module_clone(module->ir, 0, NULL),
                   .options = o };
    c->options.size = sizeof o;
    c->options.check_numerics = 0;
    c->options.progress = NULL;
    c->options.target = keep(c, o.target);
    c->options.cpu = keep(c, o.cpu);
    c->options.math = o.math && strcmp(o.math, "strict") == 0 ? "strict" : "default";
    c->options.cache = keep(c, o.cache);
    c->options.blas = keep(c, o.blas);
    c->options.precision = keep(c, o.precision);
    model->around = &c->base;
}
