/* Elements are computed in two places: in the reference interpreter, and in ir/kernel_eval.c, by which kernels fold and
 * are interpreted. Both have to agree, to the last bit, on every op, data type and edge of its range.
 * (Kernels convert large 64-bit integers to bf16 by way of f32, as machines do; the reference rounds once.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ir/kernel_eval.h"
#include "tests/support/eval.h"

static const qn_dtype dtypes[] = { QUERN_BOOL, QUERN_I8,  QUERN_I16, QUERN_I32, QUERN_I64,
                                   QUERN_U8,   QUERN_U16, QUERN_U32, QUERN_U64, QUERN_F16,
                                   QUERN_BF16, QUERN_F32, QUERN_F64 };
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes, N_VALUES = 40 };

/* The edges of the dtype's range, small numbers, and some at random. */
static qn_array values_of(qn_dtype dtype)
{
    static const double edges[] = { 0,      -0.0,     1,         -1,     0.5,     1.5,     2.5,
                                    -2.5,   INFINITY, -INFINITY, NAN,    65504,   65519.9, 65520,
                                    1e-8,   5.9e-8,   1e-45,     1e38,   3.4e38,  1e300,   5e-324,
                                    127.5,  -129,     255.6,     -0.999, 32768,   -32769,  65536,
                                    0x1p31, -0x1p31,  0x1p32,    0x1p63, -0x1p63, 0x1p64 };
    static const uint64_t bits[] = { 0,  1,  2,  3,   5,   7,   8,   15,     16,     31,    32,
                                     33, 63, 64, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff };
    const qn_array a = full(dtype, SHAPE(N_VALUES), 0);
    uint64_t s = 77;
    for (size_t i = 0; i < N_VALUES; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        qn_scalar v = { .i = (int64_t)(i < 21 ? bits[i] : i < 32 ? ~bits[i - 21] : (s >> (s >> 58))) };
        if (i >= 32 && i < 34)
            v.i = i == 32 ? INT64_MIN : INT64_MAX;
        if (qn_dtype_is_float(dtype))
            v.f = i < sizeof edges / sizeof *edges
                      ? edges[i]
                      : ((double)(s >> 12) / 0x1p51 - 1) * pow(10, (double)(i % 7));
        qn_scalar_store(dtype, v, (char *)a.data + i * qn_dtype_bytes(dtype));
    }
    return a;
}

static qn_scalar value(const qn_array *a, int64_t i)
{
    return qn_scalar_load(a->dtype, (char *)a->data + (size_t)i * qn_dtype_bytes(a->dtype));
}

static void expect_equal(const char *what, qn_dtype from, const qn_array *r, int64_t i, qn_scalar expected)
{
    const qn_scalar found = value(r, i);
    if (!qn_keval_same(r->dtype, found, expected))
        fail_msg("%s of %s -> %s, case %lld: the graph gives %.17g (%lld), the kernel %.17g (%lld)", what,
                 qn_dtype_name(from), qn_dtype_name(r->dtype), (long long)i, found.f, (long long)found.i,
                 expected.f, (long long)expected.i);
}

static void unary_ops(void **state)
{
    (void)state;
    for (int d = 0; d < N_DTYPES; d++)
        for (int op = 0; op < QN_N_OPS; op++) {
            if (!qn_keval_is_unary((qn_op)op) || !qn_keval_accepts((qn_op)op, dtypes[d]) ||
                qn_op_is_composite((qn_op)op))
                continue;
            const call c = { (qn_op)op, 1, { values_of(dtypes[d]) }, 0, { INT(AXIS, 0) } };
            const qn_array *r = eval(&c);
            assert_non_null(r);
            for (int64_t i = 0; i < N_VALUES; i++)
                expect_equal(qn_ops[op].name, dtypes[d], r, i,
                             qn_keval_unary((qn_op)op, dtypes[d], value(&c.operands[0], i)));
        }
}

/* All pairs of the values, as two arrays. */
static void pairs_of(qn_dtype dtype, qn_array *x, qn_array *y)
{
    const qn_array v = values_of(dtype);
    *x = full(dtype, SHAPE(N_VALUES * N_VALUES), 0);
    *y = full(dtype, SHAPE(N_VALUES * N_VALUES), 0);
    for (int64_t i = 0; i < N_VALUES * N_VALUES; i++) {
        const size_t size = qn_dtype_bytes(dtype);
        qn_scalar_store(dtype, value(&v, i / N_VALUES), (char *)x->data + (size_t)i * size);
        qn_scalar_store(dtype, value(&v, i % N_VALUES), (char *)y->data + (size_t)i * size);
    }
}

static void binary_ops(void **state)
{
    (void)state;
    for (int d = 0; d < N_DTYPES; d++) {
        qn_array x, y;
        pairs_of(dtypes[d], &x, &y);
        for (int op = 0; op < QN_N_OPS; op++) {
            if (!qn_keval_is_binary((qn_op)op) || !qn_keval_accepts((qn_op)op, dtypes[d]))
                continue;
            const call c = { (qn_op)op, 2, { x, y }, 0, { INT(AXIS, 0) } };
            const qn_array *r = eval(&c);
            assert_non_null(r);
            for (int64_t i = 0; i < N_VALUES * N_VALUES; i++)
                expect_equal(qn_ops[op].name, dtypes[d], r, i,
                             qn_keval_binary((qn_op)op, dtypes[d], value(&x, i), value(&y, i)));
        }
        for (int direction = 0; direction < 6; direction++) {
            const call c = { QN_OP_COMPARE, 2, { x, y }, 1, { INT(DIRECTION, direction) } };
            const qn_array *r = eval(&c);
            assert_non_null(r);
            for (int64_t i = 0; i < N_VALUES * N_VALUES; i++)
                expect_equal(qn_direction_names[direction], dtypes[d], r, i,
                             (qn_scalar){ .i = qn_keval_compare((qn_direction)direction, dtypes[d],
                                                                value(&x, i), value(&y, i)) });
        }
    }
}

static void conversions(void **state)
{
    (void)state;
    for (int from = 0; from < N_DTYPES; from++)
        for (int to = 0; to < N_DTYPES; to++) {
            const call c = { QN_OP_CONVERT, 1, { values_of(dtypes[from]) }, 1, { INT(DTYPE, dtypes[to]) } };
            const qn_array *r = eval(&c);
            assert_non_null(r);
            for (int64_t i = 0; i < N_VALUES; i++)
                expect_equal("convert", dtypes[from], r, i,
                             qn_keval_convert(dtypes[from], dtypes[to], value(&c.operands[0], i)));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(unary_ops, eval_teardown),
        cmocka_unit_test_teardown(binary_ops, eval_teardown),
        cmocka_unit_test_teardown(conversions, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
