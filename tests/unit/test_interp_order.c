/* Sorting, selection and random bits of the reference interpreter. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

#define NaN ((double)NAN)

typedef struct two {
    const char *what;
    call call;
    qn_array first, second; /* results; the second one may be left out */
} two;

static void check_two(const two *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const qn_array *r = eval(&rows[i].call);
        expect_same(rows[i].what, r, &rows[i].first);
        if (rows[i].second.dtype)
            expect_same(rows[i].what, r + 1, &rows[i].second);
    }
}
#define CHECK_TWO(rows) check_two(rows, sizeof(rows) / sizeof *(rows))

static void sorts_are_stable(void **state)
{
    (void)state;
    const qn_array k = floats(QUERN_F32, SHAPE(6), V(2, 1, 2, NaN, -0.0, 0)),
                   v = ints(QUERN_I8, SHAPE(6), I(0, 1, 2, 3, 4, 5));
    const qn_array m = ints(QUERN_I32, SHAPE(3, 2), I(3, 1, 1, 2, 2, 0));
    const qn_array u = ints(QUERN_U64, SHAPE(3), I(-1, 0, INT64_MIN)),
                   b = ints(QUERN_BOOL, SHAPE(3), I(1, 0, 1));
    const qn_array none = floats(QUERN_F32, SHAPE(0, 2), EMPTY);
    const two rows[] = {
        { "NaN last",
          { QN_OP_SORT, 2, { k, v }, 2, { INT(AXIS, 0), INT(DESCENDING, false) } },
          floats(QUERN_F32, SHAPE(6), V(-0.0, 0, 1, 2, 2, NaN)),
          ints(QUERN_I8, SHAPE(6), I(4, 5, 1, 0, 2, 3)) },
        { "descending: NaN first, equals in order",
          { QN_OP_SORT, 2, { k, v }, 2, { INT(AXIS, 0), INT(DESCENDING, true) } },
          floats(QUERN_F32, SHAPE(6), V(NaN, 2, 2, 1, -0.0, 0)),
          ints(QUERN_I8, SHAPE(6), I(3, 0, 2, 1, 4, 5)) },
        { "columns",
          { QN_OP_SORT, 1, { m }, 1, { INT(AXIS, 0) } },
          ints(QUERN_I32, SHAPE(3, 2), I(1, 0, 2, 1, 3, 2)),
          { 0 } },
        { "rows",
          { QN_OP_SORT, 1, { m }, 1, { INT(AXIS, 1) } },
          ints(QUERN_I32, SHAPE(3, 2), I(1, 3, 1, 2, 0, 2)),
          { 0 } },
        { "u64",
          { QN_OP_SORT, 1, { u }, 1, { INT(AXIS, 0) } },
          ints(QUERN_U64, SHAPE(3), I(0, INT64_MIN, -1)),
          { 0 } },
        { "bool",
          { QN_OP_SORT, 1, { b }, 1, { INT(AXIS, 0) } },
          ints(QUERN_BOOL, SHAPE(3), I(0, 1, 1)),
          { 0 } },
        { "nothing", { QN_OP_SORT, 1, { none }, 1, { INT(AXIS, 0) } }, none, { 0 } },
        { "empty lines", { QN_OP_SORT, 1, { none }, 1, { INT(AXIS, 1) } }, none, { 0 } },
    };
    CHECK_TWO(rows);
    /* Many equal keys: position decides. */
    enum { COUNT = 1000 };
    qn_array keys = full(QUERN_I16, SHAPE(COUNT), 0), order = full(QUERN_I32, SHAPE(COUNT), 0);
    for (int i = 0; i < COUNT; i++) {
        ((int16_t *)keys.data)[i] = (int16_t)(i * 7919 % 13);
        ((int32_t *)order.data)[i] = i;
    }
    const call c = { QN_OP_SORT, 2, { keys, order }, 1, { INT(AXIS, 0) } };
    const qn_array *r = eval(&c);
    assert_non_null(r);
    for (int i = 1; i < COUNT; i++) {
        assert_true(at(&r[0], i - 1) <= at(&r[0], i));
        assert_true(at(&r[0], i - 1) < at(&r[0], i) || at(&r[1], i - 1) < at(&r[1], i));
        assert_true(at(&keys, (int64_t)at(&r[1], i)) == at(&r[0], i));
    }
}

