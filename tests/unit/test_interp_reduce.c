/* Reductions, scans and windows of the reference interpreter: by hand, and against nested loops. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/eval.h"

#define NaN ((double)NAN)
#define Inf ((double)INFINITY)

#define REDUCE(x, kind, ...)                         \
    {                                                \
        QN_OP_REDUCE, 1, { x }, 2,                   \
        {                                            \
            LIST(AXES, __VA_ARGS__), INT(KIND, kind) \
        }                                            \
    }
#define REDUCE_NONE(x, kind)               \
    {                                      \
        QN_OP_REDUCE, 1, { x }, 2,         \
        {                                  \
            NO_LIST(AXES), INT(KIND, kind) \
        }                                  \
    }

static void reductions(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6)),
                   s = floats(QUERN_F32, SCALAR, V(-0.0));
    const qn_array i = ints(QUERN_I8, SHAPE(3), I(100, 100, -7)), u = ints(QUERN_U64, SHAPE(2), I(-1, 1));
    const qn_array b = ints(QUERN_BOOL, SHAPE(2, 2), I(1, 0, 1, 1)),
                   cube = floats(QUERN_F64, SHAPE(2, 2, 2), V(1, 2, 3, 4, 5, 6, 7, 8));
    const row rows[] = {
        { "rows", REDUCE(x, QN_SUM, 1), floats(QUERN_F32, SHAPE(2), V(6, 15)) },
        { "columns", REDUCE(x, QN_SUM, 0), floats(QUERN_F32, SHAPE(3), V(5, 7, 9)) },
        { "all", REDUCE(x, QN_PROD, 0, 1), floats(QUERN_F32, SCALAR, V(720)) },
        { "no axis", REDUCE_NONE(x, QN_KIND_MAX), x },
        { "of a scalar", REDUCE_NONE(s, QN_KIND_MAX), s },
        { "outer and inner", REDUCE(cube, QN_SUM, 0, 2), floats(QUERN_F64, SHAPE(2), V(14, 22)) },
        { "middle", REDUCE(cube, QN_KIND_MIN, 1), floats(QUERN_F64, SHAPE(2, 2), V(1, 2, 5, 6)) },
        { "i8 wraps", REDUCE(i, QN_SUM, 0), ints(QUERN_I8, SCALAR, I(193)) },
        { "i8 product", REDUCE(i, QN_PROD, 0), ints(QUERN_I8, SCALAR, I(-70000)) },
        { "i8 min", REDUCE(i, QN_KIND_MIN, 0), ints(QUERN_I8, SCALAR, I(-7)) },
        { "u64 max", REDUCE(u, QN_KIND_MAX, 0), ints(QUERN_U64, SCALAR, I(-1)) },
        { "u64 min", REDUCE(u, QN_KIND_MIN, 0), ints(QUERN_U64, SCALAR, I(1)) },
        { "any", REDUCE(b, QN_KIND_MAX, 0), ints(QUERN_BOOL, SHAPE(2), I(1, 1)) },
        { "all of them", REDUCE(b, QN_KIND_MIN, 0), ints(QUERN_BOOL, SHAPE(2), I(1, 0)) },
    };
    CHECK(rows);
}

static void reductions_of_nothing_and_of_nan(void **state)
{
    (void)state;
    static const qn_dtype dtypes[] = { QUERN_F32, QUERN_I8, QUERN_U16, QUERN_I64, QUERN_U64 };
    static const struct {
        qn_kind kind;
        int64_t i[5];
        double f;
    } empty[] = { { QN_SUM, { 0, 0, 0, 0, 0 }, 0 },
                  { QN_PROD, { 0, 1, 1, 1, 1 }, 1 },
                  { QN_KIND_MAX, { 0, -128, 0, INT64_MIN, 0 }, -INFINITY },
                  { QN_KIND_MIN, { 0, 127, 65535, INT64_MAX, -1 }, INFINITY } };
    for (int k = 0; k < 4; k++)
        for (int d = 0; d < 5; d++) {
            const call c = REDUCE(floats(dtypes[d], SHAPE(2, 0), EMPTY), empty[k].kind, 1);
            const qn_array r = d == 0 ? floats(dtypes[d], SHAPE(2), V(empty[k].f, empty[k].f))
                                      : ints(dtypes[d], SHAPE(2), I(empty[k].i[d], empty[k].i[d]));
            expect_same(qn_kind_names[empty[k].kind], eval(&c), &r);
        }
    const qn_array none = ints(QUERN_BOOL, SHAPE(0), EMPTY), n = floats(QUERN_F16, SHAPE(3), V(1, NaN, 2));
    const row rows[] = {
        { "any of none", REDUCE(none, QN_KIND_MAX, 0), ints(QUERN_BOOL, SCALAR, I(0)) },
        { "all of none", REDUCE(none, QN_KIND_MIN, 0), ints(QUERN_BOOL, SCALAR, I(1)) },
        { "to nothing", REDUCE(floats(QUERN_F32, SHAPE(0, 3), EMPTY), QN_SUM, 1),
          floats(QUERN_F32, SHAPE(0), EMPTY) },
        { "max of NaN", REDUCE(n, QN_KIND_MAX, 0), floats(QUERN_F16, SCALAR, V(NaN)) },
        { "min of NaN", REDUCE(n, QN_KIND_MIN, 0), floats(QUERN_F16, SCALAR, V(NaN)) },
    };
    CHECK(rows);
}

/* 2^24 + 1 + ... would stand still in f32, 2048 + 1 in f16. */
static void narrow_floats_accumulate_wide(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    qn_array h = full(QUERN_F16, SHAPE(COUNT), 1), f = full(QUERN_F32, SHAPE(COUNT), 1);
    ((float *)f.data)[0] = 16777216;
    const row rows[] = {
        { "f16", REDUCE(h, QN_SUM, 0), floats(QUERN_F16, SCALAR, V(3000)) },
        { "f32", REDUCE(f, QN_SUM, 0), floats(QUERN_F32, SCALAR, V(16777216.0 + 2999)) },
    };
    CHECK(rows);
}

