/* Whole graphs in the reference interpreter: symbols, control flow, calls, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

static void if_takes_one_branch(void **state)
{
    (void)state;
    /* The branch that is not taken would fail: its index is out of range. */
    const char *text =
        "graph @f(%p: bool[], %x: f32[2], %i: i64[]) -> (f32[], f32[2]) {\n"
        "  %0, %1 = if %p, %x, %i : f32[], f32[2]\n"
        "    then (%a: f32[2], %j: i64[]) { %0 = gather %a, %j {axis = 0} : f32[] return %0, %a }\n"
        "    else (%a: f32[2], %j: i64[]) { %0 = reduce %a {axes = [0], kind = sum} : f32[] %1 = neg %a : "
        "f32[2] return %0, %1 }\n"
        "  return %0, %1\n}\n";
    const qn_array x = floats(QUERN_F32, SHAPE(2), V(3, 5)), minus = floats(QUERN_F32, SHAPE(2), V(-3, -5));
    const qn_array yes = ints(QUERN_BOOL, SCALAR, I(1)), no = ints(QUERN_BOOL, SCALAR, I(0));
    const qn_array one = ints(QUERN_I64, SCALAR, I(1)), nine = ints(QUERN_I64, SCALAR, I(9));
    const qn_array five = floats(QUERN_F32, SCALAR, V(5)), eight = floats(QUERN_F32, SCALAR, V(8));
    const qn_array *r = eval_text(text, (qn_array[]){ yes, x, one });
    expect_same("then", r, &five);
    expect_same("then, captured", r + 1, &x);
    r = eval_text(text, (qn_array[]){ no, x, nine });
    expect_same("else", r, &eight);
    expect_same("else, negated", r + 1, &minus);
    assert_null(eval_text(text, (qn_array[]){ yes, x, nine }));
    assert_int_equal(eval_status(), QUERN_ERROR_INDEX);
}

/* Doubles x until it is at least the limit; counts the steps. */
#define WHILE(attrs)                                                                                       \
    "graph @f(%x: f32[], %limit: f32[]) -> (f32[], i32[]) {\n"                                             \
    "  %n = constant 0 : i32[]\n"                                                                          \
    "  %0, %1 = while %x, %n, %limit {" attrs "n_carried = 2} : f32[], i32[]\n"                            \
    "    condition (%a: f32[], %i: i32[], %l: f32[]) { %0 = compare %a, %l {direction = lt} : bool[] "     \
    "return %0 }\n"                                                                                        \
    "    body (%a: f32[], %i: i32[], %l: f32[]) { %0 = add %a, %a : f32[] %one = constant 1 : i32[] %2 = " \
    "add %i, %one : i32[] return %0, %2 }\n"                                                               \
    "  return %0, %1\n}\n"

static void while_runs_until_its_condition_fails(void **state)
{
    (void)state;
    const qn_array x[] = { floats(QUERN_F32, SCALAR, V(3)), floats(QUERN_F32, SCALAR, V(100)) };
    const qn_array y = floats(QUERN_F32, SCALAR, V(192)), n = ints(QUERN_I32, SCALAR, I(6));
    const qn_array *r = eval_text(WHILE(""), x);
    expect_same("value", r, &y);
    expect_same("count", r + 1, &n);
    const qn_array y2 = floats(QUERN_F32, SCALAR, V(12)), two = ints(QUERN_I32, SCALAR, I(2));
    r = eval_text(WHILE("limit = [2], "), x);
    expect_same("value at the limit", r, &y2);
    expect_same("count at the limit", r + 1, &two);
    const qn_array big[] = { x[1], x[0] }, zero = ints(QUERN_I32, SCALAR, I(0));
    r = eval_text(WHILE(""), big);
    expect_same("never", r, &x[1]);
    expect_same("count of none", r + 1, &zero);
}

