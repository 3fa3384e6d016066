/* Programs: construction, numbering, text and the checks that hold for every program. */
#include "ir/program.h"

#include <string.h>

qn_program *qn_program_new(qn_arena *arena, qn_dims *dims, const char *name)
{
    qn_program *p = QN_NEW(arena, qn_program);
    p->arena = arena;
    p->dims = dims;
    p->name = name;
    p->arena_bytes = p->arena_lower_bound = qn_dim_const(dims, 0);
    return p;
}

int qn_program_add_buffer(qn_program *p, qn_pbuffer buffer)
{
    if (p->n_buffers == p->buffer_capacity) {
        size_t capacity = (size_t)p->buffer_capacity;
        p->buffers = qn_vec_grow(p->arena, p->buffers, (size_t)p->n_buffers, &capacity, sizeof *p->buffers);
        p->buffer_capacity = (int)capacity;
    }
    p->buffers[p->n_buffers] = buffer;
    return p->n_buffers++;
}

int qn_program_add_kernel(qn_program *p, qn_kernel *kernel)
{
    const char *text = qn_kernel_canonical(kernel, p->arena);
    for (int i = 0; i < p->n_kernels; i++) {
        if (strcmp(p->kernel_texts[i], text) == 0)
            return i;
    }
    if (p->n_kernels == p->kernel_capacity) {
        size_t capacity = (size_t)p->kernel_capacity, text_capacity = capacity;
        p->kernels = qn_vec_grow(p->arena, p->kernels, (size_t)p->n_kernels, &capacity, sizeof *p->kernels);
        p->kernel_texts = qn_vec_grow(p->arena, p->kernel_texts, (size_t)p->n_kernels, &text_capacity,
                                      sizeof *p->kernel_texts);
        p->kernel_capacity = (int)capacity;
    }
    p->kernels[p->n_kernels] = kernel;
    p->kernel_texts[p->n_kernels] = text;
    return p->n_kernels++;
}

qn_step *qn_steps_add(qn_program *p, qn_steps *steps, qn_step_kind kind)
{
    qn_step step = { .kind = kind, .condition = -1, .loop = -1 };
    qn_vec_push(p->arena, steps, step);
    return &steps->items[steps->n - 1];
}

static int number_steps(qn_steps *steps, int next)
{
    for (size_t i = 0; i < steps->n; i++) {
        qn_step *step = &steps->items[i];
        step->number = next++;
        next = number_steps(&step->test, next);
        next = number_steps(&step->body, next);
        next = number_steps(&step->other, next);
        step->last = next - 1;
    }
    return next;
}

int qn_program_number(qn_program *p)
{
    return number_steps(&p->steps, 0);
}

int qn_program_root(const qn_program *p, int buffer)
{
    while (p->buffers[buffer].place == QN_PLACE_VIEW || p->buffers[buffer].place == QN_PLACE_SLOT)
        buffer = p->buffers[buffer].base;
    return buffer;
}

qn_dim qn_program_buffer_bytes(const qn_program *p, int buffer)
{
    const qn_pbuffer *b = &p->buffers[buffer];
    return qn_dim_mul(p->dims, b->elements, qn_dim_const(p->dims, (int64_t)qn_dtype_bytes(b->dtype)));
}

/* ---- checks ---- */

typedef struct {
    const qn_program *p;
    qn_diags *diags;
} verifier;

