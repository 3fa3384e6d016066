/* Programs: construction, numbering, what buffers are part of. */
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
