/* How fast machine code from the kernel IR is where it matters most: a GEMM with a 12 x 32 register tile, its share of the
 * machine's FMA peak. C[M, N] = A[M, K] B[K, N], B in panels of 32 columns; A packed in tiles of 12 rows, or row-major. Beside
 * it OpenBLAS on one thread, where it is installed, as the yardstick: it packs A and B in each call.
 *
 *   gemm_kernel [M N K]       (M a multiple of 12, N of 32, K of 2) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "driver/blas.h"
#include "ir/clock.h"

enum { ROWS = 12, LANES = 16, VECTORS = 2, COLUMNS = LANES * VECTORS, UNROLL = 2 };

static const qn_ktype vector = { QUERN_F32, LANES };

/* One task: a panel of 32 columns of C. */
static qn_kernel *gemm(qn_arena *arena, int64_t m, int64_t n, int64_t k, bool packed)
{
    qn_kernel *kernel = qn_kernel_new(arena, packed ? "gemm_packed" : "gemm_rows");
    qn_kbuffer *a = qn_kernel_add_buffer(kernel, "a", QUERN_F32, true, false, 64);
    qn_kbuffer *p = qn_kernel_add_buffer(kernel, "b", QUERN_F32, true, false, 64);
    qn_kbuffer *c = qn_kernel_add_buffer(kernel, "c", QUERN_F32, false, true, 64);
    qn_kbuilder b = qn_kb_new(kernel);
    qn_kvalue *task = qn_kb_task(&b), *zero = qn_kb_index(&b, 0);
    qn_kvalue *acc[ROWS * VECTORS], *columns[VECTORS];
    for (int i = 0; i < ROWS * VECTORS; i++)
        acc[i] = qn_kb_float(&b, vector, 0);
    qn_kvalue *panel = qn_kb_imul(&b, task, qn_kb_index(&b, k * COLUMNS));
    qn_kinst *rows =
        qn_kb_for(&b, zero, qn_kb_index(&b, m), qn_kb_index(&b, ROWS), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *i = qn_loop_counter(rows);
    qn_kinst *inner = qn_kb_for(&b, zero, qn_kb_index(&b, k), qn_kb_index(&b, UNROLL), QN_TAG_SERIAL,
                                ROWS * VECTORS, acc, NULL);
    qn_kvalue *at = qn_loop_counter(inner);
    for (int r = 0; r < ROWS * VECTORS; r++)
        acc[r] = &inner->blocks[0]->arguments[1 + r];
    qn_kvalue *a_tile = qn_kb_imul(&b, i, qn_kb_index(&b, k));
    for (int u = 0; u < UNROLL; u++) {
        qn_kvalue *step = qn_kb_iadd(&b, at, qn_kb_index(&b, u));
        qn_kvalue *row = qn_kb_iadd(&b, panel, qn_kb_imul(&b, step, qn_kb_index(&b, COLUMNS)));
        for (int j = 0; j < VECTORS; j++)
            columns[j] = qn_kb_load(&b, p, qn_kb_iadd(&b, row, qn_kb_index(&b, j * LANES)), LANES);
        for (int r = 0; r < ROWS; r++) {
            qn_kvalue *index =
                packed ? qn_kb_iadd(&b, qn_kb_iadd(&b, a_tile, qn_kb_imul(&b, step, qn_kb_index(&b, ROWS))),
                                    qn_kb_index(&b, r))
                       : qn_kb_iadd(&b, qn_kb_iadd(&b, a_tile, qn_kb_index(&b, r * k)), step);
            qn_kvalue *x = qn_kb_splat(&b, qn_kb_load(&b, a, index, 1), LANES);
            for (int j = 0; j < VECTORS; j++)
                acc[r * VECTORS + j] = qn_kb_fma(&b, x, columns[j], acc[r * VECTORS + j]);
        }
    }
    qn_kb_end_for(&b, inner, acc);
    qn_kvalue *out =
        qn_kb_iadd(&b, qn_kb_imul(&b, i, qn_kb_index(&b, n)), qn_kb_imul(&b, task, qn_kb_index(&b, COLUMNS)));
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < VECTORS; j++)
            qn_kb_store(&b, c, qn_kb_iadd(&b, out, qn_kb_index(&b, r * n + j * LANES)),
                        &inner->results[r * VECTORS + j], NULL);
    qn_kb_end_for(&b, rows, NULL);
    return kernel;
}

/* 24 chains of FMA on registers: nothing but the units' throughput. */
static qn_kernel *peak(qn_arena *arena, int64_t trips)
{
    qn_kernel *kernel = qn_kernel_new(arena, "peak");
    qn_kbuffer *c = qn_kernel_add_buffer(kernel, "c", QUERN_F32, true, true, 64);
    qn_kbuilder b = qn_kb_new(kernel);
    qn_kvalue *zero = qn_kb_index(&b, 0), *acc[24];
    qn_kvalue *x = qn_kb_load(&b, c, zero, LANES), *y = qn_kb_load(&b, c, qn_kb_index(&b, LANES), LANES);
    for (int i = 0; i < 24; i++)
        acc[i] = qn_kb_load(&b, c, qn_kb_index(&b, i * LANES), LANES);
    qn_kinst *loop =
        qn_kb_for(&b, zero, qn_kb_index(&b, trips), qn_kb_index(&b, 1), QN_TAG_SERIAL, 24, acc, NULL);
    for (int i = 0; i < 24; i++)
        acc[i] = qn_kb_fma(&b, x, y, &loop->blocks[0]->arguments[1 + i]);
    qn_kb_end_for(&b, loop, acc);
    for (int i = 0; i < 24; i++)
        qn_kb_store(&b, c, qn_kb_index(&b, i * LANES), &loop->results[i], NULL);
    return kernel;
}

