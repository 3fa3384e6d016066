/* The checks that hold for every program: see qn_program_verify. */
#include <string.h>

#include "ir/program_check.h"
#include "ir/text_ops.h"

typedef struct loop_state {
    const qn_step *step; /* NULL: no step has this loop's number */
    bool open;           /* its test or body is being looked at */
} loop_state;

typedef struct verifier {
    qn_program_check c;
    const qn_program *p;
    loop_state *loops;
    int n_steps;
} verifier;

qn_status qn_program_wrong(const qn_program_check *c, const qn_loc *loc, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(c->diags->arena, format, args);
    va_end(args);
    if (loc && loc->file)
        return qn_error(c->diags, QUERN_ERROR_MODEL, loc, "%s", text);
    return qn_error(c->diags, QUERN_ERROR_INTERNAL, NULL, "program %s: %s", c->p->name, text);
}

static const char *dim_text(const verifier *v, qn_dim d)
{
    return qn_dim_print(d, v->c.arena);
}

/* ---- buffers ---- */

static bool knows_before_entry(const qn_program *p, qn_dim d)
{
    bool known = d->kind != QN_DIM_SYMBOL || d->symbol < p->n_entry_symbols;
    for (int i = 0; d->kind != QN_DIM_SYMBOL && i < d->n; i++)
        known &= knows_before_entry(p, d->operands[i]);
    return known;
}

#define WRONG(...) return qn_program_wrong(&v->c, loc, __VA_ARGS__)

static qn_status verify_arena(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    const qn_loc *loc = &b->loc;
    if (!b->offset)
        return QUERN_OK;
    const qn_dim bytes = qn_program_place_bytes(p, i);
    if (!knows_before_entry(p, b->offset))
        WRONG("%%%d begins at %s, which a step binds", i, dim_text(v, b->offset));
    if (!qn_dim_divisible(b->offset, QN_ARENA_ALIGNMENT))
        WRONG("%%%d begins at %s, which is no multiple of %d", i, dim_text(v, b->offset), QN_ARENA_ALIGNMENT);
    if (b->first < 0 || b->last < b->first || (v->n_steps > 0 && b->last >= v->n_steps))
        WRONG("%%%d is live from step %d to %d of %d", i, b->first, b->last, v->n_steps);
    if (b->offset->min < 0 || !qn_dim_at_most(p->dims, qn_dim_add(p->dims, b->offset, bytes), p->arena_bytes))
        WRONG("%%%d has %s bytes from %s on: more than the %s of the workspace", i, dim_text(v, bytes),
              dim_text(v, b->offset), dim_text(v, p->arena_bytes));
    return QUERN_OK;
}

static qn_status verify_weights(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    const qn_loc *loc = &b->loc;
    const qn_dim bytes = qn_program_buffer_bytes(p, i);
    if (!qn_dim_is_const(bytes))
        WRONG("%%%d is a constant of %s bytes", i, dim_text(v, bytes));
    if (b->tensor && (b->tensor->type.dtype != b->dtype || (uint64_t)bytes->value != b->tensor->bytes))
        WRONG("%%%d has %s bytes of %s; its contents have %zu of %s", i, dim_text(v, bytes),
              qn_dtype_name(b->dtype), b->tensor->bytes, qn_dtype_name(b->tensor->type.dtype));
    if (b->offset && (!qn_dim_is_const(b->offset) || b->offset->value < 0 ||
                      bytes->value > p->weights_bytes || b->offset->value > p->weights_bytes - bytes->value))
        WRONG("%%%d has %s bytes from %s on: more than the %lld of the weights", i, dim_text(v, bytes),
              dim_text(v, b->offset), (long long)p->weights_bytes);
    return QUERN_OK;
}

/* Does a step check that two buffers of `bytes` an element have as many? */
static bool is_checked(const verifier *v, const qn_steps *steps, qn_dim x, qn_dim y, int64_t bytes)
{
    qn_dims *dims = v->p->dims;
    const qn_dim each = qn_dim_const(dims, bytes);
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        if (s->kind == QN_STEP_CHECK && s->n_params == 2) {
            const qn_dim a = qn_dim_mul(dims, s->params[0], each), b = qn_dim_mul(dims, s->params[1], each);
            if ((a == x && b == y) || (a == y && b == x))
                return true;
        }
        if (is_checked(v, &s->body, x, y, bytes) || is_checked(v, &s->other, x, y, bytes))
            return true;
    }
    return false;
}

