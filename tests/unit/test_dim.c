/* Dimension expressions: the normal form, and that it means what was written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/diag.h"
#include "ir/dim.h"

static qn_arena *arena;
static qn_dims *dims;

static int set_up(void **state)
{
    (void)state;
    arena = qn_arena_new();
    dims = qn_dims_new(arena);
    qn_dim_symbol(dims, "n", 0, 1000);
    qn_dim_symbol(dims, "m", 1, 100);
    qn_dim_symbol(dims, "p", 2, 8);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    qn_arena_free(arena);
    return 0;
}

static qn_dim parse(const char *text)
{
    const char *at = text;
    const qn_dim d = qn_dim_parse(dims, &at);
    if (!d || *at)
        fail_msg("'%s' stops at '%s'", text, at);
    return d;
}

static void expressions_have_one_normal_form(void **state)
{
    (void)state;
    static const struct {
        const char *text, *normal;
    } rows[] = {
        { "12", "12" },
        { "-3", "-3" },
        { "2*n + n", "3*n" },
        { "n*2", "2*n" },
        { "n + m", "m + n" },
        { "1 + n + n*n", "n*n + n + 1" },
        { "(n + 1)*(n - 1)", "n*n - 1" },
        { "(n + m)*2 - m", "m + 2*n" },
        { "n - n", "0" },
        { "-n", "-n" },
        { "3 - 2*n", "-2*n + 3" },
        { "--n", "n" },
        { "n*0", "0" },
        /* division */
        { "floordiv(7, 2)", "3" },
        { "floordiv(-7, 2)", "-4" },
        { "floordiv(7, -2)", "-4" },
        { "floordiv(n, 0)", "0" },
        { "floordiv(n, 1)", "n" },
        { "floordiv(6*n + 4, 2)", "3*n + 2" },
        { "floordiv(4*n + m, 2)", "2*n + floordiv(m, 2)" },
        { "floordiv(n - 1, 2) + 1", "floordiv(n + 1, 2)" },
        { "floordiv(2*n + 5, 4)", "floordiv(n, 2) + 1" },
        { "floordiv(floordiv(n, 2) + 1, 3)", "floordiv(n + 2, 6)" },
        { "floordiv(p, 9)", "0" },
        { "floordiv(p + 8, 9)", "1" },
        { "floordiv(n*m, n)", "m" },
        { "floordiv(6*n*m, 4*m)", "floordiv(3*n, 2)" },
        { "floordiv(n*m + 1, p*m)", "floordiv(m*n + 1, m*p)" },
        { "floordiv(2*n + 2, n + 1)", "2" },
        { "floordiv(n*n - 1, n + 1)", "n - 1" },
        { "floordiv(n*p + p - 1, p)", "n" },
        { "mod(7, 3)", "1" },
        { "mod(-7, 3)", "2" },
        { "mod(n, 0)", "0" },
        { "mod(6*n + 4, 3)", "1" },
        { "mod(5*n + 7, 3)", "mod(2*n + 1, 3)" },
        { "mod(2*n, 4)", "2*mod(n, 2)" },
        { "mod(p, 9)", "p" },
        { "mod(n*m, m)", "0" },
        { "mod(n*m + 1, p*m)", "mod(m*n + 1, m*p)" },
        /* choices */
        { "min(3, 4)", "3" },
        { "max(3, 4)", "4" },
        { "min(n, n)", "n" },
        { "min(n, m)", "min(m, n)" },
        { "max(n, min(m, n))", "n" },
        { "min(n + 1, n)", "n" },
        { "max(p, 1)", "p" },
        { "min(max(p, 1), 9)", "p" },
        { "max(n, 0)", "n" },
        { "min(min(p, n), min(m, p))", "min(m, min(n, p))" },
        { "min(n, 9223372036854775807)", "n" },
        { "select_one(1, n)", "n" },
        { "select_one(n, 1)", "n" },
        { "select_one(n, 5)", "5" },
        { "select_one(n, p)", "p" },
        { "select_one(n, m)", "select_one(m, n)" },
        { "select_one(m, n)", "select_one(m, n)" },
        { "select_one(select_one(n, m), n)", "select_one(m, n)" },
        /* limits */
        { "n*9223372036854775807*2", "9223372036854775807" },
        { "9223372036854775807 + n", "9223372036854775807" },
        { "99999999999999999999999", "9223372036854775807" },
        { "-9223372036854775808", "-9223372036854775808" },
        /* names */
        { "\"a b\" + 1", "\"a b\" + 1" },
        { "\"q\\\"\\\\\"*2", "2*\"q\\\"\\\\\"" },
        { "batch.size_0", "batch.size_0" },
        { "min + 1", "min + 1" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qn_dim d = parse(rows[i].text);
        assert_string_equal(qn_dim_print(d, arena), rows[i].normal);
        assert_ptr_equal(parse(rows[i].normal), d);
    }
}

