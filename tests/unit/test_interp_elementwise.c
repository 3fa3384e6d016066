/* Element-wise ops of the reference interpreter against values computed by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

#define N 8 /* values a row, at most */
#define MIN64 INT64_MIN
#define MAX64 INT64_MAX
#define NaN ((double)NAN)
#define Inf ((double)INFINITY)

static void check(const char *what, qn_op op, int n_operands, const qn_array *operands, int n_attrs,
                  const qn_attr *attrs, const qn_array *expected)
{
    call c = { .op = op, .n_operands = n_operands, .n_attrs = n_attrs };
    for (int i = 0; i < n_operands; i++)
        c.operands[i] = operands[i];
    for (int i = 0; i < n_attrs; i++)
        c.attrs[i] = attrs[i];
    expect_same(what, eval(&c), expected);
}

/* ---- floats ---- */

typedef struct unary_row {
    qn_op op;
    qn_dtype dtype;
    int n;
    double x[N], y[N];
} unary_row;

/* Results are rounded to the dtype when they are stored as expectations. */
static const unary_row unary_rows[] = {
    { QN_OP_NEG, QUERN_F32, 5, { 1.5, 0, -0.0, Inf, NaN }, { -1.5, -0.0, 0, -Inf, NaN } },
    { QN_OP_ABS, QUERN_F64, 4, { -2, -0.0, -Inf, NaN }, { 2, 0, Inf, NaN } },
    { QN_OP_SIGN, QUERN_F32, 6, { -3, 3, 0, -0.0, Inf, NaN }, { -1, 1, 0, -0.0, 1, NaN } },
    { QN_OP_FLOOR, QUERN_F32, 5, { 1.5, -1.5, -0.5, -0.0, Inf }, { 1, -2, -1, -0.0, Inf } },
    { QN_OP_CEIL, QUERN_F32, 4, { 1.5, -1.5, -0.5, NaN }, { 2, -1, -0.0, NaN } },
    { QN_OP_ROUND,
      QUERN_F32,
      8,
      { 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 8388609, -Inf },
      { 0, 2, 2, -0.0, -2, 0, 8388609, -Inf } },
    { QN_OP_TRUNC, QUERN_F16, 4, { 1.75, -1.75, -0.25, 2048 }, { 1, -1, -0.0, 2048 } },
    { QN_OP_SQRT, QUERN_F32, 6, { 4, 2, -0.0, -1, Inf, NaN }, { 2, 1.41421354F, -0.0, NaN, Inf, NaN } },
    { QN_OP_SQRT, QUERN_BF16, 2, { 2, 3 }, { 1.4140625, 1.734375 } },
    { QN_OP_RSQRT, QUERN_F32, 5, { 4, 0, -0.0, -1, Inf }, { 0.5, Inf, -Inf, NaN, 0 } },
    { QN_OP_EXP,
      QUERN_F32,
      7,
      { 0, 1, -Inf, Inf, 88.8, -104, NaN },
      { 1, 2.71828182845904523536, 0, Inf, Inf, 0, NaN } },
    { QN_OP_EXP, QUERN_F16, 3, { 11, 12, -20 }, { 59874.1417, Inf, 0 } },
    { QN_OP_EXPM1, QUERN_F64, 4, { 0, -0.0, 1e-20, -Inf }, { 0, -0.0, 1e-20, -1 } },
    { QN_OP_LOG,
      QUERN_F32,
      6,
      { 1, 0, -0.0, -1, Inf, 2 },
      { 0, -Inf, -Inf, NaN, Inf, 0.69314718055994530942 } },
    { QN_OP_LOG1P, QUERN_F32, 5, { 0, -0.0, -1, -2, 1e-10F }, { 0, -0.0, -Inf, NaN, 1e-10F } },
    { QN_OP_SIN, QUERN_F32, 4, { 0, -0.0, Inf, 1 }, { 0, -0.0, NaN, 0.84147098480789650665 } },
    { QN_OP_COS, QUERN_F32, 3, { 0, Inf, 1 }, { 1, NaN, 0.54030230586813971740 } },
    { QN_OP_TAN, QUERN_F32, 2, { -0.0, 1 }, { -0.0, 1.55740772465490223051 } },
    { QN_OP_ASIN, QUERN_F32, 3, { 1, 2, -0.0 }, { 1.57079632679489661923, NaN, -0.0 } },
    { QN_OP_ACOS, QUERN_F32, 3, { 1, -1, 2 }, { 0, 3.14159265358979323846, NaN } },
    { QN_OP_ATAN,
      QUERN_F32,
      3,
      { Inf, -Inf, -0.0 },
      { 1.57079632679489661923, -1.57079632679489661923, -0.0 } },
    { QN_OP_SINH, QUERN_F32, 3, { -0.0, 1, 100 }, { -0.0, 1.17520119364380145688, Inf } },
    { QN_OP_COSH, QUERN_F32, 3, { 0, 1, -Inf }, { 1, 1.54308063481524377848, Inf } },
    { QN_OP_TANH, QUERN_F32, 4, { -0.0, 20, -Inf, NaN }, { -0.0, 1, -1, NaN } },
    { QN_OP_ASINH, QUERN_F32, 3, { -0.0, 1, -Inf }, { -0.0, 0.88137358701954302523, -Inf } },
    { QN_OP_ACOSH, QUERN_F32, 3, { 1, 0.5, 2 }, { 0, NaN, 1.31695789692481670862 } },
    { QN_OP_ATANH, QUERN_F32, 4, { 1, -1, 2, -0.0 }, { Inf, -Inf, NaN, -0.0 } },
    { QN_OP_ERF, QUERN_F32, 4, { -0.0, 1, Inf, -Inf }, { -0.0, 0.84270079294971486934, 1, -1 } },
    { QN_OP_LOGISTIC, QUERN_F64, 5, { 0, Inf, -Inf, -710, NaN }, { 0.5, 1, 0, 4.47628622567513e-309, NaN } },
    { QN_OP_LOGISTIC,
      QUERN_F32,
      3,
      { 100, -100, 1 },
      { 1, 3.72007597602083562e-44, 0.73105857863000487926 } },
    { QN_OP_STOP_GRADIENT, QUERN_F32, 3, { 1, -0.0, NaN }, { 1, -0.0, NaN } },
};

