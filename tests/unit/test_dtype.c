/* The data type table; narrow floats against nearest-value search over all their values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/dtype.h"

static void the_table_says_what_the_names_say(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype;
        const char *name;
        size_t bytes;
        int class;
    } rows[] = {
        { QUERN_BOOL, "bool", 1, QN_CLASS_BOOL },  { QUERN_I8, "i8", 1, QN_CLASS_SIGNED },
        { QUERN_I64, "i64", 8, QN_CLASS_SIGNED },  { QUERN_U16, "u16", 2, QN_CLASS_UNSIGNED },
        { QUERN_BF16, "bf16", 2, QN_CLASS_FLOAT }, { QUERN_F64, "f64", 8, QN_CLASS_FLOAT },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_string_equal(qn_dtype_name(rows[i].dtype), rows[i].name);
        assert_int_equal(qn_dtype_bytes(rows[i].dtype), rows[i].bytes);
        assert_int_equal(qn_dtype_class_of(rows[i].dtype), rows[i].class);
        assert_int_equal(qn_dtype_parse(rows[i].name, strlen(rows[i].name)), rows[i].dtype);
    }
    assert_int_equal(qn_dtype_parse("f32x", 4), QUERN_INVALID_DTYPE);
    assert_int_equal(qn_dtype_parse("f32x", 3), QUERN_F32);
    assert_int_equal(qn_dtype_parse("", 0), QUERN_INVALID_DTYPE);
    assert_true(qn_dtype_is_float(QUERN_F16) && !qn_dtype_is_float(QUERN_I32));
    assert_true(qn_dtype_is_int(QUERN_U8) && !qn_dtype_is_int(QUERN_BOOL));
}

typedef struct narrow {
    int mantissa_bits, exponent_bits;
    float (*widen)(uint16_t bits);
    uint16_t (*from_f32)(float value);
    uint16_t (*from_f64)(double value);
} narrow;

static const narrow narrows[] = {
    { 10, 5, qn_f16_to_f32, qn_f32_to_f16, qn_f64_to_f16 },
    { 7, 8, qn_bf16_to_f32, qn_f32_to_bf16, qn_f64_to_bf16 },
};

/* What the bits mean, from the definition of the format; not for infinities and NaN. */
static double meaning(const narrow *n, uint16_t bits)
{
    const int mantissa = bits & ((1 << n->mantissa_bits) - 1);
    const int exponent = bits >> n->mantissa_bits & ((1 << n->exponent_bits) - 1);
    const int bias = (1 << (n->exponent_bits - 1)) - 1;
    const double one = ldexp(1, n->mantissa_bits);
    const double magnitude =
        exponent == 0 ? ldexp(mantissa / one, 1 - bias) : ldexp(1 + mantissa / one, exponent - bias);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static void every_value_widens_exactly_and_comes_back(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof narrows / sizeof *narrows; k++) {
        const narrow *n = &narrows[k];
        const uint16_t infinity = (uint16_t)(((1 << n->exponent_bits) - 1) << n->mantissa_bits);
        for (uint32_t b = 0; b < 0x10000; b++) {
            const uint16_t bits = (uint16_t)b, magnitude = bits & 0x7fff;
            const float wide = n->widen(bits);
            if (magnitude > infinity) {
                assert_true(isnan(wide));
                const uint16_t quiet = (uint16_t)(bits | 1 << (n->mantissa_bits - 1));
                assert_int_equal(n->from_f32(wide), quiet);
                assert_int_equal(n->from_f64((double)wide), quiet);
                continue;
            }
            if (magnitude == infinity)
                assert_true(isinf(wide) && !!signbit(wide) == bits >> 15);
            else
                assert_true((double)wide == meaning(n, bits) && !!signbit(wide) == bits >> 15);
            assert_int_equal(n->from_f32(wide), bits);
            assert_int_equal(n->from_f64((double)wide), bits);
        }
    }
}

/* Between neighbours: below the middle goes down, above goes up, the middle itself to the even one. */
static void rounding_is_to_nearest_even_and_happens_once(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof narrows / sizeof *narrows; k++) {
        const narrow *n = &narrows[k];
        const uint16_t infinity = (uint16_t)(((1 << n->exponent_bits) - 1) << n->mantissa_bits);
        for (uint16_t bits = 0; bits < infinity; bits++) {
            const double low = meaning(n, bits);
            const double high =
                meaning(n, (uint16_t)(bits + 1)); /* for the largest: where infinity would be */
            const double middle = low + (high - low) / 2;
            const uint16_t up = (uint16_t)(bits + 1), even = bits & 1 ? up : bits;
            assert_int_equal(n->from_f64(nextafter(middle, 0)), bits);
            assert_int_equal(n->from_f64(middle), even);
            assert_int_equal(n->from_f64(nextafter(middle, INFINITY)), up);
            assert_int_equal(n->from_f64(-middle), even | 0x8000);
            assert_int_equal(n->from_f32((float)middle), even); /* exact in float: one bit more than needed */
            assert_int_equal(n->from_f32(nextafterf((float)middle, 0)), bits);
            assert_int_equal(n->from_f32(nextafterf((float)middle, INFINITY)), up);
        }
        assert_int_equal(n->from_f64(1e300), infinity);
        assert_int_equal(n->from_f64(-INFINITY), infinity | 0x8000);
        assert_int_equal(n->from_f64(1e-300), 0);
        assert_int_equal(n->from_f64(-5e-324), 0x8000);
        assert_int_equal(n->from_f64(-0.0), 0x8000);
    }
}

static void scalars_load_what_was_stored(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype;
        int64_t stored, loaded;
    } ints[] = {
        { QUERN_BOOL, 2, 1 },          { QUERN_I8, 200, -56 },
        { QUERN_U8, -1, 255 },         { QUERN_I16, 40000, -25536 },
        { QUERN_U16, -1, 65535 },      { QUERN_I32, INT64_MAX, -1 },
        { QUERN_U32, -1, UINT32_MAX }, { QUERN_I64, INT64_MIN, INT64_MIN },
        { QUERN_U64, -1, -1 },
    };
    unsigned char memory[9]; /* odd address: contents of mapped files are not aligned */
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        qn_scalar_store(ints[i].dtype, (qn_scalar){ .i = ints[i].stored }, memory + 1);
        assert_true(qn_scalar_load(ints[i].dtype, memory + 1).i == ints[i].loaded);
    }
    static const struct {
        qn_dtype dtype;
        double stored, loaded;
    } floats[] = {
        { QUERN_F16, 1.0 / 3, 0.333251953125 }, { QUERN_BF16, 1.0 / 3, 0.333984375 },
        { QUERN_F32, 0.1, (double)0.1F },       { QUERN_F64, 0.1, 0.1 },
        { QUERN_F16, 65520, INFINITY },
    };
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        qn_scalar_store(floats[i].dtype, (qn_scalar){ .f = floats[i].stored }, memory + 1);
        assert_true(qn_scalar_load(floats[i].dtype, memory + 1).f == floats[i].loaded);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_says_what_the_names_say),
        cmocka_unit_test(every_value_widens_exactly_and_comes_back),
        cmocka_unit_test(rounding_is_to_nearest_even_and_happens_once),
        cmocka_unit_test(scalars_load_what_was_stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
