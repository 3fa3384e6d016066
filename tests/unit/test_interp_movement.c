/* Movement ops of the reference interpreter: by hand where a case is interesting, against index formulas elsewhere. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

static void broadcasts_repeat_ones(void **state)
{
    (void)state;
    const qn_array v = floats(QUERN_F32, SHAPE(2), V(1, 2)), s = floats(QUERN_F32, SCALAR, V(7));
    const qn_array column = floats(QUERN_I8, SHAPE(2, 1), V(1, 2)), none = floats(QUERN_F32, SHAPE(0), EMPTY);
    const row rows[] = {
        { "scalar",
          { QN_OP_BROADCAST, 1, { s }, 2, { NO_LIST(AXES), LIST(DIMS, 2, 2) } },
          floats(QUERN_F32, SHAPE(2, 2), V(7, 7, 7, 7)) },
        { "to rows",
          { QN_OP_BROADCAST, 1, { v }, 2, { LIST(AXES, 1), LIST(DIMS, 3, 2) } },
          floats(QUERN_F32, SHAPE(3, 2), V(1, 2, 1, 2, 1, 2)) },
        { "to columns",
          { QN_OP_BROADCAST, 1, { v }, 2, { LIST(AXES, 0), LIST(DIMS, 2, 3) } },
          floats(QUERN_F32, SHAPE(2, 3), V(1, 1, 1, 2, 2, 2)) },
        { "extent 1, axes swapped",
          { QN_OP_BROADCAST, 1, { column }, 2, { LIST(AXES, 2, 0), LIST(DIMS, 3, 1, 2) } },
          floats(QUERN_I8, SHAPE(3, 1, 2), V(1, 2, 1, 2, 1, 2)) },
        { "1 to none",
          { QN_OP_BROADCAST, 1, { column }, 2, { LIST(AXES, 0, 1), LIST(DIMS, 2, 0) } },
          floats(QUERN_I8, SHAPE(2, 0), EMPTY) },
        { "empty",
          { QN_OP_BROADCAST, 1, { none }, 2, { LIST(AXES, 0), LIST(DIMS, 0, 4) } },
          floats(QUERN_F32, SHAPE(0, 4), EMPTY) },
    };
    CHECK(rows);
}

static void reshapes_keep_the_order(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_U16, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6));
    const row rows[] = {
        { "reshape",
          { QN_OP_RESHAPE, 1, { x }, 1, { LIST(DIMS, 3, 1, 2) } },
          floats(QUERN_U16, SHAPE(3, 1, 2), V(1, 2, 3, 4, 5, 6)) },
        { "to a scalar",
          { QN_OP_RESHAPE, 1, { floats(QUERN_F64, SHAPE(1, 1), V(3)) }, 1, { NO_LIST(DIMS) } },
          floats(QUERN_F64, SCALAR, V(3)) },
        { "empty",
          { QN_OP_RESHAPE, 1, { floats(QUERN_F64, SHAPE(3, 0), EMPTY) }, 1, { LIST(DIMS, 0, 7) } },
          floats(QUERN_F64, SHAPE(0, 7), EMPTY) },
    };
    CHECK(rows);
}

/* All permutations of a rank-4 array with an axis of 1 and sizes around the tile, for each element size. */
static void transposes_of_any_permutation(void **state)
{
    (void)state;
    static const qn_dtype dtypes[] = { QUERN_U8, QUERN_I16, QUERN_F32, QUERN_U64 };
    const int64_t dims[4] = { 33, 1, 5, 35 };
    int64_t strides[4] = { 175, 175, 35, 1 };
    for (int p = 0; p < 256; p++) {
        const int64_t perm[4] = { p & 3, p >> 2 & 3, p >> 4 & 3, p >> 6 };
        if ((1 << perm[0] | 1 << perm[1] | 1 << perm[2] | 1 << perm[3]) != 15)
            continue;
        const qn_array x = noise(dtypes[p % 4], 4, dims, 3);
        call c = { QN_OP_TRANSPOSE, 1, { x }, 1, { LIST(PERM, perm[0], perm[1], perm[2], perm[3]) } };
        const qn_array *y = eval(&c);
        assert_non_null(y);
        int64_t n = 0;
        for (int64_t a = 0; a < dims[perm[0]]; a++)
            for (int64_t b = 0; b < dims[perm[1]]; b++)
                for (int64_t d = 0; d < dims[perm[2]]; d++)
                    for (int64_t e = 0; e < dims[perm[3]]; e++, n++)
                        assert_true(at(y, n) == at(&x, a * strides[perm[0]] + b * strides[perm[1]] +
                                                           d * strides[perm[2]] + e * strides[perm[3]]));
        assert_int_equal(y->dims[0], dims[perm[0]]);
    }
    const row rows[] = {
        { "matrix",
          { QN_OP_TRANSPOSE,
            1,
            { floats(QUERN_F16, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6)) },
            1,
            { LIST(PERM, 1, 0) } },
          floats(QUERN_F16, SHAPE(3, 2), V(1, 4, 2, 5, 3, 6)) },
        { "scalar",
          { QN_OP_TRANSPOSE, 1, { floats(QUERN_F16, SCALAR, V(1)) }, 1, { NO_LIST(PERM) } },
          floats(QUERN_F16, SCALAR, V(1)) },
        { "empty",
          { QN_OP_TRANSPOSE, 1, { floats(QUERN_F16, SHAPE(0, 3), EMPTY) }, 1, { LIST(PERM, 1, 0) } },
          floats(QUERN_F16, SHAPE(3, 0), EMPTY) },
    };
    CHECK(rows);
}

