/* Whole graphs and what runs them: binding of symbols, if, while, scan, calls. */
#include "backends/interp/interp.h"

#include <string.h>

enum { MAX_DEPTH = 256 }; /* of regions and calls: a function that calls itself is a mistake, not a crash */

/* ---- plans ---- */

/* Values have slots: inputs first, then the results of nodes in order. */
typedef struct step {
    const qn_node *node;
    int *operands;
    int results; /* slot of the first */
} step;

struct qn_plan {
    const qn_graph *graph;
    int n_slots, n_steps, max_operands;
    step *steps;
    int *outputs;
    int *last_use; /* per slot: the last step that reads it, or that makes it; n_steps for outputs */
};

/* Slots by value: open addressing. (The ids of the values belong to whoever numbered the graph.) */
typedef struct slots {
    size_t mask;
    const qn_value **values;
    int *numbers;
} slots;

static size_t place_of(const slots *s, const qn_value *value)
{
    size_t at = (size_t)((uint64_t)(uintptr_t)value * 0x9e3779b97f4a7c15u >> 32) & s->mask;
    while (s->values[at] && s->values[at] != value)
        at = (at + 1) & s->mask;
    return at;
}

static void add_slot(slots *s, const qn_value *value, int number)
{
    const size_t at = place_of(s, value);
    s->values[at] = value;
    s->numbers[at] = number;
}

static int slot_of(const slots *s, qn_value *value)
{
    const size_t at = place_of(s, qn_value_resolve(value));
    QN_ASSERT(s->values[at], "interpreter: a value is used before it is defined, or in another graph");
    return s->numbers[at];
}

static void find_last_uses(qn_plan *plan, qn_arena *arena)
{
    plan->last_use = QN_NEW_ARRAY(arena, int, plan->n_slots);
    for (int k = 0; k < plan->n_steps; k++) {
        const step *s = &plan->steps[k];
        for (int i = 0; i < s->node->n_operands; i++)
            plan->last_use[s->operands[i]] = k;
        for (int i = 0; i < s->node->n_results; i++)
            plan->last_use[s->results + i] = k;
    }
    for (int i = 0; i < plan->graph->n_outputs; i++)
        plan->last_use[plan->outputs[i]] = plan->n_steps;
}

qn_plan *qn_plan_new(const qn_graph *graph, qn_arena *arena)
{
    qn_plan *plan = QN_NEW(arena, qn_plan);
    plan->graph = graph;
    plan->n_slots = graph->n_inputs;
    QN_FOR_NODES (graph, node) {
        plan->n_slots += node->n_results;
        plan->n_steps++;
        plan->max_operands = node->n_operands > plan->max_operands ? node->n_operands : plan->max_operands;
    }
    slots s = { .mask = 15 };
    while (s.mask < 2 * (size_t)plan->n_slots)
        s.mask = 2 * s.mask + 1;
    s.values = QN_NEW_ARRAY(arena, const qn_value *, s.mask + 1);
    s.numbers = QN_NEW_ARRAY(arena, int, s.mask + 1);
    int n = 0;
    for (int i = 0; i < graph->n_inputs; i++)
        add_slot(&s, graph->inputs[i], n++);
    plan->steps = QN_NEW_ARRAY(arena, step, plan->n_steps);
    step *at = plan->steps;
    QN_FOR_NODES (graph, node) {
        *at = (step){ node, QN_NEW_ARRAY(arena, int, node->n_operands), n };
        for (int i = 0; i < node->n_operands; i++)
            at->operands[i] = slot_of(&s, node->operands[i]);
        for (int i = 0; i < node->n_results; i++)
            add_slot(&s, &node->results[i], n++);
        at++;
    }
    plan->outputs = QN_NEW_ARRAY(arena, int, graph->n_outputs);
    for (int i = 0; i < graph->n_outputs; i++)
        plan->outputs[i] = slot_of(&s, graph->outputs[i]);
    find_last_uses(plan, arena);
    return plan;
}

static qn_status copy_array(const qn_array *from, qn_array *to, qn_arena *arena, qn_diags *diags)
{
    *to = *from;
    QN_TRY(qn_array_alloc(to, arena, NULL, diags));
    if (qn_array_elements(to) > 0)
        memcpy(to->data, from->data, (size_t)qn_array_elements(to) * qn_dtype_bytes(to->dtype));
    return QUERN_OK;
}

/* Each step allocates from an arena of its own, which goes with the last value in it: views count as values in the
 * arena of what they view. */
typedef struct activation {
    const qn_plan *plan;
    qn_array *values;  /* per slot */
    int *owners;       /* per slot: the step whose arena holds it; -1: an input */
    qn_arena **arenas; /* per step */
    int *n_live;       /* per step: values in its arena that are still needed */
} activation;