static uint64_t random_state = 12345;
static unsigned random_below(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return b == 0 ? 0 : a / b - (a % b != 0 && (a < 0) != (b < 0));
}

/* A random expression, built and computed side by side. Divisors are positive. */
static qn_dim random_dim(int depth, const int64_t *symbols, int64_t *out_value)
{
    if (depth == 0 || random_below(5) == 0) {
        if (random_below(2)) {
            *out_value = (int64_t)random_below(9) - 3;
            return qn_dim_const(dims, *out_value);
        }
        const int s = (int)random_below(3);
        *out_value = symbols[s];
        return qn_dims_symbol_at(dims, s);
    }
    int64_t x, y;
    const qn_dim a = random_dim(depth - 1, symbols, &x), b = random_dim(depth - 1, symbols, &y);
    switch (random_below(7)) {
    case 0: *out_value = x + y; return qn_dim_add(dims, a, b);
    case 1: *out_value = x - y; return qn_dim_sub(dims, a, b);
    case 2: *out_value = x * y; return qn_dim_mul(dims, a, b);
    case 3: *out_value = x < y ? x : y; return qn_dim_min(dims, a, b);
    case 4: *out_value = x > y ? x : y; return qn_dim_max(dims, a, b);
    default: break;
    }
    const int64_t by = random_below(3) ? 1 + (int64_t)random_below(6) : 0; /* 0: by the symbol p */
    const qn_dim divisor = by ? qn_dim_const(dims, by) : qn_dim_find_symbol(dims, "p");
    const int64_t q = floor_div(x, by ? by : symbols[2]);
    if (random_below(2)) {
        *out_value = q;
        return qn_dim_floordiv(dims, a, divisor);
    }
    *out_value = x - q * (by ? by : symbols[2]);
    return qn_dim_mod(dims, a, divisor);
}

static void the_normal_form_means_the_same(void **state)
{
    (void)state;
    int symbolic = 0;
    for (int i = 0; i < 20000; i++) {
        const int64_t symbols[3] = { random_below(20), 1 + random_below(20), 2 + random_below(7) };
        int64_t want;
        const qn_dim d = random_dim(4, symbols, &want);
        const int64_t got = qn_dim_eval(d, symbols);
        if (got != want || d->min > want || d->max < want)
            fail_msg("n=%d m=%d p=%d: %s is %lld in [%lld, %lld], expected %lld", (int)symbols[0],
                     (int)symbols[1], (int)symbols[2], qn_dim_print(d, arena), (long long)got,
                     (long long)d->min, (long long)d->max, (long long)want);
        for (int by = 2; by < 5; by++)
            assert_true(!qn_dim_divisible(d, by) || want % by == 0);
        assert_ptr_equal(parse(qn_dim_print(d, arena)), d);
        symbolic += !qn_dim_is_const(d);
    }
    assert_true(symbolic > 5000);
}

