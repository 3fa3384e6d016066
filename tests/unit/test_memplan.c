/* Memory plans: what is live together never overlaps (checked here from the steps alone), loops keep what they carry,
 * element-wise kernels work in place, symbolic sizes share slots. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "passes/pass.h"

typedef struct {
    qn_arena *arena;
    qn_dims *dims;
    qn_program *p;
    qn_diags diags;
} fixture;

static fixture begin(void)
{
    fixture f = { .arena = qn_arena_new() };
    f.dims = qn_dims_new(f.arena);
    f.p = qn_program_new(f.arena, f.dims, "test");
    qn_diags_init(&f.diags, f.arena);
    return f;
}

static int buffer(fixture *f, qn_dim elements)
{
    return qn_program_add_buffer(
        f->p, (qn_pbuffer){ .dtype = QUERN_F32, .elements = elements, .place = QN_PLACE_ARENA, .loop = -1 });
}

static int bytes_buffer(fixture *f, int64_t bytes)
{
    return buffer(f, qn_dim_const(f->dims, bytes / 4));
}

/* A kernel that reads the first n - 1 buffers and writes the last. */
static void call(fixture *f, qn_steps *steps, int n, const int *buffers, bool inplace)
{
    qn_kernel *k = qn_kernel_new(f->arena, "k");
    for (int i = 0; i < n; i++) {
        qn_kbuffer *b = qn_kernel_add_buffer(k, "b", QUERN_F32, i < n - 1, i == n - 1, 4);
        b->inplace = inplace && i == n - 1 ? 0 : -1;
    }
    qn_step *step = qn_steps_add(f->p, steps, QN_STEP_KERNEL);
    step->kernel = qn_program_add_kernel(f->p, k);
    step->n_buffers = n;
    step->buffers = qn_arena_copy(f->arena, buffers, (size_t)n * sizeof *buffers);
    step->tasks = qn_dim_const(f->dims, 1);
}

#define CALL(f, steps, inplace, ...) \
    call(f, steps, (int)(sizeof((int[]){ __VA_ARGS__ }) / sizeof(int)), (int[]){ __VA_ARGS__ }, inplace)

static int64_t offset(const fixture *f, int b)
{
    assert_true(qn_dim_is_const(f->p->buffers[b].offset));
    return f->p->buffers[b].offset->value;
}

static int64_t size(const fixture *f, int b)
{
    return f->p->buffers[b].elements->value * 4;
}

static void assert_apart(const fixture *f, int a, int b)
{
    assert_true(offset(f, a) + size(f, a) <= offset(f, b) || offset(f, b) + size(f, b) <= offset(f, a));
}

static void a_chain_needs_two_places(void **state)
{
    (void)state;
    fixture f = begin();
    int b[6];
    for (int i = 0; i < 6; i++)
        b[i] = bytes_buffer(&f, 1024);
    CALL(&f, &f.p->steps, false, b[0]);
    for (int i = 1; i < 6; i++)
        CALL(&f, &f.p->steps, false, b[i - 1], b[i]);
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    assert_int_equal(f.p->arena_bytes->value, 2048);
    assert_int_equal(f.p->arena_lower_bound->value, 2048);
    for (int i = 1; i < 6; i++)
        assert_apart(&f, b[i - 1], b[i]);
    qn_arena_free(f.arena);
}

static void in_place_needs_one(void **state)
{
    (void)state;
    fixture f = begin();
    int b[4];
    for (int i = 0; i < 4; i++)
        b[i] = bytes_buffer(&f, 4096);
    CALL(&f, &f.p->steps, false, b[0]);
    for (int i = 1; i < 4; i++)
        CALL(&f, &f.p->steps, true, b[i - 1], b[i]);
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    assert_int_equal(f.p->arena_bytes->value, 4096);
    for (int i = 1; i < 4; i++)
        assert_int_equal(offset(&f, b[i]), offset(&f, b[0]));
    qn_arena_free(f.arena);
}

static void in_place_leaves_what_is_read_later(void **state)
{
    (void)state;
    fixture f = begin();
    int a = bytes_buffer(&f, 256), b = bytes_buffer(&f, 256), c = bytes_buffer(&f, 256);
    CALL(&f, &f.p->steps, false, a);
    CALL(&f, &f.p->steps, true, a, b);
    CALL(&f, &f.p->steps, false, a, b, c);
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    assert_apart(&f, a, b);
    assert_apart(&f, a, c);
    assert_apart(&f, b, c);
    qn_arena_free(f.arena);
}