static void release(activation *a, int slot)
{
    const int owner = a->owners[slot];
    if (owner < 0 || --a->n_live[owner] > 0)
        return;
    qn_arena_free(a->arenas[owner]);
    a->arenas[owner] = NULL;
}

static qn_status run_step(activation *a, const qn_interp *in, int k, qn_array *operands)
{
    const step *s = &a->plan->steps[k];
    qn_interp inner = *in;
    inner.arena = a->arenas[k] = qn_arena_new();
    inner.depth++;
    for (int i = 0; i < s->node->n_operands; i++)
        operands[i] = a->values[s->operands[i]];
    QN_TRY(qn_interp_eval(&inner, s->node, operands, &a->values[s->results]));
    for (int r = s->results; r < s->results + s->node->n_results; r++) {
        a->owners[r] = k;
        for (int i = 0; i < s->node->n_operands; i++)
            if (a->values[r].data == operands[i].data)
                a->owners[r] = a->owners[s->operands[i]];
        if (a->owners[r] >= 0)
            a->n_live[a->owners[r]]++;
    }
    for (int r = s->results; r < s->results + s->node->n_results; r++)
        if (a->plan->last_use[r] == k)
            release(a, r);
    for (int i = 0; i < s->node->n_operands; i++) {
        const int slot = s->operands[i];
        bool again = false; /* an operand may be there twice */
        for (int j = 0; j < i; j++)
            again = again || s->operands[j] == slot;
        if (!again && a->plan->last_use[slot] == k)
            release(a, slot);
    }
    return QUERN_OK;
}

qn_status qn_plan_run(const qn_plan *plan, const qn_interp *in, const qn_array *inputs, qn_array *outputs,
                      qn_arena *arena)
{
    if (in->depth >= MAX_DEPTH)
        return qn_error(in->diags, QUERN_ERROR_MODEL, NULL, "%d regions and calls inside each other",
                        MAX_DEPTH);
    qn_arena *local = qn_arena_new();
    activation a = { .plan = plan,
                     .values = QN_NEW_ARRAY(local, qn_array, plan->n_slots),
                     .owners = QN_NEW_ARRAY(local, int, plan->n_slots),
                     .arenas = QN_NEW_ARRAY(local, qn_arena *, plan->n_steps),
                     .n_live = QN_NEW_ARRAY(local, int, plan->n_steps) };
    qn_array *operands = QN_NEW_ARRAY(local, qn_array, plan->max_operands);
    for (int i = 0; i < plan->graph->n_inputs; i++) {
        a.values[i] = inputs[i];
        a.owners[i] = -1;
    }
    qn_status status = QUERN_OK;
    for (int k = 0; k < plan->n_steps && !status; k++)
        status = run_step(&a, in, k, operands);
    for (int i = 0; i < plan->graph->n_outputs && !status; i++)
        status = copy_array(&a.values[plan->outputs[i]], &outputs[i], arena, in->diags);
    for (int k = 0; k < plan->n_steps; k++)
        qn_arena_free(a.arenas[k]);
    qn_arena_free(local);
    return status;
}

/* ---- symbols ---- */

static qn_status bind_symbol(const qn_interp *in, qn_dim symbol, int64_t value, const char *input, int axis,
                             const qn_loc *loc)
{
    int64_t *bound = &in->symbols[symbol->symbol];
    if (value < symbol->min || value > symbol->max)
        return qn_error(in->diags, QUERN_ERROR_RANGE, loc,
                        "input '%s': axis %d, dimension '%s', is %lld; it has to be in [%lld, %lld]", input,
                        axis, symbol->name, (long long)value, (long long)symbol->min, (long long)symbol->max);
    if (*bound == QN_UNBOUND)
        *bound = value;
    return QUERN_OK;
}

/* The symbol of a * symbol + b (only sums and products, one symbol without a value), or NULL. */
static qn_dim linear_symbol(const qn_interp *in, qn_dim d, bool *other)
{
    qn_dim found = NULL;
    if (d->kind == QN_DIM_SYMBOL)
        return in->symbols[d->symbol] == QN_UNBOUND ? d : NULL;
    if (d->kind != QN_DIM_CONST && d->kind != QN_DIM_ADD && d->kind != QN_DIM_MUL)
        *other = true;
    for (int i = 0; i < d->n; i++) {
        qn_dim symbol = linear_symbol(in, d->operands[i], other);
        if (symbol && found && symbol != found)
            *other = true;
        found = symbol ? symbol : found;
    }
    return found;
}

