/* quern_tensor.h: storages and views, writing in place where memory overlaps, results, uses and mistakes. That results are
 * NumPy's is tested in tests/python/test_tensors.py. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quern_tensor.h"

static quern_tensor *must(quern_tensor *x)
{
    if (!x)
        fail_msg("%s", quern_last_error());
    return x;
}

static quern_tensor *range(int n, int rank, const int64_t *dims)
{
    return must(quern_tensor_reshape(must(quern_tensor_arange(QUERN_F32, 0, n, 1)), rank, dims));
}

static double item(const quern_tensor *x)
{
    double value = 0;
    if (!x || quern_tensor_item(x, &value))
        fail_msg("%s", quern_last_error());
    return value;
}

static double at(const quern_tensor *x, int64_t i, int64_t j)
{
    return item(quern_tensor_select(quern_tensor_select(x, 0, i), 0, j));
}

#define ROWS(x) ((float *)quern_tensor_data(must(x)))

static int with_scope(void **state)
{
    *state = quern_scope_begin();
    return *state == NULL;
}

static int without_scope(void **state)
{
    quern_scope_end(*state);
    return 0;
}

/* ---- views ---- */

static int users(const quern_tensor *x)
{
    int n;
    quern_tensor_storage(x, NULL, &n);
    return n;
}

static void test_views_share_a_storage(void **state)
{
    (void)state;
    quern_tensor *x = range(12, QUERN_DIMS(3, 4));
    void *storage = quern_tensor_storage(x, NULL, NULL);
    char *data = quern_tensor_data(x);
    quern_tensor *views[] = { quern_tensor_transpose(x, NULL),
                              quern_tensor_reshape(x, QUERN_DIMS(2, -1)),
                              quern_tensor_slice(x, 0, 1, QUERN_ALL, 1),
                              quern_tensor_slice(x, 1, QUERN_ALL, QUERN_ALL, -2),
                              quern_tensor_select(x, 1, -1),
                              quern_tensor_broadcast(x, QUERN_DIMS(5, 3, 4)) };
    const long offsets[] = { 0, 0, 16, 12, 12, 0 };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
        assert_ptr_equal(quern_tensor_storage(must(views[i]), NULL, NULL), storage);
        assert_int_equal((char *)quern_tensor_data(views[i]) - data, offsets[i]);
    }
    assert_int_equal(at(views[0], 3, 1), 7);
    assert_int_equal(at(views[1], 1, 0), 6);
    assert_int_equal(at(views[2], 0, 3), 7);
    assert_int_equal(at(views[3], 2, 1), 9);
    assert_int_equal(item(quern_tensor_select(views[4], 0, 1)), 7);
    ROWS(x)[7] = 70;
    assert_int_equal(at(views[0], 3, 1), 70);
    assert_int_equal(quern_tensor_dims(views[1])[1], 6);
    assert_int_equal(quern_tensor_strides(views[3])[1], -2);
    assert_int_equal(quern_tensor_elements(views[5]), 60);
    assert_false(quern_tensor_is_contiguous(views[0]));
    assert_true(quern_tensor_is_contiguous(views[2]));
}

static void test_reshape_copies_only_where_it_must(void **state)
{
    (void)state;
    quern_tensor *x = range(24, QUERN_DIMS(2, 3, 4));
    quern_tensor *even = quern_tensor_slice(x, 2, QUERN_ALL, QUERN_ALL, 2);
    quern_tensor *flat = must(quern_tensor_reshape(even, QUERN_DIMS(-1)));
    assert_ptr_equal(quern_tensor_data(flat), quern_tensor_data(x)); /* one stride of 2 */
    assert_int_equal(quern_tensor_strides(flat)[0], 2);
    quern_tensor *turned = must(quern_tensor_reshape(quern_tensor_transpose(x, NULL), QUERN_DIMS(4, 6)));
    assert_ptr_not_equal(quern_tensor_data(turned), quern_tensor_data(x));
    for (int i = 0; i < 24; i++) /* element (k, j, i) of the turned one is x[i, j, k] */
        assert_int_equal(ROWS(turned)[i], (i % 2) * 12 + (i / 2 % 3) * 4 + i / 6);
    quern_tensor *ones = must(quern_tensor_reshape(x, QUERN_DIMS(1, 2, 1, 12, 1)));
    assert_ptr_equal(quern_tensor_data(ones), quern_tensor_data(x));
    quern_tensor *none = must(quern_tensor_reshape(quern_tensor_slice(x, 1, 3, 3, 1), QUERN_DIMS(0, 7)));
    assert_int_equal(quern_tensor_elements(none), 0);
}