/* The body swaps: what an iteration gives may be what it took. */
static void loops_may_pass_values_on(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[], %y: f32[]) -> (f32[], f32[]) {\n"
                       "  %0, %1 = scan %x, %y {length = [3], n_carried = 2, n_scanned = 0} : f32[], f32[]\n"
                       "    body (%a: f32[], %b: f32[]) { return %b, %a }\n"
                       "  return %0, %1\n}\n";
    const qn_array x[] = { floats(QUERN_F32, SCALAR, V(1)), floats(QUERN_F32, SCALAR, V(2)) };
    const qn_array *r = eval_text(text, x);
    expect_same("swapped", r, &x[1]);
    expect_same("swapped", r + 1, &x[0]);
}

#define SCAN(attrs)                                                                           \
    "graph @f(%c: f32[2], %x: f32[n, 2], %w: f32[2]) -> (f32[2], f32[n, 2], f32[n]) {\n"      \
    "  %0, %1, %2 = scan %c, %x, %w {length = [n], n_carried = 1, n_scanned = 1" attrs        \
    "} : f32[2], f32[n, 2], f32[n]\n"                                                         \
    "    body (%a: f32[2], %s: f32[2], %v: f32[2]) {\n"                                       \
    "      %p = mul %s, %v : f32[2]\n      %q = add %a, %p : f32[2]\n"                        \
    "      %t = reduce %q {axes = [0], kind = sum} : f32[]\n      return %q, %q, %t\n    }\n" \
    "  return %0, %1, %2\n}\n"

static void scan_stacks_its_outputs(void **state)
{
    (void)state;
    const qn_array x[] = { floats(QUERN_F32, SHAPE(2), V(1, 1)),
                           floats(QUERN_F32, SHAPE(3, 2), V(1, 2, 3, 4, 5, 6)),
                           floats(QUERN_F32, SHAPE(2), V(1, 10)) };
    const qn_array last = floats(QUERN_F32, SHAPE(2), V(10, 121));
    const qn_array *r = eval_text(SCAN(""), x);
    const qn_array all = floats(QUERN_F32, SHAPE(3, 2), V(2, 21, 5, 61, 10, 121)),
                   sums = floats(QUERN_F32, SHAPE(3), V(23, 66, 131));
    expect_same("carried", r, &last);
    expect_same("stacked", r + 1, &all);
    expect_same("stacked scalars", r + 2, &sums);
    r = eval_text(SCAN(", reverse = true"), x);
    const qn_array back = floats(QUERN_F32, SHAPE(3, 2), V(10, 121, 9, 101, 6, 61));
    expect_same("carried in reverse", r, &last);
    expect_same("stacked in reverse", r + 1, &back);
    const qn_array none[] = { x[0], floats(QUERN_F32, SHAPE(0, 2), EMPTY), x[2] };
    r = eval_text(SCAN(""), none);
    expect_same("no steps", r, &x[0]);
    expect_same("nothing stacked", r + 1, &none[1]);
}

static void calls_run_functions(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[n]) -> f32[n] {\n"
                       "  %0 = call %x {function = \"g\"} : f32[n]\n  %1 = call %0 {function = \"g\"} : "
                       "f32[n]\n  return %1\n}\n"
                       "graph @g(%x: f32[n]) -> f32[n] {\n  %0 = add %x, %x : f32[n]\n  return %0\n}\n";
    const qn_array x = floats(QUERN_F32, SHAPE(3), V(1, 2, 3)), y = floats(QUERN_F32, SHAPE(3), V(4, 8, 12));
    expect_same("call", eval_text(text, &x), &y);
}

static void symbols_take_their_values_from_the_inputs(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[2*n + 1, m], %y: f32[m, k*n]) -> (i64[], i64[], f32[m, n]) {\n"
                       "  %0 = dim_value {dims = [n], dtype = i64} : i64[]\n"
                       "  %1 = dim_value {dims = [k + floordiv(m, 2)], dtype = i64} : i64[]\n"
                       "  %2 = slice %x {limit = [m, n], start = [0, 0], stride = [1, 1]} : f32[m, n]\n"
                       "  return %0, %1, %2\n}\n";
    const qn_array x[] = { noise(QUERN_F32, SHAPE(7, 4), 1), noise(QUERN_F32, SHAPE(4, 6), 2) };
    const qn_array *r = eval_text(text, x);
    const qn_array n = ints(QUERN_I64, SCALAR, I(3)), k = ints(QUERN_I64, SCALAR, I(4));
    expect_same("n", r, &n);
    expect_same("k + m/2", r + 1, &k);
    assert_int_equal(r[2].dims[0], 4);
    assert_int_equal(r[2].dims[1], 3);
    assert_true(at(&r[2], 4) == at(&x[0], 5));
}