/* A view stays inside its base whichever iteration its loop is in. */
static qn_status verify_view(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    const qn_loc *loc = &b->loc;
    qn_dims *dims = p->dims;
    qn_dim end = qn_program_buffer_bytes(p, i);
    if (b->offset) {
        if (b->offset->min < 0)
            WRONG("%%%d begins %s bytes behind the start of %%%d", i, dim_text(v, b->offset), b->base);
        end = qn_dim_add(dims, end, b->offset);
    }
    if (b->loop >= 0) {
        if (b->loop >= p->n_loops || !v->loops[b->loop].step)
            WRONG("%%%d moves with loop %d, which there is not", i, b->loop);
        if (!b->stride || b->stride->min < 0)
            WRONG("%%%d moves backwards", i);
        const qn_dim count = v->loops[b->loop].step->count;
        if (!count)
            WRONG("%%%d moves with loop %d, which has no count", i, b->loop);
        end = qn_dim_add(dims, end,
                         qn_dim_mul(dims, b->stride, qn_dim_sub(dims, count, qn_dim_const(dims, 1))));
    }
    const qn_dim has = qn_program_buffer_bytes(p, b->base);
    if (!qn_dim_at_most(dims, end, has) &&
        !is_checked(v, &p->steps, end, has, (int64_t)qn_dtype_bytes(b->dtype)))
        WRONG("%%%d reaches to byte %s of %%%d, which has %s", i, dim_text(v, end), b->base,
              dim_text(v, has));
    return QUERN_OK;
}

/* A pointer variable is set at the entry, where no loop runs. */
static qn_status verify_slot(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    const qn_loc *loc = &b->loc;
    if (p->buffers[b->base].dtype != b->dtype || p->buffers[b->base].elements != b->elements)
        WRONG("%%%d points to %%%d, which is something else", i, b->base);
    for (int base = b->base; p->buffers[base].place == QN_PLACE_VIEW; base = p->buffers[base].base)
        if (p->buffers[base].loop >= 0)
            WRONG("%%%d points to %%%d, which moves with a loop", i, base);
    return QUERN_OK;
}

static qn_status verify_buffer(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    const qn_loc *loc = &b->loc;
    if (b->elements->max < 0)
        WRONG("%%%d has %s elements", i, dim_text(v, b->elements));
    switch (b->place) {
    case QN_PLACE_ARENA: return verify_arena(v, i);
    case QN_PLACE_WEIGHTS: return verify_weights(v, i);
    case QN_PLACE_IO:
        if (b->io < 0 || b->io >= p->n_io)
            WRONG("%%%d is io %d of %d", i, b->io, p->n_io);
        if (p->io[b->io].type.dtype != b->dtype ||
            qn_type_elements_dim(p->dims, &p->io[b->io].type) != b->elements)
            WRONG("%%%d is %s elements of %s; its io is %s", i, dim_text(v, b->elements),
                  qn_dtype_name(b->dtype), qn_type_print(&p->io[b->io].type, v->c.arena));
        return QUERN_OK;
    case QN_PLACE_VIEW:
    case QN_PLACE_SLOT:
        if (b->base < 0 || b->base >= i)
            WRONG("%%%d stands on %%%d, which does not come before it", i, b->base);
        return b->place == QN_PLACE_VIEW ? verify_view(v, i) : verify_slot(v, i);
    }
    QN_UNREACHABLE("verify: buffer place %d", (int)b->place);
}

/* Contents of exactly that type; their dimensions may be of another table. */
static bool has_type(const qn_tensor *contents, const qn_type *type)
{
    const qn_type *is = &contents->type;
    bool same = is->dtype == type->dtype && is->rank == type->rank;
    for (int i = 0; same && i < type->rank; i++)
        same = qn_dim_is(type->dims[i], is->dims[i]->value);
    return same;
}

static qn_status verify_io(const verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pio *io = &p->io[i];
    if (io->alias >= i)
        return qn_program_wrong(&v->c, NULL, "io %d is an alias of io %d, which does not come before it", i,
                                io->alias);
    if (io->initial && (!has_type(io->initial, &io->type) || io->role != QUERN_STATE))
        return qn_program_wrong(&v->c, NULL, "io %d cannot have initial contents of %s", i,
                                qn_type_print(&io->initial->type, v->c.arena));
    return QUERN_OK;
}