static void bounds_answer_questions(void **state)
{
    (void)state;
    assert_true(qn_dim_is_valid_extent(parse("3*n + 1")));
    assert_false(qn_dim_is_valid_extent(parse("n - 1")));
    assert_false(qn_dim_is_valid_extent(parse("9223372036854775807")));
    assert_false(qn_dim_is_valid_extent(parse("n*1099511627776*2")));
    assert_true(qn_dim_at_most(dims, parse("n - 1"), parse("n")));
    assert_false(qn_dim_at_most(dims, parse("n"), parse("m")));
    assert_true(qn_dim_at_most(dims, parse("p"), parse("8")));
    assert_true(qn_dim_at_most(dims, parse("min(n, 5)"), parse("n")));
    /* where m is 1 at least, n*m outweighs n, twice that n and another term */
    assert_true(qn_dim_at_most(dims, parse("n"), parse("n*m")));
    assert_true(qn_dim_at_most(dims, parse("64*n + 192"), parse("128*n*m + 64*floordiv(n + 1, 2) + 192")));
    assert_false(qn_dim_at_most(dims, parse("3*n"), parse("2*n*m + 5")));
    assert_true(qn_dim_at_most(dims, parse("n"), parse("max(m, n)")));
    assert_true(qn_dim_at_most(dims, parse("max(m, 3)"), parse("max(m, p + 1)")));
    assert_false(qn_dim_at_most(dims, parse("max(m, n)"), parse("n")));
    assert_false(qn_dim_at_most(dims, parse("n"), parse("min(m, n)")));
    assert_true(qn_dim_at_most(
        dims, parse("n"),
        parse("n*m + mod(n, 2) + mod(n, 3) + mod(n, 4) + mod(n, 5) + mod(n, 6) + mod(n, 7) + mod(n, 8) + "
              "mod(m, 2) + mod(m, 3) + mod(m, 4) + mod(m, 5) + mod(m, 6) + mod(m, 7) + mod(m, 8) + mod(m, "
              "9)")));
    assert_true(qn_dim_at_most(dims, parse("6*n"), parse("3*n*p")));
    assert_false(qn_dim_at_most(dims, parse("7*n"), parse("3*n*p")));
    assert_true(qn_dim_at_most(dims, parse("7*n + m"), parse("3*n*p + n*m + 2*m")));
    assert_false(qn_dim_at_most(dims, parse("6*n + m"), parse("3*n*p + n*m - 1")));
    assert_true(qn_dim_at_most(dims, parse("2*n*m + 2"), parse("m*n*p + p")));
    assert_false(qn_dim_at_most(dims, parse("2*n*m + 5"), parse("2*m*n*p + p")));
    /* what is more than one is not more than the other */
    assert_true(qn_dim_at_most(dims, parse("n"), parse("max(0, 2*n - 1)")));
    assert_false(qn_dim_at_most(dims, parse("n"), parse("max(0, 2*n - 2)")));
    assert_ptr_equal(parse("min(n, max(0, 2*n - 1))"), parse("n"));
    assert_true(qn_dim_at_most(dims, parse("min(n, 5 - n)"), parse("2")));
    assert_false(qn_dim_at_most(dims, parse("min(n, 5 - n)"), parse("1")));
    assert_true(qn_dim_can_be_equal(dims, parse("n"), parse("m")));
    assert_false(qn_dim_can_be_equal(dims, parse("n"), parse("n + 1")));
    assert_false(qn_dim_can_be_equal(dims, parse("p"), parse("9")));
    assert_true(qn_dim_divisible(parse("4*n + 8*m*p"), 4));
    assert_false(qn_dim_divisible(parse("4*n + 2"), 4));
    assert_true(qn_dim_divisible(parse("max(4*n, 6*m)"), 2));
    assert_true(qn_dim_divisible(parse("0"), 64));
    assert_false(qn_dim_divisible(parse("n"), 2));
}

