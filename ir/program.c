/* Programs: construction, numbering, what buffers are part of. */
#include "ir/program.h"

#include <string.h>

const qn_library_info qn_libraries[QN_N_LIBRARIES] = {
    [QN_LIBRARY_SGEMM] = { "sgemm", QUERN_F32 },
    [QN_LIBRARY_DGEMM] = { "dgemm", QUERN_F64 },
};

qn_dim qn_gemm_tasks(qn_dims *dims, const qn_dim *params)
{
    const qn_dim rows = qn_dim_ceildiv(dims, params[QN_GEMM_M], params[QN_GEMM_ROWS]);
    const qn_dim columns = qn_dim_ceildiv(dims, params[QN_GEMM_N], params[QN_GEMM_COLUMNS]);
    return qn_dim_mul(dims, params[QN_GEMM_BATCH], qn_dim_mul(dims, rows, columns));
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

qn_gemm_block qn_gemm_block_of(const int64_t *params, int64_t task)
{
    const int64_t m = params[QN_GEMM_M], n = params[QN_GEMM_N];
    const int64_t rows = params[QN_GEMM_ROWS], columns = params[QN_GEMM_COLUMNS];
    const int64_t across = (n + columns - 1) / columns, down = (m + rows - 1) / rows;
    const int64_t row = task / across % down * rows, column = task % across * columns;
    return (qn_gemm_block){ .batch = task / across / down,
                            .row = row,
                            .rows = least(rows, m - row),
                            .column = column,
                            .columns = least(columns, n - column) };
}

bool qn_step_reads(const qn_program *p, const qn_step *step, int i)
{
    if (step->kind == QN_STEP_KERNEL)
        return p->kernels[step->kernel]->buffers[i]->read;
    return i < step->n_buffers - 1;
}

bool qn_step_writes(const qn_program *p, const qn_step *step, int i)
{
    if (step->kind == QN_STEP_KERNEL)
        return p->kernels[step->kernel]->buffers[i]->written;
    return (step->kind == QN_STEP_COPY || step->kind == QN_STEP_LIBRARY || step->kind == QN_STEP_COLLECTIVE ||
            step->kind == QN_STEP_TEXT || step->kind == QN_STEP_WAIT) &&
           i == step->n_buffers - 1;
}

bool qn_steps_have(const qn_steps *steps, qn_step_kind kind)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        if (s->kind == kind || qn_steps_have(&s->test, kind) || qn_steps_have(&s->body, kind) ||
            qn_steps_have(&s->other, kind))
            return true;
    }
    return false;
}

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

static int find_kernel(const qn_program *p, const char *text)
{
    for (int i = 0; i < p->n_kernels; i++)
        if (strcmp(p->kernel_texts[i], text) == 0)
            return i;
    return -1;
}

int qn_program_add_kernel(qn_program *p, const qn_kernel *kernel)
{
    qn_arena *scratch = qn_arena_new();
    const char *text = qn_kernel_canonical(kernel, scratch);
    int number = find_kernel(p, text);
    if (number < 0)
        number =
            qn_program_add_canonical(p, qn_kernel_clone(kernel, p->arena), qn_arena_strdup(p->arena, text));
    qn_arena_free(scratch);
    return number;
}

int qn_program_add_canonical(qn_program *p, qn_kernel *kernel, const char *text)
{
    const int known = find_kernel(p, text);
    if (known >= 0)
        return known;
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

int qn_program_io_memory(const qn_program *p, int io)
{
    while (p->io[io].alias >= 0)
        io = p->io[io].alias;
    return io;
}

qn_dim qn_program_buffer_bytes(const qn_program *p, int buffer)
{
    const qn_pbuffer *b = &p->buffers[buffer];
    return qn_dim_mul(p->dims, b->elements, qn_dim_const(p->dims, (int64_t)qn_dtype_bytes(b->dtype)));
}

qn_dim qn_program_copied_bytes(const qn_program *p, const qn_step *step)
{
    return qn_dim_min(p->dims, qn_program_buffer_bytes(p, step->buffers[0]),
                      qn_program_buffer_bytes(p, step->buffers[1]));
}

qn_dim qn_program_most(const qn_program *p, qn_dim d)
{
    const int n_entry = p->n_entry_symbols, n = qn_dims_symbol_count(p->dims);
    if (!p->limits || n == n_entry)
        return d;
    qn_dim *most = QN_NEW_ARRAY(p->arena, qn_dim, n);
    memcpy(most + n_entry, p->limits, (size_t)(n - n_entry) * sizeof *most);
    return qn_dim_most(p->dims, d, most, n);
}

qn_dim qn_program_falling(const qn_program *p, int *out_io, int *out_axis)
{
    const int n_entry = p->n_entry_symbols, n = qn_dims_symbol_count(p->dims);
    if (!p->limits || n == n_entry)
        return NULL;
    qn_dim *limits = QN_NEW_ARRAY(p->arena, qn_dim, n);
    memcpy(limits + n_entry, p->limits, (size_t)(n - n_entry) * sizeof *limits);
    for (*out_io = 0; *out_io < p->n_io; ++*out_io)
        for (*out_axis = 0; *out_axis < p->io[*out_io].type.rank; ++*out_axis) {
            const qn_dim d = p->io[*out_io].type.dims[*out_axis];
            if (!qn_dim_at_most(p->dims, qn_program_most(p, d), qn_dim_substitute(p->dims, d, limits, n)))
                return d;
        }
    return NULL;
}

qn_dim qn_program_place_bytes(const qn_program *p, int buffer)
{
    const qn_dim unit = qn_dim_const(p->dims, QN_ARENA_ALIGNMENT);
    const qn_dim most = qn_program_most(p, qn_program_buffer_bytes(p, buffer));
    const qn_dim bytes = qn_dim_mul(p->dims, qn_dim_ceildiv(p->dims, most, unit), unit);
    /* a product of extents, n * (h - 2) * (w - 2), doesn't show any more that none is negative */
    return qn_dim_not_negative(p->dims, bytes);
}

bool qn_program_through_slot(const qn_program *p, int buffer)
{
    while (p->buffers[buffer].place == QN_PLACE_VIEW)
        buffer = p->buffers[buffer].base;
    return p->buffers[buffer].place == QN_PLACE_SLOT;
}

/* Makes one ring of the rings of both buffers of each exchange. */
static void find_mates(const qn_program *p, const qn_steps *steps, int *mates)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        if (step->kind == QN_STEP_SWAP) {
            const int a = qn_program_root(p, step->buffers[0]), b = qn_program_root(p, step->buffers[1]);
            bool together = a == b;
            for (int at = mates[a]; at != a; at = mates[at])
                together |= at == b;
            if (!together) {
                const int next = mates[a];
                mates[a] = mates[b];
                mates[b] = next;
            }
        }
        find_mates(p, &step->test, mates);
        find_mates(p, &step->body, mates);
        find_mates(p, &step->other, mates);
    }
}

int *qn_program_mates(const qn_program *p, qn_arena *arena)
{
    int *mates = QN_NEW_ARRAY(arena, int, p->n_buffers);
    for (int i = 0; i < p->n_buffers; i++)
        mates[i] = i;
    find_mates(p, &p->steps, mates);
    return mates;
}
