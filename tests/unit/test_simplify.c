/* Each line of passes/algebra.rules fires, and what stands for the op gives what the op gives: in strict math the same bits of every
 * value, NaN, infinities and -0 among them; elsewhere nearly the same number of those that are about 1. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "ir/build.h"
#include "passes/passes.h"
#include "tests/support/eval.h"

enum { MOST = 32 };

typedef enum pattern { SAME, ZERO, NEG_ZERO, ONE, MINUS_ONE, TWO, THREE, HALF, ONES } pattern;

typedef struct identity {
    const char *text;
    qn_op op;
    pattern pattern;
    bool on_left;
    int dtypes;
    qn_math math;
} identity;

static const identity identities[] = {
#define RULE(op, right, dtypes, mode, result) \
    { #op " " #right, QN_OP_##op, right, false, dtypes, QN_MATH_##mode },
#define LEFT_RULE(op, left, dtypes, mode, result) \
    { #left " " #op, QN_OP_##op, left, true, dtypes, QN_MATH_##mode },
#include "passes/algebra.rules"
};

typedef struct pair {
    const char *text;
    qn_op outer, inner;
    int dtypes;
} pair;

static const pair pairs[] = {
#define TWICE(outer, inner, dtypes, result) { #outer " " #inner, QN_OP_##outer, QN_OP_##inner, dtypes },
#include "passes/algebra.rules"
};

static double number_of(pattern p)
{
    switch (p) {
    case NEG_ZERO: return -0.0;
    case ONE: return 1;
    case MINUS_ONE:
    case ONES: return -1;
    case TWO: return 2;
    case THREE: return 3;
    case HALF: return 0.5;
    default: return 0;
    }
}

/* Integers and bool, of every one the values that wrap; or floats, all or those about 1. */
static qn_array values_of(qn_dtype dtype, bool all)
{
    static const double some[] = { 0.25, 0.5, 1, 1.5, 2, 3, 0.7 },
                        more[] = { 0,     -0.0, -1, -2.5,  -0.5,     4,         1e-3,
                                   60000, 1e30, -7, 1e-41, INFINITY, -INFINITY, NAN };
    static const int64_t whole[] = { 0, 1,   2,   3,     -1,        -2,        -3,        7,
                                     8, 127, 128, 32767, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN };
    double values[MOST];
    int64_t n = 0;
    if (!qn_dtype_is_float(dtype)) {
        n = dtype == QUERN_BOOL ? 2 : sizeof whole / sizeof *whole;
        return ints(dtype, 1, &n, whole);
    }
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        values[n++] = some[i];
    for (size_t i = 0; i < sizeof more / sizeof *more && all; i++)
        values[n++] = more[i];
    return floats(dtype, 1, &n, values);
}

static qn_value *constant_of(qn_builder *b, const qn_value *x, pattern p)
{
    const qn_dtype dtype = x->type.dtype;
    qn_value *scalar =
        qn_dtype_is_float(dtype)
            ? qn_b_scalar(b, dtype, number_of(p))
            : qn_b_scalar_int(b, dtype, dtype == QUERN_BOOL ? p == ONES : (int64_t)number_of(p));
    return qn_b_broadcast(b, scalar, 1, x->type.dims, (const int64_t[]){ 0 });
}

static int count(const qn_graph *graph, qn_op op)
{
    int n = 0;
    QN_FOR_NODES (graph, node)
        n += node->op == op;
    return n;
}

/* The graph's output before and after the pass. */
static void check(const char *text, qn_graph *graph, const qn_array *x, qn_math math)
{
    char what[64];
    snprintf(what, sizeof what, "%s of %s", text, qn_dtype_name(x->dtype));
    const qn_array *wanted = eval_graph(graph, x);
    if (!wanted)
        fail_msg("%s: %s", what, eval_error());
    const qn_pass_options options = { .math = math };
    const qn_pass_hooks hooks = { .verify_each = true };
    if (qn_run_passes(graph, "simplify,dce", &options, &hooks, eval_diags()))
        fail_msg("%s: %s", what, qn_diags_text(eval_diags(), eval_module()->arena));
    const qn_array *found = eval_graph(graph, x);
    if (math == QN_MATH_STRICT)
        expect_same(what, found, wanted);
    else
        expect_near(what, found, wanted, x->dtype == QUERN_BF16 ? 0.02 : x->dtype == QUERN_F16 ? 2e-3 : 1e-6);
}

