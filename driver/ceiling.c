/* The machine's ceilings: see ceiling.h. Each thread's work is a task; the best of several short rounds counts, since a
 * round that was disturbed says less than the machine can. */
#include <stdint.h>
#include <stdlib.h>

#include "driver/ceiling.h"
#include "ir/clock.h"
#include "runtime/memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* ---- multiply-adds ---- */

enum { CHAINS = 12 }; /* independent, so that the units' latency is covered; they fit the registers of AVX2 */

/* n rounds of CHAINS vector multiply-adds. */
#define FMA_KERNEL(name, attribute, vector, set, fma)            \
    attribute static void name(int64_t n)                        \
    {                                                            \
        vector x = set(0.999f), y = set(1e-3f), FMA_CHAINS(set); \
        for (; n > 0; n--) {                                     \
            FMA_ROUND(fma)                                       \
        }                                                        \
    }
#define FMA_CHAINS(set)                                                                                     \
    a0 = set(0), a1 = set(1), a2 = set(2), a3 = set(3), a4 = set(4), a5 = set(5), a6 = set(6), a7 = set(7), \
    a8 = set(8), a9 = set(9), a10 = set(10), a11 = set(11)
/* The empty statement pins each value to a register: the compiler can neither drop nor merge them. */
#define FMA_STEP(fma, a) \
    a = fma(a, x, y);    \
    __asm__ volatile("" : FMA_REGISTER(a));
#define FMA_ROUND(fma) \
    FMA_STEP(fma, a0)  \
    FMA_STEP(fma, a1)  \
    FMA_STEP(fma, a2)  \
    FMA_STEP(fma, a3)  \
    FMA_STEP(fma, a4)  \
    FMA_STEP(fma, a5)  \
    FMA_STEP(fma, a6)  \
    FMA_STEP(fma, a7)  \
    FMA_STEP(fma, a8)  \
    FMA_STEP(fma, a9)  \
    FMA_STEP(fma, a10) \
    FMA_STEP(fma, a11)

#if defined(__x86_64__)
#define FMA_REGISTER(v) "+v"(v)
FMA_KERNEL(fma_avx512, __attribute__((target("avx512f"))), __m512, _mm512_set1_ps, _mm512_fmadd_ps)
FMA_KERNEL(fma_avx2, __attribute__((target("avx2,fma"))), __m256, _mm256_set1_ps, _mm256_fmadd_ps)
#elif defined(__aarch64__)
#define FMA_REGISTER(v) "+w"(v)
#define NEON_FMA(a, x, y) vfmaq_f32(y, a, x)
FMA_KERNEL(fma_neon, , float32x4_t, vdupq_n_f32, NEON_FMA)
#endif

typedef struct fma_work {
    void (*kernel)(int64_t n);
    int64_t n;
} fma_work;

static void fma_task(void *arg, int64_t i)
{
    const fma_work *work = arg;
    (void)i;
    work->kernel(work->n);
}

double qn_peak_flops(quern_pool *pool, double seconds)
{
    fma_work work = { .kernel = NULL };
    int lanes = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        work.kernel = fma_avx512, lanes = 16;
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        work.kernel = fma_avx2, lanes = 8;
#elif defined(__aarch64__)
    work.kernel = fma_neon, lanes = 4;
#endif
    if (!work.kernel)
        return 0;
    int threads = quern_pool_threads(pool);
    double best = 0, end = qn_seconds() + seconds;
    for (work.n = 100000; qn_seconds() < end;) {
        double start = qn_seconds();
        quern_pool_parallel_for(pool, fma_task, &work, threads);
        double rate = 2.0 * lanes * CHAINS * (double)work.n * threads / (qn_seconds() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- reading ---- */

enum { CHUNK = 1 << 20, SPAN = 256 << 20 };

typedef struct read_work {
    const char *data;
    uint64_t sums[SPAN / CHUNK]; /* so that the reading cannot be left out */
} read_work;

static void read_task(void *arg, int64_t i)
{
    read_work *work = arg;
    typedef uint64_t vector __attribute__((vector_size(32)));
    const vector *at = (const vector *)(const void *)(work->data + i * CHUNK);
    vector a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    for (size_t k = 0; k < CHUNK / sizeof *at; k += 4) {
        a ^= at[k];
        b ^= at[k + 1];
        c ^= at[k + 2];
        d ^= at[k + 3];
    }
    a ^= b ^ c ^ d;
    work->sums[i] = a[0] ^ a[1] ^ a[2] ^ a[3];
}

double qn_peak_bandwidth(quern_pool *pool, double seconds)
{
    qn_memory memory = { 0 };
    read_work *work = calloc(1, sizeof *work);
    double best = 0;
    if (work && qn_memory_reserve(&memory, SPAN)) {
        char *data = memory.data;
        for (size_t i = 0; i < SPAN; i += 4096)
            data[i] = (char)(i >> 12); /* pages of its own */
        work->data = data;
        double end = qn_seconds() + seconds;
        do {
            double start = qn_seconds();
            quern_pool_parallel_for(pool, read_task, work, SPAN / CHUNK);
            double rate = SPAN / (qn_seconds() - start);
            best = rate > best ? rate : best;
        } while (qn_seconds() < end);
    }
    qn_memory_free(&memory);
    free(work);
    return best;
}