/* Any set of axes of a rank-4 array, long enough for several chunks. */
static void reductions_over_any_axes(void **state)
{
    (void)state;
    const int64_t dims[4] = { 3, 2, 5, 300 };
    const qn_array x = noise(QUERN_I64, 4, dims, 5);
    for (int set = 0; set < 16; set++) {
        int64_t axes[4], expected[3 * 2 * 5 * 300] = { 0 };
        int n = 0;
        for (int a = 0; a < 4; a++)
            if (set >> a & 1)
                axes[n++] = a;
        for (int64_t i = 0, index[4] = { 0 }; i < 9000; i++) {
            int64_t o = 0;
            for (int a = 0; a < 4; a++)
                o = set >> a & 1 ? o : o * dims[a] + index[a];
            expected[o] += (int64_t)at(&x, i);
            for (int a = 3; a >= 0 && ++index[a] == dims[a]; a--)
                index[a] = 0;
        }
        const call c = {
            QN_OP_REDUCE, 1, { x }, 2, { { .key = QN_ATTR_AXES, .n = n, .ints = axes }, INT(KIND, QN_SUM) }
        };
        const qn_array *r = eval(&c);
        assert_non_null(r);
        int64_t total = 1;
        for (int a = 0; a < r->rank; a++)
            total *= r->dims[a];
        for (int64_t i = 0; i < total; i++)
            assert_true((int64_t)at(r, i) == expected[i]);
    }
}

#define ARG(x, axis, kind, last)                              \
    {                                                         \
        QN_OP_ARG_REDUCE, 1, { x }, 3,                        \
        {                                                     \
            INT(AXIS, axis), INT(KIND, kind), INT(LAST, last) \
        }                                                     \
    }