static void slices(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(3, 4), V(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
    const row rows[] = {
        { "box",
          { QN_OP_SLICE, 1, { x }, 3, { LIST(START, 1, 1), LIST(LIMIT, 3, 3), LIST(STRIDE, 1, 1) } },
          floats(QUERN_F32, SHAPE(2, 2), V(5, 6, 9, 10)) },
        { "strided",
          { QN_OP_SLICE, 1, { x }, 3, { LIST(START, 0, 1), LIST(LIMIT, 3, 4), LIST(STRIDE, 2, 2) } },
          floats(QUERN_F32, SHAPE(2, 2), V(1, 3, 9, 11)) },
        { "stride past the end",
          { QN_OP_SLICE,
            1,
            { x },
            3,
            { LIST(START, 2, 3), LIST(LIMIT, 3, 4), LIST(STRIDE, (int64_t)1 << 40, 9) } },
          floats(QUERN_F32, SHAPE(1, 1), V(11)) },
        { "nothing",
          { QN_OP_SLICE, 1, { x }, 3, { LIST(START, 3, 0), LIST(LIMIT, 3, 4), LIST(STRIDE, 1, 1) } },
          floats(QUERN_F32, SHAPE(0, 4), EMPTY) },
    };
    CHECK(rows);
}

static void pads(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(3), V(1, 2, 3)), p = floats(QUERN_F32, SCALAR, V(9));
    const qn_array m = floats(QUERN_I8, SHAPE(2, 2), V(1, 2, 3, 4)), z = floats(QUERN_I8, SCALAR, V(0));
    const row rows[] = {
        { "both sides",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, 1), LIST(HIGH, 2), LIST(INTERIOR, 0) } },
          floats(QUERN_F32, SHAPE(6), V(9, 1, 2, 3, 9, 9)) },
        { "interior",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, 0), LIST(HIGH, 1), LIST(INTERIOR, 2) } },
          floats(QUERN_F32, SHAPE(8), V(1, 9, 9, 2, 9, 9, 3, 9)) },
        { "crop low",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, -1), LIST(HIGH, 1), LIST(INTERIOR, 0) } },
          floats(QUERN_F32, SHAPE(3), V(2, 3, 9)) },
        { "crop into the interior",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, -1), LIST(HIGH, -1), LIST(INTERIOR, 1) } },
          floats(QUERN_F32, SHAPE(3), V(9, 2, 9)) },
        { "crop everything",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, 4), LIST(HIGH, -5), LIST(INTERIOR, 0) } },
          floats(QUERN_F32, SHAPE(2), V(9, 9)) },
        { "crop from the left past the end",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, -4), LIST(HIGH, 3), LIST(INTERIOR, 0) } },
          floats(QUERN_F32, SHAPE(2), V(9, 9)) },
        { "two axes",
          { QN_OP_PAD, 2, { m, z }, 3, { LIST(LOW, 1, 0), LIST(HIGH, 0, 1), LIST(INTERIOR, 0, 1) } },
          floats(QUERN_I8, SHAPE(3, 4), V(0, 0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0)) },
        { "of nothing",
          { QN_OP_PAD,
            2,
            { floats(QUERN_F32, SHAPE(0), EMPTY), p },
            3,
            { LIST(LOW, 1), LIST(HIGH, 1), LIST(INTERIOR, 3) } },
          floats(QUERN_F32, SHAPE(2), V(9, 9)) },
        { "to nothing",
          { QN_OP_PAD, 2, { x, p }, 3, { LIST(LOW, 0), LIST(HIGH, -3), LIST(INTERIOR, 0) } },
          floats(QUERN_F32, SHAPE(0), EMPTY) },
    };
    CHECK(rows);
}

