/* Collectives of buffers, with ranks that are threads: every type, rounding, moves, one rank alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/ok.h"
#include "tests/support/ranks.h"

enum { N = 1300 };

typedef struct buffers {
    int dtype, combine, ranks;
    int64_t n;
    _Alignas(8) char in[MOST_RANKS][MOST_RANKS * N * 8], out[MOST_RANKS][MOST_RANKS * N * 8];
    int status[MOST_RANKS];
    bool in_place;
} buffers;

static uint16_t f16_of(double x) /* exact, of 0 … 60 in steps of 1/8 */
{
    if (isnan(x))
        return 0x7e00;
    int exponent;
    if (x == 0)
        return 0;
    const double m = frexp(x, &exponent);
    return (uint16_t)(((exponent + 14) << 10) + (int)((m * 2 - 1) * 1024));
}

static void put(int dtype, void *to, int64_t i, double x)
{
    const float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    switch (dtype) {
    case QUERN_BOOL: ((uint8_t *)to)[i] = x != 0; break;
    case QUERN_I8:
    case QUERN_U8: ((uint8_t *)to)[i] = (uint8_t)x; break;
    case QUERN_I16:
    case QUERN_U16: ((uint16_t *)to)[i] = (uint16_t)x; break;
    case QUERN_I32:
    case QUERN_U32: ((uint32_t *)to)[i] = (uint32_t)x; break;
    case QUERN_I64:
    case QUERN_U64: ((uint64_t *)to)[i] = (uint64_t)x; break;
    case QUERN_F16: ((uint16_t *)to)[i] = f16_of(x); break;
    case QUERN_BF16: ((uint16_t *)to)[i] = (uint16_t)(bits >> 16); break;
    case QUERN_F32: ((float *)to)[i] = f; break;
    default: ((double *)to)[i] = x; break;
    }
}

static bool is_float(int dtype)
{
    return dtype >= QUERN_F16 && dtype <= QUERN_F64;
}

/* With a NaN in one place of floats. */
static double value_of(const buffers *b, int r, int64_t i)
{
    if (is_float(b->dtype) && b->combine >= QUERN_COMBINE_MAX && r == 1 && i == 3)
        return NAN;
    const double x = number(r, i);
    return b->dtype == QUERN_BOOL ? x > 7 : x;
}

static double combined(const buffers *b, int64_t i)
{
    double y = value_of(b, 0, i);
    for (int r = 1; r < b->ranks; r++) {
        const double x = value_of(b, r, i);
        if (b->combine == QUERN_COMBINE_MAX)
            y = isnan(x) || isnan(y) ? NAN : fmax(x, y);
        else if (b->combine == QUERN_COMBINE_MIN)
            y = isnan(x) || isnan(y) ? NAN : fmin(x, y);
        else
            y += x;
    }
    return b->combine == QUERN_COMBINE_MEAN ? y / b->ranks : y;
}

static void reduce_buffers(quern_comm *comm, void *arg)
{
    buffers *b = arg;
    const int r = comm->rank;
    if (b->in_place)
        memcpy(b->out[r], b->in[r], sizeof b->in[r]);
    b->status[r] = quern_comm_all_reduce(comm, b->in_place ? b->out[r] : b->in[r], b->out[r], b->n, b->dtype,
                                         b->combine);
}

static void scatter_buffers(quern_comm *comm, void *arg)
{
    buffers *b = arg;
    const int r = comm->rank;
    b->status[r] =
        quern_comm_reduce_scatter(comm, b->in[r], b->out[r], b->n / b->ranks, b->dtype, b->combine);
}

static void combines_every_type(void **state)
{
    (void)state;
    buffers *b = calloc(1, sizeof *b);
    for (b->dtype = QUERN_BOOL; b->dtype <= QUERN_F64; b->dtype++)
        for (b->combine = QUERN_COMBINE_SUM; b->combine <= QUERN_COMBINE_MIN; b->combine++)
            for (int scatter = 0; scatter < 2; scatter++) {
                if ((b->dtype == QUERN_BOOL && b->combine < QUERN_COMBINE_MAX) ||
                    (b->combine == QUERN_COMBINE_MEAN && !is_float(b->dtype)))
                    continue;
                b->ranks = b->combine == QUERN_COMBINE_MEAN ? 4 : 3; /* means are exact */
                b->n = scatter ? N / b->ranks * b->ranks : N;
                b->in_place = b->dtype % 2;
                for (int r = 0; r < b->ranks; r++)
                    for (int64_t i = 0; i < b->n; i++)
                        put(b->dtype, b->in[r], i, value_of(b, r, i));
                on_ranks(b->ranks, scatter ? scatter_buffers : reduce_buffers, b);
                const int64_t part = scatter ? b->n / b->ranks : b->n;
                static _Alignas(8) char expected[N * 8];
                for (int r = 0; r < b->ranks; r++) {
                    ok(b->status[r]);
                    for (int64_t i = 0; i < part; i++)
                        put(b->dtype, expected, i, combined(b, scatter ? r * part + i : i));
                    const size_t bytes = (size_t)part * quern_dtype_size(b->dtype);
                    if (memcmp(b->out[r], expected, bytes) != 0 && b->combine < QUERN_COMBINE_MAX)
                        fail_msg("%s, combine %d, rank %d, scatter %d", quern_dtype_text(b->dtype),
                                 b->combine, r, scatter);
                    for (size_t i = 0; i < bytes; i++) /* any NaN will do */
                        if (b->out[r][i] != expected[i] && i / quern_dtype_size(b->dtype) != 3)
                            fail_msg("%s, combine %d, rank %d: byte %zu", quern_dtype_text(b->dtype),
                                     b->combine, r, i);
                }
            }
    free(b);
}