static void extremes_and_where_they_are(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(3, 1, 3, -1, -1, 2));
    const qn_array n = floats(QUERN_F32, SHAPE(4), V(9, NaN, NaN, Inf)),
                   z = floats(QUERN_F32, SHAPE(2), V(-0.0, 0));
    const qn_array u = ints(QUERN_U64, SHAPE(2), I(1, -1)), b = ints(QUERN_BOOL, SHAPE(3), I(0, 1, 1));
    const row rows[] = {
        { "max, first", ARG(x, 1, QN_KIND_MAX, false), ints(QUERN_I64, SHAPE(2), I(0, 2)) },
        { "max, last", ARG(x, 1, QN_KIND_MAX, true), ints(QUERN_I64, SHAPE(2), I(2, 2)) },
        { "min, first", ARG(x, 1, QN_KIND_MIN, false), ints(QUERN_I64, SHAPE(2), I(1, 0)) },
        { "min, last", ARG(x, 1, QN_KIND_MIN, true), ints(QUERN_I64, SHAPE(2), I(1, 1)) },
        { "axis 0", ARG(x, 0, QN_KIND_MIN, false), ints(QUERN_I64, SHAPE(3), I(1, 1, 1)) },
        { "NaN is a maximum", ARG(n, 0, QN_KIND_MAX, false), ints(QUERN_I64, SCALAR, I(1)) },
        { "the last NaN", ARG(n, 0, QN_KIND_MAX, true), ints(QUERN_I64, SCALAR, I(2)) },
        { "NaN is a minimum", ARG(n, 0, QN_KIND_MIN, false), ints(QUERN_I64, SCALAR, I(1)) },
        { "zeros are equal", ARG(z, 0, QN_KIND_MAX, false), ints(QUERN_I64, SCALAR, I(0)) },
        { "u64", ARG(u, 0, QN_KIND_MAX, false), ints(QUERN_I64, SCALAR, I(1)) },
        { "bool", ARG(b, 0, QN_KIND_MAX, false), ints(QUERN_I64, SCALAR, I(1)) },
        { "no lines", ARG(floats(QUERN_F32, SHAPE(0, 3), EMPTY), 1, QN_KIND_MAX, false),
          ints(QUERN_I64, SHAPE(0), EMPTY) },
    };
    CHECK(rows);
}

#define SCAN(x, axis, kind, exclusive, reverse)                                                \
    {                                                                                          \
        QN_OP_CUMULATIVE, 1, { x }, 4,                                                         \
        {                                                                                      \
            INT(AXIS, axis), INT(KIND, kind), INT(EXCLUSIVE, exclusive), INT(REVERSE, reverse) \
        }                                                                                      \
    }

static void cumulative_sums(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6)),
                   n = floats(QUERN_F32, SHAPE(3), V(1, NaN, 2));
    const qn_array i = ints(QUERN_I8, SHAPE(3), I(100, 100, 100)),
                   none = floats(QUERN_F32, SHAPE(0, 2), EMPTY);
    const row rows[] = {
        { "along rows", SCAN(x, 1, QN_SUM, false, false),
          floats(QUERN_F32, SHAPE(2, 3), V(1, 3, 6, 4, 9, 15)) },
        { "along columns", SCAN(x, 0, QN_SUM, false, false),
          floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 5, 7, 9)) },
        { "exclusive", SCAN(x, 1, QN_SUM, true, false), floats(QUERN_F32, SHAPE(2, 3), V(0, 1, 3, 0, 4, 9)) },
        { "reverse", SCAN(x, 1, QN_SUM, false, true), floats(QUERN_F32, SHAPE(2, 3), V(6, 5, 3, 15, 11, 6)) },
        { "both", SCAN(x, 1, QN_PROD, true, true), floats(QUERN_F32, SHAPE(2, 3), V(6, 3, 1, 30, 6, 1)) },
        { "max", SCAN(n, 0, QN_KIND_MAX, false, false), floats(QUERN_F32, SHAPE(3), V(1, NaN, NaN)) },
        { "exclusive min", SCAN(n, 0, QN_KIND_MIN, true, false),
          floats(QUERN_F32, SHAPE(3), V(Inf, 1, NaN)) },
        { "i8 wraps", SCAN(i, 0, QN_SUM, false, false), ints(QUERN_I8, SHAPE(3), I(100, -56, 44)) },
        { "nothing", SCAN(none, 0, QN_SUM, false, false), none },
    };
    CHECK(rows);
}