static qn_status fail(verifier *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
static qn_status fail(verifier *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(v->diags->arena, format, args);
    va_end(args);
    return qn_error(v->diags, QUERN_ERROR_INTERNAL, NULL, "program %s: %s", v->p->name, text);
}

static qn_status verify_buffer(verifier *v, int i)
{
    const qn_program *p = v->p;
    const qn_pbuffer *b = &p->buffers[i];
    switch (b->place) {
    case QN_PLACE_IO:
        if (b->io < 0 || b->io >= p->n_io)
            return fail(v, "buffer %d is io %d of %d", i, b->io, p->n_io);
        if (p->io[b->io].type.dtype != b->dtype)
            return fail(v, "buffer %d is %s; its io is %s", i, qn_dtype_name(b->dtype),
                        qn_dtype_name(p->io[b->io].type.dtype));
        break;
    case QN_PLACE_WEIGHTS:
        if (!b->offset || !qn_dim_is_const(b->offset) ||
            b->offset->value + (int64_t)(b->tensor ? b->tensor->bytes : 0) > p->weights_bytes)
            return fail(v, "buffer %d lies outside the weights", i);
        break;
    case QN_PLACE_VIEW:
    case QN_PLACE_SLOT:
        if (b->base < 0 || b->base >= i)
            return fail(v, "buffer %d stands on buffer %d, which does not come before it", i, b->base);
        if (b->place == QN_PLACE_VIEW && b->loop >= p->n_loops)
            return fail(v, "buffer %d moves with loop %d of %d", i, b->loop, p->n_loops);
        break;
    case QN_PLACE_ARENA: break;
    }
    return QUERN_OK;
}

static qn_status verify_steps(verifier *v, const qn_steps *steps)
{
    const qn_program *p = v->p;
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        for (int j = 0; j < step->n_buffers; j++) {
            if (step->buffers[j] < 0 || step->buffers[j] >= p->n_buffers)
                return fail(v, "step %d uses buffer %d of %d", step->number, step->buffers[j], p->n_buffers);
        }
        if (step->condition >= p->n_buffers)
            return fail(v, "step %d tests buffer %d of %d", step->number, step->condition, p->n_buffers);
        if (step->kind == QN_STEP_KERNEL) {
            if (step->kernel < 0 || step->kernel >= p->n_kernels)
                return fail(v, "step %d calls kernel %d of %d", step->number, step->kernel, p->n_kernels);
            const qn_kernel *k = p->kernels[step->kernel];
            if (step->n_buffers != k->n_buffers || step->n_params != k->n_params)
                return fail(v, "step %d gives %s %d buffers and %d parameters; it takes %d and %d",
                            step->number, k->name, step->n_buffers, step->n_params, k->n_buffers,
                            k->n_params);
            for (int j = 0; j < k->n_buffers; j++) {
                const qn_pbuffer *b = &p->buffers[step->buffers[j]];
                if (b->dtype != k->buffers[j]->dtype)
                    return fail(v, "step %d gives %s %s as buffer %d; it takes %s", step->number, k->name,
                                qn_dtype_name(b->dtype), j, qn_dtype_name(k->buffers[j]->dtype));
                if (k->buffers[j]->written &&
                    p->buffers[qn_program_root(p, step->buffers[j])].place == QN_PLACE_WEIGHTS)
                    return fail(v, "step %d lets %s write into the weights", step->number, k->name);
            }
        } else if ((step->kind == QN_STEP_COPY || step->kind == QN_STEP_SWAP) && step->n_buffers != 2) {
            return fail(v, "step %d has %d buffers; it takes 2", step->number, step->n_buffers);
        } else if (step->kind == QN_STEP_SWAP && (p->buffers[step->buffers[0]].place != QN_PLACE_SLOT ||
                                                  p->buffers[step->buffers[1]].place != QN_PLACE_SLOT)) {
            return fail(v, "step %d swaps buffers that are not slots", step->number);
        }
        QN_TRY(verify_steps(v, &step->test));
        QN_TRY(verify_steps(v, &step->body));
        QN_TRY(verify_steps(v, &step->other));
    }
    return QUERN_OK;
}

qn_status qn_program_verify(const qn_program *p, qn_diags *diags)
{
    verifier v = { .p = p, .diags = diags };
    for (int i = 0; i < p->n_buffers; i++)
        QN_TRY(verify_buffer(&v, i));
    return verify_steps(&v, &p->steps);
}
