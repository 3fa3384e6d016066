/* How fast convolutions in channel blocks are: the layers of ResNet-50 and MobileNetV2, alone and
 * with bias and ReLU, on one core: their share of the
 * FMA peak that is measured beside each of them, with the weights in the caches and (cold) in memory. Products with
 * padding count, though no kernel makes them; for Winograd convolution, too, the multiplications of the direct one count.
 *
 *   conv_kernel [NAME]       layers whose name contains NAME
 *   PRINT_KERNELS=1, PRINT_ASSEMBLY=1: what was made, on stderr */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backends/backend.h"
#include "ir/build.h"
#include "ir/clock.h"

typedef struct layer {
    const char *name;
    int64_t channels, size, out_channels, kernel, stride;
    bool each; /* every channel by itself */
} layer;

static const layer layers[] = {
    /* of ResNet-50, then of MobileNetV2 ("dw": each channel by itself) */
    { "7x7/2 3-64 @224", 3, 224, 64, 7, 2, false },     { "1x1 64-64 @56", 64, 56, 64, 1, 1, false },
    { "1x1 64-256 @56", 64, 56, 256, 1, 1, false },     { "3x3 64-64 @56", 64, 56, 64, 3, 1, false },
    { "1x1 256-64 @56", 256, 56, 64, 1, 1, false },     { "1x1 256-128 @56", 256, 56, 128, 1, 1, false },
    { "3x3/2 128-128 @56", 128, 56, 128, 3, 2, false }, { "1x1/2 256-512 @56", 256, 56, 512, 1, 2, false },
    { "1x1 128-512 @28", 128, 28, 512, 1, 1, false },   { "1x1 512-128 @28", 512, 28, 128, 1, 1, false },
    { "3x3 128-128 @28", 128, 28, 128, 3, 1, false },   { "3x3/2 256-256 @28", 256, 28, 256, 3, 2, false },
    { "1x1 256-1024 @14", 256, 14, 1024, 1, 1, false }, { "1x1 1024-256 @14", 1024, 14, 256, 1, 1, false },
    { "3x3 256-256 @14", 256, 14, 256, 3, 1, false },   { "3x3/2 512-512 @14", 512, 14, 512, 3, 2, false },
    { "1x1 512-2048 @7", 512, 7, 2048, 1, 1, false },   { "1x1 2048-512 @7", 2048, 7, 512, 1, 1, false },
    { "3x3 512-512 @7", 512, 7, 512, 3, 1, false },     { "3x3/2 3-32 @224", 3, 224, 32, 3, 2, false },
    { "dw 32-32 @112", 32, 112, 32, 3, 1, true },       { "1x1 32-16 @112", 32, 112, 16, 1, 1, false },
    { "1x1 16-96 @112", 16, 112, 96, 1, 1, false },     { "dw/2 96-96 @112", 96, 112, 96, 3, 2, true },
    { "1x1 96-24 @56", 96, 56, 24, 1, 1, false },       { "1x1 24-144 @56", 24, 56, 144, 1, 1, false },
    { "dw 144-144 @56", 144, 56, 144, 3, 1, true },     { "1x1 144-24 @56", 144, 56, 24, 1, 1, false },
    { "dw/2 144-144 @56", 144, 56, 144, 3, 2, true },   { "1x1 144-32 @28", 144, 28, 32, 1, 1, false },
    { "1x1 32-192 @28", 32, 28, 192, 1, 1, false },     { "dw 192-192 @28", 192, 28, 192, 3, 1, true },
    { "1x1 192-32 @28", 192, 28, 32, 1, 1, false },     { "dw/2 192-192 @28", 192, 28, 192, 3, 2, true },
    { "1x1 192-64 @14", 192, 14, 64, 1, 1, false },     { "1x1 64-384 @14", 64, 14, 384, 1, 1, false },
    { "dw 384-384 @14", 384, 14, 384, 3, 1, true },     { "1x1 384-64 @14", 384, 14, 64, 1, 1, false },
    { "1x1 384-96 @14", 384, 14, 96, 1, 1, false },     { "1x1 96-576 @14", 96, 14, 576, 1, 1, false },
    { "dw 576-576 @14", 576, 14, 576, 3, 1, true },     { "1x1 576-96 @14", 576, 14, 96, 1, 1, false },
    { "dw/2 576-576 @14", 576, 14, 576, 3, 2, true },   { "1x1 576-160 @7", 576, 7, 160, 1, 1, false },
    { "1x1 160-960 @7", 160, 7, 960, 1, 1, false },     { "dw 960-960 @7", 960, 7, 960, 3, 1, true },
    { "1x1 960-160 @7", 960, 7, 160, 1, 1, false },     { "1x1 960-320 @7", 960, 7, 320, 1, 1, false },
    { "1x1 320-1280 @7", 320, 7, 1280, 1, 1, false },
};

