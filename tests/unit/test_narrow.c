/* Narrow types against lists of their values made by counting, and kernels against the interpreter: from and to every type. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "ir/narrow.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"

/* A float type by what its definition says of it. */
typedef struct format {
    qn_dtype dtype;
    double least;    /* the smallest number above zero; of f8e8m0 the smallest */
    int per_binade;  /* numbers between one power of two and the next */
    int n;           /* numbers without a sign, finite */
    int beyond, nan; /* bits of what is too large, and of NaN */
    int sign;        /* its bit, or 0 */
    bool minus_zero;
} format;

static const format formats[] = {
    { QUERN_F8E4M3FN, 0x1p-9, 8, 0x7f, 0x7f, 0x7f, 0x80, true },
    { QUERN_F8E4M3FNUZ, 0x1p-10, 8, 0x80, 0x80, 0x80, 0x80, false },
    { QUERN_F8E5M2, 0x1p-16, 4, 0x7c, 0x7c, 0x7e, 0x80, true },
    { QUERN_F8E5M2FNUZ, 0x1p-17, 4, 0x80, 0x80, 0x80, 0x80, false },
    { QUERN_F4E2M1, 0.5, 2, 8, 7, 0, 8, true },
    { QUERN_F8E8M0, 0x1p-127, 1, 0xff, 0xff, 0xff, 0, false },
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

/* One more than there are: where the next would be. */
static void count_values(const format *f, double *out)
{
    double step = f->least;
    out[0] = f->sign ? 0 : f->least;
    for (int i = 0; i < f->n; i++) {
        if (f->sign && i >= 2 * f->per_binade && i % f->per_binade == 0)
            step *= 2;
        out[i + 1] = f->sign ? out[i] + step : 2 * out[i];
    }
}

static const double largest[N_FORMATS] = { 448, 240, 57344, 57344, 6, 0x1p127 };

static void every_pattern_has_its_value(void **state)
{
    (void)state;
    for (int k = 0; k < N_FORMATS; k++) {
        const format *f = &formats[k];
        double values[257];
        count_values(f, values);
        assert_true(values[f->n - 1] == largest[k]);
        for (int bits = 0; bits < (f->sign ? 2 * f->sign : 256); bits++) {
            const int code = bits & (f->sign ? f->sign - 1 : 255);
            const bool negative = code != bits;
            const double found = qn_narrow_value(f->dtype, (uint8_t)bits);
            const bool uz_nan = !f->minus_zero && f->sign && bits == f->sign;
            if (code < f->n && !uz_nan) {
                assert_true(found == (negative ? -values[code] : values[code]) &&
                            !!signbit(found) == negative);
                assert_int_equal(qn_narrow_from_float(f->dtype, found), bits);
            } else if (f->dtype == QUERN_F8E5M2 && code == f->beyond) {
                assert_true(isinf(found) && !!signbit(found) == negative);
                assert_int_equal(qn_narrow_from_float(f->dtype, found), bits);
            } else {
                assert_true(isnan(found));
                assert_int_equal(qn_narrow_from_float(f->dtype, NAN), f->nan);
            }
        }
    }
}

/* The bits that the number nearest to x has; of two the even one (f8e8m0: the larger). */
static int nearest(const format *f, const double *values, double x)
{
    const double a = fabs(x);
    int code = 0;
    if (!f->sign && (x < f->least || isnan(x)))
        return f->nan;
    while (code < f->n && values[code + 1] <= a)
        code++;
    if (code < f->n) {
        const double below = a - values[code], above = values[code + 1] - a;
        code += above < below || (above == below && (!f->sign || code % 2));
    }
    code = code >= f->n ? f->beyond : code;
    if (code == 0 && !f->minus_zero)
        return 0;
    return code | (signbit(x) ? f->sign : 0);
}

/* Each number, what lies halfway to the next and the numbers around that, of f64 and f32; and some at random. */
static int probes(const format *f, const double *values, double *out)
{
    int n = 0;
    uint64_t s = 12345;
    for (int i = 0; i < f->n; i++) {
        const double middle = values[i] + (values[i + 1] - values[i]) / 2;
        const double around[] = { values[i],
                                  middle,
                                  nextafter(middle, 0),
                                  nextafter(middle, INFINITY),
                                  (double)nextafterf((float)middle, 0),
                                  (double)nextafterf((float)middle, INFINITY) };
        for (int j = 0; j < 6; j++) {
            out[n++] = around[j];
            out[n++] = -around[j];
        }
    }
    for (int i = 0; i < 500; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        out[n++] = (double)(float)ldexp((double)(int64_t)s, (int)(s >> 8 & 63) - 90);
    }
    const double special[] = { INFINITY, -INFINITY, 0x1p127, -0x1p127, 0x1.fp127, 1e-45, -1e-45, 0x1p-126 };
    for (int i = 0; i < 8; i++)
        out[n++] = special[i];
    return n;
}
enum { MOST_PROBES = 12 * 256 + 508 };

static void rounding_is_to_the_nearest(void **state)
{
    (void)state;
    for (int k = 0; k < N_FORMATS; k++) {
        const format *f = &formats[k];
        double values[257], at[MOST_PROBES];
        count_values(f, values);
        const int n = probes(f, values, at);
        for (int i = 0; i < n; i++) {
            const int found = qn_narrow_from_float(f->dtype, at[i]), expected = nearest(f, values, at[i]);
            if (found != expected)
                fail_msg("%s: %a gives %02x, not %02x", qn_dtype_name(f->dtype), at[i], found, expected);
        }
    }
}

static void integers_saturate_from_floats_and_wrap_from_integers(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype;
        int low, high;
    } types[] = { { QUERN_I4, -8, 7 }, { QUERN_U4, 0, 15 }, { QUERN_I2, -2, 1 }, { QUERN_U2, 0, 3 } };
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        const qn_dtype dtype = types[k].dtype;
        const int low = types[k].low, high = types[k].high, n = high - low + 1;
        for (int i = -300; i <= 300; i++) {
            const int wrapped = ((i - low) % n + n) % n + low, most = i < low ? low : i > high ? high : i;
            const uint8_t from_int = qn_narrow_from_int(dtype, i);
            assert_true(from_int < n);
            assert_true(qn_narrow_value(dtype, from_int) == wrapped);
            assert_true(qn_narrow_value(dtype, (uint8_t)(from_int | (0x100 - n))) ==
                        wrapped); /* bits above */
            const double truncated = i + (i < 0 ? -0.9 : 0.9);
            assert_true(qn_narrow_value(dtype, qn_narrow_from_float(dtype, truncated)) == most);
        }
        assert_int_equal(qn_narrow_from_float(dtype, NAN), 0);
        assert_true(qn_narrow_value(dtype, qn_narrow_from_float(dtype, -INFINITY)) == low);
        assert_true(qn_narrow_value(dtype, qn_narrow_from_float(dtype, 1e300)) == high);
    }
}