/* ---- windows ---- */

typedef struct window_case {
    qn_kind kind;
    qn_dtype dtype;
    int64_t dims[3], window[3], stride[3], dilation[3], low[3], high[3];
} window_case;

static const window_case window_cases[] = {
    { QN_KIND_MAX, QUERN_F32, { 2, 7, 9 }, { 1, 3, 3 }, { 1, 2, 2 }, { 1, 1, 1 }, { 0, 1, 1 }, { 0, 1, 1 } },
    { QN_SUM, QUERN_F64, { 2, 7, 9 }, { 1, 2, 3 }, { 1, 1, 2 }, { 1, 2, 3 }, { 0, 0, 4 }, { 0, 3, 2 } },
    { QN_KIND_MIN, QUERN_I32, { 3, 4, 5 }, { 2, 2, 2 }, { 1, 2, 1 }, { 1, 1, 2 }, { 1, 0, 0 }, { 0, 1, 3 } },
    { QN_PROD, QUERN_I16, { 3, 4, 5 }, { 3, 1, 2 }, { 2, 2, 2 }, { 1, 1, 1 }, { 2, 0, 0 }, { 2, 0, 1 } },
    { QN_SUM, QUERN_U8, { 1, 6, 700 }, { 1, 2, 5 }, { 1, 4, 1 }, { 1, 1, 1 }, { 0, 0, 2 }, { 0, 0, 2 } },
    { QN_KIND_MAX,
      QUERN_F32,
      { 2, 6, 6 },
      { 1, 2, 2 },
      { 1, 2, 2 },
      { 1, 1, 1 },
      { 0, -1, -2 },
      { 0, 0, -1 } },
    { QN_KIND_MAX, QUERN_I8, { 2, 2, 2 }, { 1, 1, 1 }, { 1, 1, 1 }, { 1, 1, 1 }, { 0, 1, 0 }, { 0, 1, 0 } },
};

static int64_t extent(const window_case *w, int a)
{
    return (w->dims[a] + w->low[a] + w->high[a] - (w->window[a] - 1) * w->dilation[a] - 1) / w->stride[a] + 1;
}

/* Element of x under window position k at output o, or -1 in the padding. */
static int64_t under(const window_case *w, const int64_t *o, const int64_t *k)
{
    int64_t offset = 0;
    for (int a = 0; a < 3; a++) {
        const int64_t i = o[a] * w->stride[a] + k[a] * w->dilation[a] - w->low[a];
        if (i < 0 || i >= w->dims[a])
            return -1;
        offset = offset * w->dims[a] + i;
    }
    return offset;
}

static call window_call(qn_op op, const window_case *w)
{
    call c = { op,
               1,
               { noise(w->dtype, 3, w->dims, 7) },
               5,
               { { .key = QN_ATTR_WINDOW, .n = 3, .ints = w->window },
                 { .key = QN_ATTR_STRIDE, .n = 3, .ints = w->stride },
                 { .key = QN_ATTR_DILATION, .n = 3, .ints = w->dilation },
                 { .key = QN_ATTR_LOW, .n = 3, .ints = w->low },
                 { .key = QN_ATTR_HIGH, .n = 3, .ints = w->high } } };
    return c;
}

static double combine(qn_kind kind, double a, double b)
{
    return kind == QN_SUM ? a + b : kind == QN_PROD ? a * b : kind == QN_KIND_MAX ? fmax(a, b) : fmin(a, b);
}