static void count_down(void *user)
{
    --*(int *)user;
}

static void test_uses(void **state)
{
    (void)state;
    int lent = 1;
    float memory[] = { 1, 2, 3, 4 };
    const quern_array array = { QUERN_F32, 1, (const int64_t[]){ 4 }, memory };
    quern_tensor *x = must(quern_tensor_wrap(&array, NULL, count_down, &lent));
    assert_ptr_equal(quern_tensor_data(x), memory);
    quern_tensor *view = must(quern_tensor_slice(x, 0, QUERN_ALL, QUERN_ALL, -1));
    assert_int_equal(users(x), 2);
    assert_ptr_equal(quern_tensor_retain(x), x);
    quern_tensor_free(x);
    quern_tensor_free(x);
    assert_int_equal(users(view), 1);
    assert_int_equal(lent, 1);
    quern_tensor_free(NULL);
    quern_tensor_free(view);
    assert_int_equal(lent, 0);
}

static void test_scopes_nest(void **state)
{
    (void)state;
    quern_scope *outer = quern_scope_begin();
    quern_tensor *x = range(6, QUERN_DIMS(2, 3));
    quern_scope *inner = quern_scope_begin();
    quern_tensor *kept = quern_tensor_retain(quern_tensor_select(x, 0, 1));
    quern_tensor_select(x, 0, 0);
    assert_int_equal(users(x), 4); /* the range, x, and two rows */
    quern_scope_end(inner);
    assert_int_equal(users(x), 3);
    quern_scope_end(outer);
    assert_int_equal(users(kept), 1);
    assert_float_equal(ROWS(kept)[2], 5, 0);
    quern_tensor_free(kept);
}

/* ---- in place ---- */

static void test_in_place_keeps_the_address(void **state)
{
    (void)state;
    quern_tensor *x = range(6, QUERN_DIMS(2, 3)), *y = quern_tensor_full(QUERN_F32, QUERN_DIMS(3), 10);
    void *data = quern_tensor_data(x);
    assert_ptr_equal(must(quern_tensor_elementwise("add", x, y, x)), x);
    assert_ptr_equal(must(quern_tensor_elementwise("mul", x, x, x)), x);
    assert_ptr_equal(must(quern_tensor_elementwise("sub", y, x, x)), x); /* the second operand's place */
    assert_ptr_equal(quern_tensor_data(x), data);
    for (int i = 0; i < 6; i++)
        assert_float_equal(ROWS(x)[i], 10 - (10 + i) * (10 + i), 0);
    quern_tensor *column = quern_tensor_select(x, 1, 1);
    must(quern_tensor_elementwise("neg", column, NULL, column));
    assert_float_equal(ROWS(x)[1], 111, 0);
    assert_float_equal(ROWS(x)[4], 186, 0);
    assert_float_equal(ROWS(x)[3], -159, 0);
}

static void test_in_place_where_views_overlap(void **state)
{
    (void)state;
    /* x[1:] = x[:-1], and x[1:] += x[:-1]: as if the right side were computed first. */
    quern_tensor *x = range(1000, QUERN_DIMS(1000));
    quern_tensor *behind = quern_tensor_slice(x, 0, 1, QUERN_ALL, 1),
                 *front = quern_tensor_slice(x, 0, 0, -1, 1);
    assert_int_equal(quern_tensor_assign(behind, front), 0);
    for (int i = 1; i < 1000; i++)
        assert_float_equal(ROWS(x)[i], i - 1, 0);
    must(quern_tensor_elementwise("add", behind, front, behind));
    for (int i = 1; i < 1000; i++)
        assert_float_equal(ROWS(x)[i], i - 1 + (i > 1 ? i - 2 : 0), 0);
    /* A tensor becomes its transpose, and is turned around. */
    quern_tensor *square = range(16, QUERN_DIMS(4, 4));
    assert_int_equal(quern_tensor_assign(square, quern_tensor_transpose(square, NULL)), 0);
    quern_tensor *back = quern_tensor_slice(square, 0, QUERN_ALL, QUERN_ALL, -1);
    assert_int_equal(quern_tensor_assign(square, back), 0);
    for (int i = 0; i < 16; i++)
        assert_float_equal(ROWS(square)[i], (float)(i % 4 * 4 + 3 - i / 4), 0);
    /* One row of it, added to all. */
    must(quern_tensor_elementwise("add", square, quern_tensor_select(square, 0, 0), square));
    for (int i = 0; i < 16; i++)
        assert_float_equal(ROWS(square)[i], (float)(i % 4 * 8 + 6 - i / 4), 0);
}

