/* OpenBLAS opened at run time: see blas.h. */
#include "driver/blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"

enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 };
enum { SEQUENTIAL = 0 }; /* openblas_get_parallel(): built without threads */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of calls, where it is serial */
static qn_blas found;
static bool is_found, is_shared;
static void (*set_threads)(int);
static pthread_once_t one_thread = PTHREAD_ONCE_INIT;
static char why[256], name[256];

/* A function pointer from dlsym, which gives an object's. */
static bool find(void *library, const char *symbol, void *out)
{
    void *address = dlsym(library, symbol);
    memcpy(out, &address, sizeof address);
    if (!address)
        snprintf(why, sizeof why, "it has no %s", symbol);
    return address != NULL;
}

static void open_once(void)
{
    const char *file = getenv("QUERN_OPENBLAS");
    if (!file || !*file)
        file = "libopenblas.so.0";
    is_shared = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD) != NULL;
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *message = dlerror();
        snprintf(why, sizeof why, "%s", message ? message : file);
        return;
    }
    int (*parallel)(void);
    char *(*config)(void);
    if (!find(library, "cblas_sgemm", &found.sgemm) || !find(library, "cblas_dgemm", &found.dgemm) ||
        !find(library, "openblas_set_num_threads", &set_threads) ||
        !find(library, "openblas_get_parallel", &parallel) ||
        !find(library, "openblas_get_config", &config)) {
        dlclose(library);
        return;
    }
    found.serial = parallel() == SEQUENTIAL;
    snprintf(name, sizeof name, "%s", config());
    found.name = name;
    is_found = true;
}

static void set_one_thread(void)
{
    set_threads(1);
}

const qn_blas *qn_blas_open(bool alone, const char **out_why)
{
    pthread_once(&once, open_once);
    if (!is_found || (alone && is_shared)) {
        if (out_why)
            *out_why = is_found ? "something else in this process uses it" : why;
        return NULL;
    }
    pthread_once(&one_thread, set_one_thread);
    return &found;
}

/* Numbers of the library's int. */
static bool fits(const int64_t *params)
{
    return params[QN_GEMM_M] <= INT32_MAX && params[QN_GEMM_N] <= INT32_MAX && params[QN_GEMM_K] <= INT32_MAX;
}

static int64_t at_least_1(int64_t n)
{
    return n > 1 ? n : 1;
}

/* Where a block of the product has its operands, in elements, and how far apart their rows are. */
typedef struct block {
    int x_transposed, y_transposed, m, n, k, x_stride, y_stride, out_stride;
    int64_t x, y, out;
} block;

static block block_of(const int64_t *p, int64_t task)
{
    const qn_gemm_block b = qn_gemm_block_of(p, task);
    const int64_t m = p[QN_GEMM_M], n = p[QN_GEMM_N], k = p[QN_GEMM_K];
    const bool x_transposed = p[QN_GEMM_X_TRANSPOSED], y_transposed = p[QN_GEMM_Y_TRANSPOSED];
    return (block){ .x_transposed = x_transposed ? TRANSPOSED : AS_IT_IS,
                    .y_transposed = y_transposed ? TRANSPOSED : AS_IT_IS,
                    .m = (int)b.rows,
                    .n = (int)b.columns,
                    .k = (int)k,
                    .x_stride = (int)at_least_1(x_transposed ? m : k),
                    .y_stride = (int)at_least_1(y_transposed ? k : n),
                    .out_stride = (int)at_least_1(n),
                    .x = b.batch * m * k + b.row * (x_transposed ? 1 : k),
                    .y = b.batch * k * n + b.column * (y_transposed ? k : 1),
                    .out = b.batch * m * n + b.row * n + b.column };
}

static void call(qn_library library, const block *b, const int64_t *args)
{
    const void *x = (const void *)(intptr_t)args[1], *y = (const void *)(intptr_t)args[2];
    void *out = (void *)(intptr_t)args[3];
    if (library == QN_LIBRARY_SGEMM)
        found.sgemm(ROW_MAJOR, b->x_transposed, b->y_transposed, b->m, b->n, b->k, 1, (const float *)x + b->x,
                    b->x_stride, (const float *)y + b->y, b->y_stride, 0, (float *)out + b->out,
                    b->out_stride);
    else
        found.dgemm(ROW_MAJOR, b->x_transposed, b->y_transposed, b->m, b->n, b->k, 1,
                    (const double *)x + b->x, b->x_stride, (const double *)y + b->y, b->y_stride, 0,
                    (double *)out + b->out, b->out_stride);
}

static void multiply(qn_library library, const int64_t *args, int64_t task)
{
    if (!fits(args + 4)) {
        qn_interp_library(library, args, task);
        return;
    }
    const block b = block_of(args + 4, task);
    if (found.serial)
        pthread_mutex_lock(&lock);
    call(library, &b, args);
    if (found.serial)
        pthread_mutex_unlock(&lock);
}

static void sgemm(int64_t *args, int64_t task)
{
    multiply(QN_LIBRARY_SGEMM, args, task);
}

static void dgemm(int64_t *args, int64_t task)
{
    multiply(QN_LIBRARY_DGEMM, args, task);
}

qn_library_fn *const qn_blas_functions[QN_N_LIBRARIES] = { [QN_LIBRARY_SGEMM] = sgemm,
                                                           [QN_LIBRARY_DGEMM] = dgemm };
