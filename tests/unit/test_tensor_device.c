/* Tensors on a GPU, which is tests/fake_cuda: its memory can't be touched by the host, its kernels are the PTX that the
 * compiler writes, run one thread after the other. What operations give there is what they give on the CPU. */
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "quern_tensor.h"
#include "tests/support/ok.h"

static long (*live)(void), (*mistakes)(void), mistakes_before;

static quern_tensor *must(quern_tensor *x)
{
    if (!x)
        fail_msg("%s", quern_last_error());
    return x;
}

static quern_tensor *range(int dtype, int n, int rank, const int64_t *dims)
{
    return must(quern_tensor_reshape(must(quern_tensor_arange(dtype, 0, n, 1)), rank, dims));
}

static quern_tensor *on(quern_tensor *x, const char *device)
{
    x = must(quern_tensor_to(must(x), device));
    return x;
}

static void assert_fails(const void *result, int status, const char *message)
{
    assert_null(result);
    assert_int_equal(quern_last_status(), status);
    if (!strstr(quern_last_error(), message))
        fail_msg("'%s' is not in: %s", message, quern_last_error());
}

/* The same data type, dims and elements; floats within an error that a sum in another order makes. */
static void assert_same(const char *what, quern_tensor *x, quern_tensor *y)
{
    x = on(x, "cpu"), y = on(y, "cpu");
    assert_int_equal(quern_tensor_dtype(x), quern_tensor_dtype(y));
    assert_int_equal(quern_tensor_rank(x), quern_tensor_rank(y));
    for (int i = 0; i < quern_tensor_rank(x); i++)
        assert_int_equal(quern_tensor_dims(x)[i], quern_tensor_dims(y)[i]);
    x = must(quern_tensor_reshape(must(quern_tensor_convert(x, QUERN_F64)), QUERN_DIMS(-1)));
    y = must(quern_tensor_reshape(must(quern_tensor_convert(y, QUERN_F64)), QUERN_DIMS(-1)));
    const double *a = quern_tensor_data(x), *b = quern_tensor_data(y);
    for (int64_t i = 0; i < quern_tensor_elements(x); i++)
        if (!(fabs(a[i] - b[i]) <= 2e-6 * (1 + fabs(a[i]))) && !(isnan(a[i]) && isnan(b[i])) && a[i] != b[i])
            fail_msg("%s: element %lld is %.9g and %.9g", what, (long long)i, a[i], b[i]);
}

static int with_scope(void **state)
{
    mistakes_before = mistakes();
    *state = quern_scope_begin();
    return *state == NULL;
}

static int without_scope(void **state)
{
    quern_scope_end(*state);
    assert_int_equal(mistakes(), mistakes_before);
    return 0;
}

/* ---- there is no GPU ---- */

static void test_without_a_driver_says_what_is_missing(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 6, QUERN_DIMS(2, 3));
    setenv("QUERN_CUDA_LIBRARY", "/there/is/no/libcuda.so.1", 1);
    assert_fails(quern_tensor_to(x, "cuda"), QUERN_ERROR_DEVICE, "libcuda.so.1 could not be opened");
    assert_int_equal(quern_device_count(), 0);
    setenv("QUERN_CUDA_LIBRARY", QN_FAKE_CUDA, 1);
    setenv("FAKE_CUDA_DEVICES", "0", 1);
    assert_fails(quern_tensor_to(x, "cuda"), QUERN_ERROR_DEVICE,
                 "there is no GPU here: the driver finds none");
    setenv("FAKE_CUDA_DEVICES", "2", 1);
    assert_int_equal(quern_device_count(), 2);
    assert_fails(quern_tensor_to(x, "cuda:2"), QUERN_ERROR_DEVICE,
                 "there is no GPU 2 here: the driver finds 2");
    assert_fails(quern_tensor_to(x, "gpu"), QUERN_ERROR_ARGUMENT, "there is no device 'gpu'");
    assert_fails(quern_tensor_to(x, "cuda:"), QUERN_ERROR_ARGUMENT, "there is no device 'cuda:'");
    assert_ptr_equal(must(quern_tensor_to(x, "cpu")), x);
    assert_string_equal(quern_tensor_device(x), "cpu");
}

/* ---- to and fro ---- */