/* ---- steps ---- */

/* Loops by their numbers, each there once. */
static qn_status find_loops(verifier *v, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        const qn_loc *loc = &step->loc;
        v->n_steps = step->number >= v->n_steps ? step->number + 1 : v->n_steps;
        if (step->kind == QN_STEP_LOOP) {
            if (step->loop < 0 || step->loop >= v->p->n_loops || v->loops[step->loop].step)
                WRONG("there is a loop %d already", step->loop);
            if (!step->count && step->condition < 0)
                WRONG("loop %d never ends", step->loop);
            v->loops[step->loop].step = step;
        }
        QN_TRY(find_loops(v, &step->test));
        QN_TRY(find_loops(v, &step->body));
        QN_TRY(find_loops(v, &step->other));
    }
    return QUERN_OK;
}

/* The buffer exists, and every loop it moves with runs here. */
static qn_status verify_use(const verifier *v, const qn_step *step, int buffer)
{
    const qn_program *p = v->p;
    const qn_loc *loc = &step->loc;
    if (buffer < 0 || buffer >= p->n_buffers)
        WRONG("step %d uses %%%d, which there is not", step->number, buffer);
    for (int at = buffer;; at = p->buffers[at].base) {
        const qn_pbuffer *b = &p->buffers[at];
        if (b->place == QN_PLACE_VIEW && b->loop >= 0 && !v->loops[b->loop].open)
            WRONG("step %d uses %%%d outside of loop %d", step->number, buffer, b->loop);
        if (b->place == QN_PLACE_ARENA && b->offset && (step->number < b->first || step->number > b->last))
            WRONG("step %d uses %%%d, which is live from step %d to %d", step->number, at, b->first, b->last);
        if (b->place != QN_PLACE_VIEW && b->place != QN_PLACE_SLOT)
            return QUERN_OK;
    }
}

static qn_status verify_call(const verifier *v, const qn_step *step)
{
    const qn_program *p = v->p;
    const qn_loc *loc = &step->loc;
    if (step->kernel < 0 || step->kernel >= p->n_kernels)
        WRONG("step %d calls kernel %d of %d", step->number, step->kernel, p->n_kernels);
    const qn_kernel *k = p->kernels[step->kernel];
    if (step->n_buffers != k->n_buffers || step->n_params != k->n_params)
        WRONG("step %d gives kernel %s %d buffers and %d parameters; it takes %d and %d", step->number,
              k->name, step->n_buffers, step->n_params, k->n_buffers, k->n_params);
    if (!step->tasks || step->tasks->max < 0)
        WRONG("step %d has no number of tasks", step->number);
    for (int i = 0; i < k->n_buffers; i++) {
        const qn_pbuffer *b = &p->buffers[step->buffers[i]];
        if (qn_dtype_carrier(b->dtype) != k->buffers[i]->dtype)
            WRONG("step %d gives kernel %s %s as buffer %d; it takes %s", step->number, k->name,
                  qn_dtype_name(b->dtype), i, qn_dtype_name(k->buffers[i]->dtype));
        if (k->buffers[i]->written &&
            p->buffers[qn_program_root(p, step->buffers[i])].place == QN_PLACE_WEIGHTS)
            WRONG("step %d lets kernel %s write into the weights", step->number, k->name);
    }
    for (int i = 0; i < k->n_params; i++) {
        const qn_dim d = step->params[i];
        if (d->max < k->param_min[i] || d->min > k->param_max[i] ||
            (qn_dim_is_const(d) && d->value % k->param_multiple[i]))
            WRONG("step %d gives kernel %s %s as %s; it takes multiples of %lld from %lld to %lld",
                  step->number, k->name, dim_text(v, d), k->param_names[i], (long long)k->param_multiple[i],
                  (long long)k->param_min[i], (long long)k->param_max[i]);
    }
    return QUERN_OK;
}

/* Is the buffer surely too small for the product of the extents? */
static bool too_small(const verifier *v, int buffer, qn_dim a, qn_dim b, qn_dim c)
{
    qn_dims *dims = v->p->dims;
    const qn_dim needed = qn_dim_mul(dims, a, qn_dim_mul(dims, b, c)), has = v->p->buffers[buffer].elements;
    return qn_dim_at_most(dims, qn_dim_add(dims, has, qn_dim_const(dims, 1)), needed);
}