static void concatenations(void **state)
{
    (void)state;
    const qn_array a = floats(QUERN_F32, SHAPE(2, 2), V(1, 2, 3, 4)),
                   b = floats(QUERN_F32, SHAPE(2, 1), V(5, 6));
    const qn_array none = floats(QUERN_F32, SHAPE(2, 0), EMPTY);
    const row rows[] = {
        { "columns",
          { QN_OP_CONCATENATE, 3, { a, none, b }, 1, { INT(AXIS, 1) } },
          floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 5, 3, 4, 6)) },
        { "rows",
          { QN_OP_CONCATENATE, 2, { b, b }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(4, 1), V(5, 6, 5, 6)) },
        { "one", { QN_OP_CONCATENATE, 1, { a }, 1, { INT(AXIS, 0) } }, a },
        { "nothing", { QN_OP_CONCATENATE, 2, { none, none }, 1, { INT(AXIS, 1) } }, none },
    };
    CHECK(rows);
}

static void channels_in_blocks(void **state)
{
    (void)state;
    const qn_array a = floats(QUERN_F32, SHAPE(1, 2, 2, 2), V(1, 2, 3, 4, 5, 6, 7, 8)),
                   b = floats(QUERN_F32, SHAPE(1, 1, 2, 2), V(-1, -2, -3, -4)),
                   samples = floats(QUERN_F16, SHAPE(2, 1, 2, 1, 1), V(1, 2, 3, 4)),
                   none = floats(QUERN_F32, SHAPE(0, 1, 2, 2), EMPTY);
    const row rows[] = {
        { "of two values",
          { QN_OP_GATHER_PACKED, 2, { a, b }, 1, { LIST(LANES, 3, 0, 5, -1) } },
          floats(QUERN_F32, SHAPE(1, 2, 2, 2), V(6, 1, 8, 3, -2, 0, -4, 0)) },
        { "the same twice",
          { QN_OP_GATHER_PACKED, 1, { samples }, 1, { LIST(LANES, 0, 0) } },
          floats(QUERN_F16, SHAPE(2, 2, 2, 1, 1), V(1, 2, 1, 2, 3, 4, 3, 4)) },
        { "zeros",
          { QN_OP_GATHER_PACKED, 1, { b }, 1, { LIST(LANES, -1, -1) } },
          floats(QUERN_F32, SHAPE(1, 1, 2, 2), V(0, 0, 0, 0)) },
        { "no samples", { QN_OP_GATHER_PACKED, 1, { none }, 1, { LIST(LANES, 1, 0) } }, none },
    };
    CHECK(rows);
}