static void test_copies_to_and_fro(void **state)
{
    (void)state;
    const int dtypes[] = { QUERN_U8, QUERN_I16, QUERN_F32, QUERN_F64 };
    for (int i = 0; i < 4; i++) {
        quern_tensor *x = range(dtypes[i], 60, QUERN_DIMS(3, 4, 5)), *y = on(x, "cuda");
        assert_string_equal(quern_tensor_device(y), "cuda:0");
        assert_ptr_equal(must(quern_tensor_to(y, "cuda:0")), y);
        assert_same("whole", x, y);
        quern_tensor *const views[][2] = {
            { quern_tensor_transpose(x, NULL), quern_tensor_transpose(y, NULL) },
            { quern_tensor_slice(x, 1, 1, 4, 2), quern_tensor_slice(y, 1, 1, 4, 2) },
            { quern_tensor_slice(x, 2, QUERN_ALL, QUERN_ALL, -2),
              quern_tensor_slice(y, 2, QUERN_ALL, QUERN_ALL, -2) },
            { quern_tensor_select(x, 0, -1), quern_tensor_select(y, 0, -1) },
            { quern_tensor_broadcast(x, QUERN_DIMS(2, 3, 4, 5)),
              quern_tensor_broadcast(y, QUERN_DIMS(2, 3, 4, 5)) },
            { quern_tensor_slice(x, 0, 2, 2, 1), quern_tensor_slice(y, 0, 2, 2, 1) },
        };
        for (int v = 0; v < 6; v++) {
            assert_ptr_equal(quern_tensor_storage(must(views[v][1]), NULL, NULL),
                             quern_tensor_storage(y, NULL, NULL));
            assert_same("a view brought back", views[v][0], views[v][1]);
            assert_same("a view sent", views[v][0], on(views[v][0], "cuda"));
            assert_same("a view copied there", views[v][0], quern_tensor_copy(views[v][1]));
        }
    }
    assert_same("zeros", quern_tensor_new(QUERN_I64, QUERN_DIMS(3, 0, 2)),
                quern_tensor_new_on("cuda", QUERN_I64, QUERN_DIMS(3, 0, 2)));
    assert_same("zeros", quern_tensor_new(QUERN_I64, QUERN_DIMS(3, 2)),
                quern_tensor_new_on("cuda", QUERN_I64, QUERN_DIMS(3, 2)));
    double value;
    ok(quern_tensor_item(quern_tensor_select(on(range(QUERN_F32, 4, QUERN_DIMS(4)), "cuda"), 0, 3), &value));
    assert_true(value == 3);
}

/* Allocations, without what is kept for the next tensors. */
static long in_use(void)
{
    ok(quern_device_trim("cuda"));
    return live();
}

/* What a storage holds, it gives back: once, when the last view goes. */
static void test_memory_is_freed_once(void **state)
{
    (void)state;
    quern_tensor *on_host = range(QUERN_F32, 12, QUERN_DIMS(3, 4));
    for (int round = 0; round < 3; round++) {
        long before = in_use();
        quern_scope *scope = quern_scope_begin();
        quern_tensor *x = on(on_host, "cuda");
        assert_int_equal(in_use(), before + 1);
        quern_tensor *row = quern_tensor_retain(must(quern_tensor_select(x, 0, 1)));
        int users;
        quern_tensor_storage(x, NULL, &users);
        assert_int_equal(users, 2);
        (void)must(quern_tensor_exp(quern_tensor_transpose(x, NULL)));
        quern_scope_end(scope);
        if (round > 0) /* the first time, kernels stay */
            assert_int_equal(in_use(), before + 1);
        assert_same("the last view", quern_tensor_select(on_host, 0, 1), row);
        quern_tensor_free(row);
        if (round > 0)
            assert_int_equal(in_use(), before);
    }
}

static void test_memory_is_used_again(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 1000, QUERN_DIMS(1000));
    quern_scope *scope = quern_scope_begin();
    void *address = quern_tensor_data(on(x, "cuda"));
    quern_scope_end(scope);
    const long before = live();
    assert_ptr_equal(quern_tensor_data(on(quern_tensor_slice(x, 0, 0, 900, 1), "cuda")), address);
    assert_int_equal(live(), before);
}

static void count(void *user)
{
    ++*(int *)user;
}

static void test_wraps_memory_of_others(void **state)
{
    (void)state;
    int released = 0;
    quern_tensor *x = on(range(QUERN_F32, 6, QUERN_DIMS(2, 3)), "cuda:1");
    quern_array array = { QUERN_F32, 2, quern_tensor_dims(x), quern_tensor_data(x) };
    quern_scope *scope = quern_scope_begin();
    quern_tensor *y =
        must(quern_tensor_wrap_on("cuda:1", &array, (const int64_t[]){ 1, 2 }, count, &released));
    assert_ptr_equal(quern_tensor_data(y), quern_tensor_data(x));
    assert_same("by columns", on(y, "cpu"),
                quern_tensor_reshape(quern_tensor_transpose(quern_tensor_reshape(x, QUERN_DIMS(3, 2)), NULL),
                                     QUERN_DIMS(2, 3)));
    ok(quern_tensor_assign(y, QUERN_REAL(7)));
    assert_int_equal(released, 0);
    quern_scope_end(scope);
    assert_int_equal(released, 1);
    double value;
    ok(quern_tensor_item(quern_tensor_sum(x, QUERN_ALL_AXES, 0), &value));
    assert_true(value == 42);
}

/* ---- what devices do together ---- */

