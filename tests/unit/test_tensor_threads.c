/* Tensors on several threads: the same kernels and gradients, first asked for at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "quern_tensor.h"

#define N_THREADS 4

typedef struct work {
    quern_tensor *x; /* everybody's, only read */
    int n;
    double sum, slope;
    int status;
} work;

static void *compute(void *arg)
{
    work *w = arg;
    quern_scope *scope = quern_scope_begin();
    quern_tensor *y = w->x, *gradient = NULL;
    for (int i = 0; i < w->n; i++) {
        y = quern_tensor_add(quern_tensor_mul(y, QUERN_REAL(0.5)), quern_tensor_transpose(w->x, NULL));
        y = quern_tensor_exp(quern_tensor_neg(y));
    }
    w->status = quern_tensor_item(quern_tensor_sum(y, QUERN_ALL_AXES, 0), &w->sum);
    quern_tape *tape = quern_tape_begin();
    quern_tensor *loss = quern_tensor_mean(quern_tensor_square(quern_tensor_tanh(w->x)), QUERN_ALL_AXES, 0);
    if (!w->status)
        w->status = quern_tape_gradient(tape, loss, 1, &w->x, &gradient);
    if (!w->status)
        w->status = quern_tensor_item(quern_tensor_sum(gradient, QUERN_ALL_AXES, 0), &w->slope);
    quern_tape_free(tape);
    quern_scope_end(scope);
    return NULL;
}

static void same_bits(quern_tensor *x, int n)
{
    pthread_t threads[N_THREADS];
    work works[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        works[i] = (work){ .x = x, .n = n };
        assert_int_equal(pthread_create(&threads[i], NULL, compute, &works[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(works[i].status, 0);
        assert_true(works[i].sum == works[0].sum && works[i].slope == works[0].slope);
    }
    assert_true(works[0].sum > 0 && works[0].slope != 0);
}

static void test_threads_get_the_same_bits(void **state)
{
    (void)state;
    quern_tensor *x = quern_tensor_randn(QUERN_F32, QUERN_DIMS(64, 64), 1);
    same_bits(x, 50);
    quern_tensor_free(x);
}

/* By the driver of tests/fake_cuda. */
static void test_threads_share_a_gpu(void **state)
{
    (void)state;
    setenv("QUERN_CUDA_LIBRARY", QN_FAKE_CUDA, 1);
    quern_tensor *x = quern_tensor_randn(QUERN_F32, QUERN_DIMS(64, 64), 1),
                 *there = quern_tensor_to(x, "cuda");
    if (!there)
        fail_msg("%s", quern_last_error());
    same_bits(there, 4);
    quern_tensor_free(there);
    quern_tensor_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_threads_get_the_same_bits),
                                        cmocka_unit_test(test_threads_share_a_gpu) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
