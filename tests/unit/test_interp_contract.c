/* Contractions of the reference interpreter against their formulas as nested loops. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/eval.h"

static int64_t int_at(const qn_array *a, int64_t i)
{
    return qn_scalar_load(a->dtype, (char *)a->data + (size_t)i * qn_dtype_bytes(a->dtype)).i;
}

static void set(const qn_array *a, int64_t i, double f, int64_t n)
{
    const qn_scalar v = qn_dtype_is_float(a->dtype) ? (qn_scalar){ .f = f } : (qn_scalar){ .i = n };
    qn_scalar_store(a->dtype, v, (char *)a->data + (size_t)i * qn_dtype_bytes(a->dtype));
}

/* ---- dot_general ---- */

#define DOT(x, y, ...)                     \
    {                                      \
        QN_OP_DOT_GENERAL, 2, { x, y }, 4, \
        {                                  \
            __VA_ARGS__                    \
        }                                  \
    }
#define MATMUL(x, y) DOT(x, y, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 1), LIST(Y_CONTRACT, 0))

static void small_products(void **state)
{
    (void)state;
    const double inf = (double)INFINITY, nan = (double)NAN;
    const qn_array a = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6));
    const qn_array b = floats(QUERN_F32, SHAPE(3, 2), V(1, 0, 0, 1, 1, 1)),
                   v = floats(QUERN_F32, SHAPE(3), V(1, 2, 3));
    const qn_array i = ints(QUERN_I8, SHAPE(1, 2), I(-128, 127)),
                   u = ints(QUERN_U8, SHAPE(2, 1), I(255, 255));
    const qn_array none = floats(QUERN_F32, SHAPE(2, 0), EMPTY),
                   l = ints(QUERN_I64, SHAPE(1, 1), I(INT64_MAX));
    const qn_array h = floats(QUERN_F16, SHAPE(1, 2), V(2048, 1)),
                   one = floats(QUERN_F16, SHAPE(2, 1), V(1, 1));
    const row rows[] = {
        { "matrices", MATMUL(a, b), floats(QUERN_F32, SHAPE(2, 2), V(4, 5, 10, 11)) },
        { "both transposed",
          DOT(a, b, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 0), LIST(Y_CONTRACT, 1)),
          floats(QUERN_F32, SHAPE(3, 3), V(1, 4, 5, 2, 5, 7, 3, 6, 9)) },
        { "vectors", DOT(v, v, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 0), LIST(Y_CONTRACT, 0)),
          floats(QUERN_F32, SCALAR, V(14)) },
        { "outer product",
          DOT(v, v, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), NO_LIST(X_CONTRACT), NO_LIST(Y_CONTRACT)),
          floats(QUERN_F32, SHAPE(3, 3), V(1, 2, 3, 2, 4, 6, 3, 6, 9)) },
        { "batch only",
          DOT(v, v, LIST(X_BATCH, 0), LIST(Y_BATCH, 0), NO_LIST(X_CONTRACT), NO_LIST(Y_CONTRACT)),
          floats(QUERN_F32, SHAPE(3), V(1, 4, 9)) },
        { "two contracted axes",
          DOT(a, a, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 1, 0), LIST(Y_CONTRACT, 1, 0)),
          floats(QUERN_F32, SCALAR, V(91)) },
        { "nothing contracted gives 0",
          DOT(none, none, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 1), LIST(Y_CONTRACT, 1)),
          floats(QUERN_F32, SHAPE(2, 2), V(0, 0, 0, 0)) },
        { "no rows",
          DOT(none, a, NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 0), LIST(Y_CONTRACT, 0)),
          floats(QUERN_F32, SHAPE(0, 3), EMPTY) },
        { "i64 wraps", MATMUL(l, l), ints(QUERN_I64, SHAPE(1, 1), I(1)) },
        { "f16 rounds once", MATMUL(h, one), floats(QUERN_F16, SHAPE(1, 1), V(2048)) },
        { "inf and NaN",
          MATMUL(floats(QUERN_F32, SHAPE(1, 2), V(inf, 0)), floats(QUERN_F32, SHAPE(2, 2), V(1, -1, 1, inf))),
          floats(QUERN_F32, SHAPE(1, 2), V(inf, nan)) },
    };
    CHECK(rows);
    call wide = MATMUL(i, u);
    wide.attrs[wide.n_attrs++] = (qn_attr)INT(DTYPE, QUERN_I32);
    const qn_array i32 = ints(QUERN_I32, SHAPE(1, 1), I(-255));
    expect_same("i8 x u8 -> i32", eval(&wide), &i32);
    call f32 = MATMUL(h, one);
    f32.attrs[f32.n_attrs++] = (qn_attr)INT(DTYPE, QUERN_F32);
    const qn_array exact = floats(QUERN_F32, SHAPE(1, 1), V(2049));
    expect_same("f16 x f16 -> f32", eval(&f32), &exact);
}