static void test_assigns_between_devices(void **state)
{
    (void)state;
    const char *devices[] = { "cpu", "cuda", "cuda:1" };
    for (int to = 0; to < 3; to++)
        for (int from = 0; from < 3; from++) {
            quern_tensor *x = on(range(QUERN_F32, 12, QUERN_DIMS(3, 4)), devices[from]);
            quern_tensor *y =
                must(quern_tensor_to(quern_tensor_new(QUERN_F64, QUERN_DIMS(4, 3)), devices[to]));
            const void *address = quern_tensor_data(y);
            ok(quern_tensor_assign(quern_tensor_transpose(y, NULL), x)); /* converted there, put here */
            assert_ptr_equal(quern_tensor_data(y), address);
            assert_string_equal(quern_tensor_device(y), quern_tensor_device(on(y, devices[to])));
            assert_same("assigned", quern_tensor_convert(range(QUERN_F32, 12, QUERN_DIMS(3, 4)), QUERN_F64),
                        quern_tensor_transpose(y, NULL));
            ok(quern_tensor_assign(quern_tensor_select(y, 0, 1), quern_tensor_select(y, 0, 2)));
            assert_same("a row", quern_tensor_select(y, 0, 1), quern_tensor_select(y, 0, 2));
            assert_same("moved", on(x, devices[to]), x);
        }
}

static void test_refuses_to_mix_devices(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 6, QUERN_DIMS(2, 3)), *y = on(x, "cuda"), *z = on(x, "cuda:1");
    assert_fails(quern_tensor_add(x, y), QUERN_ERROR_ARGUMENT,
                 "add: f32[2, 3] is on cpu and f32[2, 3] on cuda:0: quern_tensor_to copies one");
    assert_fails(quern_tensor_matmul(y, quern_tensor_transpose(z, NULL)), QUERN_ERROR_ARGUMENT,
                 "is on cuda:0 and");
    assert_fails(quern_tensor_elementwise("exp", y, NULL, x), QUERN_ERROR_ARGUMENT, "is on cuda:0 and");
    assert_fails(quern_tensor_concatenate(2, (const quern_tensor *[]){ y, z }, 0), QUERN_ERROR_ARGUMENT,
                 "on cuda:1");
    assert_fails(quern_tensor_where(quern_tensor_less(x, x), y, y), QUERN_ERROR_ARGUMENT, "is on cpu and");
    assert_fails(quern_tensor_index_select(y, 0, quern_tensor_arange(QUERN_I64, 0, 2, 1)),
                 QUERN_ERROR_ARGUMENT, "is on cuda:0 and");
    /* Scalars of the CPU go along, and nothing else is a scalar. */
    assert_same("a number", quern_tensor_mul(x, QUERN_REAL(2.5)), quern_tensor_mul(QUERN_REAL(2.5), y));
    assert_same("a scalar", quern_tensor_add(x, quern_tensor_full(QUERN_F32, QUERN_SCALAR, 3)),
                quern_tensor_add(y, quern_tensor_full(QUERN_F32, QUERN_SCALAR, 3)));
    assert_fails(quern_tensor_add(x, on(quern_tensor_full(QUERN_F32, QUERN_SCALAR, 3), "cuda")),
                 QUERN_ERROR_ARGUMENT, "on cuda:0");
}

static void test_tapes_are_for_one_gpu(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 6, QUERN_DIMS(2, 3)), *y = on(x, "cuda"), *z = on(x, "cuda:1");
    quern_tape *tape = quern_tape_begin();
    (void)must(quern_tensor_exp(y));
    assert_fails(quern_tensor_exp(z), QUERN_ERROR_UNSUPPORTED,
                 "a tape records tensors of the CPU and of one GPU: this one has cuda:0 and cuda:1");
    assert_fails(quern_tensor_to(z, "cpu"), QUERN_ERROR_UNSUPPORTED, "this one has cuda:0 and cuda:1");
    quern_tape_end(tape);
    quern_step *step;
    quern_compile_options options = { .size = sizeof options, .target = "cpu" };
    assert_int_equal(quern_tape_compile(tape, 1, &y, &options, &step), QUERN_ERROR_ARGUMENT);
    quern_tape_free(tape);
    assert_same("after it", quern_tensor_exp(x), quern_tensor_exp(z));
}