static void test_assigning_repeats_and_converts(void **state)
{
    (void)state;
    quern_tensor *x = quern_tensor_new(QUERN_I32, QUERN_DIMS(2, 3, 4));
    quern_tensor *part = quern_tensor_slice(x, 2, 1, QUERN_ALL, 2);
    assert_int_equal(quern_tensor_assign(part, QUERN_REAL(2.75)), 0);
    assert_int_equal(
        quern_tensor_assign(quern_tensor_select(x, 0, 1), quern_tensor_arange(QUERN_F64, 0, 4, 1)), 0);
    const int32_t *v = quern_tensor_data(x);
    for (int i = 0; i < 24; i++)
        assert_int_equal(v[i], i < 12 ? i % 2 * 2 : i % 4);
}

/* ---- results ---- */

static void test_results(void **state)
{
    (void)state;
    quern_tensor *x = range(12, QUERN_DIMS(3, 4));
    assert_int_equal(item(quern_tensor_sum(x, QUERN_ALL_AXES, 0)), 66);
    assert_float_equal(item(quern_tensor_mean(x, QUERN_ALL_AXES, 0)), 5.5, 0);
    quern_tensor *most = must(quern_tensor_max(quern_tensor_transpose(x, NULL), QUERN_AXES(-1), 1));
    assert_int_equal(quern_tensor_rank(most), 2);
    assert_int_equal(at(most, 3, 0), 11);
    quern_tensor *product = must(quern_tensor_matmul(x, quern_tensor_transpose(x, NULL)));
    assert_int_equal(at(product, 1, 2), 4 * 8 + 5 * 9 + 6 * 10 + 7 * 11);
    assert_int_equal(item(quern_tensor_matmul(quern_tensor_select(x, 0, 0), quern_tensor_select(x, 0, 1))),
                     38);
    assert_int_equal(quern_tensor_dtype(quern_tensor_less(x, QUERN_WHOLE(3))), QUERN_BOOL);
    assert_int_equal(
        item(quern_tensor_reduce("any", quern_tensor_equal(x, QUERN_REAL(11)), QUERN_ALL_AXES, 0)), 1);
    assert_int_equal(item(quern_tensor_arg("max", quern_tensor_select(x, 0, 2), 0)), 3);
    assert_int_equal(at(quern_tensor_cumulative("sum", x, 1), 2, 3), 38);
}

static void test_ops_by_name(void **state)
{
    (void)state;
    quern_tensor *x = range(12, QUERN_DIMS(3, 4));
    const quern_tensor *operands[] = { x };
    quern_tensor *y = must(quern_tensor_op("softmax", 1, operands, "axis = 1"));
    assert_float_equal(item(quern_tensor_sum(y, QUERN_ALL_AXES, 0)), 3, 1e-6);
    quern_tensor *turned = must(quern_tensor_op("transpose", 1, operands, "perm = [1, 0]"));
    assert_int_equal(at(turned, 3, 2), 11);
    quern_tensor *shaped =
        must(quern_tensor_op("reshape", 1, operands, "dims = [2, 6]")); /* only of 12 elements */
    assert_int_equal(at(shaped, 1, 5), 11);
    assert_null(quern_tensor_op("reshape", 1, operands, "dims = [5]"));
    assert_null(quern_tensor_op("softmax", 1, operands, "axis = 2"));
    assert_non_null(strstr(quern_last_error(), "softmax"));
}

static void test_random_numbers(void **state)
{
    (void)state;
    quern_tensor *a = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(100, 100), 7));
    quern_tensor *b = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(10000), 7));
    quern_tensor *c = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(10000), 8));
    assert_memory_equal(quern_tensor_data(a), quern_tensor_data(b), 40000);
    assert_memory_not_equal(quern_tensor_data(a), quern_tensor_data(c), 40000);
    assert_float_equal(item(quern_tensor_mean(a, QUERN_ALL_AXES, 0)), 0, 0.05);
    assert_float_equal(item(quern_tensor_mean(quern_tensor_square(a), QUERN_ALL_AXES, 0)), 1, 0.05);
    quern_tensor *u = must(quern_tensor_uniform(QUERN_F64, QUERN_DIMS(1000), 1));
    assert_true(item(quern_tensor_min(u, QUERN_ALL_AXES, 0)) >= 0);
    assert_true(item(quern_tensor_max(u, QUERN_ALL_AXES, 0)) < 1);
}