static qn_status verify_library(const verifier *v, const qn_step *step)
{
    const qn_program *p = v->p;
    const qn_loc *loc = &step->loc;
    const qn_library_info *library = &qn_libraries[step->library];
    const qn_dim *params = step->params;
    if (step->n_buffers != 3 || step->n_params != QN_GEMM_PARAMS)
        WRONG("step %d gives %s %d buffers and %d parameters; it takes 3 and %d", step->number, library->name,
              step->n_buffers, step->n_params, QN_GEMM_PARAMS);
    for (int i = 0; i < 3; i++)
        if (p->buffers[step->buffers[i]].dtype != library->dtype)
            WRONG("step %d gives %s %s; it takes %s", step->number, library->name,
                  qn_dtype_name(p->buffers[step->buffers[i]].dtype), qn_dtype_name(library->dtype));
    if (p->buffers[qn_program_root(p, step->buffers[2])].place == QN_PLACE_WEIGHTS)
        WRONG("step %d lets %s write into the weights", step->number, library->name);
    for (int i = QN_GEMM_X_TRANSPOSED; i <= QN_GEMM_Y_TRANSPOSED; i++)
        if (!qn_dim_is(params[i], 0) && !qn_dim_is(params[i], 1))
            WRONG("step %d: parameter %d of %s is 0 or 1", step->number, i, library->name);
    for (int i = QN_GEMM_ROWS; i <= QN_GEMM_COLUMNS; i++)
        if (!qn_dim_is_const(params[i]) || params[i]->value < 1)
            WRONG("step %d: parameter %d of %s is a number from 1 on", step->number, i, library->name);
    if (step->tasks != qn_gemm_tasks(p->dims, params))
        WRONG("step %d: there are %s tasks", step->number, dim_text(v, qn_gemm_tasks(p->dims, params)));
    const qn_dim batch = params[QN_GEMM_BATCH], m = params[QN_GEMM_M], n = params[QN_GEMM_N],
                 k = params[QN_GEMM_K];
    if (too_small(v, step->buffers[0], batch, m, k) || too_small(v, step->buffers[1], batch, k, n) ||
        too_small(v, step->buffers[2], batch, m, n))
        WRONG("step %d: the buffers are too small for %s", step->number, library->name);
    return QUERN_OK;
}

/* Two buffers of one dtype and size; a copy may be between extents that a check compares when it runs. */
static qn_status verify_pair(const verifier *v, const qn_step *step)
{
    const qn_loc *loc = &step->loc;
    if (step->n_buffers != 2)
        WRONG("step %d has %d buffers; it takes 2", step->number, step->n_buffers);
    const qn_pbuffer *a = &v->p->buffers[step->buffers[0]], *b = &v->p->buffers[step->buffers[1]];
    const bool same =
        a->elements == b->elements ||
        (step->kind == QN_STEP_COPY && qn_dim_can_be_equal(v->p->dims, a->elements, b->elements));
    if (a->dtype != b->dtype || !same)
        WRONG("step %d: %%%d and %%%d are not alike", step->number, step->buffers[0], step->buffers[1]);
    if (step->kind == QN_STEP_SWAP && (a->place != QN_PLACE_SLOT || b->place != QN_PLACE_SLOT))
        WRONG("step %d exchanges what are no slots", step->number);
    if (step->kind == QN_STEP_COPY &&
        v->p->buffers[qn_program_root(v->p, step->buffers[1])].place == QN_PLACE_WEIGHTS)
        WRONG("step %d copies into the weights", step->number);
    return QUERN_OK;
}

static qn_status verify_condition(const verifier *v, const qn_step *step)
{
    const qn_loc *loc = &step->loc;
    QN_TRY(verify_use(v, step, step->condition));
    const qn_pbuffer *b = &v->p->buffers[step->condition];
    if (b->dtype != QUERN_BOOL || !qn_dim_is(b->elements, 1))
        WRONG("step %d: the condition %%%d is no bool scalar", step->number, step->condition);
    return QUERN_OK;
}