/* Data on the CPU, what learns on the GPU; the step brings what the tape brought. */
static void test_a_step_repeats_what_was_recorded(void **state)
{
    (void)state;
    quern_tensor *x = quern_tensor_randn(QUERN_F64, QUERN_DIMS(30, 3), 1);
    quern_tensor *w = must(quern_tensor_new_on("cuda", QUERN_F64, QUERN_DIMS(3))), *gradient, *same;
    quern_tensor *truth = quern_tensor_arange(QUERN_F64, 1, 4, 1),
                 *y = on(quern_tensor_matmul(x, truth), "cuda");
    void *address = quern_tensor_data(w);
    quern_tape *tape = quern_tape_begin();
    quern_tensor *there =
        on(quern_tensor_transpose(quern_tensor_contiguous(quern_tensor_transpose(x, NULL)), NULL), "cuda");
    quern_tensor *loss = quern_tensor_mean(
        quern_tensor_square(quern_tensor_sub(quern_tensor_matmul(there, w), y)), QUERN_ALL_AXES, 0);
    (void)must(
        quern_tensor_elementwise("mul", w, QUERN_REAL(1), w)); /* written before it is differentiated by */
    ok(quern_tape_gradient(tape, loss, 1, &w, &gradient));
    assert_string_equal(quern_tensor_device(gradient), "cuda:0");
    quern_tensor *elsewhere =
        quern_tensor_slice(must(quern_tensor_new_on("cuda", QUERN_F64, QUERN_DIMS(6))), 0, 0, QUERN_ALL, 2);
    ok(quern_tensor_assign(elsewhere, gradient));
    (void)must(quern_tensor_elementwise("sub", w, quern_tensor_mul(gradient, QUERN_REAL(0.1)), w));
    quern_tensor *here = on(loss, "cpu");
    ok(quern_tape_gradient(tape, loss, 1, &w, &same));
    quern_tape_end(tape);
    /* what it gives on the CPU */
    quern_tensor *error = quern_tensor_neg(quern_tensor_matmul(x, truth));
    assert_same("the loss", quern_tensor_mean(quern_tensor_square(error), QUERN_ALL_AXES, 0), here);
    quern_tensor *slope =
        quern_tensor_mul(quern_tensor_matmul(quern_tensor_transpose(x, NULL), error), QUERN_REAL(2.0 / 30));
    assert_same("the gradient", slope, gradient);
    assert_same("once more", slope, same);
    assert_same("the update", quern_tensor_mul(slope, QUERN_REAL(-0.1)), w);

    const double before = *(double *)quern_tensor_data(here);
    quern_step *step;
    ok(quern_tape_compile(tape, 2, (quern_tensor *[]){ here, elsewhere }, NULL, &step));
    quern_tape_free(tape);
    for (int i = 0; i < 200; i++)
        ok(quern_step_run(step));
    assert_true(*(double *)quern_tensor_data(here) < 1e-12 && before > 1);
    assert_ptr_equal(quern_tensor_data(w), address);
    for (int i = 0; i < 3; i++) {
        double value;
        ok(quern_tensor_item(quern_tensor_select(w, 0, i), &value));
        assert_true(fabs(value - (i + 1)) < 1e-5);
        ok(quern_tensor_item(quern_tensor_select(elsewhere, 0, i), &value));
        assert_true(fabs(value) < 1e-5);
    }
    quern_step_free(step);
}

static void test_says_when_memory_is_out(void **state)
{
    (void)state;
    setenv("FAKE_CUDA_MEMORY", "100000000", 1);
    quern_tensor *x = must(quern_tensor_new(QUERN_F32, QUERN_DIMS(100, 1000, 1000)));
    assert_fails(quern_tensor_to(x, "cuda"), QUERN_ERROR_MEMORY, "cuda:0 has no memory for 400000000 bytes");
    /* What is kept makes room. */
    quern_scope *scope = quern_scope_begin();
    (void)on(quern_tensor_slice(quern_tensor_reshape(x, QUERN_DIMS(-1)), 0, 0, 20000000, 1), "cuda:1");
    quern_scope_end(scope);
    (void)on(quern_tensor_slice(quern_tensor_reshape(x, QUERN_DIMS(-1)), 0, 0, 9000000, 1), "cuda:1");
    unsetenv("FAKE_CUDA_MEMORY");
}

/* ---- operations ---- */