/* Where the types leave it open, the run decides: extents of 1 are repeated. */
static void broadcasts_may_be_decided_by_the_run(void **state)
{
    (void)state;
    const char *text = "graph @f(%x: f32[n], %y: f32[m]) -> f32[select_one(n, m)] {\n"
                       "  %0 = broadcast %x {axes = [0], dims = [select_one(n, m)]} : f32[select_one(n, m)]\n"
                       "  %1 = broadcast %y {axes = [0], dims = [select_one(n, m)]} : f32[select_one(n, m)]\n"
                       "  %2 = add %0, %1 : f32[select_one(n, m)]\n  return %2\n}\n";
    const qn_array one = floats(QUERN_F32, SHAPE(1), V(10)), three = floats(QUERN_F32, SHAPE(3), V(1, 2, 3));
    const qn_array two = floats(QUERN_F32, SHAPE(2), V(1, 2)),
                   sum = floats(QUERN_F32, SHAPE(3), V(11, 12, 13));
    expect_same("1 and 3", eval_text(text, (qn_array[]){ one, three }), &sum);
    expect_same("3 and 1", eval_text(text, (qn_array[]){ three, one }), &sum);
    assert_null(eval_text(text, (qn_array[]){ two, three }));
    assert_int_equal(eval_status(), QUERN_ERROR_ARGUMENT);
}