static void floats_with_one_operand(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof unary_rows / sizeof *unary_rows; i++) {
        const unary_row *r = &unary_rows[i];
        const qn_array x = floats(r->dtype, SHAPE(r->n), r->x), y = floats(r->dtype, SHAPE(r->n), r->y);
        check(qn_ops[r->op].name, r->op, 1, &x, 0, NULL, &y);
    }
}

typedef struct binary_row {
    qn_op op;
    qn_dtype dtype;
    int n;
    double x[N], y[N], r[N];
} binary_row;

static const binary_row binary_rows[] = {
    { QN_OP_ADD, QUERN_F32, 4, { 1, Inf, -0.0, 16777216 }, { 2, -Inf, -0.0, 1 }, { 3, NaN, -0.0, 16777216 } },
    { QN_OP_ADD, QUERN_F16, 3, { 2048, 65504, 65504 }, { 1, 15, 16 }, { 2048, 65504, Inf } },
    { QN_OP_ADD, QUERN_BF16, 2, { 256, 256 }, { 1, 3 }, { 256, 260 } },
    { QN_OP_SUB, QUERN_F64, 3, { 1, Inf, 0 }, { 3, Inf, 0 }, { -2, NaN, 0 } },
    { QN_OP_MUL,
      QUERN_F32,
      5,
      { 3, 0, 0, 1e-30F, 1e30F },
      { -2, -1, Inf, 1e-30F, 1e30F },
      { -6, -0.0, NaN, 0, Inf } },
    { QN_OP_DIV,
      QUERN_F32,
      5,
      { 1, 1, 0, -1, 1 },
      { 3, 0, 0, 0, -Inf },
      { 0.333333343F, Inf, NaN, -Inf, -0.0 } },
    { QN_OP_REM,
      QUERN_F32,
      6,
      { 5.5, -5.5, 5, Inf, 1, -4 },
      { 2, 2, 0, 2, Inf, 2 },
      { 1.5, -1.5, NaN, NaN, 1, -0.0 } },
    { QN_OP_POW,
      QUERN_F32,
      7,
      { 2, 0, -1, 1, -8, 0, NaN },
      { 10, 0, Inf, NaN, 1.0 / 3, -1, 0 },
      { 1024, 1, 1, 1, NaN, Inf, 1 } },
    { QN_OP_ATAN2,
      QUERN_F32,
      4,
      { 0, -0.0, 1, 0 },
      { -1, -1, 0, 1 },
      { 3.14159265358979323846, -3.14159265358979323846, 1.57079632679489661923, 0 } },
    { QN_OP_MAX, QUERN_F32, 5, { 1, NaN, 1, -Inf, 3 }, { 2, 1, NaN, -3, 3 }, { 2, NaN, NaN, -3, 3 } },
    { QN_OP_MIN, QUERN_F32, 5, { 1, NaN, 1, Inf, 3 }, { 2, 1, NaN, -3, 3 }, { 1, NaN, NaN, -3, 3 } },
};