static void select_one_takes_the_extent_that_is_not_one(void **state)
{
    (void)state;
    const qn_dim d = parse("select_one(n, select_one(m, \"k\"))");
    static const int64_t rows[][5] = { /* n, m, p, k, extent */
                                       { 1, 1, 2, 1, 1 }, { 7, 1, 2, 1, 7 }, { 1, 7, 2, 1, 7 },
                                       { 1, 1, 2, 7, 7 }, { 7, 1, 2, 7, 7 }, { 0, 1, 2, 1, 0 }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(qn_dim_eval(d, rows[i]), rows[i][4]);
}

static void ranges_narrow_and_fresh_names_are_new(void **state)
{
    (void)state;
    const qn_dim n = qn_dim_symbol(dims, "n", 5, 6);
    assert_int_equal(n->max, 1000);
    qn_dim_set_range(dims, n, 3, 2000);
    assert_true(n->min == 3 && n->max == 1000);
    assert_ptr_equal(qn_dim_max(dims, n, qn_dim_const(dims, 2)), n);
    assert_string_equal(qn_dim_fresh(dims, "n", 0, 9)->name, "n_1");
    assert_string_equal(qn_dim_fresh(dims, "n", 0, 9)->name, "n_2");
    assert_string_equal(qn_dim_fresh(dims, "count", 0, 9)->name, "count");
    assert_null(qn_dim_find_symbol(dims, "nothing"));
    assert_int_equal(qn_dims_symbol_count(dims), 6);
    assert_ptr_equal(qn_dims_symbol_at(dims, n->symbol), n);
}

static void expressions_move_between_tables(void **state)
{
    (void)state;
    const char *text = "floordiv(n + 2*m*p - 1, 3) + max(m, n)";
    qn_dims *other = qn_dims_new(arena);
    qn_dim_symbol(other, "p", 2, 8); /* other numbers */
    const qn_dim d = qn_dim_import(other, parse(text));
    assert_string_equal(qn_dim_print(d, arena), qn_dim_print(parse(text), arena));
    assert_int_equal(qn_dim_find_symbol(other, "n")->max, 1000);

    const qn_dim values[2] = { parse("3*m + 1") }; /* n; m stays */
    assert_string_equal(qn_dim_print(qn_dim_substitute(dims, parse("floordiv(n, 3) + m"), values, 2), arena),
                        "2*m");
}

static void what_is_not_negative_has_its_factors_in_front(void **state)
{
    (void)state;
    qn_dim_symbol(dims, "any", -100, 100);
    static const char *const rows[][2] = {
        { "2*n", "2*n" },
        { "-4", "0" },
        { "4*n*m - 8*n", "4*n*max(0, m - 2)" },
        { "6*any*n - 9*any*m", "3*max(0, -3*any*m + 2*any*n)" },
        { "n - 1", "max(0, n - 1)" },
        { "-3*n", "0" },
        { "floordiv(n, 2)*m*64 - 64*m", "64*m*max(0, floordiv(n, 2) - 1)" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_ptr_equal(qn_dim_not_negative(dims, parse(rows[i][0])), parse(rows[i][1]));
    assert_true(qn_dim_at_most(dims, qn_dim_not_negative(dims, parse("4*n*m - 8*n")),
                               qn_dim_not_negative(dims, parse("6*n*m - 12*n"))));
}

/* Long sums, added and taken from each other. */
static void long_sums_keep_their_terms(void **state)
{
    (void)state;
    enum { N = 150 };
    qn_dim s[N], even = parse("7"), all = parse("3");
    for (int i = 0; i < N; i++) {
        s[i] = qn_dim_fresh(dims, "long", 0, 10);
        all = i % 3 ? qn_dim_add(dims, all, s[i]) : qn_dim_add(dims, s[i], all);
        if (i % 2 == 0)
            even = qn_dim_add(dims, even, s[i]);
    }
    assert_int_equal(all->n, N + 1);
    qn_dim odd = qn_dim_sub(dims, all, even);
    assert_int_equal(odd->n, N / 2 + 1);
    assert_int_equal(odd->min, -4);
    assert_int_equal(odd->max, 10 * N / 2 - 4);
    assert_ptr_equal(qn_dim_add(dims, odd, even), all);
    for (int i = N - 1; i >= 0; i -= 2)
        odd = qn_dim_sub(dims, odd, s[i]);
    assert_true(qn_dim_is(odd, -4));
    assert_true(qn_dim_at_most(dims, qn_dim_sub(dims, even, parse("4")), all));
    assert_true(qn_dim_is(qn_dim_sub(dims, all, all), 0));
}

static void mistakes_stop_at_the_place(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        { "", "" },          { "2 +", "" },          { "n*", "" },      { "(n", "" },
        { "]", "]" },        { "2 + ]", "]" },       { "min(n", "" },   { "min(n]", "]" },
        { "max(n, )", ")" }, { "\"open", "\"open" }, { "\"\"", "\"\"" }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *at = rows[i][0];
        assert_null(qn_dim_parse(dims, &at));
        assert_string_equal(at, rows[i][1]);
    }
    const char *at = "n + 1, m]";
    assert_string_equal(qn_dim_print(qn_dim_parse(dims, &at), arena), "n + 1");
    assert_string_equal(at, ", m]");
    at = "n ]";
    assert_non_null(qn_dim_parse(dims, &at));
    assert_string_equal(at, " ]");
}

/* n is at most m, and k at most 10: what stands for an expression then has m alone, and is as large wherever they lie. */
static void expressions_have_a_most(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        { "2*n + 1", "2*m + 1" },
        { "100 - n", "100" },
        { "max(0, m - n) + 1", "m + 1" },
        { "k*n", "10*m" },
        { "m - 3*k*n", "m" },
        { "floordiv(n + 7, 8)", "floordiv(m + 7, 8)" },
        { "floordiv(m, k + 1)", "m" },
        { "floordiv(k - 20, 4)", "-3" },
        { "min(n, k)", "min(10, m)" },
        { "select_one(n, k)", "max(10, m)" },
        { "mod(n, 4)", "3" },
        { "m*m", "m*m" },
    };
    qn_dim n = qn_dim_symbol(dims, "n", 0, 1000), m = qn_dim_symbol(dims, "m", 0, 1000),
           k = qn_dim_symbol(dims, "k", 0, 10), most[8] = { NULL };
    most[n->symbol] = m;
    most[k->symbol] = qn_dim_const(dims, 10);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qn_dim d = parse(rows[i][0]), bound = qn_dim_most(dims, d, most, 8);
        assert_string_equal(qn_dim_print(bound, arena), rows[i][1]);
        for (int64_t v = 0; v < 40 * 11; v++) {
            int64_t values[8];
            values[m->symbol] = 39;
            values[n->symbol] = v / 11;
            values[k->symbol] = v % 11;
            assert_true(qn_dim_eval(d, values) <= qn_dim_eval(bound, values));
        }
    }
}

