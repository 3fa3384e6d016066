/* Values that go through local memory stay in registers where nothing comes between; the kernel computes the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "passes/pass.h"

enum { SIZE = 64 };

static const struct {
    const char *name, *body;
    int loads;   /* of local memory that are left */
    bool buffer; /* is it left? */
} cases[] = {
    { "what was stored is loaded",
      "%a = load %x[0] : f32x16 store %t[0], %a store %t[16], f32x16 3 %b = load %t[0] : f32x16 store %y[0], "
      "%b "
      "%c = load %t[16] : f32x16 store %y[16], %c",
      0, false },
    { "in a block inside",
      "%a = load %x[3] : f32 store %t[5], %a for %i = 0 to %n step 1 { %b = load %t[5] : f32 store %y[%i], "
      "%b }",
      0, false },
    { "another number of lanes",
      "%a = load %x[0] : f32x16 store %t[0], %a %b = load %t[0] : f32x8 store %y[0], %b", 1, true },
    { "a part was stored again",
      "%a = load %x[0] : f32x16 store %t[0], %a store %t[7], f32 2 %b = load %t[0] : f32x16 store %y[0], %b "
      "%c = load %t[7] : f32 store %y[20], %c",
      1, true },
    { "stored where it isn't known",
      "%a = load %x[0] : f32 store %t[0], %a store %t[%n], f32 2 %b = load %t[0] : f32 store %y[0], %b", 1,
      true },
    { "stored in the iteration before",
      "%a = load %x[0] : f32 store %t[0], %a for %i = 0 to %n step 1 { %b = load %t[0] : f32 store %y[%i], "
      "%b "
      "%c = add %b, f32 1 store %t[0], %c }",
      1, true },
    { "stored by a tile",
      "store %t[3], f32 5 tile_shape 1, 0, 0, 0, 0, 0, 0, 0 tile_store [0] %t[0], 16 %b = load %t[3] : f32 "
      "store %y[0], %b",
      1, true },
    { "stored by a tile in the iteration before",
      "store %t[3], f32 5 tile_shape 1, 0, 0, 0, 0, 0, 0, 0 for %i = 0 to %n step 1 { %b = load %t[3] : f32 "
      "store %y[%i], %b tile_store [0] %t[0], 16 }",
      1, true },
    { "stored in one branch",
      "store %t[0], f32 1 %p = compare lt %n, 3 if %p { store %t[0], f32 2 } else { } %b = load %t[0] : f32 "
      "store %y[0], %b",
      1, true },
};

static int count_loads(const qn_kblock *block)
{
    int n = 0;
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        n += inst->op == QN_K_LOAD && inst->buffer->space == QN_SPACE_LOCAL;
        for (int i = 0; i < inst->n_blocks; i++)
            n += count_loads(inst->blocks[i]);
    }
    return n;
}

static void run(const qn_kernel *k, int64_t n, float *y, qn_diags *diags)
{
    float x[SIZE];
    for (int i = 0; i < SIZE; i++) {
        x[i] = (float)(i * 7 % 11);
        y[i] = -1;
    }
    int64_t args[] = { -1, (int64_t)(intptr_t)x, (int64_t)(intptr_t)y, n };
    assert_int_equal(qn_interp_kernel(k, args, 1, diags), QUERN_OK);
}

static void test_forward(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *text = qn_arena_printf(
            arena, "kernel @k(%%x: f32 in, %%y: f32 out; %%n [0, 9]) { local %%t: f32[32] %s }",
            cases[c].body);
        const qn_kernel *before = qn_kernel_parse(text, cases[c].name, arena, &diags);
        if (!before)
            fail_msg("%s: %s", cases[c].name, qn_diags_text(&diags, arena));
        qn_kernel *after = qn_kernel_clone(before, arena);
        qn_kernel_forward(after);
        assert_int_equal(qn_kernel_verify(after, &diags), QUERN_OK);
        if (count_loads(after->body) != cases[c].loads ||
            (after->n_all_buffers > after->n_buffers) != cases[c].buffer)
            fail_msg("%s: not as expected:\n%s", cases[c].name, qn_kernel_print(after, arena));
        for (int64_t n = 1; n < 9; n += 4) {
            float expected[SIZE], got[SIZE];
            run(before, n, expected, &diags);
            run(after, n, got, &diags);
            assert_memory_equal(got, expected, sizeof got);
        }
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_forward) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