static void floats_with_two_operands(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof binary_rows / sizeof *binary_rows; i++) {
        const binary_row *r = &binary_rows[i];
        const qn_array xs[] = { floats(r->dtype, SHAPE(r->n), r->x), floats(r->dtype, SHAPE(r->n), r->y) };
        const qn_array y = floats(r->dtype, SHAPE(r->n), r->r);
        check(qn_ops[r->op].name, r->op, 2, xs, 0, NULL, &y);
    }
}

/* Against float arithmetic of the machine, which is correctly rounded by itself: mostly where double would round twice
 * if it had fewer bits. */
static void narrow_arithmetic_is_correctly_rounded(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    const qn_array x = noise(QUERN_F32, SHAPE(COUNT), 1), y = noise(QUERN_F32, SHAPE(COUNT), 2);
    static const qn_op ops[] = { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL, QN_OP_DIV };
    const float *a = x.data, *b = y.data;
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
        qn_array expected = full(QUERN_F32, SHAPE(COUNT), 0);
        for (int i = 0; i < COUNT; i++)
            ((float *)expected.data)[i] = k == 0   ? a[i] + b[i]
                                          : k == 1 ? a[i] - b[i]
                                          : k == 2 ? a[i] * b[i]
                                                   : a[i] / b[i];
        check(qn_ops[ops[k]].name, ops[k], 2, (qn_array[]){ x, y }, 0, NULL, &expected);
    }
}

/* ---- integers ---- */

typedef struct int_row {
    qn_op op;
    qn_dtype dtype;
    int n;
    int64_t x[N], y[N], r[N];
} int_row;