static void test_by_index_and_mask(void **state)
{
    (void)state;
    quern_tensor *x = range(12, QUERN_DIMS(3, 4));
    const int64_t numbers[] = { 2, -3 };
    quern_tensor *two =
        must(quern_tensor_from(&(quern_array){ QUERN_I64, 1, (const int64_t[]){ 2 }, (void *)numbers }));
    quern_tensor *rows = must(quern_tensor_index_select(x, 0, two));
    assert_int_equal(at(rows, 0, 1), 9);
    assert_int_equal(at(rows, 1, 1), 1);
    assert_int_equal(at(must(quern_tensor_index_select(x, 1, two)), 2, 1), 9);
    quern_tensor *much = must(quern_tensor_masked_select(x, quern_tensor_less(QUERN_WHOLE(7), x)));
    assert_int_equal(quern_tensor_elements(much), 4);
    assert_int_equal(item(quern_tensor_sum(much, QUERN_ALL_AXES, 0)), 38);
    size_t bytes;
    quern_tensor_storage(much, &bytes, NULL);
    assert_int_equal(bytes, 16);
    const quern_tensor *parts[] = { x, rows };
    quern_tensor *all = must(quern_tensor_concatenate(2, parts, 0));
    assert_int_equal(quern_tensor_dims(all)[0], 5);
    assert_int_equal(at(all, 4, 3), 3);
    void *data = quern_tensor_data(x);
    assert_int_equal(quern_tensor_put(x, 1, two, quern_tensor_arange(QUERN_I32, 0, 2, 1)), 0);
    assert_ptr_equal(quern_tensor_data(x), data);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(at(x, i, 2), 0);
        assert_int_equal(at(x, i, 1), 1);
        assert_int_equal(at(x, i, 3), 4 * i + 3);
    }
}

/* ---- the tape ---- */

static void test_a_step_repeats_what_was_recorded(void **state)
{
    (void)state;
    quern_tensor *x = quern_tensor_randn(QUERN_F64, QUERN_DIMS(30, 3), 1),
                 *w = quern_tensor_new(QUERN_F64, QUERN_DIMS(3));
    quern_tensor *truth = quern_tensor_arange(QUERN_F64, 1, 4, 1), *y = quern_tensor_matmul(x, truth),
                 *gradient;
    void *address = quern_tensor_data(w);
    quern_tape *tape = quern_tape_begin();
    assert_null(quern_tape_begin());
    quern_tensor *loss = quern_tensor_mean(
        quern_tensor_square(quern_tensor_sub(quern_tensor_matmul(x, w), y)), QUERN_ALL_AXES, 0);
    if (quern_tape_gradient(tape, loss, 1, &w, &gradient))
        fail_msg("%s", quern_last_error());
    quern_tensor *elsewhere =
        quern_tensor_slice(quern_tensor_new(QUERN_F64, QUERN_DIMS(6)), 0, 0, QUERN_ALL, 2);
    assert_int_equal(quern_tensor_assign(elsewhere, gradient), 0);
    must(quern_tensor_elementwise("sub", w, quern_tensor_mul(gradient, QUERN_REAL(0.1)), w));
    quern_tape_end(tape);
    const double before = item(loss);
    quern_step *step;
    if (quern_tape_compile(tape, 2, (quern_tensor *[]){ loss, elsewhere }, NULL, &step))
        fail_msg("%s", quern_last_error());
    quern_module *module;
    assert_int_equal(quern_tape_module(tape, 1, &loss, &module), 0);
    quern_tape_free(tape);
    char *text;
    assert_int_equal(quern_module_text(module, &text), 0);
    assert_non_null(strstr(text, "alias %x1"));
    quern_free(text);
    quern_module_free(module);
    for (int i = 0; i < 200; i++)
        assert_int_equal(quern_step_run(step), 0);
    assert_true(item(loss) < 1e-12 && before > 1);
    assert_ptr_equal(quern_tensor_data(w), address);
    for (int i = 0; i < 3; i++) {
        assert_true(fabs(item(quern_tensor_select(w, 0, i)) - (i + 1)) < 1e-6);
        assert_true(fabs(item(quern_tensor_select(elsewhere, 0, i))) < 1e-5);
    }
    quern_step_free(step);
}

