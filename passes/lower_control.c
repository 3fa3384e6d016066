/* if, while and scan: steps of the program around the steps of their regions.
 *
 *   if      IF { then: its outputs written where the results are } else { … }
 *   while   carried values alternate between two buffers, behind two pointer variables (slots):
 *             copy initial to cur          LOOP while test(cur) { body: cur -> next;  swap cur, next }
 *           and the result is where cur points to in the end
 *   scan    the same with a count; slices of the scanned operands and of the stacked results are views that move with
 *           the loop, so that nothing is copied
 *
 * A carried value that the body hands on as it is needs neither. Calls have been inlined by the expand pass. */
#include "passes/lower.h"

/* The steps of a region, into `out_steps`. */
static qn_status lower_region(qn_lowering *l, qn_graph *region, const int *inputs, const int *wishes,
                              int *out_buffers, qn_steps *out_steps)
{
    qn_steps *outer = l->steps;
    *out_steps = (qn_steps){ 0 };
    l->steps = out_steps;
    const qn_status status = qn_lower_graph(l, region, inputs, wishes, out_buffers);
    l->steps = outer;
    return status;
}

static int *filled(qn_lowering *l, int n, int value)
{
    int *items = QN_NEW_ARRAY(l->arena, int, n);
    for (int i = 0; i < n; i++)
        items[i] = value;
    return items;
}

/* ---- if ---- */

static qn_status lower_if(qn_lowering *l, qn_node *node)
{
    const int n = node->n_results, n_captured = node->n_operands - 1;
    int *captured = filled(l, n_captured, -1), *results = filled(l, n, -1), *out = filled(l, n, -1);
    for (int i = 0; i < n_captured; i++)
        captured[i] = qn_lower_buffer(l, node->operands[1 + i]);
    for (int i = 0; i < n; i++)
        results[i] = qn_lower_buffer(l, &node->results[i]);
    qn_steps body, other;
    QN_TRY(lower_region(l, node->regions[0], captured, results, out, &body));
    QN_TRY(lower_region(l, node->regions[1], captured, results, out, &other));
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_IF);
    step->name = qn_ops[node->op].name;
    step->condition = qn_lower_buffer(l, node->operands[0]);
    step->body = body;
    step->other = other;
    return QUERN_OK;
}

/* ---- carried values ---- */

typedef struct carried {
    int n;
    int *current, *next; /* buffers; the same for what never changes, and then not slots */
} carried;

static int add_slot(qn_lowering *l, const char *name, int like)
{
    const qn_pbuffer *b = &l->program->buffers[like];
    qn_pbuffer slot = {
        .name = name, .dtype = b->dtype, .elements = b->elements, .place = QN_PLACE_SLOT, .io = -1, .loop = -1
    };
    slot.base = qn_lower_scratch(l, name, b->dtype, b->elements);
    return qn_program_add_buffer(l->program, slot);
}

/* Two slots for each value that the body changes, the first with its initial contents. */
static carried start_carried(qn_lowering *l, const qn_node *node, int n, const qn_graph *body)
{
    carried c = { .n = n, .current = filled(l, n, -1), .next = filled(l, n, -1) };
    for (int i = 0; i < n; i++) {
        const int initial = qn_lower_buffer(l, node->operands[i]);
        if (body->outputs[i] == body->inputs[i]) {
            c.current[i] = c.next[i] = initial;
            continue;
        }
        const char *name = l->program->buffers[initial].name;
        c.current[i] = add_slot(l, name, initial);
        c.next[i] = add_slot(l, name, initial);
        qn_lower_copy(l, initial, c.current[i]);
    }
    return c;
}

/* What the body gives a carried value; -1 where it hands it on. */
static void carried_wishes(const carried *c, int *out_wishes)
{
    for (int i = 0; i < c->n; i++)
        out_wishes[i] = c->next[i] == c->current[i] ? -1 : c->next[i];
}

static void add_swaps(qn_lowering *l, const carried *c, qn_steps *body)
{
    for (int i = 0; i < c->n; i++) {
        if (c->next[i] == c->current[i])
            continue;
        qn_step *step = qn_steps_add(l->program, body, QN_STEP_SWAP);
        step->n_buffers = 2;
        step->buffers = QN_NEW_ARRAY(l->arena, int, 2);
        step->buffers[0] = c->current[i];
        step->buffers[1] = c->next[i];
    }
}

/* The results are the current values; copied where they have a place of their own already. */
static void finish_carried(qn_lowering *l, const carried *c, qn_node *node)
{
    for (int i = 0; i < c->n; i++) {
        int *buffer = &l->scope->buffers[node->results[i].id];
        if (*buffer < 0)
            *buffer = c->current[i];
        else
            qn_lower_copy(l, c->current[i], *buffer);
    }
}

/* Kernels that read the same large data in each iteration: they go through it up and down by turns, so that what the last
 * iteration read last is in the caches still. */