static const int_row int_rows[] = {
    { QN_OP_ADD, QUERN_I8, 3, { 127, -128, 5 }, { 1, -1, -6 }, { -128, 127, -1 } },
    { QN_OP_ADD, QUERN_I64, 2, { MAX64, MIN64 }, { 1, -1 }, { MIN64, MAX64 } },
    { QN_OP_SUB, QUERN_U8, 2, { 0, 200 }, { 1, 100 }, { 255, 100 } },
    { QN_OP_SUB, QUERN_I64, 1, { MIN64 }, { 1 }, { MAX64 } },
    { QN_OP_MUL, QUERN_I32, 2, { 65536, -7 }, { 65536, 6 }, { 0, -42 } },
    { QN_OP_MUL, QUERN_I64, 2, { MIN64, MAX64 }, { -1, 2 }, { MIN64, -2 } },
    { QN_OP_MUL, QUERN_U16, 1, { 65535 }, { 65535 }, { 1 } },
    { QN_OP_DIV,
      QUERN_I8,
      6,
      { 7, -7, 7, -128, 5, -128 },
      { 2, 2, -2, -1, 0, 0 },
      { 3, -3, -3, -128, 0, 0 } },
    { QN_OP_DIV, QUERN_I64, 4, { MIN64, MIN64, 1, MIN64 }, { -1, 0, MIN64, 2 }, { MIN64, 0, 0, MIN64 / 2 } },
    { QN_OP_DIV, QUERN_U64, 4, { -1, -1, 5, MIN64 }, { 2, 0, -1, 3 }, { MAX64, 0, 0, 3074457345618258602 } },
    { QN_OP_DIV, QUERN_U8, 2, { 255, 255 }, { 16, 0 }, { 15, 0 } },
    { QN_OP_REM, QUERN_I32, 5, { 7, -7, 7, INT32_MIN, 9 }, { 3, 3, -3, -1, 0 }, { 1, -1, 1, 0, 0 } },
    { QN_OP_REM, QUERN_I64, 2, { MIN64, MIN64 }, { -1, 0 }, { 0, 0 } },
    { QN_OP_REM, QUERN_U64, 2, { -1, -1 }, { 10, 0 }, { 5, 0 } },
    { QN_OP_POW,
      QUERN_I32,
      8,
      { 3, -2, 2, 1, -1, -1, 0, 2 },
      { 4, 3, -1, -5, -3, -4, -1, 32 },
      { 81, -8, 0, 1, -1, 1, 0, 0 } },
    { QN_OP_POW, QUERN_I64, 3, { 0, 3, -1 }, { 0, 41, MIN64 }, { 1, -420491770248316829, 1 } },
    { QN_OP_POW, QUERN_U8, 3, { 2, 3, 255 }, { 7, 5, 255 }, { 128, 243, 255 } },
    { QN_OP_MAX, QUERN_I8, 2, { -1, 5 }, { 1, -5 }, { 1, 5 } },
    { QN_OP_MAX, QUERN_U64, 2, { -1, MIN64 }, { 1, MAX64 }, { -1, MIN64 } },
    { QN_OP_MIN, QUERN_U64, 2, { -1, MIN64 }, { 1, MAX64 }, { 1, MAX64 } },
    { QN_OP_MIN, QUERN_I64, 1, { -1 }, { 1 }, { -1 } },
    { QN_OP_MAX, QUERN_BOOL, 4, { 0, 0, 1, 1 }, { 0, 1, 0, 1 }, { 0, 1, 1, 1 } },
    { QN_OP_MIN, QUERN_BOOL, 4, { 0, 0, 1, 1 }, { 0, 1, 0, 1 }, { 0, 0, 0, 1 } },
    { QN_OP_AND, QUERN_U8, 1, { 0xf0 }, { 0x3c }, { 0x30 } },
    { QN_OP_OR, QUERN_I8, 1, { -128 }, { 1 }, { -127 } },
    { QN_OP_XOR, QUERN_I64, 1, { -1 }, { MAX64 }, { MIN64 } },
    { QN_OP_XOR, QUERN_BOOL, 4, { 0, 0, 1, 1 }, { 0, 1, 0, 1 }, { 0, 1, 1, 0 } },
    { QN_OP_SHIFT_LEFT, QUERN_I8, 5, { 1, 1, 3, 1, -1 }, { 7, 8, 6, -1, 1 }, { -128, 0, -64, 0, -2 } },
    { QN_OP_SHIFT_LEFT, QUERN_U64, 3, { 1, 1, -1 }, { 63, 64, 1 }, { MIN64, 0, -2 } },
    { QN_OP_SHIFT_LEFT, QUERN_I64, 2, { -1, 1 }, { 63, MIN64 }, { MIN64, 0 } },
    { QN_OP_SHIFT_RIGHT,
      QUERN_I8,
      5,
      { -128, -128, 127, 127, -1 },
      { 7, 8, 8, 3, -1 },
      { -1, -1, 0, 15, -1 } },
    { QN_OP_SHIFT_RIGHT, QUERN_U8, 3, { 255, 255, 128 }, { 4, 8, 7 }, { 15, 0, 1 } },
    { QN_OP_SHIFT_RIGHT, QUERN_U64, 3, { -1, -1, MIN64 }, { 63, 64, 62 }, { 1, 0, 2 } },
    { QN_OP_SHIFT_RIGHT, QUERN_I64, 3, { MIN64, MIN64, 5 }, { 63, 100, 64 }, { -1, -1, 0 } },
};

static void integers_with_two_operands(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof int_rows / sizeof *int_rows; i++) {
        const int_row *r = &int_rows[i];
        const qn_array xs[] = { ints(r->dtype, SHAPE(r->n), r->x), ints(r->dtype, SHAPE(r->n), r->y) };
        const qn_array y = ints(r->dtype, SHAPE(r->n), r->r);
        check(qn_ops[r->op].name, r->op, 2, xs, 0, NULL, &y);
    }
}