static void reversals(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_BF16, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6)),
                   none = floats(QUERN_BF16, SHAPE(0, 3), EMPTY);
    const row rows[] = {
        { "rows",
          { QN_OP_REVERSE, 1, { x }, 1, { LIST(AXES, 0) } },
          floats(QUERN_BF16, SHAPE(2, 3), V(4, 5, 6, 1, 2, 3)) },
        { "both",
          { QN_OP_REVERSE, 1, { x }, 1, { LIST(AXES, 1, 0) } },
          floats(QUERN_BF16, SHAPE(2, 3), V(6, 5, 4, 3, 2, 1)) },
        { "no axis", { QN_OP_REVERSE, 1, { x }, 1, { NO_LIST(AXES) } }, x },
        { "empty", { QN_OP_REVERSE, 1, { none }, 1, { LIST(AXES, 0, 1) } }, none },
    };
    CHECK(rows);
}

static void dynamic_starts_are_clamped(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6)),
                   u = floats(QUERN_F32, SHAPE(1, 2), V(8, 9));
    const qn_array zero = ints(QUERN_I64, SCALAR, I(0)), one = ints(QUERN_I64, SCALAR, I(1));
    const qn_array low = ints(QUERN_I64, SCALAR, I(INT64_MIN)), high = ints(QUERN_I64, SCALAR, I(INT64_MAX));
    const row rows[] = {
        { "inside",
          { QN_OP_DYNAMIC_SLICE, 3, { x, one, one }, 1, { LIST(DIMS, 1, 2) } },
          floats(QUERN_F32, SHAPE(1, 2), V(5, 6)) },
        { "too low",
          { QN_OP_DYNAMIC_SLICE, 3, { x, one, low }, 1, { LIST(DIMS, 1, 2) } },
          floats(QUERN_F32, SHAPE(1, 2), V(4, 5)) },
        { "too high",
          { QN_OP_DYNAMIC_SLICE, 3, { x, high, high }, 1, { LIST(DIMS, 1, 2) } },
          floats(QUERN_F32, SHAPE(1, 2), V(5, 6)) },
        { "all of it", { QN_OP_DYNAMIC_SLICE, 3, { x, high, one }, 1, { LIST(DIMS, 2, 3) } }, x },
        { "nothing",
          { QN_OP_DYNAMIC_SLICE, 3, { x, high, one }, 1, { LIST(DIMS, 0, 3) } },
          floats(QUERN_F32, SHAPE(0, 3), EMPTY) },
        { "update",
          { QN_OP_DYNAMIC_UPDATE_SLICE, 4, { x, u, one, zero }, 0, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 8, 9, 6)) },
        { "update clamped",
          { QN_OP_DYNAMIC_UPDATE_SLICE, 4, { x, u, low, high }, 0, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(2, 3), V(1, 8, 9, 4, 5, 6)) },
        { "scalar", { QN_OP_DYNAMIC_UPDATE_SLICE, 2, { zero, one }, 0, { INT(AXIS, 0) } }, one },
    };
    CHECK(rows);
}

/* ---- indices ---- */

static void gathers(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6));
    const qn_array i = ints(QUERN_I64, SHAPE(2), I(2, -3)), s = ints(QUERN_I32, SCALAR, I(-1));
    const qn_array none = ints(QUERN_I64, SHAPE(0), I(0)), m = ints(QUERN_I32, SHAPE(1, 2), I(1, 0));
    const row rows[] = {
        { "columns",
          { QN_OP_GATHER, 2, { x, i }, 1, { INT(AXIS, 1) } },
          floats(QUERN_F32, SHAPE(2, 2), V(3, 1, 6, 4)) },
        { "scalar index",
          { QN_OP_GATHER, 2, { x, s }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(3), V(4, 5, 6)) },
        { "matrix of indices",
          { QN_OP_GATHER, 2, { x, m }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(1, 2, 3), V(4, 5, 6, 1, 2, 3)) },
        { "no index",
          { QN_OP_GATHER, 2, { x, none }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(0, 3), EMPTY) },
        { "of empty rows",
          { QN_OP_GATHER, 2, { floats(QUERN_F32, SHAPE(2, 0), EMPTY), s }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(0), EMPTY) },
    };
    CHECK(rows);
}