static void mistakes_are_named(void **state)
{
    (void)state;
    const qn_array x3 = floats(QUERN_F32, SHAPE(3), V(1, 2, 3)), x2 = floats(QUERN_F32, SHAPE(2), V(1, 2));
    const qn_array i3 = ints(QUERN_I64, SHAPE(3), I(1, 2, 3)), m = floats(QUERN_F32, SHAPE(3, 1), V(1, 2, 3));
    const struct {
        const char *text;
        qn_array x, y;
        qn_status status;
        const char *message;
    } rows[] = {
        { "graph @f(%x: f32[n], %y: f32[n]) -> f32[n] { %0 = add %x, %y : f32[n] return %0 }", x3, x2,
          QUERN_ERROR_ARGUMENT, "input 'y': axis 0 is 2, expected n = 3" },
        { "graph @f(%x: f32[n], %y: f32[2]) -> f32[n] { return %x }", x3, x3, QUERN_ERROR_ARGUMENT,
          "input 'y': axis 0 is 3, expected 2" },
        { "graph @f(%x: f32[n], %y: f32[2*n]) -> f32[n] { return %x }", x3, x3, QUERN_ERROR_ARGUMENT,
          "input 'y': axis 0 is 3, expected 2*n = 6" },
        { "graph @f(%x: f32[n], %y: f32[n]) -> f32[n] { return %x }", x3, i3, QUERN_ERROR_ARGUMENT,
          "input 'y' is i64 of rank 1, expected is f32[n]" },
        { "graph @f(%x: f32[n], %y: f32[n]) -> f32[n] { return %x }", x3, m, QUERN_ERROR_ARGUMENT,
          "input 'y' is f32 of rank 2, expected is f32[n]" },
        { "graph @f(%x: f32[2*n], %y: f32[m]) -> f32[2*n] { return %x }", x3, x2, QUERN_ERROR_ARGUMENT,
          "dimension 'n' has no value: no input says it" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[k] { %0 = broadcast %x {axes = [0], dims = [k]} : f32[k] "
          "return %0 }",
          x3, x2, QUERN_ERROR_ARGUMENT, "test.qn:1:46: dimension 'k' has no value: no input says it" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[m] { %0 = reshape %x {dims = [m]} : f32[m] return %0 }",
          x3, x2, QUERN_ERROR_ARGUMENT, "test.qn:1:46: reshape of 3 elements to 2" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[n] { %0 = slice %y {limit = [n], start = [0], stride = "
          "[1]} : f32[n] return %0 }",
          x3, x2, QUERN_ERROR_ARGUMENT, "test.qn:1:46: slice [0, 3) of axis 0, whose extent is 2" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[m - n] { %0 = slice %y {limit = [m], start = [n], stride "
          "= [1]} : f32[m - n] return %0 }",
          x3, x2, QUERN_ERROR_ARGUMENT, "test.qn:1:50: axis 0 would have -1 elements" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[n] { %0, %1 = top_k %y {axis = 0, k = [n], largest = "
          "true} : f32[n], i64[n] return %0 }",
          x3, x2, QUERN_ERROR_ARGUMENT, "test.qn:1:46: top_k: k is 3, but axis 0 has 2 elements" },
        { "graph @f(%x: f32[n], %y: f32[m]) -> f32[1000000000000*n] { %0 = broadcast %x {axes = [1], dims "
          "= [1000000000000, n]} : f32[1000000000000, n]"
          " %1 = reshape %0 {dims = [1000000000000*n]} : f32[1000000000000*n] return %1 }",
          x3, x2, QUERN_ERROR_MEMORY, NULL },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_null(eval_text(rows[i].text, (qn_array[]){ rows[i].x, rows[i].y }));
        if (rows[i].message)
            assert_string_equal(eval_error(), rows[i].message);
        assert_int_equal(eval_status(), rows[i].status);
    }
}

static void recursion_ends(void **state)
{
    (void)state;
    /* By hand: the function is there before its body calls it. */
    qn_module *module = eval_module();
    qn_graph *f = qn_function_new(module, "f");
    qn_value *x = qn_graph_add_input(f, "x", qn_type_static(module, QUERN_F32, 0, NULL), QN_ROLE_INPUT);
    qn_graph_add_output(f, x, NULL, -1);
    qn_node *call =
        add_node(f, QN_OP_CALL, 1, &x, 1, &(qn_attr){ .key = QN_ATTR_FUNCTION, .s = "f" }, 0, NULL);
    f->outputs[0] = call->results;
    assert_null(eval_graph(f, &(qn_array){ .dtype = QUERN_F32, .data = &(float){ 1 } }));
    assert_non_null(strstr(eval_error(), "inside each other"));
}

/* Inputs may lie anywhere, outputs are the caller's. */
static void inputs_may_be_unaligned_and_unused(void **state)
{
    (void)state;
    static unsigned char memory[20];
    memcpy(memory + 3, (const double[]){ 1.5, -2 }, 16);
    const qn_array x = { .dtype = QUERN_F64, .rank = 1, .dims = { 2 }, .data = memory + 3 };
    const qn_array empty = { .dtype = QUERN_F64, .rank = 1, .dims = { 0 }, .data = NULL };
    const char *text = "graph @f(%x: f64[n], %e: f64[0]) -> (f64[n], f64[n], f64[0]) { %0 = neg %x : f64[n] "
                       "%1 = neg %e : f64[0] return %0, %x, %1 }";
    const qn_array y = floats(QUERN_F64, SHAPE(2), V(-1.5, 2)),
                   same = floats(QUERN_F64, SHAPE(2), V(1.5, -2));
    const qn_array *r = eval_text(text, (qn_array[]){ x, empty });
    expect_same("neg", r, &y);
    expect_same("passed on", r + 1, &same);
    assert_true((unsigned char *)r[1].data != memory + 3);
    assert_int_equal(r[2].dims[0], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(if_takes_one_branch, eval_teardown),
        cmocka_unit_test_teardown(while_runs_until_its_condition_fails, eval_teardown),
        cmocka_unit_test_teardown(loops_may_pass_values_on, eval_teardown),
        cmocka_unit_test_teardown(scan_stacks_its_outputs, eval_teardown),
        cmocka_unit_test_teardown(calls_run_functions, eval_teardown),
        cmocka_unit_test_teardown(symbols_take_their_values_from_the_inputs, eval_teardown),
        cmocka_unit_test_teardown(broadcasts_may_be_decided_by_the_run, eval_teardown),
        cmocka_unit_test_teardown(mistakes_are_named, eval_teardown),
        cmocka_unit_test_teardown(recursion_ends, eval_teardown),
        cmocka_unit_test_teardown(inputs_may_be_unaligned_and_unused, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
