/* Scalars as text: what is printed reads back to the same bits, for every data type and whatever the locale. */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "ir/literal.h"
#include "ir/narrow.h"

static void assert_prints(qn_dtype dtype, uint64_t bits, const char *expected)
{
    char text[QN_LITERAL_MAX];
    int length = qn_literal_print(dtype, &bits, text);
    assert_string_equal(text, expected);
    assert_int_equal(length, strlen(expected));
}

static void assert_round_trip(qn_dtype dtype, uint64_t bits)
{
    char text[QN_LITERAL_MAX];
    uint64_t again = 0;
    int length = qn_literal_print(dtype, &bits, text);
    assert_true(length < QN_LITERAL_MAX);
    if (!qn_literal_parse(dtype, text, (size_t)length, &again) || again != bits)
        fail_msg("%s: bits %llx print as %s, which reads as %llx", qn_dtype_name(dtype),
                 (unsigned long long)bits, text, (unsigned long long)again);
}

static void floats_print_with_the_fewest_digits(void **state)
{
    (void)state;
    assert_prints(QUERN_F32, 0x3f800000, "1");
    assert_prints(QUERN_F32, 0x80000000, "-0");
    assert_prints(QUERN_F32, 0x3dcccccd, "0.1");
    assert_prints(QUERN_F32, 1, "1e-45");
    assert_prints(QUERN_F32, 0x7f7fffff, "3.4028235e+38");
    assert_prints(QUERN_F32, 0xff800000, "-inf");
    assert_prints(QUERN_F32, 0x7fc00000, "nan");
    assert_prints(QUERN_F32, 0xffc00000, "0xffc00000");
    assert_prints(QUERN_F32, 0x7f800001, "0x7f800001");
    assert_prints(QUERN_F16, 0x3c00, "1");
    assert_prints(QUERN_F16, 0x2e66, "0.1");
    assert_prints(QUERN_F16, 0x7bff, "65504");
    assert_prints(QUERN_F32, 0x4b18967f, "9999999");
    assert_prints(QUERN_F32, 0x4b189680, "1e+07");
    assert_prints(QUERN_F32, 0xc2c80000, "-100");
    assert_prints(QUERN_F16, 0x7e00, "nan");
    assert_prints(QUERN_F16, 1, "6e-08");
    assert_prints(QUERN_BF16, 0x3dcd, "0.1");
    assert_prints(QUERN_BF16, 0x7fc1, "0x7fc1");
    assert_prints(QUERN_F64, 0x3fb999999999999a, "0.1");
    assert_prints(QUERN_F64, 0x0000000000000001, "5e-324");
}

static void every_f16_and_bf16_reads_back(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits <= 0xffff; bits++) {
        assert_round_trip(QUERN_F16, bits);
        assert_round_trip(QUERN_BF16, bits);
    }
}

static bool reads(qn_dtype dtype, const char *text)
{
    uint64_t at;
    return qn_literal_parse(dtype, text, strlen(text), &at);
}

static void every_narrow_value_reads_back(void **state)
{
    (void)state;
    for (int dtype = QUERN_I4; dtype <= QUERN_F8E8M0; dtype++)
        for (uint64_t bits = 0; bits < (uint64_t)1 << qn_narrow_of((qn_dtype)dtype)->bits; bits++)
            assert_round_trip((qn_dtype)dtype, bits);
    assert_prints(QUERN_I4, 0xc, "-4");
    assert_prints(QUERN_U4, 0xc, "12");
    assert_prints(QUERN_F8E4M3FN, 0x7e, "448");
    assert_prints(QUERN_F8E4M3FN, 0xff, "0xff");
    assert_prints(QUERN_F8E5M2, 0xfc, "-inf");
    assert_prints(QUERN_F4E2M1, 3, "1.5");
    assert_prints(QUERN_F8E8M0, 0xff, "nan");
    assert_true(reads(QUERN_I4, "-8") && reads(QUERN_U2, "3") && reads(QUERN_F8E5M2, "inf"));
    assert_false(reads(QUERN_I4, "8") || reads(QUERN_U4, "-1") || reads(QUERN_I2, "2"));
    assert_false(reads(QUERN_F8E4M3FN, "inf") || reads(QUERN_F8E4M3FN, "500") || reads(QUERN_F4E2M1, "inf"));
    assert_false(reads(QUERN_F8E8M0, "0") || reads(QUERN_F8E8M0, "-1"));
}

static void many_wide_values_read_back(void **state)
{
    (void)state;
    uint64_t x = 12345;
    for (int i = 0; i < 20000; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = x ^ x >> 29;
        assert_round_trip(QUERN_F32, bits & 0xffffffff);
        assert_round_trip(QUERN_F64, bits);
        assert_round_trip(QUERN_I64, bits);
        assert_round_trip(QUERN_U64, bits);
        assert_round_trip(QUERN_I32, bits & 0xffffffff);
        assert_round_trip(QUERN_I16, bits & 0xffff);
        assert_round_trip(QUERN_U8, bits & 0xff);
    }
}

static void what_is_out_of_range_or_no_literal_is_refused(void **state)
{
    (void)state;
    assert_true(reads(QUERN_I8, "-128") && reads(QUERN_I8, "127"));
    assert_false(reads(QUERN_I8, "-129") || reads(QUERN_I8, "128"));
    assert_true(reads(QUERN_U8, "255") && reads(QUERN_U8, "-0"));
    assert_false(reads(QUERN_U8, "256") || reads(QUERN_U8, "-1"));
    assert_true(reads(QUERN_U64, "18446744073709551615"));
    assert_false(reads(QUERN_U64, "18446744073709551616"));
    assert_true(reads(QUERN_I64, "-9223372036854775808"));
    assert_false(reads(QUERN_I64, "9223372036854775808"));
    const char *bad[] = { "",         "-",      "1.5x", " 1",  "1 ",   "0x", "0x123456789",
                          "infinity", "nan(1)", "1e",   "--1", "0x1p3" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(reads(QUERN_F32, bad[i]));
        assert_false(reads(QUERN_I32, bad[i]));
        assert_false(reads(QUERN_BOOL, bad[i]));
    }
    assert_false(reads(QUERN_I32, "1.0") || reads(QUERN_I32, "1e3"));
    assert_false(reads(QUERN_BOOL, "1"));
    assert_true(reads(QUERN_F32, "1e999") && reads(QUERN_F32, "+.5") && reads(QUERN_F32, "7."));
    char nul[] = { '1', 0, '2' };
    uint64_t at;
    assert_false(qn_literal_parse(QUERN_F32, nul, sizeof nul, &at));
}

static void the_locale_does_not_matter(void **state)
{
    (void)state;
    const char *comma[] = { "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR" };
    bool found = false;
    for (size_t i = 0; i < sizeof comma / sizeof *comma && !found; i++)
        found = setlocale(LC_ALL, comma[i]) != NULL;
    if (!found)
        skip();
    assert_prints(QUERN_F32, 0x3fc00000, "1.5");
    assert_round_trip(QUERN_F32, 0x3fc00000);
    setlocale(LC_ALL, "C");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floats_print_with_the_fewest_digits),
        cmocka_unit_test(every_f16_and_bf16_reads_back),
        cmocka_unit_test(every_narrow_value_reads_back),
        cmocka_unit_test(many_wide_values_read_back),
        cmocka_unit_test(what_is_out_of_range_or_no_literal_is_refused),
        cmocka_unit_test(the_locale_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