static void gathers_at_coordinates(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 2, 2), V(0, 1, 2, 3, 4, 5, 6, 7));
    const row rows[] = {
        /* the examples of ONNX's GatherND, among others */
        { "elements",
          { QN_OP_GATHER_ND,
            2,
            { floats(QUERN_I32, SHAPE(2, 2), V(0, 1, 2, 3)), ints(QUERN_I64, SHAPE(2, 2), I(0, 0, 1, -1)) },
            1,
            { INT(BATCH_DIMS, 0) } },
          floats(QUERN_I32, SHAPE(2), V(0, 3)) },
        { "rows",
          { QN_OP_GATHER_ND,
            2,
            { x, ints(QUERN_I64, SHAPE(2, 2), I(0, 1, 1, 0)) },
            1,
            { INT(BATCH_DIMS, 0) } },
          floats(QUERN_F32, SHAPE(2, 2), V(2, 3, 4, 5)) },
        { "batch",
          { QN_OP_GATHER_ND, 2, { x, ints(QUERN_I32, SHAPE(2, 1), I(1, 0)) }, 1, { INT(BATCH_DIMS, 1) } },
          floats(QUERN_F32, SHAPE(2, 2), V(2, 3, 4, 5)) },
        { "no coordinates",
          { QN_OP_GATHER_ND, 2, { x, ints(QUERN_I64, SHAPE(1, 0), I(0)) }, 1, { INT(BATCH_DIMS, 0) } },
          floats(QUERN_F32, SHAPE(1, 2, 2, 2), V(0, 1, 2, 3, 4, 5, 6, 7)) },
        { "no rows",
          { QN_OP_GATHER_ND, 2, { x, ints(QUERN_I64, SHAPE(0, 1), I(0)) }, 1, { INT(BATCH_DIMS, 0) } },
          floats(QUERN_F32, SHAPE(0, 2, 2), EMPTY) },
    };
    CHECK(rows);
}

static void gathers_and_scatters_of_elements(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6));
    const qn_array i = ints(QUERN_I64, SHAPE(2, 2), I(0, -1, 1, 1)),
                   one_row = ints(QUERN_I64, SHAPE(1, 3), I(1, 0, -1));
    const qn_array u = floats(QUERN_F32, SHAPE(2, 2), V(10, 20, 30, 40)),
                   none = ints(QUERN_I32, SHAPE(0, 3), I(0));
    const row rows[] = {
        { "along rows",
          { QN_OP_GATHER_ELEMENTS, 2, { x, i }, 1, { INT(AXIS, 1) } },
          floats(QUERN_F32, SHAPE(2, 2), V(1, 3, 5, 5)) },
        { "along columns, fewer rows",
          { QN_OP_GATHER_ELEMENTS, 2, { x, one_row }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(1, 3), V(4, 2, 6)) },
        { "none",
          { QN_OP_GATHER_ELEMENTS, 2, { x, none }, 1, { INT(AXIS, 0) } },
          floats(QUERN_F32, SHAPE(0, 3), EMPTY) },
        { "set",
          { QN_OP_SCATTER_ELEMENTS, 3, { x, i, u }, 2, { INT(AXIS, 1), INT(KIND, QN_SET) } },
          floats(QUERN_F32, SHAPE(2, 3), V(10, 2, 20, 4, 40, 6)) },
        { "add",
          { QN_OP_SCATTER_ELEMENTS, 3, { x, i, u }, 2, { INT(AXIS, 1), INT(KIND, QN_SUM) } },
          floats(QUERN_F32, SHAPE(2, 3), V(11, 2, 23, 4, 75, 6)) },
    };
    CHECK(rows);
}

