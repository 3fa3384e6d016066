/* check_numerics: when a run leaves NaN or infinity, where did it begin?
 *
 * The states are copied before each run. Afterwards outputs and states are looked at. Where one is bad the states go back, the
 * function is compiled again so that it says of each value whether it is bad (passes/numerics.c), and runs on the same inputs. From
 * the bad output a path of bad operands leads back to the node that made NaN or infinity of good ones. Where that has a region, the
 * path goes on in it: through its nodes, and from what an iteration started with to what the one before gave. */
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/npy.h"
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

static int worst_of_buffer(quern_session *s, int buffer)
{
    quern_array array;
    if (quern_session_get(s, buffer, &array))
        return GOOD;
    return worst_of((qn_dtype)array.dtype, qn_array_bytes(&array), array.data);
}

static int find_buffer(const quern_session *s, const char *name)
{
    for (int i = 0; i < s->n_buffers; i++)
        if (s->slots[i].info->role != QUERN_OUTPUT && strcmp(s->slots[i].info->name, name) == 0)
            return i;
    return -1;
}

/* ---- the search ---- */

enum { MOST_STEPS = 100000, MOST_HOPS = 64, MOST_DEPTH = 16 };

typedef struct search {
    quern_session *session;
    qn_graph *graph;
    int n_outputs; /* of the function as it was */
    qn_value **outputs;
    const char **output_names;
    const int *aliases;
    int n_flags;
    qn_flag *flags;
    const int64_t **numbers; /* by output: pairs, see qn_flag */
} search;

/* A value, and the nodes whose regions it lies in. */
typedef struct place {
    qn_value *value;
    int depth;
    qn_node *around[MOST_DEPTH];
} place;

static qn_graph *body_of(const qn_node *node)
{
    return node->regions[node->n_regions - 1]; /* not of `if` */
}

static bool is_carried(const qn_node *around, int input)
{
    return around->op != QN_OP_IF && input < qn_attr_int(around, QN_ATTR_N_CARRIED);
}

static qn_value *operand_of(const qn_node *around, int input)
{
    return around->operands[around->op == QN_OP_IF ? input + 1 : input];
}

static int loops_around(const place *p)
{
    int n = 0;
    for (int i = 0; i < p->depth; i++)
        n += p->around[i]->op != QN_OP_IF;
    return n;
}

/* When the value, which is in the regions around p, was first at least so bad: -1 before all, the time, or QN_FLAG_NEVER. */
static int64_t when(const search *f, const place *p, const qn_value *value, int kind, int hops)
{
    const qn_node *node = value->node;
    if (!qn_dtype_is_float(value->type.dtype) || hops == MOST_HOPS)
        return QN_FLAG_NEVER;
    if (node && node->op == QN_OP_CONSTANT) {
        const qn_tensor *tensor = qn_attr_tensor(node, QN_ATTR_VALUE);
        return worst_of(tensor->type.dtype, tensor->bytes, qn_tensor_data(tensor)) >= kind ? -1
                                                                                           : QN_FLAG_NEVER;
    }
    for (int i = 0; i < f->n_flags && node; i++)
        if (f->flags[i].value == value)
            return f->numbers[f->flags[i].output][2 * f->flags[i].row + kind - 1];
    if (node || p->depth == 0)
        return !node && worst_of_buffer(f->session, value->index) >= kind ? -1 : QN_FLAG_NEVER;
    const qn_node *around = p->around[p->depth - 1];
    place outside = *p;
    outside.depth--;
    const int64_t came = when(f, &outside, operand_of(around, value->index), kind, hops + 1);
    if (!is_carried(around, value->index))
        return came;
    const int64_t made = when(f, p, body_of(around)->outputs[value->index], kind, hops + 1);
    return came <= made ? came : made + qn_flag_iteration(loops_around(p));
}