static void integers_with_one_operand(void **state)
{
    (void)state;
    static const int_row rows[] = {
        /* x -> r */
        { QN_OP_NEG, QUERN_I8, 3, { -128, 127, 0 }, { 0 }, { -128, -127, 0 } },
        { QN_OP_NEG, QUERN_I64, 1, { MIN64 }, { 0 }, { MIN64 } },
        { QN_OP_NEG, QUERN_U16, 2, { 1, 0 }, { 0 }, { 65535, 0 } },
        { QN_OP_ABS, QUERN_I16, 3, { -32768, -5, 5 }, { 0 }, { -32768, 5, 5 } },
        { QN_OP_ABS, QUERN_I64, 2, { MIN64, -1 }, { 0 }, { MIN64, 1 } },
        { QN_OP_ABS, QUERN_U64, 1, { -1 }, { 0 }, { -1 } },
        { QN_OP_SIGN, QUERN_I32, 3, { -9, 0, 9 }, { 0 }, { -1, 0, 1 } },
        { QN_OP_SIGN, QUERN_U64, 2, { -1, 0 }, { 0 }, { 1, 0 } },
        { QN_OP_NOT, QUERN_BOOL, 2, { 0, 1 }, { 0 }, { 1, 0 } },
        { QN_OP_NOT, QUERN_U8, 2, { 0, 0xf0 }, { 0 }, { 255, 15 } },
        { QN_OP_NOT, QUERN_I64, 1, { 0 }, { 0 }, { -1 } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const int_row *r = &rows[i];
        const qn_array x = ints(r->dtype, SHAPE(r->n), r->x), y = ints(r->dtype, SHAPE(r->n), r->r);
        check(qn_ops[r->op].name, r->op, 1, &x, 0, NULL, &y);
    }
}

/* ---- tests and choices ---- */

static void comparisons(void **state)
{
    (void)state;
    static const struct {
        double x, y;
        int holds[6]; /* eq ne lt le gt ge */
    } rows[] = {
        { 1, 2, { 0, 1, 1, 1, 0, 0 } },     { 2, 2, { 1, 0, 0, 1, 0, 1 } },
        { 3, 2, { 0, 1, 0, 0, 1, 1 } },     { NaN, 1, { 0, 1, 0, 0, 0, 0 } },
        { NaN, NaN, { 0, 1, 0, 0, 0, 0 } }, { -0.0, 0, { 1, 0, 0, 1, 0, 1 } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int d = 0; d < 6; d++) {
            const qn_array xs[] = { floats(QUERN_F32, SCALAR, V(rows[i].x)),
                                    floats(QUERN_F32, SCALAR, V(rows[i].y)) };
            const qn_array r = ints(QUERN_BOOL, SCALAR, I(rows[i].holds[d]));
            check(qn_direction_names[d], QN_OP_COMPARE, 2, xs, 1, &(qn_attr)INT(DIRECTION, d), &r);
        }
    const qn_array u[] = { ints(QUERN_U64, SHAPE(2), I(-1, 1)), ints(QUERN_U64, SHAPE(2), I(1, -1)) };
    const qn_array s[] = { ints(QUERN_I64, SHAPE(2), I(-1, 1)), ints(QUERN_I64, SHAPE(2), I(1, -1)) };
    const qn_array yes_no = ints(QUERN_BOOL, SHAPE(2), I(1, 0)), no_yes = ints(QUERN_BOOL, SHAPE(2), I(0, 1));
    check("unsigned", QN_OP_COMPARE, 2, u, 1, &(qn_attr)INT(DIRECTION, QN_GT), &yes_no);
    check("signed", QN_OP_COMPARE, 2, s, 1, &(qn_attr)INT(DIRECTION, QN_GT), &no_yes);
}

static void classes_of_floats(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F16, SHAPE(4), V(1, NaN, Inf, -Inf));
    const qn_array nan = ints(QUERN_BOOL, SHAPE(4), I(0, 1, 0, 0)),
                   inf = ints(QUERN_BOOL, SHAPE(4), I(0, 0, 1, 1));
    check("is_nan", QN_OP_IS_NAN, 1, &x, 0, NULL, &nan);
    check("is_inf", QN_OP_IS_INF, 1, &x, 0, NULL, &inf);
}

static void select_chooses_bits(void **state)
{
    (void)state;
    static const qn_dtype dtypes[] = { QUERN_BOOL, QUERN_I8, QUERN_BF16, QUERN_F32, QUERN_U64 };
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        const qn_array xs[] = { ints(QUERN_BOOL, SHAPE(3), I(1, 0, 1)),
                                floats(dtypes[i], SHAPE(3), V(1, 1, 0)),
                                floats(dtypes[i], SHAPE(3), V(0, 0, 1)) };
        const qn_array r = floats(dtypes[i], SHAPE(3), V(1, 0, 0));
        check("select", QN_OP_SELECT, 3, xs, 0, NULL, &r);
    }
}

