/* Models compiled into this process. */
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <string.h>

#include "driver/api.h"
#include "driver/blas.h"
#include "driver/compile.h"
#include "ir/clock.h"

typedef struct jit_model {
    const qn_backend *backend;
    void *image;
    qn_memory weights;
    qn_arena *arena; /* of the notes */
    qn_model_notes notes;
} jit_model;

static void release(quern_model *model)
{
    jit_model *m = model->owner;
    if (m->image)
        m->backend->unload(m->image);
    qn_memory_free(&m->weights);
    qn_arena_free(m->arena);
    free(m);
    free(model);
}

const qn_model_notes *qn_model_notes_of(const quern_model *model)
{
    return model->release == release ? &((const jit_model *)model->owner)->notes : NULL;
}

qn_kernel_cost qn_model_cost_of(const qn_model_notes *notes, int entry, const char *name)
{
    qn_kernel_cost mean = { .entry = entry, .name = name };
    for (size_t i = 0; notes && i < notes->n_costs; i++) {
        const qn_kernel_cost *cost = &notes->costs[i];
        if (cost->entry != entry || strcmp(cost->name, name) != 0)
            continue;
        mean.times += cost->times;
        mean.flops += (cost->flops - mean.flops) * cost->times / mean.times;
        mean.bytes += (cost->bytes - mean.bytes) * cost->times / mean.times;
    }
    return mean;
}

/* Bytes of the buffers that a call touches: what it has to move at least. 0 where a size depends on symbols. */
static double bytes_of(const qn_program *program, const qn_step *step)
{
    double bytes = 0;
    for (int i = 0; i < step->n_buffers; i++) {
        qn_dim size = qn_program_buffer_bytes(program, step->buffers[i]);
        if (!qn_dim_is_const(size))
            return 0;
        bytes += (double)size->value;
    }
    return bytes;
}

/* 0 where a size depends on symbols. */
static double product_flops(const qn_step *step)
{
    double flops = 2;
    for (int i = QN_GEMM_BATCH; i <= QN_GEMM_K; i++)
        flops *= qn_dim_is_const(step->params[i]) ? (double)step->params[i]->value : 0;
    return flops;
}

static void note_cost(jit_model *m, qn_kernel_cost cost)
{
    qn_model_notes *notes = &m->notes;
    if (notes->n_costs == notes->cost_capacity)
        notes->costs =
            qn_vec_grow(m->arena, notes->costs, notes->n_costs, &notes->cost_capacity, sizeof *notes->costs);
    cost.name = qn_arena_strdup(m->arena, cost.name);
    notes->costs[notes->n_costs++] = cost;
}

static void note_costs(jit_model *m, int entry, const qn_program *program, const qn_steps *steps,
                       double times)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *step = &steps->items[i];
        if (step->kind == QN_STEP_KERNEL) {
            const qn_kernel *kernel = program->kernels[step->kernel];
            const double bytes = bytes_of(program, step);
            note_cost(m,
                      (qn_kernel_cost){ .entry = entry,
                                        .name = step->name ? step->name : kernel->name,
                                        /* a template's numbers are guesses where extents depend on symbols */
                                        .flops = bytes > 0 ? step->flops : 0,
                                        .bytes = bytes > 0 && kernel->bytes > 0 ? kernel->bytes : bytes,
                                        .times = times });
        } else if (step->kind == QN_STEP_LIBRARY) {
            note_cost(m, (qn_kernel_cost){ .entry = entry,
                                           .name = step->name ? step->name : qn_libraries[step->library].name,
                                           .flops = product_flops(step),
                                           .bytes = bytes_of(program, step),
                                           .times = times });
        }
        const bool counted = step->kind == QN_STEP_LOOP && step->count && qn_dim_is_const(step->count) &&
                             step->count->value > 0;
        const double inside = counted ? times * (double)step->count->value : times;
        note_costs(m, entry, program, &step->body, inside);
        note_costs(m, entry, program, &step->other, inside);
        note_costs(m, entry, program, &step->test, inside);
    }
}

