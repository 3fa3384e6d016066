/* The arena and the diagnostics that live in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/diag.h"

static void memory_is_zeroed_aligned_and_apart(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    static const size_t sizes[] = { 1, 0, 15, 16, 17, 1000, 20000, 70000, 3, 5000000, 7 };
    enum { N = sizeof sizes / sizeof *sizes, ROUNDS = 50 };
    unsigned char *got[ROUNDS][N];
    size_t bytes = 0;
    for (int r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < N; i++) {
            const size_t size = i == 9 && r > 2 ? 100 : sizes[i];
            unsigned char *p = got[r][i] = qn_arena_alloc(arena, size);
            bytes += size;
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 16, 0);
            for (size_t k = 0; k < size; k++)
                assert_int_equal(p[k], 0);
            memset(p, r * N + i, size);
        }
    }
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < N; i++)
            for (size_t k = 0; k < (i == 9 && r > 2 ? 100 : sizes[i]); k++)
                assert_int_equal(got[r][i][k], (unsigned char)(r * N + i));
    assert_int_equal(qn_arena_bytes(arena), bytes);
    qn_arena_free(arena);
    qn_arena_free(NULL);
}

static void text_of_any_length_is_formatted(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    assert_string_equal(qn_arena_printf(arena, "%d-%s", 7, "x"), "7-x");
    char want[1001];
    memset(want, 'y', 1000);
    want[1000] = 0;
    for (int length = 250; length <= 1000; length++) {
        const char *text = qn_arena_printf(arena, "%.*s", length, want);
        assert_int_equal(strlen(text), length);
        assert_memory_equal(text, want, (size_t)length);
    }
    assert_string_equal(qn_arena_strdup(arena, "hello"), "hello");
    qn_arena_free(arena);
}

static void vectors_grow_and_keep_their_items(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_vec(int) v = { 0 };
    for (int i = 0; i < 1000; i++)
        qn_vec_push(arena, &v, i * i);
    assert_int_equal(v.n, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(v.items[i], i * i);
    qn_arena_free(arena);
}

static int order[3], n_freed;

static void large_memory_is_given_back(void **state)
{
    (void)state;
    enum { MB = 1 << 20 };
    qn_arena *arena = qn_arena_new();
    char *small = qn_arena_alloc(arena, 100), *large = qn_arena_alloc(arena, 8 * MB),
         *other = qn_arena_alloc(arena, 9 * MB), *foreign = malloc(MB);
    assert_non_null(foreign);
    memset(small, 1, 100);
    memset(large, 2, 8 * MB);
    memset(other, 3, 9 * MB);
    memset(foreign, 4, MB);
    qn_arena_release(arena, large, 8 * MB);
    qn_arena_release(arena, small, 100);  /* less than a page: stays */
    qn_arena_release(arena, foreign, MB); /* not the arena's: stays */
    assert_int_equal(large[4 * MB], 0);   /* a fresh page */
    assert_int_equal(small[99], 1);
    assert_int_equal(other[0], 3);
    assert_int_equal(other[9 * MB - 1], 3);
    assert_int_equal(foreign[MB / 2], 4);
    free(foreign);
    qn_arena_free(arena);
}

static void note_freed(void *object)
{
    order[n_freed++] = *(int *)object;
}

static void deferred_calls_run_newest_first(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    for (int i = 0; i < 3; i++) {
        int *object = QN_NEW(arena, int);
        *object = i;
        qn_arena_defer(arena, note_freed, object);
    }
    assert_int_equal(n_freed, 0);
    qn_arena_free(arena);
    assert_int_equal(n_freed, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(order[i], 2 - i);
}

static void diagnostics_say_where_and_collect(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    assert_string_equal(qn_diags_text(&diags, arena), "");
    assert_int_equal(qn_diags_status(&diags), QUERN_OK);

    const qn_loc text = { .file = "x.qn", .line = 3, .column = 14 };
    const qn_loc onnx = { .file = "m.onnx", .node = "/layer1/Conv", .op = "Conv, opset 18" };
    const qn_loc op = { .op = "Conv, opset 18" };
    assert_int_equal(qn_error(&diags, QUERN_ERROR_MODEL, &text, "unknown op '%s'", "ad"), QUERN_ERROR_MODEL);
    qn_error(&diags, QUERN_ERROR_UNSUPPORTED, &onnx, "group is %d", 0);
    qn_error(&diags, QUERN_ERROR_UNSUPPORTED, &op, "no");
    qn_error(&diags, QUERN_ERROR_IO, NULL, "cannot read");
    assert_string_equal(qn_diags_text(&diags, arena), "x.qn:3:14: unknown op 'ad'\n"
                                                      "m.onnx: /layer1/Conv (Conv, opset 18): group is 0\n"
                                                      "Conv, opset 18: no\n"
                                                      "cannot read");
    assert_int_equal(qn_diags_status(&diags), QUERN_ERROR_MODEL);

    for (int i = 0; i < QN_DIAG_LIMIT; i++)
        qn_error(&diags, QUERN_ERROR_IO, NULL, "again");
    assert_int_equal(diags.n_errors, QN_DIAG_LIMIT + 4);
    const char *all = qn_diags_text(&diags, arena);
    assert_non_null(strstr(all, "\n… and 4 more errors"));
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_aligned_and_apart),
        cmocka_unit_test(text_of_any_length_is_formatted),
        cmocka_unit_test(vectors_grow_and_keep_their_items),
        cmocka_unit_test(large_memory_is_given_back),
        cmocka_unit_test(deferred_calls_run_newest_first),
        cmocka_unit_test(diagnostics_say_where_and_collect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