/* ---- kernels ---- */

enum { N = MOST_PROBES };

/* Elements of any type: all bytes, or the probes of `f` as far as the type has them. */
static qn_array elements(qn_dtype dtype, const format *f)
{
    double values[257], at_probe[MOST_PROBES] = { 0 };
    const qn_array a = ints(dtype, SHAPE(N), (int64_t[N]){ 0 });
    count_values(f, values);
    const int n = probes(f, values, at_probe);
    for (int i = 0; i < N; i++) {
        qn_scalar v = { .i = i };
        if (qn_dtype_is_float(dtype))
            v.f = i < n ? at_probe[i] : i % 2 ? (double)NAN : -(double)NAN;
        else if (!qn_dtype_is_stored(dtype))
            v.i = i % 3 ? i - 128 : (int64_t)((uint64_t)i * 0x9e3779b97f4a7c15u);
        qn_scalar_store(dtype, v, (char *)a.data + (size_t)i * qn_dtype_bytes(dtype));
    }
    return a;
}

static void compare(qn_dtype from, qn_dtype to, const format *f)
{
    char text[512];
    qn_module *module;
    snprintf(text, sizeof text,
             "graph @f(%%x: %s[n]) -> %s[n] {\n%%r = convert %%x {dtype = %s} : %s[n]\nreturn %%r\n}\n",
             qn_dtype_name(from), qn_dtype_name(to), qn_dtype_name(to), qn_dtype_name(to));
    const qn_array x = elements(from, f);
    for (qn_math math = QN_MATH_STRICT; math <= QN_MATH_FAST; math++) {
        assert_int_equal(qn_text_parse(text, strlen(text), "test", &module, eval_diags()), QUERN_OK);
        const qn_pass_options options = { .math = math, .machine = &lowered_machine };
        lowered_compare(text, module->functions[0], &options, &x, (int64_t[]){ N });
        qn_module_free(module);
    }
}