static qn_value *begin(qn_builder *b, const qn_array *x)
{
    qn_graph *graph = qn_function_new(eval_module(), "f");
    *b = (qn_builder){ .graph = graph, .diags = eval_diags() };
    return qn_graph_add_input(graph, "x", qn_type_static(eval_module(), x->dtype, 1, x->dims), QN_ROLE_INPUT);
}

static void identities_hold(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof identities / sizeof *identities; i++) {
        const identity *rule = &identities[i];
        int checked = 0;
        for (qn_dtype dtype = QUERN_BOOL; dtype <= QUERN_F64; dtype++) {
            if (!(qn_dtype_class_of(dtype) & rule->dtypes & qn_ops[rule->op].dtypes) ||
                (rule->pattern == MINUS_ONE && qn_dtype_class_of(dtype) == QN_CLASS_UNSIGNED))
                continue;
            const qn_array values = values_of(dtype, rule->math == QN_MATH_STRICT);
            qn_builder b;
            qn_value *x = begin(&b, &values);
            qn_value *other = rule->pattern == SAME ? x : constant_of(&b, x, rule->pattern);
            qn_value *y =
                rule->on_left ? qn_b_binary(&b, rule->op, other, x) : qn_b_binary(&b, rule->op, x, other);
            qn_graph_add_output(b.graph, y, "y", -1);
            check(rule->text, b.graph, &values, rule->math);
            if (count(b.graph, rule->op) > 0)
                fail_msg("%s stays", rule->text);
            checked++;
            eval_reset();
        }
        assert_true(checked > 0);
    }
}

static void twice_is_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const pair *rule = &pairs[i];
        int checked = 0;
        for (qn_dtype dtype = QUERN_BOOL; dtype <= QUERN_F64; dtype++) {
            if (!(qn_dtype_class_of(dtype) & rule->dtypes & qn_ops[rule->outer].dtypes &
                  qn_ops[rule->inner].dtypes))
                continue;
            const qn_array values = values_of(dtype, true);
            qn_builder b;
            qn_value *x = begin(&b, &values);
            qn_value *y = qn_b_unary(&b, rule->outer, qn_b_unary(&b, rule->inner, x));
            qn_graph_add_output(b.graph, y, "y", -1);
            check(rule->text, b.graph, &values, QN_MATH_STRICT);
            if (count(b.graph, rule->inner) + (rule->inner != rule->outer) * count(b.graph, rule->outer) > 1)
                fail_msg("%s stays", rule->text);
            checked++;
            eval_reset();
        }
        assert_true(checked > 0);
    }
}

/* In strict math what holds for other values than -0 or -infinity alone stays. */
static void inexact_ones_stay(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof identities / sizeof *identities; i++) {
        const identity *rule = &identities[i];
        if (rule->math == QN_MATH_STRICT)
            continue;
        const qn_array values = values_of(QUERN_F32, true);
        qn_builder b;
        qn_value *x = begin(&b, &values);
        qn_graph_add_output(b.graph, qn_b_binary(&b, rule->op, x, constant_of(&b, x, rule->pattern)), "y",
                            -1);
        check(rule->text, b.graph, &values, QN_MATH_STRICT);
        assert_int_equal(count(b.graph, rule->op), 1);
        eval_reset();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(identities_hold, eval_teardown),
        cmocka_unit_test_teardown(twice_is_once, eval_teardown),
        cmocka_unit_test_teardown(inexact_ones_stay, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