/* x [b1, m, k1, b0, k2] and y [k2, n1, b0, k1, n2, b1], sizes around the blocks, in several dtypes. */
static void products_of_many_axes(void **state)
{
    (void)state;
    static const qn_dtype dtypes[] = { QUERN_F64, QUERN_F32, QUERN_F16, QUERN_BF16,
                                       QUERN_I8,  QUERN_U32, QUERN_U64 };
    enum { B0 = 2, B1 = 1, M = 101, K1 = 3, K2 = 90, N1 = 5, N2 = 21 };
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        const qn_array x = noise(dtypes[d], SHAPE(B1, M, K1, B0, K2), 11);
        const qn_array y = noise(dtypes[d], SHAPE(K2, N1, B0, K1, N2, B1), 12);
        const call c = DOT(x, y, LIST(X_BATCH, 3, 0), LIST(Y_BATCH, 2, 5), LIST(X_CONTRACT, 4, 2),
                           LIST(Y_CONTRACT, 0, 3));
        const qn_array r = full(dtypes[d], SHAPE(B0, B1, M, N1, N2), 0);
        int64_t at_r = 0;
        for (int b = 0; b < B0; b++)
            for (int m = 0; m < M; m++)
                for (int n1 = 0; n1 < N1; n1++)
                    for (int n2 = 0; n2 < N2; n2++, at_r++) {
                        double f = 0;
                        uint64_t i = 0;
                        for (int k2 = 0; k2 < K2; k2++)
                            for (int k1 = 0; k1 < K1; k1++) {
                                const int64_t p = ((m * K1 + k1) * B0 + b) * K2 + k2;
                                const int64_t q = (((k2 * N1 + n1) * B0 + b) * K1 + k1) * N2 + n2;
                                if (qn_dtype_is_float(dtypes[d]))
                                    f += at(&x, p) * at(&y, q);
                                else
                                    i += (uint64_t)int_at(&x, p) * (uint64_t)int_at(&y, q);
                            }
                        set(&r, at_r, f, (int64_t)i);
                    }
        expect_same(qn_dtype_name(dtypes[d]), eval(&c), &r);
    }
}

/* ---- convolution ---- */

typedef struct conv_case {
    qn_dtype dtype;
    int64_t n, c, o, groups;
    int64_t x[2], w[2], stride[2], low[2], high[2], x_dilation[2], w_dilation[2];
} conv_case;

static const conv_case conv_cases[] = {
    { QUERN_F64, 2, 3, 4, 1, { 7, 8 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F32, 1, 4, 6, 2, { 9, 9 }, { 3, 2 }, { 2, 3 }, { 0, 2 }, { 1, 0 }, { 1, 1 }, { 1, 2 } },
    { QUERN_F32, 1, 6, 6, 6, { 6, 5 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 2, 1 } },
    { QUERN_F64, 2, 3, 2, 1, { 4, 5 }, { 3, 4 }, { 1, 1 }, { 2, 3 }, { 2, 3 }, { 2, 3 }, { 1, 1 } },
    { QUERN_F64, 1, 2, 2, 1, { 5, 5 }, { 3, 3 }, { 1, 2 }, { -1, 1 }, { 0, -2 }, { 1, 2 }, { 1, 1 } },
    { QUERN_F16, 1, 70, 100, 1, { 11, 12 }, { 2, 2 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 }, { 1, 1 } },
    { QUERN_I32, 1, 2, 3, 1, { 4, 4 }, { 2, 2 }, { 1, 1 }, { 1, 0 }, { 0, 1 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F32, 1, 3, 2, 1, { 4, 4 }, { 1, 1 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 }, { 1, 1 } },
};

static int64_t out_extent(const conv_case *k, int a)
{
    const int64_t spread = (k->x[a] - 1) * k->x_dilation[a] + 1;
    return (spread + k->low[a] + k->high[a] - (k->w[a] - 1) * k->w_dilation[a] - 1) / k->stride[a] + 1;
}

/* Position in x of kernel element w at output o, or -1 where there is padding or a gap. */
static int64_t source(const conv_case *k, int a, int64_t o, int64_t w)
{
    const int64_t p = o * k->stride[a] + w * k->w_dilation[a] - k->low[a];
    return p < 0 || p % k->x_dilation[a] || p / k->x_dilation[a] >= k->x[a] ? -1 : p / k->x_dilation[a];
}

static void convolutions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof conv_cases / sizeof *conv_cases; i++) {
        const conv_case *k = &conv_cases[i];
        const int64_t cg = k->c / k->groups, og = k->o / k->groups, h = out_extent(k, 0),
                      wd = out_extent(k, 1);
        const call c = { QN_OP_CONVOLUTION,
                         2,
                         { noise(k->dtype, SHAPE(k->n, k->c, k->x[0], k->x[1]), 21),
                           noise(k->dtype, SHAPE(k->o, cg, k->w[0], k->w[1]), 22) },
                         6,
                         { { .key = QN_ATTR_STRIDE, .n = 2, .ints = k->stride },
                           { .key = QN_ATTR_LOW, .n = 2, .ints = k->low },
                           { .key = QN_ATTR_HIGH, .n = 2, .ints = k->high },
                           { .key = QN_ATTR_X_DILATION, .n = 2, .ints = k->x_dilation },
                           { .key = QN_ATTR_W_DILATION, .n = 2, .ints = k->w_dilation },
                           INT(GROUPS, k->groups) } };
        const qn_array r = full(k->dtype, SHAPE(k->n, k->o, h, wd), 0);
        int64_t at_r = 0;
        for (int64_t n = 0; n < k->n; n++)
            for (int64_t o = 0; o < k->o; o++)
                for (int64_t y = 0; y < h; y++)
                    for (int64_t x = 0; x < wd; x++, at_r++) {
                        double sum = 0;
                        for (int64_t ch = 0; ch < cg; ch++)
                            for (int64_t ky = 0; ky < k->w[0]; ky++)
                                for (int64_t kx = 0; kx < k->w[1]; kx++) {
                                    const int64_t sy = source(k, 0, y, ky), sx = source(k, 1, x, kx);
                                    const int64_t plane = n * k->c + o / og * cg + ch;
                                    if (sy >= 0 && sx >= 0)
                                        sum +=
                                            at(&c.operands[0], (plane * k->x[0] + sy) * k->x[1] + sx) *
                                            at(&c.operands[1], ((o * cg + ch) * k->w[0] + ky) * k->w[1] + kx);
                                }
                        set(&r, at_r, sum, (int64_t)sum);
                    }
        expect_same("convolution", eval(&c), &r);
    }
}