static void test_elementwise(void **state)
{
    (void)state;
    static const char *const unary[] = {
        "neg",    "abs",    "sign", "square",   "relu", "floor",     "ceil", "round", "trunc",
        "is_nan", "is_inf", "sqrt", "rsqrt",    "exp",  "expm1",     "log",  "log1p", "sin",
        "cos",    "tan",    "asin", "acos",     "atan", "sinh",      "cosh", "tanh",  "asinh",
        "acosh",  "atanh",  "erf",  "logistic", "gelu", "gelu_tanh", "silu",
    };
    static const char *const binary[] = { "add", "sub",       "mul", "div",       "pow", "max",
                                          "min", "floor_div", "mod", "div_trunc", "rem", "atan2",
                                          "eq",  "ne",        "lt",  "le",        "gt",  "ge" };
    static const char *const whole[] = { "add", "mul", "floor_div",  "mod", "and",
                                         "or",  "xor", "shift_left", "max" };
    const int dtypes[] = { QUERN_F32, QUERN_F64, QUERN_F16 };
    for (int d = 0; d < 3; d++) {
        quern_tensor *x = must(quern_tensor_convert(
            quern_tensor_sub(quern_tensor_div(quern_tensor_arange(QUERN_F64, 0, 600, 1), QUERN_REAL(100)),
                             QUERN_REAL(2.5)),
            dtypes[d]));
        quern_tensor *y =
            must(quern_tensor_convert(quern_tensor_slice(x, 0, QUERN_ALL, QUERN_ALL, -1), dtypes[d]));
        quern_tensor *gx = on(x, "cuda"), *gy = on(y, "cuda");
        for (size_t i = 0; i < sizeof unary / sizeof *unary; i++)
            assert_same(unary[i], quern_tensor_elementwise(unary[i], x, NULL, NULL),
                        quern_tensor_elementwise(unary[i], gx, NULL, NULL));
        for (size_t i = 0; i < sizeof binary / sizeof *binary; i++)
            assert_same(binary[i], quern_tensor_elementwise(binary[i], x, y, NULL),
                        quern_tensor_elementwise(binary[i], gx, gy, NULL));
    }
    quern_tensor *x = range(QUERN_I32, 30, QUERN_DIMS(5, 6)), *y = must(quern_tensor_add(x, QUERN_WHOLE(3)));
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        assert_same(whole[i], quern_tensor_elementwise(whole[i], x, y, NULL),
                    quern_tensor_elementwise(whole[i], on(x, "cuda"), on(y, "cuda"), NULL));
    assert_same(
        "where", quern_tensor_where(quern_tensor_less(x, QUERN_WHOLE(9)), x, y),
        quern_tensor_where(quern_tensor_less(on(x, "cuda"), QUERN_WHOLE(9)), on(x, "cuda"), on(y, "cuda")));
    assert_same("a conversion to itself", x,
                quern_tensor_convert(on(x, "cuda"), QUERN_I32)); /* a kernel of none */
    quern_tensor *column = on(quern_tensor_slice(x, 1, 0, 1, 1), "cuda"),
                 *row = on(quern_tensor_select(x, 0, 1), "cuda");
    assert_same("repeated", quern_tensor_add(quern_tensor_slice(x, 1, 0, 1, 1), quern_tensor_select(x, 0, 1)),
                quern_tensor_add(column, row));
}

static void test_in_place(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 12, QUERN_DIMS(3, 4)), *y = on(x, "cuda");
    void *address = quern_tensor_data(y);
    (void)must(quern_tensor_elementwise("add", x, x, x));
    (void)must(quern_tensor_elementwise("add", y, y, y));
    (void)must(quern_tensor_elementwise("mul", quern_tensor_select(x, 1, 2), QUERN_REAL(3),
                                        quern_tensor_select(x, 1, 2)));
    (void)must(quern_tensor_elementwise("mul", quern_tensor_select(y, 1, 2), QUERN_REAL(3),
                                        quern_tensor_select(y, 1, 2)));
    ok(quern_tensor_assign(quern_tensor_slice(x, 1, 1, QUERN_ALL, 1), quern_tensor_slice(x, 1, 0, -1, 1)));
    ok(quern_tensor_assign(quern_tensor_slice(y, 1, 1, QUERN_ALL, 1), quern_tensor_slice(y, 1, 0, -1, 1)));
    quern_tensor *at = quern_tensor_from(&(quern_array){ QUERN_I64, QUERN_DIMS(2), (int64_t[]){ 2, -3 } });
    ok(quern_tensor_put(x, 0, at, QUERN_REAL(9)));
    ok(quern_tensor_put(y, 0, on(at, "cuda"), QUERN_REAL(9)));
    assert_ptr_equal(quern_tensor_data(y), address);
    assert_same("in place", x, y);
}

static void test_reductions_and_products(void **state)
{
    (void)state;
    static const char *const kinds[] = { "sum", "prod", "mean", "max", "min" };
    quern_tensor *x = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(3, 70, 9), 5)), *y = on(x, "cuda");
    for (int i = 0; i < 5; i++)
        for (int axis = -1; axis < 3; axis++) {
            const int n = axis < 0 ? -1 : 1;
            assert_same(kinds[i], quern_tensor_reduce(kinds[i], x, n, &axis, 0),
                        quern_tensor_reduce(kinds[i], y, n, &axis, 0));
        }
    for (int axis = 0; axis < 3; axis++) {
        assert_same("argmax", quern_tensor_arg("max", x, axis), quern_tensor_arg("max", y, axis));
        assert_same("running sums", quern_tensor_cumulative("sum", x, axis),
                    quern_tensor_cumulative("sum", y, axis));
    }
    quern_tensor *a = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(17, 40), 1)),
                 *b = must(quern_tensor_randn(QUERN_F32, QUERN_DIMS(40, 9), 2));
    assert_same("matmul", quern_tensor_matmul(a, b), quern_tensor_matmul(on(a, "cuda"), on(b, "cuda")));
    assert_same("matmul, transposed",
                quern_tensor_matmul(quern_tensor_transpose(b, NULL), quern_tensor_transpose(a, NULL)),
                quern_tensor_matmul(quern_tensor_transpose(on(b, "cuda"), NULL),
                                    quern_tensor_transpose(on(a, "cuda"), NULL)));
    assert_same("softmax", quern_tensor_op("softmax", 1, (const quern_tensor *[]){ x }, "axis = 2"),
                quern_tensor_op("softmax", 1, (const quern_tensor *[]){ y }, "axis = 2"));
    assert_same("cosines of a view",
                quern_tensor_elementwise("cos", quern_tensor_transpose(x, NULL), NULL, NULL),
                quern_tensor_elementwise("cos", quern_tensor_transpose(y, NULL), NULL, NULL));
}