static void windows(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof window_cases / sizeof *window_cases; n++) {
        const window_case *w = &window_cases[n];
        call c = window_call(QN_OP_REDUCE_WINDOW, w);
        c.attrs[c.n_attrs++] = (qn_attr)INT(KIND, w->kind);
        const qn_array *x = &c.operands[0];
        const qn_array r = full(w->dtype, SHAPE(extent(w, 0), extent(w, 1), extent(w, 2)), 0);
        int64_t o[3], k[3], at_r = 0;
        for (o[0] = 0; o[0] < r.dims[0]; o[0]++)
            for (o[1] = 0; o[1] < r.dims[1]; o[1]++)
                for (o[2] = 0; o[2] < r.dims[2]; o[2]++, at_r++) {
                    const bool is_float = qn_dtype_is_float(w->dtype);
                    const double bits = (double)(8 * qn_dtype_bytes(w->dtype));
                    double v = w->kind == QN_SUM        ? 0
                               : w->kind == QN_PROD     ? 1
                               : w->kind == QN_KIND_MAX ? (is_float ? -Inf : -pow(2, bits - 1))
                                                        : (is_float ? Inf : pow(2, bits - 1) - 1);
                    for (k[0] = 0; k[0] < w->window[0]; k[0]++)
                        for (k[1] = 0; k[1] < w->window[1]; k[1]++)
                            for (k[2] = 0; k[2] < w->window[2]; k[2]++)
                                if (under(w, o, k) >= 0)
                                    v = combine(w->kind, v, at(x, under(w, o, k)));
                    const qn_scalar s = is_float ? (qn_scalar){ .f = v } : (qn_scalar){ .i = (int64_t)v };
                    qn_scalar_store(w->dtype, s, (char *)r.data + (size_t)at_r * qn_dtype_bytes(w->dtype));
                }
        expect_same("reduce_window", eval(&c), &r);
    }
}

static void gradients_of_max_windows(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof window_cases / sizeof *window_cases; n++) {
        window_case w = window_cases[n];
        w.dtype = QUERN_F64;
        call c = window_call(QN_OP_SELECT_AND_SCATTER, &w);
        const qn_array *x = &c.operands[0];
        const qn_array g = noise(QUERN_F64, SHAPE(extent(&w, 0), extent(&w, 1), extent(&w, 2)), 9);
        const qn_array r = full(QUERN_F64, 3, w.dims, 0);
        c.operands[c.n_operands++] = g;
        int64_t o[3], k[3], at_g = 0;
        for (o[0] = 0; o[0] < g.dims[0]; o[0]++)
            for (o[1] = 0; o[1] < g.dims[1]; o[1]++)
                for (o[2] = 0; o[2] < g.dims[2]; o[2]++, at_g++) {
                    int64_t best = -1;
                    for (k[0] = 0; k[0] < w.window[0]; k[0]++)
                        for (k[1] = 0; k[1] < w.window[1]; k[1]++)
                            for (k[2] = 0; k[2] < w.window[2]; k[2]++) {
                                const int64_t i = under(&w, o, k);
                                if (i >= 0 && (best < 0 || at(x, i) > at(x, best)))
                                    best = i;
                            }
                    if (best >= 0)
                        ((double *)r.data)[best] += at(&g, at_g);
                }
        expect_same("select_and_scatter", eval(&c), &r);
    }
    const qn_array ties = floats(QUERN_F32, SHAPE(4), V(5, 5, NaN, 1)),
                   g = floats(QUERN_F32, SHAPE(2), V(1, 2));
    const row first = { "the first of equals, and NaN",
                        { QN_OP_SELECT_AND_SCATTER,
                          2,
                          { ties, g },
                          5,
                          { LIST(WINDOW, 2), LIST(STRIDE, 2), LIST(DILATION, 1), LIST(LOW, 0),
                            LIST(HIGH, 0) } },
                        floats(QUERN_F32, SHAPE(4), V(1, 0, 2, 0)) };
    check_rows(&first, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(reductions, eval_teardown),
        cmocka_unit_test_teardown(reductions_of_nothing_and_of_nan, eval_teardown),
        cmocka_unit_test_teardown(narrow_floats_accumulate_wide, eval_teardown),
        cmocka_unit_test_teardown(reductions_over_any_axes, eval_teardown),
        cmocka_unit_test_teardown(extremes_and_where_they_are, eval_teardown),
        cmocka_unit_test_teardown(cumulative_sums, eval_teardown),
        cmocka_unit_test_teardown(windows, eval_teardown),
        cmocka_unit_test_teardown(gradients_of_max_windows, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