/* Solves d = value for its one symbol without a value, where d is linear in it. */
static bool solve(const qn_interp *in, qn_dim d, int64_t value, qn_dim *out_symbol, int64_t *out_value)
{
    bool other = false;
    qn_dim symbol = linear_symbol(in, d, &other);
    if (!symbol || other)
        return false;
    int64_t *at = &in->symbols[symbol->symbol], f[3];
    for (int i = 0; i < 3; i++) {
        *at = i;
        f[i] = qn_dim_eval(d, in->symbols);
    }
    const int64_t slope = f[1] - f[0];
    const bool linear = slope != 0 && f[2] - f[1] == slope && (value - f[0]) % slope == 0;
    *at = QN_UNBOUND;
    *out_symbol = symbol;
    *out_value = linear ? (value - f[0]) / slope : 0;
    return linear;
}

static const char *input_name(const qn_graph *graph, int i, qn_arena *arena)
{
    return graph->inputs[i]->name ? graph->inputs[i]->name : qn_arena_printf(arena, "%d", i);
}

qn_status qn_interp_bind(const qn_interp *in, const qn_graph *graph, const qn_array *inputs,
                         const qn_loc *loc)
{
    qn_arena *texts = in->diags->arena;
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_type *type = &graph->inputs[i]->type;
        const char *name = input_name(graph, i, texts);
        if (inputs[i].dtype != type->dtype || inputs[i].rank != type->rank)
            return qn_error(in->diags, QUERN_ERROR_ARGUMENT, loc,
                            "input '%s' is %s of rank %d, expected is %s", name,
                            inputs[i].dtype ? qn_dtype_name(inputs[i].dtype) : "nothing", inputs[i].rank,
                            qn_type_print(type, texts));
        for (int a = 0; a < type->rank; a++) {
            if (inputs[i].dims[a] < 0 || inputs[i].dims[a] > QN_DIM_MAX_VALUE)
                return qn_error(in->diags, QUERN_ERROR_ARGUMENT, loc, "input '%s': axis %d is %lld", name, a,
                                (long long)inputs[i].dims[a]);
            if (type->dims[a]->kind == QN_DIM_SYMBOL)
                QN_TRY(bind_symbol(in, type->dims[a], inputs[i].dims[a], name, a, loc));
        }
    }
    /* Then equations in one symbol, until they give no more. */
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < graph->n_inputs; i++)
            for (int a = 0; a < graph->inputs[i]->type.rank; a++) {
                qn_dim symbol;
                int64_t value;
                if (!solve(in, graph->inputs[i]->type.dims[a], inputs[i].dims[a], &symbol, &value))
                    continue;
                QN_TRY(bind_symbol(in, symbol, value, input_name(graph, i, texts), a, loc));
                more = true;
            }
    }
    for (int i = 0; i < graph->n_inputs; i++)
        for (int a = 0; a < graph->inputs[i]->type.rank; a++) {
            qn_dim d = graph->inputs[i]->type.dims[a];
            int64_t expected;
            QN_TRY(qn_interp_dim(in, d, loc, &expected));
            if (expected != inputs[i].dims[a])
                return qn_error(in->diags, QUERN_ERROR_ARGUMENT, loc,
                                "input '%s': axis %d is %lld, expected %s%s%lld", input_name(graph, i, texts),
                                a, (long long)inputs[i].dims[a],
                                qn_dim_is_const(d) ? "" : qn_dim_print(d, texts),
                                qn_dim_is_const(d) ? "" : " = ", (long long)expected);
        }
    return QUERN_OK;
}

/* ---- control ---- */

static bool is_true(const qn_array *a)
{
    return *(const uint8_t *)a->data != 0;
}

qn_status qn_eval_if(qn_eval *e)
{
    const qn_graph *taken = e->node->regions[is_true(&e->x[0]) ? 0 : 1];
    e->scratch = qn_arena_new();
    return qn_plan_run(qn_plan_new(taken, e->scratch), e->in, e->x + 1, e->y, e->in->arena);
}

/* Inputs of a body: carried values, slices, captured values. The carried ones of an iteration live in an arena of
 * their own, which goes when the next ones are there. */
typedef struct loop {
    const qn_plan *plan;
    int n_carried;
    qn_array *inputs, *outputs;
    qn_arena *carried; /* NULL: they are operands of the node */
} loop;

static void loop_init(qn_eval *e, const qn_graph *body, int n_carried, loop *l)
{
    if (!e->scratch)
        e->scratch = qn_arena_new();
    *l = (loop){ .plan = qn_plan_new(body, e->scratch),
                 .n_carried = n_carried,
                 .inputs = QN_NEW_ARRAY(e->scratch, qn_array, body->n_inputs),
                 .outputs = QN_NEW_ARRAY(e->scratch, qn_array, body->n_outputs) };
}

/* One iteration; outputs past the carried ones last until the next. */
static qn_status loop_run(qn_eval *e, loop *l)
{
    qn_arena *next = qn_arena_new();
    const qn_status status = qn_plan_run(l->plan, e->in, l->inputs, l->outputs, next);
    qn_arena_free(l->carried);
    l->carried = next;
    for (int i = 0; i < l->n_carried; i++)
        l->inputs[i] = l->outputs[i];
    return status;
}