static void scatters_of_every_kind(void **state)
{
    (void)state;
    const double nan = (double)NAN;
    const qn_array x = floats(QUERN_F32, SHAPE(3), V(1, 2, 3)), i = ints(QUERN_I64, SHAPE(3, 1), I(0, 0, -1));
    const qn_array u = floats(QUERN_F32, SHAPE(3), V(5, -4, 3)),
                   n = floats(QUERN_F32, SHAPE(3), V(nan, 0, 9));
    const qn_array b = ints(QUERN_U8, SHAPE(3), I(200, 1, 7)), v = ints(QUERN_U8, SHAPE(3), I(100, 100, 40));
#define SCATTER(x, u, kind)                  \
    {                                        \
        QN_OP_SCATTER_ND, 3, { x, i, u }, 1, \
        {                                    \
            INT(KIND, kind)                  \
        }                                    \
    }
    const row rows[] = {
        { "set: the last one", SCATTER(x, u, QN_SET), floats(QUERN_F32, SHAPE(3), V(-4, 2, 3)) },
        { "sum", SCATTER(x, u, QN_SUM), floats(QUERN_F32, SHAPE(3), V(2, 2, 6)) },
        { "prod", SCATTER(x, u, QN_PROD), floats(QUERN_F32, SHAPE(3), V(-20, 2, 9)) },
        { "max", SCATTER(x, u, QN_KIND_MAX), floats(QUERN_F32, SHAPE(3), V(5, 2, 3)) },
        { "min", SCATTER(x, u, QN_KIND_MIN), floats(QUERN_F32, SHAPE(3), V(-4, 2, 3)) },
        { "max of NaN", SCATTER(x, n, QN_KIND_MAX), floats(QUERN_F32, SHAPE(3), V(nan, 2, 9)) },
        { "integers wrap", SCATTER(b, v, QN_SUM), ints(QUERN_U8, SHAPE(3), I(400, 1, 47)) },
        { "blocks",
          { QN_OP_SCATTER_ND,
            3,
            { floats(QUERN_I64, SHAPE(3, 2), V(1, 2, 3, 4, 5, 6)), ints(QUERN_I32, SHAPE(2, 1), I(2, 0)),
              floats(QUERN_I64, SHAPE(2, 2), V(7, 8, 9, 10)) },
            1,
            { INT(KIND, QN_SET) } },
          floats(QUERN_I64, SHAPE(3, 2), V(9, 10, 3, 4, 7, 8)) },
        { "everything, twice",
          { QN_OP_SCATTER_ND,
            3,
            { x, ints(QUERN_I64, SHAPE(2, 0), I(0)), floats(QUERN_F32, SHAPE(2, 3), V(1, 1, 1, 2, 2, 2)) },
            1,
            { INT(KIND, QN_SUM) } },
          floats(QUERN_F32, SHAPE(3), V(4, 5, 6)) },
        { "nothing",
          { QN_OP_SCATTER_ND,
            3,
            { x, ints(QUERN_I64, SHAPE(0, 1), I(0)), floats(QUERN_F32, SHAPE(0), EMPTY) },
            1,
            { INT(KIND, QN_SET) } },
          x },
    };
    CHECK(rows);
    /* Each update rounds: 2048 + 1 + 1 is 2048 in f16. */
    const qn_array h = floats(QUERN_F16, SHAPE(1), V(2048)), one = floats(QUERN_F16, SHAPE(2), V(1, 1));
    const row rounding = {
        "in order",
        { QN_OP_SCATTER_ND, 3, { h, ints(QUERN_I64, SHAPE(2, 1), I(0, 0)), one }, 1, { INT(KIND, QN_SUM) } },
        h
    };
    check_rows(&rounding, 1);
}