static qn_status verify_bind(const verifier *v, const qn_step *step)
{
    const qn_loc *loc = &step->loc;
    if (step->n_buffers != 1 || v->p->buffers[step->buffers[0]].dtype != QUERN_I64 ||
        v->p->buffers[step->buffers[0]].elements->min < 1)
        WRONG("step %d binds a dimension to what is no i64", step->number);
    if (!step->count || step->count->kind != QN_DIM_SYMBOL || step->count->symbol < v->p->n_entry_symbols)
        WRONG("step %d binds %s, which is no bound dimension", step->number,
              step->count ? dim_text(v, step->count) : "nothing");
    return QUERN_OK;
}

static qn_status verify_check(const verifier *v, const qn_step *step)
{
    const qn_loc *loc = &step->loc;
    if (step->n_params != 2 || step->n_buffers != 0)
        WRONG("step %d checks %d dimensions; it takes 2", step->number, step->n_params);
    if (step->node < 0 || step->node >= v->p->n_nodes)
        WRONG("step %d: there is no node %d", step->number, step->node);
    return QUERN_OK;
}

/* As many elements as each rank gives and gets. */
static qn_status verify_collective(const verifier *v, const qn_step *step)
{
    const qn_loc *loc = &step->loc;
    qn_dims *dims = v->p->dims;
    const char *name = qn_ops[step->collective].name;
    const int n = step->collective == QN_OP_RANK ? 1 : 2;
    if (step->n_buffers != n)
        WRONG("step %d gives %s %d buffers; it takes %d", step->number, name, step->n_buffers, n);
    if (step->starts && step->collective != QN_OP_ALL_REDUCE)
        WRONG("step %d starts %s: only all_reduce is started", step->number, name);
    const qn_pbuffer *in = &v->p->buffers[step->buffers[0]], *out = &v->p->buffers[step->buffers[n - 1]];
    if (v->p->buffers[qn_program_root(v->p, step->buffers[n - 1])].place == QN_PLACE_WEIGHTS)
        WRONG("step %d lets %s write into the weights", step->number, name);
    if (n == 1) {
        if (out->dtype != QUERN_I64 || !qn_dim_is(out->elements, 1))
            WRONG("step %d writes the rank into what is no i64 scalar", step->number);
        return QUERN_OK;
    }
    qn_dim gives = in->elements, gets = out->elements;
    const qn_dim ranks = qn_dim_const(dims, step->ranks);
    if (step->collective == QN_OP_ALL_GATHER)
        gives = qn_dim_mul(dims, gives, ranks);
    if (step->collective == QN_OP_REDUCE_SCATTER)
        gets = qn_dim_mul(dims, gets, ranks);
    if (in->dtype != out->dtype || gives != gets)
        WRONG("step %d: %%%d and %%%d don't fit %s", step->number, step->buffers[0], step->buffers[1], name);
    if (step->node < 0 || step->node >= v->p->n_nodes)
        WRONG("step %d: there is no node %d", step->number, step->node);
    return QUERN_OK;
}

/* What buffer i of a step on text has to be; QUERN_INVALID_DTYPE: there is nothing that it may be. */
static qn_dtype text_dtype(const qn_step *step, int i)
{
    const bool written = i == step->n_buffers - 1;
    const qn_dim last = step->params[step->n_params - 1];
    if (step->text == QN_OP_TEXT_MATCH && i > 0)
        return written ? QUERN_BOOL : QUERN_U16;
    if (written ? step->text != QN_OP_TEXT_PARSE : step->text != QN_OP_TEXT_PRINT)
        return QUERN_I64;
    return qn_dim_is_const(last) && qn_text_reads((qn_dtype)last->value) ? (qn_dtype)last->value
                                                                         : QUERN_INVALID_DTYPE;
}