typedef void kernel_fn(int64_t *args, int64_t task);

_Noreturn static void stop(const qn_diags *diags, qn_arena *arena)
{
    fprintf(stderr, "%s\n", qn_diags_text(diags, arena));
    exit(1);
}

static kernel_fn *compile(const qn_kernel *kernel, qn_arena *arena)
{
    const qn_target target = { .jit = true };
    qn_diags diags;
    qn_code code;
    void *image = NULL;
    qn_diags_init(&diags, arena);
    if (getenv("PRINT_KERNELS"))
        fputs(qn_kernel_print(kernel, arena), stderr);
    if (getenv("PRINT_ASSEMBLY") &&
        !qn_backend_cpu.emit_kernel(kernel, kernel->name, &target, QN_MATH_DEFAULT, QN_EMIT_ASSEMBLY, arena,
                                    &code, &diags))
        fwrite(code.data, 1, code.size, stderr);
    if (qn_backend_cpu.emit_kernel(kernel, kernel->name, &target, QN_MATH_DEFAULT, QN_EMIT_OBJECT, arena,
                                   &code, &diags) ||
        qn_backend_cpu.load(1, &code, &kernel->name, &image, &diags))
        stop(&diags, arena);
    void *symbol = qn_backend_cpu.symbol(image, kernel->name);
    kernel_fn *fn;
    memcpy(&fn, &symbol, sizeof fn);
    return fn;
}

/* 24 chains of FMA on registers: nothing but the units' throughput. */
static qn_kernel *peak_kernel(qn_arena *arena, int lanes, int64_t trips)
{
    enum { CHAINS = 24 };
    const int chains = lanes == 16 ? CHAINS : CHAINS / 2;
    qn_kernel *kernel = qn_kernel_new(arena, "peak");
    qn_kbuffer *c = qn_kernel_add_buffer(kernel, "c", QUERN_F32, true, true, 64);
    qn_kbuilder b = qn_kb_new(kernel);
    qn_kvalue *zero = qn_kb_index(&b, 0), *acc[CHAINS];
    qn_kvalue *x = qn_kb_load(&b, c, zero, lanes), *y = qn_kb_load(&b, c, qn_kb_index(&b, lanes), lanes);
    for (int i = 0; i < chains; i++)
        acc[i] = qn_kb_load(&b, c, qn_kb_index(&b, i * lanes), lanes);
    qn_kinst *loop =
        qn_kb_for(&b, zero, qn_kb_index(&b, trips), qn_kb_index(&b, 1), QN_TAG_SERIAL, chains, acc, NULL);
    for (int i = 0; i < chains; i++)
        acc[i] = qn_kb_fma(&b, x, y, &loop->blocks[0]->arguments[1 + i]);
    qn_kb_end_for(&b, loop, acc);
    for (int i = 0; i < chains; i++)
        qn_kb_store(&b, c, qn_kb_index(&b, i * lanes), &loop->results[i], NULL);
    kernel->flops = 2.0 * chains * lanes * (double)trips;
    return kernel;
}

/* In huge pages if it is large, as the weights of a model are. */
static float *floats(int64_t n)
{
    const size_t bytes = ((size_t)n * 4 + 127) / 64 * 64, huge = (size_t)2 << 20;
    float *x =
        aligned_alloc(bytes < huge ? 64 : huge, bytes < huge ? bytes : (bytes + huge - 1) / huge * huge);
    if (!x)
        exit(1);
    if (bytes >= huge)
        madvise(x, bytes, MADV_HUGEPAGE);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(rand() % 2001 - 1000) / 1000;
    return x;
}