/* Rounded once from the exact sum, and the same bits on all ranks. */
static void rounds_once(void **state)
{
    (void)state;
    buffers *b = calloc(1, sizeof *b);
    b->ranks = 3;
    b->n = 3;
    b->dtype = QUERN_BF16;
    const uint16_t ones[3] = { 0x3f80, 0x3b80, 0x3b80 }; /* 1, 2^-8, 2^-8: one by one, each would be lost */
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 3; i++)
            ((uint16_t *)b->in[r])[i] = ones[(r + i) % 3];
    on_ranks(3, reduce_buffers, b);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 3; i++)
            assert_int_equal(((uint16_t *)b->out[r])[i], 0x3f81); /* 1 + 2^-7 */
    b->dtype = QUERN_F32;
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 3; i++)
            ((float *)b->in[r])[i] = (const float[]){ 1, 0x1p-24f, 0x1p-24f }[(r + i) % 3];
    on_ranks(3, reduce_buffers, b);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 3; i++)
            assert_true(((float *)b->out[r])[i] == 1 + 0x1p-23f);
    free(b);
}

static void move_buffers(quern_comm *comm, void *arg)
{
    buffers *b = arg;
    const int r = comm->rank;
    b->status[r] = quern_comm_all_gather(comm, b->in[r], b->out[r], b->n, b->dtype);
    if (!b->status[r])
        b->status[r] = quern_comm_broadcast(comm, b->in[r], b->n, b->dtype, 2);
}

static void moves_elements(void **state)
{
    (void)state;
    buffers *b = calloc(1, sizeof *b);
    b->ranks = 4;
    b->n = N;
    b->dtype = QUERN_I16;
    for (int r = 0; r < b->ranks; r++)
        for (int64_t i = 0; i < N; i++)
            put(b->dtype, b->in[r], i, 100 * r + number(r, i));
    on_ranks(b->ranks, move_buffers, b);
    for (int r = 0; r < b->ranks; r++) {
        ok(b->status[r]);
        assert_memory_equal(b->in[r], b->out[r] + 2 * N * 2, N * 2);
        for (int s = 0; s < b->ranks; s++)
            for (int64_t i = 0; i < N; i++)
                assert_int_equal(((int16_t *)b->out[r])[s * N + i], 100 * s + (int)number(s, i));
    }
    free(b);
}

/* Without a communicator there is one rank. */
static void alone(void **state)
{
    (void)state;
    float x[3] = { 1, 2, 3 }, y[3] = { 0 };
    ok(quern_comm_all_reduce(NULL, x, y, 3, QUERN_F32, QUERN_COMBINE_MEAN));
    assert_memory_equal(x, y, sizeof x);
    ok(quern_comm_all_gather(NULL, x, x, 3, QUERN_F32));
    ok(quern_comm_broadcast(NULL, x, 3, QUERN_F32, 0));
    assert_int_equal(quern_comm_broadcast(NULL, x, 3, QUERN_F32, 1), QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "broadcast from rank 1 of 1");
    assert_int_equal(quern_comm_all_reduce(NULL, x, y, 3, QUERN_BOOL, QUERN_COMBINE_SUM),
                     QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "all_reduce: sum does not combine bool");
    assert_int_equal(quern_comm_all_reduce(NULL, x, y, 3, 77, QUERN_COMBINE_SUM), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_comm_threads(0, NULL), QUERN_ERROR_ARGUMENT);
    quern_comm_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(combines_every_type),
        cmocka_unit_test(rounds_once),
        cmocka_unit_test(moves_elements),
        cmocka_unit_test(alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