#define TOP(x, axis, k, largest)                               \
    {                                                          \
        QN_OP_TOP_K, 1, { x }, 3,                              \
        {                                                      \
            INT(AXIS, axis), LIST(K, k), INT(LARGEST, largest) \
        }                                                      \
    }

static void top_k_takes_the_first_of_equals(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(5), V(1, 3, 3, NaN, -2)),
                   m = ints(QUERN_I8, SHAPE(2, 3), I(5, 7, 5, 1, 1, 2));
    const two rows[] = {
        { "largest", TOP(x, 0, 3, true), floats(QUERN_F32, SHAPE(3), V(NaN, 3, 3)),
          ints(QUERN_I64, SHAPE(3), I(3, 1, 2)) },
        { "smallest", TOP(x, 0, 2, false), floats(QUERN_F32, SHAPE(2), V(-2, 1)),
          ints(QUERN_I64, SHAPE(2), I(4, 0)) },
        { "ties", TOP(m, 1, 2, false), ints(QUERN_I8, SHAPE(2, 2), I(5, 5, 1, 1)),
          ints(QUERN_I64, SHAPE(2, 2), I(0, 2, 0, 1)) },
        { "axis 0", TOP(m, 0, 1, true), ints(QUERN_I8, SHAPE(1, 3), I(5, 7, 5)),
          ints(QUERN_I64, SHAPE(1, 3), I(0, 0, 0)) },
        { "none", TOP(m, 1, 0, true), ints(QUERN_I8, SHAPE(2, 0), EMPTY),
          ints(QUERN_I64, SHAPE(2, 0), EMPTY) },
        { "no lines", TOP(floats(QUERN_F32, SHAPE(0, 2), EMPTY), 1, 2, true),
          floats(QUERN_F32, SHAPE(0, 2), EMPTY), ints(QUERN_I64, SHAPE(0, 2), EMPTY) },
    };
    CHECK_TWO(rows);
}

#define KEPT(boxes, limit, overlap, n, least, k, centre)                \
    {                                                                   \
        QN_OP_SUPPRESS, n, { scores, boxes, limit, overlap, least }, 2, \
        {                                                               \
            LIST(K, k), INT(CENTRE, centre)                             \
        }                                                               \
    }

static void suppress_keeps_the_best(void **state)
{
    (void)state;
    const qn_array scores = floats(QUERN_F32, SHAPE(1, 2, 5), V(1, 5, 2, 4, 3, 3, NaN, 3, -1, 0)),
                   corners = floats(QUERN_F32, SHAPE(1, 5, 4),
                                    V(0, 0, 2, 2, 9, 9, 8, 8, 2, 0, 0, 2, 4, 4, 5, 5, 1, 1, 0, 0)),
                   centres = floats(QUERN_F32, SHAPE(1, 5, 4),
                                    V(1, 1, 2, 2, 8, 8, 1, 1, 1, 1, 2, 2, 4, 4, 1, 1, 0, 0, 2, 2)),
                   many = ints(QUERN_I64, SCALAR, I(9)), few = ints(QUERN_I64, SCALAR, I(2)),
                   none = ints(QUERN_I64, SCALAR, I(-3)), fifth = floats(QUERN_F32, SCALAR, V(0.2)),
                   quarter = floats(QUERN_F32, SCALAR, V(0.25)), zero = floats(QUERN_F32, SCALAR, V(0));
    const two rows[] = {
        { "all but NaN",
          KEPT(corners, many, fifth, 4, zero, 5, false),
          ints(QUERN_I64, SHAPE(1, 2, 5), I(1, 3, 4, -1, -1, 0, 3, -1, -1, -1)),
          { 0 } },
        { "as much as is allowed",
          KEPT(corners, many, quarter, 4, zero, 5, false),
          ints(QUERN_I64, SHAPE(1, 2, 5), I(1, 3, 4, 2, -1, 0, 4, 3, -1, -1)),
          { 0 } },
        { "scores above 0",
          KEPT(corners, many, quarter, 5, zero, 4, false),
          ints(QUERN_I64, SHAPE(1, 2, 4), I(1, 3, 4, 2, 0, -1, -1, -1)),
          { 0 } },
        { "a limit",
          KEPT(corners, few, quarter, 4, zero, 3, false),
          ints(QUERN_I64, SHAPE(1, 2, 3), I(1, 3, -1, 0, 4, -1)),
          { 0 } },
        { "room for one",
          KEPT(corners, many, quarter, 4, zero, 1, false),
          ints(QUERN_I64, SHAPE(1, 2, 1), I(1, 0)),
          { 0 } },
        { "nothing may be kept",
          KEPT(corners, none, quarter, 4, zero, 2, false),
          ints(QUERN_I64, SHAPE(1, 2, 2), I(-1, -1, -1, -1)),
          { 0 } },
        { "centres",
          KEPT(centres, many, zero, 4, zero, 5, true),
          ints(QUERN_I64, SHAPE(1, 2, 5), I(1, 3, 4, -1, -1, 0, 3, -1, -1, -1)),
          { 0 } },
    };
    CHECK_TWO(rows);
}