static qn_value *convolution(qn_builder *b, const layer *l, qn_value *x, qn_value *w)
{
    const int64_t pad = l->kernel / 2, stride[] = { l->stride, l->stride }, padding[] = { pad, pad };
    if (w->type.rank == 5)
        return qn_b_conv_winograd(b, x, w, padding, padding);
    const qn_conv conv = { .stride = stride,
                           .low = padding,
                           .high = padding,
                           .groups = l->each ? w->type.dims[0]->value * w->type.dims[5]->value : 1 };
    return qn_b_conv_packed(b, x, w, &conv, l->each ? 1 : l->channels);
}

/* relu(convolution(x, w) + bias), or the convolution alone; by Winograd with filters of t x t, or (0) directly. */
static qn_program *program_of(const layer *l, const qn_machine *machine, bool alone, int64_t t, int64_t width,
                              qn_arena *arena, qn_diags *diags)
{
    const int64_t lanes = machine->vector_bytes / 4, c = l->channels < lanes ? 1 : lanes;
    const int64_t blocks = (l->channels + c - 1) / c, out_blocks = (l->out_channels + lanes - 1) / lanes;
    const int64_t x_dims[] = { 1, blocks, l->size, l->size, c }, bias_dims[] = { out_blocks, lanes };
    const int64_t w_dims[] = {
        out_blocks, l->each ? 1 : blocks, l->kernel, l->kernel, l->each ? 1 : c, lanes
    };
    const int64_t u_dims[] = { out_blocks * lanes / (t ? width : lanes), t, t, l->channels, width };
    qn_module *module = qn_module_new(l->name);
    qn_graph *graph = qn_function_new(module, "infer");
    qn_builder b = { .graph = graph, .diags = diags };
    qn_value *x = qn_graph_add_input(graph, "x", qn_type_static(module, QUERN_F32, 5, x_dims), QN_ROLE_STATE);
    qn_value *w = qn_graph_add_input(
        graph, "w", qn_type_static(module, QUERN_F32, t ? 5 : 6, t ? u_dims : w_dims), QN_ROLE_STATE);
    qn_value *bias =
        qn_graph_add_input(graph, "bias", qn_type_static(module, QUERN_F32, 2, bias_dims), QN_ROLE_STATE);
    qn_value *y = convolution(&b, l, x, w);
    if (y && !alone) {
        y = qn_b_binary(&b, QN_OP_ADD, y,
                        qn_b_broadcast(&b, bias, 5, y->type.dims, (const int64_t[]){ 1, 4 }));
        y = qn_b_binary(&b, QN_OP_MAX, y, qn_b_full(&b, &y->type, 0));
    }
    if (!y)
        stop(diags, arena);
    qn_graph_add_output(graph, y, "y", -1);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = machine };
    qn_program *program;
    if (qn_lower(graph, &options, arena, &program, diags))
        stop(diags, arena);
    return program;
}

typedef enum mode { ALONE, FUSED, COLD, MODES } mode;

enum { MAX_BUFFERS = 16, MAX_STEPS = 4 };

/* A program that can run: its kernels, and memory for its buffers. */
typedef struct runnable {
    const qn_program *program;
    kernel_fn *kernels[MAX_STEPS]; /* by step */
    float *buffers[MAX_BUFFERS];
    int weights; /* number of their buffer */
    int64_t copies, w_elements;
} runnable;

static runnable make_runnable(const qn_program *program, bool cold, qn_arena *arena)
{
    enum { LARGER_THAN_CACHES = 128 << 20 };
    runnable r = { .program = program, .copies = 1 };
    for (size_t i = 0; i < program->steps.n; i++)
        r.kernels[i] = compile(program->kernels[program->steps.items[i].kernel], arena);
    for (int i = 0; i < program->n_buffers; i++) {
        int64_t n = program->buffers[i].elements->value;
        if (strcmp(program->buffers[i].name, "w") == 0) {
            r.weights = i;
            r.w_elements = n;
            r.copies = cold ? LARGER_THAN_CACHES / (4 * n) + 1 : 1;
            n *= r.copies;
        }
        r.buffers[i] = floats(n);
    }
    return r;
}