/* ---- mistakes ---- */

#define REFUSED(call, words)                                         \
    do {                                                             \
        assert_null(call);                                           \
        if (!strstr(quern_last_error(), words))                      \
            fail_msg("'%s' has no '%s'", quern_last_error(), words); \
    } while (0)

static void test_mistakes(void **state)
{
    (void)state;
    quern_tensor *x = range(12, QUERN_DIMS(3, 4)), *y = range(3, QUERN_DIMS(3));
    quern_tensor *bits = quern_tensor_less(x, QUERN_REAL(1)),
                 *repeated = quern_tensor_broadcast(y, QUERN_DIMS(2, 3));
    REFUSED(quern_tensor_add(x, y), "add: the dims of f32[3, 4] and f32[3] do not fit");
    REFUSED(quern_tensor_select(x, 1, 4), "index 4 is out of range for axis 1 of f32[3, 4]");
    REFUSED(quern_tensor_select(x, 2, 0), "there is no axis 2 of f32[3, 4]");
    REFUSED(quern_tensor_slice(x, 0, 0, 1, 0), "step must not be 0");
    REFUSED(quern_tensor_reshape(x, QUERN_DIMS(5, -1)),
            "f32[3, 4] has 12 elements and cannot become [5, -1]");
    REFUSED(quern_tensor_matmul(x, x), "f32[3, 4] and f32[3, 4] do not fit");
    REFUSED(quern_tensor_broadcast(x, QUERN_DIMS(3, 5)), "cannot be repeated to [3, 5]");
    REFUSED(quern_tensor_new(99, QUERN_DIMS(1)), "99 is no data type");
    REFUSED(quern_tensor_new(QUERN_F32, QUERN_DIMS(INT64_MAX / 8, 16)), "negative or too large");
    REFUSED(quern_tensor_full(QUERN_F32, QUERN_DIMS(-1), 1), "negative or too large");
    REFUSED(quern_tensor_arange(QUERN_F32, 0, 1, 0), "has no end");
    REFUSED(quern_tensor_neg(bits), "neg is not defined for bool");
    REFUSED(quern_tensor_elementwise("and", x, x, NULL), "and is not defined for f32");
    REFUSED(quern_tensor_elementwise("nand", x, x, NULL), "no op 'nand'");
    REFUSED(quern_tensor_elementwise("add", x, x, y), "the result is [3, 4] and cannot be written to f32[3]");
    REFUSED(quern_tensor_elementwise("add", x, x, bits), "cannot be written to bool[3, 4]");
    REFUSED(quern_tensor_elementwise("add", repeated, repeated, repeated), "repeats elements");
    REFUSED(quern_tensor_sum(x, QUERN_AXES(0, -2), 0), "axis 0 is named twice");
    REFUSED(quern_tensor_max(quern_tensor_slice(y, 0, 3, 3, 1), QUERN_ALL_AXES, 0), "no elements");
    REFUSED(quern_tensor_transpose(x, (const int[]){ 0, 0 }), "axis 0 is named twice");
    REFUSED(quern_tensor_exp(quern_tensor_add(x, y)), "add: the dims"); /* the first one's message stays */
    REFUSED(quern_tensor_randn(QUERN_I32, QUERN_DIMS(3), 1), "f32 or f64, not i32");
    double value;
    assert_int_equal(quern_tensor_item(x, &value), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_tensor_assign(y, x), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "f32[3, 4] cannot be repeated to f32[3]"));
    assert_int_equal(quern_tensor_assign(repeated, y), QUERN_ERROR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define IN_SCOPE(test) cmocka_unit_test_setup_teardown(test, with_scope, without_scope)
        IN_SCOPE(test_views_share_a_storage),
        IN_SCOPE(test_reshape_copies_only_where_it_must),
        cmocka_unit_test(test_uses),
        cmocka_unit_test(test_scopes_nest),
        IN_SCOPE(test_in_place_keeps_the_address),
        IN_SCOPE(test_in_place_where_views_overlap),
        IN_SCOPE(test_assigning_repeats_and_converts),
        IN_SCOPE(test_results),
        IN_SCOPE(test_ops_by_name),
        IN_SCOPE(test_random_numbers),
        IN_SCOPE(test_by_index_and_mask),
        IN_SCOPE(test_a_step_repeats_what_was_recorded),
        IN_SCOPE(test_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