static void convolutions_of_other_ranks(void **state)
{
    (void)state;
    const call line = { QN_OP_CONVOLUTION,
                        2,
                        { floats(QUERN_F32, SHAPE(1, 1, 4), V(1, 2, 3, 4)),
                          floats(QUERN_F32, SHAPE(1, 1, 2), V(10, 1)) },
                        6,
                        { LIST(STRIDE, 1), LIST(LOW, 1), LIST(HIGH, 0), LIST(X_DILATION, 1),
                          LIST(W_DILATION, 1), INT(GROUPS, 1) } };
    const qn_array line_result = floats(QUERN_F32, SHAPE(1, 1, 4), V(1, 12, 23, 34));
    expect_same("1-D", eval(&line), &line_result);
    const qn_array cube = floats(QUERN_F32, SHAPE(1, 1, 2, 2, 2), V(1, 2, 3, 4, 5, 6, 7, 8));
    const call solid = { QN_OP_CONVOLUTION,
                         2,
                         { cube, cube },
                         6,
                         { LIST(STRIDE, 1, 1, 1), LIST(LOW, 0, 0, 1), LIST(HIGH, 0, 0, 0),
                           LIST(X_DILATION, 1, 1, 1), LIST(W_DILATION, 1, 1, 1), INT(GROUPS, 1) } };
    const qn_array solid_result =
        floats(QUERN_F32, SHAPE(1, 1, 1, 1, 2), V(1 * 2 + 3 * 4 + 5 * 6 + 7 * 8, 204));
    expect_same("3-D", eval(&solid), &solid_result);
    const call none = { QN_OP_CONVOLUTION,
                        2,
                        { floats(QUERN_F32, SHAPE(0, 1, 4), EMPTY),
                          floats(QUERN_F32, SHAPE(1, 1, 2), V(10, 1)) },
                        6,
                        { LIST(STRIDE, 1), LIST(LOW, 0), LIST(HIGH, 0), LIST(X_DILATION, 1),
                          LIST(W_DILATION, 1), INT(GROUPS, 1) } };
    const qn_array none_result = floats(QUERN_F32, SHAPE(0, 1, 3), EMPTY);
    expect_same("no samples", eval(&none), &none_result);
}

/* ---- convolution in blocks ---- */

typedef struct packed_case {
    qn_dtype dtype;
    int64_t n, blocks, c, channels, groups, out_blocks, o;
    int64_t x[2], w[2], stride[2], low[2], high[2], w_dilation[2];
} packed_case;