/* Expressions that grow without end become INT64_MAX, soon. */
static void growth_is_bounded(void **state)
{
    (void)state;
    qn_dim d = parse("n + m + p");
    for (int i = 0; i < 60; i++)
        d = qn_dim_mul(dims, d, d);
    assert_true(qn_dim_is(d, INT64_MAX));
    d = parse("n");
    for (int i = 0; i < 5000; i++)
        d = qn_dim_mod(dims, qn_dim_mul(dims, qn_dim_find_symbol(dims, "m"), d), parse("p + 1"));
    assert_true(qn_dim_is(d, INT64_MAX));
    d = parse("n");
    for (int i = 0; i < 100; i++)
        d = qn_dim_max(dims, d, qn_dim_fresh(dims, "s", 0, 100));
    assert_true(qn_dim_is(d, INT64_MAX));

    char deep[4001];
    memset(deep, '(', 4000);
    deep[4000] = 0;
    const char *at = deep;
    assert_null(qn_dim_parse(dims, &at));
    memset(deep, '-', 4000);
    at = deep;
    assert_null(qn_dim_parse(dims, &at));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(expressions_have_one_normal_form, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_normal_form_means_the_same, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bounds_answer_questions, set_up, tear_down),
        cmocka_unit_test_setup_teardown(select_one_takes_the_extent_that_is_not_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ranges_narrow_and_fresh_names_are_new, set_up, tear_down),
        cmocka_unit_test_setup_teardown(expressions_move_between_tables, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_not_negative_has_its_factors_in_front, set_up, tear_down),
        cmocka_unit_test_setup_teardown(long_sums_keep_their_terms, set_up, tear_down),
        cmocka_unit_test_setup_teardown(expressions_have_a_most, set_up, tear_down),
        cmocka_unit_test_setup_teardown(mistakes_stop_at_the_place, set_up, tear_down),
        cmocka_unit_test_setup_teardown(growth_is_bounded, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