static void non_zero_binds_the_count(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[2, n]) -> (i64[2, count], i64[]) {\n"
                       "  %0 = non_zero %x {symbol = [count]} : i64[2, count]\n"
                       "  %1 = dim_value {dims = [count + n], dtype = i64} : i64[]\n"
                       "  return %0, %1\n}\n";
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(0, 1, -0.0, NaN, 0, -2)),
                   zeros = full(QUERN_F32, SHAPE(2, 1), 0);
    const qn_array found = ints(QUERN_I64, SHAPE(2, 3), I(0, 1, 1, 1, 0, 2)),
                   six = ints(QUERN_I64, SCALAR, I(6));
    const qn_array nothing = ints(QUERN_I64, SHAPE(2, 0), EMPTY), one = ints(QUERN_I64, SCALAR, I(1));
    const qn_array *r = eval_text(text, &x);
    expect_same("non_zero", r, &found);
    expect_same("count + n", r + 1, &six);
    r = eval_text(text, &zeros);
    expect_same("all zero", r, &nothing);
    expect_same("0 + n", r + 1, &one);
    const qn_array yes = ints(QUERN_BOOL, SCALAR, I(1)), scalar = ints(QUERN_I64, SHAPE(0, 1), EMPTY);
    expect_same("scalar",
                eval_text("graph @f(%x: bool[]) -> i64[0, count] {\n"
                          "  %0 = non_zero %x {symbol = [count]} : i64[0, count]\n  return %0\n}\n",
                          &yes),
                &scalar);
}