static qn_status verify_text(const verifier *v, const qn_step *step)
{
    static const int n_params[] = { [QUERN_TEXT_CONCAT] = 1, [QUERN_TEXT_CASE] = 2,  [QUERN_TEXT_COUNT] = 3,
                                    [QUERN_TEXT_SPLIT] = 4,  [QUERN_TEXT_MATCH] = 2, [QUERN_TEXT_PARSE] = 2,
                                    [QUERN_TEXT_PRINT] = 2 };
    const qn_loc *loc = &step->loc;
    const char *name = qn_ops[step->text].name;
    const int last = step->n_buffers - 1, wanted = n_params[qn_text_what(step->text)];
    if (step->n_buffers != qn_text_buffers(step->text) || step->n_params != wanted)
        WRONG("step %d gives %s %d buffers and %d parameters; it takes %d and %d", step->number, name,
              step->n_buffers, step->n_params, qn_text_buffers(step->text), wanted);
    const qn_dim n = step->params[0], more = step->params[wanted - 1], one = qn_dim_const(v->p->dims, 1);
    for (int i = 0; i <= last; i++) {
        const qn_dtype is = v->p->buffers[step->buffers[i]].dtype;
        const bool table = step->text == QN_OP_TEXT_MATCH && i == 1;
        const bool pieces = step->text == QN_OP_TEXT_SPLIT && i == last;
        if (is != text_dtype(step, i))
            WRONG("step %d gives %s %s as buffer %d", step->number, name, qn_dtype_name(is), i);
        if (too_small(v, step->buffers[i], table ? more : n, pieces ? more : one,
                      table ? qn_dim_const(v->p->dims, QN_TEXT_COLUMNS) : one))
            WRONG("step %d: %%%d is too small for %s", step->number, step->buffers[i], name);
    }
    if (v->p->buffers[qn_program_root(v->p, step->buffers[last])].place == QN_PLACE_WEIGHTS)
        WRONG("step %d lets %s write into the weights", step->number, name);
    if (step->node < 0 || step->node >= v->p->n_nodes)
        WRONG("step %d: there is no node %d", step->number, step->node);
    return QUERN_OK;
}

static qn_status verify_steps(verifier *v, const qn_steps *steps);

static qn_status verify_inside(verifier *v, const qn_step *step)
{
    QN_TRY(verify_steps(v, &step->test));
    if (step->condition >= 0)
        QN_TRY(verify_condition(v, step));
    QN_TRY(verify_steps(v, &step->body));
    return verify_steps(v, &step->other);
}

static qn_status verify_step(verifier *v, const qn_step *step)
{
    for (int i = 0; i < step->n_buffers; i++)
        QN_TRY(verify_use(v, step, step->buffers[i]));
    switch (step->kind) {
    case QN_STEP_KERNEL: return verify_call(v, step);
    case QN_STEP_LIBRARY: return verify_library(v, step);
    case QN_STEP_COPY:
    case QN_STEP_SWAP: return verify_pair(v, step);
    case QN_STEP_BIND: return verify_bind(v, step);
    case QN_STEP_CHECK: return verify_check(v, step);
    case QN_STEP_COLLECTIVE: return verify_collective(v, step);
    case QN_STEP_TEXT: return verify_text(v, step);
    case QN_STEP_WAIT: return QUERN_OK;
    case QN_STEP_IF:
        if (step->condition < 0)
            return qn_program_wrong(&v->c, &step->loc, "step %d has no condition", step->number);
        return verify_inside(v, step);
    case QN_STEP_LOOP: {
        v->loops[step->loop].open = true;
        const qn_status status = verify_inside(v, step);
        v->loops[step->loop].open = false;
        return status;
    }
    }
    QN_UNREACHABLE("verify: step kind %d", (int)step->kind);
}

/* Roots that are the same memory, or may be. */
static bool overlap(const qn_program *p, int a, int b)
{
    if (a == b || p->buffers[a].place != QN_PLACE_IO || p->buffers[b].place != QN_PLACE_IO)
        return a == b;
    return qn_program_io_memory(p, p->buffers[a].io) == qn_program_io_memory(p, p->buffers[b].io);
}

/* Does it write the buffer, or use it at all? */
static bool step_uses(const qn_program *p, const qn_step *step, int root, bool reads)
{
    for (int i = 0; i < step->n_buffers; i++)
        if (overlap(p, qn_program_root(p, step->buffers[i]), root) && (reads || qn_step_writes(p, step, i)))
            return true;
    if (reads && step->condition >= 0 && overlap(p, qn_program_root(p, step->condition), root))
        return true;
    const qn_steps *inside[] = { &step->test, &step->body, &step->other };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < inside[k]->n; i++)
            if (step_uses(p, &inside[k]->items[i], root, reads))
                return true;
    return false;
}

/* A wait in there would be for what was started outside. */
static bool starts_inside(const qn_step *step)
{
    const qn_steps *inside[] = { &step->test, &step->body, &step->other };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < inside[k]->n; i++)
            if (inside[k]->items[i].starts || starts_inside(&inside[k]->items[i]))
                return true;
    return false;
}

