/* What functions of libraries do, in the plainest way: their definition, and what stands in where a library can't. */
#include "backends/backend.h"

static double element(const void *data, bool is_double, int64_t at)
{
    return is_double ? ((const double *)data)[at] : (double)((const float *)data)[at];
}

void qn_interp_library(qn_library library, const int64_t *args, int64_t task)
{
    const int64_t *p = args + 4;
    const bool is_double = qn_libraries[library].dtype == QUERN_F64;
    const int64_t m = p[QN_GEMM_M], n = p[QN_GEMM_N], k = p[QN_GEMM_K];
    const qn_gemm_block block = qn_gemm_block_of(p, task);
    const size_t size = is_double ? 8 : 4;
    const char *x = (const char *)(intptr_t)args[1] + (size_t)(block.batch * m * k) * size;
    const char *y = (const char *)(intptr_t)args[2] + (size_t)(block.batch * k * n) * size;
    char *out = (char *)(intptr_t)args[3] + (size_t)(block.batch * m * n) * size;
    for (int64_t i = block.row; i < block.row + block.rows; i++)
        for (int64_t j = block.column; j < block.column + block.columns; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += element(x, is_double, p[QN_GEMM_X_TRANSPOSED] ? l * m + i : i * k + l) *
                       element(y, is_double, p[QN_GEMM_Y_TRANSPOSED] ? j * k + l : l * n + j);
            if (is_double)
                ((double *)(void *)out)[i * n + j] = sum;
            else
                ((float *)(void *)out)[i * n + j] = (float)sum;
        }
}