/* Entries and tables, and all of it made callable. */
static qn_status load(quern_model *model, jit_model *m, const qn_compiled *c, const qn_settings *s,
                      qn_diags *diags)
{
    double start = qn_seconds();
    int n = c->n_kernels + 1;
    qn_code *objects = QN_NEW_ARRAY(c->arena, qn_code, n);
    const char **names = QN_NEW_ARRAY(c->arena, const char *, n);
    for (int i = 0; i < c->n_kernels; i++) {
        objects[i] = c->kernels[i];
        names[i] = c->kernel_names[i];
    }
    names[n - 1] = "model";
    const qn_entries entries = qn_compiled_entries(c, QN_JIT_PREFIX, true);
    QN_TRY(qn_compile_entries(c, &entries, s, &objects[n - 1], diags));
    QN_TRY(s->backend->load(n, objects, names, &m->image, diags));
    const void **weights = s->backend->symbol(m->image, "model_weights_base");
    quern_query_fn query = NULL;
    *(void **)&query = s->backend->symbol(m->image, "model_query");
    if (!weights || !query)
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "the compiled model has no tables");
    *weights = m->weights.data;
    qn_library_fn **libraries = s->backend->symbol(m->image, "model_libraries");
    if (libraries)
        memcpy(libraries, qn_blas_functions, sizeof qn_blas_functions);
    model->info = query(QUERN_ABI_VERSION);
    m->notes.times.entries = qn_seconds() - start;
    return QUERN_OK;
}

/* What generating code left over, before there are large weights as well. */
enum { LARGE = 1 << 25 };
static void give_back_what_is_free(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

static qn_status place_weights(jit_model *m, qn_module *module, const qn_settings *s, qn_compiled *c,
                               qn_diags *diags)
{
    if (c->times.n_cached < c->times.n_kernels && c->weights.bytes >= LARGE)
        give_back_what_is_free();
    for (;;) {
        if (!qn_memory_reserve(&m->weights, (size_t)c->weights.bytes))
            return qn_error(diags, QUERN_ERROR_MEMORY, NULL, "no memory for %lld bytes of weights",
                            (long long)c->weights.bytes);
        if (qn_weights_move(&c->weights, m->weights.data, module->arena))
            return QUERN_OK;
        qn_memory_free(&m->weights);
        QN_TRY(qn_compile_again(module, s, c, diags));
    }
}

static qn_status make(quern_model *model, jit_model *m, qn_module *module, const qn_settings *s,
                      qn_arena *arena, qn_diags *diags)
{
    qn_compiled compiled;
    QN_TRY(qn_compile_module(module, s, QN_EMIT_OBJECT, arena, &compiled, diags));
    QN_TRY(place_weights(m, module, s, &compiled, diags));
    m->notes.times = compiled.times;
    m->notes.flops =
        qn_arena_copy(m->arena, compiled.flops, (size_t)compiled.n_programs * sizeof *compiled.flops);
    m->notes.plans =
        qn_arena_copy(m->arena, compiled.plans, (size_t)compiled.n_programs * sizeof *compiled.plans);
    for (int i = 0; i < compiled.n_programs; i++)
        note_costs(m, i, compiled.programs[i], &compiled.programs[i]->steps, 1);
    return load(model, m, &compiled, s, diags);
}

qn_status qn_model_jit(qn_module *module, const qn_settings *settings, quern_model **out, qn_diags *diags)
{
    quern_model *model = calloc(1, sizeof *model);
    jit_model *m = calloc(1, sizeof *m);
    QN_ASSERT(model && m, "out of memory");
    m->backend = settings->backend;
    m->arena = qn_arena_new();
    *model = (quern_model){ .threads = settings->threads, .release = release, .owner = m };
    qn_arena *arena = qn_arena_new();
    qn_status status = make(model, m, module, settings, arena, diags);
    qn_arena_free(arena);
    if (status)
        release(model);
    else
        *out = model;
    return status;
}