static void run(const runnable *r, int64_t repetition)
{
    for (size_t s = 0; s < r->program->steps.n; s++) {
        const qn_step *step = &r->program->steps.items[s];
        int64_t args[1 + MAX_BUFFERS] = { -1 };
        for (int i = 0; i < step->n_buffers; i++) {
            const int buffer = step->buffers[i];
            args[1 + i] = (int64_t)(r->buffers[buffer] +
                                    (buffer == r->weights ? repetition % r->copies * r->w_elements : 0));
        }
        for (int64_t i = 0; i < step->tasks->value; i++)
            r->kernels[s](args, i);
    }
}

/* Repetitions with the weights in the caches; or (COLD) with others each time, so that they come from memory, as they do
 * in a network whose weights are larger than the caches. Gives the share of the peak. */
static double repeat(const runnable *r, double flops, kernel_fn *peak, double peak_flops, double *out_seconds)
{
    float *c = floats(1024);
    int64_t peak_args[] = { -1, (int64_t)c };
    double best = 1e9, best_peak = 1e9, total = 0;
    for (int64_t i = 0; i < 300 && (i < 5 || total < 0.15); i++) {
        double t = qn_seconds();
        peak(peak_args, 0);
        t = qn_seconds() - t;
        best_peak = t < best_peak ? t : best_peak;
        t = qn_seconds();
        run(r, i);
        t = qn_seconds() - t;
        best = t < best ? t : best;
        total += t;
    }
    free(c);
    *out_seconds = best;
    return (flops / best) / (peak_flops / best_peak);
}

static void measure_as(const layer *l, const qn_machine *machine, int64_t t, int64_t width, kernel_fn *peak,
                       double peak_flops)
{
    static const char *const names[MODES] = { "alone", "| fused", "| cold" };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const int64_t out = (l->size + 2 * (l->kernel / 2) - l->kernel) / l->stride + 1;
    const double flops =
        2.0 * (double)(out * out * l->out_channels * l->kernel * l->kernel * (l->each ? 1 : l->channels));
    double compiled = 0;
    int64_t tasks = 0;
    if (t)
        printf("  F(%lld, 3), %2lld wide                 ", (long long)t - 2, (long long)width);
    else
        printf("%-20s %7.1f MFLOP ", l->name, flops * 1e-6);
    for (int m = 0; m < MODES; m++) {
        const double start = qn_seconds();
        qn_program *program = program_of(l, machine, m == ALONE, t, width, arena, &diags);
        runnable r = make_runnable(program, m == COLD, arena);
        double seconds;
        compiled = qn_seconds() - start;
        tasks = program->steps.items[program->steps.n - 1].tasks->value;
        const double share = repeat(&r, flops, peak, peak_flops, &seconds);
        printf(" %s %7.1f us %5.1f %%", names[m], seconds * 1e6, 100 * share);
        for (int i = 0; i < program->n_buffers; i++)
            free(r.buffers[i]);
    }
    printf("  %lld tasks, compiled in %.0f ms\n", (long long)tasks, compiled * 1e3);
    qn_arena_free(arena);
}

static void measure(const layer *l, const qn_machine *machine, kernel_fn *peak, double peak_flops)
{
    const int64_t lanes = machine->vector_bytes / 4;
    measure_as(l, machine, 0, 0, peak, peak_flops);
    if (l->kernel != 3 || l->stride != 1 || l->each || l->channels < lanes)
        return;
    for (int64_t t = 4; t <= 6; t += 2)
        for (int64_t width = 2 * lanes; width <= 4 * lanes; width *= 2)
            measure_as(l, machine, t, width, peak, peak_flops);
}

int main(int argc, char **argv)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    const qn_target target = { .jit = true };
    qn_diags_init(&diags, arena);
    if (qn_backend_cpu.describe(&target, arena, &machine, &diags))
        stop(&diags, arena);
    const qn_kernel *peak = peak_kernel(arena, machine.vector_bytes / 4, 20000);
    kernel_fn *peak_fn = compile(peak, arena);
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        if (argc < 2 || strstr(layers[i].name, argv[1]))
            measure(&layers[i], &machine, peak_fn, peak->flops);
    qn_arena_free(arena);
    return 0;
}