static void test_by_index_and_mask(void **state)
{
    (void)state;
    quern_tensor *x = range(QUERN_F32, 24, QUERN_DIMS(4, 6)), *y = on(x, "cuda");
    quern_tensor *at = quern_tensor_from(&(quern_array){ QUERN_I64, QUERN_DIMS(3), (int64_t[]){ 2, -1, 0 } });
    quern_tensor *each =
        quern_tensor_from(&(quern_array){ QUERN_I32, QUERN_DIMS(4, 1), (int32_t[]){ 5, 0, -2, 3 } });
    assert_same("index_select", quern_tensor_index_select(x, 1, at),
                quern_tensor_index_select(y, 1, on(at, "cuda")));
    assert_same("gather", quern_tensor_gather(x, 1, each), quern_tensor_gather(y, 1, on(each, "cuda")));
    assert_same("masked_select", quern_tensor_masked_select(x, quern_tensor_less(QUERN_REAL(7), x)),
                quern_tensor_masked_select(y, quern_tensor_less(QUERN_REAL(7), y)));
    assert_same("concatenate", quern_tensor_concatenate(2, (const quern_tensor *[]){ x, x }, 1),
                quern_tensor_concatenate(2, (const quern_tensor *[]){ y, y }, 1));
    quern_tensor *outside = quern_tensor_from(&(quern_array){ QUERN_I64, QUERN_DIMS(1), (int64_t[]){ 6 } });
    assert_fails(quern_tensor_index_select(y, 1, on(outside, "cuda")), QUERN_ERROR_INDEX,
                 "an index is out of range");
}

/* A mask is drawn by key, step and place alone. */
static void test_dropout_has_the_same_mask(void **state)
{
    (void)state;
    quern_tensor *x = must(quern_tensor_full(QUERN_F32, QUERN_DIMS(5, 2000), 1));
    quern_tensor *key = quern_tensor_from(&(quern_array){ QUERN_U64, QUERN_DIMS(2), (uint64_t[]){ 7, 0 } });
    for (int64_t step = 0; step < 3; step++) {
        quern_tensor *at = must(quern_tensor_full(QUERN_U64, QUERN_SCALAR, (double)step));
        quern_tensor *y = must(quern_tensor_op("dropout", 3, (const quern_tensor *[]){ x, key, at },
                                               "ratio = 0.3, training = true"));
        quern_tensor *there =
            must(quern_tensor_op("dropout", 3, (const quern_tensor *[]){ on(x, "cuda"), on(key, "cuda"), at },
                                 "ratio = 0.3, training = true"));
        double kept;
        ok(quern_tensor_item(
            quern_tensor_sum(quern_tensor_convert(quern_tensor_less(QUERN_REAL(0), y), QUERN_F32),
                             QUERN_ALL_AXES, 0),
            &kept));
        assert_in_range((int)kept, 6817, 7183); /* 4 sigma */
        assert_memory_equal(quern_tensor_data(y), quern_tensor_data(on(there, "cpu")), 40000);
    }
}

/* ---- order ---- */

static char *calls_since(const char *path, long at)
{
    static char text[4096];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    fclose(f);
    for (char *c = text; *c; c++)
        *c = *c == '\n' ? ';' : *c;
    return text;
}

/* Nothing is copied that is there already, and nothing waits for the device but what brings values back. */
static void test_what_is_asked_of_the_driver(void **state)
{
    (void)state;
    char path[] = "/tmp/quern_fake_cuda_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    quern_tensor *x = on(range(QUERN_F32, 600, QUERN_DIMS(600)), "cuda");
    (void)must(quern_tensor_add(x, x)); /* the kernel is made */
    (void)must(quern_tensor_mul(x, QUERN_REAL(2)));
    ok(quern_device_trim("cuda"));
    setenv("FAKE_CUDA_LOG", path, 1);
    quern_scope *scope = quern_scope_begin();
    quern_tensor *y = must(quern_tensor_add(x, x));
    y = must(quern_tensor_mul(y, QUERN_REAL(2)));
    double value;
    ok(quern_tensor_item(quern_tensor_select(y, 0, 599), &value));
    quern_scope_end(scope);
    ok(quern_device_wait("cuda"));
    unsetenv("FAKE_CUDA_LOG");
    assert_true(value == 599 * 4);
    /* add: memory for the result and for what kernels tell, args[0]; mul: the same, with the number, and the second memory
     * again; the value */
    assert_string_equal(calls_since(path, 0), "alloc 2560;alloc 512;in 8;launch blocks 1 threads 256;"
                                              "alloc 2560;in 8;in 8;launch blocks 1 threads 256;"
                                              "out 4;wait;");
    remove(path);
}