/* Each collective that starts has its wait, in the same order; between them its buffers are the communicator's. */
static qn_status verify_started(const verifier *v, const qn_steps *steps)
{
    size_t oldest = 0; /* that nothing has waited for */
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        const qn_loc *loc = &step->loc;
        while (oldest < i && !steps->items[oldest].starts)
            oldest++;
        if (step->kind == QN_STEP_WAIT) {
            const qn_step *start = &steps->items[oldest];
            if (oldest == i || start->buffers[0] != step->buffers[0] || start->buffers[1] != step->buffers[1])
                WRONG("step %d does not wait for the oldest collective that was started", step->number);
            oldest++;
            continue;
        }
        for (size_t k = oldest; k < i; k++) {
            const qn_step *start = &steps->items[k];
            if (start->starts && starts_inside(step))
                WRONG("step %d starts a collective inside, before what step %d has started was waited for",
                      step->number, start->number);
            if (start->starts && (step_uses(v->p, step, qn_program_root(v->p, start->buffers[0]), false) ||
                                  step_uses(v->p, step, qn_program_root(v->p, start->buffers[1]), true)))
                WRONG("step %d uses what step %d has given to a collective, before it has waited",
                      step->number, start->number);
        }
    }
    while (oldest < steps->n && !steps->items[oldest].starts)
        oldest++;
    if (oldest < steps->n)
        return qn_program_wrong(&v->c, &steps->items[oldest].loc, "nothing waits for step %d",
                                steps->items[oldest].number);
    return QUERN_OK;
}

static qn_status verify_steps(verifier *v, const qn_steps *steps)
{
    QN_TRY(verify_started(v, steps));
    for (size_t i = 0; i < steps->n; i++)
        QN_TRY(verify_step(v, &steps->items[i]));
    return QUERN_OK;
}

/* ---- the program ---- */

static qn_status verify_limits(const verifier *v)
{
    const qn_program *p = v->p;
    for (int i = p->n_entry_symbols; i < qn_dims_symbol_count(p->dims); i++)
        if (!p->limits || !p->limits[i - p->n_entry_symbols] ||
            !knows_before_entry(p, p->limits[i - p->n_entry_symbols]))
            return qn_program_wrong(&v->c, NULL, "the limit of the dimension %s is itself unknown",
                                    qn_dims_symbol_at(p->dims, i)->name);
    if (!knows_before_entry(p, p->arena_bytes))
        return qn_program_wrong(&v->c, NULL, "the size of the workspace, %s, is itself unknown",
                                dim_text(v, p->arena_bytes));
    return QUERN_OK;
}

/* A caller brings memory for what a buffer has at the largest values of the symbols that steps bind. */
static qn_status verify_largest(const verifier *v)
{
    int io, axis;
    const qn_dim dim = qn_program_falling(v->p, &io, &axis);
    return dim ? qn_program_wrong(&v->c, NULL, "dimension %d of io %d, %s, is not largest at the limits",
                                  axis, io, dim_text(v, dim))
               : QUERN_OK;
}

static qn_status verify(verifier *v)
{
    const qn_program *p = v->p;
    for (int i = 0; i < p->n_kernels && p->kernel_texts; i++)
        for (int j = 0; j < i; j++)
            if (strcmp(p->kernel_texts[i], p->kernel_texts[j]) == 0)
                return qn_program_wrong(&v->c, NULL, "kernels %d and %d are the same", j, i);
    QN_TRY(verify_limits(v));
    QN_TRY(verify_largest(v));
    QN_TRY(find_loops(v, &p->steps));
    for (int i = 0; i < p->n_io; i++)
        QN_TRY(verify_io(v, i));
    for (int i = 0; i < p->n_buffers; i++)
        QN_TRY(verify_buffer(v, i));
    QN_TRY(verify_steps(v, &p->steps));
    return qn_program_check_contents(&v->c);
}

qn_status qn_program_verify(const qn_program *p, qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    verifier v = { .c = { p, diags, arena }, .p = p, .loops = QN_NEW_ARRAY(arena, loop_state, p->n_loops) };
    const qn_status status = verify(&v);
    qn_arena_free(arena);
    return status;
}
