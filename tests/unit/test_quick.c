/* The interpreter's loops over C types (quick.c) give what it gives through wider types, to the bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

enum { N = 6007 };

/* Patterns of bits: small whole numbers and halves, what saturates, zeros, infinities, NaN, and any. */
static void fill(qn_dtype dtype, unsigned seed, void *to)
{
    static const float special[] = { 0.F,        -0.F,     0.5F,      -0.5F, 1.5F,   2.5F,
                                     127.5F,     -128.5F,  255.F,     256.F, 1e-40F, 8388607.5F,
                                     -8388609.F, INFINITY, -INFINITY, NAN };
    uint32_t bits = seed;
    for (int i = 0; i < N; i++) {
        bits = bits * 1664525u + 1013904223u;
        uint32_t v = bits ^ bits >> 15;
        if (dtype == QUERN_F32 && i % 3 == 0)
            memcpy(&v, &special[v % (sizeof special / sizeof *special)], sizeof v);
        else if (dtype == QUERN_F32 && i % 3 == 1)
            memcpy(&v, &(float){ (float)(int)(v % 4096 - 2048) / 4 }, sizeof v);
        memcpy((char *)to + (size_t)i * qn_dtype_bytes(dtype), &v, qn_dtype_bytes(dtype));
    }
}

static qn_array filled(qn_dtype dtype, unsigned seed)
{
    static _Alignas(8) unsigned char memory[4][N * 8];
    static int next;
    qn_array a = { .dtype = dtype, .rank = 1, .dims = { N }, .data = memory[next++ % 4] };
    fill(dtype, seed, a.data);
    return a;
}

static qn_array convert(qn_array x, qn_dtype to)
{
    const qn_attr dtype = INT(DTYPE, to);
    call c = { .op = QN_OP_CONVERT, .n_operands = 1, .n_attrs = 1 };
    c.operands[0] = x;
    c.attrs[0] = dtype;
    return *eval(&c);
}

static qn_array apply(qn_op op, int n, qn_array x, qn_array y, const qn_attr *attr)
{
    call c = { .op = op, .n_operands = n, .n_attrs = attr != NULL };
    c.operands[0] = x;
    c.operands[1] = y;
    if (attr)
        c.attrs[0] = *attr;
    return *eval(&c);
}

static void expect_bits(const char *what, qn_array found, qn_array want)
{
    expect_same(what, &found, &want);
}

static void element_wise_ops(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype, wide;
        int n;
        qn_op ops[10];
    } cases[] = {
        { QUERN_F32, QUERN_F64, 2, { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL, QN_OP_DIV, QN_OP_MAX, QN_OP_MIN } },
        { QUERN_F32, QUERN_F64, 1, { QN_OP_NEG, QN_OP_ABS, QN_OP_ROUND } },
        { QUERN_I32, QUERN_I64, 2, { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL } },
        { QUERN_U32, QUERN_U64, 2, { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL } },
        { QUERN_I8, QUERN_I64, 2, { QN_OP_ADD, QN_OP_SUB, QN_OP_AND, QN_OP_OR, QN_OP_XOR } },
        { QUERN_U8, QUERN_U64, 2, { QN_OP_ADD, QN_OP_SUB, QN_OP_AND, QN_OP_OR, QN_OP_XOR } },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int i = 0; cases[c].ops[i]; i++) {
            eval_reset();
            const qn_array x = filled(cases[c].dtype, 1), y = filled(cases[c].dtype, 2);
            const qn_array wide = apply(cases[c].ops[i], cases[c].n, convert(x, cases[c].wide),
                                        convert(y, cases[c].wide), NULL);
            expect_bits(qn_ops[cases[c].ops[i]].name, apply(cases[c].ops[i], cases[c].n, x, y, NULL),
                        convert(wide, cases[c].dtype));
        }
}