/* ---- models ---- */

static quern_session *session_of(const char *text, const char *target, quern_model **out_model)
{
    quern_module *module;
    quern_session *session;
    ok(quern_load_bytes(text, strlen(text), NULL, &module));
    ok(quern_compile(module,
                     &(quern_compile_options){ .size = sizeof(quern_compile_options), .target = target },
                     out_model));
    quern_module_free(module);
    ok(quern_session_new(*out_model, NULL, &session));
    return session;
}

static void test_models_take_and_give_tensors(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[batch, 3]) -> f32[batch, 3] {\n"
                               "  %0 = exp %x : f32[batch, 3]\n"
                               "  return %0\n"
                               "}\n";
    quern_model *model, *of_cpu;
    quern_session *session = session_of(text, "cuda:1", &model), *on_cpu = session_of(text, "cpu", &of_cpu);
    quern_tensor *x = range(QUERN_F32, 12, QUERN_DIMS(4, 3)), *gx = on(x, "cuda:1");
    quern_tensor *gy = must(quern_tensor_to(quern_tensor_new(QUERN_F32, QUERN_DIMS(4, 3)), "cuda:1"));
    quern_tensor *y = must(quern_tensor_new(QUERN_F32, QUERN_DIMS(4, 3)));
    ok(quern_session_bind_tensor(session, 0, gx));
    ok(quern_session_bind_tensor(session, 1, gy));
    ok(quern_session_run(session));
    assert_same("on the device", quern_tensor_exp(x), gy);
    ok(quern_session_bind_tensor(session, 1, y)); /* either side may be the host's */
    ok(quern_session_run(session));
    assert_same("to the host", quern_tensor_exp(x), y);
    ok(quern_session_bind_tensor(session, 0, y));
    ok(quern_session_bind_tensor(session, 1, gy));
    ok(quern_session_run(session));
    assert_same("from the host", quern_tensor_exp(y), gy);
    ok(quern_session_bind_tensor(on_cpu, 0, x));
    ok(quern_session_bind_tensor(on_cpu, 1, y));
    ok(quern_session_run(on_cpu));
    assert_same("of the CPU", quern_tensor_exp(x), y);

    assert_int_equal(quern_session_bind_tensor(on_cpu, 0, gx), QUERN_ERROR_ARGUMENT);
    assert_fails(
        NULL, QUERN_ERROR_ARGUMENT,
        "input 0 'x': f32[4, 3] is on cuda:1 and the model runs on cpu: quern_tensor_to copies it there");
    assert_int_equal(quern_session_bind_tensor(session, 0, on(x, "cuda")), QUERN_ERROR_ARGUMENT);
    assert_fails(NULL, QUERN_ERROR_ARGUMENT, "is on cuda:0 and the model runs on cuda:1");
    assert_int_equal(quern_session_bind_tensor(
                         session, 0, quern_tensor_transpose(range(QUERN_F32, 12, QUERN_DIMS(3, 4)), NULL)),
                     QUERN_ERROR_ARGUMENT);
    assert_fails(NULL, QUERN_ERROR_ARGUMENT, "does not lie row-major");
    quern_session_free(session);
    quern_session_free(on_cpu);
    quern_model_free(model);
    quern_model_free(of_cpu);
}

static void cancel_behind(void *user, const char *kernel, int begin)
{
    (void)kernel;
    if (!begin)
        *(int *)user = 1;
}

/* What a check has found in a run that didn't come to its end is not the next run's. */
static void test_a_cancelled_run_leaves_nothing(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[9, 8], %i: i64[9]) -> (f32[9, 8], f32[9, 9]) {\n"
                               "  %0 = gather %x, %i {axis = 0} : f32[9, 8]\n"
                               "  %1 = dot_general %0, %0 {x_batch = [], x_contract = [1], y_batch = [], "
                               "y_contract = [1]} : f32[9, 9]\n"
                               "  return %0, %1\n"
                               "}\n";
    quern_model *model;
    quern_session *session = session_of(text, "cuda", &model);
    quern_ctx *ctx = quern_session_ctx(session);
    float x[72] = { 0 };
    int64_t at[9] = { 0, 9 };
    int cancelled = 0;
    ok(quern_session_bind(session, 0, &(quern_array){ QUERN_F32, QUERN_DIMS(9, 8), x }));
    ok(quern_session_bind(session, 1, &(quern_array){ QUERN_I64, QUERN_DIMS(9), at }));
    ctx->trace = cancel_behind;
    ctx->trace_user = &cancelled;
    ctx->cancel = &cancelled;
    assert_int_equal(quern_session_run(session), QUERN_ERROR_CANCELLED); /* behind the gather */
    ctx->trace = NULL;
    cancelled = 0;
    at[1] = 8;
    ok(quern_session_run(session));
    quern_session_free(session);
    quern_model_free(model);
}