static void kernels_convert_as_the_interpreter_does(void **state)
{
    (void)state;
    for (int t = QUERN_I4; t <= QUERN_F8E8M0; t++) {
        const format *f = &formats[t < QUERN_F8E4M3FN ? 0 : t - QUERN_F8E4M3FN];
        for (int other = QUERN_BOOL; other <= QUERN_F8E8M0; other++) {
            if (other == t)
                continue;
            compare((qn_dtype)t, (qn_dtype)other, f);
            compare((qn_dtype)other, (qn_dtype)t, f);
        }
        eval_reset();
    }
}

/* What only moves elements takes them as they are; what computes says so. */
static void they_move_and_do_not_compute(void **state)
{
    (void)state;
    static const char moving[] =
        "graph @f(%x: f8e4m3fn[2, 3], %p: bool[3, 4]) -> f8e4m3fn[3, 4] {\n"
        "%t = transpose %x {perm = [1, 0]} : f8e4m3fn[3, 2]\n"
        "%c = constant 0.5 : f8e4m3fn[]\n"
        "%w = pad %t, %c {high = [0, 1], interior = [0, 0], low = [0, 1]} : f8e4m3fn[3, 4]\n"
        "%u = bitcast %w {dtype = u8} : u8[3, 4]\n"
        "%v = bitcast %u {dtype = f8e4m3fn} : f8e4m3fn[3, 4]\n"
        "%b = constant splat -448 : f8e4m3fn[3, 4]\n"
        "%r = select %p, %v, %b : f8e4m3fn[3, 4]\n"
        "return %r\n}\n";
    const qn_array inputs[] = { ints(QUERN_F8E4M3FN, SHAPE(2, 3), I(1, 2, 3, 0x80, 0x7f, 0xff)),
                                ints(QUERN_BOOL, SHAPE(3, 4), I(1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0)) };
    const qn_array *r = eval_text(moving, inputs);
    if (!r)
        fail_msg("%s", eval_error());
    const qn_array expected =
        ints(QUERN_F8E4M3FN, SHAPE(3, 4), I(0x30, 1, 0x80, 0x30, 0x30, 2, 0x7f, 0x30, 0xfe, 3, 0xff, 0xfe));
    expect_same("movement", r, &expected);
    qn_module *module;
    assert_int_equal(qn_text_parse(moving, strlen(moving), "test", &module, eval_diags()), QUERN_OK);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                      .machine = &lowered_machine,
                                      .fold = qn_interp_fold };
    lowered_compare("movement", module->functions[0], &options, inputs, NULL);
    qn_module_free(module);

    static const struct {
        const char *node, *says;
    } wrong[] = {
        { "add %x, %x : f8e5m2[4]", "add takes integers floats: convert it first" },
        { "reduce %x {axes = [0], kind = sum} : f8e5m2[]", "convert it first" },
        { "bitcast %x {dtype = i4} : i4[4]", "may hold bits that i4 has none of" },
        { "bitcast %x {dtype = f16} : f16[4]", "different widths" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[256];
        snprintf(text, sizeof text, "graph @f(%%x: f8e5m2[4]) -> () {\n%%r = %s\nreturn\n}\n", wrong[i].node);
        assert_null(eval_text(text, NULL));
        if (!strstr(eval_error(), wrong[i].says))
            fail_msg("%s: %s", wrong[i].node, eval_error());
    }
    eval_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pattern_has_its_value),
        cmocka_unit_test(rounding_is_to_the_nearest),
        cmocka_unit_test(integers_saturate_from_floats_and_wrap_from_integers),
        cmocka_unit_test(kernels_convert_as_the_interpreter_does),
        cmocka_unit_test(they_move_and_do_not_compute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