static void shifts_of_bytes(void **state)
{
    (void)state;
    static const qn_op ops[] = { QN_OP_SHIFT_LEFT, QN_OP_SHIFT_RIGHT };
    for (int is_signed = 0; is_signed < 2; is_signed++)
        for (int count = 0; count < 10; count++) /* from 8 on nothing is left; 9: all counts differ */
            for (int i = 0; i < 2; i++) {
                eval_reset();
                const qn_dtype dtype = is_signed ? QUERN_I8 : QUERN_U8,
                               wide = is_signed ? QUERN_I64 : QUERN_U64;
                const qn_array x = filled(dtype, 3), y = filled(dtype, 4);
                for (int k = 0; k < N; k++)
                    ((uint8_t *)y.data)[k] = (uint8_t)(count < 9 ? count : k % 9);
                const qn_array shifted = apply(ops[i], 2, convert(x, wide), convert(y, wide), NULL);
                expect_bits(qn_ops[ops[i]].name, apply(ops[i], 2, x, y, NULL), convert(shifted, dtype));
            }
}

static void comparisons(void **state)
{
    (void)state;
    for (int direction = QN_EQ; direction <= QN_GE; direction++) {
        eval_reset();
        const qn_attr attr = { .key = QN_ATTR_DIRECTION, .i = direction };
        qn_array x = filled(QUERN_F32, 5), y = filled(QUERN_F32, 6);
        memcpy(y.data, x.data, N / 2 * sizeof(float));
        expect_bits("compare", apply(QN_OP_COMPARE, 2, x, y, &attr),
                    apply(QN_OP_COMPARE, 2, convert(x, QUERN_F64), convert(y, QUERN_F64), &attr));
    }
}

static void conversions(void **state)
{
    (void)state;
    static const qn_dtype cases[][3] = {
        /* from, to, by way of */
        { QUERN_F32, QUERN_I8, QUERN_F64 },   { QUERN_F32, QUERN_U8, QUERN_F64 },
        { QUERN_F32, QUERN_BF16, QUERN_F64 }, { QUERN_BF16, QUERN_F32, QUERN_F64 },
        { QUERN_I8, QUERN_U8, QUERN_I64 },    { QUERN_U8, QUERN_I8, QUERN_I64 },
        { QUERN_I8, QUERN_I32, QUERN_I64 },   { QUERN_U8, QUERN_I32, QUERN_I64 },
        { QUERN_I32, QUERN_F32, QUERN_I64 },  { QUERN_U4, QUERN_U8, QUERN_I64 },
        { QUERN_U4, QUERN_I8, QUERN_I64 },    { QUERN_U4, QUERN_I32, QUERN_I64 },
        { QUERN_I4, QUERN_I8, QUERN_I64 },    { QUERN_I4, QUERN_I32, QUERN_I64 },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        eval_reset();
        const qn_array x = filled(cases[c][0], 7);
        expect_bits(qn_dtype_name(cases[c][0]), convert(x, cases[c][1]),
                    convert(convert(x, cases[c][2]), cases[c][1]));
    }
}

static void reductions(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype, wide;
        qn_kind kind;
    } cases[] = { { QUERN_F32, QUERN_F64, QN_KIND_MAX },
                  { QUERN_F32, QUERN_F64, QN_KIND_MIN },
                  { QUERN_I32, QUERN_I64, QN_SUM } };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int64_t axis = 0; axis < 2; axis++) {
            eval_reset();
            const qn_attr axes = { .key = QN_ATTR_AXES, .n = 1, .ints = &axis },
                          kind = { .key = QN_ATTR_KIND, .i = cases[c].kind };
            call k = { .op = QN_OP_REDUCE, .n_operands = 1, .n_attrs = 2, .attrs = { axes, kind } };
            qn_array x = filled(cases[c].dtype, 8), found;
            for (int i = 0; cases[c].dtype == QUERN_F32 && i < N; i++) /* NaN in one row alone */
                if (isnan(((float *)x.data)[i]) && i > 20)
                    ((float *)x.data)[i] = 1;
            qn_array wide = convert(x, cases[c].wide);
            x.rank = wide.rank = 2;
            x.dims[0] = wide.dims[0] = 6;
            x.dims[1] = wide.dims[1] = 1001;
            k.operands[0] = x;
            found = *eval(&k);
            k.operands[0] = wide;
            expect_bits("reduce", found, convert(*eval(&k), cases[c].dtype));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(element_wise_ops), cmocka_unit_test(shifts_of_bytes), cmocka_unit_test(comparisons),
        cmocka_unit_test(conversions),      cmocka_unit_test(reductions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