/* loop { t = g(state, outside); state = h(t) }: state is read before it is written, outside is read in each iteration */
static void loops_keep_what_they_carry(void **state)
{
    (void)state;
    fixture f = begin();
    int carried = bytes_buffer(&f, 512), outside = bytes_buffer(&f, 512), t = bytes_buffer(&f, 512),
        u = bytes_buffer(&f, 512), after = bytes_buffer(&f, 512);
    CALL(&f, &f.p->steps, false, carried);
    CALL(&f, &f.p->steps, false, outside);
    qn_step *loop = qn_steps_add(f.p, &f.p->steps, QN_STEP_LOOP);
    loop->loop = f.p->n_loops++;
    loop->count = qn_dim_const(f.dims, 5);
    CALL(&f, &loop->body, false, carried, outside, t);
    CALL(&f, &loop->body, false, t, u);
    CALL(&f, &loop->body, false, u, carried);
    CALL(&f, &f.p->steps, false, carried, after);
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    for (int b = t; b <= u; b++) {
        assert_apart(&f, b, carried);
        assert_apart(&f, b, outside);
    }
    assert_apart(&f, carried, outside);
    assert_apart(&f, t, u);
    assert_apart(&f, after, carried);
    assert_int_equal(f.p->arena_bytes->value, 4 * 512);
    qn_arena_free(f.arena);
}

static void symbolic_sizes_share_slots(void **state)
{
    (void)state;
    fixture f = begin();
    qn_dim n = qn_dim_symbol(f.dims, "n", 0, 1000), two_n = qn_dim_add(f.dims, n, n);
    int b[5];
    for (int i = 0; i < 5; i++)
        b[i] = buffer(&f, i % 2 ? two_n : n);
    int fixed = bytes_buffer(&f, 128);
    CALL(&f, &f.p->steps, false, fixed);
    CALL(&f, &f.p->steps, false, fixed, b[0]);
    for (int i = 1; i < 5; i++)
        CALL(&f, &f.p->steps, false, b[i - 1], b[i]);
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    for (int64_t value = 0; value <= 1000; value += 250) {
        int64_t total = qn_dim_eval(f.p->arena_bytes, &value);
        assert_true(total >= 12 * value && total <= 16 * value + 3 * 64 + 128);
        for (int i = 1; i < 5; i++) {
            int64_t x = qn_dim_eval(f.p->buffers[b[i - 1]].offset, &value),
                    y = qn_dim_eval(f.p->buffers[b[i]].offset, &value);
            int64_t x_size = 4 * value * (1 + (i - 1) % 2), y_size = 4 * value * (1 + i % 2);
            assert_true(x + x_size <= y || y + y_size <= x);
            assert_true(x % 64 == 0 && x + x_size <= total);
        }
    }
    qn_arena_free(f.arena);
}

/* Buffers n * (h - 1) * (w - 1) * c, whose polynomials don't show that they aren't negative, at three resolutions: as many slots
 * as the largest of each resolution, in a size that doesn't grow with the number of buffers. */
static void products_of_extents_share_slots(void **state)
{
    (void)state;
    fixture f = begin();
    enum { N = 90 };
    const qn_dim n = qn_dim_symbol(f.dims, "n", 0, 64), h = qn_dim_symbol(f.dims, "h", 1, 4000),
                 w = qn_dim_symbol(f.dims, "w", 1, 4000), one = qn_dim_const(f.dims, 1);
    int b[N];
    for (int i = 0; i < N; i++) {
        const qn_dim by = qn_dim_const(f.dims, 2 << i / 30);
        const qn_dim rows = qn_dim_sub(f.dims, qn_dim_floordiv(f.dims, h, by), one),
                     columns = qn_dim_sub(f.dims, qn_dim_floordiv(f.dims, w, by), one);
        b[i] = buffer(&f, qn_dim_mul(f.dims, qn_dim_const(f.dims, 16 * (1 + i * 7 % 11)),
                                     qn_dim_mul(f.dims, n, qn_dim_mul(f.dims, rows, columns))));
        if (i)
            CALL(&f, &f.p->steps, false, b[i - 1], b[i]);
        else
            CALL(&f, &f.p->steps, false, b[0]);
    }
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
    assert_int_equal(f.p->arena_bytes->kind, QN_DIM_ADD);
    assert_int_equal(f.p->arena_bytes->n, 3);
    const int64_t values[3] = { 2, 100, 37 };
    const int64_t total = qn_dim_eval(f.p->arena_bytes, values);
    assert_true(total <= 2 * 4 * 16 * 11 * 2 * (49 * 17 + 24 * 8 + 11 * 3));
    for (int i = 0; i < N; i++) {
        const qn_pbuffer *x = &f.p->buffers[b[i]];
        const int64_t from = qn_dim_eval(x->offset, values), to = from + 4 * qn_dim_eval(x->elements, values);
        assert_true(from % 64 == 0 && from >= 0 && to <= total);
        if (i > 0) {
            const qn_pbuffer *y = &f.p->buffers[b[i - 1]];
            const int64_t start = qn_dim_eval(y->offset, values);
            assert_true(to <= start || start + 4 * qn_dim_eval(y->elements, values) <= from);
        }
    }
    qn_arena_free(f.arena);
}