/* ---- conversions ---- */

typedef struct convert_row {
    qn_dtype from, to;
    double x[N];
    int n;
    int64_t r[N];
} convert_row;

static void floats_to_integers_saturate(void **state)
{
    (void)state;
    static const convert_row rows[] = {
        { QUERN_F32,
          QUERN_I8,
          { 1.9, -1.9, 200, -200, NaN, Inf, -Inf, -128.5 },
          8,
          { 1, -1, 127, -128, 0, 127, -128, -128 } },
        { QUERN_F32,
          QUERN_U8,
          { 1.9, -1.9, 300, 255.5, NaN, Inf, -Inf, -0.5 },
          8,
          { 1, 0, 255, 255, 0, 255, 0, 0 } },
        { QUERN_F64,
          QUERN_I32,
          { 2147483647.5, -2147483648.9, 2147483648, 1e300 },
          4,
          { INT32_MAX, INT32_MIN, INT32_MAX, INT32_MAX } },
        { QUERN_F64, QUERN_U32, { 4294967295.9, 4294967296, -1 }, 3, { UINT32_MAX, UINT32_MAX, 0 } },
        { QUERN_F32,
          QUERN_I64,
          { 9223372036854775808.0, -9223372036854775808.0, 1e30, -1e30, NaN },
          5,
          { MAX64, MIN64, MAX64, MIN64, 0 } },
        { QUERN_F64,
          QUERN_U64,
          { 9223372036854775808.0, 18446744073709551616.0, -1, 18446744073709549568.0 },
          4,
          { MIN64, -1, 0, -2048 } },
        { QUERN_F16, QUERN_I16, { 65504, -65504, 0.99 }, 3, { 32767, -32768, 0 } },
        { QUERN_F32, QUERN_BOOL, { 0, -0.0, 0.1, NaN, -Inf }, 5, { 0, 0, 1, 1, 1 } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const convert_row *r = &rows[i];
        const qn_array x = floats(r->from, SHAPE(r->n), r->x), y = ints(r->to, SHAPE(r->n), r->r);
        check(qn_dtype_name(r->to), QN_OP_CONVERT, 1, &x, 1, &(qn_attr)INT(DTYPE, r->to), &y);
    }
}

static void integers_to_integers_wrap(void **state)
{
    (void)state;
    static const struct {
        qn_dtype from, to;
        int64_t x, r;
    } rows[] = {
        { QUERN_I32, QUERN_I8, 300, 44 },   { QUERN_I32, QUERN_U8, -1, 255 },
        { QUERN_I8, QUERN_U64, -1, -1 },    { QUERN_U8, QUERN_I64, 255, 255 },
        { QUERN_I64, QUERN_I32, MIN64, 0 }, { QUERN_U64, QUERN_I64, -1, -1 },
        { QUERN_I64, QUERN_BOOL, 256, 1 },  { QUERN_U8, QUERN_BOOL, 0, 0 },
        { QUERN_BOOL, QUERN_I32, 1, 1 },    { QUERN_U32, QUERN_I64, -1, UINT32_MAX },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qn_array x = ints(rows[i].from, SCALAR, I(rows[i].x)),
                       y = ints(rows[i].to, SCALAR, I(rows[i].r));
        check(qn_dtype_name(rows[i].to), QN_OP_CONVERT, 1, &x, 1, &(qn_attr)INT(DTYPE, rows[i].to), &y);
    }
}

/* Also where a rounding to double in between would hit a tie that the integer does not. */
static void integers_to_floats_round_once(void **state)
{
    (void)state;
    const int64_t one = 1;
    const struct {
        qn_dtype from, to;
        int64_t x;
        double r;
    } rows[] = {
        { QUERN_I32, QUERN_F32, 16777217, 16777216 },
        { QUERN_I64, QUERN_F64, MAX64, 0x1p63 },
        { QUERN_U64, QUERN_F64, -1, 0x1p64 },
        { QUERN_U64, QUERN_F32, MIN64, 0x1p63 },
        { QUERN_I64, QUERN_F32, MIN64, -0x1p63 },
        { QUERN_I64, QUERN_F32, (one << 60) + (one << 36) + 1, 0x1p60 + 0x1p37 },
        { QUERN_I64, QUERN_F32, -((one << 60) + (one << 36) + 1), -0x1p60 - 0x1p37 },
        { QUERN_I64, QUERN_F32, (one << 60) + (one << 36), 0x1p60 },
        { QUERN_I64, QUERN_BF16, (one << 60) + (one << 52) + 1, 0x1p60 + 0x1p53 },
        { QUERN_I64, QUERN_F16, 65519, 65504 },
        { QUERN_I64, QUERN_F16, 65520, Inf },
        { QUERN_I64, QUERN_F16, MIN64, -Inf },
        { QUERN_BOOL, QUERN_F16, 1, 1 },
        { QUERN_I8, QUERN_BF16, -128, -128 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qn_array x = ints(rows[i].from, SCALAR, I(rows[i].x)),
                       y = floats(rows[i].to, SCALAR, V(rows[i].r));
        check(qn_dtype_name(rows[i].to), QN_OP_CONVERT, 1, &x, 1, &(qn_attr)INT(DTYPE, rows[i].to), &y);
    }
}

static void floats_to_floats_round_once(void **state)
{
    (void)state;
    const double above = 1 + 0x1p-11 + 0x1p-40; /* a tie in f16 once it went through f32 */
    const qn_array x = floats(QUERN_F64, SHAPE(4), V(above, 1e39, -0.0, NaN));
    const qn_array h = floats(QUERN_F16, SHAPE(4), V(1 + 0x1p-10, Inf, -0.0, NaN));
    const qn_array f = floats(QUERN_F32, SHAPE(4), V(1 + 0x1p-11, Inf, -0.0, NaN));
    check("f64 to f16", QN_OP_CONVERT, 1, &x, 1, &(qn_attr)INT(DTYPE, QUERN_F16), &h);
    check("f64 to f32", QN_OP_CONVERT, 1, &x, 1, &(qn_attr)INT(DTYPE, QUERN_F32), &f);
}

static void bitcasts_keep_bits(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(3), V(1, -0.0, Inf));
    const qn_array bits = ints(QUERN_U32, SHAPE(3), I(0x3f800000, 0x80000000, 0x7f800000));
    check("bits of f32", QN_OP_BITCAST, 1, &x, 1, &(qn_attr)INT(DTYPE, QUERN_U32), &bits);
    check("f32 of bits", QN_OP_BITCAST, 1, &bits, 1, &(qn_attr)INT(DTYPE, QUERN_F32), &x);
    const qn_array h = ints(QUERN_U16, SCALAR, I(0x3c00)), one = floats(QUERN_F16, SCALAR, V(1));
    check("f16 of bits", QN_OP_BITCAST, 1, &h, 1, &(qn_attr)INT(DTYPE, QUERN_F16), &one);
}

/* ---- shapes ---- */

static void any_number_of_elements(void **state)
{
    (void)state;
    const qn_array none = floats(QUERN_F32, SHAPE(3, 0, 2), EMPTY), scalar = floats(QUERN_F32, SCALAR, V(3));
    const qn_array nine = floats(QUERN_F32, SCALAR, V(9));
    check("empty", QN_OP_MUL, 2, (qn_array[]){ none, none }, 0, NULL, &none);
    check("scalar", QN_OP_MUL, 2, (qn_array[]){ scalar, scalar }, 0, NULL, &nine);
    /* Around the size of a chunk. */
    for (int n = 510; n < 515; n++) {
        qn_array x = full(QUERN_I32, SHAPE(n), 0), y = full(QUERN_I32, SHAPE(n), 0);
        for (int i = 0; i < n; i++) {
            ((int32_t *)x.data)[i] = i;
            ((int32_t *)y.data)[i] = -i;
        }
        check("chunks", QN_OP_NEG, 1, &x, 0, NULL, &y);
    }
}

static void leaves(void **state)
{
    (void)state;
    const qn_array rows = ints(QUERN_I16, SHAPE(2, 3), I(0, 0, 0, 1, 1, 1));
    const qn_array columns = floats(QUERN_F16, SHAPE(2, 3), V(0, 1, 2, 0, 1, 2));
    check("rows", QN_OP_IOTA, 0, NULL, 3,
          (qn_attr[]){ INT(AXIS, 0), LIST(DIMS, 2, 3), INT(DTYPE, QUERN_I16) }, &rows);
    check("columns", QN_OP_IOTA, 0, NULL, 3,
          (qn_attr[]){ INT(AXIS, 1), LIST(DIMS, 2, 3), INT(DTYPE, QUERN_F16) }, &columns);
    const qn_array none = floats(QUERN_U8, SHAPE(0), EMPTY), seven = ints(QUERN_I32, SCALAR, I(7));
    check("empty iota", QN_OP_IOTA, 0, NULL, 3,
          (qn_attr[]){ INT(AXIS, 0), LIST(DIMS, 0), INT(DTYPE, QUERN_U8) }, &none);
    check("dim_value", QN_OP_DIM_VALUE, 0, NULL, 2, (qn_attr[]){ LIST(DIMS, 7), INT(DTYPE, QUERN_I32) },
          &seven);
    int64_t wrapped[300];
    for (int i = 0; i < 300; i++)
        wrapped[i] = i % 256;
    const qn_array u8 = ints(QUERN_U8, SHAPE(300), wrapped);
    check("iota wraps", QN_OP_IOTA, 0, NULL, 3,
          (qn_attr[]){ INT(AXIS, 0), LIST(DIMS, 300), INT(DTYPE, QUERN_U8) }, &u8);
}

/* Contents of mapped files lie where they lie. */
static void constants_may_be_unaligned(void **state)
{
    (void)state;
    static unsigned char file[13];
    const float values[] = { 1, -2, 3 };
    memcpy(file + 1, values, sizeof values);
    qn_tensor *tensor = qn_tensor_new(eval_module(), QUERN_F32, 1, (int64_t[]){ 3 }, NULL);
    tensor->data = file + 1;
    qn_graph *graph = qn_function_new(eval_module(), "constant");
    qn_node *c = add_node(graph, QN_OP_CONSTANT, 0, NULL, 1,
                          &(qn_attr){ .key = QN_ATTR_VALUE, .tensor = tensor }, 0, NULL);
    qn_node *n = add_node(graph, QN_OP_ABS, 1, (qn_value *[]){ c->results }, 0, NULL, 0, NULL);
    qn_graph_add_output(graph, n->results, NULL, -1);
    const qn_array expected = floats(QUERN_F32, SHAPE(3), V(1, 2, 3));
    expect_same("abs of a constant", eval_graph(graph, NULL), &expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(floats_with_one_operand, eval_teardown),
        cmocka_unit_test_teardown(floats_with_two_operands, eval_teardown),
        cmocka_unit_test_teardown(narrow_arithmetic_is_correctly_rounded, eval_teardown),
        cmocka_unit_test_teardown(integers_with_two_operands, eval_teardown),
        cmocka_unit_test_teardown(integers_with_one_operand, eval_teardown),
        cmocka_unit_test_teardown(comparisons, eval_teardown),
        cmocka_unit_test_teardown(classes_of_floats, eval_teardown),
        cmocka_unit_test_teardown(select_chooses_bits, eval_teardown),
        cmocka_unit_test_teardown(floats_to_integers_saturate, eval_teardown),
        cmocka_unit_test_teardown(integers_to_integers_wrap, eval_teardown),
        cmocka_unit_test_teardown(integers_to_floats_round_once, eval_teardown),
        cmocka_unit_test_teardown(floats_to_floats_round_once, eval_teardown),
        cmocka_unit_test_teardown(bitcasts_keep_bits, eval_teardown),
        cmocka_unit_test_teardown(any_number_of_elements, eval_teardown),
        cmocka_unit_test_teardown(leaves, eval_teardown),
        cmocka_unit_test_teardown(constants_may_be_unaligned, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