/* y = x w, which learns on a device: the tensor of w, and losses */
static quern_tensor *learn(const char *target, double *losses)
{
    float xs[12], ys[12];
    for (int i = 0; i < 12; i++) {
        xs[i] = (float)sin(i * 1.7);
        ys[i] = (float)cos(i * 0.9);
    }
    const quern_train_options how = {
        .size = sizeof how, .loss = "mse", .optimizer = "adam", .learning_rate = 0.1
    };
    const quern_compile_options compile = { .size = sizeof compile, .target = target };
    const quern_array x = { QUERN_F32, 2, (const int64_t[]){ 4, 3 }, xs },
                      y = { QUERN_F32, 2, (const int64_t[]){ 4, 3 }, ys };
    quern_builder *b = quern_builder_new("line");
    quern_value *input = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(3)));
    quern_output(b, quern_linear(b, input, 3, "fc"), "y");
    quern_trainer *trainer;
    ok(quern_train(b, &how, &compile, &trainer));
    for (int i = 0; i < 10; i++)
        ok(quern_trainer_step(trainer, &x, &y, &losses[i]));
    ok(quern_trainer_eval(trainer, &x, &y, &losses[10], NULL));
    quern_session *session = quern_trainer_session(trainer);
    const quern_entry_info *entry = quern_trainer_entry(trainer);
    int at = 0;
    while (strcmp(entry->buffers[at].name, "fc.weight") != 0)
        at++;
    quern_tensor *w = quern_session_tensor(session, at);
    if (strcmp(target, "cpu") == 0) {
        assert_null(w);
        ok(quern_session_states_to(session, "cpu"));
        assert_int_equal(quern_session_states_to(session, "cuda"), QUERN_ERROR_ARGUMENT);
        assert_fails(NULL, QUERN_ERROR_ARGUMENT, "is on cuda:0 and the model runs on cpu");
        w = quern_session_tensor(session, at);
    } else {
        assert_string_equal(quern_tensor_device(must(w)), "cuda:0");
        ok(quern_session_states_to(session, "cpu")); /* goes on from there */
        assert_string_equal(quern_tensor_device(quern_session_tensor(session, at)), "cpu");
    }
    ok(quern_trainer_step(trainer, &x, &y, &losses[11]));
    w = must(quern_session_tensor(session, at));
    quern_trainer_free(trainer);
    return w;
}

static void test_states_stay_on_the_device(void **state)
{
    (void)state;
    double losses[2][12];
    quern_tensor *w = learn("cpu", losses[0]), *there = learn("cuda", losses[1]);
    assert_same("what was learnt", w, there);
    for (int i = 0; i < 12; i++)
        assert_true(fabs(losses[0][i] - losses[1][i]) < 1e-6);
    assert_true(losses[0][9] < losses[0][0]);
}

static long none(void)
{
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, with_scope, without_scope)

int main(void)
{
    const struct CMUnitTest operations[] = {
        TEST(elementwise),
        TEST(in_place),
        TEST(reductions_and_products),
        TEST(by_index_and_mask),
        TEST(dropout_has_the_same_mask),
        TEST(a_step_repeats_what_was_recorded),
    };
    const struct CMUnitTest tests[] = {
        TEST(without_a_driver_says_what_is_missing), /* the first: then there is one */
        TEST(copies_to_and_fro),
        TEST(memory_is_freed_once),
        TEST(memory_is_used_again),
        TEST(wraps_memory_of_others),
        TEST(assigns_between_devices),
        TEST(refuses_to_mix_devices),
        TEST(tapes_are_for_one_gpu),
        TEST(says_when_memory_is_out),
        TEST(what_is_asked_of_the_driver),
        TEST(models_take_and_give_tensors),
        TEST(a_cancelled_run_leaves_nothing),
        TEST(states_stay_on_the_device),
    };
    const char *real = getenv("QUERN_TEST_CUDA"); /* bench/gpu.md */
    if (real) {
        live = mistakes = none;
        setenv("QUERN_CUDA_LIBRARY", real, 1);
        return cmocka_run_group_tests(operations, NULL, NULL);
    }
    void *library = dlopen(QN_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    *(void **)&live = dlsym(library, "fake_cuda_live");
    *(void **)&mistakes = dlsym(library, "fake_cuda_mistakes");
    int failed = cmocka_run_group_tests(tests, NULL, NULL) + cmocka_run_group_tests(operations, NULL, NULL);
    setenv("FAKE_CUDA_BACKWARDS", "1", 1); /* the threads' order makes no difference */
    return failed + cmocka_run_group_tests(operations, NULL, NULL);
}