static void alternate(const qn_lowering *l, qn_steps *body)
{
    enum { LARGE_BYTES = 512 << 10 };
    for (size_t i = 0; i < body->n; i++) {
        qn_step *step = &body->items[i];
        for (int b = 0; step->kind == QN_STEP_KERNEL && b < step->n_buffers; b++) {
            const qn_pbuffer *buffer = &l->program->buffers[step->buffers[b]];
            if ((buffer->place == QN_PLACE_WEIGHTS || buffer->place == QN_PLACE_IO) &&
                buffer->elements->min >= LARGE_BYTES / (int64_t)qn_dtype_bytes(buffer->dtype))
                step->alternates = true;
        }
    }
}

/* ---- while ---- */

static qn_status lower_while(qn_lowering *l, qn_node *node)
{
    qn_graph *test = node->regions[0], *body = node->regions[1];
    const int n = (int)qn_attr_int(node, QN_ATTR_N_CARRIED);
    const qn_attr *limit = qn_attr_find(node, QN_ATTR_LIMIT);
    int *inputs = filled(l, node->n_operands, -1), *wishes = filled(l, n, -1), *out = filled(l, n, -1);
    const carried c = start_carried(l, node, n, body);
    for (int i = 0; i < node->n_operands; i++)
        inputs[i] = i < n ? c.current[i] : qn_lower_buffer(l, node->operands[i]);
    int condition = -1;
    qn_steps test_steps, body_steps;
    const int outer = l->loop, loop = l->loop = l->program->n_loops++;
    QN_TRY(lower_region(l, test, inputs, &(int){ -1 }, &condition, &test_steps));
    carried_wishes(&c, wishes);
    QN_TRY(lower_region(l, body, inputs, wishes, out, &body_steps));
    add_swaps(l, &c, &body_steps);
    l->loop = outer;
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_LOOP);
    step->name = qn_ops[node->op].name;
    step->loop = loop;
    step->count = limit ? qn_lower_dim(l, limit->dims[0]) : NULL;
    step->condition = condition;
    step->test = test_steps;
    step->body = body_steps;
    alternate(l, &step->body);
    finish_carried(l, &c, node);
    return QUERN_OK;
}

/* ---- scan ---- */

/* Slice number <iteration> of a buffer along axis 0. */
static int moving_view(qn_lowering *l, int base, const qn_type *slice, int loop)
{
    qn_dims *dims = l->program->dims;
    const qn_dim elements = qn_lower_dim(l, qn_type_elements_dim(l->module->dims, slice));
    const qn_dim bytes =
        qn_dim_mul(dims, elements, qn_dim_const(dims, (int64_t)qn_dtype_bytes(slice->dtype)));
    return qn_program_add_buffer(l->program, (qn_pbuffer){ .name = l->program->buffers[base].name,
                                                           .dtype = slice->dtype,
                                                           .elements = elements,
                                                           .place = QN_PLACE_VIEW,
                                                           .io = -1,
                                                           .base = base,
                                                           .offset = qn_dim_const(dims, 0),
                                                           .loop = loop,
                                                           .stride = bytes });
}

static qn_status lower_scan(qn_lowering *l, qn_node *node)
{
    qn_graph *body = node->regions[0];
    const int n = (int)qn_attr_int(node, QN_ATTR_N_CARRIED),
              n_scanned = (int)qn_attr_int(node, QN_ATTR_N_SCANNED);
    int *inputs = filled(l, node->n_operands, -1);
    int *wishes = filled(l, node->n_results, -1), *out = filled(l, node->n_results, -1);
    const carried c = start_carried(l, node, n, body);
    const int outer = l->loop, loop = l->program->n_loops++;
    for (int i = 0; i < node->n_operands; i++) {
        if (i < n) {
            inputs[i] = c.current[i];
            continue;
        }
        inputs[i] = qn_lower_buffer(l, node->operands[i]);
        if (i < n + n_scanned)
            inputs[i] = moving_view(l, inputs[i], &body->inputs[i]->type, loop);
    }
    carried_wishes(&c, wishes);
    for (int i = n; i < node->n_results; i++)
        wishes[i] = moving_view(l, qn_lower_buffer(l, &node->results[i]), &body->outputs[i]->type, loop);
    qn_steps steps;
    l->loop = loop;
    QN_TRY(lower_region(l, body, inputs, wishes, out, &steps));
    l->loop = outer;
    add_swaps(l, &c, &steps);
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_LOOP);
    step->name = qn_ops[node->op].name;
    step->loop = loop;
    step->count = qn_lower_dim(l, qn_attr_dims(node, QN_ATTR_LENGTH, NULL)[0]);
    step->reverse = qn_attr_bool(node, QN_ATTR_REVERSE);
    step->body = steps;
    alternate(l, &step->body);
    finish_carried(l, &c, node);
    return QUERN_OK;
}

qn_status qn_lower_control(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    switch (node->op) {
    case QN_OP_IF: return lower_if(l, node);
    case QN_OP_WHILE: return lower_while(l, node);
    case QN_OP_SCAN: return lower_scan(l, node);
    default: QN_UNREACHABLE("lower: %s is no control op", qn_ops[node->op].name);
    }
}