/* One step back; false where the path ends. */
static bool step_back(const search *f, place *p, int kind)
{
    qn_node *node = p->value->node;
    if (!node && p->depth == 0)
        return false;
    const int64_t now = when(f, p, p->value, kind, 0);
    if (!node) {
        const int input = p->value->index;
        qn_node *around = p->around[p->depth - 1];
        place outside = *p;
        outside.depth--;
        outside.value = operand_of(around, input);
        if (when(f, &outside, outside.value, kind, 0) <= now)
            *p = outside;
        else
            p->value = body_of(around)->outputs[input];
        return true;
    }
    for (int i = 0; i < node->n_operands; i++) {
        const int64_t then = when(f, p, node->operands[i], kind, 0);
        if (then == QN_FLAG_NEVER || then > now)
            continue;
        p->value = node->operands[i];
        return true;
    }
    place inside = *p;
    for (int r = node->op == QN_OP_WHILE; r < node->n_regions && p->depth < MOST_DEPTH; r++) {
        inside.around[p->depth] = node;
        inside.depth = p->depth + 1;
        inside.value = node->regions[r]->outputs[p->value->index];
        if (when(f, &inside, inside.value, kind, 0) == QN_FLAG_NEVER)
            continue;
        *p = inside;
        return true;
    }
    return false;
}

/* Where the path of operands that are at least so bad ends. */
static place trace(const search *f, place p, int kind)
{
    for (int steps = 0; steps < MOST_STEPS && step_back(f, &p, kind); steps++)
        continue;
    while (!p.value->node && p.depth) /* a ring of values that only hand themselves on */
        p.value = &p.around[--p.depth]->results[0];
    return p;
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

/* " in iteration 3 of scan", of the outermost loop around. */
static const char *iteration_of(const search *f, const place *p, int kind, qn_arena *arena)
{
    const int64_t number = when(f, p, p->value, kind, 0);
    for (int i = 0; i < p->depth && number >= 0; i++)
        if (p->around[i]->op != QN_OP_IF)
            return qn_arena_printf(arena, " in iteration %lld of %s",
                                   (long long)(number / qn_flag_iteration(1)) + 1,
                                   qn_ops[p->around[i]->op].name);
    return "";
}

static qn_status report(const search *f, qn_value *value, const char *what, qn_diags *diags)
{
    const place start = { .value = value };
    const int kind = when(f, &start, value, NOT_A_NUMBER, 0) != QN_FLAG_NEVER ? NOT_A_NUMBER : INFINITE;
    if (when(f, &start, value, kind, 0) == QN_FLAG_NEVER)
        return qn_error(
            diags, QUERN_ERROR_NUMERIC, NULL,
            "%s is not finite, but it is with the kernels that tell where: it is a matter of rounding", what);
    const place origin = trace(f, start, kind);
    qn_node *node = origin.value->node;
    qn_error(diags, QUERN_ERROR_NUMERIC, node ? &node->loc : NULL, "%s %s %s%s: %s is not finite",
             text_of(f, origin.value, diags->arena), node ? "gives" : "holds", kinds[kind],
             iteration_of(f, &origin, kind, diags->arena), what);
    const int64_t then = when(f, &origin, origin.value, kind, 0);
    for (int i = 0; kind == NOT_A_NUMBER && node && i < node->n_operands; i++) {
        place operand = origin;
        operand.value = node->operands[i];
        if (when(f, &operand, operand.value, INFINITE, 0) > then)
            continue;
        const place before = trace(f, operand, INFINITE);
        return qn_error(diags, QUERN_ERROR_NUMERIC, before.value->node ? &before.value->node->loc : NULL,
                        "%s %s infinities%s, of which that is made", text_of(f, before.value, diags->arena),
                        before.value->node ? "gives" : "holds",
                        iteration_of(f, &before, INFINITE, diags->arena));
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
    int first = 0;
    while (first < t->n_buffers && t->slots[first].info->role != QUERN_OUTPUT)
        first++;
    f->numbers = QN_NEW_ARRAY(arena, const int64_t *, f->graph->n_outputs);
    for (int i = 0; i < f->graph->n_outputs; i++) {
        quern_array flags;
        int status = quern_session_get(t, first + i, &flags);
        if (status)
            return status;
        f->numbers[i] = flags.data;
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
        status = qn_flag_numerics(graph, &f.n_flags, &f.flags, diags);
    for (int i = 0; i < f.n_outputs; i++)
        f.outputs[i] = qn_value_resolve(f.outputs[i]);
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