/* As many buffers of independent sizes that are live at once. */
static qn_status plan_independent(fixture *f, int count)
{
    int *b = QN_NEW_ARRAY(f->arena, int, count);
    for (int i = 0; i < count; i++) {
        b[i] = buffer(f, qn_dim_fresh(f->dims, "n", 0, 1000));
        CALL(f, &f->p->steps, false, b[i]);
    }
    call(f, &f->p->steps, count, b, false);
    f->p->n_entry_symbols = count;
    return qn_memplan(f->p, &f->diags);
}

static void many_independent_sizes_have_places(void **state)
{
    (void)state;
    enum { N = 200 };
    fixture f = begin();
    assert_int_equal(plan_independent(&f, N), QUERN_OK);
    int64_t values[N], total = 0;
    for (int i = 0; i < N; i++) {
        values[i] = i * 8;
        total += (i * 8 * 4 + 63) / 64 * 64;
    }
    assert_int_equal(qn_dim_eval(f.p->arena_bytes, values), total);
    qn_arena_free(f.arena);
}

static void more_than_dims_can_say_is_refused(void **state)
{
    (void)state;
    fixture f = begin();
    assert_int_equal(plan_independent(&f, 600), QUERN_ERROR_UNSUPPORTED);
    assert_string_equal(
        f.diags.first->text,
        "the workspace of 'test' depends in too many ways on its 600 dimensions: fix some of n, n_1, "
        "n_2, n_3, … (--dim NAME=N)");
    qn_arena_free(f.arena);

    f = begin(); /* one buffer alone: (n + …) * (m + …), 200 symbols each, of whose product dims have no 40000 terms */
    qn_dim sums[2] = { qn_dim_const(f.dims, 0), qn_dim_const(f.dims, 0) };
    for (int i = 0; i < 400; i++)
        sums[i % 2] = qn_dim_add(f.dims, sums[i % 2], qn_dim_fresh(f.dims, "n", 0, 10));
    CALL(&f, &f.p->steps, false, buffer(&f, qn_dim_mul(f.dims, sums[0], sums[1])));
    assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_ERROR_UNSUPPORTED);
    assert_string_equal(f.diags.first->text,
                        "the workspace of 'test' depends in too many ways on its 400 dimensions");
    qn_arena_free(f.arena);
}

/* Straight-line programs of random sizes and reads: whatever is read later has not been overwritten. */
static void random_programs_keep_what_is_read(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 50; round++) {
        fixture f = begin();
        enum { N = 40 };
        int b[N], reads[N][2];
        for (int i = 0; i < N; i++) {
            b[i] = bytes_buffer(&f, 4 * (1 + rand() % 3000));
            reads[i][0] = i ? rand() % i : 0;
            reads[i][1] = i ? i - 1 : 0;
            if (i)
                CALL(&f, &f.p->steps, false, b[reads[i][0]], b[reads[i][1]], b[i]);
            else
                CALL(&f, &f.p->steps, false, b[0]);
        }
        assert_int_equal(qn_memplan(f.p, &f.diags), QUERN_OK);
        for (int i = 1; i < N; i++) {
            for (int r = 0; r < 2; r++) {
                for (int between = reads[i][r] + 1; between <= i; between++)
                    assert_apart(&f, b[between], b[reads[i][r]]);
            }
        }
        assert_true(f.p->arena_bytes->value >= f.p->arena_lower_bound->value);
        assert_true(f.p->arena_bytes->value <= 2 * f.p->arena_lower_bound->value);
        qn_arena_free(f.arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_needs_two_places),
        cmocka_unit_test(in_place_needs_one),
        cmocka_unit_test(in_place_leaves_what_is_read_later),
        cmocka_unit_test(loops_keep_what_they_carry),
        cmocka_unit_test(symbolic_sizes_share_slots),
        cmocka_unit_test(products_of_extents_share_slots),
        cmocka_unit_test(many_independent_sizes_have_places),
        cmocka_unit_test(more_than_dims_can_say_is_refused),
        cmocka_unit_test(random_programs_keep_what_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