static void extent_binds_the_number(void **state)
{
    (void)state;
    const char *text = "dims count: 1.., n: 0..\n"
                       "graph @f(%x: f32[n], %c: i64[]) -> i64[count] {\n"
                       "  %0 = extent %c {limit = [2*n], symbol = [count]} : i64[]\n"
                       "  %1 = iota {axis = 0, dims = [count], dtype = i64} : i64[count]\n"
                       "  return %1\n}\n";
    const struct {
        int64_t number;
        const char *message;
    } rows[] = {
        { 1, NULL },
        { 6, NULL },
        { 7, "count is 7 here; the model was compiled for 1 to 6" },
        { 0, "count is 0 here; the model was compiled for 1 to 6" },
        { INT64_MIN, "count is -9223372036854775808 here; the model was compiled for 1 to 6" },
        { INT64_MAX, "count is 9223372036854775807 here; the model was compiled for 1 to 6" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qn_array inputs[2] = { full(QUERN_F32, SHAPE(3), 0),
                                     ints(QUERN_I64, SCALAR, I(rows[i].number)) };
        if (rows[i].message) {
            assert_null(eval_text(text, inputs));
            assert_int_equal(eval_status(), QUERN_ERROR_RANGE);
            assert_non_null(strstr(eval_error(), rows[i].message));
            continue;
        }
        const qn_array *r = eval_text(text, inputs);
        assert_int_equal(r->dims[0], rows[i].number);
        for (int64_t k = 0; k < r->dims[0]; k++)
            assert_int_equal(((const int64_t *)r->data)[k], k);
    }
}

static void require_ends_a_run(void **state)
{
    (void)state;
    const char *text = "dims true: 0..1\n"
                       "graph @f(%c: i64[]) -> i64[] {\n"
                       "  %0 = require %c {symbol = [true]} : i64[]\n"
                       "  return %c\n}\n";
    for (int64_t number = 0; number < 2; number++) {
        const qn_array input = ints(QUERN_I64, SCALAR, I(number));
        const qn_array *r = eval_text(text, &input);
        if (number) {
            assert_int_equal(*(const int64_t *)r->data, 1);
            continue;
        }
        assert_null(r);
        assert_int_equal(eval_status(), QUERN_ERROR_ARGUMENT);
        assert_non_null(strstr(eval_error(), "what is required does not hold here"));
    }
}

/* ---- random bits: known answers of Random123 (kat_vectors, philox4x32 10) ---- */

static void philox_gives_the_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset, stream, key;
        int64_t words[4];
    } rows[] = {
        { 0, 0, 0, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { UINT64_MAX, UINT64_MAX, UINT64_MAX, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { 0x85a308d3243f6a88,
          0x0370734413198a2e,
          0x299f31d0a4093822,
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const call c = { QN_OP_RANDOM_BITS,
                         2,
                         { ints(QUERN_U64, SHAPE(2), I((int64_t)rows[i].key, (int64_t)rows[i].stream)),
                           ints(QUERN_U64, SCALAR, I((int64_t)rows[i].offset)) },
                         1,
                         { LIST(DIMS, 4) } };
        const qn_array r = ints(QUERN_U32, SHAPE(4), rows[i].words);
        expect_same("philox", eval(&c), &r);
    }
}

/* Word i is i % 4 of block offset + i / 4, whatever the dims; the offset carries into its upper half. */
static void random_bits_continue_from_block_to_block(void **state)
{
    (void)state;
    const qn_array key = ints(QUERN_U64, SHAPE(2), I(42, 7));
    const qn_array from = ints(QUERN_U64, SCALAR, I(UINT32_MAX)),
                   next = ints(QUERN_U64, SCALAR, I((int64_t)UINT32_MAX + 1));
    const call all = { QN_OP_RANDOM_BITS, 2, { key, from }, 1, { LIST(DIMS, 3, 3) } };
    const call rest = { QN_OP_RANDOM_BITS, 2, { key, next }, 1, { LIST(DIMS, 5) } };
    const qn_array *a = eval(&all), *b = eval(&rest);
    assert_non_null(a);
    assert_non_null(b);
    for (int i = 0; i < 5; i++)
        assert_true(at(a, 4 + i) == at(b, i));
    assert_true(at(a, 0) != at(a, 4));
    const call none = { QN_OP_RANDOM_BITS, 2, { key, from }, 1, { LIST(DIMS, 0) } };
    const qn_array empty = ints(QUERN_U32, SHAPE(0), EMPTY);
    expect_same("nothing", eval(&none), &empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(sorts_are_stable, eval_teardown),
        cmocka_unit_test_teardown(top_k_takes_the_first_of_equals, eval_teardown),
        cmocka_unit_test_teardown(suppress_keeps_the_best, eval_teardown),
        cmocka_unit_test_teardown(non_zero_binds_the_count, eval_teardown),
        cmocka_unit_test_teardown(extent_binds_the_number, eval_teardown),
        cmocka_unit_test_teardown(require_ends_a_run, eval_teardown),
        cmocka_unit_test_teardown(philox_gives_the_known_answers, eval_teardown),
        cmocka_unit_test_teardown(random_bits_continue_from_block_to_block, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
