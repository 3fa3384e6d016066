/* The end of lowering: kernels as they were written become kernels as the machine runs them.
 *
 * Before: a program whose kernels are written and verified, each different one once. After: they are simplified, and for a
 * machine vectorized, with mathematics spelled out, legal types and values in registers; those that became equal are one.
 * Each is a job of its own with memory of its own, so the driver may run them on all threads; their order is that of the
 * program. */
#include "passes/lower.h"
#include "passes/passes.h"

/* What three passes hold at once; with 16 registers layer norm loses 15 %. */
enum { OVERLAP_REGISTERS = 32 };

typedef struct job {
    const qn_pass_options *options;
    qn_kernel *kernel; /* as it was written, then finished */
    qn_arena *written; /* its memory at first */
    const char *text;
    qn_arena *arena;
    qn_diags diags;
    qn_status status;
} job;

static qn_status finish(qn_kernel *k, const qn_pass_options *options, qn_diags *diags)
{
    const qn_machine *machine = options->machine;
    QN_TRY(qn_kernel_verify(k, diags));
    qn_kernel_simplify(k);
    if (!machine)
        return QUERN_OK;
    if (!machine->gpu) {
        if (machine->vector_registers >= OVERLAP_REGISTERS)
            qn_kernel_overlap(k);
        qn_kernel_vectorize(k, machine);
    }
    qn_kernel_expand_math(k, machine, options->math);
    qn_kernel_legalize(k, machine);
    qn_kernel_simplify(k);
    if (machine->gpu)
        qn_kernel_gpu_map(k);
    else
        qn_kernel_forward(k);
    return qn_kernel_verify(k, diags);
}

static void run_job(void *jobs, int64_t i)
{
    job *j = (job *)jobs + i;
    j->arena = qn_arena_new();
    qn_diags_init(&j->diags, j->arena);
    j->status = finish(j->kernel, j->options, &j->diags);
    if (!j->status) {
        j->text = qn_kernel_canonical(j->kernel, j->arena);
        j->kernel = qn_kernel_clone(j->kernel, j->arena); /* without what the passes left over */
    }
    qn_arena_free(j->written);
}

static void renumber(qn_steps *steps, const int *numbers)
{
    for (size_t i = 0; i < steps->n; i++) {
        qn_step *step = &steps->items[i];
        if (step->kind == QN_STEP_KERNEL)
            step->kernel = numbers[step->kernel];
        renumber(&step->test, numbers);
        renumber(&step->body, numbers);
        renumber(&step->other, numbers);
    }
}

static void free_arena(void *arena)
{
    qn_arena_free(arena);
}

qn_status qn_lower_finish(qn_lowering *l)
{
    qn_program *p = l->program;
    const int n = p->n_kernels;
    job *jobs = QN_NEW_ARRAY(l->arena, job, n);
    int *numbers = QN_NEW_ARRAY(l->arena, int, n);
    for (int i = 0; i < n; i++)
        jobs[i] = (job){ .options = l->options, .kernel = p->kernels[i], .written = l->written.items[i] };
    if (l->options->parallel_for)
        l->options->parallel_for(l->options->pool, run_job, jobs, n);
    for (int i = 0; i < n && !l->options->parallel_for; i++)
        run_job(jobs, i);
    p->n_kernels = 0;
    qn_status status = QUERN_OK;
    for (int i = 0; i < n; i++) {
        qn_arena_defer(l->arena, free_arena, jobs[i].arena);
        if (jobs[i].status)
            status = qn_error(l->diags, jobs[i].status, NULL, "%s", qn_diags_text(&jobs[i].diags, l->arena));
        else
            numbers[i] = qn_program_add_canonical(p, jobs[i].kernel, jobs[i].text);
    }
    if (!status)
        renumber(&p->steps, numbers);
    return status;
}