typedef void kernel_fn(int64_t *args, int64_t task);

static kernel_fn *compile(const qn_kernel *kernel, qn_arena *arena, bool print)
{
    qn_diags diags;
    qn_code code;
    void *image;
    qn_target target = { .jit = true };
    qn_diags_init(&diags, arena);
    if (print && !qn_backend_cpu.emit_kernel(kernel, kernel->name, &target, QN_MATH_DEFAULT, QN_EMIT_ASSEMBLY,
                                             arena, &code, &diags))
        fwrite(code.data, 1, code.size, stderr);
    double start = qn_seconds();
    if (qn_backend_cpu.emit_kernel(kernel, kernel->name, &target, QN_MATH_DEFAULT, QN_EMIT_OBJECT, arena,
                                   &code, &diags) ||
        qn_backend_cpu.load(1, &code, &kernel->name, &image, &diags)) {
        fputs(qn_diags_text(&diags, arena), stderr);
        exit(1);
    }
    printf("%-12s compiled in %.1f ms\n", kernel->name, 1e3 * (qn_seconds() - start));
    void *symbol = qn_backend_cpu.symbol(image, kernel->name);
    kernel_fn *fn;
    memcpy(&fn, &symbol, sizeof fn);
    return fn;
}

static double best_seconds(kernel_fn *fn, int64_t *args, int64_t tasks)
{
    double best = 1e9, total = 0;
    for (int r = 0; r < 3000 && (r < 10 || total < 0.3); r++) {
        double start = qn_seconds();
        for (int64_t t = 0; t < tasks; t++)
            fn(args, t);
        double seconds = qn_seconds() - start;
        total += seconds;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static double blas_seconds(const qn_blas *blas, int m, int n, int k, const float *a, const float *b, float *c)
{
    double best = 1e9, total = 0;
    for (int r = 0; r < 3000 && (r < 10 || total < 0.3); r++) {
        double start = qn_seconds();
        blas->sgemm(101, 111, 111, m, n, k, 1, a, k, b, n, 0, c, n);
        double seconds = qn_seconds() - start;
        total += seconds;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static float *floats(int64_t n)
{
    float *x = aligned_alloc(64, ((size_t)n * 4 + 127) / 64 * 64);
    for (int64_t i = 0; x && i < n; i++)
        x[i] = (float)(rand() % 2001 - 1000) / 1000;
    if (!x)
        exit(1);
    return x;
}

int main(int argc, char **argv)
{
    int64_t m = argc > 3 ? atoll(argv[1]) : 516, n = argc > 3 ? atoll(argv[2]) : 512,
            k = argc > 3 ? atoll(argv[3]) : 512, trips = 100000;
    bool print = getenv("PRINT_ASSEMBLY") != NULL;
    qn_arena *arena = qn_arena_new();
    float *rows = floats(m * k), *tiles = floats(m * k), *columns = floats(k * n), *panels = floats(k * n),
          *c = floats(m * n), *registers = floats(24 * LANES);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++)
            tiles[(i / ROWS * k + j) * ROWS + i % ROWS] = rows[i * k + j];
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++)
            panels[(j / COLUMNS * k + i) * COLUMNS + j % COLUMNS] = columns[i * n + j];
    memset(registers, 0, 24 * LANES * 4);
    kernel_fn *fns[] = { compile(peak(arena, trips), arena, print),
                         compile(gemm(arena, m, n, k, true), arena, print),
                         compile(gemm(arena, m, n, k, false), arena, print) };
    int64_t args[4] = { -1, (int64_t)registers };
    double flops = 2.0 * 24 * LANES * (double)trips / best_seconds(fns[0], args, 1);
    printf("peak         %.1f GFLOP/s\n", flops * 1e-9);
    for (int v = 0; v < 2; v++) {
        args[1] = (int64_t)(v ? rows : tiles);
        args[2] = (int64_t)panels;
        args[3] = (int64_t)c;
        double rate = 2.0 * (double)m * (double)n * (double)k / best_seconds(fns[1 + v], args, n / COLUMNS);
        double worst = 0;
        for (int t = 0; t < 500; t++) {
            int64_t i = rand() % m, j = rand() % n;
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += (double)rows[i * k + l] * columns[l * n + j];
            double error = sum > c[i * n + j] ? sum - c[i * n + j] : c[i * n + j] - sum;
            worst = error > worst ? error : worst;
        }
        printf("%-12s %.1f GFLOP/s, %.1f%% of the peak, error %.1e\n", v ? "A in rows" : "A packed",
               rate * 1e-9, 100 * rate / flops, worst);
    }
    const char *why;
    const qn_blas *blas = qn_blas_open(false, &why);
    if (blas) {
        double rate = 2.0 * (double)m * (double)n * (double)k /
                      blas_seconds(blas, (int)m, (int)n, (int)k, rows, columns, c);
        printf("%-12s %.1f GFLOP/s, %.1f%% of the peak (%s)\n", "OpenBLAS", rate * 1e-9, 100 * rate / flops,
               blas->name);
    } else {
        printf("%-12s none: %s\n", "OpenBLAS", why);
    }
    qn_arena_free(arena);
    return 0;
}