static void bad_indices_are_named(void **state)
{
    (void)state;
    const qn_array x = floats(QUERN_F32, SHAPE(2, 3), V(1, 2, 3, 4, 5, 6));
    const qn_array u = floats(QUERN_F32, SHAPE(1, 3), V(1, 2, 3)),
                   row3 = ints(QUERN_I64, SHAPE(1, 3), I(0, 2, 0));
    const struct {
        call call;
        const char *text;
    } rows[] = {
        { { QN_OP_GATHER, 2, { x, ints(QUERN_I64, SHAPE(2), I(0, 3)) }, 1, { INT(AXIS, 1) } },
          "test node: gather: index 3 (element 1 of the indices) is outside axis 1: it has to be in [-3, "
          "3)" },
        { { QN_OP_GATHER, 2, { x, ints(QUERN_I64, SCALAR, I(INT64_MIN)) }, 1, { INT(AXIS, 0) } },
          "test node: gather: index -9223372036854775808 (element 0 of the indices) is outside axis 0: it "
          "has to be in [-2, 2)" },
        { { QN_OP_GATHER,
            2,
            { floats(QUERN_F32, SHAPE(0), EMPTY), ints(QUERN_I32, SCALAR, I(0)) },
            1,
            { INT(AXIS, 0) } },
          "test node: gather: index 0 (element 0 of the indices) is outside axis 0: it has to be in [0, 0)" },
        { { QN_OP_GATHER_ND, 2, { x, ints(QUERN_I64, SHAPE(1, 2), I(1, -4)) }, 1, { INT(BATCH_DIMS, 0) } },
          "test node: gather_nd: index -4 (element 1 of the indices) is outside axis 1: it has to be in [-3, "
          "3)" },
        { { QN_OP_GATHER_ELEMENTS, 2, { x, row3 }, 1, { INT(AXIS, 0) } },
          "test node: gather_elements: index 2 (element 1 of the indices) is outside axis 0: it has to be in "
          "[-2, 2)" },
        { { QN_OP_SCATTER_ELEMENTS, 3, { x, row3, u }, 2, { INT(AXIS, 0), INT(KIND, QN_SET) } },
          "test node: scatter_elements: index 2 (element 1 of the indices) is outside axis 0: it has to be "
          "in [-2, 2)" },
        { { QN_OP_SCATTER_ND, 3, { x, ints(QUERN_I64, SHAPE(1, 1), I(-3)), u }, 1, { INT(KIND, QN_SET) } },
          "test node: scatter_nd: index -3 (element 0 of the indices) is outside axis 0: it has to be in "
          "[-2, 2)" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_null(eval(&rows[i].call));
        assert_int_equal(eval_status(), QUERN_ERROR_INDEX);
        assert_string_equal(eval_error(), rows[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(broadcasts_repeat_ones, eval_teardown),
        cmocka_unit_test_teardown(reshapes_keep_the_order, eval_teardown),
        cmocka_unit_test_teardown(transposes_of_any_permutation, eval_teardown),
        cmocka_unit_test_teardown(slices, eval_teardown),
        cmocka_unit_test_teardown(pads, eval_teardown),
        cmocka_unit_test_teardown(concatenations, eval_teardown),
        cmocka_unit_test_teardown(channels_in_blocks, eval_teardown),
        cmocka_unit_test_teardown(reversals, eval_teardown),
        cmocka_unit_test_teardown(dynamic_starts_are_clamped, eval_teardown),
        cmocka_unit_test_teardown(gathers, eval_teardown),
        cmocka_unit_test_teardown(gathers_at_coordinates, eval_teardown),
        cmocka_unit_test_teardown(gathers_and_scatters_of_elements, eval_teardown),
        cmocka_unit_test_teardown(scatters_of_every_kind, eval_teardown),
        cmocka_unit_test_teardown(bad_indices_are_named, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
