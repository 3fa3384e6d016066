/* What an operation on small tensors costs, the compiled kernel included: nanoseconds a call after the first, the least of
 * several rounds. */
#include <stdio.h>
#include <time.h>

#include "quern_tensor.h"

#define ROUNDS 20
#define CALLS 20000

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

#define MEASURE(what, call)                                                   \
    do {                                                                      \
        double best = 1e18, first = now();                                    \
        quern_tensor *made = (call);                                          \
        first = now() - first;                                                \
        if (!made) {                                                          \
            fprintf(stderr, "%s: %s\n", what, quern_last_error());            \
            return 1;                                                         \
        }                                                                     \
        quern_tensor_free(made);                                              \
        for (int r = 0; r < ROUNDS; r++) {                                    \
            double start = now();                                             \
            for (int i = 0; i < CALLS; i++)                                   \
                quern_tensor_free(call);                                      \
            double each = (now() - start) / CALLS;                            \
            best = each < best ? each : best;                                 \
        }                                                                     \
        printf("%-36s %7.0f ns   first %7.2f ms\n", what, best, first / 1e6); \
    } while (0)

int main(void)
{
    quern_tensor *flat = quern_tensor_arange(QUERN_F32, 0, 16, 1),
                 *x = quern_tensor_reshape(flat, QUERN_DIMS(4, 4));
    quern_tensor *row = quern_tensor_select(x, 0, 0), *column = quern_tensor_slice(x, 1, 1, 2, 1);
    quern_tensor *turned = quern_tensor_transpose(x, NULL), *two = QUERN_REAL(2);
    quern_tensor *where = quern_tensor_less(x, two);
    MEASURE("x + x (4 x 4)", quern_tensor_add(x, x));
    MEASURE("x + row", quern_tensor_add(x, row));
    MEASURE("x + column, which is strided", quern_tensor_add(x, column));
    MEASURE("x + transposed x", quern_tensor_add(x, turned));
    MEASURE("x * number", quern_tensor_mul(x, two));
    MEASURE("x += row", quern_tensor_elementwise("add", x, row, x));
    MEASURE("x < number", quern_tensor_less(x, two));
    MEASURE("where", quern_tensor_where(where, x, two));
    MEASURE("tanh(x)", quern_tensor_tanh(x));
    MEASURE("sum of all", quern_tensor_sum(x, QUERN_ALL_AXES, 0));
    MEASURE("max of rows", quern_tensor_max(x, QUERN_AXES(1), 0));
    MEASURE("x @ transposed x", quern_tensor_matmul(x, turned));
    MEASURE("view of a row", quern_tensor_select(x, 0, 1));
    MEASURE("copy", quern_tensor_copy(x));
    quern_tensor *all[] = { flat, x, row, column, turned, two, where };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        quern_tensor_free(all[i]);
    return 0;
}