static const packed_case packed_cases[] = {
    { QUERN_F32, 2, 2, 4, 7, 1, 3, 8, { 7, 8 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F64, 1, 3, 1, 3, 1, 1, 4, { 9, 9 }, { 3, 2 }, { 2, 3 }, { 0, 2 }, { 1, 0 }, { 1, 2 } },
    { QUERN_F32, 1, 4, 3, 5, 2, 6, 2, { 6, 5 }, { 2, 3 }, { 1, 2 }, { 1, -1 }, { 0, 1 }, { 2, 1 } },
    { QUERN_F16, 2, 3, 4, 1, 12, 3, 4, { 6, 5 }, { 3, 3 }, { 2, 1 }, { 1, 1 }, { 1, 1 }, { 1, 2 } },
    { QUERN_F32, 1, 2, 8, 2, 8, 2, 8, { 6, 5 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F64, 2, 1, 12, 3, 4, 2, 6, { 6, 5 }, { 2, 3 }, { 1, 2 }, { 1, 0 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F32, 1, 1, 4, 1, 4, 3, 8, { 5, 5 }, { 3, 3 }, { 2, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { QUERN_F32, 1, 1, 1, 1, 1, 2, 4, { 5, 5 }, { 1, 1 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { QUERN_F32, 1, 3, 1, 1, 3, 3, 2, { 4, 4 }, { 2, 2 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
};

static double packed_element(const packed_case *k, const call *c, int64_t n, int64_t p, const int64_t at_y[2],
                             int64_t lane)
{
    const bool inside = k->groups > k->blocks;
    const int64_t w_blocks = inside ? 1 : k->blocks / k->groups,
                  w_c = inside ? k->blocks * k->c / k->groups : k->c;
    const int64_t group = (p * k->o + lane) / (k->out_blocks * k->o / k->groups),
                  channel = group * w_blocks * w_c;
    double sum = 0;
    for (int64_t i = 0; i < k->channels; i++)
        for (int64_t ky = 0; ky < k->w[0]; ky++)
            for (int64_t kx = 0; kx < k->w[1]; kx++) {
                const int64_t y = at_y[0] * k->stride[0] + ky * k->w_dilation[0] - k->low[0];
                const int64_t x = at_y[1] * k->stride[1] + kx * k->w_dilation[1] - k->low[1];
                const int64_t from = channel + i;
                const int64_t at_w =
                    (((p * w_blocks + i / w_c) * k->w[0] + ky) * k->w[1] + kx) * w_c + i % w_c;
                if (y >= 0 && y < k->x[0] && x >= 0 && x < k->x[1])
                    sum += at(&c->operands[0],
                              (((n * k->blocks + from / k->c) * k->x[0] + y) * k->x[1] + x) * k->c +
                                  from % k->c) *
                           at(&c->operands[1], at_w * k->o + lane);
            }
    return sum;
}

static void convolutions_in_blocks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof packed_cases / sizeof *packed_cases; i++) {
        const packed_case *k = &packed_cases[i];
        const bool inside = k->groups > k->blocks;
        const call c = { QN_OP_CONV_PACKED,
                         2,
                         { noise(k->dtype, SHAPE(k->n, k->blocks, k->x[0], k->x[1], k->c), 23),
                           noise(k->dtype,
                                 SHAPE(k->out_blocks, inside ? 1 : k->blocks / k->groups, k->w[0], k->w[1],
                                       inside ? k->blocks * k->c / k->groups : k->c, k->o),
                                 24) },
                         6,
                         { { .key = QN_ATTR_STRIDE, .n = 2, .ints = k->stride },
                           { .key = QN_ATTR_LOW, .n = 2, .ints = k->low },
                           { .key = QN_ATTR_HIGH, .n = 2, .ints = k->high },
                           { .key = QN_ATTR_W_DILATION, .n = 2, .ints = k->w_dilation },
                           INT(CHANNELS, k->channels),
                           INT(GROUPS, k->groups) } };
        int64_t out[2];
        for (int a = 0; a < 2; a++)
            out[a] =
                (k->x[a] + k->low[a] + k->high[a] - (k->w[a] - 1) * k->w_dilation[a] - 1) / k->stride[a] + 1;
        const qn_array r = full(k->dtype, SHAPE(k->n, k->out_blocks, out[0], out[1], k->o), 0);
        int64_t at_r = 0, at_y[2];
        for (int64_t n = 0; n < k->n; n++)
            for (int64_t p = 0; p < k->out_blocks; p++)
                for (at_y[0] = 0; at_y[0] < out[0]; at_y[0]++)
                    for (at_y[1] = 0; at_y[1] < out[1]; at_y[1]++)
                        for (int64_t lane = 0; lane < k->o; lane++)
                            set(&r, at_r++, packed_element(k, &c, n, p, at_y, lane), 0);
        expect_same("convolution in blocks", eval(&c), &r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(small_products, eval_teardown),
        cmocka_unit_test_teardown(products_of_many_axes, eval_teardown),
        cmocka_unit_test_teardown(convolutions, eval_teardown),
        cmocka_unit_test_teardown(convolutions_of_other_ranks, eval_teardown),
        cmocka_unit_test_teardown(convolutions_in_blocks, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