/* The carried values become the first results. */
static qn_status loop_finish(qn_eval *e, loop *l, qn_status status)
{
    for (int i = 0; i < l->n_carried && !status; i++)
        status = copy_array(&l->inputs[i], &e->y[i], e->in->arena, e->in->diags);
    qn_arena_free(l->carried);
    return status;
}

static qn_status while_holds(qn_eval *e, const qn_plan *condition, const qn_array *inputs, bool *holds)
{
    qn_arena *arena = qn_arena_new();
    qn_array result;
    const qn_status status = qn_plan_run(condition, e->in, inputs, &result, arena);
    *holds = !status && is_true(&result);
    qn_arena_free(arena);
    return status;
}

qn_status qn_eval_while(qn_eval *e)
{
    int64_t limit = INT64_MAX;
    if (qn_attr_find(e->node, QN_ATTR_LIMIT))
        QN_TRY(qn_eval_dims(e, QN_ATTR_LIMIT, &limit));
    loop l;
    loop_init(e, e->node->regions[1], (int)qn_attr_int(e->node, QN_ATTR_N_CARRIED), &l);
    const qn_plan *condition = qn_plan_new(e->node->regions[0], e->scratch);
    for (int i = 0; i < e->node->n_operands; i++)
        l.inputs[i] = e->x[i];
    qn_status status = QUERN_OK;
    for (int64_t i = 0; i < limit && !status; i++) {
        bool holds;
        status = while_holds(e, condition, l.inputs, &holds);
        if (!holds)
            break;
        status = loop_run(e, &l);
    }
    return loop_finish(e, &l, status);
}

/* Element `i` along axis 0: a view. */
static qn_array row_of(const qn_array *a, int64_t i)
{
    qn_array row = { .dtype = a->dtype, .rank = a->rank - 1 };
    memcpy(row.dims, a->dims + 1, (size_t)row.rank * sizeof *row.dims);
    row.data = qn_element(a, i * qn_array_elements(&row));
    return row;
}

qn_status qn_eval_scan(qn_eval *e)
{
    const qn_node *node = e->node;
    const bool reverse = qn_attr_bool(node, QN_ATTR_REVERSE);
    const int n_carried = (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    const int n_scanned = (int)qn_attr_int(node, QN_ATTR_N_SCANNED);
    int64_t length;
    QN_TRY(qn_eval_dims(e, QN_ATTR_LENGTH, &length));
    for (int i = n_carried; i < n_carried + n_scanned; i++)
        if (e->x[i].dims[0] != length)
            return qn_eval_error(e, QUERN_ERROR_ARGUMENT, "scan of %lld steps over %lld slices (operand %d)",
                                 (long long)length, (long long)e->x[i].dims[0], i);
    for (int i = n_carried; i < node->n_results; i++) {
        QN_TRY(qn_interp_shape(e->in, &node->results[i].type, &node->loc, &e->y[i]));
        QN_TRY(qn_array_alloc(&e->y[i], e->in->arena, &node->loc, e->in->diags));
    }
    loop l;
    loop_init(e, node->regions[0], n_carried, &l);
    for (int i = 0; i < node->n_operands; i++)
        l.inputs[i] = e->x[i];
    qn_status status = QUERN_OK;
    for (int64_t k = 0; k < length && !status; k++) {
        const int64_t at = reverse ? length - 1 - k : k;
        for (int i = n_carried; i < n_carried + n_scanned; i++)
            l.inputs[i] = row_of(&e->x[i], at);
        status = loop_run(e, &l);
        for (int i = n_carried; i < node->n_results && !status; i++) {
            const qn_array row = row_of(&e->y[i], at);
            const int64_t n = qn_array_elements(&row);
            QN_ASSERT(n == qn_array_elements(&l.outputs[i]), "scan: output %d changes its dims", i);
            if (n > 0)
                memcpy(row.data, l.outputs[i].data, (size_t)n * qn_dtype_bytes(row.dtype));
        }
    }
    return loop_finish(e, &l, status);
}

/* Arguments have the very types of the function's inputs, so its symbols have their values already. */
qn_status qn_eval_call(qn_eval *e)
{
    const qn_graph *callee = qn_module_find(e->in->module, qn_attr_string(e->node, QN_ATTR_FUNCTION));
    QN_ASSERT(callee && callee->n_inputs == e->node->n_operands && callee->n_outputs == e->node->n_results,
              "call of '%s': no such function", qn_attr_string(e->node, QN_ATTR_FUNCTION));
    e->scratch = qn_arena_new();
    return qn_plan_run(qn_plan_new(callee, e->scratch), e->in, e->x, e->y, e->in->arena);
}
